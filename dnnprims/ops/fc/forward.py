"""Plan of the forward pass: which of it the library's epilogue does, and where z is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ... import checks
from ...descriptors import ActivationDescriptor, TensorDescriptor, as_activation
from ...dtypes import DType
from ...runtime.gemm import GemmStep, aux_reason, lower, lt_reason, workspace_for
from ...runtime.launch import NULL, PlanSpec, Pointer, Profile, Result, Scratch, choose, unaligned
from ...runtime.tuning import prefer
from .few_rows import few_rows_reason, few_rows_step
from .hopper import ping_pong_reason, ping_pong_step
from .kernels import activation_step
from .operands import Activation, destination, matrix, require_alike, require_rows, require_weights

# How much workspace the library is offered. With room for it, it adds up the parts of a sum in a second launch where
# one launch takes less time. NVIDIA H200, 2026-11-28, of the rate of PyTorch's faster way with 32 MiB / 1 MiB, 4 MiB
# alike where not said; TF32:
#   16x2560x2560 relu 0.94 / 1.00   32x1024x3072 relu 0.73 / 1.00   32x2560x2560 tanh 0.97 / 0.99
#   64x1760x1760 relu 0.94 / 1.00   64x2560x2560 relu 0.94 / 1.02   64x4096x4096 gelu_tanh 0.94 / 0.99
#   128x2560x2560 relu 0.95 / 0.98  128x4096x4096 swish 1.14 / 0.99  700x512x1024 swish 1.00 / 0.97
#   16x2560x7680 swish 1.10 / 1.02  16x500000x1024 relu 0.95 / 0.10
# bfloat16 and float16: 32x4096x4096 relu 0.88 / 0.97 and 0.89 / 0.95 (4 MiB 0.88, 0.89), 16x500000x1024 1.10 / 1.00;
# 50 others of up to 128 rows take what they took.
#: Most rows, elements of x, and outputs of a layer that gets little room; bytes of that.
_FEW_ROWS, _FEW_INPUTS, _FEW_OUTPUTS = 128, 128 * 2560, 4096
_LITTLE_ROOM = 1 << 20


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
    m, k, n = _require_layer(op, x, w, b, out, aux)
    checks.require_blend(op, alpha, beta, out)
    result = Result(3, (*x.shape[:-1], n), x.dtype)
    spec = PlanSpec(op, "empty", (), results=(result,), returns=(3,), writes=(3, 4))
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
    rival = None if no_lt else "pass" if reason else "epilogue"
    arrays = {"x": x, "w": w, "b": b, "out": out, "aux": aux}
    layer = (profile, mode.mode, x.dtype, (m, n, k), arrays, rival)
    variants = (
        *_in_one_launch(layer, alpha, beta),
        ("lt_epilogue", no_lt or reason),
        ("lt_then_pass", no_lt),
        ("tiled_kernel", None),
    )
    variant, refused = choose(prefer(variants, profile.preferred))
    if variant in ("few_rows", "ping_pong"):
        make = few_rows_step if variant == "few_rows" else ping_pong_step
        step = make(profile, mode, x.dtype, (m, n, k), bias=b is not None, aux=aux is not None)
        return replace(spec, variant=variant, steps=(step,), refused=refused)
    scratch = own if no_lt else (*own, _room(profile, x.dtype, (m, n, k), sum(own)))
    product = GemmStep(
        x.dtype, m, n, k,
        matrix(0, x),
        replace(matrix(1, w), transposed=True),
        destination(z, n, out if z == 3 else aux),
        epilogue="none" if b is None else "bias",
        bias=NULL if b is None else 2,
        alpha=float(alpha) if alone else 1.0,
        beta=float(beta) if alone else 0.0,
        workspace=NULL if no_lt else Scratch(len(own)),
        workspace_bytes=0 if no_lt else scratch[-1],
    )  # fmt: skip
    if variant == "lt_epilogue":
        kept = product.c if aux is not None else None
        product = replace(product, epilogue=name, c=destination(3, n, out), aux=kept)
    unfit = unaligned(out=out, aux=aux)
    after = () if alone else (activation_step(profile, mode, x.dtype, m * n, z, unfit, alpha, beta),)
    return replace(spec, variant=str(variant), steps=lower(profile, product, after), scratch=scratch, refused=refused)


def _room(profile: Profile, dtype: DType, extents: tuple[int, int, int], taken: int) -> int:
    """Bytes of workspace for the library's product."""
    m, n, k = extents
    room = workspace_for(profile, taken)
    few = m <= _FEW_ROWS and m * k <= _FEW_INPUTS and n <= _FEW_OUTPUTS
    return min(room, _LITTLE_ROOM) if few and profile.tensor_core_reason(dtype) is None else room


def _in_one_launch(layer: tuple[Any, ...], alpha: float, beta: float) -> tuple[tuple[str, str | None], ...]:
    """The variants whose kernels end with the activation, and why each does not do a layer."""
    blended = "alpha and beta apply after the activation" if alpha != 1.0 or beta != 0.0 else None
    return ("few_rows", blended or few_rows_reason(*layer)), ("ping_pong", blended or ping_pong_reason(*layer))


def _require_layer(
    op: str,
    x: TensorDescriptor,
    w: TensorDescriptor,
    b: TensorDescriptor | None,
    out: TensorDescriptor | None,
    aux: TensorDescriptor | None,
) -> tuple[int, int, int]:
    """Check every array; return rows, `in` and `out`."""
    m, k = require_rows(op, "x", x)
    n = require_weights(op, w, x, 1, "x")
    require_alike(op, x=x, w=w, b=b)
    if b is not None:
        checks.require_shape(op, "b", b, (n,), "(w.shape[0],)")
    for name, written in (("out", out), ("aux", aux)):
        shape, rule = (*x.shape[:-1], n), "(*x.shape[:-1], w.shape[0])"
        checks.require_out(op, written, shape, x.dtype, param=name, rule=rule)
    return m, k, n


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
    if n % dtype.lanes:
        # NVIDIA H200, 2026-11-28, bfloat16, 9124x4096x5124: 11.9 ms, a product and a pass 1.5 (tanh of the same layer).
        return "", f"its gelu_tanh takes up to 8 times as long for rows of {n} elements, no multiple of {dtype.lanes}"
    if aux is None:
        return "gelu_tanh" + ending, None
    return "gelu_tanh_aux" + ending, aux_reason(dtype, n, aux.alignment)
