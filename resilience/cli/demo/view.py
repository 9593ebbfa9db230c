"""The plain view of the demo: lines for logs, pipes and terminals without rich, in ASCII alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self, TextIO, TypeVar

from . import findings as told
from . import limit_findings as limit
from .ledger import Outcome
from .shared_limit import ALLOWED
from .tally import STAGES

if TYPE_CHECKING:
    from .ledger import Ledger, StateChange
    from .run import Run
    from .shared_limit import SharedLimit

__all__ = ["PlainView", "View"]

WIDTH = 80
Entry = TypeVar("Entry")


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
    """Writes a line per phase, per change of breaker and limiters, and per second or so, for 80 columns.

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
        self._told = {"phases": 0, "changes": 0, "stages": 0, "switches": 0}

    def __enter__(self) -> Self:
        """Say what is going to be shown."""
        run = self._run
        for paragraph in (
            told.TITLE,
            told.service_told(run),
            told.clients_told(run.limits),
            told.breaker_told(run.limits),
            limit.limit_told(run.shared),
        ):
            self._paragraph(paragraph)
        for line in run.pipeline.explain().splitlines():
            self._paragraph(line, indent=5)
        self._line()
        shared = run.shared is not None
        self._line(f"          naked               | protected{' | shared limit' if shared else '':>31}".rstrip())
        self._line(
            f"   time      ok failed   lost |    ok failed   lost  breaker  {'| admitted  legal' if shared else ''}"
        )
        return self

    def update(self) -> None:
        """Write what has become due."""
        run = self._run
        for at, line in sorted([*self._service_lines(run), *self._limit_lines(run.shared)], key=lambda one: one[0]):
            self._paragraph(f"{at:6.2f} s  {line}", indent=10)
        if run.elapsed >= self._next_line:
            self._next_line += self._interval
            self._line(self._status(run))

    def __exit__(self, *_: object) -> None:
        """Write what is left."""
        self.update()

    def conclude(self) -> None:
        """Write the tables and sentences."""
        run = self._run
        self._line()
        self._table([("", "naked", "protected"), *((row.label, row.naked, row.protected) for row in told.rows(run))])
        if run.shared is not None:
            self._line()
            self._table([limit.HEADINGS, *(row.cells() for row in limit.stage_rows(run.shared))])
        self._line()
        for sentence in (*told.findings(run), *limit.limit_findings(run.shared)):
            self._paragraph(sentence)

    def _service_lines(self, run: Run) -> Iterator[tuple[float, str]]:
        for number, at in self._new("phases", run.phase_starts):
            phase = run.script.phases[number]
            yield at, f"--- {phase.name.upper()}: {phase.describe()}"
        for _, change in self._new("changes", run.changes):
            yield change.at, f"breaker {change_told(change, '->')}"

    def _limit_lines(self, shared: SharedLimit | None) -> Iterator[tuple[float, str]]:
        if shared is None:
            return
        for number, at in self._new("stages", shared.stage_starts):
            yield at, f"--- REDIS {STAGES[number].upper()}: {limit.stage_told(shared, number)}"
        for _, switch in self._new("switches", shared.switches):
            yield switch.at, limit.switch_told(switch)

    def _new(self, kind: str, entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
        """Give what was not told yet, with its index."""
        start, self._told[kind] = self._told[kind], len(entries)
        return list(enumerate(entries[start:], start))

    def _status(self, run: Run) -> str:
        naked, protected = (_counts(client.ledger) for client in run.clients)
        line = f"{run.elapsed:6.2f} s {naked} | {protected}  {run.breaker.state.replace('_', '-'):9} "
        if run.shared is None:
            return line.rstrip()
        return f"{line}| {run.shared.tally.admitted():8d} {ALLOWED.until(run.shared.elapsed):6d}"

    def _table(self, rows: Sequence[Sequence[str]]) -> None:
        """Write a table with words in its first column and numbers in the others."""
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        for label, *cells in rows:
            numbers = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
            self._line("  ".join((f"{label:{first}}", *numbers)).rstrip())

    def _paragraph(self, text: str, *, indent: int = 2) -> None:
        for line in textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent):
            self._line(line)

    def _line(self, text: str = "") -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _counts(ledger: Ledger) -> str:
    return f"{ledger.answered:5d} {ledger.count(Outcome.FAILED):6d} {ledger.seconds_lost():6.1f}"


def change_told(change: StateChange, arrow: str) -> str:
    """Tell a change of the breaker in one line."""
    return f"{change.from_state} {arrow} {change.to_state}: {change.why}".replace("_", "-")
