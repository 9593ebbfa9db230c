"""When waiting is of no use any more: the deadline around sync code, which anyio's scopes do not reach."""

from __future__ import annotations

from contextvars import ContextVar, Token
from math import inf
from typing import TypeAlias

from .clock import Clock

_Deadline: TypeAlias = tuple[float, Clock] | None

_nearest: ContextVar[_Deadline] = ContextVar("resilience_deadline", default=None)


def enter_deadline(seconds: float, clock: Clock) -> Token[_Deadline] | None:
    """Let whoever waits in sync code know when it is of no use any more; `leave_deadline` must follow.

    A nearer deadline around it stays in force: then this gives None.
    """
    if seconds_left() <= seconds:
        return None
    return _nearest.set((clock() + seconds, clock))


def leave_deadline(token: Token[_Deadline] | None) -> None:
    """Forget what `enter_deadline` has set."""
    if token is not None:
        _nearest.reset(token)


def seconds_left() -> float:
    """Give the seconds until the nearest deadline around sync code: infinity without one, negative when it is over."""
    deadline = _nearest.get()
    return inf if deadline is None else deadline[0] - deadline[1]()
