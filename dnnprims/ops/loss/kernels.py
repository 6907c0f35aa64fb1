"""Kernels of the losses: their parameters, their names in the CUDA text, and what is compiled together."""

from __future__ import annotations

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, Struct

_GRADIENT = (("alpha", "A"), ("beta", "A"), ("divisor", "A"))
_ENTROPY_STRUCT = Struct(
    "CrossEntropyParams",
    ("losses", "partials", "dx", "flag", "x", "target", "weight", "dloss", "divisor_at"),
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
        ("kept", "i32"),
        ("divisor_parts", "i32"),
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
    "cross_entropy_aligned": _ENTROPY_STRUCT,
    "cross_entropy_aligned_long": _ENTROPY_STRUCT,
    "cross_entropy_in_registers": _ENTROPY_STRUCT,
    "cross_entropy_by_block": _ENTROPY_STRUCT,
    "cross_entropy_plain": _ENTROPY_STRUCT,
    "nll_losses": _ENTROPY_STRUCT,
    "nll_gradient": _ENTROPY_STRUCT,
    "nll_gradient_packed": _ENTROPY_STRUCT,
    "sum_losses": Struct(
        "SumLossesParams", ("out", "in", "divisor_at"), (("divisor", "A"), ("count", "i64"), ("divisor_parts", "i32"))
    ),
    "label_weights": Struct(
        "LabelWeightsParams",
        ("out", "target", "weight"),
        (("rows", "i64"), ("classes", "i64"), ("ignore_index", "i64"), ("label_bytes", "i32")),
    ),
}
KERNELS = {entry: Kernel("loss", entry, struct) for entry, struct in _STRUCTS.items()}

#: Elementwise kinds -> their name in the CUDA text.
KIND_NAMES = {
    "mse": "Mse",
    "l1": "L1",
    "huber": "Huber",
    "smooth_l1": "SmoothL1",
    "bce": "Bce",
    "bce_with_logits": "BceWithLogits",
    "kl_div": "KlDiv",
    "hinge": "Hinge",
}

#: What a pass over the elements is compiled for -> its number in the CUDA text, `Wanted`. The first takes everything
#: else, too: losses unreduced, weights, a dloss for each, beta.
WANTED = {"anything": 0, "loss": 1, "slope": 2, "loss_and_slope": 3}


#: Threads of a block that has a row for itself, where two such rows fit into the shared memory and where not. Dense
#: coefficients need registers that 1,024 threads do not have.
LONG_BLOCKS = {"one_hot": (512, 1024), "dense": (512, 512)}


#: Packs that each thread of a row of float32 holds in registers, beside shared memory, where that lets two such rows
#: share a multiprocessor.
_ALIGNED_LONG_HELD = 3


def aligned_long_shapes(dtype: DType) -> tuple[tuple[int, int], ...]:
    """(threads, packs of each in registers) of the same of rows of whole packs, where three fit, two or one.

    The last is for two of float32 that do not quite fit; doubles have no registers for 1,024 threads.
    """
    if dtype.itemsize == 8:
        return (256, 0), (512, 0), (512, 0)
    held = ((512, _ALIGNED_LONG_HELD),) if dtype.itemsize == 4 else ()
    return (256, 0), (512, 0), (1024, 0), *held


def aligned_long_shape(dtype: DType, needed: int, room: int) -> tuple[int, int]:
    """The one for rows of so many bytes, given how many a block may have."""
    three, two, one, *held = aligned_long_shapes(dtype)
    if needed <= room // 2:
        return two if needed > room // 3 else three
    return next((shape for shape in held if needed - 16 * shape[0] * shape[1] <= room // 2), one)


#: Rows of whole packs in registers: (threads of a row, elements of a thread), of 16-bit types and of others; a double
#: takes the room of two.
_ALIGNED_SHAPES = {
    True: ((4, 32), (8, 32), (16, 32), (32, 32), (128, 16), (128, 32), (256, 32)),
    False: ((8, 16), (16, 16), (32, 16), (32, 32), (128, 16), (128, 32), (256, 32)),
}
#: Threads of a block, of which rows of fewer threads share one.
ALIGNED_BLOCK = 128
#: Threads of a multiprocessor that have registers for them; half as many doubles.
_RESIDENT = 1024


def aligned_shapes(dtype: DType) -> list[tuple[int, int, int]]:
    """(packs of a thread, threads of a row, resident blocks) of rows of whole packs, shortest row first."""
    room = 1 + (dtype.itemsize == 8)
    return [
        (elements // (dtype.lanes * room), lanes, _RESIDENT // (room * max(lanes, ALIGNED_BLOCK)))
        for lanes, elements in _ALIGNED_SHAPES[dtype.itemsize == 2]
    ]


def aligned_group(lanes: int) -> str:
    """What is compiled with rows of so many threads."""
    return f"one_hot_aligned_{'warp' if lanes <= 32 else 'block'}"


def row_shapes(dtype: DType, dense: bool) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Group -> (elements of a pack, packs of a thread, threads of a row), in the order in which they are tried.

    Threads hold up to 128 bytes, or 32 elements: more would spill. Dense coefficients need registers of their own.
    """
    lanes, most = dtype.lanes, min(8, 32 // dtype.lanes)
    shapes: dict[str, tuple[tuple[int, int, int], ...]]
    if dense:
        shapes = {"narrow": ((1, 2, 8), (1, 2, 32)), "wide": ((lanes, 2, 32), (lanes, 4, 128))}
    else:
        warp, block = ((lanes, 2, 32), (lanes, most, 32)), ((lanes, 4, 128), (lanes, 4, 256))
        shapes = {"narrow": ((1, 2, 8), (1, 2, 32)), "warp": warp, "block": block}
    return shapes


#: Threads that share a row of nll, each of which has several packs of it.
NLL_LANES = (8, 128)

#: Rows of cosine of fewer elements have a warp each where they are read one by one, the others a block.
LONG_ROW = 2048


def cosine_shapes(dtype: DType) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Group -> (elements of a pack, packs of a thread, threads of a row), in registers in the order of their size.

    0 packs: the row is read at each pass.
    """
    lanes = dtype.lanes
    held = [(lanes, 1, 8), (lanes, 2, 8), (lanes, 4, 8), (lanes, 4, 32), (lanes, 4, 128)]
    if dtype.itemsize < 8:  # double would spill
        held.append((lanes, 4, 256))
    return {"cosine_in_registers": tuple(held), "cosine_in_memory": ((lanes, 0, 512), (1, 0, 32), (1, 0, 512))}


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, widths = dtype.cuda, (1, dtype.lanes)
    groups = {}
    for kind, name in (*KIND_NAMES.items(), ("kl_div_log_target", "KlDivLogTarget")):
        for wanted, number in WANTED.items():
            # What is compiled for a purpose is so for packs alone.
            groups[f"{kind}_{wanted}"] = [
                f"elementwise_loss<{t}, {vec}, {name}, {number}>" for vec in widths[number > 0 :]
            ]
    for group, shapes in cosine_shapes(dtype).items():
        groups[group] = [f"cosine_rows<{t}, {vec}, {packs}, {lanes}>" for vec, packs, lanes in shapes]
    packed = [f"nll_gradient_packed<{t}, {dtype.lanes}, {lanes}>" for lanes in NLL_LANES]
    groups["nll"] = [f"nll_losses<{t}>", f"nll_gradient<{t}>", *packed]
    groups["sums"] = [f"sum_losses<{t}>", f"label_weights<{t}>"]
    for packs, lanes, resident in aligned_shapes(dtype):
        line = f"cross_entropy_aligned<{t}, {dtype.lanes}, {packs}, {lanes}, {resident}>"
        groups.setdefault(aligned_group(lanes), []).append(line)
    groups["one_hot_aligned_long"] = [
        f"cross_entropy_aligned_long<{t}, {dtype.lanes}, {block}, {held}>"
        for block, held in dict.fromkeys(aligned_long_shapes(dtype))
    ]
    for name, flag in (("one_hot", "false"), ("dense", "true")):
        for group, shapes in row_shapes(dtype, name == "dense").items():
            groups[f"{name}_{group}"] = [
                f"cross_entropy_in_registers<{t}, {vec}, {packs}, {lanes}, {flag}>" for vec, packs, lanes in shapes
            ]
        groups[f"{name}_by_block"] = [
            f"cross_entropy_by_block<{t}, {vec}, {block}, {flag}>"
            for vec in widths
            for block in dict.fromkeys(LONG_BLOCKS[name])
        ]
        groups[f"{name}_plain"] = [f"cross_entropy_plain<{t}, {flag}>"]
    return groups


FAMILY = Family("loss", tuple(KERNELS.values()), _instances)
