"""Which files are mutated, which mistakes are left out and why, and the seeded choice among the rest."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from math import sqrt
from pathlib import Path

from . import cuda_text, python_text
from .mutant import Mutant

KERNELS = ("dnnprims/kernels/*.cu", "dnnprims/kernels/*.cuh")
HOST = (
    "dnnprims/ops/**/*.py",
    "dnnprims/checks/*.py",
    "dnnprims/descriptors/*.py",
    "dnnprims/runtime/gemm.py",
    "dnnprims/runtime/host.py",
    "dnnprims/runtime/launch.py",
    "dnnprims/runtime/layout.py",
    "dnnprims/runtime/plan.py",
    "dnnprims/runtime/tensor_lists.py",
    "dnnprims/creation.py",
    "dnnprims/handle.py",
    "dnnprims/operands.py",
    "dnnprims/planning.py",
    "dnnprims/prepared.py",
)


@dataclass(frozen=True)
class Exclusion:
    """Mistakes that change no result, or none that this machine could see: files, and what the line must match."""

    files: str
    line: str
    reason: str


_TUNING = (
    r"_(?:LONG_INNER|LEAST_ITEMS|LEAST_ROWS|LEAST_ALONG|LEAST_SPLIT|ENOUGH_BLOCKS|SHORTEST_ROW|WARP_ROW|ALONE|SHARE|"
    r"MOST_BLOCKS|PACKS_A_THREAD|BLOCKS_AN_SM|LONG_ROW|FEW_ROWS|FEWEST_ROWS|ROWS_AT_ONCE|STRIDED_LEAST)\b|"
    r"sm_count|CHUNKS_PER_MULTIPROCESSOR|WORKSPACE_BYTES|WORKSPACE_START_BYTES|MOST_PLANS|IN_FLIGHT|AHEAD"
)
EXCLUSIONS = (
    Exclusion("dnnprims/*", _TUNING, "speed alone: how work is divided, what is kept; any value gives right results"),
    Exclusion("dnnprims/*", r"strict=(?:True|False)", "a guard against mistakes of our own; the lengths are equal"),
    Exclusion("dnnprims/checks/options.py", r"_LONGEST\b", "where long words are cut"),
    Exclusion("dnnprims/*", r"stacklevel|__slots__|__all__|__name__", "words and bookkeeping of Python"),
    Exclusion("dnnprims/kernels/dtypes.cuh", r">> 32 == 0", "speed alone: chooses the cheaper division"),
    Exclusion("dnnprims/kernels/*", r"__noinline__|#pragma", "hints to the compiler"),
    Exclusion("dnnprims/creation.py", r"cuda|gpu|device|stream", "needs a GPU"),
)


def files(root: Path) -> list[str]:
    """Every file that is mutated, relative to the root."""
    return sorted({str(path.relative_to(root)) for pattern in (*KERNELS, *HOST) for path in root.glob(pattern)})


def candidates(root: Path, path: str) -> list[Mutant]:
    """Every mistake that may be planted in a file."""
    source = (root / path).read_text(encoding="utf-8")
    find = python_text.mutants if path.endswith(".py") else cuda_text.mutants
    return [mutant for mutant in find(path, source) if not excluded(mutant, source)]


def excluded(mutant: Mutant, source: str) -> str | None:
    """Why a mistake is not planted, or None."""
    line = mutant.before(source)
    for rule in EXCLUSIONS:
        if fnmatch(mutant.path, rule.files) and re.search(rule.line, line):
            return rule.reason
    return None


def choose(root: Path, count: int, seed: int, only: Iterable[str] = ()) -> list[Mutant]:
    """A sample: files by the square root of what they offer, kinds of mistakes in turn, one mistake a line and kind."""
    generator = random.Random(seed)
    wanted = tuple(only)
    offered = {path: candidates(root, path) for path in files(root) if not wanted or path.startswith(wanted)}
    queues = {path: _in_turn(root, path, found, generator) for path, found in offered.items() if found}
    weights = {path: sqrt(len(offered[path])) for path in queues}
    chosen: list[Mutant] = []
    served = dict.fromkeys(queues, 0)
    while queues and len(chosen) < count:
        path = min(queues, key=lambda name: ((served[name] + 1) / weights[name], name))
        mutant = queues[path].pop()
        if _reads(root, mutant):
            chosen.append(mutant)
            served[path] += 1
        if not queues[path]:
            del queues[path]
    return chosen


def _reads(root: Path, mutant: Mutant) -> bool:
    if not mutant.path.endswith(".py"):
        return True
    return python_text.reads(mutant.apply((root / mutant.path).read_text(encoding="utf-8")))


def _in_turn(root: Path, path: str, found: list[Mutant], generator: random.Random) -> list[Mutant]:
    """A file's mistakes in the order in which they are taken, last first."""
    source = (root / path).read_text(encoding="utf-8")
    kinds: dict[str, list[Mutant]] = {}
    lines: set[tuple[str, int]] = set()
    for mutant in generator.sample(found, len(found)):
        place = mutant.operator, mutant.line(source)
        if place not in lines:
            lines.add(place)
            kinds.setdefault(mutant.operator, []).append(mutant)
    order: list[Mutant] = []
    names = sorted(kinds)
    generator.shuffle(names)
    while any(kinds.values()):
        order += [kinds[name].pop() for name in names if kinds[name]]
    return order[::-1]
