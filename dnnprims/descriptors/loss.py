"""Losses: the kinds, how they are reduced, and the options that some kinds have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import BadParamError
from .finite import finite_number

LOSS_KINDS = (
    "mse",
    "l1",
    "huber",
    "smooth_l1",
    "cross_entropy",
    "nll",
    "bce",
    "bce_with_logits",
    "kl_div",
    "hinge",
    "cosine",
)
REDUCTIONS = ("none", "sum", "mean_elements", "mean_samples")


#: Option -> the kinds that have it, and what it is for the others.
_LOSS_OPTIONS: dict[str, tuple[tuple[str, ...], object]] = {
    "delta": (("huber", "smooth_l1"), 1.0),
    "ignore_index": (("cross_entropy", "nll"), -100),
    "label_smoothing": (("cross_entropy",), 0.0),
    "margin": (("hinge",), 1.0),
    "log_target": (("kl_div",), False),
}


@dataclass(frozen=True)
class LossDescriptor:
    """A loss, how it is reduced and its options.

    Parameters
    ----------
    kind : str
        One of `LOSS_KINDS`.
    reduction : str
        ``none``: the losses unreduced; ``sum``; ``mean_elements``: over every element of the unreduced loss (for
        cross-entropy and nll with labels: over the sum of the weights of the labels that are not ignored);
        ``mean_samples``: sum over outputs, mean over the samples of axis 0, (1/m) sum_i ||y_i - net(x_i)||^2 for mse.
    delta : float
        Where huber and smooth_l1 turn linear.
    ignore_index : int
        Label that contributes neither loss nor gradient (cross_entropy, nll).
    label_smoothing : float
        In [0, 1]; the share of the target spread evenly over the classes (cross_entropy).
    margin : float
        Of hinge: max(0, margin - target * prediction).
    log_target : bool
        Whether the target of kl_div is in log space.

    Raises
    ------
    BadParamError
        A value is not one of those above, or an option is given that the kind does not have.
    """

    kind: str
    reduction: str = "mean_samples"
    delta: float = 1.0
    ignore_index: int = -100
    label_smoothing: float = 0.0
    margin: float = 1.0
    log_target: bool = False

    def __post_init__(self) -> None:
        op = "LossDescriptor"
        if not isinstance(self.kind, str) or self.kind not in LOSS_KINDS:
            raise BadParamError(
                op, "is unknown", param="kind", got=repr(self.kind), expected="one of " + ", ".join(LOSS_KINDS)
            )
        if not isinstance(self.reduction, str) or self.reduction not in REDUCTIONS:
            raise BadParamError(
                op,
                "is unknown",
                param="reduction",
                got=repr(self.reduction),
                expected="one of " + ", ".join(REDUCTIONS),
            )
        object.__setattr__(self, "margin", finite_number(op, "margin", self.margin))
        object.__setattr__(self, "delta", finite_number(op, "delta", self.delta))
        object.__setattr__(self, "label_smoothing", finite_number(op, "label_smoothing", self.label_smoothing))
        if self.delta <= 0:
            raise BadParamError(op, "is out of range", param="delta", got=self.delta, expected="> 0")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise BadParamError(
                op, "is out of range", param="label_smoothing", got=self.label_smoothing, expected="in [0, 1]"
            )
        if (
            isinstance(self.ignore_index, bool)
            or not isinstance(self.ignore_index, int)
            or abs(self.ignore_index) >> 63
        ):
            raise BadParamError(
                op, "is no integer", param="ignore_index", got=repr(self.ignore_index), expected="an int of 64 bits"
            )
        if not isinstance(self.log_target, bool):
            raise BadParamError(
                op, "is no bool", param="log_target", got=repr(self.log_target), expected="True or False"
            )
        for option, (kinds, default) in _LOSS_OPTIONS.items():
            if self.kind not in kinds and getattr(self, option) != default:
                raise BadParamError(
                    op,
                    f"is no option of {self.kind}",
                    param=option,
                    got=getattr(self, option),
                    expected=f"{default}, its default",
                )


def as_loss(loss: str | LossDescriptor, op: str) -> LossDescriptor:
    """Accept a kind's name, with its defaults, for a descriptor."""
    if isinstance(loss, LossDescriptor):
        return loss
    if isinstance(loss, str) and loss in LOSS_KINDS:
        return LossDescriptor(loss)
    raise BadParamError(
        op, "is no loss", param="loss", got=repr(loss), expected="a LossDescriptor or one of " + ", ".join(LOSS_KINDS)
    )


def create_loss_descriptor(kind: str, **options: Any) -> LossDescriptor:
    """Return `LossDescriptor(kind, **options)`, for those who come from cuDNN."""
    return LossDescriptor(kind, **options)
