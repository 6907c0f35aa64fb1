"""Maxout: hand values, ties and odd numbers, untrusted indices, gradient by central differences, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnnprims import BadParamError
from dnnprims.ops.maxout import maxout_backward, maxout_forward
from dnnprims.reference import maxout as reference

INF, NAN = float("inf"), float("nan")


def test_values_by_hand(handle: Any) -> None:
    """Two units of three entries each."""
    x = handle.asarray(np.array([[1.0, 5.0, 3.0, -2.0, -4.0, -1.0]], np.float32))
    y, which = maxout_forward(handle, x, 3)
    assert handle.to_numpy(y).tolist() == [[5.0, -1.0]]
    assert handle.to_numpy(which).tolist() == [[1, 2]]
    dx = maxout_backward(handle, y, which, 3)
    assert handle.to_numpy(dx).tolist() == [[0.0, 5.0, 0.0, 0.0, 0.0, -1.0]]


def test_axis_in_front(handle: Any) -> None:
    """The entries of a unit are neighbours along the axis, not in memory."""
    x = np.arange(12, dtype=np.float64).reshape(4, 3) % 5
    y, which = maxout_forward(handle, handle.asarray(x), 2, axis=0)
    assert handle.to_numpy(y).tolist() == [[3.0, 4.0, 2.0], [4.0, 2.0, 3.0]]
    assert handle.to_numpy(which).tolist() == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("pool", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_first_maximum_and_first_nan_win(handle: Any, pool: int, axis: int) -> None:
    """On every variant: all equal, all -inf, a NaN between numbers, two NaNs."""
    groups = np.zeros((4, pool), np.float32)
    groups[1] = -INF
    groups[2, -1], groups[3] = NAN, INF
    groups[3, -2:] = NAN
    x = groups.reshape(1, -1) if axis else groups.reshape(-1, 1)
    y, which = maxout_forward(handle, handle.asarray(x), pool, axis=axis)
    assert handle.to_numpy(which).ravel().tolist() == [0, 0, pool - 1, pool - 2]
    assert np.array_equal(handle.to_numpy(y).ravel(), [0.0, -INF, NAN, NAN], equal_nan=True)


@pytest.mark.parametrize(("pool", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_indices_take_the_smallest_type(handle: Any, pool: int, dtype: type) -> None:
    """uint8 holds the indices 0 to 255."""
    x = handle.asarray(np.arange(2 * pool, dtype=np.float32))
    _, which = maxout_forward(handle, x, pool)
    assert which.dtype == dtype
    assert handle.to_numpy(which).tolist() == [pool - 1, pool - 1]


def test_index_out_of_range_has_no_gradient(handle: Any) -> None:
    """On the host it is refused; on a device it yields 0 and is reported by `check`, once."""
    dy = handle.asarray(np.ones(3, np.float32))
    which = handle.asarray(np.array([0, 7, 1], np.uint8))
    if handle.backend == "numpy":
        with pytest.raises(BadParamError, match="which has an index out of range: got 7"):
            maxout_backward(handle, dy, which, 2)
        return
    dx = maxout_backward(handle, dy, which, 2)
    assert handle.to_numpy(dx).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(BadParamError, match="which has an index out of range"):
        handle.check()
    handle.check()


def test_gradient_by_central_differences() -> None:
    """Linear where no two entries tie."""
    rng = np.random.default_rng(2)
    x, dy, direction = rng.standard_normal((5, 12)), rng.standard_normal((5, 4)), rng.standard_normal((5, 12))
    _, which = reference.maxout_forward(x, 3)
    h = 2.0**-20
    ahead, behind = (reference.maxout_forward(x + s * direction, 3)[0] for s in (h, -h))
    measured = float((dy * (ahead - behind)).sum()) / (2 * h)
    dx = reference.maxout_backward(dy, which, 3)
    assert measured == pytest.approx(float((dx * direction).sum()), rel=2.0**-24)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"pool_size": 4}, "x.shape[1]"),
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": 2.0}, "pool_size"),
        ({"pool_size": True}, "pool_size"),
        ({"axis": 2}, "axis"),
        ({"x": np.ones((2, 6), np.int64)}, "x"),
        ({"x": np.ones((), np.float32)}, "axis"),
        ({"out": np.ones((2, 6), np.float32)}, "out"),
        ({"which": np.ones((2, 2), np.int32)}, "which"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"x": np.ones((2, 6), np.float32), "pool_size": 3, **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^maxout_forward: ") as caught:
        maxout_forward(handle, **{**call, **arrays})
    assert caught.value.param == param


def test_backward_refusals(handle: Any) -> None:
    """Indices of another shape or type, a destination that overlaps, a blend with nothing."""
    dy, which = handle.asarray(np.ones(4, np.float32)), handle.asarray(np.zeros(4, np.uint8))
    for wrong, param in ((handle.asarray(np.zeros(3, np.uint8)), "which"), (dy, "which")):
        with pytest.raises(BadParamError) as caught:
            maxout_backward(handle, dy, wrong, 2)
        assert caught.value.param == param
    room = handle.asarray(np.ones(8, np.float32))
    with pytest.raises(BadParamError, match="overlaps"):
        maxout_backward(handle, room[:4], which, 2, out=room)
    with pytest.raises(BadParamError, match="out is missing"):
        maxout_backward(handle, dy, which, 2, beta=1.0)
