"""One good call of each primitive, every optional array given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims import TensorDescriptor

Arguments = dict[str, Any]


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.1, 0.9, shape).astype(np.float32)


def _labels() -> np.ndarray:
    return np.array([0, 2, 1, 3], np.int32)


def _flag() -> np.ndarray:
    return np.zeros((), np.int32)


def _pair(lowest: float = 0.1) -> list[np.ndarray]:
    return [floats(3, 4) + np.float32(lowest), floats(5)]


def _zeros() -> list[np.ndarray]:
    return [np.zeros((3, 4), np.float32), np.zeros(5, np.float32)]


#: One convolution for all: 2 images of 4 channels and 5 x 4 positions, 6 filters in 2 groups.
_CONV = dp.ConvolutionDescriptor(padding=1, stride=(2, 1), groups=2)
_IMAGE, _FILTERS, _RESULT = (2, 4, 5, 4), (6, 2, 3, 3), (2, 6, 3, 4)


#: One pooling for all: 2 images of 3 channels and 5 x 4 positions.
_POOLING = dp.PoolingDescriptor("max", (3, 2), (2, 1), padding=1)
_POOLED_IMAGE, _POOLED = (2, 3, 5, 4), (2, 3, 3, 5)
#: One batch norm for all, with a residual before its activation.
_NORM = dp.BatchNormDescriptor(epsilon=0.25)


def _described_as(shape: tuple[int, ...]) -> TensorDescriptor:
    return TensorDescriptor(shape, "float32")


def _adam() -> Arguments:
    lists = {"weights": _pair(), "gradients": _pair(), "first_moments": _zeros(), "second_moments": _zeros()}
    numbers = {"lr": 0.1, "step": 1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
    rest = {"bias_correction": True, "masters": _pair(), "gradient_scale": 1.0, "found_inf": _flag()}
    return {**lists, **numbers, **rest}


#: One good call of each primitive, every optional array given: argument -> value, made anew each time.
GOOD: dict[str, Callable[[], Arguments]] = {
    "fc_forward": lambda: {
        "x": floats(4, 3), "w": floats(5, 3), "b": floats(5), "activation": "gelu", "out": floats(4, 5),
        "aux": floats(4, 5), "alpha": 1.0, "beta": 0.5,
    },
    "fc_backward": lambda: {
        "dy": floats(4, 5), "x": floats(4, 3), "w": floats(5, 3), "activation": "gelu", "y": None,
        "aux": floats(4, 5), "needs": ("dx", "dw", "db"), "dx": floats(4, 3), "dw": floats(5, 3), "db": floats(5),
        "beta": 1.0,
    },
    "fc_backward_data": lambda: {
        "dy": floats(4, 5), "w": floats(5, 3), "out": floats(4, 3), "alpha": 1.0, "beta": 0.0,
    },
    "fc_backward_weights": lambda: {
        "dy": floats(4, 5), "x": floats(4, 3), "out": floats(5, 3), "alpha": 1.0, "beta": 0.0,
    },
    "fc_backward_bias": lambda: {"dy": floats(4, 5), "out": floats(5), "alpha": 1.0, "beta": 0.0},
    "conv_forward": lambda: {
        "conv": _CONV, "x": floats(*_IMAGE), "w": floats(*_FILTERS), "b": floats(6), "activation": "tanh",
        "residual": floats(*_RESULT), "scale": floats(6), "shift": floats(6), "out": floats(*_RESULT),
        "alpha1": 1.0, "alpha2": 2.0, "alpha": 1.0, "beta": 0.0, "with_sums": True, "sums": floats(2, 6),
    },
    "conv_backward_data": lambda: {
        "conv": _CONV, "dy": floats(*_RESULT), "w": floats(*_FILTERS), "x_descriptor": _described_as(_IMAGE),
        "out": floats(*_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "conv_backward_filter": lambda: {
        "conv": _CONV, "dy": floats(*_RESULT), "x": floats(*_IMAGE), "w_descriptor": _described_as(_FILTERS),
        "out": floats(*_FILTERS), "alpha": 1.0, "beta": 0.0,
    },
    "conv_backward_bias": lambda: {
        "conv": _CONV, "dy": floats(*_RESULT), "out": floats(6), "alpha": 1.0, "beta": 0.0,
    },
    "conv_transpose_forward": lambda: {
        "conv": _CONV, "x": floats(*_RESULT), "w": floats(*_FILTERS), "b": floats(4), "output_padding": 0,
        "out": floats(*_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "conv_transpose_backward": lambda: {
        "conv": _CONV, "dy": floats(*_IMAGE), "x": floats(*_RESULT), "w": floats(*_FILTERS),
        "needs": ("dx", "dw", "db"), "dx": floats(*_RESULT), "dw": floats(*_FILTERS), "db": floats(4), "beta": 1.0,
    },
    "pooling_forward": lambda: {
        "pooling": _POOLING, "x": floats(*_POOLED_IMAGE), "with_indices": True, "out": floats(*_POOLED),
        "indices": np.zeros(_POOLED, np.uint8), "alpha": 1.0, "beta": 0.0,
    },
    "pooling_backward": lambda: {
        "pooling": _POOLING, "dy": floats(*_POOLED), "x_descriptor": _described_as(_POOLED_IMAGE),
        "indices": np.ones(_POOLED, np.uint8), "out": floats(*_POOLED_IMAGE), "alpha": 1.0, "beta": 0.0,
    },
    "batchnorm_forward_training": lambda: {
        "norm": _NORM, "x": floats(*_IMAGE), "gamma": floats(4), "beta": floats(4), "activation": "relu",
        "residual": floats(*_IMAGE), "running_mean": floats(4), "running_variance": floats(4),
        "exponential_average_factor": 0.5, "out": floats(*_IMAGE), "mean": floats(4), "rstd": floats(4),
    },
    "batchnorm_forward_inference": lambda: {
        "norm": _NORM, "x": floats(*_IMAGE), "gamma": floats(4), "beta": floats(4), "running_mean": floats(4),
        "running_variance": floats(4), "activation": "relu", "residual": floats(*_IMAGE), "out": floats(*_IMAGE),
    },
    "batchnorm_backward": lambda: {
        "norm": _NORM, "dy": floats(*_IMAGE), "x": floats(*_IMAGE), "gamma": floats(4), "mean": floats(4),
        "rstd": floats(4), "activation": "relu", "beta": floats(4), "y": floats(*_IMAGE),
        "needs": ("dx", "dgamma", "dbeta", "dresidual"), "dx": floats(*_IMAGE), "dgamma": floats(4),
        "dbeta": floats(4), "dresidual": floats(*_IMAGE),
    },
    "activation_forward": lambda: {
        "activation": "tanh", "x": floats(4, 5), "out": floats(4, 5), "alpha": 1.0, "beta": 0.0,
    },
    "activation_backward": lambda: {
        "activation": "tanh", "dy": floats(4, 5), "x": floats(4, 5), "y": floats(4, 5), "out": floats(4, 5),
        "alpha": 1.0, "beta": 0.0,
    },
    "prelu_forward": lambda: {
        "x": floats(4, 5), "slope": floats(5), "axis": 1, "out": floats(4, 5), "alpha": 1.0, "beta": 0.0,
    },
    "prelu_backward": lambda: {
        "dy": floats(4, 5), "x": floats(4, 5), "slope": floats(5), "axis": 1, "needs": ("dx", "dslope"),
        "dx": floats(4, 5), "dslope": floats(5),
    },
    "maxout_forward": lambda: {
        "x": floats(4, 6), "pool_size": 2, "axis": -1, "out": floats(4, 3), "which": np.zeros((4, 3), np.uint8),
    },
    "maxout_backward": lambda: {
        "dy": floats(4, 3), "which": np.ones((4, 3), np.uint8), "pool_size": 2, "axis": -1, "out": floats(4, 6),
        "alpha": 1.0, "beta": 0.0,
    },
    "glu_forward": lambda: {
        "x": floats(4, 6), "gate": "sigmoid", "axis": -1, "out": floats(4, 3), "alpha": 1.0, "beta": 0.0,
    },
    "glu_backward": lambda: {
        "dy": floats(4, 3), "x": floats(4, 6), "gate": "sigmoid", "axis": -1, "out": floats(4, 6), "alpha": 1.0,
        "beta": 0.0,
    },
    "softmax_forward": lambda: {
        "x": floats(4, 6), "axis": -1, "algorithm": "accurate", "out": floats(4, 6), "alpha": 1.0, "beta": 0.0,
    },
    "softmax_backward": lambda: {
        "dy": floats(4, 6), "y": floats(4, 6), "axis": -1, "algorithm": "accurate", "out": floats(4, 6),
        "alpha": 1.0, "beta": 0.0,
    },
    "loss_forward": lambda: {
        "loss": "cross_entropy", "prediction": floats(4, 6), "target": _labels(), "weight": floats(6),
        "out": floats(),
    },
    "loss_backward": lambda: {
        "loss": "cross_entropy", "prediction": floats(4, 6), "target": _labels(), "weight": floats(6),
        "dloss": floats(), "out": floats(4, 6), "alpha": 1.0, "beta": 0.0,
    },
    "loss_forward_backward": lambda: {
        "loss": "cross_entropy", "prediction": floats(4, 6), "target": _labels(), "weight": floats(6),
        "out": floats(), "dprediction": floats(4, 6), "scale": 1.0,
    },
    "sgd_update": lambda: {
        "weights": _pair(), "gradients": _pair(), "velocities": _zeros(), "lr": 0.1, "momentum": 0.9, "dampening": 0.0,
        "nesterov": True, "weight_decay": 0.1, "form": "accumulate_step", "masters": _pair(), "gradient_scale": 1.0,
        "found_inf": _flag(),
    },
    "adam_update": _adam,
    "adamw_update": _adam,
    "global_norm": lambda: {"arrays": _pair(), "out": floats()},
    "clip_by_global_norm": lambda: {"arrays": _pair(), "max_norm": 0.5, "norm": floats(), "epsilon": 1e-6},
    "scale_and_check_finite": lambda: {"arrays": _pair(), "scale": 0.5, "found_inf": _flag()},
    "set_tensor": lambda: {"y": floats(4, 5), "value": 2.0},
    "scale_tensor": lambda: {"y": floats(4, 5), "alpha": 2.0},
    "add_tensor": lambda: {"a": floats(4, 5), "c": floats(4, 5), "alpha": 1.0, "beta": 1.0},
    "cast": lambda: {"x": floats(4, 5), "dtype": "float64", "out": np.zeros((4, 5))},
    "reduce_tensor": lambda: {
        "x": floats(4, 5), "operation": "sum", "axis": 1, "keepdims": False, "out": floats(4), "alpha": 1.0,
        "beta": 0.0,
    },
}  # fmt: skip
