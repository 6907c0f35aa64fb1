"""Convolutions: how a filter moves over an image, and how both lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .spatial import LAYOUTS, Pair, count, each_axis, require_same_axes, require_word, spread

CONVOLUTION_MODES = ("cross_correlation", "convolution")

_OP = "ConvolutionDescriptor"


@dataclass(frozen=True, repr=False, eq=False)
class ConvolutionDescriptor:
    """How a filter moves over an image of one, two or three spatial axes.

    ``y[n, k, o] = sum over c and r of x[n, c, o * stride - before + r * dilation] w[k, c, r]``, nothing being read
    outside of the image.

    Parameters
    ----------
    padding : int or tuple
        Zeros on each side of each axis: one number for all, or for each axis a number or (before, after).
    stride : int or tuple of int
        Step of the filter, at least 1.
    dilation : int or tuple of int
        Distance of its taps; 1 is dense, as in cuDNN and PyTorch (oneDNN counts from 0).
    groups : int
        Channels are cut into so many groups, each with filters of its own; as many as there are channels is depthwise.
    mode : str
        ``cross_correlation``: the filter as it is, which frameworks call convolution; ``convolution``: flipped along
        each spatial axis.
    layout : str
        ``NCHW``: channels before the spatial axes, filters KCRS. ``NHWC``: channels last, filters KRSC. The names stand
        for any number of spatial axes: an image of one is (n, c, w) or (n, w, c). C of a filter is that of a group.

    Raises
    ------
    BadParamError
        A value is not one of those above.

    Examples
    --------
    >>> ConvolutionDescriptor(padding=((1, 1), (0, 1)), stride=2)
    ConvolutionDescriptor(padding=(1, (0, 1)), stride=2)
    """

    padding: Any = 0
    stride: Any = 1
    dilation: Any = 1
    groups: int = 1
    mode: str = "cross_correlation"
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        for name, least in (("padding", 0), ("stride", 1), ("dilation", 1)):
            value = each_axis(_OP, name, getattr(self, name), least, pairs=name == "padding")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "groups", count(_OP, "groups", self.groups, 1))
        for name, allowed in (("mode", CONVOLUTION_MODES), ("layout", LAYOUTS)):
            require_word(_OP, name, getattr(self, name), allowed)
        require_same_axes(_OP, padding=self.padding, stride=self.stride, dilation=self.dilation)
        object.__setattr__(self, "_hash", hash(self._values()))

    def __hash__(self) -> int:
        # Hashed at every call.
        kept: int = self.__dict__["_hash"]
        return kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConvolutionDescriptor) and self._values() == other._values()

    def _values(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups, self.mode, self.layout

    @property
    def axes(self) -> int | None:
        """Number of spatial axes, or None where every number will do."""
        several = [value for value in (self.padding, self.stride, self.dilation) if isinstance(value, tuple)]
        return len(several[0]) if several else None

    @property
    def channels_last(self) -> bool:
        """Whether channels lie behind the spatial axes."""
        return self.layout == "NHWC"

    def paddings(self, axes: int) -> tuple[Pair, ...]:
        """(before, after) of each of so many axes."""
        return tuple(item if isinstance(item, tuple) else (item, item) for item in spread(self.padding, axes))

    def strides(self, axes: int) -> tuple[int, ...]:
        """The stride along each of so many axes."""
        return spread(self.stride, axes)

    def dilations(self, axes: int) -> tuple[int, ...]:
        """The dilation along each of so many axes."""
        return spread(self.dilation, axes)

    def __repr__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"ConvolutionDescriptor({', '.join(given)})"


def create_convolution_descriptor(
    padding: Any = 0,
    stride: Any = 1,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "cross_correlation",
    layout: str = "NCHW",
) -> ConvolutionDescriptor:
    """Return `ConvolutionDescriptor(padding, stride, ...)`, for those who come from cuDNN."""
    return ConvolutionDescriptor(padding, stride, dilation, groups, mode, layout)
