"""Write the README's measured tables and picture from the committed results: ``python tools/results.py [--check]``.

Reads ``benchmarks/h200/*.jsonl``, which ``tools/bench.py --json`` wrote. Nothing in the tables is typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.picture import draw
from benchmark.records import geometric_mean
from benchmark.results import Line, Results, ratio, read

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "h200"
PICTURE = FOLDER / "roofline.png"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: PyTorch as one calls it: its plain functions, and its fused optimizers.
EAGER = ("torch", "torch.f*", "torch fused")


def group_of(line: Line) -> tuple[str, str]:
    """Primitive and dtype of a case."""
    return line["op"], f"{line['dtype']} (tf32)" if line["math"] == "tf32" else line["dtype"]


def device_table(lines: Sequence[Line]) -> Iterator[str]:
    """One row for each primitive and dtype: share of the ceiling and ratio to the peers, over its cases."""
    compared = any(len(line["peers"]) > 1 for line in lines)
    heads = [
        "primitive",
        "dtype",
        "cases",
        "of the copy rate, or TFLOP/s",
        "times faster than PyTorch: mean (least, most)",
    ]
    heads += ["than the fastest peer"] if compared else []
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if ratio(line, EAGER) is not None:
            groups.setdefault(group_of(line), []).append(line)
    for (primitive, dtype), cases in groups.items():
        unit = "of_copy" if "of_copy" in cases[0] else "TFLOPs"
        rates = [case[unit] for case in cases if unit in case]
        digits = 2 if unit == "of_copy" else 0
        span = f"{min(rates):.{digits}f} to {max(rates):.{digits}f}"
        best = f" {means(cases, ())} |" if compared else ""
        yield f"| `{primitive}` | {dtype} | {len(cases)} | {span} | {means(cases, EAGER)} |{best}"


def means(cases: Sequence[Line], peers: Sequence[str]) -> str:
    """Geometric mean, least and most of the ratios to the fastest of some peers."""
    ratios = [found for case in cases if (found := ratio(case, peers)) is not None]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def host_table(results: Results) -> Iterator[str]:
    """Microseconds per call on the host."""
    yield "| call on 1,024 elements | us |"
    yield "| --- | --- |"
    for name, micros in results.host.items():
        yield f"| `{name}` | {micros:.1f} |"


def example_table(results: Results) -> Iterator[str]:
    """Images per second of the example, beside PyTorch's."""
    yield "| training step of ResNet-50, bfloat16, batch of 256 | images/s | ms |"
    yield "| --- | --- | --- |"
    for name, line in results.example.items():
        if "images/s" in line:
            yield f"| {name.removeprefix('resnet50.')} | {line['images/s']:.0f} | {line['ms']:.1f} |"


def section(results: Results) -> str:
    """Text between the README's markers."""
    facts, limits = results.environment, results.limits
    picture = [f"![Roofline]({PICTURE.relative_to(ROOT)})", ""] if has_picture(results) else []
    text = [
        f"One {facts['gpu']}, {' and '.join(results.dates)}, torch {facts['torch']}, CuPy {facts['cupy']}, by",
        "`tools/bench.py`: each primitive is checked against the reference, then timed by device events with the L2",
        "flushed, medians of rounds interleaved with PyTorch's; a copy ran at "
        f"{limits['copy']:.2f} TB/s and a bfloat16 matrix",
        f"product of 8192^3 at {limits['bfloat16']:.0f} TFLOP/s in the first run. Every case is in `benchmarks/h200/`;",
        "cases where PyTorch is faster are among them: `python tools/targets.py --missed` lists what has not reached",
        "its target. PyTorch's optimizers are the fused ones.",
        "",
        *picture,
        *device_table(list(results.cases.values())),
        "",
        "Host time of a call, wall time over 20,000 calls, best of three passes over all of them:",
        "",
        *host_table(results),
        *(["", "`examples/resnet50.py`:", "", *example_table(results)] if results.example else []),
    ]
    return "\n".join(text)


def has_picture(results: Results) -> bool:
    """Whether the results say what each case moves and computes."""
    return any("flops" in line and "bytes" in line for line in results.cases.values())


def main() -> int:
    """Rewrite the section and the picture, or with ``--check`` say whether the section is current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    results = read(sorted(FOLDER.glob("*.jsonl")))
    old = README.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{section(results)}\n\n{END}{rest.split(END)[1]}"
    if given.check:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    if has_picture(results):
        limits = {name: rate * 1e12 for name, rate in results.limits.items() if name != "name"}
        draw(list(results.cases.values()), limits, results.environment["gpu"], PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
