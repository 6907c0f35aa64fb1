"""Cases of Adam and AdamW: first and late steps, both decays, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import adam as reference
from ..reference.tensor_lists import positions
from .bounds import accumulator, scaled_unit
from .cases import Arguments, Array, CaseFamily, Generator, Primitive, Problem, as_dtype, wide
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
    if problem.word("step_on") == "device":
        arguments["step"] = np.array(arguments["step"], np.int32)
    if problem.word("found_inf"):
        arguments["found_inf"] = np.array(problem.integer("found_inf"), np.int32)
    return arguments


def _bound(given: Arguments, expected: list[Array]) -> list[Array]:
    """The moments are sums of products; the step inherits the relative errors of both, half that of the second."""
    errors: list[Array] = []
    states = given["first_moments"], given["second_moments"]
    for w, g, (first, second), master in positions(given["weights"], given["gradients"], states, given["masters"]):
        current = wide(w if master is None else master)
        errors += _errors(given, w.dtype.name, current, wide(g), (wide(first), wide(second)))
    return stored(given, errors, expected, 3)


def _errors(given: Arguments, dtype: str, w: Array, g: Array, moments: tuple[Array, Array]) -> list[Array]:
    """Errors of weight and moments. A decay that cancels the gradient makes a second moment smaller than its terms."""
    unit, scale = scaled_unit(dtype, 24.0), float(given["gradient_scale"])
    decay, lr, betas = given["weight_decay"], float(given["lr"]), (given["beta1"], given["beta2"])
    coupled = decay if given.op == "adam_update" else 0.0
    corrected = bool(given["bias_correction"])
    corrections = [1.0 - beta ** float(given["step"]) if corrected else 1.0 for beta in betas]
    terms = np.abs(scale * g) + coupled * np.abs(w)
    m = betas[0] * np.abs(moments[0]) + (1.0 - betas[0]) * terms
    v = betas[1] * moments[1] + (1.0 - betas[1]) * terms**2
    left = betas[1] * moments[1] + (1.0 - betas[1]) * (scale * g + coupled * w) ** 2
    root = np.sqrt(left / corrections[1]) + given["epsilon"]
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

_UPDATE = Primitive(_draw, _bound, updates=("weights", "first_moments", "second_moments", "masters"))

FAMILY = CaseFamily("adam", reference, {"adam_update": _UPDATE, "adamw_update": _UPDATE}, CORNERS, draw)
