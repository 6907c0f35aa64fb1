"""Implicit matrix products, with fused multiply-adds and on tensor cores: when they can be, and when they pay."""

from __future__ import annotations

from functools import partial
from math import prod

from ...dtypes import DType
from ...runtime.launch import Family
from .implicit_filter import filter_reason, filter_work
from .implicit_gather import gather_reason, gather_work
from .implicit_structs import FFMA_FILTER, FFMA_GATHER, FOLD, MMA_FILTER, MMA_GATHER, REPACK
from .implicit_tiles import Tile, Way, too_large
from .product import Algorithm, Product, Work

#: Channels of a group on either side from which on a tile has enough to do.
_FEWEST_CHANNELS = 8
#: Products from which on fused multiply-adds take fewer channels, too: not measured below.
_MANY_PRODUCTS = 2**28
#: Bytes of a row or column of a slice on tensor cores, slices in flight, threads.
_LINE_BYTES, _STAGES, _THREADS = 64, 4, 128


#: Tiles of float32 and their rates, from the layers named in the kernels' header.
_FLOAT_TILES = {
    "gather": (
        Tile(128, 128, 256, 8, 2, rate=33.9),
        Tile(128, 64, 64, 8, 4, rate=33.2, together=4),
        Tile(64, 64, 64, 8, 6, rate=31.8),
    ),
    "filter": (Tile(128, 128, 256, 8, 2, rate=39.4), Tile(64, 64, 64, 8, 6, rate=32.8)),
}


def _ffma_tiles(dtype: DType, group: str) -> tuple[Tile, ...]:
    if dtype.name == "float32":
        return _FLOAT_TILES[group]
    return (Tile(64, 64, 256, 16, 2),) if dtype.name == "float64" else (Tile(64, 64, 64, 8, 6),)


def _mma_tile(dtype: DType, rows: int, columns: int) -> Tile:
    stages, sums = _STAGES * (rows + columns) * _LINE_BYTES, rows * (columns + 8) * 4
    return Tile(rows, columns, _THREADS, _LINE_BYTES // dtype.itemsize, 2 if columns > 64 else 3, max(stages, sums))


def _mma_tiles(dtype: DType, _: str) -> tuple[Tile, ...]:
    return (_mma_tile(dtype, 128, 128), _mma_tile(dtype, 128, 64))


#: The one with fused multiply-adds.
FFMA = Way("implicit_ffma", FFMA_GATHER, FFMA_FILTER, _ffma_tiles, lambda dtype: 4, strict=False)
_MMA = Way("implicit_mma", MMA_GATHER, MMA_FILTER, _mma_tiles, lambda dtype: dtype.lanes, strict=True)


def _cannot(way: Way, product: Product) -> str | None:
    reason = too_large(product)
    if reason:
        return reason
    return filter_reason(way, product) if product.direction == "filter" else gather_reason(way, product)


def _cannot_mma(product: Product) -> str | None:
    profile, dtype = product.profile, product.dtype
    if profile.arch < 80:
        return "needs a GPU of compute capability 8.0"
    return profile.tensor_core_reason(dtype) or _cannot(_MMA, product)


def _slower(product: Product) -> str | None:
    """Tiles are mostly empty where few channels go out, and slices where few go in."""
    _, _, columns, lines, *_ = product.g.scalars()
    if min(columns, lines) < _FEWEST_CHANNELS:
        return f"{columns} and {lines} channels of a group, fewer than {_FEWEST_CHANNELS} do not fill a tile"
    return None


def _work(way: Way, product: Product) -> Work:
    return filter_work(way, product) if product.direction == "filter" else gather_work(way, product)


def _slower_than_plain(product: Product) -> str | None:
    """Likewise, but that many products are faster in tiles that are mostly empty than in none.

    NVIDIA H200, 2026-11-28, float32, 64 images of 3 channels, 7x7 of stride 2 to 64, us beside direct_plain: forward
    1405 / 11161, data 10553 / 12079, filter 10401 / 65970. cuDNN 755, 1201 and 865.
    """
    g = product.g
    products = g.filter_size * g.batch * prod(g.output)
    return _slower(product) if products < _MANY_PRODUCTS else None


IMPLICIT_FFMA = Algorithm(FFMA.name, partial(_cannot, FFMA), _slower_than_plain, partial(_work, FFMA))
IMPLICIT_MMA = Algorithm(_MMA.name, _cannot_mma, _slower, partial(_work, _MMA))


def _ffma_instances(dtype: DType) -> dict[str, list[str]]:
    return {
        **_tiled(dtype, FFMA),
        "repack": [f"{REPACK.entry}<{dtype.cuda}>"],
        "fold": [f"{FOLD.entry}<{dtype.cuda}>"],
    }


def _mma_instances(dtype: DType) -> dict[str, list[str]]:
    return {} if dtype.name == "float64" else _tiled(dtype, _MMA)


def _tiled(dtype: DType, way: Way) -> dict[str, list[str]]:
    return {
        group: [f"{kernel.entry}<{', '.join(way.template(dtype, tile))}>" for tile in way.tiles(dtype, group)]
        for group, kernel in (("gather", way.gather), ("filter", way.filter))
    }


IMPLICIT_FAMILY = Family("convolution_implicit", (FFMA_GATHER, FFMA_FILTER, FOLD, REPACK), _ffma_instances)
MMA_FAMILY = Family("convolution_mma", (MMA_GATHER, MMA_FILTER), _mma_instances)
