"""Waiting for a turn: in order, at the exact slot, and never in vain."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import pytest
import redis
from anyio.abc import TaskGroup

from resilience import ConfigurationError, RateLimitedError
from resilience.events import LimitRejected, capture
from resilience.rate_limiter import Decision, Quota, RateLimiter, RedisStore
from resilience.testing import VirtualClock
from tests.rate_limiter.cases import log, window

each_algorithm = pytest.mark.parametrize("quota", [Quota(1, 1), log(1, 1), window(1, 1)], ids=["gcra", "log", "window"])


def limiter(quotas: Any = "1/s", **options: Any) -> RateLimiter:
    given: dict[str, Any] = {"name": "queue", "clock": anyio.current_time, "wall_clock": anyio.current_time} | options
    return RateLimiter(quotas, **given)


async def refusal(ask: Callable[[], Awaitable[object]]) -> RateLimitedError:
    """Give the error with which `ask` is refused, at once."""
    before = anyio.current_time()
    with pytest.raises(RateLimitedError) as refused:
        await ask()
    assert anyio.current_time() == before
    return refused.value


async def all_moved_up() -> None:
    """Let those behind move up, which they do when all who leave together have left."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


class Waiters:
    """Callers who wait on one limiter, and when each of them passed."""

    def __init__(self, one: RateLimiter, group: TaskGroup) -> None:
        self.limiter = one
        self.group = group
        self.passed: list[tuple[Any, float]] = []
        self.scopes: dict[Any, anyio.CancelScope] = {}
        self.start = anyio.current_time()

    async def add(self, name: Any, key: str = "", cost: int = 1, **options: Any) -> None:
        async def wait() -> None:
            with anyio.CancelScope() as self.scopes[name]:
                assert await self.limiter.acquire(key, cost, **options)
                self.passed.append((name, round(anyio.current_time() - self.start, 5)))

        self.group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()

    def cancel(self, *names: Any) -> None:
        for name in names:
            self.scopes[name].cancel()


# --- turns ---


@pytest.mark.anyio
@each_algorithm
async def test_callers_pass_in_the_order_of_arrival_at_their_exact_slots(quota: Quota) -> None:
    async with anyio.create_task_group() as group:
        waiters = Waiters(limiter(quota), group)
        for name in range(6):
            await waiters.add(name)
    assert waiters.passed == [(n, float(n)) for n in range(6)]


@pytest.mark.anyio
async def test_a_caller_who_need_not_wait_does_not() -> None:
    one = limiter("3/s")
    before = anyio.current_time()
    assert (await one.acquire("ann", 2)).remaining == 1
    assert (await one.acquire("ann")).remaining == 0
    assert anyio.current_time() == before


@pytest.mark.anyio
async def test_the_decision_after_a_wait_is_an_admission() -> None:
    one = limiter("1/s")
    await one.acquire("ann")
    decision = await one.acquire("ann")
    assert (decision.allowed, decision.granted, decision.retry_after, decision.source) == (True, 1, None, "memory")


@pytest.mark.anyio
async def test_38_who_waits_on_one_key_holds_nobody_up_on_others() -> None:
    one = limiter("1/10s")
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for number in range(3):
            await waiters.add(f"a{number}", "a")
        await waiters.add("b", "b")
        assert await one.acquire("c")
        assert await one.try_acquire("d")
        await waiters.add("b1", "b")
    assert dict(waiters.passed) == {"a0": 0, "b": 0, "a1": 10, "b1": 10, "a2": 20}


@pytest.mark.anyio
async def test_newcomers_do_not_pass_those_who_wait() -> None:
    one = limiter("1/s")
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("first")
        await waiters.add("second")
        await waiters.add("third")
        await anyio.sleep(1.5)
        assert not await one.try_acquire()
        assert (await one.try_acquire()).retry_after == pytest.approx(1.5)
        await waiters.add("fourth")
    assert waiters.passed == [("first", 0), ("second", 1), ("third", 2), ("fourth", 3)]


@pytest.mark.anyio
async def test_a_large_cost_is_served_in_its_turn() -> None:
    """A waiter for 8 of 10 is not overtaken by singles for ever, nor are they held up longer than its share takes."""
    one = limiter("10/s")
    await one.try_acquire("", 10)
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("single")
        await waiters.add("large", cost=8)
        await waiters.add("late")
    assert waiters.passed == [("single", 0.1), ("large", 0.9), ("late", 1.0)]


@pytest.mark.anyio
async def test_under_several_quotas_each_wait_is_that_of_the_slowest() -> None:
    async with anyio.create_task_group() as group:
        waiters = Waiters(limiter([Quota(2, 1), log(3, 10), window(5, 60)]), group)
        for name in range(7):
            await waiters.add(name)
    at = [moment for _, moment in waiters.passed]
    assert at[:5] == [0, 0, 0.5, 10, 10]
    assert at[5] == at[6] == pytest.approx(60 - waiters.start % 60)


@pytest.mark.anyio
async def test_a_caller_who_asks_for_nothing_waits_for_nothing() -> None:
    one = limiter("2/s")
    before = anyio.current_time()
    decision = await one.acquire("ann", 0)
    assert (decision.allowed, decision.granted, decision.remaining) == (True, 0, 2)
    await one.try_acquire("ann", 2)
    assert await one.acquire("ann", 0, timeout=0)
    assert anyio.current_time() == before


@pytest.mark.anyio
async def test_26_what_was_reserved_ahead_counts_at_once_and_unused_cycles_are_lost() -> None:
    one = limiter(window(1, 1))
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("first", timeout=1)
        await waiters.add("second", timeout=1)
        assert (await refusal(partial(one.acquire, timeout=1))).retry_after == 2
        assert (await refusal(partial(one.acquire, timeout=1))).retry_after == 2
    await anyio.sleep(5)
    assert (await one.peek()).remaining == 1


# --- limits of waiting ---


@pytest.mark.anyio
@each_algorithm
async def test_a_wait_longer_than_the_timeout_fails_at_once_and_takes_nothing(quota: Quota) -> None:
    one = limiter(quota)
    await one.acquire("ann")
    error = await refusal(partial(one.acquire, "ann", timeout=0.999))
    assert (error.name, error.policy, error.reason, error.retry_after) == ("queue", "rate_limiter", "deadline", 1.0)
    assert isinstance(error.decision, Decision)
    assert (error.decision.allowed, error.decision.retry_after) == (False, 1.0)
    assert str(error) == "rate limiter 'queue' refused the call: deadline, retry in 1 s"
    await refusal(partial(one.acquire, "ann", timeout=0))
    assert (await one.peek("ann")).retry_after == 1.0
    before = anyio.current_time()
    assert await one.acquire("ann", timeout=1)
    assert anyio.current_time() == before + 1


@pytest.mark.anyio
async def test_a_timeout_of_zero_takes_what_is_there() -> None:
    one = limiter("2/s")
    assert await one.acquire("ann", 2, timeout=0)
    await refusal(partial(one.acquire, "ann", timeout=0))


@pytest.mark.anyio
async def test_a_wait_beyond_the_deadline_of_an_enclosing_scope_fails_at_once_and_takes_nothing() -> None:
    one = limiter("1/s")
    await one.acquire("ann")
    with anyio.fail_after(0.9):
        assert (await refusal(partial(one.acquire, "ann"))).reason == "deadline"
    with anyio.fail_after(50), anyio.fail_after(0.9), anyio.fail_after(70):
        assert (await refusal(partial(one.acquire, "ann"))).reason == "deadline"
    with anyio.fail_after(0.9):
        assert (await refusal(partial(one.acquire, "ann", timeout=5))).reason == "deadline"
    with anyio.fail_after(5):
        assert (await refusal(partial(one.acquire, "ann", timeout=0.9))).reason == "deadline"
    assert (await one.peek("ann")).retry_after == 1.0
    with anyio.fail_after(1.1):
        assert await one.acquire("ann")


@pytest.mark.anyio
async def test_a_shielded_wait_does_not_mind_the_deadline_outside() -> None:
    one = limiter("1/s")
    await one.acquire("ann")
    with anyio.move_on_after(0.5), anyio.CancelScope(shield=True):
        assert await one.acquire("ann")


@pytest.mark.anyio
@pytest.mark.parametrize("spent", [True, False])
async def test_in_a_cancelled_scope_nobody_waits_and_nothing_goes_wrong(spent: bool) -> None:
    one = limiter("1/s")
    if spent:
        await one.acquire("ann")
    with anyio.CancelScope() as scope:
        scope.cancel()
        if spent:
            await refusal(partial(one.acquire, "ann"))
        else:
            await one.acquire("ann")
    assert (await one.peek("ann")).retry_after == 1.0


@pytest.mark.anyio
@each_algorithm
async def test_nobody_waits_longer_than_an_hour_or_a_period(quota: Quota) -> None:
    one = limiter(Quota(1, 1_800, algorithm=quota.algorithm))
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(3):
            await waiters.add(name)
        assert (await refusal(one.acquire)).reason == "deadline"
        waiters.cancel(1, 2)


@pytest.mark.anyio
async def test_27_only_so_many_may_wait() -> None:
    one = limiter("1/s", max_waiting=1)
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("first")
        await waiters.add("second")
        error = await refusal(one.acquire)
        assert (error.reason, error.retry_after) == ("max_waiting", 2.0)
        assert (await refusal(partial(one.acquire, timeout=100))).reason == "max_waiting"
        assert await one.acquire("another key")
        assert repr(one).endswith("in memory, 1 waiting>")
        await anyio.sleep(1.1)
        assert "waiting" not in repr(one)
        await waiters.add("third")
    assert waiters.passed == [("first", 0), ("second", 1), ("third", 2)]


@pytest.mark.anyio
async def test_places_are_free_again_after_waiters_were_cancelled_or_refused() -> None:
    one = limiter("1/s", max_waiting=2)
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for _ in range(3):
            await waiters.add("a")
            await waiters.add("b")
            assert (await refusal(one.acquire)).reason == "max_waiting"
            group.cancel_scope.shield = False
            waiters.cancel("a", "b")
            await anyio.wait_all_tasks_blocked()
            await refusal(partial(one.acquire, timeout=0.1))
            await refusal(partial(one.acquire, "", 2))
    assert (await one.peek()).retry_after == 1.0


@pytest.mark.anyio
async def test_with_no_place_to_wait_what_is_there_is_still_given() -> None:
    one = limiter("2/s", max_waiting=0)
    assert await one.acquire()
    assert await one.acquire()
    assert (await refusal(one.acquire)).reason == "max_waiting"


@pytest.mark.anyio
async def test_each_reason_to_refuse_has_its_word() -> None:
    one = limiter("2/s")
    error = await refusal(partial(one.acquire, "ann", 3))
    assert (error.reason, error.retry_after, error.decision.never) == ("never", None, True)
    assert str(error) == "rate limiter 'queue' refused the call: never"
    await one.block("ann", 10)
    error = await refusal(partial(one.acquire, "ann"))
    assert (error.reason, error.retry_after) == ("blocked", 10)
    with capture(LimitRejected) as rejected:
        await refusal(partial(one.acquire, "ann"))
        await refusal(partial(one.acquire, "ann", 3))
        await one.acquire("bob", 2)
        await refusal(partial(one.acquire, "bob", timeout=0.1))
    assert [event.reason for event in rejected] == ["blocked", "never", "deadline"]


@pytest.mark.anyio
async def test_each_refusal_is_an_error_of_its_own() -> None:
    one = limiter("1/s")
    await one.acquire()
    errors = [await refusal(partial(one.acquire, timeout=0)) for _ in range(2)]
    assert errors[0] is not errors[1]
    assert errors[0].__context__ is None
    assert errors[0].__cause__ is None


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
async def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:  # noqa: ASYNC109 - the limiter's own
    with pytest.raises(ConfigurationError, match=r"^timeout must be "):
        await limiter().acquire(timeout=timeout)
    with pytest.raises(ConfigurationError, match=r"^timeout must be "):
        limiter().acquire_sync(timeout=timeout)


@pytest.mark.anyio
async def test_in_shadow_mode_nobody_waits() -> None:
    one = limiter("1/hour", shadow=True, max_waiting=0)
    before = anyio.current_time()
    for _ in range(5):
        assert await one.acquire("ann", timeout=0)
        assert one.acquire_sync("ann", timeout=0)
    assert (await one.acquire("ann")).source == "shadow"
    assert anyio.current_time() == before


# --- those who leave ---


@pytest.mark.anyio
@each_algorithm
@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ([1], {2: 1, 3: 2, 4: 3}),
        ([2], {1: 1, 3: 2, 4: 3}),
        ([4], {1: 1, 2: 2, 3: 3}),
        ([1, 2], {3: 1, 4: 2}),
        ([4, 2], {1: 1, 3: 2}),
        ([2, 4], {1: 1, 3: 2}),
        ([3, 1, 2, 4], {}),
        ([1, 3], {2: 1, 4: 2}),
    ],
)
async def test_those_behind_one_who_leaves_move_up(quota: Quota, gone: list[int], expected: dict[int, float]) -> None:
    one = limiter(quota)
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(1, 5):
            await waiters.add(name)
        waiters.cancel(*gone)
        await anyio.wait_all_tasks_blocked()
        await all_moved_up()
        wait = (await one.peek()).retry_after
    assert dict(waiters.passed) == expected
    assert wait == len(expected) + 1


@pytest.mark.anyio
async def test_one_who_leaves_later_lets_those_behind_move_up_as_far_as_is_left() -> None:
    one = limiter("1/s")
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(1, 5):
            await waiters.add(name)
        await anyio.sleep(1.25)
        waiters.cancel(2)
        await anyio.sleep(1)
        waiters.cancel(4)
        await waiters.add("new")
    assert waiters.passed == [(1, 1), (3, 2), ("new", 3)]


@pytest.mark.anyio
async def test_costs_move_up_by_what_was_given_back() -> None:
    one = limiter("4/s")
    await one.acquire("", 4)
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("small")
        await waiters.add("large", cost=3)
        await waiters.add("medium", cost=2)
        await waiters.add("last")
        waiters.cancel("large")
    assert waiters.passed == [("small", 0.25), ("medium", 0.75), ("last", 1.0)]


@pytest.mark.anyio
async def test_one_who_leaves_exactly_at_its_slot_gives_it_to_nobody_too_early() -> None:
    """Whichever comes first, the slot or the cancellation: no more pass than may."""
    one = limiter("1/s")
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(1, 4):
            await waiters.add(name)

        async def cancel() -> None:
            await anyio.sleep(1)
            waiters.cancel(1)

        group.start_soon(cancel)
    moments = [0.0, *(at for _, at in waiters.passed)]
    assert all(later - earlier >= 1 for earlier, later in pairwise(moments))
    assert len(waiters.passed) in {2, 3}
    assert moments[-1] <= 3


@pytest.mark.anyio
async def test_a_deadline_around_a_wait_that_began_inside_it_gives_back_too() -> None:
    """Cancelled from outside, not by its own deadline, which could have been known."""
    one = limiter("1/10s")
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("gone")
        await waiters.add("stays")
        await anyio.sleep(3)
        waiters.cancel("gone")
        await anyio.wait_all_tasks_blocked()
        await all_moved_up()
        assert (await one.peek()).retry_after == 17
    assert waiters.passed == [("stays", 10)]


@pytest.mark.anyio
async def test_when_all_have_left_nothing_is_charged() -> None:
    one = limiter("2/10s; 5/min")
    await one.acquire("", 2)
    before = await one.peek()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(5):
            await waiters.add(name)
        group.cancel_scope.cancel()
    await all_moved_up()
    after = await one.peek()
    assert after.retry_after == before.retry_after
    assert repr(one).endswith("in memory>")
    assert one._queue._waiters == {}


@pytest.mark.anyio
@pytest.mark.parametrize(("quotas", "expected"), [("1/s; 2/10s", [1, 5]), ("10/s; 12/min", [4, 9])])
async def test_under_several_quotas_those_behind_never_move_up_too_far(quotas: str, expected: list[float]) -> None:
    """A rule that waited for another one keeps the gap when the call is given back: too late, never too early."""
    one = limiter(quotas)
    first, second = one.quotas
    await one.acquire("", first.limit)
    if second.limit == 12:
        await anyio.sleep(1)
        await one.acquire("", 2)
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        for name in range(3):
            await waiters.add(name)
        waiters.cancel(0)
    assert [name for name, _ in waiters.passed] == [1, 2]
    assert all(at >= soonest for (_, at), soonest in zip(waiters.passed, expected, strict=True))


@pytest.mark.anyio
async def test_a_refund_of_another_call_moves_up_who_asks_next() -> None:
    one = limiter("1/10s")
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("first")
        await one.refund()
        assert (await one.peek()).retry_after == 10
        await waiters.add("second")
    assert dict(waiters.passed) == {"first": 10, "second": 10}


# --- in sync code ---


class Waiting:
    """Stands for the sleep of a thread: time passes on a clock, and what is to happen meanwhile happens."""

    def __init__(self, clock: VirtualClock, one: RateLimiter) -> None:
        self.clock = clock
        self.slept: list[float] = []
        self.meanwhile: list[Callable[[], object]] = []
        one._wait_sync = self

    def __call__(self, moved: threading.Event, seconds: float) -> bool:
        self.slept.append(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()
            if moved.is_set():
                return True
        self.clock.advance(seconds)
        return False


@each_algorithm
def test_sync_callers_sleep_until_their_slot(quota: Quota, clock: VirtualClock) -> None:
    one = limiter(quota, clock=clock, wall_clock=clock)
    waiting = Waiting(clock, one)
    for number in range(4):
        assert one.acquire_sync("ann")
        assert clock() == pytest.approx(number)
    assert waiting.slept == pytest.approx([1, 1, 1])


def test_sync_callers_who_need_not_wait_do_not_sleep(clock: VirtualClock) -> None:
    one = limiter("2/s", clock=clock)
    waiting = Waiting(clock, one)
    one.acquire_sync("ann", 2)
    for timeout in (0, 0.4):
        with pytest.raises(RateLimitedError, match="deadline"):
            one.acquire_sync("ann", timeout=timeout)
    with pytest.raises(RateLimitedError, match="never"):
        one.acquire_sync("ann", 3)
    assert waiting.slept == []
    assert one.peek_sync("ann").retry_after == 0.5


def test_a_sync_caller_who_is_woken_too_early_sleeps_again(clock: VirtualClock) -> None:
    one = limiter("1/s", clock=clock)
    waiting = Waiting(clock, one)
    one.acquire_sync()

    def sleep_half(moved: threading.Event, seconds: float) -> None:
        waiting.slept.append(seconds)
        clock.advance(seconds / 2)

    one._wait_sync = sleep_half
    one.acquire_sync()
    assert clock() >= 1
    assert len(waiting.slept) > 1


def test_a_sync_caller_who_is_interrupted_gives_back(clock: VirtualClock) -> None:
    one = limiter("1/s", clock=clock, max_waiting=1)
    one.acquire_sync()

    def interrupt(moved: threading.Event, seconds: float) -> None:
        raise KeyboardInterrupt

    one._wait_sync = interrupt
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            one.acquire_sync()
    assert one.peek_sync().retry_after == 1.0
    assert repr(one).endswith("in memory>")


def test_sync_callers_move_up_when_one_in_front_of_them_leaves(clock: VirtualClock) -> None:
    """Three threads in a row, whose sleeps the test ends one by one."""
    one = limiter("1/s", clock=clock)
    one.acquire_sync()
    asleep, order = threading.Semaphore(0), []
    ends = {name: threading.Event() for name in ("first", "second", "third")}
    sleeps: dict[str, list[float]] = {name: [] for name in ends}

    def sleep(moved: threading.Event, seconds: float) -> None:
        name = threading.current_thread().name
        sleeps[name].append(seconds)
        asleep.release()
        if name == "first":
            assert ends[name].wait(10)
            raise KeyboardInterrupt
        while not (moved.is_set() or ends[name].is_set()):
            moved.wait(0.001)

    def acquire() -> None:
        try:
            one.acquire_sync()
        except KeyboardInterrupt:
            order.append("interrupted")
        else:
            order.append(threading.current_thread().name)

    one._wait_sync = sleep
    threads = []
    for name in ends:
        threads.append(threading.Thread(target=acquire, name=name))
        threads[-1].start()
        assert asleep.acquire(timeout=10)
    ends["first"].set()
    threads[0].join(10)
    assert asleep.acquire(timeout=10)
    assert asleep.acquire(timeout=10)
    assert sleeps == {"first": [1], "second": [2, 1], "third": [3, 2]}
    clock.advance(1)
    ends["second"].set()
    threads[1].join(10)
    clock.advance(1)
    ends["third"].set()
    threads[2].join(10)
    assert order == ["interrupted", "second", "third"]


@pytest.mark.anyio
async def test_threads_and_tasks_wait_in_one_line() -> None:
    one = limiter("1/s")
    await one.acquire()
    async with anyio.create_task_group() as group:
        waiters = Waiters(one, group)
        await waiters.add("task")

        def interrupt(moved: threading.Event, seconds: float) -> None:
            assert seconds == 2
            raise KeyboardInterrupt

        one._wait_sync = interrupt
        with pytest.raises(KeyboardInterrupt):
            one.acquire_sync()
        await waiters.add("late")
    assert waiters.passed == [("task", 1), ("late", 2)]


# --- before a server ---


def test_nobody_waits_longer_than_an_hour_or_a_period_for_a_server_either(client: redis.Redis) -> None:
    store = RedisStore(client, budget=5)
    one = RateLimiter("1/hour", name="queue", store=store)

    def interrupt(moved: threading.Event, seconds: float) -> None:
        raise KeyboardInterrupt

    one._wait_sync = interrupt
    try:
        one.acquire_sync("ann")
        one._ask_sync("reserve", one._own_key("ann", 1), 1, str(3_600_000_000))
        with pytest.raises(RateLimitedError, match="deadline"):
            one.acquire_sync("ann")
    finally:
        store.close()
