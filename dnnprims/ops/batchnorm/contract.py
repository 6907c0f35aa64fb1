"""What the batch norms ask of their arguments."""

from __future__ import annotations

from collections.abc import Mapping

from ... import checks
from ...descriptors import ActivationDescriptor, BatchNormDescriptor, TensorDescriptor, as_activation
from .kernels import FUSED

Activation = str | ActivationDescriptor | None


def require_fused(
    op: str, norm: BatchNormDescriptor, activation: Activation, x: TensorDescriptor
) -> ActivationDescriptor:
    """The activation, once it is known to be one that is fused, and x to be an image that is taken."""
    checks.require_batchnorm(op, norm)
    mode = as_activation(activation, op)
    checks.require_float(op, "x", x)
    checks.require_image(op, "x", x)
    checks.require_contiguous(op, x=x)
    checks.require_fused(op, mode, FUSED)
    return mode


def require_parameters(
    op: str, norm: BatchNormDescriptor, x: TensorDescriptor, given: Mapping[str, TensorDescriptor | None]
) -> tuple[int, ...]:
    """Check what there is one of for each channel, or for each element of an image; return the shape of it."""
    at = x.ndim - 1 if norm.channels_last else 1
    spatial = norm.mode == "spatial"
    shape, rule = ((x.shape[at],), f"(x.shape[{at}],)") if spatial else (x.shape[1:], "x.shape[1:]")
    for name, value in given.items():
        if value is not None:
            checks.require_shape(op, name, value, shape, rule)
            checks.require_dtype(op, name, value, (x.dtype.acc,))
            checks.require_contiguous(op, **{name: value})
    return shape


def require_images(op: str, x: TensorDescriptor, **images: TensorDescriptor | None) -> None:
    """Check arrays of the shape and dtype of x."""
    for name, value in images.items():
        if value is not None:
            checks.require_shape(op, name, value, x.shape, "x.shape")
            checks.require_same_dtype(op, x=x, **{name: value})
            checks.require_contiguous(op, **{name: value})


def require_outs(op: str, x: TensorDescriptor, shape: tuple[int, ...], **outs: TensorDescriptor | None) -> None:
    """Check results, of the shape of x or with one number for each channel."""
    for name, value in outs.items():
        if name == "out":
            checks.require_out(op, value, x.shape, x.dtype, rule="x.shape")
        else:
            checks.require_out(op, value, shape, x.dtype.acc, param=name, rule="gamma.shape")
