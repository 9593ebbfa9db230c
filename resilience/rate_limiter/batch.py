"""Many callers, one trip: what is asked together, in the words of `plain.lua`, and what each caller gets. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from resilience.clock import Clock

from .decision import Standing

Operation: TypeAlias = Literal["acquire", "reserve", "peek", "refund", "requeue", "reset", "block", "replay"]

SHARDS: Final = 64
"""Hash tags over which keys are spread: on a cluster a script may touch the keys of one slot only, so this is what can
be asked together there."""


WORTH_A_TRIP: Final = 32
"""Keys from which on a batch need not wait for the one trip that is under way: the server works on one while the other
is written or read. With 100 callers in a circle that is a sixth more calls per second."""

MAX_BATCHES: Final = 80
"""Batches that may wait; whoever comes then is decided here, as in an outage, but it is none."""


class Limiter(Protocol):
    """What a trip must know of a limiter whose keys are in it."""

    def spec(self) -> str:
        """Give the rules in the words of the script."""

    def wire_keys(self, key: str) -> list[str]:
        """Give the names of `key` in the store."""

    def nows(self, server: int, ago: int) -> Sequence[int]:
        """Give the time of each rule at the moment when the store decided."""

    def learn(self, key: str, cost: int, words: Iterator[int], nows: Sequence[int]) -> tuple[int, list[Standing]]:
        """Take over what the store told of `key`."""


class Request(NamedTuple):
    """What one caller asks. Callers that ask the same of the same key share one item."""

    limiter: Limiter
    operation: Operation
    key: str
    cost: int
    extra: str = ""
    """One more number of the operation, or words: see `decide.lua`."""


class Told(NamedTuple):
    """What the store told of one item; `waits` of those who were put in a queue anew."""

    gave: int
    waits: Sequence[int]
    blocked: int
    standings: list[Standing]


_new = tuple.__new__  # a third of the time of a named tuple's own


class Unreachable:
    """Why the store told nothing; `certain` if it cannot have charged anything either."""

    __slots__ = ("cause", "certain")

    def __init__(self, cause: str, *, certain: bool) -> None:
        self.cause = cause
        self.certain = certain


class Bell(Protocol):
    """Wakes all callers of one run at once."""

    watched: bool
    """Whether one of them watches the time for all."""
    event: Any
    """What the others wait for."""

    def ring(self) -> None:
        """Wake them, from any thread."""

    async def watch(self, trio: Any, seconds: float) -> None:
        """Wait for that, but no longer than so many seconds, and then wake all."""


Wake: TypeAlias = "Callable[[Item], object]"
"""Called when the outcome of an item is there, by whatever thread made the trip."""

UNRANKED: Final = 1 << 62
"""The place of a caller who had left when the answer came."""


class Caller:
    """One caller of an item: how to wake it, and its place among those of the item when the answer came."""

    # Without a way to its item, when all is over: a circle of references would wait for the garbage collector.
    __slots__ = ("gone", "rank", "wake")

    def __init__(self, wake: Wake | None) -> None:
        self.wake = wake  # until the answer is there: it may hold the item
        self.rank = UNRANKED
        self.gone = False


class Item:
    """One request, and all callers who made it."""

    __slots__ = ("callers", "left", "outcome", "ranked", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.callers: list[Caller] = []
        self.left = 0
        """How many callers did not wait for the answer."""
        self.ranked = 0
        """How many callers still waited when the answer came."""
        self.outcome: Told | Unreachable | None = None

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self.outcome is not None

    def leave(self, caller: Caller) -> int:
        """Let `caller` wait no longer; gives the units that it was granted already."""
        caller.gone = True
        self.left += 1
        return self._taken_by(caller)

    def finish(self, outcome: Told | Unreachable) -> None:
        """Give everybody who still waits the answer, in the order in which they came."""
        self.outcome = outcome
        for caller in self.callers:
            if not caller.gone:
                caller.rank = self.ranked
                self.ranked += 1
                wake, caller.wake = caller.wake, None
                if wake is not None:
                    try:  # noqa: SIM105 - `suppress` takes longer than all the rest here
                        wake(self)
                    except Exception:  # noqa: BLE001, S110 - its task is being cancelled: it leaves by itself
                        pass

    def _taken_by(self, caller: Caller) -> int:
        """Count the units that `caller` was granted."""
        if not isinstance(self.outcome, Told) or caller.rank == UNRANKED:
            return 0
        if self.request.operation == "reserve":
            return self.request.cost if self.outcome.gave >= 0 else 0
        if self.request.operation != "acquire":
            return 0
        granted = self.outcome.gave
        if self.request.extra:  # the units of one caller
            return granted * self.request.cost
        return self.request.cost if caller.rank < granted else 0

    def excess(self) -> int:
        """Count the units that were granted to callers who did not wait for them."""
        if not self.callers or self.ranked == len(self.callers) or not isinstance(self.outcome, Told):
            return 0
        if self.request.operation == "reserve":
            return self.request.cost if self.outcome.gave >= 0 else 0
        if self.request.operation != "acquire":
            return 0
        granted = self.outcome.gave
        return granted * self.request.cost if self.request.extra else max(0, granted - self.ranked) * self.request.cost


class Batch:
    """What goes together in the next trip.

    Attributes:
        deadline: the moment by which the first who asked must have an answer, in seconds of the transport's clock.
        resent: whether it was sent a second time, because the first server refused to run it.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.resent = False
        self.items: list[Item] = []
        self.bells: dict[object, Bell] = {}
        """What wakes callers who wait for the whole batch, by the run in which they wait."""
        self._shared: dict[str, Item] = {}
        """The last item of each key that others may join. By the key alone, which is quicker to look up."""

    def __len__(self) -> int:
        return len(self.items)

    def join(self, request: Request, wake: Wake | None) -> tuple[Item, Caller]:
        """Add one caller, to the item of those who ask the same where that makes no difference."""
        _, operation, key, _, extra = request
        item = self._shared.get(key)
        if item is None or item.request != request:
            item = Item(request)
            self.items.append(item)
            if operation == "acquire" and not extra:
                self._shared[key] = item
        caller = Caller(wake)
        item.callers.append(caller)
        return item, caller

    def halve(self) -> Batch:
        """Keep the first half, and give a batch of the second."""
        half = Batch(self.deadline)
        half.resent = self.resent
        middle = (len(self.items) + 1) // 2
        half.items = self.items[middle:]
        del self.items[middle:]
        return half

    def encode(self) -> tuple[list[str], list[str | int]]:
        """Give the keys and the arguments after the first one; who has left meanwhile is not asked for."""
        groups: dict[tuple[Limiter, Operation, int, str], list[Item]] = {}
        last: object = None
        same: list[Item] = []
        for item in self.items:
            limiter, operation, _, cost, extra = item.request
            staying = len(item.callers) - item.left
            if staying or not item.left:
                if operation == "acquire" and not extra:
                    extra = "1" if staying == 1 else str(staying)
                group = limiter, operation, cost, extra
                if group != last:  # which takes half the time of looking it up
                    last, same = group, groups.setdefault(group, [])
                same.append(item)
        keys: list[str] = []
        arguments: list[str | int] = []
        sent: list[Item] = []
        for (limiter, operation, cost, extra), items in groups.items():
            arguments += (limiter.spec(), operation, cost, extra, len(items))
            for item in items:
                keys += limiter.wire_keys(item.request.key)
            sent += items
        # At the end, or nobody would be told if a function of the user's raises above. What comes later, if this is
        # sent again, joins nothing that is not in it any more.
        self.items, self._shared = sent, {}
        return keys, arguments

    def settle(self, reply: Iterator[int], server: int, ago: int) -> None:
        """Read the reply, and give everybody their part of it.

        Args:
            reply: the numbers after the head of the reply.
            server: the server's wall clock in microseconds, at the moment of the decision.
            ago: microseconds since the batch was sent. What was decided counts from then on, or a key would be refused
                here for the time of a trip longer than there.
        """
        last: Limiter | None = None
        nows: Sequence[int] = ()
        for item in self.items:
            limiter, operation, key, cost, _ = item.request
            if limiter is not last:
                last, nows = limiter, limiter.nows(server, ago)
            gave = next(reply)
            waits = list(islice(reply, gave)) if operation == "requeue" else ()
            blocked, standings = limiter.learn(key, cost, reply, nows)
            item.finish(_new(Told, (gave, waits, blocked, standings)))
        self.ring()

    def fail(self, cause: str, *, certain: bool) -> None:
        """Tell everybody that there is no answer."""
        outcome = Unreachable(cause, certain=certain)
        for item in self.items:
            if item.outcome is None:
                item.finish(outcome)
        self.ring()

    def ring(self) -> None:
        """Wake those who wait for the whole batch."""
        for bell in self.bells.values():
            bell.ring()


class Pending:
    """The batches that wait for their trips, in the order in which they began."""

    def __init__(self, most: int) -> None:
        self.batches: deque[Batch] = deque()
        self._most = most

    def join(self, request: Request, wake: Wake | None, clock: Clock, budget: float) -> tuple[Item, Caller]:
        """Add one caller to the last batch, or to a new one if that is full. A caller too many is answered at once."""
        if self.batches:
            batch = self.batches[-1]
            if len(batch.items) < self._most:
                return batch.join(request, wake)
        batch = Batch(clock() + budget)
        joined = batch.join(request, wake)
        if len(self.batches) < MAX_BATCHES:
            self.batches.append(batch)
        else:
            batch.fail("overload", certain=True)
        return joined

    def fail(self, cause: str) -> None:
        """Let nobody wait for a store that is out of reach."""
        batches, self.batches = self.batches, deque()
        for batch in batches:
            batch.fail(cause, certain=True)
