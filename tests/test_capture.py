"""Calls can be recorded into a graph: nothing is allocated, nothing waits, and replays give the bits of eager calls."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import HAS_GPU, backend_parameters
from soak_calls import ReadyCall, ways
from soak_capture import CudaRecorder, replay
from soak_watch import Watch
from streams import LateEmulator, late_handle

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES
from dnnprims.runtime.table import RING

needs_emulator = backend_parameters()[1].marks[0]  # type: ignore[attr-defined]


@pytest.fixture
def late() -> Iterator[tuple[dp.Handle, LateEmulator]]:
    handle, executor = late_handle()
    with handle:
        yield handle, executor


@needs_emulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_replays_give_the_bits_of_eager_calls(late: Any, dtype: str) -> None:
    """Every way of every primitive, on streams that do everything as late as they may."""
    handle, executor = late
    for way, problem in ways(handle.profile, [dtype]).items():
        done = replay(ReadyCall(handle, problem), executor, replays=5)
        assert not done.complaints, f"{way}: {done.complaints}: {problem}"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_graphs_give_the_bits_of_eager_calls(dtype: str) -> None:
    """Every way of every primitive, recorded in CUDA's global mode. The long run is ``tools/soak.py capture``."""
    with dp.create_handle("cuda") as handle:
        recorder = CudaRecorder()
        for way, problem in ways(handle.profile, [dtype]).items():
            with recorder.active():
                call = ReadyCall(handle, problem)
            done = replay(call, recorder, replays=20)
            assert not done.complaints, f"{way}: {done.complaints}: {problem}"


@needs_emulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_that_has_run_allocates_nothing_and_waits_for_nothing(handle: dp.Handle, dtype: str) -> None:
    """With destinations given, from the second call on."""
    if handle.backend == "numpy":
        pytest.skip("the reference allocates what it needs")
    for way, problem in ways(handle.profile, [dtype]).items():
        call = ReadyCall(handle, problem)
        call()
        with Watch(handle) as watch:
            call()
            call()
        assert not watch.allocations, f"{way}: {dict(watch.seen)}"
        assert not watch.waits, f"{way}: {dict(watch.seen)}"
        assert watch.seen["empty"] == 2 * len(call.made()), f"{way}: {dict(watch.seen)}"


@needs_emulator
def test_the_watch_notices_what_it_is_for(emulator_handle: dp.Handle) -> None:
    """A planted allocation and a planted wait."""
    x = emulator_handle.asarray(np.ones(4, np.float32))
    with Watch(emulator_handle) as watch:
        dp.activation_forward(emulator_handle, "relu", x)
        assert (watch.allocations, watch.waits, watch.seen["empty"]) == (0, 0, 1)
        emulator_handle._workspace(1 << 21, 0)
        assert watch.allocations == 1
        emulator_handle.synchronize()
        assert watch.waits > 0
    dp.activation_forward(emulator_handle, "relu", x)
    assert watch.seen["empty"] == 1


# -- tables of addresses ---------------------------------------------------------------------------------------------


def lists(handle: dp.Handle, count: int) -> list[tuple[list[Any], list[Any]]]:
    """Weights, all 0, and gradients, all k + 1, for each of `count` networks."""
    return [
        (
            [handle.asarray(np.zeros(n, np.float32)) for n in (3, 40)],
            [handle.asarray(np.full(n, k + 1, np.float32)) for n in (3, 40)],
        )
        for k in range(count)
    ]


def steps_taken(weights: list[Any], k: int) -> set[float]:
    """How often each weight was changed by the gradients of network k."""
    return {float(v) / -(k + 1) for w in weights for v in w}


@needs_emulator
def test_a_graph_keeps_its_table_whatever_runs_after(late: Any) -> None:
    """The arrays had been used before the recording, and so many others after it that every slot was rewritten."""
    handle, executor = late
    networks = lists(handle, RING + 3)
    dp.sgd_update(handle, *networks[0], lr=1.0)
    launch = executor.record(lambda: dp.sgd_update(handle, *networks[0], lr=1.0))
    for weights, gradients in networks[1:]:
        dp.sgd_update(handle, weights, gradients, lr=1.0)
    for _ in range(4):
        launch()
    handle.synchronize()
    assert [steps_taken(w, k) for k, (w, _) in enumerate(networks)] == [{5.0}] + [{1.0}] * (RING + 2)


@needs_emulator
def test_a_recording_on_other_arrays_than_before_allocates_nothing(late: Any) -> None:
    """The plan has a slot ready; its copy is part of the graph, so that an eager call does not rely on it."""
    handle, executor = late
    (weights, gradients), (others, other_gradients) = lists(handle, 2)
    dp.sgd_update(handle, weights, gradients, lr=1.0)
    with Watch(handle) as watch:
        launch = executor.record(lambda: dp.sgd_update(handle, others, other_gradients, lr=1.0))
    assert not watch.allocations
    dp.sgd_update(handle, others, other_gradients, lr=1.0)
    handle.synchronize()
    assert steps_taken(others, 1) == {1.0}
    launch()
    handle.synchronize()
    assert steps_taken(others, 1) == {2.0}


@needs_emulator
def test_a_result_dropped_amid_a_recording_lives_on(late: Any) -> None:
    """Its memory must not be handed out again: replays write to it."""
    handle, executor = late
    weights, gradients = lists(handle, 1)[0]
    made: list[Any] = []

    def step() -> None:
        made.append(weakref.ref(dp.clip_by_global_norm(handle, gradients, 1.0)))
        made.append(weakref.ref(dp.activation_forward(handle, "relu", weights[0])))

    step()
    handle.synchronize()
    assert [ref() for ref in made] == [None, None]
    executor.record(step)
    gc.collect()
    assert all(ref() is not None for ref in made[2:])


@needs_emulator
def test_a_late_stream_finds_its_own_table(late: Any) -> None:
    """Work on one stream has not begun when another has rewritten as many tables as are kept."""
    handle, executor = late
    networks = lists(handle, 2 * RING + 2)
    for k, (weights, gradients) in enumerate(networks):
        executor.current = 1 if k == 0 else 2
        dp.sgd_update(handle, weights, gradients, lr=1.0)
    executor.drain(2)
    executor.drain(1)
    assert [steps_taken(w, k) for k, (w, _) in enumerate(networks)] == [{1.0}] * len(networks)


@needs_emulator
def test_a_plan_first_made_amid_a_recording_serves_no_other_call(late: Any) -> None:
    """Its constants are copied by the graph alone; neither a call nor a prepared plan may rely on them."""
    handle, executor = late
    weights, gradients = lists(handle, 1)[0]
    plans: list[Any] = []

    def recorded() -> None:
        plans.append(dp.prepare(dp.sgd_update, handle, weights, gradients, lr=1.0))
        plans[0](weights, gradients)

    launch = executor.record(recorded)
    dp.sgd_update(handle, weights, gradients, lr=1.0)
    handle.synchronize()
    assert steps_taken(weights, 0) == {1.0}
    plans.pop()(weights, gradients)
    handle.synchronize()
    assert steps_taken(weights, 0) == {2.0}
    launch()
    handle.synchronize()
    assert steps_taken(weights, 0) == {3.0}
