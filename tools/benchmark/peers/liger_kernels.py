"""Liger's Triton kernels: softmax, and cross-entropy that writes the gradient over the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
from liger_kernel.ops.softmax import LigerSoftmaxFunction

from ..arrays import Arrays
from ..case import Case, Contestant


class Liger:
    """Functions of Liger, through torch's autograd."""

    name = "liger"

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def contestants(self, case: Case) -> list[Contestant]:
        """One way for softmax over the last axis and for cross-entropy with its gradient."""
        if case.op in ("softmax_forward", "softmax_backward"):
            return self._softmax(case)
        if case.op == "loss_forward_backward" and case.problem.word("kind") == "cross_entropy":
            return [Contestant(self.name, self._cross_entropy(case), ("out", "dprediction"), "torch")]
        return []

    def _softmax(self, case: Case) -> list[Contestant]:
        x = self._arrays.torch((case.extra | case.operands)["x"])
        if case.options["algorithm"] == "log" or case.options["axis"] not in (-1, x.ndim - 1):
            return []
        leaf = x.detach().requires_grad_(case.op == "softmax_backward")
        if case.op == "softmax_forward":
            return [Contestant(self.name, lambda: LigerSoftmaxFunction.apply(leaf), ("out",), "torch")]
        y, dy = LigerSoftmaxFunction.apply(leaf), self._arrays.torch(case.operands["dy"])
        backward = _gradient(y, leaf, dy)
        return [Contestant(self.name, backward, ("out",), "torch")]

    def _cross_entropy(self, case: Case) -> Callable[[], Any]:
        """Repeated calls take the gradient of what the last one left: other numbers, the same work."""
        logits = self._arrays.torch(case.operands["prediction"]).clone()
        labels = self._arrays.torch(case.operands["target"])
        leaf = logits.requires_grad_()

        def both() -> Any:
            loss = LigerCrossEntropyFunction.apply(leaf, labels, None)[0]
            return (loss, *torch.autograd.grad(loss, leaf))

        return both


def _gradient(y: Any, leaf: Any, dy: Any) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)


def make(name: str, arrays: Arrays) -> Liger:
    """The peer, where there is a GPU."""
    if not arrays.on_gpu:
        raise RuntimeError("Triton has nothing to run on")
    return Liger(arrays)
