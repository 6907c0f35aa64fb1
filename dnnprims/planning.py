"""Questions about a call that need no device: `supports`, `variants`, `workspace_size`, `output_descriptors`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .alternatives import alternatives
from .descriptors import BoundTensor, TensorDescriptor
from .errors import BadParamError, NotSupportedError
from .operands import describe_operands, specify
from .problem import signature
from .runtime.launch import PlanSpec, Profile

#: The device that is meant where none is given: an NVIDIA H200 with cuBLASLt.
H200 = Profile("cuda", blaslt=True, tensor_maps=True)


class _Captured(Exception):
    """Unwinds a front end that was called only to learn what it would ask of the handle."""


class _Listener:
    """Stands in for a handle: keeps what the front end asks of it and stops the call there."""

    backend = "planning"

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.request: tuple[Any, tuple[Any, ...], tuple[Any, ...], Sequence[Any]] | None = None

    def run(self, build: Any, options: tuple[Any, ...], operands: tuple[Any, ...], live: Sequence[Any] = ()) -> Any:
        self.request = (build, options, operands, live)
        raise _Captured


def capture(op: Callable[..., Any], profile: Profile, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if next(iter(getattr(op, "__annotations__", ())), "") != "handle":
        raise BadParamError("prepare", "is no primitive", param="op", got=op, expected="a primitive of this library")
    listener = _Listener(profile)
    try:
        op(listener, *arguments, **options)
    except _Captured:
        return listener.request
    raise AssertionError(f"{op.__name__} asked nothing of its handle")


def _specify(op: Callable[..., Any], profile: Profile, arguments: tuple[Any, ...], options: dict[str, Any]) -> PlanSpec:
    build, plan_options, operands, _ = capture(op, profile, arguments, options)
    described = describe_operands(build, operands, _describe)
    return specify(build, profile, plan_options, described)


def _describe(a: Any) -> TensorDescriptor | None:
    if a is None or isinstance(a, TensorDescriptor):
        return a
    return a.descriptor if isinstance(a, BoundTensor) else TensorDescriptor.from_array(a)


def bind_arguments(op: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a primitive by name, the handle left out."""
    bound = signature(op).bind(None, *arguments, **options).arguments
    return dict(list(bound.items())[1:])


@dataclass(frozen=True)
class Support:
    """Answer of `supports`: whether a call would be taken, by which variant, and if not, why."""

    ok: bool
    reason: str
    variant: str

    def __bool__(self) -> bool:
        return self.ok


def supports(op: Callable[..., Any], *arguments: Any, profile: Profile | None = None, **options: Any) -> Support:
    """Tell whether a call would be taken; needs no device.

    Parameters
    ----------
    op : function
        A primitive of this library, such as `softmax_forward`.
    *arguments, **options
        Its arguments without the handle; a `TensorDescriptor` stands for each array.
    profile : Profile, optional
        The device in question, such as ``handle.profile``; an NVIDIA H200 with cuBLASLt where left out.

    Returns
    -------
    Support
        Truthy when the call would be taken.

    Examples
    --------
    >>> supports(softmax_forward, TensorDescriptor((8, 128), "bfloat16")).ok
    True
    """
    try:
        spec = _specify(op, profile or H200, arguments, options)
    except (BadParamError, NotSupportedError) as error:
        return Support(False, str(error), "")
    return Support(True, "", spec.variant)


def variants(
    op: Callable[..., Any], *arguments: Any, profile: Profile | None = None, **options: Any
) -> tuple[Support, ...]:
    """List the ways of doing a call, the one that is taken first; needs no device.

    Parameters
    ----------
    op : function
        A primitive of this library, such as `conv_forward`.
    *arguments, **options, profile
        As for `supports`.

    Returns
    -------
    tuple of Support
        Each variant that timing may choose; a falsy one has the reason why it does not take the call.

    Raises
    ------
    BadParamError, NotSupportedError
        As the primitive itself.
    """
    profile = profile or H200
    build, plan_options, operands, _ = capture(op, profile, arguments, options)
    described = describe_operands(build, operands, _describe)
    ways = alternatives(build, profile, plan_options, described, specify(build, profile, plan_options, described))
    return tuple(Support(not isinstance(way, str), way if isinstance(way, str) else "", name) for name, way in ways)


def workspace_size(op: Callable[..., Any], *arguments: Any, profile: Profile | None = None, **options: Any) -> int:
    """Return the bytes of workspace that a call would take; arguments as for `supports`."""
    return _specify(op, profile or H200, arguments, options).workspace_bytes


def output_descriptors(op: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[TensorDescriptor, ...]:
    """Return the descriptors of the results that a call would make; arguments as for `supports`."""
    spec = _specify(op, H200, arguments, options)
    return tuple(TensorDescriptor(result.shape, result.dtype) for result in spec.results)
