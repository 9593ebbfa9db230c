"""What is kept, for how long, and who computes when many want the same."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.errors import CallTimeoutError, ConfigurationError
from resilience.events import CacheHit, capture
from resilience.policies import Cache, Deadline
from resilience.testing import VirtualClock, explore
from resilience.testing.explorer import ExploredRun

pytestmark = pytest.mark.anyio


class Callee:
    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.calls = 0
        self.fails = False

    async def __call__(self, value: Any = 0, **named: Any) -> Any:
        self.calls += 1
        if self.takes:
            await anyio.sleep(self.takes)
        if self.fails:
            raise ConnectionError(f"call {self.calls}")
        return (value, *named.values(), self.calls)


def cache(ttl: float = 10.0, max_size: int = 100, **options: Any) -> Cache:
    return Cache(ttl, max_size=max_size, clock=anyio.current_time, **options)


# --- what is kept ---


async def test_a_result_is_kept_for_its_time() -> None:
    callee, kept = Callee(), cache(10.0, name="search")
    search = kept(callee.__call__)
    assert await search("a") == ("a", 1)
    await anyio.sleep(10.0 - 1e-9)
    with capture(CacheHit) as told:
        assert await search("a") == ("a", 1)
    assert [event.name for event in told] == ["search"]
    await anyio.sleep(1e-9)
    assert await search("a") == ("a", 2)


async def test_arguments_are_told_apart() -> None:
    callee = Callee()
    search = cache()(callee.__call__)
    for args, kwargs in (((1,), {}), ((2,), {}), ((1,), {"b": 2}), ((1,), {"b": 3}), ((1,), {"c": 2})):
        before = callee.calls
        for _ in range(2):
            await search(*args, **kwargs)
        assert callee.calls == before + 1
    await search(1, b=2, c=3)
    before = callee.calls
    await search(1, c=3, b=2)  # in any order
    assert callee.calls == before


async def test_functions_are_told_apart_and_share_the_bound() -> None:
    one, other, kept = Callee(), Callee(), cache(max_size=1)
    assert await kept.call(one, "a") == await kept.call(one, "a") == ("a", 1)
    assert await kept.call(other, "a") == ("a", 1)
    assert len(kept) == 1
    assert await kept.call(one, "a") == ("a", 2)  # it had made room


async def test_a_key_of_the_user_decides() -> None:
    callee = Callee()
    search = cache(key=lambda value, **_: value.lower())(callee.__call__)
    assert await search("A", page=1) == await search("a", page=2) == ("A", 1, 1)


async def test_what_cannot_be_a_key_is_computed_each_time() -> None:
    callee, kept = Callee(), cache()
    search = kept(callee.__call__)
    for _ in range(2):
        await search([1])
    assert (callee.calls, len(kept)) == (2, 0)
    plain = kept(len)
    assert plain([1, 2]) == 2


async def test_errors_are_not_kept() -> None:
    callee = Callee()
    search = cache()(callee.__call__)
    callee.fails = True
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await search()
    callee.fails = False
    assert await search() == (0, 3)


async def test_none_is_a_result() -> None:
    calls = 0

    async def nothing() -> None:
        nonlocal calls
        calls += 1

    search = cache()(nothing)
    await search()
    await search()
    assert calls == 1


async def test_what_is_known_can_be_forgotten() -> None:
    callee, kept = Callee(), cache()
    search = kept(callee.__call__)
    await search("a")
    await search("b")
    kept.invalidate("a")
    assert len(kept) == 1
    assert await search("a") == ("a", 3)
    kept.clear()
    assert (len(kept), bool(kept)) == (0, True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_it_is_as_a_naive_cache(data: st.DataObject) -> None:
    clock = VirtualClock(autojump=False)
    ttl, size = data.draw(st.sampled_from((1.0, 2.0))), data.draw(st.integers(1, 3))
    kept = Cache(ttl, max_size=size, clock=clock)
    calls = 0

    def compute(value: int) -> tuple[int, int]:
        nonlocal calls
        calls += 1
        return value, calls

    cached = kept(compute)
    naive: list[tuple[int, float, tuple[int, int]]] = []  # the latest used last
    for value, wait in data.draw(st.lists(st.tuples(st.integers(0, 4), st.sampled_from((0.0, 0.5, 1.0, 2.0))))):
        clock.advance(wait)
        known = next((entry for entry in naive if entry[0] == value and clock() < entry[1]), None)
        got = cached(value)
        naive = [entry for entry in naive if entry[0] != value]
        if known is None:
            assert got == (value, calls)
            naive.append((value, clock() + ttl, got))
        else:
            assert got == known[2]
            naive.append(known)
        naive = naive[-size:]
        assert len(kept) <= size


# --- computed once ---


async def test_one_computes_what_many_want() -> None:
    callee = Callee(takes=1.0)
    search = cache()(callee.__call__)
    got: list[Any] = []

    async def ask() -> None:
        got.append(await search("a"))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    assert got == [("a", 1)] * 50


async def test_a_cancelled_leader_hands_over() -> None:
    callee = Callee(takes=1.0)
    search = cache()(callee.__call__)
    got: list[Any] = []

    async def ask() -> None:
        got.append(await search("a"))

    async with anyio.create_task_group() as group, anyio.create_task_group() as leader:
        leader.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        for _ in range(49):
            group.start_soon(ask)
        await anyio.sleep(0.5)
        leader.cancel_scope.cancel()
    assert (callee.calls, got) == (2, [("a", 2)] * 49)


async def test_a_failure_is_everybodys_and_its_traceback_does_not_grow() -> None:
    callee = Callee(takes=1.0)
    callee.fails = True
    search = cache()(callee.__call__)
    errors: list[BaseException] = []
    depths: list[int] = []

    async def ask() -> None:
        try:
            await search("a")
        except ConnectionError as error:
            errors.append(error)
            depth, traceback = 0, error.__traceback__
            while traceback is not None:
                depth, traceback = depth + 1, traceback.tb_next
            depths.append(depth)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    assert callee.calls == 1
    assert len({id(error) for error in errors}) == 1
    assert len(errors) == 50
    assert max(depths) <= 8
    callee.fails = False
    assert await search("a") == ("a", 2)


async def test_who_waits_keeps_its_own_deadline() -> None:
    callee = Callee(takes=10.0)
    search = cache()(callee.__call__)
    async with anyio.create_task_group() as group:
        group.start_soon(search, "a")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(1.0) as scope:
            await search("a")
        assert scope.cancelled_caught
        with pytest.raises(CallTimeoutError):
            await Deadline(1.0).call(search, "a")
        assert await search("a") == ("a", 1)
    assert callee.calls == 1


async def test_a_function_that_calls_itself_does_not_wait_for_itself() -> None:
    depth = 0
    kept = cache()

    @kept
    async def again(value: int) -> int:
        nonlocal depth
        depth += 1
        await anyio.lowlevel.checkpoint()
        return value if depth > 3 else await again(value)

    with anyio.fail_after(5):
        assert await again(1) == 1
    depth = 0

    @kept
    def again_sync(value: int) -> int:
        nonlocal depth
        depth += 1
        return value if depth > 3 else again_sync(value)

    assert again_sync(1) == 1


def test_no_schedule_of_cancellations_leaves_anybody_waiting() -> None:
    class World:
        def __init__(self) -> None:
            self.callee = Callee(takes=1.0)
            self.cache = cache()

    async def ask(world: World) -> None:
        assert (await world.cache.call(world.callee, "a"))[0] == "a"

    async def scenario(run: ExploredRun, world: World) -> None:
        async with run.task_group() as group:
            for _ in range(4):
                group.start_soon(ask, world)

    def is_done(world: World) -> None:
        assert world.cache._flights == {}
        assert world.callee.calls <= 2

    explore(scenario, World, at_end=is_done, limit=400)


# --- threads ---


def test_threads_compute_once_as_well() -> None:
    calls = 0
    together = threading.Barrier(8)
    got: list[int] = []

    @Cache(60.0, max_size=1)
    def slow() -> int:
        nonlocal calls
        calls += 1
        time.sleep(0.05)
        return calls

    def ask() -> None:
        together.wait(20)
        got.append(slow())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (calls, got) == (1, [1] * 8)


def test_threads_share_a_failure_and_a_thread_that_is_ended_hands_over() -> None:
    entered, leave = threading.Event(), threading.Event()
    ends: list[BaseException] = []
    raises: list[BaseException | None] = [SystemExit(), None]

    @Cache(60.0, max_size=1)
    def slow() -> str:
        error = raises.pop(0)
        entered.set()
        leave.wait(20)
        if error is not None:
            raise error
        return "done"

    def ask() -> None:
        try:
            got.append(slow())
        except BaseException as error:  # noqa: BLE001 - of a thread
            ends.append(error)

    got: list[str] = []
    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    entered.wait(20)
    threads[1].start()
    while not next(iter(slow.__policies__[0]._flights.values())).followers:  # type: ignore[attr-defined]  # noted there
        time.sleep(0.001)
    leave.set()
    for thread in threads:
        thread.join(20)
    assert ([type(end) for end in ends], got) == ([SystemExit], ["done"])


def test_a_thread_waits_no_longer_than_its_deadline() -> None:
    entered, leave = threading.Event(), threading.Event()

    @Cache(60.0, max_size=1)
    def slow() -> None:
        entered.set()
        leave.wait(20)

    computing = threading.Thread(target=slow)
    computing.start()
    entered.wait(20)
    with pytest.raises(CallTimeoutError):
        Deadline(0.01)(slow)()
    leave.set()
    computing.join(20)


# --- what people write ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 0}, "ttl must be more than 0"),
        ({"ttl": "1"}, "ttl must be a number"),
        ({"max_size": 0}, "max_size must be at least 1"),
        ({"key": 3}, "key must be a function"),
        ({"clock": 3}, "clock must be a function"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Cache(**{"ttl": 1.0, "max_size": 1} | options)


def test_it_says_what_it_is_and_not_what_it_holds() -> None:
    kept = Cache(60.0, max_size=10)
    kept.call(lambda: "secret")
    assert repr(kept) == "<Cache of 1 of 10 results for 60 s>"
