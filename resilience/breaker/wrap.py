"""How each kind of function is guarded, and the two ways to guard what is no function: permits and blocks."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from types import FunctionType, TracebackType
from typing import Any, Final, TypeVar, cast

from resilience.checks import code_of, is_async, shown
from resilience.errors import ConfigurationError

from .classify import NEUTRAL, SUCCESS
from .core import Call
from .gate import NO_RESULT, Gate

T = TypeVar("T")

_NOT_PLAIN: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def guarded(gate: Gate, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what `function` does, through the gate; a bare one, without its name and docs."""
    if type(function) is FunctionType and not function.__code__.co_flags & _NOT_PLAIN and not is_async(function):
        return _guard_function(gate, function)  # nearly all; the other questions take as long as a call
    code = code_of(function)
    if is_async(function):
        return _guard_coroutine(gate, function)
    if inspect.isasyncgenfunction(code):
        return _guard_async_generator(gate, function)
    if inspect.isgeneratorfunction(code):
        return _guard_generator(gate, function)
    return _guard_function(gate, function)


def _admission(gate: Gate) -> Callable[[], Call]:
    return gate.admit if gate.config.slow_call_duration is None else gate.admit_timed


def _guard_coroutine(gate: Gate, function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    admit, succeed, fail = _admission(gate), gate.succeed, gate.fail

    async def guarded(*args: Any, **kwargs: Any) -> T:
        call = admit()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            fail(call, error)
            raise
        succeed(call, result)
        return result

    return guarded


def _guard_function(gate: Gate, function: Callable[..., T]) -> Callable[..., T]:
    admit, succeed, fail = _admission(gate), gate.succeed, gate.fail

    def guarded(*args: Any, **kwargs: Any) -> T:
        call = admit()
        try:
            result = function(*args, **kwargs)
            is_awaitable = hasattr(type(result), "__await__") and isinstance(result, Awaitable)
        except BaseException as error:
            fail(call, error)
            raise
        if is_awaitable:  # async after all: the call ends with the await
            return cast("T", _awaited(gate, call, cast("Awaitable[Any]", result)))
        succeed(call, result)
        return result

    return guarded


def _awaited(gate: Gate, call: Call, awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    """Return a coroutine that ends the call when `awaitable` does; dropped without an await, it gives it back."""
    permit = Permit(gate, call)

    async def finish() -> T:
        try:
            result = await awaitable
        except BaseException as error:
            permit.failure(error)
            raise
        permit.success(result)
        return result

    coroutine = finish()
    weakref.finalize(coroutine, permit.drop).atexit = False
    return coroutine


# Streams have a `Call` of their own (`admit_timed`): the time of the first item is noted in it.


def _guard_generator(
    gate: Gate, function: Callable[..., Generator[Any, Any, Any]]
) -> Callable[..., Generator[Any, Any, Any]]:
    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call = gate.admit_timed()
        thrown: BaseException | None
        try:
            source = function(*args, **kwargs)
            item = next(source)
            _note_first_item(gate, call)
            while True:
                sent = thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    source.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, for the source to handle
                    thrown = error
                # Outside of the except block: what the source raises later has nothing to do with this error.
                item = source.send(sent) if thrown is None else source.throw(thrown)
        except StopIteration as stop:
            gate.settle(call, SUCCESS)
            return stop.value
        except GeneratorExit:  # the consumer left: with what it wanted, or before there was anything
            gate.settle(call, NEUTRAL if call.first_item_at is None else SUCCESS)
            raise
        except BaseException as error:
            gate.fail(call, error)
            raise
        finally:
            thrown = None  # it would keep the frames that it came through alive, and they this one

    return guarded


def _guard_async_generator(
    gate: Gate, function: Callable[..., AsyncGenerator[Any, Any]]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = gate.admit_timed()
        thrown: BaseException | None
        try:
            source = function(*args, **kwargs)
            item = await anext(source)
            _note_first_item(gate, call)
            while True:
                sent = thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    await source.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, for the source to handle
                    thrown = error
                item = await (source.asend(sent) if thrown is None else source.athrow(thrown))
        except StopAsyncIteration:
            gate.settle(call, SUCCESS)
        except GeneratorExit:  # the consumer left: with what it wanted, or before there was anything
            gate.settle(call, NEUTRAL if call.first_item_at is None else SUCCESS)
            raise
        except BaseException as error:
            gate.fail(call, error)
            raise
        finally:
            thrown = None  # it would keep the frames that it came through alive, and they this one

    return guarded


def _note_first_item(gate: Gate, call: Call) -> None:
    gate.act(lambda now: gate.core.first_item(call, now))


def check_guardable(function: object) -> None:
    """Refuse to decorate what is no function.

    Raises:
        ConfigurationError: a class, a classmethod or staticmethod object, or nothing that can be called.
    """
    if isinstance(function, staticmethod | classmethod):
        raise ConfigurationError(
            f"a circuit breaker guards functions: put it below @{type(function).__name__}, not above"
        )
    if isinstance(function, type):
        raise ConfigurationError(f"a circuit breaker guards functions, got {shown(function)}: decorate its methods")
    if not callable(function):
        raise ConfigurationError(f"a circuit breaker guards functions, got {shown(function)}")


class Permit:
    """The right to make one call, and the duty to report its end once. Given by `CircuitBreaker.acquire`."""

    __slots__ = ("_calls", "_gate")

    def __init__(self, gate: Gate, call: Call) -> None:
        self._gate = gate
        self._calls = [call]  # popped in one atomic step: of two threads that settle at once, one is told

    @property
    def settled(self) -> bool:
        """Whether the end was reported."""
        return not self._calls

    def success(self, result: object = NO_RESULT) -> None:
        """Report that the callee answered; `failure_result` is asked about `result` if there is one.

        Raises:
            RuntimeError: the permit was settled before.
        """
        self._gate.succeed(self._take(), result)

    def failure(self, error: BaseException) -> None:
        """Report what the callee raised; the configuration decides what it means.

        Raises:
            ConfigurationError: `error` is no exception; the permit is still to be settled.
            RuntimeError: the permit was settled before.
        """
        if not isinstance(error, BaseException):
            raise ConfigurationError(f"error must be the exception that the call raised, got {shown(error)}")
        self._gate.fail(self._take(), error)

    def release(self) -> None:
        """Give the permit back unused: nothing was learned about the callee.

        Raises:
            RuntimeError: the permit was settled before.
        """
        self._gate.settle(self._take(), NEUTRAL)

    def drop(self) -> None:
        """Release the permit if it is not settled; for a holder that may have been forgotten."""
        if not self.settled:
            self.release()

    def _take(self) -> Call:
        try:
            return self._calls.pop()
        except IndexError:
            raise RuntimeError(f"a permit of circuit breaker {self._gate.name!r} was settled twice") from None

    def __repr__(self) -> str:
        return f"<Permit of {self._gate.name!r}, {'settled' if self.settled else 'in flight'}>"


class Guard:
    """One guarded block, for `with` and `async with`. Given by `CircuitBreaker.guard`."""

    __slots__ = ("_gate", "_permit")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        if self._permit is not None:
            raise RuntimeError(
                f"this guard of circuit breaker {self._gate.name!r} was entered before: call guard() for each block"
            )
        self._permit = Permit(self._gate, self._gate.admit())
        return self._permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        permit = self._permit
        if permit is None or permit.settled:
            return
        if error is None:
            permit.success()
        else:
            permit.failure(error)

    async def __aenter__(self) -> Permit:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)
