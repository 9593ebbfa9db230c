"""How each rate limiter is asked for one unit of a key, as its documentation does it.

All have one limit of so many units per hour. The algorithm is GCRA where a library has it, else the nearest that keeps
one number for each key. On Redis everybody has a connection for each task, up to `MOST_CONNECTIONS`.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from harness import Contender, Sample

from resilience.rate_limiter import Decision, MemoryStore, Quota, RateLimiter, RedisStore

HOUR: Final = 3_600
AMPLE: Final = 1_000_000
"""Units per hour that nobody uses up, so that calls pass, and that drain slowly, so that a key is live when it is asked
for again: one that has drained is as new, and to admit a new key is another question."""
MOST_CONNECTIONS: Final = 100

AskSync = Callable[[str], Any]
Ask = Callable[[str], Awaitable[Any]]
Connect = Callable[[str, int, int], AbstractAsyncContextManager[Ask]]
"""Takes a URL, a limit and for how many tasks."""

# One key, one rule, one trip: the least that a limiter by the server's clock asks of Redis.
SCRIPT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local after = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + interval
if after - now > burst then
  return {0, 0, math.ceil(after - now - burst)}
end
redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.ceil((after - now) / 1000))
return {1, math.floor((burst - after + now) / interval), 0}
"""


def our_memory(limit: int, keys: int) -> AskSync:
    """Ask this package in this process."""
    return our_limiter(limit, MemoryStore(keys)).try_acquire_sync


def our_limiter(limit: int, store: MemoryStore | RedisStore) -> RateLimiter:
    """Return our limiter."""
    return RateLimiter(Quota(limit, HOUR), name="benchmark", store=store)


@asynccontextmanager
async def our_redis(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask this package on Redis; its number of connections is its own affair."""
    del tasks
    async with our_limiter(limit, RedisStore(url)) as limiter:
        yield limiter.try_acquire


def plain_dict(limit: int, keys: int) -> AskSync:
    """Do the arithmetic of GCRA on a dict, and nothing else."""
    del keys
    interval = HOUR / limit
    arrivals: dict[str, float] = {}

    def ask(key: str) -> bool:
        now = time.monotonic()
        expected = max(now, arrivals.get(key, now))
        if expected - now > HOUR - interval:
            return False
        arrivals[key] = expected + interval
        return True

    return ask


def limits_memory(limit: int, keys: int) -> AskSync:
    """Ask limits in this process."""
    del keys
    library = import_module("limits")
    limiter = import_module("limits.strategies").FixedWindowRateLimiter(import_module("limits.storage").MemoryStorage())
    item = library.RateLimitItemPerHour(limit)
    return lambda key: limiter.hit(item, key)


@asynccontextmanager
async def limits_redis(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask limits on Redis, through redis-py as everybody here."""
    library, storages = import_module("limits"), import_module("limits.aio.storage")
    async with pool(url, tasks) as connections:
        storage = storages.RedisStorage(f"async+{url}", implementation="redispy", connection_pool=connections)
        limiter = import_module("limits.aio.strategies").FixedWindowRateLimiter(storage)
        item = library.RateLimitItemPerHour(limit)
        yield lambda key: limiter.hit(item, key)


@asynccontextmanager
async def limits_default(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask limits on Redis, with the client that it makes of a URL."""
    del tasks
    library, storages = import_module("limits"), import_module("limits.aio.storage")
    storage = storages.RedisStorage(f"async+{url}", implementation="redispy")
    limiter = import_module("limits.aio.strategies").FixedWindowRateLimiter(storage)
    item = library.RateLimitItemPerHour(limit)
    try:
        yield lambda key: limiter.hit(item, key)
    finally:
        await storage.bridge.get_connection().aclose()


def throttled_memory(limit: int, keys: int) -> AskSync:
    """Ask throttled-py in this process."""
    library = import_module("throttled")
    store = library.MemoryStore(options={"MAX_SIZE": keys})
    ask: AskSync = library.Throttled(using="gcra", quota=library.per_hour(limit), store=store).limit
    return ask


@asynccontextmanager
async def throttled_redis(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask throttled-py on Redis."""
    kind, most = kind_of_pool(tasks)
    options = {
        "CONNECTION_POOL_CLASS": f"redis.asyncio.{kind}",
        "CONNECTION_POOL_KWARGS": {"max_connections": most},
    }
    async with throttled_with(url, limit, options) as ask:
        yield ask


@asynccontextmanager
async def throttled_default(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask throttled-py on Redis, with the client that it makes of a URL."""
    del tasks
    async with throttled_with(url, limit, {}) as ask:
        yield ask


@asynccontextmanager
async def throttled_with(url: str, limit: int, options: dict[str, Any]) -> AsyncIterator[Ask]:
    """Ask throttled-py on Redis, with these options of its store."""
    library = import_module("throttled.asyncio")
    store = library.RedisStore(server=url, options=options)
    try:
        yield library.Throttled(using="gcra", quota=library.per_hour(limit), store=store).limit
    finally:
        await store._backend.get_client().aclose(close_connection_pool=True)  # noqa: SLF001 - it has no public end


def pyrate_limiter(limit: int, make_store: Callable[[str], Any]) -> Any:
    """Return a limiter of pyrate-limiter with a bucket for each key, whose state is where `make_store` says."""
    library: Any = import_module("pyrate_limiter")
    factory: Any = library.BucketFactory
    clock, rates = library.WallClock(), [library.Rate(limit, HOUR * 1000)]
    buckets: dict[str, Any] = {}

    class Buckets(factory):  # type: ignore[misc]  # a base that mypy does not see
        def wrap_item(self, name: str, weight: int = 1) -> Any:
            return library.RateItem(name, clock.now(), weight=weight)

        def get(self, item: Any) -> Any:
            bucket = buckets.get(item.name)
            if bucket is None:
                store = make_store(item.name)
                bucket = buckets[item.name] = library.StateBucket(rates, library.GCRA(), store, clock)
            return bucket

    return library.Limiter(Buckets())


def pyrate_memory(limit: int, keys: int) -> AskSync:
    """Ask pyrate-limiter in this process."""
    del keys
    make_store = import_module("pyrate_limiter").InMemoryStateStore
    limiter = pyrate_limiter(limit, lambda _: make_store())
    return lambda key: limiter.try_acquire(key, blocking=False)


@asynccontextmanager
async def pyrate_redis(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Ask pyrate-limiter on Redis, through `try_acquire`: `try_acquire_async` lets one key in at a time."""
    make_store = import_module("pyrate_limiter").RedisStateStore
    async with client(url, tasks) as redis:
        limiter = pyrate_limiter(limit, lambda key: make_store(redis, f"pyrate:{key}"))
        yield lambda key: limiter.try_acquire(key, blocking=False)


@asynccontextmanager
async def raw_redis(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Run the script of one key with redis-py, and nothing around it."""
    async with client(url, tasks) as redis:
        digest = await redis.script_load(SCRIPT)
        interval, burst = HOUR / limit * 1e6, HOUR * 1e6
        yield lambda key: redis.evalsha(digest, 1, f"raw:{key}", interval, burst)


@asynccontextmanager
async def raw_default(url: str, limit: int, tasks: int) -> AsyncIterator[Ask]:
    """Run the script of one key with a client of redis-py as its README makes one."""
    del tasks
    place = urlsplit(url)
    async with import_module("redis.asyncio").Redis(host=place.hostname, port=place.port) as redis:
        digest = await redis.script_load(SCRIPT)
        interval, burst = HOUR / limit * 1e6, HOUR * 1e6
        yield lambda key: redis.evalsha(digest, 1, f"raw:{key}", interval, burst)


def kind_of_pool(tasks: int) -> tuple[str, int]:
    """Tell which pool of redis-py serves so many tasks best without ever raising, and its size."""
    if tasks <= MOST_CONNECTIONS:
        return "ConnectionPool", 2 * tasks
    return "BlockingConnectionPool", MOST_CONNECTIONS


@asynccontextmanager
async def pool(url: str, tasks: int) -> AsyncIterator[Any]:
    """Open a pool of redis-py."""
    kind, most = kind_of_pool(tasks)
    connections = getattr(import_module("redis.asyncio"), kind).from_url(url, max_connections=most)
    try:
        yield connections
    finally:
        await connections.aclose()


@asynccontextmanager
async def client(url: str, tasks: int) -> AsyncIterator[Any]:
    """Open a client of redis-py."""
    async with pool(url, tasks) as connections:
        yield import_module("redis.asyncio").Redis(connection_pool=connections)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A rate limiter: its distribution, how it is asked, and what its numbers stand for.

    Args:
        admitted: tells whether an answer lets the call pass.
        memory: makes what asks in this process, for a limit and so many keys.
        redis: connects, with as many connections as the tasks need.
        redis_default: connects as its documentation does; None where that is the same.
        note: what a reader must know to compare fairly.
    """

    name: str
    distribution: str | None
    admitted: Callable[[Any], bool] = bool
    memory: Callable[[int, int], AskSync] | None = None
    redis: Connect | None = None
    redis_default: Connect | None = None
    note: str = ""

    def contender(self, build: Callable[[], Awaitable[Sample]], variant: str = "") -> Contender:
        """Return this library as a contender, in a variant."""
        name = f"{self.name}, {variant}" if variant else self.name
        return Contender(name=name, distribution=self.distribution, build=build, note=self.note)

    def in_memory(self, keys: int, limit: int) -> AskSync:
        """Return what asks in this process, after a check that it limits at all."""
        if self.memory is None:
            raise RuntimeError("no limiter in memory")
        ask = self.memory(1, keys)
        self._check([ask("checked"), ask("checked")])
        return self.memory(limit, keys)

    async def on_redis(self, url: str) -> Connect:
        """Return what connects to Redis, after a check that it limits at all."""
        if self.redis is None:
            raise RuntimeError("no limiter on Redis")
        key = f"checked-{secrets.token_hex(8)}"  # Redis keeps what an earlier check has charged
        async with self.redis(url, 1, 1) as ask:
            self._check([await ask(key), await ask(key)])
        return self.redis

    def must_admit(self, answer: Any) -> None:
        """Make sure that a limit is still ample."""
        if not self.admitted(answer):
            raise RuntimeError("the limit was used up, or another decided than was asked")

    def _check(self, answers: list[Any]) -> None:
        if [self.admitted(answer) for answer in answers] != [True, False]:
            raise RuntimeError("a limit of one does not admit the first call and refuse the second")


def ours_admitted(decision: Decision) -> bool:
    """Tell whether our call may pass, and was not decided in place of the store."""
    return decision.allowed and decision.source in {"memory", "redis"}


OURS = Library(
    name="resilience",
    distribution="anyio-resilience",
    admitted=ours_admitted,
    memory=our_memory,
    redis=our_redis,
)
LIMITS = Library(
    name="limits",
    distribution="limits",
    memory=limits_memory,
    redis=limits_redis,
    redis_default=limits_default,
    note="fixed window",
)
THROTTLED = Library(
    name="throttled-py",
    distribution="throttled-py",
    admitted=lambda result: not result.limited,
    memory=throttled_memory,
    redis=throttled_redis,
    redis_default=throttled_default,
    note="GCRA",
)
PYRATE = Library(
    name="pyrate-limiter",
    distribution="pyrate-limiter",
    memory=pyrate_memory,
    redis=pyrate_redis,
    note="GCRA, a bucket object for each key",
)
PLAIN = Library(
    name="a plain dict",
    distribution=None,
    memory=plain_dict,
    note="GCRA: no bound, no lock, True or False",
)
RAW = Library(
    name="redis-py",
    distribution="redis",
    admitted=lambda reply: reply[0] == 1,
    redis=raw_redis,
    redis_default=raw_default,
    note="EVALSHA of a GCRA script for one key",
)
