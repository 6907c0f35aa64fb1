"""Stochastic gradient descent over lists of arrays, in place and in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import BY_NAME, DType
from ..reference import sgd as reference
from ..runtime.launch import Family, Kernel, PlanSpec, Profile, Struct
from ..runtime.tensor_lists import Tensors, as_list, split_scalar, update_plan

if TYPE_CHECKING:
    from ..handle import Handle

_REAL = (BY_NAME["float32"], BY_NAME["float64"])
_INT32 = BY_NAME["int32"]

SGD_FORMS = ("accumulate_gradient", "accumulate_step")

_SGD_LIVE = ("lr", "gradient_scale", "momentum", "dampening", "weight_decay")
_SGD = Kernel(
    "sgd",
    "sgd_update",
    Struct(
        "SgdUpdateParams",
        ("table", "rows", "lr_address", "gradient_scale_address", "found_inf"),
        (
            *((name, "f64") for name in _SGD_LIVE),
            *((name, "i32") for name in ("lr_wide", "gradient_scale_wide")),
            *((name, "i32") for name in ("weights", "gradients", "velocities", "masters")),
            *((name, "i32") for name in ("elements", "share", "accumulate_step", "nesterov")),
        ),
    ),
)


def sgd_update(
    handle: Handle,
    weights: Any,
    gradients: Any,
    velocities: Any = None,
    *,
    lr: Any,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    form: str = "accumulate_gradient",
    masters: Any = None,
    gradient_scale: Any = 1.0,
    found_inf: Any = None,
) -> None:
    """One step of stochastic gradient descent, in place.

    With ``g = gradient_scale * gradient + weight_decay * w``, ``mu`` the momentum and ``q = 1 - dampening``:

    =======================  ======================  =========================================
    form                     velocity                weight; with Nesterov's look-ahead
    =======================  ======================  =========================================
    ``accumulate_gradient``  v = mu v + q g          w -= lr v; w -= lr (g + mu v)
    ``accumulate_step``      v = mu v - lr q g       w += v; w += mu v - lr g
    =======================  ======================  =========================================

    The first is PyTorch's, the second the classical one. They agree while lr is constant; when it changes, the first
    applies the new lr to the whole history, the second only to what is added.

    Parameters
    ----------
    handle : Handle
        Where to run.
    weights : array or list of arrays
        Contiguous, of any shapes and floating types, also mixed; overwritten.
    gradients : array or list of arrays
        Of the shapes and dtypes of the weights.
    velocities : array or list of arrays, optional
        Of the weights' shapes, in their accumulator's dtype (float32; float64 for float64); overwritten. Begin with
        zeros. Needed unless momentum is 0; with momentum 0 the old values are not read.
    lr : float or array
        The learning rate: a finite number >= 0, or a float32 or float64 scalar on the device.
    momentum, weight_decay : float
        >= 0.
    dampening : float
        In [0, 1]. It holds from the first step on, as the velocity begins with zeros; PyTorch spares the first one.
    nesterov : bool
        Look ahead; needs momentum > 0 and dampening 0.
    form : {"accumulate_gradient", "accumulate_step"}
        What the velocity sums up.
    masters : array or list of arrays, optional
        The weights in their accumulator's dtype: read and updated in place of the weights, which get them rounded.
    gradient_scale : float or array
        Factor of the gradients, a finite number or a float32 or float64 scalar on the device.
    found_inf : array, optional
        int32 scalar; when it is not 0, nothing is changed. See `scale_and_check_finite`.

    Returns
    -------
    None

    Raises
    ------
    BadParamError
        An argument is not one of the above, or two of the arrays share memory; nothing is changed.

    Notes
    -----
    One launch for each dtype among the weights, however many arrays there are. Arithmetic is in the accumulator's type
    and each stored value is rounded once; an element depends on its own values alone, so the bits repeat. Numbers of
    the host are fixed in a captured graph; scalars on the device are read at each replay and are not checked: a NaN
    there makes NaNs. In long lists the host's look at each array costs more than the launch: `prepare`, with lr on the
    device, or a captured graph spares it.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Sutskever, Martens, Dahl and
    Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013.
    """
    op = "sgd_update"
    rate, lr_address = split_scalar(lr)
    scale, scale_address = split_scalar(gradient_scale)
    live = (
        checks.require_range(op, "lr", rate, lambda v: v >= 0.0, ">= 0"),
        checks.require_finite(op, "gradient_scale", scale),
        checks.require_range(op, "momentum", momentum, lambda v: v >= 0.0, ">= 0"),
        checks.require_range(op, "dampening", dampening, lambda v: 0.0 <= v <= 1.0, "in [0, 1]"),
        checks.require_range(op, "weight_decay", weight_decay, lambda v: v >= 0.0, ">= 0"),
    )
    if checks.require_switch(op, "nesterov", nesterov):
        checks.require_range(op, "momentum", momentum, lambda v: v > 0.0, "> 0 for nesterov")
        checks.require_range(op, "dampening", dampening, lambda v: v == 0.0, "0 for nesterov")
    options = (form, bool(nesterov), momentum != 0)
    lists = (as_list(weights), as_list(gradients), as_list(velocities), as_list(masters))
    operands = (*lists, lr_address, scale_address, found_inf)
    if not checks.on_numpy(handle, op):
        handle.run(plan_sgd_update, options, operands, live)
        return
    with handle.checked(plan_sgd_update, options, operands) as (w, g, v, master, lr_address, scale_address, found_inf):
        reference.sgd_update(
            w, g, v,
            lr=rate if lr_address is None else lr_address,
            momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=weight_decay, form=form,
            masters=master,
            gradient_scale=scale if scale_address is None else scale_address,
            found_inf=found_inf,
        )  # fmt: skip


def plan_sgd_update(
    profile: Profile,
    form: str,
    nesterov: bool,
    momentum: bool,
    weights: Tensors,
    gradients: Tensors,
    velocities: Tensors | None,
    masters: Tensors | None,
    lr: TensorDescriptor | None,
    gradient_scale: TensorDescriptor | None,
    found_inf: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `sgd_update`; of the momentum it depends on whether there is one."""
    op = "sgd_update"
    checks.require_choice(op, "form", form, SGD_FORMS)
    checks.require_tensors(op, "weights", weights)
    checks.require_matching_tensors(op, "gradients", gradients, weights, False)
    if momentum or velocities is not None:
        checks.require_matching_tensors(op, "velocities", velocities, weights, True)
    if masters is not None:
        checks.require_matching_tensors(op, "masters", masters, weights, True)
    checks.require_scalar(op, "lr", lr, _REAL)
    checks.require_scalar(op, "gradient_scale", gradient_scale, _REAL)
    checks.require_scalar(op, "found_inf", found_inf, (_INT32,))
    lists, scalars = (weights, gradients, velocities, masters), (lr, gradient_scale, found_inf)
    flags = (int(form == "accumulate_step"), int(nesterov))
    return update_plan(profile, op, _SGD, lists, scalars, len(_SGD_LIVE), flags, packs=1)


def _instances(dtype: DType) -> dict[str, list[str]]:
    return {"all": [f"sgd_update<{dtype.cuda}>"]}


FAMILY = Family("sgd", (_SGD,), _instances)
