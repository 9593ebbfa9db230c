"""What a Python program needs to live with dependencies that fail.

Everything that most programs use stands here; the rest is in the rooms: `resilience.events`, `resilience.breaker`,
`resilience.policies`, `resilience.pool`, `resilience.rate_limiter`, `resilience.testing`. Names are loaded when they
are first used, so that `import resilience` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .breaker import (
        CircuitBreaker,
        CircuitBreakerConfig,
        CircuitBreakerRegistry,
        CircuitState,
        circuit_breaker,
        circuit_breakers,
    )
    from .errors import (
        BulkheadFullError,
        CallTimeoutError,
        CircuitOpenError,
        ConfigurationError,
        PoolClosedError,
        PoolDeadlockError,
        PoolFullError,
        PoolTimeoutError,
        PoolUsageError,
        RateLimitedError,
        RejectedError,
        ResilienceError,
    )
    from .events import Event, subscribe
    from .policies import (
        AdaptiveLimit,
        Bulkhead,
        Cache,
        Deadline,
        Fallback,
        Hedge,
        Pipeline,
        Retry,
        RetryBudget,
        Timeout,
    )
    from .pool import ConnectionPool, PoolConfig, create_pool
    from .rate_limiter import Decision, MemoryStore, Quota, RateLimiter, RedisStore, rate_limit
    from .windows import CountWindow, TimeWindow

_ROOM_OF = {
    name: room
    for room, names in {
        "breaker": "CircuitBreaker CircuitBreakerConfig CircuitBreakerRegistry CircuitState circuit_breaker "
        "circuit_breakers",
        "errors": "BulkheadFullError CallTimeoutError CircuitOpenError ConfigurationError PoolClosedError "
        "PoolDeadlockError PoolFullError PoolTimeoutError PoolUsageError RateLimitedError RejectedError "
        "ResilienceError",
        "events": "Event subscribe",
        "policies": "AdaptiveLimit Bulkhead Cache Deadline Fallback Hedge Pipeline Retry RetryBudget Timeout",
        "pool": "ConnectionPool PoolConfig create_pool",
        "rate_limiter": "Decision MemoryStore Quota RateLimiter RedisStore rate_limit",
        "windows": "CountWindow TimeWindow",
    }.items()
    for name in names.split()
}

_ROOMS = {"breaker", "clock", "errors", "events", "policies", "pool", "rate_limiter", "testing", "windows"}

__all__ = [
    "AdaptiveLimit",
    "Bulkhead",
    "BulkheadFullError",
    "Cache",
    "CallTimeoutError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerRegistry",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "ConnectionPool",
    "CountWindow",
    "Deadline",
    "Decision",
    "Event",
    "Fallback",
    "Hedge",
    "MemoryStore",
    "Pipeline",
    "PoolClosedError",
    "PoolConfig",
    "PoolDeadlockError",
    "PoolFullError",
    "PoolTimeoutError",
    "PoolUsageError",
    "Quota",
    "RateLimitedError",
    "RateLimiter",
    "RedisStore",
    "RejectedError",
    "ResilienceError",
    "Retry",
    "RetryBudget",
    "TimeWindow",
    "Timeout",
    "circuit_breaker",
    "circuit_breakers",
    "create_pool",
    "rate_limit",
    "subscribe",
]


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{room}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
