"""The executor on CuPy: memory, streams and launches on one NVIDIA GPU; its arrays are in `device_arrays`.

CuPy is imported when the executor is made, never with the package.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import ExecutionError
from .compiler import Binary, compile_kernel, enters_grid, nvrtc_target
from .device_arrays import DeviceArrays
from .early import early_launcher
from .gemm import GemmStep, realise_gemm
from .graphs import Again, GraphRecorder
from .launch import Family, FillStep, KernelStep, Live, Profile, picker
from .plan import OutOfMemory, Run
from .tensor_map import EncodedMaps, encoder, parameters_with

#: Shared memory that a block may have without asking for more.
DEFAULT_SHARED_BYTES = 48 * 1024

#: ``cudaErrorMemoryAllocation`` and ``CUDA_ERROR_OUT_OF_MEMORY``.
OUT_OF_MEMORY = 2
#: ``CUDA_ERROR_INVALID_CONTEXT``: the thread has not used the GPU yet.
INVALID_CONTEXT = 201


class CudaExecutor(DeviceArrays):
    """Runs plans on one GPU through CuPy.

    Parameters
    ----------
    device : int
        Number of the GPU.
    families : mapping
        Kernel families by name.

    Raises
    ------
    ExecutionError
        CuPy is missing or the GPU cannot be used; the message names the layer.
    """

    def __init__(self, device: int, families: Mapping[str, Family]) -> None:
        cupy = load_cupy()
        super().__init__(cupy, device)
        self._families = families
        self._driver, self._runtime = cupy.cuda.driver, cupy.cuda.runtime
        #: CuPy's current stream, an object with ``ptr``, for those to whom the frame of `current_stream` is dear.
        self.get_stream = cupy.cuda.get_current_stream
        self.get_device = self._runtime.getDevice if self._runtime.getDeviceCount() > 1 else None
        #: Whether work on a stream is being recorded for a graph instead of done.
        self.capturing: Callable[[int], bool] = cupy.cuda.runtime.streamIsCapturing
        with cupy.cuda.Device(device) as current:
            facts = current.attributes
            capability = int(current.compute_capability)
            self._target = nvrtc_target(capability)
            self.profile = Profile(
                "cuda",
                arch=capability,
                sm_count=facts["MultiProcessorCount"],
                shared_bytes=facts["MaxSharedMemoryPerBlockOptin"],
                blaslt=_has_blaslt(),
                tensor_maps=encoder() is not None,
            )
        self.graph = GraphRecorder(cupy).record
        self._functions: dict[tuple[str, str, str], int] = {}
        self._modules: list[Any] = []

    @property
    def device_name(self) -> str:
        """What the driver calls the GPU."""
        return str(self._runtime.getDeviceProperties(self.device)["name"].decode())

    # -- memory and streams ------------------------------------------------------------------------------------

    def buffer(self, nbytes: int) -> tuple[object, int]:
        """Return device memory, 256-byte aligned, with the object that keeps it alive."""
        memory = self._allocate(nbytes)
        return memory, memory.ptr

    def upload(self, pointer: int, data: bytes, stream: int) -> object:
        """Copy host bytes to the device in stream order; what is returned must outlive the copy and any graph of it."""
        owner, staged = self.staging(max(len(data), 1))
        ctypes.memmove(staged, data, len(data))
        self.copy(pointer, staged, len(data), stream)
        return owner

    def staging(self, nbytes: int) -> tuple[object, int]:
        """Return page-locked host memory, with the object that keeps it alive."""
        try:
            pinned = self._cupy.cuda.alloc_pinned_memory(nbytes)
        except self._runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            raise OutOfMemory("page-locked memory of the host", nbytes) from error
        return pinned, pinned.ptr

    def copy(self, pointer: int, staged: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy of page-locked memory to the device."""
        self._runtime.memcpyAsync(pointer, staged, nbytes, 1, stream)

    def event(self) -> CopyEvent:
        """Return an event that can be recorded behind a copy."""
        return CopyEvent(self._cupy)

    def download(self, pointer: int, nbytes: int, stream: int) -> bytes:
        """Copy device bytes to the host once the stream is done."""
        room = ctypes.create_string_buffer(nbytes)
        self._runtime.memcpyAsync(ctypes.addressof(room), pointer, nbytes, 2, stream)
        self._runtime.streamSynchronize(stream)
        return room.raw

    def nvtx(self) -> Any:
        """Return CuPy's module of ranges for profilers, or None where CuPy was built without."""
        try:
            from cupy.cuda import nvtx
        except ImportError:
            return None
        return nvtx

    def current_stream(self) -> int:
        """Return CuPy's current stream."""
        return int(self.get_stream().ptr)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream is done."""
        try:
            self._runtime.streamSynchronize(stream)
        except self._runtime.CUDARuntimeError as error:
            raise ExecutionError("handle.synchronize", f"the GPU reports {error}") from error

    # -- steps -------------------------------------------------------------------------------------------------

    def realise(self, step: Any, slots: tuple[int, ...]) -> Run:
        """Return the callable that enqueues the step."""
        if isinstance(step, GemmStep):
            return realise_gemm(step, slots, self)
        if isinstance(step, FillStep):
            return self._realise_fill(step, slots[0])
        return self._realise_kernel(step, slots)

    def _realise_fill(self, step: FillStep, slot: int) -> Run:
        memset, nbytes = self._runtime.memsetAsync, step.nbytes

        def run(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> None:
            memset(addresses[slot], 0, nbytes, stream)

        return run

    def _realise_kernel(self, step: KernelStep, slots: tuple[int, ...]) -> Run:
        function = self._function(step)
        codes = step.kernel.struct.codes(step.dtype)
        block = ctypes.create_string_buffer(struct.calcsize(codes))
        fixed = [0 if isinstance(s, Live) else s for s in step.scalars]
        struct.pack_into(codes, block, 0, *[0] * len(slots), *fixed)
        given = [
            (
                struct.Struct("@" + codes[1 + len(slots) + k]).pack_into,
                step.kernel.struct.offset(step.dtype, k),
                s.index,
            )
            for k, s in enumerate(step.scalars)
            if isinstance(s, Live)
        ]
        pack, pick = struct.Struct("@" + "P" * len(slots)).pack_into, picker(slots)
        maps = EncodedMaps(step.maps) if step.maps else None
        parameters = parameters_with(maps, ctypes.addressof(block), step.joint_maps) if maps else _only(block)
        (x, y, z), threads, shared = step.grid, step.block, step.shared_bytes
        launch, where, clustered = self._driver.launchKernel, ctypes.addressof(parameters), step.cluster > 1
        early = early_launcher(function, step, where) if enters_grid(self._target_of(step)) else None
        # The defaults keep the block and the argument list alive with the plan.
        keep = (block, parameters)

        def run(addresses: Sequence[int], stream: int, live: Sequence[Any], _keep: object = keep) -> Again | None:
            pointers = pick(addresses)
            pack(block, 0, *pointers)
            if maps is not None:
                maps.update(pointers)
            for put, offset, index in given:
                put(block, offset, live[index])
            if early is not None and not early.on(stream)():
                return None if given else early.launch
            if clustered:
                # The launch below has no clusters: the first call of a thread fails for want of a context.
                self._runtime.setDevice(self.device)
                status = early.on(stream)() if early is not None else "no launch with attributes"
                if status:
                    raise _launch_error(step, RuntimeError(f"the driver's status is {status}"))
                return None if given or early is None else early.launch
            try:
                try:
                    launch(function, x, y, z, threads, 1, 1, shared, stream, where, 0)
                except self._driver.CUDADriverError as error:
                    if error.status != INVALID_CONTEXT:
                        raise
                    # Only calls of the runtime make the device's context that of the thread.
                    self._runtime.setDevice(self.device)
                    launch(function, x, y, z, threads, 1, 1, shared, stream, where, 0)
            except Exception as error:
                raise _launch_error(step, error) from error
            return None if given else partial(launch, function, x, y, z, threads, 1, 1, shared, stream, where, 0)

        return run

    def _target_of(self, step: KernelStep) -> str:
        return self._families[step.kernel.family].only or self._target

    def _function(self, step: KernelStep) -> int:
        key = (step.kernel.family, step.dtype.name, step.expression)
        if key not in self._functions:
            family = self._families[step.kernel.family]
            binary = compile_kernel(family, step.dtype, step.expression, self._target_of(step))
            module = self._load(binary, key)
            self._modules.append(module)
            self._functions[key] = module.get_function(binary.lowered[step.expression]).ptr
        function = self._functions[key]
        if step.shared_bytes:
            self._allow_shared(function, step.shared_bytes)
        return function

    def _allow_shared(self, function: int, wanted: int) -> None:
        """Ask for more than a block may have by itself, static arrays included.

        The limit belongs to the function, not to the plan: all that its static arrays leave, so that no plan lowers
        another's.
        """
        static = self._driver.funcGetAttribute(self._driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
        if wanted + static > DEFAULT_SHARED_BYTES:
            attribute = self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._driver.funcSetAttribute(function, attribute, self.profile.shared_bytes - static)

    def _load(self, binary: Binary, key: tuple[str, str, str]) -> Any:
        module = self._cupy.cuda.Module()
        try:
            module.load(binary.code)
        except self._driver.CUDADriverError as error:
            if error.status == OUT_OF_MEMORY:
                raise OutOfMemory("the GPU", len(binary.code)) from error
            raise ExecutionError("load", f"the kernel {' '.join(key)} cannot be loaded: {error}") from error
        return module


class CopyEvent:
    """Marks a place in a stream's work and waits for it."""

    def __init__(self, cupy: Any) -> None:
        self._event = cupy.cuda.Event(disable_timing=True)
        self._runtime = cupy.cuda.runtime

    def record(self, stream: int) -> None:
        """Mark the end of what is enqueued on the stream by now."""
        self._runtime.eventRecord(self._event.ptr, stream)

    def synchronize(self) -> None:
        """Wait until the work before the mark is done."""
        self._runtime.eventSynchronize(self._event.ptr)


def _only(block: Any) -> Any:
    """The array of addresses that a launch is given: that of the parameter struct."""
    return (ctypes.c_void_p * 1)(ctypes.addressof(block))


def _launch_error(step: KernelStep, error: Exception) -> ExecutionError:
    shape = f"grid {step.grid}, block {step.block}, {step.shared_bytes} bytes of shared memory"
    return ExecutionError("launch", f"{step.expression} ({step.dtype.name}, {shape}) failed: {error}")


def _has_blaslt() -> bool:
    from . import blaslt

    return blaslt.available()


def load_cupy() -> Any:
    """Return CuPy, or say what is missing."""
    try:
        import cupy
    except Exception as error:
        raise ExecutionError(
            "create_handle",
            f"CuPy cannot be imported: {error}",
            hint="install dnnprims[cuda12x] or dnnprims[cuda13x], or use the numpy backend",
        ) from error
    return cupy


def gpu_works() -> bool:
    """Whether CuPy is there and finds a GPU; never raises."""
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except Exception:
        return False
