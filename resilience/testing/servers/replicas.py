"""A primary, its replica, and the sentinels that make one the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from resilience.checks import check_int, check_name, shown
from resilience.errors import ConfigurationError

from .group import Group
from .process import HOST, wait_until
from .redis import Option, Options, RedisServer, checked_options
from .resp import CommandError


class _Sentinel(RedisServer):
    """A server in the mode that watches others."""

    def _lines(self) -> Sequence[tuple[str, Option]]:
        return ()  # it gets its orders by command, and writes them down itself

    def _command_line(self, port: int) -> Sequence[str | Path]:
        return [*super()._command_line(port), "--sentinel"]


class RedisReplicaSet(Group):
    """A primary, one replica and sentinels, for tests of fail-overs.

    A context manager for one use: on entering, the sentinels know both servers; on leaving, all are killed.

    Args:
        binary: one of `find_redis_servers()`; it runs the sentinels too.
        directory: for the files of all.
        sentinels: how many; more than half of them must agree. Default 1, the quickest.
        service_name: under which the sentinels know the primary. Default "mymaster", as in most documentation.
        options: for primary and replica, as for `RedisServer`. With `requirepass` they use it among themselves.

    Raises:
        ConfigurationError: a value out of its range.

    Attributes:
        servers: both servers; which of them is the primary changes.
        sentinels: the sentinels, which are servers too and can be frozen and killed as well.
        service_name: as given.
    """

    def __init__(
        self,
        binary: Path | str,
        directory: Path | str,
        *,
        sentinels: int = 1,
        service_name: str = "mymaster",
        options: Options = (),
    ) -> None:
        check_int("sentinels", sentinels)
        check_name(service_name)
        if len(service_name.split()) != 1:
            raise ConfigurationError(f"service_name must be one word, got {shown(service_name)}")
        self._binary, self._directory = binary, Path(directory)
        self.service_name = service_name
        self._quorum = sentinels // 2 + 1
        pairs = checked_options(options)
        pairs += [("masterauth", value) for name, value in pairs if name == "requirepass"]
        self.servers = [RedisServer(binary, self._directory / f"server-{number}", options=pairs) for number in (1, 2)]
        self.sentinels: list[RedisServer] = [
            _Sentinel(binary, self._directory / f"sentinel-{number}") for number in range(1, sentinels + 1)
        ]

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel, as redis-py's `Sentinel` takes them."""
        return [(HOST, sentinel.port) for sentinel in self.sentinels]

    @property
    def primary(self) -> RedisServer:
        """The primary, as the first sentinel knows it.

        Raises:
            OSError: that sentinel does not answer.
        """
        return next(server for server in self.servers if self._follows(self.sentinels[0], server))

    @property
    def replica(self) -> RedisServer:
        """The other one.

        Raises:
            OSError: the first sentinel does not answer.
        """
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def fail_over(self, *, kill: bool = True) -> RedisServer:
        """Make the replica the primary, and wait until it is, for all sentinels that run.

        Takes about a second. Afterwards there is no replica until `restore`.

        Args:
            kill: kill the primary and let the sentinels notice; otherwise order them to. Then the old primary goes on
                to take writes, which will be lost: clients must ask the sentinels.

        Returns:
            The new primary.

        Raises:
            ServerError: it did not happen within 20 seconds: perhaps there was no replica in good health.
        """
        old, new = self.primary, self.replica
        if kill:
            old.kill()
        else:
            wait_until("a sentinel began the fail-over", self._order_fail_over)
        for sentinel in self.sentinels:
            if sentinel.is_running:
                wait_until("the sentinels agreed", self._follows, sentinel, new)
        wait_until("the new primary took its part", lambda: new.command("ROLE")[0] == "master")
        return new

    def restore(self) -> None:
        """Bring back what a test has frozen or killed, and wait until all is as at the start.

        The primary of now stays the primary; the other server becomes its replica and gets its data.

        Raises:
            ServerError: it did not work within 20 seconds.
        """
        for member in self._members():
            if member.is_running:
                member.thaw()
            else:
                member.start()
        primary, replica = self.primary, self.replica
        self._attach(replica, primary)
        for sentinel in self.sentinels:
            if not self._knows_all(sentinel):
                # It would look again after 10 seconds, also after SENTINEL RESET; at what is new it looks at once.
                self._introduce(sentinel, primary)
        self._wait_for_sentinels(primary)

    def _start(self) -> None:
        primary, replica = self.servers
        primary.start()
        replica.start()
        self._attach(replica, primary)
        for sentinel in self.sentinels:
            sentinel.start()
            self._introduce(sentinel, primary)
        self._wait_for_sentinels(primary)

    def _introduce(self, sentinel: RedisServer, primary: RedisServer) -> None:
        """Have a sentinel watch the primary as if it had never known it."""
        name = self.service_name
        with suppress(CommandError):  # it knows of none
            sentinel.command("SENTINEL", "REMOVE", name)
        sentinel.command("SENTINEL", "MONITOR", name, HOST, primary.port, self._quorum)
        sentinel.command("SENTINEL", "SET", name, "down-after-milliseconds", 500, "failover-timeout", 2000)
        if primary.password is not None:
            sentinel.command("SENTINEL", "SET", name, "auth-pass", primary.password)

    def _members(self) -> Iterable[RedisServer]:
        return [*self.sentinels, *self.servers]

    def _attach(self, replica: RedisServer, primary: RedisServer) -> None:
        replica.command("REPLICAOF", HOST, primary.port)
        replica.command("CONFIG", "REWRITE")  # it stays a replica when it is started again
        # Sentinels that meet a replica without its data look again after 10 seconds only.
        wait_until("the replica had its data", lambda: replica.info("replication").get("master_link_status") == "up")
        wait_until("it got news", lambda: "state=online" in primary.info("replication").get("slave0", ""))

    def _wait_for_sentinels(self, primary: RedisServer) -> None:
        # What a sentinel says of itself every 2 seconds; said for them, they find each other at once.
        greetings = [
            f"{HOST},{one.port},{one.command('SENTINEL', 'MYID')},0,{self.service_name},{HOST},{primary.port},0"
            for one in self.sentinels
        ]

        def know_all() -> bool:
            for greeting in greetings:
                primary.command("PUBLISH", "__sentinel__:hello", greeting)
            return all(self._knows_all(one) for one in self.sentinels)

        wait_until("the sentinels knew all", know_all)

    def _knows_all(self, sentinel: RedisServer) -> bool:
        primary = self._view_of_primary(sentinel)
        replicas = [_as_dict(told) for told in sentinel.command("SENTINEL", "REPLICAS", self.service_name)]
        return (
            primary["flags"] == "master"
            and primary["num-other-sentinels"] == str(len(self.sentinels) - 1)
            and [(one["flags"], one["master-link-status"]) for one in replicas] == [("slave", "ok")]
        )

    def _follows(self, sentinel: RedisServer, primary: RedisServer) -> bool:
        return self._view_of_primary(sentinel)["port"] == str(primary.port)

    def _view_of_primary(self, sentinel: RedisServer) -> dict[str, str]:
        # Not SENTINEL GET-MASTER-ADDR-BY-NAME, which names the new one while this, which redis-py asks, does not yet.
        return _as_dict(sentinel.command("SENTINEL", "MASTER", self.service_name))

    def _order_fail_over(self) -> bool:
        return bool(self.sentinels[0].command("SENTINEL", "FAILOVER", self.service_name) == "OK")

    def __repr__(self) -> str:
        return f"<RedisReplicaSet {self.service_name!r} of {self.servers} and {len(self.sentinels)} sentinels>"


def _as_dict(told: list[str]) -> dict[str, str]:
    return dict(zip(told[::2], told[1::2], strict=True))
