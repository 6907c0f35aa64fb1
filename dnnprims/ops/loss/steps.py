"""The launches that a pass over a prediction takes, kind by kind."""

from __future__ import annotations

from math import prod

from ...runtime.launch import FLAG, NULL, KernelStep, Live, Pointer, blocks_for, choose
from .kernels import KIND_NAMES, LONG_BLOCKS, row_shapes
from .problem import DIVISOR, FOLDED, LOSSES, WEIGHTS, Pass

#: Numbers that one block sums alone, numbers a block where several share the work, and the most that do.
_ALONE, _SHARE, _MOST_BLOCKS = 32768, 8192, 512
#: Packs a thread of `elementwise_loss`, and resident blocks a multiprocessor.
_PACKS_A_THREAD, _BLOCKS_AN_SM = 4, 8
#: From this length on a row of cosine gets a block.
_LONG_ROW = 2048

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
        return steps, (steps[0].grid[0] * unit,) if len(steps) > 1 else (), variant, refused
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


def _elementwise(call: Pass) -> tuple[Steps, str, tuple[tuple[str, str], ...]]:
    problem, lanes = call.problem, call.dtype.lanes
    variant, refused = choose([("packed", call.alignment), ("plain", None)])
    vec = lanes if variant == "packed" else 1
    most = _BLOCKS_AN_SM * call.profile.sm_count
    blocks = min(blocks_for(problem.x.size, 256 * vec * _PACKS_A_THREAD)[0], most)
    loss = problem.loss
    parameter = loss.margin if loss.kind == "hinge" else loss.delta
    # A single block writes the reduced loss itself.
    partials = NULL if not call.reduces else LOSSES if blocks > 1 else call.loss
    pointers = (NULL if call.reduces else call.losses_at, partials, call.dx, 0, 1, call.weight_at, call.dloss)
    scalars = (call.alpha, call.beta, problem.divisor, parameter, problem.x.size, call.dloss_stride)
    name = "KlDivLogTarget" if loss.log_target else KIND_NAMES[loss.kind]
    step = call.step(
        "elementwise_loss",
        loss.kind,
        (blocks, 1, 1),
        256,
        pointers,
        scalars,
        (str(vec), name),
    )
    folded = _sum(call, call.loss, blocks, LOSSES) if call.reduces and blocks > 1 else ()
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


def _entropy_arguments(call: Pass, kept: int = 0) -> tuple[tuple[Pointer, ...], tuple[float | int | Live, ...]]:
    problem, loss = call.problem, call.problem.loss
    pointers = (call.losses_at, call.dx, FLAG, 0, 1, call.weight_at, call.dloss, call.divisor_at)
    smoothing = (1.0 - loss.label_smoothing, loss.label_smoothing / problem.classes)
    extents = (prod(problem.losses), problem.classes, problem.inner, call.dloss_stride, loss.ignore_index)
    label_bytes = problem.target.dtype.itemsize if problem.labels else 0
    return pointers, (call.alpha, call.beta, problem.divisor, *smoothing, *extents, label_bytes, kept)


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
