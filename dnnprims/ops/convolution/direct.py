"""The plain direct algorithm, for any problem: parameter structs, and the one launch of each direction."""

from __future__ import annotations

from math import prod

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Struct, blocks_for
from .geometry import Numbers, filter_steps, steps
from .product import Algorithm, Operand, Product, Work, always_pays

_BLOCK, _REDUCING = 256, 128  # threads: of a block of elements, and for each sum over positions


def _fields(*groups: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Fields of 64 bits: pairs of a name and what follows it, one letter or word each."""
    return tuple((f"{name}_{one}", "i64") for name, parts in groups for one in parts.split())


_AXES, _STEPS = "d h w", "outer channel d h w"
_PROBLEM = (
    *((name, "i64") for name in ("batch", "groups", "in_per_group", "out_per_group")),
    *_fields(*((name, _AXES) for name in ("image", "output", "taps", "stride", "dilation", "padding"))),
    *_fields(("x", _STEPS), ("w", _STEPS), ("y", _STEPS)),
    ("w_first", "i64"),
    ("channels_last", "i32"),
)
_BLEND, _SIZE = (("alpha", "A"), ("beta", "A")), ("size", "i64")
_FORWARD = Kernel(
    "convolution",
    "conv_forward",
    Struct(
        "ConvForwardParams",
        ("y", "x", "w", "b", "residual", "scale", "shift", "partial"),
        (
            *(("alpha1", "A"), ("alpha2", "A"), *_BLEND, ("c0", "A"), ("c1", "A"), _SIZE),
            ("splits", "i64"),
            *_fields(("residual", _STEPS)),
            *_PROBLEM,
        ),
    ),
)
_DATA = Kernel(
    "convolution",
    "conv_backward_data",
    Struct("ConvDataParams", ("dx", "dy", "w", "b"), (*_BLEND, _SIZE, *_PROBLEM)),
)
_FILTER = Kernel(
    "convolution", "conv_backward_filter", Struct("ConvFilterParams", ("dw", "dy", "x"), (*_BLEND, *_PROBLEM))
)
_BIAS = Kernel(
    "convolution",
    "conv_backward_bias",
    Struct("ConvBiasParams", ("db", "dy"), (*_BLEND, ("batch", "i64"), *_fields(("output", _AXES), ("y", _STEPS)))),
)


def forward_step(product: Product, partial: Pointer = NULL, splits: int = 0) -> KernelStep:
    """The convolution, or what follows it where another kernel has left the sums of its splits at `partial`."""
    dtype, g, then, y = product.dtype, product.g, product.then, product.y
    size = g.batch * g.out_channels * prod(g.output)
    numbers = (then.alpha1, then.alpha2, product.alpha, product.beta, *constants(then.activation))
    residual = then.residual or Operand(NULL, (0,) * len(y.strides), 0)
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, functor(then.activation.mode, dtype)), f"forward of {then.activation.mode}",
        blocks_for(size, _BLOCK), _BLOCK,
        (y.at, product.x.at, product.w.at, then.b, residual.at, then.scale, then.shift, partial),
        (*map(float, numbers), size, splits, *steps(g.conv, residual.strides), *problem_of(product)),
    )  # fmt: skip


def _data_step(product: Product) -> KernelStep:
    dtype, g = product.dtype, product.g
    size = g.batch * g.in_channels * prod(g.image)
    return KernelStep(
        _DATA, dtype, (dtype.cuda,), "data", blocks_for(size, _BLOCK), _BLOCK,
        (product.x.at, product.y.at, product.w.at, product.then.b),
        (float(product.alpha), float(product.beta), size, *problem_of(product)),
    )  # fmt: skip


def _filter_step(product: Product) -> KernelStep:
    dtype = product.dtype
    return KernelStep(
        _FILTER, dtype, (dtype.cuda,), "filter", (product.g.filter_size, 1, 1), _REDUCING,
        (product.w.at, product.y.at, product.x.at),
        (float(product.alpha), float(product.beta), *problem_of(product)),
    )  # fmt: skip


def direct_step(product: Product) -> KernelStep:
    """The one launch that does any product."""
    of = {"forward": forward_step, "data": _data_step, "filter": _filter_step}
    return of[product.direction](product)


#: Takes any problem.
DIRECT = Algorithm("direct_plain", lambda product: None, always_pays, lambda product: Work((direct_step(product),)))


def bias_step(
    dtype: DType, batch: int, channels: int, spatial: Numbers, dy: Numbers, at: tuple[Pointer, Pointer],
    alpha: float, beta: float,
) -> KernelStep:  # fmt: skip
    """db from dy, whose steps are the kernels' `Steps`; `at` is where they are."""
    extents = (1,) * (3 - len(spatial)) + spatial
    return KernelStep(
        _BIAS, dtype, (dtype.cuda,), "bias", (channels, 1, 1), _REDUCING, at,
        (float(alpha), float(beta), batch, *extents, *dy),
    )  # fmt: skip


def problem_of(product: Product) -> Numbers:
    """The fields of the kernels' `Problem`."""
    g, conv = product.g, product.g.conv
    first, w_steps = filter_steps(conv, g.taps, product.w.strides)
    last = int(conv.channels_last)
    return (*g.scalars(), *steps(conv, product.x.strides), *w_steps, *steps(conv, product.y.strides), first, last)


def functor(mode: str, dtype: DType) -> str:
    """The activation as a type of ``activation.cuh``."""
    return "".join(word.capitalize() for word in mode.split("_")) + f"<{dtype.cuda}>"


def constants(mode: ActivationDescriptor) -> tuple[float, float]:
    """The activation's parameters as the functor's members c0 and c1."""
    first, second, *_ = *(value for _, value in mode.parameters), 0.0, 0.0
    return first, second


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    forward = {f"forward of {mode}": [f"conv_forward<{t}, {functor(mode, dtype)}>"] for mode in ACTIVATION_MODES}
    others = {kind: [f"conv_backward_{kind}<{t}>"] for kind in ("data", "filter", "bias")}
    return {**forward, **others}


FAMILY = Family("convolution", (_FORWARD, _DATA, _FILTER, _BIAS), _instances)
