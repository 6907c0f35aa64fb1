"""Optimizer steps: their operations counted one by one, each at the size of what it yields.

In each derivation u is the accumulator's unit roundoff. A constant that the accumulator need not hold is rounded once,
a product once, a sum once; a fused multiply-add does better. To first order the errors of the operands pass through
with the factors of the operation. The last sum is the rounding that the storage counts (`rounded`); where the storage
is shorter than the accumulator, the caller adds it.
"""

from __future__ import annotations

import numpy as np

from .exactness import exact_sums, grid, lowest_bit
from .formats import Array, accumulator, both_sides, ulp, unit_roundoff


def _unit(dtype: str) -> float:
    return both_sides(dtype) * unit_roundoff(accumulator(dtype))


def sgd_errors(
    w: Array, g: Array, v: Array, dtype: str, *, lr: float, momentum: float, gain: float, decay: float, scale: float,
    nesterov: bool, stepping: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Errors of weight and velocity.

    g' = scale g + decay w: two roundings of constants, two products, a sum: 3 u G, G = |scale g| + decay |w|.
    accumulate_gradient, v' = mu v + gain g': mu v has 2 and the sum's; gain g' has 2, the sum's and the 3 of g': at
    most 6 u V, V = mu |v| + gain G. w' = w - lr v': lr rounded, the product: 8 u lr V. Nesterov, w' = w - lr (g' + mu
    v'): mu v' has 6 + 2 and the sum's, then lr's 2: 11 u lr mu V; g' has 3 and the sum's, then 2: 6 u lr G.
    accumulate_step, v' = mu v - (lr gain) g': 3 for lr gain, the product, the 3 of g', the sum: 8 u V with
    V = mu |v| + lr gain G. w' = w + v': 8 u V. Nesterov, w' = w + (mu v' - lr g'): 8 + 2 and the sum's: 11 u mu V;
    lr g' has 3 + 2 and the sum's: 6 u lr G.
    """
    u, large_g = _unit(dtype), np.abs(scale * g) + decay * np.abs(w)
    rate = lr if stepping else 1.0
    large_v = momentum * np.abs(v) + rate * abs(gain) * large_g
    step = large_v if stepping else lr * large_v
    error = u * (11.0 * momentum * step + 6.0 * lr * large_g) if nesterov else u * 8.0 * step
    tiny = ulp(0.0, accumulator(dtype))
    return error + 4.0 * tiny, (8.0 if stepping else 6.0) * u * large_v + 4.0 * tiny


def sgd_exact(
    w: Array, g: Array, v: Array, dtype: str, *, lr: float, momentum: float, gain: float, decay: float, scale: float,
    nesterov: bool, stepping: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Where weight and velocity are exact: every term on the way is a multiple of one step and their sizes add up to
    less than 2^p steps (`exact_sums`), for g', v' and w' in turn."""
    large_g = np.abs(scale * g) + decay * np.abs(w)
    step_g = np.minimum(grid(scale) * lowest_bit(g), grid(decay) * lowest_bit(w))
    rate = lr if stepping else 1.0
    large_v = momentum * np.abs(v) + rate * abs(gain) * large_g
    step_v = np.minimum(grid(momentum) * lowest_bit(v), grid(rate) * grid(gain) * step_g)
    states = exact_sums(large_g, step_g, dtype) & exact_sums(large_v, step_v, dtype)
    factor = 1.0 if stepping else lr
    moved, finest = factor * large_v, grid(factor) * step_v
    if nesterov:
        moved = lr * large_g + factor * momentum * large_v
        finest = np.minimum(grid(lr) * step_g, grid(factor) * grid(momentum) * step_v)
    return states & exact_sums(np.abs(w) + moved, np.minimum(lowest_bit(w), finest), dtype), states


def adam_errors(
    w: Array, g: Array, moments: tuple[Array, Array], dtype: str, *, lr: float, betas: tuple[float, float],
    epsilon: float, corrections: tuple[float, float], coupled: float, decoupled: float, scale: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Errors of weight, first and second moment.

    g' = scale g + d w: 3 u T, T = |scale g| + d |w|, as in `sgd_errors`.
    m' = b1 m + (1 - b1) g': 3 on the first term; on the second a constant, a product, the sum and g' itself: 6.
    v' = b2 v + (1 - b2) g'^2: 3 on the first term; on the second a constant, two products, the sum and g' twice: 10.
    r = m' / D, D = R + epsilon, R = sqrt(v') / sqrt(c2): the root halves the relative error of v', e_v / 2 v', and adds
    one rounding; where v' is of the size of its error, |sqrt a - sqrt b| <= sqrt |a - b| holds instead. 1 / sqrt(c2) is
    rounded, multiplied, epsilon rounded, the sum rounded: e_D = R (min(e_v / 2 v', sqrt(e_v / v')) + 3 u)
    + u epsilon + u D. The quotient: e_r = (e_m + |r| e_D) / D + u |r|.
    w' = w - (shrink w + S r), S = lr / c1 rounded: S e_r + 3 u S |r| + 3 u shrink |w|; another 2 u |w| where the decay
    is decoupled, for those who form (1 - shrink) w.
    """
    u, tiny = _unit(dtype), np.finfo(np.float64).tiny
    gradient, large = scale * g + coupled * w, np.abs(scale * g) + coupled * np.abs(w)
    m = betas[0] * moments[0] + (1.0 - betas[0]) * gradient
    v = betas[1] * moments[1] + (1.0 - betas[1]) * gradient**2
    floor = 4.0 * ulp(0.0, accumulator(dtype))
    m_error = u * (3.0 * betas[0] * np.abs(moments[0]) + 6.0 * (1.0 - betas[0]) * large) + floor
    v_error = u * (3.0 * betas[1] * moments[1] + 10.0 * (1.0 - betas[1]) * large**2) + floor
    relative = v_error / np.maximum(v, tiny)
    root = np.sqrt(v / corrections[1])
    lost = np.minimum(0.5 * relative * root, np.sqrt(v_error / corrections[1]))
    total = root + epsilon
    total_error = lost + 3.0 * u * root + u * epsilon + u * total
    size = np.abs(m) / total
    ratio_error = (m_error + size * total_error) / total + u * size
    rate, shrink = lr / corrections[0], lr * decoupled
    error = rate * ratio_error + 3.0 * u * rate * size + 3.0 * u * shrink * np.abs(w)
    return error + (2.0 * u * np.abs(w) if decoupled else 0.0) + floor, m_error, v_error
