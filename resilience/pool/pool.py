"""The connection pool that programs hold."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from math import inf
from sys import _getframe
from types import TracebackType
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

import anyio

from resilience.breaker import CircuitBreaker
from resilience.checks import check_function, check_int, check_name, check_number, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError, PoolClosedError, PoolTimeoutError, PoolUsageError
from resilience.events import PoolClosed, PoolResized, emit
from resilience.stack import ADMITTED, Admission, dressed, signature_of

from .budget import Budget
from .config import MAX_SECONDS, PoolConfig, check_bounds, merged
from .core import PoolCore, Work
from .engine import Engine, PermanentErrors, Step, check_permanent_errors
from .home import Home, site_of_caller
from .keeper import Keeper
from .lease import Acquire, Lease
from .lending import Lender, Wish
from .sizing import Advice, advise
from .slots import DISCARDED, LEASED, RESERVED
from .stats import PoolHealth, PoolStats

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


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
        is_closed: tells whether a connection is known to be closed, as drivers do of a server that hung up. A plain
            function that is asked at each borrowing, also while `check_after_idle` spares the check: it must be quick,
            and make no round trip. A connection of which it says yes goes through `check`.
        reset: makes a connection as new after use; sync or async; a connection whose reset fails is closed. A sync one
            runs in the borrower's task, and must not block.
        name: in events, errors and logs.
        config: see `PoolConfig`.
        breaker: guards `connect`: while it is open nothing is opened; callers are refused if nothing is lent or idle.
        budget: what this pool and others may have together, see `Budget`.
        permanent_errors: connect errors that trying again cannot cure, such as a wrong password: a type, a tuple of
            types, or a plain function of the exception. They go to a caller at once. All others are tried again.
        clock: monotonic seconds.
        rng: for jitter.
        overrides: fields of the configuration, in place of `config`'s.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    kind: ClassVar[str] = "pool"
    """What it is among policies: see `inject`."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[C]],
        *,
        close: Step | None = None,
        check: Step | None = None,
        reset: Step | None = None,
        is_closed: Callable[[C], bool] | None = None,
        name: str = "pool",
        config: PoolConfig | None = None,
        breaker: CircuitBreaker | None = None,
        budget: Budget | None = None,
        permanent_errors: PermanentErrors = (),
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        **overrides: Any,
    ) -> None:
        _check_functions(connect, close=close, check=check, reset=reset)
        if is_closed is not None:
            check_function("is_closed", is_closed)
        check_name(name)
        check_function("clock", clock)
        check_permanent_errors(permanent_errors)
        _check_shared(breaker, budget)
        config = merged(PoolConfig() if config is None else config, overrides)
        jitter = (rng or random.Random()).random  # noqa: S311 - jitter, no secret
        self._core = PoolCore(
            config, jitter=jitter, allowance=budget, checks=check is not None, resets=reset is not None
        )
        self._engine = Engine(
            name,
            config,
            self._core,
            clock,
            connect=connect,
            close=close,
            check=check,
            reset=reset,
            is_closed=is_closed,
            breaker=breaker,
            budget=budget,
            permanent_errors=permanent_errors,
        )
        self._keeper = Keeper(self._engine)
        self._lender = Lender(self._engine, self._keeper)
        self._closed: anyio.Event | None = None
        self._changed: anyio.Event | None = None
        """Set when a connection was opened, or the pool closes."""

    @property
    def name(self) -> str:
        """What it is called in events, errors and logs."""
        return self._engine.name

    @property
    def config(self) -> PoolConfig:
        """How it behaves."""
        return self._engine.config

    def __repr__(self) -> str:
        core = self._core
        state = "closed" if core.closing else "open" if self._engine.group is not None else "not open"
        return (
            f"<ConnectionPool {self.name!r} {state}, {core.leased} of {core.size} lent, "
            f"{core.waiters.live} waiting, {core.connecting} connecting>"
        )

    # --- lifecycle ---

    async def __aenter__(self) -> Self:
        self._lender.check_home()
        if self._core.closing:
            raise PoolClosedError(self.name)
        engine = self._engine
        if engine.group is not None:
            raise PoolUsageError(f"pool {self.name!r} was entered twice")
        home, group = Home(), anyio.create_task_group()
        engine.open(home, group)
        await group.__aenter__()
        engine.on_opened = self._note_change
        self._lender.open(home)
        group.start_soon(self._keeper.run)
        engine.do(self._core.plan(Work(), engine.now()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        group = self._engine.group
        try:
            await self.close()
        finally:
            if group is not None:
                group.cancel_scope.cancel()
                # Without the error: the children never raise, and the block's own is not the group's to wrap.
                await group.__aexit__(None, None, None)

    async def close(self, grace: float | None = None) -> None:
        """Fail those who wait, close what is idle, give borrowers `grace`, then close under them.

        Idempotent; safe in a `finally`. Ends within `grace` and one `close_timeout`; called again, it waits for the
        first call to end.

        Args:
            grace: seconds for borrowers to finish; None is the configuration's `close_grace`.

        Raises:
            ConfigurationError: a grace that makes no sense.
            PoolUsageError: of another event loop, or in a forked child.

        Cancellation: ends the grace at once; everything is closed nevertheless.
        """
        if grace is not None:
            check_number("grace", grace, least=0, most=MAX_SECONDS)
        self._lender.check_home()
        core, engine = self._core, self._engine
        if self._closed is not None:
            await self._closed.wait()
            return
        self._lender.end()
        at_rest, closed = anyio.Event(), anyio.Event()
        self._closed, engine.on_rest = closed, at_rest.set
        engine.do(core.close(PoolClosedError(self.name)))
        engine.cancel_attempts()
        self._note_change()
        try:
            with anyio.move_on_after(self.config.close_grace if grace is None else grace):
                await at_rest.wait()
        finally:
            forced = self._force()
            engine.cancel_all()
            try:
                with anyio.CancelScope(shield=True), anyio.move_on_after(self.config.close_timeout):
                    await engine.wait_until_done()
            finally:
                closed.set()  # before anything that may fail: others wait for it
                engine.end()
                if PoolClosed.sinks:
                    emit(PoolClosed(self.name, engine.now(), forced=forced))

    def _force(self) -> int:
        """Close what borrowers still hold; their later release is silent."""
        core, engine = self._core, self._engine
        held = [slot for slot in core.slots.values() if slot.place in {LEASED, RESERVED}]
        forced = sum(slot.place is LEASED for slot in held)
        for slot in held:
            engine.do(core.discard(slot, "forced", engine.now()))
        return forced

    # --- borrowing ---

    def acquire(self, timeout: float | None = None, *, priority: int = 0, avoid: Lease[C] | None = None) -> Acquire[C]:
        """Ask for a connection: `async with pool.acquire() as connection`, or `lease = await pool.acquire()`.

        Args:
            timeout: seconds, 0 or more, checking and connecting included; 0 takes what is there; `math.inf` waits for
                ever; None is the configuration's `acquire_timeout`.
            priority: higher is served first; in the order of arrival among equals. Above 0 it may use the headroom.
            avoid: a lease whose connection is not wanted again, such as one that just failed.

        Raises:
            ConfigurationError: a timeout, priority or lease that makes no sense.

        Raises, when it is awaited or entered:
            PoolTimeoutError: nothing came free in time; its text says what the pool was busy with. `reason` is
                "hopeless" if it was refused at once, because its turn would not have come in time.
            PoolFullError: `max_waiting` callers wait already.
            PoolClosedError: the pool is closed, or closes meanwhile.
            PoolDeadlockError: every connection is held by a task that waits here itself.
            CircuitOpenError: the breaker is open and nothing is lent or idle.
            PoolUsageError: not open, of another event loop, or in a forked child.
            whatever `connect` raised, if it is permanent.

        Cancellation: a connection that was handed over meanwhile goes to the next caller.
        """
        lender = self._lender
        wish = lender.usual
        if timeout is not None or priority or avoid is not None:
            wish = self._wish(wish.patience if timeout is None else timeout, priority, avoid)
        frame = _getframe(1)  # see `site_of_caller`
        return Acquire(lender, wish, frame.f_code, frame.f_lasti)

    def _wish(self, patience: float, priority: int, avoid: object) -> Wish:
        if patience != inf:
            check_number("timeout", patience, least=0, most=MAX_SECONDS)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ConfigurationError(f"priority must be an int, got {shown(priority)}")
        if avoid is None:
            return Wish(patience, priority, None)
        if not isinstance(avoid, Lease) or not avoid.is_of(self._lender):
            raise ConfigurationError(f"avoid must be a lease of this pool, got {shown(avoid)}")
        return Wish(patience, priority, avoid.last_slot)

    def try_acquire(self) -> Lease[C] | None:
        """Give a lease of an idle connection that needs no check, or None; never waits.

        Raises:
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        slot = self._lender.try_take()
        if slot is None:
            return None
        lease: Lease[C] = Lease(self._lender, slot, site_of_caller())
        slot.borrower = lease
        return lease

    def discard(self, connection: C) -> None:
        """Take the lender's word that a borrowed connection is broken: it is closed when it comes back.

        Raises:
            PoolUsageError: no such connection is lent.
        """
        for slot in self._core.slots.values():
            if slot.connection is connection and slot.place is LEASED:
                slot.doom(DISCARDED)
                return
        raise PoolUsageError(f"pool {self.name!r} has not lent this connection")

    def inject(self, function: Callable[Concatenate[C, P], Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Give `function` a connection as its first argument, for the time of each call.

        Raises:
            ConfigurationError: not an async function.
        """
        if not is_async(function):
            raise ConfigurationError(f"inject needs an async function, got {shown(function)}")

        # For whoever asks who holds a connection, it is the function.
        code = getattr(function, "__code__", None) or self.inject.__code__
        lender = self._lender

        async def injected(*args: P.args, **kwargs: P.kwargs) -> T:
            request: Acquire[C] = Acquire(lender, lender.usual, code, 0)
            async with request as connection:
                return await function(connection, *args, **kwargs)

        wrapper = dressed(injected, function, self)
        wrapper.__signature__ = signature_of(function, given=1)  # frameworks must not ask the caller for a connection
        return cast("Callable[P, Awaitable[T]]", wrapper)

    def admission(self) -> Admission:
        """Tell whether `acquire` would be refused at once, as far as is known now; takes nothing."""
        core, breaker = self._core, self._engine.breaker
        if core.closing:
            return Admission(allowed=False, reason="pool_closed")
        most = self.config.max_waiting
        is_served = core.idle and not core.waiters.live
        if most is not None and core.waiters.live >= most and not is_served:
            return Admission(allowed=False, reason="pool_exhausted")
        if breaker is not None and not core.size and not core.connecting:
            return breaker.admission()
        return ADMITTED

    # --- what people decide ---

    async def wait_ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - many may wait, each for so long
        """Wait until `min_size` connections are open; many callers may.

        Raises:
            ConfigurationError: a timeout that makes no sense.
            PoolTimeoutError: not within `timeout` seconds; the last error of connecting is its cause.
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        if timeout is not None:
            check_number("timeout", timeout, least=0, most=MAX_SECONDS)
        self._lender.check_usable()
        with anyio.move_on_after(timeout):
            while self._core.size < self._core.min_size:
                if self._changed is None:
                    self._changed = anyio.Event()
                await self._changed.wait()
                self._lender.check_usable()
            return
        explanation = self._lender.explanation(self._engine.now())
        error = PoolTimeoutError(self.name, "not_ready", stats=self.stats(), explanation=explanation)
        raise error from self._engine.last_error

    def _note_change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    async def check_idle(self) -> int:
        """Check every idle connection, one at a time; gives the number of those that were broken, and are gone.

        Raises:
            PoolClosedError, PoolUsageError: as `acquire`.

        Cancellation: the connection that was being checked is closed.
        """
        self._lender.check_usable()
        return sum([not await self._engine.check_idle(slot) for slot in list(self._core.idle)])

    def warm(self, connections: int) -> None:
        """Have connections opened in the background until there are so many, `max_size` at the most.

        They live and age as all others: those that nobody uses go after `max_idle`.

        Raises:
            ConfigurationError: not a number of connections.
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        check_int("connections", connections, least=0)
        self._lender.check_usable()
        self._engine.do(self._core.warm(connections, self._engine.now()))

    def drain(self) -> None:
        """Replace every connection: idle ones now, lent ones when they come back.

        Raises:
            PoolClosedError, PoolUsageError: as `acquire`.
        """
        self._lender.check_usable()
        self._engine.do(self._core.drain(self._engine.now()))

    def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Move the bounds. What is too much is closed now if it is idle, else when it comes back.

        Raises:
            ConfigurationError: bounds that make no sense; nothing was changed.
            PoolClosedError, PoolUsageError: as `acquire`, but it need not be open yet.
        """
        core, engine = self._core, self._engine
        if core.closing or engine.group is not None:
            self._lender.check_usable()
        low = core.min_size if min_size is None else min_size
        high = core.max_size if max_size is None else max_size
        check_bounds(low, high)
        engine.do(core.resize(low, high, engine.now()))
        self._note_change()  # who waits until the pool is ready may have what it wants
        if PoolResized.sinks:
            emit(PoolResized(self.name, engine.now()))

    # --- reading ---

    def stats(self) -> PoolStats:
        """Give the numbers of this moment."""
        return self._lender.stats()

    def health(self) -> PoolHealth:
        """Tell how the pool is."""
        engine = self._engine
        failing_for = engine.now() - self._core.failing_since if self._core.failures else 0.0
        return PoolHealth(engine.health(), engine.cause(), failing_for)

    def advice(self) -> Advice:
        """Say what the latest borrowings mean for the pool's size; `str()` of it is for people."""
        return advise(self._lender.usage.uses, self._core.max_size, self._keeper.outlook())


def _check_functions(connect: object, **steps: object) -> None:
    if not is_async(connect):
        raise ConfigurationError(f"connect must be an async function, got {shown(connect)}")
    for field, function in steps.items():
        if function is not None and not callable(function):
            raise ConfigurationError(f"{field} must be a function of a connection, got {shown(function)}")


def _check_shared(breaker: object, budget: object) -> None:
    if not isinstance(breaker, CircuitBreaker | None):
        raise ConfigurationError(f"breaker must be a CircuitBreaker, got {shown(breaker)}")
    if not isinstance(budget, Budget | None):
        raise ConfigurationError(f"budget must be a Budget, got {shown(budget)}")
