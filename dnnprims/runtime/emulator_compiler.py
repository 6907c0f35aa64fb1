"""From a kernel's text to a shared object for the CPU: compile with g++, keep the result in the kernel cache.

A library holds every instantiation of one family for one dtype. ``emulator.h`` makes the kernel dialect plain
C++, ``emulator_schedule.h`` runs what was compiled. ``CXX`` names another compiler than g++, and
``DNNPRIMS_EMULATOR_SANITIZE`` (``address`` or ``address,undefined``) watches memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ..dtypes import DType
from ..errors import BadParamError, CompileError, ExecutionError
from .cache import Directory, Unusable, opened, opened_cache
from .compiler import KERNEL_DIRECTORY, read_source, struct_asserts
from .launch import Family

HEADER_DIRECTORY = Path(__file__).resolve().parent
HEADERS = ("emulator.h", "emulator_schedule.h")

#: Compiling takes longer than running, so -O1. Contraction is off, integers wrap and types may alias, as on
#: the GPU; what distributions add (_FORTIFY_SOURCE, shadow stacks) refuses jumps between fibers. Unique
#: symbols would be shared between libraries.
OPTIONS = (
    *("-std=c++17", "-O1", "-w", "-fPIC", "-march=native", "-nostdinc++", "-DDNNPRIMS_EMULATOR"),
    *("-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-fno-strict-aliasing"),
    *("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fno-gnu-unique", "-U_FORTIFY_SOURCE"),
    *(("-fcf-protection=none",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
SANITIZERS = ("", "address", "address,undefined")

#: Instantiations from which on a library is compiled in several pieces at once.
PIECE = 60

#: Made once: ctypes forgets an array type that nobody holds, and leaves a cycle behind.
_GRID = ctypes.c_uint * 3
_ENTRY_TYPES = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p)

#: Launches of all libraries come one after another: the schedule lives in static memory.
_launching = threading.Lock()
_building = threading.RLock()
_libraries: dict[str, Library] = {}


class Library:
    """The compiled kernels of one family for one dtype.

    Parameters
    ----------
    path : Path
        Shared object.
    expressions : sequence of str
        The instantiations in it, in the order of its entries.
    """

    def __init__(self, path: Path, expressions: Sequence[str]) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self._entries = {name: getattr(self._loaded, f"entry_{i}") for i, name in enumerate(expressions)}
        for entry in self._entries.values():
            entry.argtypes = _ENTRY_TYPES
        self._report = self._loaded.emulator_report
        self._report.restype = ctypes.c_char_p
        self._set_seed = self._loaded.emulator_set_seed
        self._set_seed.argtypes = (ctypes.c_ulonglong,)

    def __contains__(self, expression: str) -> bool:
        return expression in self._entries

    def launch(
        self,
        expression: str,
        grid: tuple[int, int, int],
        block: int,
        params: bytes,
        *,
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> str | None:
        """Run one grid on packed parameters; return what went wrong, or None."""
        with _launching:
            self._set_seed(seed)
            if not self._entries[expression](_GRID(*grid), block, shared_bytes, params):
                return None
            return str(self._report().decode())


def build(family: Family, dtype: DType, source_dir: Path = KERNEL_DIRECTORY) -> Library:
    """Return the library of a family for a dtype, from the cache where it is there.

    Raises
    ------
    CompileError
        g++ refuses the text.
    ExecutionError
        There is no g++, or the sanitizer is not loaded.
    """
    groups = family.instances(dtype)
    expressions = list(dict.fromkeys(name for group in groups.values() for name in group))
    kernels, asserts = read_source(family.name, source_dir), struct_asserts(family, dtype)
    source = f'{kernels}\n#line 1 "{family.name} structs"\n{asserts}\n'
    return build_source(source, expressions, f"{family.name}-{dtype.name}")


def build_source(source: str, expressions: Sequence[str], name: str) -> Library:
    """The same for flattened text and a list of instantiations."""
    options = OPTIONS + sanitizer_options()
    facts = (*(_header(header) for header in HEADERS), source, *expressions, *options, *toolchain())
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    with _building:
        if digest not in _libraries:
            file = f"{name}-emulator-{digest[:32]}.so"
            _libraries[digest] = _load_or_compile(file, digest, source, expressions, options, name)
        return _libraries[digest]


def _load_or_compile(
    file: str, key: str, source: str, expressions: Sequence[str], options: tuple[str, ...], name: str
) -> Library:
    with opened_cache() as cache:
        if found := _load(cache, file, key, expressions) if cache else None:
            return found
        code = _compile(source, expressions, options, name)
        if found := _keep(cache, file, key, code, expressions) if cache else None:
            return found
    private = Path(_private_directory().name)
    try:
        with opened(private) as directory:
            found = _keep(directory, file, key, code, expressions)
    except Unusable as problem:
        raise ExecutionError("compile", f"{name} has nowhere to be loaded from: {private} {problem}") from None
    if not found:
        raise ExecutionError("compile", f"{name} was compiled for the emulator but cannot be loaded")
    return found


def _keep(directory: Directory, file: str, key: str, code: bytes, expressions: Sequence[str]) -> Library | None:
    directory.keep(file, key, code)
    return _load(directory, file, key, expressions)


def sanitizer_options() -> tuple[str, ...]:
    """Return the options for ``DNNPRIMS_EMULATOR_SANITIZE``; raise where the sanitizer cannot work."""
    wanted = os.environ.get("DNNPRIMS_EMULATOR_SANITIZE", "")
    if wanted not in SANITIZERS:
        raise BadParamError(
            "emulator",
            "is unknown",
            param="DNNPRIMS_EMULATOR_SANITIZE",
            got=repr(wanted),
            expected="address or address,undefined",
        )
    if not wanted:
        return ()
    if not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise ExecutionError(
            "emulator",
            "AddressSanitizer must be loaded before Python",
            hint="run LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 python ...",
        )
    # Elsewhere integers wrap, as on the GPU; here an overflow is found. The first finding ends the process.
    return (f"-fsanitize={wanted}", "-fno-sanitize-recover=all", "-fno-wrapv", "-g1", "-fno-omit-frame-pointer")


@cache
def _header(name: str) -> str:
    return (HEADER_DIRECTORY / name).read_text(encoding="utf-8")


@cache
def toolchain() -> tuple[str, str, str]:
    """Path and version of the compiler, and what -march=native depends on."""
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise ExecutionError(
            "emulator",
            "there is no g++ to compile the kernels with",
            hint="install it (apt install g++, dnf install gcc-c++), or use the numpy backend",
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return compiler, version, features[0] if features else platform.processor()


@cache
def _private_directory() -> tempfile.TemporaryDirectory[str]:
    """Where libraries live for this process alone, when the cache cannot be used."""
    return tempfile.TemporaryDirectory(prefix="dnnprims-")


def _load(directory: Directory, file: str, key: str, expressions: Sequence[str]) -> Library | None:
    """Load an entry whose seal holds: the dynamic loader itself trusts whatever it is given."""
    if directory.load(file, key) is None:
        return None
    # The reports of a sanitizer read the file again, when the directory is no longer open.
    path = directory.path / file if os.environ.get("DNNPRIMS_EMULATOR_SANITIZE") else directory.locate(file)
    try:
        return Library(path, expressions)
    except (OSError, AttributeError, ValueError):
        return None


def _pieces(source: str, expressions: Sequence[str]) -> list[str]:
    """Return the C++ text of each piece: the kernels, and the entries of its share of the instantiations."""
    count = max(1, min(os.cpu_count() or 1, -(-len(expressions) // PIECE)))
    entries = [f"EMULATOR_ENTRY(entry_{i}, {expression})" for i, expression in enumerate(expressions)]
    head = ['#include "emulator.h"', source, '#line 1 "entries"']
    texts = ["\n".join([*head, *entries[k::count]]) for k in range(count)]
    return [f"{texts[0]}\nEMULATOR_SERVICES\n", *texts[1:]]


def _compile(source: str, expressions: Sequence[str], options: tuple[str, ...], name: str) -> bytes:
    pieces = _pieces(source, expressions)
    with tempfile.TemporaryDirectory(prefix="dnnprims-") as directory:
        objects = [str(Path(directory, f"{name}-{k}.o")) for k in range(len(pieces))]

        def compile_piece(k: int) -> None:
            text = objects[k][:-1] + "cpp"
            Path(text).write_text(pieces[k], encoding="utf-8")
            _run_compiler([*options, f"-I{HEADER_DIRECTORY}", "-c", text, "-o", objects[k]], name, pieces[k])

        with ThreadPoolExecutor(len(pieces)) as pool:
            list(pool.map(compile_piece, range(len(pieces))))
        product = Path(directory, "product.so")
        _run_compiler([*options, "-shared", *objects, "-o", str(product), "-lm"], name, "")
        return product.read_bytes()


def _run_compiler(arguments: list[str], name: str, text: str) -> None:
    done = subprocess.run([toolchain()[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CompileError("compile", f"{name} for the emulator failed", log=done.stderr, source=text)
