"""Measure how far activations and their derivatives are from the true value, in ULP, over whole types.

``python tools/ulp.py [--backend emulator ...] [--peer torch] [--patterns all16,sample,mpmath] [--json FILE]``
``python tools/ulp.py --write docs/ulp.md``

Every mode, forward and derivative (that of x, and of y where y tells it). The true values are float64 formulas of the
platform's own functions, held against mpmath before they judge; float64 itself is judged by mpmath. PyTorch answers
the same questions. Patterns:

  all16    every number of float16 and bfloat16, with other parameters, too
  sample   float32: places where functions turn, all exponents (``--count``)
  all32    every number of float32, on the device of ``--backend cuda``; ``--step N`` takes every Nth, anywhere
  mpmath   float64: a sample (``--count64``), judged by mpmath

Results are JSON lines, written question by question; ``--resume`` goes on where a run stopped. Several GPUs take a
shard each: ``--shard 0/4``. ``benchmarks/ulp/`` keeps the results that ``docs/ulp.md`` is written from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import dnnprims as dp
from accuracy import oracle, page
from accuracy.questions import DIRECTIONS, Question, questions
from accuracy.run import ORACLE_ERROR, Arguments, Subject, ask, validate
from accuracy.subjects import Torch, make
from dnnprims.descriptors import ACTIVATION_MODES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "ulp"
#: Patterns -> element types that they are of.
DTYPES = {"all16": ("float16", "bfloat16"), "sample": ("float32",), "all32": ("float32",), "mpmath": ("float64",)}
#: Arguments of each question that the oracle is held against mpmath at.
VALIDATED = 400


class Output:
    """Says what happens, and keeps the lines of results."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path, self.start = path, time.perf_counter()
        self.known: set[tuple[str, str]] = set()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.known = {(line["name"], line["patterns"]) for line in lines if "patterns" in line}
        else:
            path.write_text("", encoding="utf-8")

    def tell(self, words: str) -> None:
        """A line for the reader."""
        print(f"{time.perf_counter() - self.start:6.1f} s  {words}", flush=True)

    def keep(self, line: dict[str, Any]) -> None:
        """A line of results."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def environment(subjects: Sequence[Subject], given: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on."""
    found: dict[str, Any] = {
        "name": "environment",
        "device": "NVIDIA GPU" if "cuda" in given.backend else "CPU",
        "date": given.date or datetime.date.today().isoformat(),
        "commit": given.commit or _commit(),
        "dnnprims": dp.__version__,
        "numpy": metadata.version("numpy"),
        "mpmath": metadata.version("mpmath"),
        "python": platform.python_version(),
        "command": "python tools/ulp.py " + shlex.join(_measuring(sys.argv[1:])),
    }
    if "cuda" in given.backend:
        import cupy

        found["device"] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
        found["cupy"] = cupy.__version__
    for subject in subjects:
        if isinstance(subject, Torch):
            found["torch"] = subject.torch.__version__
            found["cpu"] = f"{platform.machine()} {subject.torch.backends.cpu.get_cpu_capability()}"
    return found


def _measuring(words: Sequence[str]) -> list[str]:
    """The words of the command that say what is measured, not where that is written."""
    aside = ("--json", "--commit", "--date")
    before = ["", *words]
    return [w for w, b in zip(words, before, strict=False) if w not in (*aside, "--resume") and b not in aside]


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def arguments_of(kind: str, given: argparse.Namespace) -> Arguments:
    """Where arguments and true values of a set of patterns are."""
    on_device = kind == "all32" and "cuda" in given.backend
    count = given.count64 if kind == "mpmath" else given.count
    maths = oracle.device() if on_device else oracle.host()
    return Arguments(kind, maths, count, given.chunk, given.step if kind == "all32" else 1)


def wanted(kind: str, given: argparse.Namespace) -> Iterator[Question]:
    """The questions of a set of patterns, those of this shard."""
    shard, shards = (int(word) for word in given.shard.split("/"))
    modes = [mode for i, mode in enumerate(given.modes or ACTIVATION_MODES) if i % shards == shard]
    for dtype in DTYPES[kind]:
        if modes and (not given.dtype or dtype in given.dtype):
            yield from questions(dtype, modes, given.directions, other=kind in ("all16", "sample"))


def check_oracle(asked: Sequence[Question], maths: oracle.Maths, output: Output) -> bool:
    """Hold the true values against mpmath; False where they are no judge."""
    worst, where = 0.0, ""
    for question, error, argument in validate(asked, maths, VALIDATED):
        if error >= worst:
            worst, where = error, f"{question} at {argument!r}"
    output.tell(f"oracle: relative error {worst:.3g} at most against mpmath, {where}; allowed {ORACLE_ERROR:.3g}")
    output.keep({"name": "oracle", "error": worst, "where": where, "questions": len(asked), "arguments": VALIDATED})
    return worst <= ORACLE_ERROR


def measure(kind: str, subjects: Sequence[Subject], given: argparse.Namespace, output: Output) -> tuple[int, int]:
    """Ask all questions over a set of patterns; how many were answered by us, and how many of these miss the target."""
    asked, arguments = list(wanted(kind, given)), arguments_of(kind, given)
    single = list(
        dict.fromkeys(s.understood(q) for q in asked for s in subjects if q.dtype == "float32" and s.answers(q))
    )
    if single and not check_oracle(single, arguments.maths, output):
        raise SystemExit("the oracle is no judge here: nothing was measured")
    answered = missed = 0
    for number, question in enumerate(asked, 1):
        open_ = [s for s in subjects if (question.name_for(s.name), arguments.label) not in output.known]
        answers = ask(question, open_, arguments)
        for answer in answers:
            output.keep(answer.as_json())
            if answer.promised:
                answered += 1
                missed += not answer.meets_target
        if answers:
            output.tell(f"[{number}/{len(asked)}] {question}: {'; '.join(map(str, answers))}")
    return answered, missed


def _listed(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        found = [word for word in text.split(",") if word]
        unknown = [word for word in found if word not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(allowed)}")
        return found

    return words


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--backend", type=_listed(("numpy", "emulator", "cuda")), default=["emulator"], metavar="A,B")
    made.add_argument("--peer", choices=("torch",), help="measure PyTorch as well, on the GPU with --backend cuda")
    made.add_argument("--patterns", type=_listed(tuple(DTYPES)), default=["all16", "sample", "mpmath"], metavar="A,B")
    made.add_argument("--modes", type=_listed(tuple(ACTIVATION_MODES)), default=[], metavar="A,B")
    made.add_argument("--directions", type=_listed(DIRECTIONS), default=list(DIRECTIONS), metavar="A,B")
    made.add_argument("--dtype", type=_listed(sum(DTYPES.values(), ())), default=[], metavar="A,B")
    made.add_argument("--count", type=int, default=1 << 20, help="size of a sample of float32")
    made.add_argument("--count64", type=int, default=10_000, help="size of a sample of float64")
    made.add_argument("--step", type=int, default=1, help="take every Nth number of float32")
    made.add_argument("--chunk", type=int, default=1 << 26, help="how many numbers are judged at once")
    made.add_argument("--shard", default="0/1", help="I/N: the modes I, I + N, ...")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    made.add_argument("--resume", action="store_true", help="keep what FILE holds, and measure the rest")
    made.add_argument("--commit", default="", help="the commit that is measured, where there is no checkout")
    made.add_argument("--date", default="", help="the day that is written down, today where not given")
    made.add_argument("--write", type=Path, metavar="PAGE", help="write the page from the committed results, only")
    made.add_argument("--check", action="store_true", help="with --write: say whether the page is current")
    return made


def main() -> int:
    """Measure, or write the page."""
    given = parser().parse_args()
    if given.write is not None:
        return page.write(given.write, RESULTS, check=given.check)
    subjects = [make(name) for name in given.backend]
    if given.peer:
        subjects.append(make("torch-cuda" if "cuda" in given.backend else "torch"))
    output = Output(given.json, given.resume)
    output.keep(environment(subjects, given))
    answered = missed = 0
    for kind in given.patterns:
        more, beyond = measure(kind, subjects, given, output)
        answered, missed = answered + more, missed + beyond
    output.tell(f"{answered} functions measured, {missed} beyond their target")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
