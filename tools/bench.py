"""Measure primitives beside their peers on one GPU: check first, then time, in one run.

``python tools/bench.py [family ...] [--shapes key] [--dtype bfloat16,float16] [--peers torch,compile] [--json FILE]``

Each case is held against the float64 reference, and so is each peer, before anything is timed. Device times are
medians over events with the L2 flushed before each, ours and the peers' in turn; small calls are captured in a CUDA
graph. Bytes are the fewest that the work must move and flops what it must compute; the shares are of a copy and of a
matrix product measured in the same run. Sets of shapes are files under ``benchmarks/shapes/``. Results are JSON lines,
written case by case; ``benchmarks/<gpu>/`` keeps those that back a claim.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import dnnprims as dp
from benchmark import families as family_list
from benchmark import peers as peer_list
from benchmark.case import name_of
from benchmark.example import example_records
from benchmark.families import Family
from benchmark.first_use import first_use_records
from benchmark.host import host_records
from benchmark.precompile import precompile, units
from benchmark.records import Record, summary
from benchmark.run import ROUNDS, Session
from dnnprims.conformance.cases import Problem
from dnnprims.runtime.cuda import gpu_works

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ROOT / "benchmarks" / "shapes"
#: What is measured besides the families: (name, what it is).
SPECIAL = ("host", "first_use", "resnet50")
DTYPES = ("float32", "float16", "bfloat16")
#: Words of errors after which the process has no GPU any more.
LOST = ("cudaErrorIllegalAddress", "illegal memory access", "cudaErrorLaunchFailure", "unspecified launch failure")


class Output:
    """Says what happens, and keeps the records."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.start = path, time.perf_counter()
        self.records: list[Record] = []
        self.failed = 0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def tell(self, words: str) -> None:
        """A line for the reader."""
        print(f"{time.perf_counter() - self.start:6.1f} s  {words}", flush=True)

    def keep(self, line: dict[str, Any]) -> None:
        """A line for the file, at once, so that a run that is cut off has lost nothing."""
        self.failed += "failed" in line or not line.get("over_bound", 0.0) <= 1.0
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def names(self) -> set[str]:
        """Cases that the file has measured already."""
        if self.path is None or not self.path.exists():
            return set()
        lines = [json.loads(text) for text in self.path.read_text(encoding="utf-8").splitlines()]
        return {line["name"] for line in lines if "failed" not in line}


def read_shapes(name: str) -> dict[str, Any]:
    """A set of shapes, by its file or by its name under ``benchmarks/shapes/``."""
    path = Path(name) if name.endswith(".json") else SHAPES / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def lines_of(sets: Sequence[str], families: Sequence[Family], dtypes: Sequence[str]) -> Iterator[str]:
    """The cases of sets of shapes, family by family."""
    found = [read_shapes(name) for name in sets]
    for family in families:
        for content in found:
            for entry in content.get(family.name, ()):
                yield from family.lines(entry, dtypes)


def current_commit() -> str:
    """Short name of the commit that is checked out, empty outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def version(package: str) -> str:
    """Of an installed package, empty where there is none."""
    names = [package, *(f"{package}-cuda{major}x" for major in (13, 12))] if package == "cupy" else [package]
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def environment(backend: str, commit: str) -> dict[str, Any]:
    """What the numbers were measured with."""
    gpu = ""
    if backend == "cuda":
        import cupy

        number = cupy.cuda.runtime.getDevice()
        gpu = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    packages = ("cupy", "torch", "triton", "thinc", "liger-kernel", "numpy")
    return {
        "name": "environment",
        "gpu": gpu or f"none ({backend} on {platform.machine()})",
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dnnprims": dp.__version__,
        **{package: found for package in packages if (found := version(package))},
        "python": platform.python_version(),
        "command": " ".join(["python", *sys.argv]),
    }


def words_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """What reads a list such as ``float16,bfloat16``, of known words alone."""

    def read(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} among {', '.join(known)}")
        return words

    return read


def set_name(text: str) -> list[str]:
    """Sets of shapes, each a file or a name."""
    for name in text.split(","):
        if not (Path(name).is_file() or (SHAPES / f"{name}.json").is_file()):
            raise argparse.ArgumentTypeError(f"no set {name} under {SHAPES}, and no file of this name")
    return text.split(",")


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, peers = [*SPECIAL, *family_list.load()], list(peer_list.MODULES)
    add = made.add_argument
    add("family", nargs="*", metavar="family", help=f"all where none is named: {', '.join(names)}")
    add("--shapes", type=set_name, default=[], help="sets under benchmarks/shapes/, or files; key where left out")
    add("--case", action="append", default=[], help="a line of its own; may be repeated")
    add("--dtype", type=words_of(DTYPES), default=list(DTYPES), help=f"of {','.join(DTYPES)}; all where left out")
    add("--peers", type=words_of(peers), default=["torch", "cupy"], help=f"of {','.join(peers)}; '' for none")
    add("--backend", default="auto", choices=("auto", "cuda", "emulator", "numpy"))
    add("--device", type=int, default=0, help="number of the GPU")
    add("--rounds", type=int, default=ROUNDS, help="repeats of each measurement, fewer where they are long")
    add("--budget-seconds", type=float, default=0.0, help="begin no case after so many seconds")
    add("--shard", default="0/1", help="i/n: every n-th case from the i-th on, to share a run out")
    add("--json", type=Path, help="append the results to this file")
    add("--resume", action="store_true", help="leave out what the file has measured already")
    add("--plot", type=Path, help="draw the roofline of this run into this file")
    add("--commit", help="named in the results where this is no checkout")
    add("--list", action="store_true", help="print the cases and measure nothing")
    add("--smoke", action="store_true", help="tiny cases and few rounds, to try the instrument itself")
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with what ``--smoke`` stands for."""
    made = parser()
    given = made.parse_args(argv)
    try:
        words_of([*SPECIAL, *family_list.load()])(",".join(given.family))
    except argparse.ArgumentTypeError as error:
        made.error(f"family: {error}")
    given.shapes = given.shapes or ([] if given.case else ["smoke" if given.smoke else "key"])
    given.rounds = min(given.rounds, 3) if given.smoke else given.rounds
    if given.backend == "auto":
        given.backend = "cuda" if gpu_works() else "emulator"
    return given


def choose(given: argparse.Namespace, measured: set[str]) -> tuple[list[str], list[str]]:
    """The special measurements and the lines of this run."""
    everything = family_list.load()
    wanted = given.family or ([] if given.case else [*SPECIAL, *everything])
    chosen = [everything[name] for name in wanted if name in everything]
    lines = [*given.case, *lines_of(given.shapes, chosen, given.dtype)]
    part, parts = map(int, given.shard.split("/"))
    lines = list(dict.fromkeys(lines))[part::parts]
    if given.resume:
        lines = [line for line in lines if name_of(Problem.parse(line)) not in measured]
    return [name for name in SPECIAL if name in wanted and part == 0], lines


def measure(given: argparse.Namespace, session: Session, special: list[str], lines: list[str], output: Output) -> None:
    """The special measurements, then every line that there is time for."""
    if "host" in special:
        for found in host_records(session.handles["ieee"], session.arrays, session.clock):
            output.keep(found)
            output.tell(f"{found['name']}  {found['us']} us")
    if "first_use" in special:
        for found in first_use_records(given.backend, given.dtype, given.device):
            output.keep(found)
            output.tell(f"{found['name']}  {found.get('ms', found.get('failed'))} ms")
    if "resnet50" in special:
        for found in example_records(given.backend, given.peers, little=given.smoke or given.backend != "cuda"):
            output.keep(found)
            output.tell(
                f"{found['name']}  {found.get('images/s', '')} images/s  {found.get('ms', found.get('failed'))} ms"
            )
    if not lines:
        return
    if given.backend == "cuda":
        wanted = units(lines)
        output.tell(f"compiling {len(wanted)} groups of kernels, where the cache has not got them")
        precompile(wanted, session.handles["ieee"].profile.arch)
    session.measure_limits(given.dtype)
    rates = {name: round(rate * 1e-12, 6) for name, rate in session.limits.items()}
    output.keep({"name": "limits", **rates})
    output.tell(f"ceilings: {rates} (copy TB/s, products TFLOP/s)")
    for i, line in enumerate(lines):
        if given.budget_seconds and time.perf_counter() - output.start > given.budget_seconds:
            output.tell(f"time is up: {len(lines) - i} of {len(lines)} cases left out, from {line}")
            return
        record = session.run(line)
        output.records.append(record)
        output.keep(record.as_json())
        output.tell(f"[{i + 1}/{len(lines)}] {record}")
        if any(word in record.failed for word in LOST):
            output.tell(f"the GPU cannot be used any more: {len(lines) - i - 1} cases left out")
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a check failed."""
    given = parse(argv)
    output = Output(given.json)
    special, lines = choose(given, output.names() if given.resume else set())
    if given.list:
        print("\n".join(lines))
        return 0
    if given.backend == "cuda":
        import cupy

        cupy.cuda.Device(given.device).use()
    session = Session.open(given.backend, family_list.load(), given.peers, output.tell)
    session.rounds = given.rounds
    facts = environment(given.backend, given.commit or current_commit())
    output.keep(facts)
    output.tell(f"{len(lines)} cases on {facts['gpu']}, peers: {', '.join(p.name for p in session.peers) or 'none'}")
    with session.clock.active():
        measure(given, session, special, lines, output)
    families = {op: name for name, family in family_list.load().items() for op in family.makers}
    print("\n".join(summary(output.records, families)))
    if given.plot:
        from benchmark.picture import draw

        draw([record.as_json() for record in output.records], session.limits, facts["gpu"], given.plot)
    if output.failed:
        output.tell(f"{output.failed} failed")
    return 1 if output.failed else 0


if __name__ == "__main__":
    sys.exit(main())
