"""Where events go: the log by default, a list in tests. For a slow consumer see `queue_sink`."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, Final, TypeVar, overload

from .bus import Subscription, subscribe
from .records import CircuitStateChanged, Event, FallbackEntered, FallbackLeft, PoolClosed

E = TypeVar("E", bound=Event)

# --- the log ---

FLOOD_PASSES: Final = 5
FLOOD_INTERVAL: Final = 10.0
"""Seconds. Of one kind of event of one component the first 5 in 10 s are logged, the rest are counted and told in one
line: ten thousand rejections a second must not turn an outage of a dependency into an outage of the log."""

MAX_COMPONENTS: Final = 1_024
"""Components whose floods are told apart; all further ones share one place: names may be made from input."""

_SHARED: Final = ("", "(others)")

NEVER_SUPPRESSED: Final = (CircuitStateChanged, FallbackEntered, FallbackLeft, PoolClosed)
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
        key = _component_kind(event.kind), event.name
        component = self._components.get(key)
        if component is None:
            if len(self._components) >= MAX_COMPONENTS:
                key = _SHARED
            component = self._components.setdefault(key, _Component())
        summaries: list[Summary] = []
        if not component.starts <= event.at < component.ends:
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


@lru_cache(maxsize=256)
def _component_kind(kind: str) -> str:
    return kind.partition(".")[0]


class LogSink:
    """Writes events of severity info and above to `structlog.get_logger("resilience")`.

    structlog is imported, and the logger bound, with the first such event: after the application has configured it,
    and never in a program in which nothing happens.
    """

    def __init__(self) -> None:
        self._logger: Any = None
        self._lock = threading.Lock()  # Guards `_flood`: components of several threads write at once.
        self._flood = FloodControl()

    def __call__(self, event: Event) -> None:
        """Log `event`, unless it is of severity debug or part of a flood."""
        if event.severity == "debug":
            return
        with self._lock:
            passes, summaries = self._flood.judge(event)
        for summary in summaries:
            self._write_summary(summary)
        if passes:
            told = event.as_dict()
            # `name` would collide with an attribute of the standard library's log records; the time is the logger's.
            told["component"] = told.pop("name")
            for not_logged in ("kind", "severity", "at", "wall"):
                del told[not_logged]
            self._write(event.severity, event.kind, told)

    def _write_summary(self, summary: Summary) -> None:
        self._write(summary.severity, summary.kind, {"component": summary.name, "suppressed": summary.suppressed})

    def _write(self, severity: str, kind: str, told: dict[str, object]) -> None:
        logger = self._logger
        if logger is None:
            import structlog  # noqa: PLC0415 - costs 0.1 s, and only programs in which something happens pay it

            # Bound once: the lazy proxy would assemble a logger for every line.
            logger = self._logger = structlog.get_logger("resilience").bind()
        try:
            getattr(logger, severity)(kind, **told)
        except BaseException:
            self._logger = None  # Its stream may be closed (a test's captured stdout): bind anew next time.
            raise

    def close(self) -> None:
        """Write the summaries that are due; called by `disable_logging` and at exit."""
        with self._lock:
            summaries = self._flood.close()
        for summary in summaries:
            with contextlib.suppress(Exception):  # At exit the stream may be gone already.
                self._write_summary(summary)


_log: tuple[LogSink, Subscription] | None = None
_log_lock = threading.Lock()  # Guards `_log`.


def enable_logging() -> None:
    """Log events of severity info and above through structlog: the default, unless `RESILIENCE_LOG=off` is set.

    Calling it again binds the logger anew: do so after a later `structlog.configure`.
    """
    global _log  # noqa: PLW0603 - one log per process
    disable_logging()
    with _log_lock:
        if _log is None:
            sink = LogSink()
            _log = sink, subscribe(sink, *_logged_types(Event))


def disable_logging() -> None:
    """Log nothing by default; subscriptions of your own are not touched. Counted floods are told first."""
    global _log
    with _log_lock:
        log, _log = _log, None
    if log is not None:
        sink, subscription = log
        subscription.close()
        sink.close()


def _logged_types(kind: type[Event]) -> Iterator[type[Event]]:
    """Give the types that can have a severity above debug: asking for others would make every call build an event."""
    for below in kind.__subclasses__():
        if below.default_severity != "debug" and "replaced" not in vars(below):
            yield below
        yield from _logged_types(below)


if os.environ.get("RESILIENCE_LOG", "").strip().lower() not in {"off", "0", "false", "no"}:
    enable_logging()
atexit.register(disable_logging)  # tells the floods that were counted and not told


# --- a list, in tests ---

MAX_CAPTURED: Final = 100_000
"""Events that `capture` keeps; further ones are let go."""


@overload
def capture(*, name: str | None = None) -> contextlib.AbstractContextManager[list[Event]]: ...
@overload
def capture(*types: type[E], name: str | None = None) -> contextlib.AbstractContextManager[list[E]]: ...
@contextmanager
def capture(*types: type[Event], name: str | None = None) -> Iterator[list[Any]]:
    """Give a list that fills with the events of the block, for tests.

        with capture(CircuitStateChanged) as events:
            breaker.trip()
        assert [event.to_state for event in events] == ["open"]

    Args:
        types: the event types to keep; none means all.
        name: only the component of this name.

    The first 100,000 events are kept. The whole process is heard, other threads and tasks included.
    """
    events: list[Event] = []

    def keep(event: Event) -> None:
        if len(events) < MAX_CAPTURED:
            events.append(event)

    with subscribe(keep, *types, name=name):
        yield events
