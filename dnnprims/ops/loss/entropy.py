"""The launch of softmax cross-entropy, by the layout of its rows, and that of nll, which is computed from the same."""

from __future__ import annotations

from math import prod

from ...runtime.launch import FLAG, NULL, KernelStep, Live, Pointer, blocks_for, choose
from .kernels import (
    ALIGNED_BLOCK,
    LONG_BLOCKS,
    NLL_LANES,
    aligned_group,
    aligned_long_shape,
    aligned_shapes,
    row_shapes,
)
from .problem import Pass

#: Variants of rows of whole packs: where the loss is reduced they leave the sum of each block's losses.
ALIGNED = ("aligned_row_in_registers", "aligned_row_in_shared", "aligned_row_partly_in_shared")

Refused = tuple[tuple[str, str], ...]


def plan_cross_entropy(call: Pass) -> tuple[tuple[KernelStep, ...], str, Refused]:
    """(launch, variant, variants refused) of cross-entropy."""
    aligned, general = _aligned_shape(call), _general_shape(call)
    vec, needed = _row(call)
    unit, room = vec * call.dtype.itemsize, call.profile.row_bytes
    beyond = f"{needed} bytes of shared memory, {room} there" if needed > room else None
    inner, classes = call.problem.inner, call.problem.classes
    stepped = None if inner == 1 else f"the step between classes is {inner}"
    long = None if general else call.alignment or f"{classes} classes do not fit into the registers of a block"
    unaligned = stepped or _unaligned(call)
    variant, refused = choose(
        [
            ("aligned_row_in_registers", unaligned or (None if aligned else f"{classes} classes are too many")),
            ("aligned_row_in_shared", unaligned or beyond),
            ("aligned_row_partly_in_shared", unaligned),
            ("row_in_registers", stepped or long),
            ("row_in_shared", stepped or beyond),
            ("row_partly_in_shared", stepped),
            ("plain", None),
        ]
    )
    kept = min(needed, room) // unit
    if variant == "aligned_row_in_registers" and aligned:
        step = _aligned(call, *aligned)
    elif variant in ALIGNED:
        step = _aligned_long(call, needed, room)
    elif variant == "row_in_registers" and general:
        step = _general(call, *general)
    else:
        step = _general_long(call, vec, 0 if variant == "plain" else kept, needed > room // 2)
    return (step,), str(variant), refused


def _dense(call: Pass) -> bool:
    """Whether every class has a coefficient."""
    return not call.problem.labels or call.problem.loss.label_smoothing != 0.0


def _unaligned(call: Pass) -> str | None:
    """Why rows are not of whole packs, of which a label concerns one."""
    if call.problem.classes % call.dtype.lanes:
        return f"rows of {call.problem.classes} classes are not of 16 bytes each"
    return call.alignment or ("every class has a coefficient" if _dense(call) else None)


def _row(call: Pass) -> tuple[int, int]:
    """Elements of an access, and bytes of a row: one that starts amid a pack takes a part of one more."""
    vec, classes = call.dtype.lanes if call.alignment is None else 1, call.problem.classes
    packs = -(-classes // vec) + (vec > 1 and classes % vec > 0)
    return vec, packs * vec * call.dtype.itemsize


def _aligned_shape(call: Pass) -> tuple[int, int, int] | None:
    """(packs of a thread, threads of a row, resident blocks) of the first that holds a row of whole packs."""
    shapes = aligned_shapes(call.dtype)
    return next((one for one in shapes if one[0] * one[1] * call.dtype.lanes >= call.problem.classes), None)


def _general_shape(call: Pass) -> tuple[str, int, int, int] | None:
    """(group, elements of a pack, packs of a thread, threads of a row) of the first that holds any row."""
    classes = call.problem.classes
    for group, shapes in row_shapes(call.dtype, _dense(call)).items():
        for vec, packs, lanes in shapes:
            # A row that starts amid a pack needs a part of another.
            room = vec * packs * lanes - (vec - 1 if classes % vec else 0)
            if room >= classes and (vec == 1 or call.alignment is None):
                return group, vec, packs, lanes
    return None


def _aligned(call: Pass, packs: int, lanes: int, resident: int) -> KernelStep:
    rows, block = prod(call.problem.losses), max(lanes, ALIGNED_BLOCK)
    grid = blocks_for(rows, block // lanes)
    template = (str(call.dtype.lanes), str(packs), str(lanes), str(resident))
    arguments = entropy_arguments(call, partials=call.reduces)
    return call.step("cross_entropy_aligned", aligned_group(lanes), grid, block, *arguments, template)


def _aligned_long(call: Pass, needed: int, room: int) -> KernelStep:
    block, held = aligned_long_shape(call.dtype, needed, room)
    kept = max(0, min(needed - 16 * block * held, room)) // 16
    grid, template = (prod(call.problem.losses), 1, 1), (str(call.dtype.lanes), str(block), str(held))
    arguments = entropy_arguments(call, kept, partials=call.reduces)
    return call.step("cross_entropy_aligned_long", "one_hot_aligned_long", grid, block, *arguments, template, kept * 16)


def _general(call: Pass, group: str, vec: int, packs: int, lanes: int) -> KernelStep:
    name, flag = ("dense", "true") if _dense(call) else ("one_hot", "false")
    block, template = max(lanes, 128), (str(vec), str(packs), str(lanes), flag)
    grid = blocks_for(prod(call.problem.losses), block // lanes)
    arguments = entropy_arguments(call)
    return call.step("cross_entropy_in_registers", f"{name}_{group}", grid, block, *arguments, template)


def _general_long(call: Pass, vec: int, kept: int, alone: bool) -> KernelStep:
    """A block a row; with nothing kept, a thread a row."""
    name, flag = ("dense", "true") if _dense(call) else ("one_hot", "false")
    rows, arguments = prod(call.problem.losses), entropy_arguments(call, kept)
    if not kept:
        return call.step("cross_entropy_plain", f"{name}_plain", blocks_for(rows, 128), 128, *arguments, (flag,))
    block = LONG_BLOCKS[name][alone]
    template, nbytes = (str(vec), str(block), flag), kept * vec * call.dtype.itemsize
    return call.step("cross_entropy_by_block", f"{name}_by_block", (rows, 1, 1), block, *arguments, template, nbytes)


def plan_nll(call: Pass) -> tuple[tuple[KernelStep, ...], str, Refused]:
    """(launch, variant, variants refused) of nll."""
    problem, lanes, (pointers, scalars) = call.problem, call.dtype.lanes, entropy_arguments(call)
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


def entropy_arguments(
    call: Pass, kept: int = 0, partials: bool = False
) -> tuple[tuple[Pointer, ...], tuple[float | int | Live, ...]]:
    """Pointers and scalars; with `partials` the sums of blocks are wanted instead of the losses of rows."""
    problem, loss = call.problem, call.problem.loss
    losses = (NULL, call.losses_at) if partials else (call.losses_at, NULL)
    pointers = (*losses, call.dx, FLAG, 0, 1, call.weight_at, call.dloss, call.divisor_at)
    smoothing = (1.0 - loss.label_smoothing, loss.label_smoothing / problem.classes)
    extents = (prod(problem.losses), problem.classes, problem.inner, call.dloss_stride, loss.ignore_index)
    label_bytes = problem.target.dtype.itemsize if problem.labels else 0
    scalars = (call.alpha, call.beta, problem.divisor, *smoothing, *extents, label_bytes, kept, call.divisor_parts)
    return pointers, scalars
