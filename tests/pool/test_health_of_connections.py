"""What a pool does to keep its connections well, and what its callers notice of it: exact to the moment.

What is marked as expected to fail is a bug that is known; the mark goes when the bug does.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience import CircuitBreaker, CountWindow
from resilience.errors import CircuitOpenError, ConfigurationError, PoolTimeoutError, PoolUsageError
from resilience.events import (
    CheckFailed,
    ConnectionClosed,
    LeakReturned,
    LeakSuspected,
    PoolHealthChanged,
    ResetFailed,
    capture,
)
from resilience.pool import Budget, ConnectionPool
from resilience.testing import VirtualClock

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


async def settled() -> None:
    """Let all others get as far as they can without time passing."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def open_and_idle(pool: ConnectionPool[Connection], connections: int) -> None:
    leases = [await pool.acquire() for _ in range(connections)]
    for lease in leases:
        lease.release()


async def borrow(pool: ConnectionPool[Connection], patience: float | None = None) -> tuple[float, int]:
    """Borrow for no time; gives the seconds waited, and the number of the connection."""
    began = anyio.current_time()
    async with pool.acquire(patience) as connection:
        return round(anyio.current_time() - began, 9), connection.number


# --- what the driver knows ---


def is_closed(connection: Connection) -> bool:
    return connection.is_broken


async def test_a_connection_that_is_known_to_be_closed_is_not_lent(server: Server) -> None:
    for options in ({}, {"check": None}, {"check_after_idle": None}):
        async with server.pool(is_closed=is_closed, max_size=1, **options) as pool:
            first = (await borrow(pool))[1]
            server.opened[-1].is_broken = True  # within the time for which no check is asked
            with capture(CheckFailed) as failed:
                async with pool.acquire() as connection:
                    assert connection.number == first + 1
            server.opened[-1].is_broken = True
            lease = await pool.acquire()
            assert lease.connection.number == first + 2
            lease.release()
            server.opened[-1].is_broken = True
            assert pool.try_acquire() is None
            assert (await borrow(pool))[1] == first + 3
            assert len(failed) == 1
            assert server.open == [first + 3]


async def test_one_that_closed_while_it_was_lent_is_not_handed_over(server: Server) -> None:
    got: list[int] = []

    async def wait_for_it() -> None:
        got.append((await borrow(pool))[1])

    async with server.pool(is_closed=is_closed, max_size=1) as pool:
        async with anyio.create_task_group() as group, pool.acquire() as connection:
            group.start_soon(wait_for_it)
            await settled()
            connection.is_broken = True
        assert got == [2]


async def test_one_whose_driver_does_not_know_is_checked(server: Server) -> None:
    def unknown(_: Connection) -> bool:
        raise RuntimeError

    async with server.pool(is_closed=unknown, max_size=1) as pool:
        for number in range(1, 4):
            assert (await borrow(pool))[1] == 1
            assert server.checked == [1] * (number - 1)


# --- keepalive ---


async def test_keepalive_checks_one_after_the_other(server: Server) -> None:
    at: list[float] = []
    running = most = 0

    async def check(_: Connection) -> None:
        nonlocal running, most
        at.append(anyio.current_time() - began)
        running += 1
        most = max(most, running)
        await anyio.sleep(0.2)
        running -= 1

    async with server.pool(max_size=4, grow="demand", keepalive=1.0, check=check) as pool:
        began = anyio.current_time()
        await open_and_idle(pool, 4)
        await anyio.sleep(1.3)
        assert (pool.stats().reserved, pool.stats().idle) == (1, 3)
        await anyio.sleep(0.6)
        assert at == pytest.approx([1.0, 1.2, 1.4, 1.6])
        assert most == 1


async def test_keepalive_checks_first_what_was_silent_for_longest(server: Server) -> None:
    server.takes["check"] = 0.5
    async with server.pool(max_size=3, grow="demand", keepalive=1.0) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for number in (2, 3, 1):
            leases[number - 1].release()
            await anyio.sleep(0.1)
        await anyio.sleep(2.3)  # the second and the third are both due when the first is done
        assert server.checked[:3] == [2, 3, 1]


async def test_a_caller_does_not_wait_for_keepalive_while_another_is_idle(server: Server) -> None:
    server.takes["check"] = 0.2
    async with server.pool(max_size=2, grow="demand", keepalive=1.0, check_after_idle=None) as pool:
        await open_and_idle(pool, 2)
        await anyio.sleep(1.1)
        assert pool.stats().reserved == 1
        assert (await borrow(pool))[0] == 0


async def test_keepalive_that_hangs_does_not_make_callers_wait_longer_than_they_want(server: Server) -> None:
    server.takes["check"] = inf
    async with server.pool(max_size=2, grow="demand", keepalive=1.0, check_after_idle=None) as pool:
        held, other = await pool.acquire(), await pool.acquire()
        other.release()
        await anyio.sleep(1.5)
        began = anyio.current_time()
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=0.5)
        held.release()
        assert anyio.current_time() - began == pytest.approx(0.5)


async def test_keepalive_that_hangs_does_not_delay_the_next_attempt_to_connect(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand", keepalive=1.0, check_timeout=30.0, check_after_idle=None) as pool:
        held, other = await pool.acquire(), await pool.acquire()
        other.release()
        server.takes["check"] = inf
        await anyio.sleep(1.5)
        server.is_down()
        async with anyio.create_task_group() as group:
            waits: list[float] = []

            async def ask() -> None:
                waits.append((await borrow(pool, 100))[0])

            group.start_soon(ask)
            await anyio.sleep(0.5)
            server.is_up()
        held.release()
        assert waits[0] <= 1.0


async def test_keepalive_that_hangs_does_not_delay_what_is_told_of_leaks(server: Server) -> None:
    server.takes["check"] = inf
    async with server.pool(max_size=2, grow="demand", keepalive=1.0, leak_after=1.0, check_after_idle=None) as pool:
        await open_and_idle(pool, 2)
        await anyio.sleep(1.5)
        with capture(LeakSuspected) as told:
            async with pool.acquire():
                await anyio.sleep(2)
        assert [event.held for event in told] == pytest.approx([1.0])


# --- checks ---


@pytest.mark.parametrize("how", ["sync raises", "sync False", "async raises", "async False"])
async def test_a_connection_is_replaced_whichever_way_its_check_says_no(server: Server, how: str) -> None:
    def no() -> bool:
        if how.endswith("raises"):
            raise ValueError
        return False

    async def later() -> bool:
        await anyio.sleep(0.5)
        return no()

    async with server.pool(max_size=1, check_after_idle=0, check=lambda _: later() if "async" in how else no()) as pool:
        await open_and_idle(pool, 1)
        with capture(CheckFailed, ConnectionClosed) as told:
            assert await borrow(pool) == (0.5 if "async" in how else 0.0, 2)
            await settled()
        failed, closed = told
        assert isinstance(failed, CheckFailed)
        assert isinstance(closed, ConnectionClosed)
        assert failed.error_type == ("ValueError" if how.endswith("raises") else "ConnectionError")
        assert (closed.id, closed.reason) == (1, "check_failed")


async def test_a_check_that_takes_long_is_waited_for(server: Server) -> None:
    server.takes["check"] = 3.0
    async with server.pool(max_size=1, check_after_idle=0) as pool:
        await open_and_idle(pool, 1)
        assert await borrow(pool) == (3.0, 1)
        assert pool.stats().waited_seconds == pytest.approx(3.0)


@pytest.mark.parametrize("who", ["its patience", "its scope"])
async def test_a_check_that_is_cut_off_makes_no_other_suspect(server: Server, who: str) -> None:
    server.takes["check"] = 3.0
    async with server.pool(max_size=2, grow="demand", reuse="fifo", check_after_idle=10.0) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        first.release()
        await anyio.sleep(20)
        second.release()
        if who == "its patience":  # what is there at the end of its patience it may have
            assert await borrow(pool, 1.0) == (1.0, 2)
        else:
            with anyio.move_on_after(1.0) as scope:
                await borrow(pool)
            assert scope.cancelled_caught
            assert await borrow(pool) == (0.0, 2)
        assert server.checked == [1]
        await settled()
        assert server.open == [2]
        assert pool.stats().check_failures == 0


async def test_a_check_whose_own_time_is_over_makes_all_others_suspect(server: Server) -> None:
    server.takes["check"] = 3.0
    async with server.pool(max_size=2, grow="demand", reuse="fifo", check_after_idle=10.0, check_timeout=1.0) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        first.release()
        await anyio.sleep(20)
        second.release()
        assert await borrow(pool) == (2.0, 3)
        assert server.checked == [1, 2]
        assert pool.stats().check_failures == 2


async def test_who_asks_while_the_only_one_is_checked_waits_for_that_check(server: Server) -> None:
    """27, puddle `TestPoolAcquireAllIdle`, second half."""
    server.takes["check"] = 0.05
    async with server.pool(max_size=1) as pool:
        await open_and_idle(pool, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.check_idle)
            await settled()
            assert await borrow(pool) == (0.05, 1)


async def test_two_whose_connections_were_broken_keep_their_order(server: Server) -> None:
    server.takes["check"] = 0.1
    async with server.pool(max_size=2, grow="demand", check_after_idle=0, max_connecting=1) as pool:
        await open_and_idle(pool, 2)
        for connection in server.opened:
            connection.is_broken = True
        server.takes["connect"] = 1.0
        order: list[str] = []

        async def ask(name: str) -> None:
            async with pool.acquire():
                order.append(name)
                await anyio.sleep(5)

        async with anyio.create_task_group() as group:
            for name in "ABC":
                group.start_soon(ask, name)
                await anyio.sleep(0.01)
        assert order == ["A", "B", "C"]


async def test_who_got_a_connection_counts_once(server: Server) -> None:
    async with server.pool(max_size=1, check_after_idle=0) as pool:
        await open_and_idle(pool, 1)
        server.opened[0].is_broken = True
        await borrow(pool)
        assert pool.stats().acquired == 2


@pytest.mark.parametrize("how", ["try_acquire", "no time"])
async def test_without_a_check_an_idle_connection_is_there_at_once_however_long_it_was_idle(
    server: Server, how: str
) -> None:
    async with server.pool(max_size=1, check=None) as pool:
        await open_and_idle(pool, 1)
        await anyio.sleep(2)
        lease = pool.try_acquire() if how == "try_acquire" else await pool.acquire(timeout=0)
        assert lease is not None
        lease.release()


async def test_without_a_check_what_a_failed_borrower_gave_back_is_there_at_once(server: Server) -> None:
    async with server.pool(max_size=1, check=None) as pool:
        with pytest.raises(LookupError):
            async with pool.acquire():
                raise LookupError
        lease = pool.try_acquire()
        assert lease is not None
        lease.release()


async def test_try_acquire_finds_the_one_that_needs_no_check(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand", reuse="fifo", check_after_idle=1.0) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        first.release()
        await anyio.sleep(1.5)
        second.release()
        lease = pool.try_acquire()
        assert lease is not None
        assert lease.id == 2
        lease.release()


# --- failed borrowers ---


@pytest.mark.parametrize("how", ["raises", "is cancelled"])
async def test_after_a_borrower_that_failed_a_broken_connection_is_found_and_replaced(server: Server, how: str) -> None:
    async with server.pool(max_size=1, check_after_idle=None) as pool:

        async def fail() -> None:
            async with pool.acquire():
                server.opened[0].is_broken = True
                await (anyio.sleep_forever() if how == "is cancelled" else anyio.sleep(0.5))
                raise ValueError

        with anyio.move_on_after(1), suppress(ValueError):
            await fail()
        assert pool.stats().idle == 1
        assert await borrow(pool) == (0.0, 2)
        assert server.checked == [1]


async def test_after_a_borrower_that_failed_the_next_who_waits_has_it_checked_too(server: Server) -> None:
    server.takes["check"] = 0.1
    async with server.pool(max_size=1, check_after_idle=None) as pool, anyio.create_task_group() as group:
        got: list[tuple[float, int]] = []

        async def ask() -> None:
            got.append(await borrow(pool))

        async def fail() -> None:
            async with pool.acquire():
                group.start_soon(ask)
                await anyio.sleep(1)
                raise ValueError

        with suppress(ValueError):
            await fail()
        await anyio.sleep(1)
        assert got == [(1.1, 1)]
        assert server.checked == [1]


# --- resetting ---


async def test_a_second_release_resets_nothing(server: Server) -> None:
    """33, Commons `testMultipleReturnOfSameObject` and `testMultipleReturn`."""
    reset: list[int] = []
    async with server.pool(max_size=1, reset=lambda connection: reset.append(connection.number)) as pool:
        lease = await pool.acquire()
        lease.release()
        with pytest.raises(PoolUsageError, match="after its end"):
            lease.release()
        assert reset == [1]
        assert server.checked == []
        assert (pool.stats().idle, pool.stats().leased) == (1, 0)


async def test_after_a_borrower_that_failed_a_connection_is_reset_and_checked(server: Server) -> None:
    seen: list[str] = []

    async def reset(_: Connection) -> None:
        seen.append("reset")

    async def check(_: Connection) -> None:
        seen.append("check")

    async with server.pool(max_size=1, reset=reset, check=check, check_after_idle=None) as pool:
        with pytest.raises(ValueError, match="mine"):
            async with pool.acquire():
                raise ValueError("mine")
        assert await borrow(pool) == (0.0, 1)
        await settled()
        assert seen == ["reset", "check", "reset"]


@pytest.mark.parametrize(("how", "waited"), [("well", 0.2), ("raises", 0.2), ("hangs", 0.5), ("raises at once", 0.0)])
async def test_who_waits_gets_a_connection_as_soon_as_the_reset_is_over(
    server: Server, how: str, waited: float
) -> None:
    def reset(_: Connection) -> Any:
        if how == "raises at once":
            raise ConnectionResetError
        return later()

    async def later() -> None:
        await anyio.sleep(inf if how == "hangs" else 0.2)
        if how == "raises":
            raise ConnectionResetError

    async with server.pool(max_size=1, reset=reset, reset_timeout=0.5) as pool, anyio.create_task_group() as group:
        lease = await pool.acquire()
        got: list[tuple[float, int]] = []

        async def ask() -> None:
            got.append(await borrow(pool))

        group.start_soon(ask)
        await anyio.sleep(1)
        with capture(ResetFailed) as told:
            lease.release()
            await anyio.sleep(waited)
            await settled()
            assert got == [(1.0 + waited, 1 if how == "well" else 2)]
        names = {"hangs": ["TimeoutError"], "well": []}
        assert [event.error_type for event in told[:1]] == names.get(how, ["ConnectionResetError"])


# --- outages ---


async def test_no_outage_is_told_of_a_server_that_nobody_asks_any_more(server: Server) -> None:
    called: list[float] = []
    async with server.pool(on_reconnect_failed=lambda: called.append(anyio.current_time())) as pool:
        server.is_down()
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(timeout=1)
        server.is_up()
        attempts = len(server.attempts)
        await anyio.sleep(1_000)
        assert len(server.attempts) == attempts
        assert called == []


async def test_with_an_open_breaker_who_waits_is_refused_when_the_last_connection_goes(server: Server) -> None:
    breaker = CircuitBreaker(
        "database",
        window=CountWindow(2),
        minimum_calls=2,
        open_duration=60.0,
        open_jitter=0.0,
        clock=anyio.current_time,
    )
    async with server.pool(max_size=2, grow="demand", breaker=breaker) as pool:
        lease = await pool.acquire()
        server.is_down()
        refused: list[float] = []

        async def ask() -> None:
            began = anyio.current_time()
            with pytest.raises(CircuitOpenError):
                await pool.acquire(timeout=100)
            refused.append(anyio.current_time() - began)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.sleep(5)
            assert str(breaker.state) == "open"
            lease.discard()
            await settled()
            await ask()
        assert sorted(refused) == pytest.approx([0.0, 5.0])


async def test_without_a_first_pause_a_server_that_is_down_is_not_asked_without_end(server: Server) -> None:
    attempts = 0

    async def connect() -> object:
        nonlocal attempts
        attempts += 1
        if attempts > 1_000:
            await anyio.sleep_forever()
        raise ConnectionRefusedError

    try:
        pool = ConnectionPool(connect, min_size=1, reconnect_base=0.0, clock=anyio.current_time, debug=True)
    except ConfigurationError:  # that would do as well
        return
    async with pool:
        await anyio.sleep(1)
        assert attempts <= 100


async def cancels_itself(*_: object) -> None:
    """Await what somebody else cancelled, as of a driver whose look-ups are shared."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize("which", ["connect", "reset", "close", "keepalive"])
def test_a_function_that_lets_a_cancellation_out_does_not_cancel_the_host(which: str) -> None:
    """asyncio only: in trio nobody can raise it."""
    attempts = 0

    async def connect() -> object:
        nonlocal attempts
        attempts += 1
        if which == "connect" and attempts == 1:
            await cancels_itself()
        return object()

    functions: dict[str, dict[str, Any]] = {
        "connect": {},
        "reset": {"reset": cancels_itself},
        "close": {"close": cancels_itself},
        "keepalive": {"check": cancels_itself, "keepalive": 1.0, "min_size": 1},
    }

    async def main() -> None:
        options: dict[str, Any] = {"clock": anyio.current_time, "debug": True} | functions[which]
        async with ConnectionPool(connect, **options) as pool:
            lease = await pool.acquire(timeout=20)
            (lease.discard if which == "close" else lease.release)()
            await anyio.sleep(5)

    VirtualClock().run(main, backend="asyncio")


async def test_a_connection_that_was_opened_too_late_is_not_lost(server: Server) -> None:
    async def stubborn() -> Connection:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(20)
            return await server.connect()
        raise AssertionError

    pool = ConnectionPool(stubborn, close=server.close, max_size=1, clock=anyio.current_time, debug=True)
    async with pool:
        assert await borrow(pool) == (20.0, 1)
    assert server.open == []


# --- growing ---


async def test_growing_by_cost_opens_no_more_than_are_worth_their_time(server: Server) -> None:
    """12, psycopg `test_grow`, with what is known of costs: nothing at first, so each who waits is worth one."""
    server.takes["connect"] = 0.1
    async with server.pool(min_size=2, max_size=4) as pool:
        await pool.wait_ready()
        ended: list[float] = []

        async def call(hold: float) -> None:
            async with pool.acquire():
                await anyio.sleep(hold)
            ended.append(anyio.current_time() - began)

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(call, 0.25)
        assert ended == pytest.approx([0.25, 0.25, 0.35, 0.35, 0.50, 0.50, 0.60, 0.60])


async def test_growing_by_cost_opens_none_for_those_who_will_be_served_sooner(server: Server) -> None:
    server.takes["connect"] = 1.0
    async with server.pool(max_size=10) as pool:
        for _ in range(5):
            async with pool.acquire():
                await anyio.sleep(0.01)
        waits: list[float] = []

        async def call() -> None:
            began = anyio.current_time()
            async with pool.acquire():
                waits.append(anyio.current_time() - began)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(call)
        assert max(waits) == pytest.approx(0.49)
        assert len(server.attempts) == 1


# --- leaks ---


async def test_a_connection_that_leaks_again_is_told_again(server: Server) -> None:
    async with server.pool(leak_after=1.0, max_size=1) as pool:
        with capture(LeakSuspected, LeakReturned) as told:
            for hold in (0.9, 2.0, 3.0):
                async with pool.acquire():
                    await anyio.sleep(hold)
            lease = await pool.acquire()
            await anyio.sleep(4)
            lease.discard()
        suspected = [event for event in told if isinstance(event, LeakSuspected)]
        returned = [event for event in told if isinstance(event, LeakReturned)]
        assert [event.held for event in suspected] == pytest.approx([1.0] * 3)
        assert [event.held for event in returned] == pytest.approx([2.0, 3.0, 4.0])
        assert suspected[2].suspended_at == ""  # a lease may have been passed on: nobody can tell


async def test_the_leak_of_an_injected_function_is_told_by_a_place_of_the_users(server: Server) -> None:
    async with server.pool(leak_after=1.0) as pool:

        @pool.inject
        async def forget(_: Connection) -> None:
            await anyio.sleep(3)

        with capture(LeakSuspected) as told:
            await forget()
        assert "test_health_of_connections.py" in told[0].site


# --- warming and draining ---


async def test_warming_more_than_the_budget_allows_keeps_nothing_open(server: Server) -> None:
    async with server.pool(max_size=5, max_idle=5.0, budget=Budget(2)) as pool:
        pool.warm(4)
        await anyio.sleep(1)
        assert pool.stats().idle == 2
        await anyio.sleep(100)
        assert pool.stats().size == 0


@pytest.mark.parametrize("how", ["idle", "lent", "in reset", "in check"])
async def test_draining_spares_no_connection_wherever_it_is(server: Server, how: str) -> None:
    server.takes["check"] = server.takes["reset"] = 0.5
    async with server.pool(max_size=1, reset=server.reset if how == "in reset" else None) as pool:
        lease = await pool.acquire()
        acts: dict[str, Callable[[], object]] = {"lent": lambda: None}
        acts.get(how, lease.release)()
        async with anyio.create_task_group() as group:
            if how == "in check":
                group.start_soon(pool.check_idle)
                await settled()
            pool.drain()
            if how == "lent":
                assert lease.connection.is_open
                lease.release()
            waited, number = await borrow(pool)
        assert number == 2
        assert waited == (0.5 if how.startswith("in ") else 0.0)


# --- what is given up ---


class Socket:
    """Stands for what a driver holds open for as long as it is referred to."""


@pytest.mark.parametrize("step", ["connect", "check", "reset", "close"])
async def test_what_took_too_long_is_let_go_at_once_and_not_when_the_garbage_collector_comes(
    server: Server, step: str
) -> None:
    held: list[weakref.ref[Socket]] = []

    async def hang(_: object = None) -> Connection:
        mine = Socket()
        held.append(weakref.ref(mine))
        await anyio.sleep_forever()
        raise AssertionError(mine)

    functions = {"connect": server.connect, "reset": server.reset, step: hang}
    timeouts = {"connect_timeout": 1.0, "check_timeout": 1.0, "reset_timeout": 1.0, "close_timeout": 1.0}
    gc.disable()  # otherwise it may come by chance
    try:
        async with server.pool(
            max_size=1, check_after_idle=0.0, max_lifetime=1.0 if step == "close" else None, **functions, **timeouts
        ) as pool:
            for _ in range(2):
                with suppress(PoolTimeoutError):
                    await borrow(pool, 1.5)
                await anyio.sleep(2.5)
            assert held
            assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


# --- what an operator reads ---


async def test_health_is_told_when_it_changes(server: Server) -> None:
    server.is_down()
    with capture(PoolHealthChanged) as told:
        async with server.pool(min_size=1, max_size=2, reconnect_base=0.5, reconnect_cap=1.0) as pool:
            with pytest.raises(PoolTimeoutError):
                await pool.acquire(3.2)
            server.is_up()
            async with pool.acquire(), pool.acquire():
                server.is_down()
                pool.drain()
            await anyio.sleep(5)
            server.is_up()
            await anyio.sleep(5)
            server.is_down()
    facts = [(event.as_dict()["from_status"], event.as_dict()["to_status"], event.severity) for event in told]
    assert facts == [
        ("up", "down", "error"),
        ("down", "up", "info"),
        ("up", "down", "error"),
        ("down", "up", "info"),
    ]
    times = [(event.as_dict()["cause"], event.as_dict()["failing_for"]) for event in told]
    assert times[0] == ("ConnectionRefusedError", 0.0)
    assert times[1][0] is None
    assert times[1][1] == pytest.approx(4.0, abs=0.6)
