"""Cases of stochastic gradient descent: both forms, momentum, Nesterov, decay, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import sgd as reference
from ..reference.tensor_lists import as_list, positions
from .bounds import accumulator, rounded, scaled_unit
from .cases import Arguments, Array, CaseFamily, Generator, Primitive, Problem, as_dtype, wide
from .drawing import draw_shapes, pick, sample_list, show_list


def _draw(problem: Problem, rng: Generator) -> dict[str, Any]:
    weights, gradients = sample_list(problem, rng), sample_list(problem, rng)
    options = {name: problem.number(name) for name in ("momentum", "dampening", "weight_decay") if problem.word(name)}
    states = [as_dtype(rng.standard_normal(w.shape), accumulator(w.dtype.name)) for w in weights]
    arguments: dict[str, Any] = {
        "weights": weights,
        "gradients": gradients,
        "velocities": states if options.get("momentum") else None,
        "lr": problem.number("lr", 0.125),
        "nesterov": problem.integer("nesterov") == 1,
        "form": problem.word("form", "accumulate_gradient"),
        "masters": masters_of(problem, rng, weights),
        "gradient_scale": problem.number("gradient_scale", 1.0),
        **options,
    }
    if problem.word("lr_on") == "device":
        arguments["lr"] = np.array(arguments["lr"], np.float32)
    if problem.word("found_inf"):
        arguments["found_inf"] = np.array(problem.integer("found_inf"), np.int32)
    return arguments


def _bound(given: Arguments, expected: list[Array]) -> list[Array]:
    """Each state is a sum of few products: so many roundings of the sizes of its terms."""
    errors: list[Array] = []
    lr, momentum, stepping = float(given["lr"]), given["momentum"], given["form"] == "accumulate_step"
    for w, g, (v,), master in positions(given["weights"], given["gradients"], (given["velocities"],), given["masters"]):
        current = wide(w if master is None else master)
        gradient = np.abs(float(given["gradient_scale"]) * wide(g)) + given["weight_decay"] * np.abs(current)
        history = momentum * np.abs(wide(v)) if v is not None and momentum else np.zeros(w.shape)
        unit = scaled_unit(w.dtype.name, 16.0)
        large = (lr if stepping else 1.0) * gradient + history
        step = large if stepping else lr * large
        errors.append(unit * (np.abs(current) + (1.0 + momentum) * step + lr * gradient))
        if v is not None:
            errors.append(unit * large)
    return stored(given, errors, expected, 1 if given["velocities"] is None else 2)


def masters_of(problem: Problem, rng: Generator, weights: list[Array]) -> list[Array] | None:
    """Copies of the weights in the accumulator's type, with digits that the weights have not."""
    if not problem.integer("masters"):
        return None
    return [
        as_dtype(wide(w) * (1.0 + 2.0**-14 * rng.standard_normal(w.shape)), accumulator(w.dtype.name)) for w in weights
    ]


def stored(given: Arguments, errors: list[Array], expected: list[Array], per_weight: int) -> list[Array]:
    """Bounds in the order of the results: weights, each list of states, masters; errors come weight by weight."""
    weights, masters = as_list(given["weights"]), as_list(given["masters"])
    ideal, limits = iter(expected), []
    for k in range(per_weight):
        for i, w in enumerate(weights):
            kind = w.dtype.name if k == 0 else accumulator(w.dtype.name)
            error = errors[i * per_weight + k]
            if k == 0 and masters:
                error = rounded(wide(masters[i]), accumulator(w.dtype.name), error)
            limits.append(rounded(next(ideal), kind, error))
    for i, master in enumerate(masters):
        limits.append(rounded(next(ideal), master.dtype.name, errors[i * per_weight]))
    return limits


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

FAMILY = CaseFamily(
    "sgd",
    reference,
    {"sgd_update": Primitive(_draw, _bound, updates=("weights", "velocities", "masters"))},
    CORNERS,
    draw,
)
