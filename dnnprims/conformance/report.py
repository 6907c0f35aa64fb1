"""How a run of cases is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def progress(items: Sequence[Any]) -> Iterator[Any]:
    """Yield the items under a progress bar, where rich is installed and the output is a terminal."""
    if sys.stdout.isatty():
        try:
            from rich.progress import track
        except ImportError:
            pass
        else:
            yield from track(items, description="verifying", transient=True)
            return
    yield from items


def summary(outcomes: Sequence[Any]) -> str:
    """Error over bound for each primitive and dtype: median, 99th percentile and largest of all elements."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.problem.op, outcome.problem.dtype), []).append(outcome)
    rows: list[tuple[str, ...]] = [("primitive", "dtype", "cases", "failed", "elements", "median", "p99", "max")]
    for (op, dtype), members in groups.items():
        ratios = np.concatenate([member.ratios for member in members])
        figures = [f"{np.quantile(ratios, q, method='nearest'):.3g}" if ratios.size else "-" for q in (0.5, 0.99, 1.0)]
        failed = sum(not member.passed for member in members)
        rows.append((op, dtype, str(len(members)), str(failed), str(ratios.size), *figures))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()
