"""The tiles that convolutions on Hopper are done in."""

from __future__ import annotations

from typing import NamedTuple

from ...dtypes import DType


class Tile(NamedTuple):
    """How the work of a block is shared out, as the template `Tiling` of the kernel.

    Attributes
    ----------
    rows, columns : int
        rows x 64 by columns are the sums of each of two consumers.
    stages, buffers : int
        Stages that fit beside so many buffers for pieces of 64 pixels on their way out, of each consumer.
    ping_pong : bool
        Whether the consumers take tiles in turn, or share each.
    swapped : bool
        Whether the columns are pixels, or channels out.
    """

    rows: int
    columns: int
    stages: int
    buffers: int
    ping_pong: bool
    swapped: bool

    @property
    def pixels(self) -> int:
        """Of a tile."""
        return (self.columns if self.swapped else 64 * self.rows) * (1 if self.ping_pong else 2)

    @property
    def channels(self) -> int:
        """Of a tile, out."""
        return 64 * self.rows if self.swapped else self.columns

    @property
    def shared_bytes(self) -> int:
        """Stages, pieces of both consumers, barriers, and what aligning them may take."""
        pieces = 2 * self.buffers
        return self.stages * ((self.pixels + self.channels) * 128 + 16) + pieces * (8192 + 8) + 1024

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the template."""
        numbers = (self.rows, self.columns, self.stages, self.buffers)
        return (*map(str, numbers), *(str(flag).lower() for flag in (self.ping_pong, self.swapped)))


#: Pixels x channels of a tile; "turns" where consumers take them in turn.
TILES = {
    "128x128 turns": Tile(2, 128, 6, 2, True, False),
    "256x64 turns": Tile(1, 256, 4, 4, True, True),
}
#: Floats are not put together across.
FLOAT_TILES = {
    "128x128 turns": Tile(2, 128, 6, 2, True, False),
    "128x64 turns": Tile(2, 64, 8, 2, True, False),
}


def tiles_of(dtype: DType) -> dict[str, Tile]:
    """That there are for a type."""
    return TILES if dtype.itemsize == 2 else FLOAT_TILES
