"""Gradients of layers of few outputs, made in one pass over the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims.conformance.cases import as_dtype
from dnnprims.ops.fc import plan_fc_backward
from dnnprims.runtime.launch import Profile

GPU = Profile("cuda", blaslt=True)
ALL = ("dx", "dw", "db")


def _layer(m: int, n: int, k: int, dtype: str) -> tuple[Any, Any, Any]:
    """dy, x and w, of integers, so that sums are exact."""
    rng = np.random.default_rng(m)
    dy, x, w = (as_dtype(rng.integers(-2, 3, shape), dtype) for shape in ((m, n), (m, k), (n, k)))
    return dy, x, w


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 4), (27, 9, 132), (300, 10, 136), (1100, 3, 128)])
def test_gradients_are_exact(handle: Any, dtype: str, m: int, n: int, k: int) -> None:
    """One chunk of rows and several, one row of a warp and many, columns that end within a block."""
    dy, x, w = _layer(m, n, k, dtype)
    for needs in (ALL, ("dw",), ("dx", "db")):
        got = dict(zip(ALL, dp.fc_backward(handle, *map(handle.asarray, (dy, x, w)), needs=needs), strict=True))
        dz, of = dy.astype(np.float64), {"x": x.astype(np.float64), "w": w.astype(np.float64)}
        ideal = {"dx": dz @ of["w"], "dw": dz.T @ of["x"], "db": dz.sum(axis=0)}
        for name in needs:
            np.testing.assert_array_equal(handle.to_numpy(got[name]), ideal[name].astype(dy.dtype))


def _plan(m: int, n: int, k: int, dtype: str = "bfloat16", **given: Any) -> Any:
    dy, x, w = (dp.TensorDescriptor(shape, dtype) for shape in ((m, n), (m, k), (n, k)))
    saved = dy if given.get("mode") else None
    profile, needs, mode = given.get("profile", GPU), given.get("needs", ALL), given.get("mode")
    return plan_fc_backward(profile, mode, needs, 0.0, dy, x, w, saved, None, None, None, None)


@pytest.mark.parametrize(
    ("layer", "given", "reason"),
    [
        ((64, 11, 256), {}, "11 outputs, at most 10"),
        ((64, 10, 254), {}, "multiples of 4"),
        ((64, 10, 64), {}, "do not fill a block"),
        ((64, 10, 256), {"mode": "relu"}, "a pass of its own"),
        ((64, 10, 256), {"dtype": "float64"}, "no instantiation"),
        ((64, 10, 256), {"needs": ("db",)}, "no product"),
        ((9999, 10, 256), {"profile": Profile("cuda", blaslt=True, workspace_limit=64)}, "bytes of workspace"),
        ((64, 10, 256), {"profile": Profile("cuda", blaslt=True, preferred="lt_product")}, "when tuned"),
    ],
)
def test_where_products_are_made(layer: tuple[int, int, int], given: dict[str, Any], reason: str) -> None:
    assert reason in dict(_plan(*layer, **given).refused)["few_outputs"]


def test_where_one_pass_is_made() -> None:
    """In one launch, and in one more for the sums of chunks."""
    assert [len(_plan(m, 10, 256).steps) for m in (32, 33)] == [1, 2]
    assert _plan(8192, 10, 2048).variant == "few_outputs"
    assert _plan(8192, 9, 2048, "float32").refused == ()
