import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.cli.demo.ledger import LAST, Call, Ledger, Outcome, duration, percentile
from resilience.cli.demo.script import DEAD

FAILING = 2


def call(outcome: Outcome, *, due: float = 0.0, took: float = 0.01, phase: int = 0) -> Call:
    return Call(0, phase, due, due + took, outcome, "timed out" if outcome is Outcome.FAILED else "")


def ledger_of(*calls: Call) -> Ledger:
    ledger = Ledger()
    for one in calls:
        ledger.record(one)
    return ledger


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.integers(0, LAST))))
def test_every_recorded_call_is_counted_under_exactly_one_outcome(ended: list[tuple[Outcome, int]]) -> None:
    ledger = ledger_of(*(call(outcome, phase=phase) for outcome, phase in ended))
    assert sum(ledger.count(outcome) for outcome in Outcome) == len(ended) == len(ledger.calls)
    assert ledger.answered == ledger.count(Outcome.IN_TIME) + ledger.count(Outcome.LATE)


def test_only_failures_count_as_time_lost() -> None:
    ledger = ledger_of(
        call(Outcome.FAILED, took=2.0, phase=FAILING),
        call(Outcome.FAILED, took=0.5, phase=DEAD),
        call(Outcome.LATE, took=1.5, phase=FAILING),
        call(Outcome.REJECTED, took=0.1, phase=FAILING),
    )
    assert ledger.seconds_lost() == pytest.approx(2.5)
    assert ledger.seconds_lost((FAILING,)) == pytest.approx(2.0)
    assert ledger.reasons == {"timed out": 2}


def test_rejected_and_dropped_requests_are_not_calls_to_the_service() -> None:
    ledger = ledger_of(*(call(outcome, phase=DEAD) for outcome in Outcome), call(Outcome.FAILED, phase=0))
    assert ledger.sent_while_dead == 3
    assert ledger.sent_while_sick == 3


def test_a_response_counts_from_when_the_request_was_due() -> None:
    assert Call(0, 0, intended=2.0, ended=2.75, outcome=Outcome.IN_TIME).response == pytest.approx(0.75)


def test_recovery_ends_with_the_last_request_that_was_not_answered() -> None:
    ledger = ledger_of(
        call(Outcome.FAILED, due=9.0),
        call(Outcome.REJECTED, due=10.2),
        call(Outcome.IN_TIME, due=10.3),
        call(Outcome.REJECTED, due=10.4),
        call(Outcome.IN_TIME, due=10.5),
    )
    assert ledger.recovered_after(10.0) == pytest.approx(0.4)


def test_a_client_that_is_answered_from_the_first_request_on_recovers_at_once() -> None:
    assert ledger_of(call(Outcome.FAILED, due=9.0), call(Outcome.IN_TIME, due=10.1)).recovered_after(10.0) == 0


@pytest.mark.parametrize("calls", [(), (call(Outcome.IN_TIME, due=10.1), call(Outcome.REJECTED, due=10.2))])
def test_a_recovery_that_was_not_seen_is_not_claimed(calls: tuple[Call, ...]) -> None:
    assert ledger_of(*calls).recovered_after(10.0) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found is not None
    needed = math.ceil(share * len(values))
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed


def test_a_percentile_of_nothing_is_none() -> None:
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (0.0004, "400 us"), (0.0042, "4.2 ms"), (0.25, "250 ms"), (2.0, "2 s"), (12.345, "12.3 s")],
)
def test_durations_are_told_in_the_unit_people_read_best(seconds: float, told: str) -> None:
    assert duration(seconds) == told
