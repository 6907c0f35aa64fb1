"""The contract of the calls, in words: the only place where refusals are worded.

Every function takes the public name of the calling function first and raises `BadParamError` or returns.
Arguments are descriptors, so nothing here reads or waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from .descriptors import TensorDescriptor
from .dtypes import FLOATS, LABELS, DType
from .errors import BadParamError, ExecutionError, NotSupportedError

#: What a kernel writes to the handle's flag when it meets data that the host could not check:
#: code -> (function, argument, what is wrong, rule).
DEVICE_FLAGS: dict[int, tuple[str, str, str, str]] = {
    1: ("loss", "target", "has a label out of range", "labels in [0, classes) or ignore_index"),
    2: ("maxout_backward", "which", "has an index out of range", "indices in [0, pool_size)"),
}


def names(rows: Sequence[DType]) -> str:
    """List the names of dtypes."""
    return ", ".join(row.name for row in rows)


def require_present(op: str, param: str, x: TensorDescriptor | None, why: str = "an array") -> TensorDescriptor:
    """`x` was given."""
    if x is None:
        raise BadParamError(op, "is missing", param=param, got=None, expected=why)
    return x


def require_absent(op: str, param: str, x: TensorDescriptor | None, why: str) -> None:
    """`x` was not given."""
    if x is not None:
        raise BadParamError(op, "is not taken", param=param, got=f"shape {x.shape}", expected=why)


def require_float(op: str, param: str, x: TensorDescriptor) -> None:
    """`x` has one of the four floating types."""
    require_dtype(op, param, x, FLOATS)


def require_labels_dtype(op: str, param: str, x: TensorDescriptor) -> None:
    """`x` has an integer type that labels may have."""
    require_dtype(op, param, x, LABELS)


def require_dtype(op: str, param: str, x: TensorDescriptor, allowed: Sequence[DType]) -> None:
    """`x` has one of the allowed types."""
    if x.dtype not in allowed:
        raise BadParamError(
            op,
            "has a dtype that this function does not take",
            param=param,
            got=x.dtype.name,
            expected=names(allowed),
            hint=f"convert with cast(handle, {param}, '{allowed[0].name}')" if x.dtype in FLOATS else "",
        )


def require_same_dtype(op: str, **tensors: TensorDescriptor | None) -> None:
    """All tensors given have the dtype of the first."""
    (rule, first), *others = [(param, x) for param, x in tensors.items() if x is not None]
    for param, x in others:
        if x.dtype is not first.dtype:
            raise BadParamError(
                op,
                "has another dtype than " + rule,
                param=param,
                got=x.dtype.name,
                expected=f"{first.dtype.name} = {rule}.dtype",
                hint=f"convert it with cast(handle, {param}, '{first.dtype.name}'); nothing is cast silently",
            )


def require_rank(op: str, param: str, x: TensorDescriptor, ranks: int | tuple[int, ...], words: str = "") -> None:
    """`x` has the number of axes, or one of the numbers, allowed."""
    allowed = (ranks,) if isinstance(ranks, int) else ranks
    if x.ndim not in allowed:
        rule = words or " or ".join(str(r) for r in allowed) + " axes"
        raise BadParamError(op, "has the wrong rank", param=param, got=f"{x.ndim} axes, shape {x.shape}", expected=rule)


def require_shape(op: str, param: str, x: TensorDescriptor, shape: tuple[int, ...], rule: str = "") -> None:
    """`x` has this shape; `rule` says in words where it comes from, such as ``x.shape``."""
    if x.shape != tuple(shape):
        expected = f"{tuple(shape)} = {rule}" if rule else str(tuple(shape))
        raise BadParamError(op, "has the wrong shape", param=param, got=x.shape, expected=expected)


def require_broadcast(op: str, param: str, x: TensorDescriptor, shape: tuple[int, ...], rule: str) -> None:
    """`x` can be repeated along leading axes and axes of extent 1 until it has this shape."""
    missing = len(shape) - x.ndim
    if missing < 0 or any(mine not in (1, other) for mine, other in zip(x.shape, shape[missing:], strict=True)):
        raise BadParamError(
            op,
            "cannot be broadcast",
            param=param,
            got=x.shape,
            expected=f"{shape} = {rule}, or 1 or nothing in place of extents of it",
        )


def require_contiguous(op: str, **tensors: TensorDescriptor | None) -> None:
    """All tensors given are row-major without gaps."""
    for param, x in tensors.items():
        if x is not None and not x.contiguous:
            raise BadParamError(
                op,
                "is not contiguous",
                param=param,
                got=f"strides {x.strides} for shape {x.shape}",
                expected="row-major elements without gaps",
                hint=f"pass a contiguous copy, such as xp.ascontiguousarray({param})",
            )


def require_out(
    op: str,
    out: TensorDescriptor | None,
    shape: tuple[int, ...],
    dtype: DType,
    *,
    param: str = "out",
    rule: str = "",
    contiguous: bool = True,
) -> None:
    """`out`, where given, has the shape and dtype of the result and no element twice."""
    if out is None:
        return
    require_shape(op, param, out, shape, rule or "the shape of the result")
    if out.dtype is not dtype:
        raise BadParamError(
            op,
            "has the wrong dtype",
            param=param,
            got=out.dtype.name,
            expected=f"{dtype.name}, the dtype of the result",
        )
    if contiguous:
        require_contiguous(op, **{param: out})
    elif out.size and any(step == 0 and extent > 1 for step, extent in zip(out.strides, out.shape, strict=True)):
        raise BadParamError(
            op,
            "repeats elements",
            param=param,
            got=f"strides {out.strides}",
            expected="a different place for each element",
        )


def require_number(op: str, param: str, value: object) -> float:
    """`value` is a number of the host, NaN and infinities included; it is returned as a float."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise BadParamError(op, "is not a number", param=param, got=repr(value), expected="a number") from None


def require_finite(op: str, param: str, value: object) -> float:
    """`value` is a finite number of the host; it is returned as a float."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadParamError(op, "is not a number", param=param, got=repr(value), expected="a finite number") from None
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
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise BadParamError(op, "is no integer", param=param, got=repr(axis), expected="an integer")
    index = int(axis)
    if not -ndim <= index < ndim:
        rule = f"in [{-ndim}, {ndim})" if ndim else "a tensor with at least one axis"
        raise BadParamError(op, "is out of range", param=param, got=axis, expected=rule)
    return index % ndim


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


def require_elements(op: str, param: str, x: TensorDescriptor, count: int, rule: str) -> None:
    """There is at least one of the `count` elements that `rule` speaks of."""
    if count == 0:
        raise BadParamError(op, "has no elements", param=param, got=f"shape {x.shape}", expected=rule)


def require_few_axes(op: str, param: str, x: TensorDescriptor, axes: int, most: int) -> None:
    """`x` has at most as many axes that cannot be walked as one as kernels have room for."""
    if axes > most:
        raise BadParamError(
            op,
            "has too many axes",
            param=param,
            got=f"{axes} axes that cannot be joined, strides {x.strides}",
            expected=f"at most {most}",
            hint=f"pass a contiguous copy, such as xp.ascontiguousarray({param})",
        )


def require_choice(op: str, param: str, value: object, allowed: Sequence[str]) -> str:
    """`value` is one of the words allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise BadParamError(op, "is unknown", param=param, got=repr(value), expected="one of " + ", ".join(allowed))
    return value


def require_integer(op: str, param: str, value: object, least: int) -> int:
    """`value` is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise BadParamError(op, "is out of range", param=param, got=repr(value), expected=f"an integer >= {least}")
    return int(value)


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


def require_scalar(op: str, param: str, x: TensorDescriptor | None, allowed: Sequence[DType]) -> None:
    """`x`, where given, is a scalar on the device of one of the allowed types."""
    if x is not None:
        require_shape(op, param, x, (), "a scalar")
        require_dtype(op, param, x, allowed)


def require_tensors(op: str, param: str, tensors: Sequence[TensorDescriptor | None] | None) -> None:
    """`tensors` is a list of contiguous tensors of floating types, none of them missing."""
    if tensors is None:
        raise BadParamError(op, "is missing", param=param, got=None, expected="an array or a list of arrays")
    for i, item in enumerate(tensors):
        x = require_present(op, f"{param}[{i}]", item)
        require_float(op, f"{param}[{i}]", x)
        require_contiguous(op, **{f"{param}[{i}]": x})


def require_matching_tensors(
    op: str,
    param: str,
    tensors: Sequence[TensorDescriptor | None] | None,
    weights: Sequence[TensorDescriptor],
    state: bool,
) -> None:
    """`tensors` are as many as the weights, of their shapes and their dtypes (`state`: the accumulators of these)."""
    if tensors is None:
        rule = f"{len(weights)} arrays, one for each weight"
        raise BadParamError(op, "is missing", param=param, got=None, expected=rule)
    require_lists(op, **{"weights": weights, param: tensors})
    require_tensors(op, param, tensors)
    for i, (item, weight) in enumerate(zip(tensors, weights, strict=True)):
        x = require_present(op, f"{param}[{i}]", item)
        require_shape(op, f"{param}[{i}]", x, weight.shape, f"weights[{i}].shape")
        dtype = weight.dtype.acc if state else weight.dtype
        if x.dtype is not dtype:
            rule = f"{dtype.name} = " + ("the accumulator of " if state else "") + f"weights[{i}].dtype"
            raise BadParamError(op, "has the wrong dtype", param=f"{param}[{i}]", got=x.dtype.name, expected=rule)


def require_labels(op: str, target: Any, classes: int, ignore_index: int) -> None:
    """Labels on the host lie in [0, classes) or are `ignore_index`."""
    labels = np.asarray(target)
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bad.any():
        raise BadParamError(
            op,
            "has a label out of range",
            param="target",
            got=int(labels[bad].flat[0]),
            expected=f"in [0, {classes}) or ignore_index = {ignore_index}",
        )


def require_which(op: str, which: Any, pool_size: int) -> None:
    """Indices on the host lie in [0, pool_size)."""
    indices = np.asarray(which)
    bad = (indices < 0) | (indices >= pool_size)
    if bad.any():
        raise BadParamError(
            op,
            "has an index out of range",
            param="which",
            got=int(indices[bad].flat[0]),
            expected=f"in [0, {pool_size})",
            hint="pass what maxout_forward gave back",
        )


def refuse_overlap(op: str, written: str, other: str, same: bool) -> BadParamError:
    """Two operands share memory in a way that would make the result wrong."""
    return BadParamError(
        op,
        f"overlaps {other}",
        param=written,
        got="the same memory" if same else "partly the same memory",
        expected=f"{written} and {other} apart"
        + ("" if same else ", or exactly the same array where in place is allowed"),
    )


def refuse_read_only(op: str, param: str) -> BadParamError:
    """An operand that the call writes cannot be written."""
    return BadParamError(op, "is read-only", param=param, got="a read-only array", expected="a writeable array")


def refuse_foreign(op: str, param: str, value: object, expected: str, hint: str = "") -> BadParamError:
    """An operand is no array of the handle's backend."""
    kind = type(value)
    return BadParamError(
        op,
        "is no array of this handle's backend",
        param=param,
        got=f"{kind.__module__}.{kind.__qualname__}",
        expected=expected,
        hint=hint,
    )


def refuse_alignment(op: str, param: str, address: int, alignment: int) -> BadParamError:
    """An array lies at an address that a prepared plan was not made for."""
    return BadParamError(
        op,
        "is not aligned as the plan was prepared for",
        param=param,
        got=f"address {address:#x}",
        expected=f"a multiple of {alignment} bytes",
        hint="describe it with TensorDescriptor(..., alignment=...) or prepare with such an array",
    )


def refuse_device(op: str, param: str, got: int, expected: int) -> BadParamError:
    """An operand lives on another GPU than the handle."""
    return BadParamError(
        op,
        "is on another device",
        param=param,
        got=f"device {got}",
        expected=f"device {expected}, the handle's",
        hint="copy it over, or use a handle of that device",
    )


def refuse_options(op: str, options: object) -> BadParamError:
    """An option is of a type that no option has."""
    return BadParamError(
        op,
        "has an option of a wrong type",
        param="options",
        got=repr(options),
        expected="numbers, strings, tuples and descriptors",
    )


def refuse_concurrency() -> BadParamError:
    """Two threads are inside one handle."""
    return BadParamError(
        "handle",
        "is in use by another thread",
        param="handle",
        got="two calls at once",
        expected="one thread at a time",
        hint="give each thread a handle of its own",
    )


def refuse_closed() -> BadParamError:
    """The handle was closed."""
    return BadParamError(
        "handle", "is closed", param="handle", got="a closed handle", expected="an open one from create_handle()"
    )


def raise_device_flag(code: int) -> None:
    """Turn what a kernel left in the handle's flag into our error."""
    if code == 0:
        return
    if code not in DEVICE_FLAGS:
        raise ExecutionError("handle.check", "found an unknown device flag", got=code)
    op, param, problem, rule = DEVICE_FLAGS[code]
    raise BadParamError(
        op,
        problem,
        param=param,
        expected=rule,
        hint="the results that depend on it are NaN, their gradients 0; seen since the last check on this handle",
    )
