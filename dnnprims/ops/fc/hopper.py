"""The whole layer in one launch on Hopper: when it can be, when it pays, and its step."""

from __future__ import annotations

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Profile, Struct, unaligned
from ...runtime.tensor_map import TensorMap
from .kernels import constants, functor

_EXTENTS = ("columns", "k_blocks", "row_tiles", "column_tiles", "group")
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

# When it pays. NVIDIA H200, 2026-11-28, microseconds of cuBLASLt (and a pass) / of one launch, L2 flushed between:
#   bfloat16 swish   1500x1024x3072 (288 tiles) 23.2 / 25.4    1024x2048x2048 (128 tiles) 18.8 / 19.0
#                    3000x1536x4608 (864 tiles) 80.0 / 67.3    8192x784x2048 62.1 / 54.8    24000x512x2816 188 / 152
#   float16 tanh     16384x1024x4096 251 / 228      8192x8192x8192 1530 / 1580
#   bfloat16 relu    8192x784x2048 49.8 / 50.7      16384x1024x4096 194.7 / 199.0, where the library has an epilogue
#   float32 tanh     3000x1536x4608 163 / 140       7133x2560x2560 311 / 278      48000x1536x512 268 / 244
# Of float32 other activations than lines and tanh took up to 1.4 times longer than product and pass, for values of a
# spread of 28, of which some are unusual in nearly every piece (usual.cuh).
_FEWEST_TILES, _LONGEST = 512, 4096
_SHORT_IN_FLOAT32 = ("clipped_relu", "leaky_relu", "squared_relu", "tanh")


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
    if k == 0 or k % dtype.lanes or n % dtype.lanes:
        return f"rows of {k} and {n} elements, must be multiples of 16 bytes"
    if max(m, n, k) > _MOST:
        return f"extents {m}, {n}, {k}, at most {_MOST}"
    if unaligned(**tensors) or rival is None or profile.preferred == "ping_pong":
        return unaligned(**tensors)
    return _slower_reason(mode, dtype, m, n, k, rival)


def _slower_reason(mode: str, dtype: DType, m: int, n: int, k: int, rival: str) -> str | None:
    if rival == "epilogue":
        return f"the library's epilogue is as fast for {mode}"
    tiles = -(-m // _TILE) * -(-n // _TILE)
    if tiles < _FEWEST_TILES:
        return f"{tiles} tiles, fewer than {_FEWEST_TILES} do not pay"
    if dtype.name == "float32" and mode not in _SHORT_IN_FLOAT32:
        return f"{mode} of float32 takes longer than the product that hides it"
    if dtype.itemsize == 2 and k > _LONGEST:
        return f"k = {k}, beyond {_LONGEST} the library's larger tiles make up for a pass"
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
    maps = (
        TensorMap(0, kind, dtype.itemsize, m, k, _TILE, lanes),
        TensorMap(1, kind, dtype.itemsize, n, k, _TILE, lanes),
        TensorMap(2, dtype.name, dtype.itemsize, m, n, _PIECE_ROWS, lanes),
        TensorMap(3, dtype.name, dtype.itemsize, m, n, _PIECE_ROWS, lanes),
    )
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, functor(mode, dtype)), f"forward of {mode.mode}",
        (min(profile.sm_count, row_tiles * column_tiles), 1, 1), _THREADS,
        (0, 1, 3, 4 if aux else NULL, 2 if bias else NULL),
        (*constants(mode), n, -(-k // lanes), row_tiles, column_tiles, _GROUP),
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
