"""The queue of those who wait, and their deadlines, against plain lists."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.pool.slots import Slot
from resilience.pool.waiters import SPARE, Deadlines, Ticket, Waiters

SLOTS = [Slot(number, None, 0.0, inf) for number in range(2)]


def came_back(ticket: Ticket, others: list[Ticket]) -> list[Ticket]:
    """Put one where it was before, by its number."""
    return sorted([ticket, *others], key=lambda one: (one.number, one is ticket))


class Naive:
    """Tickets in a list, in the order in which they are served."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def add(self, ticket: Ticket, *, first: bool) -> None:
        above = [one for one in self.tickets if one.priority > ticket.priority]
        equal = [one for one in self.tickets if one.priority == ticket.priority]
        below = [one for one in self.tickets if one.priority < ticket.priority]
        self.tickets = [*above, *(came_back(ticket, equal) if first else [*equal, ticket]), *below]

    def first(self, slot: Slot, above: float) -> Ticket | None:
        return next((one for one in self.tickets if one.priority > above and one.avoid is not slot), None)


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_waiters_are_served_as_from_a_plain_list(seed: int, priorities: int) -> None:
    chance = random.Random(seed)
    waiters, naive = Waiters(), Naive()
    for _ in range(60):
        match chance.randrange(6):
            case 0 | 1 | 2:
                ticket = Ticket(0.0, inf, chance.randrange(priorities), chance.choice((None, None, SLOTS[0])))
                first = chance.random() < 0.2
                waiters.add(ticket, first=first)
                naive.add(ticket, first=first)
            case 3 if naive.tickets:
                ticket = chance.choice(naive.tickets)
                naive.tickets.remove(ticket)
                waiters.leave(ticket)
                waiters.leave(ticket)  # again is of no consequence
                assert not ticket.live
            case 4:
                slot = chance.choice(SLOTS)
                expected = naive.first(slot, -inf)
                taken = waiters.take_first(slot)
                alike = len({one.priority for one in naive.tickets}) == 1
                assert taken is (expected if alike and naive.tickets and naive.tickets[0] is expected else None)
                if taken is not None:
                    naive.tickets.remove(taken)
                    assert not taken.live
            case 5:
                slot, above = chance.choice(SLOTS), chance.choice((-inf, 0))
                assert waiters.first(slot, above=above) is naive.first(slot, above)
        assert list(waiters) == naive.tickets
        assert waiters.live == len(naive.tickets)
        assert waiters.order == sorted({one.priority for one in naive.tickets}, reverse=True)
        assert all(one.live for one in naive.tickets)


def test_those_who_leave_are_not_kept_behind_one_who_does_not() -> None:
    waiters = Waiters()
    patient = Ticket(0.0)
    waiters.add(patient)
    for _ in range(10_000):
        ticket = Ticket(0.0)
        waiters.add(ticket)
        waiters.leave(ticket)
    assert list(waiters) == [patient]
    assert sum(len(queue) for queue in waiters._queues.values()) <= SPARE + 3


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_deadlines_come_due_as_from_a_plain_list(asks: list[tuple[int, bool]]) -> None:
    deadlines = Deadlines()
    all_of_them: list[Ticket] = []
    for deadline, stays in asks:
        ticket = Ticket(0.0, float(deadline))
        ticket.live = True
        deadlines.add(ticket, len(all_of_them))
        all_of_them.append(ticket)
        ticket.live = stays
    living = [one for one in all_of_them if one.live]
    for now in range(-1, 7):
        due = [one for one in living if one.live and one.deadline <= now]
        assert deadlines.next() == min((one.deadline for one in living if one.live), default=inf)
        found = []
        for ticket in deadlines.due(now):
            ticket.live = False
            found.append(ticket)
        assert set(map(id, found)) == set(map(id, due))
        assert [one.deadline for one in found] == sorted(one.deadline for one in found)
    assert deadlines.next() == inf


@pytest.mark.parametrize("growing", [True, False])
def test_deadlines_of_those_who_were_served_are_not_kept(growing: bool) -> None:
    deadlines = Deadlines()
    patient = Ticket(0.0, 1e9)
    patient.live = True
    deadlines.add(patient, 1)
    for number in range(10_000):
        ticket = Ticket(0.0, float(number if growing else 10_000 - number))
        ticket.live = True
        deadlines.add(ticket, 2)
        ticket.live = False
    assert len(deadlines._queue) + len(deadlines._heap) <= 2 * (SPARE + 6)
    assert deadlines.next() == 1e9
