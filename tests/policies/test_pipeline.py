"""Policies in a row: the order that makes sense, what comes out of it, and what can be read and changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from resilience import CircuitBreaker, ConnectionPool, CountWindow, RateLimiter
from resilience.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    RateLimitedError,
)
from resilience.events import (
    AttemptFailed,
    BulkheadRejected,
    CallRejected,
    ConfigReloaded,
    ConfigReloadFailed,
    Event,
    FallbackUsed,
    RetryStopped,
    capture,
)
from resilience.policies import (
    Bulkhead,
    Cache,
    Deadline,
    Fallback,
    Hedge,
    Outcome,
    Pipeline,
    Retry,
    RetryBudget,
    Timeout,
    writes,
)
from resilience.policies.policy import Site
from resilience.testing import VirtualClock

pytestmark = pytest.mark.anyio


def breaker(**options: Any) -> CircuitBreaker:
    given: dict[str, Any] = {"window": CountWindow(10), "minimum_calls": 3, "open_jitter": 0.0}
    given["clock"] = anyio.current_time
    return CircuitBreaker("callee", **given | options)


def retry(attempts: int = 3, **options: Any) -> Retry:
    given: dict[str, Any] = {"wait": 0.1, "clock": anyio.current_time}
    return Retry(attempts, **given | options)


class Callee:
    """Fails as often as it is told to, then answers."""

    def __init__(self, failures: int = 0, error: Callable[[], Exception] = ConnectionError, takes: float = 0.0) -> None:
        self.failures = failures
        self.error = error
        self.takes = takes
        self.calls = 0

    async def __call__(self, value: str = "done") -> str:
        self.calls += 1
        if self.takes:
            await anyio.sleep(self.takes)
        if self.calls <= self.failures:
            raise self.error()
        return value


# --- in a row ---


async def test_it_is_each_policy_around_the_next() -> None:
    callee = Callee(failures=2)
    circuit = breaker()
    pipeline = Pipeline(Deadline(5.0), retry(), circuit, Timeout(1.0), name="search")
    assert await pipeline.call(callee, "owls") == "owls"
    assert callee.calls == 3
    assert circuit.snapshot().calls == 3


async def test_decorated_functions_keep_their_names_and_share_its_state() -> None:
    pipeline = Pipeline(Bulkhead(1), name="search")

    @pipeline
    async def slow() -> None:
        """Take a second."""
        await anyio.sleep(1)

    @pipeline
    async def other() -> None:
        """Do nothing."""

    assert (slow.__name__, slow.__doc__) == ("slow", "Take a second.")
    async with anyio.create_task_group() as group:
        group.start_soon(slow)
        await anyio.sleep(0.5)
        with capture(BulkheadRejected) as told, pytest.raises(BulkheadFullError) as caught:
            await other()
    assert (caught.value.name, [event.name for event in told]) == ("search", ["search"])


def test_plain_functions_go_through_it_as_well(clock: VirtualClock) -> None:
    calls = 0

    @Pipeline(
        Fallback("owls"), Retry(3, wait=0.1, clock=clock, sleep=clock.advance), breaker(clock=clock), name="search"
    )
    def fail() -> str:
        nonlocal calls
        calls += 1
        raise ConnectionError

    assert fail() == "owls"
    assert calls == 3
    assert clock() == pytest.approx(0.2)


async def test_a_breaker_around_a_retry_sees_one_failure_and_inside_of_it_each() -> None:
    outside, inside = breaker(), breaker()
    for policies in ((outside, retry()), (retry(), inside)):
        with pytest.raises(ConnectionError):
            await Pipeline(*policies).call(Callee(failures=9))
    assert (outside.snapshot().failures, str(outside.state)) == (1, "closed")
    assert str(inside.state) == "open"  # by the third, which a single call made


async def test_a_full_bulkhead_is_not_asked_again() -> None:
    bulkhead, callee = Bulkhead(1), Callee()
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(anyio.sleep), 10)
        await anyio.sleep(1)
        for patience in (None, 5.0):
            began = anyio.current_time()
            with capture(BulkheadRejected) as told, pytest.raises(BulkheadFullError):
                await Pipeline(retry(7, wait_for_admission=patience), bulkhead).call(callee)
            assert (len(told), callee.calls, anyio.current_time()) == (1, 0, began)
        group.cancel_scope.cancel()


async def test_a_fallback_answers_when_all_attempts_have_failed() -> None:
    callee = Callee(failures=9)
    with capture(FallbackUsed) as told:
        assert await Pipeline(Fallback("owls"), retry()).call(callee) == "owls"
    assert (callee.calls, len(told)) == (3, 1)


async def test_a_cache_spares_the_attempts() -> None:
    callee = Callee(failures=2)
    search = Pipeline(Cache(60.0, max_size=10, clock=anyio.current_time), retry())(callee.__call__)
    assert [await search("bar"), await search("bar"), callee.calls] == ["bar", "bar", 3]


async def test_a_pool_gives_each_attempt_a_connection() -> None:
    opened = 0

    async def connect() -> int:
        nonlocal opened
        opened += 1
        return opened

    used: list[int] = []

    async def query(connection: int, words: str) -> str:
        used.append(connection)
        if len(used) < 3:
            raise ConnectionError
        return words

    async with ConnectionPool(connect, clock=anyio.current_time) as pool:
        for given in (pool, pool.inject):
            used.clear()
            assert await Pipeline(retry(), given).call(query, "owls") == "owls"
            assert len(used) == 3


async def test_an_open_breaker_ends_the_attempts_with_the_callee_s_own_error() -> None:
    error = ConnectionError("mine")
    callee = Callee(failures=99, error=lambda: error)
    with capture(CallRejected, RetryStopped) as told, pytest.raises(ConnectionError) as caught:
        await Pipeline(retry(9), breaker()).call(callee)
    assert caught.value is error
    # It opened with the third failure, which the retry sees before it sleeps: nobody is rejected.
    assert callee.calls == 3
    assert [event.kind for event in told] == ["retry.stopped"]
    assert told[0].as_dict()["stop_reason"] == "circuit_open"


async def test_who_waits_for_admission_is_let_in_by_the_breaker() -> None:
    callee = Callee(failures=3)
    circuit = breaker(open_duration=2.0)
    began = anyio.current_time()
    assert await Pipeline(retry(5, wait_for_admission=3.0), circuit).call(callee) == "done"
    assert 2.0 <= anyio.current_time() - began <= 2.0 * 1.1 + 0.2
    assert callee.calls == 4


async def test_a_bulkhead_that_is_full_at_the_moment_ends_no_retry() -> None:
    bulkhead, callee = Bulkhead(1), Callee(failures=1)
    async with anyio.create_task_group() as group:
        group.start_soon(bulkhead(anyio.sleep), 0.5)
        await anyio.sleep(0.1)
        assert not bulkhead.admission().allowed
        # As if somebody else had got the place while the first attempt failed: after the pause it is free again.
        inside = Site("search", callee, (bulkhead,))
        assert await retry(3, wait=1.0).around(callee.__call__, inside)() == "done"
    assert callee.calls == 2


async def test_stacked_decorators_know_of_each_other_as_well() -> None:
    circuit = breaker()
    error = ConnectionError()
    callee = Callee(failures=99, error=lambda: error)

    @retry(9)
    @circuit
    async def call() -> str:
        return await callee()

    with capture(CallRejected) as told, pytest.raises(ConnectionError):
        await call()
    assert (callee.calls, told) == (3, [])


async def test_a_limiter_inside_a_retry_is_charged_for_each_attempt() -> None:
    limiter = RateLimiter("5/minute", name="quota", clock=anyio.current_time)
    with pytest.raises(ConnectionError):
        await Pipeline(retry(3), limiter.bound()).call(Callee(failures=9))
    assert (await limiter.peek()).remaining == 2


# --- orders that make no sense ---


def impossible() -> list[tuple[str, tuple[Any, ...]]]:
    budget = RetryBudget()
    hedge = Hedge(0.1, idempotent=True, budget=budget)
    pool = ConnectionPool(anyio.sleep_forever, name="db")
    cache = Cache(1.0, max_size=1)
    return [
        ("retry around fallback", (Retry(3), Fallback(1))),
        ("retry around fallback, further in", (Retry(3), Deadline(1.0), Timeout(0.5), Fallback(1))),
        ("hedge around fallback", (hedge, Fallback(1))),
        ("breaker around fallback", (CircuitBreaker("x"), Fallback(1))),
        ("hedge around cache", (hedge, cache)),
        ("pool around hedge", (pool, hedge)),
        ("pool around retry", (pool, Retry(3))),
        ("pool around cache", (pool, cache)),
    ]


@pytest.mark.parametrize(("what", "policies"), impossible(), ids=[what for what, _ in impossible()])
def test_an_order_that_makes_no_sense_is_refused_with_both_names(what: str, policies: tuple[Any, ...]) -> None:
    def names(error: pytest.ExceptionInfo[ConfigurationError]) -> bool:
        return all(repr(policy) in str(error.value) for policy in (policies[0], policies[-1]))

    with pytest.raises(ConfigurationError, match="must not be around") as caught:
        Pipeline(*policies)
    assert names(caught)
    with pytest.raises(ConfigurationError) as caught:
        Pipeline(policies[0], Pipeline(*policies[1:]))  # seen through
    assert names(caught)
    del what


def test_stacked_decorators_are_refused_as_well() -> None:
    async def call() -> None: ...

    with pytest.raises(ConfigurationError, match="the fallback would answer each failure"):
        Retry(3)(Fallback(1)(call))
    with pytest.raises(ConfigurationError, match="the fallback would answer each failure"):
        Pipeline(Retry(3))(Fallback(1)(call))


def test_a_fallback_for_what_a_retry_spares_may_stand_inside() -> None:
    Pipeline(Retry(3), Fallback(1, on=CircuitOpenError))
    Pipeline(Retry(3, on=ConnectionError), Fallback(1, on=KeyError))
    with pytest.raises(ConfigurationError):
        Pipeline(Retry(3, on=OSError), Fallback(1, on=ConnectionError))


def test_the_same_object_twice_is_refused() -> None:
    one = Retry(3)
    with pytest.raises(ConfigurationError, match="must not be twice around one function"):
        Pipeline(one, Pipeline(Deadline(1.0), one))
    Pipeline(Retry(3), Retry(3))  # two of a kind are two


@pytest.mark.parametrize("given", [3, "retry", None, Retry, lambda: None, object(), Callee()])
def test_what_is_no_policy_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="policies must be policies such as"):
        Pipeline(given)


def test_nothing_is_no_pipeline() -> None:
    with pytest.raises(ConfigurationError, match="policies must not be empty"):
        Pipeline()


def test_what_must_not_be_done_twice_is_not() -> None:
    @writes
    async def pay() -> None: ...

    for policy in (Retry(3), Hedge(0.1, idempotent=True)):
        with pytest.raises(ConfigurationError, match="marked as writes"):
            Pipeline(Deadline(1.0), policy, Timeout(0.5))(pay)
    Pipeline(Deadline(1.0), Timeout(0.5))(pay)


def test_a_timeout_for_a_plain_function_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(ConfigurationError, match="a timeout needs an async function"):
        Pipeline(Deadline(1.0), Timeout(0.5))(lambda: None)


# --- the usual order ---


def test_standard_puts_them_in_order_whatever_the_order_of_arguments() -> None:
    pool = ConnectionPool(anyio.sleep_forever, name="db")
    pipeline = Pipeline.standard(
        name="search",
        timeout=0.5,
        pool=pool.inject,
        bulkhead=10,
        limiter="10/second",
        breaker=True,
        hedge=Hedge(0.1, idempotent=True),
        retry=3,
        cache=60.0,
        deadline=2.0,
        fallback=None,
    )
    kinds = [policy.kind for policy in pipeline.policies]
    assert kinds == [
        "fallback",
        "deadline",
        "cache",
        "retry",
        "hedge",
        "breaker",
        "limiter",
        "bulkhead",
        "pool",
        "timeout",
    ]
    assert pipeline.policies[5].name == "search"
    assert pipeline.policies[8] is pool


def test_standard_takes_policies_as_they_are() -> None:
    fallback, deadline, attempts = Fallback(1), Deadline(1.0), Retry(2)
    circuit, bulkhead, timeout = CircuitBreaker("x"), Bulkhead(1), Timeout(0.5)
    made = Pipeline.standard(
        fallback=fallback, deadline=deadline, retry=attempts, breaker=circuit, bulkhead=bulkhead, timeout=timeout
    )
    assert made.policies == (fallback, deadline, attempts, circuit, bulkhead, timeout)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retry": "3"}, "retry must be a Retry, or a number of attempts, got '3'"),
        ({"retry": Timeout(2.0)}, "retry must be a Retry, or a number of attempts, got <Timeout 2 s>"),
        ({"deadline": "1"}, "deadline must be a Deadline, or seconds, got '1'"),
        ({"timeout": True}, "timeout must be a Timeout, or seconds, got True"),
        ({"cache": "60"}, "cache must be a Cache, or seconds, got '60'"),
        ({"bulkhead": "9"}, "bulkhead must be a Bulkhead, an AdaptiveLimit, or a number of concurrent calls"),
        ({"hedge": 0.1}, "hedge must be a Hedge: it must be told that the call is idempotent, got 0.1"),
        ({"shed": 0.1}, "shed must be a LoadShed or a Throttle, got 0.1"),
        ({"pool": "db"}, "pool must be a ConnectionPool, got 'db'"),
        ({"breaker": 0.5}, "breaker must be a CircuitBreaker, its name"),
        ({"breaker": True}, "breaker must be a CircuitBreaker, its name"),
        ({"limiter": 10}, "limiter must be limiter.bound"),
        ({"bulkhead": 0}, "max_concurrent must be at least 1, got 0"),
        ({}, "policies must not be empty"),
    ],
)
def test_standard_refuses_what_is_neither_a_policy_nor_its_short_form(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Pipeline.standard(**given)


# --- outcomes ---


async def outcome(callee: Any, *policies: Any) -> Outcome:
    result: Outcome = await Pipeline(*policies, clock=anyio.current_time).call_outcome(callee)
    return result


async def test_an_outcome_tells_how_it_went() -> None:
    one = await outcome(Callee(failures=2, takes=1.0), retry())
    assert (one.ok, one.value, one.error, one.stop_reason, one.attempts) == (True, "done", None, "success", 3)
    assert one.duration == pytest.approx(3.2)
    error = ConnectionError()
    one = await outcome(Callee(failures=9, error=lambda: error), retry())
    assert (one.ok, one.value, one.error, one.stop_reason, one.attempts) == (False, None, error, "attempts", 3)


async def test_an_outcome_tells_why_it_ended() -> None:
    tripped = breaker()
    tripped.trip()
    assert (await outcome(Callee(), tripped)).stop_reason == "circuit_open"
    assert (await outcome(Callee(), retry(), tripped)).attempts == 0
    quota = RateLimiter("1/minute", name="quota", clock=anyio.current_time)
    quota.try_acquire_sync()
    limited = await outcome(Callee(), quota.bound())
    assert (limited.stop_reason, type(limited.error)) == ("rate_limited", RateLimitedError)
    late = await outcome(Callee(takes=9.0), Deadline(1.0), retry(), Timeout(20.0))
    assert (late.stop_reason, late.attempts, type(late.error)) == ("deadline", 1, CallTimeoutError)
    assert (await outcome(Callee(failures=9, error=TypeError), retry())).stop_reason == "not_retryable"
    assert (await outcome(Callee(failures=1), Timeout(1.0))).stop_reason == "attempts"
    fell_back = await outcome(Callee(failures=9), Fallback("owls"), retry())
    assert (fell_back.ok, fell_back.value, fell_back.stop_reason) == (True, "owls", "attempts")
    cache = Cache(60.0, max_size=1, clock=anyio.current_time)
    callee = Callee()
    assert [(await outcome(callee, cache)).attempts for _ in range(2)] == [1, 0]


async def test_a_cancellation_is_no_outcome() -> None:
    with anyio.move_on_after(1.0) as scope:
        await outcome(Callee(takes=9.0), retry())
    assert scope.cancelled_caught


def test_an_outcome_of_a_plain_function() -> None:
    def fail() -> None:
        raise KeyError("mine")

    one = Pipeline(Deadline(1.0)).call_outcome(fail)
    assert isinstance(one, Outcome)
    assert (one.ok, type(one.error), one.attempts) == (False, KeyError, 1)
    assert Pipeline(Deadline(1.0)).call_outcome(lambda: 7).value == 7

    class Nothing:
        def around(self, function: Any, _: object) -> Any:
            return function

    for policy in (Deadline(1.0), Nothing()):
        misused = Pipeline(policy).call_outcome(lambda: anyio.sleep(1))
        assert (misused.ok, type(misused.error)) == (False, ConfigurationError)


# --- the story of a call ---


async def test_the_story_of_a_call_can_be_told_afterwards() -> None:
    pipeline = Pipeline(Fallback("owls"), retry(), breaker(), name="search")
    one = await pipeline.call_outcome(Callee(failures=9))
    other = await pipeline.call_outcome(Callee())
    story = pipeline.explain_call(one.call_id)
    kinds = [line.split()[3] for line in story.splitlines()[1:]]
    assert kinds == [
        "retry.attempt_failed",
        "retry.attempt_failed",
        "circuit_breaker.state_changed",
        "retry.attempt_failed",
        "retry.stopped",
        "fallback.used",
    ]
    assert "error_type=ConnectionError" in story
    assert "stop_reason=attempts attempts=3" in story
    assert pipeline.explain_call(other.call_id) != story


async def test_a_call_that_went_well_at_once_has_no_story() -> None:
    pipeline = Pipeline(retry())
    one = await pipeline.call_outcome(Callee())
    assert "it went well at once, or is forgotten" in pipeline.explain_call(one.call_id)


async def test_the_events_of_a_call_have_its_id() -> None:
    pipeline = Pipeline(retry(), name="search")
    with capture(AttemptFailed) as told:
        one = await pipeline.call_outcome(Callee(failures=9))
        await pipeline.call_outcome(Callee(failures=9))
    assert [event.call_id for event in told[:3]] == [one.call_id] * 3
    assert len({event.call_id for event in told}) == 2


async def test_memory_is_bounded() -> None:
    pipeline = Pipeline(retry(2, wait=0))
    first = last = await pipeline.call_outcome(Callee(failures=9))
    for _ in range(400):
        last = await pipeline.call_outcome(Callee(failures=9))
    assert "forgotten" in pipeline.explain_call(first.call_id)
    assert "attempt_failed" in pipeline.explain_call(last.call_id)


# --- changed while it runs ---


async def test_other_policies_take_the_place_of_those_from_before() -> None:
    pipeline = Pipeline(retry(2), name="search")
    callee = Callee(failures=99)
    search = pipeline(callee.__call__)
    with pytest.raises(ConnectionError):
        await search()
    assert callee.calls == 2
    with capture(ConfigReloaded) as told:
        pipeline.reload(retry(4), Timeout(1.0))
    assert [event.policies for event in told] == [2]
    with pytest.raises(ConnectionError):
        await search()
    assert callee.calls == 6
    assert [policy.kind for policy in pipeline.policies] == ["retry", "timeout"]


async def test_policies_that_make_no_sense_change_nothing() -> None:
    pipeline = Pipeline(retry(2), name="search")
    callee = Callee(failures=99)
    search = pipeline(callee.__call__)
    before = pipeline.policies
    for bad in ((Retry(3), Fallback(1)), (), (3,)):
        with capture(ConfigReloadFailed) as told, pytest.raises(ConfigurationError):
            pipeline.reload(*bad)
        assert [event.name for event in told] == ["search"]
    assert pipeline.policies == before
    with pytest.raises(ConnectionError):
        await search()
    assert callee.calls == 2


def test_policies_that_one_of_its_functions_cannot_have_change_nothing() -> None:
    pipeline = Pipeline(Deadline(1.0), name="search")

    def plain_function() -> str:
        return "done"

    plain = pipeline(plain_function)
    with pytest.raises(ConfigurationError, match="a timeout needs an async function"):
        pipeline.reload(Timeout(0.5))
    assert plain() == "done"
    assert [policy.kind for policy in pipeline.policies] == ["deadline"]


def test_policies_that_do_not_fit_what_stands_inside_change_nothing() -> None:
    pipeline = Pipeline(Deadline(1.0), name="search")

    @pipeline
    @Fallback("owls")
    def search() -> str:
        return "done"

    with pytest.raises(ConfigurationError, match="the fallback would answer each failure"):
        pipeline.reload(Retry(3))
    assert search() == "done"
    assert [policy.kind for policy in pipeline.policies] == ["deadline"]


async def test_calls_under_way_end_with_the_policies_they_began_with() -> None:
    pipeline = Pipeline(Fallback("before"), name="search")
    search = pipeline(Callee(failures=9, takes=1.0).__call__)
    got: list[str] = []

    async def ask() -> None:
        got.append(await search())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(0.5)
        pipeline.reload(Fallback("after"))
        group.start_soon(ask)
    assert got == ["before", "after"]


def test_functions_that_are_gone_are_forgotten() -> None:
    pipeline = Pipeline(Deadline(1.0))
    for _ in range(100):
        pipeline(lambda: None)
    assert len(pipeline._mounts) <= 1


# --- the same everywhere ---


def story(told: list[Event]) -> list[dict[str, object]]:
    return [
        {key: value for key, value in event.as_dict().items() if key not in {"wall", "seq", "at", "call_id"}}
        for event in told
    ]


def test_both_backends_tell_the_same_story() -> None:
    async def all_at_once() -> None:
        circuit = breaker(open_duration=0.3)
        pipeline = Pipeline(Fallback(0), Deadline(3.0), retry(4), circuit, Bulkhead(2), Timeout(0.5), name="search")
        for callee in (Callee(), Callee(2), Callee(9), Callee(takes=9.0), Callee(9, error=TypeError)):
            await pipeline.call(callee)
            await anyio.sleep(0.2)

    told = {}
    for backend in ("asyncio", "trio"):
        with capture() as events:
            VirtualClock().run(all_at_once, backend=backend)
        told[backend] = story(events)
    assert told["asyncio"] == told["trio"]
    assert len(told["asyncio"]) > 20
