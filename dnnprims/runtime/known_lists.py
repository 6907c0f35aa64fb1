"""Lists of arrays that calls have seen: what a plan may depend on and the addresses, without a look at every array.

A look at an array takes about a third of a microsecond, and an optimizer hands over thousands of them, mostly the same
ones at every step. A list is known by its arrays, whichever list object they come in, and is forgotten when one of them
dies, so that another array in its place is never taken for it. What is remembered keeps no array alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import ref

#: Lists and signatures that are remembered, and lists that were seen once.
MOST_LISTS, MOST_SIGNATURES, MOST_SEEN = 64, 1024, 256

#: Looks at arrays: what a plan may depend on, and the addresses.
Look = Callable[[Sequence[Any]], tuple[list[Any], list[int]]]


class Signature:
    """Stands for what a plan may depend on of a whole list, as a key that is cheap to hash and to compare."""


class KnownLists:
    """The lists of one executor.

    Parameters
    ----------
    array_type : type
        Of the arrays that can be known: nothing that a plan depends on may change while one lives, but for a shape
        assigned in place, which moves no element.
    look : callable
        Looks at the arrays of a list that is not known.
    """

    def __init__(self, array_type: type, look: Look) -> None:
        self._array_type, self._look = array_type, look
        self._known: dict[tuple[int, ...], tuple[Signature, list[int], list[Any]]] = {}
        self._signatures: dict[tuple[Any, ...], Signature] = {}
        self._seen: set[int] = set()

    def look(self, arrays: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return the signature, as a list of one, and the addresses of the arrays."""
        known = self.known(arrays)
        if known is not None:
            return [known[0]], known[1]
        key = tuple(map(id, arrays))
        items, addresses = self._look(arrays)
        signature = self._signature(tuple(items))
        if set(map(type, arrays)) == {self._array_type} and self._seen_before(hash(key)):
            self._remember(key, signature, addresses, arrays)
        return [signature], addresses

    def known(self, arrays: Sequence[Any]) -> tuple[Signature, list[int], list[Any]] | None:
        """Signature, addresses and references of a list that is remembered, or None."""
        return self._known.get(tuple(map(id, arrays)))

    def _signature(self, items: tuple[Any, ...]) -> Signature:
        if len(self._signatures) >= MOST_SIGNATURES:
            self._signatures.clear()
            self._known.clear()
        return self._signatures.setdefault(items, Signature())

    def _seen_before(self, key: int) -> bool:
        """Whether it is worth remembering: lists of new arrays, such as gradients made at each step, come once."""
        if key in self._seen:
            return True
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return False

    def _remember(
        self, key: tuple[int, ...], signature: Signature, addresses: list[int], arrays: Sequence[Any]
    ) -> None:
        if len(self._known) >= MOST_LISTS:
            self._known.pop(next(iter(self._known)))
        forget = partial(_forget, self._known, key)
        self._known[key] = signature, addresses, [ref(a, forget) for a in arrays]


def _forget(known: dict[tuple[int, ...], Any], key: tuple[int, ...], _: object) -> None:
    known.pop(key, None)
