"""Set, scale, add and cast of one long vector; the cast from float32, or to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends
from . import Family, itemsize

SAMPLE, CHECKED = 4096, 65536
#: Factors that leave something of the numbers after all repeats.
VALUE, ALPHA, BETA = 0.3, 0.9990234375, 0.5


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`bytes` are those of one array."""
    for dtype in dtypes:
        for nbytes in shapes["bytes"]:
            count = nbytes // itemsize(dtype)
            yield from (f"{op}_tensor shape={count} dtype={dtype}" for op in ("set", "scale", "add"))
            yield f"cast shape={count} source={'float16' if dtype == 'float32' else 'float32'} dtype={dtype}"


def make_set(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One write."""
    y = arrays.copy(arrays.normal(problem.extents(), problem.dtype, tag="x"))
    return _in_place(problem, {"y": y}, "y", {"value": VALUE}, y.nbytes)


def make_scale(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write."""
    y = arrays.copy(arrays.normal(problem.extents(), problem.dtype, tag="x"))
    return _in_place(problem, {"y": y}, "y", {"alpha": ALPHA}, 2 * y.nbytes)


def make_add(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Two reads and one write."""
    a = arrays.normal(problem.extents(), problem.dtype, tag="x")
    c = arrays.copy(arrays.normal(problem.extents(), problem.dtype, tag="c"))
    return _in_place(problem, {"a": a, "c": c}, "c", {"beta": BETA}, 3 * c.nbytes)


def make_cast(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write of another size."""
    x = arrays.normal(problem.extents(), problem.word("source"), tag="x")
    y = arrays.result(problem.extents(), problem.dtype)
    return Case(
        problem,
        {"x": x},
        {"dtype": problem.dtype},
        {"out": y},
        [Part({"x": at, "out": at}) for at in _pieces(x.size)],
        f"cast shape={min(x.size, CHECKED)} source={problem.word('source')} into=out",
        nbytes=x.nbytes + y.nbytes,
        flops=x.size,
    )


def _in_place(problem: Problem, operands: dict[str, Any], name: str, options: dict[str, Any], nbytes: int) -> Case:
    size = operands[name].size
    settings = " ".join(f"{option}={value}" for option, value in options.items())
    return Case(
        problem,
        operands,
        options,
        {},
        [Part(dict.fromkeys(operands, at)) for at in _pieces(size)],
        f"{problem.op} shape={min(size, CHECKED)} {settings}",
        nbytes=nbytes,
        flops=size,
        updates=(name,),
    )


def _pieces(count: int) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(count, SAMPLE)]


FAMILY = Family(
    "tensor", lines, {"set_tensor": make_set, "scale_tensor": make_scale, "add_tensor": make_add, "cast": make_cast}
)
