"""An asyncio event loop whose time is a `VirtualClock`: where it would block, time moves instead."""

from __future__ import annotations

import asyncio
import selectors
import sys
import threading
from collections import Counter
from contextlib import suppress
from math import inf, ulp
from typing import TYPE_CHECKING, Any

from anyio._backends._asyncio import WorkerThread

from resilience.testing._idle import Idler, _stack, kind_of_descriptor, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilience.testing._idle import Deadlock
    from resilience.testing.clock import VirtualClock


class _Selector(selectors.DefaultSelector):
    """The platform's selector; asks its loop what to do instead of blocking, and knows what it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: VirtualEventLoop | None = None
        self.kinds: dict[int, str] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self.kinds[key.fd] = kind_of_descriptor(key.fd)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self.kinds.pop(key.fd, None)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self.loop
        if loop is None or (timeout is not None and timeout <= 0):
            return super().select(0)
        # The plan is made before the last look at the descriptors: whatever a thread had finished by then is seen.
        deadline = loop.next_deadline()
        patience = 0.0 if loop.settling else loop.patience(deadline)
        events = super().select(None if patience == inf else patience)
        if not events and not loop.wake_settled():
            loop.on_silence(deadline)
        return events


class VirtualEventLoop(Idler, asyncio.SelectorEventLoop):
    """A selector event loop on virtual time; everything but time and blocking is asyncio's own."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._jobs = 0
        self.settling: list[asyncio.Future[None]] = []
        selector = _Selector()
        super().__init__(selector)
        # What asyncio has registered by now is its own wake-up pipe.
        selector.kinds.clear()
        selector.loop = self
        self._watched = selector.kinds
        clock._join(self)  # noqa: SLF001 - the clock and its loops are one machine

    def time(self) -> float:
        return self.clock._now  # noqa: SLF001 - read for each timer: one call less

    @property
    def _clock_resolution(self) -> float:
        # asyncio runs timers due before time() + resolution. The next float is the only value that runs neither a
        # later one early nor, at a large time that swallows a fixed 1e-9, a due one never.
        return ulp(self.clock._now)  # noqa: SLF001 - as above

    @_clock_resolution.setter
    def _clock_resolution(self, _: float) -> None:
        pass

    def next_deadline(self) -> float:
        timers = self._scheduled  # type: ignore[attr-defined]  # a heap of timer handles, in every CPython so far
        return timers[0].when() if timers else inf

    def wake(self) -> None:
        with suppress(RuntimeError):  # closed meanwhile
            self.call_soon_threadsafe(_nothing)

    def runs_here(self) -> bool:
        return bool(self._thread_id == threading.get_ident())  # type: ignore[attr-defined]  # set while it runs

    async def settle(self) -> None:
        settled = self.create_future()
        self.settling.append(settled)
        await settled

    def wake_settled(self) -> bool:
        """Wake those who wait for all tasks to be blocked; whether there were any."""
        settling, self.settling = self.settling, []
        for settled in settling:
            if not settled.done():
                settled.set_result(None)
        return bool(settling)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _: asyncio.Future[Any]) -> None:
        self._jobs -= 1

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        # A helper thread joins the workers, under a timeout that would pass at once without a hold.
        self._jobs += 1
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._jobs -= 1

    def pending_threads(self) -> int:
        if threading.active_count() == 1:
            return self._jobs
        return self._jobs + sum(map(self._is_pending, threading.enumerate()))

    def _is_pending(self, thread: threading.Thread) -> bool:
        if not isinstance(thread, WorkerThread):
            # asyncio's way to await a child process where the kernel has no descriptor for it.
            return thread.name.startswith("asyncio-waitpid-")
        return thread.loop is self and thread not in thread.idle_workers and not _is_abandoned(thread)

    def outside(self) -> Counter[str]:
        return Counter(self._watched.values())

    def blocked_tasks(self) -> Iterator[tuple[str, str]]:
        for task in asyncio.all_tasks(self):
            coroutine = task.get_coro()
            # The pytest plugin's own task, which waits for the one that runs the test.
            if getattr(coroutine, "__qualname__", "") != "TestRunner._call_in_runner_task":
                yield task.get_name(), place_of(coroutine)

    def end_run(self, deadlock: Deadlock) -> None:
        # Raised out of the loop, past all tasks, so that no `except Exception` in one of them can swallow it. The
        # runner then cancels them, and their cleanup has a loop to run on.
        raise deadlock


def _is_abandoned(worker: WorkerThread) -> bool:
    """Whether the task that had started this thread's job was cancelled and went on without it."""
    frame = sys._current_frames().get(worker.ident or 0)  # noqa: SLF001 - documented
    for outer in _stack(frame):
        if outer.f_code is WorkerThread.run.__code__:
            future = outer.f_locals.get("future")
            return future is not None and future.cancelled()
    return False


def _nothing() -> None:
    """Wake a loop, so that it looks at the clock again."""
