"""First use: time of the first call of a family in a dtype, with an empty kernel cache and with a warm one.

Each is a process of its own, so that nothing is loaded yet; the GPU has been used before, by something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import as_dtype

#: Primitive -> its arguments but the handle, given x of shape (64, 64); what else is measured comes along with these.
CALLS = ("activation_forward", "softmax_forward", "maxout_forward", "reduce_tensor", "fc_forward", "loss_forward")


def first_use_records(
    backend: str, dtypes: Sequence[str], device: int = 0, ops: Sequence[str] = CALLS
) -> Iterator[dict[str, Any]]:
    """Milliseconds of each first call, cold and warm; the two passes share a cache that begins empty."""
    tools = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as cache:
        os.chmod(cache, 0o700)
        environment = {**os.environ, "DNNPRIMS_CACHE_DIR": cache}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH", "")]))
        for state in ("empty", "warm"):
            command = [
                sys.executable,
                "-m",
                "benchmark.first_use",
                backend,
                str(device),
                ",".join(dtypes),
                ",".join(ops),
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                yield {"name": f"first_use.{state}", "failed": done.stderr.strip()[-500:]}
                return
            for name, ms in json.loads(done.stdout).items():
                yield {"name": f"first_use.{name}.{state}", "ms": ms, "cache": state}


def measure(backend: str, device: int, dtypes: Sequence[str], ops: Sequence[str]) -> dict[str, float]:
    """Milliseconds of the first call of each primitive and dtype in this process."""
    import numpy as np

    handle = dp.create_handle(backend, device=device)
    rng = np.random.default_rng(0)
    times = {}
    for dtype in dtypes:
        x, w = (handle.asarray(as_dtype(rng.standard_normal((64, 64)), dtype)) for _ in range(2))
        labels = handle.asarray(np.zeros(64, np.int64))
        handle.synchronize()
        calls = {
            "activation_forward": lambda x=x: dp.activation_forward(handle, "gelu", x),
            "softmax_forward": lambda x=x: dp.softmax_forward(handle, x),
            "maxout_forward": lambda x=x: dp.maxout_forward(handle, x, 4),
            "reduce_tensor": lambda x=x: dp.reduce_tensor(handle, x, "sum", axis=0),
            "fc_forward": lambda x=x, w=w: dp.fc_forward(handle, x, w, activation="gelu"),
            "loss_forward": lambda x=x, t=labels: dp.loss_forward(handle, "cross_entropy", x, t),
        }
        for op in ops:
            start = time.perf_counter()
            calls[op]()
            handle.synchronize()
            times[f"{op}.{dtype}"] = round((time.perf_counter() - start) * 1e3, 3)
    return times


if __name__ == "__main__":
    _, given, number, names, wanted = sys.argv
    print(json.dumps(measure(given, int(number), names.split(","), wanted.split(","))))
