"""The events of one limiter, in order, whichever threads its calls come from."""

from __future__ import annotations

import threading
from typing import Any

from resilience.clock import Clock
from resilience.events import Event
from resilience.events.bus import Outbox
from resilience.forks import renew_locks_in_child


class Teller:
    """Builds and delivers the events of the component `name`."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._outbox = Outbox()
        # Guards the order of `_outbox`: an event gets its number under it. Reentrant, because the garbage collector may
        # end a call inside it. No sink runs under it.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.RLock()
        self._outbox.renew_locks()

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Tell one event; call sites ask `kind.sinks` first."""
        with self._lock:
            self._outbox.put(kind(self.name, self._clock(), **fields))
        self._outbox.deliver()
