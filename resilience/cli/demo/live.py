"""The live view of the demo, for terminals: needs rich, and is imported only where rich is there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import findings as told
from . import limit_findings as limit
from .clients import SLOTS
from .ledger import Outcome
from .limit_live import deciders_row, limit_table, stages_row
from .tally import STAGES
from .view import change_told

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .clients import Client
    from .run import Run

__all__ = ["LiveView"]

WIDEST = 110
LABEL_WIDTH = 11
MOST_CHANGES_SHOWN = 6
WIDTH_OF_BOTH = 80
"""Columns that the clients' figures and the shared limit's need beside each other."""
PICTURE_HEIGHT = 22
"""Lines of the picture without the changes of the breaker: they leave two in a terminal of 24 lines."""

MARKS = {
    Outcome.IN_TIME: ("\u2588", "green"),
    Outcome.LATE: ("\u2593", "yellow"),
    Outcome.FAILED: ("\u00d7", "bold red"),
    Outcome.REJECTED: ("\u2500", "cyan"),
    Outcome.DROPPED: ("\u2591", "magenta"),
}
WAITING = ("\u00b7", "dim")
"""Signs besides colours: the picture has to be readable without them."""

STATES = {"closed": ("\u2500", "green"), "open": ("\u2588", "red"), "half_open": ("\u2592", "yellow")}


class LiveView:
    """Redraws a picture of the run in place, and prints the tables at the end.

    Args:
        run: what to show.
        console: the terminal.
    """

    def __init__(self, run: Run, console: Console) -> None:
        self._run = run
        self._console = console
        self._columns = max(min(console.width, WIDEST) - LABEL_WIDTH - 1, 20)
        # A picture higher than the terminal could not be redrawn in place.
        self._changes_shown = min(max(console.height - PICTURE_HEIGHT, 0), MOST_CHANGES_SHOWN)
        self._strips = [_Strip(client, run.seconds, self._columns) for client in run.clients]
        # Redrawn by the demo itself: a thread of rich's own would read the ledgers while they are written.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Print what does not change, then begin the picture."""
        run = self._run
        self._console.print(Text(told.TITLE, style="bold"))
        about = (told.service_told(run), told.clients_told(run.limits), told.breaker_told(run.limits))
        for line in (*about, limit.limit_told(run.shared)):
            self._console.print(Text(line, style="dim"))
        self._console.print()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the picture away and give the cursor back."""
        self._live.stop()

    def update(self) -> None:
        """Draw the present."""
        self._live.update(self._picture(), refresh=True)

    def conclude(self) -> None:
        """Print the whole timeline, the side-by-side table and the sentences."""
        run = self._run
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("")
        table.add_column("naked", justify="right", style="bold")
        table.add_column("protected", justify="right", style="bold")
        for row in told.rows(run):
            table.add_row(row.label, row.naked, row.protected)
        self._console.print(self._timeline(), _legend(), Text(), table, Text(), sep="\n")
        if run.shared is not None:
            self._console.print(limit_table(run.shared), Text(), sep="\n")
        for sentence in (*told.findings(run), *limit.limit_findings(run.shared)):
            self._console.print(Text(sentence), width=min(self._console.width, WIDEST))

    def _picture(self) -> Group:
        return Group(self._now(), Text(), self._timeline(), _legend(), Text(), self._figures(), Text(), self._changes())

    def _now(self) -> Text:
        run = self._run
        phase = run.phase
        color = "green" if phase.healthy else "red"
        told_now = Text.assemble(
            (f"{run.elapsed:5.1f} of {run.seconds:g} s  ", "bold"),
            "the service is ",
            (f" {phase.name.upper()} ", f"bold white on {color}"),
            f"  {phase.describe()}",
        )
        return self._line(told_now)

    def _timeline(self) -> RenderableType:
        lines = [self._phases(), *(strip.draw(self._run.elapsed) for strip in self._strips), self._states()]
        labels = ["service", *(client.name for client in self._run.clients), "breaker"]
        if (shared := self._run.shared) is not None:
            lines += [stages_row(shared, self._columns), deciders_row(shared, self._columns)]
            labels += ["Redis", "limit by"]
        drawn = Text()
        for label, line in zip(labels, lines, strict=True):
            drawn.append(f"{label:{LABEL_WIDTH}}")
            drawn.append_text(line)
            if label != labels[-1]:
                drawn.append("\n")
        return drawn

    def _phases(self) -> Text:
        run = self._run
        drawn = Text()
        for number, phase in enumerate(run.script.phases):
            edge = round(run.script.ends[number] / run.seconds * self._columns)
            width = edge - len(drawn.plain)
            color = "green" if phase.healthy else "red"
            reached = number < len(run.phase_starts)
            drawn.append(f"{phase.name[:width]:^{width}}", f"bold white on {color}" if reached else "dim")
        return drawn

    def _states(self) -> Text:
        run = self._run
        step = run.seconds / self._columns
        drawn = Text()
        # A round of probes is often shorter than a column: a column shows it if any of it falls there.
        changes = [(change.at, change.to_state) for change in run.changes]
        state = "closed"
        for column in range(min(self._columns, int(run.elapsed / step))):
            here = [entered for at, entered in changes if column * step <= at < (column + 1) * step]
            shown = "half_open" if "half_open" in here else (here[-1] if here else state)
            state = here[-1] if here else state
            drawn.append(*STATES.get(shown, ("?", "")))
        return drawn

    def _figures(self) -> RenderableType:
        if self._run.shared is None or self._console.width < WIDTH_OF_BOTH:
            return self._counts()
        beside = Table.grid(padding=(0, 3, 0, 0))
        beside.add_row(self._counts(), limit_table(self._run.shared))
        return beside

    def _counts(self) -> Table:
        """Give the clients' figures; narrow, so that in 80 columns the shared limit's find place beside them."""
        run = self._run
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("", "naked", "protected"):
            table.add_column(heading, justify="right" if heading else "left")
        for outcome, (_, color) in MARKS.items():
            counts = (str(client.ledger.count(outcome)) for client in run.clients)
            table.add_row(outcome.value, *(Text(count, color) for count in counts))
        table.add_row(f"waiting ({SLOTS} slots)", *(str(client.in_flight) for client in run.clients))
        lost = (f"{client.ledger.seconds_lost():.1f} s" for client in run.clients)
        table.add_row("lost in failures", *(Text(seconds, "bold") for seconds in lost))
        sent = (str(client.ledger.sent_while_sick) for client in run.clients)
        table.add_row("sent while sick", *sent)
        return table

    def _changes(self) -> Text:
        state = self._run.breaker.state
        drawn = Text.assemble(
            "the breaker is ", (f" {state.replace('_', '-').upper()} ", f"bold {STATES[state][1]} reverse")
        )
        told = [(change.at, f"breaker {change_told(change, chr(0x2192))}") for change in self._run.changes]
        if (shared := self._run.shared) is not None:
            told += [
                (at, f"Redis {STAGES[stage]}: {limit.stage_told(shared, stage)}")
                for stage, at in enumerate(shared.stage_starts)
            ]
            told += [(switch.at, limit.switch_told(switch)) for switch in shared.switches]
        for at, line in sorted(told)[max(len(told) - self._changes_shown, 0) :]:
            drawn.append_text(self._line(Text(f"\n  {at:6.2f} s  {line}", "dim")))
        return drawn

    def _line(self, text: Text) -> Text:
        """Keep a line one line: a wrapped one would make the picture higher than it is known to be."""
        text.truncate(self._console.width, overflow="ellipsis")
        return text


class _Strip:
    """One client's row of the timeline: per column the most frequent outcome of the requests due there.

    Args:
        client: whose row it is.
        seconds: what the row spans.
        columns: its width in characters.
    """

    def __init__(self, client: Client, seconds: float, columns: int) -> None:
        self._client = client
        self._step = seconds / columns
        self._seen = 0
        self._outcomes: list[Counter[Outcome]] = [Counter() for _ in range(columns)]

    def draw(self, elapsed: float) -> Text:
        """Draw the row up to `elapsed` seconds."""
        calls = self._client.ledger.calls
        for call in calls[self._seen :]:
            column = min(int(call.intended / self._step), len(self._outcomes) - 1)
            self._outcomes[column][call.outcome] += 1
        self._seen = len(calls)
        drawn = Text()
        for outcomes in self._outcomes[: int(elapsed / self._step)]:
            drawn.append(*(MARKS[outcomes.most_common(1)[0][0]] if outcomes else WAITING))
        return drawn


def _legend() -> Text:
    drawn = Text(" " * LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    for (sign, style), meaning in (*((mark, outcome.value) for outcome, mark in MARKS.items()), (WAITING, "waiting")):
        # Short enough for 80 columns.
        drawn.append(f"{sign} ", style)
        drawn.append(f"{meaning.removeprefix('answered ').removesuffix(' at once')}  ", "dim")
    return drawn
