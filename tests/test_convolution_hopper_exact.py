"""Convolutions of small integers on Hopper are exact, in each variant, with what follows and beside guard bands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import needs_hopper

import dnnprims as dp
from dnnprims import ConvolutionDescriptor, TensorDescriptor
from dnnprims.ops.convolution import hopper, hopper_filter, hopper_tiles, hopper_turned
from dnnprims.ops.convolution.algorithms import ALGORITHMS
from dnnprims.reference import convolution as reference

KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TYPES = {**KINDS, "float32": np.float32}


@pytest.fixture
def cuda() -> Iterator[dp.Handle]:
    """Made for each test, so that no plan of another one's choice is kept."""
    with dp.create_handle("cuda") as made:
        yield made


Shape = tuple[int, ...]
#: (batch, channels in, channels out), image, taps, stride, padding, dilation.
SHAPES: list[tuple[Shape, Shape, Shape, Any, Any, Any]] = [
    ((2, 64, 64), (9, 11), (3, 3), 1, 1, 1),
    ((3, 128, 192), (14, 14), (3, 3), 1, 1, 1),
    ((2, 40, 72), (13, 17), (3, 3), 1, 1, 1),
    ((4, 64, 64), (15, 15), (3, 3), 2, 1, 1),
    ((4, 72, 136), (16, 14), (3, 5), 2, 2, 1),
    ((2, 64, 64), (20, 19), (3, 3), 1, 2, 2),
    ((2, 64, 64), (21, 20), (3, 3), 2, 2, 2),
    ((2, 8, 64), (30, 30), (7, 7), 2, 3, 1),
    ((5, 64, 256), (12, 12), (1, 1), 1, 0, 1),
    ((5, 136, 328), (12, 12), (1, 1), 1, 0, 1),
    ((3, 64, 128), (14, 14), (1, 1), 2, 0, 1),
    ((3, 64, 128), (14, 15), (3, 2), (2, 1), ((2, 0), (1, 3)), (1, 2)),
    ((1, 8, 8), (1, 1), (3, 3), 1, 1, 1),
    ((2, 64, 64), (17,), (3,), 2, 1, 1),
    ((16, 64, 512), (28, 28), (3, 3), 1, 1, 1),
    ((16, 512, 64), (28, 28), (1, 1), 1, 0, 1),
    ((70, 64, 64), (30, 34), (3, 3), 1, 1, 1),
    ((2, 64, 128), (5, 240), (3, 3), 1, 1, 1),
    ((3, 40, 64), (14, 60), (3, 3), 1, ((0, 2), (2, 1)), 1),
    ((2, 128, 64), (9, 40), (3, 3), 1, 2, 1),
    ((2, 128, 128), (9, 11), (3, 3), 1, 1, 1),
    ((3, 256, 256), (8, 9), (3, 3), 2, 1, 1),
    ((1, 128, 64), (9, 20), (3, 3), 1, 1, 1),
    ((2, 64, 64), (7, 9), (1, 1), 1, 0, 1),
    ((3, 32, 72), (13, 21), (5, 10), 2, 0, 1),
    ((2, 24, 32), (12, 18), (3, 6), (1, 3), (1, (3, 3)), 1),
    ((2, 96, 48), (10, 9), (2, 3), 1, 1, 1),
    ((3, 80, 320), (9, 8), (3, 3), 1, 1, 1),
]
#: Numbers of those whose neighbouring pixels can be joined.
JOINED = (24, 25)
#: Numbers of those, and groups: of 4, 8, 16, 64 and 128 channels.
GROUPED = ((0, 16), (3, 8), (5, 4), (13, 16), (16, 4), (20, 32), (20, 2), (21, 16), (21, 4), (21, 2))


#: Of few channels, whose rows of taps become channels.
FEW: list[tuple[Shape, Shape, Shape, Any, Any, Any]] = [
    ((2, 3, 64), (30, 28), (7, 7), 2, 3, 1),
    ((5, 3, 72), (19, 48), (5, 3), (3, 2), ((2, 0), (1, 3)), 1),
    ((2, 3, 64), (30, 30), (7, 7), 2, 3, 1),
    ((3, 4, 72), (9, 11), (3, 3), 1, 1, 1),
    ((2, 1, 8), (12, 19), (3, 5), (1, 3), ((2, 0), (1, 3)), (2, 1)),
    ((5, 2, 136), (17, 40), (1, 9), (2, 1), 0, 1),
]
#: Of few channels and windows two pixels apart; in front of those.
FIRST: list[tuple[Shape, Shape, Shape, Any, Any, Any]] = [
    ((3, 3, 64), (26, 32), (7, 7), 2, 3, 1),
    ((2, 4, 72), (13, 40), (5, 6), (1, 2), ((2, 0), (1, 3)), 1),
    ((2, 1, 8), (9, 24), (3, 8), (3, 2), (0, (0, 1)), 1),
    ((50, 2, 136), (33, 40), (8, 3), 2, 1, 1),
]


def drawn(seed: int, shape: Shape, dtype: str, low: int = -2, high: int = 2) -> np.ndarray:
    """Small integers."""
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.float32).astype(TYPES[dtype])


def guarded(handle: dp.Handle, shape: Shape, dtype: str, old: np.ndarray | None = None) -> tuple[Any, Any]:
    """Poisoned memory, and a result of this shape in the midst of it, with old values or none."""
    room = np.full(int(np.prod(shape)) + 128, np.nan, TYPES[dtype])
    if old is not None:
        room[64:-64] = old.reshape(-1)
    placed = handle.asarray(room)
    return placed, placed[64:-64].reshape(shape)


def check(handle: dp.Handle, room: Any, result: Any, expected: np.ndarray, words: str) -> None:
    found, whole = handle.to_numpy(result), handle.to_numpy(room)
    assert np.array_equal(found.astype(np.float64), expected.astype(found.dtype).astype(np.float64)), words
    for guard in whole[:64], whole[-64:]:
        assert np.isnan(guard.astype(np.float64)).all(), words


@dataclass(frozen=True)
class Exact:
    """A problem of small integers and what it gives, in float64."""

    words: str
    conv: ConvolutionDescriptor
    dtype: str
    x: np.ndarray
    w: np.ndarray
    then: dict[str, Any]
    y: np.ndarray
    dy: np.ndarray
    dx: np.ndarray
    dw: np.ndarray
    old: tuple[np.ndarray, np.ndarray]
    blend: tuple[float, float]


@cache
def problem(number: int, dtype: str = "", groups: int = 1) -> Exact:
    """Types where none is given, modes and what follows the sums take turns; below zero are those of few channels."""
    (batch, c, k), image, taps, stride, padding, dilation = (SHAPES if number >= 0 else FIRST + FEW)[number]
    dtype, flipped = dtype or list(KINDS)[number % 2], number >= 0 and number // 2 % 2
    mode = "convolution" if flipped else "cross_correlation"
    conv = ConvolutionDescriptor(padding, stride, dilation, groups, mode, "NHWC")
    x, w = drawn(1, (batch, *image, c), dtype), drawn(2, (k, *taps, c // groups), dtype, -1, 1)
    wide, filters = x.astype(np.float64), w.astype(np.float64)
    shape = dp.conv_output_descriptor(conv, *map(TensorDescriptor.from_array, (x, w))).shape
    then: dict[str, Any] = {}
    if number % 2:
        then["b"] = drawn(3, (k,), dtype, -8, 8)
    if number % 3 == 1:
        then |= {"scale": np.full(k, 0.5, np.float32), "shift": np.arange(k, dtype=np.float32) % 7}
    if number % 4 > 1:
        then |= {"residual": drawn(4, shape, dtype, -8, 8), "alpha2": 0.5, "alpha1": 2.0}
    exactly = {name: a.astype(np.float64) if isinstance(a, np.ndarray) else a for name, a in then.items()}
    y = reference.conv_forward(conv, wide, filters, **exactly)
    if number % 5 < 3:
        then["activation"], y = "relu", np.maximum(y, 0)
    dy, old = drawn(5, shape, dtype), (drawn(6, x.shape, dtype), drawn(7, w.shape, dtype))
    alpha, beta = blend = (1.0, 0.0) if number % 3 == 0 else (0.5, 2.0) if number % 3 == 1 else (1.0, 1.0)
    gradient = dy.astype(np.float64)
    dx = alpha * reference.conv_backward_data(conv, gradient, filters, x_descriptor=wide)
    dw = alpha * reference.conv_backward_filter(conv, gradient, wide, w_descriptor=filters)
    dx, dw = (a + beta * before.astype(np.float64) for a, before in zip((dx, dw), old, strict=True))
    words = f"{x.shape} {w.shape} {conv} {dtype} {mode} {sorted(then)}"
    return Exact(words, conv, dtype, x, w, then, y, dy, dx, dw, old, blend)


def run_forward(handle: dp.Handle, one: Exact, variant: str) -> None:
    given = {name: handle.asarray(a) if isinstance(a, np.ndarray) else a for name, a in one.then.items()}
    x, w = handle.asarray(one.x), handle.asarray(one.w)
    assert dp.prepare(dp.conv_forward, handle, one.conv, x, w, **given).variant == variant
    room, out = guarded(handle, one.y.shape, one.dtype)
    dp.conv_forward(handle, one.conv, x, w, out=out, **given)
    check(handle, room, out, one.y, f"forward {one.words}")


def run_gradient(handle: dp.Handle, one: Exact, variant: str, which: int) -> None:
    """In the data or in the filters; the old result is blended in where the problem says so, and else is NaN."""
    op = (dp.conv_backward_data, dp.conv_backward_filter)[which]
    of = {("x_descriptor", "w_descriptor")[which]: TensorDescriptor.from_array((one.x, one.w)[which])}
    dy, other = handle.asarray(one.dy), handle.asarray((one.w, one.x)[which])
    expected, (alpha, beta) = (one.dx, one.dw)[which], one.blend
    room, out = guarded(handle, expected.shape, one.dtype, one.old[which] if beta else None)
    given = {"out": out, "alpha": alpha, "beta": beta, **of}
    assert dp.prepare(op, handle, one.conv, dy, other, **given).variant == variant
    op(handle, one.conv, dy, other, **given)
    check(handle, room, out, expected, f"{op.__name__} {one.words} {one.blend}")


def run_data(handle: dp.Handle, one: Exact, variant: str) -> None:
    run_gradient(handle, one, variant, 0)


def run_filter(handle: dp.Handle, one: Exact, variant: str) -> None:
    run_gradient(handle, one, variant, 1)


RUNS = {"forward": run_forward, "data": run_data, "filter": run_filter}


def only(monkeypatch: pytest.MonkeyPatch, direction: str, variant: str) -> None:
    """Have no other algorithm asked before the plain one, and this one also where it is slower."""
    kept = [
        a._replace(slower=lambda product: None) for a in ALGORITHMS[direction] if a.name in (variant, "direct_plain")
    ]
    monkeypatch.setitem(ALGORITHMS, direction, tuple(kept))


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", ["forward", "data"])
@pytest.mark.parametrize("name", hopper_tiles.TILES)
def test_integers_are_exact(cuda: dp.Handle, name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each problem in each tile, with what may follow, in poisoned memory between guards."""
    monkeypatch.setattr(hopper, "tile_for", lambda product: name)
    only(monkeypatch, direction, "hopper")
    for number in range(len(SHAPES)):
        RUNS[direction](cuda, problem(number), "hopper")


# Tiles by one block each, by clusters, by blocks that leave their sums, and some of them so.
FILTER_WAYS: dict[str, Callable[[hopper_filter.Layout], bool]] = {
    "whole": lambda at: at.whole == at.tiles,
    "clustered": lambda at: at.clustered,
    "split": lambda at: at.slots.number > 1,
    "mixed": lambda at: at.slots.number > 1 and at.tiles > 1,
}


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", hopper_filter.FILTER_TILES)
@pytest.mark.parametrize("way", FILTER_WAYS)
def test_integers_are_exact_in_the_filters(
    cuda: dp.Handle, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise, added to old gradients, tiles dealt out in each way."""
    taken = []

    def chosen(product: Any) -> hopper_filter.Layout:
        every = hopper_filter.layouts(product, name)
        found = next((at for at in reversed(every) if FILTER_WAYS[way](at)), None)
        taken.append(found)
        return (found or every[0])._replace(**({"whole": found.tiles // 2} if found and way == "mixed" else {}))

    monkeypatch.setattr(hopper_filter, "layout_for", chosen)
    only(monkeypatch, "filter", "hopper")
    for number in range(len(SHAPES)):
        run_filter(cuda, problem(number), "hopper")
    assert any(taken)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", RUNS)
def test_integers_are_exact_in_patches(cuda: dp.Handle, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, of all problems that patches are for."""
    taken = 0
    only(monkeypatch, direction, "hopper_patch")
    for number, ((_, c, k), _, taps, stride, _, dilation) in enumerate(SHAPES):
        if (
            taps == (3, 3)
            and stride == dilation == 1
            and {"forward": c, "data": k, "filter": min(c, k)}[direction] <= 64
        ):
            RUNS[direction](cuda, problem(number), "hopper_patch")
            taken += 1
    assert taken >= 4


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", RUNS)
@pytest.mark.parametrize("name", ["hopper", "hopper_split"])
def test_integers_are_exact_in_joined_pixels(
    cuda: dp.Handle, name: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise, where rows have pixels that make up no group, and where they have none."""
    variant = f"{name}_joined"
    only(monkeypatch, direction, variant)
    for number in JOINED:
        if name == "hopper" or direction == "forward":
            RUNS[direction](cuda, problem(number), variant)


@pytest.mark.gpu
@needs_hopper
def test_integers_are_exact_in_the_filters_of_first_layers(cuda: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, of one channel to four, in both types."""
    only(monkeypatch, "filter", "hopper_first")
    for number, dtype in product(range(-len(FIRST) - len(FEW), -len(FEW)), KINDS):
        run_filter(cuda, problem(number, dtype), "hopper_first")


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", RUNS)
def test_integers_are_exact_in_groups(cuda: dp.Handle, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, in blocks of 64 channels, by tiles and by patches; in the filters those of a tile together."""
    if direction == "filter":
        only(monkeypatch, direction, "hopper_as_one_group")
        for number, groups in (*GROUPED, (9, 2), (27, 10), (27, 20)):
            if number % 3 == 0:  # those without an old gradient
                run_filter(cuda, problem(number, "", groups), "hopper_as_one_group")
        return
    for variant in "hopper_in_blocks", "hopper_patch_in_blocks":
        only(monkeypatch, direction, variant)
        for number, groups in GROUPED:
            (_, c, _), _, taps, stride, _, dilation = SHAPES[number]
            if variant == "hopper_in_blocks" or (taps == (3, 3) and stride == dilation == 1 and c // groups <= 64):
                RUNS[direction](cuda, problem(number, "", groups), variant)
        monkeypatch.undo()


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", ["forward", "data"])
def test_integers_are_exact_in_split_products(cuda: dp.Handle, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, of all problems with enough products, in TF32 too."""
    only(monkeypatch, direction, "hopper_split")
    with dp.create_handle("cuda", math="tf32") as tf32:
        for handle, dtype, chunk in (cuda, "", 64), (tf32, "float32", 32):
            taken = 0
            for number, ((_, c, k), _, taps, stride, *_) in enumerate(SHAPES):
                blocks = int(np.prod(taps)) * -(-(c if direction == "forward" else k) // chunk)
                if blocks >= 4 and (direction == "forward" or stride == 1):
                    RUNS[direction](handle, problem(number, dtype), "hopper_split")
                    taken += 1
            assert taken >= 6


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", ["forward", "data"])
@pytest.mark.parametrize("name", hopper_tiles.FLOAT_TILES)
def test_integers_are_exact_in_tf32(name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the handle allows it."""
    monkeypatch.setattr(hopper, "tile_for", lambda product: name)
    only(monkeypatch, direction, "hopper")
    with dp.create_handle("cuda", math="tf32") as handle:
        for number in range(len(SHAPES)):
            RUNS[direction](handle, problem(number, "float32"), "hopper")


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("name", hopper_turned.TILES)
def test_integers_are_exact_in_the_filters_in_tf32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, added to old gradients."""
    monkeypatch.setattr(hopper_turned, "tile_for", lambda product: name)
    only(monkeypatch, "filter", "hopper_turned")
    with dp.create_handle("cuda", math="tf32") as handle:
        for number in range(len(SHAPES)):
            run_filter(handle, problem(number, "float32"), "hopper_turned")


@pytest.mark.gpu
@needs_hopper
def test_integers_are_exact_of_few_channels(cuda: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, whose windows overlap in shared memory."""
    only(monkeypatch, "forward", "hopper_first")
    for number in (-len(FEW), 1 - len(FEW)):
        for dtype in KINDS:
            run_forward(cuda, problem(number, dtype), "hopper_first")


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("direction", RUNS)
def test_integers_are_exact_with_rows_of_taps(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, of few channels."""
    only(monkeypatch, direction, "hopper_rows")
    with dp.create_handle("cuda", math="tf32") as handle:
        for number in range(-len(FEW), 0):
            RUNS[direction](handle, problem(number, "float32"), "hopper_rows")
