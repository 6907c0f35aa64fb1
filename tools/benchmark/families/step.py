"""A whole training step of a classifier: three layers, cross-entropy, SGD with momentum; captured, and call by call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.conformance.bounds import accumulator
from dnnprims.conformance.cases import Problem, wide

from ..arrays import Arrays
from ..case import Case, Part
from . import Family, itemsize

LR, MOMENTUM = 0.01, 0.9
#: Units of a layer whose gradients are checked. No sample may lie so near to the kink of relu that the last bits of the
#: products decide on which side: a single one more or less would be 1 / batch of a unit's gradient.
SAMPLE, NEAR = 64, 1e-5


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`widths` of the layers; the same step captured as one CUDA graph and not."""
    network = "-".join(map(str, shapes["widths"]))
    for dtype in dtypes:
        for batch in shapes["batches"]:
            for how in ("graph", "eager"):
                yield f"training_step captured={how} widths={network} batch={batch} dtype={dtype}"


def widths(problem: Problem) -> list[int]:
    """Inputs, and outputs of each layer."""
    return [int(width) for width in problem.word("widths").split("-")]


class Network:
    """Parameters, gradients and buffers of the step, each made once."""

    def __init__(self, problem: Problem, arrays: Arrays, handle: dp.Handle) -> None:
        self.handle, dtype, batch = handle, problem.dtype, problem.integer("batch")
        sizes, state = widths(problem), accumulator(problem.dtype)
        self.x = arrays.normal((batch, sizes[0]), dtype, tag="x")
        self.labels = arrays.integers(batch, sizes[-1], "int64", tag="labels")
        self.weights, self.gradients, self.velocities = [], [], []
        for k, n in pairwise(sizes):
            for shape, scale in (((n, k), (2.0 / k) ** 0.5), ((n,), 0.1)):
                self.weights.append(arrays.copy(arrays.normal(shape, dtype, scale=scale, tag="parameter")))
                self.gradients.append(arrays.zeros(shape, dtype))
                self.velocities.append(arrays.zeros(shape, state))
        self.y = [arrays.zeros((batch, n), dtype) for n in sizes[1:]]
        self.dy = [arrays.zeros((batch, n), dtype) for n in sizes[1:]]
        self.value = arrays.zeros((), state)
        self.loss = dp.LossDescriptor("cross_entropy", reduction="mean_elements")

    def step(self) -> tuple[Any, list[Any]]:
        """Forward, loss, backward, update; every call writes into a buffer that exists."""
        handle, last = self.handle, len(self.y) - 1
        x = self.x
        for i, y in enumerate(self.y):
            w, b = self.weights[2 * i : 2 * i + 2]
            x = dp.fc_forward(handle, x, w, b, activation="relu" if i < last else None, out=y)
        dp.loss_forward_backward(handle, self.loss, x, self.labels, out=self.value, dprediction=self.dy[last])
        for i in range(last, -1, -1):
            below, dx = (self.y[i - 1], self.dy[i - 1]) if i else (self.x, None)
            dw, db = self.gradients[2 * i : 2 * i + 2]
            dp.fc_backward(
                handle,
                self.dy[i],
                below,
                self.weights[2 * i],
                activation="relu" if i < last else None,
                y=self.y[i] if i < last else None,
                needs=("dx", "dw", "db") if i else ("dw", "db"),
                dx=dx,
                dw=dw,
                db=db,
            )
        dp.sgd_update(handle, self.weights, self.gradients, self.velocities, lr=LR, momentum=MOMENTUM)
        return self.value, self.gradients


def make(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Three products for each layer but the first, which needs no dx."""
    network, sizes, batch = Network(problem, arrays, handle), widths(problem), problem.integer("batch")
    before = [arrays.host(w) for w in network.weights]
    products = sum((6 if i else 4) * k * n for i, (k, n) in enumerate(pairwise(sizes)))
    parameters = sum(w.size for w in network.weights)
    width = itemsize(problem.dtype)
    activity = batch * (sizes[0] * 2 + sum(sizes[1:]) * 4)
    expected, units = _expect(arrays, network, before)
    return Case(
        problem,
        {"x": network.x, "labels": network.labels, "weights": [arrays.copy(w) for w in network.weights]},
        {},
        {"loss": network.value, "gradients": network.gradients},
        [Part({"loss": lambda a: a, "gradients": partial(_few, units)}, expect=lambda: expected)],
        nbytes=width * (activity + 6 * parameters) + 8 * parameters,
        flops=batch * products,
        terms=max(*sizes, batch),
        call=network.step,
        captured=True,
        clock="device" if problem.word("captured") == "graph" else "wall",
    )


def _expect(arrays: Arrays, network: Network, before: list[Any]) -> tuple[dict[str, Any], list[list[int]]]:
    """The same step in float64 with NumPy: loss, and gradients of some units, which are named for each layer."""
    weights = [wide(w) for w in before]
    values, labels = [wide(arrays.host(network.x))], arrays.host(network.labels)
    last, units = len(weights) // 2 - 1, []
    for i in range(last + 1):
        z = values[-1] @ weights[2 * i].T + weights[2 * i + 1]
        clear = np.flatnonzero(np.abs(z).min(axis=0) > NEAR) if i < last else np.arange(z.shape[1])
        units.append([int(unit) for unit in clear[:SAMPLE]])
        values.append(np.maximum(z, 0.0) if i < last else z)
    logits = values[-1] - values[-1].max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = (np.arange(len(labels)), labels)
    dz, gradients = np.exp(log_p), []
    dz[places] -= 1.0
    dz /= len(labels)
    for i in range(last, -1, -1):
        gradients += [dz.sum(axis=0), dz.T @ values[i]]
        dz = (dz @ weights[2 * i]) * (values[i] > 0.0) if i else dz
    return {"loss": -log_p[places].mean(), "gradients": _few(units, gradients[::-1])}, units


def _few(units: list[list[int]], tensors: list[Any]) -> list[Any]:
    """Weights and biases of the units chosen, layer by layer."""
    return [a[units[i // 2]] for i, a in enumerate(tensors)]


FAMILY = Family("step", lines, {"training_step": make})
