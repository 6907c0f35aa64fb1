"""Fixtures shared by all tests: a handle on each backend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

import dnnprims
from dnnprims.__main__ import main
from dnnprims.runtime.cuda import gpu_works

HAS_GPU = gpu_works()
HAS_COMPILER = shutil.which("g++") is not None


def _is_hopper() -> bool:
    if not HAS_GPU:
        return False
    with dnnprims.create_handle("cuda") as handle:
        return handle.profile.arch == 90 and handle.profile.tensor_maps


needs_hopper = pytest.mark.skipif(not _is_hopper(), reason="needs a GPU of compute capability 9.0")


@pytest.fixture(autouse=True, scope="session")
def _quiet_environment() -> None:
    """The developer's own switches must not change what is tested."""
    for name in ("DNNPRIMS_VERBOSE", "DNNPRIMS_CHECK", "DNNPRIMS_BACKEND", "DNNPRIMS_RECORD", "DNNPRIMS_NVTX"):
        os.environ.pop(name, None)


def backend_parameters() -> list[object]:
    """Every backend, those that cannot run here skipped with the reason."""
    return [
        "numpy",
        pytest.param("emulator", marks=pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")]),
    ]


@pytest.fixture(params=backend_parameters())
def handle(request: pytest.FixtureRequest) -> Iterator[dnnprims.Handle]:
    """A handle on each backend."""
    with dnnprims.create_handle(request.param) as made:
        yield made


@pytest.fixture
def numpy_handle() -> Iterator[dnnprims.Handle]:
    """A handle on the NumPy backend."""
    with dnnprims.create_handle("numpy") as made:
        yield made


@pytest.fixture
def emulator_handle() -> Iterator[dnnprims.Handle]:
    """A handle on the emulator."""
    if not HAS_COMPILER:
        pytest.skip("the emulator needs g++")
    with dnnprims.create_handle("emulator") as made:
        yield made


@pytest.fixture
def cuda_handle() -> Iterator[dnnprims.Handle]:
    """A handle on the GPU."""
    if not HAS_GPU:
        pytest.skip("no NVIDIA GPU here")
    with dnnprims.create_handle("cuda") as made:
        yield made


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["replay", *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def own_kernel_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are kept among the temporary files of this run."""
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "kernels"))
