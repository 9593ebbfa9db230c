"""The shared limit in the live view: two rows of the timeline, and a table. Needs rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from . import limit_findings as limit
from .ledger import duration
from .shared_limit import BUDGET
from .tally import GONE, STAGES, decided_alone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .shared_limit import SharedLimit

__all__ = ["deciders_row", "limit_table", "stages_row"]

LABELS = ("admitted", "legal", "ratio", "by Redis", "fallback", "blocked", "max wait")
EMPHASIZED = ("admitted", "legal", "ratio")


def stages_row(shared: SharedLimit, columns: int) -> Text:
    """Draw what happened to Redis."""
    stages = range(len(shared.stage_starts))
    told = ((STAGES[stage], "red" if stage == GONE else "green", shared.span(stage)[1]) for stage in stages)
    return _row(shared, columns, told)


def deciders_row(shared: SharedLimit, columns: int) -> Text:
    """Draw who decided."""
    stretches = decided_alone(shared.switches, shared.elapsed)
    told = (("fallback" if alone else "Redis", "yellow" if alone else "green", end) for alone, _, end in stretches)
    return _row(shared, columns, told)


def _row(shared: SharedLimit, columns: int, stretches: Iterable[tuple[str, str, float]]) -> Text:
    drawn = Text()
    for name, color, end in stretches:
        width = min(round(end / shared.seconds * columns), columns) - len(drawn.plain)
        drawn.append(f"{name[:width]:^{width}}" if width > 0 else "", f"bold white on {color}")
    return drawn


def limit_table(shared: SharedLimit) -> Table:
    """Give what was decided so far, stage by stage and in all."""
    rows = {row.stage: row for row in limit.stage_rows(shared)}
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Redis")
    names = (*STAGES, limit.IN_ALL)
    for name in names:
        table.add_column(name, justify="right", min_width=6)
    cells = [rows[name].cells()[2:] if name in rows else ("",) * len(LABELS) for name in names]
    for label, *numbers in zip(LABELS, *cells, strict=True):
        table.add_row(label, *numbers, style="bold" if label in EMPHASIZED else "")
    table.add_row("budget", "", "", "", duration(BUDGET))
    return table
