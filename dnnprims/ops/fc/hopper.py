"""The whole layer in one launch on Hopper: when it can be, when it pays, and its step."""

from __future__ import annotations

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Profile, Struct, unaligned
from ...runtime.tensor_map import TensorMap
from .kernels import constants, functor

_EXTENTS = ("rows", "columns", "k_blocks", "row_tiles", "column_tiles", "group")
_FORWARD = Kernel(
    "fc_hopper",
    "fc_forward_ping_pong",
    Struct(
        "FcHopperParams",
        ("x", "w", "y", "z", "bias"),
        (("c0", "A"), ("c1", "A"), *((name, "i64") for name in _EXTENTS)),
    ),
)

#: As in the kernel: rows and columns of a tile, rows of a piece, bytes of a box along k, stages, threads.
_TILE, _PIECE_ROWS, _ROW_BYTES, _STAGES, _THREADS = 128, 64, 128, 6, 384
#: Stages of two operands, two pieces for each of two consumers, barriers, and what aligning them may take.
_SHARED_BYTES = _STAGES * (2 * _TILE * _ROW_BYTES + 16) + 4 * _PIECE_ROWS * _ROW_BYTES + 1024
#: Tiles of rows that are gone through before the next columns.
_GROUP = 8
#: What the copy engine calls the types; float32 is for TF32 alone.
_KINDS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "tf32"}
#: Extents are 32-bit coordinates of the copy engine.
_MOST = 2**31 - _TILE

# When it pays. NVIDIA H200, 2026-11-28, microseconds of cuBLASLt's product and a pass / of one launch, z of a spread of
# 1, L2 flushed between, all in one process; in parentheses tiles, and the share of their waves that they fill:
#   bfloat16 tanh    1500x1536x4608 (432, 0.82) 40.2 / 44.8    1500x2560x7680 (720, 0.91) 96.1 / 98.4
#   bfloat16 swish   1500x1024x3072 (288, 0.73) 28.1 / 29.9    3000x1536x4608 (864, 0.93) 78.5 / 67.8
#                    16384x1024x4096 (4096, 1.00) 258 / 201
#   TF32 tanh        8192x784x2048 120 / 103    16384x1024x4096 486 / 423    7133x2560x2560 291 / 269
#   TF32 gelu_tanh   8192x784x2048 122 / 111    16384x1024x4096 485 / 478
# Over 230 of DeepBench's layers in bfloat16 and float16 with tanh and swish one launch takes, of the time of the two,
# 1.11 to 1.23 where waves are filled to 0.73, 1.00 to 1.11 to 0.91, 0.97 to 1.00 from 0.93 on with few waves, and 0.78
# to 0.95 with many.
# Of float32 those activations alone that were measured. Numbers that are unusual in nearly every piece (usual.cuh), as
# with z of a spread of 28, took up to 1.4 times longer than product and pass.
_SHORT_IN_FLOAT32 = ("clipped_relu", "gelu_tanh", "leaky_relu", "squared_relu", "swish", "tanh")
# Beside the library's own epilogue (relu; gelu_tanh of 16 bits) it is not worth it where rows of outputs are on 16
# bytes: its tiles of 128 x 256 in clusters of two multiply faster, and what one launch hides costs it nothing.
# Bfloat16, its epilogue / one launch: relu 3000x2816x8448 187 / 202, 24000x1536x4608 453 / 501, 48000x2048x1024 275 /
# 296, gelu_tanh 7000x4096x4096 306 / 333, 24000x2048x512 79.3 / 83.1, 16384x1024x4096 212 / 213. Only sums of 1,024 for
# 3,072 outputs were faster: gelu_tanh 24000x1024x3072 246 / 235, relu 6000x1024x3072 63.2 / 62.1.
# Where rows of outputs are off 16 bytes the library is slower by far, with a pass (tanh) and with its epilogue (relu):
# 9124x1760x5124 798 / 302, 9124x2048x5124 relu 767 / 304, 700x2048x5124 75 / 39 and 71 / 37, 8457x1760x35 (67 tiles)
# 51 / 27 and 49 / 24; but 1500x2048x35 (12 tiles) 14.2 / 17.5.
#: What tiles must fill of their waves, and what where outputs are off 16 bytes.
_FILLED, _FILLED_BESIDE_SLOW = 0.93, 0.5
# Where rows of k are off 128 bytes a box of the copy engine takes two lines for one: 7000x1760x1760 tanh 76.5 / 83.6;
# 8192x784x2048 tanh 64 / 56.
#: The longest sums worth it where rows are off a line of so many bytes.
_LINE, _LONGEST_OFF_LINES = 128, 1024
# With long sums the library's larger tiles make up for its pass: tanh 7000x4096x4096 (14 waves) 324 / 335; swish
# 4096x4096x16384 (31 waves) 818 / 802 in float16, 826 / 782 in bfloat16; 8192x8192x8192 1524 / 1576 and 1443 / 1496.
#: How long sums may be, and how long with many waves.
_LONGEST, _LONGEST_OF_MANY_WAVES, _MANY_WAVES = 2816, 4096, 20


def ping_pong_reason(
    profile: Profile,
    mode: str,
    dtype: DType,
    extents: tuple[int, int, int],
    tensors: dict[str, TensorDescriptor | None],
    rival: str | None,
) -> str | None:
    """Why a layer of (m, n, k) is not to be done in one launch, or None.

    `rival` is how else it would be done: by the library's ``epilogue``, by its product and a ``pass``, or not by the
    library at all. What was found faster by timing is not refused for being slower.
    """
    m, n, k = extents
    unfit = profile.hopper_reason or profile.tensor_core_reason(dtype)
    if unfit:
        return unfit
    if k == 0 or k % dtype.lanes:
        return f"rows of {k} elements, must be multiples of 16 bytes"
    if max(m, n, k) > _MOST:
        return f"extents {m}, {n}, {k}, at most {_MOST}"
    if unaligned(**tensors) or rival is None or profile.preferred == "ping_pong":
        return unaligned(**tensors)
    return _slower_reason(mode, dtype, extents, profile.sm_count, rival)


def _slower_reason(mode: str, dtype: DType, extents: tuple[int, int, int], sm_count: int, rival: str) -> str | None:
    m, n, k = extents
    tiles = -(-m // _TILE) * -(-n // _TILE)
    waves, off = -(-tiles // sm_count), n % dtype.lanes != 0
    if tiles < (_FILLED_BESIDE_SLOW if off else _FILLED) * waves * sm_count:
        return f"{tiles} tiles leave too many of {sm_count} multiprocessors idle"
    if off:
        return None if dtype.itemsize == 2 else f"rows of {n} outputs of {dtype} are not slow in the library"
    if rival == "epilogue":
        return f"the library's epilogue is as fast for {mode}"
    if dtype.name == "float32" and mode not in _SHORT_IN_FLOAT32:
        return f"{mode} of float32 takes longer than the product that hides it"
    if k * dtype.itemsize % _LINE and k > _LONGEST_OFF_LINES:
        return f"rows of {k} elements are off {_LINE} bytes, which the library takes better"
    if dtype.itemsize == 2 and k > (_LONGEST_OF_MANY_WAVES if waves >= _MANY_WAVES else _LONGEST):
        return f"sums of {k} terms are faster in the library"
    return None


def ping_pong_step(
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
    kind, lanes = _KINDS[dtype.name], _ROW_BYTES // dtype.itemsize
    row_tiles, column_tiles = -(-m // _TILE), -(-n // _TILE)
    x, w = (TensorMap(at, kind, dtype.itemsize, rows, k, _TILE, lanes) for at, rows in ((0, m), (1, n)))
    y, z = (TensorMap(at, dtype.name, dtype.itemsize, m, n, _PIECE_ROWS, lanes) for at in (2, 3))
    # Rows that are not on multiples of 16 bytes have no map: threads store them, and any map fills the place.
    maps = (x, w, x, x) if n % dtype.lanes else (x, w, y, z)
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, functor(mode, dtype)), f"forward of {mode.mode}",
        (min(profile.sm_count, row_tiles * column_tiles), 1, 1), _THREADS,
        (0, 1, 3, 4 if aux else NULL, 2 if bias else NULL),
        (*constants(mode), m, n, -(-k // lanes), row_tiles, column_tiles, _GROUP),
        shared_bytes=_SHARED_BYTES, maps=maps,
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in _KINDS:
        return {}
    return {
        f"forward of {mode}": [f"fc_forward_ping_pong<{dtype.cuda}, {functor(ActivationDescriptor(mode), dtype)}>"]
        for mode in ACTIVATION_MODES
    }


FC_HOPPER_FAMILY = Family("fc_hopper", (_FORWARD,), _instances, only="sm_90a")
