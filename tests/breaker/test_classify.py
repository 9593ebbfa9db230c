"""What an exception, or a result, says about the callee."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from resilience import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    PoolClosedError,
    PoolDeadlockError,
    PoolFullError,
    PoolTimeoutError,
    RateLimitedError,
    RejectedError,
)
from resilience.events import CallFailed, CallIgnored, PredicateFailed, capture
from resilience.testing import VirtualClock

SLOW_AFTER = 1.0

# (calls, failures, slow calls) in the window of a breaker that saw one call
SUCCESS, FAILURE, NOTHING = (1, 0, 0), (1, 1, 0), (0, 0, 0)
SLOW_SUCCESS, SLOW_FAILURE = (1, 0, 1), (1, 1, 1)

Counts = tuple[int, int, int]


class BreakdownError(Exception):
    pass


class RefusalError(Exception):
    pass


class Abort(BaseException):
    pass


def counts(breaker: CircuitBreaker) -> Counts:
    snapshot = breaker.snapshot()
    return snapshot.calls, snapshot.failures, snapshot.slow_calls


def judged(error: BaseException, *, age: float = 0.0, **config: Any) -> Counts:
    """Give what a breaker counts for a call that raised `error` at `age`."""
    clock = VirtualClock(autojump=False)
    breaker = CircuitBreaker("judge", clock=clock, slow_call_duration=SLOW_AFTER, **config)
    permit = breaker.acquire()
    clock.advance(age)
    permit.failure(error)
    assert breaker.snapshot().in_flight == 0
    return counts(breaker)


# --- types and predicates ---


def test_by_default_every_exception_is_a_failure() -> None:
    for error in (Exception(), ValueError(), OSError(), BreakdownError(), CallTimeoutError("attempt", 1.0)):
        assert judged(error) == FAILURE


@pytest.mark.parametrize(
    "failure_on",
    [
        BreakdownError,
        (OSError, BreakdownError),
        lambda error: isinstance(error, BreakdownError),
        lambda error: "truthy" * isinstance(error, BreakdownError),
    ],
    ids=["type", "tuple", "predicate", "truthy"],
)
def test_failure_on_names_the_failures_and_all_others_are_answers(failure_on: Any) -> None:
    assert judged(BreakdownError(), failure_on=failure_on) == FAILURE
    assert judged(ValueError(), failure_on=failure_on) == SUCCESS


@pytest.mark.parametrize(
    "ignore",
    [RefusalError, (LookupError, RefusalError), lambda error: isinstance(error, RefusalError)],
    ids=["type", "tuple", "predicate"],
)
def test_ignored_exceptions_say_nothing(ignore: Any) -> None:
    assert judged(RefusalError(), ignore=ignore) == NOTHING
    assert judged(ValueError(), ignore=ignore) == FAILURE


def test_subclasses_count_with_their_types() -> None:
    assert judged(ConnectionError(), failure_on=OSError) == FAILURE
    assert judged(ConnectionError(), ignore=OSError) == NOTHING


def test_ignore_is_asked_before_failure_on() -> None:
    assert judged(ConnectionError(), failure_on=OSError, ignore=ConnectionError) == NOTHING
    asked: list[BaseException] = []
    judged(RefusalError(), ignore=RefusalError, failure_on=asked.append)
    assert asked == []


def test_an_empty_tuple_names_nothing() -> None:
    assert judged(OSError(), failure_on=()) == SUCCESS


def test_a_predicate_is_given_the_exception_itself() -> None:
    asked: list[BaseException] = []
    error = ValueError()
    judged(error, failure_on=asked.append, ignore=asked.append)
    assert [one is error for one in asked] == [True, True]


@pytest.mark.parametrize(("age", "expected"), [(0.999, FAILURE), (1.0, SLOW_FAILURE)])
def test_a_failure_may_be_slow_too(age: float, expected: Counts) -> None:
    assert judged(BreakdownError(), age=age) == expected


def test_an_answer_by_exception_may_be_slow_too() -> None:
    assert judged(ValueError(), age=1.0, failure_on=OSError) == SLOW_SUCCESS


def test_an_ignored_exception_says_nothing_at_any_age() -> None:
    assert judged(RefusalError(), age=100.0, ignore=RefusalError) == NOTHING


# --- beyond Exception ---


@pytest.mark.parametrize("age", [0.0, 100.0])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), Abort()], ids=repr)
def test_what_ends_programs_says_nothing_at_any_age(error: BaseException, age: float) -> None:
    assert judged(error, age=age) == NOTHING


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
def test_what_python_ends_programs_with_cannot_be_made_a_failure(error: BaseException) -> None:
    assert judged(error, failure_on=BaseException) == NOTHING
    assert judged(error, failure_on=lambda _: True) == NOTHING


def test_a_base_exception_of_ones_own_counts_when_it_is_named() -> None:
    assert judged(Abort(), failure_on=(Abort, OSError)) == FAILURE
    assert judged(Abort(), failure_on=lambda error: isinstance(error, Abort)) == FAILURE
    assert judged(Abort(), failure_on=BaseException) == FAILURE
    assert judged(Abort(), failure_on=BaseException, ignore=Abort) == NOTHING


# --- cancellation ---


async def cancellation() -> BaseException:
    """Give a cancellation as this backend raises it."""
    seen: BaseException | None = None
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            seen = error
            raise
    assert seen is not None
    return seen


@pytest.mark.anyio
async def test_a_quick_cancellation_says_nothing() -> None:
    assert judged(await cancellation(), age=0.999) == NOTHING


@pytest.mark.anyio
async def test_a_cancellation_of_a_slow_call_says_that_it_was_slow() -> None:
    assert judged(await cancellation(), age=1.0) == SLOW_SUCCESS


@pytest.mark.anyio
async def test_a_cancellation_cannot_be_made_a_failure() -> None:
    assert judged(await cancellation(), failure_on=BaseException) == NOTHING


@pytest.mark.anyio
async def test_no_predicate_is_asked_about_a_cancellation() -> None:
    asked: list[BaseException] = []
    judged(await cancellation(), failure_on=asked.append, ignore=asked.append)
    assert asked == []


def test_asyncio_cancellations_with_a_message_are_cancellations() -> None:
    assert judged(asyncio.CancelledError("shutting down")) == NOTHING


# --- rejections by this library ---

REJECTIONS = [
    RejectedError("inner", "custom", "full"),
    CircuitOpenError("inner", "open"),
    RateLimitedError("inner", "limit"),
    BulkheadFullError("inner"),
    PoolTimeoutError("inner"),
    PoolFullError("inner"),
    PoolClosedError("inner"),
    PoolDeadlockError("inner", held_at="a.py:1 f", waiting_at="a.py:2 g"),
]


@pytest.mark.parametrize("error", REJECTIONS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("failure_on", [Exception, BaseException, (Exception, OSError), TimeoutError, lambda _: True])
def test_a_rejection_by_an_inner_policy_says_nothing_about_the_callee(error: RejectedError, failure_on: Any) -> None:
    assert judged(error, failure_on=failure_on) == NOTHING


@pytest.mark.parametrize("error", REJECTIONS, ids=lambda error: type(error).__name__)
def test_a_rejection_counts_where_its_type_is_named(error: RejectedError) -> None:
    assert judged(error, failure_on=type(error)) == FAILURE
    assert judged(error, failure_on=(OSError, type(error))) == FAILURE
    assert judged(error, failure_on=RejectedError) == FAILURE


def test_naming_one_kind_of_rejection_does_not_count_the_others() -> None:
    assert judged(BulkheadFullError("inner"), failure_on=(Exception, CircuitOpenError)) == NOTHING
    assert judged(CircuitOpenError("inner", "open"), failure_on=(Exception, CircuitOpenError)) == FAILURE


def test_a_named_rejection_may_still_be_ignored() -> None:
    error = CircuitOpenError("inner", "open")
    assert judged(error, failure_on=RejectedError, ignore=CircuitOpenError) == NOTHING


@pytest.mark.parametrize("inner_handles", [BreakdownError, RefusalError])
@pytest.mark.parametrize("error", [BreakdownError, RefusalError])
def test_of_two_nested_breakers_only_the_one_that_handles_the_error_opens(
    clock: VirtualClock, inner_handles: type[Exception], error: type[Exception]
) -> None:
    outer_handles = RefusalError if inner_handles is BreakdownError else BreakdownError
    inner = CircuitBreaker("inner", clock=clock, minimum_calls=1, failure_on=inner_handles)
    outer = CircuitBreaker("outer", clock=clock, minimum_calls=1, failure_on=outer_handles)

    @outer
    @inner
    def fail() -> None:
        raise error

    with pytest.raises(error):
        fail()
    assert [inner.state, outer.state] == [
        "open" if error is one else "closed" for one in (inner_handles, outer_handles)
    ]


def test_an_open_inner_breaker_leaves_the_outer_one_as_it_was(clock: VirtualClock) -> None:
    inner = CircuitBreaker("inner", clock=clock)
    outer = CircuitBreaker("outer", clock=clock, minimum_calls=1)
    inner.force_open()

    @outer
    @inner
    def guarded() -> None: ...

    for _ in range(10):
        with pytest.raises(CircuitOpenError):
            guarded()
    assert (outer.state, counts(outer)) == ("closed", NOTHING)


# --- exception groups ---


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("several", errors)


CANCELLED = asyncio.CancelledError()
RULES: dict[str, Any] = {"failure_on": BreakdownError, "ignore": RefusalError}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (group(BreakdownError()), FAILURE),
        (group(ValueError(), RefusalError(), BreakdownError(), CANCELLED), FAILURE),
        (group(ValueError(), group(RefusalError(), group(BreakdownError()))), FAILURE),
        (group(BreakdownError(), KeyboardInterrupt()), FAILURE),
        (group(RefusalError(), RefusalError()), NOTHING),
        (group(RefusalError(), group(RefusalError())), NOTHING),
        (group(RefusalError(), ValueError()), SUCCESS),
        (group(ValueError(), CANCELLED), SUCCESS),
        (group(RefusalError(), CANCELLED), NOTHING),
        (group(CANCELLED, CANCELLED), NOTHING),
        (group(KeyboardInterrupt(), CANCELLED), NOTHING),
        (group(CircuitOpenError("inner", "open"), RefusalError()), NOTHING),
        (group(CircuitOpenError("inner", "open"), BreakdownError()), FAILURE),
    ],
)
def test_a_group_is_judged_by_its_leaves(error: BaseException, expected: Counts) -> None:
    assert judged(error, **RULES) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (group(CANCELLED), SLOW_SUCCESS),
        (group(CANCELLED, group(CANCELLED)), SLOW_SUCCESS),
        (group(CANCELLED, RefusalError()), NOTHING),
        (group(CANCELLED, KeyboardInterrupt()), NOTHING),
        (group(CANCELLED, BreakdownError()), SLOW_FAILURE),
    ],
)
def test_only_a_group_of_nothing_but_cancellations_says_that_the_call_was_slow(
    error: BaseException, expected: Counts
) -> None:
    assert judged(error, age=100.0, **RULES) == expected


def test_each_leaf_is_shown_to_the_predicates_and_no_group_is() -> None:
    asked: list[BaseException] = []
    one, two, three = ValueError(1), ValueError(2), ValueError(3)
    judged(group(one, group(two, group(three))), ignore=asked.append, failure_on=())
    assert {id(error) for error in asked} == {id(one), id(two), id(three)}
    assert len(asked) == 3


@pytest.mark.parametrize(("leaf", "expected"), [(BreakdownError(), FAILURE), (RefusalError(), NOTHING)])
def test_a_group_nested_deeper_than_the_stack_is_judged(leaf: Exception, expected: Counts) -> None:
    nested: Exception = leaf
    for _ in range(10_000):
        nested = ExceptionGroup("deeper", [nested])
    assert judged(nested, **RULES) == expected


@pytest.mark.anyio
async def test_the_group_of_a_task_group_is_judged_by_what_failed_in_it() -> None:
    breaker = CircuitBreaker("fan-out", clock=anyio.current_time, ignore=RefusalError)

    @breaker
    async def fan_out(error: Exception) -> None:
        async def fail() -> None:
            raise error

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 60)
            tasks.start_soon(fail)

    with pytest.raises(ExceptionGroup):
        await fan_out(RefusalError())
    assert counts(breaker) == NOTHING
    with pytest.raises(ExceptionGroup):
        await fan_out(BreakdownError())
    assert counts(breaker) == FAILURE


# --- predicates that raise ---


def broken(_: object) -> bool:
    raise LookupError("no such rule")


def interrupted(_: object) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("field", ["failure_on", "ignore"])
def test_a_predicate_that_raises_makes_a_failure_and_is_told(clock: VirtualClock, field: str) -> None:
    rules: dict[str, Any] = {field: broken}
    breaker = CircuitBreaker("broken", clock=clock, **rules)
    error = ValueError("the caller's own")
    with capture(PredicateFailed, CallFailed) as events, pytest.raises(ValueError, match="own") as raised:
        breaker.call(raises(error))
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert counts(breaker) == FAILURE
    assert [(event.kind.partition(".")[2], event.name) for event in events] == [
        ("predicate_failed", "broken"),
        ("call_failed", "broken"),
    ]
    failed, call = events
    assert isinstance(failed, PredicateFailed)
    assert (failed.predicate, failed.error_type, failed.severity) == (field, "LookupError", "error")
    assert isinstance(call, CallFailed)
    assert call.error_type == "ValueError"


def test_a_predicate_that_gives_what_has_no_truth_is_a_predicate_that_raises(clock: VirtualClock) -> None:
    class Neither:
        def __bool__(self) -> bool:
            raise TypeError("neither true nor false")

    breaker = CircuitBreaker("neither", clock=clock, failure_on=lambda _: Neither())
    with capture(PredicateFailed) as events, pytest.raises(ValueError):  # noqa: PT011 - its own
        breaker.call(raises(ValueError()))
    assert counts(breaker) == FAILURE
    assert [event.error_type for event in events] == ["TypeError"]


def test_one_leaf_on_which_a_predicate_raises_makes_the_group_a_failure() -> None:
    def picky(error: BaseException) -> bool:
        if error.args:
            raise RuntimeError
        return True

    assert judged(group(ValueError(), ValueError()), ignore=picky) == NOTHING
    assert judged(group(ValueError(), ValueError("odd"), ValueError()), ignore=picky) == FAILURE


@pytest.mark.parametrize("field", ["failure_on", "ignore"])
def test_a_predicate_that_is_interrupted_gives_the_permit_back_and_lets_the_interrupt_through(
    clock: VirtualClock, field: str
) -> None:
    rules: dict[str, Any] = {field: interrupted}
    breaker = CircuitBreaker("interrupted", clock=clock, **rules)
    with pytest.raises(KeyboardInterrupt):
        breaker.call(raises(ValueError()))
    assert counts(breaker) == NOTHING
    assert breaker.snapshot().in_flight == 0


# --- results ---


@pytest.mark.parametrize(("status", "expected"), [(200, SUCCESS), (503, FAILURE)])
def test_a_result_may_be_a_failure_and_still_arrives(clock: VirtualClock, status: int, expected: Counts) -> None:
    breaker = CircuitBreaker("http", clock=clock, failure_result=lambda status: status >= 500)
    with capture(CallFailed) as events:
        assert breaker.call(lambda: status) == status
    assert counts(breaker) == expected
    assert [event.error_type for event in events] == [None] * expected[1]


def test_a_result_predicate_is_not_asked_about_exceptions(clock: VirtualClock) -> None:
    asked: list[object] = []
    breaker = CircuitBreaker("http", clock=clock, failure_result=asked.append)
    with contextlib.suppress(ValueError):
        breaker.call(raises(ValueError()))
    assert asked == []


def test_a_result_predicate_that_raises_makes_a_failure_and_the_caller_gets_the_result(clock: VirtualClock) -> None:
    breaker = CircuitBreaker("http", clock=clock, failure_result=broken)
    with capture(PredicateFailed) as events:
        assert breaker.call(lambda: "result") == "result"
    assert counts(breaker) == FAILURE
    assert [(event.predicate, event.error_type) for event in events] == [("failure_result", "LookupError")]


def test_a_result_predicate_that_is_interrupted_gives_the_permit_back(clock: VirtualClock) -> None:
    breaker = CircuitBreaker("http", clock=clock, failure_result=interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaker.call(lambda: "result")
    assert counts(breaker) == NOTHING
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_a_result_predicate_is_not_asked_where_there_is_no_result(clock: VirtualClock) -> None:
    asked: list[object] = []
    breaker = CircuitBreaker("http", clock=clock, failure_result=asked.append)

    @breaker
    def stream() -> Iterator[int]:
        yield 1

    @breaker
    async def async_stream() -> AsyncIterator[int]:
        yield 1

    with breaker.guard():
        pass
    async with breaker.guard():
        pass
    list(stream())
    assert [item async for item in async_stream()] == [1]
    breaker.acquire().success()
    assert (counts(breaker), asked) == ((5, 0, 0), [])
    breaker.acquire().success(None)
    assert asked == [None]


def test_a_failed_predicate_without_listeners_is_a_failure_all_the_same(clock: VirtualClock) -> None:
    breaker = CircuitBreaker("http", clock=clock, failure_result=broken)
    breaker.call(lambda: "result")
    assert counts(breaker) == FAILURE


# --- what is remembered, and told ---


@pytest.mark.parametrize(
    ("error", "told"),
    [(ConnectionError(), "ConnectionError"), (BreakdownError(), f"{__name__}.BreakdownError")],
    ids=["builtin", "own"],
)
def test_a_rejection_names_the_type_of_the_last_failure(clock: VirtualClock, error: Exception, told: str) -> None:
    breaker = CircuitBreaker("remembers", clock=clock, minimum_calls=1)
    with contextlib.suppress(Exception):
        breaker.call(raises(error))
    with pytest.raises(CircuitOpenError) as refused:
        breaker.acquire()
    assert refused.value.last_error_type == told


def test_answers_and_ignored_errors_are_no_last_failure(clock: VirtualClock) -> None:
    breaker = CircuitBreaker("remembers", clock=clock, **RULES)
    for error in (ValueError(), RefusalError()):
        breaker.acquire().failure(error)
    breaker.trip()
    with pytest.raises(CircuitOpenError) as refused:
        breaker.acquire()
    assert refused.value.last_error_type is None


@pytest.fixture
def ignored() -> Iterator[list[CallIgnored]]:
    with capture(CallIgnored) as events:
        yield events


def test_what_says_nothing_is_told_with_its_type(clock: VirtualClock, ignored: list[CallIgnored]) -> None:
    breaker = CircuitBreaker("told", clock=clock, ignore=RefusalError)
    ends: list[Callable[[Any], None]] = [
        lambda permit: permit.failure(RefusalError()),
        lambda permit: permit.failure(asyncio.CancelledError()),
        lambda permit: permit.release(),
    ]
    for end in ends:
        permit = breaker.acquire()
        clock.advance(0.25)
        end(permit)
    assert [(event.duration, event.error_type) for event in ignored] == [
        (0.25, f"{__name__}.RefusalError"),
        (0.25, "asyncio.exceptions.CancelledError"),
        (0.25, None),
    ]


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
