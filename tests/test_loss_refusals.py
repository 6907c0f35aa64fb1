"""What the losses and their descriptors refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_loss import INF, NAN, T, X

from dnnprims import BadParamError, LossDescriptor
from dnnprims.ops.loss import loss_backward, loss_forward, loss_forward_backward

F = np.float32


@pytest.mark.parametrize(
    ("param", "loss", "x", "t", "options"),
    [
        ("loss", "median", (2, 3), (2, 3), {}),
        ("loss", None, (2, 3), (2, 3), {}),
        ("prediction", "mse", ((2, 3), np.int32), ((2, 3), np.int32), {}),
        ("prediction", "cross_entropy", (2, 0), ((2,), np.int64), {}),
        ("prediction", "cosine", (), (), {}),
        ("target", "mse", (2, 3), (3, 2), {}),
        ("target", "mse", (2, 3), ((2, 3), np.float64), {}),
        ("target", "mse", (2, 3), ((2,), np.int64), {}),
        ("target", "cross_entropy", (2, 3), ((3,), np.int64), {}),
        ("target", "cross_entropy", (2, 3), ((2, 3), np.int64), {}),
        ("target", "cross_entropy", (2, 3), ((2,), np.uint8), {}),
        ("target", "nll", (2, 3), (2, 3), {}),
        ("weight", "cross_entropy", (2, 3), ((2,), np.int64), {"weight": (2,)}),
        ("weight", "cross_entropy", (2, 3), ((2,), np.int64), {"weight": ((3,), np.float64)}),
        ("weight", "bce", (2, 3), (2, 3), {"weight": (3,)}),
        ("weight", "cosine", (2, 3), (2, 3), {"weight": (2, 3)}),
        ("out", "mse", (2, 3), (2, 3), {"out": (1,)}),
        ("out", "mse", ((2, 3), np.float16), ((2, 3), np.float16), {"out": ((), np.float16)}),
    ],
)
def test_refusals(handle: Any, param: str, loss: Any, x: Any, t: Any, options: dict[str, Any]) -> None:
    """The argument at fault is named, and nothing is written."""

    def made(spec: Any) -> Any:
        shape, dtype = spec if len(spec) == 2 and isinstance(spec[0], tuple) else (spec, F)
        return handle.asarray(np.zeros(shape, dtype))

    given = {name: made(spec) for name, spec in options.items()}
    with pytest.raises(BadParamError) as caught:
        loss_forward(handle, loss, made(x), made(t), **given)
    assert caught.value.param == param
    assert caught.value.op == "loss_forward"


def test_refusals_of_the_backward_pass(handle: Any) -> None:
    """dloss of another shape or dtype, blends without a destination, numbers that are none, overlap, gaps."""
    x, t = handle.asarray(X), handle.asarray(T)
    for param, options in (
        ("dloss", {"dloss": handle.asarray(np.ones(2, F))}),
        ("dloss", {"dloss": handle.asarray(np.ones((), np.float64))}),
        ("out", {"beta": 1.0}),
        ("alpha", {"alpha": NAN}),
        ("out", {"out": handle.asarray(np.ones((2, 3), F))}),
        ("out", {"out": t}),
    ):
        with pytest.raises(BadParamError) as caught:
            loss_backward(handle, "mse", x, t, **options)  # type: ignore[arg-type]
        assert caught.value.param == param
    for param, options in (("scale", {"scale": INF}), ("dprediction", {"dprediction": handle.asarray(np.ones(2, F))})):
        with pytest.raises(BadParamError) as caught:
            loss_forward_backward(handle, "mse", x, t, **options)  # type: ignore[arg-type]
        assert caught.value.param == param
    with pytest.raises(BadParamError, match="not contiguous"):
        loss_forward(handle, "mse", handle.asarray(np.ones((2, 4), F))[:, ::2], t)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "mse", "label_smoothing": 0.1},
        {"kind": "nll", "label_smoothing": 0.1},
        {"kind": "mse", "delta": 2.0},
        {"kind": "huber", "delta": 0.0},
        {"kind": "cosine", "margin": 0.5},
        {"kind": "hinge", "log_target": True},
        {"kind": "cross_entropy", "label_smoothing": 1.5},
        {"kind": "cross_entropy", "ignore_index": 0.5},
        {"kind": "cross_entropy", "ignore_index": 2**63},
        {"kind": "mse", "reduction": "mean"},
    ],
)
def test_descriptor_refuses_what_the_kind_has_not(options: dict[str, Any]) -> None:
    """Options out of range, and options of other kinds."""
    with pytest.raises(BadParamError):
        LossDescriptor(**options)
