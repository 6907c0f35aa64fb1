"""What a case is: a problem in one line of text, and the call that it stands for.

``prelu_forward shape=3x4x5 slope=channels place=offset dtype=float32 seed=7`` names everything that the case depends
on, so that a failure can be replayed from the line that reports it. These settings mean the same for every primitive:

==========  ============================================================================================
``dtype``   element type of the floating operands
``seed``    of the generator that the data are drawn from
``place``   ``plain``: arrays aligned as an allocator aligns them; ``offset``: one element further, so that no 16-byte
            access is allowed; ``strided``: with gaps along the last axis
``into``    ``new``: the call makes its results; ``out``: they go between guard bands, over NaN where nothing is to be
            blended; ``in_place``: over the operand that the primitive allows
``alpha``   factor of the result
``beta``    factor of what `out` held before
``data``    ``normal``; ``wide``: of all magnitudes; ``special``: with NaN, infinities, zeros and the ends of the range
            among normal ones; ``halves``: multiples of 1/2, where functions have their kinks. Exact ones: ``integers``,
            small; ``lopsided``, more of them positive, so that few sums fall below a kink at 0; ``powers`` of two;
            ``equal``: one integer throughout an array
``ends``    0: ``special`` without the ends of the range, whose products and sums may leave it on the way
==========  ============================================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from .calls import DTYPES, Arguments, Array, Call, Generator, Primitive, as_dtype, wide

__all__ = ["DTYPES", "Array", "Call", "CaseFamily", "Problem", "as_dtype", "wide"]


@dataclass(frozen=True)
class Problem:
    """A primitive and the settings of one call."""

    op: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, **defaults: object) -> Problem:
        """Read a line; `defaults` are settings that it may leave out."""
        op, *words = text.split()
        given = dict(word.split("=", 1) for word in words)
        missing = {name: str(value) for name, value in defaults.items() if name not in given}
        return cls(op, tuple({**given, **missing}.items()))

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{name}={value}" for name, value in self.settings)])

    def word(self, name: str, default: str = "") -> str:
        """A setting as text."""
        return dict(self.settings).get(name, default)

    def integer(self, name: str, default: int = 0) -> int:
        """A setting as an integer."""
        return int(self.word(name, str(default)))

    def number(self, name: str, default: float = 0.0) -> float:
        """A setting as a number."""
        return float(self.word(name, str(default)))

    def extents(self, name: str = "shape", default: str = "") -> tuple[int, ...]:
        """A setting such as ``3x4x5``; ``scalar`` is the empty shape."""
        word = self.word(name, default)
        return () if word in ("", "scalar") else tuple(int(extent) for extent in word.split("x"))

    def names(self, name: str, default: str = "") -> tuple[str, ...]:
        """A setting such as ``dx,dslope``."""
        return tuple(part for part in self.word(name, default).split(",") if part)

    @property
    def dtype(self) -> str:
        """Element type of the floating operands."""
        return self.word("dtype", "float32")

    @property
    def alpha(self) -> float:
        """Factor of the result."""
        return self.number("alpha", 1.0)

    @property
    def beta(self) -> float:
        """Factor of what `out` held before."""
        return self.number("beta", 0.0)

    def scaling(self) -> dict[str, float]:
        """Alpha and beta as keywords, where the case names them."""
        return {name: self.number(name) for name in ("alpha", "beta") if self.word(name)}


@dataclass(frozen=True)
class CaseFamily:
    """The cases of a family of primitives.

    Attributes
    ----------
    name : str
        Of the family.
    reference : module
        With a function for each primitive, under the same name.
    primitives : mapping
        Name -> `Primitive`.
    corners : tuple of str
        Problems without dtype and seed that are always run; the comment beside each says why it is there.
    draw : callable
        Generator -> another problem, as text.
    """

    name: str
    reference: ModuleType
    primitives: Mapping[str, Primitive]
    corners: tuple[str, ...]
    draw: Callable[[Generator], str]

    @property
    def makers(self) -> dict[str, Callable[[Problem, Generator], Call]]:
        """Primitive -> function that draws the data of a problem and makes the call of it."""
        return dict.fromkeys(self.primitives, self.make)

    def make(self, problem: Problem, rng: Generator) -> Call:
        """Draw the arguments of a problem; the setting ``over`` names the operand that is replaced in place."""
        call = self.adopt(problem.op, self.primitives[problem.op].draw(problem, rng), math=problem.word("math", "ieee"))
        places = {
            name: replace(place, in_place=place.in_place and problem.word("over", place.in_place))
            for name, place in call.destinations.items()
        }
        return replace(call, destinations=places)

    def adopt(self, op: str, arguments: Mapping[str, Any], *, math: str = "ieee") -> Call:
        """Take a call from wherever it comes.

        Parameters
        ----------
        op : str
            One of `primitives`.
        arguments : mapping
            What the primitive is given besides the handle, by name: NumPy arrays, with what they hold before the call,
            lists of them, options. Nothing is changed.
        math : str
            Math mode of the handle.

        Returns
        -------
        Call
            With its destinations, the arguments that it updates and its bounds.
        """
        bound = inspect.signature(getattr(self.reference, op)).bind(**arguments)
        bound.apply_defaults()
        primitive, given = self.primitives[op], Arguments(op, bound.arguments, math)
        places = primitive.destinations(given)
        return Call(
            {name: value for name, value in arguments.items() if name not in places},
            partial(primitive.bound, given),
            places,
            tuple(name for name in primitive.updates if given[name] is not None),
            primitive.reference(given),
        )

    def problems(self, dtype: str, seed: int, count: int) -> Iterable[Problem]:
        """The corner cases, then `count` random ones."""
        for i, text in enumerate(self.corners):
            problem = Problem.parse(text, dtype=dtype, seed=seed + i)
            if dtype in problem.names("only", ",".join(DTYPES)):
                yield problem
        rng = np.random.default_rng([seed, *self.name.encode(), DTYPES.index(dtype)])
        for i in range(count):
            yield Problem.parse(self.draw(rng), dtype=dtype, seed=seed + len(self.corners) + i)
