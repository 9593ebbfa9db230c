"""The connection pools that `bench_pool.py` compares, each around connections that do nothing.

A driver's connection costs milliseconds and hides what the pool around it costs; so every pool here is the library's
own, and only what it opens is a fake, with just the attributes that the pool looks at. `Server` counts what is opened.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final, Self

import anyio
from harness import Contender, Sample

from resilience.pool import ConnectionPool

Hold = Callable[[], Coroutine[Any, Any, object]]
"""What is done with the connection."""
Use = Callable[[Hold], Coroutine[Any, Any, object]]
"""Borrows a connection, awaits what is given, and gives the connection back."""

PATIENCE: Final = 60.0
"""Seconds that anybody may wait for a connection: longer than any sample, and a time limit all the same."""


@dataclass(kw_only=True)
class Server:
    """What connections are opened to.

    Args:
        seconds: that opening one takes.
        opened: so many.
    """

    seconds: float = 0.0
    opened: int = 0

    async def connect(self) -> None:
        """Take the time that it takes, and count."""
        self.opened += 1
        if self.seconds:
            await anyio.sleep(self.seconds)


Open = Callable[[Server, int, int], AbstractAsyncContextManager[Use]]
"""Takes a server, how many connections are open from the beginning, and how many may be."""


async def warm_up(use: Use, connections: int) -> None:
    """Have so many connections open, where a pool opens them on demand only."""
    all_here = anyio.Event()
    here = 0

    async def hold() -> None:
        nonlocal here
        here += 1
        if here == connections:
            all_here.set()
        await all_here.wait()

    async with anyio.create_task_group() as group:
        for _ in range(connections):
            group.start_soon(use, hold)


@asynccontextmanager
async def opened_by_us(server: Server, least: int, most: int, **options: Any) -> AsyncIterator[ConnectionPool[object]]:
    """Open our pool, as it comes."""

    async def connect() -> object:
        await server.connect()
        return object()

    sizes: dict[str, Any] = {"min_size": least, "max_size": most, "acquire_timeout": PATIENCE}
    async with ConnectionPool(connect, **sizes, **options) as pool:
        await pool.wait_ready()
        yield pool


@asynccontextmanager
async def ours(server: Server, least: int, most: int, **options: Any) -> AsyncIterator[Use]:
    """Borrow by `async with pool.acquire()`."""
    async with opened_by_us(server, least, most, **options) as pool:

        async def use(hold: Hold) -> None:
            async with pool.acquire():
                await hold()

        yield use


@asynccontextmanager
async def our_lease(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow by `await pool.acquire()`."""
    async with opened_by_us(server, least, most) as pool:

        async def use(hold: Hold) -> None:
            lease = await pool.acquire()
            try:
                await hold()
            finally:
                lease.release()

        yield use


@asynccontextmanager
async def opened_by_psycopg(server: Server, least: int, most: int) -> AsyncIterator[Any]:
    """Open psycopg's pool."""
    idle = import_module("psycopg.pq").TransactionStatus.IDLE

    class Fake:
        def __init__(self) -> None:
            self.pgconn = SimpleNamespace(transaction_status=idle)

        @classmethod
        async def connect(cls, *_: object, **__: object) -> "Fake":
            await server.connect()
            return cls()

        async def close(self) -> None: ...

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    pool = import_module("psycopg_pool").AsyncConnectionPool(
        "", connection_class=Fake, min_size=least, max_size=most, timeout=PATIENCE, open=False
    )
    await pool.open(wait=True)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def psycopg_connection(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow by `async with pool.connection()`."""
    async with opened_by_psycopg(server, least, most) as pool:

        async def use(hold: Hold) -> None:
            async with pool.connection():
                await hold()

        yield use


@asynccontextmanager
async def psycopg_get_put(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow by `getconn` and `putconn`."""
    async with opened_by_psycopg(server, least, most) as pool:

        async def use(hold: Hold) -> None:
            connection = await pool.getconn()
            try:
                await hold()
            finally:
                await pool.putconn(connection)

        yield use


@asynccontextmanager
async def asyncpg_pool(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow from asyncpg's pool by `async with pool.acquire()`, without its reset query."""
    library = import_module("asyncpg")
    real: Any = library.Connection
    protocol = SimpleNamespace(queries_count=0, _is_cancelling=lambda: False)

    def fake_init(self: Any) -> None:
        self._protocol = protocol
        self._proxy = None
        self._pool_holder = None
        self._pool_release_ctr = 0
        self._listeners = {}
        self._log_listeners = set()
        self._query_loggers = set()

    async def nothing(self: Any, **_: object) -> None:
        del self

    def forget(self: Any) -> None:
        holder = self._pool_holder
        if holder is not None and holder() is not None:
            holder()._release_on_close()  # noqa: SLF001 - what the real one does when it is closed

    async def close(self: Any, **_: object) -> None:
        forget(self)

    fake = type(
        "Fake",
        (real,),
        {
            "__init__": fake_init,
            "__del__": lambda _: None,
            "is_closed": lambda _: False,
            "reset": nothing,
            "close": close,
            "terminate": forget,
        },
    )

    async def connect(*_: object, **__: object) -> Any:
        await server.connect()
        return fake()

    async with library.create_pool(connect=connect, connection_class=fake, min_size=least, max_size=most) as pool:

        async def use(hold: Hold) -> None:
            async with pool.acquire(timeout=PATIENCE):
                await hold()

        yield use


@asynccontextmanager
async def redis_blocking(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow from redis-py's BlockingConnectionPool, without the cost of looking whether bytes are there to be read."""

    class Fake:
        def __init__(self, **_: object) -> None:
            self.connected = False

        async def connect(self) -> None:
            if not self.connected:
                await server.connect()
                self.connected = True

        async def disconnect(self, *_: object, **__: object) -> None: ...

        async def can_read(self, *_: object) -> bool:
            return False

        async def re_auth(self) -> None: ...

        def should_reconnect(self) -> bool:
            return False

    library = import_module("redis.asyncio")
    pool = library.BlockingConnectionPool(connection_class=Fake, max_connections=most, timeout=PATIENCE)

    async def use(hold: Hold) -> None:
        connection = await pool.get_connection()
        try:
            await hold()
        finally:
            await pool.release(connection)

    await warm_up(use, least)
    yield use


@asynccontextmanager
async def sqlalchemy_queue(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow from SQLAlchemy's AsyncAdaptedQueuePool, as its async engine does."""
    spawn = import_module("sqlalchemy.util").greenlet_spawn
    wait = import_module("sqlalchemy.util").await_only

    class Fake:
        def rollback(self) -> None: ...

        def close(self) -> None: ...

        def terminate(self) -> None: ...

    def connect() -> Fake:
        wait(server.connect())
        return Fake()

    pool = import_module("sqlalchemy.pool").AsyncAdaptedQueuePool(
        connect, pool_size=most, max_overflow=0, timeout=PATIENCE
    )

    async def use(hold: Hold) -> None:
        connection = await spawn(pool.connect)
        try:
            await hold()
        finally:
            await spawn(connection.close)

    await warm_up(use, least)
    try:
        yield use
    finally:
        await spawn(pool.dispose)


@asynccontextmanager
async def connection_pool(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Borrow from asyncio-connection-pool; it has no time limit."""
    library: Any = import_module("asyncio_connection_pool")

    async def make_connection(_: object) -> object:
        await server.connect()
        return object()

    async def close_connection(_: object, __: object) -> None: ...

    strategy = type(
        "Strategy",
        (library.ConnectionStrategy,),
        {
            "make_connection": make_connection,
            "connection_is_closed": lambda *_: False,
            "close_connection": close_connection,
        },
    )
    pool = library.ConnectionPool(strategy=strategy(), max_size=most)

    async def use(hold: Hold) -> None:
        async with pool.get_connection():
            await hold()

    await warm_up(use, least)
    yield use


@asynccontextmanager
async def semaphore(server: Server, least: int, most: int) -> AsyncIterator[Use]:
    """Count, by asyncio's semaphore, and have nothing to lend: the least that a crowd costs."""
    del server, least
    free = asyncio.Semaphore(most)

    async def use(hold: Hold) -> None:
        async with free:
            await hold()

    yield use


async def bare(hold: Hold) -> None:
    """Do without a pool."""
    await hold()


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool: its distribution, how it is opened and used, and what its numbers stand for."""

    name: str
    distribution: str | None
    open: Open
    note: str = ""

    def contender(self, build: Callable[[], Awaitable[Sample]], variant: str = "") -> Contender:
        """Return this pool as a contender, in a variant."""
        name = f"{self.name}, {variant}" if variant else self.name
        return Contender(name=name, distribution=self.distribution, build=build, note=self.note)


OURS: Final = Pool(name="resilience", distribution="anyio-resilience", open=ours)
OURS_AT_ONCE: Final = Pool(
    name="resilience, max_connecting=50",
    distribution="anyio-resilience",
    open=partial(ours, max_connecting=50),
    note="the default is 4",
)
OUR_LEASE: Final = Pool(
    name="resilience, lease", distribution="anyio-resilience", open=our_lease, note="lease.release()"
)
PSYCOPG: Final = Pool(
    name="psycopg_pool", distribution="psycopg-pool", open=psycopg_connection, note="connection(): a transaction too"
)
PSYCOPG_PUT: Final = Pool(
    name="psycopg_pool, get/put", distribution="psycopg-pool", open=psycopg_get_put, note="getconn, putconn"
)
ASYNCPG: Final = Pool(name="asyncpg", distribution="asyncpg", open=asyncpg_pool, note="without its reset query")
REDIS: Final = Pool(
    name="redis-py",
    distribution="redis",
    open=redis_blocking,
    note="BlockingConnectionPool, without its look for bytes",
)
SQLALCHEMY: Final = Pool(
    name="SQLAlchemy", distribution="SQLAlchemy", open=sqlalchemy_queue, note="AsyncAdaptedQueuePool, through greenlets"
)
CONNECTION_POOL: Final = Pool(
    name="asyncio-connection-pool",
    distribution="asyncio-connection-pool",
    open=connection_pool,
    note="no check, no lifetime, no time limit",
)
SEMAPHORE: Final = Pool(name="asyncio.Semaphore", distribution=None, open=semaphore, note="lends nothing")

PEERS: Final = (PSYCOPG, PSYCOPG_PUT, ASYNCPG, REDIS, SQLALCHEMY, CONNECTION_POOL)
