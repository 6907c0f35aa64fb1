"""`doctor` names the layer that fails: faults put in the place of each thing that touches the machine."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dnnprims import doctor, probes, sensors
from dnnprims.probes import FAIL, PASS, SKIP, WARN, Probe

NVRTC_WORKS = SimpleNamespace(getVersion=lambda: (13, 0))
GIB = 1 << 30


class Driver:
    """Stands in for libcuda."""

    def __init__(self, status: int = 0, version: int = 13000) -> None:
        self.status, self.version = status, version

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own name
        return self.status

    def cuDriverGetVersion(self, answer: Any) -> int:  # noqa: N802
        ctypes.cast(answer, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


def fake_cupy(version: str = "14.2.0", capability: tuple[int, int] = (9, 0), free: int = 100 * GIB) -> Any:
    """Stands in for CuPy on a machine with one GPU."""
    facts = {"name": b"Some GPU", "major": capability[0], "minor": capability[1]}
    runtime = SimpleNamespace(
        getDevice=lambda: 0, getDeviceProperties=lambda _: facts, memGetInfo=lambda: (free, 140 * GIB)
    )
    return SimpleNamespace(__version__=version, cuda=SimpleNamespace(runtime=runtime))


def fail_with(error: Exception) -> Callable[..., Any]:
    """A function that raises."""

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Probe]]:
    """A machine on which all is well, and a function that breaks parts of it and examines it."""
    modules = {"cupy": fake_cupy()}

    def import_module(name: str) -> ModuleType:
        found = modules.get(name) or sys.modules.get(name) or __import__(name)
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[return-value]

    well = {
        "import_module": import_module,
        "load_driver": Driver,
        "cupy_wheels": lambda: ["cupy-cuda13x"],
        "run_activation": lambda x: np.maximum(x, 0),
        "run_fully_connected": lambda x, w: x @ w.T,
        "blaslt_version": lambda: "13.1.1",
    }
    for name, function in well.items():
        monkeypatch.setattr(sensors, name, function)
    monkeypatch.setattr(probes.compiler, "load_nvrtc", lambda: NVRTC_WORKS)
    monkeypatch.setattr(probes.compiler, "nvrtc_target", lambda _: "sm_75")
    monkeypatch.setattr(probes.compiler, "compile_source", lambda *_, **__: None)
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))

    def examine(cupy: Any = None, **faults: Any) -> dict[str, Probe]:
        if cupy is not None:
            modules["cupy"] = cupy
        for name, fault in faults.items():
            monkeypatch.setattr(probes if name == "np" else sensors, name, fault)
        return {probe.name: probe for probe in probes.examine()}

    return examine


def test_well_machine(machine: Callable[..., dict[str, Probe]]) -> None:
    """No layer fails, and each one is asked, in order."""
    answers = machine()
    assert list(answers) == list(probes.PROBES)
    assert {probe.status for probe in answers.values()} <= {PASS, WARN}
    assert all(not probe.remedy for probe in answers.values() if probe.status == PASS)


def test_no_gpu_at_all(machine: Callable[..., dict[str, Probe]]) -> None:
    """A machine without driver and CuPy is well; what builds on them is not asked."""
    missing = ModuleNotFoundError("No module named 'cupy'", name="cupy")
    answers = machine(cupy=missing, load_driver=fail_with(OSError("libcuda.so.1")), cupy_wheels=list)
    assert [answers[name].status for name in ("driver", "CuPy")] == [WARN, WARN]
    assert [answers[name].status for name in ("device", "NVRTC", "launch", "cuBLASLt")] == [SKIP] * 4
    assert FAIL not in {probe.status for probe in answers.values()}


NO_CUPY = ModuleNotFoundError("No module named 'cupy'", name="cupy")

#: Name -> (layer, status, word of the detail, word of the remedy, faults).
FAULTS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "no_cupy": ("CuPy", FAIL, "not installed", "cuda13x", {"cupy": NO_CUPY, "cupy_wheels": list}),
    "no_cupy_cuda_12": (
        "CuPy",
        FAIL,
        "not installed",
        "cuda12x",
        {"cupy": NO_CUPY, "cupy_wheels": list, "load_driver": lambda: Driver(version=12080)},
    ),
    "two_cupy_wheels": (
        "CuPy",
        FAIL,
        "2 times",
        "pip uninstall cupy-cuda12x cupy-cuda13x",
        {"cupy_wheels": lambda: ["cupy-cuda12x", "cupy-cuda13x"]},
    ),
    "old_cupy": ("CuPy", FAIL, "12.3.0 is too old", "pip install", {"cupy": fake_cupy("12.3.0")}),
    "broken_cupy": ("CuPy", FAIL, "libcudart", "reinstall", {"cupy": ImportError("libcudart.so.13: not found")}),
    "wheel_newer_than_driver": (
        "CuPy",
        FAIL,
        "is for CUDA 13",
        "cuda12x",
        {"load_driver": lambda: Driver(version=12040)},
    ),
    "no_libcuda": ("driver", WARN, "no NVIDIA driver", "none", {"load_driver": fail_with(OSError("no file"))}),
    "no_device": ("driver", WARN, "no device", "--gpus", {"load_driver": lambda: Driver(status=100)}),
    "driver_broken": ("driver", FAIL, "cuInit returned 803", "nvidia-smi", {"load_driver": lambda: Driver(803)}),
    "driver_old": ("driver", FAIL, "CUDA 11.8", "install a driver", {"load_driver": lambda: Driver(version=11080)}),
    "old_gpu": ("device", FAIL, "compute capability 6.1", "7.5", {"cupy": fake_cupy(capability=(6, 1))}),
    "device_full": ("device", WARN, "20 of", "nvidia-smi", {"cupy": fake_cupy(free=20 << 20)}),
    "old_numpy": ("NumPy", FAIL, "1.26.4", "numpy>=2.1.2", {"np": SimpleNamespace(__version__="1.26.4")}),
    "launch_fails": (
        "launch",
        FAIL,
        "illegal address",
        "verify",
        {"run_activation": fail_with(RuntimeError("illegal address"))},
    ),
    "launch_mismatch": ("launch", FAIL, "wrong in 1000 of", "verify", {"run_activation": lambda x: np.abs(x)}),
    "no_blaslt": (
        "cuBLASLt",
        FAIL,
        "libcublasLt",
        "pip install",
        {"blaslt_version": fail_with(OSError("libcublasLt"))},
    ),
    "blaslt_mismatch": ("cuBLASLt", FAIL, "is wrong", "report", {"run_fully_connected": lambda x, w: x @ w.T + 1}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_injected_fault(machine: Callable[..., dict[str, Probe]], fault: str) -> None:
    """Each fault is told by its own layer, in one line, with a remedy in one line."""
    layer, status, detail, remedy, faults = FAULTS[fault]
    if fault == "old_numpy":
        faults = {"np": _numpy_that_says(faults["np"].__version__)}
    answer = machine(**faults)[layer]
    assert answer.status == status, answer
    assert detail in answer.detail
    assert remedy in answer.remedy
    assert "\n" not in answer.detail + answer.remedy


def _numpy_that_says(version: str) -> ModuleType:
    module = ModuleType("numpy")
    module.__dict__.update({name: getattr(np, name) for name in ("arange", "asarray", "float32", "array_equal")})
    module.__dict__.update(maximum=np.maximum, count_nonzero=np.count_nonzero, __version__=version)
    return module


def test_nvrtc_missing(machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver it fails; what needs a kernel is skipped."""
    monkeypatch.setattr(probes.compiler, "load_nvrtc", fail_with(ImportError("libnvrtc.so.13")))
    answers = machine()
    assert answers["NVRTC"].status == FAIL
    assert "libnvrtc" in answers["NVRTC"].detail
    assert "pip install" in answers["NVRTC"].remedy
    assert answers["launch"] == Probe("launch", SKIP, "needs NVRTC")


def test_ml_dtypes_missing(machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told although everything else works."""
    whole = sensors.import_module

    def without(name: str) -> ModuleType:
        if name == "ml_dtypes":
            raise ModuleNotFoundError("No module named 'ml_dtypes'", name=name)
        return whole(name)

    answers = machine(import_module=without)
    assert answers["ml_dtypes"].status == FAIL
    assert "pip install" in answers["ml_dtypes"].remedy


def test_no_host_compiler(machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the emulator suffers."""
    monkeypatch.setattr(probes.shutil, "which", lambda _: None)
    answer = machine()["g++"]
    assert answer.status == WARN
    assert "emulator" in answer.remedy


def test_cache_that_cannot_be_made(
    machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A path below a file can be made by nobody, not even root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    answer = machine()["cache"]
    assert answer.status == WARN
    assert "DNNPRIMS_CACHE_DIR" in answer.remedy


def test_cache_that_others_can_write(
    machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache is code: it is refused, and told."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "open"))
    answer = machine()["cache"]
    assert answer.status == FAIL
    assert "770" in answer.detail
    assert "chmod 700" in answer.remedy


def test_disk_full(machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Little room is a warning."""
    monkeypatch.setattr(probes.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    assert machine()["cache"].status == WARN


def test_probe_that_breaks_is_no_traceback(
    machine: Callable[..., dict[str, Probe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that nobody thought of is FAIL of its layer."""
    monkeypatch.setitem(probes.PROBES, "cache", fail_with(ZeroDivisionError("no\nidea")))
    answer = machine()["cache"]
    assert (answer.status, answer.detail) == (FAIL, "ZeroDivisionError: no idea")


@pytest.mark.parametrize(("status", "code"), [(PASS, 0), (WARN, 0), (SKIP, 0), (FAIL, 1)])
def test_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int) -> None:
    """1 on any FAIL, and on nothing else."""
    monkeypatch.setattr(doctor, "examine", lambda: [Probe("layer", status, "seen", "do this")])
    assert doctor.main([]) == code
    printed = capsys.readouterr().out
    assert status in printed
    assert "do this" in printed


def test_json_hides_the_home_directory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A report can be posted."""
    monkeypatch.setenv("HOME", "/home/somebody")
    seen = Probe("cache", PASS, "/home/somebody/.cache/dnnprims, /home/somebody2/x")
    monkeypatch.setattr(doctor, "examine", lambda: [seen])
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["format"] == 1
    (probe,) = report["probes"]
    assert probe["detail"] == "~/.cache/dnnprims, /home/somebody2/x"


def test_on_this_machine() -> None:
    """The command itself ends with a report, whatever the machine lacks."""
    command = [sys.executable, "-m", "dnnprims", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert [probe["name"] for probe in json.loads(done.stdout)["probes"]] == list(probes.PROBES)
