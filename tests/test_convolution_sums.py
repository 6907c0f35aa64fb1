"""Sums of what a convolution makes, for the batch norm that follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import BatchNormDescriptor, ConvolutionDescriptor, TensorDescriptor
from dnnprims.reference import convolution as reference


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(3, 16, 40, 33), (2, 12, 9, 8)])
def test_many_rows_in_splits(handle: dp.Handle, layout: str, shape: tuple[int, ...]) -> None:
    """Integers, in shares of several blocks, behind a residual in place: exact."""
    rng, nhwc = np.random.default_rng(1), layout == "NHWC"
    x, w, old = (
        rng.integers(-2, 3, s).astype(np.float32) for s in (shape, (8, shape[1], 1, 1), (shape[0], 8, *shape[2:]))
    )
    x, w, old = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) if nhwc else a for a in (x, w, old))
    conv = ConvolutionDescriptor(layout=layout)
    expected = reference.conv_forward(
        conv, x, w, residual=old, activation=dp.ActivationDescriptor("relu"), with_sums=True
    )
    out, sums = handle.asarray(old), handle.asarray(np.full((2, 8), np.nan, np.float32))
    given = {"residual": out, "out": out, "sums": sums, "activation": "relu"}
    found = dp.conv_forward(handle, conv, handle.asarray(x), handle.asarray(w), **given)
    for one, ideal in zip(found, expected, strict=True):
        np.testing.assert_array_equal(handle.to_numpy(one), ideal)


def test_a_batch_norm_that_reads_once(handle: dp.Handle) -> None:
    """Mean and variance from the sums, given to the inference pass, are those of the training pass."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((4, 6, 5, 8)).astype(np.float32), rng.standard_normal((16, 3, 3, 8)).astype(np.float32)
    conv, norm = ConvolutionDescriptor(1, layout="NHWC"), BatchNormDescriptor(layout="NHWC")
    y, sums = dp.conv_forward(handle, conv, handle.asarray(x), handle.asarray(w), with_sums=True)
    total, squares = handle.to_numpy(sums).astype(np.float64) / (4 * 6 * 5)
    mean, variance = (a.astype(np.float32) for a in (total, squares - total**2))
    gamma, beta = (handle.asarray(np.full(16, value, np.float32)) for value in (1.5, 0.25))
    found = dp.batchnorm_forward_inference(handle, norm, y, gamma, beta, *map(handle.asarray, (mean, variance)))
    expected, *_ = dp.batchnorm_forward_training(handle, norm, y, gamma, beta)
    np.testing.assert_allclose(*map(handle.to_numpy, (found, expected)), rtol=0, atol=2.0**-16)


def test_what_sums_want() -> None:
    """A place of their shape and type, and a result without gaps; both are described."""
    conv, x, w = (
        ConvolutionDescriptor(),
        TensorDescriptor((2, 3, 8, 8), "float16"),
        TensorDescriptor((4, 3, 1, 1), "float16"),
    )
    y, sums = dp.output_descriptors(dp.conv_forward, conv, x, w, with_sums=True)
    assert (y.shape, sums.shape, sums.dtype.name) == ((2, 4, 8, 8), (2, 4), "float32")
    gaps = TensorDescriptor((2, 4, 8, 8), "float16", (512, 128, 16, 2))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sums": TensorDescriptor((4, 2), "float32")}, "sums"),
        ({"sums": TensorDescriptor((2, 4), "float16")}, "sums"),
        ({"with_sums": True, "out": gaps}, "out"),
    ]
    for given, param in cases:
        with pytest.raises(dp.BadParamError) as caught:
            dp.output_descriptors(dp.conv_forward, conv, x, w, **given)
        assert caught.value.param == param
