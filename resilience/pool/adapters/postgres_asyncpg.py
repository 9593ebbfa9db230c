"""postgresql://, postgres://, postgresql+asyncpg://: connections of asyncpg."""

from __future__ import annotations

import asyncpg

from .adapter import Adapter, Options, check_arguments, require_asyncio
from .network import is_network_error_permanent
from .postgres import DECIDED, PERMANENT, parse_url


def asyncpg_adapter(url: str, *, connect_options: Options) -> Adapter[asyncpg.Connection]:
    """Connect with `asyncpg.connect`; `connect_options` are its arguments, such as `statement_cache_size`.

    Raises:
        ConfigurationError: a part of the URL or an option that makes no sense.
    """
    address, dsn, password = parse_url(url)
    check_arguments(asyncpg.connect, connect_options, DECIDED)
    options = {**connect_options, "timeout": None} | ({} if password is None else {"password": password})

    async def connect() -> asyncpg.Connection:
        require_asyncio(address.scheme, "asyncpg")
        return await asyncpg.connect(dsn, **options)

    return Adapter(
        name=str(address),
        connect=connect,
        close=_close,
        check=_check,
        reset=_reset,
        permanent_errors=_is_permanent,
        is_closed=asyncpg.Connection.is_closed,
    )


async def _check(connection: asyncpg.Connection) -> None:
    if connection.is_closed():
        raise ConnectionError("the server has hung up")
    # By the simple protocol: it prepares no statement, which poolers between do not like.
    await connection.execute("SELECT 1")


async def _reset(connection: asyncpg.Connection) -> None:
    """Roll back, and undo what a session can set: settings, cursors, LISTEN, advisory locks."""
    await connection.reset()


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close()
    finally:
        connection.terminate()  # of no consequence after a good end


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return str(getattr(error, "sqlstate", "")).startswith(PERMANENT)
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return True
    # asyncpg has no type of its own for a server that does not speak TLS where it must.
    return "rejected SSL upgrade" in str(error) or is_network_error_permanent(error)
