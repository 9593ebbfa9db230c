"""Functions that must not be done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from resilience.checks import code_of, shown
from resilience.errors import ConfigurationError
from resilience.stack import layers_of

from .policy import operation_name

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__writes__"


def writes(function: F) -> F:
    """Mark `function` as one that must not be done twice: no retry or hedge can be built around it, or what wraps it.

    @writes
    async def transfer(amount: int) -> None: ...

    Raises:
        ConfigurationError: not a function, or one that takes no mark: a builtin, or a method of an object.
    """
    marked: object = function
    if isinstance(function, staticmethod | classmethod):
        marked = function.__func__  # whoever calls it sees nothing else
    if not callable(marked):
        raise ConfigurationError(f"writes marks functions, got {shown(function)}")
    try:
        setattr(marked, _MARK, True)
    except (AttributeError, TypeError):
        raise ConfigurationError(f"writes cannot mark {shown(function)}: mark the function that calls it") from None
    return function


def refuse_write(function: object, title: str) -> None:
    """Refuse a function that is marked.

    Raises:
        ConfigurationError: it is.
    """
    # A callable object is marked by its class's `__call__`.
    if any(getattr(one, _MARK, None) is True for one in (*layers_of(function), *layers_of(code_of(function)))):
        raise ConfigurationError(
            f"{title} cannot be around {operation_name(function)}, which is marked as writes: it must not be done twice"
        )
