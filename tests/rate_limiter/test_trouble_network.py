"""Slow, jittering and half-broken ways to Redis that are no outage, and names that nobody resolves."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import redis

from resilience.events import FallbackEntered
from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.rate_limiter.lines import SyncLine
from resilience.testing.servers import RedisServer, TcpProxy
from tests.rate_limiter.trouble import (
    LATE,
    PATIENT,
    SLOW_QUOTA,
    WAYS,
    Caller,
    clients_of,
    close_and_check,
    events_of,
    run,
    run_again,
    scripts_run,
    until_redis,
)


@pytest.mark.parametrize("way", WAYS)
def test_a_slow_way_is_no_outage(way: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]) -> None:
    """Round trips of 1 ms, of 50 ms and with jitter: nothing but time is lost, from the first call on."""

    async def go(latency: float, jitter: float) -> None:
        proxy = tcp_proxy(any_redis.port, latency=latency, jitter=jitter, rng=random.Random(1))
        caller = Caller(way)
        name = f"slow {latency}"
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix=f"{name}-{time.monotonic_ns()}".replace(" ", "-"))
        limiter = RateLimiter(SLOW_QUOTA, name=name, store=store)
        with events_of(name) as events:
            answers = []
            for _ in range(3):
                answers += await caller.ask_at_once(limiter, 20, "try_acquire", "key")
        assert {answer.decision.source for answer in answers} == {"redis"}
        assert not [event for event in events if isinstance(event, FallbackEntered)]
        waits = [answer.waited for answer in answers[20:]]
        assert statistics.median(waits) < 4 * (latency + jitter) + 0.05
        assert max(waits) < store.budget + LATE
        assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 940
        await store.aclose()

    async def test() -> None:
        for latency, jitter in ((0.0005, 0.0), (0.025, 0.0), (0.005, 0.02)):
            await go(latency, jitter)

    run_again(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_an_idle_connection_that_was_closed_is_no_outage(
    way: str, redis_server: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """By the server or by something on the way, in an orderly manner or by a reset; also if its number is used anew."""
    proxy = tcp_proxy(redis_server.port)

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="idle", budget=PATIENT)
        limiter = RateLimiter(SLOW_QUOTA, name="idle", store=store)
        with events_of("idle") as events:
            for close in (reset, kill_clients, reset, kill_clients):
                assert (await caller.ask(limiter, "try_acquire", "key")).decision.source == "redis"
                close(redis_server, proxy)
                await anyio.sleep(0.02)  # an event loop hears of it
                opened = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(50)]
                answer = await caller.ask(limiter, "try_acquire", "key")
                for one in opened:
                    one.close()
                assert answer.decision.source == "redis"
                assert answer.decision.certain
        assert not [event for event in events if isinstance(event, FallbackEntered)]
        assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 992
        await close_and_check(store, way, redis_server)

    run(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_was_closed_this_moment_is_no_outage(way: str, redis_server: RedisServer) -> None:
    """Before an event loop could hear of it."""

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(redis_server.url, prefix="moment", budget=PATIENT)
        limiter = RateLimiter(SLOW_QUOTA, name="moment", store=store)
        for _ in range(3):
            for _ in range(2):
                decision = (await caller.ask(limiter, "try_acquire", "key")).decision
                assert (decision.source, decision.certain) == ("redis", True)
            redis_server.command("CLIENT", "KILL", "TYPE", "normal")
        await close_and_check(store, way, redis_server)

    run(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_nobody_pays_for_a_probe(way: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]) -> None:
    """A server that is silent for long is asked in the background, while callers are answered at once."""
    proxy = tcp_proxy(any_redis.port)

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="probes", budget=0.5)
        limiter = RateLimiter(SLOW_QUOTA, name="probes", store=store)
        await caller.ask(limiter, "try_acquire", "key")
        proxy.black_hole()
        await caller.ask(limiter, "try_acquire", "key")
        accepted = proxy.accepted
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            answer = await caller.ask(limiter, "try_acquire", "key")
            assert answer.decision.source == "fallback"
            assert answer.waited < 0.4
            await anyio.sleep(0.01)
        assert proxy.accepted > accepted  # it was probed
        await store.aclose()

    run(way, test)


def kill_clients(server: RedisServer, proxy: TcpProxy) -> None:
    server.command("CLIENT", "KILL", "TYPE", "normal")


def reset(server: RedisServer, proxy: TcpProxy) -> None:
    proxy.reset_all()


@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_the_server_has_forgotten_is_sent_again(way: str, redis_server: RedisServer) -> None:
    """Between calls and under load: no call fails, and each is charged once."""

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(redis_server.url, prefix="flush", budget=PATIENT)
        limiter = RateLimiter(SLOW_QUOTA, name="flush", store=store)
        done = anyio.Event()

        async def flush() -> None:
            while not done.is_set():
                redis_server.command("SCRIPT", "FLUSH")
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            for _ in range(20):
                answers = await caller.ask_at_once(limiter, 10, "try_acquire", "key")
                assert {answer.decision.source for answer in answers} == {"redis"}
            done.set()
        assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 800
        redis_server.command("FLUSHALL")  # no outage, and no error: what was used is forgotten, and the limit holds
        answers = await caller.ask_at_once(limiter, 1100, "try_acquire", "key")
        assert sum(answer.decision.allowed for answer in answers) == 1000
        assert {answer.decision.source for answer in answers} <= {"redis", "blocked"}
        await close_and_check(store, way, redis_server)

    run(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_400_at_once_cost_a_few_trips(way: str, redis_server: RedisServer) -> None:
    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(redis_server.url, prefix="storm", budget=PATIENT)
        limiter = RateLimiter(Quota(100, 86_400.0), name="storm", store=store)
        await caller.ask(limiter, "peek", "another")  # connected, and the script is known
        before = scripts_run(redis_server)
        answers = await caller.ask_at_once(limiter, 400, "try_acquire", "key")
        assert sum(answer.decision.allowed for answer in answers) == 100
        assert {answer.decision.source for answer in answers} <= {"redis", "blocked"}
        if way != "threads":  # 400 threads take longer to start than a trip takes
            assert scripts_run(redis_server) - before <= 4
        await close_and_check(store, way, redis_server)

    run(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_denied_keys_are_answered_without_trips(way: str, any_redis: RedisServer) -> None:
    """Until the limit has room again, or somebody resets the key here."""

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(any_redis.url, prefix="denied", budget=PATIENT)
        limiter = RateLimiter(Quota(5, 60.0), name="denied", store=store)
        await caller.ask(limiter, "peek", "another")
        before = scripts_run(any_redis)
        decisions = [(await caller.ask(limiter, "try_acquire", "key")).decision for _ in range(1000)]
        assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 995
        assert decisions[5].source in {"redis", "blocked"}
        assert {decision.source for decision in decisions[6:]} == {"blocked"}
        assert all(decision.retry_after is not None and 0 < decision.retry_after <= 12 for decision in decisions[5:])
        assert scripts_run(any_redis) - before <= 6
        await caller.ask(limiter, "reset", "key")
        assert (await caller.ask(limiter, "try_acquire", "key")).decision.remaining == 4
        await close_and_check(store, way, any_redis)

    run(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_a_name_that_nobody_resolves_holds_no_caller(
    way: str, any_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, asked, answered = socket.getaddrinfo, threading.Event(), threading.Event()

    def hang(host: Any, *args: Any, **options: Any) -> Any:
        if host == "redis.test":
            asked.set()
            answered.wait(10)
            host = "127.0.0.1"
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(f"redis://redis.test:{any_redis.port}", prefix="name")
        limiter = RateLimiter(SLOW_QUOTA, name="name", store=store)
        with events_of("name") as events:
            answers = await caller.ask_at_once(limiter, 10, "try_acquire", "key")
            assert asked.is_set()
            assert max(answer.waited for answer in answers) < store.budget + LATE
            answers += await caller.ask_at_once(limiter, 10, "try_acquire", "key")
            assert {answer.decision.source for answer in answers} == {"fallback"}
            assert sorted(answer.waited for answer in answers)[9] < 0.05
            answered.set()
            answers += await until_redis(caller, limiter)
        assert sum(isinstance(event, FallbackEntered) for event in events) == 1
        certain = sum(answer.decision.certain for answer in answers)
        standing = (await caller.ask(limiter, "peek", "key")).decision
        assert certain <= 1000 - standing.remaining <= len(answers)
        await close_and_check(store, way, any_redis)

    try:
        run(way, test)
    finally:
        answered.set()


def test_nothing_is_asked_when_nobody_waits_any_more(any_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was resolved too late: the worker thread connects, and leaves it at that."""
    resolve = socket.getaddrinfo

    def dawdle(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", dawdle)
    line = SyncLine(RedisStore(any_redis.url, budget=PATIENT).target)
    before = scripts_run(any_redis)
    with pytest.raises(redis.TimeoutError):
        line.call([], [""], 0.03)
    assert not line.sent
    assert scripts_run(any_redis) == before


def test_a_loop_that_was_blocked_is_no_outage(any_redis: RedisServer) -> None:
    """The answer was there all the time; it was the program that had no time to read it."""

    async def test() -> None:
        store = RedisStore(any_redis.url, prefix="blocked", budget=0.1)
        limiter = RateLimiter(SLOW_QUOTA, name="blocked", store=store)
        await limiter.try_acquire("key")
        asking = asyncio.create_task(limiter.try_acquire("key"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - that is the point
        assert (await asking).source == "redis"
        assert clients_of(any_redis)
        await store.aclose()

    asyncio.run(test())
