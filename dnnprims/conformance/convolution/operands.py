"""Operands of convolutions, drawn: extents are those of (n, c, ...) and (k, c, ...) in every layout."""

from __future__ import annotations

from typing import Any

from ...descriptors import ActivationDescriptor, ConvolutionDescriptor, PoolingDescriptor, TensorDescriptor
from ...reference import convolution as reference
from ..calls import Generator
from ..cases import Problem
from ..drawing import old_out, sample

Shape = tuple[int, ...]


def read_axes(word: str) -> Any:
    """A number for all axes, ``2``; one for each, ``2x1``; pairs of before and after, ``0-1x2``."""
    items = [tuple(map(int, item.split("-"))) if "-" in item else int(item) for item in word.split("x")]
    return items[0] if len(items) == 1 and isinstance(items[0], int) else tuple(items)


def read_convolution(problem: Problem) -> ConvolutionDescriptor:
    """The descriptor that the settings of a problem stand for."""
    return ConvolutionDescriptor(
        read_axes(problem.word("padding", "0")),
        read_axes(problem.word("stride", "1")),
        read_axes(problem.word("dilation", "1")),
        problem.integer("groups", 1),
        problem.word("mode", "cross_correlation"),
        problem.word("layout", "NCHW"),
    )


def read_shapes(problem: Problem) -> tuple[ConvolutionDescriptor, Shape, Shape, Shape]:
    """The convolution, and the shapes of image, filters and result in its layout."""
    conv, (batch, channels, *image) = read_convolution(problem), problem.extents()
    taps, filters = problem.extents("filter", "1"), problem.integer("k", 1)
    positions = reference.output_extents(conv, image, taps)
    shapes = ((batch, channels, *image), (filters, channels // conv.groups, *taps), (batch, filters, *positions))
    x, w, y = (laid_out(conv, shape) for shape in shapes)
    return conv, x, w, y


def laid_out(conv: ConvolutionDescriptor | PoolingDescriptor, shape: Shape) -> Shape:
    """(n, c, ...) in the layout of a convolution or a pooling."""
    return (shape[0], *shape[2:], shape[1]) if conv.channels_last else shape


def _activation(problem: Problem) -> ActivationDescriptor | None:
    word = problem.word("activation")
    return ActivationDescriptor(word) if word else None


def draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """``bias``, ``residual`` and ``scaled`` say what follows the sums."""
    conv, x, w, y = read_shapes(problem)
    arguments: dict[str, Any] = {"conv": conv, "x": sample(problem, rng, x), "w": sample(problem, rng, w)}
    arguments["activation"] = _activation(problem)
    arguments["b"] = sample(problem, rng, w[:1]) if problem.integer("bias", 1) else None
    arguments["residual"] = sample(problem, rng, y) if problem.integer("residual") else None
    kind = "float64" if problem.dtype == "float64" else "float32"
    for name in ("scale", "shift") if problem.integer("scaled") else ():
        arguments[name] = sample(problem, rng, w[:1], dtype=kind)
    factors = {name: problem.number(name) for name in ("alpha1", "alpha2") if problem.word(name)}
    wanted = {"with_sums": True} if problem.integer("sums") else {}
    return {**arguments, **factors, **wanted, **problem.scaling(), **old_out(problem, rng, y)}


def draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """The gradient in data, filters or bias."""
    conv, x, w, y = read_shapes(problem)
    arguments: dict[str, Any] = {"conv": conv, "dy": sample(problem, rng, y)}
    result = w[:1]
    if problem.op == "conv_backward_data":
        arguments |= {"w": sample(problem, rng, w), "x_descriptor": TensorDescriptor(x, problem.dtype)}
        result = x
    if problem.op == "conv_backward_filter":
        arguments |= {"x": sample(problem, rng, x), "w_descriptor": TensorDescriptor(w, problem.dtype)}
        result = w
    return {**arguments, **problem.scaling(), **old_out(problem, rng, result)}


def draw_transposed(problem: Problem, rng: Generator) -> dict[str, Any]:
    """The problem is that of the convolution whose image the result is."""
    conv, image, w, y = read_shapes(problem)
    arguments: dict[str, Any] = {"conv": conv, "x": sample(problem, rng, y), "w": sample(problem, rng, w)}
    arguments["b"] = sample(problem, rng, (problem.extents()[1],)) if problem.integer("bias", 1) else None
    arguments["output_padding"] = _output_padding(problem, conv)
    return {**arguments, **problem.scaling(), **old_out(problem, rng, image)}


def _output_padding(problem: Problem, conv: ConvolutionDescriptor) -> Shape:
    """What a stride leaves over at the end of each axis."""
    image, taps = problem.extents()[2:], problem.extents("filter", "1")
    axes = len(image)
    along = zip(image, taps, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), strict=True)
    return tuple((i + sum(pads) - (r - 1) * dilation - 1) % stride for i, r, pads, stride, dilation in along)


def draw_transposed_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """All gradients of a transposed convolution."""
    conv, image, w, y = read_shapes(problem)
    needs, channels = problem.names("needs", "dx,dw,db"), problem.extents()[1]
    arguments: dict[str, Any] = {
        name: sample(problem, rng, shape) for name, shape in (("dy", image), ("x", y), ("w", w))
    }
    for name, shape in (("dw", w), ("db", (channels,))):
        arguments |= old_out(problem, rng, shape, name=name) if name in needs else {}
    return {"conv": conv, **arguments, "needs": needs, **problem.scaling()}


def draw_extents(rng: Generator, axes: int) -> tuple[list[int], list[int], str]:
    """Random image and taps, and the words for padding, stride and dilation with which the taps fit the image."""
    image = [int(rng.integers(1, (30, 9, 5)[axes - 1] + 1)) for _ in range(axes)]
    taps, words = [], {"padding": "", "stride": "", "dilation": ""}
    for i in range(axes):
        before, after, dilation = int(rng.integers(0, 3)), int(rng.integers(0, 3)), int(rng.choice([1, 1, 2, 3]))
        most = (image[i] + before + after - 1) // dilation + 1
        taps.append(int(rng.integers(1, min(most, 4) + 1)))
        for name, item in (("padding", f"{before}-{after}"), ("stride", rng.integers(1, 4)), ("dilation", dilation)):
            words[name] += f"{'x' if i else ''}{item}"
    # A lone number would stand for every axis, which is the same for one.
    return image, taps, " ".join(f"{name}={word}" for name, word in words.items())
