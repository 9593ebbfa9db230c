"""The connection pool: lends connections that work, and loses none."""

from __future__ import annotations

from .config import PoolConfig
from .lease import Acquire, Lease
from .pool import ConnectionPool, PoolHealth, PoolStats

__all__ = ["Acquire", "ConnectionPool", "Lease", "PoolConfig", "PoolHealth", "PoolStats"]
