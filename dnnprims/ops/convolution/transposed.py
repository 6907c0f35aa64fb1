"""The transposed convolution, front ends and plans: what is forward and what a gradient in data change places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import ConvolutionDescriptor, TensorDescriptor
from ...reference import convolution as reference
from ...runtime.gemm import GemmStep
from ...runtime.launch import NULL, FillStep, KernelStep, PlanSpec, Profile, Result
from .algorithms import work_of
from .bias import sums_of_channels
from .geometry import examine, examine_transposed
from .product import Epilogue, Product, operand

if TYPE_CHECKING:
    from ...handle import Handle

Steps = tuple[KernelStep | FillStep | GemmStep, ...]

#: Numbers of the operands of `conv_transpose_backward`.
_DY, _X, _W, _DX, _DW, _DB = range(6)


def conv_transpose_forward(
    handle: Handle,
    conv: ConvolutionDescriptor,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    output_padding: int | tuple[int, ...] = 0,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Transposed convolution: ``y = conv^T(x, w) + b``, the data gradient of `conv` as a layer, blended into `out`.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        The convolution that is transposed: its stride spreads, its padding cuts off.
    x : array
        ``(n, k, ...)`` or ``(n, ..., k)`` with 1 to 3 spatial axes; float32, float64, float16 or bfloat16. Strided
        views are taken of x, w and out; all arrays have x's dtype.
    w : array
        Filters of the convolution that is transposed, ``(k, c / groups, ...)`` or ``(k, ..., c / groups)``: its first
        axis belongs to x.
    b : array, optional
        Bias, ``(c,)``.
    output_padding : int or tuple of int
        By how much the result is larger at the end of each axis, less than the stride: as many images have a
        convolution of x's shape.
    out : array, optional
        Destination, with ``(x - 1) * stride - padding + (taps - 1) * dilation + 1 + output_padding`` along each axis.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps another argument.

    Notes
    -----
    As `conv_backward_data`: gathered sums in float32 (float64 for float64), rounded once; the bits repeat. What no tap
    reaches is b.
    """
    output_padding = checks.require_each_axis("conv_transpose_forward", "output_padding", output_padding)
    options, operands = (conv, output_padding, alpha, beta), (x, w, b, out)
    if checks.on_numpy(handle, "conv_transpose_forward"):
        with handle.checked(plan_conv_transpose_forward, options, operands) as (x, w, b, out):
            return reference.conv_transpose_forward(
                conv, x, w, b, output_padding=output_padding, out=out, alpha=alpha, beta=beta
            )
    return handle.run(plan_conv_transpose_forward, options, operands)


def conv_transpose_backward(
    handle: Handle,
    conv: ConvolutionDescriptor,
    dy: Any,
    x: Any,
    w: Any,
    *,
    needs: Sequence[str] = ("dx", "dw", "db"),
    dx: Any = None,
    dw: Any = None,
    db: Any = None,
    beta: float = 0.0,
) -> tuple[Any, Any, Any]:
    """Gradients of `conv_transpose_forward`: dx is the convolution of dy, dw its filter gradient, db the sum of dy.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        As in the forward pass.
    dy : array
        Gradient of the result, of its shape; float32, float64, float16 or bfloat16. Strided views are taken of all
        arrays but db, which have dy's dtype.
    x, w : array
        As in the forward pass.
    needs : sequence of str
        Which of ``"dx"``, ``"dw"`` and ``"db"`` to compute.
    dx, dw, db : array, optional
        Destinations, of the shapes of x, w and ``(c,)``.
    beta : float
        For the parameters' gradients: ``dw = dw' + beta * dw``, ``db = sum dy + beta * db``; 1 accumulates. dx is
        always overwritten.

    Returns
    -------
    (dx, dw, db) : tuple
        None in place of a gradient that is not in `needs`.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or a destination overlaps another argument.

    Notes
    -----
    A launch for each gradient; as `conv_forward` and `conv_backward_filter`. An empty batch gives dw = db = 0.
    """
    wanted = checks.require_names("conv_transpose_backward", "needs", needs)
    options, operands = (conv, wanted, beta), (dy, x, w, dx, dw, db)
    if checks.on_numpy(handle, "conv_transpose_backward"):
        with handle.checked(plan_conv_transpose_backward, options, operands) as (dy, x, w, dx, dw, db):
            return reference.conv_transpose_backward(conv, dy, x, w, needs=wanted, dx=dx, dw=dw, db=db, beta=beta)
    return handle.run(plan_conv_transpose_backward, options, operands)  # type: ignore[no-any-return]


def plan_conv_transpose_forward(
    profile: Profile,
    conv: ConvolutionDescriptor,
    output_padding: int | tuple[int, ...],
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    w: TensorDescriptor,
    b: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_transpose_forward`."""
    op = "conv_transpose_forward"
    g = examine_transposed(op, conv, x, w, output_padding)
    checks.require_same_dtype(op, x=x, b=b)
    if b is not None:
        checks.require_shape(op, "b", b, (g.in_channels,), "the channels of a filter, times groups")
        checks.require_contiguous(op, b=b)
    checks.require_out(op, out, g.x_shape, x.dtype, rule="the shape of the transposed convolution", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    y, then = operand(3, out, g.x_shape), Epilogue.none(NULL if b is None else 2)
    product = Product(profile, "data", x.dtype, g, y, operand(1, w), operand(0, x), then, alpha, beta)
    variant, work, refused = work_of(product)
    return PlanSpec(
        op,
        variant,
        work.steps,
        results=(Result(3, g.x_shape, x.dtype),),
        returns=(3,),
        writes=(3,),
        scratch=work.scratch,
        refused=refused,
    )


def plan_conv_transpose_backward(
    profile: Profile,
    conv: ConvolutionDescriptor,
    needs: tuple[str, ...],
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor,
    w: TensorDescriptor,
    dx: TensorDescriptor | None,
    dw: TensorDescriptor | None,
    db: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_transpose_backward`: a launch for each gradient."""
    op = "conv_transpose_backward"
    checks.require_needs(op, needs, ("dx", "dw", "db"), dx=dx, dw=dw, db=db)
    g = examine(op, conv, dy, w, x_name="dy")
    checks.require_shape(op, "x", x, g.y_shape, "the shape of the convolution of dy and w")
    checks.require_same_dtype(op, dy=dy, x=x)
    shapes = {"dx": g.y_shape, "dw": w.shape, "db": (g.in_channels,)}
    places = {"dx": (_DX, dx), "dw": (_DW, dw), "db": (_DB, db)}
    for name, (_, out) in places.items():
        rule = {"dx": "x.shape", "dw": "w.shape", "db": "the channels of dy"}[name]
        checks.require_out(op, out, shapes[name], dy.dtype, param=name, rule=rule, contiguous=name == "db")
        if name != "dx" and name in needs:
            checks.require_blend(op, 1.0, beta, out, param=name)
    at_dy, at_x, at_w = operand(_DY, dy), operand(_X, x), operand(_W, w)
    at_dx, at_dw = operand(_DX, dx, g.y_shape), operand(_DW, dw, w.shape)
    none = Epilogue.none()
    products = {
        "dx": Product(profile, "forward", dy.dtype, g, at_dy, at_w, at_dx, none, 1.0, 0.0),
        "dw": Product(profile, "filter", dy.dtype, g, at_dy, at_dw, at_x, none, 1.0, beta),
    }
    wanted = [name for name in shapes if name in needs]
    variants, made, scratch, refused = _works([products[name] for name in wanted if name in products])
    if "db" in needs and g.in_channels:
        _, sums = sums_of_channels(profile, conv, dy, (_DY, _DB), (1.0, beta), scratch)
        made, scratch = made + sums.steps, scratch + sums.scratch
    return PlanSpec(
        op,
        "+".join(dict.fromkeys(variants)) or "direct_plain",
        made,
        results=tuple(Result(places[name][0], shapes[name], dy.dtype) for name in wanted),
        returns=(_DX, _DW, _DB),
        writes=tuple(places[name][0] for name in wanted),
        scratch=scratch,
        refused=refused,
    )


def _works(products: Sequence[Product]) -> tuple[list[str], Steps, tuple[int, ...], tuple[tuple[str, str], ...]]:
    """The algorithms of several products, their steps one after the other, their scratch, and what refused."""
    names: list[str] = []
    made: Steps = ()
    scratch: tuple[int, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    for product in products:
        name, work, reasons = work_of(product._replace(taken=scratch))
        names.append(name)
        made, scratch, refused = made + work.steps, scratch + work.scratch, refused + reasons
    return names, made, scratch, refused
