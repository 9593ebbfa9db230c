"""A circuit breaker before a real Redis that is killed, comes back, and freezes, in real time."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from resilience import CircuitBreaker, CircuitOpenError, TimeWindow
from resilience.events import CircuitStateChanged, capture
from resilience.testing.servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: redis-py's async client knows no other."""
    return "asyncio"


def make_breaker() -> CircuitBreaker:
    return CircuitBreaker(
        "redis",
        window=TimeWindow(2.0),
        minimum_calls=5,
        slow_call_duration=0.1,
        slow_call_rate_threshold=0.5,
        open_duration=0.1,
        max_open_duration=0.5,
        half_open_calls=2,
    )


def make_client(port: int) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(port=port, retry=Retry(NoBackoff(), 0), max_connections=100)


async def call_until(state: str, breaker: CircuitBreaker, client: Any) -> int:
    """Make calls, obeying refusals, until the circuit is in `state`; give the number of refusals."""
    refused = 0
    with anyio.fail_after(10):
        while breaker.state != state:
            try:
                async with breaker.guard():
                    await client.get("key")
            except redis.ConnectionError:
                pass
            except CircuitOpenError as refusal:
                refused += 1
                await anyio.sleep(refusal.retry_after or 0.01)
    return refused


async def test_a_killed_redis_opens_the_circuit_and_a_new_one_closes_it(redis_server: RedisServer) -> None:
    breaker = make_breaker()
    async with make_client(redis_server.port) as client:
        for number in range(20):
            async with breaker.guard():
                await client.set("key", number)
        with capture(CircuitStateChanged) as moves:
            redis_server.kill()
            await breaker_opens(breaker, client)
            redis_server.start()
            await call_until("closed", breaker, client)
            async with breaker.guard():
                assert await client.get("key") is None  # a new server, and it answers
    states = [move.to_state for move in moves]
    assert states[0] == "open"
    assert states[-2:] == ["half_open", "closed"]
    assert moves[0].reason == "failure_rate"


async def breaker_opens(breaker: CircuitBreaker, client: Any) -> None:
    for _ in range(100):
        if breaker.state == "open":
            break
        with pytest.raises(redis.ConnectionError):
            async with breaker.guard():
                await client.get("key")
    began = time.monotonic()
    with pytest.raises(CircuitOpenError) as refused:
        async with breaker.guard():
            await client.get("key")
    assert time.monotonic() - began < 0.05
    assert refused.value.last_error_type == "redis.exceptions.ConnectionError"


async def test_a_frozen_redis_opens_the_circuit_while_the_calls_still_hang(redis_server: RedisServer) -> None:
    breaker = make_breaker()
    hanging = 0

    async def hang() -> None:
        nonlocal hanging
        async with breaker.guard():
            hanging += 1
            await client.get("key")
            hanging -= 1

    async with make_client(redis_server.port) as client:
        await client.ping()
        redis_server.freeze()
        try:
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(hang)
                with anyio.fail_after(5):
                    while True:
                        await anyio.sleep(0.02)
                        if not breaker.would_allow():
                            break
                with pytest.raises(CircuitOpenError):
                    breaker.acquire()
                assert hanging == 8  # no timeout was needed: they all still wait
                redis_server.thaw()
        finally:
            redis_server.thaw()
        snapshot = breaker.snapshot()
        assert (snapshot.in_flight, snapshot.late) == (0, 8)
        await call_until("closed", breaker, client)
