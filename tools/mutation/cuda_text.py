"""Small mistakes in CUDA text, found in its tokens.

Comments, strings, preprocessor lines, template headers, launch bounds and assertions of the compiler are passed over,
and so is what the emulator has in place of PTX. A template's angle brackets are told from comparisons by the
formatter's spaces: a comparison has one on either side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .mutant import Mutant

_TOKEN = re.compile(
    r"""
    (?P<skipped>//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:\\\n|[^\n])*|"(?:\\.|[^"\\\n])*")
  | (?P<number>0[xX][0-9a-fA-F]+[uUlL]*|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[uUlLfF]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign><<=|>>=|->|\+\+|--|<=|>=|==|!=|&&|\|\||<<|>>|[-+*/%&|^]=|::|.)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
#: What the emulator has instead of the instructions of a GPU, and those, which it never sees.
_TWINS = re.compile(r"^#if defined\(DNNPRIMS_EMULATOR\).*?^#endif\n(?!.*?^#endif)", re.MULTILINE | re.DOTALL)
_FIXED = re.compile(r"\b(?:static_assert|__launch_bounds__|__align__|asm)\s*\(")

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
EQUALITIES = {"==": "!=", "!=": "=="}
LOGIC = {"&&": "||", "||": "&&"}
SIGNS = {"+": "-", "-": "+"}
FACTORS = {"*": "+", "/": "*", "%": "/"}
UPDATES = {"+=": "=", "-=": "+=", "*=": "=", ">>=": "<<="}
EXTREMES = {
    "Max": "Min",
    "Min": "Max",
    "Sum": "Max",
    "fmaxf": "fminf",
    "fminf": "fmaxf",
    "fmax": "fmin",
    "fmin": "fmax",
}
PAIRS = {
    "alpha": "beta", "beta": "alpha", "rows": "columns", "columns": "rows", "inner": "outer", "outer": "inner",
    "channels": "inner", "first": "last", "begin": "end", "dy": "x", "threadIdx": "blockIdx", "blockIdx": "threadIdx",
    "lane": "warp", "hi": "lo", "lo": "hi", "m": "n", "n": "k", "k": "m", "extent": "step", "step": "extent",
    "classes": "inner", "parts": "channels", "count": "first", "weight": "gradient", "scale": "max_norm",
}  # fmt: skip
_BARRIERS = ("__syncthreads", "__syncwarp")


@dataclass(frozen=True)
class Token:
    """A piece of code."""

    kind: str
    text: str
    start: int
    end: int


def tokens(source: str) -> list[Token]:
    """The code of a text, without what is never mutated."""
    closed = [match.span() for match in _TWINS.finditer(source)]
    closed += [(match.start(), _closing(source, match.end() - 1)) for match in _FIXED.finditer(source)]
    found = []
    for match in _TOKEN.finditer(source):
        kind = str(match.lastgroup)
        hidden = kind == "skipped" or match[0].isspace()
        if not hidden and not any(start <= match.start() < end for start, end in closed):
            found.append(Token(kind, match[0], match.start(), match.end()))
    return _without_templates(source, found)


def _closing(source: str, at: int) -> int:
    """Past the bracket that closes the one at a place."""
    depth = 0
    for i in range(at, len(source)):
        depth += (source[i] == "(") - (source[i] == ")")
        if depth == 0:
            return i + 1
    return len(source)


def _spaced(source: str, token: Token) -> bool:
    return source[token.start - 1 : token.start].isspace() and source[token.end : token.end + 1].isspace()


def _without_templates(source: str, found: list[Token]) -> list[Token]:
    """Drop the arguments and headers of templates."""
    kept, depth = [], 0
    for i, token in enumerate(found):
        opens = token.text == "<" and not _spaced(source, token)
        if opens and (depth or found[i - 1].kind == "name"):
            depth += 1
        elif depth and token.text in (">", ">>") and not _spaced(source, token):
            depth = max(0, depth - len(token.text))
        elif not depth:
            kept.append(token)
    return kept


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every mistake that is known, in the order of the text."""
    found = tokens(source)
    steps = [span for i, token in enumerate(found) if token.text == "for" for span in _step(source, found, i)]
    for i, token in enumerate(found):
        for operator, start, end, text in _at(source, found, i):
            endless = operator == "update" and any(first <= start < last for first, last in steps)
            if (
                source[start:end] != text
                and not endless
                and not (operator == "name" and text not in _near(source, start))
            ):
                yield Mutant(path, start, end, text, operator)
        if token.text in ("if", "for", "while"):
            yield from _heads(path, source, found, i)


def _at(source: str, found: list[Token], i: int) -> Iterator[tuple[str, int, int, str]]:
    """Mistakes at one token: operator, start, end, replacement."""
    token, before = found[i], found[i - 1] if i else None
    after = found[i + 1].text if i + 1 < len(found) else ""
    place = token.start, token.end
    if token.kind == "sign":
        yield from ((name, *place, text) for name, text in _signs(source, token))
        if token.text == "-" and before and before.text in ("(", ",", "return", "=", "?", ":", "{"):
            yield "negation", *place, ""
        if token.text == "+" and re.match(r"(?:p\.)?epsilon\b", source[token.end :].lstrip()):
            yield "epsilon", token.start, found[i + (3 if after == "p" else 1)].end, ""
    elif token.kind == "number" and re.fullmatch(r"\d+[uU]?", token.text):
        yield from ((name, *place, text) for name, text in _numbers(token, before))
    elif token.kind == "name":
        yield from ((name, *place, text) for name, text in _names(token, before, after))
        if token.text in _BARRIERS and after == "(":
            yield "barrier", token.start, _closing(source, token.end), ""


def _signs(source: str, token: Token) -> Iterator[tuple[str, str]]:
    if token.text in UPDATES:
        yield "update", UPDATES[token.text]
    if not _spaced(source, token):
        return
    tables = {"bound": COMPARISONS, "equality": EQUALITIES, "logic": LOGIC, "sign": SIGNS, "factor": FACTORS}
    for name, table in tables.items():
        if token.text in table:
            yield name, table[token.text]


def _numbers(token: Token, before: Token | None) -> Iterator[tuple[str, str]]:
    value, suffix = int(token.text.rstrip("uU")), token.text.lstrip("0123456789")
    name = "identity" if before and before.text == "(" and value in (0, 1) else "number"
    yield name, f"{value + 1}{suffix}"
    if value > 0:
        yield name, f"{value - 1}{suffix}"


def _names(token: Token, before: Token | None, after: str) -> Iterator[tuple[str, str]]:
    declares = before is not None and (before.kind == "name" and before.text != "return")
    if token.text in PAIRS and not declares and after != "::":
        yield "name", PAIRS[token.text]
    if token.text in EXTREMES and after == "(":
        yield "extreme", EXTREMES[token.text]
    if token.text == "offset" and after == ")":
        yield "shuffle", "1"
    if token.text == "double" and after not in ("(", ")", ",", "*", "<", ">"):
        yield "accumulator", "float"
    if token.text in ("x", "y") and before and before.text == ".":
        yield "axis", "y" if token.text == "x" else "x"


def _near(source: str, at: int) -> set[str]:
    """Names in the same function: a mistaken name is one that is known there."""
    start, end = source.rfind("\n\n", 0, at), source.find("\n\n", at)
    return set(re.findall(r"[A-Za-z_]\w*", source[max(start, 0) : end if end > 0 else len(source)]))


def _step(source: str, found: list[Token], i: int) -> Iterator[tuple[int, int]]:
    """Where the step of a loop stands, which would never end without it."""
    if i + 1 < len(found) and found[i + 1].text == "(":
        end = _closing(source, found[i + 1].start)
        yield source.rfind(";", 0, end), end


def _heads(path: str, source: str, found: list[Token], i: int) -> Iterator[Mutant]:
    """Conditions that always or never hold."""
    if i + 1 >= len(found) or found[i + 1].text != "(":
        return
    start, end = found[i + 1].end, _closing(source, found[i + 1].start) - 1
    if found[i].text == "for":
        parts = source[start:end].split(";")
        if len(parts) == 3:
            first = start + len(parts[0]) + 1
            yield Mutant(path, first, first + len(parts[1]), " false", "loop")
        return
    yield Mutant(path, start, end, "false", "condition")
    if found[i].text == "if":
        yield Mutant(path, start, end, "true", "condition")
