"""The executor that runs the CUDA text on the CPU, one fiber for each thread of a block.

``DNNPRIMS_EMULATOR_SEED`` shuffles the schedule of blocks, warps and lanes.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..dtypes import DType
from ..errors import BadParamError, ExecutionError
from .emulator_compiler import build, toolchain
from .gemm import GemmStep, realise_gemm
from .graphs import Again
from .host import HostArrays
from .launch import SCRATCH_ALIGNMENT, Family, FillStep, KernelStep, Live, Profile, picker
from .plan import Run

#: Few, so that grids which follow the number of multiprocessors still have several blocks with work in turn.
SM_COUNT = 4
SHARED_BYTES = 227 * 1024


class EmulatorExecutor(HostArrays):
    """Runs plans on NumPy arrays by emulating a GPU.

    Parameters
    ----------
    families : mapping
        Kernel families by name.

    Attributes
    ----------
    schedule_seed : int
        0 for the fixed order of blocks, warps and lanes; any other number shuffles them, each its own way.
    """

    backend = "emulator"

    def __init__(self, families: Mapping[str, Family]) -> None:
        toolchain()
        self._families = families
        self.profile = Profile(self.backend, arch=90, sm_count=SM_COUNT, shared_bytes=SHARED_BYTES)
        self.schedule_seed = _seed_from_environment()

    # -- memory ----------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: DType) -> tuple[np.ndarray[Any, Any], int]:
        """Return an array with every bit set, NaN for floats, so that what no kernel writes shows, and its address."""
        a, address = super().empty(shape, dtype)
        ctypes.memset(address, 0xFF, a.nbytes)
        return a, address

    def buffer(self, nbytes: int) -> tuple[object, int]:
        """Return 256-byte aligned memory with every bit set, and the object that keeps it alive."""
        room = np.full(nbytes + SCRATCH_ALIGNMENT, 0xFF, np.uint8)
        return room, room.ctypes.data + -room.ctypes.data % SCRATCH_ALIGNMENT

    def upload(self, pointer: int, data: bytes, stream: int) -> object:
        """Copy bytes to an address."""
        ctypes.memmove(pointer, data, len(data))
        return None

    def download(self, pointer: int, nbytes: int, stream: int = 0) -> bytes:
        """Copy bytes from an address."""
        return ctypes.string_at(pointer, nbytes)

    def staging(self, nbytes: int) -> tuple[object, int]:
        """Return memory that stands for page-locked one."""
        return self.buffer(nbytes)

    def copy(self, pointer: int, staged: int, nbytes: int, stream: int) -> None:
        """Copy bytes between addresses."""
        ctypes.memmove(pointer, staged, nbytes)

    def event(self) -> PassedEvent:
        """Return an event behind work that is done already."""
        return PassedEvent()

    def nvtx(self) -> Any:
        """No profiler looks here."""
        return None

    def current_stream(self) -> int:
        """There is one stream, and it is always done."""
        return 0

    # -- steps -----------------------------------------------------------------------------------------------

    def realise(self, step: Any, slots: tuple[int, ...]) -> Run:
        """Return the callable that runs the step; `slots` places its pointers in the address list."""
        if isinstance(step, FillStep):
            return _realise_fill(step, slots[0])
        if isinstance(step, GemmStep):
            return realise_gemm(step, slots, self)
        return self._realise_kernel(step, slots)

    def _realise_kernel(self, step: KernelStep, slots: tuple[int, ...]) -> Run:
        _check_step(step, slots)
        library = build(self._families[step.kernel.family], step.dtype)
        if step.expression not in library:
            raise _failure(step, f"is not among the instantiations of family {step.kernel.family}")
        pack, pick = struct.Struct(step.kernel.struct.codes(step.dtype)).pack, picker(slots)
        live_places = [(k, s.index) for k, s in enumerate(step.scalars) if isinstance(s, Live)]

        def launch(params: bytes) -> str | None:
            seed, shared_bytes = self.schedule_seed, step.shared_bytes
            return library.launch(step.expression, step.grid, step.block, params, shared_bytes=shared_bytes, seed=seed)

        def run(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> Again | None:
            scalars = list(step.scalars)
            for k, index in live_places:
                scalars[k] = live[index]
            params = pack(*pick(addresses), *scalars)
            problem = launch(params)
            if problem:
                raise _failure(step, problem)
            return None if live_places else partial(launch, params)

        return run


class PassedEvent:
    """An event of work that is done when it has been enqueued."""

    def record(self, stream: int) -> None:
        """Nothing is left to do."""

    def synchronize(self) -> None:
        """There is nothing to wait for."""


def _seed_from_environment() -> int:
    text = os.environ.get("DNNPRIMS_EMULATOR_SEED") or "0"
    if not text.isdecimal():
        rule = "an integer >= 0"
        raise BadParamError("emulator", "is no seed", param="DNNPRIMS_EMULATOR_SEED", got=repr(text), expected=rule)
    return int(text) % 2**64


def _realise_fill(step: FillStep, slot: int) -> Run:
    def run(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> None:
        ctypes.memset(addresses[slot], 0, step.nbytes)

    return run


def _check_step(step: KernelStep, slots: tuple[int, ...]) -> None:
    if 0 in step.grid:
        raise _failure(step, "has an empty grid")
    fields = step.kernel.struct
    if len(slots) != len(fields.pointers) or len(step.scalars) != len(fields.scalars):
        given, wanted = (len(slots), len(step.scalars)), (len(fields.pointers), len(fields.scalars))
        raise _failure(step, f"(pointers, scalars) of {fields.name} number {wanted}, got {given}")
    constants = [0 if isinstance(s, Live) else s for s in step.scalars]
    try:
        struct.pack(fields.codes(step.dtype), *slots, *constants)
    except (struct.error, OverflowError) as error:
        raise _failure(step, f"{fields.name} cannot be packed from {constants}: {error}") from error


def _failure(step: KernelStep, problem: str) -> ExecutionError:
    shape = f"grid {step.grid}, block {step.block}, {step.shared_bytes} bytes of shared memory"
    return ExecutionError("launch", f"{step.expression} ({step.dtype.name}, {shape}): {problem}")
