"""Reductions over any axes of a tensor with any strides."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import BY_NAME, DType
from ..reference import reduction as reference
from ..runtime.launch import (
    NULL,
    Family,
    Kernel,
    KernelStep,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Scratch,
    Struct,
    blocks_for,
    choose,
    unaligned,
)
from ..runtime.layout import MAX_AXES, axis_scalars, merge_axes, pad_axes

if TYPE_CHECKING:
    from ..handle import Handle

#: Operation -> its struct in the CUDA text; the group of instantiations has the same name.
_STRUCT_OF = {
    "sum": "SumOf",
    "mean": "SumOf",
    "max": "MaxOf",
    "min": "MinOf",
    "amax": "AbsMaxOf",
    "norm1": "AbsSumOf",
    "norm2": "NormOf",
    "product": "ProductOf",
    "argmax": "ArgMaxOf",
    "argmin": "ArgMinOf",
}
OPERATIONS = tuple(_STRUCT_OF)
_INDICES = ("argmax", "argmin")
#: What no elements reduce to; for the others an empty reduction is refused.
_EMPTY_ALLOWED = ("sum", "mean", "norm1", "norm2", "product")

_PARAMS = Struct(
    "ReduceParams",
    ("y", "which", "parts", "x"),
    (
        *(("alpha", "A"), ("beta", "A"), ("divisor", "A")),
        *((name, "i64") for name in ("outputs", "count", "per_split", "splits", "lanes")),
        *axis_scalars("kept", "kept_step", "reduced", "reduced_step"),
    ),
)
_ROWS, _COLUMNS, _PLAIN, _FINISH = (
    Kernel("reduction", f"reduce_{kind}", _PARAMS) for kind in ("rows", "columns", "plain", "finish")
)

_BLOCK, _WARP, _FINISH_BLOCK = 256, 32, 128
#: Dense rows shorter than this leave too much of a warp idle; a thread of the columns kernel takes one alone.
_SHORTEST_ROW = 32
#: Up to this many elements a row is worth a warp, from there on a block.
_WARP_ROW = 1024
#: Elements that a thread of the columns kernel should have before a column is shared by more threads.
_LEAST_ALONG = 8
#: A reduction that makes fewer blocks than this is split, as long as each block keeps `_LEAST_SPLIT` elements.
_ENOUGH_BLOCKS, _LEAST_SPLIT = 1024, 8192
#: The largest partial result: three doubles.
_PART_BYTES = 24


def reduce_tensor(
    handle: Handle,
    x: Any,
    operation: str,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Reduce over axes: ``out = alpha * operation(x) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Any shape and strides; float32, float64, float16 or bfloat16.
    operation : str
        ``sum``, ``mean``, ``product``, ``max``, ``min``, ``amax`` (largest magnitude), ``norm1`` (sum of magnitudes),
        ``norm2`` (root of the sum of squares), ``argmax``, ``argmin``.
    axis : int, tuple of int or None
        What to reduce over; None is all axes.
    keepdims : bool
        Keep the reduced axes with extent 1.
    out : array, optional
        Destination: contiguous, of the shape that is left and of x's dtype; int64 for argmax and argmin.
    alpha, beta : float
        With beta 0 the old `out` is never read. Not for argmax and argmin.

    Returns
    -------
    array
        `out`, or a new array. For argmax and argmin the position along the reduced axes, counted in row-major order.

    Raises
    ------
    BadParamError
        An argument is not one of those above, x has more than 8 axes that cannot be joined, or max, min, amax,
        argmax or argmin have no elements to choose from.

    Notes
    -----
    A NaN makes its output NaN. Of equal extrema the first is reported, and of NaNs the first before any number. An
    empty sum, norm1 or norm2 is 0, an empty product 1, an empty mean NaN. Sums are kept in float32 (float64 for
    float64), and overflow where a partial sum does. Products are kept in float64, where those of float64 can overflow
    or underflow on the way; norm2 does neither unless its result does. The order of summation is fixed by shape and
    strides: the same bits each time.
    """
    keepdims = checks.require_switch("reduce_tensor", "keepdims", keepdims)
    axis = checks.plain_axis("reduce_tensor", axis)
    options, operands = (operation, axis, keepdims, alpha, beta), (x, out)
    if checks.on_numpy(handle, "reduce_tensor"):
        with handle.checked(plan_reduce_tensor, options, operands) as (x, out):
            return reference.reduce_tensor(x, operation, axis=axis, keepdims=keepdims, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_reduce_tensor, options, operands)


@dataclass(frozen=True, slots=True)
class _Walk:
    """Extents and steps of the kept and of the reduced axes, merged."""

    kept: tuple[int, ...]
    kept_steps: tuple[int, ...]
    reduced: tuple[int, ...]
    reduced_steps: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Elements of the result."""
        return prod(self.kept)

    @property
    def count(self) -> int:
        """Elements that go into each."""
        return prod(self.reduced)


def plan_reduce_tensor(
    profile: Profile,
    operation: str,
    axis: int | tuple[int, ...] | None,
    keepdims: bool,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `reduce_tensor`."""
    op = "reduce_tensor"
    checks.require_choice(op, "operation", operation, OPERATIONS)
    checks.require_float(op, "x", x)
    axes = checks.require_axes(op, axis, x.ndim)
    left = [1 if one in axes else extent for one, extent in enumerate(x.shape) if keepdims or one not in axes]
    result = Result(1, tuple(left), BY_NAME["int64"] if operation in _INDICES else x.dtype)
    checks.require_out(op, out, result.shape, result.dtype)
    checks.require_blend(op, alpha, beta, out)
    if operation in _INDICES:
        checks.require_range(op, "alpha", alpha, lambda v: v == 1.0, "1, as positions are not scaled")
        checks.require_range(op, "beta", beta, lambda v: v == 0.0, "0, as positions are not blended")
    walk = _walk(x, axes)
    if operation not in _EMPTY_ALLOWED:
        checks.require_elements(op, "x", x, walk.count, f"at least one element along axis {axis} for {operation}")
    checks.require_few_axes(op, "x", x, max(len(walk.kept), len(walk.reduced)), MAX_AXES)
    return _plan(op, profile, operation, walk, x, result, alpha, beta)


def _walk(x: TensorDescriptor, axes: tuple[int, ...]) -> _Walk:
    kept = [one for one in range(x.ndim) if one not in axes]
    halves = (merge_axes([x.shape[i] for i in half], [x.strides[i] for i in half]) for half in (kept, axes))
    (kept_extents, kept_steps), (reduced_extents, reduced_steps) = halves
    return _Walk(kept_extents, kept_steps, reduced_extents, reduced_steps)


def _plan(
    op: str,
    profile: Profile,
    operation: str,
    walk: _Walk,
    x: TensorDescriptor,
    result: Result,
    alpha: float,
    beta: float,
) -> PlanSpec:
    outputs, count = walk.outputs, walk.count
    variant, refused = _choose_variant(walk)
    rows, lanes = variant.startswith("row"), _lanes(walk)
    per_block = _BLOCK // (_WARP if variant == "row_per_warp" else _BLOCK) if rows else lanes
    vec = _row_vector(walk, x) if rows else 1
    splits, per_split = _split(profile, outputs, count, -(-outputs // per_block), per_block, vec)
    struct = f"{_STRUCT_OF[operation]}<{x.dtype.cuda}>"
    kernel, template = {"columns": (_COLUMNS, ()), "plain": (_PLAIN, ())}.get(
        variant, (_ROWS, (str(vec), str(_BLOCK // per_block)))
    )
    destination: tuple[Pointer, ...] = (NULL, 1) if operation in _INDICES else (1, NULL)
    pointers = (*destination, Scratch(0) if splits > 1 else NULL, 0)
    divisor = float(count if operation == "mean" else 1)
    scalars = (float(alpha), float(beta), divisor, outputs, count, per_split, splits, lanes, *_axis_values(walk))

    def step(kernel: Kernel, template: tuple[str, ...], grid: tuple[int, int, int], block: int) -> KernelStep:
        arguments = (x.dtype.cuda, struct, *template)
        return KernelStep(kernel, x.dtype, arguments, _STRUCT_OF[operation], grid, block, pointers, scalars)

    steps = [step(kernel, template, (blocks_for(outputs, per_block)[0], splits, 1), _BLOCK)]
    if splits > 1:
        steps.append(step(_FINISH, (), blocks_for(outputs, _FINISH_BLOCK // _WARP), _FINISH_BLOCK))
    return PlanSpec(
        op,
        f"split_{variant}" if splits > 1 else variant,
        tuple(steps) if outputs else (),
        results=(result,),
        returns=(1,),
        writes=(1,),
        scratch=(outputs * splits * _PART_BYTES,) if splits > 1 else (),
        refused=refused,
    )


def _choose_variant(walk: _Walk) -> tuple[str, tuple[tuple[str, str], ...]]:
    count, axes = walk.count, len(walk.reduced)
    rows = None if axes == 1 and walk.reduced_steps[0] == 1 else "the reduced elements are not dense"
    rows = rows or (f"a row has {count} elements" if count < _SHORTEST_ROW else None)
    variant, refused = choose(
        (
            ("row_per_warp", rows or (f"a row has {count} elements" if count > _WARP_ROW else None)),
            ("row_per_block", rows),
            ("columns", None if axes <= 1 else f"{axes} reduced axes"),
            ("plain", None),
        )
    )
    return str(variant), refused


def _row_vector(walk: _Walk, x: TensorDescriptor) -> int:
    """Elements that a row can be read by at once."""
    lanes = x.dtype.lanes
    even = unaligned(x=x) is None and all(step % lanes == 0 for step in (walk.count, *walk.kept_steps))
    return lanes if even else 1


def _lanes(walk: _Walk) -> int:
    """Neighbouring outputs of a block of columns: few where columns are long, but enough to fill transactions."""
    wanted = min(1 << max(walk.outputs - 1, 0).bit_length(), _WARP)
    along = 1 << max(walk.count // _LEAST_ALONG, 1).bit_length() - 1
    return max(wanted, _BLOCK // min(along, _BLOCK))


def _split(profile: Profile, outputs: int, count: int, blocks: int, per_block: int, vec: int) -> tuple[int, int]:
    """(splits, elements of a split): enough blocks to fill a GPU, each with enough elements to be worth a launch."""
    if outputs == 0 or count == 0:
        return 1, count
    splits = min(count * per_block // _LEAST_SPLIT, _ENOUGH_BLOCKS // blocks)
    if splits < 2 or 0 <= profile.workspace_limit < outputs * splits * _PART_BYTES:
        return 1, count
    per_split = -(-count // (splits * vec)) * vec
    return -(-count // per_split), per_split


def _axis_values(walk: _Walk) -> tuple[int, ...]:
    return (
        *pad_axes(walk.kept, 1),
        *pad_axes(walk.kept_steps, 0),
        *pad_axes(walk.reduced, 1),
        *pad_axes(walk.reduced_steps, 0),
    )


def _instances(dtype: DType) -> dict[str, list[str]]:
    groups = {}
    for struct in dict.fromkeys(_STRUCT_OF.values()):
        t = f"{dtype.cuda}, {struct}<{dtype.cuda}>"
        rows = [f"reduce_rows<{t}, {vec}, {width}>" for vec in (1, dtype.lanes) for width in (_WARP, _BLOCK)]
        groups[struct] = [*rows, *(f"reduce_{kind}<{t}>" for kind in ("columns", "plain", "finish"))]
    return groups


FAMILY = Family("reduction", (_ROWS, _COLUMNS, _PLAIN, _FINISH), _instances)
