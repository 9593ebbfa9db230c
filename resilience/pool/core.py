"""The books of a connection pool: who has which connection, who waits, and what must be done about it. Pure.

Every connection is at any moment in exactly one place: idle, reserved (checked or reset), or leased, which it is from
the moment at which it is assigned to a caller, awake or not. Every move is one synchronous method here. None of them
waits, calls a driver or reads a clock, so no cancellation can come between the halves of a move: that is where other
pools lose connections.

What a move makes necessary, it gives back as work: callers to wake, connects to start, connections to close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf
from typing import Any, Final

from .config import PoolConfig

SMOOTHING: Final = 0.1
"""Weight of a new sample in the running means of hold and connect times."""
FORGETTING: Final = 0.001
"""Share by which the quickest hold grows with each one that is slower."""
EVIDENCE: Final = 20
"""Borrowings that must have ended before a wait can be called hopeless."""


class Place(Enum):
    """Where a connection is."""

    IDLE = "idle"
    RESERVED = "reserved"
    """Out of service for a moment: being checked, or reset after use."""
    LEASED = "leased"
    GONE = "gone"
    """No longer the pool's: being closed, or closed."""


IDLE, RESERVED, LEASED, GONE = Place  # a member costs two look-ups, a global one


class Slot:
    """One connection and what the pool knows of it.

    Attributes:
        id: number of the connection in its pool, from 1.
        connection: what the driver gave.
        place: where it is.
        opened_at, retire_at: when it was opened, and when it is replaced.
        idle_since: when it last came back; a check does not change it.
        alive_at: when it was last known to be alive; -inf: it is suspect.
        uses: borrowings so far.
        leased_at: when it was last lent.
        doomed: why it is closed when it comes back; empty if it is not.
    """

    __slots__ = (
        "alive_at",
        "connection",
        "doomed",
        "id",
        "idle_since",
        "leased_at",
        "opened_at",
        "place",
        "retire_at",
        "uses",
    )

    def __init__(self, number: int, connection: Any, now: float, retire_at: float) -> None:
        self.id = number
        self.connection = connection
        self.place = RESERVED
        self.opened_at = self.idle_since = self.alive_at = self.leased_at = now
        self.retire_at = retire_at
        self.uses = 0
        self.doomed = ""


class Ticket:
    """One caller who waits.

    Attributes:
        owner: the task that waits, if it is known.
        site: where it asked.
        priority: higher is served first.
        avoid: a connection that this caller does not want.
        since: when it began to wait.
        wake: called by the shell when `slot` or `error` was set.
        slot: the connection that it was assigned.
        error: why it gets none.
        live: whether it still waits.
    """

    __slots__ = ("avoid", "error", "live", "owner", "priority", "since", "site", "slot", "wake")

    def __init__(
        self, now: float, wake: Callable[[], object] | None = None, *, priority: int = 0, avoid: Slot | None = None
    ) -> None:
        self.owner: object = None
        self.site: Any = None
        self.priority = priority
        self.avoid = avoid
        self.since = now
        self.wake = wake
        self.slot: Slot | None = None
        self.error: BaseException | None = None
        self.live = True


@dataclass(slots=True)
class Work:
    """What a move made necessary."""

    woken: list[Ticket] = field(default_factory=list)
    closing: list[tuple[Slot, str]] = field(default_factory=list)
    connects: int = 0


class Waiters:
    """Callers who wait: higher priority first, in the order of arrival inside a priority.

    One who leaves is only marked, and skipped when its turn comes: ten thousand cancelled callers cost no more each
    than one.
    """

    def __init__(self) -> None:
        self.live = 0
        self._queues: dict[int, deque[Ticket]] = {}
        self._order: list[int] = []

    def __iter__(self) -> Iterator[Ticket]:
        for priority in self._order:
            yield from (ticket for ticket in self._queues[priority] if ticket.live)

    def add(self, ticket: Ticket, *, first: bool = False) -> None:
        """Let `ticket` wait, behind those of its priority, or before them if it had been served already."""
        queue = self._queues.get(ticket.priority)
        if queue is None:
            queue = self._queues[ticket.priority] = deque()
            self._order = sorted(self._queues, reverse=True)
        if first:
            queue.appendleft(ticket)
        else:
            queue.append(ticket)
        ticket.live = True
        self.live += 1

    def leave(self, ticket: Ticket) -> None:
        """Let `ticket` wait no longer."""
        if ticket.live:
            ticket.live = False
            self.live -= 1
            queue = self._queues[ticket.priority]
            while queue and not queue[0].live:
                queue.popleft()
            if not queue:
                del self._queues[ticket.priority]
                self._order.remove(ticket.priority)

    def first(self, slot: Slot) -> Ticket | None:
        """Give the next caller who takes `slot`, without removing it."""
        for ticket in self:
            if ticket.avoid is not slot:
                return ticket
        return None


class PoolCore:
    """The books. Methods that take `now` are given the pool's clock; each gives the work that it made necessary."""

    def __init__(self, config: PoolConfig, *, jitter: Callable[[], float]) -> None:
        self.config = config
        self.min_size = config.min_size
        self.max_size = config.max_size
        self.idle: deque[Slot] = deque()
        self.slots: dict[int, Slot] = {}
        self.connecting = 0
        self.reserved = 0
        self.leased = 0
        self.waiters = Waiters()
        self.closing = False
        self.suspect_before = -inf
        """Connections that were last known to be alive before this moment are suspect."""
        self.failures = 0
        """Attempts to connect that failed since the last one that did not."""
        self.failing_since = inf
        self.next_attempt_at = -inf
        self.holds = 0
        self.hold = 0.0
        """Running mean of how long a connection is held, 0 if none came back yet."""
        self.quickest = inf
        """The shortest lately; forgotten slowly."""
        self.connect_time = 0.0
        self._jitter = jitter
        self._next_id = 1
        self._lifo = config.reuse == "lifo"
        self._fresh_for = inf if config.check_after_idle is None else config.check_after_idle

    @property
    def size(self) -> int:
        """Connections that the pool has."""
        return len(self.slots)

    # --- lending ---

    def take(self, now: float, avoid: Slot | None = None) -> Slot | None:
        """Lend an idle connection to a newcomer; never past one who waits. It may still need a check."""
        if self.waiters.live:
            return None
        return self._take_idle(now, avoid)

    def take_plain(self, now: float) -> Slot | None:
        """Lend an idle connection that nobody waits for and that needs nothing: `take` in short, for most callers."""
        idle = self.idle
        if not idle or self.waiters.live:
            return None
        slot = idle[-1] if self._lifo else idle[0]
        alive_at = slot.alive_at
        if now >= slot.retire_at or now - alive_at >= self._fresh_for or alive_at < self.suspect_before:
            return None
        if self._lifo:
            idle.pop()
        else:
            idle.popleft()
        slot.place = LEASED
        slot.leased_at = now
        slot.uses += 1
        self.leased += 1
        return slot

    def _take_idle(self, now: float, avoid: Slot | None) -> Slot | None:
        idle = self.idle
        for _ in range(len(idle)):
            slot = idle.pop() if self.config.reuse == "lifo" else idle.popleft()
            if slot is avoid:
                # Back to the end where it is looked at last.
                (idle.appendleft if self.config.reuse == "lifo" else idle.append)(slot)
                continue
            self._lease(slot, now)
            return slot
        return None

    def _lease(self, slot: Slot, now: float) -> None:
        slot.place = LEASED
        slot.leased_at = now
        slot.uses += 1
        self.leased += 1

    def needs_check(self, slot: Slot, now: float) -> bool:
        """Tell whether `slot` must prove that it is alive before it is lent."""
        return slot.alive_at < self.suspect_before or now - slot.alive_at >= self._fresh_for

    def wait(self, ticket: Ticket, now: float, *, first: bool = False) -> Work:
        """Let a caller wait, and see whether that needs another connection.

        Args:
            ticket: the caller.
            now: the moment.
            first: before all others of its priority: it had been served, and what it got was broken.
        """
        self.waiters.add(ticket, first=first)
        work = Work()
        avoided = ticket.avoid
        if avoided is not None and avoided.place is IDLE and self.size + self.connecting >= self.max_size:
            self.idle.remove(avoided)
            self._drop(avoided, "avoided", work)
        return self.plan(work, now)

    def abandon(self, ticket: Ticket, now: float) -> Work:
        """Let a caller wait no longer; what it was assigned meanwhile goes to the next one."""
        work = Work()
        if ticket.live:
            self.waiters.leave(ticket)
        elif ticket.slot is not None:
            slot, ticket.slot = ticket.slot, None
            slot.uses -= 1
            self._unlease(slot)
            self._place(slot, now, work)
        return self.plan(work, now)

    # --- coming back ---

    def reserve(self, slot: Slot, now: float) -> None:
        """Take a leased connection out of service, to reset it."""
        self._note_hold(now - slot.leased_at)
        slot.idle_since = now
        self._unlease(slot)
        slot.place = RESERVED
        self.reserved += 1

    def reserve_idle(self, slot: Slot) -> None:
        """Take an idle connection out of service, to check it."""
        self.idle.remove(slot)
        slot.place = RESERVED
        self.reserved += 1

    def is_plain(self, slot: Slot, now: float) -> bool:
        """Tell whether nothing speaks against lending `slot` again."""
        most = self.config.max_uses
        return now < slot.retire_at and (most is None or slot.uses < most) and len(self.slots) <= self.max_size

    def shelve(self, slot: Slot, now: float, *, alive: bool) -> None:
        """Take back a lent connection that nobody waits for and nothing speaks against: `give_back` in short."""
        self._note_hold(now - slot.leased_at)
        slot.idle_since = now
        if alive:
            slot.alive_at = now
        slot.place = IDLE
        self.leased -= 1
        self.idle.append(slot)

    def _note_hold(self, seconds: float) -> None:
        self.holds += 1
        self.hold += (seconds - self.hold) * (SMOOTHING if self.holds > 1 else 1.0)
        if seconds < self.quickest:
            self.quickest = seconds
        else:
            self.quickest += self.quickest * FORGETTING

    def expected_wait(self) -> float:
        """Give the seconds until the next caller's turn if all borrowers are as quick as the quickest lately.

        0 without evidence: the mean would call a wait hopeless in every burst, in which holds are long because all
        start at once.
        """
        if self.holds < EVIDENCE or self.idle or self.connecting or not self.slots:
            return 0.0
        return (self.waiters.live + 1) * self.quickest / len(self.slots)

    def return_unused(self, slot: Slot, now: float) -> Work:
        """Take back a connection that was lent and not used."""
        slot.uses -= 1
        self._unlease(slot)
        work = Work()
        self._place(slot, now, work)
        return self.plan(work, now)

    def give_back(self, slot: Slot, now: float, *, alive: bool = True) -> Work:
        """Take back a connection that is leased or reserved: to the next caller, to the idle ones, or out.

        Args:
            slot: the connection.
            now: the moment.
            alive: whether it was just seen alive.
        """
        work = Work()
        if slot.place is LEASED:
            self._note_hold(now - slot.leased_at)
            slot.idle_since = now
            self._unlease(slot)
        elif slot.place is RESERVED:
            self.reserved -= 1
        else:
            return work  # closed under its borrower
        if alive:
            slot.alive_at = now
        self._place(slot, now, work)
        return self.plan(work, now)

    def _unlease(self, slot: Slot) -> None:
        if slot.place is LEASED:
            self.leased -= 1

    def _place(self, slot: Slot, now: float, work: Work) -> None:
        """Find the next place of a connection that is in none."""
        reason = self._reason_to_close(slot, now)
        if reason:
            self._drop(slot, reason, work)
            return
        ticket = self.waiters.first(slot)
        if ticket is None:
            if self.waiters.live and self.size + self.connecting >= self.max_size:
                # All who wait want another one than this, and there is no room for one beside it.
                self._drop(slot, "avoided", work)
                return
            slot.place = IDLE
            self.idle.append(slot)
            return
        self.waiters.leave(ticket)
        self._lease(slot, now)
        ticket.slot = slot
        work.woken.append(ticket)

    def _reason_to_close(self, slot: Slot, now: float) -> str:
        if slot.doomed:
            return slot.doomed
        if self.closing:
            return "closed"
        if now >= slot.retire_at:
            return "max_lifetime"
        if self.config.max_uses is not None and slot.uses >= self.config.max_uses:
            return "max_uses"
        return "resized" if self.size > self.max_size else ""

    def discard(self, slot: Slot, reason: str, now: float) -> Work:
        """Let a connection go, wherever it is; if callers wait, another one is opened in the same step."""
        work = Work()
        if slot.place is IDLE:
            self.idle.remove(slot)
        elif slot.place is RESERVED:
            self.reserved -= 1
        elif slot.place is LEASED:
            self._unlease(slot)
        else:
            return work
        self._drop(slot, reason, work)
        return self.plan(work, now)

    def _drop(self, slot: Slot, reason: str, work: Work) -> None:
        slot.place = GONE
        del self.slots[slot.id]
        work.closing.append((slot, reason))

    def check_failed(self, slot: Slot, now: float) -> Work:
        """Let a broken connection go, and suspect all others that were not seen alive since."""
        self.suspect_before = now
        return self.discard(slot, "check_failed", now)

    # --- connecting ---

    def plan(self, work: Work, now: float) -> Work:
        """Start the connects that are needed and allowed now."""
        work.connects += (started := self._connects_to_start(now))
        self.connecting += started
        return work

    def _connects_to_start(self, now: float) -> int:
        if self.closing:
            return 0
        config = self.config
        room = min(self.max_size - self.size, config.max_connecting) - self.connecting
        if self.failures:
            # One at a time, and not before its time, until one has succeeded.
            room = min(room, 1 - self.connecting if now >= self.next_attempt_at else 0)
        wanted = max(self._wanted_by_waiters(now), self.min_size - self.size - self.connecting)
        return max(0, min(room, wanted))

    def _wanted_by_waiters(self, now: float) -> int:
        waiting = self.waiters.live
        if waiting == 0:
            return 0
        if now < self.impatient_at():
            # As many as serve those who wait within one connect time, what is there included.
            needed = ceil(waiting * self.hold / self.connect_time)
            return min(waiting, needed - self.size) - self.connecting
        return waiting - self.connecting

    def impatient_at(self) -> float:
        """Give the moment from which on each caller who waits is worth a connection: -inf while costs are unknown.

        Until then those who wait should have been served by what is there. If they were not, what is there is held for
        longer than it used to be.
        """
        oldest = next(iter(self.waiters), None)
        if oldest is None:
            return inf
        known = self.config.grow == "cost" and self.hold > 0 and self.connect_time > 0
        return oldest.since + self.connect_time if known and self.leased + self.reserved > 0 else -inf

    def opened(self, connection: Any, now: float, took: float) -> tuple[Slot, Work]:
        """Take in a connection that was opened in `took` seconds."""
        self.connecting -= 1
        self.failures, self.failing_since, self.next_attempt_at = 0, inf, -inf
        self.connect_time = _mean(self.connect_time, took)
        lifetime = self.config.max_lifetime
        retire_at = inf if lifetime is None else now + lifetime * (1 - 0.05 * self._jitter())
        slot = Slot(self._next_id, connection, now, retire_at)
        self._next_id += 1
        self.slots[slot.id] = slot
        work = Work()
        self._place(slot, now, work)
        return slot, self.plan(work, now)

    def connect_failed(self, now: float, error: BaseException, *, permanent: bool) -> Work:
        """Take in that an attempt failed. A permanent error goes to one caller, if nothing else can serve it."""
        self.connecting -= 1
        self.failures += 1
        self.failing_since = min(self.failing_since, now)
        work = Work()
        if permanent and self.leased + self.reserved + len(self.idle) == 0:
            ticket = next(iter(self.waiters), None)
            if ticket is not None:
                self.waiters.leave(ticket)
                ticket.error = error
                work.woken.append(ticket)
        if permanent and self.waiters.live:
            self.next_attempt_at = now  # the next caller is owed an answer too
        else:
            # Capped before the power, which would overflow after a long night.
            longest = min(self.config.reconnect_cap, self.config.reconnect_base * 2.0 ** min(self.failures - 1, 30))
            self.next_attempt_at = now + longest * self._jitter()
        return self.plan(work, now)

    def connect_cancelled(self) -> None:
        """Take in that an attempt was given up because the pool closes."""
        self.connecting -= 1

    # --- keeping ---

    def due(self, now: float) -> Work:
        """Do what time has made necessary: retire what is too old or idle for too long, and connect again."""
        work = Work()
        for slot in [slot for slot in self.idle if now >= slot.retire_at and self._may_retire()]:
            self.idle.remove(slot)
            self._drop(slot, "max_lifetime", work)
        if self.config.max_idle is not None:
            for slot in sorted(self.idle, key=lambda slot: slot.idle_since):
                if self.size <= self.min_size or now - slot.idle_since < self.config.max_idle:
                    break
                self.idle.remove(slot)
                self._drop(slot, "max_idle", work)
        return self.plan(work, now)

    def _may_retire(self) -> bool:
        """Tell whether one more can go: at the minimum its replacement is opened first, if there is room for it."""
        return self.size > self.min_size or self.size >= self.max_size

    def drain(self, now: float) -> Work:
        """Replace every connection: idle ones now, others when they come back."""
        work = Work()
        while self.idle:
            self._drop(self.idle.popleft(), "drained", work)
        for slot in self.slots.values():
            slot.doomed = slot.doomed or "drained"
        return self.plan(work, now)

    def resize(self, min_size: int, max_size: int, now: float) -> Work:
        """Move the bounds: what is too much goes now if it is idle, else when it comes back."""
        self.min_size, self.max_size = min_size, max_size
        work = Work()
        while self.size > max_size and self.idle:
            self._drop(self.idle.popleft(), "resized", work)
        return self.plan(work, now)

    def close(self, error: Callable[[], BaseException]) -> Work:
        """Let idle connections and all who wait go; lent ones are closed when they come back."""
        work = Work()
        self.closing = True
        while self.idle:
            self._drop(self.idle.popleft(), "closed", work)
        for ticket in list(self.waiters):
            self.waiters.leave(ticket)
            ticket.error = error()
            work.woken.append(ticket)
        return work

    # --- the books ---

    def check(self) -> None:
        """Raise if the books do not add up."""
        places = [slot.place for slot in self.slots.values()]
        problems = {
            "an idle connection is not in the idle list, or one there is not idle": sorted(s.id for s in self.idle)
            != sorted(s.id for s in self.slots.values() if s.place is IDLE),
            "the count of leased connections is wrong": self.leased != places.count(LEASED),
            "the count of reserved connections is wrong": self.reserved != places.count(RESERVED),
            "a connection that is gone is still listed": GONE in places,
            "more is being opened than fits": self.connecting > 0 and self.size + self.connecting > self.max_size,
            "a count is negative": min(self.connecting, self.leased, self.reserved, self.waiters.live) < 0,
            "somebody waits while something is free": any(self.waiters.first(slot) for slot in self.idle),
        }
        wrong = [problem for problem, holds in problems.items() if holds]
        if wrong:
            raise AssertionError(f"a bug in the pool: {'; '.join(wrong)}")


def _mean(before: float, sample: float) -> float:
    return sample if before == 0.0 else before + SMOOTHING * (sample - before)
