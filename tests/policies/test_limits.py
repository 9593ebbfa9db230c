"""The arithmetic of adaptive limits, and how a limit follows a dependency."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf, nan
from typing import Any

import anyio
import pytest

from resilience import ConnectionPool
from resilience.errors import BulkheadFullError, CallTimeoutError, ConfigurationError, PoolTimeoutError
from resilience.events import BulkheadRejected, LimitChanged, capture
from resilience.policies import AIMD, AdaptiveLimit, Gradient2, Timeout, Vegas
from resilience.policies.adaptive import _Stretch
from resilience.policies.limits import Algorithm, Sample
from resilience.testing import VirtualClock, explore
from resilience.testing.explorer import ExploredRun

pytestmark = pytest.mark.anyio


def test_aimd_adds_one_and_takes_a_tenth() -> None:
    aimd = AIMD().estimator()
    assert aimd.next(20, Sample(0.01, 10)) == 21
    assert aimd.next(20, Sample(0.01, 9)) == 20  # less than half of it is used
    assert aimd.next(30, Sample(0.01, 30, dropped=True)) == 27


def test_vegas_keeps_the_queue_short() -> None:
    def second(seconds: float, in_flight: int) -> float:
        vegas = Vegas().estimator()
        assert vegas.next(10, Sample(0.010, 10)) == 10
        return vegas.next(10, Sample(seconds, in_flight))

    assert second(0.010, 11) == 16
    assert second(0.050, 11) == 9
    assert second(0.014, 14) == 10
    assert second(0.010, 5) == 16
    assert second(0.010, 4) == 10  # unused
    assert second(0.0125, 11) == 11  # a queue of two: one more
    vegas = Vegas().estimator()
    assert vegas.next(100, Sample(1.0, 1, dropped=True)) == 98


def test_vegas_forgets_the_quickest_call_in_time() -> None:
    vegas = Vegas().estimator()
    limit = vegas.next(10, Sample(0.001, 10))
    for _ in range(400):
        limit = max(1, vegas.next(limit, Sample(0.010, int(limit))))
    assert limit > 10  # ten times slower for good is no queue


def test_what_timed_out_is_no_latency_to_vegas() -> None:
    vegas = Vegas().estimator()
    assert vegas.next(10, Sample(0.001, 10, dropped=True)) == 9
    assert vegas.next(10, Sample(0.010, 10)) == 10  # the first that it sees
    assert vegas.next(10, Sample(0.010, 11)) == 16
    fresh = Vegas().estimator()
    for _ in range(20 * Vegas.PROBE):
        fresh.next(10, Sample(0.010, 10))
    assert fresh.next(10, Sample(0.001, 10, dropped=True)) == 9
    assert fresh.next(10, Sample(0.010, 11)) == 16


def test_what_timed_out_is_no_latency_to_gradient() -> None:
    gradient, untold = Gradient2().estimator(), Gradient2().estimator()
    for seconds in (0.1, 0.2, 0.1):
        gradient.next(20, Sample(9.0, 20, dropped=True))
        assert gradient.next(20, Sample(seconds, 20)) == untold.next(20, Sample(seconds, 20))


@pytest.mark.parametrize("algorithm", [AIMD(), AIMD(backoff=0.99), Vegas(), Gradient2(), Gradient2(backoff=0.99)])
def test_a_timeout_takes_a_call_away_at_least(algorithm: Algorithm) -> None:
    for tenths in range(10, 2_000):
        limit = tenths // 10 if isinstance(algorithm, AIMD) else tenths / 10
        after = algorithm.estimator().next(limit, Sample(inf, 1, dropped=True))
        assert int(after) < int(limit)
        assert isinstance(algorithm, Vegas) or after <= limit * algorithm.backoff  # type: ignore[attr-defined]


def test_gradient_follows_a_drift_and_answers_a_queue() -> None:
    gradient = Gradient2().estimator()
    limit = 20.0
    for _ in range(50):
        limit = gradient.next(limit, Sample(0.1, int(limit)))
    grown = limit
    assert grown > 20
    for _ in range(10):
        limit = gradient.next(limit, Sample(0.5, int(limit)))
    assert limit < grown
    assert gradient.next(10, Sample(0.1, 10, dropped=True)) == 9
    assert gradient.next(10, Sample(0.1, 1)) == 10
    for _ in range(600):
        limit = gradient.next(limit, Sample(0.5, int(limit) + 1))
    assert limit > grown  # what lasts is how it is


def test_gradient_falls_by_a_half_at_most_and_moves_by_a_fifth_of_that() -> None:
    gradient = Gradient2().estimator()
    for _ in range(50):
        gradient.next(100, Sample(0.1, 10))
    assert gradient.next(100, Sample(100.0, 49)) == 100
    assert gradient.next(100, Sample(200.0, 50)) == pytest.approx(0.8 * 100 + 0.2 * (0.5 * 100 + 4))


def test_gradient_forgets_soon_that_calls_were_slow() -> None:
    gradient = Gradient2().estimator()
    for _ in range(600):
        gradient.next(100, Sample(10.0, 100))
    for _ in range(60):
        gradient.next(100, Sample(0.1, 100))
    assert gradient.next(100, Sample(3.0, 100)) < 100  # a queue, not what was usual long ago


def test_the_ninth_decile_stands_for_all() -> None:
    stretch = _Stretch(1.0, 0.0)
    for seconds in range(49, 0, -1):
        assert stretch.add(seconds, 1, 1.0, dropped=False) is None
    assert stretch.add(50, 1, 1.0, dropped=False) == Sample(45, 1)


def adaptive(algorithm: Any, **options: Any) -> AdaptiveLimit:
    return AdaptiveLimit(algorithm, clock=anyio.current_time, name="search", **options)


async def load(limit: AdaptiveLimit, seconds: float, callers: int, rounds: int) -> None:
    async def call() -> None:
        for _ in range(rounds):
            try:
                await limit(anyio.sleep)(seconds)
            except BulkheadFullError:
                await anyio.sleep(seconds)

    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(call)


async def test_a_limit_that_is_used_grows_by_stretches_and_not_by_calls() -> None:
    limit = adaptive(AIMD(), initial=10)
    with capture(LimitChanged) as told:
        await load(limit, 0.1, callers=10, rounds=100)
    # A hundred calls a second, for ten seconds: one step a second.
    assert 18 <= limit.limit <= 21
    assert [(event.name, event.after - event.before) for event in told] == [("search", 1)] * len(told)
    assert limit.in_flight == 0


@pytest.mark.tells_by_chance
async def test_timeouts_shrink_it_and_it_stays_within_its_bounds() -> None:
    limit = adaptive(AIMD(), initial=10, min_limit=4, max_limit=12)

    async def hang() -> None:
        try:
            await limit(Timeout(0.1)(anyio.sleep))(9)
        except (TimeoutError, BulkheadFullError):
            await anyio.sleep(0.1)

    for _ in range(200):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(hang)
    assert limit.limit == 4
    await load(limit, 0.1, callers=12, rounds=200)
    assert limit.limit == 12


async def test_of_rare_calls_that_time_out_each_shrinks_it() -> None:
    limit = adaptive(AIMD(), initial=20)
    with capture(LimitChanged) as told:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await limit(Timeout(2.0)(anyio.sleep))(9)
    assert [event.after for event in told] == [18, 16, 14, 12, 10]


async def test_timeouts_shrink_it_once_in_a_window() -> None:
    limit = adaptive(AIMD(), initial=20)
    await anyio.sleep(0.95)
    with capture(LimitChanged) as told:
        for _ in range(25):
            with pytest.raises(TimeoutError):
                await limit(Timeout(0.1)(anyio.sleep))(9)
    assert [event.after for event in told] == [18, 16, 14]


@pytest.mark.tells_by_chance
async def test_how_long_timeouts_took_is_no_latency() -> None:
    limit = adaptive(Vegas(), initial=20)

    async def fail_at_once() -> None:
        await anyio.sleep(0.001)
        raise TimeoutError

    for _ in range(1_500):
        with pytest.raises(TimeoutError):
            await limit(fail_at_once)()
    shrunk = limit.limit
    assert shrunk < 20
    await load(limit, 0.1, callers=shrunk, rounds=100)
    assert limit.limit > shrunk  # a tenth of a second is how quick it is, and no queue


@pytest.mark.parametrize(
    "errors",
    [
        [TimeoutError()],
        [ValueError(), TimeoutError()],
        [ExceptionGroup("inner", [ValueError(), CallTimeoutError("attempt", 1)]), BulkheadFullError("inner")],
    ],
)
async def test_a_timeout_in_a_group_is_a_timeout(errors: list[Exception]) -> None:
    limit = adaptive(AIMD(), initial=20)
    await anyio.sleep(1)

    async def fail() -> None:
        raise ExceptionGroup("a task group's", errors)

    with pytest.raises(ExceptionGroup):
        await limit(fail)()
    assert limit.limit == 18


async def test_a_clock_that_fails_takes_no_place_away() -> None:
    broken = False

    def clock() -> float:
        if broken:
            raise OSError
        return 0.0

    limit = AdaptiveLimit(initial=1, clock=clock)
    broken = True
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - its own
            limit(lambda: 7)()
        with pytest.raises(OSError):  # noqa: PT011 - as above
            await limit(anyio.sleep)(0)
    assert limit.in_flight == 0


class Meddling:
    """An algorithm that one more is added by, after something else has happened."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self.meddle = meddle

    def estimator(self) -> Meddling:
        return self

    def next(self, limit: float, sample: Sample) -> float:
        del sample
        self.meddle()
        return limit + 1


def make_fifty(limit: AdaptiveLimit, clock: VirtualClock) -> None:
    clock.advance(1)
    for _ in range(50):
        limit(lambda: None)()


def test_a_call_that_the_collector_ends_in_the_middle_of_a_step_ends(clock: VirtualClock) -> None:
    def call() -> None:
        limit(lambda: None)()

    limit = AdaptiveLimit(Meddling(call), initial=2, clock=clock)
    thread = threading.Thread(target=make_fifty, args=(limit, clock), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the thread waits for itself"
    assert 3 <= limit.limit <= 4
    assert limit.in_flight == 0


def test_of_two_threads_the_second_sets_the_limit_second(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = AdaptiveLimit(Meddling(lambda: None), initial=2, clock=clock)
    other = threading.Thread(target=make_fifty, args=(limit, clock))
    move = limit._places.move

    def overtaken(to: int) -> None:
        monkeypatch.undo()
        other.start()
        other.join(0.1)  # as far as it can
        move(to)

    monkeypatch.setattr(limit._places, "move", overtaken)
    make_fifty(limit, clock)
    other.join(20)
    assert limit.limit == limit._limit == 4


async def pool_timeout() -> PoolTimeoutError:
    async with ConnectionPool(anyio.sleep_forever, clock=anyio.current_time) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.acquire(1.0)
    return caught.value


async def test_rejections_other_errors_and_cancellations_say_nothing() -> None:
    limit = adaptive(AIMD(), initial=10)

    async def fail(error: BaseException) -> None:
        await anyio.sleep(0.1)
        raise error

    group = ExceptionGroup("a task group's", [ValueError(), await pool_timeout()])
    for error in (BulkheadFullError("inner"), ValueError(), await pool_timeout(), group):
        for _ in range(100):
            with pytest.raises(type(error)):
                await limit(fail)(error)
    for _ in range(100):
        with anyio.move_on_after(0.05):
            await limit(anyio.sleep)(1)
    assert (limit.limit, limit._stretch._seconds) == (10, [])


async def test_rare_calls_move_it_too_after_a_long_stretch() -> None:
    limit = adaptive(AIMD(), initial=2, window=1.0)
    for _ in range(8):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(limit(anyio.sleep), 1)
        await anyio.sleep(4)
    assert limit.limit == 3


async def test_it_is_used_as_much_as_it_was_at_most() -> None:
    limit = adaptive(AIMD(), initial=10)
    await load(limit, 0.1, callers=5, rounds=10)
    await limit(anyio.sleep)(1)  # ends the stretch, alone
    assert limit.limit == 11


def test_in_a_short_time_with_many_calls_the_first_will_do(clock: VirtualClock) -> None:
    limit = AdaptiveLimit(clock=clock)
    for _ in range(1_000):
        limit(lambda: None)()
    assert len(limit._stretch._seconds) == 500


async def test_who_finds_no_place_is_refused_by_its_name() -> None:
    limit = adaptive(Vegas(), initial=1)
    async with anyio.create_task_group() as group:
        group.start_soon(limit(anyio.sleep), 1)
        await anyio.sleep(0.5)
        with capture(BulkheadRejected) as told, pytest.raises(BulkheadFullError) as caught:
            await limit(anyio.sleep)(1)
        assert limit.admission() == (False, None, "bulkhead_full")
    assert (caught.value.name, caught.value.policy, len(told)) == ("search", "adaptive_limit", 1)
    assert repr(limit) == "<AdaptiveLimit 0 of 1 in flight>"


async def test_a_grown_limit_lets_in_who_waits() -> None:
    limit = adaptive(AIMD(), initial=1, max_waiting=5)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(limit(anyio.sleep), 1)
        await anyio.sleep(0.5)
        assert (limit.in_flight, limit.waiting) == (1, 2)
        limit._places.move(3)
        await anyio.sleep(0.1)
        assert (limit.in_flight, limit.waiting) == (3, 0)


def test_no_schedule_of_cancellations_loses_a_place_while_the_limit_moves() -> None:
    async def call(limit: AdaptiveLimit, seconds: float) -> None:
        with suppress(BulkheadFullError, TimeoutError):
            await limit(Timeout(1.5)(anyio.sleep))(seconds)

    async def scenario(run: ExploredRun, limit: AdaptiveLimit) -> None:
        async with run.task_group() as group:
            for seconds in (1, 2, 1, 1, 1):
                group.start_soon(call, limit, seconds)

    def is_within(limit: AdaptiveLimit) -> None:
        assert limit.in_flight <= 2
        assert limit.in_flight >= limit.limit or not limit.waiting

    async def is_empty(limit: AdaptiveLimit) -> None:
        assert (limit.in_flight, limit.waiting) == (0, 0)
        await limit(anyio.sleep)(0)

    def world() -> AdaptiveLimit:
        return AdaptiveLimit(AIMD(), initial=2, window=0.1, max_waiting=3, clock=anyio.current_time)

    found = explore(scenario, world, invariant=is_within, at_end=is_empty, limit=400)
    assert found.runs > 50


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseExceptionGroup("", [SystemExit()])]
)
async def test_what_is_no_exception_says_nothing_and_gives_the_place_back(error: Any, plain: bool) -> None:
    limit = adaptive(AIMD(), initial=1)

    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each of them
        _ = limit(fail)() if plain else await limit(fail_later)()  # type: ignore[func-returns-value]
    assert caught.value is error or caught.type is error
    assert (limit.in_flight, limit._stretch._dropped, limit._stretch._seconds) == (0, False, [])


def test_plain_functions_as_well() -> None:
    limit = AdaptiveLimit(initial=1)
    assert limit(lambda: 7)() == 7

    def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        limit(late)()
    assert limit._stretch._dropped


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": 3}, "algorithm must be Vegas"),
        ({"algorithm": Vegas}, "algorithm must be Vegas"),
        ({"initial": 0}, "initial must be at least 1"),
        ({"initial": 9, "max_limit": 5}, "initial must be at most 5"),
        ({"min_limit": 5, "max_limit": 4}, "max_limit must be at least 5"),
        ({"initial": True}, "initial must be an int"),
        ({"initial": 10**400, "max_limit": 10**400}, "max_limit must be at most"),
        ({"window": 0}, "window must be more than 0"),
        ({"window": nan}, "window must be finite"),
        ({"window": inf}, "window must be finite"),
        ({"timeout": 1}, "timeout must be None without max_waiting"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AdaptiveLimit(**options)


def test_algorithms_refuse_bad_input() -> None:
    for make, message in (
        (lambda: AIMD(backoff=1), "backoff must be below 1"),
        (lambda: AIMD(backoff=0.1), "backoff must be at least 0.5"),
        (lambda: Vegas(alpha=0), "alpha must be more than 0"),
        (lambda: Vegas(alpha=6, beta=6), "beta must be more than 6"),
        (lambda: Gradient2(tolerance=0.5), "tolerance must be at least 1"),
        (lambda: AIMD(backoff=True), "backoff must be a number"),
        (lambda: Vegas(beta=inf), "beta must be finite"),
        (lambda: Gradient2(queue=nan), "queue must be finite"),
        (lambda: Gradient2(smoothing=0), "smoothing must be more than 0"),
        (lambda: Gradient2(backoff=1), "backoff must be below 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()
