"""Who does the same work: PyTorch eager and compiled, CuPy, thinc's kernels, Liger's.

A peer is given a case, with tensors over the very memory that ours reads, and says how it would do it, or that it
would not. Each gets what it is best with: its own dtype and layout, ``out=`` where it takes one, its results kept for a
backward pass, compiled before it is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Protocol

from ..arrays import Arrays
from ..case import Case, Contestant

#: Peer -> module of this folder.
MODULES = {
    "torch": "pytorch",
    "compile": "pytorch",
    "cupy": "cupy_arrays",
    "thinc": "thinc_kernels",
    "liger": "liger_kernels",
}


class Peer(Protocol):
    """A library that does some of the cases."""

    name: str

    def contestants(self, case: Case) -> list[Contestant]:
        """Its ways to do a case, none where it has none."""
        ...


def load(names: Iterable[str], arrays: Arrays, tell: Callable[[str], None]) -> list[Peer]:
    """The peers asked for that can be had here; for each other one, `tell` why not."""
    found = []
    for name in names:
        try:
            module = importlib.import_module(f"{__name__}.{MODULES[name]}")
            found.append(module.make(name, arrays))
        except Exception as error:  # whatever a library's import raises
            tell(f"peer {name} is left out: {type(error).__name__}: {error}")
    return found
