"""The books of the pool: a machine that makes every move in any order, beside a plain list; and the rules.

The machine does what the shell does. It is the shell's tests that wait, connect and cancel.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilience.pool.config import PoolConfig
from resilience.pool.core import EVIDENCE, PoolCore, Work
from resilience.pool.slots import GONE, IDLE, LEASED, RESERVED, Slot
from resilience.pool.waiters import Ticket

UNIT = 1.0
"""Seconds: all times of the machine are multiples of a quarter of it."""


def make(jitter: float = 0.0, **options: Any) -> PoolCore:
    return PoolCore(PoolConfig(**options), jitter=lambda: jitter)


class Books(RuleBasedStateMachine):
    """The pool's callers, and a server that opens what it is asked for."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 4), "max_size")
        self.config = PoolConfig(
            max_size=size,
            min_size=data.draw(st.integers(0, size), "min_size"),
            headroom=data.draw(st.sampled_from((0, 0, size - 1)), "headroom"),
            max_uses=data.draw(st.sampled_from((None, None, 2)), "max_uses"),
            max_lifetime=data.draw(st.sampled_from((None, 4 * UNIT)), "max_lifetime"),
            max_idle=data.draw(st.sampled_from((None, 2 * UNIT)), "max_idle"),
            check_after_idle=data.draw(st.sampled_from((0, UNIT, None)), "check_after_idle"),
            max_connecting=data.draw(st.integers(1, 4), "max_connecting"),
            grow=data.draw(st.sampled_from(("cost", "demand")), "grow"),
            reuse=data.draw(st.sampled_from(("lifo", "fifo")), "reuse"),
            reconnect_base=UNIT / 4,
            reconnect_cap=UNIT,
        )
        self.core = PoolCore(self.config, jitter=lambda: 1.0)
        self.now = 0.0
        self.opened = 0
        self.closed: list[Slot] = []
        self.held: list[Slot] = []
        self.reset: list[Slot] = []
        self.waiting: list[Ticket] = []
        self.handed: list[Ticket] = []
        self.attempts = 0
        self.resized = False
        self.do(self.core.plan(Work(), self.now))

    def do(self, work: Work) -> None:
        """Take over what a move gave."""
        for ticket in work.woken:
            assert not ticket.live
            assert (ticket.slot is None) != (ticket.error is None)
            self.note_served(ticket)
        for slot, reason in work.closing:
            assert reason
            assert slot.place is GONE
            assert slot not in self.closed, "closed twice"
            self.closed.append(slot)
            self.held = [one for one in self.held if one is not slot]
            self.reset = [one for one in self.reset if one is not slot]
        self.attempts += work.connects
        self.core.check()

    def note_served(self, ticket: Ticket) -> None:
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        if ticket.slot is not None:
            assert ticket.slot is not ticket.avoid
            self.handed.append(ticket)

    # --- rules ---

    @rule(units=st.integers(0, 8))
    def time_passes(self, units: int) -> None:
        self.now += units * UNIT / 4
        self.do(self.core.due(self.now))

    @rule(priority=st.sampled_from((0, 0, 0, 1)), avoids=st.booleans())
    def come(self, priority: int, avoids: bool) -> None:
        if self.core.closing:
            return
        avoid = next(iter(self.core.slots.values()), None) if avoids else None
        slot = self.core.take(self.now, priority, avoid)
        if slot is not None:
            assert not self.waiting, "passed somebody"
            assert slot is not avoid
            self.held.append(slot)
            return
        ticket = Ticket(self.now, inf, priority, avoid)
        self.waiting.append(ticket)
        self.do(self.core.wait(ticket, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        self.do(self.core.abandon(ticket, self.now))

    @precondition(lambda self: self.handed)
    @rule(data=st.data(), stays=st.booleans())
    def awake(self, data: st.DataObject, stays: bool) -> None:
        """Go on with what was handed over, or leave in that very moment."""
        ticket = data.draw(st.sampled_from(self.handed))
        self.handed.remove(ticket)
        slot = ticket.slot
        assert slot is not None
        if stays and slot.place is LEASED:
            self.held.append(slot)
        else:
            self.do(self.core.abandon(ticket, self.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(("well", "well", "failed", "reset", "unused", "discarded", "broken")))
    def give_back(self, data: st.DataObject, how: str) -> None:
        slot = data.draw(st.sampled_from(self.held))
        self.held.remove(slot)
        core, now = self.core, self.now
        match how:
            case "well" if not core.special and now < slot.retire_at and core.waiters.order:
                ticket = core.hand_over(slot, now)
                if ticket is not None:
                    self.note_served(ticket)
                    core.check()
                else:
                    self.do(core.give_back(slot, now))
            case "well":
                self.do(core.give_back(slot, now))
            case "failed":
                self.do(core.give_back(slot, now, failed=True))
            case "reset":
                core.reserve(slot, now)
                self.do(core.plan(Work(), now))
                self.reset.append(slot)
            case "unused":
                self.do(core.return_unused(slot, now))
            case "discarded":
                self.do(core.discard(slot, "discarded", now))
            case "broken":
                self.do(core.check_failed(slot, now))
                assert all(one.alive_at == -inf for one in core.slots.values() if one.opened_at < now)

    @precondition(lambda self: self.reset)
    @rule(data=st.data(), well=st.booleans())
    def end_reset(self, data: st.DataObject, well: bool) -> None:
        slot = data.draw(st.sampled_from(self.reset))
        self.reset.remove(slot)
        if well:
            self.do(self.core.give_back(slot, self.now))
        else:
            self.do(self.core.discard(slot, "reset_failed", self.now))

    @precondition(lambda self: self.core.idle)
    @rule(data=st.data())
    def check_idle(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.core.idle)))
        self.core.reserve(slot, self.now)
        self.core.check()
        self.reset.append(slot)

    @precondition(lambda self: self.attempts)
    @rule(how=st.sampled_from(("well", "well", "well", "fails", "permanent", "refused")))
    def connect(self, how: str) -> None:
        self.attempts -= 1
        core, now = self.core, self.now
        if core.closing and how != "well":
            core.attempt_ended()
            core.check()
            return
        match how:
            case "well":
                self.opened += 1
                _, work = core.opened(object(), now, UNIT / 2)
                self.do(work)
                assert core.failures == 0
            case "refused":
                self.do(core.connect_refused(now, OSError(), UNIT))
            case _:
                waited, alone = list(core.waiters), not core.slots
                self.do(core.connect_failed(now, OSError(), permanent=how == "permanent"))
                told = [ticket for ticket in waited if ticket.error is not None]
                assert told == (waited[:1] if how == "permanent" and alone else [])

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        high = data.draw(st.integers(self.config.headroom + 1, 5))
        self.resized = True
        self.do(self.core.resize(data.draw(st.integers(0, high)), high, self.now))

    @rule()
    def drain(self) -> None:
        self.do(self.core.drain(self.now))

    @rule(connections=st.integers(0, 6))
    def warm(self, connections: int) -> None:
        self.do(self.core.warm(connections, self.now))

    # --- what always holds ---

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "core"):
            return
        core = self.core
        assert self.opened == core.size + len(self.closed)
        assert self.attempts == core.connecting
        assert core.leased == len(self.held) + len(
            [one for one in self.handed if one.slot and one.slot.place is LEASED]
        )
        assert core.reserved == len(self.reset)
        assert all(slot.place is RESERVED for slot in self.reset)
        assert not core.slots.keys() & {slot.id for slot in self.closed}
        assert self.resized or core.size + core.connecting <= self.config.max_size

    @invariant()
    def who_waits_waits_in_order(self) -> None:
        if hasattr(self, "core"):
            assert sorted(map(id, self.core.waiters)) == sorted(map(id, self.waiting))
            priorities = [ticket.priority for ticket in self.core.waiters]
            assert priorities == sorted(priorities, reverse=True)

    def teardown(self) -> None:
        """Give all back, let the server be well, and see everybody served."""
        if not hasattr(self, "core"):
            return
        for _ in range(10 * (len(self.waiting) + 10)):
            for ticket in list(self.handed):
                self.handed.remove(ticket)
                if ticket.slot is not None and ticket.slot.place is LEASED:
                    self.held.append(ticket.slot)
            for slot in list(self.held):
                if slot in self.held:
                    self.held.remove(slot)
                    self.do(self.core.give_back(slot, self.now))
            for slot in list(self.reset):
                if slot in self.reset:
                    self.reset.remove(slot)
                    self.do(self.core.give_back(slot, self.now))
            while self.attempts:
                self.connect("well")
            self.now += UNIT
            self.do(self.core.due(self.now))
        assert not self.waiting, "somebody waits for ever"
        self.do(self.core.close(OSError()))
        assert self.core.size == 0
        assert self.opened == len(self.closed)


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


# --- the rules, one by one ---


def opened(core: PoolCore, connections: int, now: float = 0.0, took: float = 1.0) -> list[Slot]:
    """Open so many, and lend them."""
    slots = []
    for _ in range(connections):
        core.connecting += 1
        slots.append(core.opened(object(), now, took)[0])
    return [slot for _ in slots if (slot := core.take(now)) is not None]


def learn(core: PoolCore, hold: float) -> None:
    for _ in range(200):
        core.note_hold(hold)


def wait(core: PoolCore, callers: int, now: float = 0.0) -> int:
    """Let so many wait; tells how many connects that starts."""
    return sum(core.wait(Ticket(now), now).connects for _ in range(callers))


@pytest.mark.parametrize(("hold", "waiting", "expected"), [(0.1, 40, 0), (1.0, 4, 0), (1.0, 10, 6), (2.0, 10, 10)])
def test_as_many_are_opened_as_serve_those_who_wait_within_one_connect(
    hold: float, waiting: int, expected: int
) -> None:
    core = make(max_size=50, max_connecting=50)
    opened(core, 4)
    learn(core, hold)
    assert wait(core, waiting) == expected


def test_without_evidence_each_who_waits_is_worth_a_connection() -> None:
    assert wait(make(max_size=50, max_connecting=50), 7) == 7
    assert wait(make(max_size=5, max_connecting=50), 7) == 5
    assert wait(make(max_size=50, max_connecting=3), 7) == 3


def test_while_nobody_knows_how_long_work_takes_as_many_again_as_there_are() -> None:
    core = make(max_size=50, max_connecting=50)
    opened(core, 4)  # in a second each
    assert wait(core, 16) == 4
    # Held for a quarter of a second by now: the queue of four for each will take a second and more.
    assert core.impatient_at() == 0.25
    assert core.due(0.24).connects == 0
    assert core.due(0.25).connects == 12
    core = make(max_size=50, max_connecting=50)
    opened(core, 4)
    assert wait(core, 2) == 2
    assert core.impatient_at() == 1.0  # never later than with evidence


def test_on_demand_each_who_waits_is_worth_a_connection_always() -> None:
    core = make(max_size=50, max_connecting=50, grow="demand")
    opened(core, 4)
    learn(core, 0.01)
    assert wait(core, 7) == 7


def test_so_is_who_has_waited_for_longer_than_a_connect_takes() -> None:
    core = make(max_size=50, max_connecting=50)
    opened(core, 4)
    learn(core, 0.01)
    assert wait(core, 7) == 0
    assert core.impatient_at() == 1.0
    assert core.due(0.99).connects == 0
    assert core.due(1.0).connects == 7


def test_pauses_double_up_to_the_cap_and_begin_anew_after_success() -> None:
    core = make(jitter=1.0, min_size=1, max_size=1, reconnect_base=0.5, reconnect_cap=3.0)
    now, pauses = 0.0, []
    assert core.plan(Work(), now).connects == 1
    for _ in range(6):
        core.connect_failed(now, OSError(), permanent=False)
        assert core.failing_since == 0.0
        pauses.append(core.next_attempt_at - now)
        assert core.due(core.next_attempt_at - 0.01).connects == 0
        now = core.next_attempt_at
        assert core.due(now).connects == 1
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    core.opened(object(), now, 1.0)
    assert (core.failures, core.failing_since, core.next_attempt_at) == (0, inf, -inf)


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
def test_jitter_takes_any_share_of_a_pause(jitter: float) -> None:
    core = make(jitter=jitter, max_size=1, min_size=1, reconnect_base=1.0)
    core.plan(Work(), 0.0)
    core.connect_failed(0.0, OSError(), permanent=False)
    assert core.next_attempt_at == jitter


def test_a_thousand_failures_overflow_nothing() -> None:
    core = make(jitter=1.0, min_size=1)
    for _ in range(2_000):
        core.connecting = 1
        core.connect_failed(0.0, OSError(), permanent=False)
    assert core.next_attempt_at == 3.0


def test_after_a_failure_there_is_one_attempt_at_a_time() -> None:
    core = make(jitter=0.0, max_size=10, max_connecting=4)
    assert wait(core, 6) == 4
    assert [core.connect_failed(0.0, OSError(), permanent=False).connects for _ in range(4)] == [0, 0, 0, 1]


def test_lifetimes_end_up_to_a_twentieth_early() -> None:
    for jitter, end in ((0.0, 100.0), (1.0, 95.0)):
        core = make(jitter=jitter, max_lifetime=100.0)
        core.connecting = 1
        assert core.opened(object(), 0.0, 1.0)[0].retire_at == pytest.approx(end)


def test_what_will_go_soon_is_replaced_before_if_the_pool_needs_it() -> None:
    core = make(min_size=2, max_size=3, max_lifetime=100.0)
    core.connecting = 2
    for _ in range(2):
        core.opened(object(), 0.0, 1.0)
    assert core.lead() == 2.0
    assert core.due(97.9).connects == 0
    assert core.due(98.0).connects == 1  # room for one
    assert core.due(98.5).connects == 0
    core.opened(object(), 99.0, 1.0)
    work = core.due(100.0)
    assert [reason for _, reason in work.closing] == ["max_lifetime"] * 2
    assert core.size + core.connecting == 2


def test_what_is_not_needed_is_not_replaced() -> None:
    core = make(min_size=0, max_size=3, max_lifetime=100.0)
    core.connecting = 1
    core.opened(object(), 0.0, 1.0)
    assert core.due(99.0).connects == 0
    assert len(core.due(100.0).closing) == 1
    assert core.connecting == 0


def test_idle_ones_go_the_longest_idle_first_and_never_below_the_minimum() -> None:
    core = make(min_size=1, max_size=4, max_idle=10.0)
    slots = opened(core, 4)
    for at, slot in enumerate(slots):
        core.give_back(slot, float(at))
    assert core.due(9.9).closing == []
    assert [slot for slot, _ in core.due(10.5).closing] == slots[:1]
    assert [slot for slot, _ in core.due(100.0).closing] == slots[1:3]


def test_a_check_does_not_end_idleness_and_does_not_need_one_for_a_while() -> None:
    core = make(check_after_idle=5.0)
    (slot,) = opened(core, 1)
    core.give_back(slot, 1.0)
    core.reserve(slot, 6.0)
    core.give_back(slot, 7.0)
    assert slot.idle_since == 1.0
    assert slot.needs_nothing(11.9, core.fresh_for)
    assert not slot.needs_nothing(12.0, core.fresh_for)


def test_who_borrowed_in_vain_leaves_an_age_and_uses_as_they_were() -> None:
    core = make()
    (slot,) = opened(core, 1)
    assert slot.uses == 1
    core.return_unused(slot, 5.0)
    assert (slot.uses, slot.idle_since, core.hold) == (0, 0.0, 0.0)


@pytest.mark.parametrize("is_gone", [False, True])
def test_who_was_served_and_leaves_passes_on_what_is_left_of_that_and_has_it_no_more(is_gone: bool) -> None:
    core = make(max_size=1)
    (slot,) = opened(core, 1)
    first, second = Ticket(0.0), Ticket(0.0)
    core.wait(first, 0.0)
    core.wait(second, 0.0)
    core.give_back(slot, 1.0)
    assert first.slot is slot
    if is_gone:  # closed by force, before the one who was served was awake
        core.discard(slot, "forced", 1.0)
    work = core.abandon(first, 1.0)
    assert first.slot is None
    assert second.slot is (None if is_gone else slot)
    assert (work.woken, work.closing) == ([] if is_gone else [second], [])
    core.check()


def test_nobody_is_lent_what_somebody_waits_beside() -> None:
    """Who waits may not want the one that is idle; a newcomer has to stand behind all the same."""
    core = make(max_size=2, grow="demand")
    (slot,) = opened(core, 1)
    core.give_back(slot, 0.0)
    core.wait(Ticket(0.0, avoid=slot), 0.0)
    assert list(core.idle) == [slot]
    assert core.take(0.0) is None


def test_after_a_failed_check_all_others_must_prove_that_they_are_alive() -> None:
    core = make(max_size=3, check_after_idle=None)
    slots = opened(core, 3)
    core.give_back(slots[0], 0.0)
    core.check_failed(slots[1], 0.0)
    assert not slots[0].needs_nothing(0.0, core.fresh_for)
    assert not slots[2].needs_nothing(0.0, core.fresh_for)
    core.give_back(slots[2], 1.0)
    assert slots[2].needs_nothing(1.0, core.fresh_for)


def test_a_reset_belongs_neither_to_the_use_nor_to_the_idle_time() -> None:
    core = make(max_idle=10.0)
    (slot,) = opened(core, 1)
    core.reserve(slot, 4.0)
    assert core.hold == 4.0
    core.give_back(slot, 9.0)
    assert core.hold == 4.0
    assert core.due(13.9).closing == []
    assert len(core.due(14.0).closing) == 1


def test_a_smaller_pool_lets_idle_ones_go_now_and_others_when_they_come_back() -> None:
    core = make(max_size=4)
    first, second, third, fourth = opened(core, 4)
    core.give_back(fourth, 0.0)
    assert [slot for slot, _ in core.resize(0, 2, 0.0).closing] == [fourth]
    assert [reason for _, reason in core.give_back(third, 0.0).closing] == ["resized"]
    assert core.give_back(second, 0.0).closing == []
    assert core.give_back(first, 0.0).closing == []
    core.check()


def test_what_is_being_opened_beyond_a_smaller_bound_goes_when_it_is_there() -> None:
    core = make(max_size=4)
    assert wait(core, 4) == 4
    core.resize(0, 1, 0.0)
    core.check()
    for _ in range(4):
        core.opened(object(), 0.0, 1.0)
        core.check()
    assert core.size <= 1 + core.leased


def test_a_wait_is_not_judged_without_evidence() -> None:
    core = make(max_size=2)
    opened(core, 2)
    for _ in range(EVIDENCE - 1):
        core.note_hold(1.0)
    assert core.expected_wait() == 0.0
    core.note_hold(1.0)
    assert core.expected_wait() == pytest.approx(0.5, rel=0.05)
    core.waiters.add(Ticket(0.0))
    assert core.expected_wait() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("state", ["idle", "connecting", "can grow"])
def test_a_wait_is_not_judged_while_something_may_come(state: str) -> None:
    core = make(max_size=3 if state == "can grow" else 2)
    slots = opened(core, 2)
    learn(core, 1.0)
    if state == "idle":
        core.give_back(slots[0], 0.0)
    core.connecting = int(state == "connecting")
    assert core.expected_wait() == 0.0


def test_the_quickest_is_forgotten_slowly() -> None:
    core = make()
    core.note_hold(1.0)
    for _ in range(1_000):
        core.note_hold(100.0)
    assert 2.0 < core.quickest < 4.0
    assert core.hold == pytest.approx(100.0, rel=0.01)


def test_closing_refuses_all_who_wait_each_with_an_error_of_its_own() -> None:
    core = make(max_size=1)
    (slot,) = opened(core, 1)
    tickets = [Ticket(0.0), Ticket(0.0)]
    for ticket in tickets:
        core.wait(ticket, 0.0)
    work = core.close(OSError())
    assert work.woken == tickets
    assert tickets[0].error is not tickets[1].error
    assert core.give_back(slot, 0.0).closing == [(slot, "closed")]
    assert core.plan(Work(), 0.0).connects == 0


def test_the_books_notice_when_they_do_not_add_up() -> None:
    for spoil in (
        lambda core: core.idle.append(core.take(0.0)),
        lambda core: core.slots.clear(),
        lambda core: setattr(core, "reserved", 1),
        lambda core: setattr(core, "ordinary", 1),
        lambda core: setattr(core, "connecting", 100),
        lambda core: setattr(core, "connecting", -1),
        lambda core: setattr(core, "_expiring", 1),
        lambda core: setattr(core.waiters, "live", 1),
        lambda core: core.waiters.add(Ticket(0.0)),
        lambda core: setattr(core, "max_size", 0),
        lambda core: setattr(core.idle[0], "place", GONE),
    ):
        core = make()
        core.connecting = 1
        core.opened(object(), 0.0, 1.0)
        assert core.idle[0].place is IDLE
        core.check()
        spoil(core)
        with pytest.raises(AssertionError, match="a bug in the pool: "):
            core.check()
