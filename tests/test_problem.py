"""The call line: any call as text and back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hostile import anything, like_array, spoilt
from hypothesis import strategies as st
from test_refusals import GOOD

import dnnprims as dp
from dnnprims.callsite import current_call
from dnnprims.problem import HANDLE_OPTIONS, CallLine, Operand, Unknown
from dnnprims.problem.words import known, read, write

OPS = {op.__name__: op for op in dp.PRIMITIVES}
each_primitive = pytest.mark.parametrize("op", dp.PRIMITIVES, ids=lambda op: op.__name__)


def examples(count: int) -> hypothesis.settings:
    """So many, the same ones each time, however slow."""
    slow = list(hypothesis.HealthCheck)
    return hypothesis.settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=slow
    )


def line_of(name: str, **arguments: Any) -> str:
    """The text of a call, seen to come back from it."""
    line = CallLine.of(OPS[name], arguments)
    assert CallLine.parse(str(line)) == line
    return str(line)


def assert_fit(text: str) -> None:
    """One field of a log line, one word of a shell between double quotes."""
    assert text == " ".join(text.split())
    assert not set(text) & set(',"$`\\!\n\r')
    assert text.isascii()
    assert text.isprintable()


# -- legal calls -----------------------------------------------------------------------------------------------------


def test_line_of_the_documentation() -> None:
    x, w = np.zeros((64, 128), ml_dtypes.bfloat16), np.zeros((10, 128), ml_dtypes.bfloat16)
    text = line_of("fc_forward", x=x, w=w, b=None, activation="gelu", alpha=1.0, beta=0.0)
    assert text == "fc_forward x=bfloat16:64x128 w=bfloat16:10x128 activation=gelu"


@each_primitive
def test_good_calls_come_back(op: FunctionType) -> None:
    """Every argument of a legal call is in its line, or at its default."""
    arguments = GOOD[op.__name__]()
    line = CallLine.of(op, arguments)
    back = CallLine.parse(str(line))
    assert back == line
    assert not back.lost
    assert_fit(str(line))
    for name, value in arguments.items():
        if name in back.arguments and not isinstance(value, np.ndarray | list | dp.TensorDescriptor):
            assert back.arguments[name] == value
            assert type(back.arguments[name]) is type(value)
    for label, operand in back.operands.items():
        name, _, rest = label.partition("[")
        array = arguments[name][int(rest[:-1])] if rest else arguments[name]
        dtype = array.dtype.numpy if isinstance(array, dp.TensorDescriptor) else array.dtype
        assert (operand.shape, operand.numpy) == (array.shape, dtype)


@each_primitive
def test_options_of_a_handle_are_no_arguments(op: FunctionType) -> None:
    """So that both can stand in one line."""
    assert not set(HANDLE_OPTIONS) & set(GOOD[op.__name__]())


def test_options_of_the_handle_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with dp.create_handle("numpy", math="tf32", deterministic=False, workspace_limit=7) as handle:
        line = CallLine.of(dp.activation_forward, {"activation": "relu", "x": np.zeros(3, np.float32)}, handle)
    assert str(line).endswith("x=float32:3 math=tf32 deterministic=False workspace_limit=7")
    assert CallLine.parse(str(line)).options == {"math": "tf32", "deterministic": False, "workspace_limit": 7}


def test_a_default_is_left_out_only_where_it_is_the_same() -> None:
    x = np.zeros((2, 2), np.float32)
    assert line_of("glu_forward", x=x, axis=-1, alpha=1.0) == "glu_forward x=float32:2x2"
    assert line_of("glu_forward", x=x, alpha=1, beta=-0.0) == "glu_forward x=float32:2x2 alpha=1 beta=-0.0"
    assert line_of("glu_forward", x=None) == "glu_forward x=-"


LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "plain": (lambda a: a, "float32:4x6"),
    "gaps": (lambda a: a[:, ::2], "float32:4x3:6x2"),
    "transposed": (lambda a: a.T, "float32:6x4:1x6"),
    "backwards": (lambda a: a[::-1], "float32:4x6:-6x1@8"),
    "repeated": (lambda a: np.broadcast_to(a[0], (4, 6)), "float32:4x6:0x1/readonly"),
    "one element further": (lambda a: a.reshape(-1)[1:], "float32:23@4"),
    "scalar": (lambda a: a[:1, :1].reshape(()), "float32:scalar"),
    "empty": (lambda a: a[:0], "float32:0x6"),
    "odd steps": (lambda a: np.ndarray((3,), a.dtype, a.view(np.uint8), strides=(9,)), "float32:3:9b"),
    "foreign order": (lambda a: a.view(">f4"), ">f4:4x6"),
}


def aligned(*shape: int) -> np.ndarray:
    """An array at a multiple of 16 bytes."""
    room = np.zeros(4 * int(np.prod(shape)) + 16, np.uint8)
    start = -room.ctypes.data % 16
    return room[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    """Shape, steps, alignment and what must not be written."""
    view, word = LAYOUTS[layout]
    array = view(aligned(4, 6))
    assert line_of("activation_forward", activation="relu", x=array) == f"activation_forward activation=relu x={word}"
    operand = Operand.parse(word)
    assert operand is not None
    assert (operand.shape, operand.numpy) == (array.shape, array.dtype)
    assert array.size == 0 or operand.steps == array.strides


def test_memory_that_is_shared() -> None:
    """An operand over another one says where it lies."""
    x = aligned(4, 6)
    assert "out=float32:4x6@x" in line_of("activation_forward", activation="relu", x=x, out=x)
    assert "out=float32:2x6@x+24" in line_of("activation_forward", activation="relu", x=x[:2], out=x[1:3])
    assert "x=float32:2x6@8 out=float32:2x6@x-24" in line_of(
        "activation_forward", activation="relu", x=x[1:3], out=x[:2]
    )
    text = line_of("sgd_update", weights=[x[0], x[1]], gradients=[x[2], x[1]], lr=0.5)
    assert "weights=[float32:6;float32:6@8] gradients=[float32:6;float32:6@weights[1]]" in text


def test_long_lists_are_short() -> None:
    arrays = [aligned(8) for _ in range(100)]
    text = line_of("global_norm", arrays=arrays)
    assert text == "global_norm arrays=[100*float32:8]"
    assert len(CallLine.parse(text).operands) == 100


def test_descriptors_in_a_line() -> None:
    x = aligned(2, 3)
    elu, loss = dp.ActivationDescriptor("elu", alpha=0.5), dp.LossDescriptor("cross_entropy", label_smoothing=0.125)
    assert "activation=elu(alpha=0.5)" in line_of("activation_forward", activation=elu, x=x)
    assert "activation=relu()" in line_of("activation_forward", activation=dp.ActivationDescriptor("relu"), x=x)
    assert "loss=cross_entropy(label_smoothing=0.125)" in line_of("loss_forward", loss=loss, prediction=x, target=x)


def test_kinds_of_arrays() -> None:
    """Memory that is bound, described or another library's."""
    d = dp.TensorDescriptor((3, 4), "bfloat16", alignment=2)
    room = aligned(6)
    assert line_of("set_tensor", y=d, value=1.0) == "set_tensor y=bfloat16:3x4@2/described value=1.0"
    assert line_of("set_tensor", y=d.bind(room.ctypes.data + 2, room), value=1.0).endswith("y=bfloat16:3x4@2 value=1.0")

    class Foreign:
        __array_interface__ = room.__array_interface__
        shape, dtype = room.shape, room.dtype

    assert line_of("set_tensor", y=Foreign(), value=1.0) == "set_tensor y=float32:6 value=1.0"


class _OnTheGpu:
    """What CuPy's arrays look like."""

    class _Pointer:
        ptr, device_id = 4096 + 8, 1

    shape, dtype, strides, data = (2, 3), np.dtype("float32"), (12, 4), _Pointer()


class _OnAGpu:
    class profile:  # noqa: N801  stands for an attribute
        backend, math, deterministic, workspace_limit = "cuda", "ieee", True, -1

    device = 0


@pytest.mark.parametrize(
    ("array", "handle", "word"),
    [
        (_OnTheGpu(), None, "float32:2x3@8"),
        (_OnTheGpu(), _OnAGpu, "float32:2x3@8/elsewhere"),
        (np.zeros(0, np.float32), _OnAGpu, "float32:0/host"),
    ],
)
def test_memory_of_the_wrong_kind(array: Any, handle: Any, word: str) -> None:
    """An array that the handle does not take is told from one that it does."""
    assert str(CallLine.of(dp.set_tensor, {"y": array}, handle)) == f"set_tensor y={word}"


# -- any call --------------------------------------------------------------------------------------------------------

VALUES = [
    *(
        None,
        True,
        False,
        0,
        -7,
        2**70,
        0.1,
        -0.0,
        1e-300,
        float("inf"),
        "relu",
        "-",
        "",
        "nan",
        "Infinity",
        "True",
        "3",
    ),
    *("a b", "é", "x,y", "\n", "\ud800", "'", "$(reboot)", (1, (2, "x")), [], (), [None, None], (1.5,)),
    *(np.float32(0.1), np.float64(2), np.int64(-3), np.bool_(True), ml_dtypes.bfloat16(1.5), np.float16(2)),
    *(np.dtype("float32"), np.float32, ml_dtypes.bfloat16, float, int, dp.dtypes.BY_NAME["bfloat16"]),
    *(dp.ActivationDescriptor("swish", beta=-0.0), dp.LossDescriptor("kl_div", "sum", log_target=True)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {value!r:.30}")
def test_values_come_back(value: Any) -> None:
    """With their type, and the sign of zero."""
    word = write(known(value, lambda _: None))
    assert_fit(word)
    back = read(word)
    assert (type(back), repr(back)) == (type(value), repr(value))


@pytest.mark.parametrize("value", [1j, b"x", {}, object(), 10**400, "x" * 1000, np.datetime64("2026-01-01"), len, ...])
def test_what_a_line_cannot_give_back_is_marked(value: Any) -> None:
    line = CallLine.of(dp.set_tensor, {"y": [value], "value": value})
    assert line.lost == ["y[0]", "value"]
    assert CallLine.parse(str(line)).lost == line.lost
    assert_fit(str(line))


@examples(300)
@hypothesis.given(anything, anything)
def test_no_value_breaks_a_line(one: Any, other: Any) -> None:
    """Whatever is given, the line is one line, and reading it gives the same line."""
    text = str(CallLine.of(dp.sgd_update, {"weights": one, "gradients": [other, one], "lr": (other,)}))
    assert_fit(text)
    assert str(CallLine.parse(text)) == text


@examples(400)
@hypothesis.given(
    st.sampled_from(list(OPS)).flatmap(lambda name: spoilt(GOOD[name](), like_array).map(lambda a: (name, a)))
)
def test_no_call_breaks_a_line(call: tuple[str, dict[str, Any]]) -> None:
    name, arguments = call
    text = str(CallLine.of(OPS[name], arguments))
    assert_fit(text)
    assert str(CallLine.parse(text)) == text


@examples(500)
@hypothesis.given(st.text(alphabet="ax=01:;()[]'%?*@+-/.x f", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the parser raise anything but its refusal; what it reads, it writes so that it reads the same."""
    try:
        line = CallLine.parse(text)
    except dp.BadParamError:
        return
    assert CallLine.parse(str(line)) == line


@pytest.mark.parametrize(
    "text", ["f x", "f x=", "f x=1 x=2", "f 1=2", "f x=float32:", "f x='a", "f x=elu(a)", "f x=nope:3"]
)
def test_unreadable_lines_name_the_word(text: str) -> None:
    with pytest.raises(dp.BadParamError, match="replay: line has an unreadable word"):
        CallLine.parse(text)


def test_unknown_is_said_as_such() -> None:
    assert str(Unknown("torch.Tensor")) == "?torch.Tensor"
    assert read("?torch.Tensor") == Unknown("torch.Tensor")


# -- errors ----------------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> dp.DnnprimsError:
    """The error of a call."""
    with pytest.raises(dp.DnnprimsError) as caught:
        call()
    return caught.value


@each_primitive
def test_every_error_carries_its_call(op: FunctionType, handle: dp.Handle) -> None:
    """Whichever argument is at fault, and wherever the call is refused: in front end, plan or handle."""
    good = GOOD[op.__name__]()
    arrays = {name: _there(handle, value) for name, value in good.items()}
    for name in good:
        call = {**arrays, name: object()}
        error = refused(lambda call=call: op(handle, **call))
        assert error.call == str(CallLine.of(op, call, handle))
        assert f"{name}=?object" in error.call
    if hasattr(error, "add_note"):
        assert error.__notes__ == [f'replay with: python -m dnnprims replay "{error.call}"']


def _there(handle: dp.Handle, value: Any) -> Any:
    if isinstance(value, list):
        return [_there(handle, item) for item in value]
    return handle.asarray(value) if isinstance(value, np.ndarray) else value


def test_errors_of_plans_and_questions_carry_the_call(handle: dp.Handle) -> None:
    d, x = dp.TensorDescriptor((2, 4), "float32"), handle.asarray(np.zeros((2, 4), np.float32))
    described = "softmax_forward x=float32:2x4/described axis=7"
    assert refused(lambda: dp.prepare(dp.softmax_forward, handle, d, axis=7)).call == described
    assert refused(lambda: dp.output_descriptors(dp.softmax_forward, d, axis=7)).call == described
    plan = dp.prepare(dp.activation_forward, handle, "relu", d, out=d)
    call = "activation_forward activation=relu x=float32:2x4"
    assert refused(lambda: plan(x)).call == f"{call} out=float32:2x4/described"
    room = handle.asarray(np.zeros(20, np.float32))
    error = refused(lambda: plan(room[:8].reshape(2, 4), out=room[4:12].reshape(2, 4)))
    assert error.call == f"{call} out=float32:2x4@x+16"


def test_errors_outside_of_calls_have_none() -> None:
    assert refused(lambda: dp.TensorDescriptor((-1,), "float32")).call == ""
    assert refused(lambda: dp.create_handle("cudnn")).call == ""
    assert refused(lambda: dp.prepare(len, dp.create_handle("numpy"), 3)).call == ""
    assert current_call() is None


def test_call_of_an_error_within_a_call_is_the_inner_one(numpy_handle: dp.Handle) -> None:
    """An array may call a primitive when it is looked at."""

    class Calling:
        def __dlpack_device__(self) -> tuple[int, int]:
            dp.softmax_forward(numpy_handle, None)
            return 1, 0

        __dlpack__ = None

    with dp.create_handle("numpy") as other:
        error = refused(lambda: dp.set_tensor(other, Calling(), 1.0))
    assert (
        error.call
        == "set_tensor y=?test_problem.test_call_of_an_error_within_a_call_is_the_inner_one._locals_.Calling value=1.0"
    )


def test_long_lines_are_no_notes(numpy_handle: dp.Handle) -> None:
    arrays = [np.zeros(n, np.float32) for n in range(400)]
    error = refused(lambda: dp.global_norm(numpy_handle, [*arrays, None]))
    assert len(error.call) > 2_000
    assert len(getattr(error, "__notes__", [""])[0]) < 100


def test_errors_cross_the_border_between_processes(numpy_handle: dp.Handle) -> None:
    error = refused(lambda: dp.softmax_forward(numpy_handle, None))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.call, again.param) == (type(error), str(error), error.call, error.param)
