"""``python -m dnnprims replay``: a line that was printed is a call that can be made again, and judged."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from conftest import backend_parameters
from hostile import like_array, spoilt
from hypothesis import strategies as st
from test_refusals import GOOD, broken_arguments, refusal

import dnnprims as dp
from dnnprims.__main__ import main
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.replay import checking, drawing, loading, timing
from dnnprims.conformance.replay.memory import fetch, fill, place
from dnnprims.conformance.runner import execute
from dnnprims.problem import CallLine, Operand

OPS = {op.__name__: op for op in dp.PRIMITIVES}
RIGHT, WRONG, USAGE, REFUSED = 0, 1, 2, 3
RELU = "activation_forward activation=relu x=float32:3x5"


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["replay", *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


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


# -- drawn data --------------------------------------------------------------------------------------------------------


def drawn(line: str) -> dict[str, np.ndarray]:
    """Data for a line."""
    return drawing.draw(CallLine.parse(line), np.random.default_rng(0))


def test_labels_are_in_range() -> None:
    values = drawn("loss_forward loss=cross_entropy(ignore_index=-5) prediction=float32:500x7 target=int64:500")
    assert set(np.unique(values["target"])) == {-5, *range(7)}


def test_indices_are_in_range() -> None:
    values = drawn("maxout_backward dy=float32:40x3 which=uint8:40x3 pool_size=4")
    assert set(np.unique(values["which"])) == set(range(4))
    words = "dy=float32:9x3x8x8 x_descriptor=float32:9x3x16x16/described indices=uint8:9x3x8x8"
    values = drawn(f"pooling_backward pooling=pooling(mode=max;window=2) {words}")
    assert set(np.unique(values["indices"])) == set(range(4))


def test_outputs_are_those_of_inputs() -> None:
    values = drawn("activation_backward activation=sigmoid dy=float64:100 x=float64:100 y=float64:100")
    np.testing.assert_array_equal(
        values["y"], dp.reference.activation.activation_forward(dp.ActivationDescriptor("sigmoid"), values["x"])
    )
    values = drawn("softmax_backward dy=float64:5x6 y=float64:5x6 axis=0")
    assert np.abs(values["y"].sum(axis=0) - 1.0).max() < np.finfo(np.float64).eps * 8


def test_destinations_that_must_not_be_read_are_poisoned() -> None:
    line = CallLine.parse(f"{RELU} out=float32:3x5")
    assert checking.unread(line, drawing.draw(line, np.random.default_rng(0))) == {"out"}
    for word in ("out=float32:3x5 beta=1.0", "out=float32:3x5@x"):
        line = CallLine.parse(f"{RELU} {word}")
        assert checking.unread(line, drawing.draw(line, np.random.default_rng(0))) == set()


# -- memory ------------------------------------------------------------------------------------------------------------


def replaced(line: CallLine, handle: dp.Handle) -> CallLine:
    """The line of the call that the line was made into."""
    memory = place(handle, line, drawing.draw(line, np.random.default_rng(0)))
    return CallLine.of(OPS[line.op], fill(line, memory.arrays), handle)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "float32:4x6",
            "bfloat16:7@2",
            "float32:4x3:6x2",
            "float32:6x4:1x6@8",
            "float32:4x6:-6x1@12",
            "float64:scalar@8",
        ),
        *("float32:4x6:0x1/readonly", "float32:0x6", "float32:3:9b@3", ">f4:4x6", "int16:5@1", "complex64:2"),
        *("float16:5/described", "float16:5@4/described", "float16:5x2:1x5/described"),
    ],
)
def test_memory_is_as_the_line_says(word: str, handle: dp.Handle) -> None:
    """Steps, alignment, tags: the call that is made has the line that it was made from."""
    if handle.backend == "cuda" and re.match(r">f4|.*readonly", word):
        pytest.skip("CuPy has no such arrays")
    line = CallLine.parse(f"set_tensor y={word} value=1.0")
    assert replaced(line, handle) == line


def test_shared_memory_is_shared(handle: dp.Handle) -> None:
    weights = "weights=[float32:6@4;float32:2x3@weights[0]-12]"
    line = CallLine.parse(f"sgd_update {weights} gradients=[3*float32:5@12] lr=float32:scalar@weights[0]+8")
    assert replaced(line, handle) == line


@hypothesis.settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    st.sampled_from(list(OPS)).flatmap(lambda name: spoilt(GOOD[name](), like_array).map(lambda a: (name, a)))
)
def test_any_call_is_made_again_as_it_was(call: tuple[str, dict[str, Any]]) -> None:
    """Call, line, memory, line: the same line, but for what a line cannot give back."""
    name, arguments = call
    line = CallLine.of(OPS[name], {key: value for key, value in arguments.items() if key in GOOD[name]()})
    line = CallLine.parse(str(line))
    hypothesis.assume(not line.lost and not any(operand.numpy.hasobject for operand in line.operands.values()))
    with dp.create_handle("numpy") as handle:
        assert replaced(line, handle) == line


def test_damage_is_seen(numpy_handle: dp.Handle) -> None:
    """Writing before, behind, into the gaps of an operand, or to one that is only read."""
    line = CallLine.parse("activation_forward activation=relu x=float32:3 out=float32:3:2")
    values = drawing.draw(line, np.random.default_rng(0))
    memory = place(numpy_handle, line, values)
    assert memory.damage(numpy_handle, ("out",)) == []
    memory.arrays["out"][...] = 5
    assert memory.damage(numpy_handle, ("out",)) == []
    memory.arrays["x"][1] += 1
    (words,) = memory.damage(numpy_handle, ("out",))
    assert words.startswith("x: changed ")
    for at in (-1, 1, 5):
        memory = place(numpy_handle, line, values)
        block = memory.blocks[1]
        block.base[block.starts["out"] + 4 * at : block.starts["out"] + 4 * at + 4] = 0
        assert [words.split(":")[0] for words in memory.damage(numpy_handle, ("out",))] == ["out"]


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


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every call is recorded there."""
    monkeypatch.setenv("DNNPRIMS_RECORD", str(tmp_path / "records"))
    monkeypatch.setenv("DNNPRIMS_RECORD_WHAT", "all")
    return tmp_path / "records"


def only_record(folder: Path) -> Path:
    """The one record that there is."""
    (path,) = folder.glob("*.json")
    return path


@pytest.mark.parametrize("backend", backend_parameters())
def test_recorded_data_and_layouts_come_back(
    backend: str, folder: Path, monkeypatch: pytest.MonkeyPatch, replay: Callable[..., tuple[int, str]]
) -> None:
    """Strided, misaligned, repeated, in place, bfloat16: bit for bit what the call was made on."""
    rng = np.random.default_rng(3)
    with dp.create_handle(backend) as handle:
        room = handle.asarray(rng.standard_normal(200).astype(ml_dtypes.bfloat16))
        dy, x = room[1:85].reshape(7, 12)[:, ::2], room[90:132].reshape(7, 6)
        before = fetch(handle, dy), fetch(handle, x)
        dp.activation_backward(handle, "gelu", dy, x=x, out=x, alpha=0.5, beta=1.0)
    monkeypatch.delenv("DNNPRIMS_RECORD")
    recorded = loading.load(str(only_record(folder)))
    assert isinstance(recorded, loading.Recorded)
    assert recorded.values is not None
    for label, expected in zip(("dy", "x"), before, strict=True):
        assert np.array(recorded.values[label]).tobytes() == np.array(expected).tobytes()
    assert recorded.line.operands["dy"] == Operand("bfloat16", (7, 6), (24, 4), "", 2)
    assert recorded.line.operands["out"] == Operand("bfloat16", (7, 6), None, "x", 0)
    for form in (only_record(folder), only_record(folder).with_suffix(".npz")):
        code, printed = replay(str(form), "--backend", backend, "--check", "--time", "--repeat", "3")
        assert code == RIGHT, printed
        assert "recorded data" in printed


def test_repeated_and_negative_steps_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, replay: Callable[..., tuple[int, str]]
) -> None:
    x = np.broadcast_to(np.arange(5.0), (3, 5))[:, ::-1]
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "tanh", x)
    monkeypatch.delenv("DNNPRIMS_RECORD")
    recorded = loading.load(str(only_record(folder)))
    assert isinstance(recorded, loading.Recorded)
    assert recorded.values is not None
    np.testing.assert_array_equal(recorded.values["x"], x)
    assert replay(str(only_record(folder)), "--backend", "numpy")[0] == RIGHT


@pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
def test_every_primitive_replays_from_a_record(
    op: FunctionType, folder: Path, monkeypatch: pytest.MonkeyPatch, replay: Callable[..., tuple[int, str]]
) -> None:
    with dp.create_handle("numpy") as handle:
        op(handle, **GOOD[op.__name__]())
    monkeypatch.delenv("DNNPRIMS_RECORD")
    code, printed = replay(str(only_record(folder)), "--backend", "numpy")
    assert code == RIGHT, printed


def test_a_refusal_that_depends_on_data_replays_from_its_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, replay: Callable[..., tuple[int, str]]
) -> None:
    """A label out of range is in the record, not in the line."""
    with dp.create_handle("numpy") as handle, pytest.raises(dp.BadParamError) as caught:
        dp.loss_forward(handle, "cross_entropy", np.zeros((2, 3), np.float32), np.array([0, 7]))
    monkeypatch.delenv("DNNPRIMS_RECORD")
    assert replay(caught.value.call, "--backend", "numpy")[0] == RIGHT
    for backend in ("numpy", "emulator"):
        code, printed = replay(str(only_record(folder)), "--backend", backend)
        assert code == REFUSED
        assert printed.count("label out of range") == 2  # there and here


def test_a_record_without_data_is_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, replay: Callable[..., tuple[int, str]]
) -> None:
    with dp.create_handle("numpy") as handle, pytest.raises(dp.BadParamError):
        dp.softmax_forward(handle, np.zeros(3, np.float32), axis=4)
    monkeypatch.delenv("DNNPRIMS_RECORD")
    code, printed = replay(str(only_record(folder)), "--backend", "numpy")
    assert code == REFUSED
    assert "data drawn from seed 0" in printed


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: "",
        lambda facts: "[]",
        lambda facts: json.dumps({**facts, "format": 2}),
        lambda facts: json.dumps({**facts, "call": 3}),
        lambda facts: json.dumps({**facts, "call": "activation_forward x"}),
        lambda facts: json.dumps({**facts, "arrays": "no such.npz"}),
        lambda facts: json.dumps({**facts, "arrays": "objects.npz"}),
        lambda facts: json.dumps({**facts, "arrays": "/etc/passwd"}),
        lambda facts: json.dumps({**facts, "call": facts["call"].replace("float32:4", "float32:5")}),
        lambda facts: json.dumps({key: value for key, value in facts.items() if key != "call"}),
    ],
)
def test_what_is_no_record_is_refused(
    change: Callable[[dict[str, Any]], str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    replay: Callable[..., tuple[int, str]],
) -> None:
    """Nothing is unpickled, and nothing is read from elsewhere."""
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", np.zeros(4, np.float32))
    monkeypatch.delenv("DNNPRIMS_RECORD")
    path = only_record(folder)
    np.savez(folder / "objects.npz", x=np.array([object()] * 4))
    path.write_text(change(json.loads(path.read_text())))
    code, printed = replay(str(path), "--backend", "numpy")
    assert code == USAGE, printed
    assert "Traceback" not in printed


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
