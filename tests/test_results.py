"""The README's measured tables are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_measured_tables_are_current() -> None:
    """Regenerate with ``python tools/results.py``."""
    done = subprocess.run([sys.executable, "tools/results.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0
