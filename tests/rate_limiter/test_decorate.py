"""Limits around functions: the decorator, and a limiter bound to a key."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from resilience import ConfigurationError, RateLimitedError
from resilience.rate_limiter import BoundLimiter, MemoryStore, Quota, RateLimiter, rate_limit
from resilience.testing import VirtualClock


def clock() -> float:
    """Time that stands still."""
    return 0.0


def refusal(act: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        act(*args, **kwargs)
    return str(refused.value)


# --- around functions ---


def test_a_function_is_called_as_often_as_the_limit_says() -> None:
    calls: list[object] = []

    @rate_limit("2/s", clock=clock)
    def search(words: str, *, limit: int = 10) -> tuple[str, int]:
        calls.append(words)
        return words, limit

    assert search("a") == ("a", 10)
    assert search("b", limit=3) == ("b", 3)
    with pytest.raises(RateLimitedError) as refused:
        search("c")
    assert calls == ["a", "b"]
    error = refused.value
    assert (error.name, error.policy, error.reason, error.retry_after) == (
        f"{__name__}.test_a_function_is_called_as_often_as_the_limit_says.<locals>.search",
        "rate_limiter",
        "limit",
        0.5,
    )
    assert error.decision.quota == Quota(2, 1)


@pytest.mark.anyio
async def test_an_async_function_is_called_as_often_as_the_limit_says() -> None:
    @rate_limit("2/s", clock=anyio.current_time)
    async def search(words: str) -> str:
        await anyio.sleep(0.1)
        return words

    assert await search("a") == "a"
    assert await search("b") == "b"
    with pytest.raises(RateLimitedError, match="limit, retry in 0"):
        await search("c")
    await anyio.sleep(0.5)
    assert await search("d") == "d"


@pytest.mark.anyio
async def test_nothing_is_taken_before_an_async_function_is_awaited() -> None:
    @rate_limit("1/s", clock=anyio.current_time)
    async def search() -> None:
        pass

    pending = search()
    await search()
    with pytest.raises(RateLimitedError):
        await pending


def test_a_function_keeps_its_name_signature_and_more() -> None:
    def search(words: str, *, limit: int = 10) -> str:
        """Find words."""
        return words * limit

    search.mark = 7  # type: ignore[attr-defined]
    limited = rate_limit("2/s")(search)
    assert (limited.__name__, limited.__doc__, limited.__module__) == ("search", "Find words.", __name__)
    assert inspect.signature(limited) == inspect.signature(search)
    assert inspect.unwrap(limited) is search
    assert limited.mark == 7  # type: ignore[attr-defined]
    assert isinstance(limited.rate_limiter, RateLimiter)  # type: ignore[attr-defined]
    assert limited.rate_limiter.name == f"{__name__}.{search.__qualname__}"  # type: ignore[attr-defined]


def test_kinds_of_functions_stay_what_they_are() -> None:
    async def coroutine() -> None:
        pass

    def function() -> None:
        pass

    assert inspect.iscoroutinefunction(rate_limit("2/s")(coroutine))
    assert not inspect.iscoroutinefunction(rate_limit("2/s")(function))


def test_what_the_function_raises_arrives_unchanged() -> None:
    error = OSError("mine")

    @rate_limit("1/s", clock=clock)
    def search() -> None:
        raise error

    with pytest.raises(OSError, match="mine") as raised:
        search()
    assert raised.value is error
    assert error.__context__ is None
    with pytest.raises(RateLimitedError):  # a call that failed was a call
        search()


def test_a_generator_function_is_limited_by_its_calls() -> None:
    @rate_limit("1/s", clock=clock)
    def words() -> Iterator[str]:
        yield "a"
        yield "b"

    assert list(words()) == ["a", "b"]
    with pytest.raises(RateLimitedError):
        words()


def test_the_key_and_the_cost_come_from_the_arguments() -> None:
    @rate_limit("5/s", key=lambda user, **_: user, cost=lambda user, *, pages=1: pages, clock=clock)
    def search(user: str, *, pages: int = 1) -> str:
        return user

    search("ann", pages=4)
    search("ann")
    search("bob", pages=5)
    with pytest.raises(RateLimitedError):
        search("ann")
    with pytest.raises(RateLimitedError) as refused:
        search("cleo", pages=6)
    assert (refused.value.reason, refused.value.retry_after) == ("never", None)
    search("ann", pages=0)


@pytest.mark.parametrize("key", ["fixed", b"fixed"])
def test_the_key_and_the_cost_can_be_fixed(key: Any) -> None:
    @rate_limit("5/s", key=key, cost=2, clock=clock)
    def search() -> None:
        pass

    search()
    limiter: RateLimiter = search.rate_limiter  # type: ignore[attr-defined]
    assert limiter.peek_sync("fixed").remaining == 3
    assert limiter.peek_sync().remaining == 5


def test_what_key_and_cost_functions_raise_goes_to_the_caller() -> None:
    def key(user: str) -> str:
        raise LookupError(user)

    @rate_limit("1/s", key=key, clock=clock)
    def search(user: str) -> None:
        raise AssertionError

    with pytest.raises(LookupError, match="ann"):
        search("ann")
    with pytest.raises(TypeError):
        search("ann", "bob")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": lambda: None}, "key must be a string or bytes, got 'NoneType'"),
        ({"cost": lambda: -1}, "cost must be at least 0, got -1"),
        ({"cost": lambda: 1.5}, "cost must be an int, got 1.5"),
    ],
)
def test_what_key_and_cost_functions_give_is_checked(options: dict[str, Any], message: str) -> None:
    @rate_limit("1/s", **options)
    def search() -> None:
        raise AssertionError

    assert refusal(search) == message


def test_methods_are_limited_together_or_by_instance() -> None:
    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @rate_limit("2/s", clock=clock)
        def get(self) -> str:
            return self.name

        @rate_limit("1/s", key=lambda self: self.name, clock=clock)
        def own(self) -> str:
            return self.name

        @classmethod
        @rate_limit("1/s", clock=clock)
        def connect(cls) -> type[Client]:
            return cls

        @staticmethod
        @rate_limit("1/s", clock=clock)
        def parse(text: str) -> str:
            return text

        @property
        @rate_limit("1/s", clock=clock)
        def address(self) -> str:
            return self.name

    ann, bob = Client("ann"), Client("bob")
    assert (ann.get(), bob.get(), ann.own(), bob.own()) == ("ann", "bob", "ann", "bob")
    assert (Client.connect(), Client.parse("x"), ann.address) == (Client, "x", "ann")
    for again in (ann.get, ann.own, bob.own, ann.connect, lambda: Client.parse("x"), lambda: bob.address):
        with pytest.raises(RateLimitedError):
            again()


@pytest.mark.anyio
async def test_async_methods_are_limited() -> None:
    class Client:
        @rate_limit("1/s", key=lambda self, path: path, clock=anyio.current_time)
        async def get(self, path: str) -> str:
            return path

    assert await Client().get("/a") == "/a"
    assert await Client().get("/b") == "/b"
    with pytest.raises(RateLimitedError):
        await Client().get("/a")


@pytest.mark.anyio
async def test_with_wait_calls_wait_their_turn() -> None:
    passed: list[tuple[int, float]] = []

    @rate_limit("1/s", wait=True, timeout=2.5, clock=anyio.current_time)
    async def search(number: int) -> None:
        passed.append((number, anyio.current_time() - start))

    start = anyio.current_time()
    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(search, number)
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(RateLimitedError, match="deadline"):
            await search(3)
    assert passed == [(0, 0), (1, 1), (2, 2)]


def test_with_wait_threads_sleep_until_their_turn() -> None:
    time = VirtualClock(autojump=False)

    @rate_limit("1/s", wait=True, timeout=1, clock=time)
    def search() -> float:
        return time()

    def sleep(_: threading.Event, seconds: float) -> None:
        time.advance(seconds)

    search.rate_limiter._wait_sync = sleep  # type: ignore[attr-defined]
    assert [search(), search(), search()] == [0, 1, 2]


def test_functions_share_a_limiter_that_is_given_to_them() -> None:
    limiter = RateLimiter("2/s", name="both", clock=clock)

    @rate_limit(limiter)
    def one() -> None:
        pass

    @rate_limit(limiter, cost=2)
    def other() -> None:
        pass

    one()
    with pytest.raises(RateLimitedError) as refused:
        other()
    assert refused.value.name == "both"
    assert one.rate_limiter is other.rate_limiter is limiter  # type: ignore[attr-defined]


def test_one_decorator_gives_each_function_a_limiter_of_its_own() -> None:
    decorate = rate_limit("1/s", clock=clock)
    one: Any = decorate(lambda: 1)
    other: Any = decorate(lambda: 2)
    assert (one(), other()) == (1, 2)
    named = rate_limit("1/s", name="shared name", clock=clock)
    assert named(lambda: 1).rate_limiter.name == "shared name"  # type: ignore[attr-defined]


def test_options_of_the_limiter_are_passed_on() -> None:
    @rate_limit([Quota(1, 1)], name="tried", shadow=True, clock=clock)
    def search() -> int:
        return 1

    assert [search(), search()] == [1, 1]


def test_objects_that_can_be_called_are_limited() -> None:
    class Search:
        def __call__(self) -> int:
            return 1

    class AsyncSearch:
        async def __call__(self) -> int:
            return 2

    limited: Any = rate_limit("1/s", clock=clock)(Search())
    assert limited() == 1
    with pytest.raises(RateLimitedError):
        limited()
    assert inspect.iscoroutinefunction(rate_limit("1/s")(AsyncSearch()))
    partial: Any = rate_limit("1/s", name="half", clock=clock)(functools.partial(int, "7"))
    assert partial() == 7


# --- what is refused ---


class Klass:
    pass


async def agenerator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (staticmethod(clock), "a rate limit is for functions: put it below @staticmethod, not above"),
        (classmethod(lambda _: None), "a rate limit is for functions: put it below @classmethod, not above"),
        (Klass, f"a rate limit is for functions, got {Klass!r}"),
        (Klass(), None),
        (5, "a rate limit is for functions, got 5"),
        (None, "a rate limit is for functions, got None"),
        (agenerator, None),
    ],
)
def test_what_is_no_function_is_refused(function: Any, message: str | None) -> None:
    for decorate in (rate_limit("1/s"), RateLimiter("1/s", name="search").bound()):
        said = refusal(decorate, function)
        assert said.startswith("a rate limit ")
        assert message is None or said == message


def test_the_decorator_without_a_quota_is_explained() -> None:
    assert refusal(rate_limit, clock) == 'rate_limit needs a quota: @rate_limit("10/second"), not @rate_limit'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": 5}, "key must be a function, got 5"),
        ({"key": None}, "key must be a function, got None"),
        ({"cost": -1}, "cost must be at least 0, got -1"),
        ({"cost": True}, "cost must be an int, got True"),
        ({"cost": 1_000_000_001}, "cost must be at most 1,000,000,000, got 1000000001"),
        ({"wait": 1}, "wait must be True or False, got 1"),
        ({"timeout": 1}, "timeout must be None without wait=True: nobody waits"),
        ({"wait": True, "timeout": -1}, "timeout must be at least 0, got -1"),
        ({"wait": True, "timeout": float("nan")}, "timeout must be finite, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_written(options: dict[str, Any], message: str) -> None:
    assert refusal(rate_limit, "1/s", **options) == message
    assert refusal(RateLimiter("1/s", name="search").bound, **options) == message
    assert refusal(rate_limit, RateLimiter("1/s", name="search"), **options) == message


async def async_key() -> str:
    return ""


@pytest.mark.parametrize("option", ["key", "cost"])
def test_functions_that_have_to_be_awaited_are_refused(option: str) -> None:
    options: dict[str, Any] = {option: async_key}
    assert refusal(rate_limit, "1/s", **options).startswith(f"{option} must be a plain function, got the async ")


def test_quotas_and_options_of_the_limiter_are_checked_where_they_are_written() -> None:
    assert refusal(rate_limit, "many").startswith("quota must be such as")
    assert refusal(rate_limit, "1/s", name="") == "name must be a non-empty string, got ''"
    assert refusal(rate_limit, "1/s", shadow=1) == "shadow must be True or False, got 1"
    with pytest.raises(TypeError):
        rate_limit("1/s", colour="red")


def test_a_limiter_that_is_made_already_takes_no_options() -> None:
    limiter = RateLimiter("1/s", name="search")
    assert refusal(rate_limit, limiter, name="x") == "name must be given to the RateLimiter itself"
    assert refusal(rate_limit, limiter, name="x", shadow=True, store=MemoryStore()) == (
        "name, shadow, store must be given to the RateLimiter itself"
    )


# --- bound ---


def test_a_bound_limiter_is_a_decorator_and_a_policy() -> None:
    limiter = RateLimiter("2/s", name="search", clock=clock)
    bound = limiter.bound(key=lambda user: user)
    assert isinstance(bound, BoundLimiter)
    assert bound.limiter is limiter
    assert repr(bound) == f"<BoundLimiter of {limiter!r}>"

    @bound
    def search(user: str) -> str:
        return user

    assert search("ann") == "ann"
    assert bound.call(lambda user: user * 2, "ann") == "annann"
    with pytest.raises(RateLimitedError):
        bound.call(search, "ann")
    assert bound.call(str, "bob") == "bob"


@pytest.mark.anyio
async def test_a_bound_limiter_calls_async_functions() -> None:
    async def search(user: str, *, words: str) -> str:
        await anyio.sleep(0.1)
        return user + words

    bound = RateLimiter("1/s", name="search", clock=anyio.current_time).bound(key=lambda user, **_: user, wait=True)
    start = anyio.current_time()
    assert await bound.call(search, "ann", words="!") == "ann!"
    assert await bound.call(search, "ann", words="?") == "ann?"
    assert anyio.current_time() - start == pytest.approx(1.1)


@pytest.mark.parametrize("function", [None, 5, "search"])
def test_what_cannot_be_called_is_refused(function: Any) -> None:
    bound = RateLimiter("1/s", name="search").bound()
    assert refusal(bound.call, function) == f"function must be callable, got {function!r}: pass the function itself"
