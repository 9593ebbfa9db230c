"""What is known of a shared store: how it is asked, whether it is within reach, and how it comes back."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from weakref import WeakSet
from zlib import crc32

from resilience.breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState, Permit
from resilience.clock import Clock
from resilience.errors import CircuitOpenError, type_name
from resilience.events import InstanceCountChanged
from resilience.windows import CountWindow

from .batch import SHARDS, Batch
from .telling import Teller

if TYPE_CHECKING:
    from .target import Target

REFRESH: Final = 1.0
"""Seconds between two notes of this instance that it lives."""
SHORTEST_LEASE, LONGEST_LEASE = 60.0, 3_600.0
"""Seconds after its last note for which an instance counts as live: two periods of the slowest quota, within these
bounds. An instance that is asked once a minute must not be forgotten between two calls; one that died is, in time."""

PROBE_SECONDS: Final = 2.0
"""Seconds that the first probe may take, connecting included. The second has the budget of any other trip, or a store
that is only slow would be found well, and lost again, for ever."""
ABANDONED: Final = 60.0
"""Seconds without a caller after which nobody looks after the store any more; the next caller starts it again."""
REPLAY_ROUNDS: Final = 3

BREAKER: Final = CircuitBreakerConfig(
    window=CountWindow(1),
    minimum_calls=1,
    failure_rate_threshold=0.5,  # one of the two probes is enough to open it again
    open_duration=0.8,
    open_backoff=1.5,
    max_open_duration=5.0,
    open_jitter=0.25,  # so the first probe comes after 0.8 to 1 s
    half_open_calls=2,
    half_open_concurrency=1,
    probe_lease=10.0,
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the script that a recovery wants made, within so many seconds."""

    shard: int
    keys: list[str]
    arguments: list[str | int]
    seconds: float


Steps: TypeAlias = Generator[float | Call, Any, None]
"""A recovery as steps: seconds to sleep, or a call to make, whose reply is sent in, or its error thrown. Whoever makes
the steps calls `end_recovery` when they end, or will not be made."""


class Debtor(Protocol):
    """A limiter that may owe the store what it admitted without it."""

    def debts(self, max_batch: int) -> Iterator[Batch]:
        """Give what is owed, in batches; it counts as paid."""

    def unpaid(self, batch: Batch) -> None:
        """Note that the store may not know of a batch after all. It may be told twice."""

    def leave_outage(self, replayed: int) -> None:
        """Note that the store decides again, and how many units it was charged with."""


class SharedStore:
    """A shared store as its limiters and trips know it; `RedisStore` makes the trips.

    Attributes:
        target: where it is.
        instances: how many instances live, as of the last trip.
        reachable: whether callers are sent to the store at all: the breaker's state as they see it, quick to read.
        cause: the type of the error that made it unreachable.
        outages: how often it was lost.
        limiters: those that ask it.
    """

    def __init__(
        self,
        target: Target,
        *,
        prefix: str,
        budget: float,
        max_batch: int,
        instances: int,
        clock: Clock,
        rng: random.Random | None,
    ) -> None:
        self.target = target
        self.prefix = prefix
        self.budget = budget
        self.max_batch = max_batch
        self.now = clock
        self.breaker = CircuitBreaker(f"{prefix} store", BREAKER, clock=clock, rng=rng)
        self.instances = instances
        self.reachable = True
        self.cause = ""
        self.outages = 0
        self.limiters: WeakSet[Debtor] = WeakSet()
        self.is_sharded = target.kind == "cluster"
        self._teller = Teller(f"{prefix} store", clock)
        self._id = secrets.token_hex(8)
        self._lease = SHORTEST_LEASE
        self._refresh_at: dict[int, float] = {}
        self._counts: dict[int, int] = {0: instances}
        self._lost_at = -inf
        self._asked_at = -inf
        self._trust_at = -inf
        """From when on a smaller number of instances is believed: after an outage they come back one by one."""
        self._recovering: Steps | None = None
        self._claims = 0
        """How often somebody began to look after the store; whoever did before the last one leaves off."""
        self._has_gone: Callable[[], bool] = lambda: False
        # Guards `reachable`, `outages` and what belongs to them. No trip is made under it.
        self._lock = threading.RLock()

    def begin_anew(self) -> None:
        """Start afresh in a forked child, as an instance of its own."""
        self._lock = threading.RLock()
        self._id = secrets.token_hex(8)
        self._refresh_at.clear()
        self._recovering = None

    def add(self, limiter: Debtor, periods: Iterable[float]) -> None:
        """Take in a limiter that asks here, and the periods of its quotas in seconds."""
        with self._lock:
            self.limiters.add(limiter)
        self._lease = min(max(self._lease, *(2 * period for period in periods)), LONGEST_LEASE)

    # --- names ---

    def shard_of(self, key: str) -> int:
        """Tell which keys can be asked together: all of one server, those of one hash tag in a cluster."""
        return crc32(key.encode("utf-8", "surrogatepass")) % SHARDS if self.is_sharded else 0

    def tag(self, key: str) -> str:
        """Give the beginning of the name of `key`."""
        return f"{self.prefix}:{{{self.shard_of(key):02x}}}" if self.is_sharded else self.prefix

    def _note(self) -> str:
        return f"{self._id} {round(self._lease * 1000)}"

    def farewells(self) -> list[Call]:
        """Give the calls that take this instance out of those that live."""
        return [
            Call(shard, [self._instances_key(shard)], [f"{self._id} -"], self.budget) for shard in list(self._counts)
        ]

    def _instances_key(self, shard: int) -> str:
        return f"{self.prefix}:{{{shard:02x}}}:instances" if self.is_sharded else f"{self.prefix}:instances"

    # --- a trip ---

    def permit(self) -> Permit | None:
        """Ask to make a trip; None while the store is out of reach."""
        if not self.reachable:
            return None
        try:
            return self.breaker.acquire()
        except CircuitOpenError as refused:
            self.lose(refused.last_error_type or "CircuitOpenError")
            return None

    def encode(self, shard: int, batch: Batch) -> tuple[list[str], list[str | int], bool]:
        """Give keys and arguments of a trip, and whether this instance is noted with it."""
        keys, arguments = batch.encode()
        now = self.now()
        # Where everybody has left there are no keys, and a cluster could not tell where to go without one.
        if keys and now < self._refresh_at.get(shard, -inf):
            return keys, ["", *arguments], False
        self._refresh_at[shard] = now + REFRESH
        return [*keys, self._instances_key(shard)], [self._note(), *arguments], True

    def settle(self, permit: Permit, reply: bytes, batch: Batch, *, shard: int, ago: float, refreshing: bool) -> None:
        """Take in what a trip brought that was sent `ago` seconds ago."""
        words = map(int, reply.split())
        server, instances = next(words), next(words)
        batch.settle(words, server, int(ago * 1e6))
        permit.success()
        if refreshing:
            self._counts[shard] = instances
            self._count_instances()

    def _count_instances(self) -> None:
        """Take over how many instances live. In a cluster each shard knows of those that ask it."""
        least = 1 if self.now() >= self._trust_at else self.instances
        before, self.instances = self.instances, max(least, *self._counts.values())
        if before != self.instances and InstanceCountChanged.sinks:
            self._teller.tell(InstanceCountChanged, before=before, after=self.instances)

    def fail(self, permit: Permit, error: BaseException, batch: Batch, *, certain: bool) -> None:
        """Take in that a trip failed, `certain` if nothing can have come of it; its callers learn that."""
        permit.failure(error if isinstance(error, Exception) else ConnectionError())
        self._refresh_at.clear()
        code = getattr(error, "code", "")  # the first word of a server's answer, such as "READONLY"
        self.lose(f"{type_name(error)} {code}" if code else type_name(error))
        batch.fail(self.cause, certain=certain)

    # --- an outage ---

    def lose(self, cause: str) -> None:
        """Note that the store is out of reach."""
        with self._lock:
            if self.reachable:
                self.cause, self.reachable = cause, False
                self.outages += 1
                self._lost_at = self._asked_at = self.now()

    def asked(self) -> None:
        """Note that somebody had to decide without the store; whoever looks after it does so for them."""
        self._asked_at = self.now()

    def lost_for(self) -> float:
        """Give the seconds since the store was lost."""
        return self.now() - self._lost_at

    def next_probe(self) -> float:
        """Give the seconds until the store is asked again at the latest."""
        return self.breaker.snapshot().retry_after or 1.0

    def needs_recovery(self) -> bool:
        """Tell whether nobody looks after a store that is out of reach."""
        return not self.reachable and (self._recovering is None or self._has_gone())

    def claim_recovery(self, has_gone: Callable[[], bool] = lambda: False) -> Steps | None:
        """Give the steps that bring the store back, to whoever asks first.

        Args:
            has_gone: tells whether whoever asks does not make them just now: a loop that pauses, or was closed, says no
                word.
        """
        with self._lock:
            if not self.needs_recovery():
                return None
            self._claims += 1
            self._recovering, self._has_gone = self._recovery(self._claims), has_gone
            return self._recovering

    def _recovery(self, claim: int) -> Steps:
        while claim == self._claims and self.now() - self._asked_at < ABANDONED:
            yield self.next_probe() if self.breaker.state is not CircuitState.CLOSED else 0.0
            if (yield from self._probe()) and claim == self._claims:
                replayed: dict[Debtor, int] = {}
                for _ in range(REPLAY_ROUNDS):  # callers go on meanwhile, and owe again
                    if not (yield from self._replay(self._debts(), replayed)):
                        break
                if self.breaker.state is not CircuitState.CLOSED:
                    continue
                yield from self._replay(self._find(replayed), replayed)
                # Not before: a share is what it was during the outage until all of it is charged, and the first who is
                # back finds no other instance noted.
                self._count_instances()
                return

    def end_recovery(self, steps: Steps) -> None:
        """Note that whoever had these steps looks after the store no more: it is back, or they have ended."""
        with self._lock:
            if self._recovering is steps:
                self._recovering = None

    def _probe(self) -> Generator[Call, Any, bool]:
        """Ask the store twice, once at leisure and once within the budget; tell whether it is well."""
        for seconds in (max(PROBE_SECONDS, self.budget), self.budget):
            try:
                permit = self.breaker.acquire()
            except CircuitOpenError:
                return False
            try:
                for shard in range(SHARDS) if self.is_sharded else (0,):
                    reply = yield Call(shard, [self._instances_key(shard)], [self._note()], seconds)
                    self._counts[shard] = int(reply.split()[1])
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is not well
                permit.failure(error)
                return False
            except BaseException:
                permit.drop()
                raise
            permit.success()
        return self.breaker.state is CircuitState.CLOSED

    def _debts(self) -> Iterator[tuple[Debtor, Batch]]:
        """Give what all limiters owe, with those who do."""
        with self._lock:  # a set that grows meanwhile cannot be gone through
            limiters = list(self.limiters)
        for limiter in limiters:
            for batch in limiter.debts(self.max_batch):
                yield limiter, batch

    def _replay(self, debts: Iterator[tuple[Debtor, Batch]], replayed: dict[Debtor, int]) -> Generator[Call, Any, bool]:
        """Charge the store with what was admitted without it; tell whether there was anything."""
        some = False
        for limiter, batch in debts:
            some = True
            keys, arguments = batch.encode()
            try:
                permit = self.breaker.acquire()
            except CircuitOpenError:
                limiter.unpaid(batch)
                return False
            try:
                yield Call(self.shard_of(batch.items[0].request.key), keys, ["", *arguments], PROBE_SECONDS)
            except Exception as error:  # noqa: BLE001 - as above
                limiter.unpaid(batch)
                permit.failure(error)
                return False
            except BaseException:
                limiter.unpaid(batch)
                permit.drop()
                raise
            permit.success()
            replayed[limiter] = replayed.get(limiter, 0) + sum(item.request.cost for item in batch.items)
        return some

    def _find(self, replayed: dict[Debtor, int]) -> Iterator[tuple[Debtor, Batch]]:
        """Note that the store is within reach again; give what was admitted in the last moment before."""
        with self._lock:
            self.reachable, self.cause = True, ""
            self._trust_at = self.now() + self._lease
        last = list(self._debts())  # before all that is known of it is forgotten
        with self._lock:
            limiters = list(self.limiters)
        for limiter in limiters:
            limiter.leave_outage(replayed.get(limiter, 0))
        return iter(last)

    def stop_recovery(self) -> None:
        """Let whoever looks after the store stop at the next step."""
        self._asked_at = -inf
