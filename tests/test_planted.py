"""Errors planted in the CUDA text, as it runs on the emulator: the shipped cases of the family catch each one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims.conformance import FAMILIES, bounds, runner
from dnnprims.conformance.calls import Arguments, Array, Destination, Primitive, as_dtype, wide
from dnnprims.conformance.cases import CaseFamily, Problem
from dnnprims.runtime import emulator, emulator_compiler
from dnnprims.runtime.compiler import read_source

#: Random cases beside the corner cases of a family.
RANDOM_CASES = 6


@dataclass(frozen=True)
class Plant:
    """An edit of the text of a kernel family, and where the cases that meet it are.

    `old` occurs once in the text. `instances` is part of the name of each instantiation that is compiled, `words` what
    the line of a case must contain so that it needs no other.
    """

    kernels: str
    family: str
    dtype: str
    old: str
    new: str
    instances: str = ""
    words: str = ""
    before: str = ""


#: float32 with the 10 bits behind the first that TF32 keeps.
_TF32 = "DEVICE float as_tf32(float v) { return bits_to_float(float_to_bits(v) & 0xffffe000u); }\n"

_SWAPPED = "p.m - row, p.k - k);"

PLANTS = {
    "tf32_for_float32": Plant(
        "gemm", "fc", "float32", "terms ? to_acc(p[l * line + t * term])", "terms ? as_tf32(p[l * line + t * term])",
        words="fc_", before=_TF32,
    ),
    "float16_accumulation": Plant(
        "gemm", "fc", "float16", "sum[i][j] = fma(left[i], right[j], sum[i][j])",
        "sum[i][j] = to_acc(from_acc<float16>(fma(left[i], right[j], sum[i][j])))", words="fc_",
    ),
    "lost_product": Plant(
        "gemm", "fc", "float32", "for (int t = 0; t < terms; ++t)", "for (int t = k == 0; t < terms; ++t)", words="fc_"
    ),
    "lost_last_product": Plant(
        "gemm", "fc", "bfloat16", "? (int)(p.k - k) : SLICE;", "? (int)(p.k - k) - 1 : SLICE;", words="fc_"
    ),
    "swapped_strides": Plant(
        "gemm", "fc", "float32", f"p.a_row, p.a_column, {_SWAPPED}", f"p.a_column, p.a_row, {_SWAPPED}", words="fc_"
    ),
    "tail_off_by_one": Plant(
        "sgd", "sgd", "float32", "for_each<1>(arrays, chunk.count - done, update)",
        "for_each<1>(arrays, chunk.count - done - 1, update)",
    ),
    "write_behind_the_tail": Plant(
        "sgd", "sgd", "bfloat16", "for_each<1>(arrays, chunk.count - done, update)",
        "for_each<1>(arrays, chunk.count - done + 1, update)",
    ),
    "missing_epsilon": Plant(
        "adam", "adam", "float32", "fma(sqrt(moments[1]), root_scale, epsilon)", "(sqrt(moments[1]) * root_scale)"
    ),
    "missing_epsilon_of_clipping": Plant(
        "gradient", "gradient", "float32", "p.max_norm / (scale + p.epsilon)", "p.max_norm / scale", words="clip_by"
    ),
    "stale_workspace": Plant(
        "reduction", "reduction", "float32",
        "static_cast<typename Op::Part*>(p.parts)[output * p.splits + blockIdx.y] = part;",
        "Op::merge(static_cast<typename Op::Part*>(p.parts)[output * p.splits + blockIdx.y], part);",
        instances="SumOf<float>", words="operation=sum",
    ),
    "undilated_filter": Plant(
        "convolution", "convolution", "bfloat16", "padding + r * dilation;", "padding + r;",
        instances="conv_backward_filter", words="conv_backward_filter",
    ),
    "stride_that_does_not_divide": Plant(
        "convolution", "convolution", "float32", "return o * stride == from && o < extent;", "return o < extent;",
        instances="conv_backward_data", words="conv_backward_data",
    ),
    "first_group_for_all": Plant(
        "convolution", "convolution", "float64", "first = quotient(k, c.out_per_group) * c.in_per_group", "first = 0",
        instances="conv_forward<double, Identity", words="conv_forward shape=2x4x5x5 k=6",
    ),
    "scale_before_the_bias": Plant(
        "convolution", "convolution", "float64", "z *= p.scale[k];", "z = (z - p.b[k]) * p.scale[k] + p.b[k];",
        instances="Relu<double>", words="scaled=1 data=lopsided",
    ),
    "difference_of_mean_squares": Plant(
        "batchnorm", "batchnorm", "float32", "mean[k] = to_acc(x[0].lane[k]);", "mean[k] = A(0);",
        words="batchnorm_forward_training",
    ),
    "biased_running_variance": Plant(
        "batchnorm", "batchnorm", "float64", "? all.count - A(1) :", "? all.count :",
        words="batchnorm_forward_training",
    ),
    "gradient_without_the_mean": Plant(
        "batchnorm", "batchnorm", "float16", "dx[j] - constant[j]", "dx[j]", words="batchnorm_backward",
    ),
    "wrong_bias_correction": Plant(
        "adam", "adam", "float32", "(A)(1.0 / sqrt(correction2))", "(A)(1.0 / correction2)"
    ),
}  # fmt: skip


def planted_build(plant: Plant) -> Callable[..., emulator_compiler.Library]:
    """`emulator.build` with the text of one family edited, and no more instantiations compiled than needed."""
    sound = emulator.build

    def build(chosen: Any, dtype: Any, *arguments: Any) -> emulator_compiler.Library:
        if chosen.name != plant.kernels or dtype.name != plant.dtype:
            return sound(chosen, dtype, *arguments)
        text = read_source(chosen.name)
        assert text.count(plant.old) == 1, f"the text to plant in has changed: {plant.old}"
        entry = "template <class T, class A>\nDEVICE void stage("
        text = text.replace(plant.old, plant.new).replace(entry, plant.before + entry)
        names = [name for group in chosen.instances(dtype).values() for name in group]
        expressions = list(dict.fromkeys(name for name in names if plant.instances in name))
        return emulator_compiler.build_source(text, expressions, f"{plant.kernels}-{dtype.name}")

    return build


def cases(family: CaseFamily, dtype: str, words: str) -> list[Problem]:
    """The shipped cases that can meet the error."""
    shipped = family.problems(dtype, seed=0, count=RANDOM_CASES)
    return [problem for problem in shipped if words in str(problem)]


def first_failure(family: CaseFamily, problems: list[Problem]) -> runner.Outcome | None:
    """The first case that fails on the emulator."""
    with dnnprims.create_handle("emulator") as handle:
        outcomes = (runner.run_case(handle, family, problem) for problem in problems)
        return next((outcome for outcome in outcomes if not outcome.passed), None)


@pytest.mark.skipif("not __import__('shutil').which('g++')", reason="the emulator needs g++")
@pytest.mark.parametrize("name", PLANTS)
def test_planted_error_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cases pass as the text is, and one fails, by its results, with the error in it."""
    plant = PLANTS[name]
    family = FAMILIES[plant.family]
    problems = cases(family, plant.dtype, plant.words)
    assert first_failure(family, problems) is None
    monkeypatch.setattr(emulator, "build", planted_build(plant))
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path))
    outcome = first_failure(family, problems)
    assert outcome is not None, f"no case of {len(problems)} notices"
    assert "Error:" not in outcome.complaint, outcome.complaint
    print(f"{name}: {outcome.problem}: {outcome.complaint}")


# -- a primitive that is not there yet -------------------------------------------------------------------------------


def _two_passes(x: Array) -> Array:
    mean = x.sum(axis=1, dtype=x.dtype, keepdims=True) / x.dtype.type(x.shape[1])
    return np.asarray(np.square(x - mean).sum(axis=1, dtype=x.dtype) / x.dtype.type(x.shape[1]))


def _square_of_the_mean(x: Array) -> Array:
    count = x.dtype.type(x.shape[1])
    square = np.square(x).sum(axis=1, dtype=x.dtype) / count
    return np.asarray(square - np.square(x.sum(axis=1, dtype=x.dtype) / count))


def _draw_rows(problem: Problem, rng: np.random.Generator) -> dict[str, Any]:
    rows = rng.standard_normal(problem.extents()) + problem.number("mean")
    return {"x": as_dtype(rows, problem.dtype)}


def _bound_variance(given: Arguments, expected: list[Array]) -> list[Array]:
    """Of the mean of (x - m)^2: kappa growth(n) u var, with kappa = (|m| + sigma) / sigma.

    The computed mean errs by d <= growth(n) u (|m| + sigma), as mean |x| <= |m| + sigma. The deviations from it add up
    to -n d, so that the mean of their squares is var + d^2: with d = growth(n) u kappa sigma the second term is
    (growth(n) u kappa)^2 var, less than growth(n) u kappa var as long as the mean has a digit left. The sum of squares,
    all positive, adds growth(n) u var, the difference, its square and the quotient 4 u var: kappa >= 1 covers them when
    growth(n) is counted twice. E[x^2] - E[x]^2 loses kappa^2 u var.
    """
    x, (variance,) = wide(given["x"]), expected
    sigma = np.sqrt(variance)
    kappa = (np.abs(x.mean(axis=1)) + sigma) / sigma
    error = bounds.scaled_unit("float32", 2.0 * bounds.growth(x.shape[1]) + 4.0) * kappa * variance
    return [bounds.rounded(variance, "float32", error)]


VARIANCE = CaseFamily(
    "variance",
    SimpleNamespace(variance=lambda x, out=None: x.var(axis=1)),  # type: ignore[arg-type]
    {"variance": Primitive(_draw_rows, _bound_variance, lambda g: {"out": Destination(g["x"].shape[:1], "float32")})},
    ("variance shape=5x64", "variance shape=5x1000 mean=1e4", "variance shape=3x4097 mean=-1e4"),
    lambda rng: f"variance shape=4x{int(rng.integers(2, 3000))} mean=1e{int(rng.integers(-1, 5))}",
)


@pytest.mark.parametrize(("compute", "passes"), [(_two_passes, True), (_square_of_the_mean, False)])
def test_cancelling_variance_is_caught(
    compute: Callable[[Array], Array], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 stand-ins are held to the bound of a variance."""
    monkeypatch.setattr(dnnprims, "variance", lambda handle, x: compute(x), raising=False)
    with dnnprims.create_handle("numpy") as handle:
        problems = VARIANCE.problems("float32", seed=0, count=20)
        failed = [outcome for p in problems if not (outcome := runner.run_case(handle, VARIANCE, p)).passed]
    assert (not failed) is passes, [str(outcome.problem) for outcome in failed]
    for outcome in failed[:1]:
        print(f"E[x^2] - E[x]^2: {outcome.problem}: {outcome.complaint}")
