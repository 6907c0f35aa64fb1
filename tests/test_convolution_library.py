"""Convolutions that are a product of matrices: which ones are, why others are not, and that they are right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import HAS_GPU
from test_convolution import integers

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.planning import H200
from dnnprims.reference import convolution as reference

CONV, PLANES = ConvolutionDescriptor(layout="NHWC"), ConvolutionDescriptor()


def described(*shapes: tuple[int, ...], dtype: str = "float32") -> list[TensorDescriptor]:
    return [TensorDescriptor(shape, dtype) for shape in shapes]


def reason(conv: ConvolutionDescriptor, *arguments: Any, **options: Any) -> str:
    ways = {way.variant: way.reason for way in dp.variants(dp.conv_forward, conv, *arguments, profile=H200, **options)}
    return ways["lt_product"]


def test_one_tap_is_a_product() -> None:
    x, w, b = described((2, 6, 5, 16), (24, 1, 1, 16), (24,))
    assert reason(CONV, x, w, b, activation="relu") == ""
    assert reason(CONV, TensorDescriptor((2, 6, 5, 16), "float32", (960, 160, 32, 1)), w) == ""


@pytest.mark.parametrize(
    ("conv", "x", "w", "options", "why"),
    [
        (ConvolutionDescriptor(), (2, 16, 6, 5), (24, 16, 1, 1), {}, "side by side"),
        (ConvolutionDescriptor(layout="NHWC", padding=1), (2, 6, 5, 16), (24, 3, 3, 16), {}, "more than one tap"),
        (ConvolutionDescriptor(layout="NHWC", stride=2), (2, 6, 5, 16), (24, 1, 1, 16), {}, "strides or padding"),
        (ConvolutionDescriptor(layout="NHWC", groups=2), (2, 6, 5, 16), (24, 1, 1, 8), {}, "groups"),
        (CONV, (2, 6, 5, 16), (24, 1, 1, 16), {"activation": "tanh"}, "no epilogue for tanh"),
        (CONV, (2, 6, 5, 16), (24, 1, 1, 16), {"activation": "relu", "alpha": 2.0}, "after activation"),
        (CONV, (0, 6, 5, 16), (24, 1, 1, 16), {}, "an extent is 0"),
    ],
)
def test_what_is_no_product(conv: Any, x: Any, w: Any, options: dict[str, Any], why: str) -> None:
    assert why in reason(conv, *described(x, w), **options)


def test_what_the_library_would_round_twice() -> None:
    x, w, b = described((2, 6, 5, 16), (24, 1, 1, 16), (24,), dtype="bfloat16")
    assert "before it adds" in reason(CONV, x, w, b)
    uneven = TensorDescriptor((2, 6, 5, 16), "bfloat16", (1000, 96, 16, 1))
    assert "even steps" in reason(CONV, uneven, w)
    assert "16 bytes" in reason(CONV, TensorDescriptor(x.shape, "bfloat16", alignment=2), w)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_integers_on_a_gpu(dtype: Any) -> None:
    """Every direction, exactly, with one to three spatial axes, of operands dense and cut out of wider ones."""
    rng = np.random.default_rng(6)
    with dp.create_handle("cuda") as handle:
        for image in ((7,), (6, 5), (3, 4, 5)):
            x, w = integers(rng, (3, *image, 48), dtype), integers(rng, (32, *(1,) * len(image), 24), dtype)
            dy = integers(rng, (3, *image, 32), dtype)
            there = handle.asarray(x)
            for images, kept in ((there[..., :24], x[..., :24]), (handle.asarray(x[..., 24:].copy()), x[..., 24:])):
                filters, given = handle.asarray(w), handle.asarray(dy)
                results = {
                    "conv_forward": (dp.conv_forward(handle, CONV, images, filters), {"x": kept, "w": w}),
                    "conv_backward_data": (
                        dp.conv_backward_data(
                            handle, CONV, given, filters, x_descriptor=TensorDescriptor.from_array(kept)
                        ),
                        {"dy": dy, "w": w, "x_descriptor": kept},
                    ),
                    "conv_backward_filter": (
                        dp.conv_backward_filter(
                            handle, CONV, given, images, w_descriptor=TensorDescriptor.from_array(w)
                        ),
                        {"dy": dy, "x": kept, "w_descriptor": w},
                    ),
                }
                for name, (found, arguments) in results.items():
                    expected = getattr(reference, name)(CONV, **arguments)
                    np.testing.assert_array_equal(handle.to_numpy(found), expected, err_msg=f"{name} {image}")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_filters_from_planes_on_a_gpu(dtype: Any) -> None:
    """A product for each image, whose sums are folded and blended, exactly."""
    rng = np.random.default_rng(6)
    for n, c, side, k, beta in ((3, 64, 8, 128, 0.0), (5, 16, 16, 24, -1.25), (1, 8, 8, 8, 1.0)):
        x, dy = integers(rng, (n, c, side, side), dtype), integers(rng, (n, k, side, side), dtype)
        old = integers(rng, (k, c, 1, 1), dtype)
        options = {"w_descriptor": TensorDescriptor.from_array(old), "alpha": 0.5, "beta": beta}
        with dp.create_handle("cuda") as handle:
            handle.profile = replace(handle.profile, preferred="lt_products")
            out, given = handle.asarray(old.copy()), [handle.asarray(a) for a in (dy, x)]
            assert (
                dp.prepare(dp.conv_backward_filter, handle, PLANES, *given, out=out, **options).variant == "lt_products"
            )
            found = handle.to_numpy(dp.conv_backward_filter(handle, PLANES, *given, out=out, **options))
        np.testing.assert_array_equal(found, reference.conv_backward_filter(PLANES, dy, x, out=old.copy(), **options))
