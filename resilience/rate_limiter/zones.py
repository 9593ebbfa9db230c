"""Where the days of a time zone begin: its distance from UTC, and when that changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

from .fixed_window import Offsets

_SECOND: Final = 1_000_000
_AROUND: Final = 2 * 86_400
"""Seconds to either side of now in which a change matters: the longest window, and a server whose clock differs."""
_KEPT: Final = 3_600
"""Seconds for which an answer is used again."""

_FIRST, _LAST = datetime(1970, 1, 4, tzinfo=UTC).timestamp(), datetime(9999, 12, 28, tzinfo=UTC).timestamp()


@cache  # one table per zone; there are about six hundred
def offsets_of(timezone: str) -> Callable[[int], Offsets]:
    """Give the function that tells how local time runs around a moment of wall time in microseconds."""
    zone = ZoneInfo(timezone)
    known: tuple[int, Offsets] = (-1, (0, 0, 0))

    def offsets(now: int) -> Offsets:
        nonlocal known
        hour = now // (_KEPT * _SECOND)
        if known[0] != hour:
            known = hour, _look_up(zone, hour * _KEPT)
        return known[1]

    return offsets


def _look_up(zone: ZoneInfo, seconds: int) -> Offsets:
    seconds = int(min(max(seconds, _FIRST), _LAST))  # a clock that is off by centuries must not raise
    early, late = seconds - _AROUND, seconds + _AROUND
    before, after = _offset(zone, early), _offset(zone, late)
    if before == after:
        return before * _SECOND, late * _SECOND, after * _SECOND
    while late - early > 1:
        middle = (early + late) // 2
        if _offset(zone, middle) == before:
            early = middle
        else:
            late = middle
    return before * _SECOND, late * _SECOND, after * _SECOND


def _offset(zone: ZoneInfo, seconds: int) -> int:
    distance = datetime.fromtimestamp(seconds, zone).utcoffset() or timedelta()
    return round(distance.total_seconds())
