"""Every error of the library, on one page.

    ResilienceError
    ├── ConfigurationError (ValueError)   a value that makes no sense; nothing was changed
    ├── CallTimeoutError (TimeoutError)   our own timeout fired
    ├── RejectedError                     the work never began: trying elsewhere is safe
    │   ├── CircuitOpenError
    │   ├── RateLimitedError
    │   ├── BulkheadFullError
    │   ├── PoolTimeoutError (TimeoutError)
    │   ├── PoolFullError
    │   ├── PoolClosedError
    │   └── PoolDeadlockError
    └── PoolUsageError (RuntimeError)     a pool or lease used in a way that cannot work

An error of the callee is never wrapped in one of these: it arrives as the object that was raised. Rejections are
built fresh each time (one shared object would collect the traceback of every caller), hold no frames, and write their
message only when somebody reads it: under an outage most rejections are never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

__all__ = [
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "ConfigurationError",
    "PoolClosedError",
    "PoolDeadlockError",
    "PoolFullError",
    "PoolTimeoutError",
    "PoolUsageError",
    "RateLimitedError",
    "RejectedError",
    "ResilienceError",
]

_PUBLIC_MODULE = "resilience"


def type_name(error: BaseException) -> str:
    """Return the name of the type of `error` as logs and metrics show it: qualified, except for builtins."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and all that are behind it, each once: causes, contexts, and members of groups."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


class ResilienceError(Exception):
    """The root of every error that this library raises on its own account."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Tracebacks and logs read `resilience.CircuitOpenError`: the place users import it from.
        if cls.__module__ == __name__:
            cls.__module__ = _PUBLIC_MODULE

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions rebuild themselves from `args`; ours keep their facts as attributes, and must survive the trip
        # through a process pool or a task queue all the same.
        return _rebuild, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


ResilienceError.__module__ = _PUBLIC_MODULE


def _rebuild(cls: type[ResilienceError], args: tuple[Any, ...], state: dict[str, Any]) -> ResilienceError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(ResilienceError, ValueError):
    """A value that makes no sense was refused; the message names field, value and rule, and nothing was changed."""


class CallTimeoutError(ResilienceError, TimeoutError):
    """Our own timeout ended the call. A callee's own `TimeoutError` is never turned into this one.

    Attributes:
        scope: "attempt" when one attempt took too long, "total" when the deadline over all attempts passed.
        seconds: the limit that was passed, in seconds.
    """

    def __init__(self, scope: Literal["attempt", "total"], seconds: float) -> None:
        super().__init__()
        self.scope = scope
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.scope} timeout of {self.seconds:g} s passed"


class RejectedError(ResilienceError):
    """The work never began, so nothing has to be undone and another target may be tried at once.

    Attributes:
        name: the component that refused.
        policy: its kind, such as "circuit_breaker".
        reason: why, as a short fixed word.
        retry_after: seconds; a caller that waits that long is not refused again for the same cause while nobody else
            asks. None when no time is known.
    """

    def __init__(self, name: str, policy: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__()
        self.name = name
        self.policy = policy
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        policy, reason = self.policy.replace("_", " "), self.reason.replace("_", " ")
        return f"{policy} {self.name!r} refused the call: {reason}{self._hint()}"

    def _hint(self) -> str:
        return "" if self.retry_after is None else f", retry in {self.retry_after:.3g} s"


class CircuitOpenError(RejectedError):
    """A circuit breaker refused the call.

    Attributes:
        state: the `CircuitState` that refused: "open", "half_open" (all probes are taken) or "forced_open".
        last_error_type: the name of the type of the last failure, or None. Never the exception itself, which would
            keep its frames and their locals alive.
    """

    def __init__(
        self,
        name: str,
        state: str,
        retry_after: float | None = None,
        last_error_type: str | None = None,
    ) -> None:
        Exception.__init__(self)  # the base constructors would cost as much as the rest of a refusal
        self.name = name
        self.policy = "circuit_breaker"
        self.reason = str(state)
        self.retry_after = retry_after
        self.state = state
        self.last_error_type = last_error_type

    def __str__(self) -> str:
        last = "" if self.last_error_type is None else f" (last failure: {self.last_error_type})"
        busy = ", all probes are taken" if self.state == "half_open" else ""
        return f"circuit breaker {self.name!r} is {self.state.replace('_', '-')}{busy}{self._hint()}{last}"


class RateLimitedError(RejectedError):
    """A rate limiter refused the call.

    `reason` is "limit", "never", "deadline", "blocked", "max_waiting" or "closed".

    Attributes:
        decision: the limiter's `Decision`, or None.
    """

    def __init__(self, name: str, reason: str, retry_after: float | None = None, decision: Any = None) -> None:
        super().__init__(name, "rate_limiter", reason, retry_after)
        self.decision = decision


class BulkheadFullError(RejectedError):
    """A bulkhead has no free place, and none became free in time."""

    def __init__(self, name: str, reason: str = "full", retry_after: float | None = None) -> None:
        super().__init__(name, "bulkhead", reason, retry_after)


class PoolTimeoutError(RejectedError, TimeoutError):
    """No connection became available in time; no connection is held.

    The last connect error, where there is one, is the `__cause__`.

    Attributes:
        stats: the pool's `PoolStats` at that moment, or None.
        explanation: what the pool was busy with, for people.
    """

    def __init__(
        self,
        name: str,
        reason: str = "timeout",
        retry_after: float | None = None,
        *,
        stats: Any = None,
        explanation: str = "",
    ) -> None:
        super().__init__(name, "pool", reason, retry_after)
        self.stats = stats
        self.explanation = explanation

    def __str__(self) -> str:
        explained = f": {self.explanation}" if self.explanation else ""
        reason = "" if self.reason == "timeout" else f" ({self.reason})"
        return f"pool {self.name!r} had no connection in time{reason}{self._hint()}{explained}"


class PoolFullError(RejectedError):
    """`max_waiting` callers wait for a connection already; shed load."""

    def __init__(self, name: str, reason: str = "max_waiting", retry_after: float | None = None) -> None:
        super().__init__(name, "pool", reason, retry_after)


class PoolClosedError(RejectedError):
    """The pool is closed or closing."""

    def __init__(self, name: str, reason: str = "closed", retry_after: float | None = None) -> None:
        super().__init__(name, "pool", reason, retry_after)


class PoolDeadlockError(RejectedError):
    """Every connection is held by a task that waits for another one; the youngest waiter is told.

    Attributes:
        held_at: where this task acquired the connection that it holds, as "file:line function".
        waiting_at: where it asked for the next one.
    """

    def __init__(self, name: str, *, held_at: str, waiting_at: str) -> None:
        super().__init__(name, "pool", "deadlock", None)
        self.held_at = held_at
        self.waiting_at = waiting_at

    def __str__(self) -> str:
        return f"{super().__str__()}: holds one from {self.held_at} and asks for another at {self.waiting_at}"


class PoolUsageError(ResilienceError, RuntimeError):
    """A pool or lease was used in a way that cannot work: after a fork, on a foreign loop, before it is open."""
