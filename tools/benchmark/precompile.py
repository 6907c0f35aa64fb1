"""Compile what a run will need, on all cores, before the GPU is measured: the kernel cache then has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from dnnprims.conformance.cases import Problem
from dnnprims.dtypes import BY_NAME
from dnnprims.ops import FAMILIES
from dnnprims.runtime.compiler import compile_kernel, nvrtc_target

#: Primitive -> kernel families that it may launch, where these are not those of its name's first word.
_FAMILIES = {
    "reduce_tensor": ("reduction",),
    "sgd_update": ("sgd",),
    "adamw_update": ("adam",),
    "training_step": ("fc", "fc_few_outputs", "fc_few_rows", "fc_hopper", "loss", "sgd", "gemm"),
    "fc_forward": ("fc", "fc_few_rows", "fc_hopper", "gemm"),
    "fc_backward": ("fc", "fc_few_outputs", "gemm"),
    "fc_backward_bias": ("fc",),
    **dict.fromkeys(("global_norm", "clip_by_global_norm", "scale_and_check_finite"), ("gradient",)),
    **{
        f"conv_{direction}": tuple(name for name in FAMILIES if name.startswith("convolution"))
        for direction in ("forward", "backward_data", "backward_filter", "backward_bias")
    },
    **dict.fromkeys(("set_tensor", "scale_tensor", "add_tensor", "cast"), ("tensor",)),
}

#: Family, dtype and instantiation.
Unit = tuple[str, str, str]


def units(lines: Iterable[str]) -> list[Unit]:
    """The kernels that the cases of some lines may want; other modes' are left out."""
    found: dict[Unit, None] = {}
    for line in lines:
        problem = Problem.parse(line, dtype="float32")
        words = {value for _, value in problem.settings} | {"relu", "identity"}
        for family in _FAMILIES.get(problem.op, (problem.op.split("_")[0],)):
            for group, expressions in FAMILIES[family].instances(BY_NAME[problem.dtype]).items():
                mode = group.split(" of ")[-1].split(" ")[0] if " of " in group else ""
                if not mode or mode in words:
                    found |= {(family, problem.dtype, expression): None for expression in expressions}
    return list(found)


def precompile(wanted: Sequence[Unit], capability: int, jobs: int = 0) -> int:
    """Compile on every core, or on `jobs`; return how many could not be, which the run will say in its own words."""
    wanted = [unit for unit in wanted if FAMILIES[unit[0]].only in ("", f"sm_{capability}a")]
    workers = min(len(wanted), jobs or os.cpu_count() or 1)
    if not wanted:
        return 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_compile, wanted, [capability] * len(wanted), chunksize=4))


def _compile(unit: Unit, capability: int) -> bool:
    """Whether it failed."""
    family, dtype, expression = unit
    try:
        target = FAMILIES[family].only or nvrtc_target(capability)
        compile_kernel(FAMILIES[family], BY_NAME[dtype], expression, target)
    except Exception:
        return True
    return False
