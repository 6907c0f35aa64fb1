"""Runs conformance cases on the emulator for a sanitizer to watch, every array in an allocation of its very size.

Guard bands, and a workspace that is larger than asked for, would hide from AddressSanitizer what it looks for.
`test_sanitizers.py` starts this with the sanitizer loaded. A finding ends the process; the last line names the case.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exact_placing import exact_place

import dnnprims
from dnnprims.conformance import runner
from dnnprims.conformance.cases import DTYPES
from dnnprims.runtime import emulator, emulator_compiler
from dnnprims.runtime.launch import SCRATCH_ALIGNMENT, PlanSpec
from dnnprims.runtime.plan import Plan

LIBC = ctypes.CDLL(None)
LIBC.posix_memalign.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
LIBC.free.argtypes = (ctypes.c_void_p,)


class Block:
    """Bytes of an allocation of exactly that size, all bits set as the emulator's buffers have them."""

    def __init__(self, nbytes: int) -> None:
        found = ctypes.c_void_p()
        if LIBC.posix_memalign(ctypes.addressof(found), SCRATCH_ALIGNMENT, nbytes):
            raise MemoryError
        self.pointer = found.value or 0
        ctypes.memset(self.pointer, 0xFF, nbytes)

    def __del__(self) -> None:
        LIBC.free(self.pointer)


def exact_buffer(self: Any, nbytes: int) -> tuple[Block, int]:
    """The emulator's `buffer` without slack."""
    block = Block(nbytes)
    return block, block.pointer


def exact_realise(self: Any, spec: PlanSpec, descriptors: list[Any]) -> Plan:
    """The handle's `_realise` with scratch memory of the plan's own, its regions kept apart."""
    blocks: list[Block] = []

    def workspace(nbytes: int, stream: int) -> int:
        blocks[:] = [Block(nbytes)]
        for offset, size in zip(spec.scratch_offsets(), spec.scratch, strict=True):
            poison(blocks[0].pointer + offset + size, -size % SCRATCH_ALIGNMENT)
        return blocks[0].pointer

    return Plan(spec, self._executor, descriptors, self._flag, workspace, self.stream)


def poison(pointer: int, nbytes: int) -> None:
    """Bytes that nobody may touch."""
    LIBC.__asan_poison_memory_region(ctypes.c_void_p(pointer), ctypes.c_size_t(nbytes))


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no case fails; a sanitizer that finds something ends the process in its own way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--cases", type=int, default=0, help="random ones for each family and dtype")
    parser.add_argument("--alternate", action="store_true", help="run each corner in one of the types, taken in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", default=[], help="run these lines alone")
    parser.add_argument("--kernels", type=Path, help="another directory of CUDA texts")
    given = parser.parse_args(argv)
    if given.kernels:
        emulator.build = functools.partial(emulator_compiler.build, source_dir=given.kernels)
    emulator.EmulatorExecutor.buffer = exact_buffer
    dnnprims.Handle._realise = exact_realise
    runner.place = exact_place
    dtypes = tuple(given.dtype or DTYPES)
    chosen = runner.select(given.family, dtypes, given.seed, given.cases)
    if given.alternate:
        chosen = [(family, p) for family, p in chosen if dtypes[p.integer("seed") % len(dtypes)] == p.dtype]
    cases = [runner.named(line) for line in given.case] or chosen
    failures = 0
    for family, problem in cases:
        with dnnprims.create_handle("emulator") as handle:
            print(problem, flush=True)
            complaint = runner.run_case(handle, family, problem).complaint
            failures += bool(complaint)
            print(f"  {complaint}" if complaint else "", end="", flush=True)
    print(f"{len(cases) - failures} of {len(cases)} cases passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
