"""The operands of a call: their names, and lists of tensors written out.

A plan function is named ``plan_<function>``, and its last parameters are the call's operands under their public names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import checks
from .descriptors import TensorDescriptor
from .errors import BadParamError
from .runtime.launch import PlanSpec, Profile
from .runtime.limits import MOST_BLOCKS, oversized_grid, unrepresentable
from .runtime.tuning import layer_key

#: To be made once: ``list | tuple`` is made anew wherever it stands.
_LISTS = (list, tuple)
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
        flat.extend(a) if isinstance(a, _LISTS) else flat.append(a)
    return flat


def flat_names(build: Build, operands: tuple[Any, ...]) -> list[str]:
    """Names of the operands with lists written out."""
    labels: list[str] = []
    for label, a in zip(operand_names(build, operands), operands, strict=True):
        labels += [f"{label}[{i}]" for i in range(len(a))] if isinstance(a, list | tuple) else [label]
    return labels


def describe_operands(
    build: Build, operands: tuple[Any, ...], describe: Callable[[Any], TensorDescriptor | None]
) -> tuple[Any, ...]:
    """Describe each operand, and each item of lists; refuse what the plan function does not take one for.

    A plan function annotates an operand as `TensorDescriptor` or as `Tensors`, a list, with ``| None`` where it may be
    left out.
    """
    op = op_name(build)
    described: list[Any] = []
    parameters = list(inspect.signature(build).parameters.values())[-len(operands) :]
    for parameter, a in zip(parameters, operands, strict=True):
        label, kind = parameter.name, str(parameter.annotation)
        several = kind.startswith("Tensors")
        if a is None and "None" not in kind:
            raise checks.refuse_missing(op, label, "an array or a list of arrays" if several else "an array")
        if isinstance(a, list | tuple):
            if not several:
                raise checks.refuse_list(op, label, len(a))
            items = [(f"{label}[{i}]", item) for i, item in enumerate(a)]
            described.append(tuple(_describe(op, name, item, describe) for name, item in items))
        else:
            described.append(a if a is None else _describe(op, label, a, describe))
    return tuple(described)


def specify(build: Build, profile: Profile, options: tuple[Any, ...], described: tuple[Any, ...]) -> PlanSpec:
    """Plan a call, and see that it can be launched."""
    spec = build(profile, *options, *described)
    if profile.tuned.entries:
        preferred = profile.tuned.variant(key_of(build, profile, options, described, spec))
        spec = build(replace(profile, preferred=preferred), *options, *described) if preferred else spec
    misfit, grid = unrepresentable(spec), oversized_grid(spec)
    if misfit:
        raise checks.refuse_magnitude(op_name(build), *misfit)
    if grid:
        raise checks.refuse_grid(op_name(build), grid, MOST_BLOCKS)
    return spec


def key_of(build: Build, profile: Profile, options: tuple[Any, ...], described: tuple[Any, ...], spec: PlanSpec) -> str:
    """The call as tuning names it: results that it makes itself where they are left out do not matter."""
    made = {result.operand for result in spec.results}
    named = dict(zip(flat_names(build, described), flatten(described), strict=True))
    read = {name: d for i, (name, d) in enumerate(named.items()) if i not in made}
    return layer_key(op_name(build), profile.math, options, read)


def _describe(op: str, label: str, a: Any, describe: Callable[[Any], TensorDescriptor | None]) -> TensorDescriptor:
    try:
        d = describe(a)
    except BadParamError as error:
        raise checks.refuse_description(op, label, error) from None
    except AttributeError:
        raise checks.refuse_foreign(op, label, a, "an array or a TensorDescriptor") from None
    if d is None:
        raise checks.refuse_missing(op, label, "an array")
    if d.alignment < d.dtype.itemsize and d.size:
        raise checks.refuse_split_elements(op, label, d.alignment, d.dtype.itemsize)
    return d


def refuse_descriptors(build: Build, operands: tuple[Any, ...]) -> None:
    """A call works on arrays; descriptors stand for them in `prepare` and `supports` alone."""
    for label, a in zip(flat_names(build, operands), flatten(operands), strict=True):
        if isinstance(a, TensorDescriptor):
            raise checks.refuse_foreign(op_name(build), label, a, "an array", "bind it to memory, or use prepare")
