"""The programs of `examples/` run as they stand, and do what they say."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resnet50_step import make_step

import dnnprims as dp

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def has_gpu() -> bool:
    """Whether a handle on CUDA can be made."""
    from dnnprims.runtime.cuda import gpu_works

    return gpu_works()


BACKENDS = [
    "numpy",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU here")]),
]


def run_example(name: str, backend: str, *options: str) -> str:
    """What an example prints, run in an interpreter of its own in which warnings are errors."""
    environment = {**os.environ, "DNNPRIMS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    strict = ["-W", "error"] if backend == "numpy" else []  # CuPy has warnings of its own
    command = [sys.executable, *strict, str(ROOT / "examples" / name), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(printed: str) -> list[float]:
    """Every loss that was printed."""
    return [float(number) for number in re.findall(r"loss ([\d.]+)", printed)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_learn_the_exclusive_or(backend: str) -> None:
    """The loss falls each time it is printed, and nearly all points are told apart."""
    printed = run_example("layer.py", backend)
    assert printed.startswith(f"backend {backend}\n")
    seen = losses(printed)
    assert len(seen) == 4
    assert seen == sorted(seen, reverse=True)
    assert float(printed.rsplit(" ", 1)[1].rstrip("%\n")) >= 95.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graph_does_what_the_eager_step_does(backend: str) -> None:
    """The sine is fitted; a captured step ends at the same loss, and where there is no GPU the example says so."""
    printed = run_example("graph.py", backend)
    assert printed.startswith(f"eagerly on {backend}: ")
    seen = losses(printed)
    assert seen[0] < 0.02
    assert len(set(seen)) == 1
    assert ("as a CUDA graph: " in printed) == (backend == "cuda")
    assert ("no GPU in use" in printed) == (backend != "cuda")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_little_resnet_learns_its_batch(backend: str) -> None:
    """Steps on one batch lower its loss; on a GPU the captured ones go on where the others ended."""
    little = "--batch 4 --size 32 --width 8 --blocks 1,2,1,1 --classes 10 --steps 4 --dtype float32 --peers none"
    printed = run_example("resnet50.py", backend, *little.split(), "--backend", backend)
    assert printed.startswith(f"dnnprims, {backend} ")
    assert ("convolution filter" in printed) == (backend == "cuda")
    first, last = losses(printed)
    assert last < first


def test_the_gradients_of_a_little_resnet() -> None:
    """Of one element of each parameter, by central differences of the loss, in float64."""
    options = argparse.Namespace(dtype="float64", batch=3, size=64, width=4, blocks=[2, 1], classes=5)
    rng, step_of_weight = np.random.default_rng(0), 1e-6
    with dp.create_handle("numpy") as handle:
        step, loss = make_step(handle, options)
        calls = [call for kind, call in step.calls if kind != "optimizer"]

        def total() -> float:
            for call in calls:
                call()
            return float(loss)

        total()
        gradients = [gradient.copy() for gradient in step.gradients]
        for weight, gradient in zip(step.weights, gradients, strict=True):
            at = tuple(rng.integers(0, extent) for extent in weight.shape)
            old, ends = float(weight[at]), []
            for shift in (step_of_weight, -step_of_weight):
                weight[at] = old + shift
                ends.append(total())
            weight[at] = old
            assert gradient[at] == pytest.approx((ends[0] - ends[1]) / (2 * step_of_weight), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_named_in_the_readme(path: Path) -> None:
    """Under 80 lines each, adapters of whole libraries and a whole network apart; a reader of the README finds them."""
    short = len(path.read_text(encoding="utf-8").splitlines()) < 80
    assert short or path.name.startswith(("against_", "resnet50"))
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_examples() -> None:
    """The pattern that finds them finds them."""
    assert {path.name for path in EXAMPLES} >= {"layer.py", "graph.py"}
