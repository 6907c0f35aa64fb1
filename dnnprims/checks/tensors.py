"""What tensors must be: dtype, shape, layout, and what goes with what."""

from __future__ import annotations

from collections.abc import Sequence

from ..descriptors import TensorDescriptor
from ..dtypes import FLOATS, LABELS, DType
from ..errors import BadParamError, NotSupportedError
from .options import require_lists


def _names(rows: Sequence[DType]) -> str:
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
            expected=_names(allowed),
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


def require_scalar(op: str, param: str, x: TensorDescriptor | None, allowed: Sequence[DType]) -> None:
    """`x`, where given, is a scalar on the device of one of the allowed types."""
    if x is not None:
        require_shape(op, param, x, (), "a scalar")
        require_dtype(op, param, x, allowed)


#: Elements of a list of tensors, 256 GiB of the narrowest type: its chunks are listed in a table.
MOST_LISTED = 2**37


def require_tensors(op: str, param: str, tensors: Sequence[TensorDescriptor | None] | None) -> None:
    """`tensors` is a list of contiguous tensors of floating types, none of them missing."""
    if tensors is None:
        raise BadParamError(op, "is missing", param=param, got=None, expected="an array or a list of arrays")
    total = 0
    for i, item in enumerate(tensors):
        x = require_present(op, f"{param}[{i}]", item)
        require_float(op, f"{param}[{i}]", x)
        require_contiguous(op, **{f"{param}[{i}]": x})
        total += x.size
    if total > MOST_LISTED:
        raise NotSupportedError(
            op, "has too many elements", param=param, got=str(total), expected="at most 2^37", hint="call it on parts"
        )


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
