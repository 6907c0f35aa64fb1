"""Host time of a call: wall time over many calls on little arrays, all callers in one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import dnnprims as dp

from .arrays import Arrays
from .clock import WallClock

ELEMENTS = 1024
#: Images and filters, channels last, so small that the device keeps up with the host.
IMAGE, FILTERS = (1, 4, 4, 16), (16, 1, 1, 16)
CALLS = {True: 20_000, False: 20}


def host_records(handle: dp.Handle, arrays: Arrays, clock: WallClock) -> Iterator[dict[str, Any]]:
    """Microseconds of each call, ours and, where torch is loaded, torch's of the same kind."""
    calls = _ours(handle, arrays)
    if "torch" in sys.modules:
        calls |= _torch(arrays)
    for name, micros in clock.per_call(calls, CALLS[clock.on_gpu]).items():
        yield {"name": f"host.{name}", "us": round(micros, 2)}


def _ours(handle: dp.Handle, arrays: Arrays) -> dict[str, Callable[[], Any]]:
    x, y = arrays.normal(ELEMENTS, "float32", tag="x"), arrays.result(ELEMENTS, "float32")
    rows, w = arrays.normal((16, 64), "float32", tag="x"), arrays.normal((64, 64), "float32", tag="w")
    b, z = arrays.normal(64, "float32", tag="b"), arrays.result((16, 64), "float32")
    plan = dp.prepare(dp.activation_forward, handle, "sigmoid", x, out=y)
    layer = dp.prepare(dp.fc_forward, handle, rows, w, b, activation="relu", out=z)
    image, filters = arrays.normal(IMAGE, "bfloat16", tag="x"), arrays.normal(FILTERS, "bfloat16", tag="w")
    conv, maps = dp.ConvolutionDescriptor(layout="NHWC"), arrays.result(IMAGE, "bfloat16")
    convolve = dp.prepare(dp.conv_forward, handle, conv, image, filters, out=maps)
    return {
        "activation_forward(out=)": lambda: dp.activation_forward(handle, "sigmoid", x, out=y),
        "activation_forward": lambda: dp.activation_forward(handle, "relu", x),
        "plan(x, out=y)": lambda: plan(x, out=y),
        "fc_forward(out=)": lambda: dp.fc_forward(handle, rows, w, b, activation="relu", out=z),
        "plan(x, w, b, out=y) of fc_forward": lambda: layer(rows, w, b, out=z),
        "conv_forward(out=)": lambda: dp.conv_forward(handle, conv, image, filters, out=maps),
        "plan(x, w, out=y) of conv_forward": lambda: convolve(image, filters, out=maps),
    }


def _torch(arrays: Arrays) -> dict[str, Callable[[], Any]]:
    import torch
    from torch.nn import functional

    x = arrays.torch(arrays.normal(ELEMENTS, "float32", tag="x"))
    rows, w = (
        arrays.torch(arrays.normal(shape, "float32", tag=tag)) for shape, tag in (((16, 64), "x"), ((64, 64), "w"))
    )
    b, y = arrays.torch(arrays.normal(64, "float32", tag="b")), torch.empty_like(x)
    torch.backends.cudnn.benchmark = True
    image, filters = (
        arrays.torch(arrays.normal(shape, "bfloat16", tag=tag)).permute(0, 3, 1, 2)
        for shape, tag in ((IMAGE, "x"), (FILTERS, "w"))
    )
    return {
        "torch.sigmoid(out=)": lambda: torch.sigmoid(x, out=y),
        "torch.relu": lambda: torch.relu(x),
        "torch linear + relu": lambda: torch.relu(functional.linear(rows, w, b)),
        "torch._addmm_activation": lambda: torch._addmm_activation(b, rows, w.t()),
        "torch.conv2d": lambda: torch.conv2d(image, filters),
    }
