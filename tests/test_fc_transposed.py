"""Products of layers that are made of transposed copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import backend_parameters
from test_fc import GPU, check_layer, of

import dnnprims
from dnnprims.descriptors import TensorDescriptor
from dnnprims.ops.fc import fc_backward, fc_backward_data, fc_backward_weights, plan_fc_backward
from dnnprims.reference import fc as reference
from dnnprims.runtime.gemm import GemmStep
from dnnprims.runtime.launch import Profile


@pytest.fixture(params=backend_parameters()[1:])
def along_k(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A handle that transposes all that lies across k, as else only TF32 on Hopper does, and for large products."""
    monkeypatch.setattr("dnnprims.ops.fc.backward.along_k_reason", lambda *_, **__: None)
    with dnnprims.create_handle(request.param, math="tf32") as made:
        yield made


@pytest.mark.parametrize(("m", "k", "n"), [(5, 4, 8), (64, 64, 64), (130, 68, 36), (257, 8, 132), (64, 128, 4)])
@pytest.mark.parametrize("mode", ["identity", "relu", "gelu_tanh"])
def test_products_of_transposed_copies(along_k: Any, mode: str, m: int, k: int, n: int) -> None:
    """On both sides of a tile's edges in each extent."""
    check_layer(along_k, mode, "float32", m, k, n)


@pytest.mark.parametrize("needs", [("dx",), ("dw",), ("db",), ("dx", "db"), ("db", "dw")])
@pytest.mark.parametrize("mode", ["identity", "relu"])
def test_of_copies_only_what_is_needed_is_made(along_k: Any, needs: tuple[str, ...], mode: str) -> None:
    """Integers, so that every way gives the same; parameters accumulate."""
    rng = np.random.default_rng(8)
    dy, x, w, y = (rng.integers(-3, 4, s).astype(np.float32) for s in ((70, 12), (70, 8), (12, 8), (70, 12)))
    beta = 0.0 if needs == ("dx",) else 2.0
    old = {"dx": np.full_like(x, np.nan), "dw": np.ones_like(w), "db": np.ones(12, np.float32)}
    given = {name: old[name].copy() for name in needs}
    there = {name: along_k.asarray(a) for name, a in given.items()}
    arguments = (dy, x if "dw" in needs else None, w if "dx" in needs else None)
    options = {"activation": mode, "needs": needs, "beta": beta}
    reference.fc_backward(*arguments, **{**options, "activation": of(mode)}, y=y if mode == "relu" else None, **given)
    placed = [None if a is None else along_k.asarray(a) for a in arguments]
    fc_backward(along_k, *placed, **options, y=along_k.asarray(y) if mode == "relu" else None, **there)
    for name in needs:
        np.testing.assert_array_equal(along_k.to_numpy(there[name]), given[name])


def test_single_products_of_transposed_copies(along_k: Any) -> None:
    rng = np.random.default_rng(9)
    dy, x, w = (rng.integers(-3, 4, s).astype(np.float32) for s in ((70, 12), (70, 8), (12, 8)))
    dw = along_k.asarray(np.ones_like(w))
    fc_backward_weights(along_k, along_k.asarray(dy), along_k.asarray(x), out=dw, alpha=2.0, beta=-1.0)
    np.testing.assert_array_equal(along_k.to_numpy(dw), 2 * dy.T @ x - 1)
    np.testing.assert_array_equal(along_k.to_numpy(fc_backward_data(along_k, *map(along_k.asarray, (dy, w)))), dy @ w)


def _backward_plan(
    profile: Profile,
    m: int = 8192,
    k: int = 784,
    n: int = 2048,
    dtype: str = "float32",
    needs: tuple[str, ...] = ("dx", "dw", "db"),
) -> Any:
    dy, x, w = (TensorDescriptor(s, dtype) for s in ((m, n), (m, k), (n, k)))
    return plan_fc_backward(profile, "relu", needs, 0.0, dy, x, w, dy, None, None, None, None)


def test_when_products_are_made_of_transposed_copies() -> None:
    hopper = replace(GPU, math="tf32")
    spec = _backward_plan(hopper)
    assert spec.variant == "lt_product_along_k"
    dx, dw = (step for step in spec.steps if isinstance(step, GemmStep))
    assert (dx.b.transposed, dw.b.transposed) == (False, True)
    dx, dw = (s for s in _backward_plan(hopper, m=24000, k=1536, n=512).steps if isinstance(s, GemmStep))
    assert (dx.b.transposed, dw.a.transposed, dw.b.transposed) == (True, False, False)  # the smaller operand, dz
    for profile, given, why in (
        (GPU, {}, "operands may lie either way"),
        (hopper, {"dtype": "bfloat16"}, "operands may lie either way"),
        (replace(hopper, arch=80), {}, "only Hopper"),
        (hopper, {"m": 64, "n": 64}, "longer than it saves"),
        (hopper, {"n": 2050}, "multiple of 16 bytes"),
        (hopper, {"k": 786}, "multiple of 16 bytes"),
        (replace(hopper, workspace_limit=1 << 26), {}, "the limit is"),
        (replace(hopper, blaslt=False), {}, "no cuBLASLt"),
    ):
        found = _backward_plan(profile, needs=("dw", "db"), **given)
        assert found.variant in ("lt_product", "tiled_kernel")
        assert why in dict(found.refused)["lt_product_along_k"]
