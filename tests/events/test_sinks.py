"""What reaches the log, in which words, and how little of a flood; and the list that tests read."""

from __future__ import annotations

import atexit
import gc
import io
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from structlog.typing import EventDict

from resilience.events import (
    AttemptFailed,
    CacheHit,
    CallRejected,
    CircuitStateChanged,
    ConnectFailed,
    Event,
    EventsDropped,
    FallbackEntered,
    FallbackLeft,
    HedgeWon,
    LimitRejected,
    PoolClosed,
    PoolExhausted,
    PoolHealthChanged,
    PoolRecovered,
    PredicateFailed,
    RetryStopped,
    Severity,
    SinkFailed,
    capture,
    disable_logging,
    enable_logging,
    records,
    subscribe,
)
from resilience.events.bus import emit
from resilience.events.flood import FloodControl, Summary


@pytest.fixture(autouse=True)
def defaults_afterwards() -> Iterator[None]:
    yield
    disable_logging()
    structlog.reset_defaults()
    assert Event.sinks == ()


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """The lines of the default log."""
    with capture_logs() as lines:
        enable_logging()
        yield lines
        disable_logging()


def rejected(name: str = "payments", at: float = 0.0) -> CallRejected:
    return CallRejected(name, at, "open", 1.0)


def opened(name: str = "payments", at: float = 0.0) -> CircuitStateChanged:
    return CircuitStateChanged(name, at, "closed", "open", 2, "failure_rate", 0.5, None, 10, 30.0)


def closed(name: str = "payments", at: float = 0.0) -> CircuitStateChanged:
    return CircuitStateChanged(name, at, "half_open", "closed", 3, "probes_succeeded", 0.0, None, 5, None)


def all_logged() -> list[Event]:
    """One event of each type that is not always debug, with the names of its fields as texts."""
    kinds = [value for value in vars(records).values() if isinstance(value, type) and issubclass(value, Event)]
    told: list[Event] = []
    for kind in kinds:
        if kind.default_severity != "debug":
            own: dict[str, Any] = {field.name: f"<{field.name}>" for field in fields(kind)[4:]}
            told.append(kind("component-1", 7.0, **own))
    return told


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in an interpreter of its own: some promises are about imports and exits."""
    given_environment = {key: value for key, value in os.environ.items() if key != "RESILIENCE_LOG"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=given_environment | environment,
    )


# --- which events become lines, and how they read ---


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (opened(), "error"),
        (rejected(), "warning"),
        (closed(), "info"),
        (AttemptFailed("search", 0.0, 1, 3, 0.5, 0.1, None, "ValueError", "call-1"), "warning"),
        (AttemptFailed("search", 0.0, 3, 3, None, 0.1, None, "ValueError", "call-1"), "error"),
        (PoolRecovered("db", 0.0, 2.0), "info"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_severity_is_the_level_of_the_line(log: list[EventDict], event: Event, severity: str) -> None:
    emit(event)
    assert [(line["event"], line["log_level"]) for line in log] == [(event.kind, severity)]


def test_debug_is_never_logged(log: list[EventDict]) -> None:
    for event in (CacheHit("users", 0.0), HedgeWon("search", 0.0, 2), RetryStopped("search", 0.0, "success", 2)):
        emit(event)
    assert log == []


def test_a_debug_event_takes_no_place_in_the_flood_control(log: list[EventDict]) -> None:
    for _ in range(10):
        emit(RetryStopped("search", 0.0, "success", 2))
    emit(RetryStopped("search", 0.0, "attempts", 3))
    assert [line["stop_reason"] for line in log] == ["attempts"]


def test_the_log_listens_to_exactly_the_types_that_can_be_more_than_debug(log: list[EventDict]) -> None:
    kinds = {value for value in vars(records).values() if isinstance(value, type) and issubclass(value, Event)}
    assert {kind for kind in kinds - {Event} if kind.sinks} == {type(event) for event in all_logged()}


@pytest.mark.parametrize("event", all_logged(), ids=lambda event: type(event).__name__)
def test_a_line_has_the_fields_of_its_event_and_nothing_the_logger_adds_itself(
    log: list[EventDict], event: Event
) -> None:
    emit(event)
    (line,) = log
    told = event.as_dict()
    expected: dict[str, object] = {"event": event.kind, "log_level": event.severity, "component": "component-1"}
    expected |= {key: value for key, value in told.items() if key not in ("kind", "severity", "name", "at", "wall")}
    assert line == expected
    assert line["seq"] == event.seq


def test_every_event_passes_through_the_standard_librarys_logging(caplog: pytest.LogCaptureFixture) -> None:
    # `logging` refuses extras named as attributes of its records, such as `name` and `msg`.
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    caplog.set_level(logging.INFO)
    enable_logging()
    told = all_logged()
    with capture(SinkFailed) as failures:
        for event in told:
            emit(event)
    assert failures == [event for event in told if isinstance(event, SinkFailed)]
    assert [(line.name, line.levelname.lower(), line.message) for line in caplog.records] == [
        ("resilience", event.severity, event.kind) for event in told
    ]
    assert {vars(line)["component"] for line in caplog.records} == {"component-1"}
    assert [vars(line)["seq"] for line in caplog.records] == [event.seq for event in told]


def test_a_level_of_the_application_filters_lines(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    enable_logging()
    emit(rejected())
    emit(opened())
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [opened().kind]


# --- when structlog is loaded and bound ---


def test_structlog_is_loaded_with_the_first_event_that_is_logged_and_not_before() -> None:
    script = """
import sys
from resilience.events import *
loaded = lambda: "structlog" in sys.modules
told = [loaded()]
with subscribe(lambda event: None):
    emit(CacheHit("users", 0.0))
    emit(RetryStopped("search", 0.0, "success", 1))
    told.append(loaded())
emit(PoolExhausted("db", 0.0))
told.append(loaded())
print(told)
"""
    done = run(script)
    assert done.stdout.strip() == "[False, False, True]"
    assert "pool.exhausted" in done.stderr  # where nobody has configured structlog: standard output is for data


@pytest.mark.parametrize(
    ("value", "listens"),
    [("off", False), (" OFF ", False), ("0", False), ("false", False), ("No", False), ("on", True), ("", True)],
)
def test_the_environment_can_switch_the_log_off(value: str, listens: bool) -> None:
    script = "from resilience.events import *; print(len(PoolExhausted.sinks)); emit(PoolExhausted('db', 0.0))"
    done = run(script, RESILIENCE_LOG=value)
    assert done.stdout.strip() == str(int(listens))
    assert ("pool.exhausted" in done.stderr) is listens


def test_the_log_can_be_switched_on_in_spite_of_the_environment() -> None:
    script = "from resilience.events import *; enable_logging(); emit(PoolExhausted('db', 0.0))"
    assert "pool.exhausted" in run(script, RESILIENCE_LOG="off").stderr


def test_the_log_is_bound_after_the_application_has_configured_it() -> None:
    enable_logging()
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(stream)
    )
    emit(rejected())
    assert json.loads(stream.getvalue())["component"] == "payments"


def test_enabling_again_binds_the_log_to_a_later_configuration() -> None:
    streams = [io.StringIO(), io.StringIO()]
    for stream in streams:
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(stream),
            cache_logger_on_first_use=True,
        )
        enable_logging()
        emit(rejected())
    assert [stream.getvalue().count("\n") for stream in streams] == [1, 1]


def test_enabling_twice_writes_each_line_once(log: list[EventDict]) -> None:
    enable_logging()
    enable_logging()
    emit(rejected())
    assert len(log) == 1
    assert len(CallRejected.sinks) == 1


def test_disabling_twice_is_fine_and_leaves_other_sinks_alone(log: list[EventDict]) -> None:
    with capture() as heard:
        disable_logging()
        disable_logging()
        emit(rejected())
    assert log == []
    assert len(heard) == 1


def test_enabling_after_disabling_starts_with_nothing_suppressed(log: list[EventDict]) -> None:
    for _ in range(5):
        emit(rejected())
    disable_logging()
    enable_logging()
    emit(rejected())
    assert len(log) == 6


def test_switching_from_many_threads_leaves_one_log() -> None:
    start = threading.Barrier(8)

    def switch() -> None:
        start.wait()
        for _ in range(20):
            enable_logging()

    threads = [threading.Thread(target=switch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(CallRejected.sinks) == 1
    disable_logging()
    assert not CallRejected.sinks


# --- a log that fails ---


def print_to(stream: io.StringIO) -> None:
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(stream)
    )


def test_a_stream_that_was_closed_does_not_silence_the_log_for_ever() -> None:
    first, second = io.StringIO(), io.StringIO()
    print_to(first)
    enable_logging()
    emit(rejected("a"))
    first.close()
    print_to(second)
    with capture(SinkFailed) as failures:
        emit(rejected("b"))  # lost with its stream, and told
        emit(rejected("c"))
    assert [json.loads(line)["component"] for line in second.getvalue().splitlines()] == ["c"]
    assert [(failure.sink, failure.error_type) for failure in failures] == [("LogSink", "ValueError")]


def test_a_stream_that_stays_closed_makes_nothing_grow() -> None:
    stream = io.StringIO()
    stream.close()
    print_to(stream)
    enable_logging()
    emit(rejected())
    before = atexit._ncallbacks()
    for number in range(50):
        emit(rejected(at=10.0 * number))
    assert atexit._ncallbacks() == before


def test_disabling_leaves_nothing_behind_for_the_exit(log: list[EventDict]) -> None:
    emit(rejected())
    (subscription,) = CallRejected.sinks
    sink = weakref.ref(subscription._sink)
    del subscription
    disable_logging()
    gc.collect()
    assert sink() is None


def test_disabling_with_a_closed_stream_raises_nothing() -> None:
    stream = io.StringIO()
    print_to(stream)
    enable_logging()
    for _ in range(6):
        emit(rejected())
    stream.close()
    disable_logging()


FLOOD_SCRIPT = """
import sys
import structlog
from resilience.events import *
structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
for _ in range(12):
    emit(CallRejected("payments", 0.0, "open", 1.0))
"""


def test_what_was_suppressed_is_told_at_exit() -> None:
    lines = [json.loads(line) for line in run(FLOOD_SCRIPT).stdout.splitlines()]
    assert [line.get("suppressed") for line in lines] == [None] * 5 + [7]


def test_what_was_suppressed_is_told_at_exit_also_by_a_log_that_was_switched_on_later() -> None:
    script = FLOOD_SCRIPT.replace("for _ in", "enable_logging()\nfor _ in")
    lines = [json.loads(line) for line in run(script, RESILIENCE_LOG="off").stdout.splitlines()]
    assert [line.get("suppressed") for line in lines] == [None] * 5 + [7]


def test_a_stream_that_is_gone_at_exit_is_no_traceback() -> None:
    done = run(FLOOD_SCRIPT + "sys.stdout.flush(); sys.stdout.close()")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 5


# --- floods ---


def test_ten_thousand_rejections_in_a_second_are_five_lines_and_a_summary(log: list[EventDict]) -> None:
    with capture(CallRejected) as heard:
        for number in range(10_000):
            if number == 5_000:
                emit(opened(at=0.5))
            emit(rejected(at=number / 10_000))
        assert len(heard) == 10_000
    assert Counter(line["event"] for line in log) == {CallRejected.kind: 5, CircuitStateChanged.kind: 1}
    assert [line["seq"] for line in log] == sorted(line["seq"] for line in log)
    log.clear()
    emit(closed(at=11.0))
    assert log == [
        {
            "event": CallRejected.kind,
            "log_level": "warning",
            "component": "payments",
            "suppressed": 9_995,
        },
        log[1],
    ]
    assert log[1]["to_state"] == "closed"


def test_what_is_suppressed_still_is_told_when_the_log_is_switched_off(log: list[EventDict]) -> None:
    for _ in range(10_000):
        emit(rejected())
    disable_logging()
    assert len(log) == 6
    assert log[-1]["suppressed"] == 9_995


def test_no_summary_comes_where_nothing_was_suppressed(log: list[EventDict]) -> None:
    for _ in range(5):
        emit(rejected(at=0.0))
    emit(rejected(at=10.0))
    disable_logging()
    assert len(log) == 6
    assert not any("suppressed" in line for line in log)


def test_many_threads_are_counted_without_a_loss(log: list[EventDict]) -> None:
    start = threading.Barrier(8)

    def flood() -> None:
        start.wait()
        for _ in range(500):
            emit(rejected())

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=flood) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    disable_logging()
    assert len(log) == 6
    assert log[-1]["suppressed"] == 8 * 500 - 5


def test_floods_are_counted_under_the_lock_alone(log: list[EventDict], monkeypatch: pytest.MonkeyPatch) -> None:
    # What the test above finds by chance only: two threads that both were the fifth.
    (subscription,) = CallRejected.sinks
    sink = subscription._sink
    locked: list[bool] = []

    def watched(event: Event) -> tuple[bool, list[Summary]]:
        locked.append(sink._lock._is_owned())
        return True, []

    monkeypatch.setattr(sink._flood, "judge", watched)
    emit(rejected())
    assert locked == [True]


def passes(flood: FloodControl, *events: Event) -> list[bool]:
    return [flood.judge(event)[0] for event in events]


def test_five_of_a_kind_and_component_pass_in_ten_seconds_of_their_own_clock() -> None:
    flood = FloodControl()
    assert passes(flood, *(rejected(at=100.0 + at) for at in (0, 1, 2, 3, 4, 5, 9.999))) == [True] * 5 + [False] * 2
    assert passes(flood, rejected(at=110.0)) == [True]


def test_the_first_after_quiet_passes_and_brings_the_summary() -> None:
    flood = FloodControl()
    for _ in range(8):
        flood.judge(rejected(at=0.0))
    assert flood.judge(rejected(at=1_000.0)) == (
        True,
        [Summary(CallRejected.kind, "payments", "warning", 3)],
    )
    assert flood.judge(rejected(at=1_000.0)) == (True, [])


def test_the_summary_comes_with_the_next_event_of_the_component_whatever_its_kind() -> None:
    flood = FloodControl()
    for _ in range(6):
        flood.judge(rejected("payments", at=0.0))
        flood.judge(rejected("search", at=0.0))
    for _ in range(6):
        flood.judge(PredicateFailed("payments", 1.0, "ignore", "ValueError"))
    assert flood.judge(rejected("orders", at=50.0)) == (True, [])
    # Same name, other kind of component: not this breaker's matter.
    assert flood.judge(PoolExhausted("payments", 50.0)) == (True, [])
    passed, summaries = flood.judge(opened("payments", at=10.5))
    assert (passed, summaries) == (True, [Summary(CallRejected.kind, "payments", "warning", 1)])
    passed, summaries = flood.judge(opened("payments", at=11.0))
    assert (passed, summaries) == (True, [Summary(PredicateFailed.kind, "payments", "error", 1)])


def test_kinds_and_components_are_limited_each_for_itself() -> None:
    flood = FloodControl()
    assert passes(flood, *[rejected("payments")] * 6) == [True] * 5 + [False]
    assert passes(flood, *[rejected("search")] * 6) == [True] * 5 + [False]
    assert passes(flood, *[PredicateFailed("payments", 0.0, "ignore", "E")] * 6) == [True] * 5 + [False]
    assert passes(flood, *[LimitRejected("payments", 0.0, 1, 1.0, None, "memory", "limit")] * 6) == [True] * 5 + [False]


@pytest.mark.parametrize(
    "change",
    [
        opened(),
        closed(),
        FallbackEntered("api", 0.0, "timeout", 3, "share"),
        FallbackLeft("api", 0.0, 4.0, 10),
        PoolClosed("db", 0.0, 0),
        PoolHealthChanged("db", 0.0, "up", "down", "OSError", 0.0),
    ],
    ids=lambda event: f"{type(event).__name__}-{event.severity}",
)
def test_changes_of_state_are_never_suppressed(change: Event) -> None:
    flood = FloodControl()
    assert passes(flood, *[change] * 50) == [True] * 50
    assert flood.close() == []


def test_what_was_counted_of_an_outage_is_told_before_its_end() -> None:
    flood = FloodControl()
    failed = ConnectFailed("db", 0.0, "OSError", 1, 0.1)
    assert passes(flood, *[failed] * 8) == [True] * 5 + [False] * 3
    passed, summaries = flood.judge(PoolHealthChanged("db", 1.0, "down", "up", None, 1.0))
    assert (passed, summaries) == (True, [Summary(ConnectFailed.kind, "db", "warning", 3)])
    assert flood.close() == []


def test_a_clock_that_runs_backwards_begins_a_new_interval() -> None:
    # The component was made anew under its name, with another clock.
    flood = FloodControl()
    assert passes(flood, *[rejected(at=500.0)] * 7) == [True] * 5 + [False] * 2
    assert flood.judge(rejected(at=3.0)) == (True, [Summary(CallRejected.kind, "payments", "warning", 2)])
    assert passes(flood, *[rejected(at=3.0)] * 5) == [True] * 4 + [False]
    assert passes(flood, rejected(at=13.0)) == [True]


def test_a_step_back_ends_only_the_intervals_that_began_later() -> None:
    flood = FloodControl()
    for _ in range(6):
        flood.judge(rejected(at=0.0))
    for _ in range(6):
        flood.judge(PredicateFailed("payments", 5.0, "ignore", "E"))
    assert flood.judge(opened(at=2.0)) == (True, [Summary(PredicateFailed.kind, "payments", "error", 1)])
    assert passes(flood, rejected(at=2.0)) == [False]
    assert passes(flood, PredicateFailed("payments", 2.0, "ignore", "E")) == [True]


def test_closing_tells_all_that_is_untold_and_forgets() -> None:
    flood = FloodControl()
    for _ in range(7):
        flood.judge(rejected("payments"))
        flood.judge(rejected("search"))
        flood.judge(PredicateFailed("search", 0.0, "ignore", "ValueError"))
    assert sorted((one.name, one.kind, one.severity, one.suppressed) for one in flood.close()) == [
        ("payments", CallRejected.kind, "warning", 2),
        ("search", CallRejected.kind, "warning", 2),
        ("search", PredicateFailed.kind, "error", 2),
    ]
    assert flood.close() == []
    assert passes(flood, rejected("payments")) == [True]


def test_a_thousand_and_twenty_four_components_are_told_apart_and_the_others_share_one_place() -> None:
    flood = FloodControl()
    for number in range(1_024):
        assert passes(flood, *[rejected(f"known-{number}")] * 6) == [True] * 5 + [False]
    strangers = [rejected(f"stranger-{number}") for number in range(2_000)]
    assert sum(passes(flood, *strangers)) == 5
    assert len(flood._components) == 1_024 + 1
    # Those that are known keep a place of their own.
    assert flood.judge(rejected("known-7", at=10.0)) == (True, [Summary(CallRejected.kind, "known-7", "warning", 1)])
    assert flood.judge(rejected("stranger-1", at=10.0)) == (
        True,
        [Summary(CallRejected.kind, "(others)", "warning", 1_995)],
    )
    assert Summary(CallRejected.kind, "known-8", "warning", 1) in flood.close()
    assert len(flood._components) == 0


def test_changes_of_state_of_a_stranger_pass() -> None:
    flood = FloodControl()
    for number in range(1_024):
        flood.judge(rejected(f"known-{number}"))
    assert passes(flood, *[opened("stranger")] * 20) == [True] * 20


def test_strangers_with_different_clocks_do_not_end_each_others_interval() -> None:
    flood = FloodControl()
    for number in range(1_024):
        flood.judge(rejected(f"known-{number}"))
    for number in range(5):
        assert passes(flood, rejected(f"stranger-{number}", at=500.0)) == [True]
    assert passes(flood, *[rejected("behind", at=3.0), rejected("ahead", at=501.0)] * 20) == [False] * 40


class NaiveFlood:
    """The rule written down once more: every interval keeps the times of all its events."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.components: list[tuple[str, str]] = []
        self.intervals: dict[tuple[tuple[str, str], str], list[float]] = {}

    def judge(self, event: Event) -> tuple[bool, list[tuple[str, str, int]]]:
        who = (event.kind.split(".")[0], event.name)
        if who not in self.components:
            if len(self.components) < self.cap:
                self.components.append(who)
            else:
                who = ("", "(others)")
        due = []
        for (owner, kind), times in list(self.intervals.items()):
            elapsed = event.at - times[0]
            if owner == who and (elapsed >= 10 or (elapsed < 0 and who != ("", "(others)"))):
                del self.intervals[owner, kind]
                due += self.summary(owner, kind, times)
        if isinstance(event, CircuitStateChanged):
            return True, due
        times = self.intervals.setdefault((who, event.kind), [])
        times.append(event.at)
        return len(times) <= 5, due

    def close(self) -> list[tuple[str, str, int]]:
        return [one for (owner, kind), times in self.intervals.items() for one in self.summary(owner, kind, times)]

    @staticmethod
    def summary(owner: tuple[str, str], kind: str, times: list[float]) -> list[tuple[str, str, int]]:
        return [(kind, owner[1], len(times) - 5)] if len(times) > 5 else []


MAKERS = [rejected, opened, lambda name, at: PredicateFailed(name, at, "ignore", "E"), PoolExhausted]


@given(
    story=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.0, 2.5, 5.0, 10.0, 20.0, -2.5, -10.0]),  # seconds since the last event
            st.sampled_from("aaabcd"),
            st.sampled_from(MAKERS),
            st.sampled_from([1, 1, 3, 6, 7]),  # times in a row
        ),
        max_size=40,
    ),
    start=st.sampled_from([0.0, -10.0, 1e9]),
)
def test_flood_control_agrees_with_the_rule_written_naively(story: list[tuple[Any, ...]], start: float) -> None:
    model = NaiveFlood(cap=3)
    suppressed = 0
    with patch("resilience.events.flood.MAX_COMPONENTS", 3):
        flood, now = FloodControl(), start
        for step, name, make, times in story:
            now += step
            for _ in range(times):
                event = make(name, now)
                passed, summaries = flood.judge(event)
                found = [(one.kind, one.name, one.suppressed) for one in summaries]
                expected_passed, expected = model.judge(event)
                assert (passed, sorted(found)) == (expected_passed, sorted(expected))
                suppressed += not passed
                suppressed -= sum(one.suppressed for one in summaries)
        rest = flood.close()
    assert sorted((one.kind, one.name, one.suppressed) for one in rest) == sorted(model.close())
    assert suppressed == sum(one.suppressed for one in rest)


# --- a list, in tests ---


def test_capture_gives_what_happens_in_its_block() -> None:
    emit(rejected())
    with capture() as heard:
        assert heard == []
        told = [rejected(), CacheHit("users", 0.0)]
        for event in told:
            emit(event)
    emit(rejected())
    assert heard == told


def test_capture_keeps_only_the_types_it_was_asked_for() -> None:
    with capture(CacheHit, HedgeWon) as heard:
        emit(rejected())
        emit(HedgeWon("search", 0.0, 2))
        emit(CacheHit("users", 0.0))
    assert [type(event) for event in heard] == [HedgeWon, CacheHit]


def test_capture_keeps_only_the_component_it_was_asked_for() -> None:
    with capture(name="users") as heard, capture(CacheHit, name="orders") as others:
        emit(CacheHit("users", 0.0))
        emit(CacheHit("orders", 0.0))
        emit(rejected("orders"))
    assert [event.name for event in heard] == ["users"]
    assert [event.name for event in others] == ["orders"]


def test_capture_hears_other_threads() -> None:
    with capture(CacheHit) as heard:
        thread = threading.Thread(target=emit, args=(CacheHit("users", 0.0),))
        thread.start()
        thread.join()
    assert len(heard) == 1


def test_capture_ends_with_its_block_also_by_an_exception() -> None:
    def fail() -> None:
        with capture():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Event.sinks == ()


def test_capture_keeps_the_first_hundred_thousand() -> None:
    event, last = CacheHit("users", 0.0), CacheHit("users", 1.0)
    with capture(CacheHit) as heard:
        for _ in range(100_000):
            emit(event)
        emit(last)
    assert len(heard) == 100_000
    assert last not in heard[-1:]


def test_capture_refuses_what_is_no_event_type() -> None:
    from resilience import ConfigurationError

    with pytest.raises(ConfigurationError, match="types must be event types"), capture(int):  # type: ignore[type-var]
        pass


# --- what else the log promises ---


def test_a_users_own_event_is_logged_when_the_log_is_switched_on_after_its_definition() -> None:
    class CoffeeGone(Event):
        kind: ClassVar[str] = "kitchen.coffee_gone"
        default_severity: ClassVar[Severity] = "warning"

    with capture_logs() as lines:
        enable_logging()
        emit(CoffeeGone("kitchen", 0.0))
    assert [line["event"] for line in lines] == ["kitchen.coffee_gone"]


def test_dropped_events_and_failing_sinks_are_lines_as_well(log: list[EventDict]) -> None:
    with subscribe(lambda _: 1 / 0, CacheHit):
        emit(CacheHit("users", 0.0))
    emit(EventsDropped("users", 0.0, "outbox", 3))
    assert [(line["event"], line["log_level"]) for line in log] == [
        ("events.sink_failed", "error"),
        ("events.dropped", "warning"),
    ]
