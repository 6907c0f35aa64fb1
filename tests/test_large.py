"""More elements than 32 bits can count: offsets and the grid's stride are 64-bit. Slow, and for a GPU with much memory.

Every tensor has 2^31 + 4,099 elements or a little more, of 16 bits where the primitive allows it. The head, the tail
and the neighbourhood of element 2^31, where a 32-bit index would wrap, are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims.runtime.cuda import gpu_works

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not gpu_works(), reason="no NVIDIA GPU here"),
]

SIZE = 2**31 + 4_099
PLACES = (0, 2**31 - 2_048, SIZE - 2_048)
COLS = 1024
ROWS = 2**31 // COLS + 5


@pytest.fixture
def handle() -> Iterator[dp.Handle]:
    import cupy

    with dp.create_handle("cuda") as made:
        yield made
    cupy.get_default_memory_pool().free_all_blocks()


def ramp(size: int, dtype: Any = np.float16) -> Any:
    """Small numbers whose pattern has no period that a power of two divides."""
    import cupy

    x = cupy.empty(size, dtype)
    for start in range(0, size, 1 << 28):
        stop = min(size, start + (1 << 28))
        x[start:stop] = (cupy.arange(start, stop, dtype=np.int64) % 1009 - 504).astype(dtype) / 64
    return x


def windows(*arrays: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """The same places of each array, on the host."""
    for start in PLACES:
        yield tuple(np.asarray(a[start : start + 2_048].get()) for a in arrays)


def test_activation(handle: dp.Handle) -> None:
    x = ramp(SIZE)
    y = dp.activation_forward(handle, "leaky_relu", x)
    dx = dp.activation_backward(handle, "leaky_relu", y, x=x)
    for xs, ys, dxs in windows(x, y, dx):
        expected = np.where(xs > 0, xs.astype(np.float64), xs * np.float64(np.float32(0.01)))
        np.testing.assert_array_equal(ys, expected.astype(np.float16))
        np.testing.assert_array_equal(dxs[xs > 0], ys[xs > 0])


def test_strided_activation(handle: dp.Handle) -> None:
    x = ramp(2 * SIZE)[::2]
    y = dp.activation_forward(handle, "abs", x)
    for xs, ys in windows(x, y):
        np.testing.assert_array_equal(ys, np.abs(xs))


def test_tensor_operations(handle: dp.Handle) -> None:
    x = ramp(SIZE)
    y = dp.cast(handle, x, "float32")
    dp.scale_tensor(handle, y, 2.0)
    dp.add_tensor(handle, y, y.copy(), alpha=-1.0, beta=1.0)
    for xs, ys in windows(x, y):
        np.testing.assert_array_equal(ys, 2.0 * xs.astype(np.float32))
    dp.set_tensor(handle, x, 3.0)
    for (xs,) in windows(x):
        np.testing.assert_array_equal(xs, 3)


def test_reductions(handle: dp.Handle) -> None:
    x = ramp(SIZE)
    x[SIZE - 3] = 100
    assert int(dp.reduce_tensor(handle, x, "argmax").get()) == SIZE - 3
    assert float(dp.reduce_tensor(handle, x, "max").get()) == 100
    rows = ramp(ROWS * COLS).reshape(ROWS, COLS)
    sums = dp.reduce_tensor(handle, rows, "max", axis=1).get()
    for row in (0, ROWS // 2, ROWS - 1):
        assert sums[row] == rows[row].get().max()


@pytest.mark.parametrize("algorithm", ["accurate", "log"])
def test_softmax(handle: dp.Handle, algorithm: str) -> None:
    x = ramp(ROWS * COLS).reshape(ROWS, COLS)
    y = dp.softmax_forward(handle, x, algorithm=algorithm)
    dx = dp.softmax_backward(handle, x, y, algorithm=algorithm)
    few = slice(ROWS - 8, ROWS)
    for rows in (slice(0, 8), slice(ROWS - 12, ROWS - 4), few):
        head = np.ascontiguousarray(x[rows].get())
        with dp.create_handle("numpy") as numpy_handle:
            expected = dp.softmax_forward(numpy_handle, head, algorithm=algorithm)
            slope = dp.softmax_backward(numpy_handle, head, expected, algorithm=algorithm)
        again = dp.softmax_forward(handle, x[rows].copy(), algorithm=algorithm)
        np.testing.assert_array_equal(y[rows].get(), again.get())
        small = dp.softmax_backward(handle, x[rows].copy(), again, algorithm=algorithm)
        np.testing.assert_array_equal(dx[rows].get(), small.get())
        assert expected.shape == slope.shape == head.shape


def test_strided_softmax(handle: dp.Handle) -> None:
    x = (
        ramp(ROWS * COLS).reshape(ROWS // 5, 5, COLS)
        if ROWS % 5 == 0
        else ramp(5 * 429_497 * COLS).reshape(-1, 5, COLS)
    )
    y = dp.softmax_forward(handle, x, axis=1)
    last = dp.softmax_forward(handle, x[-3:].copy(), axis=1)
    np.testing.assert_array_equal(y[-3:].get(), last.get())


def test_losses(handle: dp.Handle) -> None:
    import cupy

    x = ramp(ROWS * COLS).reshape(ROWS, COLS)
    labels = (cupy.arange(ROWS) * 7 % COLS).astype(np.int32)
    loss = dp.LossDescriptor("cross_entropy", reduction="none")
    losses, dx = dp.loss_forward_backward(handle, loss, x, labels)
    few, slope = dp.loss_forward_backward(handle, loss, x[-9:].copy(), labels[-9:].copy())
    np.testing.assert_array_equal(losses[-9:].get(), few.get())
    np.testing.assert_array_equal(dx[-9:].get(), slope.get())
    del losses, dx
    mse = dp.loss_forward(handle, dp.LossDescriptor("mse", reduction="mean_elements"), x, x)
    assert float(mse.get()) == 0.0


def test_gated(handle: dp.Handle) -> None:
    x = ramp(SIZE + 1)
    y, which = dp.maxout_forward(handle, x, 4)
    for start in (0, SIZE // 4 - 512):
        xs = x[4 * start : 4 * (start + 512)].get().reshape(-1, 4)
        np.testing.assert_array_equal(y[start : start + 512].get(), xs.max(axis=1))
        np.testing.assert_array_equal(which[start : start + 512].get(), xs.argmax(axis=1))
    z = dp.prelu_forward(handle, x, handle.asarray(np.full((), 0.5, np.float16)))
    for xs, zs in windows(x, z):
        np.testing.assert_array_equal(zs, np.where(xs > 0, xs, xs * np.float16(0.5)))
    dz = dp.glu_forward(handle, x, gate="relu")
    half = (SIZE + 1) // 2
    tail = x[half - 512 : half].get().astype(np.float32) * np.maximum(x[-512:].get().astype(np.float32), 0)
    np.testing.assert_array_equal(dz[-512:].get(), tail.astype(np.float16))


def test_optimizer(handle: dp.Handle) -> None:
    w, g = ramp(SIZE), ramp(SIZE)
    before = list(windows(w, g))
    dp.sgd_update(handle, [w], [g], lr=0.5)
    for (ws, gs), (new,) in zip(before, windows(w), strict=True):
        exact = ws.astype(np.float64) - 0.5 * gs.astype(np.float64)
        np.testing.assert_array_equal(new, exact.astype(np.float16))


def test_fully_connected_with_more_results_than_32_bits(handle: dp.Handle) -> None:
    """A product of rank 8 on small integers is exact, and its last rows lie beyond 2^31."""
    import cupy

    rng = np.random.default_rng(0)
    n = 4096
    m = 2**31 // n + 17
    x = cupy.asarray(rng.integers(-2, 3, (m, 8)).astype(np.float16))
    w, b = (cupy.asarray(rng.integers(-2, 3, shape).astype(np.float16)) for shape in ((n, 8), (n,)))
    y = dp.fc_forward(handle, x, w, b, activation="relu")
    db = dp.fc_backward_bias(handle, y)
    tail = np.maximum(x[-5:].get().astype(np.float64) @ w.get().astype(np.float64).T + b.get(), 0)
    np.testing.assert_array_equal(y[-5:].get(), tail)
    sums = cupy.zeros(n)
    for start in range(0, m, 65536):
        sums += y[start : start + 65536].astype(np.float64).sum(axis=0)
    from dnnprims.conformance import bounds

    limit = bounds.sum_bound(m, sums.get(), "float16", sums.get())
    got = db.get().astype(np.float64)
    finite = np.isfinite(got)
    assert (np.abs(got - sums.get())[finite] <= limit[finite]).all()
    assert (sums.get()[~finite] > bounds.largest_finite("float16")).all()
