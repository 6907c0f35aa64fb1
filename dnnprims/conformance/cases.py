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
``data``    ``normal``; ``integers``: small ones, so that sums are exact; ``halves``: multiples of 1/2, where functions
            have their kinks; ``special``: with NaN, infinities, zeros and the ends of the range among normal ones;
            ``wide``: of all magnitudes
``ends``    0: ``special`` without the ends of the range, whose products and sums may leave it on the way
==========  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from . import bounds

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
class Destination:
    """Where a result may be written: shape, dtype, what it holds before, and the operand it may replace."""

    shape: tuple[int, ...]
    dtype: str
    old: Array | None = None
    in_place: str = ""


#: Bounds of the results, in the order in which they are compared.
Bound = Callable[[list[Array]], list[Array]]


@dataclass(frozen=True)
class Call:
    """One call, for the primitive and for its reference alike.

    Attributes
    ----------
    arguments : mapping
        All but the handle, by name; arrays are NumPy arrays, lists of arrays are lists.
    bound : callable
        From the expected results, in float64, to their bounds.
    destinations : mapping
        Keyword -> `Destination`.
    updates : tuple of str
        Arguments that the call changes; they are compared after the results.
    reference : mapping
        Arguments that the reference gets in place of the same-named ones.
    """

    arguments: Mapping[str, Any]
    bound: Bound
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    updates: tuple[str, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Problem, Generator], Call]


@dataclass(frozen=True)
class CaseFamily:
    """The cases of a family of primitives.

    Attributes
    ----------
    name : str
        Of the family.
    reference : module
        With a function for each primitive, under the same name.
    makers : mapping
        Primitive -> function that draws the data of a problem.
    corners : tuple of str
        Problems without dtype and seed that are always run; the comment beside each says why it is there.
    draw : callable
        Generator -> another problem, as text.
    """

    name: str
    reference: ModuleType
    makers: Mapping[str, Make]
    corners: tuple[str, ...]
    draw: Callable[[Generator], str]

    def problems(self, dtype: str, seed: int, count: int) -> Iterable[Problem]:
        """The corner cases, then `count` random ones."""
        for i, text in enumerate(self.corners):
            problem = Problem.parse(text, dtype=dtype, seed=seed + i)
            if dtype in problem.names("only", ",".join(DTYPES)):
                yield problem
        rng = np.random.default_rng([seed, *self.name.encode(), DTYPES.index(dtype)])
        for i in range(count):
            yield Problem.parse(self.draw(rng), dtype=dtype, seed=seed + len(self.corners) + i)


def as_dtype(values: Any, dtype: str) -> Array:
    """Values rounded to a type of this library, once."""
    wide = np.asarray(values)
    with np.errstate(all="ignore"):
        return wide.astype(np.float32).astype(_NUMPY[dtype]) if dtype == "bfloat16" else wide.astype(_NUMPY[dtype])


def sample(problem: Problem, rng: Generator, shape: tuple[int, ...], *, dtype: str = "", scale: float = 1.0) -> Array:
    """An array of the problem's kind of data."""
    kind, data = dtype or problem.dtype, problem.word("data", "normal")
    if data == "integers":
        return as_dtype(rng.integers(-2, 3, shape), kind)
    if data == "halves":
        return as_dtype(rng.integers(-12, 13, shape) / 2.0, kind)
    values = np.asarray(scale * rng.standard_normal(shape))
    if data == "wide":
        reach = 14 if kind == "float16" else 120
        values = np.exp2(rng.uniform(-reach, reach, shape)) * np.sign(values)
    if data == "special" and values.size:
        top = bounds.largest_finite(kind)
        ends = [top, -top, float(bounds.ulp(0.0, kind))] if problem.integer("ends", 1) else []
        odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, *ends])
        places = rng.random(shape) < 0.3
        values = np.where(places, rng.choice(odd, shape), values)
    return as_dtype(values, kind)


def destination(
    problem: Problem, rng: Generator, shape: tuple[int, ...], *, dtype: str = "", in_place: str = ""
) -> Destination:
    """A place for a result, with something to blend with where beta asks for it."""
    kind = dtype or problem.dtype
    old = as_dtype(rng.standard_normal(shape), kind) if problem.beta else None
    return Destination(tuple(shape), kind, old, in_place)


def blended(problem: Problem, target: Destination, expected: Array, error: Any = 0.0) -> Array:
    """Bound of alpha * result + beta * old as this problem has them; `error` is the result's own."""
    old = 0.0 if target.old is None else wide(target.old)
    return bounds.blended(expected, problem.dtype, error, old=old, **problem.scaling())


def wide(x: Any) -> Array:
    """The same values in float64."""
    return np.asarray(x).astype(np.float64)


def pick(rng: Generator, *words: str) -> str:
    """One of some words."""
    return str(rng.choice(words))


def draw_shape(rng: Generator, ranks: tuple[int, int] = (1, 4), most: int = 2000) -> tuple[int, ...]:
    """A shape of at most `most` elements with odd and even extents, ones, and now and then a zero."""
    ndim = int(rng.integers(ranks[0], ranks[1] + 1))
    reach = max(2.0, most ** (1.0 / max(ndim, 1)))
    shape = [int(np.exp(rng.uniform(0.0, np.log(2.0 * reach)))) for _ in range(ndim)]
    while np.prod(shape) > most:
        shape[int(np.argmax(shape))] //= 2
    if shape and rng.random() < 0.03:
        shape[int(rng.integers(ndim))] = 0
    return tuple(shape)


def show(shape: Iterable[int]) -> str:
    """A shape as a setting."""
    return "x".join(map(str, shape)) or "scalar"


def draw_placing(rng: Generator, *, in_place: bool = True, blend: bool = True) -> str:
    """Random settings of place, into, alpha and beta."""
    words = [f"place={pick(rng, 'plain', 'plain', 'offset')}"]
    into = pick(rng, "new", "out", "in_place") if in_place else pick(rng, "new", "out")
    if blend and rng.random() < 0.4:
        words.append(f"alpha={pick(rng, '0.5', '-1.25', '2.0')}")
        if rng.random() < 0.6:
            words.append(f"beta={pick(rng, '1.0', '-0.5', '0.75')}")
            into = "out"
    return " ".join([*words, f"into={into}"])


def sample_list(problem: Problem, rng: Generator) -> list[Array]:
    """Arrays of the shapes of the setting ``shapes``; with ``mixed=1`` every second one has another type."""
    kinds = (problem.dtype, "float32" if problem.integer("mixed") else problem.dtype)
    shapes = read_list(problem.word("shapes"))
    return [sample(problem, rng, shape, dtype=kinds[i % 2]) for i, shape in enumerate(shapes)]


def read_list(word: str) -> list[tuple[int, ...]]:
    """Shapes from a setting such as ``3x5,0,7``."""
    return [() if part == "scalar" else tuple(map(int, part.split("x"))) for part in word.split(",") if part]


def show_list(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes as a setting."""
    return ",".join(map(show, shapes))


def draw_shapes(rng: Generator) -> list[tuple[int, ...]]:
    """One to five random shapes."""
    return [draw_shape(rng, (0, 3), most=600) for _ in range(int(rng.integers(1, 6)))]
