"""Those who wait for their turn: each has a slot of its own, and moves up when one in front of it leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from resilience.clock import Clock
from resilience.forks import renew_locks_in_child

Soon = Callable[[Callable[[], object]], object]


class Waiter:
    """One call that was charged already and passes at its slot.

    Attributes:
        slot: the moment, in seconds of the limiter's clock.
        wake: called when the slot moved up; from any thread.
        soon: calls a function when all who leave now have left.
    """

    __slots__ = ("cost", "slot", "soon", "wake")

    def __init__(self, cost: int, slot: float, wake: Callable[[], object], soon: Soon) -> None:
        self.cost = cost
        self.slot = slot
        self.wake = wake
        self.soon = soon


Requeue = Callable[[str, int, Sequence[int], Callable[[Sequence[int]], None]], None]
"""Gives back the cost of those who left, reserves the costs of those behind it anew in turn, and reports their waits in
microseconds, now or later."""


class Queue:
    """The waiters of one limiter, by key, in the order of their slots."""

    def __init__(self, clock: Clock, most: int | None, requeue: Requeue) -> None:
        self._clock = clock
        self._most = most
        self._requeue = requeue
        self._waiters: dict[str, list[Waiter]] = {}
        self._left: dict[str, tuple[int, float]] = {}  # the cost of those who left, and the first slot among theirs
        self._count = 0
        # Guards everything above. Nothing of the user's runs under it.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child: those who wait are the parent's."""
        self._lock = threading.RLock()
        self._waiters.clear()
        self._left.clear()
        self._count = 0

    def __len__(self) -> int:
        """Count those who wait, and those who ask whether they must."""
        return self._count

    def claim(self) -> bool:
        """Take a place for one who may have to wait; False if there is none."""
        with self._lock:
            if self._most is not None and self._count >= self._most:
                return False
            self._count += 1
            return True

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            self._count -= 1

    def enter(self, key: str, waiter: Waiter) -> None:
        """Wait; the place among the others of this key is that of the slot."""
        with self._lock:
            waiters = self._waiters.setdefault(key, [])
            place = len(waiters)
            while place and waiters[place - 1].slot > waiter.slot:
                place -= 1
            waiters.insert(place, waiter)

    def leave(self, key: str, waiter: Waiter, *, passed: bool) -> None:
        """Wait no longer: the call passed, or it will not be made, and those behind it move up."""
        with self._lock:
            waiters = self._waiters.get(key, [])
            if waiter not in waiters:
                return
            is_last = waiters[-1] is waiter
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[key]
            if passed:
                return
            if not is_last:
                cost, slot = self._left.get(key, (0, inf))
                self._left[key] = cost + waiter.cost, min(slot, waiter.slot)
        if is_last:
            self._requeue(key, waiter.cost, (), _nobody)
        else:
            # Not at once: when a thousand are cancelled together, a thousand times all those behind would move up. And
            # all who leave ask for it, not the first alone, whose run may end before anything happens in it.
            waiter.soon(partial(self._close_up, key))

    def _close_up(self, key: str) -> None:
        """Let those behind who left move up, if nobody has seen to it yet."""
        with self._lock:
            if key not in self._left:
                return
            cost, slot = self._left.pop(key)
            behind = [one for one in self._waiters.get(key, ()) if one.slot >= slot]
        self._requeue(key, cost, [one.cost for one in behind], partial(self._move, behind))

    def _move(self, waiters: Sequence[Waiter], waits: Sequence[int]) -> None:
        now = self._clock()
        for waiter, wait in zip(waiters, waits, strict=True):
            slot = now + wait * 1e-6
            if slot < waiter.slot:
                waiter.slot = slot
                waiter.wake()


def _nobody(waits: Sequence[int]) -> None:
    """Move nobody up."""
