"""All ways of doing a call, timed: which there are, how long each takes, and why the others do not take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .runtime.launch import PlanSpec
from .runtime.trial import ROUNDS, DeviceTrial
from .tuner import Arrays, Call, require_gpu


@dataclass(frozen=True, slots=True)
class Found:
    """A way of doing a call.

    Attributes
    ----------
    variant : str
        Its name.
    microseconds : float
        Median time, with the L2 flushed before; infinite where the call is not taken.
    workspace_bytes : int
        Scratch memory that it takes.
    reason : str
        Why the call is not taken, or empty.
    default : bool
        Whether it is what an untuned call takes.
    """

    variant: str
    microseconds: float
    workspace_bytes: int
    reason: str
    default: bool

    def __bool__(self) -> bool:
        return not self.reason


def find(handle: Any, op: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Found, ...]:
    """Time every variant of a call within the handle's workspace limit, on random numbers.

    Parameters
    ----------
    handle : Handle
        On a GPU; nothing of it changes.
    op : function
        A primitive, such as `conv_forward`.
    *arguments, **options
        Its arguments without the handle. A `TensorDescriptor` or an array stands for each tensor; arrays are neither
        read nor written.

    Returns
    -------
    tuple of Found
        The fastest first, those that do not take the call last.

    Raises
    ------
    NotSupportedError
        The handle is not on a GPU.
    BadParamError, NotSupportedError
        As the primitive itself.

    Notes
    -----
    Only looks. ``handle.tune(op, ..., other_bits=True)`` makes later calls take the fastest one: variants sum in
    different orders. Takes memory for the operands, and 256 MiB to flush the L2.
    """
    executor = require_gpu("find", handle)
    call = Call.of(handle, op, arguments, options)
    ways = list(call.ways())
    specs = [spec for _, spec in ways if isinstance(spec, PlanSpec)]
    times = handle.on_device(_times, handle, executor, call, specs) if call.default.steps else [0.0] * len(specs)
    timed = dict(zip((spec.variant for spec in specs), times, strict=True))
    found = [_found(name, way, timed.get(name, 0.0), way is call.default) for name, way in ways]
    return tuple(sorted(found, key=lambda one: one.microseconds))


def _times(handle: Any, executor: Any, call: Call, specs: list[PlanSpec]) -> list[float]:
    arrays = Arrays(handle, specs[0], call.operands)
    runs = [arrays.run_of(spec, call.live) for spec in specs]
    trial = DeviceTrial(executor, runs, arrays.outputs(specs[0]), specs[0].results[0].dtype, handle.stream)
    return trial.times(range(len(runs)), ROUNDS)


def _found(name: str, way: PlanSpec | str, seconds: float, default: bool) -> Found:
    if isinstance(way, str):
        return Found(name, float("inf"), 0, way, default)
    return Found(name, seconds * 1e6, way.workspace_bytes, "", default)
