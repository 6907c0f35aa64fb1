"""Who is asked: this library on one of its backends, or PyTorch, each as a user calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

import dnnprims as dp
from dnnprims.reference.rounding import widen

from .patterns import wide_on_device
from .questions import FORWARD, FROM_INPUT, FROM_OUTPUT, Question


class Library:
    """This library on a backend.

    Parameters
    ----------
    handle : Handle
        Made for the backend.
    """

    #: Our own promises are kept at kinks, too.
    everywhere = True

    def __init__(self, handle: dp.Handle) -> None:
        self.name, self.handle = handle.backend, handle

    def answers(self, question: Question) -> bool:
        """Every question is answered."""
        return True

    def understood(self, question: Question) -> Question:
        """The function that it means by the mode."""
        return question

    def evaluate(self, question: Question, x: Any) -> Any:
        """Results in float64, in the memory that the arguments are in."""
        given = x if _on_device(x) else self.handle.asarray(x)
        if question.direction == FORWARD:
            result = dp.activation_forward(self.handle, question.activation, given)
        else:
            ones = self.handle.asarray(np.ones(x.shape, x.dtype)) if not _on_device(x) else _ones(x)
            kept = {"x" if question.direction == FROM_INPUT else "y": given}
            result = dp.activation_backward(self.handle, question.activation, ones, **kept)
        if _on_device(x):
            import cupy

            return wide_on_device(cupy, result)
        return widen(self.handle.to_numpy(result))


class Torch:
    """PyTorch: its functions, and their derivatives by autograd.

    Where its own backward function takes the output (sigmoid, tanh, elu and its kin), that is asked, too.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    """

    #: Which derivative belongs to a kink is each library's own choice, as is what it says outside a function's domain.
    everywhere = False

    def __init__(self, device: str) -> None:
        import torch

        from benchmark.peers.torch_functions import ACTIVATIONS

        self.name, self.device, self.torch, self.functions = "torch", device, torch, ACTIVATIONS
        backward = torch.ops.aten
        self.from_output: dict[str, Callable[[Any, Any], Any]] = {
            "sigmoid": backward.sigmoid_backward,
            "tanh": backward.tanh_backward,
            "elu": lambda dy, y: backward.elu_backward(dy, 1.0, 1.0, 1.0, True, y),
            "celu": lambda dy, y: backward.elu_backward(dy, 1.0, 1.0, 1.0, True, y),
        }

    def answers(self, question: Question) -> bool:
        """The modes that it has, with the parameters that are its defaults."""
        available = self.from_output if question.direction == FROM_OUTPUT else self.functions
        return not question.settings and question.mode in available

    def understood(self, question: Question) -> Question:
        """The function that it means by the mode."""
        return replace(question, meant="hard_sigmoid_sixth") if question.mode == "hard_sigmoid" else question

    def evaluate(self, question: Question, x: Any) -> Any:
        """Results in float64, in the memory that the arguments are in."""
        given = self._tensor(x)
        if question.direction == FORWARD:
            with self.torch.no_grad():
                return self._array(self.functions[question.mode](given), x)
        ones = self.torch.ones_like(given)
        if question.direction == FROM_OUTPUT:
            return self._array(self.from_output[question.mode](ones, given), x)
        leaf = given.detach().requires_grad_()
        return self._array(self.torch.autograd.grad(self.functions[question.mode](leaf), leaf, ones)[0], x)

    def _tensor(self, x: Any) -> Any:
        if _on_device(x):
            return self.torch.from_dlpack(x)
        if x.dtype == ml_dtypes.bfloat16:
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16).to(self.device)
        return self.torch.from_numpy(x).to(self.device)

    def _array(self, tensor: Any, x: Any) -> Any:
        wide = tensor.detach().to(self.torch.float64)
        if not _on_device(x):
            return wide.cpu().numpy()
        import cupy

        return cupy.from_dlpack(wide)


def _on_device(x: Any) -> bool:
    return not isinstance(x, np.ndarray)


def _ones(x: Any) -> Any:
    import cupy

    return cupy.ones_like(x)


def make(name: str) -> Library | Torch:
    """The subject of a name: a backend, ``torch`` on the CPU, or ``torch-cuda``."""
    if name.startswith("torch"):
        return Torch("cuda" if name.endswith("cuda") else "cpu")
    return Library(dp.create_handle(name))
