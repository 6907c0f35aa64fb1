"""Nothing grows, and nothing is left to the cyclic collector. The long run is ``tools/soak.py leaks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak as tool
from soak_leaks import calls_to_soak, soak, things_to_soak

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES

CALLS = {"numpy": 320, "emulator": 320, "cuda": 10_000}


def test_calls_leave_nothing_behind(handle: dp.Handle) -> None:
    """Every primitive into memory that is there, making its results, and as a plan."""
    for what, call in calls_to_soak(handle, (), DTYPES, every_way=False):
        found = soak(what, call, CALLS[handle.backend], handle.backend)
        assert not found.leaks, found


def test_handles_descriptors_and_refusals_leave_nothing_behind(handle: dp.Handle) -> None:
    for what, thing, worth in things_to_soak(handle):
        found = soak(what, thing, max(CALLS[handle.backend] // worth, 20), handle.backend)
        assert not found.leaks, found


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(lambda kept: kept.append(object()), id="object"),
        pytest.param(lambda kept: kept.append(bytearray(1 << 14)), id="memory"),
        pytest.param(lambda kept: (lambda cycle: cycle.append(cycle))([]), id="cycle"),
    ],
)
def test_a_planted_leak_is_noticed(planted: Any) -> None:
    """One object, one piece of memory, one cycle for each call."""
    kept: list[Any] = []
    assert soak("planted", lambda: planted(kept), 400, "numpy").leaks


def test_the_footprint_of_nothing_is_noise() -> None:
    assert not soak("nothing", lambda: np.ones(100).sum(), 400, "numpy").leaks


def test_a_handle_keeps_a_bounded_number_of_plans(emulator_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that change for ever; what the plans dropped last own is given back in turn."""
    monkeypatch.setattr("dnnprims.handle.MOST_PLANS", 8)
    for n in range(1, 40):
        arrays = [emulator_handle.asarray(np.full(n, 2.0, np.float32))]
        dp.scale_and_check_finite(emulator_handle, arrays, 0.5)
        np.testing.assert_array_equal(arrays[0], 1)
    assert len(emulator_handle._plans) == 8
    assert len(emulator_handle._dropped) == 31
    assert emulator_handle._dropped.maxlen is not None


def test_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of the work, and what came of it."""
    file = tmp_path / "leaks.json"
    asked = ["leaks", "--backend", "numpy", "--op", "set_tensor", "--op", "cast", "--calls", "900", "--json", str(file)]
    assert tool.main([*asked, "--part", "2/3"]) == 0
    report = json.loads(file.read_text())
    assert [row["what"].split(", ")[1] for row in report["rows"]] == ["fresh results"] * 2
    assert report["failures"] == 0
    assert '"leaking": []' in capsys.readouterr().out
