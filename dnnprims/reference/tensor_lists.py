"""What the references over lists of arrays share: which arrays belong together, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .rounding import Array, round_to, widen


def positions(
    weights: Any, gradients: Any, states: tuple[Any, ...], masters: Any
) -> Iterator[tuple[Array, Array, tuple[Array | None, ...], Array | None]]:
    """Yield (weight, gradient, states, master) for each weight; a list that was left out gives None."""
    lists = [as_list(tensors) for tensors in (weights, gradients, *states, masters)]
    count = len(lists[0])
    for weight, gradient, *state, master in zip(*(tensors or [None] * count for tensors in lists), strict=True):
        yield weight, gradient, tuple(state), master


def as_list(tensors: Any) -> list[Any]:
    """Accept one array for a list of one, and None for an empty one."""
    if tensors is None:
        return []
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def skipped(found_inf: Any) -> bool:
    """Whether the flag says that the step is to be left out."""
    return found_inf is not None and bool(np.asarray(found_inf) != 0)


def keep(state: Array | None, value: Array) -> None:
    """Store a state, where there is one."""
    if state is not None:
        state[...] = round_to(value, state.dtype)


def write(weight: Array, master: Array | None, value: Array) -> None:
    """Store the weight; with a master copy, store that and round it, so that the two agree."""
    if master is not None:
        master[...] = round_to(value, master.dtype)
        value = widen(master)
    weight[...] = round_to(value, weight.dtype)
