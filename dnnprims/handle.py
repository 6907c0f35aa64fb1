"""The handle: what every primitive takes first. It finds or makes the plan of a call and enqueues it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from . import checks
from .context import Context
from .descriptors import TensorDescriptor
from .errors import BadParamError
from .operands import (
    Build,
    describe_operands,
    flat_names,
    flatten,
    op_name,
    operand_names,
    refuse_descriptors,
    specify,
)
from .runtime.launch import PlanSpec, Profile
from .runtime.plan import Executor, Overlap, Plan
from .runtime.tuning import Tuning
from .watching import Watch, add_ranges, asked

#: Plans kept by one handle.
MOST_PLANS = 16_384
#: Plans that have left since whose memory is not given back yet.
DROPPED_PLANS = 1_024


class Handle(Context):
    """What every primitive takes first. Made by `create_handle`; close it, or use it in a `with` block.

    Attributes
    ----------
    backend : str
        ``numpy``, ``emulator`` or ``cuda``.
    device : int
        Number of the GPU; 0 on the CPU.
    profile : Profile
        What plans depend on: the device's limits and the options of `create_handle`.
    """

    def __init__(self, executor: Executor | None, profile: Profile, device: int, stream: Any) -> None:
        super().__init__(executor, profile, device, stream)
        self._plans: dict[Any, Any] = {}
        # What the plans dropped last own: work that is still to be done may read it.
        self._dropped: deque[object] = deque(maxlen=DROPPED_PLANS)
        # What captured graphs hold of plans that may be gone.
        self._graph_owned: list[object] = []
        self._lock = threading.Lock()
        self._look: Callable[[Sequence[Any]], tuple[list[Any], list[int]]] = self._arrays.look
        # The arrays that `run` looks at itself: CuPy's, where the executor has CuPy's streams.
        self._device_array = self._arrays.array_type if self._get_stream is not None else None
        self._watch = Watch.from_environment(self.backend)
        self._watched = self._watch is not None
        self._nvtx = executor.nvtx() if executor is not None and asked("DNNPRIMS_NVTX") else None

    # -- calls -------------------------------------------------------------------------------------------------

    def run(self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...], live: Sequence[Any] = ()) -> Any:
        """Fetch or build the plan of a call and enqueue it. For front ends.

        The hot path, so that it does itself what `_sight` (for two arrays, as most calls have), `Context.stream` and
        `Plan.enqueue` would do for it: beside a launch of 3 us each frame counts.
        """
        if not self._lock.acquire(False):
            raise self._refuse_entry()
        try:
            if len(operands) == 2 and type(x := operands[0]) is self._device_array:
                y, pointer = operands[1], x.data.ptr
                key: tuple[Any, ...] = build, options, x.shape, x.dtype, x._c_contiguous or x.strides, pointer & 15
                if y is None:
                    key, addresses = (*key, None), [pointer, 0]
                elif type(y) is self._device_array:
                    other = y.data.ptr
                    key += y.shape, y.dtype, y._c_contiguous or y.strides, other & 15
                    addresses = [pointer, other]
                else:
                    key, addresses = self._sight(build, options, operands)
            else:
                key, addresses = self._sight(build, options, operands)
            try:
                plan = self._plans.get(key)
            except TypeError:
                raise checks.refuse_options(op_name(build), options, build) from None
            if plan is None or self._watched or (self._get_device is not None and self._astray(operands)):
                return self.on_device(self._run_slowly, build, options, operands, live)
            stream = self._fixed_stream
            if stream is None:
                get_stream = self._get_stream
                stream = get_stream().ptr if get_stream else self._executor.current_stream()  # type: ignore[union-attr]
            if addresses == plan.again_for and stream == plan.again_on:
                try:
                    if not plan.again():
                        return plan.hand_back(operands)
                except Exception:
                    plan.again_for = None  # nothing was enqueued: what follows does it, or says why not
            return plan.enqueue(flatten(operands) if plan.has_lists else operands, addresses, stream, live)
        except Overlap as overlap:
            raise self._word_overlap(build, operands, overlap) from None
        except MemoryError as error:
            raise checks.refuse_allocation(op_name(build), error) from error
        except OverflowError:
            raise checks.refuse_magnitude(op_name(build), "number", live) from None
        finally:
            self._lock.release()

    @contextmanager
    def checked(self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Hold a NumPy handle for the time of a call whose contract has been checked. For front ends.

        Gives the operands back as NumPy arrays, the results that the caller left out still None.
        """
        if not self._lock.acquire(False):
            raise self._refuse_entry()
        try:
            refuse_descriptors(build, operands)
            adopted, key, addresses = self._adopt(build, options, operands)
            # Numbers that are equal but of another type, 1+0j for 1.0, must not be taken for what was checked.
            key = (*key, *map(type, options))
            try:
                plan = self._plans.get(key)
            except TypeError:
                raise checks.refuse_options(op_name(build), options, build) from None
            if plan is None:
                # The reference makes its own results and launches nothing, so that only the contract is kept.
                spec, descriptors = self._specify(build, options, adopted)
                bare = replace(spec, steps=(), constants=())
                plan = self._keep(key, Plan(bare, self._arrays, descriptors, 0, _no_workspace))
            flat = flatten(adopted)
            try:
                plan.check(addresses)
            except Overlap as overlap:
                raise self._word_overlap(build, operands, overlap) from None
            self._refuse_read_only(build, plan.spec, flat, adopted)
            if self._watch is None:
                yield adopted
            else:
                with self._watch.call(self, op_name(build), "reference", _labelled(build, adopted, flat)):
                    yield adopted
        except MemoryError as error:
            raise checks.refuse_allocation(op_name(build), error) from error
        finally:
            self._lock.release()

    def _sight(
        self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], list[int]]:
        """Return the key under which the plan of a call is kept, and the addresses of its operands."""
        key: tuple[Any, ...] = (build, options)
        addresses: list[int] = []
        device_array = self._device_array
        for a in operands:
            if type(a) is device_array:
                pointer = a.data.ptr
                key += a.shape, a.dtype, a._c_contiguous or a.strides, pointer & 15
                addresses.append(pointer)
            elif a is None:
                key += (None,)
                addresses.append(0)
            else:
                seen, addresses = self._look(operands)
                return (build, options, *seen), addresses
        return key, addresses

    def _refuse_entry(self) -> BadParamError:
        return checks.refuse_closed() if self.closed else checks.refuse_concurrency()

    def _astray(self, operands: tuple[Any, ...]) -> bool:
        """Whether the current GPU or an array is another than the handle's; of lists the key of the plan tells.

        In a loop and with nothing called, as several visible GPUs should cost next to nothing: 0.3 us for two arrays.
        """
        device, device_array = self.device, self._device_array
        if self._get_device() != device:  # type: ignore[misc]
            return True
        for a in operands:  # noqa: SIM110
            if type(a) is device_array and a.data.device_id != device:
                return True
        return False

    def _run_slowly(
        self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...], live: Sequence[Any]
    ) -> Any:
        """The way of the first call of its kind, of foreign arrays and of logged calls."""
        refuse_descriptors(build, operands)
        adopted, key, addresses = self._adopt(build, options, operands)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._keep(key, self._make_plan(build, options, adopted))
        flat = flatten(adopted)
        plan.has_lists = len(flat) != len(adopted) or any(isinstance(a, list | tuple) for a in adopted)
        self._refuse_read_only(build, plan.spec, flat, adopted)
        return self._enqueue(build, plan, adopted, flat, addresses, live)

    def _enqueue(
        self,
        build: Build,
        plan: Plan,
        adopted: tuple[Any, ...],
        flat: Sequence[Any],
        addresses: list[int],
        live: Sequence[Any],
    ) -> Any:
        """Enqueue a call, under the eyes of the watch where there is one."""
        if self._watch is None:
            return plan.enqueue(flat, addresses, self.stream, live)
        with self._watch.call(self, op_name(build), plan.spec.variant, _labelled(build, adopted, flat)):
            return plan.enqueue(flat, addresses, self.stream, live)

    def _keep(self, key: Any, plan: Plan) -> Plan:
        """Remember a plan, in the place of the oldest where there are many, unless only a graph makes it whole."""
        if not plan.recorded:
            if len(self._plans) >= MOST_PLANS:
                self._dropped.append(self._plans.pop(next(iter(self._plans))).owners)
            self._plans[key] = plan
        return plan

    def _make_plan(self, build: Build, options: tuple[Any, ...], adopted: tuple[Any, ...]) -> Plan:
        spec, descriptors = self._specify(build, options, adopted)
        if self._watch is not None:
            self._watch.dispatched(spec)
        return self._realise(spec, descriptors)

    def _realise(self, spec: PlanSpec, descriptors: list[TensorDescriptor | None]) -> Plan:
        assert self._executor is not None
        plan = Plan(
            spec, self._executor, descriptors, self._flag, self._workspace, self.stream, self._graph_owned.append
        )
        if self._nvtx is not None:
            add_ranges(plan, spec, self._nvtx)
        return plan

    def _specify(
        self, build: Build, options: tuple[Any, ...], adopted: tuple[Any, ...]
    ) -> tuple[PlanSpec, list[TensorDescriptor | None]]:
        described = describe_operands(build, adopted, self._describe)
        return specify(build, self.profile, options, described), flatten(described)

    def _describe(self, a: Any) -> TensorDescriptor | None:
        return a if a is None or isinstance(a, TensorDescriptor) else self._arrays.describe(a)

    def _adopt(
        self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Any, list[int]]:
        """Take over foreign arrays; also return the key under which the plan is kept, and the addresses."""
        labels = operand_names(build, operands)
        adopted = tuple(
            [self._adopt_one(build, f"{label}[{i}]", item) for i, item in enumerate(a)]
            if isinstance(a, list | tuple)
            else self._adopt_one(build, label, a)
            for label, a in zip(labels, operands, strict=True)
        )
        seen, addresses = self._look(adopted)
        return adopted, (build, options, *seen), addresses

    def _adopt_one(self, build: Build, label: str, a: Any) -> Any:
        if a is None or isinstance(a, TensorDescriptor):
            return a
        try:
            array = a if type(a) is self._arrays.array_type else self._arrays.adopt(a)
        except (TypeError, RuntimeError, ValueError, BufferError):
            hint = "handle.asarray(x) copies from NumPy" if self.backend != "numpy" else ""
            raise checks.refuse_foreign(op_name(build), label, a, self._arrays.accepted, hint) from None
        if self._get_device is not None and array.data.device_id != self.device and array.size:
            raise checks.refuse_device(op_name(build), label, array.data.device_id, self.device)
        return array

    def _refuse_read_only(self, build: Build, spec: PlanSpec, flat: list[Any], adopted: tuple[Any, ...]) -> None:
        for i in spec.writes:
            if flat[i] is not None and not self._arrays.writeable(flat[i]):
                raise checks.refuse_read_only(op_name(build), flat_names(build, adopted)[i])

    def _word_overlap(self, build: Build, operands: tuple[Any, ...], overlap: Overlap) -> BadParamError:
        labels = flat_names(build, operands)
        return checks.refuse_overlap(op_name(build), labels[overlap.written], labels[overlap.other], overlap.same)

    def capturing(self) -> bool:
        """Whether calls made now go into a CUDA graph."""
        return self._executor is not None and self.on_device(self._executor.capturing, self.stream)

    def use_tuning(self, tuning: Tuning) -> None:
        """Let calls made from now on take what was found faster on this device and with these versions."""
        if not self._lock.acquire(False):
            raise self._refuse_entry()
        try:
            super().use_tuning(tuning)
            self._plans.clear()
        finally:
            self._lock.release()

    # -- life --------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._look is _closed

    def check(self) -> None:
        """Raise what kernels found in data that could not be checked before; see `Context.check`."""
        if self.closed:
            raise checks.refuse_closed()
        super().check()

    def synchronize(self) -> None:
        """Wait until all work enqueued on the handle's stream is done, then `check`."""
        if self.closed:
            raise checks.refuse_closed()
        super().synchronize()

    def close(self) -> None:
        """Give back plans, kernels and workspace; any later call is refused.

        Graphs that were captured through the handle must not be replayed afterwards.
        """
        if self.closed:
            return
        if not self._lock.acquire(False):
            raise checks.refuse_concurrency()
        try:
            if self._executor is not None:
                self.on_device(self._executor.synchronize, self.stream)
        except BaseException:
            self._lock.release()
            raise
        self._plans.clear()
        self._spaces.clear()
        self._graph_owned.clear()
        self._dropped.clear()
        self._flag_owner, self._flag = None, 0
        # The lock stays taken: nobody enters any more, and only who is turned away asks why.
        self._look = _closed

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dnnprims handle on {self.backend}, device {self.device}, math {self.math}>"


def _labelled(build: Build, adopted: tuple[Any, ...], flat: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(flat_names(build, adopted), flat, strict=True))


def _no_workspace(nbytes: int, stream: int) -> int:
    return 0


def _closed(operands: Sequence[Any]) -> tuple[list[Any], list[int]]:
    raise checks.refuse_closed()
