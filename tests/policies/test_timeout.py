"""What ends in time, who says so, and what is nobody's timeout of ours."""

from __future__ import annotations

import time
from math import inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience import RateLimiter
from resilience.errors import CallTimeoutError, ConfigurationError, RateLimitedError
from resilience.events import AttemptFailed, RetryStopped, TimedOut, capture
from resilience.policies import Deadline, Retry, Timeout
from resilience.testing import VirtualClock

pytestmark = pytest.mark.anyio


async def sleep(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"


async def test_what_is_in_time_is_as_it_was() -> None:
    assert await Timeout(1.0)(sleep)(0.5) == "done"
    assert await Deadline(1.0).call(sleep, 1.0 - 1e-9) == "done"


@pytest.mark.parametrize(("policy", "scope"), [(Timeout(0.2), "attempt"), (Deadline(0.2), "total")])
async def test_what_takes_too_long_is_cancelled_and_told_once(policy: Any, scope: str) -> None:
    began = anyio.current_time()
    cancelled_at = None

    async def slow() -> None:
        nonlocal cancelled_at
        try:
            await anyio.sleep(1)
        except BaseException:
            cancelled_at = anyio.current_time() - began
            raise

    with capture(TimedOut) as told, pytest.raises(CallTimeoutError) as caught:
        await policy(slow)()
    assert (caught.value.scope, caught.value.seconds) == (scope, 0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert cancelled_at == pytest.approx(0.2)
    [event] = told
    assert (event.scope, event.seconds) == (scope, 0.2)
    assert event.elapsed == pytest.approx(0.2)
    assert event.name.endswith("slow")
    assert event.severity == "warning"


async def test_only_the_scope_that_fired_tells() -> None:
    with capture(TimedOut) as told, pytest.raises(CallTimeoutError) as caught:
        await Deadline(0.05)(Timeout(1.0)(sleep))(2)
    assert (caught.value.scope, [event.scope for event in told]) == ("total", ["total"])


async def test_of_two_that_end_at_the_same_moment_the_outer_one_tells() -> None:
    with capture(TimedOut) as told, pytest.raises(CallTimeoutError) as caught:
        await Deadline(0.5)(Timeout(0.5)(sleep))(2)
    assert (caught.value.scope, [event.scope for event in told]) == ("total", ["total"])


async def test_a_nearer_deadline_of_the_caller_is_the_caller_s() -> None:
    with capture(TimedOut) as told:
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.05):
            await Timeout(1.0)(sleep)(2)
        assert not isinstance(caught.value, CallTimeoutError)
        with anyio.move_on_after(0.05) as scope:
            await Deadline(1.0)(sleep)(2)
    assert scope.cancelled_caught
    assert told == []


async def test_inside_a_shield_the_caller_s_deadline_does_not_count() -> None:
    with anyio.move_on_after(0.05), anyio.CancelScope(shield=True), pytest.raises(CallTimeoutError):
        await Timeout(0.1)(sleep)(2)


async def test_a_timeout_of_the_callee_is_not_ours() -> None:
    own = TimeoutError("the driver's")

    @Timeout(1.0)
    async def fail() -> None:
        raise own

    with capture(TimedOut) as told, pytest.raises(TimeoutError) as caught:
        await fail()
    assert caught.value is own
    assert told == []


async def test_a_result_that_comes_in_spite_of_the_end_is_returned() -> None:
    @Timeout(0.1)
    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
        return "late"

    with capture(TimedOut) as told:
        assert await stubborn() == "late"
    assert told == []


async def test_a_cancellation_from_outside_passes() -> None:
    with capture(TimedOut) as told, anyio.CancelScope() as scope:
        scope.cancel()
        await Timeout(1.0)(sleep)(0)
    assert scope.cancelled_caught
    assert told == []


async def test_each_attempt_has_its_timeout_and_all_have_one_deadline() -> None:
    calls = 0

    @Deadline(1.0)
    @Retry(5, wait=0.1, clock=anyio.current_time)
    @Timeout(0.3)
    async def slow() -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(10)

    began = anyio.current_time()
    with capture(TimedOut, AttemptFailed, RetryStopped) as told, pytest.raises(CallTimeoutError) as caught:
        await slow()
    # 0.3, pause, 0.3, pause, and the third has 0.2 left: there the deadline ends it.
    assert anyio.current_time() - began == pytest.approx(1.0)
    assert calls == 3
    assert caught.value.scope == "total"
    assert [event.scope for event in told if isinstance(event, TimedOut)] == ["attempt", "attempt", "total"]


async def test_a_pause_that_would_end_after_the_deadline_is_not_begun() -> None:
    error = ConnectionError()

    @Deadline(1.0)
    @Retry(5, wait=2.0, clock=anyio.current_time)
    async def fail() -> None:
        raise error

    began = anyio.current_time()
    with capture(RetryStopped) as told, pytest.raises(ConnectionError) as caught:
        await fail()
    assert caught.value is error
    assert anyio.current_time() == began
    assert [event.stop_reason for event in told] == ["deadline"]


def test_a_plain_function_cannot_have_a_timeout() -> None:
    def plain() -> None: ...

    with pytest.raises(ConfigurationError, match=r"a timeout needs an async function, .*plain is a plain one"):
        Timeout(1.0)(plain)


def test_a_deadline_bounds_the_waits_of_plain_functions_and_interrupts_nothing(clock: VirtualClock) -> None:
    calls = 0

    @Deadline(1.0, clock=clock)
    @Retry(9, wait=0.4, clock=clock, sleep=clock.advance)
    def fail() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError

    with capture(RetryStopped) as told, pytest.raises(ConnectionError):
        fail()
    assert calls == 3
    assert clock() == pytest.approx(0.8)
    assert [event.stop_reason for event in told] == ["deadline"]

    @Deadline(1.0, clock=clock)
    def slow() -> str:
        clock.advance(5)
        return "late"

    assert slow() == "late"


def test_the_nearer_of_two_deadlines_holds_and_is_gone_afterwards(clock: VirtualClock) -> None:
    def attempts_within(*seconds: float) -> int:
        calls = 0

        def fail() -> None:
            nonlocal calls
            calls += 1
            raise ConnectionError

        function: Any = Retry(9, wait=0.4, clock=clock, sleep=clock.advance)(fail)
        for one in seconds:
            function = Deadline(one, clock=clock)(function)
        with pytest.raises(ConnectionError):
            function()
        return calls

    assert attempts_within(1.0, 5.0) == attempts_within(5.0, 1.0) == attempts_within(1.0) == 3
    assert attempts_within() == 9


def test_nobody_waits_for_a_turn_that_comes_after_the_deadline(clock: VirtualClock) -> None:
    limiter = RateLimiter("1/10s", name="slow", clock=clock)
    limited = limiter.bound(wait=True)(lambda: "done")
    assert Deadline(5.0, clock=clock).call(limited) == "done"
    with pytest.raises(RateLimitedError, match="deadline"):
        Deadline(5.0, clock=clock).call(limited)
    assert clock() == 0


def test_a_plain_function_that_gives_an_awaitable_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a deadline got an awaitable from a plain function"):
        _ = Deadline(1.0).call(lambda: sleep(1))


@pytest.mark.parametrize("policy", [Timeout, Deadline])
@pytest.mark.parametrize("seconds", [0, -1, nan, inf, "1", None, True])
def test_what_is_no_time_is_refused(policy: Any, seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="seconds must be"):
        policy(seconds)


def test_it_says_what_it_is() -> None:
    assert (repr(Timeout(0.5)), repr(Deadline(2))) == ("<Timeout 0.5 s>", "<Deadline 2 s>")
    assert Timeout(1.0, name="search").name == "search"
    with pytest.raises(ConfigurationError, match="clock must be a function"):
        Deadline(1.0, clock=time)  # type: ignore[arg-type]  # the slip that is tested
