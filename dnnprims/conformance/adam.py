"""Cases of Adam and AdamW: first and late steps, both decays, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import adam as reference
from ..reference.tensor_lists import positions
from .bounds import accumulator, adam_errors
from .calls import Arguments, Array, Generator, Primitive, as_dtype, wide
from .cases import CaseFamily, Problem
from .drawing import draw_shapes, pick, sample_list, show_list
from .sgd import masters_of, stored


def _draw(problem: Problem, rng: Generator) -> dict[str, Any]:
    weights, gradients = sample_list(problem, rng), sample_list(problem, rng)
    kinds = [accumulator(w.dtype.name) for w in weights]
    arguments: dict[str, Any] = {
        "weights": weights,
        "gradients": gradients,
        "first_moments": [as_dtype(rng.standard_normal(w.shape), k) for w, k in zip(weights, kinds, strict=True)],
        "second_moments": [as_dtype(rng.standard_normal(w.shape) ** 2, k) for w, k in zip(weights, kinds, strict=True)],
        "lr": problem.number("lr", 0.125),
        "step": problem.integer("step", 1),
        "weight_decay": problem.number("weight_decay", 0.0),
        "bias_correction": problem.integer("bias_correction", 1) == 1,
        "masters": masters_of(problem, rng, weights),
        "gradient_scale": problem.number("gradient_scale", 1.0),
    }
    if problem.word("state") == "zero":  # as before the first step
        for name in ("first_moments", "second_moments"):
            arguments[name] = [np.zeros_like(moment) for moment in arguments[name]]
    if problem.word("epsilon"):
        arguments["epsilon"] = problem.number("epsilon")
    if problem.word("step_on") == "device":
        arguments["step"] = np.array(arguments["step"], np.int32)
    if problem.word("found_inf"):
        arguments["found_inf"] = np.array(problem.integer("found_inf"), np.int32)
    return arguments


def _bound(given: Arguments, expected: list[Array]) -> list[Array]:
    """Operations counted; a step that is skipped is exact."""
    errors: list[Array] = []
    decay, betas, step = given["weight_decay"], (given["beta1"], given["beta2"]), float(given["step"])
    corrections = tuple(1.0 - beta**step if given["bias_correction"] else 1.0 for beta in betas)
    options: dict[str, Any] = {
        "lr": float(given["lr"]),
        "betas": betas,
        "epsilon": given["epsilon"],
        "corrections": corrections,
        "coupled": decay if given.op == "adam_update" else 0.0,
        "decoupled": decay if given.op == "adamw_update" else 0.0,
        "scale": float(given["gradient_scale"]),
    }
    states = given["first_moments"], given["second_moments"]
    for w, g, (first, second), master in positions(given["weights"], given["gradients"], states, given["masters"]):
        operands = wide(w if master is None else master), wide(g), (wide(first), wide(second))
        errors += adam_errors(*operands, w.dtype.name, **options)
    never = [np.zeros(error.shape, bool) for error in errors]
    return stored(given, errors, never, expected, ("weights", "first_moments", "second_moments"))


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
    "adam_update shapes=40,33 epsilon=0.125 step=10",
    "adam_update shapes=40,33 state=zero data=halves",  # 0 / epsilon where a gradient is 0
    "adamw_update shapes=40,33 epsilon=0.125 weight_decay=0.01 step=10",
    "adam_update shapes=40,33 masters=1 mixed=1 step_on=device step=7",
    "adam_update shapes=40,33 masters=1 found_inf=1",  # nothing may change
    "adamw_update shapes=3x5,0,1001,7 weight_decay=0.01",
    "adamw_update shapes=40,33 masters=1 mixed=1 weight_decay=0.5",
)

_UPDATE = Primitive(_draw, _bound, updates=("weights", "first_moments", "second_moments", "masters"))

FAMILY = CaseFamily("adam", reference, {"adam_update": _UPDATE, "adamw_update": _UPDATE}, CORNERS, draw)
