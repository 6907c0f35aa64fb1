"""Softmax: hand values, masked and poisoned rows, every way through a row, gradients by differences, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims import BadParamError, TensorDescriptor, supports
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import run_case
from dnnprims.ops import softmax as front
from dnnprims.ops.softmax import ALGORITHMS, kernels, softmax_backward, softmax_forward
from dnnprims.reference import softmax as reference
from dnnprims.runtime.launch import Profile

INF, NAN = float("inf"), float("nan")
LOG_3 = np.log(3.0)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("accurate", [0.25, 0.75]), ("fast", [0.25, 0.75]), ("log", [-np.log(4.0), -np.log(4 / 3)])],
)
def test_odds_of_one_to_three(handle: Any, algorithm: str, expected: list[float]) -> None:
    """exp(0) : exp(log 3) = 1 : 3."""
    y = handle.to_numpy(softmax_forward(handle, handle.asarray(np.array([[0.0, LOG_3]])), algorithm=algorithm))
    assert y.tolist() == [pytest.approx(expected)]


def test_gradient_of_two_equal_classes(handle: Any) -> None:
    """y = (1/2, 1/2): dx = y (dy - 1/2 sum dy); of the logarithm dx = dy - 1/2 sum dy."""
    dy, y = handle.asarray(np.array([[1.0, 0.0]])), handle.asarray(np.array([[0.5, 0.5]]))
    assert handle.to_numpy(softmax_backward(handle, dy, y)).tolist() == [[0.25, -0.25]]
    logarithm = handle.asarray(np.log(np.array([[0.5, 0.5]])))
    dx = handle.to_numpy(softmax_backward(handle, dy, logarithm, algorithm="log"))
    assert dx.tolist() == [pytest.approx([0.5, -0.5])]


def test_one_class_has_probability_one(handle: Any) -> None:
    """A row of one element, whatever it is."""
    x = handle.asarray(np.array([[-3e38], [0.0], [3e38]], np.float32))
    assert handle.to_numpy(softmax_forward(handle, x)).tolist() == [[1.0]] * 3
    assert handle.to_numpy(softmax_forward(handle, x, algorithm="log")).tolist() == [[0.0]] * 3


def test_shift_changes_nothing(handle: Any) -> None:
    """Adding 2^17 to integers is exact and cancels; without the maximum exp(2^17) would overflow."""
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    near, far = (
        handle.to_numpy(softmax_forward(handle, handle.asarray(x + s))) for s in (np.float32(0), np.float32(2**17))
    )
    assert near.tobytes() == far.tobytes()


#: Row -> whether it is NaN throughout.
ODD_ROWS = {
    "finite": ([0.0, 1.0, 2.0, 3.0], False),
    "one masked": ([0.0, -INF, 2.0, 3.0], False),
    "all but one masked": ([-INF, -INF, 5.0, -INF], False),
    "all masked": ([-INF] * 4, True),
    "infinite": ([0.0, INF, 1.0, -INF], True),
    "not a number": ([0.0, NAN, 1.0, 2.0], True),
    "nothing but NaN": ([NAN] * 4, True),
    "extremes": ([-3e38, 3e38, 0.0, 3e38], False),
}


def _way(kind: str) -> tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], int]:
    """How (rows, 4) is laid out, and its axis: neighbours in a row, a long row, a column."""
    return {
        "short": (lambda x: x, 1),
        "long": (lambda x: np.concatenate([x, np.full((len(x), 17001), -INF, np.float32)], axis=1), 1),
        "column": (lambda x: np.ascontiguousarray(x.T), 0),
    }[kind]


@pytest.mark.parametrize("kind", ["short", "long", "column"])
@pytest.mark.parametrize("algorithm", ["accurate", "log"])
def test_odd_rows(handle: Any, algorithm: str, kind: str) -> None:
    """NaN, infinities and masks in every place of a row; no row touches another."""
    lay_out, axis = _way(kind)
    for turn in range(4):
        x = np.array([np.roll(row, turn) for row, _ in ODD_ROWS.values()], np.float32)
        y = handle.to_numpy(softmax_forward(handle, handle.asarray(lay_out(x)), axis=axis, algorithm=algorithm))
        found = np.moveaxis(y, axis, 1)
        for got, (name, (_, poisoned)) in zip(found, ODD_ROWS.items(), strict=True):
            assert np.isnan(got).all() if poisoned else not np.isnan(got).any(), name
        masked = found[1][:4][np.isinf(x[1])]
        assert masked.tolist() == [-INF if algorithm == "log" else 0.0]


def test_fast_out_of_range_is_nan_throughout(emulator_handle: Any) -> None:
    """Without the maximum exp(100) overflows float32 and exp(-200) is 0; such a row says so, its neighbour is right."""
    x = emulator_handle.asarray(np.array([[100.0, 0.0], [-200.0, -200.0], [0.0, 0.0]], np.float32))
    y = softmax_forward(emulator_handle, x, algorithm="fast")
    assert np.isnan(y[:2]).all()
    assert y[2].tolist() == [0.5, 0.5]


def test_backward_keeps_nan_in_its_row(handle: Any) -> None:
    """The sum takes a NaN to its own row alone."""
    dy = handle.asarray(np.array([[1.0, NAN], [1.0, 2.0]], np.float32))
    y = handle.asarray(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    for algorithm in ALGORITHMS:
        dx = handle.to_numpy(softmax_backward(handle, dy, y, algorithm=algorithm))
        assert np.isnan(dx[0]).all()
        assert not np.isnan(dx[1]).any()


@pytest.mark.parametrize("variant", ["row_in_shared", "row_partly_in_shared", "strided_axis", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("op", ["softmax_forward", "softmax_backward"])
def test_slower_ways_agree(
    emulator_handle: Any, monkeypatch: pytest.MonkeyPatch, op: str, dtype: str, variant: str
) -> None:
    """Where a faster way would be taken, the others keep the bounds; blocks take several long rows, shared in part."""
    if variant == "row_partly_in_shared":
        profile = replace(emulator_handle.profile, shared_bytes=3072, sm_count=1)
        monkeypatch.setattr(emulator_handle, "profile", profile)
    monkeypatch.setattr(dnnprims, op, getattr(front, op), raising=False)
    monkeypatch.setattr(kernels, "choose", lambda variants: (variant, ()))
    placings = ("into=out alpha=0.5 beta=2.0", "into=in_place", "place=offset")
    for shape, placing in zip(("3x1", "5x37", "7x1032"), placings, strict=True):
        for algorithm in ALGORITHMS:
            text = f"{op} shape={shape} algorithm={algorithm} {placing}"
            outcome = run_case(emulator_handle, FAMILIES["softmax"], Problem.parse(text, dtype=dtype, seed=1))
            assert outcome.passed, f"{outcome.problem}: {outcome.complaint}"


@pytest.mark.parametrize(
    ("variant", "word"),
    [
        ("row_partly_in_shared", "long"),
        ("tile_in_shared", "tile"),
        ("strided_axis", "strided"),
        ("plain", "plain"),
    ],
)
def test_each_way_has_a_kernel_of_its_own(monkeypatch: pytest.MonkeyPatch, variant: str, word: str) -> None:
    """What a plan calls itself is what it launches."""
    monkeypatch.setattr(kernels, "choose", lambda variants: (variant, ()))
    profile, x = Profile("emulator"), TensorDescriptor((3, 50, 4), "float32")
    for plan, operands in ((front.plan_softmax_forward, (x, None)), (front.plan_softmax_backward, (x, x, None))):
        (step,) = plan(profile, 1, "accurate", 1.0, 0.0, *operands).steps
        assert step.kernel.entry == f"{plan.__name__.removeprefix('plan_')}_{word}"


def test_axes_are_views_of_one_another(handle: Any) -> None:
    """Neighbouring axes are one axis of the reshaped array; cuDNN's modes are names for two choices."""
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype(np.float32)

    def run(a: np.ndarray[Any, Any], axis: Any) -> bytes:
        return bytes(handle.to_numpy(softmax_forward(handle, handle.asarray(a), axis=axis)).tobytes())

    assert run(x, (1, 2)) == run(x.reshape(3, 20, 2), 1)
    assert run(x, (-2, -1)) == run(x.reshape(3, 4, 10), 2)
    assert run(x, "instance") == run(x.reshape(3, 40), 1)
    assert run(x, "channel") == run(x, 1) == run(x, -3)


def test_row_does_not_depend_on_the_batch(emulator_handle: Any) -> None:
    """The same bits alone and among others, whichever way the row is gone through."""
    x = np.random.default_rng(0).standard_normal((9, 40, 3)).astype(np.float32)
    for axis in (1, 2):
        together = softmax_forward(emulator_handle, x, axis=axis)
        for i in (0, 8):
            alone = softmax_forward(emulator_handle, np.ascontiguousarray(x[i : i + 1]), axis=axis)
            assert alone.tobytes() == together[i : i + 1].tobytes()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradient_by_central_differences(algorithm: str) -> None:
    """Along a random direction; the error of the difference is of second order in h."""
    rng = np.random.default_rng(5)
    x, dy, direction = (rng.standard_normal((3, 7, 2)) for _ in range(3))
    h = 2.0**-18
    ahead, behind = (reference.softmax_forward(x + s * direction, axis=1, algorithm=algorithm) for s in (h, -h))
    measured = float((dy * (ahead - behind)).sum()) / (2 * h)
    y = reference.softmax_forward(x, axis=1, algorithm=algorithm)
    dx = reference.softmax_backward(dy, y, axis=1, algorithm=algorithm)
    assert measured == pytest.approx(float((dx * direction).sum()), rel=2.0**-26)


@pytest.mark.parametrize(
    ("shape", "axis", "variant"),
    [
        ((8, 10), 1, "row_in_registers"),
        ((8, 16384), 1, "row_in_registers"),
        ((8, 16388), 1, "row_in_shared"),
        ((8, 32768), 1, "row_in_registers"),
        ((8, 32769), 1, "row_in_shared"),
        ((8, 57856), 1, "row_in_shared"),
        ((8, 57860), 1, "row_partly_in_shared"),
        ((8, 2**21), -1, "row_partly_in_shared"),
        ((8, 10, 1), 1, "row_in_registers"),
        ((8, 10, 3), 1, "strided_axis"),
        ((8, 1024, 3), 1, "strided_axis"),
        ((8, 10, 64), 1, "strided_axis"),
        ((8, 64, 64), 1, "tile_in_shared"),
        ((8, 1024, 1024), 1, "tile_in_shared"),
        ((8, 2**20, 64), 1, "strided_axis"),
        ((2**16, 2**16), 1, "row_partly_in_shared"),
        ((2**33, 1), 1, "row_in_registers"),
    ],
)
def test_variant_follows_the_row(shape: tuple[int, ...], axis: int, variant: str) -> None:
    """What `supports` says comes from the dispatcher, also for sizes that no test could hold."""
    assert supports(softmax_forward, TensorDescriptor(shape, "float32"), axis=axis).variant == variant


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"x": np.ones((2, 4), np.int32)}, "x"),
        ({"x": np.float32(1.0)}, "axis"),
        ({"axis": 2}, "axis"),
        ({"axis": 1.0}, "axis"),
        ({"axis": None}, "axis"),
        ({"axis": ()}, "axis"),
        ({"axis": (0, 0)}, "axis"),
        ({"axis": "rows"}, "axis"),
        ({"algorithm": "best"}, "algorithm"),
        ({"out": np.ones((4, 2), np.float32)}, "out"),
        ({"out": np.ones((2, 4), np.float64)}, "out"),
        ({"beta": 1.0}, "out"),
        ({"alpha": INF}, "alpha"),
        ({"beta": NAN}, "beta"),
    ],
)
def test_forward_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"x": np.ones((2, 4), np.float32), **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^softmax_forward: ") as caught:
        softmax_forward(handle, **{**call, **arrays})
    assert caught.value.param == param


def test_apart_axes_are_refused(handle: Any) -> None:
    """Axes with another between them are not one row."""
    with pytest.raises(BadParamError, match="neighbouring"):
        softmax_forward(handle, handle.asarray(np.ones((2, 3, 4), np.float32)), axis=(0, 2))


def test_layout_and_overlap_refusals(handle: Any) -> None:
    """Strided arrays are not read as if they were contiguous; half an overlap is not in place."""
    room = handle.asarray(np.ones((5, 4), np.float32))
    with pytest.raises(BadParamError, match="not contiguous"):
        softmax_forward(handle, room.T)
    with pytest.raises(BadParamError, match="overlaps"):
        softmax_forward(handle, room[:4], out=room[1:])
    with pytest.raises(BadParamError) as caught:
        softmax_backward(handle, room[:3], room)
    assert caught.value.param == "dy"
    with pytest.raises(BadParamError) as caught:
        softmax_backward(handle, handle.asarray(np.ones((5, 4), np.float64)), room)
    assert caught.value.param == "dy"
