"""Make a call again and hold it against the float64 reference, within the bounds that the suite derives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import dnnprims

from ...problem import CallLine
from .. import FAMILIES
from ..calls import Array, Call
from ..cases import CaseFamily, Problem
from ..runner import _describe_worst, _flatten, error_over_bound, expect
from .memory import Memory, fetch, fill, place


@dataclass
class Finding:
    """What became of a call.

    Attributes
    ----------
    refusal : DnnprimsError or None
        The library's own error.
    results : list of str
        A line for each result.
    complaints : list of str
        What is wrong.
    """

    refusal: dnnprims.DnnprimsError | None = None
    results: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def family_of(op: str) -> CaseFamily:
    """The family of cases that a primitive belongs to."""
    for family in FAMILIES.values():
        if op in family.primitives:
            return family
    known = ", ".join(op for family in FAMILIES.values() for op in family.primitives)
    raise dnnprims.BadParamError(
        "replay", "names no primitive", param="line", got=repr(op), expected=f"one of {known}, or a record's file"
    )


def adopt(line: CallLine, values: Mapping[str, Array]) -> Call:
    """The call on these elements, with its destinations and bounds; lists as the reference takes them."""
    arguments = {
        name: list(value) if isinstance(value, tuple) and any(isinstance(a, np.ndarray) for a in value) else value
        for name, value in fill(line, values).items()
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    return family_of(line.op).adopt(line.op, given, math=line.options.get("math", "ieee"))


def unread(line: CallLine, values: Mapping[str, Array]) -> frozenset[str]:
    """Destinations whose old contents must not be read; none where the call is not one that can be judged."""
    try:
        call = adopt(line, values)
    except Exception:  # it will be refused, which the call itself words better
        return frozenset()
    blank = {name for name, target in call.destinations.items() if target.old is None} & set(values)
    shared = {operand.over for operand in line.operands.values()}
    return frozenset(label for label in blank if not line.operands[label].over and label not in shared)


def make(handle: Any, line: CallLine, memory: Memory) -> tuple[list[Any], Any]:
    """Carry the call out; give back its results, and the arguments with what was written."""
    arguments = fill(line, memory.arrays)
    result = getattr(dnnprims, line.op)(handle, **arguments)
    handle.synchronize()
    return _flatten(result), arguments


def check(handle: Any, line: CallLine, values: Mapping[str, Array], *, drawn: bool) -> Finding:
    """Make the call twice and judge it; destinations that must not be read are poisoned where the data are `drawn`."""
    memory = place(handle, line, values, unread(line, values) if drawn else frozenset())
    try:
        made, arguments = make(handle, line, memory)
    except dnnprims.DnnprimsError as error:
        return Finding(refusal=error)
    call = adopt(line, memory.values)
    first = [fetch(handle, a) for a in (*made, *_updated(call, arguments))]
    damage = memory.damage(handle, (*call.destinations, *call.updates))
    again = place(handle, line, memory.values)
    made, arguments = make(handle, line, again)
    second = [fetch(handle, a) for a in (*made, *_updated(call, arguments))]
    return _judge(line.op, call, first, second, damage)


def _updated(call: Call, arguments: Mapping[str, Any]) -> list[Any]:
    return [a for name in call.updates for a in _flatten(arguments[name])]


def _judge(op: str, call: Call, first: list[Array], second: list[Array], damage: list[str]) -> Finding:
    found = Finding(complaints=damage)
    with np.errstate(all="ignore"):
        expected = expect(family_of(op), Problem(op, ()), call)
        limits = [np.nan_to_num(limit, nan=0.0, posinf=0.0) for limit in call.bound(expected)]
    if not len(first) == len(expected) == len(limits):
        found.complaints.append(f"gave {len(first)} results, expected {len(expected)}")
        return found
    for i, (got, other, ideal, limit) in enumerate(zip(first, second, expected, limits, strict=True)):
        if got.shape != ideal.shape:
            found.complaints.append(f"result {i} has shape {got.shape}, expected {ideal.shape}")
            continue
        if got.tobytes() != other.tobytes():
            found.complaints.append(f"result {i} differs between two runs")
        ratio = error_over_bound(got, ideal, np.broadcast_to(limit, ideal.shape))
        found.results.append(f"result {i}  {got.dtype.name} {_shape(got)}: {_quantiles(ratio)}")
        if ratio.size and not ratio.max() <= 1.0:
            found.complaints.append(_describe_worst(i, got, ideal, limit, ratio))
    return found


def _shape(a: Array) -> str:
    return "x".join(map(str, a.shape)) or "scalar"


def _quantiles(ratio: Array) -> str:
    if not ratio.size:
        return "no elements"
    median, high, most = (float(np.quantile(ratio, q, method="nearest")) for q in (0.5, 0.99, 1.0))
    return f"error over bound {median:.3g} median, {high:.3g} p99, {most:.3g} max"
