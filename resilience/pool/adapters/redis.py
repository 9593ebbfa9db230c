"""redis://, rediss://, valkey://, valkeys://: clients of redis-py, each with exactly one connection.

redis-py's clients come with a pool, reconnect when a connection is lost, and try again. All of that is switched off: a
client that lost its connection is closed and replaced by the pool, so that no command runs on a connection that is not
what the borrower thinks, and none runs twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio
import redis.asyncio.connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from resilience.errors import ConfigurationError, PoolUsageError

from .adapter import Adapter, Options, refuse_options, require_asyncio
from .address import Address, parse_address
from .network import is_network_error_permanent

# redis-py types its connections in part only.
_redis: Any = redis.asyncio.connection

if TYPE_CHECKING:
    _Base = redis.asyncio.Connection
else:
    _Base = object

_DECIDED: Final = {
    **dict.fromkeys(("url", "host", "port", "db", "username", "password"), "the URL"),
    "socket_connect_timeout": "the pool's connect_timeout",
    "max_connections": "the pool's max_size",
    "timeout": "the pool's acquire_timeout",
    "health_check_interval": "the pool's check_after_idle",
    **dict.fromkeys(("retry", "retry_on_error", "retry_on_timeout"), "the pool, which tries no command again,"),
    **dict.fromkeys(("connection_class", "connection_pool", "single_connection_client"), "the adapter"),
}
_DECIDED_IN_URL: Final = {name: what for name, what in _DECIDED.items() if name not in ("db", "username", "password")}

_LEAVES_A_STATE: Final = {
    *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "SYNC", "PSYNC", "SELECT", "AUTH", "HELLO", "RESET", "QUIT"),
    *("READONLY", "READWRITE", "ASKING", "SCRIPT DEBUG", "CLIENT REPLY", "CLIENT TRACKING", "CLIENT CACHING"),
    *("CLIENT SETNAME", "CLIENT SETINFO", "CLIENT NO-EVICT", "CLIENT NO-TOUCH"),
}
_NO_SUCH_DATABASE: Final = ("DB index is out of range", "invalid DB index", "Invalid Database")


class _Once(_Base):
    """What is added to redis-py's connections: they connect once, and know what a borrower has made of them."""

    left_in = ""
    """The command that left the connection in a state which the next borrower does not expect."""
    _was_opened = False
    _watches = _queues = False

    async def _connect(self) -> None:
        if self._was_opened:
            raise redis.ConnectionError("the connection was lost; the pool opens another one")
        self._was_opened = True
        connect: Any = super()._connect
        await connect()

    async def send_command(self, *args: Any, **kwargs: Any) -> Any:
        self._note(args)
        return await super().send_command(*args, **kwargs)

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> Any:
        listed = [tuple(command) for command in commands]
        for command in listed:
            self._note(command)
        return super().pack_commands(listed)

    def _note(self, command: Sequence[Any]) -> None:
        words = [_text(word) for word in command[:2]]
        first, _, second = words[0].upper().partition(" ")
        second = second or (words[1].upper() if len(words) > 1 else "")
        if first == "WATCH":
            self._watches = True
        elif first == "MULTI":
            self._queues = True
        elif first in {"EXEC", "DISCARD"}:
            self._watches = self._queues = False
        elif first == "UNWATCH":
            self._watches = False
        elif first in _LEAVES_A_STATE or f"{first} {second}" in _LEAVES_A_STATE:
            self.left_in = self.left_in or first

    @property
    def is_lost(self) -> bool:
        """Whether the server is known to have hung up."""
        reader = getattr(self, "_reader", None)
        return reader is None or reader.at_eof()

    def state(self) -> str:
        """Tell why the connection is not as new; empty if it is."""
        if self.is_lost:
            return "it was lost"
        reader = getattr(self, "_reader", None)
        if self._watches or self._queues:
            return "it is in a transaction"
        if self.left_in:
            return f"a borrower changed its state with {self.left_in}"
        # As redis-py itself looks; hiredis reads ahead.
        ahead = getattr(getattr(getattr(self, "_parser", None), "_reader", None), "has_data", None)
        if getattr(reader, "_buffer", b"") or (ahead is not None and ahead()):
            return "there is an answer that nobody has read"
        return ""


class _Connection(_Once, redis.asyncio.Connection):
    """Over TCP."""


class _TlsConnection(_Once, redis.asyncio.SSLConnection):
    """Over TLS."""


class _OnePool(redis.asyncio.ConnectionPool):
    """The "pool" of a client: its one connection, which one command, pipeline or subscription has at a time."""

    def __init__(self, kind: type[Any], **options: Any) -> None:
        super().__init__(connection_class=kind, max_connections=1, **options)
        self.only: Any = self.connection_class(**self.connection_kwargs)
        self.is_taken = False

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        if self.is_taken:
            raise PoolUsageError(
                "a borrowed Redis client does one thing at a time: another command, pipeline or subscription of it "
                "is not finished; borrow one client for each"
            )
        self.is_taken = True
        return self.only

    async def release(self, connection: Any) -> None:
        self.is_taken = self.is_taken and connection is not self.only

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - redis-py's signature
        await _disconnect(self.only)

    async def aclose(self) -> None:
        await _disconnect(self.only)

    def __repr__(self) -> str:
        return f"<one connection: {self.only!r}>"


def redis_adapter(url: str, *, connect_options: Options) -> Adapter[redis.asyncio.Redis]:
    """Connect clients of redis-py, with the protocol's version 2 unless told otherwise.

    Args:
        url: of the server, as redis-py has it: `redis://user:password@host:6379/0`.
        connect_options: arguments of `redis.asyncio.Connection`, such as `decode_responses`, `client_name`,
            `socket_timeout` for the answer to a command, or `ssl_ca_certs`.

    Raises:
        ConfigurationError: a part of the URL or an option that makes no sense.
    """
    address = parse_address(url)
    refuse_options(address.query, _DECIDED_IN_URL, "url")
    refuse_options(connect_options, _DECIDED, "connect_options")
    kind = _TlsConnection if address.scheme in {"rediss", "valkeys"} else _Connection
    options = _options(address, connect_options)
    try:
        _OnePool(kind, **options)
    except Exception as error:  # noqa: BLE001 - redis-py raises many kinds, and may show what it was given
        raise ConfigurationError(
            f"url and connect_options must be options of redis.asyncio.Connection, {type(error).__name__}: "
            f"{', '.join(sorted({*address.query, *connect_options})) or 'none given'}"
        ) from None

    async def connect() -> redis.asyncio.Redis:
        require_asyncio(address.scheme, "redis-py")
        pool = _OnePool(kind, **options)
        try:
            await pool.only.connect()
            # Without this a server that wants a password, or loads its data, would look fine until the first command.
            await pool.only.send_command("PING")
            await pool.only.read_response()
        except BaseException:
            await _disconnect(pool.only)
            raise
        pool.only.left_in = ""  # what redis-py set up itself
        return redis.asyncio.Redis(connection_pool=pool)

    return Adapter(
        name=str(address),
        connect=connect,
        close=_close,
        check=_check,
        reset=_reset,
        permanent_errors=_is_permanent,
        is_closed=_is_closed,
    )


def _options(address: Address, connect_options: Options) -> dict[str, Any]:
    host, port = address.one_host(6379)
    path = address.path.strip("/") or address.query.get("db", "0")
    if not (path.isascii() and path.isdecimal()):
        raise ConfigurationError(f"url must have the number of a database as its path, as in {address.scheme}://host/0")
    # Only for the types of the query's values.
    query = "&".join(f"{name}={value}" for name, value in address.query.items() if name not in _DECIDED)
    try:
        parsed = _redis.parse_url(f"redis://host?{query}")
    except ValueError:
        raise ConfigurationError("url must have a query that redis-py can read") from None
    options = {
        "socket_timeout": None,
        "protocol": 2,
        **{name: value for name, value in parsed.items() if name != "host"},
        **connect_options,
        "host": host,
        "port": port,
        "db": int(path),
        "username": address.query.get("username", address.user),
        "password": address.query.get("password", address.password),
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "retry_on_timeout": False,
        "health_check_interval": 0,
    }
    return options | _without_notifications(options)


def _without_notifications(options: Options) -> dict[str, Any]:
    """Keep newer releases from moving connections to other servers by themselves, as they do by default with RESP 3."""
    if int(options["protocol"]) < 3 or "maint_notifications_config" in options:
        return {}
    try:
        from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415 - not in all releases
    except ImportError:
        return {}
    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


def _text(word: object) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def _only(client: redis.asyncio.Redis) -> Any:
    pool: Any = client.connection_pool
    return pool.only


def _reset(client: redis.asyncio.Redis) -> None:
    """Let only a client go on that is as new: it costs no round trip, and what was left in some state is replaced."""
    pool: Any = client.connection_pool
    state = "a pipeline or subscription still has it" if pool.is_taken else pool.only.state()
    if state:
        raise ConnectionError(f"the client cannot be used again: {state}")


def _is_closed(client: redis.asyncio.Redis) -> bool:
    return bool(_only(client).is_lost)


async def _check(client: redis.asyncio.Redis) -> None:
    _reset(client)
    connection = _only(client)
    await connection.send_command("PING")
    await connection.read_response()


async def _close(client: redis.asyncio.Redis) -> None:
    await _disconnect(_only(client))


async def _disconnect(connection: Any) -> None:
    """Close the socket now, whatever is still to be sent: a server that is frozen would never take it."""
    writer = getattr(connection, "_writer", None)
    await connection.disconnect(nowait=True)
    if writer is not None:
        writer.transport.abort()


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return True
    text = str(error)
    if isinstance(error, redis.ResponseError) and text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return True
    if isinstance(error, redis.exceptions.NoPermissionError) or any(one in text for one in _NO_SUCH_DATABASE):
        return True
    return is_network_error_permanent(error)
