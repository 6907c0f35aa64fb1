"""Ways of doing a call that can be chosen among: which there are, and why each does not take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .ops.convolution import ALGORITHMS
from .runtime.launch import PlanSpec, Profile

_LAYERS, _PRODUCTS = ("few_rows", "ping_pong", "lt_epilogue", "lt_then_pass"), ("lt_product", "lt_product_along_k")


def _names(direction: str) -> tuple[str, ...]:
    return tuple(algorithm.name for algorithm in ALGORITHMS[direction])


#: Function -> variants that are worth timing against each other.
ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "fc_forward": _LAYERS,
    "fc_backward": ("few_outputs", *_PRODUCTS),
    "fc_backward_data": _PRODUCTS,
    "fc_backward_weights": _PRODUCTS,
    "conv_forward": _names("forward"),
    "conv_backward_data": _names("data"),
    "conv_backward_filter": _names("filter"),
    "conv_transpose_forward": _names("data"),
}


def alternatives(
    build: Any, profile: Profile, options: tuple[Any, ...], described: tuple[Any, ...], default: PlanSpec
) -> Iterator[tuple[str, PlanSpec | str]]:
    """Each variant with its plan, the default's first, or with the reason why it does not take the call."""
    yield default.variant, default
    for name in ALTERNATIVES.get(default.op, ()):
        if name != default.variant:
            spec = build(replace(profile, preferred=name), *options, *described)
            yield name, spec if spec.variant == name else dict(spec.refused).get(name, "is not asked for")
