"""PyTorch, eager and through ``torch.compile``: the same functions, which `torch_functions` maps.

Backward passes are torch's own, of a forward pass that ran once. Compiled functions are compiled for their very shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..arrays import Arrays
from ..case import Case, Contestant
from . import torch_convolution, torch_functions, torch_norms
from .torch_functions import Pass
from .torch_training import TRAINING

#: Ops whose contestants are no single function: lists of tensors, and whole steps.
_BUILDERS = TRAINING
#: The others: a function each.
_MAKERS = {**torch_functions.MAKERS, **torch_convolution.MAKERS, **torch_norms.MAKERS}


class Torch:
    """One of the two ways.

    Parameters
    ----------
    name : str
        ``torch`` or ``compile``.
    arrays : Arrays
        Gives the tensors.
    """

    def __init__(self, name: str, arrays: Arrays) -> None:
        self.name, self.arrays = name, arrays
        self.compiled = name == "compile"
        if self.compiled:
            # Each case is another shape, and a backward pass is run many times over.
            torch._dynamo.config.recompile_limit = 1 << 20
            torch._functorch.config.donated_buffer = False
        if torch.cuda.is_available():
            torch.empty(0, device="cuda")

    def contestants(self, case: Case) -> list[Contestant]:
        """Torch's function for the case, and its own fused one where there is one."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.math == "tf32"
        # cuDNN's algorithms are timed at the first call of a shape, and the fastest is kept.
        torch.backends.cudnn.benchmark = True
        if self.compiled:
            torch.compiler.reset()
        if case.op in _BUILDERS:
            return _BUILDERS[case.op](case, self.arrays, self.name, self._compile)
        found = []
        for label, wanted in torch_functions.passes(case, self.arrays, _MAKERS):
            if self.compiled and label:
                continue  # the fused calls are eager's
            found.append(Contestant(self.name + label, self._call(wanted), wanted.outputs, "torch"))
        return found

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False) if self.compiled else function

    def _call(self, wanted: Pass) -> Callable[[], Any]:
        if wanted.direction == "forward":
            return self._forward(wanted)
        function = self._compile(wanted.function)
        leaves = [t.detach().requires_grad_() if i in wanted.differentiated else t for i, t in enumerate(wanted.inputs)]
        wrt = [leaves[i] for i in wanted.differentiated]
        if wanted.direction == "backward":
            result, upstream = function(*leaves), wanted.upstream

            def backward() -> Any:
                return torch.autograd.grad(result, wrt, upstream, retain_graph=True)

            return backward

        def both() -> Any:
            value = function(*leaves)
            return (value, *torch.autograd.grad(value, wrt))

        return both

    def _forward(self, wanted: Pass) -> Callable[[], Any]:
        inputs, into = wanted.inputs, wanted.into
        if into is not None and not self.compiled:
            plain = wanted.function
            return lambda: plain(*inputs, out=into)
        function = self._compile(wanted.function)

        def forward() -> Any:
            with torch.no_grad():
                return function(*inputs)

        return forward


def make(name: str, arrays: Arrays) -> Torch:
    """The peer of a name."""
    return Torch(name, arrays)
