"""Adam and AdamW on lists of arrays, in float64, each stored value rounded once."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from .rounding import widen
from .tensor_lists import keep, positions, skipped, write


def adam_update(
    weights: Any,
    gradients: Any,
    first_moments: Any,
    second_moments: Any,
    *,
    lr: Any,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1), the decay added to the gradient."""
    hyper = _Adam(lr, step, beta1, beta2, epsilon, weight_decay, 0.0, bias_correction)
    _adam(hyper, weights, gradients, first_moments, second_moments, masters, gradient_scale, found_inf)


def adamw_update(
    weights: Any,
    gradients: Any,
    first_moments: Any,
    second_moments: Any,
    *,
    lr: Any,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """Adam with the decay of the weights apart from the gradient (Loshchilov and Hutter 2019, algorithm 2)."""
    hyper = _Adam(lr, step, beta1, beta2, epsilon, 0.0, weight_decay, bias_correction)
    _adam(hyper, weights, gradients, first_moments, second_moments, masters, gradient_scale, found_inf)


class _Adam:
    """Coefficients of one step.

    1 - beta^t is -expm1(t log beta): the difference loses digits when beta^t is near 1, and a power by multiplications
    loses as many as t is large.
    """

    def __init__(
        self,
        lr: Any,
        step: Any,
        beta1: float,
        beta2: float,
        epsilon: float,
        coupled_decay: float,
        decoupled_decay: float,
        bias_correction: bool,
    ) -> None:
        correction1 = _bias_correction(beta1, int(step)) if bias_correction else 1.0
        correction2 = _bias_correction(beta2, int(step)) if bias_correction else 1.0
        with np.errstate(all="ignore"):
            self.step_size = np.float64(lr) / correction1
            self.root_scale = 1.0 / np.sqrt(np.float64(correction2))
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.coupled = coupled_decay
        self.shrink = float(lr) * decoupled_decay


def _bias_correction(beta: float, step: int) -> float:
    return float(-np.expm1(step * log(beta))) if beta > 0.0 else 1.0


def _adam(
    hyper: _Adam,
    weights: Any,
    gradients: Any,
    first_moments: Any,
    second_moments: Any,
    masters: Any,
    gradient_scale: Any,
    found_inf: Any,
) -> None:
    if skipped(found_inf):
        return
    scale = float(gradient_scale)
    with np.errstate(all="ignore"):
        for w, g, (m, v), master in positions(weights, gradients, (first_moments, second_moments), masters):
            current = widen(w if master is None else master)
            gradient = scale * widen(g) + hyper.coupled * current
            first = hyper.beta1 * widen(m) + (1.0 - hyper.beta1) * gradient
            second = hyper.beta2 * widen(v) + (1.0 - hyper.beta2) * gradient * gradient
            ratio = first / (np.sqrt(second) * hyper.root_scale + hyper.epsilon)
            keep(m, first)
            keep(v, second)
            write(w, master, current - (hyper.shrink * current + hyper.step_size * ratio))
