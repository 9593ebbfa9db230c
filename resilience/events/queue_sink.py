"""A bounded queue between quick components and a slow consumer of their events."""

from __future__ import annotations

import contextvars
import inspect
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
import anyio.to_thread

from resilience.checks import check_function, check_int, check_number, is_async
from resilience.clock import Clock
from resilience.errors import ConfigurationError, type_name

from .bus import emit, sink_name
from .records import Event, EventsDropped, SinkFailed

DROPS_TOLD_EVERY: Final = 10.0
"""Seconds between two `EventsDropped` of one queue."""


class QueueSink:
    """A sink that only queues; a worker of its `async with` block hands the events to `function`, one by one.

        async with QueueSink(post_to_webhook) as sink:
            with subscribe(sink, CircuitStateChanged):
                ...

    Args:
        function: an async function of one event, or a plain one, which then runs in a worker thread. What it raises is
            counted and told once (`SinkFailed`).
        max_queued: events that may wait; further ones are dropped, counted in `dropped`, and told at most every 10 s
            (`EventsDropped`). Memory is bounded and nobody's call waits for a slow consumer.
        close_timeout: seconds that the end of the block waits for what is queued.
        clock: for the interval between two notices of dropped events.

    Raises:
        ConfigurationError: no function, or a limit below 1.

    Cancellation: the end of the block hands over what is queued, shielded, for up to `close_timeout` seconds; then the
    worker is cancelled and the rest counts as dropped. The block's own exception passes through unchanged.
    """

    def __init__(
        self,
        function: Callable[[Any], object],
        max_queued: int = 1_000,
        *,
        close_timeout: float = 5.0,
        clock: Clock = time.monotonic,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"function must be a function of one event, got {type(function).__name__}")
        check_int("max_queued", max_queued)
        check_number("close_timeout", close_timeout, least=0)
        check_function("clock", clock)
        self.__qualname__ = f"QueueSink({sink_name(function)})"  # stands for its function in reports
        self._function = function
        self._is_async = is_async(function)
        self._max_queued = max_queued
        self._close_timeout = close_timeout
        self._clock = clock
        self._queue: deque[Event] = deque()
        self._open = False
        self._idle = False
        self._told_at = -float("inf")
        self._untold = 0
        self.dropped = 0
        self.errors = 0

    def __call__(self, event: Event) -> None:
        """Queue `event`; from any thread, and never waiting."""
        if not self._open or len(self._queue) >= self._max_queued:
            self._drop(1)
            return
        self._queue.append(event)
        if self._idle:
            self._idle = False
            self._call_soon(self._set_ready)

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._untold += count
        now = self._clock()
        if now - self._told_at >= DROPS_TOLD_EVERY:
            # Set before anything is called: in a call another thread may come past the question, and this very sink may
            # hear of it, drop it, and come here again.
            self._told_at = now
            self._tell_dropped(now)

    def _tell_dropped(self, now: float) -> None:
        dropped, self._untold = self._untold, 0
        if EventsDropped.sinks and dropped:
            emit(EventsDropped("events", now, sink=sink_name(self), dropped=dropped))

    async def __aenter__(self) -> Self:
        loop: Any = anyio.lowlevel.current_token().native_token
        # asyncio's and trio's ways in from a foreign thread; events come from any.
        self._call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._ready = anyio.Event()
        self._done = anyio.Event()
        # Shielded, so that a cancelled block can still hand over what is queued; ended by `__aexit__`.
        self._scope = anyio.CancelScope(shield=True)
        self._group = await anyio.create_task_group().__aenter__()
        self._open = True
        # An empty context: the worker serves everybody and must not log the request id of whoever started it.
        contextvars.Context().run(self._group.start_soon, self._work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        self._ready.set()
        # Nothing below may be cancelled from outside: on asyncio that would take the place of the block's exception.
        self._group.cancel_scope.shield = True
        try:
            with anyio.move_on_after(self._close_timeout):
                await self._done.wait()
        finally:  # a native asyncio cancel() minds no shield, and must not leave the worker behind
            self._scope.cancel()
            # Not told of the block's exception, which it would wrap in a group.
            await self._group.__aexit__(None, None, None)
        if self._queue:
            self._drop(len(self._queue))
            self._queue.clear()
        self._tell_dropped(self._clock())

    def _set_ready(self) -> None:
        self._ready.set()  # Whichever event the worker waits for by then.

    async def _work(self) -> None:
        with self._scope:
            while True:
                while self._queue:
                    await self._hand_over(self._queue.popleft())
                if not self._open:
                    break
                self._ready = anyio.Event()
                self._idle = True
                # Looked at again: an event put before `_idle` was set has woken nobody.
                if not self._queue:
                    await self._ready.wait()
            self._done.set()

    async def _hand_over(self, event: Event) -> None:
        try:
            if self._is_async:
                result: Any = self._function(event)
            else:
                # In a list, because trio refuses a coroutine that comes out of a thread.
                [result] = await anyio.to_thread.run_sync(lambda: [self._function(event)], abandon_on_cancel=True)
            if inspect.isawaitable(result):  # of an async function, or of a lambda around one
                await result
        except Exception as error:  # noqa: BLE001 - a consumer's failure must not end the worker
            self._failed(error)
        except anyio.get_cancelled_exc_class() as error:
            if self._scope.cancel_called:
                raise
            self._failed(error)  # on asyncio, of something that the consumer awaited

    def _failed(self, error: BaseException) -> None:
        self.errors += 1
        if self.errors == 1 and SinkFailed.sinks:
            emit(SinkFailed("events", self._clock(), sink=sink_name(self), error_type=type_name(error)))
