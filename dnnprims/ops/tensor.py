"""Small tensor operations: set, scale, add with broadcasting, cast. All take any strides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor, dtype_row
from ..dtypes import BY_NAME, FLOATS, DType
from ..reference import tensor as reference
from ..runtime.launch import (
    Family,
    Kernel,
    KernelStep,
    Live,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Struct,
    blocks_for,
    choose,
    unaligned,
)
from ..runtime.layout import MAX_AXES, Axes, axis_scalars, broadcast_strides, merge_axes, pad_axes, sort_axes

if TYPE_CHECKING:
    from ..handle import Handle

_WALK_ONE = (("size", "i64"), *axis_scalars("extent", "step"))
_WALK_TWO = (("size", "i64"), *axis_scalars("extent", "first_step", "second_step"))
_STRUCTS = {
    "set": Struct("SetParams", ("y",), (("value", "f64"), *_WALK_ONE)),
    "scale": Struct("ScaleParams", ("y",), (("alpha", "f64"), *_WALK_ONE)),
    "add": Struct("AddParams", ("c", "a"), (("alpha", "A"), ("beta", "A"), *_WALK_TWO)),
    "cast": Struct("CastParams", ("y", "x"), _WALK_TWO),
}
_KERNELS = {
    (name, kind): Kernel("tensor", f"{name}_{kind}", struct)
    for name, struct in _STRUCTS.items()
    for kind in ("packed", "strided")
}

#: One 16-byte access a thread; more a thread measure no faster in memory-bound kernels of this kind.
_BLOCK = 256


def set_tensor(handle: Handle, y: Any, value: float) -> Any:
    """Set every element: ``y = value``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    y : array
        Any shape and strides, each element in a place of its own; any element type.
    value : float
        A number of the host, NaN and infinities included; it is converted as `cast` does from float64.

    Returns
    -------
    array
        `y`.

    Raises
    ------
    BadParamError
        `value` is no number, or `y` repeats elements or has more than 8 axes that cannot be joined.

    Notes
    -----
    The old y is never read.
    """
    value = checks.require_number("set_tensor", "value", value)
    if checks.on_numpy(handle, "set_tensor"):
        with handle.checked(plan_set_tensor, (), (y,)) as (adopted,):
            reference.set_tensor(adopted, value)
            return y
    return handle.run(plan_set_tensor, (), (y,), (value,))


def scale_tensor(handle: Handle, y: Any, alpha: float) -> Any:
    """Scale in place: ``y = alpha * y``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    y : array
        Any shape and strides, each element in a place of its own; float32, float64, float16 or bfloat16.
    alpha : float
        A finite number of the host.

    Returns
    -------
    array
        `y`.

    Raises
    ------
    BadParamError
        `alpha` is not finite, or `y` has another dtype, repeats elements or has more than 8 axes that cannot be joined.

    Notes
    -----
    The product is plain: NaN stays, and 0 times an infinity is NaN. To clear a tensor whatever it holds use
    `set_tensor`.
    """
    alpha = checks.require_finite("scale_tensor", "alpha", alpha)
    if checks.on_numpy(handle, "scale_tensor"):
        with handle.checked(plan_scale_tensor, (), (y,)) as (adopted,):
            reference.scale_tensor(adopted, alpha)
            return y
    return handle.run(plan_scale_tensor, (), (y,), (alpha,))


def add_tensor(handle: Handle, a: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0) -> Any:
    """Add with broadcasting: ``c = alpha * a + beta * c``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    a : array
        Of c's dtype and any strides; leading axes may be missing, and extents may be 1: there it is repeated.
    c : array
        The sum, in place: any shape and strides, each element in a place of its own; float32, float64, float16 or
        bfloat16.
    alpha, beta : float
        With beta 0 the old `c` is never read.

    Returns
    -------
    array
        `c`.

    Raises
    ------
    BadParamError
        A shape, dtype or number is not one of those above, a tensor has more than 8 axes that cannot be joined, or `a`
        overlaps `c` and is not the very same array.

    Notes
    -----
    The products and their sum are rounded in float32 (float64 for float64), and once more to c's dtype.
    """
    options, operands = (alpha, beta), (a, c)
    if checks.on_numpy(handle, "add_tensor"):
        with handle.checked(plan_add_tensor, options, operands) as adopted:
            reference.add_tensor(*adopted, alpha=alpha, beta=beta)
            return c
    return handle.run(plan_add_tensor, options, operands)


def cast(handle: Handle, x: Any, dtype: Any, *, out: Any = None) -> Any:
    """Convert to another element type.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Any shape and strides; any element type of this library.
    dtype : str or dtype
        The type to convert to: float32, float64, float16, bfloat16, int32, int64 or uint8.
    out : array, optional
        Destination, of x's shape and of `dtype`; any strides.

    Returns
    -------
    array
        `out`, or a new contiguous array. It is a copy also where `dtype` is x's own.

    Raises
    ------
    BadParamError
        `dtype` is not one of those above, `out` does not fit, or x has more than 8 axes that cannot be joined.

    Notes
    -----
    To a floating type: one rounding to nearest even, NaN and infinities stay, what is too large becomes infinite. To an
    integer: the fraction is cut off, what lies beyond the range becomes its nearest end, NaN becomes 0.
    """
    options, operands = (dtype,), (x, out)
    if checks.on_numpy(handle, "cast"):
        with handle.checked(plan_cast, options, operands) as (x, out):
            return reference.cast(x, dtype_row(dtype, "cast").numpy, out=out)
    return handle.run(plan_cast, options, operands)


def plan_set_tensor(profile: Profile, y: TensorDescriptor) -> PlanSpec:
    """Plan of `set_tensor`."""
    checks.require_out("set_tensor", y, y.shape, y.dtype, param="y", contiguous=False)
    return _in_place("set_tensor", "set", y)


def plan_scale_tensor(profile: Profile, y: TensorDescriptor) -> PlanSpec:
    """Plan of `scale_tensor`."""
    checks.require_float("scale_tensor", "y", y)
    checks.require_out("scale_tensor", y, y.shape, y.dtype, param="y", contiguous=False)
    return _in_place("scale_tensor", "scale", y)


def plan_add_tensor(profile: Profile, alpha: float, beta: float, a: TensorDescriptor, c: TensorDescriptor) -> PlanSpec:
    """Plan of `add_tensor`."""
    op = "add_tensor"
    checks.require_float(op, "c", c)
    checks.require_same_dtype(op, c=c, a=a)
    checks.require_broadcast(op, "a", a, c.shape, "c.shape")
    checks.require_out(op, c, c.shape, c.dtype, param="c", contiguous=False)
    checks.require_blend(op, alpha, beta, c)
    walk = _walk_two(op, "a", c, broadcast_strides(a.shape, a.strides, c.shape), a)
    alignment = unaligned(c=c, a=a)
    variant, refused = choose(
        (
            ("packed", _not_dense(walk) or alignment),
            ("packed_last_axis", _last_axis_problem(walk, c.dtype.lanes, unaligned(c=c), alignment)),
            ("strided", None),
        )
    )
    kind, vec = "packed" if variant == "packed" else "strided", 1 if variant == "strided" else c.dtype.lanes
    template = (c.dtype.cuda, str(vec))
    scalars = (float(alpha), float(beta), c.size, *_axis_values(walk))
    step = _step("add", kind, c.dtype, template, c.size, vec, (1, 0), scalars)
    steps = (step,) if c.size else ()
    return PlanSpec(op, str(variant), steps, returns=(1,), writes=(1,), in_place=((1, 0),), refused=refused)


def plan_cast(profile: Profile, dtype: Any, x: TensorDescriptor, out: TensorDescriptor | None) -> PlanSpec:
    """Plan of `cast`."""
    op = "cast"
    row = dtype_row(dtype, op)
    checks.require_out(op, out, x.shape, row, contiguous=False, rule="x.shape")
    y = out or TensorDescriptor(x.shape, row)
    walk = _walk_two(op, "x", y, x.strides, x)
    variant, refused = choose((("packed", _not_dense(walk) or unaligned(x=x, out=out)), ("strided", None)))
    vec = _cast_vector(row, x.dtype) if variant == "packed" else 1
    template = (row.cuda, x.dtype.cuda, *((str(vec),) if variant == "packed" else ()))
    scalars = (x.size, *_axis_values(walk))
    step = _step("cast", str(variant), row, template, x.size, vec, (1, 0), scalars)
    return PlanSpec(
        op,
        str(variant),
        (step,) if x.size else (),
        results=(Result(1, x.shape, row),),
        returns=(1,),
        writes=(1,),
        refused=refused,
    )


def _in_place(op: str, name: str, y: TensorDescriptor) -> PlanSpec:
    """Plan of an operation on one tensor, with one number given at each call."""
    walk = merge_axes(*sort_axes(y.shape, y.strides))
    checks.require_few_axes(op, "y", y, len(walk[0]), MAX_AXES)
    variant, refused = choose((("packed", _not_dense(walk) or unaligned(y=y)), ("strided", None)))
    vec = y.dtype.lanes if variant == "packed" else 1
    template = (y.dtype.cuda, *((str(vec),) if variant == "packed" else ()))
    scalars: tuple[int | Live, ...] = (Live(0), y.size, *_axis_values(walk))
    step = _step(name, str(variant), y.dtype, template, y.size, vec, (0,), scalars)
    return PlanSpec(op, str(variant), (step,) if y.size else (), returns=(0,), writes=(0,), refused=refused)


def _step(
    name: str,
    kind: str,
    dtype: DType,
    template: tuple[str, ...],
    size: int,
    vec: int,
    pointers: tuple[Pointer, ...],
    scalars: tuple[float | int | Live, ...],
) -> KernelStep:
    grid = blocks_for(size, _BLOCK * vec)
    return KernelStep(_KERNELS[name, kind], dtype, template, name, grid, _BLOCK, pointers, scalars)


def _walk_two(op: str, param: str, first: TensorDescriptor, strides: tuple[int, ...], second: TensorDescriptor) -> Axes:
    """Extents and steps of both tensors, in the order of the first one's memory."""
    walk = merge_axes(*sort_axes(first.shape, first.strides, strides))
    checks.require_few_axes(op, param, second, len(walk[0]), MAX_AXES)
    return walk


def _not_dense(walk: Axes) -> str | None:
    """Why the elements cannot be walked as one run in every tensor."""
    extents, *steps = walk
    dense = len(extents) <= 1 and all(step in ((), (1,)) for step in steps)
    return None if dense else f"axes {extents} with steps {', '.join(map(str, steps))}"


def _last_axis_problem(walk: Axes, lanes: int, c_alone: str | None, both: str | None) -> str | None:
    """Why the last axis cannot be taken by 16 bytes at once."""
    extents, c_steps, a_steps = walk
    if not extents or c_steps[-1] != 1 or a_steps[-1] not in (0, 1):
        return "the last axis is not dense"
    others = c_steps[:-1] + (a_steps[:-1] if a_steps[-1] else ())
    if any(step % lanes for step in (extents[-1], *others)):
        return f"an extent or step is no multiple of {lanes}"
    return both if a_steps[-1] else c_alone


def _axis_values(walk: Axes) -> tuple[int, ...]:
    extents, *steps = walk
    return (*pad_axes(extents, 1), *(value for step in steps for value in pad_axes(step, 0)))


def _cast_vector(to: DType, source: DType) -> int:
    """Elements of which the wider type fills 16 bytes."""
    return min(to.lanes, source.lanes)


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, lanes = dtype.cuda, dtype.lanes
    casts = [
        name
        for source in BY_NAME.values()
        for name in (
            f"cast_packed<{t}, {source.cuda}, {_cast_vector(dtype, source)}>",
            f"cast_strided<{t}, {source.cuda}>",
        )
    ]
    groups = {"set": [f"set_packed<{t}, {lanes}>", f"set_strided<{t}>"], "cast": casts}
    if dtype in FLOATS:
        groups["scale"] = [f"scale_packed<{t}, {lanes}>", f"scale_strided<{t}>"]
        groups["add"] = [f"add_packed<{t}, {lanes}>", f"add_strided<{t}, {lanes}>", f"add_strided<{t}, 1>"]
    return groups


FAMILY = Family("tensor", tuple(_KERNELS.values()), _instances)
