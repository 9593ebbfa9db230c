"""Where the states of keys are kept: bounded for ever, without a sweep, and without forgetting what is still owed."""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from resilience.forks import renew_locks_in_child

LOOKED_AT: Final = 2
"""Places that a new key looks at for one that is as new: garbage shrinks faster than it can be made."""
CANDIDATES: Final = 8
"""Live keys of which the one that drains first has to leave."""

_HAS_GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()
_ROWS: Final = 4
_ODD: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
_64_BITS: Final = (1 << 64) - 1


class Sketch:
    """When keys that are no longer held will have drained: perhaps too late, and never too early.

    Each row has a cell for each key, which many keys share. A cell keeps the latest moment; the earliest over the rows
    is the answer. A moment that has passed is as good as an empty cell, so the sketch cleans itself.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._cells = array("d", bytes(8 * _ROWS * width))
        self._latest = -inf

    def write(self, key: object, at: int) -> None:
        """Note that `key` has drained at the moment `at`."""
        self._latest = max(self._latest, at)
        for cell in self._places(key):
            self._cells[cell] = max(self._cells[cell], at)

    def read(self, key: object, now: int) -> int:
        """Give the moment at which `key` has drained, 0 if none is known."""
        if self._latest <= now:
            return 0
        return int(min(self._cells[cell] for cell in self._places(key)))

    def _places(self, key: object) -> list[int]:
        mixed = hash(key) & _64_BITS
        mixed ^= mixed >> 29
        return [row * self._width + ((mixed * odd & _64_BITS) >> 20) % self._width for row, odd in enumerate(_ODD)]


class Capacity:
    """What all limiters on one memory store share: how many keys there may be, and how many there are.

    `with capacity:` guards `size` and everything in every `Keys` of this capacity. It is held around synchronous
    functions of ours only: no await, no sink, no function of the user's runs under it; and it may be entered again,
    because the garbage collector may end a call inside it.

    Attributes:
        busy: how often it is entered. While it is not, a thread may change the state of one key without entering, in
            steps between which the interpreter changes no thread: no call and no loop. See `Space.acquire`.
    """

    def __init__(self, max_keys: int, *, spill: bool) -> None:
        self.max_keys = max_keys
        self.spill = spill
        self.size = 0
        self.all: list[Keys] = []
        self.renew_locks()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.RLock()
        self.busy = 0 if _HAS_GIL else 1

    def __enter__(self) -> None:
        self._lock.acquire()
        self.busy += 1

    def __exit__(self, *_: object) -> None:
        self.busy -= 1
        self._lock.release()


class Keys:
    """The states of the keys of one limiter.

    A ring holds the same keys as the table, and a hand goes round on it: a new key takes the place of the first drained
    one that the hand meets. When all places are taken by live keys, the one of the next few that drains first leaves,
    into the sketch.

    Args:
        capacity: shared with other limiters.
        clock: gives the limiter's microseconds.
        drains: tells of a state at a moment in how many microseconds each rule has drained.

    Attributes:
        states: the table; whoever reads it, or replaces a state in it, has entered the capacity.
        spilled: live keys that had to leave, and were not told of yet.
    """

    def __init__(
        self, capacity: Capacity, clock: Callable[[], int], drains: Callable[[Any, int], Sequence[int]]
    ) -> None:
        self.states: dict[str, Any] = {}
        self.spilled = 0
        self._capacity = capacity
        self._clock = clock
        self._drains = drains
        self._ring: list[str] = []
        self._hand = 0
        self._sketch: Sketch | None = None
        capacity.all.append(self)

    def __len__(self) -> int:
        return len(self._ring)

    def put(self, key: str, state: Any, now: int) -> None:
        """Keep the state of `key`."""
        if key in self.states:
            self.states[key] = state
        else:
            self.insert(key, state, now)

    def insert(self, key: str, state: Any, now: int) -> None:
        """Keep the state of a key that is not held yet."""
        ring, capacity = self._ring, self._capacity
        for _ in range(min(LOOKED_AT, len(ring))):
            if max(self._drains(self.states[ring[self._hand]], now)) <= 0:
                self._replace(key, state)
                return
            self._hand = (self._hand + 1) % len(ring)
        if capacity.size < capacity.max_keys:
            capacity.size += 1
        elif ring:
            self._spill(now)
            self._replace(key, state)
            return
        else:  # this limiter has no place yet, and all are taken: the one that has most gives one up
            max(capacity.all, key=len).give_place()
        ring.append(key)
        self.states[key] = state

    def give_place(self) -> None:
        """Let a key go, so that another limiter's can be held."""
        self._spill(self._clock())
        del self.states[self._ring[self._hand]]
        self._ring[self._hand] = self._ring[-1]
        self._ring.pop()
        self._hand = 0

    def recall(self, key: str, rule: int, now: int) -> int:
        """Give the microseconds until `rule` has drained for a key that is not held; 0 if nothing is known of it."""
        return 0 if self._sketch is None else max(0, self._sketch.read((rule, key), now) - now)

    @property
    def recalls(self) -> bool:
        """Whether something may be known of keys that are not held."""
        return self._sketch is not None

    def names(self) -> list[str]:
        """Give the keys that are held."""
        return list(self._ring)

    def clear(self) -> None:
        """Forget everything."""
        self._capacity.size -= len(self._ring)
        self.states.clear()
        self._ring.clear()
        self._hand, self._sketch = 0, None

    def _replace(self, key: str, state: Any) -> None:
        """Put a new key into the place at the hand."""
        del self.states[self._ring[self._hand]]
        self._ring[self._hand] = key
        self.states[key] = state
        self._hand = (self._hand + 1) % len(self._ring)

    def _spill(self, now: int) -> None:
        """Move the hand to the key, of the next few, that drains first, and remember it in the sketch if it is live."""
        ring = self._ring
        places = [(self._hand + step) % len(ring) for step in range(min(CANDIDATES, len(ring)))]
        ends = {place: self._drains(self.states[ring[place]], now) for place in places}
        self._hand = min(places, key=lambda place: max(ends[place]))
        key, left = ring[self._hand], ends[self._hand]
        if max(left) <= 0:
            return
        self.spilled += 1
        if self._capacity.spill:
            if self._sketch is None:
                self._sketch = Sketch(2 * self._capacity.max_keys)
            for rule, microseconds in enumerate(left):
                self._sketch.write((rule, key), now + microseconds)
