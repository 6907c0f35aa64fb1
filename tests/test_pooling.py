"""Poolings: every kind of problem bit for bit, adjoint identities, gradients, ties and odd numbers, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims as dp
from dnnprims import BadParamError, PoolingDescriptor, TensorDescriptor
from dnnprims.problem import CallLine
from dnnprims.reference import pooling as reference

INF, NAN = float("inf"), float("nan")
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
LAYOUTS, MODES = ("NCHW", "NHWC"), ("max", "average_exclude_padding", "average_include_padding")

#: Extents of the image -> windows to try.
WINDOWS = {(9,): ((1,), (2,), (5,)), (7, 10): ((2, 2), (3, 3), (2, 4)), (3, 4, 5): ((2, 2, 2), (1, 3, 2))}


def laid_out(pooling: PoolingDescriptor, a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if pooling.channels_last else a


def in_front(pooling: PoolingDescriptor, a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, -1, 1) if pooling.channels_last else a


def grid(layout: str, mode: str) -> Iterator[tuple[PoolingDescriptor, tuple[int, ...]]]:
    """Window x stride x padding x channels, with the shape of the images, channels in front."""
    for image, several in WINDOWS.items():
        paddings = (0, 1, ((1, 0), 1, (0, 1))[: len(image)])
        for window, stride, padding in product(several, (1, 2, (3, 1, 2)[: len(image)]), paddings):
            for channels in (3, 8):  # no packs, and packs of every type
                if padding == 0 or min(window) > 1:
                    yield PoolingDescriptor(mode, window, stride, padding, layout), (2, channels, *image)


def drawn(pooling: PoolingDescriptor, shape: tuple[int, ...], dtype: Any = np.float64) -> list[np.ndarray]:
    """Integers, many of them the same: an image, and a gradient of the result."""
    rng = np.random.default_rng(5)
    image = laid_out(pooling, rng.integers(-2, 3, shape).astype(np.float32).astype(dtype))
    described = dp.pooling_output_descriptor(pooling, TensorDescriptor.from_array(image))
    return [image, rng.integers(-3, 4, described.shape).astype(np.float32).astype(dtype)]


def by_definition(pooling: PoolingDescriptor, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The padded image looked at through windows: maxima and where they are, or means."""
    x = in_front(pooling, x)
    axes = tuple(range(2, x.ndim))
    pads = [(0, 0), (0, 0), *pooling.paddings(len(axes))]

    def windows(a: np.ndarray) -> np.ndarray:
        seen = np.lib.stride_tricks.sliding_window_view(a, pooling.windows(len(axes)), axis=axes)
        seen = seen[(slice(None), slice(None), *(slice(None, None, s) for s in pooling.strides(len(axes))))]
        return seen.reshape(*seen.shape[: x.ndim], -1)

    if pooling.mode == "max":
        seen = windows(np.pad(x, pads, constant_values=-INF))
        return laid_out(pooling, seen.max(axis=-1)), laid_out(pooling, seen.argmax(axis=-1))
    inside = windows(np.pad(np.ones(x.shape), pads)).sum(axis=-1)
    count = inside if pooling.mode == "average_exclude_padding" else pooling.taps(len(axes))
    return laid_out(pooling, windows(np.pad(x, pads)).sum(axis=-1) / count), np.zeros(0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_reference_is_the_definition(layout: str, mode: str) -> None:
    """On the whole grid; the gradient of a mean is its adjoint, that of a maximum the adjoint of the choice."""
    count = 0
    for pooling, shape in grid(layout, mode):
        x, dy = drawn(pooling, shape)
        expected, chosen = by_definition(pooling, x)
        found = reference.pooling_forward(pooling, x, with_indices=mode == "max")
        y, indices = found if mode == "max" else (found, None)
        np.testing.assert_array_equal(y, expected)
        if indices is not None:
            np.testing.assert_array_equal(indices, chosen)
        dx = reference.pooling_backward(pooling, dy, x_descriptor=x, indices=indices)
        assert (y * dy).sum() == pytest.approx((x * dx).sum(), rel=1e-13, abs=1e-10)
        count += 1
    assert count > 80


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", range(2))
def test_grid_bit_for_bit(handle: dp.Handle, layout: str, mode: str, part: int) -> None:
    """Both directions on the grid, of integers; the types take turns. Means where nothing but powers of two divides."""
    start = 2 * MODES.index(mode) + LAYOUTS.index(layout)
    for number, (pooling, shape) in enumerate(list(grid(layout, mode))[part::2]):
        x, dy = drawn(pooling, shape, DTYPES[(start + number) % 4])
        image = shape[2:]
        if mode != "max" and not (np.frexp(reference.counts(pooling, image))[0] == 0.5).all():
            continue
        found = dp.pooling_forward(handle, pooling, handle.asarray(x), with_indices=mode == "max")
        expected = reference.pooling_forward(pooling, x, with_indices=mode == "max")
        indices = expected[1] if mode == "max" else None
        for one, other in zip(*([a] if mode != "max" else a for a in (found, expected)), strict=True):
            assert handle.to_numpy(one).tobytes() == np.ascontiguousarray(other).tobytes(), f"{pooling} {shape}"
        described = TensorDescriptor.from_array(x)
        given = None if indices is None else handle.asarray(indices)
        dx = dp.pooling_backward(handle, pooling, handle.asarray(dy), x_descriptor=described, indices=given)
        expected = reference.pooling_backward(pooling, dy, x_descriptor=described, indices=indices)
        assert handle.to_numpy(dx).tobytes() == np.ascontiguousarray(expected).tobytes(), f"{pooling} {shape}"


#: Images of each variant: in packs of channels and of rows, in rows of a plane, in whole planes, by single elements.
VARIANTS = {
    "packed_channels": [("NHWC", (2, 16, 9, 8))],
    "packed_lines": [("NCHW", (2, 3, 9, 16))],
    "staged_rows": [("NCHW", (2, 3, 9, 10)), ("NCHW", (1, 1, 90, 151))],
    "plain": [("NHWC", (2, 5, 9, 8)), ("NCHW", (2, 3, 4, 5, 4))],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1), (4, 3)])
def test_first_maximum_and_first_nan_win(handle: dp.Handle, variant: str, window: int, stride: int) -> None:
    """On every variant: many equal, all -inf, zeros of both signs, NaN of several payloads."""
    for layout, shape in VARIANTS[variant]:
        if variant == "packed_lines" and stride != 2:
            continue
        pooling = PoolingDescriptor("max", window, stride, padding=int(window > 2), layout=layout)
        rng = np.random.default_rng(3)
        x = laid_out(
            pooling,
            rng.choice(np.array([0.0, -0.0, 1.0, INF, NAN, -NAN], np.float32), shape, p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]),
        )
        x[:1][rng.random(x[:1].shape) < 0.7] = -INF
        if handle.backend != "numpy":
            assert dp.prepare(dp.pooling_forward, handle, pooling, TensorDescriptor.from_array(x)).variant == variant
        y, indices = dp.pooling_forward(handle, pooling, handle.asarray(x), with_indices=True)
        expected, chosen = reference.pooling_forward(pooling, x, with_indices=True)
        np.testing.assert_array_equal(handle.to_numpy(indices), chosen)
        np.testing.assert_array_equal(handle.to_numpy(y), expected)
        np.testing.assert_array_equal(
            np.signbit(handle.to_numpy(y))[expected == 0], np.signbit(expected[expected == 0])
        )


def test_values_by_hand(handle: dp.Handle) -> None:
    """One axis: a window over the padding on either side."""
    x = handle.asarray(np.array([[[1.0, 5.0, 3.0, 3.0, -2.0]]], np.float32))
    pooling = PoolingDescriptor("max", 3, stride=2, padding=1)
    y, indices = dp.pooling_forward(handle, pooling, x, with_indices=True)
    assert handle.to_numpy(y).tolist() == [[[5.0, 5.0, 3.0]]]
    assert handle.to_numpy(indices).tolist() == [[[2, 0, 0]]]
    described = TensorDescriptor((1, 1, 5), "float32")
    dx = dp.pooling_backward(handle, pooling, y, x_descriptor=described, indices=indices)
    assert handle.to_numpy(dx).tolist() == [[[0.0, 10.0, 0.0, 3.0, 0.0]]]
    for mode, expected in (("exclude", [3.0, 11 / 3, 0.5]), ("include", [2.0, 11 / 3, 1 / 3])):
        pooling = PoolingDescriptor(f"average_{mode}_padding", 3, stride=2, padding=1)
        y = dp.pooling_forward(handle, pooling, x)
        np.testing.assert_allclose(handle.to_numpy(y).ravel(), expected, rtol=1e-6)


def test_gradients_by_central_differences() -> None:
    """Of a maximum where no two elements tie, and of means, which are linear."""
    rng = np.random.default_rng(2)
    for mode, layout in product(MODES, LAYOUTS):
        pooling = PoolingDescriptor(mode, (3, 2), stride=(2, 1), padding=((1, 0), 1), layout=layout)
        x, direction = rng.standard_normal((2, 3, 7, 6, 4)[:4]), rng.standard_normal((2, 3, 7, 6))
        found = reference.pooling_forward(pooling, x, with_indices=mode == "max")
        indices = found[1] if mode == "max" else None
        dy = rng.standard_normal((found[0] if mode == "max" else found).shape)
        h = 2.0**-20
        ahead, behind = (reference.pooling_forward(pooling, x + s * direction) for s in (h, -h))
        measured = float((dy * (ahead - behind)).sum()) / (2 * h)
        dx = reference.pooling_backward(pooling, dy, x_descriptor=x, indices=indices)
        assert measured == pytest.approx(float((dx * direction).sum()), rel=2.0**-24)


def test_adjoint_identity_of_means(handle: dp.Handle) -> None:
    """<mean(x), dy> = <x, backward(dy)>: exactly, where all counts are powers of two."""
    for layout, mode in product(LAYOUTS, MODES[1:]):
        pooling = PoolingDescriptor(mode, (2, 4), stride=1, layout=layout)
        x, dy = drawn(pooling, (3, 8, 9, 7), np.float32)
        y = handle.to_numpy(dp.pooling_forward(handle, pooling, handle.asarray(x))).astype(np.float64)
        described = TensorDescriptor.from_array(x)
        dx = handle.to_numpy(dp.pooling_backward(handle, pooling, handle.asarray(dy), x_descriptor=described))
        assert (y * dy).sum() == (x * dx.astype(np.float64)).sum() != 0


def test_layouts_and_views_give_the_same_bits(handle: dp.Handle) -> None:
    """A view with the axes moved is another layout, and is not read as if it were dense."""
    x = np.random.default_rng(4).standard_normal((2, 8, 9, 10)).astype(np.float32)
    first, last = (PoolingDescriptor("max", 3, 2, 1, layout) for layout in LAYOUTS)
    y, indices = map(handle.to_numpy, dp.pooling_forward(handle, first, handle.asarray(x), with_indices=True))
    dense = handle.asarray(laid_out(last, x))
    for pooling, a in ((last, dense), (first, dense.transpose(0, 3, 1, 2))):
        found, chosen = map(handle.to_numpy, dp.pooling_forward(handle, pooling, a, with_indices=True))
        np.testing.assert_array_equal(in_front(pooling, found), y)
        np.testing.assert_array_equal(in_front(pooling, chosen), indices)
    out = handle.asarray(np.full((2, 5, 5, 8), NAN, np.float32))
    dp.pooling_forward(handle, first, dense.transpose(0, 3, 1, 2), out=out.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(in_front(last, handle.to_numpy(out)), y)


def test_index_out_of_range_has_no_gradient(handle: dp.Handle) -> None:
    """On the host it is refused; on a device it goes nowhere and is reported by `check`, once, by every variant."""
    for layout, shape in (
        *(("NHWC", (1, 16, 4, 4)), ("NCHW", (1, 3, 4, 16)), ("NCHW", (1, 3, 4, 6)), ("NHWC", (1, 3, 4, 4))),
    ):
        pooling = PoolingDescriptor("max", 2, layout=layout)
        x = laid_out(pooling, np.zeros(shape, np.float32))
        y, indices = reference.pooling_forward(pooling, x, with_indices=True)
        indices[0, 0, 0, 0] = 7
        dy, described = np.ones_like(y), TensorDescriptor.from_array(x)
        given = [handle.asarray(a) for a in (dy, indices)]
        if handle.backend == "numpy":
            with pytest.raises(BadParamError, match="indices has an index out of range: got 7"):
                dp.pooling_backward(handle, pooling, given[0], x_descriptor=described, indices=given[1])
            continue
        dx = dp.pooling_backward(handle, pooling, given[0], x_descriptor=described, indices=given[1])
        assert handle.to_numpy(dx).sum() == y.size - 1
        with pytest.raises(BadParamError, match="indices has an index out of range"):
            handle.check()
        handle.check()


def test_questions_need_no_device() -> None:
    pooling, x = PoolingDescriptor("max", 3, 2, 1, "NHWC"), TensorDescriptor((8, 112, 112, 64), "bfloat16")
    answer = dp.supports(dp.pooling_forward, pooling, x, with_indices=True)
    assert (answer.ok, answer.variant) == (True, "packed_channels")
    y, indices = dp.output_descriptors(dp.pooling_forward, pooling, x, with_indices=True)
    assert y == dp.pooling_output_descriptor(pooling, x) == TensorDescriptor((8, 56, 56, 64), "bfloat16")
    assert (indices.shape, indices.dtype.name) == (y.shape, "uint8")
    large = PoolingDescriptor("max", (17, 16), layout="NHWC")
    assert dp.output_descriptors(dp.pooling_forward, large, x, with_indices=True)[1].dtype.name == "int32"
    assert dp.supports(dp.pooling_forward, large, x).variant == "plain"


# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pooling",
    [
        PoolingDescriptor("max", 2),
        PoolingDescriptor("average_include_padding", 3, 2, 1, "NHWC"),
        PoolingDescriptor("average_exclude_padding", (3, 2), stride=(1, 2), padding=((1, 2), 0)),
    ],
)
def test_descriptor_comes_back(pooling: PoolingDescriptor) -> None:
    """From its repr, and from the line of a call."""
    assert eval(repr(pooling), {"PoolingDescriptor": PoolingDescriptor}) == pooling
    line = CallLine.of(dp.pooling_forward, {"pooling": pooling, "x": np.zeros((2, 3, 4, 4), np.float32)})
    back = CallLine.parse(str(line)).arguments["pooling"]
    assert (back, hash(back)) == (pooling, hash(pooling))


def test_descriptor_is_normal() -> None:
    one = PoolingDescriptor("max", [3, np.int64(2)], padding=[(1, 1), 0])
    assert one == dp.create_pooling_descriptor("max", (3, 2), (3, 2), (1, 0))
    assert repr(one) == "PoolingDescriptor('max', (3, 2), padding=(1, 0))"
    assert (one.axes, PoolingDescriptor("max", 2).axes) == (2, None)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"mode": "average"}, "mode"),
        ({"mode": None}, "mode"),
        ({"window": 0}, "window"),
        ({"window": 2.0}, "window"),
        ({"window": (2, 2, 2, 2)}, "window"),
        ({"window": ((1, 2),)}, "window"),
        ({"stride": 0}, "stride"),
        ({"stride": (1, 1), "window": (2, 2, 2)}, "window"),
        ({"padding": -1}, "padding"),
        ({"padding": 2}, "padding"),  # as large as the window: one window would be padding alone
        ({"padding": (1, (0, 2))}, "padding"),
        ({"window": (3, 1), "padding": 1}, "padding"),
        ({"layout": "NCDHW"}, "layout"),
    ],
)
def test_descriptor_refusals(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(BadParamError, match=r"^PoolingDescriptor: ") as caught:
        PoolingDescriptor(**{"mode": "max", "window": 2, **arguments})
    assert caught.value.param == param


# -- refusals ---------------------------------------------------------------------------------------------------------


def a(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"pooling": None}, "pooling", "a PoolingDescriptor"),
        ({"pooling": dp.ConvolutionDescriptor()}, "pooling", "a PoolingDescriptor"),
        ({"x": a(2, 3)}, "x", "3 to 5 axes"),
        ({"pooling": PoolingDescriptor("max", (2, 2, 2))}, "x", "5 axes, as pooling is for"),
        ({"x": a(2, 3, 1, 4)}, "x", "smaller than the window: got extent 1, .* along spatial axis 0, expected .* 2"),
        ({"x": a(2, 3, 0, 4), "pooling": PoolingDescriptor("max", 2, padding=1)}, "x", "an element"),
        ({"x": a(2, 3, 4, 4, dtype=np.int32)}, "x", "float32"),
        ({"out": a(2, 3, 2, 3)}, "out", "the shape of the pooling"),
        ({"indices": a(2, 3, 2, 2, dtype=np.int32)}, "indices", "uint8"),
        ({"with_indices": 2}, "with_indices", "a bool"),
        ({"pooling": PoolingDescriptor(MODES[1], 2)}, "with_indices", "only a maximum"),
        ({"beta": 1.0}, "out", "missing"),
    ],
)
def test_forward_refusals(handle: dp.Handle, change: dict[str, Any], param: str, words: str) -> None:
    """Each names the function, the argument and the rule."""
    call = {"pooling": PoolingDescriptor("max", 2), "x": a(2, 3, 4, 4), "with_indices": True, **change}
    given = {name: handle.asarray(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    with pytest.raises(BadParamError, match=rf"^pooling_forward: .*{words}") as caught:
        dp.pooling_forward(handle, **given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"x_descriptor": TensorDescriptor((2, 3, 6, 4), "float32")}, "dy"),
        ({"x_descriptor": TensorDescriptor((2, 3, 4, 4), "float64")}, "dy"),
        ({"x_descriptor": (2, 3, 4, 4)}, "x_descriptor"),
        ({"indices": None}, "indices"),
        ({"indices": a(2, 3, 2, 3, dtype=np.uint8)}, "indices"),
        ({"indices": a(2, 3, 2, 2, dtype=np.int32)}, "indices"),
        ({"pooling": PoolingDescriptor(MODES[1], 2)}, "indices"),
        ({"out": a(2, 3, 2, 2)}, "out"),
        ({"beta": 1.0}, "out"),
    ],
)
def test_backward_refusals(handle: dp.Handle, change: dict[str, Any], param: str) -> None:
    good = {
        "pooling": PoolingDescriptor("max", 2),
        "dy": a(2, 3, 2, 2),
        "x_descriptor": TensorDescriptor((2, 3, 4, 4), "float32"),
        "indices": a(2, 3, 2, 2, dtype=np.uint8),
    }
    for call in (good, {**good, **change}):
        given = {n: handle.asarray(value) if isinstance(value, np.ndarray) else value for n, value in call.items()}
        if call is good:
            dp.pooling_backward(handle, **given)
            continue
        with pytest.raises(BadParamError, match=r"^pooling_backward: ") as caught:
            dp.pooling_backward(handle, **given)
        assert caught.value.param == param
