"""What the environment asks to be told of calls: log lines, records, checks at once, ranges for a profiler.

``DNNPRIMS_VERBOSE``, ``DNNPRIMS_RECORD``, ``DNNPRIMS_CHECK`` and ``DNNPRIMS_NVTX`` are read when a handle is made. A
handle that none of them asks about has no watch, and its calls pay nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .callsite import current_call
from .errors import DnnprimsError
from .verbose import Log

if TYPE_CHECKING:
    from .handle import Handle
    from .record import Recorder
    from .runtime.plan import Plan


#: Characters of the name of a range.
LONGEST_RANGE = 200


def _recorder() -> Recorder | None:
    """The recorder that the environment asks for; who asks for none does not load it."""
    if not os.environ.get("DNNPRIMS_RECORD"):
        return None
    from .record import Recorder

    return Recorder.from_environment()


def asked(variable: str) -> bool:
    """Whether a switch of the environment is on."""
    return os.environ.get(variable, "") not in ("", "0")


class Watch:
    """Told of every call of a handle, and of what becomes of it.

    Parameters
    ----------
    backend : str
        Of the handle.
    log : Log or None
        Prints a line for each event.
    recorder : Recorder or None
        Keeps inputs.
    check_at_once : bool
        Look at the device flag after each call.
    """

    def __init__(self, backend: str, log: Log | None, recorder: Recorder | None, check_at_once: bool) -> None:
        self.backend, self.log, self.recorder, self.check_at_once = backend, log, recorder, check_at_once

    @classmethod
    def from_environment(cls, backend: str) -> Watch | None:
        """Return the watch that the environment asks for, or None."""
        log, recorder, check_at_once = Log.from_environment(), _recorder(), asked("DNNPRIMS_CHECK")
        return cls(backend, log, recorder, check_at_once) if log or recorder or check_at_once else None

    def failed(self, error: DnnprimsError) -> None:
        """A call was refused or failed; the error knows which."""
        if self.log is not None:
            self.log.failed(error, self.backend)
        if self.recorder is not None:
            self.recorder.failed(error, self.backend)

    def dispatched(self, spec: Any, call: object = None) -> None:
        """A plan was made, for the call that is being made where none is named."""
        if self.log is not None:
            self.log.dispatched(spec, self.backend, call if call is not None else _current())

    @contextmanager
    def call(self, handle: Handle, op: str, variant: str, operands: Mapping[str, Any]) -> Iterator[None]:
        """Watch one call; `operands` are its arrays by label, as they are before it.

        What is timed, recorded or checked is waited for. While a graph is recorded nothing may be, and nothing is.
        """
        log, recorder = self.log, self.recorder
        line = _current()
        if handle.capturing():
            if recorder is not None:
                recorder.skip_captured()
            yield
            if log is not None:
                log.called(op, handle.backend, variant, line, None)
            return
        profiled = log is not None and "profile" in log.events
        held = recorder is not None and recorder.hold(handle, op, variant, line, operands)
        if profiled:
            handle.synchronize()
        start = time.perf_counter()
        yield
        if profiled or held:
            handle.synchronize()
        elif self.check_at_once:
            handle.check()
        seconds = time.perf_counter() - start
        if log is not None:
            log.called(op, handle.backend, variant, line, seconds)
        if recorder is not None:
            recorder.succeeded(op)


def _current() -> str:
    try:
        found = current_call()
        return str(found[0]) if found is not None else ""
    except Exception:  # no call may fail for being watched
        return ""


def add_ranges(plan: Plan, spec: Any, nvtx: Any) -> None:
    """Put each call of a plan into an NVTX range, named by function, variant and operands, for a profiler to show."""
    enqueue: Callable[..., Any] = plan.enqueue
    push, pop = nvtx.RangePush, nvtx.RangePop
    tensors = " ".join("-" if d is None else f"{d.dtype.name}:{'x'.join(map(str, d.shape))}" for d in plan.operands)
    name = f"dnnprims {spec.op} {spec.variant} {tensors}"[:LONGEST_RANGE]

    def ranged(*arguments: Any) -> Any:
        push(name)
        try:
            return enqueue(*arguments)
        finally:
            pop()

    plan.repeats = False  # or calls would go past the range
    plan.enqueue = ranged  # type: ignore[method-assign, assignment]
