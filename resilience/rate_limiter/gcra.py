"""GCRA, the generic cell rate algorithm: one number for each key, exact. Pure.

The number is the *theoretical arrival time*: the moment at which everything admitted so far has drained. A call passes
if that moment, with its own cost added, lies no further ahead than the burst allows. This is the virtual scheduling
form of ITU-T I.371; `gcra.lua` has the same arithmetic in the form of its continuous-state leaky bucket, a level and
the time of its last change, because the clock of a server may step back.

Times are whole microseconds. One unit of cost takes per / limit of them to drain, which is no whole number in general:
100 calls a minute are 600,000 microseconds each, 7 a second are 142,857.14. So the time line is stretched by `drain`,
after per and limit were divided by what they have in common: on the stretched line a unit of cost is `unit` long, and
everything is an integer. No burst loses a call to rounding, and no rate drifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from .decision import Standing
from .quota import Quota

_new = tuple.__new__  # a third of the time of a named tuple's own
LONGEST_WAIT = 3_600_000_000
"""Microseconds that a caller may wait for its turn at most, or one period if that is longer."""


def longest_wait(quota: Quota) -> int:
    """Give the microseconds that a reservation may lie ahead: what is stored further ahead than that is nonsense."""
    return max(LONGEST_WAIT, quota.microseconds)


@dataclass(frozen=True, slots=True)
class Gcra:
    """The arithmetic of one quota. The state is the theoretical arrival time on the stretched line; 0 is empty.

    Attributes:
        quota: what it enforces.
        unit: length of one unit of cost on the stretched line.
        drain: by how much the line is stretched: what drains in a microsecond.
        capacity: how far ahead the arrival time may lie.
        slack: how much further it may lie: one microsecond, or half a unit if that is less. A caller that waits exactly
            `retry_after` must pass, whatever its clock loses in rounding.
    """

    quota: Quota
    unit: int
    drain: int
    capacity: int
    slack: int

    @classmethod
    def of(cls, quota: Quota) -> Gcra:
        """Prepare the arithmetic for `quota`."""
        common = gcd(quota.microseconds, quota.limit)
        unit, drain = quota.microseconds // common, quota.limit // common
        return cls(quota, unit, drain, quota.capacity * unit, min(drain, unit // 2))

    def shared(self, instances: int) -> Gcra:
        """Give this instance's share of the limit: a unit weighs as much as it would if all instances took one.

        The share of a state is then the state itself. At least one unit may pass at once, or a burst smaller than the
        number of instances would refuse everything.
        """
        unit = self.unit * instances
        return replace(self, unit=unit, capacity=max(self.capacity, unit))

    @property
    def empty(self) -> int:
        """The state of a key that was never seen."""
        return 0

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.capacity // self.unit

    @property
    def horizon(self) -> int:
        """How far ahead the arrival time may lie with all that is reserved."""
        return self.capacity + longest_wait(self.quota) * self.drain

    def room(self, state: int, now: int) -> int:
        """Give the units that can pass now."""
        return max(0, (self.capacity + self.slack - self._level(state, now)) // self.unit)

    def wait(self, state: int, now: int, units: int) -> int:
        """Give the microseconds after which `units` can pass if nobody else asks, rounded up; 0 is now."""
        over = self._level(state, now) + units * self.unit - self.capacity
        return 0 if over <= self.slack else -(-over // self.drain)

    def charge(self, state: int, now: int, units: int, at: int) -> int:  # noqa: ARG002 - as `Rule` has it
        """Add `units` that pass at the moment `at`, which is now or lies ahead."""
        return max(state, at * self.drain) + units * self.unit

    def refund(self, state: int, now: int, units: int) -> int:
        """Take `units` back; more than was taken leaves the key empty."""
        return max(state - units * self.unit, now * self.drain)

    def withdraw(self, state: int, now: int, units: int) -> int:
        """Take back `units` that were reserved last and have not passed: here the same as a refund."""
        return self.refund(state, now, units)

    def drained(self, state: int, now: int) -> int:
        """Give the microseconds until the key is as new, rounded up."""
        return -(-self._level(state, now) // self.drain)

    def clamped(self, state: int, now: int) -> int:
        """Give `state`, unless it lies further ahead than anything that this rule ever writes.

        A clock that stepped back must not lock a key for as long as the step was.
        """
        return state if state - now * self.drain <= self.horizon else now * self.drain + self.capacity

    def remembered(self, at: int, now: int) -> int:  # noqa: ARG002 - as `Rule` has it
        """Give the state of a key of which only the moment is known at which it is as new."""
        return at * self.drain

    def level(self, state: int, now: int) -> int:
        """Give what has not drained yet, on the stretched line."""
        return self._level(state, now)

    def spec(self, wall: int) -> str:  # noqa: ARG002 - as `Rule` has it
        """Give the rule in the words of `gcra.lua`."""
        return f"g {self.unit} {self.drain} {self.capacity} {self.capacity + self.slack} {self.horizon}"

    def told(self, reply: Iterator[int], now: int, cost: int) -> tuple[int, Standing]:
        """Read what `gcra.lua` told: the state, and where the rule stands for a call of `cost`."""
        level, unit, drain, slack = next(reply), self.unit, self.drain, self.slack
        left = self.capacity - level
        over = cost * unit - left
        wait = 0 if over <= slack else -(-over // drain)
        room = (left + slack) // unit if left > 0 else 0
        return now * drain + level, _new(Standing, (self.quota, room, wait, -(-level // drain)))

    def refuses(self, state: int, cost: int) -> bool:  # noqa: ARG002 - as `Rule` has it
        """Tell whether what is known of a shared state is enough to answer a refusal of `cost` here: it always is."""
        return True

    def _level(self, state: int, now: int) -> int:
        return max(0, state - now * self.drain)
