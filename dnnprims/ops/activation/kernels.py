"""Kernels of the activations: their parameters, their names in the CUDA text, and what is compiled together."""

from __future__ import annotations

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor
from ...dtypes import DType
from ...reference import activation as reference
from ...runtime.launch import SHARE_PACKS, Family, Kernel, Struct
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


#: Modes whose threads take two packs (``share.cuh``), by direction and bytes of an element: those that arithmetic would
#: hold up with one, which all others take. NVIDIA H200, 2026-11-28, 2^28 float32 and 2^29 16-bit numbers not in the L2,
#: every mode in turn with PyTorch, 13 rounds; of PyTorch's rate with two packs / with one:
#: forward, float32 gelu 0.999 / 0.872, tanh 1.001 / 0.992, selu 0.999 / 0.985, relu 1.001 / 1.009, exp 1.001 / 1.009,
#: sqrt 0.998 / 1.005; 16 bits gelu 1.31 / 1.17, sqrt 1.002 / 0.986, tanh 1.000 / 0.994, exp 0.990 / 1.000, leaky_relu
#: 0.992 / 1.001, hard_swish 0.990 / 0.999; backward, float32 mish 1.003 / 0.958, relu 1.002 / 1.005, gelu 0.998 /
#: 1.001; 16 bits swish 0.991 / 0.984, elu 0.996 / 0.997, leaky_relu 0.994 / 0.999, log 0.991 / 0.994.
TWO_PACKS: dict[tuple[str, int], frozenset[str]] = {
    ("activation_forward", 4): frozenset(
        (
            *("elu", "celu", "selu", "sigmoid", "log_sigmoid", "tanh", "softplus", "tanhshrink", "gelu", "gelu_tanh"),
            *("swish", "mish", "hard_swish", "log"),
        )
    ),
    ("activation_forward", 2): frozenset(
        ("elu", "celu", "selu", "log_sigmoid", "tanh", "softplus", "tanhshrink", "softshrink", "gelu", "sqrt", "log")
    ),
    ("activation_backward", 4): frozenset(("gelu_tanh", "mish")),
    ("activation_backward", 2): frozenset(("gelu_tanh", "swish", "mish")),
}


def packs_of(op: str, mode: str, dtype: DType) -> int:
    """Packs that a thread of the packed kernels takes; float64 was not swept."""
    two = TWO_PACKS.get((op, dtype.itemsize))
    return SHARE_PACKS if two is None or mode in two else 1


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
            packs = packs_of(entry, mode, dtype)
            groups[group_name(entry, mode)] = [
                name
                for functor in functors
                for name in (f"{entry}<{t}, {functor}, {lanes}, {packs}>", f"{entry}_strided<{t}, {functor}>")
            ]
    return groups


FAMILY = Family("activation", (FORWARD, BACKWARD, FORWARD_STRIDED, BACKWARD_STRIDED), _instances)
