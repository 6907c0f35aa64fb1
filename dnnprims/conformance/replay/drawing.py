"""Data for a call line, which has none: numbers of the domain that each argument has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ...descriptors import LossDescriptor
from ...descriptors.activation import as_activation
from ...descriptors.loss import as_loss
from ...problem import CallLine, Operand
from ...reference import activation, softmax
from ..calls import Array, Generator, as_dtype, wide

Values = dict[str, Array]

#: Operands whose numbers do not depend on others -> how they are drawn.
_OWN: dict[str, Callable[[Generator, tuple[int, ...]], Any]] = {
    "found_inf": lambda rng, shape: np.zeros(shape),
    "step": lambda rng, shape: np.full(shape, 3),
    "lr": lambda rng, shape: np.full(shape, 0.125),
    "gradient_scale": lambda rng, shape: np.full(shape, 0.5),
    "scale": lambda rng, shape: np.full(shape, 0.125),
    "norm": lambda rng, shape: np.full(shape, 8.0),
    "slope": lambda rng, shape: 0.25 + 0.5 * rng.standard_normal(shape),
    "weight": lambda rng, shape: rng.random(shape) + 0.25,
    "second_moments": lambda rng, shape: rng.standard_normal(shape) ** 2,
}

#: Primitives whose functions have more to show further out -> spread of their input.
_SPREAD = {"activation_forward": 4.0, "activation_backward": 4.0, "softmax_forward": 3.0}


def draw(line: CallLine, rng: Generator) -> Values:
    """Elements for each operand of a call, by label.

    A call that breaks the contract gets some, too: whatever does not fit is left as it was drawn at first.
    """
    operands = line.operands
    values = {label: _draw_one(line.op, label, operand, rng) for label, operand in operands.items()}
    fit = _FITS.get(line.op)
    if fit is not None:
        with suppress(Exception):  # of a call that will be refused
            for label, fitting in fit(line, values, rng).items():
                if label in operands and np.shape(fitting) == operands[label].shape:
                    values[label] = _as(fitting, operands[label])
    return values


def _draw_one(op: str, label: str, operand: Operand, rng: Generator) -> Array:
    own = _OWN.get(label.split("[")[0])
    if own is not None:
        return _as(own(rng, operand.shape), operand)
    if operand.numpy.kind in "iub" and operand.numpy.name != "bfloat16":
        return _as(rng.integers(0, 100, operand.shape), operand)
    return _as(_SPREAD.get(op, 1.0) * rng.standard_normal(operand.shape), operand)


def _as(values: Any, operand: Operand) -> Array:
    try:
        return as_dtype(values, operand.dtype)
    except KeyError:  # a type that this library does not have
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(operand.numpy)


def _fit_activation(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    """The output is that of the input."""
    mode = as_activation(line.arguments["activation"], line.op)
    x = values.get("x", 4.0 * rng.standard_normal(values["dy"].shape))
    return {"y": activation.activation_forward(mode, wide(x))}


def _fit_layer(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    mode = as_activation(line.arguments.get("activation"), line.op)
    z = 2.0 * rng.standard_normal(values["dy"].shape)
    return {"aux": z, "y": activation.activation_forward(mode, z)}


def _fit_softmax(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    options = {name: line.arguments[name] for name in ("axis", "algorithm") if name in line.arguments}
    return {"y": softmax.softmax_forward(3.0 * rng.standard_normal(values["y"].shape), **options)}


def _fit_spread(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    """Variances and what is one over their roots are positive."""
    return {name: rng.uniform(0.25, 4.0, values[name].shape) for name in ("running_variance", "rstd") if name in values}


def _fit_indices(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    return {"which": rng.integers(0, line.arguments["pool_size"], values["which"].shape)}


def _fit_taps(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    shape = values["indices"].shape
    return {"indices": rng.integers(0, line.arguments["pooling"].taps(len(shape) - 2), shape)}


def _fit_masters(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    """The weights with a few digits more."""
    masters = {label: label.replace("masters", "weights") for label in values if label.startswith("masters")}
    return {
        label: wide(values[w]) * (1.0 + 2.0**-12 * rng.standard_normal(values[w].shape)) for label, w in masters.items()
    }


def _fit_loss(line: CallLine, values: Values, rng: Generator) -> Mapping[str, Any]:
    """Predictions and targets from the domain of the kind."""
    loss = as_loss(line.arguments["loss"], line.op)
    shape, target = values["prediction"].shape, values["target"]
    x = 2.0 * rng.standard_normal(shape)
    if loss.kind in ("nll", "kl_div"):
        x = -np.abs(x)
    if loss.kind == "bce":
        x = rng.random(shape)
    return {"prediction": x, "target": _draw_target(loss, shape, target, rng)}


def _draw_target(loss: LossDescriptor, shape: tuple[int, ...], target: Array, rng: Generator) -> Any:
    axis = 1 if len(shape) > 1 else 0
    if target.dtype.kind == "i":
        labels = rng.integers(0, max(shape[axis], 1), target.shape)
        return np.where(rng.random(target.shape) < 0.1, loss.ignore_index, labels)
    if loss.kind in ("bce", "bce_with_logits"):
        return rng.random(shape)
    if loss.kind == "hinge":
        return np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    if loss.kind == "kl_div":
        return -np.abs(rng.standard_normal(shape)) if loss.log_target else rng.random(shape)
    if loss.kind in ("cross_entropy", "nll"):
        return softmax.softmax_forward(rng.standard_normal(shape), axis=axis)
    return rng.standard_normal(shape)


_FITS: dict[str, Callable[[CallLine, Values, Generator], Mapping[str, Any]]] = {
    "activation_backward": _fit_activation,
    "fc_backward": _fit_layer,
    "softmax_backward": _fit_softmax,
    "batchnorm_forward_training": _fit_spread,
    "batchnorm_forward_inference": _fit_spread,
    "batchnorm_backward": _fit_spread,
    "maxout_backward": _fit_indices,
    "pooling_backward": _fit_taps,
    "sgd_update": _fit_masters,
    "adam_update": _fit_masters,
    "adamw_update": _fit_masters,
    "loss_forward": _fit_loss,
    "loss_backward": _fit_loss,
    "loss_forward_backward": _fit_loss,
}
