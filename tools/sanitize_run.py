"""Runs cases for compute-sanitizer to watch: `sanitize.py` starts this under it, once for each tool and share.

Every array and every workspace is an allocation of its own, of its very size: CuPy's pool would hide where one ends.
What was launched is read from the plans and written down, with the cases that failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exact_placing import exact_place
from sanitize_cases import Case, with_products

import dnnprims
from dnnprims import context
from dnnprims.conformance import runner
from dnnprims.runtime.launch import KernelStep

#: One fault for each tool: a kernel, its threads, and bytes of its array of 32 floats that are set before.
PLANTED = {
    "memcheck": ("y[threadIdx.x + 1] = 1.0f;", 32, 128),
    "initcheck": ("y[threadIdx.x] += 1.0f;", 32, 0),
    "racecheck": (
        "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; y[threadIdx.x & 31] = s[63 - threadIdx.x];", 64, 128,
    ),
    "synccheck": ("if (threadIdx.x < 20) __syncwarp(0xffffffffu); y[threadIdx.x] = 1.0f;", 32, 128),
}  # fmt: skip


def run(cases: Sequence[Case], backend: str) -> dict[str, Any]:
    """Run each case, with fresh plans and workspaces, and tell what was launched and what failed."""
    launched: set[tuple[str, str]] = set()
    failed: list[dict[str, Any]] = []
    start = time.perf_counter()
    with dnnprims.create_handle(backend) as handle:
        profile = handle.profile
        for k, case in enumerate(cases):
            print(f"{k + 1} of {len(cases)} {case.line}", flush=True)
            handle.profile = with_products(profile, case.own_products)
            family, problem = runner.named(case.line)
            complaint = runner.run_case(handle, family, problem).complaint
            if complaint:
                failed.append({"case": case.line, "own_products": case.own_products, "complaint": complaint})
                print(f"  {complaint}", flush=True)
            steps = [step for plan in handle._plans.values() for step in plan.spec.steps]
            launched |= {(s.dtype.name, s.expression) for s in steps if isinstance(s, KernelStep)}
            handle._plans.clear()
            handle._spaces.clear()
    seconds = round(time.perf_counter() - start, 1)
    return {"cases": len(cases), "failed": failed, "launched": sorted(map(list, launched)), "seconds": seconds}


def plant(tool: str) -> None:
    """Launch a kernel that the tool must complain about."""
    import cupy

    text, threads, set_before = PLANTED[tool]
    memory = cupy.cuda.alloc(128)
    if set_before:
        memory.memset(0, set_before)
    y = cupy.ndarray((32,), cupy.float32, memory)
    kernel = cupy.RawKernel(f'extern "C" __global__ void planted(float* y) {{ {text} }}', "planted")
    try:
        kernel((1,), (threads,), (y,))
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        pass  # the sanitizer ends the context where it found something


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases of a file; 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, help="JSON, [line, own products] each")
    parser.add_argument("--out", type=Path, help="where to write what was launched")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "emulator"))
    parser.add_argument("--planted", choices=tuple(PLANTED), help="show instead that the tool finds a fault")
    given = parser.parse_args(argv)
    if given.backend == "cuda":
        import cupy

        cupy.cuda.set_allocator(None)
        cupy.cuda.set_pinned_memory_allocator(None)
    if given.planted:
        plant(given.planted)
        return 0
    context.WORKSPACE_START_BYTES = 1
    runner.place = exact_place
    found = run([Case(*item) for item in json.loads(given.cases.read_text())], given.backend)
    given.out.write_text(json.dumps(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
