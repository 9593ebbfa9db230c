"""What all adapters know of the network: whether the other side has hung up, and which errors no patience cures."""

from __future__ import annotations

import socket
import ssl
from typing import Final, Literal

from resilience.errors import with_causes

_UNKNOWN_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_CUT_OFF: Final = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)
"""What TLS makes of a lost connection; its other errors are about certificates and protocols."""


def peek(descriptor: int) -> Literal["quiet", "bytes", "closed"]:
    """Look what has arrived on a non-blocking socket, without taking it: nothing, something, or the end.

    A look costs a few microseconds and no round trip, and finds what a restarted server has done to its connections.
    """
    if descriptor < 0:
        return "closed"
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return "closed"
    try:
        return "bytes" if borrowed.recv(1, socket.MSG_PEEK) else "closed"
    except (BlockingIOError, InterruptedError):
        return "quiet"
    except OSError:
        return "closed"
    finally:
        borrowed.detach()  # otherwise it would close what is not ours


def is_network_error_permanent(error: BaseException) -> bool:
    """Tell whether TLS failed for a reason that lasts, or the host's name is unknown; drivers wrap both."""
    return any(_lasts(one) for one in with_causes(error))


def _lasts(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno in _UNKNOWN_NAME
    return isinstance(error, ssl.SSLError) and not isinstance(error, _CUT_OFF)
