"""Plans of the backward pass: dz and db in one pass over dy, dx and dw as products."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ... import checks
from ...descriptors import ActivationDescriptor, TensorDescriptor, as_activation
from ...dtypes import DType
from ...reference import fc as reference
from ...runtime.gemm import GemmStep, Matrix, lower, lt_reason, workspace_for
from ...runtime.launch import NULL, PlanSpec, Pointer, Profile, Result, Scratch, choose
from .few_outputs import few_outputs_plan, few_outputs_reason
from .kernels import GradientPass, gradient_steps, lanes
from .operands import Activation, destination, matrix, require_alike, require_input, require_rows, require_weights
from .transposed import along_k, along_k_reason


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
    m, _ = require_rows(op, "dy", dy)
    shape = (*dy.shape[:-1], require_weights(op, w, dy, 0, "dy"))
    require_alike(op, dy=dy, w=w)
    checks.require_out(op, out, shape, dy.dtype, rule="(*dy.shape[:-1], w.shape[1])")
    product = _data_product(dy.dtype, m, matrix(0, dy), matrix(1, w), 2, out)
    return _plan_product(op, profile, alpha, beta, product, shape, out, dy=dy, w=w)


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
    m, n = require_rows(op, "dy", dy)
    shape = (n, require_input(op, x, dy))
    require_alike(op, dy=dy, x=x)
    checks.require_out(op, out, shape, dy.dtype, rule="(dy.shape[-1], x.shape[-1])")
    product = _weights_product(dy.dtype, m, matrix(0, dy), matrix(1, x), 2, out)
    return _plan_product(op, profile, alpha, beta, product, shape, out, dy=dy, x=x)


def plan_fc_backward_bias(
    profile: Profile, alpha: float, beta: float, dy: TensorDescriptor, out: TensorDescriptor | None
) -> PlanSpec:
    """Plan of `fc_backward_bias`."""
    op, mode = "fc_backward_bias", ActivationDescriptor("identity")
    m, n = require_rows(op, "dy", dy)
    checks.require_contiguous(op, dy=dy)
    checks.require_out(op, out, (n,), dy.dtype, rule="(dy.shape[-1],)")
    checks.require_blend(op, alpha, beta, out)
    vec = lanes(dy.dtype, n, dy=dy)
    wanted = GradientPass(mode, dy.dtype, m, n, vec, NULL, 1, 0, NULL, float(alpha), float(beta))
    steps, scratch, whole = gradient_steps(profile, wanted, ())
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
    m, n = require_rows(op, "dy", dy)
    k = _require_inputs(op, needs, dy, x, w)
    at_saved, saved = _require_saved(op, mode, dy, y, aux)
    shapes = {"dx": (*dy.shape[:-1], k), "dw": (n, k), "db": (n,)}
    _require_destinations(op, needs, beta, dtype, shapes, {"dx": dx, "dw": dw, "db": db})

    with_dz = mode.mode != "identity" and needs != ("db",) and m * n > 0
    scratch: tuple[int, ...] = (m * n * dtype.itemsize,) if with_dz else ()
    checks.require_workspace(op, profile.workspace_limit, sum(scratch), "the gradient of the pre-activation")
    operands = {name: at for name, at in (("dx", 5), ("dw", 6), ("db", 7)) if name in needs}
    results = tuple(Result(at, shapes[name], dtype) for name, at in operands.items())
    spec = PlanSpec(op, "one_pass", (), results, (5, 6, 7), tuple(operands.values()), scratch=scratch)
    few = few_outputs_reason(profile, needs, mode.mode, dtype, (m, n, k), (x, w, dx, dw))
    if few is None:
        return few_outputs_plan(spec, dtype, (m, n, k), float(beta))
    left = Matrix(Scratch(0), n) if with_dz else matrix(0, dy)
    products: dict[str, GemmStep] = {}
    if "dx" in needs and w is not None and m * k:
        products["dx"] = _data_product(dtype, m, left, matrix(2, w), 5, dx)
    if "dw" in needs and x is not None and n * k:
        products["dw"] = replace(_weights_product(dtype, m, left, matrix(1, x), 6, dw), beta=float(beta))

    if with_dz or "db" in needs:
        dz, to = Scratch(0) if with_dz else NULL, operands.get("db", NULL)
        vec = lanes(dtype, n, dy=dy, saved=saved)
        wanted = GradientPass(mode, dtype, m, n, vec, dz, to, 0, at_saved, 1.0, float(beta))
        steps, partial, _ = gradient_steps(profile, wanted, spec.scratch)
        spec = replace(spec, steps=steps, scratch=spec.scratch + partial)
    reasons = []
    for name, right in (("dx", {"w": w}), ("dw", {"x": x})):
        if name in products:
            reasons.append(along_k_reason(profile, products[name], spec.scratch, dy=dy, **right))
            if reasons[-1] is None:
                spec, products[name] = along_k(spec, products[name])
    return _with_products(spec, profile, list(products.values()), reasons, ("few_outputs", few))


def _data_product(dtype: DType, m: int, dz: Matrix, w: Matrix, to: int, out: TensorDescriptor | None) -> GemmStep:
    """The product dx[m, in] = dz w."""
    n, k = dz.leading, w.leading
    return GemmStep(dtype, m, k, n, dz, w, destination(to, k, out))


def _weights_product(dtype: DType, m: int, dz: Matrix, x: Matrix, to: int, out: TensorDescriptor | None) -> GemmStep:
    """The product dw[out, in] = dz^T x over m rows."""
    n, k = dz.leading, x.leading
    return GemmStep(dtype, n, k, m, replace(dz, transposed=True), x, destination(to, k, out))


def _plan_product(
    op: str,
    profile: Profile,
    alpha: float,
    beta: float,
    product: GemmStep,
    shape: tuple[int, ...],
    out: TensorDescriptor | None,
    **operands: TensorDescriptor,
) -> PlanSpec:
    """Plan that is one product, blended with `out`."""
    checks.require_blend(op, alpha, beta, out)
    spec = PlanSpec(op, "empty", (), results=(Result(2, shape, product.dtype),), returns=(2,), writes=(2,))
    if product.m * product.n == 0:
        return spec
    product = replace(product, alpha=float(alpha), beta=float(beta))
    reason = along_k_reason(profile, product, (), **operands)
    if reason is None:
        spec, product = along_k(spec, product)
    return _with_products(spec, profile, [product], [reason])


def _with_products(
    spec: PlanSpec,
    profile: Profile,
    products: list[GemmStep],
    reasons_along_k: Iterable[str | None],
    *before: tuple[str, str | None],
) -> PlanSpec:
    """The plan with products at its end, which share one workspace behind its scratch."""
    none = None if products else "no product is asked for"
    along = none or min(reasons_along_k, key=bool)
    reason = none or next(filter(None, (lt_reason(profile, p.m, p.n, p.k) for p in products)), None)
    last = "tiled_kernel" if products else "one_pass"
    variant, refused = choose((*before, ("lt_product_along_k", along), ("lt_product", reason), (last, None)))
    room = () if reason else (workspace_for(profile, sum(spec.scratch)),)
    steps = spec.steps
    for product in products:
        if room:
            product = replace(product, workspace=Scratch(len(spec.scratch)), workspace_bytes=room[0])
        steps += lower(profile, product)
    return replace(spec, variant=str(variant), steps=steps, scratch=spec.scratch + room, refused=refused)


def _require_inputs(
    op: str, needs: tuple[str, ...], dy: TensorDescriptor, x: TensorDescriptor | None, w: TensorDescriptor | None
) -> int:
    """Check what of x and w is there, and that what is needed is; return `in`, 0 where it does not matter."""
    k = 0
    if "dw" in needs:
        checks.require_present(op, "x", x, "the input of the forward pass, for dw")
    if "dx" in needs:
        checks.require_present(op, "w", w, "the weights, for dx")
    if x is not None:
        k = require_input(op, x, dy)
    if w is not None:
        columns = require_weights(op, w, dy, 0, "dy")
        if x is not None:
            checks.require_shape(op, "w", w, (w.shape[0], k), "(dy.shape[-1], x.shape[-1])")
        k = columns
    require_alike(op, dy=dy, x=x, w=w)
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
    require_alike(op, dy=dy, y=y, aux=aux)
    needed = reference.backward_needs(mode)
    if needed == ("y",):
        return 3, checks.require_present(op, "y", y, f"the output, from which {mode.mode} is differentiated")
    if needed == ("aux",):
        return 4, checks.require_present(op, "aux", aux, f"fc_forward's aux, from which {mode.mode} is differentiated")
    return NULL, None
