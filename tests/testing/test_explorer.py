"""The explorer finds what it is there to find, tells how to see it again, and comes to an end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from resilience import ConfigurationError
from resilience.testing import Exploration, ExplorationFailed, ExploredRun, Schedule, explore
from resilience.testing.explorer import WAYS, Backend

BACKENDS: list[Backend] = ["asyncio", "trio"]
both = pytest.mark.parametrize("backend", BACKENDS)


def failure(*args: Any, **options: Any) -> ExplorationFailed:
    with pytest.raises(ExplorationFailed) as failed:
        explore(*args, **options)
    return failed.value


# --- planted bugs ---


class NaivePool:
    """One connection, and callers who wait for it: assigned, woken, and nobody asks what became of it."""

    def __init__(self) -> None:
        self.idle = ["connection"]
        self.waiting: deque[asyncio.Future[str]] = deque()

    async def acquire(self) -> str:
        if self.idle:
            return self.idle.pop()
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return await self.wait(waiter)

    async def wait(self, waiter: asyncio.Future[str]) -> str:
        return await waiter

    def release(self, connection: str) -> None:
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self.idle.append(connection)

    def check_at_end(self) -> None:
        assert self.idle == ["connection"], "the connection is lost"


class CarefulPool(NaivePool):
    """Passes on what was assigned to one who is cancelled."""

    async def wait(self, waiter: asyncio.Future[str]) -> str:
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())
            raise


class WaitForPool(CarefulPool):
    """Waits with a time limit, by asyncio's own means."""

    async def wait(self, waiter: asyncio.Future[str]) -> str:
        return await asyncio.wait_for(super().wait(waiter), 100.0)


async def borrowers(run: ExploredRun, pool: Any) -> None:
    async def borrow() -> None:
        connection = await pool.acquire()
        try:
            await anyio.sleep(1)
        finally:
            pool.release(connection)

    async with run.task_group() as group:
        for number in range(3):
            group.start_soon(borrow, name=f"borrower {number}")


def test_finds_the_connection_that_is_lost_at_the_hand_off() -> None:
    failed = failure(borrowers, NaivePool, at_end=NaivePool.check_at_end, backends=["asyncio"])
    assert failed.found in {
        "every task is blocked for good",
        "the check at the end raised AssertionError: the connection is lost",
    }
    ((task, place),) = failed.cancelled
    assert "borrower" in task
    assert place.endswith("in NaivePool.wait")
    assert failed.schedule.way == "task"


def test_finds_nothing_where_nothing_is_lost() -> None:
    explored = explore(borrowers, CarefulPool, at_end=NaivePool.check_at_end, backends=["asyncio"])
    assert explored.complete
    assert explored.runs == explored.points + 2  # each way has one run without any cancellation


def test_finds_wait_for_swallowing_a_cancellation_where_it_does() -> None:
    """https://github.com/python/cpython/issues/86296, mended in Python 3.12."""
    options: dict[str, Any] = {"at_end": NaivePool.check_at_end, "backends": ["asyncio"]}
    if sys.version_info >= (3, 12):
        assert explore(borrowers, WaitForPool, **options).complete
        return
    failed = failure(borrowers, WaitForPool, **options)
    assert failed.found.endswith("was cancelled, and went on as if it had not been")
    assert failed.cancelled[0][1].endswith("inside wait_for")


class WakingPool:
    """Wakes the first who waits, who then helps himself: the wake-up itself can be lost."""

    def __init__(self) -> None:
        self.idle = ["connection"]
        self.waiting: deque[anyio.Event] = deque()

    async def acquire(self) -> str:
        while not self.idle:
            woken = anyio.Event()
            self.waiting.append(woken)
            await woken.wait()
        return self.idle.pop()

    def release(self, connection: str) -> None:
        self.idle.append(connection)
        if self.waiting:
            self.waiting.popleft().set()


def test_finds_the_wake_up_that_is_lost() -> None:
    failed = failure(borrowers, WakingPool, backends=["asyncio"])
    assert failed.found == "every task is blocked for good"
    assert "waits at" in str(failed.__cause__)


class SlowPool(NaivePool):
    """Gives back with an await in between."""

    def __init__(self) -> None:
        super().__init__()
        self.lock: anyio.Semaphore

    async def acquire(self) -> str:
        while not self.idle:  # noqa: ASYNC110 - a naive pool
            await anyio.sleep(0.1)
        return self.idle.pop()

    async def give_back(self, connection: str) -> None:
        await checkpoint()
        self.idle.append(connection)


async def slow_borrowers(run: ExploredRun, pool: SlowPool) -> None:
    async def borrow() -> None:
        connection = await pool.acquire()
        try:
            await anyio.sleep(1)
        finally:
            await pool.give_back(connection)

    async with run.task_group() as group:
        for _ in range(2):
            group.start_soon(borrow)


@both
def test_finds_the_cleanup_that_is_cancelled_itself(backend: Backend) -> None:
    failed = failure(slow_borrowers, SlowPool, at_end=NaivePool.check_at_end, backends=[backend])
    assert failed.schedule.backend == backend


class Ledger:
    """Two accounts that must add up whenever nothing runs."""

    def __init__(self) -> None:
        self.left, self.right = 10, 0

    def check(self) -> None:
        assert self.left + self.right == 10, f"{self.left} + {self.right}"


async def transfer(run: ExploredRun, ledger: Ledger) -> None:
    async def move() -> None:
        ledger.left -= 1
        try:
            await checkpoint()
        except BaseException:
            ledger.left += 1
            raise
        ledger.right += 1

    async with run.task_group() as group:
        group.start_soon(move)


@both
def test_asks_the_invariant_after_each_step(backend: Backend) -> None:
    failed = failure(transfer, Ledger, invariant=Ledger.check, backends=[backend])
    assert "the invariant raised AssertionError: 9 + 0" in failed.found
    assert isinstance(failed.__cause__, AssertionError)
    assert failed.cancelled == ()
    assert "nobody was cancelled" in str(failed)
    assert failed.runs == 1


async def two_in_a_row(run: ExploredRun, done: list[str]) -> None:
    async def one(name: str) -> None:
        try:
            await anyio.sleep(1)
        finally:
            done.append(name)

    async with run.task_group() as group:
        group.start_soon(one, "a")
        await anyio.sleep(0.5)
        group.start_soon(one, "b")


@both
def test_a_second_cancellation_is_explored_on_demand(backend: Backend) -> None:
    """Two tasks that end early: one cancellation is survived, two of different tasks are not."""

    class World:
        def __init__(self) -> None:
            self.survived = 0
            self.disturbed = False

    async def scenario(run: ExploredRun, world: World) -> None:
        async def task() -> None:
            await anyio.sleep(1)
            world.survived += 1

        async with run.task_group() as group:
            group.start_soon(task)
            group.start_soon(task)
        world.disturbed = world.survived == 0

    def check(world: World) -> None:
        assert not world.disturbed

    assert explore(scenario, World, at_end=check, backends=[backend]).complete
    failed = failure(scenario, World, at_end=check, backends=[backend], cancels=2)
    assert len(failed.schedule.cancels) == len(failed.cancelled) == 2
    again = failure(scenario, World, at_end=check, only=str(failed.schedule))
    assert again.cancelled == failed.cancelled


# --- each moment ---


@both
def test_cancels_each_task_wherever_it_waits(backend: Backend) -> None:
    seen: set[str] = set()

    async def scenario(run: ExploredRun, _: object) -> None:
        async def walk() -> None:
            for place in ("first", "second", "third"):
                try:
                    await checkpoint()
                    await anyio.sleep(1)
                except anyio.get_cancelled_exc_class():
                    seen.add(place)
                    raise

        async with run.task_group() as group:
            group.start_soon(walk)

    assert explore(scenario, object, backends=[backend]).complete
    assert seen == {"first", "second", "third"}


def test_cancels_between_the_wake_up_and_the_one_who_was_woken() -> None:
    seen: list[str] = []

    async def scenario(run: ExploredRun, _: object) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            try:
                await future
            except asyncio.CancelledError:
                seen.append("woken" if future.done() and not future.cancelled() else "waiting")
                raise

        async with run.task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            future.set_result(None) if not future.done() else None
            await anyio.sleep(1)

    explore(scenario, object, backends=["asyncio"])
    assert {"woken", "waiting"} <= set(seen)


def test_on_trio_different_orders_are_explored_and_each_is_repeated_exactly() -> None:
    def orders(number: int) -> set[tuple[int, ...]]:
        seen: set[tuple[int, ...]] = set()

        async def scenario(run: ExploredRun, _: object) -> None:
            order: list[int] = []

            async def task(number: int) -> None:
                await checkpoint()
                order.append(number)

            async with run.task_group() as group:
                for one in range(4):
                    group.start_soon(task, one)
            seen.add(tuple(order))

        explore(scenario, object, backends=["trio"], orders=number, limit=number)
        return seen

    assert orders(1) == orders(1)
    assert len(orders(10)) > 3


@both
def test_runs_are_on_virtual_time_of_their_own(backend: Backend) -> None:
    async def scenario(run: ExploredRun, _: object) -> None:
        assert run.clock() == 0
        await anyio.sleep(3_600)
        assert run.clock() == anyio.current_time() == 3_600

    began = time.perf_counter()
    assert explore(scenario, object, backends=[backend]).complete
    assert time.perf_counter() - began < 5


@both
def test_what_a_scenario_raises_is_the_finding(backend: Backend) -> None:
    async def scenario(run: ExploredRun, _: object) -> None:
        async def fail() -> None:
            await checkpoint()
            raise ZeroDivisionError("by zero")

        async with run.task_group() as group:
            group.start_soon(fail)

    failed = failure(scenario, object, backends=[backend])
    assert failed.found == "the scenario raised ZeroDivisionError: by zero"


@both
def test_a_scenario_that_does_not_end_is_told(backend: Backend) -> None:
    async def scenario(_: ExploredRun, __: object) -> None:
        while True:  # noqa: ASYNC110 - that is the point
            await anyio.sleep(1)

    failed = failure(scenario, object, backends=[backend])
    assert failed.found.startswith("the scenario has not ended after 10,000 steps: task 0 (the scenario) at ")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm signal here")
@both
def test_a_step_that_does_not_end_is_interrupted_and_told(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilience.testing.explorer.LONGEST_STEP", 0.1)
    before = signal.getsignal(signal.SIGALRM)

    async def scenario(run: ExploredRun, _: object) -> None:
        async def spin() -> None:
            while True:
                try:
                    await no_real_await()
                except Exception:  # noqa: BLE001 - the interruption must get past this
                    continue

        async def no_real_await() -> None: ...

        async with run.task_group() as group:
            group.start_soon(spin)

    failed = failure(scenario, object, backends=[backend])
    assert failed.found.startswith("a step has not ended after 0.1 seconds of real time: it was at ")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@both
def test_the_check_at_the_end_may_wait(backend: Backend) -> None:
    ended: list[float] = []

    async def scenario(run: ExploredRun, world: list[float]) -> None:
        world.append(run.clock())
        await anyio.sleep(1)

    async def at_end(world: list[float]) -> None:
        await anyio.sleep(5)
        ended.append(anyio.current_time() - world[0])

    explored = explore(scenario, list[float], at_end=at_end, backends=[backend])
    assert len(ended) == explored.runs
    assert set(ended) <= {5.0, 6.0}


# --- replay, bounds ---


def test_a_failure_tells_how_to_see_it_again() -> None:
    failed = failure(borrowers, NaivePool, at_end=NaivePool.check_at_end, backends=["asyncio"], seed=3)
    assert f'explore(..., only="{failed.schedule}")' in str(failed)
    again = failure(borrowers, NaivePool, at_end=NaivePool.check_at_end, only=str(failed.schedule))
    assert (again.found, again.cancelled, again.schedule) == (failed.found, failed.cancelled, failed.schedule)
    assert again.runs == 1
    assert explore(borrowers, CarefulPool, only=str(failed.schedule)).runs == 1


@both
def test_the_same_seed_explores_the_same(backend: Backend) -> None:
    options: dict[str, Any] = {"backends": [backend], "limit": 12, "cancels": 2, "seed": 5}
    found = [explore(two_in_a_row, list[str], **options) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0].runs == 12


def test_limits_hold_and_are_told() -> None:
    explored = explore(two_in_a_row, list[str], limit=10)
    assert (explored.runs, explored.complete) == (10, False)
    assert explored.points > 10
    assert explore(two_in_a_row, list[str], limit=1).runs == 1
    assert explore(two_in_a_row, list[str], seconds=1e-9).runs == 0
    everything = explore(two_in_a_row, list[str])
    assert everything.complete
    assert everything.runs == everything.points + 3
    assert everything.steps > everything.runs


def test_the_moments_at_which_a_task_begins_to_wait_come_first() -> None:
    """With room for a few runs only, each place where a task waits has its turn."""
    places: set[int] = set()

    async def scenario(run: ExploredRun, _: object) -> None:
        async def idle() -> None:
            for _ in range(200):
                await checkpoint()

        async def walk() -> None:
            for number in range(3):
                try:
                    await anyio.Event().wait() if number == 2 else await checkpoint()
                except anyio.get_cancelled_exc_class():
                    places.add(number)
                    raise

        async with run.task_group() as group:
            group.start_soon(walk)
            with anyio.move_on_after(1):
                await idle()
            group.cancel_scope.cancel()

    explore(scenario, object, backends=["trio"], limit=250)
    assert places == {0, 1, 2}


@given(
    st.sampled_from(BACKENDS).flatmap(lambda backend: st.tuples(st.just(backend), st.sampled_from(WAYS[backend]))),
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 1000)), max_size=3),
)
def test_a_schedule_is_read_as_it_was_written(where: Any, order: int, cancels: list[tuple[int, int]]) -> None:
    backend, way = where
    schedule = Schedule(backend, way, order, tuple(cancels))
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    "text", ["", "asyncio", "asyncio/task/0/1", "trio/task/0/", "uvloop/task/0/", "asyncio/task/x/", None]
)
def test_what_is_no_schedule_is_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="a schedule must be written like asyncio/task/0/17:2, got"):
        Schedule.parse(text)


# --- misuse ---


async def nothing(_: ExploredRun, __: object) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": print}, "scenario must be an async function"),
        ({"world": None}, "world must be"),
        ({"invariant": 1}, "invariant must be"),
        ({"at_end": 1}, "at_end must be a function of the world, got 1"),
        ({"backends": ()}, "backends must be some of asyncio, trio"),
        ({"backends": "trio"}, "backends must be some of asyncio, trio"),
        ({"backends": ["uvloop"]}, "backends must be some of asyncio, trio"),
        ({"orders": 0}, "orders must be at least 1, got 0"),
        ({"cancels": 3}, "cancels must be at most 2, got 3"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"seconds": 0}, "seconds must be more than 0, got 0"),
        ({"only": "x"}, "a schedule must be written like"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"scenario": nothing, "world": object} | options
    with pytest.raises(ConfigurationError, match=message):
        explore(arguments.pop("scenario"), arguments.pop("world"), **arguments)


def test_too_many_tasks_are_refused() -> None:
    async def scenario(run: ExploredRun, _: object) -> None:
        async with run.task_group() as group:
            for _ in range(1_001):
                group.start_soon(checkpoint)

    failed = failure(scenario, object, backends=["trio"])
    assert "a scenario must start at most 1,000 tasks" in failed.found


def test_other_threads_are_refused() -> None:
    raised: list[str] = []

    def elsewhere() -> None:
        try:
            explore(nothing, object)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert raised == ["explore must be called in the main thread"]


def test_a_running_event_loop_is_refused() -> None:
    async def inside() -> None:
        explore(nothing, object)

    with pytest.raises(RuntimeError):
        asyncio.run(inside())
    with pytest.raises(RuntimeError):
        trio.run(inside)


def test_groups_are_like_any_other() -> None:
    """They end early if they are told to, and hand on what their tasks raise."""
    ends: list[str] = []

    async def scenario(run: ExploredRun, _: object) -> None:
        async def wait(name: str) -> None:
            try:
                await anyio.sleep(10)
            finally:
                ends.append(name)

        async with run.task_group() as group:
            group.start_soon(wait, "a")
            await anyio.sleep(1)
            group.cancel_scope.cancel()

    explored = explore(scenario, object)
    assert isinstance(explored, Exploration)
    assert ends


def test_trio_is_left_as_it_was() -> None:
    from trio._core import _run

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    explore(nothing, object, backends=["trio"])
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()) == before


def test_anyio_is_left_as_it_was() -> None:
    async def scope() -> anyio.CancelScope:
        return anyio.CancelScope()

    made = anyio.run(scope)
    before = hash(made)
    explore(nothing, object, backends=["asyncio"])
    assert hash(made) == before
    assert "__hash__" not in type(made).__dict__


def test_importing_the_test_kit_imports_no_event_loop_of_trio() -> None:
    script = "import sys, resilience.testing; print('trio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
