"""Many callers, one trip: what is asked together, in the words of `decide.lua`, and what each caller gets. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

from .decision import Rule, Standing

Operation: TypeAlias = Literal["acquire", "reserve", "peek", "refund", "requeue", "reset", "block", "replay"]

SHARDS: Final = 64
"""Hash tags over which keys are spread: on a cluster a script may touch the keys of one slot only, so this is what can
be asked together there."""


MAX_BATCHES: Final = 80
"""Batches that may wait; whoever comes then is decided here, as in an outage, but it is none."""


class Limiter(Protocol):
    """What a trip must know of a limiter whose keys are in it."""

    rules: Sequence[Rule]

    def spec(self) -> str: ...
    def wire_keys(self, key: str) -> list[str]: ...
    def nows(self, server: int, ago: int) -> Sequence[int]: ...
    def learn(self, key: str, states: Sequence[Any], blocked: int) -> None: ...


class Told:
    """What the store told of one item."""

    __slots__ = ("blocked", "gave", "standings")

    def __init__(self, gave: str, blocked: int, standings: list[Standing]) -> None:
        self.gave = gave
        self.blocked = blocked
        self.standings = standings


class Unreachable:
    """Why the store told nothing; `certain` if it cannot have charged anything either."""

    __slots__ = ("cause", "certain")

    def __init__(self, cause: str, *, certain: bool) -> None:
        self.cause = cause
        self.certain = certain


class Bell(Protocol):
    """Wakes all callers of one run at once."""

    def ring(self) -> None: ...


Wake: TypeAlias = "Callable[[Item], object]"
"""Called when the outcome of an item is there, by whatever thread made the trip."""

UNRANKED: Final = 1 << 62
"""The place of a caller who had left when the answer came."""


class Caller:
    """One caller of an item: how to wake it, and its place among those of the item when the answer came."""

    __slots__ = ("gone", "item", "rank", "wake")

    def __init__(self, item: Item, wake: Wake | None) -> None:
        self.item = item
        self.wake = wake
        self.rank = UNRANKED
        self.gone = False


class Item:
    """One key and what is asked of it; callers that ask the same of the same key share one."""

    __slots__ = ("callers", "cost", "extra", "key", "limiter", "operation", "outcome", "ranked")

    def __init__(self, limiter: Limiter, operation: Operation, key: str, cost: int, extra: str) -> None:
        self.limiter = limiter
        self.operation: Operation = operation
        self.key = key
        self.cost = cost
        self.extra = extra
        self.callers: list[Caller] = []
        self.ranked = 0
        """How many callers still waited when the answer came."""
        self.outcome: Told | Unreachable | None = None

    def live(self) -> int:
        """Count the callers who still wait."""
        return sum(not caller.gone for caller in self.callers)

    def finish(self, outcome: Told | Unreachable) -> None:
        """Give everybody who still waits the answer, in the order in which they came."""
        self.outcome = outcome
        for caller in self.callers:
            if not caller.gone:
                caller.rank = self.ranked
                self.ranked += 1
                if caller.wake is not None:
                    caller.wake(self)

    def taken_by(self, caller: Caller) -> int:
        """Count the units that `caller` was granted."""
        if not isinstance(self.outcome, Told) or caller.rank == UNRANKED:
            return 0
        if self.operation == "reserve":
            return self.cost if int(self.outcome.gave) >= 0 else 0
        if self.operation != "acquire":
            return 0
        granted = int(self.outcome.gave)
        if self.extra:  # the units of one caller
            return granted * self.cost
        return self.cost if caller.rank < granted else 0

    def excess(self) -> int:
        """Count the units that were granted to callers who did not wait for them."""
        if not self.callers or self.ranked == len(self.callers) or not isinstance(self.outcome, Told):
            return 0
        if self.operation == "reserve":
            return self.cost if int(self.outcome.gave) >= 0 else 0
        if self.operation != "acquire":
            return 0
        granted = int(self.outcome.gave)
        return granted * self.cost if self.extra else max(0, granted - self.ranked) * self.cost


class Batch:
    """What goes together in the next trip.

    Attributes:
        deadline: the moment by which the first who asked must have an answer, in seconds of the transport's clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.items: list[Item] = []
        self.bells: dict[object, Bell] = {}
        """What wakes callers who wait for the whole batch, by the run in which they wait."""
        self._shared: dict[tuple[Limiter, str, int], Item] = {}

    def __len__(self) -> int:
        return len(self.items)

    def join(
        self,
        limiter: Limiter,
        operation: Operation,
        key: str,
        cost: int,
        extra: str,
        wake: Wake | None,
    ) -> Caller:
        """Add one caller, to the item of those who ask the same where that makes no difference."""
        item = None
        shared = operation == "acquire" and not extra
        if shared:
            item = self._shared.get((limiter, key, cost))
        if item is None:
            item = Item(limiter, operation, key, cost, extra)
            self.items.append(item)
            if shared:
                self._shared[limiter, key, cost] = item
        caller = Caller(item, wake)
        item.callers.append(caller)
        return caller

    def encode(self) -> tuple[list[str], list[str | int]]:
        """Give the keys and the arguments after the first one; who has left meanwhile is not asked for."""
        groups: dict[tuple[Limiter, str, int, str], list[Item]] = {}
        self.items = [item for item in self.items if not item.callers or item.live()]
        for item in self.items:
            extra = item.extra
            if item.operation == "acquire" and not extra:
                extra = str(item.live() if item.callers else 1)
            groups.setdefault((item.limiter, item.operation, item.cost, extra), []).append(item)
        keys: list[str] = []
        arguments: list[str | int] = []
        self.items = []
        for (limiter, operation, cost, extra), items in groups.items():
            arguments += (limiter.spec(), operation, cost, extra, len(items))
            for item in items:
                keys += limiter.wire_keys(item.key)
            self.items += items
        return keys, arguments

    def settle(self, reply: Iterator[str], server: int, ago: int) -> None:
        """Read the reply, and give everybody their part of it.

        Args:
            reply: the numbers after the head of the reply.
            server: the server's wall clock in microseconds, at the moment of the decision.
            ago: microseconds since the batch was sent. What was decided counts from then on, or a key would be refused
                here for the time of a trip longer than there.
        """
        times: dict[Limiter, Sequence[int]] = {}
        for item in self.items:
            limiter = item.limiter
            nows = times.get(limiter)
            if nows is None:
                nows = times[limiter] = limiter.nows(server, ago)
            gave, blocked = next(reply), int(next(reply))
            numbers = map(int, reply)
            states, standings = [], []
            for rule, now in zip(limiter.rules, nows, strict=True):
                state, standing = rule.told(numbers, now, item.cost)
                states.append(state)
                standings.append(standing)
            limiter.learn(item.key, states, blocked)
            item.finish(Told(gave, blocked, standings))
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

    def join(
        self,
        limiter: Limiter,
        operation: Operation,
        key: str,
        cost: int,
        extra: str,
        wake: Wake | None,
        deadline: float,
    ) -> tuple[Caller, Batch]:
        """Add one caller to the last batch, or to a new one if that is full. A caller too many is answered at once."""
        batch = self.batches[-1] if self.batches else None
        if batch is None or len(batch) >= self._most:
            if len(self.batches) >= MAX_BATCHES:
                overload = Batch(deadline)
                caller = overload.join(limiter, operation, key, cost, extra, wake)
                overload.fail("overload", certain=True)
                return caller, overload
            batch = Batch(deadline)
            self.batches.append(batch)
        return batch.join(limiter, operation, key, cost, extra, wake), batch

    def fail(self, cause: str) -> None:
        """Let nobody wait for a store that is out of reach."""
        batches, self.batches = self.batches, deque()
        for batch in batches:
            batch.fail(cause, certain=True)
