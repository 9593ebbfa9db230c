"""Corners of the pool that a reader of its code found: who is served by what is idle, what is counted, what is left."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from resilience import CircuitBreaker
from resilience.errors import PoolClosedError, PoolFullError, PoolUsageError
from resilience.events import ConnectionClosed, ConnectionOpened, capture, subscribe
from resilience.pool import Budget, ConnectionPool
from resilience.pool.adapters.adapter import Adapter
from resilience.pool.create import _prepared
from resilience.pool.waiters import Ticket, Waiters

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


async def settled() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_nobody_waits_beside_an_idle_connection_that_another_avoids(server: Server) -> None:
    server.takes["connect"] = 0.5
    async with server.pool(max_size=2) as pool:
        first = await pool.acquire()
        first.release()
        async with anyio.create_task_group() as group:

            async def avoid() -> None:
                (await pool.acquire(avoid=first)).release()

            group.start_soon(avoid)
            await settled()
            assert pool.stats().waiting == 1
            began = anyio.current_time()
            async with pool.acquire():
                assert anyio.current_time() == began


@pytest.mark.parametrize("how", ["release", "discard"])
async def test_a_lease_may_end_in_a_callback_of_the_loop(server: Server, anyio_backend_name: str, how: str) -> None:
    async with server.pool(max_size=1, reset=server.reset) as pool:
        lease = await pool.acquire()
        end = getattr(lease, how)
        if anyio_backend_name == "asyncio":
            asyncio.get_running_loop().call_soon(end)
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(end)
        async with pool.acquire(timeout=1):
            assert pool.stats().opened == (2 if how == "discard" else 1)


async def test_who_is_awake_too_late_for_its_connection_gets_another(server: Server) -> None:
    async with server.pool(max_size=1) as pool, anyio.create_task_group() as group:
        lease = await pool.acquire()
        borrowed: list[int] = []

        async def ask() -> None:
            async with pool.acquire() as connection:
                borrowed.append(connection.number)

        group.start_soon(ask)
        await settled()
        lease.release()
        pool._force()  # before the one who has it now is awake
        await settled()
        assert (borrowed, server.open) == ([2], [2])


async def test_what_it_gets_then_is_checked_although_its_first_one_was_new(server: Server) -> None:
    async with server.pool(max_size=2, check_after_idle=0, grow="demand") as pool, anyio.create_task_group() as group:
        lease = await pool.acquire()

        async def ask() -> None:
            async with pool.acquire() as connection:
                assert connection.number == 1

        def interfere(_: ConnectionOpened) -> None:
            lease.release()
            pool._force()

        server.takes["connect"] = 1.0
        with subscribe(interfere, ConnectionOpened):
            group.start_soon(ask)
            await anyio.sleep(2)
        assert server.checked == [1]


async def test_who_is_refused_while_it_waits_is_counted_too(server: Server) -> None:
    async with server.pool(max_size=1) as pool, anyio.create_task_group() as group:

        async def ask() -> None:
            with pytest.raises(PoolClosedError):
                await pool.acquire()

        async with pool.acquire():
            group.start_soon(ask)
            await settled()
            await pool.close(grace=0)
        assert pool.stats().rejected == 1


async def test_of_what_was_done_in_the_background_nothing_is_kept(server: Server) -> None:
    async with server.pool(max_size=1, reset=server.reset) as pool:
        for _ in range(5):
            async with pool.acquire():
                pass
        await settled()
        assert pool._engine._running == {}


async def test_a_pool_that_was_never_entered_can_be_closed_and_closed_again(server: Server) -> None:
    budget = Budget(3)
    pool = server.pool(budget=budget)
    await pool.close()
    with anyio.fail_after(1):
        await pool.close()
    async with server.pool(budget=budget) as other, other.acquire():
        assert budget.left == 2


async def test_a_closed_pool_cannot_be_resized_although_it_was_never_entered(server: Server) -> None:
    pool = server.pool()
    await pool.close()
    with pytest.raises(PoolClosedError):
        pool.resize(max_size=3)


async def test_what_is_being_reset_does_not_count_as_lent_beside_the_headroom(server: Server) -> None:
    server.takes["reset"] = 3.0
    async with server.pool(min_size=2, max_size=2, headroom=1, reset=server.reset) as pool:
        await pool.wait_ready(1)
        lease = await pool.acquire()
        waited: list[float] = []

        async def ask() -> None:
            began = anyio.current_time()
            async with pool.acquire():
                waited.append(anyio.current_time() - began)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await settled()
            assert (pool.stats().waiting, pool.stats().idle) == (1, 1)
            lease.release()
        assert waited == [0.0]


async def test_keepalive_keeps_no_connection_from_growing_idle(server: Server) -> None:
    async with server.pool(max_size=5, max_idle=0.5, keepalive=0.1) as pool:
        leases = [await pool.acquire() for _ in range(5)]
        for lease in leases:
            lease.release()
        for _ in range(200):
            async with pool.acquire():
                await anyio.sleep(0.005)
            await anyio.sleep(0.005)
        assert pool.stats().size == 1


@pytest.mark.parametrize("how", ["cut off", "broken"])
async def test_only_those_who_got_one_are_counted(server: Server, how: str) -> None:
    async with server.pool(max_size=1, check_after_idle=0.0) as pool:
        async with pool.acquire():
            pass
        await anyio.sleep(1)
        server.takes["check"] = 0.5
        if how == "broken":
            server.opened[0].is_broken = True
        with capture(ConnectionClosed) as told:
            with anyio.move_on_after(0.1 if how == "cut off" else 2):
                async with pool.acquire():
                    pass
            await settled()
        assert pool.stats().acquired == (1 if how == "cut off" else 2)
        assert [event.uses for event in told] == [1]


async def test_admission_says_what_acquire_does(server: Server) -> None:
    breaker = CircuitBreaker("db", clock=anyio.current_time)
    async with server.pool(min_size=1, max_size=1, max_waiting=0, breaker=breaker) as pool:
        await pool.wait_ready()
        async with pool.acquire():
            assert pool.admission() == (False, None, "pool_exhausted")
            with pytest.raises(PoolFullError):
                await pool.acquire()
        assert pool.admission().allowed  # an idle one serves whoever comes
        async with pool.acquire():
            pass
    server.takes["connect"] = 5.0
    async with server.pool(max_size=1, max_waiting=1, breaker=breaker) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.wait_ready)
        waiting: Any = pool.acquire()
        group.start_soon(waiting.__aenter__)
        await settled()
        assert pool.admission() == (False, None, "pool_exhausted")
        with pytest.raises(PoolFullError):
            await pool.acquire()
        group.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_pool_made_before_a_fork_and_not_entered_is_as_new_in_the_child() -> None:
    async def connect() -> object:
        return object()

    pool = ConnectionPool(connect)

    async def use() -> None:
        async with pool, pool.acquire():
            pass

    child = os.fork()
    if not child:
        try:
            anyio.run(use)
        except BaseException:  # noqa: BLE001 - whatever it is, the child must end here
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_why_a_connection_could_not_be_prepared_is_told_and_not_how_its_end_went() -> None:
    async def connect() -> Connection:
        return Connection(1)

    async def close(_: Connection) -> None:
        raise OSError("closing a dead connection")

    async def prepare(_: Connection) -> None:
        raise ValueError("no such role")

    async def check(_: Connection) -> None: ...

    adapter: Adapter[Connection] = Adapter(
        name="x", connect=connect, close=close, check=check, reset=check, permanent_errors=lambda _: False
    )
    with pytest.raises(ValueError, match="no such role"):
        await _prepared(adapter, prepare)()


async def test_nothing_is_opened_once_it_closes(server: Server) -> None:
    async with server.pool(max_size=4) as pool:
        lease = await pool.acquire()
        attempts = len(server.attempts)
        pool.warm(4)
        await pool.close(0.1)
        assert len(server.attempts) == attempts
        assert lease is not None


def test_the_longest_wait_is_the_longest_of_all_priorities() -> None:
    waiters = Waiters()
    assert waiters.since() == float("inf")
    for since, priority in ((1.0, 0), (9.0, 5), (3.0, 0)):
        waiters.add(Ticket(since, priority=priority))
    assert waiters.since() == 1.0


async def test_an_entered_twice_pool_says_so_still(server: Server) -> None:
    async with server.pool() as pool:
        with pytest.raises(PoolUsageError, match="entered twice"):
            async with pool:
                pass
