"""The checks behind every configuration: what passes, what is refused, and with which words."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial, wraps
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from resilience import ConfigurationError
from resilience.checks import check_function, check_int, check_name, check_number, is_async, is_exception_types


async def async_function(*_: object) -> None: ...


def plain_function(*_: object) -> None: ...


class AsyncCallable:
    async def __call__(self, *_: object) -> None: ...

    async def method(self, *_: object) -> None: ...


class PlainCallable:
    def __call__(self, *_: object) -> None: ...


def refusal(check: Callable[..., None], *args: object, **bounds: float) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check(*args, **bounds)
    return str(refused.value)


# --- whole numbers ---


def test_an_int_within_its_bounds_passes_bounds_included() -> None:
    for value in (1, 2, 10):
        check_int("calls", value, most=10)
    check_int("calls", 0, least=0)
    check_int("calls", 10**30)


@pytest.mark.parametrize("value", [1.0, "1", None, True, False, Decimal(1), math.nan])
def test_what_is_no_int_is_refused_also_a_bool(value: object) -> None:
    assert refusal(check_int, "calls", value, 0) == f"calls must be an int, got {value!r}"


def test_an_int_out_of_range_is_refused_with_field_rule_and_value() -> None:
    assert refusal(check_int, "calls", 0) == "calls must be at least 1, got 0"
    assert refusal(check_int, "calls", 4, 5) == "calls must be at least 5, got 4"
    assert refusal(check_int, "calls", 10_001, 1, 10_000) == "calls must be at most 10,000, got 10001"


# --- numbers ---


def test_a_number_within_its_bounds_passes_bounds_included() -> None:
    for value in (0, 0.5, 1, 1.0):
        check_number("share", value, least=0, most=1)
    check_number("share", math.ulp(0.0), above=0)
    check_number("share", -1e300)


@pytest.mark.parametrize("value", ["1", None, True, False, Decimal(1), Fraction(1, 2), 1j])
def test_what_is_no_number_is_refused_also_a_bool(value: object) -> None:
    assert refusal(check_number, "seconds", value) == f"seconds must be a number, got {value!r}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    assert refusal(check_number, "seconds", value) == f"seconds must be finite, got {value}"


def test_a_number_out_of_range_is_refused_with_field_rule_and_value() -> None:
    assert refusal(check_number, "seconds", -0.5, least=0) == "seconds must be at least 0, got -0.5"
    assert refusal(check_number, "share", 0, above=0, most=1) == "share must be more than 0, got 0"
    assert refusal(check_number, "share", 1.5, above=0, most=1) == "share must be at most 1, got 1.5"


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(1.00000001, {"most": 1}), (0.99999999, {"least": 1}), (1234567.5, {"most": 1234567})],
)
def test_the_refusal_of_a_value_just_out_of_range_shows_a_value_out_of_range(
    value: float, bounds: dict[str, float]
) -> None:
    # "must be at most 1, got 1" sends a tired operator looking for a bug in the library.
    assert refusal(check_number, "share", value, **bounds).endswith(f"got {value}")


def test_an_int_too_large_for_a_float_is_refused_as_every_other_value() -> None:
    assert refusal(check_number, "seconds", 10**400).startswith("seconds must be ")


# --- functions ---


@pytest.mark.parametrize("value", [plain_function, PlainCallable(), partial(plain_function, 1), len, int, Mock()])
def test_what_can_be_called_and_is_not_async_passes(value: object) -> None:
    check_function("clock", value)


@pytest.mark.parametrize("value", [None, 3, "time.monotonic"])
def test_what_cannot_be_called_is_refused(value: object) -> None:
    assert refusal(check_function, "clock", value) == f"clock must be a function, got {value!r}"


@pytest.mark.parametrize("value", [async_function, AsyncCallable(), partial(async_function, 1)])
def test_an_async_function_is_refused_where_nobody_can_wait(value: object) -> None:
    assert refusal(check_function, "clock", value) == f"clock must be a plain function, got the async {value!r}"


@pytest.mark.parametrize(
    "value",
    [
        async_function,
        AsyncCallable(),
        AsyncCallable().method,
        partial(async_function, 1),
        partial(partial(async_function, 1), 2),
        AsyncMock(),
    ],
)
def test_all_kinds_of_async_functions_are_recognised(value: object) -> None:
    assert is_async(value)


def test_a_partial_of_an_async_callable_instance_is_recognised() -> None:
    assert is_async(partial(AsyncCallable(), 1))


@wraps(async_function)
def plain_wrapper(*_: object) -> None: ...


@pytest.mark.parametrize("value", [plain_function, PlainCallable(), len, Mock(), 3, None, plain_wrapper])
def test_what_gives_no_coroutine_is_not_async(value: object) -> None:
    assert not is_async(value)


def test_a_partial_is_seen_through_also_when_python_does_not_flatten_it() -> None:
    inner = partial(AsyncCallable(), 1)
    inner.note = "a partial with attributes of its own stays a layer"  # type: ignore[attr-defined]
    assert is_async(partial(inner, 2))


def test_a_class_is_not_async_because_its_instances_are() -> None:
    assert not is_async(AsyncCallable)


# --- names and exception types ---


def test_a_non_empty_string_is_a_name() -> None:
    check_name("payments")
    check_name(" ")


@pytest.mark.parametrize("value", ["", None, 3, b"payments"])
def test_what_cannot_name_a_component_is_refused(value: object) -> None:
    assert refusal(check_name, value) == f"name must be a non-empty string, got {value!r}"


@pytest.mark.parametrize("value", [ValueError, BaseException, (ValueError, KeyError), (TimeoutError,), ()])
def test_exception_types_and_tuples_of_them_are_exception_types(value: Any) -> None:
    assert is_exception_types(value)


@pytest.mark.parametrize(
    "value", [int, ValueError(), (ValueError, int), (ValueError, ValueError()), [ValueError], None, plain_function]
)
def test_nothing_else_is_exception_types(value: Any) -> None:
    assert not is_exception_types(value)


def test_a_generator_function_is_no_predicate_for_it_always_says_yes() -> None:
    def generator(_: object) -> Iterator[bool]:
        yield False

    async def async_generator(_: object) -> AsyncIterator[bool]:
        yield False

    for function in (generator, async_generator):
        with pytest.raises(ConfigurationError, match="ignore must be a plain function, got the"):
            check_function("ignore", function)
