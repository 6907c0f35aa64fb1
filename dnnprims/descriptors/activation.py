"""Activations: the modes, their parameters and the rules that these obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadParamError
from .finite import finite_number

#: Mode -> its parameters with their defaults, in the order in which the kernels take them.
ACTIVATION_MODES: dict[str, dict[str, float]] = {
    "identity": {},
    "relu": {},
    "clipped_relu": {"ceiling": 6.0},
    "leaky_relu": {"slope": 0.01},
    "threshold": {"threshold": 0.0, "value": 0.0},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "selu": {},
    "sigmoid": {},
    "log_sigmoid": {},
    "tanh": {},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "softsign": {},
    "tanhshrink": {},
    "softshrink": {"lambd": 0.5},
    "hardshrink": {"lambd": 0.5},
    "gelu": {},
    "gelu_tanh": {},
    "swish": {"beta": 1.0},
    "mish": {},
    "hard_sigmoid": {"slope": 1.0 / 6.0, "offset": 0.5},
    "hard_tanh": {"low": -1.0, "high": 1.0},
    "hard_swish": {},
    "squared_relu": {},
    "abs": {},
    "square": {},
    "sqrt": {},
    "exp": {},
    "log": {},
}

#: (mode, parameter) -> (rule in words, test).
_ACTIVATION_RULES: dict[tuple[str, str], tuple[str, Callable[[float], bool]]] = {
    ("clipped_relu", "ceiling"): ("> 0", lambda v: v > 0),
    ("celu", "alpha"): ("!= 0", lambda v: v != 0),
    ("softplus", "beta"): ("> 0", lambda v: v > 0),
    ("softshrink", "lambd"): (">= 0", lambda v: v >= 0),
    ("hardshrink", "lambd"): (">= 0", lambda v: v >= 0),
}


@dataclass(frozen=True)
class ActivationDescriptor:
    """An elementwise function and its parameters.

    Parameters
    ----------
    mode : str
        A key of `ACTIVATION_MODES`.
    **parameters : float
        The parameters of that mode; those left out take their default.

    Raises
    ------
    BadParamError
        The mode is unknown, a parameter is not one of the mode's, or its value breaks the mode's rule.

    Examples
    --------
    >>> ActivationDescriptor("leaky_relu", slope=0.2)
    ActivationDescriptor('leaky_relu', slope=0.2)
    """

    mode: str
    parameters: tuple[tuple[str, float], ...]

    def __init__(self, mode: str, **parameters: float) -> None:
        if not isinstance(mode, str) or mode not in ACTIVATION_MODES:
            raise BadParamError(
                "ActivationDescriptor",
                "is unknown",
                param="mode",
                got=repr(mode),
                expected="one of " + ", ".join(ACTIVATION_MODES),
            )
        values = dict(ACTIVATION_MODES[mode])
        for name, value in parameters.items():
            if name not in values:
                allowed = ", ".join(values) or "no parameter"
                raise BadParamError(
                    "ActivationDescriptor", f"is not a parameter of {mode}", param=name, got=value, expected=allowed
                )
            values[name] = finite_number("ActivationDescriptor", name, value)
            rule, holds = _ACTIVATION_RULES.get((mode, name), ("", _anything))
            if not holds(values[name]):
                raise BadParamError(
                    "ActivationDescriptor", f"is out of range for {mode}", param=name, got=value, expected=rule
                )
        if mode == "hard_tanh" and values["low"] > values["high"]:
            raise BadParamError(
                "ActivationDescriptor", "exceeds high", param="low", got=values["low"], expected=f"<= {values['high']}"
            )
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "parameters", tuple(values.items()))
        object.__setattr__(self, "_hash", hash((mode, self.parameters)))

    def __hash__(self) -> int:
        # Hashed at every call: kept, and read past __getattr__, which stands for the parameters.
        kept: int = self.__dict__["_hash"]
        return kept

    def __getattr__(self, name: str) -> float:
        for key, value in self.__dict__.get("parameters", ()):
            if key == name:
                return float(value)
        raise AttributeError(f"an activation of mode {self.__dict__.get('mode')!r} has no {name!r}")

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.parameters)
        return f"ActivationDescriptor({self.mode!r}{given})"


def _anything(_: float) -> bool:
    return True


def as_activation(activation: str | ActivationDescriptor | None, op: str) -> ActivationDescriptor:
    """Accept a mode's name, with its defaults, for a descriptor; None is the identity."""
    if isinstance(activation, ActivationDescriptor):
        return activation
    if activation is None:
        return ActivationDescriptor("identity")
    if isinstance(activation, str) and activation in ACTIVATION_MODES:
        return ActivationDescriptor(activation)
    raise BadParamError(
        op,
        "is no activation",
        param="activation",
        got=repr(activation),
        expected="an ActivationDescriptor or one of " + ", ".join(ACTIVATION_MODES),
    )


def create_activation_descriptor(mode: str, **parameters: float) -> ActivationDescriptor:
    """Return `ActivationDescriptor(mode, **parameters)`, for those who come from cuDNN."""
    return ActivationDescriptor(mode, **parameters)
