"""The operands of a call line in a backend's memory: where, how strided and over which other one the line says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...descriptors import TensorDescriptor
from ...dtypes import BY_NAME
from ...errors import BadParamError
from ...problem import CallLine, Operand
from ..calls import Array

#: Bytes of 0xFF before and behind what lies together.
GUARD = 256


@dataclass(frozen=True)
class Block:
    """Operands that lie over each other, or one alone: memory of the backend, and what it held before the call.

    Attributes
    ----------
    base : array
        Bytes, in the backend's memory.
    before : array
        The same on the host, as they were put there.
    starts : dict
        Label -> where its first element lies.
    """

    base: Any
    before: Array
    starts: dict[str, int]


@dataclass(frozen=True)
class Memory:
    """All operands of a call.

    Attributes
    ----------
    line : CallLine
        The call.
    arrays : dict
        Label -> the operand as the call takes it.
    values : dict
        Label -> its elements on the host, as they are before the call.
    blocks : list of Block
        Where they lie.
    """

    line: CallLine
    arrays: dict[str, Any]
    values: dict[str, Array]
    blocks: list[Block]

    def damage(self, handle: Any, written: tuple[str, ...]) -> list[str]:
        """What changed that must not have: guards, gaps, and operands that are not of the arguments `written`."""
        words, operands = [], self.line.operands
        for block in self.blocks:
            changed = handle.to_numpy(block.base) != block.before
            for label, start in block.starts.items():
                if label.split("[")[0] in written:
                    window(changed, operands[label], start, np.dtype(bool))[...] = False
            if changed.any():
                names = ", ".join(block.starts)
                first = int(np.flatnonzero(changed)[0]) - min(block.starts.values())
                words.append(f"{names}: changed {int(changed.sum())} bytes that it must not, the first at {first}")
        return words


def place(handle: Any, line: CallLine, values: Mapping[str, Array], poisoned: frozenset[str] = frozenset()) -> Memory:
    """Put the operands of a call into memory; those that are `poisoned` hold NaN, or what lies over them.

    Raises
    ------
    BadParamError
        An operand cannot be made here, such as one on another GPU.
    """
    operands = line.operands
    for label, operand in operands.items():
        if {"device", "elsewhere"} & set(operand.tags) or operand.numpy.hasobject:
            raise _refuse(label, operand, "an operand that can be made here")
    arrays: dict[str, Any] = {}
    held: dict[str, Array] = {}
    blocks = []
    for root, members in _groups(operands).items():
        spans = {label: (at + low, at + high) for label, at in members.items() for low, high in [operands[label].reach]}
        lowest, highest = min(low for low, _ in spans.values()), max(high for _, high in spans.values())
        origin = GUARD - lowest + (operands[root].offset - (GUARD - lowest)) % 16
        host = _aligned(origin + highest + GUARD)
        starts = {label: origin + at for label, at in members.items()}
        for label, start in starts.items():
            if label not in poisoned:
                window(host, operands[label], start)[...] = values[label]
        base = handle.asarray(host)
        blocks.append(Block(base, host, starts))
        for label, start in starts.items():
            held[label] = np.array(window(host, operands[label], start))
            arrays[label] = _take(handle, operands[label], base, host, start)
    return Memory(line, arrays, held, blocks)


def _groups(operands: Mapping[str, Operand]) -> dict[str, dict[str, int]]:
    """First operand of those that lie together -> each of them and how many bytes behind the first it lies."""
    groups: dict[str, dict[str, int]] = {}
    for label, operand in operands.items():
        root, at, seen = label, 0, {label}
        while operands[root].over:
            at += operands[root].offset
            root = operands[root].over
            if root not in operands or root in seen:
                raise _refuse(label, operand, "the label of another operand behind @")
            seen.add(root)
        groups.setdefault(root, {})[label] = at
    return groups


def window(base: Any, operand: Operand, start: int, dtype: Any = None) -> Any:
    """An operand within bytes of the host; with a dtype of one byte, the bytes of its elements along one axis more."""
    if dtype is None:
        return np.ndarray(operand.shape, operand.numpy, base, start, operand.steps)
    size = operand.numpy.itemsize
    return np.ndarray((*operand.shape, size), dtype, base, start, (*operand.steps, 1))


def fetch(handle: Any, a: Any) -> Array:
    """An array of the backend on the host; bfloat16 goes as its bits, of which CuPy copies every layout."""
    bits = str(a.dtype) == "bfloat16"
    host: Array = handle.to_numpy(a.view(np.uint16) if bits else a)
    return host.view(BY_NAME["bfloat16"].numpy) if bits else host


def _aligned(nbytes: int) -> Array:
    """Bytes of 0xFF, which is NaN in each floating type, from a multiple of 16 on."""
    room = np.full(nbytes + 16, 0xFF, np.uint8)
    start = -room.ctypes.data % 16
    return room[start : start + nbytes]


def _take(handle: Any, operand: Operand, base: Any, host: Array, start: int) -> Any:
    """The operand as the call takes it."""
    if "described" in operand.tags:
        steps = tuple(step // operand.numpy.itemsize for step in operand.steps)
        alignment = operand.offset & -operand.offset or 16
        return TensorDescriptor(operand.shape, operand.numpy, steps, min(alignment, 16))
    if isinstance(base, np.ndarray) or "host" in operand.tags:
        array = window(base if isinstance(base, np.ndarray) else host.copy(), operand, start)
        array.flags.writeable = "readonly" not in operand.tags
        return array
    try:
        return type(base)(operand.shape, operand.numpy, base.data + start, strides=operand.steps)
    except (TypeError, ValueError) as error:
        raise _refuse(str(operand), operand, f"an array of this backend ({error})") from error


def fill(line: CallLine, found: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, each operand replaced by what was found for its label."""
    return {name: _fill(name, value, found) for name, value in line.arguments.items()}


def _fill(label: str, value: Any, found: Mapping[str, Any]) -> Any:
    if isinstance(value, Operand):
        return found[label]
    if isinstance(value, tuple | list):
        return type(value)(_fill(f"{label}[{i}]", item, found) for i, item in enumerate(value))
    return value


def _refuse(label: str, operand: Operand, rule: str) -> BadParamError:
    return BadParamError("replay", "cannot be made", param=label, got=str(operand), expected=rule)
