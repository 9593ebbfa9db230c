"""The limiter behind Sentinels: it finds the primary, and finds the next one when that is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from anyio import to_thread

from resilience.events import FallbackEntered
from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisReplicaSet, RedisServer, TcpProxy
from tests.rate_limiter.groups import (
    LATE,
    PATIENT,
    SLOW,
    STRICT,
    WAYS,
    Caller,
    close_and_check,
    kinds,
    outages_of,
    run,
    run_side_by_side,
    scripts_run,
    until,
    use_everything,
)

BUDGET = 0.25


def url_of(replica_set: RedisReplicaSet, *others: int, service: str | None = None) -> str:
    ports = [*others, *(port for _, port in replica_set.sentinel_addresses)]
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"redis+sentinel://{places}/{replica_set.service_name if service is None else service}/0"


def client_of(kind: str, replica_set: RedisReplicaSet, **options: Any) -> object:
    """Give what a store may be made of."""
    if kind == "url":
        return url_of(replica_set)
    module: Any = redis.asyncio.sentinel if kind == "asyncio client" else redis.sentinel
    return module.Sentinel(replica_set.sentinel_addresses, **options).master_for(replica_set.service_name)


def all_servers(replica_set: RedisReplicaSet) -> list[RedisServer]:
    return [one for one in (*replica_set.servers, *replica_set.sentinels) if one.is_running]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Do something to servers while the callers go on."""
    return await to_thread.run_sync(function, *args)


@contextmanager
def no_outage(name: str) -> Iterator[None]:
    with outages_of(name) as events:
        yield
    assert not events, [event.as_dict() for event in events]


@pytest.mark.parametrize("kind", ["url", "asyncio client", "blocking client"])
@pytest.mark.parametrize("way", WAYS)
def test_every_operation_works_by_url_and_by_client(way: str, kind: str, redis_sentinel: RedisReplicaSet) -> None:
    async def main() -> None:
        store = RedisStore(client_of(kind, redis_sentinel), budget=PATIENT)
        await use_everything(Caller(way, RateLimiter((SLOW, STRICT), name="ops", store=store)))
        await close_and_check(store, all_servers(redis_sentinel))

    with no_outage("ops"):
        run(way, main)


# --- fail-overs ---


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ordered"])
def test_a_fail_over_under_load_is_bridged_and_the_new_primary_found(
    kill: bool, redis_sentinel: RedisReplicaSet
) -> None:
    """Nobody waits beyond the budget, nothing is raised, the limit holds, and seconds later Redis decides again."""
    limit, tasks = 60, 6
    old = redis_sentinel.primary
    warm: list[str] = []
    over = threading.Event()

    async def story(way: str) -> None:
        store = RedisStore(url_of(redis_sentinel), budget=2 * BUDGET, prefix=f"over-{kill}-{way}")
        caller = Caller(way, RateLimiter(Quota(limit, 86_400.0), name=f"over {way}", store=store))
        plenty = Caller(way, RateLimiter(Quota(10**6, 86_400.0), name=f"plenty {way}", store=store))
        await caller("try_acquire", "a", 30)
        assert caller.sources() == {"redis"}

        async def load() -> None:
            while not over.is_set() or not store.reachable:
                await caller("try_acquire", "a")
                await plenty("try_acquire", "b")
                await anyio.sleep(0.05)

        with outages_of(f"plenty {way}") as events:
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(load)
                await anyio.sleep(0.02)
                warm.append(way)
                await until(over.is_set, "the fail-over was over")
                began = time.monotonic()
            assert time.monotonic() - began < 6.0
        assert kinds(events)[::2] == ["FallbackEntered"] * (len(events) // 2)
        assert len(events) <= 4
        assert max(caller.longest, plenty.longest) <= 2 * BUDGET + LATE
        assert limit <= caller.granted() <= limit + 2 * tasks  # those whose answer never came
        assert (await plenty("try_acquire", "b")).source == "redis"
        await close_and_check(store, [])

    def trouble() -> None:
        while len(warm) < len(WAYS):
            time.sleep(0.005)
        redis_sentinel.fail_over(kill=kill)
        over.set()

    run_side_by_side(story, trouble)
    assert redis_sentinel.primary is not old
    for way in WAYS:
        assert redis_sentinel.primary.command("KEYS", f"over-{kill}-{way}:*")


@pytest.mark.parametrize("way", WAYS)
def test_a_primary_that_has_become_a_replica_sends_us_back_to_the_sentinels(
    way: str, redis_binary: Path, tmp_path: Path
) -> None:
    """On a live connection, READONLY proves that nothing ran: the call goes to the new primary, and nobody notices.

    On every server, for Redis 6 says it in the middle of the script.
    """

    def turn_round(replica_set: RedisReplicaSet) -> None:
        old, new, sentinel = replica_set.primary, replica_set.replica, replica_set.sentinels[0]
        written = int(old.info("replication")["master_repl_offset"])
        while int(new.info("replication")["slave_repl_offset"]) < written:  # what it has not got would be lost
            time.sleep(0.001)
        new.command("REPLICAOF", "NO", "ONE")
        sentinel.command("SENTINEL", "REMOVE", replica_set.service_name)
        sentinel.command("SENTINEL", "MONITOR", replica_set.service_name, "127.0.0.1", new.port, 1)
        old.command("REPLICAOF", "127.0.0.1", new.port)

    async def main() -> None:
        store = RedisStore(url_of(replica_set), budget=PATIENT)
        caller = Caller(way, RateLimiter((SLOW, STRICT), name="turned", store=store))
        for _ in range(3):
            await caller("try_acquire", "a")
        await in_thread(turn_round, replica_set)
        await caller.all([("try_acquire", "a")] * 3)
        assert caller.sources() == {"redis"}
        assert (await caller("peek", "a")).remaining == 1000 - 6
        await close_and_check(store, all_servers(replica_set))

    with RedisReplicaSet(redis_binary, tmp_path) as replica_set, no_outage("turned"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_a_replica_that_sentinels_take_for_the_primary_is_an_outage(way: str, redis_sentinel: RedisReplicaSet) -> None:
    """READONLY once more: asked twice, and no more."""
    replica, sentinel = redis_sentinel.replica, redis_sentinel.sentinels[0]
    name = redis_sentinel.service_name

    async def main() -> None:
        store = RedisStore(url_of(redis_sentinel), budget=PATIENT)
        caller = Caller(way, RateLimiter(SLOW, name="mistaken", store=store))
        with outages_of("mistaken") as events:
            decision = await caller("try_acquire", "a")
            assert (decision.source, decision.certain) == ("fallback", True)
        assert kinds(events) == ["FallbackEntered"]
        await close_and_check(store, all_servers(redis_sentinel))

    sentinel.command("SENTINEL", "REMOVE", name)
    sentinel.command("SENTINEL", "MONITOR", name, "127.0.0.1", replica.port, 1)
    try:
        run(way, main)
    finally:
        sentinel.command("SENTINEL", "REMOVE", name)
        primary = next(one for one in redis_sentinel.servers if one is not replica)
        sentinel.command("SENTINEL", "MONITOR", name, "127.0.0.1", primary.port, 1)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_stalled_primary_may_have_run_is_never_sent_again(way: str, redis_sentinel: RedisReplicaSet) -> None:
    async def main() -> None:
        store = RedisStore(url_of(redis_sentinel), budget=BUDGET)
        caller = Caller(way, RateLimiter(SLOW, name="stalled", store=store))
        await caller("try_acquire", "a")
        primary = redis_sentinel.primary
        before = scripts_run(primary)
        await in_thread(primary.freeze)
        decision = await caller("try_acquire", "a", 7)
        await in_thread(primary.thaw)
        assert (decision.source, decision.certain) == ("fallback", False)
        assert BUDGET / 2 <= caller.longest <= BUDGET + LATE
        await until(lambda: scripts_run(primary) > before, "the primary ran what it had received")
        assert scripts_run(primary) == before + 1
        await until(lambda: store.reachable, "the store was back")
        assert (await caller("peek", "a")).remaining == 1000 - 1 - 7
        await close_and_check(store, all_servers(redis_sentinel))

    run(way, main)


# --- finding the primary ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", ["nobody there", "no sentinel", "silent"])
def test_a_wrong_first_sentinel_among_good_ones_is_no_outage(
    way: str, wrong: str, redis_sentinel: RedisReplicaSet, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    port = redis_sentinel.replica.port if wrong == "no sentinel" else closed_port()
    if wrong == "silent":
        proxy = tcp_proxy(redis_sentinel.sentinels[0].port)
        proxy.black_hole()
        port = proxy.port

    async def main() -> None:
        store = RedisStore(url_of(redis_sentinel, port), budget=1.0)
        caller = Caller(way, RateLimiter(SLOW, name="wrong", store=store))
        for _ in range(2):
            await caller("try_acquire", "a")
        assert caller.sources() == {"redis"}
        assert caller.longest <= 0.5 + LATE
        await close_and_check(store, all_servers(redis_sentinel))

    with no_outage("wrong"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trouble", ["unknown service", "nobody there", "silent"])
def test_sentinels_that_do_not_help_are_an_outage_and_no_exception(
    way: str, trouble: str, redis_sentinel: RedisReplicaSet, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    url = url_of(redis_sentinel, service="nosuch")
    if trouble == "nobody there":
        url = f"redis+sentinel://127.0.0.1:{closed_port()},127.0.0.1:{closed_port()}/mymaster"
    elif trouble == "silent":
        proxy = tcp_proxy(redis_sentinel.sentinels[0].port)
        proxy.black_hole()
        url = f"redis+sentinel://127.0.0.1:{proxy.port}/mymaster"

    async def main() -> None:
        store = RedisStore(url, budget=BUDGET)
        caller = Caller(way, RateLimiter(SLOW, name="lost", store=store))
        with outages_of("lost") as events:
            decision = await caller("try_acquire", "a")
        assert (decision.allowed, decision.source, decision.certain) == (True, "fallback", True)
        assert caller.longest <= BUDGET + LATE
        assert isinstance(events[0], FallbackEntered)
        await close_and_check(store, all_servers(redis_sentinel))

    run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_nobody_needs_sentinels_while_the_primary_lives(way: str, redis_sentinel: RedisReplicaSet) -> None:
    async def main() -> None:
        store = RedisStore(url_of(redis_sentinel), budget=PATIENT)
        caller = Caller(way, RateLimiter(SLOW, name="alone", store=store))
        await caller("try_acquire", "a")
        for sentinel in redis_sentinel.sentinels:
            await in_thread(sentinel.kill)
        await caller("try_acquire", "a")
        assert caller.sources() == {"redis"}
        await close_and_check(store, redis_sentinel.servers)

    with no_outage("alone"):
        run(way, main)


# --- passwords ---


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, sentinel_of_the_module: RedisReplicaSet) -> Iterator[Any]:
    """Servers and sentinels that want passwords, each their own."""
    binary: Path = sentinel_of_the_module.servers[0].binary
    options = {"requirepass": "for-servers"}
    with RedisReplicaSet(binary, tmp_path_factory.mktemp("guarded"), options=options) as replica_set:
        for sentinel in replica_set.sentinels:
            sentinel.command("ACL", "SETUSER", "default", "resetpass", ">for-sentinels")
            sentinel.password = "for-sentinels"
        yield replica_set


@pytest.mark.parametrize("kind", ["url", "asyncio client", "blocking client"])
@pytest.mark.parametrize("way", WAYS)
def test_servers_and_sentinels_get_the_password_that_is_theirs(way: str, kind: str, guarded: RedisReplicaSet) -> None:
    places = ",".join(f"127.0.0.1:{port}" for _, port in guarded.sentinel_addresses)
    client: object = f"redis+sentinel://:for-servers@{places}/mymaster?sentinel_password=for-sentinels"
    if kind != "url":
        client = client_of(kind, guarded, sentinel_kwargs={"password": "for-sentinels"}, password="for-servers")

    async def main() -> None:
        store = RedisStore(client, budget=PATIENT)
        caller = Caller(way, RateLimiter(SLOW, name="guarded", store=store))
        await caller("try_acquire", "a")
        assert caller.sources() == {"redis"}
        assert "for-" not in repr(store)
        await close_and_check(store, all_servers(guarded))

    with no_outage("guarded"):
        run(way, main)


@pytest.mark.parametrize("wrong", ["server", "sentinel"])
@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_password_is_an_outage_and_no_exception(way: str, wrong: str, guarded: RedisReplicaSet) -> None:
    places = ",".join(f"127.0.0.1:{port}" for _, port in guarded.sentinel_addresses)
    server, sentinel = ("wrong", "for-sentinels") if wrong == "server" else ("for-servers", "wrong")

    async def main() -> None:
        store = RedisStore(f"redis+sentinel://:{server}@{places}/mymaster?sentinel_password={sentinel}", budget=PATIENT)
        caller = Caller(way, RateLimiter(SLOW, name="refused", store=store))
        decision = await caller("try_acquire", "a")
        assert (decision.source, decision.certain) == ("fallback", True)
        await close_and_check(store, all_servers(guarded))

    run(way, main)
