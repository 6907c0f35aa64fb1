"""Plans of tensors of about 2^31 and 2^33 elements, and elements so far apart that 32 bits do not reach: without a GPU.

`test_large.py` runs such sizes on a GPU with much memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import planning
from dnnprims.runtime.launch import KernelStep, Live, PlanSpec, Profile
from dnnprims.runtime.limits import MOST_BLOCKS

Shape = tuple[int, ...]
PROFILES = (Profile("cuda", blaslt=True), Profile("cuda"), Profile("emulator"))

#: The largest memory of a GPU that is thought of; what fits is planned, never refused.
GPU_BYTES = 2**38

#: Largest pool of maxout, whose indices are int32.
MOST_POOL = 2**31

#: What is refused before: a slope or a bias for each of so many channels, as many filter elements, and as many rows of
#: a single class.
REFUSED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "prelu_backward": lambda given: given["slope"].size >= 2**31,
    "conv_backward_bias": lambda given: given["dy"].shape[1] >= 2**31,
    "conv_backward_filter": lambda given: given["w_descriptor"].size >= 2**31,
    "conv_transpose_backward": lambda given: given["w"].size >= 2**31,
    **dict.fromkeys(
        ("loss_forward", "loss_backward", "loss_forward_backward"), lambda given: given["prediction"].shape[0] > 2**33
    ),
}

#: Shapes of two axes about 2^31 and 2^33 elements: square, and long and narrow either way.
SHAPES: tuple[Shape, ...] = (
    *((1, 2**31 - 2), (1, 2**31), (1, 2**31 + 4_100), (1, 2**33 + 6)),
    *((2**31 - 2, 1), (2**31, 1), (2**31 + 4_100, 1), (2**33 + 6, 1)),
    *((2**31 - 1, 2), (2**31 + 2, 2), (2**31 + 6, 4), (2, 2**31 - 2), (4, 2**31 + 6), (2**30 + 4, 8)),
    *((46_342, 46_342), (92_684, 92_684), (2**21 + 6, 1_024), (1_024, 2**21 + 6), (65_536, 65_538), (65_538, 131_072)),
    *((2**25 + 2, 128), (128, 2**25 + 2), (17_000, 2**19 + 2), (2**19 + 2, 17_000)),
)


def t(*shape: int, dtype: str = "float16", strides: Shape | None = None, alignment: int = 16) -> dp.TensorDescriptor:
    """Describe."""
    return dp.TensorDescriptor(shape, dtype, strides, alignment)


def calls(r: int, c: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """A call of every primitive on tensors of `r` times `c` elements, along either axis where it has one."""
    for place in (16, 2):
        x, y = t(r, c, alignment=place), t(r, c, alignment=place)
        yield dp.activation_forward, {"activation": "gelu", "x": x}
        yield dp.activation_backward, {"activation": "gelu", "dy": y, "x": x}
        yield dp.set_tensor, {"y": x, "value": 1.0}
        yield dp.scale_tensor, {"y": x, "alpha": 2.0}
        yield dp.cast, {"x": x, "dtype": "float32"}
        yield from ((dp.add_tensor, {"a": a, "c": x}) for a in (y, t(c), t(r, 1), t(1, 1)))
        for what in ("sum", "argmax"):
            yield from ((dp.reduce_tensor, {"x": x, "operation": what, "axis": axis}) for axis in (0, 1, None))
        for axis in (0, 1):
            yield dp.softmax_forward, {"x": x, "axis": axis}
            yield dp.softmax_backward, {"dy": y, "y": x, "axis": axis}
            extent, half = (r, c)[axis], (r // 2, c) if axis == 0 else (r, c // 2)
            yield dp.prelu_forward, {"x": x, "slope": t(extent), "axis": axis}
            yield dp.prelu_backward, {"dy": y, "x": x, "slope": t(extent), "axis": axis}
            if extent % 2 == 0:
                yield dp.glu_forward, {"x": x, "axis": axis}
                yield dp.glu_backward, {"dy": t(*half), "x": x, "axis": axis}
                for pool in {2, min(extent, MOST_POOL) if extent % min(extent, MOST_POOL) == 0 else 2}:
                    few = (r // pool, c) if axis == 0 else (r, c // pool)
                    which = t(*few, dtype="uint8" if pool <= 256 else "int32")
                    yield dp.maxout_forward, {"x": x, "pool_size": pool, "axis": axis}
                    yield dp.maxout_backward, {"dy": t(*few), "which": which, "pool_size": pool, "axis": axis}
        yield from losses(x, y)
        yield from products(r, c, place)
        yield from convolutions(r, c, place)
        yield from poolings(r, c, place)
        yield from norms(r, c, place)
    yield from lists(t(r, c))
    yield from strided(r, c)


def losses(x: dp.TensorDescriptor, y: dp.TensorDescriptor) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Every kind of loss in one way, the one-hot and dense ones in both."""
    labels = t(x.shape[0], dtype="int64")
    for kind in ("mse", "cosine", "cross_entropy", "nll", "kl_div"):
        for target in (labels, y) if kind == "cross_entropy" else (labels,) if kind == "nll" else (y,):
            given = {"loss": kind, "prediction": x, "target": target}
            yield dp.loss_forward, given
            yield dp.loss_backward, given
            yield dp.loss_forward_backward, given


def products(r: int, c: int, place: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Rank 8, with (r, c) elements in the result, in the input or in the weights."""
    inner = 8
    result, left, right = t(r, c, alignment=place), t(r, inner), t(c, inner)
    yield dp.fc_forward, {"x": left, "w": right, "b": t(c), "activation": "softsign"}
    yield dp.fc_forward, {"x": t(inner, c), "w": t(r, c)}
    yield dp.fc_backward, {"dy": result, "x": left, "w": right, "activation": "relu", "y": t(r, c)}
    yield dp.fc_backward_data, {"dy": result, "w": right}
    yield dp.fc_backward_weights, {"dy": result, "x": left}
    yield dp.fc_backward_bias, {"dy": result}


def convolutions(r: int, c: int, place: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """With (r, c) elements in the image and the result, by depth, along a row or in the filters."""
    deep = dp.ConvolutionDescriptor(padding=(0, 1), layout="NHWC")
    long = dp.ConvolutionDescriptor(padding=1)
    for conv, x, w, y in (
        (deep, t(1, r, 1, c, alignment=place), t(3, 1, 3, c), t(1, r, 1, 3)),
        (long, t(r, 1, c, alignment=place), t(1, 1, 3), t(r, 1, c)),
        (dp.ConvolutionDescriptor(), t(8, c, 1, 1), t(r, c, 1, 1), t(8, r, 1, 1)),
    ):
        yield dp.conv_forward, {"conv": conv, "x": x, "w": w, "activation": "softsign", "residual": y}
        yield dp.conv_backward_data, {"conv": conv, "dy": y, "w": w, "x_descriptor": x}
        yield dp.conv_backward_filter, {"conv": conv, "dy": y, "x": x, "w_descriptor": w}
        yield dp.conv_backward_bias, {"conv": conv, "dy": y}
        yield dp.conv_transpose_forward, {"conv": conv, "x": y, "w": w}
        yield dp.conv_transpose_backward, {"conv": conv, "dy": x, "x": y, "w": w}


def poolings(r: int, c: int, place: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """With (r, c) elements in the image and the result: by channels, along a row, in planes or as planes."""
    for layout, x in (
        ("NHWC", t(1, r, 1, c, alignment=place)),
        ("NCHW", t(1, r, 1, c, alignment=place)),
        ("NCHW", t(r, c, 1, 1, alignment=place)),
    ):
        for mode in ("max", "average_include_padding"):
            pooling = dp.PoolingDescriptor(mode, 3, 1, padding=1, layout=layout)
            indices = t(*x.shape, dtype="uint8") if mode == "max" else None
            yield dp.pooling_forward, {"pooling": pooling, "x": x, "with_indices": mode == "max"}
            yield dp.pooling_backward, {"pooling": pooling, "dy": x, "x_descriptor": x, "indices": indices}


def norms(r: int, c: int, place: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """One channel, a channel for each column, and a mean for each column of either layout."""
    for norm, shape in (
        (dp.BatchNormDescriptor(), (r, 1, c)),
        (dp.BatchNormDescriptor(layout="NHWC"), (r, c)),
        (dp.BatchNormDescriptor(mode="per_activation"), (r, c)),
        (dp.BatchNormDescriptor(), (1, r, c)),
    ):
        per_image = shape[1:] if norm.mode == "per_activation" else shape[-1:] if norm.channels_last else shape[1:2]
        x, of_channel = t(*shape, alignment=place), t(*per_image, dtype="float32")
        scale = {"gamma": of_channel, "beta": of_channel}
        running = {"running_mean": of_channel, "running_variance": of_channel}
        yield dp.batchnorm_forward_training, {"norm": norm, "x": x, **scale, **running, "activation": "relu"}
        yield dp.batchnorm_forward_inference, {"norm": norm, "x": x, **scale, **running}
        kept = {"mean": of_channel, "rstd": of_channel, "activation": "relu"}
        yield dp.batchnorm_backward, {"norm": norm, "dy": x, "x": x, **scale, **kept}


def lists(x: dp.TensorDescriptor) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Optimizers and gradient operations on one huge and one small tensor."""
    both, states = [x, t(5)], [t(*x.shape, dtype="float32"), t(5, dtype="float32")]
    yield dp.sgd_update, {"weights": both, "gradients": both, "velocities": states, "lr": 0.1, "momentum": 0.9}
    for op in (dp.adam_update, dp.adamw_update):
        moments = {"first_moments": states, "second_moments": states}
        yield op, {"weights": both, "gradients": both, **moments, "lr": 0.1, "step": 1}
    yield dp.global_norm, {"arrays": both}
    yield dp.clip_by_global_norm, {"arrays": both, "max_norm": 1.0}
    yield dp.scale_and_check_finite, {"arrays": both, "scale": 0.5, "found_inf": t(dtype="int32")}


def strided(r: int, c: int) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """With gaps, transposed, and backwards: what takes strided views."""
    for x in (t(r, c, strides=(2 * c, 2)), t(r, c, strides=(1, r)), t(r, c, strides=(-c, -1))):
        yield dp.activation_forward, {"activation": "abs", "x": x}
        yield dp.cast, {"x": x, "dtype": "bfloat16"}
        yield dp.set_tensor, {"y": x, "value": 1.0}
        yield dp.scale_tensor, {"y": x, "alpha": 2.0}
        yield dp.add_tensor, {"a": x, "c": t(r, c)}
        yield dp.reduce_tensor, {"x": x, "operation": "max", "axis": 0}


def operand_bytes(arguments: dict[str, Any]) -> int:
    """Bytes of all operands."""
    flat = [item for value in arguments.values() for item in (value if isinstance(value, list) else [value])]
    return sum(item.nbytes for item in flat if isinstance(item, dp.TensorDescriptor))


def require_in_range(spec: PlanSpec) -> None:
    """Grids can be launched; each number fits its type, as the packing of the struct itself tells."""
    for step in spec.steps:
        if isinstance(step, KernelStep):
            assert all(0 < n <= most for n, most in zip(step.grid, MOST_BLOCKS, strict=True)), step
            constants = [0 if isinstance(s, Live) else s for s in step.scalars]
            struct.pack(step.kernel.struct.codes(step.dtype), *[0] * len(step.pointers), *constants)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plans_of_huge_tensors(shape: Shape) -> None:
    """What fits a GPU is planned by some variant, with grids and numbers that are in range."""
    for profile in PROFILES:
        for op, arguments in calls(*shape):
            known = REFUSED.get(op.__name__, lambda given: False)(arguments)
            if not known and operand_bytes(arguments) <= GPU_BYTES:
                require_in_range(planning._specify(op, profile, (), arguments))
                continue
            try:
                require_in_range(planning._specify(op, profile, (), arguments))
            except dp.NotSupportedError:
                continue  # what does not fit a GPU may be refused


def test_every_primitive_is_planned() -> None:
    """A new one is noticed here."""
    assert {op.__name__ for op, _ in calls(2, 2)} == {op.__name__ for op in dp.PRIMITIVES}


# -- few elements, far apart ------------------------------------------------------------------------------------------

#: Steps that 32 bits do not hold in elements, nor in bytes.
FAR, NEARER = 2**31 + 3, 2**29 + 5


def far_apart(values: np.ndarray) -> np.ndarray:
    """The values in memory that is only promised: 3 rows of 4, 14 GB from the first to the last, 12 pages touched."""
    rows, cols = values.shape
    nbytes = ((rows - 1) * FAR + (cols - 1) * NEARER + 1) * values.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    room = np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), values.dtype)
    steps = (FAR * values.itemsize, NEARER * values.itemsize)
    view: np.ndarray = np.lib.stride_tricks.as_strided(room, values.shape, steps)
    view[...] = values
    return view


VALUES = (np.arange(12).reshape(3, 4) - 5).astype(np.float16)


def test_reads_far_apart(emulator_handle: dp.Handle) -> None:
    """Elementwise and reduced, along either axis."""
    x = far_apart(VALUES)
    np.testing.assert_array_equal(dp.activation_forward(emulator_handle, "abs", x), np.abs(VALUES))
    np.testing.assert_array_equal(dp.activation_backward(emulator_handle, "relu", x, x=x), np.maximum(VALUES, 0))
    np.testing.assert_array_equal(dp.cast(emulator_handle, x, "float32"), VALUES)
    for axis in (0, 1, None):
        np.testing.assert_array_equal(dp.reduce_tensor(emulator_handle, x, "sum", axis=axis), VALUES.sum(axis=axis))


def test_writes_far_apart(emulator_handle: dp.Handle) -> None:
    """Each element to its place, and read back from there."""
    y = far_apart(VALUES)
    dp.scale_tensor(emulator_handle, y, 2.0)
    np.testing.assert_array_equal(y, 2 * VALUES)
    dp.add_tensor(emulator_handle, far_apart(VALUES), y, alpha=-1.0)
    np.testing.assert_array_equal(y, VALUES)
    dp.activation_forward(emulator_handle, "abs", VALUES, out=y)
    np.testing.assert_array_equal(y, np.abs(VALUES))
    dp.cast(emulator_handle, VALUES, "float16", out=y)
    np.testing.assert_array_equal(y, VALUES)
    dp.set_tensor(emulator_handle, y, 3.0)
    assert (y == 3).all()
