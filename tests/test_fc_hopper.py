"""A whole layer in one launch on Hopper: when it is taken, the maps that it is given, and on a GPU its results."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import needs_hopper

import dnnprims as dp
from dnnprims.conformance import FAMILIES
from dnnprims.conformance.bounds import sum_error, tf32_error, unit_roundoff
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import run_case
from dnnprims.descriptors import ACTIVATION_MODES
from dnnprims.errors import ExecutionError
from dnnprims.ops.fc import forward, hopper, plan_fc_forward
from dnnprims.runtime import tensor_map
from dnnprims.runtime.launch import KernelStep, PlanSpec, Profile
from dnnprims.runtime.tensor_map import EncodedMaps, TensorMap

H200 = Profile("cuda", blaslt=True, tensor_maps=True)
TF32 = Profile("cuda", blaslt=True, tensor_maps=True, math="tf32")
LARGE, FEW = (4096, 1024, 4096), (1536, 1024, 3072)


def planned(
    extents: tuple[int, int, int] = LARGE,
    mode: str = "swish",
    dtype: str = "bfloat16",
    profile: Profile = H200,
    *,
    alignment: int = 16,
    aux: bool = False,
    beta: float = 0.0,
) -> PlanSpec:
    """The plan of a layer of (m, k, n)."""
    m, k, n = extents
    x, w, y = (dp.TensorDescriptor(shape, dtype) for shape in ((m, k), (n, k), (m, n)))
    b = dp.TensorDescriptor((n,), dtype, alignment=alignment)
    return plan_fc_forward(profile, mode, 1.0, beta, x, w, b, y, y if aux else None)


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["swish", "tanh", "gelu", "leaky_relu", "log_sigmoid"])
def test_large_layers_are_one_launch(dtype: str, mode: str) -> None:
    """Whatever the activation; the grid is the GPU's multiprocessors."""
    spec = planned(mode=mode, dtype=dtype)
    (step,) = spec.steps
    assert spec.variant == "ping_pong"
    assert isinstance(step, KernelStep)
    assert (step.grid, step.block, len(step.maps)) == ((132, 1, 1), 384, 4)
    assert spec.scratch == ()


def test_outputs_off_16_bytes_are_stored_by_threads() -> None:
    """The library is slow there, whatever it fuses; maps of results would be refused, so others fill their places."""
    for mode in ("relu", "gelu_tanh", "swish"):
        spec = planned((700, 2048, 5124), mode)
        (step,) = spec.steps
        assert spec.variant == "ping_pong"
        assert [m.pointer for m in step.maps] == [0, 1, 0, 0]  # type: ignore[union-attr]


def test_pre_activation_is_a_second_result() -> None:
    """Without aux the kernel is given no place for it."""
    (with_aux,), (without,) = planned(aux=True).steps, planned().steps
    assert with_aux.pointers[3] == 4  # type: ignore[union-attr]
    assert without.pointers[3] != 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"profile": Profile("cuda", arch=80, blaslt=True, tensor_maps=True)}, "capability 9.0"),
        ({"profile": Profile("cuda", arch=100, blaslt=True, tensor_maps=True)}, "capability 9.0"),
        ({"profile": Profile("cuda", blaslt=True)}, "no tensor maps"),
        ({"profile": Profile("emulator", tensor_maps=True)}, "capability 9.0"),
        ({"dtype": "float32"}, "do not multiply float32"),
        ({"dtype": "float64"}, "do not multiply float64"),
        ({"extents": (4096, 1020, 4096)}, "multiples of 16 bytes"),
        ({"extents": (2**31, 8, 64)}, "at most"),
        ({"alignment": 2}, "b is aligned to 2 bytes"),
        ({"beta": 1.0}, "after the activation"),
        ({"extents": FEW}, "288 tiles leave too many"),
        ({"mode": "gelu_tanh", "extents": (2048, 1024, 4096)}, "library's epilogue is as fast"),
        ({"mode": "relu", "extents": (2048, 1024, 4096)}, "library's epilogue is as fast"),
        ({"mode": "tanh", "extents": (7000, 1760, 1760)}, "1760 elements are off 128 bytes"),
        ({"extents": (1500, 2048, 44)}, "12 tiles leave too many"),
        ({"extents": (4096, 1024, 4098), "dtype": "float32", "profile": TF32}, "not slow in the library"),
        ({"mode": "gelu", "dtype": "float32", "profile": TF32}, "takes longer than the product"),
        ({"mode": "relu", "dtype": "float16", "extents": (4096, 4096, 16384)}, "library's epilogue is as fast"),
    ],
)
def test_reasons_against_it(changes: dict[str, Any], reason: str) -> None:
    """Each is said, and another variant takes the layer."""
    spec = planned(**changes)
    assert spec.variant != "ping_pong"
    assert reason in dict(spec.refused)["ping_pong"]


@pytest.mark.parametrize("mode", ["tanh", "swish", "leaky_relu"])
def test_tf32_layers_are_one_launch(mode: str) -> None:
    """The copy engine rounds the factors; the result is float32."""
    (step,) = planned(mode=mode, dtype="float32", profile=TF32).steps
    assert [m.kind for m in step.maps] == ["tf32", "tf32", "float32", "float32"]  # type: ignore[union-attr]


def test_without_the_library_any_size_is_taken() -> None:
    """The plain product is slower by far."""
    assert planned((64, 8, 48), profile=Profile("cuda", tensor_maps=True)).variant == "ping_pong"


def test_timing_has_the_last_word() -> None:
    """What is refused for being slower is taken where timing found it faster, and no other refusal is passed over."""
    few = dataclasses.replace(H200, preferred="ping_pong")
    assert planned(FEW, profile=few).variant == "ping_pong"
    assert planned((1536, 1020, 3072), profile=few).variant != "ping_pong"


# -- maps ------------------------------------------------------------------------------------------------------------

MAPS = (TensorMap(0, "bfloat16", 2, 300, 72, 128, 64), TensorMap(2, "float32", 4, 10, 24, 64, 32))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the driver is asked to encode, one entry each."""
    asked: list[dict[str, Any]] = []

    def encode(at: int, kind: int, rank: int, address: int, extents: Any, steps: Any, box: Any, *rest: Any) -> int:
        asked.append({"at": at, "kind": kind, "address": address, "extents": list(extents), "steps": list(steps)})
        asked[-1] |= {"box": list(box), "rank": rank}
        return 1 if address == 13 else 0

    monkeypatch.setattr(tensor_map, "encoder", lambda: encode)
    return asked


def test_maps_are_encoded_again_where_an_address_moves(encoded: list[dict[str, Any]]) -> None:
    """Once for the first call, not for the next, one for each that moved; a null pointer is left alone."""
    maps = EncodedMaps(MAPS)
    maps.update([256, 0, 512])
    maps.update([256, 1, 512])
    assert [entry["address"] for entry in encoded] == [256, 512]
    maps.update([256, 1, 1024])
    maps.update([256, 1, 0])
    assert [entry["address"] for entry in encoded] == [256, 512, 1024]
    assert encoded[0] == {
        "at": maps.addresses[0], "kind": 9, "address": 256, "rank": 2, "extents": [72, 300], "steps": [144],
        "box": [64, 128],
    }  # fmt: skip
    assert all(at % 64 == 0 for at in maps.addresses)
    assert maps.addresses[1] - maps.addresses[0] == 128


def test_refused_map_raises_and_is_asked_for_again(encoded: list[dict[str, Any]]) -> None:
    """The driver's answer is in the error."""
    maps = EncodedMaps(MAPS[:1])
    for _ in range(2):
        with pytest.raises(ExecutionError, match="answers 1"):
            maps.update([13])
    assert len(encoded) == 2


def test_driver_without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a missing library nor a missing function is an error before a map is wanted."""

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    tensor_map.encoder.cache_clear()
    assert tensor_map.encoder() is None
    with pytest.raises(ExecutionError, match="CUDA 12"):
        EncodedMaps(MAPS)
    tensor_map.encoder.cache_clear()


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ieee", "tf32"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dp.Handle]:
    """A handle that takes the one launch wherever it can."""
    monkeypatch.setattr(hopper, "_slower_reason", lambda *facts: None)
    monkeypatch.setattr(forward, "few_rows_reason", lambda *facts: "another one is tried")
    with dp.create_handle("cuda", math=request.param) as made:
        yield made


def dtypes_of(handle: dp.Handle) -> Sequence[str]:
    """Those that the tensor cores multiply."""
    return ("float32",) if handle.profile.math == "tf32" else ("float16", "bfloat16")


SHAPES = [
    (1, 8, 8),
    (64, 64, 128),
    (128, 64, 128),
    (129, 72, 136),
    (300, 328, 520),
    (257, 8, 1288),
    (1000, 520, 324),
    (300, 72, 35),
]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("extents", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("aux", [False, True])
def test_integers_are_exact(cuda: dp.Handle, extents: tuple[int, int, int], bias: bool, aux: bool) -> None:
    """Small integers: the product, the bias and relu without any error, in poisoned memory between guards."""
    m, k, n = extents
    rng = np.random.default_rng([m, k, n])
    x, w, b = rng.integers(-3, 4, (m, k)), rng.integers(-2, 3, (n, k)), rng.integers(-4, 5, n)
    z = x @ w.T + (b if bias else 0)
    for dtype in dtypes_of(cuda):
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        factors = [cuda.asarray(a.astype(kind)) for a in (x, w, b)]
        room = [cuda.asarray(np.full(m * n + 128, np.nan, kind)) for _ in range(2)]
        y, kept = (a[64:-64].reshape(m, n) for a in room)
        dp.fc_forward(
            cuda, *factors[:2], factors[2] if bias else None, activation="relu", out=y, aux=kept if aux else None
        )
        assert np.array_equal(cuda.to_numpy(y), np.maximum(z, 0).astype(kind))
        if aux:
            assert np.array_equal(cuda.to_numpy(kept), z.astype(kind))
        for a in room:
            guards = cuda.to_numpy(a).astype(np.float64)
            assert np.isnan(guards[:64]).all()
            assert np.isnan(guards[-64:]).all()


@pytest.mark.gpu
@needs_hopper
def test_cases_of_the_conformance_suite(cuda: dp.Handle) -> None:
    """Every case of a layer's forward pass in a 16-bit type, each activation among them, under the derived bounds."""
    if cuda.profile.math == "tf32":
        pytest.skip("the suite's cases of float32 are for IEEE products")
    family, taken = FAMILIES["fc"], 0
    for dtype in dtypes_of(cuda):
        modes = [f"fc_forward rows=33 k=8 n=40 activation={mode} data=integers" for mode in ACTIVATION_MODES]
        extra = [Problem.parse(line, dtype=dtype, seed=1) for line in modes]
        for problem in [*family.problems(dtype, 0, 100), *extra]:
            if problem.op == "fc_forward":
                outcome = run_case(cuda, family, problem)
                assert not outcome.complaint, f"{problem}: {outcome.complaint}"
                taken += 1
    assert taken > 100


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("mode", ["identity", "tanh", "relu"])
def test_random_products_in_tf32(cuda: dp.Handle, mode: str) -> None:
    """Under the bound of sums of products whose factors are rounded to TF32."""
    if cuda.profile.math != "tf32":
        pytest.skip("TF32 alone")
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((515, 1000), (644, 1000)))
    y = cuda.to_numpy(dp.fc_forward(cuda, cuda.asarray(x), cuda.asarray(w), activation=mode)).astype(np.float64)
    z, size = x.astype(np.float64) @ w.T.astype(np.float64), np.abs(x).astype(np.float64) @ np.abs(w).T
    ideal = {"identity": z, "tanh": np.tanh(z), "relu": np.maximum(z, 0)}[mode]
    bound = sum_error(1000, size, "float32") + tf32_error(size) + 4 * unit_roundoff("float32") * np.abs(ideal)
    assert (np.abs(y - ideal) <= bound).all()


@pytest.mark.gpu
@needs_hopper
def test_bits_repeat_and_agree_with_small_grids(cuda: dp.Handle) -> None:
    """Which block makes a tile, and after which other one, does not matter."""
    rng = np.random.default_rng(3)
    for dtype in dtypes_of(cuda):
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        x, w = (cuda.asarray(rng.standard_normal(s).astype(kind)) for s in ((3000, 264), (2008, 264)))
        first = cuda.to_numpy(dp.fc_forward(cuda, x, w, activation="tanh")).tobytes()
        assert all(cuda.to_numpy(dp.fc_forward(cuda, x, w, activation="tanh")).tobytes() == first for _ in range(20))
        part = cuda.to_numpy(dp.fc_forward(cuda, x[:1000], w, activation="tanh")).tobytes()
        assert first.startswith(part)


@pytest.mark.gpu
@needs_hopper
def test_other_addresses_and_a_graph(cuda: dp.Handle) -> None:
    """Maps follow the arrays of each call; a captured call replays with those that it had."""
    import cupy

    dtype = dtypes_of(cuda)[0]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        rng = np.random.default_rng(5)
        w = cuda.asarray(rng.integers(-2, 3, (256, 64)).astype(dtype))
        inputs = [cuda.asarray(rng.integers(-3, 4, (256, 64)).astype(dtype)) for _ in range(3)]
        results = [cupy.zeros((256, 256), dtype) for _ in inputs]
        for x, y in zip(inputs, results, strict=True):
            dp.fc_forward(cuda, x, w, activation="relu", out=y)
        wanted = [cupy.maximum(x.astype("float64") @ w.astype("float64").T, 0).astype(dtype) for x in inputs]
        assert all(bool((y == z).all()) for y, z in zip(results, wanted, strict=True))
        stream.begin_capture()
        dp.fc_forward(cuda, inputs[1], w, activation="relu", out=results[0])
        graph = stream.end_capture()
        dp.fc_forward(cuda, inputs[2], w, activation="relu", out=results[1])
        graph.launch(stream)
        stream.synchronize()
        assert bool((results[0] == wanted[1]).all())
        assert bool((results[1] == wanted[2]).all())
