"""Advice says what other sizes would have done, and the memory of peaks foretells what it has seen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.pool.sizing import (
    EPISODE,
    EPISODES,
    EVIDENCE,
    FADING,
    Ended,
    PeakMemory,
    UsageRecord,
    Use,
    advise,
    demand_at,
    replay,
)


def served(asks: list[tuple[float, float]], size: int) -> list[Use]:
    """Serve callers (when, how long) in order, slowly and obviously."""
    free_at = [0.0] * size
    uses = []
    for asked, hold in sorted(asks):
        first = min(range(size), key=free_at.__getitem__)
        lent = max(asked, free_at[first])
        free_at[first] = lent + hold
        uses.append((asked, lent, lent + hold))
    return uses


asks = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=60)


def traffic(rate: float, hold: float, count: int, seed: int = 1) -> list[tuple[float, float]]:
    rng, now, made = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        made.append((now, hold * rng.uniform(0.5, 1.5)))
    return made


# --- replay ---


@given(asks, st.integers(1, 8), st.integers(1, 8))
def test_a_replay_is_what_would_have_been(asked: list[tuple[float, float]], size: int, other: int) -> None:
    would = served(asked, other)
    found = replay(served(asked, size), other)
    # Callers who come at one moment may be served in any order.
    assert found.seconds == pytest.approx(sum(lent - came for came, lent, _ in would), abs=1e-6) or len(
        {came for came, _ in asked}
    ) < len(asked)
    assert found.size == other


@given(asks, st.integers(1, 10))
def test_more_connections_never_wait_longer(asked: list[tuple[float, float]], size: int) -> None:
    uses = served(asked, 3)
    fewer, more = replay(uses, size), replay(uses, size + 1)
    assert more.seconds <= fewer.seconds
    assert replay(uses, len(uses)).waited == 0


@given(asks)
def test_demand_is_between_one_and_all(asked: list[tuple[float, float]]) -> None:
    uses = served(asked, 2)
    assert 0 <= demand_at(uses, 0.5) <= demand_at(uses, 0.99) <= demand_at(uses, 1.0) <= len(uses)
    assert replay(uses, max(1, demand_at(uses, 1.0))).waited == 0


def test_demand_counts_what_would_have_been_in_use_if_nobody_had_waited() -> None:
    uses = served([(0, 10), (0, 10), (0, 10), (90, 10)], 1)
    assert demand_at(uses, 1.0) == 3
    assert demand_at(uses, 0.5) == 0  # 80 of 100 seconds nobody wanted one


# --- advice ---


def test_a_pool_that_is_too_small_is_told_the_size_that_cuts_waits_by_90_percent() -> None:
    uses = served(traffic(rate=100.0, hold=0.1, count=1_500), 10)
    advice = advise(uses, 10)
    assert advice.demand == pytest.approx(10, rel=0.2)
    assert advice.recommended is not None
    assert advice.recommended > 10
    assert advice.waits_cut >= 0.9
    assert replay(uses, advice.recommended - 1).seconds > 0.1 * replay(uses, 10).seconds
    assert f"size {advice.recommended} would have cut waits by 9" in str(advice)


def test_a_pool_that_is_too_large_is_told_the_size_that_would_have_done() -> None:
    uses = served(traffic(rate=100.0, hold=0.02, count=1_500), 50)
    advice = advise(uses, 50)
    assert advice.waits_cut == 0
    assert advice.recommended is not None
    assert 3 <= advice.recommended <= 10
    assert replay(uses, advice.recommended).waited <= 15
    assert replay(uses, advice.recommended - 1).waited > 15
    assert str(advice).endswith(f"size {advice.recommended} would have done")


def test_a_pool_of_the_right_size_is_told_so() -> None:
    uses = served([(at / 10, 0.05) for at in range(EVIDENCE)], 1)
    advice = advise(uses, 1)
    assert advice.recommended == 1
    assert str(advice).endswith("the size is right")


def test_numbers_are_what_they_say() -> None:
    uses = served([(float(at), 2.0) for at in range(EVIDENCE)], 1)
    advice = advise(uses, 1)
    assert advice.span == 2.0 * EVIDENCE
    assert advice.arrival_rate == 0.5
    assert (advice.hold, advice.demand, advice.utilisation) == (2.0, 1.0, 1.0)
    assert advice.wait_share == 1 - 1 / EVIDENCE
    assert advice.wait == pytest.approx(EVIDENCE / 2)


@given(asks, st.integers(1, 20))
def test_without_evidence_nothing_is_recommended(asked: list[tuple[float, float]], size: int) -> None:
    advice = advise(served(asked, size), size)
    assert advice.recommended is None
    assert "say nothing yet" in str(advice)


def test_nothing_at_all_is_no_error() -> None:
    advice = advise([], 5)
    assert (advice.borrowings, advice.demand, advice.wait_share, advice.recommended) == (0, 0.0, 0.0, None)


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(1, 200), st.floats(0.001, 0.5))
def test_what_is_recommended_is_enough_and_one_less_is_not(seed: int, size: int, rate: float, hold: float) -> None:
    uses = served(traffic(rate, hold, 150, seed), size)
    advice = advise(uses, size)
    assert advice.recommended is not None
    now, best = replay(uses, size), replay(uses, advice.recommended)
    if advice.waits_cut:
        assert best.seconds <= 0.1 * now.seconds + 1e-9
        assert replay(uses, advice.recommended - 1).seconds > 0.1 * now.seconds
    else:
        assert best.waited <= 1
        assert advice.recommended == 1 or replay(uses, advice.recommended - 1).waited > 1


def test_the_record_is_bounded_and_keeps_the_latest() -> None:
    record = UsageRecord()
    for at in range(10 * EPISODE):
        if at >= record.opens_at:
            record.note(at, at, at + 1.0)
    assert len(record.uses) == EPISODES * EPISODE
    assert [use[0] for use in record.uses] == list(range(EPISODES * EPISODE))  # one each second: nothing was left out


def test_a_busy_pool_keeps_episodes_and_what_lies_between_them_counts_for_nothing() -> None:
    record = UsageRecord()
    noted = 0
    for number in range(1_000_000):
        at = number / 10_000
        if at >= record.opens_at:
            record.note(at, at, at + 0.001)
            noted += 1
    assert noted == 10 * EPISODE  # one each ten seconds
    uses = record.uses
    assert len(uses) == EPISODES * EPISODE
    assert advise(uses, 10).arrival_rate == pytest.approx(10_000, rel=0.1)
    assert advise(uses, 10).demand == pytest.approx(10, rel=0.1)


def test_what_has_just_begun_counts_only_if_there_is_nothing_else() -> None:
    record = UsageRecord()
    record.note(7.0, 8.0, 9.0)
    assert record.uses == [(0.0, 1.0, 2.0)]
    for at in range(EPISODE):
        record.note(at + 10, at + 10, at + 11)
    assert len(record.uses) == EPISODE


# --- prewarming ---


def test_a_peak_is_expected_again_and_fades() -> None:
    memory = PeakMemory(0.0, 100, width=60.0)
    assert memory.predicted == 0
    memory.note(3)
    memory.note(10)
    memory.note(4)
    assert memory.turn(59.0) is None
    assert memory.turn(60.0) == Ended(predicted=0, actual=10)
    assert memory.predicted == 10
    assert memory.turn(120.0) == Ended(predicted=10, actual=0)
    assert memory.predicted == round(10 * FADING)
    for minute in range(3, 40):
        memory.turn(60.0 * minute)
    assert memory.predicted == 0


def test_yesterdays_peak_is_expected_at_the_same_time_today() -> None:
    memory = PeakMemory(0.0, 100, width=60.0, day=3_600.0)
    at = 20 * 60.0
    memory.turn(at)
    memory.note(8)
    for minute in range(21, 80):
        memory.turn(60.0 * minute)
    assert memory.predicted == 0
    memory.turn(at + 3_600.0)
    assert memory.predicted == 8
    memory.turn(at + 3_660.0)
    assert memory.predicted == 0


def test_a_season_shorter_than_a_day_is_foretold_once_it_can_be_trusted() -> None:
    memory = PeakMemory(0.0, 100, width=1.0)
    foretold = {}
    for second in range(130):
        memory.turn(float(second))
        foretold[second] = memory.predicted
        memory.note(20 if second % 30 == 28 else 0)
    assert (foretold[29], foretold[57], foretold[58]) == (20, 0, 0)  # seen once: remembered, and forgotten
    assert [foretold[second] for second in (117, 118, 119)] == [0, 20, 20]
    assert memory.outlook().season is not None


def test_no_more_is_foretold_than_allowed() -> None:
    memory = PeakMemory(0.0, 5)
    memory.note(1_000)
    memory.turn(60.0)
    assert memory.predicted == 5


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.floats(0, 5_000), st.integers(0, 100)), max_size=80),
)
def test_a_memory_is_bounded_and_never_foretells_what_it_has_not_seen(
    most: int, happened: list[tuple[float, int]]
) -> None:
    memory, now, highest = PeakMemory(0.0, most, width=60.0, day=3_600.0), 0.0, 0
    for later, demand in happened:
        now += later
        memory.turn(now)
        memory.note(demand)
        highest = max(highest, demand)
        assert 0 <= memory.predicted <= most
        assert memory.ends_at > now
        assert len(memory._of_day) == 60
        assert len(memory._latest) <= 168


def test_a_long_silence_is_cheap_and_forgets() -> None:
    memory = PeakMemory(0.0, 100)
    memory.note(50)
    memory.turn(1e9)
    assert memory.predicted == 0
    assert len(memory._latest) <= 168
