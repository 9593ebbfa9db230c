"""How each circuit breaker guards a call, with its documented decorator or context manager.

Settings are as near as the libraries allow to: a window of 100 calls, at least 10 of them, open at 50 % failures. Those
without a window keep the counter they come with. All stay open for an hour, so that no rejection is a probe.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any

from harness import Contender, Sample, repeated, repeated_sync

from resilience import CircuitBreaker, CountWindow, TimeWindow

HOUR = 3600.0
SLOW = 1.0
"""Seconds after which a call counts as slow, where slow calls are watched."""

Work = Callable[[], Any]
Guard = Callable[..., Work]
"""Takes the function, `calls=` for the size of a count window or `seconds=` for a time window with slow calls."""


async def nothing() -> int:
    """Stand for the call to be guarded."""
    return 1


def nothing_sync() -> int:
    """Stand for the call to be guarded, in sync code."""
    return 1


def failing_now_and_then() -> Work:
    """Return a coroutine function of which one call in 50 fails: enough to keep failures in every window."""
    turns = 0

    async def work() -> int:
        nonlocal turns
        turns += 1
        if turns % 50 == 0:
            raise ConnectionError
        return 1

    return work


def resilience(work: Work, *, calls: int = 100, seconds: float | None = None) -> Any:
    """Guard with this package."""
    return our_breaker(calls=calls, seconds=seconds)(work)


def our_breaker(*, name: str = "benchmark", calls: int = 100, seconds: float | None = None) -> CircuitBreaker:
    """Return our breaker; in-flight slowness comes with `slow_call_duration`."""
    return CircuitBreaker(
        name,
        window=CountWindow(calls) if seconds is None else TimeWindow(seconds),
        slow_call_duration=None if seconds is None else SLOW,
        open_duration=HOUR,
        max_open_duration=HOUR,
    )


def circuitbreaker(work: Work) -> Any:
    """Guard with circuitbreaker."""
    return import_module("circuitbreaker").CircuitBreaker(recovery_timeout=int(HOUR), name="benchmark")(work)


def interlock(work: Work, *, calls: int = 100, seconds: int | None = None, listener: object = None) -> Any:
    """Guard with interlock-cb."""
    return interlock_breaker(calls=calls, seconds=seconds, listener=listener)(work)


def interlock_breaker(*, calls: int = 100, seconds: int | None = None, listener: object = None) -> Any:
    """Return interlock-cb's breaker; it always times calls, by default against a minute."""
    library = import_module("interlock")
    settings: dict[str, Any] = {"window_size": calls}
    if seconds is not None:
        settings = {
            "window_type": library.WindowType.TIME_BASED,
            "window_size": seconds,
            "slow_call_duration_threshold": SLOW,
        }
    return library.CircuitBreaker(
        name="benchmark", config=library.Config(wait_duration_in_open=HOUR, **settings), listener=listener
    )


def pyresilience(work: Work, *, calls: int = 100) -> Any:
    """Guard with pyresilience."""
    library = import_module("pyresilience")
    config = library.CircuitBreakerConfig(
        sliding_window_size=calls, failure_rate_threshold=0.5, minimum_calls=10, recovery_timeout=HOUR
    )
    return library.resilient(circuit_breaker=config)(work)


def pybreaker(work: Work) -> Any:
    """Guard with pybreaker: its decorator for sync code, its context manager around an await (it has no async form)."""
    breaker = import_module("pybreaker").CircuitBreaker(reset_timeout=HOUR)
    if not iscoroutinefunction(work):
        return breaker(work)

    async def guarded() -> Any:
        with breaker.calling():
            return await work()

    return guarded


def aiobreaker(work: Work) -> Any:
    """Guard with aiobreaker."""
    return import_module("aiobreaker").CircuitBreaker(timeout_duration=timedelta(seconds=HOUR))(work)


def purgatory(work: Work) -> Any:
    """Guard with purgatory."""
    library = import_module("purgatory")
    if iscoroutinefunction(work):
        return library.AsyncCircuitBreakerFactory(default_ttl=HOUR)("benchmark")(work)
    return library.SyncCircuitBreakerFactory(default_ttl=HOUR)("benchmark")(work)


def hyx(work: Work) -> Any:
    """Guard with hyx, which is for asyncio only."""
    return import_module("hyx.circuitbreaker").consecutive_breaker(recovery_time_secs=HOUR)(work)


def fluxgate(work: Work, *, calls: int = 100, seconds: int | None = None) -> Any:
    """Guard with fluxgate."""
    library, windows = import_module("fluxgate"), import_module("fluxgate.windows")
    trippers, retries = import_module("fluxgate.trippers"), import_module("fluxgate.retries")
    kind = library.AsyncCircuitBreaker if iscoroutinefunction(work) else library.CircuitBreaker
    rate = trippers.FailureRate(0.5)
    if seconds is not None:
        rate = rate | trippers.SlowRate(1.0, threshold=SLOW)
    return kind(
        window=windows.CountWindow(calls) if seconds is None else windows.TimeWindow(seconds),
        tripper=trippers.MinRequests(10) & rate,
        retry=retries.Cooldown(HOUR),
    )(work)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A breaker library: its distribution, how it guards, and what its numbers stand for."""

    distribution: str
    guard: Guard
    note: str
    name: str = ""

    def contender(self, make: Callable[[], Awaitable[Sample]], variant: str = "") -> Contender:
        """Return this library as a contender, in a variant."""
        name = self.name or self.distribution
        return Contender(
            name=f"{name}, {variant}" if variant else name, distribution=self.distribution, build=make, note=self.note
        )

    def succeeding(self, variant: str = "", **settings: Any) -> Contender:
        """Return the contender that guards a coroutine function which succeeds."""

        async def build() -> Sample:
            guarded = self.guard(nothing, **settings)
            if await guarded() != await nothing():
                raise RuntimeError("the guarded call does not return what the bare one returns")
            return repeated(guarded)

        return self.contender(build, variant)

    def mostly_succeeding(self) -> Contender:
        """Return the contender that guards a coroutine function of which one call in 50 fails."""

        async def build() -> Sample:
            return repeated(self.guard(failing_now_and_then()), catching=ConnectionError)

        return self.contender(build)

    def succeeding_sync(self, variant: str = "") -> Contender:
        """Return the contender that guards a plain function which succeeds."""

        async def build() -> Sample:
            guarded = self.guard(nothing_sync)
            if guarded() != nothing_sync():
                raise RuntimeError("the guarded call does not return what the bare one returns")
            return repeated_sync(guarded)

        return self.contender(build, variant)

    def rejecting(
        self, variant: str = "", around: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Contender:
        """Return the contender whose breaker has been opened by failures and rejects every call.

        Args:
            variant: told with the name.
            around: entered around every sample, outside the time taken.
        """

        async def build() -> Sample:
            return await rejections(self.guard, around)

        return self.contender(build, variant)


async def rejections(guard: Guard, around: Callable[[], AbstractContextManager[object]]) -> Sample:
    """Open a breaker by failures, and return the sample of its rejections."""
    reached = 0

    async def broken() -> None:
        nonlocal reached
        reached += 1
        raise ConnectionError

    guarded = guard(broken)
    rejection = await tripped(guarded)
    after_trip = reached

    timed = repeated(guarded, catching=rejection)

    async def sample(calls: int) -> float:
        with around():
            seconds = await timed(calls)
        if reached != after_trip:
            raise RuntimeError("an open breaker let a call through")
        return seconds

    return sample


async def tripped(guarded: Work) -> type[Exception]:
    """Call until the breaker rejects; return the type of its rejection."""
    for _ in range(200):
        try:
            await guarded()
        except ConnectionError:
            continue
        except Exception as error:  # noqa: BLE001 - each library has its own type, which is what we want to know
            rejected = type(error)
            # Some report the call that trips them with an error of their own: only the next one is a rejection.
            try:
                await guarded()
            except rejected as again:
                return type(again)
    raise RuntimeError("the breaker did not open within 200 failures")


OURS = Library(distribution="anyio-resilience", name="resilience", guard=resilience, note="")
CIRCUITBREAKER = Library(
    distribution="circuitbreaker", guard=circuitbreaker, note="consecutive failures, no window, no lock"
)
INTERLOCK = Library(distribution="interlock-cb", guard=interlock, note="")
PYRESILIENCE = Library(distribution="pyresilience", guard=pyresilience, note="scans its window at every call")
PYBREAKER = Library(distribution="pybreaker", guard=pybreaker, note="consecutive failures, no window")
AIOBREAKER = Library(distribution="aiobreaker", guard=aiobreaker, note="consecutive failures, no window, no lock")
PURGATORY = Library(distribution="purgatory", guard=purgatory, note="consecutive failures, no window, no lock")
HYX = Library(distribution="hyx", guard=hyx, note="consecutive failures, no window, no lock")
FLUXGATE = Library(distribution="fluxgate", guard=fluxgate, note="for one event loop or one thread")

LIBRARIES: Iterable[Library] = (
    OURS,
    CIRCUITBREAKER,
    INTERLOCK,
    PYRESILIENCE,
    PYBREAKER,
    AIOBREAKER,
    PURGATORY,
    HYX,
    FLUXGATE,
)
SYNC_LIBRARIES: Iterable[Library] = [library for library in LIBRARIES if library is not HYX]
