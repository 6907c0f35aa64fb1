"""Set, scale, add, cast: hand values, every pair of types, strides, odd numbers, refusals; the merging of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnnprims import BadParamError, TensorDescriptor, supports
from dnnprims.dtypes import BY_NAME, FLOATS
from dnnprims.ops.tensor import add_tensor, cast, scale_tensor, set_tensor
from dnnprims.runtime.layout import broadcast_strides, merge_axes, sort_axes

INF, NAN = float("inf"), float("nan")
NAMES = tuple(BY_NAME)
FLOAT_NAMES = tuple(row.name for row in FLOATS)


def array(handle: Any, values: Any, dtype: str = "float32") -> Any:
    """Numbers as an array of the backend."""
    return handle.asarray(np.array(values, np.float64).astype(BY_NAME[dtype].numpy))


def numbers(handle: Any, a: Any) -> list[Any]:
    """An array of the backend as a list of floats."""
    return list(np.asarray(handle.to_numpy(a)).astype(np.float64).ravel().tolist())


# ---- set and scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_set_every_type(handle: Any, dtype: str, size: int) -> None:
    """Every element, and it is the array itself that comes back."""
    y = array(handle, [1.0] * size, dtype)
    assert set_tensor(handle, y, 3) is y
    assert numbers(handle, y) == [3.0] * size


def test_set_converts_as_cast_does(handle: Any) -> None:
    """Once, to nearest even; integers take the nearest end of their range."""
    assert numbers(handle, set_tensor(handle, array(handle, [0.0], "float16"), 1e9)) == [INF]
    assert numbers(handle, set_tensor(handle, array(handle, [0.0], "bfloat16"), 1 + 2.0**-8 + 2.0**-40)) == [
        1 + 2.0**-7
    ]
    assert numbers(handle, set_tensor(handle, array(handle, [0.0], "uint8"), -4.5)) == [0.0]
    assert numbers(handle, set_tensor(handle, array(handle, [9.0], "int32"), NAN)) == [0.0]
    assert np.isnan(numbers(handle, set_tensor(handle, array(handle, [9.0, 9.0]), NAN))).all()


def test_strided_set_leaves_the_rest(handle: Any) -> None:
    """Every other column, and a view that runs backwards."""
    room = array(handle, np.zeros((3, 6)))
    set_tensor(handle, room[:, ::2], 1.0)
    assert numbers(handle, room) == [1.0, 0.0] * 9
    set_tensor(handle, room[::-1, 5], 2.0)
    assert numbers(handle, room[:, 5]) == [2.0] * 3
    assert numbers(handle, room[:, :5]) == [1.0, 0.0, 1.0, 0.0, 1.0] * 3


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
def test_scale(handle: Any, dtype: str) -> None:
    """A plain product, also of NaN and infinities, in place, whole, unaligned and strided."""
    y = array(handle, [*range(1, 35), INF, NAN], dtype)
    assert scale_tensor(handle, y, -2.0) is y
    assert numbers(handle, y)[:35] == [*(-2.0 * i for i in range(1, 35)), -INF]
    assert np.isnan(numbers(handle, scale_tensor(handle, y, 0.0))[34:]).all()
    room = array(handle, range(40), dtype)
    scale_tensor(handle, room[1:], 2.0)
    scale_tensor(handle, room[::-4], 0.5)
    assert numbers(handle, room) == [i if i % 4 == 3 else 2.0 * i for i in range(40)]


# ---- add -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
@pytest.mark.parametrize("addend", [(), (1,), (8,), (3, 1), (1, 8), (2, 3, 8), (2, 1, 1), (1, 3, 1), (2, 1, 8)])
def test_add_broadcasts(handle: Any, addend: tuple[int, ...], dtype: str) -> None:
    """As NumPy does, of integers, so that the sums are exact."""
    rng = np.random.default_rng(0)
    a, c = rng.integers(-8, 9, addend), rng.integers(-8, 9, (2, 3, 8))
    sink = array(handle, c, dtype)
    assert add_tensor(handle, array(handle, a, dtype), sink, alpha=2.0, beta=-1.0) is sink
    assert numbers(handle, sink) == (2.0 * a - c).ravel().tolist()


def test_add_any_strides(handle: Any) -> None:
    """Both turned the same way, turned differently, and with gaps."""
    rng = np.random.default_rng(0)
    a, c = rng.integers(-8, 9, (16, 12)), rng.integers(-8, 9, (12, 16))
    for turn in (lambda x: x.T, lambda x: x.T[::2, ::-1], lambda x: x.T[1:, 3:]):
        sink, addend = array(handle, c), array(handle, a)
        add_tensor(handle, turn(addend.T), turn(sink))
        expected = c.copy()
        turn(expected)[...] += turn(a.T)
        assert numbers(handle, sink) == expected.ravel().tolist()


def test_add_ignores_old_with_beta_0(handle: Any) -> None:
    """What was NaN is gone."""
    c = array(handle, [[NAN] * 5] * 3)
    assert (
        numbers(handle, add_tensor(handle, array(handle, [1, 2, 3, 4, 5]), c, beta=0.0))
        == [1.0, 2.0, 3.0, 4.0, 5.0] * 3
    )


def test_add_to_itself(handle: Any) -> None:
    """The very same array is allowed; a part of it is not."""
    c = array(handle, np.arange(12).reshape(3, 4))
    assert numbers(handle, add_tensor(handle, c, c)) == [2.0 * i for i in range(12)]
    with pytest.raises(BadParamError, match="overlaps"):
        add_tensor(handle, c[0], c)


# ---- cast ------------------------------------------------------------------------------------------------------------

#: Source type -> values; target type -> what they become, None for NaN.
CAST_TABLE: dict[tuple[str, tuple[Any, ...]], dict[str, list[Any]]] = {
    ("float32", (1.5, -1.5, 300.0, -3e9, 3e38, INF, -INF, NAN)): {
        "uint8": [1, 0, 255, 0, 255, 255, 0, 0],
        "int32": [1, -1, 300, -(2**31), 2**31 - 1, 2**31 - 1, -(2**31), 0],
        "int64": [1, -1, 300, -3000000000, 2**63 - 1, 2**63 - 1, -(2**63), 0],
        "float16": [1.5, -1.5, 300.0, -INF, INF, INF, -INF, None],
    },
    ("float64", (1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40, 1e300, -1e-300, 65519.99, NAN)): {
        "bfloat16": [1 + 2.0**-7, 1.0, INF, 0.0, 65536.0, None],
        "float16": [1 + 2.0**-8, 1 + 2.0**-10, INF, 0.0, 65504.0, None],
        "float32": [1 + 2.0**-8, 1 + 2.0**-11, INF, 0.0, float(np.float32(65519.99)), None],
    },
    ("float16", (65504.0, -(2.0**-24), INF, NAN)): {
        "float64": [65504.0, -(2.0**-24), INF, None],
        "uint8": [255, 0, 255, 0],
        "bfloat16": [65536.0, -(2.0**-24), INF, None],
    },
}


@pytest.mark.parametrize("source", CAST_TABLE, ids=lambda key: key[0])
def test_cast_table(handle: Any, source: tuple[str, tuple[Any, ...]]) -> None:
    """Ties and near ties, overflow, fractions, infinities and NaN."""
    name, values = source
    x = array(handle, values, name)
    for target, expected in CAST_TABLE[source].items():
        y = handle.to_numpy(cast(handle, x, target))
        assert y.dtype == BY_NAME[target].numpy
        assert [None if v != v else v for v in y.tolist()] == expected, target


def test_cast_of_large_integers_rounds_once(handle: Any) -> None:
    """2^62 + 2^54 is a tie for bfloat16; one more in the last place is not, though float64 would make it one."""
    exact = [2**62, 2**62 + 2**54, 2**62 + 2**54 + 1, -(2**62) - 2**54 - 1, 2**63 - 1, -(2**63), 2**53 + 1, 300]
    x = handle.asarray(np.array(exact, np.int64))
    step = 2.0**55
    rounded = [2.0**62, 2.0**62, 2.0**62 + step, -(2.0**62) - step, 2.0**63, -(2.0**63), 2.0**53, 300.0]
    assert numbers(handle, cast(handle, x, "bfloat16")) == rounded
    assert handle.to_numpy(cast(handle, x, "float32")).tolist() == np.array(exact).astype(np.float32).tolist()
    assert handle.to_numpy(cast(handle, x, "float64")).tolist() == [float(v) for v in exact]
    assert handle.to_numpy(cast(handle, x, "int32")).tolist() == [min(max(v, -(2**31)), 2**31 - 1) for v in exact]


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_cast_every_pair(handle: Any, source: str, target: str) -> None:
    """Small integers are exact in every type: whole, with a tail, unaligned and strided."""
    values = np.arange(101) % 100
    x = array(handle, values, source)
    assert numbers(handle, cast(handle, x, target)) == values.tolist()
    assert numbers(handle, cast(handle, x[1:], target)) == values[1:].tolist()
    assert numbers(handle, cast(handle, x[::-3], target)) == values[::-3].tolist()
    out = array(handle, [7] * 202, target)
    assert cast(handle, x, target, out=out[::2]) is not None
    assert numbers(handle, out[::2]) == values.tolist()
    assert numbers(handle, out[1::2]) == [7] * 101


def test_cast_takes_any_name_of_a_type(handle: Any) -> None:
    """A name, a NumPy dtype, a scalar type."""
    x = array(handle, [1.0, 2.0])
    for dtype in ("float16", np.float16, np.dtype("float16")):
        assert handle.to_numpy(cast(handle, x, dtype)).dtype == np.float16


# ---- empties, layouts, refusals --------------------------------------------------------------------------------------


def test_empty_and_scalar(handle: Any) -> None:
    """No elements are no work; a tensor without axes has one."""
    empty = array(handle, np.zeros((0, 3)))
    assert set_tensor(handle, empty, 1.0).shape == scale_tensor(handle, empty, 1.0).shape == (0, 3)
    assert cast(handle, empty, "float64").shape == add_tensor(handle, array(handle, [1.0] * 3), empty).shape == (0, 3)
    one = array(handle, 4.0)
    assert numbers(handle, add_tensor(handle, one, array(handle, 5.0))) == [9.0]
    assert numbers(handle, cast(handle, scale_tensor(handle, one, 2.0), "int32")) == [8.0]


def test_axes_are_merged() -> None:
    """What all tensors walk as one axis is one; extents of 1 are none."""
    assert merge_axes((2, 3, 1, 4), (12, 4, 7, 1)) == ((24,), (1,))
    assert merge_axes((2, 3, 4), (12, 4, 1), (0, 4, 1)) == ((2, 12), (12, 1), (0, 1))
    assert merge_axes((1, 1), (5, 5)) == ((), ())
    assert merge_axes(*sort_axes((4, 3), (1, 4))) == ((12,), (1,))
    assert broadcast_strides((3, 1), (1, 1), (2, 3, 4)) == (0, 1, 0)


@pytest.mark.parametrize(
    ("shape", "strides", "addend", "variant"),
    [
        ((8, 16), None, (8, 16), "packed"),
        ((8, 16), None, (16,), "packed_last_axis"),
        ((8, 16), None, (8, 1), "packed_last_axis"),
        ((8, 15), None, (15,), "strided"),
        ((8, 16), (32, 1), (8, 16), "packed_last_axis"),
        ((8, 16), (17, 1), (8, 16), "strided"),
        ((8, 16), (32, 2), (8, 16), "strided"),
    ],
)
def test_add_variant_follows_the_layout(shape: Any, strides: Any, addend: Any, variant: str) -> None:
    """16 bytes at a time wherever the last axis allows it."""
    c, a = TensorDescriptor(shape, "float32", strides), TensorDescriptor(addend, "float32")
    assert supports(add_tensor, a, c).variant == variant


@pytest.mark.parametrize(
    ("op", "call", "param"),
    [
        (set_tensor, {"y": np.ones(3, np.float32), "value": "one"}, "value"),
        (set_tensor, {"y": np.broadcast_to(np.float32(1), (3,)), "value": 1.0}, "y"),
        (scale_tensor, {"y": np.ones(3, np.int32), "alpha": 2.0}, "y"),
        (scale_tensor, {"y": np.ones(3, np.float32), "alpha": INF}, "alpha"),
        (scale_tensor, {"y": np.ones(3, np.float32), "alpha": None}, "alpha"),
        (add_tensor, {"a": np.ones(2, np.float32), "c": np.ones((2, 3), np.float32)}, "a"),
        (add_tensor, {"a": np.ones((1, 1, 3), np.float32), "c": np.ones((2, 3), np.float32)}, "a"),
        (add_tensor, {"a": np.ones(3), "c": np.ones((2, 3), np.float32)}, "a"),
        (add_tensor, {"a": np.ones(3, np.int32), "c": np.ones((2, 3), np.int32)}, "c"),
        (add_tensor, {"a": np.ones(3), "c": np.ones(3), "alpha": NAN}, "alpha"),
        (cast, {"x": np.ones(3), "dtype": "float8"}, "dtype"),
        (cast, {"x": np.ones(3), "dtype": np.complex64}, "dtype"),
        (cast, {"x": np.ones(3), "dtype": "float32", "out": np.ones(3)}, "out"),
        (cast, {"x": np.ones(3), "dtype": "float32", "out": np.ones(4, np.float32)}, "out"),
    ],
)
def test_refusals(numpy_handle: Any, emulator_handle: Any, op: Any, call: dict[str, Any], param: str) -> None:
    """Each names the function and the argument, on either backend."""
    for handle in (numpy_handle, emulator_handle):
        with pytest.raises(BadParamError, match=f"^{op.__name__}: ") as caught:
            op(handle, **call)
        assert caught.value.param == param


def test_read_only_and_too_many_axes(numpy_handle: Any) -> None:
    """What is written must be writeable; nine axes that cannot be joined are too many."""
    locked = np.ones(3, np.float32)
    locked.flags.writeable = False
    with pytest.raises(BadParamError, match="read-only"):
        scale_tensor(numpy_handle, locked, 2.0)
    every_other = np.ones((4,) * 9, np.float32)[(slice(None, None, 2),) * 9]
    for call in (
        lambda: set_tensor(numpy_handle, every_other, 0.0),
        lambda: cast(numpy_handle, every_other, "float16"),
    ):
        with pytest.raises(BadParamError, match="too many axes"):
            call()
