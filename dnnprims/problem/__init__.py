"""The call line: any call of a primitive in one line of text, legal or not, from which it can be made again.

``fc_forward x=bfloat16:64x128 w=bfloat16:10x128 activation=gelu math=tf32`` names the function, each argument that is
not at its default, and the options of the handle that are not at theirs. It holds no data: `python -m dnnprims replay`
draws some. There is no space within a word, no comma and no line break anywhere, and nothing that a shell reads between
double quotes. `words` and `tensors` have the grammar of the values.

Log lines (`DNNPRIMS_VERBOSE`), errors (`DnnprimsError.call`) and records (`DNNPRIMS_RECORD`) carry it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..errors import BadParamError
from .tensors import Memory, Operand, as_operand, find_overlaps, look_at, reach
from .words import Unknown, Unreadable, known, read, write

__all__ = ["HANDLE_OPTIONS", "CallLine", "Operand", "Unknown", "parameters", "signature"]

#: Option of a handle -> its default.
HANDLE_OPTIONS: dict[str, Any] = {"math": "ieee", "deterministic": True, "workspace_limit": None}


@cache
def signature(op: Callable[..., Any]) -> inspect.Signature:
    """The signature of a primitive; asked for with every error, it is worked out once."""
    return inspect.signature(op)


def parameters(op: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a primitive by name, the handle left out."""
    return dict(list(signature(op).parameters.items())[1:])


@dataclass(frozen=True)
class CallLine:
    """One call: arrays are `Operand`, and what a line cannot give back is `Unknown`.

    Attributes
    ----------
    op : str
        Name of the primitive.
    arguments : mapping
        By name, those at their defaults left out.
    options : mapping
        Of the handle, those at their defaults left out.
    """

    op: str
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, op: Callable[..., Any], arguments: Mapping[str, Any], handle: Any = None) -> CallLine:
        """Describe a call.

        Parameters
        ----------
        op : function
            The primitive.
        arguments : mapping
            Its arguments by name, the handle left out. Nothing of them is kept.
        handle : Handle, optional
            Where it runs, for its options and to tell foreign arrays.
        """
        profile = getattr(handle, "profile", None)
        backend, device = getattr(profile, "backend", ""), getattr(handle, "device", 0)
        native = {"cuda": "device", "numpy": "host", "emulator": "host"}.get(backend, "")
        seen: list[tuple[Operand, Memory]] = []

        def tensor(a: Any) -> Operand | None:
            memory = look_at(a)
            operand = None if memory is None else as_operand(memory, native, device)
            if memory is not None and operand is not None:
                seen.append((operand, memory))
                return replace(operand, over=f"#{len(seen) - 1}")  # its number, until its neighbours are known
            return operand

        given = {
            name: known(arguments[name], tensor)
            for name, parameter in parameters(op).items()
            if name in arguments and not _is_default(arguments[name], parameter.default)
        }
        return cls(op.__name__, _place(given, seen), _options(profile))

    @classmethod
    def parse(cls, text: str) -> CallLine:
        """Read a line.

        Raises
        ------
        BadParamError
            It is no call line; the message names the word.
        """
        op, *words = text.split() or [""]
        arguments: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            try:
                if not equals or not name.isidentifier() or name in arguments:
                    raise Unreadable(word)
                arguments[name] = read(value)
            except BadParamError:
                raise
            except (ValueError, TypeError, OverflowError, RecursionError):
                rule = "name=value once for each argument, as in a log line"
                raise BadParamError("replay", "has an unreadable word", param="line", got=word, expected=rule) from None
        options = {name: arguments.pop(name) for name in HANDLE_OPTIONS if name in arguments}
        return cls(op, arguments, options)

    def __str__(self) -> str:
        given = {**self.arguments, **self.options}
        return " ".join([self.op, *(f"{name}={write(value)}" for name, value in given.items())])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallLine) and str(self) == str(other)  # NaN is what it was

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def operands(self) -> dict[str, Operand]:
        """The tensors by label: ``x``, or ``weights[1]`` within a list."""
        labelled = ((label, value) for name, given in self.arguments.items() for label, value in _items(name, given))
        return {label: value for label, value in labelled if isinstance(value, Operand)}

    @property
    def lost(self) -> list[str]:
        """Labels of the values that the line cannot give back."""
        return [
            label
            for name, given in self.arguments.items()
            for label, value in _items(name, given)
            if isinstance(value, Unknown)
        ]


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _items(f"{name}[{i}]", item)
    else:
        yield name, value


def _is_default(value: Any, default: Any) -> bool:
    if value is None or default is None or type(value) is bool:
        return value is default
    return type(value) is type(default) and isinstance(value, int | float | str) and repr(value) == repr(default)


def _options(profile: Any) -> dict[str, Any]:
    limit = getattr(profile, "workspace_limit", -1)
    given = {
        "math": getattr(profile, "math", "ieee"),
        "deterministic": getattr(profile, "deterministic", True),
        "workspace_limit": None if limit < 0 else limit,
    }
    return {name: value for name, value in given.items() if value != HANDLE_OPTIONS[name]}


def _place(given: dict[str, Any], seen: list[tuple[Operand, Memory]]) -> dict[str, Any]:
    """Give each operand its place: over another one where their memory overlaps."""
    labels = {
        int(value.over[1:]): label
        for name, one in given.items()
        for label, value in _items(name, one)
        if isinstance(value, Operand)
    }
    spans = []
    for number, (_, memory) in enumerate(seen):
        low, high = reach(memory.shape, memory.steps, memory.dtype.itemsize)
        if memory.address and high > low and "described" not in memory.tags and number in labels:
            spans.append((number, memory.address + low, memory.address + high))
    placed = {number: operand for number, (operand, _) in enumerate(seen)}
    for first, *others in find_overlaps(spans):
        for number in others:
            shift = seen[number][1].address - seen[first][1].address
            placed[number] = replace(placed[number], over=labels[first], offset=shift)
    return {name: _settled(value, placed) for name, value in given.items()}


def _settled(value: Any, placed: Mapping[int, Operand]) -> Any:
    """The value with each operand in its place."""
    if isinstance(value, tuple | list):
        return type(value)(_settled(item, placed) for item in value)
    return placed[int(value.over[1:])] if isinstance(value, Operand) else value
