"""Fixed windows that begin where the calendar says: minutes, hours, days of a time zone. Pure.

The state is one number: the window's index and what was used in it. More than the limit may be used: what lies beyond
it is reserved in the windows that follow, for callers who wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from .decision import Standing
from .quota import Quota

Offsets: TypeAlias = tuple[int, int, int]
"""How local time runs around now, in microseconds: its distance from UTC before the nearest change of it, the moment of
that change, the distance after it."""

_INDEX: Final = 1 << 64
"""More than any use of a window and its reservations, so that both fit into one number, later windows above."""


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """The arithmetic of one quota. The state is index x 2^64 + use; 0 is empty.

    Attributes:
        quota: what it enforces.
        offsets: gives the offsets of the quota's time zone around a moment of wall time in microseconds.
        unit: what a unit of cost weighs; more than 1 for the share of one of several instances.
        capacity: the weight that fits into a window.
    """

    quota: Quota
    offsets: Callable[[int], Offsets] = field(compare=False)
    unit: int
    capacity: int
    _current: list[tuple[int, int, int]] = field(default_factory=list, compare=False, repr=False)
    """Index, start and end of the window that was looked at last: most calls fall into it."""

    @classmethod
    def of(cls, quota: Quota, offsets: Callable[[int], Offsets]) -> FixedWindow:
        """Prepare the arithmetic for `quota`."""
        return cls(quota, offsets, 1, quota.limit)

    def shared(self, instances: int) -> FixedWindow:
        """Give this instance's share of the limit, at least one unit for each window."""
        unit = self.unit * instances
        return replace(self, unit=unit, capacity=max(self.capacity, unit), _current=[])

    @property
    def empty(self) -> int:
        """The state of a key that was never seen."""
        return 0

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.capacity // self.unit

    def room(self, state: int, now: int) -> int:
        """Give the units that can pass now."""
        return max(0, (self.capacity - self._use(state, now)) // self.unit)

    def wait(self, state: int, now: int, units: int) -> int:
        """Give the microseconds until the first window in which `units` fit; 0 is now."""
        ahead = self._ahead(self._use(state, now), units)
        return 0 if ahead == 0 else self._start(self._index(now) + ahead, now) - now

    def charge(self, state: int, now: int, units: int, at: int) -> int:
        """Add `units` that pass at the moment `at`, which is now or lies ahead."""
        index, _, end = self._window(now)
        use = self._use(state, now)
        if at >= end:
            use = max(use, (self._index(at) - index) * self.capacity)
        return index * _INDEX + max(use, self._ahead(use, units) * self.capacity) + units * self.unit

    def refund(self, state: int, now: int, units: int) -> int:
        """Take `units` back; more than was taken leaves the window empty."""
        return self._window(now)[0] * _INDEX + max(0, self._use(state, now) - units * self.unit)

    def withdraw(self, state: int, now: int, units: int) -> int:
        """Take back `units` that were reserved last and have not passed: here the same as a refund."""
        return self.refund(state, now, units)

    def drained(self, state: int, now: int) -> int:
        """Give the microseconds until the window ends, or the last one in which something is reserved; 0 if unused."""
        use = self._use(state, now)
        if use == 0:
            return 0
        index, _, end = self._window(now)
        return (end if use <= self.capacity else self._start(index + -(-use // self.capacity), now)) - now

    def clamped(self, state: int, now: int) -> int:
        """Give `state`; a window of the future, which only a clock that stepped back can leave, becomes this one."""
        index = self._window(now)[0]
        return index * _INDEX + self._use(state, now) if state >= (index + 1) * _INDEX else state

    def remembered(self, at: int, now: int) -> int:
        """Give the state of a key of which only the moment is known at which it is as new: the window is used up."""
        return self._window(now)[0] * _INDEX + self.capacity if at > now else self.empty

    def level(self, state: int, now: int) -> int:
        """Give what is used in this window, by weight."""
        return self._use(state, now)

    def spec(self, wall: int) -> str:
        """Give the rule in the words of `fixed_window.lua`, for a server whose clock shows about `wall`."""
        before, change, after = self.phase(wall)
        return f"w {self.capacity} {self.quota.microseconds} {before} {change} {after}"

    def told(self, reply: Iterator[int], now: int, cost: int) -> tuple[int, Standing]:
        """Read what `fixed_window.lua` told: the state, and where the rule stands for a call of `cost`."""
        use, left = next(reply), next(reply)
        per, ahead = self.quota.microseconds, self._ahead(use, cost)
        wait = 0 if ahead == 0 else left + (ahead - 1) * per
        drained = 0 if use == 0 else left + (-(-use // self.capacity) - 1) * per
        room = max(0, self.capacity - use)
        return self._window(now)[0] * _INDEX + use, Standing(self.quota, room, wait, drained)

    def refuses(self, state: int, cost: int) -> bool:  # noqa: ARG002 - as `Rule` has it
        """Tell whether what is known of a shared state is enough to answer a refusal of `cost` here: it always is."""
        return True

    def phase(self, now: int) -> tuple[int, int, int]:
        """Give the offsets in the form that tells windows apart: see `fixed_window.lua`."""
        before, change, after = self.offsets(now)
        if (after - before) % self.quota.microseconds == 0:
            # The change moves no boundary. One offset for both sides, or the windows of an hour that comes twice would
            # share an index.
            before = after = after % self.quota.microseconds
        return before, change, after

    def _window(self, now: int) -> tuple[int, int, int]:
        """Give index, start and end of the window of `now`."""
        current = self._current
        if current and current[0][1] <= now < current[0][2]:
            return current[0]
        index = self._index(now)
        found = index, self._start(index, now), self._start(index + 1, now)
        current[:] = [found]
        return found

    def _index(self, moment: int) -> int:
        before, change, after = self.phase(moment)
        return (moment + (before if moment < change else after)) // self.quota.microseconds

    def _start(self, index: int, now: int) -> int:
        before, change, after = self.phase(now)
        start = index * self.quota.microseconds - before
        return start if start < change else max(change, index * self.quota.microseconds - after)

    def _use(self, state: int, now: int) -> int:
        """Give what is used of this window: reservations move up when windows pass."""
        index, use = divmod(state, _INDEX)
        passed = self._window(now)[0] - index
        return use if passed <= 0 else max(0, use - passed * self.capacity)

    def _ahead(self, use: int, units: int) -> int:
        """Give how many windows ahead `units` fit behind `use`: a call is never split between two windows."""
        ahead, used = divmod(use, self.capacity)
        return ahead + (1 if used + units * self.unit > self.capacity else 0)
