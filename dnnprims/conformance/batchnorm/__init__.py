"""Cases of batch normalisation: extents are those of (n, c, ...) in either layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...descriptors import ActivationDescriptor, BatchNormDescriptor, as_activation
from ...reference import activation as elementwise
from ...reference import batchnorm as reference
from ..bounds import accumulator
from ..calls import Arguments, Array, Destination, Generator, Primitive, as_dtype, wide
from ..cases import CaseFamily, Problem
from ..drawing import EXACT_DATA, draw_placing, pick, sample, show
from .limits import bound_backward, bound_inference, bound_training

#: Exact settings of gradients have these for 1 / standard deviation.
_POWERS = (0.5, 1.0, 2.0)


def _norm(problem: Problem) -> BatchNormDescriptor:
    return BatchNormDescriptor(
        problem.word("mode", "spatial"),
        problem.word("layout", "NCHW"),
        problem.number("epsilon", 1e-5),
        problem.word("running_variance", "unbiased"),
    )


def _activation(problem: Problem) -> ActivationDescriptor | None:
    word = problem.word("activation")
    return ActivationDescriptor(word, **({"ceiling": 1.5} if word == "clipped_relu" else {})) if word else None


def _shapes(problem: Problem, norm: BatchNormDescriptor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of x and of the parameters."""
    n, c, *image = problem.extents()
    x = (n, *image, c) if norm.channels_last else (n, c, *image)
    return x, x[1:] if norm.mode == "per_activation" else (c,)


def _images(problem: Problem, rng: Generator, shape: tuple[int, ...], offset: float = 0.0) -> Array:
    """``data=equal`` has one number in each channel; ``offset`` moves all far from 0."""
    drawn = sample(problem, rng, shape)
    return as_dtype(wide(drawn) + offset, problem.dtype) if offset else drawn


def _parameters(problem: Problem, rng: Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of the accumulator's type, finite ones; halves beside equal integers, so that few sums are 0."""
    kind, data = accumulator(problem.dtype), problem.word("data")
    if data in EXACT_DATA or data == "equal":
        numbers = rng.choice(EXACT_DATA["integers"], shape)
        return as_dtype(numbers + 0.5 if data == "equal" else numbers, kind)
    return as_dtype(rng.standard_normal(shape), kind)


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    norm = _norm(problem)
    x, shape = _shapes(problem, norm)
    arguments = {"norm": norm, "x": _images(problem, rng, x, problem.number("offset"))}
    arguments |= {name: _parameters(problem, rng, shape) for name in ("gamma", "beta")}
    arguments["activation"] = _activation(problem)
    arguments["residual"] = sample(problem, rng, x) if problem.integer("residual") else None
    running = {"running_mean": _parameters(problem, rng, shape), "running_variance": _spread(problem, rng, shape)}
    if problem.op == "batchnorm_forward_inference":
        return {**arguments, **running}
    arguments["exponential_average_factor"] = problem.number("factor", 0.25)
    return {**arguments, **(running if problem.integer("running", 1) else {})}


def _spread(problem: Problem, rng: Generator, shape: tuple[int, ...]) -> Array:
    """Positive numbers; powers of four less epsilon where the root shall be exact."""
    kind = accumulator(problem.dtype)
    if problem.word("data") in EXACT_DATA:
        return as_dtype(rng.choice((0.25, 1.0, 4.0), shape), kind)
    return as_dtype(rng.uniform(0.25, 4.0, shape), kind)


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """``slope`` says what tells it: y, or beta."""
    norm = _norm(problem)
    x, shape = _shapes(problem, norm)
    arguments = {"norm": norm, "dy": sample(problem, rng, x), "x": _images(problem, rng, x, problem.number("offset"))}
    arguments |= {name: _parameters(problem, rng, shape) for name in ("gamma", "mean")}
    exact = problem.word("data") in EXACT_DATA
    rstd = rng.choice(_POWERS, shape) if exact else rng.uniform(0.5, 2.0, shape)
    arguments["rstd"] = as_dtype(rstd, accumulator(problem.dtype))
    mode = arguments["activation"] = _activation(problem)
    # Where all is exact, most elements are let through: a gradient of 0 says little.
    if mode is not None and problem.word("slope", "beta") == "y":
        z = rng.choice(EXACT_DATA["lopsided"], x) if exact else wide(sample(problem, rng, x))
        arguments["y"] = as_dtype(elementwise.activation_forward(mode, z), problem.dtype)
    elif mode is not None:
        beta = _parameters(problem, rng, shape)
        arguments["beta"] = 4 * np.abs(beta) if exact else beta
    return {**arguments, "needs": problem.names("needs", "dx,dgamma,dbeta")}


def _into_images(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="x", blends=False)}


def _into_images_and_statistics(given: Arguments) -> dict[str, Destination]:
    gamma = given["gamma"]
    kept = {name: Destination(gamma.shape, gamma.dtype.name) for name in ("mean", "rstd")}
    return {**_into_images(given), **kept}


def _into_gradients(given: Arguments) -> dict[str, Destination]:
    x, gamma, needs = given["x"], given["gamma"], given["needs"]
    places = {
        "dx": Destination(x.shape, x.dtype.name, in_place="dy"),
        "dgamma": Destination(gamma.shape, gamma.dtype.name),
        "dbeta": Destination(gamma.shape, gamma.dtype.name),
        "dresidual": Destination(x.shape, x.dtype.name, in_place="" if "dx" in needs else "dy"),
    }
    return {name: place for name, place in places.items() if name in needs}


def _as_held(given: Arguments) -> dict[str, Any]:
    """The numbers of the descriptors as the accumulator holds them, and the limits that y has as they are stored."""
    kind, norm, mode = given["gamma"].dtype.name, given["norm"], as_activation(given["activation"], given.op)
    epsilon = float(as_dtype(norm.epsilon, kind))
    stored = given["x"].dtype.name if given.values.get("y") is not None else kind
    options = {name: float(wide(as_dtype(value, stored))) for name, value in mode.parameters}
    return {
        "norm": BatchNormDescriptor(norm.mode, norm.layout, epsilon, norm.running_variance),
        "activation": ActivationDescriptor(mode.mode, **options),
    }


def draw(rng: Generator) -> str:
    """A random problem."""
    axes = int(rng.integers(0, 4))
    image = [int(rng.integers(1, (1, 40, 12, 5)[axes] + 1)) for _ in range(axes)]
    shape = (int(rng.integers(2, 10)), int(rng.choice([1, 2, 3, 7, 8, 16, 24])), *image)
    words = f"shape={show(shape)} layout={pick(rng, 'NCHW', 'NHWC')}"
    words += f" mode={pick(rng, 'spatial', 'spatial', 'per_activation')}"
    mode = pick(rng, "", "relu", "relu", "hard_tanh", "clipped_relu")
    words += f" activation={mode}" if mode else ""
    # Exact results that an activation has made 0 would say little.
    if rng.random() < 0.4:
        needs = pick(rng, "dx,dgamma,dbeta", "dx,dgamma,dbeta,dresidual", "dx", "dgamma", "dresidual,dbeta")
        data = pick(rng, "normal", "integers") if mode in ("", "relu") else "normal"
        words += f" needs={needs} slope={pick(rng, 'beta', 'y')} data={data}"
        return f"batchnorm_backward {words} {draw_placing(rng, blend=False)}"
    words += f" residual={pick(rng, '0', '1')}"
    if rng.random() < 0.3:
        data = "normal" if mode else pick(rng, "normal", "integers")
        return f"batchnorm_forward_inference {words} data={data} {draw_placing(rng, blend=False)}"
    words += (
        f" offset={pick(rng, '0', '0', '30')} running={pick(rng, '0', '1')} factor={pick(rng, '0.1', '1.0', '0.0')}"
    )
    words += f" running_variance={pick(rng, 'biased', 'unbiased')}"
    words += f" data={'normal' if mode else pick(rng, 'normal', 'equal')}"
    return f"batchnorm_forward_training {words} {draw_placing(rng, blend=False)}"


CORNERS = (
    "batchnorm_forward_training shape=0x3x2",  # statistics of nothing
    "batchnorm_forward_training shape=2x0x3",
    "batchnorm_forward_training shape=1x3 into=out",  # one element for each channel: the variance is 0
    "batchnorm_forward_training shape=6x16x7x7 activation=relu into=in_place",  # packs across channels
    "batchnorm_forward_training shape=5x3x9x16 residual=1 activation=relu into=in_place over=residual",
    "batchnorm_forward_training shape=90x24x3x5 layout=NHWC activation=clipped_relu factor=1.0 into=out",
    "batchnorm_forward_training shape=5x3x7x3 place=offset into=out",  # one by one
    "batchnorm_forward_training shape=6x3x17x8 activation=relu residual=1",  # whole channels in a block
    "batchnorm_forward_training shape=6x32x7x3 activation=relu residual=1 into=out",  # whole units of channels
    "batchnorm_forward_training shape=6x8x67 activation=clipped_relu into=in_place",  # which end within packs
    "batchnorm_forward_training shape=13x2x150x100 activation=relu",  # pieces of a channel
    "batchnorm_forward_training shape=3x2x4200 activation=hard_tanh residual=1",
    "batchnorm_forward_training shape=3x2x2x3x4 running_variance=biased running=0",
    "batchnorm_forward_training shape=700x8 offset=3000 into=out",  # several parts; deviations small beside the mean
    "batchnorm_forward_training shape=700x8 offset=100000 only=float32,float64",
    "batchnorm_forward_training shape=9x5x3 mode=per_activation layout=NHWC",
    "batchnorm_forward_training shape=9x16x3 data=equal residual=1 epsilon=0.25",
    "batchnorm_forward_training shape=70x8x3 data=special ends=0 layout=NHWC",
    "batchnorm_forward_inference shape=0x3x2",
    "batchnorm_forward_inference shape=5x16x7x7 activation=relu into=in_place",
    "batchnorm_forward_inference shape=5x24x3x5 layout=NHWC residual=1 into=in_place over=residual epsilon=0",
    "batchnorm_forward_inference shape=5x3x7x3 place=offset into=out data=integers epsilon=0",
    "batchnorm_forward_inference shape=7x8x3 data=special activation=clipped_relu",
    "batchnorm_backward shape=0x3x2 into=out",
    "batchnorm_backward shape=1x1 into=out",
    "batchnorm_backward shape=6x16x7x7 activation=relu into=in_place",
    "batchnorm_backward shape=8x16x4x4 activation=relu data=integers layout=NHWC into=out",  # exact
    "batchnorm_backward shape=8x8x8 slope=y activation=relu data=integers needs=dx,dgamma,dbeta,dresidual into=out",
    "batchnorm_backward shape=5x3x7x3 place=offset into=out activation=clipped_relu",
    "batchnorm_backward shape=6x8x67 activation=clipped_relu into=in_place",
    "batchnorm_backward shape=6x3x17x8 activation=relu slope=y needs=dx,dgamma,dbeta,dresidual into=out",
    "batchnorm_backward shape=13x2x150x100 activation=relu",
    "batchnorm_backward shape=3x2x4200 activation=hard_tanh slope=y",
    "batchnorm_backward shape=700x8 offset=30 needs=dgamma,dbeta",
    "batchnorm_backward shape=9x5x3 mode=per_activation needs=dresidual activation=relu into=in_place",
    "batchnorm_backward shape=70x8x3 data=special ends=0 layout=NHWC activation=relu",
)

FAMILY = CaseFamily(
    "batchnorm",
    reference,
    {
        "batchnorm_forward_training": Primitive(
            _draw_forward, bound_training, _into_images_and_statistics, ("running_mean", "running_variance"), _as_held
        ),
        "batchnorm_forward_inference": Primitive(_draw_forward, bound_inference, _into_images, (), _as_held),
        "batchnorm_backward": Primitive(_draw_backward, bound_backward, _into_gradients, (), _as_held),
    },
    CORNERS,
    draw,
)
