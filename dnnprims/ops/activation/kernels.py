"""Kernels of the activations: their parameters, their names in the CUDA text, and what is compiled together."""

from __future__ import annotations

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor
from ...dtypes import DType
from ...reference import activation as reference
from ...runtime.launch import Family, Kernel, Struct
from ...runtime.layout import axis_scalars

_SCALARS = (("alpha", "A"), ("beta", "A"), ("c0", "A"), ("c1", "A"), ("size", "i64"))
_PACKED = (*_SCALARS, ("packs", "i32"))
FORWARD = Kernel("activation", "activation_forward", Struct("ActivationForwardParams", ("y", "x"), _PACKED))
BACKWARD = Kernel(
    "activation", "activation_backward", Struct("ActivationBackwardParams", ("dx", "dy", "saved"), _PACKED)
)
FORWARD_STRIDED = Kernel(
    "activation",
    "activation_forward_strided",
    Struct(
        "ActivationForwardStridedParams",
        ("y", "x"),
        (*_SCALARS, *axis_scalars("extent", "y_step", "x_step")),
    ),
)
BACKWARD_STRIDED = Kernel(
    "activation",
    "activation_backward_strided",
    Struct(
        "ActivationBackwardStridedParams",
        ("dx", "dy", "saved"),
        (*_SCALARS, *axis_scalars("extent", "dx_step", "dy_step", "saved_step")),
    ),
)


def functor_name(mode: str, dtype: DType, from_output: bool = False) -> str:
    """The activation as a type of ``activation.cuh``."""
    name = "".join(word.capitalize() for word in mode.split("_")) + f"<{dtype.cuda}>"
    return f"FromOutput<{name}>" if from_output else name


def group_name(op: str, mode: str) -> str:
    """What is compiled at the first use of a mode: one direction, so that the wait stays short."""
    return f"{op.removeprefix('activation_')} of {mode}"


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, lanes = dtype.cuda, dtype.lanes
    groups = {}
    for mode in ACTIVATION_MODES:
        sources = [functor_name(mode, dtype)]
        if "y" in reference.backward_needs(ActivationDescriptor(mode)):
            sources.append(functor_name(mode, dtype, from_output=True))
        for entry, functors in (("activation_forward", sources[:1]), ("activation_backward", sources)):
            groups[group_name(entry, mode)] = [
                name
                for functor in functors
                for name in (f"{entry}<{t}, {functor}, {lanes}>", f"{entry}_strided<{t}, {functor}>")
            ]
    return groups


FAMILY = Family("activation", (FORWARD, BACKWARD, FORWARD_STRIDED, BACKWARD_STRIDED), _instances)
