"""What is kept of each case: one JSON line, its line of progress, and the summary of many."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .case import Case, name_of

#: Families whose ceiling is the matrix unit's rate; all others' is the copy rate.
BY_FLOPS = (
    *("fc_forward", "fc_backward", "training_step"),
    *("conv_forward", "conv_backward_data", "conv_backward_filter"),
)


@dataclass(frozen=True)
class Sample:
    """Times of one contestant, in milliseconds, and the relative error of its results."""

    ms: float
    p10: float
    p90: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float], error: float) -> Sample:
        """Median and tenths."""
        tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
        return cls(statistics.median(values), tenths[0], tenths[-1], error)

    def line(self) -> dict[str, float]:
        """For JSON."""
        return {name: significant(getattr(self, name)) for name in ("ms", "p10", "p90", "error")}


@dataclass
class Record:
    """A case that was measured, or a complaint."""

    name: str
    line: str
    failed: str = ""
    op: str = ""
    dtype: str = ""
    math: str = "ieee"
    way: str = ""
    variant: str = ""
    nbytes: int = 0
    flops: int = 0
    ours: Sample | None = None
    peers: dict[str, Sample] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    over_bound: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, case: Case, way: str, samples: Mapping[str, Sample], limits: Mapping[str, float]) -> Record:
        """The record of a case's samples."""
        made = cls(name_of(case.problem), str(case.problem), op=case.op, dtype=case.dtype, math=case.math, way=way)
        made.nbytes, made.flops, made.ours = case.nbytes, case.flops, samples["ours"]
        made.peers = {name: sample for name, sample in samples.items() if name != "ours"}
        made.shares = _shares(case, samples["ours"].ms * 1e-3, limits)
        return made

    def ratio(self, peer: str) -> float:
        """How many times faster than a peer."""
        assert self.ours is not None
        return self.peers[peer].ms / self.ours.ms

    def as_json(self) -> dict[str, Any]:
        """One line of the results."""
        if self.ours is None:
            return {"name": self.name, "line": self.line, "failed": self.failed}
        return {
            "name": self.name,
            "line": self.line,
            "op": self.op,
            "dtype": self.dtype,
            "math": self.math,
            "way": self.way,
            "variant": self.variant,
            "bytes": self.nbytes,
            "flops": self.flops,
            **self.ours.line(),
            "over_bound": significant(self.over_bound),
            **{name: significant(value) for name, value in self.shares.items()},
            "peers": {
                name: {**sample.line(), "times faster": significant(self.ratio(name))}
                for name, sample in self.peers.items()
            },
        }

    def __str__(self) -> str:
        if self.ours is None:
            return f"{self.name}  FAILED  {self.failed}"
        share = "  ".join(f"{value:.3g} {name}" for name, value in self.shares.items() if name.startswith(("T", "of_")))
        rivals = "  ".join(f"{name} {self.ratio(name):.2f}x" for name in self.peers)
        beyond = f"  BEYOND ITS BOUND by {self.over_bound:.3g}" if self.over_bound > 1.0 else ""
        return f"{self.name}  {self.variant}  {self.ours.ms:.4g} ms  {share}  {rivals}{beyond}"


def _shares(case: Case, seconds: float, limits: Mapping[str, float]) -> dict[str, float]:
    """Rates, and shares of the measured ceilings."""
    top = limits.get("tf32" if case.math == "tf32" else case.dtype, math.inf)
    least = max(case.nbytes / limits.get("copy", math.inf), case.flops / top)
    shares = {"TBps": case.nbytes / seconds * 1e-12}
    if case.op in BY_FLOPS:
        shares = {"TFLOPs": case.flops / seconds * 1e-12, "of_gemm": case.flops / seconds / top}
    else:
        shares["of_copy"] = case.nbytes / seconds / limits.get("copy", math.inf)
    return {**shares, "of_roof": least / seconds}


def significant(value: float, digits: int = 5) -> float:
    """A number as it is written down."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


def geometric_mean(values: Sequence[float]) -> float:
    """Mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(records: Iterable[Record], families: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: for each primitive and dtype, then for each family, the ratios to each peer.

    `families` is primitive -> family.
    """
    measured = [record for record in records if record.ours is not None]
    yield f"{'primitive':24}{'dtype':16}{'cases':>6}  {'of the roof':14}times faster: geometric mean (least, most)"
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in measured:
        label = f"{record.dtype} (tf32)" if record.math == "tf32" else record.dtype
        groups.setdefault((record.op, label), []).append(record)
    for record in measured:
        groups.setdefault((f"all of {families[record.op]}", ""), []).append(record)
    for (op, dtype), members in groups.items():
        roofs = [record.shares["of_roof"] for record in members]
        yield f"{op:24}{dtype:16}{len(members):6}  {min(roofs):.2f} to {max(roofs):<6.2f}{_means(members)}"


def _means(members: Sequence[Record]) -> str:
    """Geometric mean, least and most of the ratios to each peer."""
    text = []
    for peer in dict.fromkeys(name for record in members for name in record.peers):
        ratios = [record.ratio(peer) for record in members if peer in record.peers]
        text.append(f"{peer} {geometric_mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
    return "; ".join(text)
