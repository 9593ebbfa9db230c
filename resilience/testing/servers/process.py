"""The process of a test server: on a port of its own, frozen and killed at will, and ended with its owner."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

from resilience.checks import shown
from resilience.errors import ConfigurationError, ResilienceError

HOST = "127.0.0.1"
DEADLINE = 20.0  # seconds for anything that a healthy server does in a fraction of one
PAUSE = 0.005  # seconds between two looks at what takes a while
LAUNCHES = 5

# Below what systems give to outgoing connections (from 32,768 on Linux, 49,152 elsewhere), the bus of a cluster node
# 10,000 above included. Otherwise, while a server is down, its port may be taken by some client, and a client that
# tries that very port may even connect to itself.
_PORTS = range(10_000, 22_000)
_chance = random.SystemRandom()  # programs that seed alike, or forked, must not try the same ports

# Kills the server once the pipe to its owner breaks, for whatever reason: no exit handler runs after SIGKILL.
_WATCH = 'read -r _; kill -KILL "$1"'


class ServerError(ResilienceError):
    """A test server did not do what it was asked to: it did not start, is not running, or did not agree in time."""


def pick_port(*offsets: int) -> int:
    """Give a port that is free now, as are those at `offsets` above it.

    Raises:
        ServerError: there seems to be none.
    """
    for _ in range(1000):
        port = _chance.choice(_PORTS)
        if all(_is_free(port + offset) for offset in (0, *offsets)):
            return port
    raise ServerError(f"no free port found from {_PORTS.start} to {_PORTS.stop}")


def _is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def wait_until(what: str, is_so: Callable[..., object], *args: object, deadline: float = DEADLINE) -> None:
    """Wait until `is_so(*args)` is true; a server that cannot be asked yet counts as no.

    Args:
        what: completes "in vain waited until ...".
        is_so: asked every few milliseconds.
        args: for it.
        deadline: seconds.

    Raises:
        ServerError: the deadline passed.
    """
    ends = time.monotonic() + deadline
    while True:
        try:
            if is_so(*args):
                return
            trouble = ""
        except (OSError, ServerError) as error:
            trouble = f": {error}"
        if time.monotonic() > ends:
            raise ServerError(f"waited in vain for {deadline:g} s until {what}{trouble}")
        time.sleep(PAUSE)


def check_executable(field: str, path: object) -> Path:
    """Give `path` as a Path.

    Raises:
        ConfigurationError: it is not an executable file.
    """
    if not isinstance(path, str | Path) or not os.access(path, os.X_OK) or not Path(path).is_file():
        raise ConfigurationError(f"{field} must be an executable file, got {shown(path)}")
    return Path(path)


class Server(ABC):
    """What all test servers share; the subclasses know how their server is launched, asked and shut down."""

    bus_offsets: ClassVar[Sequence[int]] = ()
    _user: int | None = None  # whom the process belongs to; None: us

    def __init__(self, directory: Path | str) -> None:
        if not isinstance(directory, str | Path):
            raise ConfigurationError(f"directory must be a path, got {shown(directory)}")
        self.directory = Path(directory).absolute()
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command_line(self, port: int) -> Sequence[str | Path]:
        """Write what the server needs to find, and give how it is launched."""

    @abstractmethod
    def _answers(self, port: int) -> bool:
        """Tell whether our process, and not somebody else on the port, is ready for clients."""

    @abstractmethod
    def stop(self) -> None:
        """Shut the server down in its own way."""

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1: chosen at its first start, and kept from then on.

        Raises:
            ServerError: it was never started.
        """
        if self._port is None:
            raise ServerError(f"{self!r} has no port before its first start")
        return self._port

    @property
    def has_started(self) -> bool:
        """Whether it has been started ever."""
        return self._port is not None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ServerError: it is not running.
        """
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The file with what the server wrote, over all its starts."""
        return self.directory / "server.log"

    def start(self) -> None:
        """Start the server and wait until it answers, and has read its data.

        Raises:
            ServerError: it runs already, ended at once, or did not answer within 20 seconds; the message has the end
                of its log. It is not running then, unless it was before.
        """
        if self.is_running:
            raise ServerError(f"{self!r} runs already")
        self.kill()  # forget one that has ended by itself
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._port is not None:
            self._launch(self._port)
            return
        for launch in range(1, LAUNCHES + 1):
            port = pick_port(*self.bus_offsets)
            try:
                self._launch(port)
            except ServerError:
                # Another process may have taken the port since it was picked.
                if launch == LAUNCHES or "in use" not in self._log_end():
                    raise
            else:
                self._port = port
                return

    def _launch(self, port: int) -> None:
        argv = self._command_line(port)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a binary that the test names
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C is for the tests; the server ends after them
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        try:
            self._watcher = subprocess.Popen(  # noqa: S603 - our own script
                ["/bin/sh", "-c", _WATCH, "watch", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C that ends the tests must not end their watcher first
            )
            wait_until("it answered", self._answers_or_has_ended, port)
            self._running()
        except BaseException as error:
            self.kill()
            if isinstance(error, ServerError):
                raise ServerError(f"{self!r} did not start: {error}\n{self._log_end()}") from None
            raise

    def _answers_or_has_ended(self, port: int) -> bool:
        return not self.is_running or self._answers(port)

    def _log_end(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process.

        Raises:
            ServerError: it is not running.
        """
        self._running().send_signal(number)

    def freeze(self) -> None:
        """Stop the process in its tracks: the system still accepts connections for it, but nothing answers.

        On return it has stopped. Once more does no harm.

        Raises:
            ServerError: it is not running.
        """
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not on every system; there it stops very soon
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen process go on: it answers what has arrived meanwhile. One that is not frozen stays as it is.

        Raises:
            ServerError: it is not running.
        """
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process without a warning (SIGKILL), frozen or not, and wait for it. One that is gone stays so."""
        if self._watcher is not None:
            # Before the server, so that it never kills another process that got the same id.
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _wait_for_end(self) -> None:
        """Wait for a server that was told to end; kill it if it does not."""
        if self._process is not None:
            try:
                self._process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerError(f"{self!r} had to be killed: it did not end within {DEADLINE:g} s") from None
        self.kill()  # forget it, and end its watcher

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"{self!r} is not running")
        return self._process

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server."""
        self.kill()

    def __repr__(self) -> str:
        place = "nowhere yet" if self._port is None else f"on port {self._port}"
        state = "running" if self.is_running else "not running"
        return f"<{type(self).__name__} {place}, {state}>"
