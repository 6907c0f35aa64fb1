"""Activations: accuracy in tails and about roots, kinks, odd numbers, gradients, layouts, refusals.

Accuracy over whole types is measured in ``test_ulp.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dnnprims import ActivationDescriptor, BadParamError, TensorDescriptor, supports
from dnnprims.conformance import bounds
from dnnprims.conformance.activation import FAMILY
from dnnprims.conformance.calls import Arguments
from dnnprims.descriptors import ACTIVATION_MODES
from dnnprims.ops.activation import activation_backward, activation_forward, backward_needs
from dnnprims.reference import activation as reference
from dnnprims.reference.rounding import round_to, widen

pytest.importorskip("mpmath")

from accuracy.exact import exact
from accuracy.questions import FORWARD, FROM_INPUT, FROM_OUTPUT, SIGN_CHANGES, Question

INF, NAN = float("inf"), float("nan")
NUMPY = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def ulps(got: Any, exact: Any, dtype: str, floor: float = 0.0) -> np.ndarray[Any, Any]:
    """Error in units of the type's spacing; 0 where both are the same infinity or NaN, infinite where only one is."""
    expected = widen(round_to(exact, NUMPY[dtype]))
    given, exact = widen(got), np.asarray(exact)
    with np.errstate(all="ignore"):
        error = np.abs(given - exact) / bounds.ulp(np.maximum(np.abs(exact), floor), dtype)
    same = (given == expected) | (np.isnan(given) & np.isnan(expected))
    return np.where(np.isfinite(given) & np.isfinite(expected), error, np.where(same, 0.0, INF))


# ---- accuracy -------------------------------------------------------------------------------------------------------


#: Modes whose function takes more than one operation.
SMOOTH = (
    *("elu", "selu", "sigmoid", "log_sigmoid", "tanh", "softplus", "softsign", "tanhshrink", "gelu", "gelu_tanh"),
    *("swish", "mish", "hard_swish", "exp", "log"),
)  # fmt: skip
#: Tails, kinks, roots of derivatives and places where terms cancel.
PLACES = (
    *(-100.0, -87.5, -30.0, -13.0, -9.0, -5.5, -3.0, -1.28, -1.19, -1.0, -0.752, -0.35, -1e-3, -1e-8, -1e-30),
    *(1e-30, 1e-8, 1e-3, 0.35, 0.75, 1.0, 1.0001, 2.5, 3.0, 9.0, 19.99, 20.0, 20.01, 40.5, 88.0),
)  # fmt: skip


def exact_values(mode: str, x: np.ndarray[Any, Any], direction: str = FORWARD) -> np.ndarray[Any, Any]:
    """f(x) or f'(x), correct to the last bit of float64."""
    return exact(Question(mode, "", "float64", direction), x)[0]


@pytest.mark.parametrize("mode", SMOOTH)
def test_reference_rounds_correctly(mode: str) -> None:
    """From float32 input the reference is so good that its one rounding gives the nearest float32."""
    x = np.float32([v for v in PLACES if v > 0 or mode != "log"])
    y = reference.activation_forward(ActivationDescriptor(mode), x)
    assert y.tolist() == np.float32(exact_values(mode, x)).tolist()


def test_selu_from_output_where_terms_cancel(handle: Any) -> None:
    """Near its least output, in float64, y and scale * alpha agree in all digits of a single number."""
    y = np.linspace(-1.7580993408473768, -1.7580993, 9)
    slope = handle.to_numpy(activation_backward(handle, "selu", handle.asarray(np.ones_like(y)), y=handle.asarray(y)))
    true = exact(Question("selu", "", "float64", FROM_OUTPUT), y)[0]
    assert ulps(slope, true, "float64").max() <= bounds.ELEMENTWISE_DERIVATIVE_ULP["float64"]


@pytest.mark.parametrize("mode", sorted(SIGN_CHANGES))
def test_derivative_where_it_changes_sign(handle: Any, mode: str) -> None:
    """float64 against high precision, around the root."""
    if handle.backend == "numpy":
        pytest.skip("float64 terms cancel in the reference; conformance allows for that")
    x = np.linspace(-2.6, -0.2, 121)
    dy = handle.asarray(np.ones_like(x))
    slope = handle.to_numpy(activation_backward(handle, mode, dy, x=handle.asarray(x)))
    limit, true = bounds.ELEMENTWISE_DERIVATIVE_ULP["float64"], exact_values(mode, x, FROM_INPUT)
    assert ulps(slope, true, "float64", bounds.DERIVATIVE_FLOOR).max() <= limit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", sorted(SIGN_CHANGES))
def test_derivative_of_each_short_number(handle: Any, mode: str, dtype: str) -> None:
    """Every x of 16 bits keeps to the bound of conformance, with several dy and in a blend."""
    every = np.arange(1 << 16, dtype=np.uint16).view(NUMPY[dtype])
    x = np.tile(every[np.isfinite(widen(every))], (4, 1))
    dy = np.broadcast_to(np.array([[1.0], [-0.3], [2.9], [1e-3]], NUMPY[dtype]), x.shape).copy()
    old = np.random.default_rng(0).standard_normal(x.shape).astype(NUMPY[dtype])
    bound = FAMILY.primitives["activation_backward"].bound
    for blend in ({}, {"alpha": 0.7, "beta": -1.3, "out": old}):
        arrays = {"dy": dy, "x": x, **blend}
        expected = reference.activation_backward(ActivationDescriptor(mode), **_each(widen, arrays))
        given = Arguments("activation_backward", {"activation": ActivationDescriptor(mode), "y": None, **arrays})
        dx = activation_backward(handle, mode, **_each(lambda v: handle.asarray(v.copy()), arrays))
        excess = np.abs(widen(handle.to_numpy(dx)) - expected) - bound(given, [expected])[0]
        assert excess.max() <= 0.0


def _each(convert: Callable[[Any], Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with what is an array converted."""
    return {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


@pytest.mark.parametrize(
    ("mode", "x"),
    [
        ("gelu", -9.0), ("gelu", -13.0), ("swish", -100.0), ("sigmoid", -100.0), ("mish", -100.0), ("exp", -100.0),
        ("hard_swish", 1e38), ("softplus", -100.0), ("softplus", 1e38), ("log_sigmoid", -1e38), ("log_sigmoid", 100.0),
        ("gelu_tanh", -9.5), ("gelu", 1e38), ("swish", 1e38), ("mish", 1e38), ("softsign", 3e38),
        ("mish", -10.0481567),
    ],
)  # fmt: skip
def test_tails_neither_flush_nor_overflow(handle: Any, mode: str, x: float) -> None:
    """Values that simpler formulas lose in float32, and one of all floats at which mish was too far off."""
    argument = np.float32([x])
    y = handle.to_numpy(activation_forward(handle, mode, handle.asarray(argument)))
    expected = exact_values(mode, argument) if abs(x) < 1e4 else {"softsign": [1.0]}.get(mode, argument)
    assert y[0] != 0.0
    assert ulps(y, expected, "float32")[0] <= bounds.ELEMENTWISE_FORWARD_ULP["float32"]


# ---- derivatives ----------------------------------------------------------------------------------------------------

#: Where each mode with kinks has them.
KINKS = {
    "relu": (0.0,), "clipped_relu": (0.0, 6.0), "leaky_relu": (0.0,), "threshold": (0.0,), "selu": (0.0,),
    "softshrink": (-0.5, 0.5), "hardshrink": (-0.5, 0.5), "hard_sigmoid": (-3.0, 3.0), "hard_tanh": (-1.0, 1.0),
    "hard_swish": (-3.0, 3.0), "abs": (0.0,),
}  # fmt: skip


@pytest.mark.parametrize("given", ["x", "y"])
@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_gradient_by_central_differences(mode: str, given: str) -> None:
    """The reference's derivative, from x and from y; the error of the difference is of second order in h."""
    activation, h = ActivationDescriptor(mode), 2.0**-17
    if given == "y" and "y" not in backward_needs(activation):
        pytest.skip("the output does not tell the derivative")
    x = np.linspace(0.1, 4.0, 57) if mode in ("sqrt", "log") else np.linspace(-7.03, 7.0, 201)
    x = x[[min((abs(v - kink) for kink in KINKS.get(mode, ())), default=1.0) > h for v in x]]
    ahead, behind = (reference.activation_forward(activation, x + s) for s in (h, -h))
    kept = {"x": x} if given == "x" else {"y": reference.activation_forward(activation, x)}
    slope = reference.activation_backward(activation, np.ones_like(x), **kept)
    scale = np.maximum(np.abs(slope), 1.0)
    assert (np.abs((ahead - behind) / (2 * h) - slope) / scale).max() <= 2.0**-24


@pytest.mark.parametrize(
    ("activation", "x", "slope"),
    [
        ("relu", 0.0, 0.0), ("clipped_relu", 6.0, 0.0), ("clipped_relu", 0.0, 0.0), ("leaky_relu", 0.0, 0.01),
        ("threshold", 0.0, 0.0), ("elu", 0.0, 1.0), (ActivationDescriptor("elu", alpha=0.5), 0.0, 0.5),
        ("celu", 0.0, 1.0), ("softshrink", 0.5, 0.0), ("softshrink", -0.5, 0.0), ("hardshrink", 0.5, 0.0),
        ("hard_sigmoid", 3.0, 0.0), ("hard_sigmoid", -3.0, 0.0), ("hard_tanh", 1.0, 0.0), ("hard_tanh", -1.0, 0.0),
        ("hard_swish", -3.0, 0.0), ("hard_swish", 3.0, 1.0), ("abs", 0.0, 0.0), ("squared_relu", 0.0, 0.0),
    ],
)  # fmt: skip
def test_kinks(handle: Any, activation: Any, x: float, slope: float) -> None:
    """At a kink the derivative is that of the piece that contains the point."""
    given, dy = handle.asarray(np.float32([x])), handle.asarray(np.float32([1.0]))
    assert handle.to_numpy(activation_backward(handle, activation, dy, x=given))[0] == np.float32(slope)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "activation",
    [
        "relu", "leaky_relu", "hardshrink", "softshrink", "hard_tanh", "threshold",
        ActivationDescriptor("clipped_relu", ceiling=0.1), ActivationDescriptor("hard_tanh", low=-0.1, high=0.3),
        ActivationDescriptor("threshold", threshold=0.1, value=0.1), ActivationDescriptor("leaky_relu", slope=0.0),
    ],
    ids=repr,
)  # fmt: skip
def test_output_tells_the_piece(handle: Any, activation: Any, dtype: str) -> None:
    """y selects the elements that x does, also where a bound is no number of the type and y was rounded to it."""
    x = handle.asarray(np.linspace(-1, 1, 400).astype(dtype))  # none of which rounds as a bound does
    dy = handle.asarray(np.full(400, 2.0, dtype))
    y = activation_forward(handle, activation, x)
    from_y = handle.to_numpy(activation_backward(handle, activation, dy, y=y))
    assert from_y.tolist() == handle.to_numpy(activation_backward(handle, activation, dy, x=x)).tolist()


def test_backward_needs() -> None:
    """The output where it suffices, first; parameters that fold the function over take that away."""
    assert backward_needs("tanh") == ("y", "x")
    assert backward_needs("gelu") == ("x",)
    assert backward_needs("identity") == backward_needs(None) == ()
    assert backward_needs(ActivationDescriptor("leaky_relu", slope=-0.5)) == ("x",)
    assert backward_needs(ActivationDescriptor("elu", alpha=-0.5)) == ("x",)
    assert backward_needs(ActivationDescriptor("threshold", threshold=0.0, value=1.0)) == ("x",)


# ---- odd numbers ----------------------------------------------------------------------------------------------------

#: f(-inf), f(inf); finite or infinite input makes no NaN unless f is not defined there.
LIMITS = {
    "identity": (-INF, INF), "relu": (0, INF), "clipped_relu": (0, 6), "leaky_relu": (-INF, INF), "threshold": (0, INF),
    "elu": (-1, INF), "celu": (-1, INF), "sigmoid": (0, 1), "log_sigmoid": (-INF, 0), "tanh": (-1, 1),
    "softplus": (0, INF), "softsign": (-1, 1), "tanhshrink": (-INF, INF), "softshrink": (-INF, INF),
    "hardshrink": (-INF, INF), "gelu": (0, INF), "gelu_tanh": (0, INF), "swish": (0, INF), "mish": (0, INF),
    "hard_sigmoid": (0, 1), "hard_tanh": (-1, 1), "hard_swish": (0, INF), "squared_relu": (0, INF), "abs": (INF, INF),
    "square": (INF, INF), "sqrt": (NAN, INF), "exp": (0, INF), "log": (NAN, INF),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mode", LIMITS)
def test_infinities_and_nan(handle: Any, mode: str, dtype: str) -> None:
    """Limits at infinity; NaN goes through, forward and backward; no derivative at infinity is NaN where f has one."""
    x = handle.asarray(np.array([-INF, INF, NAN], NUMPY[dtype]))
    y = widen(handle.to_numpy(activation_forward(handle, mode, x)))
    np.testing.assert_array_equal(y, [*LIMITS[mode], NAN])
    dx = widen(handle.to_numpy(activation_backward(handle, mode, handle.asarray(np.ones(3, NUMPY[dtype])), x=x)))
    assert np.isnan(dx[2]) or mode == "identity"
    assert np.isnan(dx[:2]).tolist() == [mode in ("sqrt", "log"), False]


def test_blocked_gradient_is_zero(handle: Any) -> None:
    """On a constant piece an infinite or NaN dy does not come through."""
    dy, x = handle.asarray(np.float32([INF, NAN, INF])), handle.asarray(np.float32([-1.0, -1.0, 1.0]))
    assert handle.to_numpy(activation_backward(handle, "relu", dy, x=x)).tolist() == [0.0, 0.0, INF]


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_strided_views(handle: Any) -> None:
    """Steps of any kind are taken as they are, each operand with its own."""
    whole = np.random.default_rng(0).standard_normal((5, 6, 8)).astype(np.float32)
    x = handle.asarray(whole)[::2, ::-1, 1::3].transpose(2, 0, 1)
    plain = handle.asarray(np.ascontiguousarray(whole[::2, ::-1, 1::3].transpose(2, 0, 1)))
    y, expected = activation_forward(handle, "tanh", x), activation_forward(handle, "tanh", plain)
    assert handle.to_numpy(y).tolist() == handle.to_numpy(expected).tolist()
    dy = handle.asarray(np.ones((3, 3, 6), np.float32))
    out = handle.asarray(np.full((3, 6, 3), NAN, np.float32)).transpose(0, 2, 1)
    assert activation_backward(handle, "tanh", dy, x=x, out=out) is out
    expected = activation_backward(handle, "tanh", dy, x=plain)
    assert handle.to_numpy(out).tolist() == handle.to_numpy(expected).tolist()


def test_in_place(handle: Any) -> None:
    """out may be x, and dx may be dy."""
    values = np.float32([-2.0, -0.5, 0.0, 3.0, 7.0])
    x = handle.asarray(values)
    assert activation_forward(handle, "clipped_relu", x, out=x) is x
    assert handle.to_numpy(x).tolist() == [0.0, 0.0, 0.0, 3.0, 6.0]
    dy = handle.asarray(values)
    activation_backward(handle, "clipped_relu", dy, y=x, out=dy)
    assert handle.to_numpy(dy).tolist() == [0.0, 0.0, 0.0, 3.0, 0.0]


def test_variants() -> None:
    """Vectors for what is one run of memory, in whatever order of axes."""
    dense, turned = TensorDescriptor((6, 9), "float32"), TensorDescriptor((6, 9), "float32", (1, 6))
    assert supports(activation_forward, "gelu", dense).variant == "packed"
    assert supports(activation_forward, "gelu", turned, out=turned).variant == "packed"
    assert supports(activation_forward, "gelu", turned, out=dense).variant == "strided"
    assert supports(activation_forward, "gelu", TensorDescriptor((54,), "float32", alignment=4)).variant == "plain"
    shape = (2,) * 9
    gaps = TensorDescriptor(shape, "float32", tuple(3**k for k in range(9)))
    refusal = supports(activation_forward, "gelu", gaps)
    assert not refusal
    assert "x has too many axes" in refusal.reason


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"activation": "reluu"}, "activation"),
        ({"activation": 3}, "activation"),
        ({"activation": ActivationDescriptor("elu", alpha=1e300)}, "activation.alpha"),
        ({"activation": ActivationDescriptor("celu", alpha=1e-60)}, "activation.alpha"),
        ({"x": np.ones(4, np.int32)}, "x"),
        ({"out": np.ones(5, np.float32)}, "out"),
        ({"out": np.ones(4, np.float64)}, "out"),
        ({"beta": 1.0}, "out"),
        ({"alpha": NAN}, "alpha"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"activation": "relu", "x": np.ones(4, np.float32), **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^activation_forward: ") as caught:
        activation_forward(handle, **{**call, **arrays})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"activation": "nothing"}, "activation"),
        ({"x": None}, "x"),
        ({"activation": "gelu", "x": None, "y": np.ones(4, np.float32)}, "x"),
        ({"x": np.ones(5, np.float32)}, "x"),
        ({"x": np.ones(4, np.float16)}, "x"),
        ({"y": np.ones((4, 1), np.float32)}, "y"),
        ({"dy": np.ones(4, np.int64)}, "dy"),
        ({"beta": 0.5}, "out"),
    ],
)
def test_backward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """What the derivative is taken from must be there and match dy."""
    call: dict[str, Any] = {"activation": "relu", "dy": np.ones(4, np.float32), "x": np.ones(4, np.float32), **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^activation_backward: ") as caught:
        activation_backward(handle, **{**call, **arrays})
    assert caught.value.param == param
