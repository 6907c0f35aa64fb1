"""Row-major products: the plain kernel everywhere, cuBLASLt with every epilogue where there is a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import bounds
from dnnprims.descriptors import TensorDescriptor
from dnnprims.dtypes import BY_NAME
from dnnprims.runtime import blaslt, gemm
from dnnprims.runtime.launch import NULL, PlanSpec, Profile, Scratch

DTYPES = ("float32", "float64", "float16", "bfloat16")
SIZES = [(1, 1, 1), (5, 3, 2), (64, 64, 16), (65, 67, 17), (3, 130, 40), (70, 5, 100)]
#: Largest slope of gelu_tanh: how much it can magnify an error of its argument.
GELU_SLOPE = 1.13


def plan_product(
    profile: Profile,
    shape: tuple[int, int, int],
    transposed: tuple[bool, bool],
    epilogue: str,
    alpha: float,
    beta: float,
    a: TensorDescriptor,
    b: TensorDescriptor,
    bias: TensorDescriptor | None,
    aux: TensorDescriptor | None,
    c: TensorDescriptor,
) -> PlanSpec:
    """Plan one product over matrices with whatever leading dimensions they have."""
    m, n, k = shape
    room = gemm.workspace_for(profile)
    step = gemm.GemmStep(
        a.dtype, m, n, k,
        gemm.Matrix(0, a.strides[0], transposed[0], a.alignment),
        gemm.Matrix(1, b.strides[0], transposed[1], b.alignment),
        gemm.Matrix(4, c.strides[0], alignment=c.alignment),
        epilogue=epilogue,
        bias=NULL if bias is None else 2,
        aux=None if aux is None else gemm.Matrix(3, aux.strides[0], alignment=aux.alignment),
        alpha=alpha,
        beta=beta,
        workspace=Scratch(0),
        workspace_bytes=room,
    )  # fmt: skip
    return PlanSpec("product", "", gemm.lower(profile, step), returns=(4,), writes=(3, 4), scratch=(room,))


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, exact: bool = False) -> Any:
    values = rng.integers(-2, 3, shape) if exact else rng.standard_normal(shape)
    return values.astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def place(handle: Any, a: Any, shift: int = 0, pad: int = 0) -> Any:
    """Copy a matrix into the backend's memory, `shift` elements off alignment, rows `pad` elements further apart."""
    rows, columns = a.shape if a.ndim == 2 else (1, a.size)
    room = np.zeros(shift + rows * (columns + pad), a.dtype)
    grid = room[shift:].reshape(rows, columns + pad)
    grid[:, :columns] = a.reshape(rows, columns)
    there = handle.asarray(room)[shift:].reshape(rows, columns + pad)[:, :columns]
    return there if a.ndim == 2 else there.reshape(-1)


def multiply(
    handle: Any,
    shape: tuple[int, int, int],
    dtype: str,
    *,
    transposed: tuple[bool, bool] = (False, False),
    epilogue: str = "none",
    alpha: float = 1.0,
    beta: float = 0.0,
    shift: int = 0,
    pad: int = 0,
    exact: bool = False,
    seed: int = 0,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Run a product; return C, aux, the float64 pre-activation, sum |terms|, the error of rounding the bare product
    early, and the operands to run it again."""
    m, n, k = shape
    rng = np.random.default_rng([seed, m, n, k])
    a, b = (
        draw(rng, (k, m) if transposed[0] else (m, k), dtype, exact),
        draw(rng, (n, k) if transposed[1] else (k, n), dtype, exact),
    )
    bias, old = draw(rng, (n,), dtype, exact), draw(rng, (m, n), dtype, exact)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    left, right = wide_a.T if transposed[0] else wide_a, wide_b.T if transposed[1] else wide_b
    product = alpha * (left @ right)
    z = product + (beta * old.astype(np.float64) if beta else 0.0)
    early = bounds.early_rounding(product, dtype) if beta or epilogue != "none" else 0.0
    if beta and epilogue != "none":
        early = early + bounds.early_rounding(z, dtype)
    size = np.abs(alpha) * (np.abs(left) @ np.abs(right)) + np.abs(beta * old.astype(np.float64))
    if "bias" in epilogue:
        z, size = z + bias.astype(np.float64), size + np.abs(bias.astype(np.float64))
    if "gelu" in epilogue:
        early = early + bounds.early_rounding(z, dtype)
    with_aux = "aux" in epilogue
    empty = np.full((m, n), np.nan, a.dtype)
    operands = (
        place(handle, a, shift, pad),
        place(handle, b, shift, pad),
        place(handle, bias, shift) if "bias" in epilogue else None,
        place(handle, empty) if with_aux else None,
        place(handle, old if beta else empty, shift, pad),
    )
    options = (shape, transposed, epilogue, alpha, beta)
    handle.run(plan_product, options, operands)
    c = handle.to_numpy(operands[4])
    return c, handle.to_numpy(operands[3]) if with_aux else None, z, size, early, (options, operands)


def gelu_tanh(z: Any) -> Any:
    return 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))


def check(
    c: Any, z: Any, size: Any, early: Any, dtype: str, terms: int, epilogue: str = "none", math: str = "ieee"
) -> None:
    """Compare with float64 under the derived bound."""
    error = bounds.sum_error(terms + 2, size, dtype) + early
    if math == "tf32" and dtype == "float32":
        error = error + bounds.tf32_error(size)
    expected = z
    if "relu" in epilogue:
        expected = np.maximum(z, 0.0)
    elif "gelu" in epilogue:
        expected, error = gelu_tanh(z), GELU_SLOPE * error + bounds.library_gelu_error(z, dtype)
    excess = np.abs(c.astype(np.float64) - expected) / bounds.rounded(expected, dtype, error)
    assert excess.max(initial=0.0) <= 1.0, f"{epilogue} {dtype}: error is {excess.max()} of its bound"


# -- the plain kernel ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def plain(request: pytest.FixtureRequest) -> Any:
    """A handle that takes no product to cuBLASLt."""
    handle = request.getfixturevalue(f"{request.param}_handle")
    handle.profile = dataclasses.replace(handle.profile, blaslt=False)
    return handle


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_plain_kernel_is_right_for_every_transposition(plain: Any, shape: Any, dtype: str) -> None:
    for transposed in ((False, False), (False, True), (True, False), (True, True)):
        c, _, z, size, early, _ = multiply(plain, shape, dtype, transposed=transposed, epilogue="bias", shift=1, pad=3)
        check(c, z, size, early, dtype, shape[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_kernel_is_exact_on_small_integers(plain: Any, dtype: str) -> None:
    c, _, z, _, _, _ = multiply(plain, (37, 66, 35), dtype, transposed=(False, True), epilogue="bias", exact=True)
    np.testing.assert_array_equal(c.astype(np.float64), z)


def test_plain_kernel_blends(plain: Any) -> None:
    c, _, z, size, early, _ = multiply(plain, (9, 11, 13), "float32", alpha=-0.5, beta=2.0, epilogue="bias")
    check(c, z, size, early, "float32", 13)


def test_plain_kernel_without_terms_gives_the_bias(plain: Any) -> None:
    c, _, z, _, _, _ = multiply(plain, (3, 5, 0), "float32", epilogue="bias")
    np.testing.assert_array_equal(c, z.astype(np.float32))


def test_plain_kernel_hands_on_nan_and_infinity_to_their_row_alone(plain: Any) -> None:
    a, b = np.ones((70, 20), np.float32), np.ones((20, 66), np.float32)
    a[1, 19], a[65, 0] = np.nan, np.inf
    c = np.zeros((70, 66), np.float32)
    operands = (*(plain.asarray(x) for x in (a, b)), None, None, plain.asarray(c))
    c = plain.to_numpy(plain.run(plan_product, ((70, 66, 20), (False, False), "none", 1.0, 0.0), operands))
    assert np.isnan(c[1]).all()
    assert np.isinf(c[65]).all()
    assert (np.delete(c, [1, 65], axis=0) == 20).all()


# -- what can be settled without a GPU -------------------------------------------------------------------------------


def test_a_row_major_product_is_asked_for_as_its_transpose() -> None:
    step = gemm.GemmStep(
        BY_NAME["float32"],
        2,
        3,
        4,
        gemm.Matrix(0, 40),
        gemm.Matrix(1, 50, True, 4),
        gemm.Matrix(2, 60),
        epilogue="bias",
    )
    problem = step.problem
    assert (problem.m, problem.n, problem.k) == (3, 2, 4)
    assert (problem.trans_a, problem.trans_b) == (True, False)
    assert (problem.lda, problem.ldb, problem.ldd) == (50, 40, 60)
    assert problem.alignments == (4, 16, 16)
    assert problem.compute_type == blaslt.COMPUTE_32F


def test_tf32_is_only_for_float32_and_only_when_asked_for() -> None:
    step = gemm.GemmStep(BY_NAME["float32"], 2, 3, 4, gemm.Matrix(0, 4), gemm.Matrix(1, 3), gemm.Matrix(2, 3))
    fast = dataclasses.replace(step, math="tf32")
    assert step.problem.compute_type == blaslt.COMPUTE_32F
    assert fast.problem.compute_type == blaslt.COMPUTE_32F_FAST_TF32
    assert dataclasses.replace(fast, dtype=BY_NAME["bfloat16"]).problem.compute_type == blaslt.COMPUTE_32F
    assert dataclasses.replace(fast, dtype=BY_NAME["float64"]).problem.compute_type == blaslt.COMPUTE_64F


@pytest.mark.parametrize(
    ("leading", "alignment", "dtype"), [(12, 16, "bfloat16"), (16, 8, "float16"), (16, 16, "float32")]
)
def test_an_aux_that_would_crash_or_crawl_is_declined(leading: int, alignment: int, dtype: str) -> None:
    assert gemm.aux_reason(BY_NAME[dtype], leading, alignment)
    assert gemm.aux_reason(BY_NAME["bfloat16"], 16, 16) is None


def test_workspace_obeys_the_limit() -> None:
    assert gemm.workspace_for(Profile("cuda")) == gemm.WORKSPACE_BYTES
    assert gemm.workspace_for(Profile("cuda", workspace_limit=0)) == 0
    assert gemm.workspace_for(Profile("cuda", workspace_limit=1000), taken=300) == 512


def test_heuristic_result_has_the_library_s_size() -> None:
    assert ctypes.sizeof(blaslt.HeuristicResult) == 64 + 8 + 4 + 4 + 16


@pytest.mark.skipif(not blaslt.available(), reason="libcublasLt is not installed")
def test_attribute_numbers_and_sizes_are_the_library_s() -> None:
    """A descriptor accepts an attribute only by its right number and size, and does so without a GPU."""
    lib, _ = blaslt.library()
    cell = ctypes.c_void_p()
    assert lib.cublasLtMatmulDescCreate(ctypes.byref(cell), blaslt.COMPUTE_32F, blaslt.SCALE_32F) == 0
    sizes = {blaslt.DESC_TRANSA: 4, blaslt.DESC_TRANSB: 4, blaslt.DESC_EPILOGUE: 4, blaslt.DESC_BIAS_POINTER: 8}
    sizes |= {blaslt.DESC_AUX_POINTER: 8, blaslt.DESC_AUX_LD: 8}
    zeros = ctypes.create_string_buffer(16)
    for attribute, size in sizes.items():
        assert lib.cublasLtMatmulDescSetAttribute(cell, attribute, zeros, size) == 0
        assert lib.cublasLtMatmulDescSetAttribute(cell, attribute, zeros, size + 1) != 0
    assert lib.cublasLtMatmulDescDestroy(cell) == 0


class FakeLibrary:
    """Stands in for libcublasLt: notes every call, hands out numbers for objects, offers one algorithm."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.status = status
        self.at_the_call = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name.endswith("Create"):
                arguments[0]._obj.value = 100 + len(self.calls)
            if name == "cublasLtMatmulAlgoGetHeuristic":
                arguments[-1]._obj.value = 1 - bool(self.status)
                return self.status
            return self.at_the_call if name == "cublasLtMatmul" else 0

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def _realise(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    monkeypatch.setattr(blaslt, "library", lambda: (library, ""))
    monkeypatch.setattr(blaslt, "device_handle", lambda device: blaslt.LtHandle())
    matrices = (gemm.Matrix(0, 4), gemm.Matrix(1, 3, alignment=4), gemm.Matrix(3, 3))
    step = gemm.GemmStep(BY_NAME["float32"], 2, 3, 4, *matrices, epilogue="bias", bias=2)
    (step,) = gemm.lower(Profile("cuda", blaslt=True), step)  # type: ignore[assignment]
    ran: list[Any] = []
    executor = SimpleNamespace(
        device=0, profile=Profile("cuda"), realise=lambda kernel, slots: lambda *call: ran.append(slots)
    )
    return gemm.realise_gemm(step, tuple(range(len(step.pointers))), executor), ran


def test_a_call_is_one_entry_and_a_bias_that_stays_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    run, _ = _realise(library, monkeypatch)
    library.calls.clear()
    for bias in (1003, 1003, 2003):
        run([1000, 1001, 1002, bias, *range(8)], 7, ())
    set_bias, matmul = "cublasLtMatmulDescSetAttribute", "cublasLtMatmul"
    assert library.names() == [set_bias, matmul, matmul, set_bias, matmul]
    given = library.calls[1][1]
    assert (given[3], given[5], given[8], given[10], given[-1]) == (1001, 1000, 1002, 1002, 7)


def test_objects_of_a_plan_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    run, _ = _realise(library, monkeypatch)
    del run
    names = library.names()
    for kind in ("cublasLtMatmulDesc", "cublasLtMatrixLayout", "cublasLtMatmulPreference"):
        assert names.count(f"{kind}Create") == names.count(f"{kind}Destroy") > 0


@pytest.mark.parametrize("status", [7, 15])
def test_a_refusal_runs_the_fallback_on_its_own_slots(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    library = FakeLibrary(status)
    run, ran = _realise(library, monkeypatch)
    run([], 0, ())
    assert ran == [(6, 7, 8, 9)]
    assert library.names().count("cublasLtMatrixLayoutCreate") == library.names().count("cublasLtMatrixLayoutDestroy")


@pytest.mark.parametrize("status", [7, 15])
def test_a_refusal_at_the_call_goes_over_to_the_fallback_for_good(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """The library may offer an algorithm and refuse to run it; what it refused once it is not asked again."""
    library = FakeLibrary()
    run, ran = _realise(library, monkeypatch)
    library.calls.clear()
    library.at_the_call = status
    for _ in range(2):
        run([1000, 1001, 1002, 1003, *range(8)], 7, ())
    assert ran == [(6, 7, 8, 9)] * 2
    assert library.names().count("cublasLtMatmul") == 1


def test_a_failure_at_the_call_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no refusal is told with the problem and the addresses' alignments."""
    library = FakeLibrary()
    run, ran = _realise(library, monkeypatch)
    library.at_the_call = 13
    with pytest.raises(dnnprims.ExecutionError, match=r"bias, float32, m=2, n=3, k=4, alignments a 8, b 1, c 2"):
        run([1000, 1001, 1002, 1003, *range(8)], 7, ())
    assert ran == []


def test_a_failure_that_is_no_refusal_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dnnprims.ExecutionError, match=r"status 3 \(allocation failed\).*CUBLASLT_LOG_LEVEL"):
        _realise(FakeLibrary(3), monkeypatch)
