"""A limiter that knows whose limit a call is, and what it costs: around functions, and in pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Final, ParamSpec, Protocol, TypeVar, cast

from resilience.checks import check_function, check_int, check_number, code_of, is_async, shown
from resilience.errors import ConfigurationError, RateLimitedError
from resilience.stack import ADMITTED, Admission, dressed, signature_of

from .decision import Decision

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_COST: Final = 1_000_000_000


class Limits(Protocol):
    """What is asked of a limiter here."""

    def refusal(self, key: str | bytes, decision: Decision) -> RateLimitedError:
        """Make the error of a refused call."""

    def admission(self, key: str | bytes, cost: int) -> Admission:
        """Tell what is known of a call."""

    async def try_acquire(self, key: str | bytes, cost: int) -> Decision:
        """Take units if they are there."""

    def try_acquire_sync(self, key: str | bytes, cost: int) -> Decision:
        """Take units if they are there."""

    async def acquire(self, key: str | bytes, cost: int, *, timeout: float | None) -> Decision:  # noqa: ASYNC109 - as the limiter has it
        """Take units, waiting for them."""

    def acquire_sync(self, key: str | bytes, cost: int, *, timeout: float | None) -> Decision:
        """Take units, waiting for them."""


class HasSignature(Protocol):
    """What is asked of the place in a pipeline."""

    def signature(self) -> inspect.Signature | None:
        """Give the parameters that calls have there."""


class BoundLimiter:
    """A limiter that knows whose limit a call is, and what it costs: a decorator, and a policy with `call`.

    Made by `RateLimiter.bound` and `rate_limit`.
    """

    kind: ClassVar[str] = "limiter"
    """What it is among policies."""

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
        self.key = key
        self.cost = cost
        self.wait = wait
        self.timeout = timeout

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
        wrapper: Any = dressed(self._limited(function, signature_of(function)), function, self)
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
        return cast("T", self._limited(function, signature_of(function))(*args, **kwargs))

    def around(self, function: Callable[..., Any], site: HasSignature) -> Callable[..., Any]:
        """Give a function that calls `function` within its limit, without its name and docs: for pipelines."""
        check_limitable(function)
        return self._limited(function, site.signature())

    def admission(self) -> Admission:
        """Tell what is known, without a trip to a store, of whether a call would be let in now.

        Where key or cost depend on the call, or calls wait for their turn, nothing is known: allowed.
        """
        if self.wait or callable(self.key) or callable(self.cost):
            return ADMITTED
        return self.limiter.admission(self.key, self.cost)

    def _limited(self, function: Callable[..., Any], signature: inspect.Signature | None) -> Callable[..., Any]:
        key_of, cost_of = _reader(self.key, signature), _reader(self.cost, signature)
        if is_async(function):

            async def limited(*args: Any, **kwargs: Any) -> Any:
                await self._admit(key_of(args, kwargs), cost_of(args, kwargs))
                return await function(*args, **kwargs)

            return limited

        def limited_sync(*args: Any, **kwargs: Any) -> Any:
            self._admit_sync(key_of(args, kwargs), cost_of(args, kwargs))
            return function(*args, **kwargs)

        return limited_sync

    async def _admit(self, key: str | bytes, cost: int) -> None:
        if self.wait:
            await self.limiter.acquire(key, cost, timeout=self.timeout)
            return
        decision = await self.limiter.try_acquire(key, cost)
        if not decision.allowed:
            raise self.limiter.refusal(key, decision)

    def _admit_sync(self, key: str | bytes, cost: int) -> None:
        if self.wait:
            self.limiter.acquire_sync(key, cost, timeout=self.timeout)
            return
        decision = self.limiter.try_acquire_sync(key, cost)
        if not decision.allowed:
            raise self.limiter.refusal(key, decision)


def _reader(what: Any, signature: inspect.Signature | None) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Give the function that reads a key or a cost from the arguments of a call of a function with this signature.

    A function that takes `**others` gets every argument by its name, defaults included, however the caller passed it:
    `key=lambda user, **_: user` holds for `search("alice", "owls")` as well. Any other gets them as they are.
    """
    if not callable(what):
        return lambda args, kwargs: what  # noqa: ARG005 - the same for every call
    if signature is None or not _takes_names(what):
        return lambda args, kwargs: what(*args, **kwargs)
    others = [one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD]

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        named = dict(bound.arguments)
        for name in others:
            named |= named.pop(name)
        return what(**named)

    return read


def _takes_names(function: Callable[..., Any]) -> bool:
    signature = signature_of(function)
    kinds = [] if signature is None else [one.kind for one in signature.parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.POSITIONAL_ONLY not in kinds


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
