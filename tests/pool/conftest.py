"""A server that opens what a test asks for, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from resilience.pool import ConnectionPool


class Connection:
    """Attributes: number, from 1 in the order of opening."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True
        self.is_broken = False

    def __repr__(self) -> str:
        return f"connection {self.number}"


class Chance(random.Random):
    """No chance: jitter is always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


class Server:
    """Attributes:
    takes: seconds of connecting, checking, resetting and closing.
    attempts: moments of all attempts to connect.
    refuses: how connecting fails, None if it does not.
    """

    def __init__(self) -> None:
        self.takes = {"connect": 0.0, "check": 0.0, "reset": 0.0, "close": 0.0}
        self.attempts: list[float] = []
        self.refuses: Callable[[], BaseException] | None = None
        self.opened: list[Connection] = []
        self.checked: list[int] = []

    def is_down(self) -> None:
        self.refuses = ConnectionRefusedError

    def is_up(self) -> None:
        self.refuses = None

    async def connect(self) -> Connection:
        self.attempts.append(anyio.current_time())
        await anyio.sleep(self.takes["connect"])
        if self.refuses is not None:
            raise self.refuses()
        self.opened.append(Connection(len(self.opened) + 1))
        return self.opened[-1]

    async def check(self, connection: Connection) -> None:
        self.checked.append(connection.number)
        await anyio.sleep(self.takes["check"])
        if connection.is_broken:
            raise ConnectionResetError

    async def reset(self, connection: Connection) -> None:
        await anyio.sleep(self.takes["reset"])
        if connection.is_broken:
            raise ConnectionResetError

    async def close(self, connection: Connection) -> None:
        connection.is_open = False
        await anyio.sleep(self.takes["close"])

    @property
    def open(self) -> list[int]:
        """The numbers of the connections that are open."""
        return [one.number for one in self.opened if one.is_open]

    def pool(self, **options: Any) -> ConnectionPool[Connection]:
        """Make a pool that checks, in virtual time, without jitter of pauses and lifetimes unless `jitter` is given."""
        jitter = options.pop("jitter", 1.0)
        given: dict[str, Any] = {
            "connect": self.connect,
            "close": self.close,
            "check": self.check,
            "clock": anyio.current_time,
            "rng": Chance(jitter),
            "debug": True,
        }
        return ConnectionPool(**given | options)


@pytest.fixture
def server() -> Server:
    """A server that is well."""
    return Server()
