"""What batch norms ask for: a descriptor, an image's axes, an activation that they fuse."""

from __future__ import annotations

from ..descriptors import ActivationDescriptor, BatchNormDescriptor, TensorDescriptor
from ..errors import BadParamError, NotSupportedError


def require_batchnorm(op: str, norm: object) -> BatchNormDescriptor:
    """`norm` is a BatchNormDescriptor."""
    if isinstance(norm, BatchNormDescriptor):
        return norm
    rule = "a BatchNormDescriptor"
    raise BadParamError(op, "is no batch norm", param="norm", got=f"{type(norm).__name__} {norm!r:.60}", expected=rule)


def require_image(op: str, param: str, x: TensorDescriptor) -> None:
    """`x` has an axis for the batch, one for the channels, and any number of spatial ones."""
    if x.ndim < 2:
        got = f"{x.ndim} axes, shape {x.shape}"
        raise BadParamError(op, "has the wrong rank", param=param, got=got, expected="2 axes or more, (n, c, ...)")


def require_fused(op: str, activation: ActivationDescriptor, fused: tuple[str, ...]) -> None:
    """The activation is one of those that the kernels can fuse."""
    if activation.mode not in fused:
        raise NotSupportedError(
            op,
            "is not fused with a batch norm",
            param="activation",
            got=activation.mode,
            expected="one of " + ", ".join(fused),
            hint="leave it out and call activation_forward, activation_backward",
        )
