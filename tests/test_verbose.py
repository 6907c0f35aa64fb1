"""``DNNPRIMS_VERBOSE``, ``DNNPRIMS_CHECK`` and ``DNNPRIMS_NVTX``: what the environment asks to be told of calls."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
from conftest import backend_parameters
from test_refusals import GOOD

import dnnprims as dp
from dnnprims import watching
from dnnprims.problem import CallLine
from dnnprims.runtime.emulator import EmulatorExecutor

RELU_X = np.array([-1.0, 2.0, -3.0, 4.0], np.float32)
FIELDS = ("dnnprims", "version", "event", "backend", "function", "variant", "details", "call", "microseconds")

Lines = Callable[[], list[dict[str, str]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Everything is logged; the log so far, by field."""
    monkeypatch.setenv("DNNPRIMS_VERBOSE", "all")

    def read() -> list[dict[str, str]]:
        rows = [line.split(",") for line in capsys.readouterr().err.splitlines()]
        assert all(len(row) == len(FIELDS) for row in rows)
        return [dict(zip(FIELDS, row, strict=True)) for row in rows]

    return read


def test_lines_have_a_fixed_format(lines: Lines) -> None:
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", RELU_X, out=np.empty_like(RELU_X))
        with pytest.raises(dp.BadParamError) as caught:
            dp.activation_forward(handle, "relu", RELU_X.astype(np.int32))
    called, refused = lines()
    assert (called["dnnprims"], called["version"], called["event"]) == ("dnnprims", "2", "profile")
    assert (called["function"], called["backend"], called["variant"]) == ("activation_forward", "numpy", "reference")
    assert called["call"].startswith("activation_forward activation=relu x=float32:4")
    assert float(called["microseconds"]) > 0
    assert (refused["event"], refused["function"]) == ("check", "activation_forward")
    assert refused["details"] == f"BadParamError: {caught.value}".replace(",", ";")
    assert refused["call"] == caught.value.call


@pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
@pytest.mark.parametrize("backend", backend_parameters())
def test_every_call_is_logged_with_its_line(op: FunctionType, backend: str, lines: Lines) -> None:
    """As its caller wrote it, though the front end hands on something else."""
    with dp.create_handle(backend) as handle:
        there = {
            name: [handle.asarray(a) for a in value]
            if isinstance(value, list)
            else handle.asarray(value)
            if isinstance(value, np.ndarray)
            else value
            for name, value in GOOD[op.__name__]().items()
        }
        op(handle, **there)
        expected = str(CallLine.of(op, there, handle))
    logged = lines()
    assert [line["event"] for line in logged] == ["profile"] if backend == "numpy" else ["dispatch", "profile"]
    assert {line["call"] for line in logged} == {expected}
    assert {line["function"] for line in logged} == {op.__name__}


def test_a_dispatch_says_why_variants_declined(lines: Lines) -> None:
    room = np.zeros(68, np.float32)
    start = -room.ctypes.data % 16 // 4 + 1
    with dp.create_handle("emulator") as handle:
        dp.activation_forward(handle, "relu", room[start : start + 64])
    dispatch, profile = lines()
    assert dispatch["event"] == "dispatch"
    assert dispatch["details"].startswith("packed: x is aligned to 4 bytes only")
    assert dispatch["variant"] == profile["variant"] == "plain"
    assert dispatch["microseconds"] == ""


def test_a_refusal_before_the_handle_is_reached_is_logged(lines: Lines) -> None:
    with dp.create_handle("numpy") as handle, pytest.raises(dp.BadParamError):
        dp.clip_by_global_norm(handle, [RELU_X], -1.0)
    (line,) = lines()
    assert (line["event"], line["call"][:20]) == ("check", "clip_by_global_norm ")


def test_odd_words_do_not_break_a_line(lines: Lines) -> None:
    with dp.create_handle("numpy") as handle:
        for word in ("a,b", "a\nb", "a\rb", "a\u2028b", "\ud800"):
            with pytest.raises(dp.BadParamError):
                dp.activation_forward(handle, word, RELU_X)
    assert len(lines()) == 5


def test_prepared_plans_are_logged(handle: dp.Handle, lines: Lines) -> None:
    with dp.create_handle(handle.backend) as watched:
        x = watched.asarray(RELU_X)
        d = dp.TensorDescriptor((4,), "float32")
        plan = dp.prepare(dp.activation_forward, watched, "relu", d)
        np.testing.assert_array_equal(watched.to_numpy(plan(x)), [0, 2, 0, 4])
        if handle.backend != "numpy":
            (address,) = watched._look((x,))[1]
            np.testing.assert_array_equal(watched.to_numpy(plan(address)), [0, 2, 0, 4])
    dispatch, *profiles = lines()
    assert dispatch["call"] == "activation_forward activation=relu x=float32:4/described"
    assert len(profiles) == (1 if handle.backend == "numpy" else 2)
    for profile in profiles:
        assert profile["event"] == "profile"
        assert profile["call"].startswith("activation_forward activation=relu x=float32:4")
        assert "described" not in profile["call"]


def test_some_events_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DNNPRIMS_VERBOSE", " check, ")
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", RELU_X)
    assert capsys.readouterr().err == ""


def test_unknown_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNPRIMS_VERBOSE", "loud")
    with pytest.raises(dp.BadParamError, match="DNNPRIMS_VERBOSE is unknown"):
        dp.create_handle("numpy")


def test_nothing_asked_is_nothing_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DNNPRIMS_VERBOSE", "DNNPRIMS_CHECK", "DNNPRIMS_NVTX"):
        monkeypatch.setenv(variable, "0")
    with dp.create_handle("numpy") as handle:
        assert handle._watch is None
        assert handle._nvtx is None


class _Capturing(EmulatorExecutor):
    """Says that a graph is being recorded, in which nothing may wait."""

    def capturing(self, stream: int) -> bool:
        return True

    def synchronize(self, stream: int) -> None:
        raise AssertionError("waited while a graph is captured")

    def download(self, pointer: int, nbytes: int, stream: int = 0) -> bytes:
        raise AssertionError("read the device while a graph is captured")


def test_no_call_waits_while_a_graph_is_captured(
    emulator_handle: dp.Handle, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNPRIMS_CHECK", "1")
    with dp.create_handle("emulator") as handle:
        monkeypatch.setattr(handle._executor, "__class__", _Capturing)
        dp.activation_forward(handle, "relu", RELU_X)
        monkeypatch.undo()
    assert [(line["event"], line["microseconds"]) for line in lines()] == [("dispatch", ""), ("profile", "")]


@pytest.mark.parametrize("prepared", [False, True])
def test_check_at_once_names_the_call(
    emulator_handle: dp.Handle, prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label out of range is raised by the call that has it, with its line."""
    monkeypatch.setenv("DNNPRIMS_CHECK", "1")
    x, labels = np.zeros((2, 3), np.float32), np.array([0, 7])
    with dp.create_handle("emulator") as handle:
        arguments = ("cross_entropy", x, labels)
        call = dp.prepare(dp.loss_forward, handle, *arguments) if prepared else None
        with pytest.raises(dp.BadParamError, match="target has a label out of range") as caught:
            call(x, labels) if call else dp.loss_forward(handle, *arguments)
    assert caught.value.call.startswith("loss_forward loss=cross_entropy prediction=float32:2x3")


def test_ranges_for_a_profiler(emulator_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each planned call lies in a range that names it, left when the call fails, too."""
    events: list[str] = []
    nvtx = SimpleNamespace(RangePush=events.append, RangePop=lambda: events.append("pop"))
    monkeypatch.setenv("DNNPRIMS_NVTX", "1")
    monkeypatch.setattr(EmulatorExecutor, "nvtx", lambda self: nvtx)
    with dp.create_handle("emulator") as handle:
        x, out = (emulator_handle.asarray(np.zeros(8, np.float32)) for _ in range(2))
        dp.activation_forward(handle, "relu", x, out=out)
        dp.activation_forward(handle, "relu", x, out=out)
        plan = dp.prepare(dp.activation_forward, handle, "relu", x, out=out)
        plan(x, out=out)
        room = emulator_handle.asarray(np.zeros(12, np.float32))
        with pytest.raises(dp.BadParamError, match="overlaps"):
            plan(room[:8], out=room[4:])
    assert events == ["dnnprims activation_forward packed float32:8 float32:8", "pop"] * 4


def test_ranges_are_cupys() -> None:
    """CuPy's module has the functions that are used."""
    nvtx = pytest.importorskip("cupy.cuda.nvtx", exc_type=ImportError)
    plan = SimpleNamespace(enqueue=lambda *_: "done", operands=(None,))
    watching.add_ranges(plan, SimpleNamespace(op="x", variant="plain"), nvtx)  # type: ignore[arg-type]
    assert plan.enqueue() == "done"
