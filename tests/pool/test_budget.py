"""Several pools share what a server allows, and none of them starves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from resilience.errors import ConfigurationError, PoolTimeoutError, PoolUsageError
from resilience.pool import Budget, ConnectionPool

pytestmark = pytest.mark.anyio

STEP = 0.1
"""Seconds that opening and closing take."""


class Server:
    """Counts what is open, from the first moment of connecting to the last of closing."""

    def __init__(self) -> None:
        self.open = self.most = 0
        self.refuses = False

    async def connect(self) -> object:
        self.open += 1
        self.most = max(self.most, self.open)
        opened = False
        try:
            await anyio.sleep(STEP)
            opened = not self.refuses
        finally:
            self.open -= not opened
        if not opened:
            raise ConnectionRefusedError
        return object()

    async def close(self, _: object) -> None:
        await anyio.sleep(STEP)
        self.open -= 1

    def pool(self, budget: Budget, **options: Any) -> ConnectionPool[object]:
        given: dict[str, Any] = {"debug": True, "grow": "demand", "acquire_timeout": 5.0, "max_connecting": 10}
        clock, rng = anyio.current_time, random.Random(5)
        return ConnectionPool(self.connect, close=self.close, budget=budget, clock=clock, rng=rng, **given | options)


@asynccontextmanager
async def two_pools(total: int, **options: Any) -> AsyncIterator[tuple[Server, Budget, Any, Any]]:
    server, budget = Server(), Budget(total)
    async with server.pool(budget, name="a", **options) as a, server.pool(budget, name="b", **options) as b:
        yield server, budget, a, b
    assert server.most <= total
    assert (server.open, budget.left) == (0, total)


async def borrow(pool: ConnectionPool[object], hold: float = 1.0) -> None:
    async with pool.acquire():
        await anyio.sleep(hold)


async def test_together_they_never_have_more() -> None:
    async with two_pools(5) as (server, budget, a, b), anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(borrow, a)
            group.start_soon(borrow, b)
        await anyio.sleep(2 * STEP)
        assert a.stats().size + b.stats().size == 5
        assert budget.left == 0
        assert repr(budget) == "<Budget 5 of 5 connections, 2 pools>"
    assert server.most == 5


async def test_idle_connections_of_one_go_to_callers_of_the_other() -> None:
    async with two_pools(3) as (_, _, a, b):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(borrow, a)
        assert a.stats().idle == 3
        began = anyio.current_time()
        async with b.acquire(), b.acquire():
            assert anyio.current_time() - began == pytest.approx(4 * STEP)  # each time close one, open one
        assert (a.stats().size, b.stats().size) == (1, 2)


async def test_what_a_pool_keeps_it_need_not_give_up() -> None:
    async with two_pools(2, min_size=1) as (_, _, a, b):
        await a.wait_ready(1)
        await b.wait_ready(1)
        async with b.acquire():
            with pytest.raises(PoolTimeoutError):
                await b.acquire(timeout=1)
        assert a.stats().size == 1


async def test_a_connection_that_comes_back_to_one_serves_who_waits_at_the_other() -> None:
    async with two_pools(1) as (_, _, a, b):
        async with anyio.create_task_group() as group:
            group.start_soon(borrow, a, 1.0)
            await anyio.sleep(0.5)
            async with b.acquire():
                assert anyio.current_time() >= 1.0
        assert (a.stats().size, b.stats().size) == (0, 1)


async def test_who_has_waited_longest_is_first() -> None:
    served: list[str] = []

    async def ask(pool: ConnectionPool[object], name: str) -> None:
        async with pool.acquire():
            served.append(name)
            await anyio.sleep(1)

    async with two_pools(1) as (_, _, a, b), anyio.create_task_group() as group:
        holder = await a.acquire()
        group.start_soon(ask, b, "first")
        await anyio.sleep(0.1)
        holder.discard()
        group.start_soon(ask, a, "second")
        await anyio.sleep(0.1)
        group.start_soon(ask, b, "third, of those who have one")
    assert served[0] == "first"
    assert set(served) == {"first", "second", "third, of those who have one"}


async def test_attempts_that_fail_give_back_what_they_took() -> None:
    async with two_pools(2) as (server, budget, a, b):
        server.refuses = True
        for pool in (a, b):
            with pytest.raises(PoolTimeoutError):
                await pool.acquire(timeout=0.5)
        server.refuses = False
        async with b.acquire(), b.acquire():
            assert budget.left == 0


async def test_a_pool_that_closes_leaves_all_to_the_others() -> None:
    server, budget = Server(), Budget(1)
    async with server.pool(budget) as a:
        async with server.pool(budget) as b, b.acquire():
            pass
        async with a.acquire(timeout=1):
            assert budget.left == 0
    assert server.most == 1


@pytest.mark.parametrize("connections", [0, -1, 1.5, True, None, "3"])
def test_a_budget_is_a_number_of_connections(connections: Any) -> None:
    with pytest.raises(ConfigurationError, match="connections"):
        Budget(connections)


def test_a_pool_takes_nothing_else_for_a_budget() -> None:
    with pytest.raises(ConfigurationError, match="budget must be a Budget, got 3"):
        Server().pool(3)  # type: ignore[arg-type]  # that is the point


async def test_pools_of_two_event_loops_have_no_common_budget() -> None:
    server, budget = Server(), Budget(1)
    async with server.pool(budget):

        def other_thread() -> None:
            async def enter() -> None:
                with pytest.raises(PoolUsageError, match="one event loop"):
                    await ConnectionPool(server.connect, budget=budget).__aenter__()

            anyio.run(enter)

        await anyio.to_thread.run_sync(other_thread)
