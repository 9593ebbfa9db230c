"""What a pool does with its connections, around the books: it opens, checks, resets and closes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from math import inf
from traceback import clear_frames
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup

from resilience.breaker import CircuitBreaker
from resilience.checks import check_function, is_exception_types
from resilience.clock import Clock
from resilience.errors import CircuitOpenError, ConfigurationError, type_name, with_causes
from resilience.events import (
    CheckFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    PoolFailed,
    PoolHealthChanged,
    ResetFailed,
    emit,
)

from .budget import Budget
from .config import PoolConfig
from .core import PoolCore, Work
from .home import Home
from .slots import GONE, IDLE, Slot
from .stats import Health

Step: TypeAlias = Callable[[Any], "Awaitable[object] | object"]
PermanentErrors: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]"


class Engine:
    """The functions of the user's, the time limits around them, and the tasks in which they run.

    Attributes:
        name, config, core, now, breaker, budget: of the pool.
        connect, close, check, reset, is_closed: the user's; all but the first may be None.
        home, group: the event loop and the tasks of the pool, None until it is entered.
        poke: lets the keeper look again what is due.
        last_error: of connecting, None once it went well.
        on_move: called after each move of the books.
        on_rest: called when nothing is lent or reserved while the pool closes.
        on_opened: called when a connection was opened.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        core: PoolCore,
        now: Clock,
        *,
        connect: Callable[[], Awaitable[Any]],
        close: Step | None,
        check: Step | None,
        reset: Step | None,
        is_closed: Callable[[Any], bool] | None,
        breaker: CircuitBreaker | None,
        budget: Budget | None,
        permanent_errors: PermanentErrors,
    ) -> None:
        self.name = name
        self.config = config
        self.core = core
        self.now = now
        self.connect = connect
        self.close = close
        self.is_closed = None if is_closed is None else _surely(is_closed)
        self.check = check if check is not None or is_closed is None else _unlike(is_closed)
        self.reset = reset
        self.breaker = breaker
        self.budget = budget
        self.group: TaskGroup | None = None
        self.home: Home | None = None
        self.poke: Callable[[], object] = _nothing
        self.on_move: Callable[[], object] = _nothing
        self.on_rest: Callable[[], object] = _nothing
        self.on_opened: Callable[[], object] = _nothing
        self.last_error: BaseException | None = None
        self.opened = self.closed = 0
        self.connect_failures = self.check_failures = self.reset_failures = 0
        self._told_health: Health = "up"
        self._failed_at = 0.0
        self._permanent_errors = permanent_errors
        self._working = 0
        """Tasks, those that have not begun included."""
        self._done: anyio.Event | None = None
        self._running: dict[anyio.CancelScope, Callable[..., object]] = {}
        """What each that has begun does."""

    def do(self, work: Work) -> None:
        """Do what a move of the books made necessary. Never waits."""
        core = self.core
        for ticket in work.woken:
            self.wake(ticket.seat)
        for slot, reason in work.closing:
            self.start(self._close_one, slot, reason)
        if self.group is None:  # not entered yet: it begins then
            core.take_back_connects(work)
        for _ in range(work.connects):
            self.start(self._open_one)
        if self.config.debug:
            core.check()
        if core.closing and not core.leased and not core.reserved:
            self.on_rest()
        if core.failures:
            self.poke()
        if self.breaker is not None and core.waiters.order and not core.slots and not core.connecting:
            self._refuse_if_open(self.breaker)
        if self.budget is not None:
            self.budget.settle()
        self._note_health()
        self.on_move()

    def health(self) -> Health:
        """Tell how the pool is, in a word."""
        if not self.core.failures:
            return "up"
        return "degraded" if self.core.size else "down"

    def cause(self) -> str | None:
        """Tell the type of error for which it is not up."""
        if not self.core.failures:
            return None
        return "CircuitOpenError" if self.last_error is None else type_name(self.last_error)

    def _note_health(self) -> None:
        """Tell if it has changed."""
        if self.health() == self._told_health:
            return
        before, self._told_health = self._told_health, self.health()
        if before == "up":
            self._failed_at = self.core.failing_since
        if PoolHealthChanged.sinks and not self.core.closing:
            now = self.now()
            status, cause = self._told_health, self.cause()
            emit(PoolHealthChanged(self.name, now, before, status, cause, failing_for=now - self._failed_at))

    def _refuse_if_open(self, breaker: CircuitBreaker) -> None:
        """Let nobody wait for an open breaker where nothing can come back."""
        if not breaker.would_allow():
            try:
                breaker.acquire().release()
            except CircuitOpenError as error:
                self.do(self.core.refuse_all(error))

    # --- as a member of a budget ---

    def is_here(self) -> bool:
        """Tell whether the pool belongs to the event loop that runs now."""
        return self.home is not None and self.home.is_here()

    def waiting_since(self) -> float:
        """Give the moment since which the pool would open a connection; inf if it would not."""
        return self.core.wants_since(self.now())

    def grow(self) -> bool:
        """Open what is wanted and allowed now; tell whether that was anything."""
        work = self.core.plan(Work(), self.now())
        started = work.connects > 0
        self.do(work)
        return started

    def idle_since(self) -> float:
        """Give since when the connection is idle that the pool can spare first; inf if it can spare none."""
        slot = self.core.spare()
        return inf if slot is None else slot.idle_since

    def give_up_one(self) -> None:
        """Close that one."""
        slot = self.core.spare()
        if slot is not None:
            self.do(self.core.discard(slot, "budget", self.now()))

    # --- tasks ---

    def open(self, home: Home, group: TaskGroup) -> None:
        """Begin to work."""
        if self.budget is not None:
            self.budget.join(self)
        self.home, self.group = home, group

    def end(self) -> None:
        """Note that all work is done."""
        if self.budget is not None and self.group is not None:  # else it has never joined
            self.budget.leave(self)

    def wake(self, seat: Any) -> None:
        """Let the task at a seat go on; one without a seat has not begun to wait."""
        if self.home is not None and seat is not None:
            self.home.wake(seat)

    def start(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing in the background."""
        if self.group is None or self.home is None:
            return
        self._working += 1
        begin = partial(self.group.start_soon, self._run, function, *args)
        if self.home.current_task() is None:
            self.home.in_a_task(begin)  # in a callback of asyncio's loop, say, where anyio starts nothing
        else:
            begin()

    async def _run(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        scope = anyio.CancelScope()  # not in `start`: where no task runs, as in a callback, anyio 4.11 makes none
        self._running[scope] = function
        try:
            with scope:
                await function(*args)
        except Exception as error:  # noqa: BLE001 - a bug of ours, or books that do not add up: never the end of the host
            self.note_bug(error)
        finally:
            del self._running[scope]
            self._working -= 1
            if self._working == 0 and self._done is not None:
                self._done.set()

    async def wait_until_done(self) -> None:
        """Wait until nothing is under way."""
        while self._working:
            self._done = anyio.Event()
            await self._done.wait()

    def cancel_attempts(self) -> None:
        """Give up what is being opened: the pool closes."""
        for scope, function in self._running.items():
            if function == self._open_one:
                scope.cancel()

    def cancel_all(self) -> None:
        """Give up whatever is under way; what is being closed minds no cancellation."""
        for scope in self._running:
            scope.cancel()

    def note_bug(self, error: BaseException) -> None:
        """Tell what should not have happened; the pool goes on."""
        if PoolFailed.sinks:
            emit(PoolFailed(self.name, self.now(), error_type=type_name(error)))

    # --- opening ---

    async def _open_one(self) -> None:
        """Open one connection, for whoever is first when it is there."""
        core, began = self.core, self.now()
        if core.closing:  # it was started just before
            core.attempt_ended()
            return
        error: BaseException | None = None
        connection: Any = None
        try:
            connection = await _within(self.config.connect_timeout, self._attempt())
            if not core.closing:
                error = self._unusable(connection)
        except Exception as raised:  # noqa: BLE001 - the user's function may raise anything; it is told, and tried again
            error = raised
        except BaseException:
            core.attempt_ended()
            raise
        now = self.now()
        if core.closing and connection is None:
            core.attempt_ended()
        elif error is not None:
            self._connect_failed(error, now)
        else:
            self.last_error = None
            self.opened += 1
            slot, work = core.opened(connection, now, now - began)
            if ConnectionOpened.sinks:
                emit(ConnectionOpened(self.name, now, id=slot.id, duration=now - began))
            self.do(work)
            self.on_opened()

    async def _attempt(self) -> Any:
        if self.breaker is None:
            return await _own(self.connect())
        async with self.breaker.guard():
            return await _own(self.connect())

    def _unusable(self, connection: object) -> BaseException | None:
        if connection is None:
            return ConfigurationError(f"connect of pool {self.name!r} must return a connection, got None")
        if any(slot.connection is connection for slot in self.core.slots.values()):
            return ConfigurationError(f"connect of pool {self.name!r} must return a new connection each time")
        return None

    def _connect_failed(self, error: BaseException, now: float) -> None:
        core = self.core
        if isinstance(error, CircuitOpenError):
            self.do(core.connect_refused(now, error, error.retry_after or self.config.reconnect_cap))
            return
        _forget_locals(error)
        self.last_error = error
        self.connect_failures += 1
        permanent = isinstance(error, ConfigurationError) or is_permanent(error, self._permanent_errors)
        work = core.connect_failed(now, error, permanent=permanent)
        if ConnectFailed.sinks:
            wait = max(0.0, core.next_attempt_at - now)
            emit(ConnectFailed(self.name, now, error_type=type_name(error), attempt=core.failures, next_in=wait))
        self.do(work)

    # --- checking ---

    async def is_alive(self, slot: Slot, left: float) -> bool:
        """Tell whether a leased connection is alive; if not, it is gone.

        A check that is cut off, by cancellation or because the caller has only `left` seconds, proves nothing, and
        leaves the connection in nobody knows what state: it is closed, and no other one is suspect.
        """
        core, limit = self.core, self.config.check_timeout
        began = self.now()
        failed = await self._ask(slot, min(limit, max(0.0, left)))
        now = self.now()
        if slot.place is GONE:  # closed under us
            return False
        if failed is None:
            slot.alive_at = now
            return True
        if left < limit and isinstance(failed, TimeoutError) and now >= began + left:
            self.do(core.discard(slot, "cancelled", now))
        else:
            self._check_failed(slot, failed, now)
        return False

    async def check_idle(self, slot: Slot) -> bool:
        """Check an idle connection, which is out of service meanwhile; if it is broken it is gone."""
        core = self.core
        if slot.place is not IDLE:
            return True
        core.reserve(slot, self.now())
        failed = await self._ask(slot, self.config.check_timeout)
        now = self.now()
        if failed is None:
            self.do(core.give_back(slot, now))
            return True
        if slot.place is not GONE:
            self._check_failed(slot, failed, now)
        return False

    async def _ask(self, slot: Slot, seconds: float) -> BaseException | None:
        """Give what its check says against a connection. One whose check is cancelled is gone."""
        if self.check is None:
            return None
        try:
            answer = self.check(slot.connection)
            if isawaitable(answer):
                answer = await _within(seconds, _own(answer))
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything: the connection is broken
            return error
        except BaseException:
            self.do(self.core.discard(slot, "cancelled", self.now()))
            raise
        return ConnectionError("the check returned False") if answer is False else None

    def _check_failed(self, slot: Slot, error: BaseException, now: float) -> None:
        self.check_failures += 1
        if CheckFailed.sinks:
            emit(CheckFailed(self.name, now, id=slot.id, error_type=type_name(error)))
        self.do(self.core.check_failed(slot, now))

    # --- resetting ---

    def make_as_new(self, slot: Slot, now: float, *, failed: bool) -> None:
        """Reset a connection that came back, `failed` if its borrower did; in the background if that takes time."""
        core = self.core
        core.reserve(slot, now)
        try:
            result = None if self.reset is None else self.reset(slot.connection)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything; the connection is closed
            self._reset_failed(slot, error)
            return
        except BaseException:
            self.do(core.discard(slot, "cancelled", now))
            raise
        if isawaitable(result):
            self.start(self._await_reset, slot, result, failed)
            if core.waiters.order:  # with a headroom one more may be lent meanwhile
                self.do(core.plan(Work(), now))
        else:
            self.do(core.give_back(slot, now, failed=failed))

    async def _await_reset(self, slot: Slot, result: Awaitable[object], failed: bool) -> None:  # noqa: FBT001 - of a task
        core = self.core
        try:
            await _within(self.config.reset_timeout, _own(result))
        except Exception as error:  # noqa: BLE001 - as above
            self._reset_failed(slot, error)
        except BaseException:
            self.do(core.discard(slot, "cancelled", self.now()))
            raise
        else:
            self.do(core.give_back(slot, self.now(), failed=failed))

    def _reset_failed(self, slot: Slot, error: BaseException) -> None:
        now = self.now()
        self.reset_failures += 1
        if ResetFailed.sinks:
            emit(ResetFailed(self.name, now, id=slot.id, error_type=type_name(error)))
        self.do(self.core.discard(slot, "reset_failed", now))

    # --- closing ---

    async def _close_one(self, slot: Slot, reason: str) -> None:
        """Close a connection that is in the books no longer."""
        self.closed += 1
        if ConnectionClosed.sinks:
            now = self.now()
            emit(ConnectionClosed(self.name, now, id=slot.id, reason=reason, age=now - slot.opened_at, uses=slot.uses))
        try:
            if self.close is not None:
                with suppress(Exception), anyio.CancelScope(shield=True):
                    result = self.close(slot.connection)
                    if isawaitable(result):
                        await _within(self.config.close_timeout, _own(result))
        finally:
            if self.budget is not None:
                self.budget.note_closed()
                self.budget.settle()


def check_permanent_errors(permanent: object) -> None:
    """Refuse what does not tell which errors are permanent.

    Raises:
        ConfigurationError: neither types nor a plain function.
    """
    if not is_exception_types(permanent):
        check_function("permanent_errors", permanent)


def is_permanent(error: BaseException, permanent: Any) -> bool:
    """Tell whether trying again cannot cure an error of connecting."""
    if is_exception_types(permanent):
        return isinstance(error, permanent)
    try:
        return bool(permanent(error))
    except Exception:  # noqa: BLE001 - the user's function may raise anything; trying again is the safe answer
        return False


def either(one: PermanentErrors, other: PermanentErrors) -> Callable[[BaseException], bool]:
    """Give what tells errors that are permanent to one or to the other.

    Raises:
        ConfigurationError: the other is neither types nor a plain function.
    """
    check_permanent_errors(other)
    return lambda error: is_permanent(error, one) or is_permanent(error, other)


async def _within(seconds: float, awaitable: Awaitable[Any]) -> Any:
    """Await what a driver does, and give it up after so many seconds.

    Not by `fail_after`: its error has the cancellation for its context, in a cycle of frames (3.13). What a driver was
    about to open would stay open until the garbage collector comes.

    Raises:
        TimeoutError: the time is over.
    """
    with anyio.move_on_after(seconds):
        return await awaitable
    raise TimeoutError


async def _own(awaitable: Awaitable[Any]) -> Any:
    """Await what a driver does; a cancellation that nobody here asked for is its failure, and not the pool's end."""
    try:
        return await awaitable
    except asyncio.CancelledError as error:  # trio's is another one, and none but trio raises it
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("cancelled by somebody else") from error


def _forget_locals(error: BaseException) -> None:
    """Empty the frames of an error that is kept until all is well again: they know passwords, and hold sockets."""
    for one in with_causes(error):
        clear_frames(one.__traceback__)


def _nothing(*_: object) -> None:
    """Stand for what is not there yet."""


def _surely(is_closed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Make the user's function one that does not raise: a connection of which it does is checked before it is lent."""

    def is_closed_surely(connection: object) -> bool:
        try:
            return bool(is_closed(connection))
        except Exception:  # noqa: BLE001 - it may raise anything
            return True

    return is_closed_surely


def _unlike(is_closed: Callable[[Any], bool]) -> Step:
    """Make a check of it, where there is no other."""
    return lambda connection: not is_closed(connection)
