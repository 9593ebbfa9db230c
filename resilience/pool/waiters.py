"""Callers who wait for a connection: in which order, and for how long. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, Final

from .slots import Slot

SPARE: Final = 64
"""Callers who have left may stay in a list until they are half of it and so many more: each is thrown out once."""


class Ticket:
    """One caller who waits.

    Attributes:
        owner: the task that waits, None if nobody can tell.
        priority: higher is served first.
        avoid: a connection that this caller does not want.
        since, deadline: when it began to wait, and until when it does.
        seat: where it waits; the shell's.
        slot: the connection that it was assigned.
        fresh: whether that needs no check: it has just been opened, or checked for this caller.
        error: why it gets none.
        live: whether it still waits.
        number: in the order of arrival; 0 if it never waited.
    """

    __slots__ = ("avoid", "deadline", "error", "fresh", "live", "number", "owner", "priority", "seat", "since", "slot")

    slot: Slot | None

    def __init__(self, now: float, deadline: float = inf, priority: int = 0, avoid: Slot | None = None) -> None:
        self.owner: Any = None
        self.slot = None
        self.begin(now, deadline, priority, avoid)

    def begin(self, now: float, deadline: float, priority: int, avoid: Slot | None) -> None:
        """Ask, without a connection yet; who has to wait is added to the waiters."""
        self.since = now
        self.deadline = deadline
        self.priority = priority
        self.avoid = avoid
        self.seat: Any = None
        self.fresh = False
        self.error: BaseException | None = None
        self.live = False
        self.number = 0


class Waiters:
    """Callers who wait: higher priority first, in the order of arrival inside a priority.

    One who leaves is only marked, and skipped when its turn comes: ten thousand cancelled callers cost no more each
    than one. The first of each priority lives.

    Attributes:
        live: how many wait.
        order: the priorities of those who wait, the highest first; empty if nobody does. One list for good, which is
            changed in place: `Lender.crowd` is that very list.
    """

    def __init__(self) -> None:
        self.live = 0
        self.order: list[int] = []
        self._queues: dict[int, deque[Ticket]] = {}
        self._gone = 0
        self._number = 0

    def since(self) -> float:
        """Give the moment since which somebody waits; infinity if nobody does."""
        # The first of each priority lives, and is its oldest.
        return min((queue[0].since for queue in self._queues.values()), default=inf)

    def __iter__(self) -> Iterator[Ticket]:
        for priority in self.order:
            yield from (ticket for ticket in self._queues[priority] if ticket.live)

    def add(self, ticket: Ticket, *, first: bool = False) -> None:
        """Let `ticket` wait, behind those of its priority, or before them if it had been served already."""
        queue = self._queues.get(ticket.priority)
        if queue is None:
            queue = self._queues[ticket.priority] = deque()
            self.order[:] = sorted(self._queues, reverse=True)
        if first:
            # It keeps the place that it had among others who come back.
            place = next((at for at, one in enumerate(queue) if one.number > ticket.number), len(queue))
            queue.insert(place, ticket)
        else:
            self._number += 1
            ticket.number = self._number
            queue.append(ticket)
        ticket.live = True
        self.live += 1

    def leave(self, ticket: Ticket) -> None:
        """Let `ticket` wait no longer."""
        if not ticket.live:
            return
        ticket.live = False
        self.live -= 1
        queue = self._queues[ticket.priority]
        if queue[0] is ticket:
            self._pop(ticket.priority, queue)
            return
        self._gone += 1
        if self._gone > self.live + SPARE:  # behind one who waits for ever
            for one in self._queues.values():
                living = [waiting for waiting in one if waiting.live]
                one.clear()
                one.extend(living)
            self._gone = 0

    def _pop(self, priority: int, queue: deque[Ticket]) -> None:
        """Take the first of a priority out, and all behind it who have left."""
        queue.popleft()
        while queue and not queue[0].live:
            queue.popleft()
            self._gone -= 1
        if not queue:
            del self._queues[priority]
            self.order.remove(priority)

    def take_first(self, slot: Slot) -> Ticket | None:
        """Take out the next caller, if all are of one priority and that one takes `slot`: what is quick to see."""
        if len(self.order) != 1:
            return None
        queue = self._queues[self.order[0]]
        ticket = queue[0]
        if ticket.avoid is slot:
            return None
        ticket.live = False
        self.live -= 1
        if len(queue) > 1 and queue[1].live:
            queue.popleft()
        else:
            self._pop(ticket.priority, queue)
        return ticket

    def first(self, slot: Slot, *, above: float = -inf) -> Ticket | None:
        """Give the next caller of a priority above `above` who takes `slot`, without taking it out."""
        for ticket in self:
            if ticket.priority <= above:
                return None
            if ticket.avoid is not slot:
                return ticket
        return None


class Deadlines:
    """When callers who wait give up."""

    def __init__(self) -> None:
        # As a rule all are equally patient, and whoever comes later gives up later.
        self._queue: deque[Ticket] = deque()
        self._heap: list[tuple[float, int, Ticket]] = []
        self._order = count()

    def add(self, ticket: Ticket, waiting: int) -> None:
        """Note when `ticket` gives up, which it does; `waiting` callers wait."""
        queue = self._queue
        if not queue or ticket.deadline >= queue[-1].deadline:
            queue.append(ticket)
            if len(queue) > 2 * waiting + SPARE:
                self._queue = deque(one for one in queue if one.live)
        else:
            heappush(self._heap, (ticket.deadline, next(self._order), ticket))
            if len(self._heap) > 2 * waiting + SPARE:
                self._heap = [one for one in self._heap if one[2].live]
                heapify(self._heap)

    def next(self) -> float:
        """Give the moment at which the next one gives up."""
        while self._queue and not self._queue[0].live:
            self._queue.popleft()
        while self._heap and not self._heap[0][2].live:
            heappop(self._heap)
        return min(self._queue[0].deadline if self._queue else inf, self._heap[0][0] if self._heap else inf)

    def due(self, now: float) -> Iterator[Ticket]:
        """Take out those whose time is over."""
        while self.next() <= now:
            if self._queue and self._queue[0].deadline <= now:
                yield self._queue.popleft()
            else:
                yield heappop(self._heap)[2]
