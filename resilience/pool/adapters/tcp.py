"""tcp://host:port: bare streams of anyio, on asyncio and trio.

A pool cannot know the protocol that is spoken on them: a borrower leaves a stream between two messages, or discards it.
What can be known is known: a stream is not lent again if the other side has hung up, if bytes came that nobody read, or
if a borrower was cancelled while it waited for an answer, which would come to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from resilience.errors import ConfigurationError

from .adapter import Adapter, Options, check_arguments
from .address import Address, parse_address
from .network import is_network_error_permanent, peek

_DECIDED: Final = {"remote_host": "the URL", "remote_port": "the URL"}


class PooledStream(ByteStream):
    """A stream that knows when it is not fit for another borrower. Used like any other `ByteStream`.

    Args:
        inner: what it stands for.
    """

    def __init__(self, inner: ByteStream) -> None:
        self._inner = inner
        self._broken_by = ""
        # What TLS sends by itself cannot be told from what the other side says.
        self._is_plain = isinstance(inner, SocketStream)

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """As anyio's."""
        try:
            return await self._inner.receive(max_bytes)
        except BaseException:
            self._broken_by = "receiving failed or was cancelled"
            raise

    async def send(self, item: bytes) -> None:
        """As anyio's."""
        try:
            await self._inner.send(item)
        except BaseException:
            self._broken_by = "sending failed or was cancelled"
            raise

    async def send_eof(self) -> None:
        """As anyio's; nothing can be sent after it."""
        self._broken_by = "the end was sent"
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """As anyio's."""
        self._broken_by = "it was closed"
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """As anyio's."""
        return self._inner.extra_attributes

    def check(self) -> None:
        """Refuse to be used again, if there is a reason.

        Raises:
            ConnectionError: it tells the reason.
        """
        if self._broken_by:
            raise ConnectionError(self._broken_by)
        state = self._peek()
        if state == "closed":
            raise ConnectionError("the other side has hung up")
        if self._is_plain and (state == "bytes" or self._has_buffered()):
            raise ConnectionError("there are bytes that nobody has read")

    def is_closed(self) -> bool:
        """Tell whether the other side is known to have hung up."""
        return self._peek() == "closed"

    def _peek(self) -> str:
        return peek(self.extra(SocketAttribute.raw_socket).fileno())  # noqa: S610 - of anyio, not of Django

    def _has_buffered(self) -> bool:
        """Tell whether anyio keeps what was received and not taken, as it does on asyncio."""
        return bool(getattr(getattr(self._inner, "_protocol", None), "read_queue", None))


def tcp_adapter(url: str, *, connect_options: Options) -> Adapter[PooledStream]:
    """Connect with `anyio.connect_tcp`; `connect_options` are its arguments, such as `tls` and `ssl_context`.

    Raises:
        ConfigurationError: the URL has more than a host and a port, or none of them.
    """
    address = parse_address(url)
    host, port = address.one_host()
    _check_bare(address)
    check_arguments(anyio.connect_tcp, connect_options, _DECIDED)

    async def connect() -> PooledStream:
        return PooledStream(await anyio.connect_tcp(host, port, **connect_options))

    return Adapter(
        name=str(address),
        connect=connect,
        close=PooledStream.aclose,
        check=PooledStream.check,
        reset=PooledStream.check,
        permanent_errors=is_network_error_permanent,
        is_closed=PooledStream.is_closed,
    )


def _check_bare(address: Address) -> None:
    parts = {"user": address.user, "password": address.password, "path": address.path, "query": address.query}
    for part, value in parts.items():
        if value:
            raise ConfigurationError(f"url must have no {part}: {address.scheme}:// is host and port")
