"""The quick way of a prepared plan: the launch before once more, where the arrays lie where those before lay.

What it costs beside the launch is what a call cannot do without: its arguments, the address of each, the stream, the
handle's lock. So there is a function for each number of arrays, and none of them calls another unless something is new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prepared import PreparedCall
    from .runtime.graphs import Again
    from .runtime.plan import Plan

#: Stands for an argument that was not given.
_NONE: Any = object()


def _nothing() -> bool:
    """Enqueue nothing, and say so."""
    return True


class Repetition:
    """The last launch of a plan and the addresses that it is for: up to three arrays that are read, and `out`."""

    __slots__ = ("again", "first", "out", "second", "stream", "third")

    def __init__(self) -> None:
        self.first = self.second = self.third = self.out = self.stream = -1
        self.again: Again = _nothing

    def forget(self) -> None:
        """No launch is left to repeat."""
        self.out, self.again = -1, _nothing

    def keep(self, plan: Plan, addresses: list[int]) -> None:
        """Keep the launch that the plan has just made; `out` comes last."""
        assert plan.again is not None
        *read, self.out = addresses
        self.first, self.second, self.third = (*read, -1, -1, -1)[:3]
        self.again, self.stream = plan.again, plan.again_on


def quick_call(call: PreparedCall) -> Callable[..., Any]:
    """The function that a prepared plan is: `call.perform`, or a shorter way to the same."""
    ways = {1: _after_one, 2: _after_two, 3: _after_three}
    way = ways.get(call.quick_inputs)
    if way is None:
        return call.perform
    return way(call)


def _held(call: PreparedCall) -> tuple[Any, ...]:
    """What each way has at hand: the handle's lock, what tells stream and GPU, and the GPU that it should be."""
    handle = call.handle
    return handle._lock.acquire, handle._lock.release, handle._get_stream, handle._get_device, handle.device


def _after_one(call: PreparedCall) -> Callable[..., Any]:
    last, handle, slowly = call.repetition, call.handle, call.perform
    acquire, release, get_stream, get_device, device = _held(call)

    def quickly(first: Any = _NONE, out: Any = _NONE, *others: Any, **named: Any) -> Any:
        if last.out >= 0 and not named and not others and acquire(False):
            try:
                if (
                    first.data.ptr == last.first
                    and out.data.ptr == last.out
                    and (get_device is None or get_device() == device)
                ):
                    stream = handle._fixed_stream
                    if (get_stream().ptr if stream is None else stream) == last.stream and not last.again():
                        return out
            except Exception:
                last.forget()  # what follows takes anything, or says what is wrong
            finally:
                release()
        return _slowly(slowly, (first,), out, others, named)

    return quickly


def _after_two(call: PreparedCall) -> Callable[..., Any]:
    last, handle, slowly = call.repetition, call.handle, call.perform
    acquire, release, get_stream, get_device, device = _held(call)

    def quickly(first: Any = _NONE, second: Any = _NONE, out: Any = _NONE, *others: Any, **named: Any) -> Any:
        if last.out >= 0 and not named and not others and acquire(False):
            try:
                if (
                    first.data.ptr == last.first
                    and second.data.ptr == last.second
                    and out.data.ptr == last.out
                    and (get_device is None or get_device() == device)
                ):
                    stream = handle._fixed_stream
                    if (get_stream().ptr if stream is None else stream) == last.stream and not last.again():
                        return out
            except Exception:
                last.forget()  # what follows takes anything, or says what is wrong
            finally:
                release()
        return _slowly(slowly, (first, second), out, others, named)

    return quickly


def _after_three(call: PreparedCall) -> Callable[..., Any]:
    last, handle, slowly = call.repetition, call.handle, call.perform
    acquire, release, get_stream, get_device, device = _held(call)

    def quickly(
        first: Any = _NONE, second: Any = _NONE, third: Any = _NONE, out: Any = _NONE, *others: Any, **named: Any
    ) -> Any:
        if last.out >= 0 and not named and not others and acquire(False):
            try:
                if (
                    first.data.ptr == last.first
                    and second.data.ptr == last.second
                    and third.data.ptr == last.third
                    and out.data.ptr == last.out
                    and (get_device is None or get_device() == device)
                ):
                    stream = handle._fixed_stream
                    if (get_stream().ptr if stream is None else stream) == last.stream and not last.again():
                        return out
            except Exception:
                last.forget()  # what follows takes anything, or says what is wrong
            finally:
                release()
        return _slowly(slowly, (first, second, third), out, others, named)

    return quickly


def _slowly(
    slowly: Callable[..., Any], read: tuple[Any, ...], out: Any, others: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Hand on what was given as it was given."""
    if out is not _NONE and read[-1] is not _NONE:
        return slowly(*read, out, *others, **named)
    given = tuple(a for a in read if a is not _NONE)
    return slowly(*given, **named) if out is _NONE else slowly(*given, out=out, **named)
