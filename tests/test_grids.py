"""No launch has blocks without work: where the last one is left out, something is missing from the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import FAMILIES, runner
from dnnprims.conformance.cases import Problem
from dnnprims.runtime.emulator_compiler import Library


class Launches:
    """Counts launches and leaves the last block, along x, of one of them out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, tuple[int, int, int]]] = []
        self.cut: int | None = None
        launch = Library.launch

        def counted(library: Library, expression: str, grid: tuple[int, int, int], *rest: Any, **options: Any) -> Any:
            if len(self.seen) == self.cut:
                grid = (grid[0] - 1, *grid[1:])
            self.seen.append((expression, grid))
            return launch(library, expression, grid, *rest, **options)

        monkeypatch.setattr(Library, "launch", counted)

    def run(self, problem: Problem, cut: int | None = None) -> list[bytes]:
        """Results of a case, bit for bit, on a handle whose workspace holds nothing from before."""
        self.seen, self.cut = [], cut
        family = next(f for f in FAMILIES.values() if problem.op in f.primitives)
        call = family.make(problem, np.random.default_rng(0))
        with dnnprims.create_handle("emulator") as handle:
            results, _ = runner.execute(handle, problem, call)
        return [a.tobytes() for a in results]


#: Larger than most cases are, so that every elementwise kernel has several blocks, the last of them not full.
LARGE = (
    "activation_forward mode=relu shape=3001",
    "activation_forward mode=relu shape=3001 place=offset",
    "activation_forward mode=relu shape=9x301 place=strided",
    "activation_backward mode=relu shape=3001",
    "activation_backward mode=relu shape=9x301 place=strided",
    "glu_forward shape=31x200",
    "glu_backward shape=31x200",
    "maxout_forward shape=3001x4",
    "maxout_forward shape=30x4x204 axis=1",
    "maxout_forward shape=30x4x101 axis=1",
    "maxout_backward shape=30x4x204 axis=1",
    "prelu_forward shape=31x100",
    "prelu_backward shape=31x100 needs=dx",
    "set_tensor shape=3001",
    "scale_tensor shape=3001",
    "add_tensor shape=3001",
    "cast shape=3001",
    "batchnorm_forward_training shape=90x9x9x5",
    "batchnorm_forward_inference shape=3x16x40x40",
    "batchnorm_backward shape=90x9x9x5",
    "softmax_forward shape=301x5",
    "softmax_backward shape=301x5",
    "softmax_forward shape=31x5x40 axis=1",
    "loss_backward kind=mse shape=3001",
    "conv_forward shape=2x3x12x12 k=5 filter=3x3",
    "conv_backward_data shape=2x3x12x12 k=5 filter=3x3",
    "conv_transpose_forward shape=2x3x12x12 k=5 filter=3x3",
    "pooling_forward shape=2x16x31x30 window=3 stride=2 padding=1 layout=NHWC",
    "pooling_backward shape=2x16x31x30 window=3 stride=2 padding=1 mode=exclude layout=NHWC",
)

#: Kernels whose blocks take one piece of work after the other: where a block is left out, the others do its work.
SHARING = {"softmax_backward_long"}
#: Kernels whose results, where they are missing, are NaN to the next one, which takes sums that are not finite again.
MENDED = {"joined_taps"}


def busy(launches: Launches, problem: Problem) -> Iterator[tuple[str, bool]]:
    """Kernel of each launch of a case that has several blocks, and whether the last changes anything."""
    whole = launches.run(problem)
    for number, (expression, grid) in enumerate(list(launches.seen)):
        if grid[0] > 1:
            yield expression, launches.run(problem, cut=number) != whole


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_work(emulator_handle: Any, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Launch by launch. A block may find nothing to change (scaling by 1, sums that meet by chance), but not often."""
    launches, seen = Launches(monkeypatch), defaultdict(list)
    lines = [Problem.parse(line, dtype="float32", seed=1) for line in LARGE]
    lines = [problem for problem in lines if problem.op in FAMILIES[family].primitives]
    for problem in [*lines, *FAMILIES[family].problems("float32", 0, 40)]:
        for expression, works in busy(launches, problem):
            seen[expression.partition("<")[0]].append(works)
    assert len(seen) >= 1
    idle = {name: works for name, works in seen.items() if works.count(True) * 2 < len(works)}
    assert {name: works for name, works in idle.items() if name not in SHARING | MENDED} == {}
