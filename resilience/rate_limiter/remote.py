"""One limiter's part of a shared store: what its keys are called there, what is known of them, and the outage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from resilience.clock import Clock
from resilience.events import FallbackEntered, FallbackLeft

from .batch import Batch, Caller, Told, Unreachable
from .decision import SECONDS, Decision, Rule, Standing, never, passed, refused
from .memory import MemoryStore, Space
from .quota import Quota
from .redis import RedisStore, tag_of
from .sliding_log import SlidingLog
from .telling import Teller

FallbackPolicy: TypeAlias = Literal["share", "open", "closed"]

MAX_KNOWN: Final = 10_000
"""Keys whose last state is remembered, to answer denials and to go on in an outage; further ones go into a sketch."""


class Remote:
    """One limiter on a `RedisStore`.

    Everything that the store tells of a key is remembered for as long as it matters: a key that is refused there is
    refused here until it can pass (no trip is made for it), and in an outage the limiter goes on from what it knew.

    In an outage this instance has a share of each limit: 1 / N of it, N being the instances that lived when the store
    was last asked. A unit weighs N times as much as otherwise, so that what was known of a key in the store is at once
    its state here. What is admitted meanwhile is noted, and charged to the store when it is back.
    """

    def __init__(
        self,
        store: RedisStore,
        name: str,
        quotas: Sequence[Quota],
        policy: FallbackPolicy,
        clock: Clock,
        wall_clock: Clock,
        teller: Teller,
    ) -> None:
        self.store = store
        self.name = name
        self.policy = policy
        self._teller = teller
        self.space: Space = MemoryStore(MAX_KNOWN).space(name, quotas, clock, wall_clock)
        self.rules = self.space.rules
        self._owed = MemoryStore(MAX_KNOWN, spill=False).space(name, quotas, clock, wall_clock)
        self._shares: tuple[int, tuple[Rule, ...]] = (1, self.rules)
        self._outage = 0  # the number of the one that this limiter has told of
        self._logs = sum(isinstance(rule, SlidingLog) for rule in self.rules)
        self._prefix = store.prefix
        store.limiters.add(self)

    # --- what a trip asks ---

    def spec(self) -> str:
        """Give the rules in the words of the script."""
        wall = self.space.wall()
        return " ".join(rule.spec(wall) for rule in self.rules)

    def wire_keys(self, key: str) -> list[str]:
        """Give the names of `key` in the store: one for its numbers, one more for each log."""
        name = f"{self._prefix}:{{{tag_of(key):02x}}}:{self.name}:{key}"
        return [name, *(f"{name}:log{number}" for number in range(self._logs))] if self._logs else [name]

    def nows(self, server: int, ago: int) -> Sequence[int]:
        """Give the time of each rule at the moment when the store decided."""
        now = self.space.now() - ago
        if self.space.aligned:
            self.space.wall_offset += server - (self.space.wall() - ago)
            self._owed.wall_offset = self.space.wall_offset
            return [server if aligned else now for aligned in self.space.aligned]
        return [now] * len(self.rules)

    def learn(self, key: str, states: Sequence[Any], blocked: int) -> None:
        """Take over what the store told."""
        self.space.learn(key, states)
        self.space.block(key, blocked)

    # --- what a caller gets ---

    def locally(self, key: str, cost: int) -> Decision | None:
        """Give the refusal that needs no trip, if there is one."""
        return self.space.refusal(key, cost)

    def acquired(self, caller: Caller) -> Decision:
        """Give the decision on a caller that asked for `cost` at once."""
        item, told = caller.item, caller.item.outcome
        if not isinstance(told, Told):
            return self.decide(item.key, item.cost, certain=_certain(told))
        granted, cost = int(told.gave), item.cost
        if caller.rank < granted:
            behind = (granted - 1 - caller.rank) * cost  # what those behind it got was still there for this one
            return passed([_with_room(one, behind) for one in told.standings] if behind else told.standings, cost, "redis")
        return self._refused(told, cost)

    def acquired_most(self, caller: Caller, asked: int) -> Decision:
        """Give the decision on a caller that asked for as many units as there are, `asked` at the most."""
        item, told = caller.item, caller.item.outcome
        if not isinstance(told, Told):
            return self.decide_most(item.key, asked, certain=_certain(told))
        granted = int(told.gave)
        return passed(told.standings, granted, "redis") if granted or not asked else self._refused(told, 1)

    def reserved(self, caller: Caller, longest: int) -> tuple[int | None, Decision]:
        """Give the wait in microseconds and the decision on a caller that waits for its turn."""
        item, told = caller.item, caller.item.outcome
        if not isinstance(told, Told):
            return self.reserve(item.key, item.cost, longest, certain=_certain(told))
        wait = int(told.gave)
        if wait >= 0:
            return wait, passed(told.standings, item.cost, "redis")
        return None, self._refused(told, item.cost)

    def peeked(self, caller: Caller) -> Decision:
        """Give the decision on a caller that only looks."""
        item, told = caller.item, caller.item.outcome
        if not isinstance(told, Told):
            return self.look(item.key, item.cost)
        return passed(told.standings, 0, "redis") if told.gave == "1" else self._refused(told, item.cost)

    def refunded(self, caller: Caller) -> Decision:
        """Tell what the limit is after a refund."""
        item, told = caller.item, caller.item.outcome
        return passed(told.standings, 0, "redis") if isinstance(told, Told) else self.give_back(item.key, item.cost)

    def _refused(self, told: Told, cost: int) -> Decision:
        if any(cost > rule.most for rule in self.rules):
            return never(self.rules, told.standings, "redis")
        return refused(told.standings, "redis", blocked=told.blocked)

    # --- without the store ---

    def decide(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Decide by the policy, because the store cannot."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=certain)
        rules = self._share()
        if (refusal := self._too_large(key, cost, rules)) is not None:
            return refusal
        decision = self.space.at_once(key, cost, rules, "fallback")
        if decision.granted and certain:  # else the store may have been charged: it must not be twice
            self._owed.owe(key, decision.granted, rules)
        return decision if certain else decision._replace(certain=False)

    def decide_most(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Grant by the policy what can be granted, because the store cannot."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=certain)
        rules = self._share()
        decision = self.space.at_once(key, cost, rules, "fallback", least=min(1, cost))
        if decision.granted and certain:
            self._owed.owe(key, decision.granted, rules)
        return decision if certain else decision._replace(certain=False)

    def reserve(
        self, key: str, cost: int, longest: int, *, certain: bool = True
    ) -> tuple[int | None, Decision]:
        """Let a caller wait for its turn in this instance's share."""
        self._enter_outage()
        if self.policy != "share":
            decision = self._by_policy(cost, certain=certain)
            return (0 if decision else None), decision
        rules = self._share()
        if (refusal := self._too_large(key, cost, rules)) is not None:
            return None, refusal
        wait, decision = self.space.reserve(key, cost, longest, rules, "fallback")
        if wait is not None and certain and cost:
            self._owed.owe(key, cost, rules)
        return wait, decision if certain else decision._replace(certain=False)

    def look(self, key: str, cost: int) -> Decision:
        """Tell what a call would get."""
        self._enter_outage()
        if self.policy != "share":
            return self._by_policy(cost, certain=True)._replace(granted=0)
        rules = self._share()
        return self._too_large(key, cost, rules) or self.space.peek(key, cost, rules, "fallback")

    def give_back(self, key: str, cost: int) -> Decision:
        """Give units back to this instance's share."""
        self._enter_outage()
        rules = self._share()
        self._owed.refund(key, cost, rules, "fallback")
        return self.space.refund(key, cost, rules, "fallback")

    def requeue(self, key: str, back: int, costs: Sequence[int]) -> list[int]:
        """Let callers who wait for their turn in this instance's share move up."""
        return self.space.requeue(key, back, costs, self._share())

    def _share(self) -> tuple[Rule, ...]:
        instances = self.store.instances
        if self._shares[0] != instances:
            self._shares = instances, tuple(rule.shared(instances) for rule in self.rules)
        return self._shares[1]

    def _too_large(self, key: str, cost: int, rules: Sequence[Rule]) -> Decision | None:
        """Refuse until the store is back what can pass there, but never within a share; or what can never pass."""
        if all(cost <= rule.most for rule in rules):
            return None
        now = self.space.now()
        levels = self.space.standings(key, cost, now)
        if any(cost > rule.most for rule in self.rules):
            return never(self.rules, levels, "fallback")
        return refused(levels, "fallback", blocked=round(self.store.next_probe() / SECONDS))

    def _by_policy(self, cost: int, *, certain: bool) -> Decision:
        quota = self.rules[0].quota
        if self.policy == "open":
            left = max(0, quota.capacity - cost)
            return Decision(True, quota.limit, left, None, 0.0, quota, "fallback", certain, granted=cost)
        return Decision(False, quota.limit, 0, self.store.next_probe(), 0.0, quota, "fallback", certain)

    # --- the outage ---

    def _enter_outage(self) -> None:
        store = self.store
        store.asked()
        if store.reachable or self._outage == store.outages:  # reachable: an overload of this process, no outage
            return
        self._outage = store.outages
        if FallbackEntered.sinks:
            self._teller.tell(FallbackEntered, cause=store.cause, instances=store.instances, policy=self.policy)

    def leave_outage(self, replayed: int) -> None:
        """Forget what only counted during the outage, and tell that it is over."""
        self.space.clear()
        if self._outage == self.store.outages:
            self._outage = 0
            if FallbackLeft.sinks:
                self._teller.tell(FallbackLeft, duration=self.store.lost_for(), replayed=replayed)

    def debts(self, max_batch: int) -> Iterator[tuple[Batch, int]]:
        """Give what was admitted without the store and has not drained yet, in batches, with the units in each."""
        weight = self.store.instances
        ready: dict[int, tuple[Batch, int]] = {}
        for key in self._owed.keys():
            owed, level = self._owed.levels(key), self.space.levels(key)
            if not any(owed):
                continue
            # What was known of the key before the outage is only made sure of: the store may have kept it, or lost it.
            words = " ".join(
                f"{-(-own // weight)} {max(0, all_ - own)}" for own, all_ in zip(owed, level, strict=True)
            )
            shard = self.store.shard_of(key)
            batch, units = ready.pop(shard, None) or (Batch(0.0), 0)
            batch.join(self, "replay", key, 0, words, None)
            rule = self.rules[0]
            units += max(1, -(-owed[0] // (weight * _unit(rule))))
            if len(batch) >= max_batch:
                yield batch, units
            else:
                ready[shard] = batch, units
        yield from list(ready.values())

    def paid(self, batch: Batch) -> None:
        """Note that the store was charged with a batch of debts."""
        for item in batch.items:
            self._owed.reset(item.key)


def _unit(rule: Rule) -> int:
    unit: int = getattr(rule, "unit", 1)
    return unit


def _certain(outcome: Unreachable | None) -> bool:
    return outcome is None or outcome.certain


def _with_room(one: Standing, units: int) -> Standing:
    return one._replace(room=one.room + units)

