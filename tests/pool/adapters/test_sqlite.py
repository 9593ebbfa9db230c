"""SQLite in a pool: each borrower finds a connection without a transaction, and the thread free."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import aiosqlite
import anyio
import pytest

from resilience.errors import ConfigurationError
from resilience.events import ConnectionClosed, capture
from resilience.pool import ConnectionPool, create_pool

pytestmark = pytest.mark.anyio

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: aiosqlite knows no other."""
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop@home.db'}"


async def count(pool: ConnectionPool[aiosqlite.Connection]) -> int:
    async with pool.acquire() as connection:
        rows = list(await connection.execute_fetchall("SELECT count(*) FROM orders"))
        return int(rows[0][0])


async def prepare(connection: aiosqlite.Connection) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER)")


async def test_what_was_not_committed_is_rolled_back(url: str) -> None:
    async with create_pool(url, max_size=1, on_connect=prepare) as pool:
        async with pool.acquire() as connection:
            await connection.execute("INSERT INTO orders VALUES (1)")
        assert await count(pool) == 0
        async with pool.acquire() as connection:
            await connection.execute("INSERT INTO orders VALUES (1)")
            await connection.commit()
        assert await count(pool) == 1
        assert pool.stats().opened == 1


async def test_the_query_of_a_cancelled_borrower_stops_and_its_connection_serves_the_next(url: str) -> None:
    async with create_pool(url, max_size=1, on_connect=prepare) as pool:
        with anyio.move_on_after(0.05) as scope:
            async with pool.acquire() as connection:
                await connection.execute(ENDLESS)
        assert scope.cancelled_caught
        with anyio.fail_after(5):
            assert await count(pool) == 0
        assert pool.stats().opened == 1


async def test_no_thread_outlives_the_pool_even_if_a_query_runs_for_ever(url: str) -> None:
    before = threading.active_count()
    async with create_pool(url, close_grace=0.05) as pool:
        lease = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(fails_when_closed, lease.connection)
            await anyio.sleep(0.05)
            await pool.close()
    assert pool.stats().size == 0
    with anyio.fail_after(5):
        while threading.active_count() > before:  # noqa: ASYNC110 - a thread tells nobody that it ended
            await anyio.sleep(0.005)


async def fails_when_closed(connection: aiosqlite.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="interrupt"):
        await connection.execute(ENDLESS)


async def test_a_connection_that_a_borrower_closed_is_replaced(url: str) -> None:
    async with create_pool(url) as pool:
        async with pool.acquire() as connection:
            await connection.close()
        async with pool.acquire() as other:
            assert other is not connection
            await other.execute_fetchall("SELECT 1")


async def test_memory_is_one_database_for_all_borrowers() -> None:
    async with create_pool("sqlite:///:memory:", on_connect=prepare, check_after_idle=0) as pool:
        async with pool.acquire() as connection:
            await connection.execute("INSERT INTO orders VALUES (1)")
            await connection.commit()
        assert await count(pool) == 1
        assert (pool.stats().size, pool.stats().opened) == (1, 1)


@pytest.mark.parametrize("kind", ["folder", "no database", "read-only and missing"])
async def test_a_file_that_is_no_database_reaches_the_caller_at_once(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "missing" / "x.db" if kind == "folder" else tmp_path / "x.db"
    if kind == "no database":
        place.write_bytes(b"something else entirely" * 100)
    async with create_pool(f"sqlite:///{place}{'?mode=ro' if kind[0] == 'r' else ''}") as pool:
        with anyio.fail_after(2), pytest.raises(sqlite3.DatabaseError):
            async with pool.acquire():
                pass


async def test_parameters_of_the_url_and_arguments_reach_sqlite(url: str) -> None:
    async with create_pool(url, on_connect=prepare) as pool, pool.acquire():
        pass
    options = {"isolation_level": None, "iter_chunk_size": 10}
    async with create_pool(f"{url}?mode=ro", connect_options=options) as pool, pool.acquire() as connection:
        assert connection.isolation_level is None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await connection.execute("INSERT INTO orders VALUES (1)")


async def test_a_locked_database_passes_and_is_tried_again(url: str) -> None:
    # A busy connection is no reason to give up: SQLite says so where the schema is read under an exclusive lock.
    async with create_pool(url, on_connect=prepare) as pool, pool.acquire():
        pass
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    async with (
        create_pool(url, connect_options={"timeout": 0}, reconnect_base=0.01, reconnect_cap=0.02) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(borrow, pool)
        with anyio.fail_after(5):
            while pool.stats().connect_failures < 2:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.005)
        holder.execute("COMMIT")
    holder.close()


async def borrow(pool: ConnectionPool[aiosqlite.Connection]) -> None:
    with anyio.fail_after(5):
        async with pool.acquire() as connection:
            await connection.execute_fetchall("SELECT * FROM orders")


async def test_connections_that_are_closed_are_told(url: str) -> None:
    with capture(ConnectionClosed) as closed:
        async with create_pool(url, min_size=2) as pool:
            await pool.wait_ready(5)
    assert len(closed) == 2


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_is_refused_at_once(url: str) -> None:
    async with create_pool(url) as pool:
        with anyio.fail_after(1), pytest.raises(ConfigurationError, match="asyncio: aiosqlite knows no other"):
            async with pool.acquire():
                pass
