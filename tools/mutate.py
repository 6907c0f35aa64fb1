"""Plant small mistakes in kernels and host code, and count how many the tests notice on the emulator.

``python tools/mutate.py [PATH ...] [--count N] [--seed N] [--jobs N] [--json FILE] [--budget-seconds N]``

Each mutant is one mistake (`tools/mutation/cuda_text.py` and `python_text.py` know the kinds) in a copy of the project.
The copy is shown to the conformance cases of the families that the mistake touches, to the test files near it, and then
to all others, until something fails. First the same commands run without a mutation: what fails then is left out.
Results are written as they come, one line of JSON each; a second run with the same file goes on where the first ended.
Mutants that are argued to be equivalent are listed in ``benchmarks/reliability/equivalent_mutants.json``.

No GPU is needed, but g++ is. ``--list`` prints the mutants without running them, ``--only NAME`` runs some by name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation import catalogue, records
from mutation.campaign import Campaign, Subject
from mutation.mutant import Mutant
from mutation.overlay import Finish, Overlay, copy_project
from mutation.suite import Part, every_part

ROOT = Path(__file__).resolve().parent.parent
#: How long a part may take: seconds, and times what it took without a mutation.
GRACE, FACTOR = 30.0, 5.0


def baseline(root: Path, parts: Sequence[Part], jobs: int, warm: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Run the parts without a mutation; return the seconds each may take, and why the others are left out."""
    overlay = Overlay(root, warm, None)
    overlay.cache = warm
    try:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                ends = list(pool.map(lambda part: overlay.run(part, 900.0), parts))
            except BaseException:  # the run is broken off
                overlay.stop()
                raise
    finally:
        overlay.remove()
    pairs = list(zip(parts, ends, strict=True))
    limits = {part.name: GRACE + FACTOR * end.seconds for part, end in pairs if end.code == 0}
    return limits, {part.name: _why(end) for part, end in pairs if end.code}


def _why(end: Finish) -> str:
    lines = [line for line in end.output.splitlines() if line.strip()]
    return "takes too long" if end.timed_out else f"exit code {end.code}: {lines[-1][:200] if lines else ''}"


class Reporter:
    """Prints and keeps what becomes of each mutant of the project in `root`."""

    def __init__(self, root: Path, path: Path | None, total: int) -> None:
        self.rows: list[dict[str, object]] = []
        self._root, self._path, self._total, self._start = root, path, total, time.monotonic()

    def __call__(self, subject: Subject) -> None:
        """Take a decided mutant."""
        row = records.record(self._root, subject)
        self.rows.append(row)
        passed = time.monotonic() - self._start
        words = f" by {subject.by}" if subject.by else ""
        print(f"[{len(self.rows)}/{self._total} {passed:.0f} s] {subject.status}{words}: {row['mutant']}", flush=True)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="*", help="files or folders to mutate, as dnnprims/kernels/prelu.cu; all")
    parser.add_argument("--count", type=int, default=200, help="mutants to plant")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among all mistakes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands at once")
    parser.add_argument("--json", type=Path, help="where results are written, and read when a run goes on")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin nothing new after this time")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run mutants of these names alone")
    parser.add_argument("--again", action="store_true", help="run the survivors of the results once more")
    return parser


def _chosen(given: argparse.Namespace) -> list[Mutant]:
    if given.only:
        paths = {name.split(":")[0] for name in given.only}
        offered = [mutant for path in paths for mutant in catalogue.candidates(ROOT, path)]
        return [mutant for mutant in offered if _name(mutant) in given.only]
    return catalogue.choose(ROOT, given.count, given.seed, given.path)


def _name(mutant: Mutant) -> str:
    return mutant.name((ROOT / mutant.path).read_text(encoding="utf-8"))


def _show(mutants: Sequence[Mutant]) -> None:
    for mutant in mutants:
        source = (ROOT / mutant.path).read_text(encoding="utf-8")
        print(f"{mutant.name(source)}\n  - {mutant.before(source)}\n  + {mutant.after(source)}")


def _earlier(given: argparse.Namespace) -> list[dict[str, object]]:
    """What is known from before; without the survivors, and the file without them, where they are to run again."""
    rows = records.read(given.json) if given.json else []
    if given.again:
        rows = [row for row in rows if row["status"] != "survived"]
        given.json.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 where a mutant survived that is not argued to be equivalent."""
    given = _parser().parse_args(arguments)
    deadline = time.monotonic() + given.budget_seconds
    mutants = _chosen(given)
    if given.list:
        _show(mutants)
        return 0
    if shutil.which(os.environ.get("CXX") or "g++") is None:
        sys.exit("mutate.py needs g++ to compile the kernels for the emulator: install it (apt install g++)")
    earlier = _earlier(given)
    known = {row["mutant"] for row in earlier}
    todo = [mutant for mutant in mutants if _name(mutant) not in known]
    print(f"{len(mutants)} mutants, {len(mutants) - len(todo)} known from before, {given.jobs} jobs", flush=True)
    with tempfile.TemporaryDirectory(prefix="dnnprims-mutation-") as directory:
        # What is edited meanwhile does not disturb the run.
        root, warm = Path(directory, "project"), Path(directory, "cache")
        copy_project(ROOT, root)
        warm.mkdir(mode=0o700)
        reporter = Reporter(root, given.json, len(todo))
        limits, failed = baseline(root, every_part(root, sorted({m.path for m in todo})), given.jobs, warm)
        for name, why in failed.items():
            print(f"LEFT OUT {name}: fails without a mutation: {why}")
        slowest = max(limits, key=lambda name: limits[name], default="")
        print(f"baseline: {len(limits)} parts pass, the slowest is {slowest}", flush=True)
        subjects = Campaign(root, warm, limits, given.jobs, reporter, deadline).run(todo)
        undecided = [records.record(root, subject) for subject in subjects if not subject.decided]
    rows = records.settle([*earlier, *reporter.rows, *undecided], records.equivalents())
    print(records.summary(rows))
    return 1 if any(row["status"] == "survived" for row in rows) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    sys.exit(main())
