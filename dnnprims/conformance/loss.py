"""Cases of losses: every kind under every reduction, labels that are ignored, weights, rows of each length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..descriptors import LOSS_KINDS, REDUCTIONS, LossDescriptor
from ..descriptors.loss import as_loss
from ..reference import loss as reference
from .bounds import (
    accumulator,
    blended,
    growth,
    log_softmax_error,
    rounded,
    scaled_unit,
    softmax_error,
    sum_error,
    ulp,
)
from .cases import Arguments, Array, CaseFamily, Destination, Generator, Primitive, Problem, as_dtype, wide
from .drawing import draw_placing, draw_shape, old_out, pick, sample, show

_ROW_KINDS = ("cross_entropy", "nll", "cosine")


@dataclass(frozen=True)
class _Data:
    """Descriptor and operands of one call."""

    loss: LossDescriptor
    prediction: Array
    target: Array
    weight: Array | None

    @classmethod
    def of(cls, given: Arguments) -> _Data:
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
        return tuple(np.delete(shape, self.axis)) if self.loss.kind in _ROW_KINDS else shape


def _draw_operands(problem: Problem, rng: Generator) -> dict[str, Any]:
    """Predictions and targets from the domain of the kind."""
    kind, shape, dtype = problem.word("kind", "mse"), problem.extents(), problem.dtype
    options = {name: problem.number(name) for name in ("delta", "label_smoothing", "margin") if problem.word(name)}
    loss = LossDescriptor(kind, problem.word("reduction", "mean_samples"), **options)  # type: ignore[arg-type]
    axis = -1 if kind == "cosine" or len(shape) == 1 else 1
    x, target = sample(problem, rng, shape, scale=problem.number("spread", 2.0)), sample(problem, rng, shape)
    if kind in ("bce", "bce_with_logits"):
        target = as_dtype(rng.random(shape).round(2), dtype)
        x = as_dtype(rng.random(shape), dtype) if kind == "bce" else x
    elif kind == "kl_div":
        x, target = as_dtype(-np.abs(wide(x)), dtype), as_dtype(rng.random(shape).round(1), dtype)
    elif kind == "hinge":
        target = as_dtype(np.where(rng.random(shape) < 0.5, -1.0, 1.0), dtype)
    elif kind == "nll":
        x = as_dtype(-np.abs(wide(x)), dtype)
    if kind in ("cross_entropy", "nll"):
        target = _draw_classes(problem, rng, axis)
    weight = None
    if problem.integer("weight"):
        extents = (shape[axis],) if kind in _ROW_KINDS else shape
        weight = as_dtype(rng.random(extents) + 0.25, dtype)
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


@dataclass(frozen=True)
class _Errors:
    """Errors of the unreduced losses and of the slopes, and the relative error of the divisor."""

    losses: Array
    slopes: Array
    divisor: float


def _errors(data: _Data, dtype: str) -> _Errors:
    labels = data.target.dtype.kind == "i"
    summed = labels and data.weight is not None and data.loss.reduction == "mean_elements"
    divisor = scaled_unit(dtype, growth(data.target.size) if summed else 2.0)
    derive = _elementwise_errors if data.loss.kind not in _ROW_KINDS else _row_errors
    losses, slopes = derive(data, dtype)
    return _Errors(losses, slopes, divisor)


def _elementwise_errors(data: _Data, dtype: str) -> tuple[Array, Array]:
    """Up to eight roundings and one function, of the sizes of the terms that are added."""
    x, t, kind, c = wide(data.prediction), wide(data.target), data.loss.kind, data.loss.delta
    d, functions = np.abs(x - t), 1.0
    if kind in ("mse", "l1", "huber", "smooth_l1", "hinge"):
        functions = 0.0
    if kind == "mse":
        loss, slope = d * d, 2.0 * d
    elif kind == "l1":
        loss, slope = d, np.ones_like(d)
    elif kind in ("huber", "smooth_l1"):
        loss, slope = np.where(d <= c, 0.5 * d * d, c * (d + 0.5 * c)), np.minimum(d, c)
        loss, slope = (loss / c, slope / c) if kind == "smooth_l1" else (loss, slope)
    elif kind == "bce":
        loss = np.abs(t * np.maximum(np.log(x), -100.0)) + np.abs((1.0 - t) * np.maximum(np.log1p(-x), -100.0))
        slope = d / np.maximum(x * (1.0 - x), reference.LEAST_SPAN)
    elif kind == "bce_with_logits":
        e = np.exp(-np.abs(x))
        loss = np.abs(np.where(x >= 0, 1.0 - t, t) * x) + np.log1p(e)
        near, far = np.where(x >= 0, 1.0 - t, t), np.where(x >= 0, t, 1.0 - t)
        slope = (near + far * e) / (1.0 + e)
    elif kind == "kl_div":
        p, log_p = (np.exp(t), t) if data.loss.log_target else (t, np.log(t))
        loss, slope = np.where(p == 0, 0.0, p * (np.abs(log_p) + np.abs(x))), p
    else:
        loss, slope = abs(float(data.loss.margin or 0.0)) + np.abs(t * x), np.abs(t)
    scale = 1.0 if data.weight is None else np.abs(wide(data.weight))
    unit = scaled_unit(dtype, 8.0, functions=functions)
    return unit * loss * scale, unit * slope * scale


def _row_errors(data: _Data, dtype: str) -> tuple[Array, Array]:
    rows = np.moveaxis(wide(data.prediction), data.axis, -1)
    losses, slopes = (_cosine_errors if data.loss.kind == "cosine" else _class_errors)(data, rows, dtype)
    return losses, np.moveaxis(slopes, -1, data.axis)


def _cosine_errors(data: _Data, rows: Array, dtype: str) -> tuple[Array, Array]:
    """Three sums of products over a row, two of them under a root."""
    targets = np.moveaxis(wide(data.target), data.axis, -1)
    lengths = [np.sqrt((a * a).sum(-1, keepdims=True)) for a in (rows, targets)]
    u, v = (np.abs(a) / np.where(norm == 0, 1.0, norm) for a, norm in zip((rows, targets), lengths, strict=True))
    unit = scaled_unit(dtype, 2.0 * growth(rows.shape[-1]) + 12.0)
    size = (u * v).sum(-1, keepdims=True)
    slopes = unit * (2.0 * u * size + v) / np.where(lengths[0] == 0, 1.0, lengths[0])
    return unit * (1.0 + size[..., 0]), slopes


def _class_errors(data: _Data, rows: Array, dtype: str) -> tuple[Array, Array]:
    """sum_k a_k (lse - x_k) and softmax_k sum(a) - a_k with coefficients a of label, smoothing and weight."""
    classes = rows.shape[-1]
    if data.target.dtype.kind == "i":
        share = (data.target[..., None] == np.arange(classes)).astype(np.float64)
        share = share * (data.target != data.loss.ignore_index)[..., None]
    else:
        share = np.moveaxis(wide(data.target), data.axis, -1)
    smoothing = data.loss.label_smoothing if data.loss.kind == "cross_entropy" else 0.0
    counts = share.sum(-1, keepdims=True) > 0
    a = (1.0 - smoothing) * share + smoothing / max(classes, 1) * counts
    a = a if data.weight is None else a * wide(data.weight)
    unit = scaled_unit(dtype, 6.0)
    if data.loss.kind == "nll":
        return unit * (a * np.abs(rows)).sum(-1), unit * a
    distance = np.abs(rows - rows.max(-1, keepdims=True, initial=-np.inf))
    powers = np.exp(-distance)
    total = powers.sum(-1, keepdims=True)
    p, log_p = powers / total, -distance - np.log(total)
    each = log_softmax_error(log_p, classes, powers, distance, dtype, -1)
    sizes = (a * np.abs(log_p)).sum(-1)
    losses = (a * each).sum(-1) + sum_error(classes, sizes, dtype) + unit * sizes
    mass = a.sum(-1, keepdims=True)
    wrong = softmax_error(p, classes, powers, distance, dtype, -1) + p * scaled_unit(dtype, growth(classes))
    return losses, mass * wrong + unit * (p * mass + a)


def _loss_bound(data: _Data, errors: _Errors, expected: Array, dtype: str) -> Array:
    """The losses are summed, divided and stored in the accumulator's type."""
    kept = accumulator(dtype)
    if data.loss.reduction == "none":
        return rounded(expected, kept, errors.losses)
    unreduced, _ = reference._evaluate(data.loss, data.prediction, data.target, data.weight)
    divisor = reference._divisor(data.loss, data.prediction, data.target, data.weight)
    total = sum_error(unreduced.size, np.abs(unreduced).sum(), dtype) + errors.losses.sum()
    return rounded(expected, kept, total / divisor + (errors.divisor + scaled_unit(dtype, 2.0)) * np.abs(expected))


def _gradient_error(data: _Data, errors: _Errors, gradient: Array, upstream: Array, dtype: str) -> Array:
    divisor = reference._divisor(data.loss, data.prediction, data.target, data.weight)
    if divisor == 0:
        return np.zeros(gradient.shape)
    factor = np.abs(upstream) / divisor
    relative = errors.divisor + scaled_unit(dtype, 4.0)
    return np.asarray(errors.slopes * factor + relative * np.abs(gradient) + ulp(0.0, accumulator(dtype)))


def _into_loss(given: Arguments) -> dict[str, Destination]:
    data = _Data.of(given)
    return {"out": Destination(data.result_shape, accumulator(data.dtype))}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of losses."""
    data = _Data.of(given)
    return [_loss_bound(data, _errors(data, data.dtype), expected[0], data.dtype)]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    operands = _draw_operands(problem, rng)
    data = _Data(**operands)
    if problem.integer("dloss"):
        operands["dloss"] = as_dtype(rng.standard_normal(data.result_shape), accumulator(problem.dtype))
    return {**operands, **problem.scaling(), **old_out(problem, rng, data.prediction.shape)}


def _into_prediction(given: Arguments) -> dict[str, Destination]:
    x = given["prediction"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="prediction")}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Slopes, times what reaches the loss."""
    data, dloss = _Data.of(given), given["dloss"]
    factor = np.ones(()) if dloss is None else wide(dloss)
    if factor.ndim and data.loss.kind in _ROW_KINDS:
        factor = np.expand_dims(factor, data.axis)
    error = _gradient_error(data, _errors(data, data.dtype), _unblended(data, dloss), factor, data.dtype)
    return [given.blended(_into_prediction(given)["out"], expected[0], error)]


def _unblended(data: _Data, dloss: Array | None) -> Array:
    """The gradient in float64, before alpha and beta."""
    target = data.target if data.target.dtype.kind == "i" else wide(data.target)
    weight, upstream = (None if a is None else wide(a) for a in (data.weight, dloss))
    return reference.loss_backward(data.loss, wide(data.prediction), target, weight=weight, dloss=upstream)


def _draw_both(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {**_draw_operands(problem, rng), "scale": problem.number("scale", 1.0)}


def _into_both(given: Arguments) -> dict[str, Destination]:
    """Loss and gradient, of which the latter may replace the prediction."""
    data = _Data.of(given)
    gradient = Destination(data.prediction.shape, data.dtype, in_place="prediction")
    return {"out": Destination(data.result_shape, accumulator(data.dtype)), "dprediction": gradient}


def _bound_both(given: Arguments, expected: list[Array]) -> list[Array]:
    """As the two alone; `scale` counts for the gradient."""
    data, (value, gradient) = _Data.of(given), expected
    errors = _errors(data, data.dtype)
    error = _gradient_error(data, errors, _unblended(data, None), np.ones(()), data.dtype)
    return [
        _loss_bound(data, errors, value, data.dtype),
        blended(gradient, data.dtype, error, alpha=float(given["scale"])),
    ]


def _described(given: Arguments) -> dict[str, Any]:
    return {"loss": as_loss(given["loss"], given.op)}


def draw(rng: Generator) -> str:
    """A random kind, reduction and shape."""
    kind, op = pick(rng, *LOSS_KINDS), pick(rng, "loss_forward", "loss_backward", "loss_forward_backward")
    shape = tuple(max(extent, 1) for extent in draw_shape(rng, (1, 3), most=900))
    words = [f"kind={kind} reduction={pick(rng, *REDUCTIONS)} shape={show(shape)}"]
    if kind in ("cross_entropy", "nll"):
        words.append(f"labels={pick(rng, 'int32', 'int64')} ignored={pick(rng, '0.0', '0.3')}")
    if kind != "cosine":
        words.append(f"weight={int(rng.integers(2))}")
    if kind == "cross_entropy":
        words.append(f"label_smoothing={pick(rng, '0.0', '0.125')}")
    if op == "loss_backward":
        return f"{op} {' '.join(words)} dloss={int(rng.integers(2))} {draw_placing(rng)}"
    scale = f"scale={pick(rng, '1.0', '1024.0', '-0.5')}" if op == "loss_forward_backward" else ""
    return f"{op} {' '.join(words)} {scale} {draw_placing(rng, in_place=op != 'loss_forward', blend=False)}"


def _corners() -> tuple[str, ...]:
    lines = [
        "loss_forward kind=mse shape=0x3 reduction=sum",
        "loss_forward_backward kind=mse shape=1 into=out",
        "loss_forward_backward kind=mse shape=9001 reduction=mean_elements into=out",  # several parts of one sum
        "loss_backward kind=mse shape=33x7 place=offset dloss=1 alpha=0.5 beta=2.0 into=out",
        "loss_forward kind=cross_entropy shape=0x3 labels=int64 reduction=sum",
        "loss_backward kind=cross_entropy shape=9x5 labels=int32 ignored=1.0 reduction=mean_elements into=out",
        "loss_forward_backward kind=cross_entropy shape=7x10 labels=int64 ignored=0.3 weight=1 into=out",
        "loss_forward_backward kind=cross_entropy shape=7x10 label_smoothing=0.125 weight=1 into=out",  # probabilities
        "loss_forward_backward kind=cross_entropy shape=3x5x4x2 labels=int32 reduction=none into=out",
        "loss_forward_backward kind=cross_entropy shape=4x1000 labels=int64 into=in_place",
        "loss_forward_backward kind=cross_entropy shape=2x5001 labels=int64 place=offset into=out",
        "loss_forward_backward kind=cross_entropy shape=6x33 spread=500.0 labels=int64 only=float32,float64",
        "loss_backward kind=cosine shape=5x64 reduction=none dloss=1 into=in_place",
    ]
    for kind in LOSS_KINDS:
        labels = "labels=int64 " if kind in ("cross_entropy", "nll") else ""
        lines += [
            f"loss_forward_backward kind={kind} {labels}shape=8x33 reduction={reduction} into=out"
            for reduction in REDUCTIONS
        ]
        lines.append(f"loss_backward kind={kind} {labels}shape=8x32 dloss=1 reduction=none")
    lines += [f"loss_forward kind={kind} shape=8x33 delta=0.5" for kind in ("huber", "smooth_l1")]
    return tuple(lines)


FAMILY = CaseFamily(
    "loss",
    reference,
    {
        "loss_forward": Primitive(_draw_operands, _bound_forward, _into_loss, reference=_described),
        "loss_backward": Primitive(_draw_backward, _bound_backward, _into_prediction, reference=_described),
        "loss_forward_backward": Primitive(_draw_both, _bound_both, _into_both, reference=_described),
    },
    _corners(),
    draw,
)
