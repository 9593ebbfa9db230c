"""The circuit breaker's decisions: what is let in, what its end means, when the state moves. Pure.

Everything that moves the state is in this file, and every move is a row of `TRANSITIONS`. The shell (`breaker.py`)
calls these functions one at a time under its lock, hands `now` in, and turns `news` into events.

Generations: each state change begins a new *era*, and each admitted call carries the era that it was admitted in. A
result from an older era is counted as late and decides nothing. (The idea is gobreaker's.)
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from enum import StrEnum
from itertools import count
from math import inf, nan, nextafter
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from resilience.windows import FAILED, GONE, SLOW, SUCCEEDED, Window

from .classify import CANCELLED, FAILURE, SUCCESS, Verdict
from .config import CircuitBreakerConfig, CircuitState

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED, METRICS_ONLY = CircuitState


class Trigger(StrEnum):
    """What moves a circuit breaker."""

    FAILURE_RATE = "failure_rate"
    SLOW_CALL_RATE = "slow_call_rate"
    OPEN_TIME_OVER = "open_time_over"
    PROBES_FAILED = "probes_failed"
    PROBES_SLOW = "probes_slow"
    PROBES_SUCCEEDED = "probes_succeeded"
    TRIP = "trip"
    FORCE_OPEN = "force_open"
    DISABLE = "disable"
    METRICS_ONLY = "metrics_only"
    RESET = "reset"


_ORDERS: Final = {
    Trigger.TRIP: OPEN,
    Trigger.FORCE_OPEN: FORCED_OPEN,
    Trigger.DISABLE: DISABLED,
    Trigger.METRICS_ONLY: METRICS_ONLY,
    Trigger.RESET: CLOSED,
}
"""What people may ask for in any state."""

TRANSITIONS: Final[Mapping[tuple[CircuitState, Trigger], CircuitState]] = MappingProxyType(
    {
        (CLOSED, Trigger.FAILURE_RATE): OPEN,
        (CLOSED, Trigger.SLOW_CALL_RATE): OPEN,
        (OPEN, Trigger.OPEN_TIME_OVER): HALF_OPEN,
        (HALF_OPEN, Trigger.PROBES_FAILED): OPEN,
        (HALF_OPEN, Trigger.PROBES_SLOW): OPEN,
        (HALF_OPEN, Trigger.PROBES_SUCCEEDED): CLOSED,
        **{(state, order): target for state in CircuitState for order, target in _ORDERS.items()},
    }
)

_MARKED: Final = SUCCEEDED | SLOW
"""A call that is overdue and still running: slow for certain, failed perhaps later."""


Mark: TypeAlias = tuple[Window | None, int]
"""Where a call was counted as slow while still running: window and ticket; no window in half-open."""


class Call:
    """A call that was let in; its end is reported with it.

    Attributes:
        era: in which it was admitted.
        started: the breaker's time then; NaN for the call that stands for all that nobody times.
        first_item_at: when a stream gave its first item, else None.
        mark: where it was counted as slow while still running, else None.
    """

    __slots__ = ("era", "first_item_at", "mark", "started")

    def __init__(self, era: int, started: float) -> None:
        self.era = era
        self.started = started
        self.first_item_at: float | None = None
        self.mark: Mark | None = None


class Watch:
    """The calls of one era that run and may become slow, in the order of their starts.

    Attributes:
        era: their era.
        calls: an ordered set. Putting a call in is one atomic step, which the shell does without its lock.
        due: no call of these is slow before; until then a call may be admitted without looking at the others. Minus
            infinity where an admission needs more than that.
    """

    __slots__ = ("calls", "due", "era")

    def __init__(self, era: int, due: float) -> None:
        self.era = era
        self.due = due
        self.calls: OrderedDict[Call, None] = OrderedDict()

    def oldest(self) -> Call | None:
        """Give the call that started first."""
        while True:
            try:
                return next(iter(self.calls), None)
            except RuntimeError:  # another thread put a call in between the two steps
                continue


class Counts(NamedTuple):
    """What a window, or a round of probes, held. Rates are shares, None where too little is known."""

    calls: int = 0
    failures: int = 0
    slow: int = 0
    failure_rate: float | None = None
    slow_call_rate: float | None = None


class Moved(NamedTuple):
    """The state moved; `counts` are those of the era that ended."""

    before: CircuitState
    after: CircuitState
    era: int
    reason: str
    counts: Counts
    open_for: float | None


class Exceeded(NamedTuple):
    """A rate reached its threshold."""

    threshold: Trigger
    rate: float
    calls: int


class ProbeReplaced(NamedTuple):
    """A silent probe lost its place."""

    age: float


News: TypeAlias = Moved | Exceeded | ProbeReplaced


class BreakerCore:
    """One breaker's state and the rules that change it. Not thread-safe: one call at a time.

    Attributes:
        state, era: where it is, and the number of this stretch, from 1.
        untimed: the one call that stands for every call of this era, where their starts do not matter; else None.
        watch: the running calls of this era, if slow calls are to be seen; else None.
        saturated: `untimed` while the window is full of successes, and one more would change nothing; else None.
        admissions, endings, refusals: count the calls let in, those whose end was reported, and those refused.
        late: results that came after their era, over the breaker's life.
        open_until: when the first probe may go, minus infinity while the state is not OPEN.
        reopen_attempt: how often it reopened since it was closed.
        chance: a number drawn at random from 0 to 1 for the jitter of the next opening; None once it is used.
        news: what happened and was not told yet.
        unasked: an opening whose time a function of the user's is to give: (its number, the reopen attempt).
    """

    __slots__ = (
        "_concurrency",
        "_config",
        "_exceeded",
        "_failed_probes",
        "_failures_to_open",
        "_frozen",
        "_looks",
        "_marked_probes",
        "_opened_at",
        "_openings",
        "_probed",
        "_probes",
        "_slow_after",
        "_slow_probes",
        "_slow_to_open",
        "_window",
        "admissions",
        "chance",
        "endings",
        "era",
        "late",
        "news",
        "open_until",
        "refusals",
        "reopen_attempt",
        "saturated",
        "state",
        "unasked",
        "untimed",
        "watch",
    )

    era: int
    watch: Watch | None
    untimed: Call | None
    saturated: Call | None
    _window: Window | None

    def __init__(self, config: CircuitBreakerConfig, now: float, chance: float) -> None:
        self._config = config
        self.chance: float | None = chance
        self._slow_after = config.slow_call_duration
        probes = config.half_open_calls
        self._concurrency = config.half_open_concurrency or probes
        self._failures_to_open = _least_share(probes, config.failure_rate_threshold)
        self._slow_to_open = _least_share(probes, config.slow_call_rate_threshold)
        self.state = config.initial_state
        self.late = 0
        self.reopen_attempt = 0
        self.news: list[News] = []
        self.unasked: tuple[int, int] | None = None
        # `next` of a count is one atomic step, so that the shell may admit, and settle, without its lock where nothing
        # else changes.
        self.admissions = count()
        self.endings = count()
        self.refusals = count()
        self._looks = 0
        self._openings = 0
        self._opened_at = self.open_until = now
        self._frozen = Counts()
        if self.state is OPEN:
            self._open(now)
        self._begin(config.initial_state, 1, now)

    # --- calls ---

    def admit(self, now: float) -> Call | None:
        """Let a call in, or refuse it (None)."""
        self.see_overdue(now)
        if self._window is None and not self._make_room(now):
            next(self.refusals)
            return None
        next(self.admissions)
        call = Call(self.era, now)
        if self.state is HALF_OPEN:
            self._probes[call] = None
        if self.watch is not None:
            self.watch.calls[call] = None
        return call

    def _make_room(self, now: float) -> bool:
        """Find a place where no window is counted in: everywhere but in CLOSED and METRICS_ONLY."""
        if self.state is OPEN and now >= self.open_until:
            self._move(Trigger.OPEN_TIME_OVER, now)
        while self.state is HALF_OPEN and not self._has_room():
            if not self._replace_silent_probe(now):
                return False
        return self.state is not OPEN and self.state is not FORCED_OPEN

    def first_item(self, call: Call, now: float) -> None:
        """Note that a stream gave its first item: its speed is settled from here on."""
        self.see_overdue(now)
        if self.watch is not None:
            self.watch.calls.pop(call, None)
        call.first_item_at = now

    def succeed(self, call: Call, now: float) -> None:
        """Take in a success: `settle`, without what nearly all timed calls do not need."""
        watch, window = self.watch, self._window
        if (
            watch is not None
            and window is not None
            and now < watch.due  # before which no call of this era is slow,
            and call.era == watch.era  # and this is one of them
            and call.mark is None
            and call.first_item_at is None
        ):
            next(self.endings)
            watch.calls.pop(call, None)
            window.add(SUCCEEDED, now)
            if window.failures or window.slow:
                self._judge_window(window, now)
        else:
            self.settle(call, SUCCESS, now)

    def settle(self, call: Call, verdict: Verdict, now: float) -> bool:
        """Take in the end of a call, once for each admitted one; tell whether it was slow."""
        next(self.endings)
        slow, watch = False, self.watch
        if watch is not None:
            watch.calls.pop(call, None)
            if now >= watch.due:
                self._count_overdue(now)
            slow = self._is_slow(call, now)
        if verdict is SUCCESS:
            outcome = SUCCEEDED
        elif verdict is FAILURE:
            outcome = FAILED
        else:
            # Cancelled after it was slow: most hung calls end like this, cut off by a timeout further out.
            outcome = SUCCEEDED if slow and verdict is CANCELLED else GONE
        if slow and outcome:
            outcome |= SLOW
        if call.era != self.era:
            self.late += outcome != GONE
        elif self._window is not None:
            self._settle_in_window(self._window, call, outcome, now)
        elif self.state is HALF_OPEN:
            self._settle_probe(call, outcome, now)
        return slow

    def _is_slow(self, call: Call, now: float) -> bool:
        end = now if call.first_item_at is None else call.first_item_at
        # What was counted as slow stays slow, though this thread may have read its clock before the other one did.
        return self._slow_after is not None and (end - call.started >= self._slow_after or call.mark is not None)

    def _settle_in_window(self, window: Window, call: Call, outcome: int, now: float) -> None:
        if call.mark is None:
            if outcome:
                window.add(outcome, now)
        else:
            marked, ticket = call.mark
            if marked is window:  # else it was emptied since
                window.amend(ticket, _MARKED, outcome, now)
        if outcome and (window.failures or window.slow):
            self._judge_window(window, now)
        if self.untimed is not None:
            self.saturated = self.untimed if window.is_saturated() else None

    def _settle_probe(self, call: Call, outcome: int, now: float) -> None:
        if call not in self._probes:  # it was replaced
            self.late += outcome != GONE
            return
        del self._probes[call]
        if call.mark is not None:
            self._marked_probes -= 1
            self._probed -= 1
            self._slow_probes -= 1
        if outcome:
            self._probed += 1
            self._slow_probes += outcome & SLOW == SLOW
            self._failed_probes += outcome & FAILED == FAILED
            self._judge_probes(now)

    def see_overdue(self, now: float) -> None:
        """See what has become overdue; part of each admission, settlement and snapshot."""
        if self.watch is not None and now >= self.watch.due:
            self._count_overdue(now)

    def _count_overdue(self, now: float) -> None:
        """Count calls that are slow already though they still run: a hang is seen within one slow call's time."""
        watch, slow_after = self.watch, self._slow_after
        while watch is not None and slow_after is not None:
            oldest = watch.oldest()
            if oldest is None or now - oldest.started < slow_after:
                if self._window is not None:
                    # One float early, or rounding could admit past a call that is overdue.
                    watch.due = nextafter((now if oldest is None else oldest.started) + slow_after, -inf)
                return
            watch.calls.pop(oldest, None)
            if self.state is HALF_OPEN:
                oldest.mark = None, 0
                self._marked_probes += 1
                self._probed += 1
                self._slow_probes += 1
                self._judge_probes(now)
            elif self._window is not None:
                oldest.mark = self._window, self._window.add(_MARKED, now)
                self._judge_window(self._window, now)
            watch = self.watch  # a move has begun another era

    # --- verdicts ---

    def _judge_window(self, window: Window, now: float) -> None:
        """Compare the rates with their thresholds, after every counted call: a success may open the circuit too."""
        calls, config = window.calls, self._config
        if calls < config.minimum_calls:
            return
        failure_rate, slow_call_rate = window.failures / calls, window.slow / calls
        if failure_rate >= config.failure_rate_threshold:
            self._exceed(Trigger.FAILURE_RATE, failure_rate, calls)
        if slow_call_rate >= config.slow_call_rate_threshold:
            self._exceed(Trigger.SLOW_CALL_RATE, slow_call_rate, calls)
        if self._exceeded and self.state is CLOSED:
            failed = Trigger.FAILURE_RATE in self._exceeded
            self._move(Trigger.FAILURE_RATE if failed else Trigger.SLOW_CALL_RATE, now)

    def _exceed(self, threshold: Trigger, rate: float, calls: int) -> None:
        if threshold not in self._exceeded:
            self._exceeded.add(threshold)
            self.news.append(Exceeded(threshold, rate, calls))

    def _judge_probes(self, now: float) -> None:
        """Decide as soon as the arithmetic is settled, both ways: a dead callee is spared the rest of the round."""
        if self._failed_probes >= self._failures_to_open:
            self._move(Trigger.PROBES_FAILED, now)
        elif self._slow_probes >= self._slow_to_open:
            self._move(Trigger.PROBES_SLOW, now)
        else:
            outstanding = self._config.half_open_calls - self._probed
            # An overdue probe is a slow result already, but may still turn out to fail.
            may_fail = outstanding + self._marked_probes
            may_be_slow = outstanding if self._slow_after is not None else 0
            if (
                self._failed_probes + may_fail < self._failures_to_open
                and self._slow_probes + may_be_slow < self._slow_to_open
            ):
                self._move(Trigger.PROBES_SUCCEEDED, now)

    # --- probes ---

    def _has_room(self) -> bool:
        return self._fits(len(self._probes), self._marked_probes)

    def _fits(self, probes: int, marked: int) -> bool:
        """Tell whether one more result is wanted and one more probe may run; marked probes have their result."""
        return probes < self._concurrency and self._probed + probes - marked < self._config.half_open_calls

    def _replace_silent_probe(self, now: float) -> bool:
        """Take the place of the oldest probe if its lease is over: a probe may never report."""
        oldest = next(iter(self._probes))
        if now < oldest.started + self._config.probe_lease:  # added as in `_fits_at`, or rounding would part the two
            return False
        del self._probes[oldest]
        if self.watch is not None:
            self.watch.calls.pop(oldest, None)
        self.news.append(ProbeReplaced(now - oldest.started))
        if oldest.mark is not None:
            self._marked_probes -= 1
            self._judge_probes(now)
        return True

    def _fits_at(self) -> float:
        """Give the time when enough leases are over to let one more probe in."""
        probes, marked = len(self._probes), self._marked_probes
        at = self._opened_at
        # A probe that is slow before its lease is over leaves its result behind, and frees no more than its place.
        overdue_first = self._slow_after is not None and self._slow_after <= self._config.probe_lease
        for probe in self._probes:
            probes -= 1
            marked -= probe.mark is not None or overdue_first
            at = probe.started + self._config.probe_lease
            if self._fits(probes, marked):
                break
        return at

    # --- moves ---

    def order(self, trigger: Trigger, now: float) -> None:
        """Do what people ask for: one of TRIP, FORCE_OPEN, DISABLE, METRICS_ONLY, RESET."""
        self._move(trigger, now)

    def restore(self, state: CircuitState, open_for: float, attempt: int, now: float) -> None:
        """Take over a state from elsewhere; HALF_OPEN as OPEN with no time left: its probes did not come along."""
        target = OPEN if state is HALF_OPEN else state
        order = next(order for order, leads_to in _ORDERS.items() if leads_to is target)
        self._move(order, now, reason="restored", open_for=open_for if state is OPEN else 0.0)
        self.reopen_attempt = attempt

    def _move(self, trigger: Trigger, now: float, *, reason: str | None = None, open_for: float | None = None) -> None:
        before, after = self.state, TRANSITIONS[self.state, trigger]
        if after is before:
            self._stay(now, open_for)
            return
        counts = self.counts(now)
        if before is HALF_OPEN and self._probed:  # a round that ended has rates, however few its calls
            counts = counts._replace(
                failure_rate=self._failed_probes / self._probed, slow_call_rate=self._slow_probes / self._probed
            )
        if after is CLOSED:
            self.reopen_attempt = 0
        elif after is OPEN:
            self.reopen_attempt += before is HALF_OPEN
            self._frozen = counts
            open_for = self._open(now, open_for)
        self._begin(after, self.era + 1, now)
        self.news.append(Moved(before, after, self.era, reason or trigger.value, counts, open_for))

    def _stay(self, now: float, open_for: float | None) -> None:
        """Obey an order that leads to the same state: no new era, no news."""
        if self.state is OPEN:
            self._open(now, open_for)
        elif self.state is CLOSED:
            self._window = self._config.window.open(now)
            self.saturated = None

    def _begin(self, state: CircuitState, era: int, now: float) -> None:
        """Set up a new era, all of it or nothing: a signal handler may raise out of any call that is made here."""
        counting = state is CLOSED or state is METRICS_ONLY
        window = self._config.window.open(now) if counting else None
        watch = untimed = None
        if state is not DISABLED and self._slow_after is not None:
            watch = Watch(era, now + self._slow_after if counting else -inf)
        elif counting or state is DISABLED:
            untimed = Call(era, nan)
        probes: OrderedDict[Call, None] = OrderedDict()
        exceeded: set[Trigger] = set()
        # Plain assignments from here on, which nothing can come between.
        if state is not OPEN:
            self.open_until = -inf
        self.state = state
        self.era = era
        self._window = window
        self.watch = watch
        self._probes = probes  # in flight, in order of their starts
        self._probed = self._failed_probes = self._slow_probes = self._marked_probes = 0
        self._exceeded = exceeded
        self.untimed = untimed
        self.saturated = untimed if state is DISABLED else None

    def _open(self, now: float, open_for: float | None = None) -> float:
        config = self._config
        self._openings += 1
        self._opened_at = now
        if open_for is None:
            if callable(config.open_duration):
                # The user's function is asked later, outside the lock; until it answers the cap holds.
                self.unasked = self._openings, self.reopen_attempt
                open_for = config.max_open_duration
            else:
                # Once for each opening: drawn at each look, the shortest of many draws would win.
                share = 1 + config.open_jitter * (self.chance or 0.0)
                self.chance = None
                open_for = _grow(config.open_duration, config.open_backoff, self.reopen_attempt) * share
        open_for = min(open_for, config.max_open_duration)
        self.open_until = now + open_for
        return open_for

    def set_open_time(self, opening: int, seconds: float) -> float | None:
        """Apply the answer of the user's function, unless the circuit has moved on; give the time that holds."""
        if opening != self._openings or self.state is not OPEN:
            return None
        open_for = float(min(max(seconds, 0.0), self._config.max_open_duration))
        self.open_until = self._opened_at + open_for
        return open_for

    # --- reading ---

    def would_admit(self, now: float) -> bool:
        """Tell what `admit` would do, by doing it to a copy: nothing is counted, drawn or moved."""
        oldest = None if self.watch is None else self.watch.oldest()
        if self._window is not None and (oldest is None or not self._is_slow(oldest, now)):
            return True
        return self._copy().admit(now) is not None

    def _copy(self) -> BreakerCore:
        twin = copy.copy(self)
        twin.news, twin.admissions, twin.refusals = [], count(), count()
        # A list first, made in one atomic step: other threads put calls in without the lock.
        watched = [] if self.watch is None else list(self.watch.calls)
        calls = {call: copy.copy(call) for call in (*watched, *self._probes)}
        if self.watch is not None:
            twin.watch = Watch(self.era, self.watch.due)
            twin.watch.calls.update((calls[call], None) for call in watched)
        twin._probes = OrderedDict.fromkeys(calls[call] for call in self._probes)  # noqa: SLF001 - its own copy
        twin._window = copy.deepcopy(self._window)  # noqa: SLF001 - its own copy
        twin._exceeded = set(self._exceeded)  # noqa: SLF001 - its own copy
        return twin

    def retry_after(self, now: float) -> float | None:
        """Give the seconds after which a refused caller should ask again; None where no time is known."""
        if self.state is OPEN:
            at = self.open_until
        elif self.state is HALF_OPEN and not self._has_room():
            at = self._fits_at()
        else:
            return None
        return seconds_until(at, now)

    def in_flight(self) -> int:
        """Count the calls whose end is still to come, over all eras."""
        # Looking at a count takes a number off it; both are looked at alike, which leaves their difference as it was.
        # The endings first: a call that begins and ends between the two looks must not make the difference negative.
        ended = next(self.endings)
        return next(self.admissions) - ended

    def rejected(self) -> int:
        """Count the calls refused over the breaker's life."""
        refused = next(self.refusals) - self._looks
        self._looks += 1  # looking took a number off the count
        return refused

    def counts(self, now: float) -> Counts:
        """Give what decides at present: the window, the window that tripped, or the probes so far."""
        window, minimum = self._window, self._config.minimum_calls
        if self.state is OPEN:
            return self._frozen  # what it was opened by
        if self.state is HALF_OPEN:
            return Counts(self._probed, self._failed_probes, self._slow_probes)
        if window is None:
            return Counts()
        window.advance(now)
        calls = window.calls
        if calls < minimum:
            return Counts(calls, window.failures, window.slow)
        return Counts(calls, window.failures, window.slow, window.failures / calls, window.slow / calls)

    def is_as_new(self, now: float) -> bool:
        """Tell whether a new breaker would behave the same from here on."""
        return (
            self.state is CLOSED
            and self._config.initial_state is CLOSED
            and self.in_flight() == 0
            and self.counts(now).calls == 0
        )


def seconds_until(at: float, now: float) -> float:
    """Return the seconds from `now` to `at`, rounded so that a caller who waits exactly that long is never early."""
    wait = at - now
    if wait <= 0:
        return 0.0
    while now + wait < at:
        wait = nextafter(wait, inf)
    return wait


def _least_share(total: int, threshold: float) -> int:
    """Give the least part of `total` whose share reaches `threshold`."""
    # By the same division that rates are made with: 7 of 10 reach 0.7, though 0.7 * 10 is more than 7.
    part = max(1, int(total * threshold) - 1)
    while part / total < threshold:
        part += 1
    return part


def _grow(base: float, factor: float, times: int) -> float:
    """Give `base * factor ** times`, which may be infinite, for the caller to cap."""
    try:
        return base * float(factor) ** times if base else 0.0
    except OverflowError:  # after about a thousand reopenings in a row
        return inf
