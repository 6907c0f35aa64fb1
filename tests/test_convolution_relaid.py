"""Convolutions behind copies to another layout: the direct algorithm made to insist on packs of channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_convolution import drawn, grid, integers

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.ops.convolution import algorithms
from dnnprims.ops.convolution.direct import DIRECT
from dnnprims.ops.convolution.product import Product
from dnnprims.ops.convolution.relaid import after_copies
from dnnprims.planning import _specify, variants
from dnnprims.reference import convolution as reference
from dnnprims.runtime.launch import Profile

EMULATOR = Profile("emulator")
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def needs_packs(product: Product) -> str | None:
    g = product.g
    if not g.conv.channels_last:
        return "planes"
    odd = [extent for extent in (g.in_channels, g.out_channels) if extent % product.dtype.lanes]
    return f"{odd} channels" if odd else None


FUSSY = DIRECT._replace(name="fussy", cannot=needs_packs)


@pytest.fixture(autouse=True)
def fussy(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (FUSSY, after_copies(FUSSY), DIRECT)
    monkeypatch.setattr(algorithms, "ALGORITHMS", dict.fromkeys(("forward", "data", "filter"), chosen))


def variant_of(op: Any, *arguments: Any, **options: Any) -> str:
    return dp.supports(op, *arguments, profile=EMULATOR, **options).variant


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", TYPES, ids=["float32", "float16", "bfloat16"])
def test_grid_bit_for_bit(handle: dp.Handle, layout: str, dtype: Any) -> None:
    """Of integers, a part of the grid of every direction; what is copied goes there and back."""
    part = list(grid(layout, "cross_correlation"))[TYPES.index(dtype) :: 11]
    taken = set()
    for conv, *shapes in part:
        x, w, dy = drawn(conv, *shapes, dtype)
        calls: dict[Any, dict[str, Any]] = {
            dp.conv_forward: {"x": x, "w": w},
            dp.conv_backward_data: {"dy": dy, "w": w, "x_descriptor": TensorDescriptor.from_array(x)},
            dp.conv_backward_filter: {"dy": dy, "x": x, "w_descriptor": TensorDescriptor.from_array(w)},
        }
        for op, arguments in calls.items():
            expected = getattr(reference, op.__name__)(conv, **arguments)
            given = {key: handle.asarray(a) if isinstance(a, np.ndarray) else a for key, a in arguments.items()}
            found = handle.to_numpy(op(handle, conv, **given))
            assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), f"{op.__name__} {conv} {shapes}"
            described = {
                k: TensorDescriptor.from_array(a) if isinstance(a, np.ndarray) else a for k, a in given.items()
            }
            taken.add(variant_of(op, conv, **described) if handle.backend == "emulator" else "")
    assert handle.backend != "emulator" or {"fussy_after_copies", "direct_plain"} <= taken


@pytest.mark.parametrize("place", ["plain", "offset", "strided", "half", "whole"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_width_of_access(handle: dp.Handle, layout: str, place: str) -> None:
    """More than a tile of positions and channels, in packs and halves, by elements, whole, and out of a view."""
    conv = ConvolutionDescriptor(padding=1, layout=layout)
    across, channels = {"half": (20, 72), "whole": (15, 80)}.get(place, (16, 72))
    shape = (2, channels, 9, across) if layout == "NCHW" else (2, 9, across, channels)
    taps = (80, channels, 3, 3) if layout == "NCHW" else (80, 3, 3, channels)
    rng = np.random.default_rng(3)
    x, w = integers(rng, shape, np.float16), integers(rng, taps, np.float16)
    expected = reference.conv_forward(conv, x, w)
    room = np.zeros((*shape[:-1], shape[-1] + 8), np.float16)
    if place == "strided":
        view = room[..., : shape[-1]] if layout == "NHWC" else None
        if view is None:
            view = np.zeros((2, 80, 9, 16), np.float16)[:, :72]
        there = handle.asarray(view.base)[..., : shape[-1]] if layout == "NHWC" else handle.asarray(view.base)[:, :72]
    elif place == "offset":
        there = handle.asarray(np.zeros(x.size + 1, np.float16))[1:].reshape(shape)
    else:
        there = handle.asarray(x)
    there[...] = handle.asarray(x)
    found = handle.to_numpy(dp.conv_forward(handle, conv, there, handle.asarray(w)))
    np.testing.assert_array_equal(found, expected)


def test_an_epilogue_goes_along(handle: dp.Handle) -> None:
    """Bias, residual in place and activation, of planes."""
    conv = ConvolutionDescriptor(padding=1)
    rng = np.random.default_rng(4)
    x, w, b, residual = (integers(rng, s, np.float32) for s in ((2, 5, 6, 7), (8, 5, 3, 3), (8,), (2, 8, 6, 7)))
    expected = reference.conv_forward(conv, x, w, b, residual=residual, activation=dp.ActivationDescriptor("relu"))
    there, (image, filters, bias) = handle.asarray(residual), map(handle.asarray, (x, w, b))
    y = dp.conv_forward(handle, conv, image, filters, bias, residual=there, activation="relu", out=there)
    np.testing.assert_array_equal(handle.to_numpy(y), expected)


def test_what_copies_cannot_do_is_said() -> None:
    conv = ConvolutionDescriptor(padding=1)
    x, w, b = (TensorDescriptor(s, "float16") for s in ((2, 16, 8, 8), (12, 16, 3, 3), (12,)))
    profile = Profile("emulator", workspace_limit=100)

    def reason(*arguments: Any, profile: Profile = EMULATOR, **options: Any) -> str:
        asked = replace(profile, preferred="fussy_after_copies")
        return dict(_specify(dp.conv_forward, asked, arguments, options).refused)["fussy_after_copies"]

    assert "12 channels with bias" in reason(conv, x, w, b)
    assert "after a rounding" in reason(conv, x, w, alpha=0.5)
    assert "the limit is 100" in reason(conv, x, w, profile=profile)
    gaps = TensorDescriptor((2, 16, 8, 8), "float16", (2048, 128, 16, 2))
    assert "without gaps" in reason(conv, gaps, w)
    assert "no copies of float64" in reason(conv, *(TensorDescriptor(d.shape, "float64") for d in (x, w)))
    grouped = ConvolutionDescriptor(padding=1, groups=2)
    assert "cannot be padded" in reason(grouped, x, TensorDescriptor((12, 8, 3, 3), "float16"))


def test_copies_need_workspace() -> None:
    conv = ConvolutionDescriptor(padding=1)
    x, w = (TensorDescriptor(s, "float16") for s in ((2, 16, 8, 8), (16, 16, 3, 3)))
    whole = 2 * (2 * 16 * 8 * 8 * 2 + 16 * 16 * 9)
    assert dp.workspace_size(dp.conv_forward, conv, x, w, profile=EMULATOR) == whole
    assert variants(dp.conv_forward, conv, x, w, profile=EMULATOR)[0].variant == "fussy_after_copies"
