"""How each library retries and times a call out, with its documented decorator.

Settings are as near as the libraries allow to: three attempts, pauses from 0.1 s doubled to 10 s with jitter, a timeout
of 10 s. No call fails or is slow where success is measured.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from harness import Contender, Sample, repeated, repeated_sync

from resilience import CircuitBreaker, RateLimiter
from resilience.policies import Deadline, Pipeline, Retry, Timeout

ATTEMPTS = 3
SECONDS = 10.0

Work = Callable[[], Any]


async def nothing() -> int:
    """Stand for the call."""
    return 1


def nothing_sync() -> int:
    """Stand for the call, in sync code."""
    return 1


def failing_twice() -> Work:
    """Return a coroutine function of which two calls fail and the third succeeds, again and again."""
    turns = 0

    async def work() -> int:
        nonlocal turns
        turns += 1
        if turns % ATTEMPTS:
            raise ConnectionError
        return 1

    return work


# --- this package ---


def our_retry(work: Work) -> Any:
    """Retry with this package."""
    return Retry(ATTEMPTS)(work)


def our_retry_at_once(work: Work) -> Any:
    """Retry without pauses."""
    return Retry(ATTEMPTS, wait=0)(work)


def our_retry_by_tenacity(work: Work) -> Any:
    """Retry by tenacity's objects."""
    tenacity = import_module("tenacity")
    return Retry(
        None,
        on=tenacity.retry_if_exception_type(ConnectionError),
        wait=tenacity.wait_none(),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
    )(work)


def our_three(work: Work) -> Any:
    """Retry, break the circuit and limit in memory, in one pipeline."""
    return Pipeline(Retry(ATTEMPTS), breaker(), limiter(), name="benchmark")(work)


def our_three_stacked(work: Work) -> Any:
    """Do the same by three decorators."""
    return Retry(ATTEMPTS)(breaker()(limiter()(work)))


def our_four(work: Work) -> Any:
    """Add a timeout per attempt."""
    return Pipeline(Retry(ATTEMPTS), breaker(), limiter(), Timeout(SECONDS), name="benchmark")(work)


def our_deadline_and_timeout(work: Work) -> Any:
    """Have a total deadline that comes before the attempt's timeout: one scope."""
    return Pipeline(Deadline(SECONDS), Retry(ATTEMPTS), Timeout(SECONDS * 2), name="benchmark")(work)


def our_timeout(work: Work) -> Any:
    """Time out."""
    return Timeout(SECONDS)(work)


def breaker() -> CircuitBreaker:
    """Return a breaker with default settings."""
    return CircuitBreaker("benchmark")


def limiter() -> Any:
    """Return a limit that is never reached."""
    return RateLimiter("1000000000/second", name="benchmark").bound(key="key")


# --- others ---


def tenacity_wraps(work: Work) -> Any:
    """Retry with tenacity's decorator."""
    tenacity = import_module("tenacity")
    return tenacity.retry(
        stop=tenacity.stop_after_attempt(ATTEMPTS), wait=tenacity.wait_random_exponential(0.1, 10), reraise=True
    )(work)


def tenacity_at_once(work: Work) -> Any:
    """Retry with tenacity's decorator, without pauses."""
    tenacity = import_module("tenacity")
    return tenacity.retry(stop=tenacity.stop_after_attempt(ATTEMPTS), wait=tenacity.wait_none(), reraise=True)(work)


def stamina(work: Work) -> Any:
    """Retry with stamina's decorator."""
    return import_module("stamina").retry(on=ConnectionError, attempts=ATTEMPTS, timeout=None)(work)


def pyresilience_retry(work: Work) -> Any:
    """Retry with pyresilience."""
    library = import_module("pyresilience")
    return library.resilient(retry=library.RetryConfig(max_attempts=ATTEMPTS, delay=0.1, max_delay=10.0))(work)


def pyresilience_retry_at_once(work: Work) -> Any:
    """Retry with pyresilience, without pauses."""
    library = import_module("pyresilience")
    return library.resilient(retry=library.RetryConfig(max_attempts=ATTEMPTS, delay=0.0, jitter=False))(work)


def pyresilience_two(work: Work) -> Any:
    """Retry and break the circuit with pyresilience."""
    library = import_module("pyresilience")
    return library.resilient(
        retry=library.RetryConfig(max_attempts=ATTEMPTS), circuit_breaker=library.CircuitBreakerConfig()
    )(work)


def pyresilience_timeout(work: Work) -> Any:
    """Time out with pyresilience."""
    library = import_module("pyresilience")
    return library.resilient(timeout=library.TimeoutConfig(seconds=SECONDS))(work)


def hyx_retry(work: Work) -> Any:
    """Retry with hyx."""
    return import_module("hyx.retry").retry(on=ConnectionError, attempts=ATTEMPTS)(work)


def hyx_timeout(work: Work) -> Any:
    """Time out with hyx."""
    return import_module("hyx.timeout").timeout(SECONDS)(work)


def aioresilience_retry(work: Work) -> Any:
    """Retry with aioresilience."""
    library = import_module("aioresilience")
    return library.retry(max_attempts=ATTEMPTS)(work)


def aioresilience_timeout(work: Work) -> Any:
    """Time out with aioresilience."""
    return import_module("aioresilience").timeout(SECONDS)(work)


def contender(name: str, wrap: Callable[[Work], Any], distribution: str, note: str = "") -> Contender:
    """Return the contender that awaits a call which succeeds."""

    async def build() -> Sample:
        return repeated(wrap(nothing))

    return Contender(name=name, build=build, distribution=distribution, note=note)


def contender_sync(name: str, wrap: Callable[[Work], Any], distribution: str) -> Contender:
    """Return the contender that makes a sync call which succeeds."""

    async def build() -> Sample:
        return repeated_sync(wrap(nothing_sync))

    return Contender(name=name, build=build, distribution=distribution)


def contender_failing(name: str, wrap: Callable[[Work], Any], distribution: str) -> Contender:
    """Return the contender whose calls fail twice each."""

    async def build() -> Sample:
        return repeated(wrap(failing_twice()))

    return Contender(name=name, build=build, distribution=distribution)
