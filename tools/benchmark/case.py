"""What a case is. A line of text names it: ``softmax_forward shape=32768x4096 axis=-1 algorithm=log dtype=bfloat16``.

The settings are those of the conformance cases, so that a line can be checked and measured alike; ``math`` is the
handle's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnnprims.conformance.cases import Problem

#: Picks what is compared out of an array, or out of a list of arrays.
Take = Callable[[Any], Any]


@dataclass(frozen=True)
class Part:
    """A piece of a call that is a call of its own, small enough for the reference.

    Attributes
    ----------
    take : mapping
        Name of an operand or a result -> what picks the piece's share of it. Operands that are not named are left out,
        results that are not named are not compared.
    options : mapping
        Options that differ from those of the whole call.
    factor : float
        What the reference's results of the piece are multiplied by.
    expect : callable, optional
        Gives the expected results by name in the reference's place: for sums over everything.
    """

    take: Mapping[str, Take]
    options: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    expect: Callable[[], Mapping[str, Any]] | None = None


@dataclass
class Case:
    """One call with its arrays.

    Attributes
    ----------
    problem : Problem
        The line that names it.
    operands : dict
        Arrays, and lists of arrays, by the public name of the argument.
    options : dict
        All other arguments.
    results : dict
        Destinations by name, in the order in which the call returns them.
    parts : sequence of Part
        What is held against the reference.
    check : str
        Line of a small conformance problem that goes the same way; empty where there is none.
    nbytes, flops : int
        The fewest bytes that the work must move, and what it must compute.
    updates : tuple of str
        Operands that the call overwrites.
    terms : int
        Longest sum of products in it.
    call : callable, optional
        What is timed, where it is more than one call of a primitive.
    extra : dict
        Arrays that the forward pass had, for peers whose backward pass starts from there.
    captured : bool
        Whether the host takes longer to enqueue a call than the device to do it, so that only a graph shows the device.
    clock : str
        ``device``, or ``wall``: the time of the host and the device together.
    slack : float
        Relative error that the results may have beside that of rounding, because a last bit may decide at a kink.
    """

    problem: Problem
    operands: dict[str, Any]
    options: dict[str, Any]
    results: dict[str, Any]
    parts: Sequence[Part] = ()
    check: str = ""
    nbytes: int = 0
    flops: int = 0
    updates: tuple[str, ...] = ()
    terms: int = 1
    call: Callable[[], Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    captured: bool = False
    clock: str = "device"
    slack: float = 0.0

    @property
    def op(self) -> str:
        """The primitive, or what stands in its place."""
        return self.problem.op

    @property
    def dtype(self) -> str:
        """Element type of its floating operands."""
        return self.problem.dtype

    @property
    def math(self) -> str:
        """What products of float32 are computed in."""
        return self.problem.word("math", "ieee")


@dataclass(frozen=True)
class Contestant:
    """Something that does a case's work.

    Attributes
    ----------
    name : str
        Whose it is, as it is printed.
    call : callable
        Does the work once; returns its results in the order of `outputs`.
    outputs : tuple of str
        Names of the results that are compared.
    library : str
        ``torch`` or ``cupy``: whose graphs can capture it.
    """

    name: str
    call: Callable[[], Any]
    outputs: tuple[str, ...] = ()
    library: str = "cupy"

    def results(self) -> dict[str, Any]:
        """Results of one call, by name."""
        raw = self.call()
        return dict(zip(self.outputs, raw if isinstance(raw, tuple) else (raw,), strict=False))


#: Settings that a name gives by value alone, in this order; the others follow as name=value.
_PLAIN = ("mode", "activation", "algorithm", "kind", "operation", "layer", "captured", "list", "shape")


def name_of(problem: Problem) -> str:
    """A case's name: ``softmax_forward.log.32768x4096.bfloat16``."""
    given = dict(problem.settings)
    given.pop("seed", None)
    dtype, math = given.pop("dtype", ""), given.pop("math", "ieee")
    values = [given.pop(name) for name in _PLAIN if name in given]
    rest = [f"{name}={value}" for name, value in given.items()]
    return ".".join([problem.op, *values, *rest, *([dtype] if dtype else []), *([math] if math != "ieee" else [])])


def show(shape: Sequence[int]) -> str:
    """A shape as a setting."""
    return "x".join(map(str, shape))


def ends(count: int, most: int) -> list[slice]:
    """The first and the last few of `count` places."""
    if count <= 2 * most:
        return [slice(None)]
    return [slice(0, most), slice(count - most, count)]
