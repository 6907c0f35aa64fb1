"""Ask each question of each subject, judge all of them by the same true values, and keep the figures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnnprims.reference.rounding import widen

from . import oracle, patterns
from .exact import exact
from .figures import Figures, measure
from .questions import FORWARD, FROM_INPUT, Question
from .subjects import Library, Torch

Subject = Library | Torch

#: Largest relative error of the oracle that is put up with, 2^-17 ULP of float32.
ORACLE_ERROR = 2.0**-40
#: What 2^-40 is taken of at least: an eighth of float32's least number.
ORACLE_LEAST = 2.0**-152


@dataclass(frozen=True)
class Answer:
    """What was found about one subject and one question."""

    subject: str
    question: Question
    patterns: str
    figures: Figures
    seconds: float

    @property
    def promised(self) -> bool:
        """Whether the limits are our own word: those of the kernels, which the reference in float64 is no match for."""
        return self.subject in ("emulator", "cuda") or (self.subject == "numpy" and self.question.dtype != "float64")

    @property
    def meets_target(self) -> bool:
        """Within the limit in ULP, and no number lost."""
        found = self.figures
        return found.max_ulp <= self.question.limit and not (found.lost or found.special or found.signs)

    def as_json(self) -> dict[str, Any]:
        """A line of results."""
        asked = self.question
        return {
            "name": asked.name_for(self.subject),
            "subject": self.subject,
            "mode": asked.mode,
            "settings": asked.settings,
            "dtype": asked.dtype,
            "direction": asked.direction,
            "patterns": self.patterns,
            "limit": asked.limit,
            **self.figures.as_json(),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        found = self.figures
        counts = {"lost": found.lost, "special": found.special, "wrong signs": found.signs}
        odd = "".join(f", {number} {what}" for what, number in counts.items() if number)
        return f"{self.subject} {found.max_ulp:.4g} ULP at {found.at:.9g}{odd}"


@dataclass
class Arguments:
    """Where the arguments come from.

    Attributes
    ----------
    kind : str
        ``all16``, ``all32``, ``sample`` or ``mpmath``.
    maths : Maths
        Where arguments and true values are.
    count : int
        Size of a sample.
    chunk : int
        How many are judged at once.
    step : int
        Of all numbers of float32, and of what mpmath judges, take every so many.
    """

    kind: str
    maths: oracle.Maths = field(default_factory=oracle.host)
    count: int = 1 << 20
    chunk: int = 1 << 26
    step: int = 1

    @property
    def label(self) -> str:
        """Kind and, where some were left out, how many."""
        if self.step > 1:
            return f"every {self.step:,}th"
        return f"sample of {self.count:,}" if self.kind in ("sample", "mpmath") else self.kind

    def chunks(self, question: Question) -> Iterator[Any]:
        """Arguments as they are given to a function."""
        if self.kind == "all16":
            yield patterns.all16(question.dtype)
        elif self.kind == "all32":
            yield from patterns.all32(self.maths.module, self.chunk, self.step)
        else:
            x = patterns.sample(question, self.count)
            # mpmath has no infinities to take limits at; they have tests of their own.
            yield x[np.isfinite(x)][:: self.step] if self.kind == "mpmath" else x

    def wide(self, x: Any) -> Any:
        """The same in float64."""
        return widen(x) if isinstance(x, np.ndarray) else patterns.wide_on_device(self.maths.module, x)

    def true(self, question: Question, wide: Any) -> tuple[Any, Any]:
        """True values, and what they lack."""
        if self.kind == "mpmath":
            return exact(question, wide)
        return true_values(question, wide, self.maths), 0.0


def true_values(question: Question, wide: Any, m: oracle.Maths) -> Any:
    """The oracle's answer."""
    forward, slope, from_output = oracle.TRUE[question.function]
    function = {FORWARD: forward, FROM_INPUT: slope}.get(question.direction, from_output)
    assert function is not None, question
    with np.errstate(all="ignore"):
        return function(m, wide, *question.parameters)


def ask(question: Question, subjects: Sequence[Subject], arguments: Arguments) -> list[Answer]:
    """Put a question to all subjects that answer it, over all arguments."""
    able = [subject for subject in subjects if subject.answers(question)]
    found, seconds = [Figures() for _ in able], [0.0] * len(able)
    if not able:
        return []
    m = arguments.maths
    for chunk in arguments.chunks(question):
        x, wide = patterns.within_range(question, chunk, arguments.wide(chunk), m)
        truths = {asked: arguments.true(asked, wide) for asked in {s.understood(question) for s in able}}
        size, low, high = question.floor
        floor = size * ((wide > low) & (wide < high)).astype(m.float64) if size else 0.0
        for i, subject in enumerate(able):
            start = time.perf_counter()
            got = subject.evaluate(question, x)
            true, rest = truths[subject.understood(question)]
            kept = ... if subject.everywhere else _undisputed(question, wide, m)
            parts = (wide[kept], got[kept], true[kept])
            more = {"rest": _taken(rest, kept), "floor": _taken(floor, kept)}
            with np.errstate(all="ignore"):
                found[i].merge(measure(*parts, question.dtype, m, **more))
            seconds[i] += time.perf_counter() - start
    return [
        Answer(subject.name, question, arguments.label, figures, spent)
        for subject, figures, spent in zip(able, found, seconds, strict=True)
    ]


def _taken(part: Any, kept: Any) -> Any:
    return part[kept] if hasattr(part, "shape") else part


def _undisputed(question: Question, wide: Any, m: oracle.Maths) -> Any:
    """Where libraries cannot differ by convention: off the kinks, and in the domain, of a derivative."""
    if question.direction == FORWARD:
        return ...
    kept = m.ones_like(wide, dtype=bool)
    if question.direction == FROM_INPUT:
        for kink in question.kinks():
            kept &= wide != kink
        if question.mode in ("log", "sqrt"):
            kept &= ~(wide < 0.0)
    return kept


def validate(asked: Iterable[Question], m: oracle.Maths, count: int) -> Iterator[tuple[Question, float, float]]:
    """Hold the oracle against mpmath on samples of float32, which hold the places where functions turn.

    Yields
    ------
    question, error, argument
        The largest relative error, and where.
    """
    for question in asked:
        x = patterns.sample(question, 1 << 16)
        x, wide = patterns.within_range(question, x, widen(x), oracle.Maths(np, None))
        wide = np.random.default_rng(0).permutation(wide[np.isfinite(wide)])[:count]
        found = true_values(question, m.module.asarray(wide), m)
        values = found if isinstance(found, np.ndarray) else found.get()
        true, rest = exact(question, wide)
        error = _relative(question, wide, values, true, rest)
        worst = int(np.argmax(error))
        yield question, float(error[worst]), float(wide[worst])


def _relative(question: Question, wide: Any, values: Any, true: Any, rest: Any) -> Any:
    """Relative error; what is beyond every short type is all the same."""
    most, (size, low, high) = 2.0**130, question.floor
    least = np.where((wide > low) & (wide < high), max(size, ORACLE_LEAST), ORACLE_LEAST)
    with np.errstate(all="ignore"):
        difference = (np.clip(values, -most, most) - np.clip(true, -most, most)) - rest * (np.abs(true) < most)
        error = np.abs(difference) / np.maximum(np.abs(true), least)
    same = (values == true) | (np.isnan(values) & np.isnan(true))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
