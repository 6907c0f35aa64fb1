"""What the layers refuse, and which plans they make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_fc import GPU, B, W, X, Z, of, wide

import dnnprims
from dnnprims.conformance import bounds
from dnnprims.descriptors import TensorDescriptor
from dnnprims.errors import BadParamError, NotSupportedError
from dnnprims.ops.fc import (
    fc_backward,
    fc_backward_weights,
    fc_forward,
    plan_fc_backward,
    plan_fc_backward_bias,
    plan_fc_forward,
)
from dnnprims.reference import fc as reference
from dnnprims.runtime.gemm import WORKSPACE_BYTES, GemmStep
from dnnprims.runtime.launch import Profile

# -- refusals --------------------------------------------------------------------------------------------------------


def _arrays(handle: Any, *shapes: tuple[int, ...], dtype: str = "float32") -> list[Any]:
    return [handle.asarray(np.zeros(shape, dtype)) for shape in shapes]


def test_wrong_shapes_and_dtypes_are_named(handle: Any) -> None:
    x, w, b, bad = _arrays(handle, (4, 3), (5, 3), (5,), (6,))
    with pytest.raises(BadParamError, match=r"fc_forward: w has the wrong shape: got \(5, 3\), expected \(5, 2\)"):
        fc_forward(handle, _arrays(handle, (4, 2))[0], w)
    with pytest.raises(BadParamError, match=r"fc_forward: b has the wrong shape"):
        fc_forward(handle, x, w, bad)
    with pytest.raises(BadParamError, match=r"fc_forward: w has the wrong rank"):
        fc_forward(handle, x, b)
    with pytest.raises(BadParamError, match=r"fc_forward: w has another dtype than x"):
        fc_forward(handle, x, _arrays(handle, (5, 3), dtype="float64")[0])
    with pytest.raises(BadParamError, match=r"fc_forward: x has a dtype"):
        fc_forward(handle, *_arrays(handle, (4, 3), (5, 3), dtype="int32"))
    with pytest.raises(BadParamError, match=r"fc_forward: w is not contiguous"):
        fc_forward(handle, x, _arrays(handle, (3, 5))[0].T)
    with pytest.raises(BadParamError, match=r"fc_forward: activation is no activation"):
        fc_forward(handle, x, w, activation="rely")
    with pytest.raises(BadParamError, match=r"fc_forward: out is missing"):
        fc_forward(handle, x, w, beta=1.0)
    with pytest.raises(BadParamError, match=r"fc_backward_weights: x has the wrong shape"):
        fc_backward_weights(handle, *_arrays(handle, (4, 5), (3, 3)))


def test_what_backward_lacks_is_named(handle: Any) -> None:
    dy, x, w = _arrays(handle, (4, 5), (4, 3), (5, 3))
    with pytest.raises(BadParamError, match=r"fc_backward: y is missing"):
        fc_backward(handle, dy, x, w, activation="relu")
    with pytest.raises(BadParamError, match=r"fc_backward: aux is missing"):
        fc_backward(handle, dy, x, w, activation="gelu")
    with pytest.raises(BadParamError, match=r"fc_backward: x is missing"):
        fc_backward(handle, dy, None, w)
    with pytest.raises(BadParamError, match=r"fc_backward: needs"):
        fc_backward(handle, dy, x, w, needs=("dz",))
    with pytest.raises(BadParamError, match=r"fc_backward: dw is missing"):
        fc_backward(handle, dy, x, w, beta=1.0)
    with pytest.raises(BadParamError, match=r"fc_backward: db is not in needs"):
        fc_backward(handle, dy, x, w, needs=("dx",), db=_arrays(handle, (5,))[0])


def test_a_refused_call_changes_nothing(handle: Any) -> None:
    x, w = _arrays(handle, (4, 4), (4, 4))
    with pytest.raises(BadParamError, match="overlaps"):
        fc_forward(handle, x, w, out=x)
    assert not handle.to_numpy(x).any()


# -- plans -----------------------------------------------------------------------------------------------------------


def _forward_plan(mode: str | None, *, profile: Profile = GPU, dtype: str = "bfloat16", **given: Any) -> Any:
    n = given.pop("n", 64)
    m = given.pop("m", 64)
    shapes = {"b": (n,), "out": (m, n), "aux": (m, n)}
    described = [TensorDescriptor(shapes[name], dtype) if given.get(name) else None for name in ("b", "out", "aux")]
    x, w = TensorDescriptor((m, 16), dtype), TensorDescriptor((n, 16), dtype)
    return plan_fc_forward(profile, mode, given.get("alpha", 1.0), given.get("beta", 0.0), x, w, *described)


@pytest.mark.parametrize(
    ("mode", "given", "variant"),
    [
        ("relu", {"b": 1}, "lt_epilogue"),
        ("relu", {"b": 1, "aux": 1}, "lt_then_pass"),
        ("relu", {"b": 1, "alpha": 2.0}, "lt_then_pass"),
        ("gelu_tanh", {"b": 1}, "lt_epilogue"),
        ("gelu_tanh", {"b": 1, "aux": 1}, "lt_epilogue"),
        ("gelu_tanh", {"b": 1, "aux": 1, "n": 60}, "lt_then_pass"),
        ("gelu_tanh", {"b": 1, "n": 60}, "lt_then_pass"),
        ("gelu_tanh", {"b": 1, "dtype": "float32"}, "lt_then_pass"),
        ("tanh", {"b": 1}, "lt_then_pass"),
        ("tanh", {"b": 1, "m": 9}, "few_rows"),
        ("tanh", {"b": 1, "m": 9, "aux": 1, "n": 61}, "few_rows"),
        ("tanh", {"b": 1, "m": 9, "dtype": "float32"}, "lt_then_pass"),
        ("tanh", {"b": 1, "n": 35}, "few_rows"),
        ("mish", {"b": 1, "m": 9}, "lt_then_pass"),
        (None, {"b": 1}, "lt_epilogue"),
        (None, {"out": 1, "alpha": 2.0, "beta": 1.0}, "lt_epilogue"),
        (None, {"b": 1, "out": 1, "alpha": 2.0, "beta": 1.0}, "lt_then_pass"),
        (None, {"b": 1, "profile": Profile("emulator")}, "tiled_kernel"),
    ],
)
def test_what_is_fused(mode: str | None, given: dict[str, Any], variant: str) -> None:
    spec = _forward_plan(mode, **given)
    assert spec.variant == variant
    assert len(spec.steps) == (
        1 if variant in ("few_rows", "lt_epilogue") or (mode is None and "alpha" not in given) else 2
    )
    assert all(reason for _, reason in spec.refused)


def test_a_limit_on_the_workspace_is_kept() -> None:
    tight = Profile("cuda", blaslt=True, workspace_limit=0)
    assert _forward_plan("relu", b=1, m=129).workspace_bytes == WORKSPACE_BYTES
    assert _forward_plan("relu", b=1).workspace_bytes == 1 << 20  # so that few rows are done in one launch
    assert _forward_plan("relu", b=1, dtype="float32").workspace_bytes == WORKSPACE_BYTES
    spec = _forward_plan("relu", profile=tight, b=1)
    assert spec.workspace_bytes == 0
    assert isinstance(spec.steps[0], GemmStep)
    with pytest.raises(NotSupportedError, match="fc_forward: workspace_limit needs workspace"):
        _forward_plan("tanh", profile=tight, out=1, beta=1.0)
    dy, x, w = (TensorDescriptor(s, "float32") for s in ((500, 8), (500, 4), (8, 4)))
    with pytest.raises(NotSupportedError, match="fc_backward"):
        plan_fc_backward(tight, "relu", ("dx",), 0.0, dy, x, w, dy, None, None, None, None)
    whole = plan_fc_backward_bias(tight, 1.0, 0.0, dy, None)
    assert (whole.variant, whole.workspace_bytes) == ("whole_columns", 0)
    assert plan_fc_backward_bias(GPU, 1.0, 0.0, dy, None).variant == "split_rows"


def test_forward_without_workspace_is_right(handle: Any) -> None:
    with dnnprims.create_handle(handle.backend, workspace_limit=0) as tight:
        for mode in ("identity", "relu", "tanh"):
            y = fc_forward(tight, *map(tight.asarray, (X, W, B)), activation=mode)
            bound = 4 * bounds.ulp(Z, "float32")
            expected = reference.fc_forward(wide(X), wide(W), wide(B), activation=of(mode))
            assert (np.abs(tight.to_numpy(y) - expected) <= bound).all()
