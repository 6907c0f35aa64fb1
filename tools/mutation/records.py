"""What became of the mutants: a line of JSON each, and the summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .campaign import Subject

#: Mutants that change nothing that any caller could see, argued one by one.
EQUIVALENT = Path(__file__).resolve().parents[2] / "benchmarks" / "reliability" / "equivalent_mutants.json"


def record(root: Path, subject: Subject) -> dict[str, Any]:
    """A decided mutant as plain data."""
    mutant = subject.mutant
    source = (root / mutant.path).read_text(encoding="utf-8")
    return {
        "mutant": mutant.name(source),
        "file": mutant.path,
        "line": mutant.line(source),
        "operator": mutant.operator,
        "before": mutant.before(source),
        "after": mutant.after(source),
        "status": subject.status,
        "by": subject.by,
        "words": subject.words,
        "stage": subject.stage,
        "seconds": round(subject.seconds, 1),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Earlier records of a file, where it is there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def equivalents(path: Path = EQUIVALENT) -> dict[tuple[str, str, str], str]:
    """(file, line before, line after) -> why nobody can tell the difference."""
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {(row["file"], row["before"], row["after"]): row["reason"] for row in rows}


def settle(rows: Iterable[dict[str, Any]], known: dict[tuple[str, str, str], str]) -> list[dict[str, Any]]:
    """The same records with those that are argued to be equivalent marked so."""
    settled = []
    for row in rows:
        reason = known.get((row["file"], row["before"], row["after"]))
        equivalent = row["status"] == "survived" and reason is not None
        settled.append({**row, "status": "equivalent", "words": reason} if equivalent else row)
    return settled


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Score, what killed, and how each kind of mistake and each file fared; survivors last."""
    count = Counter(row["status"] for row in rows)
    planted = count["killed"] + count["survived"]
    share = count["killed"] / planted if planted else 0.0
    lines = [
        f"{planted} mutants, {count['killed']} killed, {count['survived']} survived: {share:.1%}",
        f"beside them {count['equivalent']} argued to be equivalent, {count['stillborn']} that do not compile, "
        f"{count['undecided']} undecided",
        "killed by: " + _listed(Counter(_kind(row["by"]) for row in rows if row["status"] == "killed")),
    ]
    for title, key in (("mistake", "operator"), ("file", "file")):
        lines += ["", f"{title:40} killed  survived  equivalent"]
        groups = Counter((row[key], row["status"]) for row in rows)
        for name in sorted({row[key] for row in rows}):
            cells = [groups[name, status] for status in ("killed", "survived", "equivalent")]
            lines.append(f"{name:40} {cells[0]:6}  {cells[1]:8}  {cells[2]:10}")
    for row in rows:
        if row["status"] == "survived":
            lines += ["", f"SURVIVED {row['mutant']}", f"  - {row['before']}", f"  + {row['after']}"]
    return "\n".join(lines)


def _kind(part: str) -> str:
    """What a part's name says, without the family."""
    words = part.split()
    return " ".join(["cases", *words[3:]]) if words and words[0] == "cases" else part


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
