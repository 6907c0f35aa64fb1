"""Kernels of convolutions: their parameter structs, and the one launch of each direction."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor, dense_strides
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Struct, blocks_for
from .geometry import Geometry, Numbers, filter_steps, steps

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
        ("y", "x", "w", "b", "residual", "scale", "shift"),
        (
            *(("alpha1", "A"), ("alpha2", "A"), *_BLEND, ("c0", "A"), ("c1", "A"), _SIZE),
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


class Operand(NamedTuple):
    """A tensor of a launch: where it is, and its steps in elements."""

    at: Pointer
    strides: Numbers


def operand(at: int, d: TensorDescriptor | None, shape: Numbers = ()) -> Operand:
    """Operand number `at`; one that the call makes itself has this shape, without gaps."""
    return Operand(at, dense_strides(shape) if d is None else d.strides)


class Epilogue(NamedTuple):
    """What follows the sums of a forward convolution; arrays that are not there are NULL."""

    activation: ActivationDescriptor
    b: Pointer
    residual: Pointer
    residual_strides: Numbers
    scale: Pointer
    shift: Pointer
    alpha1: float
    alpha2: float

    @classmethod
    def none(cls, ndim: int) -> Epilogue:
        """Nothing, for results of so many axes."""
        return cls(ActivationDescriptor("identity"), NULL, NULL, (0,) * ndim, NULL, NULL, 1.0, 1.0)


def forward_step(
    dtype: DType, g: Geometry, x: Operand, w: Operand, y: Operand, then: Epilogue, alpha: float, beta: float
) -> KernelStep:
    """y from x and w."""
    size = g.batch * g.out_channels * prod(g.output)
    numbers = (then.alpha1, then.alpha2, alpha, beta, *_constants(then.activation))
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, _functor(then.activation.mode, dtype)), f"forward of {then.activation.mode}",
        blocks_for(size, _BLOCK), _BLOCK, (y.at, x.at, w.at, then.b, then.residual, then.scale, then.shift),
        (*map(float, numbers), size, *steps(g.conv, then.residual_strides), *_problem(g, x, w, y)),
    )  # fmt: skip


def data_step(
    dtype: DType, g: Geometry, dx: Operand, w: Operand, dy: Operand, b: Pointer, alpha: float, beta: float
) -> KernelStep:
    """dx from dy and w."""
    size = g.batch * g.in_channels * prod(g.image)
    return KernelStep(
        _DATA, dtype, (dtype.cuda,), "data", blocks_for(size, _BLOCK), _BLOCK, (dx.at, dy.at, w.at, b),
        (float(alpha), float(beta), size, *_problem(g, dx, w, dy)),
    )  # fmt: skip


def filter_step(
    dtype: DType, g: Geometry, x: Operand, dw: Operand, dy: Operand, alpha: float, beta: float
) -> KernelStep:
    """dw from dy and x."""
    return KernelStep(
        _FILTER, dtype, (dtype.cuda,), "filter", (g.filter_size, 1, 1), _REDUCING, (dw.at, dy.at, x.at),
        (float(alpha), float(beta), *_problem(g, x, dw, dy)),
    )  # fmt: skip


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


def _problem(g: Geometry, x: Operand, w: Operand, y: Operand) -> Numbers:
    first, w_steps = filter_steps(g.conv, g.taps, w.strides)
    last = int(g.conv.channels_last)
    return (*g.scalars(), *steps(g.conv, x.strides), *w_steps, *steps(g.conv, y.strides), first, last)


def _functor(mode: str, dtype: DType) -> str:
    """The activation as a type of ``activation.cuh``."""
    return "".join(word.capitalize() for word in mode.split("_")) + f"<{dtype.cuda}>"


def _constants(mode: ActivationDescriptor) -> tuple[float, float]:
    """The activation's parameters as the functor's members c0 and c1."""
    first, second, *_ = *(value for _, value in mode.parameters), 0.0, 0.0
    return first, second


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    forward = {f"forward of {mode}": [f"conv_forward<{t}, {_functor(mode, dtype)}>"] for mode in ACTIVATION_MODES}
    others = {kind: [f"conv_backward_{kind}<{t}>"] for kind in ("data", "filter", "bias")}
    return {**forward, **others}


FAMILY = Family("convolution", (_FORWARD, _DATA, _FILTER, _BIAS), _instances)
