"""The rate limiter: so many calls in so much time, for all instances together, and right when Redis is not there."""

from __future__ import annotations

from .bound import BoundLimiter
from .decision import Decision
from .decorate import rate_limit
from .headers import rate_limit_headers, retry_after_header
from .limiter import RateLimiter
from .memory import MemoryStore
from .quota import Quota, parse_quotas
from .redis import RedisStore

__all__ = [
    "BoundLimiter",
    "Decision",
    "MemoryStore",
    "Quota",
    "RateLimiter",
    "RedisStore",
    "parse_quotas",
    "rate_limit",
    "rate_limit_headers",
    "retry_after_header",
]
