"""Cases of stochastic gradient descent: both forms, momentum, Nesterov, decay, master copies, a flag that skips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import sgd as reference
from ..reference.tensor_lists import as_list, positions, skipped
from .bounds import accumulator, exact, exact_where, representable, rounded, sgd_errors, sgd_exact
from .calls import Arguments, Array, Generator, Primitive, as_dtype, wide
from .cases import CaseFamily, Problem
from .drawing import EXACT_DATA, draw_shapes, pick, sample, sample_list, show_list


def _draw(problem: Problem, rng: Generator) -> dict[str, Any]:
    weights, gradients = sample_list(problem, rng), sample_list(problem, rng)
    options = {name: problem.number(name) for name in ("momentum", "dampening", "weight_decay") if problem.word(name)}
    states = [sample(problem, rng, w.shape, dtype=accumulator(w.dtype.name)) for w in weights]
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
    """Operations counted; exact on a grid, and where the step is skipped."""
    errors: list[Array] = []
    rights: list[Array] = []
    options: dict[str, Any] = {
        "lr": float(given["lr"]),
        "momentum": given["momentum"],
        "gain": 1.0 - given["dampening"],
        "decay": given["weight_decay"],
        "scale": float(given["gradient_scale"]),
        "nesterov": given["nesterov"],
        "stepping": given["form"] == "accumulate_step",
    }
    lists = given["weights"], given["gradients"], (given["velocities"],), given["masters"]
    for w, g, (v,), master in positions(*lists):
        operands = wide(w if master is None else master), wide(g), np.zeros(w.shape) if v is None else wide(v)
        errors += sgd_errors(*operands, w.dtype.name, **options)
        rights += sgd_exact(*operands, w.dtype.name, **options)
    return stored(given, errors, rights, expected, ("weights", "velocities"))


def masters_of(problem: Problem, rng: Generator, weights: list[Array]) -> list[Array] | None:
    """Copies of the weights in the accumulator's type, with digits that the weights have not."""
    if not problem.integer("masters"):
        return None
    digits = 0.0 if problem.word("data") in EXACT_DATA else 2.0**-14
    return [
        as_dtype(wide(w) * (1.0 + digits * rng.standard_normal(w.shape)), accumulator(w.dtype.name)) for w in weights
    ]


def stored(
    given: Arguments, errors: list[Array], rights: list[Array], expected: list[Array], names: tuple[str, ...]
) -> list[Array]:
    """Bounds in the order of the results: the lists `names`, weights first, then masters.

    Errors, and where there are none, come weight by weight, for each of the names. A weight in a type shorter than its
    accumulator, or with a master, is rounded in the accumulator first.
    """
    weights, masters = as_list(given["weights"]), as_list(given["masters"])
    if skipped(given["found_inf"]):
        return [exact(ideal) for ideal in expected]
    ideals, limits = iter(expected), []
    for k, name in enumerate(names):
        for i, _ in enumerate(as_list(given[name])):
            kind, kept, ideal = weights[i].dtype.name, accumulator(weights[i].dtype.name), next(ideals)
            error = errors[i * len(names) + k]
            if k == 0 and (masters or kept != kind):
                error = rounded(ideal, kept, error)
            right = rights[i * len(names) + k] & representable(ideal, kind if k == 0 else kept)
            limits.append(exact_where(right, rounded(ideal, kind if k == 0 else kept, error)))
    for i, master in enumerate(masters):
        limits.append(
            exact_where(rights[i * len(names)], rounded(next(ideals), master.dtype.name, errors[i * len(names)]))
        )
    return limits


def draw(rng: Generator) -> str:
    """A random list of shapes and random options."""
    words = [f"shapes={show_list(draw_shapes(rng))} place={pick(rng, 'plain', 'offset')}"]
    words.append(f"data={pick(rng, 'normal', 'integers')}")
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
    "sgd_update shapes=3x5,1001 data=integers momentum=0.5 dampening=0.25 weight_decay=0.25",
    "sgd_update shapes=3x5,1001 data=integers momentum=0.5 nesterov=1 masters=1 gradient_scale=0.25",
    "sgd_update shapes=40,33 data=integers momentum=0.5 nesterov=1 form=accumulate_step",
)

FAMILY = CaseFamily(
    "sgd",
    reference,
    {"sgd_update": Primitive(_draw, _bound, updates=("weights", "velocities", "masters"))},
    CORNERS,
    draw,
)
