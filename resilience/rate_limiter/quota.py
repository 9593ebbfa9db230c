"""What is allowed: so many units of cost in so much time, and by which arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from resilience.checks import check_int, check_number, shown
from resilience.errors import ConfigurationError

Algorithm: TypeAlias = Literal["gcra", "sliding_log", "fixed_window"]

MAX_LIMIT: Final = 1_000_000_000
MAX_PER: Final = 10 * 366 * 86_400.0
"""Seconds: ten years."""
MAX_LOG: Final = 10_000
"""A sliding log keeps an entry for each admitted call; GCRA keeps one number, whatever the limit."""
MAX_QUOTAS: Final = 8

DAY: Final = 86_400.0
MICROSECONDS: Final = 1_000_000

_UNITS: Final = {
    "ms": 0.001,
    "millisecond": 0.001,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3_600.0,
    "hr": 3_600.0,
    "hour": 3_600.0,
    "d": DAY,
    "day": DAY,
    "w": 7 * DAY,
    "week": 7 * DAY,
}
_SYNTAX: Final = re.compile(
    r"\s*(?P<limit>\d+)\s*(?:/|\s+per\s+)\s*(?P<many>\d+(?:\.\d+)?)?\s*(?P<unit>[a-z]+)"
    r"(?:\s+burst\s*=?\s*(?P<burst>\d+))?\s*",
    re.IGNORECASE | re.ASCII,
)
_EXAMPLES: Final = "such as '100/minute', '10 per second burst 20' or '30/30min'"
_LONGEST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Quota:
    """So many units of cost per so many seconds. Checked on creation; immutable; equal when all fields are equal.

    Args:
        limit: units per period, 1 to 1,000,000,000. A call costs one unit unless it says otherwise.
        per: the period in seconds, a microsecond to ten years; kept to the microsecond.
        burst: units that may come at once after a silence, 1 to 1,000,000,000; None means `limit`. Only for "gcra".
            A window of W seconds admits at most `burst` + W x limit / per: with 100 per minute that is 199 in the first
            minute by default, 109 with a burst of 10, and 100 with a burst of 1.
        algorithm: "gcra" (default): one number for each key, smooth refill, the generic cell rate algorithm of ITU-T
            I.371. "sliding_log": never more than `limit` in any trailing period, at the price of an entry for each
            admitted call (a limit of 10,000 at most). "fixed_window": counts per calendar window, for billing; two
            windows that meet may admit twice the limit in a short time.
        timezone: where the windows of "fixed_window" begin, an IANA name such as "Europe/Berlin": a day runs from
            midnight to midnight there, also when it has 23 or 25 hours.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    limit: int
    per: float
    burst: int | None = None
    algorithm: Algorithm = "gcra"
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        check_int("limit", self.limit, most=MAX_LIMIT)
        check_number("per", self.per, above=0, most=MAX_PER)
        if self.microseconds < 1:
            raise ConfigurationError(f"per must be at least a microsecond, 1e-06, got {shown(self.per)}")
        if self.algorithm not in get_args(Algorithm):
            raise ConfigurationError(
                f"algorithm must be one of {', '.join(get_args(Algorithm))}, got {shown(self.algorithm)}"
            )
        if self.burst is not None:
            check_int("burst", self.burst, most=MAX_LIMIT)
            if self.algorithm != "gcra":
                raise ConfigurationError(f"burst must be None with {self.algorithm}, got {shown(self.burst)}")
        if self.algorithm == "sliding_log" and self.limit > MAX_LOG:
            raise ConfigurationError(
                f"limit must be at most {MAX_LOG:,} with sliding_log, which keeps every call, got {shown(self.limit)}"
            )
        if self.algorithm == "fixed_window":
            self._check_window()
        elif self.timezone != "UTC":
            raise ConfigurationError(
                f"timezone must be 'UTC' with {self.algorithm}, which has no windows, got {shown(self.timezone)}"
            )

    def _check_window(self) -> None:
        if self.per > DAY or round(DAY * MICROSECONDS) % self.microseconds:
            raise ConfigurationError(
                f"per must divide a day with fixed_window, as 60, 3600 and 86400 do, got {shown(self.per)}"
            )
        try:
            ZoneInfo(self.timezone)
        except Exception:  # noqa: BLE001 - zoneinfo raises five kinds of error for five kinds of nonsense
            raise ConfigurationError(
                f"timezone must be an IANA name such as 'Europe/Berlin', got {shown(self.timezone)}"
            ) from None

    @property
    def microseconds(self) -> int:
        """The period in whole microseconds."""
        return round(self.per * MICROSECONDS)

    @property
    def capacity(self) -> int:
        """Units that can pass at once; a larger cost can never pass."""
        return self.limit if self.burst is None else self.burst

    def __str__(self) -> str:
        burst = "" if self.burst is None else f" burst {self.burst}"
        kind = "" if self.algorithm == "gcra" else f" {self.algorithm}"
        return f"{self.limit} per {self.per:g} s{burst}{kind}"

    @classmethod
    def parse(cls, text: str, *, algorithm: Algorithm = "gcra", timezone: str = "UTC") -> Quota:
        """Read one quota: "100/minute", "10 per second burst 20", "1 per 3 hours", "30/30min".

        Units: ms, s, sec, second, m, min, minute, h, hr, hour, d, day, w, week, with or without a final s, in any case.

        Args:
            text: the quota.
            algorithm: as in the constructor; the text does not say it.
            timezone: as in the constructor.

        Raises:
            ConfigurationError: not a quota; the message shows what one looks like.
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"quota must be a string {_EXAMPLES}, got {shown(text)}")
        found = _SYNTAX.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
        if found is None:
            raise ConfigurationError(f"quota must be {_EXAMPLES}, got {shown(text)}")
        unit = found["unit"].lower()
        # Not "ss": the plural of a letter is a slip of the finger.
        seconds = _UNITS.get(unit) or (None if unit.endswith("ss") else _UNITS.get(unit.removesuffix("s")))
        if seconds is None:
            raise ConfigurationError(
                f"quota must name a unit of time, one of {', '.join(_UNITS)}, got {shown(found['unit'])}"
            )
        burst = None if found["burst"] is None else int(found["burst"])
        return cls(int(found["limit"]), float(found["many"] or 1) * seconds, burst, algorithm, timezone)


def parse_quotas(text: str) -> tuple[Quota, ...]:
    """Read several quotas that hold at once, separated by semicolons: "10/min; 1000/hour".

    Raises:
        ConfigurationError: one of them is none, or there are more than 8.
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"quotas must be a string {_EXAMPLES}, got {shown(text)}")
    return checked_quotas([Quota.parse(part) for part in text.split(";")])


def checked_quotas(quotas: str | Quota | Iterable[Quota]) -> tuple[Quota, ...]:
    """Give the quotas of a limiter in the order in which they are stored, the shortest period first.

    That order, and not the one in which somebody wrote them, decides which stored state belongs to which rule: a
    configuration that only turns the order round forgives nothing.

    Raises:
        ConfigurationError: no quotas, too many, or two that are equal.
    """
    if isinstance(quotas, str):
        return parse_quotas(quotas)
    if isinstance(quotas, Quota):
        return (quotas,)
    if not isinstance(quotas, Iterable):
        raise ConfigurationError(f"quotas must be a string {_EXAMPLES}, a Quota or several, got {shown(quotas)}")
    found = tuple(quotas)
    for one in found:
        if not isinstance(one, Quota):
            raise ConfigurationError(f"quotas must hold Quota objects only, got {shown(one)}")
    if not 1 <= len(found) <= MAX_QUOTAS:
        raise ConfigurationError(f"quotas must be 1 to {MAX_QUOTAS}, got {len(found)}")
    if len(set(found)) < len(found):
        raise ConfigurationError(f"quotas must differ from each other, got {', '.join(map(str, found))}")
    return tuple(
        sorted(found, key=lambda one: (one.microseconds, one.algorithm, one.limit, one.capacity, one.timezone))
    )
