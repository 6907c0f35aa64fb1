"""From a kernel's text to machine code: flatten the includes, compile with NVRTC, keep the result in a cache.

The unit of compilation is one group of instantiations of one family for one dtype. A cache entry is found by a digest
of all that shapes it (flattened text, instantiations, options, NVRTC version, architecture), so a changed header or
option never meets a stale binary. The cache is code: it is used only in a directory that nobody else can write to.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import CompileError, ExecutionError
from .launch import Family

KERNEL_DIRECTORY = Path(__file__).resolve().parent.parent / "kernels"

#: Fixed for every kernel. Contraction is off so that a kernel computes what its text says and the emulator agrees;
#: where a fused multiply-add is wanted it is written. Flush to zero is off by default and stays off.
NVRTC_OPTIONS = ("-std=c++17", "-fmad=false", "-lineinfo")

_FORMAT = b"dnnprims-cubin-1\0"


@cache
def read_source(family: str, directory: Path = KERNEL_DIRECTORY) -> str:
    """Return the text of ``<family>.cu`` with its headers written in, each once, and lines that name their origin."""
    return _flatten(f"{family}.cu", directory, set())


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
    """Machine code and the mangled name of each instantiation in it."""

    code: bytes
    lowered: dict[str, str]


def compile_group(family: Family, dtype: DType, group: str, arch: str) -> Binary:
    """Return the machine code of a group for an architecture such as ``sm_90``, from the cache where it is there."""
    expressions = family.instances(dtype)[group]
    source = f'{read_source(family.name)}\n#line 1 "{family.name} structs"\n{struct_asserts(family, dtype)}\n'
    digest = _digest(source, expressions, arch)
    directory = cache_directory()
    path = directory / f"{family.name}-{dtype.name}-{arch}-{digest[:32]}.cubin" if directory else None
    binary = _read_entry(path) if path else None
    if binary is None:
        binary = compile_source(source, expressions, arch, what=f"{family.name}.cu for {dtype.name}, group {group}")
        if path:
            write_atomically(path, _pack_entry(binary))
    return binary


def compile_source(source: str, expressions: Sequence[str], arch: str, *, what: str) -> Binary:
    """Compile with NVRTC; needs no GPU."""
    nvrtc = load_nvrtc()
    program = nvrtc.createProgram(source, "dnnprims.cu", [], [])
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, (f"-arch={arch}", *NVRTC_OPTIONS))
        except nvrtc.NVRTCError:
            log = nvrtc.getProgramLog(program)
            raise CompileError("compile", f"{what}, {arch} failed", log=log, source=source) from None
        virtual = arch.startswith("compute_")
        code = nvrtc.getPTX(program) if virtual else nvrtc.getCUBIN(program)
        lowered = {expression: nvrtc.getLoweredName(program, expression) for expression in expressions}
    finally:
        nvrtc.destroyProgram(program)
    code = code.encode() if isinstance(code, str) else bytes(code)
    # CuPy cuts the last byte off a cubin as if it ended a string; the tools that read ELF files want it back.
    return Binary(code + b"\0" * (-len(code) % 8), lowered)


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


# An entry: format mark, SHA-256 of the rest, length of the JSON, JSON of the lowered names, machine code. The digest
# guards against damage, not against malice: that is what the directory's permissions are for.
def _pack_entry(binary: Binary) -> bytes:
    names = json.dumps(binary.lowered).encode()
    payload = struct.pack("<Q", len(names)) + names + binary.code
    return _FORMAT + hashlib.sha256(payload).digest() + payload


def _read_entry(path: Path) -> Binary | None:
    try:
        data = path.read_bytes()
        head = len(_FORMAT) + 32
        payload = data[head:]
        if data[: len(_FORMAT)] != _FORMAT or hashlib.sha256(payload).digest() != data[len(_FORMAT) : head]:
            return None
        (length,) = struct.unpack_from("<Q", payload)
        return Binary(payload[8 + length :], json.loads(payload[8 : 8 + length]))
    except (OSError, ValueError, struct.error):
        return None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a cache entry so that no reader sees half of it; a full or read-only disk only costs the caching."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warnings.warn(
            f"dnnprims: the kernel cache {path.parent} cannot be written: {error}", RuntimeWarning, stacklevel=2
        )


def cache_path() -> Path:
    """Return where the cache is kept: ``DNNPRIMS_CACHE_DIR``, else the user's cache directory."""
    given = os.environ.get("DNNPRIMS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(given) if given else Path(base) / "dnnprims"


def cache_problem(path: Path) -> str | None:
    """Return why the directory must not be used as a cache, or None. It is made, for the user alone, when missing."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        return f"cannot be made: {error}"
    if stat.S_ISLNK(facts.st_mode):
        return "is a symbolic link"
    if facts.st_uid != os.geteuid():
        return f"belongs to user {facts.st_uid}, not to you"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(facts.st_mode):o})"
    return None if os.access(path, os.W_OK | os.X_OK) else "cannot be written"


_warned: set[Path] = set()
_warned_lock = threading.Lock()


def cache_directory() -> Path | None:
    """Return the directory of the cache, or None, with one warning, when it must not be used."""
    path = cache_path()
    problem = cache_problem(path)
    if problem is None:
        return path
    with _warned_lock:
        if path not in _warned:
            _warned.add(path)
            warnings.warn(
                f"dnnprims: the kernel cache {path} is not used: it {problem}; set DNNPRIMS_CACHE_DIR or mend it",
                RuntimeWarning,
                stacklevel=3,
            )
    return None
