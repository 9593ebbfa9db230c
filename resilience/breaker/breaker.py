"""The circuit breaker that programs hold: a lock, a clock and events around the core, and every way in.

All ways in (decorator, `call`, `guard`, `acquire`) admit through `_admit` and settle through `_succeed`, `_fail` or
`_settle`: one classification for all of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

from resilience.checks import check_function, check_int, check_name, check_number, code_of, is_async, shown
from resilience.clock import Clock
from resilience.errors import CircuitOpenError, ConfigurationError, type_name
from resilience.events import (
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    CircuitStateChanged,
    Outbox,
    PredicateFailed,
    ProbeExpired,
    ThresholdExceeded,
)

from .classify import FAILURE, NEUTRAL, SUCCESS, PredicateFailure, Verdict, make_judge
from .config import CircuitBreakerConfig, CircuitState
from .core import BreakerCore, Call, Exceeded, Moved, Trigger, seconds_until

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DUMP_FORMAT: Final = 1

_MOST_ASKS: Final = 8
"""In a row: a function that is asked for the open time may itself open the circuit, but not for ever."""


@dataclass(frozen=True, slots=True)
class CircuitBreakerSnapshot:
    """A circuit breaker at one moment.

    Attributes:
        name: the breaker's name.
        state: its `CircuitState`.
        era: number of the present stretch between two state changes, from 1.
        calls, failures, slow_calls: what the window holds; in OPEN what the window held that opened it; in HALF_OPEN
            the results of the probes so far.
        failure_rate, slow_call_rate: shares of `calls`; None below `minimum_calls` and in HALF_OPEN.
        rejected: calls refused over the breaker's life.
        late: results over its life that came after their era, or from probes that had been replaced.
        in_flight: admitted calls that have not ended, over all eras.
        retry_after: seconds after which a caller refused now should ask again; None if none is refused, or none knows.
        reopen_attempt: how often it reopened since it was closed.
    """

    name: str
    state: CircuitState
    era: int
    calls: int
    failures: int
    slow_calls: int
    failure_rate: float | None
    slow_call_rate: float | None
    rejected: int
    late: int
    in_flight: int
    retry_after: float | None
    reopen_attempt: int


class CircuitBreaker:
    """Stops calling what keeps failing, and finds out carefully when it is well again.

    One object serves any number of tasks and threads; sharing it is how callers share what they learn. Nothing runs
    in the background: the time to probe is noticed by the next call.

        breaker = CircuitBreaker("payments", failure_rate_threshold=0.3)

        @breaker
        async def pay(order: Order) -> Receipt: ...

    Args:
        name: in events, errors and logs.
        config: how to judge; None is `CircuitBreakerConfig()`.
        clock: monotonic seconds, read outside of the lock.
        rng: for the jitter of the open time; None makes one of its own.
        overrides: fields of the configuration, in place of `config`'s.

    Raises:
        ConfigurationError: a field makes no sense, or does not exist.
    """

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        **overrides: Any,
    ) -> None:
        check_name(name)
        check_function("clock", clock)
        self._name = name
        self._config = merged(CircuitBreakerConfig() if config is None else config, overrides)
        self._clock = clock
        self._judge = make_judge(self._config)
        self._failure_result = self._config.failure_result
        self._last_error_type: str | None = None
        # Guards `_core`, `_last_error_type` and the order of `_outbox`. Held around synchronous functions of ours
        # only: no await, no sink, no function of the user's runs under it. The garbage collector may, though: it
        # closes an abandoned generator, or runs a `__del__`, between any two steps of the thread that holds the lock.
        # Hence the lock is reentrant, or that thread would wait for itself; and what such an intruder settles is put
        # off (`_deferred`) while a step is under way (`_busy`).
        self._lock = threading.RLock()
        self._busy = False
        self._deferred: deque[Callable[[], None]] = deque()
        self._outbox = Outbox()
        self._pending = self._outbox.pending
        self._asking = False
        self._opened: CircuitStateChanged | None = None  # the latest, whose open time a function may still give
        self._core = BreakerCore(self._config, clock(), (rng or random.Random()).random)  # noqa: S311 - jitter is no secret
        if self._core.unasked is not None:
            self._tell(clock())

    @property
    def name(self) -> str:
        """What it is called in events, errors and logs."""
        return self._name

    @property
    def config(self) -> CircuitBreakerConfig:
        """How it judges."""
        return self._config

    @property
    def state(self) -> CircuitState:
        """The state that it is in; OPEN turns HALF_OPEN with the next call, not by itself."""
        return self._core.state

    def __repr__(self) -> str:
        snapshot = self._do(self._read)
        known = [] if snapshot.failure_rate is None else [f"{snapshot.failure_rate:.0%} failed"]
        known += [f"{snapshot.calls} calls", f"{snapshot.in_flight} in flight"]
        if snapshot.retry_after is not None:
            known.append(f"retry in {snapshot.retry_after:.3g} s")
        return f"<CircuitBreaker {self._name!r} {snapshot.state.replace('_', '-')}, {', '.join(known)}>"

    # --- ways in ---

    def __call__(self, function: F) -> F:
        """Guard `function`: a def, async def, generator or async generator function, whose kind and types it keeps.

        Every call is admitted and settled by itself. Generators are admitted when they start and judged when they end:
        slow is how long the first item took; a consumer that leaves early is a success after the first item.

        Raises:
            ConfigurationError: not a function (a class, a classmethod object), or guarded by this breaker already.
            CircuitOpenError: from the guarded function, when the circuit refuses the call.

        Cancellation: goes through unchanged. It says nothing about the callee, except that it was slow if it was.
        """
        check_guardable(function)
        if getattr(function, "circuit_breaker", None) is self:
            raise ConfigurationError(f"circuit breaker {self._name!r} guards {function!r} already")
        guarded: Any = functools.update_wrapper(self._guarded(function), function)
        guarded.circuit_breaker = self
        return cast("F", guarded)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` through the circuit, and give what it gives: the result, or the awaitable of an async one.

        Raises:
            ConfigurationError: `function` is not callable.
            CircuitOpenError: the circuit refuses; `function` was not called.
        """
        if not callable(function):
            raise ConfigurationError(f"function must be callable, got {shown(function)}")
        return cast("T", self._guarded(function)(*args, **kwargs))

    def guard(self) -> Guard:
        """Give a context manager, for `with` and `async with`, whose block is one call.

        Each use needs a guard of its own, so that tasks may interleave. The block may settle the permit that it gets
        itself; otherwise its end decides.

            async with breaker.guard() as permit:
                response = await client.get(url)
                if response.status_code >= 500:
                    permit.failure(ServerError(response.status_code))

        Raises:
            CircuitOpenError: on entry, when the circuit refuses.
            RuntimeError: on entry, when this guard was entered before.
        """
        return Guard(self)

    def acquire(self) -> Permit:
        """Ask to make one call, and report its end with the permit that this gives.

        For calls whose start and end lie in different functions; elsewhere `guard` is safer, since a permit that is
        never settled counts as in flight for ever (as a probe, until its lease is over).

        Raises:
            CircuitOpenError: the circuit refuses.
        """
        return Permit(self, self._admit_timed())

    def would_allow(self) -> bool:
        """Tell whether a call would be let in now. A pure read: no permit is taken, nothing is counted or moved."""
        return self._do(self._core.would_admit)

    # --- what people decide ---

    def trip(self) -> None:
        """Open the circuit for the open time; in OPEN that starts anew, in HALF_OPEN it is one more reopening."""
        self._order(Trigger.TRIP)

    def force_open(self) -> None:
        """Refuse all calls until somebody decides otherwise."""
        self._order(Trigger.FORCE_OPEN)

    def disable(self) -> None:
        """Let all calls pass uncounted until somebody decides otherwise; their events are still told."""
        self._order(Trigger.DISABLE)

    def metrics_only(self) -> None:
        """Let all calls pass, count them, and tell which thresholds would have opened the circuit."""
        self._order(Trigger.METRICS_ONLY)

    def reset(self) -> None:
        """Close the circuit and forget the window."""
        self._order(Trigger.RESET)

    def _order(self, trigger: Trigger, *, open_for: float | None = None, attempt: int | None = None) -> None:
        def order(now: float) -> None:
            reason = None if attempt is None else "restored"
            self._core.order(trigger, now, reason=reason, open_for=open_for)
            if attempt is not None:
                self._core.reopen_attempt = attempt

        self._do(order)

    # --- reading and keeping ---

    def snapshot(self) -> CircuitBreakerSnapshot:
        """Give the numbers of this moment. Calls that have become overdue are seen, which may open the circuit."""

        def look(now: float) -> CircuitBreakerSnapshot:
            self._core.look(now)
            return self._read(now)

        return self._do(look)

    def _read(self, now: float) -> CircuitBreakerSnapshot:
        core = self._core
        counts = core.counts(now)
        return CircuitBreakerSnapshot(
            name=self._name,
            state=core.state,
            era=core.era,
            calls=counts.calls,
            failures=counts.failures,
            slow_calls=counts.slow,
            failure_rate=counts.failure_rate,
            slow_call_rate=counts.slow_call_rate,
            rejected=core.rejected(),
            late=core.late,
            in_flight=core.in_flight(),
            retry_after=core.retry_after(now),
            reopen_attempt=core.reopen_attempt,
        )

    def dump(self) -> dict[str, object]:
        """Give the state as a small JSON-able dict, for `restore` after a restart or elsewhere.

        Keys: "format" (1), "state", "remaining" (seconds until the first probe; clocks differ between processes, what
        is left does not) and "reopen_attempt". The window is not kept: what was counted before a restart is old news.
        """
        snapshot = self._do(self._read)
        is_open = snapshot.state is CircuitState.OPEN
        return {
            "format": DUMP_FORMAT,
            "state": snapshot.state.value,
            "remaining": snapshot.retry_after if is_open else 0.0,
            "reopen_attempt": snapshot.reopen_attempt,
        }

    def restore(self, dumped: Mapping[str, object]) -> None:
        """Take over a dumped state. HALF_OPEN becomes OPEN with no time left: its probes did not come along.

        Raises:
            ConfigurationError: not a dump, or of another format; nothing was changed.
        """
        state, remaining, attempt = _read_dump(dumped)
        order = {
            CircuitState.CLOSED: Trigger.RESET,
            CircuitState.OPEN: Trigger.TRIP,
            CircuitState.HALF_OPEN: Trigger.TRIP,
            CircuitState.FORCED_OPEN: Trigger.FORCE_OPEN,
            CircuitState.DISABLED: Trigger.DISABLE,
            CircuitState.METRICS_ONLY: Trigger.METRICS_ONLY,
        }[state]
        if state is CircuitState.HALF_OPEN:
            remaining = 0.0
        self._order(order, open_for=remaining if order is Trigger.TRIP else None, attempt=attempt)

    # --- admitting and settling ---

    def _admit(self) -> Call:
        """Let a call in whose start nobody needs, or else go the longer way. Lock-free where it can be.

        In CLOSED without slow calls, one shared `Call` stands for all calls of the era, and an admission is one step
        of a counter; a state that changes meanwhile makes this call's result a late one, as for any other call.
        """
        core = self._core
        call = core.untimed
        if call is None or CallSucceeded.sinks or CallFailed.sinks or CallIgnored.sinks:
            return self._admit_timed()
        next(core.admissions)
        return call

    def _admit_timed(self) -> Call:
        """Let a call in, or refuse it.

        Lock-free while no running call can have become slow; and in OPEN while nobody listens, when there is nothing
        to do but to say no.
        """
        now = self._clock()
        core = self._core
        watch = core.watch
        if watch is not None and now < watch.due:
            call = Call(watch.era, now)
            watch.calls[call] = None
            next(core.admissions)
            return call
        open_until = core.open_until
        if now < open_until and not CallRejected.sinks:
            next(core.refusals)
            retry_after = seconds_until(open_until, now)
            raise CircuitOpenError(self._name, CircuitState.OPEN, retry_after, self._last_error_type)
        return self._admit_looking(now)

    def _admit_looking(self, now: float) -> Call:
        core = self._core
        state, retry_after = core.state, None
        with self._lock:
            intruding, self._busy = self._busy, True
            try:
                call = core.admit(now)
                if core.news:
                    self._gather(now)  # what led to a refusal is told before it
                if call is None:
                    state, retry_after = core.state, core.retry_after(now)
                    if CallRejected.sinks:
                        self._outbox.put(CallRejected(self._name, now, state, retry_after))
            finally:
                self._busy = intruding
        if self._pending or core.unasked or self._deferred:
            try:
                self._tell(now)
            except BaseException:  # a sink was interrupted, by Ctrl-C say: this call will not be made
                if call is not None:
                    self._settle(call, NEUTRAL)
                raise
        if call is None:
            raise CircuitOpenError(self._name, state, retry_after, self._last_error_type)
        return call

    def _succeed(self, call: Call, result: object) -> None:
        """Settle a call that returned; its result may still be a failure. Lock-free where nothing would change."""
        core = self._core
        if self._failure_result is None and call is core.saturated:
            next(core.endings)
            return
        if self._failure_result is not None or CallSucceeded.sinks:
            self._settle_result(call, result)
            return
        now = self._clock()
        with self._lock:  # `_settle` written out, without what a quiet success does not need
            if self._busy:
                self._deferred.append(lambda: self._settle(call, SUCCESS))
                return
            self._busy = True
            try:
                core.settle(call, SUCCESS, now)
                if core.news:
                    self._gather(now)
            finally:
                self._busy = False
        if self._pending or core.unasked or self._deferred:
            self._tell(now)

    def _settle_result(self, call: Call, result: object) -> None:
        verdict, failed = SUCCESS, None
        try:
            if self._failure_result is not None and self._failure_result(result):
                verdict = FAILURE
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything; the call keeps its result
            verdict, failed = FAILURE, ("failure_result", type_name(error))
        except BaseException:
            self._settle(call, NEUTRAL)
            raise
        self._settle(call, verdict, None, failed)

    def _fail(self, call: Call, error: BaseException) -> None:
        """Settle a call that raised; the caller re-raises."""
        try:
            verdict, failed = self._judge(error)
        except BaseException:
            self._settle(call, NEUTRAL)
            raise
        self._settle(call, verdict, type_name(error), failed)

    def _settle(
        self,
        call: Call,
        verdict: Verdict,
        error_type: str | None = None,
        failed: PredicateFailure | None = None,
    ) -> None:
        def settle(now: float) -> None:
            slow = self._core.settle(call, verdict, now)
            if verdict is FAILURE:
                self._last_error_type = error_type
            if failed is not None and PredicateFailed.sinks:
                self._outbox.put(PredicateFailed(self._name, now, *failed))
            if not math.isnan(call.started):  # a call that began before anybody listened was not timed
                self._put_end(verdict, now, now - call.started, error_type, slow=slow)

        with self._lock:
            if self._busy:
                self._deferred.append(lambda: self._settle(call, verdict, error_type, failed))
                return
        self._do(settle)

    def _put_end(self, verdict: Verdict, now: float, duration: float, error_type: str | None, *, slow: bool) -> None:
        if verdict is FAILURE:
            if CallFailed.sinks:
                self._outbox.put(CallFailed(self._name, now, duration, slow, error_type))
        elif verdict is SUCCESS:
            if CallSucceeded.sinks:
                self._outbox.put(CallSucceeded(self._name, now, duration, slow))
        elif CallIgnored.sinks:
            self._outbox.put(CallIgnored(self._name, now, duration, error_type))

    def _do(self, step: Callable[[float], T]) -> T:
        """Do one thing to the core, undisturbed: by other threads, and by intruders, whose settlements wait."""
        now = self._clock()
        with self._lock:
            intruding, self._busy = self._busy, True
            try:
                done = step(now)
                self._gather(now)
            finally:
                self._busy = intruding
        self._tell(now)
        return done

    # --- telling ---

    def _gather(self, now: float) -> None:
        """Turn the core's news into events in the outbox; the lock is held, so their order is the order of things."""
        for one in self._core.news:
            if isinstance(one, Moved):
                self._opened = None
                if CircuitStateChanged.sinks:
                    event = _state_changed(self._name, now, one)
                    self._outbox.put(event)
                    self._opened = event if one.after is CircuitState.OPEN else None
            elif isinstance(one, Exceeded):
                if ThresholdExceeded.sinks:
                    self._outbox.put(ThresholdExceeded(self._name, now, one.threshold.value, one.rate, one.calls))
            elif ProbeExpired.sinks:
                self._outbox.put(ProbeExpired(self._name, now, one.age))
        self._core.news.clear()

    def _tell(self, now: float) -> None:
        """Do what waits for the lock to be free: deferred settlements, the user's open time, delivery of events."""
        if self._busy or self._asking:
            return  # whoever is at it does this afterwards
        while self._deferred:
            with contextlib.suppress(IndexError):  # another thread took it
                self._deferred.popleft()()
        for _ in range(_MOST_ASKS):
            if self._core.unasked is None:
                break
            self._ask_open_time(now)
        if self._pending:
            self._outbox.deliver()

    def _ask_open_time(self, now: float) -> None:
        """Ask the user's function how long to stay open; the cap holds until it answers, and if it fails.

        Events wait for the answer: the one of the opening tells it.
        """
        with self._lock:
            unasked, self._core.unasked = self._core.unasked, None
            if unasked is None:
                return  # another thread asks
            self._asking = True
        opening, attempt = unasked
        failed: str | None = None
        try:
            seconds: object = cast("Callable[[int], float]", self._config.open_duration)(attempt)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                failed = "TypeError"
            elif math.isnan(min(seconds, self._config.max_open_duration)):
                failed = "ValueError"
            else:
                self._apply_open_time(opening, seconds)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything; the circuit stays open
            failed = type_name(error)
        finally:
            self._asking = False
        if failed is not None and PredicateFailed.sinks:
            with self._lock:
                self._outbox.put(PredicateFailed(self._name, now, "open_duration", failed))

    def _apply_open_time(self, opening: int, seconds: float) -> None:
        with self._lock:
            open_for = self._core.set_open_time(opening, seconds)
            if self._opened is not None and open_for is not None:
                self._opened.open_for = open_for

    # --- one wrapper for each kind of function ---

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        code = code_of(function)
        if is_async(function):
            return self._guard_coroutine(function)
        if inspect.isasyncgenfunction(code):
            return self._guard_async_generator(function)
        if inspect.isgeneratorfunction(code):
            return self._guard_generator(function)
        return self._guard_function(function)

    def _guard_coroutine(self, function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        admit = self._admit if self._config.slow_call_duration is None else self._admit_timed
        succeed, fail = self._succeed, self._fail

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

    def _guard_function(self, function: Callable[..., T]) -> Callable[..., T]:
        admit = self._admit if self._config.slow_call_duration is None else self._admit_timed
        succeed, fail = self._succeed, self._fail

        def guarded(*args: Any, **kwargs: Any) -> T:
            call = admit()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                fail(call, error)
                raise
            if hasattr(type(result), "__await__"):  # async after all: the call ends with the await
                return cast("T", self._awaited(call, cast("Awaitable[Any]", result)))
            succeed(call, result)
            return result

        return guarded

    def _awaited(self, call: Call, awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
        """Give a coroutine that ends the call when `awaitable` does; dropped without an await, it gives it back."""
        permit = Permit(self, call)

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

    def _guard_generator(
        self, function: Callable[..., Generator[Any, Any, Any]]
    ) -> Callable[..., Generator[Any, Any, Any]]:
        def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            call = self._admit_timed()
            answered = False
            thrown: BaseException | None
            try:
                source = function(*args, **kwargs)
                item = next(source)
                answered = self._answer(call)
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
                self._settle(call, SUCCESS)
                return stop.value
            except GeneratorExit:  # the consumer left: with what it wanted, or before there was anything
                self._settle(call, SUCCESS if answered else NEUTRAL)
                raise
            except BaseException as error:
                self._fail(call, error)
                raise
            finally:
                thrown = None  # it would keep the frames that it came through alive, and they this one

        return guarded

    def _guard_async_generator(
        self, function: Callable[..., AsyncGenerator[Any, Any]]
    ) -> Callable[..., AsyncGenerator[Any, Any]]:
        async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            call = self._admit_timed()
            answered = False
            thrown: BaseException | None
            try:
                source = function(*args, **kwargs)
                item = await anext(source)
                answered = self._answer(call)
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
                self._settle(call, SUCCESS)
            except GeneratorExit:  # the consumer left: with what it wanted, or before there was anything
                self._settle(call, SUCCESS if answered else NEUTRAL)
                raise
            except BaseException as error:
                self._fail(call, error)
                raise
            finally:
                thrown = None  # it would keep the frames that it came through alive, and they this one

        return guarded

    def _answer(self, call: Call) -> bool:
        """Note that a stream gave its first item."""
        self._do(lambda now: self._core.answer(call, now))
        return True


def check_guardable(function: object) -> None:
    """Refuse to decorate what is no function.

    Raises:
        ConfigurationError: a class, a classmethod or staticmethod object, or nothing that can be called.
    """
    if isinstance(function, staticmethod | classmethod):
        raise ConfigurationError(
            f"a circuit breaker guards functions: put it below @{type(function).__name__}, not above"
        )
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(f"a circuit breaker guards functions, got {shown(function)}")


def is_as_new(breaker: CircuitBreaker) -> bool:
    """Tell whether a new breaker of the same configuration would do the same."""
    return breaker._do(breaker._core.is_as_new)  # noqa: SLF001 - not for users: what it says is of use to a registry only


class Permit:
    """The right to make one call, and the duty to report its end once. Given by `CircuitBreaker.acquire`."""

    __slots__ = ("_breaker", "_calls")

    def __init__(self, breaker: CircuitBreaker, call: Call) -> None:
        self._breaker = breaker
        self._calls = [call]  # popped in one atomic step: of two threads that settle at once, one is told

    @property
    def settled(self) -> bool:
        """Whether the end was reported."""
        return not self._calls

    def success(self, result: object = None) -> None:
        """Report that the callee answered; `failure_result` is asked about `result`.

        Raises:
            RuntimeError: the permit was settled before.
        """
        self._breaker._succeed(self._take(), result)  # noqa: SLF001 - the permit is the breaker's other half

    def failure(self, error: BaseException) -> None:
        """Report what the callee raised; the configuration decides what it means.

        Raises:
            ConfigurationError: `error` is no exception; the permit is still to be settled.
            RuntimeError: the permit was settled before.
        """
        if not isinstance(error, BaseException):
            raise ConfigurationError(f"error must be the exception that the call raised, got {shown(error)}")
        self._breaker._fail(self._take(), error)  # noqa: SLF001 - the permit is the breaker's other half

    def release(self) -> None:
        """Give the permit back unused: nothing was learned about the callee.

        Raises:
            RuntimeError: the permit was settled before.
        """
        self._breaker._settle(self._take(), NEUTRAL)  # noqa: SLF001 - the permit is the breaker's other half

    def drop(self) -> None:
        """Release the permit if it is not settled; for a holder that may have been forgotten."""
        if not self.settled:
            self.release()

    def _take(self) -> Call:
        try:
            return self._calls.pop()
        except IndexError:
            raise RuntimeError(f"a permit of circuit breaker {self._breaker.name!r} was settled twice") from None

    def __repr__(self) -> str:
        return f"<Permit of {self._breaker.name!r}, {'settled' if self.settled else 'in flight'}>"


class Guard:
    """One guarded block, for `with` and `async with`. Given by `CircuitBreaker.guard`."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        if self._permit is not None:
            raise RuntimeError(
                f"this guard of circuit breaker {self._breaker.name!r} was entered before: call guard() for each block"
            )
        self._permit = self._breaker.acquire()
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


def merged(config: CircuitBreakerConfig, overrides: Mapping[str, Any]) -> CircuitBreakerConfig:
    """Give `config` with some fields replaced; unknown names are refused by name.

    Raises:
        ConfigurationError: not a configuration, no such field, or a value that makes no sense.
    """
    if not isinstance(config, CircuitBreakerConfig):
        raise ConfigurationError(f"config must be a CircuitBreakerConfig, got {shown(config)}")
    for field in overrides:
        if field not in CircuitBreakerConfig.__dataclass_fields__:
            known = ", ".join(CircuitBreakerConfig.__dataclass_fields__)
            raise ConfigurationError(f"{field} must be a field of CircuitBreakerConfig: {known}")
    return replace(config, **overrides) if overrides else config


def _state_changed(name: str, now: float, moved: Moved) -> CircuitStateChanged:
    counts = moved.counts
    return CircuitStateChanged(
        name,
        now,
        from_state=moved.before,
        to_state=moved.after,
        era=moved.era,
        reason=moved.reason,
        failure_rate=counts.failure_rate,
        slow_call_rate=counts.slow_call_rate,
        calls=counts.calls,
        open_for=moved.open_for,
    )


def _read_dump(dumped: Mapping[str, object]) -> tuple[CircuitState, float, int]:
    if not isinstance(dumped, Mapping):
        raise ConfigurationError(f"dumped must be what dump() gave, got {type(dumped).__name__}")
    if dumped.get("format") != DUMP_FORMAT:
        raise ConfigurationError(f"dumped['format'] must be {DUMP_FORMAT}, got {shown(dumped.get('format'))}")
    state, remaining, attempt = dumped.get("state"), dumped.get("remaining"), dumped.get("reopen_attempt")
    if state not in [one.value for one in CircuitState]:
        raise ConfigurationError(f"dumped['state'] must be one of {', '.join(CircuitState)}, got {shown(state)}")
    check_number("dumped['remaining']", remaining, least=0)
    check_int("dumped['reopen_attempt']", attempt, least=0)
    return CircuitState(str(state)), cast("float", remaining), cast("int", attempt)
