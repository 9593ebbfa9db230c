"""What a run waits for when none of its tasks can go on, and what a virtual clock does then.

Both event loops ask the same two questions here. `patience`: how long must the outside world stay silent before time
may move by itself? `on_silence`: it was silent that long, so jump to the next deadline, or report a deadlock.

From inside an event loop a worker thread, a socket and a child process look alike: something may arrive, some day.
The functions of the second half find out which of them is really there, because each deserves another patience.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from math import inf
from pathlib import Path
from types import AsyncGeneratorType, FrameType
from typing import TYPE_CHECKING, Any

from resilience.errors import ResilienceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from resilience.testing.clock import VirtualClock

# A wait for something that may never come is cut into pieces of this many real seconds: a thread that dies wakes
# nobody, and it may have been the last one that could have moved a manual clock.
RECHECK = 0.1

MOST_TASKS_TOLD = 50


class Deadlock(ResilienceError, RuntimeError):  # noqa: N818 - the field's word; "DeadlockError" says nothing more
    """Every task is blocked, and nothing is left that could wake one: no timer, no worker thread, no I/O.

    Attributes:
        at: virtual seconds.
        tasks: a pair (name, place) for each blocked task; the place is its innermost frame that is the user's.
        missing: what could have woken one of them, but is not there.
    """

    __module__ = "resilience.testing"

    def __init__(self, at: float, tasks: Iterable[tuple[str, str]], missing: str) -> None:
        super().__init__()
        self.at = at
        self.tasks = tuple(tasks)
        self.missing = missing

    def __str__(self) -> str:
        told = [f"  {name!r} waits at {place}" for name, place in self.tasks[:MOST_TASKS_TOLD]]
        if len(self.tasks) > MOST_TASKS_TOLD:
            told.append(f"  and {len(self.tasks) - MOST_TASKS_TOLD} more")
        head = f"at {self.at:g} virtual seconds every task is blocked, and there is no {self.missing}"
        return "\n".join([head, *told])


class Idler(ABC):
    """The part of an event loop that decides what happens while all of its tasks are blocked."""

    clock: VirtualClock

    def patience(self, deadline: float) -> float:
        """Real seconds of silence after which `on_silence` is due; `deadline` is the next timer, inf without one."""
        if self.clock.held:
            return RECHECK
        if self.clock.autojump and deadline < inf:
            return self._patience_with_the_outside()
        return RECHECK if self._may_be_woken() else 0.0

    def on_silence(self, deadline: float) -> None:
        """Move time to `deadline`, or end the run if nothing else can happen in it."""
        if self.clock.held:
            return
        if self.clock.autojump and deadline < inf:
            self.clock._move_to(deadline)  # noqa: SLF001 - the clock and its loops are one machine
        elif not self._may_be_woken():
            missing = "timer, worker thread or I/O to wake one" if deadline == inf else "thread to advance this clock"
            self.end_run(Deadlock(self.clock(), sorted(self.blocked_tasks()), missing))

    def _patience_with_the_outside(self) -> float:
        threads = self.pending_threads()
        outside = self.outside()
        if outside["child"] or (threads and threads > threads_waiting_for_a_loop()):
            return self.clock.hold_limit
        return self.clock.io_grace if threads or outside["peer"] else 0.0

    def _may_be_woken(self) -> bool:
        # A loop outside the main thread serves that thread (a blocking portal): its owner is the one to wake it.
        if threading.current_thread() is not threading.main_thread():
            return True
        if self.pending_threads() or self.outside() or signals_are_awaited():
            return True
        return not self.clock.autojump and foreign_threads_live()

    @abstractmethod
    def pending_threads(self) -> int:
        """Count the worker threads whose result somebody awaits."""

    @abstractmethod
    def outside(self) -> Counter[str]:
        """Count the file descriptors that this loop watches, by `kind_of_descriptor`."""

    @abstractmethod
    def blocked_tasks(self) -> Iterator[tuple[str, str]]:
        """Give name and place of each task."""

    @abstractmethod
    def end_run(self, deadlock: Deadlock) -> None:
        """Make the run raise `deadlock`."""


def kind_of_descriptor(fd: int) -> str:
    """Tell a "listener" (idle by nature), a "child" process (works by itself) and any other "peer" apart."""
    with suppress(OSError):
        if "pidfd" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            return "child"
    with suppress(OSError):
        probe = socket.socket(fileno=fd)
        try:
            if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return "listener"
        finally:
            probe.detach()
    return "peer"


def threads_waiting_for_a_loop() -> int:
    """Count the threads that have called back into an event loop: they wait for us, not we for them."""
    return sum(any(map(_calls_a_loop, _stack(frame))) for frame in sys._current_frames().values())  # noqa: SLF001 - documented


def _calls_a_loop(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    if module == "anyio._backends._asyncio":
        return frame.f_code.co_name in {"run_async_from_thread", "run_sync_from_thread"}
    return module == "trio._threads" and frame.f_code.co_name == "_send_message_to_trio"


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def foreign_threads_live() -> bool:
    """Whether a thread lives that is neither this one nor an idle worker of a pool, and so might move the clock."""
    idle_workers = ("AnyIO worker thread", "Trio thread", "asyncio_")
    return any(
        thread is not threading.current_thread() and not thread.name.startswith(idle_workers)
        for thread in threading.enumerate()
    )


def signals_are_awaited() -> bool:
    """Whether an event loop has asked for a signal, which another process may send at any time."""
    loops = {"asyncio.unix_events", "trio._signals"}
    return any(getattr(signal.getsignal(number), "__module__", None) in loops for number in signal.valid_signals())


def place_of(awaitable: object) -> str:
    """Say where a suspended coroutine waits: the innermost frame that is the user's, and what it called there."""
    frames = list(_frames(awaitable))
    users = [index for index, (frame, _) in enumerate(frames) if not _is_machinery(frame)]
    if not frames:
        return "an unknown place"
    index = users[-1] if users else len(frames) - 1
    frame, line = frames[index]
    called = f", inside {frames[index + 1][0].f_code.co_qualname}" if index + 1 < len(frames) else ""
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}{called}"


def _is_machinery(frame: FrameType) -> bool:
    root = frame.f_globals.get("__name__", "").partition(".")[0]
    return root in {"anyio", "asyncio", "contextlib", "outcome", "resilience", "trio"}


def _frames(awaitable: Any) -> Iterator[tuple[FrameType, int]]:
    """Walk a chain of suspended coroutines and generators inwards."""
    while awaitable is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if hasattr(awaitable, inner):
                if (frame := getattr(awaitable, f"{prefix}_frame")) is not None:
                    yield frame, frame.f_lineno
                awaitable = getattr(awaitable, inner)
                break
        else:
            # `asend()` and `athrow()` hide their async generator; the garbage collector knows it.
            hidden = (one for one in gc.get_referents(awaitable) if isinstance(one, AsyncGeneratorType))
            awaitable = next(hidden, None)
