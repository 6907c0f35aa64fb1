"""Cases of Adam and AdamW: first and late steps, both decays, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import adam as reference
from .bounds import accumulator, scaled_unit
from .cases import (
    Array,
    Call,
    CaseFamily,
    Generator,
    Problem,
    as_dtype,
    draw_shapes,
    pick,
    sample_list,
    show_list,
    wide,
)
from .sgd import masters_of, stored


def make_update(problem: Problem, rng: Generator) -> Call:
    """The moments are sums of products; the step inherits the relative errors of both, half that of the second."""
    weights, gradients = sample_list(problem, rng), sample_list(problem, rng)
    kinds = [accumulator(w.dtype.name) for w in weights]
    first = [as_dtype(rng.standard_normal(w.shape), kind) for w, kind in zip(weights, kinds, strict=True)]
    second = [as_dtype(rng.standard_normal(w.shape) ** 2, kind) for w, kind in zip(weights, kinds, strict=True)]
    masters, decay = masters_of(problem, rng, weights), problem.number("weight_decay", 0.0)
    arguments: dict[str, Any] = {
        "weights": weights,
        "gradients": gradients,
        "first_moments": first,
        "second_moments": second,
        "lr": problem.number("lr", 0.125),
        "step": problem.integer("step", 1),
        "weight_decay": decay,
        "bias_correction": problem.integer("bias_correction", 1) == 1,
        "masters": masters,
        "gradient_scale": problem.number("gradient_scale", 1.0),
    }
    if problem.word("step_on") == "device":
        arguments["step"] = np.array(arguments["step"], np.int32)
    if problem.word("found_inf"):
        arguments["found_inf"] = np.array(problem.integer("found_inf"), np.int32)

    def bound(expected: list[Array]) -> list[Array]:
        errors: list[Array] = []
        for i, w in enumerate(weights):
            current = wide(w if masters is None else masters[i])
            moments = wide(first[i]), wide(second[i])
            errors += _errors(problem, arguments, w.dtype.name, current, wide(gradients[i]), moments)
        return stored(arguments, errors, expected, 3)

    updates = ("weights", "first_moments", "second_moments", *(("masters",) if masters else ()))
    return Call(arguments, bound, updates=updates)


def _errors(
    problem: Problem, arguments: dict[str, Any], dtype: str, w: Array, g: Array, moments: tuple[Array, Array]
) -> list[Array]:
    """Errors of weight and moments. A decay that cancels the gradient makes a second moment smaller than its terms."""
    unit, scale = scaled_unit(dtype, 24.0), arguments["gradient_scale"]
    decay, lr = arguments["weight_decay"], float(arguments["lr"])
    coupled = decay if problem.op == "adam_update" else 0.0
    corrections = [1.0 - beta ** float(arguments["step"]) for beta in (0.9, 0.999)]
    corrections = corrections if arguments["bias_correction"] else [1.0, 1.0]
    terms = np.abs(scale * g) + coupled * np.abs(w)
    m, v = 0.9 * np.abs(moments[0]) + 0.1 * terms, 0.999 * moments[1] + 0.001 * terms**2
    left = 0.999 * moments[1] + 0.001 * (scale * g + coupled * w) ** 2
    root = np.sqrt(left / corrections[1]) + 1e-8
    step = lr / corrections[0] * m / root * (1.0 + v / np.maximum(left, np.finfo(np.float64).tiny))
    return [unit * (np.abs(w) * (1.0 + lr * decay) + step), unit * m, unit * v]


def draw(rng: Generator) -> str:
    """A random list of shapes and random options."""
    words = f"shapes={show_list(draw_shapes(rng))} place={pick(rng, 'plain', 'offset')} masters={int(rng.integers(2))}"
    options = f"step={pick(rng, '1', '10', '100000')} weight_decay={pick(rng, '0.0', '0.01')}"
    return f"{pick(rng, 'adam_update', 'adamw_update')} {words} {options} mixed={int(rng.integers(2))}"


CORNERS = (
    "adam_update shapes=0",
    "adam_update shapes=1",
    "adam_update shapes=3x5,0,1001,7",
    "adam_update shapes=3x5,1001 step=100000 weight_decay=0.01 place=offset",
    "adam_update shapes=40,33 bias_correction=0 gradient_scale=0.25",
    "adam_update shapes=40,33 masters=1 mixed=1 step_on=device step=7",
    "adam_update shapes=40,33 masters=1 found_inf=1",  # nothing may change
    "adamw_update shapes=3x5,0,1001,7 weight_decay=0.01",
    "adamw_update shapes=40,33 masters=1 mixed=1 weight_decay=0.5",
)

FAMILY = CaseFamily("adam", reference, {"adam_update": make_update, "adamw_update": make_update}, CORNERS, draw)
