"""``DNNPRIMS_RECORD``: what is kept of which calls, by whom it can be read, and that no call is worse off for it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_refusals import GOOD

import dnnprims as dp
from dnnprims import record
from dnnprims.problem import CallLine
from dnnprims.runtime import cache
from dnnprims.runtime.emulator import EmulatorExecutor

X = np.array([-1.0, 2.0, -3.0, 4.0], np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every call is recorded, into a folder that is not there yet."""
    monkeypatch.setenv("DNNPRIMS_RECORD", str(tmp_path / "records"))
    monkeypatch.setenv("DNNPRIMS_RECORD_WHAT", "all")
    return tmp_path / "records"


def records(folder: Path) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """What was recorded, in the order of the names."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.exists() else ():
        facts = json.loads(path.read_text())
        arrays = {}
        if facts["arrays"]:
            with np.load(folder / facts["arrays"], allow_pickle=False) as file:
                arrays = dict(file)
        found.append((facts, arrays))
    return found


def test_inputs_are_those_from_before_the_call(handle: dp.Handle, folder: Path) -> None:
    with dp.create_handle(handle.backend) as recording:
        x = recording.asarray(X)
        dp.activation_forward(recording, "relu", x, out=x)
        np.testing.assert_array_equal(recording.to_numpy(x), [0, 2, 0, 4])
    ((facts, arrays),) = records(folder)
    assert facts["call"].endswith("out=float32:4@x")
    assert (facts["format"], facts["backend"], facts["error"]) == (record.FORMAT, handle.backend, None)
    assert facts["versions"]["dnnprims"] == dp.__version__
    assert list(arrays) == ["x"]  # out is x
    np.testing.assert_array_equal(arrays["x"], X)


@pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
def test_every_primitive_is_recorded(op: FunctionType, folder: Path) -> None:
    """Each operand, bit for bit, under its label."""
    arguments, before = GOOD[op.__name__](), GOOD[op.__name__]()
    with dp.create_handle("numpy") as handle:
        op(handle, **arguments)
    ((facts, arrays),) = records(folder)
    line = CallLine.parse(facts["call"])
    assert line.op == op.__name__
    assert set(arrays) == {label for label, operand in line.operands.items() if "described" not in operand.tags}
    for label, stored in arrays.items():
        name, _, rest = label.partition("[")
        expected = before[name][int(rest[:-1])] if rest else before[name]
        np.testing.assert_array_equal(stored, expected)


def test_bfloat16_is_kept_as_its_bits(folder: Path) -> None:
    x = X.astype(ml_dtypes.bfloat16)
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", x)
    ((facts, arrays),) = records(folder)
    assert facts["call"].endswith("x=bfloat16:4")
    assert arrays["x"].dtype == np.uint16
    assert arrays["x"].tobytes() == x.tobytes()


def test_repeated_elements_are_kept_once(folder: Path) -> None:
    x = np.broadcast_to(X, (1000, 4))
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", x)
    ((_, arrays),) = records(folder)
    assert arrays["x"].shape == (1, 4)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_records_are_the_users_alone(mask: int, folder: Path) -> None:
    """Whatever the mask says."""
    before = os.umask(mask)
    try:
        if mask == 0o777:
            folder.mkdir()
            folder.chmod(0o700)
        with dp.create_handle("numpy") as handle:
            dp.activation_forward(handle, "relu", X)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {path.suffix for path in files} == {".json", ".npz"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_failing_calls_alone_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused call is kept as its line, once; a call that fails later with its operands as they were."""
    monkeypatch.delenv("DNNPRIMS_RECORD_WHAT")
    x, labels = np.zeros((2, 3), np.float32), np.array([0, 7])
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", X)
        for _ in range(3):
            with pytest.raises(dp.BadParamError):
                dp.softmax_forward(handle, X, axis=3)
        with pytest.raises(dp.BadParamError):
            dp.loss_forward(handle, "cross_entropy", x, labels)
    kept = {facts["call"].split()[0]: (facts, arrays) for facts, arrays in records(folder)}
    assert len(records(folder)) == len(kept) == 2
    refused, nothing = kept["softmax_forward"]
    assert nothing == {}
    assert refused["error"]["kind"] == "BadParamError"
    assert refused["error"]["text"].startswith("softmax_forward: axis is out of range")
    facts, arrays = kept["loss_forward"]
    assert "label out of range" in facts["error"]["text"]
    np.testing.assert_array_equal(arrays["target"], labels)


def test_a_call_whose_kernel_complains_is_recorded(
    emulator_handle: dp.Handle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device flag is looked at after each recorded call; with what it had, the call is kept."""
    monkeypatch.setenv("DNNPRIMS_RECORD_WHAT", "failing")
    with dp.create_handle("emulator") as handle, pytest.raises(dp.BadParamError, match="label out of range"):
        dp.loss_forward(handle, "cross_entropy", np.zeros((2, 3), np.float32), np.array([0, 7]))
    ((facts, arrays),) = records(folder)
    assert "label out of range" in facts["error"]["text"]
    assert facts["variant"]
    np.testing.assert_array_equal(arrays["target"], [0, 7])


def test_a_failing_launch_is_recorded(
    emulator_handle: dp.Handle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the operands were before, also where the call had begun to change them."""
    monkeypatch.setenv("DNNPRIMS_RECORD_WHAT", "failing")
    x = X.copy()
    with dp.create_handle("emulator") as handle:
        dp.activation_forward(handle, "relu", x, out=x)
        (plan,) = handle._plans.values()

        def fault(addresses: Any, stream: int, live: Any) -> None:
            x[:2] = 77
            raise dp.ExecutionError("launch", "the GPU is lost")

        x[...] = X
        monkeypatch.setattr(plan, "_runs", [fault])
        with pytest.raises(dp.ExecutionError, match="lost"):
            dp.activation_forward(handle, "relu", x, out=x)
    ((facts, arrays),) = records(folder)
    assert facts["error"] == {"kind": "ExecutionError", "text": "launch: the GPU is lost"}
    np.testing.assert_array_equal(arrays["x"], X)


def test_chosen_primitives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNPRIMS_RECORD_WHAT", "softmax_forward, set_tensor")
    with dp.create_handle("numpy") as handle:
        dp.activation_forward(handle, "relu", X)
        dp.softmax_forward(handle, X)
        with pytest.raises(dp.BadParamError):
            dp.activation_forward(handle, "no such", X)
    assert [facts["call"] for facts, _ in records(folder)] == [f"softmax_forward x=float32:4{_past(X)}"]


def _past(a: np.ndarray) -> str:
    return f"@{a.ctypes.data % 16}" if a.ctypes.data % 16 else ""


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DNNPRIMS_RECORD_WHAT", "everything", "DNNPRIMS_RECORD_WHAT is unknown"),
        ("DNNPRIMS_RECORD_LIMIT", "much", "DNNPRIMS_RECORD_LIMIT is no size"),
        ("DNNPRIMS_RECORD_LIMIT", "-1", "DNNPRIMS_RECORD_LIMIT is no size"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    variable: str, value: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(dp.BadParamError, match=words):
        dp.create_handle("numpy")


def test_no_more_than_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says once that it stops; what is there stays, and another process sees the same limit."""
    monkeypatch.setenv("DNNPRIMS_RECORD_LIMIT", "64K")
    for _ in range(2):
        with dp.create_handle("numpy") as handle:
            for _ in range(20):
                dp.activation_forward(handle, "relu", np.zeros(2000, np.float32))
    assert 32 << 10 < sum(path.stat().st_size for path in folder.iterdir()) <= 64 << 10
    words = capsys.readouterr().err.splitlines()
    assert len(words) == 2
    assert all("is full" in line for line in words)


def test_a_call_larger_than_the_limit_is_not_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DNNPRIMS_RECORD_LIMIT", "1K")
    with dp.create_handle("numpy") as handle:
        for _ in range(2):
            dp.activation_forward(handle, "relu", np.zeros(2000, np.float32))
    assert not folder.exists()
    assert capsys.readouterr().err.count("its operands have 8000 bytes") == 1


def _symlink(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir()
    folder.symlink_to(folder.with_name("elsewhere"))


def _open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


TRAPS: dict[str, Callable[[Path], object]] = {
    "symbolic link": _symlink,
    "writable by others": _open_to_all,
    "file": lambda folder: folder.write_text(""),
    "below a file": lambda folder: folder.parent.joinpath("file").write_text(""),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_folder_that_must_not_be_used(
    trap: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once; the calls are carried out."""
    TRAPS[trap](folder)
    if trap == "below a file":
        monkeypatch.setenv("DNNPRIMS_RECORD", str(folder.parent / "file" / "records"))
    with dp.create_handle("numpy") as handle:
        for _ in range(2):
            np.testing.assert_array_equal(dp.activation_forward(handle, "relu", X), [0, 2, 0, 4])
    assert not folder.with_name("elsewhere").exists() or not os.listdir(folder.with_name("elsewhere"))
    (words,) = capsys.readouterr().err.splitlines()
    assert words.startswith("dnnprims: DNNPRIMS_RECORD: ")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), RuntimeError("odd")])
def test_a_full_disk_is_a_word_on_standard_error(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once; the call has its result, and nothing half written is left."""

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", full)
    with dp.create_handle("numpy") as handle:
        for _ in range(2):
            np.testing.assert_array_equal(dp.activation_forward(handle, "relu", X), [0, 2, 0, 4])
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_operands_that_cannot_be_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room")

    with dp.create_handle("numpy") as handle:
        monkeypatch.setattr(handle._arrays, "to_numpy", broken)
        for _ in range(2):
            np.testing.assert_array_equal(dp.activation_forward(handle, "relu", X), [0, 2, 0, 4])
    assert not folder.exists()
    assert capsys.readouterr().err.count("could not be copied: MemoryError: no room") == 1


def test_no_home_directory_and_no_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with dp.create_handle("numpy") as handle, pytest.raises(dp.BadParamError):
        dp.activation_forward(handle, "/home/ada/model", X)
    (path,) = folder.glob("*.json")
    text = path.read_text()
    assert "/home/ada" not in text
    assert "~/model" in text
    assert "hunter2" not in text


def test_nothing_is_recorded_while_a_graph_is_captured(
    emulator_handle: dp.Handle, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with dp.create_handle("emulator") as handle:
        monkeypatch.setattr(EmulatorExecutor, "capturing", lambda self, stream: True)
        for _ in range(2):
            dp.activation_forward(handle, "relu", X)
        monkeypatch.undo()
    assert not folder.exists()
    assert capsys.readouterr().err.count("not recorded while a graph is captured") == 1


def test_prepared_plans_are_recorded(emulator_handle: dp.Handle, folder: Path) -> None:
    """With arrays and with bare addresses alike."""
    x = emulator_handle.asarray(X)
    with dp.create_handle("emulator") as handle:
        plan = dp.prepare(dp.activation_forward, handle, "relu", x)
        plan(x)
        plan(x.ctypes.data)
    first, second = records(folder)
    assert first[0]["call"] == second[0]["call"] == "activation_forward activation=relu x=float32:4"
    for _, arrays in (first, second):
        np.testing.assert_array_equal(arrays["x"], X)


def test_half_written_files_are_named_as_the_caches_are() -> None:
    """So that they are not taken for records."""
    assert cache.WRITING.startswith(".")
