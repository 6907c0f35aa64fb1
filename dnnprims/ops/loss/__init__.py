"""Losses: forward, backward, and both in one pass. Kernels and launches are in `steps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import LossDescriptor, TensorDescriptor, as_loss
from ...reference import loss as reference
from ...runtime.launch import NULL, Live, PlanSpec, Profile, Result, unaligned
from .steps import FAMILY, Pass, Problem, plan_pass

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = ["FAMILY", "loss_backward", "loss_forward", "loss_forward_backward"]


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
    if handle.backend == "numpy":
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
    if handle.backend == "numpy":
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
    if handle.backend == "numpy":
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


def plan_loss_forward(
    profile: Profile,
    loss: str | LossDescriptor,
    prediction: TensorDescriptor,
    target: TensorDescriptor,
    weight: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `loss_forward`."""
    op = "loss_forward"
    problem = _require_problem(op, loss, prediction, target, weight)
    made = Result(3, problem.result, prediction.dtype.acc)
    checks.require_out(op, out, made.shape, made.dtype, rule="the shape of the loss")
    steps, scratch, variant, refused = plan_pass(Pass(profile, problem, _alignment(problem, out=out), loss=3))
    return PlanSpec(op, variant, steps, results=(made,), returns=(3,), writes=(3,), scratch=scratch, refused=refused)


def plan_loss_backward(
    profile: Profile,
    loss: str | LossDescriptor,
    alpha: float,
    beta: float,
    prediction: TensorDescriptor,
    target: TensorDescriptor,
    weight: TensorDescriptor | None,
    dloss: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `loss_backward`."""
    op = "loss_backward"
    problem = _require_problem(op, loss, prediction, target, weight)
    if dloss is not None:
        checks.require_shape(op, "dloss", dloss, problem.result, "the shape of the loss")
        checks.require_dtype(op, "dloss", dloss, (prediction.dtype.acc,))
        checks.require_contiguous(op, dloss=dloss)
    checks.require_out(op, out, prediction.shape, prediction.dtype, rule="prediction.shape")
    checks.require_blend(op, alpha, beta, out)
    steps, scratch, variant, refused = plan_pass(
        Pass(
            profile,
            problem,
            _alignment(problem, out=out),
            dx=4,
            dloss=NULL if dloss is None else 3,
            dloss_stride=int(dloss is not None and problem.loss.reduction == "none"),
            alpha=float(alpha),
            beta=float(beta),
        )
    )
    return PlanSpec(
        op,
        variant,
        steps,
        results=(Result(4, prediction.shape, prediction.dtype),),
        returns=(4,),
        writes=(4,),
        in_place=((4, 0),),
        scratch=scratch,
        refused=refused,
    )


def plan_loss_forward_backward(
    profile: Profile,
    loss: str | LossDescriptor,
    prediction: TensorDescriptor,
    target: TensorDescriptor,
    weight: TensorDescriptor | None,
    out: TensorDescriptor | None,
    dprediction: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `loss_forward_backward`."""
    op = "loss_forward_backward"
    problem = _require_problem(op, loss, prediction, target, weight)
    made = Result(3, problem.result, prediction.dtype.acc)
    checks.require_out(op, out, made.shape, made.dtype, rule="the shape of the loss")
    checks.require_out(
        op, dprediction, prediction.shape, prediction.dtype, param="dprediction", rule="prediction.shape"
    )
    alignment = _alignment(problem, out=out, dprediction=dprediction)
    steps, scratch, variant, refused = plan_pass(Pass(profile, problem, alignment, loss=3, dx=4, alpha=Live(0)))
    return PlanSpec(
        op,
        variant,
        steps,
        results=(made, Result(4, prediction.shape, prediction.dtype)),
        returns=(3, 4),
        writes=(3, 4),
        in_place=((4, 0),),
        scratch=scratch,
        refused=refused,
    )


def _require_problem(
    op: str,
    loss: str | LossDescriptor,
    prediction: TensorDescriptor,
    target: TensorDescriptor,
    weight: TensorDescriptor | None,
) -> Problem:
    """Check what every direction shares."""
    wanted = as_loss(loss, op)
    checks.require_float(op, "prediction", checks.require_present(op, "prediction", prediction))
    checks.require_present(op, "target", target)
    problem = Problem(wanted, prediction, target, weight)
    if problem.form != "elementwise" and prediction.ndim == 0:
        checks.require_rank(op, "prediction", prediction, (1, 2), "at least one axis")
    if problem.form == "classes":
        checks.require_elements(op, "prediction", prediction, problem.classes, "at least one class")
    if wanted.kind == "nll":
        checks.require_labels_dtype(op, "target", target)
    if problem.labels:
        checks.require_shape(op, "target", target, problem.losses, "prediction.shape without its class axis")
    else:
        checks.require_same_dtype(op, prediction=prediction, target=target)
        checks.require_shape(op, "target", target, prediction.shape, "prediction.shape")
    if weight is not None:
        _require_weight(op, problem, weight)
    checks.require_contiguous(op, prediction=prediction, target=target, weight=weight)
    return problem


def _alignment(problem: Problem, **written: TensorDescriptor | None) -> str | None:
    """Reason against 16-byte accesses; rows read one label or one weight at a time, and store one loss."""
    if problem.form == "elementwise":
        return unaligned(prediction=problem.x, target=problem.target, weight=problem.weight, **written)
    return unaligned(
        prediction=problem.x, **{name: x for name, x in written.items() if x and x.shape == problem.x.shape}
    )


def _require_weight(op: str, problem: Problem, weight: TensorDescriptor) -> None:
    if problem.form == "cosine":
        checks.require_absent(op, "weight", weight, "None, as cosine has no weights")
    checks.require_same_dtype(op, prediction=problem.x, weight=weight)
    if problem.form == "classes":
        checks.require_shape(op, "weight", weight, (problem.classes,), "(classes,)")
    else:
        checks.require_shape(op, "weight", weight, problem.x.shape, "prediction.shape")
