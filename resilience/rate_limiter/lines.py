"""Lines to Redis: each sends one script call at a time, and knows whether anything can have come of it.

A line connects when it is first used and after it was dropped. What was sent and not answered is never sent again: it
may have been charged. Only what the server refused to run is: a script that it does not know, a replica that may not
write.
"""

from __future__ import annotations

import asyncio
import hashlib
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final, TypeAlias

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from .target import Target, async_connection_maker, make_async_cluster, make_sync_cluster, sync_connection_maker

_PARTS: Final = ("plain.lua", "gcra.lua", "fixed_window.lua", "sliding_log.lua", "decide.lua")

Arguments: TypeAlias = list[str | int]
Landed: TypeAlias = Callable[[bytes | Exception], None]
"""Takes the reply of a call, or the error that came instead of one."""


@cache
def script() -> tuple[str, str]:
    """Give the script that decides, and its SHA-1 by which a server knows it."""
    folder = files("resilience.rate_limiter")
    source = "\n".join(folder.joinpath(part).read_text(encoding="utf-8") for part in _PARTS)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def refused_to_run(error: BaseException) -> bool:
    """Tell whether the server said that it did nothing."""
    return isinstance(error, Refused | ResponseError | BusyLoadingError | AuthenticationError)


class Refused(Exception):  # noqa: N818 - what the server did, not what went wrong here
    """The server answered with an error: whatever it was asked, it did nothing.

    Attributes:
        code: the first word of the answer, such as "READONLY".
    """

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.code = answer.partition(" ")[0]


class AsyncLine(asyncio.Protocol):
    """One connection to a server, on one asyncio loop. Calls need not wait for each other, and keep their order.

    redis-py connects: address, TLS, password, database, sentinels. Then this protocol takes the stream over: a call is
    one write and one callback, with no task and no future of its own, and nobody's cancellation can come between them.

    Attributes:
        sent: whether the last call got so far that the server may have run it.
    """

    def __init__(self, target: Target) -> None:
        self.sent = False
        self._make = async_connection_maker(target)
        self._connection: Any = None
        self._transport: asyncio.WriteTransport | None = None
        self._poll: select.poll | None = None
        self._flying: deque[tuple[Landed, list[str | int]]] = deque()
        self._received = bytearray()

    # --- connecting ---

    @property
    def is_ready(self) -> bool:
        """Whether a call can be made at once. False also if the server hung up while nothing was asked of it."""
        if self._transport is None or self._poll is None:
            return False
        return bool(self._flying) or not self._poll.poll(0)

    async def connect(self) -> None:
        """Connect anew."""
        await self.close()
        self.sent = False
        self._connection = self._make()
        await self._connection.connect()
        # redis-py has no public way to its stream.
        self._transport = self._connection._writer.transport  # noqa: SLF001
        self._transport.set_protocol(self)
        self._received.clear()
        self._poll = select.poll()
        self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)

    async def close(self) -> None:
        """Close the connection, if there is one; calls under way fail."""
        connection, self._connection = self._connection, None
        self._transport = self._poll = None
        self._fail(ConnectionError("closed"))
        if connection is not None:
            with suppress(Exception):  # what it says about its end is of no use to anybody
                await connection.disconnect(nowait=True)

    # --- calling ---

    def send(self, keys: list[str], arguments: Arguments, landed: Landed) -> None:
        """Run the script; `landed` is called with its reply or with an error, once."""
        source, digest = script()
        self._flying.append((landed, [source, len(keys), *keys, *arguments]))
        self.sent = True
        self._write(self._connection.pack_command("EVALSHA", digest, len(keys), *keys, *arguments))

    def give_up(self) -> None:
        """Let all calls under way fail, for the time of one is over: its reply may still come, and be another's."""
        self._drop(TimeoutError("the budget is over"))

    async def call(self, keys: list[str], arguments: Arguments) -> bytes:
        """Run the script and wait for its reply, connecting first if need be."""
        if not self.is_ready:
            await self.connect()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.send(keys, arguments, partial(_settle, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.give_up()
            raise

    def _write(self, packed: list[bytes]) -> None:
        if self._transport is None:
            self._fail(ConnectionError("not connected"))
        else:
            self._transport.write(b"".join(packed))

    # --- what the event loop calls ---

    def data_received(self, data: bytes) -> None:
        """Take in replies, or a part of one: bulk strings, or errors."""
        received = self._received
        received += data
        while self._flying and (head := received.find(b"\r\n")) >= 0:
            kind, said = received[:1], bytes(received[1:head])
            if kind == b"$" and said.isdigit():
                end = head + 2 + int(said)
                if len(received) < end + 2:
                    return
                answer: bytes | Exception = bytes(received[head + 2 : end])
                del received[: end + 2]
            elif kind == b"-":
                answer = Refused(said.decode(errors="replace"))
                del received[: head + 2]
            else:
                self._drop(ConnectionError("an answer that the script does not give"))
                return
            landed, again = self._flying.popleft()
            if isinstance(answer, Refused) and answer.code == "NOSCRIPT":  # which proves that nothing ran
                self._flying.append((landed, again))
                self._write(self._connection.pack_command("EVAL", *again))
            else:
                landed(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection is gone."""
        self._transport = self._poll = None
        self._fail(ConnectionError("connection lost") if error is None else error)

    def _drop(self, error: Exception) -> None:
        transport, self._transport, self._poll = self._transport, None, None
        if transport is not None:
            transport.abort()
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        flying, self._flying = self._flying, deque()
        for landed, _ in flying:
            landed(error)


def _settle(future: asyncio.Future[bytes], answer: bytes | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, bytes):
        future.set_result(answer)
    else:
        future.set_exception(answer)


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
        raise RedisTimeoutError("no time left")
    return left
