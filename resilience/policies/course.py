"""What comes after an attempt that failed: one pure decision, for sync and async code alike."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine
from math import inf
from typing import Any, Final, NamedTuple

from resilience.clock import Clock
from resilience.errors import CallTimeoutError, ConfigurationError, PoolUsageError, RejectedError, type_name
from resilience.stack import Admission

from .backoff import MAX_SECONDS, Backoff, seconds_asked
from .budget import RetryBudget
from .calls import Call
from .tenacity import is_tenacitys, new_state, set_outcome

MISTAKES: Final = (
    TypeError,
    AttributeError,
    NameError,
    NotImplementedError,
    AssertionError,
    ImportError,
    ConfigurationError,
    PoolUsageError,
)
"""Errors of the program itself: the next attempt would make the same one."""

_REASONS: Final = {
    "circuit_breaker": "circuit_open",
    "rate_limiter": "rate_limited",
    "bulkhead": "bulkhead_full",
    "adaptive_limit": "bulkhead_full",
    "pool": "pool_exhausted",
}
_FOR_GOOD: Final = ("circuit_open", "pool_closed")
_UPWARD: Final = 0.1  # of what a rejection asks for, on top at most: who was refused together returns one by one
_REMEMBERED: Final = 10  # attempts in the note


def stop_reason_of(error: BaseException | None) -> str:
    """Give the word by which an error ends a call, where no retry has found another one."""
    if isinstance(error, RejectedError):
        return _REASONS.get(error.policy, "shed")
    return "deadline" if isinstance(error, CallTimeoutError) and error.scope == "total" else "attempts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How a retry was configured, checked; its docstring says what the fields mean."""

    attempts: int | None
    on: Any
    retry_result: Callable[[Any], bool] | None
    wait: Any
    stop: Any
    budget: RetryBudget | None
    wait_for_admission: float | None
    retry_after: Callable[[Any], object] | None
    clock: Clock
    rng: random.Random
    sleep: Callable[[float], Any] | None


class Failed(NamedTuple):
    """How an attempt ended: with an error, or (None) with a result that is not wanted."""

    error: BaseException | None
    result: Any = None

    @property
    def rejection(self) -> RejectedError | None:
        """The rejection that it was: the callee was not asked."""
        error = None if self.error is None else single_leaf(self.error)
        return error if isinstance(error, RejectedError) else None


class Step(NamedTuple):
    """What is next: another attempt after so many seconds, or none for that reason.

    Attributes:
        paid: whether the attempt is one that a budget must allow: it adds load to a callee that was asked before.
    """

    delay: float | None
    stop_reason: str = ""
    paid: bool = True


class Course:
    """The attempts of one call, from the first that failed.

    Args:
        rules: of the retry.
        function: that is called.
        call: that they are attempts of.
        began: when the first attempt began.
        hook_failed: is told of a function of the user that raised.
    """

    def __init__(
        self,
        rules: Rules,
        function: Callable[..., Any],
        call: Call,
        began: float,
        hook_failed: Callable[[str, BaseException], None],
    ) -> None:
        self.began = began
        self.call = call
        self.attempt = 0  # how many were made, refused ones included
        self._rules = rules
        self._function = function
        self._hook_failed = hook_failed
        self._history: deque[str] = deque(maxlen=_REMEMBERED)

    def after(self, failed: Failed, now: float, wall: float, remaining: float) -> Step:
        """Decide what follows the attempt that just failed.

        Args:
            failed: how.
            now: seconds on the clock that `began` is of.
            wall: seconds since the epoch.
            remaining: seconds to the deadline; infinity without one, minus infinity where the call is cancelled.
        """
        self.attempt += 1
        told = "an unwanted result" if failed.error is None else type_name(failed.error)
        self._history.append(f"{self.attempt}. {told} at {now - self.began:.3g} s")
        error = None if failed.error is None else single_leaf(failed.error)
        state = self._state(Failed(error, failed.result), now)
        if isinstance(error, RejectedError) and not self._is_named(error):
            step = self._after_rejection(stop_reason_of(error), seconds_asked(error.retry_after, wall), remaining)
            # Whoever set no number of attempts has set this: nobody waits for ever for a door that opens for others.
            return Step(None, "attempts") if step.delay is not None and self._stops(state, step.delay) else step
        if error is not None and not self._is_wanted(error, state):
            return Step(None, "not_retryable")
        if self._are_used_up():
            return Step(None, "attempts")
        return self._after_failure(error, state, wall, remaining)

    def admitted(self, step: Step, admission: Admission, remaining: float) -> Step:
        """Correct a step by what an inner policy says: nobody sleeps towards a door that stays closed."""
        if step.delay is None or admission.allowed:
            return step
        seconds, reason = seconds_asked(admission.retry_after, 0.0), admission.reason or "shed"
        # Without a time, a full bulkhead or pool may well have room by then; what was closed by hand stays closed.
        if (seconds is None and reason not in _FOR_GOOD) or (seconds is not None and seconds <= step.delay):
            return step
        later = self._after_rejection(reason, seconds, remaining)
        return later if later.delay is None else Step(max(later.delay, step.delay), paid=step.paid)

    def story(self, stop_reason: str, elapsed: float) -> str:
        """Tell in one line what was tried: types and times, never messages or arguments."""
        attempts = "1 attempt" if self.attempt == 1 else f"{self.attempt} attempts"
        skipped = "... " if self.attempt > len(self._history) else ""
        reason = stop_reason.replace("_", " ")
        return f"stopped after {attempts} in {elapsed:.3g} s ({reason}): {skipped}{', '.join(self._history)}"

    # --- parts of the decision ---

    def _after_failure(self, error: BaseException | None, state: Any, wall: float, remaining: float) -> Step:
        own, asked = self._own_delay(state), self._asked(error, wall)
        if asked > self._most_asked():
            return Step(None, "retry_after_too_long")
        delay = max(own, asked)
        if delay >= remaining:
            return _too_late(remaining)
        if self._stops(state, delay):
            return Step(None, "attempts")
        return Step(delay)

    def _after_rejection(self, reason: str, retry_after: float | None, remaining: float) -> Step:
        patience = self._rules.wait_for_admission
        if patience is None or retry_after is None:
            return Step(None, reason)
        if self._are_used_up():
            return Step(None, "attempts" if self.attempt > 1 else reason)
        if retry_after > patience:
            return Step(None, "retry_after_too_long")
        if retry_after >= remaining:
            return _too_late(remaining)
        delay = retry_after * (1 + _UPWARD * self._rules.rng.random())
        # What chance adds is a courtesy to others: it must not take this call past its deadline.
        return Step(delay if delay < remaining else retry_after, paid=False)

    def _are_used_up(self) -> bool:
        return self._rules.attempts is not None and self.attempt >= self._rules.attempts

    def _is_named(self, error: BaseException) -> bool:
        """Tell whether the configuration names this kind of error that is never retried otherwise."""
        kinds = self._rules.on if isinstance(self._rules.on, tuple) else (self._rules.on,)
        spared = (RejectedError, *MISTAKES)
        return any(isinstance(kind, type) and issubclass(kind, spared) and isinstance(error, kind) for kind in kinds)

    def _is_wanted(self, error: BaseException, state: Any) -> bool:
        """Tell whether another attempt may help against this error. A group is judged by its leaves: all must be."""
        if isinstance(error, BaseExceptionGroup):
            return all(self._is_leaf_wanted(leaf, state) for leaf in leaves(error))
        return self._is_leaf_wanted(error, state)

    def _is_leaf_wanted(self, error: BaseException, state: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, (RejectedError, *MISTAKES)):
            return self._is_named(error)
        on = self._rules.on
        if isinstance(on, type | tuple):
            return isinstance(error, on)
        if not is_tenacitys(on, "retry"):
            return self._ask("on", on, error, bool) is True
        set_outcome(state, error, None, state.outcome_timestamp)
        return self._ask("on", on, state, bool) is True

    def _state(self, failed: Failed, now: float) -> Any:
        """Give what tenacity's objects are asked with, None if there are none."""
        asked = ((self._rules.on, "retry"), (self._rules.wait, "wait"), (self._rules.stop, "stop"))
        if not any(is_tenacitys(value, kind) for value, kind in asked):
            return None
        state = new_state(self._function, self.attempt, self.began)
        set_outcome(state, failed.error, failed.result, now)
        return state

    def _own_delay(self, state: Any) -> float:
        wait = self._rules.wait
        if isinstance(wait, Backoff):
            return wait.delay(self.attempt, self._rules.rng)
        if not callable(wait):
            return float(wait)
        answer = self._ask("wait", wait, state if is_tenacitys(wait, "wait") else self.attempt)
        seconds = seconds_asked(answer, 0.0) if isinstance(answer, int | float) else None
        return Backoff().delay(self.attempt, self._rules.rng) if seconds is None else min(seconds, MAX_SECONDS)

    def _asked(self, error: BaseException | None, wall: float) -> float:
        """Give the seconds that the server asked for; of a group, the most that one of its errors tells of."""
        hook = self._rules.retry_after
        if error is None or hook is None:
            return 0.0
        several = leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
        return max(seconds_asked(self._ask("retry_after", hook, one), wall) or 0.0 for one in several)

    def _most_asked(self) -> float:
        return self._rules.wait.cap if isinstance(self._rules.wait, Backoff) else MAX_SECONDS

    def _stops(self, state: Any, delay: float) -> bool:
        if self._rules.stop is None:
            return False
        state.upcoming_sleep = delay
        return self._ask("stop", self._rules.stop, state, bool) is True

    def _ask(
        self, hook: str, function: Callable[[Any], object], what: object, read: Callable[[object], object] | None = None
    ) -> object:
        try:
            return ask(function, what, read)
        except Exception as error:  # noqa: BLE001 - the callee's own error must arrive, whatever this one is
            self._hook_failed(hook, error)
            return None  # no retry, no stop, no wish


def ask(function: Callable[[Any], object], what: object, read: Callable[[object], object] | None = None) -> object:
    """Ask a function of the user, and read its answer: that of an array as a truth value may raise as well.

    Raises:
        TypeError: it gave an awaitable, which nobody waits for and which is always true.
        Exception: what either raised.
    """
    answer = function(what)
    if isawaitable(answer):
        if iscoroutine(answer):
            answer.close()
        raise TypeError("gave an awaitable")
    return answer if read is None else read(answer)


def _too_late(remaining: float) -> Step:
    return Step(None, "cancelled" if remaining == -inf else "deadline")


def single_leaf(error: BaseException) -> BaseException:
    """Give what is in a group that holds one error: a task group in the callee wraps what it raises. Else itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Give the errors in a group, however deep."""
    found: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            found.append(error)
    return found
