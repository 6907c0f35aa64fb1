"""Calls that break the contract, of every primitive and of every kind: refused in words, with nothing changed.

One good call of each primitive is written down; the bad ones are derived from it and from the function's signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import HAS_COMPILER

import dnnprims as dp
from dnnprims import BadParamError, DnnprimsError, TensorDescriptor

Arguments = dict[str, Any]


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.1, 0.9, shape).astype(np.float32)


def _labels() -> np.ndarray:
    return np.array([0, 2, 1, 3], np.int32)


def _flag() -> np.ndarray:
    return np.zeros((), np.int32)


def _pair(lowest: float = 0.1) -> list[np.ndarray]:
    return [_floats(3, 4) + np.float32(lowest), _floats(5)]


def _zeros() -> list[np.ndarray]:
    return [np.zeros((3, 4), np.float32), np.zeros(5, np.float32)]


#: One convolution for all: 2 images of 4 channels and 5 x 4 positions, 6 filters in 2 groups.
_CONV = dp.ConvolutionDescriptor(padding=1, stride=(2, 1), groups=2)
_IMAGE, _FILTERS, _RESULT = (2, 4, 5, 4), (6, 2, 3, 3), (2, 6, 3, 4)


#: One pooling for all: 2 images of 3 channels and 5 x 4 positions.
_POOLING = dp.PoolingDescriptor("max", (3, 2), (2, 1), padding=1)
_POOLED_IMAGE, _POOLED = (2, 3, 5, 4), (2, 3, 3, 5)
#: One batch norm for all, with a residual before its activation.
_NORM = dp.BatchNormDescriptor(epsilon=0.25)


def _described_as(shape: tuple[int, ...]) -> TensorDescriptor:
    return TensorDescriptor(shape, "float32")


def _adam() -> Arguments:
    lists = {"weights": _pair(), "gradients": _pair(), "first_moments": _zeros(), "second_moments": _zeros()}
    numbers = {"lr": 0.1, "step": 1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
    rest = {"bias_correction": True, "masters": _pair(), "gradient_scale": 1.0, "found_inf": _flag()}
    return {**lists, **numbers, **rest}


#: One good call of each primitive, every optional array given: argument -> value, made anew each time.
GOOD: dict[str, Callable[[], Arguments]] = {
    "fc_forward": lambda: {
        "x": _floats(4, 3), "w": _floats(5, 3), "b": _floats(5), "activation": "gelu", "out": _floats(4, 5),
        "aux": _floats(4, 5), "alpha": 1.0, "beta": 0.5,
    },
    "fc_backward": lambda: {
        "dy": _floats(4, 5), "x": _floats(4, 3), "w": _floats(5, 3), "activation": "gelu", "y": None,
        "aux": _floats(4, 5), "needs": ("dx", "dw", "db"), "dx": _floats(4, 3), "dw": _floats(5, 3), "db": _floats(5),
        "beta": 1.0,
    },
    "fc_backward_data": lambda: {
        "dy": _floats(4, 5), "w": _floats(5, 3), "out": _floats(4, 3), "alpha": 1.0, "beta": 0.0,
    },
    "fc_backward_weights": lambda: {
        "dy": _floats(4, 5), "x": _floats(4, 3), "out": _floats(5, 3), "alpha": 1.0, "beta": 0.0,
    },
    "fc_backward_bias": lambda: {"dy": _floats(4, 5), "out": _floats(5), "alpha": 1.0, "beta": 0.0},
    "conv_forward": lambda: {
        "conv": _CONV, "x": _floats(*_IMAGE), "w": _floats(*_FILTERS), "b": _floats(6), "activation": "tanh",
        "residual": _floats(*_RESULT), "scale": _floats(6), "shift": _floats(6), "out": _floats(*_RESULT),
        "alpha1": 1.0, "alpha2": 2.0, "alpha": 1.0, "beta": 0.0, "with_sums": True, "sums": _floats(2, 6),
    },
    "conv_backward_data": lambda: {
        "conv": _CONV, "dy": _floats(*_RESULT), "w": _floats(*_FILTERS), "x_descriptor": _described_as(_IMAGE),
        "out": _floats(*_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "conv_backward_filter": lambda: {
        "conv": _CONV, "dy": _floats(*_RESULT), "x": _floats(*_IMAGE), "w_descriptor": _described_as(_FILTERS),
        "out": _floats(*_FILTERS), "alpha": 1.0, "beta": 0.0,
    },
    "conv_backward_bias": lambda: {
        "conv": _CONV, "dy": _floats(*_RESULT), "out": _floats(6), "alpha": 1.0, "beta": 0.0,
    },
    "conv_transpose_forward": lambda: {
        "conv": _CONV, "x": _floats(*_RESULT), "w": _floats(*_FILTERS), "b": _floats(4), "output_padding": 0,
        "out": _floats(*_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "conv_transpose_backward": lambda: {
        "conv": _CONV, "dy": _floats(*_IMAGE), "x": _floats(*_RESULT), "w": _floats(*_FILTERS),
        "needs": ("dx", "dw", "db"), "dx": _floats(*_RESULT), "dw": _floats(*_FILTERS), "db": _floats(4), "beta": 1.0,
    },
    "pooling_forward": lambda: {
        "pooling": _POOLING, "x": _floats(*_POOLED_IMAGE), "with_indices": True, "out": _floats(*_POOLED),
        "indices": np.zeros(_POOLED, np.uint8), "alpha": 1.0, "beta": 0.0,
    },
    "pooling_backward": lambda: {
        "pooling": _POOLING, "dy": _floats(*_POOLED), "x_descriptor": _described_as(_POOLED_IMAGE),
        "indices": np.ones(_POOLED, np.uint8), "out": _floats(*_POOLED_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "batchnorm_forward_training": lambda: {
        "norm": _NORM, "x": _floats(*_IMAGE), "gamma": _floats(4), "beta": _floats(4), "activation": "relu",
        "residual": _floats(*_IMAGE), "running_mean": _floats(4), "running_variance": _floats(4),
        "exponential_average_factor": 0.5, "out": _floats(*_IMAGE), "mean": _floats(4), "rstd": _floats(4),
    },
    "batchnorm_forward_inference": lambda: {
        "norm": _NORM, "x": _floats(*_IMAGE), "gamma": _floats(4), "beta": _floats(4), "running_mean": _floats(4),
        "running_variance": _floats(4), "activation": "relu", "residual": _floats(*_IMAGE), "out": _floats(*_IMAGE),
    },
    "batchnorm_backward": lambda: {
        "norm": _NORM, "dy": _floats(*_IMAGE), "x": _floats(*_IMAGE), "gamma": _floats(4), "mean": _floats(4),
        "rstd": _floats(4), "activation": "relu", "beta": _floats(4), "y": _floats(*_IMAGE),
        "needs": ("dx", "dgamma", "dbeta", "dresidual"), "dx": _floats(*_IMAGE), "dgamma": _floats(4),
        "dbeta": _floats(4), "dresidual": _floats(*_IMAGE),
    },
    "activation_forward": lambda: {
        "activation": "tanh", "x": _floats(4, 5), "out": _floats(4, 5), "alpha": 1.0, "beta": 0.0,
    },
    "activation_backward": lambda: {
        "activation": "tanh", "dy": _floats(4, 5), "x": _floats(4, 5), "y": _floats(4, 5), "out": _floats(4, 5),
        "alpha": 1.0, "beta": 0.0,
    },
    "prelu_forward": lambda: {
        "x": _floats(4, 5), "slope": _floats(5), "axis": 1, "out": _floats(4, 5), "alpha": 1.0, "beta": 0.0,
    },
    "prelu_backward": lambda: {
        "dy": _floats(4, 5), "x": _floats(4, 5), "slope": _floats(5), "axis": 1, "needs": ("dx", "dslope"),
        "dx": _floats(4, 5), "dslope": _floats(5),
    },
    "maxout_forward": lambda: {
        "x": _floats(4, 6), "pool_size": 2, "axis": -1, "out": _floats(4, 3), "which": np.zeros((4, 3), np.uint8),
    },
    "maxout_backward": lambda: {
        "dy": _floats(4, 3), "which": np.ones((4, 3), np.uint8), "pool_size": 2, "axis": -1, "out": _floats(4, 6),
        "alpha": 1.0, "beta": 0.0,
    },
    "glu_forward": lambda: {
        "x": _floats(4, 6), "gate": "sigmoid", "axis": -1, "out": _floats(4, 3), "alpha": 1.0, "beta": 0.0,
    },
    "glu_backward": lambda: {
        "dy": _floats(4, 3), "x": _floats(4, 6), "gate": "sigmoid", "axis": -1, "out": _floats(4, 6), "alpha": 1.0,
        "beta": 0.0,
    },
    "softmax_forward": lambda: {
        "x": _floats(4, 6), "axis": -1, "algorithm": "accurate", "out": _floats(4, 6), "alpha": 1.0, "beta": 0.0,
    },
    "softmax_backward": lambda: {
        "dy": _floats(4, 6), "y": _floats(4, 6), "axis": -1, "algorithm": "accurate", "out": _floats(4, 6),
        "alpha": 1.0, "beta": 0.0,
    },
    "loss_forward": lambda: {
        "loss": "cross_entropy", "prediction": _floats(4, 6), "target": _labels(), "weight": _floats(6),
        "out": _floats(),
    },
    "loss_backward": lambda: {
        "loss": "cross_entropy", "prediction": _floats(4, 6), "target": _labels(), "weight": _floats(6),
        "dloss": _floats(), "out": _floats(4, 6), "alpha": 1.0, "beta": 0.0,
    },
    "loss_forward_backward": lambda: {
        "loss": "cross_entropy", "prediction": _floats(4, 6), "target": _labels(), "weight": _floats(6),
        "out": _floats(), "dprediction": _floats(4, 6), "scale": 1.0,
    },
    "sgd_update": lambda: {
        "weights": _pair(), "gradients": _pair(), "velocities": _zeros(), "lr": 0.1, "momentum": 0.9, "dampening": 0.0,
        "nesterov": True, "weight_decay": 0.1, "form": "accumulate_step", "masters": _pair(), "gradient_scale": 1.0,
        "found_inf": _flag(),
    },
    "adam_update": _adam,
    "adamw_update": _adam,
    "global_norm": lambda: {"arrays": _pair(), "out": _floats()},
    "clip_by_global_norm": lambda: {"arrays": _pair(), "max_norm": 0.5, "norm": _floats(), "epsilon": 1e-6},
    "scale_and_check_finite": lambda: {"arrays": _pair(), "scale": 0.5, "found_inf": _flag()},
    "set_tensor": lambda: {"y": _floats(4, 5), "value": 2.0},
    "scale_tensor": lambda: {"y": _floats(4, 5), "alpha": 2.0},
    "add_tensor": lambda: {"a": _floats(4, 5), "c": _floats(4, 5), "alpha": 1.0, "beta": 1.0},
    "cast": lambda: {"x": _floats(4, 5), "dtype": "float64", "out": np.zeros((4, 5))},
    "reduce_tensor": lambda: {
        "x": _floats(4, 5), "operation": "sum", "axis": 1, "keepdims": False, "out": _floats(4), "alpha": 1.0,
        "beta": 0.0,
    },
}  # fmt: skip


class Broken(NamedTuple):
    """A call with one argument changed; `must`: whether it breaks the contract whatever the primitive."""

    label: str
    argument: str
    value: Any
    must: bool


NAN, INF = float("nan"), float("inf")


class _NoTruth:
    """An object that can be asked nothing."""

    def __bool__(self) -> bool:
        raise ValueError("no truth value")


def _bad_arrays(good: np.ndarray, optional: bool) -> Iterator[tuple[str, Any, bool]]:
    """What is no array, or another one than was good."""
    if not optional:
        yield "none", None, True
    for label, value in (
        ("list of lists", good.tolist() if good.ndim else [1.0]),
        ("word", "x"), ("bytes", b"x"), ("object", object()), ("dictionary", {}), ("set", {1}), ("type", np.ndarray),
        ("range", range(3)), ("complex number", 1j),
    ):  # fmt: skip
        yield label, value, True
    yield "number", 3.0, good.ndim > 0
    yield "scalar of NumPy", np.float32(3.0), good.ndim > 0
    for dtype in ("complex64", "bool", "int8", "uint16", "S4", "O", "M8[s]", "V8", "longdouble", [("a", "f4")]):
        with np.errstate(all="ignore"):
            yield f"dtype {dtype}", np.zeros(good.shape, dtype), True
    yield "other byte order", good.astype(good.dtype.newbyteorder()), good.itemsize > 1
    for dtype in ("int32", "int64", "uint8", "float16", "float32", "float64"):
        if good.dtype != dtype:
            yield f"dtype {dtype}", good.astype(dtype), False
    yield "one axis more", good[None], False
    yield "one axis less", good.reshape(-1), False
    yield "scalar", np.zeros((), good.dtype), False
    yield "empty", np.zeros(0, good.dtype), False
    for axis in range(good.ndim):
        shape = list(good.shape)
        for extent in (shape[axis] + 1, 0, 1):
            changed = [*shape[:axis], extent, *shape[axis + 1 :]]
            yield f"extent {extent} of axis {axis}", np.zeros(changed, good.dtype), False
    yield "read-only", _read_only(good), False
    yield "odd address", _shifted(good, 1), good.itemsize > 1
    yield "shifted by one element", _shifted(good, good.itemsize), False
    if good.ndim:
        yield "every other element", np.repeat(good, 2, axis=-1)[..., ::2], False
        yield "reversed", good[::-1], False
        yield "transposed memory", np.asfortranarray(good), False
        yield "repeated element", np.broadcast_to(good.flat[0], good.shape), False
        yield "strides of half elements", _odd_strides(good), good.itemsize > 1


def _read_only(good: np.ndarray) -> np.ndarray:
    copy = good.copy()
    copy.flags.writeable = False
    return copy


def _shifted(good: np.ndarray, nbytes: int) -> np.ndarray:
    room = np.zeros(good.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 16 + nbytes
    view = room[start : start + good.nbytes].view(good.dtype).reshape(good.shape)
    view[...] = good
    return view


def _odd_strides(good: np.ndarray) -> np.ndarray:
    record = np.zeros(good.shape, np.dtype([("value", good.dtype), ("pad", "u1")]))
    record["value"] = good
    return record["value"]


def _bad_lists(good: list[np.ndarray], optional: bool) -> Iterator[tuple[str, Any, bool]]:
    if not optional:
        yield "none", None, True
    for label, value, _ in _bad_arrays(good[0], True):
        yield f"first: {label}", [value, good[1]], False
    for label, value in (("word", "x"), ("number", 3.0), ("object", object()), ("dictionary", {"a": good[0]})):
        yield label, value, True
        yield f"first: {label}", [value, good[1]], True
    yield "holds none", [good[0], None], True
    yield "nested", [good], True
    yield "twice the same", [good[0], good[0]], False
    yield "overlapping", [good[0], good[0].reshape(-1)[2:7]], False
    yield "empty", [], False
    yield "too short", good[:1], False
    yield "too long", [*good, _floats(2)], False
    yield "other order", good[::-1], False
    yield "generator", (a for a in good), False
    yield "stacked", np.stack([good[0], good[0]]), False


def _bad_numbers(name: str) -> Iterator[tuple[str, Any, bool]]:
    free = name == "value"
    for value in ("x", "", "1.0", None, [], {}, 1j, object(), np.zeros(3, np.float32), [1.0], (1.0,), b"1", _NoTruth()):
        yield _label(value), value, True
    for value in (NAN, INF, -INF, np.float32("nan"), 10**400, -(10**400), np.complex64(1 + 1j), np.str_("1")):
        yield _label(value), value, not free or not isinstance(value, float | np.float32)
    for value in (-1.0, 0.0, 1.0, 2.0, 1e39, -1e39, 1e308, 5e-324, 1e-46, True, 1.5, np.float64(1e39), 2**70):
        yield _label(value), value, False


def _bad_integers(name: str) -> Iterator[tuple[str, Any, bool]]:
    for value in (1.0, 1.5, "1", "x", True, 10**30, -(10**30), 2**63, -9, {}, object(), np.zeros(3, int), b"", 1j, NAN):
        yield _label(value), value, True
    for value in (np.float32(1), np.bool_(True), _NoTruth(), slice(None), [], [0]):
        yield _label(value), value, True
    for value in (2**31, 9):
        yield _label(value), value, name == "axis"
    for value in (None, (), (0,), (0, 0), (0, 1), (True,), ((0,),), (0.0,), ({},), 0, -1, 1, 3, np.int64(1)):
        yield _label(value), value, False


def _bad_words(name: str) -> Iterator[tuple[str, Any, bool]]:
    for value in ("nonsense", "RELU", 3, 1.5, b"sum", [], {}, object(), np.zeros(2), ("sum",), True, _NoTruth()):
        yield _label(value), value, True
    yield "none", None, name not in ("activation", "dtype")
    yield "descriptor of a loss", dp.LossDescriptor("mse"), name != "loss"
    yield "descriptor of an activation", dp.ActivationDescriptor("relu"), name != "activation"


def _bad_switches() -> Iterator[tuple[str, Any, bool]]:
    for value in (None, "yes", [], 2, 1.0, NAN, {}, object(), np.zeros(3), _NoTruth()):
        yield _label(value), value, True
    yield "scalar of NumPy", np.bool_(True), False


def _bad_needs() -> Iterator[tuple[str, Any, bool]]:
    for value in (None, (), [], "dx", "nonsense", 3, ("dx", "dx"), ("dy",), (1,), ([],), [["dx"]], {"dx": 1}, object()):
        yield _label(value), value, True


def _label(value: object) -> str:
    return type(value).__name__ if type(value).__repr__ is object.__repr__ else f"{type(value).__name__} {value!r:.30}"


def broken_arguments(op: FunctionType) -> Iterator[Broken]:
    """Every way in which one argument of the good call is replaced."""
    good = GOOD[op.__name__]()
    parameters = inspect.signature(op).parameters
    for name, value in good.items():
        optional = parameters[name].default is None
        if isinstance(value, np.ndarray):
            found = _bad_arrays(value, optional)
        elif isinstance(value, list):
            found = _bad_lists(value, optional)
        elif name == "needs":
            found = _bad_needs()
        elif isinstance(value, bool):
            found = _bad_switches()
        elif isinstance(value, float):
            found = _bad_numbers(name)
        elif isinstance(value, int):
            found = _bad_integers(name)
        elif isinstance(value, str):
            found = _bad_words(name)
        else:
            continue
        for label, bad, must in found:
            yield Broken(label, name, bad, must)


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)


def refusal(op: FunctionType, handle: dp.Handle, arguments: Arguments) -> DnnprimsError | None:
    """Make the call; give its refusal back, or None. What is refused has changed nothing."""
    held = [a for value in arguments.values() for a in _arrays(value) if a.dtype.kind != "O"]
    before = [a.tobytes() for a in held]
    try:
        op(handle, **arguments)
    except DnnprimsError as raised:
        error = raised
    else:
        return None
    assert [a.tobytes() for a in held] == before, f"changed by a refused call: {error}"
    return error


def _is_worded(error: DnnprimsError, op: FunctionType) -> bool:
    """Whether the message names function, argument, value and rule."""
    argument = error.param.split("[")[0].split(".")[0]
    named = error.op == op.__name__ and argument in inspect.signature(op).parameters
    told = bool(error.expected) and (bool(error.got) or error.problem == "is missing")
    return named and told and len(str(error)) < 600


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
                assert _is_worded(error, op), f"{broken.argument}: {broken.label}: {error}"
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
        assert error is None or _is_worded(error, op), str(error)


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
        alike = {name: [_floats(4), _floats(4)] for name in lists}
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
    for value in (None, backend, _floats(4), 3, dp, object(), TensorDescriptor((4,), "float32")):
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
        op(numpy_handle, *([_floats(4)] * 20))


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
        for mine, theirs in zip(_arrays(plan(**arrays)), _arrays(op(handle, **call)), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(_arrays([*other.values()]), _arrays([*call.values()]), strict=True):
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


@pytest.mark.parametrize("value", [None, "numpy", 3, _floats(4), dp.softmax_forward])
def test_prepare_without_a_handle(value: Any) -> None:
    with pytest.raises(BadParamError, match="prepare: handle is no handle"):
        dp.prepare(dp.softmax_forward, value, TensorDescriptor((4, 5), "float32"))


def test_prepared_plan_refuses_lists_of_another_length(emulator_handle: dp.Handle) -> None:
    described = [TensorDescriptor((4,), "float32")] * 2
    plan = dp.prepare(dp.sgd_update, emulator_handle, described, described, lr=0.1)
    with pytest.raises(BadParamError, match="wrong length"):
        plan([_floats(4)], [_floats(4), _floats(4)])
