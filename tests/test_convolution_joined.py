"""Few input channels, taps and channels joined or behind a copy of the outputs: bit for bit, and what is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import backend_parameters
from test_convolution_implicit import LAYOUTS, MODES, drawn, results

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor

Shape = tuple[int, ...]

#: Image, taps, stride, padding, dilation, groups, channels and filters.
PROBLEMS: tuple[tuple[Any, ...], ...] = (
    ((9,), (4,), 2, 1, 1, 1, 3, 24),
    ((9,), (3,), 1, 1, 2, 2, 6, 10),
    ((15, 14), (7, 7), 2, 3, 1, 1, 3, 64),
    ((11, 13), (3, 2), (1, 3), ((2, 0), 1), 1, 1, 2, 72),
    ((9, 8), (3, 3), 1, 1, 1, 1, 3, 5),
    ((9, 8), (3, 3), 1, 1, 2, 1, 3, 17),
    ((9, 8), (2, 2), 3, 0, 1, 1, 1, 9),
    ((20, 36), (5, 4), 2, (1, 2), 1, 1, 4, 24),
    ((20, 37), (3, 3), 1, 1, 1, 2, 4, 12),
)
#: Directions that each algorithm has of these problems, of one layout and mode.
TAKEN = {"joined_taps": 22, "few_channels_after_copies": 8}


def problems(layout: str, mode: str) -> Iterator[tuple[ConvolutionDescriptor, Shape, Shape]]:
    """Convolutions, images and filters."""
    for image, taps, stride, padding, dilation, groups, channels, filters in PROBLEMS:
        conv = ConvolutionDescriptor(padding, stride, dilation, groups, mode, layout)
        yield conv, (2, channels, *image), (filters, channels // groups, *taps)


@pytest.fixture(params=backend_parameters()[1:])
def handle(request: pytest.FixtureRequest) -> Iterator[dp.Handle]:
    """A handle on each backend that has algorithms."""
    with dp.create_handle(request.param) as made:
        yield made


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_joined_bit_for_bit(handle: dp.Handle, layout: str, mode: str, spoilt: bool) -> None:
    """Of integers; infinities and NaN of weights and gradients meet no padding."""
    handle.profile = replace(handle.profile, preferred="joined_taps")
    for conv, *shapes in problems(layout, mode):
        x, w, dy = drawn(conv, *shapes, np.float32)
        if spoilt:
            w.flat[3], dy.flat[5], dy.flat[-1] = np.inf, -np.inf, np.nan
        for name, found, expected in results(handle, conv, x, w, dy):
            assert np.array_equal(found, expected, equal_nan=True), f"{name} {conv} {shapes}"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_first_layers_behind_a_copy(handle: dp.Handle, dtype: Any) -> None:
    """Likewise on tensor cores, of outputs in planes."""
    handle.profile = replace(handle.profile, preferred="few_channels_after_copies", tensor_maps=False)
    for conv, *shapes in problems("NCHW", "convolution"):
        for name, found, expected in results(handle, conv, *drawn(conv, *shapes, dtype)):
            assert found.tobytes() == expected.tobytes(), f"{name} {conv} {shapes}"


@pytest.mark.parametrize(("algorithm", "dtype"), [("joined_taps", "float32"), ("few_channels_after_copies", "float16")])
def test_what_is_taken(handle: dp.Handle, algorithm: str, dtype: str) -> None:
    """That the tests above see the algorithms that they force."""
    handle.profile = replace(handle.profile, preferred=algorithm, tensor_maps=False)
    taken = 0
    for conv, image, filters in problems("NCHW", "cross_correlation"):
        x, w = (TensorDescriptor(shape, dtype) for shape in (image, filters))
        dy = dp.conv_output_descriptor(conv, x, w)
        plans = (
            dp.prepare(dp.conv_forward, handle, conv, x, w),
            dp.prepare(dp.conv_backward_data, handle, conv, dy, w, x_descriptor=x),
            dp.prepare(dp.conv_backward_filter, handle, conv, dy, x, w_descriptor=w),
        )
        taken += sum(plan.variant == algorithm for plan in plans)
    assert taken == TAKEN[algorithm]
