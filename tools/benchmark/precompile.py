"""Compile what a run will need, on all cores, before the GPU is measured: the kernel cache then has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from dnnprims.conformance.cases import Problem
from dnnprims.dtypes import BY_NAME
from dnnprims.ops import FAMILIES
from dnnprims.runtime.compiler import compile_group, nvrtc_target

#: Primitive -> kernel families that it may launch, where these are not those of its name's first word.
_FAMILIES = {
    "reduce_tensor": ("reduction",),
    "sgd_update": ("sgd",),
    "adamw_update": ("adam",),
    "training_step": ("fc", "loss", "sgd", "gemm"),
    "fc_forward": ("fc", "gemm"),
    "fc_backward": ("fc", "gemm"),
    "fc_backward_bias": ("fc",),
}

Unit = tuple[str, str, str]


def units(lines: Iterable[str]) -> list[Unit]:
    """(family, dtype, group) of the kernels that the cases of some lines may want; other modes' groups are left out."""
    found: dict[Unit, None] = {}
    for line in lines:
        problem = Problem.parse(line, dtype="float32")
        words = {value for _, value in problem.settings} | {"relu", "identity"}
        for family in _FAMILIES.get(problem.op, (problem.op.split("_")[0],)):
            for group in FAMILIES[family].instances(BY_NAME[problem.dtype]):
                mode = group.split(" of ")[-1].split(" ")[0] if " of " in group else ""
                if not mode or mode in words:
                    found[family, problem.dtype, group] = None
    return list(found)


def precompile(wanted: Sequence[Unit], capability: int) -> int:
    """Compile on every core; return how many could not be, which the run will say in its own words."""
    workers = min(len(wanted), os.cpu_count() or 1)
    if not wanted:
        return 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_compile, wanted, [capability] * len(wanted), chunksize=4))


def _compile(unit: Unit, capability: int) -> bool:
    """Whether it failed."""
    family, dtype, group = unit
    try:
        compile_group(FAMILIES[family], BY_NAME[dtype], group, FAMILIES[family].only or nvrtc_target(capability))
    except Exception:
        return True
    return False
