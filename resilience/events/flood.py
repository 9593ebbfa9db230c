"""Which events are worth a line in the log: the first few of a flood, and then a count. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from .records import CircuitStateChanged, Event, FallbackEntered, FallbackLeft, PoolClosed, PoolHealthChanged

FLOOD_PASSES: Final = 5
FLOOD_INTERVAL: Final = 10.0
"""Seconds. Of one kind of event of one component the first 5 in 10 s are logged, the rest are counted and told in one
line: ten thousand rejections a second must not turn an outage of a dependency into an outage of the log."""

MAX_COMPONENTS: Final = 1_024
"""Components whose floods are told apart; all further ones share one place: names may be made from input."""

_SHARED: Final = ("", "(others)")

NEVER_SUPPRESSED: Final = (CircuitStateChanged, FallbackEntered, FallbackLeft, PoolClosed, PoolHealthChanged)
"""Changes of state: rare, and the lines that an incident is read from."""


@dataclass(slots=True)
class _Flood:
    """One kind of event of one component, within one interval."""

    start: float
    severity: str
    passed: int = 0
    suppressed: int = 0


class _Component:
    """The floods of one component, by kind of event."""

    __slots__ = ("ends", "floods", "starts")

    def __init__(self) -> None:
        self.floods: dict[str, _Flood] = {}
        self.starts = -inf  # the latest start and the earliest end of the intervals:
        self.ends = inf  # between them, which is nearly always, none is over

    def note_bounds(self) -> None:
        starts = [flood.start for flood in self.floods.values()]
        self.starts = max(starts, default=-inf)
        self.ends = min(starts, default=inf) + FLOOD_INTERVAL


@dataclass(frozen=True, slots=True)
class Summary:
    """What was not logged: `suppressed` events of one kind."""

    kind: str
    name: str
    severity: str
    suppressed: int


class FloodControl:
    """Decides which events are worth a line. Pure: its time is the `at` of the events themselves."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], _Component] = {}

    def judge(self, event: Event) -> tuple[bool, list[Summary]]:
        """Tell whether `event` is logged, and which summaries are due before it."""
        key = event.kind.partition(".")[0], event.name
        component = self._components.get(key)
        if component is None:
            if len(self._components) >= MAX_COMPONENTS:
                key = _SHARED
            component = self._components.setdefault(key, _Component())
        summaries: list[Summary] = []
        if isinstance(event, PoolHealthChanged):
            # What was counted comes first, or the last line of an outage would be a failure from before its end.
            summaries = self._end_intervals(key, component, inf)
        elif not component.starts <= event.at < component.ends:
            summaries = self._end_intervals(key, component, event.at)
        if isinstance(event, NEVER_SUPPRESSED):
            return True, summaries
        flood = component.floods.get(event.kind)
        if flood is None:
            flood = component.floods[event.kind] = _Flood(event.at, event.severity)
            component.note_bounds()
        if flood.passed < FLOOD_PASSES:
            flood.passed += 1
            return True, summaries
        flood.suppressed += 1
        return False, summaries

    @staticmethod
    def _end_intervals(key: tuple[str, str], component: _Component, at: float) -> list[Summary]:
        # A clock that ran backwards is another clock: the component was made anew under the same name. Components
        # that share a place may have different clocks, and would end each other's intervals with every event.
        over = [
            (kind, flood)
            for kind, flood in component.floods.items()
            if at - flood.start >= FLOOD_INTERVAL or (at < flood.start and key != _SHARED)
        ]
        for kind, _ in over:
            del component.floods[kind]
        component.note_bounds()
        return [Summary(kind, key[1], flood.severity, flood.suppressed) for kind, flood in over if flood.suppressed]

    def close(self) -> list[Summary]:
        """Forget everything, and tell what is still untold."""
        summaries = [
            Summary(kind, name, flood.severity, flood.suppressed)
            for (_, name), component in self._components.items()
            for kind, flood in component.floods.items()
            if flood.suppressed
        ]
        self._components.clear()
        return summaries
