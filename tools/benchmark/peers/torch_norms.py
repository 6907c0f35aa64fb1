"""PyTorch's batch norms, followed by what we fuse; channels last is torch's ``channels_last``, the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from ..case import Case
from .torch_functions import Maker, Pass


def _layout(case: Case) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Ours with its channels in front, and theirs in our order."""
    if not case.options["norm"].channels_last:
        return (lambda a: a), (lambda a: a)
    return (lambda a: a.permute(0, 3, 1, 2)), (lambda a: a.permute(0, 2, 3, 1))


def _function(case: Case, training: bool) -> Callable[..., Any]:
    """Of x, gamma, beta, statistics or nothing, and a residual or nothing."""
    theirs, ours = _layout(case)
    epsilon, bent = case.options["norm"].epsilon, "activation" in case.options

    def norm(x: Any, gamma: Any, beta: Any, z: Any = None, mean: Any = None, variance: Any = None) -> Any:
        y = functional.batch_norm(theirs(x), mean, variance, gamma, beta, training, 0.1, epsilon)
        if z is not None:
            y = y + theirs(z)
        return ours(torch.relu(y) if bent else y)

    return norm


def _training(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    names = [name for name in ("x", "gamma", "beta", "residual") if name in t]
    yield "", Pass(_function(case, True), [t[name] for name in names])


def _inference(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    norm = _function(case, False)

    def call(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        return norm(x, gamma, beta, None, mean, variance)

    names = ("x", "gamma", "beta", "running_mean", "running_variance")
    yield "", Pass(call, [t[name] for name in names])


def _backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    names = [name for name in ("x", "gamma", "beta", "residual") if name in t]
    outputs = ("dx", "dgamma", "dbeta", "dresidual")[: len(names)]
    inputs = [t[name] for name in names]
    yield "", Pass(_function(case, True), inputs, outputs, "backward", tuple(range(len(names))), t["dy"])


MAKERS: dict[str, Maker] = {
    "batchnorm_forward_training": _training,
    "batchnorm_forward_inference": _inference,
    "batchnorm_backward": _backward,
}
