"""Draws the circuit breaker's states from its transition table: `python docs/state_diagram.py` writes the picture.

Where things stand is laid out by hand below; which arrows there are, and what they are called, comes from the table.
"""
# ruff: noqa: INP001 - a script beside the pages that it draws for

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from resilience.breaker import CircuitState
from resilience.breaker.core import TRANSITIONS, Trigger

PICTURE: Final = Path(__file__).parent / "explanation" / "state-machine.svg"

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED, METRICS_ONLY = CircuitState

Table = Mapping[tuple[CircuitState, Trigger], CircuitState]


class Box(NamedTuple):
    """A state: its centre, and what happens to calls in it."""

    x: int
    y: int
    told: str


class Arrow(NamedTuple):
    """A way from state to state, and where its names stand."""

    path: str
    x: int
    y: int
    anchor: str = "middle"


WIDTH: Final = 960
HEIGHT: Final = 560
BOX_WIDTH: Final = 200
BOX_HEIGHT: Final = 72
LINE: Final = 18
"""From one name of an arrow to the next."""

BOXES: Final = {
    CLOSED: Box(160, 170, "calls pass and are counted"),
    OPEN: Box(800, 170, "calls are refused"),
    HALF_OPEN: Box(480, 310, "a few probes pass"),
    FORCED_OPEN: Box(160, 496, "all calls are refused"),
    DISABLED: Box(480, 496, "calls pass uncounted"),
    METRICS_ONLY: Box(800, 496, "calls pass, thresholds tell"),
}

MOVES: Final = {
    (CLOSED, OPEN): Arrow("M 260 158 L 692 158", 480, 128),
    (OPEN, HALF_OPEN): Arrow("M 740 206 C 720 250 660 290 588 298", 650, 238, "end"),
    (HALF_OPEN, OPEN): Arrow("M 580 328 C 690 326 790 300 808 214", 756, 318, "start"),
    (HALF_OPEN, CLOSED): Arrow("M 380 318 C 280 312 190 280 170 214", 218, 312, "end"),
}

ORDERS: Final = {
    CLOSED: Arrow("M 160 86 L 160 126", 174, 96, "start"),
    OPEN: Arrow("M 800 86 L 800 126", 814, 96, "start"),
    FORCED_OPEN: Arrow("M 160 412 L 160 452", 174, 424, "start"),
    DISABLED: Arrow("M 480 412 L 480 452", 494, 424, "start"),
    METRICS_ONLY: Arrow("M 800 412 L 800 452", 814, 424, "start"),
}

STYLE: Final = """
  .page { fill: #ffffff; stroke: #d5d9e0 }
  text { font-family: ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2430 }
  .name { font-size: 17px; font-weight: 600; text-anchor: middle }
  .told { font-size: 13px; text-anchor: middle; fill: #4a5263 }
  .note { font-size: 13px; fill: #5b6475 }
  .label { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 13px }
  .arrow { fill: none; stroke: #5b6475; stroke-width: 1.8 }
  .order { stroke-dasharray: 5 4; stroke: #7f8899 }
  .tip { fill: #5b6475 }
  .rule { stroke: #d5d9e0 }
  .box { stroke-width: 1.8; fill: #f1f3f7; stroke: #8a93a5 }
  .closed { fill: #e4f5ea; stroke: #2e9a57 }
  .open { fill: #fdeaea; stroke: #d04545 }
  .half_open { fill: #fff4dc; stroke: #cf9417 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1b1e26; stroke: #343a48 }
    text { fill: #e8ebf2 }
    .told { fill: #b3bac9 }
    .note { fill: #98a1b3 }
    .arrow { stroke: #a3acbe }
    .order { stroke: #7f8899 }
    .tip { fill: #a3acbe }
    .rule { stroke: #343a48 }
    .box { fill: #262b36; stroke: #6f788a }
    .closed { fill: #173424; stroke: #43b873 }
    .open { fill: #3d1d20; stroke: #e56a6a }
    .half_open { fill: #3a2f14; stroke: #e0ac3b }
  }"""


def draw(table: Table = TRANSITIONS) -> str:
    """Give the picture of `table` as SVG.

    Raises:
        LookupError: the table has an arrow, or a state, that no place was laid out for.
    """
    moves, orders = _split(table)
    drawn = "\n".join(
        [
            *(_box(state) for state in CircuitState),
            *(_arrow(MOVES[way], names, "arrow") for way, names in moves.items()),
            *(_arrow(ORDERS[to], [f"{one}()" for one in names], "arrow order") for to, names in orders.items()),
        ]
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title told">
<title id="title">The states of a circuit breaker</title>
<desc id="told">{" ".join(_tell(moves, orders))}</desc>
<style>{STYLE}
</style>
<defs>
<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path class="tip" d="M 0 0.8 L 10 5 L 0 9.2 z"/>
</marker>
</defs>
<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>
<text class="note" x="28" y="42">Solid: the breaker decides. The name of an arrow is the event's reason.</text>
<path class="arrow order" d="M 560 38 L 606 38" marker-end="url(#tip)"/>
<text class="note" x="618" y="42">Dashed: an order, obeyed in every state.</text>
<path class="rule" d="M 28 382 L {WIDTH - 28} 382"/>
{drawn}
</svg>
"""


def _split(
    table: Table,
) -> tuple[dict[tuple[CircuitState, CircuitState], list[Trigger]], dict[CircuitState, list[Trigger]]]:
    """Separate what leads from one state to another from what leads from every state to the same one."""
    moves: defaultdict[tuple[CircuitState, CircuitState], list[Trigger]] = defaultdict(list)
    orders: defaultdict[CircuitState, list[Trigger]] = defaultdict(list)
    for trigger in Trigger:
        ways = [(start, end) for (start, moved_by), end in table.items() if moved_by is trigger]
        ends = {end for _, end in ways}
        if len(ends) == 1 and {start for start, _ in ways} == set(CircuitState):
            orders[ends.pop()].append(trigger)
        else:
            for way in ways:
                moves[way].append(trigger)
    return moves, orders


def _tell(
    moves: Mapping[tuple[CircuitState, CircuitState], list[Trigger]], orders: Mapping[CircuitState, list[Trigger]]
) -> Iterator[str]:
    for (start, end), names in moves.items():
        yield f"{start} to {end}: {', '.join(names)}."
    for end, names in orders.items():
        yield f"Every state to {end}: {', '.join(names)}."


def _box(state: CircuitState) -> str:
    x, y, told = BOXES[state]
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return f"""\
<rect class="box {state}" x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="10"/>
<text class="name" x="{x}" y="{y - 4}">{state.name}</text>
<text class="told" x="{x}" y="{y + 20}">{told}</text>"""


def _arrow(arrow: Arrow, names: Sequence[str], kind: str) -> str:
    lines = [f'<path class="{kind}" d="{arrow.path}" marker-end="url(#tip)"/>']
    for number, name in enumerate(names):
        y = arrow.y + LINE * number
        lines.append(f'<text class="label" text-anchor="{arrow.anchor}" x="{arrow.x}" y="{y}">{name}</text>')
    return "\n".join(lines)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
