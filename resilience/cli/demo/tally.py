"""What the instances of the shared limit decided, and what that limit allows. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "ALL_STAGES",
    "BACK",
    "GONE",
    "STAGES",
    "UP",
    "Allowance",
    "Answer",
    "Entered",
    "Left",
    "Tally",
    "decided_alone",
]

STAGES = ("up", "gone", "back")
"""What happens to Redis, in order."""
UP, GONE, BACK = ALL_STAGES = tuple(range(len(STAGES)))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the limit allows: `burst` calls at once, then `rate` a second."""

    rate: int
    burst: int

    def until(self, seconds: float) -> int:
        """Give the most calls that may have passed so many seconds after the first one."""
        # A hair more, or 0.3 s at 10/s would allow 2.9999.
        return self.burst + int(self.rate * seconds + 1e-9)

    def between(self, start: float, end: float) -> int:
        """Give its part from `start` to `end`; the burst belongs to the beginning."""
        return self.until(end) - (self.until(start) if start else 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One decision of a limiter.

    Attributes:
        at: when it came, in seconds since the load began.
        stage: index into `STAGES`: what had happened to Redis by then.
        waited: seconds that the caller waited for it.
        allowed: whether the call may pass.
        source: who decided, as the limiter says.
    """

    at: float
    stage: int
    waited: float
    allowed: bool
    source: str


@dataclass(frozen=True, slots=True)
class Entered:
    """An instance began to decide by itself, because of `cause`, as one of `instances`."""

    at: float
    cause: str
    instances: int


@dataclass(frozen=True, slots=True)
class Left:
    """An instance asks Redis again after `duration` seconds, and charged it with `replayed` units."""

    at: float
    duration: float
    replayed: int


class Tally:
    """Every decision of all instances."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._counts: Counter[tuple[int, str, bool]] = Counter()
        self._longest = dict.fromkeys(ALL_STAGES, 0.0)

    def record(self, answer: Answer) -> None:
        """Count one decision."""
        self.answers.append(answer)
        self._counts[answer.stage, answer.source, answer.allowed] += 1
        self._longest[answer.stage] = max(self._longest[answer.stage], answer.waited)

    def decided(self, source: str | None = None, *, stages: Iterable[int] = ALL_STAGES) -> int:
        """Count the decisions in `stages`, of one source or of all."""
        return sum(count for (stage, by, _), count in self._counts.items() if stage in stages and source in (None, by))

    def admitted(self, source: str | None = None, *, stages: Iterable[int] = ALL_STAGES) -> int:
        """Count the calls that may pass, admitted in `stages` by one source or by all."""
        return sum(
            count
            for (stage, by, allowed), count in self._counts.items()
            if allowed and stage in stages and source in (None, by)
        )

    def longest(self, *, stages: Iterable[int] = ALL_STAGES) -> float:
        """Give the longest wait of a caller for its decision, in seconds."""
        return max(self._longest[stage] for stage in stages)


def decided_alone(switches: Iterable[Entered | Left], end: float) -> list[tuple[bool, float, float]]:
    """Turn switches into stretches: whether some instance decided by itself, start and end in seconds."""
    stretches, alone, since = [], 0, 0.0
    for switch in switches:
        before, alone = alone, alone + (1 if isinstance(switch, Entered) else -1)
        if bool(before) != bool(alone):
            stretches.append((bool(before), since, switch.at))
            since = switch.at
    stretches.append((bool(alone), since, max(end, since)))
    return stretches
