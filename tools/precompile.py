"""Fill the kernel cache: compile what would be compiled at first use, on all cores, for one GPU or several; needs none.

    python tools/precompile.py                            everything, for the GPU of this machine
    python tools/precompile.py softmax loss --dtype bfloat16 --arch 90 100

The cache is the user's (``DNNPRIMS_CACHE_DIR``), and an entry serves whoever has the same version of the library and of
NVRTC, so that the directory can be put into an image of a container.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmark.precompile import Unit, precompile
from dnnprims.dtypes import BY_NAME, FLOATS
from dnnprims.ops import FAMILIES
from dnnprims.runtime.cache import cache_path, cache_problem


def chosen(families: Sequence[str], dtypes: Sequence[str]) -> list[Unit]:
    """Every instantiation of some families, or of all, in some dtypes, or in all."""
    return [
        (family, dtype, expression)
        for family in families or FAMILIES
        for dtype in dtypes or [row.name for row in FLOATS]
        for expressions in FAMILIES[family].instances(BY_NAME[dtype]).values()
        for expression in expressions
    ]


def own_architecture() -> int:
    """That of the current GPU."""
    from dnnprims.runtime.cuda import load_cupy

    return int(load_cupy().cuda.Device().compute_capability)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; 1 when something could not be, or cannot be kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; all where left out")
    parser.add_argument("--dtype", nargs="+", choices=[row.name for row in FLOATS], default=[])
    parser.add_argument(
        "--arch", nargs="+", type=int, help="compute capabilities times ten, such as 90; else this GPU's"
    )
    parser.add_argument("--jobs", type=int, default=0, help="processes; as many as there are cores where left out")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.families if name not in FAMILIES]:
        parser.error(f"no family {', '.join(unknown)}: there are {', '.join(FAMILIES)}")
    if problem := cache_problem(cache_path()):
        print(f"the kernel cache {cache_path()} {problem}", file=sys.stderr)
        return 1
    wanted, failed, start = chosen(given.families, given.dtype), 0, time.perf_counter()
    for arch in given.arch or [own_architecture()]:
        failed += precompile(wanted, arch, given.jobs)
        print(f"sm_{arch}: {len(wanted)} kernels, {time.perf_counter() - start:.0f} s, in {cache_path()}", flush=True)
    if failed:
        print(f"{failed} could not be compiled", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
