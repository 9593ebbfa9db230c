"""One limiter's part of a shared store: what is asked there, and what its callers get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resilience.clock import Clock

from .batch import Batch, Item, Told, Unreachable
from .decision import Decision, Standing, never, passed, refused
from .fallback import Fallback, FallbackPolicy
from .quota import Quota
from .sliding_log import SlidingLog
from .store import SharedStore
from .telling import Teller


class Remote:
    """One limiter on a shared store.

    Everything that the store tells of a key is remembered for as long as it matters: a key that is refused there is
    refused here until it can pass, and no trip is made for it; and in an outage the limiter goes on from what it knew.

    Attributes:
        fallback: decides when the store does not.
        space: the last known state of each key.
    """

    def __init__(
        self,
        store: SharedStore,
        quotas: Sequence[Quota],
        *,
        teller: Teller,
        policy: FallbackPolicy,
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        self.name = teller.name
        self.fallback = Fallback(store, quotas, teller=teller, policy=policy, clock=clock, wall_clock=wall_clock)
        self.space = self.fallback.space
        self.rules = self.space.rules
        self._only = self.rules[0] if len(self.rules) == 1 else None
        self._store = store
        # Or the limiter "a:b" with the key "c" would be the limiter "a" with the key "b:c".
        self._stem = f":{self.name.replace('%', '%25').replace(':', '%3A')}:"
        # Where no key is marked by its place, all begin alike.
        self._start = None if store.is_sharded else f"{store.prefix}{self._stem}"
        self._logs = sum(isinstance(rule, SlidingLog) for rule in self.rules)
        store.add(self, [quota.per for quota in quotas])

    # --- what a trip asks ---

    def spec(self) -> str:
        """Give the rules in the words of the script."""
        wall = self.space.wall()
        return " ".join(rule.spec(wall) for rule in self.rules)

    def wire_keys(self, key: str) -> list[str]:
        """Give the names of `key` in the store: one for its numbers, one more for each log."""
        name = f"{self._store.tag(key)}{self._stem}{key}" if self._start is None else self._start + key
        # A key that is sent as it is may hold any printable character.
        return [name, *(f"{name}\0log{number}" for number in range(self._logs))] if self._logs else [name]

    def nows(self, server: int, ago: int) -> Sequence[int]:
        """Give the time of each rule at the moment when the store decided."""
        now = self.space.now() - ago
        if self.space.aligned:
            self.fallback.set_wall(server + ago)
            return [server if aligned else now for aligned in self.space.aligned]
        return [now] * len(self.rules)

    def learn(self, key: str, cost: int, words: Iterator[int], nows: Sequence[int]) -> tuple[int, list[Standing]]:
        """Take over what the store told of `key`; gives the microseconds of a block, and where the rules stand."""
        blocked = next(words)
        if self._only is not None:  # the common case, in half the time
            state, standing = self._only.told(words, nows[0], cost)
            standings = [standing]
        else:
            told = [rule.told(words, now, cost) for rule, now in zip(self.rules, nows, strict=True)]
            state, standings = tuple(state for state, _ in told), [standing for _, standing in told]
        self.space.learn(key, state)
        if blocked or self.space.blocks:
            self.space.block(key, blocked)
        return blocked, standings

    # --- what a caller gets ---

    def acquired(self, item: Item, rank: int) -> Decision:
        """Give the decision on a caller that asked for `cost` at once."""
        told = item.outcome
        if not isinstance(told, Told):
            return self.fallback.decide(item.request.key, item.request.cost, certain=_certain(told))
        granted, cost = told.gave, item.request.cost
        if rank < granted:
            behind = (granted - 1 - rank) * cost  # what those behind it got was still there for this one
            return passed(
                [_with_room(one, behind) for one in told.standings] if behind else told.standings, cost, "redis"
            )
        return self._refused(told, cost)

    def acquired_most(self, item: Item, asked: int) -> Decision:
        """Give the decision on a caller that asked for as many units as there are, `asked` at the most."""
        told = item.outcome
        if not isinstance(told, Told):
            return self.fallback.decide_most(item.request.key, asked, certain=_certain(told))
        granted = told.gave
        return passed(told.standings, granted, "redis") if granted or not asked else self._refused(told, 1)

    def reserved(self, item: Item, longest: int) -> tuple[int | None, Decision]:
        """Give the wait in microseconds and the decision on a caller that waits for its turn."""
        told = item.outcome
        if not isinstance(told, Told):
            return self.fallback.reserve(item.request.key, item.request.cost, longest, certain=_certain(told))
        wait = told.gave
        if wait >= 0:
            return wait, passed(told.standings, item.request.cost, "redis")
        return None, self._refused(told, item.request.cost)

    def peeked(self, item: Item) -> Decision:
        """Give the decision on a caller that only looks."""
        told = item.outcome
        if not isinstance(told, Told):
            return self.fallback.look(item.request.key, item.request.cost)
        return passed(told.standings, 0, "redis") if told.gave else self._refused(told, item.request.cost)

    def refunded(self, item: Item) -> Decision:
        """Tell what the limit is after a refund."""
        told = item.outcome
        return (
            passed(told.standings, 0, "redis")
            if isinstance(told, Told)
            else self.fallback.give_back(item.request.key, item.request.cost)
        )

    def _refused(self, told: Told, cost: int) -> Decision:
        if any(cost > rule.most for rule in self.rules):
            return never(self.rules, told.standings, "redis")
        return refused(told.standings, "redis", blocked=told.blocked)

    # --- after an outage ---

    def debts(self, max_batch: int) -> Iterator[Batch]:
        """Give what was admitted without the store and has not drained yet, in batches; it counts as paid."""
        return self.fallback.debts(self, max_batch)

    def unpaid(self, batch: Batch) -> None:
        """Note that the store may not know of a batch of debts after all."""
        self.fallback.unpaid(batch)

    def leave_outage(self, replayed: int) -> None:
        """Note that the store decides again."""
        self.fallback.leave_outage(replayed)


def _certain(outcome: Unreachable | None) -> bool:
    return outcome is None or outcome.certain


def _with_room(one: Standing, units: int) -> Standing:
    return one._replace(room=one.room + units)
