"""postgresql+psycopg://: connections of psycopg 3."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from resilience.checks import shown
from resilience.errors import ConfigurationError

from .adapter import Adapter, Options, refuse_options, require_asyncio
from .network import is_network_error_permanent, peek
from .postgres import DECIDED, PERMANENT, parse_url

Connection: TypeAlias = "psycopg.AsyncConnection[TupleRow]"

_ARGUMENTS: Final = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")
_LASTS: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|not permitted to log in"
    r'|(role|database) ".*" does not exist|permission denied for database|unrecognized configuration parameter'
    r"|invalid value for parameter|server does not support SSL|certificate verify failed|certificate authentication"
    r"|server certificate for|root certificate file|could not read certificate file"
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

    async def connect() -> Connection:
        require_asyncio(address.scheme, "psycopg")
        # Zero: the pool's connect_timeout decides, and not libpq's.
        return await psycopg.AsyncConnection.connect(dsn, **arguments, **parameters, connect_timeout=0)

    async def reset(connection: Connection) -> None:
        await _roll_back(connection)
        if reset_query is not None:
            await _run_outside_transactions(connection, reset_query)
        if connection.autocommit != autocommit:
            await connection.set_autocommit(autocommit)

    return Adapter(
        name=str(address),
        connect=connect,
        close=_close,
        check=_check,
        reset=reset,
        permanent_errors=_is_permanent,
    )


def _check_reset_query(query: object) -> None:
    if query is not None and not (isinstance(query, str) and query.strip()):
        raise ConfigurationError(f"reset_query must be a statement such as 'DISCARD ALL', got {shown(query)}")


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


async def _close(connection: Connection) -> None:
    await connection.close()


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, psycopg.Error):
        if error.sqlstate is not None:
            return error.sqlstate.startswith(PERMANENT)
        if isinstance(error, psycopg.ProgrammingError):  # an option that libpq refuses
            return True
        return _LASTS.search(str(error)) is not None or is_network_error_permanent(error)
    return is_network_error_permanent(error)
