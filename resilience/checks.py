"""Checks of what users write: each failure names field, value and rule."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Iterable
from typing import Any, TypeGuard

from resilience.errors import ConfigurationError

_LONGEST = 100


def check_int(field: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Refuse anything but an int in range.

    Raises:
        ConfigurationError: with the field's name.
    """
    # bool is an int to Python; as a count it is a slip.
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{field} must be an int, got {shown(value)}")
    if value < least:
        raise ConfigurationError(f"{field} must be at least {least}, got {shown(value)}")
    if most is not None and value > most:
        raise ConfigurationError(f"{field} must be at most {most:,}, got {shown(value)}")


def check_number(
    field: str, value: object, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse anything but a finite number in range.

    Raises:
        ConfigurationError: with the field's name.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{field} must be a number, got {shown(value)}")
    if not is_finite(value):
        raise ConfigurationError(f"{field} must be finite, got {shown(value)}")
    if value < least:
        raise ConfigurationError(f"{field} must be at least {least:g}, got {shown(value)}")
    if value <= above:
        raise ConfigurationError(f"{field} must be more than {above:g}, got {shown(value)}")
    if value > most:
        raise ConfigurationError(f"{field} must be at most {most:g}, got {shown(value)}")


def is_finite(value: float) -> bool:
    """Tell whether `value` is a number that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of more than 308 digits
        return False


def check_function(field: str, value: object) -> None:
    """Refuse what cannot be called, or is async: it is asked in the middle of a call, where nobody can wait.

    Raises:
        ConfigurationError: with the field's name.
    """
    if not callable(value):
        raise ConfigurationError(f"{field} must be a function, got {shown(value)}")
    if is_async(value) or inspect.isasyncgenfunction(code_of(value)):
        raise ConfigurationError(f"{field} must be a plain function, got the async {shown(value)}")
    if inspect.isgeneratorfunction(code_of(value)):  # what it gives is an iterator, which is always true
        raise ConfigurationError(f"{field} must be a plain function, got the generator {shown(value)}")


def check_name(name: object) -> None:
    """Refuse what cannot name a component in events and logs.

    Raises:
        ConfigurationError: not a string, or empty.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"name must be a non-empty string, got {shown(name)}")


def is_async(function: object) -> bool:
    """Tell whether calling `function` gives a coroutine."""
    code = code_of(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(code) or _is_old_coroutine(code)


def _is_old_coroutine(function: object) -> bool:
    """Tell whether `function` is a generator that `types.coroutine` made awaitable."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return isinstance(flags, int) and bool(flags & inspect.CO_ITERABLE_COROUTINE)


def code_of(function: object) -> Any:
    """Give what runs when `function` is called: of a partial its function, of an object its type's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004 - wanted is the function, not whether there is one


def is_exception_types(value: object) -> TypeGuard[type[BaseException] | tuple[type[BaseException], ...]]:
    """Tell whether `value` is an exception type, or a tuple of nothing else."""
    kinds = value if isinstance(value, tuple) else (value,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


def shown(value: object) -> str:
    """Give the repr of a refused value, short, whatever its type does."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the message must come out: even an int has no repr when it is long
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def hint(word: str, known: Iterable[str]) -> str:
    """Give the known word that may have been meant, as a hint in parentheses."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
