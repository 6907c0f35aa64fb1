"""cuBLASLt's algorithms by their attributes, and which one is taken where the library's own first is known to be slow.

The library orders what it offers by a model of its own, which is wrong in regular ways. The figures are milliseconds on
an NVIDIA H200, cuBLASLt 13.1, 2026-11-28, for a layer of samples x inputs x outputs. For TF32 on Hopper:

- One operand across the sum: tiles of 128x128 are put before those of 256x128, which are faster. dx of 8192x784x2048
  0.135 and 0.104; of 16384x1024x4096 0.415 and 0.350; of 24000x2048x6144 1.97 and 1.64.
- Many tiles: clusters of four or eight blocks do not fill 132 multiprocessors. Forward of 16384x1024x4096 0.373 and,
  with clusters of two, 0.353; of 6000x1536x4608 0.234 and 0.218; of 3000x1536x4608 0.131 and 0.121; dw of
  8192x8192x8192 of a transposed x 3.25 and 3.01. Few tiles like them: dx of 8192x784x2048, of a transposed w, 0.095
  and 0.108.

Of 16-bit types on Hopper, with both operands along the sum, five tiles are put first that are slower than what follows,
microseconds in bfloat16 and in float16: 128x2048x2048 6.7 and 5.7, 6.2 and 5.3; 128x1760x1760 5.8 and 5.4, 5.5 and 5.2;
1500x2816x512 17.5 and 14.4, 17.7 and 14.7; 3000x2816x512 19.6 and 19.0, 19.6 and 19.2; 1x500000x1024 253 and 245, 251
and 245; 1500x1408x176 5.2 either way. The best of the first four over 88 of DeepBench's products would be 1.8 % faster
than the first, of which these are the part that repeats.

With room in the workspace it splits sums of few rows among two kernels, where PyTorch, by CUPTI, is given one of
smaller tiles: 32x4096x4096 in 16 bits 17.2 with relu and 15.1. Less room is what brings that one up
(`ops/fc/forward.py`).

Known to be slower and left: relu in TF32 of 6000x2048x6144 412 and 389, 9124x1760x5124 461 and 439, 3000x2560x7680
317 and 308; 48000x1536x4608 1787 and 1931. Of all of DeepBench's layers in four modes and three types 72 of 2,052 are
below 0.99 of PyTorch's faster way, 58 of them in TF32: 1500x1280x128 0.74 to 0.80, 2x500000x1024 0.92. Where its other
candidates were timed one was faster than the first: 700x512x1024 by 8 to 12 %, 16x500000x1024 by 10 %. Of most they
were not; `handle.tune` times them.

For float32 products with both operands across the sum it splits the sum among small tiles, and does not offer tiles of
128x256 without a split, which are faster where they fill the multiprocessors: dw of 16384x1024x4096 2.91 and 2.54. Such
an algorithm is built from its attributes, and the library asked whether it would run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Attribute (cublasLtMatmulAlgoConfigAttributes_t) and bytes of each field of `Algorithm`.
CONFIGURATION = ((0, 4), (1, 4), (6, 4), (8, 2), (7, 2), (2, 4), (3, 4), (4, 4), (5, 4))

#: The algorithm whose kernels are Hopper's for TF32, two of its tiles, and its clusters of at most two blocks.
_HOPPER_TF32, _TILE_128X128, _TILE_256X128, _SMALL_CLUSTERS = 43, 20, 24, (2, 3, 5)
#: The algorithm whose kernels are Hopper's for 16-bit types, and tiles of its that are put too far in front.
_HOPPER_16_BITS, _SLOW_TILES = 66, (80, 92, 93, 402, 486)
#: The algorithm whose kernels multiply float32 without tensor cores, and one of its tiles, with its number of stages.
_FLOAT32, _TILE_128X256, _FLOAT32_STAGES = 55, 23, 31
#: Share of the multiprocessors that tiles must keep busy, and rows and columns of a tile.
_LEAST_BUSY, _TILE_ROWS, _TILE_COLUMNS = 0.9, 128, 256
#: Outputs from which tiles are many: six of 128x128 for each multiprocessor.
_MANY_OUTPUTS = 6 * 132 * 128 * 128


class Algorithm(NamedTuple):
    """What tells an algorithm from others; -1 for what it has not."""

    id: int
    tile: int
    stages: int
    cluster: int
    inner: int
    split_k: int
    reduction: int
    swizzle: int
    custom: int


def first_choice(offered: Sequence[Algorithm], outputs: int, across: int) -> int:
    """Number of the algorithm to take for a product of so many outputs, `across` of its operands across the sum."""
    chosen = 0
    if offered[0].id == _HOPPER_16_BITS and across == 0 and offered[0].tile in _SLOW_TILES:
        return next((i for i, a in enumerate(offered) if a.id == _HOPPER_16_BITS and a.tile not in _SLOW_TILES), 0)
    if offered[0].id != _HOPPER_TF32:
        return chosen
    if across == 1 and offered[0].tile == _TILE_128X128:
        chosen = next((i for i, a in enumerate(offered) if a.id == _HOPPER_TF32 and a.tile == _TILE_256X128), 0)
    if outputs >= _MANY_OUTPUTS and offered[chosen].cluster not in _SMALL_CLUSTERS:
        alike = (i for i, a in enumerate(offered) if a[:2] == offered[chosen][:2] and a.cluster in _SMALL_CLUSTERS)
        chosen = next(alike, chosen)
    return chosen


def missing(offered: Sequence[Algorithm], m: int, n: int, across: int, sm_count: int) -> Algorithm | None:
    """What the library does not offer for an (m, n) product and would be faster, or None."""
    if offered[0].id != _FLOAT32 or offered[0].split_k <= 1 or across != 2:
        return None
    tiles = -(-m // _TILE_ROWS) * -(-n // _TILE_COLUMNS)
    if tiles < _LEAST_BUSY * -(-tiles // sm_count) * sm_count:
        return None
    return Algorithm(_FLOAT32, _TILE_128X256, _FLOAT32_STAGES, 0, 0, 1, 0, 0, 0)
