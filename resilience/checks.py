"""Checks of what users write: each failure names field, value and rule."""

from __future__ import annotations

import inspect
import math
from typing import TypeGuard

from resilience.errors import ConfigurationError


def check_int(field: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no int, or out of range.

    Raises:
        ConfigurationError: with the field's name.
    """
    # bool is an int to Python; as a count it is a slip.
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{field} must be an int, got {value!r}")
    if value < least:
        raise ConfigurationError(f"{field} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ConfigurationError(f"{field} must be at most {most:,}, got {value}")


def check_number(
    field: str, value: object, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse what is no finite number, or out of range.

    Raises:
        ConfigurationError: with the field's name.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{field} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigurationError(f"{field} must be finite, got {value}")
    if value < least:
        raise ConfigurationError(f"{field} must be at least {least:g}, got {value:g}")
    if value <= above:
        raise ConfigurationError(f"{field} must be more than {above:g}, got {value:g}")
    if value > most:
        raise ConfigurationError(f"{field} must be at most {most:g}, got {value:g}")


def check_function(field: str, value: object) -> None:
    """Refuse what cannot be called, or is async: it is asked in the middle of a call, where nobody can wait.

    Raises:
        ConfigurationError: with the field's name.
    """
    if not callable(value):
        raise ConfigurationError(f"{field} must be a function, got {value!r}")
    if is_async(value):
        raise ConfigurationError(f"{field} must be a plain function, got the async {value!r}")


def check_name(name: object) -> None:
    """Refuse what cannot name a component in events and logs.

    Raises:
        ConfigurationError: not a string, or empty.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"name must be a non-empty string, got {name!r}")


def is_async(value: object) -> bool:
    """Tell whether calling `value` gives a coroutine; an instance is judged by its `__call__`."""
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004 - whether it can be called is not the question


def is_exception_types(value: object) -> TypeGuard[type[BaseException] | tuple[type[BaseException], ...]]:
    """Tell whether `value` is an exception type, or a tuple of nothing else."""
    kinds = value if isinstance(value, tuple) else (value,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
