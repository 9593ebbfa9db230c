"""The pool loses nothing, whoever is cancelled at whichever moment: each story, each task, each turn of the loop."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio

from resilience import PoolClosedError, PoolTimeoutError
from resilience.pool import ConnectionPool
from resilience.testing import ExploredRun, explore

HOLD = 1.0
STEP = 0.1
"""Seconds of whatever a driver does."""


class Connection:
    def __init__(self) -> None:
        self.open = True
        self.user: object = None


class World:
    """A server that notices what is done to its connections, and a pool of them."""

    def __init__(self, *, checks: bool = False, resets: bool = False, **options: Any) -> None:
        self.opened: list[Connection] = []
        self.connects = 0
        self.failing: set[int] = set()
        """Numbers of attempts to connect that fail."""
        self.sick: set[int] = set()
        """Numbers of checks and resets that fail."""
        self.looks = 0
        self.pool: ConnectionPool[Connection] = ConnectionPool(
            self.connect,
            close=self.close,
            check=self.look if checks else None,
            reset=self.look if resets else None,
            clock=anyio.current_time,
            rng=random.Random(7),
            debug=True,
            **options,
        )

    async def connect(self) -> Connection:
        self.connects += 1
        number = self.connects
        await anyio.sleep(STEP)
        if number in self.failing:
            raise ConnectionRefusedError(number)
        connection = Connection()
        self.opened.append(connection)
        return connection

    async def close(self, connection: Connection) -> None:
        assert connection.open, "closed twice"
        await anyio.sleep(STEP)
        connection.open = False

    async def look(self, connection: Connection) -> None:
        """Check or reset."""
        assert connection.open, "looked at when it was closed"
        assert connection.user is None, "looked at while it was used"
        self.looks += 1
        number = self.looks
        await anyio.sleep(STEP)
        if number in self.sick:
            raise ConnectionResetError(number)

    async def use(self, connection: Connection) -> None:
        assert connection.open, "lent when it was closed"
        assert connection.user is None, "lent twice"
        connection.user = self
        try:
            await anyio.sleep(HOLD)
        finally:
            connection.user = None

    def check(self) -> None:
        self.pool._core.check()

    def check_at_end(self) -> None:
        assert not [one for one in self.opened if one.open], "a connection was never closed"

    async def check_capacity(self) -> None:
        """Once nobody is busy, all of the pool can be borrowed again, and nothing is left over."""
        with anyio.fail_after(10):
            while (stats := self.pool.stats()).idle < stats.size or stats.connecting or stats.waiting:  # noqa: ASYNC110
                await anyio.sleep(STEP / 4)
        assert (stats.leased, stats.reserved) == (0, 0)
        leases = [await self.pool.acquire(timeout=10) for _ in range(stats.max_size)]
        for lease in leases:
            lease.release()


async def borrow(world: World, *, patience: float | None = None) -> None:
    async with world.pool.acquire(timeout=patience) as connection:
        await world.use(connection)


async def lease(world: World, *, discard: bool = False) -> None:
    lease = await world.pool.acquire()
    try:
        await world.use(lease.connection)
    finally:
        (lease.discard if discard else lease.release)()


Task = Callable[[World], Awaitable[object]]


def story(*tasks: Any, before: Task | None = None) -> Callable[[ExploredRun, World], Any]:
    """Run the tasks together in an open pool, then see that it is whole."""

    async def scenario(run: ExploredRun, world: World) -> None:
        async with world.pool:
            if before is not None:
                await before(world)
            async with run.task_group() as group:
                for number, task in enumerate(tasks):
                    group.start_soon(task, world, name=f"{number}")
            await world.check_capacity()

    return scenario


def explored(scenario: Callable[[ExploredRun, World], Any], make: Callable[[], World], **options: Any) -> None:
    options = {"limit": 450, "seconds": 20.0, "orders": 2} | options
    found = explore(scenario, make, invariant=World.check, at_end=World.check_at_end, **options)
    assert found.runs > 40


def test_hand_off_loses_nothing() -> None:
    explored(story(borrow, borrow, borrow), lambda: World(max_size=1))


def test_hand_off_loses_nothing_when_two_are_cancelled() -> None:
    explored(story(borrow, borrow, borrow), lambda: World(max_size=1), cancels=2, limit=700)


async def impatient(world: World) -> None:
    with anyio.move_on_after(STEP):
        await borrow(world)


async def hurried(world: World) -> None:
    """Give up, or be served, in the very moment in which the connection comes back."""
    with suppress(PoolTimeoutError):
        await borrow(world, patience=HOLD)


def test_timeouts_in_the_moment_of_the_hand_off_lose_nothing() -> None:
    async def cut(world: World) -> None:
        with anyio.move_on_after(HOLD):
            await borrow(world)

    explored(story(borrow, hurried, cut, borrow), lambda: World(max_size=1, min_size=1), limit=600)


def test_connecting_outlives_those_who_asked_for_it() -> None:
    explored(story(impatient, borrow, impatient, borrow), lambda: World(max_size=2))


def test_failing_connects_lose_no_place_and_no_caller() -> None:
    def make() -> World:
        world = World(max_size=2, min_size=1, reconnect_base=STEP, reconnect_cap=1.0)
        world.failing = {1, 2, 4}
        return world

    explored(story(borrow, borrow, borrow), make)


def test_checks_lose_nothing() -> None:
    def make() -> World:
        world = World(checks=True, max_size=2, min_size=2, check_after_idle=0)
        world.sick = {2}
        return world

    async def ready(world: World) -> None:
        await world.pool.wait_ready(10)

    explored(story(borrow, borrow, borrow, before=ready), make)


def test_checks_of_idle_connections_lose_nothing() -> None:
    def make() -> World:
        world = World(checks=True, max_size=2, min_size=2, keepalive=0.5, max_idle=1.0, max_lifetime=2.0)
        world.sick = {1, 4}
        return world

    async def check_idle(world: World) -> None:
        await world.pool.check_idle()

    async def ready(world: World) -> None:
        await world.pool.wait_ready(10)
        await anyio.sleep(STEP)

    explored(story(check_idle, borrow, check_idle, before=ready), make)


def test_resets_lose_nothing() -> None:
    def make() -> World:
        world = World(resets=True, max_size=1)
        world.sick = {2}
        return world

    explored(story(borrow, borrow, borrow), make)


def test_releases_and_discards_lose_nothing() -> None:
    async def discard(world: World) -> None:
        await lease(world, discard=True)

    async def fail(world: World) -> None:
        with suppress(ZeroDivisionError):
            async with world.pool.acquire() as connection:
                await world.use(connection)
                raise ZeroDivisionError

    explored(story(lease, discard, fail, lease), lambda: World(max_size=1), limit=600)


async def closing(run: ExploredRun, world: World) -> None:
    """Close while one is served, one waits, and one has its connection checked or opened."""

    async def borrow_or_not(hold: float) -> None:
        with suppress(PoolClosedError):
            async with world.pool.acquire() as connection:
                assert connection.open
                await anyio.sleep(hold)

    async with world.pool, run.task_group() as group:
        for number, hold in enumerate((0.5, 5.0, 0.5)):
            group.start_soon(borrow_or_not, hold, name=f"borrower {number}")
        await anyio.sleep(1.5 * STEP)
        group.start_soon(world.pool.close, 1.0, name="close")
        group.start_soon(world.pool.close, name="close again")


def test_closing_closes_everything() -> None:
    explored(closing, lambda: World(max_size=2), limit=800)


def test_closing_while_resetting_closes_everything() -> None:
    explored(closing, lambda: World(resets=True, max_size=2), limit=800)


def test_resizing_loses_nothing() -> None:
    async def resize(world: World) -> None:
        for size in (1, 3, 2):
            world.pool.resize(max_size=size, min_size=min(size, 2))
            await anyio.sleep(0.7)

    explored(story(borrow, resize, borrow, borrow, borrow), lambda: World(max_size=3), limit=700)


def test_draining_loses_nothing() -> None:
    async def drain(world: World) -> None:
        await anyio.sleep(STEP)
        world.pool.drain()

    explored(story(borrow, drain, borrow, borrow), lambda: World(max_size=2, min_size=1))


def test_priorities_and_avoided_connections_lose_nothing() -> None:
    async def again_elsewhere(world: World) -> None:
        first = await world.pool.acquire()
        first.release()
        async with world.pool.acquire(avoid=first) as connection:
            await world.use(connection)

    async def urgent(world: World) -> None:
        async with world.pool.acquire(priority=1) as connection:
            await world.use(connection)

    explored(story(again_elsewhere, borrow, urgent, again_elsewhere), lambda: World(max_size=1), limit=600)


def test_waiting_until_ready_loses_nothing() -> None:
    async def ready(world: World) -> None:
        await world.pool.wait_ready(10)

    explored(story(ready, ready, borrow), lambda: World(max_size=2, min_size=2))


def test_a_pool_that_nobody_uses_keeps_quiet() -> None:
    """It replaces what is too old, and does nothing else: some steps an hour, not a busy loop."""

    async def wait(_: ExploredRun, world: World) -> None:
        async with world.pool:
            await anyio.sleep(10 * 3_600)
            assert world.connects >= 10

    explore(wait, lambda: World(max_size=2, min_size=1), limit=1, backends=["asyncio"])
