"""Poolings: how a window moves over an image, and what is taken from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any

from .spatial import LAYOUTS, Numbers, Pair, each_axis, require_less, require_same_axes, require_word, spread

POOLING_MODES = ("max", "average_exclude_padding", "average_include_padding")

_OP = "PoolingDescriptor"


@dataclass(frozen=True, repr=False, eq=False)
class PoolingDescriptor:
    """How a window moves over an image of one, two or three spatial axes, and what is taken from it.

    Parameters
    ----------
    mode : str
        ``max``: the largest; padding takes no part in it. ``average_exclude_padding``: the mean of what lies in the
        image. ``average_include_padding``: the sum of that, over the extent of the window.
    window : int or tuple of int
        Extent along each axis: one number for all, or one for each.
    stride : int or tuple of int, optional
        Step of the window, at least 1; the window where left out.
    padding : int or tuple
        On each side of each axis: one number for all, or for each axis a number or (before, after). Less than the
        window, so that every window has a part in the image (PyTorch wants at most half).
    layout : str
        ``NCHW``: channels before the spatial axes; ``NHWC``: channels last. The names stand for any number of axes.

    Raises
    ------
    BadParamError
        A value is not one of those above.

    Examples
    --------
    >>> PoolingDescriptor("max", 3, stride=2, padding=((1, 1), (0, 1)))
    PoolingDescriptor('max', 3, stride=2, padding=(1, (0, 1)))
    """

    mode: str
    window: Any
    stride: Any = None
    padding: Any = 0
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.window)
        for name, least in (("window", 1), ("stride", 1), ("padding", 0)):
            value = each_axis(_OP, name, getattr(self, name), least, pairs=name == "padding")
            object.__setattr__(self, name, value)
        for name, allowed in (("mode", POOLING_MODES), ("layout", LAYOUTS)):
            require_word(_OP, name, getattr(self, name), allowed)
        require_same_axes(_OP, window=self.window, stride=self.stride, padding=self.padding)
        axes = self.axes or 1
        for pads, window in zip(self.paddings(axes), self.windows(axes), strict=True):
            rule = f"less than the window {self.window} on each side of each axis"
            require_less(_OP, "padding", self.padding, max(pads) < window, rule)
        object.__setattr__(self, "_hash", hash(self._values()))

    def __hash__(self) -> int:
        # Hashed at every call.
        kept: int = self.__dict__["_hash"]
        return kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoolingDescriptor) and self._values() == other._values()

    def _values(self) -> tuple[Any, ...]:
        return self.mode, self.window, self.stride, self.padding, self.layout

    @property
    def axes(self) -> int | None:
        """Number of spatial axes, or None where every number will do."""
        several = [value for value in (self.window, self.stride, self.padding) if isinstance(value, tuple)]
        return len(several[0]) if several else None

    @property
    def channels_last(self) -> bool:
        """Whether channels lie behind the spatial axes."""
        return self.layout == "NHWC"

    def windows(self, axes: int) -> Numbers:
        """The window along each of so many axes."""
        return spread(self.window, axes)

    def strides(self, axes: int) -> Numbers:
        """The stride along each of so many axes."""
        return spread(self.stride, axes)

    def paddings(self, axes: int) -> tuple[Pair, ...]:
        """(before, after) of each of so many axes."""
        return tuple(item if isinstance(item, tuple) else (item, item) for item in spread(self.padding, axes))

    def taps(self, axes: int) -> int:
        """Positions of a window of so many axes."""
        return prod(self.windows(axes))

    def __repr__(self) -> str:
        given = [repr(self.mode), repr(self.window)]
        for f in fields(self)[2:]:
            value, default = getattr(self, f.name), self.window if f.name == "stride" else f.default
            given += [] if value == default else [f"{f.name}={value!r}"]
        return f"PoolingDescriptor({', '.join(given)})"


def create_pooling_descriptor(
    mode: str, window: Any, stride: Any = None, padding: Any = 0, layout: str = "NCHW"
) -> PoolingDescriptor:
    """Return `PoolingDescriptor(mode, window, ...)`, for those who come from cuDNN."""
    return PoolingDescriptor(mode, window, stride, padding, layout)
