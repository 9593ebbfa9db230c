"""Pipelines drawn by chance around a callee that fails by chance, with callers that give up by chance: all is put back.

The seed is in the name of the test; `RESILIENCE_SEED=...` runs another one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
import pytest

from resilience import CircuitBreaker, ConnectionPool, CountWindow, RateLimiter
from resilience.errors import CallTimeoutError, ConfigurationError, RejectedError
from resilience.events import PolicyHookFailed, PoolFailed, capture
from resilience.policies import (
    AdaptiveLimit,
    Backoff,
    Bulkhead,
    Cache,
    Deadline,
    Fallback,
    Hedge,
    Pipeline,
    Quantile,
    Retry,
    RetryBudget,
    Throttle,
    Timeout,
)
from resilience.testing import VirtualClock

CALLS = 120
UNIT = 0.1
"""Seconds: everything takes some of these."""
SEEDS = [int(seed) for seed in os.environ.get("RESILIENCE_SEED", ",".join(map(str, range(1, 13)))).split(",")]
FALLBACK = "something else"


class Result:
    """What the callee gives: closed once if nobody gets it, never if somebody does."""

    def __init__(self, *, unwanted: bool) -> None:
        self.unwanted = unwanted
        self.closed = 0
        self.given = 0

    def close(self) -> None:
        self.closed += 1


class Weather:
    """A callee that is sometimes ill, a pipeline around it, and callers without patience."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.illness = self.chance.choice((0.0, 0.1, 0.6))
        self.raised: set[int] = set()
        self.errors: list[Exception] = []  # kept, so that no other object gets their ids
        self.results: list[Result] = []
        self.running = 0
        self.most = 0
        self.budget = RetryBudget(self.chance.choice((0.2, 1.0)), self.chance.choice((0, 3)))

    async def callee(self, *_: object) -> Result:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(UNIT * self.chance.choice((0, 0, 0.5, 1, 3)))
            if self.chance.random() < self.illness / 4:
                await anyio.sleep(1_000)
        finally:
            self.running -= 1
        if self.chance.random() < self.illness:
            error = self.chance.choice((OSError, KeyError, TypeError))()
            self.errors.append(error)
            self.raised.add(id(error))
            raise error
        self.results.append(Result(unwanted=self.chance.random() < self.illness))
        return self.results[-1]

    def policy(self, kind: type[Any]) -> Any:
        pick, clock = self.chance.choice, anyio.current_time
        rng = random.Random(self.chance.random())
        makers: dict[type[Any], Callable[[], Any]] = {
            Fallback: lambda: Fallback(FALLBACK, on=pick((OSError, Exception)), clock=clock),
            Deadline: lambda: Deadline(UNIT * pick((1, 5, 20))),
            Cache: lambda: Cache(UNIT * pick((0, 1, 10)), max_size=pick((1, 3)), clock=clock),
            Throttle: lambda: Throttle(minimum_calls=5, clock=clock, rng=rng),
            Retry: lambda: Retry(
                pick((1, 2, 4)),
                wait=pick((0, UNIT, Backoff(base=UNIT))),
                retry_result=pick((None, lambda result: getattr(result, "unwanted", False))),
                wait_for_admission=pick((None, UNIT, 5 * UNIT)),
                budget=pick((None, self.budget)),
                clock=clock,
                rng=rng,
            ),
            Hedge: lambda: Hedge(
                pick((0, UNIT, float("inf"), Quantile(0.9, warmup=5))),
                max_hedges=pick((1, 3)),
                idempotent=True,
                budget=pick((None, self.budget)),
                clock=clock,
            ),
            CircuitBreaker: lambda: CircuitBreaker(
                "callee",
                window=CountWindow(10),
                minimum_calls=5,
                open_duration=UNIT * pick((0, 5)),
                slow_call_duration=pick((None, UNIT)),
                clock=clock,
                rng=rng,
            ),
            RateLimiter: lambda: RateLimiter(
                f"{pick((1, 10))}/second", name="callee", clock=clock, wall_clock=clock
            ).bound(wait=pick((False, True))),
            Bulkhead: lambda: Bulkhead(
                pick((1, 5)), **pick(({}, {"max_waiting": 50}, {"max_waiting": 9, "timeout": UNIT}))
            ),
            AdaptiveLimit: lambda: AdaptiveLimit(clock=clock),
            ConnectionPool: lambda: ConnectionPool(
                self.connect, max_size=pick((1, 5)), acquire_timeout=UNIT * pick((1, 20)), clock=clock, debug=True
            ),
            Timeout: lambda: Timeout(UNIT * pick((0.5, 2, 20))),
        }
        return makers[kind]()

    async def connect(self) -> object:
        await anyio.sleep(UNIT * self.chance.choice((0, 0.5)))
        return object()

    def pipeline(self) -> Pipeline:
        """Draw policies, in the usual order or in any that is not refused."""
        kinds = [
            *(Fallback, Deadline, Cache, Throttle, Retry, Hedge, CircuitBreaker, RateLimiter, Bulkhead),
            *(AdaptiveLimit, ConnectionPool, Timeout),
        ]
        while True:
            drawn = [self.policy(kind) for kind in kinds if self.chance.random() < 0.5]
            if self.chance.random() < 0.5:
                self.chance.shuffle(drawn)
            with suppress(ConfigurationError):
                return Pipeline(*drawn, name="storm")

    async def call(self, protected: Callable[..., Any]) -> None:
        with anyio.move_on_after(UNIT * self.chance.choice((1, 5, 5_000))):
            try:
                got = await protected(self.chance.randrange(3))
            except (RejectedError, CallTimeoutError):
                return
            except Exception as error:  # noqa: BLE001 - it must be the callee's own
                assert id(error) in self.raised, repr(error)
                assert error.__context__ is None
                return
            if isinstance(got, Result):
                got.given += 1
            else:
                assert got == FALLBACK

    def check(self, pipeline: Pipeline) -> None:
        """See that nothing is under way any more, and that every result came to somebody or was closed."""
        assert self.running == 0
        assert (self.budget.calls, self.budget.extra) == (0, 0)
        for policy in pipeline.policies:
            match policy:
                case Bulkhead():
                    assert (policy.in_flight, policy.waiting) == (0, 0)
                    if not any(isinstance(other, Hedge) for other in pipeline.policies):
                        assert self.most <= policy.max_concurrent
                case AdaptiveLimit():
                    assert (policy.in_flight, policy.waiting) == (0, 0)
                case CircuitBreaker():
                    assert policy.snapshot().in_flight == 0
                case ConnectionPool():
                    stats = policy.stats()
                    assert (stats.leased, stats.waiting) == (0, 0)
        cached = any(isinstance(policy, Cache) for policy in pipeline.policies)
        for result in self.results:
            assert result.closed == 0 if result.given else result.closed == 1 or cached, vars(result)


async def storm(seed: int, *, cancel: bool) -> None:
    """Make many calls; with `cancel`, strike tasks with asyncio's own tool, once and between any two steps."""
    weather = Weather(seed)
    pipeline = weather.pipeline()
    protected = pipeline(weather.callee)
    async with AsyncExitStack() as stack:
        for policy in pipeline.policies:
            if isinstance(policy, ConnectionPool):
                await stack.enter_async_context(policy)
        if cancel:
            tasks: list[asyncio.Task[None]] = []
            for _ in range(CALLS):
                tasks.append(asyncio.create_task(weather.call(protected)))
                for _ in range(weather.chance.randrange(6)):
                    await asyncio.sleep(0)
                if weather.chance.random() < 0.5:
                    weather.chance.choice(tasks).cancel()
                await asyncio.sleep(UNIT * weather.chance.choice((0, 0, 0, 0.5)))
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError), repr(ended)
        else:
            async with anyio.create_task_group() as group:
                for _ in range(CALLS):
                    group.start_soon(weather.call, protected)
                    await anyio.sleep(UNIT * weather.chance.choice((0, 0, 0, 0.5)))
        weather.check(pipeline)


def run(seed: int, *, backend: Any, cancel: bool = False) -> None:
    with capture(PolicyHookFailed, PoolFailed) as bugs:
        VirtualClock().run(partial(storm, seed, cancel=cancel), backend=backend)
    assert not bugs
    gc.collect()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_storm_of_impatient_callers_leaves_nothing_behind(seed: int, backend: Any) -> None:
    run(seed, backend=backend)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_of_cancelled_tasks_leaves_nothing_behind(seed: int) -> None:
    run(seed, backend="asyncio", cancel=True)
