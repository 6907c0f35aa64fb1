"""Calls that are ready to be repeated: one for each way in which each primitive does its work, in each dtype.

A *way* is a variant and the kernels that it launches, as the dispatcher itself names them. The problems are those of
the conformance suite; of all that go one way, the largest is taken that does not exceed a number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import DTYPES, Call, CaseFamily, Problem, as_dtype
from dnnprims.conformance.placing import place, poison
from dnnprims.prepared import prepare
from dnnprims.runtime.host import HostArrays
from dnnprims.runtime.launch import KernelStep, PlanSpec, Profile

#: Results up to this size are compared on the host, larger ones where they are.
SMALL_BYTES = 1 << 16

#: Problems for ways that no corner case goes.
RARE = (
    "activation_forward mode=gelu shape=9x33 place=strided",
    "activation_backward mode=gelu shape=9x33 place=strided",
    "prelu_forward shape=9x33 slope=channels place=offset",
    "prelu_backward shape=9x33 needs=dx place=offset",
    "maxout_forward shape=7x36 pool=4 place=offset",
    "glu_forward shape=9x34 place=offset",
    "glu_backward shape=9x34 place=offset",
    "batchnorm_forward_training shape=9x5x3 residual=1 place=offset",
    "batchnorm_backward shape=9x5x3 activation=relu place=offset",
    "softmax_forward shape=2x40000 axis=-1",
    "softmax_backward shape=2x40000 axis=-1",
    *(
        f"{op} {kind}"
        for op in ("loss_forward", "loss_backward", "loss_forward_backward")
        for kind in (
            "kind=mse shape=9x34",
            "kind=mse shape=9x34 place=offset",
            "kind=nll shape=40x7 weight=1",
            "kind=nll shape=40x7 reduction=none",
            "kind=cosine shape=40x9",
            "kind=cross_entropy shape=9x36 labels=int64 weight=1",
            "kind=cross_entropy shape=9x36",
            "kind=cross_entropy shape=2x20001 labels=int64 place=offset",
            "kind=cross_entropy shape=6x7x5 labels=int32",
        )
    ),
    "add_tensor shape=17x32 addend=17x32 alpha=-0.5 beta=2.0",
    "clip_by_global_norm shapes=1001,33 norm=given",
    "scale_and_check_finite shapes=1001,33 found_inf=0",
    "fc_backward rows=700 k=24 n=40 needs=dw,db",
    "fc_backward rows=300 k=132 n=10",
    "fc_forward rows=1500 k=8 n=1400 activation=tanh",
    "adam_update shapes=3x5,1001,7 mixed=1",
    "adamw_update shapes=3x5,1001,7 mixed=1",
    "conv_backward_filter shape=1x8x5x4 k=16 filter=1x2",
    "conv_transpose_backward shape=2x24x4x6 k=16 filter=1x1 needs=dx",
    "conv_transpose_backward shape=2x24x4x6 k=16 filter=1x1 needs=dx,dw beta=1.0 data=integers",
    *(
        f"{op} {shape}"
        for op, long in (
            ("conv_forward", "1x264x1x3 k=8"),
            ("conv_backward_data", "1x8x1x3 k=264"),
            ("conv_transpose_forward", "1x8x1x3 k=264"),
            ("conv_transpose_backward needs=dx", "1x264x1x3 k=8"),
        )
        for shape in ("shape=1x8x5x4 k=16 filter=1x2", f"shape={long} filter=1x3 padding=0x1")
    ),
    *(
        f"{op} shape=1x32x1x40 k=8 filter=1x40 stride=1x2 layout=NHWC"
        for op in ("conv_forward", "conv_transpose_backward needs=dx")
    ),
    "conv_transpose_backward shape=1x4x6x8 k=8 filter=5x4 stride=2 padding=1 needs=dw layout=NHWC",
    "conv_transpose_forward shape=2x16x7x9 k=16 filter=3x4 stride=2 bias=0 layout=NHWC",
    *(
        f"{op} shape=1x64x11x12 k=64 filter=3x3 groups=16 padding=1 stride={stride} layout=NHWC"
        for op in ("conv_transpose_backward needs=dx", "conv_transpose_backward needs=dw", "conv_backward_filter")
        for stride in (1, 2)
    ),
)

#: Problems of a size at which a GPU is busy: many blocks, sums in several stages, products that may be split.
LARGE = (
    "activation_forward shape=1000x1000 mode=gelu",
    "activation_backward shape=1000x1000 mode=gelu",
    "fc_forward rows=256 k=4096 n=256 activation=gelu",
    "fc_forward rows=33 k=5001 n=130",
    "fc_backward rows=4096 k=256 n=128 activation=relu",
    "fc_backward_data rows=256 k=256 n=4096",
    "fc_backward_weights rows=8192 k=96 n=64",
    "fc_backward_bias rows=20000 n=130",
    "conv_forward shape=8x64x28x28 k=64 filter=3x3 padding=1 residual=1 sums=1 activation=relu layout=NHWC",
    "conv_backward_data shape=8x64x28x28 k=64 filter=3x3 stride=2 padding=1",
    "conv_backward_filter shape=8x64x28x28 k=64 filter=3x3 padding=1",
    "conv_forward shape=8x96x28x28 k=96 filter=3x3 groups=96 padding=1 layout=NHWC",
    "conv_backward_data shape=8x96x28x28 k=96 filter=3x3 groups=96 padding=1 stride=2 layout=NHWC",
    "conv_backward_filter shape=8x96x28x28 k=96 filter=5x5 groups=96 padding=2 layout=NHWC",
    "conv_forward shape=4x3x64x64 k=64 filter=7x7 padding=3 stride=2 layout=NHWC",
    "conv_backward_filter shape=4x3x64x64 k=64 filter=7x7 padding=3 stride=2 layout=NHWC",
    "conv_backward_bias shape=64x64x28x28 k=64 filter=1x1",
    "pooling_forward shape=8x64x56x56 window=3 stride=2 padding=1 indices=1 layout=NHWC",
    "pooling_backward shape=8x64x56x56 window=3 stride=2 padding=1 data=integers layout=NHWC",
    "pooling_forward shape=8x64x56x56 window=3 stride=2 padding=1 indices=1",
    "pooling_backward shape=8x64x56x56 window=3 stride=2 padding=1",
    "pooling_forward shape=8x512x7x7 window=7 mode=exclude",
    "batchnorm_forward_training shape=16x64x28x28 residual=1 activation=relu layout=NHWC",
    "batchnorm_forward_training shape=16x64x28x28",
    "batchnorm_backward shape=16x64x28x28 activation=relu layout=NHWC",
    "batchnorm_backward shape=16x64x28x28 activation=relu slope=y needs=dx,dgamma,dbeta,dresidual",
    "conv_backward_bias shape=64x64x28x28 k=64 filter=1x1 layout=NHWC",
    "softmax_forward shape=512x1000 axis=-1",
    "softmax_forward shape=64x1000x9 axis=1",
    "softmax_backward shape=512x1000 axis=-1",
    "prelu_backward shape=64x256x49 slope=channels",
    "reduce_tensor operation=sum shape=1000x1000 axis=0",
    "reduce_tensor operation=sum shape=5x200000 axis=1",
    "loss_forward kind=mse shape=1000x1000",
    "loss_forward_backward kind=cross_entropy shape=512x1000 labels=int64 weight=1",
    "loss_forward_backward kind=nll shape=20000x7 weight=1",
    "global_norm shapes=1000x999,513,70001",
    "clip_by_global_norm shapes=1000x999,513,70001",
    "scale_and_check_finite shapes=1000x999,513,70001",
    "sgd_update shapes=1000x999,513,70001 momentum=0.9",
    "adam_update shapes=1000x999,513,70001",
    "adamw_update shapes=1000x999,513,70001",
)


@dataclass(frozen=True)
class Way:
    """A primitive, a dtype, and how the work is done."""

    op: str
    variant: str
    kernels: tuple[str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.op} {self.variant} [{' '.join(self.kernels)}] {self.dtype}"


def ways(
    profile: Profile, dtypes: Sequence[str] = DTYPES, most_threads: int = 1 << 14, ops: Sequence[str] = ()
) -> dict[Way, Problem]:
    """Every way that some problem goes on a device, and the problem that stands for it."""
    found: dict[Way, tuple[int, Problem]] = {}
    for dtype in dtypes:
        for problem, spec in planned(profile, dtype):
            if not spec.steps or (ops and problem.op not in ops):
                continue
            way, threads = way_of(spec, dtype), threads_of(spec)
            # The largest below the limit; failing that, the smallest above.
            known = found.get(way)
            worth = threads if threads <= most_threads else -threads
            if known is None or worth > known[0]:
                found[way] = (worth, problem)
    return {way: problem for way, (_, problem) in found.items()}


def way_of(spec: PlanSpec, dtype: str) -> Way:
    """The way that a plan goes."""
    kernels = dict.fromkeys(s.kernel.entry if isinstance(s, KernelStep) else type(s).__name__ for s in spec.steps)
    return Way(spec.op, spec.variant, tuple(kernels), dtype)


def large_problems(dtypes: Sequence[str] = DTYPES, ops: Sequence[str] = ()) -> Iterator[Problem]:
    """The problems of `LARGE` in each dtype."""
    for dtype in dtypes:
        for text in LARGE:
            problem = Problem.parse(f"{text} into=out", dtype=dtype, seed=1)
            if not ops or problem.op in ops:
                yield problem


def family_of(problem: Problem) -> CaseFamily:
    """The family that makes the problem's data."""
    return next(family for family in FAMILIES.values() if problem.op in family.makers)


def draw(problem: Problem, seed: int | None = None) -> Call:
    """The call that a problem stands for, with data of its own seed or of another."""
    chosen = problem.integer("seed") if seed is None else seed
    call = family_of(problem).makers[problem.op](problem, np.random.default_rng(chosen))
    if problem.word("norm") == "given":  # a norm that was there before: the makers draw none
        call = replace(call, arguments={**call.arguments, "norm": np.array(3.0, np.float32)})
    return call


@cache
def planned(profile: Profile, dtype: str) -> tuple[tuple[Problem, PlanSpec], ...]:
    """Every problem of a dtype, and what the dispatcher would do on the device."""
    rare = [Problem.parse(f"{text} into=out", dtype=dtype, seed=2) for text in RARE]
    usual = [_into_out(p) for family in FAMILIES.values() for p in family.problems(dtype, 0, 0)]
    found = []
    with dp.create_handle("numpy") as handle:
        for problem in [*rare, *usual]:
            arguments, _ = arrange(handle, problem, draw(problem))
            described = {name: _describe(value) for name, value in arguments.items()}
            found.append((problem, prepare_spec(problem.op, profile, described)))
    return tuple(found)


def prepare_spec(op: str, profile: Profile, arguments: dict[str, Any]) -> PlanSpec:
    """What the dispatcher would do on the device."""
    from dnnprims.planning import _specify

    return _specify(getattr(dp, op), profile, (), arguments)


def _describe(value: Any) -> Any:
    if isinstance(value, list):
        return [_describe(item) for item in value]
    return HostArrays().describe(value) if isinstance(value, np.ndarray) else value


def _into_out(problem: Problem) -> Problem:
    """The same problem with its results written to arrays that the caller made."""
    return Problem(problem.op, (*(s for s in problem.settings if s[0] != "into"), ("into", "out")))


def threads_of(spec: PlanSpec) -> int:
    """Threads that a plan launches."""
    return sum(int(np.prod(s.grid)) * s.block for s in spec.steps if isinstance(s, KernelStep))


# -- calls -----------------------------------------------------------------------------------------------------------


def arrange(handle: dp.Handle, problem: Problem, call: Call) -> tuple[dict[str, Any], list[str]]:
    """The arguments in the backend's memory, and the names of those that are written."""
    how = problem.word("place", "plain")
    arguments = {name: _placed(handle, value, how) for name, value in call.arguments.items()}
    for name, target in call.destinations.items():
        kind = as_dtype(0, target.dtype).dtype
        values = poison(target.shape, kind) if target.old is None else target.old
        arguments[name] = place(handle, values, "plain" if how == "strided" else how).view
    return arguments, [*call.destinations, *call.updates]


def _placed(handle: dp.Handle, value: Any, how: str) -> Any:
    if isinstance(value, list):
        return [_placed(handle, item, how) for item in value]
    return place(handle, value, how).view if isinstance(value, np.ndarray) else value


def arrays_in(value: Any) -> list[Any]:
    """Arrays of an argument or a result, lists and tuples written out; a descriptor is none."""
    if isinstance(value, list | tuple):
        return [a for item in value for a in arrays_in(item)]
    described = isinstance(value, dp.TensorDescriptor)
    return [value] if hasattr(value, "dtype") and hasattr(value, "strides") and not described else []


def _raw(a: Any) -> Any:
    """The same memory as integers, which every array library can copy and compare."""
    return a.view(f"u{a.dtype.itemsize}")


class ReadyCall:
    """One call of a primitive into fixed memory, to be repeated.

    Attributes
    ----------
    problem : Problem
        What is called.
    arguments : dict
        All but the handle, by name, in the backend's memory.
    result : object
        What the last call gave back.
    """

    def __init__(self, handle: dp.Handle, problem: Problem) -> None:
        self.handle, self.problem, self.op = handle, problem, getattr(dp, problem.op)
        drawn = draw(problem)
        self.arguments, written = arrange(handle, problem, drawn)
        self._optional = [name for name, target in drawn.destinations.items() if target.old is None]
        self._arrays = [a for value in self.arguments.values() for a in arrays_in(value)]
        self._written = [a for name in written for a in arrays_in(self.arguments[name])]
        self.result: Any = None
        self._first = self._original = [handle.asarray(handle.to_numpy(a)) for a in self._arrays]

    def __call__(self) -> None:
        """Call, into the arrays that were made before where the primitive takes them."""
        self.result = self.op(self.handle, **self.arguments)

    def fresh(self) -> Any:
        """Call without destinations, so that the call makes its results."""
        return self.op(self.handle, **{k: v for k, v in self.arguments.items() if k not in self._optional})

    def prepare(self) -> Any:
        """The same call as a plan; returns a callable."""
        plan = prepare(self.op, self.handle, **self.arguments)
        operands = {name: value for name, value in self.arguments.items() if arrays_in(value)}

        def run() -> None:
            self.result = plan(**operands)

        return run

    def restore(self) -> None:
        """Give every array, read or written, the contents that the call starts from."""
        for a, original in zip(self._arrays, self._original, strict=True):
            _raw(a)[...] = _raw(original)

    def draw(self, seed: int) -> list[Any]:
        """Other contents for the same arrays, for `use`."""
        call = draw(self.problem, seed)
        arguments, _ = arrange(self.handle, self.problem, call)
        return [a for value in arguments.values() for a in arrays_in(value)]

    def use(self, contents: Sequence[Any] | None = None) -> None:
        """Start from other contents from now on, or from the first again."""
        self._original = list(self._first if contents is None else contents)
        self.restore()

    def outputs(self) -> bytes:
        """The bits of everything that the last call wrote; waits for it."""
        return b"".join(self.handle.to_numpy(a).tobytes() for a in self._outputs())

    def keep(self) -> bytes | list[Any]:
        """What the last call wrote, to compare later calls with: on the host where it is little."""
        small = sum(a.nbytes for a in self._outputs()) <= SMALL_BYTES
        return self.outputs() if small else [a.copy() for a in self._outputs()]

    def gives(self, kept: bytes | list[Any]) -> bool:
        """Whether the last call wrote the same bits."""
        if isinstance(kept, bytes):
            return self.outputs() == kept
        return all(bool((_raw(a) == _raw(b)).all()) for a, b in zip(self._outputs(), kept, strict=True))

    def _outputs(self) -> list[Any]:
        return [*self._written, *self.made()]

    def contents(self) -> bytes:
        """The bits of every array that the call is given."""
        return b"".join(self.handle.to_numpy(a).tobytes() for a in self._arrays)

    def made(self) -> list[Any]:
        """Arrays that the last call made, because the primitive takes no destination for them."""
        return [a for a in arrays_in(self.result) if not any(a is known for known in self._arrays)]
