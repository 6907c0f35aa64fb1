"""What descriptors of windows that move over images have in common: numbers for each spatial axis, and layouts."""

from __future__ import annotations

from operator import index
from typing import Any

from ..errors import BadParamError

LAYOUTS = ("NCHW", "NHWC")

#: Spatial axes of an image.
MOST_SPATIAL = 3
#: Largest padding, stride, dilation, window or number of groups, so that positions stay far within 64 bits.
_MOST = 2**31 - 1

Numbers = tuple[int, ...]
Pair = tuple[int, int]


def spread(value: Any, axes: int) -> tuple[Any, ...]:
    """A value of its own for each of so many axes, or one for all."""
    return value if isinstance(value, tuple) else (value,) * axes


def each_axis(op: str, name: str, value: Any, least: int, *, pairs: bool = False) -> Any:
    """One number, or a tuple with an item for each axis; equal pairs become a number."""
    if not isinstance(value, tuple | list):
        return count(op, name, value, least)
    if not 1 <= len(value) <= MOST_SPATIAL:
        raise _refuse(op, name, "is for a wrong number of axes", f"{value!r:.80}", f"1 to {MOST_SPATIAL} axes")
    return tuple(_pair(op, name, item, least) if pairs else count(op, name, item, least) for item in value)


def _pair(op: str, name: str, item: Any, least: int) -> Any:
    if not isinstance(item, tuple | list):
        return count(op, name, item, least)
    if len(item) != 2:
        raise _refuse(op, name, "is no pair", f"{item!r:.80}", "(before, after) of an axis")
    before, after = (count(op, name, one, least) for one in item)
    return before if before == after else (before, after)


def count(op: str, name: str, value: Any, least: int) -> int:
    """`value` is an integer of at least `least`."""
    rule = f"an integer from {least} to {_MOST}"
    try:
        number = None if isinstance(value, bool) or hasattr(value, "__len__") else index(value)
    except Exception:  # whatever a stranger's object raises
        number = None
    if number is None:
        raise _refuse(op, name, "is no integer", f"{type(value).__name__} {value!r:.60}", rule)
    if not least <= number <= _MOST:
        got = f"{number}" if number.bit_length() < 80 else "a huge integer"
        raise _refuse(op, name, "is out of range", got, rule)
    return number


def require_word(op: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """`value` is one of some words."""
    if not isinstance(value, str) or value not in allowed:
        raise _refuse(op, name, "is unknown", f"{value!r:.80}", "one of " + ", ".join(allowed))


def require_same_axes(op: str, **values: Any) -> None:
    """All tuples are for as many axes; the first value stands for all."""
    if len({len(value) for value in values.values() if isinstance(value, tuple)}) > 1:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        rule = "as many axes in each tuple"
        raise _refuse(op, next(iter(values)), "is for another number of axes", got, rule)


def require_less(op: str, name: str, got: object, holds: bool, rule: str) -> None:
    """A padding is less than its window."""
    if not holds:
        raise _refuse(op, name, "is out of range", f"{got}", rule)


def _refuse(op: str, name: str, problem: str, got: object, rule: str) -> BadParamError:
    return BadParamError(op, problem, param=name, got=got, expected=rule)


# -- layouts ----------------------------------------------------------------------------------------------------------


def channel_axis(channels_last: bool, axes: int) -> int:
    """Which axis of an image of so many spatial axes holds the channels."""
    return axes + 1 if channels_last else 1


def split_axes(channels_last: bool, shape: Numbers) -> tuple[int, int, Numbers]:
    """First axis, channels, spatial axes of a shape or of steps."""
    outer, *rest = shape
    return (outer, rest[-1], tuple(rest[:-1])) if channels_last else (outer, rest[0], tuple(rest[1:]))


def join_axes(channels_last: bool, outer: int, channels: int, spatial: Numbers) -> Numbers:
    """The shape that `split_axes` takes apart."""
    return (outer, *spatial, channels) if channels_last else (outer, channels, *spatial)


def filled_axes(values: Numbers, fill: int) -> Numbers:
    """As many numbers as kernels walk spatial axes; those that a problem lacks come first."""
    return (fill,) * (MOST_SPATIAL - len(values)) + values
