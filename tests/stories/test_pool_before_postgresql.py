"""A pool before a real PostgreSQL that restarts, freezes, refuses and falls silent, in real time.

Each story ends with the whole pool at work again, and with exactly its connections at the server.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import psycopg
import pytest

from resilience.errors import PoolTimeoutError
from resilience.events import AcquireTimedOut, ConnectFailed, capture
from resilience.pool import ConnectionPool, create_pool
from resilience.testing.servers import PostgresServer, TcpProxy, find_postgres_servers

pytestmark = pytest.mark.anyio

SIZE = 4
CAP = 0.3  # seconds: the longest pause between two attempts to connect
CONFIG: dict[str, Any] = {
    "max_size": SIZE,
    "acquire_timeout": 2.0,
    "connect_timeout": 0.5,
    "check_timeout": 0.3,
    "reset_timeout": 0.3,
    "close_timeout": 0.3,
    "check_after_idle": 0.05,
    "reconnect_base": 0.02,
    "reconnect_cap": CAP,
    "debug": True,
}
MINE = "application_name = 'story' AND backend_type = 'client backend'"


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: the drivers know no other."""
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One of our own: other modules need not live through this."""
    if not find_postgres_servers():
        pytest.skip("no postgresql server here")
    with tempfile.TemporaryDirectory() as directory, PostgresServer(directory) as server:
        yield server


@pytest.fixture(params=["postgresql", "postgresql+psycopg"])
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def pool(scheme: str, server: PostgresServer) -> AsyncIterator[ConnectionPool[Any]]:
    url = f"{scheme}://postgres@127.0.0.1:{server.port}/postgres?application_name=story"
    async with create_pool(url, **CONFIG) as pool:
        yield pool


@pytest.fixture
def proxy(server: PostgresServer, tcp_proxy: Callable[..., TcpProxy]) -> TcpProxy:
    return tcp_proxy(server.port)


@pytest.fixture
async def distant(scheme: str, proxy: TcpProxy) -> AsyncIterator[ConnectionPool[Any]]:
    """A pool behind the proxy."""
    url = f"{scheme}://postgres@127.0.0.1:{proxy.port}/postgres?application_name=story"
    async with create_pool(url, **CONFIG) as pool:
        yield pool


async def value(connection: Any, statement: str) -> Any:
    if isinstance(connection, psycopg.AsyncConnection):
        row = await (await connection.execute(statement.encode())).fetchone()
        return row[0] if row else None
    return await connection.fetchval(statement)


async def work(connection: Any) -> None:
    await value(connection, "SELECT pg_sleep(0.002)")


async def identify(connection: Any) -> Any:
    return await value(connection, "SELECT pg_backend_pid()")


async def ask(server: PostgresServer, statement: str) -> Any:
    """Ask the server outside of the pool."""
    connection = await asyncpg.connect(server.url, timeout=5)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def has_just(server: PostgresServer, identities: set[Any]) -> None:
    """Wait until the server has the connections of the pool and no other: none lost, none doubled, none left over."""
    with anyio.fail_after(5):
        while set(await ask(server, f"SELECT array_agg(pid) FROM pg_stat_activity WHERE {MINE}")) != identities:  # noqa: ASYNC110 - the server tells nobody
            await anyio.sleep(0.01)


async def is_at_rest(pool: ConnectionPool[Any]) -> None:
    with anyio.fail_after(2):
        while (stats := pool.stats()).leased or stats.reserved or stats.connecting:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.002)
    assert (stats.size, stats.idle) == (SIZE, SIZE)


async def test_a_restart_under_load_is_survived_within_the_cap(
    pool: ConnectionPool[Any], server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(pool, work) as load:
        await load.serves()
        await anyio.to_thread.run_sync(server.restart)
        await load.serves(within=CAP + 2)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_a_server_that_is_away_for_a_while_is_found_again_within_the_cap(
    pool: ConnectionPool[Any], server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    with capture(ConnectFailed) as failed:
        async with under_load(pool, work) as load:
            await load.serves()
            await anyio.to_thread.run_sync(server.stop)
            await load.fails(30)
            await anyio.to_thread.run_sync(server.start)
            await load.serves(within=CAP + 2)
    assert all((event.next_in or 0) <= CAP for event in failed)
    assert load.failed["PoolTimeoutError"] + load.failed["TimeoutError"] > 0
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_idle_connections_that_the_server_ended_are_replaced_and_nobody_sees_them(
    pool: ConnectionPool[Any], server: PostgresServer, is_whole_within: Any
) -> None:
    before = await is_whole_within(1, pool, identify)
    await is_at_rest(pool)
    await ask(server, f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE {MINE}")
    await anyio.sleep(CONFIG["check_after_idle"])

    async def borrow() -> None:
        async with pool.acquire() as connection:
            assert await identify(connection) not in before

    async with anyio.create_task_group() as group:
        for _ in range(3 * SIZE):
            group.start_soon(borrow)
    after = await is_whole_within(CAP, pool, identify)
    assert not before & after
    await has_just(server, after)
    await is_at_rest(pool)


async def test_the_end_of_a_busy_connection_reaches_its_borrower_alone(
    pool: ConnectionPool[Any], server: PostgresServer, is_whole_within: Any
) -> None:
    async with anyio.create_task_group() as group:

        async def end() -> None:
            ended = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {MINE} AND query ~ 'sleep.30'"
            with anyio.fail_after(5):
                while not await ask(server, ended):  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.005)

        group.start_soon(end)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError, psycopg.OperationalError)):
            async with pool.acquire() as connection:
                await value(connection, "SELECT pg_sleep(30)")
    async with pool.acquire() as connection:
        assert await value(connection, "SELECT 1") == 1
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_callers_of_a_frozen_server_leave_in_time_and_a_thawed_one_is_whole(
    pool: ConnectionPool[Any], server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(pool, work) as load:
        await load.serves()
        server.freeze()
        try:
            await load.fails(24)
        finally:
            server.thaw()
        await load.serves(within=CAP + 2)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_a_network_that_swallows_everything_costs_callers_their_time_and_no_connection(
    distant: ConnectionPool[Any], proxy: TcpProxy, server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(distant, work) as load:
        await load.serves()
        proxy.black_hole()
        await load.fails(24)
        proxy.restore()
        await load.serves(within=CAP + 2)
    identities = await is_whole_within(CAP, distant, identify)
    await is_at_rest(distant)
    with anyio.fail_after(5):
        while proxy.connections > SIZE:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.005)
    await has_just(server, identities)


async def test_connections_that_were_cut_are_replaced(
    distant: ConnectionPool[Any], proxy: TcpProxy, server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(distant, work) as load:
        for _ in range(5):
            await load.serves()
            proxy.reset_all()
        await load.serves()
    assert load.failed.total() <= 5 * SIZE  # those who had one that was cut, and nobody else
    await has_just(server, await is_whole_within(CAP, distant, identify))
    await is_at_rest(distant)
    assert distant.stats().connect_failures <= 5  # the network was never away


async def test_a_server_far_away_is_as_good_as_a_near_one(
    distant: ConnectionPool[Any], proxy: TcpProxy, server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    proxy.latency = 0.02
    async with under_load(distant, work, callers=6) as load:
        await load.serves(30, within=10)
    assert not load.failed
    await has_just(server, await is_whole_within(1, distant, identify))
    await is_at_rest(distant)


async def test_a_server_that_accepts_and_never_answers_is_told_as_such(scheme: str, proxy: TcpProxy) -> None:
    proxy.black_hole()
    url = f"{scheme}://postgres@127.0.0.1:{proxy.port}/postgres?application_name=story"
    options = {**CONFIG, "connect_timeout": 0.1, "acquire_timeout": 0.4}
    async with create_pool(url, **options) as pool:
        began = anyio.current_time()
        with capture(AcquireTimedOut) as told, pytest.raises(PoolTimeoutError) as refusal:
            async with pool.acquire():
                pass
        assert anyio.current_time() - began < 0.8
        assert isinstance(refusal.value.__cause__, TimeoutError)
        assert "connecting has failed for" in str(refusal.value)
        assert len(told) == 1
        proxy.restore()
        async with pool.acquire(timeout=CAP + 1) as connection:
            assert await value(connection, "SELECT 1") == 1


@pytest.fixture
async def app_role(server: PostgresServer) -> AsyncIterator[None]:
    """A role that the server knows, and that must give a password."""
    hba = server.directory / "data" / "pg_hba.conf"
    before = hba.read_text("utf-8")
    await ask(server, "CREATE ROLE app LOGIN PASSWORD 'right'")
    hba.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{before}", "utf-8")
    await ask(server, "SELECT pg_reload_conf()")
    yield
    hba.write_text(before, "utf-8")
    await ask(server, "SELECT pg_reload_conf()")
    await ask(server, "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'app'")
    await ask(server, "DROP ROLE app")


@pytest.mark.usefixtures("app_role")
async def test_a_wrong_password_reaches_every_caller_at_once_and_the_right_one_heals_the_pool(
    scheme: str, server: PostgresServer, is_whole_within: Any
) -> None:
    url = f"{scheme}://app:wr0ng-word@127.0.0.1:{server.port}/postgres?application_name=story"
    refusals: list[BaseException] = []
    async with create_pool(url, **CONFIG) as pool:

        async def borrow() -> None:
            with pytest.raises((asyncpg.InvalidPasswordError, psycopg.OperationalError)) as refusal:
                async with pool.acquire():
                    pass
            refusals.append(refusal.value)

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(borrow)
        assert anyio.current_time() - began < 1.5
        assert len(set(map(id, refusals))) == 5  # each its own
        assert "wr0ng" not in repr(refusals)
        await ask(server, "ALTER ROLE app PASSWORD 'wr0ng-word'")
        await has_just(server, await is_whole_within(CAP, pool, identify))
        await is_at_rest(pool)


@pytest.mark.usefixtures("app_role")
async def test_where_the_server_has_no_connection_left_those_that_are_there_serve_all(
    scheme: str, server: PostgresServer, under_load: Any, is_whole_within: Any
) -> None:
    """As many as a role may have; `max_connections` is refused in the same words and by the same number."""
    await ask(server, "ALTER ROLE app CONNECTION LIMIT 2")
    url = f"{scheme}://app:right@127.0.0.1:{server.port}/postgres?application_name=story"
    async with create_pool(url, **CONFIG, grow="demand") as pool:
        async with under_load(pool, work) as load:
            with anyio.fail_after(5):
                while pool.stats().connect_failures < 2:  # noqa: ASYNC110 - nobody tells
                    await anyio.sleep(0.005)
            await load.serves(100)
            assert pool.stats().size == 2
            assert not load.failed
            await ask(server, "ALTER ROLE app CONNECTION LIMIT -1")
        await has_just(server, await is_whole_within(CAP, pool, identify))
        await is_at_rest(pool)
