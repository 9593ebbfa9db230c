"""The limiter on a Redis Cluster: what a cluster does to its clients is no outage, and an outage of a node is one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
from anyio import to_thread

from resilience.events import FallbackEntered
from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.rate_limiter.fallback import FallbackPolicy
from resilience.testing.servers import RedisCluster, RedisServer, TcpProxy
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
QUOTAS = {
    "one": (SLOW,),
    "several": (SLOW, Quota(2000, 2 * 86_400.0)),
    "strict": (STRICT,),
    "mixed": (SLOW, STRICT, Quota(1000, 86_400.0, algorithm="fixed_window")),
}


def url_of(cluster: RedisCluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster.ports)


def store_on(cluster: RedisCluster, **options: Any) -> RedisStore:
    return RedisStore(url_of(cluster), **{"budget": PATIENT, **options})


@contextmanager
def client_of(kind: str, cluster: RedisCluster) -> Iterator[object]:
    """Give what a store may be made of."""
    if kind == "url":
        yield url_of(cluster)
    elif kind == "asyncio client":
        yield redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.ports[0])
    else:
        with redis.RedisCluster(host="127.0.0.1", port=cluster.ports[0]) as client:
            yield client


def siblings(caller: Caller, store: RedisStore, key: str, count: int) -> list[str]:
    """Give keys that move together with `key`."""
    shard = shard_of(caller, store, key)
    names = (f"sibling {number}" for number in range(200 * count))
    return [name for name in names if shard_of(caller, store, name) == shard][:count]


def shard_of(caller: Caller, store: RedisStore, key: str) -> int:
    return store.shard_of(caller.limiter._own_key(key, 1))


def slot_of(cluster: RedisCluster, caller: Caller, store: RedisStore, key: str) -> int:
    return cluster.slot_of(f"{store.tag(caller.limiter._own_key(key, 1))}:")


def elsewhere(cluster: RedisCluster, slot: int) -> int:
    """Give the index of a node that does not have the slot."""
    return (cluster.nodes.index(cluster.owner(slot)) + 1) % len(cluster.nodes)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Do something to servers while the callers go on."""
    return await to_thread.run_sync(function, *args)


async def go_on(caller: Caller, keys: list[str], stop: anyio.Event, pause: float = 0.0) -> None:
    """Call from one task for each key until it is over."""

    async def one(key: str) -> None:
        while not stop.is_set():
            await caller("try_acquire", key)
            await anyio.sleep(pause)

    async with anyio.create_task_group() as group:
        for key in keys:
            group.start_soon(one, key)


@contextmanager
def no_outage(name: str) -> Iterator[None]:
    with outages_of(name) as events:
        yield
    assert not events, [event.as_dict() for event in events]


# --- ordinary days ---


@pytest.mark.parametrize("kind", ["url", "asyncio client", "blocking client"])
@pytest.mark.parametrize("way", WAYS)
def test_every_operation_works_by_url_and_by_client(way: str, kind: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = RedisStore(client, budget=PATIENT)
        await use_everything(Caller(way, RateLimiter((SLOW, STRICT), name="ops", store=store)))
        await close_and_check(store, [] if kind == "blocking client" else redis_cluster.nodes)

    with client_of(kind, redis_cluster) as client, no_outage("ops"):
        run(way, main)


@pytest.mark.parametrize("quotas", QUOTAS)
@pytest.mark.parametrize("way", WAYS)
def test_all_quotas_hold_at_once_and_count_exactly(way: str, quotas: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter(QUOTAS[quotas], name="exact", store=store))
        keys = [f"key {number}" for number in range(40)]
        await caller.all(("try_acquire", key, 30) for key in keys for _ in range(2))
        assert caller.granted() == 40 * 60
        for key in keys[:5]:
            assert (await caller("peek", key)).remaining == 1000 - 60
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("exact"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_keys_are_spread_over_64_hash_tags_and_all_nodes_and_expire(way: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter((SLOW, STRICT), name="spread", store=store))
        await caller.all(("try_acquire", f"key {number}") for number in range(640))
        assert caller.sources() == {"redis"}
        await store.aclose()

    run(way, main)
    held = {node: node.command("KEYS", "resilience:{*}:spread:*") for node in redis_cluster.nodes}
    assert all(len(names) > 2 * 640 / 6 for names in held.values())
    tags = {name.partition("{")[2].partition("}")[0] for names in held.values() for name in names}
    assert tags == {f"{tag:02x}" for tag in range(64)}
    for node in redis_cluster.nodes:
        assert all(node.command("PTTL", name) > 0 for name in node.command("KEYS", "*")[:50])


# --- slots on the move ---


@pytest.mark.parametrize("quotas", ["one", "several"])
@pytest.mark.parametrize("way", WAYS)
def test_a_slot_that_moves_for_as_long_as_it_likes_is_no_outage(
    way: str, quotas: str, redis_cluster: RedisCluster
) -> None:
    """Old keys and new ones, alone and together in a trip: ASK, TRYAGAIN, then MOVED; each call counts once."""

    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter(QUOTAS[quotas], name="moved", store=store))
        keys = siblings(caller, store, "a", 8)
        await caller.all(("try_acquire", key) for key in keys[:4])
        slot = slot_of(redis_cluster, caller, store, "a")
        move = await in_thread(redis_cluster.begin_move, slot, elsewhere(redis_cluster, slot))
        await in_thread(move.target.command, "SCRIPT", "FLUSH")
        for _ in range(3):
            await caller.all(("try_acquire", key) for key in keys)
        await in_thread(move.move_keys, 2)
        for _ in range(3):
            await caller.all(("try_acquire", key) for key in keys)
        await in_thread(move.finish)
        for _ in range(3):
            await caller.all(("try_acquire", key) for key in keys)
        assert caller.sources() == {"redis"}
        assert caller.granted() == len(caller.decisions) == 4 + 9 * 8
        for number, key in enumerate(keys):
            assert (await caller("peek", key)).remaining == 1000 - 9 - (number < 4)
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("moved"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_keys_of_two_parts_wait_for_a_move_to_go_on(way: str, redis_cluster: RedisCluster) -> None:
    """A log and its numbers are two keys: a slot that holds one of them takes no call until the other is there."""

    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter(QUOTAS["mixed"], name="parts", store=store))
        keys = siblings(caller, store, "a", 4)
        await caller.all(("try_acquire", key) for key in keys[:2])
        slot = slot_of(redis_cluster, caller, store, "a")
        move = await in_thread(redis_cluster.begin_move, slot, elsewhere(redis_cluster, slot))
        await in_thread(move.move_keys, 1)  # of two
        async with anyio.create_task_group() as group:
            for key in keys:
                group.start_soon(caller, "try_acquire", key)
            await anyio.sleep(0.1)
            await in_thread(move.finish)
        assert caller.longest >= 0.05
        assert caller.sources() == {"redis"}
        for number, key in enumerate(keys):
            assert (await caller("peek", key)).remaining == 1000 - 1 - (number < 2)
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("parts"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_slots_that_move_to_and_fro_under_load_cost_no_call_and_no_unit(way: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter((Quota(100_000, 86_400.0), STRICT), name="load", store=store))
        keys = [*siblings(caller, store, "a", 6), *(f"other {number}" for number in range(6))]
        slot = slot_of(redis_cluster, caller, store, "a")
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(go_on, caller, keys, stop, 0.002)
            for _ in range(6):
                await in_thread(redis_cluster.move_slot, slot, elsewhere(redis_cluster, slot))
                await anyio.sleep(0.02)
            stop.set()
        assert caller.sources() == {"redis"}
        left = [(await caller("peek", key)).remaining for key in keys]
        assert sum(1000 - one for one in left) == caller.granted() == len(caller.decisions) > 100
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("load"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_a_move_that_does_not_go_on_is_an_outage_within_the_budget(way: str, redis_cluster: RedisCluster) -> None:
    """What was refused until the time was over was never charged: the fallback owes it, and charges it later."""

    async def main() -> None:
        store = store_on(redis_cluster, budget=BUDGET)
        caller = Caller(way, RateLimiter(STRICT, name="stuck", store=store))
        await caller("try_acquire", "a")
        slot = slot_of(redis_cluster, caller, store, "a")
        move = await in_thread(redis_cluster.begin_move, slot, elsewhere(redis_cluster, slot))
        with outages_of("stuck") as events:
            decision = await caller("try_acquire", "a")
            assert (decision.allowed, decision.source, decision.certain) == (True, "fallback", True)
            assert caller.longest <= BUDGET + LATE
            await in_thread(move.finish)
            await until(lambda: store.reachable, "the store was back")
            assert (await caller("peek", "a")).remaining == 998
        assert kinds(events) == ["FallbackEntered", "FallbackLeft"]
        await close_and_check(store, redis_cluster.nodes)

    run(way, main)


# --- nodes in trouble ---


def test_a_node_that_is_killed_is_one_outage_which_ends_with_it(redis_cluster: RedisCluster) -> None:
    """As long as one node is down the fallback decides; the probe asks all shards, so nothing flaps."""
    killed, back = threading.Event(), threading.Event()

    async def story(way: str) -> None:
        store = store_on(redis_cluster, budget=1.0, prefix=f"killed-{way}")
        # One admits nothing meanwhile: it has no debts by which to find out that a node is missing.
        policy: FallbackPolicy = "closed" if way == "asyncio" else "share"
        caller = Caller(way, RateLimiter(SLOW, name=f"killed {way}", store=store, fallback=policy))
        keys = [f"key {number}" for number in range(12)]
        await caller.all(("try_acquire", key, 10) for key in keys)
        assert caller.sources() == {"redis"}
        ready.append(way)
        with outages_of(f"killed {way}") as events:
            await until(killed.is_set, "the node was killed")
            await caller.all(("try_acquire", key, 10) for key in keys)
            await until(lambda: not store.reachable, "somebody noticed")
            stop = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(go_on, caller, keys, stop, 0.05)
                await until(back.is_set, "the node was back")
                assert not store.reachable
                await until(lambda: store.reachable, "the store was back")
                stop.set()
            assert caller.longest <= 1.0 + LATE
            assert kinds(events) == ["FallbackEntered", "FallbackLeft"]
            assert isinstance(events[0], FallbackEntered)
            assert events[0].cause.endswith("ConnectionError")
        assert {decision.source for decision in caller.decisions} <= {"redis", "fallback", "blocked"}
        assert (await caller("try_acquire", "key 0")).source in ("redis", "blocked")
        await close_and_check(store, [])

    ready: list[str] = []

    def trouble() -> None:
        while len(ready) < len(WAYS):
            time.sleep(0.005)
        first = redis_cluster.owner(redis_cluster.slot_of("{00}"))
        node = next(one for one in redis_cluster.nodes if one is not first)  # so the first shard is well
        node.kill()
        killed.set()
        time.sleep(1.2)  # long enough for a probe, which finds the other nodes well
        node.start()
        back.set()

    run_side_by_side(story, trouble)


@pytest.mark.parametrize("way", WAYS)
def test_a_node_that_forgot_the_script_is_told_again(way: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = store_on(redis_cluster)
        caller = Caller(way, RateLimiter((SLOW, STRICT), name="flushed", store=store))
        keys = [f"key {number}" for number in range(30)]
        for _ in range(3):
            await caller.all(("try_acquire", key) for key in keys)
            await in_thread(redis_cluster.nodes[0].command, "SCRIPT", "FLUSH")
        assert caller.sources() == {"redis"}
        assert [(await caller("peek", key)).remaining for key in keys] == [997] * 30
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("flushed"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_stalled_node_may_have_run_is_never_sent_again(way: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        store = store_on(redis_cluster, budget=BUDGET)
        caller = Caller(way, RateLimiter(SLOW, name="stalled", store=store))
        await caller("try_acquire", "a")
        node = redis_cluster.owner(slot_of(redis_cluster, caller, store, "a"))
        before = scripts_run(node)
        await in_thread(node.freeze)
        decision = await caller("try_acquire", "a", 7)
        assert (decision.source, decision.certain) == ("fallback", False)
        assert BUDGET / 2 <= caller.longest <= BUDGET + LATE
        await in_thread(node.thaw)
        await until(lambda: scripts_run(node) > before, "the node ran what it had received")
        assert scripts_run(node) == before + 1
        await until(lambda: store.reachable, "the store was back")
        assert (await caller("peek", "a")).remaining == 1000 - 1 - 7
        await close_and_check(store, redis_cluster.nodes)

    run(way, main)


# --- finding the nodes ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", ["nobody there", "no cluster", "silent"])
def test_a_wrong_first_node_among_good_ones_is_no_outage(
    way: str, wrong: str, redis_cluster: RedisCluster, any_redis: RedisServer, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    if wrong == "nobody there":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
    elif wrong == "no cluster":
        port = any_redis.port
    else:
        proxy = tcp_proxy(redis_cluster.ports[0])
        proxy.black_hole()
        port = proxy.port

    async def main() -> None:
        store = RedisStore(f"redis+cluster://127.0.0.1:{port},127.0.0.1:{redis_cluster.ports[1]}", budget=1.0)
        caller = Caller(way, RateLimiter(SLOW, name="wrong", store=store))
        await caller.all(("try_acquire", f"key {number}") for number in range(20))
        assert caller.sources() == {"redis"}
        assert caller.longest <= 0.5 + LATE
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("wrong"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_that_cannot_be_found_is_an_outage_and_no_exception(way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def main() -> None:
        store = RedisStore(f"redis+cluster://127.0.0.1:{port}", budget=BUDGET)
        caller = Caller(way, RateLimiter(SLOW, name="nowhere", store=store))
        decision = await caller("try_acquire", "a")
        assert (decision.allowed, decision.source, decision.certain) == (True, "fallback", True)
        assert caller.longest <= BUDGET + LATE
        await close_and_check(store, [])

    run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_nodes_are_where_the_client_says_if_the_cluster_says_otherwise(
    way: str, redis_cluster: RedisCluster, tcp_proxy: Callable[..., TcpProxy]
) -> None:
    proxies = {port: tcp_proxy(port) for port in redis_cluster.ports}

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        return address[0], proxies[address[1]].port

    async def main() -> None:
        client = redis.asyncio.RedisCluster(host="127.0.0.1", port=redis_cluster.ports[0], address_remap=remap)
        store = RedisStore(client, budget=PATIENT)
        caller = Caller(way, RateLimiter(SLOW, name="mapped", store=store))
        await caller.all(("try_acquire", f"key {number}") for number in range(30))
        assert caller.sources() == {"redis"}
        assert all(proxy.accepted for proxy in proxies.values())
        await close_and_check(store, redis_cluster.nodes)

    with no_outage("mapped"):
        run(way, main)


@pytest.mark.parametrize("way", WAYS)
def test_passwords_reach_all_nodes_and_a_wrong_one_is_an_outage(way: str, redis_cluster: RedisCluster) -> None:
    async def main() -> None:
        for word, source in (("wrong", "fallback"), ("right", "redis")):
            url = url_of(redis_cluster).replace("://", f"://:{word}@")
            store = RedisStore(url, budget=PATIENT)
            caller = Caller(way, RateLimiter(SLOW, name="secret", store=store))
            await caller.all(("try_acquire", f"key {number}") for number in range(20))
            assert caller.sources() == {source}
            assert word not in repr(caller.limiter)
            await close_and_check(store, redis_cluster.nodes)

    for node in redis_cluster.nodes:
        node.command("CONFIG", "SET", "requirepass", "right")
        node.password = "right"
    try:
        run(way, main)
    finally:
        for node in redis_cluster.nodes:
            node.command("CONFIG", "SET", "requirepass", "")
            node.password = None
