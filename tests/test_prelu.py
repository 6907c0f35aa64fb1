"""Parametric ReLU: hand values, kinks and odd numbers, gradients by central differences, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnnprims import BadParamError, TensorDescriptor, supports
from dnnprims.ops.prelu import plan_prelu_backward, prelu_backward, prelu_forward
from dnnprims.reference import prelu as reference
from dnnprims.runtime.launch import Profile

INF, NAN = float("inf"), float("nan")


def test_values_by_hand(handle: Any) -> None:
    """One slope for each channel, on axis 1 by default."""
    x = handle.asarray(np.array([[1.0, -2.0], [-3.0, 4.0]], np.float32))
    slope = handle.asarray(np.array([0.5, 0.25], np.float32))
    y = prelu_forward(handle, x, slope)
    assert handle.to_numpy(y).tolist() == [[1.0, -0.5], [-1.5, 4.0]]
    dx, dslope = prelu_backward(handle, x, x, slope)
    assert handle.to_numpy(dx).tolist() == [[1.0, -0.5], [-1.5, 4.0]]
    assert handle.to_numpy(dslope).tolist() == [9.0, 4.0]


def test_axis_names_the_channels(handle: Any) -> None:
    """The same data with the channels first."""
    x = np.array([[1.0, -2.0], [-3.0, 4.0]], np.float64)
    slope = handle.asarray(np.array([0.5, 0.25]))
    y = prelu_forward(handle, handle.asarray(x), slope, axis=0)
    assert handle.to_numpy(y).tolist() == [[1.0, -1.0], [-0.75, 4.0]]
    assert np.array_equal(handle.to_numpy(prelu_forward(handle, handle.asarray(x), slope, axis=-2)), handle.to_numpy(y))


def test_plans_say_why_they_do_not_go_by_columns() -> None:
    """Only where they do not: one channel, or a long inner extent."""
    profile, slope = Profile("emulator"), TensorDescriptor((8,), "float32")
    for shape, reasons in (
        ((300, 8), ()),
        ((3, 8, 128), ("inner = 128 >= 64",)),
        ((300, 8, 3), ()),
        ((301, 8, 1001), ("inner = 1001 >= 64", "inner is no multiple of 4")),
    ):
        x = TensorDescriptor(shape, "float32")
        spec = plan_prelu_backward(profile, 1, ("dx", "dslope"), x, x, slope, None, None)
        assert tuple(reason for _, reason in spec.refused) == reasons
        assert spec.variant.endswith("rows" if reasons else "columns")


def test_odd_numbers(handle: Any) -> None:
    """NaN goes through, infinities by the rule, a slope of 0 is relu even at -inf, 0 belongs to the slope's side."""
    x = handle.asarray(np.array([NAN, INF, -INF, 0.0], np.float32))
    scaled = prelu_forward(handle, x, handle.asarray(np.array([0.5], np.float32)))
    assert np.array_equal(handle.to_numpy(scaled), [NAN, INF, -INF, 0.0], equal_nan=True)
    shut = prelu_forward(handle, x, handle.asarray(np.zeros((), np.float32)))
    assert np.array_equal(handle.to_numpy(shut), [NAN, INF, 0.0, 0.0], equal_nan=True)
    ones = handle.asarray(np.ones(4, np.float32))
    dx, _ = prelu_backward(handle, ones, x, handle.asarray(np.array([0.5], np.float32)), needs=("dx",))
    assert np.array_equal(handle.to_numpy(dx), [NAN, 1.0, 0.5, 0.5], equal_nan=True)


def test_empty_batch_has_no_slope_gradient(handle: Any) -> None:
    """The sum over nothing is 0, not what the memory held before."""
    x, slope = handle.asarray(np.zeros((0, 3), np.float32)), handle.asarray(np.ones(3, np.float32))
    _, dslope = prelu_backward(handle, x, x, slope, dslope=handle.asarray(np.full(3, NAN, np.float32)))
    assert handle.to_numpy(dslope).tolist() == [0.0, 0.0, 0.0]


def test_needs_select_the_gradients(handle: Any) -> None:
    """What is not asked for is None; the rest does not depend on it."""
    rng = np.random.default_rng(0)
    x, dy = (handle.asarray(rng.standard_normal((6, 5)).astype(np.float32)) for _ in range(2))
    slope = handle.asarray(rng.standard_normal(5).astype(np.float32))
    dx, dslope = prelu_backward(handle, dy, x, slope)
    alone_dx, none = prelu_backward(handle, dy, x, slope, needs=("dx",))
    assert none is None
    assert np.array_equal(handle.to_numpy(dx), handle.to_numpy(alone_dx))
    none, alone_dslope = prelu_backward(handle, dy, x, slope, needs=["dslope"])
    assert none is None
    assert np.array_equal(handle.to_numpy(dslope), handle.to_numpy(alone_dslope))


@pytest.mark.parametrize("extent", [(), (1,), (3,)])
def test_gradients_by_central_differences(extent: tuple[int, ...]) -> None:
    """The function is linear between kinks, so that the differences are exact to rounding."""
    rng = np.random.default_rng(1)
    x, dy, slope = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 3, 2)), rng.standard_normal(extent)
    dx, dslope = reference.prelu_backward(dy, x, slope)

    def loss(x: Any, slope: Any) -> float:
        return float((dy * reference.prelu_forward(x, slope)).sum())

    for gradient, at in ((dx, x), (dslope, slope)):
        direction = rng.standard_normal(at.shape)
        h = 2.0**-20
        ahead = (x + h * direction, slope) if at is x else (x, slope + h * direction)
        behind = (x - h * direction, slope) if at is x else (x, slope - h * direction)
        measured = (loss(*ahead) - loss(*behind)) / (2 * h)
        assert measured == pytest.approx(float((gradient * direction).sum()), rel=2.0**-24)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"slope": np.ones(4, np.float32)}, "slope"),
        ({"slope": np.ones(3, np.float64)}, "slope"),
        ({"x": np.ones((2, 3), np.int32)}, "x"),
        ({"x": np.ones((3, 2), np.float32).T}, "x"),
        ({"axis": 2}, "axis"),
        ({"axis": 1.0}, "axis"),
        ({"beta": 1.0}, "out"),
        ({"alpha": NAN}, "alpha"),
        ({"out": np.ones((2, 2), np.float32)}, "out"),
        ({"out": np.ones((2, 3), np.float64)}, "out"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"x": np.ones((2, 3), np.float32), "slope": np.ones(3, np.float32), **change}
    if handle.backend == "cuda" and "x" in change:
        pytest.skip("a transposed NumPy array arrives contiguous on the GPU")
    arrays = {k: v if k == "x" and "x" in change else handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^prelu_forward: ") as caught:
        prelu_forward(handle, **{**call, **arrays})
    assert caught.value.param == param


@pytest.mark.parametrize("needs", [(), ("dw",), ("dx", "dx"), "dx"])
def test_bad_needs_are_refused(handle: Any, needs: Any) -> None:
    """Also a bare string, whose letters are no gradients."""
    x, slope = handle.asarray(np.ones((2, 3), np.float32)), handle.asarray(np.ones(3, np.float32))
    with pytest.raises(BadParamError, match="needs"):
        prelu_backward(handle, x, x, slope, needs=needs)
    with pytest.raises(BadParamError, match="dslope is not in needs"):
        prelu_backward(handle, x, x, slope, needs=("dx",), dslope=slope)


def test_variants_follow_the_shape() -> None:
    """Few neighbours within a channel are summed by columns, many by rows; packs where they fit."""

    def variant(shape: tuple[int, ...], channels: int) -> str:
        x = TensorDescriptor(shape, "float32")
        return supports(prelu_backward, x, x, TensorDescriptor((channels,), "float32")).variant

    assert variant((128, 64), 64) == "packed_columns"
    assert variant((128, 63), 63) == "columns"
    assert variant((8, 64, 56, 56), 64) == "packed_rows"
    assert variant((8, 64, 15, 15), 64) == "rows"
    assert variant((8, 64, 7, 7), 64) == "packed_columns"
