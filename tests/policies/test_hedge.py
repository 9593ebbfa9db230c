from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import ceil, inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience.errors import BulkheadFullError, ConfigurationError
from resilience.events import Event, HedgeLaunched, HedgeWon, RetrySuppressed, capture
from resilience.policies import Hedge, Quantile, RetryBudget, writes
from resilience.policies.hedge import _Latencies
from resilience.policies.race import Attempts

pytestmark = pytest.mark.anyio


class Callee:
    """Its attempts take so long and end so, one after the other; the last says what the further ones do.

    Attributes:
        log: what happened: (attempt, "began" | "ended" | "cancelled", when).
        running: attempts under way.
        most: that were under way at one time.
    """

    def __init__(self, *attempts: tuple[float, object]) -> None:
        self.attempts = attempts
        self.log: list[tuple[int, str, float]] = []
        self.calls = self.running = self.most = 0
        self._began = anyio.current_time()

    async def __call__(self) -> Any:
        number, self.calls = self.calls, self.calls + 1
        seconds, outcome = self.attempts[min(number, len(self.attempts) - 1)]
        self.running += 1
        self.most = max(self.most, self.running)
        self._note(number, "began")
        try:
            if seconds:
                await anyio.sleep(seconds)
            if isinstance(outcome, BaseException):
                raise outcome
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)  # cleaning up takes its time
            self._note(number, "cancelled")
            raise
        else:
            self._note(number, "ended")
            return outcome
        finally:
            self.running -= 1

    def when(self, what: str) -> dict[int, float]:
        return {number: at for number, happened, at in self.log if happened == what}

    def _note(self, number: int, what: str) -> None:
        self.log.append((number, what, round(anyio.current_time() - self._began, 6)))


class Closable:
    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        await anyio.sleep(0.01)
        self.closed += 1


@contextmanager
def no_tasks_left() -> Iterator[None]:
    before = len(tasks())
    yield
    assert len(tasks()) == before


def tasks() -> list[Any]:
    with suppress(RuntimeError):
        return list(asyncio.all_tasks())
    import trio

    found, pending = [], [trio.lowlevel.current_root_task()]
    while pending:
        task = pending.pop()
        if task is not None:
            found.append(task)
            pending.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return found


def hedge(delay: Any, hedges: int = 1, **options: Any) -> Hedge:
    return Hedge(delay, max_hedges=hedges, idempotent=True, clock=anyio.current_time, **options)


MODES = [0, 0.01, inf, Quantile()]
"""Parallel, after a delay, sequential, and a quantile in its warm-up."""


# --- scenario 23 ---


async def test_the_next_starts_after_the_delay_and_losers_have_ended_at_the_return() -> None:
    callee = Callee((0.1, "primary"), (1, "slow"))
    with capture(HedgeLaunched, HedgeWon) as events, no_tasks_left():
        assert await hedge(0.01, 2).call(callee) == "primary"
        assert callee.running == 0
    assert callee.when("began") == {0: 0, 1: 0.01, 2: 0.02}
    assert callee.when("ended") == {0: 0.1}
    assert callee.when("cancelled") == {1: 0.101, 2: 0.101}
    assert [(type(event), event.as_dict()["number"]) for event in events] == [(HedgeLaunched, 1), (HedgeLaunched, 2)]


async def test_a_delay_of_zero_starts_all_at_once() -> None:
    callee = Callee((0.1, "primary"), (0.2, "slow"), (0.05, "quick"))
    with capture(HedgeLaunched, HedgeWon) as events, no_tasks_left():
        assert await hedge(0, 2, name="h").call(callee) == "quick"
    assert callee.when("began") == {0: 0, 1: 0, 2: 0}
    told = [(type(event), event.name, event.as_dict()["number"]) for event in events]
    assert told == [(HedgeLaunched, "h", 1), (HedgeLaunched, "h", 2), (HedgeWon, "h", 2)]


async def test_an_infinite_delay_never_has_two_at_once() -> None:
    callee = Callee((0.1, ValueError()), (0.2, ValueError()), (0.3, "third"))
    with capture(HedgeLaunched, HedgeWon) as events, no_tasks_left():
        assert await hedge(inf, 2).call(callee) == "third"
    assert callee.most == 1
    assert callee.when("began") == {0: 0, 1: 0.1, 2: 0.3}
    assert [(type(event), event.as_dict()["number"]) for event in events] == [
        (HedgeLaunched, 1),
        (HedgeLaunched, 2),
        (HedgeWon, 2),
    ]


async def test_an_infinite_delay_does_not_hedge_the_slow() -> None:
    callee = Callee((1000, "late"))
    assert await hedge(inf, 2).call(callee) == "late"
    assert callee.calls == 1


@pytest.mark.parametrize("delay", MODES)
async def test_when_all_fail_the_error_of_the_first_comes_out(delay: Any) -> None:
    cause, context = KeyError("cause"), KeyError("context")
    error = ValueError("primary")
    error.add_note("mine")
    error.__cause__, error.__context__ = cause, context
    callee = Callee((0.1, error), (0.01, LookupError()), (0.02, OSError()))
    with capture(HedgeWon) as events, no_tasks_left(), pytest.raises(ValueError, match="primary") as raised:
        await hedge(delay, 2).call(callee)
    assert raised.value is error
    assert (error.__cause__, error.__context__, error.__notes__) == (cause, context, ["mine"])
    assert callee.calls == 3
    assert not events


@pytest.mark.parametrize("delay", MODES)
async def test_its_context_is_left_alone_in_somebodys_except_block(delay: Any) -> None:
    context, error = KeyError("context"), ValueError("primary")

    async def callee() -> None:
        try:
            raise context
        except KeyError:
            raise error  # noqa: B904 - its context is what this is about

    async def call() -> None:
        try:
            raise LookupError  # noqa: TRY301 - it is handled here, and that is what this is about
        except LookupError:
            await hedge(delay).call(callee)

    with pytest.raises(ValueError, match="primary"):
        await call()
    assert error.__context__ is context


# --- scenario 25 ---


async def test_a_quantile_hedges_what_is_slower_than_most() -> None:
    policy = hedge(Quantile(0.95, warmup=20))
    usual = Callee((0.005, "usual"))
    with capture(HedgeLaunched) as events:
        for _ in range(20):
            assert await policy.call(usual) == "usual"
        assert not events
        for _ in range(5):
            assert await policy.call(usual) == "usual"
        assert not events
        slow = Callee((0.2, "slow"), (0.005, "hedge"))
        assert await policy.call(slow) == "hedge"
    assert [event.number for event in events] == [1]
    assert slow.when("began") == {0: 0, 1: 0.005}


async def test_nobody_is_hedged_for_slowness_before_the_warm_up_is_over() -> None:
    policy = hedge(Quantile(0.5, warmup=20))
    for _ in range(19):
        await policy.call(Callee((0.005, 1)))
    slow = Callee((1000, "slow"))
    assert await policy.call(slow) == "slow"
    assert slow.calls == 1
    slow = Callee((1000, "slow"), (0, "quick"))
    assert await policy.call(slow) == "quick"


async def test_a_failure_in_the_warm_up_starts_the_next_at_once() -> None:
    callee = Callee((0.1, ValueError()), (0.1, "second"))
    assert await hedge(Quantile()).call(callee) == "second"
    assert callee.when("began") == {0: 0, 1: 0.1}


async def test_only_successes_count_as_latencies() -> None:
    policy = hedge(Quantile(0.5, warmup=2))
    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            await policy.call(Callee((0.001, ValueError("no"))))
        with anyio.move_on_after(0.001):
            await policy.call(Callee((1, 1)))
    assert "now inf s" in repr(policy)


async def test_as_late_as_the_others_is_not_late() -> None:
    """Rounding makes equal latencies differ in their last digits."""
    policy = hedge(Quantile(0.5, warmup=3))
    with capture(HedgeLaunched) as events:
        for number in range(200):
            await anyio.sleep(number / 7)
            await policy.call(Callee((0.1, 1)))
    assert not events


async def test_of_a_hedge_that_won_after_a_failure_its_own_time_counts() -> None:
    policy = hedge(Quantile(0.5, warmup=1))
    await policy.call(Callee((5, ValueError()), (0.2, "second")))
    assert "now 0.2 s" in repr(policy)


async def test_the_delay_does_not_shrink_by_hedging() -> None:
    """Were a hedged call counted as quick as its hedge, more and more calls would be hedged."""
    policy = hedge(Quantile(0.9, warmup=20))
    rng = random.Random(3)
    launched: list[int] = []
    for _ in range(4):
        with capture(HedgeLaunched) as events:
            for _ in range(500):
                await policy.call(Callee((rng.expovariate(10), 1), (rng.expovariate(10), 1)))
        launched.append(len(events))
    # A tenth of 500 each time, give or take.
    assert all(30 <= count <= 75 for count in launched), launched


def test_latencies_agree_with_a_naive_model() -> None:
    rng = random.Random(1)
    latencies = _Latencies(Quantile(0.95, warmup=20))
    model: list[float] = []
    for _ in range(3000):
        seconds = rng.choice([0.0, 0.1, 0.25, rng.random()])
        latencies.add(seconds)
        model = [*model, seconds][-1000:]
        expected = sorted(model)[ceil(0.95 * len(model)) - 1] if len(model) >= 20 else inf
        assert latencies.delay() == pytest.approx(expected)
    latencies.renew_locks()
    assert latencies.delay() == inf


# --- failures ---


async def test_an_attempt_that_ends_as_the_delay_does_is_not_late() -> None:
    with capture(HedgeLaunched) as events:
        for _ in range(20):
            callee = Callee((1 - anyio.current_time() % 1, "primary"))
            assert await hedge(1 - anyio.current_time() % 1).call(callee) == "primary"
    assert not events


@pytest.mark.parametrize("delay", [0.05, inf, Quantile()])
async def test_a_failure_before_the_delay_starts_the_next_at_once(delay: Any) -> None:
    callee = Callee((0.01, ValueError()), (0.1, "second"))
    assert await hedge(delay).call(callee) == "second"
    assert callee.when("began") == {0: 0, 1: 0.01}


async def test_after_a_failure_the_delay_counts_from_the_attempt_that_followed() -> None:
    callee = Callee((0.01, ValueError()), (1, "second"), (0.1, "third"))
    assert await hedge(0.05, 2).call(callee) == "third"
    assert callee.when("began") == {0: 0, 1: 0.01, 2: 0.06}


async def test_an_attempt_that_fails_at_once_starts_the_next() -> None:
    callee = Callee((0, ValueError()), (0, ValueError()), (0, "third"))
    assert await hedge(5, 2).call(callee) == "third"
    assert anyio.current_time() == callee._began


async def test_the_first_answers_when_hedges_are_refused() -> None:
    callee = Callee((1, "primary"), (0, BulkheadFullError("b")))
    assert await hedge(0.1, 2).call(callee) == "primary"
    assert callee.when("began") == {0: 0, 1: 0.1, 2: 0.1}


async def test_the_error_of_the_first_comes_out_when_the_others_are_still_under_way_as_it_fails() -> None:
    error = ValueError("primary")
    callee = Callee((0.1, error), (0.3, LookupError()))
    with pytest.raises(ValueError, match="primary") as raised:
        await hedge(0.05).call(callee)
    assert raised.value is error
    assert callee.when("began") == {0: 0, 1: 0.05}


@pytest.mark.parametrize("delay", MODES)
async def test_groups_come_from_the_callee_only(delay: Any) -> None:
    error = ExceptionGroup("theirs", [ValueError()])
    with pytest.raises(ExceptionGroup) as raised:
        await hedge(delay).call(Callee((0.1, error)))
    assert raised.value is error


class Exit(BaseException):
    pass


@pytest.mark.parametrize("delay", MODES)
@pytest.mark.parametrize("exits", [Exit("now"), BaseExceptionGroup("theirs", [Exit("now")])])
async def test_exits_come_out_at_once_and_unwrapped(delay: Any, exits: BaseException) -> None:
    callee = Callee((0.05, exits), (1, "late"))
    with no_tasks_left(), pytest.raises(type(exits)) as raised:
        await hedge(delay).call(callee)
    assert raised.value is exits
    assert exits.__context__ is None
    assert anyio.current_time() == pytest.approx(callee._began + 0.05, abs=0.002)


async def test_an_exit_that_hits_the_caller_itself_is_unwrapped() -> None:
    """As KeyboardInterrupt does with trio: it is raised where the main task waits."""
    callee, told = Callee((1, "primary")), Exit("now")

    def clock() -> float:
        raise told

    with capture(Event), no_tasks_left(), pytest.raises(Exit) as raised:
        await Hedge(0.1, idempotent=True, clock=clock).call(callee)
    assert raised.value is told
    assert callee.when("cancelled") == {0: 0.101}


@pytest.mark.tells_by_chance
@pytest.mark.parametrize("delay", MODES)
@pytest.mark.parametrize("in_a_group", [False, True])
async def test_a_cancellation_that_nobody_asked_for_comes_out(
    delay: Any, in_a_group: bool, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's futures can be cancelled by themselves")

    async def awaits_a_cancelled_future() -> None:
        if in_a_group:
            raise BaseExceptionGroup("theirs", [asyncio.CancelledError()])
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(BaseExceptionGroup if in_a_group else asyncio.CancelledError):
        await hedge(delay).call(awaits_a_cancelled_future)


async def test_errors_of_losers_that_clean_up_do_not_matter() -> None:
    """With trio a cancellation and such an error come in one group."""
    calls = 0

    async def callee() -> str:
        nonlocal calls
        number = calls = calls + 1
        if number == 1:
            await anyio.sleep(1)
            return "primary"
        if number == 2:
            async with anyio.create_task_group() as group:
                group.start_soon(fails_to_clean_up)
                await anyio.sleep_forever()
        await fails_to_clean_up()
        raise AssertionError

    async def fails_to_clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cannot clean up")

    with no_tasks_left():
        assert await hedge(0.1, 2).call(callee) == "primary"


async def test_an_exit_of_a_loser_that_cleans_up_comes_out() -> None:
    calls = 0
    told = Exit("now")

    async def callee() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep(1)
            return "primary"
        async with anyio.create_task_group() as group:
            group.start_soon(exits)
            await anyio.sleep_forever()
        raise AssertionError

    async def exits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise told

    with no_tasks_left(), pytest.raises(BaseExceptionGroup) as raised:
        await hedge(0.1).call(callee)
    assert raised.group_contains(Exit)
    assert not raised.group_contains(anyio.get_cancelled_exc_class())


@pytest.mark.parametrize("delay", MODES)
async def test_no_frame_of_a_failed_call_is_kept(delay: Any) -> None:
    class Special(Exception):  # noqa: N818 - a weak reference needs a type of its own
        pass

    gone: list[weakref.ref[Special]] = []

    async def fail() -> None:
        await anyio.sleep(0.1)
        error = Special()
        gone.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.collect()
    gc.disable()
    try:
        with suppress(Special):
            await hedge(delay).call(fail)
        await anyio.lowlevel.checkpoint()
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("delay", [inf, Quantile()])
async def test_no_frame_of_a_cancelled_call_is_kept(delay: Any) -> None:
    class Local:
        pass

    gone: list[weakref.ref[Local]] = []

    async def wait() -> None:
        local = Local()
        gone.append(weakref.ref(local))
        await anyio.sleep_forever()

    gc.collect()
    gc.disable()
    try:
        with anyio.move_on_after(1):
            await hedge(delay).call(wait)
        await anyio.lowlevel.checkpoint()
        assert [one() for one in gone] == [None]
    finally:
        gc.enable()


# --- results that nobody gets ---


def stubborn(*results: object) -> Callable[[], Awaitable[object]]:
    """Gives the results, one per attempt, all after a second, and cannot be cancelled."""
    pending = list(results)

    async def callee() -> object:
        result = pending.pop(0)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
        return result

    return callee


@pytest.mark.tells_by_chance
async def test_results_of_losers_are_closed_once() -> None:
    results = [Closable(), Closable(), Closable()]
    answer = await hedge(0, 2).call(stubborn(*results))
    assert isinstance(answer, Closable)
    assert not answer.closed
    assert sorted(result.closed for result in results) == [0, 1, 1]


@pytest.mark.tells_by_chance
async def test_a_result_that_several_attempts_gave_stays_open() -> None:
    result = Closable()
    assert await hedge(0, 2).call(stubborn(result, result, result)) is result
    assert not result.closed


async def test_a_result_that_two_losers_gave_is_closed_once() -> None:
    winner, loser = Closable(), Closable()
    policy = hedge(0.1, 2)
    callee = stubborn(winner, loser, loser)
    assert await policy.call(callee) is winner
    assert (winner.closed, loser.closed) == (0, 1)


async def test_results_that_come_too_late_for_a_cancelled_caller_are_closed() -> None:
    results = [Closable(), Closable()]
    with no_tasks_left():
        with anyio.move_on_after(0.5) as scope:
            await hedge(0).call(stubborn(*results))
        assert scope.cancelled_caught
    assert [result.closed for result in results] == [1, 1]


async def test_a_caller_cancelled_while_the_losers_end_gets_nothing_open() -> None:
    result = Closable()
    calls = 0

    async def callee() -> Closable:
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep(0.1)
            return result
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        raise ValueError

    got: list[Closable] = []
    with no_tasks_left(), anyio.move_on_after(1) as scope:
        got.append(await hedge(0).call(callee))
    assert scope.cancel_called
    assert result.closed == (0 if got else 1)


# --- cancellation ---


@pytest.mark.parametrize("delay", MODES)
async def test_a_cancellation_from_outside_cancels_all_and_leaves_nothing(delay: Any) -> None:
    callee = Callee((5, "late"))
    budget = RetryBudget()
    with capture(HedgeWon) as events, no_tasks_left():
        with anyio.move_on_after(1) as scope:
            await hedge(delay, 2, budget=budget).call(callee)
        assert scope.cancelled_caught
    assert callee.running == 0
    assert len(callee.when("cancelled")) == callee.calls
    assert (budget.calls, budget.extra) == (0, 0)
    assert not events


@pytest.mark.parametrize("delay", MODES)
async def test_a_cancelled_task_of_asyncio_cancels_all(delay: Any, anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a task of asyncio")
    callee = Callee((5, "late"))
    task = asyncio.ensure_future(hedge(delay, 2).call(callee))
    await anyio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert callee.running == 0


async def test_a_cancellation_is_noticed_between_attempts_that_fail_at_once() -> None:
    callee = Callee((0, ValueError()))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await hedge(inf, 5).call(callee)
    assert scope.cancelled_caught
    assert callee.calls == 1


@pytest.mark.parametrize("delay", [inf, Quantile()])
async def test_a_call_that_is_closed_leaves_nothing_behind(delay: Any) -> None:
    """As when a loop ends without letting its tasks end."""

    class Never:
        def __await__(self) -> Any:
            yield

    async def callee() -> None:
        await Never()

    budget = RetryBudget()
    coroutine: Any = hedge(delay, budget=budget).call(callee)
    coroutine.send(None)
    coroutine.close()
    assert (budget.calls, budget.extra) == (0, 0)


# --- context ---


@pytest.mark.tells_by_chance
@pytest.mark.parametrize("delay", [0, 0.01])
async def test_attempts_side_by_side_run_in_copies_of_the_callers_context(delay: Any) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: list[str] = []

    async def callee() -> str:
        seen.append(variable.get())
        token = variable.set(f"by {len(seen)}")
        await anyio.sleep(0.1)
        assert variable.get().startswith("by")
        if len(seen) == 1:
            raise ValueError
        await anyio.sleep(0.1)
        variable.reset(token)
        variable.set("at the end")
        return "done"

    variable.set("mine")
    assert await hedge(delay).call(callee) == "done"
    assert seen == ["mine", "mine"]
    assert variable.get() == "mine"


@pytest.mark.tells_by_chance
@pytest.mark.parametrize("delay", MODES)
async def test_scopes_and_groups_work_in_an_attempt(delay: Any) -> None:
    async def callee() -> bool:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.001)
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(1)
        return scope.cancelled_caught

    assert await hedge(delay).call(callee) is True


# --- budget ---


@pytest.mark.parametrize("delay", [0, 0.1])
async def test_the_first_answers_when_the_budget_denies_a_hedge(delay: float) -> None:
    callee = Callee((5, "primary"), (0, "hedge"))
    budget = RetryBudget(0, 0)
    with capture(HedgeLaunched, RetrySuppressed) as events:
        assert await hedge(delay, 3, budget=budget).call(callee) == "primary"
    assert callee.calls == 1
    assert [(event.kind, event.as_dict()["reason"]) for event in events] == [("retry.suppressed", "budget")]


@pytest.mark.parametrize("delay", MODES)
async def test_the_error_of_the_first_comes_out_when_the_budget_denies_a_hedge(delay: Any) -> None:
    error = ValueError("primary")
    with pytest.raises(ValueError, match="primary") as raised:
        await hedge(delay, 3, budget=RetryBudget(0, 0)).call(Callee((1, error)))
    assert raised.value is error


async def test_hedges_are_in_the_budget_while_they_run() -> None:
    budget = RetryBudget(0, 1)
    seen: list[tuple[int, int]] = []
    callee = Callee((0.1, ValueError()), (0.5, ValueError()), (0.5, ValueError()), (1, "done"))

    async def watched() -> object:
        seen.append((budget.calls, budget.extra))
        return await callee()

    # One at a time: when one has ended there is room for the next.
    assert await hedge(inf, 3, budget=budget).call(watched) == "done"
    assert seen == [(1, 0), (1, 1), (1, 1), (1, 1)]
    assert (budget.calls, budget.extra) == (0, 0)


async def test_a_hedge_gives_back_as_soon_as_it_ends() -> None:
    budget = RetryBudget(0, 1)
    callee = Callee((1, "primary"), (0.1, ValueError()))
    extra: list[int] = []

    async def watch() -> None:
        for _ in range(4):
            extra.append(budget.extra)
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await anyio.sleep(0.05)
        assert await hedge(0.1, 1, budget=budget).call(callee) == "primary"
    assert extra == [0, 0, 1, 0]


async def test_attempts_that_were_never_made_give_back() -> None:
    """A task of asyncio that is cancelled before its first step never runs."""
    budget = RetryBudget()
    attempts = Attempts(anyio.sleep_forever, "h", most=2, budget=budget, clock=anyio.current_time, note=None)
    assert [attempts.begin(), attempts.begin(), attempts.begin(), attempts.begin()] == [True, True, True, False]
    assert budget.extra == 2
    attempts.settle()
    assert budget.extra == 0


async def test_a_denied_hedge_is_asked_for_once_for_slowness() -> None:
    asked: list[float] = []

    class Budget(RetryBudget):
        def take(self) -> bool:
            asked.append(round(anyio.current_time(), 6))
            return False

    assert await hedge(0.1, 3, budget=Budget()).call(Callee((5, "primary"))) == "primary"
    assert len(asked) == 1


# --- how it is put up ---


async def test_it_decorates() -> None:
    @hedge(0.1)
    async def fetch(number: int, *, twice: bool = False) -> int:
        """Fetch."""
        return number * (1 + twice)

    assert await fetch(2, twice=True) == 4
    assert fetch.__doc__ == "Fetch."


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"delay": -1}, "delay must be at least 0"),
        ({"delay": nan}, "delay must be finite"),
        ({"delay": -inf}, "delay must be finite"),
        ({"delay": "1"}, "delay must be a number"),
        ({"delay": True}, "delay must be a number"),
        ({"max_hedges": 0}, "max_hedges must be at least 1"),
        ({"max_hedges": 1.5}, "max_hedges must be an int"),
        ({"idempotent": False}, "idempotent must be True, got False: a hedge does the work twice"),
        ({"idempotent": 1}, "idempotent must be True, got 1"),
        ({"idempotent": None}, "idempotent must be True, got None"),
        ({"budget": 3}, "budget must be a RetryBudget"),
        ({"clock": 3}, "clock must be a function"),
        ({"name": ""}, "name must be"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Hedge(**{"delay": 1, "idempotent": True, **arguments})


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"share": 0}, "share must be more than 0"),
        ({"share": 1}, "share must be less than 1"),
        ({"share": nan}, "share must be finite"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"warmup": 1001}, "warmup must be at most 1,000"),
    ],
)
def test_quantiles_that_make_no_sense_are_refused(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Quantile(**arguments)


def test_plain_functions_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a hedge is for async functions, got .*<lambda>: a plain one cannot"):
        hedge(1)(lambda: 1)


def test_writes_are_refused() -> None:
    @writes
    async def transfer() -> None: ...

    with pytest.raises(ConfigurationError, match="marked as writes"):
        hedge(1)(transfer)


def test_the_repr_tells_the_delay() -> None:
    assert repr(hedge(0.25, 2)) == "<Hedge after 0.25 s, at most 2>"
    assert repr(hedge(Quantile())) == "<Hedge after Quantile(share=0.95, warmup=20), now inf s, at most 1>"
