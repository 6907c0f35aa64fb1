"""More elements than 32 bits can count, for every primitive: each result equals that of the same call on a part.

On a GPU, slow: every huge tensor has 2^31 + 4,099 elements or a little more, of 16 bits where the primitive allows it,
and no test needs more than 60 GB. Compared are the head, the neighbourhood of element 2^31, where a 32-bit index would
wrap, and the tail, with what the primitive makes of copies of these parts. What a primitive sums over is zero but for
integers in these places, so that sums are exact. The same tests run on the emulator with 2^12 in the place of 2^31.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import HAS_COMPILER, HAS_GPU
from large import Call, Scale

import dnnprims as dp

#: Primitives that a test of this file runs.
COVERED: set[str] = set()


def covers(*ops: Call) -> Callable[[Call], Call]:
    """Say which primitives a test runs."""
    COVERED.update(op.__name__ for op in ops)
    return lambda test: test


SMALL = pytest.param(
    ("emulator", 2**12), id="emulator", marks=pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
)
LARGE = pytest.param(
    ("cuda", 2**31),
    id="cuda",
    marks=[pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")],
)


@pytest.fixture(params=[SMALL, LARGE])
def scale(request: pytest.FixtureRequest) -> Iterator[Scale]:
    """Small on the emulator, large on a GPU, whose memory is given back after each test."""
    made = Scale(*request.param)
    with made.handle:
        yield made
    if made.xp is not np:
        made.xp.get_default_memory_pool().free_all_blocks()


def test_every_primitive_has_a_large_case() -> None:
    """A new one is noticed here."""
    assert {op.__name__ for op in dp.PRIMITIVES} == COVERED


# -- elementwise -----------------------------------------------------------------------------------------------------


@covers(dp.activation_forward, dp.activation_backward)
@pytest.mark.parametrize("offset", [0, 1])
def test_activation(scale: Scale, offset: int) -> None:
    """Packed and unaligned."""
    x = scale.ramp(scale.size + offset)[offset:]
    scale.agrees(lambda x: dp.activation_forward(scale.handle, "leaky_relu", x), x)
    scale.agrees(lambda x: dp.activation_backward(scale.handle, "leaky_relu", x, x=x), x)


@covers(dp.activation_forward, dp.set_tensor, dp.scale_tensor, dp.add_tensor, dp.cast)
def test_strided(scale: Scale) -> None:
    """Every second element, in either direction."""
    x, h = scale.ramp(2 * scale.size), scale.handle
    for view in (x[::2], x[::-2]):
        scale.agrees(lambda x: dp.activation_forward(h, "abs", x), view)
        scale.agrees(lambda x: dp.cast(h, x, "bfloat16"), view)
        scale.agrees(lambda x: dp.scale_tensor(h, x, 2.0), view)
        scale.agrees(lambda x: dp.set_tensor(h, x, 3.0), view)
    scale.agrees(lambda a, c: dp.add_tensor(h, a, c, alpha=-1.0), x[::2], scale.ramp(scale.size))


@covers(dp.set_tensor, dp.scale_tensor, dp.add_tensor, dp.cast)
def test_tensor_operations(scale: Scale) -> None:
    """Packed, with what is added to every row, to every column and everywhere."""
    x, h = scale.ramp(scale.rows, scale.cols), scale.handle
    scale.agrees(lambda x: dp.cast(h, x, "float32"), x)
    scale.agrees(lambda x: dp.cast(h, x, "int32"), x)
    scale.agrees(lambda x: dp.scale_tensor(h, x, 2.0), x)
    bias, column = scale.ramp(scale.cols), scale.ramp(scale.rows, 1)
    scale.agrees(lambda c: dp.add_tensor(h, bias, c, alpha=0.5), x)
    scale.agrees(lambda a, c: dp.add_tensor(h, a, c, beta=-1.0), column, x)
    scale.agrees(lambda a, c: dp.add_tensor(h, a, c), x.copy(), x)
    scale.agrees(lambda x: dp.set_tensor(h, x, 3.0), x)


@covers(dp.prelu_forward, dp.prelu_backward)
def test_prelu(scale: Scale) -> None:
    """One slope, one for each row, and one for each column: as many kernels."""
    x, h = scale.ramp(scale.rows, scale.cols), scale.handle
    one, by_column, by_row = scale.small([0.5]), scale.ramp(scale.cols), scale.ramp(scale.rows)
    for slope in (one, by_column):
        scale.agrees(lambda x, s=slope: dp.prelu_forward(h, x, s, axis=1), x)
        scale.agrees(lambda dy, x, s=slope: dp.prelu_backward(h, dy, x, s, axis=1, needs=("dx",)), x, x)
    scale.agrees(lambda x, s: dp.prelu_forward(h, x, s, axis=0), x, by_row)
    scale.agrees(lambda dy, x, s: dp.prelu_backward(h, dy, x, s, axis=0), x, x, by_row)
    negative, dy = -1 * scale.xp.ones_like(x), scale.sparse(scale.rows, scale.cols)
    (total,) = scale.results(lambda: dp.prelu_backward(h, dy, negative, one, axis=1, needs=("dslope",)))
    assert scale.host(total).item() == -6
    (sums,) = scale.results(lambda: dp.prelu_backward(h, dy, negative, by_column, axis=1, needs=("dslope",)))
    expected = np.zeros(scale.cols)
    for place, value in scale.places(dy.size).items():
        expected[place % scale.cols] -= value
    np.testing.assert_array_equal(scale.host(sums), expected)


@covers(dp.maxout_forward, dp.maxout_backward)
@pytest.mark.parametrize("pool", [4, 5])
def test_maxout(scale: Scale, pool: int) -> None:
    """Groups in registers and not, along the last axis and the first."""
    h, units = scale.handle, scale.size // pool + 1
    x = scale.ramp(units * pool)
    scale.agrees(lambda x: dp.maxout_forward(h, x, pool), x, units=units)
    y, which = dp.maxout_forward(h, x, pool)
    scale.agrees(lambda dy, which: dp.maxout_backward(h, dy, which, pool), y, which)
    x = x.reshape(pool, units)
    scale.agrees(lambda x: dp.maxout_forward(h, x, pool, axis=0), x, axis=1)
    y, which = (a.reshape(1, units) for a in (y, which))
    scale.agrees(lambda dy, which: dp.maxout_backward(h, dy, which, pool, axis=0), y, which, axis=1)


@covers(dp.glu_forward, dp.glu_backward)
def test_glu(scale: Scale) -> None:
    """Gates beside the values, and behind all of them."""
    x, h = scale.ramp(scale.rows, scale.cols), scale.handle
    scale.agrees(lambda x: dp.glu_forward(h, x, gate="swish"), x)
    scale.agrees(lambda dy, x: dp.glu_backward(h, dy, x, gate="swish"), x[:, ::2].copy(), x)
    x = x.reshape(2, -1)
    scale.agrees(lambda x: dp.glu_forward(h, x, axis=0), x, axis=1)
    scale.agrees(lambda dy, x: dp.glu_backward(h, dy, x, axis=0), x[:1].copy(), x, axis=1)


# -- along rows ------------------------------------------------------------------------------------------------------


@covers(dp.softmax_forward, dp.softmax_backward)
@pytest.mark.parametrize("algorithm", ["accurate", "log"])
@pytest.mark.parametrize("cols", [16, 1024, 17_000])
def test_softmax(scale: Scale, algorithm: str, cols: int) -> None:
    """Rows in the registers of part of a warp, in those of a block, and longer ones."""
    x, h = scale.ramp(scale.wrap // cols + 5, cols), scale.handle
    scale.agrees(lambda x: dp.softmax_forward(h, x, algorithm=algorithm), x)
    scale.agrees(lambda dy, y: dp.softmax_backward(h, dy, y, algorithm=algorithm), x, x)


@covers(dp.softmax_forward, dp.softmax_backward)
def test_softmax_across(scale: Scale) -> None:
    """Along the middle axis, and along the first of a wide matrix."""
    h, rows = scale.handle, scale.rows // 5 + 1
    x = scale.ramp(rows, 5, scale.cols)
    scale.agrees(lambda x: dp.softmax_forward(h, x, axis=1), x)
    scale.agrees(lambda dy, y: dp.softmax_backward(h, dy, y, axis=1), x, x)
    x = x.reshape(5, -1)
    scale.agrees(lambda x: dp.softmax_forward(h, x, axis=0), x, axis=1)
    scale.agrees(lambda dy, y: dp.softmax_backward(h, dy, y, axis=0), x, x, axis=1)


@covers(dp.reduce_tensor)
def test_reductions(scale: Scale) -> None:
    """Over everything, along rows and along columns; the place of the largest is beyond 32 bits."""
    h, x = scale.handle, scale.sparse(scale.size)
    for operation, expected in (("sum", 6), ("max", 3), ("norm1", 6), ("amax", 3)):
        assert scale.host(dp.reduce_tensor(h, x, operation)).item() == expected
    x[scale.size - 3] = 100
    assert scale.host(dp.reduce_tensor(h, x, "argmax")).item() == scale.size - 3
    x = scale.ramp(scale.rows, scale.cols)
    wide = x.reshape(-1)[: x.size // 5 * 5].reshape(5, -1)
    for operation in ("max", "argmin", "sum"):
        scale.agrees(lambda x, o=operation: dp.reduce_tensor(h, x, o, axis=1), x)
        for few in (wide, wide[:, ::2]):
            scale.agrees(lambda x, o=operation: dp.reduce_tensor(h, x, o, axis=0, keepdims=True), few, axis=1)


@covers(dp.loss_forward, dp.loss_backward, dp.loss_forward_backward)
@pytest.mark.parametrize("kind", ["cross_entropy", "nll", "cosine", "mse"])
@pytest.mark.parametrize("cols", [8, 1024])
def test_losses(scale: Scale, kind: str, cols: int) -> None:
    """A loss for each row, with labels and with targets, and its gradient."""
    rows, h = scale.wrap // cols + 5, scale.handle
    x, loss = scale.ramp(rows, cols), dp.LossDescriptor(kind, reduction="none")
    labels = (scale.xp.arange(rows) * 7 % cols).astype(np.int32)
    target = labels if kind in ("cross_entropy", "nll") else x[::-1].copy()
    scale.agrees(lambda x, t: dp.loss_forward(h, loss, x, t), x, target)
    dloss = dp.loss_forward(h, loss, x, target)
    scale.agrees(lambda x, t, d: dp.loss_backward(h, loss, x, t, dloss=d), x, target, dloss)
    scale.agrees(lambda x, t: dp.loss_forward_backward(h, loss, x, t), x, target)


@covers(dp.loss_forward)
def test_loss_over_everything(scale: Scale) -> None:
    """A sum of few integers, over more than 2^31 elements."""
    x, zeros = scale.sparse(scale.size), scale.xp.zeros(scale.size, np.float16)
    total = dp.loss_forward(scale.handle, dp.LossDescriptor("mse", reduction="sum"), x, zeros)
    assert scale.host(total).item() == 14


# -- lists -----------------------------------------------------------------------------------------------------------


@covers(dp.sgd_update)
def test_sgd(scale: Scale) -> None:
    """With momentum."""

    def call(w: Any, g: Any, v: Any) -> tuple[Any, ...]:
        dp.sgd_update(scale.handle, [w], [g], velocities=[v], lr=0.5, momentum=0.5)
        return w, v

    scale.agrees(call, scale.ramp(scale.size), scale.ramp(scale.size), scale.ramp(scale.size, dtype=np.float32))


@covers(dp.adam_update, dp.adamw_update)
@pytest.mark.parametrize("update", [dp.adam_update, dp.adamw_update])
def test_adam(scale: Scale, update: Call) -> None:
    """Weights and gradients in float16, moments in float32."""

    def call(w: Any, g: Any, m: Any, v: Any) -> tuple[Any, ...]:
        update(scale.handle, [w], [g], [m], [v], lr=0.5, step=3)
        return w, m, v

    w, g = (scale.ramp(scale.size) for _ in range(2))
    m, v = (scale.xp.abs(scale.ramp(scale.size, dtype=np.float32)) for _ in range(2))
    scale.agrees(call, w, g, m, v)


@covers(dp.global_norm, dp.clip_by_global_norm, dp.scale_and_check_finite)
def test_gradients(scale: Scale) -> None:
    """The norm of few integers, what it clips to, and an infinity in the last place but two."""
    h, x, few = scale.handle, scale.sparse(scale.size), scale.small([3, 0, 1, 2])
    assert scale.host(dp.global_norm(h, [x])).item() == scale.host(dp.global_norm(h, [few])).item()
    dp.clip_by_global_norm(h, [x], 1.0)
    dp.clip_by_global_norm(h, [few], 1.0)
    places = scale.host(x[:1]), scale.host(x[scale.wrap + 77 : scale.wrap + 78]), scale.host(x[-3:-2])
    np.testing.assert_array_equal(np.concatenate(places), scale.host(few)[[0, 2, 3]])
    found = scale.xp.zeros((), np.int32)

    def rescale(x: Any) -> Any:
        dp.scale_and_check_finite(h, [x], 0.5, found_inf=found)
        return x

    scale.agrees(rescale, scale.ramp(scale.size))
    assert scale.host(found).item() == 0
    x[-3] = np.inf
    rescale(x)
    assert scale.host(found).item() != 0


# -- convolutions ----------------------------------------------------------------------------------------------------


@covers(dp.conv_forward, dp.conv_backward_data, dp.conv_backward_filter, dp.conv_backward_bias)
@covers(dp.conv_transpose_forward, dp.conv_transpose_backward)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_convolutions(scale: Scale, layout: str) -> None:
    """Image by image, results as large as images; what is summed over images is zero but in few of them."""
    h, conv = scale.handle, dp.ConvolutionDescriptor(padding=1, layout=layout)
    image, filters = ((8, 16), (8, 8, 3)) if layout == "NCHW" else ((16, 8), (8, 3, 8))
    x, w = scale.ramp(scale.wrap // 128 + 17, *image), scale.integers(*filters)
    described = dp.TensorDescriptor.from_array(w)
    scale.agrees(lambda x: dp.conv_forward(h, conv, x, w), x)
    scale.agrees(
        lambda dy: dp.conv_backward_data(h, conv, dy, w, x_descriptor=dp.TensorDescriptor(dy.shape, "float16")), x
    )
    scale.agrees(lambda x: dp.conv_transpose_forward(h, conv, x, w), x)
    scale.agrees(lambda dy: dp.conv_transpose_backward(h, conv, dy, dy, w, needs=("dx",)), x)
    dy = scale.sparse(*x.shape)
    busy = sorted({place // 128 for place in scale.places(dy.size)})
    few, seen = (scale.xp.concatenate([a[i : i + 1] for i in busy]) for a in (dy, x))
    for one, other in (
        (dp.conv_backward_filter(h, conv, a, b, w_descriptor=described) for a, b in ((dy, x), (few, seen))),
        (dp.conv_backward_bias(h, conv, a) for a in (dy, few)),
        *zip(
            *(dp.conv_transpose_backward(h, conv, a, b, w, needs=("dw", "db"))[1:] for a, b in ((dy, x), (few, seen))),
            strict=True,
        ),
    ):
        np.testing.assert_array_equal(scale.host(one), scale.host(other))


@covers(dp.pooling_forward, dp.pooling_backward)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mode", ["max", "average_exclude_padding"])
def test_poolings(scale: Scale, layout: str, mode: str) -> None:
    """Image by image: in packs of channels, in rows, and, with a step along the last axis, by single elements."""
    h, pooling = scale.handle, dp.PoolingDescriptor(mode, 3, 2, padding=1, layout=layout)
    image, wanted = (8, 4, 4), mode == "max"
    x = scale.ramp(scale.wrap // 128 + 17, *image)
    for view in (x, scale.ramp(x.shape[0], 8, 4, 8)[..., ::2]):
        scale.agrees(lambda x: dp.pooling_forward(h, pooling, x, with_indices=wanted), view)
        y = dp.pooling_forward(h, pooling, view, with_indices=wanted)
        given = y if wanted else (y,)
        if view is not x:
            given = (scale.xp.repeat(given[0], 2, axis=-1)[..., ::2], *given[1:])
        scale.agrees(
            lambda dy, *indices: dp.pooling_backward(
                h, pooling, dy, x_descriptor=dp.TensorDescriptor((dy.shape[0], *image), "float16"),
                indices=indices[0] if indices else None,
            ),
            *given,
        )  # fmt: skip


# -- batch norms -----------------------------------------------------------------------------------------------------


@covers(dp.batchnorm_forward_training, dp.batchnorm_forward_inference, dp.batchnorm_backward)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("offset", [0, 1])
def test_batch_norms(scale: Scale, layout: str, offset: int) -> None:
    """Element by element with statistics that are given; the batch's own of what is zero but in few places."""
    h, norm, channels = scale.handle, dp.BatchNormDescriptor(layout=layout, epsilon=0.0), 16
    image = (channels, 8) if layout == "NCHW" else (8, channels)
    rows = scale.wrap // 128 + 17
    x = scale.ramp(rows * 128 + offset)[offset:].reshape(rows, *image)
    ones = scale.xp.ones(channels, np.float32)
    zeros, halves = 0 * ones, 0.5 * ones
    scale.agrees(lambda x: dp.batchnorm_forward_inference(h, norm, x, halves, ones, zeros, ones, activation="relu"), x)
    dy = scale.sparse(rows * 128 + offset)[offset:].reshape(rows, *image)
    _, dgamma, dbeta, dz = dp.batchnorm_backward(
        h, norm, dy, x, ones, zeros, ones, needs=("dgamma", "dbeta", "dresidual")
    )
    y, mean, _ = dp.batchnorm_forward_training(h, dp.BatchNormDescriptor(layout=layout), dy, ones, zeros)
    axes = (0, 2) if layout == "NCHW" else (0, 1)
    busy = sorted(
        {place // 128 for place in scale.places(dy.size)}
        | {max(place // 128 - 1, 0) for place in scale.places(dy.size)}
    )
    few, seen = (np.concatenate([scale.host(a[i : i + 1]) for i in busy]).astype(np.float64) for a in (dy, x))
    np.testing.assert_array_equal(scale.host(dbeta), few.sum(axes))
    np.testing.assert_array_equal(scale.host(dgamma), (few * seen).sum(axes))
    np.testing.assert_array_equal(scale.host(dz[-1:]), scale.host(dy[-1:]))
    np.testing.assert_allclose(scale.host(mean), few.sum(axes) / (rows * 8), rtol=2.0**-18, atol=0)
    assert not scale.host(scale.xp.isnan(y[-1:])).any()


# -- products --------------------------------------------------------------------------------------------------------


@covers(dp.fc_forward, dp.fc_backward, dp.fc_backward_data, dp.fc_backward_weights, dp.fc_backward_bias)
@pytest.mark.parametrize("own", [False, True], ids=["as_chosen", "own_kernel"])
def test_fully_connected(scale: Scale, own: bool) -> None:
    """Products of rank 8 of small integers, exact: the results, the inputs or the weights lie beyond 2^31."""
    h, n, k = scale.handle, 4 * scale.cols, 8
    if own:
        h.profile = dataclasses.replace(h.profile, blaslt=False)
    m = scale.wrap // n + 17
    x, w, b = scale.integers(m, k), scale.integers(n, k), scale.integers(n)
    scale.agrees(lambda x: dp.fc_forward(h, x, w, b, activation="relu"), x)
    dy = dp.fc_forward(h, x, w, b)
    scale.agrees(lambda dy: dp.fc_backward_data(h, dy, w), dy // 8)
    scale.agrees(lambda dy, x: dp.fc_backward(h, dy, x, w, needs=("dx",), activation="relu", y=dy), dy // 8, x)
    dy = scale.sparse(m, n)
    busy = sorted({place // n for place in scale.places(dy.size)})
    few, left = (scale.xp.concatenate([a[row : row + 1] for row in busy]) for a in (dy, x))
    for one, other in (
        (dp.fc_backward_weights(h, dy, x), dp.fc_backward_weights(h, few, left)),
        (dp.fc_backward_bias(h, dy), dp.fc_backward_bias(h, few)),
        *zip(*(dp.fc_backward(h, a, c, w, needs=("dw", "db")) for a, c in ((dy, x), (few, left))), strict=True),
    ):
        np.testing.assert_array_equal(scale.host(one), scale.host(other))
    dy, right = scale.integers(k, m), scale.integers(k, n)
    scale.agrees(lambda dy: dp.fc_backward_weights(h, dy, right)[None], dy, axis=1)
