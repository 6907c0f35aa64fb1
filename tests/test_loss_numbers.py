"""Labels, unusual numbers and odd sizes of the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_loss import DTYPES, INF, LABEL_KINDS, NAN, T, X, draw, offset

from dnnprims import BadParamError, LossDescriptor
from dnnprims.conformance import bounds
from dnnprims.descriptors import LOSS_KINDS, REDUCTIONS
from dnnprims.ops.loss import loss_backward, loss_forward, loss_forward_backward
from dnnprims.reference import loss as reference

# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("kind", "smoothing"), [("cross_entropy", 0.0), ("cross_entropy", 0.1), ("nll", 0.0)])
def test_label_out_of_range(handle: Any, kind: str, smoothing: float, bad: int, dtype: Any) -> None:
    """NumPy refuses it; elsewhere its loss is NaN, its gradient 0, the others are as they were, and check() raises."""
    x = handle.asarray(np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32))
    good, wrong = np.array([0, 3, 1], dtype), np.array([0, bad, 1], dtype)
    loss = LossDescriptor(kind, "none", label_smoothing=smoothing)
    if handle.backend == "numpy":
        out = np.full(3, 7.0, np.float32)
        with pytest.raises(BadParamError, match="target has a label out of range") as caught:
            loss_forward(handle, loss, x, wrong, out=out)
        assert caught.value.param == "target"
        assert (out == 7.0).all()
        return
    want, slope = map(handle.to_numpy, loss_forward_backward(handle, loss, x, handle.asarray(good)))
    handle.check()
    got, gradient = map(handle.to_numpy, loss_forward_backward(handle, loss, x, handle.asarray(wrong)))
    assert np.array_equal(got, [want[0], NAN, want[2]], equal_nan=True)
    assert np.array_equal(gradient, [slope[0], np.zeros(4), slope[2]])
    with pytest.raises(BadParamError, match="label out of range"):
        handle.check()
    handle.check()
    for reduction in ("sum", "mean_elements"):
        total = loss_forward(handle, LossDescriptor(kind, reduction), x, handle.asarray(wrong))
        assert np.isnan(handle.to_numpy(total))
    with pytest.raises(BadParamError):
        handle.synchronize()


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_all_labels_ignored(handle: Any, kind: str) -> None:
    """The mean over no label is NaN, the sum 0, the gradient 0 in any case; what the logits hold does not matter."""
    x = handle.asarray(np.full((3, 4), NAN, np.float32))
    y = handle.asarray(np.full(3, 9, np.int32))
    for reduction, value in (("sum", 0.0), ("mean_samples", 0.0), ("mean_elements", NAN)):
        loss = LossDescriptor(kind, reduction, ignore_index=9)
        got, gradient = loss_forward_backward(handle, loss, x, y)
        assert np.array_equal(handle.to_numpy(got), value, equal_nan=True)
        assert (handle.to_numpy(gradient) == 0).all()


def test_ignored_class_is_a_class_too(handle: Any) -> None:
    """ignore_index within range: its labels do not count, its logits do."""
    x, y = handle.asarray(np.zeros((2, 2), np.float32)), handle.asarray(np.array([0, 1]))
    loss = LossDescriptor("cross_entropy", "none", ignore_index=0)
    got = handle.to_numpy(loss_forward(handle, loss, x, y))
    assert got[0] == 0
    assert abs(got[1] - np.log(2.0)) <= bounds.ulp_bound(0.69, "float32", 1.0)


def test_scalar_label(handle: Any) -> None:
    """One row of classes alone, with a label of shape ()."""
    x, y = handle.asarray(np.zeros(2, np.float32)), handle.asarray(np.array(1))
    for reduction in REDUCTIONS:
        value, gradient = loss_forward_backward(handle, LossDescriptor("cross_entropy", reduction), x, y)
        assert abs(handle.to_numpy(value) - np.log(2.0)) <= bounds.ulp_bound(0.69, "float32", 1.0)
        assert handle.to_numpy(gradient).tolist() == [0.5, -0.5]


# -- odd numbers and sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["in registers", "of whole packs", "long, of whole packs", "in cache", "plain"])
def test_odd_logits(handle: Any, walk: str) -> None:
    """NaN, +inf and nothing but -inf make a row NaN; -inf beside others is a probability of 0; rows stay apart."""
    rows = np.array(
        [[0, 0, -INF], [NAN, 0, 0], [INF, 0, 0], [-INF, -INF, -INF], [0, -INF, -INF], [-INF, 0, 0]], np.float32
    )
    y = np.zeros(6, np.int64)
    if walk == "in cache":
        rows = np.concatenate([rows, np.full((6, 600), -INF, np.float32)], axis=1)
    if "whole packs" in walk:
        rows = np.concatenate([rows, np.full((6, 8197 if "long" in walk else 61), -INF, np.float32)], axis=1)
    x = offset(handle, rows) if walk == "in cache" else handle.asarray(rows)
    if walk == "plain":
        x, y = handle.asarray(np.ascontiguousarray(rows.T)[None]), y[None]
    loss = LossDescriptor("cross_entropy", "none")
    losses, gradient = map(handle.to_numpy, loss_forward_backward(handle, loss, x, handle.asarray(y)))
    assert np.array_equal(losses.ravel()[1:], [NAN, NAN, NAN, 0.0, INF], equal_nan=True)
    slopes = (gradient[0].T if walk == "plain" else gradient)[:, :3]
    assert np.isnan(slopes[1:4]).all()
    assert slopes[0].tolist() == [-0.5, 0.5, 0.0]
    assert slopes[5].tolist() == [-1.0, 0.5, 0.5]
    assert np.array_equal(handle.to_numpy(loss_forward(handle, loss, x, handle.asarray(y))), losses, equal_nan=True)
    without = handle.asarray(np.zeros(rows.shape[1], np.float32))
    losses = handle.to_numpy(loss_forward(handle, loss, x, handle.asarray(y), weight=without))
    assert np.array_equal(losses.ravel(), [0.0, NAN, NAN, NAN, 0.0, 0.0], equal_nan=True)


def test_coefficients_of_zero_take_no_part(handle: Any) -> None:
    """0 log 0 is 0, for probabilities, class weights, kl_div and bce alike."""
    x = handle.asarray(np.array([[0.0, -INF]], np.float32))
    share = handle.asarray(np.array([[1.0, 0.0]], np.float32))
    w = handle.asarray(np.array([1.0, 0.0], np.float32))
    assert handle.to_numpy(loss_forward(handle, "cross_entropy", x, share)) == 0
    assert handle.to_numpy(loss_forward(handle, "cross_entropy", x, handle.asarray(np.array([1])), weight=w)) == 0
    assert handle.to_numpy(loss_forward(handle, "kl_div", x, share)) == 0
    assert handle.to_numpy(loss_forward(handle, "bce", share, share)) == 0
    big = handle.asarray(np.array([INF, -INF], np.float32))
    assert handle.to_numpy(loss_forward(handle, "bce_with_logits", big, share.reshape(2))) == 0


def test_bce_is_clamped(handle: Any) -> None:
    """A sure and wrong prediction costs 100; its slope stays finite; no probability at all is NaN."""
    x, t = handle.asarray(np.array([0.0, 1.0, 1.5, -0.5])), handle.asarray(np.array([1.0, 0.0, 1.0, 0.0]))
    losses, slopes = loss_forward_backward(handle, LossDescriptor("bce", "none"), x, t)
    assert np.array_equal(handle.to_numpy(losses), [100, 100, NAN, NAN], equal_nan=True)
    assert np.array_equal(handle.to_numpy(slopes), [-1 / 1e-12, 1 / 1e-12, NAN, NAN], equal_nan=True)


#: (kind, options) -> numbers for which the short ways of float do not hold, or just do, for prediction and target.
UNUSUAL: dict[str, tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]] = {
    "bce": ({}, (0.0, 1.0, 0.5, 2.0**-130, 2.0**-14, 0.99609375, 1.5, -0.5, NAN), (0.0, 1.0, 0.25)),
    "bce_with_logits": ({}, (0.0, 87.0, 88.5, 103.0, 104.5, 1000.0, 6e4, INF, NAN), (0.0, 1.0, 0.25)),
    "kl_div": ({}, (0.0, -1.0, -87.0, -INF, NAN), (0.0, 0.5, 0.75, 1.0, 1.25, 3.0, 2.0**-14)),
    "kl_div_log": ({"log_target": True}, (0.0, -1.0, 5.0, NAN), (0.0, -87.0, -87.5, -110.0, -INF, 10.0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_numbers_among_usual_ones(handle: Any, name: str, dtype: str) -> None:
    """Infinite, subnormal, out of the domain: each alone among others, by packs and one by one."""
    options, xs, ts = UNUSUAL[name]
    loss, rng = LossDescriptor(name.removesuffix("_log"), "none", **options), np.random.default_rng(8)
    pairs = [(sign * x, t) for x in xs for t in ts for sign in ((1, -1) if loss.kind == "bce_with_logits" else (1,))]
    x, t = (np.full((len(pairs), 8), 0.25) for _ in range(2))
    at = np.arange(len(pairs)), rng.integers(0, 8, len(pairs))
    x[at], t[at] = zip(*pairs, strict=True)
    x, t = (a.astype(DTYPES[dtype]) for a in (x, t))
    want, slope = reference.loss_forward_backward(loss, x.astype(np.float64), t.astype(np.float64))
    with np.errstate(all="ignore"):
        errors = bounds.elementwise_loss_errors(loss, x.astype(np.float64), t.astype(np.float64), dtype)
    errors = [np.where(np.isfinite(error), error, 0.0) for error in errors]
    for put in (handle.asarray, lambda a: offset(handle, a)):
        got, gradient = map(handle.to_numpy, loss_forward_backward(handle, loss, put(x), put(t)))
        reduced = LossDescriptor(loss.kind, "sum", **options)
        rows = [loss_forward_backward(handle, reduced, put(x[i]), put(t[i])) for i in range(len(x))]
        for values in (gradient, np.stack([handle.to_numpy(row[1]) for row in rows])):
            assert_near(values, slope, errors[1], dtype)
        assert_near(got, want, errors[0], bounds.accumulator(dtype))
        total = np.array([handle.to_numpy(row[0]) for row in rows])
        sums = errors[0].sum(1) + bounds.sum_error(8, np.where(np.isfinite(want), np.abs(want), 0.0).sum(1), dtype)
        assert_near(total, want.sum(1), sums, bounds.accumulator(dtype))


def assert_near(got: Any, want: Any, error: Any, dtype: str) -> None:
    """Within the error before one rounding to a type; infinite and NaN where the reference rounds to that."""
    with np.errstate(over="ignore"):
        stored = want.astype(DTYPES[dtype]).astype(np.float64)
    got, finite = got.astype(np.float64), np.isfinite(stored)
    assert np.array_equal(got[~finite], stored[~finite], equal_nan=True)
    assert (np.abs(got[finite] - want[finite]) <= bounds.rounded(want[finite], dtype, error[finite])).all()


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_nan_is_handed_on(handle: Any, kind: str) -> None:
    """A NaN in the prediction reaches the loss, whatever the target."""
    x, t, _ = draw(kind, np.random.default_rng(7))
    x[2] = NAN
    got = handle.to_numpy(loss_forward(handle, LossDescriptor(kind, "none"), handle.asarray(x), handle.asarray(t)))
    assert np.isnan(got[2]).all()
    assert np.isfinite(np.delete(got, 2, 0)).all()


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_empty_batch(handle: Any, kind: str) -> None:
    """Sum 0, means NaN, gradient empty."""
    x = handle.asarray(np.zeros((0, 3), np.float32))
    t = handle.asarray(np.zeros(0, np.int32)) if kind in LABEL_KINDS else x
    for reduction, value in (("sum", 0.0), ("mean_elements", NAN), ("mean_samples", NAN)):
        got, gradient = loss_forward_backward(handle, LossDescriptor(kind, reduction), x, t)
        assert np.array_equal(handle.to_numpy(got), value, equal_nan=True)
        assert gradient.shape == (0, 3)
    assert loss_forward(handle, LossDescriptor(kind, "none"), x, t).shape == (
        (0, 3) if t is x and kind != "cosine" else (0,)
    )


@pytest.mark.parametrize("reduction", ["none", "mean_samples"])
def test_upstream_gradient(handle: Any, reduction: str) -> None:
    """dloss on the device multiplies, per loss where they are not reduced."""
    x, y = handle.asarray(np.zeros((2, 2), np.float32)), handle.asarray(np.array([0, 1]))
    d = np.array([2.0, -4.0], np.float32) if reduction == "none" else np.array(2.0, np.float32)
    got = loss_backward(handle, LossDescriptor("cross_entropy", reduction), x, y, dloss=handle.asarray(d))
    want = [[-1.0, 1.0], [-2.0, 2.0]] if reduction == "none" else [[-0.5, 0.5], [0.5, -0.5]]
    assert handle.to_numpy(got).tolist() == want
    got = loss_backward(
        handle,
        LossDescriptor("l1", reduction),
        handle.asarray(X),
        handle.asarray(T),
        dloss=handle.asarray(X if reduction == "none" else d),
    )
    assert handle.to_numpy(got).tolist() == (
        [[0.0, 2.0], [-3.0, 5.0]] if reduction == "none" else [[0.0, 1.0], [-1.0, 1.0]]
    )
