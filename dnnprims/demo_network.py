"""The network of the demo: fully connected layers, a loss and an optimizer, written with the public names alone.

Every call of a training step writes into a buffer that was made once, so that the step can be captured as a CUDA
graph, and a captured step gives the same bits as one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import dnnprims as dp

WIDTHS = (64, 256, 128, 10)
CLASSES = WIDTHS[-1]
POOL = 2  # entries of a maxout unit
MOMENTUM = 0.9


class Recipe(NamedTuple):
    """How the network is built and trained."""

    activation: str
    loss: str
    dtype: str
    lr: float
    batch: int

    @property
    def kind(self) -> np.dtype:
        """NumPy's dtype of weights and activations."""
        return dp.TensorDescriptor((), self.dtype).dtype.numpy

    @property
    def state(self) -> np.dtype:
        """Of losses, velocities and statistics."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)


class Layer:
    """A fully connected layer with its activation: parameters, gradients, and buffers for one batch.

    Maxout has `POOL` entries for each unit, so its weights have that many rows for each output.
    """

    def __init__(
        self, handle: dp.Handle, w: np.ndarray, b: np.ndarray, activation: str | None, dtype: np.dtype, batch: int
    ) -> None:
        def buffer(*shape: int, dtype: Any = dtype) -> Any:
            return handle.asarray(np.zeros(shape, dtype))

        self.handle, self.pool = handle, POOL if activation == "maxout" else 0
        self.activation = None if self.pool else activation
        self.w, self.b = handle.asarray(w.astype(dtype)), handle.asarray(b.astype(dtype))
        self.dw, self.db = buffer(*w.shape), buffer(*b.shape)
        rows, units = w.shape[0], w.shape[0] // (self.pool or 1)
        self.y, self.dy = buffer(batch, units), buffer(batch, units)
        if self.pool:
            self.z, self.dz = buffer(batch, rows), buffer(batch, rows)
            self.which = buffer(batch, units, dtype=np.uint8)
        else:
            self.z, self.dz = self.y, self.dy
        self.weights, self.gradients = [self.w, self.b], [self.dw, self.db]

    def forward(self, x: Any) -> Any:
        """Fill `y` from x, and return it."""
        dp.fc_forward(self.handle, x, self.w, self.b, activation=self.activation, out=self.z)
        if self.pool:
            dp.maxout_forward(self.handle, self.z, self.pool, out=self.y, which=self.which)
        return self.y

    def backward(self, x: Any, dx: Any) -> None:
        """Fill `dw`, `db` and, unless it is None, `dx` from `dy`."""
        if self.pool:
            dp.maxout_backward(self.handle, self.dy, self.which, self.pool, out=self.dz)
        saved = {name: getattr(self, name) for name in dp.fc_backward_needs(self.activation)}
        needs = ("dw", "db") if dx is None else ("dx", "dw", "db")
        dp.fc_backward(
            self.handle,
            self.dz,
            x,
            self.w,
            activation=self.activation,
            needs=needs,
            dx=dx,
            dw=self.dw,
            db=self.db,
            **saved,
        )


class Network:
    """Layers in a row, a loss, and gradient descent with momentum; 16-bit weights keep float32 masters.

    Attributes
    ----------
    x, target : array
        The batch that the next step trains on.
    total_loss : array
        Sum of the losses of the steps since it was last set to 0.
    """

    image: tuple[int, ...] = WIDTHS[:1]

    def __init__(self, handle: dp.Handle, parameters: Sequence[np.ndarray], recipe: Recipe) -> None:
        def zeros(*shape: int, dtype: Any) -> Any:
            return handle.asarray(np.zeros(shape, dtype))

        kind, state = recipe.kind, recipe.state
        self.handle, self.lr = handle, recipe.lr
        self.loss = dp.LossDescriptor(recipe.loss, reduction="mean_samples")
        self.layers = self.make_layers(handle, parameters, recipe)
        self.x = zeros(recipe.batch, *self.image, dtype=kind)
        one_hot = recipe.loss == "mse"
        self.target = zeros(recipe.batch, CLASSES, dtype=kind) if one_hot else zeros(recipe.batch, dtype=np.int32)
        self.batch_loss, self.total_loss = zeros(dtype=state), zeros(dtype=state)
        self.weights = [array for layer in self.layers for array in layer.weights]
        self.gradients = [array for layer in self.layers for array in layer.gradients]
        trained = parameters[: len(self.weights)]
        self.velocities = [zeros(*array.shape, dtype=state) for array in trained]
        narrow = kind.itemsize == 2
        self.masters = [handle.asarray(array.astype(state)) for array in trained] if narrow else None

    def make_layers(self, handle: dp.Handle, parameters: Sequence[np.ndarray], recipe: Recipe) -> list[Any]:
        """From the images to the outputs."""
        layers = []
        for w, b in zip(parameters[::2], parameters[1::2], strict=True):
            activation = recipe.activation if b is not parameters[-1] else None
            layers.append(Layer(handle, w, b, activation, recipe.kind, recipe.batch))
        return layers

    def set_batch(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Copy a batch into the buffers that the step reads."""
        fill(self.x, images)
        fill(self.target, labels if self.target.ndim == 1 else np.eye(CLASSES)[labels])

    def step(self) -> None:
        """Train on the batch: calls of the library alone, each into a buffer that exists."""
        x = self.x
        for layer in self.layers:
            x = layer.forward(x)
        last = self.layers[-1]
        dp.loss_forward_backward(self.handle, self.loss, last.y, self.target, out=self.batch_loss, dprediction=last.dy)
        dp.add_tensor(self.handle, self.batch_loss, self.total_loss)
        for layer, below in pairwise(reversed(self.layers)):
            layer.backward(below.y, below.dy)
        self.layers[0].backward(self.x, None)
        dp.sgd_update(
            self.handle,
            self.weights,
            self.gradients,
            self.velocities,
            lr=self.lr,
            momentum=MOMENTUM,
            form="accumulate_step",
            masters=self.masters,
        )

    def parameters(self) -> list[np.ndarray]:
        """Copies of the weights at full precision, (w, b) of each layer in turn."""
        return [np.array(self.handle.to_numpy(array)) for array in self.masters or self.weights]


class CapturedStep:
    """A step as one CUDA graph. The first call is not captured, so that the capture neither compiles nor allocates."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step, self.calls = step, 0
        self.graph: Any = None

    def __call__(self) -> None:
        import cupy

        self.calls += 1
        if self.calls == 1:
            self.step()
            return
        stream = cupy.cuda.get_current_stream()
        if self.graph is None:
            stream.begin_capture()
            self.step()
            self.graph = stream.end_capture()
        self.graph.launch(stream)


def fill(buffer: Any, values: Any) -> None:
    """Copy NumPy values into an array of the backend, on CuPy's current stream."""
    values = np.ascontiguousarray(values, dtype=buffer.dtype).reshape(buffer.shape)
    if hasattr(buffer, "set"):
        buffer.set(values)
    else:
        buffer[...] = values


def initial_parameters(activation: str, seed: int) -> list[np.ndarray]:
    """Normal weights whose spread keeps that of the activations (He et al. 2015; Glorot & Bengio 2010), biases of 0."""
    gains = {"relu": 2.0, "maxout": 1.0, "tanh": 1.0, "sigmoid": 16.0}
    rng, parameters = np.random.default_rng(seed), []
    for inputs, outputs in pairwise(WIDTHS):
        last = outputs == WIDTHS[-1]
        rows = outputs * POOL if activation == "maxout" and not last else outputs
        deviation = math.sqrt((1.0 if last else gains[activation]) / inputs)
        parameters += [deviation * rng.standard_normal((rows, inputs)), np.zeros(rows)]
    return parameters


def predict(handle: dp.Handle, parameters: Sequence[np.ndarray], images: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Outputs of the last layer, one row for each image, as float64."""
    x, *arrays = (handle.asarray(array.astype(recipe.kind)) for array in (images, *parameters))
    for w, b in zip(arrays[::2], arrays[1::2], strict=True):
        activation = recipe.activation if b is not arrays[-1] else None
        pooled = activation == "maxout"
        x = dp.fc_forward(handle, x, w, b, activation=None if pooled else activation)
        if pooled:
            x, _ = dp.maxout_forward(handle, x, POOL)
    return np.asarray(handle.to_numpy(x)).astype(np.float64)
