"""The configuration: what it is by default, what it refuses, and what it says then."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
    ConfigurationError,
    CountWindow,
    TimeWindow,
)

BenchMaker = Any

WHOLE_NUMBERS = ["minimum_calls", "half_open_calls", "half_open_concurrency"]
NUMBERS = [
    "failure_rate_threshold",
    "slow_call_rate_threshold",
    "slow_call_duration",
    "open_duration",
    "open_backoff",
    "max_open_duration",
    "open_jitter",
    "probe_lease",
]
FILTERS = ["failure_on", "ignore"]
FUNCTIONS = ["open_duration", "failure_result", *FILTERS]


async def asks_async(_: object) -> bool:
    return True


class AsksAsync:
    async def __call__(self, _: object) -> bool:
        return True


def refusal(**fields: Any) -> str:
    """Give the message with which `fields` are refused."""
    with pytest.raises(ConfigurationError) as refused:
        CircuitBreakerConfig(**fields)
    return str(refused.value)


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert dataclasses.asdict(CircuitBreakerConfig()) == {
        "window": {"calls": 100},
        "minimum_calls": 10,
        "failure_rate_threshold": 0.5,
        "slow_call_duration": None,
        "slow_call_rate_threshold": 1.0,
        "open_duration": 30.0,
        "open_backoff": 1.5,
        "max_open_duration": 300.0,
        "open_jitter": 0.1,
        "half_open_calls": 5,
        "half_open_concurrency": None,
        "probe_lease": 30.0,
        "failure_on": Exception,
        "ignore": (),
        "failure_result": None,
        "initial_state": CircuitState.CLOSED,
    }


# --- numbers ---


@pytest.mark.parametrize("field", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [True, 2.0, math.nan, math.inf, "3", [3]])
def test_a_count_that_is_no_int_is_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}) == f"{field} must be an int, got {value!r}"


@pytest.mark.parametrize("field", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused(field: str, value: int) -> None:
    assert refusal(**{field: value}) == f"{field} must be at least 1, got {value}"


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [True, "1", [1.0], 1j])
def test_a_number_that_is_none_is_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}) == f"{field} must be a number, got {value!r}"


@pytest.mark.parametrize("field", [one for one in NUMBERS if one != "slow_call_duration"])
def test_only_the_slow_call_duration_may_be_none(field: str) -> None:
    assert refusal(**{field: None}) == f"{field} must be a number, got None"


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(field: str, value: float) -> None:
    assert refusal(**{field: value}) == f"{field} must be finite, got {value}"


@pytest.mark.parametrize("field", NUMBERS)
def test_an_int_too_large_for_a_float_is_refused_by_name(field: str) -> None:
    assert refusal(**{field: 10**400}).startswith(f"{field} must be ")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("failure_rate_threshold", 0, "more than 0, got 0"),
        ("failure_rate_threshold", -0.5, "more than 0, got -0.5"),
        ("failure_rate_threshold", 1.01, "at most 1, got 1.01: a share, 0.5 for 50 %"),
        ("slow_call_rate_threshold", 0.0, "more than 0, got 0.0"),
        ("slow_call_rate_threshold", 2, "at most 1, got 2: a share, 0.5 for 50 %"),
        ("slow_call_duration", 0, "more than 0, got 0"),
        ("slow_call_duration", -1.5, "more than 0, got -1.5"),
        ("open_duration", -0.001, "at least 0, got -0.001"),
        ("open_backoff", 0.999, "at least 1, got 0.999"),
        ("max_open_duration", -1, "at least 0, got -1"),
        ("open_jitter", -0.1, "at least 0, got -0.1"),
        ("open_jitter", 1.1, "at most 1, got 1.1"),
        ("probe_lease", 0, "more than 0, got 0"),
        ("probe_lease", -30, "more than 0, got -30"),
    ],
)
def test_a_number_out_of_range_is_refused(field: str, value: float, rule: str) -> None:
    assert refusal(**{field: value}) == f"{field} must be {rule}"


@pytest.mark.parametrize(
    "fields",
    [
        {"minimum_calls": 1, "half_open_calls": 1, "half_open_concurrency": 1},
        {"failure_rate_threshold": 1, "slow_call_rate_threshold": 1},
        {"failure_rate_threshold": 1e-9, "slow_call_rate_threshold": 1e-9, "slow_call_duration": 1e-9},
        {"open_duration": 0, "open_jitter": 0, "open_backoff": 1, "max_open_duration": 0},
        {"open_jitter": 1, "open_duration": 300, "max_open_duration": 300},
        {"window": CountWindow(10), "minimum_calls": 10},
        {"window": TimeWindow(1), "minimum_calls": 1_000_000},
        {"half_open_calls": 3, "half_open_concurrency": 3},
    ],
)
def test_the_edges_of_the_ranges_are_allowed(fields: dict[str, Any]) -> None:
    config = CircuitBreakerConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_zero_open_time_is_a_value_and_not_the_default(bench: BenchMaker) -> None:
    b = bench(open_duration=0, open_jitter=0)
    b.breaker.trip()
    assert b.breaker.snapshot().retry_after == 0.0
    b.breaker.acquire()
    assert b.state == "half_open"


def test_zero_jitter_is_a_value_and_not_the_default(clock: Any) -> None:
    breaker = CircuitBreaker("steady", clock=clock, open_duration=10, open_jitter=0)
    breaker.trip()
    assert breaker.snapshot().retry_after == 10.0


# --- contradictions ---


def test_a_minimum_that_the_count_window_never_holds_is_refused() -> None:
    assert refusal(window=CountWindow(5), minimum_calls=6) == (
        "minimum_calls must be at most the size of the count window, 5, or no rate would ever exist; got 6"
    )


def test_more_probes_at_a_time_than_in_all_are_refused() -> None:
    message = refusal(half_open_calls=3, half_open_concurrency=4)
    assert message == "half_open_concurrency must be at most half_open_calls, 3, got 4"


def test_a_cap_below_the_open_time_is_refused() -> None:
    message = refusal(open_duration=60, max_open_duration=59.5)
    assert message == "max_open_duration must be at least open_duration, 60, got 59.5"


def test_a_function_for_the_open_time_goes_with_any_cap() -> None:
    assert CircuitBreakerConfig(open_duration=lambda _: 60.0, max_open_duration=0).max_open_duration == 0


# --- windows, states, functions, types ---


@pytest.mark.parametrize("window", [100, None, CountWindow, "100", [CountWindow(5)]])
def test_a_window_that_is_none_is_refused(window: Any) -> None:
    assert refusal(window=window) == f"window must be a CountWindow or a TimeWindow, got {window!r}"


@pytest.mark.parametrize("state", ["closed", None, 1])
def test_an_initial_state_that_is_none_is_refused(state: Any) -> None:
    assert (
        refusal(initial_state=state)
        == f"initial_state must be a CircuitState, such as CircuitState.CLOSED, got {state!r}"
    )


@pytest.mark.parametrize("field", FUNCTIONS)
@pytest.mark.parametrize(
    "function", [asks_async, AsksAsync(), functools.partial(asks_async)], ids=["def", "object", "partial"]
)
def test_an_async_function_is_refused_where_nobody_could_await_it(field: str, function: Any) -> None:
    assert refusal(**{field: function}) == f"{field} must be a plain function, got the async {function!r}"


@pytest.mark.parametrize("value", [True, "rejected", 5, (len,)])
def test_a_result_predicate_that_cannot_be_called_is_refused(value: Any) -> None:
    assert refusal(failure_result=value) == f"failure_result must be a function, got {value!r}"


@pytest.mark.parametrize("field", FILTERS)
@pytest.mark.parametrize(
    "value", [int, (OSError, int), (OSError, "ValueError"), (OSError, (ValueError,)), (OSError(),)]
)
def test_a_type_that_is_no_exception_is_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}) == f"{field} must name exception types only, got {value!r}"


@pytest.mark.parametrize("field", FILTERS)
@pytest.mark.parametrize("value", [None, "OSError", [OSError], 5])
def test_a_filter_that_is_neither_type_nor_function_is_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}) == (
        f"{field} must be an exception type, a tuple of them, or a function of an exception, got {value!r}"
    )


class Meta(type):
    """Exception classes may have another metaclass than `type`, as abstract ones have."""


class OddlyMadeError(Exception, metaclass=Meta):
    pass


def test_an_exception_class_with_a_metaclass_of_its_own_is_a_type_and_no_predicate(bench: BenchMaker) -> None:
    b = bench(failure_on=OddlyMadeError)
    b.breaker.acquire().failure(OSError())
    assert b.counts() == (1, 0, 0)
    b.breaker.acquire().failure(OddlyMadeError())
    assert b.counts() == (2, 1, 0)


@pytest.mark.parametrize("field", FILTERS)
def test_a_callable_object_is_a_predicate(field: str) -> None:
    ask = functools.partial(isinstance)
    assert getattr(CircuitBreakerConfig(**{field: ask}), field) is ask  # type: ignore[arg-type]  # one field of many


# --- a value ---


def test_configurations_are_equal_when_all_their_fields_are() -> None:
    one = CircuitBreakerConfig(window=TimeWindow(60), failure_on=(OSError, TimeoutError))
    same = CircuitBreakerConfig(window=TimeWindow(60.0), failure_on=(OSError, TimeoutError))
    assert one == same
    assert hash(one) == hash(same)
    assert one != CircuitBreakerConfig(window=TimeWindow(61), failure_on=(OSError, TimeoutError))


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(CircuitBreakerConfig)])
def test_a_configuration_cannot_be_changed(field: str) -> None:
    config = CircuitBreakerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))


def test_fields_are_given_by_name_only() -> None:
    make: Any = CircuitBreakerConfig
    with pytest.raises(TypeError, match="positional"):
        make(CountWindow(5))


def test_a_changed_copy_is_checked_like_a_new_one() -> None:
    with pytest.raises(ConfigurationError, match="half_open_calls must be at least 1, got 0"):
        dataclasses.replace(CircuitBreakerConfig(), half_open_calls=0)


def test_a_configuration_error_is_a_value_error() -> None:
    assert issubclass(ConfigurationError, ValueError)


# --- what the breaker takes ---


def test_overrides_replace_single_fields_and_leave_the_given_configuration_alone() -> None:
    config = CircuitBreakerConfig(minimum_calls=3, open_duration=5)
    breaker = CircuitBreaker("payments", config, minimum_calls=7)
    assert breaker.config == CircuitBreakerConfig(minimum_calls=7, open_duration=5)
    assert config.minimum_calls == 3


def test_a_breaker_without_a_configuration_has_the_default_one() -> None:
    assert CircuitBreaker("payments").config == CircuitBreakerConfig()


def test_a_given_configuration_is_kept_as_it_is() -> None:
    config = CircuitBreakerConfig(minimum_calls=3)
    assert CircuitBreaker("payments", config).config is config


def test_an_unknown_field_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigurationError) as refused:
        CircuitBreaker("payments", failure_treshold=0.3)
    assert re.match(
        "failure_treshold must be a field of CircuitBreakerConfig: window, minimum_calls", str(refused.value)
    )


def test_an_override_is_checked_like_any_field() -> None:
    with pytest.raises(ConfigurationError, match="minimum_calls must be at least 1, got 0"):
        CircuitBreaker("payments", minimum_calls=0)


@pytest.mark.parametrize("name", ["", None, 5, b"payments"])
def test_a_breaker_without_a_proper_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"name must be a non-empty string, got {name!r}")):
        CircuitBreaker(name)


@pytest.mark.parametrize("config", [{"minimum_calls": 5}, 0.5, CircuitBreakerConfig])
def test_a_configuration_that_is_none_is_refused(config: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"config must be a CircuitBreakerConfig, got {config!r}")):
        CircuitBreaker("payments", config)


def test_a_clock_that_cannot_be_asked_is_refused() -> None:
    async def waits() -> float:
        return 0.0

    not_a_clock: Any
    for not_a_clock, rule in ((0.0, "a function, got 0.0"), (waits, "a plain function, got the async")):
        with pytest.raises(ConfigurationError, match=re.escape(f"clock must be {rule}")):
            CircuitBreaker("payments", clock=not_a_clock)
