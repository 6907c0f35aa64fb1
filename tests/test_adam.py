"""Adam and AdamW: hand values, bias correction far out, decays, device scalars, masters, refusals."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from dnnprims.conformance import bounds
from dnnprims.errors import BadParamError
from dnnprims.ops.adam import adam_update, adamw_update
from dnnprims.reference import adam as reference

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


def accumulator(dtype):
    return np.float64 if dtype == np.float64 else np.float32


class Problem:
    def __init__(self, handle, w, g, dtype=np.float32, masters=False):
        self.handle = handle
        self.w, self.g = (handle.asarray(np.asarray(a, dtype)) for a in (w, g))
        self.m, self.v = (handle.asarray(np.zeros(np.shape(w), accumulator(dtype))) for _ in range(2))
        self.master = handle.asarray(np.asarray(w, dtype).astype(accumulator(dtype))) if masters else None

    def step(self, update=adam_update, **options):
        result = update(self.handle, self.w, self.g, self.m, self.v, masters=self.master, **options)
        assert result is None
        return self.handle.to_numpy(self.w).astype(np.float64)

    def state(self):
        return b"".join(self.handle.to_numpy(a).tobytes() for a in (self.w, self.m, self.v))


EXACT = {"beta1": 0.5, "beta2": 0.75, "epsilon": 0.0, "bias_correction": False, "step": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_hand_without_correction(handle, dtype):
    """m = 0.5 * 4 = 2, v = 0.25 * 16 = 4, w = 8 - 0.5 * 2 / 2; then m = 3, v = 7 in the moments."""
    problem = Problem(handle, [8, -8], [4, -4], dtype)
    assert problem.step(lr=0.5, **EXACT).tolist() == [7.5, -7.5]
    problem.step(lr=0.5, **EXACT)
    assert handle.to_numpy(problem.m).tolist() == [3, -3]
    assert handle.to_numpy(problem.v).tolist() == [7, 7]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_corrected_step_has_the_size_of_lr(handle, dtype):
    """m' = g and v' = g^2, whatever the betas: w -= lr sign(g)."""
    problem = Problem(handle, [1.0, 1.0, 1.0], [3.0, -0.5, 100.0], dtype)
    w = problem.step(lr=0.25, step=1, epsilon=0.0)
    expected = np.array([0.75, 1.25, 0.75])
    name = np.dtype(dtype).name
    assert (np.abs(w - expected) <= bounds.rounded(expected, name, bounds.sum_error(16, expected, name))).all()


@pytest.mark.parametrize("corrected", [False, True])
def test_without_memory_every_step_has_the_size_of_lr(handle, corrected):
    """With both betas 0 the moments are g and g^2 alone, at any step, and their corrections are 1."""
    problem = Problem(handle, [8.0, 8.0], [4.0, -0.5])
    for step in (1, 2, 1000):
        before = handle.to_numpy(problem.w).astype(np.float64)
        after = problem.step(lr=0.5, beta1=0.0, beta2=0.0, epsilon=0.0, step=step, bias_correction=corrected)
        assert (before - after).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("step", [1, 2, 1000, 10**6, 2**40])
def test_corrections_by_the_definition(step):
    """Against 1 - beta^t in exact rational arithmetic where that is short, and its limit 1."""
    for beta in (0.0, 0.5, 0.9, 0.999):
        exact = 1.0 if step > 10**5 else float(1 - Fraction(beta) ** step)
        assert abs(reference._bias_correction(beta, step) - exact) <= bounds.ulp_bound(exact, "float64", 1.0)


@pytest.mark.parametrize("update", [adam_update, adamw_update])
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_follows_the_reference(handle, dtype, masters, update):
    """Errors are those of short sums: the terms are what each stored value is added up from."""
    rng, kind = np.random.default_rng(11), accumulator(dtype)
    w, g, m = (rng.standard_normal(2500).astype(t) for t in (dtype, dtype, kind))
    v, master = np.abs(rng.standard_normal(2500)).astype(kind), w.astype(kind) if masters else None
    mine = [None if a is None else handle.asarray(a) for a in (w, g, m, v, master)]
    old = [a.astype(np.float64) for a in (w, g, m, v)]
    options = {"lr": 0.01, "step": 7, "weight_decay": 0.1, "gradient_scale": 0.5}
    update(handle, *mine[:4], masters=mine[4], **options)
    w, g, m, v = (a.copy() for a in old)
    getattr(reference, update.__name__)(w, g, m, v, **options)

    name = np.dtype(kind).name
    first = 0.9 * np.abs(old[2]) + 0.1 * (0.5 * np.abs(old[1]) + 0.1 * np.abs(old[0]))
    second = 0.999 * old[3] + 0.001 * (0.5 * np.abs(old[1]) + 0.1 * np.abs(old[0])) ** 2
    step = 0.01 / (1 - 0.9**7) * first / np.sqrt(v / (1 - 0.999**7))
    weight = 1.01 * np.abs(old[0]) + step
    error = bounds.sum_error(16, weight, name)
    for got, want, kept, wrong in (
        (mine[2], m, name, bounds.sum_error(6, first, name)),
        (mine[3], v, name, bounds.sum_error(10, second, name)),
        (mine[0], w, np.dtype(dtype).name, error),
        *([(mine[4], w, name, error)] if masters else []),
    ):
        # Twice: the coefficients are rounded to the accumulator too.
        assert (np.abs(handle.to_numpy(got).astype(np.float64) - want) <= bounds.rounded(want, kept, 2 * wrong)).all()


def test_decays_differ(handle):
    """Coupled, the decay passes through the moments: m = 0.5 (4 + 8) = 6, v = 36, step 0.5; apart, 0.5 + 0.5 * 8."""
    coupled, apart = (Problem(handle, [8.0], [4.0]) for _ in range(2))
    assert coupled.step(adam_update, lr=0.5, weight_decay=1.0, **EXACT).tolist() == [7.5]
    assert apart.step(adamw_update, lr=0.5, weight_decay=1.0, **EXACT).tolist() == [3.5]
    assert handle.to_numpy(coupled.m).tolist() == [6.0]
    assert handle.to_numpy(apart.m).tolist() == [2.0]


@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize("step", [1, 1000])
def test_a_step_on_the_device_gives_the_same_bits(handle, integer, step):
    rng = np.random.default_rng(5)
    w, g = rng.standard_normal(100), rng.standard_normal(100)
    host, device = Problem(handle, w, g), Problem(handle, w, g)
    host.step(lr=0.125, step=step)
    device.step(lr=handle.asarray(np.float64(0.125)), step=handle.asarray(integer(step)))
    assert host.state() == device.state()


def test_found_inf_skips_the_step(handle):
    problem = Problem(handle, [8.0], [np.inf])
    before = problem.state()
    problem.step(lr=0.5, step=1, found_inf=handle.asarray(np.int32(1)))
    assert problem.state() == before


def test_many_tensors_in_one_call(handle):
    rng = np.random.default_rng(2)
    sizes = [0, 1, 2, 5, 4097, *rng.integers(0, 60, 60).tolist()]
    lists = [[handle.asarray(np.full(size, value, np.float32)) for size in sizes] for value in (8, 4, 0, 0)]
    adam_update(handle, *lists, lr=0.5, **EXACT)
    for made, value in zip(lists, (7.5, 4, 2, 4), strict=True):
        assert all((handle.to_numpy(a) == value).all() for a in made)
    assert adamw_update(handle, [], [], [], [], lr=0.5, step=1) is None


@pytest.mark.parametrize("update", [adam_update, adamw_update])
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"lr": float("nan")}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"step": 0}, "step"),
        ({"step": 1.5}, "step"),
        ({"step": True}, "step"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": -0.1}, "beta2"),
        ({"epsilon": -1e-8}, "epsilon"),
        ({"weight_decay": float("inf")}, "weight_decay"),
    ],
)
def test_refused_options_name_the_argument_and_change_nothing(handle, update, options, param):
    problem = Problem(handle, [8.0], [4.0])
    before = problem.state()
    with pytest.raises(BadParamError) as refusal:
        problem.step(update, **{"lr": 0.1, "step": 1, **options})
    assert refusal.value.param == param
    assert refusal.value.op == update.__name__
    assert problem.state() == before


def test_refused_arrays_name_the_argument(handle):
    problem = Problem(handle, [8.0], [4.0])
    cases = [("m", [0.0, 0.0], np.float32, "first_moments[0]"), ("v", [0.0], np.float64, "second_moments[0]")]
    for name, value, dtype, param in cases:
        kept = getattr(problem, name)
        setattr(problem, name, handle.asarray(np.asarray(value, dtype)))
        with pytest.raises(BadParamError) as refusal:
            problem.step(lr=0.1, step=1)
        assert refusal.value.param == param
        setattr(problem, name, kept)
    with pytest.raises(BadParamError) as refusal:
        adam_update(handle, problem.w, problem.g, problem.m, problem.m, lr=0.1, step=1)
    assert "overlaps" in str(refusal.value)
    with pytest.raises(BadParamError) as refusal:
        problem.step(lr=0.1, step=handle.asarray(np.float32(1)))
    assert refusal.value.param == "step"
