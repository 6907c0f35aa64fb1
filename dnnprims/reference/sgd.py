"""Stochastic gradient descent on lists of arrays, in float64, each stored value rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rounding import widen
from .tensor_lists import keep, positions, skipped, write


def sgd_update(
    weights: Any,
    gradients: Any,
    velocities: Any = None,
    *,
    lr: Any,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    form: str = "accumulate_gradient",
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """Stochastic gradient descent.

    The two forms are one recursion in two variables: with v' = -lr v, `accumulate_gradient` at a constant lr is
    `accumulate_step`; when lr changes, the former applies the new lr to the whole history, the latter only to what is
    added. Nesterov's look-ahead evaluates the next velocity with the gradient that is at hand (Sutskever et al. 2013,
    equations 3 and 4, rewritten for the point at which the gradient is taken).
    """
    if skipped(found_inf):
        return
    lr, scale, gain = float(lr), float(gradient_scale), 1.0 - dampening
    with np.errstate(all="ignore"):
        for w, g, (v,), master in positions(weights, gradients, (velocities,), masters):
            current = widen(w if master is None else master)
            gradient = scale * widen(g) + weight_decay * current
            history = momentum * widen(v) if v is not None and momentum != 0.0 else 0.0
            if form == "accumulate_gradient":
                velocity = history + gain * gradient
                step = -lr * (gradient + momentum * velocity if nesterov else velocity)
            else:
                velocity = history - lr * gain * gradient
                step = momentum * velocity - lr * gradient if nesterov else velocity
            keep(v, velocity)
            write(w, master, current + step)
