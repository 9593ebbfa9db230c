"""Functions that must not be done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from resilience.errors import ConfigurationError

from .policy import operation_name

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__writes__"


def writes(function: F) -> F:
    """Mark `function` as one that must not be done twice: no retry or hedge can be built around it, or what wraps it.

    @writes
    async def transfer(amount: int) -> None: ...
    """
    setattr(function, _MARK, True)
    return function


def refuse_write(function: object, title: str) -> None:
    """Refuse a function that is marked.

    Raises:
        ConfigurationError: it is.
    """
    if getattr(function, _MARK, False):
        raise ConfigurationError(
            f"{title} cannot be around {operation_name(function)}, which is marked as writes: it must not be done twice"
        )
