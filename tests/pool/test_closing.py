"""The end of a pool, and use of it that cannot go well: closing, from elsewhere, too early, twice, hopelessly.

What is marked as expected to fail is a bug that is known; the mark goes when the bug does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from resilience import CircuitBreaker
from resilience.errors import (
    ConfigurationError,
    PoolClosedError,
    PoolDeadlockError,
    PoolTimeoutError,
    PoolUsageError,
)
from resilience.events import ConnectionClosed, PoolClosed, capture
from resilience.pool import ConnectionPool
from resilience.testing import VirtualClock

from .conftest import Connection, Server

pytestmark = pytest.mark.anyio


async def settled() -> None:
    """Let all others get as far as they can without time passing."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def hold(pool: ConnectionPool[Connection], seconds: float) -> None:
    async with pool.acquire():
        await anyio.sleep(seconds)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = anyio.current_time()

    @property
    def seconds(self) -> float:
        return round(anyio.current_time() - self.began, 9)


# --- closing: borrowers ---


async def test_closing_ends_with_the_last_borrower(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand") as pool, anyio.create_task_group() as group:
        for seconds in (1.0, 2.5, 0.5):
            group.start_soon(hold, pool, seconds)
        await settled()
        watch = Stopwatch()
        with capture(ConnectionClosed, PoolClosed) as told:
            await pool.close(grace=5)
        assert watch.seconds == 2.5
        closed = [event for event in told if isinstance(event, ConnectionClosed)]
        assert [event.age for event in closed] == [0.5, 1.0, 2.5]  # each when it came back
        assert {event.reason for event in closed} == {"closed"}
        assert [event.forced for event in told if isinstance(event, PoolClosed)] == [0]


async def test_what_is_forced_is_told_and_its_borrowers_go_on_in_silence(server: Server) -> None:
    async with server.pool(max_size=3, grow="demand") as pool, anyio.create_task_group() as group:
        group.start_soon(hold, pool, 20)
        group.start_soon(hold, pool, 1)
        lease = await pool.acquire()
        await settled()
        watch = Stopwatch()
        with capture(ConnectionClosed, PoolClosed) as told:
            await pool.close(grace=2)
        assert watch.seconds == 2
        reasons = [event.reason for event in told if isinstance(event, ConnectionClosed)]
        assert reasons == ["closed", "forced", "forced"]
        assert [event.forced for event in told if isinstance(event, PoolClosed)] == [2]
        assert not lease.connection.is_open
        lease.discard()
        assert pool.stats().leased == pool.stats().size == 0


async def test_a_borrower_may_close_the_pool_and_waits_for_itself_no_longer_than_the_grace(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        watch = Stopwatch()
        async with pool.acquire() as connection:
            await pool.close(grace=1)
            assert watch.seconds == 1
            assert not connection.is_open


async def test_idle_connections_are_closed_beside_each_other(server: Server) -> None:
    server.takes["close"] = 0.5
    async with server.pool(min_size=5, max_size=5) as pool:
        await pool.wait_ready()
        watch = Stopwatch()
        await pool.close()
        assert watch.seconds == 0.5
        assert pool.stats().closed == 5


async def test_idle_connections_do_not_wait_for_borrowers(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool, anyio.create_task_group() as group:
        leases = [await pool.acquire() for _ in range(2)]
        leases[0].release()
        group.start_soon(pool.close)
        await settled()
        assert server.open == [2]
        leases[1].release()
        await settled()
        assert server.open == []


async def test_whoever_gives_up_waiting_for_a_second_close_leaves_the_first_alone(server: Server) -> None:
    async with server.pool(close_grace=3.0) as pool, anyio.create_task_group() as group:
        lease = await pool.acquire()
        group.start_soon(pool.close)
        await settled()
        with anyio.move_on_after(1) as scope:
            await pool.close()
        assert scope.cancelled_caught
        assert server.open == [1]
        lease.release()
        await settled()
        assert server.open == []
        await pool.close()


async def test_a_pool_may_be_closed_before_it_was_opened(server: Server) -> None:
    pool = server.pool(min_size=1)
    await pool.close()
    await pool.close()
    with pytest.raises(PoolClosedError):
        await pool.__aenter__()
    assert server.attempts == []


# --- closing: what is under way ---


async def test_who_waits_for_a_connect_that_hangs_is_refused_at_once(server: Server) -> None:
    """psycopg makes them wait for it."""
    server.takes["connect"] = inf
    async with server.pool(max_size=2, connect_timeout=60.0) as pool, anyio.create_task_group() as group:
        refused: list[float] = []

        async def ask() -> None:
            with pytest.raises(PoolClosedError):
                await pool.acquire()
            refused.append(watch.seconds)

        watch = Stopwatch()
        for _ in range(5):
            group.start_soon(ask)
        await anyio.sleep(1)
        await pool.close(grace=30)
        await settled()
        assert refused == [1.0] * 5
        assert watch.seconds == 1.0


async def test_what_is_being_opened_is_given_up_before_the_borrowers_are_done(server: Server) -> None:
    async with server.pool(max_size=2, connect_timeout=60.0) as pool, anyio.create_task_group() as group:
        group.start_soon(hold, pool, 5.0)
        await settled()
        server.takes["connect"] = inf
        pool.warm(2)
        await settled()
        assert pool.stats().connecting == 1
        group.start_soon(pool.close, 30)
        await settled()
        assert (pool.stats().connecting, pool.stats().leased) == (0, 1)


async def test_behind_a_breaker_too_what_a_connect_opens_in_spite_of_that_is_closed(server: Server) -> None:
    async def stubborn() -> Connection:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2)
            return await server.connect()
        raise AssertionError

    breaker = CircuitBreaker("database", clock=anyio.current_time)
    pool = ConnectionPool(
        stubborn, close=server.close, breaker=breaker, min_size=1, clock=anyio.current_time, debug=True
    )
    async with pool:
        await anyio.sleep(1)
        await pool.close()
    assert [connection.number for connection in server.opened] == [1]
    assert server.open == []


async def test_closing_waits_for_a_reset_as_for_a_borrower(server: Server) -> None:
    server.takes["reset"] = 0.7
    async with server.pool(max_size=1, reset=server.reset) as pool:
        (await pool.acquire()).release()
        watch = Stopwatch()
        with capture(ConnectionClosed, PoolClosed) as told:
            await pool.close(grace=2)
        assert watch.seconds == 0.7
        assert [event.reason for event in told if isinstance(event, ConnectionClosed)] == ["closed"]
        assert [event.forced for event in told if isinstance(event, PoolClosed)] == [0]


async def test_a_borrower_that_finishes_in_the_grace_costs_no_reset(server: Server) -> None:
    server.takes["reset"] = 0.7
    async with server.pool(max_size=1, reset=server.reset) as pool, anyio.create_task_group() as group:
        group.start_soon(hold, pool, 1.0)
        await settled()
        watch = Stopwatch()
        await pool.close(grace=2)
        assert watch.seconds == 1.0


async def test_closing_ends_within_its_grace_and_the_time_for_one_close(server: Server) -> None:
    server.takes["reset"] = inf
    async with server.pool(max_size=1, reset=server.reset, reset_timeout=60.0, close_timeout=2.0) as pool:
        (await pool.acquire()).release()
        await settled()
        watch = Stopwatch()
        await pool.close(grace=1)
        assert watch.seconds <= 3.0


async def test_who_waits_for_a_check_is_refused_when_the_pool_closes(server: Server) -> None:
    server.takes["check"] = 1.0
    async with server.pool(max_size=1, check_after_idle=0) as pool, anyio.create_task_group() as group:
        (await pool.acquire()).release()
        lent: list[bool] = []
        refused: list[BaseException] = []

        async def ask() -> None:
            try:
                async with pool.acquire() as connection:
                    await anyio.sleep(20)
                    lent.append(connection.is_open)
            except PoolClosedError as error:
                refused.append(error)

        group.start_soon(ask)
        await anyio.sleep(0.5)
        await pool.close(grace=3)
        await anyio.sleep(30)
        assert (len(refused), lent) == (1, [])


async def test_a_keepalive_that_hangs_does_not_keep_the_pool_open(server: Server) -> None:
    server.takes["check"] = inf
    async with server.pool(min_size=1, keepalive=1.0, check_timeout=60.0) as pool:
        await anyio.sleep(2)
        assert pool.stats().reserved == 1
        watch = Stopwatch()
        with capture(ConnectionClosed) as told:
            await pool.close(grace=0.5)
        assert watch.seconds == 0.5
        assert [event.reason for event in told] == ["forced"]


# --- too early ---


async def test_a_pool_may_be_resized_before_it_is_opened(server: Server) -> None:
    pool = server.pool(max_size=10)
    pool.resize(min_size=4)
    assert pool.stats().connecting == 0
    async with pool:
        await anyio.sleep(1)
        assert pool.stats().idle == 4


async def test_a_pool_that_is_made_smaller_may_be_ready_at_once(server: Server) -> None:
    server.is_down()
    async with server.pool(min_size=2) as pool, anyio.create_task_group() as group:
        ready: list[float] = []

        async def wait() -> None:
            await pool.wait_ready(50)
            ready.append(watch.seconds)

        watch = Stopwatch()
        group.start_soon(wait)
        await anyio.sleep(1)
        pool.resize(min_size=0)
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    assert ready == [1.0]


# --- from elsewhere ---


async def test_another_event_loop_may_not_close_the_pool(server: Server, anyio_backend_name: str) -> None:
    told: list[str] = []

    async def go() -> None:
        try:
            await pool.close(grace=0)
        except PoolUsageError as error:
            told.append(str(error))

    async with server.pool() as pool:  # with nothing to close, so that a close that is let through breaks nothing here
        await anyio.to_thread.run_sync(lambda: anyio.run(go, backend=anyio_backend_name))
        assert len(told) == 1
        async with pool.acquire():
            pass


async def test_another_event_loop_may_not_resize_the_pool(server: Server, anyio_backend_name: str) -> None:
    told: list[str] = []

    async def go() -> None:
        try:
            pool.resize(max_size=3)
        except PoolUsageError as error:
            told.append(str(error))

    async with server.pool(max_size=2) as pool:
        await anyio.to_thread.run_sync(lambda: anyio.run(go, backend=anyio_backend_name))
        assert len(told) == 1
        assert pool.stats().max_size == 2


def in_child(use: Callable[[], object]) -> str:
    """Gives the type and text of what `use` raises in a forked child; empty if it raises nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing came back"
        try:
            use()
            text = ""
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    os.waitpid(child, 0)
    return text


def step(awaitable: Any) -> None:
    """Run an awaitable up to where it first waits."""
    iterator = awaitable.__await__()
    try:
        iterator.send(None)
    except StopIteration:
        return


BACKENDS: list[Literal["asyncio", "trio"]] = ["asyncio", "trio"]
USES_IN_CHILD: dict[str, Callable[[ConnectionPool[Any], Any], object]] = {
    "acquire": lambda pool, lease: step(pool.acquire()),
    "try_acquire": lambda pool, lease: pool.try_acquire(),
    "wait_ready": lambda pool, lease: step(pool.wait_ready()),
    "check_idle": lambda pool, lease: step(pool.check_idle()),
    "warm": lambda pool, lease: pool.warm(2),
    "drain": lambda pool, lease: pool.drain(),
    "release": lambda pool, lease: lease.release(),
    "discard": lambda pool, lease: lease.discard(),
    "resize": lambda pool, lease: pool.resize(max_size=1),
    "close": lambda pool, lease: step(pool.close(grace=0)),
}
IN_CHILD = [(backend, what) for backend in BACKENDS for what in USES_IN_CHILD]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("backend", "what"), IN_CHILD)
def test_a_forked_child_gets_nothing_and_ends_nothing(backend: Literal["asyncio", "trio"], what: str) -> None:
    told: list[str] = []
    server = Server()

    async def main() -> None:
        async with server.pool(max_size=2, grow="demand") as pool:
            lease = await pool.acquire()
            (await pool.acquire()).release()
            told.append(in_child(lambda: USES_IN_CHILD[what](pool, lease)))
            assert (pool.stats().leased, pool.stats().idle) == (1, 1)
            lease.release()
            async with pool.acquire():
                pass

    VirtualClock().run(main, backend=backend)
    assert told[0].startswith("PoolUsageError: ")
    # A lease, in a child of asyncio, says that it belongs to another event loop, which is true as well.
    assert what in {"release", "discard"} or "make one after the fork" in told[0]


# --- twice, and by the wrong one ---


async def test_a_request_that_waits_is_not_entered_by_another_task(server: Server) -> None:
    async with server.pool(max_size=1, debug=False) as pool:
        held = await pool.acquire()
        request = pool.acquire(timeout=5)
        refused: list[BaseException] = []
        served: list[int] = []

        async def use() -> None:
            try:
                async with request as connection:
                    served.append(connection.number)
                    await anyio.sleep(1)
            except PoolUsageError as error:
                refused.append(error)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(use)
                    await settled()
                held.release()
        assert (len(served), len(refused)) == (1, 1)


async def test_a_request_is_not_entered_again_after_its_end(server: Server) -> None:
    async with server.pool() as pool:
        request = pool.acquire()
        async with request:
            pass
        with pytest.raises(PoolUsageError):
            await request.__aenter__()


async def test_a_request_that_is_used_again_makes_no_other_wait_longer_than_it_wants(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        held = await pool.acquire()
        request = pool.acquire(timeout=25)
        waited: dict[str, float] = {}

        async def ask(name: str, patience: float) -> None:
            watch = Stopwatch()
            with pytest.raises(PoolTimeoutError):
                await pool.acquire(timeout=patience)
            waited[name] = watch.seconds

        async def begin() -> None:
            with anyio.move_on_after(1):
                await request

        async def again() -> None:
            with anyio.move_on_after(60):
                with suppress(PoolTimeoutError, PoolUsageError):
                    await request

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "first", 20)
            await settled()
            group.start_soon(begin)
            await settled()
            group.start_soon(ask, "second", 30)
            await anyio.sleep(15)
            group.start_soon(again)
        held.release()
        assert waited == {"first": 20.0, "second": 30.0}


async def test_a_lease_of_another_pool_is_refused_as_one_to_avoid(server: Server) -> None:
    elsewhere = Server()
    async with server.pool(max_size=1) as pool, elsewhere.pool() as other:
        foreign = await other.acquire()
        foreign.release()
        held = await pool.acquire()
        with pytest.raises(ConfigurationError, match="avoid must be a lease of this pool"):
            await pool.acquire(timeout=1, avoid=foreign)
        assert pool.stats().waiting == 0
        held.release()
        async with pool.acquire(timeout=1):
            pass


# --- hopelessly ---


async def borrow_two(pool: ConnectionPool[Any], delay: float, told: list[float]) -> bool:
    """Tell whether a second one was got; seconds from asking for it to hearing that it was not are noted."""
    await anyio.sleep(delay)
    async with pool.acquire():
        await anyio.sleep(1)
        watch = Stopwatch()
        try:
            async with pool.acquire():
                return True
        except PoolDeadlockError:
            told.append(watch.seconds)
            return False


@pytest.mark.parametrize("apart", [0.0, 0.01, 0.1, 0.3])
async def test_a_deadlock_of_two_ends_within_three_tenths_of_a_second(server: Server, apart: float) -> None:
    async with server.pool(max_size=2, grow="demand") as pool:
        told: list[float] = []
        got: list[bool] = []

        async def go(delay: float) -> None:
            got.append(await borrow_two(pool, delay, told))

        async with anyio.create_task_group() as group:
            group.start_soon(go, 0.0)
            group.start_soon(go, apart)
        assert got == [False, True]
        assert max(told) <= 0.3 + 1e-9
        assert pool.stats().idle == 2


@pytest.mark.parametrize("tasks", [3, 10])
@pytest.mark.parametrize("apart", [0.01, 0.05, 0.1])
async def test_a_deadlock_of_many_ends_before_the_first_has_waited_twice_as_long(
    server: Server, tasks: int, apart: float
) -> None:
    async with server.pool(max_size=tasks, grow="demand") as pool:
        told: list[float] = []
        got: dict[int, bool] = {}

        async def go(number: int) -> None:
            got[number] = await borrow_two(pool, number * apart, told)

        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(go, number)
        # The youngest is told, and had asked when all the others waited already.
        assert got == {number: number < tasks - 1 for number in range(tasks)}
        assert max(told) <= max(0.1, (tasks - 1) * apart) + 1e-9
        assert pool.stats().idle == tasks


async def test_one_task_with_all_connections_is_told_too(server: Server) -> None:
    async with server.pool(max_size=2, grow="demand") as pool:
        async with pool.acquire(), pool.acquire():
            watch = Stopwatch()
            with pytest.raises(PoolDeadlockError):
                await pool.acquire()
            assert watch.seconds <= 0.3
        assert pool.stats().idle == 2


async def test_a_deadlock_below_the_headroom_is_found_too(server: Server) -> None:
    async with server.pool(max_size=3, headroom=1, grow="demand", acquire_timeout=20.0) as pool:
        told: list[float] = []
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(borrow_two, pool, 0.0, told)
        assert len(told) == 1


async def test_a_wait_is_not_hopeless_for_who_is_served_first(server: Server) -> None:
    async with server.pool(max_size=1) as pool:
        for _ in range(20):
            await hold(pool, 1.0)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(hold, pool, 1.0)
                await settled()
            watch = Stopwatch()
            async with pool.acquire(timeout=3, priority=1):
                assert watch.seconds == 1.0
