"""Run conformance cases of some families up to the first that fails.

Exit code: 0 all passed, 1 one failed, 3 a text does not compile.

``PYTHONPATH=<project> python tools/mutation/cases.py --backend emulator --dtype float32 --family prelu [--order 1]``
"""

from __future__ import annotations

import argparse
import os
import sys


def main() -> int:
    """Run the cases; print the line that replays the first failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="emulator")
    parser.add_argument("--family", action="append", required=True)
    parser.add_argument("--dtype", action="append", required=True)
    parser.add_argument("--count", type=int, default=2, help="random cases for each family and dtype")
    parser.add_argument("--order", type=int, default=0, help="of blocks, warps and lanes on the emulator")
    given = parser.parse_args()
    os.environ["DNNPRIMS_EMULATOR_SEED"] = str(given.order)
    import dnnprims
    from dnnprims.conformance import runner

    with dnnprims.create_handle(given.backend) as handle:
        for family, problem in runner.select(given.family, given.dtype, 0, given.count):
            try:
                outcome = runner.run_case(handle, family, problem)
            except dnnprims.CompileError as error:
                print(f"CompileError: {error.log[:400]}")
                return 3
            if outcome.complaint.startswith("CompileError"):
                print(outcome.complaint[:400])
                return 3
            if not outcome.passed:
                print(f"{problem}: {outcome.complaint[:200]}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
