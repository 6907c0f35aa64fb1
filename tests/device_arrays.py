"""The emulator on arrays that look like CuPy's, so that it goes the ways of the GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from dnnprims.ops import FAMILIES
from dnnprims.runtime.cuda import CudaExecutor
from dnnprims.runtime.emulator import EmulatorExecutor
from dnnprims.runtime.known_lists import KnownLists

#: The stream on which graphs are recorded.
RECORDING = 99


class DeviceArray(np.ndarray):
    """Has what a CuPy array is asked for."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data, device_id=0)

    @property
    def _c_contiguous(self) -> bool:
        return bool(self.flags.c_contiguous)


class DeviceExecutor(EmulatorExecutor):
    """The emulator on such arrays. `events` has each launch, packed anew or made again, and its stream."""

    array_type = DeviceArray
    look, addresses = CudaExecutor.look, CudaExecutor.addresses  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(FAMILIES)
        self._lists = KnownLists(self.array_type, self.look)
        self.current, self.gpu, self.events = 1, 0, list[tuple[str, int]]()
        self.is_capturing, self.recorded = False, list[Callable[[], object]]()
        self.get_device: Callable[[], int] | None = None
        self.fault: Callable[[], object] = lambda: False

    def current_stream(self) -> int:
        return self.current

    def get_stream(self) -> Any:
        return SimpleNamespace(ptr=self.current)

    def empty(self, shape: Any, dtype: Any) -> Any:
        a, address = super().empty(shape, dtype)
        return a.view(DeviceArray), address

    def adopt(self, a: Any) -> Any:
        return super().adopt(a).view(DeviceArray)

    def realise(self, step: Any, slots: tuple[int, ...]) -> Any:
        run = super().realise(step, slots)

        def watched(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> Any:
            if stream == RECORDING:
                self.recorded.append(functools.partial(run, addresses, stream, live))
                return None
            self.events.append(("packed", stream))
            again = run(addresses, stream, live)
            return None if again is None else lambda: self._again(again, stream)

        return watched

    def record(self, enqueue: Callable[[int], object], stream: int) -> Callable[[], object]:
        """A graph."""
        self.recorded = list[Callable[[], object]]()
        enqueue(RECORDING)
        launches = self.recorded

        def done() -> None:
            for launch in launches:
                launch()

        return lambda: self.is_capturing or self._again(done, stream)

    def capturing(self, stream: int) -> bool:
        return self.is_capturing

    def _again(self, again: Callable[[], object], stream: int) -> object:
        if failed := self.fault():
            return failed
        self.events.append(("again", stream))
        return again()
