"""ResNet-50 in PyTorch as `resnet50.py` has it: channels last, batch norm with float32 parameters, and SGD."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

EXPANSION = 4
LR, MOMENTUM = 0.01, 0.9
WARM_UP = 5


class Unit(nn.Module):
    """A convolution with batch norm."""

    def __init__(self, inputs: int, filters: int, taps: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, filters, taps, stride, taps // 2, bias=False)
        self.norm = nn.BatchNorm2d(filters)

    def forward(self, x: Any) -> Any:
        """Without activation."""
        return self.norm(self.convolution(x))


class Block(nn.Module):
    """1x1, 3x3 and 1x1 with a residual."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        wide = filters * EXPANSION
        self.first, self.second = Unit(inputs, filters, 1, 1), Unit(filters, filters, 3, stride)
        self.third = Unit(filters, wide, 1, 1)
        self.past = nn.Identity() if inputs == wide and stride == 1 else Unit(inputs, wide, 1, stride)

    def forward(self, x: Any) -> Any:
        """In place where torch can."""
        y = functional.relu(self.first(x), inplace=True)
        y = functional.relu(self.second(y), inplace=True)
        return functional.relu(self.third(y) + self.past(x), inplace=True)


def network(options: argparse.Namespace) -> nn.Module:
    """From images to logits."""
    layers: list[nn.Module] = [Unit(3, options.width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = options.width
    for stage, count in enumerate(options.blocks):
        for i in range(count):
            layers.append(Block(inputs, options.width << stage, 2 if i == 0 and stage else 1))
            inputs = (options.width << stage) * EXPANSION
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, options.classes))


def seconds(way: str, options: argparse.Namespace) -> float:
    """Of a training step, eager or compiled."""
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, options.dtype)
    model = network(options).to("cuda", dtype=dtype, memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    x = torch.randn(options.batch, 3, options.size, options.size, device="cuda", dtype=dtype)
    x, labels = x.to(memory_format=torch.channels_last), torch.randint(options.classes, (options.batch,), device="cuda")

    def forward() -> Any:
        return functional.cross_entropy(model(x), labels)

    loss = torch.compile(forward) if way == "compile" else forward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / options.steps
