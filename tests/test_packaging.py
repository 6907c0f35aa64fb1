"""What is shipped: the wheel's content, the README's claims, and the commands of a bare clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dnnprims
from dnnprims import listing
from dnnprims.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dnnprims"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHIPPED_SUFFIXES = {".html", ".py", ".cu", ".cuh", ".h", ".typed"}

if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
else:
    PROJECT = None

needs_tomllib = pytest.mark.skipif(PROJECT is None, reason="tomllib came with Python 3.11")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this tree with the backend that is installed."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    assert path.name == f"dnnprims-{dnnprims.__version__}-py3-none-any.whl"
    assert path.stat().st_size < 1_000_000
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """Kernels, headers and the typing marker travel with the Python files."""
    expected = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected
    assert {Path(name).suffix for name in shipped} <= SHIPPED_SUFFIXES
    assert {"dnnprims/py.typed", "dnnprims/runtime/emulator.h", "dnnprims/kernels/ptx.cuh"} <= shipped


def test_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    """Apache-2.0, in full."""
    (name,) = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    text = wheel.read(name).decode()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_wheel_needs_only_numpy_and_ml_dtypes(wheel: zipfile.ZipFile) -> None:
    """Everything else is an extra."""
    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    lines = wheel.read(name).decode().splitlines()
    needs = {line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist")}
    assert {need for need in needs if "extra ==" not in need} == {"numpy>=2.1.2", "ml-dtypes"}


@needs_tomllib
def test_version_is_said_once_in_two_places() -> None:
    """The package and its metadata agree."""
    assert PROJECT["version"] == dnnprims.__version__


@needs_tomllib
def test_cuda_extras_bring_the_toolkit() -> None:
    """A machine needs nothing but the driver."""
    for major in (12, 13):
        assert PROJECT["optional-dependencies"][f"cuda{major}x"] == [f"cupy-cuda{major}x[ctk]>=14.1"]


@pytest.mark.parametrize("code", CODE, ids=[f"block{i}" for i in range(len(CODE))])
def test_readme_code_runs(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each Python block of the README runs by itself on the NumPy backend."""
    environment = {**os.environ, "DNNPRIMS_BACKEND": "numpy", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_has_code() -> None:
    """The pattern that finds the blocks finds them."""
    assert len(CODE) >= 4


def test_readme_table_is_current() -> None:
    """`python -m dnnprims list --into README.md` changes nothing."""
    assert listing.rewrite(README) == README


def test_every_primitive_is_listed() -> None:
    """The table knows each public primitive, and each takes every dtype on every backend."""
    table = listing.rows()
    assert {primitive for _, primitive, _ in table} == {op.__name__ for op in dnnprims.PRIMITIVES}
    for _, primitive, cells in table:
        assert set(cells) == {"".join(listing.BACKENDS)}, primitive


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command names the command."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"dnnprims {command}" in capsys.readouterr().out


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The usual exit code of wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2
    assert "doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "extra"), [(None, ""), (11080, ""), (12020, "cuda12x"), (13000, "cuda13x"), (14010, "cuda13x")]
)
def test_extra_that_fits_the_driver(version: int | None, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Makefile installs the extra for the driver's CUDA, or none."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import cuda_extra

    assert cuda_extra.extra_for(version) == extra


def test_gate_is_executable() -> None:
    """`.ci/run` runs the tests and the checks, and stops at the first failure."""
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    text = gate.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert "make test" in text
    assert "make check" in text
