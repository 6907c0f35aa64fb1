"""Calls are bounded by what they are, wherever they come from; the derived bounds hold and are not idle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnnprims.conformance import FAMILIES, runner
from dnnprims.conformance.cases import Call, CaseFamily, Problem, as_dtype


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
