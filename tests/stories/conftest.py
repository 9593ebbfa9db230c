"""Callers without end, for stories of a pool under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from resilience.pool import ConnectionPool

SLACK = 0.7  # seconds: the machines of tests are busy
DEADLINE = 0.6  # seconds for a caller


class Load:
    """Callers who borrow and use a connection again and again, each time within `DEADLINE`.

    Attributes:
        done: how often that went well.
        failed: how often not, by the type of the error.
        late: seconds of those who had to wait for longer than they wanted to.
    """

    def __init__(self, pool: ConnectionPool[Any], use: Callable[[Any], Awaitable[object]]) -> None:
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.late: list[float] = []
        self._pool = pool
        self._use = use

    async def call_for_ever(self) -> None:
        while True:
            began = anyio.current_time()
            try:
                with anyio.fail_after(DEADLINE):
                    async with self._pool.acquire() as connection:
                        await self._use(connection)
                self.done += 1
            except Exception as error:  # noqa: BLE001 - each driver has its own
                self.failed[type(error).__name__] += 1
                await anyio.sleep(0.005)
            took = anyio.current_time() - began
            if took > DEADLINE + SLACK:
                self.late.append(took)

    async def serves(self, calls: int = 20, within: float = 5.0) -> None:
        """Wait until so many more calls went well."""
        wanted = self.done + calls
        with anyio.fail_after(within):
            while self.done < wanted:  # noqa: ASYNC110 - the callers are busy
                await anyio.sleep(0.002)

    async def fails(self, calls: int = 5, within: float = 5.0) -> None:
        """Wait until so many more calls failed."""
        wanted = self.failed.total() + calls
        with anyio.fail_after(within):
            while self.failed.total() < wanted:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.002)


@pytest.fixture
def under_load() -> Callable[..., Any]:
    """Let callers use a pool: `async with under_load(pool, use, callers=12) as load`; all had their deadlines kept."""

    @asynccontextmanager
    async def under_load(
        pool: ConnectionPool[Any], use: Callable[[Any], Awaitable[object]], callers: int = 12
    ) -> AsyncIterator[Load]:
        load = Load(pool, use)
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(load.call_for_ever)
            yield load
            group.cancel_scope.cancel()
        assert load.late == []

    return under_load


@pytest.fixture
def is_whole_within() -> Callable[..., Any]:
    """Wait until all connections of a pool can be had at once, each with an identity of its own at the server."""

    async def is_whole_within(
        seconds: float, pool: ConnectionPool[Any], identify: Callable[[Any], Awaitable[object]]
    ) -> set[object]:
        with anyio.fail_after(seconds + SLACK):
            while True:
                try:
                    return await _identities(pool, identify)
                except Exception:  # noqa: BLE001 - each driver has its own; it is tried until the time is over
                    await anyio.sleep(0.01)

    return is_whole_within


async def _identities(pool: ConnectionPool[Any], identify: Callable[[Any], Awaitable[object]]) -> set[object]:
    identities: list[object] = []
    met = anyio.Event()

    async def borrow() -> None:
        async with pool.acquire() as connection:
            identities.append(await identify(connection))
            if len(identities) == pool.config.max_size:
                met.set()
            await met.wait()

    async with anyio.create_task_group() as group:
        for _ in range(pool.config.max_size):
            group.start_soon(borrow)
    assert len(set(identities)) == pool.config.max_size
    return set(identities)
