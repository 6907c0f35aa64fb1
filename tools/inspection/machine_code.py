"""What is inside a cubin: the sections of the ELF file, the PTX that it was made from, and its instructions.

The sections are read here. The PTX is there because kernels are compiled with ``-lineinfo``. The instructions come from
NVIDIA's ``nvdisasm``, which the extra `compile` brings as a wheel.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Section of the PTX text, each line ended by a zero byte.
_PTX = ".nv_debug_ptx_txt"
_NOBITS = 8

_ENTRY = re.compile(r"^(?:\.\w+ )*\.entry (\w+)\(", re.MULTILINE)
#: An instruction of PTX: mnemonic with its modifiers, a predicate before it skipped.
_PTX_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:[.:]+\w+)*)[ \t;]", re.MULTILINE)
#: An instruction of the machine, as nvdisasm prints it behind its offset.
_MACHINE_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_MACHINE_FUNCTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A section of an ELF file: its size, and its bytes where the file holds any."""

    size: int
    data: bytes


def sections(code: bytes) -> dict[str, Section]:
    """Every section of a 64-bit little-endian ELF file, by name."""
    if code[:6] != b"\x7fELF\2\1":
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<3H", code, 58)
    # name, type, flags, address, offset, size of each
    heads = [struct.unpack_from("<2I4Q", code, table + size * i) for i in range(count)]
    found = {}
    for name, kind, _, _, offset, length in heads:
        start = heads[names][4] + name
        data = b"" if kind == _NOBITS else code[offset : offset + length]
        found[code[start : code.index(b"\0", start)].decode()] = Section(length, data)
    return found


def ptx_functions(code: bytes) -> dict[str, str]:
    """The PTX text of each kernel in a cubin, by mangled name."""
    held = sections(code).get(_PTX)
    if held is None:
        raise ValueError("the cubin holds no PTX: compile it with -lineinfo")
    _, *parts = _ENTRY.split(held.data.replace(b"\0", b"\n").decode())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def ptx_instructions(text: str) -> Counter[str]:
    """How often each instruction stands in a PTX text, modifiers included."""
    return Counter(_PTX_INSTRUCTION.findall(text))


@cache
def disassembler() -> str | None:
    """Path of ``nvdisasm``: the wheel's, else the one on PATH, else None."""
    package = importlib.util.find_spec("nvidia")
    for place in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(place).glob("cu*/bin/nvdisasm"), reverse=True):
            return str(path)
    return shutil.which("nvdisasm")


def disassemble(code: bytes) -> str:
    """The machine code of a cubin as text."""
    tool = disassembler()
    if tool is None:
        raise FileNotFoundError("there is no nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm failed: {done.stderr.strip()}")
    return done.stdout


def machine_functions(text: str) -> dict[str, str]:
    """The lines of each function in what `disassemble` returns, by mangled name."""
    _, *parts = _MACHINE_FUNCTION.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def machine_instructions(text: str) -> Counter[str]:
    """How often each instruction stands in the text of a function, modifiers included."""
    return Counter(_MACHINE_INSTRUCTION.findall(text))
