"""Every way to make a call through a circuit breaker: the same promises for all of them."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import anyio
import pytest

from resilience import CircuitBreaker, CircuitOpenError, ConfigurationError, CountWindow, subscribe
from resilience.breaker import Permit
from resilience.events import CallIgnored, Event, capture
from resilience.testing import VirtualClock

Counts = tuple[int, int, int]
Work = Callable[[], Any]
Way = Callable[[CircuitBreaker, Work], Awaitable[Any]]

SUCCESS, FAILURE, NOTHING, SLOW = (1, 0, 0), (1, 1, 0), (0, 0, 0), (1, 0, 1)

WAYS: dict[str, Way] = {}
STREAMS: dict[str, Way] = {}

COUNT_ALL = CountWindow(1_000_000)


class BreakdownError(Exception):
    pass


class RefusalError(Exception):
    pass


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


def stream(function: Way) -> Way:
    STREAMS[function.__name__] = function
    return way(function)


@way
async def decorated_def(breaker: CircuitBreaker, work: Work) -> Any:
    return breaker(work)()


@way
async def called_def(breaker: CircuitBreaker, work: Work) -> Any:
    return breaker.call(work)


@way
async def decorated_async_def(breaker: CircuitBreaker, work: Work) -> Any:
    @breaker
    async def guarded() -> Any:
        return work()

    return await guarded()


@way
async def called_async_def(breaker: CircuitBreaker, work: Work) -> Any:
    async def function() -> Any:
        return work()

    return await breaker.call(function)


@way
async def def_that_gives_an_awaitable(breaker: CircuitBreaker, work: Work) -> Any:
    async def function() -> Any:
        return work()

    return await breaker.call(lambda: function())  # noqa: PLW0108 - hides that it is async


@way
async def with_guard(breaker: CircuitBreaker, work: Work) -> Any:
    with breaker.guard():
        return work()


@way
async def async_with_guard(breaker: CircuitBreaker, work: Work) -> Any:
    async with breaker.guard():
        return work()


@way
async def acquired_permit(breaker: CircuitBreaker, work: Work) -> Any:
    permit = breaker.acquire()
    try:
        result = work()
    except BaseException as error:
        permit.failure(error)
        raise
    permit.success(result)
    return result


@stream
async def decorated_generator(breaker: CircuitBreaker, work: Work) -> Any:
    @breaker
    def guarded() -> Iterator[Any]:
        yield work()

    return next(iter(list(guarded())))


@stream
async def called_generator(breaker: CircuitBreaker, work: Work) -> Any:
    def function() -> Generator[Any, None, None]:
        yield work()

    return next(iter(list(breaker.call(function))))


@stream
async def decorated_async_generator(breaker: CircuitBreaker, work: Work) -> Any:
    @breaker
    async def guarded() -> AsyncGenerator[Any, None]:
        yield work()

    return next(iter([item async for item in guarded()]))


@stream
async def called_async_generator(breaker: CircuitBreaker, work: Work) -> Any:
    async def function() -> AsyncGenerator[Any, None]:
        yield work()

    return next(iter([item async for item in breaker.call(function)]))


every_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)
every_way_with_a_result = pytest.mark.parametrize(
    "call",
    [one for one in WAYS.values() if one not in STREAMS.values()],
    ids=[one for one in WAYS if one not in STREAMS],
)


def counts(breaker: CircuitBreaker) -> Counts:
    snapshot = breaker.snapshot()
    return snapshot.calls, snapshot.failures, snapshot.slow_calls


def make(clock: Callable[[], float], **config: Any) -> CircuitBreaker:
    given: dict[str, Any] = {"slow_call_duration": 1.0, "ignore": RefusalError}
    return CircuitBreaker("ways", clock=clock, **(given | config))


def raises(error: BaseException) -> Work:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def breaker(clock: VirtualClock) -> CircuitBreaker:
    return make(clock)


# --- the same promises for every way in ---


@pytest.mark.anyio
@every_way
async def test_the_result_arrives_and_counts(breaker: CircuitBreaker, call: Way) -> None:
    result = object()
    assert await call(breaker, lambda: result) is result
    assert counts(breaker) == SUCCESS
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
@every_way
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BreakdownError("down"), FAILURE),
        (RefusalError("no"), NOTHING),
        (CircuitOpenError("inner", "open"), NOTHING),
        (KeyboardInterrupt(), NOTHING),
        (SystemExit(2), NOTHING),
        (ExceptionGroup("two", [BreakdownError(), RefusalError()]), FAILURE),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_an_exception_arrives_unchanged_and_counts_for_what_it_is(
    breaker: CircuitBreaker, call: Way, error: BaseException, expected: Counts
) -> None:
    error.__traceback__ = None
    error.add_note("the caller's note")
    with pytest.raises(type(error)) as raised:
        await call(breaker, raises(error))
    assert raised.value is error
    assert (error.__cause__, error.__context__, error.__suppress_context__) == (None, None, False)
    assert error.__notes__ == ["the caller's note"]
    del error.__notes__
    assert counts(breaker) == expected
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
@every_way
async def test_the_cause_and_context_of_an_exception_stay_what_they_were(breaker: CircuitBreaker, call: Way) -> None:
    cause, context = LookupError("cause"), OSError("context")

    def fail() -> None:
        try:
            raise context
        except OSError:
            raise BreakdownError from cause

    with pytest.raises(BreakdownError) as raised:
        await call(breaker, fail)
    assert (raised.value.__cause__, raised.value.__context__) == (cause, context)
    assert (cause.__context__, context.__context__) == (None, None)


@pytest.mark.anyio
@every_way
async def test_the_call_that_trips_the_breaker_raises_its_own_exception(clock: VirtualClock, call: Way) -> None:
    breaker = make(clock, minimum_calls=1)
    with pytest.raises(BreakdownError):
        await call(breaker, raises(BreakdownError()))
    assert breaker.state == "open"


@pytest.mark.anyio
@every_way
async def test_a_refused_call_never_begins(breaker: CircuitBreaker, call: Way) -> None:
    breaker.force_open()
    ran: list[None] = []
    with pytest.raises(CircuitOpenError):
        await call(breaker, lambda: ran.append(None))
    assert ran == []
    assert (breaker.snapshot().rejected, breaker.snapshot().in_flight) == (1, 0)


@pytest.mark.anyio
@every_way
async def test_every_rejection_is_an_error_of_its_own_that_does_not_grow(breaker: CircuitBreaker, call: Way) -> None:
    breaker.trip()
    refusals: list[CircuitOpenError] = []
    for _ in range(20):
        with pytest.raises(CircuitOpenError) as refused:
            await call(breaker, lambda: None)
        refusals.append(refused.value)
    assert len({id(one) for one in refusals}) == 20
    assert len({len(traceback.extract_tb(one.__traceback__)) for one in refusals}) == 1
    assert {(one.__cause__, one.__context__) for one in refusals} == {(None, None)}


@pytest.mark.anyio
@every_way
@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
async def test_no_frame_of_a_failed_call_is_kept_alive(clock: VirtualClock, call: Way, heard: bool) -> None:
    class Local:
        pass

    seen: list[weakref.ref[Local]] = []

    def fail() -> None:
        local = Local()
        seen.append(weakref.ref(local))
        raise BreakdownError(local)

    async def run(breaker: CircuitBreaker) -> None:
        with suppress(BreakdownError):
            await call(breaker, fail)

    breaker = make(clock, minimum_calls=1)
    gc.collect()
    gc.disable()  # nothing but reference counts may be needed to let go
    try:
        if heard:
            with capture(Event):
                await run(breaker)
        else:
            await run(breaker)
        assert breaker.state == "open"
        assert [ref() for ref in seen] == [None]
        with pytest.raises(CircuitOpenError) as refused:
            breaker.acquire()
    finally:
        gc.enable()
    assert refused.value.last_error_type == f"{__name__}.BreakdownError"


@pytest.mark.anyio
@every_way
async def test_a_broken_predicate_never_harms_the_call(clock: VirtualClock, call: Way) -> None:
    def broken(_: object) -> bool:
        raise LookupError

    breaker = make(clock, failure_on=broken, ignore=())
    error = BreakdownError()
    with pytest.raises(BreakdownError) as raised:
        await call(breaker, raises(error))
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert counts(breaker) == FAILURE


@pytest.mark.anyio
@every_way_with_a_result
async def test_a_result_may_be_a_failure(clock: VirtualClock, call: Way) -> None:
    async def status(breaker: CircuitBreaker, result: int) -> Counts:
        if call in {with_guard, async_with_guard}:  # a block has no result: it tells by the permit
            with breaker.guard() as permit:
                permit.success(result)
        else:
            assert await call(breaker, lambda: result) == result
        return counts(breaker)

    breaker = make(clock, failure_result=lambda status: status >= 500)
    assert await status(breaker, 503) == (1, 1, 0)
    assert await status(breaker, 200) == (2, 1, 0)


@pytest.mark.anyio
@every_way
async def test_how_long_a_call_took_is_measured(clock: VirtualClock, call: Way) -> None:
    for seconds, expected in ((0.999, SUCCESS), (1.0, SLOW)):
        breaker = make(clock)
        await call(breaker, lambda seconds=seconds: clock.advance(seconds))  # type: ignore[misc]  # an early binding
        assert counts(breaker) == expected


# --- call ---


def test_call_passes_arguments_on_whatever_their_names(breaker: CircuitBreaker) -> None:
    def echo(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    given = {"self": 1, "function": 2, "breaker": 3}
    assert breaker.call(echo, 1, *[2], **given) == ((1, 2), given)


def test_call_makes_objects_of_classes(breaker: CircuitBreaker) -> None:
    class Client:
        def __init__(self, host: str) -> None:
            if not host:
                raise BreakdownError
            self.host = host

    assert breaker.call(Client, "db").host == "db"
    with pytest.raises(BreakdownError):
        breaker.call(Client, "")
    assert counts(breaker) == (2, 1, 0)


def test_call_makes_objects_of_classes_whose_objects_are_async_functions(breaker: CircuitBreaker) -> None:
    class AsyncClient:
        async def __call__(self) -> None: ...

    client = breaker.call(AsyncClient)
    if inspect.iscoroutine(client):
        client.close()
    assert isinstance(client, AsyncClient)


def test_call_works_with_builtins_methods_and_callable_objects(breaker: CircuitBreaker) -> None:
    class Doubler:
        def __call__(self, number: int) -> int:
            return 2 * number

        def double(self, number: int) -> int:
            return 2 * number

    assert breaker.call(int, "12") == 12
    assert breaker.call([3, 1, 2].index, 2) == 2
    assert breaker.call(Doubler(), 4) == 8
    assert breaker.call(Doubler().double, 4) == 8
    assert counts(breaker) == (4, 0, 0)


@pytest.mark.parametrize("thing", [None, 42, "function", object()])
def test_call_refuses_what_cannot_be_called(breaker: CircuitBreaker, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"function must be callable, got "):
        breaker.call(thing)
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_an_async_call_is_admitted_when_it_is_awaited_and_not_before(breaker: CircuitBreaker) -> None:
    async def answer() -> int:
        return 42

    pending = breaker.call(answer)
    assert breaker.snapshot().in_flight == 0
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        await pending
    breaker.reset()
    assert await breaker.call(answer) == 42


@pytest.mark.anyio
async def test_a_generator_is_admitted_at_its_first_step_and_not_before(breaker: CircuitBreaker) -> None:
    def count() -> Generator[int, None, None]:
        yield from range(3)

    stream = breaker.call(count)
    assert breaker.snapshot().in_flight == 0
    assert next(stream) == 0
    assert breaker.snapshot().in_flight == 1
    assert list(stream) == [1, 2]
    assert (breaker.snapshot().in_flight, counts(breaker)) == (0, SUCCESS)


@pytest.mark.anyio
async def test_a_def_that_gives_an_awaitable_is_judged_by_what_that_gives(clock: VirtualClock) -> None:
    class Eventually:
        def __init__(self, work: Work) -> None:
            self.work = work

        def __await__(self) -> Generator[Any, Any, Any]:
            yield from anyio.lowlevel.checkpoint().__await__()
            return self.work()

    breaker = make(clock, failure_result=lambda result: result == "bad")
    assert await breaker.call(lambda: Eventually(lambda: "good")) == "good"
    assert counts(breaker) == (1, 0, 0)
    assert await breaker.call(lambda: Eventually(lambda: "bad")) == "bad"
    assert counts(breaker) == (2, 1, 0)
    with pytest.raises(BreakdownError):
        await breaker.call(lambda: Eventually(raises(BreakdownError())))
    assert counts(breaker) == (3, 2, 0)


@pytest.mark.anyio
async def test_a_def_whose_awaitable_is_never_awaited_keeps_no_permit(breaker: CircuitBreaker) -> None:
    class Eventually:
        def __await__(self) -> Generator[Any, Any, None]:
            yield from anyio.lowlevel.checkpoint().__await__()

    forgotten = breaker.call(Eventually)
    if inspect.iscoroutine(forgotten):
        forgotten.close()  # and no warning about it
    del forgotten
    gc.collect()
    assert breaker.snapshot().in_flight == 0


# --- guard ---


def test_a_guard_gives_its_permit(breaker: CircuitBreaker) -> None:
    with breaker.guard() as permit:
        assert isinstance(permit, Permit)
        assert not permit.settled
        assert breaker.snapshot().in_flight == 1
    assert permit.settled


@pytest.mark.parametrize(
    ("settle", "expected"),
    [
        (lambda permit: permit.success(), SUCCESS),
        (lambda permit: permit.failure(BreakdownError()), FAILURE),
        (lambda permit: permit.release(), NOTHING),
    ],
    ids=["success", "failure", "release"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_block_that_settles_its_permit_has_decided(
    breaker: CircuitBreaker, settle: Callable[[Permit], None], expected: Counts, fails: bool
) -> None:
    def block() -> None:
        with breaker.guard() as permit:
            settle(permit)
            if fails:
                raise OSError

    if fails:
        with pytest.raises(OSError):  # noqa: PT011 - its own
            block()
    else:
        block()
    assert counts(breaker) == expected
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_a_guard_is_entered_once(breaker: CircuitBreaker) -> None:
    guard = breaker.guard()
    with guard:
        with pytest.raises(RuntimeError, match=r"guard of circuit breaker 'ways' was entered before"):
            guard.__enter__()
        assert breaker.snapshot().in_flight == 1
    with pytest.raises(RuntimeError, match=r"call guard\(\) for each block"):
        async with guard:
            pytest.fail("was entered twice")
    assert (breaker.snapshot().in_flight, counts(breaker)) == (0, SUCCESS)


def test_a_guard_that_was_refused_may_be_tried_again(breaker: CircuitBreaker) -> None:
    guard = breaker.guard()
    breaker.force_open()
    with pytest.raises(CircuitOpenError), guard:
        pytest.fail("was admitted")
    breaker.reset()
    with guard:
        pass
    assert counts(breaker) == SUCCESS


@pytest.mark.anyio
async def test_guards_of_interleaved_tasks_keep_their_own_times_and_outcomes() -> None:
    breaker = make(anyio.current_time)

    async def work(delay: float, seconds: float, error: Exception | None) -> None:
        await anyio.sleep(delay)
        try:
            async with breaker.guard():
                await anyio.sleep(seconds)
                if error is not None:
                    raise error
        except BreakdownError:
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 0.0, 2.0, None)  # slow
        tasks.start_soon(work, 0.5, 0.9, BreakdownError())  # begins later, ends earlier
        tasks.start_soon(work, 1.0, 0.2, None)
        tasks.start_soon(work, 1.1, 5.0, BreakdownError())  # slow
    assert counts(breaker) == (4, 2, 2)
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
@pytest.mark.parametrize(("patience", "expected"), [(0.9, NOTHING), (1.1, SLOW)], ids=["quick", "slow"])
@pytest.mark.parametrize("kind", ["guard", "decorated", "called", "stream", "awaitable"])
async def test_an_outer_timeout_says_nothing_when_quick_and_that_the_callee_was_slow_when_slow(
    kind: str, patience: float, expected: Counts
) -> None:
    breaker = make(anyio.current_time)

    async def hang() -> None:
        await anyio.sleep(3600)

    async def silent() -> AsyncGenerator[None, None]:
        await anyio.sleep(3600)
        yield

    async def call() -> None:
        if kind == "guard":
            async with breaker.guard():
                await hang()
        elif kind == "decorated":
            await breaker(hang)()
        elif kind == "called":
            await breaker.call(hang)
        elif kind == "awaitable":
            await breaker.call(lambda: hang())  # noqa: PLW0108 - hides that it is async
        else:
            async for _ in breaker.call(silent):
                pytest.fail("it is silent")

    with pytest.raises(TimeoutError), anyio.fail_after(patience):
        await call()
    assert counts(breaker) == expected
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_thirty_hanging_calls_cut_off_by_an_outer_timeout_open_the_circuit() -> None:
    breaker = make(anyio.current_time)

    @breaker
    async def hang() -> None:
        await anyio.sleep(3600)

    ended: list[type[BaseException]] = []
    for _ in range(30):
        try:
            with anyio.fail_after(2):
                await hang()
        except (TimeoutError, CircuitOpenError) as error:
            ended.append(type(error))
    assert ended == [TimeoutError] * 10 + [CircuitOpenError] * 20


@pytest.mark.anyio
async def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = make(anyio.current_time, open_duration=0, half_open_calls=2, slow_call_duration=2.0)
    breaker.trip()
    with anyio.move_on_after(0.1):
        async with breaker.guard():
            await anyio.sleep(3600)
    assert (breaker.state, counts(breaker), breaker.snapshot().in_flight) == ("half_open", NOTHING, 0)
    for _ in range(2):
        async with breaker.guard():
            pass
    assert breaker.state == "closed"


# --- permits ---


def test_a_permit_is_settled_once(breaker: CircuitBreaker) -> None:
    ends: list[Callable[[Permit], None]] = [
        lambda permit: permit.success(),
        lambda permit: permit.failure(BreakdownError()),
        lambda permit: permit.release(),
    ]
    for first in ends:
        for second in ends:
            permit = breaker.acquire()
            first(permit)
            before = breaker.snapshot()
            with pytest.raises(RuntimeError, match="a permit of circuit breaker 'ways' was settled twice"):
                second(permit)
            assert breaker.snapshot() == before


@pytest.mark.parametrize("line", range(1, 4))
def test_of_two_threads_that_settle_one_permit_exactly_one_is_told(breaker: CircuitBreaker, line: int) -> None:
    # One thread is overtaken by the other just before that line of taking the permit.
    permit = breaker.acquire()
    told: list[RuntimeError] = []
    lines = 0

    def settle() -> None:
        try:
            permit.success()
        except RuntimeError as error:
            told.append(error)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code is Permit._take.__code__ and event == "line":
            lines += 1
            if lines == line:
                other = threading.Thread(target=settle)
                other.start()
                other.join()
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        settle()
    finally:
        sys.settrace(tracing)
    if lines < line:
        settle()  # there is no such line: the other one comes afterwards
    assert len(told) == 1
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.parametrize("age", [0.0, 100.0])
def test_a_released_permit_says_nothing_at_any_age(clock: VirtualClock, age: float) -> None:
    breaker = make(clock)
    permit = breaker.acquire()
    clock.advance(age)
    with capture(CallIgnored) as events:
        permit.release()
    assert counts(breaker) == NOTHING
    assert [(event.duration, event.error_type) for event in events] == [(age, None)]


@pytest.mark.parametrize("thing", [None, "timeout", BreakdownError, 503])
def test_a_failure_that_is_no_exception_is_refused_and_the_permit_can_still_be_settled(
    breaker: CircuitBreaker, thing: Any
) -> None:
    permit = breaker.acquire()
    with pytest.raises(ConfigurationError, match="error must be the exception that the call raised, got "):
        permit.failure(thing)
    assert not permit.settled
    permit.success()
    assert counts(breaker) == SUCCESS


def test_a_permit_may_be_settled_in_another_thread(breaker: CircuitBreaker) -> None:
    permit = breaker.acquire()
    thread = threading.Thread(target=permit.failure, args=(BreakdownError(),))
    thread.start()
    thread.join()
    assert counts(breaker) == FAILURE


def test_a_forgotten_permit_counts_as_in_flight(breaker: CircuitBreaker) -> None:
    breaker.acquire()
    gc.collect()
    assert breaker.snapshot().in_flight == 1


# --- locks ---


class Asker:
    """Stands for a function of the user's that looks at the breaker from another thread, and waits for the answer."""

    def __init__(self) -> None:
        self.breaker: CircuitBreaker | None = None
        self.answered: list[bool] = []

    def __call__(self, *_: object) -> None:
        if self.breaker is not None:
            thread = threading.Thread(target=self.breaker.snapshot)
            thread.start()
            thread.join(0.5)
            self.answered.append(not thread.is_alive())


@pytest.mark.parametrize("function", ["clock", "failure_on", "ignore", "failure_result", "open_duration", "sink"])
def test_no_function_of_the_users_runs_under_the_lock(clock: VirtualClock, function: str) -> None:
    ask = Asker()

    def reads() -> float:
        if threading.current_thread() is threading.main_thread():  # the other thread reads it too
            ask()
        return clock()

    def answers(_: object) -> float:
        ask()
        return 0.0

    given: dict[str, Any] = {} if function in {"clock", "sink"} else {function: answers}
    breaker = CircuitBreaker("asked", clock=reads if function == "clock" else clock, **given)
    ask.breaker = breaker
    with subscribe(ask if function == "sink" else id, Event):
        breaker.call(lambda: None)
        with suppress(BreakdownError):
            breaker.call(raises(BreakdownError()))
        breaker.trip()
    assert ask.answered
    assert all(ask.answered)


# --- many ---


@pytest.mark.anyio
async def test_ten_tasks_with_ten_thousand_calls_each_are_counted_exactly() -> None:
    breaker = CircuitBreaker("many", clock=anyio.current_time, ignore=RefusalError, window=COUNT_ALL)
    calls, made = 10_000, 0

    @breaker
    async def work(number: int) -> None:
        nonlocal made
        made += 1
        if number % 100 == 0:
            await anyio.lowlevel.checkpoint()
        if number % 2:
            raise RefusalError

    async def task() -> None:
        for number in range(calls):
            with suppress(RefusalError):
                await work(number)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(task)
    assert made == 10 * calls
    assert counts(breaker) == (5 * calls, 0, 0)
    assert breaker.snapshot().in_flight == 0


def test_retries_around_a_breaker_stop_reaching_the_callee(clock: VirtualClock) -> None:
    breaker = CircuitBreaker("retried", clock=clock, window=CountWindow(3), minimum_calls=3, failure_rate_threshold=1.0)
    attempts: list[type[Exception]] = []
    ran = 0

    @breaker
    def fail() -> None:
        nonlocal ran
        ran += 1
        raise BreakdownError

    for _ in range(7):
        try:
            fail()
        except (BreakdownError, CircuitOpenError) as error:
            attempts.append(type(error))
    assert ran == 3
    assert attempts == [BreakdownError] * 3 + [CircuitOpenError] * 4
    assert (breaker.state, counts(breaker)) == ("open", (3, 3, 0))


@pytest.mark.anyio
async def test_ignored_probes_use_up_nothing_and_a_slow_one_closes(clock: VirtualClock) -> None:
    breaker = make(clock, half_open_calls=3, open_duration=0, failure_rate_threshold=0.3, slow_call_duration=None)
    breaker.trip()
    for _ in range(4):
        with pytest.raises(RefusalError):
            breaker.call(raises(RefusalError()))
    for _ in range(2):
        breaker.call(lambda: None)
    third = breaker.guard()
    with third:
        clock.advance(10)
        with pytest.raises(CircuitOpenError) as refused:
            breaker.call(lambda: None)
        assert refused.value.state == "half_open"
    assert breaker.state == "closed"


# --- what a human reads ---


def test_rejections_say_what_is_refused_why_and_until_when(clock: VirtualClock) -> None:
    breaker = make(clock, minimum_calls=1, open_duration=5, open_jitter=0, half_open_calls=1, probe_lease=20)
    said = []

    def ask() -> None:
        with pytest.raises(CircuitOpenError) as refused:
            breaker.acquire()
        error = refused.value
        said.append((str(error), error.name, error.policy, error.reason, error.retry_after, error.state))

    breaker.acquire().failure(ConnectionError())
    clock.advance(1)
    ask()
    clock.advance(4)
    breaker.acquire()
    ask()
    breaker.force_open()
    ask()
    last = "(last failure: ConnectionError)"
    assert said == [
        (f"circuit breaker 'ways' is open, retry in 4 s {last}", "ways", "circuit_breaker", "open", 4.0, "open"),
        (
            f"circuit breaker 'ways' is half-open, all probes are taken, retry in 20 s {last}",
            "ways",
            "circuit_breaker",
            "half_open",
            20.0,
            "half_open",
        ),
        (
            f"circuit breaker 'ways' is forced-open {last}",
            "ways",
            "circuit_breaker",
            "forced_open",
            None,
            "forced_open",
        ),
    ]


def test_a_breaker_shows_the_state_that_a_human_debugs_with(clock: VirtualClock) -> None:
    breaker = make(clock, minimum_calls=2, open_duration=5, open_jitter=0, half_open_calls=1, probe_lease=20)
    shown = [repr(breaker)]
    breaker.acquire().success()
    breaker.acquire()
    shown.append(repr(breaker))
    breaker.acquire().failure(OSError())
    shown.append(repr(breaker))
    clock.advance(5)
    breaker.acquire()
    shown.append(repr(breaker))
    breaker.force_open()
    shown.append(repr(breaker))
    assert shown == [
        "<CircuitBreaker 'ways' closed, 0 calls, 0 in flight>",
        "<CircuitBreaker 'ways' closed, 1 calls, 1 in flight>",
        "<CircuitBreaker 'ways' open, 50% failed, 2 calls, 1 in flight, retry in 5 s>",
        "<CircuitBreaker 'ways' half-open, 0 calls, 2 in flight, retry in 20 s>",
        "<CircuitBreaker 'ways' forced-open, 0 calls, 2 in flight>",
    ]


def test_looking_at_a_breaker_changes_nothing(clock: VirtualClock) -> None:
    breaker = make(clock, open_duration=5)
    breaker.trip()
    clock.advance(60)
    before = breaker.snapshot()
    with capture(Event) as events:
        repr(breaker)
        breaker.would_allow()
        breaker.dump()
    assert breaker.snapshot() == before
    assert events == []


def test_a_permit_shows_whose_it_is_and_whether_it_is_settled(breaker: CircuitBreaker) -> None:
    permit = breaker.acquire()
    assert repr(permit) == "<Permit of 'ways', in flight>"
    permit.release()
    assert repr(permit) == "<Permit of 'ways', settled>"


def test_name_config_and_state_cannot_be_set(breaker: CircuitBreaker) -> None:
    for attribute in ("name", "config", "state"):
        with pytest.raises(AttributeError):
            setattr(breaker, attribute, None)
