"""``DNNPRIMS_VERBOSE``: one line per event on standard error, in a fixed, versioned format of comma-separated fields.

``dnnprims,<version>,<event>,<backend>,<function>,<variant>,<details>,<call>,<microseconds>``; an empty field is a fact
that the event does not have.

=============  ==========================================================================================
``check``      a call was refused or failed; the details are the error's words
``dispatch``   a plan was made: the variant taken and, as details, why each one before it declined
``profile``    a call was carried out, in so many microseconds from an idle device to an idle device; without
               them while a graph is recorded
``all``        all of these
=============  ==========================================================================================

The call is the line that `python -m dnnprims replay` takes (`dnnprims.problem`). No field has a comma or a line break.

Version 2: the field ``<call>`` is a call line; version 1 had a description there that could not be replayed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from . import checks
from .errors import DnnprimsError

VERSION = 2
EVENTS = ("check", "dispatch", "profile")


class Log:
    """Prints the events asked for to standard error."""

    def __init__(self, events: frozenset[str]) -> None:
        self.events = events

    @classmethod
    def from_environment(cls) -> Log | None:
        """Return the log that the environment asks for, or None."""
        asked = {word.strip() for word in os.environ.get("DNNPRIMS_VERBOSE", "").split(",")} - {"", "0", "none"}
        if not asked:
            return None
        for word in asked:
            checks.require_choice("create_handle", "DNNPRIMS_VERBOSE", word, (*EVENTS, "all"))
        return cls(frozenset(EVENTS) if "all" in asked else frozenset(asked))

    def failed(self, error: DnnprimsError, backend: str) -> None:
        """A call was refused or failed."""
        if "check" in self.events:
            op = error.call.split(" ", 1)[0]
            self._line("check", backend, op, "", f"{type(error).__name__}: {error}", error.call, "")

    def dispatched(self, spec: Any, backend: str, call: object) -> None:
        """A plan was made: its variant, and why those before it declined."""
        if "dispatch" in self.events:
            reasons = "; ".join(f"{variant}: {reason}" for variant, reason in spec.refused)
            self._line("dispatch", backend, spec.op, spec.variant, reasons, str(call), "")

    def called(self, op: str, backend: str, variant: str, call: object, seconds: float | None) -> None:
        """A call was carried out."""
        if "profile" in self.events:
            micros = "" if seconds is None else f"{seconds * 1e6:.1f}"
            self._line("profile", backend, op, variant, "", str(call), micros)

    @staticmethod
    def _line(event: str, *fields: str) -> None:
        # A word of the log may be any text that a caller gave: whatever ends a line for Python, not "\n" alone.
        clean = [" ".join(field.splitlines()).replace(",", ";") for field in fields]
        text = ",".join(["dnnprims", str(VERSION), event, *clean])
        print(text.encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr)
