"""The circuit breaker's API as type checkers see it. Never run: mypy checks it, in strict mode.

A `type: ignore` marks what must be an error: mypy reports every one that it did not need.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, assert_type

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerRegistry,
    CircuitOpenError,
    CircuitState,
    CountWindow,
    TimeWindow,
    circuit_breaker,
    circuit_breakers,
    subscribe,
)
from resilience.breaker import CircuitBreakerSnapshot, ExceptionFilter, Guard, Permit
from resilience.events import CallFailed, CircuitStateChanged, Event, capture

breaker = CircuitBreaker("typed")


def function(number: int, *, text: str = "") -> str:
    return text * number


async def coroutine(number: int, *, text: str = "") -> str:
    return text * number


def generator(number: int) -> Iterator[str]:
    yield str(number)


async def async_generator(number: int) -> AsyncIterator[str]:
    yield str(number)


# --- decorators keep the types ---


@breaker
def guarded_function(number: int, *, text: str = "") -> str:
    return text * number


@circuit_breaker
async def guarded_bare(number: int) -> str:
    return str(number)


@circuit_breaker("typed", failure_rate_threshold=0.3)
def guarded_by_name(number: int) -> Iterator[str]:
    yield str(number)


@circuit_breaker("typed", CircuitBreakerConfig())
async def guarded_with_config(number: int) -> AsyncIterator[str]:
    yield str(number)


@circuit_breaker(breaker)
def guarded_by_breaker(number: int) -> str:
    return str(number)


@circuit_breaker(minimum_calls=3)
def guarded_with_overrides(number: int) -> str:
    return str(number)


@circuit_breaker()
def guarded_empty(number: int) -> str:
    return str(number)


class Client:
    @breaker
    def get(self, path: str) -> bytes:
        return path.encode()

    @circuit_breaker
    async def fetch(self, path: str) -> bytes:
        return path.encode()

    @classmethod
    @breaker
    def connect(cls, host: str) -> Client:
        return cls()

    @property
    @breaker
    def address(self) -> str:
        return ""


async def decorated() -> None:
    assert_type(guarded_function(1, text="a"), str)
    assert_type(await guarded_bare(1), str)
    assert_type(list(guarded_by_name(1)), list[str])
    assert_type([item async for item in guarded_with_config(1)], list[str])
    assert_type(guarded_by_breaker(1), str)
    assert_type(guarded_with_overrides(1), str)
    assert_type(guarded_empty(1), str)
    assert_type(Client().get("/"), bytes)
    assert_type(await Client().fetch("/"), bytes)
    assert_type(Client.connect("db"), Client)
    assert_type(Client().address, str)

    guarded_function("1")  # type: ignore[arg-type]
    guarded_function(1, txet="a")  # type: ignore[call-arg]
    await guarded_bare()  # type: ignore[call-arg]
    guarded_by_breaker(None)  # type: ignore[arg-type]
    Client().get(1)  # type: ignore[arg-type]
    breaker(42)  # type: ignore[type-var]
    circuit_breaker(42)  # type: ignore[call-overload]
    circuit_breaker(breaker, 0.3)  # type: ignore[call-overload]


# --- call keeps the types ---


async def called() -> None:
    assert_type(breaker.call(function, 1, text="a"), str)
    assert_type(await breaker.call(coroutine, 1, text="a"), str)
    pending = breaker.call(coroutine, 1)
    await assert_type(pending, Coroutine[Any, Any, str])
    breaker.call(coroutine, 1)  # type: ignore[unused-coroutine]
    assert_type(list(breaker.call(generator, 1)), list[str])
    assert_type([item async for item in breaker.call(async_generator, 1)], list[str])
    assert_type(breaker.call(Client), Client)
    assert_type(breaker.call(lambda: 42), int)
    awaitable: Callable[[], Awaitable[bytes]] = lambda: Client().fetch("/")  # noqa: E731 - a def would have a type
    assert_type(await breaker.call(awaitable), bytes)

    breaker.call(function, "1")  # type: ignore[arg-type]
    breaker.call(function)  # type: ignore[call-arg]
    breaker.call(function, 1, txet="a")  # type: ignore[call-arg]
    breaker.call(None)  # type: ignore[arg-type]


# --- guards and permits ---


def guarded_block() -> str:
    with breaker.guard() as permit:
        assert_type(permit, Permit)
        return "a guard swallows no exception: nothing is missing after it"


async def guarded_async_block() -> str:
    async with breaker.guard() as permit:
        assert_type(permit, Permit)
        return "as above"


def permits() -> None:
    assert_type(breaker.guard(), Guard)
    permit = breaker.acquire()
    assert_type(permit, Permit)
    assert_type(permit.settled, bool)
    permit.success()
    permit.success({"any": "result"})
    permit.failure(OSError())
    permit.failure(KeyboardInterrupt())
    permit.release()
    permit.failure("timeout")  # type: ignore[arg-type]
    permit.failure(OSError)  # type: ignore[arg-type]


# --- configuration ---


def configuration() -> None:
    filters: list[ExceptionFilter] = [OSError, (OSError, KeyError), lambda error: isinstance(error, OSError)]
    CircuitBreakerConfig(
        window=TimeWindow(60),
        failure_on=filters[0],
        ignore=(OSError, TimeoutError),
        failure_result=lambda response: response.status >= 500,
        open_duration=lambda attempt: 2.0**attempt,
        initial_state=CircuitState.FORCED_OPEN,
    )
    assert_type(CircuitBreakerConfig().window, CountWindow | TimeWindow)
    assert_type(CircuitBreakerConfig().slow_call_duration, float | None)
    assert_type(CircuitBreakerConfig().open_duration, float | Callable[[int], float])
    assert_type(CircuitBreakerConfig().minimum_calls, int)

    CircuitBreakerConfig(minimum_calls="3")  # type: ignore[arg-type]
    CircuitBreakerConfig(window=100)  # type: ignore[arg-type]
    CircuitBreakerConfig(failure_on=int)  # type: ignore[arg-type]
    CircuitBreakerConfig(initial_state="closed")  # type: ignore[arg-type]
    CircuitBreakerConfig(failure_treshold=0.3)  # type: ignore[call-arg]
    CircuitBreakerConfig().minimum_calls = 3  # type: ignore[misc]


# --- what a breaker shows ---


def shown() -> None:
    assert_type(breaker.name, str)
    assert_type(breaker.config, CircuitBreakerConfig)
    assert_type(breaker.state, CircuitState)
    assert_type(breaker.would_allow(), bool)
    snapshot = breaker.snapshot()
    assert_type(snapshot, CircuitBreakerSnapshot)
    assert_type(snapshot.failure_rate, float | None)
    assert_type(snapshot.retry_after, float | None)
    assert_type(snapshot.in_flight, int)
    assert_type(breaker.dump(), dict[str, object])
    breaker.restore(breaker.dump())

    breaker.state = CircuitState.OPEN  # type: ignore[misc]
    snapshot.calls = 0  # type: ignore[misc]

    try:
        breaker.acquire()
    except CircuitOpenError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.last_error_type, str | None)
        assert_type(error.state, str)


def registered() -> None:
    registry = CircuitBreakerRegistry(CircuitBreakerConfig(), max_size=10)
    assert_type(registry.get("db", minimum_calls=3), CircuitBreaker)
    assert_type(registry.remove("db"), bool)
    assert_type(list(registry), list[CircuitBreaker])
    assert_type(len(registry), int)
    assert_type("db" in registry, bool)
    assert_type(registry.snapshot(), dict[str, CircuitBreakerSnapshot])
    assert_type(circuit_breakers, CircuitBreakerRegistry)
    registry.get(42)  # type: ignore[arg-type]


def heard() -> None:
    with capture() as everything:
        assert_type(everything, list[Event])
    with capture(CircuitStateChanged) as changes:
        assert_type(changes, list[CircuitStateChanged])
        assert_type(changes[0].open_for, float | None)
    with subscribe(print, CallFailed, name="typed"):
        breaker.trip()
    subscribe(print, int)  # type: ignore[arg-type]
