"""What a call will do, as data: kernels, their parameter structs, launches, and the plan made of them.

A front end turns descriptors into a `PlanSpec`, which touches no device: the same value answers `supports` and
`workspace_size` on a laptop. An executor (`cuda`, `emulator`) turns each step into something that can be enqueued.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from ..dtypes import DType
from .tuning import UNTUNED, Tuned

if TYPE_CHECKING:
    from ..descriptors import TensorDescriptor
    from .gemm import GemmStep
    from .tensor_map import AnyMap

#: struct-module codes of the scalar types a parameter struct may hold; "A" is the accumulator of the unit's dtype.
SCALAR_CODES = {"f32": "f", "f64": "d", "i32": "i", "u32": "I", "i64": "q", "u64": "Q"}

#: Static shared memory of a block's reductions: two of 32 doubles, with room to spare.
REDUCTION_BYTES = 1024

#: Bytes between scratch regions: one line of the L2.
SCRATCH_ALIGNMENT = 256
#: Packs of a block of the kernels that work through ``share.cuh``, and of a thread where there is much to compute; up
#: to so many blocks of a multiprocessor such a thread takes one, too, and a block twice the threads. A GPU begins some
#: 800 blocks in a microsecond, so that a small call wants few, of many threads. NVIDIA H200, 2026-11-28, microseconds
#: of 10^6 in the L2, 128 threads of two packs / 256 of one: float32 relu 1.95 / 1.86, gelu 3.04 / 2.69, backward 3.23
#: / 2.70, float16 relu backward 2.12 / 1.72.
SHARE_WIDE, SHARE_PACKS, WIDE_SHARES = 256, 2, 8


@dataclass(frozen=True, slots=True)
class Profile:
    """What a plan may depend on: the backend, the device's limits and the handle's options.

    Attributes
    ----------
    backend : str
        ``numpy``, ``emulator`` or ``cuda``.
    arch : int
        Compute capability times ten (90 for Hopper).
    sm_count : int
        Multiprocessors, for grids that stay resident.
    shared_bytes : int
        Shared memory that one block may ask for.
    blaslt : bool
        Whether GEMM goes to cuBLASLt.
    tensor_maps : bool
        Whether the driver can describe tensors to the copy engine (CUDA 12).
    math : str
        ``ieee`` or ``tf32``: what float32 products are computed in.
    deterministic : bool
        Whether variants whose bits may change between runs are refused.
    workspace_limit : int
        Bytes of workspace that a plan may use; -1 for no limit.
    tuned : Tuned
        What was found faster by timing, on the device at hand.
    preferred : str
        Variant to take for the call that is planned, where it may be taken; what `tuned` knows of the call.
    """

    backend: str
    arch: int = 90
    sm_count: int = 132
    shared_bytes: int = 227 * 1024
    blaslt: bool = False
    tensor_maps: bool = False
    math: str = "ieee"
    deterministic: bool = True
    workspace_limit: int = -1
    tuned: Tuned = UNTUNED
    preferred: str = ""

    @property
    def row_bytes(self) -> int:
        """Shared memory that a block has for data, beside what its reductions take."""
        return self.shared_bytes - REDUCTION_BYTES

    @property
    def hopper_reason(self) -> str | None:
        """Why kernels for Hopper alone, which its copy engine feeds, are not for this device, or None."""
        if self.backend != "cuda" or self.arch != 90:
            return "needs a GPU of compute capability 9.0"
        return None if self.tensor_maps else "the driver has no tensor maps"

    def tensor_core_reason(self, dtype: DType) -> str | None:
        """Why the tensor cores do not multiply a type, or None: they take 16 bits and, in TF32, float32."""
        if dtype.itemsize == 2 or (dtype.name == "float32" and self.math == "tf32"):
            return None
        return f"the tensor cores do not multiply {dtype.name} here"


@dataclass(frozen=True)
class Struct:
    """The parameter struct of a kernel: pointers first, then scalars, each in the order of the CUDA text.

    The CUDA struct is a template over the storage type, `name<T>`; `scalars` are pairs of a name and a type of
    `SCALAR_CODES` or ``"A"``.
    """

    name: str
    pointers: tuple[str, ...]
    scalars: tuple[tuple[str, str], ...] = ()

    def codes(self, dtype: DType) -> str:
        """Format of the `struct` module for the whole struct."""
        scalars = "".join(dtype.acc.code if kind == "A" else SCALAR_CODES[kind] for _, kind in self.scalars)
        return "@" + "P" * len(self.pointers) + scalars + "0P"

    def offset(self, dtype: DType, index: int) -> int:
        """Byte offset of scalar number `index`."""
        codes = self.codes(dtype)[1:-2]
        at = len(self.pointers) + index
        return struct.calcsize("@" + codes[: at + 1]) - struct.calcsize("@" + codes[at])


@dataclass(frozen=True)
class Kernel:
    """A ``__global__`` template of ``kernels/<family>.cu`` and the struct that it takes."""

    family: str
    entry: str
    struct: Struct


@dataclass(frozen=True)
class Live:
    """A scalar that is given at each call (number `index` of the call's live values) instead of with the plan."""

    index: int


@dataclass(frozen=True)
class Scratch:
    """Pointer to region number `index` of the plan's scratch memory."""

    index: int


@dataclass(frozen=True)
class Constant:
    """Pointer to a device copy of the plan's constant table number `index`, made once with the plan."""

    index: int


@dataclass(frozen=True)
class Named:
    """Pointer that is neither an operand nor scratch."""

    name: str


#: The handle's error flag, a null pointer, and the device table of all operands' addresses.
FLAG, NULL, TABLE = Named("flag"), Named("null"), Named("table")

Pointer = int | Scratch | Constant | Named


@dataclass(frozen=True)
class KernelStep:
    """One launch.

    Attributes
    ----------
    kernel : Kernel
        What to run.
    dtype : DType
        Unit of compilation, the struct's `T`, and what ``"A"`` scalars are packed as.
    template : tuple of str
        Template arguments as written in C++.
    group : str
        What the family's `instances` file this instantiation under.
    grid, block : tuple of int, int
        Blocks in x, y, z; threads of a block.
    pointers : tuple
        For each pointer of the struct: the number of an operand, `Scratch(k)`, `Constant(k)`, `FLAG`, `NULL` or
        `TABLE`.
    scalars : tuple
        For each scalar of the struct: a number, or `Live(k)`.
    shared_bytes : int
        Dynamic shared memory.
    maps : tuple of TensorMap, BoxMap and WindowMap
        What the kernel takes before its struct, where it has its tiles moved by the copy engine.
    joint_maps : bool
        Whether the kernel takes them as one struct, and not one by one.
    cluster : int
        Blocks that run at one time and see each other's shared memory: from Hopper on, on drivers that know maps.
    """

    kernel: Kernel
    dtype: DType
    template: tuple[str, ...]
    group: str
    grid: tuple[int, int, int]
    block: int
    pointers: tuple[Pointer, ...]
    scalars: tuple[float | int | Live, ...] = ()
    shared_bytes: int = 0
    maps: tuple[AnyMap, ...] = ()
    joint_maps: bool = False
    cluster: int = 1

    @property
    def expression(self) -> str:
        """The instantiation as a C++ name expression."""
        return f"{self.kernel.entry}<{', '.join(self.template)}>"


@dataclass(frozen=True)
class FillStep:
    """Set `nbytes` bytes at a pointer to zero, on the stream."""

    pointer: Pointer
    nbytes: int


@dataclass(frozen=True)
class Family:
    """All kernels of one ``kernels/<name>.cu`` and every instantiation that the front end may ask for.

    `instances(dtype)` gives, for each group, the name expressions; the tests compile each of them for every
    architecture, the emulator builds all of a dtype at once, the GPU each as it is asked for.
    A family whose instructions one architecture alone has names it, ``sm_90a``, and is compiled for that one.
    """

    name: str
    kernels: tuple[Kernel, ...]
    instances: Callable[[DType], dict[str, list[str]]]
    only: str = ""


@dataclass(frozen=True)
class Result:
    """Operand number `operand` is made by the call, with this shape and dtype, when the caller leaves it out."""

    operand: int
    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class PlanSpec:
    """What a call will do.

    Attributes
    ----------
    op, variant : str
        Public function, and the adjective of the way chosen.
    steps : tuple
        What is enqueued, in order; empty when there is nothing to do.
    results : tuple of Result
        Operands that the call makes when they are left out.
    returns : tuple of int
        Operands handed back: one alone, or a tuple of several. Empty returns None.
    writes : tuple of int
        Operands that are written; each must be writeable and overlap no other operand.
    in_place : tuple of (written, read)
        Pairs that may be the very same memory all the same.
    scratch : tuple of int
        Bytes of each scratch region.
    constants : tuple of bytes
        Tables that the kernels read, the same at every call.
    refused : tuple of (variant, reason)
        Variants that come before the chosen one and why they declined.
    """

    op: str
    variant: str
    steps: tuple[KernelStep | FillStep | GemmStep, ...]
    results: tuple[Result, ...] = ()
    returns: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    in_place: tuple[tuple[int, int], ...] = ()
    scratch: tuple[int, ...] = ()
    constants: tuple[bytes, ...] = ()
    refused: tuple[tuple[str, str], ...] = field(default=())

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory taken from the handle."""
        return sum(-(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT for size in self.scratch)

    def scratch_offsets(self) -> list[int]:
        """Byte offset of each scratch region in the workspace."""
        offsets, at = [], 0
        for size in self.scratch:
            offsets.append(at)
            at += -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return offsets


def picker(slots: tuple[int, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Return what picks a step's pointers out of the addresses of a call, always as a tuple."""
    if len(slots) == 1:
        only = slots[0]
        return lambda addresses: (addresses[only],)
    return itemgetter(*slots) if slots else lambda addresses: ()


def choose(
    variants: Iterable[tuple[str, str | None]],
) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Pick the first of (variant, reason against it or None) without a reason; also return those refused before it."""
    refused: list[tuple[str, str]] = []
    for variant, reason in variants:
        if reason is None:
            return variant, tuple(refused)
        refused.append((variant, reason))
    return None, tuple(refused)


def even_blocks(pieces: int, at_once: int) -> int:
    """Blocks, `at_once` of them at most, that take as many pieces of work each, one after the other."""
    rounds = max(1, -(-pieces // at_once))
    return -(-pieces // rounds)


def blocks_for(items: int, per_block: int) -> tuple[int, int, int]:
    """One-dimensional grid that covers `items`."""
    return (-(-items // per_block), 1, 1)


def share_launch(
    profile: Profile, count: int, lanes: int, packs: int = SHARE_PACKS
) -> tuple[tuple[int, int, int], int]:
    """Grid and threads of a kernel that works through ``share.cuh``, for `count` elements, `packs` of a thread."""
    grid = blocks_for(count, SHARE_WIDE * lanes)
    return grid, SHARE_WIDE // packs if grid[0] > WIDE_SHARES * profile.sm_count else SHARE_WIDE


def unaligned(**tensors: TensorDescriptor | None) -> str | None:
    """Return which of the tensors given cannot be accessed by 16 bytes at once, as a reason, or None."""
    for name, x in tensors.items():
        if x is not None and not x.vectorizable:
            return f"{name} is aligned to {x.alignment} bytes only"
    return None
