"""postgresql+psycopg://: connections of psycopg 3."""

from __future__ import annotations

import re
import socket
import traceback
from contextlib import suppress
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

import anyio
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PollingStatus, TransactionStatus
from psycopg.pq.abc import PGcancelConn
from psycopg.rows import TupleRow

from resilience.checks import shown
from resilience.errors import ConfigurationError

from .adapter import Adapter, Options, refuse_options, require_asyncio
from .network import is_network_error_permanent, peek
from .postgres import DECIDED, PERMANENT, parse_url

Connection: TypeAlias = "psycopg.AsyncConnection[TupleRow]"
Cancels: TypeAlias = "WeakKeyDictionary[Connection, PGcancelConn]"

_ARGUMENTS: Final = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")
_LASTS: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|not permitted to log in"
    r'|(role|database) ".*" does not exist|permission denied for database|unrecognized configuration parameter'
    r"|invalid value for parameter|server does not support SSL|certificate verify failed|certificate authentication"
    r"|server certificate for|root certificate file|could not read certificate file"
    rf"|failed to resolve host .*\[Errno {socket.EAI_NONAME}\]"
)
"""What libpq and the server say (in English) where trying again is of no use: libpq keeps the SQLSTATE to itself until
it is connected. A server that speaks another language is tried again, and the timeout has its words as its cause."""


def psycopg_adapter(url: str, *, connect_options: Options, reset_query: str | None = None) -> Adapter[Connection]:
    """Connect with `psycopg.AsyncConnection.connect`.

    Args:
        url: of the server.
        connect_options: its arguments, such as `autocommit`, and libpq's parameters, such as `application_name`.
        reset_query: run on each connection that comes back, such as "RESET ALL" or "DISCARD ALL", after the rollback;
            None runs none: what a borrower has set with SET stays so. It costs a round trip.

    Raises:
        ConfigurationError: a part of the URL or an option that makes no sense.
    """
    address, dsn, password = parse_url(url)
    refuse_options(connect_options, DECIDED, "connect_options")
    _check_reset_query(reset_query)
    arguments = {name: value for name, value in connect_options.items() if name in _ARGUMENTS}
    parameters = {name: value for name, value in connect_options.items() if name not in _ARGUMENTS}
    try:
        make_conninfo(dsn, **parameters)
    except psycopg.Error as error:  # it has seen no password
        raise ConfigurationError(f"url and connect_options must be parameters of libpq: {str(error).strip()}") from None
    if password is not None:
        parameters["password"] = password
    autocommit = bool(connect_options.get("autocommit", False))
    cancels: Cancels = WeakKeyDictionary()

    async def connect() -> Connection:
        require_asyncio(address.scheme, "psycopg")
        try:
            # Zero: the pool's connect_timeout decides, and not libpq's.
            connection = await psycopg.AsyncConnection.connect(dsn, **arguments, **parameters, connect_timeout=0)
        except BaseException as error:
            # Otherwise what it had opened stays open for as long as somebody keeps the error.
            traceback.clear_frames(error.__traceback__)
            raise
        with suppress(psycopg.NotSupportedError):  # libpq before 17
            cancels[connection] = connection.pgconn.cancel_conn()
        return connection

    async def reset(connection: Connection) -> None:
        await _roll_back(connection)
        if reset_query is not None:
            await _run_outside_transactions(connection, reset_query)
        if connection.autocommit != autocommit:
            await connection.set_autocommit(autocommit)

    async def close(connection: Connection) -> None:
        cancel = cancels.pop(connection, None)
        was_busy = _is_busy(connection)
        await connection.close()
        if was_busy and cancel is not None:
            await _cancel(cancel)

    return Adapter(
        name=str(address),
        connect=connect,
        close=close,
        check=_check,
        reset=reset,
        permanent_errors=_is_permanent,
        is_closed=_may_be_closed,
    )


def _check_reset_query(query: object) -> None:
    if query is not None and not (isinstance(query, str) and query.strip()):
        raise ConfigurationError(f"reset_query must be a statement such as 'DISCARD ALL', got {shown(query)}")


def _may_be_closed(connection: Connection) -> bool:
    # A server that ends a connection says why first: what it has said may be that, and the check reads it.
    return connection.closed or peek(connection.fileno()) != "quiet"


async def _check(connection: Connection) -> None:
    if connection.closed or peek(connection.fileno()) == "closed":
        raise ConnectionError("the server has hung up")
    await _run_outside_transactions(connection, "SELECT 1")


async def _roll_back(connection: Connection) -> None:
    status = connection.info.transaction_status
    if status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
        await connection.rollback()
    elif status is not TransactionStatus.IDLE:  # it was left in the middle of a query, or is lost
        raise ConnectionError(f"the connection cannot be used again: {status.name}")


async def _run_outside_transactions(connection: Connection, statement: str) -> None:
    """Run what must not begin a transaction, as the first statement otherwise does."""
    autocommit = connection.autocommit
    if not autocommit:
        await connection.set_autocommit(True)
    await connection.execute(statement.encode(), prepare=False)
    if not autocommit:  # otherwise it is broken, or closed for a check or reset that failed
        await connection.set_autocommit(False)


def _is_busy(connection: Connection) -> bool:
    """Tell whether the server may still be at work for it.

    A cancelled query makes psycopg send a cancel request, and await that. Under anyio the task is cancelled again in
    that, and psycopg drops the connection there and then, with its query still running at the server.
    """
    is_dropped = getattr(connection.pgconn, "pgconn_ptr", 0) is None and connection.broken
    return is_dropped or connection.info.transaction_status is TransactionStatus.ACTIVE


async def _cancel(cancel: PGcancelConn) -> None:
    """Have the server end a query of a connection that is closed already."""
    try:
        cancel.start()
        while (status := cancel.poll()) not in {PollingStatus.OK, PollingStatus.FAILED}:
            wait = anyio.wait_readable if status is PollingStatus.READING else anyio.wait_writable
            await wait(cancel.socket)
    finally:
        cancel.finish()


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, psycopg.Error):
        if error.sqlstate is not None:
            return error.sqlstate.startswith(PERMANENT)
        if isinstance(error, psycopg.ProgrammingError):  # an option that libpq refuses
            return True
        return _LASTS.search(str(error)) is not None or is_network_error_permanent(error)
    return is_network_error_permanent(error)
