"""``python -m dnnprims list``: which primitive takes which dtype on which backend, asked of the dispatcher itself.

For each primitive and dtype one of its conformance cases is put to `supports`, with the profile of each backend; no
device is needed, and nothing can be listed that the dispatcher would refuse.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dnnprims

from .conformance import FAMILIES
from .conformance.cases import DTYPES, CaseFamily
from .runtime.launch import Profile

#: Letter of the table -> backend, and what the dispatcher knows of it.
BACKENDS = {
    "N": Profile("numpy"),
    "E": Profile("emulator"),
    "C": Profile("cuda", blaslt=True, tensor_maps=True),
}

#: Where a README keeps the table.
OPENING, CLOSING = "<!-- support table: begin -->", "<!-- support table: end -->"

LEGEND = "N: NumPy, E: emulator (the CUDA sources on the CPU), C: CUDA."


def letters(family: CaseFamily, op: Callable[..., Any], dtype: str) -> str:
    """The backends that take a case of this primitive in this dtype."""
    for problem in family.problems(dtype, seed=0, count=0):
        if problem.op == op.__name__:
            call = family.makers[problem.op](problem, np.random.default_rng(0))
            places = {name: dnnprims.TensorDescriptor(to.shape, to.dtype) for name, to in call.destinations.items()}
            arguments = {**call.arguments, **places}
            taken = [k for k, profile in BACKENDS.items() if dnnprims.supports(op, profile=profile, **arguments)]
            return "".join(taken)
    return ""


def rows() -> list[tuple[str, str, list[str]]]:
    """(family, primitive, letters for each of `DTYPES`), in the order of the families."""
    found = []
    for family in FAMILIES.values():
        for name in family.makers:
            op = getattr(dnnprims, name)
            found.append((family.name, name, [letters(family, op, dtype) for dtype in DTYPES]))
    return found


def as_markdown(table: Sequence[tuple[str, str, list[str]]]) -> str:
    """The table for the README."""
    lines = ["| family | primitive | " + " | ".join(DTYPES) + " |", "| --- " * (2 + len(DTYPES)) + "|"]
    for family, primitive, cells in table:
        lines.append(f"| {family} | `{primitive}` | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join([*lines, "", LEGEND])


def as_text(table: Sequence[tuple[str, str, list[str]]]) -> str:
    """The table for a terminal."""
    width = max(len(primitive) for _, primitive, _ in table)
    lines = [" ".join([f"{'':{width}}", *(f"{dtype:>8}" for dtype in DTYPES)])]
    for _, primitive, cells in table:
        lines.append(" ".join([f"{primitive:{width}}", *(f"{cell or '-':>8}" for cell in cells)]))
    return "\n".join([*lines, "", LEGEND])


def rewrite(text: str) -> str:
    """Put the current table between the markers of a README."""
    before, _, rest = text.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    return f"{before}{OPENING}\n\n{as_markdown(rows())}\n\n{CLOSING}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a README."""
    parser = argparse.ArgumentParser(
        prog="python -m dnnprims list", description="Print which primitive takes which dtype on which backend."
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    parser.add_argument("--into", type=Path, metavar="README", help="write it between that file's markers")
    given = parser.parse_args(arguments)
    if given.into:
        given.into.write_text(rewrite(given.into.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(as_markdown(rows()) if given.markdown else as_text(rows()))
    return 0
