"""``python -m dnnprims doctor``: one line for each layer of the installation, a remedy where one fails."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from . import __version__
from .probes import FAIL, PASS, SKIP, WARN, Probe, examine
from .redact import redact


def as_json(probes: Sequence[Probe]) -> str:
    """The report for programs and for issue trackers."""
    well = all(probe.status != FAIL for probe in probes)
    report = {"format": 1, "dnnprims": __version__, "ok": well, "probes": [asdict(probe) for probe in probes]}
    return redact(json.dumps(report, indent=2))


def as_text(probes: Sequence[Probe]) -> str:
    """The report for people, where rich is not installed or the output is no terminal."""
    lines = []
    for probe in probes:
        lines.append(f"{probe.status}  {probe.name:<9}  {probe.detail}")
        if probe.remedy:
            lines.append(f"{'':<17}-> {probe.remedy}")
    return redact("\n".join(lines))


def show(probes: Sequence[Probe]) -> None:
    """Print for people, in colour on a terminal that has rich."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(as_text(probes))
        return
    console = Console()
    if not console.is_terminal:
        print(as_text(probes))
        return
    colours = {PASS: "green", WARN: "yellow", FAIL: "bold red", SKIP: "dim"}
    table = Table("", "layer", "seen", "remedy", title=f"dnnprims {__version__}", title_justify="left")
    for probe in probes:
        status = Text(probe.status, style=colours[probe.status])
        table.add_row(status, probe.name, Text(redact(probe.detail)), Text(redact(probe.remedy)))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 when a layer fails."""
    parser = argparse.ArgumentParser(
        prog="python -m dnnprims doctor",
        description="Ask each layer of the installation whether it works. Exit code 1 when one fails.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the home directory as ~")
    given = parser.parse_args(arguments)
    probes = examine()
    if given.json:
        print(as_json(probes))
    else:
        show(probes)
    return 1 if any(probe.status == FAIL for probe in probes) else 0
