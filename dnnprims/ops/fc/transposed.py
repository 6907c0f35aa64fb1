"""Operands laid along the sum of their product, for TF32 on Hopper: what is transposed first, and whether that pays.

Hopper's tensor cores read TF32 operands along the sum alone. In the backward products x, w and dz lie the other way,
and cuBLASLt has slower kernels for them; that is worst where both operands do, as in dw. A transposed copy of the
smaller one, of one pass of its own, is cheaper. Where w does so in dx, kernels with large tiles are as fast as those
along the sum: only short sums, for which the library offers none, gain by a copy of w.

Milliseconds of products alone on an NVIDIA H200, 2026-11-28, of operands as they lie, with x^T, and with dz^T, too: dw
of 8192x784x2048 0.166, 0.099, 0.090; of 16384x1024x4096 0.602, 0.349, 0.329; of 4096x4096x16384 2.22, 1.56, 1.66; of
8192x8192x8192 4.41, 3.01, 2.77. A second copy takes longer than it saves, even where the pass that makes dz writes it
(0.078 for 16384x4096). dx of 7000x1760x1760 as w lies and with w^T 0.166 and 0.136; of 24000x1536x512 0.134 and 0.117;
of 16384x1024x4096 0.345 and 0.357. Small products lose: fc_backward of 128x4096x4096 0.0832, with a copy of x 0.0856.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...descriptors import TensorDescriptor
from ...runtime.gemm import GemmStep, Matrix, lt_reason
from ...runtime.launch import PlanSpec, Profile, Scratch, unaligned
from .kernels import transpose_step

#: Seconds that a floating-point operation takes longer without the copy, where both operands lie across and where one
#: does; seconds of a byte of a copy, read or written, and of a launch.
_BOTH_ACROSS, _ONE_ACROSS, _BYTE, _LAUNCH = 1.2e-15, 0.5e-15, 2.6e-13, 5e-6
#: Terms of a sum below which one operand across is slower.
_SHORT_SUM = 2048
#: Elements that the leading dimension of a copy is a multiple of: one line of the L2.
_LINE = 32


def along_k_reason(
    profile: Profile, product: GemmStep, taken: Sequence[int], **operands: TensorDescriptor | None
) -> str | None:
    """Why a product is not to be made of a copy of one operand along the sum, or None.

    `taken` is the scratch of the plan so far, `operands` the arrays that the product is of.
    """
    reason = lt_reason(profile, product.m, product.n, product.k)
    if product.dtype.name != "float32" or product.b.transposed or reason:
        return reason or "operands may lie either way"
    nbytes = _nbytes(product)
    if profile.preferred != "lt_product_along_k":
        reason = _loss_reason(profile, product, 2 * nbytes * _BYTE + _LAUNCH)
        if reason:
            return reason
    if 0 <= profile.workspace_limit < sum(taken) + nbytes:
        return f"{sum(taken) + nbytes} bytes of workspace, the limit is {profile.workspace_limit}"
    return _layout_reason(**operands)


def along_k(spec: PlanSpec, product: GemmStep) -> tuple[PlanSpec, GemmStep]:
    """The plan with the copy at its end, and the product of it."""
    to, stride = Scratch(len(spec.scratch)), _stride(product)
    source, columns = (product.a, product.m) if _copies_left(product) else (product.b, product.n)
    step = transpose_step(product.dtype, product.k, columns, source.pointer, to, stride)
    spec = replace(spec, steps=(*spec.steps, step), scratch=(*spec.scratch, _nbytes(product)))
    copied = Matrix(to, stride, transposed=not _copies_left(product))
    return spec, replace(product, a=copied) if _copies_left(product) else replace(product, b=copied)


def _copies_left(product: GemmStep) -> bool:
    """Whether it is the left operand that is copied: the smaller one where both lie across."""
    return product.a.transposed and product.m < product.n


def _stride(product: GemmStep) -> int:
    return -(-product.k // _LINE) * _LINE


def _nbytes(product: GemmStep) -> int:
    """Bytes of the copy."""
    return (product.m if _copies_left(product) else product.n) * _stride(product) * product.dtype.itemsize


def _loss_reason(profile: Profile, product: GemmStep, seconds: float) -> str | None:
    """Why a copy that takes so long does not pay, or None."""
    if profile.preferred == "lt_product":
        return "lt_product was faster when tuned"
    if profile.math != "tf32":
        return "operands may lie either way"
    if profile.arch != 90:
        return "only Hopper's TF32 wants operands along the sum"
    if not product.a.transposed and product.k >= _SHORT_SUM:
        return "one operand across a long sum is as fast"
    slower = _BOTH_ACROSS if product.a.transposed else _ONE_ACROSS
    if 2 * product.m * product.n * product.k * slower < seconds:
        return "the copy would take longer than it saves"
    return None


def _layout_reason(**operands: TensorDescriptor | None) -> str | None:
    """Why these cannot be copied by packs, or None."""
    for name, x in operands.items():
        if x is not None and x.shape[-1] % x.dtype.lanes:
            return f"rows of {name} are no multiple of 16 bytes"
    return unaligned(**operands)
