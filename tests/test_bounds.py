"""Calls are bounded by what they are, wherever they come from; the derived bounds hold and are not idle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import FAMILIES, bounds, runner
from dnnprims.conformance.cases import DTYPES, Call, CaseFamily, Problem, as_dtype
from dnnprims.conformance.drawing import EXACT_DATA


def made(line: str, **defaults: object) -> tuple[CaseFamily, Problem, Call]:
    """A case from its line."""
    problem = Problem.parse(line, **{"dtype": "float32", "seed": 3, **defaults})
    family = next(f for f in FAMILIES.values() if problem.op in f.primitives)
    return family, problem, family.make(problem, np.random.default_rng(3))


def as_given(call: Call) -> dict[str, Any]:
    """The arguments as somebody else would give them: with every destination, whatever it holds before."""
    places = {
        name: as_dtype(np.full(place.shape, 7), place.dtype) if place.old is None else place.old
        for name, place in call.destinations.items()
    }
    return {**call.arguments, **places}


# -- adopted calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adopted_call_is_the_drawn_one(family: CaseFamily, dtype: str) -> None:
    """A call that comes with its arguments alone has the same reference, destinations and bounds."""
    for problem in family.problems(dtype, seed=1, count=10):
        drawn = family.make(problem, np.random.default_rng(problem.integer("seed")))
        adopted = family.adopt(problem.op, as_given(drawn))
        assert adopted.updates == drawn.updates
        assert list(adopted.destinations) == list(drawn.destinations)
        for name, place in drawn.destinations.items():
            other = adopted.destinations[name]
            assert (other.shape, other.dtype, other.old is None) == (place.shape, place.dtype, place.old is None)
        expected = runner.expect(family, problem, drawn)
        again = runner.expect(family, problem, adopted)
        with np.errstate(all="ignore"):
            limits = zip(drawn.bound(expected), adopted.bound(again), strict=True)
            assert all(np.array_equal(one, other, equal_nan=True) for one, other in limits), str(problem)


def test_adopted_call_takes_what_the_primitive_takes() -> None:
    """Names of activations and losses, one array for a list of one, options left out."""
    x = np.array([[1.5, -2.0]], np.float32)
    for op, arguments in (
        ("activation_forward", {"activation": "leaky_relu", "x": x}),
        ("fc_forward", {"x": x, "w": x, "activation": "gelu"}),
        ("fc_backward", {"dy": x[:, :1], "x": x, "w": x, "activation": "leaky_relu", "y": x[:, :1]}),
        ("loss_forward", {"loss": "mse", "prediction": x, "target": x}),
        ("global_norm", {"arrays": x}),
        ("sgd_update", {"weights": x, "gradients": x, "lr": 0.1}),
        (
            "adamw_update",
            {"weights": x, "gradients": x, "first_moments": x, "second_moments": x * x, "lr": 0.1, "step": 1},
        ),
        ("cast", {"x": x, "dtype": np.float64}),
    ):
        family = next(f for f in FAMILIES.values() if op in f.primitives)
        call = family.adopt(op, {name: a.copy() if isinstance(a, np.ndarray) else a for name, a in arguments.items()})
        expected = runner.expect(family, Problem.parse(op), call)
        limits = call.bound(expected)
        assert [limit.shape for limit in limits] == [ideal.shape for ideal in expected], op
        assert all(np.isfinite(limit).all() for limit in limits), op


def test_math_mode_is_the_calls_own() -> None:
    """TF32 widens the bound of a float32 product and of nothing else."""
    rng = np.random.default_rng(0)
    operands = {"dy": rng.standard_normal((5, 40)), "w": rng.standard_normal((40, 7))}
    family, problem = FAMILIES["fc"], Problem.parse("fc_backward_data")
    for dtype, wider in (("float32", True), ("bfloat16", False), ("float64", False)):
        arguments = {name: as_dtype(a, dtype) for name, a in operands.items()}
        ieee, tf32 = (family.adopt(problem.op, arguments, math=math) for math in ("ieee", "tf32"))
        expected = runner.expect(family, problem, ieee)
        assert bool(np.all(tf32.bound(expected)[0] > ieee.bound(expected)[0])) is wider


# -- exact results ---------------------------------------------------------------------------------------------------


def shipped(family: CaseFamily, dtype: str, count: int) -> list[tuple[Problem, list[Any], list[Any]]]:
    """(problem, expected results, bounds) of the cases with data that are meant to be exact; indices left out."""
    found = []
    for problem in family.problems(dtype, seed=2, count=count):
        if problem.word("data") in (*EXACT_DATA, "equal"):
            call = family.make(problem, np.random.default_rng(problem.integer("seed")))
            expected = runner.expect(family, problem, call)
            with np.errstate(all="ignore"):
                limits = call.bound(expected)
            kinds = [place.dtype for place in call.destinations.values()]
            numbers = [i for i in range(len(expected)) if i >= len(kinds) or kinds[i] in DTYPES]
            found.append((problem, [expected[i] for i in numbers], [limits[i] for i in numbers]))
    return found


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_cases_are_informative(family: CaseFamily, dtype: str) -> None:
    """At most 30 % of the results that must be met to the last bit are 0: a 0 says little about where it came from."""
    for problem, expected, limits in shipped(family, dtype, 40):
        for ideal, limit in zip(expected, limits, strict=True):
            if ideal.size >= 16 and not np.any(limit):
                assert np.mean(ideal == 0) <= 0.3, str(problem)


@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if f.name != "adam"], ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_has_exact_cases(family: CaseFamily, dtype: str) -> None:
    """In the corners and at random, for every primitive but those of Adam, whose root and quotient always round."""
    exact = {
        problem.op
        for problem, expected, limits in shipped(family, dtype, 60)
        if any(ideal.size and not np.any(limit) for ideal, limit in zip(expected, limits, strict=True))
    }
    assert exact == set(family.primitives)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_on_a_grid_are_exact_in_any_order(dtype: str) -> None:
    """Up to 2^p steps, in every permutation; one step more and an order that rounds is found."""
    kind, digits = np.dtype(dtype).type, {"float32": 24, "float64": 53}[dtype]
    rng = np.random.default_rng(4)
    terms = rng.integers(-(2 ** (digits - 7)), 2 ** (digits - 7), 100).astype(np.float64) / 8.0
    assert bool(bounds.exact_sums(np.abs(terms).sum(), bounds.grid(terms), dtype))
    assert len({sum(rng.permutation(terms).astype(kind), kind(0)) for _ in range(20)}) == 1
    big = [2.0**digits, 1.0, 1.0]
    assert not bool(bounds.exact_sums(sum(big), bounds.grid(big), dtype))
    assert kind(kind(big[0]) + kind(1)) + kind(1) != kind(big[0]) + kind(2)


def test_grid_is_what_divides() -> None:
    """Of dyadic numbers, of zeros, of what is not finite, of subnormal numbers."""
    assert bounds.grid([1.5, 4.0, 0.0]) == 0.5
    assert bounds.grid([0.0]) == np.inf
    assert bounds.lowest_bit([6.0, 0.0, np.nan, np.inf, 2.0**-1074]).tolist() == [2.0, np.inf, 0.0, 0.0, 2.0**-1074]
    assert bounds.representable([257.0, 256.0, 2.0**-150, np.inf], "bfloat16").tolist() == [False, True, False, False]
    assert not bool(bounds.exact_sums(1.0, 0.0, "float32"))


def test_products_of_few_digits_are_exact() -> None:
    """The odd parts have 24 bits together, or they have not."""
    x = np.array([[3.0, 5.0, 0.5], [2.0**-60, 2.0**-60, 1.0], [2.0**13 + 1, 2.0**12 + 1, 1.0], [0.1, 1.0, 1.0]])
    assert bounds.exact_products(x, (1,), "float32").tolist() == [True, True, False, False]
    assert bounds.exact_roots([3.0, np.sqrt(2.0)], [9.0, 2.0], "float32").tolist() == [True, False]


# -- the table of tiers, and how tight the bounds are ----------------------------------------------------------------


def test_table_of_tiers_is_complete() -> None:
    """Each primitive has its tiers and the derivation that they come from."""
    assert set(bounds.TIERS) == {op.__name__ for op in dnnprims.PRIMITIVES}
    assert all(set(tiers.split()) <= {"T0", "T1", "T2"} and why for tiers, why in bounds.TIERS.values())


@pytest.mark.parametrize("form", ["accumulate_gradient", "accumulate_step"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_counted_operations_bound_an_update(form: str, nesterov: bool) -> None:
    """Float32 arithmetic without fused operations stays within the bound of an SGD step, and comes near it."""
    rng, one = np.random.default_rng(5), np.float32
    w, g, v = (rng.standard_normal(20000).astype(one) for _ in range(3))
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "gain": 0.7, "decay": 0.01, "scale": 0.3}
    lr, mu, gain, decay, scale = (one(value) for value in options.values())
    gradient = scale * g + decay * w
    if form == "accumulate_step":
        velocity = mu * v - (lr * gain) * gradient
        weight = w + (mu * velocity - lr * gradient if nesterov else velocity)
    else:
        velocity = mu * v + gain * gradient
        weight = w - lr * (gradient + mu * velocity if nesterov else velocity)
    wide = [a.astype(np.float64) for a in (w, g, v)]
    ideal_w, ideal_v = wide[0].copy(), wide[2].copy()
    keywords = {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01, "gradient_scale": 0.3, "nesterov": nesterov}
    FAMILIES["sgd"].reference.sgd_update([ideal_w], [wide[1]], [ideal_v], lr=0.1, form=form, **keywords)
    limits = bounds.sgd_errors(*wide, "float32", nesterov=nesterov, stepping=form == "accumulate_step", **options)
    for got, ideal, limit in ((weight, ideal_w, limits[0]), (velocity, ideal_v, limits[1])):
        ratio = np.abs(got - ideal) / bounds.rounded(ideal, "float32", limit)
        assert 0.25 < ratio.max() <= 1.0


def test_hinge_slope_may_jump_where_its_side_is_unknown() -> None:
    """At margin = t x of numbers that float32 rounds either slope is right; away from there one is."""
    x = np.array([[0.1, 0.3]], np.float32)
    call = FAMILIES["loss"].adopt(
        "loss_backward",
        {"loss": dnnprims.LossDescriptor("hinge", margin=0.1), "prediction": x, "target": np.ones_like(x)},
    )
    limit = call.bound([np.array([[-1.0, 0.0]])])[0]
    assert limit[0, 0] > 1.0 > limit[0, 1]
