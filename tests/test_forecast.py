"""A forecast is right about what repeats itself, silent about noise, and never more than sure."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.forecast import FEWEST, MOST, TRUSTED, Forecast, find_season, find_trend, forecast

numbers = st.floats(-1e6, 1e6)


@given(st.floats(-100, 100), st.floats(-1000, 1000), st.integers(FEWEST, 60), st.integers(1, 20))
def test_a_line_goes_on(slope: float, start: float, count: int, ahead: int) -> None:
    found = forecast([start + slope * at for at in range(count)], ahead)
    expected = start + slope * (count - 1 + ahead)
    assert found.value == pytest.approx(expected, rel=1e-6, abs=1e-6 * (1 + abs(start)))
    if abs(slope) > 1e-6 * (1 + abs(start)):
        assert found.confidence == pytest.approx(1.0, abs=1e-6)
        assert found.trend is not None
        assert found.trend.slope == pytest.approx(slope)


@given(st.lists(st.integers(0, 100), min_size=4, max_size=12), st.integers(2, 5), st.integers(1, 30))
def test_what_comes_again_is_foretold(pattern: list[int], times: int, ahead: int) -> None:
    series = pattern * times
    if len(set(pattern)) < 2 or len(series) < FEWEST:
        return
    found = forecast(series, ahead)
    if found.season is None:  # a line explains it well enough, as in 0 0 0 1
        return
    if found.trend is None and len(series) % found.season.period == 0:
        assert found.value == pytest.approx(pattern[(ahead - 1) % len(pattern)], abs=0.1 * max(pattern) + 1e-9)


def test_a_pattern_is_found_with_its_period_and_shape() -> None:
    season = find_season([10, 2, 3, 9] * 8)
    assert season is not None
    assert season.period == 4
    assert season.confidence == pytest.approx(1.0)
    assert season.shape == (4.0, -4.0, -3.0, 3.0)
    assert [forecast([10, 2, 3, 9] * 8, ahead).value for ahead in range(1, 6)] == [10, 2, 3, 9, 10]


def test_a_series_that_breaks_off_in_the_middle_of_a_period_goes_on_from_there() -> None:
    assert forecast([*([10, 2, 3, 9] * 8), 10, 2]).value == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_day_and_growth_are_found_in_noise(seed: int) -> None:
    rng = random.Random(seed)
    series = [10 + 0.3 * at + 5 * math.sin(math.tau * at / 24) + rng.gauss(0, 1) for at in range(120)]
    found = forecast(series)
    assert found.trusted
    assert found.season is not None
    assert found.trend is not None
    assert 22 <= found.season.period <= 26
    assert found.value == pytest.approx(10 + 0.3 * 120, abs=5)


def test_noise_is_hardly_ever_trusted() -> None:
    rng = random.Random(1)
    trusted = sum(forecast([rng.random() for _ in range(rng.randint(FEWEST, MOST))]).trusted for _ in range(300))
    assert trusted <= 9


def test_a_walk_without_a_goal_has_no_season() -> None:
    """A slow drift resembles itself after any short time: that is no season."""
    found = 0
    for seed in range(100):
        rng, at = random.Random(seed), 0.0
        series = [at := at + rng.gauss(0, 1) for _ in range(100)]
        season = find_season(series)
        found += season is not None and season.confidence >= TRUSTED and season.period < 5
    assert found <= 5


@given(st.lists(numbers, max_size=60), st.integers(1, 50))
def test_whatever_comes_the_answer_is_finite_and_its_confidence_a_share(values: list[float], ahead: int) -> None:
    found = forecast(values, ahead)
    assert math.isfinite(found.value)
    assert 0 <= found.confidence <= 1
    assert found.trusted == (found.confidence >= TRUSTED)
    assert (found.trend is None and found.season is None) <= (found.confidence == 0)


@given(
    st.lists(st.integers(0, 50), min_size=FEWEST, max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.25, 0.5, 2.0, 8.0]),
    st.integers(-50, 50),
)
def test_another_unit_changes_the_numbers_and_nothing_else(
    values: list[int], ahead: int, factor: float, shift: int
) -> None:
    one, other = forecast(values, ahead), forecast([factor * value + shift for value in values], ahead)
    if abs(one.confidence - TRUSTED) < 1e-6 or (one.season is None) != (other.season is None):
        return  # on the edge, where rounding decides
    if one.season is not None and other.season is not None and one.season.period != other.season.period:
        return
    assert other.value == pytest.approx(factor * one.value + shift, rel=1e-6, abs=1e-6)
    assert other.confidence == pytest.approx(one.confidence, abs=1e-6)


def test_a_level_series_stays_level_and_is_certain() -> None:
    assert forecast([5] * FEWEST) == Forecast(5.0, 1.0, forecast([5] * FEWEST).trend, None)
    assert forecast([0.1] * 20).value == pytest.approx(0.1)


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], list(range(FEWEST - 1))])
def test_too_few_values_say_nothing(values: list[float]) -> None:
    found = forecast(values)
    assert (found.confidence, found.trend, found.season) == (0.0, None, None)
    assert find_trend(values) is None
    assert find_season(values) is None


def test_only_the_latest_values_count() -> None:
    long: list[Any] = [1000.0] * 10_000 + [float(at) for at in range(MOST)]
    assert forecast(long) == forecast([float(at) for at in range(MOST)])
