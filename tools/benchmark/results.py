"""Read result files: the facts of the run, the ceilings, and one line for each case, whatever wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dnnprims.conformance.cases import DTYPES, Problem

Line = dict[str, Any]


@dataclass
class Results:
    """What one or several files hold.

    Attributes
    ----------
    environment, limits : dict
        Of the first run.
    dates : list
        Of all runs, each once.
    cases : dict
        Name -> line of a measured case; a later line replaces an earlier one.
    host : dict
        Name without ``host.`` -> microseconds.
    first_use : dict
        Name without ``first_use.`` -> milliseconds.
    example : dict
        Name -> line of what the example of ResNet-50 prints.
    failed : list
        Lines of cases that could not be measured.
    """

    environment: Line = field(default_factory=dict)
    limits: Line = field(default_factory=dict)
    dates: list[str] = field(default_factory=list)
    cases: dict[str, Line] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    first_use: dict[str, float] = field(default_factory=dict)
    example: dict[str, Line] = field(default_factory=dict)
    failed: list[Line] = field(default_factory=list)


def read(paths: Iterable[Path]) -> Results:
    """The contents of result files, in their order."""
    found = Results()
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            _add(found, json.loads(text))
    return found


def _add(found: Results, line: Line) -> None:
    name = line["name"]
    if "failed" in line:
        found.failed.append(line)
    elif name == "environment":
        found.environment = found.environment or line
        found.dates = sorted({*found.dates, *([line["date"]] if "date" in line else [])})
    elif name == "limits":
        found.limits = {**line, **found.limits}
    elif name.startswith("host."):
        found.host[name.removeprefix("host.")] = line["us"]
    elif name.startswith("first_use."):
        found.first_use[name.removeprefix("first_use.")] = line["ms"]
    elif name.startswith("resnet50."):
        found.example[name] = line
    else:
        found.cases[name] = _completed(line)


def _completed(line: Line) -> Line:
    """A line with `op`, `dtype`, `math` and `peers`, which the first files spelled out in names and keys."""
    if "peers" in line:
        return line
    parts = line["name"].split(".")
    peers = {
        key.removesuffix(" ms"): {"ms": value, "times faster": line[f"times faster than {key.removesuffix(' ms')}"]}
        for key, value in line.items()
        if key.endswith(" ms")
    }
    return {
        **line,
        "op": parts[0],
        "dtype": next(part for part in parts if part in DTYPES),
        "math": parts[-1] if parts[-1] in ("ieee", "tf32") else "ieee",
        "peers": peers,
    }


def settings(line: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a case, of a line that has them."""
    return dict(Problem.parse(line["line"]).settings) if "line" in line else {}


def ratio(line: Mapping[str, Any], patterns: Sequence[str] = ()) -> float | None:
    """How many times faster than the fastest of some peers, of all where none is named; None where none was there."""
    return min(
        (
            float(peer["times faster"])
            for name, peer in line["peers"].items()
            if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
        ),
        default=None,
    )
