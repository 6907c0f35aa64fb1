"""Every kernel under compute-sanitizer: memcheck, racecheck, initcheck and synccheck over chosen conformance cases.

``python tools/sanitize.py --gpus 0,1,2,3 --jobs 48 --json benchmarks/reliability/sanitize.json``

``sanitize_cases.py`` chooses cases that together launch every kernel, aligned, unaligned and with gaps, with tails and
without; memcheck gets every function that kernels are instantiated for, too. Each tool first has to find a planted
fault. Cases whose products cuBLASLt computes are watched in this library's kernels alone: NVIDIA's own are not for this
library to mend. Exit code 0 where all is clean. ``--list`` only says what would be run; ``--shard 0/2`` runs a part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import sanitize_cases
from sanitize_cases import Candidate, Case
from sanitize_report import Findings, parse

from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import DTYPES

HERE = Path(__file__).resolve().parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERRORS_FOUND = 86

#: Options of each process; errors of calls into CUDA reach Python by themselves.
OPTIONS = ("--error-exitcode", str(ERRORS_FOUND), "--print-limit", "30", "--report-api-errors", "no")
OPTIONS += ("--launch-timeout", "300", "--target-processes", "all")
#: Watched where cuBLASLt runs, too: names of this library's kernels there.
OWN_KERNELS = ("--kernel-name", "kns=fc_", "--kernel-name", "kns=gemm_tiled")

_ports = count(49152, 16)


def is_foreign(case: Case) -> bool:
    """Whether cuBLASLt computes products of the case."""
    return case.line.startswith("fc_") and not case.own_products


def choose(found: Sequence[Candidate], tool: str) -> list[Candidate]:
    """Cases for a tool. What a kernel that is not watched has written counts as not written with initcheck, so that it
    gets no products of cuBLASLt's.
    """
    taken = [one for one in found if tool != "initcheck" or not is_foreign(one.case)]
    return sanitize_cases.choose(taken, functors=tool == "memcheck")


@dataclass
class Job:
    """One process: a tool and its share of the cases, or its planted fault."""

    tool: str
    cases: list[Case]
    planted: bool = False
    findings: Findings = field(default_factory=lambda: Findings(None))
    report: dict[str, Any] = field(default_factory=dict)
    code: int = -1
    seconds: float = 0.0
    log: str = ""

    @property
    def watched(self) -> tuple[str, ...]:
        """Which kernels are watched: all, but for products that cuBLASLt computes."""
        return OWN_KERNELS if any(map(is_foreign, self.cases)) else ()

    @property
    def passed(self) -> bool:
        """Whether the tool found what was planted, or else nothing, and every case passed."""
        if self.planted:
            return bool(self.findings.errors)
        return self.findings.clean and self.code == 0 and self.report.get("cases") == len(self.cases)


def shares(cases: Sequence[Case], number: int) -> list[list[Case]]:
    """Runs of neighbours, those with products of cuBLASLt's apart from the others."""
    foreign = [case for case in cases if is_foreign(case)]
    own = [case for case in cases if case not in set(foreign)]
    parts = max(1, round(number * len(foreign) / max(len(cases), 1)))
    split = [(foreign, parts), (own, max(1, number - parts))]
    return [share for some, n in split for k in range(n) if (share := sanitize_cases.share(some, k, n))]


def execute(job: Job, gpu: str, backend: str, sanitizer: str, timeout: float) -> Job:
    """Run one process and read what it says."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sanitize-") as directory:
        cases, out = Path(directory, "cases.json"), Path(directory, "out.json")
        cases.write_text(json.dumps([[case.line, case.own_products] for case in job.cases]))
        driver = [sys.executable, str(HERE / "sanitize_run.py"), "--backend", backend]
        driver += ["--planted", job.tool] if job.planted else ["--cases", str(cases), "--out", str(out)]
        under = (
            [sanitizer, "--tool", job.tool, *OPTIONS, "--port", str(next(_ports)), *job.watched] if sanitizer else []
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
        environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        try:
            done = subprocess.run(
                [*under, *driver], capture_output=True, text=True, env=environment, timeout=timeout, check=False
            )
            job.code, job.log = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            job.log = f"{(late.stdout or b'').decode(errors='replace')}\nran past {timeout:.0f} s"
        job.report = json.loads(out.read_text()) if out.exists() else {}
    job.findings = parse(job.log) if sanitizer else Findings(0)
    job.seconds = round(time.perf_counter() - start, 1)
    return job


def run_all(jobs: Sequence[Job], given: argparse.Namespace, sanitizer: str) -> Iterator[Job]:
    """Run jobs side by side, each on the next GPU, the longest tools first."""
    gpus = given.gpus.split(",") if given.gpus else [""]
    with ThreadPoolExecutor(given.jobs) as pool:
        running = [
            pool.submit(execute, job, gpus[k % len(gpus)], given.backend, sanitizer, given.timeout)
            for k, job in enumerate(jobs)
        ]
        for k, one in enumerate(running):
            job = one.result()
            word = "planted fault" if job.planted else f"{len(job.cases)} cases"
            state = "ok" if job.passed else "FAILED"
            print(f"{k + 1} of {len(jobs)}: {job.tool}, {word}, {job.seconds} s: {state}", flush=True)
            if not job.passed:
                print(job.log[-3000:], file=sys.stderr, flush=True)
            yield job


def summarised(tool: str, jobs: Sequence[Job], chosen: Sequence[Candidate]) -> dict[str, Any]:
    """The row of a tool in the report."""
    mine = [job for job in jobs if job.tool == tool and not job.planted]
    planted = [job for job in jobs if job.tool == tool and job.planted]
    launched = {tuple(pair) for job in mine for pair in job.report.get("launched", ())}
    kinds: Counter[str] = sum((job.findings.kinds for job in mine), Counter())
    return {
        "tool": tool,
        "cases": sum(job.report.get("cases", 0) for job in mine),
        "chosen": len(chosen),
        "kernels": len({expression.partition("<")[0] for _, expression in launched}),
        "instantiations": len(launched),
        "errors": sum(job.findings.errors or 0 for job in mine),
        "findings": dict(kinds),
        "failed_cases": [one for job in mine for one in job.report.get("failed", ())],
        "unfinished": sum(job.report.get("cases") != len(job.cases) or job.findings.errors is None for job in mine),
        "finds_planted_fault": all(job.passed for job in planted) if planted else None,
        "processes": len(mine),
        "seconds_of_processes": round(sum(job.seconds for job in mine), 1),
        "clean": all(job.passed for job in (*mine, *planted)),
    }


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", action="append", choices=TOOLS, help="may be repeated; all where left out")
    parser.add_argument("--family", action="append", default=[], choices=tuple(FAMILIES))
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=12, help="processes for each tool")
    parser.add_argument("--shard", default="0/1", help="i/n: only every n-th process, from the i-th on")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes at once")
    parser.add_argument(
        "--gpus", default="", help="numbers, such as 0,1,2,3; what CUDA_VISIBLE_DEVICES says where empty"
    )
    parser.add_argument("--backend", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="empty: run the cases alone")
    parser.add_argument("--timeout", type=float, default=540.0, help="seconds for each process")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every tool finds what is planted and nothing else."""
    given, start = parsed(argv), time.perf_counter()
    tools = given.tool or list(TOOLS)
    found = list(sanitize_cases.candidates(given.family, given.dtype or DTYPES, given.seed))
    chosen = {tool: choose(found, tool) for tool in tools}
    for tool in tools:
        launches = {(c.dtype, launch) for c in chosen[tool] for launch in c.launches}
        print(
            f"{tool}: {len(chosen[tool])} cases, {len(launches)} instantiations ({time.perf_counter() - start:.0f} s)"
        )
    if given.list:
        return 0
    sanitizer = shutil.which(given.sanitizer) if given.sanitizer else ""
    if sanitizer is None:
        print(f"{given.sanitizer} is not there; it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    jobs = [Job(tool, [], planted=True) for tool in tools] if sanitizer else []
    jobs += [Job(tool, share) for tool in tools for share in shares([c.case for c in chosen[tool]], given.shards)]
    index, number = map(int, given.shard.split("/"))
    done = list(run_all(jobs[index::number], given, sanitizer))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "sanitizer": version(sanitizer),
        "shard": given.shard,
        "tools": [summarised(tool, done, chosen[tool]) for tool in tools],
        "seconds": round(time.perf_counter() - start, 1),
    }
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["tools"]:
        keys = ("tool", "cases", "kernels", "instantiations", "errors", "unfinished", "finds_planted_fault", "clean")
        print("  ".join(f"{key} {row[key]}" for key in keys))
    return 0 if all(row["clean"] for row in report["tools"]) else 1


def version(sanitizer: str) -> str:
    """What the sanitizer says of itself."""
    if not sanitizer:
        return ""
    said = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False).stdout
    return next((line for line in said.splitlines() if line.startswith("Version")), "")


if __name__ == "__main__":
    sys.exit(main())
