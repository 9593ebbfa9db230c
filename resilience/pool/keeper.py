"""What a pool does by itself: it retires, checks and replaces connections when their time comes."""

from __future__ import annotations

from math import inf
from typing import Any, Final

import anyio

from resilience.errors import PoolDeadlockError, type_name
from resilience.events import LeakReturned, LeakSuspected, PrewarmPredicted, ReconnectFailed, emit
from resilience.forecast import Forecast

from .core import JITTER, ORDINARY, Work
from .engine import Engine
from .home import Site, place_of, told
from .sizing import PeakMemory
from .slots import Slot
from .waiters import Deadlines, Ticket

SOONEST: Final = 0.1
"""Seconds until the next look for a deadlock while callers wait: as many as the first has waited, but not sooner ..."""
LATEST: Final = 5.0
"""... and not later."""
PAUSE: Final = 1.0
"""Seconds after a bug before the keeper goes on: books that do not add up must not keep a processor busy."""


class Keeper:
    """One task that sleeps until the next thing is due.

    It need not be told of what is new: whatever a caller begins is due one period later at the earliest, and the keeper
    never sleeps longer than its shortest period. A failed connect wakes it, and a caller whose patience is shorter than
    its sleep.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._config = engine.config
        self._core = engine.core
        self._poked = False
        self._wake: anyio.Event | None = None
        self._told_outage = -inf
        """When the outage began that was told last."""
        self._deadlines = Deadlines()
        self._sleeps_until = -inf
        self._sees_waiters = False
        self._checking = False
        """Whether a connection is being checked: only one at a time is out of service for that."""
        self._leaks: set[int] = set()
        prewarm = engine.config.prewarm
        self._peaks = None if prewarm is None else PeakMemory(engine.now(), prewarm)
        engine.poke = self.poke

    def poke(self) -> None:
        """Look again what is due."""
        self._poked = True
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Keep the pool until it is cancelled."""
        while True:
            try:
                await self._turn()
            except Exception as error:  # noqa: BLE001 - a bug of ours, or books that do not add up: never the end of the host
                self._engine.note_bug(error)
                await anyio.sleep(PAUSE)

    async def _turn(self) -> None:
        """Do what is due, and sleep until something is."""
        engine = self._engine
        now = engine.now()
        self._let_go(now)
        self._end_deadlock(now)
        engine.do(self._core.due(now))
        self._turn_peaks(now)
        # Only now: what it does itself pokes it too, and would wake it for ever.
        self._poked, self._wake = False, anyio.Event()
        self._tell_leaks(now)
        self._tell_outage(now)
        slot = self._keepalive_due(now)
        if slot is not None:
            self._checking = True
            engine.start(self._check, slot)
        self._sleeps_until = self._next_due(now)
        left = self._sleeps_until - engine.now()
        if not self._poked:
            with anyio.move_on_after(None if left == inf else max(0.0, left)):
                await self._wake.wait()

    # --- callers who wait ---

    def watch(self, ticket: Ticket) -> None:
        """Let `ticket` go when its time is over: one task for all who wait, in place of a timer for each."""
        if ticket.deadline < inf:
            self._deadlines.add(ticket, self._core.waiters.live)
        if ticket.deadline < self._sleeps_until or not self._sees_waiters:
            self._sees_waiters = True
            self.poke()

    def expect(self, moment: float) -> None:
        """Look what is due at `moment` at the latest."""
        if moment < self._sleeps_until:
            self.poke()

    def _let_go(self, now: float) -> None:
        for ticket in self._deadlines.due(now):
            self._core.waiters.leave(ticket)
            self._engine.wake(ticket.seat)

    def _end_deadlock(self, now: float) -> None:
        """Let the youngest of tasks go that all hold a connection, and all wait for another one.

        Looked for now and then, while callers wait, and not when one comes: that would cost each a look at all leases.
        """
        core = self._core
        self._sees_waiters = core.waiters.live > 0
        if not self._sees_waiters or core.connecting or core.reserved:
            return
        if core.leased < core.max_size and (core.waiters.order[0] > ORDINARY or core.may_lend(ORDINARY)):
            return
        holders: dict[int, Any] = {}
        for slot in core.slots.values():
            lease = slot.borrower
            if lease is None or lease.owner is None or now - slot.leased_at < SOONEST:
                return  # somebody gets on, or nobody can tell
            holders[id(lease.owner)] = lease
        stuck: dict[int, Any] = {id(ticket.owner): ticket for ticket in core.waiters if id(ticket.owner) in holders}
        if len(stuck) == len(holders):
            ticket = max(stuck.values(), key=lambda one: one.since)
            held = holders[id(ticket.owner)]
            error = PoolDeadlockError(self._engine.name, held_at=told(held.site), waiting_at=told(ticket.site))
            self._engine.do(core.refuse(ticket, error))

    # --- one by one ---

    def _keepalive_due(self, now: float) -> Slot | None:
        keepalive = self._config.keepalive
        if keepalive is None or self._core.closing or self._checking:
            return None
        due = [slot for slot in self._core.idle if now >= slot.alive_at + keepalive]
        return min(due, key=lambda slot: slot.alive_at, default=None)

    async def _check(self, slot: Slot) -> None:
        try:
            await self._engine.check_idle(slot)
        finally:
            self._checking = False
            self.poke()

    def _tell_leaks(self, now: float) -> None:
        after = self._config.leak_after
        if after is None:
            return
        for slot in self._core.slots.values():
            lease = slot.borrower
            if lease is not None and slot.id not in self._leaks and now >= slot.leased_at + after:
                self._leaks.add(slot.id)
                if LeakSuspected.sinks:
                    where = "" if lease.owner is None else place_of(lease.owner)
                    held, site = now - slot.leased_at, told(lease.site)
                    emit(LeakSuspected(self._engine.name, now, id=slot.id, held=held, site=site, suspended_at=where))

    def lease_ended(self, slot: Slot, now: float, site: Site) -> None:
        """Note that a connection came back; told if it had been given up for lost."""
        if slot.id in self._leaks:
            self._leaks.discard(slot.id)
            if LeakReturned.sinks:
                held = now - slot.leased_at
                emit(LeakReturned(self._engine.name, now, id=slot.id, held=held, site=told(site)))

    def _tell_outage(self, now: float) -> None:
        core, config, engine = self._core, self._config, self._engine
        if self._told_outage == core.failing_since or now < core.failing_since + config.reconnect_give_up:
            return
        if not core.waiters.live and core.missing() <= 0:  # nobody has tried for a while
            return
        self._told_outage = core.failing_since
        if ReconnectFailed.sinks:
            kind = "unknown" if engine.last_error is None else type_name(engine.last_error)
            emit(ReconnectFailed(engine.name, now, elapsed=now - core.failing_since, error_type=kind))
        if config.on_reconnect_failed is not None:
            try:
                config.on_reconnect_failed()
            except Exception as raised:  # noqa: BLE001 - the user's function may raise anything; the pool goes on
                engine.note_bug(raised)

    def _turn_peaks(self, now: float) -> None:
        """Open ahead what was wanted at this time before."""
        peaks, core = self._peaks, self._core
        if peaks is None or now < peaks.ends_at:
            return
        peaks.note(core.peak)
        core.peak = core.leased + core.waiters.live
        ended = peaks.turn(now)
        if ended is not None and PrewarmPredicted.sinks and (ended.predicted or ended.actual):
            emit(PrewarmPredicted(self._engine.name, now, predicted=ended.predicted, actual=ended.actual))
        core.prewarmed = peaks.predicted
        self._engine.do(core.plan(Work(), now))

    def outlook(self) -> Forecast | None:
        """Give what is expected to be wanted in the next minute; None without memory of those before."""
        return None if self._peaks is None else self._peaks.outlook()

    # --- when ---

    def _next_due(self, now: float) -> float:
        """Give the moment after `now` at which something is due at the earliest: what was due by then has been done."""
        core, config = self._core, self._config
        lead = core.lead()
        moments = [self._deadlines.next(), *(now + period for period in self._periods())]
        for slot in core.slots.values():
            moments += [slot.retire_at, slot.retire_at - lead]
            if config.leak_after is not None and slot.borrower is not None:
                moments.append(slot.leased_at + config.leak_after)
        for slot in core.idle:
            if config.max_idle is not None:
                moments.append(slot.idle_since + config.max_idle)
            if config.keepalive is not None:
                moments.append(slot.alive_at + config.keepalive)
        if core.failures:
            moments += [core.next_attempt_at, core.failing_since + config.reconnect_give_up]
        if self._peaks is not None:
            moments.append(self._peaks.ends_at)
        if self._sees_waiters:
            waiting = now - min(now, core.waiters.since())
            moments.append(now + min(max(SOONEST, waiting), LATEST))
        moments.append(core.impatient_at())
        return min((moment for moment in moments if moment > now), default=inf)

    def _periods(self) -> list[float]:
        config = self._config
        lifetime = None if config.max_lifetime is None else (1 - 2 * JITTER) * config.max_lifetime
        return [period for period in (config.max_idle, config.keepalive, config.leak_after, lifetime) if period]
