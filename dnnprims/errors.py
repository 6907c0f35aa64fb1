"""The errors this library raises, and no others.

Every message reads ``<function>: <argument> <what is wrong>: got <value>, expected <rule>[; <what to do>]`` and its
parts stay readable as attributes, so that a framework can build its own message from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Characters of a value that a message repeats.
_LONGEST = 400


class DnnprimsError(Exception):
    """Base of every error of this library.

    Attributes
    ----------
    op : str
        Public function that refused or failed.
    param : str
        Argument at fault, or an empty string where no single one is.
    problem : str
        What is wrong with it.
    got, expected : str
        What was seen, and the rule that it breaks.
    hint : str
        What to do about it; may be empty.
    call : str
        The call that was refused or failed, as a line for ``python -m dnnprims replay``; empty for an error that no
        call of a primitive raised. The same stands below the traceback, as a note, from Python 3.11 on.
    """

    def __init__(
        self,
        op: str,
        problem: str,
        *,
        param: str = "",
        got: object = None,
        expected: object = None,
        hint: str = "",
    ) -> None:
        self.op = op
        self.param = param
        self.problem = problem
        self.got = "" if got is None else _shortened(str(got))
        self.expected = "" if expected is None else str(expected)
        self.hint = hint
        self.call = ""
        super().__init__(self._sentence(problem))
        if witness is not None:
            witness(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # An error is made of more than its message, and crosses the border between processes whole.
        return _restored, (type(self), self.args, self.__dict__)

    def _sentence(self, problem: str) -> str:
        text = f"{self.op}: {self.param} {problem}" if self.param else f"{self.op}: {problem}"
        facts = [f"got {self.got}"] if self.got else []
        facts += [f"expected {self.expected}"] if self.expected else []
        text = f"{text}: {', '.join(facts)}" if facts else text
        return f"{text}; {self.hint}" if self.hint else text


#: Told of every new error, so that it learns in which call it was made; set by `dnnprims.callsite`.
witness: Callable[[DnnprimsError], None] | None = None


def _restored(kind: type[DnnprimsError], args: tuple[Any, ...], facts: dict[str, Any]) -> DnnprimsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


def _shortened(text: str) -> str:
    """The text, or its two ends where it is longer than anyone reads."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class BadParamError(DnnprimsError, ValueError):
    """The call breaks the contract: an argument has the wrong shape, dtype, device or value."""


class NotSupportedError(DnnprimsError, NotImplementedError):
    """The call is legal, but no variant takes it.

    Attributes
    ----------
    considered : tuple of (variant, reason)
        Each variant that was looked at and why it declined.
    """

    def __init__(self, op: str, problem: str, *, considered: tuple[tuple[str, str], ...] = (), **facts: str) -> None:
        self.considered = considered
        if considered:
            reasons = ", ".join(f"{variant}: {reason}" for variant, reason in considered)
            problem = f"{problem} ({reasons})"
        super().__init__(op, problem, **facts)


class ExecutionError(DnnprimsError, RuntimeError):
    """A launch or a library call failed; the message names kernel, instantiation and launch shape."""


class AllocationError(ExecutionError, MemoryError):
    """Memory for a result or for the workspace could not be had."""


class CompileError(DnnprimsError, RuntimeError):
    """A kernel did not compile.

    Attributes
    ----------
    log : str
        The compiler's own words.
    source : str
        The flattened source, with line numbers.
    """

    def __init__(self, op: str, problem: str, *, log: str, source: str, hint: str = "") -> None:
        self.log = log
        self.source = "\n".join(f"{n:5d}  {line}" for n, line in enumerate(source.splitlines(), 1))
        super().__init__(op, f"{problem}\n{log}", hint=hint)
