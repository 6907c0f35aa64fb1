"""Calls that break the contract, derived from one good call of each primitive and from the function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from good_calls import GOOD, Arguments, floats

import dnnprims as dp
from dnnprims import DnnprimsError


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
    yield "too long", [*good, floats(2)], False
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


def arrays_of(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays_of(item)


def refusal(op: FunctionType, handle: dp.Handle, arguments: Arguments) -> DnnprimsError | None:
    """Make the call; give its refusal back, or None. What is refused has changed nothing."""
    held = [a for value in arguments.values() for a in arrays_of(value) if a.dtype.kind != "O"]
    before = [a.tobytes() for a in held]
    try:
        op(handle, **arguments)
    except DnnprimsError as raised:
        error = raised
    else:
        return None
    assert [a.tobytes() for a in held] == before, f"changed by a refused call: {error}"
    return error


def is_worded(error: DnnprimsError, op: FunctionType) -> bool:
    """Whether the message names function, argument, value and rule."""
    argument = error.param.split("[")[0].split(".")[0]
    named = error.op == op.__name__ and argument in inspect.signature(op).parameters
    told = bool(error.expected) and (bool(error.got) or error.problem == "is missing")
    return named and told and len(str(error)) < 600
