"""Arrays of a backend, drawn from a seed: the same numbers on each backend, whatever the size.

A block of random numbers is drawn on the host and laid end to end in the backend's memory. Its length is odd, so that
rows differ; past the block the data repeat, which no timing sees.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import dnnprims as dp
from dnnprims.conformance.cases import as_dtype

BLOCK = (1 << 20) + 37
INTEGERS = {"int32": np.int32, "int64": np.int64, "uint8": np.uint8}


class Arrays:
    """Draws, keeps and converts the arrays of cases.

    Parameters
    ----------
    handle : Handle
        Whose memory they are in.
    most_bytes : int
        What may be kept for later cases.
    """

    def __init__(self, handle: dp.Handle, most_bytes: int) -> None:
        self.handle, self.most_bytes = handle, most_bytes
        self.on_gpu = handle.backend == "cuda"
        self._kept: dict[Any, Any] = {}
        self._blocks: dict[Any, Any] = {}

    # -- making --------------------------------------------------------------------------------------------------

    def normal(self, shape: Sequence[int] | int, dtype: str, *, scale: float = 1.0, tag: str = "") -> Any:
        """Normal numbers; `tag` keeps arrays of one shape apart, the same tag gives the same array."""
        return self._drawn(shape, dtype, tag, scale, lambda rng, n: scale * rng.standard_normal(n))

    def uniform(self, shape: Sequence[int] | int, dtype: str, low: float, high: float, *, tag: str = "") -> Any:
        """Numbers between two limits."""
        return self._drawn(shape, dtype, tag, (low, high), lambda rng, n: rng.uniform(low, high, n))

    def signs(self, shape: Sequence[int] | int, dtype: str, *, tag: str = "") -> Any:
        """1 and -1."""
        return self._drawn(shape, dtype, tag, "signs", lambda rng, n: rng.integers(0, 2, n) * 2.0 - 1.0)

    def integers(self, shape: Sequence[int] | int, below: int, dtype: str = "int64", *, tag: str = "") -> Any:
        """Integers in [0, below)."""
        return self._drawn(shape, dtype, tag, below, lambda rng, n: rng.integers(0, below, n))

    def zeros(self, shape: Sequence[int] | int, dtype: str) -> Any:
        """A new array of zeros."""
        made = self._empty(_shape(shape), dtype)
        self._fill(made, 0)
        return made

    def result(self, shape: Sequence[int] | int, dtype: str, *, tag: str = "out") -> Any:
        """A destination that other cases may have, too."""
        return self._keep(("result", _shape(shape), dtype, tag), lambda: self._empty(_shape(shape), dtype))

    def poison(self, a: Any) -> None:
        """Set every bit: NaN for floats, so that what no kernel writes shows."""
        self._fill(a, 0xFF)

    def copy(self, a: Any) -> Any:
        """A copy of the caller's own."""
        return a.copy()

    def _drawn(
        self, shape: Sequence[int] | int, dtype: str, tag: str, law: Any, draw: Callable[[Any, int], Any]
    ) -> Any:
        extents = _shape(shape)

        def make() -> Any:
            count = int(np.prod(extents))
            block = self._block(dtype, tag, law, draw)
            return self._tile(block[:count], count).reshape(extents)

        return self._keep((extents, dtype, tag, law), make)

    def _block(self, dtype: str, tag: str, law: Any, draw: Callable[[Any, int], Any]) -> Any:
        """The numbers of a law, drawn once for all shapes: each shape takes as many of the first as it has places."""
        key = (dtype, tag, law)
        if key not in self._blocks:
            drawn = draw(np.random.default_rng(zlib.crc32(repr((tag, law)).encode())), BLOCK)
            host = drawn.astype(INTEGERS[dtype]) if dtype in INTEGERS else as_dtype(drawn, dtype)
            self._blocks[key] = self.handle.asarray(host)
        return self._blocks[key]

    def _tile(self, block: Any, count: int) -> Any:
        whole = self._empty((count,), str(block.dtype))
        filled = 0
        while filled < count:
            source = whole if filled else block
            more = min(filled or block.size, count - filled)
            self._move(whole, filled, source, more)
            filled += more
        return whole

    def _keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            if sum(a.nbytes for a in self._kept.values()) > self.most_bytes:
                self.clear()
            self._kept[key] = make()
        return self._kept[key]

    def clear(self) -> None:
        """Give back what is kept."""
        self._kept.clear()
        self._blocks.clear()
        if self.on_gpu:
            import cupy

            cupy.cuda.runtime.deviceSynchronize()
            cupy.get_default_memory_pool().free_all_blocks()

    # -- memory --------------------------------------------------------------------------------------------------

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
        if not self.on_gpu:
            return self.handle.asarray(np.empty(shape, kind))
        import cupy

        return cupy.empty(shape, kind)

    def _fill(self, a: Any, byte: int) -> None:
        if not self.on_gpu:
            a.reshape(-1).view(np.uint8)[...] = byte
            return
        import cupy

        cupy.cuda.runtime.memsetAsync(a.data.ptr, byte, a.nbytes, cupy.cuda.get_current_stream().ptr)

    def _move(self, whole: Any, at: int, source: Any, count: int) -> None:
        if not self.on_gpu:
            whole[at : at + count] = source[:count]
            return
        import cupy

        stream, size = cupy.cuda.get_current_stream().ptr, whole.itemsize
        cupy.cuda.runtime.memcpyAsync(whole.data.ptr + at * size, source.data.ptr, count * size, 3, stream)

    # -- converting ----------------------------------------------------------------------------------------------

    def host(self, a: Any) -> Any:
        """A copy in host memory, of an array of this backend or of a tensor of torch."""
        if type(a).__module__ == "torch" or hasattr(a, "detach"):
            return host_tensor(a)
        return self.handle.to_numpy(a)

    def torch(self, a: Any) -> Any:
        """A tensor over the same memory."""
        import torch

        if self.on_gpu:
            return torch.from_dlpack(a)
        if a.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)


def host_tensor(tensor: Any) -> Any:
    """Values of a torch tensor as a NumPy array."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def _shape(shape: Sequence[int] | int) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
