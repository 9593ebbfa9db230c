"""What a circuit breaker tells, in which order, and that telling harms nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Literal

import anyio
import pytest

from resilience import CircuitBreaker, CircuitOpenError, CircuitState, subscribe
from resilience.errors import type_name
from resilience.events import (
    BreakerAdded,
    CallFailed,
    CallRejected,
    CallSucceeded,
    CircuitStateChanged,
    Event,
    PredicateFailed,
    SinkFailed,
    ThresholdExceeded,
    capture,
)
from resilience.testing import VirtualClock

BACKENDS: list[Literal["asyncio", "trio"]] = ["asyncio", "trio"]


class BreakdownError(Exception):
    pass


class RefusalError(Exception):
    pass


def make(clock: Callable[[], float], **config: Any) -> CircuitBreaker:
    given = {"minimum_calls": 2, "open_duration": 5.0, "open_jitter": 0.0, "half_open_calls": 1}
    return CircuitBreaker("told", clock=clock, **(given | {"ignore": RefusalError} | config))


def succeed(breaker: CircuitBreaker) -> None:
    breaker.call(lambda: None)


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    raised = BreakdownError() if error is None else error

    def work() -> None:
        raise raised

    with pytest.raises(type(raised)):
        breaker.call(work)


def refused(breaker: CircuitBreaker) -> None:
    with pytest.raises(CircuitOpenError):
        breaker.call(pytest.fail)


def kinds(events: list[Event]) -> list[str]:
    """Give the kinds, a change of state as its target."""
    return [
        f"-> {event.to_state}"
        if isinstance(event, CircuitStateChanged)
        else event.kind.removeprefix("circuit_breaker.")
        for event in events
    ]


def facts(event: Event) -> dict[str, object]:
    """Give the fields of an event that do not depend on when and in which process it was told."""
    return {field: value for field, value in event.as_dict().items() if field not in {"kind", "wall", "seq"}}


# --- sequences ---


def test_a_whole_outage_is_told_in_the_order_in_which_it_happened(clock: VirtualClock) -> None:
    breaker = make(clock)
    with capture(Event) as events:
        succeed(breaker)
        fail(breaker)
        refused(breaker)
        clock.advance(5)
        fail(breaker)
        refused(breaker)
        clock.advance(7.5)
        succeed(breaker)
        succeed(breaker)
    assert kinds(events) == [
        "call_succeeded",
        "call_failed",
        "threshold_exceeded",
        "-> open",
        "call_rejected",
        "-> half_open",
        "call_failed",
        "-> open",
        "call_rejected",
        "-> half_open",
        "call_succeeded",
        "-> closed",
        "call_succeeded",
    ]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert [event.at for event in events] == [0.0] * 5 + [5.0] * 4 + [12.5] * 4
    assert {event.name for event in events} == {"told"}
    changes = [event for event in events if isinstance(event, CircuitStateChanged)]
    assert [(one.from_state, one.to_state, one.era, one.reason, one.open_for, one.severity) for one in changes] == [
        ("closed", "open", 2, "failure_rate", 5.0, "error"),
        ("open", "half_open", 3, "open_time_over", None, "warning"),
        ("half_open", "open", 4, "probes_failed", 7.5, "error"),
        ("open", "half_open", 5, "open_time_over", None, "warning"),
        ("half_open", "closed", 6, "probes_succeeded", None, "info"),
    ]
    # The numbers are those of the stretch that ended.
    assert [(one.calls, one.failure_rate, one.slow_call_rate) for one in changes] == [
        (2, 0.5, 0.0),
        (2, 0.5, 0.0),
        (1, 1.0, 0.0),
        (1, 1.0, 0.0),
        (1, 0.0, 0.0),
    ]


def test_each_kind_tells_its_facts(clock: VirtualClock) -> None:
    breaker = make(clock, slow_call_duration=1.0)
    with capture(Event) as events:
        permit = breaker.acquire()
        clock.advance(0.5)
        permit.success()
        permit = breaker.acquire()
        clock.advance(1)
        permit.failure(ConnectionError())
        refused(breaker)
        clock.advance(2)
        refused(breaker)
    told = [(event.kind.removeprefix("circuit_breaker."), facts(event)) for event in events]
    assert told == [
        ("call_succeeded", {"severity": "debug", "name": "told", "at": 0.5, "duration": 0.5, "slow": False}),
        (
            "call_failed",
            {
                "severity": "debug",
                "name": "told",
                "at": 1.5,
                "duration": 1.0,
                "slow": True,
                "error_type": "ConnectionError",
            },
        ),
        (
            "threshold_exceeded",
            {
                "severity": "warning",
                "name": "told",
                "at": 1.5,
                "threshold": "failure_rate",
                "rate": 0.5,
                "calls": 2,
            },
        ),
        (
            "state_changed",
            {
                "severity": "error",
                "name": "told",
                "at": 1.5,
                "from_state": "closed",
                "to_state": "open",
                "era": 2,
                "reason": "failure_rate",
                "failure_rate": 0.5,
                "slow_call_rate": 0.5,
                "calls": 2,
                "open_for": 5.0,
            },
        ),
        ("call_rejected", {"severity": "warning", "name": "told", "at": 1.5, "state": "open", "retry_after": 5.0}),
        ("call_rejected", {"severity": "warning", "name": "told", "at": 3.5, "state": "open", "retry_after": 3.0}),
    ]
    assert json.loads(json.dumps([event.as_dict() for event in events])) == [event.as_dict() for event in events]


def test_a_trip_by_slow_calls_says_so(clock: VirtualClock) -> None:
    breaker = make(clock, slow_call_duration=1.0)
    permits = [breaker.acquire() for _ in range(2)]
    clock.advance(1)
    with capture(CircuitStateChanged, ThresholdExceeded, CallRejected) as events:
        refused(breaker)
        for permit in permits:
            permit.success()
    assert kinds(list(events)) == [
        "threshold_exceeded",
        "-> open",
        "call_rejected",
    ]  # what led to a refusal comes first
    threshold, change = events[:2]
    assert isinstance(threshold, ThresholdExceeded)
    assert (threshold.threshold, threshold.rate, threshold.calls) == ("slow_call_rate", 1.0, 2)
    assert isinstance(change, CircuitStateChanged)
    assert (change.reason, change.slow_call_rate, change.failure_rate) == ("slow_call_rate", 1.0, 0.0)


def test_slow_probes_reopen_and_say_so(clock: VirtualClock) -> None:
    breaker = make(clock, slow_call_duration=1.0, open_duration=0.0)
    breaker.trip()
    probe = breaker.acquire()
    clock.advance(1)
    with capture(CircuitStateChanged) as events:
        probe.success()
    assert [(event.to_state, event.reason) for event in events] == [("open", "probes_slow")]


def test_a_replaced_probe_is_told_with_its_age(clock: VirtualClock) -> None:
    breaker = make(clock, open_duration=0.0, probe_lease=2.0)
    breaker.trip()
    breaker.acquire()
    clock.advance(3)
    with capture(Event) as events:
        breaker.acquire()
    assert [event.as_dict()["age"] for event in events] == [3.0]
    assert kinds(events) == ["probe_expired"]
    assert events[0].severity == "warning"


def test_what_people_decide_is_told_with_its_reason(clock: VirtualClock) -> None:
    breaker = make(clock)
    with capture(CircuitStateChanged) as events:
        breaker.trip()
        breaker.force_open()
        breaker.disable()
        breaker.metrics_only()
        breaker.reset()
    assert [(event.from_state, event.to_state, event.reason, event.open_for) for event in events] == [
        ("closed", "open", "trip", 5.0),
        ("open", "forced_open", "force_open", None),
        ("forced_open", "disabled", "disable", None),
        ("disabled", "metrics_only", "metrics_only", None),
        ("metrics_only", "closed", "reset", None),
    ]
    assert [event.severity for event in events] == ["error", "warning", "warning", "warning", "info"]


def test_an_order_that_changes_nothing_is_silent(clock: VirtualClock) -> None:
    breaker = make(clock)
    with capture(Event) as events:
        for order in (breaker.trip, breaker.force_open, breaker.disable, breaker.metrics_only, breaker.reset):
            order()
            order()
    assert kinds(events) == ["-> open", "-> forced_open", "-> disabled", "-> metrics_only", "-> closed"]
    assert [event.as_dict()["era"] for event in events] == [2, 3, 4, 5, 6]


def test_forcing_open_twice_is_one_event_and_one_reset_undoes_it(clock: VirtualClock) -> None:
    breaker = make(clock)
    with capture(CircuitStateChanged) as events:
        breaker.force_open()
        breaker.force_open()
        breaker.reset()
    assert kinds(list(events)) == ["-> forced_open", "-> closed"]
    assert breaker.state == "closed"


def test_rejections_are_told_in_every_state_that_rejects(clock: VirtualClock) -> None:
    breaker = make(clock, probe_lease=9.0)
    with capture(CallRejected) as events:
        breaker.trip()
        refused(breaker)
        clock.advance(5)
        breaker.acquire()
        refused(breaker)
        breaker.force_open()
        refused(breaker)
        clock.advance(6)
        refused(breaker)
    assert [(event.state, event.retry_after) for event in events] == [
        ("open", 5.0),
        ("half_open", 9.0),
        ("forced_open", None),
        ("forced_open", None),
    ]
    assert breaker.snapshot().rejected == 4


def test_metrics_only_tells_what_would_have_happened_once_and_moves_nothing(clock: VirtualClock) -> None:
    breaker = make(clock, minimum_calls=5, initial_state=CircuitState.METRICS_ONLY)
    with capture(Event) as events:
        for end in (fail, fail, fail, succeed, succeed, fail):
            end(breaker)
    assert kinds(events) == [
        "call_failed",
        "call_failed",
        "call_failed",
        "call_succeeded",
        "call_succeeded",
        "threshold_exceeded",
        "call_failed",
    ]
    assert breaker.state == "metrics_only"


def test_metrics_only_tells_each_threshold_once(clock: VirtualClock) -> None:
    breaker = make(clock, minimum_calls=5, slow_call_duration=1.0, initial_state=CircuitState.METRICS_ONLY)
    with capture(ThresholdExceeded) as events:
        for _ in range(8):
            permit = breaker.acquire()
            clock.advance(1)
            permit.failure(BreakdownError())
    assert [(event.threshold, event.rate, event.calls) for event in events] == [
        ("failure_rate", 1.0, 5),
        ("slow_call_rate", 1.0, 5),
    ]


def test_a_threshold_is_told_again_in_the_next_era(clock: VirtualClock) -> None:
    breaker = make(clock, initial_state=CircuitState.METRICS_ONLY)
    with capture(ThresholdExceeded) as events:
        for _ in range(2):
            fail(breaker)
            fail(breaker)
            fail(breaker)
            breaker.disable()
            breaker.metrics_only()
    assert len(events) == 2


def test_a_disabled_breaker_counts_nothing_and_still_tells_every_call(clock: VirtualClock) -> None:
    breaker = make(clock, initial_state=CircuitState.DISABLED)
    with capture(Event) as events:
        for _ in range(5):
            fail(breaker)
        succeed(breaker)
        fail(breaker, RefusalError())
    assert kinds(events) == ["call_failed"] * 5 + ["call_succeeded", "call_ignored"]
    assert breaker.snapshot().calls == 0


def test_calls_that_began_before_anybody_listened_are_not_told(clock: VirtualClock) -> None:
    breaker = make(clock)
    events: list[Event] = []
    with ExitStack() as listening:
        breaker.call(lambda: listening.enter_context(subscribe(events.append)))
        assert events == []
        succeed(breaker)
    assert kinds(events) == ["call_succeeded"]
    assert (breaker.snapshot().calls, breaker.snapshot().in_flight) == (2, 0)


@pytest.mark.parametrize("failing", [False, True])
def test_asyncio_and_trio_tell_the_same(failing: bool) -> None:
    async def story(clock: VirtualClock) -> None:
        breaker = make(clock, slow_call_duration=1.0, slow_call_rate_threshold=0.5)

        @breaker
        async def work(seconds: float) -> None:
            await anyio.sleep(seconds)
            if failing:
                raise BreakdownError

        async def user(seconds: float, patience: float) -> None:
            for _ in range(6):
                with anyio.move_on_after(patience):
                    with suppress(BreakdownError, CircuitOpenError):
                        await work(seconds)
                await anyio.sleep(1.75)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(user, 0.5, 60)
            # All times below are quarters, and no two tasks begin on the same part of one: nothing is simultaneous.
            await anyio.sleep(0.0625)
            tasks.start_soon(user, 1.25, 60)
            await anyio.sleep(0.0625)
            tasks.start_soon(user, 3600, 1.5)

    told = []
    for backend in BACKENDS:
        clock = VirtualClock()
        with capture(Event, name="told") as events:
            clock.run(story, clock, backend=backend)
        told.append([(event.kind, facts(event)) for event in events])
    on_asyncio, on_trio = ([_without_cancellation_names(one) for one in story] for story in told)
    assert on_asyncio == on_trio
    assert {kind.removeprefix("circuit_breaker.") for kind, _ in on_trio} >= {
        "call_failed" if failing else "call_succeeded",
        "call_ignored",
        "call_rejected",
        "state_changed",
        "threshold_exceeded",
    }


def _without_cancellation_names(told: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    kind, told_facts = told
    return kind, {
        field: "cancelled" if field == "error_type" and "Cancelled" in str(value) else value
        for field, value in told_facts.items()
    }


# --- how long it stays open ---


def opening(breaker: CircuitBreaker) -> CircuitStateChanged:
    """Trip the breaker and give what it told of it."""
    with capture(CircuitStateChanged) as events:
        breaker.trip()
    (event,) = events
    return event


def test_the_open_time_may_be_a_function_of_the_reopen_attempt(clock: VirtualClock) -> None:
    asked: list[int] = []

    def seconds(attempt: int) -> float:
        asked.append(attempt)
        return 3.0 + attempt

    breaker = make(clock, open_duration=seconds, open_backoff=10.0, open_jitter=1.0)
    with capture(CircuitStateChanged) as events:
        breaker.trip()
        for wait in (3.0, 4.0, 5.0):
            assert breaker.snapshot().retry_after == wait
            clock.advance(wait)
            fail(breaker)
        clock.advance(6)
        succeed(breaker)
        breaker.trip()
    assert asked == [0, 1, 2, 3, 0]
    assert [event.open_for for event in events if event.to_state == "open"] == [3.0, 4.0, 5.0, 6.0, 3.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (-5.0, 0.0),
        (0, 0.0),
        (299.5, 299.5),
        (301, 300.0),
        (math.inf, 300.0),
        (-math.inf, 0.0),
        pytest.param(10**400, 300.0, id="beyond floats"),
    ],
)
def test_what_the_function_gives_is_clamped_to_the_cap(clock: VirtualClock, given: float, expected: float) -> None:
    breaker = make(clock, open_duration=lambda _: given)
    with capture(PredicateFailed) as failed:
        assert opening(breaker).open_for == expected
    assert breaker.snapshot().retry_after == expected
    assert failed == []


def no_seconds(attempt: int) -> Any:
    raise LookupError(attempt)


@pytest.mark.parametrize(
    ("function", "error_type"),
    [
        (no_seconds, "LookupError"),
        (lambda _: math.nan, "ValueError"),
        (lambda _: "5", "TypeError"),
        (lambda _: None, "TypeError"),
        (lambda _: True, "TypeError"),
        (lambda: 5.0, "TypeError"),
    ],
    ids=["raises", "nan", "string", "none", "bool", "wrong signature"],
)
def test_a_function_that_gives_no_seconds_leaves_the_cap_and_is_told(
    clock: VirtualClock, function: Any, error_type: str
) -> None:
    breaker = make(clock, open_duration=function, max_open_duration=40.0)
    with capture(CircuitStateChanged, PredicateFailed) as events:
        breaker.trip()
    change, failed = events
    assert isinstance(change, CircuitStateChanged)
    assert isinstance(failed, PredicateFailed)
    assert (change.open_for, breaker.snapshot().retry_after) == (40.0, 40.0)
    assert (failed.predicate, failed.error_type) == ("open_duration", error_type)


def test_seconds_beyond_any_float_are_the_cap_and_the_caller_gets_its_own_error(clock: VirtualClock) -> None:
    # What `lambda attempt: 5 * 2**attempt` gives after a thousand reopenings.
    breaker = make(clock, minimum_calls=1, open_duration=lambda _: 10**400)
    fail(breaker)
    assert breaker.snapshot().retry_after == 300.0


def test_a_function_that_is_interrupted_lets_the_interrupt_through_and_leaves_the_cap(clock: VirtualClock) -> None:
    def interrupted(attempt: int) -> float:
        raise KeyboardInterrupt

    breaker = make(clock, open_duration=interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaker.trip()
    assert (breaker.state, breaker.snapshot().retry_after) == ("open", 300.0)


def test_the_function_may_ask_the_breaker_and_finds_it_open_for_the_cap(clock: VirtualClock) -> None:
    seen = []

    def seconds(_: int) -> float:
        seen.append(breaker.snapshot())
        repr(breaker)
        return 7.0

    breaker = make(clock, open_duration=seconds)
    fail(breaker)
    fail(breaker)
    assert [(one.state, one.retry_after, one.failures) for one in seen] == [("open", 300.0, 2)]
    assert breaker.snapshot().retry_after == 7.0


def test_the_open_time_that_is_told_is_the_one_that_holds_even_if_the_function_asks_the_breaker(
    clock: VirtualClock,
) -> None:
    def seconds(_: int) -> float:
        breaker.snapshot()
        return 7.0

    breaker = make(clock, open_duration=seconds)
    told = []
    with subscribe(lambda event: told.append(event.as_dict()["open_for"]), CircuitStateChanged):
        breaker.trip()
    assert told == [7.0]


def test_an_answer_that_comes_when_the_circuit_has_moved_on_changes_nothing(clock: VirtualClock) -> None:
    def seconds(_: int) -> float:
        breaker.reset()
        breaker.force_open()
        return 7.0

    breaker = make(clock, open_duration=seconds)
    breaker.trip()
    assert (breaker.state, breaker.snapshot().retry_after) == ("forced_open", None)


def test_tripping_an_open_circuit_asks_again(clock: VirtualClock) -> None:
    answers = iter([10.0, 20.0])
    breaker = make(clock, open_duration=lambda _: next(answers))
    breaker.trip()
    clock.advance(1)
    breaker.trip()
    assert breaker.snapshot().retry_after == 20.0


def test_a_circuit_that_is_tripped_again_while_its_function_is_asked_asks_again(clock: VirtualClock) -> None:
    asked: list[int] = []

    def seconds(attempt: int) -> float:
        asked.append(attempt)
        if len(asked) == 1:
            breaker.trip()
        return 7.0 * len(asked)

    breaker = make(clock, open_duration=seconds)
    breaker.trip()
    assert (len(asked), breaker.snapshot().retry_after) == (2, 14.0)


def test_a_function_that_trips_the_circuit_whenever_it_is_asked_is_not_asked_for_ever(clock: VirtualClock) -> None:
    asked: list[int] = []

    def seconds(attempt: int) -> float:
        asked.append(attempt)
        if len(asked) < 1_000:
            breaker.trip()
        return 7.0

    breaker = make(clock, open_duration=seconds)
    breaker.trip()
    assert len(asked) < 100


def test_a_breaker_that_begins_open_asks_too(clock: VirtualClock) -> None:
    breaker = make(clock, open_duration=lambda _: 7.0, initial_state=CircuitState.OPEN)
    assert breaker.snapshot().retry_after == 7.0


def test_the_jittered_open_time_is_told_as_it_was_drawn(clock: VirtualClock) -> None:
    breaker = make(clock, open_jitter=1.0)
    open_for = opening(breaker).open_for
    assert open_for == breaker.snapshot().retry_after
    assert open_for is not None
    assert 5.0 <= open_for <= 10.0


# --- who hears ---


class Broken:
    """A sink that raises, on every event it hears."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.heard = 0

    def __call__(self, _: Event) -> None:
        self.heard += 1
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("sink"), GeneratorExit(), CircuitOpenError("other", "open")], ids=repr)
def test_a_sink_that_raises_harms_no_call_and_no_other_sink(clock: VirtualClock, error: BaseException) -> None:
    breaker = make(clock)
    broken = Broken(error)
    with subscribe(broken), capture(Event) as events:
        assert breaker.call(lambda: "result") == "result"
        fail(breaker)
        refused(breaker)
    assert kinds([event for event in events if not isinstance(event, SinkFailed)]) == [
        "call_succeeded",
        "call_failed",
        "threshold_exceeded",
        "-> open",
        "call_rejected",
    ]
    assert broken.heard == 5
    assert [event.error_type for event in events if isinstance(event, SinkFailed)] == [type_name(error)]
    assert breaker.snapshot().in_flight == 0


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_a_sink_that_is_interrupted_while_a_probe_is_admitted_gives_the_probe_back(
    clock: VirtualClock, interrupt: type[BaseException]
) -> None:
    breaker = make(clock)
    breaker.trip()
    clock.advance(5)
    with subscribe(Broken(interrupt()), CircuitStateChanged), pytest.raises(interrupt):
        breaker.call(pytest.fail)
    assert (breaker.state, breaker.snapshot().in_flight) == ("half_open", 0)
    succeed(breaker)
    assert breaker.state == "closed"


def test_a_sink_sees_the_state_of_which_it_is_told(clock: VirtualClock) -> None:
    breaker = make(clock)
    seen = []

    def look(event: CircuitStateChanged) -> None:
        seen.append((event.to_state, breaker.state.value, breaker.snapshot().era == event.era, event.wall > 0))

    with subscribe(look, CircuitStateChanged):
        breaker.trip()
        clock.advance(5)
        succeed(breaker)
    assert seen == [(state, state, True, True) for state in ("open", "half_open", "closed")]


def test_a_sink_may_give_orders_and_all_hear_them_in_order(clock: VirtualClock) -> None:
    breaker = make(clock)

    def contradict(event: CircuitStateChanged) -> None:
        if event.to_state == "open":
            breaker.reset()

    with (
        capture(CircuitStateChanged) as before,
        subscribe(contradict, CircuitStateChanged),
        capture(CircuitStateChanged) as after,
    ):
        fail(breaker)
        fail(breaker)
    assert kinds(list(before)) == kinds(list(after)) == ["-> open", "-> closed"]
    assert breaker.state == "closed"
    assert breaker.snapshot().calls == 0


def test_a_sink_may_call_through_the_breaker(clock: VirtualClock) -> None:
    breaker = make(clock)
    calls = 0

    def call_again(_: Event) -> None:
        nonlocal calls
        calls += 1
        if calls < 1_000:  # deeper than any stack would be safe, if this were recursion
            succeed(breaker)

    with subscribe(call_again, CallSucceeded):
        succeed(breaker)
    assert calls == 1_000
    assert breaker.snapshot().in_flight == 0


def test_a_listener_of_one_name_hears_nothing_of_others(clock: VirtualClock) -> None:
    mine, other = make(clock), CircuitBreaker("other", clock=clock)
    with capture(Event, name="told") as events:
        mine.trip()
        other.trip()
    assert [event.name for event in events] == ["told"]


def test_nothing_is_built_while_nobody_listens(clock: VirtualClock) -> None:
    def seq() -> int:
        return BreakerAdded("probe", 0.0).seq

    def everything() -> None:
        breaker = make(clock, slow_call_duration=1.0, probe_lease=1.0, failure_on=no_seconds, open_duration=no_seconds)
        succeed(breaker)
        fail(breaker, RefusalError())
        fail(breaker)
        refused(breaker)
        clock.advance(300)
        breaker.acquire()
        clock.advance(1)
        refused(breaker)
        for order in (breaker.reset, breaker.trip, breaker.disable, breaker.force_open):
            order()
        refused(breaker)

    before = seq()
    everything()
    assert seq() == before + 1
    with capture(Event):
        everything()
    assert seq() > before + 10


def test_only_what_is_heard_is_built(clock: VirtualClock) -> None:
    with capture(CallFailed) as events:
        breaker = make(clock, initial_state=CircuitState.METRICS_ONLY)
        for _ in range(3):
            succeed(breaker)
            fail(breaker)
    assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + 3))


def test_no_argument_result_or_message_is_ever_told(clock: VirtualClock) -> None:
    secret = "hunter2"

    def picky(_: object) -> bool:
        raise LookupError(secret)

    breaker = make(clock, failure_result=lambda result: result == secret, ignore=picky)
    with capture(Event) as events:
        breaker.call(lambda *_, **__: secret, secret, password=secret)
        for error in (ValueError(secret), ExceptionGroup(secret, [OSError(secret)])):
            with pytest.raises(type(error)):
                breaker.call(_raise, error)
            breaker.reset()
        breaker.trip()
        with pytest.raises(CircuitOpenError) as refusal:
            breaker.call(_raise, secret)
    assert len(events) > 5
    assert secret not in repr(events)
    assert secret not in json.dumps([event.as_dict() for event in events])
    assert secret not in f"{refusal.value} {refusal.value!r} {vars(refusal.value)} {breaker!r} {breaker.snapshot()!r}"


def _raise(error: Any) -> None:
    raise error
