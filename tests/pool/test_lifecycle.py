"""Opening, being ready, closing, and what the pool tells of itself meanwhile."""

from __future__ import annotations

import asyncio
import sys
from math import inf
from typing import Any

import anyio
import pytest
import trio

from resilience.errors import PoolClosedError, PoolTimeoutError
from resilience.events import ConnectionClosed, ConnectionOpened, PoolClosed, PoolFailed, PrewarmPredicted, capture
from resilience.pool import ConnectionPool, PoolHealth

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


async def hold(pool: ConnectionPool[Connection], seconds: float) -> None:
    async with pool.acquire():
        await anyio.sleep(seconds)


async def settled() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


# --- being ready ---


async def test_many_may_wait_until_the_pool_is_ready_and_one_may_give_up(server: Server) -> None:
    """psycopg's `wait()` fails for the second, and for the first after a cancelled one."""
    server.takes["connect"] = 1.0
    async with server.pool(min_size=3, max_size=3) as pool:
        began = anyio.current_time()
        ready: list[float] = []

        async def wait(patience: float) -> None:
            with anyio.move_on_after(patience):
                await pool.wait_ready()
                ready.append(anyio.current_time() - began)

        async with anyio.create_task_group() as group:
            for patience in (0.5, 5, 5):
                group.start_soon(wait, patience)
        assert ready == [1.0, 1.0]
        await pool.wait_ready(0)  # it is


async def test_not_to_be_ready_in_time_is_told_with_the_reason(server: Server) -> None:
    server.is_down()
    async with server.pool(min_size=1) as pool:
        with pytest.raises(PoolTimeoutError) as refusal:
            await pool.wait_ready(2)
        assert refusal.value.reason == "not_ready"
        assert "connecting has failed for 2 s: ConnectionRefusedError" in str(refusal.value)
        assert isinstance(refusal.value.__cause__, ConnectionRefusedError)


async def test_who_waits_for_readiness_hears_of_the_end(server: Server) -> None:
    server.is_down()
    async with server.pool(min_size=1) as pool, anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(PoolClosedError):
                await pool.wait_ready()

        group.start_soon(wait)
        await anyio.sleep(1)
        await pool.close()


# --- closing ---


async def test_closing_lets_borrowers_finish(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool, anyio.create_task_group() as group:
        group.start_soon(hold, pool, 3.0)
        await settled()
        began = anyio.current_time()
        with capture(PoolClosed) as told:
            await pool.close(grace=5)
        assert anyio.current_time() - began == 3.0
        assert [event.forced for event in told] == [0]
        assert server.open == []


async def test_closing_does_not_wait_longer_than_its_grace(server: Server) -> None:
    """38, asyncpg `test_pool_close_timeout`; ours raises nothing, and a later release is silent."""
    async with server.pool(close_grace=0.1) as pool:
        lease = await pool.acquire()
        began = anyio.current_time()
        with capture(PoolClosed) as told:
            await pool.close()
        assert anyio.current_time() - began == pytest.approx(0.1)
        assert [event.forced for event in told] == [1]
        assert server.open == []
        lease.release()


async def test_closing_refuses_who_waits_at_once_and_whoever_comes(server: Server) -> None:
    async with server.pool(max_size=1) as pool, anyio.create_task_group() as group:
        group.start_soon(hold, pool, 5.0)
        await settled()
        refused: list[float] = []

        async def wait() -> None:
            with pytest.raises(PoolClosedError):
                await pool.acquire()
            refused.append(anyio.current_time())

        group.start_soon(wait)
        await anyio.sleep(1)
        group.start_soon(pool.close)
        await settled()
        assert refused == [1.0]
        with pytest.raises(PoolClosedError):
            pool.try_acquire()
        assert "closed, 1 of 1 lent" in repr(pool)


async def test_closing_gives_up_what_is_being_opened(server: Server) -> None:
    """aiohttp `test_close_during_connect`; psycopg makes callers wait for a connect that hangs."""
    server.takes["connect"] = inf
    async with server.pool(min_size=2, max_size=2, connect_timeout=60.0) as pool:
        await anyio.sleep(1)
        began = anyio.current_time()
        await pool.close()
        assert anyio.current_time() == began
        assert pool.stats().connecting == 0


async def test_what_a_connect_opens_in_spite_of_that_is_closed(server: Server) -> None:
    async def stubborn() -> Connection:
        opened: list[Connection] = []
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2)
            opened.append(await server.connect())
        return opened[0]

    async with ConnectionPool(stubborn, close=server.close, min_size=1, clock=anyio.current_time, debug=True) as pool:
        await anyio.sleep(1)
        await pool.close()
        assert len(server.opened) == 1
        assert server.open == []


async def test_closing_again_waits_for_the_first_to_end(server: Server) -> None:
    async with server.pool(close_grace=3.0) as pool, anyio.create_task_group() as group:
        lease = await pool.acquire()
        group.start_soon(pool.close)
        await anyio.sleep(1)
        began = anyio.current_time()
        await pool.close(grace=0)
        assert anyio.current_time() - began == 2.0
        lease.release()
        await pool.close()


async def test_a_close_that_hangs_is_let_go(server: Server) -> None:
    server.takes["close"] = inf
    async with server.pool(min_size=3, max_size=3, close_timeout=2.0) as pool:
        await pool.wait_ready()
        began = anyio.current_time()
    assert anyio.current_time() - began == pytest.approx(2.0)


async def test_cancellation_ends_the_grace_and_closes_everything_nevertheless(server: Server) -> None:
    server.takes["close"] = 0.5
    with anyio.move_on_after(1) as scope:
        async with server.pool(min_size=2, max_size=2) as pool:
            lease = await pool.acquire()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert server.open == []
    assert anyio.current_time() <= 2.0
    lease.release()


async def test_the_blocks_own_exception_comes_out_as_it_is(server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        async with server.pool(min_size=1):
            raise ZeroDivisionError
    assert server.open == []


async def test_nothing_of_the_pool_is_left(server: Server) -> None:
    async with anyio.create_task_group() as group:
        before = anyio.get_running_tasks()
        async with server.pool(min_size=3, max_size=5, keepalive=1.0) as pool:
            for _ in range(10):
                group.start_soon(hold, pool, 1.0)
            await anyio.sleep(5)
        assert [task.id for task in anyio.get_running_tasks()] == [task.id for task in before]


# --- what goes wrong in it ---


async def test_a_bug_in_the_keeper_is_told_and_ends_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server.pool(min_size=1, max_idle=1.0) as pool:
        await pool.wait_ready()
        right = pool._core.due
        left = [3]

        def wrong(now: float) -> Any:
            if left[0]:
                left[0] -= 1
                raise ZeroDivisionError
            return right(now)

        monkeypatch.setattr(pool._core, "due", wrong)
        with capture(PoolFailed) as told:
            await anyio.sleep(20)
        assert [event.error_type for event in told] == ["ZeroDivisionError"] * 3
        async with pool.acquire():
            pass


async def test_a_callback_that_raises_is_told_and_ends_nothing(server: Server) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    server.is_down()
    async with server.pool(min_size=1, reconnect_give_up=1.0, on_reconnect_failed=fails) as pool:
        with capture(PoolFailed) as told:
            await anyio.sleep(10)
        assert [event.error_type for event in told] == ["ZeroDivisionError"]
        server.is_up()
        async with pool.acquire():
            pass


async def test_a_close_that_raises_is_of_no_consequence(server: Server) -> None:
    def close(_: object) -> None:
        raise ZeroDivisionError

    async with server.pool(close=close) as pool:
        with capture(PoolFailed) as told:
            (await pool.acquire()).discard()
            await settled()
            async with pool.acquire():
                pass
        assert told == []
        assert pool.stats().closed == 1


# --- what it tells ---


async def test_health_says_up_degraded_or_down(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool:
        assert pool.health() == PoolHealth("up", None, 0.0)
        lease = await pool.acquire()
        server.is_down()
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=4)
        assert pool.health() == PoolHealth("degraded", "ConnectionRefusedError", failing_for=4.0)
        lease.discard()
        assert pool.health() == PoolHealth("down", "ConnectionRefusedError", 4.0)
        server.is_up()
        async with pool.acquire():
            assert pool.health() == PoolHealth("up", None, 0.0)


async def test_the_life_of_a_connection_is_told(server: Server) -> None:
    server.takes["connect"] = 0.5
    async with server.pool(name="shop") as pool:
        with capture(ConnectionOpened, ConnectionClosed) as told:
            lease = await pool.acquire()
            await anyio.sleep(2)
            lease.discard()
            await settled()
        opened, closed = told
        assert isinstance(opened, ConnectionOpened)
        assert isinstance(closed, ConnectionClosed)
        assert (opened.name, opened.id, opened.duration) == ("shop", 1, 0.5)
        assert (closed.reason, closed.age, closed.uses) == ("discarded", 2.0, 1)


async def test_a_pool_can_be_read_by_people(server: Server) -> None:
    pool = server.pool(name="shop")
    assert repr(pool) == "<ConnectionPool 'shop' not open, 0 of 0 lent, 0 waiting, 0 connecting>"
    assert pool.name == "shop"
    async with pool, pool.acquire():
        assert repr(pool) == "<ConnectionPool 'shop' open, 1 of 1 lent, 0 waiting, 0 connecting>"


async def test_advice_comes_from_what_was_borrowed(server: Server) -> None:
    async with server.pool(max_size=2) as pool:
        assert pool.advice().recommended is None
        for _ in range(40):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(hold, pool, 1.0)
            await anyio.sleep(1.0)
        advice = pool.advice()
        assert advice.borrowings == 240
        assert advice.hold == pytest.approx(1.0)
        assert advice.wait_share == pytest.approx(4 / 6)
        assert advice.recommended is not None
        assert 4 <= advice.recommended <= 6
        assert advice.outlook is None
        assert "would have cut waits" in str(advice)


async def test_a_peak_that_comes_again_is_prepared_for(server: Server) -> None:
    async with server.pool(max_size=20, max_idle=35.0, prewarm=8, grow="demand") as pool:
        with capture(PrewarmPredicted) as told:
            sizes = []
            for _ in range(5):
                await anyio.sleep(30)
                sizes.append(pool.stats().size)
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(hold, pool, 1.0)
                await anyio.sleep(29)
        assert sizes[0] == 0
        assert all(size == 8 for size in sizes[2:])  # as many as it may, before anybody asks
        assert [event.actual for event in told][:3] == [10, 10, 10]
        assert [event.predicted for event in told][1:3] == [8, 8]
        assert pool.advice().outlook is not None


# --- other loops ---


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop has no Windows")
def test_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async def connect() -> object:
            await asyncio.sleep(0.001)
            return object()

        async with ConnectionPool(connect, max_size=3, debug=True) as pool:

            async def use() -> None:
                async with pool.acquire():
                    await asyncio.sleep(0)

            await asyncio.gather(*(use() for _ in range(100)))
            tasks = [asyncio.create_task(use()) for _ in range(30)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            leases = [await pool.acquire() for _ in range(3)]
            for lease in leases:
                lease.release()
            assert pool.stats().idle == 3

    uvloop.run(main())


# --- callbacks ---


@pytest.mark.parametrize("how", ["release", "discard"])
def test_a_lease_may_end_in_a_callback_of_any_loop(how: str, server: Server) -> None:
    """Where no task runs, and anyio alone starts nothing: asyncio's own runner tells it of no loop."""

    async def main() -> None:
        async with ConnectionPool(server.connect, reset=server.reset, close=server.close, max_size=1) as pool:
            for _ in range(2):
                lease = await pool.acquire()
                asyncio.get_running_loop().call_soon(getattr(lease, how))
                async with pool.acquire(1):
                    pass
        assert not server.open

    asyncio.run(main())
    trio.run(in_a_callback_of_trio, server, how)


async def in_a_callback_of_trio(server: Server, how: str) -> None:
    async with ConnectionPool(server.connect, reset=server.reset, close=server.close, max_size=1) as pool:
        for _ in range(2):
            lease = await pool.acquire()
            trio.lowlevel.current_trio_token().run_sync_soon(getattr(lease, how))
            async with pool.acquire(1):
                pass
    assert not server.open
