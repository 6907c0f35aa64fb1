"""PyTorch's optimizers and training step: contestants that keep a state of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from ..arrays import Arrays
from ..case import Case, Contestant
from ..families.step import LR, MOMENTUM

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def _leaves(case: Case, arrays: Arrays, gradients: bool) -> list[Any]:
    """Parameters of torch's own, with the case's gradients where it gives them."""
    leaves = [arrays.torch(w).clone().requires_grad_() for w in case.operands["weights"]]
    if gradients:
        for leaf, gradient in zip(leaves, case.operands["gradients"], strict=True):
            leaf.grad = arrays.torch(gradient)
    return leaves


def _optimizer(case: Case, leaves: list[Any], way: dict[str, bool]) -> Any:
    """AdamW with its count of steps on the GPU, so that it can be captured."""
    lr = case.options["lr"]
    if case.op == "sgd_update":
        return torch.optim.SGD(leaves, lr=lr, momentum=case.options["momentum"], **way)
    decay = case.options["weight_decay"]
    return torch.optim.AdamW(leaves, lr=lr, weight_decay=decay, capturable=leaves[0].is_cuda, **way)


def update(case: Case, arrays: Arrays, name: str, compiled: Compile) -> list[Contestant]:
    """A step of torch's optimizer in both of its ways over lists: one fused launch, and a few for each operation."""
    if name == "compile":
        return []
    return [_update(case, arrays, f"{name}.{way}", {way: True}) for way in ("fused", "foreach")]


def _update(case: Case, arrays: Arrays, name: str, way: dict[str, bool]) -> Contestant:
    """The first step makes the states: it is taken at a rate of 0 and changes no weight, then they are cleared."""
    leaves = _leaves(case, arrays, gradients=True)
    optimizer = _optimizer(case, leaves, way)
    group = optimizer.param_groups[0]
    rate, group["lr"] = group["lr"], 0.0
    optimizer.step()
    group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()

    def step() -> Any:
        optimizer.step()
        return (leaves,)

    return Contestant(name, step, ("weights",), "torch")


def training_step(case: Case, arrays: Arrays, name: str, compiled: Compile) -> list[Contestant]:
    """The same network from the same parameters, written as one writes it in torch."""
    parameters = _leaves(case, arrays, gradients=False)
    x, labels = arrays.torch(case.operands["x"]), arrays.torch(case.operands["labels"])
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)
    last = len(parameters) // 2 - 1

    def forward(x: Any, labels: Any, *parameters: Any) -> Any:
        for i in range(last + 1):
            x = functional.linear(x, parameters[2 * i], parameters[2 * i + 1])
            x = torch.relu(x) if i < last else x
        return functional.cross_entropy(x, labels)

    run = compiled(forward)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = run(x, labels, *parameters)
        loss.backward()
        optimizer.step()
        return loss.detach(), [leaf.grad for leaf in parameters]

    return [Contestant(name, step, ("loss", "gradients"), "torch")]


TRAINING: dict[str, Callable[[Case, Arrays, str, Compile], list[Contestant]]] = {
    "sgd_update": update,
    "adamw_update": update,
    "training_step": training_step,
}
