"""The usual order, and the short forms of its policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from resilience.breaker import CircuitBreaker, CircuitBreakerConfig, circuit_breakers
from resilience.checks import shown
from resilience.errors import ConfigurationError
from resilience.pool import ConnectionPool
from resilience.rate_limiter import Quota, RateLimiter
from resilience.rate_limiter.bound import BoundLimiter

from .bulkhead import Bulkhead
from .cache import Cache
from .fallback import Fallback
from .order import ORDER, kind_of
from .retry import Retry
from .timeout import Deadline, Timeout

NOT_GIVEN: Final = object()
_CACHED: Final = 1_000  # results, of a cache that was given as seconds


def standard_policies(name: str | None, given: dict[str, Any]) -> tuple[Any, ...]:
    """Give the policies that were asked for, outermost first.

    Args:
        name: of the pipeline; what has no name of its own gets it.
        given: by kind: a policy, or its short form; `NOT_GIVEN` and None leave it out (a fallback may be None).

    Raises:
        ConfigurationError: neither a policy of that kind nor its short form.
    """
    makers = {
        "fallback": _fallback,
        "deadline": _or_short("deadline", Deadline, int | float, "a Deadline, or seconds", Deadline),
        "cache": _or_short(
            "cache", Cache, int | float, "a Cache, or seconds", lambda ttl: Cache(ttl, max_size=_CACHED)
        ),
        "shed": _only("shed", ("shed", "throttle"), "a LoadShed or a Throttle"),
        "retry": _or_short("retry", Retry, int, "a Retry, or a number of attempts", Retry),
        "hedge": _only("hedge", ("hedge",), "a Hedge: it must be told that the call is idempotent"),
        "breaker": lambda value: _breaker(value, name),
        "limiter": lambda value: _limiter(value, name),
        "bulkhead": _bulkhead,
        "pool": _only("pool", ("pool",), "a ConnectionPool"),
        "timeout": _or_short("timeout", Timeout, int | float, "a Timeout, or seconds", Timeout),
    }
    return tuple(
        makers[kind](given[kind])
        for kind in ORDER
        if given.get(kind, NOT_GIVEN) is not NOT_GIVEN and (given[kind] is not None or kind == "fallback")
    )


def _fallback(value: Any) -> Fallback:
    return value if isinstance(value, Fallback) else Fallback(value)


def _or_short(field: str, kind: type, short: Any, what: str, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, bool) or not isinstance(value, short):
            raise ConfigurationError(f"{field} must be {what}, got {shown(value)}")
        return make(value)

    return check


def _bulkhead(value: Any) -> Any:
    if kind_of(value) == "bulkhead":
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(
            f"bulkhead must be a Bulkhead, an AdaptiveLimit, or a number of concurrent calls, got {shown(value)}"
        )
    return Bulkhead(value)


def _only(field: str, kinds: tuple[str, ...], what: str) -> Any:
    def check(value: Any) -> Any:
        # pool.inject is a method of the pool.
        if isinstance(getattr(value, "__self__", None), ConnectionPool):
            value = value.__self__
        if kind_of(value) not in kinds or isinstance(value, type):
            raise ConfigurationError(f"{field} must be {what}, got {shown(value)}")
        return value

    return check


def _breaker(value: Any, name: str | None) -> CircuitBreaker:
    if isinstance(value, CircuitBreaker):
        return value
    if isinstance(value, str):
        return circuit_breakers.get(value)
    if isinstance(value, CircuitBreakerConfig) and name is not None:
        return circuit_breakers.get(name, value)
    if value is True and name is not None:
        return circuit_breakers.get(name)
    raise ConfigurationError(
        "breaker must be a CircuitBreaker, its name, or, where the pipeline has a name, a configuration or True, "
        f"got {shown(value)}"
    )


def _limiter(value: Any, name: str | None) -> BoundLimiter:
    if isinstance(value, BoundLimiter):
        return value
    if isinstance(value, RateLimiter):
        return value.bound()
    if isinstance(value, str | Quota):
        return RateLimiter(value, name=name or "pipeline").bound()
    raise ConfigurationError(f'limiter must be limiter.bound(...) or quotas such as "10/second", got {shown(value)}')
