"""What both directions of a fully connected layer take, and when they refuse it."""

from __future__ import annotations

from math import prod

from ... import checks
from ...descriptors import ActivationDescriptor, TensorDescriptor
from ...runtime.gemm import Matrix
from ...runtime.launch import Pointer

Activation = str | ActivationDescriptor | None


def require_rows(op: str, param: str, x: TensorDescriptor) -> tuple[int, int]:
    """Check x alone; return its extents as (rows, columns), leading axes flattened."""
    checks.require_float(op, param, x)
    if x.ndim == 0:
        checks.require_rank(op, param, x, 1, "(..., features)")
    return prod(x.shape[:-1]), x.shape[-1]


def require_weights(op: str, w: TensorDescriptor, x: TensorDescriptor, axis: int, rule: str) -> int:
    """Check that `axis` of w fits the last of x, called `rule`; return the other extent of w."""
    checks.require_rank(op, "w", w, 2, "2 axes, (out, in)")
    expected = list(w.shape)
    expected[axis] = x.shape[-1]
    checks.require_shape(op, "w", w, tuple(expected), f"(out, in) with {'in' if axis else 'out'} = {rule}.shape[-1]")
    return w.shape[1 - axis]


def require_input(op: str, x: TensorDescriptor, dy: TensorDescriptor) -> int:
    """Check that x has dy's leading axes; return its last extent."""
    require_rows(op, "x", x)
    checks.require_shape(op, "x", x, (*dy.shape[:-1], x.shape[-1]), "(*dy.shape[:-1], in)")
    return x.shape[-1]


def require_alike(op: str, **tensors: TensorDescriptor | None) -> None:
    """Check that all tensors given are contiguous and of the dtype of the first."""
    checks.require_same_dtype(op, **tensors)
    checks.require_contiguous(op, **tensors)


def matrix(at: Pointer, x: TensorDescriptor) -> Matrix:
    """The operand `x` of a product, leading axes flattened."""
    return Matrix(at, x.shape[-1], alignment=x.alignment)


def destination(at: Pointer, columns: int, out: TensorDescriptor | None) -> Matrix:
    """Where a product goes; what the call makes itself, or takes of the scratch, is aligned."""
    return Matrix(at, columns, alignment=16 if out is None else out.alignment)
