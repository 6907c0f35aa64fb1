"""Fully connected layers: hand-computed values, gradients, what is refused, what is saved, and how it is planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import bounds
from dnnprims.descriptors import ACTIVATION_MODES, ActivationDescriptor
from dnnprims.errors import BadParamError
from dnnprims.ops.fc import (
    fc_backward,
    fc_backward_bias,
    fc_backward_data,
    fc_backward_needs,
    fc_backward_weights,
    fc_forward,
)
from dnnprims.reference import fc as reference
from dnnprims.runtime.launch import Profile

DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Differentiable everywhere, so that finite differences mean something.
SMOOTH = ("identity", "sigmoid", "tanh", "gelu", "gelu_tanh", "swish", "softplus", "mish", "square")
#: No derivative of these is larger: how much an error of the pre-activation grows.
SLOPE = {"identity": 1.0, "relu": 1.0, "tanh": 1.0, "sigmoid": 0.25, "gelu": 1.13, "gelu_tanh": 1.13, "swish": 1.1}
GPU = Profile("cuda", blaslt=True)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return rng.standard_normal(shape).astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def wide(x: Any) -> Any:
    return np.asarray(x).astype(np.float64)


def of(mode: str) -> ActivationDescriptor:
    return ActivationDescriptor(mode)


# -- values ----------------------------------------------------------------------------------------------------------

X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
W = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], np.float32)
B = np.array([0.5, -10.0, 0.0], np.float32)
Z = np.array([[1.5, -8.0, -1.0], [3.5, -6.0, -1.0]], np.float32)
DY = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


def test_a_layer_of_one_number(handle: Any) -> None:
    """A single weight and a single sample, through the derivative of square: 2 * 3 * 5 = 30."""
    dy, x, w, z = (handle.asarray(np.array([[value]], np.float32)) for value in (5.0, 7.0, 2.0, 3.0))
    dx, dw, db = fc_backward(handle, dy, x, w, activation="square", aux=z)
    assert [float(handle.to_numpy(a).ravel()[0]) for a in (dx, dw, db)] == [60.0, 210.0, 30.0]


def test_forward_by_hand(handle: Any) -> None:
    x, w, b = map(handle.asarray, (X, W, B))
    np.testing.assert_array_equal(handle.to_numpy(fc_forward(handle, x, w)), Z - B)
    np.testing.assert_array_equal(handle.to_numpy(fc_forward(handle, x, w, b)), Z)
    np.testing.assert_array_equal(handle.to_numpy(fc_forward(handle, x, w, b, activation="relu")), np.maximum(Z, 0))


def test_backward_by_hand(handle: Any) -> None:
    dy, x, w, y = map(handle.asarray, (DY, X, W, np.maximum(Z, 0)))
    dx, dw, db = map(handle.to_numpy, fc_backward(handle, dy, x, w, activation="relu", y=y))
    np.testing.assert_array_equal(dx, [[1.0, 0.0], [4.0, 0.0]])
    np.testing.assert_array_equal(dw, [[13.0, 18.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(db, [5.0, 0.0, 0.0])
    np.testing.assert_array_equal(handle.to_numpy(fc_backward_data(handle, dy, w)), DY @ W)
    np.testing.assert_array_equal(handle.to_numpy(fc_backward_weights(handle, dy, x)), DY.T @ X)
    np.testing.assert_array_equal(handle.to_numpy(fc_backward_bias(handle, dy)), DY.sum(axis=0))


@pytest.mark.parametrize("mode", ["identity", "relu", "tanh", "gelu_tanh"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (2.0, 0.0), (-0.5, 1.5)])
@pytest.mark.parametrize("with_aux", [False, True])
def test_blend_comes_after_the_activation(handle: Any, mode: str, alpha: float, beta: float, with_aux: bool) -> None:
    old = np.full((2, 3), 3.0 if beta else np.nan, np.float32)
    out, aux = handle.asarray(old), handle.asarray(np.full((2, 3), np.nan, np.float32)) if with_aux else None
    x, w, b = map(handle.asarray, (X, W, B))
    made = fc_forward(handle, x, w, b, activation=mode, out=out, aux=aux, alpha=alpha, beta=beta)
    assert made is out
    expected = alpha * reference.fc_forward(wide(X), wide(W), wide(B), activation=of(mode)) + (
        beta * 3.0 if beta else 0
    )
    bound = bounds.blended(expected, "float32", 4 * bounds.ulp(Z, "float32"), alpha=alpha, beta=beta, old=3.0)
    assert (np.abs(handle.to_numpy(out) - expected) <= bound).all()
    if aux is not None:
        np.testing.assert_array_equal(handle.to_numpy(aux), Z)


def _check(got: Any, expected: Any, bound: Any, what: str) -> None:
    excess = (np.abs(wide(got) - wide(expected)) / bound).max(initial=0.0)
    assert excess <= 1.0, f"{what}: error is {excess} of its bound"


def check_layer(handle: Any, mode: str, dtype: str, m: int, k: int, n: int, shift: int = 0) -> None:
    """Compare forward and backward with float64 under the derived bounds."""
    rng = np.random.default_rng([m, k, n])
    x, w, b, dy = (draw(rng, s, dtype) for s in ((m, k), (n, k), (n,), (m, n)))
    there = [handle.asarray(np.concatenate([np.zeros(shift, a.dtype), a.ravel()])) for a in (x, w, b, dy)]
    x_, w_, b_, dy_ = (a[shift:].reshape(s) for a, s in zip(there, ((m, k), (n, k), (n,), (m, n)), strict=True))
    aux = handle.asarray(np.zeros((m, n), x.dtype)) if fc_backward_needs(mode) == ("aux",) else None
    y = fc_forward(handle, x_, w_, b_, activation=mode, aux=aux)

    z = wide(x) @ wide(w).T + wide(b)
    size = np.abs(wide(x)) @ np.abs(wide(w)).T + np.abs(wide(b))
    error = bounds.sum_error(k + 1, size, dtype) + bounds.unit_roundoff(dtype) * np.abs(z)
    error = error + bounds.early_rounding(z - wide(b), dtype)
    if handle.math == "tf32" and dtype == "float32":
        error = error + bounds.tf32_error(size)
    exact = reference.fc_forward(wide(x), wide(w), wide(b), activation=of(mode))
    function = (
        bounds.library_gelu_error(z, dtype) if mode == "gelu_tanh" else bounds.accumulator_error(exact, dtype, 4.0)
    )
    _check(handle.to_numpy(y), exact, bounds.rounded(exact, dtype, SLOPE[mode] * error + function), "y")

    saved = {"y": y} if fc_backward_needs(mode) == ("y",) else {"aux": aux} if aux is not None else {}
    known = {name: wide(handle.to_numpy(a)) for name, a in saved.items()}
    got = fc_backward(handle, dy_, x_, w_, activation=mode, **saved)
    dz, _, _ = reference.fc_backward(wide(dy), None, np.eye(n), activation=of(mode), needs=("dx",), **known)
    dz_error = bounds.accumulator_error(dz, dtype, 8.0) + bounds.DERIVATIVE_FLOOR * bounds.accumulator_error(
        dy, dtype, 8.0
    )
    stored = dz_error + bounds.unit_roundoff(dtype) * np.abs(dz) if mode != "identity" else 0 * dz
    pairs = (("dx", dz, wide(w)), ("dw", dz.T, wide(x)))
    for name, left, right in pairs:
        wrong = stored if name == "dx" else stored.T
        size = np.abs(left) @ np.abs(right)
        error = bounds.sum_error(left.shape[1], size, dtype) + wrong @ np.abs(right)
        if handle.math == "tf32" and dtype == "float32":
            error = error + bounds.tf32_error(size)
        result = left @ right
        _check(handle.to_numpy(got[0 if name == "dx" else 1]), result, bounds.rounded(result, dtype, error), name)
    db = dz.sum(axis=0)
    error = bounds.sum_error(m, np.abs(dz).sum(axis=0), dtype) + dz_error.sum(axis=0)
    _check(handle.to_numpy(got[2]), db, bounds.rounded(db, dtype, error), "db")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["identity", "relu", "tanh", "gelu_tanh", "swish"])
@pytest.mark.parametrize(("m", "k", "n", "shift"), [(5, 3, 7, 0), (33, 20, 64, 0), (17, 9, 40, 1)])
def test_layer_is_within_its_bounds(handle: Any, mode: str, dtype: str, m: int, k: int, n: int, shift: int) -> None:
    check_layer(handle, mode, dtype, m, k, n, shift)


#: Parameters that turn the derivative from a function of y into one of the pre-activation.
UNUSUAL = (
    ActivationDescriptor("leaky_relu", slope=-0.5),
    ActivationDescriptor("elu", alpha=-1.0),
    ActivationDescriptor("threshold", threshold=-1.0, value=0.5),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*map(of, ACTIVATION_MODES), *UNUSUAL], ids=repr)
def test_every_mode_is_applied_and_differentiated(handle: Any, activation: Any, dtype: str) -> None:
    """With the identity for weights the pre-activation is exact and what is left is the activation.

    How accurate each is in float64, where the reference errs as much, is the business of its own family: here float32's
    bounds do, as a wrong functor or parameter shows all the same.
    """
    kind = "float32" if dtype == "float64" else dtype
    rng = np.random.default_rng(6)
    x, dy, w = draw(rng, (70, 16), dtype), draw(rng, (70, 16), dtype), np.eye(16).astype(draw(rng, (), dtype).dtype)
    x = np.abs(x) if activation.mode in ("sqrt", "log") else x
    z = np.zeros_like(x)
    aux = handle.asarray(z)
    y = fc_forward(handle, handle.asarray(x), handle.asarray(w), activation=activation, aux=aux)
    expected = reference.fc_forward(x, w, activation=activation, aux=z, out=np.empty(x.shape))
    np.testing.assert_array_equal(handle.to_numpy(aux), x)
    limit = bounds.ulp_bound(expected, kind, bounds.ELEMENTWISE_FORWARD_ULP[kind])
    if activation.mode == "gelu_tanh" and kind != "float32":
        limit = np.maximum(limit, bounds.rounded(expected, kind, bounds.library_gelu_error(x, kind)))
    _check(handle.to_numpy(y), expected, limit, "y")

    saved = {"y": y, "aux": aux}
    got = fc_backward(
        handle, handle.asarray(dy), None, handle.asarray(w), activation=activation, needs=("dx",), **saved
    )
    known = {name: handle.to_numpy(a) for name, a in saved.items()}
    gradient, _, _ = reference.fc_backward(
        dy, None, w, activation=activation, needs=("dx",), dx=np.empty(x.shape), **known
    )
    floor = bounds.DERIVATIVE_FLOOR * np.abs(wide(dy))
    ulps = bounds.ELEMENTWISE_DERIVATIVE_ULP[kind] + 0.5
    size = np.maximum(np.abs(gradient), floor)
    _check(handle.to_numpy(got[0]), gradient, bounds.ulp_bound(size, kind, ulps), "dx")


@pytest.mark.parametrize("mode", SMOOTH)
def test_gradients_are_the_slopes_of_the_reference(mode: str) -> None:
    """Central differences in float64 along a random direction of each argument."""
    rng = np.random.default_rng(1)
    x, w, b, r = (rng.standard_normal(s) for s in ((4, 3), (5, 3), (5,), (4, 5)))
    aux = np.empty((4, 5))
    y = reference.fc_forward(x, w, b, activation=of(mode), aux=aux)
    gradients = reference.fc_backward(r, x, w, activation=of(mode), y=y, aux=aux)

    def loss(i: int, step: Any) -> float:
        moved = [a + step if i == j else a for j, a in enumerate((x, w, b))]
        return float((r * reference.fc_forward(*moved, activation=of(mode))).sum())

    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        h = bounds.unit_roundoff("float64") ** (1 / 3)
        slope = (loss(i, h * direction) - loss(i, -h * direction)) / (2 * h)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=np.sqrt(bounds.unit_roundoff("float64")))


# -- shapes and what is saved ----------------------------------------------------------------------------------------


def test_leading_axes_are_samples(handle: Any) -> None:
    rng = np.random.default_rng(2)
    x, w, dy = (handle.asarray(draw(rng, s)) for s in ((2, 3, 4), (5, 4), (2, 3, 5)))
    assert fc_forward(handle, x, w).shape == (2, 3, 5)
    assert fc_backward_data(handle, dy, w).shape == (2, 3, 4)
    flat = handle.to_numpy(fc_backward_weights(handle, dy.reshape(6, 5), x.reshape(6, 4)))
    np.testing.assert_array_equal(handle.to_numpy(fc_backward_weights(handle, dy, x)), flat)
    one = fc_forward(handle, x[0, 0], w)
    assert one.shape == (5,)


def test_empty_extents(handle: Any) -> None:
    def zeros(*shape: int) -> Any:
        return handle.asarray(np.zeros(shape, np.float32))

    b = handle.asarray(np.array([-1.0, 2.0], np.float32))
    assert fc_forward(handle, zeros(0, 3), zeros(2, 3), b).shape == (0, 2)
    assert fc_forward(handle, zeros(4, 3), zeros(0, 3)).shape == (4, 0)
    y = handle.to_numpy(fc_forward(handle, zeros(3, 0), zeros(2, 0), b, activation="relu"))
    np.testing.assert_array_equal(y, [[0.0, 2.0]] * 3)
    dx, dw, db = fc_backward(handle, zeros(0, 2), zeros(0, 3), zeros(2, 3), activation="relu", y=zeros(0, 2))
    assert dx.shape == (0, 3)
    np.testing.assert_array_equal(handle.to_numpy(dw), np.zeros((2, 3)))
    np.testing.assert_array_equal(handle.to_numpy(db), np.zeros(2))
    np.testing.assert_array_equal(handle.to_numpy(fc_backward_data(handle, zeros(3, 0), zeros(0, 2))), np.zeros((3, 2)))


@pytest.mark.parametrize("needs", [("dx",), ("dw",), ("db",), ("dx", "db"), ("db", "dw")])
def test_only_what_is_needed_is_made(handle: Any, needs: tuple[str, ...]) -> None:
    dy, x, w, y = map(handle.asarray, (DY, X, W, np.maximum(Z, 0)))
    inputs = (x if "dw" in needs else None, w if "dx" in needs else None)
    whole = dict(zip(("dx", "dw", "db"), fc_backward(handle, dy, x, w, activation="relu", y=y), strict=True))
    some = dict(
        zip(("dx", "dw", "db"), fc_backward(handle, dy, *inputs, activation="relu", y=y, needs=needs), strict=True)
    )
    for name, made in some.items():
        assert (made is None) == (name not in needs)
        if made is not None:
            np.testing.assert_array_equal(handle.to_numpy(made), handle.to_numpy(whole[name]))


def test_beta_accumulates_the_gradients_of_parameters(handle: Any) -> None:
    dy, x, w = map(handle.asarray, (DY, X, W))
    dx = handle.asarray(np.full(X.shape, np.nan, np.float32))
    dw, db = handle.asarray(np.ones_like(W)), handle.asarray(np.ones_like(B))
    made = fc_backward(handle, dy, x, w, dx=dx, dw=dw, db=db, beta=1.0)
    assert made[0] is dx
    assert made[1] is dw
    np.testing.assert_array_equal(handle.to_numpy(dx), DY @ W)
    np.testing.assert_array_equal(handle.to_numpy(dw), DY.T @ X + 1)
    np.testing.assert_array_equal(handle.to_numpy(db), DY.sum(axis=0) + 1)


@pytest.mark.parametrize("rows", [1, 64, 65, 700])
@pytest.mark.parametrize("columns", [1, 31, 64])
def test_column_sums_of_any_height(handle: Any, rows: int, columns: int) -> None:
    """Integers, so that one lost or doubled row shows; many rows take the split."""
    dy = np.random.default_rng(rows).integers(-3, 4, (rows, columns)).astype(np.float32)
    out = handle.asarray(np.ones(columns, np.float32))
    fc_backward_bias(handle, handle.asarray(dy), out=out, alpha=2.0, beta=-1.0)
    np.testing.assert_array_equal(handle.to_numpy(out), 2 * dy.sum(axis=0) - 1)


def test_alignment_does_not_change_the_sums(handle: Any) -> None:
    dy = np.random.default_rng(3).standard_normal((300, 64)).astype(np.float32)
    room = handle.asarray(np.concatenate([np.zeros(1, np.float32), dy.ravel()]))
    aligned = handle.to_numpy(fc_backward_bias(handle, handle.asarray(dy)))
    assert handle.to_numpy(fc_backward_bias(handle, room[1:].reshape(300, 64))).tobytes() == aligned.tobytes()


def test_nan_is_handed_on(handle: Any) -> None:
    x = X.copy()
    x[0, 0] = np.nan
    w, b = handle.asarray(W), handle.asarray(B)
    for mode in ("identity", "relu", "tanh"):
        y = handle.to_numpy(fc_forward(handle, handle.asarray(x), w, b, activation=mode))
        assert np.isnan(y[0]).all()
        assert not np.isnan(y[1]).any()


def test_backward_needs_names_what_suffices() -> None:
    assert fc_backward_needs(None) == fc_backward_needs("identity") == ()
    assert fc_backward_needs("relu") == fc_backward_needs("tanh") == ("y",)
    assert fc_backward_needs("gelu") == fc_backward_needs("swish") == ("aux",)
    with pytest.raises(BadParamError, match="activation"):
        fc_backward_needs("rely")


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ieee", "tf32"])
def cuda(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A CUDA handle in each math mode."""
    from dnnprims.runtime.cuda import gpu_works

    if not gpu_works():
        pytest.skip("no NVIDIA GPU here")
    with dnnprims.create_handle("cuda", math=request.param) as made:
        yield made


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", sorted(SLOPE))
@pytest.mark.parametrize(
    ("m", "k", "n", "shift"), [(1, 1, 1, 0), (128, 784, 512, 0), (513, 127, 260, 0), (77, 51, 93, 1)]
)
def test_layer_on_the_gpu(cuda: Any, mode: str, dtype: str, m: int, k: int, n: int, shift: int) -> None:
    check_layer(cuda, mode, dtype, m, k, n, shift)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_twice_on_the_gpu(cuda: Any, dtype: str) -> None:
    rng = np.random.default_rng(4)
    x, w, b, dy = (cuda.asarray(draw(rng, s, dtype)) for s in ((3000, 300), (200, 300), (200,), (3000, 200)))

    def train() -> bytes:
        y = fc_forward(cuda, x, w, b, activation="relu")
        return b"".join(cuda.to_numpy(a).tobytes() for a in (y, *fc_backward(cuda, dy, x, w, activation="relu", y=y)))

    first = train()
    assert all(train() == first for _ in range(10))


@pytest.mark.gpu
def test_every_mode_runs_on_the_gpu(cuda: Any) -> None:
    rng = np.random.default_rng(5)
    x, w, dy = (np.abs(draw(rng, s)) for s in ((40, 12), (24, 12), (40, 24)))
    for mode in ACTIVATION_MODES:
        aux = cuda.asarray(np.zeros((40, 24), np.float32))
        y = fc_forward(cuda, cuda.asarray(x), cuda.asarray(w), activation=mode, aux=aux)
        got = fc_backward(cuda, *map(cuda.asarray, (dy, x, w)), activation=mode, y=y, aux=aux)
        assert all(np.isfinite(cuda.to_numpy(a)).all() for a in (y, *got)), mode
