"""The shared store: Redis or Valkey, one server, behind sentinels, or a cluster; and what is known of its health."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary, WeakSet
from zlib import crc32

from resilience.breaker import CircuitBreaker, CircuitState, Permit
from resilience.checks import check_int, check_number, shown
from resilience.errors import CircuitOpenError, ConfigurationError, type_name
from resilience.events import InstanceCountChanged
from resilience.forks import renew_locks_in_child
from resilience.windows import CountWindow

from .batch import SHARDS, Batch
from .telling import Teller
from .trips_thread import ThreadTrips

if TYPE_CHECKING:
    from .remote import Remote
    from .trips_asyncio import AsyncioTrips

MAX_BATCH: Final = 1_024
MAX_BUDGET: Final = 60.0

REFRESH: Final = 1.0
"""Seconds between two notes of this instance that it lives."""
LEASE: Final = 30.0
"""Seconds after its last note for which an instance counts as live."""

PROBE_SECONDS: Final = 2.0
"""Seconds that the first probe may take, connecting included. The second has the budget of any other trip, or a store
that is only slow would be found well, and lost again, for ever."""
ABANDONED: Final = 60.0
"""Seconds without a caller after which nobody looks after the store any more; the next caller starts it again."""
REPLAY_ROUNDS: Final = 3

_BREAKER: Final = {
    "window": CountWindow(1),
    "minimum_calls": 1,
    "failure_rate_threshold": 0.5,  # one of the two probes is enough to open it again
    "open_duration": 0.8,
    "open_backoff": 1.5,
    "max_open_duration": 5.0,
    "open_jitter": 0.25,  # so the first probe comes after 0.8 to 1 s
    "half_open_calls": 2,
    "half_open_concurrency": 1,
    "probe_lease": 10.0,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the script that a recovery wants made, within so many seconds."""

    shard: int
    keys: list[str]
    arguments: list[str | int]
    seconds: float


Steps: TypeAlias = Generator[float | Call, Any, None]
"""A recovery as steps: seconds to sleep, or a call to make, whose reply is sent in, or its error thrown."""


class RedisStore:
    """Keeps limits in Redis, where all instances of a program see them; one store object is one instance.

    It connects when it is first used, in whatever event loop or thread that is, and needs no lifecycle: loops may come
    and go. On asyncio it has up to four connections for each loop; trio and sync code share one worker thread with one
    connection. All that callers ask while a trip is under way goes with the next one, in one script call.

    A trip that fails opens the store's circuit breaker: from then on limiters decide by themselves (see `fallback` of
    `RateLimiter`), and the store is probed in the background, first after at most a second, then up to 5 s apart, until
    it answers within the budget again.

    Every key has a time to live. Use a database with the eviction policy `noeviction` or `volatile-ttl`: an evicted
    key has lost its limit.

    Args:
        url_or_client: `redis://`, `rediss://`, `unix://` (`valkey://` and `valkeys://` mean the first two),
            `redis+sentinel://host:26379,host2:26379/service/0`, `redis+cluster://host:6379,host2:6379`; or a client of
            redis-py, sync or asyncio, whose connection settings are copied: its own connections are not used.
        prefix: the beginning of every key. Instances that use the same prefix count each other to share limits in an
            outage, so give each service its own.
        budget: seconds that a caller waits for the store at most, over 0, up to 60. Default 0.25: longer than a healthy
            store ever takes inside a region, short enough not to be felt. Give twice the round trip at least.
        max_batch: keys in one script call, 1 to 1,024. Default 128: about half a millisecond of the server's time.

    Raises:
        ConfigurationError: names the field, the value and the rule; a URL is never shown.
    """

    def __init__(
        self, url_or_client: object, *, prefix: str = "resilience", budget: float = 0.25, max_batch: int = 128
    ) -> None:
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("{} \n\r"):
            raise ConfigurationError(f"prefix must be a non-empty string without braces and spaces, got {shown(prefix)}")
        check_number("budget", budget, above=0, most=MAX_BUDGET)
        check_int("max_batch", max_batch, most=MAX_BATCH)
        from .target import target_of  # noqa: PLC0415 - imports redis-py, which takes longer than all of ours

        self.target = target_of(url_or_client)
        self.prefix = prefix
        self.budget = budget
        self.max_batch = max_batch
        self.breaker = CircuitBreaker(f"{prefix} store", **_BREAKER)
        self._teller = Teller(f"{prefix} store", time.monotonic)
        self.instances = 1
        """How many instances live, as of the last trip."""
        self.reachable = True
        """Whether callers are sent to the store at all; the breaker's state seen from their side, and quick to read."""
        self.cause = ""
        """The type of the error that made it unreachable."""
        self.outages = 0
        self.limiters: WeakSet[Remote] = WeakSet()
        self._id = secrets.token_hex(8)
        self._refresh_at = 0.0
        self._lost_at = 0.0
        self._asked_at = 0.0
        self._recovering = False
        # Guards `reachable`, `outages` and what belongs to them, and the two maps of trips. No trip is made under it.
        self._lock = threading.RLock()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncioTrips] = WeakKeyDictionary()
        self._threads = ThreadTrips(self)
        renew_locks_in_child(self)

    def __repr__(self) -> str:
        state = "reachable" if self.reachable else f"unreachable since {time.monotonic() - self._lost_at:.1f} s"
        return f"<RedisStore {self.target}, {state}, {self.instances} instances>"

    def renew_locks(self) -> None:
        """Start afresh in a forked child, as an instance of its own: threads and connections are the parent's."""
        self._lock = threading.RLock()
        self._id = secrets.token_hex(8)
        self._refresh_at = 0.0
        self._recovering = False
        self._loops = WeakKeyDictionary()
        self._threads.renew_locks()

    # --- who makes the trips ---

    def trips(self) -> AsyncioTrips | ThreadTrips:
        """Give what makes trips for the task that is running."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._threads
        found = self._loops.get(loop)
        if found is None:
            from .trips_asyncio import AsyncioTrips  # noqa: PLC0415 - needed on asyncio only

            with self._lock:
                found = self._loops.setdefault(loop, AsyncioTrips(self, loop))
        return found

    @property
    def threads(self) -> ThreadTrips:
        """What makes trips for sync code."""
        return self._threads

    def shard_of(self, key: str) -> int:
        """Tell which keys can be asked together: all of one server, those of one hash tag in a cluster."""
        return tag_of(key) if self.target.kind == "cluster" else 0

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
        now = time.monotonic()
        if shard != 0 or now < self._refresh_at:
            return keys, ["", *arguments], False
        self._refresh_at = now + REFRESH
        return [*keys, self._instances_key()], [self._note(), *arguments], True

    def _note(self) -> str:
        return f"{self._id} {round(LEASE * 1000)}"

    def _instances_key(self) -> str:
        return f"{self.prefix}:{{00}}:instances"

    def settle(self, permit: Permit, reply: bytes, batch: Batch, began: float, *, refreshing: bool) -> None:
        """Take in what a trip brought."""
        words = iter(reply.decode().split())
        server, instances = int(next(words)), int(next(words))
        batch.settle(words, server, int((time.monotonic() - began) * 1e6))
        permit.success()
        if refreshing:
            self._count_instances(instances)

    def _count_instances(self, instances: int) -> None:
        before, self.instances = self.instances, max(1, instances)
        if before != self.instances and InstanceCountChanged.sinks:
            self._teller.tell(InstanceCountChanged, before=before, after=self.instances)

    def fail(self, permit: Permit, error: BaseException, batch: Batch, *, sent: bool) -> None:
        """Take in that a trip failed; its callers learn whether they may have been charged."""
        from .lines import refused_to_run  # noqa: PLC0415 - imports redis-py

        certain = not sent or refused_to_run(error)
        permit.failure(error if isinstance(error, Exception) else ConnectionError())
        self._refresh_at = 0.0
        self.lose(type_name(error))
        batch.fail(self.cause, certain=certain)

    # --- an outage ---

    def lose(self, cause: str) -> None:
        """Note that the store is out of reach."""
        with self._lock:
            if self.reachable:
                self.cause, self.reachable = cause, False
                self.outages += 1
                self._lost_at = self._asked_at = time.monotonic()

    def asked(self) -> None:
        """Note that somebody had to decide without the store; whoever looks after it does so for them."""
        self._asked_at = time.monotonic()

    def lost_for(self) -> float:
        """Give the seconds since the store was lost."""
        return time.monotonic() - self._lost_at

    def next_probe(self) -> float:
        """Give the seconds until the store is asked again at the latest."""
        return self.breaker.snapshot().retry_after or 1.0

    def needs_recovery(self) -> bool:
        """Tell whether nobody looks after a store that is out of reach."""
        return not self.reachable and not self._recovering

    def claim_recovery(self) -> Steps | None:
        """Give the steps that bring the store back, to whoever asks first."""
        with self._lock:
            if self.reachable or self._recovering:
                return None
            self._recovering = True
        return self._recovery()

    def _recovery(self) -> Steps:
        try:
            while time.monotonic() - self._asked_at < ABANDONED:
                yield self.next_probe() if self.breaker.state is not CircuitState.CLOSED else 0.0
                if (yield from self._probe()):
                    replayed: dict[Remote, int] = {}
                    for _ in range(REPLAY_ROUNDS):  # callers go on meanwhile, and owe again
                        if not (yield from self._replay(replayed)):
                            break
                    if self.breaker.state is not CircuitState.CLOSED:
                        continue
                    self._find(replayed)
                    yield from self._replay(replayed)
                    return
        finally:
            self._recovering = False

    def _probe(self) -> Generator[Call, Any, bool]:
        """Ask the store twice, once at leisure and once within the budget; tell whether it is well."""
        for seconds in (max(PROBE_SECONDS, self.budget), self.budget):
            try:
                permit = self.breaker.acquire()
            except CircuitOpenError:
                return False
            try:
                for shard in range(SHARDS) if self.target.kind == "cluster" else (0,):
                    key = f"{self.prefix}:{{{shard:02x}}}:instances"
                    reply = yield Call(shard, [key], [self._note()], seconds)
                    if shard == 0:
                        self._count_instances(int(reply.split()[1]))
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is not well
                permit.failure(error)
                return False
            except BaseException:
                permit.drop()
                raise
            permit.success()
        return self.breaker.state is CircuitState.CLOSED

    def _replay(self, replayed: dict[Remote, int]) -> Generator[Call, Any, bool]:
        """Charge the store with what was admitted without it; tell whether there was anything."""
        some = False
        for limiter in list(self.limiters):
            for batch, units in limiter.debts(self.max_batch):
                some = True
                keys, arguments = batch.encode()
                try:
                    permit = self.breaker.acquire()
                except CircuitOpenError:
                    return False
                try:
                    yield Call(self.shard_of(batch.items[0].key), keys, ["", *arguments], PROBE_SECONDS)
                except Exception as error:  # noqa: BLE001 - as above
                    permit.failure(error)
                    return False
                except BaseException:
                    permit.drop()
                    raise
                permit.success()
                limiter.paid(batch)
                replayed[limiter] = replayed.get(limiter, 0) + units
        return some

    def _find(self, replayed: dict[Remote, int]) -> None:
        """Note that the store is within reach again."""
        with self._lock:
            self.reachable, self.cause = True, ""
        for limiter in list(self.limiters):
            limiter.leave_outage(replayed.get(limiter, 0))

    def stop_recovery(self) -> None:
        """Let whoever looks after the store stop at the next step."""
        self._asked_at = -ABANDONED

    # --- the end ---

    async def aclose(self) -> None:
        """End what runs for this event loop and for threads: tasks, the worker thread, connections.

        The store may be used again afterwards. Trips under way end first, within the budget.

        Cancellation: what is not closed yet ends with the loop.
        """
        trips = self.trips()
        if trips is not self._threads:
            await trips.close()
        await _in_thread(self._threads.close)

    def close(self) -> None:
        """End what runs for sync code: the worker thread and its connection."""
        self._threads.close()


async def _in_thread(function: Any) -> None:
    from anyio import to_thread  # noqa: PLC0415 - beside the trips, nothing here needs anyio

    await to_thread.run_sync(function)


def tag_of(key: str) -> int:
    """Give the number of the hash tag of a key."""
    return crc32(key.encode("utf-8", "surrogatepass")) % SHARDS
