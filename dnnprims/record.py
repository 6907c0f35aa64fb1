"""``DNNPRIMS_RECORD=dir``: keep the inputs of calls, so that `python -m dnnprims replay` can make them again.

A record is a pair of files: ``<time>-<function>-<number>.json`` has the call line, the error, versions and the device,
and ``.npz`` of the same name the elements of each operand as they were before the call. They hold the data of the calls
and the text of errors, no environment and no home directory.

=========================  ==========================================================================================
``DNNPRIMS_RECORD``        the directory; made for the user alone, refused where others can write to it
``DNNPRIMS_RECORD_WHAT``   ``failing`` (where left out), ``all``, or names of primitives, separated by commas
``DNNPRIMS_RECORD_LIMIT``  most bytes in the directory, such as ``256M`` (where left out) or ``2G``
=========================  ==========================================================================================

A handle that records waits for the device at every call and copies its operands to the host before it, as nothing can
be copied from a GPU after a fault. A call is never worse off for being recorded: a full disk, say, is a word on
standard error, once. While a graph is captured nothing is recorded.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .descriptors import BoundTensor, TensorDescriptor
from .dtypes import BY_NUMPY
from .errors import BadParamError, DnnprimsError
from .problem.tensors import look_at
from .redact import redact
from .runtime import cache

if TYPE_CHECKING:
    from .handle import Handle

FORMAT = 1
DEFAULT_LIMIT = 256 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

#: Lines of refused calls that are remembered, so that a loop of them fills no disk.
MOST_REFUSALS = 1_000


@dataclass
class _Held:
    """A call that is being made: what is known of it, and its operands as they were."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]


class Recorder:
    """Writes records.

    Parameters
    ----------
    folder : Path
        Where to; absolute.
    what : frozenset of str
        ``failing``, ``all``, names of primitives.
    limit : int
        Most bytes in the folder.
    """

    def __init__(self, folder: Path, what: frozenset[str], limit: int) -> None:
        self.folder, self.what, self.limit = folder, what, limit
        self._held: _Held | None = None
        self._said: set[str] = set()
        self._refused: set[str] = set()

    @classmethod
    def from_environment(cls) -> Recorder | None:
        """Return the recorder that the environment asks for, or None."""
        folder = os.environ.get("DNNPRIMS_RECORD", "")
        if not folder:
            return None
        words = os.environ.get("DNNPRIMS_RECORD_WHAT") or "failing"
        what = frozenset(word.strip() for word in words.split(",")) - {""}
        from . import PRIMITIVES

        known = ("failing", "all", *(op.__name__ for op in PRIMITIVES))
        for word in what - {"failing", "all"}:
            checks.require_choice("create_handle", "DNNPRIMS_RECORD_WHAT", word, known)
        return cls(Path(folder).absolute(), what, _bytes(os.environ.get("DNNPRIMS_RECORD_LIMIT") or str(DEFAULT_LIMIT)))

    # -- told by the watch -----------------------------------------------------------------------------------------

    def hold(self, handle: Handle, op: str, variant: str, line: str, operands: Mapping[str, Any]) -> bool:
        """Copy the operands of a call that may have to be recorded; tell whether they are held."""
        self._held = None
        if not ({"all", "failing", op} & self.what):
            return False
        try:
            return self._hold(handle, op, variant, line, operands)
        except Exception as error:
            self._say("copies", f"the operands of {op} could not be copied: {type(error).__name__}: {error}")
            return False

    def _hold(self, handle: Handle, op: str, variant: str, line: str, operands: Mapping[str, Any]) -> bool:
        arrays = dict(_tensors(handle, operands))
        nbytes = sum(a.nbytes for a in arrays.values())
        if nbytes > self.limit:
            self._say("large", f"{op} was not recorded: its operands have {nbytes} bytes; raise DNNPRIMS_RECORD_LIMIT")
            return False
        if handle._executor is not None:
            handle.on_device(handle._executor.synchronize, handle.stream)
        facts = {**_describe(handle, line), "variant": variant}
        self._held = _Held(facts, {label: handle.on_device(handle._arrays.to_numpy, a) for label, a in arrays.items()})
        return True

    def failed(self, error: DnnprimsError, backend: str) -> None:
        """Record the call that is being made as one that failed; without its operands where it got nowhere."""
        op, held = error.call.split(" ", 1)[0], self._held
        if held is not None and held.facts["call"] != error.call:
            held = None  # a call before this one, which ended in no error of this library's
        if not ({"all", "failing", op} & self.what):
            return
        if held is None and (error.call in self._refused or len(self._refused) >= MOST_REFUSALS):
            return
        if held is None:
            self._refused.add(error.call)
        self._held = None
        facts: dict[str, Any] = dict(held.facts) if held is not None else {"call": error.call, "backend": backend}
        facts["error"] = {"kind": type(error).__name__, "text": redact(str(error))}
        self._write(op, facts, held.arrays if held is not None else {})

    def succeeded(self, op: str) -> None:
        """Record the call that has been made, where such are asked for, and forget its operands."""
        if self._held is not None and {"all", op} & self.what:
            self._write(op, self._held.facts, self._held.arrays)
        self._held = None

    def skip_captured(self) -> None:
        """A call that goes into a graph is not recorded."""
        self._say("captured", "calls are not recorded while a graph is captured")

    # -- files -----------------------------------------------------------------------------------------------------

    def _write(self, op: str, facts: Mapping[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Write one record, the arrays first, so that a record which can be seen is whole."""
        now = datetime.datetime.now(datetime.timezone.utc)
        name = f"{now:%Y%m%dT%H%M%S}-{op}-{os.urandom(4).hex()}"
        kept = {"format": FORMAT, **facts, "time": f"{now:%Y-%m-%dT%H:%M:%SZ}", "versions": _versions()}
        kept["arrays"] = f"{name}.npz" if arrays else None
        text = json.dumps(kept, indent=2).encode()
        try:
            with cache.opened(self.folder) as directory:
                room = self.limit - _used(directory.descriptor) - len(text)
                # What the format adds to an array is less than this.
                if sum(a.nbytes + 1024 for a in arrays.values()) > room:
                    self._say("full", f"{self.folder} is full, nothing more is recorded; raise DNNPRIMS_RECORD_LIMIT")
                    return
                if arrays:
                    _put(directory.descriptor, f"{name}.npz", lambda file: _save(file, arrays))
                _put(directory.descriptor, f"{name}.json", lambda file: file.write(text))
        except cache.Unusable as problem:
            self._say("folder", f"{self.folder} is not used: it {problem}")
        except Exception as error:
            self._say("write", f"{self.folder} cannot be written: {type(error).__name__}: {error}")

    def _say(self, topic: str, words: str) -> None:
        """Say it on standard error, once; as a warning it could be made an error, which would break the call."""
        if topic not in self._said:
            self._said.add(topic)
            with suppress(Exception):
                print(f"dnnprims: DNNPRIMS_RECORD: {words}", file=sys.stderr)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15})([KMG]?)", text.strip(), re.ASCII)
    if not found:
        rule = "a number of bytes, such as 256M"
        raise BadParamError("create_handle", "is no size", param="DNNPRIMS_RECORD_LIMIT", got=repr(text), expected=rule)
    return int(found[1]) * _UNITS[found[2]]


def _tensors(handle: Handle, operands: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The operands that have elements, as arrays of the backend, each element once; one of several in one place.

    bfloat16 goes as its bits: NumPy's files do not know it, nor does CuPy copy all of its layouts.
    """
    places = set()
    for label, a in operands.items():
        if a is None or isinstance(a, TensorDescriptor):
            continue
        array = handle._arrays.adopt(a) if isinstance(a, BoundTensor) else a
        memory = look_at(array)
        if memory is None or 0 in memory.shape or memory.dtype not in BY_NUMPY:
            continue
        place = (memory.address, memory.shape, memory.steps, memory.dtype)
        if place not in places:
            places.add(place)
            plain = array.view(np.uint16) if BY_NUMPY[memory.dtype].name == "bfloat16" else array
            yield label, plain[tuple(slice(0, 1) if step == 0 else slice(None) for step in memory.steps)]


def _describe(handle: Handle, line: str) -> dict[str, Any]:
    from platform import machine  # 15 ms, which only a record pays

    device = machine()
    if handle.backend == "cuda":
        runtime = sys.modules["cupy"].cuda.runtime
        device = runtime.getDeviceProperties(handle.device)["name"].decode()
    return {"call": line, "backend": handle.backend, "device": device, "arch": handle.profile.arch, "error": None}


def _versions() -> dict[str, str]:
    from . import __version__

    found = {"dnnprims": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "ml_dtypes", "cupy"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", ""))
    if "cupy" in found:
        with suppress(Exception):
            runtime = sys.modules["cupy"].cuda.runtime
            found |= {"cuda": str(runtime.runtimeGetVersion()), "driver": str(runtime.driverGetVersion())}
    return found


def _used(directory: int) -> int:
    """Bytes of the files in a directory."""
    total = 0
    for name in os.listdir(directory):
        with suppress(OSError):  # another process was faster
            total += os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
    return total


def _save(file: Any, arrays: Mapping[str, Any]) -> None:
    np.savez(file, **arrays)


def _put(directory: int, name: str, write: Callable[[Any], object]) -> None:
    """Write a file of the user's alone so that nobody sees half of it."""
    room = io.BytesIO()
    write(room)
    aside = cache.WRITING + os.urandom(8).hex()
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(file, 0o600)  # whatever the mask
            stream.write(room.getbuffer())
        os.replace(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside, dir_fd=directory)
        raise
