"""An asyncio event loop on virtual time that tells after each callback, the smallest step that asyncio has.

A run must be repeatable, and one thing in it would be up to chance: anyio cancels what is below a scope by walking
sets, whose order comes from addresses in memory. So tasks and scopes of such a loop are hashed by their number.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio._backends._asyncio import CancelScope

from resilience.testing._asyncio_clock import VirtualEventLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextvars import Context

    from resilience.testing._idle import Deadlock
    from resilience.testing.clock import VirtualClock
    from resilience.testing.explorer import Watcher


def _hash_of_scope(scope: CancelScope) -> int:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    # Other loops, in other threads, are none of our business.
    return loop.number_of(scope) if isinstance(loop, SteppingLoop) else object.__hash__(scope)


@contextmanager
def _numbered_scopes() -> Iterator[None]:
    scopes: Any = CancelScope
    scopes.__hash__ = _hash_of_scope
    try:
        yield
    finally:
        del scopes.__hash__


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
        self._scopes: dict[int, int] = {}
        super().__init__(clock)
        self.set_task_factory(self._new_task)

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
        self._started += 1
        return _Task(coroutine, self._started, loop=loop, **options)

    def number_of(self, scope: CancelScope) -> int:
        """Give the number of a scope in this loop."""
        return self._scopes.setdefault(id(scope), len(self._scopes))

    def call_soon(  # type: ignore[override]  # says less of its arguments than it could
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon(self._step, callback, args, context=context)

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
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
    with _numbered_scopes():
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
