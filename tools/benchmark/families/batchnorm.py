"""Batch norms of the layers of a ResNet, by themselves, with relu, and with a residual and relu: training both ways.

A line has the settings of the conformance cases, the extents always as n, c, h, w. Entries of a set give layers as
``[c, h]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, show
from . import Family

#: What is fused -> what a line says of it, forward and backward.
FUSED = {
    "nothing": ("", ""),
    "relu": (" activation=relu", " activation=relu"),
    "residual": (
        " activation=relu residual=1",
        " activation=relu slope=y needs=dx,dgamma,dbeta,dresidual",
    ),
}
#: Most images, channels and extents of the conformance problem.
SMALL = (5, 16, 14, 14)


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """Every layer in both directions."""
    for dtype in [dtype for dtype in dtypes if dtype in shapes.get("dtypes", dtypes)]:
        for layout in shapes.get("layouts", ("NHWC", "NCHW")):
            for fused in shapes.get("fused", ("nothing",)):
                for c, h in shapes["layers"]:
                    words = f"shape={shapes['batch']}x{c}x{h}x{h} layout={layout}"
                    forward, backward = FUSED[fused]
                    yield f"batchnorm_forward_training {words}{forward} dtype={dtype}"
                    yield f"batchnorm_backward {words}{backward} dtype={dtype}"
            for c, h in shapes.get("inference", ()):
                words = f"shape={shapes['batch']}x{c}x{h}x{h} layout={layout}"
                yield f"batchnorm_forward_inference {words} activation=relu dtype={dtype}"


def make_training(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x twice, and the residual, and writes y."""
    x, channels = _images(problem, arrays), problem.extents()[1]
    operands = {"x": x, **_scale(arrays, channels, x)}
    if problem.integer("residual"):
        operands["residual"] = arrays.normal(x.shape, problem.dtype, tag="residual")
    kept = {name: arrays.result(channels, _kind(x), tag=name) for name in ("mean", "rstd")}
    results = {"out": arrays.result(x.shape, problem.dtype), **kept}
    return _case(problem, operands, _options(problem), results, 3 + problem.integer("residual"))


def make_inference(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x and writes y."""
    x, channels = _images(problem, arrays), problem.extents()[1]
    running = {
        "running_mean": arrays.normal(channels, _kind(x), tag="mean"),
        "running_variance": arrays.uniform(channels, _kind(x), 0.5, 2.0, tag="variance"),
    }
    operands = {"x": x, **_scale(arrays, channels, x), **running}
    return _case(problem, operands, _options(problem), {"out": arrays.result(x.shape, problem.dtype)}, 2)


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x and dy twice and writes dx; with a residual also reads y and writes its gradient, which is read again."""
    x, channels, options = _images(problem, arrays), problem.extents()[1], _options(problem)
    scale, needs = _scale(arrays, channels, x), problem.names("needs", "dx,dgamma,dbeta")
    extra = {"beta": scale["beta"]}
    if "dresidual" in needs:
        extra["residual"] = arrays.normal(x.shape, problem.dtype, tag="residual")
    y, mean, rstd = dp.batchnorm_forward_training(handle, options["norm"], x, **scale, **_forward(options, extra))
    operands = {"dy": arrays.normal(x.shape, problem.dtype, tag="dy"), "x": x, "gamma": scale["gamma"]}
    operands |= {"mean": mean, "rstd": rstd}
    if "activation" in options:
        operands |= {"y": y} if problem.word("slope") == "y" else {"beta": scale["beta"]}
    results = {name: arrays.result(x.shape if name in ("dx", "dresidual") else channels,
                                   problem.dtype if name in ("dx", "dresidual") else _kind(x), tag=name)
               for name in needs}  # fmt: skip
    made = _case(problem, operands, {**options, "needs": needs}, results, 7 if "dresidual" in needs else 5)
    made.extra = extra
    return made


def _forward(options: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {"activation": options.get("activation"), "residual": extra.get("residual")}
    return {name: value for name, value in chosen.items() if value is not None}


def _case(
    problem: Problem, operands: dict[str, Any], options: dict[str, Any], results: dict[str, Any], passes: int
) -> Case:
    x = operands["x"]
    return Case(
        problem,
        operands,
        options,
        results,
        [Part(dict.fromkeys([*operands, *results], one)) for one in _channels(problem)],
        _small(problem),
        nbytes=passes * x.nbytes,
        flops=10 * x.size,
        terms=x.size // problem.extents()[1],
    )


def _images(problem: Problem, arrays: Arrays) -> Any:
    n, c, h, w = problem.extents()
    shape = (n, h, w, c) if problem.word("layout") == "NHWC" else (n, c, h, w)
    return arrays.normal(shape, problem.dtype, tag="x")


def _kind(x: Any) -> str:
    return "float64" if str(x.dtype) == "float64" else "float32"


def _scale(arrays: Arrays, channels: int, x: Any) -> dict[str, Any]:
    return {name: arrays.normal(channels, _kind(x), tag=name) for name in ("gamma", "beta")}


def _options(problem: Problem) -> dict[str, Any]:
    mode = problem.word("activation")
    fused = {"activation": dp.ActivationDescriptor(mode)} if mode else {}
    return {"norm": dp.BatchNormDescriptor(layout=problem.word("layout", "NCHW")), **fused}


def _channels(problem: Problem) -> Iterator[Callable[[Any], Any]]:
    """The first and the last channel, which are calls of their own."""
    last = problem.word("layout") == "NHWC"
    for at in (slice(0, 1), slice(-1, None)):
        yield lambda a, at=at: a[..., at] if last or a.ndim == 1 else a[:, at]


def _small(problem: Problem) -> str:
    extents = show([min(size, most) for size, most in zip(problem.extents(), SMALL, strict=True)])
    given = {name: value for name, value in problem.settings if name not in ("dtype", "seed")}
    return " ".join(
        [problem.op, *(f"{name}={value}" for name, value in {**given, "shape": extents, "into": "out"}.items())]
    )


FAMILY = Family(
    "batchnorm",
    lines,
    {
        "batchnorm_forward_training": make_training,
        "batchnorm_forward_inference": make_inference,
        "batchnorm_backward": make_backward,
    },
)
