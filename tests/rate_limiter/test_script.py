"""What the script leaves on a server, and what it makes of what it finds there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from resilience.rate_limiter import Quota
from resilience.rate_limiter.batch import Batch, Request
from resilience.rate_limiter.gcra import longest_wait
from resilience.rate_limiter.lines import script
from resilience.rate_limiter.quota import MAX_LIMIT, MAX_PER
from tests.rate_limiter.cases import log, window
from tests.rate_limiter.machines import SECOND, START, ScriptMachine

Make = Callable[..., ScriptMachine]

QUOTAS = [Quota(10, 60), log(10, 60), window(10, 60)]
each_algorithm = pytest.mark.parametrize("quota", QUOTAS, ids=["gcra", "log", "window"])


# --- times to live ---


@each_algorithm
@pytest.mark.parametrize("moment", [0, 1, 999, 59_999_001])
def test_every_key_lives_as_long_as_it_matters_and_no_longer(quota: Quota, moment: int, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.moment = moment
    answer = machine.acquire("", 3)
    (life,) = machine.lives.values()
    assert answer.reset_after <= life * 1_000 < answer.reset_after + 1_000
    wait, answer = machine.reserve("", 10, 3_600 * SECOND)
    assert wait is not None
    assert wait > 0
    (life,) = machine.lives.values()
    assert answer.reset_after <= life * 1_000 < answer.reset_after + 1_000
    answer = machine.refund("", 10)
    (life,) = machine.lives.values()
    assert answer.reset_after <= life * 1_000 < answer.reset_after + 1_000


def test_a_key_that_drains_within_a_millisecond_lives_for_one(script_machine: Make) -> None:
    machine = script_machine(Quota(1_000_000, 1))
    assert machine.acquire("", 1).reset_after == 1
    assert list(machine.lives.values()) == [1]


@each_algorithm
def test_a_key_without_anything_in_it_is_not_kept(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.peek("", 1)
    machine.acquire("", 0)
    machine.acquire("", 11)
    machine.refund("", 5)
    machine.reset("")
    assert machine.lives == {}
    machine.acquire("", 5)
    machine.refund("", 5)
    assert machine.lives == {}
    machine.acquire("", 5)
    machine.reset("")
    assert machine.lives == {}


@each_algorithm
def test_a_block_keeps_its_key_as_long_as_it_lasts(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.block("", 7.0001)
    assert [life for life in machine.lives.values() if life != -1] == [7_001]
    machine.acquire("", 1)
    machine.block("", 1_000)
    assert max(machine.lives.values()) == 1_000_000


def test_times_to_live_arrive_on_a_real_server(client: redis.Redis) -> None:
    source, _ = script()
    rules = {"gcra": "g 6000000 1 60000000 60000001 3660000000", "log": "l 10 60000000 3660000000"}
    for name, spec in rules.items():
        client.eval(source, 2, name, f"{name}:log", "", spec, "acquire", 1, 1, 1)
    client.eval(source, 1, "window", "", "w 10 86400000000 0 0 0", "acquire", 1, 1, 1)
    client.eval(
        source,
        1,
        "instances",
        "me 30000",
    )
    lives = {name.decode(): client.pttl(name) for name in client.scan_iter()}
    assert set(lives) == {"gcra", "log:log", "window", "instances"}
    assert 5_000 < lives["gcra"] <= 6_000
    assert 59_000 < lives["log:log"] <= 60_000
    assert 0 < lives["window"] <= 86_400_000
    assert 29_000 < lives["instances"] <= 30_000


@pytest.mark.parametrize(
    "quota",
    [
        Quota(1, 1e-6, burst=1),
        Quota(MAX_LIMIT, 1e-6),
        Quota(MAX_LIMIT, MAX_PER),
        Quota(1, MAX_PER),
        Quota(1, MAX_PER, burst=MAX_LIMIT),
        log(10_000, MAX_PER),
        log(1, 1e-6),
        window(MAX_LIMIT, 1e-6),
        window(MAX_LIMIT, 86_400),
    ],
    ids=str,
)
def test_the_extremes_of_quotas_are_within_the_numbers_of_a_real_server(quota: Quota, client: redis.Redis) -> None:
    machine = ScriptMachine(quota, client)
    source, _ = script()
    batch = Batch(0.0)
    batch.join(Request(machine.remote, "acquire", "key", quota.capacity), None)
    keys, arguments = batch.encode()
    reply = client.eval(source, len(keys), *keys, "", *arguments)
    assert isinstance(reply, bytes)
    assert reply.split()[2] == b"1"


# --- a clock that steps back ---


@pytest.mark.parametrize("quota", QUOTAS, ids=str)
@pytest.mark.parametrize("step", [1, SECOND, 59 * SECOND, 86_400 * SECOND, 400 * 86_400 * SECOND])
def test_a_clock_that_steps_back_locks_a_key_for_a_period_at_most(
    quota: Quota, step: int, script_machine: Make
) -> None:
    machine = script_machine(quota, start=START + 500 * 86_400 * SECOND)
    machine.acquire("", 10)
    machine.moment = before = -step
    refused = machine.acquire("", 1)
    assert min(machine.lives.values()) >= 1
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 60 * SECOND
    assert refused.reset_after <= 60 * SECOND
    machine.moment = before + refused.retry_after
    assert machine.acquire("", 1).allowed
    machine.moment = before + 60 * SECOND
    assert machine.acquire("", 9).allowed


@each_algorithm
def test_a_clock_that_steps_back_is_no_amnesty(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota, start=START + 500 * 86_400 * SECOND)
    machine.acquire("", 7)
    machine.moment = -3_600 * SECOND
    assert machine.peek("", 1).remaining == 3
    assert machine.acquire("", 3).allowed
    assert not machine.acquire("", 1).allowed


@each_algorithm
def test_reservations_survive_a_clock_that_steps_back(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota, start=START + 500 * 86_400 * SECOND)
    machine.acquire("", 10)
    wait, _ = machine.reserve("", 1, 3_600 * SECOND)
    machine.moment = -86_400 * SECOND
    later, _ = machine.reserve("", 10, 3_600 * SECOND)
    assert wait is not None
    assert later is not None
    assert wait < later <= 2 * 60 * SECOND


@each_algorithm
def test_a_block_from_the_future_lasts_as_long_as_it_was_meant_to(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.block("", 10)
    machine.moment = -3_600 * SECOND
    assert machine.acquire("", 1).retry_after == 10 * SECOND
    machine.moment += 10 * SECOND
    assert machine.acquire("", 1).allowed


def test_an_instance_from_the_future_is_not_counted(script_machine: Make) -> None:
    machine = script_machine("10/s")
    assert machine.send(Batch(0.0), "one 30000", "instances") == 1
    assert machine.send(Batch(0.0), "two 30000", "instances") == 2
    machine.moment = 29 * SECOND
    assert machine.send(Batch(0.0), "two 30000", "instances") == 2
    machine.moment = 31 * SECOND
    assert machine.send(Batch(0.0), "three 30000", "instances") == 2
    assert machine.lives["instances"] == 30_000
    machine.moment = 0
    assert machine.send(Batch(0.0), "four 30000", "instances") == 1


# --- a limit that changes ---


@pytest.mark.parametrize("make", [lambda n: Quota(n, 3_600), lambda n: log(n, 3_600), lambda n: window(n, 3_600)])
def test_24_a_new_limit_counts_what_was_used(make: Callable[[int], Quota], script_machine: Make) -> None:
    machine = script_machine(make(100))
    assert [machine.acquire("", 1).remaining for _ in range(2)] == [99, 98]
    machine.use(make(10))
    assert [machine.acquire("", 1).remaining for _ in range(2)] == [7, 6]
    machine.use(make(200))
    assert machine.acquire("", 1).remaining == 195


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize(
    ("make", "periods"),
    [
        (lambda n: Quota(n, 3_600), 1),
        (lambda n: log(n, 3_600), 2),  # what was reserved a period ahead
        (lambda n: window(n, 3_600), 1),
    ],
    ids=["gcra", "log", "window"],
)
def test_a_lower_limit_locks_for_what_was_taken_and_no_longer(
    make: Callable[[int], Quota], periods: int, remembers: bool, script_machine: Make
) -> None:
    machine = script_machine(make(100), remembers=remembers)
    machine.acquire("", 90)
    machine.reserve("", 20, 3_600 * SECOND)
    machine.use(make(5))
    refused = machine.acquire("", 1)
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= periods * 3_600 * SECOND
    machine.moment = periods * 3_600 * SECOND
    assert machine.acquire("", 5).allowed


def test_a_lower_limit_of_a_window_locks_nobody_out_of_the_next_one(script_machine: Make) -> None:
    machine = script_machine(window(100, 3_600), remembers=True)
    machine.acquire("", 90)
    machine.use(window(5, 3_600))
    assert not machine.acquire("", 1).allowed
    machine.moment = 3_600 * SECOND
    assert machine.acquire("", 5).allowed


def test_a_lower_limit_has_what_was_reserved_before_behind_it(script_machine: Make) -> None:
    machine = script_machine(window(10, 60))
    machine.acquire("", 10)
    machine.reserve("", 10, 3_600 * SECOND)
    machine.use(window(5, 60))
    assert not machine.acquire("", 1).allowed
    machine.moment = 60 * SECOND
    assert machine.acquire("", 5).allowed
    assert not machine.acquire("", 1).allowed


def test_a_new_period_carries_units_and_not_time(script_machine: Make) -> None:
    machine = script_machine(Quota(10, 10))
    machine.acquire("", 4)
    machine.use(Quota(10, 3_600))
    answer = machine.peek("", 1)
    assert (answer.remaining, answer.reset_after) == (6, 4 * 360 * SECOND)
    machine.use(Quota(7, 3))
    answer = machine.acquire("", 1)
    assert answer.remaining == 2
    assert answer.reset_after == pytest.approx(5 * 3 * SECOND / 7, abs=1)


def test_a_burst_may_change_without_forgetting(script_machine: Make) -> None:
    machine = script_machine(Quota(10, 10, burst=20))
    machine.acquire("", 15)
    machine.use(Quota(10, 10, burst=5))
    assert machine.acquire("", 1).retry_after == 11 * SECOND
    machine.use(Quota(10, 10, burst=16))
    assert machine.acquire("", 1).allowed


def test_rules_that_come_and_go_leave_the_others_what_they_had(script_machine: Make) -> None:
    machine = script_machine("10/s; 100/min")
    machine.acquire("", 4)
    machine.use("10/s; 100/min; 1000/hour")
    assert machine.acquire("", 1).remaining == 5
    machine.use([Quota(10, 1), Quota(100, 60), log(50, 600)])
    assert machine.acquire("", 1).remaining == 4
    machine.use("10/s")
    assert machine.acquire("", 1).remaining == 3


@each_algorithm
@pytest.mark.parametrize("other", QUOTAS, ids=["gcra", "log", "window"])
def test_another_algorithm_begins_anew_and_overwrites(quota: Quota, other: Quota, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.acquire("", 4)
    machine.use(other)
    assert machine.acquire("", 2).remaining == (4 if other == quota else 8)
    machine.moment = 120 * SECOND
    assert machine.acquire("", 10).allowed


# --- values that nobody of ours wrote ---

GARBAGE = [
    *(
        b"",
        b" ",
        b"hello",
        b"g",
        b"g 1",
        b"g a b c d",
        b"w",
        b"w x y z",
        b"b",
        b"b 1",
        b"l 1 2 3",
        b"42",
        b"\xff\x00\xfe",
    ),
    *(b"g nan nan nan nan", b"g -1 -1 -1 -1", b"g 1 2 3 4 5 6 7 8 9", b"g 0x10 0x10 0x10 0x10", b"b inf inf"),
]
HOUR = 3_600 * SECOND


def absurd(machine: ScriptMachine) -> list[bytes]:
    now = machine.server_time
    numbers = ["1e300", "inf", "-inf", "nan", "-1", "-1e300", "0", "99999999999999999999999"]
    gcra = [f"g {now} {n} 6000000 1" for n in numbers] + [f"g {now + HOUR} {n} 6000000 1" for n in numbers]
    gcra += [f"g {n} 6000000 6000000 1" for n in numbers] + [f"g {now} 6000000 {n} 1" for n in numbers]
    gcra += [f"g {now} 6000000 6000000 {n}" for n in numbers] + [f"g {now} 60000000 {n} {n}" for n in numbers]
    index = now // (60 * SECOND)
    windows = [f"w {index} {n} 10" for n in numbers] + [f"w {n} 5 10" for n in numbers]
    windows += [f"w {index} 5 {n}" for n in numbers] + [f"w {index - 1} {n} {n}" for n in numbers]
    return [text.encode() for text in [*gcra, *windows]]


def check_that_the_key_recovers(machine: ScriptMachine) -> None:
    """Whatever was there: no error, no more than the limit at once, and the whole limit after a period."""
    admitted = sum(machine.acquire("", 1).allowed for _ in range(12))
    assert admitted <= 10
    machine.moment = 60 * SECOND
    machine.acquire("", 1)
    machine.moment = 120 * SECOND
    assert machine.acquire("", 10).allowed
    assert min(machine.lives.values()) >= 1


@each_algorithm
@pytest.mark.parametrize("value", GARBAGE)
def test_text_of_others_is_no_state(quota: Quota, value: bytes, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.client.set(machine.names("")[0], value)
    check_that_the_key_recovers(machine)


@each_algorithm
@pytest.mark.parametrize("kind", ["list", "hash", "set", "zset", "stream", "string"])
def test_a_key_of_another_type_is_overwritten(quota: Quota, kind: str, script_machine: Make) -> None:
    machine = script_machine(quota)
    for name in machine.names(""):
        if kind == "list":
            machine.client.rpush(name, "a", "1 2", "1 2 3 4 5")
        elif kind == "hash":
            machine.client.hset(name, "a", "b")
        elif kind == "set":
            machine.client.sadd(name, "a")
        elif kind == "zset":
            machine.client.zadd(name, {"a": 1})
        elif kind == "stream":
            machine.client.xadd(name, {"a": "b"})
        else:
            machine.client.set(name, "a")
    assert machine.acquire("", 10).allowed
    assert not machine.acquire("", 1).allowed
    assert machine.refund("", 1).allowed
    assert machine.peek("", 1).allowed


@each_algorithm
def test_a_block_of_a_key_of_another_type_can_be_asked_for(quota: Quota, script_machine: Make) -> None:
    machine = script_machine(quota)
    machine.client.hset(machine.names("")[0], "a", "b")
    machine.block("", 5)
    machine.reset("")
    assert machine.acquire("", 10).allowed


@pytest.mark.parametrize("quota", [Quota(10, 60), window(10, 60)], ids=["gcra", "window"])
def test_absurd_numbers_lock_nobody_and_grant_nothing(quota: Quota, script_machine: Make) -> None:
    failures = []
    for value in absurd(script_machine(quota)):
        machine = script_machine(quota)
        name = machine.names("")[0]
        machine.client.set(name, value)
        try:
            check_that_the_key_recovers(machine)
        except (AssertionError, ValueError, OverflowError, redis.ResponseError) as error:
            failures.append(f"{value.decode()}: {type(error).__name__} {str(error)[:60]}")
        machine.client.delete(name)
    assert not failures, "\n".join(failures)


LOGS = [
    ["hello"],
    ["{now} 1 1 {now}", "hello", "{now} 10 9 {now}"],
    ["hello", "{now} 10 10 {now}"],
    ["{now} 10 10 {now}", "hello"],
    ["{future} 10 10 {future}"],
    ["{future} 10 10 {now}"],
    ["{now} 1e300 1 {now}"],
    ["{now} nan nan {now}"],
    ["{now} -5 -5 {now}"],
    ["nan 1 1 nan", "{now} 5 4 {now}"],
    ["inf 1 1 inf"],
]


@pytest.mark.parametrize("entries", LOGS, ids=str)
def test_a_log_with_entries_of_others_locks_nobody(entries: list[str], script_machine: Make) -> None:
    machine = script_machine(log(10, 60))
    now, future = machine.server_time, machine.server_time + 900 * 86_400 * SECOND
    name = machine.names("")[1]
    machine.client.rpush(name, *(entry.format(now=now, future=future) for entry in entries))
    machine.peek("", 1)
    machine.peek("", 5)
    machine.refund("", 1)
    for _ in range(12):
        machine.acquire("", 1)
    machine.reserve("", 10, 120 * SECOND)
    machine.moment = 240 * SECOND
    assert machine.acquire("", 10).allowed
    assert min(machine.lives.values()) >= 1


# --- many in one call ---


def test_keys_of_several_limiters_are_decided_in_one_call(script_machine: Make) -> None:
    machine = script_machine("2/s; 3/min")
    other = ScriptMachine([log(3, 60), window(5, 60)], machine.client)
    batch = Batch(0.0)
    asked = [
        batch.join(Request(machine.remote, "acquire", "a", 1), None),
        batch.join(Request(other.remote, "acquire", "other", 2), None),
        batch.join(Request(machine.remote, "acquire", "a", 1), None),
        batch.join(Request(machine.remote, "peek", "b", 1), None),
        batch.join(Request(machine.remote, "acquire", "a", 1), None),
        batch.join(Request(machine.remote, "acquire", "b", 2), None),
        batch.join(Request(other.remote, "reserve", "other", 2, str(60 * SECOND)), None),
        batch.join(Request(machine.remote, "acquire", "c", 1, "7"), None),
    ]
    assert len(batch) == 6
    machine.send(batch)
    first, second, third = (machine.remote.acquired(asked[n][0], asked[n][1].rank) for n in (0, 2, 4))
    assert [(one.allowed, one.remaining) for one in (first, second, third)] == [(True, 1), (True, 0), (False, 0)]
    assert third.retry_after == pytest.approx(0.5)
    assert other.remote.acquired(asked[1][0], asked[1][1].rank).remaining == 1
    assert machine.remote.acquired(asked[5][0], asked[5][1].rank).remaining == 0
    assert other.remote.reserved(asked[6][0], 60 * SECOND)[0] == 60 * SECOND
    assert machine.remote.acquired_most(asked[7][0], 7).granted == 2


def test_who_left_before_the_trip_is_not_asked_for(script_machine: Make) -> None:
    machine = script_machine("2/min")
    batch = Batch(0.0)
    stays, caller = batch.join(Request(machine.remote, "acquire", "a", 1), None)
    _, gone = batch.join(Request(machine.remote, "acquire", "a", 1), None)
    alone, left = batch.join(Request(machine.remote, "acquire", "b", 1), None)
    assert stays.leave(gone) == 0
    assert alone.leave(left) == 0
    machine.send(batch)
    assert machine.remote.acquired(stays, caller.rank).remaining == 1
    assert machine.peek("b", 2).allowed
    assert machine.peek("a", 1).allowed


def test_who_leaves_during_the_trip_is_told_what_to_give_back(script_machine: Make) -> None:
    machine = script_machine("3/min")
    batch = Batch(0.0)
    item, first = batch.join(Request(machine.remote, "acquire", "a", 1), None)
    _, second = batch.join(Request(machine.remote, "acquire", "a", 1), None)
    batch.encode()
    assert item.leave(first) == 0
    machine_keys, arguments = batch.encode()
    assert arguments[3] == "1"
    assert machine_keys == machine.names("a")
    machine.send(batch)
    assert item.excess() == 0
    assert item.leave(second) == 1


def test_reservations_reach_no_further_than_the_state_can_hold(script_machine: Make) -> None:
    """What lies further ahead than the longest wait is taken for nonsense, and must not be written."""
    machine = script_machine(Quota(1, 60))
    waits = [machine.reserve("", 1, round(MAX_PER) * SECOND)[0] for _ in range(100)]
    expected = [minute * 60 * SECOND for minute in range(61)]
    assert waits == [*expected, *[None] * 39]
    assert machine.acquire("", 1).reset_after == longest_wait(Quota(1, 60)) + 60 * SECOND
