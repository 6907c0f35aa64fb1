"""Convolutions of few channels: bit for bit, what may follow the sums, and when they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.ops.convolution import first, plan_conv_backward_filter, plan_conv_forward
from dnnprims.reference import convolution as reference
from dnnprims.runtime.launch import KernelStep, Profile

DTYPES = (np.float16, ml_dtypes.bfloat16)
Shape = tuple[int, ...]


def integers(rng: np.random.Generator, shape: Shape, dtype: Any) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32).astype(dtype)


def problems() -> Iterator[tuple[ConvolutionDescriptor, Shape, Shape]]:
    """Channels x strides x paddings in both layouts, and shapes of x and w; some have several tiles."""
    for layout, channels, stride in product(("NHWC", "NCHW"), (1, 2, 3, 4), (1, 2, 3)):
        taps = (7, 7) if channels == 3 and stride == 2 else (5, 14) if (channels, stride) == (1, 2) else (3, 2)
        conv = ConvolutionDescriptor((3, (stride, 0)), stride, 1, 1, "cross_correlation", layout)
        image, filters = (17 * stride, 16), 8 * channels - 3 * (stride == 1)
        x, w = (1, channels, *image), (filters, channels, *taps)
        yield conv, *(((s[0], *s[2:], s[1]) if layout == "NHWC" else s) for s in (x, w))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_forward_bit_for_bit(handle: dp.Handle, dtype: Any) -> None:
    """Sums of integers are exact; the types take turns."""
    rng = np.random.default_rng(3)
    for conv, *shapes in list(problems())[DTYPES.index(dtype) :: 2]:
        x, w = (integers(rng, shape, dtype) for shape in shapes)
        here = [handle.asarray(one) for one in (x, w)]
        if handle.backend != "numpy":
            variant = dp.prepare(dp.conv_forward, handle, conv, *here).variant
            assert variant == "hopper_first" or variant.startswith("few_channels")
        found = handle.to_numpy(dp.conv_forward(handle, conv, *here))
        np.testing.assert_array_equal(found, reference.conv_forward(conv, x, w), err_msg=f"{conv} {shapes}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_filter_gradient_bit_for_bit(handle: dp.Handle, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, of dw; the other half of the problems for each type, and tall tiles for one."""
    if dtype == np.float16:
        monkeypatch.setattr(first, "_TILES_EACH", 0)
    rng = np.random.default_rng(4)
    for conv, *shapes in list(problems())[1 - DTYPES.index(dtype) :: 2]:
        x, w = (TensorDescriptor(shape, np.dtype(dtype).name) for shape in shapes)
        image, dy = (integers(rng, one.shape, dtype) for one in (x, dp.conv_output_descriptor(conv, x, w)))
        here = [handle.asarray(one) for one in (dy, image)]
        if handle.backend != "numpy":
            plan = dp.prepare(dp.conv_backward_filter, handle, conv, *here, w_descriptor=w)
            assert plan.variant.startswith(("few_channels", "hopper_first"))
        found = handle.to_numpy(dp.conv_backward_filter(handle, conv, *here, w_descriptor=w))
        expected = reference.conv_backward_filter(conv, dy, image, w_descriptor=w)
        np.testing.assert_array_equal(found, expected, err_msg=f"{conv} {shapes}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_data_gradient_bit_for_bit(handle: dp.Handle, dtype: Any) -> None:
    """The same, of dx, where strides have no more than four rests."""
    rng = np.random.default_rng(6)
    for conv, *shapes in list(problems())[DTYPES.index(dtype) :: 2]:
        x, w = (TensorDescriptor(shape, np.dtype(dtype).name) for shape in shapes)
        dy, filters = (integers(rng, one.shape, dtype) for one in (dp.conv_output_descriptor(conv, x, w), w))
        here = [handle.asarray(one) for one in (dy, filters)]
        if handle.backend != "numpy" and conv.strides(2) != (3, 3):
            assert dp.prepare(dp.conv_backward_data, handle, conv, *here, x_descriptor=x).variant.startswith(
                "few_channels"
            )
        found = handle.to_numpy(dp.conv_backward_data(handle, conv, *here, x_descriptor=x))
        expected = reference.conv_backward_data(conv, dy, filters, x_descriptor=x)
        np.testing.assert_array_equal(found, expected, err_msg=f"{conv} {shapes}")


def test_what_is_outside_is_never_multiplied(handle: dp.Handle) -> None:
    """Infinite and NaN elements reach what sees them, and not what the tensor cores multiply beside it.

    The gradient in filters on Hopper promises less: padding is zeros that are multiplied.
    """
    rng, conv = np.random.default_rng(5), ConvolutionDescriptor(3, 2, layout="NHWC")
    x, w = (integers(rng, shape, np.float16) for shape in ((2, 20, 24, 3), (16, 7, 7, 3)))
    x[0, 0, 0], x[1, 9, 8, 1], w[3, 0, 0, 0], w[4, 6, 6, 2] = np.inf, np.nan, np.inf, -np.inf
    dy = integers(rng, (2, 10, 12, 16), np.float16)
    dy[0, 0, 0, 2], dy[1, -1, -1, 5] = np.inf, np.nan
    described = TensorDescriptor.from_array(w)
    with np.errstate(all="ignore"):
        y = reference.conv_forward(conv, x, w)
        dw = reference.conv_backward_filter(conv, dy, x, w_descriptor=described)
        dx = reference.conv_backward_data(conv, dy, w, x_descriptor=x)
    a, b, c = map(handle.asarray, (x, w, dy))
    np.testing.assert_array_equal(handle.to_numpy(dp.conv_forward(handle, conv, a, b)), y)
    handle.profile = replace(handle.profile, tensor_maps=False)
    found = handle.to_numpy(dp.conv_backward_filter(handle, conv, c, a, w_descriptor=described))
    np.testing.assert_array_equal(found, dw)
    found = handle.to_numpy(dp.conv_backward_data(handle, conv, c, b, x_descriptor=TensorDescriptor.from_array(x)))
    np.testing.assert_array_equal(found, dx)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "do not multiply float32"),
        ({"shape": (2, 32, 32, 5)}, "5 channels in 1 groups"),
        ({"conv": ConvolutionDescriptor(dilation=2, layout="NHWC")}, "dilated"),
        ({"activation": "tanh"}, "tanh is not fused"),
        ({"taps": (32, 32)}, "bytes of shared memory"),
        ({"profile": Profile("cuda", arch=75)}, "capability 8.0"),
    ],
)
def test_reasons(changes: dict[str, Any], reason: str) -> None:
    call: dict[str, Any] = {"conv": ConvolutionDescriptor(layout="NHWC"), "shape": (2, 32, 32, 3), "taps": (3, 3)}
    call = {**call, "profile": Profile("cuda"), "activation": "relu", "dtype": "float16", **changes}
    x = TensorDescriptor(call["shape"], call["dtype"])
    w = TensorDescriptor((8, *call["taps"], call["shape"][-1]), call["dtype"])
    spec = plan_conv_forward(
        call["profile"], call["conv"], call["activation"], 1.0, 1.0, 1.0, 0.0, False, x, w, *(None,) * 6
    )
    assert reason in dict(spec.refused)["few_channels"]


def test_wide_filters_are_shared_by_blocks() -> None:
    """A warp of the gradient has 32 terms, a block 8 warps; here 17 are needed."""
    conv, x = ConvolutionDescriptor(stride=4, layout="NHWC"), TensorDescriptor((2, 43, 43, 3), "float16")
    w, dy = TensorDescriptor((8, 11, 11, 3), "float16"), TensorDescriptor((2, 9, 9, 8), "float16")
    spec = plan_conv_backward_filter(Profile("cuda"), conv, w, 1.0, 0.0, dy, x, None)
    assert spec.variant == "few_channels"
    assert [step.grid[2] for step in spec.steps if isinstance(step, KernelStep)] == [3, 1]
    spec = plan_conv_backward_filter(Profile("cuda", workspace_limit=0), conv, w, 1.0, 0.0, dy, x, None)
    assert "few_channels" in dict(spec.refused)
