"""Several instances in one outage: each has its share of the limit, and everything is charged when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest

from resilience.events import FallbackEntered, FallbackLeft
from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisServer, TcpProxy
from tests.rate_limiter.trouble import WAYS, Caller, close_and_check, events_of, run, until

STORES = 4


async def meet(stores: list[RedisStore], limiters: list[RateLimiter], caller: Caller) -> None:
    """Let all stores find each other, without the second that this takes."""
    deadline = time.monotonic() + 5
    while any(store.instances != len(stores) for store in stores):
        assert time.monotonic() < deadline
        for store, limiter in zip(stores, limiters, strict=True):
            store._refresh_at.clear()
            await caller.ask(limiter, "try_acquire", "somebody else")


async def back(limiters: list[RateLimiter], caller: Caller, key: str) -> None:
    """Wait until all limiters decide by Redis again."""
    deadline = time.monotonic() + 8
    for limiter in limiters:
        while (await caller.ask(limiter, "peek", key)).decision.source != "redis":
            assert time.monotonic() < deadline
            await anyio.sleep(0.02)


@pytest.mark.parametrize("way", WAYS)
def test_four_instances_together_stay_within_the_limit_and_pay_what_they_took(
    way: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """Whether the server kept its data or lost it: used is what was admitted, by all instances together."""

    async def test() -> None:
        async with anyio.create_task_group() as group:
            for algorithm in ("gcra", "sliding_log"):
                for forgets in (False, True):
                    quota = Quota(100, 86_400.0, algorithm=algorithm)
                    prefix = f"{algorithm}-{forgets}"
                    proxy = tcp_proxy(any_redis.port)
                    group.start_soon(go_through_an_outage, way, quota, prefix, forgets, any_redis, proxy)

    run(way, test)


async def go_through_an_outage(  # noqa: PLR0917
    way: str, quota: Quota, prefix: str, forgets: bool, server: RedisServer, proxy: TcpProxy
) -> None:
    caller = Caller(way)
    stores = [RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix=prefix, budget=1.0) for _ in range(STORES)]
    limiters = [RateLimiter(quota, name=f"api {prefix}", store=store) for store in stores]
    with events_of(f"api {prefix}") as events:
        await meet(stores, limiters, caller)
        before = await caller.ask_at_once(limiters[0], 20, "try_acquire", "key")
        assert sum(answer.decision.allowed for answer in before) == 20
        for limiter in limiters[1:]:  # they know what is used, too
            await caller.ask(limiter, "peek", "key")
        proxy.refuse()
        proxy.reset_all()
        admitted = 0
        for limiter in limiters:
            answers = await caller.ask_at_once(limiter, 60, "try_acquire", "key")
            assert {answer.decision.source for answer in answers} == {"fallback"}
            mine = sum(answer.decision.allowed for answer in answers)
            assert mine <= 25
            admitted += mine
        assert admitted == 80
        for limiter in limiters:  # and a few on a key that stays below its limit
            assert all(answer.decision for answer in await caller.ask_at_once(limiter, 5, "try_acquire", "quiet"))
        if forgets:
            server.command("DEL", *server.command("KEYS", f"{prefix}:*"))
        proxy.restore()
        await back(limiters, caller, "key")
        await until(lambda: sum(isinstance(event, FallbackLeft) for event in events) == STORES, "all are back")
        entered = [event for event in events if isinstance(event, FallbackEntered)]
        assert [event.instances for event in entered] == [STORES] * STORES
        quiet = (await caller.ask(limiters[0], "peek", "quiet")).decision
        assert quota.limit - quiet.remaining == 20
        full = (await caller.ask(limiters[0], "peek", "key")).decision
        assert full.remaining == 0
        assert not full.allowed
        left = [event for event in events if isinstance(event, FallbackLeft)]
        assert sum(event.replayed for event in left) == 100
    for store in stores:
        await store.aclose()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_admitted_while_debts_are_being_paid_is_paid_too(
    way: str, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxy = tcp_proxy(any_redis.port)

    async def test() -> None:
        caller = Caller(way)
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="late", budget=0.4)
        limiter = RateLimiter(Quota(10_000, 86_400.0), name="api", store=store)
        await caller.ask(limiter, "try_acquire", "key")
        proxy.refuse()
        proxy.reset_all()
        admitted = 1 + sum(a.decision.granted for a in await caller.ask_at_once(limiter, 3, "try_acquire", "key"))
        proxy.latency = 0.05  # so that each step of the recovery takes a while, in which more is admitted
        proxy.restore()
        source, deadline = "", time.monotonic() + 5
        while source != "redis":
            assert time.monotonic() < deadline
            decision = (await caller.ask(limiter, "try_acquire", "key")).decision
            admitted, source = admitted + decision.granted, decision.source
            await anyio.sleep(0.005)
        proxy.latency = 0.0
        deadline = time.monotonic() + 1
        used = 0
        # Whoever asks between the end of the outage and the last payment may be charged with it.
        while used < admitted - 3 and time.monotonic() < deadline:
            await anyio.sleep(0.02)
            used = 10_000 - (await caller.ask(limiter, "peek", "key")).decision.remaining
        assert admitted - 3 <= used <= admitted
        await close_and_check(store, way, any_redis)

    run(way, test)


def test_an_empty_server_does_not_make_instances_forget_each_other(
    any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    """Redis came back empty and goes again at once: whoever came back first must not take the whole limit."""
    proxies = [tcp_proxy(any_redis.port) for _ in range(2)]

    async def test() -> None:
        caller = Caller("asyncio")
        stores = [RedisStore(f"redis://127.0.0.1:{proxy.port}", prefix="flap", budget=1.0) for proxy in proxies]
        limiters = [RateLimiter(Quota(100, 86_400.0), name="api", store=store) for store in stores]
        await meet(stores, limiters, caller)
        for proxy in proxies:
            proxy.refuse()
            proxy.reset_all()
        for limiter in limiters:
            await caller.ask(limiter, "try_acquire", "key")
        any_redis.command("FLUSHALL")
        proxies[0].restore()
        await back(limiters[:1], caller, "key")
        proxies[0].refuse()
        proxies[0].reset_all()
        admitted = 0
        for limiter in limiters:
            answers = await caller.ask_at_once(limiter, 100, "try_acquire", "fresh")
            admitted += sum(answer.decision.allowed for answer in answers)
        assert admitted <= 100
        for store in stores:
            await store.aclose()

    run("asyncio", test)
