"""Limits around functions: the decorator, and a limiter bound to a key, for pipelines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

from resilience.checks import check_function, check_int, check_name, check_number, code_of, is_async, shown
from resilience.errors import ConfigurationError, RateLimitedError

from .decision import Decision
from .limiter import MAX_COST, RateLimiter
from .quota import Quota

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class BoundLimiter:
    """A limiter that knows whose limit a call is, and what it costs: a decorator, and a policy with `call`.

    Made by `RateLimiter.bound` and `rate_limit`.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        *,
        key: str | bytes | Callable[..., str | bytes] = "",
        cost: int | Callable[..., int] = 1,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(key, str | bytes):
            check_function("key", key)
        if callable(cost):
            check_function("cost", cost)
        else:
            check_int("cost", cost, least=0, most=MAX_COST)
        if not isinstance(wait, bool):
            raise ConfigurationError(f"wait must be True or False, got {shown(wait)}")
        if timeout is not None:
            check_number("timeout", timeout, least=0)
            if not wait:
                raise ConfigurationError("timeout must be None without wait=True: nobody waits")
        self.limiter = limiter
        self._key = key
        self._cost = cost
        self._wait = wait
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<BoundLimiter of {self.limiter!r}>"

    def __call__(self, function: F) -> F:
        """Limit `function`, a def or async def function whose kind and types it keeps.

        Raises:
            ConfigurationError: not a function, or an async generator function, whose call cannot wait: limit what
                iterates over it.
            RateLimitedError: from the limited function; it was not called.

        Cancellation: while it waits for its turn, the units are given back.
        """
        _check_limitable(function)
        wrapper: Any = functools.update_wrapper(self._limited(function), function)
        wrapper.rate_limiter = self.limiter
        return cast("F", wrapper)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(*args, **kwargs)` if the limit admits it, and return what it returns.

        For an async function that is an awaitable. The key and cost functions get the same arguments.

        Raises:
            ConfigurationError: `function` is not callable.
            RateLimitedError: the limit refuses; `function` was not called.
        """
        if not callable(function):
            raise ConfigurationError(f"function must be callable, got {shown(function)}: pass the function itself")
        return cast("T", self._limited(function)(*args, **kwargs))

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if is_async(function):

            async def limited(*args: Any, **kwargs: Any) -> Any:
                await self._admit(args, kwargs)
                return await function(*args, **kwargs)

            return limited

        def limited_sync(*args: Any, **kwargs: Any) -> Any:
            self._admit_sync(args, kwargs)
            return function(*args, **kwargs)

        return limited_sync

    async def _admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        key, cost = self._asked(args, kwargs)
        if self._wait:
            await self.limiter.acquire(key, cost, timeout=self._timeout)
        else:
            self._check(await self.limiter.try_acquire(key, cost))

    def _admit_sync(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        key, cost = self._asked(args, kwargs)
        if self._wait:
            self.limiter.acquire_sync(key, cost, timeout=self._timeout)
        else:
            self._check(self.limiter.try_acquire_sync(key, cost))

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | bytes, int]:
        key = self._key(*args, **kwargs) if callable(self._key) else self._key
        cost = self._cost(*args, **kwargs) if callable(self._cost) else self._cost
        return key, cost

    def _check(self, decision: Decision) -> None:
        if not decision.allowed:
            reason = "never" if decision.never else "limit"
            raise RateLimitedError(self.limiter.name, reason, decision.retry_after, decision)


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

        @rate_limit("10/second", key=lambda user, **_: user)
        async def search(user: str, words: str) -> list[str]: ...

    Args:
        quotas: what `RateLimiter` takes; or a limiter, which all functions that it decorates then share.
        key: whose limit a call is: a string, or a plain function of the call's arguments. What it raises goes to the
            caller. Default "": all calls share one limit.
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
    probe = RateLimiter(quotas, name="rate_limit" if name is None else name, **options)
    BoundLimiter(probe, key=key, cost=cost, wait=wait, timeout=timeout)
    quotas = probe.quotas

    def decorate(function: F) -> F:
        _check_limitable(function)
        limiter = RateLimiter(quotas, name=_name_of(function) if name is None else name, **options)
        return BoundLimiter(limiter, key=key, cost=cost, wait=wait, timeout=timeout)(function)

    return decorate


def _name_of(function: Any) -> str:
    name = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
    check_name(name)
    return name


def _check_limitable(function: object) -> None:
    if isinstance(function, staticmethod | classmethod):
        raise ConfigurationError(f"a rate limit is for functions: put it below @{type(function).__name__}, not above")
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(f"a rate limit is for functions, got {shown(function)}")
    if inspect.isasyncgenfunction(code_of(function)):
        raise ConfigurationError(
            f"a rate limit cannot wait in the call of the async generator {shown(function)}: limit what iterates over it"
        )
