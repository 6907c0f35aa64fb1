"""Plans of the losses: what is refused, and the pass over the prediction that is left."""

from __future__ import annotations

from ... import checks
from ...descriptors import LossDescriptor, TensorDescriptor, as_loss
from ...runtime.launch import NULL, Live, PlanSpec, Profile, Result, unaligned
from .problem import Pass, Problem
from .steps import plan_pass


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
