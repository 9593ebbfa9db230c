"""The state machine, scenario by scenario: what opens, probes, closes, and what may not."""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitOpenError, CircuitState, CountWindow, TimeWindow
from resilience.breaker.core import TRANSITIONS, Trigger

BenchMaker = Any


# --- opening ---


def test_the_call_that_reaches_the_threshold_opens_and_not_the_one_before(bench: BenchMaker) -> None:
    b = bench(window=TimeWindow(20), minimum_calls=5)
    assert b.play("@0 S @1 S @2 S @3 F @4 F") == "closed"
    assert b.counts() == (5, 2, 0)
    assert b.play("@5 F") == "open"
    assert b.breaker.snapshot().failure_rate == 3 / 6


def test_a_success_may_open_when_it_completes_the_minimum(bench: BenchMaker) -> None:
    b = bench(minimum_calls=5)
    assert b.play("F F F S") == "closed"
    assert b.play("S") == "open"


def test_slow_calls_open_whether_they_fail_or_not(bench: BenchMaker) -> None:
    b = bench(
        window=TimeWindow(20),
        minimum_calls=5,
        slow_call_duration=4.0,
        slow_call_rate_threshold=0.5,
    )
    assert b.play("5F 5S 0.1F 0.1S") == "closed"
    assert b.play("5S") == "open"
    snapshot = b.breaker.snapshot()
    assert (snapshot.slow_call_rate, snapshot.failures) == (0.6, 2)


def test_exactly_the_slow_duration_is_slow(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, slow_call_duration=2.0)
    assert b.play("1.999S") == "closed"
    b.breaker.reset()
    assert b.play("2S") == "open"


def test_rates_are_unknown_below_the_minimum(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(10), minimum_calls=10, failure_rate_threshold=1.0)
    b.play("S S F F")
    snapshot = b.breaker.snapshot()
    assert (snapshot.calls, snapshot.failures, snapshot.failure_rate, snapshot.slow_call_rate) == (4, 2, None, None)


def test_a_count_window_slides_call_by_call(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(10), minimum_calls=10, failure_rate_threshold=0.9)
    b.play("S S F F")
    b.play("F F F F S S S S")
    assert b.breaker.snapshot().failure_rate == 0.6
    b.play("S S S")
    assert b.breaker.snapshot().failure_rate == 0.3


def test_a_time_window_forgets_on_reading_too(bench: BenchMaker) -> None:
    b = bench(window=TimeWindow(5, buckets=5), slow_call_duration=0.05)
    b.play("@0 F @0.1 S @0.7 0.1F")
    b.at(4.8)
    assert b.counts() == (3, 2, 1)
    b.at(5.8)
    assert b.counts() == (0, 0, 0)
    b.play("@5.9 S")
    assert b.counts()[0] == 1
    b.play("@10.9 S")
    assert b.counts()[0] == 1


def test_old_failures_are_gone_after_an_idle_hour(bench: BenchMaker) -> None:
    b = bench(window=TimeWindow(10), minimum_calls=2)
    b.play("F @3600 F")
    assert b.counts() == (1, 1, 0)
    assert b.state == "closed"


def test_a_steady_trickle_of_failures_below_the_threshold_never_opens(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(10), minimum_calls=10)
    assert b.play("S S S S S S F F F F " * 20) == "closed"


# --- open ---


def test_open_refuses_until_exactly_its_time_and_then_probes(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0)
    b.play("F @3 R")
    b.at(3)
    with pytest.raises(CircuitOpenError) as refused:
        b.breaker.acquire()
    assert refused.value.retry_after == 2.0
    b.at(5)
    permit = b.breaker.acquire()
    assert b.state == "half_open"
    permit.release()


def test_retry_after_is_exact(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0)
    b.play("F @0.001")
    assert b.breaker.snapshot().retry_after == 4.999


def test_open_turns_half_open_by_a_call_and_not_by_itself_or_by_looking(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0)
    b.play("F @100")
    assert b.breaker.would_allow()
    assert b.breaker.snapshot().retry_after == 0.0
    assert b.state == "open"


@pytest.mark.parametrize("seed", range(20))
def test_who_waits_exactly_retry_after_is_admitted_whatever_the_rounding(bench: BenchMaker, seed: int) -> None:
    rng = random.Random(seed)
    b = bench(minimum_calls=1, open_duration=rng.uniform(0.001, 100), open_backoff=1.0)
    b.clock.advance(rng.uniform(0, 1e6))
    b.play("F")
    b.clock.advance(rng.uniform(0, b.breaker.snapshot().retry_after))
    while b.state == "open":
        retry_after = b.breaker.snapshot().retry_after
        if retry_after == 0:
            break
        with pytest.raises(CircuitOpenError):
            b.breaker.acquire()
        b.clock.advance(retry_after)
        b.breaker.acquire().release()
    assert b.state == "half_open"


def test_zero_open_time_probes_at_once(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=0.0)
    b.play("F")
    assert b.state == "open"
    b.breaker.acquire()
    assert b.state == "half_open"


def test_open_time_grows_with_each_reopening_and_starts_over_after_a_close(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0, half_open_calls=1, max_open_duration=20.0)
    b.breaker.trip()
    b.play("@3 R @6 F")  # the probe fails
    assert b.breaker.snapshot().retry_after == 7.5
    b.play("@12 R @17 F")
    assert b.breaker.snapshot().retry_after == 11.25
    b.play("@28.25 F")
    assert b.breaker.snapshot().retry_after == 16.875
    b.play("@50 F")
    assert b.breaker.snapshot().retry_after == 20.0  # the cap
    assert b.breaker.snapshot().reopen_attempt == 4
    assert b.play("@70 S") == "closed"
    assert b.breaker.snapshot().reopen_attempt == 0
    b.play("F")
    assert b.breaker.snapshot().retry_after == 5.0


def test_a_thousand_reopenings_do_not_overflow(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=1.0, half_open_calls=1, open_backoff=1e9)
    b.play("F")
    for _ in range(1100):
        b.clock.advance(300)
        b.play("F")
    assert b.breaker.snapshot().retry_after == 300.0


def test_zero_base_stays_zero_however_often_it_reopens(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=0.0, half_open_calls=1, open_backoff=1e300)
    b.play("F F F F")
    assert b.breaker.snapshot().retry_after == 0.0


def test_jitter_is_drawn_once_upward_and_within_its_share(clock: Any) -> None:
    seen = set()
    for seed in range(50):
        breaker = CircuitBreaker(
            "jittered",
            clock=clock,
            rng=random.Random(seed),
            open_duration=10.0,
            open_jitter=0.5,
        )
        breaker.trip()
        first = breaker.snapshot().retry_after
        assert first is not None
        assert 10.0 <= first <= 15.0
        assert {breaker.snapshot().retry_after for _ in range(10)} == {first}
        seen.add(first)
    assert len(seen) > 40


def test_jitter_never_passes_the_cap(clock: Any) -> None:
    breaker = CircuitBreaker(
        "capped",
        clock=clock,
        rng=random.Random(1),
        open_duration=10.0,
        open_jitter=1.0,
        max_open_duration=10.0,
    )
    breaker.trip()
    assert breaker.snapshot().retry_after == 10.0


def test_late_failures_do_not_extend_the_open_time(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0)
    late = [b.breaker.acquire() for _ in range(3)]
    b.play("F @4")
    for permit in late:
        b.end(permit, "F")
    snapshot = b.breaker.snapshot()
    assert (snapshot.retry_after, snapshot.late) == (1.0, 3)
    assert (snapshot.calls, snapshot.failures) == (1, 1)


# --- half-open ---


def half_open(bench: BenchMaker, **config: Any) -> Any:
    b = bench(minimum_calls=1, open_duration=5.0, **config)
    b.play("F @5")
    return b


def test_reopens_as_soon_as_failure_is_certain(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=4)
    assert b.play("F") == "half_open"
    assert b.play("F") == "open"


def test_stays_half_open_while_one_more_failure_would_reopen(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=4)
    assert b.play("F S S") == "half_open"
    assert b.play("S") == "closed"
    b.play("S")
    assert b.counts() == (1, 0, 0)  # a fresh window


def test_closes_on_exactly_the_deciding_result(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=10, failure_rate_threshold=0.4)
    assert b.play("F F F S S S S S S") == "half_open"
    assert b.play("S") == "closed"


def test_closes_early_once_no_result_could_reopen(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=10)
    assert b.play("S S S S S") == "half_open"
    assert b.play("S") == "closed"


def test_opens_on_exactly_the_deciding_failure(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=10, failure_rate_threshold=0.4)
    assert b.play("F F F") == "half_open"
    assert b.play("F") == "open"


def test_thresholds_that_floats_cannot_hold_are_compared_as_shares(bench: BenchMaker) -> None:
    # 0.7 * 10 is more than 7 in floats, but 7 of 10 are 0.7
    b = half_open(bench, half_open_calls=10, failure_rate_threshold=0.7)
    assert b.play("F F F F F F") == "half_open"
    assert b.play("F") == "open"


def test_minimum_calls_does_not_count_in_half_open(bench: BenchMaker) -> None:
    b = bench(minimum_calls=10, half_open_calls=1, open_duration=1.0)
    b.breaker.trip()
    assert b.play("@1 S") == "closed"


def test_ignored_results_give_their_place_back(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=4)
    assert b.play("S S X X X X F") == "half_open"
    assert b.play("S") == "closed"


def test_probes_beyond_the_round_are_refused(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=3, failure_rate_threshold=0.3)
    b.play("X X X X S S")
    third = b.breaker.acquire()
    b.play("R")
    third.success()
    assert b.state == "closed"


def test_probes_in_flight_are_limited(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=3, half_open_concurrency=1)
    first = b.breaker.acquire()
    b.play("R")
    first.success()
    b.breaker.acquire().release()
    assert b.breaker.would_allow()


def test_a_cancelled_quick_probe_says_nothing_and_gives_its_place_back(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=2, slow_call_duration=2.0)
    probe = b.breaker.acquire()
    b.clock.advance(0.1)
    probe.release()
    assert b.counts() == (0, 0, 0)
    assert b.play("S S") == "closed"


def test_a_silent_probe_is_replaced_after_its_lease_and_its_late_result_changes_nothing(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=1, probe_lease=1.0)
    silent = b.breaker.acquire()
    b.at(5.25)
    with pytest.raises(CircuitOpenError) as refused:
        b.breaker.acquire()
    assert (refused.value.retry_after, refused.value.state) == (0.75, CircuitState.HALF_OPEN)
    b.at(6)
    fresh = b.breaker.acquire()
    silent.success()
    assert b.state == "half_open"
    assert b.breaker.snapshot().late == 1
    fresh.success()
    assert b.state == "closed"


def test_a_probe_past_its_lease_still_counts_while_nobody_took_its_place(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=1, probe_lease=1.0)
    silent = b.breaker.acquire()
    b.at(60)
    silent.success()
    assert b.state == "closed"
    assert b.breaker.snapshot().late == 0


def test_a_replaced_probe_that_is_released_is_no_late_result(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=1, probe_lease=1.0)
    silent = b.breaker.acquire()
    b.at(6)
    b.breaker.acquire()
    silent.release()
    assert b.breaker.snapshot().late == 0


def test_steady_traffic_on_hanging_probes_is_never_locked_out(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=2, probe_lease=2.0)
    admitted = 0
    for _ in range(100):
        b.clock.advance(0.1)
        if b.breaker.would_allow():
            b.breaker.acquire()  # hangs for ever
            admitted += 1
    assert admitted == 10  # two at once, two after each lease


def test_late_results_of_the_closed_era_decide_nothing_in_half_open(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0, half_open_calls=2)
    early = [b.breaker.acquire() for _ in range(6)]
    b.play("F @5")
    probe = b.breaker.acquire()
    for permit in early[:3]:
        permit.success()
    for permit in early[3:]:
        b.end(permit, "F")
    assert b.state == "half_open"
    assert b.breaker.snapshot().late == 6
    b.play("X")  # and they gave back no place that they never had
    second = b.breaker.acquire()
    b.play("R")
    probe.success()
    second.success()
    assert b.state == "closed"


def test_probes_left_over_after_an_early_verdict_are_late(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=3, failure_rate_threshold=0.3)
    first, second = b.breaker.acquire(), b.breaker.acquire()
    b.end(first, "F")
    assert b.state == "open"
    second.success()
    assert b.breaker.snapshot().late == 1
    assert b.state == "open"


# --- in-flight slowness ---


def test_hanging_calls_open_the_circuit_while_they_still_hang(bench: BenchMaker) -> None:
    b = bench(minimum_calls=3, slow_call_duration=2.0)
    hanging = [b.breaker.acquire() for _ in range(3)]
    b.at(1.999)
    assert b.breaker.would_allow()
    b.at(2)
    assert not b.breaker.would_allow()
    assert b.state == "closed"  # asking changed nothing
    b.play("R")  # the very admission that sees them is judged by them
    assert b.state == "open"
    for permit in hanging:
        permit.success()
    assert b.breaker.snapshot().late == 3


def test_a_snapshot_sees_what_is_overdue(bench: BenchMaker) -> None:
    b = bench(minimum_calls=2, slow_call_duration=2.0)
    b.breaker.acquire()
    b.breaker.acquire()
    b.at(3)
    assert b.breaker.snapshot().state is CircuitState.OPEN


def test_an_overdue_call_is_counted_once_and_failed_when_it_fails(bench: BenchMaker) -> None:
    b = bench(minimum_calls=2, slow_call_duration=2.0, failure_rate_threshold=1.0)
    hanging = b.breaker.acquire()
    b.play("S @2")
    assert b.counts() == (2, 0, 1)
    b.end(hanging, "F")
    assert b.counts() == (2, 1, 1)


def test_an_overdue_call_that_succeeds_stays_slow(bench: BenchMaker) -> None:
    b = bench(minimum_calls=10, slow_call_duration=2.0)
    hanging = b.breaker.acquire()
    b.at(2)
    assert b.counts() == (1, 0, 1)
    hanging.success()
    assert b.counts() == (1, 0, 1)


@pytest.mark.parametrize("ending", ["release", "ignored"])
def test_an_overdue_call_that_ends_neutral_is_taken_back(bench: BenchMaker, ending: str) -> None:
    b = bench(minimum_calls=10, slow_call_duration=2.0)
    hanging = b.breaker.acquire()
    b.at(2)
    assert b.counts() == (1, 0, 1)
    if ending == "release":
        hanging.release()
    else:
        b.end(hanging, "X")
    assert b.counts() == (0, 0, 0)


def test_an_overdue_call_whose_place_in_the_ring_is_gone_changes_nothing(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(3), minimum_calls=3, slow_call_duration=2.0, failure_rate_threshold=1.0)
    hanging = b.breaker.acquire()
    b.at(2)
    b.play("S S S")
    assert b.counts() == (3, 0, 0)
    b.end(hanging, "F")
    assert b.counts() == (3, 0, 0)


def test_an_overdue_call_whose_bucket_is_gone_changes_nothing(bench: BenchMaker) -> None:
    b = bench(window=TimeWindow(10), slow_call_duration=2.0)
    hanging = b.breaker.acquire()
    b.at(2)
    assert b.counts() == (1, 0, 1)
    b.at(30)
    b.play("S")
    b.end(hanging, "F")
    assert b.counts() == (1, 0, 0)


def test_overdue_calls_are_seen_in_the_order_of_their_starts(bench: BenchMaker) -> None:
    b = bench(minimum_calls=10, slow_call_duration=2.0)
    permits = []
    for _ in range(5):
        permits.append(b.breaker.acquire())
        b.clock.advance(1)
    assert b.counts() == (4, 0, 4)  # started at 0, 1, 2, 3; now it is 5
    permits[4].success()
    assert b.counts() == (5, 0, 4)


def test_reset_forgets_overdue_calls_that_were_counted_already(bench: BenchMaker) -> None:
    b = bench(minimum_calls=10, slow_call_duration=2.0)
    hanging = b.breaker.acquire()
    b.at(2)
    assert b.counts() == (1, 0, 1)
    b.breaker.reset()
    assert b.counts() == (0, 0, 0)
    b.end(hanging, "F")
    assert b.counts() == (0, 0, 0)
    assert b.breaker.snapshot().in_flight == 0


def test_a_hanging_probe_reopens_within_the_slow_duration(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=1, slow_call_duration=2.0)
    b.breaker.acquire()
    b.at(7)
    b.play("R")
    assert b.state == "open"


def test_an_overdue_probe_may_still_fail_so_closing_waits_for_it(bench: BenchMaker) -> None:
    b = half_open(
        bench,
        half_open_calls=2,
        failure_rate_threshold=0.5,
        slow_call_duration=2.0,
        slow_call_rate_threshold=1.0,
    )
    overdue = b.breaker.acquire()
    b.at(7)
    b.play("S")
    assert b.state == "half_open"
    assert b.counts() == (2, 0, 1)
    b.play("R")
    overdue.success()
    assert b.state == "closed"


def test_an_overdue_probe_that_loses_its_lease_stays_slow_and_decides(bench: BenchMaker) -> None:
    b = half_open(
        bench,
        half_open_calls=2,
        slow_call_duration=2.0,
        slow_call_rate_threshold=1.0,
        probe_lease=10.0,
    )
    b.breaker.acquire()
    b.at(7)
    b.play("S")
    assert b.breaker.snapshot().retry_after == 8.0
    b.at(15)
    assert b.breaker.would_allow()
    b.breaker.acquire()
    assert b.state == "closed"


def test_retry_after_of_a_full_round_is_the_lease_that_really_frees_a_place(bench: BenchMaker) -> None:
    b = half_open(bench, half_open_calls=3, slow_call_duration=3.0, probe_lease=4.0)
    b.breaker.acquire()  # overdue from 8 on: its result is in, so the end of its lease frees no place in the round
    b.at(8.5)
    b.breaker.acquire()
    b.breaker.acquire()
    assert b.breaker.snapshot().retry_after == 4.0
    b.play("@9 R")
    b.at(10)
    assert b.breaker.snapshot().retry_after == 2.5


# --- the other states ---


def test_metrics_only_counts_and_never_moves(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(5), minimum_calls=5, initial_state=CircuitState.METRICS_ONLY)
    assert b.play("F F F S S F") == "metrics_only"
    assert b.counts() == (5, 3, 0)
    assert b.breaker.would_allow()


def test_disabled_admits_and_counts_nothing(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1)
    b.breaker.disable()
    assert b.play("F F F F F") == "disabled"
    assert b.counts() == (0, 0, 0)
    assert b.breaker.snapshot().in_flight == 0


def test_forced_open_refuses_for_ever_and_names_no_time(bench: BenchMaker) -> None:
    b = bench(open_duration=5.0)
    b.breaker.force_open()
    b.play("R @6 R @1000000 R")
    snapshot = b.breaker.snapshot()
    assert (snapshot.rejected, snapshot.retry_after, snapshot.state) == (3, None, CircuitState.FORCED_OPEN)
    assert not b.breaker.would_allow()


@pytest.mark.parametrize("state", list(CircuitState))
def test_every_order_works_in_every_state(bench: BenchMaker, state: CircuitState) -> None:
    for trigger, target in (
        ("trip", CircuitState.OPEN),
        ("force_open", CircuitState.FORCED_OPEN),
        ("disable", CircuitState.DISABLED),
        ("metrics_only", CircuitState.METRICS_ONLY),
        ("reset", CircuitState.CLOSED),
    ):
        b = bench(initial_state=state)
        getattr(b.breaker, trigger)()
        assert b.breaker.state is target
        assert TRANSITIONS[state, Trigger(trigger)] is target


@pytest.mark.parametrize("state", list(CircuitState))
def test_a_breaker_may_begin_in_any_state(bench: BenchMaker, state: CircuitState) -> None:
    b = bench(initial_state=state, open_duration=5.0)
    assert b.breaker.state is state
    assert b.breaker.would_allow() is (state not in {CircuitState.OPEN, CircuitState.FORCED_OPEN})
    assert b.breaker.snapshot().era == 1


def test_trip_in_open_starts_the_time_anew(bench: BenchMaker) -> None:
    b = bench(open_duration=5.0)
    b.breaker.trip()
    b.at(4)
    b.breaker.trip()
    assert b.breaker.snapshot().retry_after == 5.0
    assert b.breaker.snapshot().reopen_attempt == 0
    assert b.breaker.snapshot().era == 2


def test_trip_in_half_open_counts_as_a_reopening(bench: BenchMaker) -> None:
    b = half_open(bench)
    b.breaker.acquire()
    b.breaker.trip()
    assert b.breaker.snapshot().reopen_attempt == 1
    assert b.breaker.snapshot().retry_after == 7.5


def test_reset_in_closed_empties_the_window(bench: BenchMaker) -> None:
    b = bench(minimum_calls=3)
    b.play("F F")
    b.breaker.reset()
    assert b.play("F F") == "closed"
    assert b.counts() == (2, 2, 0)


def test_reset_after_a_full_window_of_successes_counts_from_nothing(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(5), minimum_calls=5)
    guarded = b.breaker(lambda: None)
    for _ in range(9):
        guarded()
    assert b.counts() == (5, 0, 0)
    b.breaker.reset()
    guarded()
    assert b.counts() == (1, 0, 0)


def test_a_window_full_of_successes_takes_the_next_failure_at_once(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(4), minimum_calls=1, failure_rate_threshold=0.5)
    outcomes = iter("SSSSSSSSFSSSSFF")

    def flaky() -> None:
        if next(outcomes) == "F":
            raise ConnectionError

    guarded = b.breaker(flaky)
    failures = []
    for _ in range(13):
        with contextlib.suppress(OSError):
            guarded()
        failures.append(b.counts()[:2])
    assert failures == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (4, 0),
        (4, 0),
        (4, 0),
        (4, 0),
        (4, 1),
        (4, 1),
        (4, 1),
        (4, 1),
        (4, 0),
    ]
    for _ in range(2):
        with pytest.raises(ConnectionError):
            guarded()
    assert b.state == "open"


def test_the_open_snapshot_shows_what_opened_it(bench: BenchMaker) -> None:
    b = bench(minimum_calls=4, open_duration=5.0, half_open_calls=2)
    b.play("S F F S")
    snapshot = b.breaker.snapshot()
    assert (snapshot.calls, snapshot.failures, snapshot.failure_rate) == (4, 2, 0.5)
    b.play("@5 S")
    assert (b.breaker.snapshot().calls, b.breaker.snapshot().failure_rate) == (1, None)
    b.play("F")
    snapshot = b.breaker.snapshot()
    assert (snapshot.state, snapshot.calls, snapshot.failures) == (CircuitState.OPEN, 2, 1)


def test_numbers_for_life_survive_state_changes(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1, open_duration=5.0, half_open_calls=1)
    forgotten = b.breaker.acquire()
    b.play("F R R @5 S S")
    assert b.breaker.snapshot().rejected == 2
    assert b.breaker.snapshot().in_flight == 1
    forgotten.success()
    assert (b.breaker.snapshot().late, b.breaker.snapshot().in_flight) == (1, 0)


def test_a_step_of_the_wall_clock_moves_nothing(bench: BenchMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(window=TimeWindow(10), minimum_calls=3)
    b.play("F F")
    monkeypatch.setattr("time.time", lambda: -1e9)
    assert b.counts() == (2, 2, 0)
    assert b.play("F") == "open"


def test_the_clock_is_read_a_bounded_number_of_times_for_a_call(clock: Any) -> None:
    reads = 0

    def counted() -> float:
        nonlocal reads
        reads += 1
        return float(clock())

    breaker = CircuitBreaker("thrifty", clock=counted, slow_call_duration=1.0)
    reads = 0
    breaker.call(lambda: None)
    assert reads == 2  # one operation reads the clock once: one admission, one settlement


def test_transitions_lead_from_every_state_back_to_closed() -> None:
    reachable = {CircuitState.CLOSED}
    while True:
        more = {before for (before, _), after in TRANSITIONS.items() if after in reachable} | reachable
        if more == reachable:
            break
        reachable = more
    assert reachable == set(CircuitState)


def test_a_window_so_small_that_one_probe_decides(bench: BenchMaker) -> None:
    b = bench(window=CountWindow(1), minimum_calls=1, half_open_calls=1, open_duration=1.0, open_backoff=1.0)
    assert b.play("F @1 F @2 S F @3 S") == "closed"


def test_infinite_retry_is_never_promised(bench: BenchMaker) -> None:
    b = bench(minimum_calls=1)
    b.play("F")
    retry_after = b.breaker.snapshot().retry_after
    assert retry_after is not None
    assert math.isfinite(retry_after)
