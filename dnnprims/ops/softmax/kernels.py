"""Kernels of the softmax: which one takes which rows, and its launch."""

from __future__ import annotations

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Pointer, Profile, Struct, blocks_for, choose, even_blocks

#: In the order of the constants in the CUDA text.
ALGORITHMS = ("accurate", "fast", "log")

_SCALARS = (
    ("alpha", "A"),
    ("beta", "A"),
    ("rows", "i64"),
    ("cols", "i64"),
    ("inner", "i64"),
    ("algorithm", "i32"),
    ("lanes", "i32"),
    ("kept", "i32"),
)
_STRUCTS = {
    "forward": Struct("SoftmaxForwardParams", ("y", "x"), _SCALARS),
    "backward": Struct("SoftmaxBackwardParams", ("dx", "dy", "y"), _SCALARS),
}
_KERNELS = {
    (way, kind): Kernel("softmax", f"softmax_{way}_{kind}", struct)
    for way, struct in _STRUCTS.items()
    for kind in ("row", "long", "tile", "strided", "plain")
}

#: Rows in registers: (threads of a row, elements of a thread), the first that holds the row is taken. A double takes
#: the room of two.
_ROW_SHAPES = ((8, 4), (8, 16), (16, 16), (32, 16), (32, 32), (128, 16), (256, 16), (512, 16), (1024, 16))
#: The same of float32 forward beyond those, where shared memory has no room for two rows: 8,192 x 32,768 take 520 us,
#: 0.97 of a copy, where two rows held by shared memory and registers take 539 (NVIDIA H200, 2026-11-28). Of 16-bit
#: types they take 330, not 261; backward they spill.
_WIDE_ROW = (1024, 32)
#: Rows that a block keeps in shared memory between their two uses.
_KEPT_ROWS = {"forward": 1, "backward": 2}
#: Rows of up to this many threads share blocks of this many.
_SHARED_BLOCK = 128
#: Threads of a block that has a row for itself: two such blocks share a multiprocessor where their rows fit.
_LONG_BLOCKS = (512, 1024)
#: (threads, packs that each holds in registers of each row that is kept) of rows of float32 where that lets two blocks
#: share a multiprocessor (forward), or less be read again (backward).
_LONG_HELD = {"forward": (512, 4), "backward": (1024, 2)}
#: Tiles of neighbouring rows along another axis: (threads, how many a multiprocessor is to have room for), in the
#: order in which they are tried for each width. Axis 1 of 256 x 1024 x 1024, bfloat16 / float32, share of a copy,
#: NVIDIA H200, 2026-11-28: backward two of 64 bytes across 0.90 / 0.91, one of 128 bytes 1.00 / 1.01; forward two of
#: 128 bytes 0.92 / 0.97, one of 256 bytes 0.79 / 0.84. Backward along 600 of bfloat16 0.93 with two, 0.97 with one,
#: 2048 0.68 and 0.84 (float32 0.69 and 0.92), 4096 0.33 and 0.63; 2 x 1024 x 1024, which fill no GPU, 11 and 13 us.
#: Forward along 2048 0.81 with two and 0.79 with one.
_TILE_BLOCKS = {"forward": ((512, 2),), "backward": ((512, 2), (1024, 1))}
#: Threads of the first of them, packs that each has in registers, as in the kernel, and those it should have at least.
_TILE_BLOCK, _TILE_HELD, _TILE_LEAST = 512, 4, 4
#: Packs across a tile, best first.
_TILE_LANES = (8, 4, 2, 1)
_STRIDED_BLOCK = 256
#: Elements that a thread of the strided kernel should have before the axis is split further.
_STRIDED_LEAST = 8
#: Neighbouring elements that fill the memory's transactions.
_STRIDED_LANES = 32


def launch_of(
    profile: Profile,
    way: str,
    view: tuple[int, int, int],
    dtype: DType,
    alignment: str | None,
    pointers: tuple[Pointer, ...],
    alpha: float,
    beta: float,
    algorithm: str,
) -> tuple[str, KernelStep, tuple[tuple[str, str], ...]]:
    """Pick the kernel, and its launch."""
    outer, cols, inner = view
    vec = dtype.lanes if alignment is None and cols % dtype.lanes == 0 else 1
    adjacent = None if inner == 1 else f"the axis has step {inner}"
    room = profile.row_bytes
    needed = _KEPT_ROWS[way] * cols * dtype.itemsize
    shapes = _row_shapes(way, dtype, vec, wide=needed > room // 2)
    shape = next((s for s in shapes if s[0] * s[1] * vec >= cols), None)
    tile, tile_block, no_tile = _tile(profile, way, view, dtype, alignment)
    variant, refused = choose(
        (
            ("row_in_registers", adjacent or (None if shape else f"a row has {cols} elements")),
            (
                "row_in_shared",
                adjacent or (None if needed <= room else f"{needed} bytes of shared memory, {room} there"),
            ),
            ("row_partly_in_shared", adjacent),
            ("tile_in_shared", no_tile),
            ("strided_axis", None),
            ("plain", None),
        )
    )
    lanes, shared = _strided_lanes(cols, inner), 0
    rows, kept = outer * inner, 0
    kind, grid, block = "plain", blocks_for(rows, 256), 256
    template: tuple[int, ...] = ()
    if variant == "row_in_registers":
        width, packs = shape or (0, 0)
        kind, block = "row", max(width, _SHARED_BLOCK)
        template, grid = (vec, packs, width), blocks_for(rows, block // width)
    elif variant in ("row_in_shared", "row_partly_in_shared"):
        block, held, kept, shared = _long_shape(way, vec, dtype, needed, room)
        # Rows that are partly read again are taken in turn by resident blocks: softmax.cu tells what that is for.
        again = way == "backward" and needed - held * block * _unit(way, vec, dtype) > room
        blocks = even_blocks(rows, profile.sm_count) if again else rows
        kind, template, grid = "long", (vec, block, held), (blocks, 1, 1)
    elif variant == "tile_in_shared":
        lanes, vec, block = tile, dtype.lanes, tile_block
        shared = _tile_bytes(way, cols, lanes, dtype, block)
        kind, template, grid = "tile", (vec, block), (outer * -(-inner // (lanes * vec)), 1, 1)
    elif variant == "strided_axis":
        kind, grid, block = "strided", blocks_for(rows, lanes), _STRIDED_BLOCK
    scalars = (float(alpha), float(beta), rows, cols, inner, ALGORITHMS.index(algorithm), lanes, kept)
    arguments, group = (dtype.cuda, *map(str, template)), _group(way, kind, vec)
    step = KernelStep(_KERNELS[way, kind], dtype, arguments, group, grid, block, pointers, scalars, shared)
    return str(variant), step, refused


def _long_shape(way: str, vec: int, dtype: DType, needed: int, room: int) -> tuple[int, int, int, int]:
    """Threads of a long row and packs of each array in their registers; packs and bytes in shared memory."""
    block, held = _LONG_HELD[way]
    left = needed - 16 * held * block * _KEPT_ROWS[way]
    pays = room // 2 < needed and left <= room // 2 if way == "forward" else needed > room
    if not (pays and _holds(vec, dtype)):
        block, held = _LONG_BLOCKS[needed > room // 2], 0
    unit = _unit(way, vec, dtype)
    kept = min(needed - held * block * unit, room) // unit
    return block, held, kept, kept * unit


def _unit(way: str, vec: int, dtype: DType) -> int:
    """Bytes of a pack of each row that is kept."""
    return _KEPT_ROWS[way] * vec * dtype.itemsize


def _holds(vec: int, dtype: DType) -> bool:
    """Whether long rows are compiled with packs in registers, too."""
    return vec > 1 and dtype.itemsize == 4


def _tile(
    profile: Profile, way: str, view: tuple[int, int, int], dtype: DType, alignment: str | None
) -> tuple[int, int, str | None]:
    """Packs across a tile of neighbouring rows and threads of its block, or why there is none."""
    _, cols, inner = view
    if alignment or inner % dtype.lanes:
        return 2, _TILE_BLOCK, alignment or f"{inner} neighbouring rows are not of 16 bytes each"
    across = 1 << (inner // dtype.lanes - 1).bit_length()  # packs, rounded up
    sizes = [lanes for lanes in _TILE_LANES if lanes <= across]
    most = profile.shared_bytes
    fitting = (
        (lanes, block)
        for lanes in sizes
        for block, tiles in _TILE_BLOCKS[way]
        if tiles * _tile_bytes(way, cols, lanes, dtype, block) <= most
    )
    lanes, block = next(fitting, (sizes[-1], _TILE_BLOCK))
    while lanes < min(across, 32) and lanes * cols < _TILE_LEAST * _TILE_BLOCK:
        lanes *= 2
    needed = _tile_bytes(way, cols, lanes, dtype, block)
    if needed > most:
        return lanes, block, f"{needed} bytes of shared memory, {most} there"
    few = f"a tile has {lanes * cols} packs, and its block more threads"
    return lanes, block, None if lanes * cols >= block else few


def _tile_bytes(way: str, cols: int, lanes: int, dtype: DType, block: int) -> int:
    """Shared memory of a tile and of the reductions over it."""
    held = min(lanes * cols, _TILE_HELD * block)
    sums = block // 32 * lanes * dtype.lanes * dtype.acc.itemsize
    return 16 * (lanes * cols * _KEPT_ROWS[way] - held) + sums


def _row_shapes(way: str, dtype: DType, vec: int, wide: bool = True) -> list[tuple[int, int]]:
    """(threads of a row, packs of a thread), shortest row first; `wide` ones where there are any."""
    share = 2 if dtype.itemsize == 8 else 1
    last = (_WIDE_ROW,) if wide and way == "forward" and _holds(vec, dtype) else ()
    return [(width, max(1, elements // (share * vec))) for width, elements in (*_ROW_SHAPES, *last)]


def _strided_lanes(cols: int, inner: int) -> int:
    """Neighbouring rows of a block of the strided kernel: few where rows are long, but enough to fill transactions."""
    wanted = min(1 << max(inner - 1, 0).bit_length(), _STRIDED_LANES)
    along = 1 << max(cols // _STRIDED_LEAST, 1).bit_length() - 1
    return max(wanted, _STRIDED_BLOCK // min(along, _STRIDED_BLOCK))


def _group(way: str, kind: str, vec: int) -> str:
    if kind in ("strided", "plain"):
        return f"{way}_any"
    if kind == "tile":
        return f"{way}_tile"
    if kind == "long":
        return f"{way}_long_{'scalars' if vec == 1 else 'vectors'}"
    return f"{way}_{'scalars' if vec == 1 else 'vectors'}"


def _instances(dtype: DType) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for way in _STRUCTS:
        for vec in (1, dtype.lanes):
            shapes = dict.fromkeys(_row_shapes(way, dtype, vec))
            rows = [f"softmax_{way}_row<{dtype.cuda}, {vec}, {packs}, {width}>" for width, packs in shapes]
            groups[_group(way, "row", vec)] = rows
            ways = [*((block, 0) for block in _LONG_BLOCKS), *((_LONG_HELD[way],) if _holds(vec, dtype) else ())]
            groups[_group(way, "long", vec)] = [
                f"softmax_{way}_long<{dtype.cuda}, {vec}, {block}, {held}>" for block, held in ways
            ]
        groups[_group(way, "tile", 1)] = [
            f"softmax_{way}_tile<{dtype.cuda}, {dtype.lanes}, {block}>" for block, _ in _TILE_BLOCKS[way]
        ]
        groups[_group(way, "plain", 1)] = [f"softmax_{way}_{kind}<{dtype.cuda}>" for kind in ("strided", "plain")]
    return groups


FAMILY = Family("softmax", tuple(_KERNELS.values()), _instances)
