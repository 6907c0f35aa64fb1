"""``DNNPRIMS_VERBOSE``: one line per event, in a fixed, versioned format of comma-separated fields.

``dnnprims,<version>,<event>,<backend>,<function>,<variant>,<details>,<problem>,<microseconds>``; an empty field is a
fact that the event does not have. The problem names the function, the descriptors of its operands and its options.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import checks
from .errors import DnnprimsError

VERSION = 1
EVENTS = ("check", "dispatch", "profile")


class Log:
    """Prints the events asked for to standard error."""

    def __init__(self, events: frozenset[str]) -> None:
        self._events = events

    @classmethod
    def from_environment(cls) -> Log | None:
        """Return the log that the environment asks for, or None."""
        asked = {word.strip() for word in os.environ.get("DNNPRIMS_VERBOSE", "").split(",")} - {"", "0", "none"}
        if not asked:
            return None
        for word in asked:
            checks.require_choice("create_handle", "DNNPRIMS_VERBOSE", word, (*EVENTS, "all"))
        return cls(frozenset(EVENTS) if "all" in asked else frozenset(asked))

    def refused(self, error: DnnprimsError) -> None:
        """A call broke the contract."""
        if "check" in self._events:
            self._line("check", "", error.op, "", str(error), "", "")

    def dispatched(self, spec: Any, backend: str, options: Any, operands: Sequence[Any]) -> None:
        """A plan was made: its variant, and why those before it declined."""
        if "dispatch" in self._events:
            reasons = "; ".join(f"{variant}: {reason}" for variant, reason in spec.refused)
            self._line("dispatch", backend, spec.op, spec.variant, reasons, problem(options, operands), "")

    def called(self, op: str, backend: str, variant: str, options: Any, operands: Sequence[Any]) -> None:
        """A call that is not timed."""
        if "profile" in self._events:
            self._line("profile", backend, op, variant, "", problem(options, operands), "")

    @contextmanager
    def timed(
        self, op: str, backend: str, variant: str, options: Any, operands: Sequence[Any], wait: Callable[[], None]
    ) -> Iterator[None]:
        """A call, timed on the host with a wait for the device before and after when profiling is asked for."""
        if "profile" not in self._events:
            yield
            return
        wait()
        start = time.perf_counter()
        yield
        wait()
        micros = (time.perf_counter() - start) * 1e6
        self._line("profile", backend, op, variant, "", problem(options, operands), f"{micros:.1f}")

    @staticmethod
    def _line(event: str, *fields: str) -> None:
        clean = [field.replace("\n", " ").replace(",", ";") for field in fields]
        print(",".join(["dnnprims", str(VERSION), event, *clean]), file=sys.stderr)


def problem(options: Any, operands: Sequence[Any]) -> str:
    """Operands and options of a call in one string."""
    tensors = " ".join("-" if d is None else f"{d.dtype.name}:{'x'.join(map(str, d.shape))}" for d in operands)
    return f"{tensors} | {' '.join(map(repr, options))}"
