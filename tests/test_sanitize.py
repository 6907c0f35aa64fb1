"""The tool that runs kernels under compute-sanitizer: what it chooses, what it reads, and that it notices."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
import sanitize
import sanitize_cases
from conftest import HAS_COMPILER
from sanitize_cases import Candidate, Case
from sanitize_report import parse

from dnnprims.conformance.cases import DTYPES, Problem

# -- the choice ------------------------------------------------------------------------------------------------------

#: Kernels that no call launches: second opinions, which every shape has another variant before.
UNREACHED = {("softmax", "softmax_forward_plain"), ("softmax", "softmax_backward_plain")}
#: Kernels of channels that no block can hold: of 20 million elements and more.
UNREACHED |= {("batchnorm", "batchnorm_channel_moments"), ("batchnorm", "batchnorm_channel_sums")}
#: Kernels of float32 alone.
SINGLE = {("fc", "fc_transpose")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_is_covered(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corners and the extra lines alone launch every entry point there is, in every type."""
    monkeypatch.setattr(sanitize_cases, "RANDOM", 0)
    found = list(sanitize_cases.candidates([], [dtype], 0))
    for functors in (True, False):
        chosen = sanitize_cases.choose(found, functors)
        unreached = UNREACHED | (SINGLE if dtype != "float32" else set())
        assert sanitize_cases.entries() - sanitize_cases.covered(chosen)[dtype] == unreached
        features = {feature for one in found for feature in one.features(functors)}
        assert features == {feature for one in chosen for feature in one.features(functors)}
        assert len(chosen) < len(found) / 3


def test_choice_drops_what_adds_nothing() -> None:
    """The first case of a kernel stays, its twin goes, another layout stays."""
    lines = ("set_tensor shape=8", "set_tensor shape=16", "set_tensor shape=8 place=offset", "set_tensor shape=9")
    launches = frozenset({("tensor", "set_packed", ("float", "Relu<float>", "4"))})
    found = [Candidate(Case(f"{line} dtype=float32 seed=1"), "float32", launches) for line in lines]
    assert [one.case.line.split(" dtype")[0] for one in sanitize_cases.choose(found, True)] == [lines[0], *lines[2:]]
    other = Candidate(found[0].case, "float32", frozenset({("tensor", "set_packed", ("float", "Abs<float>", "4"))}))
    assert len(sanitize_cases.choose([found[0], other], True)) == 2
    assert len(sanitize_cases.choose([found[0], other], False)) == 1


def test_own_products_launch_the_kernel_of_this_library() -> None:
    """And cuBLASLt's are no kernels of this library."""
    problem = Problem.parse("fc_forward rows=33 k=8 n=40 dtype=float32 seed=1")
    family = sanitize_cases.FAMILIES["fc"]
    own, foreign = (sanitize_cases.launches_of(family, problem, way) for way in (True, False))
    assert ("gemm", "gemm_tiled", ("float",)) in own
    assert not any(entry == "gemm_tiled" for _, entry, _ in foreign)


def test_shares_hold_every_case_once() -> None:
    """Products of cuBLASLt's are in processes of their own, where its kernels are not watched."""
    cases = [Case(f"fc_forward rows={n} k=1 n=1", n % 2 == 0) for n in range(9)]
    cases += [Case(f"set_tensor shape={n}") for n in range(20)]
    split = sanitize.shares(cases, 5)
    assert sorted(case.line for share in split for case in share) == sorted(case.line for case in cases)
    for share in split:
        job = sanitize.Job("memcheck", share)
        assert {bool(job.watched)} == {case.line.startswith("fc_") and not case.own_products for case in share}


# -- what the sanitizer says -----------------------------------------------------------------------------------------

CLEAN = "========= COMPUTE-SANITIZER\n1 of 2 set_tensor shape=8\n========= ERROR SUMMARY: 0 errors\n"
INVALID = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void scale_packed<float, 4>(ScaleParams<float>)+0x110 in tensor.cu:131
=========     by thread (8,0,0) in block (0,0,0)
=========     Access at 0x7f2e6fe00084 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f2e6fe00000 of size 132 bytes
=========
========= Invalid __global__ write of size 4 bytes
=========     at void scale_packed<float, 4>(ScaleParams<float>)+0x110 in tensor.cu:131
=========
========= Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure" on CUDA API call.
=========
========= ERROR SUMMARY: 3 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Read access at reverse<float>+0x80 in planted.cu:9
=========     and Write access at reverse<float>+0x70 in planted.cu:8 [96 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
WARNING = RACE.replace("Error: Race", "Warning: Race").replace("(1 error, 0 warnings)", "(0 errors, 1 warning)")
NO_RACE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


@pytest.mark.parametrize("text", [CLEAN, NO_RACE])
def test_clean_reports(text: str) -> None:
    """A summary of nothing, and no finding."""
    assert parse(text).clean


@pytest.mark.parametrize(
    ("text", "errors", "kind"),
    [
        (INVALID, 3, "Invalid __global__ write of size N bytes"),
        (RACE, 1, "Error: Race reported between Read access"),
        (WARNING, 1, "Warning: Race reported between Read access"),
        ("", None, ""),
        ("========= COMPUTE-SANITIZER\nsegmentation fault\n", None, ""),
        ("========= Error: process didn't terminate successfully\n" + CLEAN, 0, "Error: process didn't terminate"),
    ],
)
def test_reports_that_are_not_clean(text: str, errors: int | None, kind: str) -> None:
    """Findings, a missing summary, and a process that was cut off."""
    found = parse(text)
    assert not found.clean
    assert found.errors == errors
    assert not kind or any(known.startswith(kind) for known in found.kinds)


def test_alike_findings_count_as_one_kind() -> None:
    """Numbers differ from thread to thread."""
    assert parse(INVALID).kinds["Invalid __global__ write of size N bytes"] == 2


# -- from the command line to the report -----------------------------------------------------------------------------

FAKE = """\
#!{python}
import subprocess, sys
given = sys.argv[1:]
if given == ["--version"]:
    print("NVIDIA (R) Compute Sanitizer\\nVersion 0.0")
    sys.exit()
tool = given[given.index("--tool") + 1]
program = given[given.index({python!r}):]
found = {errors} if "--planted" not in program else {planted}
code = 0 if "--planted" in program else subprocess.run(program).returncode
print("========= COMPUTE-SANITIZER")
print("========= Invalid __global__ read of size 4 bytes\\n=========     at planted" if found else "")
print(f"========= RACECHECK SUMMARY: {{found}} hazards displayed" if tool == "racecheck" else
      f"========= ERROR SUMMARY: {{found}} errors")
sys.exit(86 if found else code)
"""


def run(directory: Path, errors: int = 0, planted: int = 1, *more: str) -> tuple[int, dict]:
    """Run the tool on the emulator under a stand-in for the sanitizer; its exit code and its report."""
    stand_in, out = directory / "sanitizer", directory / "out.json"
    stand_in.write_text(textwrap.dedent(FAKE).format(python=sys.executable, errors=errors, planted=planted))
    stand_in.chmod(0o755)
    arguments = ["--backend", "emulator", "--sanitizer", str(stand_in), "--json", str(out), "--jobs", "2"]
    arguments += ["--family", "gradient", "--dtype", "float32", "--shards", "1", *more]
    return sanitize.main(arguments), json.loads(out.read_text())


needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")


@needs_compiler
def test_report_of_a_clean_run(tmp_path: Path) -> None:
    """Cases were run, kernels launched, nothing found but what was planted."""
    code, report = run(tmp_path, 0, 1, "--tool", "memcheck", "--tool", "racecheck")
    assert code == 0
    assert report["sanitizer"] == "Version 0.0"
    for row in report["tools"]:
        assert row["clean"]
        assert row["finds_planted_fault"]
        assert row["cases"] == row["chosen"] > 5
        assert row["kernels"] == 3
        assert not row["failed_cases"]


@needs_compiler
@pytest.mark.parametrize(("errors", "planted", "key"), [(2, 1, "errors"), (0, 0, "finds_planted_fault")])
def test_report_of_findings(tmp_path: Path, errors: int, planted: int, key: str) -> None:
    """Findings, and a tool that is blind, both fail the run."""
    code, report = run(tmp_path, errors, planted, "--tool", "memcheck")
    (row,) = report["tools"]
    assert code == 1
    assert not row["clean"]
    assert row[key] == (errors if key == "errors" else False)


@needs_compiler
def test_process_that_ends_early_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the sanitizer is content: here the emulator refuses its seed."""
    monkeypatch.setenv("DNNPRIMS_EMULATOR_SEED", "none")
    code, report = run(tmp_path, 0, 1, "--tool", "memcheck")
    assert code == 1
    assert report["tools"][0]["unfinished"] == 1


def test_missing_sanitizer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, with an exit code of its own."""
    assert sanitize.main(["--family", "sgd", "--dtype", "float32", "--sanitizer", "no-such-tool"]) == 2
    assert "comes with the CUDA toolkit" in capsys.readouterr().err
