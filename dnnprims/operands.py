"""The operands of a call: their names, and lists of tensors written out.

A plan function is named ``plan_<function>``, and its last parameters are the call's operands under their public names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .runtime.launch import PlanSpec

#: Plan function of an op: (profile, *options, *operand descriptors) -> PlanSpec.
Build = Callable[..., PlanSpec]


def op_name(build: Build) -> str:
    """Public name of the op that a plan function belongs to."""
    return build.__name__.removeprefix("plan_")


def operand_names(build: Build, operands: tuple[Any, ...]) -> list[str]:
    """Names of the operands: the last parameters of the plan function."""
    return list(inspect.signature(build).parameters)[-len(operands) :]


def flatten(operands: Sequence[Any]) -> list[Any]:
    """Operands with lists written out in place."""
    flat: list[Any] = []
    for a in operands:
        flat.extend(a) if isinstance(a, list | tuple) else flat.append(a)
    return flat


def flat_names(build: Build, operands: tuple[Any, ...]) -> list[str]:
    """Names of the operands with lists written out."""
    labels: list[str] = []
    for label, a in zip(operand_names(build, operands), operands, strict=True):
        labels += [f"{label}[{i}]" for i in range(len(a))] if isinstance(a, list | tuple) else [label]
    return labels


def map_operands(convert: Callable[[Any], Any], operands: Sequence[Any]) -> Iterator[Any]:
    """Apply to each operand and to each item of lists."""
    for a in operands:
        yield tuple(convert(item) for item in a) if isinstance(a, list | tuple) else convert(a)
