from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from math import inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.clock import Clock
from resilience.deadline import enter_deadline, leave_deadline
from resilience.errors import CallTimeoutError, ConfigurationError
from resilience.events import CacheHit, PolicyHookFailed, capture
from resilience.policies import Cache, Retry
from resilience.policies.policy import Site
from resilience.testing import VirtualClock

pytestmark = pytest.mark.anyio


@contextmanager
def sync_deadline(seconds: float, clock: Clock) -> Iterator[None]:
    token = enter_deadline(seconds, clock)
    try:
        yield
    finally:
        leave_deadline(token)


class Counted:
    """Gives a new result for each call, in sync and in async code, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def plain(self, *args: Any, **kwargs: Any) -> str:
        self.calls += 1
        return f"result {self.calls}"

    async def awaited(self, *args: Any, **kwargs: Any) -> str:
        return self.plain()


class Slow:
    """Takes a second, then ends as `outcomes` have it, one per call; the last for all further ones."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = outcomes
        self.calls = 0

    async def __call__(self, *args: Any) -> object:
        self.calls += 1
        outcome = self.outcomes[min(self.calls, len(self.outcomes)) - 1]
        await anyio.sleep(1)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def new_cache(ttl: float = 60, max_size: int = 100, **options: Any) -> Cache:
    return Cache(ttl, max_size=max_size, clock=anyio.current_time, **options)


@pytest.fixture(params=["sync", "async"])
def wrapped(request: pytest.FixtureRequest) -> Callable[..., Callable[..., Any]]:
    """Puts a cache around a new `Counted`: `await wrapped(cache)(1)`."""

    def wrap(cache: Cache, counted: Counted | None = None) -> Callable[..., Any]:
        counted = counted or Counted()
        if request.param == "async":
            return cache(counted.awaited)
        function = cache(counted.plain)

        async def call(*args: Any, **kwargs: Any) -> str:
            return function(*args, **kwargs)

        return call

    return wrap


# --- results are kept ---


async def test_a_result_is_used_again_until_it_is_as_old_as_the_ttl(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache(60, name="c"))
    with capture() as events:
        assert await call(1) == "result 1"
        assert not events
        await anyio.sleep(59.9)
        assert await call(1) == "result 1"
        await anyio.sleep(0.1)
        assert await call(1) == "result 2"
    (event,) = events
    assert isinstance(event, CacheHit)
    assert event.name == "c"
    assert event.at == pytest.approx(anyio.current_time() - 0.1)


async def test_the_age_counts_from_the_arrival() -> None:
    slow = Slow("result")
    call = new_cache(10)(slow)
    await call()
    await anyio.sleep(9.5)
    await call()
    assert slow.calls == 1


async def test_a_use_does_not_make_it_younger(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache(10))
    for expected in [1, 1, 1, 2, 2]:
        assert await call() == f"result {expected}"
        await anyio.sleep(4)


async def test_none_is_a_result() -> None:
    slow = Slow(None)
    call = new_cache()(slow)
    assert [await call(), await call()] == [None, None]
    assert slow.calls == 1


async def test_a_ttl_of_zero_keeps_nothing(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(0)
    call = wrapped(cache)
    assert [await call(), await call()] == ["result 1", "result 2"]
    assert len(cache) == 0


async def test_an_infinite_ttl_keeps_for_ever(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache(inf))
    await call()
    await anyio.sleep(80_000)
    assert await call() == "result 1"


async def test_the_least_recently_used_goes_first(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(max_size=2)
    call = wrapped(cache)
    await call("a")
    await call("b")
    await call("a")
    await call("c")
    assert len(cache) == 2
    assert await call("a") == "result 1"
    assert await call("b") == "result 4"


async def test_what_has_expired_goes_before_what_was_used_less_recently(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(10, max_size=2)
    call = wrapped(cache)
    await call("old")
    await anyio.sleep(9)
    await call("young")
    await call("old")  # the more recently used
    await anyio.sleep(2)
    await call("new")
    assert await call("young") == "result 2"


async def test_the_length_counts_what_is_good(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(10)
    call = wrapped(cache)
    for number in range(5):
        await call(number)
        await anyio.sleep(1)
    assert len(cache) == 5
    await anyio.sleep(7)
    assert len(cache) == 2
    assert repr(cache) == "<Cache of 2 of 100 results, for 10 s>"


def test_an_empty_cache_is_true() -> None:
    """A pipeline may ask `if cache`."""
    assert Cache(1, max_size=1)


async def test_errors_are_never_kept() -> None:
    error = ValueError("no")
    slow = Slow(error, "result")
    cache = new_cache()
    call = cache(slow)
    with pytest.raises(ValueError, match="no") as raised:
        await call()
    assert raised.value is error
    assert (error.__context__, error.__cause__) == (None, None)
    assert len(cache) == 0
    assert await call() == "result"


async def test_errors_of_plain_functions_are_never_kept() -> None:
    calls = []

    @new_cache()
    def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("no")
        return "result"

    with pytest.raises(ValueError, match="no"):
        call()
    assert [call(), call()] == ["result", "result"]


class Model:
    """A cache as one would write it to be sure."""

    def __init__(self, ttl: float, max_size: int) -> None:
        self.ttl, self.max_size = ttl, max_size
        self.kept: list[tuple[int, str, float]] = []  # the most recently used come last

    def call(self, key: int, result: str, now: float) -> str:
        self.purge(now)
        for entry in self.kept:
            if entry[0] == key:
                self.kept.remove(entry)
                self.kept.append(entry)
                return entry[1]
        if self.ttl:
            self.kept = [*self.kept, (key, result, now)][-self.max_size :]
        return result

    def purge(self, now: float) -> None:
        self.kept = [entry for entry in self.kept if now - entry[2] < self.ttl]

    def forget(self, key: int) -> None:
        self.kept = [entry for entry in self.kept if entry[0] != key]


STEPS = st.one_of(
    st.tuples(st.just("call"), st.integers(0, 5)),
    st.tuples(st.just("sleep"), st.sampled_from([0, 0.25, 0.5, 1, 2])),  # times the ttl
    st.tuples(st.just("forget"), st.integers(0, 5)),
    st.tuples(st.just("length"), st.just(0)),
    st.tuples(st.sampled_from(["clear"] + ["call"] * 5), st.integers(0, 5)),
)


@given(st.sampled_from([0, 4]), st.integers(1, 4), st.lists(STEPS, max_size=60))
@example(4, 2, [("call", 0), ("sleep", 0.5), ("call", 1), ("call", 0), ("sleep", 0.5), ("call", 2), ("call", 1)])
@example(4, 1, [("call", 0), ("sleep", 1), ("call", 0), ("length", 0)])
def test_it_agrees_with_a_naive_model(ttl: float, max_size: int, steps: list[tuple[str, float]]) -> None:
    clock = VirtualClock(autojump=False)
    cache, model, counted = Cache(ttl, max_size=max_size, clock=clock), Model(ttl, max_size), Counted()
    call = cache(counted.plain)
    for what, how in steps:
        match what:
            case "call":
                expected = model.call(int(how), f"result {counted.calls + 1}", clock())
                assert call(int(how)) == expected
            case "sleep":
                clock.advance(how * ttl)
            case "forget":
                model.forget(int(how))
                cache.invalidate(cache.key_of(int(how)))
            case "clear":
                model.kept = []
                cache.clear()
            case _:
                model.purge(clock())
                assert len(cache) == len(model.kept)
        assert len(cache._entries) <= max_size
        assert len(cache._entries._by_age) == sum(cache._entries._functions.values()) == len(cache._entries)
        assert not cache._flights


# --- keys ---


async def test_the_arguments_are_the_key(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache())
    first = await call(1, a=1, b=2)
    assert await call(1, b=2, a=1) == first
    others = [await call(), await call(1), await call(1, a=1), await call(1, 1, 2), await call(1, a=2, b=2)]
    assert len({first, *others}) == 6


async def test_a_function_gives_the_key(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache(key=lambda user, *, trace: user))
    assert await call("a", trace=[1]) == await call("a", trace=[2]) == "result 1"
    assert await call("b", trace=[1]) == "result 2"


def test_the_key_of_a_call_is_that_of_the_function() -> None:
    assert new_cache(key=lambda user, *, trace: user).key_of("a", trace=1) == "a"
    assert new_cache().key_of(1, b=2, a=1) == ((1,), (("a", 1), ("b", 2)))


async def test_none_is_a_key(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(key=lambda *args: None)
    call = wrapped(cache)
    assert await call(1) == await call(2) == "result 1"
    cache.invalidate(None)
    assert await call(3) == "result 2"


async def test_what_has_no_hash_bypasses_it(wrapped: Callable[..., Any]) -> None:
    class Odd:
        def __hash__(self) -> int:
            raise LookupError

    cache = new_cache()
    call = wrapped(cache)
    unhashable: list[object] = [[1], {}, Odd()]
    for argument in unhashable:
        assert await call(argument) != await call(argument)
    assert len(cache) == 0
    call = wrapped(new_cache(key=lambda *args: [1]))
    assert await call() != await call()


async def test_a_key_function_that_raises_bypasses_it(wrapped: Callable[..., Any]) -> None:
    call = wrapped(new_cache(key=lambda argument: 1 // argument, name="c"))
    with capture(PolicyHookFailed) as events:
        assert await call(0) != await call(0)
    assert [(event.name, event.hook, event.error_type) for event in events] == [("c", "key", "ZeroDivisionError")] * 2
    assert await call(1) == await call(1)


async def test_two_functions_are_kept_apart() -> None:
    cache = new_cache()

    @cache
    async def price(number: int) -> str:
        return "price"

    @cache
    async def name(number: int) -> str:
        return "name"

    @cache
    def color(number: int) -> str:
        return "color"

    for _ in range(2):
        assert (await price(1), await name(1), color(1)) == ("price", "name", "color")
    assert len(cache) == 3
    cache.invalidate(cache.key_of(1))
    assert len(cache) == 0


async def test_functions_called_through_it_are_kept_apart() -> None:
    cache = new_cache()
    first, second = Counted(), Counted()
    second.calls = 10
    assert cache.call(first.plain, 1) == cache.call(first.plain, 1) == "result 1"
    assert cache.call(second.plain, 1) == "result 11"


async def test_a_wrapper_made_anew_for_each_call_is_known_by_what_it_is_around() -> None:
    """As in a pipeline, whose site tells the origin."""

    cache, counted = new_cache(), Counted()
    site = Site("p", counted.plain)
    for _ in range(2):
        assert cache.around(lambda: counted.plain(), site)() == "result 1"  # noqa: PLW0108 - a new one each time


async def test_a_callable_without_a_hash_can_be_decorated() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]  # what this is about

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, argument: int) -> int:
            self.calls += 1
            return self.calls

    cache = new_cache()
    first, second = Odd(), Odd()
    second.calls = 10
    call, other = cache.around(first, Site("a", first)), cache.around(second, Site("b", second))
    assert [call(1), call(1), other(1)] == [1, 1, 11]


async def test_a_key_may_call_the_function_again_as_it_is_compared() -> None:
    cache = new_cache()

    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            return bool(call("inner"))

    @cache
    def call(key: object) -> str:
        return "result"

    assert [call(Key()), call(Key())] == ["result", "result"]


# --- invalidate and clear ---


async def test_an_invalidated_key_is_computed_again(wrapped: Callable[..., Any]) -> None:
    cache = new_cache(key=lambda user: user)
    call = wrapped(cache)
    await call("a")
    await call("b")
    cache.invalidate("a")
    cache.invalidate("unknown")
    assert await call("a") == "result 3"
    assert await call("b") == "result 2"
    cache.clear()
    assert await call("b") == "result 4"
    assert len(cache) == 1


@pytest.mark.parametrize("how", ["invalidate", "clear"])
async def test_who_asks_after_an_invalidation_does_not_get_what_was_begun_before(how: str) -> None:
    slow = Slow("stale", "fresh")
    cache = new_cache()
    call = cache(slow)
    got: list[object] = []

    async def ask() -> None:
        got.append(await call(1))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await anyio.sleep(0.5)
        cache.clear() if how == "clear" else cache.invalidate(cache.key_of(1))
        group.start_soon(ask)
        group.start_soon(ask)
    assert got == ["stale", "stale", "fresh", "fresh"]
    assert await call(1) == "fresh"
    assert slow.calls == 2
    assert not cache._flights


# --- scenario 18 ---


async def test_a_cache_above_a_retry() -> None:
    calls = 0
    cache = new_cache()

    @cache
    @Retry(3, wait=0)
    async def fetch() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError
        return "bar"

    with capture(CacheHit) as events:
        assert await fetch() == "bar"
        assert (calls, len(events)) == (3, 0)
        assert await fetch() == "bar"
        assert (calls, len(events)) == (3, 1)


async def test_concurrent_misses_share_one_call() -> None:
    slow = Slow("result")
    call = new_cache()(slow)
    got: list[object] = []

    async def ask() -> None:
        got.append(await call("key"))

    with capture(CacheHit) as events:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(ask)
    assert got == ["result"] * 50
    assert slow.calls == 1
    assert not events


@pytest.mark.parametrize("ttl", [0, 60])
async def test_a_follower_takes_over_from_a_cancelled_leader(ttl: float) -> None:
    slow = Slow("result")
    cache = new_cache(ttl)
    call = cache(slow)
    got: list[object] = []
    leader = anyio.CancelScope()

    async def lead() -> None:
        with leader:
            got.append(await call("key"))

    async def ask() -> None:
        got.append(await call("key"))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.1)
        for _ in range(49):
            group.start_soon(ask)
        await anyio.sleep(0.1)
        assert slow.calls == 1
        leader.cancel()
    assert slow.calls == 2
    assert got == ["result"] * 49
    assert not cache._flights


# --- coalescing ---


async def test_each_follower_keeps_its_deadline() -> None:
    slow = Slow("result")
    call = new_cache()(slow)
    got: dict[float, object] = {}

    async def ask(patience: float) -> None:
        began = anyio.current_time()
        with anyio.move_on_after(patience) as scope:
            got[patience] = await call()
        if scope.cancelled_caught:
            got[patience] = anyio.current_time() - began

    async with anyio.create_task_group() as group:
        group.start_soon(ask, inf)
        await anyio.lowlevel.checkpoint()
        for patience in (0.25, 0.5, 2):
            group.start_soon(ask, patience)
    assert got == {0.25: pytest.approx(0.25), 0.5: pytest.approx(0.5), 2: "result", inf: "result"}
    assert slow.calls == 1


async def test_leaders_may_be_cancelled_one_after_the_other() -> None:
    slow = Slow("result")
    cache = new_cache()
    call = cache(slow)
    got: list[object] = []

    async def ask(patience: float) -> None:
        with anyio.move_on_after(patience):
            got.append(await call())

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(ask, 0.1 * (number + 1))
        group.start_soon(ask, inf)
    assert got == ["result"]
    assert slow.calls <= 11
    assert not cache._flights


async def test_when_all_are_cancelled_nothing_is_left() -> None:
    cache = new_cache()
    call = cache(Slow("result"))
    with anyio.move_on_after(0.5):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(call)
    assert not cache._flights
    assert len(cache) == 0


async def test_an_error_is_shared_by_all_who_wait() -> None:
    error = ValueError("no")
    slow = Slow(error)
    cache = new_cache()
    call = cache(slow)
    got: list[BaseException] = []

    async def ask() -> None:
        try:
            await call()
        except ValueError as raised:
            got.append(raised)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    assert len(got) == 50
    assert all(raised is error for raised in got)
    assert slow.calls == 1
    assert (error.__context__, error.__cause__, getattr(error, "__notes__", [])) == (None, None, [])
    assert not cache._flights


async def test_the_traceback_of_a_shared_error_does_not_grow() -> None:
    error = ValueError("no")
    call = new_cache()(Slow(error))
    depths: list[int] = []

    async def ask() -> None:
        try:
            await call()
        except ValueError:
            depth, traceback = 0, error.__traceback__
            while traceback is not None:
                depth, traceback = depth + 1, traceback.tb_next
            depths.append(depth)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    assert len(depths) == 50
    assert len(set(depths[1:])) == 1
    assert depths[1] <= depths[0] + 5


async def test_a_shared_error_keeps_its_context_in_somebodys_except_block() -> None:
    context, error = KeyError("context"), ValueError("no")

    async def fails() -> None:
        await anyio.sleep(1)
        try:
            raise context
        except KeyError:
            raise error  # noqa: B904 - its context is what this is about

    call = new_cache()(fails)

    async def ask() -> None:
        try:
            raise LookupError  # noqa: TRY301 - it is handled here, and that is what this is about
        except LookupError:
            with suppress(ValueError):
                await call()

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
    assert error.__context__ is context


@pytest.mark.parametrize("followers", [0, 1, 3])
async def test_no_frame_of_a_failed_call_is_kept(followers: int) -> None:
    class Special(Exception):  # noqa: N818 - a weak reference needs a type of its own
        pass

    gone: list[weakref.ref[Special]] = []

    async def fail() -> None:
        await anyio.sleep(1)
        error = Special()
        gone.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    call = new_cache()(fail)

    async def ask() -> None:
        with suppress(Special):
            await call()

    gc.collect()
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            for _ in range(1 + followers):
                group.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        assert [one() for one in gone] == [None]
    finally:
        gc.enable()


async def test_results_are_not_kept_alive_by_contexts() -> None:
    class Result:
        pass

    async def compute() -> Result:
        contexts.append(copy_context())
        await anyio.sleep(1)
        return Result()

    contexts: list[Any] = []
    call = new_cache(0)(compute)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(await call())
        await anyio.lowlevel.checkpoint()
        assert gone() is None
    finally:
        gc.enable()


async def test_a_call_from_inside_of_its_own_computation_computes_anew() -> None:
    """A client that logs in again and repeats its request, for one: to wait for itself would be for ever."""
    calls = 0
    cache = new_cache()

    @cache
    async def fetch(url: str) -> str:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.1)
        if calls == 1:
            return await fetch(url)
        if calls == 2:
            got: list[str] = []

            async def in_a_task() -> None:
                got.append(await fetch(url))

            async with anyio.create_task_group() as group:
                group.start_soon(in_a_task)
            return got[0]
        return "in"

    assert await fetch("/") == "in"
    assert calls == 3
    assert await fetch("/") == "in"
    assert calls == 3


async def test_a_plain_call_from_inside_of_its_own_computation_computes_anew() -> None:
    calls = 0

    @new_cache()
    def fetch(url: str) -> str:
        nonlocal calls
        calls += 1
        return fetch(url) if calls == 1 else "in"

    assert fetch("/") == "in"


async def test_a_function_may_call_another_through_the_same_cache() -> None:
    cache = new_cache()

    @cache
    async def fibonacci(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return number if number < 2 else await fibonacci(number - 1) + await fibonacci(number - 2)

    assert await fibonacci(30) == 832040


async def test_a_call_that_is_closed_leaves_nothing_behind() -> None:
    class Never:
        def __await__(self) -> Any:
            yield

    async def compute() -> None:
        await Never()

    cache = new_cache()
    coroutine = cache(compute)()
    copy_context().run(coroutine.send, None)
    coroutine.close()
    assert not cache._flights


# --- loops and threads ---


def test_loops_share_results_and_not_computations() -> None:
    calls: list[int] = []
    cache = Cache(60, max_size=10)
    both = threading.Barrier(2)

    @cache
    async def fetch(number: int) -> int:
        calls.append(threading.get_ident())
        await anyio.to_thread.run_sync(both.wait, 10)
        return len(calls)

    results: list[int] = []
    threads = [
        threading.Thread(target=lambda name=name: results.append(anyio.run(fetch, 1, backend=name)))
        for name in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(calls)) == 2  # at the same time: the barrier lets none through alone
    assert anyio.run(fetch, 1) in results
    assert len(calls) == 2


def test_a_loop_that_was_killed_leaves_nothing_behind() -> None:
    cache = Cache(60, max_size=10)

    @cache
    async def fetch() -> str:
        await asyncio.sleep(0.01 if done else 1000)
        return "result"

    done = False

    async def give_up() -> None:
        task = asyncio.ensure_future(fetch())
        await asyncio.sleep(0.01)
        assert not task.done()

    asyncio.run(give_up())
    assert not cache._flights
    done = True
    assert asyncio.run(fetch()) == "result"


class Threads:
    """Threads that call a function at once, with what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.results: list[object] = []
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _run(self) -> None:
        try:
            self.results.append(self._call())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.results.append(error)


def wait_for_followers(cache: Cache, count: int) -> None:
    until = time.monotonic() + 20
    while sum(flight.followers for flight in list(cache._flights.values())) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


class Gate:
    """A plain function that waits in each call until it is told how to end."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Semaphore(0)
        self._outcomes: list[object] = []
        self._go = threading.Semaphore(0)

    def __call__(self) -> object:
        self.calls += 1
        self.entered.release()
        assert self._go.acquire(timeout=20)
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def end(self, outcome: object) -> None:
        self._outcomes.append(outcome)
        self._go.release()


@pytest.mark.parametrize("ttl", [0, 60])
def test_threads_share_one_call(ttl: float) -> None:
    gate, cache = Gate(), Cache(ttl, max_size=10)
    threads = Threads(cache(gate))
    threads.start(10)
    assert gate.entered.acquire(timeout=20)
    wait_for_followers(cache, 9)
    gate.end("result")
    threads.join()
    assert threads.results == ["result"] * 10
    assert gate.calls == 1
    assert not cache._flights


def test_threads_share_an_error() -> None:
    gate, cache, error = Gate(), Cache(60, max_size=10), ValueError("no")
    threads = Threads(cache(gate))
    threads.start(10)
    wait_for_followers(cache, 9)
    gate.end(error)
    threads.join()
    assert all(result is error for result in threads.results)
    assert (gate.calls, len(threads.results)) == (1, 10)
    assert not cache._flights


def test_a_thread_that_exits_hands_over() -> None:
    gate, cache = Gate(), Cache(60, max_size=10)
    threads = Threads(cache(gate))
    threads.start(10)
    wait_for_followers(cache, 9)
    assert gate.entered.acquire(timeout=20)
    gate.end(SystemExit())
    assert gate.entered.acquire(timeout=20)
    wait_for_followers(cache, 8)
    gate.end("result")
    threads.join()
    assert sorted(map(str, threads.results)) == ["", *["result"] * 9]
    assert gate.calls == 2


def test_other_keys_and_functions_go_on_while_one_computes() -> None:
    gate, cache = Gate(), Cache(60, max_size=10)
    threads = Threads(cache(gate))
    threads.start(1)
    assert gate.entered.acquire(timeout=20)
    assert cache.call(Counted().plain, 1) == "result 1"
    assert len(cache) == 1
    cache.invalidate("another")
    gate.end("result")
    threads.join()


def test_a_deadline_in_sync_code_bounds_the_wait() -> None:
    gate, cache = Gate(), Cache(60, max_size=10)
    call = cache(gate)
    threads = Threads(call)
    threads.start(1)
    assert gate.entered.acquire(timeout=20)
    with sync_deadline(0.01, time.monotonic), pytest.raises(CallTimeoutError) as raised:
        call()
    assert raised.value.scope == "total"
    with sync_deadline(-1, time.monotonic), pytest.raises(CallTimeoutError) as raised:
        call()
    assert raised.value.seconds == 0
    with sync_deadline(1e300, time.monotonic):
        gate.end("result")
        assert call() == "result"
    threads.join()
    assert gate.calls == 1


def test_a_result_that_came_since_the_first_look_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have landed between the look and the boarding."""
    cache, counted = Cache(60, max_size=10), Counted()
    call = cache(counted.plain)
    call()
    monkeypatch.setattr(cache, "_find", lambda *_: None)
    assert call() == "result 1"
    assert not cache._flights


def test_many_threads_and_keys_leave_nothing_behind() -> None:
    cache = Cache(0.001, max_size=3)
    calls = 0

    @cache
    def compute(key: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise ValueError
        return key

    def work() -> None:
        for number in range(300):
            with suppress(ValueError):
                assert compute(number % 5) == number % 5
            if number % 50 == 0:
                cache.invalidate(cache.key_of(number % 5))

    threads = Threads(work)
    threads.start(8)
    threads.join()
    assert threads.results == [None] * 8
    assert not cache._flights
    assert len(cache) <= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_of_its_parent() -> None:
    gate, cache = Gate(), Cache(60, max_size=10)
    call = cache(gate)
    kept = cache(Counted().plain)
    kept(1)
    threads = Threads(call)
    threads.start(1)
    assert gate.entered.acquire(timeout=20)
    child = os.fork()
    if not child:
        gate.end("of the child")
        os._exit(0 if call() == "of the child" and kept(1) == "result 1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.end("of the parent")
    threads.join()
    assert threads.results == ["of the parent"]


def test_a_child_forked_in_the_middle_of_a_change_begins_anew() -> None:
    cache = Cache(60, max_size=10)
    cache(Counted().plain)(1)
    holder = threading.Thread(target=cache._lock.acquire)
    holder.start()
    holder.join()
    cache.renew_locks()
    assert len(cache) == 0


# --- how it is put up ---


async def test_awaitables_of_plain_functions_are_refused() -> None:
    async def fetch() -> None: ...

    def forgets_to_wait(*_: object) -> object:
        return fetch()

    cache = new_cache()
    hashable_or_not: list[object] = [1, []]
    for argument in hashable_or_not:
        with pytest.raises(ConfigurationError, match="got an awaitable from a plain function"):
            cache(forgets_to_wait)(argument)
    assert len(cache) == 0


async def test_it_decorates_methods() -> None:
    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @new_cache()
        async def fetch(self, number: int) -> str:
            """Fetch."""
            return f"{self.name} {number}"

    assert await Client("a").fetch(1) == "a 1"
    assert await Client("b").fetch(1) == "b 1"
    assert Client.fetch.__doc__ == "Fetch."


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"ttl": -1}, "ttl must be at least 0"),
        ({"ttl": nan}, "ttl must be finite"),
        ({"ttl": -inf}, "ttl must be finite"),
        ({"ttl": None}, "ttl must be a number"),
        ({"max_size": 0}, "max_size must be at least 1"),
        ({"max_size": None}, "max_size must be an int"),
        ({"key": "id"}, "key must be a function"),
        ({"key": anyio.sleep}, "key must be a plain function"),
        ({"clock": 5}, "clock must be a function"),
        ({"name": ""}, "name must be"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Cache(**{"ttl": 1, "max_size": 1, **arguments})


def test_partials_are_kept_apart() -> None:
    cache, counted = Cache(60, max_size=10), Counted()
    first, second = functools.partial(counted.plain, 1), functools.partial(counted.plain, 2)
    assert [cache.call(first), cache.call(first), cache.call(second)] == ["result 1", "result 1", "result 2"]
