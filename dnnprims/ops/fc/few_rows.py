"""The whole layer in one launch where it has few rows: when it can be, when it pays, and its step."""

from __future__ import annotations

from ...descriptors import ActivationDescriptor, TensorDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Profile, Struct, blocks_for, unaligned
from .kernels import constants

_EXTENTS = ("rows", "outs", "k", "mode", "y_row", "y_out", "bias_row", "bias_out")
_FORWARD = Kernel(
    "fc_few_rows",
    "fc_forward_few_rows",
    Struct(
        "FcFewRowsParams",
        ("y", "z", "x", "w", "bias"),
        (("c0", "A"), ("c1", "A"), *((name, "i64") for name in _EXTENTS)),
    ),
)
#: As in the kernel: the activations that it has, in its order, and outputs of a block.
_MODES, _OUTS = ("identity", "relu", "sigmoid", "tanh", "swish", "gelu", "gelu_tanh"), 16
#: Rows that are few, and outputs that are: then x and w change places. Rows that there are instantiations for.
_MOST_ROWS, _MOST_OUTPUTS, _ROWS = 32, 40, (8, 16, 32, 40)
_TENSOR_CORES = ("float16", "bfloat16", "float32")
#: Up to so many blocks each has a multiprocessor to itself, and takes 16 warps in place of 8. A number and not that of
#: the GPU at hand, so that the order of summation depends on the shape alone.
_BLOCKS_ALONE, _WARPS_ALONE, _WARPS = 132, 16, 8

# When it pays. NVIDIA H200, 2026-11-28, bfloat16, microseconds of cuBLASLt's relu (its epilogue), of its product and
# tanh's pass, and of this kernel with tanh, rows x in x out. Data in the L2:
#   1x512x512     3.2 /  4.5 / 1.7     1x1024x3072   3.8 /  5.4 / 2.6     1x1536x4608   5.3 /  6.6 / 4.0
#   16x512x1024   3.1 /  4.3 / 1.9     16x2048x2048  5.1 /  6.4 / 3.4     16x1024x3072  3.8 /  5.1 / 3.2
#   16x2560x2560  5.9 /  7.2 / 6.1     16x1536x4608  4.7 /  6.0 / 6.2     32x512x1024   3.1 /  4.3 / 2.4
#   32x2048x2048  5.2 /  6.5 / 4.4     32x1024x3072  3.9 /  5.2 / 4.2     32x2560x2560  6.0 /  7.3 / 8.2
#   64x2048x2048  5.5 /  6.8 / 9.7     1500x2048x35  12.8 / 14.1 / 7.0    1024x1024x16  3.8 /  5.0 / 2.2
# and flushed from it:
#   1x2048x6144  13.1 / 14.5 / 12.2    1x2816x8448  17.7 / 19.2 / 18.8    16x4096x4096 17.2 / 18.1 / 15.5
#   16x2560x7680 15.7 / 17.2 / 18.3    32x2560x7680 16.0 / 17.4 / 22.6    8457x4096x35 112 / 113 / 39
#: Blocks up to which it is faster than each way of the library, by rows; then the same for short sums.
_SHORT = 1024
_MOST_BLOCKS = {
    "epilogue": {8: (396, 396), 16: (132, 264), 32: (132, 132), 40: (0, 0)},
    "pass": {8: (396, 396), 16: (264, 264), 32: (132, 264), 40: (0, 0)},
}
#: The longest rows in bytes that were measured; those of few outputs off 16 bytes (TF32 8457x4096x35 relu 73 where the
#: library takes 90, 8457x2560x35 49 and 52).
_LONGEST, _LONGEST_ODD = 8192, 16384


def few_rows_reason(
    profile: Profile,
    mode: str,
    dtype: DType,
    extents: tuple[int, int, int],
    tensors: dict[str, TensorDescriptor | None],
    rival: str | None,
) -> str | None:
    """Why a layer of (m, n, k) is not to be done by this kernel, or None; `rival` as of `ping_pong_reason`."""
    m, n, k = extents
    if profile.arch < 80:
        return "needs a GPU of compute capability 8.0"
    if profile.tensor_core_reason(dtype):
        return profile.tensor_core_reason(dtype)
    if mode not in _MODES:
        return f"no branch for {mode}"
    if m > _MOST_ROWS and n > _MOST_OUTPUTS:
        return f"{m} rows and {n} outputs, at most {_MOST_ROWS} or {_MOST_OUTPUTS}"
    if k == 0 or k % dtype.lanes:
        return f"rows of {k} elements, must be multiples of 16 bytes"
    if unaligned(**tensors) or rival is None or profile.preferred == "few_rows":
        return unaligned(**tensors)
    return _slower_reason(dtype, extents, rival)


def _slower_reason(dtype: DType, extents: tuple[int, int, int], rival: str) -> str | None:
    _, n, k = extents
    few, many = _sides(extents)
    odd = n < many and n % dtype.lanes != 0  # few outputs whose rows are off 16 bytes, which the library is slow with
    if k * dtype.itemsize > (_LONGEST_ODD if odd else _LONGEST):
        return f"rows of {k} elements are summed faster by many blocks"
    if odd:
        return None
    blocks = -(-many // _OUTS)
    if blocks > _MOST_BLOCKS[rival][_rows_for(few)][k <= _SHORT]:
        return f"{blocks} blocks read {few} rows again and again"
    return None


def _sides(extents: tuple[int, int, int]) -> tuple[int, int]:
    """What the kernel calls rows and outputs: the other way round where there are few outputs."""
    m, n, _ = extents
    return (n, m) if m > _MOST_ROWS else (m, n)


def _rows_for(few: int) -> int:
    return min(rows for rows in _ROWS if rows >= few)


def few_rows_step(
    profile: Profile,
    mode: ActivationDescriptor,
    dtype: DType,
    extents: tuple[int, int, int],
    *,
    bias: bool,
    aux: bool,
) -> KernelStep:
    """The launch for extents (m, n, k): operands x, w, b, out and aux are numbers 0 to 4."""
    m, n, k = extents
    few, many = _sides(extents)
    swapped = m > _MOST_ROWS
    blocks = blocks_for(many, _OUTS)
    rows, warps = _rows_for(few), _WARPS_ALONE if blocks[0] <= _BLOCKS_ALONE else _WARPS
    steps = (1, n, 1, 0) if swapped else (n, 1, 0, 1)
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, str(rows), str(warps)), f"{rows} rows, {warps} warps",
        blocks, 32 * warps,
        (3, 4 if aux else NULL, *((1, 0) if swapped else (0, 1)), 2 if bias else NULL),
        (*constants(mode), few, many, k, _MODES.index(mode.mode), *steps),
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in _TENSOR_CORES:
        return {}
    return {
        f"{rows} rows, {warps} warps": [f"fc_forward_few_rows<{dtype.cuda}, {rows}, {warps}>"]
        for rows in _ROWS
        for warps in (_WARPS, _WARPS_ALONE)
    }


FC_FEW_ROWS_FAMILY = Family("fc_few_rows", (_FORWARD,), _instances)
