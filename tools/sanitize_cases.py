"""Which conformance cases to run under compute-sanitizer: a few that together launch every kernel there is.

Every candidate is planned for an NVIDIA GPU without one, on the arrays that it would have, so that alignment and gaps
choose the variant that they will choose. A case is taken when it launches something that no case before it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from exact_placing import exact_place

import dnnprims
from dnnprims.conformance import FAMILIES, runner
from dnnprims.conformance.cases import DTYPES, CaseFamily, Problem
from dnnprims.conformance.subjects import Library
from dnnprims.descriptors import ACTIVATION_MODES
from dnnprims.dtypes import BY_NAME
from dnnprims.ops import FAMILIES as KERNELS
from dnnprims.ops.reduction import OPERATIONS
from dnnprims.runtime.launch import KernelStep, PlanSpec, Profile

#: Random candidates for each family and type, beside its corners.
RANDOM = 60

Launch = tuple[str, str, tuple[str, ...]]  # family, entry, template
_CUDA_TYPES = {row.cuda for row in BY_NAME.values()}


@dataclass(frozen=True)
class Case:
    """A case line, and whether products go to the kernel of this library instead of cuBLASLt."""

    line: str
    own_products: bool = False

    @property
    def problem(self) -> Problem:
        """The line read."""
        return Problem.parse(self.line)


@dataclass(frozen=True)
class Candidate:
    """A case, its type, and the launches that it would make."""

    case: Case
    dtype: str
    launches: frozenset[Launch]

    def features(self, functors: bool) -> set[tuple[Any, ...]]:
        """What is new about it: the kernels, and each of them with the layout of the arrays and with a tail or none.

        Without `functors` kernels that differ in the function that they compute alone are the same one.
        """
        place, odd = self.case.problem.word("place", "plain"), has_tail(self.case.problem)
        found: set[tuple[Any, ...]] = set()
        for family, entry, template in self.launches:
            kept = template if functors else tuple(a for a in template if a.isdigit() or a in _CUDA_TYPES)
            found |= {(self.dtype, family, entry, kept), (self.dtype, entry, "place", place)}
            found |= {(self.dtype, entry, "tail", odd)}
        return found


def has_tail(problem: Problem) -> bool:
    """Whether some shape of the case is no multiple of a pack."""
    words = [word for name, word in problem.settings if name in ("shape", "shapes", "m", "n", "k")]
    shapes = [part for word in words for part in word.split(",") if part and part != "scalar"]
    return any(int(np.prod([int(e) for e in shape.split("x")])) % 8 for shape in shapes)


class _Planned(Exception):
    """Ends a call whose plan is known."""


@contextmanager
def planning(own_products: bool) -> Iterator[tuple[dnnprims.Handle, list[PlanSpec]]]:
    """A handle that plans for a GPU and calls nothing, and what it has planned."""
    specs: list[PlanSpec] = []
    really = dnnprims.Handle._specify

    def specify(self: Any, *arguments: Any) -> Any:
        specs.append(really(self, *arguments)[0])
        raise _Planned

    with (
        dnnprims.create_handle("numpy") as handle,
        mock.patch.object(dnnprims.Handle, "_specify", specify),
        mock.patch.object(runner, "place", exact_place),
    ):
        handle.profile = with_products(Profile("cuda", blaslt=True), own_products)
        yield handle, specs


def candidates(families: Sequence[str], dtypes: Sequence[str], seed: int) -> Iterator[Candidate]:
    """Corners and random cases with their launches, in every layout; those with products in both ways."""
    for family, problem in (*runner.select(families, dtypes, seed, RANDOM), *extras(families, dtypes)):
        for own in (False, True) if family.name == "fc" else (False,):
            for line in layouts(problem):
                launches = launches_of(family, Problem.parse(line), own)
                if launches:
                    yield Candidate(Case(line, own), problem.dtype, launches)


def extras(families: Sequence[str], dtypes: Sequence[str]) -> Iterator[tuple[CaseFamily, Problem]]:
    """The `extra_lines`, in each type."""
    for name in families or list(FAMILIES):
        for line in extra_lines(name):
            yield from ((FAMILIES[name], Problem.parse(line, dtype=dtype, seed=1)) for dtype in dtypes)


def layouts(problem: Problem) -> list[str]:
    """The case as it is, and with its arrays unaligned and with gaps; what is refused so launches nothing."""
    settings = dict(problem.settings)
    settings.pop("only", None)
    places = dict.fromkeys((settings.get("place", "plain"), "offset", "strided"))
    return [str(Problem(problem.op, tuple({**settings, "place": place}.items()))) for place in places]


def launches_of(family: CaseFamily, problem: Problem, own_products: bool) -> frozenset[Launch]:
    """The kernels of this library that a case would launch."""
    call = family.makers[problem.op](problem, np.random.default_rng(problem.integer("seed")))
    with planning(own_products) as (handle, specs), suppress(_Planned, dnnprims.DnnprimsError):
        runner.execute(Library(handle), problem, call)
    steps = [step for spec in specs for step in spec.steps]
    own = {(s.kernel.family, s.kernel.entry, s.template) for s in steps if isinstance(s, KernelStep)}
    products = any(not isinstance(s, KernelStep) and hasattr(s, "m") for s in steps)
    return frozenset(
        own | ({("gemm", "gemm_tiled", (BY_NAME[problem.dtype].cuda,))} if products and own_products else set())
    )


def choose(found: Iterable[Candidate], functors: bool) -> list[Candidate]:
    """The first cases that have each feature, in the order of the candidates."""
    seen: set[tuple[Any, ...]] = set()
    chosen = []
    for candidate in found:
        new = candidate.features(functors) - seen
        if new:
            seen |= new
            chosen.append(candidate)
    return chosen


def entries(families: Sequence[str] = ()) -> set[tuple[str, str]]:
    """(family, entry) of every kernel there is, or of some families' cases."""
    names = [
        name for family in families or list(FAMILIES) for name in ((family, "gemm") if family == "fc" else (family,))
    ]
    return {(name, kernel.entry) for name in names for kernel in KERNELS[name].kernels}


def covered(chosen: Iterable[Candidate]) -> dict[str, set[tuple[str, str]]]:
    """(family, entry) that the cases launch, by type."""
    found: dict[str, set[tuple[str, str]]] = {name: set() for name in DTYPES}
    for candidate in chosen:
        found[candidate.dtype] |= {(family, entry) for family, entry, _ in candidate.launches}
    return found


def share(cases: Sequence[Case], index: int, count: int) -> list[Case]:
    """One of `count` runs of neighbours, so that few processes load the same kernels."""
    bounds = [len(cases) * k // count for k in range(count + 1)]
    return list(cases[bounds[index] : bounds[index + 1]])


def with_products(profile: Profile, own_products: bool) -> Profile:
    """The profile under which a case is run; cuBLASLt's products are made of transposed copies where they can be."""
    return replace(profile, blaslt=False) if own_products else replace(profile, preferred="lt_product_along_k")


# -- what corners and random cases do not reach ----------------------------------------------------------------------

_LONG = (16, 33, 64, 100, 128, 129, 256, 300, 512, 1000, 1024, 2048, 4096, 5000, 8192, 9001, 16384, 17000, 40000)


def extra_lines(family: str) -> list[str]:
    """Lines for kernels whose cases elsewhere are few: every function, and rows of every length."""
    return {"fc": _fc_lines, "loss": _loss_lines, "reduction": _reduction_lines, "softmax": _softmax_lines}.get(
        family, lambda: _OTHERS.get(family, [])
    )()


def _fc_lines() -> list[str]:
    # Of integers, whose products are exact: the bounds know the slopes of few functions.
    shapes = ("rows=33 k=8 n=40 data=integers", "rows=33 k=9 n=41 data=integers")
    ops = ("fc_forward", "fc_backward")
    return [f"{op} {shape} activation={mode}" for mode in ACTIVATION_MODES for shape in shapes for op in ops]


def _loss_lines() -> list[str]:
    lines = [f"loss_forward_backward kind=cosine shape=3x{n}" for n in _LONG]
    for n in _LONG:
        for target in ("labels=int32", "label_smoothing=0.125"):
            lines.append(f"loss_forward_backward kind=cross_entropy shape=3x{n} {target}")
    return [*lines, *(f"loss_forward_backward kind=kl_div shape={n} log_target=1" for n in (8, 33))]


def _reduction_lines() -> list[str]:
    shapes = ("shape=3x20000 axis=1", "shape=100000 axis=0", "shape=99999 axis=0", "shape=4099x5 axis=0")
    shapes += ("shape=20000x3 axis=0", "shape=5x6x7x3 axis=0,2", "shape=3x4096 axis=1", "shape=9x257 axis=1")
    shapes += ("shape=9x256 axis=1", "shape=900x3x60 axis=0,2")
    return [f"reduce_tensor operation={name} {shape}" for name in OPERATIONS for shape in shapes]


def _softmax_lines() -> list[str]:
    return [f"softmax_{way} shape=3x{n}" for way in ("forward", "backward") for n in _LONG]


_KINDS = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8")
_OTHERS = {
    "batchnorm": [
        f"{op} shape={shape} layout={layout} activation=relu"
        for op in ("batchnorm_forward_training", "batchnorm_forward_inference", "batchnorm_backward")
        for shape in ("700x24x3", "3x2x4200", "9x3x70")
        for layout in ("NCHW", "NHWC")
    ]
    + ["batchnorm_forward_training shape=2x960x5x5 activation=relu"],
    "convolution": [
        f"conv_forward shape=2x3x7x{n} k=5 filter=3x3 padding=1 data=integers activation={mode}"
        for mode in ACTIVATION_MODES
        for n in (6, 8)
    ]
    + [
        f"conv_{way} shape=2x8x11x{n} k=8 groups=8 filter={taps} stride={stride} padding=1 layout=NHWC"
        for way in ("forward", "backward_data", "backward_filter")
        for taps in ("3x3", "5x5", "2x3")
        for stride in (1, 2)
        for n in (6, 9)
    ]
    + [
        f"conv_{way} shape=2x{c}x19x{n} k=9 filter={taps} stride={stride} padding=1 layout={layout}"
        for way in ("forward", "backward_filter", "backward_bias")
        for c, taps, stride in ((3, "7x7", 2), (1, "3x3", 1), (4, "3x2", 3))
        for layout in ("NHWC", "NCHW")
        for n in (16, 37)
    ]
    + [
        f"conv_{way} shape=2x{c}x9x{n} k={k} groups={groups} filter=3x2 stride={stride} padding=1 layout={layout}"
        for way in ("forward", "backward_data", "backward_filter")
        for c, k, groups in ((16, 72, 1), (18, 20, 2), (72, 9, 1))  # in packs, not in packs, sums that are split
        for stride in (1, 2)
        for layout in ("NHWC", "NCHW")
        for n in (6, 17)
    ],
    "maxout": [f"maxout_{way} shape=3x{300 * n} pool=300" for way in ("forward", "backward") for n in (7, 8)]
    + [f"maxout_{way} shape=3x600x{n} pool=300 axis=1" for way in ("forward", "backward") for n in (7, 8)],
    "tensor": [f"cast shape={n} source={kind}" for kind in _KINDS for n in (33, 7)]
    + [f"cast shape={n} target={kind}" for kind in _KINDS for n in (33, 7)]
    + [f"add_tensor shape={n} addend={n}" for n in (33, 40)],
}
