"""Calls that break the contract, of every primitive and of every kind: refused in words, with nothing changed."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from broken_arguments import arrays_of, broken_arguments, is_worded, refusal
from conftest import HAS_COMPILER
from good_calls import GOOD, floats

import dnnprims as dp
from dnnprims import BadParamError, DnnprimsError, TensorDescriptor

HOST = ("numpy", pytest.param("emulator", marks=pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")))
each_primitive = pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)
on_the_host = pytest.mark.parametrize("backend", HOST)


def test_every_primitive_and_argument_is_covered() -> None:
    """A new primitive, or a new argument, has its good call here."""
    for op in dp.PRIMITIVES:
        assert ["handle", *GOOD[op.__name__]()] == list(inspect.signature(op).parameters)


@each_primitive
@on_the_host
def test_one_broken_argument(op: FunctionType, backend: str) -> None:
    """Refused in words that name what is wrong, or taken; nothing else escapes, warnings included."""
    with dp.create_handle(backend) as handle:
        assert refusal(op, handle, GOOD[op.__name__]()) is None
        for broken in broken_arguments(op):
            error = refusal(op, handle, {**GOOD[op.__name__](), broken.argument: broken.value})
            if error is None:
                assert not broken.must, f"{broken.argument}: {broken.label} was taken"
            else:
                assert is_worded(error, op), f"{broken.argument}: {broken.label}: {error}"
                blamed = error.param.startswith(broken.argument) or broken.argument in str(error)
                assert not broken.must or blamed, f"{broken.argument}: {broken.label}: {error}"


@each_primitive
@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_backends_agree_on_what_is_broken(op: FunctionType) -> None:
    """What one backend refuses the other refuses, and in the same words."""
    decisions = []
    for backend in ("numpy", "emulator"):
        with dp.create_handle(backend) as handle:
            calls = [{**GOOD[op.__name__](), b.argument: b.value} for b in broken_arguments(op)]
            found = [refusal(op, handle, call) for call in calls]
            decisions.append([None if error is None else (error.param, error.problem) for error in found])
    assert decisions[0] == decisions[1]


@each_primitive
def test_two_broken_arguments(op: FunctionType, numpy_handle: dp.Handle) -> None:
    """The checks of one argument do not stumble over another."""
    broken, rng = list(broken_arguments(op)), np.random.default_rng(3)
    for i, j in rng.integers(0, len(broken), (150, 2)):
        call = {**GOOD[op.__name__](), broken[i].argument: broken[i].value, broken[j].argument: broken[j].value}
        error = refusal(op, numpy_handle, call)
        assert error is None or is_worded(error, op), str(error)


@each_primitive
@on_the_host
def test_descriptors_are_no_arrays(op: FunctionType, backend: str) -> None:
    """A descriptor is for `prepare`: a call would work on memory that is not there."""
    with dp.create_handle(backend) as handle:
        for name, value in GOOD[op.__name__]().items():
            if isinstance(value, np.ndarray | list):
                described = _described(value)
                error = refusal(op, handle, {**GOOD[op.__name__](), name: described})
                assert error is not None
                assert error.param.startswith(name), str(error)


@each_primitive
@on_the_host
def test_partial_overlap(op: FunctionType, backend: str) -> None:
    """No array that is written may lie half over another one."""
    good = GOOD[op.__name__]()
    names = [name for name, value in good.items() if isinstance(value, np.ndarray) and value.size > 1]
    written = {"out", "dx", "dw", "db", "dslope", "dprediction", "c"}
    written |= {
        dp.fc_forward: {"aux"},
        dp.maxout_forward: {"which"},
        dp.pooling_forward: {"indices"},
        dp.batchnorm_forward_training: {"running_mean", "running_variance", "mean", "rstd"},
        dp.batchnorm_backward: {"dgamma", "dbeta", "dresidual"},
    }.get(op, set())
    with dp.create_handle(backend) as handle:
        for name in (n for n in names if n in written):
            for other in (n for n in names if n != name):
                call = GOOD[op.__name__]()
                room = np.zeros(call[name].nbytes + call[other].nbytes, np.uint8)
                start = room[: call[name].nbytes].view(call[name].dtype).reshape(call[name].shape)
                step = 4 if min(call[name].nbytes, call[other].nbytes) > 4 else 0
                behind = room[step : step + call[other].nbytes].view(call[other].dtype).reshape(call[other].shape)
                behind[...] = call[other]
                error = refusal(op, handle, {**call, name: start, other: behind})
                assert error is not None, f"{name} over {other}"
                assert "overlaps" in str(error), str(error)


@pytest.mark.parametrize("op", [dp.sgd_update, dp.adam_update, dp.adamw_update], ids=lambda op: op.__name__)
@on_the_host
def test_array_twice_in_an_update(op: FunctionType, backend: str) -> None:
    """The same weight twice, or a weight as its own gradient, state or master, would be updated twice."""
    with dp.create_handle(backend) as handle:
        lists = [name for name, value in GOOD[op.__name__]().items() if isinstance(value, list)]
        alike = {name: [floats(4), floats(4)] for name in lists}
        for name in lists:
            call = {**GOOD[op.__name__](), **alike, name: [alike[name][0], alike[name][0]]}
            error = refusal(op, handle, call)
            assert (error is None) == (name == "gradients"), name
            if name != "weights":
                error = refusal(op, handle, {**GOOD[op.__name__](), **alike, name: alike["weights"]})
                assert error is not None, name


@each_primitive
@on_the_host
def test_first_argument_is_no_handle(op: FunctionType, backend: str) -> None:
    """Left out, None or anything else."""
    for value in (None, backend, floats(4), 3, dp, object(), TensorDescriptor((4,), "float32")):
        with pytest.raises(BadParamError, match=f"{op.__name__}: handle is no handle: got .*create_handle"):
            op(value, **GOOD[op.__name__]())


@each_primitive
@on_the_host
def test_closed_handle(op: FunctionType, backend: str) -> None:
    """A closed handle refuses, with or without plans made before."""
    handle = dp.create_handle(backend)
    op(handle, **GOOD[op.__name__]())
    handle.close()
    error = refusal(op, handle, GOOD[op.__name__]())
    assert error is not None
    assert "handle is closed" in str(error)


@each_primitive
def test_wrong_signature(op: FunctionType, numpy_handle: dp.Handle) -> None:
    """Python's own words for a call that is no call of the function."""
    with pytest.raises(TypeError, match=op.__name__):
        op(numpy_handle)
    with pytest.raises(TypeError, match=op.__name__):
        op(numpy_handle, **GOOD[op.__name__](), nonsense=1)
    with pytest.raises(TypeError, match=op.__name__):
        op(numpy_handle, *([floats(4)] * 20))


@pytest.mark.parametrize(
    "op", [dp.loss_forward, dp.loss_backward, dp.loss_forward_backward], ids=lambda op: op.__name__
)
def test_labels_on_the_host(op: FunctionType, numpy_handle: dp.Handle) -> None:
    """Every label is looked at; the message gives the bad one."""
    for bad in (-1, 6, 2**31 - 1, -(2**31)):
        error = refusal(op, numpy_handle, {**GOOD[op.__name__](), "target": np.array([0, 1, 2, bad], np.int32)})
        assert error is not None
        assert (error.param, error.got) == ("target", str(bad))


def _described(value: Any) -> Any:
    if isinstance(value, list):
        return [_described(item) for item in value]
    return TensorDescriptor(value.shape, value.dtype) if isinstance(value, np.ndarray) else value


@each_primitive
@on_the_host
def test_described_call(op: FunctionType, backend: str) -> None:
    """Every primitive is planned, asked about and prepared from descriptors; the plan does what the call does."""
    described = {name: _described(value) for name, value in GOOD[op.__name__]().items()}
    answer = dp.supports(op, **described)
    assert answer, answer.reason
    assert dp.workspace_size(op, **described) >= 0
    with dp.create_handle(backend) as handle:
        call, other = GOOD[op.__name__](), GOOD[op.__name__]()
        arrays = {name: value for name, value in other.items() if isinstance(value, np.ndarray | list)}
        plan = dp.prepare(op, handle, **described)
        for mine, theirs in zip(arrays_of(plan(**arrays)), arrays_of(op(handle, **call)), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(arrays_of([*other.values()]), arrays_of([*call.values()]), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        with pytest.raises(BadParamError, match="wrong number of arrays"):
            plan()
        for name in arrays:
            with pytest.raises(DnnprimsError, match=f"{op.__name__}: "):
                plan(**{**arrays, name: None})


@each_primitive
@on_the_host
def test_described_results(op: FunctionType, backend: str) -> None:
    """`output_descriptors` tells shape and dtype of what the call makes when destinations are left out."""
    destinations = ("out", "dx", "dw", "db", "dslope", "which", "indices", "dprediction", "aux", "found_inf")
    left_out = {name: None for name in destinations if name in GOOD[op.__name__]()}
    if op in (dp.maxout_backward, dp.pooling_backward, dp.fc_backward):
        left_out = {name: None for name in left_out if name not in ("which", "indices", "aux")}
    if isinstance(GOOD[op.__name__]().get("beta"), float) and op is not dp.add_tensor:
        left_out["beta"] = 0.0
    call = {**GOOD[op.__name__](), **left_out}
    told = dp.output_descriptors(op, **{name: _described(value) for name, value in call.items()})
    with dp.create_handle(backend) as handle:
        made = op(handle, **call)
    if told:
        results = made if isinstance(made, tuple) else (made,)
        assert [(d.shape, d.dtype.numpy) for d in told] == [(a.shape, a.dtype) for a in results if a is not None]


@each_primitive
def test_questions_refuse_as_the_call_does(op: FunctionType, numpy_handle: dp.Handle) -> None:
    """`supports` answers no, with the words of the refusal; nothing else escapes from it."""
    for broken in broken_arguments(op):
        if isinstance(broken.value, np.ndarray | np.generic | list) or broken.label == "generator":
            continue
        described = {name: _described(value) for name, value in GOOD[op.__name__]().items()}
        answer = dp.supports(op, **{**described, broken.argument: broken.value})
        error = refusal(op, numpy_handle, {**GOOD[op.__name__](), broken.argument: broken.value})
        assert bool(answer) == (error is None), f"{broken.argument}: {broken.label}: {answer.reason} / {error}"


@pytest.mark.parametrize("value", [None, "numpy", 3, floats(4), dp.softmax_forward])
def test_prepare_without_a_handle(value: Any) -> None:
    with pytest.raises(BadParamError, match="prepare: handle is no handle"):
        dp.prepare(dp.softmax_forward, value, TensorDescriptor((4, 5), "float32"))


def test_prepared_plan_refuses_lists_of_another_length(emulator_handle: dp.Handle) -> None:
    described = [TensorDescriptor((4,), "float32")] * 2
    plan = dp.prepare(dp.sgd_update, emulator_handle, described, described, lr=0.1)
    with pytest.raises(BadParamError, match="wrong length"):
        plan([floats(4)], [floats(4), floats(4)])
