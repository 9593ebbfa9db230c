"""Virtual time for tests: hours pass in milliseconds, on asyncio and on trio, and in code without an event loop."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import contextmanager
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, TypeVarTuple
from weakref import WeakSet

import anyio

from resilience.errors import ConfigurationError
from resilience.testing._idle import Deadlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = ["Deadlock", "VirtualClock"]

T = TypeVar("T")
Args = TypeVarTuple("Args")


class _Loop(Protocol):
    """What the clock asks of an event loop that runs on it."""

    def wake(self) -> None: ...
    def runs_here(self) -> bool: ...
    def next_deadline(self) -> float: ...
    async def settle(self) -> None: ...


class VirtualClock:
    """A clock that moves when a test has nothing else to do, or when the test says so.

    Called, it gives the virtual seconds: pass it as `clock=` to anything of this library. A run started by `run`, or
    with `backend_options`, lives on it altogether: `anyio.sleep`, `fail_after`, `anyio.current_time`, `asyncio.sleep`,
    `loop.time` and `trio.current_time` all follow it. Wall time (`time.time`, `datetime.now`) does not.

    With `autojump`, time jumps to the next deadline once every task is blocked. It stands still while a task runs,
    while a worker thread works for one (`anyio.to_thread`, `trio.to_thread`, `asyncio.to_thread`, executors), while a
    child process runs, while I/O goes on, and in `with clock.hold()`. Without `autojump` only `advance` moves it.

    One clock may serve many runs, one after the other; time goes on from run to run. Deadlines that are equal fire in
    no promised order.

    Args:
        autojump: whether time moves by itself.
        start: virtual seconds at the beginning, any finite number. Default 0.
        hold_limit: real seconds that a thread or child process may stay silent before time moves in spite of it:
            otherwise one that waits, itself, for virtual time would hang the test. inf: no limit. Default 5.
        io_grace: real seconds without I/O before each jump while connections are open. A loop cannot tell an idle
            connection from an awaited one: longer is safer against slow peers, and costs that much for each jump.
            Connections inside one machine answer in less than a millisecond. Default 0.02.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self, *, autojump: bool = True, start: float = 0.0, hold_limit: float = 5.0, io_grace: float = 0.02
    ) -> None:
        if not isfinite(start):
            raise ConfigurationError(f"start must be a finite number, got {start}")
        if not hold_limit > 0:
            raise ConfigurationError(f"hold_limit must be more than 0, got {hold_limit}")
        if not 0 <= io_grace < inf:
            raise ConfigurationError(f"io_grace must be at least 0 and finite, got {io_grace}")
        self.autojump = autojump
        self.hold_limit = hold_limit
        self.io_grace = io_grace
        self._now = float(start)
        self._holds = 0
        # Guards the three fields above and below, whose updates come from any thread. Nothing is called under it.
        self._lock = threading.Lock()
        # Weak, so that a loop that nobody closed still dies, and says so by its ResourceWarning.
        self._loops: WeakSet[_Loop] = WeakSet()

    def __call__(self) -> float:
        """Virtual seconds."""
        return self._now

    def __repr__(self) -> str:
        mode = "autojump" if self.autojump else "manual"
        return f"<VirtualClock {self._now:g} s, {mode}{', held' if self.held else ''}>"

    @property
    def held(self) -> bool:
        """Whether somebody is inside `hold()` now."""
        return self._holds > 0

    def run(
        self,
        async_fn: Callable[[*Args], Awaitable[T]],
        *args: *Args,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> T:
        """Run `async_fn(*args)` on virtual time and give its result, as `anyio.run` does.

        Raises:
            Deadlock: all tasks are blocked for good. They were cancelled.
            ConfigurationError: an unknown backend.
        """
        options = self.backend_options(backend)
        if backend == "trio":
            import trio  # noqa: PLC0415 - trio may be absent

            # Not by `anyio.run`, which before 4.14 forgets the options of trio.
            return trio.run(async_fn, *args, **options)
        return anyio.run(async_fn, *args, backend_options=options)

    def backend_options(self, backend: Literal["asyncio", "trio"]) -> dict[str, Any]:
        """What to give to `anyio.run(..., backend_options=...)`, or to return from an `anyio_backend` fixture.

        Raises:
            ConfigurationError: trio is not installed; or an unknown backend. uvloop is one: its time is in C, out of
                reach.
        """
        if backend == "asyncio":
            from resilience.testing._asyncio_clock import VirtualEventLoop  # noqa: PLC0415 - only when asked for

            return {"loop_factory": lambda: VirtualEventLoop(self)}
        if backend == "trio":
            if importlib.util.find_spec("trio") is None:
                raise ConfigurationError("backend 'trio' needs trio, which is not installed: pip install trio")
            from resilience.testing._trio_clock import RunEnd, TrioClock  # noqa: PLC0415 - trio may be absent

            clock = TrioClock(self)
            return {"clock": clock, "instruments": [RunEnd(clock)]}
        raise ConfigurationError(f"backend must be 'asyncio' or 'trio', got {backend!r}")

    def advance(self, seconds: float) -> None:
        """Move time on, from any thread, in a run or without one.

        Sleepers that are due wake once the loop gets to run, and all see the time after the whole step. Inside a task,
        yield to them with checkpoints, or at once with `await advance_and_settle(0)`.

        Args:
            seconds: at least 0, finite.

        Raises:
            ConfigurationError: time neither runs backwards nor ends; nothing was changed.
        """
        if not 0 <= seconds < inf:
            raise ConfigurationError(f"seconds must be at least 0 and finite, got {seconds}")
        with self._lock:
            self._now += seconds
        self._wake_loops()

    async def advance_and_settle(self, seconds: float) -> None:
        """Move time on, stopping at each deadline on the way, and return when every other task is blocked again.

        Each sleeper sees its own exact time. A task that waits for a thread or for I/O counts as blocked.

        Args:
            seconds: at least 0, finite; 0 only lets the tasks run.

        Raises:
            ConfigurationError: as `advance`.
            RuntimeError: not in a run on this clock.

        Cancellation: time stays at the last deadline reached.
        """
        if not 0 <= seconds < inf:
            raise ConfigurationError(f"seconds must be at least 0 and finite, got {seconds}")
        loop = next((one for one in self._current_loops() if one.runs_here()), None)
        if loop is None:
            raise RuntimeError("advance_and_settle needs a run on this clock: clock.run(...), or its backend_options")
        target = self._now + seconds
        await loop.settle()
        while (deadline := loop.next_deadline()) < target:
            self._move_to(deadline)
            await loop.settle()
        self._move_to(target)
        await loop.settle()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No jump while the block runs; for work that the clock cannot see, such as a thread of your own.

        Holds nest and count across threads and tasks. A held run never reports a deadlock. `advance` still works.
        """
        with self._lock:
            self._holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1
            self._wake_loops()

    def _move_to(self, deadline: float) -> None:
        with self._lock:
            self._now = max(self._now, deadline)

    def _join(self, loop: _Loop) -> None:
        with self._lock:
            self._loops.add(loop)

    def _leave(self, loop: _Loop) -> None:
        with self._lock:
            self._loops.discard(loop)

    def _current_loops(self) -> list[_Loop]:
        with self._lock:
            return list(self._loops)

    def _wake_loops(self) -> None:
        for loop in self._current_loops():
            if not loop.runs_here():
                loop.wake()
