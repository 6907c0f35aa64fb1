"""The launches that a pass over a prediction takes, kind by kind."""

from __future__ import annotations

from math import prod

from ...runtime.launch import NULL, KernelStep, Pointer, blocks_for, choose
from .entropy import ALIGNED, plan_cross_entropy, plan_nll
from .kernels import KIND_NAMES, LONG_ROW, WANTED, cosine_shapes
from .problem import DIVISOR, FOLDED, LOSSES, MOST_DIVISOR_PARTS, MOST_ROWS_IN_PARTS, WEIGHTS, Pass

#: Numbers that one block sums alone, numbers a block where several share the work, and the most that do.
_ALONE, _SHARE, _MOST_BLOCKS = 32768, 8192, 512
#: Threads of a block that folds.
_FOLD_BLOCK = 1024
#: Packs a thread of `elementwise_loss`: of a gradient alone; of a sum, until there are so many blocks a multiprocessor,
#: and then. NVIDIA H200, 2026-11-28, 2^28 float32 and 2^29 bfloat16, share of a copy:
#:     gradient, 1, 2, 4, 8 packs          mse 1.04 1.04 1.03 1.02    bce_with_logits in bfloat16 1.01 1.04 1.04 1.03
#:     with the loss, 2, 4, 8, 16, 32      mse 1.04 1.03 1.02 1.01 1.00                      0.88 0.95 0.99 1.00 0.99
#: Eight blocks a multiprocessor that take everything between them: 0.94 to 0.98.
_GRADIENT_PACKS, _FEW_PACKS, _BLOCKS_AN_SM, _MANY_PACKS = 2, 4, 8, 16

Steps = tuple[KernelStep, ...]
#: Launches, bytes of scratch, variant, variants refused.
Planned = tuple[Steps, tuple[int, ...], str, tuple[tuple[str, str], ...]]


def plan_pass(call: Pass) -> Planned:
    """(launches, bytes of scratch, variant, variants refused) of a pass."""
    rows, unit = prod(call.problem.losses), call.dtype.acc.itemsize
    if call.problem.x.size == 0 and not (call.problem.form == "cosine" and rows):
        steps = _sum(call, call.loss, rows, call.loss) if call.reduces else ()
        return steps, (), "empty", ()
    if call.problem.form == "elementwise":
        steps, variant, refused = _elementwise(call)
        blocks = steps[0].grid[0]
        return steps, (unit * blocks, unit * _blocks(blocks)) if len(steps) > 1 else (), variant, refused
    if call.problem.form == "cosine":
        steps, variant, refused = _cosine(call)
    else:
        steps, variant, refused = plan_nll(call) if call.problem.loss.kind == "nll" else plan_cross_entropy(call)
        # Rows of whole packs leave the sum of each block's losses.
        rows = steps[0].grid[0] if variant in ALIGNED else rows
        steps = _label_weights(call) + steps
    if call.reduces:
        steps += _sum(call, call.loss, rows, LOSSES)
    folds = unit * _blocks(rows)
    weights = unit * _most_blocks_of_labels(call)
    scratch = (unit * rows if call.reduces else 0, folds, weights, unit * MOST_DIVISOR_PARTS)
    return steps, scratch if call.reduces or call.problem.counts_labels else (), variant, refused


def _blocks(count: int) -> int:
    """Blocks that share a sum."""
    return 1 if count <= _ALONE else min(-(-count // _SHARE), _MOST_BLOCKS)


def _sum(call: Pass, out: Pointer, count: int, source: Pointer) -> Steps:
    """Fold losses and divide."""
    blocks, divisor = _blocks(count), call.problem.divisor
    if blocks == 1:
        return (_fold(call, 1, (out, source, call.divisor_at), divisor, count),)
    shared = _fold(call, blocks, (FOLDED, source, NULL), 1.0, count)
    return shared, _fold(call, 1, (out, FOLDED, call.divisor_at), divisor, blocks)


def _fold(call: Pass, blocks: int, pointers: tuple[Pointer, ...], divisor: float, count: int) -> KernelStep:
    scalars = (divisor, count, call.divisor_parts)
    return call.step("sum_losses", "sums", (blocks, 1, 1), _FOLD_BLOCK, pointers, scalars)


def _label_weights(call: Pass) -> Steps:
    """The divisor that depends on the labels, in parts."""
    if not call.problem.counts_labels:
        return ()
    problem, blocks = call.problem, _most_blocks_of_labels(call)
    pointers = (WEIGHTS if blocks > 1 and call.divisor_parts == 1 else DIVISOR, 1, call.weight_at)
    scalars = (prod(problem.losses), problem.classes, problem.loss.ignore_index, problem.target.dtype.itemsize)
    shared = call.step("label_weights", "sums", (blocks, 1, 1), _FOLD_BLOCK, pointers, scalars)
    return (shared,) if pointers[0] == DIVISOR else (shared, _fold(call, 1, (DIVISOR, WEIGHTS, NULL), 1.0, blocks))


def _most_blocks_of_labels(call: Pass) -> int:
    """Blocks that read labels: as many as a divisor has parts, more where there are many labels."""
    rows = prod(call.problem.losses)
    return call.divisor_parts if rows <= MOST_ROWS_IN_PARTS else _blocks(rows)


def _wanted(call: Pass) -> str:
    """What is wanted of a pass that has none of the options; two of them take a single kernel."""
    if call.dx == NULL:
        return "loss"
    return "slope" if call.loss == NULL else "loss_and_slope"


def _options(call: Pass) -> str | None:
    """Which option of a pass over the elements the kernels for one purpose lack."""
    if call.loss != NULL and not call.reduces:
        return "the losses are not reduced"
    if call.problem.weight is not None:
        return "there are weights"
    if call.dloss_stride:
        return "each loss has a dloss"
    return "beta is not 0" if call.beta != 0.0 else None


def _elementwise_blocks(call: Pass, vec: int, wanted: str) -> int:
    """Blocks of a pass over the elements. With the gradient a loss has as many as alone, and so the same bits."""

    def blocks(packs: int) -> int:
        return blocks_for(call.problem.x.size, 256 * vec * packs)[0]

    if wanted == "slope":
        return blocks(_GRADIENT_PACKS)
    return max(blocks(_MANY_PACKS), min(blocks(_FEW_PACKS), _BLOCKS_AN_SM * call.profile.sm_count))


def _elementwise(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, lanes = call.problem, call.dtype.lanes
    variant, refused = choose(
        [("packed", call.alignment or _options(call)), ("packed_with_options", call.alignment), ("plain", None)]
    )
    wanted = _wanted(call) if variant == "packed" else "anything"
    vec = 1 if variant == "plain" else lanes
    loss, blocks = problem.loss, _elementwise_blocks(call, vec, wanted)
    parameter = loss.margin if loss.kind == "hinge" else loss.delta
    # A single block writes the reduced loss itself.
    partials = NULL if not call.reduces else LOSSES if blocks > 1 else call.loss
    pointers = (NULL if call.reduces else call.losses_at, partials, call.dx, 0, 1, call.weight_at, call.dloss)
    scalars = (call.alpha, call.beta, problem.divisor, parameter, problem.x.size, call.dloss_stride)
    kind, name = loss.kind, KIND_NAMES[loss.kind]
    if loss.log_target:
        kind, name = "kl_div_log_target", "KlDivLogTarget"
    template = (str(vec), name, str(WANTED[wanted]))
    step = call.step("elementwise_loss", f"{kind}_{wanted}", (blocks, 1, 1), 256, pointers, scalars, template)
    folded = _sum(call, call.loss, blocks, LOSSES) if call.reduces and blocks > 1 else ()
    return (step, *folded), str(variant), refused


def _cosine(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, rows, length = call.problem, prod(call.problem.losses), call.problem.classes
    shapes, lanes = cosine_shapes(call.dtype), call.dtype.lanes
    fits = [shape for shape in shapes["cosine_in_registers"] if prod(shape) >= length]
    odd = call.alignment or (f"rows of {length} elements are no whole packs" if length % lanes else None)
    long = None if fits else f"{length} elements do not fit into the registers of a block"
    short = f"rows of {length} < {LONG_ROW} elements" if length < LONG_ROW else None
    ways = [("row_in_registers", odd or long), ("row_by_packs", odd), ("row_in_block", short), ("row_in_warp", None)]
    variant, refused = choose(ways)
    group = "cosine_in_registers" if variant == "row_in_registers" else "cosine_in_memory"
    if group == "cosine_in_registers":
        vec, packs, threads = fits[0]
    else:
        vec, packs, threads = shapes[group][("row_by_packs", "row_in_warp", "row_in_block").index(str(variant))]
    pointers = (call.losses_at, call.dx, 0, 1, call.dloss)
    scalars = (call.alpha, call.beta, problem.divisor, rows, length, call.dloss_stride)
    block = max(threads, 128)
    grid, template = blocks_for(rows, block // threads), (str(vec), str(packs), str(threads))
    return (call.step("cosine_rows", group, grid, block, pointers, scalars, template),), str(variant), refused
