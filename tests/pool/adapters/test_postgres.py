"""PostgreSQL's drivers in a pool before a real server: what a check, a reset, a close and an error of each do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psycopg
import pytest

from resilience.errors import ConfigurationError, PoolTimeoutError
from resilience.events import CheckFailed, ResetFailed, capture
from resilience.pool import ConnectionPool, create_pool
from resilience.pool.adapters import postgres_asyncpg, postgres_psycopg
from resilience.testing.servers import PostgresServer, TcpProxy

from .conftest import until_idle

pytestmark = pytest.mark.anyio

SECRET = "Tr0ub4dor"
DRIVERS = ["postgresql", "postgresql+psycopg"]


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: both drivers know no other."""
    return "asyncio"


@pytest.fixture(params=DRIVERS)
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(postgres_server: PostgresServer, scheme: str) -> Callable[..., ConnectionPool[Any]]:
    """Make a pool of the driver before the server."""

    def make(*, user: str = "postgres", database: str = "postgres", query: str = "", **options: Any) -> Any:
        return create_pool(f"{scheme}://{user}@127.0.0.1:{postgres_server.port}/{database}{query}", **options)

    return make


async def value(connection: Any, statement: str) -> Any:
    """Ask either driver's connection."""
    if isinstance(connection, psycopg.AsyncConnection):
        row = await (await connection.execute(statement.encode())).fetchone()
        return row[0] if row else None
    return await connection.fetchval(statement)


@asynccontextmanager
async def one(pool: ConnectionPool[Any]) -> AsyncIterator[Any]:
    async with anyio.create_task_group(), pool.acquire(timeout=5) as connection:
        yield connection


async def test_a_connection_is_lent_again_without_its_transaction(make: Callable[..., Any]) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            await connection.execute("CREATE TABLE never (id int)")
        async with pool.acquire() as again:
            assert again is connection
            assert await value(again, "SELECT to_regclass('never') IS NULL")
        assert pool.stats().opened == 1


async def test_a_transaction_that_failed_is_rolled_back(make: Callable[..., Any]) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            with pytest.raises((asyncpg.PostgresError, psycopg.Error)):
                await connection.execute("SELEKT 1")
        async with pool.acquire() as again:
            assert again is connection
            assert await value(again, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("scheme", "options", "stays"),
    [
        ("postgresql", {}, False),
        ("postgresql+psycopg", {}, True),
        ("postgresql+psycopg", {"reset_query": "RESET ALL"}, False),
        ("postgresql+psycopg", {"reset_query": "DISCARD ALL"}, False),
    ],
)
async def test_settings_of_a_session_are_undone_where_that_is_the_drivers_way_or_asked_for(
    make: Callable[..., Any], options: dict[str, Any], stays: bool
) -> None:
    async with make(max_size=1, **options) as pool:
        async with pool.acquire() as connection:
            await connection.execute("SET work_mem = '123MB'")
            if isinstance(connection, psycopg.AsyncConnection):
                await connection.commit()
        async with pool.acquire() as again:
            assert again is connection
            assert (await value(again, "SHOW work_mem") == "123MB") is stays


async def test_autocommit_of_psycopg_is_what_it_was(make: Callable[..., Any], scheme: str) -> None:
    if scheme == "postgresql":
        pytest.skip("asyncpg has none")
    for autocommit in (False, True):
        async with make(max_size=1, check_after_idle=0, connect_options={"autocommit": autocommit}) as pool:
            async with pool.acquire() as connection:
                assert connection.autocommit is autocommit
                await connection.set_autocommit(not autocommit)
            async with pool.acquire() as again:
                assert again is connection
                assert again.autocommit is autocommit
                assert again.info.transaction_status == psycopg.pq.TransactionStatus.IDLE  # the check left none


async def test_a_check_finds_what_the_server_ended(make: Callable[..., Any]) -> None:
    async with make(max_size=1, check_after_idle=0) as pool:
        async with pool.acquire() as connection:
            ended = await value(connection, "SELECT pg_backend_pid()")
        await until_idle(pool)
        async with make() as other, other.acquire() as killer:
            await value(killer, f"SELECT pg_terminate_backend({ended}, 5000)")
        with capture(CheckFailed) as failed:
            async with pool.acquire() as again:
                assert again is not connection
                assert await value(again, "SELECT pg_backend_pid()") != ended
        assert len(failed) == 1


async def test_what_the_server_ended_is_not_lent_while_no_check_is_due(make: Callable[..., Any]) -> None:
    async with make(max_size=1, check_after_idle=None) as pool:
        async with pool.acquire() as connection:
            ended = await value(connection, "SELECT pg_backend_pid()")
        await until_idle(pool)
        async with make() as other, other.acquire() as killer:
            await value(killer, f"SELECT pg_terminate_backend({ended}, 5000)")
        await anyio.sleep(0.05)  # until the news is here
        for _ in range(3):
            async with pool.acquire() as again:
                assert await value(again, "SELECT pg_backend_pid()") != ended


async def test_a_connection_that_a_borrower_closed_is_replaced(make: Callable[..., Any]) -> None:
    async with make(max_size=1) as pool:
        with capture(ResetFailed) as failed:
            async with pool.acquire() as connection:
                await connection.close()
            async with pool.acquire() as again:
                assert await value(again, "SELECT 1") == 1
        assert len(failed) == 1


async def test_the_query_of_a_cancelled_borrower_ends_at_the_server_and_the_pool_is_whole(
    make: Callable[..., Any], scheme: str
) -> None:
    async with make(max_size=1) as pool:
        began = anyio.current_time()
        with anyio.move_on_after(0.1):
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(30) /* cancelled */")
        assert anyio.current_time() - began < 2
        async with pool.acquire(timeout=5) as again:
            assert await value(again, "SELECT 1") == 1
            with anyio.fail_after(5):
                while await value(again, RUNNING):  # noqa: ASYNC110 - the server tells nobody
                    await anyio.sleep(0.01)


RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE query LIKE '%/* cancelled */%' AND state = 'active' AND pid <> pg_backend_pid()
"""


def settings(scheme: str, **values: str) -> dict[str, Any]:
    """Give what makes either driver ask for settings."""
    if scheme == "postgresql":
        return {"server_settings": values}
    return {"options": " ".join(f"-c {name}={value}" for name, value in values.items())}


@pytest.mark.parametrize("fault", ["unknown database", "unknown role", "unknown setting"])
async def test_an_error_that_trying_again_does_not_cure_reaches_the_caller_at_once_and_unchanged(
    make: Callable[..., Any], scheme: str, fault: str
) -> None:
    faults: dict[str, dict[str, Any]] = {
        "unknown database": {"database": "nowhere"},
        "unknown role": {"user": "nobody"},
        "unknown setting": {"connect_options": settings(scheme, nonsense="1")},
    }
    async with make(**faults[fault]) as pool:
        with anyio.fail_after(3), pytest.raises((asyncpg.PostgresError, psycopg.OperationalError)):
            async with pool.acquire():
                pass


async def test_tls_that_the_server_does_not_speak_reaches_the_caller_at_once(make: Callable[..., Any]) -> None:
    async with make(query="?sslmode=require") as pool:
        with anyio.fail_after(3), pytest.raises((ConnectionError, psycopg.OperationalError), match="SSL"):
            async with pool.acquire():
                pass


async def test_parameters_of_the_url_and_arguments_reach_the_server(make: Callable[..., Any], scheme: str) -> None:
    options = settings(scheme, work_mem="7MB")
    async with make(query="?application_name=shop%20window", connect_options=options) as pool:
        for _ in range(2):  # a reset leaves them
            async with pool.acquire() as connection:
                assert await value(connection, "SHOW application_name") == "shop window"
                assert await value(connection, "SHOW work_mem") == "7MB"


async def test_several_hosts_are_tried_in_turn(make: Callable[..., Any], scheme: str, postgres_server: Any) -> None:
    url = f"{scheme}://postgres@127.0.0.1:1,127.0.0.1:{postgres_server.port}/postgres"
    async with create_pool(url) as pool, pool.acquire(timeout=5) as connection:
        assert await value(connection, "SELECT 1") == 1


async def test_the_attempt_to_connect_is_cut_by_the_pool_and_leaves_nothing_open(
    scheme: str, postgres_server: PostgresServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxy = tcp_proxy(postgres_server.port)
    proxy.black_hole()
    url = f"{scheme}://postgres:{SECRET}@127.0.0.1:{proxy.port}/postgres"
    async with create_pool(url, connect_timeout=0.1, reconnect_base=0.01, reconnect_cap=0.01) as pool:
        began = anyio.current_time()
        with pytest.raises(PoolTimeoutError) as refusal:
            async with pool.acquire(timeout=0.35):
                pass
        assert anyio.current_time() - began < 0.7
        assert proxy.accepted >= 2
        assert SECRET not in "".join(traceback.format_exception(refusal.value)) + repr(pool)
    with anyio.fail_after(3):
        while proxy.connections:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.005)


async def test_no_task_outlives_a_pool_whose_server_fell_silent(
    scheme: str, postgres_server: PostgresServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxy = tcp_proxy(postgres_server.port)
    url = f"{scheme}://postgres@127.0.0.1:{proxy.port}/postgres"
    times: dict[str, Any] = {"check_timeout": 0.1, "reset_timeout": 0.1, "close_timeout": 0.1, "check_after_idle": 0}
    before = asyncio.all_tasks()
    async with create_pool(url, **times) as pool:
        async with pool.acquire() as connection:
            await value(connection, "SELECT 1")
        async with pool.acquire() as connection:
            proxy.black_hole()
            with anyio.move_on_after(0.05):
                await value(connection, "SELECT 1")
        with pytest.raises(PoolTimeoutError):
            async with pool.acquire(timeout=0.3):
                pass
    with anyio.fail_after(3):
        while asyncio.all_tasks() - before or proxy.connections:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.005)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_is_refused_at_once(make: Callable[..., Any]) -> None:
    async with make() as pool:
        with anyio.fail_after(1), pytest.raises(ConfigurationError, match="must be used on asyncio"):
            async with pool.acquire():
                pass


# --- which errors last ---


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (asyncpg.InvalidPasswordError("x"), True),
        (asyncpg.InvalidAuthorizationSpecificationError("x"), True),
        (asyncpg.InvalidCatalogNameError("x"), True),
        (asyncpg.InsufficientPrivilegeError("x"), True),
        (asyncpg.exceptions.ClientConfigurationError("x"), True),
        (ConnectionError('PostgreSQL server at "x:1" rejected SSL upgrade'), True),
        (ssl.SSLCertVerificationError("x"), True),
        (socket.gaierror(socket.EAI_NONAME, "x"), True),
        (socket.gaierror(socket.EAI_AGAIN, "x"), False),
        (asyncpg.TooManyConnectionsError("x"), False),
        (asyncpg.CannotConnectNowError("x"), False),
        (ConnectionError("unexpected connection_lost() call"), False),
        (TimeoutError(), False),
    ],
)
def test_which_errors_of_asyncpg_last(error: Exception, lasts: bool) -> None:
    assert postgres_asyncpg._is_permanent(error) is lasts


@pytest.mark.parametrize(
    ("told", "lasts"),
    [
        ('FATAL:  password authentication failed for user "app"', True),
        ("connection failed: fe_sendauth: no password supplied", True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", database "x", no encryption', True),
        ('FATAL:  role "app" does not exist', True),
        ('FATAL:  database "shop" does not exist', True),
        ('FATAL:  role "app" is not permitted to log in', True),
        ('FATAL:  permission denied for database "shop"', True),
        ("connection failed: server does not support SSL, but SSL was required", True),
        ("SSL error: certificate verify failed", True),
        ('root certificate file "root.crt" does not exist', True),
        ("failed to resolve host 'nowhere.invalid': [Errno -2] Name or service not known", True),
        ("failed to resolve host 'db': [Errno -3] Temporary failure in name resolution", False),
        ("FATAL:  sorry, too many clients already", False),
        ("FATAL:  the database system is starting up", False),
        ("connection failed: Connection refused", False),
        ("server closed the connection unexpectedly", False),
    ],
)
def test_which_errors_of_psycopg_last(told: str, lasts: bool) -> None:
    assert postgres_psycopg._is_permanent(psycopg.OperationalError(told)) is lasts


def test_which_errors_of_psycopg_last_where_the_server_says_so_by_number() -> None:
    assert postgres_psycopg._is_permanent(psycopg.errors.InvalidPassword("x"))
    assert not postgres_psycopg._is_permanent(psycopg.errors.TooManyConnections("x"))
    assert postgres_psycopg._is_permanent(psycopg.ProgrammingError("invalid option"))
    assert not postgres_psycopg._is_permanent(OSError())


async def test_a_socket_in_a_folder_can_be_named(scheme: str, tmp_path: Path) -> None:
    """Its slashes are encoded in the URL, as both drivers have it."""
    folder = str(tmp_path).replace("/", "%2F")
    async with create_pool(f"{scheme}://app@{folder}/shop", reconnect_base=0.01) as pool:
        with pytest.raises(PoolTimeoutError) as refusal:
            async with pool.acquire(timeout=0.2):
                pass
        cause = refusal.value.__cause__
        assert isinstance(cause, FileNotFoundError | psycopg.OperationalError)
        assert isinstance(cause, FileNotFoundError) or str(tmp_path) in str(cause)
