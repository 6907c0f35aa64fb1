"""Fully connected layers: ``y = act(x w^T + b)``, its gradients, and what to keep for them.

Plans are in `forward` and `backward`, the kernels beside the products in `kernels`, what both directions check in
`operands`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import as_activation
from ...reference import fc as reference
from .backward import plan_fc_backward, plan_fc_backward_bias, plan_fc_backward_data, plan_fc_backward_weights
from .few_outputs import FC_FEW_OUTPUTS_FAMILY
from .few_rows import FC_FEW_ROWS_FAMILY
from .forward import plan_fc_forward
from .hopper import FC_HOPPER_FAMILY
from .kernels import FC_FAMILY
from .operands import Activation

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "FC_FAMILY",
    "FC_FEW_OUTPUTS_FAMILY",
    "FC_FEW_ROWS_FAMILY",
    "FC_HOPPER_FAMILY",
    "fc_backward",
    "fc_backward_bias",
    "fc_backward_data",
    "fc_backward_needs",
    "fc_backward_weights",
    "fc_forward",
    "plan_fc_backward",
    "plan_fc_backward_bias",
    "plan_fc_backward_data",
    "plan_fc_backward_weights",
    "plan_fc_forward",
]


def fc_forward(
    handle: Handle,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: Activation = None,
    out: Any = None,
    aux: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Fully connected layer: ``z = x w^T + b``, ``out = alpha * act(z) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        ``(..., in)``; float32, float64, float16 or bfloat16. All arrays are contiguous and of x's dtype.
    w : array
        ``(out, in)``.
    b : array, optional
        ``(out,)``.
    activation : str or ActivationDescriptor, optional
        Any mode; the identity where left out.
    out : array, optional
        Destination, ``(..., out)``.
    aux : array, optional
        Receives the pre-activation z, ``(..., out)``, for activations whose gradient needs it (`fc_backward_needs`).
    alpha, beta : float
        Blend with the old `out` after the activation; with beta 0 it is never read. `aux` is not blended.

    Returns
    -------
    array
        `out`, or a new array ``(..., out)``.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, or a destination overlaps another argument.
    NotSupportedError
        The blend needs a copy of z and the handle's `workspace_limit` has no room for it.

    Notes
    -----
    Keep x and w for the backward pass, and y or aux as `fc_backward_needs` tells. Bias and activation are fused into
    the product for the identity, for relu, and for gelu_tanh of 16-bit types (alpha 1, beta 0). Layers of 16-bit types,
    and of float32 with ``math="tf32"``, are one launch with other activations, too, where they have up to 32 rows or 40
    outputs (from sm_80 on; sigmoid, tanh, swish, gelu and gelu_tanh) or are large (on Hopper; float32: the short
    ones), which takes z before it is rounded. Elsewhere an activation follows in one pass of its own, from z rounded to
    x's dtype. ``in == 0`` gives ``act(b)``. Sums are in float32 (float64 for float64); with ``math="tf32"`` the
    products of float32 have 10-bit mantissas. The bits repeat. NaN is handed on.

    In 16-bit types the product may be rounded to storage before the bias or ``beta * out`` is added to it: cuBLASLt
    does so for matrices whose rows are not 16-byte aligned, and where it splits the sum. Its gelu_tanh epilogue, used
    for these types, errs by up to ``2^-18 |z|`` and is 0 below about z = -4.2 on an NVIDIA H200. Bounds of both are in
    ``conformance/bounds`` (`early_rounding`, `library_gelu_error`).
    """
    options, operands = (activation, alpha, beta), (x, w, b, out, aux)
    if checks.on_numpy(handle, "fc_forward"):
        with handle.checked(plan_fc_forward, options, operands) as (x, w, b, out, aux):
            mode = as_activation(activation, "fc_forward")
            return reference.fc_forward(x, w, b, activation=mode, out=out, aux=aux, alpha=alpha, beta=beta)
    return handle.run(plan_fc_forward, options, operands)


def fc_backward_data(handle: Handle, dy: Any, w: Any, *, out: Any = None, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Gradient of a linear layer in its input: ``out = alpha * dy w + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        ``(..., out)``, the gradient of ``x w^T + b``: behind an activation, what `activation_backward` gives.
    w : array
        ``(out, in)``. All arrays are contiguous and of dy's dtype.
    out : array, optional
        Destination, ``(..., in)``.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        dx: `out`, or a new array ``(..., in)``.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, or `out` overlaps another argument.

    Notes
    -----
    One product, summed in float32 (float64 for float64), rounded once; the bits repeat. ``out == 0`` gives zeros.
    """
    options, operands = (alpha, beta), (dy, w, out)
    if checks.on_numpy(handle, "fc_backward_data"):
        with handle.checked(plan_fc_backward_data, options, operands) as (dy, w, out):
            return reference.fc_backward_data(dy, w, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_fc_backward_data, options, operands)


def fc_backward_weights(
    handle: Handle, dy: Any, x: Any, *, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Gradient of a linear layer in its weights: ``out = alpha * dy^T x + beta * out``, summed over all leading axes.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        ``(..., out)``, the gradient of ``x w^T + b``.
    x : array
        ``(..., in)``, the input of the forward pass. All arrays are contiguous and of dy's dtype.
    out : array, optional
        Destination, ``(out, in)``.
    alpha, beta : float
        beta 1 accumulates; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        dw: `out`, or a new array ``(out, in)``.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, or `out` overlaps another argument.

    Notes
    -----
    One product, summed in float32 (float64 for float64), rounded once; the bits repeat. An empty batch gives zeros.
    """
    options, operands = (alpha, beta), (dy, x, out)
    if checks.on_numpy(handle, "fc_backward_weights"):
        with handle.checked(plan_fc_backward_weights, options, operands) as (dy, x, out):
            return reference.fc_backward_weights(dy, x, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_fc_backward_weights, options, operands)


def fc_backward_bias(handle: Handle, dy: Any, *, out: Any = None, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Gradient of a linear layer in its bias: ``out = alpha * sum dy + beta * out``, summed over all leading axes.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        ``(..., out)``, contiguous, the gradient of ``x w^T + b``.
    out : array, optional
        Destination, ``(out,)``, of dy's dtype.
    alpha, beta : float
        beta 1 accumulates; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        db: `out`, or a new array ``(out,)``.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, or `out` overlaps dy.

    Notes
    -----
    Summed in float32 (float64 for float64) in an order that depends on the shape alone, rounded once. An empty batch
    gives zeros.
    """
    options, operands = (alpha, beta), (dy, out)
    if checks.on_numpy(handle, "fc_backward_bias"):
        with handle.checked(plan_fc_backward_bias, options, operands) as (dy, out):
            return reference.fc_backward_bias(dy, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_fc_backward_bias, options, operands)


def fc_backward(
    handle: Handle,
    dy: Any,
    x: Any,
    w: Any,
    *,
    activation: Activation = None,
    y: Any = None,
    aux: Any = None,
    needs: Sequence[str] = ("dx", "dw", "db"),
    dx: Any = None,
    dw: Any = None,
    db: Any = None,
    beta: float = 0.0,
) -> tuple[Any, Any, Any]:
    """Gradients of ``y = act(x w^T + b)``: with ``dz = act'(z) dy``, dx = dz w, dw = dz^T x, db = sum dz.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        ``(..., out)``. All arrays are contiguous and of dy's dtype.
    x, w : array
        ``(..., in)`` and ``(out, in)``, as in the forward pass. x may be None unless dw is needed, w unless dx is.
    activation : str or ActivationDescriptor, optional
        As in the forward pass.
    y, aux : array, optional
        Output and pre-activation of the forward pass, ``(..., out)``: the one that `fc_backward_needs` names.
    needs : sequence of str
        Which of ``"dx"``, ``"dw"`` and ``"db"`` to compute.
    dx, dw, db : array, optional
        Destinations, of the shapes of x, w and ``(out,)``.
    beta : float
        For the parameters' gradients: ``dw = dz^T x + beta * dw``, ``db = sum dz + beta * db``; 1 accumulates. dx is
        always overwritten (`fc_backward_data` blends).

    Returns
    -------
    (dx, dw, db) : tuple
        None in place of a gradient that is not in `needs`.

    Raises
    ------
    BadParamError
        A shape, dtype or layout is not one of those above, something needed is missing, or a destination overlaps
        another argument.
    NotSupportedError
        The handle's `workspace_limit` has no room for dz.

    Notes
    -----
    dz and its column sums come from one pass, dz rounded to dy's dtype, db summed from the unrounded dz in an order
    that depends on the shape alone; then one product each for dx and dw. Layers of up to 10 outputs without an
    activation have all three from one pass over x, multiplied in float32 (float64: by products). The bits repeat. At
    kinks `activation_backward` says what holds (``relu'(0) = 0``). An empty batch gives dw = db = 0.
    """
    wanted = checks.require_names("fc_backward", "needs", needs)
    options, operands = (activation, wanted, beta), (dy, x, w, y, aux, dx, dw, db)
    if checks.on_numpy(handle, "fc_backward"):
        with handle.checked(plan_fc_backward, options, operands) as (dy, x, w, y, aux, dx, dw, db):
            mode = as_activation(activation, "fc_backward")
            return reference.fc_backward(
                dy, x, w, activation=mode, y=y, aux=aux, needs=wanted, dx=dx, dw=dw, db=db, beta=beta
            )
    return handle.run(plan_fc_backward, options, operands)  # type: ignore[no-any-return]


def fc_backward_needs(activation: Activation) -> tuple[str, ...]:
    """Tell what `fc_backward` wants of the forward pass besides x and w: ``("y",)``, ``("aux",)`` or ``()``.

    Parameters
    ----------
    activation : str or ActivationDescriptor, optional
        As in `fc_forward`.

    Returns
    -------
    tuple of str
        Names of `fc_backward`'s arguments. Where both would do it is y, which exists anyway.

    Raises
    ------
    BadParamError
        There is no such activation.
    """
    return reference.backward_needs(as_activation(activation, "fc_backward_needs"))
