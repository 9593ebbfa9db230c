from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from resilience.cli.demo.tally import ALL_STAGES, GONE, UP, Allowance, Answer, Entered, Left, Tally, decided_alone

SOURCES = ("redis", "fallback", "blocked")


def test_a_limit_allows_its_burst_at_once_and_then_its_rate() -> None:
    allowance = Allowance(rate=10, burst=5)
    assert [allowance.until(seconds) for seconds in (0, 0.05, 0.1, 0.3, 2)] == [5, 5, 6, 8, 25]


@given(st.lists(st.floats(0.001, 1e5), min_size=1, unique=True))
def test_what_is_legal_in_parts_is_legal_in_all(moments: list[float]) -> None:
    allowance = Allowance(rate=40, burst=40)
    edges = [0.0, *sorted(moments)]
    parts = [allowance.between(start, end) for start, end in pairwise(edges)]
    assert sum(parts) == allowance.until(edges[-1])


@given(st.lists(st.tuples(st.sampled_from(ALL_STAGES), st.booleans(), st.sampled_from(SOURCES), st.floats(0, 1))))
def test_every_decision_is_counted_once(ended: list[tuple[int, bool, str, float]]) -> None:
    tally = Tally()
    for stage, allowed, source, waited in ended:
        tally.record(Answer(0.0, stage, waited, allowed, source))
    assert tally.decided() == len(ended) == sum(tally.decided(source) for source in SOURCES)
    assert tally.decided() == sum(tally.decided(stages=(stage,)) for stage in ALL_STAGES)
    assert tally.admitted() == sum(allowed for _, allowed, _, _ in ended)
    assert tally.admitted(stages=(UP,)) == sum(allowed for stage, allowed, _, _ in ended if stage == UP)
    assert tally.longest(stages=(GONE,)) == max((waited for stage, *_, waited in ended if stage == GONE), default=0)


def test_instances_decide_alone_from_the_first_that_begins_to_the_last_that_ends() -> None:
    switches: list[Entered | Left] = [Entered(1.0, "", 2), Entered(1.1, "", 2), Left(2.0, 1.0, 0), Left(3.0, 1.9, 0)]
    assert decided_alone(switches, 4.0) == [(False, 0.0, 1.0), (True, 1.0, 3.0), (False, 3.0, 4.0)]


def test_the_last_stretch_ends_with_the_run() -> None:
    assert decided_alone([], 4.0) == [(False, 0.0, 4.0)]
    assert decided_alone([Entered(4.0, "", 1)], 4.0) == [(False, 0.0, 4.0), (True, 4.0, 4.0)]
