"""Where calls run: a device, a stream on it, and the memory there that all calls share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any

from . import checks
from .errors import BadParamError
from .runtime.host import HostArrays
from .runtime.launch import Profile
from .runtime.plan import Executor
from .runtime.tuning import Tuning

if TYPE_CHECKING:
    from .finding import Found

#: First size of the workspace; it doubles from there.
WORKSPACE_START_BYTES = 1 << 20


class Context:
    """The part of a `Handle` that knows of no call: options, stream, arrays, scratch memory and the error flag.

    Parameters
    ----------
    executor : Executor or None
        Who runs kernels; None on NumPy.
    profile : Profile
        The device's limits and the options of `create_handle`.
    device : int
        Number of the GPU, where the executor does not tell.
    stream : cupy.cuda.Stream, int or None
        As for `set_stream`.
    """

    def __init__(self, executor: Executor | None, profile: Profile, device: int, stream: Any) -> None:
        self.profile, self.backend, self.tuning = profile, profile.backend, Tuning()
        self._executor = executor
        self._arrays: Any = executor if executor is not None else HostArrays()
        self.device = int(getattr(executor, "device", device))
        self._get_device: Callable[[], int] | None = getattr(executor, "get_device", None)
        self._get_stream: Callable[[], Any] | None = getattr(executor, "get_stream", None)
        self._spaces: dict[int, list[tuple[object, int, int]]] = {}
        self.set_stream(stream)
        self._flag_owner, self._flag = self._worded("create_handle", self._make_flag)

    # -- options, stream and device ----------------------------------------------------------------------------

    @property
    def math(self) -> str:
        """What products of float32 are computed in: ``ieee`` or ``tf32``."""
        return self.profile.math

    @property
    def deterministic(self) -> bool:
        """Whether variants whose bits may differ between runs are refused."""
        return self.profile.deterministic

    @property
    def workspace_limit(self) -> int | None:
        """Most bytes of workspace that a plan may use, or None."""
        return None if self.profile.workspace_limit < 0 else self.profile.workspace_limit

    def set_stream(self, stream: Any) -> None:
        """Enqueue on this stream from now on.

        Parameters
        ----------
        stream : cupy.cuda.Stream, int or None
            A stream, its address, or None for CuPy's current stream at each call.

        Notes
        -----
        CuPy's pool orders memory by its *current* stream. With a fixed stream that is not the current one, keep arrays
        alive until their work is done, or make the stream current too (``with stream:``).
        """
        self._fixed_stream = None if stream is None else _stream_address(stream)
        self._stream_owner = stream

    @property
    def stream(self) -> int:
        """Address of the stream that a call made now would be enqueued on; 0 on the CPU."""
        if self._fixed_stream is not None:
            return self._fixed_stream
        return int(self.on_device(self._executor.current_stream)) if self._executor is not None else 0

    def elsewhere(self) -> bool:
        """Whether the thread's current GPU is not the handle's."""
        return self._get_device is not None and self._get_device() != self.device

    def there(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call with the handle's GPU as the current one."""
        from .runtime.cuda import load_cupy

        with load_cupy().cuda.Device(self.device):
            return call(*arguments)

    def on_device(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call with the handle's GPU as the current one, switching only where it is not."""
        return self.there(call, *arguments) if self.elsewhere() else call(*arguments)

    def _worded(self, function: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call on the device; where memory cannot be had, the error names the function."""
        try:
            return self.on_device(call, *arguments)
        except MemoryError as error:
            raise checks.refuse_allocation(function, error) from error

    # -- choices by timing -------------------------------------------------------------------------------------

    def tune(self, op: Callable[..., Any], *arguments: Any, **options: Any) -> Tuning:
        """Choose by timing what a call does, and use it from now on; see `dnnprims.tuner.tune`."""
        from .tuner import tune

        return tune(self, op, *arguments, **options)

    def find(self, op: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Found, ...]:
        """Time every variant of a call; see `dnnprims.finding.find`."""
        from .finding import find

        return find(self, op, *arguments, **options)

    def use_tuning(self, tuning: Tuning) -> None:
        """Let calls made from now on take what was found faster on this device and with these versions."""
        from .tuner import place_of

        self.synchronize()
        self.tuning, self.profile = tuning, replace(self.profile, tuned=tuning.at(place_of(self)))

    # -- arrays ------------------------------------------------------------------------------------------------

    def asarray(self, x: Any) -> Any:
        """Copy a NumPy array, or what NumPy makes one of, into this backend's memory."""
        import numpy as np

        return self._worded("asarray", self._arrays.from_numpy, np.asarray(x))

    def to_numpy(self, x: Any) -> Any:
        """Copy one of this backend's arrays to a NumPy array; waits for the GPU."""
        return self._worded("to_numpy", self._arrays.to_numpy, x)

    # -- memory that calls share, and what kernels report in it ------------------------------------------------

    def _workspace(self, nbytes: int, stream: int) -> int:
        """Scratch memory of a stream. It grows by doubling and keeps the old: a captured graph may hold its address."""
        spaces = self._spaces.setdefault(stream, [])
        if not spaces or spaces[-1][2] < nbytes:
            size = max(nbytes, WORKSPACE_START_BYTES, 2 * spaces[-1][2] if spaces else 0)
            owner, pointer = self._executor.buffer(size)  # type: ignore[union-attr]
            spaces.append((owner, pointer, size))
        return spaces[-1][1]

    def _make_flag(self) -> tuple[object, int]:
        """Four bytes that kernels write to when they meet bad data."""
        if self._executor is None:
            return None, 0
        owner, pointer = self._executor.buffer(4)
        staged = self._executor.upload(pointer, bytes(4), self.stream)
        self._executor.synchronize(self.stream)
        del staged
        return owner, pointer

    def check(self) -> None:
        """Raise what kernels found in data that could not be checked before, such as a label out of range.

        Waits for the stream. The flag is cleared, so that each finding is raised once.

        Raises
        ------
        BadParamError
            A kernel met bad data since the last check.
        """
        if self._flag and self._executor is not None:
            checks.raise_device_flag(self._worded("check", self._take_flag))

    def _take_flag(self) -> int:
        """Read the flag and clear it."""
        assert self._executor is not None
        stream = self.stream
        code = int.from_bytes(self._executor.download(self._flag, 4, stream), "little")
        if code:
            self._executor.upload(self._flag, bytes(4), stream)
            self._executor.synchronize(stream)
        return code

    def synchronize(self) -> None:
        """Wait until all work enqueued on the handle's stream is done, then `check`."""
        if self._executor is not None:
            self.on_device(self._executor.synchronize, self.stream)
            self.check()


def _stream_address(stream: Any) -> int:
    """Address of a CuPy stream, of an object with ``__cuda_stream__``, or the address itself."""
    try:
        if hasattr(stream, "ptr") or hasattr(stream, "__index__"):
            address = index(getattr(stream, "ptr", stream))
        else:
            address = index(stream.__cuda_stream__()[1])
        if not 0 <= address < 2**64:
            raise ValueError
        return address
    except (AttributeError, IndexError, TypeError, ValueError):
        kind, rule = type(stream).__name__, "a CuPy stream, an address or None"
        raise BadParamError("set_stream", "is no stream", param="stream", got=kind, expected=rule) from None
