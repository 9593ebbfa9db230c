"""What is tried again, how often, and what comes out in the end: on both loops, and in sync code."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience import CircuitBreaker, CountWindow
from resilience.deadline import enter_deadline, leave_deadline
from resilience.errors import BulkheadFullError, CircuitOpenError, ConfigurationError, RejectedError
from resilience.events import AttemptFailed, PolicyHookFailed, RetryStopped, capture
from resilience.policies import Backoff, Retry, RetryBudget, writes
from resilience.testing import VirtualClock

from .callees import Async, Callee, Sync, World, raised, reasons

pytestmark = pytest.mark.anyio


# --- how often ---


async def test_a_call_that_fails_twice_is_made_three_times(world: World) -> None:
    callee = Callee(ConnectionError(), ConnectionError(), 7)
    with capture(AttemptFailed, RetryStopped) as told:
        began = world.clock()
        assert await world.call(callee) == 7
        assert world.clock() - began == 2.0
    assert callee.calls == 3
    failed = [event for event in told if isinstance(event, AttemptFailed)]
    assert [(event.attempt, event.delay, event.severity, event.elapsed) for event in failed] == [
        (1, 1.0, "warning", 0.0),
        (2, 1.0, "warning", 1.0),
    ]
    assert [
        (event.stop_reason, event.attempts, event.severity) for event in told if isinstance(event, RetryStopped)
    ] == [("success", 3, "debug")]


async def test_a_call_that_goes_well_tells_nothing(world: World) -> None:
    with capture() as told:
        assert await world.call(Callee(7)) == 7
    assert told == []


async def test_the_last_failure_is_an_error(world: World) -> None:
    error = ConnectionError("mine")
    callee = Callee(OSError(), OSError(), error)
    with capture(AttemptFailed, RetryStopped) as told:
        assert await raised(world, callee) is error
    assert [event.severity for event in told] == ["warning", "warning", "error", "warning"]
    last = told[2]
    assert isinstance(last, AttemptFailed)
    assert (last.attempt, last.max_attempts, last.delay, last.error_type) == (3, 3, None, "ConnectionError")
    assert reasons(told) == ["attempts"]


async def test_one_attempt_is_no_retry(world: World) -> None:
    callee = Callee(OSError())
    await raised(world, callee, 1)
    assert callee.calls == 1


async def test_without_a_pause_nobody_sleeps_and_a_cancellation_is_noticed_all_the_same() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    callee = Callee(OSError(), OSError(), 7)
    assert await Async(anyio.current_time).call(callee, wait=0, sleep=sleep) == 7
    assert slept == []
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            asyncio_or_trio_scope.cancel()
        raise OSError

    with anyio.CancelScope() as asyncio_or_trio_scope:
        with pytest.raises(OSError):  # noqa: PT011 - the callee's own, with the call's end
            await Retry(99, wait=0, clock=anyio.current_time)(fail)()
        await anyio.sleep(1)
    assert asyncio_or_trio_scope.cancelled_caught
    assert calls == 3


async def test_a_cancelled_call_is_not_tried_again() -> None:
    with capture() as told, anyio.CancelScope() as scope:
        scope.cancel()
        await Retry(3, clock=anyio.current_time)(anyio.sleep)(1)
    assert scope.cancelled_caught
    assert told == []


async def test_a_cancellation_in_a_pause_passes_as_it_is() -> None:
    callee = Callee(OSError())
    async with anyio.create_task_group() as group:
        group.start_soon(Async(anyio.current_time).call, callee, 3)
        await anyio.sleep(0.5)
        group.cancel_scope.cancel()
    assert callee.calls == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_of_asyncios_own_is_not_swallowed(anyio_backend: str) -> None:
    del anyio_backend
    callee = Callee(OSError())
    task = asyncio.ensure_future(Async(anyio.current_time).call(callee, 3, wait=0.01))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert callee.calls == 1


# --- what ---


def rejection(seconds: float | None = None) -> RejectedError:
    return CircuitOpenError("callee", "open", seconds)


@pytest.mark.parametrize(
    "kind", [TypeError, AttributeError, NameError, NotImplementedError, AssertionError, ImportError]
)
async def test_mistakes_of_the_program_are_tried_again_only_by_name(world: World, kind: type[Exception]) -> None:
    error = kind()
    for on in (Exception, lambda _: True):
        callee = Callee(error)
        with capture(RetryStopped) as told:
            assert await raised(world, callee, on=on) is error
        assert (callee.calls, reasons(told)) == (1, ["not_retryable"])
    callee = Callee(error)
    assert await raised(world, callee, on=(OSError, kind)) is error
    assert callee.calls == 3


async def test_rejections_are_tried_again_only_by_name(world: World) -> None:
    for on in (Exception, BaseException, lambda _: True, (OSError, Exception)):
        callee = Callee(rejection())
        with capture(AttemptFailed, RetryStopped) as told:
            assert isinstance(await raised(world, callee, on=on), CircuitOpenError)
        assert (callee.calls, [event.kind for event in told], reasons(told)) == (1, ["retry.stopped"], ["circuit_open"])
    for named in (RejectedError, CircuitOpenError, (OSError, RejectedError)):
        callee = Callee(rejection())
        await raised(world, callee, on=named)
        assert callee.calls == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_what_ends_programs_is_never_tried_again(error: BaseException) -> None:
    callee = Callee(error)
    with pytest.raises(type(error)):
        Retry(3, on=BaseException, wait=0).call(callee)
    assert callee.calls == 1


async def test_on_is_a_type_a_tuple_or_a_predicate(world: World) -> None:
    for on, error, calls in (
        (OSError, ConnectionError(), 3),
        (OSError, KeyError(), 1),
        ((OSError, KeyError), KeyError(), 3),
        (lambda error: "again" in str(error), ValueError("again"), 3),
        (lambda error: "again" in str(error), ValueError("never"), 1),
    ):
        callee = Callee(error)
        await raised(world, callee, on=on)
        assert callee.calls == calls


async def test_a_group_is_what_is_in_it(world: World) -> None:
    again, never = ConnectionError(), KeyError()
    for group, calls in (
        (ExceptionGroup("", [again]), 3),
        (ExceptionGroup("", [ExceptionGroup("", [again])]), 3),
        (ExceptionGroup("", [again, OSError()]), 3),
        (ExceptionGroup("", [again, never]), 1),
        (ExceptionGroup("", [again, TypeError()]), 1),
        (ExceptionGroup("", [never]), 1),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), 1),
    ):
        callee = Callee(group)
        assert await raised(world, callee, on=OSError) is group
        assert callee.calls == calls


async def test_a_group_of_one_rejection_is_a_rejection(world: World) -> None:
    with capture(RetryStopped) as told:
        await raised(world, Callee(ExceptionGroup("", [BulkheadFullError("x")])))
    assert reasons(told) == ["bulkhead_full"]


async def test_functions_of_the_user_that_raise_are_told_and_end_nothing_else(world: World) -> None:
    def bad(*_: object) -> Any:
        raise RuntimeError

    error = OSError()
    for options, hook, calls in (
        ({"on": bad}, "on", 1),
        ({"retry_after": bad}, "retry_after", 3),
        ({"wait": bad}, "wait", 3),
    ):
        callee = Callee(error)
        with capture(PolicyHookFailed) as told:
            assert await raised(world, callee, **options) is error
        assert callee.calls == calls
        assert {(event.name, event.hook, event.error_type) for event in told} == {("search", hook, "RuntimeError")}
    with capture(PolicyHookFailed) as told:
        assert await world.call(Callee(7), retry_result=bad) == 7
    assert [event.hook for event in told] == ["retry_result"]


# --- what comes out ---


async def test_the_error_is_the_callees_own_with_one_note(world: World) -> None:
    cause, context = KeyError(), ValueError()
    error = ConnectionError("mine")
    error.__cause__, error.__context__ = cause, context
    error.add_note("the callee's")
    for _ in range(3):
        assert await raised(world, Callee(error)) is error
    assert (error.__cause__, error.__context__) == (cause, context)
    assert error.__notes__ == [
        "the callee's",
        (
            "resilience: stopped after 3 attempts in 2 s (attempts): 1. ConnectionError at 0 s, "
            "2. ConnectionError at 1 s, 3. ConnectionError at 2 s"
        ),
    ]


async def test_no_error_of_an_attempt_is_the_context_of_the_next(world: World) -> None:
    errors = [OSError(str(number)) for number in range(3)]
    assert await raised(world, Callee(*errors)) is errors[2]
    assert [error.__context__ for error in errors] == [None, None, None]


async def test_the_note_is_short_however_many_attempts_there_were(world: World) -> None:
    error = await raised(world, Callee(OSError("secret")), 500, wait=0)
    assert len(error.__notes__[0]) < 500
    assert "500 attempts" in error.__notes__[0]
    assert "secret" not in error.__notes__[0]


async def test_an_error_that_takes_no_notes_comes_out_all_the_same(world: World) -> None:
    class StubbornError(OSError):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "__notes__":
                raise AttributeError

    error = StubbornError()
    assert await raised(world, Callee(error)) is error


async def test_a_frozen_error_comes_out_all_the_same(world: World) -> None:
    class FrozenError(OSError):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    error = FrozenError()
    assert await raised(world, Callee(error)) is error


async def test_a_refused_second_attempt_leaves_the_callees_own_error(world: World) -> None:
    error = ConnectionError()
    with capture(RetryStopped) as told:
        assert await raised(world, Callee(error, rejection())) is error
    assert reasons(told) == ["circuit_open"]


async def test_a_rejection_comes_out_where_nothing_else_was_tried(world: World) -> None:
    refused = rejection()
    assert await raised(world, Callee(refused)) is refused


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_nothing_of_a_failed_call_is_kept(kind: str) -> None:
    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    def fail() -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise OSError(str(len(held)))

    async def fail_later() -> None:
        fail()

    retry = Retry(3, wait=0, clock=anyio.current_time)
    gc.collect()
    gc.disable()
    try:
        with suppress(OSError):
            await retry(fail_later)() if kind == "async" else retry(fail)()
        assert len(held) == 3
        assert [ref() for ref in held] == [None, None, None]
    finally:
        gc.enable()


# --- results ---


class Response:
    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class AsyncResponse(Response):
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1

    def close(self) -> None:
        raise AssertionError("aclose comes first")


async def test_results_that_are_not_wanted_are_closed_once_and_the_last_is_given(world: World) -> None:
    kind = AsyncResponse if isinstance(world, Async) else Response
    for wanted, closed, number in ((2, [1, 1, 0], 2), (9, [1, 1, 0], 2), (0, [0, 0, 0], 0)):
        responses = [kind(0), kind(1), kind(2)]
        with capture(AttemptFailed, RetryStopped) as told:
            got = await world.call(Callee(*responses), retry_result=lambda one, wanted=wanted: one.number < wanted)
        assert {event.error_type for event in told if isinstance(event, AttemptFailed)} <= {"unwanted_result"}
        assert got is responses[number]
        assert [response.closed for response in responses] == closed
        assert reasons(told) == ([] if not wanted else ["success"] if wanted == 2 else ["attempts"])


async def test_a_result_that_cannot_be_closed_stops_nobody(world: World) -> None:
    class Broken(Response):
        def close(self) -> None:
            raise OSError

    assert await world.call(Callee(Broken(0), 7), retry_result=lambda one: one != 7) == 7


async def test_a_result_that_hangs_when_it_is_closed_is_left_alone() -> None:
    class Hanging:
        async def aclose(self) -> None:
            await anyio.sleep_forever()

    world = Async(anyio.current_time)
    assert await world.call(Callee(Hanging(), 7), retry_result=lambda one: one != 7) == 7
    assert anyio.current_time() < 10


async def test_a_failure_between_results_and_a_result_after_failures(world: World) -> None:
    first, last = Response(0), Response(1)
    callee = Callee(first, OSError(), last)
    assert await world.call(callee, retry_result=lambda one: one.number < 5) is last
    assert (first.closed, last.closed) == (1, 0)


# --- pauses ---


async def test_pauses_are_a_backoff_seconds_or_a_function(world: World) -> None:
    for wait, passed in (
        (Backoff(base=1, jitter="none"), 3.0),
        (0.5, 1.0),
        (2, 4.0),
        (lambda attempt: attempt * 10, 30.0),
        (lambda _: -1, 0.0),
    ):
        began = world.clock()
        await raised(world, Callee(OSError()), wait=wait)
        assert world.clock() - began == pytest.approx(passed) or passed == 0.0


async def test_the_server_may_ask_for_longer_and_never_for_less(world: World) -> None:
    soon = datetime.fromtimestamp(time.time(), tz=UTC) + timedelta(seconds=3)
    for asked, passed in ((3, 3.0), ("3", 3.0), (0.1, 1.0), (None, 1.0), (nan, 1.0), (-5, 1.0), (soon, 3.0)):
        began = world.clock()
        await raised(world, Callee(OSError()), 2, retry_after=lambda _, asked=asked: asked)
        assert world.clock() - began == pytest.approx(passed, abs=0.2)


async def test_who_is_asked_to_wait_for_too_long_stops_now(world: World) -> None:
    callee, began = Callee(OSError()), world.clock()
    with capture(RetryStopped) as told:
        await raised(world, callee, wait=Backoff(cap=10), retry_after=lambda _: 10.1)
    assert (callee.calls, world.clock() - began, reasons(told)) == (1, 0, ["retry_after_too_long"])


async def test_what_the_server_asks_for_is_read_from_the_error_in_a_group(world: World) -> None:
    class BusyError(Exception):
        seconds = 4.0

    began = world.clock()
    await raised(world, Callee(ExceptionGroup("", [BusyError()])), 2, retry_after=lambda error: error.seconds)
    assert world.clock() - began == 4.0


# --- deadlines ---


async def test_a_pause_that_ends_after_the_deadline_is_not_begun() -> None:
    for wait, calls in ((0.3, 1), (0.15, 2), (0.05, 4)):
        callee, error = Callee(ConnectionError()), None
        began = anyio.current_time()
        with capture(AttemptFailed, RetryStopped) as told:
            try:
                with anyio.fail_after(0.2):
                    await Async(anyio.current_time).call(callee, 99, wait=wait)
            except ConnectionError as one:
                error = one
        assert isinstance(error, ConnectionError)
        assert (callee.calls, reasons(told)) == (calls, ["deadline"])
        assert anyio.current_time() - began == pytest.approx((calls - 1) * wait)
        first = told[0]
        assert isinstance(first, AttemptFailed)
        assert first.remaining == pytest.approx(0.2)


async def test_a_shield_hides_the_deadline() -> None:
    callee = Callee(ConnectionError())
    with anyio.move_on_after(0.2), anyio.CancelScope(shield=True):
        await raised(Async(anyio.current_time), callee)
    assert callee.calls == 3


async def test_sync_code_knows_its_deadline(clock: VirtualClock) -> None:
    callee = Callee(ConnectionError())
    token = enter_deadline(1.5, clock)
    try:
        with capture(RetryStopped) as told:
            await raised(Sync(clock), callee, 99)
    finally:
        leave_deadline(token)
    assert (callee.calls, reasons(told)) == (2, ["deadline"])


# --- waiting for admission ---


async def test_a_rejection_that_says_when_is_waited_for(world: World) -> None:
    callee, began = Callee(rejection(2.0), 7), world.clock()
    with capture() as told:
        assert await world.call(callee, wait_for_admission=3.0) == 7
    assert 2.0 <= world.clock() - began <= 2.2
    assert (callee.calls, [event.kind for event in told]) == (2, ["retry.stopped"])


@pytest.mark.parametrize(
    ("refused", "patience", "reason"),
    [
        (rejection(2.0), None, "circuit_open"),
        (rejection(None), 3.0, "circuit_open"),
        (rejection(3.1), 3.0, "retry_after_too_long"),
        (BulkheadFullError("x"), 3.0, "bulkhead_full"),
        (RejectedError("x", "throttle", "shed"), 3.0, "shed"),
        (RejectedError("x", "rate_limiter", "limit"), 3.0, "rate_limited"),
        (RejectedError("x", "pool", "timeout"), 3.0, "pool_exhausted"),
    ],
)
async def test_others_are_not(world: World, refused: RejectedError, patience: float | None, reason: str) -> None:
    callee, began = Callee(refused), world.clock()
    with capture(RetryStopped) as told:
        assert await raised(world, callee, wait_for_admission=patience) is refused
    assert (callee.calls, world.clock() - began, reasons(told)) == (1, 0, [reason])


async def test_waiting_uses_attempts_up_and_no_budget(world: World) -> None:
    budget = RetryBudget(ratio=0, floor=0)
    callee = Callee(rejection(1.0))
    with capture(RetryStopped) as told:
        await raised(world, callee, 4, wait_for_admission=3.0, budget=budget)
    assert (callee.calls, reasons(told)) == (4, ["attempts"])


# --- policies inside ---


def tripped(world: World, **options: Any) -> CircuitBreaker:
    given: dict[str, Any] = {"window": CountWindow(10), "minimum_calls": 2, "open_duration": 5.0, "open_jitter": 0.0}
    return CircuitBreaker("callee", clock=world.clock, **given | options)


@pytest.mark.parametrize("patience", [None, 4.0, 9.0])
async def test_nobody_sleeps_towards_an_open_circuit(patience: float | None) -> None:
    world = Async(anyio.current_time)
    breaker, callee, error = tripped(world), Callee(ConnectionError()), None

    @Retry(5, wait=1.0, wait_for_admission=patience, clock=anyio.current_time)
    @breaker
    async def call() -> Any:
        return callee()

    began = anyio.current_time()
    try:
        await call()
    except ConnectionError as one:
        error = one
    assert error is callee.ends[0]
    passed = anyio.current_time() - began
    if patience == 9.0:
        assert callee.calls > 2
        assert passed >= 6.0
    else:
        assert (callee.calls, passed) == (2, 1.0)


async def test_a_circuit_that_closes_before_the_pause_is_over_is_no_obstacle() -> None:
    breaker, callee = tripped(Async(anyio.current_time)), Callee(OSError(), OSError(), 7)

    @Retry(5, wait=6.0, clock=anyio.current_time)
    @breaker
    async def call() -> Any:
        return callee()

    assert await call() == 7
    assert callee.calls == 3


# --- around what ---


async def test_it_keeps_names_types_and_arguments() -> None:
    @Retry(3)
    async def search(words: str, *, page: int = 1) -> tuple[str, int]:
        """Search."""
        return words, page

    assert (search.__name__, search.__doc__) == ("search", "Search.")
    assert inspect.iscoroutinefunction(search)
    assert str(inspect.signature(search)) == "(words: 'str', *, page: 'int' = 1) -> 'tuple[str, int]'"
    assert await search("owls", page=2) == ("owls", 2)
    assert await Retry(3).call(search, "cats", page=3) == ("cats", 3)


async def test_a_method_is_a_function() -> None:
    class Client:
        calls = 0

        @Retry(3, wait=0)
        async def search(self) -> int:
            self.calls += 1
            if self.calls < 3:
                raise OSError
            return self.calls

    assert await Client().search() == 3


@pytest.mark.parametrize("kind", ["class", "static", "generator", "async generator", "nothing", "result"])
async def test_what_cannot_be_tried_again_is_refused_when_it_is_decorated(kind: str) -> None:
    def generate() -> Any:
        yield 1

    async def generate_later() -> Any:
        yield 1

    given: dict[str, Any] = {
        "class": World,
        "static": staticmethod(generate),
        "generator": generate,
        "async generator": generate_later,
        "nothing": None,
        "result": 7,
    }
    with pytest.raises(ConfigurationError, match="a retry"):
        Retry(3)(given[kind])


async def test_a_plain_function_that_gives_an_awaitable_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a retry got an awaitable from a plain function"):
        _ = Retry(3).call(lambda: anyio.sleep(1))


def test_a_write_is_not_tried_again() -> None:
    @writes
    def pay() -> None: ...

    with pytest.raises(ConfigurationError, match=r"a retry cannot be around .*pay, which is marked as writes"):
        Retry(3)(pay)


async def test_the_sleep_must_be_of_the_functions_kind() -> None:
    async def later() -> None: ...

    with pytest.raises(ConfigurationError, match="sleep must be an async function"):
        Retry(3, sleep=time.sleep)(later)
    with pytest.raises(ConfigurationError, match="sleep must be a plain function"):
        Retry(3, sleep=anyio.sleep)(lambda: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"attempts": len}, "attempts must be an int, got .*: write @Retry\\(\\) around a function"),
        ({"attempts": -1}, "attempts must be at least 1"),
        ({"attempts": 2.5}, "attempts must be an int"),
        ({"attempts": True}, "attempts must be an int"),
        ({"attempts": None}, "attempts must be an int, got None: without a limit it needs stop"),
        ({"on": ()}, "on must name at least one error"),
        ({"on": "OSError"}, "on must be an exception type, a tuple of them, a predicate"),
        ({"on": (OSError, 3)}, "on must be an exception type"),
        ({"retry_result": 3}, "retry_result must be a function"),
        ({"retry_after": 3}, "retry_after must be a function"),
        ({"wait": -1}, "wait must be at least 0"),
        ({"wait": nan}, "wait must be finite"),
        ({"wait": "1"}, "wait must be a Backoff, seconds, a function"),
        ({"stop": 3}, "stop must be a stop object of tenacity"),
        ({"budget": 3}, "budget must be a RetryBudget"),
        ({"wait_for_admission": -1}, "wait_for_admission must be at least 0"),
        ({"wait_for_admission": inf}, "wait_for_admission must be finite"),
        ({"idempotent": False}, "idempotent must be True, got False"),
        ({"clock": 3}, "clock must be a function"),
        ({"rng": 3}, "rng.random must be a function"),
        ({"sleep": 3}, "sleep must be a function"),
        ({"name": ""}, "name must be a non-empty string"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Retry(**options)


def test_it_says_what_it_is() -> None:
    assert repr(Retry(5)) == "<Retry 5 attempts>"
