"""The rate limiter that programs hold: its ways to ask, to wait, and to take back."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from math import inf
from types import TracebackType
from typing import Any, Final, Self, get_args

import anyio

from resilience.checks import check_function, check_int, check_name, check_number, shown
from resilience.clock import Clock
from resilience.deadline import seconds_left
from resilience.errors import ConfigurationError, RateLimitedError
from resilience.events import LimitNear, LimitRejected
from resilience.runs import caller_of_this_run
from resilience.stack import ADMITTED, Admission

from .batch import Item, Operation, Request, Told
from .bound import MAX_COST, BoundLimiter
from .decision import Decision
from .fallback import Fallback, FallbackPolicy
from .gcra import longest_wait
from .memory import MemoryStore, Space
from .quota import MAX_PER, MICROSECONDS, Quota, checked_quotas
from .redis import RedisStore
from .remote import Remote
from .telling import Teller
from .waiting import Queue, Waiter

_new = tuple.__new__  # a third of the time of a named tuple's own
_LONGEST_PLAIN_KEY: Final = 64
"""Characters; a longer key is kept by its hash, so that a key of a megabyte costs what others do."""
_MAX_DIGESTS: Final = 4_096
"""Hashes that are kept for the next call of the same key: hashing takes a microsecond, looking up a tenth."""
_NEAR: Final = 5
"""A limit is near when less than a fifth of it is left."""


class RateLimiter:
    """Admits so many calls in so much time, for each key; all quotas at once, or nothing is charged.

    One object serves any number of tasks and threads, on asyncio, trio and without an event loop. It needs no
    lifecycle; `aclose` ends what a `RedisStore` keeps open.

        limiter = RateLimiter("10/second; 1000/hour", name="search", store=RedisStore("redis://localhost:6379/0"))

        decision = await limiter.try_acquire(user_id)
        if not decision:
            return too_many_requests(decision.retry_after)

    Args:
        quotas: "10/min; 1000/hour", a `Quota`, or several of them.
        name: in events, errors and logs, and in the keys of the store: limiters of one name on one store share limits.
        store: a `MemoryStore` (default: one of its own) or a `RedisStore`.
        fallback: who decides while Redis is out of reach. "share" (default): this instance, within its share of each
            limit, 1 / N for N live instances; what it admits is charged to Redis when that is back. "open": everything
            passes. "closed": nothing does.
        shadow: let everything pass, and only tell what would have been refused, for trying a limit.
        hash_keys: whether keys leave the process as keyed BLAKE2 hashes only: no address or name is in Redis then. True
            hashes with the limiter's name as the key, which hides keys from a casual look; bytes (up to 64) are a
            secret of yours, without which nobody can find a key by trying. False sends keys as they are, for
            debugging.
        max_waiting: callers that may wait for their turn at a time, 0 or more; None (default) sets no limit.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch, for fixed windows.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    def __init__(
        self,
        quotas: str | Quota | Iterable[Quota],
        *,
        name: str,
        store: MemoryStore | RedisStore | None = None,
        fallback: FallbackPolicy = "share",
        shadow: bool = False,
        hash_keys: bool | bytes = True,
        max_waiting: int | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        check_name(name)
        self._quotas = checked_quotas(quotas)
        if fallback not in get_args(FallbackPolicy):
            raise ConfigurationError(
                f"fallback must be one of {', '.join(get_args(FallbackPolicy))}, got {shown(fallback)}"
            )
        if not isinstance(shadow, bool):
            raise ConfigurationError(f"shadow must be True or False, got {shown(shadow)}")
        if max_waiting is not None:
            check_int("max_waiting", max_waiting, least=0)
        check_function("clock", clock)
        check_function("wall_clock", wall_clock)
        if store is not None and not isinstance(store, MemoryStore | RedisStore):
            raise ConfigurationError(
                f"store must be a MemoryStore or a RedisStore, got {shown(type(store).__name__)}: wrap a URL or a "
                "client, RedisStore(...)"
            )
        self._name = name
        self._clock = clock
        self._shadow = shadow
        self._hash_keys = hash_keys
        self._hash = _keyed_hash(hash_keys, name)
        self._digests: dict[str, str] = {}
        self._teller = Teller(name, clock)
        self._is_shared = isinstance(store, RedisStore)
        if isinstance(store, RedisStore):
            self._redis = store  # this one and the next exist only then
            self._remote = Remote(
                store, self._quotas, teller=self._teller, policy=fallback, clock=clock, wall_clock=wall_clock
            )
            self._space: Space = self._remote.space
        else:
            self._space = (MemoryStore() if store is None else store).space(
                name, self._quotas, clock, wall_clock, self._teller
            )
        self._rules = self._space.rules
        # What most calls need and no more; None where a call needs more.
        self._plain = self._space.acquire if not self._is_shared and not shadow else None
        self._longest = min(longest_wait(quota) for quota in self._quotas)
        self._queue = Queue(clock, max_waiting, self._requeue)
        self._wait_sync: Callable[[threading.Event, float], object] = threading.Event.wait

    @property
    def name(self) -> str:
        """What it is called in events, errors and logs."""
        return self._name

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """What it enforces, the shortest period first."""
        return self._quotas

    def __repr__(self) -> str:
        quotas = "; ".join(map(str, self._quotas))
        where = repr(self._redis) if self._is_shared else "in memory"
        waiting = f", {len(self._queue)} waiting" if len(self._queue) else ""
        return f"<RateLimiter {self._name!r} {quotas}, {where}{waiting}>"

    # --- at once ---

    async def try_acquire(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Take `cost` units of `key`'s limit if they are there now; never waits for capacity.

        With a `RedisStore` it waits for the store, at most the store's budget.

        Args:
            key: whose limit it is, a string or bytes of any length; "" is the limit of all together.
            cost: units, 0 or more; 0 takes nothing.

        Returns:
            The decision, true if the call may pass.

        Raises:
            ConfigurationError: a key or cost that makes no sense.

        Cancellation: nothing stays charged.
        """
        plain = self._plain
        if (
            plain is not None
            and type(key) is str
            and len(key) <= _LONGEST_PLAIN_KEY
            and type(cost) is int
            and 0 < cost <= MAX_COST
        ):
            quick = plain(key, cost)
            return quick if quick[0] and not LimitNear.sinks else self._told(quick, cost)
        own = self._own_key(key, cost)
        # What most calls on a shared store need is written out here: calls of our own would be a thirtieth of the cost.
        reachable = self._is_shared and self._redis.reachable
        decision = self._space.refusal(own, cost) if reachable else self._at_once(own, cost)
        if decision is None:
            item, rank = await self._redis.trips().ask(_new(Request, (self._remote, "acquire", own, cost, "")))
            decision = self._remote.acquired(item, rank)
            if decision[0] and not LimitNear.sinks:
                return decision
        return self._told(decision, cost)

    def try_acquire_sync(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Do the same as `try_acquire` in sync code, from any thread."""
        plain = self._plain
        if (
            plain is not None
            and type(key) is str
            and len(key) <= _LONGEST_PLAIN_KEY
            and type(cost) is int
            and 0 < cost <= MAX_COST
        ):
            quick = plain(key, cost)
            return quick if quick[0] and not LimitNear.sinks else self._told(quick, cost)
        own = self._own_key(key, cost)
        decision = self._at_once(own, cost)
        if decision is None:
            decision = self._remote.acquired(*self._ask_sync("acquire", own, cost))
        return self._told(decision, cost)

    def _at_once(self, key: str, cost: int) -> Decision | None:
        """Decide without a trip, where that is possible."""
        if not self._is_shared:
            return self._space.acquire(key, cost)
        fallback = self._fallback()
        return self._space.refusal(key, cost) if fallback is None else fallback.decide(key, cost)

    async def at_most(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Take as many units as there are now, `cost` at the most; `granted` tells how many, and that is charged.

        Refused only if there is not even one unit. Args, errors and cancellation as in `try_acquire`.
        """
        own = self._own_key(key, cost)
        decision = self._most_at_once(own, cost)
        if decision is None:
            item, _ = await self._ask("acquire", own, 1, str(cost))
            decision = self._remote.acquired_most(item, cost)
        return self._told(decision, cost)

    def at_most_sync(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Do the same as `at_most` in sync code, from any thread."""
        own = self._own_key(key, cost)
        decision = self._most_at_once(own, cost)
        if decision is None:
            item, _ = self._ask_sync("acquire", own, 1, str(cost))
            decision = self._remote.acquired_most(item, cost)
        return self._told(decision, cost)

    def _most_at_once(self, key: str, cost: int) -> Decision | None:
        if not self._is_shared:
            return self._space.at_once(key, cost, self._rules, "memory", least=min(1, cost))
        fallback = self._fallback()
        return self._space.refusal(key, min(1, cost)) if fallback is None else fallback.decide_most(key, cost)

    # --- looking and taking back ---

    async def peek(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Tell what `try_acquire(key, cost)` would get now, and take nothing. Args and errors as there."""
        own = self._own_key(key, cost)
        decision = self._looked(own, cost)
        if decision is None:
            item, _ = await self._ask("peek", own, cost)
            decision = self._remote.peeked(item)
        return decision

    def peek_sync(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Do the same as `peek` in sync code, from any thread."""
        own = self._own_key(key, cost)
        decision = self._looked(own, cost)
        if decision is None:
            item, _ = self._ask_sync("peek", own, cost)
            decision = self._remote.peeked(item)
        return decision

    def admission(self, key: str | bytes = "", cost: int = 1) -> Admission:
        """Tell whether `try_acquire(key, cost)` would be granted, as far as this process knows; takes nothing.

        Other than `peek` it makes no trip: a shared store that has not refused this key lately is taken to allow it.
        """
        own = self._own_key(key, cost)
        decision = self._looked(own, cost)
        if decision is None:
            decision = self._space.refusal(own, cost)
        if decision is None or decision.allowed:
            return ADMITTED
        return Admission(allowed=False, retry_after=decision.retry_after, reason="rate_limited")

    def _looked(self, key: str, cost: int) -> Decision | None:
        if not self._is_shared:
            return self._space.peek(key, cost, self._rules, "memory")
        fallback = self._fallback()
        return None if fallback is None else fallback.look(key, cost)

    async def refund(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Give `cost` units back that were taken and not used; more than was taken leaves the key as new.

        Returns:
            What the limit is after it, as `try_acquire` with a cost of 0 tells it. Args and errors as there.
        """
        own = self._own_key(key, cost)
        decision = self._refunded(own, cost)
        if decision is None:
            item, _ = await self._ask("refund", own, cost)
            decision = self._remote.refunded(item)
        return decision

    def refund_sync(self, key: str | bytes = "", cost: int = 1) -> Decision:
        """Do the same as `refund` in sync code, from any thread."""
        own = self._own_key(key, cost)
        decision = self._refunded(own, cost)
        if decision is None:
            item, _ = self._ask_sync("refund", own, cost)
            decision = self._remote.refunded(item)
        return decision

    def _refunded(self, key: str, cost: int) -> Decision | None:
        if not self._is_shared:
            return self._space.refund(key, cost, self._rules, "memory")
        fallback = self._fallback()
        return None if fallback is None else fallback.give_back(key, cost)

    async def reset(self, key: str | bytes = "") -> None:
        """Make `key` as new, its block included. While the store is out of reach, in this instance only."""
        own = self._own_key(key, 1)
        self._space.reset(own)
        if self._is_shared_now():
            await self._ask("reset", own, 0)

    def reset_sync(self, key: str | bytes = "") -> None:
        """Do the same as `reset` in sync code, from any thread."""
        own = self._own_key(key, 1)
        self._space.reset(own)
        if self._is_shared_now():
            self._ask_sync("reset", own, 0)

    async def block(self, key: str | bytes, seconds: float) -> None:
        """Refuse `key` for so many seconds, whatever its limit has left; 0 ends a block.

        Shared through Redis, where there is one; while that is out of reach, in this instance only, and Redis is told
        when it is back. Who waits already gets its turn; `acquire` does not wait for the end of a block.

        Args:
            key: as in `try_acquire`.
            seconds: 0 to ten years.

        Raises:
            ConfigurationError: a key or duration that makes no sense.
        """
        own, duration = self._own_key(key, 1), _microseconds(seconds)
        self._space.block(own, duration)
        if self._is_shared:
            item = (await self._ask("block", own, 0, str(duration)))[0] if self._fallback() is None else None
            self._note_block(own, item)

    def block_sync(self, key: str | bytes, seconds: float) -> None:
        """Do the same as `block` in sync code, from any thread."""
        own, duration = self._own_key(key, 1), _microseconds(seconds)
        self._space.block(own, duration)
        if self._is_shared:
            item = self._ask_sync("block", own, 0, str(duration))[0] if self._fallback() is None else None
            self._note_block(own, item)

    def _note_block(self, key: str, item: Item | None) -> None:
        if item is None or not isinstance(item.outcome, Told):
            self._remote.fallback.block(key)

    # --- waiting ---

    async def acquire(self, key: str | bytes = "", cost: int = 1, *, timeout: float | None = None) -> Decision:  # noqa: ASYNC109 - it decides whether to wait at all; a cancel scope could only end the wait
        """Take `cost` units of `key`'s limit, waiting for them in the order of arrival.

        The units are taken at once, and with them a slot ahead: one trip, no polling, and no newcomer can pass. A wait
        that `timeout` or the deadline of an enclosing cancel scope cannot hold fails at once and takes nothing.
        Waiters of other keys are not held up.

        Args:
            key: as in `try_acquire`.
            cost: units, as in `try_acquire`.
            timeout: seconds to wait for the turn at most, 0 or more; None waits as long as it takes, up to an hour or
                one period, if that is longer.

        Returns:
            A decision that is true.

        Raises:
            RateLimitedError: the call may not pass. `reason` is "deadline" (the wait would be longer than allowed),
                "never" (the cost is larger than the burst), "blocked", "max_waiting" (too many wait already) or
                "closed" (the store is out of reach, and `fallback` says so); `decision` has the rest.
            ConfigurationError: an argument that makes no sense.

        Cancellation: the units are given back, and those behind move up once all who leave at that moment have left.
        """
        own, longest = self._own_key(key, cost), min(_longest(timeout), self._longest)
        if self._shadow:
            return await self.try_acquire(key, cost)
        deadline = anyio.current_effective_deadline()
        if deadline != inf:  # and minus infinity in a scope that is cancelled already
            longest = min(longest, int(max(0.0, deadline - anyio.current_time()) * MICROSECONDS))
        place = self._queue.claim()
        try:
            reserved = self._reserved(own, cost, longest if place else 0)
            if reserved is None:
                item, _ = await self._ask("reserve", own, cost, str(longest if place else 0))
                reserved = self._remote.reserved(item, longest if place else 0)
            wait, decision = reserved
            if wait is None:
                raise self._refused(own, decision, "deadline" if place else "max_waiting")
            if wait:
                await self._wait(own, cost, wait)
        finally:
            if place:
                self._queue.release()
        return self._told(decision, cost)

    def acquire_sync(self, key: str | bytes = "", cost: int = 1, *, timeout: float | None = None) -> Decision:
        """Do the same as `acquire` in sync code, from any thread, which sleeps until its turn.

        A wait that would end after a `Deadline` around this code is refused at once.
        """
        own, longest = self._own_key(key, cost), min(_longest(timeout), self._longest)
        if self._shadow:
            return self.try_acquire_sync(key, cost)
        if (left := seconds_left()) != inf:
            longest = min(longest, int(max(0.0, left) * MICROSECONDS))
        place = self._queue.claim()
        try:
            reserved = self._reserved(own, cost, longest if place else 0)
            if reserved is None:
                item, _ = self._ask_sync("reserve", own, cost, str(longest if place else 0))
                reserved = self._remote.reserved(item, longest if place else 0)
            wait, decision = reserved
            if wait is None:
                raise self._refused(own, decision, "deadline" if place else "max_waiting")
            if wait:
                self._sleep(own, cost, wait)
        finally:
            if place:
                self._queue.release()
        return self._told(decision, cost)

    def _reserved(self, key: str, cost: int, longest: int) -> tuple[int | None, Decision] | None:
        """Reserve without a trip, where that is possible."""
        if not self._is_shared:
            return self._space.reserve(key, cost, longest, self._rules, "memory")
        fallback = self._fallback()
        return None if fallback is None else fallback.reserve(key, cost, longest)

    async def _wait(self, key: str, cost: int, wait: int) -> None:
        moved = anyio.Event()
        call = caller_of_this_run()
        slot = self._clock() + wait / MICROSECONDS
        waiter = Waiter(cost, slot, partial(_call_if_it_runs, call, moved.set), partial(_call_anyway, call))
        self._queue.enter(key, waiter)
        try:
            while (left := waiter.slot - self._clock()) > 0:
                with anyio.move_on_after(left):
                    await moved.wait()
                    moved = anyio.Event()
                    waiter.wake = partial(_call_if_it_runs, call, moved.set)
        except BaseException:
            self._queue.leave(key, waiter, passed=False)
            raise
        self._queue.leave(key, waiter, passed=True)

    def _sleep(self, key: str, cost: int, wait: int) -> None:
        moved = threading.Event()
        waiter = Waiter(cost, self._clock() + wait / MICROSECONDS, moved.set, lambda close_up: close_up())
        self._queue.enter(key, waiter)
        try:
            while True:
                moved.clear()  # before the slot is read: what moves it up afterwards is not missed
                left = waiter.slot - self._clock()
                if left <= 0:
                    break
                self._wait_sync(moved, min(left, threading.TIMEOUT_MAX))
        except BaseException:
            self._queue.leave(key, waiter, passed=False)
            raise
        self._queue.leave(key, waiter, passed=True)

    def _requeue(self, key: str, back: int, costs: Sequence[int], moved: Callable[[Sequence[int]], None]) -> None:
        if not self._is_shared:
            moved(self._space.requeue(key, back, costs, self._rules))
            return
        fallback = self._fallback()
        if fallback is not None:
            moved(fallback.requeue(key, back, costs))
        else:
            request = Request(self._remote, "requeue", key, back, " ".join(map(str, costs)))
            self._redis.trips().tell(request, partial(_report, moved))

    def _refused(self, key: str, decision: Decision, otherwise: str) -> RateLimitedError:
        """Tell that a call was refused that was ready to wait, and make its error."""
        error = self._rejection(key, decision, otherwise)
        self._tell_refusal(decision, error.reason)
        return error

    def _rejection(self, key: str, decision: Decision, otherwise: str) -> RateLimitedError:
        return RateLimitedError(self._name, self._reason(key, decision, otherwise), decision.retry_after, decision)

    def _reason(self, key: str, decision: Decision, otherwise: str) -> str:
        if decision.never:
            return "never"
        if decision.source == "fallback" and self._remote.fallback.policy == "closed":
            return "closed"
        return "blocked" if self._space.blocked_for(key) else otherwise

    def refusal(self, key: str | bytes, decision: Decision) -> RateLimitedError:
        """Make the error of a call that `try_acquire(key)` refused with `decision`; its `reason` says why."""
        return self._rejection(self._own_key(key, 1), decision, "limit")

    # --- around functions ---

    def bound(
        self,
        *,
        key: str | bytes | Callable[..., str | bytes] = "",
        cost: int | Callable[..., int] = 1,
        wait: bool = False,
        timeout: float | None = None,
    ) -> BoundLimiter:
        """Give this limiter with a key and a cost of its own: a decorator, and a policy for pipelines.

        Args:
            key: whose limit a call is: a string, or a plain function of the call's arguments.
            cost: units of a call: a number, or a plain function of the call's arguments.
            wait: wait for the turn instead of refusing.
            timeout: seconds to wait at most, only with `wait`; None: see `acquire`.

        Raises:
            ConfigurationError: an option that makes no sense.
        """
        return BoundLimiter(self, key=key, cost=cost, wait=wait, timeout=timeout)

    # --- what all share ---

    def _own_key(self, key: str | bytes, cost: int) -> str:
        """Check what the caller gave, and give the key as it is kept and sent."""
        if type(cost) is not int or not 0 <= cost <= MAX_COST:
            check_int("cost", cost, least=0, most=MAX_COST)
        if type(key) is not str:
            if isinstance(key, bytes):
                key = key.decode("utf-8", "surrogateescape")
            elif not isinstance(key, str):
                raise ConfigurationError(f"key must be a string or bytes, got {shown(type(key).__name__)}")
        if (known := self._digests.get(key)) is not None:
            return known
        if not self._is_shared:
            return key if len(key) <= _LONGEST_PLAIN_KEY else self._digest(key)
        if self._hash_keys is False and len(key) <= _LONGEST_PLAIN_KEY and key.isprintable():
            return key
        return self._digest(key)

    def _digest(self, key: str) -> str:
        hashing = self._hash.copy()
        hashing.update(key.encode("utf-8", "surrogatepass"))
        digest: str = hashing.hexdigest()
        if len(key) <= _LONGEST_PLAIN_KEY:
            if len(self._digests) >= _MAX_DIGESTS:
                self._digests.clear()
            self._digests[key] = digest
        return digest

    def _fallback(self) -> Fallback | None:
        """Give what decides instead of the shared store, while that is out of reach; and have that looked after."""
        store = self._redis
        if store.reachable:
            return None
        if store.needs_recovery():
            store.trips().recover()
        return self._remote.fallback

    def _is_shared_now(self) -> bool:
        return self._is_shared and self._fallback() is None

    def _ask(self, operation: Operation, key: str, cost: int, extra: str = "") -> Awaitable[tuple[Item, int]]:
        return self._redis.trips().ask(_new(Request, (self._remote, operation, key, cost, extra)))

    def _ask_sync(self, operation: Operation, key: str, cost: int, extra: str = "") -> tuple[Item, int]:
        return self._redis.threads.ask_sync(Request(self._remote, operation, key, cost, extra))

    def _told(self, decision: Decision, asked: int) -> Decision:
        """Tell what has to be told of a decision, and give what the caller gets."""
        if decision.allowed and (decision.granted >= asked or not self._shadow):
            if LimitNear.sinks and decision.granted and decision.remaining * _NEAR < decision.quota.capacity:
                self._teller.tell(LimitNear, remaining=decision.remaining, limit=decision.limit)
            return decision
        self._tell_refusal(decision, "never" if decision.never else "shadow" if self._shadow else "limit")
        if self._shadow:
            return decision._replace(allowed=True, source="shadow", granted=asked)
        return decision

    def _tell_refusal(self, decision: Decision, reason: str) -> None:
        if LimitRejected.sinks:
            self._teller.tell(
                LimitRejected,
                limit=decision.limit,
                per=decision.quota.per,
                retry_after=decision.retry_after,
                source=decision.source,
                reason=reason,
            )

    # --- lifecycle ---

    async def aclose(self) -> None:
        """End what the store keeps open for this event loop and for threads. The limiter may be used again."""
        if self._is_shared:
            await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):  # bounded by the store's budget
            await self.aclose()


def _call_if_it_runs(call: Callable[..., object], function: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the run is over
        call(function)


def _call_anyway(call: Callable[..., object], function: Callable[[], object]) -> None:
    try:
        call(function)
    except RuntimeError:  # the run is over, but those behind may wait in another one
        function()


def _report(moved: Callable[[Sequence[int]], None], item: Item) -> None:
    """Report the waits of those who move up; without an answer they keep their slots."""
    if isinstance(item.outcome, Told):
        moved(item.outcome.waits)


def _keyed_hash(hash_keys: object, name: str) -> Any:
    if isinstance(hash_keys, bytes):
        if not 1 <= len(hash_keys) <= blake2b.MAX_KEY_SIZE:
            raise ConfigurationError(f"hash_keys must be 1 to 64 bytes, or True or False, got {len(hash_keys)} bytes")
        return blake2b(digest_size=16, key=hash_keys)
    if not isinstance(hash_keys, bool):
        raise ConfigurationError(f"hash_keys must be True, False or a secret of bytes, got {type(hash_keys).__name__}")
    return blake2b(digest_size=16, key=blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).digest())


def _microseconds(seconds: float) -> int:
    check_number("seconds", seconds, least=0, most=MAX_PER)
    return round(seconds * MICROSECONDS)


def _longest(timeout: float | None) -> int:
    if timeout is None:
        return round(MAX_PER * MICROSECONDS)
    check_number("timeout", timeout, least=0)
    return round(min(timeout, MAX_PER) * MICROSECONDS)
