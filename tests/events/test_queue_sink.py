"""A slow consumer behind a bounded queue: order, overflow, failures, and how its block ends."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from resilience import CircuitBreaker, ConfigurationError
from resilience.events import (
    CacheHit,
    CircuitStateChanged,
    Event,
    EventsDropped,
    QueueSink,
    SinkFailed,
    capture,
    subscribe,
)
from resilience.events.bus import emit
from resilience.testing import VirtualClock

pytestmark = pytest.mark.anyio

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


def hit(at: float = 0.0) -> CacheHit:
    return CacheHit("users", at)


class Consumer:
    """Keeps what it is given, and can be awaited for the n-th event."""

    def __init__(self) -> None:
        self.heard: list[float] = []
        self._grown = anyio.Event()

    async def __call__(self, event: CacheHit) -> None:
        await anyio.lowlevel.checkpoint()  # gives a worker that would run twice the chance to overtake itself
        self.heard.append(event.at)
        self._grown.set()
        self._grown = anyio.Event()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.heard) < count:
                await self._grown.wait()


async def hang(_: Event) -> None:
    await anyio.sleep_forever()


# --- handing over ---


async def test_an_async_function_is_given_all_events_in_order() -> None:
    consumer = Consumer()
    async with QueueSink(consumer) as sink:
        for number in range(100):
            sink(hit(float(number)))
        await consumer.wait_for(100)
        sink(hit(100.0))
    assert consumer.heard == [float(number) for number in range(101)]
    assert (sink.dropped, sink.errors) == (0, 0)


async def test_a_plain_function_is_given_all_events_in_order_in_a_thread() -> None:
    heard: list[float] = []
    threads: set[int] = set()

    def consume(event: CacheHit) -> None:
        heard.append(event.at)
        threads.add(threading.get_ident())

    async with QueueSink(consume) as sink:
        for number in range(30):
            sink(hit(float(number)))
    assert heard == [float(number) for number in range(30)]
    assert threading.get_ident() not in threads
    assert (sink.dropped, sink.errors) == (0, 0)


def around(consumer: Consumer) -> Callable[[CacheHit], object]:
    def post(event: CacheHit) -> object:
        return consumer(event)

    return post


@pytest.mark.parametrize("wrap", [partial, around])
async def test_what_returns_a_coroutine_is_awaited_like_an_async_function(
    wrap: Callable[[Consumer], Callable[[Any], object]],
) -> None:
    # `QueueSink(lambda event: post(url, event))` is the obvious thing to write.
    consumer = Consumer()
    async with QueueSink(wrap(consumer)) as sink:
        sink(hit(1.0))
        sink(hit(2.0))
    assert consumer.heard == [1.0, 2.0]


async def test_events_of_subscriptions_arrive(clock: VirtualClock) -> None:
    heard: list[str] = []

    async def consume(event: CircuitStateChanged) -> None:
        heard.append(event.to_state)

    breaker = CircuitBreaker("guarded", clock=clock)
    async with QueueSink(consume) as sink:
        with subscribe(sink, CircuitStateChanged, name="guarded") as subscription:
            breaker.trip()
            breaker.reset()
    assert heard == ["open", "closed"]
    assert subscription.errors == 0


async def test_an_idle_worker_wakes_for_each_new_event() -> None:
    consumer = Consumer()
    async with QueueSink(consumer) as sink:
        for number in range(1, 6):
            await anyio.sleep(1_000)  # a worker that polls would keep virtual time from jumping
            sink(hit(float(number)))
            await consumer.wait_for(number)
    assert consumer.heard == [1.0, 2.0, 3.0, 4.0, 5.0]


async def test_an_idle_worker_wakes_for_an_event_from_a_foreign_thread() -> None:
    consumer = Consumer()
    async with QueueSink(consumer) as sink:
        for number in range(1, 4):
            await anyio.sleep(1)
            thread = threading.Thread(target=sink, args=(hit(float(number)),))
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
            await consumer.wait_for(number)
    assert consumer.heard == [1.0, 2.0, 3.0]


async def test_nothing_is_lost_when_many_threads_tell_at_once() -> None:
    heard: list[tuple[str, float]] = []

    async def consume(event: CacheHit) -> None:
        heard.append((event.name, event.at))

    def flood(name: str) -> None:
        for number in range(250):
            sink(CacheHit(name, float(number)))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with QueueSink(consume) as sink, anyio.create_task_group() as group:
            for name in "abcd":
                group.start_soon(anyio.to_thread.run_sync, flood, name)
    finally:
        sys.setswitchinterval(switch)
    assert (sink.dropped, sink.errors) == (0, 0)
    for name in "abcd":
        assert [at for who, at in heard if who == name] == [float(number) for number in range(250)]


async def test_a_slow_consumer_delays_nobody() -> None:
    started = anyio.current_time()
    release = anyio.Event()

    async def consume(_: Event) -> None:
        await release.wait()

    async with QueueSink(consume) as sink:
        for _ in range(100):
            sink(hit())
            await anyio.lowlevel.checkpoint()
        assert anyio.current_time() == started
        release.set()
    assert sink.dropped == 0


async def test_the_worker_starts_in_an_empty_context() -> None:
    # A worker that was started while serving a request would log its id for ever.
    seen: list[str] = []

    async def consume(_: Event) -> None:
        seen.append(request_id.get())

    token = request_id.set("r-1")
    try:
        for function in (consume, lambda _: seen.append(request_id.get())):
            async with QueueSink(function) as sink:
                sink(hit())
    finally:
        request_id.reset(token)
    assert seen == ["none", "none"]


async def test_a_burst_wakes_the_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[object] = []
    consumer = Consumer()
    async with QueueSink(consumer) as sink:
        await anyio.sleep(1)
        monkeypatch.setattr(sink, "_call_soon", woken.append)
        for number in range(50):
            sink(hit(float(number)))
        sink._set_ready()
        await consumer.wait_for(50)
    assert len(woken) == 1


class LateDeque(deque[Event]):
    """A queue that looks empty at its moment of choice, and then gets one more event from another thread."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile = [meanwhile]

    def __bool__(self) -> bool:
        if len(self) == 0 and self._meanwhile:
            thread = threading.Thread(target=self._meanwhile.pop())
            thread.start()
            thread.join()
            return False  # what was seen before the thread came
        return len(self) > 0


async def test_an_event_put_while_the_worker_goes_to_sleep_is_not_forgotten() -> None:
    # The race itself: the worker has seen an empty queue; an event comes before it says that it needs to be woken.
    consumer = Consumer()
    sink = QueueSink(consumer)
    sink._queue = LateDeque(lambda: sink(hit(1.0)))
    async with sink:
        await consumer.wait_for(1)
        assert consumer.heard == [1.0]


async def test_what_was_dropped_at_the_end_does_not_come_back_when_the_queue_is_opened_again() -> None:
    heard: list[float] = []

    async def consume(event: CacheHit) -> None:
        if event.at < 2.0:
            await anyio.sleep_forever()
        heard.append(event.at)

    sink = QueueSink(consume, close_timeout=1)
    async with sink:
        for number in range(4):
            sink(hit(float(number)))
    async with sink:
        sink(hit(4.0))
    assert heard == [4.0]
    assert sink.dropped == 3


async def test_a_queue_may_be_opened_again() -> None:
    consumer = Consumer()
    sink = QueueSink(consumer)
    for number in range(3):
        async with sink:
            sink(hit(float(number)))
    assert consumer.heard == [0.0, 1.0, 2.0]
    assert sink.dropped == 0


# --- overflow ---


async def test_events_beyond_the_limit_are_dropped_and_the_oldest_kept() -> None:
    consumer = Consumer()
    async with QueueSink(consumer, 3) as sink:
        for number in range(5):
            sink(hit(float(number)))
        assert sink.dropped == 2
        await consumer.wait_for(3)
        sink(hit(9.0))
    assert consumer.heard == [0.0, 1.0, 2.0, 9.0]
    assert sink.dropped == 2


async def test_a_thousand_events_may_wait_by_default() -> None:
    consumer = Consumer()
    async with QueueSink(consumer) as sink:
        for _ in range(1_001):
            sink(hit())
        assert sink.dropped == 1
    assert len(consumer.heard) == 1_000


async def test_drops_are_told_once_per_interval_and_the_rest_at_the_end(clock: VirtualClock) -> None:
    async def post(_: Event) -> None: ...

    def told() -> list[tuple[str, str, float, int]]:
        return [(one.name, one.sink, one.at, one.dropped) for one in notices]

    name = "QueueSink(test_drops_are_told_once_per_interval_and_the_rest_at_the_end.<locals>.post)"
    clock.advance(100)
    with capture(EventsDropped) as notices:
        async with QueueSink(post, 1, clock=clock) as sink:
            sink(hit())
            sink(hit())
            assert told() == [("events", name, 100.0, 1)]
            for _ in range(3):
                sink(hit())
            clock.advance(9.5)
            sink(hit())
            assert len(notices) == 1
            clock.advance(0.5)
            sink(hit())
            assert told()[1:] == [("events", name, 110.0, 5)]
            sink(hit())
            sink(hit())
        assert told()[2:] == [("events", name, 110.0, 2)]
    assert sink.dropped == sum(one.dropped for one in notices) == 8


async def test_a_block_without_drops_tells_of_none() -> None:
    with capture(EventsDropped) as notices:
        async with QueueSink(Consumer()) as sink:
            sink(hit())
    assert notices == []


async def test_a_full_queue_that_hears_of_its_own_drops_does_not_recurse() -> None:
    async def post(_: Event) -> None: ...

    with capture(EventsDropped) as notices:
        async with QueueSink(post, 1) as sink:
            with subscribe(sink) as subscription:
                for _ in range(5):
                    emit(hit())
                assert len(notices) == 1
    assert subscription.errors == 0


async def test_drops_are_counted_exactly_over_threads() -> None:
    sink = QueueSink(Consumer())  # not open: drops all

    def flood() -> None:
        for _ in range(2_000):
            sink(hit())

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with capture(EventsDropped) as notices:
            threads = [threading.Thread(target=flood) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert sink.dropped == 8_000
    assert len(notices) == 1


async def test_what_comes_before_or_after_the_block_counts_as_dropped() -> None:
    consumer = Consumer()
    sink = QueueSink(consumer)
    with capture(EventsDropped) as notices:
        sink(hit(1.0))
        assert sink.dropped == 1
        async with sink:
            sink(hit(2.0))
        sink(hit(3.0))
    assert sink.dropped == 2
    assert consumer.heard == [2.0]
    assert [one.dropped for one in notices] == [1]  # the second within the same interval is only counted


# --- a consumer that fails ---


async def fail_async(event: CacheHit) -> None:
    raise LookupError(event.name)


def fail_plain(event: CacheHit) -> None:
    raise LookupError(event.name)


@pytest.mark.parametrize("function", [fail_async, fail_plain])
async def test_a_failing_consumer_is_counted_told_once_and_goes_on(
    function: Callable[[Any], object], clock: VirtualClock
) -> None:
    clock.advance(7)
    with capture(SinkFailed) as told:
        async with QueueSink(function, clock=clock) as sink:
            for _ in range(4):
                sink(hit())
    assert (sink.errors, sink.dropped) == (4, 0)
    assert [(one.name, one.sink, one.error_type, one.at) for one in told] == [
        ("events", f"QueueSink({function.__qualname__})", "LookupError", 7.0)
    ]


async def test_a_consumer_whose_first_event_fails_gets_the_next() -> None:
    heard: list[float] = []

    async def consume(event: CacheHit) -> None:
        heard.append(event.at)
        if event.at == 1.0:
            raise ValueError

    async with QueueSink(consume) as sink:
        sink(hit(1.0))
        sink(hit(2.0))
    assert heard == [1.0, 2.0]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_consumer_that_awaits_a_cancelled_task_fails_alone() -> None:
    # On asyncio its CancelledError looks like a cancellation of the worker, and is none.
    heard: list[float] = []

    async def consume(event: CacheHit) -> None:
        heard.append(event.at)
        if event.at == 1.0:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled

    with capture(SinkFailed) as told:
        async with QueueSink(consume) as sink:
            sink(hit(1.0))
            await anyio.sleep(1)
            sink(hit(2.0))
            await anyio.sleep(1)
    assert heard == [1.0, 2.0]
    assert sink.errors == 1
    assert [one.error_type for one in told] == ["asyncio.exceptions.CancelledError"]


# --- how the block ends ---


async def test_the_end_of_the_block_hands_over_what_is_queued() -> None:
    heard: list[float] = []

    async def consume(event: CacheHit) -> None:
        await anyio.sleep(1)
        heard.append(event.at)

    started = anyio.current_time()
    async with QueueSink(consume) as sink:
        for number in range(4):
            sink(hit(float(number)))
    assert heard == [0.0, 1.0, 2.0, 3.0]
    assert anyio.current_time() == started + 4
    assert sink.dropped == 0


async def test_the_end_of_an_idle_block_takes_no_time() -> None:
    started = anyio.current_time()
    async with QueueSink(hang):
        pass
    async with QueueSink(hang):
        await anyio.sleep(1)
    assert anyio.current_time() == started + 1


async def test_the_exception_of_the_block_passes_unchanged() -> None:
    consumer = Consumer()
    own = KeyError("mine")

    async def body() -> None:
        async with QueueSink(consumer) as sink:
            sink(hit(1.0))
            raise own

    with pytest.raises(KeyError) as raised:
        await body()
    assert raised.value is own
    assert (own.__cause__, own.__context__, getattr(own, "__notes__", [])) == (None, None, [])
    assert consumer.heard == [1.0]


async def test_the_exception_of_a_cancelled_block_is_not_lost_either() -> None:
    own = KeyError("mine")

    async def consume(_: Event) -> None:
        await anyio.sleep(1)

    async def body() -> None:
        with anyio.CancelScope() as scope:
            async with QueueSink(consume) as sink:
                sink(hit())
                scope.cancel()
                raise own

    with pytest.raises(KeyError) as raised:
        await body()
    assert raised.value is own


async def test_a_group_raised_in_the_block_is_not_wrapped_in_another() -> None:
    own = ExceptionGroup("mine", [KeyError(1), ValueError(2)])

    async def body() -> None:
        async with QueueSink(Consumer()):
            raise own

    with pytest.raises(ExceptionGroup) as raised:
        await body()
    assert raised.value is own


async def test_a_consumer_that_hangs_is_cancelled_at_the_deadline_and_the_rest_is_dropped() -> None:
    started = anyio.current_time()
    ended: list[str] = []

    async def consume(_: Event) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    with capture(EventsDropped) as notices:
        async with QueueSink(consume, close_timeout=2.5) as sink:
            for _ in range(4):
                sink(hit())
            await anyio.sleep(1)
    assert anyio.current_time() == started + 1 + 2.5
    assert ended == ["cancelled"]
    assert sink.dropped == 3  # the one in hand is neither
    assert [one.dropped for one in notices] == [3]


async def test_the_default_deadline_is_five_seconds() -> None:
    started = anyio.current_time()
    async with QueueSink(hang) as sink:
        sink(hit())
    assert anyio.current_time() == started + 5


async def test_a_deadline_of_zero_waits_for_nothing() -> None:
    started = anyio.current_time()
    async with QueueSink(hang, close_timeout=0) as sink:
        sink(hit())
        await anyio.sleep(1)
        sink(hit())
    assert anyio.current_time() == started + 1
    assert sink.dropped == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_that_hangs_is_left_behind_at_the_deadline(backend: Any) -> None:
    release, left = threading.Event(), threading.Event()

    def consume(_: Event) -> None:
        release.wait(30)
        left.set()

    async def main() -> tuple[float, int]:
        started = anyio.current_time()
        async with QueueSink(consume, close_timeout=2) as sink:
            for _ in range(3):
                sink(hit())
            await anyio.lowlevel.checkpoint()
        release.set()
        return anyio.current_time() - started, sink.dropped

    # Time stands still while a thread works: this one is given up after 0.05 real seconds.
    elapsed, dropped = VirtualClock(hold_limit=0.05).run(main, backend=backend)
    assert (elapsed, dropped) == (2.0, 2)
    assert left.wait(10)


async def cancelled_while(sink: QueueSink, prepare: Callable[[], Awaitable[object]]) -> float:
    """Cancel the block of `sink`, and give the seconds that it took to end."""
    with anyio.CancelScope() as scope:
        async with sink:
            await prepare()
            scope.cancel()
            started = anyio.current_time()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    return anyio.current_time() - started


async def test_a_cancelled_block_hands_over_what_is_queued() -> None:
    heard: list[float] = []

    async def consume(event: CacheHit) -> None:
        await anyio.sleep(1)
        heard.append(event.at)

    sink = QueueSink(consume)

    async def prepare() -> None:
        for number in range(3):
            sink(hit(float(number)))

    assert await cancelled_while(sink, prepare) == 3.0
    assert heard == [0.0, 1.0, 2.0]
    assert (sink.dropped, sink.errors) == (0, 0)


async def test_a_cancelled_block_whose_queue_is_empty_ends_at_once() -> None:
    consumer = Consumer()
    sink = QueueSink(consumer)

    async def prepare() -> None:
        sink(hit(1.0))
        await consumer.wait_for(1)

    assert await cancelled_while(sink, prepare) == 0.0


async def test_a_cancelled_block_waits_for_a_hanging_consumer_until_the_deadline_and_counts_the_rest() -> None:
    sink = QueueSink(hang, close_timeout=2.0)

    async def prepare() -> None:
        for _ in range(3):
            sink(hit())
        await anyio.sleep(1)

    with capture(EventsDropped) as notices:
        assert await cancelled_while(sink, prepare) == 2.0
    assert sink.dropped == 2
    assert [one.dropped for one in notices] == [2]


async def test_a_deadline_around_the_block_is_seen_outside() -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(3):
        async with QueueSink(Consumer()):
            await anyio.sleep_forever()


async def test_a_failing_neighbour_cancels_the_block_and_arrives_alone() -> None:
    own = KeyError("neighbour")

    async def neighbour() -> None:
        await anyio.sleep(1)
        raise own

    async def body() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(neighbour)
            async with QueueSink(Consumer()) as sink:
                sink(hit())
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as raised:
        await body()
    assert raised.value.exceptions == (own,)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_natively_cancelled_asyncio_task_ends_its_block_and_stays_cancelled() -> None:
    consumer = Consumer()
    inside = anyio.Event()

    async def body() -> None:
        async with QueueSink(consumer) as sink:
            sink(hit(1.0))
            inside.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert consumer.heard == [1.0]


def tasks_alive(backend: str) -> int:
    """How many tasks this one has started, itself included."""
    if backend == "asyncio":
        return len(asyncio.all_tasks())
    import trio

    return 1 + sum(len(nursery.child_tasks) for nursery in trio.lowlevel.current_task().child_nurseries)


async def test_no_task_is_left_behind(anyio_backend_name: str) -> None:
    before = tasks_alive(anyio_backend_name)
    for consumer in (Consumer(), hang):
        async with QueueSink(consumer) as sink:
            sink(hit())
            assert tasks_alive(anyio_backend_name) == before + 1
        assert tasks_alive(anyio_backend_name) == before


async def test_an_async_consumer_needs_no_thread() -> None:
    before = set(threading.enumerate())
    async with QueueSink(Consumer()) as sink:
        sink(hit())
        await anyio.sleep(1)
        assert set(threading.enumerate()) <= before


# --- bad arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": None}, "function must be a function of one event, got NoneType"),
        ({"function": "print"}, "function must be a function of one event, got str"),
        ({"max_queued": 0}, "max_queued must be at least 1, got 0"),
        ({"max_queued": 1.5}, "max_queued must be an int, got 1.5"),
        ({"max_queued": None}, "max_queued must be an int, got None"),
        ({"close_timeout": -1}, "close_timeout must be at least 0, got -1"),
        ({"close_timeout": None}, "close_timeout must be a number, got None"),
        ({"close_timeout": math.inf}, "close_timeout must be finite, got inf"),
        ({"close_timeout": math.nan}, "close_timeout must be finite, got nan"),
        ({"clock": 3.0}, "clock must be a function, got 3.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_with_field_rule_and_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        QueueSink(**({"function": print} | arguments))
    assert str(refused.value) == message


def test_an_async_clock_is_refused() -> None:
    async def clock() -> float:
        return 0.0

    with pytest.raises(ConfigurationError, match=r"^clock must be a plain function, got the async "):
        QueueSink(print, clock=clock)  # type: ignore[arg-type]


def test_a_queue_is_no_async_sink() -> None:
    with subscribe(QueueSink(hang), CacheHit) as subscription:
        assert repr(subscription) == "<Subscription QueueSink(hang) to CacheHit>"
