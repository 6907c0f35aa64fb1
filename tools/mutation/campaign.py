"""Many mutants at once: each goes through its stages until a part fails, times out or nothing is left.

A stage's parts run side by side; the next stage begins when all have passed. Mutants in an early stage wait longest, so
that every mutant is seen by the cheap tests first and what is left of the time goes to those that live.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mutant import Mutant
from .overlay import Finish, Overlay
from .suite import Part, stages

#: Exit code of ``cases.py`` for a text that does not compile, and of pytest for a run without a test.
NO_COMPILE, NO_TESTS = 3, 5


@dataclass
class Subject:
    """A mutant on its way: what became of it, by what, and how far it came."""

    mutant: Mutant
    plan: list[list[Part]]
    status: str = "undecided"
    by: str = ""
    words: str = ""
    stage: int = 0
    seconds: float = 0.0
    pending: int = 0
    overlay: Overlay | None = None
    copying: threading.Lock = field(default_factory=threading.Lock)

    @property
    def decided(self) -> bool:
        """Whether nothing more will run."""
        return self.status != "undecided"


@dataclass(order=True)
class _Task:
    priority: tuple[int, int]
    subject: Subject = field(compare=False)
    part: Part = field(compare=False)


def judge(part: Part, finish: Finish) -> tuple[str, str]:
    """What a finished command says of the mutant: a status, empty where it lives, and the words that show it."""
    if finish.timed_out:
        return "killed", "ran out of time"
    if finish.code in (0, NO_TESTS):
        return "", ""
    if "CompileError" in finish.output and (finish.code == NO_COMPILE or "for the emulator failed" in finish.output):
        return "stillborn", _last_words(finish.output, "error:")
    if finish.code < 0:
        return "killed", f"ended by signal {-finish.code}"
    return "killed", _last_words(finish.output, "FAILED ", "ERROR ", "Error")


def _last_words(output: str, *marks: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in marks:
        for line in reversed(lines):
            if mark in line:
                return line[:300]
    return lines[-1][:300] if lines else ""


class Campaign:
    """Runs mutants.

    Parameters
    ----------
    root, warm : Path
        The project, and a kernel cache that was filled without a mutation.
    limits : mapping of str to float
        Seconds that a part may take, by name; parts that are not in it are left out.
    jobs : int
        Commands at once.
    done : callable
        Called with each subject that is decided.
    deadline : float
        `time.monotonic` from which on nothing new is begun.
    """

    def __init__(
        self, root: Path, warm: Path, limits: dict[str, float], jobs: int, done: Callable[[Subject], None],
        deadline: float = float("inf"),
    ) -> None:  # fmt: skip
        self._root, self._warm, self._limits = root, warm, limits
        self._jobs, self._done, self._deadline = jobs, done, deadline
        self._tasks: list[_Task] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._open = 0

    def run(self, mutants: list[Mutant]) -> list[Subject]:
        """Run them all; those that the time did not suffice for stay undecided."""
        subjects = [Subject(mutant, self._plan(mutant)) for mutant in mutants]
        self._open = len(subjects)
        for subject in subjects:
            self._enter(subject)
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:  # also where the run is broken off
            for overlay in [subject.overlay for subject in subjects if subject.overlay]:
                overlay.stop()
                overlay.remove()
        return subjects

    def _plan(self, mutant: Mutant) -> list[list[Part]]:
        kept = [[part for part in stage if part.name in self._limits] for stage in stages(self._root, mutant.path)]
        return [stage for stage in kept if stage]

    def _enter(self, subject: Subject) -> None:
        """Queue the parts of the stage that a subject has come to; past the last one it has survived."""
        with self._changed:
            if subject.stage == len(subject.plan):
                self._decide(subject, "survived", "", "")
                return
            parts = subject.plan[subject.stage]
            subject.pending = len(parts)
            for part in parts:
                heapq.heappush(self._tasks, _Task((subject.stage, next(self._numbers)), subject, part))
            self._changed.notify_all()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            self._perform(task)

    def _next(self) -> _Task | None:
        with self._changed:
            while self._open and time.monotonic() < self._deadline:
                if self._tasks:
                    task = heapq.heappop(self._tasks)
                    if task.subject.decided:
                        continue
                    return task
                self._changed.wait(1.0)
            return None

    def _perform(self, task: _Task) -> None:
        subject, part = task.subject, task.part
        with subject.copying:
            if subject.overlay is None:
                subject.overlay = Overlay(self._root, self._warm, subject.mutant)
        left = max(self._deadline - time.monotonic(), 1.0)
        limit = self._limits[part.name]
        finish = subject.overlay.run(part, min(limit, left))
        cut = finish.timed_out and left < limit
        if not cut and not finish.stopped:
            self._settle(subject, part, finish)
        if subject.decided:
            subject.overlay.remove()

    def _settle(self, subject: Subject, part: Part, finish: Finish) -> None:
        """Take what a part says of its subject, and go on to the next stage after the last part of one."""
        status, words = judge(part, finish)
        with self._changed:
            subject.seconds += finish.seconds
            if subject.decided:
                return
            if status:
                self._decide(subject, status, part.name, words)
                return
            subject.pending -= 1
            if subject.pending:
                return
            subject.stage += 1
        self._enter(subject)

    def _decide(self, subject: Subject, status: str, by: str, words: str) -> None:
        subject.status, subject.by, subject.words = status, by, words
        self._open -= 1
        if subject.overlay:
            subject.overlay.stop()
        self._changed.notify_all()
        self._done(subject)
