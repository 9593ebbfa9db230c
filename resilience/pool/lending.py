"""Who gets which connection, and who waits: the pool's counter."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, NamedTuple, Protocol

import anyio

from resilience.clock import Clock
from resilience.errors import (
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    PoolUsageError,
    type_name,
)
from resilience.events import AcquireTimedOut, PoolExhausted, PoolRecovered, emit
from resilience.forks import renew_locks_in_child

from .config import PoolConfig
from .core import PoolCore
from .engine import Engine
from .home import Home, Site, told
from .keeper import Keeper
from .sizing import UsageRecord
from .slots import DISCARDED, IDLE, LEASED, Slot
from .stats import PoolStats
from .waiters import Ticket

LONG: Final = 0.01
"""Seconds: a wait that is shorter is never called hopeless. To look for the caller's own deadline costs a microsecond,
and to refuse such a wait saves nobody anything."""


class Wish(NamedTuple):
    """What a caller asks for."""

    patience: float
    """Seconds that it waits at most, inf for ever."""
    priority: int
    avoid: Slot | None


class Borrower(Protocol):
    """Who has a connection."""

    owner: Any
    """The task that has it, None if nobody can tell."""

    @property
    def site(self) -> Site:
        """Where it was asked for."""


class Request(Ticket):
    """Who asks for one; its own ticket while it waits: ten thousand who wait are a matter of memory before all else."""

    __slots__ = ("wish",)

    wish: Wish


class Lender:
    """Lends connections to callers, lets them wait, and takes connections back.

    Attributes:
        name, config, core, now: of the pool.
        usual: what most callers ask for.
        usage: the latest borrowings.
        timed_out, rejected: callers.
        waited, used: seconds.
        is_closed: tells of a connection that its driver knows to be closed; None if nobody asks.
        thread, current_task, seat, wake: of the run that it lends to.
        plain: what callers may ask for who are served in the short way; see `lease.Acquire`.
        pop, unpop: take out the idle connection that is lent next, and put it back: methods of the books' `idle`.
        crowd: the priorities of those who wait; empty if nobody does: the very list `Waiters.order`.
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
        engine.on_move = self._note_pressure
        self.is_closed = engine.is_closed
        self._forked = False
        self._is_here: Callable[[], bool] = _everywhere
        self._exhausted_at: float | None = None
        self._most_waiting = inf if self.config.max_waiting is None else self.config.max_waiting
        self.thread = 0
        self.seat: Callable[[], Any] = _nobody
        self.wake: Callable[[Any], object] = _nobody
        self.current_task: Callable[[], Any] = _nobody
        # Neither headroom nor prewarming is for those who are served in the short way: it does not count who gets what.
        self.plain = None if self.config.headroom or self.config.prewarm is not None else self.usual
        lifo = self.core.lifo
        self.pop = self.core.idle.pop if lifo else self.core.idle.popleft
        self.unpop = self.core.idle.append if lifo else self.core.idle.appendleft
        self.crowd = self.core.waiters.order
        self.debug = self.config.debug
        self.notes_at = -inf
        renew_locks_in_child(self)

    # --- whether it can be used at all ---

    def open(self, home: Home) -> None:
        """Begin to lend, to the tasks of one run."""
        self.thread, self.current_task = home.thread, home.current_task
        self.seat, self.wake, self._is_here = home.seat, home.wake, home.is_here

    def end(self) -> None:
        """Lend no more."""
        self.current_task = _nobody

    def renew_locks(self) -> None:
        """Lend no more in a forked child: the connections are the parent's."""
        self._forked = self._engine.home is not None  # what was never entered has nothing of the parent's
        self.end()

    def check_usable(self) -> None:
        """Refuse to go on if the pool cannot be used, or not from here.

        Raises:
            PoolClosedError: it is closed, or closes.
            PoolUsageError: it is not open, of another event loop, or the parent process's.
        """
        self.check_home()
        if self.core.closing:
            raise PoolClosedError(self.name)
        if self._engine.home is None:
            raise PoolUsageError(f"pool {self.name!r} is not open: enter it with `async with`")

    def check_home(self) -> None:
        """Refuse to go on in another event loop than the pool's, or another process.

        Raises:
            PoolUsageError: as it says.
        """
        if self._forked:
            raise PoolUsageError(f"pool {self.name!r} belongs to the parent process: make one after the fork")
        if not self._is_here():
            raise PoolUsageError(f"pool {self.name!r} belongs to another event loop: make one for each")

    # --- lending ---

    def try_take(self) -> Slot | None:
        """Lend an idle connection that needs nothing, if there is one."""
        self.check_usable()
        while True:
            slot, now = self.core.take_ready(self.now()), self.now()
            if slot is None or self.is_closed is None or not self.is_closed(slot.connection):
                return slot
            slot.alive_at = -inf  # so that it is checked, and closed, before anybody gets it
            self._engine.do(self.core.return_unused(slot, now))

    # A request is served in steps, between which it may have to wait: `ask`, then `collect`; if what it was assigned
    # cannot be lent as it is, `prove`; and if it is broken, `ask_again`.

    def ask(self, request: Request) -> None:
        """Assign an idle connection, or let the request wait: then it is `live`.

        Raises:
            what refuses it at once.
        """
        core, now = self.core, self.now()
        patience, priority, avoid = request.wish
        request.begin(now, now + patience, priority, avoid)
        if not core.waiters.order:
            request.slot = core.take(now, priority, avoid)
            if request.slot is not None:
                return
        self._refuse_if_hopeless(request, now)
        self._let_wait(request, now, first=False)

    def ask_again(self, request: Request) -> None:
        """Do the same for a request that was assigned a broken connection: it keeps its place in the queue.

        Raises:
            PoolTimeoutError: its time is over.
            PoolClosedError, PoolUsageError: as `check_usable`.
        """
        self.check_usable()
        core, now = self.core, self.now()
        request.fresh = False
        request.slot = core.take(now, request.priority, request.avoid)
        if request.slot is not None:
            return
        if request.deadline <= now:
            raise self._timed_out(request.since)
        self._let_wait(request, now, first=True)

    def _let_wait(self, request: Request, now: float, *, first: bool) -> None:
        core = self.core
        # Where there is no room and nothing idle, which others may avoid, nothing but to wait is to be done.
        is_full = len(core.slots) + core.connecting >= core.max_size and not core.idle
        if is_full and request.avoid is None and self.plain is not None:
            core.waiters.add(request, first=first)
            if self.debug:
                core.check()
            if self._exhausted_at is None:
                self._note_pressure()
        else:
            self._engine.do(core.wait(request, now, first=first))
            if not request.live:
                return
            self._keeper.expect(core.impatient_at())
        request.seat = self.seat()
        self._keeper.watch(request)

    def abandon(self, request: Request) -> None:
        """Let a request wait no longer: it was cancelled. What it was assigned meanwhile goes to the next one."""
        self._engine.do(self.core.abandon(request, self.now()))

    def collect(self, request: Request) -> bool:
        """Lend what the request was assigned, if it can be lent as it is; tell whether it was.

        Raises:
            why it was assigned nothing.
        """
        if self._exhausted_at is not None and not self.core.waiters.order:
            self._note_pressure()
        slot, now = request.slot, self.now()
        if slot is None:
            raise self._refusal(request)
        if slot.place is LEASED and (request.fresh or self._can_be_lent(slot, now)):
            self.waited += now - request.since
            slot.asked_at = request.since
            slot.borrower = request
            return True
        return False

    def _can_be_lent(self, slot: Slot, now: float) -> bool:
        is_closed = self.is_closed
        return slot.needs_nothing(now, self.core.fresh_for) and (is_closed is None or not is_closed(slot.connection))

    async def prove(self, request: Request) -> bool:
        """Lend what the request was assigned, if it is alive; if not, it is gone. Tell whether it was lent.

        Raises:
            PoolTimeoutError: there is no time to find that out.
            PoolClosedError: the pool closed meanwhile.

        Cancellation: the connection is closed.
        """
        slot, now = request.slot, self.now()
        request.slot = None
        if slot is None or slot.place is not LEASED:  # closed between its hand-over and now
            return False
        if now >= slot.retire_at:
            slot.uses -= 1  # nobody got it
            self._engine.do(self.core.discard(slot, "max_lifetime", now))
            return False
        left = request.deadline - now
        if left <= 0:
            self._engine.do(self.core.return_unused(slot, now))
            raise self._timed_out(request.since)
        slot.uses -= 1  # nobody has it before it is proved, and this may be cancelled
        if not await self._engine.is_alive(slot, left):
            return False
        slot.uses += 1
        if self.core.closing:  # it would be closed under whoever gets it now
            self._engine.do(self.core.return_unused(slot, self.now()))
            raise PoolClosedError(self.name)
        request.slot, request.fresh = slot, True
        return self.collect(request)

    # --- refusing ---

    def _refusal(self, request: Request) -> BaseException:
        error, request.error = request.error, None  # or it would hold the frames that hold it
        if error is None:
            return self._timed_out(request.since)
        self.rejected += 1
        return error

    def _refuse_if_hopeless(self, request: Request, now: float) -> None:
        core, engine, deadline = self.core, self._engine, request.deadline
        if deadline <= now:
            raise self._timed_out(now)
        if core.waiters.live >= self._most_waiting:
            self.rejected += 1
            raise PoolFullError(self.name)
        if not core.slots and not core.connecting and engine.breaker is not None and not engine.breaker.would_allow():
            self.rejected += 1
            engine.breaker.acquire().release()  # raises what it refuses with
        # Who may pass some of those who wait is not judged.
        if core.waiters.live * core.quickest > LONG and request.priority <= core.waiters.order[-1]:
            self._refuse_if_late(core.expected_wait(), deadline - now)

    def _refuse_if_late(self, expected: float, left: float) -> None:
        if expected <= LONG:
            return
        scope = anyio.current_effective_deadline()
        if scope == -inf:  # it is cancelled, and hears of that where it waits
            return
        if expected > min(left, scope - anyio.current_time()):
            self.rejected += 1
            why = f"about {expected:.3g} s until its turn"
            raise PoolTimeoutError(self.name, "hopeless", stats=self.stats(), explanation=why)

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
        error = PoolTimeoutError(self.name, stats=self.stats(), explanation=self.explanation(now))
        error.__cause__ = self._engine.last_error
        return error

    def explanation(self, now: float) -> str:
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
            parts.append(f"connecting has failed for {now - core.failing_since:.3g} s: {type_name(engine.last_error)}")
        if engine.breaker is not None and engine.breaker.state != "closed":
            parts.append(f"the circuit breaker {engine.breaker.name!r} is {engine.breaker.state}")
        return "; ".join(parts)

    # --- taking back ---

    def take_back(self, lease: Borrower, slot: Slot) -> None:
        """Take a connection back; never waits."""
        now = self.now()
        slot.borrower = None
        self.used += now - slot.leased_at
        if now >= self.notes_at:
            self.note(lease, slot, now)
        core = self.core
        if core.special or self.crowd or now >= slot.retire_at:
            self.find_place(slot, now, failed=False)
            return
        # The short way, as in `lease.Acquire`: it is needed as it is.
        core.note_hold(now - slot.leased_at)
        slot.idle_since = slot.alive_at = now
        slot.place = IDLE
        core.idle.append(slot)
        if self.debug:
            core.check()

    def find_place(self, slot: Slot, now: float, *, failed: bool) -> None:
        """Lend a connection that came back to the next caller, or reset it, or keep it, or close it."""
        core, engine = self.core, self._engine
        if slot.place is not LEASED:
            return  # closed under its borrower
        if slot.doomed == DISCARDED:
            engine.do(core.discard(slot, DISCARDED, now))
        elif engine.reset is not None and not core.reason_to_close(slot, now):
            engine.make_as_new(slot, now, failed=failed)
        else:
            engine.do(core.give_back(slot, now, failed=failed))

    def note(self, lease: Borrower, slot: Slot, now: float) -> None:
        """Remember a borrowing that ends."""
        if self._exhausted_at is not None and not self.crowd:
            self._tell_recovered()
        if now >= self.usage.opens_at:
            self.usage.note(slot.asked_at, slot.leased_at, now)
        if self.config.leak_after is not None:
            self._keeper.lease_ended(slot, now, lease.site)
        else:
            self.notes_at = self.usage.opens_at

    def take_back_broken(self, lease: Borrower, slot: Slot) -> None:
        """Take a connection back that its borrower calls broken."""
        slot.doom(DISCARDED)
        self.take_back(lease, slot)

    # --- telling ---

    def _note_pressure(self) -> None:
        """Tell when callers begin to wait because all is lent, and when there is one for the next caller again.

        That nobody waits any more is not enough: the last one may have given up.
        """
        core = self.core
        if self._exhausted_at is None:
            if core.waiters.order and core.leased >= core.max_size:
                self._exhausted_at = now = self.now()
                if PoolExhausted.sinks:
                    emit(PoolExhausted(self.name, now))
        elif not core.waiters.order:
            if core.leased < core.max_size:
                self._tell_recovered()
            else:
                self.notes_at = -inf  # the next that comes back is noted

    def _tell_recovered(self) -> None:
        began, self._exhausted_at = self._exhausted_at, None
        if began is not None and PoolRecovered.sinks:
            now = self.now()
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


def _nobody(*_: object) -> None:
    """Stand for the current task of a pool that was not entered, and for all else that it has not."""


def _everywhere() -> bool:
    """Stand for the place of a pool that was not entered."""
    return True
