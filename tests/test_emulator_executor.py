"""The executor of the emulator, and AddressSanitizer under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_emulator import BLOCK_SUM, DIVERGENT, PARAMS, Planted

from dnnprims.dtypes import BY_NAME
from dnnprims.errors import BadParamError, ExecutionError
from dnnprims.runtime import emulator_compiler
from dnnprims.runtime.emulator import EmulatorExecutor
from dnnprims.runtime.emulator_compiler import build
from dnnprims.runtime.launch import Family, FillStep, Kernel, KernelStep, Live

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++"),
    pytest.mark.usefixtures("own_kernel_cache"),
]

# -- the executor --------------------------------------------------------------------------------------------


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatorExecutor:
    planted = Planted(tmp_path, BLOCK_SUM + DIVERGENT)
    names = ["block_sum<float>", "divergent<float>"]
    family = Family("planted", (SUM, Kernel("planted", "divergent", PARAMS)), lambda _: {"all": names})
    monkeypatch.setattr("dnnprims.runtime.emulator.build", lambda f, d: build(f, d, planted.directory))
    return EmulatorExecutor({"planted": family})


SUM = Kernel("planted", "block_sum", PARAMS)


def step(
    kernel: Kernel = SUM, *, grid: int = 2, scalars: tuple[object, ...] = (Live(0), 64), **changes: object
) -> KernelStep:
    facts: dict[str, object] = {"group": "all", "grid": (grid, 1, 1), "scalars": scalars}
    facts |= {"template": ("float",), "block": 256, "pointers": (0, 1)}
    return KernelStep(kernel, BY_NAME["float32"], **{**facts, **changes})  # type: ignore[arg-type]


def test_realised_step_takes_addresses_and_live_values(executor: EmulatorExecutor) -> None:
    run = executor.realise(step(), slots=(3, 0))
    x = executor.from_numpy(np.ones((2, 64), np.float32))
    y, address = executor.empty((2,), BY_NAME["float32"])
    assert np.isnan(y).all()
    assert (address, address % 16) == (y.ctypes.data, 0)
    for factor in (1.0, 0.5):
        run([x.ctypes.data, 0, 0, address], 0, (factor,))
        np.testing.assert_array_equal(y, 64 * factor)
    executor.realise(FillStep(0, 4), slots=(3,))([0, 0, 0, address], 0, ())
    np.testing.assert_array_equal(y, [0, 32])


def test_failed_launch_names_kernel_and_shape(executor: EmulatorExecutor) -> None:
    divergent = Kernel("planted", "divergent", PARAMS)
    run = executor.realise(step(divergent, grid=1, block=64, scalars=(1.0, 1)), slots=(0, 1))
    y = np.zeros(64, np.float32)
    words = r"launch: divergent<float> \(float32, grid \(1, 1, 1\), block 64, 0 bytes.*\): block \(0, 0, 0\): __sync"
    with pytest.raises(ExecutionError, match=words):
        run([y.ctypes.data, y.ctypes.data], 0, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": 0}, "has an empty grid"),
        ({"template": ("double",)}, "is not among the instantiations of family planted"),
        ({"scalars": (1.0,)}, r"\(pointers, scalars\) of PlantedParams number \(2, 2\), got \(2, 1\)"),
        ({"scalars": (1.0, 2.5)}, "PlantedParams cannot be packed"),
    ],
)
def test_step_that_cannot_be_launched(executor: EmulatorExecutor, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ExecutionError, match=words):
        executor.realise(step(**changes), slots=(0, 1))  # type: ignore[arg-type]


def test_scratch_memory(executor: EmulatorExecutor) -> None:
    owner, pointer = executor.buffer(1000)
    assert pointer % 256 == 0
    assert owner is not None
    assert executor.download(pointer, 1000) == b"\xff" * 1000
    executor.upload(pointer, b"abc", 0)
    assert executor.download(pointer, 4) == b"abc\xff"


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNPRIMS_EMULATOR_SEED", "7")
    assert EmulatorExecutor({}).schedule_seed == 7
    monkeypatch.setenv("DNNPRIMS_EMULATOR_SEED", "seven")
    with pytest.raises(BadParamError, match="DNNPRIMS_EMULATOR_SEED is no seed: got 'seven'"):
        EmulatorExecutor({})
    monkeypatch.setenv("DNNPRIMS_EMULATOR_SANITIZE", "memory")
    with pytest.raises(BadParamError, match="got 'memory', expected address"):
        emulator_compiler.sanitizer_options()
    monkeypatch.setenv("DNNPRIMS_EMULATOR_SANITIZE", "address")
    with pytest.raises(ExecutionError, match="LD_PRELOAD="):
        emulator_compiler.sanitizer_options()


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator_compiler.toolchain.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    try:
        with pytest.raises(ExecutionError, match=r"no g\+\+ .*apt install g\+\+.* numpy backend"):
            EmulatorExecutor({})
    finally:
        emulator_compiler.toolchain.cache_clear()


# -- AddressSanitizer ----------------------------------------------------------------------------------------


def _asan() -> str | None:
    if shutil.which("g++") is None:
        return None
    path = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) and os.path.exists(path) else None


SANITIZED = """
import struct, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_emulator import BLOCK_SUM, DIVERGENT, PARAMS, Planted
planted = Planted(Path({directory!r}), BLOCK_SUM + DIVERGENT)
x, y = np.ones(512, np.float32), np.zeros(64, np.float32)
for seed in range(3):
    assert planted.run("block_sum", y, x, grid=2, block=256, seed=seed, n=256) is None
    assert (y[:2] == 256).all()
    assert "has exited" in planted.run("divergent", y, x, block=64, n=1, seed=seed)
print("so far so good", flush=True)
planted.run("block_sum", y, x, grid=2, block=256, n=257)
print("not reached")
"""


@pytest.mark.skipif(_asan() is None, reason="no libasan beside g++")
def test_address_sanitizer_finds_a_read_out_of_bounds(tmp_path: Path) -> None:
    text = textwrap.dedent(SANITIZED).format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    environment = {
        **os.environ,
        "LD_PRELOAD": str(_asan()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "DNNPRIMS_EMULATOR_SANITIZE": "address",
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "so far so good\n", done.stderr
    assert "heap-buffer-overflow" in done.stderr
    assert "planted.cu" in done.stderr
