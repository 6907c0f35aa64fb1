"""One call of a primitive: its arguments, where its results go, and how far from the reference they may lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from . import bounds

if TYPE_CHECKING:
    from .cases import Problem

Array = np.ndarray[Any, Any]
Generator = np.random.Generator

DTYPES = ("float32", "float64", "float16", "bfloat16")

_NUMPY = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
}


def as_dtype(values: Any, dtype: str) -> Array:
    """Values rounded to a type of this library, once."""
    wide = np.asarray(values)
    with np.errstate(all="ignore"):
        return wide.astype(np.float32).astype(_NUMPY[dtype]) if dtype == "bfloat16" else wide.astype(_NUMPY[dtype])


def wide(x: Any) -> Array:
    """The same values in float64."""
    return np.asarray(x).astype(np.float64)


@dataclass(frozen=True)
class Destination:
    """Where a result may be written: shape, dtype, what is read of it before, and the operand it may replace."""

    shape: tuple[int, ...]
    dtype: str
    old: Array | None = None
    in_place: str = ""


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call by name, those left out at their defaults, and the math mode of its handle."""

    op: str
    values: Mapping[str, Any]
    math: str = "ieee"

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def alpha(self) -> float:
        """Factor of the result."""
        return float(self.values.get("alpha", 1.0))

    @property
    def beta(self) -> float:
        """Factor of what `out` held before."""
        return float(self.values.get("beta", 0.0))

    def destination(
        self, name: str, shape: tuple[int, ...], dtype: str, *, in_place: str = "", blends: bool = True
    ) -> Destination:
        """The place of a result; its old contents count where beta is not 0 and the result `blends`."""
        old = self.values.get(name) if blends and self.beta else None
        return Destination(tuple(shape), dtype, old, in_place)

    def exactly(
        self, target: Destination, expected: Array, absolute: Any, step: Any, *, alpha: float | None = None
    ) -> Array:
        """Where alpha * result + beta * old is exact, and stored so: `bounds.exact_sums` of the blend's terms.

        The result is a sum of multiples of `step` whose sizes add up to |absolute|.
        """
        factor = self.alpha if alpha is None else alpha
        old = 0.0 if target.old is None else wide(target.old)
        beta = 0.0 if target.old is None else self.beta
        with np.errstate(all="ignore"):
            total = abs(factor) * np.abs(absolute) + np.abs(beta * old)
        finest = np.minimum(bounds.lowest_bit(factor) * step, bounds.lowest_bit(beta) * bounds.lowest_bit(old))
        return bounds.exact_sums(total, finest, target.dtype) & bounds.representable(expected, target.dtype)

    def blended(self, target: Destination, expected: Array, error: Any = 0.0) -> Array:
        """Bound of alpha * result + beta * old, as stored; `error` is the result's own."""
        old = 0.0 if target.old is None else wide(target.old)
        beta = 0.0 if target.old is None else self.beta
        return bounds.blended(expected, target.dtype, error, alpha=self.alpha, beta=beta, old=old)


@dataclass(frozen=True)
class Call:
    """One call, for the primitive and for its reference alike.

    Attributes
    ----------
    arguments : mapping
        All but the handle and the destinations, by name; arrays are NumPy arrays, lists of arrays are lists.
    bound : callable
        From the expected results, in float64, to their bounds, in the order in which they are compared.
    destinations : mapping
        Keyword -> `Destination`, in the order of the results.
    updates : tuple of str
        Arguments that the call changes; they are compared after the results.
    reference : mapping
        Arguments that the reference gets in place of the same-named ones.
    """

    arguments: Mapping[str, Any]
    bound: Callable[[list[Array]], list[Array]]
    destinations: Mapping[str, Destination]
    updates: tuple[str, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)


def _none(arguments: Arguments) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Primitive:
    """How calls of a primitive are drawn, and how far from the reference their results may lie.

    Attributes
    ----------
    draw : callable
        From a problem and a generator to arguments by name; ``out`` among them where its old contents are read.
    bound : callable
        From the arguments and the expected results, in float64, to the bounds of the results.
    destinations : callable
        From the arguments to the places of the results that the call returns.
    updates : tuple of str
        Arguments that the call changes, where they are given.
    reference : callable
        From the arguments to those that the reference gets in another form.
    """

    draw: Callable[[Problem, Generator], dict[str, Any]]
    bound: Callable[[Arguments, list[Array]], list[Array]]
    destinations: Callable[[Arguments], dict[str, Destination]] = _none
    updates: tuple[str, ...] = ()
    reference: Callable[[Arguments], dict[str, Any]] = _none
