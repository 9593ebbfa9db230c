"""The books of a connection pool: who has which connection, who waits, and what must be done about it. Pure.

Every connection is at any moment in exactly one place: idle, reserved (checked or reset), or leased, which it is from
the moment at which it is assigned to a caller, awake or not. Every move is one synchronous step, and nearly all of them
are methods here. None of them waits, calls a driver or reads a clock, so no cancellation can come between the halves of
a move: that is where other pools lose connections.

The rest are written out where a call would cost too much, and are what a method here would do: `lease.Acquire` and
`Lender.take_back` move connections between idle and leased, `Lender._let_wait` adds callers to those who wait, and
`Keeper._let_go` takes out those whose time is over.

What a move makes necessary, it gives back as work: callers to wake, connects to start, connections to close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, Final, Protocol

from .config import PoolConfig
from .slots import GONE, IDLE, LEASED, RESERVED, Slot
from .waiters import Ticket, Waiters

SMOOTHING: Final = 0.1
"""Weight of a new sample in the running means of hold and connect times."""
FORGETTING: Final = 0.001
"""Share by which the quickest hold grows with each one that is slower."""
EVIDENCE: Final = 20
"""Borrowings that must have ended before a wait can be called hopeless."""
JITTER: Final = 0.05
"""Share of the lifetime by which connections are replaced early, at random, so that they do not all go at once."""
ORDINARY: Final = 0
"""The highest priority of callers who may not use the headroom."""


@dataclass(slots=True)
class Work:
    """What a move made necessary."""

    woken: list[Ticket] = field(default_factory=list)
    closing: list[tuple[Slot, str]] = field(default_factory=list)
    connects: int = 0


class Allowance(Protocol):
    """What others leave to this pool."""

    @property
    def left(self) -> int:
        """So many connections may be opened now."""

    def take(self, connections: int) -> None:
        """Note that so many are being opened."""

    def note_closing(self) -> None:
        """Note that one is being closed; whoever closes it notes when it is gone."""

    def give_back(self) -> None:
        """Note that one could not be opened."""


class PoolCore:
    """The books. Methods that take `now` are given the pool's clock; those that give work are given all that it needs.

    Attributes:
        special: whether those that come back need more than to be put back: the pool closes, has more than its bounds
            allow, keeps headroom, counts uses or resets them.
        ordinary: connections lent to callers who may not use the headroom.
        failures: attempts to connect that failed since the last one that did not.
        failing_since: when the first of them did.
        next_attempt_at: before that none is made.
        hold: running mean of how long a connection is held, in seconds, 0 if none came back yet.
        quickest: the shortest lately; forgotten slowly.
        connect_time: running mean of what opening one takes, in seconds, 0 if none was opened yet.
        warming: connections that are to be opened once, although nobody asks for them.
        prewarmed: connections that are kept because they were wanted at this time before.
        lent: how often connections were lent that are gone.
        peak: most that were wanted at a time since the keeper last set it to what was wanted then. Kept for `prewarm`:
            without it connections are lent that are not counted here.
        fresh_for: seconds for which a connection that was seen alive is lent without a check.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        jitter: Callable[[], float],
        allowance: Allowance | None = None,
        checks: bool = True,
        resets: bool = False,
    ) -> None:
        self.config = config
        self.min_size = config.min_size
        self.max_size = config.max_size
        self.idle: deque[Slot] = deque()  # for good: `Lender.pop` and `unpop` are methods of it
        self.slots: dict[int, Slot] = {}
        self.connecting = 0
        self.reserved = 0
        self.ordinary = 0
        self.waiters = Waiters()
        self.closing = False
        self.special = False
        self.failures = 0
        self.failing_since = inf
        self.next_attempt_at = -inf
        self.holds = 0
        self.hold = 0.0
        self.quickest = inf
        self.connect_time = 0.0
        self.warming = 0
        self.prewarmed = 0
        self.peak = 0
        self.lent = 0
        self.lifo = config.reuse == "lifo"
        # Without a check nothing could prove that a connection is alive.
        self.fresh_for = inf if config.check_after_idle is None or not checks else config.check_after_idle
        self.most_uses = inf if config.max_uses is None else config.max_uses
        self._allowance = allowance
        self._checks = checks
        self._always_special = resets or config.headroom > 0 or config.max_uses is not None or allowance is not None
        self._jitter = jitter
        self._next_id = 1
        self._expiring = 0
        self._owes_answers = False
        """Whether the last error of connecting was permanent: who asks now gets an attempt at once, and its error."""
        self._bound = config.max_size
        """What size + connecting may be: more than `max_size` after it was lowered, until what is too much is gone."""

        self._note_special()

    @property
    def size(self) -> int:
        """Connections that the pool has."""
        return len(self.slots)

    @property
    def leased(self) -> int:
        """Connections that are lent: what is left, so that the short ways of `lease.py` have nothing to count."""
        return len(self.slots) - len(self.idle) - self.reserved

    # --- lending ---

    def take(self, now: float, priority: int = 0, avoid: Slot | None = None) -> Slot | None:
        """Lend an idle connection to a newcomer; never past one who waits. It may still need a check."""
        if self.waiters.live or not self.may_lend(priority):
            return None
        idle = self.idle
        for _ in range(len(idle)):
            slot = idle.pop() if self.lifo else idle.popleft()
            if slot is avoid:
                # Back to the end where it is looked at last.
                (idle.appendleft if self.lifo else idle.append)(slot)
                continue
            self._lease(slot, now, priority)
            return slot
        return None

    def take_ready(self, now: float) -> Slot | None:
        """Lend an idle connection that needs nothing, to a newcomer who waits for none; never past one who waits."""
        if self.waiters.live or not self.may_lend(ORDINARY):
            return None
        ready = [slot for slot in self.idle if slot.needs_nothing(now, self.fresh_for)]
        if not ready:
            return None
        slot = ready[-1] if self.lifo else ready[0]
        self._take_out(slot)
        self._lease(slot, now, ORDINARY)
        return slot

    def may_lend(self, priority: int) -> bool:
        """Tell whether a caller of this priority may have one more connection."""
        headroom = self.config.headroom
        return not headroom or priority > ORDINARY or self.ordinary < max(1, self.max_size - headroom)

    def _lease(self, slot: Slot, now: float, priority: int) -> None:
        slot.place = LEASED
        slot.asked_at = slot.leased_at = now
        slot.uses += 1
        if self.config.headroom and priority <= ORDINARY:
            slot.ordinary = True
            self.ordinary += 1
        self.peak = max(self.peak, self.leased + self.waiters.live)

    def wait(self, ticket: Ticket, now: float, *, first: bool = False) -> Work:
        """Let a caller wait, and see whether that needs another connection.

        Args:
            ticket: the caller.
            now: the moment.
            first: before all others of its priority: it had been served, and what it got was broken.
        """
        self.waiters.add(ticket, first=first)
        self.peak = max(self.peak, self.leased + self.waiters.live)
        work = Work()
        avoided = ticket.avoid
        if avoided is not None and avoided.place is IDLE and self.size + self.connecting >= self.max_size:
            self._take_out(avoided)
            self._drop(avoided, "avoided", work)
        return self.plan(work, now)

    def abandon(self, ticket: Ticket, now: float) -> Work:
        """Let a caller wait no longer; what it was assigned meanwhile goes to the next one."""
        slot, ticket.slot = ticket.slot, None
        if slot is not None and slot.place is LEASED:
            return self.return_unused(slot, now)
        self.waiters.leave(ticket)
        return self.plan(Work(), now)

    # --- coming back ---

    def reserve(self, slot: Slot, now: float) -> None:
        """Take a connection out of service: a leased one to reset it, an idle one to check it.

        It is lent no more then, so that with a headroom somebody else may be served: by the next plan.
        """
        if slot.place is LEASED:
            self._note_use(slot, now)
        self._take_out(slot)
        slot.place = RESERVED
        self.reserved += 1

    def hand_over(self, slot: Slot, now: float) -> Ticket | None:
        """Lend a connection that may be lent again to the next who waits; None if that is not so simple.

        It needs no plan: whatever was worth opening before is worth it no more now.
        """
        ticket = self.waiters.take_first(slot)
        if ticket is not None:
            slot.leased_at = now
            slot.uses += 1
            ticket.slot = slot
        return ticket

    def give_back(self, slot: Slot, now: float, *, failed: bool = False) -> Work:
        """Take back a connection that is leased or reserved: to the next caller, to the idle ones, or out.

        Args:
            slot: the connection.
            now: the moment.
            failed: whether its borrower did: then it is checked before it is lent again, if there is a check.
        """
        work = Work()
        if slot.place is LEASED:
            self._note_use(slot, now)
        elif slot.place is not RESERVED:
            return work  # closed under its borrower
        slot.alive_at = -inf if failed and self._checks else now
        self._take_out(slot)
        self._place(slot, now, work)
        return self.plan(work, now)

    def return_unused(self, slot: Slot, now: float) -> Work:
        """Take back a connection that was lent and not used."""
        slot.uses -= 1
        self._take_out(slot)
        work = Work()
        self._place(slot, now, work)
        return self.plan(work, now)

    def _note_use(self, slot: Slot, now: float) -> None:
        self.note_hold(now - slot.leased_at)
        slot.idle_since = now

    def note_hold(self, seconds: float) -> None:
        """Take in how long a connection was held."""
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
        if self.size < self.max_size and not self.failures:  # it may grow any moment
            return 0.0
        return (self.waiters.live + 1) * self.quickest / len(self.slots)

    def _take_out(self, slot: Slot) -> None:
        """Take a connection out of the place where it is; the caller puts it into the next."""
        if slot.place is LEASED:
            self.ordinary -= slot.ordinary
            slot.ordinary = False
        elif slot.place is RESERVED:
            self.reserved -= 1
        elif slot.place is IDLE:
            self.idle.remove(slot)

    def _place(self, slot: Slot, now: float, work: Work, *, fresh: bool = False) -> None:
        """Find the next place of a connection that is in none."""
        reason = self.reason_to_close(slot, now)
        if reason:
            self._drop(slot, reason, work)
            return
        ticket = self._next_for(slot)
        if ticket is None:
            if self.waiters.live and self.may_lend(ORDINARY) and self.size + self.connecting >= self.max_size:
                # All who wait want another one than this, and there is no room for one beside it.
                self._drop(slot, "avoided", work)
                return
            slot.place = IDLE
            self._shelve(slot)
            return
        self.waiters.leave(ticket)
        self._lease(slot, now, ticket.priority)
        ticket.slot, ticket.fresh = slot, fresh
        work.woken.append(ticket)

    def _shelve(self, slot: Slot) -> None:
        """Put a connection among the idle ones by how long it was not used.

        A check is no use: at the warm end it would be lent next, and the pool would never shrink.
        """
        at = len(self.idle)
        while at and self.idle[at - 1].idle_since > slot.idle_since:
            at -= 1
        self.idle.insert(at, slot)

    def _next_for(self, slot: Slot) -> Ticket | None:
        return self.waiters.first(slot, above=-inf if self.may_lend(ORDINARY) else ORDINARY)

    def reason_to_close(self, slot: Slot, now: float) -> str:
        """Tell why a connection that came back has to go; empty if it has not."""
        if slot.doomed:
            return slot.doomed
        if self.closing:
            return "closed"
        if now >= slot.retire_at:
            return "max_lifetime"
        if slot.uses >= self.most_uses:
            return "max_uses"
        return "resized" if self.size > self.max_size else ""

    def discard(self, slot: Slot, reason: str, now: float) -> Work:
        """Let a connection go, wherever it is; if callers wait, another one is opened in the same step."""
        work = Work()
        if slot.place is GONE:
            return work
        self._take_out(slot)
        self._drop(slot, reason, work)
        return self.plan(work, now)

    def _drop(self, slot: Slot, reason: str, work: Work) -> None:
        slot.place = GONE
        self._expiring -= slot.expiring
        self.lent += slot.uses
        if self._allowance is not None:
            self._allowance.note_closing()
        del self.slots[slot.id]
        self._note_special()
        work.closing.append((slot, reason))

    def _note_special(self) -> None:
        self.special = self.closing or self.size > self.max_size or self._always_special

    def check_failed(self, slot: Slot, now: float) -> Work:
        """Let a broken connection go, and suspect all others until they are seen alive again."""
        for other in self.slots.values():
            other.alive_at = -inf
        return self.discard(slot, "check_failed", now)

    # --- connecting ---

    def plan(self, work: Work, now: float) -> Work:
        """Start the connects that are needed and allowed now."""
        if self.idle and self.waiters.live:  # one came back that only some may have, or want
            for slot in [slot for slot in self.idle if self._next_for(slot)]:
                self._take_out(slot)
                self._place(slot, now, work)
        # Most of the time there is no room, and nothing to be thought about.
        if len(self.slots) + self.connecting < self.max_size:
            wanted = self._connects_to_start(now)
            if wanted and self._allowance is not None:
                wanted = max(0, min(wanted, self._allowance.left))
                self._allowance.take(wanted)
            work.connects += wanted
            self.connecting += wanted
        return work

    def take_back_connects(self, work: Work) -> None:
        """Start none of the connects of `work`."""
        for _ in range(work.connects):
            self.attempt_ended()
        work.connects = 0

    def wants_since(self, now: float) -> float:
        """Give the moment since which a connection is wanted that might be opened now; inf if none is."""
        if self.size + self.connecting >= self.max_size or not self._connects_to_start(now):
            return inf
        return min(now, self.waiters.since())

    def spare(self) -> Slot | None:
        """Give the connection that is missed least, if there is one too many: the one that was idle for longest."""
        if self.missing() >= 0 or self.waiters.live or not self.idle:
            return None
        return min(self.idle, key=lambda slot: slot.idle_since)

    def _connects_to_start(self, now: float) -> int:
        if self.closing:
            return 0
        room = min(self.max_size - self.size, self.config.max_connecting) - self.connecting
        if self.failures:
            # One at a time, and not before its time, until one has succeeded.
            ready = now >= self.next_attempt_at or (self._owes_answers and self.waiters.live)
            room = min(room, 1 - self.connecting if ready else 0)
        return max(0, min(room, max(self._wanted_by_waiters(now), self.missing())))

    def missing(self) -> int:
        """Give how many connections are to be opened although nobody asks for them."""
        # Those that will go soon do not count: their replacement is there before.
        floor = min(max(self.min_size, self.warming, self.prewarmed) + self._expiring, self.max_size)
        return floor - self.size - self.connecting

    def _wanted_by_waiters(self, now: float) -> int:
        waiting = self.waiters.live
        if waiting == 0 or not self.may_lend(ORDINARY):
            waiting = sum(ticket.priority > ORDINARY for ticket in self.waiters) if waiting else 0
        if waiting == 0:
            return 0
        if now < self.impatient_at():
            # As many as serve those who wait within one connect time, what is there included. While nobody knows how
            # long work takes, as many again as there are.
            needed = ceil(waiting * self.hold / self.connect_time) if self.hold else 2 * self.size
            return min(waiting, needed - self.size) - self.connecting
        return waiting - self.connecting

    def impatient_at(self) -> float:
        """Give the moment from which on each caller who waits is worth a connection: -inf where nothing can be spared.

        Until then those who wait should have been served by what is there. If they were not, what is there is held for
        longer than it used to be. While nobody knows how long work takes, that nothing has come back is evidence: once
        all are held for a share of the connect time, the queue will take the whole of it, and more.
        """
        if not self.waiters.live:
            return inf
        if self.config.grow != "cost" or not self.connect_time or not self.leased + self.reserved:
            return -inf
        share = 1.0 if self.hold else min(1.0, self.size / self.waiters.live)
        return self.waiters.since() + share * self.connect_time

    def opened(self, connection: Any, now: float, took: float) -> tuple[Slot, Work]:
        """Take in a connection that was opened in `took` seconds."""
        self.connecting -= 1
        self.failures, self.failing_since, self.next_attempt_at, self._owes_answers = 0, inf, -inf, False
        self.connect_time += (took - self.connect_time) * (SMOOTHING if self.connect_time else 1.0)
        lifetime = self.config.max_lifetime
        retire_at = inf if lifetime is None else now + lifetime * (1 - JITTER * self._jitter())
        slot = Slot(self._next_id, connection, now, retire_at)
        self._next_id += 1
        self.slots[slot.id] = slot
        self._note_special()
        work = Work()
        self._place(slot, now, work, fresh=True)
        if self.size >= self.warming:
            self.warming = 0
        return slot, self.plan(work, now)

    def connect_failed(self, now: float, error: BaseException, *, permanent: bool) -> Work:
        """Take in that an attempt failed. A permanent error goes to one caller, if nothing else can serve it."""
        self._note_failure(now)
        work = Work()
        self._owes_answers = permanent and not self.slots
        if self._owes_answers and self.waiters.live:
            self._refuse(next(iter(self.waiters)), error, work)
        # Capped before the power, which would overflow after a long night.
        longest = min(self.config.reconnect_cap, self.config.reconnect_base * 2.0 ** min(self.failures - 1, 30))
        self.next_attempt_at = now + longest * self._jitter()
        return self.plan(work, now)

    def connect_refused(self, now: float, error: BaseException, retry_after: float) -> Work:
        """Take in that the breaker lets nobody connect: all callers learn that, if nothing else can serve them."""
        self._note_failure(now)
        self.next_attempt_at, self._owes_answers = now + retry_after, False
        work = Work()
        if not self.slots and not self.connecting:
            work = self.refuse_all(error)
        return self.plan(work, now)

    def refuse_all(self, error: BaseException) -> Work:
        """Let nobody wait any more, and tell all why: each by a copy, or it would gather everybody's frames."""
        work = Work()
        for ticket in list(self.waiters):
            self._refuse(ticket, copy(error), work)
        return work

    def _note_failure(self, now: float) -> None:
        self.attempt_ended()
        self.failures += 1
        self.failing_since = min(self.failing_since, now)

    def refuse(self, ticket: Ticket, error: BaseException) -> Work:
        """Let a caller wait no longer, and tell it why."""
        work = Work()
        self._refuse(ticket, error, work)
        return work

    def _refuse(self, ticket: Ticket, error: BaseException, work: Work) -> None:
        self.waiters.leave(ticket)
        ticket.error = error
        work.woken.append(ticket)

    def attempt_ended(self) -> None:
        """Take in that an attempt opened nothing; `connect_failed` and `connect_refused` do that themselves."""
        self.connecting -= 1
        if self._allowance is not None:
            self._allowance.give_back()

    # --- keeping ---

    def due(self, now: float) -> Work:
        """Do what time has made necessary: retire what is too old or idle for too long, and connect again."""
        work = Work()
        lead = self.lead()
        for slot in list(self.slots.values()):
            if not slot.expiring and now >= slot.retire_at - lead:
                slot.expiring = True
                self._expiring += 1
            if now >= slot.retire_at and slot.place is IDLE:
                self._take_out(slot)
                self._drop(slot, "max_lifetime", work)
        if self.config.max_idle is not None:
            for slot in sorted(self.idle, key=lambda slot: slot.idle_since):
                if self.missing() >= 0 or now < slot.idle_since + self.config.max_idle:
                    break
                self._take_out(slot)
                self._drop(slot, "max_idle", work)
        return self.plan(work, now)

    def lead(self) -> float:
        """Give the seconds before the end of a connection at which its replacement is opened: as long as two take."""
        lifetime = self.config.max_lifetime
        return 0.0 if lifetime is None else min(2 * self.connect_time, JITTER * lifetime)

    def drain(self, now: float) -> Work:
        """Replace every connection: idle ones now, others when they come back."""
        work = Work()
        while self.idle:
            self._drop(self.idle.popleft(), "drained", work)
        for slot in self.slots.values():
            slot.doom("drained")
        return self.plan(work, now)

    def resize(self, min_size: int, max_size: int, now: float) -> Work:
        """Move the bounds: what is too much goes now if it is idle, else when it comes back."""
        self._bound = max(max_size, self.size + self.connecting)
        self.min_size, self.max_size = min_size, max_size
        self.warming = min(self.warming, max_size)
        work = Work()
        while self.size > max_size and self.idle:
            self._drop(self.idle.popleft(), "resized", work)
        self._note_special()
        return self.plan(work, now)

    def warm(self, connections: int, now: float) -> Work:
        """Have so many connections opened, once."""
        most = self.max_size
        if self._allowance is not None:
            most = min(most, self.size + self.connecting + max(0, self._allowance.left))
        self.warming = min(connections, most) if connections > self.size else 0
        return self.plan(Work(), now)

    def close(self, error: BaseException) -> Work:
        """Let idle connections and all who wait go; lent ones are closed when they come back."""
        self.closing = self.special = True
        work = self.refuse_all(error)
        while self.idle:
            self._drop(self.idle.popleft(), "closed", work)
        return work

    # --- the books ---

    def check(self) -> None:
        """Raise if the books do not add up."""
        places = [slot.place for slot in self.slots.values()]
        total = self.size + self.connecting
        problems = {
            "an idle connection is not in the idle list, or one there is not idle": sorted(s.id for s in self.idle)
            != sorted(s.id for s in self.slots.values() if s.place is IDLE),
            "the count of leased connections is wrong": self.leased != places.count(LEASED),
            "the count of ordinary ones among them is wrong": self.ordinary
            != sum(slot.ordinary for slot in self.slots.values()),
            "the count of reserved connections is wrong": self.reserved != places.count(RESERVED),
            "the count of expiring connections is wrong": self._expiring
            != sum(slot.expiring for slot in self.slots.values()),
            "a connection that is gone is still listed": GONE in places,
            "there are more than fit": total > self._bound,
            "it is not known that there are more than fit": self.special < (self.closing or self.size > self.max_size),
            "a count is negative": min(self.connecting, self.leased, self.reserved, self.waiters.live) < 0,
            "the count of those who wait is wrong": self.waiters.live != sum(1 for _ in self.waiters),
            "somebody waits while something is free": any(self._next_for(slot) for slot in self.idle),
        }
        self._bound = max(self.max_size, min(self._bound, total))
        wrong = [problem for problem, holds in problems.items() if holds]
        if wrong:
            raise AssertionError(f"a bug in the pool: {'; '.join(wrong)}")
