"""Global norm, clipping, scaling with a look for infinities."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dnnprims.errors import BadParamError
from dnnprims.ops.gradient import clip_by_global_norm, global_norm, scale_and_check_finite
from dnnprims.reference import gradient as reference

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_by_hand(handle, dtype):
    arrays = [handle.asarray(np.array(values, dtype)) for values in ([3], [], [[0, 4]], [12])]
    norm = global_norm(handle, arrays)
    assert norm.shape == ()
    assert norm.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert float(norm) == 13.0
    out = handle.asarray(np.full((), np.nan, norm.dtype))
    assert global_norm(handle, arrays, out=out) is out or float(out) == 13.0
    assert float(out) == 13.0


def test_norm_of_many_mixed_tensors(handle):
    """Ones only: the norm is the root of their number, 10,000."""
    sizes = [0, 1, 2, 5, 4099, *[7] * 100]
    sizes.append(10_000 - sum(sizes))
    arrays = [handle.asarray(np.ones(size + 1, DTYPES[i % 4]))[i % 2 :][:size] for i, size in enumerate(sizes)]
    norm = global_norm(handle, arrays)
    assert norm.dtype == np.float64
    assert float(norm) == 100.0
    assert float(global_norm(handle, [a for a in arrays if a.dtype != np.float64])) ** 2 < 10_000


def test_norm_neither_overflows_nor_vanishes(handle):
    for value in (2.0**100, 2.0**-100):
        x = handle.asarray(np.full(4, value, np.float32))
        assert float(global_norm(handle, x)) == 2.0 * value
    x = handle.asarray(np.full(16, 65504.0, np.float16))
    assert float(global_norm(handle, x)) == 4 * 65504.0


def test_norm_of_nothing_and_of_the_infinite(handle):
    assert float(global_norm(handle, [])) == 0.0
    assert float(global_norm(handle, handle.asarray(np.zeros((0, 3), np.float64)))) == 0.0
    assert float(global_norm(handle, handle.asarray(np.float32([1, -np.inf])))) == np.inf
    assert np.isnan(float(global_norm(handle, handle.asarray(np.float32([1, -np.inf, np.nan])))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_by_hand(handle, dtype):
    """A norm of 8 clipped to 2: a quarter of everything."""
    a, b = handle.asarray(np.full(5, 0, dtype)), handle.asarray(np.full((4, 4), 2, dtype))
    norm = clip_by_global_norm(handle, [a, b], 2.0, epsilon=0.0)
    assert float(norm) == 8.0
    assert (handle.to_numpy(b) == 0.5).all()
    assert (handle.to_numpy(a) == 0).all()
    assert float(clip_by_global_norm(handle, [a, b], 2.0, epsilon=0.0)) == 2.0
    assert (handle.to_numpy(b) == 0.5).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_by_a_given_norm(handle, dtype):
    x, norm = handle.asarray(np.full(3, 8, np.float32)), handle.asarray(dtype(16))
    made = clip_by_global_norm(handle, x, 4.0, norm=norm, epsilon=0.0)
    assert float(made) == 16.0
    assert handle.to_numpy(x).tolist() == [2.0] * 3


def test_clip_of_the_infinite(handle):
    x = handle.asarray(np.float32([1, np.inf]))
    clip_by_global_norm(handle, x, 1.0)
    np.testing.assert_array_equal(handle.to_numpy(x), [0, np.nan])
    x = handle.asarray(np.float32([1, np.nan]))
    clip_by_global_norm(handle, x, 1.0)
    assert np.isnan(handle.to_numpy(x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_check(handle, dtype):
    a, b = handle.asarray(np.full(4099, 4, dtype)), handle.asarray(np.full(3, 8, dtype))
    found = scale_and_check_finite(handle, [a, b], 0.25)
    assert found.shape == ()
    assert found.dtype == np.int32
    assert int(found) == 0
    assert (handle.to_numpy(a) == 1).all()
    assert (handle.to_numpy(b) == 2).all()
    for bad in (np.inf, -np.inf, np.nan):
        values = np.full(4099, 4, dtype)
        values[-1] = bad
        assert int(scale_and_check_finite(handle, [b, handle.asarray(values)], 1.0)) == 1


def test_a_product_that_overflows_is_found(handle):
    x = handle.asarray(np.full(9, 40000, np.float16))
    assert int(scale_and_check_finite(handle, x, 2.0)) == 1
    assert int(scale_and_check_finite(handle, handle.asarray(np.full(9, 40000, np.float32)), 2.0)) == 0


def test_a_given_flag_gathers(handle):
    found = handle.asarray(np.int32(0))
    good, bad = handle.asarray(np.float32([1])), handle.asarray(np.float32([np.inf]))
    scale = handle.asarray(np.float32(0.5))
    for x, wanted in ((good, 0), (bad, 1), (good, 1)):
        scale_and_check_finite(handle, x, scale, found_inf=found)
        assert int(found) == wanted
    assert handle.to_numpy(good).tolist() == [0.25]
    assert int(scale_and_check_finite(handle, [], 1.0)) == 0


def test_refusals_name_the_argument_and_change_nothing(handle):
    x = handle.asarray(np.float32([3, 4]))
    whole = handle.asarray(np.zeros(3, np.float32))
    calls = [
        (lambda: global_norm(handle, None), "arrays"),
        (lambda: global_norm(handle, [x, handle.asarray(np.int32([1]))]), "arrays[1]"),
        (lambda: global_norm(handle, x, out=handle.asarray(np.float64(0))), "out"),
        (lambda: clip_by_global_norm(handle, x, 0.0), "max_norm"),
        (lambda: clip_by_global_norm(handle, x, float("nan")), "max_norm"),
        (lambda: clip_by_global_norm(handle, x, 1.0, epsilon=-1.0), "epsilon"),
        (lambda: clip_by_global_norm(handle, x, 1.0, norm=handle.asarray(np.float16(1))), "norm"),
        (lambda: clip_by_global_norm(handle, [whole[:2], whole[1:]], 1.0), None),
        (lambda: scale_and_check_finite(handle, x, float("inf")), "scale"),
        (lambda: scale_and_check_finite(handle, x, 2.0, found_inf=handle.asarray(np.int64(0))), "found_inf"),
    ]
    for call, param in calls:
        with pytest.raises(BadParamError) as refusal:
            call()
        assert param is None or refusal.value.param == param
    assert handle.to_numpy(x).tolist() == [3, 4]


def test_the_same_call_gives_the_same_bits(handle):
    x = [handle.asarray(np.random.default_rng(1).standard_normal(9001).astype(np.float32)) for _ in range(3)]
    assert float(global_norm(handle, x)) == float(global_norm(handle, x))


def test_reference_norm_of_integers_is_exact():
    """Scaling by the largest element, 3 here, would round each of them."""
    x = np.array([3.0, -1.0, 3.0, 1.0, 1.0, 2.0, 2.0] * 8)
    assert float(reference.global_norm([x])) == np.sqrt(29.0 * 8)
