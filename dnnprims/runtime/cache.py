"""Where compiled kernels are kept, between processes: a directory that nobody else writes to, and sealed entries.

The cache is code. What it is safe against:

- Other users. The directory must belong to the user and be writable by nobody else, must be no symbolic link, and must
  not lie below a directory where anyone may exchange it. It is opened once for each access and looked at through that
  descriptor, so that exchanging it after the check changes nothing; entries are files of the user's own.
- Damage. A seal of SHA-256 covers the machine code and the whole key (text, instantiations, options, compiler,
  architecture), so that a truncated or changed entry, and a sound entry of another kernel under this name, are compiled
  again.
- Neighbours. An entry is written aside and renamed into place: processes that compile the same kernel at once each put
  the whole of it there, and one that is killed leaves a file that no reader looks at and a later writer removes.

It is not safe against the user, nor against members of a group that may write to a directory above.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MARK = b"dnnprims-kernel-2\0"
_SEAL_BYTES = len(_MARK) + 32

#: No entry is larger; what is, was not put here by this library.
LARGEST_ENTRY = 1 << 28

#: How the name of a file begins that is being written, and the age from which on it is what a killed process left.
WRITING = ".writing-"
STALE_SECONDS = 3600

_OPEN_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
#: Without O_NONBLOCK a pipe in the place of an entry would be waited for.
_OPEN_ENTRY = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Unusable(Exception):
    """The directory must not be used as a cache; the message says why."""


def seal(key: str, code: bytes) -> bytes:
    """The end of an entry: a mark, and a digest of the key and the code. A loader of shared objects ignores it."""
    return _MARK + hashlib.sha256(b"\0".join((key.encode(), code))).digest()


@dataclass(frozen=True)
class Directory:
    """A directory that was opened and found fit; entries are reached through its descriptor."""

    path: Path
    descriptor: int

    def load(self, name: str, key: str) -> bytes | None:
        """The code that was kept under this name for this key, or None where there is none that is whole."""
        try:
            entry = os.open(name, _OPEN_ENTRY, dir_fd=self.descriptor)
            try:
                data = _read_own_file(entry)
            finally:
                os.close(entry)
        except OSError:
            return None
        code = data[:-_SEAL_BYTES]
        return code if data[-_SEAL_BYTES:] == seal(key, code) else None

    def keep(self, name: str, key: str, code: bytes) -> None:
        """Put an entry there so that no reader sees half of it; a full or read-only disk only costs the caching."""
        aside = WRITING + os.urandom(8).hex()
        try:
            file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.descriptor)
            try:
                with os.fdopen(file, "wb") as stream:
                    stream.write(code)
                    stream.write(seal(key, code))
                os.replace(aside, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
            except BaseException:
                with suppress(OSError):
                    os.unlink(aside, dir_fd=self.descriptor)
                raise
            self._sweep()
        except OSError as error:
            words = f"dnnprims: the kernel cache {self.path} cannot be written: {error}"
            warnings.warn(words, RuntimeWarning, stacklevel=2)

    def locate(self, name: str) -> Path:
        """A path that leads to the entry through the descriptor, for the loader of shared objects."""
        through = Path(f"/proc/self/fd/{self.descriptor}")
        return (through if through.is_dir() else self.path) / name

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for name in os.listdir(self.descriptor):
            if name.startswith(WRITING):
                with suppress(OSError):  # another process was faster
                    age = time.time() - os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mtime
                    if age > STALE_SECONDS:
                        os.unlink(name, dir_fd=self.descriptor)


def _read_own_file(descriptor: int) -> bytes:
    """What a file holds; nothing for what no entry can be: another user's, or no plain file."""
    facts = os.fstat(descriptor)
    if _problem_of_owner(facts) or not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_ENTRY:
        return b""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(facts.st_size)


def cache_path() -> Path:
    """Return where the cache is kept: ``DNNPRIMS_CACHE_DIR``, else the user's cache directory."""
    given = os.environ.get("DNNPRIMS_CACHE_DIR")
    if given:
        return Path(given).absolute()
    # Where there is no home directory, "~" stays as it is.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "dnnprims"


@contextmanager
def opened(path: Path) -> Iterator[Directory]:
    """Open a directory, made for the user alone when missing.

    Raises
    ------
    Unusable
        It must not be used.
    """
    if not path.is_absolute():
        raise Unusable("lies nowhere, as this user has no home directory")
    try:
        _make(path)
        if path.is_symlink():
            raise Unusable("is a symbolic link")
        descriptor = os.open(path, _OPEN_DIRECTORY)
    except OSError as error:
        raise Unusable(f"cannot be made: {error}") from None
    try:
        problem = _problem_of_directory(path, descriptor)
        if problem:
            raise Unusable(problem)
        yield Directory(path, descriptor)
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    """Make a directory and those above it that are missing, each for the user alone."""
    for place in (*reversed(path.parents), path):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)


def _problem_of_directory(path: Path, descriptor: int) -> str | None:
    problem = _problem_of_owner(os.fstat(descriptor))
    if problem:
        return problem
    for above in dict.fromkeys((*path.parents, *path.resolve().parents)):
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"lies below {above}, where anyone can exchange it (mode {stat.S_IMODE(mode):o})"
    return None if os.access(path, os.W_OK | os.X_OK) else "cannot be written"


def _problem_of_owner(facts: os.stat_result) -> str | None:
    if facts.st_uid != os.geteuid():
        return f"belongs to user {facts.st_uid}, not to you"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(facts.st_mode):o})"
    return None


def cache_problem(path: Path) -> str | None:
    """Return why the directory must not be used as a cache, or None. It is made, for the user alone, when missing."""
    try:
        with opened(path):
            return None
    except Unusable as problem:
        return str(problem)


_warned: set[Path] = set()
_warned_lock = threading.Lock()


@contextmanager
def opened_cache() -> Iterator[Directory | None]:
    """Open the cache; None, with one warning in the life of the process, where it must not be used."""
    path = cache_path()
    with ExitStack() as stack:
        try:
            directory: Directory | None = stack.enter_context(opened(path))
        except Unusable as problem:
            _warn_once(path, str(problem))
            directory = None
        yield directory


def _warn_once(path: Path, problem: str) -> None:
    with _warned_lock:
        if path in _warned:
            return
        _warned.add(path)
    words = f"dnnprims: the kernel cache {path} is not used: it {problem}; set DNNPRIMS_CACHE_DIR or mend it"
    warnings.warn(words, RuntimeWarning, stacklevel=4)
