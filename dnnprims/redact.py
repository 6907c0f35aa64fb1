"""What must not leave the machine with a report or a record."""

from __future__ import annotations

import os
import re


def redact(text: str) -> str:
    """Write the home directory as ``~``, so that a report can be posted."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(re.escape(home) + r"(?=/|$|[\s'\":,;])", "~", text) if home else text
