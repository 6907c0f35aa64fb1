"""Running mutants: what decides them, what is kept of them, and how they are counted."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import mutate
import pytest

from mutation import campaign, catalogue, records
from mutation.campaign import Campaign, Subject, judge
from mutation.mutant import Mutant
from mutation.overlay import Finish, Overlay
from mutation.suite import Part

pytest.importorskip("resource", reason="processes are limited by POSIX means")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one file, whose tests are commands that read it."""
    (tmp_path / "dnnprims").mkdir()
    (tmp_path / "dnnprims" / "sum.py").write_text("a = 1\nb = 2\nc = 3\nd = 4\n")

    def part(name: str, code: str) -> Part:
        return Part(name, (sys.executable, "-c", f"text = open('dnnprims/sum.py').read()\n{code}"))

    plan = [
        [
            part("first", "assert 'a = 1' in text"),
            part("slow", "import time\nwhile 'b = 2' not in text: time.sleep(1)"),
        ],
        [part("second", "assert 'c = 3' in text, 'FAILED c'")],
    ]
    monkeypatch.setattr(campaign, "stages", lambda root, path: plan)
    return tmp_path


def planted(number: int) -> Mutant:
    """The mistake in one line of the project's file."""
    return Mutant("dnnprims/sum.py", 6 * number + 4, 6 * number + 5, "9", "number")


def test_campaign_decides_every_mutant(project: Path) -> None:
    """By what killed it; one that nothing notices survives, a hang is a kill."""
    seen: list[Subject] = []
    limits = {"first": 30.0, "slow": 3.0, "second": 30.0}
    runner = Campaign(project, project / "nothing", limits, jobs=3, done=seen.append)
    left = runner.run([planted(number) for number in range(4)])
    assert [(one.status, one.by) for one in left] == [
        ("killed", "first"),
        ("killed", "slow"),
        ("killed", "second"),
        ("survived", ""),
    ]
    assert left[1].words == "ran out of time"
    assert left[2].words == "AssertionError: FAILED c"
    assert sorted(map(id, seen)) == sorted(map(id, left))
    assert (project / "dnnprims" / "sum.py").read_text() == "a = 1\nb = 2\nc = 3\nd = 4\n"


def test_campaign_stops_at_its_deadline(project: Path) -> None:
    """What the time did not suffice for is neither killed nor survived."""
    runner = Campaign(project, project / "nothing", {"first": 30.0}, jobs=1, done=lambda subject: None, deadline=0.0)
    assert [one.status for one in runner.run([planted(3)])] == ["undecided"]


def test_a_run_that_is_broken_off_kills_nobody(project: Path) -> None:
    """What is stopped from outside says nothing of the mutant."""
    overlay = Overlay(project, project / "nothing", planted(3))
    try:
        timer = threading.Timer(0.5, overlay.stop)
        timer.start()
        finish = overlay.run(Part("endless", (sys.executable, "-c", "while True: pass")), 60.0)
        timer.join()
        assert finish.stopped
        assert not finish.timed_out
        assert overlay.run(Part("late", (sys.executable, "-c", "")), 60.0).stopped
    finally:
        overlay.remove()


def test_texts_that_do_not_compile_do_not_count() -> None:
    """Neither on their own nor through a test that compiles them."""
    part = Part("cases", ())
    assert judge(part, Finish(3, "CompileError: x.cu:3: error: no such name", 1.0))[0] == "stillborn"
    assert judge(part, Finish(1, "E  CompileError: compile: x for the emulator failed", 1.0))[0] == "stillborn"
    assert judge(part, Finish(1, "FAILED test_a - AssertionError", 1.0)) == ("killed", "FAILED test_a - AssertionError")
    assert judge(part, Finish(-11, "", 1.0)) == ("killed", "ended by signal 11")
    assert judge(part, Finish(0, "", 1.0)) == judge(part, Finish(5, "", 1.0)) == ("", "")


def test_summary_counts_what_was_argued_apart() -> None:
    """Equivalent and stillborn mutants are no part of the score."""
    row = {
        "mutant": "m",
        "file": "f",
        "operator": "bound",
        "before": "a",
        "after": "b",
        "by": "cases p float32 emulator",
    }
    rows = [{**row, "status": status} for status in ("killed", "killed", "killed", "stillborn", "undecided")]
    rows += [{**row, "status": "survived"}, {**row, "status": "survived", "after": "c"}]
    text = records.summary(records.settle(rows, {("f", "a", "c"): "nobody sees it"}))
    assert text.startswith("4 mutants, 3 killed, 1 survived: 75.0%")
    assert "1 argued to be equivalent, 1 that do not compile, 1 undecided" in text
    assert "killed by: cases emulator 3" in text
    assert text.endswith("SURVIVED m\n  - a\n  + b")


def test_results_are_kept_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mutant that the file knows is not run again; the summary counts it."""
    (mutant,) = catalogue.choose(ROOT, 1, seed=0)
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    row = records.record(ROOT, Subject(mutant, [], status="killed", by="tests/test_x.py"))
    (tmp_path / "known.jsonl").write_text(json.dumps(row) + "\n")
    assert mutate.main(["--count", "1", "--jobs", "1", "--json", str(tmp_path / "known.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "1 mutants, 1 known from before" in printed
    assert "1 mutants, 1 killed, 0 survived: 100.0%" in printed
    assert mutate.main(["--only", mutant.name(source), "--list"]) == 0
    assert mutant.after(source) in capsys.readouterr().out
