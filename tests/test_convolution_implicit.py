"""Implicit products: every kind of problem bit for bit with each algorithm forced, tiles, splits, infinite weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import backend_parameters

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import run_case
from dnnprims.reference import convolution as reference

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
LAYOUTS, MODES = ("NCHW", "NHWC"), ("cross_correlation", "convolution")
FFMA, MMA = "implicit_ffma", "implicit_mma"
Shape = tuple[int, ...]


def integers(rng: np.random.Generator, shape: Shape, dtype: Any) -> np.ndarray:
    return rng.integers(-2, 3, shape).astype(np.float32).astype(dtype)


def laid_out(conv: ConvolutionDescriptor, a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if conv.channels_last else a


#: Extents of the image -> taps, strides, paddings and dilations to try.
GRID = {
    (9,): ((1,), (4,)),
    (5, 6): ((1, 1), (3, 2)),
    (3, 4, 3): ((2, 1, 3),),
}
CHANNELS = ((1, 16, 24), (2, 16, 48), (1, 5, 9))


def grid(layout: str, mode: str) -> Iterator[tuple[ConvolutionDescriptor, Shape, Shape]]:
    """Kernel size x stride x padding x dilation x groups."""
    for image, several in GRID.items():
        paddings = (0, ((2, 0), 1, (0, 1))[: len(image)])
        for taps, stride, padding, dilation in product(several, (1, (3, 2, 2)[: len(image)]), paddings, (1, 2)):
            for groups, channels, filters in CHANNELS:
                conv = ConvolutionDescriptor(padding, stride, dilation, groups, mode, layout)
                padded = [i + sum(pads) for i, pads in zip(image, conv.paddings(len(image)), strict=True)]
                spread = [(r - 1) * d + 1 for r, d in zip(taps, conv.dilations(len(image)), strict=True)]
                if all(a <= b for a, b in zip(spread, padded, strict=True)):
                    yield conv, (2, channels, *image), (filters, channels // groups, *taps)


@pytest.fixture(params=backend_parameters()[1:])
def handle(request: pytest.FixtureRequest) -> Iterator[dp.Handle]:
    """A handle on each backend that has algorithms."""
    with dp.create_handle(request.param) as made:
        yield made


def force(handle: dp.Handle, name: str) -> None:
    """Have the handle take one algorithm wherever it can do the product; that on tensor cores may round to TF32.

    Elsewhere those on Hopper are not to stand in, to which padding is zeros.
    """
    math = "ieee" if name == FFMA else "tf32"
    handle.profile = replace(handle.profile, preferred=name, math=math, tensor_maps=False)


def every(handle: dp.Handle, parts: int) -> int:
    """Problems are shared among parts; the emulator does a part of its share, for it is slow."""
    return parts if handle.backend == "cuda" else 3 * parts - 1


def drawn(conv: ConvolutionDescriptor, x: Shape, w: Shape, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    image, filters = (laid_out(conv, integers(rng, shape, dtype)) for shape in (x, w))
    described = dp.conv_output_descriptor(conv, *map(TensorDescriptor.from_array, (image, filters)))
    return [image, filters, integers(rng, described.shape, dtype)]


def results(handle: dp.Handle, conv: ConvolutionDescriptor, x: Any, w: Any, dy: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every direction: its name, what it gave, and what the reference gives."""
    for name, arguments in (
        ("conv_forward", {"x": x, "w": w}),
        ("conv_backward_data", {"dy": dy, "w": w, "x_descriptor": TensorDescriptor.from_array(x)}),
        ("conv_backward_filter", {"dy": dy, "x": x, "w_descriptor": TensorDescriptor.from_array(w)}),
    ):
        expected = getattr(reference, name)(conv, **arguments)
        given = {key: handle.asarray(a) if isinstance(a, np.ndarray) else a for key, a in arguments.items()}
        yield name, handle.to_numpy(getattr(dp, name)(handle, conv, **given)), np.ascontiguousarray(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", range(4))
def test_grid_bit_for_bit(handle: dp.Handle, layout: str, mode: str, part: int) -> None:
    """Every direction of every problem of the grid, of integers; the types take turns."""
    force(handle, FFMA)
    dtype = DTYPES[(part + 2 * MODES.index(mode) + LAYOUTS.index(layout)) % 4]
    for conv, *shapes in list(grid(layout, mode))[part :: every(handle, 4)]:
        for name, found, expected in results(handle, conv, *drawn(conv, *shapes, dtype)):
            assert found.tobytes() == expected.tobytes(), f"{name} {conv} {shapes}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", range(3))
def test_grid_on_tensor_cores(handle: dp.Handle, mode: str, part: int) -> None:
    """Likewise, of channels that lie in packs; behind copies where they do not."""
    force(handle, MMA)
    dtype = (np.float32, np.float16, ml_dtypes.bfloat16)[(part + MODES.index(mode)) % 3]
    for conv, *shapes in list(grid("NHWC", mode))[part :: every(handle, 3)]:
        for name, found, expected in results(handle, conv, *drawn(conv, *shapes, dtype)):
            assert found.tobytes() == expected.tobytes(), f"{name} {conv} {shapes}"


SPLIT = "shape=1x64x6x5 k=16 filter=3x3 padding=1 layout=NHWC"  # 36 slices of one tile
EPILOGUES = (
    "",
    "residual=1 scaled=1 activation=relu alpha=0.5 beta=2.0 into=out",
    "residual=1 scaled=1 activation=swish alpha1=-0.5 alpha2=0.75",
    "activation=gelu_tanh bias=0 alpha=0.5 beta=-1.25 into=out",
)


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [
        *((FFMA, name) for name in ("float32", "float64", "float16", "bfloat16")),
        *((MMA, name) for name in ("float32 math=tf32", "float16", "bfloat16")),
    ],
)
@pytest.mark.parametrize(
    "problem",
    [SPLIT, SPLIT.replace("x6x5", "x3x20x3").replace("3x3 ", "1x3x3 "), "shape=3x8x9x8 k=16 filter=2x3 layout=NCHW"],
)
def test_what_follows_the_sums(handle: dp.Handle, problem: str, algorithm: str, dtype: str) -> None:
    """With splits and without, in the product itself, in the fold, and in the kernel that has the activation."""
    force(handle, algorithm)
    lines = [f"conv_forward {problem} {epilogue}" for epilogue in EPILOGUES]
    lines += [f"{op} {problem} alpha=0.5 beta=-1.25 into=out" for op in ("conv_backward_data", "conv_backward_filter")]
    lines += [f"conv_transpose_forward {problem} alpha=0.5 beta=-1.25 into=out", f"conv_transpose_backward {problem}"]
    for line in lines:
        outcome = run_case(handle, FAMILIES["convolution"], Problem.parse(f"{line} dtype={dtype}"))
        assert not outcome.complaint, f"{line}: {outcome.complaint}"


def described(conv: ConvolutionDescriptor, x: Shape, w: Shape, dtype: str = "float32") -> list[TensorDescriptor]:
    image, filters = TensorDescriptor(x, dtype), TensorDescriptor(w, dtype)
    return [image, filters, dp.conv_output_descriptor(conv, image, filters)]


def test_splits_and_tiles_follow_the_shape() -> None:
    """Large tiles where there are many; splits, and workspace for them, where there are few."""
    conv = ConvolutionDescriptor(padding=1, layout="NHWC")
    x, w, dy = described(conv, (64, 56, 56, 128), (128, 3, 3, 128))
    answer = dp.supports(dp.conv_forward, conv, x, w)
    assert (answer.variant, dp.workspace_size(dp.conv_forward, conv, x, w)) == ("implicit_ffma", 0)
    few = described(conv, (1, 7, 7, 512), (512, 3, 3, 512))
    assert dp.workspace_size(dp.conv_forward, conv, *few[:2]) > 0
    assert dp.workspace_size(dp.conv_backward_filter, conv, dy, x, w_descriptor=w) > 0


@pytest.mark.parametrize(("algorithm", "dtype"), [(FFMA, np.float32), (MMA, ml_dtypes.bfloat16)])
def test_large_tiles(handle: dp.Handle, monkeypatch: pytest.MonkeyPatch, algorithm: str, dtype: Any) -> None:
    """As many as there are where a GPU has a single multiprocessor, the last ones cut by the edges."""
    force(handle, algorithm)
    monkeypatch.setattr("dnnprims.ops.convolution.implicit_tiles._MULTIPROCESSORS", 1)
    conv = ConvolutionDescriptor(padding=(0, 1), layout="NHWC")
    for name, found, expected in results(handle, conv, *drawn(conv, (4, 120, 11, 16), (248, 120, 1, 3), dtype)):
        assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("algorithm", [FFMA, MMA])
def test_infinite_weight_meets_no_padding(handle: dp.Handle, algorithm: str) -> None:
    """Nor does an infinite gradient: what lies outside is left out where it would make a NaN."""
    force(handle, algorithm)
    rng = np.random.default_rng(8)
    for layout, channels in product(LAYOUTS, (8, 5)):
        conv = ConvolutionDescriptor(padding=2, stride=2, layout=layout)
        x, w, dy = drawn(conv, (2, channels, 7, 6), (9, channels, 3, 3), np.float32)
        for special in (np.inf, -np.inf, np.nan):
            w[tuple(rng.integers(n) for n in w.shape)] = special
            dy[tuple(rng.integers(n) for n in dy.shape)] = special
        for name, found, expected in results(handle, conv, x, w, dy):
            assert np.isfinite(expected).any(), name
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_workspace_limit_is_kept() -> None:
    """Where splits or rearranged filters do not fit, another algorithm is taken, and the reason said."""
    conv = ConvolutionDescriptor(padding=1, layout="NHWC")
    x, w, _ = described(conv, (1, 7, 7, 512), (512, 3, 3, 512))
    profile = replace(dp.planning.H200, workspace_limit=0)
    answer = dp.supports(dp.conv_forward, conv, x, w, profile=profile)
    assert answer.variant == "direct_plain"


def test_operands_beyond_32_bits_are_left_to_another() -> None:
    conv = ConvolutionDescriptor(padding=1, layout="NHWC")
    x, w, _ = described(conv, (2**12, 512, 512, 8), (8, 3, 3, 8))
    assert dp.supports(dp.conv_forward, conv, x, w).variant == "direct_plain"
