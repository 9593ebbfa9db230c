"""One logical call, from its first attempt to its outcome: what the policies around it share while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from math import inf

import anyio

from resilience.clock import Clock

_numbers = count(1)


def new_call_id() -> str:
    """Give a name to a call, unique in this process."""
    return f"{next(_numbers):x}"


class Call:
    """What is known of a call under way.

    Attributes:
        id: unique in this process.
        attempts: how often the callee was called; None while nobody counts, which is once if it was called at all.
        stop_reason: why no further attempt was made, None while nobody decided.
    """

    __slots__ = ("attempts", "id", "stop_reason")

    def __init__(self) -> None:
        self.id = new_call_id()
        self.attempts: int | None = None
        self.stop_reason: str | None = None


current_call: ContextVar[Call | None] = ContextVar("resilience_call", default=None)

_sync_deadline: ContextVar[tuple[float, Clock] | None] = ContextVar("resilience_deadline", default=None)


@contextmanager
def sync_deadline(seconds: float, clock: Clock) -> Iterator[None]:
    """Let whoever waits in sync code know when it is of no use any more. A nearer deadline stays in force."""
    at = clock() + seconds
    outer = _sync_deadline.get()
    if outer is not None and outer[0] - outer[1]() <= seconds:
        yield
        return
    token = _sync_deadline.set((at, clock))
    try:
        yield
    finally:
        _sync_deadline.reset(token)


def seconds_left_sync() -> float:
    """Give the seconds until the nearest `Deadline` around sync code, infinity without one."""
    deadline = _sync_deadline.get()
    return inf if deadline is None else deadline[0] - deadline[1]()


def seconds_left() -> float:
    """Give the seconds until the nearest deadline around async code, anyio's own included.

    Infinity without one; minus infinity where the code is cancelled already.
    """
    return anyio.current_effective_deadline() - anyio.current_time()
