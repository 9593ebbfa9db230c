"""Which Redis is meant: everything that leads there is taken over, nothing that is patient, and nonsense is refused."""

from __future__ import annotations

import importlib.util
import inspect
import ssl
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.cluster
import redis.connection
import redis.sentinel

from resilience.errors import ConfigurationError
from resilience.rate_limiter import RateLimiter, RedisStore
from resilience.rate_limiter.target import (
    _KEPT,
    async_connection,
    check_for_asyncio,
    node_of,
    sentinel_of,
    sync_connection,
    target_of,
)

SECRET = "hunter2"
CONNECTIONS: dict[str, Callable[[Any], Any]] = {"asyncio": async_connection, "blocking": sync_connection}
PLACE: dict[str, Any] = {"host": "10.0.0.1", "port": 7000, "username": "ann", "password": SECRET}
SENTINEL: Any = redis.sentinel.Sentinel  # redis-py does not type them
NODE: Any = redis.cluster.ClusterNode
CLIENTS: dict[str, Callable[..., Any]] = {"asyncio": redis.asyncio.Redis, "blocking": redis.Redis}
ENCRYPTION: dict[str, Any] = {
    "ssl_keyfile": "/k.pem",
    "ssl_certfile": "/c.pem",
    "ssl_cert_reqs": "none",
    "ssl_ca_certs": "/ca.pem",
    "ssl_ca_data": "---",
    "ssl_check_hostname": False,
    "ssl_min_version": ssl.TLSVersion.TLSv1_3,
    "ssl_ciphers": "ECDHE",
}


@pytest.fixture
def offline_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a blocking RedisCluster be made where there is no cluster: it connects at once."""
    manager: Any = redis.cluster.NodesManager
    monkeypatch.setattr(manager, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(redis.cluster, "CommandsParser", lambda *_: None)


# --- what is taken over ---


@pytest.mark.parametrize("used", CONNECTIONS)
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_clients_place_and_login_reach_both_kinds_of_connections(kind: str, used: str) -> None:
    client = CLIENTS[kind](
        **PLACE, db=3, client_name="app", encoding="latin-1", socket_keepalive=True, socket_keepalive_options={1: 2}
    )
    connection = CONNECTIONS[used](target_of(client))
    assert (connection.host, connection.port, connection.db) == ("10.0.0.1", 7000, 3)
    assert (connection.username, connection.password, connection.client_name) == ("ann", SECRET, "app")
    assert connection.socket_keepalive is True
    assert connection.socket_keepalive_options == {1: 2}
    # What is ours is written one way, whoever asks: two clients of one limit must name its keys alike.
    assert connection.encoder.encoding == "utf-8"


@pytest.mark.parametrize("used", CONNECTIONS)
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_clients_provider_of_credentials_is_asked(kind: str, used: str) -> None:
    provider = redis.UsernamePasswordCredentialProvider("ann", SECRET)
    connection = CONNECTIONS[used](target_of(CLIENTS[kind](credential_provider=provider)))
    assert connection.credential_provider is provider


def test_every_kept_option_is_one_of_redis_py() -> None:
    kinds: list[Any] = [redis.connection.AbstractConnection, redis.connection.Connection]
    kinds.append(redis.connection.UnixDomainSocketConnection)
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    assert set(_KEPT) <= known


@pytest.mark.parametrize("used", CONNECTIONS)
@pytest.mark.parametrize("kind", CLIENTS)
def test_the_path_of_a_socket_is_kept(kind: str, used: str) -> None:
    url = f"unix:///run/r.sock?db=2&password={SECRET}"
    for given in (CLIENTS[kind](unix_socket_path="/run/r.sock", db=2, password=SECRET), url):
        connection = CONNECTIONS[used](target_of(given))
        assert (connection.path, connection.db, connection.password) == ("/run/r.sock", 2, SECRET)


@pytest.mark.parametrize("used", CONNECTIONS)
@pytest.mark.parametrize("kind", [*CLIENTS, "asyncio cluster", "blocking cluster"])
def test_all_options_of_encryption_are_kept(kind: str, used: str, offline_cluster: None) -> None:
    makers: dict[str, Callable[..., Any]] = {
        **CLIENTS,
        "asyncio cluster": redis.asyncio.RedisCluster,
        "blocking cluster": redis.RedisCluster,
    }
    client = makers[kind](host="10.0.0.1", port=7000, ssl=True, **ENCRYPTION)
    target = target_of(client)
    assert target.tls
    check_for_asyncio(target)
    connection = CONNECTIONS[used](node_of(target, ("10.0.0.1", 7000)))
    assert type(connection).__name__ == "SSLConnection"
    context = getattr(connection, "ssl_context", connection)
    found = {
        "ssl_keyfile": getattr(context, "keyfile", None),
        "ssl_certfile": getattr(context, "certfile", None),
        "ssl_cert_reqs": getattr(context, "cert_reqs", None),
        "ssl_ca_certs": getattr(context, "ca_certs", None),
        "ssl_ca_data": getattr(context, "ca_data", None),
        "ssl_check_hostname": getattr(context, "check_hostname", None),
        "ssl_min_version": getattr(context, "min_version", None),
        "ssl_ciphers": getattr(context, "ciphers", None),
    }
    bare = {name.removeprefix("ssl_"): value for name, value in ENCRYPTION.items()} | {"cert_reqs": ssl.CERT_NONE}
    if kind == "blocking cluster":  # redis-py itself drops some there
        found = {name: value for name, value in found.items() if name in client.nodes_manager.connection_kwargs}
        assert len(found) > 4
    for name, value in found.items():
        blocking = getattr(connection, name.removeprefix("ssl_"), None)
        wanted = {ENCRYPTION[name], bare[name.removeprefix("ssl_")]}
        assert wanted & {value, blocking, getattr(connection, name, None)}, name


def test_a_url_has_options_of_encryption_too() -> None:
    target = target_of(f"rediss://:{SECRET}@h/0?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem")
    assert target.tls
    assert {name: value for name, value in target.options.items() if name.startswith("ssl_")} == {
        "ssl_cert_reqs": "none",
        "ssl_ca_certs": "/ca.pem",
    }
    assert not target_of("redis://h").tls
    assert target_of("valkeys://h").tls
    assert target_of("rediss+cluster://h").tls
    behind = target_of("rediss+sentinel://h/m?ssl_ca_certs=/ca.pem")
    assert behind.tls
    assert behind.sentinel_tls
    assert behind.sentinel_options == {"ssl_ca_certs": "/ca.pem"}


def test_what_only_blocking_connections_encrypt_with_is_refused_on_asyncio() -> None:
    plain = redis.Redis(ssl=True)  # says no to some options that asyncio does not have, which is no reason
    check_for_asyncio(target_of(plain))
    target = target_of(redis.Redis(ssl=True, ssl_validate_ocsp_stapled=True))
    sync_connection(target)
    with pytest.raises(ConfigurationError, match="ssl_validate_ocsp_stapled"):
        check_for_asyncio(target)

    async def use() -> None:
        await RateLimiter("1/s", name="encrypted", store=store).try_acquire()

    store = RedisStore(redis.Redis(ssl=True, ssl_validate_ocsp_stapled=True, password=SECRET))
    with pytest.raises(ConfigurationError, match="must work on asyncio") as refusal:
        anyio.run(use)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("module", [redis.sentinel, redis.asyncio.sentinel])
def test_sentinels_and_servers_keep_their_own_login_and_encryption(module: Any) -> None:
    sentinel = module.Sentinel(
        [("s1", 1), ("s2", 2)],
        sentinel_kwargs={"password": "for sentinels", "username": "sen", "ssl": True, "ssl_ca_certs": "/s.pem"},
        password=SECRET,
        db=4,
    )
    target = target_of(sentinel.master_for("mymaster"))
    assert (target.kind, target.addresses, target.service) == ("sentinel", (("s1", 1), ("s2", 2)), "mymaster")
    assert (target.tls, target.sentinel_tls) == (False, True)
    asked = sync_connection(sentinel_of(target, ("s2", 2)))
    assert (asked.host, asked.port, asked.username, asked.password) == ("s2", 2, "sen", "for sentinels")
    assert type(asked).__name__ == "SSLConnection"
    used = sync_connection(node_of(target, ("p", 6)))
    assert (used.host, used.port, used.username, used.password, used.db) == ("p", 6, None, SECRET, 4)
    assert type(used).__name__ == "Connection"


def test_a_url_has_a_login_for_sentinels() -> None:
    target = target_of(f"redis+sentinel://ann:{SECRET}@s1,s2:7/m/3?sentinel_username=sen&sentinel_password=p%40ss")
    assert target.addresses == (("s1", 26379), ("s2", 7))
    assert (target.service, target.options) == ("m", {"username": "ann", "password": SECRET, "db": 3})
    assert target.sentinel_options == {"username": "sen", "password": "p@ss"}


def test_all_nodes_that_a_client_knows_are_asked(offline_cluster: None) -> None:
    """redis-py takes nodes that failed out of those it began with."""
    nodes = [NODE("n1", 1), NODE("n2", 2)]
    client = redis.RedisCluster(startup_nodes=nodes, password=SECRET, address_remap=lambda address: address)
    manager: Any = client.nodes_manager
    manager.nodes_cache = {"n3:3": NODE("n3", 3)}
    target = target_of(client)
    assert (target.kind, target.addresses) == ("cluster", (("n1", 1), ("n2", 2), ("n3", 3)))
    assert target.options["password"] == SECRET
    assert target.remap is not None


# --- what is not ---


@pytest.mark.parametrize("used", CONNECTIONS)
@pytest.mark.parametrize(
    "given",
    [
        lambda: redis.Redis(
            socket_timeout=99, socket_connect_timeout=98, retry_on_error=[redis.TimeoutError], health_check_interval=9
        ),
        lambda: redis.asyncio.Redis(socket_timeout=99, retry_on_error=[redis.ConnectionError], health_check_interval=9),
        lambda: redis.asyncio.RedisCluster(host="h", socket_timeout=99, health_check_interval=9),
        lambda: SENTINEL([("h", 1)], socket_timeout=99, retry_on_timeout=True).master_for("m"),
        lambda: "redis://h?socket_timeout=99&retry_on_timeout=yes&health_check_interval=9&socket_connect_timeout=98",
        lambda: "redis+sentinel://h/m?socket_timeout=99&retry_on_timeout=yes&health_check_interval=9",
        lambda: "redis+cluster://h?socket_timeout=99&retry_on_timeout=yes&health_check_interval=9",
    ],
)
def test_no_patience_is_taken_over_and_nothing_is_resent(given: Callable[[], object], used: str) -> None:
    """In every version of redis-py, whatever its defaults and whatever the client's are."""
    target = target_of(given())
    targets = [node_of(target, target.addresses[0])]
    if target.kind == "sentinel":
        targets.append(sentinel_of(target, target.addresses[0]))
    for one in targets:
        connection = CONNECTIONS[used](one)
        assert connection.retry._retries == 0
        assert connection.socket_timeout in (None, 2.0)
        assert connection.socket_connect_timeout == 2.0
        assert connection.health_check_interval == 0
        assert not connection.retry_on_error
        assert connection.encoder.decode_responses is False
        assert int(connection.protocol) == 2


def test_defaults_of_redis_py_that_are_no_values_are_left_to_it() -> None:
    """8.1 marks options that nobody gave with plain objects, which only the same kind of connection understands."""
    for client in (redis.Redis(), redis.asyncio.Redis(), redis.asyncio.RedisCluster(host="h")):
        target = target_of(client)
        assert all(type(value) is not object for value in target.options.values())


# --- nonsense ---


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("reddis://:{}@h:1/0", "begin with redis://"),
        ("http://u:{}@h", "begin with redis://"),
        ("redis+clusters://u:{}@h", "begin with redis://"),
        ("redis//u:{}@h", "begin with redis://"),
        ("u:{}@h:6379", "begin with redis://"),
        ("", "begin with redis://"),
        (" redis://:{}@h", "begin with redis://"),
        ("redis://:{}@h:port/0", "ports from 1 to 65535"),
        ("redis://:{}@h:99999/0", "ports from 1 to 65535"),
        ("redis://:{}@h:0/0", "ports from 1 to 65535"),
        ("redis+cluster://:{}@a:x,b", "ports from 1 to 65535"),
        ("redis://:{}@h:6379/zero", "number of a database"),
        ("redis://:{}@h:6379/-1", "number of a database"),
        ("redis://:{}@h:6379/0/1", "number of a database"),
        ("redis://:{}@h?db=-1", "number of a database"),
        ("redis://:{}@h?db=x", "can be read"),
        ("redis://:{}@:6379/0", "name a host"),
        ("redis://", "name a host"),
        ("redis+cluster://", "name a host"),
        ("redis+cluster://:{}@", "name a host"),
        ("redis+cluster://:{}@a,,b", "name a host"),
        ("redis+sentinel://:{}@/m", "name a host"),
        ("redis://:{}@a,b", "one host"),
        ("redis://:{}@[::1/0", "can be read"),
        ("redis+cluster://:{}@h:6379/3", "no database"),
        ("redis+cluster://:{}@h:6379?db=3", "no database"),
        ("redis+cluster://:{}@h:6379/x", "number of a database"),
        ("redis+sentinel://:{}@h:26379", "name the service"),
        ("redis+sentinel://:{}@h:26379/", "name the service"),
        ("redis+sentinel://:{}@h:26379/0", "name the service"),
        ("redis+sentinel://:{}@h:26379/m/x", "number of a database"),
        ("redis+sentinel://:{}@h:26379/m/0/1", "number of a database"),
        ("unix://:{}@", "path of the socket"),
        ("unix://host/run/redis.sock?password={}", "path of the socket"),
        ("redis://ann:12#{}@h", "special characters"),
        ("redis://ann:12?{}@h", "special characters"),
        ("redis://ann:12/{}@h", "special characters"),
        ("redis://:{0}@h?sll_ca_certs={0}", "no options"),
        ("redis://h?passwort={}", "no options"),
        ("rediss://:{}@h?ssl_cert_reqs=nonsense", "make a connection"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_and_not_shown(url: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^(url|options of url_or_client) must") as refusal:
        RedisStore(url.format(SECRET))
    assert rule in str(refusal.value)
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "given",
    [
        {"host": "h", "password": SECRET},
        None,
        5,
        b"redis://:hunter2@h",
        ["redis://h"],
        object(),
        redis.Redis,
        redis.ConnectionPool(password=SECRET),
        redis.asyncio.ConnectionPool(password=SECRET),
        SENTINEL([("h", 1)], password=SECRET),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_neither_a_url_nor_a_client_is_refused(given: object) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^url_or_client must be a URL such as .* or a client of redis-py, got"
    ) as refusal:
        RedisStore(given)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("name", ["redis.multidb.client", "redis.asyncio.multidb.client"])
def test_the_client_of_several_databases_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes from one database to another by itself, by a circuit breaker of its own; ours must not stand on it."""
    if importlib.util.find_spec("redis.multidb") is None:
        pytest.skip("this redis-py has none")
    for module in [one for one in sys.modules if ".multidb" in one]:
        monkeypatch.delitem(sys.modules, module)
    if importlib.util.find_spec("pybreaker") is None:
        stand_in: Any = ModuleType("pybreaker")  # which it needs, and we do not
        stand_in.__getattr__ = lambda _: object
        monkeypatch.setitem(sys.modules, "pybreaker", stand_in)
    kind: Any = importlib.import_module(name).MultiDBClient
    with pytest.raises(ConfigurationError, match="got 'MultiDBClient'"):
        RedisStore(kind.__new__(kind))
    for module in [one for one in sys.modules if ".multidb" in one]:
        del sys.modules[module]


def test_no_repr_shows_a_login() -> None:
    url = f"redis+sentinel://ann:{SECRET}@h/m?sentinel_password={SECRET}"
    store = RedisStore(url)
    limiter = RateLimiter("1/s", name="shy", store=store)
    for shown in (store, limiter, store.target):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
        assert "ann" not in repr(shown)
