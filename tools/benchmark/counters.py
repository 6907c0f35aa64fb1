"""What a profiler counts of a kernel, and how its words become a line: shares, in percent, of what the device can."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Name here -> metric of Nsight Compute. Shares are percent of the peak.
METRICS = {
    "us": "gpu__time_duration.sum",
    "MB": "dram__bytes.sum",
    "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "shared": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "fma": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "alu": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "xu": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
#: Units that can be what holds a kernel back.
UNITS = ("dram", "l2", "shared", "tensor", "fma", "alu", "xu", "issue")
#: Why a warp waits: cycles of it for each instruction issued.
STALLS = (
    *("long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle", "lg_throttle"),
    *("mio_throttle", "no_instruction", "sleeping", "membar", "not_selected", "gmma", "branch_resolve"),
)
#: What the metric is multiplied by: ncu gives nanoseconds and bytes.
_SCALE = {"us": 1e-3, "MB": 1e-6}
#: Kernel that says whose turn begins: the number of the case and of the contestant are its grid.
MARKER = "profile_marker"
MARKER_SOURCE = f'extern "C" __global__ void {MARKER}() {{}}'


def stall_metric(name: str) -> str:
    """Metric of a reason to wait."""
    return f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio"


def all_metrics() -> list[str]:
    """What the profiler is asked for."""
    return [*METRICS.values(), *map(stall_metric, STALLS)]


@dataclass
class Kernel:
    """One launch, as the profiler saw it.

    Attributes
    ----------
    name : str
        As the profiler prints it.
    counts : dict
        Name of `METRICS` -> figure.
    stalls : dict
        The three longest reasons to wait.
    """

    name: str
    counts: dict[str, float]
    stalls: dict[str, float] = field(default_factory=dict)

    @property
    def busiest(self) -> str:
        """The unit nearest to its peak."""
        return max(UNITS, key=lambda unit: self.counts.get(unit, 0.0))

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return {"kernel": self.name, **self.counts, "stalls": self.stalls}

    def __str__(self) -> str:
        shares = ", ".join(f"{unit} {self.counts.get(unit, 0.0):.0f}" for unit in (*UNITS, "warps"))
        waits = ", ".join(f"{name} {value:.1f}" for name, value in self.stalls.items())
        return f"{self.counts.get('us', 0.0):.1f} us  {self.name[:90]}  %: {shares}  waits: {waits}"


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _figures(row: Mapping[str, str], names: Mapping[str, str]) -> dict[str, float]:
    found = {name: _number(row.get(metric, "")) for name, metric in names.items()}
    return {name: float(f"{value * _SCALE.get(name, 1.0):.4g}") for name, value in found.items() if value is not None}


def kernel_of(row: Mapping[str, str]) -> Kernel:
    """The launch of a row of the raw page."""
    stalls = _figures(row, {name: stall_metric(name) for name in STALLS})
    longest = sorted(stalls, key=lambda name: -stalls[name])[:3]
    return Kernel(row["Kernel Name"], _figures(row, METRICS), {name: stalls[name] for name in longest})


def read_raw(text: str) -> Iterator[dict[str, str]]:
    """Rows of ``ncu --csv --page raw``: what comes before the header, and the row of units, are left out."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = csv.DictReader(lines[start:])
    yield from (row for row in rows if row.get("ID", "").isdigit())


def by_turn(rows: Iterable[Mapping[str, str]]) -> dict[tuple[int, int], list[Kernel]]:
    """(Case, contestant) -> its launches, told apart by the markers between them."""
    found: dict[tuple[int, int], list[Kernel]] = {}
    turn = (-1, -1)
    for row in rows:
        if row["Kernel Name"].startswith(MARKER):
            grid = [int(part) for part in row["Grid Size"].strip("() ").split(",")]
            turn = (grid[0] - 1, grid[1] - 1)
            found[turn] = []
        elif turn in found:
            found[turn].append(kernel_of(row))
    return found
