"""``python -m dnnprims replay``: a line that was printed is a call that can be made again, and judged."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from conftest import backend_parameters
from test_refusals import GOOD, broken_arguments, refusal

import dnnprims as dp
from dnnprims.__main__ import main
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.replay import drawing, loading, timing
from dnnprims.conformance.runner import execute
from dnnprims.problem import CallLine

OPS = {op.__name__: op for op in dp.PRIMITIVES}
RIGHT, WRONG, USAGE, REFUSED = 0, 1, 2, 3
RELU = "activation_forward activation=relu x=float32:3x5"


# -- lines of right calls ----------------------------------------------------------------------------------------------


def logged_lines(family: str, dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[str]:
    """Call lines of the corner cases of a family, as the log has them."""
    monkeypatch.setenv("DNNPRIMS_VERBOSE", "profile")
    cases = FAMILIES[family]
    with dp.create_handle("numpy") as handle, np.errstate(all="ignore"):
        for problem in cases.problems(dtype, seed=0, count=0):
            execute(handle, problem, cases.make(problem, np.random.default_rng(problem.integer("seed"))))
    monkeypatch.delenv("DNNPRIMS_VERBOSE")
    return list(dict.fromkeys(line.split(",")[7] for line in capsys.readouterr().err.splitlines()))


@pytest.mark.parametrize("backend", backend_parameters())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_corner_replays_from_the_log(
    family: str,
    dtype: str,
    backend: str,
    replay: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line is taken, data of the right domain are drawn, and the results lie within the bounds."""
    lines = logged_lines(family, dtype, monkeypatch, capsys)
    assert {line.split()[0] for line in lines} == set(FAMILIES[family].primitives)
    for line in lines:
        code, printed = replay(line, "--backend", backend)
        assert code == RIGHT, printed


@pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
def test_every_argument_at_once(op: FunctionType, replay: Callable[..., tuple[int, str]]) -> None:
    """The call of each primitive in which nothing is left out."""
    line = str(CallLine.of(op, GOOD[op.__name__]()))
    code, printed = replay(line, "--backend", "numpy")
    assert code == RIGHT, printed
    assert "nothing else changed" in printed


def test_seeds_draw_other_data_and_the_same_again() -> None:
    line = CallLine.parse(RELU)
    first, again, other = (drawing.draw(line, np.random.default_rng(seed))["x"] for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_options_of_the_handle(replay: Callable[..., tuple[int, str]]) -> None:
    line = "fc_backward_bias dy=float32:3000x8"
    assert replay(line, "--backend", "emulator")[0] == RIGHT
    code, printed = replay(f"{line} workspace_limit=0", "--backend", "emulator")
    assert code == RIGHT or "workspace" in printed
    assert replay(f"{RELU} math=tf32 deterministic=False", "--backend", "numpy")[0] == RIGHT
    assert replay(f"{RELU} math=fp8", "--backend", "numpy")[0] == USAGE


# -- wrong and refused calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda y, n: y * np.float32(1.0001), "times the bound"),
        (lambda y, n: y + np.float32(n) * np.finfo(np.float32).eps, "differs between two runs"),
        (lambda y, n: y.reshape(-1), "has shape (15,), expected (3, 5)"),
        (lambda y, n: (y, y), "gave 2 results, expected 1"),
    ],
)
def test_a_wrong_result_is_told(
    spoil: Callable[[Any, int], Any],
    words: str,
    replay: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really, calls = dp.activation_forward, []

    @functools.wraps(really)
    def wrong(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return spoil(really(*arguments, **options), len(calls))

    monkeypatch.setattr(dp, "activation_forward", wrong)
    code, printed = replay(RELU, "--backend", "numpy")
    assert code == WRONG
    assert words in printed


@pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
def test_a_refusal_is_reproduced_from_its_line(
    op: FunctionType, numpy_handle: dp.Handle, replay: Callable[..., tuple[int, str]]
) -> None:
    """The same argument is refused for the same reason; the one that only data give is in records."""
    reproduced = 0
    for broken in broken_arguments(op):
        error = refusal(op, numpy_handle, {**GOOD[op.__name__](), broken.argument: broken.value})
        if error is None or CallLine.parse(error.call).lost:
            continue
        if error.problem in ("has a label out of range", "has an index out of range"):
            continue
        code, printed = replay(error.call, "--backend", "numpy")
        if any(operand.numpy.hasobject for operand in CallLine.parse(error.call).operands.values()):
            assert code == USAGE
            continue
        words = f"refused: {type(error).__name__}: {error.op}: {error.param} {error.problem}"
        assert (code, words in printed) == (REFUSED, True), f"{error.call}\n{printed}"
        reproduced += 1
    assert reproduced >= 5


def test_a_failure_is_no_refusal(replay: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(dp.activation_forward)
    def lost(*_: Any, **__: Any) -> None:
        raise dp.ExecutionError("launch", "the GPU is lost")

    monkeypatch.setattr(dp, "activation_forward", lost)
    code, printed = replay(RELU, "--backend", "numpy")
    assert code == WRONG
    assert "failed: ExecutionError: launch: the GPU is lost" in printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frobnicate x=float32:3", "names no primitive"),
        ("", "is empty"),
        ("no/such/record.json", "is no record"),
        ("activation_forward x", "unreadable word"),
        ("activation_forward activation=relu x=?torch.Tensor", "cannot give back"),
        ("activation_forward activation=relu x=float32:3/elsewhere", "cannot be made"),
        ("activation_forward activation=relu x=float32:3/device", "cannot be made"),
        ("activation_forward activation=relu x=float32:3@nobody", "cannot be made"),
        ("activation_forward activation=relu x=float32:3@out out=float32:3@x", "cannot be made"),
        ("activation_forward activation=elu(slope=1.0) x=float32:3", "is not a parameter of elu"),
    ],
)
def test_wrong_usage(text: str, words: str, replay: Callable[..., tuple[int, str]]) -> None:
    code, printed = replay(text, "--backend", "numpy")
    assert code == USAGE
    assert words in printed


# -- cases -------------------------------------------------------------------------------------------------------------


def test_case_lines(replay: Callable[..., tuple[int, str]]) -> None:
    code, printed = replay(
        "prelu_forward shape=3x4x5 slope=channels place=offset dtype=float32 seed=7", "--check", "--time"
    )
    assert code == RIGHT
    assert "error over bound" in printed
    assert "us median" in printed


def test_a_failing_case_names_the_command(
    replay: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `verify` prints of a failure is what `replay` takes."""
    really = dp.prelu_forward

    @functools.wraps(really)
    def wrong(*arguments: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return really(*arguments, **options) * np.float32(1.01)

    monkeypatch.setattr(dp, "prelu_forward", wrong)
    assert main(["verify", "prelu", "--backend", "numpy", "--dtype", "float32", "--cases", "0"]) == WRONG
    (line, *_) = re.findall(r'python -m dnnprims replay --backend numpy "(prelu_forward .*)"', capsys.readouterr().out)
    code, printed = replay(line, "--backend", "numpy")
    assert code == WRONG
    assert "wrong: result 0" in printed
    monkeypatch.undo()
    assert replay(line, "--backend", "numpy")[0] == RIGHT


def test_lines_are_told_apart() -> None:
    assert isinstance(loading.load(RELU), CallLine)
    assert isinstance(loading.load("activation_forward"), CallLine)
    assert not isinstance(loading.load("activation_forward mode=relu shape=3"), CallLine)
    assert not isinstance(loading.load("cast shape=3 dtype=float32 seed=1"), CallLine)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backend_parameters())
def test_times(backend: str, replay: Callable[..., tuple[int, str]]) -> None:
    code, printed = replay(RELU, "--backend", backend, "--time", "--repeat", "7")
    assert code == RIGHT
    found = re.findall(r"(\w+) +([\d.]+) us median, ([\d.]+) p10, ([\d.]+) p90, of 7 calls", printed)
    assert [what for what, *_ in found] == (["host", "device"] if backend == "cuda" else ["call"])
    for _, median, low, high in found:
        assert 0 < float(low) <= float(median) <= float(high)
    assert "error over bound" not in printed


def test_slow_calls_are_timed_less_often(numpy_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    (line,) = timing.measure(numpy_handle, lambda: None, None)
    assert line.endswith("of 3 calls")


def test_a_refused_call_is_not_timed(replay: Callable[..., tuple[int, str]]) -> None:
    for options in (["--time"], ["--time", "--check"]):
        code, printed = replay("softmax_forward x=float32:3 axis=4", "--backend", "numpy", *options)
        assert code == REFUSED
        assert "us median" not in printed


# -- the user ----------------------------------------------------------------------------------------------------------


def test_from_error_to_replay_in_an_empty_directory(tmp_path: Path) -> None:
    """An uncaught error ends with the command that makes its call again; in quotes and without."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dp.__file__).parent.parent), "DNNPRIMS_BACKEND": "numpy"}
    code = "import numpy as np, dnnprims as dp\ndp.softmax_forward(dp.create_handle(), np.zeros((2, 3)), axis=5)"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    failed = run(sys.executable, "-c", code)
    last = failed.stderr.strip().splitlines()[-1]
    if sys.version_info < (3, 11):
        pytest.skip("errors have notes from Python 3.11 on")
    assert last == 'replay with: python -m dnnprims replay "softmax_forward x=float64:2x3 axis=5"'
    command = last.removeprefix("replay with: ").replace("python", sys.executable, 1)
    for text in (command, command.replace('"', "")):
        again = run("/bin/sh", "-c", text)
        assert again.returncode == REFUSED
        assert "refused: BadParamError: softmax_forward: axis is out of range" in again.stdout
