"""Who hears what: subscriptions, and delivery in the order in which things happened."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final, Self, TypeAlias

from resilience.checks import is_async, shown
from resilience.errors import ConfigurationError, type_name

from .records import Event, EventsDropped, SinkFailed

Sink: TypeAlias = Callable[[Any], object]
"""A plain function of one event, called inline: it must be quick. A slow or async one belongs in a QueueSink."""

MAX_SUBSCRIPTIONS: Final = 1_000
"""More are refused: so many live sinks mean that somebody subscribes per request and never closes."""

MAX_DELIVERED: Final = 20_000
"""Events that one call delivers: a sink that causes an event with each event must not keep its caller for ever."""

MAX_PENDING: Final = 1_000
"""Events of one component that may wait behind a slow sink; newer ones are dropped and counted."""

# Guards `_subscriptions` and every `Event.sinks`; no sink runs under it. Reentrant, because the garbage collector may
# run a `__del__` that closes a subscription; and the table is replaced, never changed, so that no iteration is harmed.
_table_lock = threading.RLock()
_subscriptions: tuple[Subscription, ...] = ()


class Subscription:
    """A sink's place in the table. Ends with `close()` or at the end of its `with` block.

    Attributes:
        errors: how often the sink raised.
    """

    __slots__ = ("__weakref__", "_sink", "_told", "errors", "name", "types")

    def __init__(self, sink: Sink, types: tuple[type[Event], ...], name: str | None) -> None:
        self._sink = sink
        self.types = types
        self.name = name
        self.errors = 0
        self._told = False

    def deliver(self, event: Event) -> None:
        """Call the sink; whatever it does, the caller of the component is not harmed."""
        if self.name is not None and self.name != event.name:
            return
        try:
            result = self._sink(event)
        except (KeyboardInterrupt, SystemExit):
            raise  # These belong to the process, whoever they hit.
        except BaseException as error:  # noqa: BLE001 - a sink that raises CancelledError must not cancel the call
            self._failed(event, type_name(error))
        else:
            # A lambda around an async function passes the check of `subscribe`; its coroutine would never run.
            if result is not None and inspect.iscoroutine(result):
                result.close()
                self._failed(event, "coroutine")

    def _failed(self, event: Event, error_type: str) -> None:
        self.errors += 1
        # Told once; and no report about a report, or many failing sinks would report each other to the stack's end.
        if not self._told and not isinstance(event, SinkFailed):
            self._told = True
            report = SinkFailed("events", time.monotonic(), sink=sink_name(self._sink), error_type=error_type)
            for other in SinkFailed.sinks:
                if other is not self:
                    other.deliver(report)

    def close(self) -> None:
        """Stop listening; closing twice is fine. An event on its way in another thread may still arrive."""
        global _subscriptions  # noqa: PLW0603 - one table per process
        with _table_lock:
            if self in _subscriptions:
                _subscriptions = tuple(other for other in _subscriptions if other is not self)
                _refresh_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        told = ", ".join(one.__name__ for one in self.types)
        return f"<Subscription {sink_name(self._sink)} to {told}{f' of {self.name!r}' if self.name else ''}>"


def subscribe(sink: Sink, *types: type[Event], name: str | None = None) -> Subscription:
    """Let `sink` hear events, from now until the subscription is closed.

    Args:
        sink: a plain function of one event, called inline after the fact and outside every lock, in the order of `seq`
            for one component. What it raises is counted and told once (`SinkFailed`), and never harms the call.
        types: the event types to hear; none means all. A base type brings its subclasses.
        name: only the component of this name; None means all.

    Raises:
        ConfigurationError: the sink is async or no function, a type is no event type, or 1,000 subscriptions live
            already; close those that are no longer needed.
    """
    if not callable(sink):
        raise ConfigurationError(f"sink must be a function of one event, got {type(sink).__name__}")
    if is_async(sink):
        raise ConfigurationError(
            f"sink must be a plain function, got the async {sink_name(sink)}: run it behind resilience.events.QueueSink"
        )
    asked: tuple[object, ...] = types
    for one in asked:
        if not (isinstance(one, type) and issubclass(one, Event)):
            raise ConfigurationError(f"types must be event types such as CircuitStateChanged, got {shown(one)}")
    if not isinstance(name, str | None):
        raise ConfigurationError(f"name must be a component's name or None, got {type(name).__name__}")
    global _subscriptions  # noqa: PLW0603 - one table per process
    subscription = Subscription(sink, types or (Event,), name)
    with _table_lock:
        if len(_subscriptions) >= MAX_SUBSCRIPTIONS:
            raise ConfigurationError(
                f"subscriptions must be at most {MAX_SUBSCRIPTIONS} at a time; close those that are no longer needed"
            )
        _subscriptions = (*_subscriptions, subscription)
        _refresh_all()
    return subscription


def _refresh_all() -> None:
    """Set `sinks` of every event type, so that asking "does anybody listen" is one attribute look-up."""
    table = None
    while table is not _subscriptions:  # again, if the garbage collector closed one meanwhile
        table = _subscriptions
        _refresh(Event, table)


def _refresh(kind: type[Event], table: tuple[Subscription, ...]) -> None:
    kind.sinks = tuple(one for one in table if issubclass(kind, one.types))
    for below in kind.__subclasses__():
        _refresh(below, table)


def sink_name(sink: object) -> str:
    """Name a sink in reports: its qualified name, or its type's."""
    name = getattr(sink, "__qualname__", None) or type(sink).__qualname__
    return str(name)


def emit(event: Event) -> None:
    """Deliver to everybody who listens to this type."""
    for subscription in type(event).sinks:
        subscription.deliver(event)


class Outbox:
    """One component's events on their way out, in order, while many threads act on the component.

    `put` is called under the component's lock, where the order of things is known; `deliver` after it, since no sink
    may run under a lock. The thread that finds nobody delivering delivers for all; the others go on at once. A sink
    that acts on the component it hears from only adds to the queue, so there is no recursion.

    Whoever delivers, a sink sees the context variables of the call that the event is about: with another's, a log line
    would name the wrong request.

    Attributes:
        pending: what is not told yet; looked at after each step of the component.
    """

    __slots__ = ("_delivering", "_dropped", "pending")

    def __init__(self) -> None:
        self.pending: deque[tuple[Event, Context]] = deque()
        self._delivering = threading.Lock()
        self._dropped = 0

    def renew_locks(self) -> None:
        """Start afresh in a forked child; what was pending is for the parent to tell."""
        self._delivering = threading.Lock()
        self.pending.clear()

    def put(self, event: Event) -> None:
        """Add an event; the caller holds the component's lock."""
        if len(self.pending) >= MAX_PENDING:
            self._dropped += 1
            return
        context = copy_context()
        self.pending.append((event, context))
        if self._dropped:  # told where they are missing: with the first event that there is room for again
            dropped, self._dropped = self._dropped, 0
            told = EventsDropped(event.name, event.at, sink="outbox", dropped=dropped)
            self.pending.append((told, context))

    def deliver(self) -> None:
        """Tell what is pending; the caller holds no lock."""
        pending = self.pending
        # Asked again after the release: another thread may have put an event and found the delivery taken.
        left = MAX_DELIVERED
        while pending and left and self._delivering.acquire(blocking=False):
            try:
                while pending and left:
                    left -= 1
                    event, context = pending.popleft()
                    context.run(emit, event)
            finally:
                self._delivering.release()
