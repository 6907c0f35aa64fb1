"""Many cases, on one process or several: the same outcomes in the same order however many there are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import dnnprims

from .cases import CaseFamily, Problem
from .runner import Outcome, named, run_case
from .subjects import Library, Subject, load

#: Cases that a process takes at once: enough to make the hand-over cheap, few enough to share the work evenly.
CHUNK = 16


@dataclass(frozen=True)
class Campaign:
    """What the cases are run on, in words that another process understands.

    Attributes
    ----------
    backend : str
        Of this library; ``auto`` takes CUDA where it works.
    against : str
        Another implementation, as `subjects.load` takes it; empty for this library.
    jobs : int
        Processes.
    """

    backend: str = "auto"
    against: str = ""
    jobs: int = 1

    def open(self) -> Subject:
        """What the cases are run on. Its handle lives as long as the process."""
        return load(self.against) if self.against else Library(dnnprims.create_handle(self.backend))

    def run(self, cases: Sequence[tuple[CaseFamily, Problem]], subject: Subject) -> Iterator[Outcome]:
        """The outcome of each case, in order; `subject` is used where one process does it all."""
        if self.jobs == 1:
            yield from (run_case(subject, family, problem) for family, problem in cases)
            return
        lines = [str(problem) for _, problem in cases]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, context, _start, (self,)) as pool:
            try:
                yield from pool.map(_run_line, lines, chunksize=CHUNK)
            finally:
                pool.shutdown(cancel_futures=True)


def shard(cases: Sequence[Any], index: int, count: int) -> list[Any]:
    """Every `count`-th case, from number `index` (1 to `count`) on: the shards together are all of them."""
    return list(cases[index - 1 :: count])


_subject: Subject | None = None


def _start(campaign: Campaign) -> None:
    global _subject
    _subject = campaign.open()


def _run_line(line: str) -> Outcome:
    assert _subject is not None
    return run_case(_subject, *named(line))
