"""Results and how long they are good: bounded, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

_SWEPT: Final = 2  # expired entries that go with each new one: they shrink, and no call pays for all at once


class Entry(NamedTuple):
    """A result, and when it ends to be good."""

    value: Any
    ends: float


class Key(list[Hashable]):
    """A key with the hash that it had when it was made.

    One that changes later, as an object does whose hash goes by its values, would never be found again: what is kept
    under it could not be let go, and who waits for it would wait for ever. A list, for its comparison is in C.

    Raises:
        Exception: it has no hash.
    """

    __slots__ = ("_hash",)

    def __init__(self, value: Hashable) -> None:
        super().__init__((value,))
        self._hash = hash(value)

    def __hash__(self) -> int:  # type: ignore[override]  # a list has none, for it changes; nobody changes this one
        return self._hash


class Entries:
    """Results of functions by function and key. Pure: time comes in as `now`.

    Args:
        ttl: seconds for which an entry is good; at that age it is not.
        max_size: entries kept. An expired one always goes before one that is good.
    """

    def __init__(self, ttl: float, max_size: int) -> None:
        self._ttl = ttl
        self._max_size = max_size
        self._by_use: OrderedDict[tuple[Hashable, Hashable], Entry] = OrderedDict()
        self._by_age: OrderedDict[tuple[Hashable, Hashable], None] = OrderedDict()
        self._functions: dict[Hashable, int] = {}  # and how many entries each has

    def __len__(self) -> int:
        """How many are held, expired ones included."""
        return len(self._by_use)

    def get(self, function: Hashable, key: Hashable, now: float) -> Entry | None:
        """Give an entry that is good, which makes it the most recently used; else None."""
        entry = self._by_use.get((function, key))
        if entry is None:
            return None
        if now >= entry.ends:
            self._drop((function, key))
            return None
        self._by_use.move_to_end((function, key))
        return entry

    def put(self, function: Hashable, key: Hashable, value: Any, now: float) -> None:
        """Keep a result, unless entries are good for no time at all."""
        if not self._ttl:
            return
        place = (function, key)
        self._drop(place)
        self.sweep(now, _SWEPT)
        if len(self._by_use) >= self._max_size:
            self._drop(next(iter(self._by_use)))
        self._by_use[place] = Entry(value, now + self._ttl)
        self._by_age[place] = None
        self._functions[function] = self._functions.get(function, 0) + 1

    def sweep(self, now: float, most: int) -> None:
        """Let go of expired entries, the oldest first, at most so many."""
        for _ in range(most):
            oldest = next(iter(self._by_age), None)
            if oldest is None or now < self._by_use[oldest].ends:
                return
            self._drop(oldest)

    def forget(self, key: Hashable) -> None:
        """Let go of what all functions gave for the key."""
        for function in list(self._functions):
            self._drop((function, key))

    def _drop(self, place: tuple[Hashable, Hashable]) -> None:
        if self._by_use.pop(place, None) is None:
            return
        del self._by_age[place]
        function = place[0]
        if self._functions[function] > 1:
            self._functions[function] -= 1
        else:
            del self._functions[function]
