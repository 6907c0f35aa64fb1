"""Pooling over images, forward, with and without indices, and backward, in both layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.pooling import shapes_of

from ..arrays import Arrays
from ..case import Case, Part, ends, show
from . import Family

SAMPLE_IMAGES = 1
#: Images and channels of the small problem that a case is checked by.
CHECKED = (3, 16)


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`images` are [n, c, h, w], `windows` [window, stride, padding]; `modes` as in the conformance cases."""
    for dtype in dtypes:
        for image in shapes["images"]:
            for window, stride, padding in shapes["windows"]:
                for mode in shapes["modes"]:
                    for layout in ("NHWC", "NCHW"):
                        words = f"shape={show(image)} mode={mode} window={window} stride={stride} padding={padding}"
                        words += f" layout={layout}"
                        if mode == "max":
                            yield f"pooling_forward {words} indices=1 dtype={dtype}"
                        yield f"pooling_forward {words} dtype={dtype}"
                        yield f"pooling_backward {words} dtype={dtype}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x, writes y and a byte for each of its elements where indices are wanted."""
    pooling, image, pooled = shapes_of(problem)
    wanted = problem.integer("indices") == 1
    x = arrays.normal(image, problem.dtype, tag="x")
    results = {"out": arrays.result(pooled, problem.dtype)}
    if wanted:
        results["indices"] = arrays.result(pooled, "uint8", tag="indices")
    return Case(
        problem,
        {"x": x},
        {"pooling": pooling, **({"with_indices": True} if wanted else {})},
        results,
        [Part(dict.fromkeys(("x", *results), at)) for at in _pieces(image[0])],
        f"pooling_forward {_small(problem)} indices={int(wanted)}",
        nbytes=x.nbytes + sum(a.nbytes for a in results.values()),
        flops=prod(pooled) * pooling.taps(2),
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads dy and the indices, writes dx."""
    pooling, image, pooled = shapes_of(problem)
    x, dy = arrays.normal(image, problem.dtype, tag="x"), arrays.normal(pooled, problem.dtype, tag="dy")
    operands = {"dy": dy}
    if pooling.mode == "max":
        y, chosen = arrays.result(pooled, problem.dtype, tag="y"), arrays.result(pooled, "uint8", tag="chosen")
        dp.pooling_forward(handle, pooling, x, out=y, indices=chosen)
        operands["indices"] = chosen
    dx = arrays.result(image, problem.dtype, tag="dx")
    described = {
        length: {"x_descriptor": dp.TensorDescriptor((length, *image[1:]), problem.dtype)}
        for length in (image[0], SAMPLE_IMAGES)
    }
    length = SAMPLE_IMAGES if image[0] > 2 * SAMPLE_IMAGES else image[0]
    return Case(
        problem,
        operands,
        {"pooling": pooling, **described[image[0]]},
        {"out": dx},
        [Part(dict.fromkeys((*operands, "out"), at), described[length]) for at in _pieces(image[0])],
        f"pooling_backward {_small(problem)}",
        nbytes=dx.nbytes + sum(a.nbytes for a in operands.values()),
        flops=prod(pooled) * pooling.taps(2),
        extra={"x": x},
    )


def _pieces(images: int) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(images, SAMPLE_IMAGES)]


def _small(problem: Problem) -> str:
    """The same planes, but fewer."""
    images, channels, *plane = problem.extents()
    few = (min(images, CHECKED[0]), min(channels, CHECKED[1]), *plane)
    kept = [f"{name}={problem.word(name)}" for name in ("mode", "window", "stride", "padding", "layout")]
    return f"shape={show(few)} {' '.join(kept)} data=lopsided into=out"


FAMILY = Family("pooling", lines, {"pooling_forward": make_forward, "pooling_backward": make_backward})
