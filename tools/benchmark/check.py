"""Hold what is timed against the float64 reference: ours before it is timed, and each peer, so that it does the same.

A primitive must first pass a small conformance problem of its kind. Then the very call that is timed runs over results
of NaN, and pieces of it, at both ends, are compared with the reference on the same pieces: where a piece is a call of
its own, element by element under the bounds that conformance derives; always, and for the peers, as
||got - expected|| / ||expected||, of which at least half of the digits must agree. That is no bound of rounding, but
what another function, another layout or a forgotten tail cannot meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.bounds import ulp, unit_roundoff
from dnnprims.conformance.cases import DTYPES, CaseFamily, Problem, wide
from dnnprims.conformance.runner import error_over_bound, expect, run_case

from .arrays import Arrays
from .case import Case, Part

#: Explicit bits of tf32's significand, and the implied one.
_TF32_DIGITS = 11


class Checker:
    """Checks cases on one handle, each conformance problem once."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self._outcomes: dict[tuple[str, str], str] = {}

    def conformance(self, handle: dp.Handle, case: Case) -> str:
        """Complaint about the primitive on the case's small problem, empty when it passed."""
        if not case.check:
            return ""
        key = (handle.math, case.check)
        if key not in self._outcomes:
            problem = Problem.parse(case.check, dtype=case.dtype, seed=0, math=handle.math)
            self._outcomes[key] = run_case(handle, _family_of(problem.op), problem).complaint
        return self._outcomes[key]

    def before(self, case: Case, operands: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Host copies of the pieces' operands, taken before a call that may change them."""
        return [
            {
                name: self._host(part.take[name](a))
                for name, a in operands.items()
                if name in part.take and a is not None
            }
            for part in case.parts
        ]

    def error(self, case: Case, pieces: list[dict[str, Any]], results: Mapping[str, Any]) -> float:
        """Largest relative error over the pieces; `pieces` are what `before` gave."""
        worst = 0.0
        for part, operands in zip(case.parts, pieces, strict=True):
            expected = part.expect() if part.expect else self._reference(case, part, operands)
            for name, ideal in expected.items():
                if name in part.take and name in results:
                    got = self._host(part.take[name](results[name]))
                    worst = max(worst, relative_error(got, ideal))
        return worst

    def over_bound(self, case: Case, pieces: list[dict[str, Any]], results: Mapping[str, Any]) -> float:
        """Largest error over its derived bound, of the pieces that are calls of their own."""
        worst = 0.0
        for part, operands in zip(case.parts, pieces, strict=True):
            if part.expect or part.factor != 1.0:
                continue
            family = _family_of(case.op)
            call = family.adopt(case.op, {**operands, **case.options, **part.options}, math=case.math)
            expected = expect(family, Problem(case.op, ()), call)
            names = [*case.results, *call.updates]
            got = [self._host(part.take[name](results[name])) if name in part.take else None for name in names]
            flat = [a for one in got for a in (one if isinstance(one, list) else [one])]
            with np.errstate(all="ignore"):
                limits = call.bound(expected)
            # What a call returns of what it updates comes first, and is compared as the update.
            flat = [None] * (len(expected) - len(flat)) + flat
            for value, ideal, limit in zip(flat, expected, limits, strict=True):
                if value is not None and value.size:
                    ratio = error_over_bound(value, ideal, np.broadcast_to(limit, ideal.shape))
                    worst = max(worst, float(ratio.max()))
        return worst

    def _reference(self, case: Case, part: Part, operands: dict[str, Any]) -> dict[str, Any]:
        """Expected results by name, in float64."""
        arguments = {name: _widen(a) for name, a in operands.items()}
        result = _reference_of(case.op)(**arguments, **{**case.options, **part.options})
        found = dict(zip(case.results, result if isinstance(result, tuple) else (result,), strict=False))
        found |= {name: arguments[name] for name in case.updates if name in arguments}
        return {name: _scaled(value, part.factor) for name, value in found.items() if value is not None}

    def _host(self, a: Any) -> Any:
        return [self._host(item) for item in a] if isinstance(a, list | tuple) else self.arrays.host(a)


def tolerance(case: Case) -> float:
    """Half of the digits of the coarsest type in it."""
    coarse = case.math == "tf32" and case.dtype == "float32"
    return math.sqrt(2.0**-_TF32_DIGITS if coarse else unit_roundoff(case.dtype)) + case.slack


def relative_error(got: Any, expected: Any) -> float:
    """Norm of the error over the norm of what was expected; infinite where a NaN stands for a number."""
    if isinstance(got, list | tuple):
        return max((relative_error(*pair) for pair in zip(got, expected, strict=True)), default=0.0)
    value, ideal = wide(got), wide(expected)
    if value.shape != ideal.shape:
        return math.inf
    finite = np.isfinite(ideal)
    if not np.array_equal(value[~finite], ideal[~finite], equal_nan=True):
        return math.inf
    norm = float(np.linalg.norm(ideal[finite]))
    # What lies below the smallest step of the type is no error: means over many elements do in float16.
    step = float(ulp(0.0, str(got.dtype))) if str(got.dtype) in DTYPES else 0.0
    error = float(np.linalg.norm(np.maximum(np.abs(value[finite] - ideal[finite]) - step, 0.0)))
    return math.inf if math.isnan(error) else 0.0 if error == 0.0 else error / norm if norm else math.inf


def _reference_of(op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(_family_of(op).reference, op)
    return function


def _family_of(op: str) -> CaseFamily:
    return next(family for family in FAMILIES.values() if op in family.makers)


def _scaled(value: Any, factor: float) -> Any:
    return [_scaled(item, factor) for item in value] if isinstance(value, list | tuple) else factor * wide(value)


def _widen(a: Any) -> Any:
    if isinstance(a, list | tuple):
        return [_widen(item) for item in a]
    floating = a.dtype.name in ("float32", "float64", "float16", "bfloat16")
    return wide(a) if floating else a
