"""Records of calls, with their data, are replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import backend_parameters
from test_refusals import GOOD
from test_replay import REFUSED, RIGHT, USAGE

import dnnprims as dp
from dnnprims.conformance.replay import loading
from dnnprims.conformance.replay.memory import fetch
from dnnprims.problem import Operand


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
