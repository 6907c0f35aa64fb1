"""Cases of stochastic gradient descent: both forms, momentum, Nesterov, decay, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import sgd as reference
from .bounds import accumulator, rounded, scaled_unit
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


def make_update(problem: Problem, rng: Generator) -> Call:
    """Each state is a sum of few products: so many roundings of the sizes of its terms."""
    weights, gradients = sample_list(problem, rng), sample_list(problem, rng)
    options = {name: problem.number(name) for name in ("momentum", "dampening", "weight_decay") if problem.word(name)}
    momentum = options.get("momentum", 0.0)
    states = [as_dtype(rng.standard_normal(w.shape), accumulator(w.dtype.name)) for w in weights] if momentum else None
    masters = masters_of(problem, rng, weights)
    arguments: dict[str, Any] = {
        "weights": weights,
        "gradients": gradients,
        "velocities": states,
        "lr": problem.number("lr", 0.125),
        "nesterov": problem.integer("nesterov") == 1,
        "form": problem.word("form", "accumulate_gradient"),
        "masters": masters,
        "gradient_scale": problem.number("gradient_scale", 1.0),
        **options,
    }
    if problem.word("lr_on") == "device":
        arguments["lr"] = np.array(arguments["lr"], np.float32)
    if problem.word("found_inf"):
        arguments["found_inf"] = np.array(problem.integer("found_inf"), np.int32)

    def bound(expected: list[Array]) -> list[Array]:
        bounds: list[Array] = []
        lr = float(arguments["lr"])
        for i, w in enumerate(weights):
            current = wide(w if masters is None else masters[i])
            gradient = np.abs(arguments["gradient_scale"] * wide(gradients[i]))
            gradient = gradient + options.get("weight_decay", 0.0) * np.abs(current)
            history = momentum * np.abs(wide(states[i])) if states else np.zeros(w.shape)
            unit = scaled_unit(w.dtype.name, 16.0)
            large = (lr if problem.word("form") == "accumulate_step" else 1.0) * gradient + history
            step = large if problem.word("form") == "accumulate_step" else lr * large
            bounds.append(unit * (np.abs(current) + (1.0 + momentum) * step + lr * gradient))
            if states:
                bounds.append(unit * large)
        return stored(arguments, bounds, expected, 2 if states else 1)

    updates = ("weights", *(("velocities",) if states else ()), *(("masters",) if masters else ()))
    return Call(arguments, bound, updates=updates)


def masters_of(problem: Problem, rng: Generator, weights: list[Array]) -> list[Array] | None:
    """Copies of the weights in the accumulator's type, with digits that the weights have not."""
    if not problem.integer("masters"):
        return None
    return [
        as_dtype(wide(w) * (1.0 + 2.0**-14 * rng.standard_normal(w.shape)), accumulator(w.dtype.name)) for w in weights
    ]


def stored(arguments: dict[str, Any], errors: list[Array], expected: list[Array], per_weight: int) -> list[Array]:
    """Bounds in the order of the results: weights, each list of states, masters; errors come weight by weight."""
    weights, masters = arguments["weights"], arguments["masters"]
    ideal, bounds = iter(expected), []
    for k in range(per_weight):
        for i, w in enumerate(weights):
            kind = w.dtype.name if k == 0 else accumulator(w.dtype.name)
            error = errors[i * per_weight + k]
            if k == 0 and masters is not None:
                error = rounded(wide(masters[i]), accumulator(w.dtype.name), error)
            bounds.append(rounded(next(ideal), kind, error))
    for i, master in enumerate(masters or ()):
        bounds.append(rounded(next(ideal), master.dtype.name, errors[i * per_weight]))
    return bounds


def draw(rng: Generator) -> str:
    """A random list of shapes and random options."""
    words = [f"shapes={show_list(draw_shapes(rng))} place={pick(rng, 'plain', 'offset')}"]
    words.append(f"form={pick(rng, 'accumulate_gradient', 'accumulate_step')} masters={int(rng.integers(2))}")
    if rng.random() < 0.7:
        words.append(f"momentum={pick(rng, '0.5', '0.9')} " + pick(rng, "nesterov=1", "dampening=0.25", ""))
    return f"sgd_update {' '.join(words)} weight_decay={pick(rng, '0.0', '0.01')} mixed={int(rng.integers(2))}"


CORNERS = (
    "sgd_update shapes=0",
    "sgd_update shapes=1",
    "sgd_update shapes=3x5,0,1001,7 momentum=0.9",
    "sgd_update shapes=3x5,1001 momentum=0.9 form=accumulate_step weight_decay=0.01",
    "sgd_update shapes=3x5,1001 momentum=0.9 nesterov=1 gradient_scale=0.25",
    "sgd_update shapes=3x5,1001 momentum=0.9 nesterov=1 form=accumulate_step place=offset",
    "sgd_update shapes=40,33 momentum=0.5 dampening=0.25 masters=1 mixed=1",
    "sgd_update shapes=40,33 lr_on=device",
    "sgd_update shapes=40,33 momentum=0.9 masters=1 found_inf=1",  # nothing may change
    "sgd_update shapes=40,33 found_inf=0",
)

FAMILY = CaseFamily("sgd", reference, {"sgd_update": make_update}, CORNERS, draw)
