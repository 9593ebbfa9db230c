"""tcp://host:port: bare streams of anyio, on asyncio and trio.

A pool cannot know the protocol that is spoken on them: a borrower leaves the stream between two messages, or discards
it. What can be known is known: bytes that nobody has read make a stream unfit for the next borrower.
"""

from __future__ import annotations

from typing import Final, cast

import anyio
from anyio.abc import SocketAttribute, SocketStream

from resilience.errors import ConfigurationError

from .adapter import Adapter, Options, check_arguments
from .address import parse_address
from .network import is_network_error_permanent, peek

_DECIDED: Final = {"remote_host": "the URL", "remote_port": "the URL"}


def tcp_adapter(url: str, *, connect_options: Options) -> Adapter[SocketStream]:
    """Connect with `anyio.connect_tcp`; `connect_options` are its arguments, such as `tls` and `ssl_context`.

    Raises:
        ConfigurationError: the URL has more than a host and a port, or none of them.
    """
    address = parse_address(url)
    host, port = address.one_host()
    for part, value in (("user", address.user), ("password", address.password), ("path", address.path)):
        if value is not None and value != "":
            raise ConfigurationError(f"url must have no {part}: {address.scheme}:// is host and port")
    if address.query:
        raise ConfigurationError(f"url must have no query: {address.scheme}:// is host and port")
    check_arguments(anyio.connect_tcp, connect_options, _DECIDED)

    async def connect() -> SocketStream:
        return cast("SocketStream", await anyio.connect_tcp(host, port, **connect_options))  # or a TLSStream, if asked

    return Adapter(
        name=str(address),
        connect=connect,
        close=_close,
        check=check_stream,
        reset=check_stream,
        permanent_errors=is_network_error_permanent,
    )


def check_stream(stream: SocketStream) -> None:
    """Refuse a stream on which the other side has hung up, or has said what nobody has read.

    Raises:
        ConnectionError: it is not fit for use.
    """
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - of anyio, not of Django
    state = peek(raw.fileno())
    # What TLS sends by itself cannot be told from what the other side says.
    is_plain = isinstance(stream, SocketStream)
    if state == "closed":
        raise ConnectionError("the other side has hung up")
    if is_plain and (state == "bytes" or _has_buffered(stream)):
        raise ConnectionError("there are bytes that nobody has read")


def _has_buffered(stream: SocketStream) -> bool:
    """Tell whether anyio keeps what a borrower asked for and did not take, as it does on asyncio."""
    return bool(getattr(getattr(stream, "_protocol", None), "read_queue", None))


async def _close(stream: SocketStream) -> None:
    await stream.aclose()
