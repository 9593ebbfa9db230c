"""Draws the run of one outage under every policy as SVG, from its kept numbers. Pure text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from math import log
from typing import Any, Final

WIDTH: Final = 960
COLUMNS: Final = 2
LEFT: Final = 58
TOP: Final = 92
"""Of the first panel."""
PANEL_WIDTH: Final = 400
PANEL_HEIGHT: Final = 132
STEP_X: Final = 466
STEP_Y: Final = 200
LOWEST: Final = 1.0
HIGHEST: Final = 200.0
"""Bounds of the logarithmic axis, in units per second; nothing at all is drawn on the lower one."""
TICKS: Final = (1, 10, 100)

STYLE: Final = """
  .page { fill: #ffffff; stroke: #d5d9e0 }
  text { font-family: ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2430 }
  .name { font-size: 15px; font-weight: 600 }
  .sum { font-size: 13px; fill: #4a5263; text-anchor: end }
  .note, .tick { font-size: 12px; fill: #5b6475 }
  .tick.end { text-anchor: end }
  .tick.middle, .note.middle { text-anchor: middle }
  .outage { fill: #eceff4 }
  .grid { stroke: #d5d9e0; stroke-width: 1 }
  .held { fill: #bfe3cd }
  .above { fill: #f2b3b3 }
  .line { fill: none; stroke: #2b6e47; stroke-width: 1.8; stroke-linejoin: round }
  .legal { stroke: #c23a3a; stroke-width: 1.6; stroke-dasharray: 6 4 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1b1e26; stroke: #343a48 }
    text { fill: #e8ebf2 }
    .sum { fill: #b3bac9 }
    .note, .tick { fill: #98a1b3 }
    .outage { fill: #282d39 }
    .grid { stroke: #3a4151 }
    .held { fill: #24513a }
    .above { fill: #7a2e33 }
    .line { stroke: #6fcf97 }
    .legal { stroke: #f08080 }
  }"""


def draw(report: dict[str, Any]) -> str:
    """Give the picture of the story of which `report` has the course, as SVG."""
    record = next(one for one in report["scenarios"] if any("trailing" in row for row in one["policies"].values()))
    rows = record["policies"].values()
    lines = -(-len(rows) // COLUMNS)
    height = TOP + (lines - 1) * STEP_Y + PANEL_HEIGHT + 56
    panels = [part for number, row in enumerate(rows) for part in _panel(record, row, number)]
    drawn = "\n".join([*_legend(record), *panels])
    sums = " ".join(f"{row['name']}: {row['ratio']:.2f} of the ideal, at most {row['peak']}." for row in rows)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title told">
<title id="title">What {record["instances"]} instances admit while Redis is out of reach</title>
<desc id="told">One panel for each policy: units admitted in the last {record["window"]:g} s, per second, on a \
logarithmic axis. Legal in any {record["window"]:g} s: {record["legal"]}. {escape(sums)}</desc>
<style>{STYLE}
</style>
<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>
{drawn}
</svg>
"""


def _legend(record: dict[str, Any]) -> Iterator[str]:
    window = record["window"]
    told = (
        f"Units per second over the last {window:g} s, logarithmic. {record['instances']} instances, {record['quota']}."
    )
    yield f'<text class="note" x="28" y="34">{escape(told)}</text>'
    yield '<path class="legal" d="M 620 30 H 660"/>'
    yield f'<text class="note" x="670" y="34">legal: {record["legal"]} in any {window:g} s</text>'
    yield '<rect class="outage" x="820" y="22" width="18" height="15"/>'
    yield '<text class="note" x="846" y="34">Redis is down</text>'


def _panel(record: dict[str, Any], row: dict[str, Any], number: int) -> Iterator[str]:
    left, top = LEFT + number % COLUMNS * STEP_X, TOP + number // COLUMNS * STEP_Y
    bottom, right = top + PANEL_HEIGHT, left + PANEL_WIDTH

    def x(second: float) -> float:
        return left + second / float(record["seconds"]) * PANEL_WIDTH

    def y(per_second: float) -> float:
        share = log(min(max(per_second, LOWEST), HIGHEST) / LOWEST) / log(HIGHEST / LOWEST)
        return bottom - share * PANEL_HEIGHT

    yield f'<text class="name" x="{left}" y="{top - 10}">{escape(row["name"])}</text>'
    yield f'<text class="sum" x="{right}" y="{top - 10}">{row["ratio"]:.2f}x of the ideal total</text>'
    for begin, end in record["outages"]:
        width = x(end) - x(begin)
        yield f'<rect class="outage" x="{x(begin):.1f}" y="{top}" width="{width:.1f}" height="{PANEL_HEIGHT}"/>'
    legal = y(record["legal"] / record["window"])
    heights = [y(count / record["window"]) for count in row["trailing"]]
    yield f'<path class="held" d="{_area([max(one, legal) for one in heights], x, bottom)}"/>'
    if any(one < legal for one in heights):
        yield f'<path class="above" d="{_area([min(one, legal) for one in heights], x, legal)}"/>'
    for tick in TICKS:
        yield f'<path class="grid" d="M {left} {y(tick):.1f} H {right}"/>'
        yield f'<text class="tick end" x="{left - 7}" y="{y(tick) + 4:.1f}">{tick}</text>'
    yield f'<path class="line" d="{_course(heights, x)}"/>'
    yield f'<path class="legal" d="M {left} {legal:.1f} H {right}"/>'
    for second in sorted({0.0, record["seconds"], *(edge for outage in record["outages"] for edge in outage)}):
        yield f'<text class="tick middle" x="{x(second):.1f}" y="{bottom + 18}">{second:g} s</text>'


def _course(heights: list[float], x: Callable[[float], float]) -> str:
    return "M " + " L ".join(f"{x(second):.1f} {height:.1f}" for second, height in enumerate(heights))


def _area(heights: list[float], x: Callable[[float], float], base: float) -> str:
    return f"{_course(heights, x)} L {x(len(heights) - 1):.1f} {base:.1f} L {x(0):.1f} {base:.1f} z"
