"""Who is refused, when, and in which words: timeouts, hopeless waits, deadlocks, breakers, permanent errors."""

from __future__ import annotations

import gc
import weakref
from math import inf
from typing import Any

import anyio
import pytest

from resilience import CircuitBreaker, CountWindow
from resilience.errors import CircuitOpenError, PoolDeadlockError, PoolTimeoutError
from resilience.events import AcquireTimedOut, ConnectFailed, PoolExhausted, PoolRecovered, capture
from resilience.pool import ConnectionPool

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


async def hold(pool: ConnectionPool[Connection], seconds: float) -> None:
    async with pool.acquire():
        await anyio.sleep(seconds)


async def settled() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


# --- timeouts ---


async def test_a_timeout_says_what_the_pool_was_busy_with(server: Server) -> None:
    async with server.pool(max_size=1, name="shop", min_size=1) as pool, anyio.create_task_group() as group:
        await pool.wait_ready()
        group.start_soon(hold, pool, 5)
        await anyio.sleep(1)
        with capture(AcquireTimedOut) as told, pytest.raises(PoolTimeoutError) as refusal:
            await pool.acquire(timeout=2)
        error = refusal.value
        text = str(error)
        assert text.startswith(
            "pool 'shop' had no connection in time: 1 of 1 open, 1 lent, 0 idle, 0 in check or reset"
        )
        assert "lent for 3 s at " in text
        assert "test_refusals.py" in text
        assert text.endswith(" hold")
        assert error.reason == "timeout"
        assert error.stats.leased == 1
        assert error.__cause__ is None
        assert isinstance(error, TimeoutError)
        (event,) = told
        assert isinstance(event, AcquireTimedOut)
        assert (event.waited, event.size, event.leased, event.waiting) == (2.0, 1, 1, 0)


async def test_a_timeout_has_the_last_error_of_connecting(server: Server) -> None:
    server.is_down()
    async with server.pool() as pool:
        with pytest.raises(PoolTimeoutError, match="connecting has failed for 2 s: ConnectionRefusedError") as refusal:
            await pool.acquire(timeout=2)
        assert isinstance(refusal.value.__cause__, ConnectionRefusedError)


async def test_an_error_that_is_kept_keeps_nothing_else(server: Server) -> None:
    class Secret:
        pass

    known: list[weakref.ref[Secret]] = []

    async def connect() -> Connection:
        secret = Secret()
        known.append(weakref.ref(secret))
        raise ConnectionError(1) from OSError(2)

    async with ConnectionPool(connect, min_size=1, clock=anyio.current_time, debug=True) as pool:
        await anyio.sleep(1)
        gc.collect()
        assert known
        assert not any(secret() for secret in known)
        assert pool.health().cause == "ConnectionError"


async def test_exhaustion_is_told_at_its_beginning_and_its_end(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        with capture(PoolExhausted, PoolRecovered) as told:
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(hold, pool, 1.0)
            await hold(pool, 1.0)
        assert [type(event) for event in told] == [PoolExhausted, PoolRecovered]
        recovered = told[1]
        assert isinstance(recovered, PoolRecovered)
        assert recovered.duration == 4.0  # when the last of the four has come back


async def test_that_the_last_who_waited_gave_up_is_no_recovery(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        with capture(PoolExhausted, PoolRecovered) as told:
            lease = await pool.acquire()
            for _ in range(5):
                with pytest.raises(PoolTimeoutError):
                    await pool.acquire(0.3)
            lease.release()
            assert pool.stats().idle == 1
        assert [event.kind for event in told] == ["pool.exhausted", "pool.recovered"]
        assert told[1].as_dict()["duration"] == pytest.approx(1.5)


# --- hopeless waits ---


@pytest.mark.parametrize("how", ["timeout", "scope"])
async def test_a_wait_that_cannot_end_in_time_is_refused_at_once(server: Server, how: str) -> None:
    async with server.pool(max_size=1) as pool:
        for _ in range(20):
            await hold(pool, 1.0)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(hold, pool, 1.0)
            await settled()
            began = anyio.current_time()
            with anyio.fail_after(inf if how == "timeout" else 3), pytest.raises(PoolTimeoutError) as refusal:
                await pool.acquire(3 if how == "timeout" else inf)
            assert anyio.current_time() == began
            assert refusal.value.reason == "hopeless"
            assert "about 4 s until its turn" in str(refusal.value)
            with anyio.fail_after(4.5):  # this one can
                await hold(pool, 0.0)
        assert pool.stats().rejected == 1


async def test_who_is_cancelled_is_cancelled_and_not_refused(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        for _ in range(20):
            await hold(pool, 1.0)
        lease = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(hold, pool, 1.0)
            await settled()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await pool.acquire(inf)
            assert scope.cancelled_caught
            lease.release()


async def test_nothing_is_hopeless_without_evidence_or_where_the_pool_can_grow(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        for _ in range(19):
            await hold(pool, 1.0)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(hold, pool, 1.0)
            await settled()
            with pytest.raises(PoolTimeoutError) as refusal:
                await pool.acquire(3)
            assert refusal.value.reason == "timeout"
    async with server.pool(max_size=10, grow="cost") as pool:
        server.takes["connect"] = 0.5
        for _ in range(30):
            await hold(pool, 1.0)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(hold, pool, 1.0)
                await settled()
            await hold(pool, 0.0)


# --- deadlocks ---


async def test_tasks_that_wait_for_each_other_are_told(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool:
        began = anyio.current_time()
        errors: list[tuple[int, float, PoolDeadlockError]] = []
        done: list[int] = []

        async def borrow_two(number: int) -> None:
            try:
                async with pool.acquire():
                    await anyio.sleep(0.1 * (number + 1))
                    async with pool.acquire():
                        done.append(number)
            except PoolDeadlockError as error:
                errors.append((number, anyio.current_time() - began, error))

        async with anyio.create_task_group() as group:
            group.start_soon(borrow_two, 0)
            group.start_soon(borrow_two, 1)
        ((number, at, error),) = errors
        assert number == 1  # the youngest
        assert at < 0.6
        assert done == [0]
        assert error.held_at.endswith("borrow_two")
        assert error.waiting_at.endswith("borrow_two")
        assert error.held_at != error.waiting_at
        assert pool.stats().idle == 2


async def test_what_only_looks_like_a_deadlock_is_waited_for(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool:

        async def borrow_two() -> None:
            async with pool.acquire():
                await anyio.sleep(0.1)
                async with pool.acquire():
                    pass

        async with anyio.create_task_group() as group:
            group.start_soon(borrow_two)
            group.start_soon(hold, pool, 10)  # who holds the other one waits for nothing
        async with anyio.create_task_group() as group:
            lease = await pool.acquire()  # who holds this one cannot be told
            group.start_soon(borrow_two)
            await anyio.sleep(10)
            lease.release()
        assert pool.stats().rejected == 0


# --- permanent errors and breakers ---


class WrongPasswordError(Exception):
    pass


@pytest.mark.parametrize(
    "permanent", [WrongPasswordError, (KeyError, WrongPasswordError), lambda error: "wrong" in str(error)]
)
async def test_a_permanent_error_reaches_its_caller_as_it_is(server: Server, permanent: Any) -> None:
    server.refuses = lambda: WrongPasswordError("wrong")
    async with server.pool(permanent_errors=permanent) as pool:
        for _ in range(3):
            began = anyio.current_time()
            with capture(ConnectFailed) as told, pytest.raises(WrongPasswordError, match="wrong"):
                await pool.acquire()
            assert anyio.current_time() == began
            assert len(told) == 1
        assert pool.health().status == "down"
        server.is_up()
        async with pool.acquire():
            assert pool.health().status == "up"


async def test_a_permanent_error_does_not_reach_who_can_still_be_served(server: Server) -> None:
    async with server.pool(max_size=2, permanent_errors=WrongPasswordError, grow="demand") as pool:
        lease = await pool.acquire()
        server.refuses = WrongPasswordError
        async with anyio.create_task_group() as group:
            group.start_soon(hold, pool, 0.0)
            await anyio.sleep(10)
            assert 3 <= pool.stats().connect_failures <= 10  # with pauses between them
            assert pool.health().status == "degraded"
            lease.release()


async def test_a_predicate_that_raises_calls_nothing_permanent(server: Server) -> None:
    server.is_down()
    async with server.pool(permanent_errors=lambda error: 1 / 0) as pool:
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=1)


def breaker_of(clock: Any) -> CircuitBreaker:
    return CircuitBreaker(
        "database", window=CountWindow(2), minimum_calls=2, open_duration=5.0, open_jitter=0.0, clock=clock
    )


async def test_an_open_breaker_refuses_all_who_wait_where_nothing_can_come_back(server: Server) -> None:
    server.is_down()
    breaker = breaker_of(anyio.current_time)
    errors: list[CircuitOpenError] = []
    async with server.pool(max_size=3, breaker=breaker) as pool:

        async def ask() -> None:
            with pytest.raises(CircuitOpenError) as refusal:
                await pool.acquire()
            errors.append(refusal.value)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        assert len({id(error) for error in errors}) == 10
        assert len(server.attempts) <= 4
        began = anyio.current_time()
        await ask()  # who comes later as well, and at once
        assert anyio.current_time() == began
        assert errors[-1].retry_after is not None
        assert len(server.attempts) <= 4
        server.is_up()
        await anyio.sleep(errors[-1].retry_after)
        async with pool.acquire():
            pass
        assert str(breaker.state) in {"closed", "half_open"}


async def test_an_open_breaker_lets_callers_wait_for_what_comes_back(server: Server) -> None:
    breaker = breaker_of(anyio.current_time)
    async with server.pool(max_size=2, breaker=breaker, grow="demand") as pool:
        lease = await pool.acquire()
        breaker.force_open()
        async with anyio.create_task_group() as group:
            group.start_soon(hold, pool, 0.0)
            await anyio.sleep(5)
            assert pool.stats().waiting == 1
            with pytest.raises(PoolTimeoutError, match="the circuit breaker 'database' is forced_open"):
                await pool.acquire(timeout=1)
            lease.release()


# --- other wishes ---


async def test_callers_without_priority_leave_the_headroom_alone(server: Server) -> None:
    async with server.pool(max_size=10, headroom=4, grow="demand", acquire_timeout=1.0) as pool:
        jobs = [await pool.acquire() for _ in range(6)]
        with pytest.raises(PoolTimeoutError):
            await pool.acquire()
        pages = [await pool.acquire(priority=1) for _ in range(4)]
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(priority=1)
        pages.pop().release()
        with pytest.raises(PoolTimeoutError):
            await pool.acquire()
        jobs.pop().release()
        jobs.append(await pool.acquire())
        for lease in (*jobs, *pages):
            lease.release()


async def test_an_avoided_connection_is_not_lent_to_who_avoids_it(server: Server) -> None:
    async with server.pool(max_size=2) as pool:
        first = await pool.acquire()
        first.release()
        second = await pool.acquire(avoid=first)
        assert (first.last_slot.id, second.id) == (1, 2)
        second.release()
        third = await pool.acquire(avoid=second)
        assert third.id == 1
        third.release()


async def test_an_avoided_connection_is_replaced_where_no_other_can_be(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        first = await pool.acquire()
        first.release()
        second = await pool.acquire(avoid=first)
        assert second.id == 2
        assert server.open == [2]
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                async with pool.acquire(avoid=second) as connection:
                    assert connection.number == 3

            group.start_soon(ask)
            await settled()
            second.release()
