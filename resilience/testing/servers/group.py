"""Several Redis servers that work together, and end together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

from .process import ServerError
from .redis import RedisServer


class Group(ABC):
    """A context manager over servers that its subclass starts and introduces to each other."""

    @abstractmethod
    def _members(self) -> Iterable[RedisServer]:
        """Give every server, started or not."""

    @abstractmethod
    def _start(self) -> None:
        """Start them, and wait until they work together."""

    def __enter__(self) -> Self:
        """Start all servers and wait until they work together.

        Raises:
            ServerError: they do not, or they did before: a group is for one use. None is left running.
        """
        if any(member.has_started for member in self._members()):
            raise ServerError(f"{self!r} has been used before: make a new one")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all servers."""
        for member in self._members():
            member.kill()
