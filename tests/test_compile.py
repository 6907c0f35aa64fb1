"""Every kernel compiles for every architecture, without a GPU, and keeps to the rules; in every dtype with ``-m slow``.

The rules (no spill, no atomic, 16 bytes at once, ...) and their exceptions are in ``tools/inspection/rules.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from dnnprims.dtypes import BY_NAME, FLOATS, DType
from dnnprims.errors import CompileError
from dnnprims.ops import FAMILIES
from dnnprims.runtime import compiler
from dnnprims.runtime.launch import Family, Kernel, Struct
from inspection import machine_code, rules, units

pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")


#: Where the machine code is looked at, too: taking it apart costs a third of the compilation, and the PTX, which is
#: looked at for each, has every atomic that the machine code can have. ``tools/inspect_kernel.py`` does all.
DISASSEMBLED = 90

needs_disassembler = pytest.mark.skipif(
    machine_code.disassembler() is None, reason="there is no nvdisasm: pip install dnnprims[compile]"
)


#: Where every dtype is compiled each time: the least architecture, the one that the kernels are tuned on, the newest.
IN_EVERY_DTYPE = (75, 90, 120)


def instantiations() -> Iterator[Any]:
    """Each family for each dtype and architecture.

    The architectures between differ from their neighbours in limits alone, and all of them together would take half of
    the time of all tests: each time they get each family in one dtype, in turn; the rest is marked as slow.
    """
    for place, family in enumerate(FAMILIES.values()):
        for turn, arch in enumerate(units.ARCHITECTURES):
            compiled = [row for row in FLOATS if units.has_kernels(family, row, arch)]
            for k, row in enumerate(compiled):
                each_time = arch in IN_EVERY_DTYPE or k == (place + turn) % len(compiled)
                marks = () if each_time else pytest.mark.slow
                yield pytest.param(family, row, arch, id=f"{family.name}-{row.name}-{arch}", marks=marks)


@pytest.mark.parametrize(("family", "dtype", "arch"), list(instantiations()))
def test_every_instantiation_compiles(family: Family, dtype: DType, arch: int) -> None:
    """All groups of a family in one go, with the host's packing of each struct asserted, and within the rules."""
    unit = units.compile_family(family, dtype, arch)
    expected = {expression for group in family.instances(dtype).values() for expression in group}
    assert {row.kernel for row in unit.resources} == expected
    machine = arch == DISASSEMBLED and machine_code.disassembler() is not None
    broken = rules.violations(unit, machine=machine)
    assert not broken, "\n".join(broken)


SMALL = Family(
    "reduce_test",
    (Kernel("reduce_test", "scale", Struct("ScaleParams", ("y", "x"), (("n", "i64"),))),),
    lambda dtype: {"all": [f"scale<{dtype.cuda}>"]},
)
SMALL_TEXT = """
template <class T> struct ScaleParams { T* y; const T* x; long long n; };
template <class T> __global__ void scale(const ScaleParams<T> p) {
  if (threadIdx.x < p.n) p.y[threadIdx.x] = p.x[threadIdx.x];
}
"""


def test_compile_error_shows_log_and_numbered_source() -> None:
    """What fails to compile is shown with the compiler's words."""
    with pytest.raises(CompileError, match="undefined_thing") as caught:
        compiler.compile_source("int x = undefined_thing;", [], "sm_90", what="planted")
    assert "undefined_thing" in caught.value.log
    assert caught.value.source.lstrip().startswith("1  int x")


def test_struct_that_the_host_packs_differently_does_not_compile() -> None:
    """Host and kernel cannot drift apart silently."""
    wrong = Family(SMALL.name, (Kernel("reduce_test", "scale", Struct("ScaleParams", ("y",), ())),), SMALL.instances)
    source = SMALL_TEXT + compiler.struct_asserts(wrong, FLOATS[0])
    with pytest.raises(CompileError, match="packed differently"):
        compiler.compile_source(source, ["scale<float>"], "sm_90", what="planted")


# -- the rules notice ------------------------------------------------------------------------------------------------


def planted(
    text: str, expression: str, *, dtype: str = "float32", family: str = "planted", arch: int = 90, enter: bool = True
) -> list[str]:
    """What the rules say of one kernel."""
    source = f"{compiler.read_source('prelu')}\n{text}\n"
    source = compiler.entered(source, f"sm_{arch}") if enter else source
    unit = units.compile_text(family, BY_NAME[dtype], source, [expression], arch)
    return rules.violations(unit, machine=machine_code.disassembler() is not None)


def test_rules_accept_a_plain_kernel() -> None:
    """What is noticed below is the fault planted, not the harness."""
    text = "template <class T> __global__ void __launch_bounds__(256) plain(T* y) { y[threadIdx.x] += T(1); }"
    assert planted(text, "plain<float>") == []


@pytest.mark.parametrize("arch", [90, 120])
def test_rules_notice_what_does_not_wait_for_the_kernels_in_front(arch: int) -> None:
    """A kernel that does not enter its grid, or has read something before."""
    text = "template <class T> __global__ void __launch_bounds__(256) hasty(T* y) { y[threadIdx.x] += T(1); }"
    early = text.replace("{ y[", "{ const T v = y[0]; enter_grid(); y[1] = v; y[")
    for source in text, f"{compiler.read_header('grid.cuh')}\n{early}":
        words = planted(source, "hasty<float>", arch=arch, enter=False)
        assert "touches memory before the kernels in front of it are done, in the PTX" in words[0]
        if machine_code.disassembler():
            assert "in the machine code" in words[1]


def test_every_kernel_enters_its_grid() -> None:
    """From the first architecture on that has the instructions, and below it none does."""
    for family in FAMILIES.values():
        text = compiler.unit_text(family, FLOATS[0], f"sm_{compiler.FIRST_EARLY_ARCH}")
        assert len(re.findall(r"__global__[^;{}]*\)\s*\{ enter_grid\(\);", text)) == text.count("__global__") > 0
        assert "enter_grid" not in compiler.unit_text(family, FLOATS[0], "sm_89")


@pytest.mark.parametrize("arch", [75, 120])
@pytest.mark.parametrize(
    "statement",
    [
        "atomicAdd(y, T(1));",
        "if (atomicAdd(y + 1, T(2)) > T(0)) y[2] = T(0);",
        "__shared__ T sum; atomicAdd(&sum, y[threadIdx.x]); __syncthreads(); y[0] = sum;",
        "atomicMax((int*)y, 3);",
        "if (atomicCAS((int*)y, 0, 1)) y[1] = T(0);",
    ],
    ids=["sum", "fetched", "shared", "integer", "exchange"],
)
def test_rules_notice_atomics(statement: str, arch: int) -> None:
    """On floats and on integers, in global and in shared memory: in the PTX, and in the machine code."""
    text = f"template <class T> __global__ void __launch_bounds__(256) atomic(T* y) {{ {statement} }}"
    words = planted(text, "atomic<float>", arch=arch)
    assert "atomics in the PTX" in words[0]
    if machine_code.disassembler():
        assert "atomics in the machine code" in words[1]


#: More numbers alive at once than a thread has registers.
CROWDED = """
template <class T> __global__ void BOUNDS crowded(T* y) {
  T v[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) v[i] = y[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) y[i * 1024 + threadIdx.x] = v[i] / v[(i * 7 + 5) % COUNT];
}
"""


def test_rules_notice_spills() -> None:
    """Where the launch bounds leave too few registers."""
    text = CROWDED.replace("BOUNDS", "__launch_bounds__(1024)").replace("COUNT", "90")
    (words,) = planted(text, "crowded<float>")
    assert re.search(r"crowded<float> for sm_90: spills move \d+ bytes, 0 are allowed", words)


def test_rules_notice_blocks_that_do_not_fit() -> None:
    """Without launch bounds a block of 1,024 threads is what the compiler may be asked for."""
    text = CROWDED.replace("BOUNDS", "").replace("COUNT", "90")
    (words,) = planted(text, "crowded<float>")
    assert re.search(r"1024 threads with \d+ registers each do not fit", words)


def test_rules_notice_arrays_in_local_memory() -> None:
    """An index that is known at run time alone sends an array there."""
    text = """
    template <class T> __global__ void __launch_bounds__(256) indexed(T* y, int n) {
      T v[16] = {};
      for (int i = 0; i < n; ++i) v[(int)y[i] & 15] += T(i);
      for (int i = 0; i < 16; ++i) y[i] = v[i];
    }"""
    (words,) = planted(text, "indexed<float>")
    assert re.search(r"keeps \d+ bytes of arrays in local memory", words)


def test_rules_notice_narrow_accesses() -> None:
    """A kernel that is meant to move packs and moves elements instead; with VEC = 1 it may."""
    text = """
    template <class T, int VEC> __global__ void __launch_bounds__(256) scale_packed(T* y) {
      for (int k = 0; k < VEC; k++) y[threadIdx.x * VEC + k] *= T(2);
    }"""
    words = planted(text, "scale_packed<float, 4>")
    assert [line.partition(": ")[2] for line in words] == [
        "loads nothing 16 bytes at once",
        "stores nothing 16 bytes at once",
    ]
    assert planted(text, "scale_packed<float, 1>") == []


def test_rules_notice_approximations() -> None:
    """Outside of the families whose headers state a bound, and for types whose accuracy is promised."""
    text = "template <class T> __global__ void __launch_bounds__(256) rough(float* y) { *y = exp2_approx(*y); }"
    assert "approximate instructions in the PTX: ex2.approx.f32" in planted(text, "rough<float>")[0]
    assert planted(text, "rough<float>", family="activation")
    assert planted(text, "rough<float>", family="activation", dtype="float16") == []


def test_ptxas_refuses_too_much_shared_memory() -> None:
    """The limit of 48 KiB needs no rule of ours."""
    text = """
    template <class T> __global__ void __launch_bounds__(256) hoarding(T* y) {
      __shared__ T room[12289];
      room[threadIdx.x] = *y;
      __syncthreads();
      *y = room[255 - threadIdx.x];
    }"""
    with pytest.raises(CompileError, match="failed"):
        planted(text, "hoarding<float>")


PACKED_TEMPLATE = r"template <[^>]*\bint VEC\b[^>]*>\s*__global__ void (?:__launch_bounds__\(.*\)\s+)?(\w+)\(\w*"


def test_rules_name_every_kernel_that_has_packs() -> None:
    """A new kernel with a vector length is noticed here, and an exception that nothing needs any more."""
    packed, entries = set(), set()
    for family in FAMILIES.values():
        text = compiler.read_source(family.name)
        packed |= set(re.findall(PACKED_TEMPLATE, text))
        entries |= {kernel.entry for kernel in family.kernels}
    assert packed <= set(rules.PACKED) <= entries
    instances = {e for f in FAMILIES.values() for row in FLOATS for group in f.instances(row).values() for e in group}
    assert {kernel for kernel, _ in rules.SPILLS} <= instances
    assert set(rules.ATOMICS) <= entries


@needs_disassembler
def test_machine_code_can_be_read() -> None:
    """Every instantiation has its instructions, and wide accesses stand in them as in the PTX."""
    unit = units.compile_family(FAMILIES["prelu"], FLOATS[0], DISASSEMBLED)
    assert set(unit.machine) == set(unit.ptx) == set(unit.binary.lowered)
    used = machine_code.machine_instructions(unit.machine["prelu_forward<float, 4>"])
    assert used["LDG.E.128"] >= 1
    assert used["STG.E.128"] >= 1
    assert used["EXIT"] >= 1
