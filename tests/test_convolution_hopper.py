"""Convolutions on Hopper: when they are taken, and their phases against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.ops.convolution import geometry, hopper_patch, hopper_phases, hopper_tiles
from dnnprims.ops.convolution.backward import plan_conv_backward_data
from dnnprims.ops.convolution.forward import plan_conv_forward
from dnnprims.reference import convolution as reference
from dnnprims.runtime.launch import PlanSpec, Profile

H200 = Profile("cuda", blaslt=True, tensor_maps=True)
NHWC: dict[str, Any] = {"layout": "NHWC"}


def described(*shape: int, dtype: str = "bfloat16", **more: Any) -> TensorDescriptor:
    return TensorDescriptor(shape, dtype, **more)


def planned(conv: ConvolutionDescriptor, x: TensorDescriptor, w: TensorDescriptor, **given: Any) -> PlanSpec:
    """The plan of a forward convolution."""
    words = {"activation": None, "alpha1": 1.0, "alpha2": 1.0, "alpha": 1.0, "beta": 0.0, "profile": H200, **given}
    options = (words[name] for name in ("activation", "alpha1", "alpha2", "alpha", "beta"))
    out = dp.conv_output_descriptor(conv, x, w) if words["beta"] else None
    return plan_conv_forward(words["profile"], conv, *options, False, x, w, None, None, None, None, out, None)


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_layers_are_one_launch(dtype: str) -> None:
    """Forward and in the data, with strides, dilations and flipped filters."""
    for stride, dilation, mode in product((1, 2), (1, 2), ("cross_correlation", "convolution")):
        conv = ConvolutionDescriptor(padding=2, stride=stride, dilation=dilation, mode=mode, **NHWC)
        x, w = described(32, 28, 28, 128, dtype=dtype), described(256, 3, 3, 128, dtype=dtype)
        dy = dp.conv_output_descriptor(conv, x, w)
        forward = planned(conv, x, w)
        data = plan_conv_backward_data(H200, conv, x, 1.0, 0.0, dy, w, None)
        for spec, maps in (forward, 4), (data, 10):
            (step,) = spec.steps
            assert spec.variant == "hopper"
            assert (step.block, len(step.maps), step.joint_maps) == (384, maps, True)  # type: ignore[union-attr]
            assert step.shared_bytes <= H200.shared_bytes  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("width", "stride", "variant", "steps"),
    [
        (4, 1, "hopper_patch_in_blocks", 2),
        (64, 1, "hopper_patch_in_blocks", 1),
        (16, 2, "hopper_in_blocks", 2),
        (128, 1, "hopper_in_blocks", 1),
    ],
)
def test_groups_are_done_in_blocks(width: int, stride: int, variant: str, steps: int) -> None:
    """Of 64 channels, for which filters of narrower groups are filled up."""
    conv = ConvolutionDescriptor(1, stride, groups=256 // width, **NHWC)
    x, w = described(8, 28, 28, 256), described(256, 3, 3, width)
    dy = dp.conv_output_descriptor(conv, x, w)
    for spec in planned(conv, x, w), plan_conv_backward_data(H200, conv, x, 1.0, 0.0, dy, w, None):
        assert (spec.variant, len(spec.steps)) == (variant, steps)
        assert sum(spec.scratch) == (256 * 9 * 64 * 2 if steps == 2 else 0)
    few = planned(replace(conv, groups=128), x, described(256, 3, 3, 2))
    assert "of 64 would be multiplied" in dict(few.refused)[variant.replace("patch_", "")]


def test_pixels_of_few_channels_are_joined() -> None:
    """Where windows step over groups of them; their rows may end in others."""
    conv, x, w = ConvolutionDescriptor(stride=2, **NHWC), described(32, 79, 341, 32), described(32, 5, 10, 32)
    dy = dp.conv_output_descriptor(conv, x, w)
    forward, data = planned(conv, x, w), plan_conv_backward_data(H200, conv, x, 1.0, 0.0, dy, w, None)
    assert [spec.variant for spec in (forward, data)] == ["hopper_joined"] * 2
    (step,) = forward.steps
    (window, *_) = step.maps  # type: ignore[union-attr]
    assert (window.extents, window.steps) == ((64, 170, 79, 32), (64, 341 * 32, 79 * 341 * 32))  # type: ignore[union-attr]
    assert (window.lower, window.upper, window.strides) == ((0, 0), (-4, -4), (1, 2))  # type: ignore[union-attr]
    for changes, reason in (
        ({"padding": (0, (1, 0))}, "a padding of 1"),
        ({"padding": (0, (0, 2))}, "no whole group"),
        ({"mode": "convolution"}, "flipped"),
    ):
        assert reason in dict(planned(replace(conv, **changes), x, w).refused)["hopper_joined"]  # type: ignore[arg-type]
    wide = planned(conv, described(32, 79, 341, 64), described(32, 5, 10, 64))
    assert "fill blocks" in dict(wide.refused)["hopper_joined"]


PLAIN = ConvolutionDescriptor(padding=1, **NHWC)


@pytest.mark.parametrize(
    ("conv", "x", "w", "given", "reason"),
    [
        (PLAIN, (2, 8, 8, 64), (64, 3, 3, 64), {"profile": replace(H200, arch=80)}, "capability 9.0"),
        (PLAIN, (2, 8, 8, 64), (64, 3, 3, 64), {"profile": replace(H200, tensor_maps=False)}, "no tensor maps"),
        (PLAIN, (2, 8, 8, 64), (64, 3, 3, 64), {"alpha": 2.0, "activation": "relu"}, "alpha applies after"),
        (PLAIN, (2, 8, 8, 64), (64, 3, 3, 64), {"beta": 1.0, "activation": "relu"}, "beta applies after"),
        (PLAIN, (2, 8, 8, 12), (64, 3, 3, 12), {}, "multiples of 8"),
        (PLAIN, (2, 8, 8, 64), (60, 3, 3, 64), {}, "multiples of 8"),
        (PLAIN, (2, 8, 8, 8, 64), (64, 3, 3, 3, 64), {}, "one or two axes"),
        (replace(PLAIN, layout="NCHW"), (2, 64, 8, 8), (64, 64, 3, 3), {}, "for NHWC"),
        (replace(PLAIN, groups=2), (2, 8, 8, 64), (64, 3, 3, 32), {}, "2 groups"),
        (replace(PLAIN, stride=9), (2, 80, 80, 64), (64, 3, 3, 64), {}, "a stride of 9"),
        (replace(PLAIN, padding=129), (2, 8, 8, 64), (64, 3, 3, 64), {}, "over the image"),
        (replace(PLAIN, padding=120, dilation=128), (2, 300, 300, 64), (64, 3, 3, 64), {}, "over the image"),
    ],
)
def test_reasons_against_it(
    conv: ConvolutionDescriptor, x: tuple[int, ...], w: tuple[int, ...], given: dict[str, Any], reason: str
) -> None:
    """Each is said, and another algorithm takes the problem."""
    spec = planned(conv, described(*x), described(*w), **given)
    assert spec.variant != "hopper"
    assert reason in dict(spec.refused)["hopper"]


def test_any_activation_has_instantiations_of_its_own() -> None:
    """But for the identity and relu, which share one; of floats there are no others."""
    x, w = described(32, 28, 28, 128), described(128, 3, 3, 128)
    for mode in "identity", "relu", "tanh", "swish":
        (step,) = planned(PLAIN, x, w, activation=mode).steps
        last = step.template[-1]  # type: ignore[union-attr]
        assert last == (f"{mode.capitalize()}<bfloat16>" if mode in ("tanh", "swish") else "false")
    tf32 = replace(H200, math="tf32", preferred="hopper")
    spec = planned(PLAIN, *(replace_dtype(d, "float32") for d in (x, w)), activation="tanh", profile=tf32)
    assert "tanh is not among" in dict(spec.refused)["hopper"]


def test_operands_that_the_copy_engine_cannot_see() -> None:
    """Gaps, and addresses of less than 16 bytes."""
    w = described(64, 3, 3, 64)
    wide = described(2, 8, 8, 64, strides=(8 * 8 * 128, 8 * 128, 128, 1))
    assert "x has gaps" in dict(planned(PLAIN, wide, w).refused)["hopper"]
    odd = described(2, 8, 8, 64, alignment=8)
    assert "8 bytes" in dict(planned(PLAIN, odd, w).refused)["hopper"]
    assert "float32" in dict(planned(PLAIN, *(replace_dtype(d, "float32") for d in (odd, w))).refused)["hopper"]


def replace_dtype(d: TensorDescriptor, dtype: str) -> TensorDescriptor:
    return TensorDescriptor(d.shape, dtype)


@pytest.mark.parametrize("name", hopper_tiles.TILES)
def test_tiles_fit(name: str) -> None:
    """In shared memory, in the accumulators of a warpgroup, and by whole pieces."""
    tile = hopper_tiles.TILES[name]
    assert tile.shared_bytes <= H200.shared_bytes
    assert tile.rows * tile.columns <= 256
    assert tile.rows * tile.columns // 64 % 2 == 0


@pytest.mark.parametrize("extents", [(56, 56), (112, 112), (224, 224), (7, 7), (1, 1), (5, 240), (3, 1000)])
def test_patches_cover_images_and_fit(extents: tuple[int, int]) -> None:
    """Tiles of the forward kernel and of the gradient in filters."""
    for pixels, beside, more in ((232, 73728, 0), (176, 0, 176 * 128)):
        cut = hopper_patch.patching(extents, H200.shared_bytes, pixels, beside, more)
        assert cut is not None
        assert cut.rows * cut.down >= extents[0] > cut.rows * (cut.down - 1)
        assert cut.columns * cut.across >= extents[1] > cut.columns * (cut.across - 1)
        assert cut.rows * (cut.columns + 2) <= pixels
        assert cut.patch_bytes >= 128 * (pixels + 2 * (cut.columns + 2) + 2)
        assert cut.shared_bytes(beside, more) <= H200.shared_bytes


# -- phases ----------------------------------------------------------------------------------------------------------


def walked(phase: hopper_phases.Phase, images: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """What the kernel makes of a phase: (n, h, w, c) images, and filters (taps, c, k) in the order of memory."""
    rows, columns, numbers = phase.rows, phase.columns, phase.numbers
    first, tap_row, tap_column = numbers[-3:]
    room = 300
    padded = np.pad(images, [(0, 0), (room, room), (room, room), (0, 0)])
    result = np.zeros((phase.batch, rows.positions, columns.positions, filters.shape[-1]))
    for r, s in product(range(rows.tap_count), range(columns.tap_count)):
        at_h, at_w = (room + a.lower + k * a.dilation for a, k in ((rows, r), (columns, s)))
        seen = padded[:, at_h:, at_w:][:, :: rows.stride, :: columns.stride]
        result += seen[:, : rows.positions, : columns.positions] @ filters[first + r * tap_row + s * tap_column]
    return result


def problems() -> Iterator[tuple[ConvolutionDescriptor, tuple[int, int], tuple[int, int]]]:
    """Windows of all kinds: the descriptor, extents of the image, taps."""
    paddings: tuple[Any, ...] = (0, 1, ((2, 0), (1, 3)))
    for taps, stride, padding, dilation in product(((1, 1), (3, 2), (3, 5)), (1, 2, (2, 1)), paddings, (1, 2, (3, 1))):
        for mode in ("cross_correlation", "convolution"):
            conv = ConvolutionDescriptor(padding, stride, dilation, 1, mode, "NHWC")
            for image in (9, 12), (7, 10):
                padded = [i + sum(pads) for i, pads in zip(image, conv.paddings(2), strict=True)]
                if all((t - 1) * d < i for t, d, i in zip(taps, conv.dilations(2), padded, strict=True)):
                    yield conv, image, taps


def test_phases_are_the_product() -> None:
    """As the copy engine walks them, corners included: bounding boxes hold just the positions that there are."""
    rng, seen = np.random.default_rng(1), 0
    for conv, image, taps in problems():
        x, w = (rng.integers(-3, 4, shape).astype(float) for shape in ((2, *image, 3), (4, *taps, 3)))
        g = geometry.examine("test", conv, *map(TensorDescriptor.from_array, (x, w)))
        flat = w.reshape(4, -1, 3).transpose(1, 2, 0)
        phase = hopper_phases.forward_phase(g)
        np.testing.assert_array_equal(walked(phase, x, flat), reference.conv_forward(conv, x, w))
        dy = rng.integers(-3, 4, g.y_shape).astype(float)
        dx = np.full(g.x_shape, np.nan)
        phases = hopper_phases.data_phases(g)
        for one in phases:
            rows, columns = one.rows, one.columns
            dx[:, rows.start :: rows.spread, columns.start :: columns.spread] = walked(one, dy, flat.swapaxes(1, 2))
        np.testing.assert_array_equal(dx, reference.conv_backward_data(conv, dy, w, x_descriptor=x))
        for a in (a for one in (phase, *phases) for a in (one.rows, one.columns) if a.tap_count):
            box = a.extent + a.upper - a.lower
            assert -(-box // a.stride) == a.positions
        seen += 1
    assert seen > 200


def test_images_of_one_axis_have_one_row() -> None:
    g = geometry.examine("test", ConvolutionDescriptor(1, 2, **NHWC), described(2, 9, 8), described(16, 3, 8))
    phase = hopper_phases.forward_phase(g)
    assert (phase.rows.positions, phase.columns.positions, phase.pixels, phase.taps) == (1, 5, 10, 3)
