"""Losses: hand values, gradients by central differences, labels nobody has checked, odd numbers, refusals."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dnnprims import LossDescriptor, TensorDescriptor, supports, workspace_size
from dnnprims.conformance import FAMILIES, bounds
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import run_case
from dnnprims.descriptors import LOSS_KINDS, REDUCTIONS
from dnnprims.ops.loss import entropy, loss_backward, loss_forward, loss_forward_backward
from dnnprims.reference import loss as reference

INF, NAN = float("inf"), float("nan")
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LABEL_KINDS = ("cross_entropy", "nll")

X = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
T = np.array([[1.0, 0.0], [4.0, 1.0]], np.float32)


def draw(kind: str, rng: np.random.Generator, shape: tuple[int, ...] = (5, 4)) -> tuple[Any, Any, Any]:
    """Prediction, target and weight that suit a kind, away from its kinks."""
    x, t, w = rng.standard_normal(shape), rng.standard_normal(shape), 0.5 + rng.random(shape)
    if kind in LABEL_KINDS:
        return x, rng.integers(0, shape[1], shape[:1] + shape[2:]), w.reshape(-1)[: shape[1]]
    if kind in ("bce", "bce_with_logits"):
        return (0.2 + 0.6 * rng.random(shape) if kind == "bce" else x), rng.random(shape), w
    if kind == "kl_div":
        return x, rng.random(shape), w
    if kind == "hinge":
        return x, np.sign(t), w
    return x, t, None if kind == "cosine" else w


def check_gradient(loss: LossDescriptor, x: Any, t: Any, w: Any) -> None:
    """The reference's gradient in a random direction against central differences of two orders.

    That of fourth order is nearer than the two are to each other; rounding adds the unit over the step.
    """
    rng, step = np.random.default_rng(3), 2.0**-10
    direction = rng.standard_normal(x.shape)
    dloss = rng.standard_normal(np.shape(reference.loss_forward(loss, x, t, weight=w)))

    def at(k: int) -> float:
        return float((dloss * reference.loss_forward(loss, x + k * step * direction, t, weight=w)).sum())

    second = (at(1) - at(-1)) / (2 * step)
    fourth = (4 * second - (at(2) - at(-2)) / (4 * step)) / 3
    got = float((direction * reference.loss_backward(loss, x, t, weight=w, dloss=dloss)).sum())
    losses = reference.loss_forward(loss, x, t, weight=w)
    size = np.abs(dloss * losses).sum() + np.abs(reference.loss_backward(loss, x, t, weight=w) * x).sum()
    assert abs(got - fourth) <= abs(fourth - second) + bounds.sum_error(x.size, size, "float64") / step


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "value", "factor"), [("sum", 21.0, 1.0), ("mean_elements", 5.25, 0.25), ("mean_samples", 10.5, 0.5)]
)
def test_mse_by_hand(handle: Any, reduction: str, value: float, factor: float) -> None:
    """Differences 0 2 -1 4: no half, and mean_samples sums over outputs."""
    x, t = handle.asarray(X), handle.asarray(T)
    loss = LossDescriptor("mse", reduction)
    got = handle.to_numpy(loss_forward(handle, loss, x, t))
    assert (got.shape, got.dtype, got) == ((), np.float32, value)
    assert handle.to_numpy(loss_backward(handle, loss, x, t)).tolist() == (factor * 2 * (X - T)).tolist()


def test_unreduced_by_hand(handle: Any) -> None:
    """Elementwise kinds at differences 0 2 -1 4."""
    x, t = handle.asarray(X), handle.asarray(T)
    for kind, options, losses, slopes in (
        ("mse", {}, [0, 4, 1, 16], [0, 4, -2, 8]),
        ("l1", {}, [0, 2, 1, 4], [0, 1, -1, 1]),
        ("huber", {"delta": 2.0}, [0, 2, 0.5, 6], [0, 2, -1, 2]),
        ("smooth_l1", {"delta": 2.0}, [0, 1, 0.25, 3], [0, 1, -0.5, 1]),
        ("hinge", {"margin": 2.0}, [1, 2, 0, 0], [-1, 0, 0, 0]),
    ):
        loss = LossDescriptor(kind, "none", **options)
        both = loss_forward_backward(handle, loss, x, t)
        assert handle.to_numpy(both[0]).ravel().tolist() == losses, kind
        assert handle.to_numpy(both[1]).ravel().tolist() == slopes, kind


def test_cross_entropy_by_hand(handle: Any) -> None:
    """Two equal logits, log 2 each; a third far below changes nothing. Class weights and ignored labels."""
    x = handle.asarray(np.array([[0.0, 0.0, -200.0], [5.0, 5.0, -200.0], [7.0, 9.0, 1.0]]))
    y = handle.asarray(np.array([0, 1, -100]))
    w = handle.asarray(np.array([1.0, 3.0, 5.0]))
    log2 = np.log(2.0)
    for reduction, plain, weighted in (("sum", 2.0, 4.0), ("mean_elements", 1.0, 1.0), ("mean_samples", 2 / 3, 4 / 3)):
        loss = LossDescriptor("cross_entropy", reduction)
        for weight, times in ((None, plain), (w, weighted)):
            got = handle.to_numpy(loss_forward(handle, loss, x, y, weight=weight))
            assert abs(got - times * log2) <= bounds.ulp_bound(times * log2, "float64", 2.0)
    gradient = handle.to_numpy(loss_backward(handle, LossDescriptor("cross_entropy", "sum"), x, y, weight=w))
    assert np.array_equal(gradient[:, :2], [[-0.5, 0.5], [1.5, -1.5], [0.0, 0.0]])


@pytest.mark.parametrize("beside", [0, 2, 8198])
def test_small_losses_keep_their_digits(handle: Any, beside: int) -> None:
    """With all but e^-30 of the probability at the label the loss is e^-30, and so is the gradient, not 0."""
    x = handle.asarray(np.array([[30.0, 0.0, *[-200.0] * beside]], np.float32))
    value, gradient = loss_forward_backward(handle, "cross_entropy", x, handle.asarray(np.array([0])))
    want = np.exp(-30.0)
    for got in (handle.to_numpy(value), -handle.to_numpy(gradient)[0, 0], handle.to_numpy(gradient)[0, 1]):
        assert abs(float(got) - want) <= bounds.ulp_bound(want, "float32", 3.0)


def test_probability_targets_contain_labels(handle: Any) -> None:
    """A one-hot target, and a smoothed label, say the same as labels do."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 7)), rng.integers(0, 7, 6)
    one_hot = np.eye(7)[y]
    mine = [handle.asarray(a) for a in (x, y, one_hot, 0.9 * one_hot + 0.1 / 7)]
    for smoothing, t in ((0.0, mine[2]), (0.1, mine[2]), (0.1, mine[3])):
        by_label = loss_forward_backward(
            handle, LossDescriptor("cross_entropy", label_smoothing=smoothing), mine[0], mine[1]
        )
        smoothed = LossDescriptor("cross_entropy", label_smoothing=0.0 if t is mine[3] else smoothing)
        by_share = loss_forward_backward(handle, smoothed, mine[0], t)
        for a, b in zip(by_label, by_share, strict=True):
            error = bounds.sum_error(7, 8.0, "float64")
            assert (np.abs(handle.to_numpy(a) - handle.to_numpy(b)) <= error).all()


@pytest.mark.parametrize("width", [2, 8, 2000])
def test_cosine_by_hand(handle: Any, width: int) -> None:
    """Right angle, opposite, a row of zeros; squares neither overflow nor vanish, in rows of any length."""
    x = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30]], np.float32)
    t = np.array([[-4.0, 3.0], [-3.0, -4.0], [1.0, 0.0], [3e-30, 4e-30], [4e30, 3e30]], np.float32)
    x, t = (np.pad(a, [(0, 0), (0, width - 2)]) for a in (x, t))
    loss = LossDescriptor("cosine", "none")
    losses, gradient = loss_forward_backward(handle, loss, handle.asarray(x), handle.asarray(t))
    assert np.abs(handle.to_numpy(losses) - [1.0, 2.0, 1.0, 0.0, 0.04]).max() <= bounds.ulp_bound(2.0, "float32", 2.0)
    got = handle.to_numpy(gradient)
    assert np.abs(got[0, :2] - [0.16, -0.12]).max() <= bounds.ulp_bound(0.16, "float32", 4.0)
    assert (got[2] == 0.0).all()
    assert (got[:, 2:] == 0.0).all()
    assert np.isfinite(got).all()


# -- against the reference, for each kernel --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 10), (5, 33), (4, 200), (2, 1023), (3, 9000), (2, 33000), (4, 6, 5, 3), (8,)])
def test_rows_of_any_length(emulator_handle: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Every way a row is walked, aligned and not, plain and smoothed, against float64."""
    handle, rng = emulator_handle, np.random.default_rng(prod(shape))
    x = (3 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    axis = min(1, x.ndim - 1)
    classes, rest = shape[axis], shape[:axis] + shape[axis + 1 :]
    y = np.where(rng.random(rest) < 0.3, -100, rng.integers(0, classes, rest)).astype(np.int32)
    label = np.expand_dims(y, axis) == np.arange(classes).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    # Exponentials err by some units relative to themselves, for 16-bit storage by their argument's units too.
    unit = bounds.unit_roundoff(bounds.accumulator(dtype))
    for smoothing in (0.0, 0.125):
        loss = LossDescriptor("cross_entropy", "none", label_smoothing=smoothing)
        wide = x.astype(np.float64)
        want, slope = reference.loss_forward_backward(loss, wide, y)
        relative = bounds.growth(classes) * unit * 4 + (
            2 * np.ptp(wide) * unit if dtype in ("float16", "bfloat16") else 0
        )
        for prediction in (handle.asarray(x), offset(handle, x)):
            got, gradient = loss_forward_backward(handle, loss, prediction, handle.asarray(y))
            assert (np.abs(got - want) <= relative * (1 + np.abs(want))).all()
            # p - a, a the share of each class: with smoothing both may be near 1.
            terms = np.abs(slope) + (smoothing and 2 * smoothing / classes + 2 * label)
            bound = bounds.rounded(slope, dtype, relative * terms + unit)
            assert (np.abs(gradient.astype(np.float64) - slope) <= bound).all()


def offset(handle: Any, x: Any) -> Any:
    """The same values one element past where an allocator aligns."""
    return handle.asarray(np.concatenate([x.ravel()[:1], x.ravel()]))[1:].reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [kind for kind in LOSS_KINDS if kind not in LABEL_KINDS])
def test_elements_against_the_reference(emulator_handle: Any, kind: str, dtype: str) -> None:
    """Packs, tails, weights and blends of the other kinds."""
    handle, rng = emulator_handle, np.random.default_rng(1)
    x, t, w = (None if a is None else a.astype(DTYPES[dtype]) for a in draw(kind, rng, (7, 301)))
    wide = [None if a is None else a.astype(np.float64) for a in (x, t, w)]
    old = rng.standard_normal(x.shape).astype(DTYPES[dtype])
    unit = bounds.unit_roundoff(bounds.accumulator(dtype))
    for reduction in ("none", "mean_samples"):
        loss = LossDescriptor(kind, reduction)
        n = 1 if reduction == "none" else x.size
        parts = np.abs(reference.loss_forward(LossDescriptor(kind, "none"), *wide[:2], weight=wide[2])) + 4.0
        total = parts if reduction == "none" else parts.sum() / 7
        want = reference.loss_forward(loss, *wide[:2], weight=wide[2])
        slope = reference.loss_backward(loss, *wide[:2], weight=wide[2])
        for put in (handle.asarray, lambda a: offset(handle, a)):
            mine = [None if a is None else put(a) for a in (x, t, w)]
            got = loss_forward(handle, loss, *mine[:2], weight=mine[2])
            assert (np.abs(got - want) <= bounds.sum_error(max(n, 301), total, dtype)).all()
            out = loss_backward(handle, loss, *mine[:2], weight=mine[2], out=put(old), alpha=0.5, beta=2.0)
            blend = 0.5 * slope + 2.0 * old.astype(np.float64)
            error = bounds.growth(301) * unit * (np.abs(slope) + 1.0)
            bound = bounds.blended(blend, dtype, error, alpha=0.5, beta=2.0, old=old.astype(np.float64))
            assert (np.abs(out.astype(np.float64) - blend) <= bound).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_one_pass_equals_two(handle: Any, kind: str, reduction: str) -> None:
    """forward_backward gives the bits of forward and of backward; scale is alpha; dprediction may be the prediction."""
    x, t, w = draw(kind, np.random.default_rng(2), (6, 5))
    x, t, w = x.astype(np.float32), t if kind in LABEL_KINDS else t.astype(np.float32), w
    t, w = handle.asarray(t), None if w is None else handle.asarray(w.astype(np.float32))
    loss = LossDescriptor(kind, reduction)
    value = handle.to_numpy(loss_forward(handle, loss, handle.asarray(x), t, weight=w))
    slope = handle.to_numpy(loss_backward(handle, loss, handle.asarray(x), t, weight=w, alpha=3.0))
    both = loss_forward_backward(handle, loss, handle.asarray(x), t, weight=w, scale=3.0)
    assert np.array_equal(handle.to_numpy(both[0]), value)
    assert np.array_equal(handle.to_numpy(both[1]), slope)
    inside = handle.asarray(x)
    again = loss_forward_backward(handle, loss, inside, t, weight=w, dprediction=inside, scale=3.0)
    assert np.array_equal(handle.to_numpy(again[0]), value)
    assert np.array_equal(handle.to_numpy(inside), slope)


def test_long_sums_are_folded_twice(emulator_handle: Any) -> None:
    """More rows than one block folds, with a divisor that depends on the labels."""
    n = 40000
    x = np.zeros((n, 2), np.float32)
    y = np.where(np.arange(n) % 4 == 0, -100, np.arange(n) % 2).astype(np.int32)
    for kind, value in (("cross_entropy", np.log(2.0)), ("nll", 0.0)):
        loss = LossDescriptor(kind, "mean_elements")
        got, slope = loss_forward_backward(emulator_handle, loss, x, y)
        assert abs(got - value) <= bounds.sum_bound(n, value, "float32", value)
        kept = float(np.float32(1) / np.float32(0.75 * n))
        assert np.array_equal(np.abs(slope).sum(1) != 0, y != -100)
        assert abs(slope[1, 1] + kept * (0.5 if value else 1.0)) <= bounds.ulp_bound(kept, "float32", 1.0)
    assert (
        workspace_size(
            loss_forward,
            LossDescriptor("mse", "none"),
            TensorDescriptor((9,), "float32"),
            TensorDescriptor((9,), "float32"),
        )
        == 0
    )


def test_workspace_is_what_the_launches_share() -> None:
    """A gradient that counts labels folds weights in three places; losses get room where they are summed."""
    x, labels = TensorDescriptor((100, 7), "float32"), TensorDescriptor((100,), "int32")
    mean, single = LossDescriptor("nll", "mean_elements"), LossDescriptor("nll", "none")
    assert workspace_size(loss_backward, mean, x, labels) == 3 * 256
    assert workspace_size(loss_forward, mean, x, labels) == 512 + 3 * 256
    assert workspace_size(loss_forward, single, x, labels) == 0


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_gradients_by_central_differences(kind: str, reduction: str) -> None:
    """Every kind and reduction, with and without weights."""
    x, t, w = draw(kind, np.random.default_rng(4))
    for weight in (None, w):
        check_gradient(LossDescriptor(kind, reduction), x, t, weight)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_gradients_of_cross_entropy_by_central_differences(reduction: str, probabilities: bool) -> None:
    """Smoothing, class weights, ignored labels, inner axes; labels and probabilities."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((3, 4, 2)), rng.random(4)
    t = rng.random(x.shape) if probabilities else np.where(rng.random((3, 2)) < 0.3, 2, rng.integers(0, 4, (3, 2)))
    for smoothing in (0.0, 0.2):
        loss = LossDescriptor("cross_entropy", reduction, label_smoothing=smoothing, ignore_index=2)
        for weight in (None, w):
            check_gradient(loss, x, t, weight)
    check_gradient(LossDescriptor("kl_div", reduction, log_target=True), x, rng.standard_normal(x.shape), None)


def test_variants_are_named() -> None:
    """The plan says how a row is walked, and why not otherwise."""
    labels = TensorDescriptor((64,), "int64")
    for classes, alignment, variant in (
        (10, 4, "row_in_registers"),
        (10, 16, "row_in_registers"),
        (1000, 16, "aligned_row_in_registers"),
        (8192, 16, "aligned_row_in_registers"),
        (8196, 16, "aligned_row_in_shared"),
        (4093, 16, "row_in_registers"),
        (9001, 16, "row_in_shared"),
        (60000, 16, "aligned_row_partly_in_shared"),
        (60001, 16, "row_partly_in_shared"),
        (50257, 16, "row_in_shared"),
        (1000, 4, "row_in_shared"),
    ):
        x = TensorDescriptor((64, classes), "float32", alignment=alignment)
        assert supports(loss_forward, "cross_entropy", x, labels).variant == variant
    smooth = LossDescriptor("cross_entropy", label_smoothing=0.1)
    assert supports(loss_forward, smooth, TensorDescriptor((64, 1000), "float32"), labels).variant == "row_in_registers"
    x = TensorDescriptor((64, 10, 2), "float32")
    assert supports(loss_forward, "cross_entropy", x, TensorDescriptor((64, 2), "int64")).variant == "plain"


@pytest.mark.parametrize("shared_bytes", [2048, 227 * 1024], ids=["partly", "wholly"])
@pytest.mark.parametrize("settings", ["labels=int64 ignored=0.3", "", "labels=int32 label_smoothing=0.25"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_rows_in_shared_memory_keep_the_bounds(
    emulator_handle: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, settings: str, shared_bytes: int
) -> None:
    """Rows that start amid a pack or not, with room for all of them or for a part; more of them than blocks."""
    monkeypatch.setattr(entropy, "row_shapes", lambda dtype, dense: {})
    monkeypatch.setattr(entropy, "aligned_shapes", lambda dtype: [])
    profile = replace(emulator_handle.profile, shared_bytes=shared_bytes, sm_count=1)
    monkeypatch.setattr(emulator_handle, "profile", profile)
    for shape, into in (("5x1031", "new"), ("9x1032", "in_place"), ("2x9", "out")):
        text = f"loss_forward_backward kind=cross_entropy shape={shape} reduction=sum into={into} {settings}"
        outcome = run_case(emulator_handle, FAMILIES["loss"], Problem.parse(text, dtype=dtype, seed=3))
        assert outcome.passed, f"{outcome.problem}: {outcome.complaint}"
