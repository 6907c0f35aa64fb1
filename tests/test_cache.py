"""The kernel cache gives back what was put into it under the same key, or nothing; and nobody else's code."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dnnprims.runtime import cache
from dnnprims.runtime.cache import Directory, Unusable, opened, opened_cache

NAME, KEY = "softmax-float32-sm_90-0123.cubin", "0123" * 16
CODE = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache of this test will be; nothing is there yet."""
    monkeypatch.setenv("DNNPRIMS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "cache"


@pytest.fixture
def directory(path: Path) -> Iterator[Directory]:
    """An open cache with one entry."""
    with opened(path) as made:
        made.keep(NAME, KEY, CODE)
        yield made


def problem_of(path: Path) -> str:
    """Why the directory is refused."""
    with pytest.raises(Unusable) as caught, opened(path):
        pass
    return str(caught.value)


# -- entries ---------------------------------------------------------------------------------------------------------


def test_entry_survives(directory: Directory, path: Path) -> None:
    """Bit for bit, in a file and a directory of the user's own."""
    assert directory.load(NAME, KEY) == CODE
    assert os.listdir(path) == [NAME]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / NAME).stat().st_mode) == 0o600


def damages() -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Entries cut at every kind of place, and 1,000 with one to three bits flipped, the seal's among them."""
    whole = len(CODE) + cache._SEAL_BYTES
    for length in (0, 1, 31, cache._SEAL_BYTES, len(CODE) // 2, len(CODE) - 1, len(CODE), len(CODE) + 5, whole - 1):
        yield f"cut to {length}", lambda data, n=length: data[:n]
    yield "foreign", lambda data: b"not ours at all" * 50
    yield "zeros", lambda data: bytes(len(data))
    yield "longer", lambda data: data + b"\0"
    rng = np.random.default_rng(0)
    for k in range(1000):
        # Every tenth one in the seal, which is a hundredth of the entry.
        places = rng.integers(len(CODE) if k % 10 == 0 else 0, whole, rng.integers(1, 4))
        yield f"bits {places}", lambda data, at=places, bit=k % 8: flipped(data, at, bit)


def flipped(data: bytes, places: np.ndarray, bit: int) -> bytes:
    """The same with a bit of each of some bytes turned over."""
    changed = bytearray(data)
    for place in set(places.tolist()):
        changed[place] ^= 1 << bit
    return bytes(changed)


def test_damaged_entries_are_none(directory: Directory, path: Path) -> None:
    """No damage reaches the driver or the dynamic loader, and none raises."""
    good = (path / NAME).read_bytes()
    for words, damage in damages():
        (path / NAME).write_bytes(damage(good))
        assert directory.load(NAME, KEY) is None, words
    (path / NAME).write_bytes(good)
    assert directory.load(NAME, KEY) == CODE


def test_sound_entry_of_another_kernel_is_none(directory: Directory) -> None:
    """The seal covers the key: a file that was renamed or copied is not taken for what its name says."""
    other = NAME.replace("0123", "4567")
    directory.keep(other, "4567" * 16, CODE[::-1])
    os.replace(directory.path / other, directory.path / NAME)
    assert directory.load(NAME, KEY) is None
    assert directory.load(NAME, "4567" * 16) == CODE[::-1]


def make_entry(kind: str, place: Path) -> None:
    """Something in an entry's place that is no entry."""
    sound = place.read_bytes()
    place.unlink()
    if kind == "directory":
        place.mkdir()
    elif kind == "symbolic link":
        place.with_suffix(".elsewhere").write_bytes(sound)
        place.symlink_to(place.with_suffix(".elsewhere"))
    elif kind == "dangling link":
        place.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "a terabyte":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "writable by others":
        place.write_bytes(sound)
        place.chmod(0o666)


@pytest.mark.parametrize(
    "kind", ["directory", "symbolic link", "dangling link", "pipe", "a terabyte", "writable by others", "missing"]
)
def test_what_is_no_entry_is_none(directory: Directory, path: Path, kind: str) -> None:
    """It is not followed, not waited for and not read into memory; a new entry takes its place where it can."""
    make_entry(kind, path / NAME)
    assert directory.load(NAME, KEY) is None
    if kind == "directory":
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            directory.keep(NAME, KEY, CODE)
        assert directory.load(NAME, KEY) is None
    else:
        directory.keep(NAME, KEY, CODE)
        assert directory.load(NAME, KEY) == CODE
    assert not [name for name in os.listdir(path) if name.startswith(cache.WRITING)]


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's; without the right to do so, make the user another one."""
    if os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def test_entry_of_another_user_is_none(directory: Directory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it could change it after the check."""
    give_away(path / NAME, monkeypatch)
    assert directory.load(NAME, KEY) is None


# -- the directory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_directory_that_others_can_write_to_is_refused(path: Path, mode: int) -> None:
    """The cache is code: what others could have written is not loaded."""
    path.mkdir()
    path.chmod(mode)
    assert "can be written by others" in problem_of(path)


def test_directory_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that only its owner may write to."""
    path.mkdir(mode=0o700)
    give_away(path, monkeypatch)
    assert "belongs to user" in problem_of(path)


def test_symbolic_link_is_refused(path: Path) -> None:
    """A link could be turned to somebody else's directory."""
    path.with_name("real").mkdir(mode=0o700)
    path.symlink_to(path.with_name("real"))
    assert problem_of(path) == "is a symbolic link"


def test_directory_that_anyone_could_exchange_is_refused(tmp_path: Path) -> None:
    """Write access above is enough to put another directory in the place of this one, unless the sticky bit is set."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    assert f"lies below {above}, where anyone can exchange it" in problem_of(above / "between" / "cache")
    (tmp_path / "link").symlink_to(above / "between")
    assert "where anyone can exchange it" in problem_of(tmp_path / "link" / "cache")
    above.chmod(0o1777)
    with opened(above / "between" / "cache"):
        pass


def test_file_in_the_place_of_the_directory_is_refused(path: Path) -> None:
    """Nothing is removed to make room."""
    path.write_text("mine")
    assert "cannot be made" in problem_of(path)
    assert "cannot be made" in problem_of(path / "below")
    assert path.read_text() == "mine"


def test_directory_that_cannot_be_written_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is compiled for it; root alone may write all the same."""
    path.mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert problem_of(path) == "cannot be written"


def test_what_is_made_is_the_users_alone(tmp_path: Path) -> None:
    """Under any umask, the directories above among it."""
    before = os.umask(0)
    try:
        with opened(tmp_path / "a" / "b"):
            pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700, 0o700]


def test_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where "~" names nothing, no directory of that name is made in the working directory."""
    monkeypatch.delenv("DNNPRIMS_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    assert "no home directory" in problem_of(cache.cache_path())


def test_refusal_is_told_once(path: Path) -> None:
    """With the way out, and not at every kernel."""
    path.mkdir()
    path.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"mode 777\); set DNNPRIMS_CACHE_DIR or mend it"), opened_cache() as got:
        assert got is None
    with opened_cache() as got:
        assert got is None


def test_directory_exchanged_after_the_check_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the other directory's sound entry loaded, nor is anything written there."""
    with opened(path.with_name("trap")) as trap:
        trap.keep(NAME, KEY, b"malice")
    check = cache._problem_of_directory

    def exchanging(checked: Path, descriptor: int) -> str | None:
        found = check(checked, descriptor)
        path.rename(path.with_name("moved"))
        path.symlink_to(path.with_name("trap"))
        return found

    monkeypatch.setattr(cache, "_problem_of_directory", exchanging)
    with opened(path) as directory:
        assert directory.load(NAME, KEY) is None
        directory.keep(NAME, KEY, CODE)
        assert directory.load(NAME, KEY) == CODE
    assert (path.with_name("moved") / NAME).exists()
    assert (path.with_name("trap") / NAME).read_bytes().startswith(b"malice")


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files may have 100 bytes: the write of an entry fails in its middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_full_disk_costs_the_caching_alone(path: Path) -> None:
    """A warning; nothing is left behind."""
    with opened(path) as directory, pytest.warns(RuntimeWarning, match="cannot be written"):
        directory.keep(NAME, KEY, CODE)
    assert os.listdir(path) == []


KILLED = """
    import os, signal
    from pathlib import Path
    from dnnprims.runtime import cache
    cache.{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    with cache.opened(Path({path!r})) as directory:
        directory.keep({name!r}, "{key}", bytes(100000))
"""


@pytest.mark.parametrize("moment", ["seal", "os.replace"])
def test_killed_writer_leaves_no_half_entry(path: Path, moment: str) -> None:
    """What it leaves is no reader's business, and a later writer removes it once it is surely nobody's any more."""
    text = textwrap.dedent(KILLED).format(moment=moment, path=str(path), name=NAME, key=KEY)
    assert subprocess.run([sys.executable, "-c", text]).returncode == -signal.SIGKILL
    (left,) = os.listdir(path)
    assert left.startswith(cache.WRITING)
    with opened(path) as directory:
        assert directory.load(NAME, KEY) is None
        directory.keep(NAME, KEY, CODE)
        assert sorted(os.listdir(path)) == sorted([left, NAME])
        os.utime(path / left, (0, 0))
        directory.keep(NAME, KEY, CODE)
        assert os.listdir(path) == [NAME]
