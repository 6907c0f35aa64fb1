"""The instrument that measures ULP: that it sees what is planted, that its judge is right, and what it says of ours."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("mpmath")

import ulp

from accuracy import exact, figures, oracle, page, patterns, run, subjects
from accuracy.figures import FORMATS, Figures, measure, spacing
from accuracy.questions import DIRECTIONS, FORWARD, FROM_INPUT, FROM_OUTPUT, Question, questions
from accuracy.subjects import Library, Torch
from dnnprims.conformance import bounds
from dnnprims.descriptors import ACTIVATION_MODES
from dnnprims.reference.rounding import round_to, widen

mp = exact.mp
HOST = oracle.host()
INF, NAN = float("inf"), float("nan")
FINFO = {
    "float16": np.finfo(np.float16),
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16),
    "float32": np.finfo(np.float32),
}

# ---- what is counted ------------------------------------------------------------------------------------------------


def judged(got: Sequence[float], true: Sequence[float], dtype: str, **more: Any) -> Figures:
    """Figures of a few results; the argument is the place in the row."""
    row = np.arange(len(true), dtype=np.float64)
    return measure(row, np.asarray(got, np.float64), np.asarray(true, np.float64), dtype, HOST, **more)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_spacing_is_the_bounds(dtype: str) -> None:
    """Bit tricks and `bounds.ulp` agree over all exponents of a finite result, subnormal ones included."""
    size = np.ldexp(np.linspace(1.0, 1.999, 7)[:, None], np.arange(-180, FORMATS[dtype][2] + 1)).ravel()
    assert np.array_equal(spacing(size, dtype, HOST), bounds.ulp(size, dtype))
    info, beyond = FINFO[dtype], np.array([0.0, 1e300])
    assert spacing(beyond, dtype, HOST)[0] == float(info.smallest_subnormal)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("errors", [0.0, 0.5, 1.0, 3.0, 99.0])
def test_planted_error_is_measured(dtype: str, errors: float) -> None:
    """So many ULP off at one place, in one binade, above and below the truth."""
    true = np.linspace(1.0, 1.5, 64)
    for sign in (1.0, -1.0):
        got = true.copy()
        got[17] += sign * errors * 2.0 ** (1 - FORMATS[dtype][0])
        found = judged(got, true, dtype)
        assert found.max_ulp == pytest.approx(errors, abs=1e-5)
        assert found.at == (17.0 if errors else 0.0)
        assert found.misrounded == (errors > 0.5)
        assert (found.count, found.lost, found.special, found.signs) == (64, 0, 0, 0)


def test_float64_is_measured_beyond_its_own_precision() -> None:
    """With what the true value lacks, a correctly rounded result is told from its neighbour."""
    true, rest = np.array([1.0]), np.array([0.75 * 2.0**-52])
    assert judged([1.0], true, "float64", rest=rest).max_ulp == 0.75
    assert judged([1.0 + 2.0**-52], true, "float64", rest=rest).max_ulp == 0.25


@pytest.mark.parametrize(
    ("got", "true", "counter"),
    [
        (0.0, 2.0**-126, "zeros"), (0.0, -1e30, "zeros"), (INF, 1.0, "nonfinite"), (NAN, 1.0, "nonfinite"),
        (NAN, 2.0**-140, "nonfinite"), (-INF, -3.4e38, "nonfinite"), (-1.0, 1.0, "signs"), (1.0, NAN, "special"),
        (1.0, INF, "special"), (-INF, INF, "special"), (NAN, INF, "special"), (NAN, 1e39, "special"),
    ],
)  # fmt: skip
def test_planted_loss_is_counted(got: float, true: float, counter: str) -> None:
    """Each kind by its own counter; one element is enough among many right ones."""
    found = judged([1.5, got, 2.5], [1.5, true, 2.5], "float32")
    assert getattr(found, counter) == 1
    others = {"zeros", "nonfinite", "special", "signs"} - {counter, "signs"}
    assert sum(getattr(found, name) for name in others) == 0


@pytest.mark.parametrize(
    ("got", "true"),
    [(0.0, 2.0**-127), (INF, 1e39), (NAN, NAN), (-INF, -INF), (0.0, -0.0), (-0.0, 2.0**-151), (INF, 2.0**128)],
)
def test_right_results_count_nowhere(got: float, true: float) -> None:
    """Subnormal numbers may be rounded to 0 where that is near, and what is too large is infinite."""
    found = judged([got], [true], "float32")
    assert (found.lost, found.special, found.signs) == (0, 0, 0)


def test_infinity_is_the_next_number() -> None:
    """It errs by the distance to 2^128; a finite result beside it by the distance to the true value."""
    largest, step = bounds.largest_finite("float32"), 2.0**104
    assert judged([INF], [largest], "float32").max_ulp == 1.0
    assert judged([INF], [largest + 0.75 * step], "float32").max_ulp == 0.25
    assert judged([largest], [largest + 0.75 * step], "float32").max_ulp == 0.75
    assert judged([largest], [1e39], "float32").max_ulp > 1e6


def test_floor_is_a_size() -> None:
    """Below it the unit is that of the floor."""
    assert judged([1e-6], [2e-6], "float32", floor=np.array([2.0**-10])).max_ulp == pytest.approx(1e-6 * 2**33)


def test_figures_add_up() -> None:
    """Of parts, and of the whole."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal(1000)
    got = widen(round_to(true * (1.0 + 3e-7 * rng.standard_normal(1000)), np.float32))
    whole, parts = Figures(), Figures()
    whole.merge(measure(true, got, true, "float32", HOST))
    for part in (slice(0, 1), slice(1, 500), slice(500, 1000)):
        parts.merge(measure(true[part], got[part], true[part], "float32", HOST))
    assert parts.as_json() == whole.as_json()
    assert whole.misrounded > 0


# ---- the judges -----------------------------------------------------------------------------------------------------

FLOAT32 = list(questions("float32", other=True))


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_oracle_is_right(mode: str) -> None:
    """Each function and derivative against mpmath, with every set of parameters."""
    asked = [q for q in FLOAT32 if q.mode == mode]
    assert {q.direction for q in asked} >= {FORWARD, FROM_INPUT}
    if mode == "hard_sigmoid":
        asked += [replace(q, meant="hard_sigmoid_sixth") for q in asked if q.direction != FROM_OUTPUT]
    for question, error, argument in run.validate(asked, HOST, 40):
        assert error <= run.ORACLE_ERROR, f"{question} at {argument}"


def test_oracle_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """gelu by its tanh form, and a derivative that is off by 2^-30."""
    forward, slope, _ = oracle.TRUE["gelu"]
    approximate = oracle.TRUE["gelu_tanh"][0]
    monkeypatch.setitem(oracle.TRUE, "gelu", (approximate, lambda m, x: slope(m, x) * (1 + 2.0**-30), None))
    asked = [q for q in FLOAT32 if q.mode == "gelu"]
    assert all(error > run.ORACLE_ERROR for _, error, _ in run.validate(asked, HOST, 40))
    assert forward is not approximate


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_exact_derivative_is_the_derivative(mode: str) -> None:
    """By differences in high precision, of x and, through y = f(x), of y; off the kinks."""
    forward, from_x = (exact.function_of(Question(mode, "", "float64", d)) for d in (FORWARD, FROM_INPUT))
    from_y = exact.EXACT[mode][2]
    with mp.workprec(300):
        for x in (-11.7, -4.1, -2.2, -0.9, -0.3, 0.2, 0.8, 1.7, 3.3, 7.9):
            if mode in ("sqrt", "log") and x < 0:
                continue
            slope = mp.diff(forward, mp.mpf(x))
            assert abs(from_x(mp.mpf(x)) - slope) <= 2.0**-90
            if from_y is not None:
                function = exact.function_of(Question(mode, "", "float64", FROM_OUTPUT))
                assert abs(function(forward(mp.mpf(x))) - slope) <= 2.0**-90


def test_exact_values_are_pairs() -> None:
    """The second number is what the first lacks; nothing is lost where terms agree in hundreds of digits."""
    asked = Question("tanhshrink", "", "float64", FORWARD)
    high, low = exact.exact(asked, [1e-90, 0.5])
    with mp.workprec(2000):
        cube = mp.mpf(1e-90) ** 3 / 3
        assert abs(mp.mpf(high[0]) + mp.mpf(low[0]) - cube) <= cube * mp.mpf(2) ** -53
        half = mp.mpf(0.5) - mp.tanh(mp.mpf(0.5))
        assert abs(mp.mpf(high[1]) + mp.mpf(low[1]) - half) <= half * mp.mpf(2) ** -100


# ---- the arguments --------------------------------------------------------------------------------------------------


def test_every_pattern_comes_once() -> None:
    """All numbers of 16 bits; every so many of float32, whatever the size of the chunks."""
    assert np.array_equal(patterns.all16("bfloat16").view(np.uint16), np.arange(65536))
    step = 65521
    chunks = list(patterns.all32(np, 1000, step))
    assert np.array_equal(np.concatenate(chunks).view(np.uint32), np.arange(0, 1 << 32, step, dtype=np.uint64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sample_holds_the_places(dtype: str) -> None:
    """Kinks, edges, odd numbers and every exponent with both signs; the same each time."""
    asked = Question("hard_tanh", "f.low=-0.5 f.high=2.5", dtype, FORWARD)
    x = patterns.sample(asked, 1 << 15)
    assert x.tobytes() == patterns.sample(asked, 1 << 15).tobytes()
    limits = np.finfo(dtype)
    wanted = [-0.5, 2.5, 0.0, limits.max, -limits.max, limits.smallest_normal, limits.smallest_subnormal, INF, -INF]
    beside = [np.nextafter(np.dtype(dtype).type(v), np.dtype(dtype).type(w)) for v in (-0.5, 2.5) for w in (-9, 9)]
    assert set(map(float, [*wanted, *beside])) <= set(x.tolist())
    assert np.isnan(x).any()
    normal = x[np.isfinite(x) & (np.abs(x) >= limits.smallest_normal)]
    for half in (normal[normal > 0], -normal[normal < 0]):
        assert np.unique(np.frexp(half)[1]).size == limits.maxexp - limits.minexp


@pytest.mark.parametrize("settings", ["", "f.alpha=0.5"])
def test_outputs_are_in_range(settings: str) -> None:
    """Derivatives from y are asked of what the function gives."""
    asked = Question("elu", settings, "float16", FROM_OUTPUT)
    x = patterns.all16("float16")
    kept, wide = patterns.within_range(asked, x, widen(x), HOST)
    assert np.nanmin(wide) == -asked.parameters[0]
    assert np.nanmax(wide) == INF
    assert kept.size == wide.size == 31745 + {1.0: 15361, 0.5: 14337}[asked.parameters[0]] + 2046


# ---- what it says of ours -------------------------------------------------------------------------------------------


def misses(handle: Any, asked: Sequence[Question], arguments: run.Arguments) -> list[str]:
    """Answers of a backend that are beyond their limit, or that lost something."""
    answers = [answer for question in asked for answer in run.ask(question, [Library(handle)], arguments)]
    assert len(answers) == len(asked)
    return [f"{answer.question}: {answer}" for answer in answers if not answer.meets_target]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_whole_type(handle: Any, mode: str, dtype: str) -> None:
    """Every number of 16 bits, forward and derivative, with every set of parameters."""
    assert not misses(handle, list(questions(dtype, [mode], other=True)), run.Arguments("all16"))


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_float32(handle: Any, mode: str) -> None:
    """Places where functions turn, and 2^16 numbers spread over all patterns."""
    on_gpu = handle.backend == "cuda"
    spread = run.Arguments("all32", oracle.device() if on_gpu else HOST, chunk=1 << 15, step=65537)
    asked = list(questions("float32", [mode]))
    assert not misses(handle, asked, spread)
    assert not misses(handle, asked, run.Arguments("sample", count=0))


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_float64(handle: Any, mode: str) -> None:
    """Against mpmath, where float64 itself is no judge."""
    if handle.backend == "numpy":
        pytest.skip("the reference is held to what conformance allows it")
    assert not misses(handle, list(questions("float64", [mode])), run.Arguments("mpmath", count=2000, step=7))


def test_gelu_in_its_tail(handle: Any) -> None:
    """Every float32 where the fast quotient in its argument once cost a further half ULP."""
    bits = np.arange(*np.float32([-12.95, -13.0]).view(np.uint32), dtype=np.uint32)
    x, asked = bits.view(np.float32), Question("gelu", "", "float32", FORWARD)
    true = run.true_values(asked, widen(x), HOST)
    found = measure(widen(x), Library(handle).evaluate(asked, x), true, "float32", HOST)
    assert found.max_ulp <= asked.limit


def test_flush_is_caught(numpy_handle: Any) -> None:
    """A library that flushes results below 1e-30 to zero misses its target by that alone."""

    class Flushing(Library):
        def evaluate(self, question: Question, x: Any) -> Any:
            result = super().evaluate(question, x)
            return np.where(np.abs(result) < 1e-30, 0.0, result)

    asked = Question("swish", "", "float32", FORWARD)
    (answer,) = run.ask(asked, [Flushing(numpy_handle)], run.Arguments("sample", count=1 << 12))
    assert answer.figures.zeros > 0
    assert not answer.meets_target


# ---- the command and the page ---------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the tool in this process."""
    monkeypatch.setattr(sys, "argv", ["tools/ulp.py", *words])
    return ulp.main()


def test_command_writes_and_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lines question by question; a second run measures what is missing only; shards share the modes."""
    file = tmp_path / "found.jsonl"
    common = ("--backend", "numpy", "--patterns", "all32", "--step", "1000003", "--json", str(file))
    assert command(monkeypatch, *common, "--modes", "tanh,relu", "--shard", "0/2") == 0
    assert command(monkeypatch, *common, "--modes", "tanh,relu", "--resume") == 0
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    found = [line["name"] for line in lines if "mode" in line]
    assert found == [f"numpy.{mode}.float32.{way}" for mode in ("tanh", "relu") for way in DIRECTIONS]
    assert [line["name"] for line in lines if "mode" not in line] == ["environment", "oracle"] * 2
    assert {line["count"] for line in lines if line.get("direction") == FORWARD} == {-(-(1 << 32) // 1000003)}


def test_device_has_the_functions() -> None:
    """Every function that is taken from the array module is CuPy's as well as NumPy's."""
    cupy = pytest.importorskip("cupy")
    taken = set()
    for module in (oracle, figures, patterns, run):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("m", "module", "m.module"):
                taken.add(node.attr)
    taken -= {"module", "erfc"}
    assert {"expm1", "where", "argmax", "arange", "asarray"} <= taken
    assert [name for name in sorted(taken) if not (hasattr(cupy, name) and hasattr(np, name))] == []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the place of CuPy, whose arrays are NumPy's and count as those of a device."""
    module = ModuleType("cupy")
    module.__dict__.update({name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
    module.__dict__["kernels"] = []

    def elementwise(*texts: str) -> Any:
        module.__dict__["kernels"].append(texts)
        return HOST.erfc

    module.__dict__["ElementwiseKernel"] = elementwise
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(subjects, "_on_device", lambda x: True)
    return module


def test_device_oracle_is_the_same_text(stand_in: ModuleType) -> None:
    """What runs on a GPU is the same formulas over CuPy."""
    on_device = oracle.device()
    assert stand_in.__dict__["kernels"] == [("float64 x", "float64 y", "y = erfc(x)", "accuracy_erfc")]
    for question, error, _ in run.validate([q for q in FLOAT32 if q.mode in ("gelu", "swish")], on_device, 20):
        assert error <= run.ORACLE_ERROR, question


@pytest.mark.parametrize("with_peer", [False, True])
def test_device_path(stand_in: ModuleType, emulator_handle: Any, with_peer: bool) -> None:
    """Arguments, results and judgement stay where they are made, and say what those of the host say."""
    asked = [Question(mode, "", "float32", d) for mode in ("gelu", "tanh") for d in (FORWARD, FROM_INPUT)]
    able: list[Any] = [Library(emulator_handle)]
    if with_peer:
        pytest.importorskip("torch")
        able = [Torch("cpu")]
    for question in asked:
        there, here = (
            run.ask(question, able, run.Arguments("all32", maths, chunk=1 << 14, step=65537))[0].figures.as_json()
            for maths in (oracle.device(), HOST)
        )
        assert there == here
        assert there["count"] == 65536


def test_page_is_current() -> None:
    """Regenerate with ``python tools/ulp.py --write docs/ulp.md``."""
    assert page.write(ulp.ROOT / "docs" / "ulp.md", ulp.RESULTS, check=True) == 0


def test_committed_figures_meet_their_targets() -> None:
    """Every function in every type, none beyond its limit and no number lost."""
    results = page.read(ulp.RESULTS)
    assert page.missed(results) == []
    for found in results:
        ours = "emulator" if found.device == "CPU" else "cuda"
        measured = {name for name, _ in found.lines}
        for dtype in page.DTYPES:
            asked = [question.name_for(ours) for question in questions(dtype, other=dtype in ("float16", "bfloat16"))]
            if ours == "emulator" or measured & set(asked):
                assert set(asked) <= measured
    assert all(found.oracle <= run.ORACLE_ERROR for found in results)


def test_all_numbers_outweigh_a_sample() -> None:
    """Whatever the order in which the two were measured."""
    lines = {("n", kind): {"dtype": "float32", "patterns": kind} for kind in ("all32", "sample of 9")}
    lines["m", "sample of 9"] = {"dtype": "float32", "patterns": "sample of 9"}
    kept = page.Results("GPU", lines=lines).of("float32")
    assert [line["patterns"] for line in kept] == ["all32", "sample of 9"]


def test_miss_in_the_results_is_seen() -> None:
    """A line that is beyond its limit, or has lost a number, is named."""
    good = {"name": "n", "subject": "cuda", "max_ulp": 1.0, "limit": 2.0, "zeros": 0, "nonfinite": 0}
    for change in ({"max_ulp": 2.01}, {"max_ulp": "inf"}, {"zeros": 1}, {"nonfinite": 3}):
        assert page.missed([page.Results("GPU", lines={("n", "p"): {**good, **change}})])
    assert not page.missed([page.Results("GPU", lines={("n", "p"): good})])
