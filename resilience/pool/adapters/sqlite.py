"""sqlite:///file and sqlite:///:memory: connections of aiosqlite."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiosqlite
import anyio

from resilience.errors import ConfigurationError

from .adapter import Adapter, Options, refuse_options, require_asyncio
from .address import parse_address

_DECIDED: Final = {"database": "the URL", "uri": "the URL"}
_LASTS: Final = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_READONLY,
}
_OF_AIOSQLITE: Final = {"iter_chunk_size"}
_LONGEST_END: Final = 1.0  # seconds
_MEMORY: Final = ":memory:"
_ONE_FOR_EVER: Final[Mapping[str, Any]] = {"max_size": 1, "max_lifetime": None, "max_idle": None, "max_uses": None}


def sqlite_adapter(url: str, *, connect_options: Options) -> Adapter[aiosqlite.Connection]:
    """Connect with `aiosqlite.connect`.

    `sqlite:///name.db` is in the current folder, `sqlite:////folder/name.db` is not; `?mode=ro` and SQLite's other URI
    parameters may follow. `sqlite:///:memory:` is one connection, because each would be a database of its own.

    Args:
        url: of the file.
        connect_options: arguments of `sqlite3.connect`, such as `isolation_level`, or `timeout` for a locked database.

    Raises:
        ConfigurationError: a part of the URL or an option that makes no sense.
    """
    address = parse_address(url)
    if address.hosts or address.user is not None or address.password is not None:
        raise ConfigurationError(
            f"url must name no host: {address.scheme}:///name.db is in the current folder, "
            f"{address.scheme}:////folder/name.db is not"
        )
    refuse_options(connect_options, _DECIDED, "connect_options")
    _check_options(connect_options)
    in_memory = address.path in {"", _MEMORY}
    if in_memory and address.query:
        raise ConfigurationError(f"url must have no query with {_MEMORY}")
    # SQLite's own form of a URL, for its parameters.
    database = f"file:{quote(address.path)}?{urlencode(address.query)}" if address.query else address.path or _MEMORY

    async def connect() -> aiosqlite.Connection:
        require_asyncio(address.scheme, "aiosqlite")
        connection = aiosqlite.connect(database, uri=bool(address.query), **connect_options)
        try:
            await connection
            # SQLite opens the file when it is first asked: better here than in the first borrower's query.
            await connection.execute_fetchall("PRAGMA schema_version")
        except BaseException:
            await _close(connection)
            raise
        return connection

    return Adapter(
        name=f"{address.scheme}:///{_MEMORY}" if in_memory else str(address),
        connect=connect,
        close=_close,
        check=_check,
        reset=_reset,
        permanent_errors=_is_permanent,
        fixed=_ONE_FOR_EVER if in_memory else {},
    )


def _check_options(options: Options) -> None:
    """Open a database that is nobody's with them: which there are depends on the version of Python."""
    try:
        sqlite3.connect(
            _MEMORY, **{name: value for name, value in options.items() if name not in _OF_AIOSQLITE}
        ).close()
    except (TypeError, ValueError, sqlite3.Error) as error:
        raise ConfigurationError(f"connect_options must be arguments of sqlite3.connect: {error}") from None


async def _check(connection: aiosqlite.Connection) -> None:
    await connection.execute_fetchall("SELECT 1")


async def _reset(connection: aiosqlite.Connection) -> None:
    """Stop what a cancelled borrower left running in the connection's thread, and roll back."""
    await connection.interrupt()
    await connection.rollback()


async def _close(connection: aiosqlite.Connection) -> None:
    try:
        with suppress(ValueError):  # it is closed already, or was never open
            await connection.interrupt()  # its thread would not end before its query
        await connection.close()
    finally:
        await _wait_for_thread(connection)


async def _wait_for_thread(connection: aiosqlite.Connection) -> None:
    """Let the thread end before the loop, which it would tell of its end: aiosqlite waits only if all is well."""
    thread: Any = getattr(connection, "_thread", connection)  # before 0.22 the connection was the thread
    with anyio.CancelScope(shield=True), anyio.move_on_after(_LONGEST_END):
        while thread.is_alive():  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.001)


def _is_permanent(error: BaseException) -> bool:
    # The extended code says more in its higher bits.
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and isinstance(code, int) and code & 0xFF in _LASTS
