"""tenacity's objects as vocabulary: asked after a failure, and only then."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import tenacity

from resilience.errors import CircuitOpenError, ConfigurationError
from resilience.events import RetryStopped, capture
from resilience.policies import Retry

pytestmark = pytest.mark.anyio


def failing(error: Exception, times: int = 10**9) -> Any:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return call


async def calls_of(error: Exception, attempts: int | None = 9, **options: Any) -> tuple[int, float]:
    """Give how often it was called, and the seconds that passed."""
    began, calls = anyio.current_time(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)) as caught:
        await Retry(attempts, clock=anyio.current_time, **{"wait": 1.0} | options)(call)()
    assert caught.value is error
    return calls, anyio.current_time() - began


@pytest.mark.parametrize(
    ("stop", "calls"),
    [
        (tenacity.stop_after_attempt(4), 4),
        (tenacity.stop_after_delay(2.5), 4),
        (tenacity.stop_any(tenacity.stop_after_attempt(7), tenacity.stop_after_delay(1.5)), 3),
        (tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(100), 3),
        (tenacity.stop_after_attempt(2) & tenacity.stop_after_delay(2.5), 4),
        (tenacity.stop_before_delay(2.5), 3),
    ],
)
async def test_stop_objects(stop: Any, calls: int) -> None:
    with capture(RetryStopped) as told:
        assert (await calls_of(OSError(), None, stop=stop))[0] == calls
    assert [event.stop_reason for event in told] == ["attempts"]


@pytest.mark.parametrize(
    ("wait", "passed"),
    [
        (tenacity.wait_none(), (0, 0)),
        (tenacity.wait_fixed(2), (4, 4)),
        (tenacity.wait_exponential(multiplier=1, max=10), (3, 3)),
        (tenacity.wait_incrementing(1, 2), (4, 4)),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(5)), (6, 6)),
        (tenacity.wait_fixed(1) + tenacity.wait_fixed(2), (6, 6)),
        (tenacity.wait_random_exponential(max=10), (0, 6)),
        (tenacity.wait_random(1, 2), (2, 4)),
    ],
)
async def test_wait_objects(wait: Any, passed: tuple[float, float]) -> None:
    calls, took = await calls_of(OSError(), 3, wait=wait)
    assert calls == 3
    assert passed[0] <= took <= passed[1]


@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (tenacity.retry_if_exception_type(OSError), ConnectionError(), 3),
        (tenacity.retry_if_exception_type(OSError), KeyError(), 1),
        (tenacity.retry_if_exception(lambda error: "again" in str(error)), ValueError("again"), 3),
        (tenacity.retry_if_exception_message(match=".*again"), ValueError("never"), 1),
        (tenacity.retry_if_not_exception_type(KeyError), OSError(), 3),
        (tenacity.retry_any(tenacity.retry_if_exception_type(OSError), tenacity.retry_never), OSError(), 3),
        (tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_type(KeyError), KeyError(), 3),
        (tenacity.retry_if_exception_type(OSError) & tenacity.retry_never, OSError(), 1),
        (tenacity.retry_always, OSError(), 3),
        (tenacity.retry_always, TypeError(), 1),
        (tenacity.retry_if_exception_type(OSError), ExceptionGroup("", [ConnectionError()]), 3),
        (tenacity.retry_if_exception_type(OSError), ExceptionGroup("", [ConnectionError(), KeyError()]), 1),
    ],
)
async def test_retry_objects(on: Any, error: Exception, calls: int) -> None:
    assert (await calls_of(error, 3, on=on))[0] == calls


async def test_a_stop_object_ends_the_waiting_for_admission_too() -> None:
    refused = CircuitOpenError("callee", "open", 1.0)
    with capture(RetryStopped) as told:
        calls, _ = await calls_of(refused, None, stop=tenacity.stop_after_attempt(4), wait_for_admission=3.0)
    assert (calls, [event.stop_reason for event in told]) == (4, ["attempts"])


async def test_none_is_asked_while_all_goes_well() -> None:
    def asked(*_: object) -> Any:
        raise AssertionError("asked")

    class Wait(tenacity.wait.wait_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> float:
            raise AssertionError(retry_state)

    class Stop(tenacity.stop.stop_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
            raise AssertionError(retry_state)

    async def fine() -> int:
        return 7

    retry = Retry(3, on=tenacity.retry_if_exception(asked), wait=Wait(), stop=Stop())
    assert await retry(fine)() == 7
    assert retry.call(lambda: 7) == 7


async def test_they_see_the_attempt_the_error_and_no_arguments() -> None:
    seen: list[Any] = []

    class Wait(tenacity.wait.wait_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> float:
            outcome = retry_state.outcome
            assert outcome is not None
            seen.append((retry_state.attempt_number, outcome.exception(), retry_state.args, retry_state.kwargs))
            seen.append(retry_state.seconds_since_start)
            return 2.0

    error = OSError()

    async def fail(secret: str) -> None:
        raise error

    with pytest.raises(OSError):  # noqa: PT011 - the object is what counts
        await Retry(3, wait=Wait(), clock=anyio.current_time)(fail)("secret")
    assert seen == [(1, error, (), {}), 0.0, (2, error, (), {}), 2.0]


def test_what_judges_results_or_awaits_is_refused() -> None:
    async def later(_: object) -> bool:
        return True

    for on in (
        tenacity.retry_if_result(lambda _: True),
        tenacity.retry_any(tenacity.retry_always, tenacity.retry_if_not_result(lambda _: True)),
    ):
        with pytest.raises(ConfigurationError, match="pass its predicate as retry_result"):
            Retry(3, on=on)
    with pytest.raises(ConfigurationError, match="async"):
        Retry(3, on=tenacity.asyncio.retry_if_exception(later))
    with pytest.raises(ConfigurationError, match="stop must be a stop object of tenacity"):
        Retry(3, stop=tenacity.wait_fixed(1))
