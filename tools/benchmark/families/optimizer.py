"""SGD with momentum and AdamW over lists: few large tensors, many small ones, and as much in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.bounds import accumulator
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part
from . import Family

SAMPLE_TENSORS, SAMPLE = 3, 512
#: Tensors in a list from which on the host's look at each costs more than the device's work.
MANY = 16
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd_update": {"lr": 0.125, "momentum": 0.9},
    "adamw_update": {"lr": 0.125, "step": 1, "weight_decay": 0.01},
}
STATES = {"sgd_update": ("velocities",), "adamw_update": ("first_moments", "second_moments")}


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`lists` are [number of tensors, elements of each]."""
    for dtype in dtypes:
        for count, size in shapes["lists"]:
            for op in OPTIONS:
                yield f"{op} list={count}x{size} dtype={dtype}"


def make(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Weights and states are read and written, gradients read."""
    count, size = problem.extents("list")
    state = accumulator(problem.dtype)
    operands: dict[str, Any] = {
        "weights": [arrays.copy(_drawn(arrays, problem, size, "w", i)) for i in range(count)],
        "gradients": [_drawn(arrays, problem, size, "g", i) for i in range(count)],
    }
    for name in STATES[problem.op]:
        operands[name] = [arrays.zeros(size, state) for _ in range(count)]
    width, wide = operands["weights"][0].itemsize, 4 if state == "float32" else 8
    states = len(STATES[problem.op])
    small = ",".join([str(min(size, 10_000))] * min(count, 3))
    return Case(
        problem,
        operands,
        dict(OPTIONS[problem.op]),
        {},
        [Part(dict.fromkeys(operands, _few))],
        f"{problem.op} shapes={small}" + (" momentum=0.9" if problem.op == "sgd_update" else ""),
        nbytes=count * size * (3 * width + 2 * wide * states),
        flops=count * size * (4 if problem.op == "sgd_update" else 14),
        updates=("weights", *STATES[problem.op]),
        captured=count > MANY,
    )


def _drawn(arrays: Arrays, problem: Problem, size: int, tag: str, i: int) -> Any:
    """Long lists repeat a few arrays' numbers, not their memory."""
    drawn = arrays.normal(size, problem.dtype, tag=f"{tag}{i % 4}")
    return drawn if i < 4 else arrays.copy(drawn)


def _few(tensors: list[Any]) -> list[Any]:
    """The beginnings of the first tensors and of the last."""
    chosen = tensors if len(tensors) <= SAMPLE_TENSORS else [*tensors[: SAMPLE_TENSORS - 1], tensors[-1]]
    return [a[:SAMPLE] for a in chosen]


FAMILY = Family("optimizer", lines, dict.fromkeys(OPTIONS, make))
