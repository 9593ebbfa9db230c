"""What a pool does by itself: it retires, checks and replaces connections when their time comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from resilience.errors import type_name
from resilience.events import LeakReturned, LeakSuspected, ReconnectFailed, emit

from .core import Slot, Ticket
from .lease import told

if TYPE_CHECKING:
    from .pool import ConnectionPool

C = TypeVar("C")


class Keeper(Generic[C]):
    """One task that sleeps until the next thing is due, and the count of all that the pool has under way.

    It need not be told of what is new: whatever a caller begins is due one period later at the earliest, and the keeper
    never sleeps longer than its shortest period. A failed connect wakes it, and a caller whose patience is shorter than
    its sleep.
    """

    def __init__(self, pool: ConnectionPool[C]) -> None:
        self.working = 0
        """Connects, checks, resets and closes under way."""
        self._pool = pool
        self._poked = False
        self._wake: anyio.Event | None = None
        self._done: anyio.Event | None = None
        self._told_outage = False
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._order = count()
        self._sleeps_until = -inf
        self._leaks: set[int] = set()

    def watch(self, ticket: Ticket, deadline: float) -> None:
        """Let `ticket` go when its time is over: one task for all who wait, in place of a timer for each."""
        if deadline < inf:
            heappush(self._deadlines, (deadline, next(self._order), ticket))
            if len(self._deadlines) > 2 * self._pool._core.waiters.live + 64:  # noqa: SLF001 - as above
                # Those who were served long before their time; each is thrown out once for two that came.
                self._deadlines = [one for one in self._deadlines if one[2].live]
                heapify(self._deadlines)
        if min(deadline, self._pool._core.impatient_at()) < self._sleeps_until:  # noqa: SLF001 - as above
            self.poke()

    def _expire(self, now: float) -> None:
        core = self._pool._core  # noqa: SLF001 - as above
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].live):
            ticket = heappop(self._deadlines)[2]
            if ticket.live:
                core.waiters.leave(ticket)
                if ticket.wake is not None:
                    ticket.wake()

    def poke(self) -> None:
        """Let the keeper look again what is due."""
        self._poked = True
        if self._wake is not None:
            self._wake.set()

    async def work(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Do one thing in the background. What goes wrong in it is a bug of ours, and never the end of the host."""
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001 - as above: told, and the books are put right by whoever is next
            self._pool._note_bug(error)  # noqa: SLF001 - a part of its pool
        finally:
            self.working -= 1
            if self.working == 0 and self._done is not None:
                self._done.set()

    async def wait_until_closed(self) -> None:
        """Wait until nothing is under way."""
        while self.working:
            self._done = anyio.Event()
            await self._done.wait()

    async def run(self) -> None:
        """Keep the pool until it is cancelled."""
        pool = self._pool
        while True:
            self._poked, self._wake = False, anyio.Event()
            now = pool._now()  # noqa: SLF001 - as above
            self._expire(now)
            pool._do(pool._core.due(now))  # noqa: SLF001 - as above
            self._tell_leaks(now)
            self._tell_outage(now)
            checked = await self._check_next(now)
            if checked or self._poked:
                continue
            self._sleeps_until = self._next_due()
            left = self._sleeps_until - pool._now()  # noqa: SLF001 - as above
            with anyio.move_on_after(None if left == inf else max(0.0, left)):
                await self._wake.wait()

    # --- one by one ---

    async def _check_next(self, now: float) -> bool:
        """Check one idle connection whose keepalive is due; only that one is out of service meanwhile."""
        pool = self._pool
        slot = self._keepalive_due(now)
        if slot is None:
            return False
        await pool._check_one(slot)  # noqa: SLF001 - as above
        return True

    def _keepalive_due(self, now: float) -> Slot | None:
        keepalive, core = self._pool.config.keepalive, self._pool._core  # noqa: SLF001 - as above
        if keepalive is None or core.closing:
            return None
        due = [slot for slot in core.idle if now - slot.alive_at >= keepalive]
        return min(due, key=lambda slot: slot.alive_at, default=None)

    def _tell_leaks(self, now: float) -> None:
        after, leases = self._pool.config.leak_after, self._pool._leases  # noqa: SLF001 - as above
        if after is None:
            return
        for number, lease in leases.items():
            if number not in self._leaks and now - lease.since >= after:
                self._leaks.add(number)
                if LeakSuspected.sinks:
                    held = now - lease.since
                    emit(LeakSuspected(self._pool.name, now, id=number, held=held, site=told(lease.site)))

    def lease_ended(self, number: int, held: float, site: Any) -> None:
        """Note that a connection came back; told if it had been given up for lost."""
        if number in self._leaks:
            self._leaks.discard(number)
            if LeakReturned.sinks:
                now = self._pool._now()  # noqa: SLF001 - as above
                emit(LeakReturned(self._pool.name, now, id=number, held=held, site=told(site)))

    def _tell_outage(self, now: float) -> None:
        pool = self._pool
        core, config = pool._core, pool.config  # noqa: SLF001 - as above
        if not core.failures:
            self._told_outage = False
            return
        elapsed = now - core.failing_since
        if self._told_outage or elapsed < config.reconnect_give_up:
            return
        self._told_outage = True
        error = pool._last_error  # noqa: SLF001 - as above
        if ReconnectFailed.sinks:
            kind = "unknown" if error is None else type_name(error)
            emit(ReconnectFailed(pool.name, now, elapsed=elapsed, error_type=kind))
        if config.on_reconnect_failed is not None:
            try:
                config.on_reconnect_failed()
            except Exception as raised:  # noqa: BLE001 - the user's function may raise anything; the pool goes on
                pool._note_bug(raised)  # noqa: SLF001 - as above

    # --- when ---

    def _next_due(self) -> float:
        """Give the moment at which something is due at the earliest."""
        pool = self._pool
        core, config, now = pool._core, pool.config, pool._now()  # noqa: SLF001 - as above
        moments = [self._deadlines[0][0] if self._deadlines else inf]
        moments += [now + period for period in self._periods()]
        moments += [slot.retire_at for slot in core.idle]
        if config.max_idle is not None and core.size > core.min_size:
            moments += [slot.idle_since + config.max_idle for slot in core.idle]
        if config.keepalive is not None:
            moments += [slot.alive_at + config.keepalive for slot in core.idle]
        if config.leak_after is not None:
            moments += [
                lease.since + config.leak_after
                for number, lease in pool._leases.items()  # noqa: SLF001 - as above
                if number not in self._leaks
            ]
        if core.failures and (core.waiters.live or core.size < core.min_size):
            moments.append(core.next_attempt_at)
        if core.failures and not self._told_outage:
            moments.append(core.failing_since + config.reconnect_give_up)
        impatient = core.impatient_at()
        if impatient > now:
            moments.append(impatient)
        return min(moments)

    def _periods(self) -> list[float]:
        config = self._pool.config
        periods = [config.max_idle, config.keepalive, config.leak_after]
        if config.max_lifetime is not None:
            periods.append(0.95 * config.max_lifetime)
        return [period for period in periods if period is not None]
