"""An answer instead of an error: a value, or a function that finds one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from resilience.checks import check_function, is_async, is_exception_types, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError, type_name
from resilience.events import FallbackUsed, PolicyHookFailed, emit

from .calls import current_call, note_reason
from .course import leaves, single_leaf, stop_reason_of
from .discard import discard, discard_async
from .policy import Policy, Site, operation_name, refuse_awaitable


class Fallback(Policy):
    """Answers instead of a callee that failed.

        @Fallback(lambda error: read_from_disk())
        async def read() -> bytes: ...

    It belongs outside of everything else: inside a retry it would hide every failure. Rejections of our own policies
    (an open circuit, a full bulkhead) are covered as any error is; cancellations, KeyboardInterrupt and SystemExit
    never.

    Args:
        value_or_callable: the answer itself, the same object for all callers; or a function that gives it, called with
            the error, or without if it takes no argument. Async functions are for async callees.
        on: errors that are covered: a type, a tuple of types, or a predicate. A group of errors is covered if each of
            its errors is. Default Exception.
        on_result: predicate(result): True has the fallback answer instead; its function gets None then. The result
            is closed by its `aclose` or `close`, once, before the fallback is asked.
        clock: monotonic seconds, for the times that are told.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value that makes no sense.

    What the fallback's own function raises goes out, with the callee's error as its `__context__`. When a predicate
    raises, the callee's error or result goes out unchanged, and `PolicyHookFailed` is told.

    Cancellation: passes through at once, also from the fallback's function.
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
        _check_on(on)
        if on_result is not None:
            check_function("on_result", on_result)
        check_function("clock", clock)
        self._answer = _answering(value_or_callable)
        self._is_async = callable(value_or_callable) and is_async(value_or_callable)
        self.asks_function = callable(value_or_callable)
        self.on = on
        self._on_result = on_result
        self._clock = clock
        # Of a value the type only: an answer may be nobody else's business.
        value = value_or_callable
        self._told = operation_name(value) if callable(value) else type(value).__name__

    def __repr__(self) -> str:
        return f"<Fallback to {self._told}>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that calls `function`, and answers where it fails.

        Raises:
            ConfigurationError: the fallback is async, and the function is not.
        """
        if is_async(function):
            return self._around_async(function, site)
        if self._is_async:
            raise ConfigurationError(
                f"value_or_callable must be a plain function as {site.name} is, got the async {self._told}"
            )
        return self._around_sync(function, site)

    def _around_async(self, function: Callable[..., Any], site: Site) -> Callable[..., Awaitable[Any]]:
        answer = self._answer

        async def answered(*args: Any, **kwargs: Any) -> Any:
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                if not self._is_covered(error, site):
                    raise
                # In here, so that an error of the fallback has this one as its context.
                instead = answer(error)
                if inspect.isawaitable(instead):  # a lambda around an async function is one, too
                    instead = await instead
                self._tell(error, site)
                return instead
            if self._on_result is None or not self._is_unwanted(result, site):
                return result
            await discard_async(result)
            del result
            instead = answer(None)
            if inspect.isawaitable(instead):
                instead = await instead
            self._tell(None, site)
            return instead

        return answered

    def _around_sync(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        def answered(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                if not self._is_covered(error, site):
                    raise
                instead = self._answer_sync(error)
                self._tell(error, site)
                return instead
            refuse_awaitable(result, self.title)
            if self._on_result is None or not self._is_unwanted(result, site):
                return result
            discard(result)
            del result
            instead = self._answer_sync(None)
            self._tell(None, site)
            return instead

        return answered

    def _answer_sync(self, error: Exception | None) -> Any:
        answer = self._answer(error)
        refuse_awaitable(answer, self.title)
        return answer

    def _is_covered(self, error: Exception, site: Site) -> bool:
        try:
            if isinstance(error, ExceptionGroup) and not self._names_type_of(error):
                return all(self._covers(leaf) for leaf in leaves(error))
            return self._covers(error)
        except Exception as failure:  # noqa: BLE001 - the callee's own error must arrive, whatever this one is
            self._tell_hook("on", failure, site)
            return False

    def _covers(self, error: BaseException) -> bool:
        return self._names_type_of(error) or (not isinstance(self.on, type | tuple) and bool(self.on(error)))

    def _names_type_of(self, error: BaseException) -> bool:
        return isinstance(self.on, type | tuple) and isinstance(error, self.on)

    def _is_unwanted(self, result: object, site: Site) -> bool:
        try:
            return bool(self._on_result is not None and self._on_result(result))
        except Exception as failure:  # noqa: BLE001 - as above: the result is kept
            self._tell_hook("on_result", failure, site)
            return False

    def _tell(self, error: Exception | None, site: Site) -> None:
        call = current_call.get()
        if call is not None and call.stop_reason is None:
            note_reason(stop_reason_of(None if error is None else single_leaf(error)), site.work)
        if FallbackUsed.sinks:
            emit(FallbackUsed(site.name, self._clock(), error_type=None if error is None else type_name(error)))

    def _tell_hook(self, hook: str, failure: Exception, site: Site) -> None:
        if PolicyHookFailed.sinks:
            emit(PolicyHookFailed(site.name, self._clock(), hook=hook, error_type=type_name(failure)))


def _check_on(on: object) -> None:
    if not is_exception_types(on):
        if not callable(on):
            raise ConfigurationError(f"on must be an exception type, a tuple of them, or a predicate, got {shown(on)}")
        check_function("on", on)
        return
    if on == ():
        raise ConfigurationError("on must name at least one error, got ()")
    for kind in on if isinstance(on, tuple) else (on,):
        if not issubclass(kind, Exception):
            raise ConfigurationError(
                f"on must name subclasses of Exception, got {shown(kind)}: cancellations and exits always pass"
            )


def _answering(value: Any) -> Callable[[Any], Any]:
    """Give a function of the error that gives the answer, or what is awaited for it.

    Raises:
        ConfigurationError: what can be no answer.
    """
    if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
        raise ConfigurationError(
            f"value_or_callable must be an answer, got the error {shown(value)}: to raise it, pass a function that does"
        )
    if not callable(value):
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise ConfigurationError(
                f"value_or_callable must not be an awaitable, which gives one answer only, got {shown(value)}: pass "
                "the async function itself"
            )
        return lambda _: value
    if isinstance(value, type):  # `list` could take the error, but what is meant is an empty list
        return (lambda _: value()) if _accepts(value) else value
    if not is_async(value):
        check_function("value_or_callable", value)
    if _accepts(value, None):
        return value  # type: ignore[no-any-return]  # its type is the user's
    if _accepts(value):
        return lambda _: value()
    raise ConfigurationError(f"value_or_callable must take the error, or nothing, got {shown(value)}")


def _accepts(function: Callable[..., Any], *args: object) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some written in C tell nothing
        return True
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True
