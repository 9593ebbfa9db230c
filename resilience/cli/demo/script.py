"""What happens to the service of the demo, and when: a pure table that the service plays and the reports read."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["DEAD", "PHASES", "Phase", "Script", "time_scale"]

NATURAL_SECONDS = 20.0
"""The length at which all timeouts and delays of the demo have their written values."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of the script.

    Args:
        name: what the views call it.
        share: its part of the whole run, 0 to 1.
        delay: bounds in seconds between which an answer is delayed.
        error_rate: share of the answers that are errors.
        answers: False = connections are accepted and requests read, but never answered.
        listens: False = the port is closed.
        healthy: True = nothing is wrong; in all other phases the service is sick.
    """

    name: str
    share: float
    delay: tuple[float, float] = (0.004, 0.012)
    error_rate: float = 0.0
    answers: bool = True
    listens: bool = True
    healthy: bool = False

    def describe(self) -> str:
        """Tell in half a sentence what the service does in this phase."""
        if not self.listens:
            return "its port is closed, connections are refused"
        if not self.answers:
            return "accepts every call and never answers"
        quick, late = self.delay
        pace = f"after {quick * 1000:.0f} to {late * 1000:.0f} ms"
        if self.error_rate:
            return f"answers {pace}, {self.error_rate:.0%} of the answers are errors"
        return f"answers {pace}"


PHASES = (
    Phase(name="healthy", share=0.20, healthy=True),
    Phase(name="slow", share=0.15, delay=(0.8, 1.4)),
    Phase(name="failing", share=0.15, error_rate=0.8),
    Phase(name="hanging", share=0.15, answers=False),
    Phase(name="dead", share=0.15, listens=False),
    Phase(name="healthy again", share=0.20, healthy=True),
)
DEAD = next(number for number, phase in enumerate(PHASES) if not phase.listens)


def time_scale(seconds: float) -> float:
    """Give the factor by which a short run shrinks all timeouts and slow delays.

    Never more than 1: a longer run shows more of each phase, not slower software. Never less than 0.3: below that
    a timeout would be as short as the hiccups of a busy machine, and the demo would show those.
    """
    return min(1.0, max(0.3, seconds / NATURAL_SECONDS))


class Script:
    """The phases of one run, with the seconds after its start at which each begins and ends.

    Args:
        seconds: length of the run.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        scale = time_scale(seconds)
        self.phases = tuple(replace(phase, delay=_shrunk(phase.delay, scale)) for phase in PHASES)
        self.ends: tuple[float, ...] = tuple(
            seconds * sum(phase.share for phase in PHASES[: number + 1]) for number in range(len(PHASES))
        )
        self.starts: tuple[float, ...] = (0.0, *self.ends[:-1])


def _shrunk(delay: tuple[float, float], scale: float) -> tuple[float, float]:
    quick, late = delay
    # A healthy answer is as quick as it is at any length; what is slow is slow beside timeouts, which shrink.
    return delay if late < 0.1 else (quick * scale, late * scale)
