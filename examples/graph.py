"""A training step of prepared plans, captured once as a CUDA graph and replayed.

``python examples/graph.py`` fits a sine. Each call is checked and planned once by `prepare` and writes into memory made
beforehand: the step neither allocates nor waits, so a stream can be captured. Without a GPU it runs on NumPy, eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import dnnprims as dp

BATCH, HIDDEN, STEPS = 256, 64, 1000


def make_step(handle: dp.Handle) -> tuple[Callable[[], None], Any]:
    """Return a step of gradient descent for ``y = w2 tanh(w1 x + b1)``, and the array that receives its loss."""

    def zeros(*shape: int) -> Any:
        return handle.asarray(np.zeros(shape, np.float32))

    rng, angles = np.random.default_rng(0), np.linspace(-np.pi, np.pi, BATCH, dtype=np.float32)[:, None]
    x, target = handle.asarray(angles), handle.asarray(np.sin(angles))
    w1 = handle.asarray(rng.standard_normal((HIDDEN, 1), dtype=np.float32))
    w2 = handle.asarray(rng.standard_normal((1, HIDDEN), dtype=np.float32) / 8)
    b1, h, y, loss = zeros(HIDDEN), zeros(BATCH, HIDDEN), zeros(BATCH, 1), zeros()
    dy, dh, dw1, db1, dw2 = zeros(BATCH, 1), zeros(BATCH, HIDDEN), zeros(HIDDEN, 1), zeros(HIDDEN), zeros(1, HIDDEN)

    first = dp.prepare(dp.fc_forward, handle, x, w1, b1, activation="tanh", out=h)
    second = dp.prepare(dp.fc_forward, handle, h, w2, out=y)
    compare = dp.prepare(dp.loss_forward_backward, handle, "mse", y, target, out=loss, dprediction=dy)
    behind_second = dp.prepare(dp.fc_backward, handle, dy, h, w2, needs=("dx", "dw"), dx=dh, dw=dw2)
    options = {"activation": "tanh", "needs": ("dw", "db")}
    behind_first = dp.prepare(dp.fc_backward, handle, dh, x, w1, y=h, dw=dw1, db=db1, **options)
    update = dp.prepare(dp.sgd_update, handle, [w1, b1, w2], [dw1, db1, dw2], lr=0.02)

    def step() -> None:
        first(x, w1, b1, out=h)  # any arrays of the shapes and dtypes planned for
        second(h, w2, out=y)
        compare(y, target, out=loss, dprediction=dy)
        behind_second(dy, h, w2, dx=dh, dw=dw2)
        behind_first(dh, x, w1, y=h, dw=dw1, db=db1)
        update([w1, b1, w2], [dw1, db1, dw2])

    return step, loss


def train(handle: dp.Handle, stream: Any = None) -> str:
    """Fit, eagerly or, on this stream, by a graph of the step; return the loss."""
    step, loss = make_step(handle)
    step()  # not captured: a first call makes the stream's workspace
    if stream is not None:
        stream.begin_capture()
        step()  # recorded, not run
        graph = stream.end_capture()
    for _ in range(STEPS - 1):
        step() if stream is None else graph.launch(stream)
    return f"loss {float(handle.to_numpy(loss)):.6f} after {STEPS} steps"


if __name__ == "__main__":
    with dp.create_handle() as handle:
        print(f"eagerly on {handle.backend}: {train(handle)}")
        if handle.backend == "cuda":
            import cupy

            with cupy.cuda.Stream(non_blocking=True) as stream:  # the handle follows CuPy's current stream
                print(f"as a CUDA graph: {train(handle, stream)}")
        else:
            print("no GPU in use, so there is no CUDA graph to capture")
