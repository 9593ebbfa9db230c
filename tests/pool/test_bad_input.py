"""What makes no sense is refused at once, by name, value and rule; what connect and check give is looked at."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import anyio
import anyio.to_thread
import pytest

from resilience import CircuitBreaker
from resilience.errors import ConfigurationError, PoolClosedError, PoolTimeoutError, PoolUsageError
from resilience.pool import ConnectionPool, PoolConfig

pytestmark = pytest.mark.anyio


async def connect() -> object:
    return object()


def make(function: Any = connect, **options: Any) -> ConnectionPool[Any]:
    return ConnectionPool(function, clock=anyio.current_time, rng=random.Random(1), debug=True, **options)


# --- configuration ---

DURATIONS = {
    "acquire_timeout": 0,
    "connect_timeout": "above",
    "check_timeout": "above",
    "reset_timeout": "above",
    "close_timeout": "above",
    "max_lifetime": "above",
    "max_idle": "above",
    "keepalive": "above",
    "check_after_idle": 0,
    "close_grace": 0,
    "reconnect_base": "above",
    "reconnect_cap": "above",
    "reconnect_give_up": 0,
    "leak_after": "above",
}
OPTIONAL = {"acquire_timeout", "max_lifetime", "max_idle", "keepalive", "check_after_idle", "leak_after"}


@pytest.mark.parametrize("field", DURATIONS)
@pytest.mark.parametrize("value", [-1, -0.001, nan, inf, True, "1", 4e8])
def test_a_duration_is_a_number_of_seconds(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{field} must be"):
        PoolConfig(**{field: value})


@pytest.mark.parametrize("field", DURATIONS)
def test_zero_and_none_are_allowed_where_they_mean_something(field: str) -> None:
    for value, allowed in ((0, DURATIONS[field] == 0), (None, field in OPTIONAL)):
        options: dict[str, Any] = {field: value}
        if allowed:
            PoolConfig(**options)
        else:
            with pytest.raises(ConfigurationError, match=f"{field} must be"):
                PoolConfig(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_size": 3, "max_size": 2}, "min_size must be at most max_size, 2, got 3"),
        ({"max_size": 0}, "max_size must be at least 1, got 0"),
        ({"max_size": 100_001}, "max_size must be at most 100,000"),
        ({"max_size": 2.0}, "max_size must be an int"),
        ({"max_size": True}, "max_size must be an int, got True"),
        ({"min_size": -1}, "min_size must be at least 0, got -1"),
        ({"max_waiting": -1}, "max_waiting must be at least 0"),
        ({"headroom": 10}, "headroom must be at most 9, got 10"),
        ({"headroom": -1}, "headroom must be at least 0"),
        ({"max_uses": 0}, "max_uses must be at least 1"),
        ({"max_connecting": 0}, "max_connecting must be at least 1"),
        ({"max_connecting": None}, "max_connecting must be an int"),
        ({"prewarm": -1}, "prewarm must be at least 0"),
        ({"reconnect_base": 2, "reconnect_cap": 1}, "reconnect_cap must be at least reconnect_base, 2, got 1"),
        ({"reuse": "random"}, "reuse must be one of 'lifo', 'fifo', got 'random'"),
        ({"grow": "fast"}, "grow must be one of 'cost', 'demand', got 'fast'"),
        ({"debug": "yes"}, "debug must be one of True, False, got 'yes'"),
        ({"on_reconnect_failed": 3}, "on_reconnect_failed must be a function, got 3"),
        ({"on_reconnect_failed": connect}, "on_reconnect_failed must be a plain function"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        PoolConfig(**options)
    with pytest.raises(ConfigurationError, match=told):
        ConnectionPool(connect, **options)


def test_configurations_are_equal_when_their_fields_are() -> None:
    assert PoolConfig(max_size=3) == PoolConfig(max_size=3)
    assert PoolConfig(max_size=3) != PoolConfig(max_size=4)
    assert ConnectionPool(connect, config=PoolConfig(max_size=3), min_size=1).config == PoolConfig(
        min_size=1, max_size=3
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"config": {"max_size": 3}}, "config must be a PoolConfig"),
        ({"max_sise": 3}, r"max_sise must be a field of PoolConfig: .*did you mean max_size\?"),
        ({"close": 3}, "close must be a function of a connection, got 3"),
        ({"check": "SELECT 1"}, "check must be a function"),
        ({"reset": []}, "reset must be a function"),
        ({"name": ""}, "name must be a non-empty string"),
        ({"name": 3}, "name must be a non-empty string, got 3"),
        ({"clock": 3}, "clock must be a function"),
        ({"breaker": "payments"}, "breaker must be a CircuitBreaker, got 'payments'"),
        ({"permanent_errors": 3}, "permanent_errors must be a function, got 3"),
        ({"permanent_errors": (ValueError, 3)}, "permanent_errors must be"),
        ({"permanent_errors": connect}, "permanent_errors must be a plain function"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ConnectionPool(connect, **options)


@pytest.mark.parametrize("function", [None, 3, "postgresql://", len, object])
def test_connect_is_an_async_function(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="connect must be an async function"):
        ConnectionPool(function)


async def test_what_is_awaited_by_another_name_is_an_async_function_too() -> None:
    class Driver:
        async def __call__(self) -> object:
            return object()

        async def connect(self) -> object:
            return object()

    for function in (Driver(), Driver().connect, partial(Driver().connect)):
        async with make(function) as pool, pool.acquire():
            pass


# --- what the user's functions give ---


async def test_a_connect_that_gives_nothing_is_told_to_who_asks() -> None:
    async def nothing() -> None:
        pass

    async with make(nothing) as pool:
        with pytest.raises(ConfigurationError, match="connect of pool 'pool' must return a connection, got None"):
            await pool.acquire()
        assert pool.stats().connect_failures == 1


async def test_a_connect_that_gives_the_same_again_is_told_to_who_asks() -> None:
    the_only = object()

    async def again() -> object:
        return the_only

    async with make(again, grow="demand") as pool, pool.acquire():
        with pytest.raises(PoolTimeoutError) as refusal:
            await pool.acquire(timeout=1)
        assert "must return a new connection each time" in str(refusal.value.__cause__)
        assert pool.stats().size == 1


@pytest.mark.parametrize("answer", [None, True, 0, "", [], object()])
async def test_a_check_says_no_by_raising_or_by_false_and_by_nothing_else(answer: Any) -> None:
    async with make(check=lambda _: answer, check_after_idle=0) as pool:
        (await pool.acquire()).release()
        async with pool.acquire():
            assert pool.stats().opened == 1


async def test_a_check_that_says_false_has_its_connection_replaced() -> None:
    async with make(check=lambda _: False, check_after_idle=0) as pool:
        (await pool.acquire()).release()
        async with pool.acquire():
            assert (pool.stats().opened, pool.stats().check_failures) == (2, 1)


# --- arguments of methods ---


@pytest.mark.parametrize("patience", [-1, nan, "3", True, 4e8])
async def test_a_patience_is_a_number_of_seconds(patience: Any) -> None:
    async with make() as pool:
        with pytest.raises(ConfigurationError, match="timeout must be"):
            pool.acquire(patience)


async def test_a_patience_may_be_endless() -> None:
    async with make(max_size=1) as pool:
        lease = await pool.acquire()

        async def give_back() -> None:
            await anyio.sleep(8_000)
            lease.release()

        async with anyio.create_task_group() as group:
            group.start_soon(give_back)
            async with pool.acquire(inf):
                assert anyio.current_time() >= 8_000


@pytest.mark.parametrize("priority", [1.0, "high", True])
async def test_a_priority_is_an_int(priority: Any) -> None:
    async with make() as pool:
        with pytest.raises(ConfigurationError, match="priority must be an int"):
            pool.acquire(priority=priority)


async def test_who_is_avoided_is_a_lease() -> None:
    async with make() as pool:
        with pytest.raises(ConfigurationError, match="avoid must be a lease of this pool"):
            pool.acquire(avoid=3)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda pool: pool.resize(max_size=0), "max_size must be at least 1"),
        (lambda pool: pool.resize(min_size=-1), "min_size must be at least 0"),
        (lambda pool: pool.resize(min_size=11), "min_size must be at most max_size, 10, got 11"),
        (lambda pool: pool.warm(-1), "connections must be at least 0"),
        (lambda pool: pool.warm(1.5), "connections must be an int"),
        (lambda pool: pool.inject(len), "inject needs an async function"),
    ],
)
async def test_methods_refuse_what_makes_no_sense_and_change_nothing(
    call: Callable[[ConnectionPool[Any]], Any], told: str
) -> None:
    async with make() as pool:
        before = pool.stats()
        with pytest.raises(ConfigurationError, match=told):
            call(pool)
        assert pool.stats() == before


async def test_a_grace_is_a_number_of_seconds() -> None:
    async with make() as pool:
        for grace in (-1, nan, "1"):
            with pytest.raises(ConfigurationError, match="grace must be"):
                await pool.close(grace)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(ConfigurationError, match="timeout must be"):
            await pool.wait_ready(-1)
        async with pool.acquire():
            pass


# --- at the wrong time, from the wrong place ---

USES: dict[str, Callable[[ConnectionPool[Any]], Any]] = {
    "acquire": lambda pool: pool.acquire(),
    "enter": lambda pool: pool.acquire().__aenter__(),
    "try_acquire": lambda pool: pool.try_acquire(),
    "wait_ready": lambda pool: pool.wait_ready(1),
    "check_idle": lambda pool: pool.check_idle(),
    "warm": lambda pool: pool.warm(1),
    "drain": lambda pool: pool.drain(),
}


async def use(pool: ConnectionPool[Any], what: str) -> None:
    used = USES[what](pool)
    if hasattr(used, "__await__"):
        await used


@pytest.mark.parametrize("what", USES)
async def test_a_pool_that_is_not_open_refuses_everything(what: str) -> None:
    pool = make()
    with pytest.raises(PoolUsageError, match="pool 'pool' is not open: enter it with `async with`"):
        await use(pool, what)


@pytest.mark.parametrize("what", USES)
async def test_a_pool_that_was_closed_refuses_everything(what: str) -> None:
    async with make() as pool:
        pass
    with pytest.raises(PoolClosedError):
        await use(pool, what)


async def test_a_pool_is_entered_once() -> None:
    async with make() as pool:
        with pytest.raises(PoolUsageError, match="entered twice"):
            await pool.__aenter__()
    with pytest.raises(PoolClosedError):
        await pool.__aenter__()


@pytest.mark.parametrize("what", USES)
@pytest.mark.parametrize("elsewhere", ["asyncio", "trio"])
async def test_a_pool_of_another_event_loop_refuses_everything(what: str, elsewhere: str) -> None:
    refusals: list[PoolUsageError] = []

    async def go() -> None:
        try:
            await use(pool, what)
        except PoolUsageError as refusal:
            refusals.append(refusal)

    async with make(min_size=1) as pool:
        await pool.wait_ready()
        await anyio.to_thread.run_sync(partial(anyio.run, go, backend=elsewhere))
        assert "belongs to another event loop" in str(refusals[0])
        assert pool.stats().idle == 1


async def test_a_thread_without_an_event_loop_is_elsewhere_too() -> None:
    refusals: list[BaseException] = []

    def go() -> None:
        for act in (pool.try_acquire, lease.release, lease.discard):
            try:
                act()
            except PoolUsageError as refusal:
                refusals.append(refusal)

    async with make() as pool:
        lease = await pool.acquire()
        thread = threading.Thread(target=go)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert len(refusals) == 3
        assert pool.stats().leased == 1
        lease.release()  # it is still good
        assert pool.stats().leased == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_after_a_fork_the_pool_is_the_parents() -> None:
    async with make(min_size=1) as pool:
        await pool.wait_ready()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                pool.try_acquire()
            except PoolUsageError as refusal:
                status = 0 if "make one after the fork" in str(refusal) else 2
            finally:
                os._exit(status)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        async with pool.acquire():
            pass


# --- leases ---


async def test_a_lease_ends_once() -> None:
    async with make() as pool:
        lease = await pool.acquire()
        assert (lease.id, lease.uses, lease.age) == (1, 1, 0.0)
        assert repr(lease) == "<Lease of connection 1, pool 'pool'>"
        lease.release()
        for act in (lease.release, lease.discard, lambda: lease.connection, lambda: lease.id, lambda: lease.age):
            with pytest.raises(PoolUsageError, match="used after its end"):
                act()
        assert repr(lease) == "<Lease over, pool 'pool'>"
        assert pool.stats().idle == 1


async def test_a_lease_that_ended_does_not_end_the_next_one_of_its_connection() -> None:
    async with make(max_size=1) as pool:
        first = await pool.acquire()
        first.release()
        second = await pool.acquire()
        with pytest.raises(PoolUsageError):
            first.release()
        assert pool.stats().leased == 1
        second.release()


async def test_a_request_is_for_one_borrowing() -> None:
    async with make() as pool:
        request = pool.acquire()
        async with request:
            with pytest.raises(PoolUsageError, match="entered twice"):
                await request.__aenter__()
        assert pool.stats().leased == 0


async def test_a_connection_of_somebody_else_is_not_discarded() -> None:
    async with make() as pool, make() as other:
        lease = await other.acquire()
        with pytest.raises(PoolUsageError, match="has not lent this connection"):
            pool.discard(lease.connection)
        lease.release()
        with pytest.raises(PoolUsageError, match="has not lent this connection"):
            other.discard(lease)


async def test_a_breaker_may_be_given() -> None:
    async with make(breaker=CircuitBreaker("database")) as pool, pool.acquire():
        pass
