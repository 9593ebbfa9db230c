"""An asyncio event loop on virtual time that tells after each callback, the smallest step that asyncio has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio

from resilience.testing._asyncio_clock import VirtualEventLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from resilience.testing._idle import Deadlock
    from resilience.testing.clock import VirtualClock
    from resilience.testing.explorer import Watcher


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are walked in the same order in each run."""

    def __init__(self, coroutine: Any, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SteppingLoop(VirtualEventLoop):
    """Tells between any two callbacks."""

    def __init__(self, clock: VirtualClock, watcher: Watcher) -> None:
        self._watcher = watcher
        self._started = 0
        super().__init__(clock)
        self.set_task_factory(self._new_task)

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
        self._started += 1
        return _Task(coroutine, self._started, loop=loop, **options)

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return super().call_soon(self._step, callback, args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        return super().call_at(when, self._step, callback, args, context=context)

    def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        finally:
            self._watcher.after_step()

    def end_run(self, deadlock: Deadlock) -> None:
        self._watcher.blocked(deadlock)
        super().end_run(deadlock)


def run_in_steps(main: Callable[[], Awaitable[None]], clock: VirtualClock, watcher: Watcher, order: int) -> None:
    """Run `main`. Asyncio has one order only: `order` is not used."""
    del order
    anyio.run(main, backend="asyncio", backend_options={"loop_factory": lambda: SteppingLoop(clock, watcher)})


def current_task() -> asyncio.Task[Any]:
    """Give the task that runs."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - called by one
    return task


def cancel(task: asyncio.Task[Any]) -> bool:
    """Cancel a task as `asyncio.TaskGroup` and servers do, once; not one that is being cancelled already.

    Asyncio merges two cancellations that come in one turn, so that nobody can tell what became of the second.
    """
    return task.cancelling() == 0 and task.cancel()


def absorb(task: asyncio.Task[Any]) -> None:
    """Take back the cancellation of a task that has obeyed it."""
    task.uncancel()
