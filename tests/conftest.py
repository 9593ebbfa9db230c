"""What every test starts from: no log lines, a clock that stands still until it is told to move, real servers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resilience.events import disable_logging
from resilience.testing import VirtualClock
from resilience.testing.servers import (
    PostgresServer,
    RedisCluster,
    RedisReplicaSet,
    RedisServer,
    TcpProxy,
    find_postgres_servers,
    find_redis_servers,
)

disable_logging()

REDIS_SERVERS = find_redis_servers()
NO_REDIS = pytest.param("none", marks=pytest.mark.skip("no redis server here"))
USED: dict[str, list[str]] = {"redis": [], "postgresql": []}


REAL = frozenset({"redis_server", "any_redis", "redis_cluster", "redis_sentinel", "postgres_server", "tcp_proxy"})
"""Fixtures of servers in real time."""
REAL_ROOMS = (
    "tests/benchmarks/",
    "tests/cli/",
    "tests/rate_limiter/test_cluster",
    "tests/rate_limiter/test_outages",
    "tests/rate_limiter/test_sentinel",
    "tests/rate_limiter/test_trouble",
    "tests/stories/",
    "tests/testing/test_servers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests in real time, against servers on a shared machine, a second attempt; those in virtual time get none.

    One that needed it is told as a rerun in the summary, where a race of ours would be seen to come again and again.
    """
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())) or item.nodeid.startswith(REAL_ROOMS):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, names in USED.items():
        terminalreporter.write_line(f"{kind} servers used: {', '.join(names) or 'none'}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist, whose summary nobody sees
        session.config.workeroutput["used"] = USED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for kind, names in getattr(node, "workeroutput", {}).get("used", {}).items():
        for name in names:
            note(kind, name)


def note(kind: str, name: str) -> None:
    if name not in USED[kind]:
        USED[kind].append(name)


@pytest.fixture
def clock() -> VirtualClock:
    """A clock for tests without a loop: `clock.advance(seconds)`."""
    return VirtualClock(autojump=False)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Both backends, on virtual time."""
    return request.param, VirtualClock().backend_options(request.param)


@pytest.fixture(params=REDIS_SERVERS or [NO_REDIS])
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """Each Redis and Valkey server in turn."""
    note("redis", request.param)
    return REDIS_SERVERS[request.param]


@pytest.fixture
def redis_binaries() -> dict[str, Path]:
    """All Redis and Valkey servers by name, for tests that start them side by side."""
    if not REDIS_SERVERS:
        pytest.skip("no redis server here")
    for name in REDIS_SERVERS:
        note("redis", name)
    return REDIS_SERVERS


@pytest.fixture
def redis_server(redis_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own for each test, which may do with it what it likes; each binary in turn."""
    with RedisServer(redis_binary, tmp_path / "redis") as server:
        yield server


def first_redis() -> Path:
    if not REDIS_SERVERS:
        pytest.skip("no redis server here")
    name, binary = next(iter(REDIS_SERVERS.items()))
    note("redis", name)
    return binary


@pytest.fixture(scope="module")
def redis_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(first_redis(), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def any_redis(redis_of_the_module: RedisServer) -> RedisServer:
    """One server for the tests of a module, emptied before each: for tests that leave it as it is."""
    redis_of_the_module.command("FLUSHALL")
    redis_of_the_module.command("SCRIPT", "FLUSH")
    return redis_of_the_module


@pytest.fixture(scope="module")
def cluster_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(first_redis(), tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(cluster_of_the_module: RedisCluster) -> RedisCluster:
    """Three primaries for the tests of a module, whole and emptied before each."""
    cluster_of_the_module.restore()
    for node in cluster_of_the_module.nodes:
        node.command("FLUSHALL")
    return cluster_of_the_module


@pytest.fixture(scope="module")
def sentinel_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisReplicaSet]:
    with RedisReplicaSet(first_redis(), tmp_path_factory.mktemp("sentinel")) as replica_set:
        yield replica_set


@pytest.fixture
def redis_sentinel(sentinel_of_the_module: RedisReplicaSet) -> RedisReplicaSet:
    """A primary, a replica and a sentinel for the tests of a module, whole and emptied before each."""
    sentinel_of_the_module.restore()
    sentinel_of_the_module.primary.command("FLUSHALL")
    return sentinel_of_the_module


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[..., TcpProxy]]:
    """Makes proxies, which end with the test: `tcp_proxy(server.port, latency=0.01)`."""
    with ExitStack() as proxies:

        def make(target_port: int, **options: Any) -> TcpProxy:
            return proxies.enter_context(TcpProxy(target_port, **options))

        yield make


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the tests of a module."""
    if not find_postgres_servers():
        pytest.skip("no postgresql server here")
    note("postgresql", *find_postgres_servers())
    # Not pytest's folder: as root, the server belongs to somebody who may not enter that.
    with tempfile.TemporaryDirectory() as directory, PostgresServer(directory) as server:
        yield server
