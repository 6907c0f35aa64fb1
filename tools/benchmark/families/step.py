"""A whole training step of a classifier: three layers, cross-entropy, SGD with momentum; captured, and call by call.

Captured, the weights of a layer are updated on a second stream beside the gradients of those below it. Call by call
all of them are updated in one call, which costs the host least. NVIDIA H200, 2026-11-28, bfloat16, widths
784-2048-2048-10, microseconds of a graph with one update / with updates beside / with the gradients of the second
layer's weights beside, too: batch 128 74 / 69.4 / 71.1, 1024 114 / 110.9 / 109.7, 8192 482 to 490 / 480 / 487.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.conformance.bounds import accumulator
from dnnprims.conformance.cases import Problem, wide

from ..arrays import Arrays
from ..case import Case, Part
from ..check import relative_error
from . import Family, itemsize

LR, MOMENTUM = 0.01, 0.9
#: Units of a layer whose gradients are checked, and how near to the kink of relu the last bits of a product may decide
#: on which side it lies: float32 errs by about 1e-6 in sums of 2,048 products of this size.
SAMPLE, NEAR = 64, 4e-6


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
        beside = arrays.on_gpu and problem.word("captured") == "graph"
        self.updates = Beside(self._update) if beside else None

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
            if self.updates:
                self.updates.start(slice(2 * i, 2 * i + 2))
        if self.updates:
            self.updates.join()
        else:
            self._update(slice(None))
        return self.value, self.gradients

    def _update(self, some: slice) -> None:
        lists = self.weights[some], self.gradients[some], self.velocities[some]
        dp.sgd_update(self.handle, *lists, lr=LR, momentum=MOMENTUM)


class Beside:
    """What runs on a stream of its own, each piece after all that was enqueued before it on the current one."""

    def __init__(self, piece: Callable[[slice], None]) -> None:
        import cupy

        self.piece, self.stream = piece, cupy.cuda.Stream(non_blocking=True)
        self._cuda = cupy.cuda

    def start(self, some: slice) -> None:
        """Enqueue a piece; the handle follows CuPy's current stream."""
        self.stream.wait_event(self._recorded(self._cuda.get_current_stream()))
        with self.stream:
            self.piece(some)

    def join(self) -> None:
        """Let the current stream wait for the pieces."""
        self._cuda.get_current_stream().wait_event(self._recorded(self.stream))

    def _recorded(self, stream: Any) -> Any:
        event = self._cuda.Event(disable_timing=True)
        event.record(stream)
        return event


def make(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Three products for each layer but the first, which needs no dx."""
    network, sizes, batch = Network(problem, arrays, handle), widths(problem), problem.integer("batch")
    before = [arrays.host(w) for w in network.weights]
    products = sum((6 if i else 4) * k * n for i, (k, n) in enumerate(pairwise(sizes)))
    parameters = sum(w.size for w in network.weights)
    width = itemsize(problem.dtype)
    activity = batch * (sizes[0] * 2 + sum(sizes[1:]) * 4)
    expected, slack = _expect(arrays, network, before)
    return Case(
        problem,
        {"x": network.x, "labels": network.labels, "weights": [arrays.copy(w) for w in network.weights]},
        {},
        {"loss": network.value, "gradients": network.gradients},
        [Part({"loss": lambda a: a, "gradients": _few}, expect=lambda: expected)],
        nbytes=width * (activity + 6 * parameters) + 8 * parameters,
        flops=batch * products,
        terms=max(*sizes, batch),
        call=network.step,
        captured=True,
        slack=slack,
        clock="device" if problem.word("captured") == "graph" else "wall",
    )


def _expect(arrays: Arrays, network: Network, before: list[Any]) -> tuple[dict[str, Any], float]:
    """The same step in float64 with NumPy: loss, and gradients; and how much these depend on what lies near a kink."""
    weights = [wide(w) for w in before]
    values, sums, labels = [wide(arrays.host(network.x))], [], arrays.host(network.labels)
    last = len(weights) // 2 - 1
    for i in range(last + 1):
        sums.append(values[-1] @ weights[2 * i].T + weights[2 * i + 1])
        values.append(np.maximum(sums[-1], 0.0) if i < last else sums[-1])
    logits = values[-1] - values[-1].max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = (np.arange(len(labels)), labels)
    dz = np.exp(log_p)
    dz[places] -= 1.0
    dz /= len(labels)
    few, many = (_gradients(dz, weights, values, sums, kink) for kink in (NEAR, -NEAR))
    expected = {"loss": -log_p[places].mean(), "gradients": _gradients(dz, weights, values, sums, 0.0)}
    return expected, relative_error(few, many)


def _gradients(dz: Any, weights: list[Any], values: list[Any], sums: list[Any], kink: float) -> list[Any]:
    """Of weights and biases, with relu's kink at `kink`."""
    gradients = []
    for i in range(len(sums) - 1, -1, -1):
        gradients += [dz.sum(axis=0), dz.T @ values[i]]
        dz = (dz @ weights[2 * i]) * (sums[i - 1] > kink) if i else dz
    return _few(gradients[::-1])


def _few(tensors: list[Any]) -> list[Any]:
    return [a[:SAMPLE] for a in tensors]


FAMILY = Family("step", lines, {"training_step": make})
