"""The shared store that programs hold: Redis or Valkey, one server, behind sentinels, or a cluster."""

from __future__ import annotations

import random
import threading
import time
from asyncio import AbstractEventLoop, _get_running_loop
from typing import TYPE_CHECKING, Final

from resilience.checks import check_function, check_int, check_number, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.forks import renew_locks_in_child

from .store import SharedStore
from .trips_thread import ThreadTrips

if TYPE_CHECKING:
    from .trips_asyncio import AsyncioTrips

MAX_BATCH: Final = 1_024
MAX_BUDGET: Final = 60.0
MAX_INSTANCES: Final = 100_000

_NOT_IN_A_PREFIX: Final = frozenset("{} \n\r\t")


class RedisStore(SharedStore):
    """Keeps limits in Redis, where all instances of a program see them; one store object is one instance.

    It connects when it is first used, in whatever event loop or thread that is, and needs no lifecycle: loops may come
    and go. On asyncio it has one connection for each loop; trio and sync code share one worker thread with one
    connection; in a cluster, one to each node. All that callers ask while a trip is under way goes with the next one,
    in one script call.

    A trip that fails opens the store's circuit breaker: from then on limiters decide by themselves (see `fallback` of
    `RateLimiter`), and the store is probed in the background, first after at most a second, then up to 5 s apart, until
    it answers within the budget again.

    Every key has a time to live. Use a database with the eviction policy `noeviction`: an evicted key has lost its
    limit, and a server that is full is an outage like any other.

    Args:
        url_or_client: `redis://`, `rediss://`, `unix://` (`valkey://` and `valkeys://` mean the first two),
            `redis+sentinel://host:26379,host2:26379/service/0`, `redis+cluster://host:6379,host2:6379`; or a client of
            redis-py, sync or asyncio, whose connection settings are copied: its own connections are not used. In a URL
            `?sentinel_username=` and `sentinel_password=` are for sentinels, user and password before the hosts for
            the servers.
        prefix: the beginning of every key. Instances that use the same prefix count each other to share limits in an
            outage, so give each service its own.
        budget: seconds that a caller waits for the store at most, over 0, up to 60. Default 0.25: longer than a healthy
            store ever takes inside a region, short enough not to be felt. Give twice the round trip at least.
        max_batch: keys in one script call, 1 to 1,024. Default 128: about half a millisecond of the server's time.
        instances: how many instances to assume until Redis has told, 1 to 100,000: what one that starts in the middle
            of an outage shares the limits by. Default 1.
        clock: monotonic seconds, for outages and probes; the budget is always real time.
        rng: for the jitter of the probes; None is the system's, which forked workers do not share.

    Raises:
        ConfigurationError: names the field, the value and the rule; a URL is never shown.
    """

    def __init__(
        self,
        url_or_client: object,
        *,
        prefix: str = "resilience",
        budget: float = 0.25,
        max_batch: int = 128,
        instances: int = 1,
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        _check_prefix(prefix)
        check_number("budget", budget, above=0, most=MAX_BUDGET)
        check_int("max_batch", max_batch, most=MAX_BATCH)
        check_int("instances", instances, most=MAX_INSTANCES)
        check_function("clock", clock)
        from .target import target_of  # noqa: PLC0415 - imports redis-py, which takes longer than all of ours

        target = target_of(url_or_client)
        super().__init__(
            target, prefix=prefix, budget=budget, max_batch=max_batch, instances=instances, clock=clock, rng=rng
        )
        # Guards the table. No trip is made under it.
        self._table_lock = threading.RLock()
        self._loops: dict[AbstractEventLoop, AsyncioTrips] = {}
        self._threads = ThreadTrips(self)
        renew_locks_in_child(self)

    def __repr__(self) -> str:
        state = "reachable" if self.reachable else f"unreachable since {self.now() - self._lost_at:.1f} s"
        return f"<RedisStore {self.target}, {state}, instances: {self.instances}>"

    def renew_locks(self) -> None:
        """Start afresh in a forked child: threads and connections are the parent's."""
        self.begin_anew()
        self._table_lock = threading.RLock()
        self._loops = {}
        self._threads.renew_locks()

    # --- who makes the trips ---

    def trips(self) -> AsyncioTrips | ThreadTrips:
        """Give what makes trips for the task that is running."""
        loop = _get_running_loop()  # in half the time of what asks for one, and must be caught when there is none
        if loop is None:
            return self._threads
        found = self._loops.get(loop)
        if found is None:
            from .trips_asyncio import AsyncioTrips  # noqa: PLC0415 - needed on asyncio only

            with self._table_lock:
                # Their lines and tasks hold on to them, so nothing else would ever let go of a loop that has ended.
                for ended in [one for one in self._loops if one.is_closed()]:
                    del self._loops[ended]
                found = self._loops.setdefault(loop, AsyncioTrips(self, loop))
        return found

    @property
    def threads(self) -> ThreadTrips:
        """What makes trips for sync code."""
        return self._threads

    # --- the end ---

    async def aclose(self) -> None:
        """End what runs for this event loop and for threads: tasks, the worker thread, connections.

        The store may be used again afterwards. Trips under way end first, within the budget.

        Cancellation: what is not closed yet ends with the loop.
        """
        loop = _get_running_loop()
        trips = None if loop is None else self._loops.get(loop)
        if trips is not None:
            await trips.close()
        if not self._threads.is_running:
            return
        from anyio import to_thread  # noqa: PLC0415 - beside the trips, nothing here needs anyio

        await to_thread.run_sync(self._threads.close)

    def close(self) -> None:
        """End what runs for sync code: the worker thread and its connection."""
        self._threads.close()


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str) or not prefix or set(prefix) & _NOT_IN_A_PREFIX:
        raise ConfigurationError(f"prefix must be a non-empty string without braces and spaces, got {shown(prefix)}")
