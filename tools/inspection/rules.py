"""What every compiled kernel must keep to: no spill, a block that fits, no atomic, no silent rounding, wide accesses.

Each exception is named here with its reason. `violations` words what does not keep to the rules; the tests expect none.
More than 48 KiB of static shared memory needs no rule: ptxas refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from dnnprims.runtime import compiler

from . import machine_code
from .units import REGISTERS, Resources, Unit

#: The compiler that `SPILLS` is of. ptxas of another one rounds registers its own way: there `TOLERATED` bytes pass.
LISTED_NVRTC, TOLERATED = (13, 5), 64

#: ptxas rather spills than lose a block: the registers at which it stops, and what fits a multiprocessor then.
_STOPS = {
    32: "ptxas stops at 32 registers, with which a multiprocessor is full",
    40: "ptxas stops at 40 registers, with which twelve blocks of 128 threads fit",
    56: "ptxas stops at 56 registers, with which nine blocks of 128 threads fit",
    48: "ptxas stops at 48 registers, with which five blocks of 256 threads fit",
    64: "ptxas stops at 64 registers, with which four blocks of 256 threads fit",
    72: "ptxas stops at 72 registers, with which seven blocks of 128 threads fit",
    80: "ptxas stops at 80 registers, with which three blocks of 256 threads fit",
    96: "ptxas stops at 96 registers, with which five blocks of 128 threads fit",
    128: "ptxas stops at 128 registers, with which four blocks of 128 threads fit",
}
_TWO_BLOCKS = "ptxas stops at 128 registers, with which two blocks of 256 threads fit"
_THREE_BLOCKS = "ptxas stops at 168 registers, with which three blocks of 128 threads fit"
_ONE_BLOCK = "ptxas stops at 128 registers, with which 512 threads fit"
_LONG_ROWS = "ptxas stops at 64 registers, with which the threads of long rows fill a multiprocessor"
_TWO_TILES = "ptxas stops at 64 registers, with which two tiles share a multiprocessor"
#: (kernel, architecture) -> bytes that its spills may move, and why.
SPILLS: dict[tuple[str, int], tuple[int, str]] = {
    ("first_forward<float16>", 80): (24, _TWO_BLOCKS),
    ("first_forward<float16>", 90): (24, _TWO_BLOCKS),
    ("first_forward<bfloat16>", 80): (24, _TWO_BLOCKS),
    ("first_forward<bfloat16>", 90): (24, _TWO_BLOCKS),
    ("conv_hopper_turned<float, 2, 128, 4>", 90): (16, "outside of the loop: sums and factors take 192 registers"),
    ("implicit_gather<float16, 64, 64>", 120): (12, _TWO_BLOCKS),
    ("implicit_gather<bfloat16, 64, 64>", 120): (12, _TWO_BLOCKS),
    ("implicit_filter<float, 128, 128>", 100): (48, _TWO_BLOCKS),
    ("implicit_filter<float, 128, 128>", 120): (120, _TWO_BLOCKS),
    ("fc_forward_few_rows<float, 32, 16>", 100): (32, _ONE_BLOCK),
    ("fc_forward_few_rows<float, 32, 16>", 120): (68, _ONE_BLOCK),
    ("fc_forward_few_rows<float, 32, 8>", 120): (28, _TWO_BLOCKS),
    ("fc_forward_few_rows<float16, 32, 16>", 100): (28, _ONE_BLOCK),
    ("fc_forward_few_rows<bfloat16, 32, 16>", 100): (28, _ONE_BLOCK),
    ("batchnorm_moments<float16, 8>", 100): (52, _STOPS[80]),
    ("batchnorm_moments<float16, 8>", 120): (56, _STOPS[80]),
    ("depthwise_tile<float16, 2, 7, 5, 1, false>", 75): (88, _THREE_BLOCKS),
    ("depthwise_tile<float16, 2, 7, 5, 1, false>", 80): (60, _THREE_BLOCKS),
    ("depthwise_tile<float16, 2, 7, 5, 1, false>", 100): (92, _THREE_BLOCKS),
    ("depthwise_tile<float16, 2, 7, 5, 1, false>", 120): (120, _THREE_BLOCKS),
    ("depthwise_tile<bfloat16, 2, 7, 5, 1, false>", 75): (76, _THREE_BLOCKS),
    ("depthwise_tile<bfloat16, 2, 7, 5, 1, false>", 80): (48, _THREE_BLOCKS),
    ("depthwise_tile<bfloat16, 2, 7, 5, 1, false>", 100): (92, _THREE_BLOCKS),
    ("depthwise_tile<bfloat16, 2, 7, 5, 1, false>", 120): (116, _THREE_BLOCKS),
    ("depthwise_tile<float, 2, 5, 5, 1, false>", 75): (32, _THREE_BLOCKS),
    ("depthwise_tile<float, 2, 5, 5, 1, false>", 80): (8, _THREE_BLOCKS),
    ("depthwise_filter_tile<float16, 2, 7, 5, 1>", 80): (12, _THREE_BLOCKS),
    ("depthwise_filter_tile<bfloat16, 2, 7, 5, 1>", 75): (32, _THREE_BLOCKS),
    ("depthwise_filter_tile<bfloat16, 2, 7, 5, 1>", 80): (128, _THREE_BLOCKS),
    ("depthwise_filter_tile<bfloat16, 2, 7, 5, 1>", 86): (112, _THREE_BLOCKS),
    ("depthwise_filter_tile<bfloat16, 2, 7, 5, 1>", 89): (112, _THREE_BLOCKS),
    ("depthwise_filter_tile<float, 2, 4, 5, 2>", 120): (48, _THREE_BLOCKS),
    ("depthwise_tile<float, 2, 7, 3, 1, false>", 75): (144, _TWO_BLOCKS),
    ("depthwise_tile<float, 2, 7, 3, 1, false>", 80): (80, _TWO_BLOCKS),
    ("depthwise_any<double, true>", 120): (8, "ptxas stops at 48 registers, with which ten blocks of 128 threads fit"),
    ("fc_gradient<float16, Swish<float16>, 8>", 75): (8, _STOPS[64]),
    ("reduce_rows<double, NormOf<double>, 2, false>", 90): (8, _STOPS[40]),
    ("reduce_rows<double, MaxOf<double>, 2, false>", 100): (20, _STOPS[40]),
    ("reduce_rows<double, MinOf<double>, 2, false>", 100): (20, _STOPS[40]),
    ("reduce_plain<double, ArgMaxOf<double>>", 100): (24, _STOPS[48]),
    ("reduce_plain<double, ArgMinOf<double>>", 100): (24, _STOPS[48]),
    ("softmax_backward_long<double, 1, 512, 0>", 100): (32, _LONG_ROWS),
    ("softmax_backward_long<double, 1, 1024, 0>", 100): (32, _LONG_ROWS),
    ("softmax_backward_long<double, 1, 512, 0>", 120): (48, _LONG_ROWS),
    ("softmax_backward_long<double, 1, 1024, 0>", 120): (32, _LONG_ROWS),
    ("softmax_backward_long<float, 4, 512, 0>", 120): (24, _LONG_ROWS),
    ("softmax_backward_long<float, 4, 1024, 0>", 120): (32, _LONG_ROWS),
    ("softmax_backward_long<float, 4, 1024, 2>", 120): (64, _LONG_ROWS),
    ("softmax_backward_long<float16, 8, 512, 0>", 120): (32, _LONG_ROWS),
    ("softmax_backward_long<float16, 8, 1024, 0>", 120): (32, _LONG_ROWS),
    ("softmax_backward_row<float, 1, 32, 32>", 75): (8, _STOPS[96]),
    ("softmax_backward_row<float, 1, 32, 32>", 100): (8, _STOPS[96]),
    ("softmax_backward_row<float16, 1, 32, 32>", 100): (8, _STOPS[96]),
    ("softmax_backward_row<float, 1, 32, 32>", 120): (8, _STOPS[96]),
    ("softmax_backward_row<float16, 1, 32, 32>", 120): (8, _STOPS[96]),
    ("softmax_forward_row<float, 4, 8, 1024>", 75): (44, _LONG_ROWS),
    ("softmax_forward_row<float, 4, 8, 1024>", 86): (36, _LONG_ROWS),
    ("softmax_forward_row<float, 4, 8, 1024>", 89): (36, _LONG_ROWS),
    ("softmax_forward_row<float, 4, 8, 1024>", 100): (96, _LONG_ROWS),
    ("softmax_forward_row<float, 4, 8, 1024>", 120): (88, _LONG_ROWS),
    ("softmax_forward_tile<double, 2, 512>", 90): (84, _TWO_TILES),
    ("softmax_forward_tile<float, 4, 512>", 120): (20, _TWO_TILES),
    ("softmax_forward_tile<double, 2, 512>", 120): (40, _TWO_TILES),
    ("softmax_forward_tile<float16, 8, 512>", 120): (12, _TWO_TILES),
    ("softmax_backward_strided<double>", 100): (80, _STOPS[48]),
    ("fc_gradient<float, FromOutput<Celu<float>>, 4>", 100): (20, _STOPS[80]),
    ("fc_gradient<float, HardSwish<float>, 4>", 100): (20, _STOPS[80]),
    ("fc_gradient<float, Log<float>, 4>", 100): (20, _STOPS[80]),
    ("cosine_rows<float16, 8, 4, 128>", 120): (12, _STOPS[72]),
    ("elementwise_loss<double, 1, SmoothL1, 0>", 100): (48, _STOPS[32]),
    ("elementwise_loss<double, 2, SmoothL1, 3>", 100): (16, _STOPS[40]),
    ("elementwise_loss<bfloat16, 8, SmoothL1, 1>", 80): (16, _STOPS[40]),
    ("cross_entropy_aligned<float, 4, 8, 128, 8>", 75): (12, _STOPS[64]),
    ("cross_entropy_aligned<float, 4, 8, 256, 4>", 75): (12, _STOPS[64]),
    ("cross_entropy_aligned_long<float, 4, 512, 3>", 80): (8, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 512, 3>", 86): (8, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 512, 3>", 89): (8, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 512, 3>", 100): (24, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 256, 0>", 120): (12, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 512, 0>", 120): (12, _LONG_ROWS),
    ("cross_entropy_aligned_long<float, 4, 1024, 0>", 120): (12, _LONG_ROWS),
    ("cross_entropy_in_registers<float, 4, 2, 32, true>", 90): (8, _STOPS[56]),
    ("cross_entropy_in_registers<double, 1, 2, 32, true>", 80): (16, _STOPS[40]),
    ("cross_entropy_in_registers<double, 1, 2, 8, true>", 80): (16, _STOPS[40]),
    ("cross_entropy_in_registers<float16, 8, 4, 128, false>", 120): (12, _STOPS[80]),
    ("maxout_forward_strided<float, int, 4>", 120): (24, _STOPS[48]),
    ("maxout_forward_strided<float, u8, 4>", 120): (24, _STOPS[48]),
    ("fc_forward_ping_pong<float16, Log<float16>>", 90): (
        176,
        "ptxas stops at 168 registers, with which 384 threads fit",
    ),
    ("fc_forward_ping_pong<bfloat16, Log<bfloat16>>", 90): (
        176,
        "ptxas stops at 168 registers, with which 384 threads fit",
    ),
    ("cross_entropy_in_registers<double, 2, 4, 256, false>", 75): (8, _STOPS[64]),
    ("cosine_rows<double, 2, 4, 128>", 80): (16, _STOPS[64]),
    ("cosine_rows<double, 2, 4, 128>", 86): (16, _STOPS[64]),
    ("cosine_rows<double, 2, 4, 128>", 89): (16, _STOPS[64]),
}

#: Atomics that a kernel may use, by entry, with the reason. Without them results cannot depend on who comes first.
ATOMICS: dict[str, str] = {}

_ATOMIC_ROOTS = ("atom", "red", "suatom", "sured", "multimem")
_MACHINE_ATOMIC = re.compile(r"(SU)?ATOM|(SU|U)?RED(?!UX)|UBLKRED|UTMARED")

#: Kernels that move 16 bytes at once, and in which direction. Where VEC is a template argument it is the first integer
#: among them, and 1 frees the kernel from the rule.
PACKED = {
    "bias_columns": "ld",
    "bias_planes": "ld",
    "activation_forward": "ld st",
    "activation_backward": "ld st",
    "adam_update": "ld st",
    "add_packed": "ld st",
    "add_strided": "ld st",
    "batchnorm_apply": "ld st",
    "batchnorm_apply_planes": "ld st",
    "batchnorm_channel_moments": "ld",
    "batchnorm_channel_sums": "ld st",
    "batchnorm_data": "ld st",
    "batchnorm_data_planes": "ld st",
    "batchnorm_held_backward": "st",
    "batchnorm_held_forward": "st",
    "batchnorm_moments": "ld",
    "batchnorm_sums": "ld st",
    "batchnorm_units_forward": "st",
    "cast_packed": "either",
    "cosine_rows": "ld st",
    "cross_entropy_aligned": "ld st",
    "cross_entropy_aligned_long": "ld st",
    "cross_entropy_by_block": "ld st",
    "cross_entropy_in_registers": "ld st",
    "depthwise": "",  # up to four channels: the registers are for rows
    "depthwise_tile": "",  # two channels: the registers are for rows, which come by copies of 16 bytes
    "depthwise_filter_tile": "",  # likewise
    "elementwise_loss": "ld st",
    "fc_activation_forward": "ld st",
    "fc_gradient": "ld st",
    "fc_transpose": "ld st",
    "glu_backward": "ld st",
    "glu_forward": "ld st",
    "maxout_backward": "st",
    "maxout_backward_units": "st",
    "maxout_forward_strided": "ld st",
    "maxout_forward_units": "ld st",
    "nll_gradient_packed": "st",
    "norm_partials": "ld",
    "pooling_backward_lines": "st",
    "pooling_backward_packed": "ld st",
    "pooling_backward_rows": "st",
    "pooling_backward_whole_packed": "ld st",
    "pooling_backward_whole_planes": "st",
    "pooling_forward_lines": "ld",
    "pooling_forward_packed": "ld st",
    "pooling_forward_whole_packed": "ld st",
    "pooling_forward_rows": "",  # rows begin anywhere
    "prelu_backward_columns": "ld st",
    "prelu_backward_data": "ld st",
    "prelu_backward_rows": "ld st",
    "prelu_forward": "ld st",
    "reduce_columns": "ld",
    "reduce_rows": "ld",
    "scale_arrays": "ld st",
    "scale_packed": "ld st",
    "set_packed": "st",
    "sgd_update": "ld st",
    "softmax_backward_long": "ld st",
    "softmax_backward_row": "ld st",
    "softmax_backward_tile": "st",
    "softmax_forward_long": "ld st",
    "softmax_forward_row": "ld st",
    "softmax_forward_tile": "st",
}

#: Those of them that have nothing to store but a sum.
LOADS_ONLY = re.compile(r"elementwise_loss<.*, 1>")

#: Approximate instructions that a dtype's kernels may use, in families that say so in their headers. float32 takes the
#: bare reciprocal as a first guess and corrects it (elementary.cuh, usual.cuh), or in the derivative of the root; the
#: 16-bit types have the policy Quick (math.cuh).
_QUICK = (
    "ex2.approx.f32",
    "ex2.approx.ftz.f32",
    "lg2.approx.f32",
    "lg2.approx.ftz.f32",
    "rcp.approx.f32",
    "rcp.approx.ftz.f32",
    "rsqrt.approx.f32",
)
APPROXIMATE = {"float32": ("rcp.approx.ftz.f32",), "float16": _QUICK, "bfloat16": _QUICK}
APPROXIMATING = (
    "activation",
    "convolution",
    "convolution_depthwise",
    "convolution_first",
    "convolution_hopper",
    "convolution_hopper_first",
    "convolution_patch",
    "fc",
    "fc_few_rows",
    "fc_hopper",
    "glu",
    "loss",
    "softmax",
)
#: What float32 kernels take beside that, in families whose bounds count in units of whole terms: exponentials good to a
#: few u with an instruction (exp_of_term, elementary.cuh; loss_kinds.cuh), logarithms of what is below 1 / 2.
FOR_TERMS = {
    "loss": ("ex2.approx.f32", "ex2.approx.ftz.f32", "lg2.approx.f32"),
    "softmax": ("ex2.approx.f32",),
}

#: An access to global memory, or to what the compiler cannot tell: direction, elements of a vector, bits of each.
_ACCESS = re.compile(r"\b(ld|st)(?!\.(?:param|shared|local|const))(?:\.\w+)*?(?:\.v(\d))?\.[a-z](\d+)\s")


#: What waits for the kernels in front (``kernels/grid.cuh``), in PTX and on the machine, and what must come behind it.
_ENTERED = re.compile(r"\bgriddepcontrol\.wait\b"), re.compile(r"\bACQBULK\b")
_TOUCHES = (
    re.compile(r"\b(ld|st|red|atom)(?!\.(?:param|shared|local|const))\.|\bcp\.async\.(?!commit|wait)"),
    re.compile(r"\b(LDG|STG|LD|ST|LDGSTS|RED|ATOMG|UTMALDG|UTMASTG|UBLKCP)\b"),
)


def violations(unit: Unit, machine: bool = False) -> list[str]:
    """What a unit's kernels do that they must not; with `machine` their instructions are looked at, too."""
    found = [f"{unit.family}.cu: {line}" for line in unit.warnings]
    for row in unit.resources:
        words = [*_resources(row), *_ptx(row, unit.ptx[row.kernel])]
        if machine:
            words += _machine(row, machine_code.machine_instructions(unit.machine[row.kernel]))
        if row.arch >= compiler.FIRST_EARLY_ARCH:
            texts = (unit.ptx[row.kernel], unit.machine[row.kernel] if machine else "")
            words += [_order(*each) for each in zip(("PTX", "machine code"), texts, _ENTERED, _TOUCHES, strict=True)]
        found += [f"{row.kernel} for sm_{row.arch}: {word}" for word in words if word]
    return found


def _resources(row: Resources) -> Iterator[str]:
    moved, (allowed, _) = row.spill_stores + row.spill_loads, SPILLS.get((row.kernel, row.arch), (0, ""))
    if tuple(compiler.load_nvrtc().getVersion()) != LISTED_NVRTC:
        allowed = max(allowed, TOLERATED)
    if moved > allowed:
        yield f"spills move {moved} bytes, {allowed} are allowed"
    if row.stack and not moved:
        yield f"keeps {row.stack} bytes of arrays in local memory"
    if row.block_registers > REGISTERS:
        yield f"{row.threads} threads with {row.registers} registers each do not fit a multiprocessor"


def _ptx(row: Resources, text: str) -> Iterator[str]:
    used = machine_code.ptx_instructions(text)
    atomics = [name for name in used if name.split(".")[0] in _ATOMIC_ROOTS or name.startswith("cp.reduce.")]
    if atomics and row.entry not in ATOMICS:
        yield f"atomics in the PTX: {_listed(atomics)}"
    allowed = APPROXIMATE.get(row.dtype, ()) if row.family in APPROXIMATING else ()
    if row.dtype == "float32":
        allowed = (*allowed, *FOR_TERMS.get(row.family, ()))
    rough = [name for name in used if re.search(r"\.(approx|ftz)\b", name) and name not in allowed]
    if rough:
        yield f"approximate instructions in the PTX: {_listed(rough)}"
    wide = {kind for kind, many, bits in _ACCESS.findall(text) if int(many or 1) * int(bits) >= 128}
    wanted = PACKED.get(row.entry, "") if vector_length(row.kernel) != 1 else ""
    if LOADS_ONLY.fullmatch(row.kernel):
        wanted = wanted.removesuffix(" st")
    if wanted == "either" and not wide:
        yield "moves nothing 16 bytes at once"
    for kind in ("ld", "st"):
        if kind in wanted.split() and kind not in wide:
            yield f"{'loads' if kind == 'ld' else 'stores'} nothing 16 bytes at once"


def _order(where: str, text: str, entered: re.Pattern[str], touches: re.Pattern[str]) -> str:
    """No access to memory may have been moved to where the kernels in front still run."""
    wait, first = entered.search(text), touches.search(text)
    if not text or (wait and (first is None or wait.start() < first.start())):
        return ""
    return f"touches memory before the kernels in front of it are done, in the {where}"


def _machine(row: Resources, used: Iterable[str]) -> Iterator[str]:
    atomics = [name for name in used if _MACHINE_ATOMIC.match(name)]
    if atomics and row.entry not in ATOMICS:
        yield f"atomics in the machine code: {_listed(atomics)}"


def vector_length(kernel: str) -> int | None:
    """The first template argument that is an integer: VEC, in the kernels of `PACKED` that have one."""
    match = re.search(r"[<,] *(\d+) *(?=[,>])", kernel)
    return int(match[1]) if match else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
