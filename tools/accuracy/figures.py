"""Errors in units of the last place, and what is kept of millions of them.

The unit is the spacing of the result's type at the true value, so that a correctly rounded result errs by at most half
of it; below the normal numbers it is the least subnormal one. An infinity that should be a number counts as the number
that would follow the largest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dnnprims.conformance.bounds import largest_finite, ulp

#: dtype -> (bits of the significand, least and greatest exponent of a normal number).
FORMATS = {
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
}


@dataclass
class Figures:
    """What was found over many arguments.

    Attributes
    ----------
    count : int
        Arguments that were measured.
    max_ulp : float
        The largest error, at argument `at`, where the result was `got` and the true value `true`.
    sum_ulp : float
        The sum of all errors.
    misrounded : int
        Results that err by more than half an ULP: not the nearest number.
    zeros : int
        Zeros where the true value is as large as a normal number.
    nonfinite : int
        Infinities and NaN where the true value is in the finite range.
    special : int
        Other results where NaN or an infinity is the true one.
    signs : int
        Results of the wrong sign.
    """

    count: int = 0
    max_ulp: float = 0.0
    at: float = 0.0
    got: float = 0.0
    true: float = 0.0
    sum_ulp: float = 0.0
    misrounded: int = 0
    zeros: int = 0
    nonfinite: int = 0
    special: int = 0
    signs: int = 0

    @property
    def lost(self) -> int:
        """Zeros and non-finite values where the true one is a number that the type holds."""
        return self.zeros + self.nonfinite

    def merge(self, other: Figures) -> None:
        """Add what was found over further arguments."""
        if other.max_ulp > self.max_ulp:
            self.max_ulp, self.at, self.got, self.true = other.max_ulp, other.at, other.got, other.true
        for name in ("count", "sum_ulp", "misrounded", "zeros", "nonfinite", "special", "signs"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """For a line of results; numbers that JSON has not are words."""
        found = {name: _plain(value) for name, value in asdict(self).items() if name != "sum_ulp"}
        return {**found, "mean_ulp": _plain(float(f"{self.sum_ulp / max(self.count, 1):.4g}"))}


def _plain(value: float) -> Any:
    return value if np.isfinite(value) else repr(value)


def spacing(size: Any, dtype: str, m: Any) -> Any:
    """The unit in the last place at a size in float64, of a type shorter than that, from the exponent's bits."""
    digits, least, greatest = FORMATS[dtype]
    exponent = (size.view(m.int64) >> 52) & 0x7FF
    exponent = m.minimum(m.maximum(exponent, 1023 + least), 1023 + greatest)
    return ((exponent - (digits - 1)) << 52).view(m.float64)


def measure(x: Any, got: Any, true: Any, dtype: str, m: Any, *, rest: Any = 0.0, floor: Any = 0.0) -> Figures:
    """Compare results with true values.

    Parameters
    ----------
    x, got, true : array
        Arguments, results and true values in float64.
    dtype : str
        Type of the results.
    m : Maths
        The array module.
    rest : array, optional
        What `true` lacks, where the results are float64 themselves.
    floor : array, optional
        The size that true values are taken to have at least.
    """
    if x.size == 0:
        return Figures()
    largest = largest_finite(dtype)
    size = m.abs(true)
    errors = _errors(got, true, dtype, m, rest, m.maximum(size, floor))
    finite, within = m.isfinite(got), size <= largest
    counted = m.where(m.isfinite(true) & ~m.isnan(got), errors, 0.0)
    worst = int(m.argmax(counted))
    wrong_special = (
        (m.isnan(true) & ~m.isnan(got)) | (m.isinf(true) & (got != true)) | (m.isfinite(true) & ~within & m.isnan(got))
    )
    return Figures(
        count=int(x.size),
        max_ulp=float(counted[worst]),
        at=float(x[worst]),
        got=float(got[worst]),
        true=float(true[worst]),
        sum_ulp=float(counted.sum()),
        misrounded=int((counted > 0.5).sum()),
        zeros=int(((got == 0) & within & (size >= 2.0 ** FORMATS[dtype][1])).sum()),
        nonfinite=int((~finite & within).sum()),
        special=int(wrong_special.sum()),
        signs=int((((got < 0) & (true > 0)) | ((got > 0) & (true < 0))).sum()),
    )


def _errors(got: Any, true: Any, dtype: str, m: Any, rest: Any, size: Any) -> Any:
    """|got - true| in ULP; an infinite result stands for the number after the largest, which all beyond it round to."""
    if dtype == "float64":
        # There is no room above the largest number: infinities where one is expected are right, others counted apart.
        difference = m.where(got == true, 0.0, got - true) - rest
        return m.abs(difference) / ulp(size, dtype)
    beyond = 2.0 ** (FORMATS[dtype][2] + 1)
    infinite = m.isinf(got)
    given = m.where(infinite, m.copysign(beyond, got), got)
    meant = m.where(infinite, m.minimum(m.maximum(true, -beyond), beyond), true)
    return m.abs(given - meant) / spacing(size, dtype, m)
