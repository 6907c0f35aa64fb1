"""Hold measured results against the targets: ``python tools/targets.py [results.jsonl ...] [--missed]``.

The targets are data, ``benchmarks/targets.json``. Each line is printed with what was measured, the case that decided
it, and whether it was met; ``--missed`` adds every case beyond its target. Without files, those of
``benchmarks/h200/``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.records import geometric_mean
from benchmark.results import Line, Results, ratio, read, settings

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ROOT / "benchmarks" / "targets.json"
RESULTS = ROOT / "benchmarks" / "h200"


@dataclass(frozen=True)
class Verdict:
    """What became of one target.

    Attributes
    ----------
    measured : float or None
        The figure that the target is about; None where nothing was measured.
    decided_by : str
        The case that it comes from, or how many it is the mean of.
    missed : list of (figure, name)
        Cases beyond the target, the worst first.
    count : int
        Cases that were looked at.
    """

    target: Mapping[str, Any]
    measured: float | None
    decided_by: str
    missed: list[tuple[float, str]]
    count: int

    @property
    def word(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        return "met" if within(self.target, self.measured) else "missed"


def within(target: Mapping[str, Any], figure: float) -> bool:
    """Whether a figure meets the target."""
    if "at_least" in target:
        return bool(figure >= target["at_least"])
    return bool(figure <= target["at_most"])


def judge(target: Mapping[str, Any], results: Results) -> Verdict:
    """Hold results against one target."""
    figures = _FIGURES[target["measure"]](target, results)
    if not figures:
        return Verdict(target, None, "", [], 0)
    figures.sort(reverse="at_most" in target)
    missed = [(figure, name) for figure, name in figures if not within(target, figure)]
    if target.get("over") == "mean":
        mean = geometric_mean([figure for figure, _ in figures])
        return Verdict(target, mean, f"mean of {len(figures)}", missed, len(figures))
    return Verdict(target, *figures[0], missed, len(figures))


Figures = list[tuple[float, str]]


def _selected(target: Mapping[str, Any], results: Results) -> list[Line]:
    found = []
    for line in results.cases.values():
        given, kind = settings(line), "tf32" if line["math"] == "tf32" else line["dtype"]
        where = target.get("where", {})
        if (
            line["op"] in target["ops"]
            and kind in target.get("kinds", (kind,))
            and line.get("bytes", 0) >= target.get("least_bytes", 0)
            and all(re.fullmatch(rule, given.get(name, "")) for name, rule in where.items())
        ):
            found.append(line)
    return found


def _share(target: Mapping[str, Any], results: Results) -> Figures:
    name = target["measure"]
    return [(line[name], line["name"]) for line in _selected(target, results) if name in line]


def _faster(target: Mapping[str, Any], results: Results) -> Figures:
    found = [(ratio(line, target.get("peers", ())), line["name"]) for line in _selected(target, results)]
    return [(figure, name) for figure, name in found if figure is not None]


def _of_peer(target: Mapping[str, Any], results: Results) -> Figures:
    return [(1.0 / figure, name) for figure, name in _faster(target, results)]


def _of_other(target: Mapping[str, Any], results: Results) -> Figures:
    """Each case beside the one that differs in the settings named alone."""

    def rest(line: Line) -> tuple[Any, ...]:
        given = settings(line)
        return (line["op"], *sorted(item for item in given.items() if item[0] not in target["other"]))

    others = {rest(line): line["ms"] for line in _selected({**target, "where": target["other"]}, results)}
    found = _selected(target, results)
    return [(line["ms"] / others[rest(line)], line["name"]) for line in found if rest(line) in others]


def _host(target: Mapping[str, Any], results: Results) -> Figures:
    ours, peer = target["calls"]
    if ours not in results.host or peer not in results.host:
        return []
    label = f"{results.host[ours]:.1f} us beside {peer} {results.host[peer]:.1f} us"
    return [(results.host[ours] / results.host[peer], label)]


def _first_use(target: Mapping[str, Any], results: Results) -> Figures:
    return [(ms, name) for name, ms in results.first_use.items() if name.endswith("." + target["state"])]


def _example(target: Mapping[str, Any], results: Results) -> Figures:
    found = results.example
    return [(found[name]["images/s"], name) for name in target["lines"] if name in found]


_FIGURES: dict[str, Callable[[Mapping[str, Any], Results], Figures]] = {
    "of_copy": _share,
    "of_roof": _share,
    "faster": _faster,
    "of_peer": _of_peer,
    "of_other": _of_other,
    "host": _host,
    "first_use": _first_use,
    "example": _example,
}


def rows(verdicts: Sequence[Verdict], *, missed: bool = False) -> list[str]:
    """The table in Markdown; with `missed`, each case beyond its target below it."""
    text = ["| work | target | measured | | decided by | beyond |", "| --- | --- | --- | --- | --- | --- |"]
    for verdict in verdicts:
        limit = verdict.target.get("at_least", verdict.target.get("at_most"))
        sign = ">=" if "at_least" in verdict.target else "<="
        figure = "" if verdict.measured is None else f"{verdict.measured:.3g}"
        beyond = f"{len(verdict.missed)} of {verdict.count}" if verdict.count else ""
        text.append(
            f"| {verdict.target['work']} | {_unit(verdict.target)} {sign} {limit:g} | {figure} | {verdict.word} "
            f"| {verdict.decided_by} | {beyond} |"
        )
    if missed:
        for verdict in verdicts:
            if verdict.missed:
                text += ["", f"{verdict.target['work']}:"]
                text += [f"  {figure:.3g}  {name}" for figure, name in verdict.missed]
    return text


def _unit(target: Mapping[str, Any]) -> str:
    words = {"of_copy": "of copy", "of_roof": "of roof", "of_other": "times it", "host": "times it", "first_use": "ms"}
    words["example"] = "images/s"
    if target["measure"] in ("faster", "of_peer"):
        return "times faster, mean" if target["over"] == "mean" else target["measure"].replace("_", " ")
    return words[target["measure"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; always 0, as a target is no test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="files of tools/bench.py --json")
    parser.add_argument("--missed", action="store_true", help="list every case beyond its target")
    given = parser.parse_args(argv)
    results = read(given.results or sorted(RESULTS.glob("*.jsonl")))
    targets = json.loads(TARGETS.read_text(encoding="utf-8"))["lines"]
    print("\n".join(rows([judge(target, results) for target in targets], missed=given.missed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
