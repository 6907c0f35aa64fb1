"""Gated linear units: hand values, kinks and odd numbers, gradients by central differences, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dnnprims import BadParamError, TensorDescriptor, supports
from dnnprims.ops.glu import glu_backward, glu_forward
from dnnprims.reference import glu as reference

INF, NAN = float("inf"), float("nan")


def test_second_half_gates(handle: Any) -> None:
    """sigmoid(0) = 1/2 and its slope there 1/4; relu shuts the other gate."""
    x = handle.asarray(np.array([[6.0, -4.0, 0.0, 0.0]], np.float32))
    assert handle.to_numpy(glu_forward(handle, x)).tolist() == [[3.0, -2.0]]
    dy = handle.asarray(np.array([[1.0, 2.0]], np.float32))
    assert handle.to_numpy(glu_backward(handle, dy, x)).tolist() == [[0.5, 1.0, 1.5, -2.0]]
    assert handle.to_numpy(glu_forward(handle, x, gate="relu")).tolist() == [[0.0, 0.0]]
    assert handle.to_numpy(glu_backward(handle, dy, x, gate="relu")).tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_identity_is_a_product(handle: Any) -> None:
    """Bilinear, along an axis in front."""
    x = handle.asarray(np.array([[2.0, 3.0], [5.0, 7.0]]))
    assert handle.to_numpy(glu_forward(handle, x, gate="identity", axis=0)).tolist() == [[10.0, 21.0]]


def test_tails_are_right(handle: Any) -> None:
    """A gate that is nearly shut is not flushed: swish(-80) = -80 e^-80, far above the smallest float32."""
    x = handle.asarray(np.array([1e30, -80.0], np.float32))
    expected = 1e30 * -80.0 * math.exp(-80.0)
    assert float(handle.to_numpy(glu_forward(handle, x, gate="swish"))[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gate", reference.GATES)
def test_odd_numbers(handle: Any, gate: str) -> None:
    """NaN in either half reaches y and the gradient that it bears on; a gate shut at -inf gives 0, not NaN."""
    x = handle.asarray(np.array([[NAN, 1.0, 1.0], [1.0, NAN, -INF]], np.float32).reshape(1, 6))
    y = handle.to_numpy(glu_forward(handle, x, gate=gate))[0]
    assert np.isnan(y[:2]).all()
    assert y[2] == (-INF if gate == "identity" else 0.0)
    dx = handle.to_numpy(glu_backward(handle, handle.asarray(np.ones((1, 3), np.float32)), x, gate=gate))[0]
    assert np.isnan(dx[[1, 3]]).all()
    assert not np.isnan(dx[[2, 5]]).any()


@pytest.mark.parametrize("gate", reference.GATES)
def test_gradient_by_central_differences(gate: str) -> None:
    """Along a random direction; the error of the difference is of second order in h."""
    rng = np.random.default_rng(3)
    x, dy, direction = rng.standard_normal((4, 6)), rng.standard_normal((4, 3)), rng.standard_normal((4, 6))
    h = 2.0**-18
    ahead, behind = (reference.glu_forward(x + s * direction, gate=gate) for s in (h, -h))
    measured = float((dy * (ahead - behind)).sum()) / (2 * h)
    assert measured == pytest.approx(float((reference.glu_backward(dy, x, gate=gate) * direction).sum()), rel=2.0**-26)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"x": np.ones((2, 3), np.float32)}, "x.shape[1]"),
        ({"x": np.ones((2, 4), np.int32)}, "x"),
        ({"gate": "tanh"}, "gate"),
        ({"gate": 1}, "gate"),
        ({"axis": 5}, "axis"),
        ({"out": np.ones((2, 4), np.float32)}, "out"),
        ({"beta": 2.0}, "out"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"x": np.ones((2, 4), np.float32), **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^glu_forward: ") as caught:
        glu_forward(handle, **{**call, **arrays})
    assert caught.value.param == param


def test_backward_refusals(handle: Any) -> None:
    """dy must have y's shape and x's type, and must not be overwritten."""
    x = handle.asarray(np.ones((2, 4), np.float32))
    for wrong in (x, handle.asarray(np.ones((2, 2), np.float64))):
        with pytest.raises(BadParamError) as caught:
            glu_backward(handle, wrong, x)
        assert caught.value.param == "dy"
    room = handle.asarray(np.ones(8, np.float32))
    with pytest.raises(BadParamError, match="overlaps"):
        glu_backward(handle, room[:4].reshape(2, 2), x, out=room.reshape(2, 4))
    with pytest.raises(BadParamError, match="overlaps"):
        glu_forward(handle, room.reshape(2, 4), out=room[:4].reshape(2, 2))


def test_variants_follow_the_halves() -> None:
    """Packs where they divide a half."""
    assert supports(glu_forward, TensorDescriptor((3, 16), "float16")).variant == "packed"
    assert supports(glu_forward, TensorDescriptor((3, 14), "float16")).variant == "plain"
    assert not supports(glu_forward, TensorDescriptor((3, 15), "float16"))
