"""Memory runs out at each place where it is asked for: the right error, nothing changed, and the next call works."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HAS_GPU, backend_parameters
from soak_calls import ReadyCall, ways
from soak_watch import Scarcity

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES, Problem
from dnnprims.dtypes import BY_NAME
from dnnprims.runtime.cuda import CudaExecutor
from dnnprims.runtime.emulator import EmulatorExecutor
from dnnprims.runtime.plan import OutOfMemory

DEVICES = backend_parameters()[1:]
needs_emulator = DEVICES[0].marks[0]  # type: ignore[attr-defined]


def failure(attempt: Callable[[], object]) -> dp.AllocationError | None:
    """The error of an attempt for which there is no memory."""
    try:
        attempt()
    except dp.AllocationError as error:
        return error
    return None


def attempts(call: ReadyCall, attempt: Callable[[], object]) -> Iterator[int]:
    """Let the first allocation of an attempt fail, then the second, and so on, until one goes through."""
    for allowed in range(50):
        call.restore()
        before = call.contents()
        with Scarcity(call.handle, allowed) as scarcity:
            error = failure(attempt)
        assert scarcity.struck == (error is not None), "an allocation failed and nobody said so"
        if error is None:
            return
        assert isinstance(error, MemoryError)
        assert error.op == call.problem.op
        call.handle.synchronize()
        assert call.contents() == before, f"allocation {allowed + 1} failed, and yet something was written"
        yield allowed
    raise AssertionError("there is no end of allocations")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", DEVICES)
def test_every_allocation_of_every_call_may_fail(backend: str, dtype: str) -> None:
    """Of the first call, of the making of a plan, and of calls that make their results."""
    with dp.create_handle(backend) as right:
        chosen = {way: (problem, bits(right, problem)) for way, problem in ways(right.profile, [dtype]).items()}
    failures = 0
    for way, (problem, expected) in chosen.items():
        for make in (lambda call: call, lambda call: call.fresh, lambda call: lambda: call.prepare()()):
            with dp.create_handle(backend) as handle:
                call = ReadyCall(handle, problem)
                attempt = make(call)
                for _ in attempts(call, attempt):
                    failures += 1
                call.restore()
                attempt()
                call.restore()
                call()
                handle.synchronize()
                assert call.outputs() == expected, f"{way}: {problem}"
    assert failures > len(chosen)


def bits(handle: dp.Handle, problem: Problem) -> bytes:
    """What the call writes when nothing fails."""
    call = ReadyCall(handle, problem)
    call()
    handle.synchronize()
    return call.outputs()


@needs_emulator
def test_failed_allocations_leave_nothing_behind(emulator_handle: dp.Handle) -> None:
    """A thousand failures of the constants of a plan, and of the result of a call."""
    problem = Problem.parse("clip_by_global_norm shapes=1001,33 dtype=float32 seed=1")
    call = ReadyCall(emulator_handle, problem)
    call()

    def fail(allowed: int) -> None:
        with Scarcity(emulator_handle, allowed), pytest.raises(dp.AllocationError):
            call.prepare()()

    def growth(times: int) -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(times):
            fail(0)
            fail(1)
        gc.collect()
        return sys.getallocatedblocks() - before

    growth(1000)  # lists of free objects and tables of the interpreter fill up
    assert growth(1000) < 100


@needs_emulator
def test_a_handle_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: EmulatorExecutor, nbytes: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(EmulatorExecutor, "buffer", fail)
    with pytest.raises(dp.AllocationError, match="create_handle: memory cannot be had: the host has none left"):
        dp.create_handle("emulator")


def test_what_the_host_cannot_hold_is_our_error(numpy_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's own arrays, and copies to and from the backend."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError("Unable to allocate 7.28 TiB")

    x = np.ones(3, np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(dp.ops.softmax.reference, "softmax_forward", fail)
        with pytest.raises(dp.AllocationError, match=r"softmax_forward: memory cannot be had: Unable .* free arrays"):
            dp.softmax_forward(numpy_handle, x)
        patched.setattr(numpy_handle._arrays, "from_numpy", fail)
        with pytest.raises(dp.AllocationError, match="asarray: memory"):
            numpy_handle.asarray(x)
        patched.setattr(numpy_handle._arrays, "to_numpy", fail)
        with pytest.raises(dp.AllocationError, match="to_numpy: memory"):
            numpy_handle.to_numpy(x)
    np.testing.assert_allclose(dp.softmax_forward(numpy_handle, x).sum(), 1.0)


def test_what_cupy_raises_for_want_of_memory_is_told_apart() -> None:
    """Device memory and page-locked memory; any other error of the runtime stays what it is."""
    cupy = pytest.importorskip("cupy")
    runtime = cupy.cuda.runtime

    def failing(error: Exception) -> Callable[[int], Any]:
        def allocate(nbytes: int) -> Any:
            raise error

        return allocate

    cuda = SimpleNamespace(memory=cupy.cuda.memory, alloc=failing(cupy.cuda.memory.OutOfMemoryError(7, 0, 0)))
    executor = object.__new__(CudaExecutor)
    executor._cupy, executor._runtime = SimpleNamespace(cuda=cuda, ndarray=cupy.ndarray), runtime
    for allocate in (lambda: executor.buffer(7), lambda: executor.empty((7,), BY_NAME["float32"])):
        with pytest.raises(OutOfMemory, match="the GPU has no"):
            allocate()
    cuda.alloc_pinned_memory = failing(runtime.CUDARuntimeError(2))
    with pytest.raises(OutOfMemory, match="page-locked memory of the host has no 7 bytes left"):
        executor.staging(7)
    cuda.alloc_pinned_memory = failing(runtime.CUDARuntimeError(700))
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorIllegalAddress"):
        executor.staging(7)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
def test_a_graph_for_which_there_is_no_memory_leaves_the_stream_usable() -> None:
    """A plan first made while a stream is recorded needs memory; when there is none, that is our error, too."""
    import cupy

    with dp.create_handle("cuda") as handle:
        weights, gradients = [cupy.ones(5, np.float32)], [cupy.ones(5, np.float32)]
        dp.sgd_update(handle, [w.copy() for w in weights * 2], gradients * 2, lr=0.5)  # the kernel is loaded
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            stream.begin_capture()
            with Scarcity(handle, 0), pytest.raises(dp.AllocationError, match="sgd_update: memory"):
                dp.sgd_update(handle, weights, gradients, lr=0.5)
            stream.end_capture()
            dp.sgd_update(handle, weights, gradients, lr=0.5)
            stream.synchronize()
        np.testing.assert_array_equal(cupy.asnumpy(weights[0]), 0.5)
