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
    yield "other byte order", good.astype(good.dtype.newbyteorder()), True
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
            yield f"extent {extent} of axis {axis}", np.zeros([*shape[:axis], extent, *shape[axis + 1 :]], good.dtype), False
    yield "read-only", _read_only(good), False
    yield "odd address", _shifted(good, 1), True
    yield "shifted by one element", _shifted(good, good.itemsize), False
    if good.ndim:
        yield "every other element", np.repeat(good, 2, axis=-1)[..., ::2], False
        yield "reversed", good[::-1], False
        yield "transposed memory", np.asfortranarray(good), False
        yield "repeated element", np.broadcast_to(good.flat[0], good.shape), False
        yield "strides of half elements", _odd_strides(good), True


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
    for value in ("x", "", None, [], {}, 1j, object(), np.zeros(3, np.float32), [1.0], (1.0,), b"1", dp, _NoTruth()):
        yield f"{type(value).__name__} {value!r:.30}", value, not isinstance(value, np.ndarray) or True
    for value in (NAN, INF, -INF, np.float32("nan"), 10**400, -(10**400)):
        yield str(value)[:10], value, not free or isinstance(value, int)
    for value in (-1.0, 0.0, 1.0, 2.0, 1e39, -1e39, 1e308, 5e-324, 1e-46, True, 1.5, np.float64(1e39), 2**70, "1.0"):
        yield repr(value), value, False


def _bad_integers() -> Iterator[tuple[str, Any, bool]]:
    for value in (1.0, 1.5, "1", "x", True, 10**30, -(10**30), 2**31, 2**63, -9, 9, {}, object(), np.zeros(3, int), b""):
        yield f"{type(value).__name__} {value!r:.20}", value, True
    for value in (NAN, 1j, np.float32(1), np.bool_(True), _NoTruth(), slice(None)):
        yield f"{type(value).__name__} {value!r:.20}", value, True
    for value in (None, [], [0], (), (0,), (0, 0), (0, 1), (True,), ((0,),), (0.0,), ({},), 0, -1, 3, np.int64(1)):
        yield f"{type(value).__name__} {value!r}", value, False


def _bad_words(name: str) -> Iterator[tuple[str, Any, bool]]:
    for value in ("nonsense", "", "RELU", 3, 1.5, b"sum", [], {}, object(), np.zeros(2), ("sum",), True, _NoTruth()):
        yield f"{type(value).__name__} {value!r:.20}", value, name not in ("dtype",)
    yield "none", None, name not in ("activation", "dtype")
    yield "descriptor of a loss", dp.LossDescriptor("mse"), name not in ("loss",)
    yield "descriptor of an activation", dp.ActivationDescriptor("relu"), name not in ("activation",)


def _bad_switches() -> Iterator[tuple[str, Any, bool]]:
    for value in (None, "yes", [], 2, 1.0, NAN, {}, object(), np.zeros(3), _NoTruth(), np.bool_(True)):
        yield f"{type(value).__name__} {value!r:.20}", value, isinstance(value, _NoTruth | np.ndarray)


def _bad_needs() -> Iterator[tuple[str, Any, bool]]:
    for value in (None, (), [], "dx", "nonsense", 3, ("dx", "dx"), ("dy",), (1,), ([],), [["dx"]], {"dx": 1}, object()):
        yield f"{type(value).__name__} {value!r:.20}", value, not isinstance(value, dict)


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
            found = _bad_integers()
        elif isinstance(value, str):
            found = _bad_words(name)
        else:
            continue
        for label, bad, must in found:
            yield Broken(label, name, bad, must)
