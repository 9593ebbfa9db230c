"""The decorator: a limit around a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from resilience.errors import ConfigurationError

from .bound import BoundLimiter, check_limitable
from .limiter import RateLimiter
from .quota import Quota

F = TypeVar("F", bound=Callable[..., Any])


def rate_limit(
    quotas: str | Quota | Iterable[Quota] | RateLimiter,
    *,
    key: str | bytes | Callable[..., str | bytes] = "",
    cost: int | Callable[..., int] = 1,
    wait: bool = False,
    timeout: float | None = None,
    name: str | None = None,
    **options: Any,
) -> Callable[[F], F]:
    """Limit how often a function is called; sync and async functions.

        @rate_limit("10/second", key=lambda user, words: user)
        async def search(user: str, words: str) -> list[str]: ...

    Args:
        quotas: what `RateLimiter` takes; or a limiter, which all functions that it decorates then share.
        key: whose limit a call is: a string, or a plain function that is called with the call's arguments as they are,
            by position or by name. What it raises goes to the caller. Default "": all calls share one limit.
        cost: units of a call, a number or a plain function of the call's arguments.
        wait: wait for the turn instead of refusing.
        timeout: seconds to wait at most; None: see `RateLimiter.acquire`. Only with `wait`.
        name: of the limiter; None is module and qualified name of the function.
        options: further options of `RateLimiter`, such as `store`.

    Returns:
        The decorator. The function gets an attribute `rate_limiter`.

    Raises:
        ConfigurationError: an option that makes no sense, or options beside a limiter that is made already.
        RateLimitedError: from the limited function, when the limit refuses; the function was not called.
    """
    if isinstance(quotas, RateLimiter):
        if name is not None or options:
            raise ConfigurationError(
                f"{', '.join(['name'] * (name is not None) + list(options))} must be given to the RateLimiter itself"
            )
        return BoundLimiter(quotas, key=key, cost=cost, wait=wait, timeout=timeout)
    if callable(quotas):
        raise ConfigurationError('rate_limit needs a quota: @rate_limit("10/second"), not @rate_limit')
    # Checked here and not at the first function: the message should point at the decorator's own line.
    probe = RateLimiter(quotas, name="rate_limit" if name is None else name, **(options | {"store": None}))
    BoundLimiter(probe, key=key, cost=cost, wait=wait, timeout=timeout)
    quotas = probe.quotas

    def decorate(function: F) -> F:
        check_limitable(function)
        limiter = RateLimiter(quotas, name=_name_of(function) if name is None else name, **options)
        return BoundLimiter(limiter, key=key, cost=cost, wait=wait, timeout=timeout)(function)

    return decorate


def _name_of(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
