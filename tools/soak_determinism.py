"""The same inputs give the same bits: in every repeat, on every stream, beside other work, in every process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from soak_calls import ReadyCall, large_problems, ways
from soak_watch import progress

import dnnprims as dp
from dnnprims.conformance.cases import Problem

#: Elements that the competing kernels copy; in flight at any time.
COMPETING_ELEMENTS, COMPETING_KERNELS = 1 << 26, 8

#: Bits of a call: its name -> how often each digest was seen.
Digests = dict[str, dict[str, int]]


def digests(handle: dp.Handle, dtypes: Sequence[str], ops: Sequence[str], repeats: int, settings: int) -> Digests:
    """Run every way of every primitive in each setting, and digest what it writes."""
    found: Digests = {}
    for name, problem in progress(_problems(handle, dtypes, ops)):
        call = ReadyCall(handle, problem)
        seen = found.setdefault(name, {})
        kept, digest = None, ""
        for enter in _settings(handle, settings):
            with enter() as before_each:
                for _ in range(repeats):
                    call.restore()
                    before_each()
                    call()
                    handle.synchronize()
                    if kept is None or not call.gives(kept):
                        kept, digest = call.keep(), hashlib.sha256(call.outputs()).hexdigest()[:32]
                    seen[digest] = seen.get(digest, 0) + 1
    return found


def _problems(handle: dp.Handle, dtypes: Sequence[str], ops: Sequence[str]) -> list[tuple[str, Problem]]:
    """What is called, by name: every way, and on a GPU what keeps all of it busy."""
    found = [(str(way), problem) for way, problem in ways(handle.profile, dtypes, ops=ops).items()]
    large = large_problems(dtypes, ops) if handle.backend == "cuda" else ()
    return [*found, *((str(problem), problem) for problem in large)]


Setting = Callable[[], AbstractContextManager[Callable[[], None]]]


def _settings(handle: dp.Handle, count: int) -> list[Setting]:
    """Circumstances that must not matter: streams on a GPU, orders of threads on the emulator."""
    if handle.backend == "cuda":
        return [_default, _non_blocking, _competing][:count]
    if handle.backend == "emulator":
        return [lambda seed=seed: _schedule(handle, seed) for seed in range(count)]  # type: ignore[misc]
    return [lambda: nullcontext(_nothing)]


def _nothing() -> None:
    pass


@contextmanager
def _schedule(handle: dp.Handle, seed: int) -> Iterator[Callable[[], None]]:
    """Blocks, warps and lanes in another order each time; seed 0 is the fixed one."""
    executor: Any = handle._executor
    before = executor.schedule_seed

    def shuffle() -> None:
        executor.schedule_seed += bool(seed)

    executor.schedule_seed = seed * 1_000_003
    try:
        yield shuffle
    finally:
        executor.schedule_seed = before


@contextmanager
def _default() -> Iterator[Callable[[], None]]:
    yield _nothing


@contextmanager
def _non_blocking() -> Iterator[Callable[[], None]]:
    import cupy

    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield _nothing
        stream.synchronize()


@contextmanager
def _competing() -> Iterator[Callable[[], None]]:
    """Copies on another stream take multiprocessors and bandwidth away, each time in another phase."""
    import cupy

    busy = cupy.cuda.Stream(non_blocking=True)
    source, target = (cupy.ones(COMPETING_ELEMENTS, "float32") for _ in range(2))

    def keep_busy() -> None:
        if busy.done:
            with busy:
                for _ in range(COMPETING_KERNELS):
                    cupy.multiply(source, 1.0001, out=target)

    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield keep_busy
        stream.synchronize()
    busy.synchronize()


def in_processes(count: int, arguments: Sequence[str], environments: Sequence[dict[str, str]] = ()) -> list[Digests]:
    """Digests of processes that run side by side; `arguments` are those of the command ``digest``."""
    tool = Path(__file__).with_name("soak.py")
    command = [sys.executable, str(tool), "digest", *arguments]
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(k + 1), **(environments[k] if environments else {})},
        )
        for k in range(count)
    ]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process failed; its message is above")
    return [json.loads(answer) for answer in answers]


def compare(processes: Sequence[Digests]) -> dict[str, Any]:
    """How many digests there are, and the calls for which they differ."""
    names = list(processes[0])
    seen = {name: {digest for found in processes for digest in found.get(name, {"missing": 0})} for name in names}
    return {
        "calls": len(names),
        "digests": sum(sum(counts.values()) for found in processes for counts in found.values()),
        "differences": sorted(name for name, found in seen.items() if len(found) != 1),
    }
