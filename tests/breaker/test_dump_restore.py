"""A breaker's state, carried over a restart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitOpenError, CircuitState, ConfigurationError
from resilience.events import CircuitStateChanged, Event, capture
from resilience.testing import VirtualClock


def make(clock: Callable[[], float], **config: Any) -> CircuitBreaker:
    given = {"minimum_calls": 1, "open_duration": 10.0, "open_jitter": 0.0, "open_backoff": 2.0, "half_open_calls": 1}
    return CircuitBreaker("kept", clock=clock, **(given | config))


def elsewhere(**config: Any) -> tuple[CircuitBreaker, VirtualClock]:
    """Give a new breaker on a clock with another base, as after a restart."""
    clock = VirtualClock(autojump=False, start=1_000_000.0)
    return make(clock, **config), clock


def reopened(clock: VirtualClock, times: int) -> CircuitBreaker:
    breaker = make(clock)
    breaker.trip()
    for _ in range(times):
        clock.advance(breaker.snapshot().retry_after or 0)
        breaker.acquire().failure(OSError())
    return breaker


DUMP: dict[str, object] = {"format": 1, "state": "open", "remaining": 4.0, "reopen_attempt": 2}


# --- there and back ---


@pytest.mark.parametrize("state", list(CircuitState))
def test_every_state_survives_a_restart_as_json(clock: VirtualClock, state: CircuitState) -> None:
    before = make(clock, initial_state=state)
    text = json.dumps(before.dump())
    after, _ = elsewhere()
    after.restore(json.loads(text))
    assert after.state is (CircuitState.OPEN if state is CircuitState.HALF_OPEN else state)
    assert after.would_allow() is before.would_allow()
    assert after.snapshot().in_flight == 0


def test_a_dump_is_small_and_says_what_it_is(clock: VirtualClock) -> None:
    breaker = reopened(clock, 2)
    clock.advance(1)
    assert breaker.dump() == {"format": 1, "state": "open", "remaining": 39.0, "reopen_attempt": 2}
    assert {type(value) for value in breaker.dump().values()} == {int, str, float}  # nothing but JSON's own


def test_an_open_circuit_goes_on_with_the_seconds_and_the_attempt_that_were_left(clock: VirtualClock) -> None:
    before = reopened(clock, 1)
    clock.advance(7.5)
    after, later = elsewhere()
    after.restore(before.dump())
    assert (after.snapshot().retry_after, after.snapshot().reopen_attempt) == (12.5, 1)
    later.advance(12.25)
    with pytest.raises(CircuitOpenError) as refused:
        after.acquire()
    assert refused.value.retry_after == 0.25
    later.advance(0.25)
    after.acquire().failure(OSError())
    assert after.snapshot().retry_after == 40.0  # the second reopening


def test_half_open_becomes_open_with_nothing_left_and_probes_at_once(clock: VirtualClock) -> None:
    before = reopened(clock, 1)
    clock.advance(20)
    probe = before.acquire()
    assert before.state == "half_open"
    after, _ = elsewhere()
    after.restore(before.dump())
    assert (after.state, after.snapshot().retry_after, after.snapshot().reopen_attempt) == ("open", 0.0, 1)
    after.acquire().failure(OSError())
    assert (after.snapshot().reopen_attempt, after.snapshot().retry_after) == (2, 40.0)
    probe.release()


def test_half_open_has_nothing_left_whatever_a_dump_says() -> None:
    breaker, _ = elsewhere()
    breaker.restore(DUMP | {"state": "half_open"})
    assert (breaker.state, breaker.snapshot().retry_after) == ("open", 0.0)


def test_an_open_circuit_whose_time_was_over_probes_at_once(clock: VirtualClock) -> None:
    before = reopened(clock, 0)
    clock.advance(100)
    assert before.dump()["remaining"] == 0.0
    after, _ = elsewhere()
    after.restore(before.dump())
    after.acquire()
    assert after.state == "half_open"


def test_the_seconds_left_are_clamped_to_the_cap_of_the_restoring_configuration() -> None:
    breaker, _ = elsewhere(max_open_duration=30.0)
    breaker.restore(DUMP | {"remaining": 1e9})
    assert breaker.snapshot().retry_after == 30.0


def test_a_restored_open_time_asks_no_function_and_draws_no_jitter() -> None:
    asked: list[int] = []

    def seconds(attempt: int) -> float:
        asked.append(attempt)
        return 99.0

    for config in ({"open_duration": seconds}, {"open_jitter": 1.0}):
        breaker, _ = elsewhere(**config)
        breaker.restore(DUMP)
        assert breaker.snapshot().retry_after == 4.0
    assert asked == []


def test_calls_counted_before_the_restart_are_old_news(clock: VirtualClock) -> None:
    before = make(clock, minimum_calls=5)
    before.acquire().failure(OSError())
    after, _ = elsewhere(minimum_calls=5)
    after.acquire().failure(OSError())
    after.restore(before.dump())
    assert (after.state, after.snapshot().calls) == ("closed", 0)


@pytest.mark.parametrize("target", list(CircuitState))
@pytest.mark.parametrize("state", list(CircuitState))
def test_any_state_may_be_restored_over_any_other(
    clock: VirtualClock, state: CircuitState, target: CircuitState
) -> None:
    dump = DUMP | {"state": state.value, "remaining": 0.0 if state is not CircuitState.OPEN else 4.0}
    breaker = make(clock, initial_state=target)
    late = None if target in {CircuitState.OPEN, CircuitState.FORCED_OPEN} else breaker.acquire()
    breaker.restore(dump)
    expected = CircuitState.OPEN if state is CircuitState.HALF_OPEN else state
    assert breaker.state is expected
    if expected is CircuitState.OPEN:
        assert (breaker.snapshot().retry_after, breaker.snapshot().reopen_attempt) == (dump["remaining"], 2)
    if late is not None:
        late.failure(OSError())
        assert breaker.state is expected or (expected is target)


def test_restoring_is_told_with_its_reason(clock: VirtualClock) -> None:
    breaker = make(clock)
    with capture(CircuitStateChanged) as events:
        breaker.restore(DUMP)
    assert [(event.from_state, event.to_state, event.reason, event.open_for) for event in events] == [
        ("closed", "open", "restored", 4.0)
    ]


def test_dumping_changes_and_tells_nothing(clock: VirtualClock) -> None:
    breaker = reopened(clock, 1)
    clock.advance(100)
    before = breaker.snapshot()
    with capture(Event) as events:
        assert breaker.dump() == breaker.dump()
    assert (breaker.snapshot(), events) == (before, [])


# --- what is no dump ---


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("format", None, "must be 1, got None"),
        ("format", 2, "must be 1, got 2"),
        ("format", "1", "must be 1, got '1'"),
        ("state", None, "must be one of closed, open, half_open, forced_open, disabled, metrics_only, got None"),
        ("state", "OPEN", "must be one of closed, .*, got 'OPEN'"),
        ("state", 1, "must be one of closed, .*, got 1"),
        ("state", ["open"], r"must be one of closed, .*, got \['open'\]"),
        ("remaining", None, "must be a number, got None"),
        ("remaining", "4", "must be a number, got '4'"),
        ("remaining", True, "must be a number, got True"),
        ("remaining", -0.5, "must be at least 0, got -0.5"),
        ("remaining", math.nan, "must be finite, got nan"),
        ("remaining", math.inf, "must be finite, got inf"),
        ("reopen_attempt", None, "must be an int, got None"),
        ("reopen_attempt", 1.0, "must be an int, got 1.0"),
        ("reopen_attempt", True, "must be an int, got True"),
        ("reopen_attempt", -1, "must be at least 0, got -1"),
    ],
)
def test_a_malformed_field_is_refused_and_changes_nothing(
    clock: VirtualClock, field: str, value: Any, rule: str
) -> None:
    breaker = reopened(clock, 1)
    before = breaker.snapshot()
    with capture(Event) as events, pytest.raises(ConfigurationError, match=rf"^dumped\['{field}'\] {rule}$"):
        breaker.restore(DUMP | {"state": "closed", field: value})
    assert (breaker.snapshot(), events) == (before, [])


@pytest.mark.parametrize("field", DUMP)
def test_a_missing_field_is_refused_and_changes_nothing(clock: VirtualClock, field: str) -> None:
    breaker = reopened(clock, 1)
    before = breaker.snapshot()
    with (
        capture(Event) as events,
        pytest.raises(ConfigurationError, match=rf"^dumped\['{field}'\] must be .*got None$"),
    ):
        breaker.restore({name: value for name, value in DUMP.items() if name != field})
    assert (breaker.snapshot(), events) == (before, [])


def test_seconds_beyond_any_float_are_refused(clock: VirtualClock) -> None:
    with pytest.raises(ConfigurationError, match=r"dumped\['remaining'\] must be "):
        make(clock).restore(json.loads(json.dumps(DUMP | {"remaining": 10**400})))


@pytest.mark.parametrize("thing", [None, "{}", [("format", 1)], 1])
def test_what_is_no_mapping_is_refused(clock: VirtualClock, thing: Any) -> None:
    breaker = make(clock)
    with pytest.raises(ConfigurationError, match=f"dumped must be what dump.. gave, got {type(thing).__name__}"):
        breaker.restore(thing)


def test_a_dump_from_a_file_that_was_cut_short_is_refused(clock: VirtualClock) -> None:
    with pytest.raises(ConfigurationError, match=r"dumped\['format'\] must be 1, got None"):
        make(clock).restore({})
