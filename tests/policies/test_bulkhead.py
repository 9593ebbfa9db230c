"""So many at once, the others in line; no place is ever lost or given twice."""

from __future__ import annotations

import dis
import gc
import os
import random
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from itertools import product
from math import inf, nan
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from resilience.errors import BulkheadFullError, ConfigurationError
from resilience.events import BulkheadRejected, capture
from resilience.policies import AdaptiveLimit, Bulkhead, Deadline, places
from resilience.policies.places import Places, _Waiter
from resilience.testing import VirtualClock, explore
from resilience.testing.explorer import ExploredRun

pytestmark = pytest.mark.anyio


class Work:
    """Counts who is in, and in which order they came in."""

    def __init__(self, takes: float = 1.0) -> None:
        self.takes = takes
        self.inside = self.most = 0
        self.order: list[int] = []

    async def __call__(self, number: int = 0) -> int:
        self.order.append(number)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(self.takes)
        finally:
            self.inside -= 1
        return number


async def test_so_many_at_once_and_the_others_in_line() -> None:
    work, bulkhead = Work(), Bulkhead(2, max_waiting=8)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(bulkhead(work.__call__), number)
            await anyio.wait_all_tasks_blocked()
        assert (bulkhead.in_flight, bulkhead.waiting) == (2, 8)
    assert work.most == 2
    # Two at a time, whose order among themselves is the loop's.
    assert [sorted(work.order[at : at + 2]) for at in range(0, 10, 2)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert anyio.current_time() - began == pytest.approx(5.0)
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


async def test_who_finds_no_place_is_refused_at_once() -> None:
    work, bulkhead = Work(), Bulkhead(1, name="search")
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(work.__call__))
        await anyio.sleep(0.5)
        with (
            capture(BulkheadRejected) as told,
            pytest.raises(BulkheadFullError, match=r"'search' refused.*full") as caught,
        ):
            await bulkhead(work.__call__)()
    assert (caught.value.policy, caught.value.reason, caught.value.retry_after) == ("bulkhead", "full", None)
    assert [(event.name, event.in_flight, event.waiting) for event in told] == [("search", 1, 0)]
    assert await bulkhead(work.__call__)(7) == 7


async def test_who_has_waited_for_long_enough_is_refused() -> None:
    work, bulkhead = Work(takes=3), Bulkhead(1, max_waiting=5, timeout=1.0)
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(work.__call__))
        await anyio.sleep(0.5)
        began = anyio.current_time()
        with pytest.raises(BulkheadFullError) as caught:
            await bulkhead(work.__call__)()
        assert (caught.value.reason, anyio.current_time() - began) == ("timeout", 1.0)
        await anyio.sleep(1)
        assert await bulkhead(work.__call__)(7) == 7  # half a second later it is let in


async def test_whatever_ends_a_call_gives_its_place_back() -> None:
    bulkhead = Bulkhead(1)

    async def fail(error: BaseException) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            await bulkhead(fail)(error)
    with anyio.move_on_after(1):
        await bulkhead(anyio.sleep)(9)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await bulkhead(anyio.sleep)(9)
    assert bulkhead.in_flight == 0


async def test_who_leaves_the_line_makes_room_in_it() -> None:
    work, bulkhead = Work(), Bulkhead(1, max_waiting=1)
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(work.__call__), 1)
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.1):
            await bulkhead(work.__call__)(2)
        assert bulkhead.waiting == 0
        await bulkhead(work.__call__)(3)
    assert work.order == [1, 3]


@pytest.mark.parametrize("timeout", [None, 1.5])
def test_no_schedule_of_cancellations_loses_a_place(timeout: float | None) -> None:
    async def call(bulkhead: Bulkhead) -> None:
        with suppress(BulkheadFullError):
            await bulkhead(anyio.sleep)(1)

    async def scenario(run: ExploredRun, bulkhead: Bulkhead) -> None:
        async with run.task_group() as group:
            for _ in range(4):
                group.start_soon(call, bulkhead)

    def is_within(bulkhead: Bulkhead) -> None:
        assert bulkhead.in_flight <= 1
        assert bulkhead.in_flight == 1 or not bulkhead.waiting

    async def is_empty(bulkhead: Bulkhead) -> None:
        assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)
        await bulkhead(anyio.sleep)(0)

    found = explore(
        scenario, lambda: Bulkhead(1, max_waiting=3, timeout=timeout), invariant=is_within, at_end=is_empty, limit=400
    )
    assert found.runs > 50


@pytest.mark.tells_by_chance
@pytest.mark.parametrize("seed", range(20))
async def test_in_a_storm_never_too_many_are_in_and_none_is_forgotten(seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.randint(1, 4)
    max_waiting = chance.choice((0, 3, 100))
    bulkhead = Bulkhead(limit, max_waiting=max_waiting, timeout=chance.choice((None, 0, 1, 3)) if max_waiting else None)
    work = Work()
    ended = 0

    async def call() -> None:
        nonlocal ended
        with anyio.move_on_after(chance.choice((0, 1, 2, 5, 50))):
            try:
                await bulkhead(work.__call__)()
            except BulkheadFullError as error:
                assert error.reason == "timeout" or bulkhead.in_flight == limit
        ended += 1

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(call)
            await anyio.sleep(chance.choice((0, 0, 0, 1)))
            assert work.inside <= bulkhead.in_flight <= limit
            assert not bulkhead.waiting or bulkhead.in_flight == limit
    assert (ended, work.inside, bulkhead.in_flight, bulkhead.waiting) == (60, 0, 0, 0)
    assert work.most <= limit


# --- threads ---


def test_threads_share_it_and_wait_in_line() -> None:
    bulkhead = Bulkhead(2, max_waiting=100)
    inside = most = done = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.001)
        with lock:
            inside -= 1

    def call() -> None:
        nonlocal done
        for _ in range(20):
            bulkhead(work)()
        with lock:
            done += 1

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert (most, done, bulkhead.in_flight, bulkhead.waiting) == (2, 8, 0, 0)


def test_a_thread_waits_no_longer_than_it_is_told_or_its_deadline() -> None:
    bulkhead = Bulkhead(1, max_waiting=1, timeout=30.0)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(20)

    holder = threading.Thread(target=bulkhead(hold))
    holder.start()
    entered.wait(20)
    with pytest.raises(BulkheadFullError, match="timeout"):
        Deadline(0.01)(bulkhead(hold))()
    leave.set()
    holder.join(20)
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


def test_a_thread_whose_deadline_has_passed_does_not_wait(clock: VirtualClock) -> None:
    bulkhead = Bulkhead(1, max_waiting=1)
    call = begun(bulkhead)

    def late() -> None:
        clock.advance(2)
        bulkhead(lambda: None)()

    with pytest.raises(BulkheadFullError, match="timeout"):
        Deadline(1, clock=clock)(late)()
    call.close()


def test_a_thread_whose_deadline_cannot_be_read_does_not_stay_in_line() -> None:
    bulkhead, readings = Bulkhead(1, max_waiting=1), iter([0.0])
    call = begun(bulkhead)

    def clock() -> float:
        for reading in readings:
            return reading
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - its own
        Deadline(1, clock=clock)(bulkhead(lambda: None))()
    assert bulkhead.waiting == 0
    call.close()
    assert bulkhead.in_flight == 0


@pytest.mark.parametrize("served", [False, True])
def test_a_thread_that_is_interrupted_while_it_waits_leaves_the_line(
    monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    bulkhead = Bulkhead(1, max_waiting=1)
    call = begun(bulkhead)

    class Gate:
        def acquire(self, timeout: float = -1) -> None:
            if timeout > 0:
                if served:
                    call.close()
                raise KeyboardInterrupt

        def release(self) -> None:
            pass

    monkeypatch.setattr(places, "threading", types.SimpleNamespace(Lock=Gate, TIMEOUT_MAX=threading.TIMEOUT_MAX))
    with pytest.raises(KeyboardInterrupt):
        bulkhead(lambda: None)()
    call.close()
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_thread_hands_over_to_a_task_and_a_task_to_a_thread(anyio_backend: str) -> None:
    del anyio_backend
    bulkhead = Bulkhead(1, max_waiting=2)
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def in_thread(name: str) -> None:
        order.append(name)
        entered.set()
        leave.wait(20)

    async def in_task(name: str) -> None:
        order.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, bulkhead(in_thread), "thread")
        await anyio.to_thread.run_sync(entered.wait)
        group.start_soon(bulkhead(in_task), "task")
        while not bulkhead.waiting:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.001)
        group.start_soon(anyio.to_thread.run_sync, bulkhead(in_thread), "thread again")
        while bulkhead.waiting < 2:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.001)
        leave.set()
    assert order == ["thread", "task", "thread again"]
    assert bulkhead.in_flight == 0


def test_a_waiter_whose_event_loop_is_gone_passes_its_place_on() -> None:
    bulkhead = Bulkhead(1, max_waiting=5)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(20)

    holder = threading.Thread(target=bulkhead(hold))
    holder.start()
    entered.wait(20)

    async def leave_one_behind() -> None:
        call = bulkhead(anyio.sleep)(0)
        call.send(None)  # it waits, and is forgotten with its loop
        abandoned.append(call)

    abandoned: list[Any] = []
    anyio.run(leave_one_behind)
    assert bulkhead.waiting == 1
    leave.set()
    holder.join(20)
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)
    with suppress(RuntimeError):  # anyio's scope, which misses its loop
        abandoned[0].close()
    assert bulkhead.in_flight == 0


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


async def hang() -> None:
    await pause()


def begun(bulkhead: Bulkhead) -> Coroutine[Any, Any, None]:
    """Give a call that is in, and goes on until it is closed; it needs no event loop."""
    call = bulkhead(hang)()
    call.send(None)
    return call


def leave_behind(bulkhead: Bulkhead, calls: int = 1) -> list[Coroutine[Any, Any, None]]:
    """Have calls wait in line whose event loop is over then."""
    left: list[Coroutine[Any, Any, None]] = []

    async def wait() -> None:
        for _ in range(calls):
            call = bulkhead(hang)()
            call.send(None)
            left.append(call)

    anyio.run(wait)
    return left


def test_a_waiter_that_is_collected_while_it_cannot_be_woken_gives_one_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bulkhead = Bulkhead(2, max_waiting=1)
    first, second = begun(bulkhead), begun(bulkhead)

    def caller() -> Callable[[Callable[[], object]], object]:
        def call(_: Callable[[], object]) -> None:
            with suppress(RuntimeError):  # anyio's scope, which misses its loop
                waiter.close()
            raise RuntimeError("this event loop is over")

        return call

    monkeypatch.setattr(places, "caller_of_this_run", caller)
    (waiter,) = leave_behind(bulkhead)
    first.close()
    assert (bulkhead.in_flight, bulkhead.waiting) == (1, 0)
    second.close()
    assert bulkhead.in_flight == 0


def test_a_place_passes_by_any_number_of_waiters_whose_event_loop_is_gone() -> None:
    bulkhead = Bulkhead(1, max_waiting=5_000)
    call = begun(bulkhead)
    left = leave_behind(bulkhead, 2_000)
    call.close()
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)
    for one in left:
        with suppress(RuntimeError):
            one.close()
    assert bulkhead.in_flight == 0


async def test_a_timeout_may_be_longer_than_anybody_can_wait() -> None:
    bulkhead = Bulkhead(1, max_waiting=1, timeout=1e300)
    call = begun(bulkhead)
    with anyio.move_on_after(1):
        await bulkhead(hang)()
    assert bulkhead.waiting == 0
    thread = threading.Thread(target=bulkhead(lambda: None))
    thread.start()
    while thread.is_alive() and not bulkhead.waiting:
        await anyio.lowlevel.checkpoint()
    call.close()
    thread.join(20)
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


@pytest.mark.parametrize("make", [Bulkhead, lambda size, **options: AdaptiveLimit(initial=size, **options)])
@pytest.mark.parametrize("patience", [None, 5.0])
async def test_a_plain_function_never_waits_in_an_event_loops_thread(
    make: Callable[..., Bulkhead], patience: float | None
) -> None:
    bulkhead = make(1, max_waiting=5, timeout=patience)
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(anyio.sleep), 1)
        await anyio.sleep(0.5)
        with pytest.raises(BulkheadFullError, match="refused the call: event loop") as caught:
            bulkhead(lambda: 7)()
    assert (caught.value.reason, bulkhead.waiting) == ("event_loop", 0)
    assert bulkhead(lambda: 7)() == 7


async def test_a_plain_function_in_an_event_loops_thread_finds_a_bulkhead_without_a_line_full() -> None:
    bulkhead = Bulkhead(1)
    call = begun(bulkhead)
    with pytest.raises(BulkheadFullError, match="refused the call: full"):
        bulkhead(lambda: 7)()
    call.close()


# --- the garbage collector ---


UNDISTURBED = (
    *("LOAD_", "STORE_FAST", "STORE_ATTR", "COMPARE_OP", "IS_OP", "BINARY_OP", "UNARY_NOT", "TO_BOOL", "COPY", "SWAP"),
    *("PUSH_", "POP_TOP", "POP_JUMP_IF", "POP_JUMP_FORWARD", "JUMP_FORWARD", "NOP", "CACHE", "UNPACK_SEQUENCE"),
)
"""Instructions after which the interpreter does nothing but the next one; after a call, and where a loop turns, it runs
the garbage collector if that is due."""


def with_intruder(act: Callable[[], object], intrude: Callable[[], object], moment: int) -> bool:
    """Do `act`, and `intrude` at that of the moments at which the collector can come; tell whether there was one.

    They are those in `places.py`, and in what it calls of `threading` that is not written in C.
    """
    moments = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal moments
        if frame.f_code.co_filename not in {places.__file__, threading.__file__}:
            return None
        if event == "call":
            frame.f_trace, frame.f_trace_lines = trace, False
            frame.f_trace_opcodes = True  # after f_trace, or Python 3.13 forgets it
        if event == "opcode" and not before.get(frame, "CALL").startswith(UNDISTURBED):
            moments += 1
            if moments == moment:
                intrude()
        before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return trace

    def do() -> None:
        tracing = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # or Python 3.12 tells of no instruction
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(tracing)

    before: dict[FrameType, str] = {}
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the thread waits for itself"
    return moments >= moment


class Books:
    """Two who are in, and some in line, in the room of two; what happens to them is noted."""

    def __init__(self, waiting: int) -> None:
        self.places = Places(2, 4)
        self.inside = 0
        self.woken: list[int] = []
        self.waiters = [_Waiter(lambda number=number: self.woken.append(number)) for number in range(4)]  # type: ignore[misc]
        self.came: set[int] = set()
        self.left: set[int] = set()
        self.take()
        self.take()
        for number in range(waiting):
            self.come(number)

    def take(self) -> None:
        taken = self.places.take()
        self.inside += taken

    def end(self) -> None:
        self.places.give_back()
        self.inside -= 1

    def grow(self) -> None:
        self.places.move(4)

    def come(self, number: int = 3) -> None:
        self.came.add(number)
        assert self.places._enter(self.waiters[number])

    def leave(self, number: int) -> None:
        self.left.add(number)
        if self.places._leave(self.waiters[number]):
            self.places.give_back()

    def leave_first(self) -> None:
        self.leave(0)

    def leave_second(self) -> None:
        self.leave(1)

    def check(self) -> None:
        served = {number for number in self.woken if number not in self.left}
        assert len(self.woken) == len(set(self.woken))
        assert self.places.taken == self.inside + len(served)
        assert self.places.taken <= self.places.limit
        assert self.places.taken == self.places.limit or not self.places.waiting
        assert self.places.waiting == len(self.came - served - self.left)


STEPS = ("take", "end", "grow", "come", "leave_first", "leave_second")


@pytest.mark.parametrize("waiting", [3, 0])
@pytest.mark.parametrize(("step", "intruder"), [pair for pair in product(STEPS, repeat=2) if pair != ("come", "come")])
def test_the_books_are_right_whatever_the_collector_ends_in_the_middle_of_a_step(
    step: str, intruder: str, waiting: int
) -> None:
    moment = 1
    while with_intruder(getattr(books := Books(waiting), step), getattr(books, intruder), moment):
        books.check()
        moment += 1
    assert moment > 3


def test_a_call_that_is_collected_while_its_thread_holds_the_lock_gives_its_place_back() -> None:
    bulkhead, moment, collected = Bulkhead(2), 0, True
    while collected:
        cycle: list[Any] = [begun(bulkhead)]
        cycle.append(cycle)
        del cycle
        moment += 1
        collected = with_intruder(bulkhead(lambda: 7), gc.collect, moment)
        gc.collect()
        assert bulkhead.in_flight == 0


def test_a_thread_that_waits_is_woken_by_what_the_collector_ends_in_it() -> None:
    moment, there = 0, True
    while there:
        bulkhead = Bulkhead(1, max_waiting=1, timeout=0.001)
        call = begun(bulkhead)

        def wait(bulkhead: Bulkhead = bulkhead) -> None:
            with suppress(BulkheadFullError):  # the collector came too late, or not at all
                bulkhead(lambda: None)()

        moment += 1
        there = with_intruder(wait, call.close, moment)
        call.close()
        assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("make", [Bulkhead, lambda size, **options: AdaptiveLimit(initial=size, **options)])
def test_a_child_forked_inside_of_a_call_begins_with_all_places_free(make: Callable[..., Bulkhead]) -> None:
    bulkhead = make(1, max_waiting=1)
    left = []

    def fork() -> tuple[int, tuple[int, int]]:
        left.extend(leave_behind(bulkhead))
        return os.fork(), (bulkhead.in_flight, bulkhead.waiting)

    child, found = bulkhead(fork)()
    if not child:
        os._exit(0 if (*found, bulkhead.in_flight) == (0, 0, 0) and bulkhead(lambda: 7)() == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found == (1, 1)
    with suppress(RuntimeError):
        left[0].close()
    assert bulkhead.in_flight == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_is_not_stuck_on_a_lock_that_was_held_at_the_fork() -> None:
    limit = AdaptiveLimit()
    with limit._lock, limit._places._lock:
        child = os.fork()
        if not child:
            thread = threading.Thread(target=limit(lambda: None), daemon=True)
            thread.start()
            thread.join(10)
            os._exit(int(thread.is_alive()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- what people read and write ---


async def test_it_tells_whether_there_is_room() -> None:
    bulkhead, line = Bulkhead(1), Bulkhead(1, max_waiting=1)
    assert bulkhead.admission().allowed
    async with anyio.create_task_group() as group:
        for one in (bulkhead, line):
            group.start_soon(one(anyio.sleep), 1)
        await anyio.sleep(0.5)
        assert bulkhead.admission() == (False, None, "bulkhead_full")
        assert line.admission().allowed
    assert repr(bulkhead) == "<Bulkhead 0 of 1 in flight>"
    assert repr(line) == "<Bulkhead 0 of 1 in flight, 0 of 1 waiting>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrent": 0}, "max_concurrent must be at least 1, got 0"),
        ({"max_concurrent": 1.5}, "max_concurrent must be an int"),
        ({"max_concurrent": True}, "max_concurrent must be an int"),
        ({"max_waiting": inf}, "max_waiting must be an int"),
        ({"max_waiting": 1, "timeout": True}, "timeout must be a number"),
        ({"max_waiting": -1}, "max_waiting must be at least 0"),
        ({"max_waiting": 1, "timeout": -1}, "timeout must be at least 0"),
        ({"max_waiting": 1, "timeout": nan}, "timeout must be finite"),
        ({"timeout": 1}, "timeout must be None without max_waiting"),
        ({"clock": 3}, "clock must be a function"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Bulkhead(**{"max_concurrent": 1} | options)


def test_a_plain_function_that_gives_an_awaitable_is_refused(clock: VirtualClock) -> None:
    with pytest.raises(ConfigurationError, match="a bulkhead got an awaitable"):
        _ = Bulkhead(1, clock=clock).call(lambda: anyio.sleep(1))
