from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

from resilience.errors import CircuitOpenError, ConfigurationError
from resilience.events import Event, FallbackUsed, PolicyHookFailed, capture
from resilience.policies import Fallback

pytestmark = pytest.mark.anyio


class Callee:
    """Raises, or returns, what it was given; `call` in sync and in async code."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome

    def plain(self) -> object:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def awaited(self) -> object:
        return self.plain()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a callee through a fallback: `await ask(fallback, outcome)`."""

    async def ask(fallback: Fallback, outcome: object) -> object:
        callee = Callee(outcome)
        if request.param == "sync":
            return fallback.call(callee.plain)
        return await fallback.call(callee.awaited)

    return ask


class Closable:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


# --- what answers ---


async def test_a_result_passes(ask: Callable[..., Any]) -> None:
    result = object()
    with capture() as events:
        assert await ask(Fallback("spare"), result) is result
    assert not events


async def test_a_value_answers_for_an_error(ask: Callable[..., Any]) -> None:
    value = object()
    with capture(Event) as events:
        assert await ask(Fallback(value, name="f", clock=lambda: 7.0), ValueError("no")) is value
    (event,) = events
    assert isinstance(event, FallbackUsed)
    assert (event.name, event.at, event.error_type) == ("f", 7.0, "ValueError")


@pytest.mark.parametrize("value", [None, False, 0, "", ()])
async def test_an_empty_value_answers(ask: Callable[..., Any], value: object) -> None:
    assert await ask(Fallback(value), ValueError()) is value


async def test_a_function_gets_the_error(ask: Callable[..., Any]) -> None:
    error = ValueError("no")
    got: list[object] = []

    def answer(error: object) -> str:
        got.append(error)
        return "spare"

    assert await ask(Fallback(answer), error) == "spare"
    assert got == [error]


async def test_a_function_without_arguments_gets_none(ask: Callable[..., Any]) -> None:
    assert await ask(Fallback(lambda: "spare"), ValueError()) == "spare"


async def test_a_function_that_may_take_the_error_gets_it(ask: Callable[..., Any]) -> None:
    error = ValueError()
    assert await ask(Fallback(lambda error=None: error), error) is error
    assert await ask(Fallback(lambda *errors: errors), error) == (error,)


async def test_partials_methods_and_objects_are_functions(ask: Callable[..., Any]) -> None:
    class Answers:
        def method(self, error: Exception) -> object:
            return type(error)

        def __call__(self) -> str:
            return "called"

    def both(first: int, error: Exception) -> tuple[int, type]:
        return first, type(error)

    assert await ask(Fallback(Answers().method), ValueError()) is ValueError
    assert await ask(Fallback(Answers()), ValueError()) == "called"
    assert await ask(Fallback(partial(both, 1)), ValueError()) == (1, ValueError)


async def test_a_type_gives_a_fresh_object(ask: Callable[..., Any]) -> None:
    """`list(error)` would be an error of its own."""
    fallback = Fallback(list)
    first, second = await ask(fallback, ValueError()), await ask(fallback, ValueError())
    assert first == second == []
    assert first is not second
    assert await ask(Fallback(dict), ValueError()) == {}


async def test_a_type_that_needs_the_error_gets_it(ask: Callable[..., Any]) -> None:
    class Answer:
        def __init__(self, error: Exception) -> None:
            self.error = error

    error = ValueError()
    assert (await ask(Fallback(Answer), error)).error is error


async def test_an_async_function_answers_for_an_async_callee() -> None:
    async def slowly(error: Exception) -> object:
        await anyio.sleep(1)
        return type(error)

    assert await Fallback(slowly).call(Callee(ValueError()).awaited) is ValueError
    assert await Fallback(lambda error: slowly(error or LookupError())).call(Callee(ValueError()).awaited) is ValueError
    assert await Fallback(slowly, on_result=lambda _: True).call(Callee(5).awaited) is type(None)


# --- what is covered ---


@pytest.mark.parametrize(
    ("on", "covered"),
    [
        (ValueError, True),
        ((OSError, ValueError), True),
        (OSError, False),
        (lambda error: "no" in str(error), True),
        (lambda error: False, False),
    ],
)
async def test_on_says_which_errors(ask: Callable[..., Any], on: Any, covered: bool) -> None:
    error = ValueError("no")
    fallback = Fallback("spare", on=on)
    if covered:
        assert await ask(fallback, error) == "spare"
        return
    with capture() as events, pytest.raises(ValueError, match="no") as raised:
        await ask(fallback, error)
    assert raised.value is error
    assert error.__context__ is None
    assert not events


async def test_rejections_of_ours_are_covered(ask: Callable[..., Any]) -> None:
    with capture(FallbackUsed) as events:
        assert await ask(Fallback("spare"), CircuitOpenError("db", "open")) == "spare"
    assert [event.error_type for event in events] == ["resilience.CircuitOpenError"]


async def test_a_group_is_covered_if_each_of_its_errors_is(ask: Callable[..., Any]) -> None:
    nested = ExceptionGroup("", [ValueError(), ExceptionGroup("", [ValueError()])])
    mixed = ExceptionGroup("", [ValueError(), OSError()])
    assert await ask(Fallback("spare", on=ValueError), nested) == "spare"
    assert await ask(Fallback("spare", on=lambda error: isinstance(error, ValueError)), nested) == "spare"
    assert await ask(Fallback("spare", on=ExceptionGroup), mixed) == "spare"
    with pytest.raises(ExceptionGroup) as raised:
        await ask(Fallback("spare", on=ValueError), mixed)
    assert raised.value is mixed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
async def test_exits_pass(error: BaseException) -> None:
    def callee() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        Fallback("spare", on=lambda _: True).call(callee)
    assert raised.value is error


async def test_a_cancellation_passes() -> None:
    with anyio.move_on_after(1) as scope:
        await Fallback("spare", on=lambda _: True).call(anyio.sleep, 10)
        pytest.fail("went on")
    assert scope.cancelled_caught
    assert anyio.current_time() == 1


async def test_a_cancellation_in_the_fallback_passes() -> None:
    async def slowly() -> None:
        await anyio.sleep(10)

    with capture() as events, anyio.move_on_after(1) as scope:
        await Fallback(slowly).call(Callee(ValueError()).awaited)
    assert scope.cancelled_caught
    assert not events


# --- what goes wrong ---


async def test_the_error_of_the_fallback_has_the_callees_as_its_context(ask: Callable[..., Any]) -> None:
    def fails(_: object) -> None:
        raise LookupError("neither")

    error = ValueError("no")
    with capture() as events, pytest.raises(LookupError) as raised:
        await ask(Fallback(fails), error)
    assert raised.value.__context__ is error
    assert raised.value.__cause__ is None
    assert error.__context__ is None
    assert not events


async def test_an_async_fallback_that_fails_has_the_callees_as_its_context() -> None:
    async def fails(_: object) -> None:
        await anyio.sleep(1)
        raise LookupError("neither")

    error = ValueError("no")
    with pytest.raises(LookupError) as raised:
        await Fallback(fails).call(Callee(error).awaited)
    assert raised.value.__context__ is error


async def test_a_predicate_that_raises_lets_the_callees_error_out_unchanged(ask: Callable[..., Any]) -> None:
    error = ValueError("no")
    with capture() as events, pytest.raises(ValueError, match="no") as raised:
        await ask(Fallback("spare", on=lambda _: 1 // 0, name="f"), error)
    assert raised.value is error
    assert (error.__context__, error.__cause__, getattr(error, "__notes__", [])) == (None, None, [])
    (event,) = events
    assert isinstance(event, PolicyHookFailed)
    assert (event.name, event.hook, event.error_type) == ("f", "on", "ZeroDivisionError")


@pytest.mark.parametrize("on", [Exception, lambda _: 1 // 0])
async def test_no_frame_of_a_failed_call_is_kept(on: Any) -> None:
    class Special(Exception):  # noqa: N818 - a weak reference needs a type of its own
        pass

    gone: list[weakref.ref[Special]] = []

    def fail() -> None:
        error = Special()
        gone.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def fail_later() -> None:
        fail()

    fallback = Fallback(lambda _: "spare", on=on)
    gc.collect()
    gc.disable()
    try:
        with suppress(Special):
            fallback.call(fail)
        with suppress(Special):
            await fallback.call(fail_later)
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


# --- results ---


async def test_an_unwanted_result_is_closed_once_and_answered_for(ask: Callable[..., Any]) -> None:
    result = Closable()
    got: list[object] = []

    def answer(error: object) -> str:
        assert result.closed == 1
        got.append(error)
        return "spare"

    with capture(FallbackUsed) as events:
        assert await ask(Fallback(answer, on_result=lambda r: r is result), result) == "spare"
    assert result.closed == 1
    assert got == [None]
    assert [event.error_type for event in events] == [None]


async def test_a_wanted_result_stays_open(ask: Callable[..., Any]) -> None:
    result = Closable()
    assert await ask(Fallback("spare", on_result=lambda _: False), result) is result
    assert not result.closed


async def test_a_result_is_closed_by_its_aclose() -> None:
    class AsyncClosable(Closable):
        async def aclose(self) -> None:
            await anyio.sleep(1)
            self.closed += 10

    result = AsyncClosable()
    assert await Fallback("spare", on_result=lambda _: True).call(Callee(result).awaited) == "spare"
    assert result.closed == 10


async def test_a_result_is_kept_when_its_predicate_raises(ask: Callable[..., Any]) -> None:
    result = Closable()
    with capture() as events:
        assert await ask(Fallback("spare", on_result=lambda _: bool(1 // 0)), result) is result
    assert not result.closed
    assert [event.as_dict()["hook"] for event in events] == ["on_result"]


async def test_the_error_of_a_fallback_for_a_result_goes_out(ask: Callable[..., Any]) -> None:
    def fails() -> None:
        raise LookupError("neither")

    result = Closable()
    with capture() as events, pytest.raises(LookupError) as raised:
        await ask(Fallback(fails, on_result=lambda _: True), result)
    assert raised.value.__context__ is None
    assert result.closed == 1
    assert not events


# --- how it is put up ---


async def test_it_decorates() -> None:
    @Fallback("spare")
    async def fetch(number: int) -> str:
        """Fetch."""
        raise ValueError(number)

    @Fallback(0)
    def count(number: int) -> int:
        return number

    assert await fetch(1) == "spare"
    assert fetch.__doc__ == "Fetch."
    assert count(3) == 3


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"value_or_callable": ValueError("x")}, "must be an answer"),
        ({"value_or_callable": ValueError}, "must be an answer"),
        ({"value_or_callable": lambda a, b: None}, "must take the error, or nothing"),
        ({"value_or_callable": lambda *, key: None}, "must take the error, or nothing"),
        ({"value_or_callable": lambda: (yield)}, "must be a plain function, got the generator"),
        ({"value_or_callable": 1, "on": ()}, "on must name at least one error"),
        ({"value_or_callable": 1, "on": "ValueError"}, "on must be an exception type"),
        ({"value_or_callable": 1, "on": KeyboardInterrupt}, "on must name subclasses of Exception"),
        ({"value_or_callable": 1, "on": (ValueError, BaseException)}, "on must name subclasses of Exception"),
        ({"value_or_callable": 1, "on": anyio.sleep}, "on must be a plain function"),
        ({"value_or_callable": 1, "on_result": 5}, "on_result must be a function"),
        ({"value_or_callable": 1, "clock": 5}, "clock must be a function"),
        ({"value_or_callable": 1, "name": ""}, "name must be"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Fallback(**arguments)


async def test_an_awaitable_is_no_value() -> None:
    async def fetch() -> None: ...

    with pytest.raises(ConfigurationError, match="pass the async function itself"):
        Fallback(fetch())


async def test_an_async_generator_is_no_answer() -> None:
    async def items() -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="must be a plain function"):
        Fallback(items)


async def test_an_async_fallback_is_refused_for_a_plain_function() -> None:
    async def slowly() -> None: ...

    with pytest.raises(ConfigurationError, match=r"must be a plain function as .*plain is, got the async"):
        Fallback(slowly)(Callee(1).plain)


async def test_awaitables_of_plain_functions_are_refused() -> None:
    async def fetch(*_: object) -> None: ...

    def forgets_to_wait(*_: object) -> object:
        return fetch()

    with pytest.raises(ConfigurationError, match="got an awaitable from a plain function"):
        Fallback("spare").call(forgets_to_wait)
    with pytest.raises(ConfigurationError, match="got an awaitable from a plain function"):
        Fallback(forgets_to_wait).call(Callee(ValueError()).plain)


def test_the_repr_tells_no_value() -> None:
    assert repr(Fallback("secret")) == "<Fallback to str>"
    assert repr(Fallback(Callee(1).plain)).endswith("Callee.plain>")
