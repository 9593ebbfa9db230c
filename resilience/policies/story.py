"""What happened to one call: the events of the policies around it, kept for a while, told as a story."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import fields
from typing import Final

from resilience.events import (
    AcquireTimedOut,
    AttemptFailed,
    BulkheadRejected,
    CacheHit,
    CallRejected,
    CircuitStateChanged,
    Event,
    FallbackEntered,
    FallbackUsed,
    HedgeLaunched,
    HedgeWon,
    LimitRejected,
    PolicyHookFailed,
    RetryStopped,
    RetrySuppressed,
    ShedRejected,
    Subscription,
    TimedOut,
    subscribe,
)

from .calls import current_call

_TOLD: Final = (
    AcquireTimedOut,
    AttemptFailed,
    BulkheadRejected,
    CacheHit,
    CallRejected,
    CircuitStateChanged,
    FallbackEntered,
    FallbackUsed,
    HedgeLaunched,
    HedgeWon,
    LimitRejected,
    PolicyHookFailed,
    RetryStopped,
    RetrySuppressed,
    ShedRejected,
    TimedOut,
)
"""Nothing here happens to a call that succeeds at once, so that remembering costs it nothing."""
_KEPT: Final = 1_000  # events per pipeline
_HEADER: Final = frozenset({"name", "at", "wall", "seq", "call_id"})


class Memory:
    """The latest events of the calls through one pipeline: the last 1,000, older ones are forgotten."""

    def __init__(self) -> None:
        self._events: deque[tuple[str, Event]] = deque(maxlen=_KEPT)
        _ear.open_for(self)

    def add(self, call_id: str, event: Event) -> None:
        """Remember what happened to a call."""
        self._events.append((call_id, event))

    def story(self, call_id: str) -> str:
        """Tell what happened to a call, one line per event, with the seconds since the first."""
        told = [event for known, event in self._events.copy() if known == call_id]
        if not told:
            return f"call {call_id}: nothing is known; it went well at once, or is forgotten"
        began = told[0].wall
        lines = [f"  +{event.wall - began:.3f} s  {event.name}: {event.kind}{_facts(event)}" for event in told]
        return "\n".join([f"call {call_id}:", *lines])


def _facts(event: Event) -> str:
    facts = [(one.name, getattr(event, one.name)) for one in fields(event) if one.name not in _HEADER]
    return "".join(f" {name}={_short(value)}" for name, value in facts if value is not None)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _Ear:
    """Hears all of `_TOLD`, once for all memories, while there are any.

    A sink is called in the context of the call that an event is about: that is how the call is known.
    """

    def __init__(self) -> None:
        self._memories = 0
        self._subscription: Subscription | None = None
        # Guards both; a memory may be collected in any thread, also in the middle of this.
        self._lock = threading.RLock()

    def open_for(self, memory: Memory) -> None:
        with self._lock:
            self._memories += 1
            if self._subscription is None:
                self._subscription = subscribe(_remember, *_TOLD)
        weakref.finalize(memory, self._close_one).atexit = False

    def _close_one(self) -> None:
        with self._lock:
            self._memories -= 1
            if not self._memories and self._subscription is not None:
                self._subscription.close()
                self._subscription = None


def _remember(event: Event) -> None:
    call = current_call.get()
    if call is not None and call.memory is not None:
        call.memory.add(call.id, event)


_ear: Final = _Ear()
