"""A Redis Cluster of primaries, and its slots on the move."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from resilience.checks import check_int
from resilience.errors import ConfigurationError

from .group import Group
from .process import HOST, ServerError, wait_until
from .redis import Options, RedisServer, checked_options
from .resp import facts

SLOTS = 16_384
_BATCH = 100  # keys per MIGRATE, which stops both servers for as long as it takes


class _Node(RedisServer):
    # The nodes talk to each other on their port + 10,000. That can be chosen, but not in Redis 6.2.
    bus_offsets = (10_000,)


class RedisCluster(Group):
    """A Redis Cluster of primaries without replicas, which share the slots evenly.

    A context manager for one use: on entering, all nodes say `cluster_state:ok`, which takes two seconds, because a
    node takes no part in its first two; on leaving, all are killed.

    Args:
        binary: one of `find_redis_servers()`.
        directory: for the files of all.
        primaries: how many nodes, from 3 on. Default 3.
        options: for each node, as for `RedisServer`. Defaults: `cluster-node-timeout 2000` (milliseconds).

    Raises:
        ConfigurationError: a value out of its range.

    Attributes:
        nodes: the servers. One that was killed may be started again: it has its slots still. With
            `restart(keep_data=False)`, too.
    """

    def __init__(self, binary: Path | str, directory: Path | str, *, primaries: int = 3, options: Options = ()) -> None:
        check_int("primaries", primaries, least=3)
        pairs = checked_options(options)
        # Outside the folder of the data: it is who the node is, and outlives them.
        pairs += [("cluster-enabled", "yes"), ("cluster-config-file", "../nodes.conf"), ("cluster-announce-ip", HOST)]
        if all(name != "cluster-node-timeout" for name, _ in pairs):
            pairs.append(("cluster-node-timeout", 2000))
        self._on_the_way: set[int] = set()
        self.nodes: list[RedisServer] = [
            _Node(binary, Path(directory) / f"node-{number}", options=pairs) for number in range(primaries)
        ]

    @property
    def ports(self) -> list[int]:
        """Of the nodes, on 127.0.0.1."""
        return [node.port for node in self.nodes]

    @property
    def urls(self) -> list[str]:
        """Of the nodes, each of which leads to all others."""
        return [node.url for node in self.nodes]

    def slot_of(self, key: str) -> int:
        """Give the slot of a key.

        Raises:
            OSError, ServerError: no node answers.
        """
        return int(self._any_node().command("CLUSTER", "KEYSLOT", key))

    def owner(self, slot: int) -> RedisServer:
        """Give the node that a slot belongs to. While it moves, that is the one it leaves.

        Raises:
            ConfigurationError: no such slot.
            OSError, ServerError: no node answers, or it knows of no owner.
        """
        return self.nodes[self._owner(slot, self._any_node())]

    def move_slot(self, slot: int, to: int) -> None:
        """Move a slot with its keys to another node, as `redis-cli --cluster reshard` does, and wait until all know.

        Args:
            slot: which.
            to: index of the node in `nodes`. The owner itself: nothing happens.

        Raises:
            ConfigurationError: no such slot or node.
            ServerError: it did not work.
        """
        if self.owner(slot) is not self._node(to):
            self.begin_move(slot, to).finish()

    def begin_move(self, slot: int, to: int) -> SlotMove:
        """Begin to move a slot, and stop in the middle: the old owner answers `ASK` for keys that it has no more.

        Use the result as a context manager, so that the move ends with the test.

        Args:
            slot: which.
            to: index of the node in `nodes`.

        Raises:
            ConfigurationError: no such slot or node, or the slot is there or on its way already.
            OSError, ServerError: one of the nodes refused, or did not answer.
        """
        target, source = self._node(to), self.owner(slot)
        if slot in self._on_the_way:
            raise ConfigurationError(f"slot must not be on its way already, got {slot}")
        if target is source:
            raise ConfigurationError(f"to must be another node than the owner of slot {slot}, got {to}")
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
        self._on_the_way.add(slot)
        return SlotMove(self, slot, source, target)

    def _end_move(self, move: SlotMove) -> None:
        """Give a slot to the target of its move."""
        # The target first: whoever is sent away by the source finds the slot there.
        others = [node for node in self.nodes if node not in (move.source, move.target)]
        for node in (move.target, move.source, *others):
            if node.is_running:
                node.command("CLUSTER", "SETSLOT", move.slot, "NODE", move.target.command("CLUSTER", "MYID"))
        index = self.nodes.index(move.target)
        for node in self.nodes:
            if node.is_running:
                wait_until(f"{node!r} knew where slot {move.slot} is", self._is_owner, index, move.slot, node)
        self._on_the_way.discard(move.slot)

    def wait_until_ok(self) -> None:
        """Wait until each node that runs says that the cluster is whole: every slot has an owner that answers.

        Raises:
            ServerError: it was not within 20 seconds.
        """
        for node in self.nodes:
            if node.is_running:
                wait_until(f"{node!r} said cluster_state:ok", self._is_ok, node)

    def restore(self) -> None:
        """Bring back the nodes that a test has frozen or killed, and wait until the cluster is whole.

        Raises:
            ServerError: it was not within 20 seconds.
        """
        for node in self.nodes:
            if node.is_running:
                node.thaw()
            else:
                node.start()
        self.wait_until_ok()

    def _start(self) -> None:
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes):
            # Each its own epoch from the start, and each meets all others: nothing to agree upon, nothing to pass on.
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, end = (SLOTS * part // len(self.nodes) for part in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTS", *range(first, end))
            for other in self.nodes[:number]:
                other.command("CLUSTER", "MEET", HOST, node.port)
        self.wait_until_ok()

    def _members(self) -> Iterable[RedisServer]:
        return self.nodes

    def _is_ok(self, node: RedisServer) -> bool:
        told = facts(node.command("CLUSTER", "INFO"))
        return (told["cluster_state"], told["cluster_slots_ok"], told["cluster_known_nodes"]) == (
            "ok",
            str(SLOTS),
            str(len(self.nodes)),
        )

    def _any_node(self) -> RedisServer:
        return next((node for node in self.nodes if node.is_running), self.nodes[0])

    def _node(self, index: int) -> RedisServer:
        check_int("to", index, least=0, most=len(self.nodes) - 1)
        return self.nodes[index]

    def _is_owner(self, index: int, slot: int, node: RedisServer) -> bool:
        return self._owner(slot, node) == index

    def _owner(self, slot: int, node: RedisServer) -> int:
        """Give the index of the owner of `slot` as `node` knows it."""
        check_int("slot", slot, least=0, most=SLOTS - 1)
        for first, last, (_, port, *_), *_ in node.command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.ports.index(port)
        raise ServerError(f"{node!r} knows no owner of slot {slot}")

    def __repr__(self) -> str:
        return f"<RedisCluster of {self.nodes}>"


class SlotMove:
    """A slot on its way from one node to another; given by `RedisCluster.begin_move`.

    A context manager: the move is finished on leaving.

    Attributes:
        slot: which.
        source: the node it leaves.
        target: the node it goes to.
        is_finished: whether it has arrived.
    """

    def __init__(self, cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> None:
        self._cluster = cluster
        self.slot, self.source, self.target = slot, source, target
        self.is_finished = False

    def move_keys(self, at_most: int | None = None) -> int:
        """Move keys that the slot holds at its source. While the slot moves, no new ones come into being there.

        Args:
            at_most: how many. None: all.

        Returns:
            How many were moved.

        Raises:
            ServerError, OSError: one of the nodes refused, or did not answer.
        """
        moved = 0
        while batch := self._keys(_BATCH if at_most is None else min(_BATCH, at_most - moved)):
            login = () if self.target.password is None else ("AUTH", self.target.password)
            target = (HOST, self.target.port, "", 0, 5000)  # no single key, database 0, 5,000 ms
            self.source.command("MIGRATE", *target, "REPLACE", *login, "KEYS", *batch, timeout=10.0)
            moved += len(batch)
        return moved

    def finish(self) -> None:
        """Move the keys that are left, give the slot to its target, and wait until all nodes know. Once more: nothing.

        Raises:
            ServerError, OSError: one of the nodes refused, did not answer, or did not learn of it within 20 seconds.
        """
        if self.is_finished:
            return
        self.move_keys()
        self._cluster._end_move(self)  # noqa: SLF001 - two halves of one thing
        self.is_finished = True

    def _keys(self, count: int) -> Any:
        return self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, count) if count else []

    def __enter__(self) -> Self:
        """Give the move."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the move."""
        self.finish()

    def __repr__(self) -> str:
        state = "finished" if self.is_finished else "on the way"
        return f"<SlotMove of {self.slot} from {self.source!r} to {self.target!r}, {state}>"
