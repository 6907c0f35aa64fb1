"""Kernels and the cache: compiled once, compiled again where an entry is no longer whole, and never the wrong one."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dnnprims.dtypes import FLOATS
from dnnprims.runtime import cache, compiler, emulator_compiler
from dnnprims.runtime.cache import Directory
from dnnprims.runtime.launch import Family, Kernel, Struct

HAS_COMPILER = shutil.which("g++") is not None

FAMILY = Family(
    "planted",
    (Kernel("planted", "fill", Struct("FillParams", ("y",), (("n", "i64"),))),),
    lambda dtype: {"all": [f"fill<{dtype.cuda}>"]},
)
TEXT = """
template <class T> struct FillParams { T* y; long long n; };
template <class T> __global__ void fill(const FillParams<T> p) {
  if (threadIdx.x < p.n) p.y[threadIdx.x] = T(VALUE);
}
"""


def text(value: int) -> str:
    """A kernel that writes `value`; the machine code of two values has the same names."""
    return TEXT.replace("VALUE", str(value))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and none of the libraries loaded."""
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(emulator_compiler, "_libraries", {})
    return tmp_path / "cache"


class Backend:
    """How a backend compiles a kernel, what it did, and which value the kernel has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.compilations = 0

    def count(self, module: object, name: str) -> None:
        really = getattr(module, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.compilations += 1
            return really(*args, **kwargs)

        self.monkeypatch.setattr(module, name, counted)


class Cubins(Backend):
    """Machine code for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.count(compiler, "compile_source")

    def get(self, value: int) -> bytes:
        self.monkeypatch.setattr(compiler, "read_source", lambda name: text(value))
        return compiler.compile_kernel(FAMILY, FLOATS[0], "fill<float>", "sm_90").code


class Libraries(Backend):
    """Shared objects for the emulator: what a kernel writes tells which one it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.count(emulator_compiler, "_compile")

    def get(self, value: int) -> bytes:
        self.monkeypatch.setattr(emulator_compiler, "read_source", lambda name, directory: text(value))
        emulator_compiler._libraries.clear()
        library = emulator_compiler.build(FAMILY, FLOATS[0])
        y = np.zeros(4, np.float32)
        params = struct.pack(FAMILY.kernels[0].struct.codes(FLOATS[0]), y.ctypes.data, 4)
        assert library.launch("fill<float>", (1, 1, 1), 32, params) is None
        assert (y == value).all()
        return y.tobytes()


@pytest.fixture(params=["cubins", "libraries"])
def backend(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Both kinds of machine code."""
    if request.param == "cubins":
        pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")
    elif not HAS_COMPILER:
        pytest.skip("the emulator needs g++")
    return Cubins(monkeypatch) if request.param == "cubins" else Libraries(monkeypatch)


def test_kernel_is_compiled_once(backend: Backend, path: Path) -> None:
    """The second time it comes from the cache; another text never does."""
    first, again, other = backend.get(1), backend.get(1), backend.get(2)
    assert first == again != other
    assert backend.compilations == len(os.listdir(path)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "other kernel", "directory"])
def test_entry_that_is_not_whole_is_compiled_again(backend: Backend, path: Path, damage: str) -> None:
    """What is damaged reaches neither the driver nor the dynamic loader, which would trust it."""
    backend.get(2)
    (other,) = path.iterdir()
    good = backend.get(1)
    (entry,) = set(path.iterdir()) - {other}
    data = entry.read_bytes()
    spoilt = {
        "truncated": data[: len(data) // 2],
        "flipped": data[:300] + bytes([data[300] ^ 1]) + data[301:],
        "empty": b"",
        "foreign": b"\x7fELF" * 100,
        "other kernel": other.read_bytes(),
        "directory": b"",
    }[damage]
    # Another file, not another content: a library that is loaded stays as it is.
    entry.unlink()
    if damage == "directory":
        entry.mkdir()
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            assert backend.get(1) == good
    else:
        entry.write_bytes(spoilt)
        assert backend.get(1) == good
        assert backend.get(1) == good
    assert backend.compilations == 3


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_refused_directory_stays_empty(backend: Backend, path: Path, mode: int) -> None:
    """The kernel is compiled for this process alone, and the user is told."""
    path.mkdir()
    path.chmod(mode)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        first = backend.get(1)
    assert backend.get(1) == first
    assert backend.compilations == 2
    assert os.listdir(path) == []


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_library_exchanged_after_its_check_is_not_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader gets at the very directory that was checked, wherever its name leads by now."""
    backend = Libraries(monkeypatch)
    backend.get(2)
    (other,) = path.iterdir()
    other.rename(path.with_name("malice"))
    backend.get(1)
    # A path that the loader has seen would give the library that is loaded already.
    fresh = shutil.copytree(path, path.with_name("fresh"))
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(fresh))
    (entry,) = fresh.iterdir()
    load = Directory.load

    def exchanging(self: Directory, name: str, key: str) -> bytes | None:
        found = load(self, name, key)
        fresh.rename(path.with_name("moved"))
        fresh.mkdir(mode=0o700)
        shutil.copy(path.with_name("malice"), entry)
        return found

    monkeypatch.setattr(Directory, "load", exchanging)
    backend.get(1)
    assert backend.compilations == 2


AT_ONCE = """
    import multiprocessing, struct, sys
    import numpy as np
    sys.path.insert(0, {tests!r})
    from test_cached_kernels import FAMILY, FLOATS, compiler, emulator_compiler, text
    compiler.read_source = lambda name: text(7)
    emulator_compiler.read_source = lambda name, directory: text(7)
    start = multiprocessing.get_context("fork").Barrier(16)

    def work(code):
        start.wait()
        code.put(compiler.compile_kernel(FAMILY, FLOATS[0], "fill<float>", "sm_90").code)
        library, y = emulator_compiler.build(FAMILY, FLOATS[0]), np.zeros(4, np.float32)
        params = struct.pack("Pq", y.ctypes.data, 4)
        assert library.launch("fill<float>", (1, 1, 1), 32, params) is None and (y == 7).all()

    context = multiprocessing.get_context("fork")
    codes = context.SimpleQueue()
    workers = [context.Process(target=work, args=(codes,)) for _ in range(16)]
    for worker in workers: worker.start()
    found = {{codes.get() for _ in workers}}
    for worker in workers: worker.join()
    assert not any(worker.exitcode for worker in workers), [worker.exitcode for worker in workers]
    print(len(found))
"""


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_sixteen_processes_at_once(path: Path) -> None:
    """On an empty cache: each has the right kernel, one entry for each key is left, and nothing half written."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")
    script = textwrap.dedent(AT_ONCE).format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    assert sorted(entry.suffix for entry in path.iterdir()) == [".cubin", ".so"]
