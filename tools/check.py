"""Format, lint and types, one after the other; every failure is shown, not only the first.

``python tools/check.py`` looks; ``--fix`` rewrites what the tools can. The rules of who may import whom are
tests (``tests/``), because they need no tool but Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("dnnprims", "tests", "tools", "examples")


def steps(fix: bool) -> list[tuple[str, list[str]]]:
    """Name and command of each step."""
    sources = [name for name in SOURCES if (ROOT / name).is_dir()]
    ruff = [sys.executable, "-m", "ruff"]
    return [
        ("format", [*ruff, "format", *([] if fix else ["--check"]), *sources]),
        ("lint", [*ruff, "check", *(["--fix"] if fix else []), *sources]),
        ("types", [sys.executable, "-m", "mypy"]),
    ]


def main() -> int:
    """Run every step; 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="let the tools rewrite what they can")
    failed = []
    for name, command in steps(parser.parse_args().fix):
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode:
            failed.append(name)
    print(f"check: failed: {', '.join(failed)}" if failed else "check: passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
