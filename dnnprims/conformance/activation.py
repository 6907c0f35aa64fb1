"""Cases of activations: every mode on its core, its tails, its kinks and odd numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descriptors import ACTIVATION_MODES, ActivationDescriptor
from ..reference import activation as reference
from .bounds import DERIVATIVE_ULP, function_error, product_error, slope_size
from .cases import (
    Array,
    Call,
    CaseFamily,
    Generator,
    Problem,
    as_dtype,
    blended,
    destination,
    draw_placing,
    draw_shape,
    pick,
    sample,
    show,
    wide,
)

#: Mode -> settings of its parameters, other than the defaults, that every element type holds; ``f.`` keeps elu's alpha
#: and swish's beta apart from those of the blend.
_PARAMETERS = {
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


def _descriptor(problem: Problem, *, rounded: bool = False) -> ActivationDescriptor:
    """The activation; `rounded` with its parameters as the accumulator of the dtype holds them."""
    given = ActivationDescriptor(problem.word("mode", "relu"))
    values = {name: problem.number(f"f.{name}", default) for name, default in given.parameters}
    if rounded and problem.dtype != "float64":
        values = {name: float(np.float32(value)) for name, value in values.items()}
    return ActivationDescriptor(given.mode, **values)


def _function_error(exact: ActivationDescriptor, value: Array, dtype: str, x: Array) -> Array:
    """Error of the function; in float64 with that of a reference which subtracts in float64."""
    if exact.mode in (*_CANCELLING, "tanhshrink"):
        return function_error(value, dtype, argument=x * dict(exact.parameters).get("beta", 1.0))
    if exact.mode == "hard_sigmoid" and dtype == "float64":
        terms = np.abs(exact.slope * x) + abs(exact.offset)
        return function_error(np.where((value > 0.0) & (value < 1.0), terms, value), dtype)
    return function_error(value, dtype)


def make_forward(problem: Problem, rng: Generator) -> Call:
    """A function, right to so many ULP of the accumulator over its whole range."""
    x = sample(problem, rng, problem.extents(), scale=4.0)
    target, exact = destination(problem, rng, x.shape, in_place="x"), _descriptor(problem, rounded=True)

    def bound(expected: list[Array]) -> list[Array]:
        plain = reference.activation_forward(exact, wide(x))
        error = _function_error(exact, plain, problem.dtype, wide(x))
        return [blended(problem, target, expected[0], error)]

    return Call(
        {"activation": _descriptor(problem), "x": x, **problem.scaling()},
        bound,
        {"out": target},
        reference={"activation": exact},
    )


def make_backward(problem: Problem, rng: Generator) -> Call:
    """dy times the derivative, which is worked out from x or, where the mode allows it, from the stored y."""
    exact, given = _descriptor(problem, rounded=True), problem.word("given", "x")
    x, dy = sample(problem, rng, problem.extents(), scale=4.0), sample(problem, rng, problem.extents())
    y = as_dtype(reference.activation_forward(exact, wide(x)), problem.dtype)
    kept = {"x": x} if given == "x" else {"y": y}
    target = destination(problem, rng, x.shape, in_place=problem.word("over", "dy"))

    def bound(expected: list[Array]) -> list[Array]:
        widened: dict[str, Any] = {name: wide(a) for name, a in kept.items()}
        slope = reference.activation_backward(exact, np.ones(x.shape), **widened)
        argument = wide(x) * dict(exact.parameters).get("beta", 1.0)
        cancelling = exact.mode in _CANCELLING
        size = slope_size(slope, argument, problem.dtype) if cancelling else slope
        if exact.mode == "selu" and given == "y" and problem.dtype == "float64":
            size = np.maximum(slope, 2.0)  # y + scale * alpha, the constant rounded in the reference
        slope_error = function_error(size, problem.dtype, DERIVATIVE_ULP, argument if cancelling else None)
        error = product_error([(wide(dy), 0.0), (slope, slope_error)], problem.dtype)
        return [blended(problem, target, expected[0], error)]

    return Call(
        {"activation": _descriptor(problem), "dy": dy, **kept, **problem.scaling()},
        bound,
        {"out": target},
        reference={"activation": exact},
    )


def _from_output(mode: str, settings: str = "") -> bool:
    """Whether y tells the derivative."""
    problem = Problem.parse(f"activation_backward mode={mode} {settings}")
    return "y" in reference.backward_needs(_descriptor(problem))


def draw(rng: Generator) -> str:
    """A random mode with random parameters."""
    mode = pick(rng, *_MODES)
    settings = pick(rng, *_EXACT_KINKS.get(mode, ("", *_PARAMETERS.get(mode, ()))))
    shape = show(draw_shape(rng, (0, 3), most=800))
    words = f"mode={mode} {settings} shape={shape} data={pick(rng, 'normal', 'halves')}"
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
        "activation_forward mode=tanh shape=1001 place=offset into=out",
        "activation_forward mode=mish shape=64x32 alpha=0.5 beta=-1.25 into=out",
        "activation_backward mode=gelu shape=0x5",
        "activation_backward mode=gelu shape=scalar into=out",
        "activation_backward mode=relu shape=1001 given=y into=in_place",
        "activation_backward mode=swish shape=1001 place=offset into=out",
        "activation_backward mode=sigmoid shape=64x32 given=y alpha=2.0 beta=0.75 into=out",
    ]
    for mode in _MODES:
        exact, *_ = _EXACT_KINKS.get(mode, ("",))
        kinds = ("data=normal", "data=wide", "data=special", f"data=halves {exact}".rstrip())
        lines += [f"activation_forward mode={mode} shape=3x67 {kind} into=out" for kind in kinds]
        lines += [f"activation_forward mode={mode} {settings} shape=131" for settings in _PARAMETERS.get(mode, ())]
        for given in ("x", "y") if _from_output(mode) else ("x",):
            for kind in (kinds[0], kinds[3]):
                lines.append(f"activation_backward mode={mode} shape=3x67 {kind} given={given} into=out")
        lines += [f"activation_backward mode={mode} {settings} shape=131" for settings in _PARAMETERS.get(mode, ())]
    return tuple(lines)


FAMILY = CaseFamily(
    "activation",
    reference,
    {"activation_forward": make_forward, "activation_backward": make_backward},
    _corners(),
    draw,
)
