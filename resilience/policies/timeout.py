"""Limits of time: for one attempt, and for a call with all its attempts."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Literal

import anyio

from resilience.checks import check_function, check_number, is_async
from resilience.clock import Clock
from resilience.deadline import enter_deadline, leave_deadline
from resilience.errors import CallTimeoutError, ConfigurationError
from resilience.events import TimedOut, emit

from .policy import Policy, Site, refuse_awaitable


class Timeout(Policy):
    """Ends an attempt that takes too long, with `CallTimeoutError(scope="attempt")`.

    It stands inside a retry, next to the function: what a caller waits for a place, a permit or a connection is not the
    callee's slowness. For async functions; nothing can interrupt a plain one. Where a deadline around the call comes
    first anyway, this makes no scope of its own (which costs about 5 us), and the deadline's owner tells the end.

    A `TimeoutError` of the callee is never taken for this one, and a result that comes in spite of the end is returned.

    Args:
        seconds: > 0.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range; put around a plain function.

    Cancellation: the callee is cancelled at its next await, and waited for; one that never awaits cannot be ended.
    """

    kind: ClassVar[str] = "timeout"
    title: ClassVar[str] = "a timeout"

    def __init__(self, seconds: float, *, name: str | None = None) -> None:
        super().__init__(name)
        check_number("seconds", seconds, above=0)
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<Timeout {self.seconds:g} s>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that is ended after these seconds.

        Raises:
            ConfigurationError: `function` is not async.
        """
        if not is_async(function):
            raise ConfigurationError(
                f"a timeout needs an async function, {site.name} is a plain one, which nothing can interrupt: give its "
                "own calls a timeout, or put a Deadline around it, which bounds retries and waits"
            )
        return _limited(function, self.seconds, "attempt", site)


class Deadline(Policy):
    """Ends a call with all its attempts and waits, with `CallTimeoutError(scope="total")`.

    It stands outside of a retry. Whatever waits inside knows of it, and gives up at once what would come too late: a
    pause between attempts, a place in a bulkhead, a connection. Around a plain function it bounds these waits, and
    interrupts nothing. Where a deadline around it comes first anyway, it does nothing.

    Args:
        seconds: > 0.
        clock: monotonic seconds, for plain functions; async ones go by their event loop's.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range.

    Cancellation: as with `Timeout`.
    """

    kind: ClassVar[str] = "deadline"
    title: ClassVar[str] = "a deadline"

    def __init__(self, seconds: float, *, clock: Clock = time.monotonic, name: str | None = None) -> None:
        super().__init__(name)
        check_number("seconds", seconds, above=0)
        check_function("clock", clock)
        self.seconds = seconds
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Deadline {self.seconds:g} s>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that is ended after these seconds, or knows that its waits are."""
        if is_async(function):
            return _limited(function, self.seconds, "total", site)
        seconds, clock = self.seconds, self._clock

        def bounded(*args: Any, **kwargs: Any) -> Any:
            token = enter_deadline(seconds, clock)
            try:
                result = function(*args, **kwargs)
            finally:
                leave_deadline(token)
            refuse_awaitable(result, self.title)
            return result

        return bounded


def _limited(
    function: Callable[..., Awaitable[Any]], seconds: float, scope: Literal["attempt", "total"], site: Site
) -> Callable[..., Awaitable[Any]]:
    async def limited(*args: Any, **kwargs: Any) -> Any:
        began = anyio.current_time()
        if anyio.current_effective_deadline() <= began + seconds:
            return await function(*args, **kwargs)
        # Not fail_after: its error would have the cancellation for its context.
        with anyio.CancelScope(deadline=began + seconds):
            return await function(*args, **kwargs)
        if TimedOut.sinks:
            now = anyio.current_time()
            emit(TimedOut(site.name, now, scope=scope, seconds=seconds, elapsed=now - began))
        raise CallTimeoutError(scope, seconds)

    return limited
