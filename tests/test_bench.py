"""The instrument: every kind of case, check, peer, record, table and picture, in little and without a GPU."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pytest
from conftest import HAS_COMPILER, HAS_GPU
from precompile import main as fill_cache

import dnnprims as dp
from benchmark import check
from benchmark.arrays import BLOCK, Arrays
from benchmark.case import Case, Contestant, Part
from benchmark.families import convolution_parts, load
from benchmark.precompile import units
from benchmark.run import Session
from dnnprims.conformance.cases import Problem
from dnnprims.dtypes import BY_NAME
from dnnprims.ops import FAMILIES
from dnnprims.runtime import compiler

ROOT = Path(__file__).resolve().parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code of the command, and the lines that it wrote."""
    path = tmp_path / "results.jsonl"
    code = bench.main([*arguments, "--smoke", "--json", str(path)])
    return code, [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def session() -> Session:
    """A run on NumPy without peers; what it tells is kept."""
    told: list[str] = []
    made = Session.open("numpy", load(), [], told.append)
    made.words = told  # type: ignore[attr-defined]
    return made


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_every_kind_of_case_is_checked_and_timed(tmp_path: Path) -> None:
    """All families and types on NumPy, beside torch where it is installed, with a picture."""
    plot = tmp_path / "roof.png"
    code, lines = run(tmp_path, "--backend", "numpy", "--peers", "torch,cupy", "--plot", str(plot))
    assert code == 0
    assert [line for line in lines if "failed" in line] == []
    cases = {line["op"]: line for line in lines if "op" in line}
    assert set(cases) == {op for family in load().values() for op in family.makers}
    for line in cases.values():
        assert line["ms"] > 0
        assert line["bytes"] > 0
        assert line["error"] < 0.05
        assert line["over_bound"] <= 1.0
    assert all(line["over_bound"] > 0.0 for op, line in cases.items() if op in ("fc_forward", "adamw_update"))
    assert {line["name"] for line in lines if line["name"].startswith("host.")} >= {"host.plan(x, out=y)"}
    assert any(line["name"].startswith("first_use.") and line["cache"] == "warm" for line in lines)
    assert any(line["name"].startswith("resnet50.") and line["images/s"] > 0 for line in lines)
    assert plot.stat().st_size > 10_000
    if HAS_TORCH:
        assert all(any(peer.startswith("torch") for peer in line["peers"]) for line in cases.values())


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_kernels_are_what_is_timed(tmp_path: Path) -> None:
    """The emulator runs the CUDA texts under the same instrument."""
    code, lines = run(tmp_path, "activation", "fc", "--dtype", "float32", "--backend", "emulator", "--peers", "")
    assert code == 0
    assert {line["op"] for line in lines if "op" in line} >= {"activation_forward", "fc_backward"}
    facts = lines[0]
    assert facts["name"] == "environment"
    assert facts["dnnprims"] == dp.__version__


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.filterwarnings("ignore")
def test_events_and_graphs_on_the_gpu(tmp_path: Path) -> None:
    """The same on CUDA, where small cases are captured in graphs, ours and the peers'."""
    code, lines = run(tmp_path, "--backend", "cuda", "--peers", "torch,cupy")
    assert [line for line in lines if "failed" in line] == []
    assert code == 0
    assert {line["way"] for line in lines if "way" in line} >= {"repeat", "graph", "wall"}
    if HAS_TORCH:
        assert any("torch" in line["peers"] for line in lines if line.get("way") == "repeat")


def test_units_cover_what_a_line_may_launch() -> None:
    """The modes of the lines and no others, with what goes with them."""
    found = units(["activation_forward mode=gelu dtype=float16", "fc_forward activation=tanh dtype=float32"])
    assert any(family == "activation" and "Gelu<float16>" in kernel for family, _, kernel in found)
    assert not any("Swish" in kernel for _, _, kernel in found)
    assert ("gemm", "float32", "gemm_tiled<float>") in found
    every = bench.lines_of(["targets"], list(load().values()), bench.DTYPES)
    assert {dtype for _, dtype, _ in units(every)} == set(bench.DTYPES)


def test_the_cache_can_be_filled_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry for each kernel, which the first use then finds; a family that is not there is refused."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install dnnprims[compile]")
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    assert fill_cache(["gemm", "--dtype", "float32", "--arch", "90", "--jobs", "1"]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(compiler, "compile_source", None)
    compiler.compile_kernel(FAMILIES["gemm"], BY_NAME["float32"], "gemm_tiled<float>", "sm_90")
    with pytest.raises(SystemExit):
        fill_cache(["gemms"])


def test_a_wrong_result_fails_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A primitive that leaves its last element unwritten is reported; the other cases are still measured."""
    right = dp.activation_forward

    def wrong(handle: dp.Handle, activation: Any, x: Any, *, out: Any) -> Any:
        right(handle, activation, x[:-1], out=out[:-1])
        return out

    monkeypatch.setattr(dp, "activation_forward", wrong)
    case = "activation_forward mode=gelu shape=1000 dtype=float32"
    other = "softmax_forward shape=4x9 dtype=float32"
    code, lines = run(tmp_path, "--case", case, "--case", other, "--backend", "numpy", "--peers", "")
    assert code == 1
    failed, measured = lines[-2:]
    assert failed["name"] == "activation_forward.gelu.1000.float32"
    assert "failed" in failed
    assert measured["ms"] > 0


def test_a_result_beyond_its_bound_is_timed_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a few ULP on large arrays alone, which no small problem shows."""
    right = dp.activation_forward

    def coarse(handle: dp.Handle, activation: Any, x: Any, *, out: Any) -> Any:
        right(handle, activation, x, out=out)
        if x.size > 100_000:
            out *= np.float32(1.000001)
        return out

    monkeypatch.setattr(dp, "activation_forward", coarse)
    case = "activation_forward mode=gelu shape=200000 dtype=float32"
    code, lines = run(tmp_path, "--case", case, "--backend", "numpy", "--peers", "")
    assert code == 1
    assert lines[-1]["ms"] > 0
    assert lines[-1]["over_bound"] > 2.0


def test_what_cannot_be_made_fails_in_words(session: Session) -> None:
    """Out of memory, an unknown primitive: a complaint, no exception."""
    assert "no family" in session.run("conv_transpose_forward shape=1").failed

    def starve(*_: Any) -> Case:
        raise MemoryError("no memory left")

    session.families["maxout"].makers["maxout_forward"] = starve  # type: ignore[index]
    try:
        record = session.run("maxout_forward shape=2x2 pool=2")
    finally:
        from benchmark.families import maxout

        session.families["maxout"].makers["maxout_forward"] = maxout.make_forward  # type: ignore[index]
    assert record.failed == "MemoryError: no memory left"


class Rivals:
    """A peer that does what it is told."""

    name = "rival"

    def __init__(self, call: Any) -> None:
        self.call = call

    def contestants(self, case: Case) -> list[Contestant]:
        """One, of the call given."""
        return [Contestant("rival", lambda: self.call(case), ("out",))]


def test_peers_are_checked_and_told_of_once(session: Session) -> None:
    """A peer that does other work, or fails, is left out and named once; one that does the same is timed."""
    line = "activation_forward mode=relu shape=100 dtype=float32"
    session.peers = [Rivals(lambda case: np.maximum(case.operands["x"], 0.0))]
    assert session.run(line).peers["rival"].ms > 0
    session.peers = [Rivals(lambda case: np.abs(case.operands["x"]))]
    assert session.run(line).peers == {}
    session.run(line)
    assert len(session.words) == 1  # type: ignore[attr-defined]
    assert "does other work" in session.words[0]  # type: ignore[attr-defined]
    session.peers = [Rivals(lambda case: 1 / 0)]
    record = session.run(line)
    assert record.ours is not None
    assert record.peers == {}
    assert "ZeroDivisionError" in session.words[-1]  # type: ignore[attr-defined]


def test_what_counts_as_an_error() -> None:
    """Norm over norm; a NaN in a number's place is infinite, a NaN that is due is none."""
    ideal = np.array([3.0, 4.0])
    assert check.relative_error(np.array([3.0, 4.5]), ideal) == pytest.approx(0.1)
    assert check.relative_error(np.array([3.0, np.nan]), ideal) == math.inf
    assert check.relative_error(np.array([np.nan, 4.0]), np.array([np.nan, 4.0])) == 0.0
    assert check.relative_error(np.zeros(3), ideal) == math.inf
    assert check.relative_error(np.zeros(2, np.float16), np.full(2, 1e-9)) == 0.0  # below its smallest step


def test_arrays_are_the_same_everywhere_and_reach_any_size(numpy_handle: dp.Handle) -> None:
    """Past the block the numbers repeat, in other places of a row; a tag names an array."""
    arrays = Arrays(numpy_handle, 1 << 30)
    x = arrays.normal((3, BLOCK // 2), "bfloat16", tag="x")
    flat = x.reshape(-1)
    assert np.array_equal(flat[BLOCK:], flat[: flat.size - BLOCK])
    assert arrays.normal((3, BLOCK // 2), "bfloat16", tag="x") is x
    assert not np.array_equal(arrays.normal(64, "float32", tag="y"), arrays.normal(64, "float32", tag="z"))
    again = Arrays(numpy_handle, 0).normal(64, "float32", tag="y")
    assert np.array_equal(arrays.normal(64, "float32", tag="y"), again)


@pytest.mark.parametrize("words", [["conv"], ["--peers", "cudnn"], ["--shapes", "none"], ["--dtype", "float8"]])
def test_unknown_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A family, a peer, a set or a type that is not there."""
    with pytest.raises(SystemExit):
        bench.parse(words)
    assert f"no {'set ' if '--shapes' in words else ''}{words[-1]}" in capsys.readouterr().err


def test_shards_resume_and_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards share the cases out; a run resumes what its file lacks; no case begins after the time is up."""
    whole = bench.choose(bench.parse(["--smoke"]), set())[1]
    parts = [bench.choose(bench.parse(["--smoke", "--shard", f"{i}/3"]), set())[1] for i in range(3)]
    assert sorted(line for part in parts for line in part) == sorted(whole)
    assert bench.choose(bench.parse(["--smoke", "--shard", "1/3"]), set())[0] == []
    options = ("maxout", "--backend", "numpy", "--peers", "")
    _, lines = run(tmp_path, *options, "--budget-seconds", "1e-9")
    assert not any("ms" in line for line in lines)
    assert "time is up: 6 of 6" in capsys.readouterr().out
    _, lines = run(tmp_path, *options)
    measured = sum("ms" in line for line in lines)
    assert measured == 6
    _, lines = run(tmp_path, *options, "--resume")
    assert sum("ms" in line for line in lines) == measured


def test_parts_cover_both_ends(numpy_handle: dp.Handle) -> None:
    """A wrong first or last row of a matrix cannot pass."""
    arrays = Arrays(numpy_handle, 1 << 30)
    maker = load()["softmax"].makers["softmax_forward"]
    case = maker(Problem.parse("softmax_forward shape=100x7 dtype=float32"), arrays, numpy_handle)
    checker = check.Checker(arrays)
    pieces = checker.before(case, case.operands)
    for row in (0, 99):
        y = dp.softmax_forward(numpy_handle, case.operands["x"])
        assert checker.error(case, pieces, {"out": y}) < 1e-6
        y[row, 3] = 0.0
        assert checker.error(case, pieces, {"out": y}) > check.tolerance(case)
    assert all(isinstance(part, Part) for part in case.parts)


@pytest.mark.parametrize("most_summed", [0, 1 << 20])
def test_pieces_of_convolutions(session: Session, monkeypatch: pytest.MonkeyPatch, most_summed: int) -> None:
    """Corners of images and sums over everything are those of the whole call, whatever steps, layout and groups."""
    monkeypatch.setattr(convolution_parts, "MOST_SUMMED", most_summed)
    layers = (
        "shape=5x20x15x16 k=24 filter=3x3 stride=2 padding=1 layout=NHWC",
        "shape=2x3x17x20 k=40 filter=7x7 stride=2 padding=3 layout=NCHW",
        "shape=3x24x9x9 k=24 groups=24 filter=5x5 stride=1 padding=2 layout=NHWC",
        "shape=3x6x9x9 k=8 groups=2 filter=3x1 dilation=2 padding=1x0 layout=NCHW",
        "shape=3x10x15x15 k=24 filter=1x1 stride=2 padding=1 layout=NHWC",
    )
    for op in load()["convolution"].makers:
        for layer in layers:
            record = session.run(f"{op} {layer} bias=0")
            assert record.failed == ""
            assert record.ours is not None
            assert record.ours.error < 1e-6
            assert record.over_bound <= 1.0
