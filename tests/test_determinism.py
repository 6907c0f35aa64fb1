"""The same bits in every repeat, whatever the order of threads, the stream or the process.

The long run is ``tools/soak.py determinism``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import soak_calls
from conftest import HAS_GPU, backend_parameters
from soak_determinism import compare, digests, in_processes

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES
from dnnprims.ops import __path__ as ops_path
from dnnprims.runtime.launch import Profile, choose

needs_emulator = backend_parameters()[1].marks[0]  # type: ignore[attr-defined]

#: Variants that the dispatcher knows and never takes, because the one before them takes everything.
NEVER_TAKEN = {("softmax_forward", "plain"), ("softmax_backward", "plain")}
#: Variants of the profile without cuBLASLt that need it.
NEED_BLASLT = {"lt_epilogue", "lt_then_pass", "lt_product", "lt_products", "lt_product_after_copies"}
#: Variants of TF32 products, which no ready call is; `test_fc` and `test_convolution_hopper_exact` have small ones.
NEED_TF32 = {"lt_product_along_k", "hopper_rows", "hopper_turned"}
_ON_HOPPER = ("hopper", "hopper_patch", "hopper_split", "hopper_joined", "hopper_split_joined")
#: Variants of Hopper, and the types that variants are not for with IEEE products.
ONLY_HOPPER = {"ping_pong", *(f"{name}{way}" for name in _ON_HOPPER for way in ("", "_after_copies", "_in_blocks"))}
ONLY_HOPPER |= {"hopper_as_one_group", "hopper_first"}
NOT_FOR = {("lt_product_after_copies", "float64"), ("few_outputs", "float64")}
NOT_FOR |= {("joined_taps", dtype) for dtype in ("float64", "float16", "bfloat16")}
NOT_FOR |= {
    (name, dtype)
    for name in (
        *(*ONLY_HOPPER, "few_rows", "few_channels", "few_channels_after_copies"),
        *("implicit_mma", "implicit_mma_after_copies"),
    )
    for dtype in ("float32", "float64")
}
H200 = Profile("cuda", blaslt=True, tensor_maps=True)


@pytest.mark.parametrize("profile", [Profile("emulator", sm_count=4), H200], ids=["cpu", "gpu"])
def test_no_variant_is_missed(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever any dispatcher offers is among the ready calls, in each dtype."""
    offered: defaultdict[str, set[str]] = defaultdict(set)
    heard: list[str] = []

    def listening(variants: Any) -> Any:
        named = list(variants)
        heard.extend(name for name, _ in named)
        return choose(named)

    really = soak_calls.prepare_spec

    def prepare(op: str, profile: Profile, arguments: dict[str, Any]) -> Any:
        heard.clear()
        spec = really(op, profile, arguments)
        offered[op] |= {*heard, spec.variant} if spec.steps else set()
        return spec

    for found in pkgutil.walk_packages(ops_path, "dnnprims.ops."):
        if hasattr(importlib.import_module(found.name), "choose"):
            monkeypatch.setattr(f"{found.name}.choose", listening)
    monkeypatch.setattr(soak_calls, "prepare_spec", prepare)
    soak_calls.planned.cache_clear()
    covered = {(way.op, way.variant, way.dtype) for way in soak_calls.ways(profile)}
    soak_calls.planned.cache_clear()
    absent = NEED_TF32 | (set() if profile.blaslt else NEED_BLASLT | ONLY_HOPPER)
    expected = {(op, name, dtype) for op, names in offered.items() for name in names - absent for dtype in DTYPES}
    expected = {gap for gap in expected if not any((name, gap[2]) in NOT_FOR for name in gap[1].split("+"))}
    assert {gap for gap in expected - covered if gap[:2] not in NEVER_TAKEN} == set()
    assert set(offered) == {op.__name__ for op in dp.PRIMITIVES}
    assert len(expected) > 200


@needs_emulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_order_of_threads(emulator_handle: dp.Handle, dtype: str) -> None:
    """Every way of every primitive, in the fixed order and in shuffled ones."""
    found = compare([digests(emulator_handle, [dtype], (), repeats=1, settings=4)])
    assert found["differences"] == []
    assert found["digests"] == 4 * found["calls"]


@needs_emulator
def test_bits_do_not_depend_on_the_process() -> None:
    """Two processes with other hash seeds and another order of threads each."""
    arguments = ["--backend", "emulator", "--dtype", "float16", "--repeats", "1", "--settings", "1"]
    seeds = [{"DNNPRIMS_EMULATOR_SEED": "0"}, {"DNNPRIMS_EMULATOR_SEED": "12345"}]
    processes = in_processes(2, arguments, seeds)
    found = compare(processes)
    assert found["differences"] == []
    assert found["calls"] > 80


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_stream_nor_on_other_work(dtype: str) -> None:
    """Default stream, non-blocking stream, and beside kernels that take multiprocessors away."""
    with dp.create_handle("cuda") as handle:
        found = compare([digests(handle, [dtype], (), repeats=5, settings=3)])
    assert found["differences"] == []


def test_a_difference_is_noticed(emulator_handle: dp.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit, in one call of eight; and a call that one process lacks."""
    calls = iter(range(100))

    def moody(handle: dp.Handle, y: Any, value: float) -> Any:
        y[...] = np.float32(value)
        if next(calls) == 7:
            y.reshape(-1)[:1] += 1
        return y

    soak_calls.planned(emulator_handle.profile, "float32")  # by the real one
    monkeypatch.setattr(dp, "set_tensor", moody, raising=False)
    first = digests(emulator_handle, ["float32"], ["set_tensor"], repeats=2, settings=2)
    second = digests(emulator_handle, ["float32"], ["set_tensor"], repeats=2, settings=2)
    assert compare([second])["differences"] == []
    assert len(compare([first])["differences"]) == 1
    assert len(compare([second, {}])["differences"]) == 2
