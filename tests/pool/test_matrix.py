"""Whatever each function of the user's does, and whatever else the others do: callers leave in time, and all is whole.

The first connect, check, reset, close and body each go well, fail, are slow, or never end: 4^5 worlds. After them all
goes well again, and all of the pool must be there.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import anyio
import pytest

from resilience.events import PoolFailed, capture
from resilience.pool import ConnectionPool
from resilience.testing import VirtualClock

MODES = ("ok", "error", "slow", "never")
LIMIT = 1.0
"""Seconds that each step may take."""
SLOW = 0.75 * LIMIT
PATIENCE = 5 * LIMIT


class World:
    """A user whose functions do, once each, what they are told to."""

    def __init__(self, modes: dict[str, str]) -> None:
        self.modes = modes
        self.opened: list[Connection] = []
        self.pool: ConnectionPool[Connection] = ConnectionPool(
            self.connect,
            close=self.close,
            check=self.check,
            reset=self.reset,
            clock=anyio.current_time,
            rng=random.Random(3),
            max_size=2,
            min_size=1,
            acquire_timeout=PATIENCE,
            connect_timeout=LIMIT,
            check_timeout=LIMIT,
            reset_timeout=LIMIT,
            close_timeout=LIMIT,
            check_after_idle=0,
            close_grace=LIMIT,
            debug=True,
        )

    async def step(self, name: str) -> None:
        mode = self.modes.pop(name, "ok")
        if mode == "error":
            raise OSError(name)
        await anyio.sleep({"slow": SLOW, "never": 1e6}.get(mode, 0.0))

    async def connect(self) -> Connection:
        await self.step("connect")
        connection = Connection()
        self.opened.append(connection)
        return connection

    async def check(self, connection: Connection) -> None:
        connection.touch()
        await self.step("check")
        connection.touch()

    async def reset(self, connection: Connection) -> None:
        connection.touch()
        await self.step("reset")
        connection.touch()

    async def close(self, connection: Connection) -> None:
        connection.touch()
        connection.is_open = False
        await self.step("close")

    async def borrow(self) -> None:
        """Use a connection, for `LIMIT` seconds at most."""
        began = anyio.current_time()
        with anyio.move_on_after(2 * PATIENCE):
            try:
                async with self.pool.acquire() as connection:
                    assert anyio.current_time() - began <= PATIENCE
                    connection.touch()
                    connection.used = True
                    try:
                        with anyio.fail_after(LIMIT):
                            await self.step("body")
                    finally:
                        connection.used = False
            except (OSError, TimeoutError):
                pass
            assert anyio.current_time() - began <= PATIENCE + LIMIT

    async def live(self) -> None:
        async with self.pool as pool:
            await self.borrow()
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(self.borrow)
            assert not set(self.modes) - {"close"}, "not everything was tried"
            with anyio.fail_after(PATIENCE):
                async with pool.acquire() as one, pool.acquire() as other:
                    one.touch()
                    other.touch()
                    assert one is not other
            stats = pool.stats()
            assert (stats.leased, stats.waiting, stats.size) == (0, 0, 2)
        assert not any(one.is_open for one in self.opened)


class Connection:
    is_open = True
    used = False

    def touch(self) -> None:
        assert self.is_open, "it was closed"
        assert not self.used, "somebody uses it"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("connect", MODES)
@pytest.mark.parametrize("check", MODES)
def test_all_is_whole_whatever_happens(backend: Any, connect: str, check: str) -> None:
    clock = VirtualClock()
    for reset, close, body in product(MODES, repeat=3):
        world = World({"connect": connect, "check": check, "reset": reset, "close": close, "body": body})
        with capture(PoolFailed) as bugs:
            clock.run(world.live, backend=backend)
        assert not bugs
