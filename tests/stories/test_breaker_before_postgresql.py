"""A circuit breaker before a real PostgreSQL that breaks its connections, and one where queries wait for a lock."""

from __future__ import annotations

from typing import Any

import anyio
import asyncpg
import pytest

from resilience import CircuitBreaker, CircuitOpenError, TimeWindow
from resilience.events import CircuitStateChanged, capture
from resilience.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: asyncpg knows no other."""
    return "asyncio"


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker(
        "postgresql",
        window=TimeWindow(2.0),
        minimum_calls=4,
        slow_call_duration=0.1,
        slow_call_rate_threshold=0.5,
        open_duration=0.1,
        max_open_duration=0.5,
        half_open_calls=2,
        ignore=asyncpg.PostgresSyntaxError,  # our own mistake, and no sign of a sick server
    )


async def query(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(statement)
    finally:
        connection.terminate()


async def test_a_restarted_postgresql_is_left_alone_and_found_again(
    postgres_server: PostgresServer, breaker: CircuitBreaker
) -> None:
    guarded = breaker(query)
    for _ in range(5):
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await guarded(postgres_server.url, "selekt 1")
    assert breaker.state == "closed"
    assert await guarded(postgres_server.url, "select 1") == 1

    with capture(CircuitStateChanged) as moves, anyio.fail_after(20):
        postgres_server.stop()
        refused = 0
        while not refused:
            try:
                await guarded(postgres_server.url, "select 1")
            except CircuitOpenError:
                refused += 1
            except OSError:
                pass
        postgres_server.start()
        while breaker.state != "closed":
            try:
                await guarded(postgres_server.url, "select 1")
            except CircuitOpenError as refusal:
                await anyio.sleep(refusal.retry_after or 0.01)
    assert [move.to_state for move in moves][-2:] == ["half_open", "closed"]
    assert moves[0].reason == "failure_rate"


async def test_queries_that_wait_for_a_lock_open_the_circuit_while_they_wait(
    postgres_server: PostgresServer, breaker: CircuitBreaker
) -> None:
    url = postgres_server.url
    await query(url, "create table accounts (id int)")
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("lock table accounts in access exclusive mode")
    answered = 0

    async def ask() -> None:
        nonlocal answered
        async with breaker.guard():
            await query(url, "select count(*) from accounts")
            answered += 1

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(ask)
        with anyio.fail_after(10):
            while breaker.would_allow():  # noqa: ASYNC110 - time alone changes the answer
                await anyio.sleep(0.02)
        with pytest.raises(CircuitOpenError):
            await ask()
        assert answered == 0  # they wait for the lock still, and would for ever
        await transaction.rollback()
    assert answered == 6
    await holder.close()
