"""Lines to Redis: each sends one script call at a time, and knows whether anything can have come of it.

A line connects when it is first used and after it was dropped. What was sent and not answered is never sent again: it
may have been charged. Only what the server refused to run is: a script that it does not know, a replica that may not
write.
"""

from __future__ import annotations

import hashlib
import select
import time
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's own, which no builtin one is
)

from .target import Target, async_connection_maker, make_async_cluster, make_sync_cluster, sync_connection_maker

_PARTS: Final = ("plain.lua", "gcra.lua", "fixed_window.lua", "sliding_log.lua", "decide.lua")

Arguments = list[str | int]


@cache
def script() -> tuple[str, str]:
    """Give the script that decides, and its SHA-1 by which a server knows it."""
    folder = files("resilience.rate_limiter")
    source = "\n".join(folder.joinpath(part).read_text(encoding="utf-8") for part in _PARTS)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def refused_to_run(error: BaseException) -> bool:
    """Tell whether the server said that it did nothing."""
    return isinstance(error, ResponseError | BusyLoadingError | AuthenticationError)


class AsyncLine:
    """One connection to a server, on one asyncio loop. Whoever calls sets the time limit, by cancelling.

    Attributes:
        sent: whether the last call got so far that the server may have run it.
    """

    def __init__(self, target: Target) -> None:
        self.sent = False
        self._make = async_connection_maker(target)
        self._connection: Any = None
        self._writer: Any = None
        self._poll: select.poll | None = None

    async def call(self, keys: list[str], arguments: Arguments) -> bytes:
        """Run the script and give its reply; on any error the connection is gone."""
        try:
            try:
                return await self._call(keys, arguments)
            except ReadOnlyError:  # a failover: whoever is asked now may know the new primary
                await self.close()
                return await self._call(keys, arguments)
        except BaseException:
            await self.close()
            raise

    async def _call(self, keys: list[str], arguments: Arguments) -> bytes:
        self.sent = False
        if self._connection is not None and self._poll is not None and self._poll.poll(0):
            await self.close()  # the server hung up while nothing was asked of it
        if self._connection is None:
            await self._connect()
        source, digest = script()
        self.sent = True
        try:
            return await self._ask("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._ask("EVAL", source, len(keys), *keys, *arguments)

    async def _connect(self) -> None:
        self._connection = self._make()
        await self._connection.connect()
        # redis-py has no public way to its stream. Written to directly: its `send_command` also waits for the buffer to
        # drain, which a single request never fills, and takes a tenth of a trip for that.
        self._writer = self._connection._writer  # noqa: SLF001
        self._poll = select.poll()
        self._poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLIN)

    async def _ask(self, *command: Any) -> bytes:
        self._writer.write(b"".join(self._connection.pack_command(*command)))
        answer: bytes = await self._connection.read_response()
        return answer

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._writer, self._poll = self._connection, None, None, None
        if connection is not None:
            with suppress(Exception):  # what it says about its end is of no use to anybody
                await connection.disconnect(nowait=True)


class AsyncClusterLine:
    """All connections to a cluster, on one asyncio loop; several calls may be under way at once."""

    def __init__(self, target: Target) -> None:
        self.sent = True  # redis-py does not tell
        self._target = target
        self._client: Any = None

    async def call(self, keys: list[str], arguments: Arguments) -> bytes:
        """Run the script on the node that has the keys, and give its reply."""
        if self._client is None:
            self._client = make_async_cluster(self._target)
        source, digest = script()
        try:
            answer: bytes = await self._client.execute_command("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            answer = await self._client.execute_command("EVAL", source, len(keys), *keys, *arguments)
        return answer

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # as above
                await client.aclose()


class SyncLine:
    """One connection to a server, for the thread that serves trio and sync code.

    Attributes:
        sent: whether the last call got so far that the server may have run it.
    """

    def __init__(self, target: Target) -> None:
        self.sent = False
        self._make = sync_connection_maker(target)
        self._connection: Any = None

    def call(self, keys: list[str], arguments: Arguments, seconds: float) -> bytes:
        """Run the script and give its reply, or raise when `seconds` are over; on any error the connection is gone."""
        deadline = time.monotonic() + seconds
        try:
            try:
                return self._call(keys, arguments, deadline)
            except ReadOnlyError:
                self.close()
                return self._call(keys, arguments, deadline)
        except BaseException:
            self.close()
            raise

    def _call(self, keys: list[str], arguments: Arguments, deadline: float) -> bytes:
        self.sent = False
        if self._connection is not None:
            self._drop_if_hung_up()
        if self._connection is None:
            self._connection = self._make()
            # Each step of connecting has this limit for itself; the caller's wait has its own.
            self._connection.socket_connect_timeout = self._connection.socket_timeout = _left(deadline)
            self._connection.connect()
        source, digest = script()
        self.sent = True
        try:
            return self._ask(deadline, "EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return self._ask(deadline, "EVAL", source, len(keys), *keys, *arguments)

    def _drop_if_hung_up(self) -> None:
        try:
            readable = self._connection.can_read(0)  # nothing was asked, so there is nothing to read but an end
        except Exception:  # noqa: BLE001 - any error says the same
            readable = True
        if readable:
            self.close()

    def _ask(self, deadline: float, *command: Any) -> bytes:
        self._connection.send_command(*command, check_health=False)
        self._connection._sock.settimeout(_left(deadline))  # noqa: SLF001 - redis-py sets it once, at connecting
        answer: bytes = self._connection.read_response()
        return answer

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.disconnect()


class SyncClusterLine:
    """All connections to a cluster, for the thread that serves trio and sync code."""

    def __init__(self, target: Target) -> None:
        self.sent = True
        self._target = target
        self._client: Any = None

    def call(self, keys: list[str], arguments: Arguments, seconds: float) -> bytes:
        """Run the script on the node that has the keys, and give its reply. The caller's wait has its own limit."""
        del seconds
        if self._client is None:
            self._client = make_sync_cluster(self._target)
        source, digest = script()
        try:
            answer: bytes = self._client.execute_command("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            answer = self._client.execute_command("EVAL", source, len(keys), *keys, *arguments)
        return answer

    def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()


def make_async_line(target: Target) -> AsyncLine | AsyncClusterLine:
    """Make a line for asyncio; it connects when it is used."""
    return AsyncClusterLine(target) if target.kind == "cluster" else AsyncLine(target)


def make_sync_line(target: Target) -> SyncLine | SyncClusterLine:
    """Make a line for a thread; it connects when it is used."""
    return SyncClusterLine(target) if target.kind == "cluster" else SyncLine(target)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time left")
    return left
