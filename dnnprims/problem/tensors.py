"""Tensors of a call line: what any array is in memory, as text, and how several of them lie over each other.

``dtype:extents[:steps][@place][/tag]...``. Extents and steps are joined by ``x``; ``scalar`` is the empty shape. Steps
are in elements, with ``b`` behind them in bytes, and left out for row-major elements without gaps. The place is the
number of bytes past a multiple of 16, or ``label+bytes`` for a tensor that lies over another one of the same call, such
as ``@x`` for a call in place. Tags:

=============  ============================================================================
``readonly``   must not be written
``host``       in host memory, given to a handle on a GPU
``device``     in GPU memory, given to a handle on the CPU
``elsewhere``  on another GPU than the handle
``described``  a `TensorDescriptor`, no memory
=============  ============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from ..descriptors import BoundTensor, TensorDescriptor
from ..descriptors.tensor import MOST_AXES
from ..dtypes import BY_NAME

TAGS = ("readonly", "host", "device", "elsewhere", "described")

_STEPS = r"-?\d+(?:x-?\d+)*b?"
_PATTERN = re.compile(
    rf"(?P<dtype>[<>|=]?[A-Za-z]\w*):(?P<extents>scalar|\d+(?:x\d+)*)(?::(?P<steps>{_STEPS}))?"
    rf"(?:@(?:(?P<label>[A-Za-z_]\w*(?:\[\d+\])*)(?P<shift>[+-]\d+)?|(?P<past>\d+)))?"
    rf"(?P<tags>(?:/(?:{'|'.join(TAGS)}))*)"
)


@dataclass(frozen=True)
class Operand:
    """A tensor of a call: element type, shape, layout and place, without its elements.

    Attributes
    ----------
    dtype : str
        Name, or NumPy's code for a type that this library has no name for.
    shape : tuple of int
        Extents.
    strides : tuple of int or None
        Steps in bytes; None for row-major elements without gaps.
    over : str
        Label of the operand that `offset` counts from; empty for a multiple of 16 bytes.
    offset : int
        Bytes.
    tags : tuple of str
        Some of `TAGS`.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    over: str = ""
    offset: int = 0
    tags: tuple[str, ...] = ()

    @property
    def numpy(self) -> np.dtype[Any]:
        """The element type on the host."""
        return BY_NAME[self.dtype].numpy if self.dtype in BY_NAME else np.dtype(self.dtype)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps in bytes."""
        return dense_steps(self.shape, self.numpy.itemsize) if self.strides is None else self.strides

    @property
    def reach(self) -> tuple[int, int]:
        """Bytes from the address to the lowest and past the highest element."""
        return reach(self.shape, self.steps, self.numpy.itemsize)

    def __str__(self) -> str:
        text = f"{self.dtype}:{'x'.join(map(str, self.shape)) or 'scalar'}"
        if self.strides is not None:
            size = self.numpy.itemsize
            whole = size > 0 and not any(step % size for step in self.strides)
            text += ":" + "x".join(str(step // size if whole else step) for step in self.strides) + "b" * (not whole)
        if self.over:
            text += f"@{self.over}" + (f"{self.offset:+d}" if self.offset else "")
        elif self.offset:
            text += f"@{self.offset}"
        return "".join([text, *(f"/{tag}" for tag in self.tags)])

    @classmethod
    def parse(cls, text: str) -> Operand | None:
        """Read one; None where the text is no tensor."""
        found = _PATTERN.fullmatch(text)
        if not found:
            return None
        extents, steps = found["extents"], found["steps"]
        shape = () if extents == "scalar" else tuple(map(int, extents.split("x")))
        tags = tuple(found["tags"].split("/")[1:])
        try:
            size = cls(found["dtype"], shape).numpy.itemsize
        except TypeError:
            return None
        strides = None
        if steps is not None:
            unit = 1 if steps.endswith("b") else size
            strides = tuple(int(step) * unit for step in steps.rstrip("b").split("x"))
        if strides is not None and len(strides) != len(shape):
            return None
        label, offset = found["label"] or "", int(found["shift"] or found["past"] or 0)
        return cls(found["dtype"], shape, strides, label, offset, tags)


def dense_steps(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Steps in bytes of row-major elements without gaps."""
    steps, step = [], itemsize
    for extent in reversed(shape):
        steps.append(step)
        step *= max(extent, 1)
    return tuple(reversed(steps))


def reach(shape: tuple[int, ...], steps: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Bytes from the address to the lowest and past the highest element; nothing for an empty tensor."""
    if 0 in shape:
        return 0, 0
    ends = [(extent - 1) * step for extent, step in zip(shape, steps, strict=True)]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0) + itemsize


@dataclass(frozen=True)
class Memory:
    """What an array says of itself: steps in bytes, address, and which memory it is in, where that is known."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    address: int
    kind: str = ""
    device: int = 0
    tags: tuple[str, ...] = ()


def look_at(a: Any) -> Memory | None:
    """See how any kind of array lies in memory; None where it is no array."""
    if isinstance(a, np.ndarray):
        tags = () if a.flags.writeable else ("readonly",)
        return Memory(a.dtype, a.shape, a.strides, a.ctypes.data, "host", tags=tags)
    if isinstance(a, TensorDescriptor):
        return _described(a, 0 if a.alignment == 16 else a.alignment, ("described",))
    if isinstance(a, BoundTensor):
        return _described(a.descriptor, a.pointer)
    if isinstance(a, np.generic) or not hasattr(a, "shape") or not hasattr(a, "dtype"):
        return None
    if callable(getattr(a, "data_ptr", None)):
        return _torch(a)
    data: Any = getattr(a, "data", None)
    if hasattr(data, "ptr"):
        return Memory(np.dtype(a.dtype), _integers(a.shape), _integers(a.strides), data.ptr, "device", data.device_id)
    for name, kind in (("__array_interface__", "host"), ("__cuda_array_interface__", "device")):
        facts = getattr(a, name, None)
        if isinstance(facts, dict):
            dtype, shape = np.dtype(facts["typestr"]), _integers(facts["shape"])
            steps = facts.get("strides") or dense_steps(shape, dtype.itemsize)
            return Memory(dtype, shape, _integers(steps), index(facts["data"][0]), kind)
    return None


def _described(d: TensorDescriptor, address: int, tags: tuple[str, ...] = ()) -> Memory:
    steps = tuple(step * d.dtype.itemsize for step in d.strides)
    return Memory(d.dtype.numpy, d.shape, steps, address, tags=tags)


def _torch(a: Any) -> Memory:
    name = str(a.dtype).removeprefix("torch.")
    dtype = BY_NAME[name].numpy if name in BY_NAME else np.dtype(name)
    steps = tuple(step * dtype.itemsize for step in a.stride())
    on_host = a.device.type == "cpu"
    return Memory(dtype, _integers(a.shape), steps, a.data_ptr(), "host" if on_host else "device", a.device.index or 0)


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(index(value) for value in values)


def as_operand(memory: Memory, native: str, device: int) -> Operand | None:
    """The operand without its neighbours; `native` is the memory that the handle works in, empty where unknown."""
    dtype = _name(memory.dtype)
    if not dtype or len(memory.shape) > MOST_AXES or len(memory.steps) != len(memory.shape):
        return None
    tags = list(memory.tags)
    if native and memory.kind and memory.kind != native:
        tags.insert(0, memory.kind)
    elif memory.kind == native == "device" and memory.device != device:
        tags.append("elsewhere")
    size = memory.dtype.itemsize
    dense = dense_steps(memory.shape, size)
    alike = 0 in memory.shape or all(
        extent == 1 or mine == plain for extent, mine, plain in zip(memory.shape, memory.steps, dense, strict=True)
    )
    offset = 0 if 0 in memory.shape else memory.address % 16
    return Operand(dtype, memory.shape, None if alike else memory.steps, "", offset, tuple(tags))


def _name(dtype: np.dtype[Any]) -> str:
    """A name that gives the dtype back, or nothing."""
    for name in (str(dtype.name), dtype.str):
        try:
            same = np.dtype(name) == dtype and re.fullmatch(r"[<>|=]?[A-Za-z]\w*", name)
        except TypeError:
            continue
        if same:
            return name
    return ""


def find_overlaps(spans: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Groups of at least two spans ``(number, low, high)`` that lie over each other, as numbers in rising order."""
    groups: list[list[int]] = []
    reached = 0
    for number, low, high in sorted(spans, key=lambda span: span[1:]):
        if groups and low < reached:
            groups[-1].append(number)
        else:
            groups.append([number])
        reached = max(reached, high)
    return [sorted(group) for group in groups if len(group) > 1]
