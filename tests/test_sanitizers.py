"""The kernels under AddressSanitizer and UBSan: the conformance cases are clean, and planted faults are found.

Each array of a case lies in an allocation of its very size (`sanitized.py`), so that one element too far is seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dnnprims.conformance import FAMILIES
from dnnprims.conformance.cases import DTYPES
from dnnprims.runtime.compiler import KERNEL_DIRECTORY


def _library(name: str) -> str:
    """Path of a library of g++'s, empty where it has none."""
    if shutil.which("g++") is None:
        return ""
    path = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) and os.path.exists(path) else ""


ROOT = Path(__file__).resolve().parent.parent
ASAN = _library("libasan.so")

pytestmark = pytest.mark.skipif(not (ASAN and _library("libubsan.so")), reason="no libasan and libubsan beside g++")

#: Stacks of fibers are no stacks that returned frames could be looked for in; Python itself never frees all it has.
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"


def sanitized(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `sanitized.py` in a process with the sanitizer loaded before Python, and Python's memory from malloc."""
    environment = {
        **os.environ,
        "LD_PRELOAD": ASAN,
        "ASAN_OPTIONS": ASAN_OPTIONS,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(ROOT)]),
        "DNNPRIMS_EMULATOR_SANITIZE": "address,undefined",
        **({"DNNPRIMS_CACHE_DIR": str(cache)} if cache else {}),
    }
    command = [sys.executable, str(Path(__file__).with_name("sanitized.py")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)


def require_clean(*arguments: str) -> None:
    """Every case passes and nothing is found."""
    done = sanitized(*arguments)
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-3000:]}"
    assert "runtime error" not in done.stderr
    assert " cases passed" in done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_are_clean(family: str) -> None:
    """The corners, by turns in the type that is its own accumulator and in one that is not, and random cases."""
    require_clean(family, "--dtype", "float32", "--dtype", "bfloat16", "--alternate", "--cases", "2")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_more_cases_are_clean(family: str, dtype: str) -> None:
    """All corners in every type, and more random cases."""
    require_clean(family, "--dtype", dtype, "--cases", "30")


class Planted(NamedTuple):
    """A fault in a kernel's text, the case that meets it, and what is found."""

    file: str
    text: str
    planted: str
    case: str
    found: str


PLANTED = {
    "read one element behind the array": Planted(
        "tensor.cu", "to_acc(p.a[at])", "to_acc(p.a[at + 1])", "add_tensor shape=33 addend=33", "heap-buffer-overflow"
    ),
    "read one element before the array": Planted(
        "tensor.cu", "load<VEC>(p.a, i)", "load<VEC>(p.a, i - 1)", "add_tensor shape=33 addend=33",
        "heap-buffer-overflow",
    ),
    "write one element behind the array": Planted(
        "tensor.cu", "p.y[at] = from_acc<T>(alpha", "p.y[at + 1] = from_acc<T>(alpha",
        "scale_tensor shape=33 alpha=2.0", "heap-buffer-overflow",
    ),
    "read of one of many strided elements behind the array": Planted(
        "tensor.cu", "static_cast<const S*>(p.x)[at.in[1]]", "static_cast<const S*>(p.x)[at.in[1] + 1]",
        "cast shape=7x33 target=float16 place=strided", "heap-buffer-overflow",
    ),
    "read of scratch memory that no block wrote": Planted(
        "gradient.cu", "i < p.count", "i <= p.count", "global_norm shapes=5000,3", "use-after-poison",
    ),
    "read of shared memory behind an array": Planted(
        "reduce.cuh", "(threadIdx.x & 31) < BLOCK / 32 ? partial", "true ? partial", "global_norm shapes=5000,3",
        "out of bounds for type 'double [8]'",
    ),
    "overflow of an integer with a sign": Planted(
        "tensor.cu", "present<VEC>(p.size, i);\n  const T value",
        "present<VEC>(p.size, (int)i * 0x10000000);\n  const T value",
        "set_tensor shape=33 value=1.0", "signed integer overflow",
    ),
    "pack at an address that is no multiple of it": Planted(
        "tensor.cu", "load<VEC>(p.y, i)", "load<VEC>(p.y + 1, i)", "scale_tensor shape=33 alpha=2.0",
        "misaligned address",
    ),
}  # fmt: skip


def planted_case(fault: Planted) -> tuple[str, str]:
    """Arguments that run the case alone."""
    return "--case", f"{fault.case} dtype=float32 seed=3"


def test_cases_of_the_planted_faults_are_clean() -> None:
    """What is found below is the fault."""
    done = sanitized(*(word for fault in PLANTED.values() for word in planted_case(fault)))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("what", PLANTED)
def test_planted_fault_is_found(what: str, tmp_path: Path) -> None:
    """The process ends with a report that names the kernel's file."""
    fault = PLANTED[what]
    kernels = shutil.copytree(KERNEL_DIRECTORY, tmp_path / "kernels")
    text = (kernels / fault.file).read_text()
    assert text.count(fault.text) == 1
    (kernels / fault.file).write_text(text.replace(fault.text, fault.planted))
    done = sanitized(*planted_case(fault), "--kernels", str(kernels), cache=tmp_path / "cache")
    assert done.returncode != 0
    assert fault.found in done.stderr, done.stderr[-2000:]
    assert fault.file in done.stderr
