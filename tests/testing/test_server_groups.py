"""Real replica sets and clusters: roles change, slots move, and what a test breaks is brought back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel

from resilience import ConfigurationError
from resilience.testing.servers import (
    CommandError,
    RedisCluster,
    RedisReplicaSet,
    RedisServer,
    ServerError,
)
from resilience.testing.servers.process import wait_until

# Replica sets


@pytest.fixture
def everywhere(redis_binaries: dict[str, Path], tmp_path: Path) -> Callable[[Callable[[Path, Path], None]], None]:
    """Runs a check with each binary and a directory, side by side: they spend their time waiting."""

    def run(check: Callable[[Path, Path], None]) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(check, binary, tmp_path / name) for name, binary in redis_binaries.items()]:
                done.result()

    return run


def has(server: RedisServer, key: str) -> bool:
    return bool(server.command("EXISTS", key))


def test_two_of_three_sentinels_of_every_server_replace_a_killed_primary(everywhere: Callable[[Any], None]) -> None:
    def check(binary: Path, directory: Path) -> None:
        options = {"requirepass": "secret"}
        with RedisReplicaSet(binary, directory, sentinels=3, service_name="carts", options=options) as replica_set:
            old, new = replica_set.primary, replica_set.replica
            assert (old, new) == tuple(replica_set.servers)
            for sentinel in replica_set.sentinels:
                assert sentinel.command("SENTINEL", "CKQUORUM", "carts").startswith("OK 3 usable")
            replica_set.sentinels[2].kill()
            old.command("SET", "key", "value")
            wait_until("the replica had it", has, new, "key")
            assert replica_set.fail_over() is new
            assert not old.is_running
            assert replica_set.primary is new
            assert has(new, "key")

    everywhere(check)


def test_the_old_primary_comes_back_as_a_replica(redis_sentinel: RedisReplicaSet) -> None:
    old = redis_sentinel.primary
    new = redis_sentinel.fail_over()
    new.command("SET", "key", "value")
    redis_sentinel.restore()
    assert (redis_sentinel.primary, redis_sentinel.replica) == (new, old)
    assert old.command("GET", "key") == "value"
    old.restart()
    assert old.command("ROLE")[0] == "slave"


def test_a_fail_over_by_order_leaves_the_old_primary_alive(redis_sentinel: RedisReplicaSet) -> None:
    old, new = redis_sentinel.primary, redis_sentinel.replica
    assert redis_sentinel.fail_over(kill=False) is new
    assert repr(redis_sentinel).startswith("<RedisReplicaSet 'mymaster' of [<RedisServer on port ")
    assert old.is_running
    redis_sentinel.restore()
    assert old.command("ROLE")[0] == "slave"


def test_what_a_test_has_frozen_is_thawed(redis_sentinel: RedisReplicaSet) -> None:
    redis_sentinel.replica.freeze()
    redis_sentinel.sentinels[0].freeze()
    redis_sentinel.restore()
    redis_sentinel.primary.command("SET", "key", "value")
    wait_until("the replica had it", has, redis_sentinel.replica, "key")


def test_clients_find_the_primary_by_its_sentinels(redis_sentinel: RedisReplicaSet) -> None:
    (address,) = redis_sentinel.sentinel_addresses
    assert address == ("127.0.0.1", redis_sentinel.sentinels[0].port)
    sentinel: Any = redis.sentinel.Sentinel([address])  # type: ignore[no-untyped-call]  # redis-py gives it no types
    name = redis_sentinel.service_name
    assert sentinel.discover_master(name) == ("127.0.0.1", redis_sentinel.primary.port)
    assert sentinel.discover_slaves(name) == [("127.0.0.1", redis_sentinel.replica.port)]
    for one in sentinel.sentinels:
        one.close()


def test_a_group_is_for_one_use_and_ends_with_its_test(any_redis: RedisServer, tmp_path: Path) -> None:
    replica_set = RedisReplicaSet(any_redis.binary, tmp_path)
    with replica_set:
        members = [*replica_set.servers, *replica_set.sentinels]
        assert all(member.is_running for member in members)
    assert not any(member.is_running for member in members)
    with pytest.raises(ServerError, match="has been used before"):
        replica_set.__enter__()


def test_a_group_that_does_not_start_leaves_nothing_running(
    any_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ServerError("the sentinels are ill")

    monkeypatch.setattr(RedisReplicaSet, "_wait_for_sentinels", fail)
    replica_set = RedisReplicaSet(any_redis.binary, tmp_path)
    with pytest.raises(ServerError, match="are ill"):
        replica_set.__enter__()
    assert not any(member.is_running for member in [*replica_set.servers, *replica_set.sentinels])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentinels": 0}, "sentinels must be at least 1, got 0"),
        ({"service_name": ""}, "name must be a non-empty string, got ''"),
        ({"service_name": "two words"}, "service_name must be one word, got 'two words'"),
        ({"options": {"port": 1}}, "options must leave .*"),
    ],
)
def test_bad_values_of_a_replica_set_are_refused(
    any_redis: RedisServer, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        RedisReplicaSet(any_redis.binary, tmp_path, **options)


# Clusters


def keys_of(cluster: RedisCluster, tag: str, count: int) -> list[str]:
    """Keys of one slot, with values."""
    keys = [f"{{{tag}}}{number}" for number in range(count)]
    owner = cluster.owner(cluster.slot_of(tag))
    for key in keys:
        owner.command("SET", key, key)
    return keys


def test_a_cluster_of_every_server_moves_slots(everywhere: Callable[[Any], None]) -> None:
    def check(binary: Path, directory: Path) -> None:
        options: dict[str, str | int] = {"requirepass": "secret", "cluster-node-timeout": 3000}
        with RedisCluster(binary, directory, options=options) as cluster:
            for node in cluster.nodes:
                assert "cluster_state:ok" in node.command("CLUSTER", "INFO")
                assert node.command("CONFIG", "GET", "cluster-node-timeout")[1] == "3000"
            slot = cluster.slot_of("tag")
            keys = keys_of(cluster, "tag", 250)
            here = cluster.nodes.index(cluster.owner(slot))
            there = (here + 1) % 3
            cluster.move_slot(slot, there)
            cluster.move_slot(slot, there)  # nothing left to do
            assert cluster.owner(slot) is cluster.nodes[there]
            for node in cluster.nodes:
                assert node.command("DBSIZE") == (250 if node is cluster.nodes[there] else 0)
            with pytest.raises(CommandError, match=rf"^MOVED {slot} 127\.0\.0\.1:{cluster.ports[there]}"):
                cluster.nodes[here].command("GET", keys[0])

    everywhere(check)


def test_every_node_leads_clients_to_all(redis_cluster: RedisCluster) -> None:
    assert redis_cluster.urls == [f"redis://127.0.0.1:{port}/0" for port in redis_cluster.ports]
    assert repr(redis_cluster).startswith("<RedisCluster of [<_Node on port ")
    for url in redis_cluster.urls:
        with redis.RedisCluster.from_url(url) as client:
            for number in range(20):
                assert client.set(f"key {number}", number)
    assert sum(node.command("DBSIZE") for node in redis_cluster.nodes) == 20


def test_a_slot_can_be_held_on_its_way(redis_cluster: RedisCluster) -> None:
    keys = keys_of(redis_cluster, "moving", 10)
    slot = redis_cluster.slot_of("moving")
    here = redis_cluster.nodes.index(redis_cluster.owner(slot))
    there = (here + 1) % 3
    with redis_cluster.begin_move(slot, there) as move:
        assert move.move_keys(at_most=4) == 4
        assert (move.source.command("DBSIZE"), move.target.command("DBSIZE")) == (6, 4)
        asked = 0
        for key in keys:
            try:
                assert move.source.command("GET", key) == key
            except CommandError as error:
                assert error.code == "ASK"
                asked += 1
        assert asked == 4
        assert redis_cluster.owner(slot) is move.source
        with pytest.raises(ConfigurationError, match=f"^slot must not be on its way already, got {slot}$"):
            redis_cluster.begin_move(slot, there)
        assert "on the way" in repr(move)
        assert move.move_keys() == 6
        assert move.move_keys() == 0
        move.finish()
        move.finish()
        assert move.is_finished
        assert "finished" in repr(move)
    assert redis_cluster.owner(slot) is move.target is redis_cluster.nodes[there]
    assert move.target.command("DBSIZE") == 10


def test_a_client_does_not_notice_a_move(redis_cluster: RedisCluster) -> None:
    slot = redis_cluster.slot_of("busy")
    keys = keys_of(redis_cluster, "busy", 100)
    here = redis_cluster.nodes.index(redis_cluster.owner(slot))
    done = threading.Event()
    added = 0

    def work() -> None:
        nonlocal added
        with redis.RedisCluster.from_url(redis_cluster.urls[0]) as client:
            while not done.is_set():
                for key in keys:
                    client.append(key, "+")
                    added += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with redis_cluster.begin_move(slot, (here + 1) % 3) as move:
            while move.move_keys(at_most=10):
                seen = added
                wait_until("the worker went on", lambda before=seen: added > before + 5)
    finally:
        done.set()
        worker.join()
    owner = redis_cluster.owner(slot)
    assert owner is redis_cluster.nodes[(here + 1) % 3]
    assert sum(owner.command("GET", key).count("+") for key in keys) == added


def test_broken_nodes_come_back_with_their_slots(redis_cluster: RedisCluster) -> None:
    first, second, third = redis_cluster.nodes
    for node in redis_cluster.nodes:
        node.command("SET", key_of(redis_cluster, node), "value")
    first.kill()
    assert [redis_cluster.owner(slot) for slot in (0, 8000, 16383)] == [first, second, third]
    second.restart(keep_data=False)
    third.freeze()
    redis_cluster.restore()
    assert [redis_cluster.owner(slot) for slot in (0, 8000, 16383)] == [first, second, third]
    assert [node.command("DBSIZE") for node in redis_cluster.nodes] == [0, 0, 1]


def key_of(cluster: RedisCluster, node: RedisServer) -> str:
    return next(key for key in map(str, range(1000)) if cluster.owner(cluster.slot_of(key)) is node)


def test_what_cannot_move_is_refused(redis_cluster: RedisCluster) -> None:
    with pytest.raises(ConfigurationError, match=r"^slot must be at most 16,383, got 16384$"):
        redis_cluster.move_slot(16_384, 0)
    with pytest.raises(ConfigurationError, match=r"^to must be at most 2, got 3$"):
        redis_cluster.move_slot(0, 3)
    with pytest.raises(ConfigurationError, match=r"^to must be another node than the owner of slot 0, got 0$"):
        redis_cluster.begin_move(0, 0)


def test_a_slot_without_owner_is_told(redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisServer, "command", lambda *_: [])
    with pytest.raises(ServerError, match="knows no owner of slot 7"):
        redis_cluster.owner(7)


def test_fewer_than_three_primaries_are_no_cluster(any_redis: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^primaries must be at least 3, got 2$"):
        RedisCluster(any_redis.binary, tmp_path, primaries=2)
