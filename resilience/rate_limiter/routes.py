"""Which node of a cluster has a key, and what follows from the answers of nodes. It says what to do; lines do it.

redis-py has clients of a cluster, which are not used. They ask for the allowance to follow a move on another connection
than the call that needs it, close all connections when one node fails, give up a slot that moves after sixteen tries in
a millisecond, sleep for a quarter of a second while the cluster is down, and do not tell whether a call was sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from redis.crc import key_slot

from .lines import ELSEWHERE, Arguments, Refused, put_last
from .target import Address

PAUSE: Final = 0.001
"""Seconds before what was refused twice is asked again; twice as long each time."""
LONGEST_PAUSE: Final = 0.05


@dataclass(slots=True)
class Ask:
    """Run the script at a node; `asking` if it was named by the owner, in the middle of a move.

    Attributes:
        sent: set by the line: whether the node may have run it, and did not say that it did not.
    """

    address: Address
    keys: list[str]
    arguments: Arguments
    asking: bool
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Slots:
    """Ask a node who has which slots, within so many seconds."""

    address: Address
    seconds: float


@dataclass(frozen=True, slots=True)
class Learn:
    """Find out who has which slots, by `Routes.learn`, unless somebody has since `version`."""

    version: int


Step: TypeAlias = "Ask | Slots | Learn | float"
"""What to do next; a number is seconds to sleep. The answer is sent in, an error thrown."""

Steps: TypeAlias = Generator[Step, Any, Any]


class Routes:
    """What is known of a cluster.

    Attributes:
        version: how often it was asked who has which slots.
        nodes: the addresses worth a connection.
    """

    def __init__(self, first: Sequence[Address], remap: Callable[[Address], Address] | None = None) -> None:
        self.version = 0
        self._first = tuple(first)
        self._remap = remap
        self._guides: list[Address] = list(first)
        """Whom to ask where slots are; who did not answer comes last."""
        self._starts: list[int] = []
        self._ranges: list[tuple[int, Address]] = []
        """The last slot of each range, and who has it; in the order of `_starts`."""
        self._moved: dict[int, Address] = {}

    @property
    def nodes(self) -> set[Address]:
        """Give the addresses worth a connection."""
        return {address for _, address in self._ranges} | set(self._moved.values())

    def call(self, keys: list[str], arguments: Arguments, left: Callable[[], float]) -> Steps:
        """Run the script where the keys are, and give its reply.

        What a node refused to run is sent again, to whom it names, until no time is left. While a slot moves, its two
        nodes run nothing that has keys on both or new ones beside others: then the items are asked one by one.
        """
        try:
            return (yield from self._call(keys, arguments, left, alone=False))
        except Refused as refusal:
            if refusal.code != "TRYAGAIN":
                raise
            parts = list(items(keys, arguments))
            if len(parts) == 1:
                return (yield from self._call(keys, arguments, left, alone=True))
        replies = []
        for some_keys, some_arguments in parts:
            replies.append((yield from self._call(some_keys, some_arguments, left, alone=True)))
        return joined(replies)

    def _call(self, keys: list[str], arguments: Arguments, left: Callable[[], float], *, alone: bool) -> Steps:
        slot = key_slot(keys[0].encode("utf-8", "surrogatepass"))
        named: Address | None = None
        refusals = 0
        while True:
            address = named or (yield from self._owner(slot, left))
            step = Ask(address, keys, arguments, asking=named is not None)
            try:
                return (yield step)
            except Refused as error:
                if error.code not in ELSEWHERE or (error.code == "TRYAGAIN" and not alone):
                    raise
                named = self._named_by(error, slot, address)
                refusal: Exception = error
            except Exception as error:
                self._distrust(address)
                if step.sent or (yield from self._owner(slot, left)) == address:  # nobody has taken its place
                    self._distrust(address)
                    raise
                named, refusal = None, error
            refusals += 1
            if refusals > 1:
                pause = min(PAUSE * 2**refusals, LONGEST_PAUSE)
                if left() <= pause:
                    raise refusal
                yield pause
            del refusal  # nothing of what failed lives on

    def _named_by(self, refusal: Refused, slot: int, teller: Address) -> Address | None:
        """Take in that a node refused to run a call, and give who it says should."""
        if refusal.code in ("MOVED", "ASK"):  # "MOVED 3999 127.0.0.1:6381"
            host, _, port = str(refusal).split()[2].rpartition(":")
            address = self._address(host, int(port), teller)
            if refusal.code == "ASK":
                return address
            self._moved[slot] = address
        elif refusal.code != "TRYAGAIN":
            self._distrust(teller)
        return None

    def _owner(self, slot: int, left: Callable[[], float]) -> Generator[Step, Any, Address]:
        while True:
            found = self._known(slot)
            if found is None:
                yield Learn(self.version)
                found = self._known(slot)
            if found is not None:
                return found
            self._distrust(self._guides[0])
            if left() <= LONGEST_PAUSE:
                raise Refused(f"CLUSTERDOWN slot {slot} has no owner")
            yield LONGEST_PAUSE

    def _known(self, slot: int) -> Address | None:
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        place = bisect_right(self._starts, slot) - 1
        if place < 0 or self._ranges[place][0] < slot:
            return None
        return self._ranges[place][1]

    def learn(self, left: Callable[[], float]) -> Steps:
        """Ask one node after the other who has which slots, until one tells."""
        guides = list(self._guides)
        failure: Exception = Refused("CLUSTERDOWN no node knows of any slot")
        for number, address in enumerate(guides):
            try:
                told = yield Slots(address, left() / (len(guides) - number))  # none may use up the time of all
            except Exception as error:  # noqa: BLE001 - down, no cluster, a password of its own: the next may know
                failure = error
            else:
                if told:
                    self._take(told, address)
                    return
            self._distrust(address)
        raise failure

    def _take(self, told: Any, teller: Address) -> None:
        ranges = []
        for first, last, (host, port, *_), *_ in sorted(told):
            name = host.decode() if isinstance(host, bytes) else host
            ranges.append((first, (last, self._address(name, port, teller))))
        self._starts = [first for first, _ in ranges]
        self._ranges = [one for _, one in ranges]
        self._moved.clear()
        known = dict.fromkeys(address for _, address in self._ranges)
        self._guides = list(dict.fromkeys([teller, *known, *self._first]))
        self.version += 1

    def _address(self, host: str | None, port: int, teller: Address) -> Address:
        """Give where a node is that another one told of; one that does not know its name is at the teller's."""
        address = (host if host and host != "?" else teller[0]), int(port)
        return address if self._remap is None else self._remap(address)

    def suspect(self) -> None:
        """Ask anew who has which slots, before the next call: somebody did not answer, and may have been replaced."""
        self._starts, self._ranges = [], []
        self._moved.clear()

    def _distrust(self, address: Address) -> None:
        """Ask anew, and this node last."""
        self.suspect()
        put_last(self._guides, address)


def items(keys: list[str], arguments: Arguments) -> Iterator[tuple[list[str], Arguments]]:
    """Take a call of the script (see `plain.lua`) apart into calls of one item each; the note of the instance last."""
    place = 0
    for at in range(1, len(arguments), 5):
        spec, operation, cost, extra, many = arguments[at : at + 5]
        width = 1 + str(spec).split().count("l")  # one more key for each sliding log
        for _ in range(int(many)):
            yield keys[place : place + width], ["", spec, operation, cost, extra, 1]
            place += width
    if arguments[0]:
        yield keys[place:], [arguments[0]]


def joined(replies: Sequence[bytes]) -> bytes:
    """Give the reply of the whole call: the time of the first, the instances that the last one counted, all items."""
    words = [reply.split() for reply in replies]
    return b" ".join([words[0][0], words[-1][1], *(word for one in words for word in one[2:])])
