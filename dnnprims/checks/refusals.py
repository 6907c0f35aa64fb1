"""Refusals of what only a call itself can see: memory, threads, and the values of labels and indices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AllocationError, BadParamError, ExecutionError, NotSupportedError

if TYPE_CHECKING:
    from ..handle import Handle

#: What a kernel writes to the handle's flag when it meets data that the host could not check:
#: code -> (function, argument, what is wrong, rule).
DEVICE_FLAGS: dict[int, tuple[str, str, str, str]] = {
    1: ("loss", "target", "has a label out of range", "labels in [0, classes) or ignore_index"),
    2: ("maxout_backward", "which", "has an index out of range", "indices in [0, pool_size)"),
    3: ("pooling_backward", "indices", "has an index out of range", "indices in [0, taps of the window)"),
}


def on_numpy(handle: Handle, op: str) -> bool:
    """Whether the call is the reference's; refuse what is no handle. The first thing that every front end asks."""
    try:
        return handle.backend == "numpy"
    except AttributeError:
        raise refuse_handle(op, handle) from None


def require_labels(op: str, target: Any, classes: int, ignore_index: int) -> None:
    """Labels on the host lie in [0, classes) or are `ignore_index`."""
    labels = np.asarray(target)
    bad = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_index)]
    rule = f"in [0, {classes}) or ignore_index = {ignore_index}"
    require_none_bad(op, "target", bad, "has a label out of range", rule)


def require_which(op: str, which: Any, pool_size: int) -> None:
    """Indices on the host lie in [0, pool_size)."""
    indices = np.asarray(which)
    bad = indices[(indices < 0) | (indices >= pool_size)]
    rule, hint = f"in [0, {pool_size})", "pass what maxout_forward gave back"
    require_none_bad(op, "which", bad, "has an index out of range", rule, hint)


def require_none_bad(op: str, param: str, bad: np.ndarray, problem: str, rule: str, hint: str = "") -> None:
    """There is no bad value; the first stands for all."""
    if bad.size:
        raise BadParamError(op, problem, param=param, got=int(bad[0]), expected=rule, hint=hint)


def refuse_overlap(op: str, written: str, other: str, same: bool) -> BadParamError:
    """Two operands share memory in a way that would make the result wrong."""
    return BadParamError(
        op,
        f"overlaps {other}",
        param=written,
        got="the same memory" if same else "partly the same memory",
        expected=f"{written} and {other} apart"
        + ("" if same else ", or exactly the same array where in place is allowed"),
    )


def refuse_read_only(op: str, param: str) -> BadParamError:
    """An operand that the call writes cannot be written."""
    return BadParamError(op, "is read-only", param=param, got="a read-only array", expected="a writeable array")


def refuse_foreign(op: str, param: str, value: object, expected: str, hint: str = "") -> BadParamError:
    """An operand is no array of the handle's backend."""
    kind = type(value)
    return BadParamError(
        op,
        "is no array of this handle's backend",
        param=param,
        got=f"{kind.__module__}.{kind.__qualname__}",
        expected=expected,
        hint=hint,
    )


def refuse_alignment(op: str, param: str, address: int, alignment: int) -> BadParamError:
    """An array lies at an address that a prepared plan was not made for."""
    return BadParamError(
        op,
        "is not aligned as the plan was prepared for",
        param=param,
        got=f"address {address:#x}",
        expected=f"a multiple of {alignment} bytes",
        hint="describe it with TensorDescriptor(..., alignment=...) or prepare with such an array",
    )


def refuse_device(op: str, param: str, got: int, expected: int) -> BadParamError:
    """An operand lives on another GPU than the handle."""
    return BadParamError(
        op,
        "is on another device",
        param=param,
        got=f"device {got}",
        expected=f"device {expected}, the handle's",
        hint="copy it over, or use a handle of that device",
    )


def refuse_magnitude(op: str, param: str, value: object) -> BadParamError:
    """A number is finite, but not in the type that the kernels take it in."""
    return BadParamError(
        op, "is out of range", param=param, got=value, expected="a number that its type in the kernel holds"
    )


def refuse_grid(op: str, grid: tuple[int, ...], most: tuple[int, ...]) -> NotSupportedError:
    """The tensors are so large that a launch would need more blocks than a grid has."""
    return NotSupportedError(
        op, "needs too many blocks", got=str(grid), expected=f"at most {most}", hint="call it on parts of the tensors"
    )


def refuse_options(op: str, options: Sequence[object], build: Callable[..., Any] | None = None) -> BadParamError:
    """An option cannot be hashed, which every option can; the plan function `build` names the options."""
    names = list(inspect.signature(build).parameters)[1:] if build is not None else []
    found = [(name, value) for name, value in zip(names, options, strict=False) if not _hashable(value)]
    param, value = found[0] if found else ("options", tuple(options))
    return BadParamError(
        op,
        "is of a wrong type",
        param=param,
        got=f"{type(value).__name__} {value!r:.80}",
        expected="a number, string, tuple or descriptor",
    )


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def refuse_description(op: str, param: str, error: BadParamError) -> BadParamError:
    """An array cannot be described, for what `error` says of its dtype or its strides."""
    name = f"{param}.{error.param}"
    return BadParamError(op, error.problem, param=name, got=error.got, expected=error.expected, hint=error.hint)


def refuse_split_elements(op: str, param: str, alignment: int, itemsize: int) -> BadParamError:
    """An array begins at an address that no element may have: kernels would fault."""
    return BadParamError(
        op,
        "is not aligned to its elements",
        param=param,
        got=f"an address that is a multiple of {alignment} bytes",
        expected=f"a multiple of {itemsize}, the size of an element",
        hint="pass a copy",
    )


def refuse_missing(op: str, param: str, rule: str) -> BadParamError:
    """An array was left out that may not be."""
    return BadParamError(op, "is missing", param=param, got=None, expected=rule)


def refuse_list(op: str, param: str, length: int) -> BadParamError:
    """Arrays were given in a list where one array is wanted."""
    return BadParamError(op, "is no array", param=param, got=f"a list of {length}", expected="one array")


def refuse_handle(op: str, value: object) -> BadParamError:
    """The first argument is no handle."""
    kind = type(value)
    return BadParamError(
        op,
        "is no handle",
        param="handle",
        got="None" if value is None else f"{kind.__module__}.{kind.__qualname__}",
        expected="what create_handle() returns, as the first argument",
    )


def refuse_allocation(op: str, error: MemoryError) -> AllocationError:
    """Memory that the call needs cannot be had."""
    return AllocationError(op, f"memory cannot be had: {str(error) or 'the host has none left'}", hint="free arrays")


def refuse_concurrency() -> BadParamError:
    """Two threads are inside one handle."""
    return BadParamError(
        "handle",
        "is in use by another thread",
        param="handle",
        got="two calls at once",
        expected="one thread at a time",
        hint="give each thread a handle of its own",
    )


def refuse_closed() -> BadParamError:
    """The handle was closed."""
    return BadParamError(
        "handle", "is closed", param="handle", got="a closed handle", expected="an open one from create_handle()"
    )


def raise_device_flag(code: int) -> None:
    """Turn what a kernel left in the handle's flag into our error."""
    if code == 0:
        return
    if code not in DEVICE_FLAGS:
        raise ExecutionError("handle.check", "found an unknown device flag", got=code)
    op, param, problem, rule = DEVICE_FLAGS[code]
    raise BadParamError(
        op,
        problem,
        param=param,
        expected=rule,
        hint="the results that depend on it are NaN, their gradients 0; seen since the last check on this handle",
    )
