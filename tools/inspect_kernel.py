"""List what each compiled kernel takes: registers, spills, stack, shared memory, code size, blocks of a multiprocessor.

``python tools/inspect_kernel.py [family ...] [--dtype NAME] [--arch NN] [--each] [--check [--machine]] [--json FILE]``
``python tools/inspect_kernel.py --sass "prelu_forward<float, 4>" [--arch NN]`` (or ``--ptx``) prints the code of one.

No GPU is needed, only NVRTC. A line of the table stands for all instantiations of a kernel for a dtype and shows the
worst of each column; ``--each`` shows every instantiation. ``--check`` holds them against the rules of
``tools/inspection/rules.py`` and fails when one is broken; ``--machine`` looks at the machine code for them, too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dnnprims.dtypes import BY_NAME, FLOATS, DType
from dnnprims.ops import FAMILIES
from dnnprims.runtime.compiler import NVRTC_OPTIONS, load_nvrtc
from inspection import rules
from inspection.units import ARCHITECTURES, Resources, Unit, compile_family, has_kernels

#: Columns of the table: heading -> what of `Resources`. Blocks and occupancy are worst where they are least.
MOST = {
    "registers": "registers",
    "spills": "spills",
    "stack": "stack",
    "shared": "shared",
    "constant": "constant",
    "code": "code",
}
LEAST = {"blocks": "blocks", "occupancy": "occupancy"}


def units(families: Iterable[str], dtypes: Iterable[DType], architectures: Iterable[int]) -> Iterator[Unit]:
    """Compile each family for each dtype and architecture."""
    for arch in architectures:
        for name in families:
            for dtype in dtypes:
                if has_kernels(FAMILIES[name], dtype, arch):
                    yield compile_family(FAMILIES[name], dtype, arch)


def summarise(rows: Sequence[Resources]) -> list[dict[str, Any]]:
    """One line for each kernel, dtype and architecture, with the worst of its instantiations."""
    groups: dict[tuple[str, str, str, int], list[Resources]] = {}
    for row in rows:
        groups.setdefault((row.family, row.entry, row.dtype, row.arch), []).append(row)
    lines = []
    for (family, entry, dtype, arch), members in groups.items():
        values = [{**row.row(), "spills": row.spill_stores + row.spill_loads} for row in members]
        line = {"family": family, "kernel": entry, "dtype": dtype, "arch": arch, "instances": len(members)}
        line |= {heading: max(value[name] for value in values) for heading, name in MOST.items()}
        lines.append(line | {heading: min(value[name] for value in values) for heading, name in LEAST.items()})
    return lines


def as_text(lines: Sequence[dict[str, Any]]) -> str:
    """The table, without rich."""
    head = list(lines[0])
    cells = [head, *([_cell(line[name]) for name in head] for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(as_text(lines))
        return
    table = Table(box=None, header_style="bold")
    for name in lines[0]:
        table.add_column(name, justify="left" if isinstance(lines[0][name], str) else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(_cell(value) for value in line.values()), style="red" if line.get("spills") else None)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


def write_json(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write what was compiled with what in the first line, then one line each."""
    version = ".".join(map(str, load_nvrtc().getVersion()))
    head = {"nvrtc": version, "options": " ".join(NVRTC_OPTIONS), "date": datetime.date.today().isoformat()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]), encoding="utf-8")


def print_code(kernel: str, arch: int, ptx: bool) -> int:
    """Print the PTX or the machine code of one instantiation."""
    for family in FAMILIES.values():
        for dtype in BY_NAME.values():
            if any(kernel in group for group in family.instances(dtype).values()):
                unit = compile_family(family, dtype, arch)
                print((unit.ptx if ptx else unit.machine)[kernel])
                return 0
    print(f"{kernel} is no instantiation of a kernel", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help=f"families, all where none is named: {', '.join(FAMILIES)}")
    parser.add_argument("--dtype", action="append", choices=[row.name for row in FLOATS], help="may be repeated")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHITECTURES, help="may be repeated; 90")
    parser.add_argument("--each", action="store_true", help="a line for each instantiation")
    parser.add_argument("--check", action="store_true", help="fail where a rule of tools/inspection/rules.py is broken")
    parser.add_argument("--machine", action="store_true", help="with --check: the machine code, too (needs nvdisasm)")
    parser.add_argument("--json", type=Path, help="write the lines of the table to this file")
    parser.add_argument("--sass", metavar="KERNEL", help="print the machine code of one instantiation")
    parser.add_argument("--ptx", metavar="KERNEL", help="print the PTX of one instantiation")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when a rule is broken."""
    parser = _parser()
    given = parser.parse_args(arguments)
    unknown = [name for name in given.family if name not in FAMILIES]
    if unknown:
        parser.error(f"no family is called {', '.join(unknown)}")
    architectures = given.arch or [90]
    if given.sass or given.ptx:
        return print_code(given.sass or given.ptx, architectures[0], ptx=given.ptx is not None)
    rows: list[Resources] = []
    broken: list[str] = []
    dtypes = [BY_NAME[name] for name in given.dtype] if given.dtype else FLOATS
    for unit in units(given.family or FAMILIES, dtypes, architectures):
        print(f"sm_{unit.arch} {unit.family} {unit.dtype.name}", file=sys.stderr, flush=True)
        rows += unit.resources
        broken += rules.violations(unit, machine=given.machine) if given.check else []
    lines = [row.row() for row in rows] if given.each else summarise(rows)
    show(lines)
    if given.json:
        write_json(given.json, lines)
    for line in broken:
        print(f"BROKEN  {line}")
    if given.check:
        print(f"{len(rows)} instantiations checked, {len(broken)} rules broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
