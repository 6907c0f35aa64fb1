"""Compile a family of kernels for an architecture and read what each instantiation takes of a multiprocessor.

Registers, stack, spills and shared memory are what ptxas says of its own work (``--ptxas-options=-v``); constants and
code are the sizes of sections; the block's threads are the launch bounds in the PTX.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from dnnprims.dtypes import DType
from dnnprims.runtime import compiler
from dnnprims.runtime.launch import Family

from . import machine_code

#: Registers of a multiprocessor, and what a warp takes them by (CUDA C++ Programming Guide, compute capabilities).
REGISTERS, REGISTER_UNIT = 65536, 256
#: Threads, blocks and bytes of shared memory of a multiprocessor, by architecture; the same guide.
MULTIPROCESSOR = {
    75: (1024, 16, 64 << 10),
    80: (2048, 32, 164 << 10),
    86: (1536, 16, 100 << 10),
    89: (1536, 24, 100 << 10),
    90: (2048, 32, 228 << 10),
    100: (2048, 32, 228 << 10),
    120: (1536, 32, 100 << 10),
}
ARCHITECTURES = tuple(MULTIPROCESSOR)

_FUNCTION = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_BOUNDS = re.compile(r"\.maxntid (\d+)")


@dataclass(frozen=True)
class Resources:
    """What one instantiation takes; sizes in bytes.

    Attributes
    ----------
    kernel : str
        The instantiation as a C++ name expression.
    arch : int
        Compute capability times ten.
    threads : int
        Threads of a block, by the launch bounds.
    registers : int
        Of a thread.
    shared : int
        Static shared memory of a block.
    stack, spill_stores, spill_loads : int
        Local memory of a thread, and what the code moves of spilled registers.
    constant, code : int
        Parameters and constants; machine code.
    """

    family: str
    dtype: str
    kernel: str
    arch: int
    threads: int
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    constant: int
    code: int

    @property
    def entry(self) -> str:
        """Name of the kernel's template."""
        return self.kernel.partition("<")[0]

    @property
    def block_registers(self) -> int:
        """Registers that a block takes."""
        warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        return warp * -(-self.threads // 32)

    @property
    def blocks(self) -> int:
        """Blocks that one multiprocessor can hold, dynamic shared memory left out."""
        threads, blocks, shared = MULTIPROCESSOR[self.arch]
        by_registers = REGISTERS // max(self.block_registers, 1)
        by_shared = shared // self.shared if self.shared else blocks
        return min(threads // self.threads, blocks, by_registers, by_shared)

    @property
    def occupancy(self) -> float:
        """Share of the multiprocessor's threads that these blocks are."""
        return self.blocks * self.threads / MULTIPROCESSOR[self.arch][0]

    def row(self) -> dict[str, object]:
        """All of it as plain data."""
        return {**asdict(self), "blocks": self.blocks, "occupancy": round(self.occupancy, 4)}


@dataclass(frozen=True)
class Unit:
    """All instantiations of a family for one dtype and architecture, compiled just now."""

    family: str
    dtype: DType
    arch: int
    binary: compiler.Binary

    @cached_property
    def expressions(self) -> dict[str, str]:
        """Name expression of each mangled name."""
        return {mangled: expression for expression, mangled in self.binary.lowered.items()}

    @cached_property
    def ptx(self) -> dict[str, str]:
        """PTX text of each instantiation."""
        return self._by_expression(machine_code.ptx_functions(self.binary.code))

    @cached_property
    def machine(self) -> dict[str, str]:
        """Machine code of each instantiation as text; needs nvdisasm."""
        return self._by_expression(machine_code.machine_functions(machine_code.disassemble(self.binary.code)))

    @cached_property
    def warnings(self) -> list[str]:
        """Lines of the log that are more than ptxas' statistics; that products do not overlap is one."""
        plain, loud = re.compile(r"\s*(ptxas (info)?\s*[:.].*)?"), ("warning", "performance loss")
        lines = self.binary.log.splitlines()
        return [line for line in lines if not plain.fullmatch(line) or any(word in line.lower() for word in loud)]

    @cached_property
    def resources(self) -> list[Resources]:
        """What each instantiation takes."""
        sections, said = machine_code.sections(self.binary.code), _statistics(self.binary.log)

        def size(section: str) -> int:
            return sections[section].size if section in sections else 0

        rows = []
        for mangled, expression in sorted(self.expressions.items(), key=lambda pair: pair[1]):
            bounds = _BOUNDS.search(self.ptx[expression])
            threads = int(bounds[1]) if bounds else 1024
            sizes = size(f".nv.constant0.{mangled}"), size(f".text.{mangled}")
            rows.append(Resources(self.family, self.dtype.name, expression, self.arch, threads, *said[mangled], *sizes))
        return rows

    def _by_expression(self, texts: dict[str, str]) -> dict[str, str]:
        return {self.expressions[mangled]: text for mangled, text in texts.items() if mangled in self.expressions}


def _statistics(log: str) -> dict[str, tuple[int, ...]]:
    """Registers, shared memory, stack frame, spill stores and spill loads of each function that ptxas names."""
    found, name, stack = {}, "", (0, 0, 0)
    for line in log.splitlines():
        if match := _FUNCTION.search(line):
            name = match[1]
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif match := _REGISTERS.search(line):
            shared = _SHARED.search(line)
            found[name] = (int(match[1]), int(shared[1]) if shared else 0, *stack)
    return found


def has_kernels(family: Family, dtype: DType, arch: int) -> bool:
    """Whether a family has kernels for a dtype and an architecture: some are for one architecture alone."""
    return bool(family.instances(dtype)) and family.only in ("", f"sm_{arch}a")


def compile_text(
    name: str, dtype: DType, text: str, expressions: Sequence[str], arch: int, target: str | None = None
) -> Unit:
    """Compile a flattened text, for a target other than ``sm_<arch>`` where one is given."""
    target, options = target or f"sm_{arch}", ("--ptxas-options=-v",)
    binary = compiler.compile_source(text, expressions, target, what=f"{name} for {dtype.name}", options=options)
    return Unit(name, dtype, arch, binary)


def compile_family(family: Family, dtype: DType, arch: int) -> Unit:
    """Compile every instantiation of a family in one go, with the host's packing of each struct asserted."""
    expressions = sorted({name for group in family.instances(dtype).values() for name in group})
    text = compiler.unit_text(family, dtype, family.only or f"sm_{arch}")
    return compile_text(family.name, dtype, text, expressions, arch, family.only or None)
