"""Results that are kept for a while, and computed once for all who want them at the same time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf
from types import TracebackType
from typing import Any, ClassVar, Final, TypeAlias

import anyio

from resilience.checks import check_function, check_int, check_number, is_async
from resilience.clock import Clock
from resilience.deadline import seconds_left
from resilience.errors import CallTimeoutError
from resilience.events import CacheHit, emit
from resilience.forks import renew_locks_in_child
from resilience.runs import caller_of_this_run

from .policy import Policy, Site, refuse_awaitable

Key: TypeAlias = tuple[object, Hashable]
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_NAMED: Final = object()  # between positional and named arguments in a key
_WAITS, _LEADS, _LANDED = "waits", "leads", "landed"


class Cache(Policy):
    """Keeps results for some seconds, the latest used so many, and lets one call compute what many want at once.

    Errors are not kept. While a result is computed, others who want the same wait for it, each with its own deadline
    and its own cancellation; when the one who computes is cancelled, the next in line takes over. When it fails, all
    who wait get that error: the same object, for it is one failure.

    What a result is known by is the function and its arguments, so that functions can share a cache and its bound.
    Those who share a result share the object: give out what nobody changes.

    Args:
        ttl: seconds for which a result is kept, > 0, from the moment it is there.
        max_size: results, >= 1; the one that was used longest ago makes room.
        key: function of the call's arguments; None takes the arguments themselves. Calls whose key is not hashable are
            made as if there was no cache.
        clock: monotonic seconds.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range.
        CallTimeoutError: in sync code, from the function: a `Deadline` around it passed while another thread computed.

    Cancellation: who waits stops waiting; who computes hands over.
    """

    kind: ClassVar[str] = "cache"
    title: ClassVar[str] = "a cache"

    def __init__(
        self,
        ttl: float,
        *,
        max_size: int,
        key: Callable[..., Any] | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        check_number("ttl", ttl, above=0)
        check_int("max_size", max_size)
        if key is not None:
            check_function("key", key)
        check_function("clock", clock)
        self.ttl = ttl
        self.max_size = max_size
        self._make_key = key
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, Any]] = OrderedDict()
        self._flights: dict[Key, _Flight] = {}
        # Guards both tables. Reentrant: hashing and comparing keys runs code of users, which may use this cache.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: what is computed is the parent's."""
        self._lock = threading.RLock()
        self._flights = {}

    def __len__(self) -> int:
        """Give how many results are kept, outdated ones that nobody has asked for included."""
        return len(self._kept)

    def __bool__(self) -> bool:
        """An empty cache is a cache all the same."""
        return True

    def __repr__(self) -> str:
        return f"<Cache of {len(self)} of {self.max_size} results for {self.ttl:g} s>"

    def clear(self) -> None:
        """Forget all results. What is computed at this moment is kept when it is there."""
        with self._lock:
            self._kept.clear()

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Forget what calls with these arguments gave, of all functions. It looks at all that is kept."""
        key = self._key_of((args, kwargs))
        with self._lock:
            for known in [one for one in self._kept if one[1] == key]:
                del self._kept[known]

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function` for what is not known yet."""
        return self._around_async(function, site) if is_async(function) else self._around_sync(function, site)

    def _around_async(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        async def cached(*args: Any, **kwargs: Any) -> Any:
            found = self._find(site, (args, kwargs))
            if found is None:
                return await function(*args, **kwargs)
            if isinstance(found, _Hit):
                return found.value
            flight = self._board(found, anyio.get_current_task().id)
            if flight is None:  # called by itself: to wait for that would take for ever
                return await function(*args, **kwargs)
            if flight.is_new or await flight.follow():
                try:
                    result = await function(*args, **kwargs)
                except Exception as error:
                    self._fail(flight, error)
                    raise
                except BaseException:
                    self._hand_over(flight)
                    raise
                self._land(flight, result)
                return result
            return flight.outcome()

        return cached

    def _around_sync(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        def cached(*args: Any, **kwargs: Any) -> Any:
            found = self._find(site, (args, kwargs))
            if found is None:
                return function(*args, **kwargs)
            if isinstance(found, _Hit):
                return found.value
            flight = self._board(found, threading.get_ident())
            if flight is None:
                return function(*args, **kwargs)
            if flight.is_new or flight.follow_sync():
                try:
                    result = function(*args, **kwargs)
                    if hasattr(type(result), "__await__"):
                        refuse_awaitable(result, self.title)
                except Exception as error:
                    self._fail(flight, error)
                    raise
                except BaseException:
                    self._hand_over(flight)
                    raise
                self._land(flight, result)
                return result
            return flight.outcome()

        return cached

    # --- keys and results ---

    def _find(self, site: Site, call: Arguments) -> _Hit | Key | None:
        """Give the result that is kept, else the key under which it is to be computed; None without a usable key."""
        key: Key = (site.origin, self._key_of(call))
        now = self._clock()
        with self._lock:
            try:
                kept = self._kept.get(key)
            except TypeError:  # not hashable
                return None
            if kept is None or now >= kept[0]:
                self._kept.pop(key, None)
                return key
            self._kept.move_to_end(key)
        if CacheHit.sinks:
            emit(CacheHit(site.name, now))
        return _Hit(kept[1])

    def _key_of(self, call: Arguments) -> Hashable:
        args, kwargs = call
        if self._make_key is not None:
            key: Hashable = self._make_key(*args, **kwargs)
            return key
        return (*args, _NAMED, *sorted(kwargs.items())) if kwargs else args

    def _keep(self, key: Key, result: Any) -> None:
        self._kept[key] = (self._clock() + self.ttl, result)
        self._kept.move_to_end(key)
        while len(self._kept) > self.max_size:
            self._kept.popitem(last=False)

    # --- computing together ---

    def _board(self, key: Key, who: int) -> _Seat | None:
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(key, who)
                return _Seat(flight, self, is_new=True)
            if flight.leader == who:
                return None
            return _Seat(flight, self, is_new=False, who=who)

    def _land(self, seat: _Seat, result: Any) -> None:
        with self._lock:
            self._keep(seat.flight.key, result)
            seat.flight.result = result
            followers = self._end(seat.flight)
        _wake(followers)

    def _fail(self, seat: _Seat, error: Exception) -> None:
        with self._lock:
            seat.flight.error, seat.flight.traceback = error, error.__traceback__
            followers = self._end(seat.flight)
        _wake(followers)

    def _end(self, flight: _Flight) -> list[_Seat]:
        del self._flights[flight.key]
        followers, flight.followers = list(flight.followers), OrderedDict()
        for follower in followers:
            follower.state = _LANDED
        return followers

    def _hand_over(self, seat: _Seat) -> None:
        """Let the next in line compute; if nobody waits, whoever comes next."""
        with self._lock:
            flight = seat.flight
            if not flight.followers:
                del self._flights[flight.key]
                return
            follower, _ = flight.followers.popitem(last=False)
            follower.state, flight.leader = _LEADS, follower.who
        _wake([follower])

    def _leave(self, seat: _Seat) -> bool:
        """Stop waiting; who was to take over hands over. False if there is nothing to wait for any more."""
        with self._lock:
            state = seat.state
            seat.flight.followers.pop(seat, None)
        if state == _LEADS:
            self._hand_over(seat)
        return state != _LANDED


class _Hit:
    """A result that was kept."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Flight:
    """A computation under way, and who waits for it. Changed under the cache's lock."""

    __slots__ = ("error", "followers", "key", "leader", "result", "traceback")

    def __init__(self, key: Key, leader: int) -> None:
        self.key = key
        self.leader = leader
        self.followers: OrderedDict[_Seat, None] = OrderedDict()
        self.result: Any = None
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None


class _Seat:
    """One caller in a flight: the one who computes, or one who waits."""

    __slots__ = ("_cache", "flight", "is_new", "state", "wake", "who")

    def __init__(self, flight: _Flight, cache: Cache, *, is_new: bool, who: int = 0) -> None:
        self.flight = flight
        self.is_new = is_new
        self.who = who
        self.state = _LEADS if is_new else _WAITS
        self.wake: Callable[[], object] = _nothing
        self._cache = cache
        if not is_new:
            flight.followers[self] = None

    async def follow(self) -> bool:
        """Wait for the result; True if it is to be computed here."""
        event, call = anyio.Event(), caller_of_this_run()
        self.wake = lambda: call(event.set)
        try:
            # Between taking the seat and now nobody could wake it: look first.
            while self.state is _WAITS:
                await event.wait()
        except BaseException:
            self._cache._leave(self)  # noqa: SLF001 - a part of the cache
            raise
        return self.state is _LEADS

    def follow_sync(self) -> bool:
        """Do the same in sync code."""
        event, longest = threading.Event(), seconds_left()
        self.wake = event.set
        try:
            while self.state is _WAITS:
                if not event.wait(None if longest == inf else max(0.0, longest)):
                    break
        except BaseException:
            self._cache._leave(self)  # noqa: SLF001 - as above
            raise
        if self.state is _WAITS and self._cache._leave(self):  # noqa: SLF001 - as above
            raise CallTimeoutError("total", longest)
        return self.state is _LEADS

    def outcome(self) -> Any:
        """Give what the leader got, or raise what it raised, with the leader's traceback each time.

        Otherwise the traceback would grow with each who raises it.
        """
        flight = self.flight
        if flight.error is None:
            return flight.result
        raise flight.error.with_traceback(flight.traceback)


def _wake(followers: list[_Seat]) -> None:
    for follower in followers:
        try:
            follower.wake()
        except RuntimeError:  # its event loop is over
            follower._cache._leave(follower)  # noqa: SLF001 - a part of the cache


def _nothing() -> None:
    """Wake nobody: the follower has not begun to wait, and will look first."""
