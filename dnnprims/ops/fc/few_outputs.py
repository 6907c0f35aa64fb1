"""All gradients of a layer of few outputs in one pass over x: when it can be, when it pays, and its steps."""

from __future__ import annotations

from dataclasses import replace

from ...descriptors import TensorDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, PlanSpec, Profile, Scratch, Struct
from .kernels import fold_step

_BACKWARD = Kernel(
    "fc_few_outputs",
    "fc_backward_few_outputs",
    Struct(
        "FcFewOutputsParams",
        ("dx", "dw", "db", "partial", "dy", "x", "w"),
        (("beta", "A"), ("rows", "i64"), ("k", "i64"), ("outs", "i64"), ("rows_per_chunk", "i64")),
    ),
)
#: As in the kernel: elements of an access, columns and threads of a block, the most rows of a chunk. Outputs that there
#: are instantiations for.
_VEC, _COLUMNS, _THREADS, _MOST_ROWS, _OUTS = 4, 128, 128, 512, (4, 10)
_TYPES = ("float16", "bfloat16", "float32")
#: Up to so many rows one chunk is faster than a second launch; rows that chunks are multiples of; how many blocks fill
#: a GPU. Fixed, so that the order of summation depends on the shape alone.
_FEW_ROWS, _ROWS_AT_ONCE, _ENOUGH_BLOCKS = 32, 32, 396
#: The fewest inputs worth it: those of a block's columns.
_FEWEST_INPUTS = 128


def few_outputs_reason(
    profile: Profile,
    needs: tuple[str, ...],
    mode: str,
    dtype: DType,
    extents: tuple[int, int, int],
    alignments: tuple[TensorDescriptor | None, ...],
) -> str | None:
    """Why the gradients of a layer of (rows, outputs, inputs) are not made in one pass, or None."""
    m, n, k = extents
    if mode != "identity":
        return f"behind {mode} the gradient is a pass of its own"
    if needs == ("db",) or not m * n * k:
        return "no product is asked for"
    if dtype.name not in _TYPES:
        return f"no instantiation for {dtype.name}"
    if n > _OUTS[-1]:
        return f"{n} outputs, at most {_OUTS[-1]}"
    if k % _VEC or any(d is not None and d.alignment < _VEC * dtype.itemsize for d in alignments):
        return f"rows of {k} inputs, must be multiples of {_VEC} and aligned to as many"
    if profile.preferred.startswith("lt_product"):
        return f"{profile.preferred} was faster when tuned"
    if profile.backend == "cuda" and k < _FEWEST_INPUTS and profile.preferred != "few_outputs":
        return f"{k} inputs do not fill a block"
    nbytes = sum(_partial_bytes(dtype, extents, n * k + n))
    if 0 <= profile.workspace_limit < nbytes:
        return f"{nbytes} bytes of workspace, the limit is {profile.workspace_limit}"
    return None


def few_outputs_plan(spec: PlanSpec, dtype: DType, extents: tuple[int, int, int], beta: float) -> PlanSpec:
    """The plan, which writes what `spec` does: operands dy, x, w, dx, dw and db are numbers 0, 1, 2, 5, 6 and 7."""
    m, n, k = extents
    per_chunk = _rows_per_chunk(m, k)
    dx, dw, db = (at if at in spec.writes else NULL for at in (5, 6, 7))
    x, w = NULL if dw is NULL else 1, NULL if dx is NULL else 2
    sums = 0 if dw is NULL else n * k, 0 if db is NULL else n
    scratch = _partial_bytes(dtype, extents, sum(sums))
    partial, chunks = Scratch(0) if scratch else NULL, -(-m // per_chunk)
    outs = min(outs for outs in _OUTS if outs >= n)
    step = KernelStep(
        _BACKWARD, dtype, (dtype.cuda, str(outs)), "all", (-(-k // _COLUMNS), chunks, 1), _THREADS,
        (dx, dw, db, partial, 0, x, w), (beta, m, k, n, per_chunk),
    )  # fmt: skip
    folds = (fold_step(dtype, (dw, db), partial, chunks, sums, 1.0, beta),) if scratch else ()
    return replace(spec, variant="few_outputs", steps=(step, *folds), scratch=scratch)


def _rows_per_chunk(rows: int, k: int) -> int:
    if rows <= _FEW_ROWS:
        return rows
    chunks = max(1, _ENOUGH_BLOCKS // -(-k // _COLUMNS))
    return min(_MOST_ROWS, -(-rows // (chunks * _ROWS_AT_ONCE)) * _ROWS_AT_ONCE)


def _partial_bytes(dtype: DType, extents: tuple[int, int, int], sums: int) -> tuple[int, ...]:
    """Scratch for so many sums of each chunk, where there are several."""
    m, _, k = extents
    chunks = -(-m // _rows_per_chunk(m, k))
    return (chunks * sums * dtype.acc.itemsize,) if chunks > 1 and sums else ()


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in _TYPES:
        return {}
    return {"all": [f"fc_backward_few_outputs<{dtype.cuda}, {outs}>" for outs in _OUTS]}


FC_FEW_OUTPUTS_FAMILY = Family("fc_few_outputs", (_BACKWARD,), _instances)
