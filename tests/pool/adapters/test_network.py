"""A look at a socket takes nothing from it; an error that lasts is told from one that passes, however it is wrapped."""

from __future__ import annotations

import socket
import ssl

import pytest

from resilience.pool.adapters.network import is_network_error_permanent, peek


def test_a_look_tells_nothing_something_and_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert peek(ours.fileno()) == "quiet"
        theirs.sendall(b"x")
        assert peek(ours.fileno()) == "bytes"
        assert ours.recv(9) == b"x"  # still there, and the socket still open
        theirs.close()
        assert peek(ours.fileno()) == "closed"
    assert peek(ours.fileno()) == "closed"  # which is -1 now


def test_a_look_at_a_connection_that_was_reset_or_is_gone_is_its_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        ours.setblocking(False)
        assert peek(ours.fileno()) == "closed"
    descriptor = socket.socket().detach()
    socket.close(descriptor)
    assert peek(descriptor) == "closed"


def wrapped(error: Exception) -> Exception:
    told = ConnectionError("the driver's words")
    told.__cause__ = error
    return told


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), True),
        (socket.gaierror(socket.EAI_AGAIN, "later"), False),
        (ssl.SSLCertVerificationError(1, "self-signed"), True),
        (ssl.SSLError(1, "wrong version number"), True),
        (ssl.SSLEOFError(8, "EOF"), False),
        (ssl.SSLZeroReturnError(6, "closed"), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
    ],
)
def test_what_lasts_is_told_from_what_passes(error: Exception, lasts: bool) -> None:
    assert is_network_error_permanent(error) is lasts
    assert is_network_error_permanent(wrapped(error)) is lasts
    assert is_network_error_permanent(ExceptionGroup("all attempts", [OSError(), error])) is lasts


def test_errors_that_cause_each_other_end() -> None:
    one, two = OSError(), OSError()
    one.__context__, two.__context__ = two, one
    assert not is_network_error_permanent(one)
