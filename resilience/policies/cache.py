"""Results that are used again for a while, and one computation for all who ask at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from contextvars import ContextVar
from math import inf
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import anyio
import anyio.lowlevel

from resilience.checks import check_function, check_int, check_number, is_async
from resilience.clock import Clock
from resilience.deadline import seconds_left
from resilience.errors import CallTimeoutError, type_name
from resilience.events import CacheHit, PolicyHookFailed, emit
from resilience.forks import renew_locks_in_child

from .entries import Entries, Entry, Key
from .marks import Mark, Marks
from .policy import Policy, Site, refuse_awaitable
from .unchanged import raise_unchanged

Place: TypeAlias = tuple[Hashable, Hashable, Hashable]
"""Where a computation goes on: the event loop (None for plain functions), the function, the key."""

_leading: ContextVar[Marks] = ContextVar("resilience_leading", default=())
"""The marks of the computations that the running code is part of: who waited for one of these would wait for ever."""


class Cache(Policy):
    """Keeps results for a while, and lets callers who ask for the same at the same time share one computation.

        cache = Cache(60, max_size=1_000)

        @cache
        async def fetch(user_id: int) -> User: ...

    All who get a result get the same object: it must be one that can be shared, not a stream. Errors are never kept.

    A caller who finds its key being computed waits for that. Each keeps its own deadline and may be cancelled, which
    harms nobody else: when the one who computes is cancelled, or exits, another takes over from the start. An error is
    raised in all who wait for it: asked again by each, a dependency in trouble would get all the calls that coalescing
    saved, one after the other. It is one object, each time with the traceback of where it came from and the caller's
    own frames only, as with a future of asyncio. One that is raised because the deadline of the one who computes cut
    its retries short is everybody's, too. A call for a key from inside of its own computation computes anew, and so
    does one that would close a circle of computations that wait for each other.

    Args:
        ttl: seconds >= 0 for which a result is used again, from its arrival on; `math.inf` until it is pushed out; 0
            keeps nothing, and only lets callers share.
        max_size: results kept, >= 1; the least recently used go first. The keys are kept with them, and so is what
            they refer to: of a method, its object.
        key: function of the call's arguments that gives the key; None takes the arguments themselves. Keys are
            compared by ==, so that 1, 1.0 and True are one. A key that has no hash bypasses the cache, and so does a
            call whose `key` function raises, or whose key when it is compared; `PolicyHookFailed` tells that.
            A key that changes while it is kept is another key from then on.
        clock: monotonic seconds.
        name: in events; None is the name of the pipeline, or of the function.

    One cache may be around several functions, whose results are kept apart but count together. It may be used in
    several threads and event loops: these share results; callers of an async function share a computation in one loop.

    Raises:
        ConfigurationError: a value that makes no sense.
        CallTimeoutError: in sync code: the `Deadline` around the caller passed while it waited for another's result.

    Source: sharing is that of Go's singleflight, and `invalidate` its `Forget`.
    """

    kind: ClassVar[str] = "cache"
    title: ClassVar[str] = "a cache"

    def __init__(
        self,
        ttl: float,
        *,
        max_size: int,
        key: Callable[..., Hashable] | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if ttl != inf:
            check_number("ttl", ttl, least=0)
        check_int("max_size", max_size)
        if key is not None:
            check_function("key", key)
        check_function("clock", clock)
        self.ttl = ttl
        self.max_size = max_size
        self._key = key
        self._clock = clock
        self._entries = Entries(ttl, max_size)
        self._flights: dict[Place, _Flight] = {}
        # Guards both of these. No function of the user runs under it but the `__eq__` and `__hash__` of keys, which
        # may well call a cached function: hence reentrant, as in functools.lru_cache.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: the threads that compute are the parent's. Results stay, if they are whole."""
        if not self._lock.acquire(blocking=False):
            self._entries = Entries(self.ttl, self.max_size)
        self._lock = threading.RLock()
        self._flights = {}

    def __repr__(self) -> str:
        return f"<Cache of {len(self._entries)} of {self.max_size} results, for {self.ttl:g} s>"

    def __len__(self) -> int:
        """How many results are kept that are still good."""
        now = self._clock()
        with self._lock:
            self._entries.sweep(now, len(self._entries))
            return len(self._entries)

    def __bool__(self) -> bool:
        """True also when it is empty: it is a policy first."""
        return True

    def key_of(self, *args: Any, **kwargs: Any) -> Hashable:
        """Give the key of a call with these arguments, for `invalidate`."""
        if self._key is not None:
            return self._key(*args, **kwargs)
        return args, tuple(sorted(kwargs.items()))

    def invalidate(self, key: Hashable) -> None:
        """Forget what is kept for this key, of all functions.

        What is being computed for it goes to those who wait already, and is not kept: who asks from now on, does not
        get what may have been read before. Without a `key` function, `key_of` makes the key.
        """
        with self._lock:
            kept = Key(key)
            self._entries.forget(kept)
            for place in [place for place in self._flights if place[2] == kept]:
                del self._flights[place]

    def clear(self) -> None:
        """Forget everything, as `invalidate` does one key."""
        with self._lock:
            self._entries = Entries(self.ttl, self.max_size)
            self._flights = {}

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function` when no result is kept, and nobody computes it."""
        # In a pipeline `function` may be a wrapper that is new for each call; `origin` tells what is really called.
        origin = site.origin
        if not _has_hash(origin):
            origin = object()
        around = self._around_async if is_async(function) else self._around_sync
        return around(function, origin, site)

    def _around_async(self, function: Callable[..., Any], origin: Hashable, site: Site) -> Callable[..., Any]:
        async def cached(*args: Any, **kwargs: Any) -> Any:
            key = self._key_for(args, kwargs, site)
            if key is None:
                return await function(*args, **kwargs)
            entry = self._find(origin, key, site)
            if entry is not None:
                return entry.value
            place = (anyio.lowlevel.current_token().native_token, origin, key)
            while True:
                flight, role = self._board(place, anyio.Event)
                if role == "insider":
                    return await function(*args, **kwargs)
                if role == "leader":
                    with _Lead(self, flight, place):
                        return flight.keep(await function(*args, **kwargs))
                try:
                    await flight.event.wait()
                finally:
                    outcome = self._leave(flight)
                try:
                    if outcome is not None:
                        return outcome.get()
                finally:
                    del outcome  # its error holds this frame

        return cached

    def _around_sync(self, function: Callable[..., Any], origin: Hashable, site: Site) -> Callable[..., Any]:
        def cached(*args: Any, **kwargs: Any) -> Any:
            key = self._key_for(args, kwargs, site)
            if key is None:
                return self._call_sync(function, args, kwargs)
            entry = self._find(origin, key, site)
            if entry is not None:
                return entry.value
            place = (None, origin, key)
            while True:
                flight, role = self._board(place, threading.Event)
                if role == "insider":
                    return self._call_sync(function, args, kwargs)
                if role == "leader":
                    with _Lead(self, flight, place):
                        return flight.keep(self._call_sync(function, args, kwargs))
                try:
                    _wait_sync(flight.event)
                finally:
                    outcome = self._leave(flight)
                try:
                    if outcome is not None:
                        return outcome.get()
                finally:
                    del outcome  # as above

        return cached

    def _call_sync(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        refuse_awaitable(result, self.title)
        return result

    def _key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any], site: Site) -> Key | None:
        """Give the key; None for a call that bypasses the cache."""
        if self._key is None:
            key: Hashable = (args, tuple(sorted(kwargs.items())) if kwargs else ())
        else:
            try:
                key = self._key(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the user's function may raise anything
                self._tell_key(error, site)
                return None
        try:
            return Key(key)
        except Exception:  # noqa: BLE001 - a type of the user's may raise anything
            return None

    def _tell_key(self, error: Exception, site: Site) -> None:
        if PolicyHookFailed.sinks:
            emit(PolicyHookFailed(site.name, self._clock(), hook="key", error_type=type_name(error)))

    # --- what is looked up and noted in one go, under the lock ---

    def _find(self, origin: Hashable, key: Key, site: Site) -> Entry | None:
        now = self._clock()
        try:
            with self._lock:
                entry = self._entries.get(origin, key, now)
        except Exception as error:  # noqa: BLE001 - of comparing keys of the user's, as below
            self._tell_key(error, site)
            return None
        if entry is not None and CacheHit.sinks:
            emit(CacheHit(site.name, now))
        return entry

    def _board(self, place: Place, make_event: Callable[[], Any]) -> tuple[_Flight, _Role]:
        """Join the computation at a place, or lead one. An insider is part of it, and must not wait for it."""
        try:
            return self._join(place, make_event)
        except Exception:  # noqa: BLE001 - of comparing keys: nobody finds this one, so the call is made without
            return _Flight(), "insider"

    def _join(self, place: Place, make_event: Callable[[], Any]) -> tuple[_Flight, _Role]:
        now = self._clock()
        with self._lock:
            flight = self._flights.get(place)
            if flight is not None and not flight.mark.await_by(_leading.get()):
                return flight, "insider"
            if flight is None:
                flight = _Flight()
                entry = self._entries.get(place[1], place[2], now)
                if entry is None:
                    self._flights[place] = flight
                    return flight, "leader"
                # It came from another thread since the caller looked.
                flight.keep(entry.value)
            if flight.event is None:
                flight.event = make_event()
                if flight.outcome is not None:
                    flight.event.set()
            flight.followers += 1
            return flight, "follower"

    def land(self, flight: _Flight, place: Place) -> None:
        """End a computation: keep its result, and let those who wait go on."""
        now = self._clock()
        with self._lock:
            # What comparing keys raises costs an entry, and neither the call nor those who wait for it.
            with suppress(Exception):
                if self._flights.get(place) is flight:  # else it was invalidated
                    del self._flights[place]
                    if flight.outcome is not None and flight.outcome.error is None:
                        self._entries.put(place[1], place[2], flight.outcome.value, now)
            if not flight.followers:
                flight.outcome = None
            event = flight.event
        if event is not None:
            event.set()

    def _leave(self, flight: _Flight) -> _Outcome | None:
        """Take what came of a computation: None if nothing did. The last one turns out the light."""
        flight.mark.leave(_leading.get())
        with self._lock:
            flight.followers -= 1
            outcome = flight.outcome
            if not flight.followers and flight.event.is_set():
                flight.outcome = None
        return outcome


_Role: TypeAlias = Literal["insider", "leader", "follower"]


class _Outcome(NamedTuple):
    """What a computation gave, or the error that it ended with."""

    value: Any
    error: Exception | None = None
    traceback: TracebackType | None = None

    def get(self) -> Any:
        if self.error is None:
            return self.value
        try:
            raise_unchanged(self.error, self.traceback)
        finally:
            del self  # the error holds this frame


class _Flight:
    """One computation. `outcome` is None while it goes on, and for good if it was given up."""

    __slots__ = ("event", "followers", "mark", "outcome")

    def __init__(self) -> None:
        self.mark = Mark()
        self.event: Any = None
        self.followers = 0
        self.outcome: _Outcome | None = None

    def keep(self, value: Any) -> Any:
        """Note the result, and give it."""
        self.outcome = _Outcome(value)
        return value


class _Lead:
    """Stands around the code that computes; whatever happens in there, nobody waits for ever."""

    __slots__ = ("_cache", "_flight", "_place", "_token")

    def __init__(self, cache: Cache, flight: _Flight, place: Place) -> None:
        self._cache = cache
        self._flight = flight
        self._place = place

    def __enter__(self) -> None:
        self._token = _leading.set((*_leading.get(), self._flight.mark))

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._flight.outcome = _Outcome(None, error, traceback)
        with suppress(ValueError):  # in a context of somebody else's: the garbage collector closes coroutines there
            _leading.reset(self._token)
        self._cache.land(self._flight, self._place)


def _wait_sync(event: threading.Event) -> None:
    seconds = seconds_left()
    if not event.wait(None if seconds == inf else min(max(seconds, 0.0), threading.TIMEOUT_MAX)):
        raise CallTimeoutError("total", max(seconds, 0.0))


def _has_hash(value: object) -> bool:
    try:
        hash(value)
    except Exception:  # noqa: BLE001 - a type of the user's may raise anything
        return False
    return True
