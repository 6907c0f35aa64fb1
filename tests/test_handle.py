"""The handle: backends, threads, devices, life; what every call through it promises, whatever the primitive."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims as dp
from dnnprims.dtypes import FLOATS
from dnnprims.errors import BadParamError, DnnprimsError, ExecutionError

RELU_X = np.array([-1.0, 2.0, -3.0, 4.0], np.float32)


def test_auto_is_a_backend_that_works() -> None:
    with dp.create_handle() as handle:
        assert handle.backend in ("numpy", "cuda")


def test_environment_overrides_auto_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNPRIMS_BACKEND", "numpy")
    assert dp.create_handle().backend == "numpy"
    monkeypatch.setenv("DNNPRIMS_BACKEND", "nmupy")
    with pytest.raises(BadParamError, match="DNNPRIMS_BACKEND is unknown"):
        dp.create_handle()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"backend": "cudnn"}, "backend"),
        ({"math": "fast"}, "math"),
        ({"workspace_limit": -1}, "workspace_limit"),
        ({"device": -1}, "device"),
        ({"deterministic": "yes"}, "deterministic"),
        ({"stream": "default"}, "stream"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadParamError) as caught:
        dp.create_handle(**{"backend": "numpy", **options})
    assert caught.value.param == param


def test_cuda_without_a_gpu_is_refused_with_a_remedy() -> None:
    from dnnprims.runtime.cuda import gpu_works

    if gpu_works():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DnnprimsError, match=r"doctor|install dnnprims\[cuda") as caught:
        dp.create_handle("cuda")
    assert isinstance(caught.value, BadParamError | ExecutionError)


def test_closed_handle_is_refused(handle: dp.Handle) -> None:
    x = handle.asarray(RELU_X)
    dp.activation_forward(handle, "relu", x)
    handle.close()
    with pytest.raises(BadParamError, match="handle is closed"):
        dp.activation_forward(handle, "relu", x)
    with pytest.raises(BadParamError, match="handle is closed"):
        handle.synchronize()


def test_two_threads_in_one_handle_are_refused(handle: dp.Handle) -> None:
    """The second thread is refused while the first is inside, whichever backend; afterwards the handle works."""
    x = handle.asarray(RELU_X)
    inside, leave, seen = threading.Event(), threading.Event(), []
    really = handle._look

    def slow(operands: Any) -> Any:
        inside.set()
        leave.wait(10)
        return really(operands)

    handle._look = slow
    first = threading.Thread(target=lambda: seen.append(dp.activation_forward(handle, "relu", x)))
    first.start()
    assert inside.wait(10)
    with pytest.raises(BadParamError, match="handle is in use by another thread"):
        dp.activation_forward(handle, "relu", x)
    leave.set()
    first.join()
    handle._look = really
    np.testing.assert_array_equal(handle.to_numpy(seen[0]), [0, 2, 0, 4])
    np.testing.assert_array_equal(handle.to_numpy(dp.activation_forward(handle, "relu", x)), [0, 2, 0, 4])


def test_a_refused_call_changes_nothing_and_the_next_one_works(handle: dp.Handle) -> None:
    x, out = handle.asarray(RELU_X), handle.asarray(np.full(3, 7, np.float32))
    with pytest.raises(BadParamError, match="activation_forward: out has the wrong shape"):
        dp.activation_forward(handle, "relu", x, out=out)
    np.testing.assert_array_equal(handle.to_numpy(out), [7, 7, 7])
    np.testing.assert_array_equal(handle.to_numpy(dp.activation_forward(handle, "relu", x)), [0, 2, 0, 4])


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0, "x", object()], ids=["list", "number", "text", "object"])
def test_what_is_no_array_is_refused(handle: dp.Handle, wrong: object) -> None:
    with pytest.raises(BadParamError) as caught:
        dp.activation_forward(handle, "relu", wrong)
    assert caught.value.op == "activation_forward"
    assert caught.value.param.startswith("x")


def test_numpy_array_on_the_gpu_backend_names_the_remedy() -> None:
    from dnnprims.runtime.cuda import gpu_works

    if not gpu_works():
        pytest.skip("no NVIDIA GPU here")
    with (
        dp.create_handle("cuda") as handle,
        pytest.raises(BadParamError, match=r"x is no array of this handle's backend: got numpy.ndarray.*asarray"),
    ):
        dp.activation_forward(handle, "relu", RELU_X)


def test_partly_overlapping_operands_are_refused(handle: dp.Handle) -> None:
    room = handle.asarray(np.arange(9, dtype=np.float32))
    before = handle.to_numpy(room)
    with pytest.raises(BadParamError, match="activation_forward: out overlaps x"):
        dp.activation_forward(handle, "relu", room[:8], out=room[1:])
    np.testing.assert_array_equal(handle.to_numpy(room), before)


def test_overlap_is_seen_when_only_the_address_changes(handle: dp.Handle) -> None:
    """The second call has the plan of the first and must be checked all the same."""
    room = handle.asarray(np.arange(64, dtype=np.float32))
    dp.activation_forward(handle, "relu", room[:16], out=room[32:48])
    with pytest.raises(BadParamError, match="out overlaps x"):
        dp.activation_forward(handle, "relu", room[:16], out=room[12:28])


def test_read_only_out_is_refused(numpy_handle: dp.Handle) -> None:
    out = np.zeros(4, np.float32)
    dp.activation_forward(numpy_handle, "relu", RELU_X, out=out)
    out[...] = 7
    out.flags.writeable = False
    with pytest.raises(BadParamError, match="activation_forward: out is read-only"):
        dp.activation_forward(numpy_handle, "relu", RELU_X, out=out)
    np.testing.assert_array_equal(out, 7)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "one", None])
def test_alpha_must_be_a_finite_number(handle: dp.Handle, alpha: Any) -> None:
    with pytest.raises(BadParamError) as caught:
        dp.activation_forward(handle, "relu", handle.asarray(RELU_X), alpha=alpha)
    assert caught.value.param == "alpha"


def test_option_of_a_wrong_type_is_refused(handle: dp.Handle) -> None:
    with pytest.raises(BadParamError):
        dp.activation_forward(handle, ["relu"], handle.asarray(RELU_X))  # type: ignore[arg-type]


def test_bound_memory_is_read_and_written_in_place(handle: dp.Handle) -> None:
    x, y = handle.asarray(RELU_X), handle.asarray(np.full(4, np.nan, np.float32))
    _, (px, py) = handle._look((x, y))
    d = dp.TensorDescriptor((4,), "float32")
    dp.activation_forward(handle, "relu", d.bind(px, x), out=d.bind(py, y))
    np.testing.assert_array_equal(handle.to_numpy(y), [0, 2, 0, 4])


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda row: row.name)
def test_torch_tensors_are_taken_without_a_copy(handle: dp.Handle, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if handle.backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    place = "cuda" if handle.backend == "cuda" else "cpu"
    x = torch.tensor([-1.0, 2.0, -3.0], dtype=getattr(torch, dtype.name), device=place)
    y = torch.full_like(x, float("nan"))
    dp.activation_forward(handle, "relu", x, out=y)
    handle.synchronize()
    assert y.tolist() == [0.0, 2.0, 0.0]


def test_asarray_and_to_numpy_are_copies(handle: dp.Handle) -> None:
    for row in FLOATS:
        x = np.arange(5).astype(row.numpy)
        there = handle.asarray(x)
        x[...] = 9
        back = handle.to_numpy(there)
        assert back.dtype == row.numpy
        np.testing.assert_array_equal(back.astype(np.float64), np.arange(5))


def test_same_inputs_give_the_same_bits(handle: dp.Handle) -> None:
    x = handle.asarray(np.random.default_rng(0).standard_normal(1003).astype(ml_dtypes.bfloat16))
    first = handle.to_numpy(dp.activation_forward(handle, "gelu", x)).tobytes()
    assert all(handle.to_numpy(dp.activation_forward(handle, "gelu", x)).tobytes() == first for _ in range(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_number_beyond_the_accumulator_is_refused(handle: dp.Handle, dtype: Any) -> None:
    x = handle.asarray(np.ones(4, dtype))
    with pytest.raises(BadParamError, match=r"alpha is out of range: got 1e\+39"):
        dp.activation_forward(handle, "relu", x, alpha=1e39)
    w = handle.asarray(np.ones((2, 4), dtype))
    with pytest.raises(BadParamError, match="alpha is out of range"):
        dp.fc_forward(handle, handle.asarray(np.ones((3, 4), dtype)), w, alpha=1e39)


def test_a_handle_works_on_its_own_gpu_whatever_the_current_one_is(
    emulator_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that allocates or waits switches to the handle's GPU first; here the switch alone is watched."""
    switched: list[str] = []

    def there(call: Any, *arguments: Any) -> Any:
        switched.append(call.__name__)
        return call(*arguments)

    monkeypatch.setattr(emulator_handle, "_get_device", lambda: emulator_handle.device + 1)
    monkeypatch.setattr(emulator_handle, "there", there)
    emulator_handle.asarray(RELU_X)
    emulator_handle.synchronize()
    assert {"from_numpy", "current_stream", "synchronize", "_take_flag"} <= set(switched)
