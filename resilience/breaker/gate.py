"""One core, many threads: the lock, the clock and the events around the decisions of a circuit breaker.

Every way in (decorator, `call`, `guard`, `acquire`) admits and settles here, so there is one classification for all.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar, cast

from resilience.checks import check_number
from resilience.clock import Clock
from resilience.errors import CircuitOpenError, type_name
from resilience.events import (
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    CircuitStateChanged,
    PredicateFailed,
    ProbeExpired,
    ThresholdExceeded,
)
from resilience.events.bus import Outbox
from resilience.forks import renew_locks_in_child

from .classify import FAILURE, NEUTRAL, SUCCESS, PredicateFailure, Verdict, make_judge
from .config import CircuitBreakerConfig, CircuitState
from .core import BreakerCore, Call, Exceeded, Moved, seconds_until

T = TypeVar("T")

NO_RESULT: Final = object()
"""Stands for the result of a block or a stream, which have none: `failure_result` is not asked."""

_PASSING: Final = (CircuitState.CLOSED, CircuitState.METRICS_ONLY, CircuitState.DISABLED)

_MOST_ASKS: Final = 8
"""In a row: a function that is asked for the open time may itself open the circuit, but not for ever."""


class Gate:
    """Admits calls, takes in how they ended, and tells what followed."""

    def __init__(self, name: str, config: CircuitBreakerConfig, clock: Clock, rng: random.Random) -> None:
        self.name = name
        self.config = config
        self._clock = clock
        self._judge = make_judge(config)
        self._failure_result = config.failure_result
        self._last_error_type: str | None = None
        # Guards `core`, `_last_error_type` and the order of `_outbox`. Held around synchronous functions of ours only:
        # no await, no sink, no function of the user's runs under it. The garbage collector may, though: it closes an
        # abandoned generator, or runs a `__del__`, between any two steps of the thread that holds the lock. Hence the
        # lock is reentrant, or that thread would wait for itself; and what such an intruder settles or orders is put
        # off (`_deferred`) while a step is under way (`_busy`).
        self._lock = threading.RLock()
        self._busy = False
        self._deferred: deque[Callable[[float], None]] = deque()
        self._outbox = Outbox()
        self._pending = self._outbox.pending
        self._asking = False
        self._opened: CircuitStateChanged | None = None  # the latest, whose open time a function may still give
        self._rng = rng
        renew_locks_in_child(self)
        now = clock()
        check_number("clock()", now)
        self.core = BreakerCore(config, now, self._draw())
        self._after_step(now)

    def renew_locks(self) -> None:
        """Start afresh in a forked child, keeping what was counted."""
        self._lock = threading.RLock()
        self._busy = self._asking = False
        self._deferred.clear()
        self._outbox.renew_locks()

    # --- admitting ---

    def admit(self) -> Call:
        """Admit a call that need not be timed; otherwise take the timed path. Lock-free where possible.

        In CLOSED without slow calls, one shared `Call` stands for all calls of the era, and an admission is one step
        of a counter; a state that changes meanwhile makes this call's result a late one, as for any other call.

        Raises:
            CircuitOpenError: the circuit refuses.
        """
        core = self.core
        call = core.untimed
        if call is None or CallSucceeded.sinks or CallFailed.sinks or CallIgnored.sinks:
            return self.admit_timed()
        next(core.admissions)
        return call

    def admit_timed(self) -> Call:
        """Admit or refuse a call, reading the clock.

        Lock-free while no running call can have become slow; and in OPEN while nobody listens, when there is nothing
        to do but to say no.

        Raises:
            CircuitOpenError: the circuit refuses.
        """
        now = self._clock()
        core = self.core
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
            raise CircuitOpenError(self.name, CircuitState.OPEN, retry_after, self._last_error_type)
        return self._admit_locked(now)

    def _admit_locked(self, now: float) -> Call:
        core = self.core
        state, retry_after = core.state, None
        with self._lock:
            if self._busy:
                return self._admit_intruder(now)
            self._busy = True
            try:
                call = core.admit(now)
                self._gather(now)  # what led to a refusal is told before it
                if call is None:
                    state, retry_after = core.state, core.retry_after(now)
                    if CallRejected.sinks:
                        self._outbox.put(CallRejected(self.name, now, state, retry_after))
            finally:
                self._busy = False
        try:
            self._after_step(now)
        except BaseException:  # a sink was interrupted, by Ctrl-C say: this call will not be made
            if call is not None:
                self.settle(call, NEUTRAL)
            raise
        if call is None:
            raise CircuitOpenError(self.name, state, retry_after, self._last_error_type)
        return call

    def _admit_intruder(self, now: float) -> Call:
        """Decide by the state alone, for a call that a `__del__` makes in the middle of a step of its own thread."""
        core = self.core
        if core.state in _PASSING:
            next(core.admissions)
            return Call(core.era, now)
        next(core.refusals)
        raise CircuitOpenError(self.name, core.state, None, self._last_error_type)

    # --- settling ---

    def succeed(self, call: Call, result: object) -> None:
        """Settle a call that returned; its result may still be a failure. Lock-free where nothing would change."""
        core = self.core
        if self._failure_result is None and call is core.saturated:
            next(core.endings)
            return
        if self._failure_result is not None or CallSucceeded.sinks:
            self._settle_result(call, result)
            return
        now = self._clock()
        with self._lock:  # `settle` written out, without what a quiet success does not need
            if self._busy:
                self._deferred.append(lambda now: self._settle_now(call, SUCCESS, now))
                return
            self._busy = True
            try:
                core.succeed(call, now)
                if core.news:
                    self._gather(now)
            finally:
                self._busy = False
        if self._pending or core.unasked or self._deferred or core.chance is None:
            self._after_step(now)

    def _settle_result(self, call: Call, result: object) -> None:
        verdict, failed = SUCCESS, None
        try:
            if self._failure_result is not None and result is not NO_RESULT and self._failure_result(result):
                verdict = FAILURE
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything; the call keeps its result
            verdict, failed = FAILURE, ("failure_result", type_name(error))
        except BaseException:
            self.settle(call, NEUTRAL)
            raise
        self.settle(call, verdict, None, failed)

    def fail(self, call: Call, error: BaseException) -> None:
        """Settle a call that raised, as the configuration judges; the caller raises `error` again."""
        try:
            verdict, failed = self._judge(error)
            error_type = type_name(error)
        except Exception as raised:  # noqa: BLE001 - an error that cannot even be looked at; the caller gets it all the same
            verdict, failed, error_type = FAILURE, ("failure_on", type(raised).__name__), "unknown"
        except BaseException:
            self.settle(call, NEUTRAL)
            raise
        self.settle(call, verdict, error_type, failed)

    def settle(
        self,
        call: Call,
        verdict: Verdict,
        error_type: str | None = None,
        failed: PredicateFailure | None = None,
    ) -> None:
        """Take in how a call ended, and which function of the user's failed in judging it."""
        self.act(lambda now: self._settle_now(call, verdict, now, error_type, failed))

    def _settle_now(
        self,
        call: Call,
        verdict: Verdict,
        now: float,
        error_type: str | None = None,
        failed: PredicateFailure | None = None,
    ) -> None:
        slow = self.core.settle(call, verdict, now)
        if verdict is FAILURE:
            self._last_error_type = error_type
        if failed is not None and PredicateFailed.sinks:
            self._outbox.put(PredicateFailed(self.name, now, *failed))
        if not math.isnan(call.started):  # a call that began before anybody listened was not timed
            self._put_end(verdict, now, now - call.started, error_type, slow=slow)

    def _put_end(self, verdict: Verdict, now: float, duration: float, error_type: str | None, *, slow: bool) -> None:
        if verdict is FAILURE:
            if CallFailed.sinks:
                self._outbox.put(CallFailed(self.name, now, duration, slow, error_type))
        elif verdict is SUCCESS:
            if CallSucceeded.sinks:
                self._outbox.put(CallSucceeded(self.name, now, duration, slow))
        elif CallIgnored.sinks:
            self._outbox.put(CallIgnored(self.name, now, duration, error_type))

    # --- one step at a time ---

    def act(self, step: Callable[[float], None]) -> None:
        """Do one thing to the core; at the end of the other one, if this thread is in the middle of that."""
        now = self._clock()
        with self._lock:
            if self._busy:
                self._deferred.append(step)
                return
            self._busy = True
            try:
                step(now)
                while self._deferred:
                    self._deferred.popleft()(now)
                self._gather(now)
            finally:
                self._busy = False
        self._after_step(now)

    def read(self, look: Callable[[float], T]) -> T:
        """Look at the core, undisturbed by other threads; it must not change."""
        now = self._clock()
        with self._lock:
            intruding, self._busy = self._busy, True
            try:
                result = look(now)
            finally:
                self._busy = intruding
        if self._deferred:
            self._after_step(now)
        return result

    def would_admit(self) -> bool:
        """Tell what `admit` would do."""
        with self._lock:
            if self._busy:
                return self.core.state in _PASSING
        return self.read(self.core.would_admit)

    def _gather(self, now: float) -> None:
        """Turn the core's news into events in the outbox; the lock is held, so their order is the order of things."""
        for news in self.core.news:
            if isinstance(news, Moved):
                self._opened = None
                if CircuitStateChanged.sinks:
                    event = _state_changed(self.name, now, news)
                    self._outbox.put(event)
                    self._opened = event if news.after is CircuitState.OPEN else None
            elif isinstance(news, Exceeded):
                if ThresholdExceeded.sinks:
                    self._outbox.put(ThresholdExceeded(self.name, now, news.threshold.value, news.rate, news.calls))
            elif ProbeExpired.sinks:
                self._outbox.put(ProbeExpired(self.name, now, news.age))
        self.core.news.clear()

    def _after_step(self, now: float) -> None:
        """Do what waits for the lock to be free: deferred steps, the user's functions, delivery of events."""
        if self._busy or self._asking:
            return  # whoever is at it does this afterwards
        if self._deferred:
            self.act(lambda _: None)  # which does them, and comes back here
            return
        if self.core.chance is None:
            self.core.chance = self._draw()
        for _ in range(_MOST_ASKS):
            if self.core.unasked is None:
                break
            self._ask_open_time(now)
        if self._pending:
            self._outbox.deliver()

    def _draw(self) -> float:
        """Draw the share of the jitter that the next opening takes."""
        try:
            return min(max(float(self._rng.random()), 0.0), 1.0)
        except Exception:  # noqa: BLE001 - the user's generator may raise anything; an opening without jitter is still one
            return 0.0

    def _ask_open_time(self, now: float) -> None:
        """Ask the user's function how long to stay open; the cap holds until it answers, and if it fails.

        Events wait for the answer: the one of the opening tells it.
        """
        with self._lock:
            unasked, self.core.unasked = self.core.unasked, None
            if unasked is None:
                return  # another thread asks
            self._asking = True
        opening, attempt = unasked
        failed: str | None = None
        try:
            seconds: object = cast("Callable[[int], float]", self.config.open_duration)(attempt)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                failed = "TypeError"
            elif math.isnan(min(seconds, 0)):  # a min first, because an int may be too long for a float
                failed = "ValueError"
            else:
                self._apply_open_time(opening, seconds)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything; the circuit stays open
            failed = type_name(error)
        finally:
            self._asking = False
        if failed is not None and PredicateFailed.sinks:
            with self._lock:
                self._outbox.put(PredicateFailed(self.name, now, "open_duration", failed))

    def _apply_open_time(self, opening: int, seconds: float) -> None:
        with self._lock:
            open_for = self.core.set_open_time(opening, seconds)
            if self._opened is not None and open_for is not None:
                self._opened.open_for = open_for
                self._opened = None  # a later answer is about a later opening


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
