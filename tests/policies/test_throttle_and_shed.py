"""Calls that are given up by chance, and calls that are refused because this process has too much to do."""

from __future__ import annotations

import contextvars
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience.errors import BulkheadFullError, ConfigurationError, RejectedError
from resilience.events import PolicyHookFailed, ShedRejected, capture
from resilience.policies import Bulkhead, LoadShed, Throttle
from resilience.policies.throttle import refused_share
from resilience.testing import VirtualClock, explore
from resilience.testing.explorer import ExploredRun

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("calls", "ok", "cap", "share"),
    [(120, 90, 0.9, 20 / 121), (100, 95, 0.9, 0), (1_000, 10, 0.8, 0.8), (0, 0, 0.9, 0)],
)
def test_the_formula_of_the_book(calls: int, ok: int, cap: float, share: float) -> None:
    assert refused_share(calls, ok, 0.9, cap) == pytest.approx(share)


class Callee:
    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.calls += 1
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return "done"


async def ask(throttle: Throttle, callee: Callee, times: int) -> int:
    refused = 0
    for _ in range(times):
        try:
            await throttle(callee.__call__)()
        except RejectedError as error:
            assert (error.name, error.policy, error.reason) == ("search", "throttle", "shed")
            refused += 1
        except ConnectionError:
            pass
    return refused


def throttle_of(**options: Any) -> Throttle:
    return Throttle(clock=anyio.current_time, rng=random.Random(1), name="search", **options)


async def test_a_callee_that_is_well_is_never_refused_a_call() -> None:
    assert await ask(throttle_of(), Callee(), 1_000) == 0


async def test_a_callee_that_is_down_gets_few_calls_and_at_least_some() -> None:
    throttle, callee = throttle_of(), Callee()
    callee.error = ConnectionError()
    with capture(ShedRejected) as told:
        refused = await ask(throttle, callee, 2_000)
    assert 0.8 < refused / 2_000 < 0.9
    assert len(told) == refused
    assert 0 < told[0].load <= told[-1].load == 0.9
    assert repr(throttle) == "<Throttle refusing 90%>"


async def test_it_is_let_in_again_when_it_is_well() -> None:
    throttle, callee = throttle_of(window=10.0), Callee()
    callee.error = ConnectionError()
    await ask(throttle, callee, 500)
    callee.error = None
    await anyio.sleep(11)
    assert throttle.refused_share == 0
    assert await ask(throttle, callee, 100) == 0


async def test_few_calls_say_nothing() -> None:
    throttle, callee = throttle_of(minimum_calls=20), Callee()
    callee.error = ConnectionError()
    assert await ask(throttle, callee, 20) == 0
    assert throttle.refused_share > 0


async def test_rejections_inside_and_cancellations_do_not_count() -> None:
    throttle, callee = throttle_of(minimum_calls=1), Callee()
    callee.error = BulkheadFullError("inner")
    for _ in range(50):
        with pytest.raises(BulkheadFullError):
            await throttle(callee.__call__)()
        with anyio.move_on_after(0.1):
            await throttle(anyio.sleep)(1)
    assert throttle.refused_share == 0


def test_a_throttle_for_plain_functions(clock: VirtualClock) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=random.Random(1))

    def fail() -> None:
        raise ConnectionError

    ends: set[type[Exception]] = set()
    for _ in range(100):
        with pytest.raises((ConnectionError, RejectedError)) as caught:
            throttle(fail)()
        ends.add(caught.type)
    assert ends == {ConnectionError, RejectedError}
    fresh = Throttle(clock=clock, minimum_calls=1)
    for _ in range(30):
        with pytest.raises(ConfigurationError, match="a throttle got an awaitable"):
            _ = fresh.call(lambda: anyio.sleep(1))
        with pytest.raises(ConfigurationError, match="a bulkhead got an awaitable"):
            _ = fresh.call(Bulkhead(1)(lambda: anyio.sleep(1)))
    assert fresh.refused_share == 0  # that is the program's mistake, and no word about the callee
    assert Throttle(clock=clock).call(lambda: 7) == 7


@pytest.mark.parametrize(
    ("errors", "share"),
    [
        ([BulkheadFullError("inner")], 0),
        ([BulkheadFullError("inner"), ExceptionGroup("", [ConfigurationError("a slip")])], 0),
        ([BulkheadFullError("inner"), ConnectionError()], 0.9),
    ],
)
def test_of_errors_in_a_group_one_must_be_the_callees(
    errors: list[Exception], share: float, clock: VirtualClock
) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=Unlucky())

    def fail() -> None:
        raise ExceptionGroup("a task group's", errors)

    for _ in range(50):
        with pytest.raises(ExceptionGroup):
            throttle(fail)()
    assert throttle.refused_share == share


class Unlucky(random.Random):
    """Refuses nothing, and does something else meanwhile."""

    def __init__(self, meddle: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.meddle = meddle

    def random(self) -> float:
        self.meddle()
        return 1.0


class Fixed(random.Random):
    """Draws the same number each time."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


def fail() -> None:
    raise ConnectionError


def test_its_own_refusals_count_as_calls(clock: VirtualClock) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=Fixed(0.4999))
    with pytest.raises(ConnectionError):
        throttle(fail)()
    with capture(ShedRejected) as told:
        for _ in range(3):
            with pytest.raises(RejectedError):
                throttle(fail)()
    assert [event.load for event in told] == [1 / 2, 2 / 3, 3 / 4]


def test_a_draw_as_high_as_the_share_lets_in(clock: VirtualClock) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=Fixed(0.5))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            throttle(fail)()


def test_while_all_goes_well_the_clock_is_read_once_for_a_call() -> None:
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return 0.0

    throttle = Throttle(clock=clock, minimum_calls=1)
    reads = 0
    for _ in range(10):
        throttle(lambda: None)()
    assert reads == 10


def test_chance_is_asked_outside_of_the_lock(clock: VirtualClock) -> None:
    waiting: list[bool] = []

    def look() -> None:
        thread = threading.Thread(target=repr, args=(throttle,), daemon=True)
        thread.start()
        thread.join(20)
        waiting.append(thread.is_alive())

    throttle = Throttle(clock=clock, minimum_calls=1, rng=Unlucky(look))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            throttle(fail)()
    assert waiting == [False]


@pytest.mark.parametrize("step", ["add", "advance"])
def test_a_call_that_the_collector_makes_in_the_middle_of_a_step_is_not_counted(clock: VirtualClock, step: str) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=Unlucky())
    real = throttle._window
    depth, seen = 0, []

    class Window:
        def __getattr__(self, name: str) -> Any:
            return disturbed if name == step else getattr(real, name)

    def disturbed(*args: Any) -> Any:
        nonlocal depth
        depth += 1
        if depth == 1:
            with suppress(ConnectionError):
                throttle(fail)()
            seen.append(throttle.refused_share)
        assert depth == 1
        depth -= 1
        return getattr(real, step)(*args)

    def call() -> None:
        for _ in range(3):
            with suppress(ConnectionError):
                throttle(fail)()

    call()
    throttle._window = Window()  # type: ignore[assignment]
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the thread waits for itself"
    assert (seen, real.calls) == ([0.0] * 3, 6)


def test_no_cancellation_is_counted() -> None:
    async def scenario(run: ExploredRun, throttle: Throttle) -> None:
        async with run.task_group() as group:
            for _ in range(3):
                group.start_soon(throttle(anyio.sleep), 1)

    def is_well(throttle: Throttle) -> None:
        assert throttle.refused_share == 0

    assert explore(scenario, lambda: Throttle(minimum_calls=1), invariant=is_well).complete


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must be more than 0"),
        ({"threshold": 1.1}, "threshold must be at most 1"),
        ({"threshold": nan}, "threshold must be finite"),
        ({"threshold": True}, "threshold must be a number"),
        ({"window": 1e-9}, "^window must be at least 1e-06"),
        ({"window": inf}, "window must be finite"),
        ({"cap": -1}, "cap must be at least 0"),
        ({"cap": 1}, "cap must be at most 0.999"),
        ({"minimum_calls": 0}, "minimum_calls must be at least 1"),
        ({"rng": 3}, "rng.random must be a function"),
    ],
)
def test_a_throttle_refuses_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Throttle(**options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_step_goes_on(clock: VirtualClock) -> None:
    throttle = Throttle(clock=clock, minimum_calls=1, rng=Unlucky())
    with throttle._lock:
        throttle._busy = True
        child = os.fork()
        if not child:
            threading.excepthook = lambda _: None
            thread = threading.Thread(target=throttle(fail), daemon=True)
            thread.start()
            thread.join(10)
            os._exit(0 if throttle._window.calls == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- load ---


async def test_a_loop_that_is_quick_lets_all_calls_in() -> None:
    async with LoadShed(0.1, clock=anyio.current_time) as shed:
        for _ in range(20):
            assert await shed(Callee().__call__)() == "done"
            await anyio.sleep(0.05)
        assert shed.lag == pytest.approx(0, abs=1e-6)


async def test_a_loop_that_lags_sheds_until_it_has_recovered() -> None:
    ahead = 0.0  # what the loop has spent in one step, as its tasks see it

    def clock() -> float:
        return anyio.current_time() + ahead

    callee = Callee()
    async with LoadShed(0.1, clock=clock, name="search") as shed:
        await anyio.sleep(1)
        ahead += 0.5  # a step of half a second
        with capture(ShedRejected) as told, pytest.raises(RejectedError) as caught:
            await shed(callee.__call__)()
        assert (caught.value.policy, caught.value.reason, caught.value.retry_after) == ("load_shed", "shed", None)
        assert [event.name for event in told] == ["search"]
        assert told[0].load == pytest.approx(0.48, abs=0.03)
        await anyio.sleep(0.5)
        assert shed.lag == pytest.approx(0.25, abs=0.03)  # half of it
        await anyio.sleep(1.0)
        assert await shed(callee.__call__)() == "done"
    assert callee.calls == 1
    assert shed.lag == 0


async def test_outside_of_its_block_it_says_so() -> None:
    shed = LoadShed()
    with pytest.raises(ConfigurationError, match="must be entered before it is used"):
        await shed(Callee().__call__)()
    async with shed:
        with pytest.raises(ConfigurationError, match="was entered twice"):
            async with shed:
                pass
    async with shed:
        assert await shed(Callee().__call__)() == "done"


@pytest.mark.parametrize("seconds", [None, 0.02, 0.04, 0.05])
async def test_a_block_that_has_ended_is_looked_at_no_more(seconds: float | None) -> None:
    shed = LoadShed(clock=anyio.current_time)
    async with shed:
        if seconds is not None:  # else the task has not even begun
            await anyio.sleep(seconds)  # 0.02: it has just been woken
    await anyio.sleep(5)
    assert shed.lag == 0
    with pytest.raises(ConfigurationError, match="must be entered before it is used"):
        await shed(Callee().__call__)()


def test_whenever_its_block_is_cancelled_it_has_ended() -> None:
    async def scenario(run: ExploredRun, shed: LoadShed) -> None:
        del run
        async with shed:
            await anyio.sleep(0.05)

    async def has_ended(shed: LoadShed) -> None:
        await anyio.sleep(1)
        assert shed.lag == 0
        async with shed:
            assert await shed(Callee().__call__)() == "done"

    assert explore(scenario, lambda: LoadShed(clock=anyio.current_time), at_end=has_ended).complete


async def test_what_its_block_raises_comes_out_as_it_is() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with LoadShed():
            raise error
    assert caught.value is error
    with anyio.move_on_after(1) as scope:
        async with LoadShed():
            await anyio.sleep(5)
    assert scope.cancelled_caught


async def test_its_task_knows_nothing_of_who_entered_it() -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody's")
    seen: set[str] = set()

    def clock() -> float:
        seen.add(mine.get())
        return anyio.current_time()

    mine.set("a request's")
    async with LoadShed(clock=clock):
        seen.clear()
        await anyio.sleep(1)
        assert seen == {"nobody's"}


async def test_another_measure_of_load() -> None:
    load = 0.5
    shed = LoadShed(load=lambda: load, max_load=0.8)
    assert shed(lambda: 7)() == 7
    load = 0.8
    assert shed(lambda: 7)() == 7
    load = 0.81
    with capture(ShedRejected) as told, pytest.raises(RejectedError):
        await shed(Callee().__call__)()
    assert [event.load for event in told] == [0.81]
    assert repr(shed) == "<LoadShed above a load of 0.8>"


def broken() -> float:
    raise OSError


@pytest.mark.parametrize(
    ("load", "error_type"), [(broken, "OSError"), (lambda: nan, "ValueError"), (lambda: None, "TypeError")]
)
def test_a_measure_that_fails_refuses_nobody(load: Callable[[], float], error_type: str) -> None:
    with capture(PolicyHookFailed) as told:
        assert LoadShed(load=load, max_load=1)(lambda: 7)() == 7
    assert [(event.hook, event.error_type) for event in told] == [("load", error_type)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lag": 0}, "max_lag must be more than 0"),
        ({"load": lambda: 1}, "load and max_load must be given together"),
        ({"max_load": 1}, "load and max_load must be given together"),
        ({"load": 3, "max_load": 1}, "load must be a function"),
        ({"load": lambda: 1, "max_load": nan}, "max_load must be finite"),
    ],
)
def test_load_shedding_refuses_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LoadShed(**options)
