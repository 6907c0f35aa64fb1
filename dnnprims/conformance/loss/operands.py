"""Operands of losses, drawn, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...descriptors import LossDescriptor
from ...descriptors.loss import as_loss
from ..bounds import accumulator
from ..calls import Arguments, Array, Generator, as_dtype, wide
from ..cases import Problem
from ..drawing import EXACT_DATA, old_out, sample

ROW_KINDS = ("cross_entropy", "nll", "cosine")


@dataclass(frozen=True)
class Data:
    """Descriptor and operands of one call."""

    loss: LossDescriptor
    prediction: Array
    target: Array
    weight: Array | None

    @classmethod
    def of(cls, given: Arguments) -> Data:
        """Those of a call."""
        return cls(as_loss(given["loss"], given.op), given["prediction"], given["target"], given["weight"])

    @property
    def dtype(self) -> str:
        """Element type of the prediction."""
        return str(self.prediction.dtype.name)

    @property
    def axis(self) -> int:
        """Where a row runs along."""
        return -1 if self.loss.kind == "cosine" or self.prediction.ndim == 1 else 1

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the loss."""
        if self.loss.reduction != "none":
            return ()
        shape = self.prediction.shape
        return tuple(np.delete(shape, self.axis)) if self.loss.kind in ROW_KINDS else shape


def draw_operands(problem: Problem, rng: Generator) -> dict[str, Any]:
    """Predictions and targets from the domain of the kind."""
    kind, shape, dtype = problem.word("kind", "mse"), problem.extents(), problem.dtype
    options = {name: problem.number(name) for name in ("delta", "label_smoothing", "margin") if problem.word(name)}
    loss = LossDescriptor(kind, problem.word("reduction", "mean_samples"), **options)  # type: ignore[arg-type]
    axis = -1 if kind == "cosine" or len(shape) == 1 else 1
    x, target = sample(problem, rng, shape, scale=problem.number("spread", 2.0)), sample(problem, rng, shape)
    dyadic = problem.word("data") in EXACT_DATA
    if dyadic:
        target = as_dtype(4.0 * wide(target), dtype)  # seldom the prediction, and beyond the kinks, too
    if kind in ("bce", "bce_with_logits"):
        target = as_dtype(rng.random(shape).round(2), dtype)
        x = as_dtype(rng.random(shape), dtype) if kind == "bce" else x
    elif kind == "kl_div":
        x, target = as_dtype(-np.abs(wide(x)), dtype), as_dtype(rng.random(shape).round(1), dtype)
    elif kind == "hinge":
        signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        if dyadic:  # most of them wrong: right ones beyond the margin have loss 0
            signs = np.where(rng.random(shape) < 0.8, -np.sign(wide(x)), np.sign(wide(x)))
        target = as_dtype(signs, dtype)
    elif kind == "nll":
        x = as_dtype(-np.abs(wide(x)), dtype)
    if kind in ("cross_entropy", "nll"):
        target = _draw_classes(problem, rng, axis)
    weight = None
    if problem.integer("weight"):
        extents = (shape[axis],) if kind in ROW_KINDS else shape
        weight = np.abs(sample(problem, rng, extents)) if dyadic else as_dtype(rng.random(extents) + 0.25, dtype)
    return {"loss": loss, "prediction": x, "target": target, "weight": weight}


def _draw_classes(problem: Problem, rng: Generator, axis: int) -> Array:
    """Labels, some of them ignored, or probabilities."""
    shape = problem.extents()
    rows, classes = np.delete(shape, axis), shape[axis]
    labels = problem.word("labels", "int64" if problem.word("kind") == "nll" else "")
    if not labels:
        shares = as_dtype(rng.dirichlet(np.ones(max(classes, 1)), rows), problem.dtype)
        return np.ascontiguousarray(np.moveaxis(shares, -1, axis))
    target = rng.integers(0, classes, rows).astype(labels)
    target[rng.random(target.shape) < problem.number("ignored")] = LossDescriptor("nll").ignore_index
    return target


def draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    operands = draw_operands(problem, rng)
    data = Data(**operands)
    if problem.integer("dloss"):
        operands["dloss"] = as_dtype(rng.standard_normal(data.result_shape), accumulator(problem.dtype))
    return {**operands, **problem.scaling(), **old_out(problem, rng, data.prediction.shape)}


def draw_both(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {**draw_operands(problem, rng), "scale": problem.number("scale", 1.0)}
