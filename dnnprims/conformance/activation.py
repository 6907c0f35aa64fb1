"""Cases of activations: every mode on its core, its tails, its kinks and odd numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descriptors import ACTIVATION_MODES, ActivationDescriptor
from ..descriptors.activation import as_activation
from ..reference import activation as reference
from .bounds import (
    DERIVATIVE_ULP,
    exact_where,
    function_error,
    lowest_bit,
    product_error,
    scaled_unit,
    slope_size,
)
from .calls import Arguments, Array, Destination, Generator, Primitive, as_dtype, wide
from .cases import CaseFamily, Problem
from .drawing import draw_placing, draw_shape, old_out, pick, sample, show

#: Mode -> settings of its parameters, other than the defaults, that every element type holds; ``f.`` keeps elu's alpha
#: and swish's beta apart from those of the blend.
PARAMETERS = {
    "clipped_relu": ("f.ceiling=2.5",),
    "leaky_relu": ("f.slope=0.25", "f.slope=-0.5", "f.slope=0.0"),
    "threshold": ("f.threshold=0.5 f.value=-1.5", "f.threshold=-1.0 f.value=2.0"),
    "elu": ("f.alpha=0.5", "f.alpha=-0.25"),
    "celu": ("f.alpha=0.5", "f.alpha=-2.0"),
    "softplus": ("f.beta=0.5 f.threshold=4.0", "f.beta=4.0"),
    "softshrink": ("f.lambd=1.5", "f.lambd=0.0"),
    "hardshrink": ("f.lambd=1.5",),
    "swish": ("f.beta=1.5", "f.beta=-0.5"),
    "hard_sigmoid": ("f.slope=0.25 f.offset=0.375",),
    "hard_tanh": ("f.low=-0.5 f.high=2.5",),
}

#: Mode -> settings whose kinks float64 finds exactly. With the default slope of 1/6 it depends on the rounding of a
#: product whether x = 3 lies at the kink or beside it.
_EXACT_KINKS = {"hard_sigmoid": ("f.slope=0.25 f.offset=0.5",)}

_MODES = tuple(ACTIVATION_MODES)

#: Modes whose derivative changes sign where two terms cancel, and whose float64 reference rounds the argument of an
#: exponential.
_CANCELLING = ("gelu", "gelu_tanh", "swish", "mish")


#: Modes that hand on x, |x| or a parameter, and all whose slopes are constants or twice x.
_SELECTING = ("identity", "relu", "clipped_relu", "threshold", "hardshrink", "hard_tanh", "abs")
_EXACT_SLOPES = (*_SELECTING, "leaky_relu", "softshrink", "square", "squared_relu")


def descriptor(problem: Problem) -> ActivationDescriptor:
    given = ActivationDescriptor(problem.word("mode", "relu"))
    values = {name: problem.number(f"f.{name}", default) for name, default in given.parameters}
    return ActivationDescriptor(given.mode, **values)


def narrowed(activation: Any, dtype: str) -> ActivationDescriptor:
    """The activation with its parameters as the accumulator of the dtype holds them."""
    given = as_activation(activation, "activation_forward")
    if dtype == "float64":
        return given
    return ActivationDescriptor(given.mode, **{name: float(np.float32(value)) for name, value in given.parameters})


def _function_error(exact: ActivationDescriptor, value: Array, dtype: str, x: Array) -> Array:
    """Error of the function; in float64 with that of a reference which subtracts in float64."""
    if exact.mode in (*_CANCELLING, "tanhshrink"):
        return function_error(value, dtype, argument=x * dict(exact.parameters).get("beta", 1.0))
    if exact.mode == "hard_sigmoid" and dtype == "float64":
        terms = np.abs(exact.slope * x) + abs(exact.offset)
        return function_error(np.where((value > 0.0) & (value < 1.0), terms, value), dtype)
    return function_error(value, dtype)


def _terms(exact: ActivationDescriptor, x: Array) -> tuple[Array, Array]:
    """(sizes, grid) of the terms of modes that select, or take one operation on, numbers; grid 0 for the others.

    The pieces of hard_sigmoid, and of squares, are products; softshrink's is a difference. What is constant is a
    parameter as the accumulator has it.
    """
    mode, parameters = exact.mode, dict(exact.parameters)
    value = np.abs(reference.activation_forward(exact, x))
    if mode in _SELECTING:
        return value, lowest_bit(value)
    if mode == "leaky_relu":
        return value, np.where(x > 0, lowest_bit(x), lowest_bit(x) * lowest_bit(parameters["slope"]))
    if mode in ("square", "squared_relu"):
        return value, lowest_bit(x) ** 2
    if mode == "softshrink":
        return np.abs(x) + parameters["lambd"], np.minimum(lowest_bit(x), lowest_bit(parameters["lambd"]))
    return value, np.zeros(x.shape)


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    x = sample(problem, rng, problem.extents(), scale=4.0)
    return {"activation": descriptor(problem), "x": x, **problem.scaling(), **old_out(problem, rng, x.shape)}


def _into_input(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="x")}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A function, right to so many ULP of the accumulator over its whole range."""
    x, dtype = wide(given["x"]), given["x"].dtype.name
    exact = narrowed(given["activation"], dtype)
    error = _function_error(exact, reference.activation_forward(exact, x), dtype, x)
    target = _into_input(given)["out"]
    right = given.exactly(target, expected[0], *_terms(exact, x))
    return [exact_where(right, given.blended(target, expected[0], error))]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    activation = descriptor(problem)
    x, dy = sample(problem, rng, problem.extents(), scale=4.0), sample(problem, rng, problem.extents())
    y = as_dtype(reference.activation_forward(narrowed(activation, problem.dtype), wide(x)), problem.dtype)
    kept = {"x": x} if problem.word("given", "x") == "x" else {"y": y}
    return {"activation": activation, "dy": dy, **kept, **problem.scaling(), **old_out(problem, rng, x.shape)}


def _into_gradient(given: Arguments) -> dict[str, Destination]:
    dy = given["dy"]
    return {"out": given.destination("out", dy.shape, dy.dtype.name, in_place="dy")}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """dy times the derivative, which is worked out from x or, where that is not given, from the stored y."""
    dy, dtype = wide(given["dy"]), given["dy"].dtype.name
    exact = narrowed(given["activation"], dtype)
    kept: dict[str, Any] = {"x": wide(given["x"])} if given["x"] is not None else {"y": wide(given["y"])}
    slope = reference.activation_backward(exact, np.ones(dy.shape), **kept)
    argument, size = None, slope
    if exact.mode in _CANCELLING:
        argument = kept["x"] * dict(exact.parameters).get("beta", 1.0)
        size = slope_size(slope, argument, dtype)
    error = product_error(
        [(dy, 0.0), (slope, function_error(size, dtype, DERIVATIVE_ULP, argument) + _either_side(exact, kept, dtype))],
        dtype,
    )
    target = _into_gradient(given)["out"]
    finest = lowest_bit(dy) * lowest_bit(slope) if exact.mode in _EXACT_SLOPES else np.zeros(dy.shape)
    right = given.exactly(target, expected[0], dy * slope, finest)
    return [exact_where(right, given.blended(target, expected[0], error))]


def _either_side(exact: ActivationDescriptor, kept: dict[str, Array], dtype: str) -> Array:
    """The jump of the slope of `hard_sigmoid` where the accumulator cannot tell on which side of a kink x lies."""
    if exact.mode != "hard_sigmoid" or "x" not in kept:
        return np.zeros(())
    product = exact.slope * kept["x"]
    value, blur = product + exact.offset, scaled_unit(dtype, 2.0) * (np.abs(product) + abs(exact.offset))
    return np.where((np.abs(value) <= blur) | (np.abs(value - 1.0) <= blur), abs(exact.slope), 0.0)


def _exact_reference(given: Arguments) -> dict[str, Any]:
    operand = given.values.get("dy", given["x"])
    return {"activation": narrowed(given["activation"], operand.dtype.name)}


def _from_output(mode: str, settings: str = "") -> bool:
    """Whether y tells the derivative."""
    problem = Problem.parse(f"activation_backward mode={mode} {settings}")
    return "y" in reference.backward_needs(descriptor(problem))


def draw(rng: Generator) -> str:
    """A random mode with random parameters."""
    mode = pick(rng, *_MODES)
    settings = pick(rng, *_EXACT_KINKS.get(mode, ("", *PARAMETERS.get(mode, ()))))
    shape = show(draw_shape(rng, (0, 3), most=800))
    kinds = (
        ("normal", "halves", "lopsided")
        if mode in _EXACT_SLOPES and mode != "hard_tanh" and not settings
        else ("normal", "halves")
    )
    words = f"mode={mode} {settings} shape={shape} data={pick(rng, *kinds)}"
    if rng.random() < 0.5:
        return f"activation_forward {words} {draw_placing(rng)}"
    given = pick(rng, "x", "y") if _from_output(mode, settings) else "x"
    return f"activation_backward {words} given={given} over={pick(rng, 'dy', given)} {draw_placing(rng)}"


def _corners() -> tuple[str, ...]:
    lines = [
        "activation_forward mode=gelu shape=0x5",
        "activation_forward mode=gelu shape=scalar into=out",
        "activation_forward mode=swish shape=1 into=out",
        "activation_forward mode=sigmoid shape=1001 into=in_place",  # packs and a tail
        "activation_forward mode=gelu shape=70001 into=out",  # two packs a thread, where 1001 have one
        "activation_forward mode=tanh shape=1001 place=offset into=out",
        "activation_forward mode=mish shape=64x32 alpha=0.5 beta=-1.25 into=out",
        "activation_backward mode=gelu shape=0x5",
        "activation_backward mode=gelu shape=scalar into=out",
        "activation_backward mode=relu shape=1001 given=y into=in_place",
        "activation_backward mode=relu shape=70000 given=x into=out",  # a last block of packs
        "activation_backward mode=swish shape=1001 place=offset into=out",
        "activation_backward mode=sigmoid shape=64x32 given=y alpha=2.0 beta=0.75 into=out",
    ]
    blend = "alpha=0.5 beta=1.0 into=out"
    for mode in _EXACT_SLOPES:
        lines += [f"activation_{way} mode={mode} shape=5x40 data=lopsided {blend}" for way in ("forward", "backward")]
    for mode in _MODES:
        exact, *_ = _EXACT_KINKS.get(mode, ("",))
        kinds = ("data=normal", "data=wide", "data=special", f"data=halves {exact}".rstrip())
        lines += [f"activation_forward mode={mode} shape=3x67 {kind} into=out" for kind in kinds]
        lines += [f"activation_forward mode={mode} {settings} shape=131" for settings in PARAMETERS.get(mode, ())]
        for given in ("x", "y") if _from_output(mode) else ("x",):
            for kind in (kinds[0], kinds[3]):
                lines.append(f"activation_backward mode={mode} shape=3x67 {kind} given={given} into=out")
        lines += [f"activation_backward mode={mode} {settings} shape=131" for settings in PARAMETERS.get(mode, ())]
    return tuple(lines)


FAMILY = CaseFamily(
    "activation",
    reference,
    {
        "activation_forward": Primitive(_draw_forward, _bound_forward, _into_input, reference=_exact_reference),
        "activation_backward": Primitive(_draw_backward, _bound_backward, _into_gradient, reference=_exact_reference),
    },
    _corners(),
    draw,
)
