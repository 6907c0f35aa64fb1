"""From a kernel's text to machine code: flatten the includes, compile with NVRTC, keep the result in a cache.

The unit of compilation is one instantiation of one family for one dtype. A cache entry is found by a digest
of all that shapes it (flattened text, instantiations, options, NVRTC version, architecture), so a changed header or
option never meets a stale binary.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import CompileError, ExecutionError
from .cache import opened_cache
from .launch import Family

KERNEL_DIRECTORY = Path(__file__).resolve().parent.parent / "kernels"

#: Fixed for every kernel. Contraction is off so that a kernel computes what its text says and the emulator agrees;
#: where a fused multiply-add is wanted it is written. Flush to zero is off by default and stays off.
NVRTC_OPTIONS = ("-std=c++17", "-fmad=false", "-lineinfo")


@cache
def read_source(family: str, directory: Path = KERNEL_DIRECTORY) -> str:
    """Return the text of ``<family>.cu`` with its headers written in, each once, and lines that name their origin."""
    return _flatten(f"{family}.cu", directory, set())


@cache
def read_header(name: str) -> str:
    """Return the text of a header, with those that it includes."""
    return _flatten(name, KERNEL_DIRECTORY, set())


def _flatten(name: str, directory: Path, seen: set[str]) -> str:
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((directory / name).read_text(encoding="utf-8").splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        if word == "#include":
            header = rest.strip().strip('"')
            if header not in seen:
                lines += [_flatten(header, directory, seen), f'#line {number + 1} "{name}"']
        elif line.strip() != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


#: From here on a kernel may be launched before the one in front of it has ended (``kernels/grid.cuh``).
FIRST_EARLY_ARCH = 90
_KERNEL_BODY = re.compile(r"(__global__[^;{}]*\)\s*\{)")


def enters_grid(arch: str) -> bool:
    """Whether kernels compiled for an architecture wait for those in front, so that they may be launched early."""
    return int(re.sub(r"\D", "", arch)) >= FIRST_EARLY_ARCH


def entered(text: str, arch: str) -> str:
    """The text with each kernel entering its grid before anything else, where the architecture knows of that."""
    if not enters_grid(arch):
        return text
    return read_header("grid.cuh") + "\n" + _KERNEL_BODY.sub(r"\1 enter_grid();", text)


def unit_text(family: Family, dtype: DType, arch: str) -> str:
    """The text that is compiled: the kernels, and what holds their structs against the host's."""
    text = entered(read_source(family.name), arch)
    return f'{text}\n#line 1 "{family.name} structs"\n{struct_asserts(family, dtype)}\n'


def struct_asserts(family: Family, dtype: DType) -> str:
    """C++ text that stops the compilation when a parameter struct differs from how the host packs it."""
    lines = []
    for kernel in family.kernels:
        size = struct.calcsize(kernel.struct.codes(dtype))
        name = f"{kernel.struct.name}<{dtype.cuda}>"
        lines.append(f'static_assert(sizeof({name}) == {size}, "{name} is packed differently on the host");')
    return "\n".join(lines)


@dataclass(frozen=True)
class Binary:
    """Machine code, the mangled name of each instantiation in it, and what the compiler said if it ran just now."""

    code: bytes
    lowered: dict[str, str]
    log: str = field(default="", compare=False)


def compile_kernel(family: Family, dtype: DType, expression: str, arch: str) -> Binary:
    """Return the machine code of one instantiation for an architecture such as ``sm_90``, if need be from NVRTC.

    One and not the group that it belongs to: a family's text takes 25 ms to parse and an instantiation up to some
    hundreds to compile, so that who waits for seven to use one waits for a second.
    """
    expressions = [expression]
    source = unit_text(family, dtype, arch)
    key = _digest(source, expressions, arch)
    name = f"{family.name}-{dtype.name}-{arch}-{key[:32]}.cubin"
    with opened_cache() as directory:
        kept = directory.load(name, key) if directory else None
        if kept is not None:
            return _unpack(kept)
        binary = compile_source(source, expressions, arch, what=f"{family.name}.cu for {dtype.name}, {expression}")
        if directory:
            directory.keep(name, key, _pack(binary))
    return binary


def compile_source(
    source: str, expressions: Sequence[str], arch: str, *, what: str, options: Sequence[str] = ()
) -> Binary:
    """Compile with NVRTC, with `options` beside those that every kernel has; needs no GPU."""
    nvrtc = load_nvrtc()
    program = nvrtc.createProgram(source, "dnnprims.cu", [], [])
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, (f"-arch={arch}", *NVRTC_OPTIONS, *options))
        except nvrtc.NVRTCError:
            log = nvrtc.getProgramLog(program)
            raise CompileError("compile", f"{what}, {arch} failed", log=log, source=source) from None
        virtual = arch.startswith("compute_")
        code = nvrtc.getPTX(program) if virtual else nvrtc.getCUBIN(program)
        lowered = {expression: nvrtc.getLoweredName(program, expression) for expression in expressions}
        log = nvrtc.getProgramLog(program).strip("\0\n")
    finally:
        nvrtc.destroyProgram(program)
    code = code.encode() if isinstance(code, str) else bytes(code)
    # CuPy cuts the last byte off a cubin as if it ended a string; the tools that read ELF files want it back.
    return Binary(code + b"\0" * (-len(code) % 8), lowered, log)


def load_nvrtc() -> Any:
    """Return CuPy's NVRTC module, or say what is missing."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:
        raise ExecutionError(
            "compile", f"NVRTC cannot be loaded: {error}", hint="install cupy-cuda12x[ctk] or cupy-cuda13x[ctk]"
        ) from error
    return nvrtc


@cache
def nvrtc_target(capability: int) -> str:
    """Return the architecture to compile for: the device's own, or the newest one known below it as PTX."""
    known = [int(arch) for arch in load_nvrtc().getSupportedArchs()]
    if capability in known:
        return f"sm_{capability}"
    older = [arch for arch in known if arch <= capability]
    if not older:
        raise ExecutionError(
            "compile",
            "the GPU is older than this NVRTC compiles for",
            got=f"compute capability {capability / 10}",
            expected=f">= {min(known) / 10}",
            hint="use the cuda12x extra",
        )
    return f"compute_{max(older)}"


def _digest(source: str, expressions: Sequence[str], arch: str) -> str:
    facts = [source, *expressions, arch, *NVRTC_OPTIONS, str(load_nvrtc().getVersion())]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


# What is kept of a binary: length of the JSON, JSON of the lowered names, machine code.
def _pack(binary: Binary) -> bytes:
    names = json.dumps(binary.lowered).encode()
    return struct.pack("<Q", len(names)) + names + binary.code


def _unpack(data: bytes) -> Binary:
    (length,) = struct.unpack_from("<Q", data)
    return Binary(data[8 + length :], json.loads(data[8 : 8 + length]))
