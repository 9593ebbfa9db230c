"""An answer in any case: a value or a function that stands in for a callee that failed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any, ClassVar

from resilience.checks import check_function, is_async, is_exception_types, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError, type_name
from resilience.events import FallbackUsed, PolicyHookFailed, emit

from .discard import discard, discard_async
from .policy import Policy, Site, refuse_awaitable


class Fallback(Policy):
    """Answers instead of a callee that failed, was refused, or gave a result that is not wanted.

    It stands outermost: it must see the final outcome. Our own rejections count as failures here, for an open circuit
    is what fallbacks are for; cancellations never do.

        @Fallback(lambda error: cached_prices())
        async def prices() -> list[Price]: ...

    Args:
        value_or_callable: a value; or a function that gives it, called with the error (None for an unwanted result) if
            it takes an argument. Async functions are for async callees.
        on: errors that it answers: a type, a tuple of types, or a predicate. Default Exception.
        on_result: predicate(result): True is answered as a failure is. The result is closed by its `aclose` or `close`.
        clock: monotonic seconds, for the times that are told.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value that makes no sense; an async function around a plain callee.

    Cancellation: passes through; nothing answers it. What the function itself raises goes to the caller, with the
    callee's error as its context.
    """

    kind: ClassVar[str] = "fallback"
    title: ClassVar[str] = "a fallback"

    def __init__(
        self,
        value_or_callable: Any,
        *,
        on: Any = Exception,
        on_result: Callable[[Any], bool] | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if is_exception_types(on):
            if on == ():
                raise ConfigurationError("on must name at least one error, got ()")
        else:
            check_function("on", on)
        if on_result is not None:
            check_function("on_result", on_result)
        check_function("clock", clock)
        self.on = on
        self._on_result = on_result
        self._clock = clock
        self._answer = value_or_callable
        self._is_function = callable(value_or_callable)
        self._is_async = self._is_function and is_async(value_or_callable)
        self._takes_error = self._is_function and _takes_an_argument(value_or_callable)

    def __repr__(self) -> str:
        return "<Fallback>"  # never its value, which may be somebody's data

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that has an answer in any case.

        Raises:
            ConfigurationError: an async answer for a plain function.
        """
        if is_async(function):
            return self._around_async(function, site)
        if self._is_async:
            raise ConfigurationError(f"value_or_callable must be no async function, for {site.name} is a plain one")
        return self._around_sync(function, site)

    def _around_async(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        async def covered(*args: Any, **kwargs: Any) -> Any:
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                if not self._answers(error, site):
                    raise
                return await self._give(error, site)
            if self._on_result is None or not self._is_unwanted(result, site):
                return result
            await discard_async(result)
            return await self._give(None, site)

        return covered

    def _around_sync(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        def covered(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                if not self._answers(error, site):
                    raise
                return self._give_sync(error, site)
            if hasattr(type(result), "__await__"):
                refuse_awaitable(result, self.title)
            if self._on_result is None or not self._is_unwanted(result, site):
                return result
            discard(result)
            return self._give_sync(None, site)

        return covered

    async def _give(self, error: Exception | None, site: Site) -> Any:
        answer = self._give_sync(error, site)
        return await answer if self._is_async else answer

    def _give_sync(self, error: Exception | None, site: Site) -> Any:
        if FallbackUsed.sinks:
            emit(FallbackUsed(site.name, self._clock(), error_type=None if error is None else type_name(error)))
        if not self._is_function:
            return self._answer
        return self._answer(error) if self._takes_error else self._answer()

    def _answers(self, error: Exception, site: Site) -> bool:
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        return self._asked("on", self.on, error, site)

    def _is_unwanted(self, result: object, site: Site) -> bool:
        return self._on_result is not None and self._asked("on_result", self._on_result, result, site)

    def _asked(self, hook: str, predicate: Callable[[Any], bool], what: object, site: Site) -> bool:
        """Ask a predicate of the user; one that raises says no: the callee's own end goes to the caller."""
        try:
            return bool(predicate(what))
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            if PolicyHookFailed.sinks:
                emit(PolicyHookFailed(site.name, self._clock(), hook=hook, error_type=type_name(error)))
            return False


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        pass
    except ValueError:  # some functions in C have no signature; most of these take none, as `list` and `dict`
        return False
    else:
        return not isinstance(function, type)  # `dict` and `list` make something empty
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise ConfigurationError(f"value_or_callable must take the error or nothing, got {shown(function)}") from None
    return False
