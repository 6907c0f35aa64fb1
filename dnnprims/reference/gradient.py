"""Norm, clipping and scaling of lists of gradients, in float64, each stored value rounded once."""

from __future__ import annotations

from math import frexp, ldexp, sqrt
from typing import Any

import numpy as np

from .rounding import Array, finish, round_to, widen
from .tensor_lists import as_list


def global_norm(arrays: Any, *, out: Array | None = None) -> Array:
    """Root of the sum of all squares."""
    tensors = as_list(arrays)
    wide = any(tensor.dtype == np.float64 for tensor in tensors)
    return finish(_norm(tensors), np.float64 if wide else np.float32, out=out)


def clip_by_global_norm(arrays: Any, max_norm: float, *, norm: Array | None = None, epsilon: float = 1e-6) -> Array:
    """Multiply by min(1, max_norm / (norm + epsilon)), the norm taken as stored: the direction is kept."""
    tensors = as_list(arrays)
    norm = global_norm(tensors) if norm is None else norm
    with np.errstate(all="ignore"):
        coefficient = float(max_norm / (widen(norm) + epsilon))
    if not coefficient >= 1.0:
        _scale(tensors, coefficient)
    return norm


def scale_and_check_finite(arrays: Any, scale: Any, *, found_inf: Array | None = None) -> Array:
    """Multiply in place; the flag tells whether an element stored is infinite or NaN."""
    tensors = as_list(arrays)
    found_inf = np.zeros((), np.int32) if found_inf is None else found_inf
    _scale(tensors, float(scale))
    if not all(np.isfinite(widen(tensor)).all() for tensor in tensors):
        found_inf[...] = 1
    return found_inf


def _norm(tensors: list[Any]) -> float:
    """A power of two, which rounds nothing, brings the largest magnitude near 1: no square overflows or vanishes."""
    wide = [np.abs(widen(tensor)) for tensor in tensors]
    largest = max((float(np.max(tensor, initial=0.0)) for tensor in wide), default=0.0)
    if any(np.isnan(tensor).any() for tensor in wide):
        return float("nan")
    if largest in (0.0, float("inf")):
        return largest
    power = frexp(largest)[1]
    return ldexp(sqrt(sum(float(np.sum(np.square(np.ldexp(tensor, -power)))) for tensor in wide)), power)


def _scale(tensors: list[Any], coefficient: float) -> None:
    with np.errstate(all="ignore"):
        for tensor in tensors:
            tensor[...] = round_to(widen(tensor) * coefficient, tensor.dtype)
