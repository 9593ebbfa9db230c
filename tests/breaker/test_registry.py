"""Breakers by name: one for all who ask, never too many, and the decorator that finds them."""

from __future__ import annotations

import functools
import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerRegistry,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    TimeWindow,
    circuit_breaker,
    circuit_breakers,
    subscribe,
)
from resilience.events import BreakerAdded, BreakerRemoved, Event, RegistryFull, capture
from resilience.testing import VirtualClock

T = TypeVar("T")


def make(clock: Callable[[], float], max_size: int = 10_000, **config: Any) -> CircuitBreakerRegistry:
    return CircuitBreakerRegistry(CircuitBreakerConfig(**config), max_size=max_size, clock=clock)


@pytest.fixture
def registry(clock: VirtualClock) -> CircuitBreakerRegistry:
    return make(clock)


def names(registry: CircuitBreakerRegistry) -> list[str]:
    return [breaker.name for breaker in registry]


# --- one name, one breaker ---


def test_the_same_name_gives_the_same_breaker(registry: CircuitBreakerRegistry) -> None:
    assert registry.get("db") is registry.get("db")
    assert registry.get("db") is not registry.get("cache")
    assert registry.get("db").name == "db"


def test_breakers_without_a_configuration_of_their_own_have_the_default_one(clock: VirtualClock) -> None:
    default = CircuitBreakerConfig(minimum_calls=3)
    assert CircuitBreakerRegistry(default).get("db").config == default
    assert CircuitBreakerRegistry().get("db").config == CircuitBreakerConfig()


def test_overrides_replace_fields_of_the_default_or_of_the_given_configuration(clock: VirtualClock) -> None:
    registry = make(clock, minimum_calls=3, probe_lease=9.0)
    own = CircuitBreakerConfig(minimum_calls=7)
    assert registry.get("a", minimum_calls=4).config == CircuitBreakerConfig(minimum_calls=4, probe_lease=9.0)
    assert registry.get("b", own, probe_lease=1.0).config == CircuitBreakerConfig(minimum_calls=7, probe_lease=1.0)


def test_breakers_run_on_the_clock_of_the_registry(clock: VirtualClock) -> None:
    breaker = make(clock, open_duration=5.0, open_jitter=0.0).get("db")
    breaker.trip()
    clock.advance(3)
    assert breaker.snapshot().retry_after == 2.0


def test_asking_again_with_the_same_configuration_is_fine(registry: CircuitBreakerRegistry) -> None:
    config = CircuitBreakerConfig(minimum_calls=3, failure_on=OSError)
    breaker = registry.get("db", config)
    assert registry.get("db", CircuitBreakerConfig(minimum_calls=3, failure_on=OSError)) is breaker
    assert registry.get("db", minimum_calls=3, failure_on=OSError) is breaker


def test_asking_without_a_configuration_gives_whatever_has_the_name(registry: CircuitBreakerRegistry) -> None:
    breaker = registry.get("db", minimum_calls=3)
    assert registry.get("db") is breaker


def test_the_same_name_with_another_configuration_is_an_error_that_names_the_fields(
    registry: CircuitBreakerRegistry,
) -> None:
    breaker = registry.get("db", minimum_calls=3, probe_lease=9.0)
    with pytest.raises(ConfigurationError) as refused:
        registry.get("db", minimum_calls=4, open_duration=5.0, probe_lease=9.0)
    assert str(refused.value) == (
        "circuit breaker 'db' exists with another configuration, which differs in minimum_calls, open_duration: "
        "give both places the same, or use another name"
    )
    assert registry.get("db") is breaker
    assert breaker.config.minimum_calls == 3
    with pytest.raises(ConfigurationError, match="differs in minimum_calls, probe_lease"):
        registry.get("db", CircuitBreakerConfig())  # the default was asked for by name


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (("",), {}, "name must be a non-empty string, got ''"),
        ((None,), {}, "name must be a non-empty string, got None"),
        (("db", {"minimum_calls": 3}), {}, "config must be a CircuitBreakerConfig, got {'minimum_calls': 3}"),
        (("db",), {"minimum_calls": 0}, "minimum_calls must be at least 1, got 0"),
        (("db",), {"minimum": 1}, "minimum must be a field of CircuitBreakerConfig: "),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_listed(
    registry: CircuitBreakerRegistry, arguments: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        registry.get(*arguments, **fields)
    assert len(registry) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_size": 0}, "max_size must be at least 1, got 0"),
        ({"max_size": True}, "max_size must be an int, got True"),
        ({"max_size": 10.0}, "max_size must be an int, got 10.0"),
        ({"clock": 0.0}, "clock must be a function, got 0.0"),
        ({"default": {}}, "config must be a CircuitBreakerConfig, got {}"),
    ],
)
def test_a_registry_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        CircuitBreakerRegistry(**fields)


# --- looking, removing ---


def works() -> str:
    return "works"


def test_a_registry_is_a_collection_of_what_it_lists(registry: CircuitBreakerRegistry) -> None:
    breakers = [registry.get(name) for name in ("db", "cache", "mail")]
    assert list(registry) == breakers
    assert len(registry) == 3
    assert "db" in registry
    assert "ftp" not in registry
    assert breakers[0] not in registry


def test_breakers_may_come_and_go_while_one_iterates(registry: CircuitBreakerRegistry) -> None:
    for name in "abc":
        registry.get(name)
    seen = []
    for breaker in registry:
        registry.remove(breaker.name)
        seen.append(breaker.name)
        if breaker.name == "c":
            registry.get("d")
    assert (seen, names(registry)) == (["a", "b", "c"], ["d"])


def test_the_snapshot_shows_every_listed_breaker(registry: CircuitBreakerRegistry) -> None:
    registry.get("db").trip()
    registry.get("cache")
    snapshot = registry.snapshot()
    assert {name: one.state for name, one in snapshot.items()} == {"db": "open", "cache": "closed"}
    assert snapshot["db"] == registry.get("db").snapshot()


def test_a_registry_shows_how_full_it_is(registry: CircuitBreakerRegistry) -> None:
    registry.get("db")
    assert repr(registry) == "<CircuitBreakerRegistry of 1, at most 10000>"


def test_a_removed_breaker_is_forgotten_and_those_who_hold_it_keep_it(registry: CircuitBreakerRegistry) -> None:
    breaker = registry.get("db")
    guarded = breaker(works)
    assert registry.remove("db") is True
    assert ("db" in registry, len(registry)) == (False, 0)
    assert registry.get("db") is not breaker
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        guarded()
    assert registry.get("db").state == "closed"


def test_removing_a_name_that_nobody_has_says_so_and_tells_nothing(registry: CircuitBreakerRegistry) -> None:
    with capture(Event) as events:
        assert registry.remove("db") is False
    assert events == []


def test_a_name_is_free_for_another_configuration_after_it_was_removed(registry: CircuitBreakerRegistry) -> None:
    registry.get("db", minimum_calls=3)
    registry.remove("db")
    assert registry.get("db", minimum_calls=4).config.minimum_calls == 4


# --- eviction ---


def probe(breaker: CircuitBreaker) -> None:
    breaker.restore({"format": 1, "state": "half_open", "remaining": 0.0, "reopen_attempt": 0})
    breaker.acquire().release()


USED: dict[str, Callable[[CircuitBreaker], object]] = {
    "counted": lambda breaker: breaker.call(lambda: None),
    "open": lambda breaker: breaker.trip(),
    "forced open": lambda breaker: breaker.force_open(),
    "disabled": lambda breaker: breaker.disable(),
    "metrics only": lambda breaker: breaker.metrics_only(),
    "in flight": lambda breaker: breaker.acquire(),
    "half open": probe,
}


@pytest.mark.parametrize("use", USED.values(), ids=USED)
def test_a_breaker_that_differs_from_a_new_one_is_never_evicted(
    clock: VirtualClock, use: Callable[[CircuitBreaker], object]
) -> None:
    registry = make(clock, max_size=1)
    used = registry.get("used")
    use(used)
    for number in range(10):
        registry.get(f"other {number}")
    assert list(registry) == [used]
    assert registry.get("used") is used


def test_the_oldest_breaker_that_is_as_new_makes_room(clock: VirtualClock) -> None:
    registry = make(clock, max_size=3)
    registry.get("open").trip()
    registry.get("idle")
    registry.get("idle too")
    registry.get("new")
    assert names(registry) == ["open", "idle too", "new"]


def test_time_windows_empty_by_themselves_and_their_breakers_become_as_new(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1, window=TimeWindow(10))
    registry.get("a").call(lambda: None)
    clock.advance(8.9)
    registry.get("b")
    assert names(registry) == ["a"]
    clock.advance(1.1)
    registry.get("b")
    assert names(registry) == ["b"]


def test_a_breaker_that_was_closed_again_by_hand_is_as_new(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    breaker = registry.get("a")
    breaker.force_open()
    breaker.reset()
    registry.get("b")
    assert names(registry) == ["b"]


def test_breakers_that_begin_in_another_state_are_not_as_new_when_closed(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1, initial_state=CircuitState.FORCED_OPEN)
    registry.get("a").reset()
    registry.get("b")
    assert names(registry) == ["a"]


def test_an_evicted_breaker_is_shared_with_all_who_ask_while_somebody_holds_it(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    held = registry.get("held")
    registry.get("other")
    assert "held" not in registry
    held.force_open()
    assert registry.get("held") is held
    with pytest.raises(ConfigurationError, match="differs in minimum_calls"):
        registry.get("held", minimum_calls=3)


def test_an_evicted_breaker_that_nobody_holds_is_gone(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    forgotten = weakref.ref(registry.get("forgotten"))
    registry.get("other")
    gc.collect()
    assert forgotten() is None
    assert registry.get("forgotten").config == CircuitBreakerConfig()


def test_a_guarded_function_holds_its_evicted_breaker(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    guarded: Any = registry.get("held")(lambda: None)
    registry.get("other")
    gc.collect()
    assert registry.get("held") is guarded.circuit_breaker


def test_removing_an_evicted_breaker_that_is_held_forgets_it_too(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    held = registry.get("held")
    registry.get("other")
    assert registry.remove("held") is True
    assert registry.get("held") is not held


def test_a_breaker_that_finds_no_room_works_unlisted_and_is_told(clock: VirtualClock) -> None:
    registry = make(clock, max_size=2, minimum_calls=1)
    for name in "ab":
        registry.get(name).trip()
    with capture(BreakerAdded, BreakerRemoved, RegistryFull) as events:
        unlisted = registry.get("c")
        assert registry.get("c") is unlisted
    assert [(type(event), event.name, event.as_dict().get("size")) for event in events] == [(RegistryFull, "c", 2)]
    assert names(registry) == ["a", "b"]
    assert "c" not in registry.snapshot()
    with pytest.raises(OSError):  # noqa: PT011 - its own
        unlisted.call(_raise_os_error)
    assert unlisted.state == "open"
    assert registry.get("c") is unlisted


def _raise_os_error() -> None:
    raise OSError


def test_additions_evictions_and_removals_are_told_in_order(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    clock.advance(3)
    with capture(Event) as events:
        registry.get("a")
        registry.get("a")
        registry.get("b")
        registry.remove("b")
    assert [(event.kind, event.name, event.as_dict().get("reason"), event.at, event.severity) for event in events] == [
        ("circuit_breaker.added", "a", None, 3.0, "debug"),
        ("circuit_breaker.removed", "a", "evicted", 3.0, "debug"),
        ("circuit_breaker.added", "b", None, 3.0, "debug"),
        ("circuit_breaker.removed", "b", "removed", 3.0, "debug"),
    ]


def test_nothing_is_built_while_nobody_listens(clock: VirtualClock) -> None:
    def seq() -> int:
        return BreakerAdded("probe", 0.0).seq

    before = seq()
    registry = make(clock, max_size=1)
    registry.get("a")
    registry.get("b").force_open()
    registry.get("c")
    registry.remove("b")
    assert seq() == before + 1


def test_a_hundred_thousand_names_leave_no_more_than_the_registry_may_hold(clock: VirtualClock) -> None:
    registry = make(clock, max_size=100)
    first = weakref.ref(registry.get("host-0"))
    for number in range(1, 100_000):
        registry.get(f"host-{number}")
    assert len(registry) == len(list(registry)) == 100
    assert names(registry)[-1] == "host-99999"
    assert first() is None
    assert len(registry._held_elsewhere) == 0


# --- threads, sinks and the garbage collector ---


def test_threads_that_race_for_a_name_get_one_object(registry: CircuitBreakerRegistry) -> None:
    rounds, count = 50, 8
    together = threading.Barrier(count)
    got: list[list[CircuitBreaker]] = [[] for _ in range(rounds)]

    def ask() -> None:
        for number in range(rounds):
            together.wait()
            got[number].append(registry.get(f"name-{number}"))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    with capture(BreakerAdded) as events:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len({id(one) for one in same}) for same in got] == [1] * rounds
    assert len(events) == len(registry) == rounds


def test_a_sink_may_use_the_registry_that_it_hears_from(registry: CircuitBreakerRegistry) -> None:
    seen = []

    def look(event: BreakerAdded) -> None:
        seen.append((event.name, registry.get(event.name).name, len(registry)))
        if event.name == "db":
            registry.get("db-replica")

    with subscribe(look, BreakerAdded):
        registry.get("db")
    assert seen == [("db", "db", 1), ("db-replica", "db-replica", 2)]


def from_another_thread(work: Callable[[], object]) -> bool:
    """Tell whether `work` ends in another thread while this one waits here."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.5)
    return not thread.is_alive()


def test_no_sink_runs_under_the_lock_of_the_registry(clock: VirtualClock) -> None:
    registry = make(clock, max_size=1)
    ended = []
    with subscribe(lambda _: ended.append(from_another_thread(lambda: registry.get("other")))):
        registry.get("db")
    assert ended[0] is True


def test_no_function_of_the_users_runs_under_the_lock_of_the_registry(clock: VirtualClock) -> None:
    ended = []

    def seconds(_: int) -> float:
        ended.append(from_another_thread(lambda: shared.get("other", CircuitBreakerConfig())))
        return 5.0

    shared = make(clock, open_duration=seconds, initial_state=CircuitState.OPEN)
    assert shared.get("db").snapshot().retry_after == 5.0
    assert ended == [True]


class ActsWhenCollected:
    """Garbage that uses a registry when it is collected, as a client's `__del__` may."""

    def __init__(self, act: Callable[[], T], got: list[T]) -> None:
        self.act = act
        self.cycle = self
        self.got = got

    def __del__(self) -> None:
        self.got.append(self.act())


class Collector:
    """A clock that stands for the garbage collector, which may run between any two steps: it collects when read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.readings_left = -1

    def __call__(self) -> float:
        if self.readings_left == 0:
            gc.collect()
        self.readings_left -= 1
        return self.clock()


@pytest.fixture
def collector(clock: VirtualClock) -> Iterator[Collector]:
    gc.collect()
    gc.disable()
    try:
        yield Collector(clock)
    finally:
        gc.enable()


def leave_garbage(act: Callable[[], T]) -> list[T]:
    got: list[T] = []
    ActsWhenCollected(act, got)
    return got


@pytest.mark.parametrize("reading", range(3))
def test_garbage_that_asks_for_the_name_that_is_being_made_gets_the_same_breaker(
    collector: Collector, reading: int
) -> None:
    registry = make(collector)
    got = leave_garbage(lambda: registry.get("db"))
    collector.readings_left = reading
    breaker = registry.get("db")
    gc.collect()
    assert [one is breaker for one in got] == [True]
    assert registry.get("db") is breaker


@pytest.mark.parametrize("reading", range(6))
@pytest.mark.parametrize("act", ["get", "remove"])
@pytest.mark.parametrize("name", ["b", "d"], ids=["of one that stays", "of the one that goes"])
def test_garbage_that_uses_the_registry_while_it_looks_for_room_harms_nobody(
    collector: Collector, name: str, act: str, reading: int
) -> None:
    registry = make(collector, max_size=4)
    for one in "abc":
        registry.get(one).force_open()
    registry.get("d")
    got = leave_garbage(lambda: getattr(registry, act)(name))
    collector.readings_left = reading
    breaker = registry.get("e")
    gc.collect()
    assert len(got) == 1
    assert registry.get("e") is breaker
    assert act == "get" or name not in registry
    assert len(registry) <= 4


# --- the decorator ---


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    before = set(names(circuit_breakers))
    yield
    for name in set(names(circuit_breakers)) - before:
        circuit_breakers.remove(name)


def test_used_bare_the_breaker_is_named_after_the_function() -> None:
    @circuit_breaker
    def pay(amount: int) -> int:
        """Pay it."""
        return amount

    guarded: Any = pay
    name = f"{__name__}.test_used_bare_the_breaker_is_named_after_the_function.<locals>.pay"
    assert guarded.circuit_breaker is circuit_breakers.get(name)
    assert guarded.circuit_breaker.config == CircuitBreakerConfig()
    assert (pay(3), pay.__name__, pay.__doc__) == (3, "pay", "Pay it.")


def test_used_with_a_name_and_overrides() -> None:
    @circuit_breaker("payments", failure_rate_threshold=0.3)
    def pay() -> None: ...

    guarded: Any = pay
    assert guarded.circuit_breaker is circuit_breakers.get("payments")
    assert guarded.circuit_breaker.config == CircuitBreakerConfig(failure_rate_threshold=0.3)


def test_used_with_a_name_and_a_configuration() -> None:
    config = CircuitBreakerConfig(minimum_calls=3)

    @circuit_breaker("payments", config, probe_lease=9.0)
    def pay() -> None: ...

    assert circuit_breakers.get("payments").config == CircuitBreakerConfig(minimum_calls=3, probe_lease=9.0)


@pytest.mark.parametrize("arguments", [(), (None,)])
def test_used_with_overrides_only_the_breaker_is_named_after_the_function(arguments: tuple[None, ...]) -> None:
    @circuit_breaker(*arguments, minimum_calls=3)
    def pay() -> None: ...

    guarded: Any = pay
    assert guarded.circuit_breaker.name == f"{__name__}.{pay.__qualname__}"
    assert guarded.circuit_breaker.config.minimum_calls == 3
    assert guarded.circuit_breaker.name in circuit_breakers


def test_used_with_a_breaker_that_one_guards_and_none_is_listed() -> None:
    breaker = CircuitBreaker("own")

    @circuit_breaker(breaker)
    def pay() -> str:
        return "paid"

    guarded: Any = pay
    assert guarded.circuit_breaker is breaker
    assert pay() == "paid"
    assert "own" not in circuit_breakers


def test_a_configuration_along_with_a_breaker_is_refused() -> None:
    breaker = CircuitBreaker("own")
    given: tuple[tuple[Any, dict[str, Any]], ...] = (((CircuitBreakerConfig(),), {}), ((), {"minimum_calls": 3}))
    for arguments, overrides in given:
        with pytest.raises(ConfigurationError) as refused:
            circuit_breaker(breaker, *arguments, **overrides)
        assert str(refused.value) == ("config must not be given along with a breaker: 'own' has its own configuration")


def test_functions_with_the_same_name_given_share_a_breaker() -> None:
    @circuit_breaker("payments", minimum_calls=1)
    def pay() -> None:
        raise OSError

    @circuit_breaker("payments")
    def refund() -> None: ...

    with pytest.raises(OSError):  # noqa: PT011 - its own
        pay()
    with pytest.raises(CircuitOpenError):
        refund()


def test_functions_that_disagree_about_one_name_are_an_error() -> None:
    circuit_breaker("payments", minimum_calls=1)(lambda: None)
    with pytest.raises(ConfigurationError, match=r"'payments' exists with another configuration.*minimum_calls"):
        circuit_breaker("payments", minimum_calls=2)(lambda: None)


def test_methods_are_named_after_their_class() -> None:
    class Payments:
        @circuit_breaker
        def pay(self) -> Payments:
            return self

        @staticmethod
        @circuit_breaker
        def currency() -> str:
            return "EUR"

    payments = Payments()
    assert payments.pay() is payments
    assert payments.currency() == "EUR"
    method: Any = Payments.pay
    assert method.circuit_breaker.name.endswith(".Payments.pay")


class CallableService:
    def __call__(self) -> str:
        return "served"


@pytest.mark.parametrize("thing", [functools.partial(int, "5"), CallableService()], ids=["partial", "object"])
def test_what_has_no_name_of_its_own_needs_one_given(thing: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match="others need a name given"):
        circuit_breaker(thing)
    guarded: Any = circuit_breaker("named")(thing)
    assert guarded() == thing()


@pytest.mark.parametrize("thing", [int, CallableService, 42, staticmethod(len), classmethod(cast("Any", len))])
@pytest.mark.parametrize("name", [None, "payments"])
def test_what_is_no_function_is_refused_and_nothing_is_listed(thing: Any, name: str | None) -> None:
    before = names(circuit_breakers)
    with pytest.raises(ConfigurationError, match="a circuit breaker guards functions"):
        circuit_breaker(thing) if name is None else circuit_breaker(name)(thing)
    assert names(circuit_breakers) == before


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("",), {}, "name must be a non-empty string, got ''"),
        (("payments",), {"minimum_calls": 0}, "minimum_calls must be at least 1, got 0"),
        (("payments",), {"threshold": 0.3}, "threshold must be a field of CircuitBreakerConfig"),
        (("payments", 0.3), {}, "config must be a CircuitBreakerConfig, got 0.3"),
    ],
)
def test_a_decorator_that_makes_no_sense_is_refused(arguments: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        circuit_breaker(*arguments, **overrides)(lambda: None)
    assert "payments" not in circuit_breakers


def test_a_function_is_guarded_once_by_its_breaker() -> None:
    @circuit_breaker("payments")
    def pay() -> None: ...

    with pytest.raises(ConfigurationError, match=r"'payments' guards .* already"):
        circuit_breaker("payments")(pay)


def test_the_registry_of_the_process_is_what_the_package_shows() -> None:
    import resilience.breaker

    assert circuit_breakers is resilience.breaker.circuit_breakers
    assert isinstance(circuit_breakers, CircuitBreakerRegistry)
    assert repr(circuit_breakers).endswith("at most 10000>")
