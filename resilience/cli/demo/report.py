"""The demo's report: one self-contained HTML page, without script and without anything to load."""

from __future__ import annotations

import platform
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from . import findings as told
from . import limit_findings as limit
from .charts import css_class, outcome_chart, response_chart
from .ledger import Outcome, duration
from .limit_chart import limit_chart
from .shared_limit import ALLOWED, BUDGET
from .view import change_told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from .run import Run
    from .shared_limit import SharedLimit

__all__ = ["page", "write_report"]


def write_report(run: Run, path: Path) -> None:
    """Write the page to `path`; an existing file is replaced."""
    path.write_text(page(run, when=datetime.now().astimezone()), encoding="utf-8")


def page(run: Run, *, when: datetime) -> str:
    """Give the whole page.

    Args:
        run: a run that is over.
        when: the moment that the page names.
    """
    style = files(__package__ or "").joinpath("report.css").read_text(encoding="utf-8")
    early = "" if run.stopped_by is None else f" Stopped early, after {run.elapsed:.1f} s."
    made = f"{run.seconds:g} s on {when:%Y-%m-%d %H:%M}, Python {platform.python_version()}.{early}"
    about = (
        told.service_told(run),
        told.clients_told(run.limits),
        told.breaker_told(run.limits),
        limit.limit_told(run.shared),
    )
    body = (
        f"<h1>{escape(told.TITLE)}</h1>",
        *(f'<p class="made">{escape(line)}</p>' for line in (*about, made)),
        "<section><h2>What came out</h2>",
        *(f"<p>{escape(sentence)}</p>" for sentence in (*told.findings(run), *limit.limit_findings(run.shared))),
        "</section>",
        _figure("How long callers waited", response_chart(run), _responses_legend()),
        _figure("What became of the requests", outcome_chart(run), _legend(Outcome)),
        *([] if run.shared is None else [_limit_figure(run.shared)]),
        _side_by_side(run),
        _phase_by_phase(run),
        _what_the_service_did(run),
        _changes(run),
        *([] if run.shared is None else [_limit_stages(run.shared), _switches(run.shared)]),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>resilience demo</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def _figure(heading: str, chart: str, legend: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n<figure>{chart}\n<figcaption>{legend}</figcaption></figure></section>"


def _legend(outcomes: Iterable[Outcome]) -> str:
    return " ".join(_key(css_class(outcome), outcome.value) for outcome in outcomes)


def _responses_legend() -> str:
    states = (_key(f"state-{state}", f"breaker {state}") for state in ("closed", "open", "half-open"))
    return f"{_legend(Outcome)}<br>{' '.join(states)}"


def _limit_figure(shared: SharedLimit) -> str:
    keys = (
        ("admitted", "admitted"),
        ("legal", f"legal: {ALLOWED.burst} at once, then {ALLOWED.rate}/s"),
        ("if-open", "if all had passed while Redis was gone"),
        ("by-redis", "decided by Redis"),
        ("by-fallback", "by instances alone"),
    )
    legend = " ".join(_key(css, meaning) for css, meaning in keys)
    return _figure("One limit, and a Redis that dies", limit_chart(shared), legend)


def _key(css: str, meaning: str) -> str:
    return f'<span class="key"><i class="{css}"></i>{escape(meaning)}</span>'


def _side_by_side(run: Run) -> str:
    return _table(
        "Side by side", ("", "naked", "protected"), [(row.label, row.naked, row.protected) for row in told.rows(run)]
    )


def _phase_by_phase(run: Run) -> str:
    headings = (
        "phase",
        "client",
        "answered",
        "failed",
        "rejected",
        "dropped",
        "lost waiting",
        "answers p50",
        "answers p99",
    )
    cells = [
        (
            row.phase,
            row.client,
            *(str(count) for count in (row.answered, row.failed, row.rejected, row.dropped)),
            f"{row.lost:.1f} s",
            *("-" if value is None else duration(value) for value in (row.p50, row.p99)),
        )
        for row in told.phase_rows(run)
    ]
    return _table("Phase by phase", headings, cells, words=2)


def _what_the_service_did(run: Run) -> str:
    reached = zip(run.phase_starts, run.script.phases, strict=False)
    cells = [(phase.name, f"{start:.2f} s", phase.describe()) for start, phase in reached]
    return _table("What the service did", ("phase", "from", "behaviour"), cells, words=3)


def _changes(run: Run) -> str:
    lines = [f"{change.at:.2f} s: {change_told(change, chr(0x2192))}" for change in run.changes]
    return _list("The breaker's way", lines, "It stayed closed.")


def _limit_stages(shared: SharedLimit) -> str:
    headings = (*limit.HEADINGS[:-1], f"{limit.HEADINGS[-1]} (budget {duration(BUDGET)})")
    return _table("The limit, stage by stage", headings, [row.cells() for row in limit.stage_rows(shared)])


def _switches(shared: SharedLimit) -> str:
    lines = [f"{switch.at:.2f} s: {limit.switch_told(switch)}" for switch in shared.switches]
    return _list("What the limiters told", lines, "Nothing: Redis answered throughout.")


def _list(heading: str, lines: Sequence[str], otherwise: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section><h2>{escape(heading)}</h2>{f'<ol>{items}</ol>' if lines else f'<p>{otherwise}</p>'}</section>"


def _table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Give a table whose first `words` columns hold words, the others numbers."""
    kinds = ["word" if column < words else "number" for column in range(len(headings))]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(heading)}</th>' for kind, heading in zip(kinds, headings, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row" class="word">{escape(label)}</th>{_cells(kinds[1:], cells)}</tr>'
        for label, *cells in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f"<section><h2>{escape(caption)}</h2>\n{table}</section>"


def _cells(kinds: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, cells, strict=True))
