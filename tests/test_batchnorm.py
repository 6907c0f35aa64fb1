"""Batch norms: hand values, conventions, hard statistics, gradients by central differences, variants, refusals."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import BadParamError, BatchNormDescriptor, NotSupportedError
from dnnprims.ops.batchnorm.tiling import reason_against_packs, share_out
from dnnprims.reference import batchnorm as reference
from dnnprims.reference.batchnorm import statistics_axes

INF, NAN = float("inf"), float("nan")
PLAIN = BatchNormDescriptor()
EXACT = BatchNormDescriptor(epsilon=0.0)
LAST = BatchNormDescriptor(layout="NHWC", epsilon=0.0)


def of_channels(handle: Any, *values: float) -> Any:
    return handle.asarray(np.array(values, np.float32))


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_values_by_hand(handle: Any, layout: str) -> None:
    """Two channels of (1, 3) and (-2, 2): deviations of 1 and 2 about 2 and 0."""
    norm = BatchNormDescriptor(layout=layout, epsilon=0.0)
    x = np.array([[[1.0], [-2.0]], [[3.0], [2.0]]], np.float32)
    x = x if layout == "NCHW" else x.transpose(0, 2, 1).copy()
    gamma, beta = of_channels(handle, 2.0, 1.0), of_channels(handle, 10.0, 0.5)
    running = [of_channels(handle, 4.0, 4.0), of_channels(handle, 1.0, 1.0)]
    y, mean, rstd = dp.batchnorm_forward_training(
        handle, norm, handle.asarray(x), gamma, beta, activation="relu",
        running_mean=running[0], running_variance=running[1], exponential_average_factor=0.25,
    )  # fmt: skip
    assert handle.to_numpy(mean).tolist() == [2.0, 0.0]
    assert handle.to_numpy(rstd).tolist() == [1.0, 0.5]
    assert handle.to_numpy(y).ravel().tolist() == [8.0, 0.0, 12.0, 1.5]
    assert handle.to_numpy(running[0]).tolist() == [3.5, 3.0]
    assert handle.to_numpy(running[1]).tolist() == [0.75 + 0.5, 0.75 + 2.0]  # 2 and 8: squares over m - 1
    again = dp.batchnorm_forward_inference(
        handle, norm, handle.asarray(x), gamma, beta, mean, of_channels(handle, 1.0, 4.0), activation="relu"
    )
    np.testing.assert_array_equal(handle.to_numpy(again), handle.to_numpy(y))


def test_running_statistics(handle: Any) -> None:
    """The factor weighs the new value; with 1 the old one is not read, with 0 the new one is not, whatever it is."""
    x = handle.asarray(np.array([[1.0], [3.0], [5.0], [7.0]], np.float32))
    one = of_channels(handle, 1.0)
    for norm, variance in ((EXACT, 20.0 / 3.0), (BatchNormDescriptor(epsilon=0.0, running_variance="biased"), 5.0)):
        running = [of_channels(handle, NAN), of_channels(handle, NAN)]
        for factor, expected in ((1.0, (4.0, variance)), (0.5, (4.0, variance)), (0.0, (4.0, variance))):
            dp.batchnorm_forward_training(
                handle, norm, x, one, one, running_mean=running[0], running_variance=running[1],
                exponential_average_factor=factor,
            )  # fmt: skip
            found = tuple(handle.to_numpy(a).item() for a in running)
            assert found == pytest.approx(expected, rel=2.0**-22)
    made = of_channels(handle, 8.0)
    dp.batchnorm_forward_training(handle, EXACT, x, one, one, running_mean=made, exponential_average_factor=0.5)
    assert handle.to_numpy(made).item() == 6.0


def test_one_element_for_each_channel(handle: Any) -> None:
    """Its variance is 0, and stays so in the running variance, where m - 1 would be 0."""
    norm, x = BatchNormDescriptor(epsilon=0.25), handle.asarray(np.array([[3.0, -5.0]], np.float32))
    running, ones = of_channels(handle, 1.0, 1.0), of_channels(handle, 1.0, 1.0)
    y, mean, rstd = dp.batchnorm_forward_training(
        handle, norm, x, ones, ones, running_variance=running, exponential_average_factor=0.5
    )
    assert handle.to_numpy(y).tolist() == [[1.0, 1.0]]
    assert handle.to_numpy(mean).tolist() == [3.0, -5.0]
    assert handle.to_numpy(rstd).tolist() == [2.0, 2.0]
    assert handle.to_numpy(running).tolist() == [0.5, 0.5]
    dx, dgamma, dbeta, _ = dp.batchnorm_backward(handle, norm, x, x, ones, mean, rstd)
    assert handle.to_numpy(dx).tolist() == [[0.0, 0.0]]
    assert handle.to_numpy(dgamma).tolist() == [0.0, 0.0]
    assert handle.to_numpy(dbeta).tolist() == [3.0, -5.0]


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 3, 0), (0, 3)])
def test_no_elements(handle: Any, shape: tuple[int, ...]) -> None:
    """Mean and variance are 0, the running ones stay, sums of gradients are 0."""
    x, gamma = handle.asarray(np.zeros(shape, np.float32)), of_channels(handle, 1.0, 1.0, 1.0)
    running, other = (of_channels(handle, 7.0, 7.0, 7.0) for _ in range(2))
    y, mean, rstd = dp.batchnorm_forward_training(
        handle, BatchNormDescriptor(epsilon=0.25), x, gamma, gamma, running_mean=running, running_variance=other
    )
    assert tuple(y.shape) == shape
    assert handle.to_numpy(mean).tolist() == [0.0] * 3
    assert handle.to_numpy(rstd).tolist() == [2.0] * 3
    assert handle.to_numpy(running).tolist() == handle.to_numpy(other).tolist() == [7.0] * 3
    _, dgamma, dbeta, _ = dp.batchnorm_backward(handle, PLAIN, x, x, gamma, mean, rstd)
    assert handle.to_numpy(dgamma).tolist() == handle.to_numpy(dbeta).tolist() == [0.0] * 3


# -- hard statistics --------------------------------------------------------------------------------------------------

#: Shapes that are shared out in each way: packs across channels, channels last, pieces of a channel, one by one.
WAYS = (((40, 8, 7), "NCHW"), ((40, 7, 8), "NHWC"), ((2, 2, 5000), "NCHW"), ((40, 3, 7), "NCHW"))


@pytest.mark.parametrize(("shape", "layout"), WAYS)
@pytest.mark.parametrize("value", [3.0, -0.1, 1e30, 3e38, 1e-42])
def test_equal_elements_have_no_variance(handle: Any, shape: tuple[int, ...], layout: str, value: float) -> None:
    """Whatever they are: nothing cancels, nothing overflows."""
    norm = BatchNormDescriptor(layout=layout, epsilon=0.25)
    channels = shape[1] if layout == "NCHW" else shape[-1]
    one = of_channels(handle, *[1.0] * channels)
    if handle.backend == "numpy" and value not in (3.0,):
        pytest.skip("sums of float64 that are rounded are not the element again")
    y, mean, rstd = dp.batchnorm_forward_training(
        handle, norm, handle.asarray(np.full(shape, value, np.float32)), one, one
    )
    assert set(handle.to_numpy(mean).tolist()) == {float(np.float32(value))}
    assert set(handle.to_numpy(rstd).tolist()) == {2.0}
    assert set(handle.to_numpy(y).ravel().tolist()) == {1.0}


@pytest.mark.parametrize(("shape", "layout"), WAYS)
def test_deviations_small_beside_the_mean(handle: Any, shape: tuple[int, ...], layout: str) -> None:
    """Steps of 2^-4 about 4096: E[x^2] - E[x]^2 would have no digit of their variance in float32."""
    norm = BatchNormDescriptor(layout=layout, epsilon=0.0)
    x = (4096.0 + np.random.default_rng(5).integers(-8, 9, shape) * 2.0**-4).astype(np.float32)
    channels = shape[1] if layout == "NCHW" else shape[-1]
    one = of_channels(handle, *[1.0] * channels)
    _, _, rstd = dp.batchnorm_forward_training(handle, norm, handle.asarray(x), one, one)
    expected = 1.0 / np.sqrt(x.astype(np.float64).var(statistics_axes(norm, x.ndim)))
    np.testing.assert_allclose(handle.to_numpy(rstd), expected, rtol=2.0**-12)


@pytest.mark.parametrize(("shape", "layout"), WAYS)
def test_first_element_far_from_all_others(handle: Any, shape: tuple[int, ...], layout: str) -> None:
    """What is merged about it is as exact as about any other: to some units of mean |x|."""
    norm = BatchNormDescriptor(layout=layout)
    x = (np.random.default_rng(7).standard_normal(shape) * 2.0**-10).astype(np.float32)
    channels = np.moveaxis(x, 1 if layout == "NCHW" else -1, 0)
    for channel in channels:
        channel.flat[0] = 1e4
    one = of_channels(handle, *[1.0] * len(channels))
    _, mean, _ = dp.batchnorm_forward_training(handle, norm, handle.asarray(x), one, one)
    axes, wide = statistics_axes(norm, x.ndim), x.astype(np.float64)
    error = np.abs(handle.to_numpy(mean) - wide.mean(axes))
    assert (error <= 2.0**-20 * np.abs(wide).mean(axes)).all()


@pytest.mark.parametrize(("shape", "layout"), WAYS)
@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_channel(handle: Any, shape: tuple[int, ...], layout: str, odd: float) -> None:
    """Mean, rstd and y of that channel are NaN, also with two infinities; all others are as they were."""
    norm = BatchNormDescriptor(layout=layout)
    x = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    channels = np.moveaxis(x, 1 if layout == "NCHW" else -1, 0)
    channels[1].flat[[1, -1]] = odd
    one = of_channels(handle, *[1.0] * len(channels))
    y, mean, rstd = (
        handle.to_numpy(a) for a in dp.batchnorm_forward_training(handle, norm, handle.asarray(x), one, one)
    )
    assert np.isnan(mean).tolist() == np.isnan(rstd).tolist() == [i == 1 for i in range(len(channels))]
    bad = np.isnan(np.moveaxis(y, 1 if layout == "NCHW" else -1, 0))
    assert bad[1].all()
    assert bad.sum() == bad[1].sum()


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "hard_tanh", "clipped_relu"])
@pytest.mark.parametrize("mode", ["spatial", "per_activation"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_by_central_differences(layout: str, mode: str, activation: str | None) -> None:
    """In float64, along random directions of x, gamma, beta and the residual, away from kinks as the step is small."""
    rng, norm = np.random.default_rng(3), BatchNormDescriptor(mode, layout, 1e-3)
    shape = (6, 4, 5)
    per = shape[1:] if mode == "per_activation" else shape[1:2] if layout == "NCHW" else shape[2:]
    values = [rng.standard_normal(s) for s in (shape, per, per, shape)]
    directions = [rng.standard_normal(v.shape) for v in values]
    dy, h = rng.standard_normal(shape), 2.0**-20
    act = None if activation is None else dp.ActivationDescriptor(activation)

    def forward(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return reference.batchnorm_forward_training(norm, x, gamma, beta, activation=act, residual=residual)

    y, mean, rstd = forward(*values)
    names = ("dx", "dgamma", "dbeta", "dresidual")
    gradients = reference.batchnorm_backward(
        norm, dy, values[0], values[1], mean, rstd, activation=act, y=y, needs=names
    )
    for i, gradient in enumerate(gradients):
        ahead, behind = (
            forward(*[v + s * directions[i] if i == j else v for j, v in enumerate(values)])[0] for s in (h, -h)
        )
        measured = float((dy * (ahead - behind)).sum()) / (2 * h)
        assert measured == pytest.approx(float((gradient * directions[i]).sum()), rel=2.0**-22, abs=2.0**-22)


def test_gradients_by_hand(handle: Any) -> None:
    """Two elements about their mean: what they lose of a common gradient is all of it."""
    x, dy = (handle.asarray(np.array(v, np.float32)) for v in ([[1.0], [3.0]], [[1.0], [3.0]]))
    gamma, mean, rstd = (of_channels(handle, v) for v in (4.0, 2.0, 1.0))
    dx, dgamma, dbeta, none = dp.batchnorm_backward(handle, EXACT, dy, x, gamma, mean, rstd)
    assert handle.to_numpy(dx).tolist() == [[0.0], [0.0]]
    assert (handle.to_numpy(dgamma).tolist(), handle.to_numpy(dbeta).tolist()) == ([2.0], [4.0])
    assert none is None


@pytest.mark.parametrize("mode", ["relu", "clipped_relu", "hard_tanh"])
def test_slope_at_kinks(handle: Any, mode: str) -> None:
    """From z and from y alike: no slope at a kink, nor beyond; a NaN is at none."""
    activation = dp.ActivationDescriptor(mode, **({"ceiling": 1.0} if mode == "clipped_relu" else {}))
    z = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, NAN], np.float32).reshape(1, -1)
    x, dy = handle.asarray(z), handle.asarray(np.full((1, 6), 8.0, np.float32))
    ones, zeros = of_channels(handle, *[1.0] * 6), of_channels(handle, *[0.0] * 6)
    above = 8.0 if mode == "relu" else 0.0
    expected = [0.0, 8.0 if mode == "hard_tanh" else 0.0, 8.0, above, above, 8.0]
    y = dp.batchnorm_forward_inference(handle, EXACT, x, ones, zeros, zeros, ones, activation=activation)
    for given in ({"beta": zeros}, {"y": y}):
        *_, dz = dp.batchnorm_backward(
            handle, EXACT, dy, x, ones, zeros, ones, activation=activation, needs=("dresidual",), **given
        )
        assert handle.to_numpy(dz).ravel().tolist() == expected


def test_slope_from_what_is_computed_again(handle: Any) -> None:
    """The same elements as those that the forward pass let through, none of which storage has rounded to 0."""
    rng = np.random.default_rng(8)
    x = handle.asarray(rng.standard_normal((64, 24)).astype(np.float32))
    gamma, beta = (of_channels(handle, *rng.standard_normal(24)) for _ in range(2))
    y, mean, rstd = dp.batchnorm_forward_training(handle, PLAIN, x, gamma, beta, activation="relu")
    dy = handle.asarray(np.ones((64, 24), np.float32))
    found = [
        dp.batchnorm_backward(handle, PLAIN, dy, x, gamma, mean, rstd, activation="relu", needs=("dresidual",), **one)[
            3
        ]
        for one in ({"beta": beta}, {"y": y})
    ]
    np.testing.assert_array_equal(*(handle.to_numpy(a) for a in found))


def test_in_place(handle: Any) -> None:
    """Y over x or over the residual, dx or dresidual over dy: as into memory of their own."""
    rng = np.random.default_rng(9)
    x, other = (rng.standard_normal((6, 8, 4)).astype(np.float32) for _ in range(2))
    gamma = of_channels(handle, *rng.standard_normal(8))

    def forward(**given: Any) -> Any:
        image, residual = handle.asarray(x), handle.asarray(other)
        places = {name: {"x": image, "residual": residual}[place] for name, place in given.items()}
        made = dp.batchnorm_forward_training(
            handle, PLAIN, image, gamma, gamma, activation="relu", residual=residual, **places
        )
        return [handle.to_numpy(a).tolist() for a in made]

    assert forward() == forward(out="x") == forward(out="residual")

    def backward(*over: str) -> Any:
        dy, y, image = handle.asarray(x), handle.asarray(other), handle.asarray(other)
        made = dp.batchnorm_backward(
            handle, PLAIN, dy, image, gamma, gamma, gamma, activation="relu", y=y,
            needs=("dx", "dgamma", "dbeta", "dresidual"), **dict.fromkeys(over, dy),
        )  # fmt: skip
        return [handle.to_numpy(a).tolist() for a in made]

    assert backward() == backward("dx") == backward("dresidual")
    with pytest.raises(BadParamError, match="overlaps"):
        backward("dx", "dresidual")


def test_ways_through_memory_agree(handle: Any) -> None:
    """Channels held in shared memory and, where there is little, a block for each: exact sums have the same bits."""
    rng, found, channels = np.random.default_rng(11), [], 4 * handle.profile.sm_count
    x = (1.0 - 2.0 * (np.indices((4, channels, 8, 17)).sum(0) % 2)).astype(np.float32)
    dy, ones = rng.integers(-4, 5, x.shape).astype(np.float32), of_channels(handle, *[1.0] * channels)
    given = handle.profile
    for least in (0, given.shared_bytes - 2048):
        handle.profile = replace(given, shared_bytes=given.shared_bytes - least)
        y, mean, rstd = dp.batchnorm_forward_training(
            handle, EXACT, handle.asarray(x), ones, ones, activation="relu", residual=handle.asarray(dy)
        )
        gradients = dp.batchnorm_backward(
            handle, EXACT, handle.asarray(dy), handle.asarray(x), ones, mean, rstd, activation="relu", y=y,
            needs=("dx", "dgamma", "dbeta", "dresidual"),
        )  # fmt: skip
        found.append([handle.to_numpy(a) for a in (y, mean, rstd, *gradients)])
    handle.profile = given
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


# -- how the work is shared out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vec", [1, 2, 4, 8])
@pytest.mark.parametrize("inner", [1, 2, 7, 49, 196, 784, 841, 4096, 50176])
@pytest.mark.parametrize(("rows", "channels"), [(1, 8), (256, 64), (3_211_264, 64), (2, 2048), (100, 24)])
def test_work_is_shared_out_wholly(rows: int, channels: int, inner: int, vec: int) -> None:
    """Every column is a thread's, every row a part's, and no block is larger than the kernels allow."""
    if reason_against_packs(channels, inner, vec):
        assert vec > 1
        return
    t = share_out(rows, channels, inner, vec, 264, backward=vec == 4)
    unit = t.unit_channels * inner
    assert unit % vec == 0
    assert t.tiles == 1 or t.unit_channels == 1
    assert t.tiles * t.width * vec >= unit > (t.tiles - 1) * t.width * vec
    assert t.blocks[0] == -(-channels // t.unit_channels) * t.tiles
    assert t.width * t.depth <= t.threads <= 256
    assert t.parts * t.rows_per_part >= rows > (t.parts - 1) * t.rows_per_part
    assert t.parts <= 65535
    assert 1 <= t.team <= 256


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"norm": "spatial"}, "norm"),
        ({"x": np.ones(6, np.float32)}, "x"),
        ({"x": np.ones((2, 3), np.int32)}, "x"),
        ({"gamma": np.ones(2, np.float32)}, "gamma"),
        ({"gamma": np.ones(3, np.float64)}, "gamma"),
        ({"beta": np.ones((3, 1), np.float32)}, "beta"),
        ({"running_mean": np.ones(3, np.float16)}, "running_mean"),
        ({"residual": np.ones((2, 3, 1), np.float32)}, "residual"),
        ({"exponential_average_factor": 1.5}, "exponential_average_factor"),
        ({"exponential_average_factor": NAN}, "exponential_average_factor"),
        ({"activation": "no such"}, "activation"),
        ({"mean": np.ones(3, np.float64)}, "mean"),
        ({"out": np.ones((2, 3), np.float16)}, "out"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    floats = {name: np.ones(3, np.float32) for name in ("gamma", "beta", "running_mean", "running_variance")}
    call: dict[str, Any] = {"norm": PLAIN, "x": np.ones((2, 3), np.float32), **floats, **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^batchnorm_forward_training: ") as caught:
        dp.batchnorm_forward_training(handle, **{**call, **arrays})
    assert caught.value.param == param


def test_backward_refusals(handle: Any) -> None:
    """An activation without what tells its slope, gradients that are not asked for."""
    x, of = handle.asarray(np.ones((2, 3), np.float32)), of_channels(handle, 1.0, 1.0, 1.0)
    for change, param in (
        ({"activation": "relu"}, "beta"),
        ({"needs": ("dx", "db")}, "needs"),
        ({"needs": ("dx",), "dgamma": of}, "dgamma"),
        ({"dx": of}, "dx"),
    ):
        with pytest.raises(BadParamError) as caught:
            dp.batchnorm_backward(handle, PLAIN, x, x, of, of, of, **change)
        assert caught.value.param == param
    with pytest.raises(NotSupportedError, match="is not fused with a batch norm: got tanh"):
        dp.batchnorm_backward(handle, PLAIN, x, x, of, of, of, activation="tanh", y=x)


@pytest.mark.parametrize(
    "change",
    [{"mode": "layer"}, {"layout": "NWHC"}, {"epsilon": -1e-5}, {"epsilon": NAN}, {"running_variance": "sample"}],
)
def test_descriptor_refusals(change: dict[str, Any]) -> None:
    """And the `repr` of a good one can be pasted back."""
    with pytest.raises(BadParamError, match=f"BatchNormDescriptor: {next(iter(change))} "):
        BatchNormDescriptor(**change)
    good = BatchNormDescriptor("per_activation", "NHWC", 0.5, "biased")
    assert eval(repr(good), {"BatchNormDescriptor": BatchNormDescriptor}) == good
    assert dp.create_batchnorm_descriptor("per_activation", "NHWC", 0.5, "biased") == good
    assert hash(good) == hash(dp.create_batchnorm_descriptor("per_activation", "NHWC", 0.5, "biased"))
    assert sqrt(good.epsilon) > 0
