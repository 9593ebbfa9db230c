"""What users of other pools expect, as their own tests tell it: who is served when, and by which connection.

Names in the docstrings say whose test it was.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience.errors import PoolFullError, PoolTimeoutError
from resilience.events import LeakReturned, LeakSuspected, ReconnectFailed, capture
from resilience.pool import ConnectionPool

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


class Crowd:
    """Callers who hold a connection for a while.

    Attributes:
        ended: when each was done, by its number; those who got none are not in it.
        used: the number of the connection that each got.
        failed: the errors of those who got none, and when.
    """

    def __init__(self, pool: ConnectionPool[Connection]) -> None:
        self.pool = pool
        self.began = anyio.current_time()
        self.ended: dict[int, float] = {}
        self.used: dict[int, int] = {}
        self.failed: dict[int, tuple[float, BaseException]] = {}

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.began, 9)

    async def call(self, number: int, hold: float, patience: float | None = None, priority: int = 0) -> None:
        try:
            async with self.pool.acquire(patience, priority=priority) as connection:
                self.used[number] = connection.number
                await anyio.sleep(hold)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failed[number] = self.now, error
        else:
            self.ended[number] = self.now

    async def come(self, holds: list[float], patience: list[float] | float | None = None) -> None:
        async with anyio.create_task_group() as group:
            for number, hold in enumerate(holds):
                own = patience[number] if isinstance(patience, list) else patience
                group.start_soon(self.call, number, hold, own)
                await settled()  # so that they come in this order


async def settled() -> None:
    """Let all others get as far as they can without time passing."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def is_idle(pool: ConnectionPool[Any], connections: int) -> None:
    stats = pool.stats()
    assert (stats.idle, stats.size, stats.waiting) == (connections, connections, 0)


# --- waiting ---


async def test_callers_are_served_in_their_order(server: Server) -> None:
    """1, psycopg `test_queue`."""
    async with server.pool(max_size=2) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.2] * 6)
        assert crowd.ended == pytest.approx({0: 0.2, 1: 0.2, 2: 0.4, 3: 0.4, 4: 0.6, 5: 0.6})
        assert len(server.opened) == 2


async def test_more_than_max_waiting_are_refused_at_once(server: Server) -> None:
    """2, psycopg `test_queue_size`."""
    async with server.pool(max_size=1, max_waiting=3, name="shop") as pool:
        crowd = Crowd(pool)
        await crowd.come([0.3] * 5)
        assert sorted(crowd.ended) == [0, 1, 2, 3]
        at, error = crowd.failed[4]
        assert at == 0.0
        assert isinstance(error, PoolFullError)
        assert "shop" in str(error)
        assert pool.stats().rejected == 1


async def test_who_waits_too_long_is_told(server: Server) -> None:
    """3, psycopg `test_queue_timeout`."""
    async with server.pool(max_size=2, acquire_timeout=0.1) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.2] * 4)
        assert sorted(crowd.ended) == [0, 1]
        assert [at for at, _ in crowd.failed.values()] == pytest.approx([0.1, 0.1])
        assert pool.stats().timed_out == 2


async def test_who_has_left_is_not_served(server: Server) -> None:
    """4, psycopg `test_dead_client`."""
    async with server.pool(max_size=2) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.3] * 5, [0.4, 0.4, 0.1, 0.4, 0.4])
        assert sorted(crowd.ended) == [0, 1, 3, 4]
        await is_idle(pool, 2)


async def test_all_may_be_cancelled_while_they_wait(server: Server) -> None:
    """6, psycopg `test_cancellation_in_queue`."""
    async with server.pool(max_size=3) as pool:
        scopes: list[anyio.CancelScope] = []

        async def call() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                async with pool.acquire():
                    await anyio.sleep(5)

        async with anyio.create_task_group() as group:
            for _ in range(9):
                group.start_soon(call)
                await settled()
            assert (pool.stats().leased, pool.stats().waiting) == (3, 6)
            for scope in reversed(scopes):
                scope.cancel()
        await anyio.sleep(0.1)
        await is_idle(pool, 3)
        async with pool.acquire():
            pass


async def test_numbers_add_up(server: Server) -> None:
    """15, psycopg `test_stats_usage`."""
    async with server.pool(max_size=3, acquire_timeout=0.3) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.2] * 7)
        stats = pool.stats()
        assert (stats.acquired, stats.timed_out, stats.opened, stats.size, stats.idle) == (6, 1, 3, 3, 3)
        assert stats.waited_seconds == pytest.approx(3 * 0.2 + 0.3)
        assert stats.used_seconds == pytest.approx(6 * 0.2)


async def test_five_and_twenty_thousand_may_wait(server: Server) -> None:
    """31, bb8 `test_lots_of_waiters`; a tenth of them in virtual time, all of them in the benchmark."""
    async with server.pool(max_size=3, debug=False) as pool:
        served = 0

        async def call() -> None:
            nonlocal served
            async with pool.acquire():
                served += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(2_500):
                group.start_soon(call)
        assert served == 2_500
        await is_idle(pool, 3)


async def test_higher_priority_is_served_first_and_in_its_order(server: Server) -> None:
    """36, generic-pool "supports priority on borrow"."""
    order: list[tuple[int, int]] = []
    async with server.pool(max_size=1) as pool:

        async def call(priority: int, number: int) -> None:
            async with pool.acquire(priority=priority):
                order.append((priority, number))

        lease = await pool.acquire()
        async with anyio.create_task_group() as group:
            for priority in (0, 1):
                for number in range(10):
                    group.start_soon(call, priority, number)
                    await settled()
            lease.release()
    assert order == [(priority, number) for priority in (1, 0) for number in range(10)]


async def test_no_time_takes_what_is_there(server: Server) -> None:
    """40, httpcore `test_connection_pool_timeout_zero`."""
    async with server.pool(max_size=1, min_size=1) as pool:
        await pool.wait_ready()
        for _ in range(2):
            async with pool.acquire(timeout=0):
                pass
        async with pool.acquire():
            began = anyio.current_time()
            with pytest.raises(PoolTimeoutError):
                await pool.acquire(timeout=0)
            assert anyio.current_time() == began


async def test_a_scope_that_ends_while_a_connection_is_used_leaves_the_pool_whole(server: Server) -> None:
    """40, httpcore `test_connection_pool_timeout_during_request`."""
    async with server.pool(max_size=1) as pool:
        with anyio.move_on_after(0.01):
            async with pool.acquire():
                await anyio.sleep_forever()
        await is_idle(pool, 1)
        async with pool.acquire():
            pass


async def test_a_caller_who_gives_up_leaves_the_capacity_as_it_was(server: Server) -> None:
    """31, bb8 `test_timeout_caller`."""
    async with server.pool(max_size=1) as pool:
        async with pool.acquire():
            with anyio.move_on_after(0.1):
                await pool.acquire()
            assert pool.stats().waiting == 0
        await is_idle(pool, 1)


async def test_a_newcomer_never_passes_who_waits(server: Server) -> None:
    """Not so with asyncpg, SQLAlchemy, redis-py."""
    order: list[str] = []
    async with server.pool(max_size=1) as pool:

        async def call(name: str) -> None:
            async with pool.acquire():
                order.append(name)

        lease = await pool.acquire()
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(call, f"waits {number}")
                await settled()
            lease.release()
            group.start_soon(call, "newcomer")  # before those who wait have run again
    assert order == ["waits 0", "waits 1", "waits 2", "newcomer"]


async def test_who_borrows_in_a_loop_does_not_starve_who_waits(server: Server) -> None:
    """For ever, with SQLAlchemy, redis-py and others."""
    turns = 0
    async with server.pool(max_size=1) as pool:

        async def loop() -> None:
            nonlocal turns
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                while turns < 5_000:
                    async with pool.acquire():
                        turns += 1
                        await anyio.lowlevel.checkpoint()

        scopes: list[anyio.CancelScope] = []
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            await settled() if turns else await anyio.lowlevel.checkpoint()
            async with pool.acquire():
                assert turns <= 2
            scopes[0].cancel()


async def test_who_was_given_a_broken_connection_keeps_the_place(server: Server) -> None:
    order: list[str] = []
    async with server.pool(max_size=1, check_after_idle=0) as pool:

        async def call(name: str) -> None:
            async with pool.acquire():
                order.append(name)

        lease = await pool.acquire()
        server.opened[0].is_broken = True
        async with anyio.create_task_group() as group:
            for name in ("first", "second", "third"):
                group.start_soon(call, name)
                await settled()
            lease.release()
    assert order == ["first", "second", "third"]


async def test_a_hurried_caller_behind_a_patient_one_gives_up_in_time(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        lease = await pool.acquire()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0, 200.0)
            await anyio.sleep(50.3)
            group.start_soon(crowd.call, 1, 0.0, 0.5)
            await anyio.sleep(2)
            assert crowd.failed[1][0] == pytest.approx(50.8)
            lease.release()


async def test_who_has_no_time_has_nothing_opened(server: Server) -> None:
    async with server.pool() as pool:
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=0)
        assert server.attempts == []


# --- growing and shrinking ---


async def test_it_grows_in_parallel(server: Server) -> None:
    """12, psycopg `test_grow`, whose connections come one after the other."""
    server.takes["connect"] = 0.1
    async with server.pool(min_size=2, max_size=4, grow="demand") as pool:
        await pool.wait_ready()
        crowd = Crowd(pool)
        await crowd.come([0.25] * 8)
        assert list(crowd.ended.values()) == pytest.approx([0.25, 0.25, 0.35, 0.35, 0.50, 0.50, 0.60, 0.60])


async def test_it_shrinks_to_the_minimum_and_stays_there(server: Server) -> None:
    """11, psycopg `test_shrink`."""
    async with server.pool(min_size=2, max_size=4, max_idle=0.2, grow="demand") as pool:
        await Crowd(pool).come([0.1] * 4)
        assert pool.stats().size == 4
        await anyio.sleep(0.25)
        assert pool.stats().size == 2
        await anyio.sleep(10)
        await is_idle(pool, 2)


async def test_it_ramps_up_and_down(server: Server) -> None:
    """23, HikariCP `RampUpDown`."""
    async with server.pool(min_size=5, max_size=60, max_idle=1.0, grow="demand") as pool:
        leases = [await pool.acquire() for _ in range(60)]
        for lease in leases:
            lease.release()
        await is_idle(pool, 60)
        await anyio.sleep(1.01)
        await is_idle(pool, 5)


async def test_the_connection_that_came_back_last_is_lent_next(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand") as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        assert [(await pool.acquire()).id for _ in range(3)] == [3, 2, 1]


async def test_or_the_one_that_was_idle_longest(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand", reuse="fifo") as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        assert [(await pool.acquire()).id for _ in range(3)] == [1, 2, 3]


async def test_one_connection_is_enough_for_one_caller(server: Server) -> None:
    """Not so with aiomisc, which opens one for each of the first callers."""
    async with server.pool(max_size=5) as pool:
        for _ in range(5):
            async with pool.acquire():
                pass
        assert len(server.opened) == 1


# --- a server that is away ---


@pytest.mark.parametrize("used", [True, False], ids=["used", "not used before"])
@pytest.mark.parametrize(("work", "most_opened", "latest"), [(0.002, 5, 0.03), (0.01, 5, 0.12), (0.2, 45, 0.37)])
async def test_a_burst_is_worth_what_it_costs(
    server: Server, used: bool, work: float, most_opened: int, latest: float
) -> None:
    """HikariCP's spike, short work and long work by one configuration: 50 at once, 5 open, opening takes 150 ms."""
    server.takes["connect"] = 0.15

    async def borrow() -> None:
        async with pool.acquire():
            await anyio.sleep(work)

    async with server.pool(min_size=5, max_size=50, max_connecting=50) as pool:
        await pool.wait_ready()
        if used:
            async with pool.acquire():
                await anyio.sleep(work)
        opened, began = pool.stats().opened, anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(borrow)
        assert pool.stats().opened - opened <= most_opened
        assert anyio.current_time() - began <= latest + 1e-9


async def test_pauses_grow_up_to_the_cap(server: Server) -> None:
    """8, psycopg `test_reconnect`, which has no cap."""
    async with server.pool(min_size=1, max_size=1, reconnect_base=0.1, reconnect_cap=0.8) as pool:
        await pool.wait_ready()
        server.is_down()
        server.opened[0].is_broken = True
        began = anyio.current_time()
        lease = await pool.acquire()
        lease.discard()
        with anyio.move_on_after(5):
            await pool.acquire(inf)
        moments = [at - began for at in server.attempts[1:]]
        pauses = [later - sooner for sooner, later in pairwise(moments)]
        assert pauses == pytest.approx([0.1, 0.2, 0.4] + [0.8] * (len(pauses) - 3))
        assert len(pauses) > 6
        server.is_up()
        back = anyio.current_time()
        async with pool.acquire():
            assert anyio.current_time() - back <= 0.8


async def test_who_watches_is_called_once_for_each_outage(server: Server) -> None:
    """9 and 10, psycopg `test_reconnect_failure` and `test_reconnect_after_grow_failed`."""
    called: list[float] = []
    server.is_down()
    options: dict[str, Any] = {
        "min_size": 4,
        "max_size": 4,
        "reconnect_give_up": 1.0,
        "on_reconnect_failed": lambda: called.append(anyio.current_time()),
    }
    async with server.pool(**options) as pool:
        with capture(ReconnectFailed) as told:
            for outage in (1, 2):
                server.is_down()
                pool.drain()
                began = anyio.current_time()
                with pytest.raises(PoolTimeoutError):
                    await pool.acquire(timeout=0.5)
                await anyio.sleep(5)
                assert len(called) == len(told) == outage
                assert called[-1] - began == pytest.approx(1.0, abs=0.1)
                assert pool.stats().size == 0
                server.is_up()
                async with pool.acquire(timeout=3.0):
                    pass
                with anyio.fail_after(3):
                    await pool.wait_ready()
                await is_idle(pool, 4)
        assert [event.error_type for event in told] == ["ConnectionRefusedError"] * 2


async def test_callers_do_not_hang_when_all_connects_fail(server: Server) -> None:
    """19, Go `TestPendingConnsAfterErr`."""
    server.is_down()
    async with server.pool(max_size=2, permanent_errors=ConnectionRefusedError) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.1] * 6)
        assert {type(error) for _, error in crowd.failed.values()} == {ConnectionRefusedError}
        assert len(crowd.failed) == 6
        assert len({id(error) for _, error in crowd.failed.values()}) == 6  # each its own
        assert [at for at, _ in crowd.failed.values()] == [0.0] * 6


async def test_a_lease_that_comes_back_serves_who_waits_while_nothing_can_be_opened(server: Server) -> None:
    """20, HikariCP `testConnectionRetries5`."""
    async with server.pool(max_size=2) as pool:
        lease = await pool.acquire()
        server.is_down()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0)
            await anyio.sleep(0.25)
            lease.release()
        assert crowd.ended[0] == pytest.approx(0.25)


async def test_a_short_outage_is_waited_for(server: Server) -> None:
    """21, HikariCP `testConnectionRetries2`."""
    server.is_down()
    async with server.pool(max_size=1, acquire_timeout=2.8) as pool:
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0)
            await anyio.sleep(0.3)
            server.is_up()
        assert 0.3 <= crowd.ended[0] < 0.9


async def test_one_that_fails_its_check_while_nothing_can_be_opened_is_replaced_when_it_can(server: Server) -> None:
    """34, Commons `testLivenessOnTransientFactoryFailure`."""
    async with server.pool(max_size=1, check_after_idle=0, reconnect_base=0.01) as pool:
        lease = await pool.acquire()
        server.opened[0].is_broken = True
        server.is_down()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0, 0.1)
            await settled()
            lease.release()
            await anyio.sleep(0.01)
            server.is_up()
        assert crowd.ended[0] < 0.1


async def test_a_connection_that_is_discarded_makes_room_for_who_waits(server: Server) -> None:
    """32, Commons `testInvalidateFreesCapacity`."""
    async with server.pool(max_size=2, grow="demand") as pool:
        held, other = await pool.acquire(), await pool.acquire()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0, 0.5)
            await anyio.sleep(0.02)
            other.discard()
        assert crowd.ended[0] == pytest.approx(0.02)
        assert crowd.used[0] == 3
        held.release()


async def test_a_discarded_connection_is_replaced_once_for_all_who_wait(server: Server) -> None:
    """35, SQLAlchemy `test_notify_waiters`."""
    async with server.pool(max_size=1) as pool:
        lease = await pool.acquire()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(crowd.call, number, 0.0)
            await settled()
            lease.discard()
        assert len(crowd.ended) == 5
        assert len(server.attempts) == 2


async def test_one_failed_connect_wakes_exactly_one(server: Server) -> None:
    server.takes["connect"] = 1.0
    server.is_down()
    async with server.pool(max_size=1, permanent_errors=ConnectionRefusedError) as pool:
        crowd = Crowd(pool)
        await crowd.come([0.0] * 3)
        assert [at for at, _ in crowd.failed.values()] == pytest.approx([1.0, 2.0, 3.0])


# --- health ---


async def test_keepalive_keeps_a_connection_alive(server: Server) -> None:
    """22, HikariCP `testKeepalive`: the server ends what was silent for 0.7 s."""
    async with server.pool(min_size=1, max_size=1, keepalive=0.5) as pool:
        await pool.wait_ready()
        await anyio.sleep(1.2)
        assert server.checked == [1, 1]
        async with pool.acquire() as connection:
            assert connection.number == 1


async def test_keepalive_replaces_what_the_server_has_ended(server: Server) -> None:
    """22, HikariCP `testKeepalive2`: nobody sees the one that was ended."""
    async with server.pool(min_size=1, max_size=1, keepalive=0.7) as pool:
        await pool.wait_ready()
        await anyio.sleep(0.5)
        server.opened[0].is_broken = True
        await anyio.sleep(0.7)
        assert server.open == [2]
        async with pool.acquire() as connection:
            assert connection.number == 2


async def test_a_connection_is_retired_while_it_is_idle(server: Server) -> None:
    """25, HikariCP `testMaxLifetime`."""
    async with server.pool(max_size=1, min_size=1, max_lifetime=0.7) as pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                assert connection.number == 1
        await anyio.sleep(2)
        assert 1 not in server.open
        assert len(server.open) == 1


async def test_its_replacement_is_there_before(server: Server) -> None:
    server.takes["connect"] = 0.1
    least = 1
    async with server.pool(min_size=1, max_size=2, max_lifetime=100.0, jitter=0.0) as pool:
        await pool.wait_ready()
        for _ in range(1_000):
            await anyio.sleep(1.0)
            least = min(least, pool.stats().idle)
            assert len(server.open) <= 2
        assert least == 1
        assert 10 <= len(server.opened) <= 12


async def test_checking_takes_one_connection_out_of_service_at_a_time(server: Server) -> None:
    """27, puddle `TestPoolAcquireAllIdle`; psycopg's `check()` takes all of them."""
    server.takes["check"] = 0.05
    async with server.pool(max_size=4, grow="demand") as pool:
        leases = [await pool.acquire() for _ in range(4)]
        for lease in leases[:2]:
            lease.release()
        assert await pool.check_idle() == 0
        assert sorted(server.checked) == [1, 2]
        for lease in leases[2:]:
            lease.release()

        least = 4

        async def watch() -> None:
            nonlocal least
            while True:
                least = min(least, pool.stats().idle)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await pool.check_idle()
            group.cancel_scope.cancel()
        assert least == 3


async def test_a_check_is_no_use(server: Server) -> None:
    """29, puddle `TestResourceLastUsageTimeTracking`."""
    async with server.pool(max_size=1, max_idle=1.0, keepalive=0.3) as pool:
        (await pool.acquire()).release()
        await anyio.sleep(1.01)
        assert len(server.checked) == 3
        assert pool.stats().size == 0  # idle all the time


async def test_after_one_broken_connection_all_others_are_suspect(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand", check_after_idle=10.0) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        server.opened[0].is_broken = server.opened[1].is_broken = True
        await anyio.sleep(5)
        assert await pool.check_idle() == 2  # and never slept between them
        await settled()
        assert server.open == [3]
        server.checked.clear()
        async with pool.acquire() as connection:
            assert connection.number == 3
        assert server.checked == []  # it had been seen alive since


async def test_who_finds_a_broken_one_makes_the_next_look_at_theirs(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand", check_after_idle=1.0) as pool:
        leases = [await pool.acquire() for _ in range(2)]
        leases[1].release()
        await anyio.sleep(2)
        leases[0].release()  # seen alive just now, and lent next
        server.opened[1].is_broken = True
        first = await pool.acquire()
        second = await pool.acquire()
        assert (first.id, second.id) == (1, 3)
        assert server.checked == [2]
        first.release()
        second.release()


async def test_a_failed_borrowers_connection_is_checked_before_it_is_lent_again(server: Server) -> None:
    async with server.pool(max_size=1, check_after_idle=None) as pool:
        for error in (None, ValueError, None):
            try:
                async with pool.acquire():
                    if error is not None:
                        raise error
            except ValueError:
                pass
        assert server.checked == [1]


async def test_a_check_that_its_caller_cuts_off_condemns_one_connection_and_no_other(server: Server) -> None:
    server.takes["check"] = 3.0
    async with server.pool(max_size=2, grow="demand", check_timeout=5.0, check_after_idle=1.0) as pool:
        leases = [await pool.acquire() for _ in range(2)]
        for lease in leases:
            lease.release()
        await anyio.sleep(2)
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=1.0)
        assert pool.stats().check_failures == 0
        assert pool.stats().size == 1
        async with pool.acquire(timeout=4.0) as connection:
            assert connection.number in {1, 2}


async def test_a_check_that_never_ends_has_failed_when_its_time_is_over(server: Server) -> None:
    server.takes["check"] = inf
    async with server.pool(max_size=1, check_timeout=0.5, check_after_idle=0) as pool:
        (await pool.acquire()).release()
        began = anyio.current_time()
        async with pool.acquire() as connection:
            assert anyio.current_time() - began == pytest.approx(0.5)
            assert connection.number == 2
        assert pool.stats().check_failures == 1


async def test_a_connection_is_replaced_after_so_many_uses(server: Server) -> None:
    async with server.pool(max_size=1, max_uses=3) as pool:
        used = []
        for _ in range(7):
            async with pool.acquire() as connection:
                used.append(connection.number)
        assert used == [1, 1, 1, 2, 2, 2, 3]


# --- resetting ---


async def test_a_reset_goes_on_in_the_background(server: Server) -> None:
    server.takes["reset"] = 0.2
    async with server.pool(max_size=1, reset=server.reset) as pool:
        lease = await pool.acquire()
        lease.release()
        assert pool.stats().reserved == 1
        began = anyio.current_time()
        async with pool.acquire() as connection:
            assert anyio.current_time() - began == pytest.approx(0.2)
            assert connection.number == 1


@pytest.mark.parametrize("how", ["raises", "never ends", "raises at once"])
async def test_a_connection_that_cannot_be_reset_is_replaced(server: Server, how: str) -> None:
    def reset(connection: Connection) -> Any:
        if how == "raises at once" and connection.is_broken:
            raise ConnectionResetError
        return server.reset(connection)

    server.takes["reset"] = inf if how == "never ends" else 0.0
    async with server.pool(max_size=1, reset=reset, reset_timeout=0.5) as pool:
        lease = await pool.acquire()
        server.opened[0].is_broken = True
        lease.release()
        async with pool.acquire() as connection:
            assert connection.number == 2
        assert pool.stats().reset_failures == 1


async def test_a_reset_that_needs_no_waiting_is_done_at_once(server: Server) -> None:
    seen: list[int] = []
    async with server.pool(max_size=1, reset=lambda connection: seen.append(connection.number)) as pool:
        lease = await pool.acquire()
        lease.release()
        assert seen == [1]
        await is_idle(pool, 1)


async def test_a_failed_borrowers_connection_is_checked_although_it_was_reset(server: Server) -> None:
    async with server.pool(max_size=1, reset=server.reset, check_after_idle=None) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.acquire():
                raise ZeroDivisionError
        async with pool.acquire():
            assert server.checked == [1]


@pytest.mark.parametrize("why", ["drained", "discarded", "too old"])
async def test_what_must_go_goes_when_its_borrower_is_done(server: Server, why: str) -> None:
    async with server.pool(max_size=1, max_lifetime=10.0, jitter=0.0) as pool:
        async with pool.acquire() as connection:
            if why == "drained":
                pool.drain()
            elif why == "discarded":
                pool.discard(connection)
            else:
                await anyio.sleep(11)
        assert pool.stats().size == 0
        await settled()
        assert server.open == []


# --- draining and resizing ---


async def test_draining_replaces_every_connection(server: Server) -> None:
    """14, psycopg `test_drain`, and 28, puddle `TestPoolResetDestroysCheckedOutResourcesOnReturn`."""
    async with server.pool(max_size=4, grow="demand") as pool:
        leases = [await pool.acquire() for _ in range(4)]
        leases[3].release()
        pool.drain()
        assert pool.stats().size == 3
        assert all(lease.connection.is_open for lease in leases[:3])
        for lease in leases[:3]:
            lease.release()
        await settled()
        assert pool.stats().closed == 4
        again = [await pool.acquire() for _ in range(2)]
        assert [lease.id for lease in again] == [5, 6]
        for lease in again:
            lease.release()
        assert (await pool.acquire()).id in {5, 6}


async def test_resizing_moves_both_bounds(server: Server) -> None:
    async with server.pool(min_size=4, max_size=4) as pool:
        await pool.wait_ready()
        pool.resize(min_size=4, max_size=4)
        await anyio.sleep(1)
        await is_idle(pool, 4)  # psycopg makes it 6
        leases = [await pool.acquire() for _ in range(4)]
        pool.resize(min_size=0, max_size=2)
        leases.pop().release()
        assert pool.stats().size == 3
        leases.pop().release()
        leases.pop().release()
        await is_idle_or_lent(pool, 2)
        pool.resize(min_size=3, max_size=5)
        await anyio.sleep(1)
        await is_idle_or_lent(pool, 3)


async def is_idle_or_lent(pool: ConnectionPool[Any], connections: int) -> None:
    stats = pool.stats()
    assert stats.size == connections == stats.idle + stats.leased


async def test_resizing_upwards_serves_who_waits(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        lease = await pool.acquire()
        crowd = Crowd(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(crowd.call, 0, 0.0)
            await anyio.sleep(0.5)
            pool.resize(max_size=2)
        assert crowd.ended[0] == pytest.approx(0.5)
        lease.release()


async def test_warming_opens_so_many_once(server: Server) -> None:
    async with server.pool(max_size=5, max_idle=10.0) as pool:
        pool.warm(3)
        await anyio.sleep(1)
        await is_idle(pool, 3)
        pool.warm(100)
        await anyio.sleep(1)
        await is_idle(pool, 5)
        await anyio.sleep(20)
        await is_idle(pool, 0)


# --- leaks ---


async def test_a_leak_is_told_once_and_so_is_its_return(server: Server) -> None:
    """24, HikariCP `MiscTest.testLeakDetection`."""
    async with server.pool(leak_after=1.0) as pool:
        with capture(LeakSuspected, LeakReturned) as told:

            async def forget() -> None:
                async with pool.acquire():
                    await anyio.sleep(4)

            await forget()
        suspected, returned = told
        assert isinstance(suspected, LeakSuspected)
        assert isinstance(returned, LeakReturned)
        assert suspected.held == pytest.approx(1.0, abs=0.01)
        assert "test_scenarios.py" in suspected.site
        assert suspected.site.endswith("forget")
        assert suspected.suspended_at.endswith("forget")
        assert returned.held == pytest.approx(4.0)
        assert returned.site == suspected.site


# --- functions and try_acquire ---


async def test_a_function_gets_a_connection_for_each_call(server: Server) -> None:
    async with server.pool(max_size=1) as pool:

        @pool.inject
        async def double(connection: Connection, number: int, *, plus: int = 0) -> int:
            """Double it."""
            assert connection.is_open
            return 2 * number + plus

        assert await double(4, plus=1) == 9
        assert double.__doc__ == "Double it."
        await is_idle(pool, 1)


async def test_what_is_not_there_at_once_is_not_waited_for(server: Server) -> None:
    async with server.pool(max_size=1, check_after_idle=1.0) as pool:
        assert pool.try_acquire() is None  # none is open, and none is opened for it
        (await pool.acquire()).release()
        lease = pool.try_acquire()
        assert lease is not None
        assert pool.try_acquire() is None
        lease.release()
        await anyio.sleep(2)
        assert pool.try_acquire() is None  # it would have to be checked
        await is_idle(pool, 1)
