"""Many tasks that borrow, give up and are cancelled by chance, at a server that fails by chance: nothing is lost.

The seed is in the name of the test; `RESILIENCE_SEED=...` runs another one.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

from resilience.errors import RejectedError
from resilience.events import PoolFailed, capture
from resilience.pool import Budget, ConnectionPool
from resilience.testing import VirtualClock

TASKS = 150
UNIT = 0.1
"""Seconds: everything takes some of these."""
SEEDS = [int(seed) for seed in os.environ.get("RESILIENCE_SEED", "1,2,3,4,5,6").split(",")]


class Weather:
    """A server that is sometimes ill, and notices what is done to its connections."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.open: set[int] = set()
        self.used: set[int] = set()
        self.number = 0
        self.illness = self.chance.choice((0.0, 0.1, 0.5))

    async def takes_a_while(self) -> None:
        await anyio.sleep(UNIT * self.chance.choice((0, 0, 0.5, 1, 3)))
        if self.chance.random() < self.illness:
            raise OSError("ill")
        if self.chance.random() < self.illness / 4:
            await anyio.sleep(1_000)

    async def connect(self) -> list[int]:
        await self.takes_a_while()
        self.number += 1
        self.open.add(self.number)
        return [self.number]

    async def look(self, connection: list[int]) -> None:
        assert connection[0] in self.open, "looked at when it was closed"
        assert connection[0] not in self.used, "looked at while it was used"
        await self.takes_a_while()

    async def close(self, connection: list[int]) -> None:
        self.open.remove(connection[0])
        await self.takes_a_while()

    def pool(self, budget: Budget | None = None) -> ConnectionPool[list[int]]:
        pick = self.chance.choice
        config: dict[str, Any] = {
            "max_size": pick((1, 2, 5)),
            "acquire_timeout": UNIT * pick((2, 20)),
            "connect_timeout": UNIT * pick((2, 5)),
            "check_timeout": UNIT * pick((2, 5)),
            "reset_timeout": UNIT * pick((2, 5)),
            "close_timeout": UNIT * pick((2, 5)),
            "close_grace": UNIT * pick((0, 5)),
            "check_after_idle": pick((0, UNIT, None)),
            "max_lifetime": pick((None, 10 * UNIT)),
            "max_idle": pick((None, 3 * UNIT)),
            "keepalive": pick((None, 2 * UNIT)),
            "max_uses": pick((None, 3)),
            "max_waiting": pick((None, 50)),
            "reuse": pick(("lifo", "fifo")),
            "grow": pick(("cost", "demand")),
            "leak_after": pick((None, UNIT)),
            "prewarm": pick((None, 3)),
            "reconnect_base": UNIT / 10,
            "reconnect_cap": UNIT,
            "debug": True,
        }
        config["min_size"] = pick((0, 1, config["max_size"]))
        config["headroom"] = pick((0, config["max_size"] - 1))
        return ConnectionPool(
            self.connect,
            close=self.close,
            check=pick((None, self.look)),
            reset=pick((None, self.look)),
            clock=anyio.current_time,
            rng=random.Random(self.chance.random()),
            budget=budget,
            **config,
        )

    async def borrow(self, pool: ConnectionPool[list[int]]) -> None:
        """Borrow in one of the ways, within some time; what is refused is refused."""
        chance = self.chance
        patience = chance.choice((None, 0, UNIT, 5 * UNIT))
        with suppress(RejectedError, OSError, ZeroDivisionError), anyio.move_on_after(UNIT * chance.choice((1, 5, 50))):
            if chance.random() < 0.6:
                async with pool.acquire(patience, priority=chance.choice((0, 0, 1))) as connection:
                    await self.use(connection)
                    if chance.random() < 0.1:
                        raise ZeroDivisionError
            else:
                lease = await pool.acquire(patience)
                try:
                    await self.use(lease.connection)
                finally:
                    (lease.discard if chance.random() < 0.2 else lease.release)()

    async def use(self, connection: list[int]) -> None:
        number = connection[0]
        assert number in self.open, "lent when it was closed"
        assert number not in self.used, "lent twice"
        self.used.add(number)
        try:
            await anyio.sleep(UNIT * self.chance.choice((0, 0, 0.5, 1)))
        finally:
            self.used.remove(number)

    async def meddle(self, pool: ConnectionPool[list[int]]) -> None:
        """Do what people do to a pool that runs."""
        most = pool.config.max_size
        for _ in range(20):
            await anyio.sleep(UNIT * self.chance.choice((0, 0.5, 2)))
            match self.chance.randrange(5):
                case 0:
                    pool.drain()
                case 1:
                    high = self.chance.randint(1, most)
                    pool.resize(min_size=min(high, pool.config.min_size), max_size=high)
                case 2:
                    pool.warm(self.chance.randint(0, most))
                case 3:
                    with anyio.move_on_after(UNIT):
                        await pool.check_idle()
                case 4:
                    pool.resize(min_size=pool.config.min_size, max_size=most)
        pool.resize(min_size=pool.config.min_size, max_size=most)

    async def is_whole(self, pool: ConnectionPool[list[int]]) -> None:
        """Wait until nothing is under way, and borrow all there is at once."""
        self.illness = 0.0
        with anyio.fail_after(2_000):
            while (stats := pool.stats()).leased or stats.reserved or stats.connecting or stats.waiting:  # noqa: ASYNC110
                await anyio.sleep(UNIT)
            leases = [await pool.acquire(1_000, priority=1) for _ in range(pool.config.max_size)]
        assert len({lease.id for lease in leases}) == pool.config.max_size
        for lease in leases:
            lease.release()


async def storm(seed: int) -> None:
    weather = Weather(seed)
    budget = weather.chance.choice((None, Budget(100)))
    async with weather.pool(budget) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(weather.meddle, pool)
            for _ in range(TASKS):
                group.start_soon(weather.borrow, pool)
                await anyio.sleep(UNIT * weather.chance.choice((0, 0, 0, 0.5)))
        await weather.is_whole(pool)
    assert not weather.open, "a connection was never closed"
    assert budget is None or budget.left == 100


async def storm_of_cancelled_tasks(seed: int) -> None:
    """The same, with the tool of asyncio, which strikes once and between any two steps."""
    weather = Weather(seed)
    async with weather.pool() as pool:
        tasks: list[asyncio.Task[None]] = []
        for _ in range(TASKS):
            tasks.append(asyncio.create_task(weather.borrow(pool)))
            for _ in range(weather.chance.randrange(4)):
                await asyncio.sleep(0)
            weather.chance.choice(tasks).cancel()
            await asyncio.sleep(UNIT * weather.chance.choice((0, 0, 0, 0.5)))
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError)
        await weather.is_whole(pool)
    assert not weather.open, "a connection was never closed"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_storm_of_impatient_callers_loses_nothing(seed: int, backend: Any) -> None:
    with capture(PoolFailed) as bugs:
        VirtualClock().run(partial(storm, seed), backend=backend)
    assert not bugs


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_of_cancelled_tasks_loses_nothing(seed: int) -> None:
    with capture(PoolFailed) as bugs:
        VirtualClock().run(partial(storm_of_cancelled_tasks, seed))
    assert not bugs
