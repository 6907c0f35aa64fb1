"""Depthwise convolutions: every kernel bit for bit, what may follow the sums, and when they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.ops.convolution import plan_conv_backward_filter, plan_conv_forward
from dnnprims.reference import convolution as reference
from dnnprims.runtime.launch import Profile

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
Shape = tuple[int, ...]


def integers(rng: np.random.Generator, shape: Shape, dtype: Any) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32).astype(dtype)


def problems() -> Iterator[tuple[ConvolutionDescriptor, Shape, Shape]]:
    """Filters and strides that kernels are compiled for and others, padding of every kind; shapes of x and w."""
    paddings: tuple[Any, ...] = (0, 1, 2, 3, ((2, 0), (0, 1)), 7)
    for taps, stride, padding in product((3, 5), (1, 2), paddings):
        for channels, image in ((8, (9, 6)), (72, (7, 7)), (5, (6, 9))):  # packs, several blocks, one at a time
            mode = "convolution" if channels == 72 else "cross_correlation"
            conv = ConvolutionDescriptor(padding, stride, 1, channels, mode, "NHWC")
            yield conv, (2, *image, channels), (channels, taps, taps, 1)
        conv = ConvolutionDescriptor(padding, stride, 1, 3, "convolution", "NCHW")
        yield conv, (2, 3, 9, 10), (3, 1, taps, taps)
    for taps, stride, dilation in (((3, 3), 1, 2), ((3, 5), 1, 1), ((4, 2), (3, 1), 1), ((3, 3), (2, 1), (1, 2))):
        conv = ConvolutionDescriptor(2, stride, dilation, 6, "convolution", "NHWC")
        yield conv, (2, 8, 7, 6), (6, *taps, 1)
        yield ConvolutionDescriptor(2, stride, dilation, 5), (2, 5, 8, 7), (5, 1, *taps)
    yield ConvolutionDescriptor(2, 1, 1, 4, layout="NHWC"), (3, 17, 4), (4, 5, 1)


def calls(conv: ConvolutionDescriptor, shapes: tuple[Shape, Shape], dtype: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The three products, of integers."""
    rng = np.random.default_rng(3)
    x, w = (integers(rng, shape, dtype) for shape in shapes)
    described = [TensorDescriptor.from_array(one) for one in (x, w)]
    dy = integers(rng, dp.conv_output_descriptor(conv, *described).shape, dtype)
    yield "conv_forward", {"x": x, "w": w}
    yield "conv_backward_data", {"dy": dy, "w": w, "x_descriptor": described[0]}
    yield "conv_backward_filter", {"dy": dy, "x": x, "w_descriptor": described[1]}


def given(handle: dp.Handle, arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: handle.asarray(a) if isinstance(a, np.ndarray) else a for key, a in arguments.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_direction_bit_for_bit(handle: dp.Handle, dtype: Any) -> None:
    """Sums of integers are exact; the types take turns, each with a quarter of the problems."""
    for conv, *shapes in list(problems())[DTYPES.index(dtype) :: 4]:
        for name, arguments in calls(conv, (shapes[0], shapes[1]), dtype):
            here = given(handle, arguments)
            if handle.backend != "numpy":
                assert dp.prepare(getattr(dp, name), handle, conv, **here).variant == "depthwise"
            found = handle.to_numpy(getattr(dp, name)(handle, conv, **here))
            expected = getattr(reference, name)(conv, **arguments)
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {conv} {shapes}")


@pytest.mark.parametrize(("taps", "stride"), list(product((3, 4, 5), (1, 2))))
def test_what_is_outside_is_never_multiplied(handle: dp.Handle, taps: int, stride: int) -> None:
    """Infinite and NaN elements reach what sees them, and nothing else."""
    rng, shapes = np.random.default_rng(7), ((2, 7, 9, 8), (8, taps, taps, 1))
    conv = ConvolutionDescriptor(taps // 2, stride, 1, 8, layout="NHWC")
    for name, arguments in calls(conv, shapes, np.float32):
        for key, a in arguments.items():
            if isinstance(a, np.ndarray):
                a.reshape(-1)[rng.integers(0, a.size, 2)] = np.inf
                if key != "w":
                    a[0, 0, 0, :2], a[-1, -1, -1, 1:3] = -np.inf, np.nan
        with np.errstate(all="ignore"):
            expected = getattr(reference, name)(conv, **arguments)
        found = handle.to_numpy(getattr(dp, name)(handle, conv, **given(handle, arguments)))
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_long_strips_and_their_ends(handle: dp.Handle) -> None:
    """Columns that are cut into segments, and filters' gradients that several blocks share."""
    for taps, stride in product((3, 5), (1, 2)):
        conv = ConvolutionDescriptor(taps // 2, stride, 1, 68, layout="NHWC")
        for name, arguments in calls(conv, ((1, 37, 31, 68), (68, taps, taps, 1)), np.float32):
            found = handle.to_numpy(getattr(dp, name)(handle, conv, **given(handle, arguments)))
            np.testing.assert_array_equal(found, getattr(reference, name)(conv, **arguments), err_msg=name)


X, W = TensorDescriptor((2, 9, 9, 8), "float32"), TensorDescriptor((8, 3, 3, 1), "float32")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conv": ConvolutionDescriptor(groups=4, layout="NHWC"), "w": (8, 3, 3, 2)}, "4 groups of 8 channels"),
        ({"w": (16, 3, 3, 1)}, "8 groups of 8 channels into 16"),
        ({"conv": ConvolutionDescriptor(groups=8, layout="NHWC"), "x": (1, 4, 4, 4, 8), "w": (8, 3, 3, 3, 1)}, "axes"),
        ({"activation": "gelu"}, "gelu is not fused"),
    ],
)
def test_reasons(changes: dict[str, Any], reason: str) -> None:
    call = {"conv": ConvolutionDescriptor(groups=8, layout="NHWC"), "x": X, "w": W, "activation": "relu", **changes}
    x, w = (v if isinstance(v, TensorDescriptor) else TensorDescriptor(v, "float32") for v in (call["x"], call["w"]))
    spec = plan_conv_forward(
        Profile("cuda"), call["conv"], call["activation"], 1.0, 1.0, 1.0, 0.0, False, x, w, *[None] * 6
    )
    assert reason in dict(spec.refused)["depthwise"]


def test_gradient_needs_room() -> None:
    """Partial sums of filters go to the workspace; without one another algorithm takes the problem."""
    conv, dy = ConvolutionDescriptor(groups=8, layout="NHWC"), TensorDescriptor((2, 7, 7, 8), "float32")
    arguments = (conv, W, 1.0, 0.0, dy, X, None)
    assert plan_conv_backward_filter(Profile("cuda"), *arguments).variant == "depthwise"
    spec = plan_conv_backward_filter(Profile("cuda", workspace_limit=0), *arguments)
    assert "workspace" in dict(spec.refused)["depthwise"]
