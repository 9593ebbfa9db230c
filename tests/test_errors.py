"""The error tree: what catches what, what each message says, and that errors survive pickling and copying."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest

import resilience
from resilience import errors
from resilience.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    PoolClosedError,
    PoolDeadlockError,
    PoolFullError,
    PoolTimeoutError,
    PoolUsageError,
    RateLimitedError,
    RejectedError,
    ResilienceError,
    type_name,
    with_causes,
)

# The contract: each error, and what an `except` clause written for something more general has to catch.
TREE: dict[type[ResilienceError], tuple[type[Exception], ...]] = {
    ResilienceError: (Exception,),
    ConfigurationError: (ResilienceError, ValueError),
    CallTimeoutError: (ResilienceError, TimeoutError),
    RejectedError: (ResilienceError,),
    CircuitOpenError: (RejectedError,),
    RateLimitedError: (RejectedError,),
    BulkheadFullError: (RejectedError,),
    PoolTimeoutError: (RejectedError, TimeoutError),
    PoolFullError: (RejectedError,),
    PoolClosedError: (RejectedError,),
    PoolDeadlockError: (RejectedError,),
    PoolUsageError: (ResilienceError, RuntimeError),
}

# One of each, with its attributes and its message. The breaker's states are also tried as bare strings.
EXAMPLES: list[tuple[ResilienceError, dict[str, object], str]] = [
    (ResilienceError("broken"), {}, "broken"),
    (
        ConfigurationError("half_open_calls must be at least 1, got 0"),
        {},
        "half_open_calls must be at least 1, got 0",
    ),
    (CallTimeoutError("attempt", 2.5), {"scope": "attempt", "seconds": 2.5}, "attempt timeout of 2.5 s passed"),
    (CallTimeoutError("total", 30.0), {"scope": "total", "seconds": 30.0}, "total timeout of 30 s passed"),
    (
        RejectedError("search", "shed", "too_much_load", 0.5),
        {"name": "search", "policy": "shed", "reason": "too_much_load", "retry_after": 0.5},
        "shed 'search' refused the call: too much load, retry in 0.5 s",
    ),
    (
        RejectedError("search", "shed", "load", 0.0),
        {"retry_after": 0.0},
        "shed 'search' refused the call: load, retry in 0 s",
    ),
    (
        CircuitOpenError("payments", "open", 12.3456, "builtins.ConnectionError"),
        {
            "name": "payments",
            "policy": "circuit_breaker",
            "reason": "open",
            "retry_after": 12.3456,
            "state": "open",
            "last_error_type": "builtins.ConnectionError",
        },
        "circuit breaker 'payments' is open, retry in 12.3 s (last failure: builtins.ConnectionError)",
    ),
    (
        CircuitOpenError("payments", resilience.CircuitState.HALF_OPEN, 1.0),
        {"reason": "half_open", "state": "half_open", "last_error_type": None},
        "circuit breaker 'payments' is half-open, all probes are taken, retry in 1 s",
    ),
    (
        CircuitOpenError("payments", "forced_open"),
        {"reason": "forced_open", "retry_after": None},
        "circuit breaker 'payments' is forced-open",
    ),
    (
        RateLimitedError("api", "deadline", 3.0, decision=("no", 3.0)),
        {
            "name": "api",
            "policy": "rate_limiter",
            "reason": "deadline",
            "retry_after": 3.0,
            "decision": ("no", 3.0),
        },
        "rate limiter 'api' refused the call: deadline, retry in 3 s",
    ),
    (
        BulkheadFullError("reports"),
        {"name": "reports", "policy": "bulkhead", "reason": "full", "retry_after": None},
        "bulkhead 'reports' refused the call: full",
    ),
    (
        BulkheadFullError("reports", "timeout", 2.0),
        {"reason": "timeout", "retry_after": 2.0},
        "bulkhead 'reports' refused the call: timeout, retry in 2 s",
    ),
    (
        PoolTimeoutError("db", stats={"leased": 10}, explanation="10 of 10 leased"),
        {
            "name": "db",
            "policy": "pool",
            "reason": "timeout",
            "retry_after": None,
            "stats": {"leased": 10},
            "explanation": "10 of 10 leased",
        },
        "pool 'db' had no connection in time: 10 of 10 leased",
    ),
    (
        PoolTimeoutError("db", "hopeless", 4.0),
        {"reason": "hopeless", "retry_after": 4.0, "stats": None, "explanation": ""},
        "pool 'db' had no connection in time (hopeless), retry in 4 s",
    ),
    (
        PoolFullError("db"),
        {"name": "db", "policy": "pool", "reason": "max_waiting", "retry_after": None},
        "pool 'db' refused the call: max waiting",
    ),
    (
        PoolClosedError("db"),
        {"name": "db", "policy": "pool", "reason": "closed", "retry_after": None},
        "pool 'db' refused the call: closed",
    ),
    (
        PoolDeadlockError("db", held_at="app.py:3 outer", waiting_at="app.py:9 inner"),
        {
            "name": "db",
            "policy": "pool",
            "reason": "deadlock",
            "retry_after": None,
            "held_at": "app.py:3 outer",
            "waiting_at": "app.py:9 inner",
        },
        "pool 'db' refused the call: deadlock: holds one from app.py:3 outer and asks for another at app.py:9 inner",
    ),
    (PoolUsageError("the pool is not open"), {}, "the pool is not open"),
]

each_example = pytest.mark.parametrize(
    ("error", "attributes", "message"), EXAMPLES, ids=lambda value: type(value).__name__
)


class UsersOwnError(RejectedError):
    """A subclass in a user's module."""


# --- the tree ---


@pytest.mark.parametrize(("kind", "bases"), TREE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_error_has_exactly_the_promised_bases(
    kind: type[ResilienceError], bases: tuple[type[Exception], ...]
) -> None:
    assert kind.__bases__ == bases


def test_the_tree_is_complete() -> None:
    defined = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ResilienceError)
    }
    assert defined == set(TREE)


def test_every_error_has_an_example_here() -> None:
    assert {type(error) for error, _, _ in EXAMPLES} == set(TREE)


# --- what they carry and say ---


@each_example
def test_attributes_carry_the_facts(error: ResilienceError, attributes: dict[str, object], message: str) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes


@each_example
def test_the_message_names_who_refused_and_why(
    error: ResilienceError, attributes: dict[str, object], message: str
) -> None:
    assert str(error) == message


@each_example
def test_the_repr_shows_type_and_message(error: ResilienceError, attributes: dict[str, object], message: str) -> None:
    assert repr(error) == f"{type(error).__name__}({message!r})"


def test_the_message_is_written_when_it_is_read_and_not_before() -> None:
    written: list[str] = []

    class Name(str):
        __slots__ = ()

        def __repr__(self) -> str:
            written.append("name")
            return super().__repr__()

    rejections: list[RejectedError] = [
        CircuitOpenError(Name("payments"), "open", 1.0),
        RateLimitedError(Name("api"), "limit"),
        BulkheadFullError(Name("reports")),
        PoolTimeoutError(Name("db")),
        PoolDeadlockError(Name("db"), held_at="a", waiting_at="b"),
    ]
    assert written == []
    assert all(str(one) for one in rejections)
    assert written == ["name"] * len(rejections)


def test_retry_after_zero_is_a_time_and_none_is_not() -> None:
    assert "retry in 0 s" in str(CircuitOpenError("payments", "open", 0.0))
    assert "retry" not in str(CircuitOpenError("payments", "open", None))


def test_a_timeout_of_ours_is_no_operating_system_error_with_numbers() -> None:
    # TimeoutError is an OSError, which reads two positional arguments as errno and strerror.
    error = CallTimeoutError("total", 3.0)
    assert (error.errno, error.strerror, error.args) == (None, None, ())


# --- pickling and copying ---


def trips() -> list[Any]:
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    through_pickle = [
        pytest.param(lambda error, p=p: pickle.loads(pickle.dumps(error, p)), id=f"pickle-{p}") for p in protocols
    ]
    return [*through_pickle, pytest.param(copy.copy, id="copy"), pytest.param(copy.deepcopy, id="deepcopy")]


@pytest.mark.parametrize("trip", trips())
@each_example
def test_errors_survive_pickling_and_copying(
    error: ResilienceError, attributes: dict[str, object], message: str, trip: Any
) -> None:
    sent = copy.copy(error)
    sent.add_note("attempt 3 of 3")
    arrived = trip(sent)
    assert arrived is not sent
    assert type(arrived) is type(sent)
    assert str(arrived) == message
    assert arrived.args == sent.args
    assert vars(arrived) == vars(sent)
    assert arrived.__notes__ == ["attempt 3 of 3"]
    assert {name: getattr(arrived, name) for name in attributes} == attributes


def test_a_users_subclass_survives_pickling() -> None:
    arrived = pickle.loads(pickle.dumps(UsersOwnError("search", "shed", "load", 1.0)))
    assert type(arrived) is UsersOwnError
    assert (arrived.name, arrived.retry_after) == ("search", 1.0)


def test_a_changed_copy_leaves_the_original_alone() -> None:
    original = CircuitOpenError("payments", "open", 5.0)
    changed = copy.copy(original)
    changed.retry_after = None
    assert original.retry_after == 5.0


# --- how they look in a traceback ---


@pytest.mark.parametrize("kind", TREE)
def test_tracebacks_name_the_place_that_users_import_from(kind: type[ResilienceError]) -> None:
    error = next(error for error, _, _ in EXAMPLES if type(error) is kind)
    assert kind.__module__ == "resilience"
    assert traceback.format_exception_only(error)[0].startswith(f"resilience.{kind.__name__}: ")
    assert getattr(resilience, kind.__name__) is kind


def test_a_users_subclass_keeps_its_own_module() -> None:
    assert UsersOwnError.__module__ == __name__


# --- names of types in events, logs and metrics ---


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionError(), "ConnectionError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (CircuitOpenError("payments", "open"), "resilience.CircuitOpenError"),
        (pickle.PicklingError(), "_pickle.PicklingError"),
        (UsersOwnError("search", "shed", "load"), f"{__name__}.UsersOwnError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_type_is_named_with_its_module_unless_it_is_a_builtin(error: BaseException, name: str) -> None:
    assert type_name(error) == name


def test_a_nested_type_is_named_with_what_it_is_nested_in() -> None:
    class LocalError(Exception):
        pass

    assert type_name(LocalError()).endswith("test_a_nested_type_is_named_with_what_it_is_nested_in.<locals>.LocalError")


def test_an_error_comes_with_all_that_are_behind_it_each_once() -> None:
    inner, outer = OSError("inner"), KeyError("outer")
    member, group = ValueError("member"), ExceptionGroup("group", [KeyError("other"), outer])
    outer.__cause__, outer.__context__ = inner, member
    inner.__context__ = group  # a circle: it has `outer` among its own
    found = list(with_causes(outer))
    assert found[0] is outer
    assert sorted(map(id, found)) == sorted(map(id, (outer, inner, member, group, group.exceptions[0])))
