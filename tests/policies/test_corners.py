"""Where policies meet each other, other threads and hostile input: what an attack found, each mended."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience import CircuitBreaker, CircuitState, ConnectionPool, RateLimiter
from resilience.errors import BulkheadFullError, CallTimeoutError, CircuitOpenError, ConfigurationError
from resilience.events import ConfigReloadFailed, HedgeLaunched, PolicyHookFailed, capture
from resilience.policies import (
    Bulkhead,
    Cache,
    Deadline,
    Fallback,
    Hedge,
    Pipeline,
    Quantile,
    Retry,
    RetryBudget,
    Timeout,
    policy,
)
from resilience.policies.marks import Mark
from resilience.rate_limiter import rate_limit

pytestmark = pytest.mark.anyio


# --- the cache, and keys that change ---


@dataclass(unsafe_hash=True)
class Query:
    """A key whose hash goes by its value, which anybody may change."""

    page: int


async def test_a_key_that_changes_while_it_is_kept_harms_nobody() -> None:
    now = 0.0
    cache = Cache(60, max_size=5, clock=lambda: now)

    @cache
    async def fetch(query: Query) -> int:
        return query.page

    for number in range(20):
        query = Query(number)
        assert await fetch(query) == number
        query.page += 1_000
    assert len(cache) == 5
    now = 61.0
    assert await fetch(Query(7)) == 7
    assert len(cache) == 1
    cache.invalidate(cache.key_of(Query(7)))
    assert len(cache) == 0


async def test_a_key_that_changes_while_it_is_computed_keeps_nobody_waiting() -> None:
    cache = Cache(0, max_size=5)

    @cache
    async def advance(query: Query) -> int:
        await anyio.lowlevel.checkpoint()
        query.page += 1
        return query.page

    query = Query(0)
    for number in range(100):
        assert await advance(query) == number + 1
    query.page = 0
    with anyio.fail_after(1):
        assert await advance(query) == 1


class Quarrelsome:
    """A key that cannot be compared."""

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        raise ValueError("never")


async def test_keys_that_cannot_be_compared_bypass_the_cache() -> None:
    cache = Cache(60, max_size=5)
    calls = 0

    @cache
    async def fetch(_: Quarrelsome) -> int:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.1)
        return calls

    with capture(PolicyHookFailed) as told:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                group.start_soon(fetch, Quarrelsome())
                group.start_soon(fetch, Quarrelsome())
    assert calls == 6
    assert {event.as_dict()["hook"] for event in told} == {"key"}


async def test_computations_that_ask_for_each_other_all_end() -> None:
    cache = Cache(60, max_size=10, key=lambda node, depth: node)
    others = {"a": "b", "b": "c", "c": "a"}

    @cache
    async def load(node: str, depth: int) -> list[str]:
        await anyio.sleep(0.01)
        return [node, *(await load(others[node], depth - 1) if depth else [])]

    with anyio.fail_after(1):
        async with anyio.create_task_group() as group:
            for node in others:
                group.start_soon(load, node, 2)
    with anyio.fail_after(1):
        assert (await load("a", 2))[0] == "a"


def test_who_waits_for_whom_is_known_through_others_and_forgotten_afterwards() -> None:
    a, b, c = Mark(), Mark(), Mark()
    assert c.await_by((a, b))  # b was begun by a, and waits for c: so both do
    for mark in (a, b):
        assert not mark.await_by((c,))
    assert c.awaited == []
    c.leave((a, b))
    assert (a.awaited, b.awaited) == ([], [])
    assert b.await_by((c,))


async def test_keys_that_cannot_be_compared_any_more_cost_nobody_a_result() -> None:
    class Moody(Quarrelsome):
        calm = True

        def __eq__(self, other: object) -> bool:
            return False if self.calm else super().__eq__(other)

        __hash__ = Quarrelsome.__hash__

    cache = Cache(60, max_size=5)

    @cache
    async def fetch(key: Moody, seconds: float) -> Moody:
        await anyio.sleep(seconds)
        return key

    second = Moody()
    got: list[int] = []

    async def take() -> None:
        got.append(id(await fetch(second, 1.0)))

    await fetch(Moody(), 1.0)
    async with anyio.create_task_group() as group:
        group.start_soon(take)
        group.start_soon(take)
        await anyio.sleep(0.5)
        Moody.calm = False
    assert got == [id(second)] * 2


def test_threads_that_ask_for_each_other_all_end() -> None:
    one, other = Cache(60, max_size=10), Cache(60, max_size=10)
    both = threading.Barrier(2)
    ended: list[int] = []

    @one
    def left(depth: int) -> int:
        if depth == 2:
            both.wait(5)
        return right(depth - 1) if depth else 0

    @other
    def right(depth: int) -> int:
        if depth == 2:
            both.wait(5)
        return left(depth - 1) if depth else 0

    def work(function: Callable[[int], int]) -> None:
        ended.append(function(2))

    threads = [threading.Thread(target=work, args=(function,), daemon=True) for function in (left, right)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert ended == [0, 0]


# --- hedges ---


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("delay", [0, 0.02, 0.021, 10])
@pytest.mark.parametrize("outer", [Fallback("fallback"), Retry(3, wait=0), None], ids=repr)
async def test_a_cancellation_in_the_turn_of_a_timeout_is_not_swallowed(
    anyio_backend: str, delay: float, outer: Any
) -> None:
    del anyio_backend
    policies = [Hedge(delay, idempotent=True), Timeout(0.02)]
    pipeline = Pipeline(*([outer] if outer else []), *policies)
    for late in range(0, 20, 2):
        task = asyncio.ensure_future(pipeline.call(anyio.sleep, 0.2))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        loop.call_later(0.015, time.sleep, 0.02)  # the loop is busy, and then several timers are due at once
        loop.call_later(0.016 + late / 1_000, task.cancel)
        await asyncio.wait([task], timeout=2)
        assert task.cancelled(), late


class Slow:
    """A result that takes its time to close."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.closed = 0

    async def aclose(self) -> None:
        await anyio.sleep(self.seconds)
        self.closed += 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hedge_that_is_cancelled_while_it_closes_results_closes_all_but_one(anyio_backend: str) -> None:
    del anyio_backend
    made: list[Slow] = []

    async def make() -> Slow:
        await anyio.sleep(0.01)
        made.append(Slow(0.01))
        return made[-1]

    task = asyncio.ensure_future(Hedge(0, max_hedges=3, idempotent=True).call(make))
    while len(made) < 4:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    # The one whose closing was struck is asyncio's to end; the three others, the answer among them, are closed.
    assert sorted(result.closed for result in made) == [0, 1, 1, 1]


@pytest.mark.tells_by_chance
async def test_results_that_hang_when_they_are_closed_share_one_patience() -> None:
    made: list[Slow] = []

    async def make() -> Slow:
        await anyio.sleep(0.01)
        made.append(Slow(1_000))
        return made[-1]

    began = anyio.current_time()
    await Hedge(0, max_hedges=3, idempotent=True).call(make)
    assert anyio.current_time() - began == pytest.approx(5.01)


async def test_calls_that_take_no_time_are_not_hedged() -> None:
    hedge = Hedge(Quantile(0.9, warmup=5), max_hedges=3, idempotent=True, clock=anyio.current_time)

    async def quick(seconds: float = 0.0) -> None:
        await anyio.sleep(seconds)

    with capture(HedgeLaunched) as told:
        for _ in range(50):
            await hedge.call(quick)
    assert told == []
    with capture(HedgeLaunched) as told:
        await hedge.call(quick, 1.0)
    assert len(told) == 3


# --- budgets and calls, in a context of somebody else's ---


@pytest.mark.parametrize(
    "wrap", [Hedge(inf, idempotent=True, budget=RetryBudget()), Retry(budget=RetryBudget())], ids=repr
)
def test_a_coroutine_that_is_closed_elsewhere_is_counted_out(wrap: Any) -> None:
    async def begin() -> Any:
        task = asyncio.ensure_future(Pipeline(wrap).call(asyncio.sleep, 1_000))
        await asyncio.sleep(0)
        return task.get_coro()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # a task that was destroyed while it was pending: that is it
    coroutine = loop.run_until_complete(begin())
    loop.close()
    assert wrap.budget.calls == 1
    coroutine.close()
    assert wrap.budget.calls == 0


# --- pipelines ---


class Gate:
    """A policy of somebody else's, which takes its time to stand around a function."""

    def __init__(self) -> None:
        self.asked, self.open = threading.Event(), threading.Event()

    def around(self, function: Callable[..., Any], _: object) -> Callable[..., Any]:
        self.asked.set()
        self.open.wait(5)
        return function


def fail() -> Any:
    raise OSError


def test_a_function_that_is_decorated_during_a_reload_gets_the_new_policies() -> None:
    gate = Gate()
    pipeline = Pipeline(Fallback("old"), gate)
    made: list[Any] = []
    decorating = threading.Thread(target=lambda: made.append(pipeline(fail)))
    decorating.start()
    assert gate.asked.wait(5)
    reloading = threading.Thread(target=pipeline.reload, args=(Fallback("new"),))
    reloading.start()
    gate.open.set()
    decorating.join(5)
    reloading.join(5)
    assert made[0]() == "new"


def test_of_two_reloads_the_later_holds() -> None:
    gate = Gate()
    pipeline = Pipeline(Fallback("first"))
    decorated: Any = pipeline(fail)
    early = threading.Thread(target=pipeline.reload, args=(Fallback("early"), gate))
    early.start()
    assert gate.asked.wait(5)
    late = threading.Thread(target=pipeline.reload, args=(Fallback("late"),))
    late.start()
    gate.open.set()
    early.join(5)
    late.join(5)
    assert decorated() == "late"
    assert repr(pipeline) == "<Pipeline <Fallback to str>>"


def test_calls_in_other_threads_do_not_disturb_a_reload() -> None:
    pipeline = Pipeline(Retry(2))
    stop = False

    def work() -> None:
        while not stop:
            pipeline.call(lambda: 7)
            pipeline(lambda: 7)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            pipeline.reload(Retry(2))
    finally:
        stop = True
        for thread in threads:
            thread.join()


def test_a_call_under_way_forbids_no_reload() -> None:
    pipeline = Pipeline(Retry(2))
    began, end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        end.wait(5)

    thread = threading.Thread(target=pipeline.call, args=(work,))
    thread.start()
    assert began.wait(5)
    pipeline.reload(Timeout(1.0))  # which cannot be around plain functions
    end.set()
    thread.join()


def test_whatever_a_policy_raises_a_reload_that_fails_is_told() -> None:
    class Broken:
        def around(self, function: object, _: object) -> Any:
            raise ZeroDivisionError

    pipeline = Pipeline(Fallback("old"))
    decorated: Any = pipeline(fail)
    with capture(ConfigReloadFailed) as told, pytest.raises(ZeroDivisionError):
        pipeline.reload(Broken())
    assert [event.as_dict()["reason"] for event in told] == ["ZeroDivisionError"]
    with capture(ConfigReloadFailed) as told, pytest.raises(ConfigurationError):
        pipeline.reload()
    assert "policies must not be empty" in str(told[0].as_dict()["reason"])
    assert decorated() == "old"


# --- orders, through pipelines and foreign decorators ---


def test_what_is_refused_in_a_row_is_refused_through_pipelines_and_decorators() -> None:
    breaker = CircuitBreaker("x")
    answered = Pipeline(Fallback(0))(fail)
    with pytest.raises(ConfigurationError, match="the cache would keep the fallback's answer"):
        Pipeline(Cache(1.0, max_size=1), Fallback(0, on=lambda _: True))
    for wrap in (Retry(), Pipeline(Retry()), breaker, Cache(1.0, max_size=1), Pipeline(Cache(1.0, max_size=1))):
        with pytest.raises(ConfigurationError, match=r"must not be around <Fallback to int>"):
            wrap(answered)
    with pytest.raises(ConfigurationError, match="must not be twice"):
        Pipeline(breaker)(Pipeline(breaker)(fail))
    with pytest.raises(ConfigurationError, match=r"guards .* already"):
        breaker(breaker(fail))
    CircuitBreaker("y", failure_on=OSError)(Fallback(0, on=KeyError)(fail))
    with pytest.raises(ConfigurationError, match="must not be around"):
        CircuitBreaker("y", failure_on=OSError)(Fallback(0, on=ConnectionError)(fail))


def test_a_fallback_for_rejections_stands_inside_a_retry_that_does_not_wait_for_them() -> None:
    Pipeline(Retry(), Fallback(0, on=CircuitOpenError))
    with pytest.raises(ConfigurationError, match="must not be around"):
        Pipeline(Retry(on=CircuitOpenError), Fallback(0, on=CircuitOpenError))


# --- limits by the arguments of a call ---


async def test_a_limiter_in_a_pipeline_knows_arguments_by_their_names() -> None:
    limiter = RateLimiter("2/second", name="x")
    seen: list[str] = []

    def by_user(user: str, **_: object) -> str:
        seen.append(user)
        return user

    async def search(user: str, text: str, limit: int = 5) -> str:
        return f"{user} {text} {limit}"

    async def connect() -> object:
        return object()

    async def load(connection: object, user: str) -> str:
        assert type(connection) is object
        return user

    bound = limiter.bound(key=by_user)
    for number, call in enumerate(
        (
            bound(search),
            bound(Timeout(1.0)(search)),
            Pipeline(bound)(search),
            Pipeline(bound, Timeout(1.0))(search),
            Pipeline.standard(limiter=bound, timeout=1.0)(search),
        )
    ):
        assert await call(f"user {number}", "owls") == f"user {number} owls 5"
    outcome = await Pipeline(bound, Timeout(1.0)).call_outcome(search, "alice", "owls")
    assert outcome.value == "alice owls 5"
    async with ConnectionPool(connect) as pool:
        inject: Any = pool.inject
        injected: list[Any] = [
            bound(inject(load)),
            Pipeline(bound, pool, Timeout(1.0))(load),
            rate_limit("9/second", key=by_user)(inject(load)),
        ]
        for one in injected:
            assert await one("bob") == "bob"
    assert seen == [*(f"user {number}" for number in range(5)), "alice", "bob", "bob", "bob"]


async def test_frameworks_are_not_asked_for_the_connection() -> None:
    async def load(connection: object, user: str, *, limit: int = 5) -> str:
        """Load."""
        return f"{user} {limit} {connection is not None}"

    async with ConnectionPool(anyio.sleep_forever) as pool:
        inject: Any = pool.inject
        for wrapped in (inject(load), Pipeline(pool)(load), Pipeline(Retry())(inject(load)), Retry()(inject(load))):
            assert str(inspect.signature(wrapped)) == "(user: 'str', *, limit: 'int' = 5) -> 'str'"
            assert (wrapped.__name__, wrapped.__doc__) == ("load", "Load.")


# --- why a call ended ---


async def test_an_outcome_tells_why_a_fallback_was_needed() -> None:
    async def work() -> None:
        await anyio.sleep(1)
        raise OSError

    broken = CircuitBreaker("x", initial_state=CircuitState.OPEN, clock=anyio.current_time)
    for inner, reason in (
        (broken, "circuit_open"),
        (Deadline(0.1), "deadline"),
        (Timeout(0.1), "attempts"),
        (Retry(2, on=KeyError), "not_retryable"),
        (Timeout(9.0), "attempts"),
    ):
        outcome = await Pipeline(Fallback("instead"), inner).call_outcome(work)
        assert (outcome.ok, outcome.value, outcome.stop_reason) == (True, "instead", reason)
    full = Bulkhead(1)
    async with anyio.create_task_group() as group:
        group.start_soon(full(anyio.sleep), 1)
        await anyio.sleep(0.1)
        outcome = await Pipeline(Fallback("instead", on=BulkheadFullError), full).call_outcome(work)
    assert outcome.stop_reason == "bulkhead_full"
    outcome = await Pipeline(Fallback("instead", on_result=lambda _: True)).call_outcome(anyio.sleep, 0)
    assert (outcome.value, outcome.stop_reason) == ("instead", "attempts")


async def test_a_hedge_that_won_was_a_success_whatever_the_attempts_that_lost_said() -> None:
    calls = 0

    async def work() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError
        await anyio.sleep(0.1)
        return 7

    outcome = await Pipeline(Hedge(1.0, idempotent=True), Retry(2, on=OSError)).call_outcome(work)
    assert (outcome.value, outcome.stop_reason) == (7, "success")


async def test_an_error_of_the_callee_is_in_the_outcome_whatever_its_type() -> None:
    def misconfigured() -> None:
        raise ConfigurationError("the callee's")

    async def misconfigured_later() -> None:
        raise ConfigurationError("the callee's")

    pipeline = Pipeline(Bulkhead(1))
    for outcome in (pipeline.call_outcome(misconfigured), await pipeline.call_outcome(misconfigured_later)):
        assert isinstance(outcome.error, ConfigurationError)
        assert not isinstance(outcome.error, CallTimeoutError)


# --- what plain functions give ---


def test_of_types_that_are_no_awaitables_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: set[type] = set()
    monkeypatch.setattr(policy, "_plain", remembered)
    made = [type(f"Made{number}", (), {}) for number in range(600)]
    for _ in range(2):
        for kind in made:
            assert type(Bulkhead(1).call(kind.__call__)) is kind
    assert len(remembered) == 500
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="a bulkhead got an awaitable from a plain function"):
            _ = Bulkhead(1).call(lambda: anyio.sleep(1))
