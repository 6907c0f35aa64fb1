"""Launches that overlap the kernel in front: what the driver is given, by a function in its place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dnnprims.dtypes import BY_NAME
from dnnprims.runtime import early
from dnnprims.runtime.launch import Kernel, KernelStep, Struct

STEP = KernelStep(
    Kernel("planted", "fill", Struct("FillParams", ("y",))),
    BY_NAME["float32"],
    (),
    "all",
    (7, 8, 9),
    96,
    (0,),
    (),
    4096,
)
Launch = Callable[[int, int, int, int], int]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the driver was asked to launch."""
    asked: list[dict[str, Any]] = []

    def launch(configuration: int, function: int, parameters: int, extra: int | None) -> int:
        given = early._Configuration.from_address(configuration)
        attributes = (early._Attribute * given.count).from_address(given.attributes)
        asked.append(
            {
                "grid": tuple(given.grid),
                "block": tuple(given.block),
                "shared": given.shared_bytes,
                "stream": given.stream,
                "attributes": tuple((one.kind, *one.value[:2]) for one in attributes),
                "rest": (function, parameters, extra),
            }
        )
        return 0

    pointer = ctypes.c_void_p
    function = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer, pointer)(launch)
    monkeypatch.setattr(early, "_function", lambda: function)
    return asked


def test_sizes_are_the_drivers() -> None:
    """Of ``CUlaunchAttribute`` and ``CUlaunchConfig`` in cuda.h, on any platform of 64 bits."""
    assert ctypes.sizeof(early._Attribute) == 72
    assert ctypes.sizeof(early._Configuration) == 56
    assert early._Configuration.stream.offset == 32


def test_a_launch_is_given_everything(driver: list[dict[str, Any]]) -> None:
    launcher = early.early_launcher(12345, STEP, 67890)
    assert launcher is not None
    for stream in (0, 5, 5, 6, 0):
        assert launcher.on(stream)() == 0
    assert [one["stream"] for one in driver] == [None, 5, 5, 6, None]
    assert {tuple((k, v) for k, v in one.items() if k != "stream") for one in driver} == {
        (
            ("grid", (7, 8, 9)),
            ("block", (96, 1, 1)),
            ("shared", 4096),
            ("attributes", ((early.STREAM_SERIALIZATION, 1, 0),)),
            ("rest", (12345, 67890, None)),
        )
    }


def test_blocks_of_a_cluster_lie_along_x(driver: list[dict[str, Any]]) -> None:
    """Three numbers of 32 bits."""
    launcher = early.early_launcher(12345, replace(STEP, cluster=7), 67890)
    assert launcher is not None
    assert launcher.launch() == 0
    assert driver[0]["attributes"][1:] == ((early.CLUSTER_DIMENSION, 7 | 1 << 32, 1),)


def test_a_driver_without_it_is_told_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "_function", lambda: None)
    assert early.early_launcher(1, STEP, 2) is None
