"""Choosing by timing: the algorithms of a call's products, and the variant of the call. `Handle.tune` is the way in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .alternatives import alternatives
from .descriptors import TensorDescriptor
from .dtypes import DType
from .errors import NotSupportedError
from .operands import describe_operands, flatten, key_of, specify
from .planning import capture
from .runtime import blaslt
from .runtime.gemm import GemmStep, realise_gemm
from .runtime.launch import PlanSpec, Profile
from .runtime.plan import Plan
from .runtime.trial import Choice, DeviceTrial, Run, select
from .runtime.tuning import Entry, Place, Tuned, Tuning, product_key

if TYPE_CHECKING:
    from .context import Context
    from .handle import Handle

#: Elements drawn for an operand; a larger one repeats them.
DRAWN = 1 << 20

Tell = Callable[[str], object]


def tune(
    handle: Any,
    op: Callable[..., Any],
    *arguments: Any,
    other_bits: bool = False,
    tell: Tell | None = None,
    **options: Any,
) -> Tuning:
    """Choose by timing what a call does, on random numbers, and use it on the handle from now on.

    Parameters
    ----------
    handle : Handle
        On a GPU, with cuBLASLt.
    op : function
        A primitive with products, such as `fc_forward`.
    *arguments, **options
        Its arguments without the handle. A `TensorDescriptor` or an array stands for each tensor; arrays are neither
        read nor written.
    other_bits : bool
        Also choose what gives other bits than the untuned call, such as another order of summation. The choice is
        marked so. Without it, results stay the same bits.
    tell : callable, optional
        Takes a line of text for each choice.

    Returns
    -------
    Tuning
        What was chosen: `Tuning.save` writes it, ``create_handle(tuning=...)`` takes it.

    Raises
    ------
    NotSupportedError
        The handle is not on a GPU, or there is no cuBLASLt whose algorithms could be timed.
    BadParamError, NotSupportedError
        As the primitive itself.

    Notes
    -----
    Takes memory for the operands, and 256 MiB to flush the L2. A choice must be 3 percent faster than the default.
    Whether bits stay the same is tried on random numbers of the call's own size.
    """
    tuner = Tuner(handle, other_bits, tell or (lambda line: None))
    handle.on_device(tuner.tune, op, arguments, options)
    handle.use_tuning(handle.tuning.merged(tuner.found))
    return tuner.found


class Tuner:
    """Times ways of doing a call on a handle's device.

    Parameters
    ----------
    handle : Handle
        Where; nothing of it is changed.
    other_bits : bool
        Whether a choice may give other bits than what is taken without timing.
    tell : callable
        Takes a line for each choice.
    """

    def __init__(self, handle: Handle, other_bits: bool, tell: Tell) -> None:
        self._handle, self._executor = handle, require_gpu("tune", handle)
        self._other_bits, self._tell = other_bits, tell
        self._place = place_of(handle)
        self._stream = handle.stream
        self.found = Tuning()

    def tune(self, op: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Choose for one call; `found` has the choices then."""
        call = Call.of(self._handle, op, arguments, options)
        specs = [spec for _, spec in call.ways() if isinstance(spec, PlanSpec)]
        for spec in specs:
            for step in spec.steps:
                if isinstance(step, GemmStep):
                    self._tune_product(step)
        if len(specs) > 1:
            self._tune_variant(call, specs)

    # -- products ----------------------------------------------------------------------------------------------

    def _tune_product(self, step: GemmStep) -> None:
        key = product_key(step.problem)
        if (self._place, key) in self.found.entries:
            return
        try:
            lt, sm_count = blaslt.device_handle(self._handle.device), self._handle.profile.sm_count
            plan = blaslt.MatmulPlan(lt, step.problem, most=blaslt.MOST_CANDIDATES, sm_count=sm_count)
        except blaslt.LtError as error:
            self._tell(f"{key}: {error}")
            return
        default = plan.offered[plan.default]
        offered = list(dict.fromkeys([default, *plan.offered]))
        memory = _Memory(self._executor, step)
        runs = [memory.run_of(replace(step, algorithm=wanted), self._stream) for wanted in offered]
        choice = self._select(runs, memory.outputs, step.dtype)
        self._keep(key, choice, algorithm=offered[choice.index], what=f"{len(offered)} algorithms")

    # -- variants ----------------------------------------------------------------------------------------------

    def _tune_variant(self, call: Call, specs: Sequence[PlanSpec]) -> None:
        """Each variant with the algorithms found for it."""
        tuned = self.found.at(self._place)
        arrays = Arrays(self._handle, specs[0], call.operands)
        runs = [arrays.run_of(_with_algorithms(spec, tuned), call.live) for spec in specs]
        choice = self._select(runs, arrays.outputs(specs[0]), specs[0].results[0].dtype)
        self._keep(call.key, choice, variant=specs[choice.index].variant, what=f"{len(specs)} variants")

    def _select(self, runs: Sequence[Run], outputs: Sequence[tuple[int, int]], dtype: DType) -> Choice:
        return select(DeviceTrial(self._executor, runs, outputs, dtype, self._stream), self._other_bits)

    def _keep(self, key: str, choice: Choice, *, what: str, variant: str = "", algorithm: tuple[int, ...] = ()) -> None:
        gain = choice.default_us / choice.tuned_us
        chosen = f"number {choice.index}, {gain:.2f}x faster, {choice.bits} bits" if choice.index else "the default"
        self._tell(f"{key}: of {what} {chosen}, {choice.tuned_us:.1f} us")
        place = (self._place.device, self._place.cublaslt, self._place.dnnprims)
        entry = Entry(
            *place, key, variant, algorithm, choice.bits, round(choice.default_us, 2), round(choice.tuned_us, 2)
        )
        self.found = self.found.merged(Tuning.of([entry]))


class _Memory:
    """Operands of a product on the device, filled with normal numbers."""

    def __init__(self, executor: Any, step: GemmStep) -> None:
        self._executor = executor
        c = step.m * step.c.leading
        sizes = [
            (step.k if step.a.transposed else step.m) * step.a.leading,
            (step.n if step.b.transposed else step.k) * step.b.leading,
            c,
            step.n,
            step.m * step.aux.leading if step.aux else 1,
        ]
        arrays = [_normal(executor, (size,), step.dtype, seed) for seed, size in enumerate(sizes)]
        self._owners = [*arrays, executor.buffer(max(step.workspace_bytes, 1))]
        self._addresses = [*executor.addresses(arrays), self._owners[-1][1]]
        self.outputs = [(self._addresses[2], c * step.dtype.itemsize)]

    def run_of(self, step: GemmStep, stream: int) -> Run:
        """What enqueues the product with the algorithm that the step names."""
        enqueue = realise_gemm(replace(step, fallback=()), tuple(range(len(self._addresses))), self._executor)
        return lambda: enqueue(self._addresses, stream, ())


class Call(NamedTuple):
    """A call that is looked into, untuned: its plan function, options, and operands described."""

    build: Any
    profile: Profile
    options: tuple[Any, ...]
    described: tuple[Any, ...]
    live: Sequence[Any]
    default: PlanSpec

    @classmethod
    def of(cls, handle: Handle, op: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
        """The call of a primitive on a handle, with descriptors or arrays for tensors."""
        profile = replace(handle.profile, tuned=Tuned(), preferred="")
        build, plan_options, operands, live = capture(op, profile, arguments, options)
        described = describe_operands(build, operands, handle._describe)
        return cls(build, profile, plan_options, described, live, specify(build, profile, plan_options, described))

    @property
    def operands(self) -> list[TensorDescriptor | None]:
        """Descriptors, lists written out."""
        return flatten(self.described)

    @property
    def key(self) -> str:
        """The call as tuning names it."""
        return key_of(self.build, self.profile, self.options, self.described, self.default)

    def ways(self) -> Iterator[tuple[str, PlanSpec | str]]:
        """As `alternatives`."""
        return alternatives(self.build, self.profile, self.options, self.described, self.default)


class Arrays:
    """Memory for a call: numbers for what it reads, room for what it makes, as far as steps reach."""

    def __init__(self, handle: Handle, spec: PlanSpec, operands: Sequence[TensorDescriptor | None]) -> None:
        self._handle, self._executor = handle, handle._executor
        self._described = list(operands)
        for made in spec.results:
            if self._described[made.operand] is None:
                self._described[made.operand] = TensorDescriptor(made.shape, made.dtype)
        self._owners: list[Any] = []
        self._addresses = [self._place(i, d) for i, d in enumerate(self._described)]

    def _place(self, seed: int, d: TensorDescriptor | None) -> int:
        """Address of the first element, which lies behind others where steps are negative."""
        if d is None:
            self._owners.append(None)
            return 0
        reach = [(extent - 1) * step for extent, step in zip(d.shape, d.strides, strict=True)]
        count = sum(map(abs, reach)) + 1 if d.size else 0
        self._owners.append(_normal(self._executor, (count,), d.dtype, seed))
        (address,) = self._executor.addresses(self._owners[-1:])  # type: ignore[union-attr,misc]
        return int(address) - sum(r for r in reach if r < 0) * d.dtype.itemsize

    def outputs(self, spec: PlanSpec) -> list[tuple[int, int]]:
        """Address and bytes of all that is written."""
        written = [self._owners[i] for i in spec.writes if self._owners[i] is not None]
        addresses = self._executor.addresses(written)  # type: ignore[union-attr]
        return [(address, owner.nbytes) for address, owner in zip(addresses or (), written, strict=True)]

    def run_of(self, spec: PlanSpec, live: Sequence[Any]) -> Run:
        """What enqueues the call done in this way."""
        handle, stream = self._handle, self._handle.stream
        plan = Plan(spec, self._executor, self._described, handle._flag, handle._workspace, stream)  # type: ignore[arg-type]
        return lambda: plan.enqueue(self._owners, list(self._addresses), stream, live)


def _normal(executor: Any, shape: tuple[int, ...], dtype: DType, seed: int) -> Any:
    drawn = np.random.default_rng(seed).standard_normal(DRAWN, np.float32).astype(dtype.numpy)
    return executor.from_numpy(np.resize(drawn, shape))


def _with_algorithms(spec: PlanSpec, tuned: Tuned) -> PlanSpec:
    steps = tuple(
        replace(step, algorithm=tuned.algorithm(product_key(step.problem))) if isinstance(step, GemmStep) else step
        for step in spec.steps
    )
    return replace(spec, steps=steps)


def place_of(handle: Context) -> Place:
    """Where a handle's times hold."""
    from . import __version__

    version = int(blaslt.library()[0].cublasLtGetVersion()) if handle.profile.blaslt else 0
    name = getattr(handle._executor, "device_name", handle.backend)
    return Place(name, version, __version__)


def require_gpu(function: str, handle: Handle) -> Any:
    """The executor of a handle where ways of doing a call can be timed."""
    if handle.backend == "cuda":
        return handle._executor
    raise NotSupportedError(
        function,
        "has nothing to choose from",
        param="handle",
        got=f"a handle on {handle.backend}",
        expected="a CUDA handle, on which algorithms are timed",
        hint="python -m dnnprims doctor names what is missing",
    )
