"""Operands laid along the sum of their product, for TF32 on Hopper: what is transposed first, and whether that pays.

Hopper's tensor cores read TF32 operands along k alone. Where w, x or dz lie the other way, as in every product of the
backward pass, cuBLASLt has slower kernels; copies that lie right are often cheaper. The pass that makes dz writes its
copy beside it, one that only copies makes those of x and w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...descriptors import ActivationDescriptor, TensorDescriptor
from ...dtypes import DType
from ...runtime.gemm import GemmStep, Matrix, lt_reason
from ...runtime.launch import NULL, PlanSpec, Pointer, Profile, Scratch, unaligned
from .kernels import GradientPass, transposed_steps

#: What a copy is weighed by: seconds that a floating-point operation takes longer without it, that a byte of a copy
#: takes, and a launch.
_SLOWER_FLOP, _BYTE, _LAUNCH = 1.4e-15, 2.5e-13, 3e-6
#: Elements that the leading dimension of a copy is a multiple of: one line of the L2.
_LINE = 32


@dataclass(frozen=True)
class Source:
    """A matrix, `rows` x `columns`, that is to be had transposed."""

    pointer: Pointer
    rows: int
    columns: int

    @property
    def stride(self) -> int:
        """Elements between rows of the copy."""
        return -(-self.rows // _LINE) * _LINE

    def nbytes(self, dtype: DType) -> int:
        """Bytes of the copy."""
        return self.columns * self.stride * dtype.itemsize


def along_k_reason(
    profile: Profile,
    product: GemmStep,
    passed: bool,
    taken: Sequence[int],
    **operands: TensorDescriptor | None,
) -> str | None:
    """Why a product is not to be made of transposed copies, or None.

    `passed`: the copy of its left operand is made by a pass that is needed anyway. `taken`: scratch of the plan so far.
    """
    dtype = product.dtype
    reason = lt_reason(profile, product.m, product.n, product.k)
    if dtype.name != "float32" or reason:
        return reason or "operands may lie either way"
    left, right = _wrong(product)
    copies = [source for source in (left, right) if source]
    if profile.preferred != "lt_product_along_k":
        moved = sum(2 * source.nbytes(dtype) for source in copies) - (left.nbytes(dtype) if left and passed else 0)
        reason = _loss_reason(profile, product, moved * _BYTE + len(copies) * _LAUNCH)
        if reason:
            return reason
    nbytes = sum(taken) + sum(source.nbytes(dtype) for source in copies)
    if 0 <= profile.workspace_limit < nbytes:
        return f"{nbytes} bytes of workspace, the limit is {profile.workspace_limit}"
    return _layout_reason(**operands)


def _loss_reason(profile: Profile, product: GemmStep, seconds: float) -> str | None:
    """Why copies that take so long do not pay, or None."""
    if profile.preferred == "lt_product":
        return "lt_product was faster when tuned"
    if profile.math != "tf32":
        return "operands may lie either way"
    if profile.arch != 90:
        return "only Hopper's TF32 wants operands along k"
    if 2 * product.m * product.n * product.k * _SLOWER_FLOP < seconds:
        return "transposed copies would take longer than they save"
    return None


def along_k(spec: PlanSpec, product: GemmStep, left: Matrix | None = None) -> tuple[PlanSpec, GemmStep]:
    """The plan with the copies at its end, and the product of them; `left` is a copy that is there already."""
    wrong_left, wrong_right = _wrong(product)
    if wrong_left:
        if left is None:
            spec, left = _with_copy(spec, product.dtype, wrong_left)
        product = replace(product, a=left)
    if wrong_right:
        spec, right = _with_copy(spec, product.dtype, wrong_right)
        product = replace(product, b=replace(right, transposed=True))
    return spec, product


def with_gradient(spec: PlanSpec, wanted: GradientPass) -> tuple[PlanSpec, Matrix]:
    """The plan with the pass for dz and db at its end, and where dz lies transposed."""
    source = Source(wanted.dy, wanted.rows, wanted.columns)
    to = Scratch(len(spec.scratch))
    scratch = (*spec.scratch, source.nbytes(wanted.dtype))
    steps, partial = transposed_steps(wanted, to, source.stride, len(scratch))
    return replace(spec, steps=spec.steps + steps, scratch=scratch + partial), Matrix(to, source.stride)


def _with_copy(spec: PlanSpec, dtype: DType, source: Source) -> tuple[PlanSpec, Matrix]:
    """The plan with a transposing copy at its end, and where that lies."""
    return with_gradient(
        spec,
        GradientPass(
            ActivationDescriptor("identity"), dtype, source.rows, source.columns, dtype.lanes,
            dz=NULL, db=NULL, dy=source.pointer, saved=NULL, alpha=1.0, beta=0.0,
        ),
    )  # fmt: skip


def _wrong(product: GemmStep) -> tuple[Source | None, Source | None]:
    """The operands that lie across k."""
    left = Source(product.a.pointer, product.k, product.m) if product.a.transposed else None
    right = None if product.b.transposed else Source(product.b.pointer, product.k, product.n)
    return left, right


def _layout_reason(**operands: TensorDescriptor | None) -> str | None:
    """Why these cannot be copied by packs, or None."""
    for name, x in operands.items():
        if x is not None and x.shape[-1] % x.dtype.lanes:
            return f"rows of {name} are no multiple of 16 bytes"
    return unaligned(**operands)
