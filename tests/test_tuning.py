"""Choosing by timing: the selection with a clock of its own, the file, what plans make of it, the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import HAS_COMPILER, HAS_GPU

import dnnprims as dp
from dnnprims import tune as command
from dnnprims import tuner
from dnnprims.descriptors import ActivationDescriptor
from dnnprims.planning import _specify
from dnnprims.problem import CallLine
from dnnprims.runtime import blaslt
from dnnprims.runtime.gemm import GemmStep
from dnnprims.runtime.launch import Profile, choose
from dnnprims.runtime.trial import LEAST_GAIN, QUICK_ROUNDS, ROUNDS, select
from dnnprims.runtime.tuning import Entry, Place, Tuning, layer_key, prefer, product_key

HERE = Place("NVIDIA H200", 130101, dp.__version__)
GPU = Profile("cuda", blaslt=True)
FAST, SLOW = (66, 1, 2, 3, 4, 1, 0, 0, 0), (67, 1, 2, 3, 4, 1, 0, 0, 0)


def entry(problem: str, place: Place = HERE, **given: Any) -> Entry:
    chosen = {"variant": "", "algorithm": FAST, "bits": "same", "default_us": 12.5, "tuned_us": 10.0, **given}
    return Entry(place.device, place.cublaslt, place.dnnprims, problem, **chosen)


def described(*shapes: tuple[int, ...], dtype: str = "bfloat16") -> list[dp.TensorDescriptor]:
    return [dp.TensorDescriptor(shape, dtype) for shape in shapes]


# -- selection -------------------------------------------------------------------------------------------------------


class FakeTrial:
    """Ways whose times are given: those of a few rounds, and those of many."""

    def __init__(self, quick: Sequence[float], thorough: Sequence[float] = (), bits: Sequence[str] = ()) -> None:
        self.quick, self.thorough, self.bits = quick, thorough or quick, bits or ["same"] * len(quick)
        self.asked: list[tuple[list[int], int]] = []
        self.compared: list[int] = []

    @property
    def count(self) -> int:
        return len(self.quick)

    def times(self, which: Sequence[int], rounds: int) -> list[float]:
        self.asked.append((list(which), rounds))
        return [(self.quick if rounds == QUICK_ROUNDS else self.thorough)[i] for i in which]

    def compare(self, index: int) -> str:
        self.compared.append(index)
        return self.bits[index]


def test_the_fastest_of_many_is_found_and_timed_again_beside_the_default() -> None:
    trial = FakeTrial([10.0, 9.0, 12.0, 5.0, 8.0, 7.0, 6.0, 9.5])
    choice = select(trial, other_bits=False)
    assert (choice.index, choice.default_us, choice.tuned_us, choice.bits) == (3, 10e6, 5e6, "same")
    assert trial.asked == [(list(range(8)), QUICK_ROUNDS), ([0, 3, 6, 5, 4], ROUNDS)]
    assert trial.compared == [3, 6, 5, 4]


@pytest.mark.parametrize(
    ("thorough", "index"),
    [([10.0, 9.9], 0), ([10.0, 10.0 / (1 + LEAST_GAIN) + 0.01], 0), ([10.0, 9.6], 1), ([10.0, 11.0], 0)],
)
def test_only_a_gain_past_the_spread_counts(thorough: list[float], index: int) -> None:
    choice = select(FakeTrial([10.0, 5.0], thorough), other_bits=False)
    assert choice.index == index
    assert choice.tuned_us == thorough[index] * 1e6


def test_other_bits_are_taken_only_where_they_may_be_and_wrong_results_never() -> None:
    bits = ["same", "wrong", "other", "same"]
    assert select(FakeTrial([10.0, 4.0, 5.0, 6.0], bits=bits), other_bits=False).index == 3
    choice = select(FakeTrial([10.0, 4.0, 5.0, 6.0], bits=bits), other_bits=True)
    assert (choice.index, choice.bits) == (2, "other")


def test_the_default_alone_is_timed_once() -> None:
    trial = FakeTrial([10.0])
    assert select(trial, other_bits=True).index == 0
    assert len(trial.asked) == 1


# -- the file --------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    tuning = Tuning.of([entry("product a"), entry("fc_forward b", variant="lt_then_pass", algorithm=(), bits="other")])
    tuning.save(tmp_path / "tuned.json")
    assert Tuning.load(tmp_path / "tuned.json").entries == tuning.entries
    again = Tuning.of(reversed(tuning.entries.values()))
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "tuned.json").read_text()


def test_merging_keeps_both_and_the_later_wins() -> None:
    one = Tuning.of([entry("a", tuned_us=10.0), entry("b")])
    two = Tuning.of([entry("a", tuned_us=9.0), entry("a", replace(HERE, device="NVIDIA A100"))])
    merged = one.merged(two)
    assert len(merged) == 3
    assert merged.entries[HERE, "a"].tuned_us == 9.0
    assert one.entries[HERE, "a"].tuned_us == 10.0


@pytest.mark.parametrize(
    "place",
    [replace(HERE, device="NVIDIA H100"), replace(HERE, cublaslt=130102), replace(HERE, dnnprims="0.0.9")],
)
def test_entries_for_other_places_are_passed_over(place: Place) -> None:
    tuning = Tuning.of([entry("product a", place), entry("layer", place, variant="lt_then_pass", algorithm=())])
    assert tuning.at(place).algorithm("product a") == FAST
    assert tuning.at(HERE).algorithm("product a") == ()
    assert tuning.at(HERE).variant("layer") == ""


def corrupt(**changes: Any) -> str:
    row = {**entry("a").__dict__, "algorithm": list(FAST), **changes}
    return json.dumps({"format": "dnnprims tuning", "version": 1, "entries": [row]})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[1, 2]", "no .format"),
        ("[" * 100_000, "recursion"),
        ('{"format": "other", "version": 1, "entries": []}', "no .format"),
        ('{"format": "dnnprims tuning", "version": 2, "entries": []}', "version 2"),
        ('{"format": "dnnprims tuning", "version": 1, "entries": [3]}', "entry 0 has not the fields"),
        (corrupt(more=1), "entry 0 has not the fields"),
        (corrupt(bits="maybe"), "neither same nor other"),
        (corrupt(bits=None), "bits of entry 0"),
        (corrupt(cublaslt="13"), "cublaslt of entry 0"),
        (corrupt(cublaslt=True), "cublaslt of entry 0"),
        (corrupt(algorithm=[1.5]), "neither one algorithm nor one variant"),
        (corrupt(variant="x"), "neither one algorithm nor one variant"),
        (corrupt(algorithm=[]), "neither one algorithm nor one variant"),
    ],
)
def test_a_corrupt_file_is_refused_in_words(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(dp.BadParamError, match=f"create_handle: tuning is no tuning file .*{why}"):
        dp.create_handle("numpy", tuning=path)


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dp.BadParamError, match="No such file"):
        dp.create_handle("numpy", tuning=tmp_path / "none.json")
    monkeypatch.setenv("DNNPRIMS_TUNING", str(tmp_path / "none.json"))
    with pytest.raises(dp.BadParamError, match="create_handle: DNNPRIMS_TUNING is no tuning file"):
        dp.create_handle("numpy")


def test_the_environment_names_a_file_and_the_argument_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuning.of([entry("a")]).save(tmp_path / "tuned.json")
    monkeypatch.setenv("DNNPRIMS_TUNING", str(tmp_path / "tuned.json"))
    assert len(dp.create_handle("numpy").tuning) == 1
    assert len(dp.create_handle("numpy", tuning=Tuning()).tuning) == 0


# -- what plans make of it -------------------------------------------------------------------------------------------


def test_a_product_takes_the_algorithm_that_is_known() -> None:
    dy, w = described((64, 32), (32, 16))
    (step,) = _specify(dp.fc_backward_data, GPU, (dy, w), {}).steps
    assert isinstance(step, GemmStep)
    assert step.algorithm == ()
    tuned = replace(GPU, tuned=Tuning.of([entry(product_key(step.problem))]).at(HERE))
    (step,) = _specify(dp.fc_backward_data, tuned, (dy, w), {}).steps
    assert step.algorithm == FAST  # type: ignore[union-attr]
    (other,) = _specify(dp.fc_backward_data, tuned, (*described((65, 32)), w), {}).steps
    assert other.algorithm == ()  # type: ignore[union-attr]


def test_what_a_product_is_known_by_names_all_but_the_factors() -> None:
    problem = blaslt.MatmulProblem(1, 2, 3, True, False, 4, 5, 6, 0, 0, 68, 0, alignments=(16, 8, 4))
    assert product_key(problem) == product_key(replace(problem, alpha=2.0, beta=1.0))
    for change in ({"m": 9}, {"trans_a": False}, {"epilogue": 4}, {"alignments": (16, 16, 4)}, {"workspace_bytes": 1}):
        assert product_key(replace(problem, **change)) != product_key(problem)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["relu", ActivationDescriptor("relu")])
def test_a_layer_takes_the_variant_that_is_known(activation: Any) -> None:
    x, w, b, y = described((64, 32), (48, 32), (48,), (64, 48))
    key = layer_key("fc_forward", "ieee", ("relu", 1.0, 0.0), {"x": x, "w": w, "b": b})
    known = Tuning.of([entry(key, variant="lt_then_pass", algorithm=())]).at(HERE)
    tuned = replace(GPU, tuned=known)
    for given in ({}, {"out": y}):
        assert _specify(dp.fc_forward, GPU, (x, w, b), {"activation": activation, **given}).variant == "lt_epilogue"
        spec = _specify(dp.fc_forward, tuned, (x, w, b), {"activation": activation, **given})
        assert spec.variant == "lt_then_pass"
        assert dict(spec.refused)["lt_epilogue"] == "lt_then_pass was faster when tuned"
    assert _specify(dp.fc_forward, tuned, (x, w), {"activation": activation}).variant == "lt_epilogue"


@pytest.mark.parametrize(("m", "name"), [(8192, "lt_product"), (64, "lt_product_along_k")])
def test_either_layout_of_a_product_can_be_preferred(m: int, name: str) -> None:
    dy, x = described((m, 4096), (m, 4096), dtype="float32")
    hopper = replace(GPU, math="tf32")
    usual = _specify(dp.fc_backward_weights, hopper, (dy, x), {}).variant
    assert usual != name
    key = layer_key("fc_backward_weights", "tf32", (1.0, 0.0), {"dy": dy, "x": x})
    known = Tuning.of([entry(key, variant=name, algorithm=())]).at(HERE)
    assert _specify(dp.fc_backward_weights, replace(hopper, tuned=known), (dy, x), {}).variant == name
    bfloat = described((m, 4096), (m, 4096))
    assert _specify(dp.fc_backward_weights, replace(hopper, preferred=name), bfloat, {}).variant == "lt_product"


def test_a_variant_that_may_not_be_taken_is_not_preferred() -> None:
    variants = (("quick", None), ("wide", "unaligned"), ("plain", None))
    assert prefer(variants, "wide") == variants
    assert prefer(variants, "") == variants
    assert prefer(variants, "unheard of") == variants
    assert choose(prefer(variants, "plain"))[0] == "plain"


# -- tuning ----------------------------------------------------------------------------------------------------------


def test_a_handle_without_a_gpu_has_nothing_to_choose_from() -> None:
    with dp.create_handle("numpy") as handle, pytest.raises(dp.NotSupportedError, match="nothing to choose from"):
        handle.tune(dp.fc_forward, *described((8, 4), (4, 4)))


class FakePlan:
    """Offers two algorithms."""

    def __init__(self, handle: Any, problem: Any, wanted: Any = (), most: int = 0, sm_count: int = 132) -> None:
        self.offered, self.default = [FAST, SLOW, SLOW], 1


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
def test_what_was_chosen_is_told_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the emulator's memory, and a clock that says which algorithm is faster."""
    offered: list[Any] = []
    monkeypatch.setattr(tuner, "require_gpu", lambda function, handle: handle._executor)
    monkeypatch.setattr(tuner, "realise_gemm", lambda step, slots, executor: offered.append(step.algorithm))
    monkeypatch.setattr(tuner, "DeviceTrial", lambda *_: FakeTrial([10e-6, 8e-6]))
    monkeypatch.setattr(tuner, "place_of", lambda handle: HERE)
    monkeypatch.setattr(blaslt, "MatmulPlan", FakePlan)
    monkeypatch.setattr(blaslt, "device_handle", lambda device: SimpleNamespace())
    told: list[str] = []
    with dp.create_handle("emulator") as handle:
        handle.profile = replace(handle.profile, blaslt=True)
        found = handle.tune(dp.fc_backward_data, *described((64, 32), (32, 16)), tell=told.append)
        (step,) = _specify(dp.fc_backward_data, handle.profile, tuple(described((64, 32), (32, 16))), {}).steps
    assert offered == [SLOW, FAST]
    (kept,) = found.entries.values()
    assert (kept.algorithm, kept.bits, kept.default_us, kept.tuned_us) == (FAST, "same", 10.0, 8.0)
    assert step.algorithm == FAST  # type: ignore[union-attr]
    assert ["of 2 algorithms number 1, 1.25x faster, same bits" in line for line in told] == [True]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tuned_calls_keep_their_bits(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with dp.create_handle("cuda", math="tf32") as handle:
        x, w, dy = (
            handle.asarray(rng.standard_normal(s).astype(dp.TensorDescriptor(s, dtype).dtype.numpy))
            for s in ((1024, 512), (768, 512), (1024, 768))
        )

        def train(used: dp.Handle) -> list[bytes]:
            y = dp.fc_forward(used, x, w, activation="relu")
            made = (y, *dp.fc_backward(used, dy, x, w, activation="relu", y=y))
            return [used.to_numpy(a).tobytes() for a in made]

        before = train(handle)
        handle.tune(dp.fc_forward, x, w, activation="relu")
        handle.tune(dp.fc_backward, dy, x, w, activation="relu", y=dy)
        assert len(handle.tuning) >= 3
        assert all(one.bits == "same" and one.tuned_us <= one.default_us for one in handle.tuning.entries.values())
        assert train(handle) == before
        handle.tuning.save(tmp_path / "tuned.json")
    with dp.create_handle("cuda", math="tf32", tuning=tmp_path / "tuned.json") as handle:
        assert handle.profile.tuned.entries
        assert train(handle) == before


# -- the command -----------------------------------------------------------------------------------------------------


def test_layers_stand_for_their_calls() -> None:
    given = command._parser().parse_args(["--layer", "8x4x2", "--dtype", "bfloat16", "--activation", "swish"])
    forward, backward = command._lines(given)
    assert forward == ("fc_forward x=bfloat16:8x4 w=bfloat16:2x4 b=bfloat16:2 aux=bfloat16:8x2 activation=swish")
    assert backward == ("fc_backward dy=bfloat16:8x2 x=bfloat16:8x4 w=bfloat16:2x4 aux=bfloat16:8x2 activation=swish")
    for text in (forward, backward):
        line = CallLine.parse(text)
        arguments = {name: command._described(value) for name, value in line.arguments.items()}
        assert dp.supports(getattr(dp, line.op), **arguments)


def test_files_of_problems_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problems.txt"
    path.write_text("# two\nfc_forward x=float32:8x4 w=float32:2x4\n\nno_such_call x=float32:8\n")
    assert command.main([str(path), "--out", str(tmp_path / "tuned.json")]) == 1
    printed = capsys.readouterr()
    assert "[2/2]" in printed.out
    assert "no_such_call" in printed.err
    assert len(Tuning.load(tmp_path / "tuned.json")) == 0 or HAS_GPU


def test_files_are_merged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, problem in (("one", "product a"), ("two", "product b")):
        Tuning.of([entry(problem)]).save(tmp_path / f"{name}.json")
    both = tmp_path / "both.json"
    files = [f"--merge={tmp_path / name}.json" for name in ("one", "two")]
    assert command.main([*files, "--out", str(both), "--show"]) == 0
    assert len(Tuning.load(both)) == 2
    printed = capsys.readouterr().out
    assert "product a: algorithm 66;1;2;3;4;1;0;0;0, 1.25x faster at 10.0 us, same bits" in printed
    with pytest.raises(dp.BadParamError, match="nothing to do"):
        command.main([])
