"""How large a pool should have been, and how many connections will be wanted next. Pure: time comes in as `now`.

Two questions with two memories, both bounded. *Advice* replays the latest borrowings with other sizes: who would have
waited, and for how long? *Prewarming* remembers peaks by the time of day, and recent ones, and opens connections before
the next. To react to a burst is of no use: it is there already (in our own simulation a target that follows the arrival
rate left the 99th percentile of waits where it was, and a remembered peak took it from 95 to 1 ms).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil, inf
from typing import Final, TypeAlias

from resilience.forecast import MOST, Forecast, forecast

Use: TypeAlias = tuple[float, float, float]
"""One borrowing: when the caller asked, got its connection, and gave it back."""

EPISODE: Final = 512
"""Borrowings, one after the other, that are kept together: what is left out between two cannot be replayed."""
EPISODES: Final = 4
"""That are kept: a replay of all takes a millisecond, and advice some ten of them."""
EVERY: Final = 10.0
"""Seconds from the beginning of an episode to the next at least: a busy pool has one in the blink of an eye, and to
keep all of them would cost each borrowing a twelfth of its time."""
EVIDENCE: Final = 100
"""Borrowings without which no size is recommended."""
ENOUGH: Final = 0.9
"""Share by which a recommended size cuts the waits: the last tenth costs as many connections as the first nine."""
RARE: Final = 0.01
"""Share of callers who may wait in a pool that is large enough."""
MOST_SIZE: Final = 4_096
"""Largest size that is tried: beyond, it is not the pool that is too small."""

DAY: Final = 86_400.0
WIDTH: Final = 60.0
"""Seconds of a bucket of the memory of peaks."""
FADING: Final = 0.8
"""What is left of the peak of a bucket after a day, and of the recent one after a bucket."""


# --- advice ---


@dataclass(frozen=True, slots=True)
class Replayed:
    """What would have been with another size.

    Attributes:
        size: connections.
        waited: callers who would have waited.
        seconds: that they would have waited, together.
    """

    size: int
    waited: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What the latest borrowings say about a pool's size. `str()` of it is for people.

    Attributes:
        size: the pool's largest.
        borrowings: looked at.
        span: seconds from the first to the last of them.
        arrival_rate: borrowings per second.
        hold: mean seconds of one.
        demand: connections in use on average, by Little's law: arrival rate x hold.
        utilisation: demand / size.
        demand_p99: connections that would have been enough for 99 % of the time, had nobody had to wait.
        wait_share: of callers who waited.
        wait: mean seconds that those waited who did.
        recommended: a size, or None without evidence. If callers wait, the smallest that would have cut their waits by
            90 %; if not, the smallest with which not more than 1 % would have waited.
        waits_cut: share of the waiting that this size saves; 0 where nothing is to be saved.
        outlook: of the demand in the next minute; None if there is no memory of the minutes before.
    """

    size: int
    borrowings: int
    span: float
    arrival_rate: float
    hold: float
    demand: float
    utilisation: float
    demand_p99: int
    wait_share: float
    wait: float
    recommended: int | None
    waits_cut: float
    outlook: Forecast | None = None

    def __str__(self) -> str:
        if self.recommended is None:
            return f"{self.borrowings} borrowings say nothing yet: {EVIDENCE} do"
        told = (
            f"{self.demand:.2g} of {self.size} connections in use on average ({self.utilisation:.0%}), "
            f"{self.demand_p99} at the 99th percentile; {self.wait_share:.1%} of callers waited"
        )
        if self.waits_cut:
            return f"{told}: size {self.recommended} would have cut waits by {self.waits_cut:.0%}"
        if self.recommended < self.size:
            return f"{told}: size {self.recommended} would have done"
        return f"{told}: the size is right"


class UsageRecord:
    """The latest borrowings, in episodes, as many as fit.

    Attributes:
        opens_at: borrowings that end before this moment are not to be noted.
    """

    def __init__(self) -> None:
        self.opens_at = -inf
        self._episodes: deque[list[Use]] = deque(maxlen=EPISODES)
        self._began = -inf

    def note(self, asked: float, lent: float, returned: float) -> None:
        """Keep one."""
        if not self._episodes or len(self._episodes[-1]) >= EPISODE:
            self._episodes.append([])
            self._began = returned
        latest = self._episodes[-1]
        latest.append((asked, lent, returned))
        if len(latest) >= EPISODE:
            self.opens_at = self._began + EVERY

    @property
    def uses(self) -> list[Use]:
        """The borrowings, as if each episode had begun when the one before had ended."""
        full = [one for one in self._episodes if len(one) >= EPISODE]  # the one under way may be of a moment
        joined: list[Use] = []
        ended = 0.0
        for episode in full or self._episodes:
            shift = ended - min(asked for asked, _, _ in episode)
            joined += [(asked + shift, lent + shift, returned + shift) for asked, lent, returned in episode]
            ended = max(returned for _, _, returned in episode) + shift
        return joined


def replay(uses: Sequence[Use], size: int) -> Replayed:
    """Serve the same callers, in the order in which they asked, with `size` connections."""
    free_at = [-1e300] * size
    heapify(free_at)
    waited, seconds = 0, 0.0
    for asked, lent, returned in sorted(uses):
        begins = max(asked, free_at[0])
        heapreplace(free_at, begins + (returned - lent))
        if begins > asked:
            waited += 1
            seconds += begins - asked
    return Replayed(size, waited, seconds)


def demand_at(uses: Iterable[Use], share: float) -> int:
    """Give how many connections would have been enough for this share of the time, had nobody had to wait."""
    changes: list[tuple[float, int]] = []
    for asked, lent, returned in uses:
        changes += [(asked, 1), (asked + returned - lent, -1)]
    changes.sort()
    seconds: dict[int, float] = {}
    now, busy = changes[0][0] if changes else 0.0, 0
    for at, change in changes:
        seconds[busy] = seconds.get(busy, 0.0) + (at - now)
        now, busy = at, busy + change
    left = share * sum(seconds.values())
    for busy in sorted(seconds):
        left -= seconds[busy]
        if left <= 0:
            return busy
    return max(seconds, default=0)


def advise(uses: Sequence[Use], size: int, outlook: Forecast | None = None) -> Advice:
    """Say what these borrowings mean for a pool of at most `size` connections."""
    count = len(uses)
    first = min((asked for asked, _, _ in uses), default=0.0)
    span = max((returned for _, _, returned in uses), default=0.0) - first
    waits = [lent - asked for asked, lent, _ in uses if lent > asked]
    hold = sum(returned - lent for _, lent, returned in uses) / count if count else 0.0
    rate = count / span if span > 0 else 0.0
    recommended, cut = _recommended(uses, size) if count >= EVIDENCE else (None, 0.0)
    return Advice(
        size=size,
        borrowings=count,
        span=span,
        arrival_rate=rate,
        hold=hold,
        demand=rate * hold,
        utilisation=rate * hold / size,
        demand_p99=demand_at(uses, 0.99),
        wait_share=len(waits) / count if count else 0.0,
        wait=sum(waits) / len(waits) if waits else 0.0,
        recommended=recommended,
        waits_cut=cut,
        outlook=outlook,
    )


def _recommended(uses: Sequence[Use], size: int) -> tuple[int, float]:
    now = replay(uses, size)
    if now.waited <= RARE * len(uses):
        return _smallest(1, size, lambda tried: replay(uses, tried).waited <= RARE * len(uses)), 0.0
    most = max(size, MOST_SIZE)
    found = _smallest(size, most, lambda tried: replay(uses, tried).seconds <= (1 - ENOUGH) * now.seconds)
    return found, 1 - replay(uses, found).seconds / now.seconds


def _smallest(low: int, high: int, is_enough: Callable[[int], bool]) -> int:
    """Find the smallest that is enough, by doubling and halving; `high` if none below is. More never wait longer."""
    step = 1
    while low + step < high and not is_enough(low + step - 1):
        low, step = low + step, step * 2
    high = min(high, low + step)
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


# --- prewarming ---


@dataclass(frozen=True, slots=True)
class Ended:
    """A bucket that is over: what had been predicted for it, and what came, in connections."""

    predicted: int
    actual: int


class PeakMemory:
    """Remembers the peaks of demand: of each minute of the day, fading from day to day, and of the minutes just gone.

    Args:
        now: when it begins.
        most: connections that it predicts at most.
        width: seconds of a bucket.
        day: seconds after which the buckets come again.
    """

    def __init__(self, now: float, most: int, *, width: float = WIDTH, day: float = DAY) -> None:
        self._most = most
        self._width = width
        self._of_day = [0.0] * max(1, round(day / width))
        self._recent = 0.0
        self._latest: deque[float] = deque(maxlen=MOST)  # the forecast looks at no more
        self._number = int(now // width)
        self._peak = 0
        self.predicted = 0
        """Connections that are expected to be wanted in the bucket that runs now."""
        self.ends_at = (self._number + 1) * width
        """When `turn` is due."""

    def note(self, demand: int) -> None:
        """Take in how many connections are wanted just now."""
        self._peak = max(self._peak, demand)

    def outlook(self) -> Forecast:
        """Forecast the peak of the next bucket."""
        return forecast(tuple(self._latest))

    def turn(self, now: float) -> Ended | None:
        """End the bucket, if it is over, and predict for the one that runs now; those in between were silent."""
        number = int(now // self._width)
        if number <= self._number:
            return None
        ended = Ended(self.predicted, self._peak)
        # After a long sleep, of a laptop say, one turn of the clock face says all.
        for passed in range(max(self._number, number - len(self._of_day)), number):
            self._close(passed, self._peak if passed == self._number else 0)
        self._number, self._peak = number, 0
        self.ends_at = (number + 1) * self._width
        self.predicted = self._predict(number)
        return ended

    def _close(self, number: int, peak: int) -> None:
        place = number % len(self._of_day)
        self._of_day[place] = max(peak, FADING * self._of_day[place])
        self._recent = max(peak, FADING * self._recent)
        self._latest.append(peak)

    def _predict(self, number: int) -> int:
        expected = max(self._recent, self._of_day[number % len(self._of_day)])
        outlook = self.outlook()
        if outlook.trusted:
            expected = max(expected, outlook.value)
        # What is left of a single caller after a while is nobody.
        return min(self._most, ceil(expected - 0.5))
