"""What is measured: one mode with its parameters, one direction, one element type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dnnprims.conformance.activation import PARAMETERS, descriptor, narrowed
from dnnprims.conformance.bounds import (
    DERIVATIVE_FLOOR,
    ELEMENTWISE_DERIVATIVE_ULP,
    ELEMENTWISE_FORWARD_ULP,
)
from dnnprims.conformance.cases import Problem
from dnnprims.descriptors import ACTIVATION_MODES, ActivationDescriptor
from dnnprims.dtypes import BY_NAME
from dnnprims.reference.activation import backward_needs
from dnnprims.reference.rounding import round_to, widen

#: y = f(x); f' of x; f' of y, where y tells it.
FORWARD, FROM_INPUT, FROM_OUTPUT = DIRECTIONS = ("forward", "from x", "from y")

#: Modes whose derivative has a simple zero, at -2 < t < 0 with t = beta x. About it any evaluation's relative error is
#: unbounded, so that there the derivative is measured as if it were no smaller than `DERIVATIVE_FLOOR`.
SIGN_CHANGES = ("gelu", "gelu_tanh", "swish", "mish", "hard_swish")


@dataclass(frozen=True)
class Question:
    """One function of one variable, in one element type.

    Attributes
    ----------
    mode : str
        Of the activation.
    settings : str
        Its parameters where they are not the defaults: ``f.slope=0.25``.
    dtype : str
        Element type of argument and result.
    direction : str
        One of `DIRECTIONS`.
    meant : str
        The true function, where a peer means another by the name: a key of `oracle.TRUE`.
    """

    mode: str
    settings: str
    dtype: str
    direction: str
    meant: str = ""

    @property
    def function(self) -> str:
        """Key of the true function."""
        return self.meant or self.mode

    @cached_property
    def activation(self) -> ActivationDescriptor:
        """The activation as it is given to the library."""
        return descriptor(Problem.parse(f"activation_forward mode={self.mode} {self.settings}"))

    @cached_property
    def parameters(self) -> tuple[float, ...]:
        """The numbers that the true function is taken with: those of the accumulator.

        Bounds that the output itself takes are numbers of the element type where the output is what is given.
        """
        values = tuple(value for _, value in narrowed(self.activation, self.dtype).parameters)
        taken = {"clipped_relu": (0,), "hard_tanh": (0, 1), "threshold": (1,)}.get(self.mode, ())
        if self.direction != FROM_OUTPUT:
            return values
        return tuple(self._stored(v) if i in taken else v for i, v in enumerate(values))

    @property
    def limit(self) -> float:
        """The error that is allowed, in ULP."""
        limits = ELEMENTWISE_FORWARD_ULP if self.direction == FORWARD else ELEMENTWISE_DERIVATIVE_ULP
        return limits[self.dtype]

    @property
    def floor(self) -> tuple[float, float, float]:
        """(size, low, high): between `low` and `high` the true value is taken to be no smaller than `size`."""
        if self.mode not in SIGN_CHANGES or self.direction != FROM_INPUT:
            return 0.0, 0.0, 0.0
        beta = self.parameters[0] if self.mode == "swish" else 1.0
        low, high = sorted((-2.0 / beta, 0.0))
        return DERIVATIVE_FLOOR, low, high

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest argument that are asked for: of the output, what the function can give."""
        infinity = float("inf")
        if self.direction != FROM_OUTPUT:
            return -infinity, infinity
        alpha = self.parameters[0] if self.parameters else 0.0
        least = {"elu": -alpha, "selu": -1.7580993408473768, "celu": -alpha if alpha > 0 else -infinity}
        bounds = {
            "sigmoid": (0.0, 1.0),
            "tanh": (-1.0, 1.0),
            "softsign": (-1.0, 1.0),
            "log_sigmoid": (-infinity, 0.0),
            "exp": (0.0, infinity),
            "sqrt": (0.0, infinity),
        }
        low, high = bounds.get(self.mode, (least.get(self.mode, -infinity), infinity))
        return self._stored(low), self._stored(high)

    def kinks(self) -> tuple[float, ...]:
        """Where the derivative jumps, and libraries choose a side."""
        return kinks(self.mode, tuple(value for _, value in narrowed(self.activation, self.dtype).parameters))

    def _stored(self, value: float) -> float:
        return float(widen(round_to(value, BY_NAME[self.dtype].numpy)))

    def name_for(self, subject: str) -> str:
        """What the answer of someone is called in the results."""
        return ".".join(word for word in (subject, self.mode, self.settings, self.dtype, self.direction) if word)

    def __str__(self) -> str:
        return " ".join(word for word in (self.mode, self.settings, self.dtype, self.direction) if word)


def kinks(mode: str, parameters: Sequence[float]) -> tuple[float, ...]:
    """Where the derivative of a mode jumps, in the order of the real line."""
    p = tuple(parameters)
    if mode in ("relu", "leaky_relu", "elu", "celu", "selu", "squared_relu", "abs"):
        return (0.0,)
    found = {
        "clipped_relu": lambda: (0.0, p[0]),
        "threshold": lambda: (p[0],),
        "softplus": lambda: (p[1] / p[0],),
        "softshrink": lambda: (-p[0], p[0]),
        "hardshrink": lambda: (-p[0], p[0]),
        "hard_sigmoid": lambda: (-p[1] / p[0], (1.0 - p[1]) / p[0]),
        "hard_tanh": lambda: p,
        "hard_swish": lambda: (-3.0, 3.0),
    }.get(mode, tuple)
    return found()


def questions(
    dtype: str, modes: Sequence[str] = (), directions: Sequence[str] = DIRECTIONS, *, other: bool = False
) -> Iterator[Question]:
    """Every question about an element type; with `other`, those about parameters other than the defaults as well."""
    for mode in modes or ACTIVATION_MODES:
        for settings in ("", *(PARAMETERS.get(mode, ()) if other else ())):
            for direction in directions:
                asked = Question(mode, settings, dtype, direction)
                if direction != FROM_OUTPUT or "y" in backward_needs(asked.activation):
                    yield asked
