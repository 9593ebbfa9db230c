"""A Redis that fails on schedule and the instances of a program that share a limit through it, in virtual time.

The instances are the library's own: `Remote` and its `Fallback` decide, `SharedStore` notices that Redis is lost,
probes it, and charges it with what was admitted meanwhile. Simulated are the wire between them and Redis, and Redis
itself, which does with the library's own rules what `decide.lua` does. Nothing sleeps; chance comes from a seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final, Literal

from resilience import Decision, Quota
from resilience.clock import Clock
from resilience.rate_limiter.batch import Batch, Limiter, Request
from resilience.rate_limiter.fallback import Fallback, FallbackPolicy
from resilience.rate_limiter.gcra import Gcra
from resilience.rate_limiter.remote import Remote
from resilience.rate_limiter.store import Call, SharedStore, Steps
from resilience.rate_limiter.target import target_of
from resilience.rate_limiter.telling import Teller

Outage = tuple[float, float]
"""From when to when."""


class VirtualTime:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Give the seconds."""
        return self.now


# --- Redis ---


class Redis:
    """The server: one GCRA rule for each key, and the set of instances, by a clock of its own.

    Args:
        quota: the only one that it is asked about.
        outages: when it is out of reach, in order.
        loses_data: whether it comes back empty.
        freezes: whether it does what it is told and never answers, instead of refusing connections.
    """

    def __init__(
        self, quota: Quota, clock: Clock, outages: Sequence[Outage], *, loses_data: bool, freezes: bool
    ) -> None:
        self.freezes = freezes
        self._rule = Gcra.of(quota)
        self._clock = clock
        self._outages = list(outages)
        self._loses_data = loses_data
        self._states: dict[str, int] = {}
        self._instances: dict[str, int] = {}

    def down(self) -> bool:
        """Tell whether it is out of reach."""
        while self._outages and self._outages[0][1] <= self._clock():
            del self._outages[0]
            if self._loses_data:
                self._states.clear()
                self._instances.clear()
        return bool(self._outages) and self._outages[0][0] <= self._clock()

    def ask(self, keys: Sequence[str], arguments: Sequence[str | int]) -> bytes | Exception:
        """Make a call; give the reply, or the error that comes instead of one."""
        if not self.down():
            return self.call(keys, arguments)
        if not self.freezes:
            return ConnectionRefusedError()
        self.call(keys, arguments)  # nobody will know
        return TimeoutError()

    def call(self, keys: Sequence[str], arguments: Sequence[str | int]) -> bytes:
        """Do what `decide.lua` does for these operations: acquire and replay, and note who lives."""
        now = int(self._clock() * 1e6) + 10**15  # no clock of an instance
        words = [str(now), str(self._note(str(arguments[0]), now))]
        names = iter(keys)
        for at in range(1, len(arguments), 5):
            spec, operation, cost, extra, items = arguments[at : at + 5]
            if spec != self._rule.spec(0):
                raise ValueError(f"the rule is {self._rule.spec(0)!r}, not {spec!r}")
            for _ in range(int(items)):
                words += self._do(next(names), str(operation), int(cost), str(extra), now)
        return " ".join(words).encode()

    def _do(self, key: str, operation: str, cost: int, extra: str, now: int) -> tuple[str, str, str]:
        rule = self._rule
        state = self._states.get(key, rule.empty)
        if operation == "acquire":
            gave = 0 if rule.wait(state, now, cost) else min(int(extra), rule.room(state, now) // cost)
            if gave:
                state = rule.charge(state, now, gave * cost, now)
        elif operation == "replay":
            state = now * rule.drain + max(rule.level(state, now), min(int(extra), rule.capacity))
            gave = 1
        else:
            raise ValueError(f"not simulated: {operation}")
        self._states[key] = state
        return str(gave), "0", str(rule.level(state, now))

    def _note(self, note: str, now: int) -> int:
        if not note:
            return -1
        name, lease = note.split()
        self._instances.pop(name, None)
        self._instances[name] = now  # the last; so those whose lease is over are the first
        while self._instances[first := next(iter(self._instances))] <= now - int(lease) * 1_000:
            del self._instances[first]
        return len(self._instances)


# --- what an instance does without Redis ---


class ShareForgotten(Fallback):
    """The share of a limit, going on from what was known of a key; what it admits is not charged afterwards."""

    def debts(self, limiter: Limiter, max_batch: int) -> Iterator[Batch]:  # noqa: ARG002 - there are none
        """Owe nothing."""
        return iter(())


class ShareFromEmpty(ShareForgotten):
    """The share of a limit, as if nobody had used anything of it before the outage."""

    _begun = 0

    def decide(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Forget what was known, and decide."""
        if self._begun != self._store.outages:
            self._begun = self._store.outages
            self.space.clear()
        return super().decide(key, cost, certain=certain)


class FullLimit(ShareFromEmpty):
    """The whole limit in each instance, kept in its memory: what other libraries do."""

    def decide(self, key: str, cost: int, *, certain: bool = True) -> Decision:
        """Decide as if there were no other instance."""
        known, self._store.instances = self._store.instances, 1
        try:
            return super().decide(key, cost, certain=certain)
        finally:
            self._store.instances = known


@dataclass(frozen=True)
class Policy:
    """One way to go on without Redis."""

    key: str
    name: str
    kind: type[Fallback] = Fallback
    name_in_library: FallbackPolicy = "share"


OURS: Final = Policy("ours", "share 1/N, seeded, replayed (ours)")
POLICIES: Final = (
    Policy("open", "everything passes", name_in_library="open"),
    Policy("closed", "nothing passes", name_in_library="closed"),
    Policy("full", "the full limit in each instance", FullLimit),
    Policy("empty", "share 1/N, starting empty", ShareFromEmpty),
    Policy("seeded", "share 1/N, seeded", ShareForgotten),
    OURS,
)


# --- instances ---


class Instance:
    """One instance of the program: a store object, and one limiter on it."""

    def __init__(self, world: World, policy: Policy, quota: Quota) -> None:
        self.gone = False
        self.store = SharedStore(
            target_of("redis://simulated.invalid:6379/0"),
            prefix="simulated",
            budget=0.25,
            max_batch=128,
            instances=world.assumed,
            clock=world.clock,
            rng=world.rng,
        )
        self._world = world
        teller, clock, named = Teller("simulated", world.clock), world.clock, policy.name_in_library
        options: dict[str, Any] = {"teller": teller, "policy": named, "clock": clock, "wall_clock": clock}
        self._remote = Remote(self.store, (quota,), **options)
        self._remote.fallback = policy.kind(self.store, (quota,), **options)
        self._remote.space = self._remote.fallback.space

    def allows(self, key: str, cost: int) -> bool:
        """Do what `RateLimiter.try_acquire` does."""
        if not self.store.reachable:
            self._look_after_store()
            return self._remote.fallback.decide(key, cost).allowed
        if self._remote.space.refusal(key, cost) is not None:
            return False
        batch = Batch(0.0)
        item, caller = batch.join(Request(self._remote, "acquire", key, cost), None)
        self._trip(batch)
        return self._remote.acquired(item, caller.rank).allowed

    def _trip(self, batch: Batch) -> None:
        permit = self.store.permit()
        if permit is None:
            batch.fail(self.store.cause, certain=True)
            return
        keys, arguments, refreshing = self.store.encode(0, batch)
        reply = self._world.redis.ask(keys, arguments)
        if isinstance(reply, Exception):
            self.store.fail(permit, reply, batch, certain=not isinstance(reply, TimeoutError))
            self._look_after_store()
        else:
            self.store.settle(permit, reply, batch, shard=0, ago=0.0, refreshing=refreshing)

    def _look_after_store(self) -> None:
        if self.store.needs_recovery() and (steps := self.store.claim_recovery()) is not None:
            self._world.drive(self, steps)


class World:
    """Redis and the instances that live, over time.

    Args:
        instances: how many there are at the beginning.
        redis: what they share.
        assumed: how many there are in the eyes of one that Redis has never told.
        rng: for the jitter of probes.
    """

    def __init__(
        self,
        policy: Policy,
        quota: Quota,
        *,
        instances: int,
        assumed: int,
        clock: VirtualTime,
        redis: Redis,
        rng: Random,
    ) -> None:
        self.clock = clock
        self.redis = redis
        self.assumed = assumed
        self.rng = rng
        self.instances: list[Instance] = []
        self._policy = policy
        self._quota = quota
        self._due: list[tuple[float, int, Instance, Steps, Exception | None]] = []
        self._number = count()
        self.scale(instances)

    def scale(self, instances: int) -> None:
        """Start or end instances until there are so many."""
        while len(self.instances) > instances:
            self.instances.pop().gone = True
        while len(self.instances) < instances:
            self.instances.append(Instance(self, self._policy, self._quota))

    def advance(self, to: float) -> None:
        """Let the time pass, and with it what instances do in the background."""
        while self._due and self._due[0][0] <= to:
            at, _, instance, steps, error = heapq.heappop(self._due)
            self.clock.now = max(self.clock.now, at)
            if instance.gone:
                steps.close()
            else:
                self.drive(instance, steps, error)
        self.clock.now = to

    def drive(self, instance: Instance, steps: Steps, answer: bytes | Exception | None = None) -> None:
        """Do the steps of a recovery until one takes time."""
        while True:
            try:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration:
                instance.store.end_recovery(steps)
                return
            if isinstance(step, Call):
                answer = self.redis.ask(step.keys, step.arguments)
                taken = step.seconds if isinstance(answer, TimeoutError) else 0.0
            else:
                answer, taken = None, step
            if taken:
                error = answer if isinstance(answer, Exception) else None
                heapq.heappush(self._due, (self.clock() + taken, next(self._number), instance, steps, error))
                return


Balance = Literal["even", "uneven"]
HOT: Final = 0.8
"""Share of the calls for a key that goes to one instance when the balance is uneven; each key has another."""


def routed(pick: float, instances: int, balance: Balance, key: int = 0) -> int:
    """Give the instance that gets a call for a key, by a number from 0 up to 1."""
    if balance == "even" or instances == 1:
        return int(pick * instances)
    if pick < HOT:
        return key % instances
    return (key + 1 + int((pick - HOT) / (1 - HOT) * (instances - 1))) % instances
