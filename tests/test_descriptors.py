"""Descriptors are values: validated when made, hashable, printable and pasted back."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnprims import (
    ActivationDescriptor,
    BadParamError,
    LossDescriptor,
    TensorDescriptor,
    create_activation_descriptor,
    create_loss_descriptor,
    create_tensor_descriptor,
)
from dnnprims.descriptors import ACTIVATION_MODES

SHAPES = st.lists(st.integers(0, 7), max_size=5).map(tuple)
DTYPES = st.sampled_from(["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8"])


@given(SHAPES, DTYPES)
def test_tensor_repr_can_be_pasted_back(shape: tuple[int, ...], dtype: str) -> None:
    d = TensorDescriptor(shape, dtype)
    assert eval(repr(d), {"TensorDescriptor": TensorDescriptor}) == d
    assert hash(d) == hash(TensorDescriptor(shape, dtype))
    assert d.contiguous
    assert d.size == int(np.prod(shape))


@pytest.mark.parametrize("dtype", [np.float32, "float32", np.dtype("float32"), ml_dtypes.bfloat16])
def test_dtype_is_accepted_in_every_spelling(dtype: object) -> None:
    assert TensorDescriptor((2,), dtype).dtype.name in ("float32", "bfloat16")


def test_from_array_sees_strides_in_elements() -> None:
    x = np.zeros((4, 6), np.float32)[::2, ::3]
    d = TensorDescriptor.from_array(x)
    assert (d.shape, d.strides) == ((2, 2), (12, 3))
    assert not d.contiguous
    assert "strides=(12, 3)" in repr(d)


def test_strides_of_single_elements_do_not_matter() -> None:
    assert TensorDescriptor((1, 3), "float32", (99, 1)).contiguous


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TensorDescriptor((-1,), "float32"), "shape has a bad extent"),
        (lambda: TensorDescriptor((2.5,), "float32"), "shape has a bad extent"),  # type: ignore[arg-type]
        (lambda: TensorDescriptor(None, "float32"), "shape has a bad extent"),  # type: ignore[arg-type]
        (lambda: TensorDescriptor((True,), "float32"), "shape has a bad extent"),
        (lambda: TensorDescriptor((2,), None), "dtype is not an element type"),
        (lambda: TensorDescriptor((2,), "float32", (1.5,)), "strides has a bad step"),  # type: ignore[arg-type]
        (lambda: TensorDescriptor((2,), "float32").bind(-1), "pointer is no address"),
        (lambda: ActivationDescriptor("elu", alpha="1"), "alpha is not a number"),  # type: ignore[arg-type]
        (lambda: ActivationDescriptor("elu", alpha=10**400), "alpha is out of range"),
        (lambda: TensorDescriptor((2,), "complex64"), "dtype is not an element type"),
        (lambda: TensorDescriptor((2,), "float32", (1, 1)), "strides has the wrong length"),
        (lambda: TensorDescriptor((2,), "float32", alignment=3), "alignment is no alignment"),
        (lambda: ActivationDescriptor("rellu"), "mode is unknown"),
        (lambda: ActivationDescriptor("relu", slope=1.0), "slope is not a parameter of relu"),
        (lambda: ActivationDescriptor("elu", alpha=float("nan")), "alpha is not finite"),
        (lambda: ActivationDescriptor("clipped_relu", ceiling=-1.0), "ceiling is out of range"),
        (lambda: ActivationDescriptor("hard_tanh", low=2.0, high=1.0), "low exceeds high"),
        (lambda: LossDescriptor("mes"), "kind is unknown"),
        (lambda: LossDescriptor("mse", reduction="mean"), "reduction is unknown"),
        (lambda: LossDescriptor("huber", delta=0.0), "delta is out of range"),
        (lambda: LossDescriptor("cross_entropy", label_smoothing=1.5), "label_smoothing is out of range"),
    ],
)
def test_bad_descriptor_names_the_argument_and_the_rule(make: object, words: str) -> None:
    with pytest.raises(BadParamError, match=words) as caught:
        make()  # type: ignore[operator]
    assert caught.value.param
    assert caught.value.expected
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_activation_is_a_value(mode: str) -> None:
    d = ActivationDescriptor(mode)
    assert d == create_activation_descriptor(mode)
    assert len({d, ActivationDescriptor(mode)}) == 1
    assert eval(repr(d), {"ActivationDescriptor": ActivationDescriptor}) == d
    for name, default in ACTIVATION_MODES[mode].items():
        assert getattr(d, name) == default
    with pytest.raises(dataclasses.FrozenInstanceError):
        d.mode = "relu"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        _ = d.no_such_parameter


def test_creators_for_those_who_come_from_cudnn() -> None:
    assert create_tensor_descriptor((2, 3), "float16") == TensorDescriptor((2, 3), "float16")
    assert create_loss_descriptor("mse", reduction="sum") == LossDescriptor("mse", reduction="sum")


def test_strides_that_are_no_whole_elements_are_refused() -> None:
    records = np.zeros(4, np.dtype([("a", np.float32), ("b", np.uint8)]))
    with pytest.raises(BadParamError, match="strides are no whole elements"):
        TensorDescriptor.from_array(records["a"])
