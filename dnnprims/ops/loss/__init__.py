"""Losses: forward, backward, and both in one pass.

What a loss is computed from is in `problem`, refusals and plans in `plans`, launches in `steps`, kernels in `kernels`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import LossDescriptor, as_loss
from ...reference import loss as reference
from .kernels import FAMILY
from .plans import plan_loss_backward, plan_loss_forward, plan_loss_forward_backward

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "FAMILY",
    "loss_backward",
    "loss_forward",
    "loss_forward_backward",
    "plan_loss_backward",
    "plan_loss_forward",
    "plan_loss_forward_backward",
]


def loss_forward(
    handle: Handle, loss: str | LossDescriptor, prediction: Any, target: Any, *, weight: Any = None, out: Any = None
) -> Any:
    """Loss of a prediction against a target, reduced as the descriptor says.

    ==================  ============================================  ================================================
    kind                loss, x the prediction and t the target       target; weight
    ==================  ============================================  ================================================
    mse                 (x - t)^2                                     as x; as x
    l1                  abs(x - t)                                    as x; as x
    huber               (x - t)^2 / 2, beyond delta                   as x; as x
                        delta (abs(x - t) - delta / 2)
    smooth_l1           huber / delta                                 as x; as x
    bce                 -t log x - (1 - t) log(1 - x)                 as x, in [0, 1]; as x
    bce_with_logits     bce of the logistic function of x             as x, in [0, 1]; as x
    kl_div              t (log t - x), x log-probabilities            as x, with log_target log t; as x
    hinge               max(0, margin - t x)                          as x, -1 or 1; as x
    cosine              1 - cos(x, t) along the last axis             as x; none
    cross_entropy       -log softmax(x) at the label, or              labels or probabilities; one per class
                        -sum_k t_k log softmax(x)_k
    nll                 -x at the label, x log-probabilities          labels; one per class
    ==================  ============================================  ================================================

    Parameters
    ----------
    handle : Handle
        Where to run.
    loss : LossDescriptor or str
        Kind, reduction and options; a string is a kind with its defaults.
    prediction : array
        Contiguous; float32, float64, float16 or bfloat16. For cross_entropy and nll (n, classes, d1, ...) or
        (classes,), with at least one class; for cosine at least one axis.
    target : array
        Contiguous, of the prediction's shape and dtype, or labels: int32 or int64, of the prediction's shape without
        its class axis.
    weight : array, optional
        Contiguous, of the prediction's dtype. Factor of each element's loss, of the prediction's shape; for
        cross_entropy and nll one per class, of shape (classes,).
    out : array, optional
        Destination: float32 (float64 for a float64 prediction), of the result's shape.

    Returns
    -------
    array
        A scalar on the device; for reduction ``none`` one loss per element, or per row for cross_entropy, nll and
        cosine (the prediction's shape without the axis that a row runs along). float32, or float64 for float64.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, `out` overlaps an input, or, on the NumPy backend, a label
        is out of range.

    Notes
    -----
    mean_elements divides by the number of losses, for labels by the sum of the weights of those that count;
    mean_samples by the extent of axis 0 (1 where a row is all there is). A mean over nothing, also one where all labels
    are ignored, is NaN, and a sum is 0. Label smoothing mixes the target with 1 / classes; class weights apply to
    the mixture, as does the divisor's weight to the label alone.

    A label on the device that is neither in [0, classes) nor ignore_index reads nothing: its loss is NaN, its gradient
    0, it does not count in a mean, and `handle.check` raises. bce keeps its logarithms from -100 on, and its slope's
    denominator from 1e-12 on; x outside of [0, 1] gives NaN. A coefficient of 0 takes no part, even against an infinite
    logarithm, but a NaN is handed on. A row of cross_entropy that holds a NaN or +inf, or nothing but -inf, is NaN.

    Sums are kept in float32 (float64 for float64) in an order fixed by shape and device, so the bits repeat. For the
    backward pass keep prediction, target and weight.

    References
    ----------
    Huber, "Robust estimation of a location parameter", 1964. Girshick, "Fast R-CNN", ICCV 2015 (smooth_l1). Szegedy et
    al., "Rethinking the Inception architecture", CVPR 2016 (label smoothing).
    """
    options, operands = (loss,), (prediction, target, weight, out)
    if checks.on_numpy(handle, "loss_forward"):
        with handle.checked(plan_loss_forward, options, operands) as (prediction, target, weight, out):
            wanted = _check_labels("loss_forward", loss, prediction, target)
            return reference.loss_forward(wanted, prediction, target, weight=weight, out=out)
    return handle.run(plan_loss_forward, options, operands)


def loss_backward(
    handle: Handle,
    loss: str | LossDescriptor,
    prediction: Any,
    target: Any,
    *,
    weight: Any = None,
    dloss: Any = None,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `loss_forward` for the prediction: ``out = alpha * dloss * slope / divisor + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    loss, prediction, target, weight
        As in `loss_forward`.
    dloss : array, optional
        Gradient of the loss, of its shape and dtype: a scalar on the device, or for reduction ``none`` one per loss.
        1 where left out.
    out : array, optional
        Destination, of the prediction's shape and dtype, contiguous. May be the prediction itself.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array of the prediction's shape and dtype.

    Raises
    ------
    BadParamError
        As in `loss_forward`.

    Notes
    -----
    At kinks: 0 for l1 where prediction and target agree, and for hinge at the margin. A row of zeros has a cosine, and
    with it a gradient, of 0. Ignored and bad labels, and a mean over nothing, give 0. NaN, determinism and labels out
    of range as in `loss_forward`.
    """
    options, operands = (loss, alpha, beta), (prediction, target, weight, dloss, out)
    if checks.on_numpy(handle, "loss_backward"):
        with handle.checked(plan_loss_backward, options, operands) as (prediction, target, weight, dloss, out):
            wanted = _check_labels("loss_backward", loss, prediction, target)
            return reference.loss_backward(
                wanted, prediction, target, weight=weight, dloss=dloss, out=out, alpha=alpha, beta=beta
            )
    return handle.run(plan_loss_backward, options, operands)


def loss_forward_backward(
    handle: Handle,
    loss: str | LossDescriptor,
    prediction: Any,
    target: Any,
    *,
    weight: Any = None,
    out: Any = None,
    dprediction: Any = None,
    scale: float = 1.0,
) -> tuple[Any, Any]:
    """Loss and its gradient, the latter times `scale`, in one pass over the prediction where it can be.

    Parameters
    ----------
    handle : Handle
        Where to run.
    loss, prediction, target, weight, out
        As in `loss_forward`.
    dprediction : array, optional
        Destination of the gradient, of the prediction's shape and dtype, contiguous. May be the prediction itself.
    scale : float
        Factor of the gradient alone, applied before it is rounded to storage. May change from call to call at no cost.

    Returns
    -------
    (loss, dprediction) : tuple
        What `loss_forward` returns, and the gradient of that for the prediction.

    Raises
    ------
    BadParamError
        As in `loss_forward`, or `scale` is not finite.

    Notes
    -----
    The rest as in `loss_forward` and `loss_backward`. Rows of cross_entropy of up to 16,384 classes (fewer in float64,
    with label smoothing and with probabilities) are read once and written once; of longer ones the second read is from
    the L2 cache.
    """
    op, options, operands = "loss_forward_backward", (loss,), (prediction, target, weight, out, dprediction)
    live = (checks.require_finite(op, "scale", scale),)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_loss_forward_backward, options, operands) as (prediction, target, weight, out, dx):
            wanted = _check_labels(op, loss, prediction, target)
            return reference.loss_forward_backward(
                wanted, prediction, target, weight=weight, out=out, dprediction=dx, scale=live[0]
            )
    return handle.run(plan_loss_forward_backward, options, operands, live)  # type: ignore[no-any-return]


def _check_labels(op: str, loss: str | LossDescriptor, prediction: Any, target: Any) -> LossDescriptor:
    """Refuse labels on the host that are out of range; also return the descriptor."""
    wanted = as_loss(loss, op)
    if target.dtype.kind == "i":
        checks.require_labels(op, target, prediction.shape[1 if prediction.ndim > 1 else 0], wanted.ignore_index)
    return wanted
