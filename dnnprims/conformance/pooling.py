"""Cases of pooling: maxima are moved, so that nothing but a blend may err; means and gradients are sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..descriptors import PoolingDescriptor, TensorDescriptor
from ..reference import pooling as reference
from .bounds import exact, exact_where, grid, lowest_bit, scaled_unit, sum_error
from .calls import Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .convolution.operands import laid_out, read_axes
from .drawing import draw_placing, old_out, pick, sample, show

_MODES = {"max": "max", "exclude": "average_exclude_padding", "include": "average_include_padding"}


def _pooling(problem: Problem) -> PoolingDescriptor:
    window = read_axes(problem.word("window", "2"))
    stride = read_axes(problem.word("stride")) if problem.word("stride") else None
    padding, layout = read_axes(problem.word("padding", "0")), problem.word("layout", "NCHW")
    return PoolingDescriptor(_MODES[problem.word("mode", "max")], window, stride, padding, layout)


def shapes_of(problem: Problem) -> tuple[PoolingDescriptor, tuple[int, ...], tuple[int, ...]]:
    """The pooling and the shapes of image and result; `shape` is (n, c, ...) in every layout."""
    pooling, (batch, channels, *image) = _pooling(problem), problem.extents()
    y = (batch, channels, *reference.output_extents(pooling, image))
    return pooling, laid_out(pooling, (batch, channels, *image)), laid_out(pooling, y)


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """Small integers make ties, of which the first must win."""
    pooling, x, y = shapes_of(problem)
    wanted = {"with_indices": True} if problem.integer("indices") else {}
    return {"pooling": pooling, "x": sample(problem, rng, x), **wanted, **problem.scaling(), **old_out(problem, rng, y)}


def _y_shape(given: Arguments) -> tuple[int, ...]:
    pooling, shape = given["pooling"], given["x"].shape
    outer, *rest = shape
    channels, *image = (rest[-1], *rest[:-1]) if pooling.channels_last else rest
    return laid_out(pooling, (outer, channels, *reference.output_extents(pooling, image)))


def _into_windows(given: Arguments) -> dict[str, Destination]:
    shape, pooling = _y_shape(given), given["pooling"]
    places = {"out": given.destination("out", shape, given["x"].dtype.name)}
    if given["with_indices"]:
        kind = "uint8" if pooling.taps(len(shape) - 2) <= 256 else "int32"
        places["indices"] = Destination(shape, kind)
    return places


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A maximum is moved, its index is right; a mean is a sum, times a reciprocal."""
    pooling, x, dtype = given["pooling"], wide(given["x"]), given["x"].dtype.name
    target = _into_windows(given)["out"]
    plain = reference.pooling_forward(pooling, x)
    if pooling.mode == "max":
        right = given.exactly(target, expected[0], plain, lowest_bit(plain))
        return [exact_where(right, given.blended(target, expected[0])), *map(exact, expected[1:])]
    absolute, counts = reference.pooling_forward(pooling, np.abs(x)), _counts(pooling, x.shape)
    error = sum_error(pooling.taps(x.ndim - 2), absolute, dtype) + scaled_unit(dtype, 2.0) * np.abs(plain)
    right = given.exactly(target, expected[0], absolute, np.where(_whole(counts), grid(x) / counts, 0.0))
    return [exact_where(right, given.blended(target, expected[0], error))]


def _counts(pooling: Any, x_shape: tuple[int, ...]) -> Array:
    """What the means divide by, as an array that goes with y."""
    image = x_shape[1:-1] if pooling.channels_last else x_shape[2:]
    counts = reference.counts(pooling, image)
    return counts[..., None] if pooling.channels_last else counts


def _whole(counts: Array) -> Array:
    """Whether the reciprocal is exact."""
    return np.asarray(np.frexp(counts)[0] == 0.5)


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """Each index is any tap of its window, in the padding now and then."""
    pooling, x, y = shapes_of(problem)
    arguments = {"pooling": pooling, "dy": sample(problem, rng, y), "x_descriptor": TensorDescriptor(x, problem.dtype)}
    taps = pooling.taps(len(x) - 2)
    if pooling.mode == "max":
        chosen = rng.integers(0, taps, y)
        arguments["indices"] = chosen.astype(np.uint8 if taps <= 256 else np.int32)
    return {**arguments, **problem.scaling(), **old_out(problem, rng, x)}


def _into_image(given: Arguments) -> dict[str, Destination]:
    return {"out": given.destination("out", given["x_descriptor"].shape, given["dy"].dtype.name)}


@dataclass(frozen=True)
class _Shaped:
    """Stands for a descriptor."""

    shape: tuple[int, ...]


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Sums over the windows that an element lies in, of a mean's gradients times a reciprocal."""
    pooling, dy, target = given["pooling"], wide(given["dy"]), _into_image(given)["out"]
    shape, dtype = given["x_descriptor"].shape, target.dtype
    options = {"x_descriptor": _Shaped(shape), "indices": given["indices"]}
    absolute = reference.pooling_backward(pooling, np.abs(dy), **options)
    axes = len(shape) - 2
    terms = int(np.prod([-(-w // s) for w, s in zip(pooling.windows(axes), pooling.strides(axes), strict=True)]))
    error, step = sum_error(terms, absolute, dtype), grid(dy)
    if pooling.mode != "max":
        counts = _counts(pooling, shape)
        error = error + scaled_unit(dtype, 2.0) * absolute
        step = step / float(counts.max(initial=1.0)) if _whole(counts).all() else 0.0
    right = given.exactly(target, expected[0], absolute, step)
    return [exact_where(right, given.blended(target, expected[0], error))]


def draw(rng: Generator) -> str:
    """A random problem of one to three spatial axes."""
    axes = int(rng.integers(1, 4))
    image, words = [], {"window": "", "stride": "", "padding": ""}
    for i in range(axes):
        window = int(rng.integers(1, 5))
        before, after = (int(rng.integers(0, window)) for _ in range(2))
        least = max(1, window - before - after)
        image.append(int(rng.integers(least, (30, 12, 6)[axes - 1] + 1)))
        for name, item in (("window", window), ("stride", rng.integers(1, 4)), ("padding", f"{before}-{after}")):
            words[name] += f"{'x' if i else ''}{item}"
    channels = int(rng.choice([1, 2, 3, 5, 8, 16]))
    mode, way = pick(rng, "max", "max", *_MODES), pick(rng, "forward", "backward")
    line = f"pooling_{way} shape={show((int(rng.integers(0, 4)), channels, *image))} mode={mode} "
    line += " ".join(f"{name}={word}" for name, word in words.items()) + f" layout={pick(rng, 'NCHW', 'NHWC')}"
    if way == "forward":
        indices = int(rng.integers(2)) if mode == "max" else 0
        return f"{line} indices={indices} data={pick(rng, 'normal', 'integers')} {draw_placing(rng, in_place=False)}"
    if mode == "max":
        return f"{line} data=integers beta=1.0 place={pick(rng, 'plain', 'offset')} into=out"
    return f"{line} {draw_placing(rng, in_place=False)}"


#: Kinds of problem that both directions have.
_PROBLEMS = (
    "shape=0x3x4x4 window=2",
    "shape=1x1x1x1 window=1",
    "shape=2x3x9x10 window=2",  # windows with a kernel of their own
    "shape=2x3x9x10 window=3 stride=2 padding=1",
    "shape=2x3x9x16 window=2",  # in packs of a row
    "shape=2x3x9x16 window=3 stride=2 padding=1",
    "shape=2x3x8x32 window=3 stride=2 padding=1-0x1-0",
    "shape=2x16x9x10 window=2 layout=NHWC",
    "shape=2x16x9x10 window=3 stride=2 padding=1 layout=NHWC",
    "shape=2x16x9x7 window=3 stride=1 padding=1 layout=NHWC",
    "shape=3x5x8x7 window=3 stride=1 padding=1",
    "shape=2x16x7x6 window=3x2 stride=2x3 padding=1-2x1-0 layout=NHWC",  # any other
    "shape=2x3x7x6 window=3x2 stride=2x3 padding=1-2x1-0",
    "shape=40x9x7x7 window=5 stride=5",  # whole planes, several in a block
    "shape=40x9x7x7 window=7",  # whole images
    "shape=3x16x7x7 window=7 layout=NHWC",
    "shape=2x3x23x24 window=23x24",
    "shape=1x2x90x150 window=3 stride=2 padding=1",  # rows of a plane, several blocks each
    "shape=2x5x9x10 window=2 layout=NHWC",  # channels that are no packs
    "shape=2x3x9x10 window=3 stride=2 padding=1 place=offset",
    "shape=2x16x9x10 window=2 place=offset layout=NHWC",
    "shape=2x3x6x7 window=2 place=strided",
    "shape=2x3x6x7 window=3 stride=2 padding=1 layout=NHWC place=strided",
    "shape=3x4x21 window=4 stride=3 padding=2-0",
    "shape=3x8x21 window=3 stride=2 padding=1 layout=NHWC",
    "shape=2x2x4x5x6 window=2x3x2 stride=1x2x2 padding=1x0x1-0",
    "shape=2x4x4x5x6 window=2 layout=NHWC",
    "shape=2x3x7x9 window=2x3 stride=4x5",  # gaps between windows
    "shape=2x8x7x9 window=2x3 stride=4x5 layout=NHWC",
)


def _corners() -> tuple[str, ...]:
    lines = []
    for problem in _PROBLEMS:
        for mode in _MODES:
            indices = "indices=1" if mode == "max" else ""
            lines.append(f"pooling_forward {problem} mode={mode} {indices} data=integers into=out")
            lines.append(f"pooling_backward {problem} mode={mode} data=integers beta=1.0 into=out")
        lines += [f"pooling_backward {problem} mode={mode} into=out" for mode in ("max", "exclude")]
    image = "shape=2x8x10x11 window=3 stride=2 padding=1"
    for layout in ("NCHW", "NHWC"):
        for mode in _MODES:
            lines += [
                f"pooling_forward {image} layout={layout} mode={mode}",
                f"pooling_forward {image} layout={layout} mode={mode} alpha=0.5 beta=-1.25 into=out",
                f"pooling_backward {image} layout={layout} mode={mode}",
                f"pooling_backward {image} layout={layout} mode={mode} alpha=0.5 beta=2.0 into=out",
            ]
        lines.append(f"pooling_forward {image} layout={layout} indices=1 data=special into=out")
    lines += [
        "pooling_forward shape=1x1x16x17 window=16 indices=1 data=integers",  # the last index that uint8 holds
        "pooling_forward shape=1x1x17x17 window=17x16 indices=1 into=out",  # and the first that it does not
        "pooling_backward shape=1x2x17x17 window=17x16 data=integers beta=1.0 into=out",
    ]
    return tuple(lines)


FAMILY = CaseFamily(
    "pooling",
    reference,
    {
        "pooling_forward": Primitive(_draw_forward, _bound_forward, _into_windows),
        "pooling_backward": Primitive(_draw_backward, _bound_backward, _into_image),
    },
    _corners(),
    draw,
)
