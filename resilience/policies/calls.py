"""One logical call, from its first attempt to its outcome: what the policies around it share while it runs."""

from __future__ import annotations

from contextvars import ContextVar, Token
from itertools import count
from typing import Protocol

import anyio

from resilience.events import Event

_numbers = count(1)


def new_call_id() -> str:
    """Give a name to a call, unique in this process."""
    return f"{next(_numbers):x}"


class Remembers(Protocol):
    """What keeps the events of calls."""

    def add(self, call_id: str, event: Event) -> None:
        """Remember what happened to a call."""


class Call:
    """What is known of a call under way.

    Attributes:
        work: the user's function, whose retries say why the call ended; those of others that it calls do not.
        memory: keeps its events.
        stop_reason: why no further attempt was made, None while nobody decided.
    """

    __slots__ = ("_id", "memory", "stop_reason", "work")

    def __init__(self, work: object = None, memory: Remembers | None = None) -> None:
        self._id = ""  # most calls go well, and nobody asks for their names
        self.work = work
        self.memory = memory
        self.stop_reason: str | None = None

    @property
    def id(self) -> str:
        """Its name, unique in this process."""
        if not self._id:
            self._id = new_call_id()
        return self._id


current_call: ContextVar[Call | None] = ContextVar("resilience_call", default=None)


def leave_call(token: Token[Call | None]) -> None:
    """Forget the call that was entered with `current_call.set`."""
    try:  # noqa: SIM105 - each call comes here, and `suppress` costs as much as a policy
        current_call.reset(token)
    except ValueError:  # in a context of somebody else's: the garbage collector closes coroutines there
        pass


def note_reason(reason: str, work: object) -> None:
    """Note why the call under way needs no further attempt, if it is a call of `work`."""
    call = current_call.get()
    if call is not None and call.work is work:
        call.stop_reason = reason


def seconds_left() -> float:
    """Give the seconds until the nearest deadline around async code, anyio's own included.

    Infinity without one; minus infinity where the code is cancelled already.
    """
    return anyio.current_effective_deadline() - anyio.current_time()
