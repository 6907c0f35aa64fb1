"""The kernel cache keeps what it may, and gives back nothing but what was put into it under the same key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dnnprims.dtypes import FLOATS
from dnnprims.runtime import compiler
from dnnprims.runtime.launch import Family, Kernel, Struct

pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")

SMALL = Family(
    "reduce_test",
    (Kernel("reduce_test", "scale", Struct("ScaleParams", ("y", "x"), (("n", "i64"),))),),
    lambda dtype: {"all": [f"scale<{dtype.cuda}>"]},
)
SMALL_TEXT = """
template <class T> struct ScaleParams { T* y; const T* x; long long n; };
template <class T> __global__ void scale(const ScaleParams<T> p) {
  if (threadIdx.x < p.n) p.y[threadIdx.x] = p.x[threadIdx.x];
}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a family of one small kernel whose compilations are counted."""
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "read_source", lambda name: SMALL_TEXT)
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really compiled."""
    done: list[str] = []
    really = compiler.compile_source

    def counted(source: str, *args: object, **kwargs: object) -> compiler.Binary:
        done.append(source)
        return really(source, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "compile_source", counted)
    return done


def test_second_compilation_comes_from_the_cache(cache: Path, compilations: list[str]) -> None:
    """The same text compiles once; the directory is the user's alone."""
    first = compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    second = compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    assert first == second
    assert len(compilations) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_changed_header_is_compiled_again(
    cache: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key covers the flattened text, so a stale binary is never found."""
    compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    monkeypatch.setattr(compiler, "read_source", lambda name: SMALL_TEXT + "// edited\n")
    compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    compiler.compile_group(SMALL, FLOATS[0], "all", "sm_80")
    assert len(compilations) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_entry_is_compiled_again(cache: Path, compilations: list[str], damage: str) -> None:
    """A damaged entry never reaches the driver."""
    good = compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    (entry,) = cache.iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"not ours at all" * 10)
    entry.write_bytes(data)
    assert compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90") == good
    assert len(compilations) == 2


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_directory_that_others_can_write_to_is_refused(cache: Path, compilations: list[str], mode: int) -> None:
    """The cache is code: what others could have written is not loaded, and the user is told once."""
    cache.mkdir()
    cache.chmod(mode)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        compiler.compile_group(SMALL, FLOATS[0], "all", "sm_90")
    assert not list(cache.iterdir())


def test_symbolic_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link could be turned to somebody else's directory."""
    (tmp_path / "real").mkdir(mode=0o700)
    os.symlink(tmp_path / "real", tmp_path / "link")
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "link"))
    with pytest.warns(RuntimeWarning, match="symbolic link"):
        assert compiler.cache_directory() is None
