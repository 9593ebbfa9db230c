"""Circuit breakers by name: one for all who call the same dependency, and never too many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar, cast, overload
from weakref import WeakValueDictionary

from resilience.checks import check_function, check_int, check_name, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.events import BreakerAdded, BreakerRemoved, Event, RegistryFull
from resilience.events.bus import Outbox
from resilience.forks import renew_locks_in_child

from .breaker import CircuitBreaker, CircuitBreakerSnapshot, is_as_new
from .config import CircuitBreakerConfig, difference, merged
from .wrap import check_guardable

_MOST_LOOKED_AT: Final = 1_000
"""Breakers that one search for room looks at: a few milliseconds, in a registry that is full of those that matter."""

F = TypeVar("F", bound=Callable[..., Any])


class CircuitBreakerRegistry:
    """Gives the same breaker for the same name, and keeps at most `max_size` of them.

    When it is full, a breaker that is closed, idle and has counted nothing makes room: a new one would behave the
    same, so nothing is lost, and names made from input (hosts, tenants) cannot fill the memory. No other is ever
    evicted. Whoever still holds an evicted breaker shares it with all who ask for its name.

    Args:
        default: configuration of breakers that come without one; None is `CircuitBreakerConfig()`.
        max_size: at least 1.
        clock: monotonic seconds, given to every breaker made here.

    Raises:
        ConfigurationError: a value that makes no sense.
    """

    def __init__(
        self,
        default: CircuitBreakerConfig | None = None,
        *,
        max_size: int = 10_000,
        clock: Clock = time.monotonic,
    ) -> None:
        check_int("max_size", max_size)
        check_function("clock", clock)
        self._default = merged(CircuitBreakerConfig() if default is None else default, {})
        self._max_size = max_size
        self._clock = clock
        # Guards the two maps. Reentrant, because the garbage collector may run a `__del__` that asks for a breaker.
        self._lock = threading.RLock()
        self._listed: dict[str, CircuitBreaker] = {}
        self._held_elsewhere: WeakValueDictionary[str, CircuitBreaker] = WeakValueDictionary()
        self._outbox = Outbox()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Start afresh in a forked child, with the same breakers."""
        self._lock = threading.RLock()
        self._outbox.renew_locks()

    def get(self, name: str, config: CircuitBreakerConfig | None = None, **overrides: Any) -> CircuitBreaker:
        """Give the breaker of this name, made now if there is none.

        Args:
            name: a non-empty string.
            config: how it shall judge; None takes the registry's default.
            overrides: fields in place of that configuration's.

        Without `config` and overrides, whatever breaker has the name is given, however it is configured.

        Raises:
            ConfigurationError: the name is taken by a breaker of another configuration (two parts of a program
                disagree about one dependency; the message names the fields), or a value makes no sense.
        """
        check_name(name)
        wanted = None
        if config is not None or overrides:
            wanted = merged(self._default if config is None else config, overrides)
        breaker = self._find(name)
        if breaker is None:
            # Made outside the lock, since its open time may be a function of the user's; the first to come back wins.
            made = CircuitBreaker(name, wanted or self._default, clock=self._clock)
            now = self._clock()
            with self._lock:
                breaker = self._find(name)
                if breaker is None:
                    breaker = made
                    self._add(made, now)
        self._outbox.deliver()
        if wanted is not None and breaker.config != wanted:
            raise ConfigurationError(
                f"circuit breaker {name!r} exists with another configuration, which differs in "
                f"{difference(breaker.config, wanted)}: give both places the same, or use another name"
            )
        return breaker

    def _find(self, name: str) -> CircuitBreaker | None:
        with self._lock:
            return self._listed.get(name) or self._held_elsewhere.get(name)

    def _add(self, breaker: CircuitBreaker, now: float) -> None:
        if len(self._listed) < self._max_size or self._evict(now):
            self._listed[breaker.name] = breaker
            self._put(BreakerAdded, breaker.name, now)
        else:
            self._held_elsewhere[breaker.name] = breaker
            self._put(RegistryFull, breaker.name, now, len(self._listed))

    def _evict(self, now: float) -> bool:
        # A list, and second looks: the garbage collector may run a `__del__` that uses this registry at any step.
        for name, breaker in list(islice(self._listed.items(), _MOST_LOOKED_AT)):
            as_new = is_as_new(breaker)
            if self._listed.get(name) is not breaker:
                continue
            if as_new:
                del self._listed[name]
                self._held_elsewhere[name] = breaker
                self._put(BreakerRemoved, name, now, "evicted")
                return True
            if len(self._listed) > _MOST_LOOKED_AT:
                self._listed[name] = self._listed.pop(name)  # to the end: the next search begins with others
        return False

    def _put(self, kind: type[Event], *fields: Any) -> None:
        if kind.sinks:
            self._outbox.put(kind(*fields))

    def remove(self, name: str) -> bool:
        """Forget the breaker of this name; tell whether there was one.

        The next `get` makes a new one. Functions that the removed breaker guards keep it and its state.
        """
        now = self._clock()
        with self._lock:
            listed = self._listed.pop(name, None)
            removed = self._held_elsewhere.pop(name, None) or listed
            if removed is not None:
                self._put(BreakerRemoved, name, now, "removed")
        self._outbox.deliver()
        return removed is not None

    def snapshot(self) -> dict[str, CircuitBreakerSnapshot]:
        """Give the snapshot of every listed breaker, by name."""
        return {breaker.name: breaker.snapshot() for breaker in self}

    def __contains__(self, name: object) -> bool:
        return name in self._listed

    def __iter__(self) -> Iterator[CircuitBreaker]:
        """Iterate over the breakers that are listed now; others may come and go meanwhile."""
        with self._lock:
            return iter(list(self._listed.values()))

    def __len__(self) -> int:
        return len(self._listed)

    def __repr__(self) -> str:
        return f"<CircuitBreakerRegistry of {len(self)}, at most {self._max_size}>"


circuit_breakers: Final = CircuitBreakerRegistry()
"""The registry of this process: where `@circuit_breaker` looks, and what monitoring shows."""


@overload
def circuit_breaker(target: F, /) -> F: ...
@overload
def circuit_breaker(
    target: str | CircuitBreaker | None = None, config: CircuitBreakerConfig | None = None, /, **overrides: Any
) -> Callable[[F], F]: ...
def circuit_breaker(
    target: object = None, config: CircuitBreakerConfig | None = None, /, **overrides: Any
) -> Callable[..., Any]:
    """Guard a function with a circuit breaker of `circuit_breakers`, found by name.

        @circuit_breaker
        @circuit_breaker("payments", failure_rate_threshold=0.3)
        @circuit_breaker(breaker)

    Bare, or without a name, the breaker is called `module.qualname` after the function. Functions with the same name
    given share one breaker. The guarded function has it as `.circuit_breaker`.

    Args:
        target: the breaker's name, or a breaker, or (used bare) the function.
        config: as for `CircuitBreakerRegistry.get`.
        overrides: fields of the configuration.

    Raises:
        ConfigurationError: not a function, the name is taken with another configuration, or a value makes no sense.
    """
    if isinstance(target, CircuitBreaker):
        if config is not None or overrides:
            raise ConfigurationError(
                f"config must not be given along with a breaker: {target.name!r} has its own configuration"
            )
        return target
    if target is None or isinstance(target, str):
        return lambda function: _guard(function, target, config, overrides)
    return _guard(cast("Callable[..., Any]", target), None, config, overrides)


def _guard(
    function: Callable[..., Any], name: str | None, config: CircuitBreakerConfig | None, overrides: dict[str, Any]
) -> Callable[..., Any]:
    check_guardable(function)  # first, so that nothing is listed in vain
    if name is None:
        if not hasattr(function, "__qualname__"):
            raise ConfigurationError(
                f"a circuit breaker guards functions, got {shown(function)}; others need a name given"
            )
        name = f"{function.__module__}.{function.__qualname__}"
    return circuit_breakers.get(name, config, **overrides)(function)
