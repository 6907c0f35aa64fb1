"""Which function of PyTorch each primitive is: data for the eager and the compiled peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ..arrays import Arrays
from ..case import Case

Function = Callable[..., Any]


@dataclass
class Pass:
    """A function and the direction it is run in.

    Attributes
    ----------
    function : callable
        Of `inputs`.
    direction : str
        ``forward``; ``backward``: the gradient alone; ``both``.
    outputs : tuple of str
        Names of what it returns.
    differentiated : tuple of int
        Numbers of the inputs that gradients are taken for.
    upstream : tensor, optional
        What reaches the result.
    into : tensor, optional
        A destination, where the function takes one as ``out=``.
    """

    function: Function
    inputs: list[Any]
    outputs: tuple[str, ...] = ("out",)
    direction: str = "forward"
    differentiated: tuple[int, ...] = (0,)
    upstream: Any = None
    into: Any = None


def _hinge(x: Any, t: Any) -> Any:
    return torch.clamp(1.0 - t * x, min=0.0).mean()


def _cosine(x: Any, t: Any) -> Any:
    return (1.0 - functional.cosine_similarity(x, t, dim=-1)).mean()


def _squared_relu(x: Any) -> Any:
    return torch.square(torch.relu(x))


def _gelu_tanh(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


def _threshold(x: Any) -> Any:
    return functional.threshold(x, 0.0, 0.0)


ACTIVATIONS: dict[str, Function] = {
    "identity": torch.clone,
    "relu": torch.relu,
    "clipped_relu": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "threshold": _threshold,
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": functional.logsigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "swish": functional.silu,
    "mish": functional.mish,
    "hard_sigmoid": functional.hardsigmoid,
    "hard_tanh": functional.hardtanh,
    "hard_swish": functional.hardswish,
    "squared_relu": _squared_relu,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
}

#: Functions that take a destination.
WITH_OUT = ("sigmoid", "tanh", "abs", "square", "sqrt", "exp", "log")

LOSSES: dict[str, Function] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "cross_entropy": functional.cross_entropy,
    "nll": functional.nll_loss,
    "bce": functional.binary_cross_entropy,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
    "kl_div": lambda x, t: functional.kl_div(x, t, reduction="none").mean(),
    "hinge": _hinge,
    "cosine": _cosine,
}

REDUCTIONS: dict[str, Function] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}


#: Yields each way of torch to do a case, with a label that is empty for the plain one.
Maker = Callable[[Case, dict[str, Any]], Iterator[tuple[str, Pass]]]


def passes(case: Case, arrays: Arrays, makers: Mapping[str, Maker]) -> Iterator[tuple[str, Pass]]:
    """Each way of torch to do the case, by its primitive's maker."""
    maker = makers.get(case.op)
    if maker is not None:
        given = case.extra | case.operands | case.results
        yield from maker(case, {name: _tensors(arrays, a) for name, a in given.items()})


def _tensors(arrays: Arrays, a: Any) -> Any:
    return [arrays.torch(item) for item in a] if isinstance(a, list) else arrays.torch(a)


def _own(tensor: Any) -> Any:
    """A destination of torch's own, so that ours keeps what it holds."""
    return torch.empty_like(tensor)


def _activation_forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    mode = case.problem.word("mode")
    if mode in ACTIVATIONS:
        yield "", Pass(ACTIVATIONS[mode], [t["x"]], into=_own(t["out"]) if mode in WITH_OUT else None)


def _activation_backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    mode = case.problem.word("mode")
    if mode in ACTIVATIONS:
        yield "", Pass(ACTIVATIONS[mode], [t["x"]], direction="backward", upstream=t["dy"])


def _softmax_forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    axis, plain = case.options["axis"], torch.log_softmax if case.options["algorithm"] == "log" else torch.softmax

    def softmax(x: Any, **destination: Any) -> Any:
        return plain(x, axis, **destination)

    yield "", Pass(softmax, [t["x"]], into=_own(t["out"]))


def _softmax_backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    axis, plain = case.options["axis"], torch.log_softmax if case.options["algorithm"] == "log" else torch.softmax
    yield "", Pass(lambda x: plain(x, axis), [t["x"]], direction="backward", upstream=t["dy"])


def _maxout_forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    pool = case.options["pool_size"]

    def maxout(x: Any) -> Any:
        return tuple(x.view(*x.shape[:-1], -1, pool).max(-1))

    yield "", Pass(maxout, [t["x"]])


def _maxout_backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """What torch's max does backward, from the indices in the type that it wants."""
    pool, index = case.options["pool_size"], t["which"].to(torch.int64)[..., None]

    def scatter(dy: Any) -> Any:
        dx = torch.zeros((*dy.shape, pool), dtype=dy.dtype, device=dy.device)
        return dx.scatter_(-1, index, dy[..., None]).view(*dy.shape[:-1], -1)

    yield "", Pass(scatter, [t["dy"]])


def _pooling(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """Channels last as torch has them: an image whose axes are permuted. Its maxima always have indices beside them."""
    pooling = case.options["pooling"]
    window, stride, padding, last = pooling.window, pooling.stride, pooling.padding, pooling.channels_last
    counted = {"count_include_pad": pooling.mode == "average_include_padding"}

    def pool(x: Any) -> Any:
        image = x.permute(0, 3, 1, 2) if last else x
        if pooling.mode == "max":
            y = functional.max_pool2d(image, window, stride, padding)
        else:
            y = functional.avg_pool2d(image, window, stride, padding, **counted)
        return y.permute(0, 2, 3, 1) if last else y

    backward = case.op == "pooling_backward"
    direction, upstream = ("backward", t["dy"]) if backward else ("forward", None)
    yield "", Pass(pool, [t["x"]], direction=direction, upstream=upstream)


def _loss(direction: str, outputs: tuple[str, ...]) -> Maker:
    def make(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
        function = LOSSES[case.problem.word("kind")]
        inputs, upstream = [t["prediction"], t["target"]], None
        if direction == "backward":
            upstream = torch.ones((), dtype=t["prediction"].dtype, device=t["prediction"].device)
        yield "", Pass(function, inputs, outputs, direction, upstream=upstream)

    return make


def _reduction(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    operation, axis = case.options["operation"], case.options["axis"]
    plain, axes = REDUCTIONS[operation], tuple(range(t["x"].ndim)) if axis is None else (axis,)

    def reduce(x: Any, **destination: Any) -> Any:
        return plain(x, dim=axes, **destination)

    yield "", Pass(reduce, [t["x"]], into=_own(t["out"]))


def _bias(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    def columns(dy: Any, **destination: Any) -> Any:
        return torch.sum(dy, dim=0, **destination)

    yield "", Pass(columns, [t["dy"]], into=_own(t["out"]))


GATES: dict[str, Function] = {
    "sigmoid": functional.sigmoid,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "swish": functional.silu,
    "relu": torch.relu,
    "identity": lambda x: x,
}


def _glu(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """By its own function where there is one: of the sigmoid."""
    gate = GATES[case.options["gate"]]

    def gated(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return a * gate(b)

    backward = case.op == "glu_backward"
    direction, upstream = ("backward", t["dy"]) if backward else ("forward", None)
    function = functional.glu if case.options["gate"] == "sigmoid" else gated
    yield "", Pass(function, [t["x"]], direction=direction, upstream=upstream)


def _prelu_forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    yield "", Pass(functional.prelu, [t["x"], t["slope"]])


def _prelu_backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    inputs = [t["x"], t["slope"]]
    yield "", Pass(functional.prelu, inputs, ("dx", "dslope"), "backward", (0, 1), t["dy"])


def _global_norm(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    yield "", Pass(lambda *x: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(x))), t["arrays"])


def _scaled_list(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """In place, on copies; with a look for infinities as torch's scaler of gradients does it."""
    arrays = [a.clone() for a in t["arrays"]]
    device = arrays[0].device
    if case.op == "clip_by_global_norm":
        factor = torch.full((), case.options["max_norm"], device=device) / t["norm"]

        def scale(*x: Any) -> Any:
            torch._foreach_mul_(x, factor)
            return (x,)
    else:
        found, number = torch.zeros(1, device=device), torch.full((1,), case.options["scale"], device=device)

        def scale(*x: Any) -> Any:
            torch._amp_foreach_non_finite_check_and_unscale_(x, found, number)
            return (x,)

    yield "", Pass(scale, arrays, ("arrays",))


def _tensor(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    """In place, on a copy."""
    given = case.options
    if case.op == "set_tensor":
        yield "", Pass(lambda y: y.fill_(given["value"]), [t["y"].clone()], ("y",))
    elif case.op == "scale_tensor":
        yield "", Pass(lambda y: y.mul_(given["alpha"]), [t["y"].clone()], ("y",))
    else:
        # torch scales the addend alone: the same three arrays pass by.
        yield "", Pass(lambda a, c: torch.add(a, c, alpha=given["beta"], out=c), [t["a"], t["c"].clone()], ("c",))


def _cast(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    to = t["out"].dtype
    yield "", Pass(lambda x: x.to(to), [t["x"]])


def _fc_forward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    mode = case.problem.word("activation")
    function = ACTIVATIONS[mode]
    inputs = [t["x"], t["w"], t["b"]]
    yield "", Pass(lambda x, w, b: function(functional.linear(x, w, b)), inputs)
    if mode in ("relu", "gelu_tanh") and hasattr(torch, "_addmm_activation"):
        gelu = mode == "gelu_tanh"
        yield "._addmm_activation", Pass(lambda x, w, b: torch._addmm_activation(b, x, w.t(), use_gelu=gelu), inputs)


def _fc_backward(case: Case, t: dict[str, Any]) -> Iterator[tuple[str, Pass]]:
    function = ACTIVATIONS[case.problem.word("activation")]
    yield (
        "",
        Pass(
            lambda x, w, b: function(functional.linear(x, w, b)),
            [t["x"], t["w"], t["b"]],
            ("dx", "dw", "db"),
            "backward",
            (0, 1, 2),
            t["dy"],
        ),
    )


MAKERS: dict[str, Maker] = {
    "activation_forward": _activation_forward,
    "activation_backward": _activation_backward,
    "softmax_forward": _softmax_forward,
    "softmax_backward": _softmax_backward,
    "maxout_forward": _maxout_forward,
    "maxout_backward": _maxout_backward,
    "pooling_forward": _pooling,
    "pooling_backward": _pooling,
    "loss_forward": _loss("forward", ("out",)),
    "loss_backward": _loss("backward", ("out",)),
    "loss_forward_backward": _loss("both", ("out", "dprediction")),
    "reduce_tensor": _reduction,
    "fc_backward_bias": _bias,
    "glu_forward": _glu,
    "glu_backward": _glu,
    "prelu_forward": _prelu_forward,
    "prelu_backward": _prelu_backward,
    "global_norm": _global_norm,
    "clip_by_global_norm": _scaled_list,
    "scale_and_check_finite": _scaled_list,
    "set_tensor": _tensor,
    "scale_tensor": _tensor,
    "add_tensor": _tensor,
    "cast": _cast,
    "fc_forward": _fc_forward,
    "fc_backward": _fc_backward,
}
