"""SGD: hand values of both forms, device scalars, masters, refusals. All numbers are exact in every dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dnnprims.descriptors import TensorDescriptor
from dnnprims.errors import BadParamError
from dnnprims.ops.sgd import plan_sgd_update, sgd_update
from dnnprims.runtime.launch import Profile

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
FORMS = ("accumulate_gradient", "accumulate_step")


def accumulator(dtype):
    return np.float64 if dtype == np.float64 else np.float32


class Problem:
    """One weight of 8, one gradient of 2, a velocity of 0."""

    def __init__(self, handle, dtype=np.float32, count=3):
        self.handle = handle
        self.w = handle.asarray(np.full(count, 8, dtype))
        self.g = handle.asarray(np.full(count, 2, dtype))
        self.v = handle.asarray(np.zeros(count, accumulator(dtype)))

    def step(self, **options):
        assert sgd_update(self.handle, self.w, self.g, self.v, **options) is None
        w, v = self.handle.to_numpy(self.w), self.handle.to_numpy(self.v)
        assert (w == w[0]).all()
        assert (v == v[0]).all()
        return float(w[0]), float(v[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("form", "second"), [("accumulate_gradient", (4.5, 3.0)), ("accumulate_step", (4.0, -2.0))])
def test_the_forms_differ_when_lr_changes(handle, dtype, form, second):
    problem = Problem(handle, dtype)
    sign = 1.0 if form == "accumulate_gradient" else -1.0
    assert problem.step(lr=1.0, momentum=0.5, form=form) == (6.0, 2.0 * sign)
    assert problem.step(lr=0.5, momentum=0.5, form=form) == second


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.25])
def test_the_forms_agree_at_a_constant_lr(handle, nesterov, dampening):
    if nesterov and dampening:
        pytest.skip("refused")
    problems = [Problem(handle), Problem(handle)]
    for _ in range(4):
        options = {"lr": 0.5, "momentum": 0.5, "dampening": dampening, "nesterov": nesterov, "weight_decay": 0.25}
        weights = [problem.step(form=form, **options)[0] for problem, form in zip(problems, FORMS, strict=True)]
        assert weights[0] == weights[1]


@pytest.mark.parametrize("form", FORMS)
def test_nesterov_looks_ahead(handle, form):
    assert Problem(handle).step(lr=1.0, momentum=0.5, nesterov=True, form=form)[0] == 5.0


@pytest.mark.parametrize("form", FORMS)
def test_dampening_holds_from_the_first_step(handle, form):
    problem = Problem(handle)
    assert problem.step(lr=1.0, momentum=0.5, dampening=0.5, form=form)[0] == 7.0


def test_weight_decay_and_gradient_scale(handle):
    assert Problem(handle).step(lr=1.0, weight_decay=0.25, gradient_scale=2.0)[0] == 2.0


def test_velocities_may_be_left_out_without_momentum(handle):
    problem = Problem(handle)
    sgd_update(handle, problem.w, problem.g, lr=0.5)
    assert handle.to_numpy(problem.w).tolist() == [7.0] * 3


@pytest.mark.parametrize("count", [3, 64])
def test_without_momentum_old_velocities_are_not_read(handle, count):
    """Neither are those that an earlier launch left where this one has its own."""
    with np.errstate(invalid="ignore"):
        sgd_update(
            handle, *(handle.asarray(np.full(count, np.nan, np.float32)) for _ in range(3)), lr=0.5, momentum=0.5
        )
        problem = Problem(handle, count=count)
        problem.v = handle.asarray(np.full(count, np.nan, np.float32))
        assert problem.step(lr=0.5) == (7.0, 2.0)


@pytest.mark.parametrize("scalar", [np.float32, np.float64])
def test_scalars_on_the_device(handle, scalar):
    problem = Problem(handle)
    lr, scale = handle.asarray(scalar(0.5)), handle.asarray(scalar(2.0))
    assert problem.step(lr=lr, gradient_scale=scale)[0] == 6.0
    assert problem.step(lr=np.float32(0.5))[0] == 5.0


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_found_inf_skips_the_step(handle, momentum):
    problem = Problem(handle)
    assert problem.step(lr=1.0, momentum=momentum, found_inf=handle.asarray(np.int32(1))) == (8.0, 0.0)
    assert problem.step(lr=1.0, momentum=momentum, found_inf=handle.asarray(np.int32(0)))[0] == 6.0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_masters_keep_what_the_weights_lose(handle, dtype):
    """Steps of 2^-12 vanish in a 16-bit 1 and add up in the master: sixteen of them make 2^-8."""
    count = 5
    w, g = (handle.asarray(np.full(count, value, dtype)) for value in (1.0, -1.0))
    master = handle.asarray(np.ones(count, np.float32))
    for done in range(1, 17):
        sgd_update(handle, w, g, lr=2.0**-12, masters=master)
        exact = handle.to_numpy(master)
        assert (exact == 1.0 + done * 2.0**-12).all()
        assert (handle.to_numpy(w) == exact.astype(dtype)).all()
    alone = handle.asarray(np.full(count, 1.0, dtype))
    sgd_update(handle, alone, g, lr=2.0**-12)
    assert (handle.to_numpy(alone) == dtype(1.0)).all()


def mixed_lists(handle, count, momentum):
    """Tensors of many sizes, dtypes and alignments, with the arrays expected after one step of lr 0.5."""
    rng = np.random.default_rng(7)
    sizes = [0, 1, 3, 4, 2047, 2048, 2049, 4099, *rng.integers(0, 200, count).tolist()]
    lists, wanted = ([], [], [], []), ([], [], [])
    for i, size in enumerate(sizes[:count]):
        dtype = DTYPES[i % len(DTYPES)]
        skip = i % 3 == 1
        shape = (size,) if i % 2 else (1, size, 1)
        values = [rng.integers(-16, 17, size + skip).astype(np.float64) for _ in range(3)]
        types = (dtype, dtype, accumulator(dtype), accumulator(dtype))
        for made, value, kind in zip(lists, (*values, values[0]), types, strict=True):
            made.append(handle.asarray(value.astype(kind))[int(skip) :].reshape(shape))
        w, g, v = (value[int(skip) :].reshape(shape) for value in values)
        velocity = momentum * v + g
        for result, value, kind in zip(
            wanted, (w - 0.5 * velocity, velocity, w - 0.5 * velocity), types[:1] + types[2:], strict=True
        ):
            result.append(value.astype(kind))
    return lists, wanted


@pytest.mark.parametrize("masters", [False, True])
def test_many_tensors_of_mixed_sizes_and_dtypes(handle, masters):
    (w, g, v, m), wanted = mixed_lists(handle, 300, 0.5)
    sgd_update(handle, w, g, v, lr=0.5, momentum=0.5, masters=m if masters else None)
    for made, expected in zip((w, v, m) if masters else (w, v), wanted, strict=False):
        for a, b in zip(made, expected, strict=True):
            np.testing.assert_array_equal(handle.to_numpy(a), b)


def test_large_tensors_are_cut_into_chunks(handle):
    w, g = handle.asarray(np.arange(10_007.0)), handle.asarray(np.ones(10_007))
    sgd_update(handle, w, g, lr=1.0)
    np.testing.assert_array_equal(handle.to_numpy(w), np.arange(10_007.0) - 1.0)


def test_empty_lists(handle):
    assert sgd_update(handle, [], [], [], lr=0.1, momentum=0.9) is None
    assert sgd_update(handle, [], [], lr=0.1) is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"lr": float("nan")}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": -0.1}, "lr"),
        ({"lr": None}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"lr": 0.1, "momentum": -1.0}, "momentum"),
        ({"lr": 0.1, "momentum": 0.9}, "velocities"),
        ({"lr": 0.1, "dampening": 1.5}, "dampening"),
        ({"lr": 0.1, "nesterov": True}, "momentum"),
        ({"lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening"),
        ({"lr": 0.1, "weight_decay": float("nan")}, "weight_decay"),
        ({"lr": 0.1, "form": "heavy_ball"}, "form"),
        ({"lr": 0.1, "gradient_scale": float("inf")}, "gradient_scale"),
    ],
)
def test_refused_options_name_the_argument_and_change_nothing(handle, options, param):
    problem = Problem(handle)
    with pytest.raises(BadParamError) as refusal:
        sgd_update(handle, problem.w, problem.g, **options)
    assert refusal.value.param == param
    assert refusal.value.op == "sgd_update"
    assert handle.to_numpy(problem.w).tolist() == [8.0] * 3


def test_refused_arrays_name_the_item_and_change_nothing(handle):
    def array(shape, dtype=np.float32):
        return handle.asarray(np.ones(shape, dtype))

    w, g, v = [array(3), array((2, 2))], [array(3), array((2, 2))], [array(3), array((2, 2))]
    cases = [
        (w, g[:1], v, {}, "gradients"),
        (w, [g[0], array(4)], v, {}, "gradients[1]"),
        (w, [g[0], array((2, 2), np.float64)], v, {}, "gradients[1]"),
        (w, g, [array(3), array((2, 2), np.float64)], {}, "velocities[1]"),
        (w, [g[0], None], v, {}, "gradients[1]"),
        (w, None, v, {}, "gradients"),
        (None, g, v, {}, "weights"),
        ([w[0], w[0]], [g[0], g[0]], None, {}, "weights"),
        (w, g, w, {}, None),
        (w, g, v, {"masters": [array(3)]}, "masters"),
        (w, g, v, {"lr": array(1)}, "lr"),
        (w, g, v, {"lr": handle.asarray(np.int32(1))}, "lr"),
        (w, g, v, {"found_inf": handle.asarray(np.float32(0))}, "found_inf"),
        (w, [g[0], array((4, 4))[::2, ::2]], v, {}, "gradients[1]"),
        (w, [g[0], object()], v, {}, "gradients[1]"),
        ([array(3, np.int32)], [array(3, np.int32)], None, {}, "weights[0]"),
    ]
    for weights, gradients, velocities, options, param in cases:
        with pytest.raises(BadParamError) as refusal:
            sgd_update(handle, weights, gradients, velocities, **{"lr": 0.5, **options})
        if param:
            assert refusal.value.param.split("[")[0] == param.split("[")[0]
            assert param in str(refusal.value)
    for a in (*w, *v):
        assert (handle.to_numpy(a) == 1).all()


def test_chunks_cover_each_element_once():
    sizes = [0, 1, 5000, 70_000, 3_000_000]
    x = tuple(TensorDescriptor((size,), "float32", alignment=4 if size == 1 else 16) for size in sizes)
    spec = plan_sgd_update(Profile("cuda"), "accumulate_step", False, False, x, x, None, None, None, None, None)
    (rows,) = (np.frombuffer(data, np.int32).reshape(-1, 4) for data in spec.constants)
    chunk = rows[rows[:, 1] == 0][-1, 2]
    assert spec.steps[0].grid == (len(rows) * (chunk // 1024), 1, 1)
    for tensor, size in enumerate(sizes):
        mine = rows[rows[:, 0] == tensor]
        assert mine[:, 2].sum() == size
        assert (mine[:, 1] == np.arange(len(mine))).all()
        assert (mine[:-1, 2] == chunk).all()
        assert (mine[:, 3] == (size != 1)).all()


def test_the_same_call_gives_the_same_bits(handle):
    rng = np.random.default_rng(3)
    values = [rng.standard_normal(5000).astype(np.float32) for _ in range(3)]
    runs = []
    for _ in range(2):
        w, g, v = map(handle.asarray, values)
        sgd_update(handle, w, g, v, lr=0.1, momentum=0.9, weight_decay=0.01)
        runs.append(handle.to_numpy(w).tobytes() + handle.to_numpy(v).tobytes())
    assert runs[0] == runs[1]
