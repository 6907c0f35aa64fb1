"""A copy of the project with one mistake in it, and one command in that copy, with limits on time and memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .mutant import Mutant
from .suite import Part

COPIED = ("dnnprims", "tests", "tools", "examples")
ALONE = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
#: Bytes of address space of one process: the stacks of each of the emulator's libraries take half a GiB of it.
MEMORY = 48 << 30


@dataclass(frozen=True)
class Finish:
    """How a command ended: by itself, or because its time was over, or because nobody wants to know any more."""

    code: int
    output: str
    seconds: float
    timed_out: bool = False
    stopped: bool = False


class Overlay:
    """The copy. It lives in a directory of its own, with its own kernel cache, filled from a warm one by links."""

    def __init__(self, root: Path, warm: Path, mutant: Mutant | None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="dnnprims-mutant-"))
        self.root, self.cache = self._directory / "project", self._directory / "cache"
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._closed = False
        copy_project(root, self.root)
        if mutant:
            path = self.root / mutant.path
            path.write_text(mutant.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        self.cache.mkdir(mode=0o700)
        for entry in warm.iterdir() if warm.is_dir() else ():
            os.link(entry, self.cache / entry.name)

    def run(self, part: Part, timeout: float) -> Finish:
        """Run one command to its end, or to the end of its time."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            with self._lock:
                if self._closed:
                    return Finish(-signal.SIGKILL, "", 0.0, stopped=True)
                process = subprocess.Popen(
                    part.command, cwd=self.root, env=_environment(self.root, self.cache), stdin=subprocess.DEVNULL,
                    stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                if part.limited:
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
                self._running.add(process.pid)
            timed_out = False
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                timed_out = True
                _end(process.pid)
                process.wait()
            with self._lock:
                self._running.discard(process.pid)
                stopped = self._closed
            output.seek(0)
            words, seconds = output.read()[-6000:], time.perf_counter() - start
            return Finish(process.returncode, words, seconds, timed_out, stopped)

    def stop(self) -> None:
        """End what still runs."""
        with self._lock:
            self._closed = True
            for pid in self._running:
                _end(pid)

    def remove(self) -> None:
        """Delete the copy."""
        shutil.rmtree(self._directory, ignore_errors=True)


def copy_project(root: Path, to: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ALONE:
        if (root / name).is_file():
            shutil.copy(root / name, to / name)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _environment(root: Path, cache: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DNNPRIMS_", "PYTEST_"))}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    own = {"PYTHONPATH": str(root), "DNNPRIMS_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    # No GPU, so that the copies see what a machine without one sees; Hypothesis draws the same examples each time.
    return {**kept, **threads, **own, "CUDA_VISIBLE_DEVICES": "-1", "CI": "true"}
