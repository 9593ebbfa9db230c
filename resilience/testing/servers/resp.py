"""Just enough of the Redis protocol to give orders to a test server: no client library, no pool, no retry."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from io import BufferedReader
from typing import Any

from .process import HOST, ServerError

Argument = str | bytes | int | float


class CommandError(ServerError):
    """The server answered a command with an error.

    Attributes:
        code: the first word of the answer, such as "ERR", "NOAUTH" or "MOVED".
    """

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.code = answer.partition(" ")[0]


def ask(port: int, command: Sequence[Argument], *, password: str | None = None, timeout: float = 5.0) -> Any:
    """Send one command over a connection of its own and give the answer.

    Args:
        port: of the server, on 127.0.0.1.
        command: its words.
        password: sent first if there is one. A server that wants none lets us in all the same.
        timeout: seconds for each step.

    Returns:
        str, int, None or a list of them. Bytes that are not UTF-8 become surrogates.

    Raises:
        CommandError: the server answered with an error.
        OSError: there was no answer.
    """
    with socket.create_connection((HOST, port), timeout) as connection, connection.makefile("rb") as answers:
        if password is not None:
            connection.sendall(_encode(("AUTH", password)))
            try:
                _read(answers)
            except CommandError as error:
                if error.code == "WRONGPASS":
                    raise
        connection.sendall(_encode(command))
        return _read(answers)


def _encode(command: Sequence[Argument]) -> bytes:
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _read(answers: BufferedReader) -> Any:
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up instead of answering")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest.decode()
        case b"-":
            raise CommandError(rest.decode(errors="replace"))
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else answers.read(int(rest) + 2)[:-2].decode(errors="surrogateescape")
        case b"*":
            return None if rest == b"-1" else [_read(answers) for _ in range(int(rest))]
    raise ConnectionError(f"not the Redis protocol: {line[:80]!r}")


def facts(info: str) -> dict[str, str]:
    """Read an answer to INFO or CLUSTER INFO."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
