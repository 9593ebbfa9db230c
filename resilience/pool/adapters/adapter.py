"""What a pool must know of a driver."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from resilience.checks import hint, shown
from resilience.errors import ConfigurationError

C = TypeVar("C")

Options: TypeAlias = Mapping[str, Any]


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Generic[C]):
    """What a pool must know of a driver; made from a URL by a factory, see `register_adapter`.

    Attributes:
        name: for the pool, if it is given no other: where it connects to, without user, password or query.
        connect: opens a connection: one attempt, without a time limit, retry or pool of its own.
        close: closes one; may be told to hurry by cancellation, and leaves nothing open then either.
        check: raises or returns False if a connection is broken.
        reset: makes a connection as new after use, or raises.
        permanent_errors: tells errors of `connect` that trying again cannot cure.
        is_closed: tells, at once and without a round trip, whether a connection is known to be closed; asked at each
            borrowing. None if there is no such way.
        fixed: fields of `PoolConfig` that this kind of connection does not leave to the caller.
    """

    name: str
    connect: Callable[[], Awaitable[C]] = field(repr=False)
    close: Callable[[C], Awaitable[object] | object] = field(repr=False)
    check: Callable[[C], Awaitable[object] | object] = field(repr=False)
    reset: Callable[[C], Awaitable[object] | object] = field(repr=False)
    permanent_errors: Callable[[BaseException], bool] = field(repr=False)
    is_closed: Callable[[C], bool] | None = field(default=None, repr=False)
    fixed: Mapping[str, Any] = field(default_factory=_nothing, repr=False)


def require_asyncio(scheme: str, driver: str) -> None:
    """Refuse to connect on trio with a driver that knows asyncio only.

    Raises:
        ConfigurationError: this is not asyncio.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(f"{scheme}:// must be used on asyncio: {driver} knows no other event loop") from None


def refuse_options(options: Options, decided: Mapping[str, str], where: str) -> None:
    """Refuse options of a driver that are the pool's to decide.

    Args:
        options: what was given.
        decided: what must not be in it, and what decides it in its place.
        where: they were given: "url" or "connect_options".

    Raises:
        ConfigurationError: names the first of them, and never its value.
    """
    for option in options:
        if option in decided:
            raise ConfigurationError(f"{where} must not set {option}: {decided[option]} decides that")


def check_arguments(function: Callable[..., object], options: Options, decided: Mapping[str, str]) -> None:
    """Refuse options that the driver's function does not take, when the pool is made and not when it connects.

    Args:
        function: of the driver.
        options: its keyword arguments.
        decided: those that are the pool's to decide, see `refuse_options`.

    Raises:
        ConfigurationError: names the option and what there is.
    """
    refuse_options(options, decided, "connect_options")
    known = [name for name in inspect.signature(function).parameters if name not in decided]
    for option in options:
        if option not in known:
            raise ConfigurationError(
                f"connect_options must be arguments of {function.__module__.partition('.')[0]}.{function.__name__}, "
                f"got {shown(option)}{hint(option, known)}"
            )
