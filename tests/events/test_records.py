"""Every event of the library: its kind, its fields, its severity; and what all of them have in common."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
import subprocess
import sys
import threading
import time
import typing
from typing import Any, ClassVar

import pytest

from resilience import CircuitState, events
from resilience.events import (
    AttemptFailed,
    CacheHit,
    CallFailed,
    CallIgnored,
    CallRejected,
    CircuitStateChanged,
    Event,
    EventsDropped,
    FallbackUsed,
    RetryStopped,
    records,
)

# The contract: class, kind, default severity, fields beyond name, at, wall and seq.
TABLE = """
CircuitStateChanged   circuit_breaker.state_changed       warning from_state to_state era reason failure_rate slow_call_rate calls open_for
CallSucceeded         circuit_breaker.call_succeeded      debug   duration slow
CallFailed            circuit_breaker.call_failed         debug   duration slow error_type
CallIgnored           circuit_breaker.call_ignored        debug   duration error_type
CallRejected          circuit_breaker.call_rejected       warning state retry_after
ThresholdExceeded     circuit_breaker.threshold_exceeded  warning threshold rate calls
ProbeExpired          circuit_breaker.probe_expired       warning age
PredicateFailed       circuit_breaker.predicate_failed    error   predicate error_type
BreakerAdded          circuit_breaker.added               debug
BreakerRemoved        circuit_breaker.removed             debug   reason
RegistryFull          circuit_breaker.registry_full       warning size
LimitRejected         rate_limiter.rejected               warning limit per retry_after source reason
LimitNear             rate_limiter.near                   debug   remaining limit
FallbackEntered       rate_limiter.fallback_entered       error   cause instances policy
FallbackLeft          rate_limiter.fallback_left          info    duration replayed
InstanceCountChanged  rate_limiter.instance_count_changed info    before after
KeysSpilled           rate_limiter.keys_spilled           warning count
ConnectionOpened      pool.connection_opened              debug   id duration
ConnectionClosed      pool.connection_closed              debug   id reason age uses
ConnectFailed         pool.connect_failed                 warning error_type attempt next_in
CheckFailed           pool.check_failed                   warning id error_type
ResetFailed           pool.reset_failed                   warning id error_type
AcquireTimedOut       pool.acquire_timed_out              warning waited size leased waiting
PoolExhausted         pool.exhausted                      warning
PoolRecovered         pool.recovered                      info    duration
LeakSuspected         pool.leak_suspected                 warning id held site suspended_at
LeakReturned          pool.leak_returned                  warning id held site
ReconnectFailed       pool.reconnect_failed               error   elapsed error_type
PoolHealthChanged     pool.health_changed                 warning from_status to_status cause failing_for
PoolResized           pool.resized                        info
PoolClosed            pool.closed                         info    forced
PoolFailed            pool.failed                         error   error_type
PrewarmPredicted      pool.prewarm_predicted              debug   predicted actual
AttemptFailed         retry.attempt_failed                warning attempt max_attempts delay elapsed remaining error_type call_id
RetrySuppressed       retry.suppressed                    warning reason
RetryStopped          retry.stopped                       warning stop_reason attempts
PolicyHookFailed      policy.hook_failed                  error   hook error_type
ConfigReloaded        config.reloaded                     info    policies
ConfigReloadFailed    config.reload_failed                error   reason
TimedOut              timeout.exceeded                    warning scope seconds elapsed
HedgeLaunched         hedge.launched                      debug   number
HedgeWon              hedge.won                           debug   number
FallbackUsed          fallback.used                       warning error_type
CacheHit              cache.hit                           debug
BulkheadRejected      bulkhead.rejected                   warning in_flight waiting
LimitChanged          limit.changed                       debug   before after
ShedRejected          shed.rejected                       warning load
EventsDropped         events.dropped                      warning sink dropped
SinkFailed            events.sink_failed                  error   sink error_type
"""  # noqa: E501 - a table: one event per line

ROWS = [(words[0], words[1], words[2], words[3:]) for words in map(str.split, TABLE.strip().splitlines())]
KINDS: list[type[Event]] = [getattr(records, row[0]) for row in ROWS]

NEVER_A_KEY = {"event", "level", "timestamp", "exception", "logger", "exc_info"}
"""Keys that structlog refuses or that its processors write themselves."""

each_row = pytest.mark.parametrize(("class_name", "kind", "severity", "own_fields"), ROWS, ids=[row[0] for row in ROWS])
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

EXAMPLE_VALUES: dict[str, object] = {"str": "word", "int": 3, "float": 2.5, "bool": True}


def example(kind: type[Event], *, none: bool = False) -> Event:
    """Build an event with a plausible value in each field, or None wherever that is allowed."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.init:
            required, _, optional = str(field.type).partition(" | ")
            values[field.name] = None if none and optional == "None" else EXAMPLE_VALUES[required]
    return kind(**values)


# --- the table ---


@each_row
def test_each_event_has_exactly_the_fields_of_the_table(
    class_name: str, kind: str, severity: str, own_fields: list[str]
) -> None:
    cls = getattr(events, class_name)
    assert [field.name for field in dataclasses.fields(cls)] == ["name", "at", "wall", "seq", *own_fields]


@each_row
def test_each_event_has_the_kind_and_severity_of_the_table(
    class_name: str, kind: str, severity: str, own_fields: list[str]
) -> None:
    cls = getattr(events, class_name)
    assert (cls.kind, cls.default_severity) == (kind, severity)


def test_the_table_is_complete() -> None:
    defined = {value for value in vars(records).values() if isinstance(value, type) and issubclass(value, Event)} - {
        Event
    }
    assert defined == set(KINDS)


def test_no_two_events_share_a_kind() -> None:
    assert len({kind.kind for kind in KINDS}) == len(KINDS)


@each_kind
def test_events_stand_directly_below_event(kind: type[Event]) -> None:
    # A subscription to one type must not bring another one along.
    assert kind.__bases__ == (Event,)


# --- severities that depend on fields ---


@pytest.mark.parametrize(
    ("to_state", "severity"),
    [
        (CircuitState.OPEN, "error"),
        ("open", "error"),
        (CircuitState.HALF_OPEN, "warning"),
        (CircuitState.CLOSED, "info"),
        (CircuitState.FORCED_OPEN, "warning"),
        (CircuitState.DISABLED, "warning"),
        (CircuitState.METRICS_ONLY, "warning"),
    ],
)
def test_a_circuit_that_opens_is_an_error_and_one_that_closes_is_good_news(to_state: str, severity: str) -> None:
    # from_state the opposite, so that judging by the wrong field shows.
    from_state = CircuitState.CLOSED if to_state == "open" else CircuitState.OPEN
    changed = CircuitStateChanged("payments", 1.0, from_state, to_state, 2, "failure_rate", 0.5, None, 10, 30.0)
    assert changed.severity == severity
    assert changed.as_dict()["severity"] == severity


@pytest.mark.parametrize(("delay", "severity"), [(0.5, "warning"), (0.0, "warning"), (None, "error")])
def test_a_failed_attempt_is_an_error_only_when_no_retry_follows(delay: float | None, severity: str) -> None:
    failed = AttemptFailed("search", 1.0, 1, 3, delay, 0.1, None, "ValueError", "call-1")
    assert failed.severity == severity
    assert failed.as_dict()["severity"] == severity


@pytest.mark.parametrize(("stop_reason", "severity"), [("success", "debug"), ("attempts", "warning")])
def test_a_retried_call_that_succeeded_is_not_worth_a_line(stop_reason: str, severity: str) -> None:
    stopped = RetryStopped("search", 1.0, stop_reason, 2)
    assert stopped.severity == severity
    assert stopped.as_dict()["severity"] == severity


@each_kind
def test_all_other_severities_are_those_of_the_class(kind: type[Event]) -> None:
    if kind not in (CircuitStateChanged, AttemptFailed, RetryStopped):
        assert example(kind).severity == example(kind, none=True).severity == kind.default_severity


def test_severity_cannot_be_set_on_an_event() -> None:
    with pytest.raises(AttributeError):
        CacheHit("users", 1.0).severity = "error"  # type: ignore[misc]


# --- what all events have in common ---


@each_kind
def test_events_have_slots_and_no_dict(kind: type[Event]) -> None:
    event = example(kind)
    assert not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        event.unheard_of = 1  # type: ignore[attr-defined]


def test_an_event_knows_the_wall_time_of_its_creation() -> None:
    before = time.time()
    event = CacheHit("users", 1.0)
    assert before <= event.wall <= time.time()


def test_wall_and_seq_are_not_for_the_caller_to_give() -> None:
    with pytest.raises(TypeError):
        CacheHit("users", 1.0, wall=0.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        CacheHit("users", 1.0, seq=0)  # type: ignore[call-arg]


def test_seq_increases_over_all_types() -> None:
    seqs = [example(random.Random(0).choice(KINDS)).seq for _ in range(100)]
    assert seqs == sorted(set(seqs))


def test_seq_is_given_once_over_all_threads() -> None:
    drawn: list[list[int]] = [[] for _ in range(8)]
    start = threading.Barrier(len(drawn))

    def draw(mine: list[int]) -> None:
        start.wait()
        mine.extend(CacheHit("users", 1.0).seq for _ in range(2_000))

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in drawn)
    assert len({seq for mine in drawn for seq in mine}) == 8 * 2_000


@each_kind
@pytest.mark.parametrize("none", [False, True])
def test_as_dict_is_flat_and_goes_through_json(kind: type[Event], none: bool) -> None:
    event = example(kind, none=none)
    told = event.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert all(value is None or type(value) in (str, int, float, bool) for value in told.values())
    assert list(told)[:2] == ["kind", "severity"]
    assert set(told) == {"kind", "severity", *(field.name for field in dataclasses.fields(kind))}
    assert {field.name: told[field.name] for field in dataclasses.fields(kind)} == {
        field.name: getattr(event, field.name) for field in dataclasses.fields(kind)
    }


@each_kind
def test_no_field_has_a_name_that_the_log_keeps_for_itself(kind: type[Event]) -> None:
    assert not NEVER_A_KEY & set(example(kind).as_dict())


def test_states_are_plain_strings_in_the_dict() -> None:
    rejected = CallRejected("payments", 1.0, CircuitState.OPEN, 3.0).as_dict()
    assert (rejected["state"], type(rejected["state"])) == ("open", str)
    changed = CircuitStateChanged(
        "payments", 1.0, CircuitState.CLOSED, CircuitState.HALF_OPEN, 2, "reset", None, None, 0, None
    ).as_dict()
    assert [(changed[key], type(changed[key])) for key in ("from_state", "to_state")] == [
        ("closed", str),
        ("half_open", str),
    ]


def test_changing_the_dict_leaves_the_event_alone() -> None:
    event = CacheHit("users", 1.0)
    event.as_dict()["name"] = "orders"
    assert event.name == "users"


@each_kind
def test_the_repr_shows_type_and_all_fields(kind: type[Event]) -> None:
    event = example(kind)
    shown = ", ".join(f"{field.name}={getattr(event, field.name)!r}" for field in dataclasses.fields(kind))
    assert repr(event) == f"{kind.__name__}({shown})"


@each_kind
def test_events_survive_pickling_and_copying(kind: type[Event]) -> None:
    event = example(kind)
    for arrived in (pickle.loads(pickle.dumps(event)), copy.copy(event), copy.deepcopy(event)):
        assert type(arrived) is kind
        assert arrived is not event
        assert arrived == event
        assert arrived.seq == event.seq


def test_events_compare_by_type_and_all_fields() -> None:
    event = CallFailed("payments", 1.0, 0.2, slow=False, error_type="ValueError")
    same = copy.copy(event)
    assert event == same
    same.slow = True
    assert event != same
    assert CacheHit("users", 1.0) != CacheHit("users", 1.0)  # two events: their seq differs
    assert event != "event"


def test_events_of_different_types_differ_though_their_fields_agree() -> None:
    failed, used = CallIgnored("search", 1.0, 0.0, "E"), FallbackUsed("search", 1.0, "E")
    assert failed != used
    added, hit = events.BreakerAdded("x", 1.0), CacheHit("x", 1.0)
    hit.seq, hit.wall = added.seq, added.wall
    assert added != hit


def test_events_are_not_hashable_because_they_can_change() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(CacheHit("users", 1.0))


def test_annotations_resolve_at_run_time() -> None:
    # Whoever builds a schema from the records (pydantic, cattrs, a columnar store) asks for them.
    for kind in KINDS:
        assert {field.name for field in dataclasses.fields(kind)} <= set(typing.get_type_hints(kind))


# --- events of one's own ---


def test_a_users_own_event_works_as_the_librarys_do() -> None:
    @dataclasses.dataclass(slots=True, repr=False, eq=False)
    class CoffeeMade(Event):
        kind: ClassVar[str] = "kitchen.coffee_made"
        default_severity: ClassVar[events.Severity] = "info"
        cups: int

    with events.capture() as heard:
        events.emit(CoffeeMade("kitchen", 1.0, cups=2))
    assert [one.as_dict()["cups"] for one in heard] == [2]
    assert heard[0].severity == "info"
    assert "cups=2" in repr(heard[0])


def test_each_event_type_exists_once() -> None:
    # Slotted dataclasses are made twice, and the first one hides among the subclasses until it is collected. Whoever
    # walks these at import (the log does) would keep it for ever and refresh it with every subscription.
    script = (
        "import gc; from resilience.events import Event; gc.collect(); "
        "names = [one.__name__ for one in Event.__subclasses__()]; print(len(names), len(set(names)))"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert told.split() == [str(len(KINDS)), str(len(KINDS))]


def test_events_dropped_tells_whose_and_how_many() -> None:
    dropped = EventsDropped("payments", 3.0, sink="outbox", dropped=7)
    assert dropped.as_dict() == {
        "kind": "events.dropped",
        "severity": "warning",
        "name": "payments",
        "at": 3.0,
        "wall": dropped.wall,
        "seq": dropped.seq,
        "sink": "outbox",
        "dropped": 7,
    }
