"""The rate limiter's API as type checkers see it. Never run: mypy checks it, in strict mode.

A `type: ignore` marks what must be an error: mypy reports every one that it did not need.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, Literal, assert_type

from resilience import RateLimitedError
from resilience.events import FallbackEntered, KeysSpilled, LimitNear, LimitRejected, capture
from resilience.rate_limiter import (
    BoundLimiter,
    Decision,
    MemoryStore,
    Quota,
    RateLimiter,
    RedisStore,
    parse_quotas,
    rate_limit,
    rate_limit_headers,
    retry_after_header,
)

limiter = RateLimiter("10/s", name="typed")


# --- quotas ---


def quotas() -> None:
    quota = Quota(10, 60)
    Quota(10, 0.5, burst=20)
    Quota(10, 60, algorithm="sliding_log")
    Quota(10, 86_400, algorithm="fixed_window", timezone="Europe/Berlin")
    assert_type(quota.limit, int)
    assert_type(quota.per, float)
    assert_type(quota.burst, int | None)
    assert_type(quota.capacity, int)
    assert_type(Quota.parse("10/s", algorithm="sliding_log"), Quota)
    assert_type(parse_quotas("10/s; 100/min"), tuple[Quota, ...])

    Quota(10)  # type: ignore[call-arg]
    Quota("10", 60)  # type: ignore[arg-type]
    Quota(10, "minute")  # type: ignore[arg-type]
    Quota(10, 60, algorithm="leaky")  # type: ignore[arg-type]
    Quota.parse(10)  # type: ignore[arg-type]
    quota.limit = 11  # type: ignore[misc]


# --- limiters and stores ---


def limiters(wall: float) -> None:
    RateLimiter(Quota(10, 60), name="typed", store=MemoryStore())
    RateLimiter([Quota(10, 60), Quota(100, 3_600)], name="typed", store=MemoryStore(100, spill=False))
    RateLimiter(
        (Quota(10, 60),),
        name="typed",
        store=RedisStore("redis://localhost", prefix="app", budget=0.1, max_batch=64),
        fallback="closed",
        shadow=True,
        hash_keys=b"secret",
        max_waiting=10,
        clock=lambda: wall,
        wall_clock=lambda: wall,
    )
    assert_type(limiter.name, str)
    assert_type(limiter.quotas, tuple[Quota, ...])
    assert_type(len(MemoryStore()), int)

    RateLimiter("10/s")  # type: ignore[call-arg]
    RateLimiter("10/s", "typed")  # type: ignore[call-arg]
    RateLimiter(10, name="typed")  # type: ignore[arg-type]
    RateLimiter("10/s", name="typed", store="redis://localhost")  # type: ignore[arg-type]
    RateLimiter("10/s", name="typed", fallback="hope")  # type: ignore[arg-type]
    RateLimiter("10/s", name="typed", clock=wall)  # type: ignore[arg-type]
    limiter.name = "other"  # type: ignore[misc]


# --- asking ---


async def asked() -> None:
    async with limiter as entered:
        assert_type(entered, RateLimiter)
    assert_type(await limiter.try_acquire(), Decision)
    assert_type(await limiter.try_acquire("ann", 3), Decision)
    assert_type(await limiter.try_acquire(b"ann", cost=3), Decision)
    assert_type(await limiter.acquire("ann", timeout=0.5), Decision)
    assert_type(await limiter.at_most("ann", 3), Decision)
    assert_type(await limiter.peek("ann"), Decision)
    assert_type(await limiter.refund("ann", 2), Decision)
    await limiter.reset("ann")
    await limiter.block("ann", 10)
    await limiter.aclose()

    await limiter.try_acquire(5)  # type: ignore[arg-type]
    await limiter.try_acquire("ann", 1.5)  # type: ignore[arg-type]
    await limiter.acquire("ann", 1, 0.5)  # type: ignore[call-arg]
    await limiter.block("ann")  # type: ignore[call-arg]
    limiter.try_acquire("ann")  # type: ignore[unused-coroutine]


def asked_sync() -> None:
    assert_type(limiter.try_acquire_sync("ann", 3), Decision)
    assert_type(limiter.acquire_sync("ann", timeout=0.5), Decision)
    assert_type(limiter.at_most_sync("ann", 3), Decision)
    assert_type(limiter.peek_sync("ann"), Decision)
    assert_type(limiter.refund_sync("ann", 2), Decision)
    limiter.reset_sync("ann")
    limiter.block_sync("ann", 10)


def told(decision: Decision) -> None:
    assert_type(decision.allowed, bool)
    assert_type(decision.limit, int)
    assert_type(decision.remaining, int)
    assert_type(decision.retry_after, float | None)
    assert_type(decision.reset_after, float)
    assert_type(decision.quota, Quota)
    assert_type(decision.source, Literal["redis", "memory", "fallback", "blocked", "shadow"])
    assert_type(decision.certain, bool)
    assert_type(decision.never, bool)
    assert_type(decision.granted, int)
    if not decision:
        assert_type(rate_limit_headers(decision, name="api", version="draft-06"), dict[str, str])
        assert_type(retry_after_header(decision), dict[str, str])

    decision.allowed = True  # type: ignore[misc]
    rate_limit_headers(decision, version="draft-12")  # type: ignore[arg-type]
    try:
        limiter.acquire_sync(timeout=0)
    except RateLimitedError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.reason, str)


# --- decorators keep the types ---


@rate_limit("10/s")
def limited_function(number: int, *, text: str = "") -> str:
    return text * number


@rate_limit(Quota(10, 1), key=lambda number: str(number), cost=2, wait=True, timeout=1.5, name="typed", shadow=True)  # noqa: PLW0108 - a lambda's type is what is tried
async def limited_coroutine(number: int) -> str:
    return str(number)


@rate_limit(limiter)
def limited_generator(number: int) -> Iterator[str]:
    yield str(number)


@limiter.bound(key="all", cost=lambda number: number)
def limited_bound(number: int) -> str:
    return str(number)


class Client:
    @rate_limit("10/s", key=lambda self, path: path)
    def get(self, path: str) -> bytes:
        return path.encode()

    @rate_limit("10/s")
    async def fetch(self, path: str) -> bytes:
        return path.encode()

    @classmethod
    @rate_limit("10/s")
    def connect(cls, host: str) -> Client:
        return cls()


async def decorated() -> None:
    assert_type(limited_function(1, text="a"), str)
    assert_type(await limited_coroutine(1), str)
    assert_type(list(limited_generator(1)), list[str])
    assert_type(limited_bound(1), str)
    assert_type(Client().get("/"), bytes)
    assert_type(await Client().fetch("/"), bytes)
    assert_type(Client.connect("db"), Client)

    limited_function("1")  # type: ignore[arg-type]
    limited_function(1, txet="a")  # type: ignore[call-arg]
    await limited_coroutine()  # type: ignore[call-arg]
    limited_bound(None)  # type: ignore[arg-type]
    rate_limit("10/s")(42)  # type: ignore[type-var]
    rate_limit(10)  # type: ignore[arg-type]
    rate_limit("10/s", key=5)  # type: ignore[arg-type]
    rate_limit("10/s", wait="yes")  # type: ignore[arg-type]


# --- call keeps the types ---


def function(number: int, *, text: str = "") -> str:
    return text * number


async def coroutine(number: int) -> str:
    return str(number)


async def called() -> None:
    bound = limiter.bound(wait=True, timeout=1)
    assert_type(bound, BoundLimiter)
    assert_type(bound.call(function, 1, text="a"), str)
    assert_type(await bound.call(coroutine, 1), str)
    pending = bound.call(coroutine, 1)
    await assert_type(pending, Coroutine[Any, Any, str])
    assert_type(bound.call(lambda: 42), int)

    bound.call(function, "1")  # type: ignore[arg-type]
    bound.call(function)  # type: ignore[call-arg]
    bound.call(None)  # type: ignore[arg-type]


def heard() -> None:
    with capture(LimitRejected) as rejected:
        assert_type(rejected, list[LimitRejected])
        assert_type(rejected[0].retry_after, float | None)
    with capture(LimitNear) as near:
        assert_type(near[0].remaining, int)
    with capture(KeysSpilled) as spilled:
        assert_type(spilled[0].count, int)
    with capture(FallbackEntered) as entered:
        assert_type(entered[0].instances, int)
