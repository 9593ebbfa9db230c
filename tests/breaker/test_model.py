"""The breaker against a naive model: a list of everything that happened, recomputed at every question.

Times are multiples of one unit that all durations of the configuration are multiples of too, zero included: nearly
every defect of windows and deadlines sits exactly on a boundary, where random floats never fall.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, CountWindow, TimeWindow
from resilience.breaker import Permit
from resilience.testing import VirtualClock

UNIT = 0.25


class IgnoredError(Exception):
    pass


@dataclass
class Told:
    """One call, as the model remembers it."""

    era: int
    started: float
    watched: bool
    seen_at: float = 0.0
    counted: bool = False
    overdue: bool = False
    failed: bool = False
    slow: bool = False
    taken_back: bool = False
    ended: bool = False
    replaced: bool = False
    forgotten: bool = False


@dataclass
class Model:
    """What a circuit breaker is, written for the reader: nothing is kept that could be recomputed."""

    config: CircuitBreakerConfig
    now: float = 0.0
    state: str = "closed"
    era: int = 1
    calls: list[Told] = field(default_factory=list)
    counted: list[Told] = field(default_factory=list)
    rejected: int = 0
    late: int = 0
    reopenings: int = 0
    open_until: float = 0.0
    opened_by: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        self.state = str(self.config.initial_state)
        if self.state == "open":
            self.open()

    # what the window holds

    def window(self) -> list[Told]:
        counted = [call for call in self.counted if call.era == self.era]
        window = self.config.window
        if isinstance(window, CountWindow):
            counted = counted[-window.calls :]
        else:
            width = window.seconds / window.buckets
            counted = [call for call in counted if self.now // width - call.seen_at // width < window.buckets]
        return [call for call in counted if not call.taken_back and not call.forgotten]

    def counts(self) -> tuple[int, int, int]:
        if self.state == "open":
            return self.opened_by
        if self.state in {"forced_open", "disabled"}:
            return 0, 0, 0
        calls = self.results() if self.state == "half_open" else self.window()
        return len(calls), sum(call.failed for call in calls), sum(call.slow for call in calls)

    def results(self) -> list[Told]:
        return [call for call in self.calls if call.era == self.era and call.counted and not call.taken_back]

    def probes(self) -> list[Told]:
        return [call for call in self.calls if call.era == self.era and not call.ended and not call.replaced]

    # what moves it

    def move(self, state: str) -> None:
        if state == self.state:
            if state == "open":
                self.open()
            elif state == "closed":
                for call in self.counted:
                    call.forgotten = True
            return
        if state == "open":
            self.opened_by = self.counts()
            self.reopenings += self.state == "half_open"
            self.open()
        if state == "closed":
            self.reopenings = 0
        self.state = state
        self.era += 1

    def open(self) -> None:
        base = self.config.open_duration
        assert not callable(base)
        self.open_until = self.now + min(
            base * self.config.open_backoff**self.reopenings, self.config.max_open_duration
        )

    def judge(self) -> None:
        config = self.config
        calls, failed, slow = self.counts()
        if self.state == "closed" and calls >= config.minimum_calls:
            if failed / calls >= config.failure_rate_threshold or slow / calls >= config.slow_call_rate_threshold:
                self.move("open")
        elif self.state == "half_open":
            size = config.half_open_calls
            outstanding = size - calls
            undecided = sum(call.overdue and not call.ended and not call.replaced for call in self.results())
            may_fail = failed + outstanding + undecided
            may_be_slow = slow + outstanding if config.slow_call_duration is not None else 0
            if failed / size >= config.failure_rate_threshold or slow / size >= config.slow_call_rate_threshold:
                self.move("open")
            elif (
                may_fail / size < config.failure_rate_threshold and may_be_slow / size < config.slow_call_rate_threshold
            ):
                self.move("closed")

    def see_overdue(self, but: Told | None = None) -> None:
        era, limit = self.era, self.config.slow_call_duration
        for call in list(self.calls):
            watched = call.watched and call.era == era == self.era and not call.ended and not call.replaced
            if (
                watched
                and call is not but
                and not call.overdue
                and limit is not None
                and self.now - call.started >= limit
            ):
                call.overdue = call.slow = True
                self.count(call)

    def count(self, call: Told) -> None:
        if not call.counted:
            call.counted, call.seen_at = True, self.now
            self.counted.append(call)
        self.judge()

    # what is done to it

    def has_room(self) -> bool:
        probes = self.probes()
        waiting = sum(not call.overdue for call in probes)
        concurrency = self.config.half_open_concurrency or self.config.half_open_calls
        return len(probes) < concurrency and len(self.results()) + waiting < self.config.half_open_calls

    def start(self) -> Told | None:
        self.see_overdue()
        if self.state == "open" and self.now >= self.open_until:
            self.move("half_open")
        while self.state == "half_open" and not self.has_room():
            oldest = self.probes()[0]
            if self.now - oldest.started < self.config.probe_lease:
                break
            oldest.replaced = True
            if oldest.overdue:
                self.judge()
        if self.state in {"open", "forced_open"} or (self.state == "half_open" and not self.has_room()):
            self.rejected += 1
            return None
        watched = self.config.slow_call_duration is not None and self.state != "disabled"
        call = Told(self.era, self.now, watched)
        self.calls.append(call)
        return call

    def end(self, call: Told, how: str) -> None:
        self.see_overdue(but=call)
        limit = self.config.slow_call_duration
        slow = limit is not None and self.now - call.started >= limit
        neutral = how in {"ignored", "released"} or (how == "cancelled" and not slow)
        call.ended = True
        if call.era != self.era or call.replaced:
            self.late += not neutral
        elif self.state in {"closed", "metrics_only", "half_open"}:
            if neutral:
                call.taken_back = call.counted
            else:
                call.failed, call.slow = how == "failed", slow
                self.count(call)

    def in_flight(self) -> int:
        return sum(not call.ended for call in self.calls)


ENDS: dict[str, Callable[[Permit], None]] = {
    "succeeded": Permit.success,
    "failed": lambda permit: permit.failure(OSError()),
    "ignored": lambda permit: permit.failure(IgnoredError()),
    "released": Permit.release,
    "cancelled": lambda permit: permit.failure(asyncio.CancelledError()),
}
ORDERS = {
    "trip": "open",
    "force_open": "forced_open",
    "disable": "disabled",
    "metrics_only": "metrics_only",
    "reset": "closed",
}

units = st.integers(0, 12).map(lambda count: count * UNIT)
some_units = st.integers(1, 12).map(lambda count: count * UNIT)
shares = st.sampled_from([0.01, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 1.0])


@st.composite
def configs(draw: st.DrawFn) -> CircuitBreakerConfig:
    window: CountWindow | TimeWindow
    if draw(st.booleans()):
        window = CountWindow(draw(st.integers(1, 8)))
        minimum = draw(st.integers(1, window.calls))
    else:
        buckets = draw(st.integers(1, 4))
        window = TimeWindow(buckets * draw(st.integers(1, 4)) * UNIT, buckets)
        minimum = draw(st.integers(1, 6))
    half_open_calls = draw(st.integers(1, 5))
    return CircuitBreakerConfig(
        window=window,
        minimum_calls=minimum,
        failure_rate_threshold=draw(shares),
        slow_call_duration=draw(st.none() | some_units),
        slow_call_rate_threshold=draw(shares),
        open_duration=draw(units),
        open_backoff=draw(st.sampled_from([1.0, 2.0])),
        max_open_duration=20 * UNIT,
        open_jitter=0.0,
        half_open_calls=half_open_calls,
        half_open_concurrency=draw(st.none() | st.integers(1, half_open_calls)),
        probe_lease=draw(some_units),
        ignore=IgnoredError,
        # Half of them begin where the probes are: a story rarely gets there by itself.
        initial_state=draw(
            st.sampled_from([CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN, CircuitState.METRICS_ONLY])
        ),
    )


steps = st.one_of(
    st.tuples(st.just("wait"), units),
    st.just(("start", None)),
    st.tuples(st.just("end"), st.tuples(st.integers(0, 30), st.sampled_from(sorted(ENDS)))),
    st.tuples(st.just("call"), st.sampled_from(["succeeded", "failed", "ignored"])),
    st.tuples(st.just("calls"), st.integers(1, 10)),
    st.just(("look", None)),
)
orders = st.tuples(st.just("order"), st.sampled_from(sorted(ORDERS)))


class Pair:
    """The breaker and the model, told the same."""

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.clock = VirtualClock(autojump=False)
        self.breaker = CircuitBreaker("modelled", config, clock=self.clock)
        self.model = Model(config)
        self.running: list[tuple[Permit, Told]] = []

    def do(self, what: str, with_: Any) -> None:
        if what == "wait":
            self.clock.advance(with_)
            self.model.now = self.clock()
        elif what == "start":
            self.start()
        elif what == "end" and self.running:
            which, how = with_
            permit, told = self.running.pop(which % len(self.running))
            ENDS[how](permit)
            self.model.end(told, how)
        elif what == "call":
            self.call(with_)
        elif what == "calls":
            for _ in range(with_):
                self.call("succeeded")
        elif what == "order":
            getattr(self.breaker, with_)()
            self.model.move(ORDERS[with_])
        elif what == "look":
            self.breaker.snapshot()
            self.model.see_overdue()

    def start(self) -> None:
        expected = self.model.start()
        foretold = self.breaker.would_allow()
        assert foretold == (expected is not None)
        try:
            permit = self.breaker.acquire()
        except CircuitOpenError:
            assert expected is None
        else:
            assert expected is not None
            self.running.append((permit, expected))

    def call(self, how: str) -> None:
        """Make a call through a guarded function, which may take the paths without a lock."""
        errors: dict[str, Exception] = {"failed": OSError(), "ignored": IgnoredError()}

        def function() -> None:
            if how in errors:
                raise errors[how]

        try:
            self.breaker.call(function)
        except (OSError, IgnoredError) as error:
            assert error is errors[how]
        except CircuitOpenError:
            assert self.model.start() is None
            return
        told = self.model.start()
        assert told is not None
        self.model.end(told, how)

    def compare(self) -> None:
        """Compare what can be seen without changing it; a snapshot would see what is overdue."""
        model = self.model
        snapshot = self.breaker._gate.read(self.breaker._read)
        assert snapshot.state == model.state
        assert snapshot.era == model.era
        assert (snapshot.calls, snapshot.failures, snapshot.slow_calls) == model.counts()
        assert snapshot.in_flight == model.in_flight()
        assert (snapshot.rejected, snapshot.late) == (model.rejected, model.late)
        assert snapshot.reopen_attempt == model.reopenings
        if model.state in {"closed", "metrics_only"}:
            calls, failed, slow = model.counts()
            known = calls >= model.config.minimum_calls
            assert snapshot.failure_rate == (failed / calls if known else None)
            assert snapshot.slow_call_rate == (slow / calls if known else None)
        if model.state == "open":
            assert snapshot.retry_after == max(model.open_until - model.now, 0)
        elif model.state == "half_open" and not model.has_room():
            assert snapshot.retry_after is not None
        else:
            assert snapshot.retry_after is None


def run(config: CircuitBreakerConfig, story: list[tuple[str, Any]]) -> None:
    pair = Pair(config)
    for what, with_ in story:
        pair.do(what, with_)
        pair.compare()


@given(config=configs(), story=st.lists(steps, max_size=60))
@settings(max_examples=1_000, deadline=None)
def test_the_breaker_does_what_the_naive_model_does(config: CircuitBreakerConfig, story: list[tuple[str, Any]]) -> None:
    run(config, story)


@given(config=configs(), story=st.lists(st.one_of(steps, orders), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_breaker_does_what_the_model_does_with_people_interfering(
    config: CircuitBreakerConfig, story: list[tuple[str, Any]]
) -> None:
    run(config, story)


@given(config=configs(), story=st.lists(steps, max_size=40))
@settings(max_examples=1_000, deadline=None)
def test_a_refused_caller_that_obeys_is_not_refused_again_for_the_same_cause(
    config: CircuitBreakerConfig, story: list[tuple[str, Any]]
) -> None:
    pair = Pair(config)
    for what, with_ in story:
        pair.do(what, with_)
    try:
        pair.breaker.acquire().release()
    except CircuitOpenError as refusal:
        assert refusal.retry_after is not None
        assert refusal.retry_after > 0
        pair.clock.advance(refusal.retry_after)
        try:
            pair.breaker.acquire()
        except CircuitOpenError as again:
            assert again.state != refusal.state
