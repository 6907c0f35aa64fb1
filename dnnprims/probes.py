"""One small question to each layer of the installation: is it there, does it work, and what to do if not.

A machine without a GPU is well: the NumPy backend works there, so what is missing is WARN or SKIP. A driver
that is there and cannot be used all the way up to a launch is FAIL.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import sensors
from .runtime import cache, compiler

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"

OLDEST_NUMPY = (2, 1, 2)
OLDEST_CUPY = (14, 1)
OLDEST_CUDA = 12
OLDEST_CAPABILITY = 75
LITTLE_DEVICE_MEMORY = 512 << 20
LITTLE_DISK_SPACE = 200 << 20
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE

CPU_ONLY = "none without an NVIDIA GPU"
REPORT = "report this with the output of doctor --json"


@dataclass(frozen=True)
class Probe:
    """What one layer answered.

    Attributes
    ----------
    name : str
        The layer.
    status : str
        PASS, WARN (works, with less), FAIL, or SKIP (not asked, because a layer below is not there).
    detail : str
        What was seen.
    remedy : str
        What to do; empty where nothing is to be done.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


#: What the layers before this one answered.
Answers = dict[str, Probe]


def probe_python(_: Answers) -> Probe:
    """The interpreter."""
    system = f"{platform.system()} {platform.machine()}"
    return Probe("Python", PASS, f"{platform.python_version()} {platform.python_implementation()}, {system}")


def probe_numpy(_: Answers) -> Probe:
    """NumPy is new enough."""
    if version_tuple(np.__version__) < OLDEST_NUMPY:
        oldest = ".".join(map(str, OLDEST_NUMPY))
        return Probe("NumPy", FAIL, f"{np.__version__} is too old", f"pip install 'numpy>={oldest}'")
    return Probe("NumPy", PASS, np.__version__)


def probe_ml_dtypes(_: Answers) -> Probe:
    """bfloat16 exists on the host and rounds."""
    remedy = "pip install --upgrade ml_dtypes numpy"
    try:
        module = sensors.import_module("ml_dtypes")
        rounded = float(np.asarray([1.0 + 2.0**-9], module.bfloat16)[0])
    except Exception as error:
        return Probe("ml_dtypes", FAIL, _words(error), remedy)
    if rounded != 1.0:
        return Probe("ml_dtypes", FAIL, f"bfloat16 rounds 1 + 2^-9 to {rounded}", remedy)
    return Probe("ml_dtypes", PASS, module.__version__)


def probe_host_compiler(_: Answers) -> Probe:
    """g++, which the emulator backend compiles the kernels with."""
    remedy = "only for the emulator backend: install g++ (Debian and Ubuntu: apt install g++)"
    path = shutil.which(os.environ.get("CXX") or "g++")
    if path is None:
        return Probe("g++", WARN, "not found; the emulator backend cannot be used", remedy)
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Probe("g++", WARN, _words(error), remedy)
    return Probe("g++", PASS, (answer.stdout.splitlines() or [path])[0])


def probe_driver(_: Answers) -> Probe:
    """NVIDIA's driver loads, starts and sees a device."""
    try:
        driver = sensors.load_driver()
    except OSError:
        return Probe("driver", WARN, "no NVIDIA driver (libcuda): the NumPy backend is used", CPU_ONLY)
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        remedy = "in a container: start it with --gpus all; check CUDA_VISIBLE_DEVICES"
        return Probe("driver", WARN, "the driver sees no device; the NumPy backend is used", remedy)
    if status:
        remedy = "see whether nvidia-smi works; reboot after a driver update, or install the driver again"
        return Probe("driver", FAIL, f"cuInit returned {status}", remedy)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    if version.value < OLDEST_CUDA * 1000:
        remedy = f"install a driver for CUDA {OLDEST_CUDA} or later"
        return Probe("driver", FAIL, f"supports {cuda}, too old", remedy)
    return Probe("driver", PASS, f"supports {cuda}")


def probe_cupy(answers: Answers) -> Probe:
    """CuPy is installed once, imports, is new enough and fits the driver."""
    wheels, driver = sensors.cupy_wheels(), answers["driver"]
    missing = FAIL if driver.status == PASS else WARN
    install = f"pip install 'dnnprims[{_extra(driver)}]'"
    if len(wheels) > 1:
        remedy = f"pip uninstall {' '.join(wheels)}, then {install}"
        return Probe("CuPy", FAIL, f"installed {len(wheels)} times: {', '.join(wheels)}", remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cupy = sensors.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return Probe("CuPy", missing, _words(error), install)
        remedy = install if missing == FAIL else CPU_ONLY
        return Probe("CuPy", missing, "not installed; the CUDA backend cannot be used", remedy)
    except Exception as error:
        remedy = f"pip install --force-reinstall {' '.join(wheels) or 'cupy'}"
        return Probe("CuPy", missing, _words(error), remedy)
    if version_tuple(cupy.__version__) < OLDEST_CUPY:
        return Probe("CuPy", missing, f"{cupy.__version__} is too old", install)
    detail = f"{cupy.__version__} ({wheels[0] if wheels else 'not from a wheel'})"
    if wheels == ["cupy-cuda13x"] and _driver_major(driver) == OLDEST_CUDA:
        remedy = f"pip uninstall cupy-cuda13x, then {install}"
        return Probe("CuPy", FAIL, f"{detail} is for CUDA 13, the driver {driver.detail}", remedy)
    return Probe("CuPy", PASS, detail)


def probe_device(answers: Answers) -> Probe:
    """The device is new enough and has memory left."""
    if skipped := _needs("device", answers, "driver", "CuPy"):
        return skipped
    runtime = sensors.import_module("cupy").cuda.runtime
    try:
        facts = runtime.getDeviceProperties(runtime.getDevice())
        free, total = runtime.memGetInfo()
    except Exception as error:
        remedy = "see whether nvidia-smi lists the device and whether another process holds it exclusively"
        return Probe("device", FAIL, _words(error), remedy)
    capability = 10 * facts["major"] + facts["minor"]
    memory = f"{free >> 20} of {total >> 20} MiB free"
    detail = f"{_text(facts['name'])}, compute capability {capability / 10}, {memory}"
    if capability < OLDEST_CAPABILITY:
        remedy = f"use a GPU of compute capability {OLDEST_CAPABILITY / 10} or later"
        return Probe("device", FAIL, detail, remedy)
    if free < LITTLE_DEVICE_MEMORY:
        return Probe("device", WARN, detail, "end other processes on the device: nvidia-smi lists them")
    return Probe("device", PASS, detail)


def probe_nvrtc(answers: Answers) -> Probe:
    """NVRTC loads and compiles."""
    if skipped := _needs("NVRTC", answers, "CuPy"):
        return skipped
    has_driver = answers["driver"].status == PASS
    try:
        nvrtc = compiler.load_nvrtc()
        version = ".".join(map(str, nvrtc.getVersion()))
        source = "template <class T> __global__ void probe(T* y) { *y = T(1); }"
        compiler.compile_source(source, ["probe<float>"], compiler.nvrtc_target(OLDEST_CAPABILITY), what="probe")
    except Exception as error:
        remedy = f"pip install 'dnnprims[{_extra(answers['driver'])}]', which brings NVRTC"
        return Probe("NVRTC", FAIL if has_driver else WARN, _words(error), remedy)
    return Probe("NVRTC", PASS, f"{version}, compiles")


def probe_launch(answers: Answers) -> Probe:
    """One kernel of the library runs on the device and its result is right, to the bit."""
    if skipped := _needs("launch", answers, "device", "NVRTC"):
        return skipped
    remedy = "run `python -m dnnprims verify activation --backend cuda` and report what it prints"
    x = np.arange(-1000, 1001, dtype=np.float32)
    try:
        y = sensors.run_activation(x)
    except Exception as error:
        return Probe("launch", FAIL, _words(error), remedy)
    wrong = int(np.count_nonzero(y != np.maximum(x, 0)))
    if wrong:
        return Probe("launch", FAIL, f"relu is wrong in {wrong} of {x.size} elements", remedy)
    return Probe("launch", PASS, f"relu of {x.size} elements is right")


def probe_blaslt(answers: Answers) -> Probe:
    """cuBLASLt loads and a fully connected layer of small integers is right, to the bit."""
    if skipped := _needs("cuBLASLt", answers, "device", "NVRTC"):
        return skipped
    remedy = f"pip install 'dnnprims[{_extra(answers['driver'])}]': it brings cuBLASLt; GEMM is slow without"
    try:
        version = sensors.blaslt_version()
    except Exception as error:
        return Probe("cuBLASLt", FAIL, _words(error), remedy)
    x = (np.arange(24 * 40, dtype=np.float32) % 7 - 3).reshape(24, 40)
    w = (np.arange(16 * 40, dtype=np.float32) % 5 - 2).reshape(16, 40)
    try:
        y = sensors.run_fully_connected(x, w)
    except Exception as error:
        return Probe("cuBLASLt", FAIL, _words(error), remedy)
    if not np.array_equal(y, x @ w.T):
        return Probe("cuBLASLt", FAIL, f"{version}: fc_forward is wrong", REPORT)
    return Probe("cuBLASLt", PASS, f"{version}, fc_forward is right")


def probe_cache(_: Answers) -> Probe:
    """The kernel cache is a directory of the user's own that nobody else writes to."""
    path = cache.cache_path()
    problem = cache.cache_problem(path)
    if problem is None:
        free = shutil.disk_usage(path).free
        detail = f"{path}, {free >> 20} MiB free"
        if free < LITTLE_DISK_SPACE:
            return Probe("cache", WARN, detail, "make room, or set DNNPRIMS_CACHE_DIR to another disk")
        return Probe("cache", PASS, detail)
    if problem.startswith("cannot"):
        remedy = "set DNNPRIMS_CACHE_DIR to a directory that you can write; without, each process compiles"
        return Probe("cache", WARN, f"{path} {problem}", remedy)
    remedy = f"chmod 700 {path}, or set DNNPRIMS_CACHE_DIR to a directory of your own; unused until then"
    return Probe("cache", FAIL, f"{path} {problem}", remedy)


#: In the order of the layers: a probe sees the answers of those before it.
PROBES: dict[str, Callable[[Answers], Probe]] = {
    "Python": probe_python,
    "NumPy": probe_numpy,
    "ml_dtypes": probe_ml_dtypes,
    "g++": probe_host_compiler,
    "driver": probe_driver,
    "CuPy": probe_cupy,
    "device": probe_device,
    "NVRTC": probe_nvrtc,
    "launch": probe_launch,
    "cuBLASLt": probe_blaslt,
    "cache": probe_cache,
}


def examine() -> list[Probe]:
    """Ask every layer; one that breaks in a way nobody thought of is FAIL too."""
    answers: Answers = {}
    for name, probe in PROBES.items():
        try:
            answers[name] = probe(answers)
        except Exception as error:
            answers[name] = Probe(name, FAIL, _words(error), REPORT)
    return list(answers.values())


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "14.2.0rc1" is (14, 2, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()


def _needs(name: str, answers: Answers, *layers: str) -> Probe | None:
    absent = [layer for layer in layers if answers[layer].status not in (PASS, WARN) or _is_missing(answers[layer])]
    return Probe(name, SKIP, f"needs {' and '.join(absent)}") if absent else None


def _is_missing(probe: Probe) -> bool:
    return probe.name in ("driver", "CuPy", "NVRTC") and probe.status != PASS


def _driver_major(driver: Probe) -> int:
    found = re.search(r"CUDA (\d+)", driver.detail)
    return int(found.group(1)) if found else 0


def _extra(driver: Probe) -> str:
    return "cuda12x" if _driver_major(driver) == OLDEST_CUDA else "cuda13x"


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
