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

# When it pays. NVIDIA H200, 2026-11-28, microseconds of cuBLASLt (and a pass) / of one launch, z of a spread of 1, L2
# flushed between; in parentheses tiles, and the share of their waves that they fill:
#   bfloat16 swish   1500x1024x3072 (288, 0.73) 28.1 / 29.9    1024x2048x2048 (128, 0.97) 22.6 / 21.7
#                    5124x2048x2560 (820, 0.89) 90.7 / 87.7    2048x2048x4096 (512, 0.97) 57.3 / 52.5
#                    3000x1536x4608 (864, 0.93) 78.5 / 67.8    16384x1024x4096 (4096, 1.00) 258 / 201
#   bfloat16 relu    5124x2048x2560 80.3 / 84.3    2048x2048x4096 51.1 / 50.5    3000x1536x4608 67.3 / 64.5
#                    8192x784x2048 52.0 / 52.6     8192x2048x2048 98.5 / 95.9    16384x1024x4096 199 / 182
#   bfloat16 gelu_tanh   8192x784x2048 56.7 / 52.4    16384x1024x4096 215 / 207
#   TF32 tanh        8192x784x2048 120 / 103    16384x1024x4096 486 / 423    7133x2560x2560 291 / 269
#   TF32 relu        8192x784x2048 85.5 / 94.8  16384x1024x4096 358 / 380, where the library has an epilogue
# Of float32 those activations alone that were measured. Numbers that are unusual in nearly every piece (usual.cuh), as
# with z of a spread of 28, took up to 1.4 times longer than product and pass.
_SHORT_IN_FLOAT32 = ("clipped_relu", "leaky_relu", "squared_relu", "swish", "tanh")
# Where rows of outputs are off 16 bytes the library is slower by far, with a pass (tanh) and with its epilogue (relu):
# 9124x1760x5124 798 / 302, 9124x2048x5124 relu 767 / 304, 700x2048x5124 75 / 39 and 71 / 37, 8457x1760x35 (67 tiles)
# 51 / 27 and 49 / 24; but 1500x2048x35 (12 tiles) 14.2 / 17.5.
# Where rows of k are off 128 bytes a box of the copy engine takes two lines for one: 7000x1760x1760 tanh 76.5 / 83.6,
# relu 67 / 81; 8192x784x2048 tanh 64 / 56, relu 52 / 56.
# How far the library's own fusion goes: were every layer as fast as its relu, beside PyTorch's linear and activation,
# the geometric mean over 171 layers and four activations in bfloat16 would be 1.19. What is beyond that comes from here
# and from few_rows.py.
# In float16 its epilogue stays ahead from k = 2560 on: relu 3000x2560x7680 168 / 173, 3000x2816x8448 190 / 205,
# 24000x2816x1024 193 / 204; beside its pass 3000x2816x8448 tanh 212 / 211.
#: What tiles must fill of their waves, beside each way of the library, and beside both where outputs are off 16 bytes.
_FILLED, _FILLED_BESIDE_SLOW = {"pass": 0.8, "epilogue": 0.93}, 0.5
#: The longest sums worth it beside each way of the library where rows are off a line of so many bytes.
_LINE, _LONGEST_OFF_LINES = 128, {"pass": 1024, "epilogue": 0}
# With long sums the library's larger tiles make up for its pass. 8192x8192x8192 swish 1524 / 1576 in float16, 1443 /
# 1496 in bfloat16, relu 1439 / 1561 and 1455 / 1500; 4096x4096x16384 swish 818 / 802 and 826 / 782, relu 755 / 784 and
# 762 / 763.
#: Waves from which on one launch beats the library's epilogue, and how long sums may be beside each way of the library.
_WAVES_BESIDE_EPILOGUE, _LONGEST_BESIDE_PASS = 6, 4096
_LONGEST_BESIDE_EPILOGUE = {"float16": 2048, "bfloat16": 4096, "float32": 0}


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
    if profile.backend != "cuda" or profile.arch != 90:
        return "needs a GPU of compute capability 9.0"
    if not profile.tensor_maps:
        return "the driver has no tensor maps"
    if dtype.name not in _KINDS or (dtype.name == "float32" and profile.math != "tf32"):
        return f"the tensor cores do not multiply {dtype.name} here"
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
    if tiles < (_FILLED_BESIDE_SLOW if off else _FILLED[rival]) * waves * sm_count:
        return f"{tiles} tiles leave too many of {sm_count} multiprocessors idle"
    if off:
        return None if dtype.itemsize == 2 else f"rows of {n} outputs of {dtype} are not slow in the library"
    if dtype.name == "float32" and mode not in _SHORT_IN_FLOAT32:
        return f"{mode} of float32 takes longer than the product that hides it"
    if k * dtype.itemsize % _LINE and k > _LONGEST_OFF_LINES[rival]:
        return f"rows of {k} elements are off {_LINE} bytes, which the library takes better"
    if rival == "pass" and dtype.itemsize == 2 and k > _LONGEST_BESIDE_PASS:
        return f"sums of {k} terms are faster in the library"
    if rival == "epilogue" and (k > _LONGEST_BESIDE_EPILOGUE[dtype.name] or waves < _WAVES_BESIDE_EPILOGUE):
        return f"the library's epilogue is as fast for {mode}"
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
