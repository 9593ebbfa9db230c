"""A pool before a real Redis that is killed, freezes, refuses and falls silent, in real time.

Each story ends with the whole pool at work again, and with exactly its connections at the server. The stories of the
network are told of bare TCP streams too, on asyncio and trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis

from resilience.errors import PoolTimeoutError
from resilience.events import ConnectFailed, capture
from resilience.pool import ConnectionPool, create_pool
from resilience.testing.servers import RedisServer, TcpProxy, find_redis_servers

pytestmark = pytest.mark.anyio

SIZE = 4
CAP = 0.3  # seconds: the longest pause between two attempts to connect
CONFIG: dict[str, Any] = {
    "max_size": SIZE,
    "acquire_timeout": 2.0,
    "connect_timeout": 0.4,
    "check_timeout": 0.3,
    "reset_timeout": 0.3,
    "close_timeout": 0.3,
    "check_after_idle": 0.05,
    "reconnect_base": 0.02,
    "reconnect_cap": CAP,
    "debug": True,
}


@pytest.fixture(params=["redis on asyncio", "tcp on asyncio", "tcp on trio"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real time, and asyncio where it is about redis-py, which knows no other."""
    if "kind" in request.fixturenames and request.getfixturevalue("kind").endswith("trio"):
        return "trio"
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    found = find_redis_servers()
    if not found:
        pytest.skip("no redis server here")
    with RedisServer(next(iter(found.values())), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def pool(server: RedisServer) -> AsyncIterator[ConnectionPool[Any]]:
    async with create_pool(f"redis://127.0.0.1:{server.port}?client_name=story", **CONFIG) as pool:
        yield pool


@pytest.fixture
def proxy(server: RedisServer, tcp_proxy: Callable[..., TcpProxy]) -> TcpProxy:
    return tcp_proxy(server.port)


async def name(stream: Any) -> None:
    """Introduce a bare stream to the server."""
    await stream.send(b"CLIENT SETNAME story\r\n")
    assert await stream.receive() == b"+OK\r\n"


@pytest.fixture
async def distant(kind: str, proxy: TcpProxy) -> AsyncIterator[ConnectionPool[Any]]:
    """A pool behind the proxy."""
    if kind.startswith("redis"):
        pool = create_pool(f"redis://127.0.0.1:{proxy.port}?client_name=story", **CONFIG)
    else:
        pool = create_pool(f"tcp://127.0.0.1:{proxy.port}", on_connect=name, **CONFIG)
    async with pool:
        yield pool


async def work(connection: Any) -> None:
    if isinstance(connection, redis.asyncio.Redis):
        await connection.incr("counter")
        await anyio.sleep(0.001)
        return
    await connection.send(b"INCR counter\r\n")
    assert (await connection.receive()).startswith(b":")


async def identify(connection: Any) -> int:
    if isinstance(connection, redis.asyncio.Redis):
        return int(await connection.client_id())
    await connection.send(b"CLIENT ID\r\n")
    return int((await connection.receive())[1:])


def ids(server: RedisServer) -> set[int]:
    """The connections of the pool, as the server has them."""
    lines = [
        dict(fact.split("=", 1) for fact in line.split()) for line in server.command("CLIENT", "LIST").splitlines()
    ]
    return {int(facts["id"]) for facts in lines if facts["name"] == "story"}


async def has_just(server: RedisServer, identities: set[Any]) -> None:
    """Wait until the server has the connections of the pool and no other: none lost, none doubled, none left over."""
    with anyio.fail_after(5):
        while ids(server) != identities:  # noqa: ASYNC110 - the server tells nobody
            await anyio.sleep(0.01)


async def is_at_rest(pool: ConnectionPool[Any]) -> None:
    with anyio.fail_after(2):
        while (stats := pool.stats()).leased or stats.reserved or stats.connecting:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.002)
    assert (stats.size, stats.idle) == (SIZE, SIZE)


async def test_a_redis_that_was_killed_and_restarted_is_found_again_within_the_cap(
    pool: ConnectionPool[Any], server: RedisServer, under_load: Any, is_whole_within: Any
) -> None:
    with capture(ConnectFailed) as failed:
        async with under_load(pool, work) as load:
            await load.serves()
            server.kill()
            await load.fails(30)
            await anyio.to_thread.run_sync(server.start)
            await load.serves(within=CAP + 2)
    assert failed
    assert all((event.next_in or 0) <= CAP for event in failed)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_idle_clients_that_the_server_ended_are_replaced_and_nobody_sees_them(
    pool: ConnectionPool[Any], server: RedisServer, is_whole_within: Any
) -> None:
    before = await is_whole_within(1, pool, identify)
    await is_at_rest(pool)
    for number in before:
        server.command("CLIENT", "KILL", "ID", number)
    await anyio.sleep(CONFIG["check_after_idle"])

    async def borrow() -> None:
        async with pool.acquire() as client:
            assert await identify(client) not in before

    async with anyio.create_task_group() as group:
        for _ in range(3 * SIZE):
            group.start_soon(borrow)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_the_end_of_a_busy_client_reaches_its_borrower_alone(
    pool: ConnectionPool[Any], server: RedisServer, is_whole_within: Any
) -> None:
    async with anyio.create_task_group() as group:

        async def end(number: int) -> None:
            await anyio.sleep(0.02)
            server.command("CLIENT", "KILL", "ID", number)

        async with pool.acquire() as client:
            group.start_soon(end, await identify(client))
            with pytest.raises(redis.ConnectionError):
                await client.blpop(["nothing"], timeout=30)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_a_server_that_lets_no_more_clients_in_serves_all_with_those_that_are_there(
    pool: ConnectionPool[Any], server: RedisServer, under_load: Any, is_whole_within: Any
) -> None:
    # Over a connection that is there already: there will be no place for another one.
    with redis.Redis(port=server.port, single_connection_client=True) as administrator:
        administrator.config_set("maxclients", 3)
        try:
            async with under_load(pool, work) as load:
                await load.serves(100)
                with anyio.fail_after(5):
                    while not pool.stats().connect_failures:  # noqa: ASYNC110 - nobody tells
                        await anyio.sleep(0.005)
                await load.serves(100)
                assert pool.stats().size == 2
                assert not load.failed
        finally:
            administrator.config_set("maxclients", 10_000)
    await has_just(server, await is_whole_within(CAP, pool, identify))
    await is_at_rest(pool)


async def test_callers_of_a_frozen_server_leave_in_time_and_a_thawed_one_is_whole(
    distant: ConnectionPool[Any], server: RedisServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(distant, work) as load:
        await load.serves()
        server.freeze()
        try:
            await load.fails(24)
        finally:
            server.thaw()
        await load.serves(within=CAP + 2)
    await has_just(server, await is_whole_within(CAP, distant, identify))
    await is_at_rest(distant)


async def test_a_network_that_swallows_everything_costs_callers_their_time_and_no_connection(
    distant: ConnectionPool[Any], proxy: TcpProxy, server: RedisServer, under_load: Any, is_whole_within: Any
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
    distant: ConnectionPool[Any], proxy: TcpProxy, server: RedisServer, under_load: Any, is_whole_within: Any
) -> None:
    async with under_load(distant, work) as load:
        for _ in range(5):
            await load.serves()
            proxy.reset_all()
        await load.serves()
    assert load.failed.total() <= 5 * SIZE  # those who had one that was cut, and nobody else
    await has_just(server, await is_whole_within(CAP, distant, identify))
    await is_at_rest(distant)


async def test_a_server_far_away_is_as_good_as_a_near_one(
    distant: ConnectionPool[Any], proxy: TcpProxy, server: RedisServer, under_load: Any, is_whole_within: Any
) -> None:
    proxy.latency = 0.02
    async with under_load(distant, work, callers=6) as load:
        await load.serves(30, within=10)
    assert not load.failed
    await has_just(server, await is_whole_within(1, distant, identify))
    await is_at_rest(distant)


async def test_a_server_that_accepts_and_never_answers_is_told_as_such(proxy: TcpProxy) -> None:
    proxy.black_hole()
    options = {**CONFIG, "connect_timeout": 0.1, "acquire_timeout": 0.4}
    async with create_pool(f"redis://127.0.0.1:{proxy.port}", **options) as pool:
        began = anyio.current_time()
        with pytest.raises(PoolTimeoutError, match="connecting has failed for") as refusal:
            async with pool.acquire():
                pass
        assert anyio.current_time() - began < 0.8
        assert isinstance(refusal.value.__cause__, TimeoutError)
        proxy.restore()
        async with pool.acquire(timeout=CAP + 1) as client:
            assert await client.ping()
