"""The tool that profiles misses: what it makes of the profiler's pages, and which cases it takes."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import limiters

from benchmark.counters import MARKER, METRICS, all_metrics, by_turn, read_raw, stall_metric
from dnnprims.conformance.cases import Problem


def page(rows: Sequence[tuple[str, str, dict[str, str]]]) -> str:
    """A raw page: words before the header, the header, the row of units, and a row for each launch."""
    made = io.StringIO()
    made.write("==PROF== Connected to process 1\n")
    names = ["ID", "Kernel Name", "Grid Size", *all_metrics()]
    writer = csv.DictWriter(made, names, restval="0", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerow({"ID": "", METRICS["us"]: "ns"})
    for i, (name, grid, figures) in enumerate(rows):
        writer.writerow({"ID": str(i), "Kernel Name": name, "Grid Size": grid, **figures})
    return made.getvalue()


def test_launches_belong_to_the_marker_before_them() -> None:
    figures = {METRICS["us"]: "12,500", METRICS["dram"]: "91.25", stall_metric("barrier"): "3.5"}
    text = page(
        [
            (MARKER, "(1, 1, 1)", {}),
            ("softmax", "(132, 1, 1)", figures),
            ("fold", "(1, 1, 1)", {}),
            (MARKER, "(1, 2, 1)", {}),
            (MARKER, "(3, 1, 1)", {}),
            ("copy", "(8, 1, 1)", {}),
        ]
    )
    found = by_turn(read_raw(text))
    assert {turn: [kernel.name for kernel in kernels] for turn, kernels in found.items()} == {
        (0, 0): ["softmax", "fold"],
        (0, 1): [],
        (2, 0): ["copy"],
    }
    kernel = found[0, 0][0]
    assert kernel.counts["us"] == 12.5
    assert kernel.busiest == "dram"
    assert next(iter(kernel.stalls.items())) == ("barrier", 3.5)


def test_a_page_without_launches_is_empty() -> None:
    assert by_turn(read_raw("==ERROR== no kernels were profiled\n")) == {}


def test_table_names_the_longest_kernel_and_the_whole_time() -> None:
    launches = [(name, "(9, 1, 1)", {METRICS["us"]: time}) for name, time in (("a", "1e3"), ("b", "4e3"))]
    text = page([(MARKER, "(1, 1, 1)", {}), *launches])
    entry = {"name": "case", "who": "dnnprims", "kernels": [k.as_json() for k in by_turn(read_raw(text))[0, 0]]}
    row = limiters.table([entry, {"name": "empty", "who": "dnnprims", "kernels": []}])
    assert row[2].startswith("| case | dnnprims | 5.0 | b 4.0 |")
    assert len(row) == 3


def test_missed_cases_are_lines_that_can_be_made() -> None:
    lines = list(limiters.missed_lines(2))
    assert all(Problem.parse(line, dtype="float32").op for line in lines)


def test_says_when_there_is_no_profiler(capsys: pytest.CaptureFixture[str]) -> None:
    assert limiters.main(["--ncu", "no-such-profiler", "--case", "softmax_forward shape=2x2"]) == 1
    assert "was not found" in capsys.readouterr().err
