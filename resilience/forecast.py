"""What comes next in a series, and how much to believe it: trend by least squares, season by autocorrelation.

The plainest methods there are, on purpose: whoever acts on a forecast must be able to check it by hand. A forecast says
how sure it is, and one below `TRUSTED` is to be ignored.

Pure: a series is a sequence of numbers, one per step of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import StatisticsError, correlation, fmean, linear_regression
from typing import Final, TypeVar

T = TypeVar("T", "Trend", "Season")

TRUSTED: Final = 0.6
"""Confidence from which on a forecast, a trend or a season counts: below, chance does as well."""
FEWEST: Final = 8
"""Samples without which nothing is said. Any three points look like a line."""
MOST: Final = 168
"""Samples that are looked at, the latest: a week of hours. Autocorrelation takes time that grows with their square."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through a series.

    Attributes:
        slope: change per step.
        last: height of the line at the last sample.
        confidence: share of the series' variance that the line explains (r squared), 0 to 1.
    """

    slope: float
    last: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Season:
    """A pattern that comes again.

    Attributes:
        period: in steps.
        confidence: correlation of the series with itself, one period later, 0 to 1.
        shape: what each step of the period adds, on average. The first is that of the step after the last sample.
    """

    period: int
    confidence: float
    shape: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a series will be.

    Attributes:
        value: expected.
        confidence: share of the variance so far that trend and season explain, 0 to 1.
        trend, season: those that it was made of; None where there is none to be trusted.
    """

    value: float
    confidence: float
    trend: Trend | None
    season: Season | None

    @property
    def trusted(self) -> bool:
        """Whether to act on it."""
        return self.confidence >= TRUSTED


def find_trend(values: Sequence[float]) -> Trend | None:
    """Lay a line through the latest values; None if they are too few. A level series has a level, certain trend."""
    values = values[-MOST:]
    if len(values) < FEWEST:
        return None
    steps = range(len(values))
    slope, start = linear_regression(steps, values)
    likeness = _correlation(steps, values)
    confidence = 1.0 if likeness is None else min(1.0, likeness**2)
    return Trend(slope, start + slope * (len(values) - 1), confidence)


def find_season(values: Sequence[float]) -> Season | None:
    """Find the shortest period after which the latest values come again; None if there is no sign of one.

    It must have been seen twice, and be a peak of the autocorrelation: a slow drift resembles itself after any time.
    """
    values = values[-MOST:]
    longest = len(values) // 2
    if len(values) < FEWEST:
        return None
    # Below any peak, where a neighbour does not exist.
    likeness = [-inf, *(_likeness(values, lag) for lag in range(1, longest + 1)), -inf]
    peaks = [lag for lag in range(2, longest + 1) if likeness[lag - 1] < likeness[lag] >= likeness[lag + 1]]
    best = max((likeness[lag] for lag in peaks), default=0.0)
    if best <= 0.0:
        return None
    # Twice a period resembles the series as well as the period does.
    period = next(lag for lag in peaks if likeness[lag] >= 0.95 * best)
    level = fmean(values)
    # Slices from the end: the first element of the first is one period before the step that comes next.
    shape = tuple(fmean(values[-period + phase :: -period]) - level for phase in range(period))
    return Season(period, min(1.0, likeness[period]), shape)


def forecast(values: Sequence[float], ahead: int = 1) -> Forecast:
    """Say what the series will be `ahead` steps after its last value, 1 or more.

    Trend and season count only if each can be trusted. Without them the mean is expected, with no confidence.
    """
    values = values[-MOST:]
    if not values:
        return Forecast(0.0, 0.0, None, None)
    line = _if_trusted(find_trend(values))
    count = len(values)
    base = (
        [fmean(values)] * count if line is None else [line.last - line.slope * (count - 1 - at) for at in range(count)]
    )
    rest = [value - expected for value, expected in zip(values, base, strict=True)]
    season = _if_trusted(find_season(rest))
    value = base[-1] + (0.0 if line is None else line.slope * ahead)
    if season is not None:
        value += season.shape[(ahead - 1) % season.period]
        rest = [left - season.shape[(at - count) % season.period] for at, left in enumerate(rest)]
    return Forecast(value, 0.0 if line is None and season is None else _explained(values, rest), line, season)


def _if_trusted(found: T | None) -> T | None:
    return found if found is not None and found.confidence >= TRUSTED else None


def _explained(values: Sequence[float], rest: Sequence[float]) -> float:
    level = fmean(values)
    total = sum((value - level) ** 2 for value in values)
    if total == 0.0:
        return 1.0
    return max(0.0, 1.0 - sum(left**2 for left in rest) / total)


def _likeness(values: Sequence[float], lag: int) -> float:
    return _correlation(values[:-lag], values[lag:]) or 0.0


def _correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Give the correlation, or None where one side does not change."""
    try:
        return correlation(left, right)
    except StatisticsError:
        return None
