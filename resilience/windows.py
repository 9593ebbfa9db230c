"""Sliding windows over the outcomes of calls: the last N calls, or the last seconds.

`CountWindow` and `TimeWindow` are what users write into a configuration. Each opens the thing that counts:
`CountRing` and `TimeBuckets`, both with running totals, so that adding and asking cost the same for any size.

A call may be added before its end is known (it is overdue already) and amended once when it ends: `add` returns a
ticket for that. A ticket whose place has left the window changes nothing.

Pure: time comes in as `now`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from resilience.checks import check_int, check_number

__all__ = ["CountWindow", "TimeWindow"]

# An outcome is three bits, because a ring of them is a bytearray and adding them is all the work there is:
# 1, there was a call; 2, it failed; 4, it was slow.
GONE: Final = 0b000
SUCCEEDED: Final = 0b001
FAILED: Final = 0b011
SLOW: Final = 0b100
"""To be added to one of the two above."""

MAX_CALLS: Final = 1_000_000
MAX_BUCKETS: Final = 10_000
MIN_SECONDS: Final = 1e-6


class Window(Protocol):
    """What the breaker counts in. `calls`, `failures` and `slow` are as of the last `advance` or `add`."""

    calls: int
    failures: int
    slow: int

    def add(self, outcome: int, now: float) -> int:
        """Count a call and return the ticket to amend it with."""
        ...

    def amend(self, ticket: int, before: int, after: int, now: float) -> None:
        """Turn the outcome of an added call from `before` into `after`, or take it back (`GONE`)."""
        ...

    def advance(self, now: float) -> None:
        """Let go of what is older than the window."""
        ...

    def is_saturated(self) -> bool:
        """Tell whether one more success would change nothing."""
        ...


@dataclass(frozen=True, slots=True)
class CountWindow:
    """The last `calls` calls.

    Remembers for as long as it takes: right where traffic is steady, or where a few calls an hour must add up.

    Args:
        calls: 1 to 1,000,000; one byte each.

    Raises:
        ConfigurationError: not an int, or out of range.
    """

    calls: int

    def __post_init__(self) -> None:
        check_int("CountWindow.calls", self.calls, most=MAX_CALLS)

    def open(self, now: float) -> CountRing:  # noqa: ARG002 - the same call opens both kinds
        """Give an empty ring."""
        return CountRing(self.calls)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The calls of the last `seconds`, in `buckets` of equal width.

    Buckets are aligned to multiples of their width on the breaker's clock, and exactly `buckets` of them are live, the
    current one included: a call counts for at least `seconds - seconds / buckets` and for less than `seconds`.

    Args:
        seconds: length of the window, at least a microsecond.
        buckets: 1 to 10,000; 10 lets go of a tenth of the window at a time.

    Raises:
        ConfigurationError: wrong type, out of range, or not finite.
    """

    seconds: float
    buckets: int = 10

    def __post_init__(self) -> None:
        check_number("TimeWindow.seconds", self.seconds, least=MIN_SECONDS)
        check_int("TimeWindow.buckets", self.buckets, most=MAX_BUCKETS)

    def open(self, now: float) -> TimeBuckets:
        """Give empty buckets, the current one at `now`."""
        return TimeBuckets(self.seconds / self.buckets, self.buckets, now)


class CountRing:
    """A ring of outcomes, one byte each, with running totals."""

    __slots__ = ("_added", "_ring", "_size", "calls", "failures", "slow")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._size = size
        self._added = 0  # calls ever added; a call's number is its ticket
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def add(self, outcome: int, now: float) -> int:  # noqa: ARG002 - the call of both kinds
        """Count a call in place of the one that was added `size` calls ago."""
        ticket = self._added
        self._added = ticket + 1
        at = ticket % self._size
        before = self._ring[at]
        if before != outcome:  # a healthy callee writes success over success: nothing to count
            self._ring[at] = outcome
            self._count(before, outcome)
        return ticket

    def amend(self, ticket: int, before: int, after: int, now: float) -> None:  # noqa: ARG002 - as above
        """Change a call that is still in the ring."""
        if self._added - ticket <= self._size:
            self._ring[ticket % self._size] = after
            self._count(before, after)

    def _count(self, before: int, after: int) -> None:
        self.calls += (after & 1) - (before & 1)
        self.failures += (after >> 1 & 1) - (before >> 1 & 1)
        self.slow += (after >> 2) - (before >> 2)

    def advance(self, now: float) -> None:
        """Do nothing: calls leave a ring only when others come."""

    def is_saturated(self) -> bool:
        """Tell whether the ring holds successes and nothing else: turned by one place it is the same ring."""
        return self.calls == self._size and not self.failures and not self.slow


class TimeBuckets:
    """Buckets of equal width in a ring, with running totals; a bucket's number is its calls' ticket."""

    __slots__ = ("_bucket", "_buckets", "_current", "_until", "_width", "calls", "failures", "slow")

    def __init__(self, width: float, buckets: int, now: float) -> None:
        self._width = width
        self._buckets = [[0, 0, 0] for _ in range(buckets)]  # calls, failures, slow
        self._enter(int(now // width))
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def add(self, outcome: int, now: float) -> int:
        """Count a call in the current bucket."""
        if now >= self._until:
            self.advance(now)
        self._bucket[0] += 1
        self.calls += 1
        if outcome != SUCCEEDED:
            self._count(self._bucket, SUCCEEDED, outcome)
        return self._current

    def amend(self, ticket: int, before: int, after: int, now: float) -> None:
        """Change a call whose bucket is still live."""
        self.advance(now)
        if self._current - ticket < len(self._buckets):
            self._count(self._buckets[ticket % len(self._buckets)], before, after)

    def _count(self, bucket: list[int], before: int, after: int) -> None:
        calls = (after & 1) - (before & 1)
        failures = (after >> 1 & 1) - (before >> 1 & 1)
        slow = (after >> 2) - (before >> 2)
        bucket[0] += calls
        bucket[1] += failures
        bucket[2] += slow
        self.calls += calls
        self.failures += failures
        self.slow += slow

    def advance(self, now: float) -> None:
        """Empty each bucket whose time has come round again, the work being bounded by the number of buckets."""
        current = int(now // self._width)
        # A `now` that is older than the current bucket was read by a thread that came second; it counts as current.
        if current <= self._current:
            return
        size = len(self._buckets)
        for ticket in range(self._current + 1, self._current + 1 + min(current - self._current, size)):
            bucket = self._buckets[ticket % size]
            if bucket[0]:
                self.calls -= bucket[0]
                self.failures -= bucket[1]
                self.slow -= bucket[2]
                bucket[:] = 0, 0, 0
        self._enter(current)

    def _enter(self, ticket: int) -> None:
        self._current = ticket
        self._bucket = self._buckets[ticket % len(self._buckets)]
        # A division saved with every call: until here `now // width` cannot be more than the current bucket's number.
        self._until = (ticket + 1) * self._width * (1 - 1e-12)

    def is_saturated(self) -> bool:
        """Return False: in a time window every success matters, for as long as it is there."""
        return False
