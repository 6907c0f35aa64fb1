"""Reductions: hand values, ties and NaN, range of products and norms, every way of summing, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims import BadParamError, TensorDescriptor, output_descriptors, supports, workspace_size
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import run_case
from dnnprims.descriptors import dtype_row
from dnnprims.ops import reduction as front
from dnnprims.ops.reduction import OPERATIONS, reduce_tensor

INF, NAN = float("inf"), float("nan")
DTYPES = ("float32", "float64", "float16", "bfloat16")

HAND = {
    "sum": -2.0,
    "mean": -0.5,
    "product": 36.0,
    "max": 3.0,
    "min": -6.0,
    "amax": 6.0,
    "norm1": 12.0,
    "norm2": np.sqrt(50.0),
    "argmax": 2,
    "argmin": 3,
}


def reduced(handle: Any, x: Any, operation: str, **options: Any) -> Any:
    """The reduction of a NumPy array, back as one."""
    return handle.to_numpy(reduce_tensor(handle, handle.asarray(np.asarray(x)), operation, **options))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_hand_values(handle: Any, operation: str) -> None:
    """Of (2, -1, 3, -6), as a row, as a column and over all axes."""
    x = np.array([[2.0, -1.0, 3.0, -6.0]])
    for laid_out, axis in ((x, 1), (x.T, 0), (x.reshape(2, 2), None)):
        assert reduced(handle, laid_out, operation, axis=axis).ravel().tolist() == [pytest.approx(HAND[operation])]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (2, 0), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_shapes(handle: Any, operation: str, axis: Any, keepdims: bool) -> None:
    """As NumPy's, of integers, so that the values are exact, too."""
    x = np.random.default_rng(0).integers(-2, 3, (3, 4, 5)).astype(np.float64)
    y = reduced(handle, x, operation, axis=axis, keepdims=keepdims)
    shape = x.sum(axis=axis, keepdims=keepdims).shape
    assert y.shape == shape
    assert y.dtype == (np.int64 if operation.startswith("arg") else np.float64)
    if operation in ("sum", "max", "min"):
        assert y.tolist() == getattr(x, operation)(axis=axis, keepdims=keepdims).tolist()


@pytest.mark.parametrize("operation", ["argmax", "argmin"])
@pytest.mark.parametrize("count", [3, 40, 1500, 20000])
def test_first_extremum_wins(handle: Any, operation: str, count: int) -> None:
    """Of equal elements, far apart and near; of NaNs, before any number."""
    sign = 1.0 if operation == "argmax" else -1.0
    x = np.zeros((3, count), np.float32)
    x[0, [count // 2, count - 1]] = sign
    x[1, [0, count - 1]] = sign * INF
    x[1, [1, count - 2]] = NAN
    for laid_out, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        assert reduced(handle, laid_out, operation, axis=axis).tolist() == [count // 2, 1, 0]


def test_index_counts_in_row_major_order(handle: Any) -> None:
    """Over axes that are not neighbours, and over all."""
    x = np.zeros((3, 4, 5), np.float32)
    x[2, 1, 3] = 1.0
    assert reduced(handle, x, "argmax", axis=(0, 2)).tolist() == [0, 2 * 5 + 3, 0, 0]
    assert int(reduced(handle, x, "argmax")) == int(x.argmax())
    turned = handle.asarray(np.ascontiguousarray(x.transpose(2, 0, 1))).transpose(1, 2, 0)
    assert int(handle.to_numpy(reduce_tensor(handle, turned, "argmax"))) == int(x.argmax())


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if not name.startswith("arg")])
def test_nan_stays_in_its_output(handle: Any, operation: str) -> None:
    """In any place of a row; the row beside it is untouched."""
    for place in (0, 7, 39):
        x = np.ones((2, 40), np.float32)
        x[0, place] = NAN
        y = reduced(handle, x, operation, axis=1)
        assert np.isnan(y[0])
        assert not np.isnan(y[1])


def test_infinities(handle: Any) -> None:
    """An infinity wins where mathematics says so; +inf - inf is NaN."""
    x = np.array([[1.0, INF, -2.0], [INF, -INF, 0.0]], np.float32)
    assert np.isnan(reduced(handle, x, "sum", axis=1)).tolist() == [False, True]
    assert np.isnan(reduced(handle, x, "product", axis=1)).tolist() == [False, True]
    for operation in ("norm1", "norm2", "amax", "max"):
        assert reduced(handle, x, operation, axis=1).tolist() == [INF, INF]
    assert reduced(handle, x, "min", axis=1).tolist() == [-2.0, -INF]


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [("float32", (-149, -70, 0, 70, 125)), ("float64", (-1074, -600, 0, 600, 1021)), ("bfloat16", (-133, -70, 0, 125))],
)
def test_norm2_neither_overflows_nor_underflows(handle: Any, dtype: str, exponents: tuple[int, ...]) -> None:
    """|(3, 4)| = 5 in units of any power of two that the type holds; their squares leave its range at both ends."""
    for exponent in exponents:
        x = np.ldexp(np.array([3.0, 4.0]), exponent).astype(dtype_row(dtype).numpy)
        assert float(reduced(handle, x, "norm2")) == np.ldexp(5.0, exponent)


def test_norm2_of_mixed_magnitudes(handle: Any) -> None:
    """Each pair of float64's three scales together: the larger one decides."""
    for x, expected in (([3e200, 4e200, 1e-200], 5e200), ([3.0, 4.0, 1e-300], 5.0), ([1e300, 1.0, 1e-300], 1e300)):
        assert float(reduced(handle, np.array(x), "norm2")) == pytest.approx(expected)


def test_product_of_large_and_small(handle: Any) -> None:
    """1e30 ^ 4 / 1e30 ^ 4: no partial product of float32 would survive."""
    x = np.array([1e30] * 4 + [1e-30] * 4, np.float32)
    assert float(reduced(handle, x, "product")) == pytest.approx(float(np.prod(x.astype(np.float64))))


def test_empty_reductions(handle: Any) -> None:
    """Nothing adds up to 0, multiplies to 1 and has no mean; and no outputs are no work."""
    x = np.zeros((2, 0), np.float32)
    for operation, expected in (("sum", 0.0), ("norm1", 0.0), ("norm2", 0.0), ("product", 1.0)):
        assert reduced(handle, x, operation, axis=1).tolist() == [expected] * 2
    assert np.isnan(reduced(handle, x, "mean", axis=1)).all()
    assert reduced(handle, x, "sum", axis=0).shape == (0,)
    assert reduced(handle, x, "max", axis=0).shape == (0,)


@pytest.mark.parametrize("variant", ["columns", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slower_ways_agree(emulator_handle: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, variant: str) -> None:
    """Where a faster way would be taken, the others keep the same bounds, whole and split."""
    monkeypatch.setattr(dnnprims, "reduce_tensor", reduce_tensor, raising=False)
    monkeypatch.setattr(front, "_choose_variant", lambda walk: (variant, ()))
    monkeypatch.setattr(front, "_LEAST_SPLIT", 2048)
    for operation in OPERATIONS:
        for shape in ("3x41", "2x1500"):
            text = f"reduce_tensor operation={operation} shape={shape} axis=1"
            outcome = run_case(emulator_handle, FAMILIES["reduction"], Problem.parse(text, dtype=dtype, seed=1))
            assert outcome.passed, f"{outcome.problem}: {outcome.complaint}"


@pytest.mark.parametrize(
    ("shape", "variant"),
    [
        ((2 * 8192 + 5,), "split_row_per_block"),
        ((130 * 8192 + 5,), "split_row_per_block"),  # so many partial results that a block adds them up
        ((2500, 16), "split_columns"),  # in packs
        ((2501, 15), "split_columns"),
    ],
    ids=str,
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_split_of_every_operation(emulator_handle: Any, operation: str, shape: tuple[int, ...], variant: str) -> None:
    """Few outputs of many elements: partial results in scratch memory, then their fold."""
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
    x = np.where(x == 0, 1, np.sign(x)).astype(np.float32) if operation == "product" else x
    assert supports(reduce_tensor, TensorDescriptor.from_array(x), operation, axis=0).variant == variant
    with dnnprims.create_handle("numpy") as numpy_handle:
        expected = reduce_tensor(numpy_handle, x, operation, axis=0)
    assert reduce_tensor(emulator_handle, x, operation, axis=0).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("shape", "axis", "variant"),
    [
        ((4096, 10), 1, "columns"),
        ((4096, 1000), 1, "row_per_warp"),
        ((4096, 5000), 1, "row_per_block"),
        ((4096, 5000), 0, "split_columns"),
        ((2**28,), None, "split_row_per_block"),
        ((8, 300, 7, 5), (0, 2), "plain"),
        ((2**20, 3, 5), 1, "columns"),
    ],
)
def test_variant_follows_the_axes(shape: tuple[int, ...], axis: Any, variant: str) -> None:
    """What `supports` says comes from the dispatcher."""
    assert supports(reduce_tensor, TensorDescriptor(shape, "float32"), "sum", axis=axis).variant == variant


def test_axes_may_be_numpy_integers(handle: Any) -> None:
    """Alone, in a tuple and counted from the back, as shapes and loops give them."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis in (np.int64(1), np.int32(-1), (np.int64(0), np.int64(2))):
        got = handle.to_numpy(reduce_tensor(handle, handle.asarray(x), "sum", axis=axis))
        assert np.array_equal(got, x.sum(axis=axis))


def test_workspace() -> None:
    """Only a split needs scratch memory, and a limit does without the split."""
    x = TensorDescriptor((2**20,), "float32")
    assert workspace_size(reduce_tensor, x, "sum") > 0
    assert workspace_size(reduce_tensor, TensorDescriptor((2**10, 64), "float32"), "sum", axis=1) == 0
    (left,) = output_descriptors(reduce_tensor, TensorDescriptor((2, 3), "float16"), "argmax", axis=1)
    assert left == TensorDescriptor((2,), "int64")
    with dnnprims.create_handle("emulator", workspace_limit=0) as small:
        assert float(reduce_tensor(small, np.ones(20000, np.float32), "sum")) == 20000.0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"x": np.ones((2, 4), np.int32)}, "x"),
        ({"operation": "median"}, "operation"),
        ({"axis": 2}, "axis"),
        ({"axis": (0, -2)}, "axis"),
        ({"axis": 0.5}, "axis"),
        ({"out": np.ones(3, np.float32)}, "out"),
        ({"out": np.ones(2, np.float64)}, "out"),
        ({"operation": "argmax", "out": np.ones(2, np.float32)}, "out"),
        ({"operation": "argmax", "alpha": 2.0}, "alpha"),
        ({"operation": "argmin", "beta": 1.0, "out": np.ones(2, np.int64)}, "beta"),
        ({"beta": 1.0}, "out"),
        ({"alpha": NAN}, "alpha"),
        ({"x": np.ones((2, 0), np.float32), "operation": "max"}, "x"),
        ({"x": np.ones((2, 0), np.float32), "operation": "argmin"}, "x"),
    ],
)
def test_refusals(handle: Any, change: dict[str, Any], param: str) -> None:
    """Each names the function and the argument."""
    call: dict[str, Any] = {"x": np.ones((2, 4), np.float32), "operation": "sum", "axis": 1, **change}
    arrays = {k: handle.asarray(v) for k, v in call.items() if hasattr(v, "shape")}
    with pytest.raises(BadParamError, match=r"^reduce_tensor: ") as caught:
        reduce_tensor(handle, **{**call, **arrays})
    assert caught.value.param == param


def test_overlap_and_too_many_axes(handle: Any) -> None:
    """The result must not lie in x; ten axes that cannot be joined are too many."""
    room = handle.asarray(np.ones((4, 4), np.float32))
    with pytest.raises(BadParamError, match="overlaps"):
        reduce_tensor(handle, room, "sum", axis=1, out=room[0])
    every_other = handle.asarray(np.ones((4,) * 9, np.float32))[(slice(None, None, 2),) * 9]
    with pytest.raises(BadParamError, match="too many axes"):
        reduce_tensor(handle, every_other, "sum")
    assert float(handle.to_numpy(reduce_tensor(handle, every_other[0], "sum"))) == 2.0**8
