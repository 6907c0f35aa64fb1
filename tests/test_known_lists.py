"""Lists of arrays that are looked at once, and never taken for others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dnnprims.runtime import known_lists
from dnnprims.runtime.device_arrays import DeviceArrays
from dnnprims.runtime.known_lists import KnownLists


class Thing:
    """An array in little."""

    def __init__(self, shape: int, pointer: int) -> None:
        self.shape, self.pointer = shape, pointer


class Looks:
    """Counts the arrays that are looked at."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, arrays: Sequence[Any]) -> tuple[list[Any], list[int]]:
        self.count += len(arrays)
        return [a.shape for a in arrays], [a.pointer for a in arrays]


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def lists(looks: Looks) -> KnownLists:
    return KnownLists(Thing, looks)


def test_a_list_is_looked_at_twice_and_then_known(lists: KnownLists, looks: Looks) -> None:
    things = [Thing(3, 16), Thing(5, 32)]
    first = lists.look(things)
    assert first[1] == [16, 32]
    for repeat in range(4):
        assert lists.look(list(things)) == first
        assert looks.count == 4, repeat


def test_lists_of_one_signature_have_the_same_and_others_another(lists: KnownLists) -> None:
    signature, _ = lists.look([Thing(3, 16), Thing(5, 32)])
    assert lists.look([Thing(3, 48), Thing(5, 64)])[0] == signature
    assert lists.look([Thing(5, 48), Thing(3, 64)])[0] != signature
    assert lists.look([Thing(3, 48)])[0] != signature


def test_a_list_is_forgotten_with_one_of_its_arrays(lists: KnownLists) -> None:
    """The dead one's place in memory may be taken by another: its id is the same then."""
    things = [Thing(3, 16), Thing(5, 32)]
    for _ in range(3):
        lists.look(things)
    assert lists._known
    del things[1]
    gc.collect()
    assert not lists._known


def test_nothing_is_kept_alive_and_little_is_remembered(
    lists: KnownLists, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_lists, "MOST_LISTS", 4)
    monkeypatch.setattr(known_lists, "MOST_SIGNATURES", 8)
    monkeypatch.setattr(known_lists, "MOST_SEEN", 8)
    kept = [[Thing(i, 16 * i)] for i in range(32)]
    for things in kept:
        for _ in range(3):
            assert lists.look(things)[1] == [things[0].pointer]
        assert len(lists._known) <= 4
        assert len(lists._signatures) <= 8
        assert len(lists._seen) <= 8
    del things
    kept.clear()
    gc.collect()
    assert not lists._known


def test_what_is_no_array_is_never_known(lists: KnownLists, looks: Looks) -> None:
    class Other(Thing):
        pass

    others = [Thing(3, 16), Other(5, 32)]
    for _ in range(4):
        lists.look(others)
    assert looks.count == 8


def test_addresses_that_a_caller_extends_are_not_the_known_ones(lists: KnownLists) -> None:
    """The executor adds them to a list of its own."""
    things = [Thing(3, 16)]
    for _ in range(3):
        collected: list[int] = []
        collected += lists.look(things)[1]
        collected.append(1)
    assert lists.look(things)[1] == [16]


def test_arrays_of_a_device_are_let_go_of_at_once() -> None:
    """What they know leads nowhere back: they go with the last who has them, not with the collector."""
    arrays = DeviceArrays(SimpleNamespace(ndarray=Thing), 0)
    assert arrays.look([None, [None]])[1] == [0, 0]
    gone = weakref.ref(arrays)
    gc.disable()
    try:
        del arrays
        assert gone() is None
    finally:
        gc.enable()
