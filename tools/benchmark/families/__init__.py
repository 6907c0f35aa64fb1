"""The families that are measured: which cases a set of shapes stands for, and how each is made.

A set of shapes is a JSON file under ``benchmarks/shapes/``: one entry for each family, read by that family alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case

#: Draws the arrays of a line.
Make = Callable[[Problem, Arrays, dp.Handle], Case]


@dataclass(frozen=True)
class Family:
    """The cases of one family.

    Attributes
    ----------
    name : str
        Its key in the sets of shapes.
    lines : callable
        (its entry in a set of shapes, dtypes) -> lines.
    makers : mapping
        Primitive -> what makes the case of a line.
    """

    name: str
    lines: Callable[[Mapping[str, Any], Sequence[str]], Iterator[str]]
    makers: Mapping[str, Make]


def load() -> dict[str, Family]:
    """Every family by name, in the order in which they run: the one of most cases last, should time run out."""
    from . import (
        activation,
        batchnorm,
        convolution,
        fc,
        glu,
        gradient,
        loss,
        maxout,
        optimizer,
        pooling,
        prelu,
        reduction,
        softmax,
        step,
        tensor,
    )

    modules = (
        step,
        convolution,
        batchnorm,
        fc,
        softmax,
        loss,
        optimizer,
        gradient,
        maxout,
        pooling,
        reduction,
        glu,
        prelu,
        tensor,
        activation,
    )
    return {module.FAMILY.name: module.FAMILY for module in modules}


def rows_of(nbytes: int, cols: int, dtype: str) -> int:
    """Rows of a matrix of so many bytes."""
    return max(1, nbytes // (cols * itemsize(dtype)))


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return int(dp.TensorDescriptor((), dtype).dtype.itemsize)
