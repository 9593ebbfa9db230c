"""Which Redis is meant, and how to connect to it: from a URL, or from a client that somebody configured already.

Every option of redis-py that matters is set here: their defaults moved from release to release (no timeout, then five
seconds; no retries, then three, then ten with pauses), and a limiter that retries by itself charges twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience.checks import shown
from resilience.errors import ConfigurationError

# redis-py types its connections in part only.
_async_connections: Any = redis.asyncio.connection
_connections: Any = redis.connection

Address: TypeAlias = tuple[str, int]
Kind: TypeAlias = Literal["single", "sentinel", "cluster"]

_PLAIN: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+sentinel": "redis",
    "rediss+sentinel": "rediss",
    "redis+cluster": "redis",
    "rediss+cluster": "rediss",
}
_KEPT: Final = (
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name"),
    *("socket_keepalive", "socket_keepalive_options"),
)
"""What is taken over from a client besides its `ssl_` options: where it connects to and as whom, and not how patient it
is."""

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for a connection in the background. A caller never waits so long: its own budget ends its wait."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the store is.

    Attributes:
        kind: one server, the primary that sentinels name, or a cluster.
        addresses: host and port of the server, the sentinels or the first nodes; empty for a Unix socket.
        options: how to connect, as keyword arguments of redis-py's _connections.
        service: what sentinels call the primary.
        sentinel_options: how to connect to the sentinels.
        tls: whether connections are encrypted.
        sentinel_tls: whether those to the sentinels are.
        remap: where a node of a cluster is, if not where the cluster says.
    """

    kind: Kind
    addresses: tuple[Address, ...]
    options: dict[str, Any] = field(repr=False)
    service: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False
    sentinel_tls: bool = False
    remap: Callable[[Address], Address] | None = None

    def __str__(self) -> str:
        """Tell the place, without user, password or anything else that is nobody's business."""
        places = ",".join(f"{host}:{port}" for host, port in self.addresses) or str(self.options.get("path"))
        kind = "" if self.kind == "single" else f" ({self.kind}{f' {self.service!r}' if self.service else ''})"
        return f"{places}/{self.options.get('db') or 0}{kind}"


def target_of(url_or_client: object) -> Target:
    """Find out which Redis is meant.

    Raises:
        ConfigurationError: neither a URL that we know nor a client of redis-py. No part of the URL but its scheme is
            shown: it may hold a password.
    """
    target = _found(url_or_client)
    try:
        sync_connection(node_of(target, target.addresses[0]) if target.addresses else target)
    except Exception as error:  # noqa: BLE001 - redis-py checks some options when it makes a connection
        raise ConfigurationError(
            f"options of url_or_client must make a connection of redis-py, got {type(error).__name__}"
        ) from None
    return target


def _found(url_or_client: object) -> Target:
    if isinstance(url_or_client, str):
        return _target_of_url(url_or_client)
    if isinstance(url_or_client, redis.RedisCluster | redis.asyncio.RedisCluster):
        return _target_of_cluster(url_or_client)
    pool = getattr(url_or_client, "connection_pool", None)
    if pool is None or not isinstance(url_or_client, redis.Redis | redis.asyncio.Redis):
        raise ConfigurationError(
            f"url_or_client must be a URL such as 'redis://localhost:6379/0' or a client of redis-py, "
            f"got {shown(type(url_or_client).__name__)}"
        )
    kind = pool.connection_class
    if getattr(kind, "__module__", "").partition(".")[0] != "redis":
        raise ConfigurationError(
            f"url_or_client must connect with redis-py's own connections, whose settings can be copied, "
            f"got a client with {shown(getattr(kind, '__name__', kind))}"
        )
    options = _kept(pool.connection_kwargs)
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        first = [client.connection_pool.connection_kwargs for client in manager.sentinels]
        return Target(
            kind="sentinel",
            addresses=tuple((one["host"], int(one["port"])) for one in first),
            options=options,
            service=pool.service_name,
            sentinel_options={name: value for name, value in _kept(first[0]).items() if name not in ("host", "port")},
            tls=_is_tls(pool.connection_class),
            sentinel_tls=_is_tls(manager.sentinels[0].connection_pool.connection_class),
        )
    return _single(options, tls=_is_tls(pool.connection_class))


def _single(options: dict[str, Any], *, tls: bool) -> Target:
    if options.get("path"):
        return Target(kind="single", addresses=(), options=options)
    address = options.pop("host", None) or "localhost", int(options.pop("port", None) or 6379)
    return Target(kind="single", addresses=(address,), options=options, tls=tls)


def _target_of_cluster(client: Any) -> Target:
    manager = client.nodes_manager
    nodes = {**manager.startup_nodes, **manager.nodes_cache}.values()  # the first ones leave out who failed
    given = {**manager.connection_kwargs, **(getattr(client, "connection_kwargs", None) or {})}
    options = {name: value for name, value in _kept(given).items() if name not in ("host", "port", "db")}
    return Target(
        kind="cluster",
        addresses=tuple((node.host, int(node.port)) for node in nodes),
        options=options,
        tls=bool(given.get("ssl")) or _is_tls(given.get("connection_class")),
        remap=manager.address_remap,
    )


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in options.items()
        if value is not None and (name in _KEPT or name.startswith("ssl_")) and type(value) is not object
    }  # redis-py 8 has plain objects for defaults


def _is_tls(kind: object) -> bool:
    known = (_connections.SSLConnection, _async_connections.SSLConnection)
    return isinstance(kind, type) and issubclass(kind, known)


def _target_of_url(url: str) -> Target:
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PLAIN:
        said = shown(scheme[:20]) if separator else "one without '://'"
        raise ConfigurationError(f"url must begin with {', '.join(f'{one}://' for one in _PLAIN)}; got {said}")
    try:
        return _target_of_parts(scheme, urlsplit(url))
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - urllib and redis-py raise many kinds, whose text may show the password
        raise ConfigurationError(
            f"url must be a {scheme}:// URL that can be read, got {type(error).__name__}"
        ) from None


def _target_of_parts(scheme: str, parts: SplitResult) -> Target:
    kind: Kind = "cluster" if "cluster" in scheme else "sentinel" if "sentinel" in scheme else "single"
    if parts.fragment or "@" in parts.path + parts.query:  # a password with one of / ? # ends the part of the hosts
        raise ConfigurationError("url must have special characters written as %23 and the like")
    credentials, _, hosts = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    given = _connections.ConnectionPool.from_url(f"{_PLAIN[scheme]}://{credentials}@host{query}").connection_kwargs
    if given.keys() - _known_options():
        raise ConfigurationError("url must have no options after its '?' but those that redis-py knows")
    options = {name: value for name, value in _kept(given).items() if name not in ("host", "port")}
    if _PLAIN[scheme] == "unix":
        if hosts or not parts.path:
            raise ConfigurationError("url must name the path of the socket, as in unix:///run/redis.sock")
        return Target(kind="single", addresses=(), options=options | {"path": unquote(parts.path)})
    addresses = tuple(_address(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(","))
    if kind == "single" and len(addresses) > 1:
        raise ConfigurationError("url must name one host; several are redis+cluster:// or redis+sentinel://")
    service, options["db"] = _path_of(parts, kind, scheme, options.get("db", 0))
    tls = _PLAIN[scheme] == "rediss"
    if kind != "sentinel":
        return Target(kind=kind, addresses=addresses, options=options, tls=tls)
    login = {name: given.get(f"sentinel_{name}") for name in ("username", "password")}
    encryption = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return Target(
        kind="sentinel",
        addresses=addresses,
        options=options,
        service=service,
        sentinel_options=_kept(login) | encryption,
        tls=tls,
        sentinel_tls=tls,
    )


def _path_of(parts: SplitResult, kind: Kind, scheme: str, database: int) -> tuple[str, int]:
    """Give the service and the database that a URL names after its hosts."""
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not path or path[0].isdecimal():
            raise ConfigurationError(f"url must name the service, as in {scheme}://host:26379/mymaster/0")
        service = path.pop(0)
    if len(path) > 1 or not all(part.isdecimal() and part.isascii() for part in path) or database < 0:
        raise ConfigurationError("url must end in the number of a database, from 0 on, or in none")
    database = int(path[0]) if path else database
    if kind == "cluster" and database:
        raise ConfigurationError("url must name no database: a cluster has only number 0")
    return service, database


def _known_options() -> set[str]:
    """Give the options that redis-py takes in a URL, and ours."""
    kinds = (
        *(_connections.ConnectionPool, _connections.AbstractConnection, _connections.Connection),
        *(_connections.SSLConnection, _async_connections.SSLConnection, _connections.UnixDomainSocketConnection),
    )
    known = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    return known | {"timeout", "sentinel_username", "sentinel_password"}


def _address(text: str, default_port: int) -> Address:
    one = urlsplit(f"//{text}")
    if not one.hostname:
        raise ConfigurationError("url must name a host, and one before each comma")
    try:
        port = default_port if one.port is None else one.port
    except ValueError:
        port = 0
    if not port:
        raise ConfigurationError("url must have ports from 1 to 65535")
    return one.hostname, port


def node_of(target: Target, address: Address) -> Target:
    """Give one node of a cluster, or the primary that a sentinel named, as a server of its own."""
    return replace(target, kind="single", addresses=(address,), service="")


def sentinel_of(target: Target, address: Address) -> Target:
    """Give one of the sentinels as a server of its own."""
    options = target.sentinel_options
    return Target(kind="single", addresses=(address,), options=options, tls=target.sentinel_tls)


def async_connection(target: Target) -> Any:
    """Make an unconnected asyncio connection to one server. Timeouts are the caller's."""
    options = _patience(AsyncRetry(NoBackoff(), 0)) | {"socket_timeout": None}
    if not target.addresses:
        return _async_connections.UnixDomainSocketConnection(**target.options, **options)
    kind = _async_connections.SSLConnection if target.tls else _async_connections.Connection
    host, port = target.addresses[0]
    return kind(host=host, port=port, **_known_to(kind, target.options), **options)


def sync_connection(target: Target) -> Any:
    """Make an unconnected blocking connection to one server."""
    options = _patience(Retry(NoBackoff(), 0)) | {"socket_timeout": CONNECT_TIMEOUT}
    if not target.addresses:
        return _connections.UnixDomainSocketConnection(**target.options, **options)
    kind = _connections.SSLConnection if target.tls else _connections.Connection
    host, port = target.addresses[0]
    return kind(host=host, port=port, **_known_to(kind, target.options), **options)


def _patience(retry: object) -> dict[str, Any]:
    """Give what we decide about every connection: one try, no pause, no checks of its own, answers as bytes."""
    return {
        "retry": retry,
        "retry_on_error": [],
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
        "socket_connect_timeout": CONNECT_TIMEOUT,
    }


def check_for_asyncio(target: Target) -> None:
    """Refuse options of encryption that redis-py knows in its blocking connections only.

    Raises:
        ConfigurationError: names them.
    """
    if target.tls:
        known = _known_to(_async_connections.SSLConnection, target.options)
        unknown = [name for name, value in target.options.items() if value and name not in known]
        if unknown:
            raise ConfigurationError(f"options of url_or_client must work on asyncio, got {', '.join(unknown)}")


def _known_to(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Give the options without those of encryption that `kind` does not have: sync and asyncio ones differ."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in options.items() if not name.startswith("ssl_") or name in known}
