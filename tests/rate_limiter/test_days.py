"""Fixed windows where local time jumps, against a calendar that is asked for every minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resilience.rate_limiter import Quota
from resilience.rate_limiter.zones import offsets_of
from tests.rate_limiter.cases import window
from tests.rate_limiter.machines import SECOND, Machine, MemoryMachine

MINUTE = 60
AROUND = 3 * 86_400
ZONES = ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe"]
PERIODS = [86_400, 43_200, 21_600, 10_800, 7_200, 3_600, 1_800, 900]


def offset(zone: ZoneInfo, seconds: int) -> int:
    return round((datetime.fromtimestamp(seconds, zone).utcoffset() or timedelta()).total_seconds())


@cache
def changes(timezone: str) -> list[int]:
    """Find the two moments of 2026 at which local time jumps."""
    zone = ZoneInfo(timezone)
    minutes = range(
        round(datetime(2026, 1, 1, tzinfo=UTC).timestamp()), round(datetime(2027, 1, 1, tzinfo=UTC).timestamp()), 900
    )
    return [later for before, later in pairwise(minutes) if offset(zone, before) != offset(zone, later)]


@dataclass
class Calendar:
    """In which window each minute around a change lies, by what a clock on the wall shows."""

    timezone: str
    per: int
    change: int

    def __post_init__(self) -> None:
        zone = ZoneInfo(self.timezone)
        jump = offset(zone, self.change) - offset(zone, self.change - 1)
        self.first = self.change - AROUND
        self.labels = [self.label(self.first + at, zone, jump) for at in range(0, 2 * AROUND, MINUTE)]

    def label(self, seconds: int, zone: ZoneInfo, jump: int) -> object:
        local = datetime.fromtimestamp(seconds, zone)
        part = (local.hour * 3_600 + local.minute * 60 + local.second) // self.per
        # A window that comes twice as a whole is two windows; part of one that comes twice makes it longer.
        return local.date(), part, seconds >= self.change and jump % self.per == 0

    def at(self, seconds: float) -> object:
        return self.labels[int(seconds - self.first) // MINUTE]

    def end(self, seconds: float) -> int:
        """Give the moment at which the window of `seconds` ends."""
        place = int(seconds - self.first) // MINUTE
        label = self.labels[place]
        while self.labels[place] == label:
            place += 1
        return self.first + place * MINUTE


@pytest.fixture(params=["memory", "script"])
def make(request: pytest.FixtureRequest) -> Callable[..., Machine]:
    made: Any = MemoryMachine if request.param == "memory" else request.getfixturevalue("script_machine")
    return lambda quota, start: made(quota, start=start * SECOND)


def calendars() -> list[Any]:
    return [
        pytest.param(Calendar(timezone, per, change), id=f"{timezone} {per} {datetime.fromtimestamp(change, UTC):%B}")
        for timezone in ZONES
        for change in changes(timezone)
        for per in PERIODS
    ]


@pytest.mark.parametrize("timezone", ZONES)
def test_there_are_two_changes_a_year(timezone: str) -> None:
    assert len(changes(timezone)) == 2


@pytest.mark.parametrize("calendar", calendars())
def test_a_window_ends_when_the_clock_on_the_wall_says(calendar: Calendar, make: Callable[..., Machine]) -> None:
    machine = make(window(1, calendar.per, calendar.timezone), calendar.change)
    shift = max(calendar.per // 5, 600)
    moments = [*range(-2 * shift, 2 * shift, shift // 3 + 7), -86_400, -1, 0, 1, 50_000, 80_000]
    for number, moment in enumerate(moments):
        machine.moment = moment * SECOND + (number % 2 if moment else 0)
        left = (calendar.end(calendar.change + moment) - calendar.change) * SECOND - machine.moment
        key = f"{number}"
        admitted, refused = machine.acquire(key, 1), machine.acquire(key, 1)
        assert (admitted.allowed, admitted.reset_after) == (True, left)
        assert (refused.allowed, refused.retry_after) == (False, left)
        machine.moment += left - 1
        assert not machine.acquire(key, 1).allowed
        machine.moment += 1
        assert machine.acquire(key, 1).allowed


@pytest.mark.parametrize("calendar", [one for one in calendars() if one.values[0].per >= 3_600])
def test_each_window_admits_its_limit_and_no_more(calendar: Calendar, make: Callable[..., Machine]) -> None:
    machine = make(window(3, calendar.per, calendar.timezone), calendar.change)
    admitted: Counter[object] = Counter()
    asked: Counter[object] = Counter()
    for moment in range(-86_400 * 3 // 2, 86_400 * 3 // 2, 900):
        machine.moment = moment * SECOND
        label = calendar.at(calendar.change + moment)
        asked[label] += 1
        admitted[label] += machine.acquire("", 1).allowed
    assert admitted == Counter({label: min(3, count) for label, count in asked.items()})


@pytest.mark.parametrize(
    ("timezone", "hours"),
    [
        ("Europe/Berlin", [23, 25]),
        ("America/Havana", [23, 25]),
        ("Australia/Lord_Howe", [24.5, 23.5]),
    ],
)
def test_days_are_as_long_as_they_are_there(timezone: str, hours: list[float], make: Callable[..., Machine]) -> None:
    for change, length in zip(changes(timezone), hours, strict=True):
        calendar = Calendar(timezone, 86_400, change)
        machine = make(window(1, 86_400, timezone), change)
        # The last microsecond of the day before, and then the first of this day.
        begins = max(
            at for at in range(change - 86_400, change + 1, MINUTE) if calendar.at(at) != calendar.at(at - MINUTE)
        )
        machine.moment = (begins - change) * SECOND
        assert machine.acquire("", 1).allowed
        refused = machine.acquire("", 1)
        assert refused.retry_after == length * 3_600 * SECOND


def test_a_reservation_for_tomorrow_waits_as_long_as_today_lasts(make: Callable[..., Machine]) -> None:
    spring, autumn = changes("Europe/Berlin")
    for change, hours in ((spring, 22), (autumn, None)):
        machine = make(window(1, 86_400, "Europe/Berlin"), change)
        machine.moment = (-3_600 if change == spring else -3 * 3_600) * SECOND  # one o'clock, midnight
        assert machine.acquire("", 1).allowed
        wait, answer = machine.reserve("", 1, 2 * 86_400 * SECOND)
        if hours is None:  # 25 hours are more than anybody may wait for
            assert wait is None
            assert answer.retry_after == 25 * 3_600 * SECOND
        else:
            assert wait == hours * 3_600 * SECOND


@pytest.mark.parametrize("start", [-62_000_000_000, 0, 4_000_000_000, 253_402_300_000, 10**12])
def test_a_wall_clock_that_is_off_by_centuries_harms_nobody(start: int) -> None:
    machine = MemoryMachine(window(2, 86_400, "Europe/Berlin"), start=start * SECOND)
    assert machine.acquire("", 2).allowed
    refused = machine.acquire("", 1)
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 86_400 * SECOND
    machine.moment = refused.retry_after
    assert machine.acquire("", 1).allowed


@pytest.mark.parametrize("step", [60, 3_600, 86_400, 500 * 86_400])
def test_a_wall_clock_that_steps_back_locks_a_window_for_a_period_at_most(step: int) -> None:
    machine = MemoryMachine(window(10, 60), start=1_000 * 86_400 * SECOND)
    machine.acquire("", 10)
    machine.moment = before = -step * SECOND
    refused = machine.acquire("", 1)
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 60 * SECOND
    machine.moment = before + refused.retry_after
    assert machine.acquire("", 10).allowed


def test_a_wall_clock_that_steps_back_is_no_amnesty() -> None:
    machine = MemoryMachine(window(10, 60), start=1_000 * 86_400 * SECOND)
    machine.acquire("", 7)
    machine.moment = -86_400 * SECOND
    assert machine.peek("", 1).remaining == 3
    assert machine.acquire("", 3).allowed
    assert not machine.acquire("", 1).allowed


def test_windows_of_zones_begin_at_their_own_midnight(make: Callable[..., Machine]) -> None:
    noon = round(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp())
    for timezone, hours in [("UTC", 12), ("Asia/Kolkata", 6.5), ("Pacific/Kiritimati", 22), ("America/New_York", 16)]:
        machine = make(window(1, 86_400, timezone), noon)
        machine.acquire("", 1)
        assert machine.acquire("", 1).retry_after == hours * 3_600 * SECOND


def test_offsets_are_looked_up_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    from resilience.rate_limiter import zones

    asked: list[int] = []
    look_up = zones._look_up

    def counting(zone: ZoneInfo, seconds: int) -> tuple[int, int, int]:
        asked.append(seconds)
        return look_up(zone, seconds)

    monkeypatch.setattr(zones, "_look_up", counting)
    machine = MemoryMachine(window(1_000, 86_400, "Africa/Cairo"))
    for minute in range(180):
        machine.moment = minute * 60 * SECOND
        machine.acquire("", 1)
    assert len(asked) <= 4


def test_the_offsets_around_a_change_name_it_to_the_second() -> None:
    for timezone in ZONES:
        zone = ZoneInfo(timezone)
        for change in changes(timezone):
            for distance in (-40 * 3_600, -1, 0, 1, 40 * 3_600):
                before, at, after = offsets_of(timezone)((change + distance) * SECOND)
                assert at == change * SECOND
                assert (before, after) == (offset(zone, change - 1) * SECOND, offset(zone, change) * SECOND)


def test_a_quota_of_a_zone_says_so() -> None:
    assert Quota(1, 86_400, algorithm="fixed_window", timezone="Europe/Berlin").timezone == "Europe/Berlin"
