"""Products of cuBLASLt on a GPU, with every epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_gemm import DTYPES, check, draw, multiply, plan_product

import dnnprims
from dnnprims.runtime import blaslt, gemm

#: float64 and float32 have no use for the coarse gelu of the library; fc never asks for it.
LT_CASES = [
    (epilogue, dtype)
    for epilogue in gemm.EPILOGUES
    for dtype in DTYPES
    if "gelu" not in epilogue or dtype in ("float16", "bfloat16")
]
LT_SIZES = [(1, 8, 1), (77, 51, 93), (256, 192, 320), (129, 1000, 64), (2048, 16, 784), (33, 1024, 2048)]
REALISE_FALLBACK = gemm._realise_fallback


@pytest.fixture(params=[("ieee", None), ("tf32", None), ("ieee", 0)], ids=lambda p: f"{p[0]}-workspace={p[1]}")
def lt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A CUDA handle on which a refusal by the library fails the test instead of taking the fallback."""
    from dnnprims.runtime.cuda import gpu_works

    if not gpu_works():
        pytest.skip("no NVIDIA GPU here")

    def refused(step: gemm.GemmStep, *_: Any) -> None:
        pytest.fail(f"cuBLASLt refuses {step}")

    monkeypatch.setattr(gemm, "_realise_fallback", refused)
    with dnnprims.create_handle("cuda", math=request.param[0], workspace_limit=request.param[1]) as made:
        assert made.profile.blaslt
        yield made


def _aux_fits(epilogue: str, shape: tuple[int, int, int]) -> bool:
    return "aux" not in epilogue or shape[1] % gemm.AUX_LANES == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("epilogue", "dtype"), LT_CASES)
@pytest.mark.parametrize("shape", LT_SIZES)
def test_lt_is_right(lt: Any, shape: Any, epilogue: str, dtype: str) -> None:
    if not _aux_fits(epilogue, shape):
        pytest.skip("fc gives the library no such aux")
    transpositions = ((False, False), (False, True), (True, False), (True, True))
    for transposed in transpositions if max(shape) < 1000 else transpositions[:3]:
        c, aux, z, size, early, _ = multiply(lt, shape, dtype, transposed=transposed, epilogue=epilogue)
        check(c, z, size, early, dtype, shape[2], epilogue, lt.math)
        if aux is not None:
            check(aux, z, size, early, dtype, shape[2], "none", lt.math)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shift", "pad"), [(1, 0), (1, 1), (2, 0), (4, 4), (0, 3)])
def test_lt_takes_unaligned_and_padded_matrices(
    lt: Any, shift: int, pad: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    epilogues = ("none", "bias", "relu_bias")
    if dtype == "bfloat16" and shift == 1:
        # The library offers an algorithm for two-byte alignment with a bias and then refuses to run it. A bare product
        # has no step after it that would apply an activation in the fallback: that is fc's.
        monkeypatch.setattr(gemm, "_realise_fallback", REALISE_FALLBACK)
        epilogues = ("none", "bias")
    for epilogue in epilogues:
        for shape in ((77, 51, 93), (64, 128, 64)):
            c, _, z, size, early, _ = multiply(
                lt, shape, dtype, transposed=(False, True), epilogue=epilogue, shift=shift, pad=pad
            )
            check(c, z, size, early, dtype, shape[2], epilogue, lt.math)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (1.0, 1.0), (-2.0, 0.75)])
def test_lt_blends(lt: Any, alpha: float, beta: float, dtype: str) -> None:
    for epilogue in ("none", "bias"):
        c, _, z, size, early, _ = multiply(lt, (77, 51, 93), dtype, epilogue=epilogue, alpha=alpha, beta=beta)
        check(c, z, size, early, dtype, 93, epilogue, lt.math)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_lt_is_exact_on_small_integers(lt: Any, dtype: str) -> None:
    for shape in ((77, 51, 93), (256, 192, 64)):
        c, _, z, _, _, _ = multiply(lt, shape, dtype, transposed=(True, False), epilogue="bias", exact=True)
        np.testing.assert_array_equal(c.astype(np.float64), z)


@pytest.mark.gpu
@pytest.mark.parametrize(("epilogue", "dtype"), LT_CASES)
def test_lt_gives_the_same_bits_again(lt: Any, epilogue: str, dtype: str) -> None:
    """(64, 64, 20000) invites split-K, whose parts must be added in a fixed order."""
    for shape in ((256, 192, 320), (64, 64, 20000)):
        first, _, _, _, _, (options, operands) = multiply(lt, shape, dtype, transposed=(True, False), epilogue=epilogue)
        for _ in range(10):
            again = lt.to_numpy(lt.run(plan_product, options, operands))
            assert again.tobytes() == first.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize(("epilogue", "dtype"), LT_CASES)
def test_lt_hands_on_nan(lt: Any, epilogue: str, dtype: str) -> None:
    """An epilogue that swallows NaN must not be used."""
    rng = np.random.default_rng(0)
    a, b = draw(rng, (32, 64), dtype), draw(rng, (64, 48), dtype)
    a[3, 5] = np.nan
    aux = lt.asarray(np.zeros((32, 48), a.dtype)) if "aux" in epilogue else None
    bias = lt.asarray(draw(rng, (48,), dtype)) if "bias" in epilogue else None
    operands = (lt.asarray(a), lt.asarray(b), bias, aux, lt.asarray(np.zeros((32, 48), a.dtype)))
    c = lt.to_numpy(lt.run(plan_product, ((32, 48, 64), (False, False), epilogue, 1.0, 0.0), operands))
    assert np.isnan(c[3].astype(np.float32)).all()
    assert np.isfinite(np.delete(c, 3, axis=0).astype(np.float32)).all()


@pytest.mark.gpu
def test_lt_follows_a_bias_that_moved(lt: Any) -> None:
    a = lt.asarray(np.ones((8, 4), np.float32))
    b = lt.asarray(np.ones((4, 8), np.float32))
    c = lt.asarray(np.zeros((8, 8), np.float32))
    options = ((8, 8, 4), (False, False), "bias", 1.0, 0.0)
    for value in (1.0, 2.0, 3.0):
        bias = lt.asarray(np.full(8, value, np.float32))
        assert (lt.to_numpy(lt.run(plan_product, options, (a, b, bias, None, c))) == 4.0 + value).all()


@pytest.mark.gpu
def test_a_refusal_takes_the_fallback(cuda_handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise blaslt.LtError("cublasLtMatmulAlgoGetHeuristic", 15)

    monkeypatch.setattr(blaslt, "MatmulPlan", refuse)
    c, _, z, size, early, _ = multiply(cuda_handle, (77, 51, 93), "float32", epilogue="bias")
    check(c, z, size, early, "float32", 93)
