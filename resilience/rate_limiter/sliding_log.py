"""A log of what was admitted: never more than the limit in any trailing period. Pure.

The price is an entry for each admitted call, where the other algorithms keep one number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .decision import Standing
from .gcra import longest_wait
from .quota import Quota


class Log:
    """What was admitted in the last period, and what is reserved ahead: moments in order, with their weight.

    Attributes:
        refused: the cost that a shared store refused when it told this log; 0 if it refused none. What is known of its
            log here does not say when another cost will fit.
    """

    __slots__ = ("entries", "refused", "used")

    def __init__(self) -> None:
        self.entries: deque[tuple[int, int]] = deque()
        self.used = 0
        self.refused = 0

    def add(self, at: int, weight: int) -> None:
        """Enter `weight` at a moment no earlier than the last one."""
        if self.entries:
            at = max(at, self.entries[-1][0])
        self.entries.append((at, weight))
        self.used += weight


@dataclass(frozen=True, slots=True)
class SlidingLog:
    """The arithmetic of one quota. The state is a `Log`, changed in place, or None for a key that was never seen.

    Attributes:
        quota: what it enforces.
        unit: what a unit of cost weighs; more than 1 for the share of one of several instances.
        capacity: the weight that fits into a period.
    """

    quota: Quota
    unit: int
    capacity: int

    @classmethod
    def of(cls, quota: Quota) -> SlidingLog:
        """Prepare the arithmetic for `quota`."""
        return cls(quota, 1, quota.limit)

    def shared(self, instances: int) -> SlidingLog:
        """Give this instance's share of the limit, at least one unit for each period."""
        return replace(self, unit=self.unit * instances, capacity=max(self.capacity, self.unit * instances))

    @property
    def empty(self) -> None:
        """The state of a key that was never seen."""
        return

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.capacity // self.unit

    def room(self, state: Log | None, now: int) -> int:
        """Give the units that can pass now."""
        return max(0, (self.capacity - self._used(state, now)) // self.unit)

    def wait(self, state: Log | None, now: int, units: int) -> int:
        """Give the microseconds until enough of the log is a period old for `units` to pass; 0 is now."""
        over = self._used(state, now) + units * self.unit - self.capacity
        if state is None or over <= 0:
            return 0
        last = now
        for at, weight in state.entries:
            last, over = at, over - weight
            if over <= 0:
                break
        return max(1, last + self.quota.microseconds - now)

    def charge(self, state: Log | None, now: int, units: int, at: int) -> Log:
        """Enter `units` that pass at the moment `at`, which is now or lies ahead."""
        log = state or Log()
        self._used(log, now)
        log.add(at, units * self.unit)
        return log

    def refund(self, state: Log | None, now: int, units: int) -> Log | None:
        """Take `units` back, from the oldest entries.

        They would have left first. To take the newest would let a call pass while those that were really made are
        still within its period.
        """
        if state is None:
            return None
        self._used(state, now)
        left = units * self.unit
        while left > 0 and state.entries:
            at, weight = state.entries.popleft()
            taken = min(left, weight)
            left -= taken
            state.used -= taken
            if taken < weight:
                state.entries.appendleft((at, weight - taken))
        return state if state.entries else None

    def withdraw(self, state: Log | None, now: int, units: int) -> Log | None:  # noqa: ARG002 - as `Rule` has it
        """Take back `units` that were reserved last and have not passed: the newest, for nothing was made of them."""
        left = units * self.unit
        while state is not None and left > 0 and state.entries:
            at, weight = state.entries.pop()
            taken = min(left, weight)
            left -= taken
            state.used -= taken
            if taken < weight:
                state.entries.append((at, weight - taken))
        return state if state is not None and state.entries else None

    def drained(self, state: Log | None, now: int) -> int:
        """Give the microseconds until the last entry is a period old."""
        if state is None or self._used(state, now) == 0:
            return 0
        return state.entries[-1][0] + self.quota.microseconds - now

    def clamped(self, state: Log | None, now: int) -> Log | None:
        """Give `state`, moved to end now if it lies further ahead than anything that this rule ever writes."""
        if state is None or not state.entries or state.entries[-1][0] - now <= longest_wait(self.quota):
            return state
        ahead = state.entries[-1][0] - now
        moved = Log()
        for at, weight in state.entries:
            moved.add(at - ahead, weight)
        return moved

    def remembered(self, at: int, now: int) -> Log | None:
        """Give the state of a key of which only the moment is known at which it is as new: the period is used up."""
        if at <= now:
            return None
        log = Log()
        log.add(at - self.quota.microseconds, self.capacity)
        return log

    def level(self, state: Log | None, now: int) -> int:
        """Give what was used in the last period, by weight."""
        return self._used(state, now)

    def spec(self, wall: int) -> str:  # noqa: ARG002 - as `Rule` has it
        """Give the rule in the words of `sliding_log.lua`."""
        return f"l {self.capacity} {self.quota.microseconds} {self.quota.microseconds + longest_wait(self.quota)}"

    def told(self, reply: Iterator[int], now: int, cost: int) -> tuple[Log | None, Standing]:
        """Read what `sliding_log.lua` told: a state of the same use, and where the rule stands for a call of `cost`.

        If the call was refused, the state frees what is used when the server frees enough for it.
        """
        used, wait, drained = next(reply), next(reply), next(reply)
        standing = Standing(self.quota, max(0, self.capacity - used), wait, drained)
        if used == 0:
            return None, standing
        log, since = Log(), now - self.quota.microseconds
        if (
            0 < wait < drained and used > 1
        ):  # all but one unit leaves when the call fits, the last when the log is empty
            log.add(since + wait, used - 1)
            used = 1
        log.add(since + drained, used)
        log.refused = cost if wait else 0
        return log, standing

    def refuses(self, state: Log | None, cost: int) -> bool:
        """Tell whether what is known of a shared log is enough to answer a call of `cost` here, if it is refused."""
        return state is None or state.refused == cost

    def _used(self, state: Log | None, now: int) -> int:
        if state is None:
            return 0
        since = now - self.quota.microseconds
        while state.entries and state.entries[0][0] <= since:
            state.used -= state.entries.popleft()[1]
        return state.used
