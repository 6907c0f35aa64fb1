"""Plans as objects: `prepare` checks and plans a call once, to be repeated on other arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import checks
from .descriptors import TensorDescriptor
from .errors import BadParamError
from .handle import Handle
from .operands import flat_names, flatten, op_name, operand_names
from .planning import bind_arguments, capture
from .problem import CallLine
from .runtime.compiler import read_source
from .runtime.launch import KernelStep
from .runtime.plan import Overlap, Plan


class PreparedPlan:
    """One call, checked and planned once, to be repeated on other arrays of the same descriptors. See `prepare`.

    Attributes
    ----------
    variant : str
        The way chosen.
    refused : tuple of (variant, reason)
        Variants that come before it and why they declined.
    workspace_bytes : int
        Scratch memory taken from the handle.
    source : str
        The CUDA text that the plan runs, flattened; empty when it runs none.
    """

    def __init__(
        self, handle: Handle, op: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        if not isinstance(handle, Handle):
            raise checks.refuse_handle("prepare", handle)
        build, plan_options, operands, live = capture(op, handle.profile, arguments, options)
        self._handle, self._op, self._live = handle, op_name(build), tuple(live)
        adopted, _, _ = handle._adopt(build, plan_options, operands)
        self._labels, self._flat_labels = operand_names(build, operands), flat_names(build, operands)
        self._operands = operands
        self._has_lists = any(isinstance(a, list | tuple) for a in operands)
        self._positions = [i for i, a in enumerate(operands) if a is not None]
        self._places = {self._labels[i]: i for i in self._positions}
        self._addresses = handle._arrays.addresses
        self.spec, descriptors = handle._specify(build, plan_options, adopted)
        self._descriptors, self._aligned = descriptors, [-1]
        self._build = build
        self._call = (op, bind_arguments(op, arguments, options))
        if handle._watch is not None:
            handle._watch.dispatched(self.spec, CallLine.of(*self._call, handle))
        self._plan = None if handle.backend == "numpy" else self._realise(descriptors)

    def _realise(self, descriptors: list[TensorDescriptor | None]) -> Any:
        try:
            plan: Plan = self._handle.on_device(self._handle._realise, self.spec, descriptors)
            return plan if self._handle._watch is None else _WatchedPlan(self, plan)
        except MemoryError as error:
            raise checks.refuse_allocation(self._op, error) from error

    variant = property(lambda self: self.spec.variant)
    refused = property(lambda self: self.spec.refused)
    workspace_bytes = property(lambda self: self.spec.workspace_bytes)

    @property
    def source(self) -> str:
        """The CUDA text that the plan runs."""
        names = dict.fromkeys(step.kernel.family for step in self.spec.steps if isinstance(step, KernelStep))
        return "\n".join(read_source(name) for name in names)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Enqueue on these arrays.

        Parameters
        ----------
        *arrays
            The arrays that were described, in the order of the primitive's arguments; an `int` is taken as an address.
        **named
            The same by name, such as ``out=y``.

        Notes
        -----
        Only overlaps and alignment are checked again. Shapes and dtypes are taken on trust: that is what it saves.
        """
        operands = self._arrange(arrays, named)
        handle = self._handle
        if self._plan is None:
            return self._call_reference(operands)
        if not handle._lock.acquire(False):
            raise checks.refuse_concurrency()
        try:
            if handle.closed:
                raise checks.refuse_closed()
            flat: Sequence[Any] = flatten(operands) if self._has_lists else operands
            if len(flat) != len(self._descriptors):
                raise self._refuse("has lists of the wrong length", len(flat))
            addresses = self._addresses(flat)
            if addresses is None:
                flat, addresses = self._take_over(flat)
            if addresses != self._aligned:
                self._check_alignment(addresses)
            if self._plan.recorded:  # made under capture: its constants may never have been copied
                self._plan = self._realise(self._descriptors)
            if handle.elsewhere():
                return handle.there(self._plan.enqueue, flat, addresses, handle.stream, self._live)
            return self._plan.enqueue(flat, addresses, handle.stream, self._live)
        except Overlap as overlap:
            raise handle._word_overlap(self._build, tuple(operands), overlap) from None
        except MemoryError as error:
            raise checks.refuse_allocation(self._op, error) from error
        finally:
            handle._lock.release()

    def _check_alignment(self, addresses: list[int]) -> None:
        """A plan for aligned arrays would fault on others, and a fault ends the process's use of the GPU."""
        for i, (address, d) in enumerate(zip(addresses, self._descriptors, strict=True)):
            if d is None or not d.size:
                continue
            if not address:
                raise checks.refuse_missing(self._op, self._flat_labels[i], "an array, as it was described")
            if address % d.alignment:
                raise checks.refuse_alignment(self._op, self._flat_labels[i], address, d.alignment)
        self._aligned = list(addresses)

    def _arrange(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Put each array in the place of the operand that it stands for."""
        operands: list[Any] = [None] * len(self._labels)
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
            None if i in pointers else self._handle._adopt_one(self._build, label, a)
            for i, (label, a) in enumerate(zip(self._flat_labels, flat, strict=True))
        ]
        _, addresses = self._handle._look(arrays)
        for i, pointer in pointers.items():
            addresses[i] = pointer
        return [pointers.get(i, a) for i, a in enumerate(arrays)], addresses

    def _call_reference(self, operands: list[Any]) -> Any:
        """On NumPy the call itself, with arrays in the place of their descriptors."""
        op, arguments = self._call
        return op(self._handle, **{**arguments, **{name: operands[i] for name, i in self._places.items()}})

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
        return CallLine.of(op, {**arguments, **given}, self._handle)


class _WatchedPlan:
    """Stands in for the plan of a prepared call whose handle is watched."""

    def __init__(self, prepared: PreparedPlan, plan: Plan) -> None:
        self._prepared, self._plan = prepared, plan

    @property
    def recorded(self) -> bool:
        """As `Plan.recorded`."""
        return self._plan.recorded

    def enqueue(self, flat: Sequence[Any], addresses: list[int], stream: int, live: Sequence[Any]) -> Any:
        """As `Plan.enqueue`."""
        mine = self._prepared
        operands = dict(zip(mine._flat_labels, _bound(flat, mine._descriptors), strict=True))
        with mine._handle._watch.call(mine._handle, mine._op, mine.variant, operands):  # type: ignore[union-attr]
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
    return PreparedPlan(handle, op, arguments, options)
