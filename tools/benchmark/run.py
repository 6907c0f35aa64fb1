"""The loop over cases: make, check, time beside the peers, record; what fails is told, and the run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from . import clock as clocks
from . import peers as peer_list
from .arrays import Arrays
from .case import Case, Contestant, name_of
from .check import Checker, tolerance
from .clock import Run, WallClock
from .families import Family
from .limits import measure_limits
from .records import Record, Sample

Tell = Callable[[str], None]

#: Rounds of a case, and the seconds that they may take together; never fewer than the least.
ROUNDS, LEAST_ROUNDS, ROUND_SECONDS = 21, 7, 1.0
#: What arrays may be kept for later cases.
KEPT_BYTES = {True: 12 << 30, False: 1 << 28}


class Refused(Exception):
    """A case is wrong, or cannot be made; the words say how."""


@dataclass
class Session:
    """What a run has: handles, arrays, a clock, peers and the ceilings.

    Attributes
    ----------
    handles : mapping
        Handle by math mode.
    families : mapping
        Family by name.
    peers : list of Peer
        Those that could be loaded.
    tell : callable
        Takes a line for the reader.
    """

    handles: Mapping[str, dp.Handle]
    families: Mapping[str, Family]
    clock: WallClock
    arrays: Arrays
    tell: Tell
    peers: list[peer_list.Peer] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    rounds: int = ROUNDS
    told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.checker = Checker(self.arrays)

    @classmethod
    def open(cls, backend: str, families: Mapping[str, Family], peers: Sequence[str], tell: Tell) -> Session:
        """Make handles, arrays and a clock on a backend, and load the peers."""
        handles = {math: dp.create_handle(backend, math=math) for math in ("ieee", "tf32")}
        arrays = Arrays(handles["ieee"], KEPT_BYTES[backend == "cuda"])
        made = cls(handles, families, clocks.make_clock(backend), arrays, tell)
        made.peers = peer_list.load(peers, arrays, tell)
        return made

    def measure_limits(self, dtypes: Sequence[str]) -> None:
        """Measure the ceilings that shares are of."""
        self.limits = measure_limits(self.handles, self.arrays, self.clock, list(dtypes))

    # -- one case ------------------------------------------------------------------------------------------------

    def run(self, line: str) -> Record:
        """Check and time a line's case; a record with a complaint where that cannot be."""
        problem = Problem.parse(line, dtype="float32")
        start = time.perf_counter()
        for last in (False, True):
            try:
                record = self._run(problem)
                break
            except Exception as error:  # whatever a kernel, a library or an allocator raises
                self.free()
                if last or "memory" not in f"{type(error).__name__} {error}".lower():
                    words = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
                    record = Record(name_of(problem), str(problem), failed=words)
                    break
        record.seconds = time.perf_counter() - start
        return record

    def free(self) -> None:
        """Give back arrays and graphs, so that a case has the whole memory; a GPU that is lost has nothing to give."""
        torch = sys.modules.get("torch")
        with suppress(Exception):
            self.clock.forget()
            self.arrays.clear()
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()

    def prepared(self, problem: Problem) -> tuple[Case, Run]:
        """A case with its arrays, and the call that does its work."""
        handle = self.handles[problem.word("math", "ieee")]
        maker = next((f.makers[problem.op] for f in self.families.values() if problem.op in f.makers), None)
        if maker is None:
            raise Refused(f"no family measures {problem.op}")
        case = maker(problem, self.arrays, handle)
        return case, case.call or partial(getattr(dp, case.op), handle, **case.operands, **case.options, **case.results)

    def _run(self, problem: Problem) -> Record:
        case, call = self.prepared(problem)
        handle, rivals = self.handles[case.math], self.rivals(case)
        complaint = self.checker.conformance(handle, case)
        if complaint:
            raise Refused(f"against the reference: {complaint}")
        error, over, pieces = self._check_ours(case, call)
        errors = {}
        for rival in list(rivals):
            found = self._check_rival(case, rival, pieces)
            if found is None:
                rivals.remove(rival)
            else:
                errors[rival.name] = found
        record = self._time(case, call, rivals, error, errors)
        record.over_bound = over
        if case.call is None:
            record.variant = dp.prepare(
                getattr(dp, case.op), handle, **case.operands, **case.options, **case.results
            ).variant
        return record

    def _check_ours(self, case: Case, call: Run) -> tuple[float, float, list[dict[str, Any]]]:
        pieces = self.checker.before(case, case.operands)
        for result in case.results.values():
            for a in result if isinstance(result, list) else [result]:
                self.arrays.poison(a)
        call()
        self.clock.wait()
        results = {**case.results, **{name: case.operands[name] for name in case.updates}}
        error = self.checker.error(case, pieces, results)
        if not error <= tolerance(case):
            raise Refused(f"the result of the call that is timed is wrong: relative error {error:.3g}")
        over = self.checker.over_bound(case, pieces, results) if case.call is None else 0.0
        return error, over, pieces

    # -- peers ---------------------------------------------------------------------------------------------------

    def rivals(self, case: Case) -> list[Contestant]:
        """What the peers have for a case."""
        found: list[Contestant] = []
        for peer in self.peers:
            try:
                found += peer.contestants(case)
            except Exception as error:
                self._tell_once(peer.name, case, f"cannot be had: {_first_line(error)}")
        return found

    def _check_rival(self, case: Case, rival: Contestant, pieces: list[dict[str, Any]]) -> float | None:
        """Error of a peer's results, or None where they are others'."""
        try:
            error = self.checker.error(case, pieces, rival.results())
        except Exception as error_:
            self._tell_once(rival.name, case, f"fails: {_first_line(error_)}")
            return None
        if error <= tolerance(case):
            return error
        self._tell_once(rival.name, case, f"does other work: relative error {error:.3g}")
        return None

    def _tell_once(self, name: str, case: Case, words: str) -> None:
        """Once for each peer, primitive and type, not for each shape."""
        text = f"peer {name}, {case.op} in {case.dtype}: {words}"
        key = f"{name} {case.op} {case.dtype} {words[:20]}"
        if key not in self.told:
            self.told.add(key)
            self.tell(f"{text} ({name_of(case.problem)})")

    # -- time ----------------------------------------------------------------------------------------------------

    def _time(
        self, case: Case, call: Run, rivals: Iterable[Contestant], error: float, errors: Mapping[str, float]
    ) -> Record:
        way = clocks.way(case, self.clock.on_gpu)
        runs = {"ours": self.clock.prepare(Contestant("ours", call), way)}
        for rival in rivals:
            try:
                runs[rival.name] = self.clock.prepare(rival, way)
            except Exception as error_:
                self._tell_once(rival.name, case, f"cannot be timed: {_first_line(error_)}")
        first = self.clock.rounds(runs, way, 1)
        spent = max(sum(map(sum, first.values())) * 1e-3, 1e-9)
        rounds = min(self.rounds, max(min(self.rounds, LEAST_ROUNDS), int(ROUND_SECONDS / spent)))
        times = self.clock.rounds(runs, way, rounds)
        self.clock.forget()
        samples = {name: Sample.of(values, errors.get(name, error)) for name, values in times.items()}
        return Record.of(case, way, samples, self.limits)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}"
