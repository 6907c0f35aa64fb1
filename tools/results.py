"""Write the README's measured tables from the committed results: ``python tools/results.py [--check]``.

Reads ``benchmarks/h200/bench.jsonl``, which ``tools/bench.py --json`` wrote. Nothing in the tables is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "h200" / "bench.jsonl"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Line = dict[str, Any]


def geometric_mean(values: list[float]) -> float:
    """Mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def ratio(line: Line) -> float | None:
    """How many times faster than the peer a case is."""
    return next((value for name, value in line.items() if name.startswith("times faster")), None)


def group_of(line: Line) -> tuple[str, str]:
    """Primitive and dtype of a case."""
    parts = line["name"].split(".")
    dtype = next(part for part in parts if part in ("float32", "float64", "float16", "bfloat16"))
    return parts[0], f"{dtype} ({parts[-1]})" if parts[-1] == "tf32" else dtype


def device_table(lines: list[Line]) -> Iterator[str]:
    """One row for each primitive and dtype: share of the ceiling and ratio to the peer, over its cases."""
    yield "| primitive | dtype | cases | of the copy rate, or TFLOP/s | times faster than PyTorch: mean (least, most) |"
    yield "| --- | --- | --- | --- | --- |"
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if ratio(line) is not None:
            groups.setdefault(group_of(line), []).append(line)
    for (primitive, dtype), cases in groups.items():
        ratios = [value for value in map(ratio, cases) if value is not None]
        unit = "of_copy" if "of_copy" in cases[0] else "TFLOPs"
        rates = [case[unit] for case in cases]
        digits = 2 if unit == "of_copy" else 0
        span = f"{min(rates):.{digits}f} to {max(rates):.{digits}f}"
        means = f"{geometric_mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        yield f"| `{primitive}` | {dtype} | {len(cases)} | {span} | {means} |"


def host_table(lines: list[Line]) -> Iterator[str]:
    """Microseconds per call on the host."""
    yield "| call on 1,024 elements | us |"
    yield "| --- | --- |"
    for line in lines:
        if line["name"].startswith("host."):
            yield f"| `{line['name'].removeprefix('host.')}` | {line['us']:.1f} |"


def section() -> str:
    """Text between the README's markers."""
    lines = [json.loads(text) for text in RESULTS.read_text(encoding="utf-8").splitlines()]
    facts = next(line for line in lines if line["name"] == "environment")
    limits = next(line for line in lines if line["name"] == "limits")
    text = [
        f"One {facts['gpu']}, {facts['date']}, torch {facts['torch']}, CuPy {facts['cupy']}, by `tools/bench.py`: each",
        "primitive is checked against the reference, then timed by device events with the L2 flushed, medians of 21",
        f"rounds interleaved with PyTorch's; a copy ran at {limits['copy']:.2f} TB/s and a bfloat16 matrix product of",
        f"8192^3 at {limits['bfloat16']:.0f} TFLOP/s in the same run. Every case is in `benchmarks/h200/bench.jsonl`;",
        "cases where PyTorch is faster are among them. PyTorch's optimizers are the fused ones; over lists of 1,000",
        "small tensors both are bound by the host. Float32 activations and softmax pay for their accuracy (at most 2",
        "ULP over the whole range): there PyTorch is ahead where its shorter formulas are.",
        "",
        *device_table(lines),
        "",
        "Host time of a call, wall time over 20,000 calls, best of three passes over all of them:",
        "",
        *host_table(lines),
    ]
    return "\n".join(text)


def main() -> int:
    """Rewrite the section, or with ``--check`` say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    old = README.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{section()}\n\n{END}{rest.split(END)[1]}"
    if parser.parse_args().check:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
