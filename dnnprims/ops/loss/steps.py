"""The launches that a pass over a prediction takes, kind by kind."""

from __future__ import annotations

from math import prod

from ...runtime.launch import FLAG, NULL, KernelStep, Live, Pointer, blocks_for, choose
from .kernels import KIND_NAMES, LONG_BLOCKS, LONG_ROW, NLL_LANES, WANTED, cosine_shapes, row_shapes
from .problem import DIVISOR, FOLDED, LOSSES, WEIGHTS, Pass

#: Numbers that one block sums alone, numbers a block where several share the work, and the most that do.
_ALONE, _SHARE, _MOST_BLOCKS = 32768, 8192, 512
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
        steps, variant, refused = _nll(call) if call.problem.loss.kind == "nll" else _cross_entropy(call)
        steps = _label_weights(call, rows) + steps
    if call.reduces:
        steps += _sum(call, call.loss, rows, LOSSES)
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
    shared = call.step("sum_losses", "sums", (blocks, 1, 1), 512, (FOLDED, source, NULL), (1.0, count))
    last = call.step("sum_losses", "sums", (1, 1, 1), 512, (out, FOLDED, call.divisor_at), (divisor, blocks))
    return shared, last


def _label_weights(call: Pass, rows: int) -> Steps:
    """The divisor that depends on the labels."""
    if not call.problem.counts_labels:
        return ()
    blocks, problem = _blocks(rows), call.problem
    pointers = (DIVISOR if blocks == 1 else WEIGHTS, 1, call.weight_at)
    scalars = (rows, problem.classes, problem.loss.ignore_index, problem.target.dtype.itemsize)
    shared = call.step("label_weights", "sums", (blocks, 1, 1), 512, pointers, scalars)
    if blocks == 1:
        return (shared,)
    return shared, call.step("sum_losses", "sums", (1, 1, 1), 512, (DIVISOR, WEIGHTS, NULL), (1.0, blocks))


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


def _entropy_arguments(call: Pass, kept: int = 0) -> tuple[tuple[Pointer, ...], tuple[float | int | Live, ...]]:
    problem, loss = call.problem, call.problem.loss
    pointers = (call.losses_at, call.dx, FLAG, 0, 1, call.weight_at, call.dloss, call.divisor_at)
    smoothing = (1.0 - loss.label_smoothing, loss.label_smoothing / problem.classes)
    extents = (prod(problem.losses), problem.classes, problem.inner, call.dloss_stride, loss.ignore_index)
    label_bytes = problem.target.dtype.itemsize if problem.labels else 0
    return pointers, (call.alpha, call.beta, problem.divisor, *smoothing, *extents, label_bytes, kept)


def _nll(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, lanes, (pointers, scalars) = call.problem, call.dtype.lanes, _entropy_arguments(call)
    if call.dx == NULL:
        grid = blocks_for(prod(problem.losses), 128)
        return (call.step("nll_losses", "nll", grid, 128, pointers, scalars),), "label_of_row", ()
    stepped = f"the step between classes is {problem.inner}" if problem.inner != 1 else None
    ends = f"{problem.classes} classes are no multiple of {lanes}" if problem.classes % lanes else None
    variant, refused = choose([("packed", call.alignment or stepped or ends), ("plain", None)])
    if variant == "plain":
        grid = blocks_for(problem.x.size, 256)
        return (call.step("nll_gradient", "nll", grid, 256, pointers, scalars),), "plain", refused
    few, many = NLL_LANES
    threads = many if problem.classes >= 2 * lanes * many else few
    grid, template = blocks_for(prod(problem.losses), 256 // threads), (str(lanes), str(threads))
    return (call.step("nll_gradient_packed", "nll", grid, 256, pointers, scalars, template),), "packed", refused


def _cross_entropy(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, rows, classes = call.problem, prod(call.problem.losses), call.problem.classes
    dense = not problem.labels or problem.loss.label_smoothing != 0.0
    name, flag = ("dense", "true") if dense else ("one_hot", "false")
    fits = [
        (group, vec, packs, lanes)
        for group, shapes in row_shapes(call.dtype, dense).items()
        for vec, packs, lanes in shapes
        # A row that starts amid a pack needs a part of another.
        if vec * packs * lanes - (vec - 1 if classes % vec else 0) >= classes and (vec == 1 or call.alignment is None)
    ]
    stepped = f"the step between classes is {problem.inner}" if problem.inner != 1 else None
    long = None if fits else call.alignment or f"{classes} classes do not fit into the registers of a block"
    vec = call.dtype.lanes if call.alignment is None else 1
    unit, room = vec * call.dtype.itemsize, call.profile.row_bytes
    # A row that starts amid a pack takes a part of one more.
    needed = (-(-classes // vec) + (vec > 1)) * unit
    variant, refused = choose(
        [
            ("row_in_registers", stepped or long),
            (
                "row_in_shared",
                stepped or (None if needed <= room else f"{needed} bytes of shared memory, {room} there"),
            ),
            ("row_partly_in_shared", stepped),
            ("plain", None),
        ]
    )
    kept = min(needed, room) // unit if variant in ("row_in_shared", "row_partly_in_shared") else 0
    pointers, scalars = _entropy_arguments(call, kept)
    if variant == "plain":
        step = call.step("cross_entropy_plain", f"{name}_plain", blocks_for(rows, 128), 128, pointers, scalars, (flag,))
    elif kept:
        block = LONG_BLOCKS[name][needed > room // 2]
        entry, group, arguments = "cross_entropy_by_block", f"{name}_by_block", (str(vec), str(block), flag)
        step = call.step(entry, group, (rows, 1, 1), block, pointers, scalars, arguments, kept * unit)
    else:
        group, vec, packs, lanes = fits[0]
        block, template = max(lanes, 128), (str(vec), str(packs), str(lanes), flag)
        grid = blocks_for(rows, block // lanes)
        step = call.step("cross_entropy_in_registers", f"{name}_{group}", grid, block, pointers, scalars, template)
    return (step,), str(variant), refused
