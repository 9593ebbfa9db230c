"""The plain view of the demo: lines for logs, pipes and terminals without rich, in ASCII alone."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from . import findings as told
from .ledger import Outcome

if TYPE_CHECKING:
    from .clients import Client
    from .ledger import StateChange
    from .run import Run

__all__ = ["PlainView", "View"]

WIDTH = 100


class View(Protocol):
    """What the demo shows itself through: entered before the load, left after it."""

    def __enter__(self) -> object:
        """Say what is going to be shown."""
        ...

    def __exit__(self, *_: object) -> None:
        """Stop showing the present, and leave the terminal as it was."""
        ...

    def update(self) -> None:
        """Show the present; called about ten times a second."""
        ...

    def conclude(self) -> None:
        """Show what came out."""
        ...


class PlainView:
    """Writes a line per phase, per change of the breaker, and per second or so.

    Args:
        run: what to show.
        stream: where the lines go.
    """

    def __init__(self, run: Run, stream: TextIO) -> None:
        self._run = run
        self._stream = stream
        # About sixty lines at most, and at least six in the shortest run.
        self._interval = min(max(1.0, run.seconds / 60), run.seconds / 6)
        self._next_line = self._interval
        self._phases_told = 0
        self._changes_told = 0

    def __enter__(self) -> Self:
        """Say what is going to be shown."""
        run = self._run
        for paragraph in (
            told.TITLE,
            told.service_told(run),
            told.clients_told(run.limits),
            told.breaker_told(run.limits),
        ):
            self._paragraph(paragraph)
        self._line()
        self._line("          naked                                 | protected")
        self._line("   time   answered  failed  dropped waits   lost | answered  failed rejected waits   lost  breaker")
        return self

    def update(self) -> None:
        """Write what has become due."""
        run = self._run
        due: list[tuple[float, str]] = []
        for number in range(self._phases_told, len(run.phase_starts)):
            phase = run.script.phases[number]
            due.append((run.phase_starts[number], f"--- {phase.name.upper()}: {phase.describe()}"))
        self._phases_told = len(run.phase_starts)
        changes = run.changes[self._changes_told :]
        due += [(change.at, f"breaker {change_told(change, '->')}") for change in changes]
        self._changes_told += len(changes)
        for at, line in sorted(due, key=lambda one: one[0]):
            self._line(f"{at:6.2f} s  {line}")
        if run.elapsed >= self._next_line:
            self._next_line += self._interval
            self._line(self._status(run))

    def __exit__(self, *_: object) -> None:
        """Write what is left."""
        self.update()

    def conclude(self) -> None:
        """Write the tables and sentences."""
        self._line()
        rows = [told.Row("", "naked", "protected"), *told.rows(self._run)]
        widths = [max(len(getattr(row, column)) for row in rows) for column in ("label", "naked", "protected")]
        for row in rows:
            self._line(f"{row.label:{widths[0]}}   {row.naked:>{widths[1]}}   {row.protected:>{widths[2]}}".rstrip())
        self._line()
        for sentence in told.findings(self._run):
            self._paragraph(sentence)

    def _status(self, run: Run) -> str:
        naked, protected = (_counts(client) for client in run.clients)
        dropped = run.naked.ledger.count(Outcome.DROPPED)
        rejected = run.protected.ledger.count(Outcome.REJECTED)
        return (
            f"{run.elapsed:6.2f} s {naked[0]:9d} {naked[1]:7d} {dropped:8d} {naked[2]:5d} {naked[3]:6.1f} |"
            f" {protected[0]:8d} {protected[1]:7d} {rejected:8d} {protected[2]:5d} {protected[3]:6.1f}"
            f"  {run.breaker.state.replace('_', '-')}"
        )

    def _paragraph(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="  "):
            self._line(line)

    def _line(self, text: str = "") -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _counts(client: Client) -> tuple[int, int, int, float]:
    ledger = client.ledger
    return ledger.answered, ledger.count(Outcome.FAILED), client.in_flight, ledger.seconds_lost()


def change_told(change: StateChange, arrow: str) -> str:
    """Tell a change of the breaker in one line."""
    return f"{change.from_state} {arrow} {change.to_state}: {change.why}".replace("_", "-")
