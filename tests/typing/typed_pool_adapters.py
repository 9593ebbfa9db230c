"""What a type checker knows of pools of known drivers: a URL is read too late for it, an annotation is not."""

from __future__ import annotations

from typing import Any, assert_type

import aiosqlite
import psycopg
import redis.asyncio
from psycopg.rows import TupleRow

from resilience.pool import Adapter, ConnectionPool, create_pool
from resilience.pool.adapters.postgres_psycopg import psycopg_adapter
from resilience.pool.adapters.redis import redis_adapter
from resilience.pool.adapters.sqlite import sqlite_adapter
from resilience.pool.adapters.tcp import PooledStream, tcp_adapter

assert_type(create_pool("sqlite:///file"), ConnectionPool[Any])
annotated: ConnectionPool[aiosqlite.Connection] = create_pool("sqlite:///file", max_size=3)

assert_type(sqlite_adapter("sqlite:///file", connect_options={}), Adapter[aiosqlite.Connection])
assert_type(
    psycopg_adapter("postgresql+psycopg://host/db", connect_options={}, reset_query="DISCARD ALL"),
    Adapter[psycopg.AsyncConnection[TupleRow]],
)
assert_type(redis_adapter("redis://host", connect_options={}), Adapter[redis.asyncio.Redis])
assert_type(tcp_adapter("tcp://host:80", connect_options={}), Adapter[PooledStream])


async def borrow() -> None:
    async with annotated.acquire() as connection:
        assert_type(connection, aiosqlite.Connection)
