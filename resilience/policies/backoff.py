"""How long to wait between attempts: curves, jitter, and what servers ask for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import Literal, TypeAlias

from resilience.checks import check_number, shown
from resilience.errors import ConfigurationError

Jitter: TypeAlias = Literal["full", "equal", "none"] | float
Curve: TypeAlias = Literal["exponential", "linear", "constant"]

_JITTERS = ("full", "equal", "none")
_CURVES = ("exponential", "linear", "constant")
_HUGE = 1e300  # seconds: jitter can double it without it becoming infinite
MAX_SECONDS = 366 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Pauses that grow, and that chance spreads: callers that failed together must not come back together.

    Args:
        base: seconds of the first pause before jitter, >= 0. Default 0.1.
        cap: seconds that no pause exceeds, >= 0. Default 10.
        factor: of growth from pause to pause, >= 1. Default 2.
        jitter: "full" draws from 0 to the pause, and spreads best; "equal" keeps half of it, for servers that asked to
            slow down; "none"; or a share from 0 to 1 by which a pause is shorter or longer. Default "full".
        curve: "exponential" is base * factor ** n, "linear" base * (n + 1), "constant" base. Default "exponential".

    Raises:
        ConfigurationError: a value out of its range.

    Source: "full" and "equal" are those of Marc Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
    """

    base: float = 0.1
    cap: float = 10.0
    factor: float = 2.0
    jitter: Jitter = "full"
    curve: Curve = "exponential"

    def __post_init__(self) -> None:
        check_number("base", self.base, least=0, most=MAX_SECONDS)
        check_number("cap", self.cap, least=0, most=MAX_SECONDS)
        check_number("factor", self.factor, least=1)
        if self.curve not in _CURVES:
            raise ConfigurationError(f"curve must be one of {', '.join(_CURVES)}, got {shown(self.curve)}")
        if not isinstance(self.jitter, str):
            check_number("jitter", self.jitter, least=0, most=1)
        elif self.jitter not in _JITTERS:
            raise ConfigurationError(
                f"jitter must be one of {', '.join(_JITTERS)} or a share, got {shown(self.jitter)}"
            )

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Give the seconds to wait after attempt number `attempt`, counted from 1."""
        pause = self._pause(attempt)
        match self.jitter:
            case "full":
                return rng.random() * min(pause, self.cap)
            case "equal":
                return (1 + rng.random()) / 2 * min(pause, self.cap)
            case "none":
                return min(pause, self.cap)
            case share:
                # Before the cap, as elsewhere: what has grown beyond it is the cap.
                return min(pause * (1 + share * (2 * rng.random() - 1)), self.cap)

    def longest(self, attempt: int) -> float:
        """Give the most seconds that `delay` can give after that attempt."""
        share = 0.0 if isinstance(self.jitter, str) else self.jitter
        return min(self._pause(attempt) * (1 + share), self.cap)

    def _pause(self, attempt: int) -> float:
        if self.curve == "constant" or not self.base:
            return self.base
        if self.curve == "linear":
            return min(self.base * attempt, _HUGE)
        try:
            return min(self.base * float(self.factor) ** (attempt - 1), _HUGE)
        except OverflowError:
            return _HUGE


def seconds_asked(answer: object, wall: float) -> float | None:
    """Give the seconds that a server asked to wait: of a number, a date, or the text of a Retry-After header.

    Args:
        answer: seconds, a datetime with a timezone, such text, or anything else.
        wall: seconds since the epoch, now.

    Returns:
        Seconds >= 0, a date that has passed is 0; None for what says nothing: negative numbers, NaN, infinity, garbage.
        What is longer than `MAX_SECONDS` may be far longer: nobody waits for it, but that it was asked is known.
    """
    if isinstance(answer, str):
        answer = _parse(answer.strip())
    if isinstance(answer, datetime):
        if answer.tzinfo is None:  # whose time it is nobody knows
            return None
        return max(0.0, answer.timestamp() - wall)
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return None
    return float(min(answer, _HUGE)) if 0 <= answer < inf else None


def _parse(text: str) -> object:
    if text.isascii() and text.isdigit():
        return int(text[:20])
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)  # "-0000" is UTC without a place
