"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One small mistake in one file.

    Attributes
    ----------
    path : str
        File, relative to the root of the project.
    start, end : int
        What is replaced: characters of the text.
    text : str
        What stands there instead.
    operator : str
        Kind of mistake.
    """

    path: str
    start: int
    end: int
    text: str
    operator: str

    def apply(self, source: str) -> str:
        """The text with the mistake in it."""
        return source[: self.start] + self.text + source[self.end :]

    def line(self, source: str) -> int:
        """Number of the line that it begins in."""
        return source.count("\n", 0, self.start) + 1

    def before(self, source: str) -> str:
        """The lines that it touches, as they are."""
        return source[source.rfind("\n", 0, self.start) + 1 : _line_end(source, self.end)].strip()

    def after(self, source: str) -> str:
        """The same lines with the mistake."""
        head = source[source.rfind("\n", 0, self.start) + 1 : self.start]
        return (head + self.text + source[self.end : _line_end(source, self.end)]).strip()

    def name(self, source: str) -> str:
        """Names it in results and on the command line."""
        column = self.start - source.rfind("\n", 0, self.start)
        return f"{self.path}:{self.line(source)}:{column}:{self.operator}:{self.text.strip() or 'nothing'}"


def _line_end(source: str, at: int) -> int:
    end = source.find("\n", at)
    return len(source) if end < 0 else end
