"""A layer of a home-made framework: what its forward pass keeps, its backward pass, and its update.

``python examples/layer.py`` trains two of them on points in the plane whose coordinates have equal or opposite signs
(the exclusive or), which no single layer can tell apart. It runs on the GPU if there is one, else on NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import dnnprims as dp

BATCH, HIDDEN, STEPS = 256, 16, 300


class Dense:
    """``y = act(x w^T + b)`` for batches of one size."""

    def __init__(self, handle: dp.Handle, inputs: int, outputs: int, activation: str = "identity") -> None:
        rng = np.random.default_rng(outputs)
        w = rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        self.handle, self.activation = handle, activation
        self.w = handle.asarray(w.astype(np.float32))
        self.b = handle.asarray(np.zeros(outputs, np.float32))
        # "y", "aux" (what the activation is applied to) or neither: asked, so that any activation will do.
        self.needs = dp.fc_backward_needs(activation)
        self.aux = handle.asarray(np.zeros((BATCH, outputs), np.float32)) if "aux" in self.needs else None

    def forward(self, x: Any) -> Any:
        """Compute y, and keep what `backward` will ask for."""
        y = dp.fc_forward(self.handle, x, self.w, self.b, activation=self.activation, aux=self.aux)
        self.x, self.kept = x, {name: {"y": y, "aux": self.aux}[name] for name in self.needs}
        return y

    def backward(self, dy: Any) -> Any:
        """Compute the gradients of the parameters, and return that of x."""
        dx, self.dw, self.db = dp.fc_backward(self.handle, dy, self.x, self.w, activation=self.activation, **self.kept)
        return dx


def train(handle: dp.Handle, points: Any, labels: Any) -> float:
    """Train two layers on one batch, print the loss now and then, and return the share of points told apart."""
    layers = [Dense(handle, 2, HIDDEN, "gelu"), Dense(handle, HIDDEN, 2)]
    for step in range(STEPS + 1):
        y = points
        for layer in layers:
            y = layer.forward(y)
        loss, dy = dp.loss_forward_backward(handle, "cross_entropy", y, labels)
        if step % 100 == 0:
            print(f"step {step:3d}  loss {float(handle.to_numpy(loss)):.4f}")
        for layer in reversed(layers):
            dy = layer.backward(dy)
        weights = [array for layer in layers for array in (layer.w, layer.b)]
        gradients = [array for layer in layers for array in (layer.dw, layer.db)]
        dp.sgd_update(handle, weights, gradients, lr=0.5)  # all arrays in one launch
    guesses = handle.to_numpy(y).argmax(axis=1)
    return float((guesses == handle.to_numpy(labels)).mean())


def main() -> None:
    """Draw the points and train on them."""
    points = np.random.default_rng(0).uniform(-1, 1, (BATCH, 2)).astype(np.float32)
    labels = (points[:, 0] * points[:, 1] > 0).astype(np.int32)
    with dp.create_handle() as handle:
        print(f"backend {handle.backend}")
        print(f"right: {train(handle, handle.asarray(points), handle.asarray(labels)):.1%}")


if __name__ == "__main__":
    main()
