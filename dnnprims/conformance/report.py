"""How a run of cases is shown in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

#: Seconds between two lines of progress where there is no bar.
SILENCE = 10.0


def progress(items: Iterable[Item], count: int, quiet: bool = False) -> Iterator[Item]:
    """Yield the items under a progress bar, where rich is installed and errors go to a terminal; else with a line now
    and then, so that nobody waits in the dark.
    """
    if quiet:
        yield from items
        return
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import track
        except ImportError:
            pass
        else:
            console = Console(stderr=True)
            yield from track(items, description="verifying", total=count, transient=True, console=console)
            return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= SILENCE:
            said = now
            left = (now - start) / done * (count - done)
            print(f"{done} of {count} cases, about {left:.0f} s left", file=sys.stderr, flush=True)


def summary(groups: Sequence[dict[str, Any]]) -> str:
    """Error over bound for each primitive and dtype: median, 99th percentile and largest of all elements."""
    declining = any(group["declined"] for group in groups)
    head = ("primitive", "dtype", "cases", "failed", *(("declined",) if declining else ()), "elements")
    rows: list[tuple[str, ...]] = [(*head, "median", "p99", "max")]
    for group in groups:
        declined = (str(sum(group["declined"].values())),) if declining else ()
        counts = (str(group["cases"]), str(group["failed"]), *declined, str(group["elements"]))
        figures = ("-" if group[name] is None else f"{group[name]:.3g}" for name in ("median", "p99", "max"))
        rows.append((group["op"], group["dtype"], *counts, *figures))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()
