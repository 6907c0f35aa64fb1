"""``python -m dnnprims verify``: run conformance cases against the float64 reference, and report.

The fixed corner cases of each family and as many random ones as asked for, on a backend of this library or, with
``--against``, on any other implementation.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dnnprims

from .conformance import FAMILIES, page, results
from .conformance.campaign import Campaign, shard
from .conformance.cases import DTYPES
from .conformance.report import progress, summary
from .conformance.runner import named, select
from .listing import rows as support_rows

SUFFIXES = (".html", ".json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write; 0 when every case passes, 1 when one fails, 130 when interrupted."""
    arguments = list(sys.argv[2:] if argv is None else argv)
    given = _parser().parse_args(arguments)
    for path in given.report:
        _require_writable(path)
    if given.merge:
        runs, interrupted = [run for path in given.merge for run in results.read(path)], False
    else:
        run, interrupted = _run(given, f"python -m dnnprims verify {shlex.join(arguments)}")
        runs = [run]
    for path in given.report:
        _write(path, runs)
    return 130 if interrupted else 1 if results.failed(runs) else 0


def _run(given: argparse.Namespace, command: str) -> tuple[dict[str, Any], bool]:
    """Run the cases that were asked for; whether they were broken off."""
    dtypes = tuple(dict.fromkeys(given.dtype or DTYPES))
    cases = [named(text) for text in given.case] or select(given.family, dtypes, given.seed, given.cases)
    cases = shard(cases, *given.shard)
    campaign, tally = Campaign(given.backend, given.against, given.jobs), results.Tally()
    subject, interrupted, start = campaign.open(), False, time.perf_counter()
    print(f"{len(cases)} cases on {subject.name}, seed {given.seed}", flush=True)
    try:
        for outcome in progress(campaign.run(cases, subject), len(cases), given.quiet):
            tally.add(outcome)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - start
    _show(tally, subject.name, given.against, seconds)
    environment = results.describe_environment(subject.name, given.against)
    told = {
        "subject": subject.name,
        "against": given.against,
        "seed": given.seed,
        "cases": len(cases),
        "seconds": seconds,
    }
    return results.record(tally, **told, environment=environment, command=command), interrupted


def _show(tally: results.Tally, subject: str, against: str, seconds: float) -> None:
    print(summary(tally.groups()))
    for outcome in tally.failures:
        print(f"FAIL  {outcome.complaint}\n      {results.replay_line(str(outcome.problem), subject, against)}")
    declined = f", {tally.declined()} not taken" if tally.declined() else ""
    judged = tally.cases - tally.declined()
    print(f"{judged - len(tally.failures)} of {judged} passed{declined} in {seconds:.1f} s")


def _write(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".json":
        results.write(path, runs)
    else:
        path.write_text(page.render(runs, support_rows()), encoding="utf-8")
    print(f"wrote {path}")


def _require_writable(path: Path) -> None:
    """Refused before a long run, not after it."""
    if path.suffix not in SUFFIXES:
        rule = f"a name that ends in {' or '.join(SUFFIXES)}"
        raise dnnprims.BadParamError("verify", "has no known format", param="--report", got=str(path), expected=rule)
    target = path if path.exists() else path.parent
    if not path.parent.is_dir() or path.is_dir() or not os.access(target, os.W_OK):
        rule = "a file in a directory that you can write to"
        raise dnnprims.BadParamError("verify", "cannot be written", param="--report", got=str(path), expected=rule)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 1 <= i <= n")
    return int(index), int(count)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dnnprims verify", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("family", nargs="*", help=f"families to run, all where none is named: {', '.join(FAMILIES)}")
    add("--backend", default="auto", choices=("auto", "numpy", "emulator", "cuda"))
    add(
        "--against",
        default="",
        metavar="MODULE",
        help="another implementation: package.module, file.py, or either:attr",
    )
    add("--dtype", action="append", choices=DTYPES, help="may be repeated; all where left out")
    add("--seed", type=_natural, default=0, help="of the random cases and of all data")
    add("--cases", type=_natural, default=20, help="random cases for each family and dtype (default 20)")
    add("--case", action="append", default=[], metavar="LINE", help="run this case alone; may be repeated")
    add("--jobs", type=_positive, default=1, help="processes; the outcome is the same (default 1)")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th case from number I on")
    add("--report", type=Path, action="append", default=[], metavar="FILE", help="write FILE.html or FILE.json")
    add("--merge", type=Path, action="append", default=[], metavar="JSON", help="report these runs instead of running")
    add("--quiet", action="store_true", help="show no progress")
    return parser
