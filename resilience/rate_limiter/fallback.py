"""How a limiter decides while the shared store is out of reach: bounded, and made good when it is back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

from resilience.clock import Clock
from resilience.events import FallbackEntered, FallbackLeft
from resilience.forks import renew_locks_in_child

from .batch import Batch, Limiter, Request
from .decision import Decision, Rule, never, refused
from .memory import MemoryStore, Space, Terms
from .quota import MICROSECONDS, Quota
from .store import SharedStore
from .telling import Teller

FallbackPolicy: TypeAlias = Literal["share", "open", "closed"]

MAX_KNOWN: Final = 10_000
"""Keys whose last state is remembered, to answer denials and to go on in an outage; further ones go into a sketch."""


class Fallback:
    """The decisions of one limiter without its store.

    In an outage this instance has a share of each limit: 1 / N of it, N being the instances that lived when the store
    was last asked. A unit weighs N times as much as otherwise, so that what was known of a key in the store is at once
    its state here. What is admitted meanwhile is noted, and charged to the store when it is back.

    Attributes:
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
        self.policy = policy
        self.space: Space = MemoryStore(MAX_KNOWN).space(teller.name, quotas, clock, wall_clock, None)
        self.rules = self.space.rules
        self._store = store
        self._teller = teller
        # What this instance admitted by itself, without what was known before: the store must be told of those keys.
        self._owed = MemoryStore(MAX_KNOWN, spill=False).space(teller.name, quotas, clock, wall_clock, None)
        self._shares: tuple[int, tuple[Rule, ...], Terms] = (0, self.rules, ())
        self._blocked: dict[str, None] = {}  # whose block the store has not been told of
        self._outage = 0  # the number of the one that this limiter has told of
        # Guards `_outage` and `_blocked`. Nothing of the user's runs under it.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.RLock()

    def set_wall(self, microseconds: int) -> None:
        """Take over what the store's wall clock shows now."""
        self._owed.wall_offset = self.space.wall_offset = microseconds - self.space.own_wall()

    def decide(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Decide by the policy, because the store cannot."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=certain)
        _, rules, terms = self._share()
        if (refusal := self._too_large(key, cost, rules)) is not None:
            return refusal if certain else refusal._replace(certain=False)
        decision = self.space.acquire(key, cost, "fallback", rules, terms)
        if decision.granted:
            self._owed.owe(key, decision.granted, rules)
        return decision if certain else decision._replace(certain=False)

    def decide_most(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Grant by the policy what can be granted, because the store cannot."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=certain)
        rules = self._share()[1]
        decision = self.space.at_once(key, cost, rules, "fallback", least=min(1, cost))
        if decision.granted:
            self._owed.owe(key, decision.granted, rules)
        return decision if certain else decision._replace(certain=False)

    def reserve(self, key: str, cost: int, longest: int, *, certain: bool = True) -> tuple[int | None, Decision]:
        """Let a caller wait for its turn in this instance's share."""
        self._enter_outage()
        if self.policy != "share":
            decision = self._by_policy(cost, certain=certain)
            return (0 if decision else None), decision
        rules = self._share()[1]
        if (refusal := self._too_large(key, cost, rules)) is not None:
            return None, refusal if certain else refusal._replace(certain=False)
        wait, decision = self.space.reserve(key, cost, longest, rules, "fallback")
        if wait is not None and cost:
            self._owed.owe(key, cost, rules)
        return wait, decision if certain else decision._replace(certain=False)

    def look(self, key: str, cost: int) -> Decision:
        """Tell what a call would get."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=True)._replace(granted=0)
        rules = self._share()[1]
        return self._too_large(key, cost, rules) or self.space.peek(key, cost, rules, "fallback")

    def give_back(self, key: str, cost: int) -> Decision:
        """Give units back to this instance's share."""
        self._enter_outage()
        rules = self._share()[1]
        self._owed.refund(key, cost, rules, "fallback")
        return self.space.refund(key, cost, rules, "fallback")

    def requeue(self, key: str, back: int, costs: Sequence[int]) -> list[int]:
        """Let callers who wait for their turn in this instance's share move up."""
        return self.space.requeue(key, back, costs, self._share()[1])

    def block(self, key: str) -> None:
        """Note that the store must be told whether and for how long `key` is blocked here."""
        with self._lock:
            if len(self._blocked) >= MAX_KNOWN and key not in self._blocked:
                del self._blocked[next(iter(self._blocked))]  # the oldest gives way
            self._blocked[key] = None

    def _share(self) -> tuple[int, tuple[Rule, ...], Terms]:
        """Give the number of instances, and the rules of one of them."""
        instances = self._store.instances
        if self._shares[0] != instances:
            rules = tuple(rule.shared(instances) for rule in self.rules)
            self._shares = instances, rules, self.space.terms(rules)
        return self._shares

    def _too_large(self, key: str, cost: int, rules: Sequence[Rule]) -> Decision | None:
        """Refuse until the store is back what can pass there, but never within a share; or what can never pass."""
        if cost <= 1 or all(cost <= rule.most for rule in rules):  # one unit always fits
            return None
        now = self.space.now()
        levels = self.space.standings(key, cost, now)
        if any(cost > rule.most for rule in self.rules):
            return never(self.rules, levels, "fallback")
        return refused(levels, "fallback", blocked=round(self._store.next_probe() * MICROSECONDS))

    def _by_policy(self, cost: int, *, certain: bool) -> Decision:
        quota = self.rules[0].quota
        if self.policy == "open":
            left = max(0, quota.capacity - cost)
            return Decision(True, quota.limit, left, None, 0.0, quota, "fallback", certain, granted=cost)
        return Decision(False, quota.limit, 0, self._store.next_probe(), 0.0, quota, "fallback", certain)

    # --- the outage ---

    def _enter_outage(self) -> None:
        store = self._store
        store.asked()
        if store.reachable or self._outage == store.outages:  # reachable: an overload of this process, no outage
            return
        with self._lock:
            if self._outage == store.outages:  # another thread was first
                return
            self._outage = store.outages
        if FallbackEntered.sinks:
            self._teller.tell(FallbackEntered, cause=store.cause, instances=store.instances, policy=self.policy)

    def leave_outage(self, replayed: int) -> None:
        """Forget what only counted during the outage, and tell that it is over."""
        self.space.clear()
        if self._outage == self._store.outages:
            self._outage = 0
            if FallbackLeft.sinks:
                self._teller.tell(FallbackLeft, duration=self._store.lost_for(), replayed=replayed)

    def debts(self, limiter: Limiter, max_batch: int) -> Iterator[Batch]:
        """Give what is used of each key that was admitted without the store and has not drained yet, in batches.

        What is given is owed no more, so that it cannot be confused with what is admitted meanwhile; see `unpaid`. The
        cost in a request is the units of this instance's own.
        """
        with self._lock:
            blocked, self._blocked = self._blocked, {}
        for keys in self._together(blocked, max_batch):
            batch = Batch(0.0)
            for key in keys:
                batch.join(Request(limiter, "block", key, 0, str(self.space.blocked_for(key))), None)
            yield batch
        for keys in self._together(self._owed.names(), max_batch):
            batch = Batch(0.0)
            for key in keys:
                if units := self._taken(key):
                    # All of the limit that is used if the others admitted as much as this one did. The store makes sure
                    # of that, and so of the most that any instance tells of, which is no less than what all have used
                    # together: their mean.
                    words = " ".join(map(str, self.space.levels(key)))
                    batch.join(Request(limiter, "replay", key, units, words), None)
            if len(batch):
                yield batch

    def _together(self, keys: Iterable[str], max_batch: int) -> Iterator[list[str]]:
        """Give the keys in lists that one call of the script may have."""
        shards: dict[int, list[str]] = {}
        for key in keys:
            shards.setdefault(self._store.shard_of(key), []).append(key)
        for together in shards.values():
            for first in range(0, len(together), max_batch):
                yield together[first : first + max_batch]

    def unpaid(self, batch: Batch) -> None:
        """Note that the store may not know of a batch of debts after all."""
        rules = self._share()[1]
        for item in batch.items:
            if item.request.operation == "block":
                self.block(item.request.key)
            else:
                self._owed.owe(item.request.key, item.request.cost, rules)

    def _taken(self, key: str) -> int:
        """Give the units of `key` that are owed, rounded up, and owe them no more."""
        owed, rules = self._owed.take(key), self._share()[1]
        return max(-(-level // rule.unit) for level, rule in zip(owed, rules, strict=True))
