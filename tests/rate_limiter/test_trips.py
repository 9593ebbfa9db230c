"""Trips to a real server at awkward moments: two under way, callers who leave, a process that is held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.rate_limiter.batch import Batch, Request
from resilience.testing.servers import RedisCluster, RedisServer, TcpProxy

AMPLE = Quota(1_000_000, 86_400.0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real time: the server has no other."""
    backend: str = request.param
    return backend


def limiter_on(url: str, **options: Any) -> tuple[RedisStore, RateLimiter]:
    store = RedisStore(url, **{"budget": 2.0} | options)
    return store, RateLimiter(AMPLE, name="trips", store=store)


# --- batches ---


class Part:
    """A limiter as a batch knows it."""

    def __init__(self) -> None:
        self.fails = False

    def spec(self) -> str:
        if self.fails:
            raise ZeroDivisionError
        return "g"

    def wire_keys(self, key: str) -> list[str]:
        return [key]

    nows: Any = None
    learn: Any = None


def request_of(part: Part, key: str = "k") -> Request:
    return Request(part, "acquire", key, 1)


def test_who_joins_what_is_sent_again_is_in_it() -> None:
    part, batch = Part(), Batch(0.0)
    gone, caller = batch.join(request_of(part), None)
    batch.join(request_of(part, "other"), None)
    gone.leave(caller)
    keys, _ = batch.encode()  # for the first time, without the one who had left
    assert keys == ["other"]
    item, _ = batch.join(request_of(part), None)
    assert item is not gone
    assert item in batch.items
    assert batch.encode()[0] == ["other", "k"]


def test_who_joins_a_half_is_in_that_half() -> None:
    part, batch = Part(), Batch(0.0)
    for number in range(4):
        batch.join(request_of(part, f"k{number}"), None)
    batch.resent = True
    rest = batch.halve()
    assert rest.resent  # not a second time
    assert rest.encode()[0] == ["k2", "k3"]
    batch.encode()
    item, _ = batch.join(request_of(part, "k3"), None)
    assert item in batch.items


def test_whom_nobody_asks_for_because_a_function_of_the_users_raised_is_told() -> None:
    part, batch = Part(), Batch(0.0)
    item, _ = batch.join(request_of(part), None)
    part.fails = True
    with pytest.raises(ZeroDivisionError):
        batch.encode()
    batch.fail("ZeroDivisionError", certain=True)
    assert item.done


# --- callers who leave ---


@pytest.mark.anyio
async def test_a_trip_that_everybody_has_left_costs_a_cluster_nothing(redis_cluster: RedisCluster) -> None:
    store, limiter = limiter_on(f"redis+cluster://127.0.0.1:{redis_cluster.ports[0]}")
    await limiter.try_acquire("k")

    async def leave(scope: anyio.CancelScope) -> None:
        with scope:
            await limiter.try_acquire("k")

    for _ in range(30):
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.try_acquire, "k")
            for _ in range(3):
                await anyio.lowlevel.checkpoint()  # its trip leaves
            scope = anyio.CancelScope()
            group.start_soon(leave, scope)
            for _ in range(2):
                await anyio.lowlevel.checkpoint()  # the next one waits behind it
            scope.cancel()
    await anyio.sleep(0.1)
    assert store.outages == 0
    await store.aclose()


# --- a failover with two trips under way ---


@pytest.mark.anyio
async def test_a_demoted_server_with_two_trips_under_way_is_no_outage(
    redis_binary: Any, tmp_path: Any, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    with RedisServer(redis_binary, tmp_path / "old") as old, RedisServer(redis_binary, tmp_path / "new") as new:
        proxy = tcp_proxy(old.port)
        store, limiter = limiter_on(f"redis://127.0.0.1:{proxy.port}")
        assert (await limiter.try_acquire("warm")).source == "redis"
        proxy.target_port = new.port
        await anyio.to_thread.run_sync(old.command, "REPLICAOF", "127.0.0.1", str(new.port))
        proxy.latency = 0.02
        sources: list[str] = []

        async def ask(key: str) -> None:
            sources.append((await limiter.try_acquire(key)).source)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "first")
            await anyio.sleep(0.005)
            for number in range(40):
                group.start_soon(ask, f"k{number}")
        assert sources == ["redis"] * 41
        assert store.outages == 0
        await store.aclose()


# --- limits ---


@pytest.mark.anyio
async def test_no_trip_has_more_keys_than_it_may(any_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = Batch.encode

    def measured(batch: Batch) -> tuple[list[str], list[str | int]]:
        keys, arguments = encode(batch)
        sizes.append(len(keys))
        return keys, arguments

    monkeypatch.setattr(Batch, "encode", measured)
    store, limiter = limiter_on(any_redis.url, max_batch=4)
    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(limiter.try_acquire, f"k{number}")
    assert max(sizes) <= 4
    await store.aclose()


# --- a process that is held up ---


def test_a_loop_that_was_held_up_before_the_trip_left_is_no_outage(any_redis: RedisServer) -> None:
    async def main() -> None:
        store, limiter = limiter_on(any_redis.url, budget=0.05)
        await limiter.try_acquire("warm")
        task = asyncio.create_task(limiter.try_acquire("k"))
        await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: ASYNC251 - that is what a process does that is held up
        decision = await task
        assert decision.certain
        assert store.outages == 0
        assert (await limiter.try_acquire("k")).source == "redis"
        await store.aclose()

    asyncio.run(main())


def test_a_loop_that_pauses_does_not_keep_the_store_from_the_others(any_redis: RedisServer) -> None:
    store, limiter = limiter_on(any_redis.url, budget=0.2)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(limiter.try_acquire("k")).source == "redis"
    store.lose("a test")
    assert loop.run_until_complete(limiter.try_acquire("k")).source == "fallback"  # it looks after the store now
    ends = time.monotonic() + 10
    while limiter.try_acquire_sync("k").source != "redis":
        assert time.monotonic() < ends, "nobody looks after the store"
        time.sleep(0.01)
    assert loop.run_until_complete(limiter.try_acquire("k")).source == "redis"
    assert store.outages == 1
    loop.run_until_complete(store.aclose())
    loop.close()


def test_a_thread_that_cannot_be_started_once_is_started_later(
    any_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, limiter = limiter_on(any_redis.url, budget=0.1)
    assert limiter.try_acquire_sync("k").source == "redis"
    store.lose("a test")
    store.close()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert limiter.try_acquire_sync("k").source == "fallback"
    ends = time.monotonic() + 10
    while limiter.try_acquire_sync("k").source != "redis":
        assert time.monotonic() < ends, "it is never back"
        time.sleep(0.01)
    store.close()


def test_a_clock_of_the_users_that_raises_once_mixes_up_no_replies(any_redis: RedisServer) -> None:
    raises = [False]

    def wall() -> float:
        if raises[0] and threading.current_thread().name == "resilience rate limiter":
            raises[0] = False
            raise ZeroDivisionError
        return time.time()

    store = RedisStore(any_redis.url, budget=1.0)
    limiter = RateLimiter(Quota(1_000_000, 3_600, algorithm="fixed_window"), name="trips", store=store, wall_clock=wall)
    stop = threading.Event()
    longest = [0.0]

    def ask(number: int) -> None:
        while not stop.is_set():
            began = time.monotonic()
            limiter.try_acquire_sync(f"k{number}")
            longest[0] = max(longest[0], time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    raises[0] = True
    ends = time.monotonic() + 10
    while store.outages == 0 or not store.reachable:
        assert time.monotonic() < ends, "it is never back"
        time.sleep(0.01)
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert store.outages == 1
    assert longest[0] < 0.9  # nobody waited for a reply that another took
    store.close()
