"""What answers instead of the callee, and what it never answers."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from resilience.errors import BulkheadFullError, CircuitOpenError, ConfigurationError
from resilience.events import FallbackUsed, PolicyHookFailed, capture
from resilience.policies import Fallback

pytestmark = pytest.mark.anyio


def failing(error: BaseException) -> Any:
    async def fail() -> str:
        raise error

    return fail


def failing_sync(error: BaseException) -> Any:
    def fail() -> str:
        raise error

    return fail


async def test_a_value_or_a_function_of_the_error_or_of_nothing_answers() -> None:
    error = ConnectionError("mine")

    async def later(given: Exception) -> str:
        await anyio.sleep(1)
        return f"later: {given}"

    for answer, expected in (
        ("owls", "owls"),
        (None, None),
        (lambda given: given, error),
        (lambda: "nothing", "nothing"),
        (list, []),
        (later, "later: mine"),
    ):
        with capture(FallbackUsed) as told:
            assert await Fallback(answer).call(failing(error)) == expected
        assert [event.error_type for event in told] == ["ConnectionError"]
        if answer is not later:
            assert Fallback(answer).call(failing_sync(error)) == expected


async def test_what_goes_well_is_as_it_was() -> None:
    async def fine(value: int) -> int:
        return value

    with capture(FallbackUsed) as told:
        assert await Fallback(0)(fine)(7) == 7
        assert Fallback(0).call(lambda: 7) == 7
    assert told == []


async def test_rejections_of_ours_are_answered_and_other_errors_are_not() -> None:
    assert await Fallback(0).call(failing(BulkheadFullError("x"))) == 0
    picky = Fallback(0, on=(CircuitOpenError, KeyError))
    assert await picky.call(failing(CircuitOpenError("x", "open"))) == 0
    assert picky.call(failing_sync(KeyError())) == 0
    error = ConnectionError()
    with pytest.raises(ConnectionError) as caught:
        await picky.call(failing(error))
    assert caught.value is error
    assert caught.value.__context__ is None


async def test_a_predicate_decides() -> None:
    picky = Fallback(0, on=lambda error: "temporary" in str(error))
    assert await picky.call(failing(OSError("temporary"))) == 0
    with pytest.raises(OSError, match="for good"):
        picky.call(failing_sync(OSError("for good")))


async def test_a_predicate_that_raises_says_no_and_is_told() -> None:
    def bad(_: object) -> bool:
        raise RuntimeError

    error = OSError()
    with capture(PolicyHookFailed) as told:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the object is what counts
            await Fallback(0, on=bad).call(failing(error))
        assert Fallback(0, on_result=bad).call(lambda: 7) == 7
    assert caught.value is error
    assert [(event.hook, event.error_type) for event in told] == [("on", "RuntimeError"), ("on_result", "RuntimeError")]


async def test_a_cancellation_has_no_answer() -> None:
    with anyio.move_on_after(1) as scope:
        await Fallback(0).call(anyio.sleep, 5)
    assert scope.cancelled_caught
    with pytest.raises(KeyboardInterrupt):
        Fallback(0, on=BaseException).call(failing_sync(KeyboardInterrupt()))


async def test_what_the_answer_itself_raises_has_the_callee_s_error_for_its_context() -> None:
    error = ConnectionError()

    def bad(_: object) -> str:
        raise RuntimeError

    with pytest.raises(RuntimeError) as caught:
        await Fallback(bad).call(failing(error))
    assert caught.value.__context__ is error
    with pytest.raises(RuntimeError) as caught:
        Fallback(bad).call(failing_sync(error))
    assert caught.value.__context__ is error


async def test_results_that_are_not_wanted_are_closed_once_and_answered() -> None:
    class Response:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    class AsyncResponse(Response):
        async def aclose(self) -> None:
            self.closed += 1

    async def respond(response: Response) -> Response:
        return response

    answer: Any = "owls"
    fallback = Fallback(answer, on_result=lambda result: isinstance(result, Response))
    for response in (Response(), AsyncResponse()):
        with capture(FallbackUsed) as told:
            assert await fallback(respond)(response) == answer
        assert (response.closed, [event.error_type for event in told]) == (1, [None])
    plain = Response()
    assert fallback.call(lambda: plain) == answer
    assert plain.closed == 1


def test_bad_input_is_refused_at_once() -> None:
    async def later() -> None: ...

    slips: list[tuple[dict[str, Any], str]] = [
        ({"on": ()}, "on must name at least one error"),
        ({"on": 3}, "on must be a function"),
        ({"on_result": 3}, "on_result must be a function"),
        ({"clock": 3}, "clock must be a function"),
        ({"name": ""}, "name must be a non-empty string"),
    ]
    for options, message in slips:
        with pytest.raises(ConfigurationError, match=message):
            Fallback(0, **options)
    with pytest.raises(ConfigurationError, match="must take the error or nothing"):
        Fallback(lambda one, two: None)
    with pytest.raises(ConfigurationError, match="must be no async function"):
        Fallback(later)(failing_sync(OSError()))
    with pytest.raises(ConfigurationError, match="a fallback got an awaitable"):
        _ = Fallback(0).call(lambda: anyio.sleep(1))


def test_it_does_not_show_its_value() -> None:
    assert repr(Fallback("secret")) == "<Fallback>"
