"""The charts of the demo's report: inline SVG without script, coloured by the page's style sheet. Pure text."""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from .ledger import Outcome, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .clients import Client
    from .ledger import StateChange
    from .run import Run

__all__ = ["css_class", "outcome_chart", "response_chart", "state_spans"]

WIDTH = 960
LEFT, RIGHT = 64, 12
PANEL_HEIGHT = 170
LANE_HEIGHT = 22
BAND_HEIGHT = 14
GAP = 34
FASTEST, SLOWEST = 1e-4, 10.0
"""Bounds of the response axis in seconds; what lies outside is drawn on the bound."""


def css_class(outcome: Outcome) -> str:
    """Give the style sheet's name for an outcome."""
    return outcome.name.lower().replace("_", "-")


class _Plot:
    """Maps seconds of the run to places on a chart, and draws what all charts share."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._per_second = (WIDTH - LEFT - RIGHT) / run.seconds

    def x(self, seconds: float) -> float:
        """Give the place of a moment of the run."""
        return LEFT + min(max(seconds, 0.0), self.run.seconds) * self._per_second

    def phases(self, top: float, height: float) -> Iterator[str]:
        """Shade the phases that were reached."""
        starts = self.run.phase_starts
        ends = [*starts[1:], self.run.elapsed]
        for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
            kind = "healthy" if self.run.script.phases[number].healthy else "sick"
            yield _rect(kind, self.x(start), top, self.x(end) - self.x(start), height)
            if number:
                yield f'<path class="edge" d="M{self.x(start):.1f} {top:g}v{height:g}"/>'

    def phase_names(self, y: float) -> Iterator[str]:
        """Name the phases in one row."""
        starts = self.run.phase_starts
        ends = [*starts[1:], self.run.elapsed]
        for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
            middle = (self.x(start) + self.x(end)) / 2
            yield _text(self.run.script.phases[number].name, middle, y, "phase middle")

    def seconds_axis(self, y: float) -> Iterator[str]:
        """Write the seconds of the run in one row."""
        step = _round_step(self.run.seconds / 10)
        for number in range(int(self.run.seconds / step) + 1):
            at = number * step
            yield f'<path class="grid" d="M{self.x(at):.1f} {y:g}v4"/>'
            yield _text(f"{at:g} s", self.x(at), y + 16, "tick middle")


def response_chart(run: Run) -> str:
    """Draw the response time of every request of both clients over the run, and the breaker's state below."""
    plot = _Plot(run)
    drawn = [*plot.phase_names(14)]
    top = 24.0
    limits = run.limits.patience, run.limits.attempt
    for client, limit in zip(run.clients, limits, strict=True):
        drawn += _response_panel(plot, client, limit, top)
        top += PANEL_HEIGHT + LANE_HEIGHT + GAP
    top -= GAP - 6
    drawn += _state_band(plot, top)
    drawn += plot.seconds_axis(top + BAND_HEIGHT + 4)
    described = (
        "Two panels over the same seconds, naked client above, protected below. Each mark is one request: when it was"
        " due, and how long its caller waited for the outcome, on a logarithmic axis."
    )
    return _svg("responses", "Response time of every request", described, top + BAND_HEIGHT + 26, drawn)


def _response_panel(plot: _Plot, client: Client, limit: float, top: float) -> Iterator[str]:
    yield from plot.phases(top, PANEL_HEIGHT + LANE_HEIGHT)
    bottom = top + PANEL_HEIGHT
    for exponent in range(round(math.log10(FASTEST)), round(math.log10(SLOWEST)) + 1):
        y = _y(10.0**exponent, bottom)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(duration(10.0**exponent), LEFT - 6, y + 4, "tick end")
    y = _y(limit, bottom)
    yield f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    yield _text(f"its timeout, {duration(limit)}", WIDTH - RIGHT - 6, y - 4, "note end")
    yield _text(client.name, LEFT, top - 7, "panel")
    yield _text("dropped", LEFT - 6, bottom + LANE_HEIGHT - 4, "tick end")
    # Answers last, on top: among a cloud of failures they are what is looked for.
    for outcome in reversed(Outcome):
        places = {
            (round(plot.x(call.intended), 1), round(_y(call.response, bottom), 1))
            for call in client.ledger.calls
            if call.outcome is outcome
        }
        if outcome is Outcome.DROPPED:
            places = {(x, bottom + LANE_HEIGHT - 8) for x, _ in places}
        sign = "m-2.5-2.5l5 5m0-5l-5 5" if outcome is Outcome.FAILED else "h.01"
        if places:
            marks = "".join(f"M{x:g} {y:g}{sign}" for x, y in sorted(places))
            yield f'<path class="mark {css_class(outcome)}" d="{marks}"/>'


def _y(seconds: float, bottom: float) -> float:
    share = math.log(max(seconds, FASTEST) / FASTEST) / math.log(SLOWEST / FASTEST)
    return bottom - min(share, 1.0) * PANEL_HEIGHT


def _state_band(plot: _Plot, top: float) -> Iterator[str]:
    yield _text("breaker", LEFT - 6, top + BAND_HEIGHT - 3, "tick end")
    for state, start, end in state_spans(plot.run.changes, plot.run.elapsed):
        # A probing stretch of a few milliseconds still has to be seen.
        width = max(plot.x(end) - plot.x(start), 1.5 if state == "half_open" else 0.0)
        yield _rect(f"state-{state.replace('_', '-')}", plot.x(start), top, width, BAND_HEIGHT)


def state_spans(changes: Iterable[StateChange], end: float) -> list[tuple[str, float, float]]:
    """Turn state changes into stretches: state, start and end in seconds; half-open ones last, to be drawn on top."""
    spans = []
    state, since = "closed", 0.0
    for change in changes:
        spans.append((state, since, change.at))
        state, since = change.to_state, change.at
    spans.append((state, since, max(end, since)))
    return sorted(spans, key=lambda span: span[0] == "half_open")


def outcome_chart(run: Run) -> str:
    """Draw stacked bars: what became of the requests, per half second or so, for both clients."""
    plot = _Plot(run)
    step = _round_step(run.seconds / 40)
    height = 110.0
    drawn = [*plot.phase_names(14)]
    top = 24.0
    for client in run.clients:
        drawn += plot.phases(top, height)
        drawn += _bars(plot, client, step, top, height)
        drawn.append(_text(client.name, LEFT - 6, top + height / 2, "tick end"))
        top += height + 16
    drawn += plot.seconds_axis(top - 12)
    described = (
        f"Two rows of stacked bars, naked client above, protected below; each bar counts {step:g} s of requests."
    )
    return _svg("outcomes", "What became of the requests", described, top + 14, drawn)


def _bars(plot: _Plot, client: Client, step: float, top: float, height: float) -> Iterator[str]:
    # A hair later, or requests due on an edge would fall to either side of it as their last bits happen to be.
    due = [(int(call.intended / step + 1e-6), call.outcome) for call in client.ledger.calls]
    counts = Counter(due)
    totals = Counter(column for column, _ in due)
    tallest = max(totals.values(), default=1)
    for outcome in Outcome:
        bars = []
        for column in sorted(totals):
            below = sum(counts[column, other] for other in Outcome if _rank(other) < _rank(outcome))
            count = counts[column, outcome]
            if count:
                x, right = plot.x(column * step) + 0.5, plot.x((column + 1) * step) - 0.5
                y = top + height - (below + count) / tallest * height
                bars.append(f"M{x:.1f} {y:.1f}H{right:.1f}v{count / tallest * height:.1f}H{x:.1f}z")
        if bars:
            yield f'<path class="bar {css_class(outcome)}" d="{"".join(bars)}"/>'


def _rank(outcome: Outcome) -> int:
    return list(Outcome).index(outcome)


def _round_step(about: float) -> float:
    """Give the smallest of 1, 2, 5 times a power of ten that is not below `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * (1 - 1e-9))


def _rect(css: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{x:.1f}" y="{y:g}" width="{max(width, 0.0):.1f}" height="{height:g}"/>'


def _text(text: str, x: float, y: float, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(name: str, title: str, described: str, height: float, drawn: Iterable[str]) -> str:
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-described" viewBox="0 0 {WIDTH} {height:g}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-described">{escape(described)}</desc>'
        f"{''.join(drawn)}</svg>"
    )
