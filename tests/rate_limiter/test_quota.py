"""What is allowed: quotas, how they are written, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from typing import Any

import pytest

from resilience import ConfigurationError
from resilience.rate_limiter import Quota, parse_quotas
from resilience.rate_limiter.quota import MAX_LIMIT, MAX_LOG, MAX_PER, MAX_QUOTAS, checked_quotas

SYNTAX = "such as '100/minute', '10 per second burst 20' or '30/30min'"
UNITS = "ms, millisecond, s, sec, second, m, min, minute, h, hr, hour, d, day, w, week"


def refusal(*args: Any, **fields: Any) -> str:
    """Give the message with which `Quota(...)` is refused."""
    with pytest.raises(ConfigurationError) as refused:
        Quota(*args, **fields)
    return str(refused.value)


def parse_refusal(text: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Quota.parse(text)
    return str(refused.value)


# --- the record ---


def test_a_quota_is_gcra_with_its_limit_as_burst_by_default() -> None:
    quota = Quota(100, 60)
    assert dataclasses.asdict(quota) == {
        "limit": 100,
        "per": 60,
        "burst": None,
        "algorithm": "gcra",
        "timezone": "UTC",
    }
    assert quota.capacity == 100


def test_a_burst_is_what_can_pass_at_once() -> None:
    assert Quota(100, 60, burst=7).capacity == 7
    assert Quota(100, 60, burst=700).capacity == 700


def test_a_quota_is_immutable_equal_by_value_and_survives_pickling() -> None:
    quota = Quota(5, 2.5, burst=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quota.limit = 6  # type: ignore[misc]
    assert quota == Quota(5, 2.5, burst=3)
    assert hash(quota) == hash(Quota(5, 2.5, burst=3))
    assert quota != Quota(5, 2.5)
    assert pickle.loads(pickle.dumps(quota)) == quota


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        (Quota(100, 60), "100 per 60 s"),
        (Quota(1, 0.001), "1 per 0.001 s"),
        (Quota(10, 1, burst=20), "10 per 1 s burst 20"),
        (Quota(3, 5, algorithm="sliding_log"), "3 per 5 s sliding_log"),
        (Quota(3, 86_400, algorithm="fixed_window"), "3 per 86400 s fixed_window"),
    ],
)
def test_a_quota_reads_as_it_would_be_said(quota: Quota, text: str) -> None:
    assert str(quota) == text


@pytest.mark.parametrize(
    ("per", "microseconds"), [(1e-6, 1), (0.1, 100_000), (1 / 3, 333_333), (MAX_PER, 316224000000000)]
)
def test_a_period_is_kept_to_the_microsecond(per: float, microseconds: int) -> None:
    assert Quota(1, per).microseconds == microseconds


def test_the_extremes_are_quotas() -> None:
    Quota(1, 1e-6, burst=1)
    Quota(MAX_LIMIT, MAX_PER, burst=MAX_LIMIT)
    Quota(MAX_LOG, 1, algorithm="sliding_log")
    for per in (1e-6, 0.001, 1, 60, 3_600, 7_200, 43_200, 86_400):
        Quota(1, per, algorithm="fixed_window")


# --- what is refused ---


@pytest.mark.parametrize("field", ["limit", "burst"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0, "must be at least 1, got 0"),
        (-1, "must be at least 1, got -1"),
        (MAX_LIMIT + 1, "must be at most 1,000,000,000, got 1000000001"),
        (True, "must be an int, got True"),
        (1.0, "must be an int, got 1.0"),
        ("5", "must be an int, got '5'"),
        (math.nan, "must be an int, got nan"),
    ],
)
def test_limit_and_burst_are_whole_numbers_in_range(field: str, value: object, rule: str) -> None:
    assert refusal(**({"limit": 5, "per": 1} | {field: value})) == f"{field} {rule}"


def test_a_limit_of_none_is_refused() -> None:
    assert refusal(None, 1) == "limit must be an int, got None"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0, "must be more than 0, got 0"),
        (-1.5, "must be more than 0, got -1.5"),
        (math.nan, "must be finite, got nan"),
        (math.inf, "must be finite, got inf"),
        (MAX_PER + 1, "must be at most 3.16224e+08, got 316224001.0"),
        (1e-7, "must be at least a microsecond, 1e-06, got 1e-07"),
        (10**400, "must be finite, got " + "1" + "0" * 99 + "..."),
        ("1", "must be a number, got '1'"),
        (None, "must be a number, got None"),
        (True, "must be a number, got True"),
    ],
)
def test_a_period_is_a_number_of_seconds_in_range(value: object, rule: str) -> None:
    assert refusal(5, value) == f"per {rule}"


def test_an_unknown_algorithm_is_refused_with_those_that_there_are() -> None:
    assert refusal(5, 1, algorithm="leaky") == ("algorithm must be one of gcra, sliding_log, fixed_window, got 'leaky'")
    assert refusal(5, 1, algorithm=None).endswith("got None")
    assert refusal(5, 1, algorithm=["gcra"]).endswith("got ['gcra']")


@pytest.mark.parametrize("algorithm", ["sliding_log", "fixed_window"])
def test_only_gcra_has_a_burst(algorithm: str) -> None:
    assert refusal(5, 1, burst=5, algorithm=algorithm) == f"burst must be None with {algorithm}, got 5"


def test_a_log_that_would_keep_too_much_is_refused() -> None:
    assert refusal(MAX_LOG + 1, 1, algorithm="sliding_log") == (
        "limit must be at most 10,000 with sliding_log, which keeps every call, got 10001"
    )


@pytest.mark.parametrize("per", [7, 61, 86_401, 172_800, 0.7, 86_400 / 7])
def test_a_window_that_does_not_divide_a_day_is_refused(per: float) -> None:
    assert refusal(5, per, algorithm="fixed_window") == (
        f"per must divide a day with fixed_window, as 60, 3600 and 86400 do, got {per}"
    )


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", "Europe", None, 3, "a\0b"])
def test_a_time_zone_that_there_is_not_is_refused(timezone: object) -> None:
    message = refusal(5, 60, algorithm="fixed_window", timezone=timezone)
    assert message == f"timezone must be an IANA name such as 'Europe/Berlin', got {timezone!r}"


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_log"])
def test_only_fixed_windows_have_a_time_zone(algorithm: str) -> None:
    assert refusal(5, 60, algorithm=algorithm, timezone="Europe/Berlin") == (
        f"timezone must be 'UTC' with {algorithm}, which has no windows, got 'Europe/Berlin'"
    )


# --- how they are written ---


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("1/SECOND", Quota(1, 1)),
        ("1 / Second", Quota(1, 1)),
        ("1 per second", Quota(1, 1)),
        ("1 PER second", Quota(1, 1)),
        ("  1\tper\n second  ", Quota(1, 1)),
        ("1 per 3 hour", Quota(1, 10_800)),
        ("1 per 3 hours", Quota(1, 10_800)),
        ("1/2 day", Quota(1, 172_800)),
        ("1/2day", Quota(1, 172_800)),
        ("30/30min", Quota(30, 1_800)),
        ("100 per second burst 120", Quota(100, 1, burst=120)),
        ("100/second burst=120", Quota(100, 1, burst=120)),
        ("100/second BURST = 120", Quota(100, 1, burst=120)),
        ("100/second\tburst120", Quota(100, 1, burst=120)),
        ("5/0.5s", Quota(5, 0.5)),
        ("007/s", Quota(7, 1)),
    ],
)
def test_a_quota_can_be_written_in_many_ways(text: str, quota: Quota) -> None:
    assert Quota.parse(text) == quota


@pytest.mark.parametrize(
    ("units", "seconds"),
    [
        ("ms millisecond milliseconds", 0.001),
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", 60),
        ("h hr hrs hour hours", 3_600),
        ("d day days", 86_400),
        ("w week weeks", 604_800),
    ],
)
def test_a_unit_has_short_and_long_names(units: str, seconds: float) -> None:
    for unit in units.split():
        assert Quota.parse(f"5/{unit}") == Quota(5, seconds)
        assert Quota.parse(f"5/2{unit.upper()}") == Quota(5, 2 * seconds)


def test_a_text_says_nothing_of_algorithm_and_time_zone() -> None:
    assert Quota.parse("5/min", algorithm="sliding_log") == Quota(5, 60, algorithm="sliding_log")
    berlin = Quota.parse("5/day", algorithm="fixed_window", timezone="Europe/Berlin")
    assert berlin == Quota(5, 86_400, algorithm="fixed_window", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ";", "burst=1", "1", "1/", "/s", "1 s", "1s", "per second", "1 per", "1per second", "1 persecond"),
        *("1/s burst", "1/s burst 1 burst 2", "1/s burst 1.5", "1/s burst -1", "1/s 5", "1.5/s", "-1/s", "+1/s"),
        *("1/-1 s", "1/s/s", "1,000/s", "1e3/s", "1/.5s", "1/5.s", "1//s", "1/s;", "1_000/s", "a/s", "1/s burst ½"),
        *("\u0661/s", "\uff11/s", "1/\u017f", "10\0/s", "1/s burst 1" + " " * 200),
    ],
)
def test_what_is_no_quota_is_refused_with_an_example(text: str) -> None:
    message = parse_refusal(text)
    assert message.startswith(f"quota must be {SYNTAX}, got ")
    assert repr(text)[:50] in message
    assert len(message) < 250


@pytest.mark.parametrize("value", [None, 5, b"1/s", ("1/s",), Quota(1, 1)])
def test_what_is_no_string_is_not_parsed(value: object) -> None:
    assert parse_refusal(value) == f"quota must be a string {SYNTAX}, got {value!r}"
    with pytest.raises(ConfigurationError, match=re.escape(f"quotas must be a string {SYNTAX}, got {value!r}")):
        parse_quotas(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["ss", "millenium", "months", "y", "decade", "msec", "secondss"])
def test_an_unknown_unit_is_refused_with_those_that_there_are(unit: str) -> None:
    assert parse_refusal(f"1 per {unit}") == f"quota must name a unit of time, one of {UNITS}, got {unit!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/s", "limit must be at least 1, got 0"),
        ("1/0s", "per must be more than 0, got 0.0"),
        ("1/s burst 0", "burst must be at least 1, got 0"),
        ("1000000001/s", "limit must be at most 1,000,000,000, got 1000000001"),
        ("1/1000 weeks", "per must be at most 3.16224e+08, got 604800000.0"),
        ("1/0.0000001s", "per must be at least a microsecond, 1e-06, got 1e-07"),
        (f"{'9' * 190}/s", f"limit must be at most 1,000,000,000, got {'9' * 100}..."),
    ],
)
def test_a_written_quota_keeps_to_the_rules_of_all_quotas(text: str, message: str) -> None:
    assert parse_refusal(text) == message


def test_a_text_that_goes_on_for_ever_is_refused_at_once() -> None:
    assert parse_refusal("1" * 1_000_000 + "/s").startswith("quota must be such as")


# --- several at once ---


def test_several_quotas_are_separated_by_semicolons() -> None:
    assert parse_quotas("10/min; 30/30min") == (Quota(10, 60), Quota(30, 1_800))
    assert parse_quotas("10/min") == (Quota(10, 60),)


@pytest.mark.parametrize("text", ["10/min;", ";10/min", "10/min;;20/h", "", ";"])
def test_an_empty_quota_between_semicolons_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^quota must be such as"):
        parse_quotas(text)


def test_quotas_have_an_order_of_their_own() -> None:
    """What is stored of a key is told apart by that order; nobody's way of writing may change it."""
    log = Quota(10, 60, algorithm="sliding_log")
    window = Quota(10, 60, algorithm="fixed_window")
    few, many, hour = Quota(5, 60), Quota(10, 60), Quota(1, 3_600)
    expected = (window, few, many, log, hour)
    assert checked_quotas([hour, log, many, few, window]) == expected
    assert checked_quotas(iter(expected)) == expected
    assert parse_quotas("1000/hour; 10/min; 5/min") == (Quota(5, 60), Quota(10, 60), Quota(1000, 3_600))


def test_quotas_come_as_text_as_one_or_as_several() -> None:
    one = Quota(5, 60)
    assert checked_quotas("5/min") == checked_quotas(one) == checked_quotas({one}) == (one,)


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        (None, f"quotas must be a string {SYNTAX}, a Quota or several, got None"),
        (5, f"quotas must be a string {SYNTAX}, a Quota or several, got 5"),
        ((), f"quotas must be 1 to {MAX_QUOTAS}, got 0"),
        ([Quota(1, 1), "1/s"], "quotas must hold Quota objects only, got '1/s'"),
        ([Quota(n, 1) for n in range(1, 10)], f"quotas must be 1 to {MAX_QUOTAS}, got 9"),
        ([Quota(1, 1), Quota(1, 1.0)], "quotas must differ from each other, got 1 per 1 s, 1 per 1 s"),
        (b"1/s", "quotas must hold Quota objects only, got 49"),
    ],
)
def test_quotas_that_make_no_sense_are_refused(quotas: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        checked_quotas(quotas)
    assert str(refused.value) == message


def test_eight_quotas_are_allowed() -> None:
    assert len(checked_quotas([Quota(n, 1) for n in range(8, 0, -1)])) == MAX_QUOTAS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Quota(10, 60, burst=20), Quota(10, 60, burst=5)),
        (Quota(10, 60, algorithm="fixed_window"), Quota(10, 60, algorithm="fixed_window", timezone="Asia/Tokyo")),
    ],
)
def test_quotas_that_differ_in_burst_or_time_zone_only_have_an_order_too(one: Quota, other: Quota) -> None:
    assert checked_quotas([one, other]) == checked_quotas([other, one])
