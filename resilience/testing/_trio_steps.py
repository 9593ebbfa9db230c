"""A run of trio on virtual time that tells after each step of a task, and schedules as a number says.

Trio shuffles what is ready, so that nobody comes to rely on an order. What makes it use a seed is the switch that
pytest-trio sets for hypothesis; both names are trio's inner ones.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio._core import _run

from resilience.testing._trio_clock import RunEnd, TrioClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from resilience.testing._idle import Deadlock
    from resilience.testing.clock import VirtualClock
    from resilience.testing.explorer import Watcher


class _Clock(TrioClock):
    """Tells first if its run is blocked for good: what is raised in it then is of no interest."""

    def __init__(self, clock: VirtualClock, watcher: Watcher) -> None:
        super().__init__(clock)
        self._watcher = watcher

    def end_run(self, deadlock: Deadlock) -> None:
        self._watcher.blocked(deadlock)
        super().end_run(deadlock)


class _Stepper(trio.abc.Instrument):
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._time_passed = False

    def after_io_wait(self, timeout: float) -> None:
        self._time_passed = timeout > 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        if self._time_passed:
            # What timers have woken has not run yet: a moment like that after a step.
            self._time_passed = False
            self._watcher.after_step()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._watcher.after_step()


@contextmanager
def _in_order(number: int) -> Iterator[None]:
    inner: Any = _run
    switch, state = inner._ALLOW_DETERMINISTIC_SCHEDULING, inner._r.getstate()  # noqa: SLF001 - see the module's head
    inner._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 - as above
    inner._r.seed(number)  # noqa: SLF001 - as above
    try:
        yield
    finally:
        inner._ALLOW_DETERMINISTIC_SCHEDULING = switch  # noqa: SLF001 - as above
        inner._r.setstate(state)  # noqa: SLF001 - as above


def run_in_steps(main: Callable[[], Awaitable[None]], clock: VirtualClock, watcher: Watcher, order: int) -> None:
    """Run `main`, with the tasks that are ready in the order that this number stands for."""
    stepping = _Clock(clock, watcher)
    with _in_order(order):
        trio.run(main, clock=stepping, instruments=[RunEnd(stepping), _Stepper(watcher)])
