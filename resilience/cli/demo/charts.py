"""The charts of the demo's report: inline SVG without script, coloured by the page's style sheet. Pure text."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from .ledger import Outcome, duration
from .svg import LEFT, RIGHT, WIDTH, Plot, Stretch, rect, round_step, svg, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .clients import Client
    from .ledger import StateChange
    from .run import Run

__all__ = ["css_class", "outcome_chart", "response_chart", "state_spans"]

PANEL_HEIGHT = 170
LANE_HEIGHT = 22
BAND_HEIGHT = 14
GAP = 34
FASTEST, SLOWEST = 1e-4, 10.0
"""Bounds of the response axis in seconds; what lies outside is drawn on the bound."""


def css_class(outcome: Outcome) -> str:
    """Give the style sheet's name for an outcome."""
    return outcome.name.lower().replace("_", "-")


def _plot(run: Run) -> Plot:
    ends = [*run.phase_starts[1:], run.elapsed]
    reached = zip(run.script.phases, run.phase_starts, ends, strict=False)
    return Plot(
        run.seconds,
        [Stretch("healthy" if phase.healthy else "sick", phase.name, start, end) for phase, start, end in reached],
    )


def response_chart(run: Run) -> str:
    """Draw the response time of every request of both clients over the run, and the breaker's state below."""
    plot = _plot(run)
    drawn = [*plot.names(14)]
    top = 24.0
    limits = run.limits.patience, run.limits.attempt
    for client, limit in zip(run.clients, limits, strict=True):
        drawn += _response_panel(plot, client, limit, top)
        top += PANEL_HEIGHT + LANE_HEIGHT + GAP
    top -= GAP - 6
    drawn += _state_band(run, plot, top)
    drawn += plot.seconds_axis(top + BAND_HEIGHT + 4)
    described = (
        "Two panels over the same seconds, naked client above, protected below. Each mark is one request: when it was"
        " due, and how long its caller waited for the outcome, on a logarithmic axis."
    )
    return svg("responses", "Response time of every request", described, top + BAND_HEIGHT + 26, drawn)


def _response_panel(plot: Plot, client: Client, limit: float, top: float) -> Iterator[str]:
    yield from plot.shades(top, PANEL_HEIGHT + LANE_HEIGHT)
    bottom = top + PANEL_HEIGHT
    for exponent in range(round(math.log10(FASTEST)), round(math.log10(SLOWEST)) + 1):
        y = _y(10.0**exponent, bottom)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield text(duration(10.0**exponent), LEFT - 6, y + 4, "tick end")
    y = _y(limit, bottom)
    yield f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    yield text(f"its timeout, {duration(limit)}", WIDTH - RIGHT - 6, y - 4, "note end")
    yield text(client.name, LEFT, top - 7, "panel")
    yield text("dropped", LEFT - 6, bottom + LANE_HEIGHT - 4, "tick end")
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


def _state_band(run: Run, plot: Plot, top: float) -> Iterator[str]:
    yield text("breaker", LEFT - 6, top + BAND_HEIGHT - 3, "tick end")
    for state, start, end in state_spans(run.changes, run.elapsed):
        # A probing stretch of a few milliseconds still has to be seen.
        width = max(plot.x(end) - plot.x(start), 1.5 if state == "half_open" else 0.0)
        yield rect(f"state-{state.replace('_', '-')}", plot.x(start), top, width, BAND_HEIGHT)


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
    plot = _plot(run)
    step = round_step(run.seconds / 40)
    height = 110.0
    drawn = [*plot.names(14)]
    top = 24.0
    for client in run.clients:
        drawn += plot.shades(top, height)
        drawn += _bars(plot, client, step, top, height)
        drawn.append(text(client.name, LEFT - 6, top + height / 2, "tick end"))
        top += height + 16
    drawn += plot.seconds_axis(top - 12)
    described = (
        f"Two rows of stacked bars, naked client above, protected below; each bar counts {step:g} s of requests."
    )
    return svg("outcomes", "What became of the requests", described, top + 14, drawn)


def _bars(plot: Plot, client: Client, step: float, top: float, height: float) -> Iterator[str]:
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
