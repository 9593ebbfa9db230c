"""The run that a pool belongs to: its event loop, and how a task waits in it and is woken."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from threading import get_ident
from types import CodeType
from typing import Any, Final

Site = tuple[CodeType, int]
"""Where something was asked for: the code and the offset in it, which become file and line when somebody reads them."""


class TrioSeat:
    """Where one task of trio waits until it is woken: a parked task. An `anyio.Event` takes five times as long."""

    __slots__ = ("_lowlevel", "_task", "_woken")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: Any = None
        self._woken = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        if self._woken:
            return
        self._task = self._lowlevel.current_task()
        await self._lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Let the task go on; again is of no consequence."""
        task, self._task, self._woken = self._task, None, True
        if task is not None:
            self._lowlevel.reschedule(task)


def _wake_future(seat: asyncio.Future[None]) -> None:
    if not seat.done():
        seat.set_result(None)


class Home:
    """The event loop that runs now, asyncio's or trio's.

    Attributes:
        thread: in which it runs.
        current_task: gives the task that runs in it now, None if none does.
        seat: makes a place to wait, which is awaited. Cancellation: raises, whether or not it was woken meanwhile.
        wake: lets the task at a seat go on; again is of no consequence.
        in_a_task: calls a function in a task, soon or at once.

    Raises:
        RuntimeError: none runs.
        ModuleNotFoundError: none runs, and there is no trio in which one could.
    """

    __slots__ = ("_find_run", "_run", "current_task", "in_a_task", "seat", "thread", "wake")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.current_task: Callable[[], Any]
        self.seat: Callable[[], Awaitable[object]]
        self.wake: Callable[[Any], object]
        self.in_a_task: Callable[[Callable[[], object]], object]
        self._find_run: Callable[[], Any]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            lowlevel = _lowlevel()
            self._find_run = lowlevel.current_trio_token
            self.current_task = partial(_trio_task, lowlevel, lowlevel.current_trio_token())
            self.seat, self.wake = partial(TrioSeat, lowlevel), TrioSeat.wake
            self.in_a_task = _at_once
        else:
            self._find_run = asyncio.get_running_loop
            self.current_task = _task_of(loop)
            self.seat, self.wake = loop.create_future, _wake_future
            self.in_a_task = partial(_soon, loop)
        self._run = self._find_run()

    def is_here(self) -> bool:
        """Tell whether the caller is in this run."""
        try:
            return self._find_run() is self._run
        except RuntimeError:  # trio's answer to a task of asyncio, and asyncio's to none
            return False


def _lowlevel() -> Any:
    import trio  # noqa: PLC0415 - only a program that runs on trio has it

    return trio.lowlevel


def _task_of(loop: asyncio.AbstractEventLoop) -> Callable[[], Any]:
    if sys.version_info < (3, 12):
        # Up to there `current_task` is Python, and looks at each call for the loop that it was given.
        tasks: Any = asyncio.tasks
        return partial(tasks._current_tasks.get, loop)  # noqa: SLF001 - of versions that change no more
    return partial(asyncio.current_task, loop)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    async def run() -> None:
        call()

    loop.create_task(run())  # the loop holds it until it has run, which is its next turn


def _at_once(call: Callable[[], object]) -> None:
    call()  # trio starts tasks from anywhere


def _trio_task(lowlevel: Any, token: object) -> Any:
    try:
        return lowlevel.current_task() if lowlevel.current_trio_token() is token else None
    except RuntimeError:
        return None


# --- where somebody is ---


def site_of_caller() -> Site:
    """Give the place that called the function that calls this one."""
    frame = sys._getframe(2)  # noqa: SLF001 - documented; one frame costs a fifth of a microsecond, a stack forty
    return frame.f_code, frame.f_lasti


def told(site: Site) -> str:
    """Write a site down, as "file:line function"."""
    code, offset = site
    line = next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)
    return f"{code.co_filename}:{line} {code.co_qualname}"


DEPTH: Final = 100
"""Coroutines that await each other, at most, in which a task is looked for."""
LIBRARIES: Final = {"anyio", "asyncio", "contextlib", "outcome", "trio", __name__.partition(".")[0]}
"""In which everybody is suspended: where they were called from says more."""


def place_of(task: Any) -> str:
    """Write down where the user's code in a task is suspended, as "file:line function"; empty if nobody can tell."""
    innermost = theirs = None
    waiting = task.get_coro() if hasattr(task, "get_coro") else getattr(task, "coro", None)
    for _ in range(DEPTH):
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is None:
            break
        innermost = frame
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            theirs = frame
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    place = theirs or innermost
    return "" if place is None else told((place.f_code, place.f_lasti))
