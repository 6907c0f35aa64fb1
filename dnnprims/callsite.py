"""Which call of a primitive is being made, told from the stack.

A front end hands its handle what a plan needs, not what its caller wrote, and some calls are refused before they reach
the handle. The frame of the front end has it all. It is looked for only when an error is made or a watched call is told
of, so that other calls pay nothing, and no primitive can forget to say who it is.

Front ends may give a parameter another value of the same meaning (an axis as a plain integer, an array taken over), and
do not use its name for anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from . import errors
from .errors import DnnprimsError
from .problem import CallLine

#: Longest call line that is put below a traceback; `DnnprimsError.call` has longer ones.
LONGEST_NOTE = 2_000

_FRONT_ENDS = f"{__package__}.ops."
#: Functions that hold a call without being inside its front end: of a prepared plan, and of the questions.
_PLANNING = {f"{__package__}.prepared": ("perform", "__init__"), f"{__package__}.planning": ("_specify",)}


def current_call() -> tuple[CallLine, Any] | None:
    """The innermost call of a primitive or of a prepared plan on this thread's stack, and its handle."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        if code.co_varnames[:1] == ("handle",) and module.startswith(_FRONT_ENDS) and code.co_name[0] != "_":
            held = frame.f_locals
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            op, handle = frame.f_globals[code.co_name], held.get("handle")
            return CallLine.of(op, {name: held[name] for name in names if name in held}, handle), handle
        if code.co_name in _PLANNING.get(module, ()):
            return _planned_call(frame.f_locals)
        frame = frame.f_back
    return None


def _planned_call(held: Mapping[str, Any]) -> tuple[CallLine, Any] | None:
    """The call that is planned or that a prepared plan makes, from the names in one of the frames of `_PLANNING`."""
    from .planning import bind_arguments

    if "arrays" in held:
        return held["self"].call_line(held["arrays"], held["named"]), held["self"].handle
    try:
        arguments = bind_arguments(held["op"], held["arguments"], held["options"])
        return CallLine.of(held["op"], arguments, held.get("handle")), held.get("handle")
    except (TypeError, ValueError, AttributeError, KeyError):
        return None  # no primitive, or no call of it


def _name_the_call(error: DnnprimsError) -> None:
    """Give an error the call that it is made in, and tell the handle's watch of it."""
    if error.op.startswith("TensorDescriptor"):
        return  # words about a part, which the front end words again for the argument
    try:
        found = current_call()
    except Exception:  # nothing may take the place of the error
        return
    if found is None:
        return
    line, handle = found
    error.call = str(line)
    if hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(
            f'replay with: python -m dnnprims replay "{error.call}"'
            if len(error.call) <= LONGEST_NOTE
            else f"its call line, of {len(error.call)} characters, is the attribute `call`"
        )
    watch = getattr(handle, "_watch", None)
    if watch is not None:
        watch.failed(error)


errors.witness = _name_the_call
