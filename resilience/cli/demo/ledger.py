"""What became of the requests: counted one by one, and what follows from the counts. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .script import DEAD, PHASES

__all__ = [
    "LAST",
    "SENT",
    "SICK",
    "Call",
    "Ledger",
    "Outcome",
    "StateChange",
    "duration",
    "percentile",
]

ALL = tuple(range(len(PHASES)))
SICK = tuple(number for number, phase in enumerate(PHASES) if not phase.healthy)
LAST = ALL[-1]


class Outcome(Enum):
    """How one planned request ended."""

    IN_TIME = "answered in time"
    LATE = "answered late"
    FAILED = "failed"
    REJECTED = "rejected at once"
    DROPPED = "dropped"


ANSWERED = (Outcome.IN_TIME, Outcome.LATE)
SENT = (Outcome.IN_TIME, Outcome.LATE, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class Call:
    """One planned request. Times are seconds since the load began.

    Attributes:
        number: the same for both clients.
        phase: index into `PHASES`: what the service had announced when the request was due.
        intended: when the request was due. Counting from there, not from when the program got round to it, keeps the
            client's own delays in the figures.
        ended: when its caller knew the outcome.
        outcome: how it ended.
        reason: for a failure, its kind in a few words.
    """

    number: int
    phase: int
    intended: float
    ended: float
    outcome: Outcome
    reason: str = ""

    @property
    def response(self) -> float:
        """Seconds from when the request was due until its caller knew the outcome."""
        return self.ended - self.intended


@dataclass(frozen=True, slots=True)
class StateChange:
    """The breaker went to another state, `at` seconds after the load began."""

    at: float
    from_state: str
    to_state: str
    why: str


class Ledger:
    """Every request of one client."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.reasons: Counter[str] = Counter()
        self._counts: Counter[tuple[int, Outcome]] = Counter()
        self._lost: defaultdict[int, float] = defaultdict(float)

    def record(self, call: Call) -> None:
        """Count one request whose outcome is known."""
        self.calls.append(call)
        self._counts[call.phase, call.outcome] += 1
        if call.outcome is Outcome.FAILED:
            self.reasons[call.reason] += 1
            self._lost[call.phase] += call.response

    def count(self, *outcomes: Outcome, phases: Iterable[int] = ALL) -> int:
        """Count the requests due in `phases` that ended in one of `outcomes`."""
        return sum(self._counts[phase, outcome] for phase in phases for outcome in outcomes)

    @property
    def answered(self) -> int:
        """Requests that got their answer, in time or late."""
        return self.count(*ANSWERED)

    @property
    def sent_while_sick(self) -> int:
        """Calls that went out to the service while it was not healthy."""
        return self.count(*SENT, phases=SICK)

    @property
    def sent_while_dead(self) -> int:
        """Calls that went out while its port was closed."""
        return self.count(*SENT, phases=(DEAD,))

    def seconds_lost(self, phases: Iterable[int] = ALL) -> float:
        """Sum the seconds that callers waited for what became a failure."""
        return sum(self._lost[phase] for phase in phases)

    def responses(self, *outcomes: Outcome, phases: Sequence[int] = ALL) -> list[float]:
        """Give the response times, in seconds, of the requests due in `phases` that ended in one of `outcomes`."""
        return [call.response for call in self.calls if call.outcome in outcomes and call.phase in phases]

    def recovered_after(self, healed_at: float) -> float | None:
        """Give the seconds from the healing until every request was answered again; None if that was not seen."""
        after = sorted((call for call in self.calls if call.intended >= healed_at), key=lambda call: call.intended)
        bad = [call for call in after if call.outcome not in ANSWERED]
        if not after or (bad and bad[-1] is after[-1]):
            return None
        return max((call.intended for call in bad), default=healed_at) - healed_at


def percentile(values: Iterable[float], share: float) -> float | None:
    """Give the smallest value that at least `share` of all values do not exceed; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def duration(seconds: float) -> str:
    """Write a duration in the unit that people read best."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.3g} s"
