"""PyTorch on the CPU, put to the conformance cases of this library.

    python -m dnnprims verify --against examples/against_pytorch.py

Each function has the name and the signature of a primitive and calls what PyTorch offers for the same job. What PyTorch
has no function for (blending with alpha and beta, gradients from y, losses kept in float32 for 16-bit types, ...) is
declined with `NotImplementedError`: it is counted, and is no failure. A failure says that PyTorch's result lies beyond
the bound that this library holds its own results to, which is stricter than what PyTorch promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

aten = torch.ops.aten


def asarray(a: Any) -> torch.Tensor:
    """A tensor with a copy of a NumPy array; bfloat16 travels as its bits."""
    a = np.array(a)
    return (
        torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        if a.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(a)
    )


def to_numpy(t: torch.Tensor) -> np.ndarray:
    """The values of a tensor."""
    t = t.detach()
    return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()


def decline(condition: object, reason: str) -> None:
    """Say that PyTorch has no such call."""
    if condition:
        raise NotImplementedError(reason)


def no_blend(alpha: float = 1.0, beta: float = 0.0) -> None:
    """PyTorch's functions return their result as it is."""
    decline(alpha != 1.0 or beta != 0.0, "no alpha * result + beta * out")


def slope_of(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """The gradient that autograd finds."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf, dy)[0]


# -- activations -----------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": F.relu,
    "clipped_relu": lambda x, ceiling: F.hardtanh(x, 0.0, ceiling),
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "threshold": lambda x, threshold, value: F.threshold(x, threshold, value),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "celu": lambda x, alpha: F.celu(x, alpha),
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x, beta, threshold: F.softplus(x, beta, threshold),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x, lambd: F.softshrink(x, lambd),
    "hardshrink": lambda x, lambd: F.hardshrink(x, lambd),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "hard_tanh": lambda x, low, high: F.hardtanh(x, low, high),
    "hard_swish": F.hardswish,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
}


def function_of(given: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """PyTorch's function for a mode and its parameters."""
    mode, parameters = (given, {}) if isinstance(given, str) else (given.mode, dict(given.parameters))
    if mode == "swish" and parameters.get("beta", 1.0) == 1.0:
        return F.silu
    if mode == "hard_sigmoid" and parameters.get("slope") == 1.0 / 6.0 and parameters.get("offset") == 0.5:
        return F.hardsigmoid
    decline(mode not in ACTIVATIONS, f"no {mode} with these parameters")
    return lambda x: ACTIVATIONS[mode](x, **parameters)


def activation_forward(handle, activation, x, *, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    return function_of(activation)(x)


def activation_backward(handle, activation, dy, *, x=None, y=None, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(x is None, "autograd works from x")
    return slope_of(function_of(activation), x, dy)


def prelu_forward(handle, x, slope, *, axis=1, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(slope.numel() != 1 and axis % x.ndim != 1, "slopes along axis 1 alone")
    return F.prelu(x, slope.reshape(-1))


def prelu_backward(handle, dy, x, slope, *, axis=1, needs=("dx", "dslope"), dx=None, dslope=None):
    decline(slope.numel() != 1 and axis % x.ndim != 1, "slopes along axis 1 alone")
    leaf, weight = x.detach().clone().requires_grad_(), slope.detach().clone().requires_grad_()
    found = torch.autograd.grad(F.prelu(leaf, weight.reshape(-1)), (leaf, weight), dy)
    return tuple(g if name in needs else None for name, g in zip(("dx", "dslope"), found, strict=True))


def maxout_forward(handle, x, pool_size, *, axis=-1, out=None, which=None):
    axis %= x.ndim
    decline(not x.numel(), "no maximum of nothing")
    y, chosen = x.unflatten(axis, (-1, pool_size)).max(axis + 1)
    return y, chosen.to(torch.uint8 if pool_size <= 256 else torch.int32)


def maxout_backward(handle, dy, which, pool_size, *, axis=-1, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    axis = axis % dy.ndim + 1
    decline(bool((which >= pool_size).any()), "indices within the group")
    shape = [*dy.shape[:axis], pool_size, *dy.shape[axis:]]
    dx = torch.zeros(shape, dtype=dy.dtype).scatter_(axis, which.long().unsqueeze(axis), dy.unsqueeze(axis))
    return dx.flatten(axis - 1, axis)


def glu_forward(handle, x, *, gate="sigmoid", axis=-1, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(gate != "sigmoid", "the sigmoid gate alone")
    return F.glu(x, axis)


def glu_backward(handle, dy, x, *, gate="sigmoid", axis=-1, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(gate != "sigmoid", "the sigmoid gate alone")
    return slope_of(lambda v: F.glu(v, axis), x, dy)


def softmax_forward(handle, x, *, axis=-1, algorithm="accurate", out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(not isinstance(axis, int) or algorithm == "fast", "one axis, with the maximum subtracted")
    return F.log_softmax(x, axis) if algorithm == "log" else F.softmax(x, axis)


def softmax_backward(handle, dy, y, *, axis=-1, algorithm="accurate", out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(not isinstance(axis, int), "one axis")
    backward = aten._log_softmax_backward_data if algorithm == "log" else aten._softmax_backward_data
    return backward(dy, y, axis, y.dtype)


# -- losses ----------------------------------------------------------------------------------------------------------

ELEMENTWISE: dict[str, Callable[..., torch.Tensor]] = {
    "mse": lambda loss, x, t, how: F.mse_loss(x, t, reduction=how),
    "l1": lambda loss, x, t, how: F.l1_loss(x, t, reduction=how),
    "huber": lambda loss, x, t, how: F.huber_loss(x, t, reduction=how, delta=loss.delta),
    "smooth_l1": lambda loss, x, t, how: F.smooth_l1_loss(x, t, reduction=how, beta=loss.delta),
    "bce": lambda loss, x, t, how: F.binary_cross_entropy(x, t, reduction=how),
    "bce_with_logits": lambda loss, x, t, how: F.binary_cross_entropy_with_logits(x, t, reduction=how),
    "kl_div": lambda loss, x, t, how: F.kl_div(x, t, reduction=how, log_target=loss.log_target),
}


def loss_of(loss: Any, x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's loss, reduced as it can."""
    decline(x.dtype in (torch.float16, torch.bfloat16), "losses of 16-bit types are kept in 16 bits")
    how = {"none": "none", "sum": "sum", "mean_elements": "mean"}.get(loss.reduction, "")
    decline(not how, f"no {loss.reduction}")
    decline(x.numel() == 0, "nothing to reduce")
    if loss.kind in ("cross_entropy", "nll"):
        target = target if target.is_floating_point() else target.long()
        if loss.kind == "nll":
            return F.nll_loss(x, target, weight, reduction=how, ignore_index=loss.ignore_index)
        extra = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
        return F.cross_entropy(x, target, weight, reduction=how, **extra)
    decline(loss.kind not in ELEMENTWISE, f"no {loss.kind} of this form")
    decline(weight is not None, "no weights of elements")
    return ELEMENTWISE[loss.kind](loss, x, target, how)


def loss_forward(handle, loss, prediction, target, *, weight=None, out=None):
    return loss_of(loss, prediction, target, weight)


def loss_backward(handle, loss, prediction, target, *, weight=None, dloss=None, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    leaf = prediction.detach().clone().requires_grad_()
    value = loss_of(loss, leaf, target, weight)
    return torch.autograd.grad(value, leaf, torch.ones_like(value) if dloss is None else dloss)[0]


def loss_forward_backward(handle, loss, prediction, target, *, weight=None, out=None, dprediction=None, scale=1.0):
    decline(scale != 1.0, "no scale")
    value = loss_of(loss, prediction, target, weight)
    return value, loss_backward(handle, loss, prediction, target, weight=weight)


# -- fully connected layers ------------------------------------------------------------------------------------------


def fc_forward(handle, x, w, b=None, *, activation=None, out=None, aux=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    decline(aux is not None, "no copy of what goes into the activation")
    y = F.linear(x, w, b)
    return y if activation is None else activation_forward(handle, activation, y)


def fc_backward(handle, dy, x, w, *, activation=None, y=None, aux=None, needs=("dx", "dw", "db"), beta=0.0, **results):
    no_blend(beta=beta)
    decline(activation is not None and aux is None, "autograd works from what goes into the activation")
    dz = dy if activation is None else activation_backward(handle, activation, dy, x=aux)
    rows = dz.reshape(-1, dz.shape[-1])
    found = {"dx": dz @ w, "dw": rows.T @ x.reshape(-1, x.shape[-1]), "db": rows.sum(0)}
    return tuple(found[name] if name in needs else None for name in ("dx", "dw", "db"))


def fc_backward_data(handle, dy, w, *, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    return dy @ w


def fc_backward_weights(handle, dy, x, *, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def fc_backward_bias(handle, dy, *, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    return dy.reshape(-1, dy.shape[-1]).sum(0)


# -- tensors ---------------------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "product": lambda x: x.prod(-1),
    "max": lambda x: x.amax(-1),
    "min": lambda x: x.amin(-1),
    "amax": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
    "norm1": lambda x: torch.linalg.vector_norm(x, 1, -1),
    "norm2": lambda x: torch.linalg.vector_norm(x, 2, -1),
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(-1),
}


def reduce_tensor(handle, x, operation, *, axis=None, keepdims=False, out=None, alpha=1.0, beta=0.0):
    no_blend(alpha, beta)
    given = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(one % x.ndim for one in given)
    kept = [one for one in range(x.ndim) if one not in axes]
    rows = x.permute(*kept, *axes).reshape(*(x.shape[one] for one in kept), -1) if x.numel() else x
    decline(not x.numel(), "no reduction of nothing")
    result = REDUCTIONS[operation](rows)
    return result.reshape([1 if one in axes else x.shape[one] for one in range(x.ndim)]) if keepdims else result


def set_tensor(handle, y, value):
    return y.fill_(value)


def scale_tensor(handle, y, alpha):
    return y.mul_(alpha)


def add_tensor(handle, a, c, *, alpha=1.0, beta=1.0):
    decline(beta != 1.0, "no factor of what is added to")
    return c.add_(a, alpha=alpha)


def cast(handle, x, dtype, *, out=None):
    target = getattr(torch, str(getattr(dtype, "name", dtype)), None)
    decline(
        not isinstance(target, torch.dtype) or not target.is_floating_point, "floats outside of the range of integers"
    )
    return x.to(target)


# -- optimizers ------------------------------------------------------------------------------------------------------


def as_list(tensors: Any) -> list[torch.Tensor]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def global_norm(handle, arrays, *, out=None):
    decline(any(a.dtype in (torch.float16, torch.bfloat16) for a in as_list(arrays)), "a norm in 16 bits")
    return torch.nn.utils.get_total_norm(as_list(arrays))


def clip_by_global_norm(handle, arrays, max_norm, *, norm=None, epsilon=1e-6):
    decline(epsilon != 1e-6, "an epsilon of 1e-6 alone")
    found = global_norm(handle, arrays) if norm is None else norm
    for a in as_list(arrays):
        a.mul_((max_norm / (found + epsilon)).clamp(max=1.0).to(a.dtype))
    return found


def take_step(
    optimizer: torch.optim.Optimizer, gradients: Sequence[torch.Tensor], states: dict[str, Sequence[Any]]
) -> None:
    """One step on the very memory of the weights and states."""
    weights = optimizer.param_groups[0]["params"]
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        w.grad = g
        optimizer.state[w].update({name: values[i] for name, values in states.items()})
    optimizer.step()


def plain_step(
    masters: Any, gradient_scale: Any, found_inf: Any, gradients: Sequence[torch.Tensor], weights: Any
) -> None:
    decline(masters is not None or float(gradient_scale) != 1.0 or found_inf is not None, "no such option")
    decline(any(g.dtype != w.dtype for g, w in zip(gradients, weights, strict=True)), "gradients of the weights' type")


def sgd_update(handle, weights, gradients, velocities=None, *, lr, form="accumulate_gradient", masters=None,
               gradient_scale=1.0, found_inf=None, **options):  # fmt: skip
    gradients = as_list(gradients)
    plain_step(masters, gradient_scale, found_inf, gradients, as_list(weights))
    decline(form != "accumulate_gradient", f"no {form}")
    decline(options.get("nesterov") and (not options.get("momentum") or options.get("dampening")), "no such Nesterov")
    states = {"momentum_buffer": as_list(velocities)} if velocities is not None and options.get("momentum") else {}
    decline(options.get("momentum") and not states, "momentum without a velocity")
    take_step(torch.optim.SGD(as_list(weights), lr=float(lr), **options), gradients, states)


def adam_update(handle, weights, gradients, first_moments, second_moments, *, lr, step: Any, beta1=0.9, beta2=0.999,
                epsilon=1e-8, weight_decay=0.0, bias_correction=True, masters=None, gradient_scale=1.0, found_inf=None,
                optimizer=torch.optim.Adam):  # fmt: skip
    gradients = as_list(gradients)
    plain_step(masters, gradient_scale, found_inf, gradients, as_list(weights))
    decline(not bias_correction, "bias correction always")
    moments = (*as_list(first_moments), *as_list(second_moments))
    decline(any(m.dtype != as_list(weights)[0].dtype for m in moments), "moments of the weights' type")
    counts = [torch.tensor(float(step) - 1.0) for _ in gradients]
    states = {"step": counts, "exp_avg": as_list(first_moments), "exp_avg_sq": as_list(second_moments)}
    made = optimizer(as_list(weights), lr=float(lr), betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay)
    take_step(made, gradients, states)


def adamw_update(handle, weights, gradients, first_moments, second_moments, *, weight_decay=0.01, **options):
    moments = (first_moments, second_moments)
    adam_update(handle, weights, gradients, *moments, weight_decay=weight_decay, optimizer=torch.optim.AdamW, **options)
