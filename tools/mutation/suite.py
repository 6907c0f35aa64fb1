"""The tests that may kill a mutant, in stages: the nearest and cheapest first.

Every stage is made of parts that run side by side. The conformance cases are those of ``tests/test_conformance.py``,
run family by family so that the first that fails ends it; the rest are the test files themselves.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CASES = Path(__file__).resolve().parent / "cases.py"

#: Test files that no mutant is shown to: they need a GPU, NVRTC, other packages or git, or look at the tools.
LEFT_OUT = (
    "bench", "cache", "cached_kernels", "campaign", "clock", "compile", "cuda", "demo", "doctor", "examples", "large",
    "mutation", "packaging", "results", "soak", "targets", "ulp",
)  # fmt: skip
#: Test files that ask for terabytes of addresses: AddressSanitizer's shadow, arrays whose elements lie far apart.
UNLIMITED = ("emulator", "huge_plans", "sanitizers")
#: Orders of blocks, warps and lanes beside the fixed one, in which a missing barrier shows.
ORDERS = (1, 2)
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Part:
    """One command of a stage; `name` says what it runs. `limited`: in its addresses."""

    name: str
    command: tuple[str, ...]
    limited: bool = True


def cases(families: tuple[str, ...], dtypes: tuple[str, ...], backend: str = "emulator", order: int = 0) -> Part:
    """The conformance cases of some families."""
    words = [word for name in families for word in ("--family", name)] + [w for d in dtypes for w in ("--dtype", d)]
    name = f"cases {'+'.join(families)} {'+'.join(dtypes)} {backend}" + (f" order {order}" if order else "")
    command = (sys.executable, str(CASES), "--backend", backend, "--order", str(order), *words)
    return Part(name, command)


def test_file(stem: str) -> Part:
    """One test file, without what is slow or needs a GPU."""
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow and not gpu")
    command = (sys.executable, "-m", "pytest", *options, f"tests/test_{stem}.py")
    return Part(f"tests/test_{stem}.py", command, limited=stem not in UNLIMITED)


@cache
def test_stems(root: Path) -> tuple[str, ...]:
    """Every test file that may kill."""
    stems = [path.stem.removeprefix("test_") for path in sorted((root / "tests").glob("test_*.py"))]
    return tuple(stem for stem in stems if stem not in LEFT_OUT)


@cache
def case_families() -> tuple[str, ...]:
    """Families that have conformance cases."""
    from dnnprims.conformance import FAMILIES

    return tuple(FAMILIES)


@cache
def families_of(root: Path, path: str) -> tuple[str, ...]:
    """Families whose results depend on a file; all of them where that cannot be told."""
    name = Path(path)
    if name.parts[1] == "kernels":
        found = [stem.stem for stem in (root / "dnnprims/kernels").glob("*.cu") if name.name in _included(stem)]
        found += ["fc"] if "gemm" in found else []
    elif name.parts[1] == "ops" and len(name.parts) > 3:
        found = [name.parts[2]]
    elif name.parts[1] == "ops":
        found = [name.stem]
    else:
        found = []
    return tuple(sorted(set(found) & set(case_families()))) or case_families()


def _included(path: Path) -> set[str]:
    """Names of a text and of all that it includes."""
    found, queue = set(), [path]
    while queue:
        text = queue.pop()
        if text.name not in found:
            found.add(text.name)
            queue += [text.parent / name for name in re.findall(r'#include "(\S+)"', text.read_text(encoding="utf-8"))]
    return found


def stages(root: Path, path: str) -> list[list[Part]]:
    """The parts that a mutant in this file is shown to, stage after stage."""
    families, known = families_of(root, path), test_stems(root)
    near = [stem for stem in (Path(path).stem, *families, *_relatives(path)) if stem in known]
    near = list(dict.fromkeys(near)) if len(families) < len(case_families()) else _relatives(path, known)
    kernel = "kernels" in path
    plan = [
        [cases((name,), DTYPES[:1]) for name in families],
        [cases((name,), DTYPES[1:]) for name in families],
        [test_file(stem) for stem in near],
        [cases((name,), DTYPES[:1], order=order) for name in families for order in ORDERS] if kernel else [],
        [test_file(stem) for stem in known if stem not in near],
    ]
    return [stage for stage in plan if stage]


def _relatives(path: str, known: tuple[str, ...] = ()) -> list[str]:
    """Test files that look at one part of the host code."""
    table = {
        "checks": ["refusals"],
        "descriptors": ["descriptors", "refusals"],
        "runtime": ["emulator", "handle", "planning", "gemm"],
        "handle.py": ["handle"],
        "operands.py": ["handle", "refusals"],
        "planning.py": ["planning"],
        "prepared.py": ["planning"],
        "creation.py": ["handle"],
    }
    found = table.get(Path(path).parts[1], [])
    return [stem for stem in found if not known or stem in known]


def every_part(root: Path, paths: list[str]) -> list[Part]:
    """Each part that any of these files may be shown to, once."""
    return list(dict.fromkeys(part for path in paths for stage in stages(root, path) for part in stage))
