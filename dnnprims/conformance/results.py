"""Outcomes in numbers: error over bound for each primitive and dtype, failures with the line that replays each.

A record is what JSON can hold: one run is ``{"schema": 1, "subject", "seed", "cases", "seconds", "environment",
"groups", "failures", ...}``, and a report file ``{"schema": 1, "runs": [run, ...]}``. Fields are added, not changed,
within a schema.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import dnnprims

from .cases import DTYPES
from .runner import Outcome
from .subjects import NOT_OFFERED

SCHEMA = 1

#: Edges of the histogram's bins: half powers of two from 2^-16 to 2^4, all below and all above in bins of their own.
EDGES = np.exp2(np.arange(-32, 9) / 2.0)


class Tally:
    """Collects outcomes as they come: figures of each element are kept in float32, nothing else grows."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], dict[str, Any]] = {}
        self.failures: list[Outcome] = []
        self.cases = 0

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        key = (outcome.problem.op, outcome.problem.dtype)
        fresh: dict[str, Any] = {"cases": 0, "failed": 0, "declined": {}, "ratios": []}
        group = self._groups.setdefault(key, fresh)
        self.cases += 1
        group["cases"] += 1
        if outcome.declined:
            group["declined"][outcome.declined] = group["declined"].get(outcome.declined, 0) + 1
        if not outcome.passed:
            group["failed"] += 1
            self.failures.append(outcome)
        group["ratios"].append(outcome.ratios.astype(np.float32))

    def groups(self) -> list[dict[str, Any]]:
        """A record for each primitive and dtype, in the order of the table of primitives."""
        order = {op.__name__: i for i, op in enumerate(dnnprims.PRIMITIVES)}
        keys = sorted(self._groups, key=lambda key: (order.get(key[0], len(order)), DTYPES.index(key[1])))
        return [_digest(*key, self._groups[key]) for key in keys]

    def declined(self) -> int:
        """Cases that the subject did not take."""
        return sum(sum(group["declined"].values()) for group in self._groups.values())


def _digest(op: str, dtype: str, group: dict[str, Any]) -> dict[str, Any]:
    ratios = np.concatenate([np.zeros(0, np.float32), *group["ratios"]])
    finite = np.where(np.isfinite(ratios), ratios, np.float32(np.finfo(np.float32).max))
    quantiles = (
        [float(np.quantile(finite, q, method="nearest")) for q in (0.5, 0.99, 1.0)] if ratios.size else [None] * 3
    )
    bins = np.bincount(np.searchsorted(EDGES, finite, side="left"), minlength=len(EDGES) + 1)
    return {
        "op": op,
        "dtype": dtype,
        "cases": group["cases"],
        "failed": group["failed"],
        "declined": group["declined"],
        "elements": int(ratios.size),
        **dict(zip(("median", "p99", "max"), quantiles, strict=True)),
        "exact": int((ratios == 0).sum()),
        "histogram": [int(n) for n in bins],
    }


def record(
    tally: Tally,
    *,
    subject: str,
    against: str,
    seed: int,
    cases: int,
    seconds: float,
    environment: dict[str, str],
    command: str,
) -> dict[str, Any]:
    """One run as JSON can hold it; `cases` is how many were asked for, which tells a run that was broken off."""
    return {
        "schema": SCHEMA,
        "subject": subject,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "seed": seed,
        "asked": cases,
        "cases": tally.cases,
        "seconds": round(seconds, 1),
        "environment": environment,
        "groups": tally.groups(),
        "failures": [
            {"replay": replay_line(str(one.problem), subject, against), "complaint": one.complaint}
            for one in tally.failures
        ],
    }


def replay_line(problem: str, subject: str, against: str = "") -> str:
    """The command that runs a case again."""
    if against:
        return f'python -m dnnprims verify --against {shlex.quote(against)} --case "{problem}"'
    return f'python -m dnnprims replay --backend {subject} "{problem}"'


def describe_environment(subject: str, against: str = "") -> dict[str, str]:
    """Versions and hardware that results may depend on."""
    facts = {
        "dnnprims": dnnprims.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
    }
    if subject == "cuda" and not against:
        facts |= _gpu()
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} threads"


def _gpu() -> dict[str, str]:
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"]
    versions = {"driver for CUDA": runtime.driverGetVersion(), "NVRTC": cupy.cuda.nvrtc.getVersion()}
    major, minor = divmod(versions["driver for CUDA"], 1000)
    return {
        "GPU": name.decode() if isinstance(name, bytes) else str(name),
        "driver": f"CUDA {major}.{minor // 10}",
        "NVRTC": ".".join(map(str, versions["NVRTC"])),
        "CuPy": cupy.__version__,
    }


def failed(runs: Iterable[dict[str, Any]]) -> int:
    """Failures of all runs."""
    return sum(len(run["failures"]) for run in runs)


def write(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write runs as a report file."""
    path.write_text(json.dumps({"schema": SCHEMA, "runs": list(runs)}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Runs of a report file.

    Raises
    ------
    BadParamError
        It cannot be read, or is no report of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return list(content["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem, rule = f"cannot be read ({type(error).__name__}: {error})", f"a JSON report of schema {SCHEMA}"
        raise dnnprims.BadParamError("verify", problem, param="--merge", got=str(path), expected=rule) from error


def offered(group: dict[str, Any]) -> bool:
    """Whether the subject has the primitive at all."""
    return bool(group["declined"].get(NOT_OFFERED, 0) < group["cases"])
