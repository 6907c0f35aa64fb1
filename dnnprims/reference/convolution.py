"""Convolutions in NumPy: forward, the gradients in data, filter and bias, and the transposed convolution.

Every direction is a loop over the taps of the filter, not over pixels: what one tap sees of the image is a strided
window of it, and what it does with that a product of matrices. Positions outside of the image are in no window, so that
padding is never multiplied by anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import activation as elementwise
from .rounding import Array, finish, widen

Index = tuple[Any, ...]


def conv_forward(
    conv: Any,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: Any = None,
    residual: Any = None,
    scale: Any = None,
    shift: Any = None,
    out: Array | None = None,
    alpha1: float = 1.0,
    alpha2: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.0,
    with_sums: bool = False,
    sums: Array | None = None,
) -> Any:
    """z = scale * (alpha1 * conv(x, w) + b) + shift + alpha2 * residual, out = alpha * act(z) + beta * out.

    Sums are those of out as it is stored, and of its squares.
    """
    with np.errstate(all="ignore"):
        z = alpha1 * _forward(conv, x, w)
        for values, combine in ((b, np.add), (scale, np.multiply), (shift, np.add)):
            z = z if values is None else combine(z, _by_channel(values, z))
        z = z if residual is None else z + alpha2 * _to_front(conv, widen(residual))
    y = z if activation is None else elementwise.activation_forward(_narrowed(activation, x.dtype), z)
    stored = finish(_from_front(conv, y), x.dtype, out=out, alpha=alpha, beta=beta)
    if not with_sums and sums is None:
        return stored
    kind = np.float64 if np.dtype(x.dtype) == np.float64 else np.float32
    return stored, finish(_sums(conv, widen(stored)), kind, out=sums)


def _sums(conv: Any, y: Array) -> Array:
    wide = _to_front(conv, y)
    axes = tuple(axis for axis in range(wide.ndim) if axis != 1)
    with np.errstate(all="ignore"):
        return np.stack([wide.sum(axis=axes), np.square(wide).sum(axis=axes)])


def conv_backward_data(
    conv: Any,
    dy: Any,
    w: Any,
    *,
    x_descriptor: Any,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """y[o] = sum_r x[o * stride - before + r * dilation] w[r], so dx of that position is the sum of dy[o] w[r]."""
    with np.errstate(all="ignore"):
        dx = _backward_data(conv, dy, w, _shape_in_front(conv, x_descriptor.shape))
    return finish(_from_front(conv, dx), dy.dtype, out=out, alpha=alpha, beta=beta)


def conv_backward_filter(
    conv: Any,
    dy: Any,
    x: Any,
    *,
    w_descriptor: Any,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """dw[r] is the sum over all positions o and all images of dy[o] x[o * stride - before + r * dilation]."""
    with np.errstate(all="ignore"):
        dw = _backward_filter(conv, dy, x, _shape_in_front(conv, w_descriptor.shape))
    return finish(_from_front(conv, dw), dy.dtype, out=out, alpha=alpha, beta=beta)


def conv_backward_bias(conv: Any, dy: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """db[k] is the sum of dy over images and positions."""
    wide = _to_front(conv, widen(dy))
    with np.errstate(all="ignore"):
        db = wide.sum(axis=tuple(axis for axis in range(wide.ndim) if axis != 1))
    return finish(db, dy.dtype, out=out, alpha=alpha, beta=beta)


def conv_transpose_forward(
    conv: Any,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    output_padding: int | tuple[int, ...] = 0,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """The data gradient of the convolution, as a layer: x is in the place of dy."""
    (batch, _, *positions), (_, depth, *taps) = _shape_in_front(conv, x.shape), _shape_in_front(conv, w.shape)
    axes = len(positions)
    added = output_padding if isinstance(output_padding, tuple) else (output_padding,) * axes
    along = zip(positions, taps, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), added, strict=True)
    image = [(o - 1) * step - sum(pads) + (r - 1) * dilation + 1 + more for o, r, pads, step, dilation, more in along]
    with np.errstate(all="ignore"):
        y = _backward_data(conv, x, w, (batch, depth * conv.groups, *image))
        y = y if b is None else y + _by_channel(b, y)
    return finish(_from_front(conv, y), x.dtype, out=out, alpha=alpha, beta=beta)


def conv_transpose_backward(
    conv: Any,
    dy: Any,
    x: Any,
    w: Any,
    *,
    needs: Sequence[str] = ("dx", "dw", "db"),
    dx: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
    beta: float = 0.0,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx is the convolution of dy, dw its filter gradient with x in the place of dy; beta is that of the parameters."""
    return (
        conv_forward(conv, dy, w, out=dx) if "dx" in needs else None,
        conv_backward_filter(conv, x, dy, w_descriptor=w, out=dw, beta=beta) if "dw" in needs else None,
        conv_backward_bias(conv, dy, out=db, beta=beta) if "db" in needs else None,
    )


def _forward(conv: Any, x: Any, w: Any) -> Array:
    """Channels in front."""
    image, taps = _to_front(conv, widen(x)), _unflipped(conv, widen(w))
    extents = output_extents(conv, image.shape[2:], taps.shape[2:])
    y = np.zeros((image.shape[0], taps.shape[0], *extents))
    for tap, at, seen in _windows(conv, image.shape[2:], taps.shape[2:], extents):
        y[at] += _ungrouped(_weights(conv, taps, tap) @ _grouped(conv, image, seen), y, at)
    return y


def _backward_data(conv: Any, dy: Any, w: Any, shape: tuple[int, ...]) -> Array:
    """Channels in front, as `shape` is."""
    gradient, taps, dx = _to_front(conv, widen(dy)), _unflipped(conv, widen(w)), np.zeros(shape)
    for tap, at, seen in _windows(conv, shape[2:], taps.shape[2:], gradient.shape[2:]):
        weights = _weights(conv, taps, tap).swapaxes(-1, -2)
        dx[seen] += _ungrouped(weights @ _grouped(conv, gradient, at), dx, seen)
    return dx


def _backward_filter(conv: Any, dy: Any, x: Any, shape: tuple[int, ...]) -> Array:
    """Channels in front, as `shape` is."""
    gradient, image, dw = _to_front(conv, widen(dy)), _to_front(conv, widen(x)), np.zeros(shape)
    for tap, at, seen in _windows(conv, image.shape[2:], shape[2:], gradient.shape[2:]):
        left, right = _grouped(conv, gradient, at), _grouped(conv, image, seen)
        dw[tap] = (left @ right.swapaxes(-1, -2)).sum(axis=0).reshape(shape[:2])
    return _unflip(conv, dw)


def output_extents(conv: Any, image: Sequence[int], taps: Sequence[int]) -> tuple[int, ...]:
    """1 + (image + padding - ((taps - 1) * dilation + 1)) / stride along each axis, rounded down."""
    axes = len(image)
    along = zip(image, taps, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), strict=True)
    return tuple(1 + (i + sum(pads) - ((r - 1) * dilation + 1)) // stride for i, r, pads, stride, dilation in along)


def _windows(
    conv: Any, image: Sequence[int], taps: Sequence[int], output: Sequence[int]
) -> Iterator[tuple[Index, Index, Index]]:
    """Each tap, the outputs that it has a part in and the positions that it sees for these, as indices of arrays."""
    axes = len(image)
    facts = list(zip(image, output, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), strict=True))
    for tap in product(*map(range, taps)):
        at, seen = [], []
        for r, (i, o, (before, _), stride, dilation) in zip(tap, facts, strict=True):
            first = r * dilation - before  # where the tap lies for output 0
            low = max(0, -(first // stride))
            high = max(low, min(o, (i - 1 - first) // stride + 1))
            at.append(slice(low, high))
            seen.append(slice(low * stride + first, max(0, (high - 1) * stride + first + 1), stride))
        if all(one.start < one.stop for one in at):
            yield (..., *tap), (..., *at), (..., *seen)


def _weights(conv: Any, taps: Array, tap: Index) -> Array:
    """The filters of one tap as matrices, a group each: (groups, outputs, inputs)."""
    here: Array = taps[tap]
    return here.reshape(conv.groups, here.shape[0] // conv.groups, here.shape[1])


def _grouped(conv: Any, a: Array, window: Index) -> Array:
    """A window of an image as matrices: (images, groups, channels, positions)."""
    here = a[window]
    positions = int(np.prod(here.shape[2:]))
    return here.reshape(here.shape[0], conv.groups, here.shape[1] // conv.groups, positions)


def _ungrouped(matrices: Array, a: Array, window: Index) -> Array:
    """The same back, for a window of `a`."""
    return matrices.reshape(a[window].shape)


def _to_front(conv: Any, a: Array) -> Array:
    """Channels, or what filters have in their place, behind the first axis."""
    return np.moveaxis(a, -1, 1) if conv.channels_last else a


def _from_front(conv: Any, a: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if conv.channels_last else a


def _shape_in_front(conv: Any, shape: Sequence[int]) -> tuple[int, ...]:
    outer, *rest = shape
    return (outer, rest[-1], *rest[:-1]) if conv.channels_last else tuple(shape)


def _unflip(conv: Any, taps: Array) -> Array:
    """Flipped along the spatial axes where the mode says so; channels in front."""
    return np.flip(taps, tuple(range(2, taps.ndim))) if conv.mode == "convolution" else taps


def _unflipped(conv: Any, w: Array) -> Array:
    return _unflip(conv, _to_front(conv, w))


def _by_channel(values: Any, z: Array) -> Array:
    return widen(values).reshape(-1, *(1,) * (z.ndim - 2))


def _narrowed(activation: Any, dtype: Any) -> Any:
    """The activation with its parameters as the accumulator of `dtype` holds them."""
    kind = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    parameters = tuple((name, float(kind(value))) for name, value in activation.parameters)
    return SimpleNamespace(mode=activation.mode, parameters=parameters)
