"""The circuit breaker: stop calling what keeps failing, and find out carefully when it is well again."""

from __future__ import annotations

from .breaker import CircuitBreaker, CircuitBreakerSnapshot
from .config import CircuitBreakerConfig, CircuitState, ExceptionFilter
from .registry import CircuitBreakerRegistry, circuit_breaker, circuit_breakers
from .wrap import Guard, Permit

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerRegistry",
    "CircuitBreakerSnapshot",
    "CircuitState",
    "ExceptionFilter",
    "Guard",
    "Permit",
    "circuit_breaker",
    "circuit_breakers",
]
