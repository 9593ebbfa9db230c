"""The connection pool that programs hold: it waits, connects, checks, resets and closes around the books of `core`."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from inspect import isawaitable
from math import inf
from types import TracebackType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeAlias, TypeVar

import anyio
from anyio.abc import TaskGroup

from resilience.breaker import CircuitBreaker
from resilience.checks import check_function, check_int, check_name, check_number, is_async, is_exception_types, shown
from resilience.clock import Clock
from resilience.errors import (
    CircuitOpenError,
    ConfigurationError,
    PoolClosedError,
    PoolDeadlockError,
    PoolFullError,
    PoolTimeoutError,
    PoolUsageError,
    type_name,
)
from resilience.events import (
    AcquireTimedOut,
    CheckFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    PoolClosed,
    PoolExhausted,
    PoolFailed,
    PoolRecovered,
    PoolResized,
    ResetFailed,
    emit,
)
from resilience.forks import renew_locks_in_child

from .config import MAX_SECONDS, MAX_SIZE, PoolConfig, merged
from .core import Place, PoolCore, Slot, Ticket, Work
from .home import Home, Seat
from .keeper import Keeper
from .lease import Acquire, Lease, site_of_caller, told

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")

Step: TypeAlias = Callable[[Any], "Awaitable[object] | object"]
PermanentErrors: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]"


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment. Connections and callers now; the rest since it was made.

    Attributes:
        size: connections that the pool has: idle + leased + reserved.
        idle, leased, reserved: free; borrowed; being checked or reset.
        connecting: attempts to connect under way.
        waiting: callers who wait.
        min_size, max_size: the bounds.
        acquired, timed_out, rejected: callers who got a connection, who waited in vain, who were refused at once.
        opened, closed: connections.
        connect_failures, check_failures, reset_failures: what went wrong.
        waited_seconds, used_seconds: total of all waits and of all borrowings that ended.
    """

    size: int
    idle: int
    leased: int
    reserved: int
    connecting: int
    waiting: int
    min_size: int
    max_size: int
    acquired: int
    timed_out: int
    rejected: int
    opened: int
    closed: int
    connect_failures: int
    check_failures: int
    reset_failures: int
    waited_seconds: float
    used_seconds: float


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """How a pool is.

    Attributes:
        status: "up"; "degraded": there are connections, but no new ones can be opened; "down": there are none either.
        cause: the type of the last connect error while it is not up, else None.
        since: seconds since connecting began to fail, else 0.
    """

    status: Literal["up", "degraded", "down"]
    cause: str | None
    since: float


class Counters:
    """Plain integers: counting must cost nothing."""

    def __init__(self) -> None:
        self.acquired = self.timed_out = self.rejected = self.opened = self.closed = 0
        self.connect_failures = self.check_failures = self.reset_failures = 0
        self.waited = self.used = 0.0


class ConnectionPool(Generic[C]):
    """Lends connections that work, at most `max_size` of them at a time, in the order in which callers ask.

        async with ConnectionPool(connect, close=close, check=ping, max_size=20) as pool:
            async with pool.acquire() as connection:
                await connection.execute(...)

    It belongs to the event loop in which it was entered, asyncio or trio, and everything that it does in the background
    ends with the `async with` block.

    Args:
        connect: an async function without arguments that opens a connection.
        close: closes one; sync or async; what it raises is of no consequence.
        check: raises or returns False if a connection is broken; sync or async.
        reset: makes a connection as new after use; sync or async; a connection whose reset fails is closed.
        name: in events, errors and logs.
        config: see `PoolConfig`.
        breaker: guards `connect`: while it is open nothing is opened; callers are refused if nothing is lent or idle.
        permanent_errors: connect errors that trying again cannot cure, such as a wrong password: a type, a tuple of
            types, or a plain function of the exception. They go to a caller at once. All others are tried again.
        clock: monotonic seconds.
        rng: for jitter.
        overrides: fields of the configuration, in place of `config`'s.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[C]],
        *,
        close: Step | None = None,
        check: Step | None = None,
        reset: Step | None = None,
        name: str = "pool",
        config: PoolConfig | None = None,
        breaker: CircuitBreaker | None = None,
        permanent_errors: PermanentErrors = (),
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        **overrides: Any,
    ) -> None:
        _check_connect(connect)
        for field, function in (("close", close), ("check", check), ("reset", reset)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"{field} must be a function of a connection, got {shown(function)}")
        check_name(name)
        check_function("clock", clock)
        if not isinstance(breaker, CircuitBreaker | None):
            raise ConfigurationError(f"breaker must be a CircuitBreaker, got {shown(breaker)}")
        if not is_exception_types(permanent_errors):
            check_function("permanent_errors", permanent_errors)
        self._name = name
        self._config = merged(PoolConfig() if config is None else config, overrides)
        self._connect_function = connect
        self._close_function = close
        self._check_function = check
        self._reset_function = reset
        self._permanent_errors = permanent_errors
        self._breaker = breaker
        self._now = clock
        rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._core = PoolCore(self._config, jitter=rng.random)
        self._counters = Counters()
        self._leases: dict[int, Lease[C] | Acquire[C]] = {}
        self._home: Home | None = None
        self._find_run: Callable[[], Any] = _no_run
        self._run: object = None
        self._current_task: Callable[[], object] = _no_run
        self._new_seat: Callable[[], Seat]
        self._group: TaskGroup | None = None
        self._keeper: Keeper[C] = Keeper(self)
        self._last_error: BaseException | None = None
        self._exhausted_at: float | None = None
        self._returned: anyio.Event | None = None
        self._ready: anyio.Event | None = None
        self._forked = False
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Refuse to be used in a forked child: the connections are the parent's."""
        self._forked = True

    @property
    def name(self) -> str:
        """What it is called in events, errors and logs."""
        return self._name

    @property
    def config(self) -> PoolConfig:
        """How it behaves."""
        return self._config

    def __repr__(self) -> str:
        core = self._core
        state = "closed" if core.closing else "open" if self._group is not None else "not open"
        return (
            f"<ConnectionPool {self._name!r} {state}, {core.leased} of {core.size} lent, "
            f"{core.waiters.live} waiting, {core.connecting} connecting>"
        )

    # --- lifecycle ---

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise PoolUsageError(f"pool {self._name!r} was entered twice")
        if self._core.closing:
            raise PoolClosedError(self._name)
        self._home = home = Home()
        self._find_run, self._run, self._current_task = home.find_run, home.run, home.current_task
        self._new_seat = home.seat
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._keeper.run)
        self._do(self._core.plan(Work(), self._now()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        group = self._group
        try:
            await self.close()
        finally:
            if group is not None:
                group.cancel_scope.cancel()
                # Without the error: the children never raise, and the block's own is not the group's to wrap.
                await group.__aexit__(None, None, None)
        return None

    async def close(self, grace: float | None = None) -> None:
        """Fail those who wait, close what is idle, give borrowers `grace`, then close under them.

        Idempotent; safe in a `finally`. Ends within `grace` and one `close_timeout`.

        Args:
            grace: seconds for borrowers to finish; None is the configuration's `close_grace`.

        Cancellation: ends the grace at once; everything is closed nevertheless.
        """
        if grace is not None:
            check_number("grace", grace, least=0, most=MAX_SECONDS)
        core = self._core
        if core.closing:
            return
        self._do(core.close(lambda: PoolClosedError(self._name)))
        try:
            if core.leased or core.reserved:
                self._returned = anyio.Event()
                with anyio.move_on_after(self._config.close_grace if grace is None else grace):
                    await self._returned.wait()
        finally:
            forced = self._force()
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._config.close_timeout + 1.0):
                await self._keeper.wait_until_closed()
            if PoolClosed.sinks:
                emit(PoolClosed(self._name, self._now(), forced=forced))

    def _force(self) -> int:
        """Close what borrowers still hold; their later release is silent."""
        core = self._core
        held = [slot for slot in core.slots.values() if slot.place in {Place.LEASED, Place.RESERVED}]
        forced = sum(slot.place is Place.LEASED for slot in held)
        for slot in held:
            self._do(core.discard(slot, "forced", self._now()))
        return forced

    # --- borrowing ---

    def acquire(self, timeout: float | None = -1.0, *, priority: int = 0, avoid: Lease[C] | None = None) -> Acquire[C]:
        """Ask for a connection: `async with pool.acquire() as connection`, or `lease = await pool.acquire()`.

        Args:
            timeout: seconds, 0 or more, checking and connecting included; 0 takes what is there; None waits for ever;
                left out, it is the configuration's `acquire_timeout`.
            priority: higher is served first; in the order of arrival among equals.
            avoid: a lease whose connection is not wanted again, such as one that just failed.

        Raises, when it is awaited or entered:
            PoolTimeoutError: nothing came free in time; its text says what the pool was busy with.
            PoolFullError: `max_waiting` callers wait already.
            PoolClosedError: the pool is closed, or closes meanwhile.
            PoolDeadlockError: every connection is held by a task that waits here itself.
            CircuitOpenError: the breaker is open and nothing is lent or idle.
            PoolUsageError: not open, of another event loop, or in a forked child.
            whatever `connect` raised, if it is permanent.

        Cancellation: a connection that was handed over meanwhile goes to the next caller.
        """
        if timeout is not None and timeout != -1.0:
            check_number("timeout", timeout, least=0, most=MAX_SECONDS)
        return Acquire(
            self,
            self._config.acquire_timeout if timeout == -1.0 else timeout,
            priority,
            None if avoid is None else avoid.last_slot,
            site_of_caller(0),
        )

    def try_acquire(self) -> Lease[C] | None:
        """Give a lease of an idle connection that needs no check, or None; never waits.

        Raises:
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        self._check_usable()
        now = self._now()
        slot = self._core.take(now)
        if slot is None:
            return None
        if now >= slot.retire_at or self._core.needs_check(slot, now):
            self._do(self._core.return_unused(slot, now))
            return None
        self._counters.acquired += 1
        lease = self._leases[slot.id] = Lease(self, slot, site_of_caller(0), None)
        return lease

    def _take_plain(self, request: Acquire[C]) -> Slot | None:
        """Lend at once what can be lent at once: what most callers get."""
        try:
            run = self._find_run()
        except RuntimeError:  # trio's answer to a task of asyncio
            run = None
        if run is not self._run or self._forked or self._core.closing:
            self._check_usable()
        if request.avoid is not None:
            return None
        now = self._now()
        slot = self._core.take_plain(now)
        if slot is not None:
            self._counters.acquired += 1
            request.since = now
            request.owner = self._current_task()
            self._leases[slot.id] = request
        return slot

    async def _lend(self, request: Acquire[C]) -> Lease[C]:
        slot = self._take_plain(request)
        if slot is None:
            slot = await self._wait(request)
        lease = self._leases[slot.id] = Lease(self, slot, request.site, None)
        return lease

    async def _wait(self, request: Acquire[C]) -> Slot:
        """Get a connection that can be lent, however long that takes within the request's time."""
        core = self._core
        began = now = self._now()
        deadline = inf if request.timeout is None else now + request.timeout
        slot, first = core.take(now, request.avoid), False
        while True:
            if slot is None:
                slot = await self._queue(request, began, deadline, first=first)
                now = self._now()
            if now >= slot.retire_at:
                self._do(core.discard(slot, "max_lifetime", now))
            elif not core.needs_check(slot, now) or await self._check(slot, deadline):
                break
            first, now = True, self._now()
            slot = core.take(now, request.avoid)
        now = self._now()
        self._counters.acquired += 1
        self._counters.waited += now - began
        request.since = now
        self._leases[slot.id] = request
        return slot

    async def _queue(self, request: Acquire[C], began: float, deadline: float, *, first: bool) -> Slot:
        core, now = self._core, self._now()
        self._refuse_if_hopeless(request, now, deadline)
        ticket = Ticket(now, priority=request.priority, avoid=request.avoid)
        ticket.owner, ticket.site = request.owner, request.site
        self._note_exhaustion(now)
        self._do(core.wait(ticket, now, first=first))
        if ticket.live:
            seat = self._new_seat()
            ticket.wake = seat.wake
            self._keeper.watch(ticket, deadline)
            try:
                await seat.wait()
            except BaseException:
                self._do(core.abandon(ticket, self._now()))
                raise
        if self._exhausted_at is not None and not core.waiters.live:
            self._note_recovery()
        if ticket.error is not None:
            self._counters.rejected += 1
            raise ticket.error
        if ticket.slot is None:
            raise self._timed_out(began)
        return ticket.slot

    def _refuse_if_hopeless(self, request: Acquire[C], now: float, deadline: float) -> None:
        core, config = self._core, self._config
        if deadline <= now:
            raise self._timed_out(now)
        if config.max_waiting is not None and core.waiters.live >= config.max_waiting:
            self._counters.rejected += 1
            raise PoolFullError(self._name)
        if self._breaker is not None and core.size == 0 and not self._breaker.would_allow():
            self._counters.rejected += 1
            self._breaker.acquire().release()  # raises what it refuses with
        self._refuse_deadlock(request)
        expected = core.expected_wait()
        if expected > deadline - now:
            self._counters.rejected += 1
            raise PoolTimeoutError(
                self._name, "hopeless", stats=self.stats(), explanation=f"about {expected:.3g} s until its turn"
            )

    def _refuse_deadlock(self, request: Acquire[C]) -> None:
        """Fail the youngest of tasks that all hold a connection and all wait for another one."""
        core, owner = self._core, request.owner
        if owner is None or core.leased < core.max_size or core.connecting or core.reserved:
            return
        leases = list(self._leases.values())
        own = next((lease for lease in leases if lease.owner is owner), None)
        if own is None:  # the usual case: who waits holds nothing
            return
        waiting = {id(ticket.owner) for ticket in core.waiters} | {id(owner)}
        if all(lease.owner is not None and id(lease.owner) in waiting for lease in leases):
            self._counters.rejected += 1
            raise PoolDeadlockError(self._name, held_at=told(own.site), waiting_at=told(request.site))

    def _timed_out(self, began: float) -> PoolTimeoutError:
        core, now = self._core, self._now()
        self._counters.timed_out += 1
        self._counters.waited += now - began
        if AcquireTimedOut.sinks:
            emit(
                AcquireTimedOut(
                    self._name, now, waited=now - began, size=core.size, leased=core.leased, waiting=core.waiters.live
                )
            )
        error = PoolTimeoutError(self._name, stats=self.stats(), explanation=self._explanation(now))
        error.__cause__ = self._last_error
        return error

    def _explanation(self, now: float) -> str:
        """Say what the pool is busy with."""
        core = self._core
        counts = (
            f"{core.size} of {core.max_size} open, {core.leased} lent, {len(core.idle)} idle, "
            f"{core.reserved} in check or reset, {core.connecting} connecting, {core.waiters.live} waiting"
        )
        parts = [counts]
        oldest = sorted(self._leases.values(), key=lambda lease: lease.since)[:3]
        parts += [f"lent for {now - lease.since:.3g} s at {told(lease.site)}" for lease in oldest]
        if self._last_error is not None:
            parts.append(f"connecting fails since {now - core.failing_since:.3g} s: {type_name(self._last_error)}")
        if self._breaker is not None and self._breaker.state != "closed":
            parts.append(f"the circuit breaker {self._breaker.name!r} is {self._breaker.state}")
        return "; ".join(parts)

    # --- coming back ---

    def _release(self, lease: Lease[C] | Acquire[C], slot: Slot, error: BaseException | None = None) -> None:
        core, now = self._core, self._now()
        self._forget(lease, slot, now)
        if slot.place is Place.GONE:
            return  # closed under its borrower
        if slot.doomed == "discarded":
            self._do(core.discard(slot, "discarded", now))
            return
        self._counters.used += now - slot.leased_at
        if self._reset_function is None:
            # The short way: nothing to do for the pool but to lend it again.
            if core.waiters.live == 0 and not core.closing and not slot.doomed and core.is_plain(slot, now):
                core.shelve(slot, now, alive=error is None)
                return
            self._do(core.give_back(slot, now, alive=error is None))
            return
        core.reserve(slot, now)
        self._start(self._reset, slot, error)

    async def _reset(self, slot: Slot, error: BaseException | None) -> None:
        """Make a connection as new, and find its next place."""
        core = self._core
        failed: BaseException | None = None
        try:
            with anyio.fail_after(self._config.reset_timeout):
                result = self._reset_function(slot.connection) if self._reset_function is not None else None
                if isawaitable(result):
                    await result
        except Exception as raised:  # noqa: BLE001 - the user's function may raise anything; the connection is closed
            failed = raised
        except BaseException:
            self._do(core.discard(slot, "cancelled", self._now()))
            raise
        if failed is None:
            self._do(core.give_back(slot, self._now(), alive=error is None))
            return
        self._counters.reset_failures += 1
        if ResetFailed.sinks:
            emit(ResetFailed(self._name, self._now(), id=slot.id, error_type=type_name(failed)))
        self._do(core.discard(slot, "reset_failed", self._now()))

    def discard(self, connection: C) -> None:
        """Take the lender's word that a borrowed connection is broken: it is closed when it comes back.

        Raises:
            PoolUsageError: no such connection is lent.
        """
        for slot in self._core.slots.values():
            if slot.connection is connection and slot.place is Place.LEASED:
                slot.doomed = "discarded"
                return
        raise PoolUsageError(f"pool {self._name!r} has not lent this connection")

    def _discard(self, lease: Lease[C] | Acquire[C], slot: Slot) -> None:
        now = self._now()
        self._forget(lease, slot, now)
        if slot.place is not Place.GONE:
            self._do(self._core.discard(slot, "discarded", now))

    def _forget(self, lease: Lease[C] | Acquire[C], slot: Slot, now: float) -> None:
        if self._leases.get(slot.id) is lease:
            del self._leases[slot.id]
        if self._config.leak_after is not None:
            self._keeper.lease_ended(slot.id, now - lease.since, lease.site)

    # --- checking ---

    async def _check(self, slot: Slot, deadline: float) -> bool:
        """Tell whether a leased connection is alive; if not, it is gone."""
        core = self._core
        failed: BaseException | None = None
        try:
            failed = await self._ask(slot, min(self._config.check_timeout, max(0.0, deadline - self._now())))
        except BaseException:
            # A check that was cut off half-way leaves the connection in nobody knows what state.
            self._do(core.discard(slot, "cancelled", self._now()))
            raise
        if failed is None:
            slot.alive_at = self._now()
            return True
        self._tell_check_failed(slot, failed)
        self._do(core.check_failed(slot, self._now()))
        return False

    async def _ask(self, slot: Slot, seconds: float) -> BaseException | None:
        if self._check_function is None:
            return None
        try:
            with anyio.fail_after(seconds):
                answer = self._check_function(slot.connection)
                if isawaitable(answer):
                    answer = await answer
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything: the connection is broken
            return error
        return ConnectionError("the check returned False") if answer is False else None

    def _tell_check_failed(self, slot: Slot, error: BaseException) -> None:
        self._counters.check_failures += 1
        if CheckFailed.sinks:
            emit(CheckFailed(self._name, self._now(), id=slot.id, error_type=type_name(error)))

    async def check_idle(self) -> int:
        """Check every idle connection, one at a time; gives the number of those that were broken, and are gone.

        Cancellation: the connection that was being checked is closed.
        """
        broken = 0
        for slot in list(self._core.idle):
            if slot.place is Place.IDLE:
                broken += not await self._check_one(slot)
        return broken

    async def _check_one(self, slot: Slot) -> bool:
        core = self._core
        core.reserve_idle(slot)
        try:
            failed = await self._ask(slot, self._config.check_timeout)
        except BaseException:
            self._do(core.discard(slot, "cancelled", self._now()))
            raise
        if failed is None:
            self._do(core.give_back(slot, self._now()))
            return True
        self._tell_check_failed(slot, failed)
        self._do(core.check_failed(slot, self._now()))
        return False

    # --- connecting and closing ---

    def _do(self, work: Work) -> None:
        """Do what a move of the books made necessary. Never waits."""
        for ticket in work.woken:
            if ticket.wake is not None:
                ticket.wake()
        for slot, reason in work.closing:
            self._start(self._close_slot, slot, reason)
        for _ in range(work.connects):
            self._start(self._connect)
        if self._config.debug:
            self._core.check()
        core = self._core
        if core.closing and self._returned is not None and not core.leased and not core.reserved:
            self._returned.set()
        if work.connects or self._core.failures:
            self._keeper.poke()

    def _start(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        if self._group is not None:
            self._keeper.working += 1
            self._group.start_soon(self._keeper.work, function, *args)

    async def _connect(self) -> None:
        """Open one connection, for whoever is first when it is there."""
        core, began = self._core, self._now()
        error: BaseException | None = None
        connection: Any = None
        try:
            with anyio.fail_after(self._config.connect_timeout):
                connection = await self._opening()
            error = self._unusable(connection)
        except Exception as raised:  # noqa: BLE001 - the user's function may raise anything; it is told, and tried again
            error = raised
        except BaseException:
            core.connect_cancelled()
            raise
        now = self._now()
        if error is not None:
            self._connect_failed(error, now)
            return
        self._last_error = None
        self._counters.opened += 1
        slot, work = core.opened(connection, now, now - began)
        if ConnectionOpened.sinks:
            emit(ConnectionOpened(self._name, now, id=slot.id, duration=now - began))
        self._do(work)
        if self._ready is not None and core.size >= core.min_size:
            self._ready.set()

    async def _opening(self) -> C:
        if self._breaker is None:
            return await self._connect_function()
        async with self._breaker.guard():
            return await self._connect_function()

    def _unusable(self, connection: object) -> BaseException | None:
        if connection is None:
            return ConfigurationError(f"connect of pool {self._name!r} must return a connection, got None")
        if any(slot.connection is connection for slot in self._core.slots.values()):
            return ConfigurationError(f"connect of pool {self._name!r} must return a new connection each time")
        return None

    def _connect_failed(self, error: BaseException, now: float) -> None:
        core = self._core
        refused = isinstance(error, CircuitOpenError)
        if not refused:
            self._last_error = error
            self._counters.connect_failures += 1
        permanent = isinstance(error, ConfigurationError) or refused or self._is_permanent(error)
        work = core.connect_failed(now, error, permanent=permanent)
        if refused and isinstance(error, CircuitOpenError):
            core.next_attempt_at = now + (error.retry_after or self._config.reconnect_cap)
        if ConnectFailed.sinks and not refused:
            emit(
                ConnectFailed(
                    self._name,
                    now,
                    error_type=type_name(error),
                    attempt=core.failures,
                    next_in=max(0.0, core.next_attempt_at - now),
                )
            )
        self._do(work)

    def _is_permanent(self, error: BaseException) -> bool:
        permanent: Any = self._permanent_errors
        if is_exception_types(permanent):
            return isinstance(error, permanent)
        try:
            return bool(permanent(error))
        except Exception:  # noqa: BLE001 - the user's function may raise anything; trying again is the safe answer
            return False

    async def _close_slot(self, slot: Slot, reason: str) -> None:
        """Close a connection that is in the books no longer."""
        self._counters.closed += 1
        if ConnectionClosed.sinks:
            now = self._now()
            emit(ConnectionClosed(self._name, now, id=slot.id, reason=reason, age=now - slot.opened_at, uses=slot.uses))
        if self._close_function is None:
            return
        with suppress(Exception), anyio.CancelScope(shield=True), anyio.fail_after(self._config.close_timeout):
            result = self._close_function(slot.connection)
            if isawaitable(result):
                await result

    # --- what people decide ---

    async def wait_ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - many may wait, each for so long
        """Wait until `min_size` connections are open; many callers may.

        Raises:
            PoolTimeoutError: not within `timeout` seconds.
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        self._check_usable()
        began = self._now()
        while self._core.size < self._core.min_size:
            if self._ready is None or self._ready.is_set():
                self._ready = anyio.Event()
            left = None if timeout is None else began + timeout - self._now()
            if left is not None and left <= 0:
                raise self._timed_out(began)
            with anyio.move_on_after(left):
                await self._ready.wait()

    def drain(self) -> None:
        """Replace every connection: idle ones now, lent ones when they come back."""
        self._check_usable()
        self._do(self._core.drain(self._now()))

    def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Move the bounds. What is too much is closed now if it is idle, else when it comes back.

        Raises:
            ConfigurationError: bounds that make no sense; nothing was changed.
        """
        core = self._core
        low = core.min_size if min_size is None else min_size
        high = core.max_size if max_size is None else max_size
        check_int("max_size", high, most=MAX_SIZE)
        check_int("min_size", low, least=0)
        if low > high:
            raise ConfigurationError(f"min_size must be at most max_size, {high}, got {low}")
        self._do(core.resize(low, high, self._now()))
        if PoolResized.sinks:
            emit(PoolResized(self._name, self._now()))

    def inject(self, function: Callable[Concatenate[C, P], Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Give `function` a connection as its first argument, for the time of each call.

        Raises:
            ConfigurationError: not an async function.
        """
        if not is_async(function):
            raise ConfigurationError(f"inject needs an async function, got {shown(function)}")

        @functools.wraps(function)
        async def injected(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self.acquire() as connection:
                return await function(connection, *args, **kwargs)

        return injected

    # --- reading ---

    def stats(self) -> PoolStats:
        """Give the numbers of this moment."""
        core, counters = self._core, self._counters
        return PoolStats(
            size=core.size,
            idle=len(core.idle),
            leased=core.leased,
            reserved=core.reserved,
            connecting=core.connecting,
            waiting=core.waiters.live,
            min_size=core.min_size,
            max_size=core.max_size,
            acquired=counters.acquired,
            timed_out=counters.timed_out,
            rejected=counters.rejected,
            opened=counters.opened,
            closed=counters.closed,
            connect_failures=counters.connect_failures,
            check_failures=counters.check_failures,
            reset_failures=counters.reset_failures,
            waited_seconds=counters.waited,
            used_seconds=counters.used,
        )

    def health(self) -> PoolHealth:
        """Tell how the pool is."""
        core = self._core
        if not core.failures:
            return PoolHealth("up", None, 0.0)
        cause = None if self._last_error is None else type_name(self._last_error)
        return PoolHealth("degraded" if core.size else "down", cause, self._now() - core.failing_since)

    def _note_bug(self, error: BaseException) -> None:
        """Tell what should not have happened; the pool goes on."""
        if PoolFailed.sinks:
            emit(PoolFailed(self._name, self._now(), error_type=type_name(error)))

    def _check_usable(self) -> None:
        if self._forked:
            raise PoolUsageError(f"pool {self._name!r} belongs to the parent process: make one after the fork")
        if self._core.closing:
            raise PoolClosedError(self._name)
        if self._home is None:
            raise PoolUsageError(f"pool {self._name!r} is not open: enter it with `async with`")
        if not self._home.is_here():
            raise PoolUsageError(f"pool {self._name!r} belongs to another event loop: make one for each")

    def _note_exhaustion(self, now: float) -> None:
        if self._exhausted_at is None and self._core.leased >= self._core.max_size:
            self._exhausted_at = now
            if PoolExhausted.sinks:
                emit(PoolExhausted(self._name, now))

    def _note_recovery(self) -> None:
        if self._exhausted_at is not None:
            began, self._exhausted_at = self._exhausted_at, None
            now = self._now()
            if PoolRecovered.sinks:
                emit(PoolRecovered(self._name, now, duration=now - began))


def _check_connect(connect: object) -> None:
    if not callable(connect) or not is_async(connect):
        raise ConfigurationError(f"connect must be an async function, got {shown(connect)}")


def _no_run() -> object:
    """Stand for the run of a pool that was not entered: it is nobody's."""
    return _no_run
