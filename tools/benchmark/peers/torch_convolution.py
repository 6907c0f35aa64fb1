"""PyTorch's convolutions: cuDNN's, in our layout, and its own fused calls of cuDNN.

What is channels last with us is torch's ``channels_last``, the same memory: only the order of the axes is told anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..case import Case
from .torch_functions import Maker, Pass


class _Call:
    """The options of a case as torch names them."""

    def __init__(self, case: Case) -> None:
        conv = case.options["conv"]
        self.last = conv.channels_last
        self.padding = [before for before, _ in conv.paddings(2)]
        self.options = (list(conv.strides(2)), self.padding, list(conv.dilations(2)))
        self.groups = conv.groups
        self.symmetric = all(before == after for before, after in conv.paddings(2))

    def theirs(self, a: Any) -> Any:
        """An array of ours with its channels in front."""
        return a.permute(0, 3, 1, 2) if self.last else a

    def ours(self, a: Any) -> Any:
        """A result of theirs in our order."""
        return a.permute(0, 2, 3, 1) if self.last else a

    def forward(self, x: Any, w: Any, b: Any = None) -> Any:
        """With its channels in front."""
        return torch.conv2d(x, w, b, *self.options, self.groups)

    def backward(self, dy: Any, x: Any, w: Any, mask: list[bool]) -> tuple[Any, ...]:
        """What autograd calls, for some of the gradients."""
        backward = torch.ops.aten.convolution_backward
        found: tuple[Any, ...] = backward(dy, x, w, None, *self.options, False, [0, 0], self.groups, mask)
        return found


def _forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    call = _Call(case)
    if not call.symmetric:
        return
    x, w = call.theirs(t["x"]), call.theirs(t["w"])
    if "activation" not in case.options:
        yield "", Pass(lambda *inputs: call.ours(call.forward(*inputs)), [x, w, *([t["b"]] if "b" in t else [])])
        return
    b, z = t["b"], call.theirs(t["residual"])

    def plain(x: Any, w: Any, b: Any, z: Any) -> Any:
        return call.ours(torch.relu_(call.forward(x, w, b).add_(z)))

    def fused(x: Any, w: Any, b: Any, z: Any) -> Any:
        return call.ours(torch.cudnn_convolution_add_relu(x, w, z, 1.0, b, *call.options, call.groups))

    yield "", Pass(plain, [x, w, b, z])
    if x.is_cuda:
        yield ".cudnn_convolution_add_relu", Pass(fused, [x, w, b, z])


def _data(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """Of the image torch reads the shape and the layout alone: our result will do."""
    call = _Call(case)
    dy, w, x = (call.theirs(t[name]) for name in ("dy", "w", "out"))
    if call.symmetric:
        yield "", Pass(lambda *given: call.ours(call.backward(*given, [True, False, False])[0]), [dy, x, w])


def _filter(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    call = _Call(case)
    dy, x, w = (call.theirs(t[name]) for name in ("dy", "x", "out"))
    if call.symmetric:
        yield "", Pass(lambda *given: call.ours(call.backward(*given, [False, True, False])[1]), [dy, x, w])


def _bias(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    axes = (0, 1, 2) if case.options["conv"].channels_last else (0, 2, 3)

    def summed(dy: Any, **destination: Any) -> Any:
        return torch.sum(dy, dim=axes, **destination)

    yield "", Pass(summed, [t["dy"]], into=torch.empty_like(t["out"]))


MAKERS: dict[str, Maker] = {
    "conv_forward": _forward,
    "conv_backward_data": _data,
    "conv_backward_filter": _filter,
    "conv_backward_bias": _bias,
}
