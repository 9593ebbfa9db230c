"""What the charts of the demo's report share: places, axes, shades and tags of inline SVG. Pure text."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LEFT", "RIGHT", "WIDTH", "Plot", "Stretch", "rect", "round_step", "svg", "text"]

WIDTH = 960
LEFT, RIGHT = 64, 12


class Stretch(NamedTuple):
    """A part of the run that a chart shades: what the style sheet calls it, what people call it, and its seconds."""

    css: str
    name: str
    start: float
    end: float


class Plot:
    """Maps seconds of the run to places on a chart, and draws what all charts share.

    Args:
        seconds: what the chart spans.
        stretches: parts of the run, in order.
    """

    def __init__(self, seconds: float, stretches: Iterable[Stretch]) -> None:
        self.seconds = seconds
        self._stretches = list(stretches)
        self._per_second = (WIDTH - LEFT - RIGHT) / seconds

    def x(self, seconds: float) -> float:
        """Give the place of a moment of the run."""
        return LEFT + min(max(seconds, 0.0), self.seconds) * self._per_second

    def shades(self, top: float, height: float) -> Iterator[str]:
        """Shade the stretches, with an edge between two."""
        for number, (css, _, start, end) in enumerate(self._stretches):
            yield rect(css, self.x(start), top, self.x(end) - self.x(start), height)
            if number:
                yield f'<path class="edge" d="M{self.x(start):.1f} {top:g}v{height:g}"/>'

    def names(self, y: float) -> Iterator[str]:
        """Name the stretches in one row."""
        for _, name, start, end in self._stretches:
            yield text(name, (self.x(start) + self.x(end)) / 2, y, "phase middle")

    def seconds_axis(self, y: float) -> Iterator[str]:
        """Write the seconds of the run in one row."""
        step = round_step(self.seconds / 10)
        for number in range(int(self.seconds / step) + 1):
            at = number * step
            yield f'<path class="grid" d="M{self.x(at):.1f} {y:g}v4"/>'
            yield text(f"{at:g} s", self.x(at), y + 16, "tick middle")


def round_step(about: float) -> float:
    """Give the smallest of 1, 2, 5 times a power of ten that is not below `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * (1 - 1e-9))


def rect(css: str, x: float, y: float, width: float, height: float) -> str:
    """Give a rectangle."""
    return f'<rect class="{css}" x="{x:.1f}" y="{y:g}" width="{max(width, 0.0):.1f}" height="{height:g}"/>'


def text(words: str, x: float, y: float, css: str) -> str:
    """Give a line of text."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def svg(name: str, title: str, described: str, height: float, drawn: Iterable[str]) -> str:
    """Give a whole chart, named and described for those who do not see it."""
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-described" viewBox="0 0 {WIDTH} {height:g}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-described">{escape(described)}</desc>'
        f"{''.join(drawn)}</svg>"
    )
