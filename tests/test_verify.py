"""``verify``: what it runs, on what, how it tells, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dnnprims
from dnnprims import verification
from dnnprims.conformance import FAMILIES, page, report, results, runner
from dnnprims.conformance.campaign import Campaign, shard
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.results import EDGES, Tally
from dnnprims.conformance.runner import Outcome
from dnnprims.conformance.subjects import Other, load
from dnnprims.reference import tensor as reference

LINE = "scale_tensor shape=33 alpha=0.75 dtype=float32 seed=1"
NUMPY = ["--backend", "numpy", "--quiet"]


def verify(*arguments: str) -> int:
    return verification.main([*arguments, *NUMPY])


def test_all_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("tensor", "--dtype", "float32", "--cases", "3") == 0
    printed = capsys.readouterr().out
    assert re.search(r"scale_tensor +float32 +\d+ +0 ", printed)
    assert re.search(r"(\d+) of \1 passed in", printed)


def test_failure_has_a_line_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dnnprims, "scale_tensor", lambda handle, y, alpha: y, raising=False)
    assert verify("--case", LINE) == 1
    printed = capsys.readouterr().out
    assert f'python -m dnnprims replay --backend numpy "{LINE}"' in printed
    assert "0 of 1 passed" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "family is unknown: got 'nothing', expected one of activation,"),
        (["--case", "nothing"], "--case names no primitive"),
        (["--report", "nowhere/report.html"], "--report cannot be written: got nowhere/report.html"),
        (
            ["--report", "report.pdf"],
            "--report has no known format: got report.pdf, expected a name that ends in .html",
        ),
        (["--against", "no.such.module"], "--against cannot be imported (ModuleNotFoundError"),
        (["--against", "nothing.py"], "--against cannot be imported (FileNotFoundError"),
        (["--against", "json"], "--against has no primitive: got json"),
        (["--merge", "nothing.json"], "--merge cannot be read (FileNotFoundError"),
    ],
)
def test_refusals_are_in_words(arguments: list[str], words: str) -> None:
    """Each names the option, before anything runs."""
    with pytest.raises(dnnprims.BadParamError, match=re.escape(words)):
        verify(*arguments)


@pytest.mark.parametrize("option", [["--cases", "-1"], ["--jobs", "0"], ["--shard", "3/2"], ["--dtype", "int8"]])
def test_options_out_of_range_are_wrong_usage(option: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        verify(*option)
    assert caught.value.code == 2


# -- the cases -------------------------------------------------------------------------------------------------------


def test_cases_do_not_depend_on_what_else_is_chosen() -> None:
    """A family and dtype alone give the cases that they give among all."""
    everything = [str(problem) for _, problem in runner.select((), ("float32", "float16"), 3, 5)]
    alone = [str(problem) for _, problem in runner.select(("softmax",), ("float16",), 3, 5)]
    assert [line for line in everything if line in set(alone)] == alone


def test_shards_are_all_cases() -> None:
    cases = list(range(23))
    shards = [shard(cases, i, 4) for i in (1, 2, 3, 4)]
    assert sorted(case for part in shards for case in part) == cases
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_processes_give_the_outcomes_of_one() -> None:
    """Bit for bit, in the same order."""
    cases = runner.select(("maxout", "tensor"), ("float32",), 0, 6)
    campaigns = (Campaign("numpy"), Campaign("numpy", jobs=2))
    one, two = (list(campaign.run(cases, campaign.open())) for campaign in campaigns)
    assert [str(outcome.problem) for outcome in one] == [str(outcome.problem) for outcome in two]
    assert all(a.ratios.tobytes() == b.ratios.tobytes() for a, b in zip(one, two, strict=True))


# -- other implementations -------------------------------------------------------------------------------------------


def on_numpy(op: str, change: Callable[[Any], Any] = lambda result: result) -> Callable[..., Any]:
    """A primitive by the reference, its result changed."""

    def function(handle: Any, **arguments: Any) -> Any:
        return change(getattr(reference, op)(**arguments))

    return function


def outcomes_of(implementation: Any, *lines: str) -> list[Outcome]:
    subject = Other(implementation, "other")
    return [runner.run_case(subject, *runner.named(line)) for line in lines]


def test_right_implementation_passes() -> None:
    (outcome,) = outcomes_of(SimpleNamespace(scale_tensor=on_numpy("scale_tensor")), LINE)
    assert outcome.passed
    assert outcome.ratios.size == 2 * 33  # what is returned, and what is updated in place


def test_what_is_not_offered_or_declined_is_no_failure() -> None:
    """Each says why, and nothing is judged."""

    def declining(handle: Any, **arguments: Any) -> Any:
        raise NotImplementedError("no such type")

    made = SimpleNamespace(scale_tensor=declining)
    declined, absent = outcomes_of(made, LINE, LINE.replace("scale_tensor", "set_tensor").replace("alpha", "value"))
    assert (declined.passed, declined.declined, declined.ratios.size) == (True, "no such type", 0)
    assert (absent.passed, absent.declined) == (True, "not offered")


def test_wrong_implementation_fails() -> None:
    """By its values, by its error, by its type."""

    def raising(handle: Any, **arguments: Any) -> Any:
        raise KeyError("lost")

    wrong = on_numpy("scale_tensor", lambda y: np.multiply(y, np.float32(1.5), out=y))
    (by_value,) = outcomes_of(SimpleNamespace(scale_tensor=wrong), LINE)
    (by_error,) = outcomes_of(SimpleNamespace(scale_tensor=raising), LINE)
    cast = "cast shape=9 dtype=float32 seed=1"
    (by_type,) = outcomes_of(SimpleNamespace(cast=lambda handle, x, dtype, out=None: x.astype(np.float64)), cast)
    assert "times the bound" in by_value.complaint
    assert by_error.complaint == "KeyError: 'lost'"
    assert "has dtype float64, expected float32" in by_type.complaint


def test_arrays_of_its_own_kind() -> None:
    """Through `asarray` and `to_numpy`, with its handle, and a wait before results are read."""
    waits: list[int] = []

    class Wrapped:
        def __init__(self, a: Any) -> None:
            self.a = np.array(a)

        def __getitem__(self, at: Any) -> Any:
            view = Wrapped(())
            view.a = self.a[at]
            return view

        def reshape(self, *shape: int) -> Any:
            view = Wrapped(())
            view.a = self.a.reshape(*shape)
            return view

    def scale(handle: Any, y: Wrapped, alpha: float) -> Wrapped:
        assert handle == "mine"
        y.a *= np.float32(alpha)
        return y

    made = SimpleNamespace(
        create_handle=lambda: "mine",
        asarray=Wrapped,
        to_numpy=lambda w: w.a,
        synchronize=lambda: waits.append(1),
        scale_tensor=scale,
    )
    (outcome,) = outcomes_of(made, LINE)
    assert outcome.passed, outcome.complaint
    assert waits


def test_implementation_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the command takes it; what it lacks is counted apart."""
    text = "import numpy as np\ndef scale_tensor(handle, y, alpha):\n    y *= np.float32(alpha)\n    return y\n"
    (tmp_path / "mine.py").write_text(text)
    against = ["--against", str(tmp_path / "mine.py"), "--dtype", "float32", "--cases", "4"]
    assert verify("tensor", *against) == 0
    printed = capsys.readouterr().out
    assert "cases on mine, seed 0" in printed
    assert re.search(r"\d+ of \d+ passed, \d+ not taken", printed)
    assert load(f"{tmp_path / 'mine.py'}").name == "mine"


def test_adapter_for_pytorch() -> None:
    """The example takes what PyTorch can do; a maximum and a softmax in float32 are right there, too."""
    pytest.importorskip("torch")
    path = Path(__file__).resolve().parent.parent / "examples" / "against_pytorch.py"
    subject = load(str(path))
    for line in (
        "maxout_forward shape=4x12 pool=3 dtype=bfloat16 seed=1",
        "softmax_forward shape=5x33 dtype=float32 seed=1",
        "fc_forward rows=9 k=5 n=7 data=integers dtype=float32 seed=1",
        "activation_forward mode=tanh shape=33 dtype=float32 seed=1",
    ):
        outcome = runner.run_case(subject, *runner.named(line))
        assert outcome.passed, outcome.complaint
        assert outcome.ratios.size, line


# -- reports ---------------------------------------------------------------------------------------------------------


def tally_of(*ratios: Any, complaint: str = "", declined: str = "") -> Tally:
    tally = Tally()
    for values in ratios:
        tally.add(Outcome(Problem.parse(LINE), np.asarray(values, float), complaint, declined))
    return tally


def test_quantiles_and_histogram() -> None:
    """Of all elements of a primitive and dtype; 0 is in the first bin, beyond the bound in those past 1."""
    (group,) = tally_of([0.0, 0.5, 0.25], [1.0, 40.0, np.inf]).groups()
    assert (group["cases"], group["elements"], group["exact"]) == (2, 6, 1)
    assert group["median"] in (0.5, 1.0)
    assert group["max"] == np.finfo(np.float32).max
    at_bound = int(np.flatnonzero(EDGES == 1.0)[0])
    assert group["histogram"][0] == 1
    assert group["histogram"][at_bound] == 1
    assert group["histogram"][-1] == 2
    assert sum(group["histogram"]) == 6


def test_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON and a page from one run; two runs merge into one page."""
    first, second, both = tmp_path / "first.json", tmp_path / "second.json", tmp_path / "both.html"
    chosen = ["tensor", "--dtype", "float16", "--cases", "2"]
    assert verify(*chosen, "--report", str(first)) == 0
    monkeypatch.setattr(dnnprims, "scale_tensor", lambda handle, y, alpha: y, raising=False)
    assert verify(*chosen, "--report", str(second)) == 1
    (good,), (bad,) = results.read(first), results.read(second)
    assert good["cases"] == good["asked"] == bad["cases"]
    assert not good["failures"]
    assert bad["failures"][0]["replay"].startswith("python -m dnnprims replay --backend numpy")
    assert {"dnnprims", "NumPy", "processor"} <= set(good["environment"])
    assert verification.main(["--merge", str(first), "--merge", str(second), "--report", str(both)]) == 1
    text = both.read_text()
    assert text.count("<h2>On numpy</h2>") == 2
    assert bad["failures"][0]["replay"].split('"')[1] in text


class _Checker(HTMLParser):
    """Every tag is closed, and nothing comes from elsewhere."""

    VOID = frozenset({"meta", "line", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        names = dict(attributes)
        assert tag not in {"script", "link", "img"}
        assert "src" not in names
        assert "href" not in names
        assert tag != "svg" or names["aria-label"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_whole_and_escapes_what_it_shows() -> None:
    """A complaint may hold anything."""
    tally = tally_of([0.25, 3.0], complaint="<script>alert(1)</script> & more")
    told = {"subject": "numpy", "against": "", "seed": 0, "cases": 2, "seconds": 1.0}
    run = results.record(tally, **told, environment={"system": "<any>"}, command="verify")
    text = page.render([run], [("tensor", "scale_tensor", ["NEC", "NE", "", "N"])])
    checker = _Checker()
    checker.feed(text)
    assert not checker.open
    words = " ".join(checker.words)
    assert "<script>alert(1)</script> & more" in words
    assert "1 cases, 1 failed - broken off before the end" in words
    assert 'class="over"' in text
    assert "$" not in text


def test_interrupted_run_tells_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The exit code is that of an interruption; the report says how many cases were run."""
    done: list[int] = []
    really = runner.run_case

    def impatient(*arguments: Any) -> Outcome:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return really(*arguments)

    monkeypatch.setattr("dnnprims.conformance.campaign.run_case", impatient)
    assert verify("tensor", "--report", str(tmp_path / "part.json")) == 130
    assert "5 of 5 passed" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "part.json").read_text())["runs"]
    assert run["cases"] == 5 < run["asked"]


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line now and then on standard error; nothing when asked for quiet."""
    monkeypatch.setattr(report, "SILENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert list(report.progress("abc", 3)) == ["a", "b", "c"]
    assert "2 of 3 cases" in capsys.readouterr().err
    assert list(report.progress("abc", 3, quiet=True)) == ["a", "b", "c"]
    assert not capsys.readouterr().err


def test_every_family_has_its_primitives_in_the_table_of_support() -> None:
    """The page's table is that of `list`."""
    text = page.render([], verification.support_rows())
    assert all(f"<td>{op}</td>" in text for family in FAMILIES.values() for op in family.makers)
