"""Convolutions of images: forward, bare and with all that it fuses, and the gradients in data, filters and bias.

A line has the settings of the conformance cases: ``shape=256x64x56x56 k=64 filter=3x3 stride=1 padding=1 layout=NHWC``
with the extents of the image always as n, c, h, w. Entries of a set give layers of square images and filters that keep
their extents but for the stride, ``[c, h, k, r, stride]``, or DeepBench's rows,
``[w, h, c, n, k, s, r, pad_w, pad_h, stride_w, stride_h]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, show
from . import Family, itemsize
from .convolution_parts import Layer, bias_parts, data_parts, filter_parts, forward_parts

#: Direction of an entry -> primitive and what the line says besides.
DIRECTIONS = {
    "forward": "conv_forward bias=0",
    "fused": "conv_forward bias=1 residual=1 activation=relu",
    "data": "conv_backward_data",
    "filter": "conv_backward_filter",
    "bias": "conv_backward_bias",
}
BARE = ("forward", "data", "filter")
#: Most channels, filters and extents of the conformance problem, beside what keeps the alignment.
SMALL_CHANNELS, SMALL_EXTENT = 32, 9


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """Every layer at every batch in every direction; ``math`` is of float32."""
    for dtype in [dtype for dtype in dtypes if dtype in shapes.get("dtypes", dtypes)]:
        maths = shapes.get("math", ("ieee", "tf32")) if dtype == "float32" else ("ieee",)
        for layer in _layers(shapes):
            for direction in shapes.get("directions", BARE):
                op, *rest = DIRECTIONS[direction].split(" ")
                words = " ".join([op, layer, f"layout={shapes.get('layout', 'NHWC')}", *rest, f"dtype={dtype}"])
                yield from (words if math == "ieee" else f"{words} math={math}" for math in maths)


def _layers(shapes: Mapping[str, Any]) -> Iterator[str]:
    for n in shapes.get("batches", ()):
        for c, h, k, r, stride in shapes.get("layers", ()):
            # As many groups as there are filters: depthwise, where k is 0.
            filters = f"k={k}" if k else f"k={c} groups={c}"
            yield f"shape={n}x{c}x{h}x{h} {filters} filter={r}x{r} stride={stride} padding={r // 2}"
    for w, h, c, n, k, s, r, pad_w, pad_h, stride_w, stride_h in shapes.get("deepbench", ()):
        yield f"shape={n}x{c}x{h}x{w} k={k} filter={r}x{s} stride={stride_h}x{stride_w} padding={pad_h}x{pad_w}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Bare, or with bias, residual and activation."""
    layer = Layer.of(problem)
    operands, mode = {"x": _x(layer, arrays), "w": _w(layer, arrays)}, problem.word("activation")
    if problem.integer("bias", 1):
        operands["b"] = arrays.normal(layer.filters, layer.dtype, tag="b")
    if problem.integer("residual"):
        operands["residual"] = arrays.normal(layer.y, layer.dtype, tag="residual")
    options = {"conv": layer.conv, **({"activation": dp.ActivationDescriptor(mode)} if mode else {})}
    made = _case(problem, layer, operands, options, arrays.result(layer.y, layer.dtype))
    made.parts, made.terms = forward_parts(layer, [name for name in operands if name not in "xw"]), layer.taps
    made.nbytes += sum(operands[name].nbytes for name in ("b", "residual") if name in operands)
    return made


def make_data(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The gradient in the image, all of which is written."""
    layer = Layer.of(problem)
    operands = {"dy": _dy(layer, arrays), "w": _w(layer, arrays)}
    options = {"conv": layer.conv, "x_descriptor": dp.TensorDescriptor(layer.x, layer.dtype)}
    made = _case(problem, layer, operands, options, arrays.result(layer.x, layer.dtype))
    made.nbytes += made.results["out"].nbytes - layer.touched * itemsize(layer.dtype)
    made.parts, made.terms = data_parts(layer), layer.taps * layer.filters // layer.channels
    return made


def make_filter(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The gradient in the filters."""
    layer = Layer.of(problem)
    operands = {"dy": _dy(layer, arrays), "x": _x(layer, arrays)}
    options = {"conv": layer.conv, "w_descriptor": dp.TensorDescriptor(layer.w, layer.dtype)}
    made = _case(problem, layer, operands, options, arrays.result(layer.w, layer.dtype))
    made.parts, made.terms = filter_parts(layer, operands["dy"], operands["x"], arrays.host), layer.positions
    return made


def make_bias(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The gradient in the bias: one read of dy."""
    layer = Layer.of(problem)
    dy = _dy(layer, arrays)
    made = _case(problem, layer, {"dy": dy}, {"conv": layer.conv}, arrays.result(layer.filters, layer.dtype))
    made.parts, made.terms = bias_parts(layer, dy, arrays.host), layer.positions
    made.nbytes, made.flops = dy.nbytes, dy.size
    return made


def _case(problem: Problem, layer: Layer, operands: dict[str, Any], options: dict[str, Any], out: Any) -> Case:
    return Case(
        problem,
        operands,
        options,
        {"out": out},
        (),
        small(problem),
        nbytes=itemsize(layer.dtype) * layer.elements,
        flops=layer.flops,
    )


def _x(layer: Layer, arrays: Arrays) -> Any:
    return arrays.normal(layer.x, layer.dtype, tag="x")


def _w(layer: Layer, arrays: Arrays) -> Any:
    return arrays.normal(layer.w, layer.dtype, scale=layer.taps**-0.5, tag="w")


def _dy(layer: Layer, arrays: Arrays) -> Any:
    return arrays.normal(layer.y, layer.dtype, tag="dy")


def small(problem: Problem) -> str:
    """A conformance problem with the filter, the options and the alignment of a line, on little images."""
    given = dict(problem.settings)
    n, c, h, w = problem.extents()
    groups, k = int(given.get("groups", 1)), int(given["k"])
    least = problem.extents("filter")
    extents = [min(n, 2), *(min(size, SMALL_EXTENT + r) for size, r in zip((h, w), least, strict=True))]
    few_c, few_k = (min(count, SMALL_CHANNELS + count % 8) for count in (c, k))
    if groups == c == k:
        few_c = few_k = groups = min(c, SMALL_CHANNELS)
    elif groups > 1:
        few_c, few_k = c, k
    given |= {"shape": show((extents[0], few_c, *extents[1:])), "k": str(few_k), "into": "out"}
    given |= {"groups": str(groups)} if groups > 1 else {}
    words = [f"{name}={value}" for name, value in given.items() if name not in ("dtype", "math", "seed")]
    return " ".join([problem.op, *words])


FAMILY = Family(
    "convolution",
    lines,
    {
        "conv_forward": make_forward,
        "conv_backward_data": make_data,
        "conv_backward_filter": make_filter,
        "conv_backward_bias": make_bias,
    },
)
