"""What compute-sanitizer wrote: its summary line, and what it found, by kind."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

_SUMMARY = re.compile(r"^========= ERROR SUMMARY: (\d+) errors?", re.MULTILINE)
_RACES = re.compile(r"^========= RACECHECK SUMMARY: (\d+) hazards? displayed", re.MULTILINE)
#: A finding begins at the first column behind the mark; what belongs to it is indented.
_FINDING = re.compile(r"^========= (?! )(.+)$", re.MULTILINE)
_NO_FINDING = re.compile(r"COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY|LEAK SUMMARY|Target application|This tool")


@dataclass
class Findings:
    """Of one process: how many, None where there was no summary, and of what kinds."""

    errors: int | None
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether the tool got to its end and found nothing."""
        return self.errors == 0 and not self.kinds


def parse(text: str) -> Findings:
    """Read the output of one process. Numbers are left out of findings, so that alike ones count as one kind."""
    totals = [int(n) for pattern in (_SUMMARY, _RACES) for n in pattern.findall(text)]
    kinds = Counter(_plain(words) for words in _FINDING.findall(text) if not _NO_FINDING.search(words))
    return Findings(max(totals) if totals else None, kinds)


def _plain(words: str) -> str:
    return re.sub(r"\b(0x[0-9a-f]+|\d+)\b", "N", words.strip())[:160]
