"""What only a GPU shows: streams, graphs, torch's memory, launch failures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims.runtime.cuda import gpu_works

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_works(), reason="no NVIDIA GPU here")]


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def handle() -> Iterator[dp.Handle]:
    with dp.create_handle("cuda") as made:
        yield made


def training_step(handle: dp.Handle, a: dict[str, Any]) -> None:
    """A small network's whole step into buffers that were made before."""
    dp.fc_forward(handle, a["x"], a["w"], a["b"], activation="relu", out=a["h"])
    dp.fc_forward(handle, a["h"], a["v"], out=a["z"])
    dp.loss_forward_backward(handle, "cross_entropy", a["z"], a["t"], out=a["loss"], dprediction=a["dz"])
    dp.fc_backward(handle, a["dz"], a["h"], a["v"], needs=("dx", "dw"), dx=a["dh"], dw=a["dv"])
    dp.fc_backward(
        handle, a["dh"], a["x"], a["w"], activation="relu", y=a["h"], needs=("dw", "db"), dw=a["dw"], db=a["db"]
    )
    weights, gradients = [a["w"], a["b"], a["v"]], [a["dw"], a["db"], a["dv"]]
    dp.clip_by_global_norm(handle, gradients, 1.0)
    dp.sgd_update(handle, weights, gradients, [a["mw"], a["mb"], a["mv"]], lr=0.1, momentum=0.9)


def buffers(cupy: Any, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"x": (32, 20), "w": (48, 20), "b": (48,), "v": (10, 48), "h": (32, 48), "z": (32, 10)}
    shapes |= {"dz": (32, 10), "dh": (32, 48), "dv": (10, 48), "dw": (48, 20), "db": (48,)}
    made = {name: cupy.asarray(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()}
    for name, like in (("mw", "w"), ("mb", "b"), ("mv", "v")):
        made[name] = cupy.zeros(shapes[like], np.float64 if dtype == np.float64 else np.float32)
    made["t"] = cupy.asarray(rng.integers(0, 10, 32))
    made["loss"] = cupy.zeros((), made["mw"].dtype)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_captured_step_gives_the_bits_of_the_eager_one(handle: dp.Handle, cupy: Any, dtype: Any) -> None:
    """A whole training step is recorded once and replayed with other data; weights equal eager ones bit for bit."""
    eager, recorded = buffers(cupy, dtype), buffers(cupy, dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        training_step(handle, buffers(cupy, dtype))  # warm: kernels, workspace, plans of these shapes
        stream.begin_capture()
        training_step(handle, recorded)
        graph = stream.end_capture()
        for step in range(5):
            batch = cupy.asarray(np.random.default_rng(step).standard_normal((32, 20)).astype(dtype))
            eager["x"][...] = batch
            recorded["x"][...] = batch
            training_step(handle, eager)
            graph.launch(stream)
        stream.synchronize()
    for name in ("w", "b", "v", "mw", "loss"):
        assert cupy.asnumpy(eager[name]).tobytes() == cupy.asnumpy(recorded[name]).tobytes(), name


@pytest.mark.parametrize("captured", [False, True])
def test_kernels_placed_early_see_what_those_in_front_wrote(handle: dp.Handle, cupy: Any, captured: bool) -> None:
    """A long chain of large and small kernels, each of which reads what the one in front leaves; exact numbers."""
    rounds, n = 100, 1 << 17
    one, large = cupy.ones(n, np.float32), cupy.zeros(n, np.float32)
    copy, total, small = cupy.zeros(n, np.float32), cupy.zeros((), np.float32), cupy.zeros(8, np.float32)

    def chain() -> None:
        for _ in range(rounds):
            dp.activation_forward(handle, "identity", one, out=large, beta=1.0)
            dp.activation_forward(handle, "relu", large, out=copy)
            dp.activation_forward(handle, "identity", copy[:8], out=small, beta=1.0)
            dp.reduce_tensor(handle, copy, "max", out=total)

    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        chain()
        if captured:
            stream.begin_capture()
            chain()
            stream.end_capture().launch(stream)
        else:
            chain()
        stream.synchronize()
    done = 2 * rounds
    assert bool((large == done).all())
    assert bool((copy == done).all())
    assert bool((small == done * (done + 1) / 2).all())
    assert float(total) == done


def test_plan_first_made_under_capture_is_not_used_before_its_copies_ran(handle: dp.Handle, cupy: Any) -> None:
    """Tables copied by a graph that never ran must not be met by a later eager call."""
    weights = [cupy.ones(100, np.float32) for _ in range(3)]
    gradients = [cupy.full(100, 2, np.float32) for _ in range(3)]
    dp.sgd_update(handle, [w.copy() for w in weights[:2]], gradients[:2], lr=0.5)  # the kernel is loaded
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        dp.sgd_update(handle, weights, gradients, lr=0.5)
        stream.end_capture()
        dp.sgd_update(handle, weights, gradients, lr=0.5)
        stream.synchronize()
    for w in weights:
        np.testing.assert_array_equal(cupy.asnumpy(w), 0)


def test_changing_addresses_reach_the_kernel(handle: dp.Handle, cupy: Any) -> None:
    """Fresh gradients every step, faster than the device follows: each table is its own."""
    weights = [cupy.zeros(1000, np.float32) for _ in range(20)]
    for step in range(50):
        gradients = [cupy.full(1000, step, np.float32) for _ in range(20)]
        dp.sgd_update(handle, weights, gradients, lr=1.0)
    for w in weights:
        np.testing.assert_array_equal(cupy.asnumpy(w), -sum(range(50)))


def test_work_is_enqueued_on_the_stream_asked_for(handle: dp.Handle, cupy: Any) -> None:
    """On a stream held back by a long copy the result is late; on the handle's own stream it is ordered."""
    x = cupy.ones(1000, np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    handle.set_stream(stream)
    assert handle.stream == stream.ptr
    y = dp.activation_forward(handle, "square", x, alpha=3.0)
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(y), 3)
    handle.set_stream(None)
    with cupy.cuda.Stream() as other:
        assert handle.stream == other.ptr


def test_bad_label_raises_a_flag_once(handle: dp.Handle, cupy: Any) -> None:
    """A label out of range costs its own sample alone, and is told at the next check."""
    z = cupy.asarray(np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32))
    t = cupy.asarray(np.array([0, 99, 2, -7]))
    loss = dp.LossDescriptor("cross_entropy", reduction="none")
    losses, dz = dp.loss_forward_backward(handle, loss, z, t)
    np.testing.assert_array_equal(np.isnan(cupy.asnumpy(losses)), [False, True, False, True])
    assert not cupy.asnumpy(dz)[[1, 3]].any()
    with pytest.raises(dp.BadParamError, match="target has a label out of range"):
        handle.synchronize()
    handle.check()


def test_results_outlive_the_call_without_a_synchronisation(handle: dp.Handle, cupy: Any) -> None:
    """Temporaries die while their work is still enqueued; the pool must not hand their memory out too early."""
    x = cupy.asarray(np.random.default_rng(1).standard_normal((512, 512)).astype(np.float32))
    expected = None
    for _ in range(20):
        y = dp.softmax_forward(handle, dp.activation_forward(handle, "tanh", dp.activation_forward(handle, "exp", x)))
        bits = cupy.asnumpy(y).tobytes()
        expected = expected or bits
        assert bits == expected


def test_torch_graph_records_our_launches(handle: dp.Handle) -> None:
    """Raw pointers on torch's stream, recorded by torch."""
    torch = pytest.importorskip("torch")
    x = torch.randn(1000, device="cuda")
    y = torch.empty_like(x)
    plan = dp.prepare(dp.activation_forward, handle, "relu", dp.TensorDescriptor((1000,), "float32"), out=x)
    plan(x.data_ptr(), out=y.data_ptr())
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        handle.set_stream(torch.cuda.current_stream().cuda_stream)
        plan(x.data_ptr(), out=y.data_ptr())
    handle.set_stream(None)
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, torch.relu(x))


def test_array_of_another_device_is_refused(handle: dp.Handle, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = cupy.ones(4, np.float32)
    monkeypatch.setattr(handle, "_get_device", lambda: 5)
    monkeypatch.setattr(handle, "device", 5)
    with pytest.raises(dp.BadParamError, match="x is on another device: got device 0, expected device 5"):
        handle._adopt(dp.ops.activation.plan_activation_forward, ("relu", 1.0, 0.0), (x, None))


def test_failed_allocation_is_ours_and_the_next_call_works(handle: dp.Handle, cupy: Any) -> None:
    """A result of four terabytes cannot be had; nothing is launched on the memory that is said to be as large."""
    x = cupy.ones(16, np.float32)
    vast = dp.TensorDescriptor((1 << 40,), "float32").bind(x.data.ptr, x)
    with pytest.raises(dp.AllocationError, match="the GPU has no 4398046511104 bytes left"):
        dp.activation_forward(handle, "relu", vast)
    assert bool((dp.activation_forward(handle, "relu", x) == 1).all())


def test_handle_on_a_thread_with_no_current_device(cupy: Any) -> None:
    """A handle of device 0 works on a fresh thread, each thread with its own."""
    import threading

    results: list[Any] = []

    def work() -> None:
        with dp.create_handle("cuda", device=0) as mine:
            results.append(mine.to_numpy(dp.activation_forward(mine, "tanh", mine.asarray(np.ones(8, np.float32)))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r.tobytes() for r in results}) == 1
    assert len(results) == 4
