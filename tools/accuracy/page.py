"""The page of tables, written from the committed results: nothing in it is typed by hand but the words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnprims.conformance.bounds import DERIVATIVE_FLOOR

from .questions import DIRECTIONS, FORWARD, FROM_INPUT

Line = dict[str, Any]
SUBJECTS = {"cuda": "dnnprims", "emulator": "dnnprims", "numpy": "reference", "torch": "PyTorch"}
OURS = ("cuda", "emulator")
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass
class Results:
    """What one machine measured.

    Attributes
    ----------
    device : str
        Its GPU, or ``CPU``.
    environments : list
        Facts of each run.
    oracle : float
        Largest relative error of the float64 oracle.
    lines : dict
        (name, patterns) -> line; a later one replaces an earlier one.
    """

    device: str
    environments: list[Line] = field(default_factory=list)
    oracle: float = 0.0
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)

    def of(self, dtype: str) -> list[Line]:
        """Lines about an element type; a sample says nothing where all numbers were measured."""
        whole = {name for name, patterns in self.lines if patterns == "all32"}
        return [
            line
            for (name, patterns), line in self.lines.items()
            if line["dtype"] == dtype and (patterns == "all32" or name not in whole)
        ]


def read(folder: Path) -> list[Results]:
    """The results of each machine, GPUs first."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.jsonl")):
        current = Results("")
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if line["name"] == "environment":
                current = found.setdefault(line["device"], Results(line["device"]))
                current.environments.append(line)
            elif line["name"] == "oracle":
                current.oracle = max(current.oracle, line["error"])
            else:
                current.lines[line["name"], line["patterns"]] = line
    return sorted(found.values(), key=lambda results: (results.device == "CPU", results.device))


def missed(results: Iterable[Results]) -> list[Line]:
    """Lines of our kernels that are beyond their limit, or that lost a number."""
    return [line for found in results for line in found.lines.values() if line["subject"] in OURS and not _within(line)]


def _within(line: Line) -> bool:
    return float(line["max_ulp"]) <= line["limit"] and not (line["zeros"] or line["nonfinite"])


def write(path: Path, folder: Path, *, check: bool = False) -> int:
    """Write the page; with `check`, 1 where it is not what the results give."""
    text = "\n".join(page(read(folder))) + "\n"
    if check:
        return int(not path.exists() or path.read_text(encoding="utf-8") != text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return 0


def page(results: Sequence[Results]) -> Iterator[str]:
    """Lines of the page."""
    yield from _INTRODUCTION.splitlines()
    yield from _summary(results)
    for found in results:
        yield from _machine(found)


_INTRODUCTION = f"""\
# Accuracy of activations in ULP

Every activation and its derivative, the largest error over all arguments measured, beside PyTorch's from the same
tool. Written by `python tools/ulp.py --write docs/ulp.md` from the lines in `benchmarks/ulp/`, which also tell where
each largest error is, the mean and the counts; a test holds our figures against the limits of
`dnnprims/conformance/bounds.py`.

- **ULP**: the spacing of the result's type at the true value, so that the nearest number errs by at most 0.5. An
  infinity counts as the number after the largest. Results in 16 bits are rounded from float32, which leaves little
  more than 0.5.
- **True values** are float64 formulas of the platform's own functions (NumPy and the C library, or CUDA's), held
  against mpmath in each run before they judge; float64 itself is judged by mpmath with 220 bits.
- **Derivatives** are backward passes with dy = 1: from x, and, where the output tells it, from y as a function of the
  stored y. Where a derivative goes through zero (gelu, gelu_tanh, swish, mish, hard_swish between -2 and 0) it is
  measured as if it were no smaller than {DERIVATIVE_FLOOR:.4g}.
- **PyTorch** is asked through its public functions and autograd, with its default parameters; where its backward
  function takes the output (sigmoid, tanh, elu, celu), also for that. Autograd keeps the rounded output of some
  functions, whose derivative *from x* then errs by what y lost. Kinks and arguments outside the domain, where
  conventions differ, are not held against it.
- **Lost**, in parentheses: zeros and non-finite results where the true value is a normal, or finite, number.

An empty cell was not measured: the primitive does not offer it, or PyTorch has no such function."""


def _summary(results: Sequence[Results]) -> Iterator[str]:
    yield ""
    yield "## In short"
    yield ""
    yield "| measured on | type | who | functions | within the limit | forward | derivative | not nearest | lost |"
    yield "|" + " --- |" * 9
    for found in results:
        for dtype in DTYPES:
            for subject in _subjects(found.of(dtype)):
                chosen = [line for line in found.of(dtype) if line["subject"] == subject]
                yield _summary_row(found, dtype, subject, chosen)


def _summary_row(found: Results, dtype: str, subject: str, lines: Sequence[Line]) -> str:
    ahead = [line for line in lines if line["direction"] == FORWARD]
    back = [line for line in lines if line["direction"] != FORWARD]
    total = max(sum(line["count"] for line in lines), 1)
    cells = [
        found.device,
        dtype,
        SUBJECTS[subject],
        str(len(lines)),
        str(sum(map(_within, lines))),
        _worst(ahead),
        _worst(back),
        f"{100.0 * sum(line['misrounded'] for line in lines) / total:.2g} %",
        f"{sum(line['zeros'] + line['nonfinite'] for line in lines):,}",
    ]
    return f"| {' | '.join(cells)} |"


def _worst(lines: Sequence[Line]) -> str:
    return _number(max((float(line["max_ulp"]) for line in lines), default=0.0))


def _machine(found: Results) -> Iterator[str]:
    facts = found.environments[0]
    versions = [
        f"{name} {facts[name]}" for name in ("dnnprims", "cupy", "torch", "numpy", "mpmath", "cpu") if name in facts
    ]
    yield ""
    yield f"## {found.device if found.device != 'CPU' else 'CPU: the kernels on the emulator'}"
    yield ""
    yield f"{facts['date']}, {', '.join(versions)};"
    yield f"the oracle's largest relative error was {found.oracle:.1e}."
    yield ""
    for command in dict.fromkeys(line["command"] for line in found.environments):
        yield f"    {command}"
    for dtype in DTYPES:
        lines = found.of(dtype)
        if lines:
            yield from _table(dtype, lines)


def _table(dtype: str, lines: Sequence[Line]) -> Iterator[str]:
    limits = {line["direction"]: line["limit"] for line in lines}
    kinds = dict.fromkeys(line["patterns"] for line in lines)
    subjects = _subjects(lines)
    yield ""
    yield f"### {dtype}: {', '.join(_PATTERNS.get(kind, kind) for kind in kinds)}"
    yield ""
    yield f"Limits: forward {limits.get(FORWARD)}, derivative {limits.get(FROM_INPUT)}."
    yield ""
    cells = {(line["mode"], line["settings"], line["direction"], line["subject"]): _cell(line) for line in lines}
    columns = [(direction, subject) for direction in DIRECTIONS for subject in subjects]
    heads = [f"{_HEADS[direction]}: {SUBJECTS[subject]}" for direction, subject in columns]
    yield f"| function | {' | '.join(heads)} |"
    yield "|" + " --- |" * (len(columns) + 1)
    for mode, settings in dict.fromkeys((line["mode"], line["settings"]) for line in lines):
        label = " ".join([f"`{mode}`", settings.replace("f.", "")]).strip()
        yield f"| {label} | {' | '.join(cells.get((mode, settings, *column), '') for column in columns)} |"


_HEADS = {DIRECTIONS[0]: "f", DIRECTIONS[1]: "f' from x", DIRECTIONS[2]: "f' from y"}
_PATTERNS = {"all16": "all 65,536 numbers", "all32": "all 4,294,967,296 numbers"}


def _subjects(lines: Sequence[Line]) -> list[str]:
    present = {line["subject"] for line in lines}
    return [subject for subject in SUBJECTS if subject in present]


def _cell(line: Line) -> str:
    lost = line["zeros"] + line["nonfinite"]
    return _number(float(line["max_ulp"])) + (f" ({lost:,})" if lost else "")


def _number(value: float) -> str:
    """Rounded up to three places below 100, so that no figure looks better than it is."""
    if value == 0.0:
        return "0"
    if value < 100.0:
        return f"{-(-value * 1000.0 // 1.0) / 1000.0:.3f}"
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
