"""Kernels of the losses, and the launches that a pass over a prediction takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ...descriptors import LossDescriptor, TensorDescriptor
from ...dtypes import LABELS, DType
from ...runtime.launch import (
    FLAG,
    NULL,
    Family,
    Kernel,
    KernelStep,
    Live,
    Pointer,
    Profile,
    Scratch,
    Struct,
    blocks_for,
    choose,
)

_GRADIENT = (("alpha", "A"), ("beta", "A"), ("divisor", "A"))
_ENTROPY_STRUCT = Struct(
    "CrossEntropyParams",
    ("losses", "dx", "flag", "x", "target", "weight", "dloss", "divisor_at"),
    (
        *_GRADIENT,
        ("keep", "A"),
        ("spread", "A"),
        ("rows", "i64"),
        ("classes", "i64"),
        ("inner", "i64"),
        ("dloss_stride", "i64"),
        ("ignore_index", "i64"),
        ("label_bytes", "i32"),
    ),
)
_STRUCTS = {
    "elementwise_loss": Struct(
        "ElementwiseLossParams",
        ("losses", "partials", "dx", "x", "target", "weight", "dloss"),
        (*_GRADIENT, ("parameter", "A"), ("size", "i64"), ("dloss_stride", "i64")),
    ),
    "cosine_rows": Struct(
        "CosineParams",
        ("losses", "dx", "x", "target", "dloss"),
        (*_GRADIENT, ("rows", "i64"), ("length", "i64"), ("dloss_stride", "i64")),
    ),
    "cross_entropy_in_registers": _ENTROPY_STRUCT,
    "cross_entropy_in_cache": _ENTROPY_STRUCT,
    "cross_entropy_plain": _ENTROPY_STRUCT,
    "nll_losses": _ENTROPY_STRUCT,
    "nll_gradient": _ENTROPY_STRUCT,
    "sum_losses": Struct("SumLossesParams", ("out", "in", "divisor_at"), (("divisor", "A"), ("count", "i64"))),
    "label_weights": Struct(
        "LabelWeightsParams",
        ("out", "target", "weight"),
        (("rows", "i64"), ("classes", "i64"), ("ignore_index", "i64"), ("label_bytes", "i32")),
    ),
}
_KERNELS = {entry: Kernel("loss", entry, struct) for entry, struct in _STRUCTS.items()}

#: Elementwise kinds -> their name in the CUDA text.
_KIND_NAMES = {
    "mse": "Mse",
    "l1": "L1",
    "huber": "Huber",
    "smooth_l1": "SmoothL1",
    "bce": "Bce",
    "bce_with_logits": "BceWithLogits",
    "kl_div": "KlDiv",
    "hinge": "Hinge",
}
#: Numbers that one block sums alone, numbers a block where several share the work, and the most that do.
_ALONE, _SHARE, _MOST_BLOCKS = 32768, 8192, 512
#: Packs a thread of `elementwise_loss`, and resident blocks a multiprocessor.
_PACKS_A_THREAD, _BLOCKS_AN_SM = 4, 8
#: From this length on a row of cosine gets a block.
_LONG_ROW = 2048
#: Scratch: losses of rows, or sums of blocks; sums of those; sums of the weights of labels; their total.
_LOSSES, _FOLDED, _WEIGHTS, _DIVISOR = (Scratch(i) for i in range(4))

Steps = tuple[KernelStep, ...]


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
        return _LOSSES if self.reduces else self.loss

    @property
    def weight_at(self) -> Pointer:
        """Where the weights are."""
        return NULL if self.problem.weight is None else 2

    @cached_property
    def divisor_at(self) -> Pointer:
        """Where the divisor is that the host does not know."""
        return _DIVISOR if self.problem.counts_labels else NULL

    def step(
        self,
        entry: str,
        group: str,
        grid: tuple[int, int, int],
        block: int,
        pointers: tuple[Pointer, ...],
        scalars: tuple[float | int | Live, ...],
        template: tuple[str, ...] = (),
    ) -> KernelStep:
        """One launch; `template` follows the storage type."""
        arguments = (self.dtype.cuda, *template)
        return KernelStep(_KERNELS[entry], self.dtype, arguments, group, grid, block, pointers, scalars)


Planned = tuple[Steps, tuple[int, ...], str, tuple[tuple[str, str], ...]]


def plan_pass(call: Pass) -> Planned:
    """(launches, bytes of scratch, variant, variants refused) of a pass."""
    rows, unit = prod(call.problem.losses), call.dtype.acc.itemsize
    if call.problem.x.size == 0 and not (call.problem.form == "cosine" and rows):
        steps = _sum(call, call.loss, rows, call.loss) if call.reduces else ()
        return steps, (), "empty", ()
    if call.problem.form == "elementwise":
        steps, variant, refused = _elementwise(call)
        return steps, (steps[0].grid[0] * unit,) if len(steps) > 1 else (), variant, refused
    if call.problem.form == "cosine":
        steps, variant, refused = _cosine(call)
    else:
        steps, variant, refused = _nll(call) if call.problem.loss.kind == "nll" else _cross_entropy(call)
        steps = _label_weights(call, rows) + steps
    if call.reduces:
        steps += _sum(call, call.loss, rows, _LOSSES)
    folds = unit * _blocks(rows)
    scratch = (unit * rows if call.reduces else 0, folds, folds, unit)
    return steps, scratch if call.reduces or call.problem.counts_labels else (), variant, refused


def _blocks(count: int) -> int:
    """Blocks that share a sum."""
    return 1 if count <= _ALONE else min(-(-count // _SHARE), _MOST_BLOCKS)


def _sum(call: Pass, out: Pointer, count: int, source: Pointer) -> Steps:
    """Fold losses and divide."""
    blocks, divisor = _blocks(count), call.problem.divisor
    if blocks == 1:
        pointers = (out, source, call.divisor_at)
        return (call.step("sum_losses", "sums", (1, 1, 1), 512, pointers, (divisor, count)),)
    shared = call.step("sum_losses", "sums", (blocks, 1, 1), 512, (_FOLDED, source, NULL), (1.0, count))
    last = call.step("sum_losses", "sums", (1, 1, 1), 512, (out, _FOLDED, call.divisor_at), (divisor, blocks))
    return shared, last


def _label_weights(call: Pass, rows: int) -> Steps:
    """The divisor that depends on the labels."""
    if not call.problem.counts_labels:
        return ()
    blocks, problem = _blocks(rows), call.problem
    pointers = (_DIVISOR if blocks == 1 else _WEIGHTS, 1, call.weight_at)
    scalars = (rows, problem.classes, problem.loss.ignore_index, problem.target.dtype.itemsize)
    shared = call.step("label_weights", "sums", (blocks, 1, 1), 512, pointers, scalars)
    if blocks == 1:
        return (shared,)
    return shared, call.step("sum_losses", "sums", (1, 1, 1), 512, (_DIVISOR, _WEIGHTS, NULL), (1.0, blocks))


def _elementwise(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, lanes = call.problem, call.dtype.lanes
    variant, refused = choose([("packed", call.alignment), ("plain", None)])
    vec = lanes if variant == "packed" else 1
    most = _BLOCKS_AN_SM * call.profile.sm_count
    blocks = min(blocks_for(problem.x.size, 256 * vec * _PACKS_A_THREAD)[0], most)
    loss = problem.loss
    parameter = loss.margin if loss.kind == "hinge" else loss.delta
    # A single block writes the reduced loss itself.
    partials = NULL if not call.reduces else _LOSSES if blocks > 1 else call.loss
    pointers = (NULL if call.reduces else call.losses_at, partials, call.dx, 0, 1, call.weight_at, call.dloss)
    scalars = (call.alpha, call.beta, problem.divisor, parameter, problem.x.size, call.dloss_stride)
    name = "KlDivLogTarget" if loss.log_target else _KIND_NAMES[loss.kind]
    step = call.step(
        "elementwise_loss",
        loss.kind,
        (blocks, 1, 1),
        256,
        pointers,
        scalars,
        (str(vec), name),
    )
    folded = _sum(call, call.loss, blocks, _LOSSES) if call.reduces and blocks > 1 else ()
    return (step, *folded), str(variant), refused


def _cosine(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, rows = call.problem, prod(call.problem.losses)
    short = problem.classes < _LONG_ROW
    pointers = (call.losses_at, call.dx, 0, 1, call.dloss)
    scalars = (call.alpha, call.beta, problem.divisor, rows, problem.classes, call.dloss_stride)
    grid, block, lanes = (blocks_for(rows, 4), 128, "32") if short else ((rows, 1, 1), 1024, "1024")
    refused = () if short else (("row_in_warp", f"rows of {problem.classes} >= {_LONG_ROW} elements"),)
    step = call.step("cosine_rows", "cosine", grid, block, pointers, scalars, (lanes,))
    return (step,), "row_in_warp" if short else "row_in_block", refused


def _entropy_arguments(call: Pass) -> tuple[tuple[Pointer, ...], tuple[float | int | Live, ...]]:
    problem, loss = call.problem, call.problem.loss
    pointers = (call.losses_at, call.dx, FLAG, 0, 1, call.weight_at, call.dloss, call.divisor_at)
    smoothing = (1.0 - loss.label_smoothing, loss.label_smoothing / problem.classes)
    extents = (prod(problem.losses), problem.classes, problem.inner, call.dloss_stride, loss.ignore_index)
    label_bytes = problem.target.dtype.itemsize if problem.labels else 0
    return pointers, (call.alpha, call.beta, problem.divisor, *smoothing, *extents, label_bytes)


def _nll(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    (losses, dx, *others), scalars = _entropy_arguments(call)
    steps: Steps = ()
    if call.loss != NULL:
        grid = blocks_for(prod(call.problem.losses), 128)
        steps += (call.step("nll_losses", "nll", grid, 128, (losses, NULL, *others), scalars),)
    if call.dx != NULL:
        grid = blocks_for(call.problem.x.size, 256)
        steps += (call.step("nll_gradient", "nll", grid, 256, (NULL, dx, *others), scalars),)
    return steps, "plain", ()


def _row_shapes(dtype: DType, dense: bool) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Group -> (elements of a pack, packs of a thread, threads of a row), in the order in which they are tried.

    Threads hold up to 128 bytes, or 32 elements: more would spill. Dense coefficients need registers of their own.
    """
    lanes, most = dtype.lanes, min(8, 32 // dtype.lanes)
    shapes: dict[str, tuple[tuple[int, int, int], ...]]
    if dense:
        shapes = {"narrow": ((1, 2, 8), (1, 2, 32)), "wide": ((lanes, 2, 32), (lanes, 4, 128))}
    else:
        warp, block = ((lanes, 2, 32), (lanes, most, 32)), ((lanes, 4, 128), (lanes, most, 512))
        shapes = {"narrow": ((1, 2, 8), (1, 2, 32)), "warp": warp, "block": block}
    return shapes


def _cross_entropy(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, rows, classes = call.problem, prod(call.problem.losses), call.problem.classes
    dense = not problem.labels or problem.loss.label_smoothing != 0.0
    name, flag = ("dense", "true") if dense else ("one_hot", "false")
    fits = [
        (group, vec, packs, lanes)
        for group, shapes in _row_shapes(call.dtype, dense).items()
        for vec, packs, lanes in shapes
        # A row that starts amid a pack needs a part of another.
        if vec * packs * lanes - (vec - 1 if classes % vec else 0) >= classes and (vec == 1 or call.alignment is None)
    ]
    stepped = f"the step between classes is {problem.inner}" if problem.inner != 1 else None
    long = None if fits else call.alignment or f"{classes} classes do not fit into the registers of a block"
    variant, refused = choose([("row_in_registers", stepped or long), ("row_in_cache", stepped), ("plain", None)])
    pointers, scalars = _entropy_arguments(call)
    if variant == "plain":
        step = call.step("cross_entropy_plain", f"{name}_plain", blocks_for(rows, 128), 128, pointers, scalars, (flag,))
    elif variant == "row_in_cache":
        vec = call.dtype.lanes if call.alignment is None else 1
        step = call.step(
            "cross_entropy_in_cache", f"{name}_in_cache", (rows, 1, 1), 512, pointers, scalars, (str(vec), flag)
        )
    else:
        group, vec, packs, lanes = fits[0]
        block, template = max(lanes, 128), (str(vec), str(packs), str(lanes), flag)
        grid = blocks_for(rows, block // lanes)
        step = call.step("cross_entropy_in_registers", f"{name}_{group}", grid, block, pointers, scalars, template)
    return (step,), str(variant), refused


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, widths = dtype.cuda, (1, dtype.lanes)
    groups = {kind: [f"elementwise_loss<{t}, {vec}, {name}>" for vec in widths] for kind, name in _KIND_NAMES.items()}
    groups["kl_div"] += [f"elementwise_loss<{t}, {vec}, KlDivLogTarget>" for vec in widths]
    groups["cosine"] = [f"cosine_rows<{t}, {lanes}>" for lanes in (32, 1024)]
    groups["nll"] = [f"nll_losses<{t}>", f"nll_gradient<{t}>"]
    groups["sums"] = [f"sum_losses<{t}>", f"label_weights<{t}>"]
    for name, flag in (("one_hot", "false"), ("dense", "true")):
        for group, shapes in _row_shapes(dtype, name == "dense").items():
            groups[f"{name}_{group}"] = [
                f"cross_entropy_in_registers<{t}, {vec}, {packs}, {lanes}, {flag}>" for vec, packs, lanes in shapes
            ]
        groups[f"{name}_in_cache"] = [f"cross_entropy_in_cache<{t}, {vec}, {flag}>" for vec in widths]
        groups[f"{name}_plain"] = [f"cross_entropy_plain<{t}, {flag}>"]
    return groups


FAMILY = Family("loss", tuple(_KERNELS.values()), _instances)
