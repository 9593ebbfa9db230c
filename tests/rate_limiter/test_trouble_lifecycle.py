"""Event loops, threads and processes that come and go, and what is left when a store is closed."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import pytest
import trio

from resilience.rate_limiter import RateLimiter, RedisStore
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
    tasks_of,
    until,
    until_redis,
    worker_of,
)


def used(limiter: RateLimiter, key: str = "key") -> int:
    return SLOW_QUOTA.limit - limiter.peek_sync(key).remaining


def test_loops_come_and_go_and_sync_code_goes_on_between_them(any_redis: RedisServer) -> None:
    """Nothing belongs to a loop that has ended: no error, no connection, no memory."""
    store = RedisStore(any_redis.url, prefix="loops", budget=PATIENT)
    limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)
    loops = []

    async def call() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        assert (await limiter.try_acquire("key")).source == "redis"

    async def call_on_trio() -> None:
        assert (await limiter.try_acquire("key")).source == "redis"

    for _ in range(10):
        asyncio.run(call())
        trio.run(call_on_trio)
        assert limiter.try_acquire_sync("key").source == "redis"
    assert used(limiter) == 30
    store.close()
    assert clients_of(any_redis) == []
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1


def test_loops_of_several_threads_share_one_store(any_redis: RedisServer) -> None:
    store = RedisStore(any_redis.url, prefix="threads", budget=PATIENT)
    limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)

    async def call() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(limiter.try_acquire, "key")

    def work(number: int) -> None:
        for _ in range(3):
            if number % 3 == 2:
                for _ in range(10):
                    limiter.try_acquire_sync("key")
            else:
                anyio.run(call, backend=("asyncio", "trio")[number % 3])

    with ThreadPoolExecutor(9) as threads:
        list(threads.map(work, range(9)))
    assert used(limiter) == 270
    store.close()
    assert clients_of(any_redis) == []


def test_a_loop_that_is_closed_without_a_word_costs_the_next_one_nothing(any_redis: RedisServer) -> None:
    """As in a program that makes a loop for each request and never ends its generators."""
    store = RedisStore(any_redis.url, prefix="loops", budget=PATIENT)
    limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)
    loops = []
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loops.append(weakref.ref(loop))
        assert loop.run_until_complete(limiter.try_acquire("key")).source == "redis"
        loop.run_until_complete(limiter.aclose())
        loop.close()
        del loop
    assert used(limiter) == 3
    store.close()
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_a_store_that_was_closed(way: str, any_redis: RedisServer) -> None:
    """And it works again when it is used again."""

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(any_redis.url, prefix="closed", budget=PATIENT)
        async with RateLimiter(SLOW_QUOTA, name="api", store=store) as limiter:
            for _ in range(3):
                await caller.ask_at_once(limiter, 200, "try_acquire", "key")
                assert clients_of(any_redis)
                await close_and_check(store, way, any_redis)
            assert (await caller.ask(limiter, "peek", "key")).decision.remaining == 400
        await until(lambda: not clients_of(any_redis), "all connections were closed")

    before = set(threading.enumerate())
    run(way, test)
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if way == "asyncio" or "rate limiter" in thread.name]


@pytest.mark.parametrize("way", WAYS)
def test_closing_in_an_outage_ends_its_recovery(
    way: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """Quickly, whether it sleeps or asks a server that does not answer."""

    async def close_one(proxy: TcpProxy, *, silent: bool) -> None:
        caller = Caller(way)
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="closed", budget=0.2)
        limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)
        await caller.ask(limiter, "try_acquire", "key")
        if silent:
            proxy.black_hole()
        else:
            proxy.refuse()
            proxy.reset_all()
        assert (await caller.ask(limiter, "try_acquire", "key")).decision.source == "fallback"
        if silent:
            await anyio.sleep(1.05)  # a probe is under way, and may last for 2 s
        began = time.monotonic()
        worker = worker_of(store)
        await store.aclose()
        assert time.monotonic() - began < 0.2 + LATE
        if way == "asyncio":
            assert not tasks_of(store)
        assert worker is None or not worker.is_alive()
        proxy.restore()
        await until_redis(caller, limiter)  # whoever comes back is looked after again
        await store.aclose()

    async def test() -> None:
        async with anyio.create_task_group() as group:
            for silent in (False, True):
                group.start_soon(partial(close_one, tcp_proxy(any_redis.port), silent=silent))

    run(way, test)
    gc.collect()  # a connection that was left open would warn now


def test_a_loop_that_ends_with_the_outages_first_call_leaves_no_recovery_behind(
    any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """Whoever looked after the store has gone before it began: the next loop, or sync code, does it."""
    proxy = tcp_proxy(any_redis.port)
    proxy.refuse()
    stores = [RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="ends", budget=1.0) for _ in range(3)]
    limiters = [RateLimiter(SLOW_QUOTA, name="api", store=store) for store in stores]

    async def call(limiter: RateLimiter) -> None:
        assert (await limiter.try_acquire("key")).source == "fallback"

    async def call_until_well(limiter: RateLimiter) -> None:
        await until_redis(Caller("either"), limiter)

    for limiter in limiters:
        asyncio.run(call(limiter))
    proxy.restore()
    with ThreadPoolExecutor(3) as threads:
        done = [
            threads.submit(partial(anyio.run, call_until_well, limiter, backend=way))
            for limiter, way in zip(limiters, ("asyncio", "trio"), strict=False)
        ]
        deadline = time.monotonic() + 3
        while limiters[2].try_acquire_sync("key").source != "redis":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for one in done:
            one.result()
    gc.collect()
    for store in stores:
        store.close()
    gc.collect()


def test_a_loop_that_ends_in_the_middle_of_a_trip_is_no_outage(redis_server: RedisServer) -> None:
    """Others on the same store go on: that a loop ended says nothing about Redis."""
    store = RedisStore(redis_server.url, prefix="middle", budget=2.0)
    limiter = RateLimiter(SLOW_QUOTA, name="middle", store=store)

    async def leave_one_behind() -> None:
        await limiter.try_acquire("key")
        redis_server.freeze()
        task = asyncio.create_task(limiter.try_acquire("key"))
        await asyncio.sleep(0.02)
        assert not task.done()

    async def call() -> None:
        assert (await limiter.try_acquire("key")).source == "redis"

    with events_of("middle", "middle store") as events:
        asyncio.run(leave_one_behind())
        redis_server.thaw()
        asyncio.run(call())
        assert limiter.try_acquire_sync("key").source == "redis"
    assert not [event for event in events if event.severity in {"warning", "error"}]
    gc.collect()
    store.close()


def test_outages_do_not_add_connections(any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]) -> None:
    proxy = tcp_proxy(any_redis.port)

    async def test() -> None:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="connections", budget=1.0)
        limiter = RateLimiter(SLOW_QUOTA, name="api", store=store)
        for _ in range(2):
            await limiter.try_acquire("key")
            proxy.refuse()
            proxy.reset_all()
            await limiter.try_acquire("key")
            proxy.restore()
            await until_redis(Caller("asyncio"), limiter)
        assert len(clients_of(any_redis)) == 1
        assert len(store._loops[asyncio.get_running_loop()]._shards) == 1
        await close_and_check(store, "asyncio", any_redis)

    run("asyncio", test)


FORK = """
    import asyncio, gc, os, sys, traceback, warnings
    from resilience.events import disable_logging
    from resilience.rate_limiter import Quota, RateLimiter, RedisStore

    disable_logging()
    store = RedisStore(sys.argv[1], prefix="fork", budget=1.0)
    limiter = RateLimiter(Quota(1000, 86_400.0), name="api", store=store)

    def child():
        for _ in range(5):
            assert limiter.try_acquire_sync("key").source == "redis"
        async def call():
            for _ in range(5):
                assert (await limiter.try_acquire("key")).source == "redis"
        asyncio.run(call())
        gc.collect()
        store._refresh_at.clear()
        limiter.try_acquire_sync("key")
        assert store.instances == 2, store.instances

    async def parent():
        for _ in range(5):
            assert (await limiter.try_acquire("key")).source == "redis"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork with threads
            pid = os.fork()
        if pid == 0:
            try:
                child()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        for _ in range(5):
            assert (await limiter.try_acquire("key")).source == "redis"
        await limiter.aclose()

    limiter.try_acquire_sync("key")
    asyncio.run(parent())
    print(1000 - limiter.peek_sync("key").remaining)
    store.close()
"""


def test_a_forked_child_is_an_instance_of_its_own(any_redis: RedisServer) -> None:
    """With connections and an id of its own; the parent's loop and connections go on."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(FORK), any_redis.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "22\n"
    assert any_redis.command("ZCARD", "fork:instances") == 1  # the parent took its leave
