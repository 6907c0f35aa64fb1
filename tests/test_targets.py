"""Sets of shapes, result files, and the targets that results are held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench
import pytest
import targets

from benchmark import results
from benchmark.case import name_of
from benchmark.families import load
from benchmark.records import Record, Sample, geometric_mean
from dnnprims.conformance.cases import Problem

ROOT = Path(__file__).resolve().parent.parent


def test_shapes_say_where_they_are_from_and_can_be_made() -> None:
    """Every set names its source, and each line that it stands for is a primitive that is measured."""
    makers = {op for family in load().values() for op in family.makers}
    for path in sorted((ROOT / "benchmarks" / "shapes").glob("*.json")):
        assert len(bench.read_shapes(path.stem)["source"]) > 20
        lines = list(bench.lines_of([path.stem], list(load().values()), bench.DTYPES))
        assert {Problem.parse(line).op for line in lines} <= makers
        assert len({name_of(Problem.parse(line)) for line in lines}) == len(set(lines))
    assert sum(1 for _ in bench.lines_of(["deepbench"], [load()["fc"]], ["float32"])) == 4 * 166


def _record(line: str, ms: float, share: float, **peers: float) -> dict[str, Any]:
    problem = Problem.parse(line, dtype="float32")
    samples = {name: Sample(value, value, value, 0.0) for name, value in peers.items()}
    record = Record(name_of(problem), line, op=problem.op, dtype=problem.dtype, nbytes=10**9, flops=1)
    record.ours, record.peers, record.shares = Sample(ms, ms, ms, 0.0), samples, {"of_copy": share, "of_roof": share}
    return record.as_json()


def test_targets_are_judged(tmp_path: Path) -> None:
    """The worst case decides, or the mean; one list is held against another; what is missing is said to be."""
    lines = [
        {"name": "environment", "gpu": "x"},
        _record("activation_forward mode=relu shape=9 dtype=float32", 1.0, 0.99, torch=1.1),
        _record("activation_forward mode=gelu shape=9 dtype=float32", 1.0, 0.80, torch=0.9),
        _record("sgd_update list=1000x10000 dtype=float32", 1.5, 0.5, **{"torch.fused": 3.0}),
        _record("sgd_update list=1x10000000 dtype=float32", 1.0, 0.5),
        {"name": "host.fc_forward(out=)", "us": 6.0},
        {"name": "host.torch linear + relu", "us": 12.0},
        {"name": "first_use.softmax_forward.float32.empty", "ms": 700.0, "cache": "empty"},
        {"name": "maxout_forward.x", "line": "maxout_forward", "failed": "wrong"},
    ]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = results.read([path])
    wanted = json.loads(targets.TARGETS.read_text(encoding="utf-8"))["lines"]
    verdicts = {target["work"]: targets.judge(target, found) for target in wanted}
    shares = verdicts["activations, every mode, both ways, past the L2"]
    assert (shares.measured, shares.word, shares.count) == (0.80, "missed", 2)
    assert shares.decided_by == "activation_forward.gelu.9.float32"
    assert verdicts["activations at every size from 1 element"].measured == pytest.approx(0.9)
    lists = verdicts["1,000 tensors of 10,000 elements beside one of 10^7"]
    assert (lists.measured, lists.word) == (1.5, "missed")
    assert verdicts["host: fc forward, planned"].word == "met"
    assert verdicts["first use of a family in a new dtype, empty cache"].word == "missed"
    assert verdicts["maxout of 4, forward and backward"].word == "not measured"
    table = "\n".join(targets.rows(list(verdicts.values()), missed=True))
    assert "| 0.8 | missed | activation_forward.gelu.9.float32 | 1 of 2 |" in table


def test_every_target_can_be_measured() -> None:
    """Each line of the targets selects cases of the sets of shapes, with the peers that it names."""
    sets = list(bench.lines_of(["targets", "deepbench"], list(load().values()), bench.DTYPES))
    found, fused = results.Results(), ("torch._addmm_activation", "torch.cudnn_convolution_add_relu")
    for line in sets:
        record = _record(line, 1.0, 1.0, torch=1.0, **dict.fromkeys(fused, 1.0))
        found.cases[record["name"]] = {**record, "math": Problem.parse(line).word("math", "ieee")}
    for target in json.loads(targets.TARGETS.read_text(encoding="utf-8"))["lines"]:
        if target["measure"] not in ("host", "first_use", "example"):
            assert targets.judge(target, found).count > 0, target["work"]


def test_first_results_are_still_read() -> None:
    """Lines that spelled peers out in their keys become what later ones are."""
    old = {"name": "fc_forward.relu.8x8x8.float32.tf32", "ms": 1.0, "TFLOPs": 2.0, "torch ms": 3.0}
    found = results.Results()
    results._add(found, {**old, "times faster than torch": 3.0})
    line = found.cases[old["name"]]
    assert (line["op"], line["dtype"], line["math"]) == ("fc_forward", "float32", "tf32")
    assert results.ratio(line) == 3.0
    assert results.ratio(line, ["cupy"]) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
