"""Batch normalisation, forward and backward. Plans are in `plans`, the kernels in `kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import BatchNormDescriptor, as_activation
from ...reference import batchnorm as reference
from .contract import Activation
from .kernels import FAMILY
from .plans import (
    GRADIENT_NAMES,
    plan_batchnorm_backward,
    plan_batchnorm_forward_inference,
    plan_batchnorm_forward_training,
)

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "FAMILY",
    "batchnorm_backward",
    "batchnorm_forward_inference",
    "batchnorm_forward_training",
    "plan_batchnorm_backward",
    "plan_batchnorm_forward_inference",
    "plan_batchnorm_forward_training",
]


def batchnorm_forward_training(
    handle: Handle,
    norm: BatchNormDescriptor,
    x: Any,
    gamma: Any,
    beta: Any,
    *,
    activation: Activation = None,
    residual: Any = None,
    running_mean: Any = None,
    running_variance: Any = None,
    exponential_average_factor: float = 0.1,
    out: Any = None,
    mean: Any = None,
    rstd: Any = None,
) -> tuple[Any, Any, Any]:
    """Batch norm with the batch's own statistics: ``out = act(gamma * (x - mean) * rstd + beta + residual)``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    norm : BatchNormDescriptor
        Over what the statistics are taken, the layout, epsilon.
    x : array
        ``(n, c, ...)`` or ``(n, ..., c)``, contiguous; float32, float64, float16 or bfloat16.
    gamma, beta : array
        Scale and shift, ``(c,)``, or for ``per_activation`` of shape ``x.shape[1:]``; float32 (float64 for float64), as
        are all statistics.
    activation : str or ActivationDescriptor, optional
        identity, relu, clipped_relu or hard_tanh.
    residual : array, optional
        Of x's shape and dtype, added before the activation.
    running_mean, running_variance : array, optional
        Of gamma's shape, updated: ``running = (1 - factor) * running + factor * new``. The new variance is divided by
        m - 1 of m elements (by 1 where m is 1), or by m, as `norm` says.
    exponential_average_factor : float
        The weight of the new value, in [0, 1]: PyTorch's momentum; oneDNN and Chainer weigh the old one. With 1 the old
        values are not read; ``1 / (k + 1)`` at call number k, counted from 0, averages over all calls.
    out, mean, rstd : array, optional
        Destinations. `out` may be x or the residual itself.

    Returns
    -------
    (y, mean, rstd) : tuple of array
        mean and ``rstd = 1 / sqrt(variance + epsilon)`` for the backward pass.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or a destination overlaps another array.
    NotSupportedError
        The activation is none of those above.

    Notes
    -----
    The variance is that about the mean, divided by m, found by merging means and squared deviations in an order fixed
    by shape and device, never as a difference of mean squares: the bits repeat, and equal elements have the variance 0.
    A channel with a NaN or an infinity has NaN for mean, rstd and y. Without elements mean and variance are 0 and
    running statistics stay as they are. Keep x, mean, rstd and what `batchnorm_backward` wants for the activation.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
    ICML 2015. Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979.
    """
    op = "batchnorm_forward_training"
    rule = "in [0, 1]"
    factor = checks.require_range(
        op, "exponential_average_factor", exponential_average_factor, lambda v: 0.0 <= v <= 1.0, rule
    )
    options = (norm, activation)
    operands = (x, gamma, beta, residual, running_mean, running_variance, out, mean, rstd)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_batchnorm_forward_training, options, operands) as adopted:
            x, gamma, beta, residual, running_mean, running_variance, out, mean, rstd = adopted
            return reference.batchnorm_forward_training(
                norm, x, gamma, beta, activation=as_activation(activation, op), residual=residual,
                running_mean=running_mean, running_variance=running_variance, exponential_average_factor=factor,
                out=out, mean=mean, rstd=rstd,
            )  # fmt: skip
    return handle.run(plan_batchnorm_forward_training, options, operands, (factor,))  # type: ignore[no-any-return]


def batchnorm_forward_inference(
    handle: Handle,
    norm: BatchNormDescriptor,
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_variance: Any,
    *,
    activation: Activation = None,
    residual: Any = None,
    out: Any = None,
) -> Any:
    """Batch norm with statistics that are given: ``out = act(gamma * (x - mean) / sqrt(variance + epsilon) + ...)``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    norm : BatchNormDescriptor
        As in the training pass.
    x : array
        ``(n, c, ...)`` or ``(n, ..., c)``, contiguous; float32, float64, float16 or bfloat16.
    gamma, beta, running_mean, running_variance : array
        ``(c,)``, or for ``per_activation`` of shape ``x.shape[1:]``; float32 (float64 for float64).
    activation : str or ActivationDescriptor, optional
        identity, relu, clipped_relu or hard_tanh.
    residual : array, optional
        Of x's shape and dtype, added before the activation.
    out : array, optional
        Destination, of x's shape and dtype; it may be x or the residual itself.

    Returns
    -------
    array
        `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps another array.
    NotSupportedError
        The activation is none of those above.

    Notes
    -----
    Computed in float32 (float64 for float64), the mean subtracted first, and rounded once. NaN is handed on; a variance
    below -epsilon gives NaN. After a convolution, `conv_forward` can do the same with its scale and shift.
    """
    op = "batchnorm_forward_inference"
    options = (norm, activation)
    operands = (x, gamma, beta, running_mean, running_variance, residual, out)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_batchnorm_forward_inference, options, operands) as adopted:
            x, gamma, beta, running_mean, running_variance, residual, out = adopted
            return reference.batchnorm_forward_inference(
                norm, x, gamma, beta, running_mean, running_variance,
                activation=as_activation(activation, op), residual=residual, out=out,
            )  # fmt: skip
    return handle.run(plan_batchnorm_forward_inference, options, operands)


def batchnorm_backward(
    handle: Handle,
    norm: BatchNormDescriptor,
    dy: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    rstd: Any,
    *,
    activation: Activation = None,
    beta: Any = None,
    y: Any = None,
    needs: Sequence[str] = ("dx", "dgamma", "dbeta"),
    dx: Any = None,
    dgamma: Any = None,
    dbeta: Any = None,
    dresidual: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """Gradients of `batchnorm_forward_training`, with ``dz = dy * act'(z)`` and ``h = (x - mean) * rstd``.

    ``dx = gamma * rstd * (dz - mean(dz) - h * mean(dz * h))``, ``dgamma = sum(dz * h)``, ``dbeta = sum(dz)``,
    ``dresidual = dz``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    norm : BatchNormDescriptor
        As in the forward pass.
    dy, x : array
        Upstream gradient and input of the forward pass: contiguous, of one shape and dtype.
    gamma, mean, rstd : array
        The scale, and what the forward pass gave back.
    activation : str or ActivationDescriptor, optional
        As in the forward pass. It needs beta or y.
    beta : array, optional
        The shift: z is computed once more from x, and nothing is read for it. Not after a residual.
    y : array, optional
        The result of the forward pass, which tells the slope also after a residual. It takes the place of beta.
    needs : sequence of str
        Which gradients to compute, some of ``"dx"``, ``"dgamma"``, ``"dbeta"``, ``"dresidual"``.
    dx, dgamma, dbeta, dresidual : array, optional
        Destinations, of the shapes and dtypes of x and gamma. One of dx and dresidual may be dy itself.

    Returns
    -------
    (dx, dgamma, dbeta, dresidual) : tuple
        None in place of a gradient that is not in `needs`.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, an activation has neither beta nor y, or
        destinations overlap what they must not.
    NotSupportedError
        The activation is none of those that the forward pass fuses.

    Notes
    -----
    With ``"dresidual"`` in `needs`, dx is computed from the dz that is written for it, rounded as it is, and dy and y
    are read once: that is the cheaper way after a residual. The slope is 0 at every kink; a z that is
    NaN lets dy through. From y, a z that the storage rounds to a kink lies there. Sums are in float32 (float64 for
    float64), in an order fixed by shape and device. A NaN in x or in its statistics makes dx and dgamma NaN, within its
    channel. Without elements dgamma and dbeta are 0.
    """
    op = "batchnorm_backward"
    wanted = checks.require_names(op, "needs", needs)
    options = (norm, activation, wanted)
    operands = (dy, x, gamma, mean, rstd, beta, y, dx, dgamma, dbeta, dresidual)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_batchnorm_backward, options, operands) as adopted:
            dy, x, gamma, mean, rstd, beta, y, dx, dgamma, dbeta, dresidual = adopted
            return reference.batchnorm_backward(
                norm, dy, x, gamma, mean, rstd, activation=as_activation(activation, op), beta=beta, y=y, needs=wanted,
                dx=dx, dgamma=dgamma, dbeta=dbeta, dresidual=dresidual,
            )  # fmt: skip
    made = handle.run(plan_batchnorm_backward, options, operands)
    found = iter(made if len(wanted) > 1 else (made,))
    return tuple(next(found) if name in wanted else None for name in GRADIENT_NAMES)  # type: ignore[return-value]
