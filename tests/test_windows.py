"""Windows against a list of all outcomes, counted again each time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import ConfigurationError, CountWindow, TimeWindow
from resilience.windows import FAILED, GONE, SLOW, SUCCEEDED, CountRing, TimeBuckets

OUTCOMES = [SUCCEEDED, FAILED, SUCCEEDED | SLOW, FAILED | SLOW]

outcomes = st.sampled_from(OUTCOMES)
amendments = st.tuples(st.integers(0, 50), st.sampled_from([GONE, *OUTCOMES]))
moves = st.lists(st.one_of(outcomes, amendments), max_size=80)


def totals(counted: list[int]) -> tuple[int, int, int]:
    kept = [outcome for outcome in counted if outcome != GONE]
    return len(kept), sum(one & FAILED == FAILED for one in kept), sum(bool(one & SLOW) for one in kept)


@given(size=st.integers(1, 12), story=moves)
@settings(deadline=None)
def test_a_ring_holds_the_last_calls(size: int, story: list[Any]) -> None:
    ring = CountRing(size)
    told: list[int] = []
    for move in story:
        if isinstance(move, int):
            assert ring.add(move, 0.0) == len(told)
            told.append(move)
        elif told:
            which, after = move[0] % len(told), move[1]
            if told[which] == GONE:
                continue  # taken back before; a call is amended once
            ring.amend(which, told[which], after, 0.0)
            told[which] = after
        assert (ring.calls, ring.failures, ring.slow) == totals(told[-size:])
        assert ring.is_saturated() == (told[-size:] == [SUCCEEDED] * size)


@given(
    buckets=st.integers(1, 5),
    width=st.sampled_from([0.25, 1.0, 4.0]),
    start=st.integers(0, 10),
    story=st.lists(st.tuples(st.integers(0, 12), st.one_of(outcomes, amendments)), max_size=60),
)
@settings(deadline=None)
def test_buckets_hold_what_is_recent(buckets: int, width: float, start: int, story: list[Any]) -> None:
    # Times are quarters of a bucket's width, so that most of them fall exactly on an edge.
    now = start * width / 4
    window = TimeBuckets(width, buckets, now)
    told: list[list[Any]] = []
    for wait, move in story:
        now += wait * width / 4
        if isinstance(move, int):
            ticket = window.add(move, now)
            told.append([math.floor(now / width), move, ticket])
        elif told:
            one = told[move[0] % len(told)]
            if one[1] == GONE:
                continue
            window.amend(one[2], one[1], move[1], now)
            one[1] = move[1]
        else:
            window.advance(now)
        current = math.floor(now / width)
        assert (window.calls, window.failures, window.slow) == totals(
            [outcome for bucket, outcome, _ in told if current - bucket < buckets]
        )


def test_buckets_are_aligned_and_leave_one_by_one() -> None:
    window = TimeBuckets(1.0, 4, 0.9)
    seen = []
    for at, calls, failures in ((0.9, 50, 40), (1.0, 10, 0), (2.5, 20, 20), (3.1, 25, 20), (5.4, 8, 0), (7.3, 5, 5)):
        for number in range(calls):
            window.add(FAILED if number < failures else SUCCEEDED, at)
        seen.append((window.calls, window.calls - window.failures))
    window.advance(22.5)
    seen.append((window.calls, window.calls - window.failures))
    assert seen == [(50, 10), (60, 20), (80, 20), (105, 25), (53, 13), (13, 8), (0, 0)]


def test_a_thread_that_read_its_clock_first_and_came_second_counts_as_now() -> None:
    window = TimeBuckets(1.0, 2, 0.0)
    window.add(SUCCEEDED, 5.0)
    window.add(FAILED, 4.0)
    assert (window.calls, window.failures) == (2, 1)
    window.advance(6.5)
    assert (window.calls, window.failures) == (2, 1)
    window.advance(7.0)
    assert (window.calls, window.failures) == (0, 0)


def test_a_gap_of_ages_costs_no_more_than_the_window() -> None:
    window = TimeBuckets(0.001, 10, 0.0)
    window.add(FAILED, 0.0)
    window.advance(1e12)  # 10^15 buckets later
    assert (window.calls, window.failures) == (0, 0)


def test_clocks_that_start_high_lose_nothing() -> None:
    window = TimeBuckets(0.1, 10, 1.8e9)
    for number in range(10):
        window.add(SUCCEEDED, 1.8e9 + number * 0.05)
    assert window.calls == 10


@pytest.mark.parametrize("calls", [0, -1, 1.5, True, "10", None, 1_000_001, math.nan])
def test_a_count_window_refuses_what_is_no_size(calls: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"CountWindow\.calls must be .*got"):
        CountWindow(calls)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, True, "10", None])
def test_a_time_window_refuses_what_is_no_duration(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"TimeWindow\.seconds must be .*got"):
        TimeWindow(seconds)


@pytest.mark.parametrize("buckets", [0, -1, 2.0, True, "10", None, 10_001])
def test_a_time_window_refuses_what_is_no_number_of_buckets(buckets: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"TimeWindow\.buckets must be .*got"):
        TimeWindow(10, buckets)


def test_windows_are_values() -> None:
    assert CountWindow(5) == CountWindow(5) != CountWindow(6)
    assert TimeWindow(5) == TimeWindow(5.0, buckets=10)
    assert len({CountWindow(5), CountWindow(5), TimeWindow(5)}) == 2
