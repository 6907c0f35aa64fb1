"""The convolutional network of the demo: `demo_network` with other layers, for images of 8 x 8 pixels, channels last.

A convolution with bias and ReLU in one call; two with batch norm and ReLU in one call, and max pooling behind each; a
fully connected layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.demo_network import CLASSES, Layer, Network, Recipe

IMAGE = (8, 8, 1)
#: Output channels of the three convolutions.
CHANNELS = (32, 32, 128)
TAPS = 3
#: How far the running statistics move towards a batch's.
FACTOR = 0.1

CONVOLUTION = dp.ConvolutionDescriptor(padding=TAPS // 2, layout="NHWC")
NORM = dp.BatchNormDescriptor(layout="NHWC")
POOLING = dp.PoolingDescriptor("max", window=2, layout="NHWC")


class BiasedConvolution:
    """A convolution of the images themselves, with bias and ReLU; nothing is below it, so it has no ``dx``."""

    def __init__(self, handle: dp.Handle, w: np.ndarray, b: np.ndarray, recipe: Recipe) -> None:
        self.handle = handle
        self.weights = [handle.asarray(array.astype(recipe.kind)) for array in (w, b)]
        self.gradients = [handle.asarray(np.zeros(array.shape, recipe.kind)) for array in (w, b)]
        shape = (recipe.batch, *IMAGE[:2], w.shape[0])
        self.y, self.dy = (handle.asarray(np.zeros(shape, recipe.kind)) for _ in range(2))
        self.w_descriptor = dp.TensorDescriptor(w.shape, recipe.dtype)

    def forward(self, x: Any) -> Any:
        """Fill `y` from x, and return it."""
        return dp.conv_forward(self.handle, CONVOLUTION, x, *self.weights, activation="relu", out=self.y)

    def backward(self, x: Any, dx: Any) -> None:
        """Fill the gradients from `dy`, which becomes that of the sums."""
        dw, db = self.gradients
        dz = dp.activation_backward(self.handle, "relu", self.dy, y=self.y, out=self.dy)
        dp.conv_backward_bias(self.handle, CONVOLUTION, dz, out=db)
        dp.conv_backward_filter(self.handle, CONVOLUTION, dz, x, w_descriptor=self.w_descriptor, out=dw)


class NormalizedConvolution:
    """A convolution, batch norm with ReLU, and max pooling; its images are half as wide as those below it."""

    def __init__(self, handle: dp.Handle, arrays: Sequence[np.ndarray], width: int, recipe: Recipe) -> None:
        def buffer(*shape: int, dtype: Any = recipe.kind) -> Any:
            return handle.asarray(np.zeros(shape, dtype))

        (w, gamma, beta), (mean, variance), state = arrays[:3], arrays[3:], recipe.state
        channels, self.handle = w.shape[0], handle
        scales = [handle.asarray(array.astype(state)) for array in (gamma, beta)]
        self.weights = [handle.asarray(w.astype(recipe.kind)), *scales]
        self.gradients = [buffer(*w.shape), *(buffer(channels, dtype=state) for _ in scales)]
        self.running = [handle.asarray(array.astype(state)) for array in (mean, variance)]
        self.mean, self.rstd = (buffer(channels, dtype=state) for _ in range(2))
        wide, half = ((recipe.batch, size, size, channels) for size in (width, width // 2))
        self.z, self.a, self.da = (buffer(*wide) for _ in range(3))
        self.y, self.dy = (buffer(*half) for _ in range(2))
        self.which = buffer(*half, dtype=np.uint8)
        self.x_descriptor = dp.TensorDescriptor((recipe.batch, width, width, w.shape[-1]), recipe.dtype)
        self.a_descriptor, self.w_descriptor = (dp.TensorDescriptor(one, recipe.dtype) for one in (wide, w.shape))

    def forward(self, x: Any) -> Any:
        """Fill `y` from x, and return it; the running statistics take their share of the batch's."""
        (w, gamma, beta), (mean, variance) = self.weights, self.running
        dp.conv_forward(self.handle, CONVOLUTION, x, w, out=self.z)
        dp.batchnorm_forward_training(
            self.handle, NORM, self.z, gamma, beta, activation="relu", running_mean=mean, running_variance=variance,
            exponential_average_factor=FACTOR, out=self.a, mean=self.mean, rstd=self.rstd,
        )  # fmt: skip
        dp.pooling_forward(self.handle, POOLING, self.a, out=self.y, indices=self.which)
        return self.y

    def backward(self, x: Any, dx: Any) -> None:
        """Fill the gradients and `dx` from `dy`."""
        (w, gamma, beta), (dw, dgamma, dbeta) = self.weights, self.gradients
        dp.pooling_backward(
            self.handle, POOLING, self.dy, x_descriptor=self.a_descriptor, indices=self.which, out=self.da
        )
        dp.batchnorm_backward(
            self.handle, NORM, self.da, self.z, gamma, self.mean, self.rstd, activation="relu", beta=beta, dx=self.da,
            dgamma=dgamma, dbeta=dbeta,
        )  # fmt: skip
        dp.conv_backward_filter(self.handle, CONVOLUTION, self.da, x, w_descriptor=self.w_descriptor, out=dw)
        dp.conv_backward_data(self.handle, CONVOLUTION, self.da, w, x_descriptor=self.x_descriptor, out=dx)


class Flat:
    """The same memory as rows: nothing is computed."""

    def __init__(self, below: NormalizedConvolution) -> None:
        self.y, self.dy = (array.reshape(array.shape[0], -1) for array in (below.y, below.dy))
        self.weights: list[Any] = []
        self.gradients: list[Any] = []

    def forward(self, x: Any) -> Any:
        """Rows of x."""
        return self.y

    def backward(self, x: Any, dx: Any) -> None:
        """`dy` is what is below has as its own."""


class ConvolutionNetwork(Network):
    """Trained as the network of fully connected layers is; `parameters` end with the running statistics."""

    image = IMAGE

    def make_layers(self, handle: dp.Handle, parameters: Sequence[np.ndarray], recipe: Recipe) -> list[Any]:
        """From the images to the outputs."""
        w, b, *between, last_w, last_b, mean1, variance1, mean2, variance2 = parameters
        first, second = [*between[:3], mean1, variance1], [*between[3:], mean2, variance2]
        middle = [
            NormalizedConvolution(handle, first, IMAGE[0], recipe),
            NormalizedConvolution(handle, second, IMAGE[0] // 2, recipe),
        ]
        last = Layer(handle, last_w, last_b, None, recipe.kind, recipe.batch)
        self.running = [array for layer in middle for array in layer.running]
        return [BiasedConvolution(handle, w, b, recipe), *middle, Flat(middle[-1]), last]

    def parameters(self) -> list[np.ndarray]:
        """Copies of the weights at full precision, then the running statistics."""
        return super().parameters() + [np.array(self.handle.to_numpy(array)) for array in self.running]


def initial_parameters(activation: str, seed: int) -> list[np.ndarray]:
    """Normal weights whose spread keeps that of the activations (He et al. 2015), biases of 0, statistics of a normal
    distribution."""
    rng, parameters, below = np.random.default_rng(seed), [], IMAGE[-1]
    for channels in CHANNELS:
        shape = (channels, TAPS, TAPS, below)
        parameters.append(math.sqrt(2.0 / math.prod(shape[1:])) * rng.standard_normal(shape))
        parameters += [np.zeros(channels)] if below == IMAGE[-1] else [np.ones(channels), np.zeros(channels)]
        below = channels
    flat = below * (IMAGE[0] // 4) * (IMAGE[1] // 4)  # pooled twice
    parameters += [math.sqrt(1.0 / flat) * rng.standard_normal((CLASSES, flat)), np.zeros(CLASSES)]
    for channels in CHANNELS[1:]:
        parameters += [np.zeros(channels), np.ones(channels)]
    return parameters


def predict(handle: dp.Handle, parameters: Sequence[np.ndarray], images: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Outputs of the last layer, one row for each image, as float64; normalized by the running statistics."""
    w, b, *between, last_w, last_b, mean1, variance1, mean2, variance2 = parameters
    narrow = [handle.asarray(array.astype(recipe.kind)) for array in (images.reshape(-1, *IMAGE), w, b, last_w, last_b)]
    x, w, b, last_w, last_b = narrow
    x = dp.conv_forward(handle, CONVOLUTION, x, w, b, activation="relu")
    for (w, *scales), statistics in ((between[:3], (mean1, variance1)), (between[3:], (mean2, variance2))):
        x = dp.conv_forward(handle, CONVOLUTION, x, handle.asarray(w.astype(recipe.kind)))
        arrays = [handle.asarray(array.astype(recipe.state)) for array in (*scales, *statistics)]
        x = dp.batchnorm_forward_inference(handle, NORM, x, *arrays, activation="relu")
        x = dp.pooling_forward(handle, POOLING, x)
    outputs = dp.fc_forward(handle, x.reshape(len(images), -1), last_w, last_b)
    return np.asarray(handle.to_numpy(outputs)).astype(np.float64)
