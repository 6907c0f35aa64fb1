"""CuPy: what one writes with its arrays where there is no library of primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
from cupyx.scipy import special

from ..arrays import Arrays
from ..case import Case, Contestant

UFUNCS: dict[str, Callable[..., Any]] = {
    "sigmoid": special.expit,
    "tanh": cupy.tanh,
    "abs": cupy.absolute,
    "square": cupy.square,
    "sqrt": cupy.sqrt,
    "exp": cupy.exp,
    "log": cupy.log,
}
REDUCTIONS = {"sum": cupy.sum, "mean": cupy.mean, "max": cupy.max, "min": cupy.min}


class CuPy:
    """CuPy's own functions, with a destination where they take one."""

    name = "cupy"

    def contestants(self, case: Case) -> list[Contestant]:
        """One way for the cases that CuPy has functions for."""
        maker = _MAKERS.get(case.op)
        call = maker(case, {**case.operands, **case.options}) if maker else None
        return [Contestant(self.name, call, ("out",), "cupy")] if call else []


def _activation(case: Case, given: dict[str, Any]) -> Callable[[], Any] | None:
    mode, x = case.problem.word("mode"), given["x"]
    out = cupy.empty_like(x)
    if mode == "relu":
        return lambda: cupy.maximum(x, 0, out=out)
    function = UFUNCS.get(mode)
    return (lambda: function(x, out=out)) if function else None


def _softmax(case: Case, given: dict[str, Any]) -> Callable[[], Any]:
    function = special.log_softmax if given["algorithm"] == "log" else special.softmax
    x, axis = given["x"], given["axis"]
    return lambda: function(x, axis=axis)


def _reduction(case: Case, given: dict[str, Any]) -> Callable[[], Any]:
    function, x, axis = REDUCTIONS[given["operation"]], given["x"], given["axis"]
    out = cupy.empty_like(case.results["out"])
    return lambda: function(x, axis=axis, out=out)


def _bias(case: Case, given: dict[str, Any]) -> Callable[[], Any]:
    dy, out = given["dy"], cupy.empty_like(case.results["out"])
    return lambda: cupy.sum(dy, axis=0, out=out)


def _maxout(case: Case, given: dict[str, Any]) -> Callable[[], Any]:
    x, pool = given["x"], given["pool_size"]
    split, out = x.reshape(*x.shape[:-1], -1, pool), cupy.empty_like(case.results["out"])
    return lambda: cupy.max(split, axis=-1, out=out)


def _fc(case: Case, given: dict[str, Any]) -> Callable[[], Any] | None:
    x, w, b = given["x"], given["w"], given["b"]
    if case.problem.word("activation") != "relu" or case.math == "tf32":
        return None
    y = cupy.empty_like(case.results["out"])

    def layer() -> Any:
        cupy.matmul(x, w.T, out=y)
        cupy.add(y, b, out=y)
        return cupy.maximum(y, 0, out=y)

    return layer


_MAKERS: dict[str, Callable[[Case, dict[str, Any]], Callable[[], Any] | None]] = {
    "activation_forward": _activation,
    "softmax_forward": _softmax,
    "reduce_tensor": _reduction,
    "fc_backward_bias": _bias,
    "maxout_forward": _maxout,
    "fc_forward": _fc,
}


def make(name: str, arrays: Arrays) -> CuPy:
    """The peer, where CuPy finds a GPU."""
    if not arrays.on_gpu:
        raise RuntimeError("CuPy has nothing to run on")
    return CuPy()
