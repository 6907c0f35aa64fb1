"""The values of a call line as words without spaces and commas, and back.

===========================  ==================================================================================
``-``                        None
``True``, ``3``, ``0.5``     Python's own numbers; ``nan``, ``inf``
``gelu``                     text that looks like a name; other text is quoted: ``'no%20such'``, encoded as in URLs
``(0;1)``, ``[3;4]``         tuples and lists; ``3*word`` stands for three of the same
``elu(alpha=0.5)``           a descriptor: mode or kind, and what differs from its defaults;
                             ``convolution(stride=2)``, ``pooling(mode=max;window=2)``, ``batchnorm(layout=NHWC)``
``float32(0.5)``             a scalar of NumPy; ``dtype(float32)``, ``type(float32)`` and ``row(float32)`` are types
``float32:3x4``              a tensor, see `dnnprims.problem.tensors`
``?Fraction``                a value of that type, which the line cannot give back
===========================  ==================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, islice
from typing import Any
from urllib.parse import quote, unquote

import ml_dtypes  # noqa: F401  registers bfloat16's name with NumPy
import numpy as np

from ..descriptors import (
    ActivationDescriptor,
    BatchNormDescriptor,
    ConvolutionDescriptor,
    LossDescriptor,
    PoolingDescriptor,
)
from ..descriptors.activation import ACTIVATION_MODES
from ..descriptors.loss import LOSS_KINDS
from ..dtypes import BY_NAME, DType
from .tensors import Operand

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CALL = re.compile(r"(\w+)\((.*)\)", re.ASCII)
_INTEGER = re.compile(r"-?\d+", re.ASCII)

#: Words that are no text.
_CONSTANTS = {"-": None, "True": True, "False": False}
_SCALARS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64", "bfloat16")
#: What stands for the name of a descriptor that has none of its own.
_UNNAMED: dict[str, type] = {
    "batchnorm": BatchNormDescriptor,
    "convolution": ConvolutionDescriptor,
    "pooling": PoolingDescriptor,
}
_NAME_OF = {kind: name for name, kind in _UNNAMED.items()}
_PYTHON_TYPES: dict[str, type] = {"float": float, "int": int}

#: Longest text, most bits of an integer, most items of a list and deepest nesting that a line gives back.
LONGEST_TEXT, MOST_BITS, MOST_ITEMS, DEEPEST = 200, 1024, 100_000, 4


@dataclass(frozen=True)
class Unknown:
    """A value that a line names by its type and cannot give back."""

    kind: str

    def __str__(self) -> str:
        return "?" + re.sub(r"[^\w.]", "_", self.kind)


class Unreadable(ValueError):
    """A word is none of those above."""


def write(value: Any) -> str:
    """A value, arrays already replaced by operands, as a word."""
    if isinstance(value, tuple | list):
        words = ";".join(_write_items(value))
        return f"({words})" if isinstance(value, tuple) else f"[{words}]"
    if isinstance(value, Operand | Unknown):
        return str(value)
    if value is None:
        return "-"
    if isinstance(value, (ActivationDescriptor, LossDescriptor, *_NAME_OF)):
        return _write_descriptor(value)
    if isinstance(value, np.generic):
        return f"{value.dtype.name}({value.item() if value.dtype.name in _SCALARS else float(value)!r})"
    if isinstance(value, np.dtype):
        return f"dtype({value.name})"
    if isinstance(value, DType):
        return f"row({value.name})"
    if isinstance(value, type):
        return f"type({value.__name__})"
    return _write_text(value) if isinstance(value, str) else repr(value)


def _write_items(items: Sequence[Any]) -> Iterator[str]:
    for word, same in groupby(map(write, items)):
        count = sum(1 for _ in same)
        yield word if count == 1 else f"{count}*{word}"


def _write_text(text: str) -> str:
    plain = _NAME.fullmatch(text) and text not in _CONSTANTS and not _is_number(text)
    return text if plain else f"'{quote(text, safe='', errors='surrogatepass')}'"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _write_descriptor(value: Any) -> str:
    if isinstance(value, ActivationDescriptor):
        name, defaults = value.mode, ACTIVATION_MODES[value.mode]
        options = {key: given for key, given in value.parameters if not _same(given, defaults[key])}
    else:
        name = value.kind if isinstance(value, LossDescriptor) else _NAME_OF[type(value)]
        rest = [f for f in fields(value) if f.name != "kind"]
        options = {f.name: getattr(value, f.name) for f in rest if not _same(getattr(value, f.name), f.default)}
    return f"{name}({';'.join(f'{key}={write(given)}' for key, given in options.items())})"


def _same(one: object, other: object) -> bool:
    return one == other and str(one) == str(other)  # -0.0 is not 0.0


def known(value: Any, tensor: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value with arrays replaced by `tensor`, and by `Unknown` what no word gives back."""
    try:
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            if depth == DEEPEST or len(value) > MOST_ITEMS:
                return Unknown(type(value).__name__)
            return type(value)(known(item, tensor, depth + 1) for item in islice(value, MOST_ITEMS))
        if _is_plain(value):
            return value
        found = tensor(value)
        return Unknown(_type_name(value)) if found is None else found
    except Exception:  # whatever a stranger's object raises, the line that tells of it must not fail
        return Unknown(_type_name(value))


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return bool(value.bit_length() <= MOST_BITS)
    if kind is str:
        return len(value) <= LONGEST_TEXT
    if isinstance(value, np.generic):
        return value.dtype.name in (*_SCALARS, *_FLOATS) and kind is value.dtype.type
    if isinstance(value, np.dtype):
        return value.name in BY_NAME and value == BY_NAME[value.name].numpy
    if isinstance(value, type):
        return value in _PYTHON_TYPES.values() or any(value is row.numpy.type for row in BY_NAME.values())
    return value is None or kind in (bool, float, DType, ActivationDescriptor, LossDescriptor, *_NAME_OF)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# -- back ------------------------------------------------------------------------------------------------------------


def read(word: str) -> Any:
    """The value of a word; what is no other word is text only where it looks like a name."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if word.startswith("?"):
        return Unknown(word[1:])
    if word[:1] + word[-1:] in ("()", "[]"):
        items = [item for part in split(word[1:-1]) for item in _read_items(part)]
        return tuple(items) if word[0] == "(" else items
    if word[:1] == "'":
        if len(word) < 2 or word[-1] != "'":
            raise Unreadable(word)
        return unquote(word[1:-1], errors="surrogatepass")
    if _INTEGER.fullmatch(word):
        return int(word)
    if _is_number(word):
        return float(word)
    found = Operand.parse(word)
    if found is not None:
        return found
    called = _CALL.fullmatch(word)
    if called:
        return _read_call(word, *called.groups())
    if _NAME.fullmatch(word):
        return word
    raise Unreadable(word)


def _read_items(part: str) -> list[Any]:
    times = re.match(r"(\d{1,6})\*", part, re.ASCII)
    return [read(part[times.end() :])] * int(times[1]) if times else [read(part)]


def _read_call(word: str, name: str, inside: str) -> Any:
    """A descriptor, a scalar or a type."""
    if name in ACTIVATION_MODES or name in LOSS_KINDS or name in _UNNAMED:
        options = dict(part.split("=", 1) for part in split(inside) if "=" in part)
        if len(options) != len(split(inside)):
            raise Unreadable(word)
        values = {key: read(given) for key, given in options.items()}
        if name in _UNNAMED:
            return _UNNAMED[name](**values)
        return ActivationDescriptor(name, **values) if name in ACTIVATION_MODES else LossDescriptor(name, **values)
    if name in _SCALARS or name in _FLOATS:
        return np.dtype(name).type(read(inside))
    if name in ("dtype", "type", "row") and inside in BY_NAME:
        row = BY_NAME[inside]
        return {"dtype": row.numpy, "type": row.numpy.type, "row": row}[name]
    if name == "type" and inside in _PYTHON_TYPES:
        return _PYTHON_TYPES[inside]
    raise Unreadable(word)


def split(text: str) -> list[str]:
    """The parts between semicolons, those within brackets left alone."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == ";" and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text else []
