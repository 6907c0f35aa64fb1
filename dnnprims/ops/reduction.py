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
        *((name, "i64") for name in ("outputs", "count", "splits", "lanes")),
        *axis_scalars("kept", "kept_step", "reduced", "reduced_step"),
    ),
)
_ROWS, _COLUMNS, _PLAIN, _FINISH = (
    Kernel("reduction", f"reduce_{kind}", _PARAMS) for kind in ("rows", "columns", "plain", "finish")
)

_BLOCK, _WARP = 256, 32
#: Dense rows shorter than this leave too much of a warp idle; a thread of the columns kernel takes one alone.
_SHORTEST_ROW = 32
#: Up to this many elements a row is worth a warp, from there on a block, of as many threads as leave each
#: `_PACKS_AHEAD` loads, the kernel's own number.
_WARP_ROW, _LEAST_ROW_BLOCK, _PACKS_AHEAD = 1024, 64, 4
#: Partial results of an output up to which a warp adds them up, from there on a block.
_WARP_SPLITS = 128
#: Elements that a thread of the columns kernel should have before a column is shared by more threads.
_LEAST_ALONG = 8
#: A reduction that makes fewer blocks than this is split, as long as each block keeps `_LEAST_SPLIT` elements. Columns:
#: no more than reside at once, where 1,024 were 1.3 times as many and left an NVIDIA H200 half idle at the end
#: (2026-11-28, ncu: 0.154 ms for 65,536 x 4,096 in bfloat16, a prototype with 528 blocks 0.133 ms). Rows: several times
#: as many.
_ENOUGH_BLOCKS, _LEAST_SPLIT = {"columns": 512, "plain": 512, "row_per_warp": 2048, "row_per_block": 2048}, 8192
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a launch goes over the elements: what a thread reads at once, what a block makes, and its threads."""

    variant: str
    vec: int
    lanes: int
    per_block: int
    threads: int


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
    shape, refused = _shape(walk, x)
    splits = _splits(profile, outputs, count, -(-outputs // shape.per_block), shape)
    struct = f"{_STRUCT_OF[operation]}<{x.dtype.cuda}>"
    kernel, template = {
        "columns": (_COLUMNS, (str(shape.vec),)),
        "plain": (_PLAIN, ()),
        "row_per_warp": (_ROWS, (str(shape.vec), "false")),
        "row_per_block": (_ROWS, (str(shape.vec), "true")),
    }[shape.variant]
    destination: tuple[Pointer, ...] = (NULL, 1) if operation in _INDICES else (1, NULL)
    pointers = (*destination, Scratch(0) if splits > 1 else NULL, 0)
    divisor = float(count if operation == "mean" else 1)
    sizes = (outputs, count, splits, shape.lanes)
    scalars = (float(alpha), float(beta), divisor, *sizes, *_axis_values(walk))

    def step(kernel: Kernel, template: tuple[str, ...], grid: tuple[int, int, int], block: int) -> KernelStep:
        arguments = (x.dtype.cuda, struct, *template)
        return KernelStep(kernel, x.dtype, arguments, _STRUCT_OF[operation], grid, block, pointers, scalars)

    steps = [step(kernel, template, (blocks_for(outputs, shape.per_block)[0], splits, 1), shape.threads)]
    if splits > 1:
        whole = splits > _WARP_SPLITS
        grid = blocks_for(outputs, 1 if whole else _BLOCK // _WARP)
        steps.append(step(_FINISH, (str(whole).lower(),), grid, _BLOCK))
    return PlanSpec(
        op,
        f"split_{shape.variant}" if splits > 1 else shape.variant,
        tuple(steps) if outputs else (),
        results=(result,),
        returns=(1,),
        writes=(1,),
        scratch=(outputs * splits * _PART_BYTES,) if splits > 1 else (),
        refused=refused,
    )


def _shape(walk: _Walk, x: TensorDescriptor) -> tuple[_Shape, tuple[tuple[str, str], ...]]:
    variant, refused = _choose_variant(walk)
    if variant in ("columns", "plain"):
        vec = _column_vector(walk, x) if variant == "columns" else 1
        lanes = _lanes(walk, vec)
        return _Shape(variant, vec, lanes, lanes * vec, _BLOCK), refused
    vec = _row_vector(walk, x)
    if variant == "row_per_warp":
        return _Shape(variant, vec, 1, _BLOCK // _WARP, _BLOCK), refused
    wanted = 1 << max(walk.count // (vec * _PACKS_AHEAD), 1).bit_length() - 1
    return _Shape(variant, vec, 1, 1, min(max(wanted, _LEAST_ROW_BLOCK), _BLOCK)), refused


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


def _column_vector(walk: _Walk, x: TensorDescriptor) -> int:
    """Neighbouring columns that can be read at once."""
    lanes = x.dtype.lanes
    dense = unaligned(x=x) is None and walk.kept_steps[-1:] == (1,)
    return (
        lanes
        if dense and all(n % lanes == 0 for n in (walk.kept[-1], *walk.kept_steps[:-1], *walk.reduced_steps))
        else 1
    )


def _lanes(walk: _Walk, vec: int) -> int:
    """Threads side by side in a block of columns: few where columns are long, but enough to fill transactions."""
    wanted = min(1 << max(walk.outputs // vec - 1, 0).bit_length(), _WARP)
    along = 1 << max(walk.count // _LEAST_ALONG, 1).bit_length() - 1
    return max(wanted, _BLOCK // min(along, _BLOCK))


def _splits(profile: Profile, outputs: int, count: int, blocks: int, shape: _Shape) -> int:
    """Blocks that share an output: enough to fill a GPU, each with enough elements to be worth a launch."""
    if outputs == 0 or count == 0:
        return 1
    splits = min(count * shape.per_block // _LEAST_SPLIT, _ENOUGH_BLOCKS[shape.variant] // blocks)
    no_room = 0 <= profile.workspace_limit < outputs * splits * _PART_BYTES
    return 1 if splits < 2 or no_room else splits


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
        widths, blocks = (1, dtype.lanes), ("false", "true")
        rows = [f"reduce_rows<{t}, {vec}, {whole}>" for vec in widths for whole in blocks]
        columns = [f"reduce_columns<{t}, {vec}>" for vec in widths]
        finish = [f"reduce_finish<{t}, {whole}>" for whole in blocks]
        groups[struct] = [*rows, *columns, f"reduce_plain<{t}>", *finish]
    return groups


FAMILY = Family("reduction", (_ROWS, _COLUMNS, _PLAIN, _FINISH), _instances)
