"""Random data and random settings of the cases."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from . import bounds
from .calls import Array, Generator, as_dtype
from .cases import Problem

#: Kinds of data whose sums and products are exact -> the numbers to choose from. None is 0, so that few results are:
#: a result of 0 says little about where its terms came from.
EXACT_DATA = {
    "integers": (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0),
    "lopsided": (-1.0, *(1.0,) * 4, *(2.0,) * 4),
    "powers": (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
}


def sample(problem: Problem, rng: Generator, shape: tuple[int, ...], *, dtype: str = "", scale: float = 1.0) -> Array:
    """An array of the problem's kind of data."""
    kind, data = dtype or problem.dtype, problem.word("data", "normal")
    if data in EXACT_DATA:
        return as_dtype(rng.choice(EXACT_DATA[data], shape), kind)
    if data == "equal":
        return as_dtype(np.full(shape, rng.choice((-3.0, -2.0, -1.0, 1.0, 2.0, 3.0))), kind)
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


def old_out(problem: Problem, rng: Generator, shape: tuple[int, ...], *, name: str = "out") -> dict[str, Array]:
    """Something to blend with as `name`, where beta asks for it."""
    if not problem.beta:
        return {}
    if problem.word("data") in EXACT_DATA:
        return {name: sample(problem, rng, shape)}
    return {name: as_dtype(rng.standard_normal(shape), problem.dtype)}


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
