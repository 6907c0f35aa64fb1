"""A handle is one thread's at a time, which is checked; threads with a handle each are right, compilation included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import backend_parameters
from soak_calls import ReadyCall, ways

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES, Problem
from dnnprims.dtypes import BY_NAME
from dnnprims.ops import FAMILIES
from dnnprims.runtime import blaslt, emulator_compiler
from dnnprims.runtime.compiler import compile_kernel
from dnnprims.runtime.launch import Profile

THREADS = 8
needs_emulator = backend_parameters()[1].marks[0]  # type: ignore[attr-defined]


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What `work` gives on so many threads that begin together."""
    barrier = threading.Barrier(count)

    def begin(k: int) -> Any:
        barrier.wait(60)
        return work(k)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns a thousand times as often as they would."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


# -- misuse ----------------------------------------------------------------------------------------------------------


@contextmanager
def somebody_inside(handle: dp.Handle, enter: Callable[[], object]) -> Iterator[None]:
    """Another thread stands still in the midst of a call for as long as this lasts."""
    inside, leave, failures = threading.Event(), threading.Event(), []
    really = handle._arrays.look

    def slow(operands: Any) -> Any:
        if threading.current_thread() is other and not inside.is_set():
            inside.set()
            leave.wait(60)
        return really(operands)

    def run() -> None:
        try:
            enter()
        except BaseException as error:  # shown below, in the test's own thread
            failures.append(error)

    other = threading.Thread(target=run)
    handle._look = slow
    other.start()
    try:
        assert inside.wait(60)
        yield
    finally:
        leave.set()
        other.join()
        handle._look = really
    assert not failures


def test_a_second_thread_is_refused_whatever_it_asks_for(handle: dp.Handle) -> None:
    """While one is inside: calls, prepared plans and closing. Afterwards the handle works, for any thread."""
    x, y = handle.asarray(np.array([-1.0, 2.0], np.float32)), handle.asarray(np.zeros(2, np.float32))
    plan = dp.prepare(dp.activation_forward, handle, "relu", x, out=y)
    attempts: list[Callable[[], object]] = [
        lambda: dp.activation_forward(handle, "relu", x),
        lambda: dp.softmax_forward(handle, x, out=y),
        lambda: plan(x, out=y),
        handle.close,
    ]
    with somebody_inside(handle, lambda: dp.activation_forward(handle, "relu", x)):
        for attempt in attempts:
            with pytest.raises(dp.BadParamError, match="handle is in use by another thread"):
                attempt()
    np.testing.assert_array_equal(handle.to_numpy(y), [0, 0])
    for attempt in attempts[:3]:
        attempt()
    assert at_once(lambda k: bool(handle.to_numpy(plan(x, out=y))[1] == 2), count=1) == [True]


def test_a_second_thread_is_refused_while_one_is_inside_a_plan(handle: dp.Handle) -> None:
    """The thread inside came through a prepared plan that takes over a foreign array, so that it looks at it."""
    x, y = handle.asarray(np.array([-1.0, 2.0], np.float32)), handle.asarray(np.zeros(2, np.float32))
    plan = dp.prepare(dp.activation_forward, handle, "relu", x, out=y)
    foreign = dp.TensorDescriptor.from_array(x).bind(x.data.ptr if handle.backend == "cuda" else x.ctypes.data, x)
    with somebody_inside(handle, lambda: plan(foreign, out=y)):
        for attempt in (lambda: dp.activation_forward(handle, "relu", x), lambda: plan(x, out=y)):
            with pytest.raises(dp.BadParamError, match="handle is in use by another thread"):
                attempt()
    np.testing.assert_array_equal(handle.to_numpy(y), [0, 2])


def test_whatever_is_raised_inside_the_handle_is_free_again(handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is no error of ours, such as an interrupt."""
    x = handle.asarray(np.ones(2, np.float32))

    def interrupt(operands: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(handle, "_look", interrupt)
        patched.setattr(handle._arrays, "look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dp.activation_forward(handle, "relu", x)
    np.testing.assert_array_equal(handle.to_numpy(dp.activation_forward(handle, "relu", x)), [1, 1])


# -- a handle each ---------------------------------------------------------------------------------------------------


def chosen(profile: Profile) -> list[Problem]:
    """Every way of every primitive, the dtypes in turn."""
    return [problem for k, dtype in enumerate(DTYPES) for problem in list(ways(profile, [dtype]).values())[k::4]]


def bits(handle: dp.Handle, problem: Problem) -> bytes:
    """What a call writes, the second time."""
    call = ReadyCall(handle, problem)
    for _ in range(2):
        call.restore()
        call()
    handle.synchronize()
    return call.outputs()


def test_threads_with_a_handle_each_get_the_bits_of_one_thread(backend: str, hasty: None) -> None:
    """All primitives, each thread beginning with another one."""
    with dp.create_handle(backend) as handle:
        problems = chosen(handle.profile if backend != "numpy" else Profile("emulator"))
        expected = [bits(handle, problem) for problem in problems]

    def work(k: int) -> list[bytes]:
        first = k * len(problems) // THREADS
        with stream_of_its_own(backend), dp.create_handle(backend) as own:
            found = {i: bits(own, problems[i]) for i in (*range(first, len(problems)), *range(first))}
        return [found[i] for i in range(len(problems))]

    for k, found in enumerate(at_once(work)):
        wrong = [str(problem) for problem, a, b in zip(problems, found, expected, strict=True) if a != b]
        assert not wrong, f"thread {k}: {wrong}"


@pytest.fixture(params=backend_parameters())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend, by name."""
    return str(request.param)


@contextmanager
def stream_of_its_own(backend: str) -> Iterator[None]:
    """On CUDA, a stream that is the thread's current one."""
    if backend != "cuda":
        yield
        return
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        yield


# -- compilation -----------------------------------------------------------------------------------------------------


def product(x: np.ndarray) -> np.ndarray:
    """A matrix product on the emulator, for which one kernel is compiled."""
    with dp.create_handle("emulator") as handle:
        return np.asarray(dp.fc_backward_data(handle, x, x))


@needs_emulator
def test_threads_that_compile_at_once_leave_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing compiled in the process and none in the cache."""
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(emulator_compiler, "_libraries", {})
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    for y in at_once(lambda k: product(x)):
        np.testing.assert_array_equal(y, x @ x)
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.name.startswith("gemm-float32-emulator-")
    monkeypatch.setattr(emulator_compiler, "_libraries", {})
    monkeypatch.setattr(emulator_compiler, "_compile", None)  # what is there is whole: it is not compiled again
    np.testing.assert_array_equal(product(x), x @ x)


PROCESS = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_threads import product
x = np.arange(9, dtype=np.float64).reshape(3, 3)
assert (product(x) == x @ x).all()
"""


@needs_emulator
def test_processes_that_compile_at_once_leave_one_entry(tmp_path: Path) -> None:
    text = PROCESS.format(tests=str(Path(__file__).parent))
    tools = str(Path(__file__).resolve().parent.parent / "tools")
    path = os.pathsep.join([tools, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "DNNPRIMS_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    running = [subprocess.Popen([sys.executable, "-c", text], env=environment) for _ in range(3)]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_threads_that_run_nvrtc_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine code for all of them, and one entry."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    found = at_once(lambda k: compile_kernel(FAMILIES["gemm"], BY_NAME["float32"], "gemm_tiled<float>", "sm_90"))
    assert len({binary.code for binary in found}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_threads_share_one_library_handle_for_a_gpu(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one costs tens of milliseconds, and nobody gives it back."""
    made: list[int] = []

    class Made:
        def __init__(self) -> None:
            made.append(1)
            threading.Event().wait(0.05)

    monkeypatch.setattr(blaslt, "LtHandle", Made)
    monkeypatch.setattr(blaslt, "_handles", {})
    assert len(set(map(id, at_once(lambda k: blaslt.device_handle(0))))) == 1
    assert len(made) == 1
