"""Run one case and hold it against the float64 reference.

A case runs twice. It passes when every element lies within its bound, both runs give the same bits, no guard band and
no input has changed, and the device flag is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import dnnprims

from . import FAMILIES, bounds
from .cases import DTYPES, Array, Call, CaseFamily, Problem, as_dtype, wide
from .placing import Placed, place, poison
from .subjects import Declined, Library, Subject


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    problem : Problem
        The case.
    ratios : array
        Error over bound of each element.
    complaint : str
        What is wrong; empty when the case passed or was not taken.
    declined : str
        Why the subject does not take the case; empty where it does.
    """

    problem: Problem
    ratios: Array
    complaint: str
    declined: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is nothing to complain about."""
        return not self.complaint


def verify(
    handle: dnnprims.Handle,
    families: Iterable[str] = (),
    dtypes: Sequence[str] = DTYPES,
    seed: int = 0,
    count: int = 20,
    watch: Callable[[Problem], None] = lambda problem: None,
) -> list[Outcome]:
    """Run the corner cases and `count` random ones of each family and dtype.

    Parameters
    ----------
    handle : Handle
        The backend under test.
    families : iterable of str
        Keys of `FAMILIES`; all where empty.
    dtypes : sequence of str
        Element types to run.
    seed : int
        Of the random cases and of all data.
    count : int
        Random cases for each family and dtype.
    watch : callable
        Called with each problem before it runs.

    Returns
    -------
    list of Outcome
    """
    outcomes = []
    for family, problem in select(families, dtypes, seed, count):
        watch(problem)
        outcomes.append(run_case(handle, family, problem))
    return outcomes


def select(families: Iterable[str], dtypes: Sequence[str], seed: int, count: int) -> list[tuple[CaseFamily, Problem]]:
    """The cases of some families, all where none is named. Those of one do not depend on which others are chosen."""
    chosen = [_family(name) for name in families] or list(FAMILIES.values())
    return [(family, p) for family in chosen for dtype in dtypes for p in family.problems(dtype, seed, count)]


def named(text: str) -> tuple[CaseFamily, Problem]:
    """The case that a line names."""
    problem = Problem.parse(text, dtype="float32", seed=0)
    for family in FAMILIES.values():
        if problem.op in family.makers:
            return family, problem
    known = ", ".join(op for family in FAMILIES.values() for op in family.makers)
    raise dnnprims.BadParamError(
        "verify", "names no primitive", param="--case", got=repr(problem.op), expected=f"one of {known}"
    )


def run_case(subject: dnnprims.Handle | Subject, family: CaseFamily, problem: Problem) -> Outcome:
    """Run one case on a handle of this library or on another implementation. What the call raises is its outcome."""
    call = family.makers[problem.op](problem, np.random.default_rng(problem.integer("seed")))
    expected = expect(family, problem, call)
    with np.errstate(all="ignore"):
        limits = [np.nan_to_num(limit, nan=0.0, posinf=0.0) for limit in call.bound(expected)]
    nothing = np.zeros(0)
    try:
        (first, damage), (second, _) = execute(subject, problem, call), execute(subject, problem, call)
    except Declined as reason:
        return Outcome(problem, nothing, "", str(reason))
    except Exception as error:
        return Outcome(problem, nothing, f"{type(error).__name__}: {error}")
    if damage:
        return Outcome(problem, nothing, damage)
    if len(first) != len(expected) or len(limits) != len(expected):
        return Outcome(problem, nothing, f"gave {len(first)} results, expected {len(expected)}")
    ratios, complaints = [nothing], []
    for i, (got, again, ideal, limit) in enumerate(zip(first, second, expected, limits, strict=True)):
        if got.shape != ideal.shape:
            return Outcome(problem, nothing, f"result {i} has shape {got.shape}, expected {ideal.shape}")
        if got.tobytes() != again.tobytes():
            complaints.append(f"result {i} differs between two runs")
        ratio = error_over_bound(got, ideal, np.broadcast_to(limit, ideal.shape))
        ratios.append(ratio.ravel())
        if ratio.size and not ratio.max() <= 1.0:
            complaints.append(_describe_worst(i, got, ideal, limit, ratio))
    return Outcome(problem, np.concatenate(ratios), "; ".join(complaints))


def expect(family: CaseFamily, problem: Problem, call: Call) -> list[Array]:
    """Results of the reference on float64 copies of the operands, so that nothing but float64 rounds them."""
    arguments = {name: _widen(value) for name, value in {**call.arguments, **call.reference}.items()}
    for name, target in call.destinations.items():
        if target.old is not None:
            arguments[name] = wide(target.old)
    result = getattr(family.reference, problem.op)(**arguments)
    return [wide(a) for a in (*_flatten(result), *(a for name in call.updates for a in _flatten(arguments[name])))]


def execute(subject: dnnprims.Handle | Subject, problem: Problem, call: Call) -> tuple[list[Array], str]:
    """Results of the primitive, and what is wrong with its memory."""
    if isinstance(subject, dnnprims.Handle):
        subject = Library(subject)
    how = problem.word("place", "plain")
    placed: dict[str, list[Placed]] = {}
    arguments: dict[str, Any] = {}
    for name, value in call.arguments.items():
        placed[name] = [place(subject, a, how) for a in _arrays(value)]
        arguments[name] = _rebuild(value, iter(placed[name]))
    written = set(call.updates)
    for name, target in call.destinations.items():
        into = "out" if target.old is not None and problem.word("into") != "in_place" else problem.word("into", "new")
        if into == "in_place" and target.in_place:
            arguments[name] = arguments[target.in_place]
            written.add(target.in_place)
        elif into != "new":
            kind = as_dtype(0, target.dtype).dtype
            values = poison(target.shape, kind) if target.old is None else target.old
            placed[name] = [place(subject, values, "plain" if how == "strided" else how)]
            arguments[name] = placed[name][0].view
            written.add(name)
    result = subject.call(problem.op, arguments)
    subject.synchronize()
    results = [*_flatten(result), *(a for name in call.updates for a in _flatten(arguments[name]))]
    found = [subject.to_numpy(a) for a in results]
    damage = [
        f"{name}: {words}"
        for name, arrays in placed.items()
        for one in arrays
        if (words := one.damage(subject.to_numpy(one.base), name in written))
    ]
    wrong = [
        f"{name} has dtype {a.dtype.name}, expected {target.dtype}"
        for (name, target), a in zip(call.destinations.items(), found, strict=False)
        if a.dtype.name != target.dtype
    ]
    return found, "; ".join(damage + wrong)


def error_over_bound(got: Array, expected: Array, limit: Array) -> Array:
    """|got - expected| / bound. Both NaN, or the same value, is 0; one NaN, or a wrong infinity, is infinite."""
    value, kind = wide(got), str(got.dtype)
    with np.errstate(all="ignore"):
        error = np.abs(value - expected)
        ratio = np.where(limit > 0, error / np.where(limit > 0, limit, 1.0), np.inf)
        if kind in DTYPES:
            top = bounds.largest_finite(kind)
            overflowing = np.isinf(value) & (value * expected > 0) & (np.abs(expected) + limit >= top)
            ratio = np.where(overflowing, 0.0, ratio)
    same = (value == expected) | (np.isnan(value) & np.isnan(expected))
    odd = np.isnan(value) != np.isnan(expected)
    return np.asarray(np.where(same, 0.0, np.where(odd | np.isnan(ratio), np.inf, ratio)))


def _describe_worst(i: int, got: Array, expected: Array, limit: Any, ratio: Array) -> str:
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    limits = np.broadcast_to(limit, expected.shape)
    where = ", ".join(str(int(k)) for k in at)
    return (
        f"result {i}[{where}] is {float(got[at])!r}, expected {float(expected[at])!r} within {float(limits[at]):.3g}: "
        f"{float(ratio[at]):.3g} times the bound, {int((ratio > 1).sum())} of {ratio.size} beyond theirs"
    )


def _flatten(result: Any) -> list[Any]:
    """Arrays of a result, of nested tuples and lists, without the Nones."""
    if result is None:
        return []
    if isinstance(result, list | tuple):
        return [a for item in result for a in _flatten(item)]
    return [result]


def _arrays(value: Any) -> list[Array]:
    return [a for a in _flatten(value) if isinstance(a, np.ndarray)]


def _rebuild(value: Any, placed: Any) -> Any:
    """The same value with its arrays replaced, in order."""
    if isinstance(value, list):
        return [_rebuild(item, placed) for item in value]
    return next(placed).view if isinstance(value, np.ndarray) else value


def _widen(value: Any) -> Any:
    if isinstance(value, list):
        return [_widen(item) for item in value]
    floating = isinstance(value, np.ndarray) and value.dtype.name in DTYPES
    return wide(value) if floating else value.copy() if isinstance(value, np.ndarray) else value


def _family(name: str) -> CaseFamily:
    if name not in FAMILIES:
        raise dnnprims.BadParamError(
            "verify", "is unknown", param="family", got=repr(name), expected="one of " + ", ".join(FAMILIES)
        )
    return FAMILIES[name]
