"""The emulator computes what a GPU does, and finds races, divergence, poison and bad accesses."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dnnprims.dtypes import BY_NAME, FLOATS, DType
from dnnprims.errors import CompileError
from dnnprims.runtime import emulator_compiler
from dnnprims.runtime.compiler import KERNEL_DIRECTORY
from dnnprims.runtime.emulator_compiler import Library, build
from dnnprims.runtime.launch import Family, Kernel, Struct

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++"),
    pytest.mark.usefixtures("own_kernel_cache"),
]

PARAMS = Struct("PlantedParams", ("y", "x"), (("factor", "A"), ("n", "i64")))

HEAD = """
#include "vec.cuh"
#include "reduce.cuh"
template <class T> struct PlantedParams { T* y; const T* x; acc_t<T> factor; i64 n; };
"""

BLOCK_SUM = """
template <class T> __global__ void __launch_bounds__(256) block_sum(const PlantedParams<T> p) {
  acc_t<T> sum = 0;
  for (i64 i = threadIdx.x; i < p.n; i += blockDim.x) sum += to_acc(p.x[blockIdx.x * p.n + i]);
  sum = block_reduce<256>(sum, Sum(), acc_t<T>(0));
  if (threadIdx.x == 0) p.y[blockIdx.x] = from_acc<T>(p.factor * sum);
}
"""

# Every thread reads what its neighbour in another warp wrote, with BARRIER in between.
REVERSE = """
template <class T> __global__ void reverse(const PlantedParams<T> p) {
  __shared__ T row[128];
  row[threadIdx.x] = p.x[threadIdx.x];
  BARRIER
  p.y[threadIdx.x] = row[127 - threadIdx.x];
}
"""


class Planted:
    """A family made of test text, with an executor that runs it."""

    def __init__(self, directory: Path, text: str, name: str = "planted") -> None:
        (directory / f"{name}.cu").write_text(HEAD + text)
        for header in KERNEL_DIRECTORY.glob("*.cuh"):
            shutil.copy(header, directory)
        self.directory, self.name = directory, name

    def library(self, entry: str, dtype: DType = BY_NAME["float32"], template: str = "") -> Library:
        names = [f"{entry}<{template or dtype.cuda}>"]
        family = Family(self.name, (Kernel(self.name, entry, PARAMS),), lambda _: {"all": names})
        return build(family, dtype, self.directory)

    def run(
        self,
        entry: str,
        y: np.ndarray,
        x: np.ndarray,
        *,
        grid: int = 1,
        block: int = 128,
        shared: int = 0,
        seed: int = 0,
        dtype: str = "float32",
        n: int | None = None,
    ) -> str | None:
        row = BY_NAME[dtype]
        length = x.size if n is None else n
        params = struct.pack(PARAMS.codes(row), y.ctypes.data, x.ctypes.data, 1.0, length)
        library = self.library(entry, row)
        expression = f"{entry}<{row.cuda}>"
        return library.launch(expression, (grid, 1, 1), block, params, shared_bytes=shared, seed=seed)


@pytest.mark.parametrize("dtype", [row.name for row in FLOATS])
def test_block_reduction(tmp_path: Path, dtype: str) -> None:
    planted = Planted(tmp_path, BLOCK_SUM)
    x = np.arange(5 * 300).reshape(5, 300) % 7 - 3
    for seed in (0, 1, 2):
        y = np.full(5, np.nan, BY_NAME[dtype].numpy)
        x_typed = x.astype(y.dtype)
        assert planted.run("block_sum", y, x_typed, grid=5, block=256, seed=seed, dtype=dtype, n=300) is None
        np.testing.assert_array_equal(y.astype(float), x.sum(1))


def test_launches_from_several_threads(tmp_path: Path) -> None:
    planted = Planted(tmp_path, BLOCK_SUM)
    planted.library("block_sum")
    x = np.ones((64, 256), np.float32)

    def launch(seed: int) -> bool:
        y = np.zeros(64, np.float32)
        problem = planted.run("block_sum", y, x, grid=64, block=256, seed=seed, n=256)
        return problem is None and bool((y == 256).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(launch, range(12)))


@pytest.mark.parametrize("barrier", ["__syncthreads();", ""])
def test_a_dropped_barrier_shows(tmp_path: Path, barrier: str) -> None:
    planted = Planted(tmp_path, REVERSE.replace("BARRIER", barrier))
    wrong = 0
    for seed in range(6):
        x = np.random.default_rng(seed).random(128, np.float32)
        y = np.zeros_like(x)
        assert planted.run("reverse", y, x, seed=seed) is None
        wrong += not np.array_equal(y, x[::-1])
    assert wrong == (0 if barrier else 6)


def test_a_dropped_trailing_barrier_shows(tmp_path: Path) -> None:
    # The second write to `total` may come before another warp has read the first.
    planted = Planted(
        tmp_path,
        """
        template <class T> __global__ void twice(const PlantedParams<T> p) {
          __shared__ T total;
          for (int round = 0; round < 2; ++round) {
            if (threadIdx.x == 0) total = p.x[round];
            __syncthreads();
            p.y[round * blockDim.x + threadIdx.x] = total;
          }
        }
        """,
    )
    x = np.array([1, 2], np.float32)
    wrong = []
    for seed in range(8):
        y = np.zeros(256, np.float32)
        planted.run("twice", y, x, seed=seed)
        wrong.append(not np.array_equal(y, np.repeat(x, 128)))
    assert any(wrong)


DIVERGENT = """
template <class T> __global__ void divergent(const PlantedParams<T> p) {
  if (p.n == 1 && threadIdx.x == 40) return;
  if (p.n == 2 && threadIdx.x == 40) __shfl_xor_sync(0xffffffffu, 1, 1);
  if (p.n == 3 && threadIdx.x >= 5) __syncthreads_or(0);
  if (p.n == 4 && threadIdx.x == 7) __ballot_sync(0xffffffffu, 1);
  if (p.n == 5) __shfl_sync(0x0000ffffu, 1, 0);
  if (p.n == 6) p.y[(i64)1 << 50] = T(0);
  __syncthreads();
  __shfl_sync(0xffffffffu, 1, 0);
  p.y[threadIdx.x] = T(1);
}
"""


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            1,
            r"block \(0, 0, 0\): __syncthreads at divergent.cu:13 in divergent code: "
            r"thread 0 waits, thread 40 has exited",
        ),
        (2, r"__shfl_xor_sync at divergent.cu:8 .*: thread 40 waits, thread 32 waits elsewhere: __syncthreads at"),
        (3, r"__syncthreads_or at divergent.cu:9: thread 5 meets threads at another kind of barrier"),
        (4, r"__ballot_sync at divergent.cu:10 in divergent code: thread 7 waits, thread 0 waits elsewhere: "),
        (5, r"__shfl_sync at divergent.cu:11: thread 16 is not in its own mask"),
        (6, r"thread 0: access to memory that is not there"),
    ],
)
def test_divergence_is_reported_and_the_next_launch_works(tmp_path: Path, case: int, words: str) -> None:
    planted = Planted(tmp_path, DIVERGENT, name="divergent")
    y, x = np.zeros(64, np.float32), np.zeros(1, np.float32)
    problem = planted.run("divergent", y, x, block=64, n=case)
    assert problem is not None
    assert re.search(words, problem)
    assert planted.run("divergent", y, x, block=64, n=0) is None
    assert (y == 1).all()


COLLECTIVES = """
template <class T> __global__ void collectives(const PlantedParams<T> p) {
  int lane = threadIdx.x & 31;
  unsigned all = 0xffffffffu;
  T* y = p.y + threadIdx.x * 12;
  y[0] = T(__shfl_sync(all, lane, 35));
  y[1] = T(__shfl_sync(all, lane, 1, 8));
  y[2] = T(__shfl_xor_sync(all, lane, 5));
  y[3] = T(__shfl_up_sync(all, lane, 3));
  y[4] = T(__shfl_down_sync(all, lane, 3, 16));
  y[5] = T(__ballot_sync(all, lane % 3 == 0) >> 16);
  y[6] = T(__any_sync(all, lane == 9) + 2 * __all_sync(all, lane < 31) + 4 * __all_sync(all, 1));
  unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  y[7] = T(__shfl_xor_sync(half, (double)lane, 1));
  y[8] = T(__popc(__ballot_sync(half, lane & 1)));
  y[9] = T(__syncthreads_count(threadIdx.x % 5 == 0));
  y[10] = T(__syncthreads_or(threadIdx.x == 77) + 2 * __syncthreads_and(threadIdx.x != 77));
  y[11] = T(__shfl_xor_sync(all, (long long)lane << 40, 16) >> 40);
}
"""


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_warp_collectives(tmp_path: Path, seed: int) -> None:
    planted = Planted(tmp_path, COLLECTIVES)
    y = np.zeros((96, 12), np.float32)
    assert planted.run("collectives", y, y, block=96, seed=seed) is None
    lane = np.arange(96) % 32
    ballot = sum(1 << k for k in range(0, 32, 3)) >> 16
    expected = [
        np.full(96, 3),
        lane // 8 * 8 + 1,
        lane ^ 5,
        np.where(lane < 3, lane, lane - 3),
        np.where(lane % 16 + 3 < 16, lane + 3, lane),
        np.full(96, ballot),
        np.full(96, 5),
        lane ^ 1,
        np.full(96, 8),
        np.full(96, 20),
        np.full(96, 1),
        lane ^ 16,
    ]
    np.testing.assert_array_equal(y, np.stack(expected, 1))


def test_a_warp_that_is_not_full(tmp_path: Path) -> None:
    # 40 threads: the second warp has 8 lanes, and what lanes that do not exist would bring is poison.
    planted = Planted(
        tmp_path,
        """
        template <class T> __global__ void tail(const PlantedParams<T> p) {
          p.y[threadIdx.x] = __shfl_down_sync(0xffffffffu, T(threadIdx.x), 4);
          __syncthreads();
        }
        """,
    )
    y = np.zeros(40, np.float32)
    assert planted.run("tail", y, y, block=40) is None
    np.testing.assert_array_equal(y[:28], np.arange(4, 32))
    np.testing.assert_array_equal(y[32:36], np.arange(36, 40))
    assert np.isnan(y[36:]).all()


def test_dynamic_shared_memory_is_poisoned_and_guarded(tmp_path: Path) -> None:
    planted = Planted(
        tmp_path,
        """
        template <class T> __global__ void scratch(const PlantedParams<T> p) {
          DYNAMIC_SHARED(T, room);
          p.y[global_thread()] = room[threadIdx.x];
          room[threadIdx.x + (p.n == 1)] = T(0);
        }
        """,
    )
    y = np.zeros(96, np.float32)
    assert planted.run("scratch", y, y, grid=3, block=32, shared=128, n=0) is None
    assert np.isnan(y).all()
    problem = planted.run("scratch", y, y, grid=3, block=32, shared=128, n=1)
    assert problem == "block (0, 0, 0): wrote past its 128 bytes of dynamic shared memory"
    assert planted.run("scratch", y, y, block=32, shared=1 << 20) == "at most 232448 bytes of shared memory"


CONVERSIONS = """
template <class T> __global__ void widen(const PlantedParams<T> p) {
  i64 i = global_thread();
  if (i < p.n) p.y[i] = half_bits_to_float((u16)i);
}
template <class T> __global__ void narrow(const PlantedParams<T> p) {
  i64 i = global_thread();
  if (i < p.n) p.y[i] = half_bits_to_float(float_to_half_bits(p.x[i]));
}
template <class T> __global__ void narrow_bfloat16(const PlantedParams<T> p) {
  i64 i = global_thread();
  if (i < p.n) p.y[i] = to_acc(from_acc<bfloat16>(p.x[i]));
}
"""


def test_every_half_is_widened_exactly(tmp_path: Path) -> None:
    y = np.zeros(1 << 16, np.float32)
    assert Planted(tmp_path, CONVERSIONS).run("widen", y, y, grid=512) is None
    expected = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(y, expected)
    assert (np.signbit(y) == np.signbit(expected))[~np.isnan(y)].all()


@pytest.mark.parametrize(("entry", "storage"), [("narrow", np.float16), ("narrow_bfloat16", ml_dtypes.bfloat16)])
def test_narrowing_rounds_to_nearest_even(tmp_path: Path, entry: str, storage: type) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(storage).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)]).astype(np.float64)
    with np.errstate(over="ignore"):
        ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    bits = np.random.default_rng(5).integers(0, 1 << 32, 1 << 15, dtype=np.uint64).astype(np.uint32)
    small = np.random.default_rng(6).uniform(-1e-4, 1e-4, 1 << 12).astype(np.float32)
    around = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    edges = np.array([65504, 65519.996, 65520, -65520, 1e30, np.inf, -np.inf, np.nan, -0.0, 2e-45], np.float32)
    x = np.concatenate([halves, bits.view(np.float32), small, *around, edges])
    y = np.zeros_like(x)
    assert Planted(tmp_path, CONVERSIONS).run(entry, y, x, grid=-(-x.size // 128)) is None
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(storage).astype(np.float32)
    np.testing.assert_array_equal(y, expected)
    assert (np.signbit(y) == np.signbit(expected))[~np.isnan(y)].all()


NO_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_emulator import BLOCK_SUM, Planted
planted = Planted(Path({directory!r}), BLOCK_SUM)
planted.library("block_sum")
x, y = np.ones(512, np.float32), np.zeros(2, np.float32)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
for mappings in (0, 2):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mappings * (33 << 20) + (1 << 20), hard))
    print(planted.run("block_sum", y, x, grid=2, block=256, n=256))
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(planted.run("block_sum", y, x, grid=2, block=256, n=256), y.tolist())
"""


def test_no_memory_for_the_stacks_is_reported(tmp_path: Path) -> None:
    """At the first thread and amid a block; the launch after it works."""
    text = NO_MEMORY.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    problem = "block (0, 0, 0): there is no memory for the stacks of its threads"
    assert done.stdout.splitlines() == [problem, problem, "None [256.0, 256.0]"], done.stderr


def test_what_does_not_compile_is_shown(tmp_path: Path) -> None:
    planted = Planted(tmp_path, "template <class T> __global__ void bad(const PlantedParams<T> p) { p.z = 1; }")
    with pytest.raises(CompileError, match="planted-float32 for the emulator failed") as caught:
        planted.library("bad")
    assert "planted.cu:5" in caught.value.log


def test_struct_that_is_packed_differently_does_not_compile(tmp_path: Path) -> None:
    planted = Planted(
        tmp_path, "\ntemplate <class T> struct OtherParams { T* y; int n; int more; i64 last; };" + BLOCK_SUM
    )
    other = Struct("OtherParams", ("y",), (("n", "i32"),))
    family = Family("planted", (Kernel("planted", "block_sum", other),), lambda _: {"all": ["block_sum<float>"]})
    with pytest.raises(CompileError, match="packed differently"):
        build(family, BY_NAME["float32"], planted.directory)


def test_many_instantiations_are_compiled_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator_compiler, "PIECE", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    Planted(
        tmp_path,
        """
        template <class T, int K> __global__ void scaled(const PlantedParams<T> p) {
          T v = block_reduce<32>(p.x[threadIdx.x], Sum(), T(0));
          if (threadIdx.x == 0) p.y[0] = K * v;
        }
        """,
        name="pieces",
    )
    names = [f"scaled<float, {k}>" for k in range(5)]
    family = Family("pieces", (Kernel("pieces", "scaled", PARAMS),), lambda _: {"few": names[:3], "more": names[2:]})
    library = build(family, BY_NAME["float32"], tmp_path)
    x, y = np.ones(32, np.float32), np.zeros(1, np.float32)
    for k, name in enumerate(names):
        params = struct.pack(PARAMS.codes(BY_NAME["float32"]), y.ctypes.data, x.ctypes.data, 1.0, 32)
        assert library.launch(name, (1, 1, 1), 32, params, seed=k) is None
        assert y[0] == 32 * k
