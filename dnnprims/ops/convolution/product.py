"""What an algorithm is told of one of the three products of a convolution, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...descriptors import ActivationDescriptor, TensorDescriptor, dense_strides
from ...dtypes import DType
from ...runtime.gemm import GemmStep
from ...runtime.launch import NULL, FillStep, KernelStep, Pointer, Profile
from .geometry import Geometry, Numbers

#: Bytes of the widest access, which is what descriptors tell alignment up to.
WIDEST_ACCESS = 16


class Operand(NamedTuple):
    """A tensor of a launch: where it is, its steps in elements, and what its address is a multiple of, in bytes."""

    at: Pointer
    strides: Numbers
    alignment: int


def operand(at: int, d: TensorDescriptor | None, shape: Numbers = ()) -> Operand:
    """Operand number `at`; one that the call makes itself has this shape, without gaps."""
    if d is None:
        return Operand(at, dense_strides(shape), WIDEST_ACCESS)
    return Operand(at, d.strides, d.alignment)


class Epilogue(NamedTuple):
    """What follows the sums; arrays that are not there are NULL.

    Forward all of it, with arrays over the channels out; of a data gradient b alone, over the channels in.
    """

    activation: ActivationDescriptor
    b: Pointer
    residual: Operand | None
    scale: Pointer
    shift: Pointer
    alpha1: float
    alpha2: float

    @classmethod
    def none(cls, b: Pointer = NULL) -> Epilogue:
        """Nothing but a bias."""
        return cls(ActivationDescriptor("identity"), b, None, NULL, NULL, 1.0, 1.0)


class Product(NamedTuple):
    """One product: two of x, w and y give the third.

    Attributes
    ----------
    profile : Profile
        Backend, device and options.
    direction : str
        ``forward`` (y from x and w), ``data`` (x from y and w) or ``filter`` (w from y and x).
    dtype : DType
        Of all three.
    g : Geometry
        Shapes.
    x, w, y : Operand
        Images, filters and outputs, whichever of them is the result.
    then : Epilogue
        Nothing for filters.
    alpha, beta : float
        ``out = alpha * result + beta * out``.
    taken : tuple of int
        Bytes of the plan's scratch regions so far: the first one of this product has number ``len(taken)``.
    """

    profile: Profile
    direction: str
    dtype: DType
    g: Geometry
    x: Operand
    w: Operand
    y: Operand
    then: Epilogue
    alpha: float
    beta: float
    taken: Numbers = ()

    def workspace_reason(self, nbytes: int) -> str | None:
        """Why so many bytes of scratch beside those taken are too many, or None."""
        limit = self.profile.workspace_limit
        if 0 <= limit < nbytes + sum(self.taken):
            return f"{nbytes} bytes of workspace, the limit is {limit}"
        return None


class Work(NamedTuple):
    """Steps of a product, and the bytes of the scratch regions that they add."""

    steps: tuple[KernelStep | FillStep | GemmStep, ...]
    scratch: Numbers = ()


def always_pays(product: Product) -> None:
    """For `Algorithm.slower` of what nothing after it outruns."""


class Algorithm(NamedTuple):
    """A way of doing a product.

    Attributes
    ----------
    name : str
        The variant of a plan.
    cannot : callable
        Why it cannot do the product, or None.
    slower : callable
        Why those after it are faster as measured, or None. Not asked where timing has chosen it.
    work : callable
        Its steps.
    """

    name: str
    cannot: Callable[[Product], str | None]
    slower: Callable[[Product], str | None]
    work: Callable[[Product], Work]
