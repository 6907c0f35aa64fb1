"""What a loss is computed from, and a pass over it: shapes, divisors, and which operands are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ...descriptors import LossDescriptor, TensorDescriptor
from ...dtypes import LABELS, DType
from ...runtime.launch import NULL, KernelStep, Live, Pointer, Profile, Scratch
from .kernels import KERNELS

#: Scratch: losses of rows, or sums of blocks; sums of those; sums of the weights of labels; their total.
LOSSES, FOLDED, WEIGHTS, DIVISOR = (Scratch(i) for i in range(4))

#: A divisor that the labels decide comes in no more parts than a warp has threads, which add them up. So few blocks
#: read up to so many labels fast enough; a part has so many labels at least.
MOST_DIVISOR_PARTS, MOST_ROWS_IN_PARTS, LEAST_ROWS_OF_A_PART = 32, 1 << 21, 1024


@dataclass(frozen=True)
class Problem:
    """A loss of a prediction against a target, weighted or not."""

    loss: LossDescriptor
    x: TensorDescriptor
    target: TensorDescriptor
    weight: TensorDescriptor | None

    @property
    def form(self) -> str:
        """``classes``, ``cosine`` or ``elementwise``: what one loss is computed from."""
        if self.loss.kind in ("cross_entropy", "nll"):
            return "classes"
        return "cosine" if self.loss.kind == "cosine" else "elementwise"

    @property
    def labels(self) -> bool:
        """Whether the target names classes."""
        return self.form == "classes" and self.target.dtype in LABELS

    @property
    def axis(self) -> int:
        """Axis along which a row runs."""
        return min(1, self.x.ndim - 1) if self.form == "classes" else self.x.ndim - 1

    @property
    def classes(self) -> int:
        """Extent of a row."""
        return self.x.shape[self.axis]

    @property
    def inner(self) -> int:
        """Step along a row."""
        return prod(self.x.shape[self.axis + 1 :])

    @property
    def losses(self) -> tuple[int, ...]:
        """Shape of the losses before they are reduced."""
        shape = self.x.shape
        return shape if self.form == "elementwise" else shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.losses if self.loss.reduction == "none" else ()

    @property
    def counts_labels(self) -> bool:
        """Whether the divisor depends on the labels' values."""
        return self.labels and self.loss.reduction == "mean_elements" and prod(self.losses) > 0

    @property
    def divisor(self) -> float:
        """What the sum is divided by, where the host knows."""
        if self.loss.reduction == "mean_elements" and not self.counts_labels:
            return float(prod(self.losses))
        if self.loss.reduction == "mean_samples":
            return float(self.losses[0]) if self.losses else 1.0
        return 1.0


@dataclass(frozen=True)
class Pass:
    """A pass over a prediction (operand 0), its target (1) and weight (2), and which operands it writes.

    Attributes
    ----------
    alignment : str or None
        Why 16-byte accesses are not allowed.
    loss, dx : int
        Operand that receives the loss, the gradient; NULL where it is not wanted.
    """

    profile: Profile
    problem: Problem
    alignment: str | None
    loss: Pointer = NULL
    dx: Pointer = NULL
    dloss: Pointer = NULL
    dloss_stride: int = 0
    alpha: float | Live = 1.0
    beta: float = 0.0

    @property
    def dtype(self) -> DType:
        """Storage type, which everything is compiled for."""
        return self.problem.x.dtype

    @property
    def reduces(self) -> bool:
        """Whether the loss is wanted as one number."""
        return self.loss != NULL and self.problem.loss.reduction != "none"

    @property
    def losses_at(self) -> Pointer:
        """Where the losses before the reduction go."""
        return LOSSES if self.reduces else self.loss

    @property
    def weight_at(self) -> Pointer:
        """Where the weights are."""
        return NULL if self.problem.weight is None else 2

    @cached_property
    def divisor_at(self) -> Pointer:
        """Where the divisor is that the host does not know."""
        return DIVISOR if self.problem.counts_labels else NULL

    @cached_property
    def divisor_parts(self) -> int:
        """In how many parts that divisor comes."""
        rows = prod(self.problem.losses)
        if not self.problem.counts_labels or rows > MOST_ROWS_IN_PARTS:
            return 1
        return min(MOST_DIVISOR_PARTS, -(-rows // LEAST_ROWS_OF_A_PART))

    def step(
        self,
        entry: str,
        group: str,
        grid: tuple[int, int, int],
        block: int,
        pointers: tuple[Pointer, ...],
        scalars: tuple[float | int | Live, ...],
        template: tuple[str, ...] = (),
        shared_bytes: int = 0,
    ) -> KernelStep:
        """One launch; `template` follows the storage type."""
        arguments = (self.dtype.cuda, *template)
        return KernelStep(KERNELS[entry], self.dtype, arguments, group, grid, block, pointers, scalars, shared_bytes)
