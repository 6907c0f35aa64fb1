"""A training step of ResNet-50 as a list of calls of the public API that write into memory made beforehand.

Images are channels last. Batch norm has the ReLU and the residual in its own calls. Gradients of activations take turns
in three pieces of memory; to the one that flows past a block, the data gradient of the block's first convolution is
added by beta = 1.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import dnnprims as dp

EXPANSION = 4
LR, MOMENTUM = 0.01, 0.9
NORM = dp.BatchNormDescriptor(layout="NHWC")


class Unit(NamedTuple):
    """A convolution with batch norm: what its backward pass reads and writes."""

    conv: dp.ConvolutionDescriptor
    x: Any
    w: Any
    dw: Any
    z: Any
    y: Any
    scales: list[Any]
    gradients: list[Any]
    statistics: list[Any]


class Step:
    """A training step: calls in order, each with its kind, and all of its memory."""

    def __init__(self, handle: dp.Handle, dtype: str, seed: int = 0) -> None:
        self.handle, self.dtype = handle, dtype
        self.kind = dp.TensorDescriptor((), dtype).dtype.numpy
        self.state = np.dtype(np.float64 if dtype == "float64" else np.float32)
        self.rng = np.random.default_rng(seed)
        self.calls: list[tuple[str, Callable[[], Any]]] = []
        self.weights: list[Any] = []
        self.gradients: list[Any] = []
        self.masters: list[Any] = []
        self._pieces: list[Any] = []
        self._taken: dict[int, tuple[Any, Any]] = {}

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Note a call."""
        self.calls.append((kind, partial(function, self.handle, *arguments, **options)))

    def run(self) -> None:
        """Make every call."""
        for _, call in self.calls:
            call()

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """An array that a call will fill."""
        kind = np.dtype(dtype or self.kind)
        if self.handle.backend != "cuda":
            return self.handle.asarray(np.zeros(shape, kind))
        import cupy

        return cupy.zeros(shape, kind)

    def parameter(self, values: Any, dtype: Any = None) -> tuple[Any, Any]:
        """A weight and its gradient."""
        kind = np.dtype(dtype or self.kind)
        self.weights.append(self.handle.asarray(values.astype(kind)))
        self.masters.append(self.handle.asarray(values.astype(self.state)))
        self.gradients.append(self.empty(values.shape, kind))
        return self.weights[-1], self.gradients[-1]

    def normal(self, shape: Sequence[int], fan: int) -> Any:
        """Weights whose spread keeps that of the activations."""
        return self.rng.standard_normal(tuple(shape), dtype=np.float32) * np.float32(math.sqrt(2.0 / fan))

    def reserve(self, count: int, elements: int) -> None:
        """Memory of which gradients of activations take pieces in turn: they live from one call to the next."""
        self._pieces = [self.empty((elements,)) for _ in range(count)]

    def take(self, like: Any) -> Any:
        """A piece of the shape of an array."""
        piece = self._pieces.pop()
        view = piece[: like.size].reshape(like.shape)
        self._taken[id(view)] = view, piece
        return view

    def give(self, view: Any) -> None:
        """Let others have it."""
        self._pieces.append(self._taken.pop(id(view))[1])

    # -- forward -------------------------------------------------------------------------------------------------------

    def unit(self, x: Any, filters: int, taps: int, stride: int, activation: str | None, residual: Any = None) -> Unit:
        """A convolution, then batch norm with residual and activation."""
        conv = dp.ConvolutionDescriptor(padding=taps // 2, stride=stride, layout="NHWC")
        shape = (filters, taps, taps, x.shape[-1])
        w, dw = self.parameter(self.normal(shape, math.prod(shape[1:])))
        described = (dp.TensorDescriptor(one, self.dtype) for one in (x.shape, shape))
        extents = dp.conv_output_descriptor(conv, *described).shape
        z, y = self.empty(extents), self.empty(extents)
        pairs = [self.parameter(values, self.state) for values in (np.ones(filters), np.zeros(filters))]
        scales, gradients = [list(one) for one in zip(*pairs, strict=True)]
        mean, rstd, running_mean, running_variance = (self.empty((filters,), self.state) for _ in range(4))
        self.call("convolution forward", dp.conv_forward, conv, x, w, out=z)
        self.call(
            "batch norm forward", dp.batchnorm_forward_training, NORM, z, *scales, activation=activation,
            residual=residual, running_mean=running_mean, running_variance=running_variance, out=y,
            mean=mean, rstd=rstd,
        )  # fmt: skip
        return Unit(conv, x, w, dw, z, y, scales, gradients, [mean, rstd])

    def block(self, x: Any, filters: int, stride: int) -> tuple[list[Unit], Unit | None]:
        """1x1, 3x3 and 1x1, and what flows past them: x itself, or a convolution of it where shapes differ."""
        wide = filters * EXPANSION
        past = None if x.shape[-1] == wide and stride == 1 else self.unit(x, wide, 1, stride, None)
        first = self.unit(x, filters, 1, 1, "relu")
        second = self.unit(first.y, filters, 3, stride, "relu")
        third = self.unit(second.y, wide, 1, 1, "relu", residual=x if past is None else past.y)
        return [first, second, third], past

    # -- backward ------------------------------------------------------------------------------------------------------

    def behind_norm(self, unit: Unit, dy: Any, dx: Any, activation: str | None, **more: Any) -> None:
        """`dx` from `dy`; they may be one."""
        (gamma, beta), (dgamma, dbeta) = unit.scales, unit.gradients
        needs = ("dx", "dgamma", "dbeta", *(("dresidual",) if "dresidual" in more else ()))
        given = {} if activation is None else {"y": unit.y} if "dresidual" in more else {"beta": beta}
        self.call(
            "batch norm backward", dp.batchnorm_backward, NORM, dy, unit.z, gamma, *unit.statistics,
            activation=activation, needs=needs, dx=dx, dgamma=dgamma, dbeta=dbeta, **given, **more,
        )  # fmt: skip

    def behind_convolution(self, unit: Unit, dz: Any, dx: Any = None, beta: float = 0.0) -> None:
        """The gradients of the filters and, where it is wanted, of the image."""
        w, x = (dp.TensorDescriptor(one.shape, self.dtype) for one in (unit.w, unit.x))
        options = {"w_descriptor": w, "out": unit.dw}
        self.call("convolution filter", dp.conv_backward_filter, unit.conv, dz, unit.x, **options)
        if dx is not None:
            options = {"x_descriptor": x, "out": dx, "beta": beta}
            self.call("convolution data", dp.conv_backward_data, unit.conv, dz, unit.w, **options)

    def behind_block(self, units: list[Unit], past: Unit | None, dy: Any) -> Any:
        """From the gradient of a block's result, whose place that of the residual takes, to the one of its input."""
        first, second, third = units
        dz = self.take(third.z)
        self.behind_norm(third, dy, dz, "relu", dresidual=dy)
        for unit, below in ((third, second), (second, first)):
            dx = self.take(below.y)
            self.behind_convolution(unit, dz, dx)
            self.give(dz)
            self.behind_norm(below, dx, dx, "relu")
            dz = dx
        dx = dy
        if past is not None:
            dx = self.take(first.x)
            self.behind_norm(past, dy, dy, None)
            self.behind_convolution(past, dy, dx)
            self.give(dy)
        self.behind_convolution(first, dz, dx, beta=1.0)
        self.give(dz)
        return dx


def make_step(handle: dp.Handle, options: argparse.Namespace) -> tuple[Step, Any]:
    """A step of ResNet-50, and the array that receives its loss."""
    step = Step(handle, options.dtype)
    n, size, width = options.batch, options.size, options.width
    images = step.rng.standard_normal((n, size, size, 3), dtype=np.float32).astype(step.kind)
    labels = handle.asarray(step.rng.integers(0, options.classes, n).astype(np.int32))
    stem = step.unit(handle.asarray(images), width, 7, 2, "relu")
    pooling = dp.PoolingDescriptor("max", window=3, stride=2, padding=1, layout="NHWC")
    described = dp.TensorDescriptor(stem.y.shape, options.dtype)
    pooled = step.empty(dp.pooling_output_descriptor(pooling, described).shape)
    which = step.empty(pooled.shape, np.uint8)
    step.call("pooling", dp.pooling_forward, pooling, stem.y, out=pooled, indices=which)
    x, blocks = pooled, []
    for stage, count in enumerate(options.blocks):
        for i in range(count):
            blocks.append(step.block(x, width << stage, 2 if i == 0 and stage else 1))
            x = blocks[-1][0][-1].y
    step.reserve(3, max(stem.y.size, *(unit.z.size for units, _ in blocks for unit in units)))
    loss, dy = _classify(step, x, labels, options.classes)
    for units, past in reversed(blocks):
        dy = step.behind_block(units, past, dy)
    dz = step.take(stem.y)
    step.call("pooling", dp.pooling_backward, pooling, dy, x_descriptor=described, indices=which, out=dz)
    step.behind_norm(stem, dz, dz, "relu")
    step.behind_convolution(stem, dz)
    velocities = [step.empty(w.shape, step.state) for w in step.weights]
    update = partial(dp.sgd_update, masters=step.masters if step.kind.itemsize == 2 else None)
    step.call("optimizer", update, step.weights, step.gradients, velocities, lr=LR, momentum=MOMENTUM)
    return step, loss


def _classify(step: Step, x: Any, labels: Any, classes: int) -> tuple[Any, Any]:
    """The mean over all positions, a fully connected layer and the loss, and back; (loss, gradient of x)."""
    (n, h, w, c), described = x.shape, dp.TensorDescriptor(x.shape, step.dtype)
    pooling = dp.PoolingDescriptor("average_exclude_padding", window=(h, w), layout="NHWC")
    mean, dmean = (step.empty((n, 1, 1, c)) for _ in range(2))
    weights, dweights = step.parameter(step.normal((classes, c), 2 * c))
    bias, dbias = step.parameter(np.zeros(classes))
    logits, dlogits, loss = step.empty((n, classes)), step.empty((n, classes)), step.empty((), step.state)
    rows, drows = mean.reshape(n, c), dmean.reshape(n, c)
    step.call("pooling", dp.pooling_forward, pooling, x, out=mean)
    step.call("fully connected", dp.fc_forward, rows, weights, bias, out=logits)
    kind = dp.LossDescriptor("cross_entropy", reduction="mean_samples")
    step.call("loss", dp.loss_forward_backward, kind, logits, labels, out=loss, dprediction=dlogits)
    step.call("fully connected", dp.fc_backward, dlogits, rows, weights, dx=drows, dw=dweights, db=dbias)
    dx = step.take(x)
    step.call("pooling", dp.pooling_backward, pooling, dmean, x_descriptor=described, out=dx)
    return loss, dx
