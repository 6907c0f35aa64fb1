"""What holds a case back: its kernels, and the peers', under Nsight Compute.

``python tools/limiters.py [--missed] [--each 3] [--case LINE] [--peers torch] [--json FILE]``

With ``--missed`` the cases are those beyond each target of ``tools/targets.py``, the worst first. Each call is warm and
its caches are flushed before each pass of the profiler. ``--table FILE`` prints a Markdown table of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import current_commit, environment
from targets import RESULTS, TARGETS, judge

from benchmark import families as family_list
from benchmark.case import name_of
from benchmark.counters import MARKER, MARKER_SOURCE, Kernel, all_metrics, by_turn, read_raw
from benchmark.results import read
from benchmark.run import Session
from dnnprims.conformance.cases import Problem

#: Clocks and caches are left as a run would find them; only what the markers enclose is watched.
OPTIONS = ("--clock-control", "none", "--profile-from-start", "off", "--target-processes", "application-only")
OPTIONS += ("--csv", "--page", "raw", "--print-units", "base")


def missed_lines(each: int) -> Iterator[str]:
    """Lines of the worst cases of each target that is missed."""
    results = read(sorted(RESULTS.glob("*.jsonl")))
    for target in json.loads(TARGETS.read_text(encoding="utf-8"))["lines"]:
        verdict = judge(target, results)
        names = [name for _, name in verdict.missed] if verdict.word == "missed" else []
        yield from [results.cases[name]["line"] for name in names if name in results.cases][:each]


def watch(lines: Sequence[str], peers: Sequence[str], names: Path, budget_seconds: float) -> None:
    """Call each case, and the peers, once under the profiler; say into a file whose turn was when."""
    import cupy

    start = time.perf_counter()
    marker = cupy.RawKernel(MARKER_SOURCE, MARKER)
    session = Session.open("cuda", family_list.load(), peers, lambda words: print(words, flush=True))
    with session.clock.active(), names.open("w", encoding="utf-8") as file:
        for i, line in enumerate(lines):
            if budget_seconds and time.perf_counter() - start > budget_seconds:
                print(f"time is up: {len(lines) - i} of {len(lines)} cases left out", flush=True)
                return
            try:
                case, call = session.prepared(Problem.parse(line, dtype="float32"))
                turns = {"dnnprims": call, **{rival.name: rival.call for rival in session.rivals(case)}}
            except Exception as error:
                print(f"{line}: {error}", flush=True)
                continue
            for j, (name, run) in enumerate(turns.items()):
                file.write(json.dumps({"turn": [i, j], "line": line, "who": name}) + "\n")
                run()
                session.clock.wait()
                cupy.cuda.profiler.start()
                marker((i + 1, j + 1), (1,), ())
                run()
                session.clock.wait()
                cupy.cuda.profiler.stop()
            file.flush()
            session.free()


def profile(lines: Sequence[str], peers: str, ncu: str, budget_seconds: float) -> list[dict[str, Any]]:
    """Profile lines in one process; an entry for each contestant of each."""
    with tempfile.TemporaryDirectory() as folder:
        names, log, given = Path(folder) / "names", Path(folder) / "log", Path(folder) / "lines"
        given.write_text(json.dumps(list(lines)), encoding="utf-8")
        command = [ncu, *OPTIONS, "--metrics", ",".join(all_metrics()), "--log-file", str(log)]
        command += [sys.executable, __file__, "--watch", str(given), "--peers", peers, "--names", str(names)]
        command += ["--budget-seconds", str(budget_seconds)]
        subprocess.run(command, check=False)
        print(f"profiled: {log.stat().st_size} bytes of counts", flush=True)
        turns = [json.loads(text) for text in names.read_text(encoding="utf-8").splitlines()]
        found = by_turn(read_raw(log.read_text(encoding="utf-8")))
    return [_entry(turn, found.get(tuple(turn["turn"]), [])) for turn in turns]


def _entry(turn: dict[str, Any], kernels: Sequence[Kernel]) -> dict[str, Any]:
    for kernel in kernels:
        print(f"{turn['who']}: {kernel}", flush=True)
    name = name_of(Problem.parse(turn["line"], dtype="float32"))
    return {"name": name, "who": turn["who"], "kernels": [kernel.as_json() for kernel in kernels]}


def table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: the longest kernel of each case, ours and the peers'."""
    text = ["| case | whose | us | longest kernel | busiest unit | issue % | warps % | waits |", "| --- " * 8 + "|"]
    for entry in entries:
        if not entry["kernels"]:
            continue
        longest = max(entry["kernels"], key=lambda kernel: float(kernel.get("us", 0.0)))
        counts = {name: value for name, value in longest.items() if isinstance(value, float)}
        kernel = Kernel(longest["kernel"], counts, longest["stalls"])
        total = sum(float(one.get("us", 0.0)) for one in entry["kernels"])
        stall = next(iter(kernel.stalls.items()), ("", 0.0))
        text.append(
            f"| {entry['name']} | {entry['who']} | {total:.1f} | {kernel.name[:48]} {counts.get('us', 0.0):.1f} "
            f"| {kernel.busiest} {counts.get(kernel.busiest, 0.0):.0f} % | {counts.get('issue', 0.0):.0f} "
            f"| {counts.get('warps', 0.0):.0f} | {stall[0]} {stall[1]:.1f} |"
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--missed", action="store_true", help="the worst cases of each target that the results miss")
    add("--each", type=int, default=3, help="so many of each target")
    add("--case", action="append", default=[], help="a line of its own; may be repeated")
    add("--peers", default="torch", help="whose kernels are looked at, too; '' for none")
    add("--shard", default="0/1", help="i/n: every n-th case from the i-th on")
    add("--budget-seconds", type=float, default=0.0, help="begin no case after so many seconds")
    add("--json", type=Path, help="write what was found into this file")
    add("--commit", help="named in the file where this is no checkout")
    add("--table", type=Path, help="print a table of an earlier run's file and do nothing else")
    add("--ncu", default="ncu", help="the profiler")
    add("--watch", type=Path, help=argparse.SUPPRESS)
    add("--names", type=Path, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Profile, or print a table; 1 where there is nothing to profile with."""
    given = parser().parse_args(argv)
    if given.table:
        print("\n".join(table(json.loads(given.table.read_text(encoding="utf-8"))["cases"])))
        return 0
    if given.watch:
        peers = [name for name in given.peers.split(",") if name]
        watch(json.loads(given.watch.read_text(encoding="utf-8")), peers, given.names, given.budget_seconds)
        return 0
    if shutil.which(given.ncu) is None:
        print(f"{given.ncu} was not found; it comes with the CUDA toolkit", file=sys.stderr)
        return 1
    part, parts = map(int, given.shard.split("/"))
    lines = [*given.case, *(missed_lines(given.each) if given.missed else ())]
    cases = profile(list(dict.fromkeys(lines))[part::parts], given.peers, given.ncu, given.budget_seconds)
    if given.json:
        facts = environment("cuda", given.commit or current_commit())
        given.json.write_text(json.dumps({"environment": facts, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
