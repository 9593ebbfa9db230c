"""The connection pool: lends connections that work, and loses none."""

from __future__ import annotations

from resilience.forecast import Forecast

from .adapters import Adapter
from .budget import Budget
from .config import PoolConfig
from .create import create_pool, register_adapter
from .lease import Acquire, Lease
from .pool import ConnectionPool
from .sizing import Advice
from .stats import PoolHealth, PoolStats

__all__ = [
    "Acquire",
    "Adapter",
    "Advice",
    "Budget",
    "ConnectionPool",
    "Forecast",
    "Lease",
    "PoolConfig",
    "PoolHealth",
    "PoolStats",
    "create_pool",
    "register_adapter",
]
