"""What options must be: numbers, axes, words, and lists of them; and how much workspace a call may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..descriptors import TensorDescriptor
from ..errors import BadParamError, NotSupportedError

#: Characters of a value that a message repeats.
_LONGEST = 80


def require_number(op: str, param: str, value: object, rule: str = "a number") -> float:
    """`value` is a number of the host, NaN and infinities included; it is returned as a float."""
    if type(value) is float:
        return value
    if not isinstance(value, int | float | np.generic) or isinstance(value, np.complexfloating | np.flexible):
        raise BadParamError(op, "is not a number", param=param, got=_short(value), expected=rule)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadParamError(op, "is not a number of float64", param=param, got=_short(value), expected=rule) from None


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def require_finite(op: str, param: str, value: object) -> float:
    """`value` is a finite number of the host; it is returned as a float."""
    number = require_number(op, param, value, "a finite number")
    if not isfinite(number):
        raise BadParamError(op, "is not finite", param=param, got=value, expected="a finite number")
    return number


def require_range(op: str, param: str, value: object, holds: Callable[[float], bool], rule: str) -> float:
    """`value` is finite and `holds(value)`; `rule` says so in words."""
    number = require_finite(op, param, value)
    if not holds(number):
        raise BadParamError(op, "is out of range", param=param, got=value, expected=rule)
    return number


def require_blend(op: str, alpha: object, beta: object, out: TensorDescriptor | None, *, param: str = "out") -> None:
    """`alpha` and `beta` are finite, and there is an `out` to blend with when beta is not 0."""
    require_finite(op, "alpha", alpha)
    if require_finite(op, "beta", beta) != 0.0 and out is None:
        raise BadParamError(
            op, "is missing", param=param, got=None, expected=f"an array to blend with, as beta is {beta}"
        )


def require_axis(op: str, axis: object, ndim: int, param: str = "axis") -> int:
    """`axis` names one of `ndim` axes; it is returned counted from the front."""
    if type(axis) is not int and not isinstance(axis, np.integer):
        raise BadParamError(op, "is no integer", param=param, got=_short(axis), expected="an integer")
    index = int(axis)
    if not -ndim <= index < ndim:
        rule = f"in [{-ndim}, {ndim})" if ndim else "a tensor with at least one axis"
        raise BadParamError(op, "is out of range", param=param, got=axis, expected=rule)
    return index % ndim


def plain_axis(op: str, axis: Any, param: str = "axis") -> Any:
    """Return an axis, a tuple of them, a word or None for a plan to look at.

    1.0 and True are the same key as 1, and would find the plan that was made for 1: they are refused before.
    """
    if type(axis) is int or axis is None or isinstance(axis, str):
        return axis
    if isinstance(axis, tuple):
        return tuple(plain_axis(op, one, param) for one in axis)
    if isinstance(axis, np.integer):
        return int(axis)
    raise BadParamError(op, "is no integer", param=param, got=_short(axis), expected="an integer or a tuple of them")


def require_axes(op: str, axis: object, ndim: int, param: str = "axis") -> tuple[int, ...]:
    """`axis` names an axis, different ones as a tuple, or all as None; they are returned sorted, from the front."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(require_axis(op, one, ndim, param) for one in given)
    if len(set(axes)) != len(axes):
        raise BadParamError(op, "names an axis twice", param=param, got=axis, expected="different axes")
    return tuple(axes)


def require_neighbours(op: str, axis: object, ndim: int, param: str = "axis") -> tuple[int, int]:
    """`axis` names an axis, or neighbouring ones as a tuple; the first and the last are returned."""
    axes = require_axes(op, axis, ndim, param) if isinstance(axis, tuple) else (require_axis(op, axis, ndim, param),)
    if not axes or axes[-1] - axes[0] + 1 != len(axes):
        raise BadParamError(
            op, "is not one run of axes", param=param, got=axis, expected="an axis, or neighbouring axes"
        )
    return axes[0], axes[-1]


def require_choice(op: str, param: str, value: object, allowed: Sequence[str]) -> str:
    """`value` is one of the words allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise BadParamError(op, "is unknown", param=param, got=_short(value), expected="one of " + ", ".join(allowed))
    return value


def require_integer(op: str, param: str, value: object, least: int, most: int = 2**63 - 1) -> int:
    """`value` is an integer of at least `least` and, as kernels count in 64 bits, at most `most`."""
    if type(value) is not int and not isinstance(value, np.integer):
        raise BadParamError(op, "is no integer", param=param, got=_short(value), expected=f"an integer >= {least}")
    number = int(value)
    if not least <= number <= most:
        rule = f"an integer >= {least}" if number < least else f"an integer <= {most}"
        raise BadParamError(op, "is out of range", param=param, got=_short(number), expected=rule)
    return number


def require_switch(op: str, param: str, value: object) -> bool:
    """`value` is true or false."""
    if isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise BadParamError(op, "is neither True nor False", param=param, got=_short(value), expected="a bool")


def require_names(op: str, param: str, value: object) -> tuple[str, ...]:
    """`value` is a sequence of words, and no single word; it is returned as a tuple, so that it can be looked up."""
    if isinstance(value, tuple | list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise BadParamError(op, "is no list of names", param=param, got=_short(value), expected="a tuple or list of str")


def require_needs(op: str, needs: Sequence[str], allowed: Sequence[str], **destinations: object) -> None:
    """`needs` names some of the gradients, each once, and a destination is given only for one that is named."""
    if not needs or len(set(needs)) != len(needs) or any(name not in allowed for name in needs):
        rule = "some of " + ", ".join(repr(name) for name in allowed) + ", each once"
        raise BadParamError(op, "is no list of gradients", param="needs", got=repr(needs), expected=rule)
    for name, destination in destinations.items():
        if destination is not None and name not in needs:
            raise BadParamError(op, "is not in needs", param=name, got="an array", expected=f"None for needs={needs!r}")


def require_multiple(op: str, param: str, value: int, of: int, rule: str) -> None:
    """`value` is a multiple of `of`, the argument named `rule`."""
    if value % of:
        raise BadParamError(op, "has the wrong extent", param=param, got=value, expected=f"a multiple of {rule} = {of}")


def require_workspace(op: str, limit: int, nbytes: int, what: str) -> None:
    """`nbytes` of workspace for `what` fit into the handle's limit, -1 being none."""
    if 0 <= limit < nbytes:
        raise NotSupportedError(
            op,
            f"needs workspace for {what}",
            param="workspace_limit",
            got=str(limit),
            expected=f">= {nbytes} bytes",
            hint="create the handle with a larger workspace_limit",
        )


def require_lists(op: str, **lists: Sequence[object] | None) -> None:
    """All lists given are as long as the first."""
    (rule, first), *others = [(param, items) for param, items in lists.items() if items is not None]
    for param, items in others:
        if len(items) != len(first):
            raise BadParamError(
                op, "has the wrong length", param=param, got=len(items), expected=f"{len(first)} = len({rule})"
            )
