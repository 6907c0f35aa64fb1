"""Plans as objects: `prepare` checks and plans a call once, to be repeated on other arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import checks
from .descriptors import TensorDescriptor
from .errors import BadParamError
from .handle import Handle
from .operands import flat_names, flatten, op_name, operand_names
from .planning import bind_arguments, capture
from .problem import CallLine
from .repetition import Repetition, quick_call
from .runtime.launch import KernelStep
from .runtime.plan import Overlap, Plan


class PreparedPlan(partial):
    """One call, checked and planned once, to be repeated on other arrays of the same descriptors. See `prepare`.

    Attributes
    ----------
    spec : PlanSpec
        What it does.
    variant : str
        The way chosen.
    refused : tuple of (variant, reason)
        Variants that come before it and why they declined.
    workspace_bytes : int
        Scratch memory taken from the handle.
    source : str
        The CUDA text that the plan runs, flattened; empty when it runs none.

    Notes
    -----
    ``plan(x, out=y)`` takes the arrays that were described, in the order of the primitive's arguments or by name; an
    `int` is taken as an address. Only overlaps and alignment are checked again. Shapes and dtypes are taken on trust:
    that is what it saves.
    """

    # A class with a `__call__` has the arguments of each call packed and unpacked, for 0.2 us; `partial` hands them on.
    _call: PreparedCall

    def __new__(cls, call: PreparedCall) -> PreparedPlan:
        """Wrap a prepared call; `prepare` is what makes one."""
        self = super().__new__(cls, quick_call(call))
        self._call = call
        return self

    spec = property(lambda self: self._call.spec)
    variant = property(lambda self: self._call.spec.variant)
    refused = property(lambda self: self._call.spec.refused)
    workspace_bytes = property(lambda self: self._call.spec.workspace_bytes)

    @property
    def source(self) -> str:
        """The CUDA text that the plan runs."""
        from .runtime.compiler import read_source  # which plans on NumPy never need

        names = dict.fromkeys(step.kernel.family for step in self.spec.steps if isinstance(step, KernelStep))
        return "\n".join(read_source(name) for name in names)

    def __repr__(self) -> str:
        return f"<dnnprims plan of {self.spec.op}, {self.variant}>"


class PreparedCall:
    """What a `PreparedPlan` does; here is the way that takes everything, `quick_call` has the one past it."""

    def __init__(
        self, handle: Handle, op: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        if not isinstance(handle, Handle):
            raise checks.refuse_handle("prepare", handle)
        build, plan_options, operands, live = capture(op, handle.profile, arguments, options)
        self.handle, self._op, self._live = handle, op_name(build), tuple(live)
        adopted, _, _ = handle._adopt(build, plan_options, operands)
        self._labels, self._flat_labels = operand_names(build, operands), flat_names(build, operands)
        self._operands = operands
        self._has_lists = any(isinstance(a, list | tuple) for a in operands)
        self._positions = [i for i, a in enumerate(operands) if a is not None]
        self._places = {self._labels[i]: i for i in self._positions}
        self._addresses = handle._arrays.addresses
        self.spec, descriptors = handle._specify(build, plan_options, adopted)
        self._descriptors, self._aligned = descriptors, [-1]
        self._alignments = [(i, d.alignment) for i, d in enumerate(descriptors) if d is not None and d.size]
        self._build = build
        self._call = (op, bind_arguments(op, arguments, options))
        if handle._watch is not None:
            handle._watch.dispatched(self.spec, CallLine.of(*self._call, handle))
        self._plan = None if handle.backend == "numpy" else self._realise(descriptors)
        self.repetition = Repetition()

    def _realise(self, descriptors: list[TensorDescriptor | None]) -> Any:
        try:
            plan: Plan = self.handle.on_device(self.handle._realise, self.spec, descriptors)
            plan.has_lists = self._has_lists
            return plan if self.handle._watch is None else _WatchedPlan(self, plan)
        except MemoryError as error:
            raise checks.refuse_allocation(self._op, error) from error

    @property
    def quick_inputs(self) -> int:
        """How many arrays come before `out`, where the call is such that it may be repeated without a look at it."""
        handle, places = self.handle, [self._labels[i] for i in self._positions]
        returns_out = self.spec.returns == (self._positions[-1],) and places[-1] == "out"
        plain = isinstance(self._plan, Plan) and not self._has_lists
        return len(places) - 1 if plain and returns_out and handle._get_stream is not None else 0

    def perform(self, *arrays: Any, **named: Any) -> Any:
        """Enqueue on these arrays; see `PreparedPlan`."""
        operands = self._arrange(arrays, named)
        handle = self.handle
        if self._plan is None:
            return self._call_reference(operands)
        if not handle._lock.acquire(False):
            raise handle._refuse_entry()
        try:
            self.repetition.forget()
            flat: Sequence[Any] = flatten(operands) if self._has_lists else operands
            if len(flat) != len(self._descriptors):
                raise self._refuse("has lists of the wrong length", len(flat))
            addresses = self._addresses(flat)
            own_arrays = addresses is not None
            if addresses is None:
                flat, addresses = self._take_over(flat)
            again = addresses == self._aligned
            if not again:
                self._check_alignment(addresses)
            if self._plan.recorded:  # made under capture: its constants may never have been copied
                self._plan = self._realise(self._descriptors)
            plan, get_stream = self._plan, handle._get_stream
            if handle.elsewhere():
                return handle.there(plan.enqueue, flat, addresses, handle.stream, self._live)
            stream = handle._fixed_stream
            if stream is None:
                stream = get_stream().ptr if get_stream else handle._executor.current_stream()  # type: ignore[union-attr]
            result = plan.enqueue(flat, addresses, stream, self._live)
            if again and own_arrays and plan.again_for is addresses and not plan.recorded:
                self.repetition.keep(plan, [addresses[i] for i in self._positions])
            return result
        except Overlap as overlap:
            raise handle._word_overlap(self._build, tuple(operands), overlap) from None
        except MemoryError as error:
            raise checks.refuse_allocation(self._op, error) from error
        finally:
            handle._lock.release()

    def _check_alignment(self, addresses: list[int]) -> None:
        """A plan for aligned arrays would fault on others, and a fault ends the process's use of the GPU."""
        for i, alignment in self._alignments:
            if not addresses[i]:
                raise checks.refuse_missing(self._op, self._flat_labels[i], "an array, as it was described")
            if addresses[i] % alignment:
                raise checks.refuse_alignment(self._op, self._flat_labels[i], addresses[i], alignment)
        self._aligned = addresses.copy()

    def _arrange(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Put each array in the place of the operand that it stands for."""
        if len(arrays) == len(self._labels):
            operands = list(arrays)
        else:
            operands = [None] * len(self._labels)
            for place, a in zip(self._positions, arrays, strict=False):
                operands[place] = a
        for name, a in named.items():
            if name not in self._places:
                raise self._refuse(f"takes no {name}", name)
            operands[self._places[name]] = a
        for place in self._positions:
            if operands[place] is None and len(arrays) + len(named) == len(self._positions):
                raise checks.refuse_missing(self._op, self._labels[place], "an array, as it was described")
        if len(arrays) + len(named) != len(self._positions):
            raise self._refuse("has the wrong number of arrays", len(arrays) + len(named))
        return operands

    def _refuse(self, problem: str, got: object) -> BadParamError:
        return BadParamError(self._op, problem, param="plan", got=got, expected=", ".join(self._flat_labels))

    def _take_over(self, flat: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Arrays of other libraries, and bare addresses, in the place of the handle's own arrays."""
        pointers = {i: a for i, a in enumerate(flat) if isinstance(a, int)}
        arrays = [
            None if i in pointers else self.handle._adopt_one(self._build, label, a)
            for i, (label, a) in enumerate(zip(self._flat_labels, flat, strict=True))
        ]
        _, addresses = self.handle._look(arrays)
        for i, pointer in pointers.items():
            addresses[i] = pointer
        return [pointers.get(i, a) for i, a in enumerate(arrays)], addresses

    def _call_reference(self, operands: list[Any]) -> Any:
        """On NumPy the call itself, with arrays in the place of their descriptors."""
        op, arguments = self._call
        return op(self.handle, **{**arguments, **{name: operands[i] for name, i in self._places.items()}})

    def call_line(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> CallLine:
        """The call that these arrays make, of which some may be too many or missing."""
        given = dict(zip((self._labels[i] for i in self._positions), arrays, strict=False))
        given |= {name: a for name, a in named.items() if name in self._places}
        op, arguments = self._call
        descriptors = iter(self._descriptors)
        for label, a in zip(self._labels, self._operands, strict=True):
            several = isinstance(a, list | tuple)
            own = [next(descriptors) for _ in a] if several else [next(descriptors)]
            if label in given:
                listed = isinstance(given[label], list | tuple)
                given[label] = _bound(given[label], own) if listed else _bound([given[label]], own)[0]
        return CallLine.of(op, {**arguments, **given}, self.handle)


class _WatchedPlan:
    """Stands in for the plan of a prepared call whose handle is watched."""

    def __init__(self, prepared: PreparedCall, plan: Plan) -> None:
        self._prepared, self._plan = prepared, plan

    again_for = None

    @property
    def recorded(self) -> bool:
        """As `Plan.recorded`."""
        return self._plan.recorded

    def enqueue(self, flat: Sequence[Any], addresses: list[int], stream: int, live: Sequence[Any]) -> Any:
        """As `Plan.enqueue`."""
        mine = self._prepared
        operands = dict(zip(mine._flat_labels, _bound(flat, mine._descriptors), strict=True))
        with mine.handle._watch.call(mine.handle, mine._op, mine.spec.variant, operands):  # type: ignore[union-attr]
            return self._plan.enqueue(flat, addresses, stream, live)


def _bound(arrays: Sequence[Any], descriptors: Sequence[TensorDescriptor | None]) -> list[Any]:
    """The arrays, with addresses bound to what they were described as."""
    pairs = zip(arrays, descriptors, strict=False)
    return [d.bind(a) if isinstance(a, int) and d is not None else a for a, d in pairs]


def prepare(op: Callable[..., Any], handle: Handle, *arguments: Any, **options: Any) -> PreparedPlan:
    """Check and plan a call once, and return it as an object to be repeated.

    Parameters
    ----------
    op : function
        A primitive, such as `activation_forward`.
    handle : Handle
        What to run on.
    *arguments, **options
        The primitive's arguments without the handle. A `TensorDescriptor` or an array stands for each tensor; describe
        ``out`` too when it will be given.

    Returns
    -------
    PreparedPlan
        Call it with the arrays: ``plan(x, out=y)``.

    Raises
    ------
    BadParamError, NotSupportedError
        As the primitive itself.

    Examples
    --------
    >>> x = TensorDescriptor((1024,), "float32")
    >>> plan = prepare(activation_forward, handle, "relu", x, out=x)
    """
    return PreparedPlan(PreparedCall(handle, op, arguments, options))
