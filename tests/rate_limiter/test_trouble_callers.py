"""Callers that leave in the middle of a trip, wait for their turn, or share one key from two processes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import to_thread

from resilience import RateLimitedError
from resilience.rate_limiter import Decision, Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisServer, TcpProxy
from tests.rate_limiter.trouble import (
    LATE,
    PATIENT,
    SLOW_QUOTA,
    WAYS,
    Caller,
    close_and_check,
    run,
    run_again,
    until_redis,
)

TASKS = ("asyncio", "trio")


async def settled(limiter: RateLimiter, expected: int, key: str = "key") -> int:
    """Give what is used of a limit, when refunds had time to arrive."""
    deadline = time.monotonic() + 1.0
    while True:
        used = limiter.quotas[0].capacity - (await limiter.peek(key)).remaining
        if used == expected or time.monotonic() > deadline:
            return used
        await anyio.sleep(0.01)


@pytest.mark.parametrize("operation", ["try_acquire", "at_most", "acquire"])
@pytest.mark.parametrize("way", TASKS)
def test_who_leaves_is_not_charged(
    way: str, operation: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """Callers are cancelled at random before, in and after their trip; charged is who got an answer."""
    proxy = tcp_proxy(any_redis.port, latency=0.001, jitter=0.002)
    rng = random.Random(7)

    async def test() -> None:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="storm", budget=2.0)
        limiter = RateLimiter(Quota(10_000, 86_400.0), name="storm", store=store)
        granted = 0

        async def call(patience: float) -> None:
            nonlocal granted
            with anyio.move_on_after(patience):
                decision: Decision = await getattr(limiter, operation)("key", 2)
                granted += decision.granted
                assert decision.source == "redis"

        async with anyio.create_task_group() as group:
            for _ in range(400):
                group.start_soon(call, rng.uniform(0, 0.02))
                await anyio.sleep(0.0002)
        assert 0 < granted < 800  # some got theirs and some left, however fast the machine is
        assert await settled(limiter, granted) == granted
        await close_and_check(store, way, any_redis)

    run(way, test)


@pytest.mark.parametrize("operation", ["try_acquire", "at_most", "acquire"])
def test_who_is_cancelled_with_the_answer_at_hand_is_not_charged(operation: str, any_redis: RedisServer) -> None:
    """As asyncio does it: `Task.cancel` also hits a task whose future has its result already."""

    async def test() -> None:
        store = RedisStore(any_redis.url, prefix="hand", budget=PATIENT)
        limiter = RateLimiter(Quota(100, 86_400.0), name="hand", store=store)
        settle = store.settle

        def settle_and_cancel(*args: Any, **options: Any) -> None:
            settle(*args, **options)
            task.cancel()

        store.settle = settle_and_cancel  # type: ignore[method-assign]
        task = asyncio.create_task(getattr(limiter, operation)("key", 3))
        with pytest.raises(asyncio.CancelledError):
            await task
        store.settle = settle  # type: ignore[method-assign]
        assert await settled(limiter, 0) == 0
        await store.aclose()

    run("asyncio", test)


@pytest.mark.parametrize("way", WAYS)
def test_waiters_of_two_processes_share_one_line(way: str, any_redis: RedisServer) -> None:
    """Each has a slot of its own; together they get what one limiter would give, and nobody polls."""

    async def test() -> None:
        caller = Caller(way)
        prefix = f"line-{time.monotonic_ns()}"
        stores = [RedisStore(any_redis.url, prefix=prefix, budget=PATIENT) for _ in range(2)]
        limiters = [RateLimiter(Quota(20, 1.0, burst=2), name="line", store=store) for store in stores]
        for limiter in limiters:  # connected: who comes first shall be heard first
            await caller.ask(limiter, "peek", "key")
        began = time.monotonic()
        passed: list[tuple[float, int]] = []

        async def wait(number: int) -> None:
            await caller.ask(limiters[number % 2], "acquire", "key")
            passed.append((time.monotonic() - began, number))

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(wait, number)
                await anyio.sleep(0.01)
        for parity in (0, 1):  # who comes first is heard first; between processes, whose call arrives first
            assert [number for _, number in passed if number % 2 == parity] == list(range(parity, 12, 2))
        times = [at for at, _ in passed]
        for index, at in enumerate(times):  # nobody before the slot, and not much after it
            assert max(0.0, (index - 1) * 0.05 - 0.001) <= at < max(0.0, (index - 1) * 0.05) + 0.05 + LATE
        for store in stores:
            await store.aclose()

    run_again(way, test)


@pytest.mark.parametrize("way", TASKS)
def test_who_stops_waiting_lets_those_behind_move_up(way: str, any_redis: RedisServer) -> None:
    """Those of its own process at once; the limit holds for all."""

    async def test() -> None:
        prefix = f"line-{time.monotonic_ns()}"
        stores = [RedisStore(any_redis.url, prefix=prefix, budget=PATIENT) for _ in range(2)]
        limiters = [RateLimiter(Quota(5, 1.0, burst=2), name="line", store=store) for store in stores]
        for limiter in limiters:  # connected: who comes first shall be heard first
            await limiter.peek("key")
        passed: list[float] = []
        scopes = [anyio.CancelScope() for _ in range(8)]
        began = time.monotonic()

        async def wait(number: int) -> None:
            with scopes[number]:
                await limiters[number % 2].acquire("key")
                passed.append(time.monotonic())

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(wait, number)
                await anyio.sleep(0.005)
            for number in (2, 3, 4):
                scopes[number].cancel()
        assert len(passed) == 5
        assert passed[-1] - began < 1.2 - 0.05  # the last slot was 1.2 s away
        for index, start in enumerate(passed):
            for count, end in enumerate(passed[index:], 1):
                assert count <= 2 + (end - start + 0.003) * 5 + 1e-6
        for store in stores:
            await store.aclose()

    run_again(way, test)


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_would_be_too_long_fails_at_once_and_costs_nothing(way: str, any_redis: RedisServer) -> None:
    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(any_redis.url, prefix="long", budget=PATIENT)
        limiter = RateLimiter(Quota(2, 60.0), name="long", store=store, max_waiting=1)
        await caller.ask(limiter, "acquire", "key", 2)
        for timeout in (0, 0.01, 5):
            began = time.monotonic()
            with pytest.raises(RateLimitedError) as refused:
                await caller.ask(limiter, "acquire", "key", timeout=timeout)
            assert refused.value.reason == "deadline"
            assert 29 < (refused.value.retry_after or 0) <= 30
            assert time.monotonic() - began < LATE
        with pytest.raises(RateLimitedError) as refused:
            await caller.ask(limiter, "acquire", "key", 3)
        assert refused.value.reason == "never"
        await caller.ask(limiter, "block", "other", 60)
        with pytest.raises(RateLimitedError) as refused:
            await caller.ask(limiter, "acquire", "other")
        assert refused.value.reason == "blocked"
        if way != "threads":
            with anyio.move_on_after(5), pytest.raises(RateLimitedError) as refused:
                await limiter.acquire("key")  # the deadline of the scope counts, too
            assert refused.value.reason == "deadline"
        assert (await caller.ask(limiter, "peek", "key")).decision.reset_after == pytest.approx(60, abs=1)
        await close_and_check(store, way, any_redis)

    run(way, test)


CALLS: list[tuple[Any, ...]] = [
    ("try_acquire", "a"),
    ("try_acquire", "a", 4),
    ("peek", "a", 3),
    ("try_acquire", "a", 9),
    ("try_acquire", "a", 11),
    ("at_most", "a", 3),
    ("at_most", "a", 30),
    ("try_acquire", "a", 0),
    ("at_most", "a", 1),
    ("refund", "a", 2),
    ("try_acquire", "a", 2),
    ("reset", "a"),
    ("try_acquire", "a", 10),
    ("refund", "a", 100),
    ("peek", "a"),
    ("block", "a", 50),
    ("try_acquire", "a"),
    ("at_most", "a", 2),
    ("peek", "a"),
    ("block", "a", 0),
    ("try_acquire", "a"),
    ("block", b"\xff\x00", 50),
    ("reset", b"\xff\x00"),
    ("try_acquire", b"\xff\x00"),
]
QUOTAS: dict[str, Quota | tuple[Quota, ...]] = {
    "one": Quota(10, 3600.0),
    "several": (Quota(10, 3600.0), Quota(12, 7200.0, algorithm="sliding_log"), Quota(11, 5400.0, burst=14)),
    "log": Quota(10, 3600.0, algorithm="sliding_log"),
    "window": Quota(10, 86_400.0, algorithm="fixed_window"),
}


@pytest.mark.parametrize("quotas", QUOTAS)
@pytest.mark.parametrize("way", WAYS)
def test_redis_decides_as_memory_does(way: str, quotas: str, any_redis: RedisServer) -> None:
    """All operations, one after the other: several quotas charge together or not at all."""

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(any_redis.url, prefix="same", budget=PATIENT)
        there = RateLimiter(QUOTAS[quotas], name="same", store=store)
        here = RateLimiter(QUOTAS[quotas], name="same")
        for operation, *arguments in CALLS:
            found = (await caller.ask(there, operation, *arguments)).decision
            expected = (await caller.ask(here, operation, *arguments)).decision
            if expected is None:
                assert found is None
                continue
            told = (operation, arguments, found, expected)
            assert found[:3] == expected[:3], told
            assert (found.never, found.granted, found.certain) == (expected.never, expected.granted, True), told
            assert found.quota == expected.quota, told
            assert (found.retry_after is None) == (expected.retry_after is None), told
            assert found.retry_after == pytest.approx(expected.retry_after, abs=1.0), told
            assert found.reset_after == pytest.approx(expected.reset_after, abs=1.0), told
        await close_and_check(store, way, any_redis)

    run(way, test)


def test_a_denied_key_holds_up_nobody_else(any_redis: RedisServer) -> None:
    async def test() -> None:
        store = RedisStore(any_redis.url, prefix="others", budget=PATIENT)
        limiter = RateLimiter(Quota(1, 0.5), name="others", store=store)
        await limiter.acquire("a")
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire, "a")
            await anyio.sleep(0.02)
            for key in ("b", "c"):
                began = time.monotonic()
                assert (await limiter.acquire(key)).allowed
                assert time.monotonic() - began < 0.05 + LATE / 2
            worker = await to_thread.run_sync(limiter.try_acquire_sync, "d")
            assert worker.allowed
        await store.aclose()

    run("asyncio", test)


def test_two_nodes_with_clocks_that_differ_admit_what_one_would(any_redis: RedisServer) -> None:
    """Only the server's clock counts."""

    async def test() -> None:
        stores = [RedisStore(any_redis.url, prefix="clocks", budget=PATIENT) for _ in range(2)]
        limiters = [
            RateLimiter(
                Quota(5, 60.0),
                name="clocks",
                store=store,
                clock=lambda ahead=ahead: time.monotonic() + ahead,  # type: ignore[misc]
                wall_clock=lambda ahead=ahead: time.time() + ahead,  # type: ignore[misc]
            )
            for store, ahead in zip(stores, (0.0, 61.0), strict=True)
        ]
        decisions = [await limiters[number % 2].try_acquire("key") for number in range(20)]
        assert sum(decision.allowed for decision in decisions) == 5
        for store in stores:
            await store.aclose()

    run("asyncio", test)


@pytest.mark.parametrize("way", WAYS)
def test_names_and_keys_with_the_same_letters_are_different_limits(way: str, any_redis: RedisServer) -> None:
    async def test() -> None:
        store = RedisStore(any_redis.url, prefix=f"names-{way}", budget=PATIENT)
        pairs = [("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c"), ("a", "b%3Ac")]
        limiters = [RateLimiter("1/day", name=name, store=store, hash_keys=False) for name, _ in pairs]
        caller = Caller(way)
        for limiter, (_, key) in zip(limiters, pairs, strict=True):
            assert (await caller.ask(limiter, "try_acquire", key)).decision
            assert not (await caller.ask(limiter, "try_acquire", key)).decision
        await store.aclose()

    run(way, test)


@pytest.mark.parametrize(
    ("way", "lose", "find"),
    [("asyncio", "kill", "start"), ("trio", "freeze", "thaw"), ("threads", "kill", "start")],
)
def test_what_was_blocked_in_an_outage_is_blocked_for_all_when_it_is_over(
    way: str, lose: str, find: str, redis_server: RedisServer
) -> None:
    async def test() -> None:
        caller = Caller(way)
        here, there = [RedisStore(redis_server.url, prefix="blocks", budget=0.5) for _ in range(2)]
        one, other = [RateLimiter(SLOW_QUOTA, name="api", store=store) for store in (here, there)]
        assert (await caller.ask(other, "try_acquire", "key")).decision.source == "redis"
        await caller.ask(one, "block", "freed", 3_600)
        await to_thread.run_sync(getattr(redis_server, lose))
        # The first finds out by this very call that the store is out of reach, the others know it.
        for key, seconds in (("found", 3_600), ("known", 3_600), ("twice", 60), ("twice", 3_600), ("freed", 0)):
            await caller.ask(one, "block", key, seconds)
        assert not (await caller.ask(one, "try_acquire", "known")).decision
        await to_thread.run_sync(getattr(redis_server, find))
        await until_redis(caller, one)
        await until_redis(caller, other)
        for key in ("found", "known", "twice"):
            decision = (await caller.ask(other, "try_acquire", key)).decision
            assert not decision
            assert decision.retry_after is not None
            assert 3_500 < decision.retry_after <= 3_600
        assert (await caller.ask(other, "try_acquire", "freed")).decision
        await here.aclose()
        await there.aclose()

    run(way, test)
