"""What a replayed line draws, and the memory that it lies in."""

from __future__ import annotations

import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hostile import like_array, spoilt
from hypothesis import strategies as st
from test_refusals import GOOD
from test_replay import OPS, RELU

import dnnprims as dp
from dnnprims.conformance.replay import checking, drawing
from dnnprims.conformance.replay.memory import fill, place
from dnnprims.problem import CallLine

# -- drawn data --------------------------------------------------------------------------------------------------------


def drawn(line: str) -> dict[str, np.ndarray]:
    """Data for a line."""
    return drawing.draw(CallLine.parse(line), np.random.default_rng(0))


def test_labels_are_in_range() -> None:
    values = drawn("loss_forward loss=cross_entropy(ignore_index=-5) prediction=float32:500x7 target=int64:500")
    assert set(np.unique(values["target"])) == {-5, *range(7)}


def test_indices_are_in_range() -> None:
    values = drawn("maxout_backward dy=float32:40x3 which=uint8:40x3 pool_size=4")
    assert set(np.unique(values["which"])) == set(range(4))
    words = "dy=float32:9x3x8x8 x_descriptor=float32:9x3x16x16/described indices=uint8:9x3x8x8"
    values = drawn(f"pooling_backward pooling=pooling(mode=max;window=2) {words}")
    assert set(np.unique(values["indices"])) == set(range(4))


def test_outputs_are_those_of_inputs() -> None:
    values = drawn("activation_backward activation=sigmoid dy=float64:100 x=float64:100 y=float64:100")
    np.testing.assert_array_equal(
        values["y"], dp.reference.activation.activation_forward(dp.ActivationDescriptor("sigmoid"), values["x"])
    )
    values = drawn("softmax_backward dy=float64:5x6 y=float64:5x6 axis=0")
    assert np.abs(values["y"].sum(axis=0) - 1.0).max() < np.finfo(np.float64).eps * 8


def test_destinations_that_must_not_be_read_are_poisoned() -> None:
    line = CallLine.parse(f"{RELU} out=float32:3x5")
    assert checking.unread(line, drawing.draw(line, np.random.default_rng(0))) == {"out"}
    for word in ("out=float32:3x5 beta=1.0", "out=float32:3x5@x"):
        line = CallLine.parse(f"{RELU} {word}")
        assert checking.unread(line, drawing.draw(line, np.random.default_rng(0))) == set()


# -- memory ------------------------------------------------------------------------------------------------------------


def replaced(line: CallLine, handle: dp.Handle) -> CallLine:
    """The line of the call that the line was made into."""
    memory = place(handle, line, drawing.draw(line, np.random.default_rng(0)))
    return CallLine.of(OPS[line.op], fill(line, memory.arrays), handle)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "float32:4x6",
            "bfloat16:7@2",
            "float32:4x3:6x2",
            "float32:6x4:1x6@8",
            "float32:4x6:-6x1@12",
            "float64:scalar@8",
        ),
        *("float32:4x6:0x1/readonly", "float32:0x6", "float32:3:9b@3", ">f4:4x6", "int16:5@1", "complex64:2"),
        *("float16:5/described", "float16:5@4/described", "float16:5x2:1x5/described"),
    ],
)
def test_memory_is_as_the_line_says(word: str, handle: dp.Handle) -> None:
    """Steps, alignment, tags: the call that is made has the line that it was made from."""
    if handle.backend == "cuda" and re.match(r">f4|.*readonly", word):
        pytest.skip("CuPy has no such arrays")
    line = CallLine.parse(f"set_tensor y={word} value=1.0")
    assert replaced(line, handle) == line


def test_shared_memory_is_shared(handle: dp.Handle) -> None:
    weights = "weights=[float32:6@4;float32:2x3@weights[0]-12]"
    line = CallLine.parse(f"sgd_update {weights} gradients=[3*float32:5@12] lr=float32:scalar@weights[0]+8")
    assert replaced(line, handle) == line


@hypothesis.settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    st.sampled_from(list(OPS)).flatmap(lambda name: spoilt(GOOD[name](), like_array).map(lambda a: (name, a)))
)
def test_any_call_is_made_again_as_it_was(call: tuple[str, dict[str, Any]]) -> None:
    """Call, line, memory, line: the same line, but for what a line cannot give back."""
    name, arguments = call
    line = CallLine.of(OPS[name], {key: value for key, value in arguments.items() if key in GOOD[name]()})
    line = CallLine.parse(str(line))
    hypothesis.assume(not line.lost and not any(operand.numpy.hasobject for operand in line.operands.values()))
    with dp.create_handle("numpy") as handle:
        assert replaced(line, handle) == line


def test_damage_is_seen(numpy_handle: dp.Handle) -> None:
    """Writing before, behind, into the gaps of an operand, or to one that is only read."""
    line = CallLine.parse("activation_forward activation=relu x=float32:3 out=float32:3:2")
    values = drawing.draw(line, np.random.default_rng(0))
    memory = place(numpy_handle, line, values)
    assert memory.damage(numpy_handle, ("out",)) == []
    memory.arrays["out"][...] = 5
    assert memory.damage(numpy_handle, ("out",)) == []
    memory.arrays["x"][1] += 1
    (words,) = memory.damage(numpy_handle, ("out",))
    assert words.startswith("x: changed ")
    for at in (-1, 1, 5):
        memory = place(numpy_handle, line, values)
        block = memory.blocks[1]
        block.base[block.starts["out"] + 4 * at : block.starts["out"] + 4 * at + 4] = 0
        assert [words.split(":")[0] for words in memory.damage(numpy_handle, ("out",))] == ["out"]
