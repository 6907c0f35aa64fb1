"""The handle: a backend, a device, a stream, the numerical options, and the plans made so far."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from . import checks, verbose
from .descriptors import TensorDescriptor
from .errors import BadParamError
from .operands import Build, flat_names, flatten, map_operands, op_name, operand_names
from .runtime.host import HostArrays
from .runtime.launch import PlanSpec, Profile
from .runtime.plan import Executor, Overlap, Plan

BACKENDS = ("auto", "cuda", "emulator", "numpy")

#: Plans kept by one handle.
MOST_PLANS = 16_384

#: First size of the workspace; it doubles from there.
WORKSPACE_START_BYTES = 1 << 20


def create_handle(
    backend: str = "auto",
    *,
    device: int | None = None,
    stream: Any = None,
    math: str = "ieee",
    deterministic: bool = True,
    workspace_limit: int | None = None,
) -> Handle:
    """Create a handle, the first argument of every primitive.

    Parameters
    ----------
    backend : {"auto", "cuda", "emulator", "numpy"}
        ``auto`` is CUDA where CuPy finds a GPU, else NumPy; ``DNNPRIMS_BACKEND`` overrides it. ``emulator`` runs the
        CUDA sources on the CPU through g++, for tests.
    device : int, optional
        Number of the GPU; CuPy's current one where left out.
    stream : cupy.cuda.Stream, int or None
        Where work is enqueued: a stream, its address, or None for CuPy's current stream at each call.
    math : {"ieee", "tf32"}
        What products of float32 are computed in. Never TF32 unless asked for.
    deterministic : bool
        Refuse variants whose bits may differ between runs.
    workspace_limit : int, optional
        Most bytes of workspace that a plan may use; 0 is allowed.

    Returns
    -------
    Handle

    Raises
    ------
    BadParamError
        An argument is not one of the above.
    ExecutionError
        The backend asked for does not work here; the message names the layer and the remedy.

    Notes
    -----
    A handle belongs to one thread at a time; two threads inside one handle are detected and refused.

    Examples
    --------
    >>> handle = create_handle("numpy")
    >>> handle.backend
    'numpy'
    """
    op = "create_handle"
    checks.require_choice(op, "backend", backend, BACKENDS)
    checks.require_choice(op, "math", math, ("ieee", "tf32"))
    if workspace_limit is not None:
        checks.require_integer(op, "workspace_limit", workspace_limit, 0)
    if device is not None:
        checks.require_integer(op, "device", device, 0)
    executor = _make_executor(_resolve(backend), device)
    limits = executor.profile if executor is not None else Profile("numpy")
    limit = -1 if workspace_limit is None else workspace_limit
    profile = replace(limits, math=math, deterministic=bool(deterministic), workspace_limit=limit)
    return Handle(executor, profile, device or 0, stream)


def _resolve(backend: str) -> str:
    if backend == "auto":
        backend = os.environ.get("DNNPRIMS_BACKEND", "auto")
        checks.require_choice("create_handle", "DNNPRIMS_BACKEND", backend, BACKENDS)
    if backend != "auto":
        return backend
    from .runtime.cuda import gpu_works

    return "cuda" if gpu_works() else "numpy"


def _make_executor(backend: str, device: int | None) -> Executor | None:
    if backend == "numpy":
        return None
    from .ops import FAMILIES

    if backend == "emulator":
        from .runtime.emulator import EmulatorExecutor

        emulator: Executor = EmulatorExecutor(FAMILIES)
        return emulator
    from .runtime.cuda import CudaExecutor, load_cupy

    runtime = load_cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        count = 0
    number = device if device is not None else (runtime.getDevice() if count else 0)
    if number >= count:
        raise BadParamError(
            "create_handle",
            "names no GPU" if count else "cannot be used, as no GPU was found",
            param="device" if count else "backend",
            got=number if count else backend,
            expected=f"in [0, {count})" if count else "a machine with a working NVIDIA driver",
            hint="run python -m dnnprims doctor, or use the numpy backend",
        )
    return CudaExecutor(number, FAMILIES)


class Handle:
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
        self.profile, self.backend = profile, profile.backend
        self._executor = executor
        self._arrays: Any = executor if executor is not None else HostArrays()
        self.device = int(getattr(executor, "device", device))
        self._plans: dict[Any, Any] = {}
        self._lock = threading.Lock()
        self._look: Callable[[Sequence[Any]], tuple[list[Any], list[int]]] = self._arrays.look
        self._spaces: dict[int, list[tuple[object, int, int]]] = {}
        self._log = verbose.Log.from_environment()
        self._check_at_once = os.environ.get("DNNPRIMS_CHECK", "") not in ("", "0")
        self._watched = self._check_at_once or self._log is not None
        self._evicted: list[Any] = []
        self._get_device = _device_getter(executor)
        self.set_stream(stream)
        self._flag_owner, self._flag = self._make_flag()

    def _make_flag(self) -> tuple[object, int]:
        """Four bytes that kernels write to when they meet bad data."""
        if self._executor is None:
            return None, 0
        owner, pointer = self._executor.buffer(4)
        staged = self._executor.upload(pointer, bytes(4), self.stream)
        self._executor.synchronize(self.stream)
        del staged
        return owner, pointer

    # -- options -----------------------------------------------------------------------------------------------

    @property
    def math(self) -> str:
        """What products of float32 are computed in: ``ieee`` or ``tf32``."""
        return self.profile.math

    @property
    def deterministic(self) -> bool:
        """Whether variants whose bits may differ between runs are refused."""
        return self.profile.deterministic

    @property
    def workspace_limit(self) -> int | None:
        """Most bytes of workspace that a plan may use, or None."""
        return None if self.profile.workspace_limit < 0 else self.profile.workspace_limit

    def set_stream(self, stream: Any) -> None:
        """Enqueue on this stream from now on.

        Parameters
        ----------
        stream : cupy.cuda.Stream, int or None
            A stream, its address, or None for CuPy's current stream at each call.

        Notes
        -----
        CuPy's pool orders memory by its *current* stream. With a fixed stream that is not the current one, keep arrays
        alive until their work is done, or make the stream current too (``with stream:``).
        """
        if stream is None:
            self._fixed_stream = None
        elif hasattr(stream, "ptr") or hasattr(stream, "__index__"):
            self._fixed_stream = int(getattr(stream, "ptr", stream))
        elif hasattr(stream, "__cuda_stream__"):
            self._fixed_stream = int(stream.__cuda_stream__()[1])
        else:
            raise BadParamError(
                "set_stream",
                "is no stream",
                param="stream",
                got=type(stream).__name__,
                expected="a CuPy stream, an address or None",
            )
        self._stream_owner = stream

    @property
    def stream(self) -> int:
        """Address of the stream that a call made now would be enqueued on; 0 on the CPU."""
        if self._fixed_stream is not None:
            return self._fixed_stream
        return self._executor.current_stream() if self._executor is not None else 0

    # -- arrays ------------------------------------------------------------------------------------------------

    def asarray(self, x: Any) -> Any:
        """Copy a NumPy array, or what NumPy makes one of, into this backend's memory."""
        import numpy as np

        return self._arrays.from_numpy(np.asarray(x))

    def to_numpy(self, x: Any) -> Any:
        """Copy one of this backend's arrays to a NumPy array; waits for the GPU."""
        return self._arrays.to_numpy(x)

    # -- calls -------------------------------------------------------------------------------------------------

    def run(self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...], live: Sequence[Any] = ()) -> Any:
        """Fetch or build the plan of a call and enqueue it. For front ends."""
        if not self._lock.acquire(False):
            raise checks.refuse_concurrency()
        try:
            seen, addresses = self._look(operands)
            try:
                plan = self._plans.get((build, options, *seen))
            except TypeError:
                raise checks.refuse_options(op_name(build), options) from None
            if self._get_device is not None and self._get_device() != self.device:
                return self.there(self._run_slowly, build, options, operands, live)
            if plan is None or self._watched:
                return self._run_slowly(build, options, operands, live)
            if plan.has_lists:
                operands = tuple(flatten(operands))
            stream = self._fixed_stream
            if stream is None:
                stream = self._executor.current_stream()  # type: ignore[union-attr]
            return plan.enqueue(operands, addresses, stream, live)
        except Overlap as overlap:
            raise self._word_overlap(build, operands, overlap) from None
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
            raise checks.refuse_concurrency()
        try:
            adopted, key, addresses = self._adopt(build, options, operands)
            try:
                plan = self._plans.get(key)
            except TypeError:
                raise checks.refuse_options(op_name(build), options) from None
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
            if self._log is not None:
                self._log.called(op_name(build), self.backend, "reference", options, plan.operands)
            yield adopted
        finally:
            self._lock.release()

    def elsewhere(self) -> bool:
        """Whether the thread's current GPU is not the handle's."""
        return self._get_device is not None and self._get_device() != self.device

    def there(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call with the handle's GPU as the current one."""
        from .runtime.cuda import load_cupy

        with load_cupy().cuda.Device(self.device):
            return call(*arguments)

    def _run_slowly(
        self, build: Build, options: tuple[Any, ...], operands: tuple[Any, ...], live: Sequence[Any]
    ) -> Any:
        """The way of the first call of its kind, of foreign arrays and of logged calls."""
        adopted, key, addresses = self._adopt(build, options, operands)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._keep(key, self._make_plan(build, options, adopted))
        flat = flatten(adopted)
        plan.has_lists = len(flat) != len(adopted) or any(isinstance(a, list | tuple) for a in adopted)
        self._refuse_read_only(build, plan.spec, flat, adopted)
        if self._log is not None:
            with self._log.timed(
                op_name(build), self.backend, plan.spec.variant, options, plan.operands, self.synchronize
            ):
                result = plan.enqueue(flat, addresses, self.stream, live)
        else:
            result = plan.enqueue(flat, addresses, self.stream, live)
        if self._check_at_once:
            self.check()
        return result

    def _keep(self, key: Any, plan: Plan) -> Plan:
        """Remember a plan, unless only a graph makes it whole.

        The oldest makes room, but what a captured graph may hold of it lives on with the handle.
        """
        if plan.recorded:
            self._evicted.append(plan)
            return plan
        if len(self._plans) >= MOST_PLANS:
            oldest = self._plans.pop(next(iter(self._plans)))
            self._evicted.append(oldest.owners)
        self._plans[key] = plan
        return plan

    def _make_plan(self, build: Build, options: tuple[Any, ...], adopted: tuple[Any, ...]) -> Plan:
        spec, descriptors = self._specify(build, options, adopted)
        if self._log is not None:
            self._log.dispatched(spec, self.backend, options, descriptors)
        return self._realise(spec, descriptors)

    def _realise(self, spec: PlanSpec, descriptors: list[TensorDescriptor | None]) -> Plan:
        assert self._executor is not None
        return Plan(spec, self._executor, descriptors, self._flag, self._workspace, self.stream)

    def _specify(
        self, build: Build, options: tuple[Any, ...], adopted: tuple[Any, ...]
    ) -> tuple[PlanSpec, list[TensorDescriptor | None]]:
        described = tuple(map_operands(self._describe, adopted))
        try:
            spec = build(self.profile, *options, *described)
            misfit = spec.unrepresentable()
            if misfit:
                raise checks.refuse_magnitude(op_name(build), *misfit)
        except BadParamError as error:
            if self._log is not None:
                self._log.refused(error)
            raise
        return spec, flatten(described)

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

    # -- memory and life ---------------------------------------------------------------------------------------

    def _workspace(self, nbytes: int, stream: int) -> int:
        """Scratch memory of a stream. It grows by doubling and keeps the old: a captured graph may hold its address."""
        spaces = self._spaces.setdefault(stream, [])
        if not spaces or spaces[-1][2] < nbytes:
            size = max(nbytes, WORKSPACE_START_BYTES, 2 * spaces[-1][2] if spaces else 0)
            owner, pointer = self._executor.buffer(size)  # type: ignore[union-attr]
            spaces.append((owner, pointer, size))
        return spaces[-1][1]

    def check(self) -> None:
        """Raise what kernels found in data that could not be checked before, such as a label out of range.

        Waits for the stream. The flag is cleared, so that each finding is raised once.

        Raises
        ------
        BadParamError
            A kernel met bad data since the last check.
        """
        if self._flag and self._executor is not None:
            stream = self.stream
            code = int.from_bytes(self._executor.download(self._flag, 4, stream), "little")
            if code:
                self._executor.upload(self._flag, bytes(4), stream)
                self._executor.synchronize(stream)
            checks.raise_device_flag(code)

    def synchronize(self) -> None:
        """Wait until all work enqueued on the handle's stream is done, then `check`."""
        if self._executor is not None:
            self._executor.synchronize(self.stream)
            self.check()

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._look is _closed

    def close(self) -> None:
        """Give back plans, kernels and workspace; any later call is refused.

        Graphs that were captured through the handle must not be replayed afterwards.
        """
        if self._executor is not None and not self.closed:
            self._executor.synchronize(self.stream)
        self._plans.clear()
        self._spaces.clear()
        self._evicted.clear()
        self._flag_owner, self._flag = None, 0
        self._look = _closed

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dnnprims handle on {self.backend}, device {self.device}, math {self.math}>"


def _no_workspace(nbytes: int, stream: int) -> int:
    return 0


def _closed(operands: Sequence[Any]) -> tuple[list[Any], list[int]]:
    raise checks.refuse_closed()


def _device_getter(executor: Any) -> Callable[[], int] | None:
    if executor is None or executor.profile.backend != "cuda":
        return None
    from .runtime.cuda import load_cupy

    getter: Callable[[], int] = load_cupy().cuda.runtime.getDevice
    return getter
