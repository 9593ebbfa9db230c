"""The run that a pool belongs to: its event loop, and how a task waits in it and is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol


class Seat(Protocol):
    """Where one task waits until it is woken. An `anyio.Event` does the same in five times the time."""

    async def wait(self) -> None:
        """Wait. Cancellation: raises, whether or not it was woken meanwhile."""

    def wake(self) -> None:
        """Let the task go on; again is of no consequence."""


class AsyncioSeat:
    """A seat on asyncio: a bare future."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    async def wait(self) -> None:
        """Wait."""
        await self._future

    def wake(self) -> None:
        """Let the task go on."""
        if not self._future.done():
            self._future.set_result(None)


class TrioSeat:
    """A seat on trio: a parked task."""

    __slots__ = ("_task", "_trio", "_woken")

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._task: Any = None
        self._woken = False

    async def wait(self) -> None:
        """Wait."""
        trio = self._trio
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._woken:
            return
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> Any:
        self._task = None
        return self._trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Let the task go on."""
        task, self._task, self._woken = self._task, None, True
        if task is not None:
            self._trio.lowlevel.reschedule(task)


class Home:
    """The event loop that runs now, asyncio's or trio's; recognised at the price of one look.

    Attributes:
        find_run: gives the run that is current; raises RuntimeError where trio sees none.
        run: the one of this home.
        current_task: gives the task that runs now.
        seat: makes a place to wait.

    Raises:
        RuntimeError: none runs.
    """

    __slots__ = ("current_task", "find_run", "run", "seat")

    def __init__(self) -> None:
        self.find_run: Callable[[], Any]
        self.current_task: Callable[[], Any]
        self.seat: Callable[[], Seat]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio  # noqa: PLC0415 - only a program that runs on trio has it

            self.find_run, self.current_task = trio.lowlevel.current_trio_token, trio.lowlevel.current_task
            self.seat = partial(TrioSeat, trio)
        else:
            # Given the loop, asyncio need not look for it.
            self.find_run, self.current_task = asyncio.get_running_loop, partial(asyncio.current_task, loop)
            self.seat = partial(AsyncioSeat, loop)
        self.run = self.find_run()

    def is_here(self) -> bool:
        """Tell whether the caller is in this run."""
        try:
            return self.find_run() is self.run
        except RuntimeError:
            return False
