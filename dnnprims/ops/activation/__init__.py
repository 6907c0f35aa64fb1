"""Elementwise activations and their gradients. Plans are in `plans`, the kernels in `kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import as_activation
from ...reference import activation as reference
from .kernels import FAMILY
from .plans import Activation, plan_activation_backward, plan_activation_forward

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "FAMILY",
    "activation_backward",
    "activation_forward",
    "backward_needs",
    "plan_activation_backward",
    "plan_activation_forward",
]


def activation_forward(
    handle: Handle, activation: Activation, x: Any, *, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Activation of each element: ``out = alpha * f(x) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    activation : str or ActivationDescriptor
        What f is: a mode of the table below with its parameters, or its name for the defaults.
    x : array
        float32, float64, float16 or bfloat16; any shape and strides.
    out : array, optional
        Destination, of x's shape and dtype, any strides. May be x itself.
    alpha, beta : float
        Blend with the old `out`; with beta 0 it is never read.

    Returns
    -------
    array
        `out`, or a new contiguous array of x's shape and dtype.

    Raises
    ------
    BadParamError
        There is no such activation, a parameter does not fit x's accumulator, a shape or dtype does not match, or the
        strides need more than 8 axes.

    Notes
    -----
    ============  =======================================================================  ==============  ========
    mode          f(x)                                                                     f' at kinks     backward
    ============  =======================================================================  ==============  ========
    identity      x                                                                                        nothing
    relu          max(x, 0)                                                                0 at 0          y or x
    clipped_relu  min(max(x, 0), ceiling)                                                  0 at both       y or x
    leaky_relu    x for x > 0, else slope x                                                slope at 0      y or x
    threshold     x for x > threshold, else value                                          0               y or x
    elu           x for x > 0, else alpha (e^x - 1)                                        alpha at 0      y or x
    celu          x for x > 0, else alpha (e^(x / alpha) - 1)                              1               y or x
    selu          1.0507 elu(x) with alpha 1.67326                                         1.7581 at 0     y or x
    sigmoid       1 / (1 + e^-x)                                                                           y or x
    log_sigmoid   -log(1 + e^-x)                                                                           y or x
    tanh          tanh x                                                                                   y or x
    softplus      log(1 + e^(beta x)) / beta; x where beta x > threshold                                   x
    softsign      x / (1 + |x|)                                                                            y or x
    tanhshrink    x - tanh x                                                                               x
    softshrink    x - lambd sign(x) for |x| > lambd, else 0                                0 at both       y or x
    hardshrink    x for |x| > lambd, else 0                                                0 at both       y or x
    gelu          x Phi(x), Phi the normal distribution                                                    x
    gelu_tanh     x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2                                        x
    swish         x sigmoid(beta x)                                                                        x
    mish          x tanh(log(1 + e^x))                                                                     x
    hard_sigmoid  min(max(slope x + offset, 0), 1)                                         0 at both       y or x
    hard_tanh     min(max(x, low), high)                                                   0 at both       y or x
    hard_swish    x min(max(x + 3, 0), 6) / 6                                              0 at -3, 1 at 3  x
    squared_relu  max(x, 0)^2                                                                              x
    abs           abs(x)                                                                   0 at 0          x
    square        x^2                                                                                      x
    sqrt          sqrt(x)                                                                                  y or x
    exp           e^x                                                                                      y or x
    log           log x                                                                                    x
    ============  =======================================================================  ==============  ========

    Right over the whole finite range, tails included: float32 and float64 to 2 ULP, 16-bit types to 0.51 ULP. At
    infinities the limits are given; NaN is handed on. Parameters are taken in float32 (float64 for float64).

    References
    ----------
    Clevert et al., "Fast and accurate deep network learning by exponential linear units", 2016; Klambauer et al.,
    "Self-normalizing neural networks", 2017; Hendrycks and Gimpel, "Gaussian error linear units", 2016; Ramachandran
    et al., "Searching for activation functions", 2017; Misra, "Mish", 2019; Howard et al., "Searching for MobileNetV3",
    2019.
    """
    options, operands = (activation, alpha, beta), (x, out)
    if checks.on_numpy(handle, "activation_forward"):
        with handle.checked(plan_activation_forward, options, operands) as (x, out):
            mode = as_activation(activation, "activation_forward")
            return reference.activation_forward(mode, x, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_activation_forward, options, operands)


def activation_backward(
    handle: Handle,
    activation: Activation,
    dy: Any,
    *,
    x: Any = None,
    y: Any = None,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `activation_forward`: ``out = alpha * dy * f'(x) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    activation : str or ActivationDescriptor
        As in the forward pass.
    dy : array
        Upstream gradient: float32, float64, float16 or bfloat16; any shape and strides.
    x, y : array, optional
        Input and (unblended) output of the forward pass, of dy's shape and dtype, any strides: one of those that
        `backward_needs` names. x is used where both are given.
    out : array, optional
        Destination, of dy's shape and dtype, any strides. May be dy, x or y itself.
    alpha, beta : float
        Blend with the old `out`; with beta 0 it is never read.

    Returns
    -------
    array
        `out`, or a new contiguous array of dy's shape and dtype.

    Raises
    ------
    BadParamError
        There is no such activation, what it is differentiated from is missing, a shape or dtype does not match, or the
        strides need more than 8 axes.

    Notes
    -----
    At a kink the derivative is that of the piece that contains it (table of `activation_forward`). Where f is constant
    the gradient is 0 even if dy is infinite or NaN. NaN in x or y is handed on. The derivative of x is right to 4 ULP
    in float32 and float64 and to 1 ULP in 16-bit types, where it changes sign (gelu, gelu_tanh, swish, mish) to that
    many ULP of 2^-10; from y it is the derivative at y as stored, and a y that equals a bound of f as stored counts as
    beyond it.
    """
    options, operands = (activation, alpha, beta), (dy, x, y, out)
    if checks.on_numpy(handle, "activation_backward"):
        with handle.checked(plan_activation_backward, options, operands) as (dy, x, y, out):
            mode = as_activation(activation, "activation_backward")
            return reference.activation_backward(mode, dy, x=x, y=y, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_activation_backward, options, operands)


def backward_needs(activation: Activation) -> tuple[str, ...]:
    """Name what `activation_backward` can be given: any one of the tensors named suffices, the cheaper to keep first.

    Parameters
    ----------
    activation : str or ActivationDescriptor
        As in the forward pass.

    Returns
    -------
    tuple of str
        ``("y", "x")``, ``("x",)``, or ``()`` for the identity, which needs neither.

    Raises
    ------
    BadParamError
        There is no such activation.

    Examples
    --------
    >>> backward_needs("relu"), backward_needs("gelu")
    (('y', 'x'), ('x',))
    """
    return reference.backward_needs(as_activation(activation, "backward_needs"))
