"""redis-py's clients in a pool before a real server: one connection each, and nobody finds it in another's state."""

from __future__ import annotations

import asyncio
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
import redis

from resilience.errors import ConfigurationError, PoolTimeoutError, PoolUsageError
from resilience.events import CheckFailed, ResetFailed, capture
from resilience.pool import ConnectionPool, create_pool
from resilience.pool.adapters import redis as adapter
from resilience.testing.servers import RedisServer, TcpProxy, find_redis_servers

from .conftest import until_idle

pytestmark = pytest.mark.anyio

SECRET = "Tr0ub4dor"
Client: TypeAlias = Any  # redis-py types its clients in part only


@pytest.fixture
def anyio_backend() -> str:
    """Real time, and asyncio: redis-py's async client knows no other."""
    return "asyncio"


@pytest.fixture
def make(any_redis: RedisServer) -> Callable[..., ConnectionPool[Client]]:
    def make(*, query: str = "", **options: Any) -> ConnectionPool[Client]:
        return create_pool(f"{any_redis.url}{query}", **options)

    return make


def clients(server: RedisServer) -> int:
    """Connections at the server, the one that asks not counted."""
    return len(server.command("CLIENT", "LIST").splitlines()) - 1


async def test_a_client_is_lent_again_and_has_one_connection(make: Callable[..., Any], any_redis: RedisServer) -> None:
    before = clients(any_redis)
    async with make(max_size=2) as pool:
        async with pool.acquire() as client:
            await client.set("key", "value")
            async with client.pipeline(transaction=True) as pipeline:
                pipeline.set("other", 1)
                pipeline.get("key")
                assert await pipeline.execute() == [True, b"value"]
            async with client.pipeline(transaction=False) as pipeline:
                assert await pipeline.get("key").get("other").execute() == [b"value", b"1"]
            assert clients(any_redis) - before == 1
        async with pool.acquire() as again:
            assert again is client
            assert await again.get("key") == b"value"
        assert pool.stats().opened == 1


async def watch(client: Client) -> None:
    await client.execute_command("WATCH", "key")


async def multi(client: Client) -> None:
    await client.execute_command("MULTI")
    await client.execute_command("SET", "key", "never")


async def watch_in_a_pipeline(client: Client) -> None:
    pipeline = client.pipeline()
    await pipeline.watch("key")


async def subscribe(client: Client) -> None:
    await client.pubsub().subscribe("news")


async def subscribe_and_end(client: Client) -> None:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")


async def select(client: Client) -> None:
    await client.select(3)


async def track(client: Client) -> None:
    await client.execute_command("CLIENT NO-EVICT", "ON")


async def rename(client: Client) -> None:
    await client.client_setname("mine")


async def reset(client: Client) -> None:
    await client.execute_command("RESET")


async def cancel(client: Client) -> None:
    with anyio.move_on_after(0.02):
        await client.blpop(["nothing"], timeout=0)


async def send_and_not_read(client: Client) -> None:
    connection = await client.connection_pool.get_connection()
    await connection.send_command("PING")
    await anyio.sleep(0.05)
    await client.connection_pool.release(connection)


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # redis-py's word for a pipeline that nobody ended
@pytest.mark.parametrize(
    "leave",
    [
        *(watch, multi, watch_in_a_pipeline, subscribe, subscribe_and_end, select, track, rename, reset, cancel),
        send_and_not_read,
    ],
)
async def test_a_client_that_was_left_in_some_state_is_replaced(
    leave: Callable[[Client], Awaitable[None]], make: Callable[..., Any], any_redis: RedisServer
) -> None:
    before = clients(any_redis)
    async with make(max_size=1) as pool:
        with capture(ResetFailed) as failed:
            async with pool.acquire() as client:
                await leave(client)
            async with pool.acquire(timeout=5) as again:
                assert again is not client
                assert await again.get("key") is None
                assert await again.client_getname() is None
        assert len(failed) == 1
        assert pool.stats().size == 1
        with anyio.fail_after(5):
            while clients(any_redis) - before != 1:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.005)


async def finish_multi(client: Client) -> None:
    await multi(client)
    await client.execute_command("EXEC")


async def discard_multi(client: Client) -> None:
    await multi(client)
    await client.execute_command("DISCARD")


async def unwatch(client: Client) -> None:
    await watch(client)
    await client.execute_command("UNWATCH")


async def optimistic(client: Client) -> None:
    def increment(pipeline: Any) -> None:
        pipeline.multi()
        pipeline.set("counter", 1)

    await client.transaction(increment, "counter")


async def ask_about_clients(client: Client) -> None:
    await client.client_id()
    await client.client_list()


@pytest.mark.parametrize("leave", [finish_multi, discard_multi, unwatch, optimistic, ask_about_clients])
async def test_a_client_whose_borrower_ended_what_it_began_is_lent_again(
    leave: Callable[[Client], Awaitable[None]], make: Callable[..., Any]
) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as client:
            await leave(client)
        async with pool.acquire() as again:
            assert again is client


async def test_two_commands_at_once_on_one_client_are_refused_and_do_no_harm(make: Callable[..., Any]) -> None:
    async with make(max_size=1) as pool, pool.acquire() as client:
        await client.set("key", "value")
        results = await asyncio.gather(client.get("key"), client.get("key"), return_exceptions=True)
        assert results[0] == b"value"
        assert isinstance(results[1], PoolUsageError)
        assert "one thing at a time" in str(results[1])
        assert await client.get("key") == b"value"


async def test_a_client_that_lost_its_connection_never_opens_another(
    make: Callable[..., Any], any_redis: RedisServer
) -> None:
    async with make(max_size=1) as pool:
        async with pool.acquire() as client:
            number = await client.client_id()
            any_redis.command("CLIENT", "KILL", "ID", number)
            with pytest.raises(redis.ConnectionError):
                await client.get("key")
            with pytest.raises(redis.ConnectionError, match="the pool opens another one"):
                await client.get("key")
        async with pool.acquire(timeout=5) as again:
            assert await again.client_id() != number


async def test_a_check_finds_what_the_server_closed(make: Callable[..., Any], any_redis: RedisServer) -> None:
    async with make(max_size=1, check_after_idle=0) as pool:
        async with pool.acquire() as client:
            number = await client.client_id()
        await until_idle(pool)
        any_redis.command("CLIENT", "KILL", "ID", number)
        with capture(CheckFailed) as failed:
            async with pool.acquire(timeout=5) as again:
                assert again is not client
                await again.ping()
        assert len(failed) == 1


async def test_a_check_asks_a_connection_that_looks_well(
    any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxy = tcp_proxy(any_redis.port)
    async with create_pool(f"redis://127.0.0.1:{proxy.port}", check_after_idle=0, check_timeout=0.1) as pool:
        async with pool.acquire() as client:
            await client.ping()
        await until_idle(pool)
        proxy.black_hole()
        proxy.restore()
        async with pool.acquire(timeout=5) as again:  # after a check that nobody answered
            assert again is not client
            await again.ping()


async def test_options_of_the_url_and_arguments_reach_the_connection(make: Callable[..., Any]) -> None:
    options = {"decode_responses": True, "client_name": "shop"}
    async with make(query="?protocol=3&socket_timeout=0.05", connect_options=options) as pool:
        async with pool.acquire() as client:
            await client.hset("key", "field", "value")
            assert await client.hgetall("key") == {"field": "value"}
            assert await client.client_getname() == "shop"
        async with pool.acquire() as again:
            assert again is client  # what was set up at the beginning is nobody's doing
            with pytest.raises(redis.TimeoutError):
                await again.blpop(["nothing"], timeout=1)


async def test_the_database_of_the_url_is_the_one(any_redis: RedisServer) -> None:
    async with create_pool(f"redis://127.0.0.1:{any_redis.port}/3") as pool, pool.acquire() as client:
        await client.set("here", 1)
    async with create_pool(f"redis://127.0.0.1:{any_redis.port}?db=3") as pool, pool.acquire() as client:
        assert await client.get("here") == b"1"
    async with create_pool(f"valkey://127.0.0.1:{any_redis.port}") as pool, pool.acquire() as client:
        assert await client.get("here") is None


async def test_a_database_that_does_not_exist_reaches_the_caller_at_once(any_redis: RedisServer) -> None:
    async with create_pool(f"redis://127.0.0.1:{any_redis.port}/999999") as pool:
        with anyio.fail_after(2), pytest.raises(redis.RedisError):
            async with pool.acquire():
                pass


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    found = find_redis_servers()
    if not found:
        pytest.skip("no redis server here")
    folder: Path = tmp_path_factory.mktemp("guarded")
    with RedisServer(next(iter(found.values())), folder, options={"requirepass": SECRET}) as server:
        yield server


async def test_the_password_of_the_url_opens_and_is_told_nowhere(guarded: RedisServer) -> None:
    async with create_pool(f"redis://:{SECRET}@127.0.0.1:{guarded.port}/0") as pool, pool.acquire() as client:
        await client.ping()
        assert SECRET not in repr(client) + repr(pool) + str(client.connection_pool)


@pytest.mark.parametrize("credentials", ["", ":wrong-word@", "somebody:wrong-word@"])
async def test_a_wrong_password_or_none_reaches_the_caller_at_once(credentials: str, guarded: RedisServer) -> None:
    async with create_pool(f"redis://{credentials}127.0.0.1:{guarded.port}") as pool:
        with anyio.fail_after(2), pytest.raises(redis.RedisError) as refusal:
            async with pool.acquire():
                pass
        assert pool.stats().connect_failures == 1
    told = "".join(traceback.format_exception(refusal.value))
    assert "wrong-word" not in told


async def test_a_server_without_tls_reaches_the_caller_in_time(any_redis: RedisServer) -> None:
    # It takes the greeting for a command and says so, or hangs up: what then fails is TLS, or the connection.
    async with create_pool(f"rediss://127.0.0.1:{any_redis.port}", connect_timeout=0.2) as pool:
        with anyio.fail_after(3), pytest.raises((redis.ConnectionError, PoolTimeoutError)):
            async with pool.acquire(timeout=0.1):
                pass


async def test_the_attempt_to_connect_is_cut_by_the_pool_and_leaves_nothing_open(
    any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxy = tcp_proxy(any_redis.port)
    proxy.black_hole()
    url = f"redis://127.0.0.1:{proxy.port}"
    async with create_pool(url, connect_timeout=0.1, reconnect_base=0.01, reconnect_cap=0.01) as pool:
        began = anyio.current_time()
        with pytest.raises(PoolTimeoutError):
            async with pool.acquire(timeout=0.35):
                pass
        assert anyio.current_time() - began < 0.7
        assert proxy.accepted >= 2
    with anyio.fail_after(3):
        while proxy.connections:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.005)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_it_is_refused_at_once(make: Callable[..., Any]) -> None:
    async with make() as pool:
        with anyio.fail_after(1), pytest.raises(ConfigurationError, match="must be used on asyncio"):
            async with pool.acquire():
                pass


def caused(error: Exception) -> Exception:
    told = redis.ConnectionError("Error connecting")
    told.__context__ = error
    return told


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (redis.AuthenticationError("WRONGPASS"), True),
        (redis.exceptions.NoPermissionError("no"), True),
        (redis.ResponseError("NOAUTH Authentication required."), True),
        (redis.ResponseError("DB index is out of range"), True),
        (redis.ConnectionError("Invalid Database"), True),
        (caused(ssl.SSLCertVerificationError("x")), True),
        (caused(socket.gaierror(socket.EAI_NONAME, "x")), True),
        (caused(socket.gaierror(socket.EAI_AGAIN, "x")), False),
        (caused(ConnectionRefusedError()), False),
        (redis.BusyLoadingError("loading"), False),
        (redis.ConnectionError("max number of clients reached"), False),
        (redis.TimeoutError(), False),
    ],
)
def test_which_errors_last(error: Exception, lasts: bool) -> None:
    assert adapter._is_permanent(error) is lasts
