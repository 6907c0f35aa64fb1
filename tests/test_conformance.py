"""The shipped cases pass on every backend, and their runner notices each kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import FAMILIES, bounds, runner
from dnnprims.conformance.cases import DTYPES, Problem
from dnnprims.conformance.placing import GUARD, place

#: Random cases beside the corner cases; the emulator is slow, a GPU is not.
RANDOM_CASES = {"numpy": 10, "emulator": 2, "cuda": 40}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_cases_pass(handle: Any, family: str, dtype: str) -> None:
    """Within the derived bounds, in place, between guards, twice the same bits."""
    outcomes = runner.verify(handle, [family], [dtype], count=RANDOM_CASES[handle.backend])
    failures = [f"{outcome.problem}: {outcome.complaint}" for outcome in outcomes if not outcome.passed]
    assert not failures, "\n".join(failures)
    assert any(outcome.ratios.size for outcome in outcomes)


def test_every_primitive_has_cases() -> None:
    """A new primitive without a conformance case is noticed here."""
    covered = {op for family in FAMILIES.values() for op in family.makers}
    assert {op.__name__ for op in dnnprims.PRIMITIVES} == covered


def test_problem_survives_its_text() -> None:
    """The line that a failure prints stands for the same case."""
    for family in FAMILIES.values():
        for problem in family.problems("bfloat16", 5, 20):
            assert Problem.parse(str(problem)) == problem
            assert problem.op in family.makers


def test_cases_are_the_same_each_time() -> None:
    """Problems depend on the seed alone."""
    for family in FAMILIES.values():
        first, second, other = (list(map(str, family.problems("float32", seed, 10))) for seed in (1, 1, 2))
        assert first == second
        assert first != other


# -- the runner notices ----------------------------------------------------------------------------------------------

LINE = "scale_tensor shape=33 alpha=0.75 dtype=float32 seed=1"


def outcome_of(monkeypatch: pytest.MonkeyPatch, fake: Callable[..., Any], line: str = LINE) -> runner.Outcome:
    """Run one case with a primitive replaced."""
    problem = Problem.parse(line)
    monkeypatch.setattr(dnnprims, problem.op, fake, raising=False)
    family = next(f for f in FAMILIES.values() if problem.op in f.makers)
    with dnnprims.create_handle("numpy") as handle:
        return runner.run_case(handle, family, problem)


def scaled(handle: Any, y: Any, alpha: float) -> Any:
    y *= np.float32(alpha)
    return y


def test_runner_accepts_a_right_primitive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faults below are noticed, not the harness."""
    assert outcome_of(monkeypatch, scaled).passed


def test_runner_notices_a_wrong_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """One element, by two ULP."""

    def wrong(handle: Any, y: Any, alpha: float) -> Any:
        scaled(handle, y, alpha)
        y[7] += 4 * np.spacing(y[7])
        return y

    assert "result 0[7] is" in outcome_of(monkeypatch, wrong).complaint


@pytest.mark.parametrize("step", [-1, 33])
def test_runner_notices_a_write_beside_the_array(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In the element before and in the one behind."""

    def careless(handle: Any, y: Any, alpha: float) -> Any:
        y.base[GUARD + step] = 1.0
        return scaled(handle, y, alpha)

    assert "changed 1 elements that it must not" in outcome_of(monkeypatch, careless).complaint


def test_runner_notices_a_changed_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operand that is only read."""

    def careless(handle: Any, x: Any, **options: Any) -> Any:
        y = np.maximum(x, np.float32(0))
        x[3] = 5.0
        return y

    line = "activation_forward mode=relu shape=9 dtype=float32 seed=1"
    assert outcome_of(monkeypatch, careless, line).complaint.startswith("x: changed 1 elements")


def test_runner_notices_bits_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runs lie within the bound."""
    calls: list[int] = []

    def moody(handle: Any, y: Any, alpha: float) -> Any:
        scaled(handle, y, alpha)
        y[0] = np.nextafter(y[0], np.float32(len(calls) * 1e9))
        calls.append(1)
        return y

    assert "differs between two runs" in outcome_of(monkeypatch, moody).complaint


def test_runner_notices_unwritten_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination holds NaN before the call."""

    def idle(handle: Any, x: Any, out: Any, **options: Any) -> Any:
        out[:-1] = np.maximum(x, np.float32(0))[:-1]
        return out

    line = "activation_forward mode=relu shape=9 into=out dtype=float32 seed=1"
    assert "result 0[8] is nan" in outcome_of(monkeypatch, idle, line).complaint


def test_runner_reports_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is an outcome of the case, not the end of the run."""

    def refusing(handle: Any, **options: Any) -> Any:
        raise dnnprims.NotSupportedError("scale_tensor", "takes nothing")

    assert outcome_of(monkeypatch, refusing).complaint == "NotSupportedError: scale_tensor: takes nothing"

    def broken(handle: Any, **options: Any) -> Any:
        raise ZeroDivisionError("of the implementation")

    assert outcome_of(monkeypatch, broken).complaint == "ZeroDivisionError: of the implementation"


# -- bounds and placing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_ulp_is_the_spacing(dtype: type) -> None:
    """Also at powers of two, at zero and among the subnormals."""
    info = np.finfo(dtype)
    values = np.array([1.0, 1.5, 2.0, 0.1, info.max / 2, info.tiny, info.tiny / 4, 0.0], dtype)
    assert np.array_equal(bounds.ulp(values.astype(np.float64), np.dtype(dtype).name), np.spacing(values).astype(float))


def test_ulp_of_bfloat16() -> None:
    """Seven bits behind the first."""
    assert bounds.ulp(np.array([1.0, -2.5, 0.0]), "bfloat16").tolist() == [2.0**-7, 2.0**-6, 2.0**-133]
    assert bounds.largest_finite("bfloat16") == float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


def test_bound_of_sums_catches_a_shorter_accumulator() -> None:
    """A sum of 1,000 products in float16 is far outside of the bound for float32, one in float32 inside."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(1000).astype(np.float16), rng.standard_normal(1000).astype(np.float16)
    exact = float((a.astype(float) * b).sum())
    limit = bounds.sum_bound(1000, np.abs(a.astype(float) * b).sum(), "float32", exact)
    short, long = np.float16(0), np.float32(0)
    for u, v in zip(a, b, strict=True):
        short, long = short + u * v, long + np.float32(u) * np.float32(v)
    assert abs(float(long) - exact) <= limit < abs(float(short) - exact)


@pytest.mark.parametrize("how", ["plain", "offset", "strided"])
def test_placed_arrays_hold_their_values(numpy_handle: Any, how: str) -> None:
    """Between NaNs, aligned or not, with gaps or without."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    placed = place(numpy_handle, values, how)
    assert np.array_equal(placed.view, values)
    assert placed.view.flags.c_contiguous == (how != "strided")
    assert (placed.view.ctypes.data % 16 == 0) == (how != "offset")
    assert int(np.isnan(placed.base).sum()) == placed.base.size - 12
    assert placed.damage(placed.base.copy(), written=False) == ""
