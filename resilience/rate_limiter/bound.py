"""A limiter that knows whose limit a call is, and what it costs: around functions, and in pipelines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast

from resilience.checks import check_function, check_int, check_number, code_of, is_async, shown
from resilience.errors import ConfigurationError, RateLimitedError

from .decision import Decision

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_COST: Final = 1_000_000_000


class Limits(Protocol):
    """What is asked of a limiter here."""

    @property
    def name(self) -> str:
        """Give its name."""

    async def try_acquire(self, key: str | bytes, cost: int) -> Decision:
        """Take units if they are there."""

    def try_acquire_sync(self, key: str | bytes, cost: int) -> Decision:
        """Take units if they are there."""

    async def acquire(self, key: str | bytes, cost: int, *, timeout: float | None) -> Decision:  # noqa: ASYNC109 - as the limiter has it
        """Take units, waiting for them."""

    def acquire_sync(self, key: str | bytes, cost: int, *, timeout: float | None) -> Decision:
        """Take units, waiting for them."""


class BoundLimiter:
    """A limiter that knows whose limit a call is, and what it costs: a decorator, and a policy with `call`.

    Made by `RateLimiter.bound` and `rate_limit`.
    """

    def __init__(
        self,
        limiter: Limits,
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
        check_limitable(function)
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


def check_limitable(function: object) -> None:
    """Refuse to limit what is no function, or cannot wait.

    Raises:
        ConfigurationError: says what to do instead.
    """
    if isinstance(function, staticmethod | classmethod):
        raise ConfigurationError(f"a rate limit is for functions: put it below @{type(function).__name__}, not above")
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(f"a rate limit is for functions, got {shown(function)}")
    if inspect.isasyncgenfunction(code_of(function)):
        raise ConfigurationError(
            f"a rate limit cannot wait in the call of an async generator: limit what iterates over {shown(function)}"
        )
