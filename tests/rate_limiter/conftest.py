"""Machines that ask the arithmetic in Python, or the script on a server, the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis

from resilience.rate_limiter import Quota
from resilience.testing.servers import RedisServer, find_redis_servers
from tests.rate_limiter.machines import Machine, MemoryMachine, ScriptMachine

Quotas: TypeAlias = str | Quota | Iterable[Quota]

SERVERS = find_redis_servers()


class Clients:
    """Clients of servers by name, each started when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clients: dict[str, redis.Redis] = {}
        self._opened = ExitStack()

    def of(self, name: str) -> redis.Redis:
        """Give a client of a server that holds nothing."""
        if name not in self._clients:
            server = self._opened.enter_context(RedisServer(SERVERS[name], self._directory / name))
            self._clients[name] = self._opened.enter_context(redis.Redis(port=server.port, protocol=2))
        self._clients[name].flushall()
        return self._clients[name]

    def close(self) -> None:
        self._opened.close()


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    found = Clients(tmp_path_factory.mktemp("redis"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def client(clients: Clients) -> redis.Redis:
    """A client of a server that holds nothing."""
    if not SERVERS:
        pytest.skip("no redis server here")
    return clients.of(next(iter(SERVERS)))


@pytest.fixture
def script_machine(client: redis.Redis) -> Callable[..., ScriptMachine]:
    """Makes machines that ask the script on a server."""

    def make(quotas: Quotas, **options: Any) -> ScriptMachine:
        return ScriptMachine(quotas, client, **options)

    return make


@pytest.fixture(params=["memory", *SERVERS, "remembering"] if SERVERS else ["memory"])
def machine(request: pytest.FixtureRequest, clients: Clients) -> Callable[..., Machine]:
    """Makes machines: in memory, by the script on each server, and by the script with what was learned from it."""
    if request.param == "memory":
        return MemoryMachine
    remembers = request.param == "remembering"
    name = next(iter(SERVERS)) if remembers else request.param

    def make(quotas: Quotas, **options: Any) -> Machine:
        return ScriptMachine(quotas, clients.of(name), remembers=remembers, **options)

    return make
