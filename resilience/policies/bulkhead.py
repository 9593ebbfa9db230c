"""So many calls at once and no more: what hangs in one place must not use up everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from resilience.checks import check_function, check_int, check_number, is_async
from resilience.clock import Clock
from resilience.errors import BulkheadFullError, ConfigurationError
from resilience.events import BulkheadRejected, emit
from resilience.stack import ADMITTED, Admission

from .places import Places
from .policy import Policy, Site, refuse_awaitable


class Line(Policy):
    """What all bulkheads have in common: so many calls are in, others wait in line, and the rest is refused.

    Raises:
        ConfigurationError: `max_waiting` or `timeout` makes no sense.
    """

    kind: ClassVar[str] = "bulkhead"
    refused_by: ClassVar[str]
    """The `policy` of its refusals."""

    def __init__(self, limit: int, max_waiting: int, timeout: float | None, clock: Clock, name: str | None) -> None:
        super().__init__(name)
        check_int("max_waiting", max_waiting, least=0)
        if timeout is not None:
            check_number("timeout", timeout, least=0)
            if not max_waiting:
                raise ConfigurationError("timeout must be None without max_waiting: nobody waits")
        check_function("clock", clock)
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._clock = clock
        self._places = Places(limit, max_waiting)

    @property
    def max_concurrent(self) -> int:
        """How many calls may be in now."""
        return self._places.limit

    @property
    def in_flight(self) -> int:
        """How many calls are in."""
        return self._places.taken

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return self._places.waiting

    def admission(self) -> Admission:
        """Tell whether a call would find a place, or one in line."""
        return Admission(allowed=False, reason="bulkhead_full") if self._places.is_full else ADMITTED

    def _refusal(self, site: Site, why: str) -> BulkheadFullError:
        if BulkheadRejected.sinks:
            emit(BulkheadRejected(site.name, self._clock(), in_flight=self.in_flight, waiting=self.waiting))
        error = BulkheadFullError(site.name, why)
        error.policy = self.refused_by
        return error


class Bulkhead(Line):
    """Lets so many calls in at once; others wait in the order of their arrival, or are refused.

    One object serves tasks of any event loop and threads alike. While there is room a call costs two locked additions,
    and nobody is woken. A plain function that is called in the thread of an event loop never waits: the loop would
    stand still, and with it whoever is to give a place back.

    Args:
        max_concurrent: calls at once, >= 1.
        max_waiting: calls in line, >= 0. Default 0: who finds no place is refused at once.
        timeout: seconds to wait at most, >= 0; None waits as long as it takes, or until a deadline around it. Only with
            `max_waiting`.
        clock: monotonic seconds, for the times that are told.
        name: in events and errors; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range.
        BulkheadFullError: from the function: no place, `reason` "full", or none in time, "timeout", or none and it must
            not wait, "event_loop". It was not called.

    Cancellation: who waits leaves the line; a place that was assigned meanwhile goes to the next.
    """

    title: ClassVar[str] = "a bulkhead"
    refused_by: ClassVar[str] = "bulkhead"

    def __init__(
        self,
        max_concurrent: int,
        *,
        max_waiting: int = 0,
        timeout: float | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        check_int("max_concurrent", max_concurrent)
        super().__init__(max_concurrent, max_waiting, timeout, clock, name)

    def __repr__(self) -> str:
        line = f", {self.waiting} of {self.max_waiting} waiting" if self.max_waiting else ""
        return f"<Bulkhead {self.in_flight} of {self.max_concurrent} in flight{line}>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that takes a place for each call."""
        places, timeout = self._places, self.timeout
        if is_async(function):

            async def placed(*args: Any, **kwargs: Any) -> Any:
                if not places.take() and (why := await places.wait(timeout)):
                    raise self._refusal(site, why)
                try:
                    return await function(*args, **kwargs)
                finally:
                    places.give_back()

            return placed

        def placed_sync(*args: Any, **kwargs: Any) -> Any:
            if not places.take() and (why := places.wait_sync(timeout)):
                raise self._refusal(site, why)
            try:
                result = function(*args, **kwargs)
            finally:
                places.give_back()
            refuse_awaitable(result, self.title)
            return result

        return placed_sync
