"""Where events go: the log by default, a list in tests. For a slow consumer see `queue_sink`."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        self._components: dict[tuple[str, str], dict[str, _Flood]] = {}

    def judge(self, event: Event) -> tuple[bool, list[Summary]]:
        """Tell whether `event` is logged, and which summaries are due before it."""
        key = (event.kind.partition(".")[0], event.name)
        if key not in self._components and len(self._components) >= MAX_COMPONENTS:
            key = _SHARED
        floods = self._components.setdefault(key, {})
        summaries = []
        for kind, flood in list(floods.items()):
            if self._is_over(flood, event.at, shared=key is _SHARED):
                del floods[kind]
                if flood.suppressed:
                    summaries.append(Summary(kind, key[1], flood.severity, flood.suppressed))
        if isinstance(event, NEVER_SUPPRESSED):
            return True, summaries
        flood = floods.setdefault(event.kind, _Flood(event.at, event.severity))
        if flood.passed < FLOOD_PASSES:
            flood.passed += 1
            return True, summaries
        flood.suppressed += 1
        return False, summaries

    @staticmethod
    def _is_over(flood: _Flood, at: float, *, shared: bool) -> bool:
        elapsed = at - flood.start
        # A clock that ran backwards is another clock: the component was made anew under the same name. Components
        # that share a place may have different clocks, and would end each other's interval with every event.
        return elapsed >= FLOOD_INTERVAL or (elapsed < 0 and not shared)

    def close(self) -> list[Summary]:
        """Forget everything, and tell what is still untold."""
        summaries = [
            Summary(kind, name, flood.severity, flood.suppressed)
            for (_, name), floods in self._components.items()
            for kind, flood in floods.items()
            if flood.suppressed
        ]
        self._components.clear()
        return summaries


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
        if self._logger is None:
            import structlog  # noqa: PLC0415 - costs 0.1 s, and only programs in which something happens pay it

            # Bound once: the lazy proxy would assemble a logger for every line.
            self._logger = structlog.get_logger("resilience").bind()
            atexit.register(self.close)
        try:
            getattr(self._logger, severity)(kind, **told)
        except BaseException:
            self._logger = None  # Its stream may be closed (a test's captured stdout): bind anew next time.
            raise

    def close(self) -> None:
        """Write the summaries that are due; called by `disable_logging` and at exit."""
        atexit.unregister(self.close)
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
        if below.default_severity != "debug":
            yield below
        yield from _logged_types(below)


if os.environ.get("RESILIENCE_LOG", "").strip().lower() not in {"off", "0", "false", "no"}:
    enable_logging()


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
