"""All ways of doing a call: which there are, why the others do not take it, and how long each takes."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import HAS_COMPILER, HAS_GPU
from test_tuning import FakeTrial, described

import dnnprims as dp
from dnnprims import finding
from dnnprims.alternatives import ALTERNATIVES
from dnnprims.runtime.launch import Profile

CONV = dp.ConvolutionDescriptor(padding=1, layout="NHWC")
IMAGES, FILTERS = described((2, 6, 6, 8), (16, 3, 3, 8))


def test_variants_are_listed_without_a_device() -> None:
    first, *others = dp.variants(dp.conv_forward, CONV, IMAGES, FILTERS)
    assert first
    assert first.variant == dp.supports(dp.conv_forward, CONV, IMAGES, FILTERS).variant
    assert {first.variant, *(other.variant for other in others)} == set(ALTERNATIVES["conv_forward"])
    assert all(bool(other) != bool(other.reason) for other in others)


def test_a_variant_says_why_it_does_not_take_a_call() -> None:
    x, w = described((64, 24), (16, 24), dtype="float64")
    profile = Profile("cuda", blaslt=True, tensor_maps=True)
    listed = {way.variant: way.reason for way in dp.variants(dp.fc_forward, x, w, activation="tanh", profile=profile)}
    assert listed["lt_then_pass"] == ""
    assert "no epilogue for tanh" in listed["lt_epilogue"]
    assert "float64" in listed["ping_pong"]


def test_a_primitive_with_one_way_lists_it() -> None:
    (only,) = dp.variants(dp.maxout_forward, described((4, 8))[0], 2)
    assert only


def test_refusals_are_the_primitives_own() -> None:
    with pytest.raises(dp.BadParamError, match="conv_forward: w"):
        dp.variants(dp.conv_forward, CONV, IMAGES, described((16, 3, 3, 7))[0])


def test_only_a_gpu_has_times() -> None:
    with dp.create_handle("numpy") as handle, pytest.raises(dp.NotSupportedError, match=r"find: .*a CUDA handle"):
        handle.find(dp.conv_forward, CONV, IMAGES, FILTERS)


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_ways_come_by_time_and_those_refused_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the emulator's memory and a clock that has the later one faster."""
    monkeypatch.setattr(finding, "require_gpu", lambda function, handle: handle._executor)
    monkeypatch.setattr(
        finding, "DeviceTrial", lambda executor, runs, *_: FakeTrial([9e-6 - 1e-6 * i for i in range(len(runs))])
    )
    with dp.create_handle("emulator") as handle:
        found = handle.find(dp.conv_forward, CONV, IMAGES, FILTERS)
        plan = dp.prepare(dp.conv_forward, handle, CONV, IMAGES, FILTERS)
    assert [one.microseconds for one in found] == sorted(one.microseconds for one in found)
    assert [one.variant for one in found if one.default] == [plan.variant]
    assert {one.variant for one in found} == set(ALTERNATIVES["conv_forward"])
    assert all((one.microseconds < float("inf")) == bool(one) for one in found)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("strided", [False, True])
def test_found_and_tuned_on_a_gpu(strided: bool) -> None:
    """The fastest way is taken after tuning, also of views whose steps leave gaps."""
    images: Any = IMAGES
    if strided:
        images = dp.TensorDescriptor((2, 6, 6, 8), "bfloat16", (6 * 6 * 16, 6 * 16, 16, 1))
    with dp.create_handle("cuda") as handle:
        found = handle.find(dp.conv_forward, CONV, images, FILTERS)
        best, *_ = found
        assert best
        assert 0.0 < best.microseconds < 1e5
        handle.tune(dp.conv_forward, CONV, images, FILTERS, other_bits=True)
        taken = dp.prepare(dp.conv_forward, handle, CONV, images, FILTERS).variant
        times = {one.variant: one.microseconds for one in found}
        assert times[taken] <= 1.5 * best.microseconds
