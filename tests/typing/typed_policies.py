"""The policies' API as type checkers see it. Never run: mypy checks it, in strict mode.

A `type: ignore` marks what must be an error: mypy reports every one that it did not need.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import assert_type

import tenacity

from resilience import (
    AdaptiveLimit,
    Bulkhead,
    Cache,
    CircuitBreaker,
    Deadline,
    Fallback,
    Hedge,
    Pipeline,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
    create_pool,
)
from resilience.policies import Backoff, Finding, LoadShed, Outcome, Quantile, Throttle, writes


async def fetch(url: str, *, page: int = 1) -> bytes:
    return url.encode() * page


def read(path: str) -> bytes:
    return path.encode()


# --- decorators keep what they decorate ---


async def decorated() -> None:
    for policy in (
        Retry(),
        Timeout(1.0),
        Deadline(1.0),
        Bulkhead(1),
        AdaptiveLimit(),
        Hedge(0.1, idempotent=True),
        Fallback(b""),
        Cache(1.0, max_size=1),
        Throttle(),
        LoadShed(0.1),
        Pipeline(Retry()),
    ):
        guarded = policy(fetch)
        assert_type(await guarded("x", page=2), bytes)
        await guarded(3)  # type: ignore[arg-type]
        await guarded("x", size=2)  # type: ignore[call-arg]
    assert_type(Retry()(read)("x"), bytes)
    Retry()(read)(3)  # type: ignore[arg-type]
    Retry()("read")  # type: ignore[type-var]


class Client:
    @Retry(3)
    async def search(self, words: str) -> list[str]:
        return [words]

    @staticmethod
    @Bulkhead(5)
    def count(words: str) -> int:
        return len(words)

    @writes
    async def pay(self, amount: int) -> None: ...


async def methods(client: Client) -> None:
    assert_type(await client.search("owls"), list[str])
    assert_type(client.count("owls"), int)
    await client.search(1)  # type: ignore[arg-type]
    assert_type(await client.pay(1), None)


# --- calls ---


async def calls() -> None:
    assert_type(await Retry().call(fetch, "x", page=2), bytes)
    assert_type(Bulkhead(1).call(read, "x"), bytes)
    Retry().call(fetch, 3)  # type: ignore[arg-type,unused-coroutine]
    Retry().call(read, "x", size=3)  # type: ignore[call-arg]
    assert_type(await Pipeline(Retry()).call(fetch, "x"), bytes)
    outcome: Outcome = await Pipeline(Retry()).call_outcome(fetch, "x")
    assert_type(outcome.ok, bool)
    assert_type(outcome.error, Exception | None)
    Pipeline(Retry()).call_outcome(read, 3)  # type: ignore[arg-type]


# --- what they take ---


def retries(budget: RetryBudget) -> None:
    Retry(None, stop=tenacity.stop_after_delay(3), wait=tenacity.wait_random_exponential(max=10))
    Retry(3, on=(OSError, KeyError), wait=Backoff(base=0.1, jitter="equal", curve="linear"), budget=budget)
    Retry(3, on=lambda error: isinstance(error, OSError), wait=lambda attempt: attempt * 0.1)
    Retry(3, retry_after=lambda error: datetime.now(UTC), retry_result=lambda result: result is None)
    Retry("3")  # type: ignore[arg-type]
    Retry(3, budget=3)  # type: ignore[arg-type]
    Retry(3, backoff=2)  # type: ignore[call-arg]
    Backoff(jitter="some")  # type: ignore[arg-type]
    Backoff(0.1)  # type: ignore[call-arg]


def others() -> None:
    Hedge(Quantile(0.99, warmup=50), idempotent=True, max_hedges=2)
    Hedge(0.1)  # type: ignore[call-arg]
    Timeout("1s")  # type: ignore[arg-type]
    Bulkhead(max_concurrent="9")  # type: ignore[arg-type]
    Cache(60)  # type: ignore[call-arg]
    Cache(60, max_size=9, key=lambda user: user)


# --- pipelines ---


async def pipelines() -> None:
    breaker, limiter = CircuitBreaker("x"), RateLimiter("10/second", name="x")
    pipeline = Pipeline(Retry(), breaker, limiter.bound(), Timeout(1.0), name="x")
    assert_type(pipeline.explain(), str)
    assert_type(pipeline.lint(), list[Finding])
    assert_type(pipeline.reload(Retry()), None)
    assert_type(Pipeline.standard(name="x", deadline=1.0, retry=3, breaker=True, limiter="9/s", timeout=0.5), Pipeline)
    Pipeline.standard(deadline="1s")  # type: ignore[arg-type]
    Pipeline.standard(retries=3)  # type: ignore[call-arg]
    async with create_pool("sqlite:///:memory:") as pool:

        @pipeline
        @pool.inject
        async def load(connection: object, user: str) -> int:
            return len(user)

        await takes(load)
        assert_type(await load("alice"), int)
        await load(object(), "alice")  # type: ignore[call-arg,arg-type]


async def takes(function: Callable[[str], Awaitable[int]]) -> None:
    await function("alice")
