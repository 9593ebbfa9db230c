"""Where events go: the log by default, a list in tests. For a slow consumer see `queue_sink`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, overload

from resilience.forks import renew_locks_in_child

from .bus import Subscription, subscribe
from .flood import FloodControl, Summary
from .records import Event

E = TypeVar("E", bound=Event)

# --- the log ---


class LogSink:
    """Writes events of severity info and above to `structlog.get_logger("resilience")`.

    In a program that has not configured structlog they go to standard error.

    structlog is imported, and the logger bound, with the first such event: after the application has configured it,
    and never in a program in which nothing happens.
    """

    def __init__(self) -> None:
        self._logger: Any = None
        # Guards `_flood`: components of several threads write at once. Reentrant, because the garbage collector may end
        # a call of another component, which is logged too.
        self._lock = threading.RLock()
        self._flood = FloodControl()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.RLock()

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

            if structlog.is_configured():
                logger = structlog.get_logger("resilience")
            else:  # structlog would print to standard output, which is for the program's data
                logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
            # Bound once: the lazy proxy would assemble a logger for every line.
            logger = self._logger = logger.bind()
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
_log_lock = threading.RLock()  # Guards `_log`.


def enable_logging() -> None:
    """Log events of severity info and above through structlog.

    The default, unless the environment's `RESILIENCE_LOG` is off, 0, false or no.

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
