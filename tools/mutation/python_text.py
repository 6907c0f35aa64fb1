"""Small mistakes in Python, found in its syntax tree, written as replacements of pieces of the text.

Docstrings, annotations, messages, imports and module names of dunder kind are passed over: only what runs is changed.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from itertools import pairwise

from .mutant import Mutant

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.Mod: "//", ast.LShift: ">>"}
LOGIC = {ast.And: "or", ast.Or: "and"}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
PAIRS = {
    "alpha": "beta", "beta": "alpha", "rows": "columns", "columns": "rows", "outer": "inner", "inner": "outer",
    "dy": "x", "m": "n", "n": "m", "axis": "0", "parts": "per_part", "low_i": "high_i", "low_j": "high_j",
}  # fmt: skip


class _Places:
    """Turns the tree's lines and byte columns into characters of the text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines(keepends=True)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Start and end of a node."""
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every mistake that is known, in the order of the tree."""
    tree = ast.parse(source)
    places, hidden = _Places(source), _hidden(tree)
    seen: set[Mutant] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        for operator, start, end, text in _at(node, source, places):
            mutant = Mutant(path, start, end, text, operator)
            if mutant not in seen and source[start:end] != text:
                seen.add(mutant)
                yield mutant


def reads(source: str) -> bool:
    """Whether Python takes a text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _hidden(tree: ast.AST) -> set[int]:
    """Nodes that are no behaviour: annotations, text, what is imported for types alone, words of errors."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            roots += [a.annotation for a in given if a.annotation] + node.decorator_list
            roots += [node.returns] if node.returns else []
        elif isinstance(node, ast.ClassDef):
            roots += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.Assert) or _is_inert(node):
            roots.append(node)
    return {id(inner) for root in roots for inner in ast.walk(root)}


def _is_inert(node: ast.AST) -> bool:
    """A docstring, what is for type checkers alone, a warning."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_inert(node.value)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn"


def _at(node: ast.AST, source: str, places: _Places) -> Iterator[tuple[str, int, int, str]]:
    if isinstance(node, ast.Compare):
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            yield from _between("bound", places, left, right, COMPARISONS.get(type(op)))
    elif isinstance(node, ast.BoolOp):
        for left, right in pairwise(node.values):
            yield from _between("logic", places, left, right, LOGIC[type(node.op)])
    elif isinstance(node, ast.BinOp):
        yield from _between("arithmetic", places, node.left, node.right, ARITHMETIC.get(type(node.op)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        start, end = places.span(node)
        yield "negation", start, end, source[slice(*places.span(node.operand))]
    elif isinstance(node, ast.Constant):
        yield from _constant(node, places)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        start, end = places.span(node.test)
        yield "condition", start, end, f"not ({source[start:end]})"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield "filter", *places.span(test), "True"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call", *places.span(node), "pass"
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in PAIRS:
        yield "name", *places.span(node), PAIRS[node.id]
    if isinstance(node, ast.Call):
        yield from _call(node, source, places)
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
        yield from _swaps("order", node.elts, source, places)


def _between(
    operator: str, places: _Places, left: ast.AST, right: ast.AST, text: str | None
) -> Iterator[tuple[str, int, int, str]]:
    """Replace what stands between two operands, their brackets kept."""
    if text is None:
        return
    start, end = places.span(left)[1], places.span(right)[0]
    between = places._source[start:end]
    closing = len(between) - len(between.lstrip(") \n\t"))
    opening = len(between.rstrip("( \n\t"))
    if closing < opening and "#" not in between:
        yield operator, start + closing, start + opening, text


def _constant(node: ast.Constant, places: _Places) -> Iterator[tuple[str, int, int, str]]:
    start, end = places.span(node)
    if isinstance(node.value, bool):
        yield "constant", start, end, str(not node.value)
    elif isinstance(node.value, int):
        yield "number", start, end, str(node.value + 1)
        if node.value > 0:
            yield "number", start, end, str(node.value - 1)


def _call(node: ast.Call, source: str, places: _Places) -> Iterator[tuple[str, int, int, str]]:
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield "extreme", *places.span(node.func), CALLS[node.func.id]
    if not any(isinstance(argument, ast.Starred) for argument in node.args):
        yield from _swaps("order", node.args, source, places)


def _swaps(operator: str, items: list[ast.expr], source: str, places: _Places) -> Iterator[tuple[str, int, int, str]]:
    """Exchange neighbours that could be mistaken for each other: names, members and numbers."""
    for left, right in pairwise(items):
        plain = all(isinstance(item, ast.Name | ast.Attribute | ast.Constant | ast.Subscript) for item in (left, right))
        words = any(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in (left, right))
        if plain and not words:
            (a, b), (c, d) = places.span(left), places.span(right)
            yield operator, a, d, source[c:d] + source[b:c] + source[a:b]
