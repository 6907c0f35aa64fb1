"""Adam and AdamW over lists of arrays, in place and in one launch."""

from __future__ import annotations

from math import inf, log
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import BY_NAME, DType
from ..reference import adam as reference
from ..runtime.launch import Family, Kernel, PlanSpec, Profile, Struct
from ..runtime.tensor_lists import Tensors, as_list, split_scalar, update_plan

if TYPE_CHECKING:
    from ..handle import Handle

_REAL = (BY_NAME["float32"], BY_NAME["float64"])
_INT32, _INT64 = BY_NAME["int32"], BY_NAME["int64"]

_ADAM_LIVE = (
    *("lr", "gradient_scale", "beta1", "beta2", "log_beta1", "log_beta2", "epsilon"),
    *("coupled_decay", "decoupled_decay"),
)
_ADAM = Kernel(
    "adam",
    "adam_update",
    Struct(
        "AdamUpdateParams",
        ("table", "rows", "lr_address", "gradient_scale_address", "step_address", "found_inf"),
        (
            *((name, "f64") for name in _ADAM_LIVE),
            ("step", "i64"),
            *((name, "i32") for name in ("lr_wide", "gradient_scale_wide", "step_wide")),
            *((name, "i32") for name in ("weights", "gradients", "first_moments", "second_moments", "masters")),
            *((name, "i32") for name in ("elements", "share", "bias_correction")),
        ),
    ),
)

#: Packs of a thread: several, as each block first derives the coefficients.
_PACKS = 4


def adam_update(
    handle: Handle,
    weights: Any,
    gradients: Any,
    first_moments: Any,
    second_moments: Any,
    *,
    lr: Any,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """One step of Adam, in place: with ``g = gradient_scale * gradient + weight_decay * w``,

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``, ``w -= lr m' / (sqrt(v') + epsilon)``,

    where ``m' = m / (1 - beta1^step)`` and ``v' = v / (1 - beta2^step)``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    weights, gradients : array or list of arrays
        As in `sgd_update`; the weights are overwritten.
    first_moments, second_moments : array or list of arrays
        m and v, of the weights' shapes, in their accumulator's dtype (float32; float64 for float64). Begin with zeros;
        overwritten.
    lr : float or array
        As in `sgd_update`.
    step : int or array
        Number of this step, counted from 1, or an int32 or int64 scalar on the device. The caller counts: before a
        captured graph is replayed, or inside it, add 1 to that scalar (and not when `found_inf` skips the step).
    beta1, beta2 : float
        In [0, 1).
    epsilon : float
        >= 0, added to the root of the corrected second moment.
    weight_decay : float
        >= 0, added to the gradient (L2 penalty); `adamw_update` keeps it apart.
    bias_correction : bool
        Divide by 1 - beta^step; else m' = m and v' = v, and `step` does not matter.
    masters, gradient_scale, found_inf
        As in `sgd_update`.

    Returns
    -------
    None

    Raises
    ------
    BadParamError
        An argument is not one of the above, or two of the arrays share memory; nothing is changed.

    Notes
    -----
    As in `sgd_update`. ``1 - beta^step`` is formed in float64 in the same way for a step of the host and one of the
    device, so a captured graph gives the same bits. With epsilon 0 a gradient that was always 0 makes 0 / 0, a NaN.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """
    numbers = (lr, step, beta1, beta2, epsilon, weight_decay)
    lists = (weights, gradients, first_moments, second_moments, masters)
    _adam(handle, plan_adam_update, reference.adam_update, numbers, lists, bias_correction, gradient_scale, found_inf)


def adamw_update(
    handle: Handle,
    weights: Any,
    gradients: Any,
    first_moments: Any,
    second_moments: Any,
    *,
    lr: Any,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """One step of AdamW, in place: Adam on ``g = gradient_scale * gradient``, with the decay of the weights apart:

    ``w -= lr (m' / (sqrt(v') + epsilon) + weight_decay w)``.

    Parameters
    ----------
    handle, weights, gradients, first_moments, second_moments, lr, step, beta1, beta2, epsilon
        As in `adam_update`.
    weight_decay : float
        >= 0; the weights shrink by lr * weight_decay, as in PyTorch, and the moments do not see it.
    bias_correction, masters, gradient_scale, found_inf
        As in `adam_update`.

    Returns
    -------
    None

    Raises
    ------
    BadParamError
        As `adam_update`.

    Notes
    -----
    As in `adam_update`.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """
    numbers = (lr, step, beta1, beta2, epsilon, weight_decay)
    lists = (weights, gradients, first_moments, second_moments, masters)
    _adam(handle, plan_adamw_update, reference.adamw_update, numbers, lists, bias_correction, gradient_scale, found_inf)


def _adam(
    handle: Handle,
    build: Any,
    refer: Any,
    numbers: tuple[Any, ...],
    lists: tuple[Any, ...],
    bias_correction: bool,
    gradient_scale: Any,
    found_inf: Any,
) -> None:
    op = build.__name__.removeprefix("plan_")
    lr, step, beta1, beta2, epsilon, weight_decay = numbers
    rate, lr_address = split_scalar(lr)
    scale, scale_address = split_scalar(gradient_scale)
    count, step_address = split_scalar(step, 1)
    rate = checks.require_range(op, "lr", rate, lambda v: v >= 0.0, ">= 0")
    scale = checks.require_finite(op, "gradient_scale", scale)
    count = checks.require_integer(op, "step", count, 1)
    beta1, beta2 = (
        checks.require_range(op, name, beta, lambda v: 0.0 <= v < 1.0, "in [0, 1)")
        for name, beta in (("beta1", beta1), ("beta2", beta2))
    )
    epsilon = checks.require_range(op, "epsilon", epsilon, lambda v: v >= 0.0, ">= 0")
    weight_decay = checks.require_range(op, "weight_decay", weight_decay, lambda v: v >= 0.0, ">= 0")
    corrected = checks.require_switch(op, "bias_correction", bias_correction)
    logs = (log(beta) if beta > 0.0 else -inf for beta in (beta1, beta2))
    decays = (weight_decay, 0.0) if build is plan_adam_update else (0.0, weight_decay)
    live = (rate, scale, beta1, beta2, *logs, epsilon, *decays, count)
    operands = (*map(as_list, lists), lr_address, scale_address, step_address, found_inf)
    if not checks.on_numpy(handle, op):
        handle.run(build, (corrected,), operands, live)
        return
    with handle.checked(build, (corrected,), operands) as adopted:
        w, g, m, v, masters, lr_address, scale_address, step_address, found_inf = adopted
        refer(
            w, g, m, v,
            lr=rate if lr_address is None else lr_address,
            step=count if step_address is None else step_address,
            beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay, bias_correction=corrected,
            masters=masters,
            gradient_scale=scale if scale_address is None else scale_address,
            found_inf=found_inf,
        )  # fmt: skip


def plan_adam_update(
    profile: Profile,
    bias_correction: bool,
    weights: Tensors,
    gradients: Tensors,
    first_moments: Tensors,
    second_moments: Tensors,
    masters: Tensors | None,
    lr: TensorDescriptor | None,
    gradient_scale: TensorDescriptor | None,
    step: TensorDescriptor | None,
    found_inf: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `adam_update`."""
    lists = (weights, gradients, first_moments, second_moments, masters)
    return _plan(profile, "adam_update", bias_correction, lists, (lr, gradient_scale, step, found_inf))


def plan_adamw_update(
    profile: Profile,
    bias_correction: bool,
    weights: Tensors,
    gradients: Tensors,
    first_moments: Tensors,
    second_moments: Tensors,
    masters: Tensors | None,
    lr: TensorDescriptor | None,
    gradient_scale: TensorDescriptor | None,
    step: TensorDescriptor | None,
    found_inf: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `adamw_update`."""
    lists = (weights, gradients, first_moments, second_moments, masters)
    return _plan(profile, "adamw_update", bias_correction, lists, (lr, gradient_scale, step, found_inf))


def _plan(
    profile: Profile,
    op: str,
    bias_correction: bool,
    lists: tuple[Tensors | None, ...],
    scalars: tuple[TensorDescriptor | None, ...],
) -> PlanSpec:
    weights, gradients, first_moments, second_moments, masters = lists
    lr, gradient_scale, step, found_inf = scalars
    checks.require_tensors(op, "weights", weights)
    checks.require_matching_tensors(op, "gradients", gradients, weights or (), False)
    checks.require_matching_tensors(op, "first_moments", first_moments, weights or (), True)
    checks.require_matching_tensors(op, "second_moments", second_moments, weights or (), True)
    if masters is not None:
        checks.require_matching_tensors(op, "masters", masters, weights or (), True)
    checks.require_scalar(op, "lr", lr, _REAL)
    checks.require_scalar(op, "gradient_scale", gradient_scale, _REAL)
    checks.require_scalar(op, "step", step, (_INT32, _INT64))
    checks.require_scalar(op, "found_inf", found_inf, (_INT32,))
    flags, live = (int(bias_correction),), len(_ADAM_LIVE) + 1
    return update_plan(profile, op, _ADAM, lists, scalars, live, flags, packs=_PACKS)


def _instances(dtype: DType) -> dict[str, list[str]]:
    return {"all": [f"adam_update<{dtype.cuda}>"]}


FAMILY = Family("adam", (_ADAM,), _instances)
