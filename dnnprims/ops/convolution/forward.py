"""The forward convolution: front end and plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import ActivationDescriptor, ConvolutionDescriptor, TensorDescriptor, as_activation
from ...reference import convolution as reference
from ...runtime.launch import NULL, PlanSpec, Profile, Result
from .algorithms import work_of
from .bias import sums_of_result
from .geometry import Geometry, examine
from .product import Epilogue, Product, Work, operand

if TYPE_CHECKING:
    from ...handle import Handle

Activation = str | ActivationDescriptor | None

#: Numbers of the operands of `conv_forward`.
_X, _W, _B, _RESIDUAL, _SCALE, _SHIFT, _OUT, _SUMS = range(8)


def conv_forward(
    handle: Handle,
    conv: ConvolutionDescriptor,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: Activation = None,
    residual: Any = None,
    scale: Any = None,
    shift: Any = None,
    out: Any = None,
    alpha1: float = 1.0,
    alpha2: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.0,
    with_sums: bool = False,
    sums: Any = None,
) -> Any:
    """Convolution: ``z = scale * (alpha1 * conv(x, w) + b) + shift + alpha2 * residual``, ``out = act(z)``.

    Without scale and shift this is cuDNN's fused ``act(alpha1 * conv(x, w) + alpha2 * residual + b)``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        How the filter moves, and the layout.
    x : array
        ``(n, c, ...)`` or ``(n, ..., c)`` with 1 to 3 spatial axes; float32, float64, float16 or bfloat16. Strided
        views are taken of x, w, residual and out; all but scale and shift have x's dtype.
    w : array
        Filters, ``(k, c / groups, ...)`` or ``(k, ..., c / groups)``.
    b : array, optional
        Bias, ``(k,)``.
    activation : str or ActivationDescriptor, optional
        Any mode; the identity where left out.
    residual : array, optional
        Of the result's shape, added before the activation. It may be `out` itself.
    scale, shift : array, optional
        ``(k,)``, float32 (float64 for float64): a batch norm folded for inference.
    out : array, optional
        Destination, of the shape that `conv_output_descriptor` tells.
    alpha1, alpha2 : float
        Factors of the convolution and of the residual.
    alpha, beta : float
        ``out = alpha * act(z) + beta * out``; with beta 0 the old `out` is never read.
    with_sums : bool
        Also give the sum of each channel of `out` as it is stored, over images and positions, and the sum of its
        squares. `out` must be contiguous then.
    sums : array, optional
        Destination of those, ``(2, k)``, which implies `with_sums`; float32 (float64 for float64).

    Returns
    -------
    array, or (y, sums) : tuple of array
        `out`, or a new array; the tuple where sums were asked for.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, channels are no multiple of the groups, a filter
        with its dilation is larger than the image with its padding, or `out` overlaps another argument.

    Notes
    -----
    Sums are in float32 (float64 for float64), in an order fixed by the shapes; z is not rounded before the activation,
    and the result is rounded once. Nothing outside of the image is read or multiplied, so that an infinite weight never
    meets padding; but for the variants of Hopper (``hopper...``, not ``hopper_first``), to which padding is zeros, and
    of narrow groups their neighbours up to 64 channels: infinities over those give NaN. NaN is handed on. Where the
    handle allows TF32, factors of float32 may be rounded to it. No channels give ``act(b)``. Keep x and w for the
    backward pass.

    Of m elements of a channel ``sums[0] / m`` is the mean and ``sums[1] / m - mean ** 2`` the variance, which
    `batchnorm_forward_inference` takes: a batch norm that does not read `out` once more for them. That difference has
    lost what the mean has more of digits than the deviations; `batchnorm_forward_training` loses none.
    """
    with_sums = checks.require_switch("conv_forward", "with_sums", with_sums)
    options = (conv, activation, alpha1, alpha2, alpha, beta, with_sums)
    operands = (x, w, b, residual, scale, shift, out, sums)
    if checks.on_numpy(handle, "conv_forward"):
        with handle.checked(plan_conv_forward, options, operands) as (x, w, b, residual, scale, shift, out, sums):
            mode = as_activation(activation, "conv_forward")
            return reference.conv_forward(
                conv, x, w, b, activation=mode, residual=residual, scale=scale, shift=shift, out=out,
                alpha1=alpha1, alpha2=alpha2, alpha=alpha, beta=beta, with_sums=with_sums, sums=sums,
            )  # fmt: skip
    return handle.run(plan_conv_forward, options, operands)


def conv_output_descriptor(conv: ConvolutionDescriptor, x: TensorDescriptor, w: TensorDescriptor) -> TensorDescriptor:
    """Describe what `conv_forward` makes of such an image and such filters; needs no device.

    Parameters
    ----------
    conv : ConvolutionDescriptor
        How the filter moves.
    x, w : TensorDescriptor
        Of image and filters.

    Returns
    -------
    TensorDescriptor
        Along each spatial axis ``1 + (image + padding - ((taps - 1) * dilation + 1)) / stride``, rounded down.

    Raises
    ------
    BadParamError
        They do not go together.
    """
    op = "conv_output_descriptor"
    for name, value in (("x", x), ("w", w)):
        checks.require_description(op, name, value)
    return TensorDescriptor(examine(op, conv, x, w).y_shape, x.dtype)


def plan_conv_forward(
    profile: Profile,
    conv: ConvolutionDescriptor,
    activation: Activation,
    alpha1: float,
    alpha2: float,
    alpha: float,
    beta: float,
    with_sums: bool,
    x: TensorDescriptor,
    w: TensorDescriptor,
    b: TensorDescriptor | None,
    residual: TensorDescriptor | None,
    scale: TensorDescriptor | None,
    shift: TensorDescriptor | None,
    out: TensorDescriptor | None,
    sums: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_forward`."""
    op = "conv_forward"
    g = examine(op, conv, x, w)
    mode = as_activation(activation, op)
    for name, value in (("alpha1", alpha1), ("alpha2", alpha2)):
        checks.require_finite(op, name, value)
    _require_epilogue(op, g, x, b, residual, scale, shift)
    checks.require_out(op, out, g.y_shape, x.dtype, rule="the shape of the convolution", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    with_sums = with_sums or sums is not None
    if with_sums:
        _require_sums(op, g, x, out, sums)
    then = Epilogue(
        mode,
        b=NULL if b is None else _B,
        residual=None if residual is None else operand(_RESIDUAL, residual),
        scale=NULL if scale is None else _SCALE,
        shift=NULL if shift is None else _SHIFT,
        alpha1=alpha1,
        alpha2=alpha2,
    )
    y = operand(_OUT, out, g.y_shape)
    product = Product(profile, "forward", x.dtype, g, operand(_X, x), operand(_W, w), y, then, alpha, beta)
    variant, work, refused = work_of(product)
    results: tuple[Result, ...] = (Result(_OUT, g.y_shape, x.dtype),)
    more = Work(())
    if with_sums:
        described = TensorDescriptor(g.y_shape, x.dtype) if out is None else out
        results += (Result(_SUMS, (2, g.out_channels), x.dtype.acc),)
        more = sums_of_result(profile, conv, described, (_OUT, _SUMS), work.scratch)
    made = tuple(result.operand for result in results)
    return PlanSpec(
        op,
        variant,
        (*work.steps, *more.steps),
        results=results,
        returns=made,
        writes=made,
        in_place=((_OUT, _RESIDUAL),),
        scratch=(*work.scratch, *more.scratch),
        refused=refused,
    )


def _require_sums(
    op: str, g: Geometry, x: TensorDescriptor, out: TensorDescriptor | None, sums: TensorDescriptor | None
) -> None:
    if out is not None:
        checks.require_contiguous(op, out=out)
    shape, rule = (2, g.out_channels), "(2, w.shape[0])"
    checks.require_out(op, sums, shape, x.dtype.acc, param="sums", rule=rule)


def _require_epilogue(
    op: str,
    g: Geometry,
    x: TensorDescriptor,
    b: TensorDescriptor | None,
    residual: TensorDescriptor | None,
    scale: TensorDescriptor | None,
    shift: TensorDescriptor | None,
) -> None:
    """Check what follows the sums: arrays of the output's channels, and one of its shape."""
    checks.require_same_dtype(op, x=x, b=b, residual=residual)
    for name, values in (("b", b), ("scale", scale), ("shift", shift)):
        if values is not None:
            checks.require_shape(op, name, values, (g.out_channels,), "(w.shape[0],)")
            checks.require_contiguous(op, **{name: values})
    for name, values in (("scale", scale), ("shift", shift)):
        if values is not None:
            checks.require_dtype(op, name, values, (x.dtype.acc,))
    if residual is not None:
        checks.require_shape(op, "residual", residual, g.y_shape, "the shape of the convolution")
