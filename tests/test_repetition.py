"""Calls on the arrays of the call before: the launch is made again as it is, and whatever has changed is noticed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HAS_COMPILER
from device_arrays import DeviceArray, DeviceExecutor

import dnnprims as dp
from dnnprims.errors import BadParamError, ExecutionError

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
X = np.array([-1.0, 2.0, -3.0, 4.0] * 2, np.float32)


@pytest.fixture(params=[(1, False), (2, False), (2, True)], ids=["one GPU", "two GPUs", "graphs"])
def executor(request: pytest.FixtureRequest) -> DeviceExecutor:
    made, (gpus, graphs) = DeviceExecutor(), request.param
    made.get_device = (lambda: made.gpu) if gpus > 1 else None
    made.graph = made.record if graphs else None
    return made


@pytest.fixture
def handle(executor: DeviceExecutor) -> Iterator[dp.Handle]:
    with dp.Handle(executor, executor.profile, 0, None) as made:
        yield made


Call = Callable[..., Any]


@pytest.fixture(params=["call", "plan"])
def relu(request: pytest.FixtureRequest, handle: dp.Handle) -> Call:
    """``relu(x, out=y)`` as a call and through a plan object."""
    if request.param == "call":
        return lambda x, out: dp.activation_forward(handle, "relu", x, out=out)
    described = dp.TensorDescriptor(X.shape, "float32")
    return dp.prepare(dp.activation_forward, handle, "relu", described, out=described)


def kinds(executor: DeviceExecutor) -> list[str]:
    return [kind for kind, _ in executor.events]


def test_a_call_on_the_same_arrays_is_its_launch_again(handle: dp.Handle, executor: DeviceExecutor, relu: Call) -> None:
    x, y = handle.asarray(X), handle.asarray(X)
    for k in range(5):
        x[...] = X + k
        assert relu(x, out=y) is y
        np.testing.assert_array_equal(y, np.maximum(X + k, 0))
    assert kinds(executor)[0] == "packed"
    assert kinds(executor)[-2:] == ["again", "again"]
    assert len(executor.events) == 5


def test_another_array_is_noticed(handle: dp.Handle, executor: DeviceExecutor, relu: Call) -> None:
    arrays = [(handle.asarray(X + k), handle.asarray(X)) for k in range(2)]
    for k in (0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0):
        x, y = arrays[k]
        y[...] = np.nan
        assert relu(x, out=y) is y
        np.testing.assert_array_equal(y, np.maximum(x, 0))
    for x, y in (arrays[0][0], arrays[1][1]), (arrays[1][0], arrays[1][1]):
        relu(x, out=y)
        np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_another_stream_is_noticed(handle: dp.Handle, executor: DeviceExecutor, relu: Call) -> None:
    x, y = handle.asarray(X), handle.asarray(X)
    streams = [1, 1, 1, 1, 2, 2, 2, 2, 1]
    for executor.current in streams:
        relu(x, out=y)
    handle.set_stream(7)
    relu(x, out=y)
    relu(x, out=y)
    relu(x, out=y)
    handle.set_stream(None)
    relu(x, out=y)
    assert [stream for _, stream in executor.events] == [*streams, 7, 7, 7, 1]
    assert "again" in kinds(executor)


def test_another_current_gpu_is_noticed(
    handle: dp.Handle, executor: DeviceExecutor, relu: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes to the handle's all the same."""
    x, y, switched = handle.asarray(X), handle.asarray(X), list[int]()

    def there(call: Call, *arguments: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(executor, "gpu", 0)
            switched.append(1)
            return call(*arguments)

    monkeypatch.setattr(handle, "there", there)
    for executor.gpu in (0, 0, 0, 3, 3, 0, 0, 0):
        y[...] = np.nan
        switched.clear()
        assert relu(x, out=y) is y
        np.testing.assert_array_equal(y, np.maximum(X, 0))
        assert bool(switched) == (executor.gpu == 3 and executor.get_device is not None)
    assert kinds(executor)[-1] == "again"


def test_while_the_caller_captures_it_is_enqueued_step_by_step(
    handle: dp.Handle, executor: DeviceExecutor, relu: Call
) -> None:
    """A graph cannot be launched into another one, nor is it recorded then."""
    x, y = handle.asarray(X), handle.asarray(X)
    found = []
    for executor.is_capturing in (True, True, True, False, False, False, True, False):
        y[...] = np.nan
        assert relu(x, out=y) is y
        np.testing.assert_array_equal(y, np.maximum(X, 0))
        found.append(kinds(executor)[-1])
    if executor.graph is not None:
        assert found == ["packed", "packed", "packed", "again", "again", "again", "packed", "again"]


def test_an_overlap_is_noticed_after_repetitions(handle: dp.Handle, relu: Call) -> None:
    room = handle.asarray(np.zeros(16, np.float32))
    for _ in range(4):
        relu(room[:8], out=room[8:])
    with pytest.raises(BadParamError, match="out overlaps x"):
        relu(room[:8], out=room[4:12])
    assert relu(room[:8], out=room[8:]) is not None


def test_a_launch_that_fails_is_made_with_all_its_words(
    handle: dp.Handle, executor: DeviceExecutor, relu: Call
) -> None:
    """Whether it raises or says so: what follows is a launch from the beginning, and the one after may be repeated."""
    x, y = handle.asarray(X), handle.asarray(X)

    def broken() -> object:
        raise RuntimeError("no context")

    for fault in broken, lambda: 13:
        for _ in range(3):
            relu(x, out=y)
        executor.fault = fault
        y[...] = np.nan
        assert relu(x, out=y) is y
        np.testing.assert_array_equal(y, np.maximum(X, 0))
        assert kinds(executor)[-1] == "packed"
        executor.fault = lambda: False
        relu(x, out=y)
        relu(x, out=y)
        assert kinds(executor)[-1] == "again"


def test_a_failed_call_on_other_arrays_leaves_nothing_to_repeat(
    handle: dp.Handle, executor: DeviceExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its addresses are packed by then, in the place of those that the kept launch was for."""
    (x, y), (u, v) = ((handle.asarray(X + k), handle.asarray(X)) for k in (0, 10))
    relu = functools.partial(dp.activation_forward, handle, "relu")
    for _ in range(3):
        relu(x, out=y)
    (plan,) = handle._plans.values()
    (run,) = plan._runs

    def fails(addresses: Any, stream: int, live: Any) -> Any:
        run(addresses, stream, live)
        raise ExecutionError("launch", "failed")

    with monkeypatch.context() as patched:
        patched.setattr(plan, "_runs", [fails])
        with pytest.raises(ExecutionError, match="failed"):
            relu(u, out=v)
    del executor.events[:]
    relu(x, out=y)
    assert kinds(executor) == ["packed" if executor.graph is None else "again"]


def test_nobody_else_enters_and_nothing_runs_once_it_is_closed(
    handle: dp.Handle, executor: DeviceExecutor, relu: Call
) -> None:
    x, y = handle.asarray(X), handle.asarray(X)
    for _ in range(4):
        relu(x, out=y)
    refusals: list[str] = []

    def intrude() -> object:
        try:
            relu(x, out=y)
        except BadParamError as error:
            refusals.append(str(error))
        return False

    def let_another_thread_in() -> object:
        executor.fault = lambda: False
        other = threading.Thread(target=intrude)
        other.start()
        other.join()
        return False

    executor.fault = let_another_thread_in
    assert relu(x, out=y) is y
    assert len(refusals) == 1
    assert "in use by another thread" in refusals[0]
    handle.close()
    count = len(executor.events)
    for attempt in (lambda: relu(x, out=y), lambda: relu(x, out=y)):
        with pytest.raises(BadParamError, match="handle is closed"):
            attempt()
    assert len(executor.events) == count
    handle.close()


def test_what_a_plan_object_takes(handle: dp.Handle) -> None:
    """Addresses, names and foreign arrays between calls that repeat; a wrong number of arrays is refused."""
    described = dp.TensorDescriptor(X.shape, "float32")
    plan = dp.prepare(dp.activation_forward, handle, "relu", described, out=described)
    x, y = handle.asarray(X), handle.asarray(X)
    plain = np.asarray(x)
    ways: list[Callable[[], Any]] = [
        lambda: plan(x, out=y),
        lambda: plan(x, y),
        lambda: plan(x=x, out=y),
        lambda: plan(x.ctypes.data, out=y.ctypes.data),
        lambda: plan(plain, out=y),
    ]
    for way in ways * 2:
        for _ in range(4):
            y[...] = np.nan
            way()
            np.testing.assert_array_equal(y, np.maximum(X, 0))
    for wrong, words in (
        (lambda: plan(), "wrong number of arrays: got 0"),
        (lambda: plan(out=y), "wrong number of arrays: got 1"),
        (lambda: plan(x), "wrong number of arrays: got 1"),
        (lambda: plan(x, y, x), "wrong number of arrays: got 3"),
        (lambda: plan(x, y, out=y), "multiple values|wrong number of arrays"),
        (lambda: plan(x, y=y), "takes no y"),
        (lambda: plan(None, out=y), "x is missing"),
    ):
        with pytest.raises((BadParamError, TypeError), match=words):
            wrong()
    assert plan(x, out=y) is y


def test_plans_of_two_and_three_arrays(handle: dp.Handle) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (handle.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 4), (2, 4), (2,)))
    out = handle.asarray(np.zeros((3, 2), np.float32))
    for arrays in (x, w), (x, w, b):
        layer = dp.prepare(dp.fc_forward, handle, *arrays, out=out)
        others = tuple(handle.asarray(a + 1) for a in arrays)
        for given in (
            arrays,
            arrays,
            arrays,
            arrays,
            others,
            *zip(*[(a, o, a, o) for a, o in zip(arrays, others, strict=True)], strict=True),
        ):
            out[...] = np.nan
            assert layer(*given, out=out) is out
            want = given[0] @ given[1].T + (given[2] if len(given) == 3 else 0)
            np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
        with pytest.raises(BadParamError, match="wrong number of arrays"):
            layer(*arrays)


def test_a_call_of_several_steps_hands_back_all_its_results(handle: dp.Handle, executor: DeviceExecutor) -> None:
    rng = np.random.default_rng(0)
    dy, x, w, dx, dw = (
        handle.asarray(rng.standard_normal(s).astype(np.float32)) for s in ((3, 12), (3, 4), (12, 4), (3, 4), (12, 4))
    )
    for _ in range(4):
        dx[...] = dw[...] = np.nan
        found = dp.fc_backward(handle, dy, x, w, needs=("dx", "dw"), dx=dx, dw=dw)
        assert found[0] is dx
        assert found[1] is dw
        np.testing.assert_allclose(dx, dy @ w, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dw, dy.T @ x, rtol=1e-5, atol=1e-5)
    assert kinds(executor)[-1] == ("packed" if executor.graph is None else "again")


def test_results_are_made_anew_each_time(handle: dp.Handle, executor: DeviceExecutor) -> None:
    x = handle.asarray(X)
    kept = [dp.activation_forward(handle, "relu", x) for _ in range(3)]
    assert len({a.ctypes.data for a in kept}) == 3
    room = executor.empty(X.shape, dp.dtypes.BY_NAME["float32"])
    executor.empty = lambda shape, dtype: room  # type: ignore[method-assign]
    for k in range(3):
        x[...] = X + k
        np.testing.assert_array_equal(dp.activation_forward(handle, "relu", x), np.maximum(X + k, 0))
    assert kinds(executor)[-2:] == ["again", "again"]


def test_an_array_of_another_gpu_is_refused_though_one_like_it_was_taken(
    handle: dp.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = handle.asarray(X), handle.asarray(X)
    monkeypatch.setattr(handle, "_get_device", lambda: 0)
    for _ in range(3):
        dp.activation_forward(handle, "relu", x, out=y)
    monkeypatch.setattr(DeviceArray, "data", property(lambda a: SimpleNamespace(ptr=a.ctypes.data, device_id=1)))
    with pytest.raises(BadParamError, match=r"device"):
        dp.activation_forward(handle, "relu", x, out=y)


def test_a_repeated_launch_that_can_no_longer_be_made_is_our_error(
    handle: dp.Handle, executor: DeviceExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = handle.asarray(X), handle.asarray(X)
    for _ in range(3):
        dp.activation_forward(handle, "relu", x, out=y)
    (plan,) = handle._plans.values()

    def lost(addresses: Any, stream: int, live: Any) -> Any:
        raise ExecutionError("launch", "the GPU is lost")

    monkeypatch.setattr(plan, "_runs", [lost])
    executor.fault = lambda: 719
    with pytest.raises(ExecutionError, match="the GPU is lost"):
        dp.activation_forward(handle, "relu", x, out=y)
