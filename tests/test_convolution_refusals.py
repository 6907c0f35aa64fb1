"""Descriptors of convolutions, and what the calls refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims import BadParamError, ConvolutionDescriptor, TensorDescriptor
from dnnprims.problem import CallLine

# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        ConvolutionDescriptor(),
        ConvolutionDescriptor(1, 2, 3, 4, "convolution", "NHWC"),
        ConvolutionDescriptor(padding=((1, 2), 0, (3, 3)), stride=(1, 2, 3)),
        ConvolutionDescriptor(padding=((0, 1),)),
    ],
)
def test_descriptor_comes_back(conv: ConvolutionDescriptor) -> None:
    """From its repr, and from the line of a call."""
    assert eval(repr(conv), {"ConvolutionDescriptor": ConvolutionDescriptor}) == conv
    x, w = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    line = CallLine.of(dp.conv_forward, {"conv": conv, "x": x, "w": w})
    back = CallLine.parse(str(line)).arguments["conv"]
    assert (back, hash(back)) == (conv, hash(conv))


def test_descriptor_is_normal() -> None:
    """The same however it was written."""
    one = ConvolutionDescriptor([(1, 1), np.int64(2)], (1, 1))
    assert one == ConvolutionDescriptor((1, 2), (1, 1)) == dp.create_convolution_descriptor((1, 2), stride=[1, 1])
    assert repr(one) == "ConvolutionDescriptor(padding=(1, 2), stride=(1, 1))"
    assert (one.axes, ConvolutionDescriptor(2).axes) == (2, None)
    assert ConvolutionDescriptor(1) != ConvolutionDescriptor((1, 1))  # for any number of axes, or for two
    assert len({one, ConvolutionDescriptor((1, 2), (1, 1)), ConvolutionDescriptor(1)}) == 2


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"padding": -1}, "padding"),
        ({"padding": 1.0}, "padding"),
        ({"padding": True}, "padding"),
        ({"padding": "1"}, "padding"),
        ({"padding": ()}, "padding"),
        ({"padding": (1, 1, 1, 1)}, "padding"),
        ({"padding": ((1, 2, 3),)}, "padding"),
        ({"padding": (1, 2), "stride": (1, 2, 3)}, "padding"),
        ({"stride": 0}, "stride"),
        ({"stride": ((1, 2),)}, "stride"),
        ({"stride": None}, "stride"),
        ({"stride": np.ones(2, int)}, "stride"),
        ({"dilation": 0}, "dilation"),  # oneDNN's dense
        ({"dilation": 2**40}, "dilation"),
        ({"groups": 0}, "groups"),
        ({"groups": (1, 1)}, "groups"),
        ({"mode": "correlation"}, "mode"),
        ({"mode": None}, "mode"),
        ({"layout": "NCDHW"}, "layout"),
        ({"layout": []}, "layout"),
    ],
)
def test_descriptor_refusals(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(BadParamError, match=r"^ConvolutionDescriptor: ") as caught:
        ConvolutionDescriptor(**arguments)
    assert caught.value.param == param


# -- refusals ---------------------------------------------------------------------------------------------------------


def a(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"w": a(6, 2, 7, 3)}, "w", "than the padded image: got .* = 7 along spatial axis 0, expected at most 6"),
        ({"conv": ConvolutionDescriptor(dilation=3, groups=2)}, "w", "larger than the padded image"),
        ({"conv": ConvolutionDescriptor(groups=3)}, "x.shape[1]", "a multiple of groups = 3"),
        ({"w": a(5, 2, 3, 3)}, "w.shape[0]", "a multiple of groups = 2"),
        ({"w": a(6, 4, 3, 3)}, "w", r"x.shape\[1\] / groups"),
        ({"w": a(6, 2, 0, 3)}, "w", "has no taps"),
        ({"w": a(6, 2, 3)}, "w", "4 axes, as x has"),
        ({"conv": ConvolutionDescriptor(), "x": a(2, 4)}, "x", "3 to 5 axes"),
        ({"conv": ConvolutionDescriptor(), "x": a(2, 4, 1, 1, 1, 1)}, "x", "3 to 5 axes"),
        ({"conv": ConvolutionDescriptor((1, 1, 1), groups=2)}, "x", "5 axes, as conv is for"),
        ({"conv": None}, "conv", "a ConvolutionDescriptor"),
        ({"conv": {"padding": 1}}, "conv", "of a wrong type"),
        ({"w": a(6, 2, 3, 3, dtype=np.float64)}, "w", "another dtype than x"),
        ({"b": a(4)}, "b", r"\(6,\)"),
        ({"scale": a(6, dtype=np.float16)}, "scale", "float32"),
        ({"shift": a(6, 1)}, "shift", r"\(6,\)"),
        ({"residual": a(2, 6, 5, 4)}, "residual", "the shape of the convolution"),
        ({"out": a(2, 4, 4, 4)}, "out", "the shape of the convolution"),
        ({"activation": "no such"}, "activation", "one of"),
        ({"alpha1": float("nan")}, "alpha1", "finite"),
        ({"beta": 1.0}, "out", "missing"),
    ],
)
def test_forward_refusals(handle: dp.Handle, change: dict[str, Any], param: str, words: str) -> None:
    """Each names the function, the argument and the rule."""
    call = {"conv": ConvolutionDescriptor(padding=(1, 0), groups=2), "x": a(2, 4, 4, 4), "w": a(6, 2, 3, 3), **change}
    given = {name: handle.asarray(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    with pytest.raises(BadParamError, match=rf"^conv_forward: .*{words}") as caught:
        dp.conv_forward(handle, **given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("op", "change", "param"),
    [
        (dp.conv_backward_data, {"x_descriptor": TensorDescriptor((2, 3, 9), "float32")}, "dy"),
        (dp.conv_backward_data, {"x_descriptor": TensorDescriptor((2, 3, 5), "float64")}, "w"),
        (dp.conv_backward_data, {"x_descriptor": (2, 3, 5)}, "x_descriptor"),
        (dp.conv_backward_data, {"out": a(2, 3, 6)}, "out"),
        (dp.conv_backward_filter, {"w_descriptor": TensorDescriptor((4, 3, 2), "float32")}, "dy"),
        (dp.conv_backward_filter, {"w_descriptor": TensorDescriptor((4, 2, 3), "float32")}, "w_descriptor"),
        (dp.conv_backward_filter, {"w_descriptor": None}, "w_descriptor"),
        (dp.conv_backward_bias, {"out": a(3)}, "out"),
        (dp.conv_backward_bias, {"dy": a(2, 4)}, "dy"),
        (dp.conv_transpose_forward, {"output_padding": 1}, "output_padding"),
        (dp.conv_transpose_forward, {"output_padding": (0, 0)}, "output_padding"),
        (dp.conv_transpose_forward, {"output_padding": 0.0}, "output_padding"),
        (dp.conv_transpose_forward, {"x": a(2, 5, 3)}, "x"),
        (dp.conv_transpose_forward, {"x": a(2, 4, 0)}, "x"),
        (dp.conv_transpose_forward, {"b": a(4)}, "b"),
        (dp.conv_transpose_forward, {"conv": ConvolutionDescriptor(padding=3)}, "conv.padding"),
        (dp.conv_transpose_backward, {"x": a(2, 4, 4)}, "x"),
        (dp.conv_transpose_backward, {"needs": ("dw",), "dx": a(2, 4, 3)}, "dx"),
        (dp.conv_transpose_backward, {"beta": 1.0}, "dw"),
    ],
)
def test_gradient_refusals(handle: dp.Handle, op: Any, change: dict[str, Any], param: str) -> None:
    """Of an image of 5 positions, filters of 3 taps and so 3 positions of the result."""
    image, filters, result = a(2, 3, 5), a(4, 3, 3), a(2, 4, 3)
    good: dict[Any, dict[str, Any]] = {
        dp.conv_backward_data: {"dy": result, "w": filters, "x_descriptor": TensorDescriptor.from_array(image)},
        dp.conv_backward_filter: {"dy": result, "x": image, "w_descriptor": TensorDescriptor.from_array(filters)},
        dp.conv_backward_bias: {"dy": result},
        dp.conv_transpose_forward: {"x": result, "w": filters},
        dp.conv_transpose_backward: {"dy": image, "x": result, "w": filters},
    }
    call = {"conv": ConvolutionDescriptor(), **good[op]}
    for changed in (call, {**call, **change}):
        given = {n: handle.asarray(value) if isinstance(value, np.ndarray) else value for n, value in changed.items()}
        if changed is call:
            op(handle, **given)
            continue
        with pytest.raises(BadParamError, match=rf"^{op.__name__}: ") as caught:
            op(handle, **given)
        assert caught.value.param == param
