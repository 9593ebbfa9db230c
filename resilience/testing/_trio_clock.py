"""A trio clock that follows a `VirtualClock`, and moves it when every task is blocked.

Trio's run loop calls `_autojump` on its clock after `clock_autojump_threshold` real seconds without any event, but only
for its own `MockClock`, which is final and knows neither threads nor I/O. Both names are trio's inner ones; they have
not changed since they exist, and https://github.com/python-trio/trio/issues/1587 asks for a public form.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

import outcome
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT
from trio.testing import MockClock, active_thread_count, wait_all_tasks_blocked

from resilience.testing._idle import Idler, kind_of_descriptor, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from trio._core._run import Runner

    from resilience.testing._idle import Deadlock
    from resilience.testing.clock import VirtualClock

FOREVER = 1e9  # seconds; trio takes no infinite sleep


class DeadlockExit(BaseException):
    """Unwinds the tasks of a deadlocked run, past any `except Exception` in them; its text is the deadlock's."""


class TrioClock(Idler, trio.abc.Clock):
    """The clock that trio sees. One object serves one run after the other."""

    __class__ = MockClock  # type: ignore[assignment]  # the run loop asserts it before it calls `_autojump`

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._runner: Runner | None = None
        self._thread_id = 0
        self._deadline = inf
        self._deadlock: Deadlock | None = None

    def start_clock(self) -> None:
        self._runner = GLOBAL_RUN_CONTEXT.runner
        self._thread_id = threading.get_ident()
        self._deadlock = None
        self.clock._join(self)  # noqa: SLF001 - the clock and its loops are one machine

    def current_time(self) -> float:
        return self.clock()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # Called when no task can run, right before the loop looks at the threshold.
        if deadline <= self.clock():
            return 0
        self._deadline = deadline
        self._run().clock_autojump_threshold = self.patience(deadline)
        return FOREVER

    def _autojump(self) -> None:
        self.on_silence(self._deadline)

    def finish(self) -> None:
        """Let go of a run that has ended; if it met a deadlock, that is its outcome."""
        runner, self._runner = self._run(), None
        self.clock._leave(self)  # noqa: SLF001 - as above
        if self._deadlock is not None:
            runner.main_task_outcome = outcome.Error(self._deadlock)
            self._deadlock = None

    def _run(self) -> Runner:
        if self._runner is None:
            message = "this clock drives no run now"
            raise RuntimeError(message)
        return self._runner

    def next_deadline(self) -> float:
        return self._deadline

    def wake(self) -> None:
        runner = self._runner
        with suppress(trio.RunFinishedError):
            if runner is not None:
                runner.entry_queue.run_sync_soon(_nothing, idempotent=True)

    def runs_here(self) -> bool:
        return self._thread_id == threading.get_ident()

    async def settle(self) -> None:
        await wait_all_tasks_blocked()

    def pending_threads(self) -> int:
        return active_thread_count()

    def outside(self) -> Counter[str]:
        manager = self._run().io_manager
        waiting = manager.statistics()
        total = sum(getattr(waiting, name) for name in dir(waiting) if name.startswith("tasks_waiting"))
        if total <= 1:  # trio's own wake-up socket
            return Counter()
        watched = getattr(manager, "_registered", {})
        own = self._run().entry_queue.wakeup.wakeup_sock.fileno()
        if watched and all(isinstance(fd, int) for fd in watched):
            return Counter(kind_of_descriptor(fd) for fd in watched if fd != own)
        return Counter(peer=total - 1)

    def blocked_tasks(self) -> Iterator[tuple[str, str]]:
        return ((task.name, place_of(task.coro)) for task in _tasks_below(self._main_task()))

    def end_run(self, deadlock: Deadlock) -> None:
        # As trio does for Ctrl-C: the main task is interrupted, and its nurseries cancel the rest. If that has been
        # tried already, somebody is shielded from it: interrupt every task that still can be.
        self._deadlock = self._deadlock or deadlock
        main = self._main_task()
        tasks = [main] if main._abort_func is not None else _tasks_below(main)  # noqa: SLF001 - see the module's head

        def interrupt() -> NoReturn:
            raise DeadlockExit(deadlock)

        for task in tasks:
            if task._abort_func is not None:  # noqa: SLF001 - as above
                task._attempt_abort(interrupt)  # noqa: SLF001 - as above

    def _main_task(self) -> trio.lowlevel.Task:
        main = self._run().main_task
        assert main is not None  # noqa: S101 - trio starts it before it first blocks
        return main


class RunEnd(trio.abc.Instrument):
    """Tells the clock that its run is over."""

    def __init__(self, clock: TrioClock) -> None:
        self._clock = clock

    def after_run(self) -> None:
        """Called by trio."""
        self._clock.finish()


def _tasks_below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks_below(child)


def _nothing() -> None:
    """Wake a run, so that it looks at the clock again."""
