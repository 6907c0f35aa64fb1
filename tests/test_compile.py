"""Every instantiation of every kernel compiles for every architecture, without a GPU."""

from __future__ import annotations

import pytest

from dnnprims.dtypes import FLOATS, DType
from dnnprims.errors import CompileError
from dnnprims.ops import FAMILIES
from dnnprims.runtime import compiler
from dnnprims.runtime.launch import Family, Kernel, Struct

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda row: row.name)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_instantiation_compiles(family: Family, dtype: DType, arch: int) -> None:
    """All groups of a family in one go, with the host's packing of each struct asserted, and without a warning."""
    expressions = sorted({e for group in family.instances(dtype).values() for e in group})
    source = f"{compiler.read_source(family.name)}\n{compiler.struct_asserts(family, dtype)}\n"
    binary = compiler.compile_source(source, expressions, f"sm_{arch}", what=family.name)
    assert set(binary.lowered) == set(expressions)
    assert binary.code.startswith(b"\x7fELF")


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
