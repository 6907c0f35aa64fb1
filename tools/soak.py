"""Long runs that no single call would need: determinism, capture and leaks, of every primitive.

``python tools/soak.py determinism --backend cuda --repeats 100 --processes 3 --settings 3 --json FILE``
``python tools/soak.py capture --replays 1000 --json FILE``
``python tools/soak.py leaks --backend emulator --calls 100000 --json FILE``

Each takes ``--dtype`` and ``--op``, both repeatable, so that parts can run side by side (``CUDA_VISIBLE_DEVICES``
picks the GPU). Exit code 0 where there is nothing to complain about. The results are kept in
``benchmarks/reliability/``; the tests run the same code on less.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soak_capture
import soak_determinism
import soak_leaks
from soak_calls import ReadyCall, large_problems, ways
from soak_watch import progress

import dnnprims as dp
from dnnprims.conformance.cases import DTYPES

Report = dict[str, Any]


def determinism(given: argparse.Namespace) -> Report:
    """Repeats x settings x processes; every digest of a call is the same."""
    arguments = ["--backend", given.backend, "--repeats", str(given.repeats), "--settings", str(given.settings)]
    arguments += [word for name in given.dtype for word in ("--dtype", name)]
    arguments += [word for name in given.op for word in ("--op", name)]
    found = soak_determinism.compare(soak_determinism.in_processes(given.processes, arguments))
    facts = {"repeats": given.repeats, "settings": given.settings, "processes": given.processes, **found}
    return {**facts, "failures": len(found["differences"])}


def digest(given: argparse.Namespace) -> Report:
    """One process of `determinism`: prints the digests and nothing else."""
    with dp.create_handle(given.backend) as handle:
        found = soak_determinism.digests(handle, given.dtype or DTYPES, given.op, given.repeats, given.settings)
    print(json.dumps(found))
    return {}


def capture(given: argparse.Namespace) -> Report:
    """Every call recorded and replayed with other inputs."""
    complaints: dict[str, list[str]] = {}
    recorder, replays, calls = soak_capture.CudaRecorder(), 0, 0
    with dp.create_handle("cuda") as handle:
        dtypes = given.dtype or DTYPES
        problems = [*ways(handle.profile, dtypes, ops=given.op).values(), *large_problems(dtypes, given.op)]
        for problem in progress(problems):
            try:
                with recorder.active():
                    call = ReadyCall(handle, problem)
                done = soak_capture.replay(call, recorder, given.replays)
            except Exception as error:  # the other calls have a stream of their own to show what they do
                done, recorder = soak_capture.Replayed(0, [repr(error)]), soak_capture.CudaRecorder()
            calls, replays = calls + 1, replays + done.replays
            if done.complaints:
                complaints[str(problem)] = done.complaints
    return {"calls": calls, "replays": replays, "complaints": complaints, "failures": len(complaints)}


def leaks(given: argparse.Namespace) -> Report:
    """Growth of objects, of the process and of CuPy's pool."""
    rows = []
    with dp.create_handle(given.backend) as handle:
        calls = soak_leaks.calls_to_soak(handle, given.op, given.dtype or DTYPES, given.every_way)
        # Everything is repeated as often as a primitive, each of whose three ways to be called takes its share.
        work = [(what, call, 3) for what, call in calls]
        work += [] if given.op else soak_leaks.things_to_soak(handle)
        part, parts = given.part
        for what, call, worth in progress(work[part - 1 :: parts]):
            rows.append(soak_leaks.soak(what, call, max(given.calls // worth, 2), handle.backend).as_row())
    leaking = [row["what"] for row in rows if row["leaks"]]
    return {"calls": given.calls, "rows": rows, "leaking": leaking, "failures": len(leaking)}


def _environment(backend: str) -> Report:
    facts = {
        "date": datetime.date.today().isoformat(),
        "dnnprims": dp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "device": platform.machine(),
    }
    if backend == "cuda":
        import cupy

        facts["cupy"] = cupy.__version__
        facts["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return facts


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not 1 <= int(part) <= int(parts):
        raise ValueError(text)
    return int(part), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/soak.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (determinism, digest, capture, leaks):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").splitlines()[0])
        sub.set_defaults(run=command)
        sub.add_argument("--backend", default="cuda", choices=("numpy", "emulator", "cuda"))
        sub.add_argument(
            "--dtype", action="append", default=[], choices=DTYPES, help="may be repeated; all if left out"
        )
        sub.add_argument("--op", action="append", default=[], choices=soak_leaks.OPS, help="may be repeated")
        sub.add_argument("--json", type=Path, help="write the report there")
        if command in (determinism, digest):
            sub.add_argument("--repeats", type=int, default=100)
            sub.add_argument("--settings", type=int, default=3, help="streams, or schedules of the emulator")
        if command is determinism:
            sub.add_argument("--processes", type=int, default=3)
        if command is capture:
            sub.add_argument("--replays", type=int, default=1000)
        if command is leaks:
            sub.add_argument("--calls", type=int, default=100_000)
            sub.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="every N-th piece of work")
            sub.add_argument("--every-way", action="store_true", help="every variant, not one for each primitive")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    given = _parser().parse_args(argv)
    start = time.perf_counter()
    report = given.run(given)
    if given.run is digest:
        return 0
    facts = {"command": given.command, "backend": given.backend, "dtypes": given.dtype or list(DTYPES)}
    report = {**facts, **_environment(given.backend), "seconds": round(time.perf_counter() - start, 1), **report}
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
