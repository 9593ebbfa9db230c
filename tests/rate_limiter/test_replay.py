"""What an instance admitted without the store comes to be known there: at least once, and never twice as much."""

from __future__ import annotations

import random
from collections.abc import Callable

import fakeredis
import pytest

from resilience.rate_limiter import Quota
from resilience.rate_limiter.batch import Batch
from resilience.rate_limiter.gcra import Gcra
from resilience.rate_limiter.lines import script
from resilience.rate_limiter.remote import Remote
from resilience.rate_limiter.store import Call, SharedStore, Steps
from resilience.rate_limiter.target import target_of
from resilience.rate_limiter.telling import Teller

DAY = 86_400.0
QUOTAS = [Quota(40, DAY), Quota(40, DAY, algorithm="fixed_window"), Quota(40, DAY, algorithm="sliding_log")]
each_algorithm = pytest.mark.parametrize("quota", QUOTAS, ids=["gcra", "window", "log"])


class Server:
    """A server that runs the script, and fails when told to."""

    def __init__(self) -> None:
        self.redis = fakeredis.FakeStrictRedis()
        self.failing: Callable[[Call], bool] = lambda _: False
        self.runs_what_fails = False
        self.then: Callable[[Call], object] = lambda _: None

    def ask(self, call: Call) -> bytes | Exception:
        self.then(call)
        if self.failing(call):
            if self.runs_what_fails:
                self.run(call)
            return TimeoutError()
        return self.run(call)

    def run(self, call: Call) -> bytes:
        return bytes(self.redis.eval(script()[0], len(call.keys), *call.keys, *call.arguments))


class Instance:
    """One store with one limiter, of so many instances."""

    def __init__(self, server: Server, *quotas: Quota, instances: int = 4) -> None:
        self.moment = 1_000.0
        self.server = server
        target = target_of("redis://simulated.invalid:6379/0")
        self.store = SharedStore(
            target,
            prefix="p",
            budget=0.25,
            max_batch=2,
            instances=instances,
            clock=lambda: self.moment,
            rng=random.Random(1),
        )
        teller = Teller("api", lambda: self.moment)
        options = {"policy": "share", "clock": lambda: self.moment, "wall_clock": lambda: self.moment + 1e9}
        self.limiter = Remote(self.store, quotas, teller=teller, **options)  # type: ignore[arg-type]

    def lose(self) -> None:
        permit = self.store.permit()
        assert permit is not None
        self.store.fail(permit, ConnectionRefusedError(), Batch(0.0), certain=True)

    def take(self, key: str, calls: int = 1, *, certain: bool = True) -> int:
        return sum(self.limiter.fallback.decide(key, 1, certain=certain).granted for _ in range(calls))

    def recover(self) -> int:
        """Give how often the store was asked until it was back."""
        steps: Steps | None = self.store.claim_recovery()
        assert steps is not None
        answer: bytes | Exception | None = None
        asked = 0
        while True:
            try:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration:
                self.store.end_recovery(steps)
                return asked
            if isinstance(step, Call):
                asked += 1
                answer = self.server.ask(step)
            else:
                self.moment, answer = self.moment + step, None

    def used(self, key: str, number: int = 0) -> int:
        """Give what the server knows of `key`, in units."""
        spec = " ".join(rule.spec(self.limiter.space.wall()) for rule in self.limiter.rules)
        call = Call(0, self.limiter.wire_keys(key), ["", spec, "peek", 0, "", 1], 1.0)
        reply = self.server.run(call)
        told = iter([int(word) for word in reply.split()[4:]])
        standing = [rule.told(told, 0, 0)[1] for rule in self.limiter.rules][number]
        return standing.quota.capacity - standing.room


def replays(call: Call) -> bool:
    return "replay" in call.arguments


@each_algorithm
def test_the_share_of_all_is_what_the_store_knows_afterwards(quota: Quota) -> None:
    server = Server()
    instances = [Instance(server, quota) for _ in range(4)]
    for number, instance in enumerate(instances):
        instance.lose()
        assert instance.take("even", 3) == 3
        assert instance.take("uneven", 3 * number) == 3 * number
    used = []
    for instance in instances:
        instance.recover()
        used.append((instance.used("even"), instance.used("uneven")))
    # Of the even one it knows at once; of the other what the busiest has told so far, as if all were as busy.
    assert used == [(12, 0), (12, 12), (12, 24), (12, 36)]


@each_algorithm
def test_what_the_store_kept_is_not_charged_again(quota: Quota) -> None:
    server = Server()
    instance = Instance(server, quota, instances=1)
    for _ in range(3):
        instance.lose()
        instance.take("key", 5)
        instance.recover()
        instance.limiter.space.clear()  # so that it knows no more what is used
        assert instance.used("key") == 5


@each_algorithm
def test_no_more_is_charged_than_the_limit(quota: Quota) -> None:
    server = Server()
    one, other = Instance(server, quota), Instance(server, quota, instances=1)
    for instance in (one, other):
        instance.lose()
    assert one.take("key", 50) == 10
    assert other.take("key", 50) == 40
    one.recover()
    other.recover()
    assert one.used("key") == 40


@each_algorithm
@pytest.mark.parametrize("runs", [False, True], ids=["did nothing", "did it"])
def test_a_replay_that_failed_is_made_again_whatever_came_of_it(quota: Quota, runs: bool) -> None:
    server = Server()
    instance = Instance(server, quota)
    instance.lose()
    for key in "abcde":  # three batches
        assert instance.take(key, 3) == 3
    seen: list[Call] = []

    def second(call: Call) -> bool:
        seen.extend([call] if replays(call) else [])
        return replays(call) and len(seen) == 2

    server.failing, server.runs_what_fails = second, runs
    instance.recover()
    assert [instance.used(key) for key in "abcde"] == [12] * 5
    assert len(seen) == 4  # the first, the second in vain, and what was left


def test_a_recovery_that_is_dropped_in_the_middle_of_a_replay_owes_everything_still() -> None:
    server = Server()
    instance = Instance(server, QUOTAS[0])
    instance.lose()
    for key in "abc":
        instance.take(key, 3)
    steps = instance.store.claim_recovery()
    assert steps is not None
    step = steps.send(None)
    while not isinstance(step, Call) or not replays(step):
        if isinstance(step, Call):
            step = steps.send(server.ask(step))
        else:
            instance.moment += step
            step = steps.send(None)
    steps.close()
    instance.store.end_recovery(steps)
    instance.recover()
    assert [instance.used(key) for key in "abc"] == [12] * 3


@each_algorithm
def test_what_is_admitted_during_a_replay_is_charged_too(quota: Quota) -> None:
    server = Server()
    instance = Instance(server, quota)
    instance.lose()
    instance.take("key", 3)
    more = iter(["key", "new"])

    def admit(call: Call) -> None:
        if replays(call) and (key := next(more, None)):
            assert instance.take(key) == 1

    server.then = admit
    instance.recover()
    assert (instance.used("key"), instance.used("new")) == (16, 4)


def test_calls_of_a_trip_without_an_answer_are_charged_once() -> None:
    server = Server()
    instance = Instance(server, QUOTAS[0], instances=1)
    spec = Gcra.of(QUOTAS[0]).spec(0)
    instance.lose()
    charged = Call(0, instance.limiter.wire_keys("charged"), ["", spec, "acquire", 1, "2", 1], 1.0)
    server.ask(charged)  # which nobody here has heard of
    for key in ("charged", "not"):
        assert instance.take(key, 2, certain=False) == 2
    instance.recover()
    assert [instance.used(key) for key in ("charged", "not")] == [2, 2]


def test_all_limits_of_a_key_are_charged() -> None:
    server = Server()
    instance = Instance(server, Quota(40, DAY), Quota(80, DAY, algorithm="sliding_log"))
    instance.lose()
    instance.take("key", 4)
    instance.recover()
    assert (instance.used("key", 0), instance.used("key", 1)) == (16, 16)


def test_a_level_of_many_digits_is_charged_to_the_last_one() -> None:
    """Lua shows a number with 14 digits when it is taken for text."""
    quota = Quota(7, DAY, burst=7_000)
    rule = Gcra.of(quota)
    level = 6_999 * rule.unit + 1
    assert level > 10**14
    server = Server()
    call = Call(0, ["key"], ["", rule.spec(0), "replay", 0, str(level), 1], 1.0)
    reply = server.ask(call)
    assert isinstance(reply, bytes)
    assert int(reply.split()[4]) == level
