"""The chart of the shared limit: what passed beside what is legal, and who decided. Pure text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .shared_limit import ALLOWED
from .svg import LEFT, RIGHT, WIDTH, Plot, Stretch, rect, round_step, svg, text
from .tally import GONE, STAGES, decided_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .shared_limit import SharedLimit

__all__ = ["limit_chart"]

TOTAL_HEIGHT = 190.0
BARS_HEIGHT = 110.0
BAND_HEIGHT = 14.0
GAP = 34.0
POINTS = 240
"""Of a line over the whole width."""
DECIDERS = {"redis": "by-redis", "fallback": "by-fallback"}


def limit_chart(shared: SharedLimit) -> str:
    """Draw the totals of admitted and legal calls over the run, what passed in each half second or so, and by whom."""
    plot = _plot(shared)
    drawn = [*plot.names(14)]
    top = 24.0
    drawn += _totals(plot, shared, top)
    top += TOTAL_HEIGHT + GAP
    drawn += _bars(plot, shared, top)
    top += BARS_HEIGHT + 6
    drawn.append(text("decides", LEFT - 6, top + BAND_HEIGHT - 3, "tick end"))
    for alone, start, end in decided_alone(shared.switches, shared.elapsed):
        css = DECIDERS["fallback" if alone else "redis"]
        drawn.append(rect(css, plot.x(start), top, plot.x(end) - plot.x(start), BAND_HEIGHT))
    drawn += plot.seconds_axis(top + BAND_HEIGHT + 4)
    described = (
        "Above, over the seconds of the run: the calls admitted so far, the calls that the limit allows so far, and"
        " what would have been admitted if every call had passed while Redis was gone. Below: the calls admitted in"
        f" each {_step(shared):g} s, beside what the limit allows in that time, and who decided."
    )
    return svg("limit", "Admitted and legal calls", described, top + BAND_HEIGHT + 26, drawn)


def _plot(shared: SharedLimit) -> Plot:
    stages = range(len(shared.stage_starts))
    return Plot(
        shared.seconds,
        [
            Stretch("sick" if stage == GONE else "healthy", f"Redis {STAGES[stage]}", *shared.span(stage))
            for stage in stages
        ],
    )


def _step(shared: SharedLimit) -> float:
    return round_step(shared.seconds / 40)


def _totals(plot: Plot, shared: SharedLimit, top: float) -> Iterator[str]:
    answers = sorted(shared.tally.answers, key=lambda answer: answer.at)
    admitted = _running([answer.at for answer in answers if answer.allowed])
    open_ = _running([answer.at for answer in answers if answer.allowed or answer.stage == GONE])
    highest = max(open_(shared.seconds), ALLOWED.until(shared.seconds))
    yield from plot.shades(top, TOTAL_HEIGHT)
    yield text("so far", LEFT, top - 7, "panel")
    yield from _scale(highest, top, TOTAL_HEIGHT)
    for css, total in (("line if-open", open_), ("line legal", ALLOWED.until), ("line admitted", admitted)):
        points = []
        for number in range(POINTS + 1):
            at = number / POINTS * shared.elapsed
            points.append(f"{plot.x(at):.1f} {top + TOTAL_HEIGHT * (1 - total(at) / highest):.1f}")
        yield f'<path class="{css}" d="M{"L".join(points)}"/>'


def _running(moments: list[float]) -> Callable[[float], int]:
    """Give a function that counts the moments up to one; asked in rising order it takes one walk."""
    passed = 0

    def count(at: float) -> int:
        nonlocal passed
        if passed and moments[passed - 1] > at:
            passed = 0
        while passed < len(moments) and moments[passed] <= at:
            passed += 1
        return passed

    return count


def _bars(plot: Plot, shared: SharedLimit, top: float) -> Iterator[str]:
    step = _step(shared)
    counts = Counter((int(answer.at / step), answer.source) for answer in shared.tally.answers if answer.allowed)
    columns = {column for column, _ in counts}
    highest = max([sum(counts[column, source] for source in DECIDERS) for column in columns], default=1)
    yield from plot.shades(top, BARS_HEIGHT)
    yield text(f"in each {step:g} s", LEFT, top - 7, "panel")
    yield from _scale(highest, top, BARS_HEIGHT)
    for source, css in DECIDERS.items():
        bars = []
        for column in sorted(columns):
            below = counts[column, "redis"] if source == "fallback" else 0
            height = counts[column, source] / highest * BARS_HEIGHT
            if height:
                x, right = plot.x(column * step) + 0.5, plot.x((column + 1) * step) - 0.5
                y = top + BARS_HEIGHT * (1 - below / highest) - height
                bars.append(f"M{x:.1f} {y:.1f}H{right:.1f}v{height:.1f}H{x:.1f}z")
        if bars:
            yield f'<path class="bar {css}" d="{"".join(bars)}"/>'
    y = top + BARS_HEIGHT * (1 - min(ALLOWED.rate * step / highest, 1.0))
    yield f'<path class="line legal" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'


def _scale(highest: int, top: float, height: float) -> Iterator[str]:
    step = max(1, round(round_step(highest / 4)))
    for value in range(0, highest + 1, step):
        y = top + height * (1 - value / highest)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield text(str(value), LEFT - 6, y + 4, "tick end")
