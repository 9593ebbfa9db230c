"""Who gets which connection, and who waits: the pool's counter."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import inf
from typing import Any, Final

import anyio

from resilience.clock import Clock
from resilience.errors import (
    CircuitOpenError,
    PoolClosedError,
    PoolDeadlockError,
    PoolFullError,
    PoolTimeoutError,
    PoolUsageError,
    type_name,
)
from resilience.events import AcquireTimedOut, PoolExhausted, PoolRecovered, emit

from .config import PoolConfig
from .core import DISCARDED, GONE, LEASED, PoolCore, Slot
from .engine import Engine
from .home import Home, told
from .keeper import Keeper
from .lease import Acquire, Lease, Wish
from .sizing import UsageRecord
from .stats import PoolStats
from .waiters import Ticket

LONG: Final = 0.01
"""Seconds: a wait that is shorter is never called hopeless. To look for the caller's own deadline costs a microsecond,
and to refuse such a wait saves nobody anything."""


class Lender:
    """Lends connections to callers, lets them wait, and takes connections back.

    Attributes:
        name, config, core, now: of the pool.
        usual: what most callers ask for.
        usage: the latest borrowings.
        timed_out, rejected: callers.
        waited, used: seconds.
        thread, current_task: of the run that it lends to.
        plain: what callers may ask for who are served in the short way; see `Acquire`.
        pop, unpop: take out the idle connection that is lent next, and put it back.
        resets: whether connections that come back are reset.
        notes_at: borrowings that end before this moment need not be noted.
    """

    def __init__(self, engine: Engine, keeper: Keeper) -> None:
        self.name = engine.name
        self.config: PoolConfig = engine.config
        self.core: PoolCore = engine.core
        self.now: Clock = engine.now
        self.usual = Wish(inf if self.config.acquire_timeout is None else self.config.acquire_timeout, 0, None)
        self.usage = UsageRecord()
        self.timed_out = self.rejected = 0
        self.waited = self.used = 0.0
        self._engine = engine
        self._keeper = keeper
        self._home: Home | None = None
        self._forked = False
        self._exhausted_at: float | None = None
        self._most_waiting = inf if self.config.max_waiting is None else self.config.max_waiting
        self.thread = 0
        self.current_task: Callable[[], Any] = _nobody
        # Neither headroom nor prewarming is for those who are served in the short way: it does not count who gets what.
        self.plain = None if self.config.headroom or self.config.prewarm is not None else self.usual
        lifo = self.core.lifo
        self.pop = self.core.idle.pop if lifo else self.core.idle.popleft
        self.unpop = self.core.idle.append if lifo else self.core.idle.appendleft
        self.resets = engine.reset is not None
        self.debug = self.config.debug
        self.notes_at = -inf

    # --- whether it can be used at all ---

    def open(self, home: Home) -> None:
        """Begin to lend, to the tasks of one run."""
        self._home, self.thread, self.current_task = home, home.thread, home.current_task

    def end(self) -> None:
        """Lend no more."""
        self.current_task = _nobody

    def refuse_after_fork(self) -> None:
        """Lend no more in a forked child: the connections are the parent's."""
        self._forked = True
        self.end()

    def check_usable(self) -> None:
        """Raise if the pool cannot be used, or not from here."""
        if self._forked:
            raise PoolUsageError(f"pool {self.name!r} belongs to the parent process: make one after the fork")
        if self.core.closing:
            raise PoolClosedError(self.name)
        if self._home is None:
            raise PoolUsageError(f"pool {self.name!r} is not open: enter it with `async with`")
        self.check_home()

    def check_home(self) -> None:
        """Raise if this is not the pool's event loop."""
        if self._home is not None and not self._home.is_here():
            raise PoolUsageError(f"pool {self.name!r} belongs to another event loop: make one for each")

    # --- lending ---

    def try_lease(self, site: Any) -> Lease[Any] | None:
        """Lend an idle connection that needs no check, if there is one."""
        self.check_usable()
        now, core = self.now(), self.core
        slot = core.take(now)
        if slot is None:
            return None
        if now >= slot.retire_at or core.needs_check(slot, now):
            self._engine.do(core.return_unused(slot, now))
            return None
        lease: Lease[Any] = Lease(self, slot, site)
        slot.borrower = lease
        return lease

    async def lend(self, request: Acquire[Any]) -> Lease[Any]:
        """Lend as a lease."""
        slot = await self.wait(request)
        lease: Lease[Any] = Lease(self, slot, request.site)
        slot.borrower = lease
        return lease

    async def wait(self, request: Acquire[Any]) -> Slot:
        """Get a connection that can be lent, however long that takes within the caller's patience."""
        self.check_usable()
        core, engine = self.core, self._engine
        patience, priority, avoid = request.wish
        began = now = self.now()
        deadline = now + patience
        fresh = first = False
        slot = core.take(now, priority, avoid)
        while True:
            if slot is None:
                ticket = await self._queue(request, now, deadline, first=first)
                slot, fresh = ticket.slot, ticket.fresh
                if slot is None:
                    raise self._refusal(ticket, began)
                now = self.now()
            if deadline <= now and not fresh and core.needs_check(slot, now):  # there is no time to check it
                engine.do(core.return_unused(slot, now))
                raise self._timed_out(began)
            if slot.place is GONE:  # closed between its hand-over and now
                self.check_usable()
            elif now >= slot.retire_at:
                engine.do(core.discard(slot, "max_lifetime", now))
            elif fresh or not core.needs_check(slot, now) or await engine.is_alive(slot, deadline - now):
                break
            self.check_usable()
            first, now = True, self.now()
            slot = core.take(now, priority, avoid)
        self.waited += self.now() - began
        slot.asked_at = began
        slot.borrower = request
        return slot

    async def _queue(self, request: Acquire[Any], now: float, deadline: float, *, first: bool) -> Ticket:
        """Wait for a connection; gives a ticket with one, with an error, or with neither: its time is over."""
        core, engine = self.core, self._engine
        self._refuse_if_hopeless(request, now, deadline)
        _, priority, avoid = request.wish
        ticket = Ticket(now, deadline=deadline, priority=priority, avoid=avoid, request=request)
        if self._exhausted_at is None:
            self._note_exhaustion(now)
        engine.do(core.wait(ticket, now, first=first))
        if ticket.live:
            home = self._home
            if home is None:
                raise AssertionError("a bug: who waits is in no event loop")
            seat = ticket.seat = home.seat()
            self._keeper.watch(ticket)
            try:
                await seat
            except BaseException:
                engine.do(core.abandon(ticket, self.now()))
                raise
        if self._exhausted_at is not None and not core.waiters.live:
            self._note_recovery()
        return ticket

    # --- refusing ---

    def _refusal(self, ticket: Ticket, began: float) -> BaseException:
        if ticket.error is None:
            return self._timed_out(began)
        self.rejected += 1
        # Several may have been given the same.
        return copy(ticket.error) if isinstance(ticket.error, CircuitOpenError) else ticket.error

    def _refuse_if_hopeless(self, request: Acquire[Any], now: float, deadline: float) -> None:
        core, engine = self.core, self._engine
        if deadline <= now:
            raise self._timed_out(now)
        if core.waiters.live >= self._most_waiting:
            self.rejected += 1
            raise PoolFullError(self.name)
        if engine.breaker is not None and core.size + core.connecting == 0 and not engine.breaker.would_allow():
            self.rejected += 1
            engine.breaker.acquire().release()  # raises what it refuses with
        self._refuse_deadlock(request)
        expected = core.expected_wait()
        if expected > LONG and expected > min(
            deadline - now, anyio.current_effective_deadline() - anyio.current_time()
        ):
            self.rejected += 1
            why = f"about {expected:.3g} s until its turn"
            raise PoolTimeoutError(self.name, "hopeless", stats=self.stats(), explanation=why)

    def _refuse_deadlock(self, request: Acquire[Any]) -> None:
        """Fail the youngest of tasks that all hold a connection and all wait for another one."""
        core, owner = self.core, request.owner
        if core.leased < core.max_size or core.connecting or core.reserved:
            return
        own = None
        for slot in core.slots.values():
            borrower = slot.borrower
            if borrower is not None and borrower.owner is owner:
                own = borrower
                break
        if own is None:  # the usual case: who waits holds nothing
            return
        waiting = {id(ticket.request.owner) for ticket in core.waiters} | {id(owner)}
        if all(slot.borrower is not None and id(slot.borrower.owner) in waiting for slot in core.slots.values()):
            self.rejected += 1
            raise PoolDeadlockError(self.name, held_at=told(own.site), waiting_at=told(request.site))

    def _timed_out(self, began: float) -> PoolTimeoutError:
        core, now = self.core, self.now()
        self.timed_out += 1
        self.waited += now - began
        if AcquireTimedOut.sinks:
            emit(
                AcquireTimedOut(
                    self.name, now, waited=now - began, size=core.size, leased=core.leased, waiting=core.waiters.live
                )
            )
        error = PoolTimeoutError(self.name, stats=self.stats(), explanation=self._explanation(now))
        error.__cause__ = self._engine.last_error
        return error

    def _explanation(self, now: float) -> str:
        """Say what the pool is busy with."""
        core, engine = self.core, self._engine
        counts = (
            f"{core.size} of {core.max_size} open, {core.leased} lent, {len(core.idle)} idle, "
            f"{core.reserved} in check or reset, {core.connecting} connecting, {core.waiters.live} waiting"
        )
        parts = [counts]
        lent = sorted(
            (slot for slot in core.slots.values() if slot.borrower is not None), key=lambda slot: slot.leased_at
        )
        parts += [f"lent for {now - slot.leased_at:.3g} s at {told(slot.borrower.site)}" for slot in lent[:3]]
        if engine.last_error is not None:
            parts.append(f"connecting fails since {now - core.failing_since:.3g} s: {type_name(engine.last_error)}")
        if engine.breaker is not None and engine.breaker.state != "closed":
            parts.append(f"the circuit breaker {engine.breaker.name!r} is {engine.breaker.state}")
        return "; ".join(parts)

    # --- taking back ---

    def take_back(self, lease: Lease[Any] | Acquire[Any], slot: Slot, error: BaseException | None = None) -> None:
        """Take a connection back, after `error` in its borrower; never waits."""
        now = self.now()
        slot.borrower = None
        self.used += now - slot.leased_at
        if now >= self.notes_at:
            self.note(lease, slot, now)
        self.find_place(slot, now, failed=error is not None)

    def find_place(self, slot: Slot, now: float, *, failed: bool) -> None:
        """Lend a connection that came back to the next caller, or reset it, or keep it, or close it."""
        core, engine = self.core, self._engine
        if slot.place is not LEASED:
            return  # closed under its borrower
        if slot.doomed == DISCARDED:
            engine.do(core.discard(slot, DISCARDED, now))
        elif self.resets and not core.reason_to_close(slot, now):
            engine.make_as_new(slot, now, failed=failed)
        elif failed or core.special or now >= slot.retire_at or (ticket := core.hand_over(slot, now)) is None:
            engine.do(core.give_back(slot, now, alive=not failed))
        else:
            if ticket.seat is not None:
                engine.wake(ticket.seat)
            if self.debug:
                core.check()

    def note(self, lease: Lease[Any] | Acquire[Any], slot: Slot, now: float) -> None:
        """Remember a borrowing that ends."""
        if now >= self.usage.opens_at:
            self.usage.note(slot.asked_at, slot.leased_at, now)
        if self.config.leak_after is not None:
            self._keeper.lease_ended(slot, now, lease.site)
        else:
            self.notes_at = self.usage.opens_at

    def take_back_broken(self, lease: Lease[Any], slot: Slot) -> None:
        """Take a connection back that its borrower calls broken."""
        self.core.doom(slot, DISCARDED)
        self.take_back(lease, slot)

    # --- telling ---

    def _note_exhaustion(self, now: float) -> None:
        if self.core.leased >= self.core.max_size:
            self._exhausted_at = now
            if PoolExhausted.sinks:
                emit(PoolExhausted(self.name, now))

    def _note_recovery(self) -> None:
        if self._exhausted_at is not None:
            began, self._exhausted_at = self._exhausted_at, None
            now = self.now()
            if PoolRecovered.sinks:
                emit(PoolRecovered(self.name, now, duration=now - began))

    def stats(self) -> PoolStats:
        """Give the numbers of this moment."""
        core, engine = self.core, self._engine
        return PoolStats(
            size=core.size,
            idle=len(core.idle),
            leased=core.leased,
            reserved=core.reserved,
            connecting=core.connecting,
            waiting=core.waiters.live,
            min_size=core.min_size,
            max_size=core.max_size,
            acquired=core.lent + sum(slot.uses for slot in core.slots.values()),
            timed_out=self.timed_out,
            rejected=self.rejected,
            opened=engine.opened,
            closed=engine.closed,
            connect_failures=engine.connect_failures,
            check_failures=engine.check_failures,
            reset_failures=engine.reset_failures,
            waited_seconds=self.waited,
            used_seconds=self.used,
        )


def _nobody() -> None:
    """Stand for the current task of a pool that was not entered."""
