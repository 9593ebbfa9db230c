"""How long pauses are, and what servers may ask for."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import ConfigurationError
from resilience.policies import Backoff
from resilience.policies.backoff import seconds_asked


class Chance(random.Random):
    """Gives the same number always."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize(("drawn", "expected"), [(0, 0.75), (0.4, 0.95), (0.6, 1.05), (1, 1.25)])
def test_a_share_makes_a_pause_shorter_or_longer(drawn: float, expected: float) -> None:
    backoff = Backoff(base=1, curve="constant", jitter=0.25)
    assert [backoff.delay(attempt, Chance(drawn)) for attempt in (1, 2, 9)] == pytest.approx([expected] * 3)


@pytest.mark.parametrize(("drawn", "expected"), [(0, 2.25), (0.4, 2.85), (0.6, 3.15), (1, 3.75)])
def test_linear_pauses_grow_by_the_base(drawn: float, expected: float) -> None:
    assert Backoff(base=1, curve="linear", jitter=0.25).delay(3, Chance(drawn)) == pytest.approx(expected)


@pytest.mark.parametrize("curve", ["constant", "linear", "exponential"])
@pytest.mark.parametrize("attempt", [1, 2, 50])
def test_the_cap_holds_on_every_curve(curve: Any, attempt: int) -> None:
    for drawn in (0, 0.5, 0.999):
        assert Backoff(base=10, cap=1, jitter=0.25, curve=curve).delay(attempt, Chance(drawn)) == 1.0


def test_exponential_pauses_double() -> None:
    backoff = Backoff(base=0.1, cap=1.0, jitter="none")
    assert [backoff.delay(attempt, Chance(0)) for attempt in range(1, 7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1])


def test_full_jitter_spreads_from_nothing_and_equal_jitter_from_the_half() -> None:
    full, equal = Backoff(base=1), Backoff(base=1, jitter="equal")
    assert [full.delay(2, Chance(drawn)) for drawn in (0, 0.5, 1)] == [0, 1, 2]
    assert [equal.delay(2, Chance(drawn)) for drawn in (0, 0.5, 1)] == [1, 1.5, 2]
    assert full.delay(99, Chance(0.5)) == 5.0


@given(
    base=st.sampled_from([0, 1e-9, 0.1, 1, 1000]),
    cap=st.sampled_from([0, 0.05, 10, 1e6]),
    factor=st.sampled_from([1, 1.0001, 2, 10, 1e300]),
    jitter=st.sampled_from(["full", "equal", "none", 0, 0.25, 1]),
    curve=st.sampled_from(["exponential", "linear", "constant"]),
    attempt=st.sampled_from([1, 2, 3, 64, 2000, 10**9, 10**30]),
    drawn=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_no_pause_is_out_of_bounds_and_no_exponent_overflows(  # noqa: PLR0917 - drawn by name
    base: float, cap: float, factor: float, jitter: Any, curve: Any, attempt: int, drawn: float
) -> None:
    backoff = Backoff(base=base, cap=cap, factor=factor, jitter=jitter, curve=curve)
    delay = backoff.delay(attempt, Chance(drawn))
    assert 0 <= delay <= cap
    assert delay <= backoff.longest(attempt) <= cap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": -1}, "base must be at least 0"),
        ({"base": nan}, "base must be finite"),
        ({"cap": inf}, "cap must be finite"),
        ({"factor": 0.5}, "factor must be at least 1"),
        ({"jitter": "some"}, "jitter must be one of full, equal, none or a share, got 'some'"),
        ({"jitter": 1.5}, "jitter must be at most 1"),
        ({"curve": "cubic"}, "curve must be one of exponential, linear, constant, got 'cubic'"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Backoff(**options)


NOW = 1_800_000_000.0
DATE = datetime.fromtimestamp(NOW, tz=UTC)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (2, 2.0),
        (0, 0.0),
        (1.5, 1.5),
        ("120", 120.0),
        (" 7 ", 7.0),
        (DATE + timedelta(seconds=30), 30.0),
        (DATE - timedelta(seconds=30), 0.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        (None, None),
        (-1, None),
        (nan, None),
        (inf, None),
        (10**400, 1e300),
        (True, None),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("1e3", None),
        ("9" * 50, 99999999999999999999.0),
        ("٣", None),
        (datetime(2027, 1, 15), None),  # noqa: DTZ001 - whose time it is nobody knows
        ([3], None),
    ],
)
def test_what_servers_ask_for_is_understood_or_ignored(answer: object, seconds: float | None) -> None:
    assert seconds_asked(answer, NOW) == seconds
