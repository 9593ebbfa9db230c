"""Lines to Redis: each sends one script call at a time, and knows whether anything can have come of it.

A line connects when it is first used and after it was dropped. What was sent and not answered is never sent again: it
may have been charged. Only what the server refused to run is: a script that it does not know, a replica that may not
write, a node of a cluster that has not got the key.
"""

from __future__ import annotations

import asyncio
import hashlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from .target import Address, Target, async_connection, node_of, sentinel_of, sync_connection

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
    """Tell whether the server said that it did nothing: what can refuse a script does so at its first write."""
    return isinstance(error, Refused | ResponseError | BusyLoadingError | AuthenticationError)


def is_read_only(error: Exception) -> bool:
    """Tell whether a replica said that it may not write."""
    return isinstance(error, ReadOnlyError) or (
        isinstance(error, ResponseError) and Refused.of(error).code == "READONLY"
    )


class Refused(Exception):  # noqa: N818 - what the server did, not what went wrong here
    """The server answered with an error: whatever it was asked, it did nothing.

    Attributes:
        code: the first word of the answer, such as "READONLY".
    """

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        # Redis 6 begins the script on a replica, and says at its first write, which fails like all: "ERR Error running
        # script (call to f_...): @user_script:17: @user_script: 17: -READONLY You can't write against ..."
        self.code = "READONLY" if " -READONLY " in answer else answer.partition(" ")[0]

    @classmethod
    def of(cls, error: ResponseError) -> Refused:
        """Give what the server said before redis-py read it: it takes away the words that it knows."""
        word = next((word for kind, word in _WORDS.items() if type(error) is kind), "")
        return cls(f"{word} {error}".lstrip())


_WORDS: Final = {
    AskError: "ASK",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    MovedError: "MOVED",
    TryAgainError: "TRYAGAIN",
}
"""By the errors that have them since redis-py 6; 5 knows none of these words."""

ELSEWHERE: Final = frozenset(_WORDS.values())
"""What a node of a cluster says that does not have the keys, or not yet; nothing is wrong with the line."""


class AsyncLine(asyncio.Protocol):
    """One connection to a server, on one asyncio loop. Calls need not wait for each other, and keep their order.

    redis-py connects: address, TLS, password, database, sentinels. Then this protocol takes the stream over: a call is
    one write and one callback, with no task and no future of its own, and nobody's cancellation can come between them.

    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._sentinels = list(target.addresses) if target.kind == "sentinel" else []
        self._connection: Any = None
        self._transport: asyncio.WriteTransport | None = None
        self._is_readable: Callable[[], object] = bool
        # Callers and a probe may find it gone at once.
        self._connecting = asyncio.Lock()
        self._flying: deque[_Call] = deque()
        self._received = bytearray()

    # --- connecting ---

    @property
    def is_ready(self) -> bool:
        """Whether a call can be made at once. False also if the server hung up while nothing was asked of it."""
        return self._transport is not None and (bool(self._flying) or not self._is_readable())

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and nobody connects it."""
        return not self._flying and not self._connecting.locked()

    async def connect(self, seconds: float) -> None:
        """Connect, unless somebody else just has.

        Whoever calls sets the time limit; `seconds` only divide it between several sentinels.
        """
        async with self._connecting:
            if not self.is_ready:
                await self._connect(seconds)

    async def _connect(self, seconds: float) -> None:
        await self.close()
        target = self._target
        if self._sentinels:
            target = node_of(target, await _ask_sentinels(self._sentinels, target, seconds))
        self._connection = async_connection(target)
        await self._connection.connect()
        # redis-py has no public way to its stream.
        self._transport = self._connection._writer.transport  # noqa: SLF001
        self._transport.set_protocol(self)
        self._received.clear()
        self._is_readable = _readable(self._transport.get_extra_info("socket").fileno())

    async def close(self) -> None:
        """Close the connection, if there is one; calls under way fail."""
        connection, self._connection = self._connection, None
        if self._hang_up():
            await asyncio.sleep(0)  # in which the socket is closed
        self._fail(ConnectionError("closed"))
        if connection is not None:
            with suppress(Exception):  # what it says about its end is of no use to anybody
                await connection.disconnect(nowait=True)

    # --- calling ---

    def send(self, keys: list[str], arguments: Arguments, landed: Landed, *, asking: bool = False) -> None:
        """Run the script; `landed` is called with its reply or with an error, once.

        Args:
            keys: of the script.
            arguments: of the script.
            landed: takes the answer.
            asking: whether the server gets these keys in a move that is not over, and must be told so.
        """
        source, digest = script()
        call = _Call(landed, [source, len(keys), *keys, *arguments], asking)
        self._write(call, "EVALSHA", digest, len(keys), *keys, *arguments)

    def give_up(self) -> None:
        """Let all calls under way fail, for the time of one is over: its reply may still come, and be another's."""
        self._drop(TimeoutError("the budget is over"))

    async def call(self, keys: list[str], arguments: Arguments, seconds: float, *, asking: bool = False) -> bytes:
        """Run the script and wait for its reply, connecting first if need be; see `connect` and `send`."""
        if not self.is_ready:
            await self.connect(seconds)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.send(keys, arguments, partial(_settle, future), asking=asking)
        try:
            return await future
        except asyncio.CancelledError:
            self.give_up()
            raise

    def _write(self, call: _Call, *command: str | int) -> None:
        if call.asking:  # holds for the next command only
            self._flying.append(_ASKING)
        self._flying.append(call)
        if self._transport is None:
            self._fail(ConnectionError("not connected"))
        elif call.asking:
            self._transport.write(packed("ASKING") + packed(*command))
        else:
            self._transport.write(packed(*command))

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
            elif kind == b"+" and self._flying[0] is _ASKING:
                answer = said
                del received[: head + 2]
            else:
                self._drop(ConnectionError("an answer that the script does not give"))
                return
            call = self._flying.popleft()
            if isinstance(answer, Refused) and answer.code == "NOSCRIPT":  # which proves that nothing ran
                self._write(call, "EVAL", *call.again)
            else:
                call.landed(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection is gone."""
        self._transport = None
        self._fail(ConnectionError("connection lost") if error is None else error)

    def _drop(self, error: Exception) -> None:
        self._hang_up()
        self._fail(error)

    def _hang_up(self) -> bool:
        """Let go of the stream, if there is one."""
        transport, self._transport = self._transport, None
        if transport is None:
            return False
        transport.set_protocol(asyncio.Protocol())  # its end comes later, when we may have another stream
        transport.abort()  # with TLS an orderly end waits for the server's, which may come after the loop's
        return True

    def _fail(self, error: Exception) -> None:
        flying, self._flying = self._flying, deque()
        for call in flying:
            call.landed(error)


def _readable(descriptor: int) -> Callable[[], object]:
    """Give what tells whether there is something to read."""
    if hasattr(select, "poll"):  # not on Windows; it takes any descriptor, and half the time
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return partial(poll.poll, 0)
    return lambda: select.select([descriptor], [], [], 0)[0]


def packed(*words: str | int) -> bytes:
    """Write a command as Redis reads it: https://redis.io/docs/latest/develop/reference/protocol-spec.

    In a third of the time that redis-py's packer takes, which was a twelfth of all that a call costs.
    """
    parts = [f"*{len(words)}\r\n"]
    for word in words:
        text = word if type(word) is str else str(word)
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        parts.append(f"${size}\r\n{text}\r\n")
    return "".join(parts).encode("utf-8", "surrogatepass")  # a name of a limiter may have any character


class _Call(NamedTuple):
    """A call under way: whom to tell, how to make it again if the server does not know the script."""

    landed: Landed
    again: list[str | int]
    asking: bool


_ASKING: Final = _Call(lambda _: None, [], False)
"""Stands for the word that goes before a call; if that is refused, so is the call."""


def _settle(future: asyncio.Future[bytes], answer: bytes | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, bytes):
        future.set_result(answer)
    else:
        future.set_exception(answer)


class SyncLine:
    """One connection to a server, for the thread that serves trio and sync code.

    Attributes:
        sent: whether the last call got so far that the server may have run it.
    """

    # Either `call`, which does all for one call, or `send` and `receive`, for calls that need not wait for each other.

    def __init__(self, target: Target) -> None:
        self.sent = False
        self._target = target
        self._sentinels = list(target.addresses) if target.kind == "sentinel" else []
        self._connection: Any = None
        self._under_way: deque[tuple[Any, list[str], Arguments]] = deque()

    def send(self, tag: object, keys: list[str], arguments: Arguments, seconds: float) -> None:
        """Have the script run; `receive` gives the reply, with `tag`. If this raises, nothing is under way any more."""
        deadline = time.monotonic() + seconds
        self.sent = False
        try:
            self._prepare(deadline)
            self.sent = True
            self._write(deadline, "EVALSHA", script()[1], len(keys), *keys, *arguments)
        except BaseException:
            self.close()
            raise
        self._under_way.append((tag, keys, arguments))

    def receive(self, seconds: float) -> tuple[Any, bytes | Exception]:
        """Give the next answer, and the tag of its call; raise if there is none, and then nothing is under way."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                tag, keys, arguments = call = self._under_way.popleft()
                try:
                    answer: bytes = self._read(deadline)
                except NoScriptError:  # which proves that nothing ran
                    self._write(deadline, "EVAL", script()[0], len(keys), *keys, *arguments)
                    self._under_way.append(call)
                except (ResponseError, BusyLoadingError, AuthenticationError) as error:  # see `refused_to_run`
                    return tag, error
                else:
                    return tag, answer
        except BaseException:
            self.close()
            raise

    def call(self, keys: list[str], arguments: Arguments, seconds: float, *, asking: bool = False) -> bytes:
        """Run the script and give its reply, or raise when `seconds` are over; on any error the connection is gone.

        `asking`: whether it is the target of a slot that moves.
        """
        deadline = time.monotonic() + seconds
        try:
            try:
                return self._call(keys, arguments, deadline, asking=asking)
            except ResponseError as error:
                if not is_read_only(error):
                    raise
                self.close()
                return self._call(keys, arguments, deadline, asking=asking)
        except BaseException as error:
            if not isinstance(error, ResponseError) or Refused.of(error).code not in ELSEWHERE:
                self.close()
            raise

    def _call(self, keys: list[str], arguments: Arguments, deadline: float, *, asking: bool) -> bytes:
        self.sent = False
        self._prepare(deadline)
        source, digest = script()
        self.sent = True
        try:
            if asking:
                self._ask(deadline, "ASKING")
            answer: bytes = self._ask(deadline, "EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:
            if asking:
                self._ask(deadline, "ASKING")
            answer = self._ask(deadline, "EVAL", source, len(keys), *keys, *arguments)
        return answer

    def _prepare(self, deadline: float) -> None:
        if self._connection is not None and not self._under_way:
            self._drop_if_hung_up()
        if self._connection is None:
            self._connect(deadline)
        _left(deadline)  # a name server may have taken so long that nobody waits any more: then nothing is charged

    def _connect(self, deadline: float) -> None:
        target = self._target
        if self._sentinels:
            target = node_of(target, _ask_sentinels_sync(self._sentinels, target, deadline))
        self._connection = sync_connection(target)
        # Each step of connecting has this limit for itself; the caller's wait has its own.
        self._connection.socket_connect_timeout = self._connection.socket_timeout = _left(deadline)
        self._connection.connect()

    def _drop_if_hung_up(self) -> None:
        try:
            readable = self._connection.can_read(0)  # nothing was asked, so there is nothing to read but an end
        except Exception:  # noqa: BLE001 - any error says the same
            readable = True
        if readable:
            self.close()

    def _ask(self, deadline: float, *command: str | int) -> Any:
        self._write(deadline, *command)
        return self._read(deadline)

    def _write(self, deadline: float, *command: str | int) -> None:
        self._set_limit(deadline)
        self._connection.send_packed_command([packed(*command)], check_health=False)

    def _read(self, deadline: float) -> Any:
        # What is there is read, however late it is here: a thread that was held up says nothing about the server.
        self._connection._sock.settimeout(max(deadline - time.monotonic(), _SHORTEST))  # noqa: SLF001 - as below
        return self._connection.read_response()

    def _set_limit(self, deadline: float) -> None:
        self._connection._sock.settimeout(_left(deadline))  # noqa: SLF001 - redis-py sets it once, at connecting

    def interrupt(self) -> None:
        """Let the call that another thread makes here fail now."""
        sock = getattr(self._connection, "_sock", None)
        if sock is not None:
            with suppress(OSError):  # it has just ended
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, if there is one; nobody gets the replies to what is under way."""
        self._under_way.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.disconnect()


async def ask_async(target: Target, *command: str) -> Any:
    """Ask one server something that changes nothing, over a connection of its own; whoever calls sets a time limit."""
    connection = async_connection(target)
    try:
        await connection.connect()
        await connection.send_command(*command, check_health=False)
        return await connection.read_response()
    finally:
        with suppress(Exception):
            await connection.disconnect(nowait=True)


def ask_sync(target: Target, seconds: float, *command: str) -> Any:
    """Ask one server something that changes nothing, over a connection of its own, each step within `seconds`."""
    connection = sync_connection(target)
    connection.socket_connect_timeout = connection.socket_timeout = max(seconds, _SHORTEST)
    try:
        connection.connect()
        connection.send_command(*command, check_health=False)
        return connection.read_response()
    finally:
        with suppress(Exception):
            connection.disconnect()


_SHORTEST: Final = 0.001
"""Seconds: a socket takes 0 for never waiting at all."""
_WHERE: Final = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")


async def _ask_sentinels(sentinels: list[Address], target: Target, seconds: float) -> Address:
    """Ask one sentinel after the other where the primary is; who does not know comes last from then on."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    failure: Exception = RedisConnectionError(f"no sentinel knows {target.service!r}")
    for number, address in enumerate(list(sentinels)):
        try:
            async with asyncio.timeout((deadline - loop.time()) / (len(sentinels) - number)):
                told = await ask_async(sentinel_of(target, address), *_WHERE, target.service)
        except Exception as error:  # noqa: BLE001 - down, or a password of its own: the next may know
            failure = error
        else:
            if told:
                return _address(told)
        put_last(sentinels, address)
    raise failure


def _ask_sentinels_sync(sentinels: list[Address], target: Target, deadline: float) -> Address:
    """Do the same without a loop."""
    failure: Exception = RedisConnectionError(f"no sentinel knows {target.service!r}")
    for number, address in enumerate(list(sentinels)):
        try:
            share = _left(deadline) / (len(sentinels) - number)
            told = ask_sync(sentinel_of(target, address), share, *_WHERE, target.service)
        except Exception as error:  # noqa: BLE001 - as above
            failure = error
        else:
            if told:
                return _address(told)
        put_last(sentinels, address)
    raise failure


def _address(told: list[bytes]) -> Address:
    return told[0].decode(), int(told[1])


def put_last(addresses: list[Address], address: Address) -> None:
    """Ask this one after all others from now on."""
    if address in addresses:
        addresses.remove(address)
        addresses.append(address)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise RedisTimeoutError("no time left")
    return left
