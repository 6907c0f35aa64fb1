"""Values that no caller should pass, and calls that hold some: what `test_fuzz.py` draws from."""

from __future__ import annotations

import copy
import decimal
import fractions
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

import dnnprims as dp


class Raised(Exception):
    """What an object of the caller's raises by itself may come out of the call that used it."""


class Raising:
    """Everything that is asked of it raises, in a way that Python's own objects do."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = type(f"Raised{error.__name__}", (Raised, error), {})

    def _raise(self, *_: object) -> Any:
        raise self.error("planted")

    __len__ = __iter__ = __index__ = __float__ = __int__ = __bool__ = __hash__ = __eq__ = _raise
    __dlpack__ = __dlpack_device__ = __getitem__ = __lt__ = _raise
    shape = dtype = strides = __array_interface__ = ptr = property(_raise)  # type: ignore[assignment]


class Lying:
    """A length, items, an index and a number that do not fit each other."""

    def __init__(self, length: Any, items: Any, index: Any) -> None:
        self.length, self.items, self.index = length, items, index

    def __len__(self) -> Any:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __index__(self) -> Any:
        return self.index

    __float__ = __index__
    __hash__ = None  # type: ignore[assignment]


class Claiming:
    """Says that it is an array."""

    def __init__(self, **claims: Any) -> None:
        self.__dict__.update(claims)


class Endless:
    """Items without an end."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def _inside_itself() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


EXTENTS = (
    *(0, 1, 2, 3, 5, 7, 31, 32, 33, 64, 255, 256, 257, 1024, 4099, 65535, 65536, 2**20),
    *(2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**33, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 2**100),
    *(-1, -2, -(2**31), -(2**63), -(2**64)),
)
NUMBERS = (
    *EXTENTS,
    *(0.0, -0.0, 0.5, 1.0, 1e-8, 1e30, 1e39, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 10**400),
    *(
        True,
        False,
        np.float32(0.5),
        np.float64("nan"),
        np.float16(1),
        np.int8(-1),
        np.uint64(2**64 - 1),
        np.bool_(True),
    ),
    *(ml_dtypes.bfloat16(1.5), np.longdouble(1e3), np.datetime64("2026-01-01"), np.complex64(1j), 1j),
    *(fractions.Fraction(1, 3), decimal.Decimal("0.1"), decimal.Decimal("NaN"), "1", "0.5", b"1"),
)
WORDS = (
    *("", "float32", "float64", "float16", "bfloat16", "int32", "uint8", "complex64", "f4", ">f4", "object", "O", "S3"),
    *("relu", "gelu", "tanh", "softplus", "sum", "mean", "max", "argmax", "cross_entropy", "mse", "none", "accurate"),
    *("log", "channel", "instance", "dx", "numpy", "no such", "\0", "é" * 3, "x" * 10_000, "'); drop", "{}", "%s"),
)
CLAIMS: tuple[Callable[[], Any], ...] = (
    lambda: Claiming(shape=(2, 3), dtype="float32", strides=(12, 4)),
    lambda: Claiming(shape=None, dtype=np.dtype("float32"), strides=None),
    lambda: Claiming(shape=(4, 5), dtype=np.dtype("float32"), strides=(20,)),
    lambda: Claiming(shape="ab", dtype=np.dtype("float32"), strides="cd"),
    lambda: Claiming(__array_interface__={"shape": (4,), "typestr": "<f4", "data": None, "version": 3}),
    lambda: Claiming(__array_interface__=None),
    lambda: Claiming(__array_interface__={"shape": (2**62,), "typestr": "<f4", "data": (0, False), "version": 3}),
    lambda: Claiming(__cuda_array_interface__={"shape": (4,), "typestr": "<f4", "data": (0, False), "version": 3}),
    lambda: Claiming(__dlpack__=lambda **_: None, __dlpack_device__=lambda: (1, 0)),
    lambda: Claiming(__dlpack__=lambda **_: 1, __dlpack_device__=lambda: None),
    lambda: Claiming(ptr=None),
    lambda: Claiming(ptr="0"),
    lambda: Claiming(__cuda_stream__=lambda: None),
    lambda: dp.TensorDescriptor((0, 5), "float32").bind(0),
    lambda: dp.TensorDescriptor((0,), "float32").bind(2**63),
    lambda: dp.TensorDescriptor((0,), "float32").bind(1),
)
OBJECTS: tuple[Callable[[], Any], ...] = (
    *(lambda kind=kind: Raising(kind) for kind in (TypeError, ValueError, RuntimeError, AttributeError)),
    *(lambda kind=kind: Raising(kind) for kind in (OverflowError, BufferError, IndexError, KeyError, MemoryError)),
    lambda: Lying(-1, (1, 2), 3),
    lambda: Lying(2**62, (1, 2), "x"),
    lambda: Lying(2, (x for x in ()), -1),
    lambda: Lying("x", (2, "y"), None),
    lambda: Lying(0, (True, 2.5), 2**70),
    Endless,
    itertools.count,
    lambda: iter((2, 3)),
    lambda: range(2**40),
    lambda: (x for x in (4, 5)),
    _inside_itself,
    *(list, dict, set, tuple, object, bytearray),
    *(lambda value=value: value for value in (None, ..., NotImplemented, int, float, np.float32, len, {4: 5}, {4, 5})),
    lambda: [None],
    lambda: [[]],
    lambda: ((4, 5), (4, 5)),
    lambda: np.array([4, 5]),
    lambda: np.array([4.0, 5.0]),
    lambda: np.array("relu"),
    lambda: np.dtype([("a", "f4")]),
    lambda: memoryview(b"abc"),
    lambda: dp.TensorDescriptor((4, 5), "float32"),
    lambda: dp.ActivationDescriptor("relu"),
    lambda: dp.LossDescriptor("mse"),
    *CLAIMS,
)

anything = st.one_of(
    st.sampled_from(OBJECTS).map(lambda make: make()),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=5),
)
extents = st.sampled_from(EXTENTS)
huge_extents = st.sampled_from([extent for extent in EXTENTS if 0 <= extent <= 2**62])
small_extents = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7, 33])
shapes = st.one_of(
    st.lists(st.one_of(extents, small_extents), max_size=5).map(tuple),
    st.sampled_from([(1,) * 33, (2,) * 9, (1,) * 10_000, (2,) * 70, (2**16,) * 4, (2**21, 2**21, 2**21)]),
    anything,
)
dtypes = st.sampled_from([*WORDS[:14], np.float32, np.dtype("float64"), None, float, "float32", "bfloat16", "float16"])


alignments = st.sampled_from([16, 16, 16, 1, 2, 4, 8, 3, 0, -1, True, 16.0, None])
ways = st.sampled_from(["none", "none", "fitting", "anything"])
descriptor_dtypes = st.one_of(dtypes, dtypes, anything)


@st.composite
def descriptor_arguments(draw: Any) -> dict[str, Any]:
    """Arguments of a `TensorDescriptor`."""
    shape, way = draw(shapes), draw(ways)
    rank = len(shape) if isinstance(shape, tuple) and len(shape) < 10 else 2
    steps = (
        None if way == "none" else draw(anything) if way == "anything" else tuple(draw(extents) for _ in range(rank))
    )
    return {"shape": shape, "dtype": draw(descriptor_dtypes), "strides": steps, "alignment": draw(alignments)}


def described(value: Any) -> Any:
    """Descriptors in the place of arrays."""
    if isinstance(value, list):
        return [described(item) for item in value]
    return dp.TensorDescriptor.from_array(value) if isinstance(value, np.ndarray) else value


own_dtypes = st.sampled_from(["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8"])
descriptor_kinds = st.sampled_from(["dtype", "extents", "strides", "rank", "alignment", "anything"])
array_dtypes = st.sampled_from(
    ["f4", "f8", "f2", ml_dtypes.bfloat16, "i4", "i8", "u1", "i2", "?", "c8", "O", "S4", ">f4"]
)
switches = st.booleans()
many_extents, few_extents = st.lists(small_extents, max_size=12), st.lists(small_extents, max_size=5)


@st.composite
def like_descriptor(draw: Any, good: dp.TensorDescriptor) -> Any:
    """A descriptor that differs from a good one in something, or nothing of the kind."""
    kind = draw(descriptor_kinds)
    if kind == "anything":
        return draw(anything)
    shape, dtype, strides, alignment = good.shape, good.dtype, None, 16
    if kind == "dtype":
        dtype = draw(own_dtypes)
    elif kind == "extents":
        shape = tuple(draw(extents) if draw(switches) else e for e in shape)
    elif kind == "strides":
        strides = tuple(draw(extents) for _ in shape)
    elif kind == "rank":
        shape = tuple(draw(many_extents))
    else:
        alignment = draw(alignments)
    try:
        return dp.TensorDescriptor(shape, dtype, strides, alignment)
    except dp.DnnprimsError:
        return good


@st.composite
def like_array(draw: Any, good: np.ndarray | dp.TensorDescriptor) -> Any:
    """A small array that differs from a good one, or from a described one, in something, or nothing of the kind."""
    if isinstance(good, dp.TensorDescriptor):
        good = np.zeros(good.shape, good.dtype.numpy)
    kind = draw(array_kinds)
    if kind == "anything":
        return draw(anything)
    if kind == "dtype":
        return np.zeros(good.shape, draw(array_dtypes))
    if kind == "shape":
        return np.ones(tuple(draw(few_extents)), good.dtype)
    return _ARRAYS[kind](good.copy())


def _misaligned(a: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype)[: a.size].reshape(a.shape)


def _read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "special": lambda a: (
        np.where(np.arange(a.size).reshape(a.shape) % 2, np.nan, np.inf).astype(a.dtype)
        if a.dtype.kind == "f"
        else a - a.dtype.type(2) * 2
    ),
    "negative steps": lambda a: a[::-1] if a.ndim else a,
    "no step": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
    "gaps": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "misaligned": _misaligned,
    "read-only": _read_only,
    "Fortran": np.asfortranarray,
    "masked": np.ma.masked_array,
    "matrix": lambda a: a.view(np.memmap),
    "list": lambda a: a.tolist(),
    "scalar": lambda a: a.dtype.type(1),
    "described": dp.TensorDescriptor.from_array,
    "twice": lambda a: [a, a],
    "missing": lambda a: None,
    "bound": lambda a: dp.TensorDescriptor.from_array(a).bind(a.ctypes.data, a),
}


array_kinds = st.sampled_from([*_ARRAYS, "anything", "dtype", "shape"])
counts, hundredths, places = st.integers(0, 3), st.integers(0, 99), st.integers(0, 2**16)


@st.composite
def spoilt(draw: Any, good: dict[str, Any], like: Callable[[Any], st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A call with up to three of its arguments changed, left out or added."""
    arguments, names = copy.copy(good), list(good)
    for _ in range(draw(counts)):
        name = names[draw(places) % len(names)] if draw(hundredths) else "no_such_argument"
        value = good.get(name)
        if isinstance(value, list) and value and draw(switches):
            place = draw(places) % len(value)
            arguments[name] = [draw(like(one)) if i == place else one for i, one in enumerate(value)]
        elif isinstance(value, np.ndarray | dp.TensorDescriptor):
            arguments[name] = draw(like(value))
        else:
            arguments[name] = draw(anything)
    return arguments


@st.composite
def scaled(draw: Any, good: dict[str, Any]) -> dict[str, Any]:
    """A call on huge tensors that fit each other: every extent replaced by the same other one, wherever it occurs."""
    fit: dict[int, int] = {}

    def resize(value: Any) -> Any:
        if isinstance(value, list):
            return [resize(item) for item in value]
        if not isinstance(value, dp.TensorDescriptor):
            return value
        for extent in value.shape:
            fit.setdefault(extent, draw(huge_extents) * (2 if extent == 6 else 1))
        return dp.TensorDescriptor(tuple(fit[extent] for extent in value.shape), value.dtype)

    try:
        return {name: resize(value) for name, value in good.items()}
    except dp.BadParamError:
        reject()
