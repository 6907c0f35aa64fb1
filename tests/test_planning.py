"""Plans as objects, and questions that need no device."""

from __future__ import annotations

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import BadParamError, TensorDescriptor
from dnnprims.runtime.launch import Profile

X = TensorDescriptor((8, 100), "float32")


def test_supports_answers_without_a_device() -> None:
    answer = dp.supports(dp.softmax_forward, X)
    assert answer
    assert answer.variant
    refused = dp.supports(dp.softmax_forward, TensorDescriptor((8, 100), "int32"))
    assert not refused
    assert "x has a dtype" in refused.reason


def test_supports_takes_options_as_the_call_does() -> None:
    assert not dp.supports(dp.softmax_forward, X, axis=5)
    assert dp.supports(dp.softmax_forward, X, axis=0, algorithm="log")
    assert dp.supports(dp.activation_forward, "relu", X, out=X)


def test_supports_depends_on_the_profile() -> None:
    w = TensorDescriptor((64, 100), "float32")
    with_lt = dp.supports(dp.fc_forward, X, w, profile=Profile("cuda", blaslt=True))
    without = dp.supports(dp.fc_forward, X, w, profile=Profile("cuda", blaslt=False))
    assert with_lt.variant != without.variant


def test_output_descriptors_and_workspace_size() -> None:
    assert dp.output_descriptors(dp.softmax_forward, X) == (X,)
    assert dp.workspace_size(dp.activation_forward, "relu", X) == 0
    assert dp.workspace_size(dp.global_norm, [TensorDescriptor((1 << 20,), "float32")]) > 0


def test_prepared_plan_repeats_the_call(handle: dp.Handle) -> None:
    x = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    there, out = handle.asarray(x), handle.asarray(np.full_like(x, np.nan))
    plan = dp.prepare(dp.softmax_forward, handle, X, out=X)
    assert plan(there, out=out) is out
    expected = handle.to_numpy(dp.softmax_forward(handle, there))
    np.testing.assert_array_equal(handle.to_numpy(out), expected)
    assert plan.variant
    assert plan.workspace_bytes == 0
    assert "softmax_forward" in plan.source


def test_prepared_plan_makes_the_results_left_out(handle: dp.Handle) -> None:
    plan = dp.prepare(dp.activation_forward, handle, "relu", X)
    x = handle.asarray(np.full(X.shape, -2.0, np.float32))
    first, second = plan(x), plan(x)
    assert first is not second
    assert not handle.to_numpy(first).any()


def test_prepared_plan_checks_what_it_must(handle: dp.Handle) -> None:
    plan = dp.prepare(dp.activation_forward, handle, "relu", X, out=X)
    room = handle.asarray(np.zeros(1700, np.float32))
    with pytest.raises(BadParamError, match="wrong number of arrays"):
        plan(room[:800].reshape(8, 100))
    with pytest.raises(BadParamError, match="overlaps"):
        plan(room[:800].reshape(8, 100), out=room[4:804].reshape(8, 100))


def test_prepare_refuses_as_the_call_does(handle: dp.Handle) -> None:
    with pytest.raises(BadParamError, match="softmax_forward: axis is out of range"):
        dp.prepare(dp.softmax_forward, handle, X, axis=7)
    with pytest.raises(BadParamError, match="no primitive"):
        dp.prepare(np.add, handle, 1, 2)


def test_prepared_plan_refuses_an_address_it_was_not_made_for(handle: dp.Handle) -> None:
    if handle.backend == "numpy":
        pytest.skip("NumPy takes any address")
    plan = dp.prepare(dp.activation_forward, handle, "relu", X, out=X)
    room, out = handle.asarray(np.zeros(801, np.float32)), handle.asarray(np.zeros(X.shape, np.float32))
    with pytest.raises(BadParamError, match=r"x is not aligned .*multiple of 16"):
        plan(room[1:].reshape(X.shape), out=out)


def test_prepared_plan_takes_addresses(handle: dp.Handle) -> None:
    if handle.backend == "numpy":
        pytest.skip("NumPy takes arrays")
    plan = dp.prepare(dp.activation_forward, handle, "relu", X, out=X)
    x = handle.asarray(np.full(X.shape, -2.0, np.float32))
    out = handle.asarray(np.full(X.shape, np.nan, np.float32))
    _, (px, py) = handle._look((x, out))
    plan(px, out=py)
    assert not handle.to_numpy(out).any()
