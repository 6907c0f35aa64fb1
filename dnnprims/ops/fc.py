"""Fully connected layers: ``y = act(x w^T + b)``, its gradients, and what to keep for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor, as_activation
from ..dtypes import DType
from ..errors import BadParamError
from ..reference import fc as reference
from ..runtime.gemm import GemmStep, Matrix, aux_reason, lower, lt_reason, workspace_for
from ..runtime.launch import (
    NULL,
    Family,
    Kernel,
    KernelStep,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Scratch,
    Struct,
    blocks_for,
    choose,
    unaligned,
)

if TYPE_CHECKING:
    from ..handle import Handle

Activation = str | ActivationDescriptor | None

_BLEND, _CONSTANTS = (("alpha", "A"), ("beta", "A")), (("c0", "A"), ("c1", "A"))
_FORWARD = Kernel(
    "fc", "fc_activation_forward", Struct("FcActivationParams", ("y", "z"), (*_BLEND, *_CONSTANTS, ("count", "i64")))
)
_GRADIENT = Kernel(
    "fc",
    "fc_gradient",
    Struct(
        "FcGradientParams",
        ("dz", "db", "partial", "dy", "saved"),
        (*_BLEND, *_CONSTANTS, ("rows", "i64"), ("columns", "i64"), ("rows_per_chunk", "i64")),
    ),
)
_FOLD = Kernel(
    "fc", "fc_fold", Struct("FcFoldParams", ("db", "partial"), (*_BLEND, ("chunks", "i64"), ("columns", "i64")))
)

#: Columns of a strip in packs; rows that one pass of a block takes; up to how many rows one block per strip is faster
#: than two launches; the fewest rows worth a chunk; how many blocks fill any GPU. Fixed, so that the order of summation
#: depends on the shape alone.
_LANES, _ROWS_AT_ONCE, _FEW_ROWS, _FEWEST_ROWS, _ENOUGH_BLOCKS = 32, 32, 64, 32, 1024


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
    the product for the identity, for relu, and for gelu_tanh of 16-bit types (alpha 1, beta 0); other activations
    follow in one pass of their own, from z rounded to x's dtype. ``in == 0`` gives ``act(b)``. Sums are in float32
    (float64 for float64); with ``math="tf32"`` the products of float32 have 10-bit mantissas. The bits repeat. NaN is
    handed on.
    """
    options, operands = (activation, alpha, beta), (x, w, b, out, aux)
    if handle.backend == "numpy":
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
    if handle.backend == "numpy":
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
    if handle.backend == "numpy":
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
    if handle.backend == "numpy":
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
    that depends on the shape alone; then one product each for dx and dw. The bits repeat. At kinks
    `activation_backward` says what holds (``relu'(0) = 0``). An empty batch gives dw = db = 0.
    """
    options, operands = (activation, tuple(needs), beta), (dy, x, w, y, aux, dx, dw, db)
    if handle.backend == "numpy":
        with handle.checked(plan_fc_backward, options, operands) as (dy, x, w, y, aux, dx, dw, db):
            mode = as_activation(activation, "fc_backward")
            return reference.fc_backward(
                dy, x, w, activation=mode, y=y, aux=aux, needs=tuple(needs), dx=dx, dw=dw, db=db, beta=beta
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


def plan_fc_forward(
    profile: Profile,
    activation: Activation,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    w: TensorDescriptor,
    b: TensorDescriptor | None,
    out: TensorDescriptor | None,
    aux: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `fc_forward`."""
    op = "fc_forward"
    mode = as_activation(activation, op)
    m, k, n = *_require_rows(op, "x", x), _require_weights(op, w, x, 1, "x")
    checks.require_same_dtype(op, x=x, w=w, b=b)
    checks.require_contiguous(op, x=x, w=w, b=b)
    if b is not None:
        checks.require_shape(op, "b", b, (n,), "(w.shape[0],)")
    shape = (*x.shape[:-1], n)
    checks.require_out(op, out, shape, x.dtype, rule="(*x.shape[:-1], w.shape[0])")
    checks.require_out(op, aux, shape, x.dtype, param="aux", rule="(*x.shape[:-1], w.shape[0])")
    checks.require_blend(op, alpha, beta, out)
    spec = PlanSpec(op, "empty", (), results=(Result(3, shape, x.dtype),), returns=(3,), writes=(3, 4))
    if m * n == 0:
        return spec
    # Where z is kept until the pass over it: in aux where the caller wants it, else in out unless its old values count.
    alone = mode.mode == "identity" and aux is None and (b is None or alpha == 1.0)
    aside = beta != 0.0 and aux is None and not alone
    z: Pointer = 4 if aux is not None else Scratch(0) if aside else 3
    own = (m * n * x.dtype.itemsize,) if aside else ()
    checks.require_workspace(op, profile.workspace_limit, sum(own), "the pre-activation")
    name, reason = _epilogue(mode, x.dtype, n, b is not None, aux, alpha, beta)
    no_lt = lt_reason(profile, m, n, k)
    variant, refused = choose((("lt_epilogue", no_lt or reason), ("lt_then_pass", no_lt), ("tiled_kernel", None)))
    scratch = own if no_lt else (*own, workspace_for(profile, sum(own)))
    product = GemmStep(
        x.dtype, m, n, k,
        Matrix(0, k, alignment=x.alignment),
        Matrix(1, k, transposed=True, alignment=w.alignment),
        Matrix(z, n, alignment=_alignment(out if z == 3 else aux)),
        epilogue="none" if b is None else "bias",
        bias=NULL if b is None else 2,
        alpha=float(alpha) if alone else 1.0,
        beta=float(beta) if alone else 0.0,
        workspace=NULL if no_lt else Scratch(len(own)),
        workspace_bytes=0 if no_lt else scratch[-1],
    )  # fmt: skip
    if variant == "lt_epilogue":
        kept = product.c if aux is not None else None
        product = replace(product, epilogue=name, c=Matrix(3, n, alignment=_alignment(out)), aux=kept)
    after = () if alone else (_activate(mode, x.dtype, m * n, z, unaligned(out=out, aux=aux), alpha, beta),)
    steps = lower(profile, product, after)
    return replace(spec, variant=str(variant), steps=steps, scratch=scratch, refused=refused)


def plan_fc_backward_data(
    profile: Profile,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    w: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `fc_backward_data`."""
    op = "fc_backward_data"
    m, n = _require_rows(op, "dy", dy)
    k = _require_weights(op, w, dy, 0, "dy")
    checks.require_same_dtype(op, dy=dy, w=w)
    checks.require_contiguous(op, dy=dy, w=w)
    shape = (*dy.shape[:-1], k)
    checks.require_out(op, out, shape, dy.dtype, rule="(*dy.shape[:-1], w.shape[1])")
    checks.require_blend(op, alpha, beta, out)
    spec = PlanSpec(op, "empty", (), results=(Result(2, shape, dy.dtype),), returns=(2,), writes=(2,))
    left, right = Matrix(0, n, alignment=dy.alignment), Matrix(1, k, alignment=w.alignment)
    product = _data_product(dy.dtype, m, left, right, 2, out)
    return _one_product(spec, profile, replace(product, alpha=float(alpha), beta=float(beta)))


def plan_fc_backward_weights(
    profile: Profile,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `fc_backward_weights`."""
    op = "fc_backward_weights"
    m, n = _require_rows(op, "dy", dy)
    k = _require_input(op, x, dy)
    checks.require_same_dtype(op, dy=dy, x=x)
    checks.require_contiguous(op, dy=dy, x=x)
    checks.require_out(op, out, (n, k), dy.dtype, rule="(dy.shape[-1], x.shape[-1])")
    checks.require_blend(op, alpha, beta, out)
    spec = PlanSpec(op, "empty", (), results=(Result(2, (n, k), dy.dtype),), returns=(2,), writes=(2,))
    left, right = Matrix(0, n, alignment=dy.alignment), Matrix(1, k, alignment=x.alignment)
    product = _weights_product(dy.dtype, m, left, right, 2, out)
    return _one_product(spec, profile, replace(product, alpha=float(alpha), beta=float(beta)))


def plan_fc_backward_bias(
    profile: Profile, alpha: float, beta: float, dy: TensorDescriptor, out: TensorDescriptor | None
) -> PlanSpec:
    """Plan of `fc_backward_bias`."""
    op = "fc_backward_bias"
    m, n = _require_rows(op, "dy", dy)
    checks.require_contiguous(op, dy=dy)
    checks.require_out(op, out, (n,), dy.dtype, rule="(dy.shape[-1],)")
    checks.require_blend(op, alpha, beta, out)
    identity = ActivationDescriptor("identity")
    wanted = _GradientPass(
        identity, dy.dtype, m, n, _vec(dy.dtype, n, dy=dy), NULL, 1, 0, NULL, float(alpha), float(beta)
    )
    steps, scratch, whole = _gradient_steps(profile, wanted, ())
    variant, refused = choose((("split_rows", whole), ("whole_columns", None)))
    result = Result(1, (n,), dy.dtype)
    return PlanSpec(op, str(variant), steps, (result,), (1,), (1,), scratch=scratch, refused=refused)


def plan_fc_backward(
    profile: Profile,
    activation: Activation,
    needs: tuple[str, ...],
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor | None,
    w: TensorDescriptor | None,
    y: TensorDescriptor | None,
    aux: TensorDescriptor | None,
    dx: TensorDescriptor | None,
    dw: TensorDescriptor | None,
    db: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `fc_backward`: the pass for dz and db, then the products."""
    op, dtype = "fc_backward", dy.dtype
    mode = as_activation(activation, op)
    checks.require_needs(op, needs, ("dx", "dw", "db"), dx=dx, dw=dw, db=db)
    m, n = _require_rows(op, "dy", dy)
    k = _require_backward_inputs(op, needs, dy, x, w)
    at_saved, saved = _require_saved(op, mode, dy, y, aux)
    shapes = {"dx": (*dy.shape[:-1], k), "dw": (n, k), "db": (n,)}
    _require_destinations(op, needs, beta, dtype, shapes, {"dx": dx, "dw": dw, "db": db})

    with_dz = mode.mode != "identity" and needs != ("db",) and m * n > 0
    scratch: tuple[int, ...] = (m * n * dtype.itemsize,) if with_dz else ()
    checks.require_workspace(op, profile.workspace_limit, sum(scratch), "the gradient of the pre-activation")
    steps: tuple[Any, ...] = ()
    if with_dz or "db" in needs:
        dz, to = Scratch(0) if with_dz else NULL, 7 if "db" in needs else NULL
        vec = _vec(dtype, n, dy=dy, saved=saved)
        wanted = _GradientPass(mode, dtype, m, n, vec, dz, to, 0, at_saved, 1.0, float(beta))
        steps, partial, _ = _gradient_steps(profile, wanted, scratch)
        scratch += partial

    left = Matrix(Scratch(0), n) if with_dz else Matrix(0, n, alignment=dy.alignment)
    products = []
    if "dx" in needs and w is not None and m * k:
        products.append(_data_product(dtype, m, left, Matrix(2, k, alignment=w.alignment), 5, dx))
    if "dw" in needs and x is not None and n * k:
        product = _weights_product(dtype, m, left, Matrix(1, k, alignment=x.alignment), 6, dw)
        products.append(replace(product, beta=float(beta)))
    variant, lowered, room, refused = _lowered(profile, products, scratch)
    results = tuple(
        Result(operand, shapes[name], dtype) for name, operand in (("dx", 5), ("dw", 6), ("db", 7)) if name in needs
    )
    writes = tuple(result.operand for result in results)
    return PlanSpec(op, variant, steps + lowered, results, (5, 6, 7), writes, scratch=scratch + room, refused=refused)


@dataclass(frozen=True)
class _GradientPass:
    """What `fc_gradient` is asked for; dz, db and saved may be NULL."""

    mode: ActivationDescriptor
    dtype: DType
    rows: int
    columns: int
    vec: int
    dz: Pointer
    db: Pointer
    dy: Pointer
    saved: Pointer
    alpha: float
    beta: float


def _gradient_steps(
    profile: Profile, wanted: _GradientPass, taken: tuple[int, ...]
) -> tuple[tuple[KernelStep, ...], tuple[int, ...], str | None]:
    """Return the steps, the scratch that they add to `taken`, and why the rows are not split into chunks."""
    rows, columns, dtype = wanted.rows, wanted.columns, wanted.dtype
    if columns == 0 or (rows == 0 and wanted.db is NULL):
        return (), (), "nothing to do"
    sums = wanted.db is not NULL
    per_chunk = _rows_per_chunk(dtype, rows, columns)
    chunks = max(1, -(-rows // per_chunk))
    partial_bytes = chunks * columns * dtype.acc.itemsize
    whole = _whole_reason(profile, rows, partial_bytes + sum(taken)) if sums else None
    if whole:
        chunks, per_chunk = 1, max(rows, 1)
    partial: Pointer = Scratch(len(taken)) if sums and not whole else NULL
    constants = _constants(wanted.mode)
    gradient = KernelStep(
        _GRADIENT, dtype, (dtype.cuda, _derivative(wanted.mode, dtype), str(wanted.vec)), wanted.mode.mode,
        (-(-columns // (_LANES * wanted.vec)), chunks, 1), 256,
        (wanted.dz, wanted.db, partial, wanted.dy, wanted.saved),
        (wanted.alpha, wanted.beta, *constants, rows, columns, per_chunk),
    )  # fmt: skip
    if partial is NULL:
        return (gradient,), (), whole
    fold = KernelStep(
        _FOLD, dtype, (dtype.cuda,), "fold", blocks_for(columns, _LANES), 256,
        (wanted.db, partial), (wanted.alpha, wanted.beta, chunks, columns),
    )  # fmt: skip
    return (gradient, fold), (partial_bytes,), whole


def _rows_per_chunk(dtype: DType, rows: int, columns: int) -> int:
    """Rows of a block: enough blocks for any GPU, and enough rows that a partial sum is worth its place."""
    strips = -(-columns // (_LANES * dtype.lanes))
    chunks = max(1, min(-(-rows // _FEWEST_ROWS), -(-_ENOUGH_BLOCKS // strips)))
    return max(1, -(-rows // (chunks * _ROWS_AT_ONCE))) * _ROWS_AT_ONCE


def _whole_reason(profile: Profile, rows: int, nbytes: int) -> str | None:
    if rows <= _FEW_ROWS:
        return f"{rows} rows, up to {_FEW_ROWS} are not worth a second launch"
    if 0 <= profile.workspace_limit < nbytes:
        return f"{nbytes} bytes of workspace, the limit is {profile.workspace_limit}"
    return None


def _activate(
    mode: ActivationDescriptor, dtype: DType, count: int, z: Pointer, unfit: str | None, alpha: float, beta: float
) -> KernelStep:
    """The pass from z to out."""
    vec = 1 if unfit else dtype.lanes
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, _functor(mode, dtype), str(vec)), mode.mode, blocks_for(count, 256 * vec), 256,
        (3, z), (float(alpha), float(beta), *_constants(mode), count),
    )  # fmt: skip


def _data_product(dtype: DType, m: int, dz: Matrix, w: Matrix, to: int, out: TensorDescriptor | None) -> GemmStep:
    """The product dx[m, in] = dz w."""
    n, k = dz.leading, w.leading
    return GemmStep(dtype, m, k, n, dz, w, Matrix(to, k, alignment=_alignment(out)))


def _weights_product(dtype: DType, m: int, dz: Matrix, x: Matrix, to: int, out: TensorDescriptor | None) -> GemmStep:
    """The product dw[out, in] = dz^T x over m rows."""
    n, k = dz.leading, x.leading
    return GemmStep(dtype, n, k, m, replace(dz, transposed=True), x, Matrix(to, k, alignment=_alignment(out)))


def _one_product(spec: PlanSpec, profile: Profile, product: GemmStep) -> PlanSpec:
    """Complete a plan that is one product."""
    if product.m * product.n == 0:
        return spec
    variant, steps, scratch, refused = _lowered(profile, [product], ())
    return replace(spec, variant=variant, steps=steps, scratch=scratch, refused=refused)


def _lowered(
    profile: Profile, products: list[GemmStep], taken: tuple[int, ...]
) -> tuple[str, tuple[Any, ...], tuple[int, ...], tuple[tuple[str, str], ...]]:
    """Variant, steps, the one workspace that the products share, behind the scratch taken, and what was refused."""
    reasons = [lt_reason(profile, product.m, product.n, product.k) for product in products]
    reason = next(filter(None, reasons), None) if products else "no product is asked for"
    variant, refused = choose((("lt_product", reason), ("tiled_kernel" if products else "one_pass", None)))
    room = () if reason else (workspace_for(profile, sum(taken)),)
    steps: tuple[Any, ...] = ()
    for product in products:
        if room:
            product = replace(product, workspace=Scratch(len(taken)), workspace_bytes=room[0])
        steps += lower(profile, product)
    return str(variant), steps, room, refused


def _epilogue(
    mode: ActivationDescriptor,
    dtype: DType,
    n: int,
    bias: bool,
    aux: TensorDescriptor | None,
    alpha: float,
    beta: float,
) -> tuple[str, str | None]:
    """Name of the library's epilogue for this layer, and why it is not to be used, or None."""
    ending = "_bias" if bias else ""
    if mode.mode == "identity":
        if aux is not None:
            return "", "aux is a second output"
        return ("bias" if bias else "none"), "alpha would not scale the bias" if bias and alpha != 1.0 else None
    if mode.mode not in ("relu", "gelu_tanh"):
        return "", f"no epilogue for {mode.mode}"
    if alpha != 1.0 or beta != 0.0:
        return "", "alpha and beta apply after the activation"
    if mode.mode == "relu":
        return "relu" + ending, "its aux would be a bit mask" if aux is not None else None
    if dtype.itemsize != 2:
        return "", f"its gelu_tanh is too coarse for {dtype.name}"
    if aux is None:
        return "gelu_tanh" + ending, None
    return "gelu_tanh_aux" + ending, aux_reason(dtype, n, aux.alignment)


def _require_rows(op: str, param: str, x: TensorDescriptor) -> tuple[int, int]:
    """Check x alone; return its extents as (rows, columns), leading axes flattened."""
    checks.require_float(op, param, x)
    if x.ndim == 0:
        checks.require_rank(op, param, x, 1, "(..., features)")
    return prod(x.shape[:-1]), x.shape[-1]


def _require_weights(op: str, w: TensorDescriptor, x: TensorDescriptor, axis: int, rule: str) -> int:
    """Check that `axis` of w fits the last of x, called `rule`; return the other extent of w."""
    checks.require_rank(op, "w", w, 2, "2 axes, (out, in)")
    expected = list(w.shape)
    expected[axis] = x.shape[-1]
    checks.require_shape(op, "w", w, tuple(expected), f"(out, in) with {'in' if axis else 'out'} = {rule}.shape[-1]")
    return w.shape[1 - axis]


def _require_input(op: str, x: TensorDescriptor, dy: TensorDescriptor) -> int:
    """Check that x has dy's leading axes; return its last extent."""
    _require_rows(op, "x", x)
    checks.require_shape(op, "x", x, (*dy.shape[:-1], x.shape[-1]), "(*dy.shape[:-1], in)")
    return x.shape[-1]


def _require_backward_inputs(
    op: str, needs: tuple[str, ...], dy: TensorDescriptor, x: TensorDescriptor | None, w: TensorDescriptor | None
) -> int:
    """Check what of x and w is there, and that what is needed is; return `in`, 0 where it does not matter."""
    k = 0
    if "dw" in needs:
        checks.require_present(op, "x", x, "the input of the forward pass, for dw")
    if "dx" in needs:
        checks.require_present(op, "w", w, "the weights, for dx")
    if x is not None:
        k = _require_input(op, x, dy)
    if w is not None:
        columns = _require_weights(op, w, dy, 0, "dy")
        if x is not None:
            checks.require_shape(op, "w", w, (w.shape[0], k), "(dy.shape[-1], x.shape[-1])")
        k = columns
    checks.require_same_dtype(op, dy=dy, x=x, w=w)
    checks.require_contiguous(op, dy=dy, x=x, w=w)
    return k


def _require_destinations(
    op: str,
    needs: tuple[str, ...],
    beta: float,
    dtype: DType,
    shapes: dict[str, tuple[int, ...]],
    given: dict[str, TensorDescriptor | None],
) -> None:
    """Check dx, dw and db; beta is for the gradients of the parameters alone."""
    checks.require_finite(op, "beta", beta)
    for name, out in given.items():
        checks.require_out(op, out, shapes[name], dtype, param=name)
        if name in needs and name != "dx":
            checks.require_blend(op, 1.0, beta, out, param=name)


def _require_saved(
    op: str,
    mode: ActivationDescriptor,
    dy: TensorDescriptor,
    y: TensorDescriptor | None,
    aux: TensorDescriptor | None,
) -> tuple[Pointer, TensorDescriptor | None]:
    """Check y and aux; return where the one is that the activation is differentiated from, and what it is."""
    for name, given in (("y", y), ("aux", aux)):
        if given is not None:
            checks.require_shape(op, name, given, dy.shape, "dy.shape")
    checks.require_same_dtype(op, dy=dy, y=y, aux=aux)
    checks.require_contiguous(op, y=y, aux=aux)
    needed = reference.backward_needs(mode)
    if needed == ("y",):
        return 3, checks.require_present(op, "y", y, f"the output, from which {mode.mode} is differentiated")
    if needed == ("aux",):
        return 4, checks.require_present(op, "aux", aux, f"fc_forward's aux, from which {mode.mode} is differentiated")
    return NULL, None


def _vec(dtype: DType, columns: int, **tensors: TensorDescriptor | None) -> int:
    """Elements of one access: 16 bytes where every row starts on such a boundary."""
    return 1 if columns % dtype.lanes or unaligned(**tensors) else dtype.lanes


def _alignment(x: TensorDescriptor | None) -> int:
    """Alignment of a destination; what the call makes itself is aligned."""
    return 16 if x is None else x.alignment


def _functor(mode: ActivationDescriptor, dtype: DType) -> str:
    """The activation as a type of ``activation.cuh``."""
    return "".join(word.capitalize() for word in mode.mode.split("_")) + f"<{dtype.cuda}>"


def _constants(mode: ActivationDescriptor) -> tuple[float, float]:
    """The activation's parameters as the functor's members c0 and c1."""
    first, second, *_ = *(value for _, value in mode.parameters), 0.0, 0.0
    return first, second


def _derivative(mode: ActivationDescriptor, dtype: DType) -> str:
    """The functor whose `backward` takes what `fc_backward_needs` names."""
    plain = _functor(mode, dtype)
    return f"FromOutput<{plain}>" if reference.backward_needs(mode) == ("y",) else plain


def _derivatives(mode: str, dtype: DType) -> set[str]:
    """All that `_derivative` can give for a mode: for some, the sign of a parameter decides."""
    found = {_derivative(ActivationDescriptor(mode), dtype)}
    for name in ACTIVATION_MODES[mode]:
        with suppress(BadParamError):
            found.add(_derivative(ActivationDescriptor(mode, **{name: -1.0}), dtype))
    return found


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, widths = dtype.cuda, (1, dtype.lanes)
    groups = {}
    for mode in ACTIVATION_MODES:
        plain = _functor(ActivationDescriptor(mode), dtype)
        forward = [f"fc_activation_forward<{t}, {plain}, {vec}>" for vec in widths]
        backward = [f"fc_gradient<{t}, {act}, {vec}>" for act in sorted(_derivatives(mode, dtype)) for vec in widths]
        groups[mode] = forward + backward
    return {**groups, "fold": [f"fc_fold<{t}>"]}


FC_FAMILY = Family("fc", (_FORWARD, _GRADIENT, _FOLD), _instances)
