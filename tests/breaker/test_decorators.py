"""The breaker as a decorator: kinds of functions, and streams, which are judged at their end."""

from __future__ import annotations

import functools
import gc
import inspect
import typing
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import pytest

from resilience import CircuitBreaker, CircuitOpenError, ConfigurationError, CountWindow, subscribe
from resilience.breaker.core import BreakerCore
from resilience.events import CallSucceeded, Event, capture
from resilience.testing import VirtualClock

Counts = tuple[int, int, int]

SUCCESS, FAILURE, NOTHING, SLOW = (1, 0, 0), (1, 1, 0), (0, 0, 0), (1, 0, 1)


class BreakdownError(Exception):
    pass


class RefusalError(Exception):
    pass


def counts(breaker: CircuitBreaker) -> Counts:
    snapshot = breaker.snapshot()
    return snapshot.calls, snapshot.failures, snapshot.slow_calls


def make(clock: Callable[[], float], **config: Any) -> CircuitBreaker:
    given: dict[str, Any] = {"slow_call_duration": 1.0, "ignore": RefusalError}
    return CircuitBreaker("guard", clock=clock, **(given | config))


@pytest.fixture
def breaker(clock: VirtualClock) -> CircuitBreaker:
    return make(clock)


# --- what a guarded function still is ---


def plain(number: int, *, text: str = "") -> str:
    """Say it."""
    return text * number


async def coroutine(number: int, *, text: str = "") -> str:
    """Say it."""
    return text * number


def generator(number: int, *, text: str = "") -> Iterator[str]:
    """Say it."""
    yield text * number


async def async_generator(number: int, *, text: str = "") -> AsyncIterator[str]:
    """Say it."""
    yield text * number


KINDS: list[Callable[..., Any]] = [plain, coroutine, generator, async_generator]

every_kind = pytest.mark.parametrize("function", KINDS, ids=lambda function: function.__name__)


@every_kind
def test_a_guarded_function_keeps_its_face(breaker: CircuitBreaker, function: Callable[..., Any]) -> None:
    guarded = breaker(function)
    assert guarded is not function
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(guarded, attribute) == getattr(function, attribute)
    assert inspect.signature(guarded) == inspect.signature(function)
    assert typing.get_type_hints(guarded) == typing.get_type_hints(function)
    assert inspect.unwrap(guarded) is function


@every_kind
def test_a_guarded_function_keeps_its_kind(breaker: CircuitBreaker, function: Callable[..., Any]) -> None:
    guarded = breaker(function)
    for ask in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert ask(guarded) is ask(function)
    assert inspect.isfunction(guarded)


@every_kind
def test_a_guarded_function_knows_its_breaker(breaker: CircuitBreaker, function: Callable[..., Any]) -> None:
    guarded: Any = breaker(function)
    assert guarded.circuit_breaker is breaker
    assert not hasattr(function, "circuit_breaker")


@every_kind
def test_a_function_is_guarded_once_by_one_breaker(breaker: CircuitBreaker, function: Callable[..., Any]) -> None:
    guarded = breaker(function)
    with pytest.raises(ConfigurationError, match=r"circuit breaker 'guard' guards .* already"):
        breaker(guarded)

    @functools.wraps(guarded)
    def logged(*args: Any, **kwargs: Any) -> Any:
        return guarded(*args, **kwargs)

    with pytest.raises(ConfigurationError, match=r"circuit breaker 'guard' guards .* already"):
        breaker(logged)


def test_one_breaker_may_guard_many_functions_and_two_breakers_one(clock: VirtualClock) -> None:
    one, two = make(clock), make(clock)
    first: Any = one(plain)
    second: Any = one(two(plain))
    assert [first.circuit_breaker, second.circuit_breaker] == [one, one]
    first(1)
    second(1)
    assert [counts(one)[0], counts(two)[0]] == [2, 1]


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", [((), {}), ((1, 2), {}), ((1,), {"text": "a", "extra": 1})])
async def test_wrong_arguments_are_a_type_error_as_without_the_breaker(
    breaker: CircuitBreaker, arguments: tuple[tuple[int, ...], dict[str, Any]]
) -> None:
    args, kwargs = arguments
    with pytest.raises(TypeError, match="argument"):
        breaker(plain)(*args, **kwargs)
    with pytest.raises(TypeError, match="argument"):
        await breaker(coroutine)(*args, **kwargs)
    with pytest.raises(TypeError, match="argument"):
        next(iter(breaker(generator)(*args, **kwargs)))
    with pytest.raises(TypeError, match="argument"):
        await anext(aiter(breaker(async_generator)(*args, **kwargs)))
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_partials_keep_the_kind_of_what_they_call(breaker: CircuitBreaker) -> None:
    assert breaker(functools.partial(plain, 2))(text="a") == "aa"
    assert await breaker(functools.partial(coroutine, 2))(text="a") == "aa"
    assert list(breaker(functools.partial(generator, 2))(text="a")) == ["aa"]
    assert [item async for item in breaker(functools.partial(async_generator, 2))(text="a")] == ["aa"]
    assert counts(breaker) == (4, 0, 0)


class Client:
    """Objects whose methods are guarded; what is guarded is the breaker of the class."""

    breaker = CircuitBreaker("client", window=CountWindow(1_000))

    def __init__(self, host: str) -> None:
        self.host = host

    @breaker
    def get(self, path: str) -> str:
        return self.host + path

    @breaker
    async def fetch(self, path: str) -> str:
        return self.host + path

    @breaker
    def pages(self) -> Iterator[str]:
        yield from self.host

    @staticmethod
    @breaker
    def resolve(host: str) -> str:
        return host.upper()

    @classmethod
    @breaker
    def connect(cls, host: str) -> Client:
        return cls(host)

    @property
    @breaker
    def address(self) -> str:
        return f"//{self.host}"


@pytest.mark.anyio
async def test_methods_of_all_kinds_work_below_their_own_decorators() -> None:
    before = counts(Client.breaker)[0]
    client = Client.connect("db")
    assert (client.get("/a"), await client.fetch("/b"), list(client.pages())) == ("db/a", "db/b", ["d", "b"])
    assert (Client.resolve("db"), client.resolve("db"), client.address) == ("DB", "DB", "//db")
    assert counts(Client.breaker)[0] - before == 7
    assert isinstance(client, Client)


@pytest.mark.anyio
async def test_a_bound_method_can_be_guarded_from_outside(breaker: CircuitBreaker) -> None:
    class Bare:
        def get(self) -> Bare:
            return self

        async def fetch(self) -> Bare:
            return self

    bare = Bare()
    assert breaker(bare.get)() is bare
    assert await breaker(bare.fetch)() is bare


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_above_staticmethod_and_classmethod_it_is_refused_with_the_remedy(breaker: CircuitBreaker, kind: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        breaker(kind(plain))
    assert str(refused.value) == f"a circuit breaker guards functions: put it below @{kind.__name__}, not above"


@pytest.mark.parametrize("thing", [Client, int, 42, None, "plain", property(plain), functools.partialmethod(plain)])
def test_what_is_no_function_is_refused(breaker: CircuitBreaker, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="a circuit breaker guards functions, got "):
        breaker(thing)


class SyncService:
    def __call__(self) -> str:
        return "served"


class AsyncService:
    async def __call__(self) -> str:
        return "served"


class StreamService:
    def __call__(self) -> Iterator[str]:
        yield "served"
        raise BreakdownError


class AsyncStreamService:
    async def __call__(self) -> AsyncIterator[str]:
        yield "served"
        raise BreakdownError


@pytest.mark.anyio
async def test_callable_objects_are_functions(breaker: CircuitBreaker) -> None:
    assert breaker(SyncService())() == "served"
    guarded: Any = breaker(AsyncService())
    assert inspect.iscoroutinefunction(guarded)
    assert await guarded() == "served"
    assert counts(breaker) == (2, 0, 0)


@pytest.mark.anyio
async def test_callable_objects_that_stream_are_judged_at_the_end_of_the_stream(breaker: CircuitBreaker) -> None:
    with pytest.raises(BreakdownError):
        list(breaker(StreamService())())
    assert counts(breaker) == (1, 1, 0)
    with pytest.raises(BreakdownError):
        [item async for item in breaker(AsyncStreamService())()]
    assert counts(breaker) == (2, 2, 0)


# --- streams: the same promises for generators and async generators ---


Source = Callable[[], Generator[Any, Any, Any]]


class Consumer:
    """Drives a guarded generator, or an async generator that does the same, by hand."""

    def __init__(self, breaker: CircuitBreaker, source: Source, *, is_async: bool) -> None:
        self.stream: Any = breaker(as_async(source) if is_async else source)()
        self.is_async = is_async

    async def next(self) -> Any:
        return await self.send(None)

    async def send(self, value: object) -> Any:
        if self.is_async:
            return await self.stream.asend(value)
        try:
            return self.stream.send(value)
        except StopIteration:  # a coroutine cannot let it out
            raise StopAsyncIteration from None

    async def throw(self, error: BaseException) -> Any:
        try:
            return await self.stream.athrow(error) if self.is_async else self.stream.throw(error)
        finally:
            del error  # else this frame, which is in its traceback, would keep it alive

    async def close(self) -> None:
        if self.is_async:
            await self.stream.aclose()
        else:
            self.stream.close()

    async def rest(self) -> list[Any]:
        return [item async for item in self.stream] if self.is_async else list(self.stream)


def as_async(source: Source) -> Callable[[], AsyncGenerator[Any, Any]]:
    async def stream() -> AsyncGenerator[Any, Any]:
        inner = source()
        try:
            item = next(inner)
            while True:
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as error:  # noqa: BLE001 - for the source to handle
                    thrown = error
                item = inner.send(sent) if thrown is None else inner.throw(thrown)
        except StopIteration:
            pass
        finally:
            thrown = None  # else this frame, which is in its traceback, would keep it alive

    return stream


both = pytest.mark.parametrize("is_async", [False, True], ids=["generator", "async-generator"])


def numbers(end: int = 4, error: BaseException | None = None) -> Source:
    def source() -> Iterator[int]:
        yield from range(end)
        if error is not None:
            raise error

    return source  # type: ignore[return-value]  # a generator, seen as the iterator that it is


@pytest.mark.anyio
@both
async def test_a_stream_gives_its_items_and_is_one_call(breaker: CircuitBreaker, is_async: bool) -> None:
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    assert await consumer.rest() == [0, 1, 2, 3]
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.anyio
@both
async def test_a_stream_without_items_is_a_success(breaker: CircuitBreaker, is_async: bool) -> None:
    assert await Consumer(breaker, numbers(0), is_async=is_async).rest() == []
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.anyio
@both
async def test_a_stream_that_fails_midway_is_a_failure_and_raises_its_own_error(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    error = BreakdownError()
    consumer = Consumer(breaker, numbers(4, error), is_async=is_async)
    assert [await consumer.next() for _ in range(4)] == [0, 1, 2, 3]
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 1)
    with pytest.raises(BreakdownError) as raised:
        await consumer.next()
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert (counts(breaker), breaker.snapshot().in_flight) == (FAILURE, 0)


@pytest.mark.anyio
@both
async def test_a_stream_that_ends_with_an_ignored_error_says_nothing(breaker: CircuitBreaker, is_async: bool) -> None:
    with pytest.raises(RefusalError):
        await Consumer(breaker, numbers(1, RefusalError()), is_async=is_async).rest()
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 0)


@pytest.mark.anyio
@both
async def test_a_consumer_that_leaves_after_the_first_item_had_a_success(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    await consumer.next()
    await consumer.close()
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.anyio
@both
async def test_a_stream_that_was_never_started_was_never_admitted(breaker: CircuitBreaker, is_async: bool) -> None:
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    assert breaker.snapshot().in_flight == 0
    await consumer.close()
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 0)


@pytest.mark.anyio
@both
async def test_a_refused_stream_raises_at_its_first_step(breaker: CircuitBreaker, is_async: bool) -> None:
    breaker.force_open()
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    assert breaker.snapshot().rejected == 0
    with pytest.raises(CircuitOpenError):
        await consumer.next()
    assert breaker.snapshot().rejected == 1


@pytest.mark.anyio
@both
async def test_a_stream_may_outlive_the_era_that_admitted_it(breaker: CircuitBreaker, is_async: bool) -> None:
    consumer = Consumer(breaker, numbers(4, BreakdownError()), is_async=is_async)
    await consumer.next()
    breaker.trip()
    breaker.reset()
    with pytest.raises(BreakdownError):
        await consumer.rest()
    assert (counts(breaker), breaker.snapshot().late) == (NOTHING, 1)


@pytest.mark.anyio
@both
@pytest.mark.parametrize(("first", "rest", "expected"), [(0.999, 1000.0, SUCCESS), (1.0, 0.0, SLOW)])
async def test_how_long_the_first_item_took_decides_whether_a_stream_is_slow(
    clock: VirtualClock, is_async: bool, first: float, rest: float, expected: Counts
) -> None:
    breaker = make(clock)

    def source() -> Generator[None, None, None]:
        clock.advance(first)
        yield
        clock.advance(rest)
        yield

    consumer = Consumer(breaker, source, is_async=is_async)
    await consumer.next()
    clock.advance(rest)  # the consumer's own time
    await consumer.rest()
    assert counts(breaker) == expected


@pytest.mark.anyio
@both
async def test_a_stream_whose_first_item_is_overdue_is_slow_while_it_still_waits(
    clock: VirtualClock, is_async: bool
) -> None:
    breaker = make(clock)
    seen = []

    def source() -> Generator[None, None, None]:
        clock.advance(1)
        seen.append(counts(breaker))
        yield
        clock.advance(1)
        seen.append(counts(breaker))

    await Consumer(breaker, source, is_async=is_async).rest()
    assert seen == [SLOW, SLOW]
    assert counts(breaker) == SLOW


@pytest.mark.anyio
@both
async def test_a_stream_that_has_answered_never_becomes_overdue(clock: VirtualClock, is_async: bool) -> None:
    breaker = make(clock)
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    await consumer.next()
    clock.advance(1000)
    assert counts(breaker) == NOTHING
    await consumer.rest()
    assert counts(breaker) == SUCCESS


@pytest.mark.anyio
async def test_a_stream_cancelled_before_its_first_item_says_nothing_when_it_was_quick() -> None:
    breaker = make(anyio.current_time)

    @breaker
    async def silent() -> AsyncIterator[None]:
        await anyio.sleep(3600)
        yield

    with anyio.move_on_after(0.5):
        async for _ in silent():
            pytest.fail("it is silent")
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 0)


@pytest.mark.anyio
async def test_a_stream_cancelled_while_waiting_for_a_later_item_says_nothing() -> None:
    breaker = make(anyio.current_time)

    @breaker
    async def stalls() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(3600)

    with anyio.move_on_after(60):
        async for _ in stalls():
            pass
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 0)


def test_a_consumer_that_is_gone_before_the_first_item_learned_nothing(breaker: CircuitBreaker) -> None:
    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    @breaker
    async def silent() -> AsyncGenerator[None, None]:
        await Never()
        yield

    step = silent().__anext__().__await__()
    step.send(None)
    assert breaker.snapshot().in_flight == 1
    with pytest.raises(GeneratorExit):
        step.throw(GeneratorExit)
    assert (counts(breaker), breaker.snapshot().in_flight) == (NOTHING, 0)


# --- streams: what passes between consumer and source ---


@pytest.mark.anyio
@both
async def test_what_is_sent_and_thrown_in_reaches_the_source(breaker: CircuitBreaker, is_async: bool) -> None:
    def source() -> Generator[Any, Any, None]:
        got: object = "start"
        while got != "stop":
            try:
                got = yield got
            except LookupError as error:
                got = error

    consumer = Consumer(breaker, source, is_async=is_async)
    assert await consumer.next() == "start"
    assert await consumer.send("one") == "one"
    assert await consumer.send(None) is None
    error = LookupError()
    assert await consumer.throw(error) is error
    assert await consumer.send("two") == "two"
    with pytest.raises(StopAsyncIteration):
        await consumer.send("stop")
    assert counts(breaker) == SUCCESS


def test_the_return_value_of_a_generator_arrives(breaker: CircuitBreaker) -> None:
    @breaker
    def inner() -> Generator[int, str, str]:
        return "returned " + (yield 1)

    def outer() -> Generator[int, str, str]:
        return (yield from inner())

    stream = outer()
    assert next(stream) == 1
    with pytest.raises(StopIteration) as stop:
        stream.send("value")
    assert stop.value.value == "returned value"
    assert counts(breaker) == SUCCESS


@pytest.mark.anyio
@both
async def test_an_error_thrown_in_that_the_source_lets_pass_counts_for_what_it_is(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    error = BreakdownError()
    consumer = Consumer(breaker, numbers(), is_async=is_async)
    await consumer.next()
    with pytest.raises(BreakdownError) as raised:
        await consumer.throw(error)
    assert raised.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert counts(breaker) == FAILURE


@pytest.mark.anyio
@both
async def test_an_error_that_follows_a_handled_one_has_no_context_of_ours(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    later = BreakdownError()

    def source() -> Generator[int, None, None]:
        with suppress(LookupError):
            yield 1
        raise later  # the error thrown in was handled, and is over

    consumer = Consumer(breaker, source, is_async=is_async)
    await consumer.next()
    with pytest.raises(BreakdownError):
        await consumer.throw(LookupError())
    assert later.__context__ is None


@pytest.mark.anyio
@both
async def test_closing_a_stream_closes_its_source_before_anything_else_happens(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    closed = []

    def source() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            closed.append(breaker.snapshot().in_flight)

    consumer = Consumer(breaker, source, is_async=is_async)
    await consumer.next()
    await consumer.close()
    assert closed == [1]  # the call is over when its cleanup is
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
@both
async def test_a_source_that_fails_while_it_is_closed_is_a_failure(breaker: CircuitBreaker, is_async: bool) -> None:
    def source() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raise BreakdownError

    consumer = Consumer(breaker, source, is_async=is_async)
    await consumer.next()
    with pytest.raises(BreakdownError):
        await consumer.close()
    assert (counts(breaker), breaker.snapshot().in_flight) == (FAILURE, 0)


@pytest.mark.anyio
@both
async def test_a_source_that_refuses_to_be_closed_is_an_error_as_without_the_breaker(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    def source() -> Generator[int, None, None]:
        with suppress(GeneratorExit):
            yield 1
        yield 2

    consumer = Consumer(breaker, source, is_async=is_async)
    await consumer.next()
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        await consumer.close()
    assert breaker.snapshot().in_flight == 0


@pytest.mark.anyio
async def test_an_async_source_may_await_while_it_is_closed() -> None:
    breaker = make(anyio.current_time)
    closed = []

    @breaker
    async def source() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            closed.append(anyio.current_time())

    start = anyio.current_time()
    async with aclosing(source()) as stream:
        await anext(stream)
    assert closed == [start + 5]
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.anyio
async def test_guarded_generators_make_context_managers(breaker: CircuitBreaker) -> None:
    log = []

    @contextmanager
    @breaker
    def opened() -> Iterator[str]:
        try:
            yield "file"
        finally:
            log.append("closed")

    @asynccontextmanager
    @breaker
    async def connected() -> AsyncIterator[str]:
        try:
            yield "socket"
        finally:
            log.append("disconnected")

    with opened() as file:
        assert file == "file"
    async with connected() as socket:
        assert socket == "socket"
    assert counts(breaker) == (2, 0, 0)
    with pytest.raises(BreakdownError), opened():
        raise BreakdownError
    with pytest.raises(BreakdownError):
        async with connected():
            raise BreakdownError
    assert counts(breaker) == (4, 2, 0)
    assert log == ["closed", "disconnected"] * 2


@pytest.mark.anyio
@both
async def test_an_abandoned_item_is_not_kept_alive_by_a_finished_stream(
    breaker: CircuitBreaker, is_async: bool
) -> None:
    class Item:
        pass

    def source() -> Generator[Item, None, None]:
        yield Item()

    consumer = Consumer(breaker, source, is_async=is_async)
    seen = weakref.ref(await consumer.next())
    await consumer.rest()
    assert seen() is None


@pytest.mark.anyio
@both
@pytest.mark.parametrize("handled", [False, True])
async def test_an_error_that_was_thrown_in_is_not_kept_alive(
    breaker: CircuitBreaker, is_async: bool, handled: bool
) -> None:
    class Local:
        pass

    def source() -> Iterator[int]:
        if handled:
            with suppress(BreakdownError):
                yield 1
        yield 2

    async def throw() -> weakref.ref[Local]:
        local = Local()
        with suppress(BreakdownError):
            await consumer.throw(BreakdownError(local))
        with suppress(StopAsyncIteration):
            await consumer.next()
        return weakref.ref(local)

    consumer = Consumer(breaker, source, is_async=is_async)  # type: ignore[arg-type]  # a generator, as above
    await consumer.next()
    gc.collect()
    gc.disable()  # nothing but reference counts may be needed to let go
    try:
        assert (await throw())() is None
    finally:
        gc.enable()


# --- streams that nobody closes ---


def test_a_generator_that_is_let_go_gives_its_permit_back(breaker: CircuitBreaker) -> None:
    stream = breaker(generator)(1)
    next(iter(stream))
    del stream
    gc.collect()
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, and just what happens here
async def test_an_async_generator_that_is_let_go_gives_its_permit_back(breaker: CircuitBreaker) -> None:
    stream = breaker(async_generator)(1)
    await anext(aiter(stream))
    del stream
    gc.collect()
    for _ in range(10):  # the event loop closes it in its own time
        await anyio.lowlevel.checkpoint()
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)


class Settler:
    """An object that reports the end of its call when it is collected, as a response's `__del__` may."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.permit = breaker.acquire()

    def __del__(self) -> None:
        self.permit.success()


def begun(breaker: CircuitBreaker) -> Any:
    """Give a guarded generator that has begun."""

    def source() -> Iterator[int]:
        yield from range(10)

    stream = breaker.call(source)
    next(stream)
    return stream


class Trash:
    """What ends a call when it is collected, in a cycle that only `collect` frees.

    Stands for the garbage collector, which may run between any two steps of any thread.
    """

    def __init__(self, breaker: CircuitBreaker, kind: Callable[[CircuitBreaker], object] = begun) -> None:
        gc.collect()
        gc.disable()
        cycle: list[object] = [kind(breaker)]
        cycle.append(cycle)
        self.collections = 0

    def collect(self) -> None:
        self.collections += 1
        if self.collections == 1:
            gc.collect()


@pytest.fixture
def _collected_by_hand() -> Iterator[None]:
    try:
        yield
    finally:
        gc.enable()


by_hand = pytest.mark.usefixtures("_collected_by_hand")


def trip_and_call(breaker: CircuitBreaker) -> None:
    breaker.trip()
    breaker.call(plain, 1)


OPERATIONS: dict[str, Callable[[CircuitBreaker], object]] = {
    "call": lambda breaker: breaker.call(plain, 1),
    "probe": trip_and_call,
    "stream": lambda breaker: list(breaker.call(generator, 1)),
    "snapshot": lambda breaker: breaker.snapshot(),
    "would_allow": lambda breaker: breaker.would_allow(),
    "dump": lambda breaker: breaker.dump(),
    "repr": repr,
    "trip": lambda breaker: breaker.trip(),
    "reset": lambda breaker: breaker.reset(),
}


@by_hand
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_generator_collected_while_the_clock_is_read_gives_its_permit_back(
    clock: VirtualClock, operation: Callable[[CircuitBreaker], object]
) -> None:
    trash: Trash | None = None

    def reads() -> float:
        if trash is not None:
            trash.collect()
        return clock()

    breaker = make(reads, open_duration=0)
    trash = Trash(breaker)
    operation(breaker)
    assert trash.collections >= 1
    assert breaker.snapshot().in_flight == 0


STEPS = {
    "admit": "probe",
    "settle": "stream",
    "succeed": "call",
    "first_item": "stream",
    "order": "trip",
    "see_overdue": "snapshot",
    "counts": "snapshot",
    "would_admit": "would_allow",
    "retry_after": "dump",
    "in_flight": "repr",
}


@by_hand
@pytest.mark.parametrize(
    ("step", "operation", "heard"),
    [
        pytest.param(step, operation, heard, id=f"{'heard' if heard else 'unheard'}-{step}-{operation}")
        for step, operation in STEPS.items()
        for heard in (False, True)
        if not (heard and step == "succeed")  # the short way is for what nobody hears
    ],
)
@pytest.mark.parametrize("kind", [begun, Settler])
def test_a_call_that_ends_by_collection_while_the_lock_is_held_waits_for_the_step_to_end(
    clock: VirtualClock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: str,
    operation: str,
    kind: Callable[[CircuitBreaker], object],
    heard: bool,
) -> None:
    breaker = make(clock, open_duration=0)
    trash = Trash(breaker, kind)
    inside = 0
    entered_inside: list[str] = []
    real, settle = getattr(BreakerCore, step), BreakerCore.settle

    def collecting(core: BreakerCore, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        inside += 1
        try:
            trash.collect()
            return real(core, *args, **kwargs)
        finally:
            inside -= 1

    def watched_settle(core: BreakerCore, *args: Any) -> bool:
        if inside:
            entered_inside.append(step)
        return (collecting if step == "settle" else settle)(core, *args)

    monkeypatch.setattr(BreakerCore, step, collecting)
    monkeypatch.setattr(BreakerCore, "settle", watched_settle)
    if heard:
        with capture(Event) as events:
            OPERATIONS[operation](breaker)
        assert sum(isinstance(event, CallSucceeded) for event in events) == 1 + (
            operation in {"call", "probe", "stream"}
        )
    else:
        OPERATIONS[operation](breaker)
    assert trash.collections >= 1
    assert entered_inside == []
    assert breaker.snapshot().in_flight == 0


@by_hand
def test_a_generator_collected_in_a_sink_gives_its_permit_back(breaker: CircuitBreaker) -> None:
    trash = Trash(breaker)
    with subscribe(lambda _: trash.collect(), CallSucceeded), capture(CallSucceeded) as events:
        breaker.call(plain, 1)
    assert trash.collections == 2  # its own end was told too
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert (len(events), breaker.snapshot().in_flight) == (2, 0)


# --- async functions that are none ---


@pytest.mark.anyio
async def test_a_def_that_is_marked_as_async_is_awaited(breaker: CircuitBreaker) -> None:
    def looks_plain() -> Awaitable[str]:
        return coroutine(1, text="awaited")

    mark = getattr(inspect, "markcoroutinefunction", lambda function: function)  # since 3.12
    marked = mark(looks_plain)
    guarded = breaker(marked)
    assert inspect.iscoroutinefunction(guarded) is inspect.iscoroutinefunction(marked)
    assert await guarded() == "awaited"
    assert (counts(breaker), breaker.snapshot().in_flight) == (SUCCESS, 0)
