"""Fully connected layers in NumPy: y = act(x w^T + b)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import activation as elementwise
from .rounding import Array, finish, widen


def fc_forward(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: Any = None,
    out: Array | None = None,
    aux: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """z = x w^T + b, out = alpha * act(z) + beta * out; aux receives z."""
    with np.errstate(all="ignore"):
        z = widen(x) @ widen(w).T
        z = z if b is None else z + widen(b)
    if aux is not None:
        finish(z, aux.dtype, out=aux)
    y = z if _linear(activation) else elementwise.activation_forward(_narrowed(activation, x.dtype), z)
    return finish(y, x.dtype, out=out, alpha=alpha, beta=beta)


def fc_backward_data(dy: Any, w: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """y_j = sum_i x_i w_ji, so dL/dx_i = sum_j dy_j w_ji."""
    with np.errstate(all="ignore"):
        return finish(widen(dy) @ widen(w), dy.dtype, out=out, alpha=alpha, beta=beta)


def fc_backward_weights(dy: Any, x: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """dL/dw_ji = sum over the samples of dy_j x_i."""
    with np.errstate(all="ignore"):
        return finish(_rows(widen(dy)).T @ _rows(widen(x)), dy.dtype, out=out, alpha=alpha, beta=beta)


def fc_backward_bias(dy: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """dL/db_j = sum over the samples of dy_j."""
    with np.errstate(all="ignore"):
        return finish(_rows(widen(dy)).sum(axis=0), dy.dtype, out=out, alpha=alpha, beta=beta)


def fc_backward(
    dy: Any,
    x: Any,
    w: Any,
    *,
    activation: Any = None,
    y: Any = None,
    aux: Any = None,
    needs: Sequence[str] = ("dx", "dw", "db"),
    dx: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
    beta: float = 0.0,
) -> tuple[Array | None, Array | None, Array | None]:
    """With dz = act'(z) dy the layer is linear; beta is that of the parameters' gradients."""
    dz, dtype = _before_activation(activation, dy, y, aux), dy.dtype
    with np.errstate(all="ignore"):
        return (
            finish(dz @ widen(w), dtype, out=dx) if "dx" in needs else None,
            finish(_rows(dz).T @ _rows(widen(x)), dtype, out=dw, beta=beta) if "dw" in needs else None,
            finish(_rows(dz).sum(axis=0), dtype, out=db, beta=beta) if "db" in needs else None,
        )


def backward_needs(activation: Any) -> tuple[str, ...]:
    """Names of the arguments of `fc_backward` that the activation is differentiated from; y where both would do."""
    if _linear(activation):
        return ()
    return ("y",) if "y" in elementwise.backward_needs(activation) else ("aux",)


def _linear(activation: Any) -> bool:
    return activation is None or activation.mode == "identity"


def _narrowed(activation: Any, dtype: Any) -> Any:
    """The activation with its parameters as the accumulator of `dtype` holds them."""
    kind = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    parameters = tuple((name, float(kind(value))) for name, value in activation.parameters)
    return SimpleNamespace(mode=activation.mode, parameters=parameters)


def _before_activation(activation: Any, dy: Any, y: Any, aux: Any) -> Array:
    """The gradient of z: through a float64 destination, so that it is not rounded."""
    if _linear(activation):
        return widen(dy)
    saved = {"y": y} if backward_needs(activation) == ("y",) else {"x": aux}
    return elementwise.activation_backward(activation, dy, out=np.empty(np.shape(dy)), **saved)


def _rows(a: Array) -> Array:
    """The same elements as a matrix, leading axes flattened."""
    return a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])
