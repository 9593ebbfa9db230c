"""What a circuit breaker is told: its states and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeAlias

from resilience.checks import check_function, check_int, check_number, hint, is_exception_types, shown
from resilience.errors import ConfigurationError
from resilience.windows import MAX_CALLS, CountWindow, TimeWindow

ExceptionFilter: TypeAlias = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]
"""Exception types, or a plain function that is asked about the exception."""


class CircuitState(StrEnum):
    """The states of a circuit breaker; each is also its own lower-case string."""

    CLOSED = "closed"
    """Calls pass and are counted."""
    OPEN = "open"
    """Calls are refused until the open time is over."""
    HALF_OPEN = "half_open"
    """A few probes pass; their results decide between closed and open."""
    FORCED_OPEN = "forced_open"
    """Calls are refused until somebody decides otherwise."""
    DISABLED = "disabled"
    """Calls pass and are not counted."""
    METRICS_ONLY = "metrics_only"
    """Calls pass and are counted, and thresholds are told, but never acted on: for trying a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """How a circuit breaker judges. Checked on creation; immutable; equal when all fields are equal.

    Args:
        window: what the rates are taken over: `CountWindow(calls)` or `TimeWindow(seconds)`.
        minimum_calls: no rate exists below so many calls in the window, at least 1; at most the size of a count window.
            10 (the field's defaults go from 5 to 100) keeps two failures after a quiet night from opening a circuit.
        failure_rate_threshold: opens at this share of failed calls or more; over 0, up to 1.
        slow_call_duration: seconds from which on a call is slow, also while it is still running; None: none is.
        slow_call_rate_threshold: opens at this share of slow calls or more; over 0, up to 1.
        open_duration: seconds from opening to the first probe, 0 or more; or a plain function from the reopen attempt
            (0, 1, 2 ... since it was closed) to seconds, which are then used as they are, capped;
            `open_backoff` and `open_jitter` are for numbers only.
        open_backoff: factor per reopen, at least 1: a callee that fails its probes is left alone for longer.
        max_open_duration: cap in seconds, at least `open_duration`.
        open_jitter: share of the open time added at random, drawn once at opening, 0 to 1: instances that opened
            together should not probe together.
        half_open_calls: results that decide in half-open, 1 to 1,000,000.
        half_open_concurrency: probes in flight at a time, at least 1 and at most `half_open_calls`; None: no own limit.
        probe_lease: seconds after which a silent probe may be replaced: a probe that hangs cannot wedge the breaker.
        failure_on: which exceptions are failures: a type, a tuple of types, or a function of the exception. All other
            ordinary exceptions are successes: the callee answered. Rejections by this library's own policies say
            nothing about the callee and count only where a type named here is one of theirs. An exception group is
            judged by what is in it, whatever its own type.
        ignore: which exceptions say nothing at all about the callee; asked before `failure_on`.
        failure_result: a function of the result; a true answer counts the call as failed.
        initial_state: the state to begin in.

    Raises:
        ConfigurationError: names the field, the value and the rule.
    """

    window: CountWindow | TimeWindow = CountWindow(100)
    minimum_calls: int = 10
    failure_rate_threshold: float = 0.5
    slow_call_duration: float | None = None
    slow_call_rate_threshold: float = 1.0
    open_duration: float | Callable[[int], float] = 30.0
    open_backoff: float = 1.5
    max_open_duration: float = 300.0
    open_jitter: float = 0.1
    half_open_calls: int = 5
    half_open_concurrency: int | None = None
    probe_lease: float = 30.0
    failure_on: ExceptionFilter = Exception
    ignore: ExceptionFilter = ()
    failure_result: Callable[[Any], object] | None = None
    initial_state: CircuitState = CircuitState.CLOSED

    def __post_init__(self) -> None:
        if not isinstance(self.window, CountWindow | TimeWindow):
            raise ConfigurationError(f"window must be a CountWindow or a TimeWindow, got {shown(self.window)}")
        check_int("minimum_calls", self.minimum_calls)
        if isinstance(self.window, CountWindow) and self.minimum_calls > self.window.calls:
            raise ConfigurationError(
                f"minimum_calls must be at most the size of the count window, {self.window.calls}, "
                f"or no rate would ever exist; got {shown(self.minimum_calls)}"
            )
        _check_share("failure_rate_threshold", self.failure_rate_threshold)
        _check_share("slow_call_rate_threshold", self.slow_call_rate_threshold)
        if self.slow_call_duration is not None:
            check_number("slow_call_duration", self.slow_call_duration, above=0)
        check_number("max_open_duration", self.max_open_duration, least=0)
        if callable(self.open_duration):
            check_function("open_duration", self.open_duration)
        else:
            check_number("open_duration", self.open_duration, least=0)
            if self.max_open_duration < self.open_duration:
                raise ConfigurationError(
                    f"max_open_duration must be at least open_duration, {self.open_duration:g}, "
                    f"got {self.max_open_duration:g}"
                )
        check_number("open_backoff", self.open_backoff, least=1)
        check_number("open_jitter", self.open_jitter, least=0, most=1)
        check_int("half_open_calls", self.half_open_calls, most=MAX_CALLS)
        if self.half_open_concurrency is not None:
            check_int("half_open_concurrency", self.half_open_concurrency)
            if self.half_open_concurrency > self.half_open_calls:
                raise ConfigurationError(
                    f"half_open_concurrency must be at most half_open_calls, {self.half_open_calls}, "
                    f"got {shown(self.half_open_concurrency)}"
                )
        check_number("probe_lease", self.probe_lease, above=0)
        _check_filter("failure_on", self.failure_on)
        _check_filter("ignore", self.ignore)
        if self.failure_result is not None:
            check_function("failure_result", self.failure_result)
        if not isinstance(self.initial_state, CircuitState):
            raise ConfigurationError(
                f"initial_state must be a CircuitState, such as CircuitState.CLOSED, got {shown(self.initial_state)}"
            )


def difference(one: CircuitBreakerConfig, other: CircuitBreakerConfig) -> str:
    """Name the fields in which two configurations differ, for messages."""
    return ", ".join(field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name))


def _check_share(field: str, value: object) -> None:
    if isinstance(value, int | float) and 1 < value <= 100:
        raise ConfigurationError(f"{field} must be at most 1, got {shown(value)}: a share, 0.5 for 50 %")
    check_number(field, value, above=0, most=1)


def _check_filter(field: str, value: object) -> None:
    # Types first: exception classes are callable too, and would make a predicate that always says yes.
    if is_exception_types(value):
        return
    if isinstance(value, tuple | type):
        raise ConfigurationError(f"{field} must name exception types only, got {shown(value)}")
    if not callable(value):
        raise ConfigurationError(
            f"{field} must be an exception type, a tuple of them, or a function of an exception, got {shown(value)}"
        )
    check_function(field, value)


def merged(config: CircuitBreakerConfig, overrides: Mapping[str, Any]) -> CircuitBreakerConfig:
    """Give `config` with some fields replaced; unknown names are refused by name.

    Raises:
        ConfigurationError: not a configuration, no such field, or a value that makes no sense.
    """
    if not isinstance(config, CircuitBreakerConfig):
        raise ConfigurationError(f"config must be a CircuitBreakerConfig, got {shown(config)}")
    for field in overrides:
        if field not in CircuitBreakerConfig.__dataclass_fields__:
            known = CircuitBreakerConfig.__dataclass_fields__
            raise ConfigurationError(
                f"{field} must be a field of CircuitBreakerConfig: {', '.join(known)}{hint(field, known)}"
            )
    return replace(config, **overrides) if overrides else config
