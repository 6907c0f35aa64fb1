"""Convolutions: every kind of problem bit for bit, adjoint identities, gradients, layouts, descriptors, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, NotSupportedError, TensorDescriptor
from dnnprims.reference import convolution as reference

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
Shape = tuple[int, ...]
LAYOUTS, MODES = ("NCHW", "NHWC"), ("cross_correlation", "convolution")


def laid_out(conv: ConvolutionDescriptor, a: np.ndarray) -> np.ndarray:
    """(n, c, ...) in the layout of a convolution, without gaps."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if conv.channels_last else a


def in_front(conv: ConvolutionDescriptor, a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, -1, 1) if conv.channels_last else a


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32).astype(dtype)


def by_definition(conv: ConvolutionDescriptor, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The padded image looked at through windows, and each window multiplied by the filters of its group."""
    x, w = in_front(conv, x), in_front(conv, w)
    axes = tuple(range(2, x.ndim))
    w = np.flip(w, axes) if conv.mode == "convolution" else w
    x = np.pad(x, [(0, 0), (0, 0), *conv.paddings(len(axes))])
    dilations = conv.dilations(len(axes))
    spread = np.zeros((*w.shape[:2], *((r - 1) * d + 1 for r, d in zip(w.shape[2:], dilations, strict=True))))
    spread[(..., *(slice(None, None, d) for d in dilations))] = w
    windows = np.lib.stride_tricks.sliding_window_view(x, spread.shape[2:], axis=axes)
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in conv.strides(len(axes))))]
    taps = list(range(-len(axes), 0))
    parts = [
        np.tensordot(images, filters, axes=([1, *taps], [1, *taps]))
        for images, filters in zip(np.split(windows, conv.groups, 1), np.split(spread, conv.groups, 0), strict=True)
    ]
    return laid_out(conv, np.moveaxis(np.concatenate(parts, axis=-1), -1, 1))


#: Extents of the image -> taps to try.
FILTERS = {
    (9,): ((1,), (2,), (5,)),
    (5, 6): ((1, 1), (3, 2), (3, 3)),
    (3, 4, 3): ((1, 1, 1), (2, 1, 3)),
}


def grid(layout: str, mode: str) -> Iterator[tuple[ConvolutionDescriptor, tuple[int, ...], tuple[int, ...]]]:
    """Kernel size x stride x padding x dilation x groups, with the shapes of images and filters in front."""
    for image, several in FILTERS.items():
        paddings = (0, 1, ((2, 0), 1, (0, 1))[: len(image)])
        for taps, stride, padding, dilation in product(several, (1, 2, (3, 1, 2)[: len(image)]), paddings, (1, 2)):
            for groups, channels, filters in ((1, 3, 4), (2, 4, 2), (3, 3, 6)):  # the last one is depthwise
                conv = ConvolutionDescriptor(padding, stride, dilation, groups, mode, layout)
                padded = [i + sum(pads) for i, pads in zip(image, conv.paddings(len(image)), strict=True)]
                spread = [(r - 1) * d + 1 for r, d in zip(taps, conv.dilations(len(image)), strict=True)]
                if all(a <= b for a, b in zip(spread, padded, strict=True)):
                    yield conv, (2, channels, *image), (filters, channels // groups, *taps)


def drawn(conv: ConvolutionDescriptor, x: Shape, w: Shape, dtype: Any = np.float64) -> list[np.ndarray]:
    """Integers: image, filters and a gradient of the result."""
    rng = np.random.default_rng(5)
    image, filters = (laid_out(conv, integers(rng, shape, dtype)) for shape in (x, w))
    described = dp.conv_output_descriptor(conv, *map(TensorDescriptor.from_array, (image, filters)))
    return [image, filters, integers(rng, described.shape, dtype)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_reference_is_the_definition(layout: str, mode: str) -> None:
    """Exactly, on the whole grid; its gradients are the adjoints, which are linear and so determined by it."""
    count = 0
    for conv, *shapes in grid(layout, mode):
        x, w, dy = drawn(conv, *shapes)
        y = reference.conv_forward(conv, x, w)
        np.testing.assert_array_equal(y, by_definition(conv, x, w))
        dx = reference.conv_backward_data(conv, dy, w, x_descriptor=x)
        dw = reference.conv_backward_filter(conv, dy, x, w_descriptor=w)
        assert (y * dy).sum() == (x * dx).sum() == (w * dw).sum()
        count += 1
    assert count > 300


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", range(4))
def test_grid_bit_for_bit(handle: dp.Handle, layout: str, mode: str, part: int) -> None:
    """Every direction of every problem of the grid, of integers: sums are exact, and so is their one rounding.

    The types take turns, so that each has a quarter of the grid in each layout and mode.
    """
    dtype = DTYPES[(part + 2 * MODES.index(mode) + LAYOUTS.index(layout)) % 4]
    for conv, *shapes in list(grid(layout, mode))[part::4]:
        x, w, dy = drawn(conv, *shapes, dtype)
        for name, arguments in (
            ("conv_forward", {"x": x, "w": w}),
            ("conv_backward_data", {"dy": dy, "w": w, "x_descriptor": TensorDescriptor.from_array(x)}),
            ("conv_backward_filter", {"dy": dy, "x": x, "w_descriptor": TensorDescriptor.from_array(w)}),
        ):
            expected = getattr(reference, name)(conv, **arguments)
            given = {key: handle.asarray(a) if isinstance(a, np.ndarray) else a for key, a in arguments.items()}
            found = handle.to_numpy(getattr(dp, name)(handle, conv, **given))
            assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), f"{name} {conv} {shapes}"


def test_adjoint_identities(handle: dp.Handle) -> None:
    """<conv(x), dy> = <x, conv_backward_data(dy)> = <w, conv_backward_filter(x, dy)>; the transposed one likewise."""
    conv = ConvolutionDescriptor(padding=(1, (0, 2)), stride=(2, 3), dilation=(1, 2), groups=2, layout="NHWC")
    x, w, dy = drawn(conv, (3, 4, 9, 8), (6, 2, 3, 2), np.float32)
    a, filters, gradient = map(handle.asarray, (x, w, dy))
    described = [TensorDescriptor.from_array(one) for one in (x, w)]
    y, dx, dw, up = (
        handle.to_numpy(one).astype(np.float64)
        for one in (
            dp.conv_forward(handle, conv, a, filters),
            dp.conv_backward_data(handle, conv, gradient, filters, x_descriptor=described[0]),
            dp.conv_backward_filter(handle, conv, gradient, a, w_descriptor=described[1]),
            dp.conv_transpose_forward(handle, conv, gradient, filters, output_padding=(0, 1)),
        )
    )
    assert (y * dy).sum() == (x * dx).sum() == (w * dw).sum() != 0
    np.testing.assert_array_equal(up, dx)
    back = [handle.to_numpy(one) for one in dp.conv_transpose_backward(handle, conv, a, gradient, filters)]
    np.testing.assert_array_equal(back[0], y)
    np.testing.assert_array_equal(back[1], dw)
    np.testing.assert_array_equal(back[2], x.sum(axis=(0, 1, 2)))


def test_values_by_hand(handle: dp.Handle) -> None:
    """One image of one axis, as it is and with the filter flipped; then everything that may follow the sum."""
    x, w = (handle.asarray(np.array([[values]], np.float32)) for values in ([1, 2, 4, 8], [1, 10]))
    for mode, expected in (("cross_correlation", [21.0, 42.0, 84.0]), ("convolution", [12.0, 24.0, 48.0])):
        y = dp.conv_forward(handle, ConvolutionDescriptor(mode=mode), x, w)
        assert handle.to_numpy(y).tolist() == [[expected]]
    one = {name: handle.asarray(np.array([v], np.float32)) for name, v in (("b", -40), ("scale", 2), ("shift", 1))}
    z = handle.asarray(np.array([[[8, 8, -400]]], np.float32))
    y = dp.conv_forward(
        handle, ConvolutionDescriptor(), x, w, activation="relu", residual=z, alpha1=2.0, alpha2=0.5, out=z, **one
    )
    assert y is z  # in place
    assert handle.to_numpy(z).tolist() == [[[9.0, 93.0, 57.0]]]


def test_gradients_by_central_differences() -> None:
    """In image, filters and bias; linear in each, so that only rounding remains."""
    rng = np.random.default_rng(2)
    conv = ConvolutionDescriptor(padding=((1, 0), 2), stride=(2, 1), dilation=(1, 2), groups=2, mode="convolution")
    shapes = {"x": (2, 4, 6, 5), "w": (6, 2, 3, 2), "b": (6,)}
    point = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    dy = rng.standard_normal(reference.conv_forward(conv, **point).shape)
    gradients = {
        "x": reference.conv_backward_data(conv, dy, point["w"], x_descriptor=point["x"]),
        "w": reference.conv_backward_filter(conv, dy, point["x"], w_descriptor=point["w"]),
        "b": reference.conv_backward_bias(conv, dy),
    }
    for name, gradient in gradients.items():
        direction, h = rng.standard_normal(gradient.shape), 2.0**-10
        ahead, behind = (reference.conv_forward(conv, **{**point, name: point[name] + s * direction}) for s in (h, -h))
        measured = float((dy * (ahead - behind)).sum()) / (2 * h)
        assert measured == pytest.approx(float((gradient * direction).sum()), rel=2.0**-36)


def test_transposed_gradients_by_central_differences() -> None:
    rng = np.random.default_rng(3)
    conv = ConvolutionDescriptor(padding=1, stride=2, groups=2, layout="NHWC")
    point = {"x": rng.standard_normal((2, 3, 4)), "w": rng.standard_normal((4, 3, 3)), "b": rng.standard_normal(6)}
    dy = rng.standard_normal(reference.conv_transpose_forward(conv, **point, output_padding=1).shape)
    assert dy.shape == (2, 6, 6)
    gradients = reference.conv_transpose_backward(conv, dy, point["x"], point["w"])
    for name, gradient in zip(point, gradients, strict=True):
        assert gradient is not None
        direction, h = rng.standard_normal(gradient.shape), 2.0**-10
        ahead, behind = (
            reference.conv_transpose_forward(conv, **{**point, name: point[name] + s * direction}, output_padding=1)
            for s in (h, -h)
        )
        measured = float((dy * (ahead - behind)).sum()) / (2 * h)
        assert measured == pytest.approx(float((gradient * direction).sum()), rel=2.0**-36)


def test_layouts_and_views_give_the_same_bits(handle: dp.Handle) -> None:
    """A view with the axes moved is another layout, and is not read as if it were dense."""
    rng = np.random.default_rng(4)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 7, 6), (4, 5, 3, 3)))
    first, last = (ConvolutionDescriptor(padding=1, layout=layout) for layout in LAYOUTS)
    dense = [handle.asarray(laid_out(last, a)) for a in (x, w)]
    moved = [a.transpose(0, 3, 1, 2) for a in dense]
    y = handle.to_numpy(dp.conv_forward(handle, first, handle.asarray(x), handle.asarray(w)))
    np.testing.assert_array_equal(handle.to_numpy(dp.conv_forward(handle, first, *moved)), y)
    np.testing.assert_array_equal(in_front(last, handle.to_numpy(dp.conv_forward(handle, last, *dense))), y)
    out = handle.asarray(np.full((2, 7, 6, 4), np.nan, np.float32))
    dp.conv_forward(handle, first, *moved, out=out.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(in_front(last, handle.to_numpy(out)), y)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_fresh_results_lie_as_their_shape_says(handle: dp.Handle, layout: str) -> None:
    """Without gaps and in order, so that any primitive takes them."""
    conv = ConvolutionDescriptor(padding=1, layout=layout)
    x, w = (np.ones(shape, np.float32) for shape in ((2, 3, 4, 3), (3, 3, 3, 3)))
    if layout == "NHWC":
        x = np.ones((2, 4, 3, 3), np.float32)
    x, w = handle.asarray(x), handle.asarray(w)
    described = dp.TensorDescriptor(x.shape, "float32")
    y = dp.conv_forward(handle, conv, x, w)
    gradients = (
        dp.conv_backward_data(handle, conv, y, w, x_descriptor=described),
        dp.conv_backward_filter(handle, conv, y, x, w_descriptor=dp.TensorDescriptor(w.shape, "float32")),
    )
    assert all(a.flags.c_contiguous for a in (y, *gradients))


def test_what_is_outside_is_never_multiplied(handle: dp.Handle) -> None:
    """An infinite weight over padding makes no NaN; over a zero of the image it does, as mathematics says."""
    x, w = np.ones((1, 1, 3), np.float32), np.array([[[np.inf, 1.0, 1.0]]], np.float32)
    conv = ConvolutionDescriptor(padding=1)
    y = handle.to_numpy(dp.conv_forward(handle, conv, handle.asarray(x), handle.asarray(w)))
    assert y.tolist() == [[[2.0, np.inf, np.inf]]]
    x[0, 0, 1] = 0.0
    y = handle.to_numpy(dp.conv_forward(handle, conv, handle.asarray(x), handle.asarray(w)))
    assert np.array_equal(y[0, 0], [1.0, np.inf, np.nan], equal_nan=True)
    described = TensorDescriptor.from_array(x)
    dx = dp.conv_backward_data(handle, conv, handle.asarray(x), handle.asarray(w), x_descriptor=described)
    assert np.array_equal(handle.to_numpy(dx)[0, 0], [np.nan, np.inf, 1.0], equal_nan=True)


def test_empty_batch_launches_nothing_but_sums(emulator_handle: dp.Handle) -> None:
    """No image, no launch; the gradients of the parameters are 0, or what they were."""
    conv = ConvolutionDescriptor(padding=1)
    x, w = TensorDescriptor((0, 3, 5, 5), "float32"), TensorDescriptor((4, 3, 3, 3), "float32")
    dy = dp.conv_output_descriptor(conv, x, w)
    assert dy.shape == (0, 4, 5, 5)
    assert dp.prepare(dp.conv_forward, emulator_handle, conv, x, w).spec.steps == ()
    assert dp.prepare(dp.conv_backward_data, emulator_handle, conv, dy, w, x_descriptor=x).spec.steps == ()
    empty = np.zeros(dy.shape, np.float32)
    old = np.ones(w.shape, np.float32)
    image = np.zeros(x.shape, np.float32)
    dp.conv_backward_filter(emulator_handle, conv, empty, image, w_descriptor=w, out=old, beta=1.0)
    assert (old == 1.0).all()
    assert not dp.conv_backward_bias(emulator_handle, conv, empty).any()


def test_questions_need_no_device() -> None:
    conv = ConvolutionDescriptor(stride=2, padding=3, layout="NHWC")
    x, w = TensorDescriptor((8, 224, 224, 3), "bfloat16"), TensorDescriptor((64, 7, 7, 3), "bfloat16")
    answer = dp.supports(dp.conv_forward, conv, x, w, activation="relu")
    assert (answer.ok, answer.variant) == (True, "hopper_first")
    assert dp.workspace_size(dp.conv_forward, conv, x, w) == 0
    assert dp.output_descriptors(dp.conv_forward, conv, x, w) == (dp.conv_output_descriptor(conv, x, w),)
    assert dp.conv_output_descriptor(conv, x, w) == TensorDescriptor((8, 112, 112, 64), "bfloat16")
    assert not dp.supports(dp.conv_forward, conv, x, TensorDescriptor((64, 7, 7, 4), "bfloat16"))


def test_too_many_filter_elements() -> None:
    """Legal, and no variant takes it."""
    x, w = TensorDescriptor((1, 2**16, 1), "float64"), TensorDescriptor((2**15, 2**16, 1), "float64")
    conv, dy = ConvolutionDescriptor(), TensorDescriptor((1, 2**15, 1), "float64")
    with pytest.raises(NotSupportedError, match="too many blocks"):
        dp.workspace_size(dp.conv_backward_filter, conv, dy, x, w_descriptor=w)
