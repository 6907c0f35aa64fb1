"""What can be replayed: a call line, a case line, or the file of a record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dnnprims

from ...dtypes import BY_NAME
from ...problem import HANDLE_OPTIONS, CallLine
from ...problem import parameters as parameters_of
from ..calls import Array
from ..cases import Problem
from .checking import family_of

#: Format of the records that this version reads.
FORMAT = 1


@dataclass(frozen=True)
class Recorded:
    """A call line with the data that it was made on, where they were kept, and what became of it."""

    line: CallLine
    values: dict[str, Array] | None
    error: str
    where: str


def load(text: str) -> CallLine | Problem | Recorded:
    """Tell by its looks what a text is, and read it."""
    words = text.split()
    if not words:
        raise _refuse("is empty", text, "a call line, a case line or the file of a record")
    if words[0] not in {op.__name__ for op in dnnprims.PRIMITIVES}:
        path = Path(text)
        if path.suffix in (".json", ".npz") or path.exists():
            return _load_record(path.with_suffix(".json"))
        family_of(words[0])  # refuses
    return CallLine.parse(text) if _is_call(words) else Problem.parse(text, dtype="float32", seed=0)


def _is_call(words: list[str]) -> bool:
    """Whether every name is one of the primitive's or of the handle's; a case line has settings such as ``shape``."""
    op = getattr(dnnprims, words[0])
    names = {word.partition("=")[0] for word in words[1:]}
    cases = all("=" in word for word in words[1:]) and not names <= {*parameters_of(op), *HANDLE_OPTIONS}
    return not cases


def _load_record(path: Path) -> Recorded:
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise _refuse("has another format", f"{path}: {facts['format']}", f"format {FORMAT}")
        line, error, name = CallLine.parse(facts["call"]), facts.get("error"), facts.get("arrays")
        values = None if name is None else _load_arrays(path.parent / Path(name).name, line)
        words = "" if error is None else f"{error['kind']}: {error['text']}"
        return Recorded(line, values, words, f"{facts.get('backend')}, {facts.get('device', 'unknown device')}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, dnnprims.DnnprimsError):
            raise
        raise _refuse(
            "is no record", f"{path}: {type(error).__name__}: {error}", "what DNNPRIMS_RECORD wrote"
        ) from None


def _load_arrays(path: Path, line: CallLine) -> dict[str, Array]:
    """The elements of each operand; what lies exactly over another one was kept once."""
    operands = line.operands
    with np.load(path, allow_pickle=False) as file:
        kept: dict[str, Any] = {label: file[label] for label in operands if label in file.files}
    values = {}
    for label, operand in operands.items():
        stored = kept.get(label)
        if stored is None:
            twins = [other for other in kept if operands[other].shape == operand.shape]
            twin = operand.over if operand.over in twins and not operand.offset else ""
            stored = kept[twin] if twin else np.zeros(operand.shape, operand.numpy)
        if operand.dtype == "bfloat16" and stored.dtype == np.uint16:
            stored = stored.view(BY_NAME["bfloat16"].numpy)
        values[label] = np.broadcast_to(stored, operand.shape)
    return values


def _refuse(problem: str, got: str, expected: str) -> dnnprims.BadParamError:
    return dnnprims.BadParamError("replay", problem, param="problem", got=got, expected=expected)
