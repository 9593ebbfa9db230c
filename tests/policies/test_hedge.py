"""A second attempt beside a slow one: who wins, what becomes of the others, and when there is none."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilience.errors import ConfigurationError
from resilience.events import HedgeLaunched, HedgeWon, RetrySuppressed, capture
from resilience.policies import Hedge, Quantile, RetryBudget, writes
from resilience.testing import explore
from resilience.testing.explorer import ExploredRun

pytestmark = pytest.mark.anyio


def hedge(delay: Any, **options: Any) -> Hedge:
    return Hedge(delay, idempotent=True, clock=anyio.current_time, **options)


class Response:
    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = 0

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


class Callee:
    """Makes of each attempt what it is told: takes so long, and gives or raises what it has for it."""

    def __init__(self, *attempts: tuple[float, Any]) -> None:
        self.attempts = attempts
        self.started = self.running = self.most = self.cancelled = 0

    async def __call__(self) -> Any:
        takes, end = self.attempts[min(self.started, len(self.attempts) - 1)]
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(takes)
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(end, BaseException):
            raise end
        return end


async def test_a_quick_answer_needs_no_other_attempt() -> None:
    callee = Callee((0.005, "done"))
    with capture(HedgeLaunched, HedgeWon) as told:
        assert await hedge(0.01).call(callee) == "done"
    assert (callee.started, told) == (1, [])


async def test_the_losers_are_cancelled_and_finished_before_it_returns() -> None:
    callee = Callee((0.1, "first"), (0.1, "second"), (0.02, "third"))
    began = anyio.current_time()
    with capture(HedgeLaunched, HedgeWon) as told:
        assert await hedge(0.01, max_hedges=2).call(callee) == "third"
    assert anyio.current_time() - began == pytest.approx(0.04)
    assert (callee.started, callee.cancelled, callee.running) == (3, 2, 0)
    assert [(event.kind, event.as_dict()["number"]) for event in told] == [
        ("hedge.launched", 1),
        ("hedge.launched", 2),
        ("hedge.won", 2),
    ]


async def test_without_delay_all_start_at_once() -> None:
    callee = Callee((0.1, "done"))
    assert await hedge(0, max_hedges=2).call(callee) == "done"
    assert (callee.started, callee.most) == (3, 3)


async def test_with_infinite_delay_never_two_at_once() -> None:
    callee = Callee((0.1, OSError()), (0.1, OSError()), (0.1, "done"))
    with capture(HedgeLaunched, HedgeWon) as told:
        assert await hedge(inf, max_hedges=2).call(callee) == "done"
    assert (callee.started, callee.most) == (3, 1)
    assert [event.as_dict()["number"] for event in told] == [1, 2, 2]


@pytest.mark.parametrize("delay", [0, 0.05, 10.0, inf])
async def test_when_all_fail_the_error_of_the_first_comes_out(delay: float) -> None:
    first = ConnectionError("first")
    callee = Callee((0.1, first), (0.2, OSError("second")), (0.01, KeyError("third")))
    with pytest.raises(ConnectionError) as caught:
        await hedge(delay, max_hedges=2).call(callee)
    assert caught.value is first
    assert first.__cause__ is first.__context__ is None
    assert callee.started == 3


async def test_a_failure_starts_the_next_at_once() -> None:
    callee = Callee((0.1, ConnectionError()), (0.1, "done"))
    began = anyio.current_time()
    assert await hedge(5.0).call(callee) == "done"
    assert anyio.current_time() - began == pytest.approx(0.2)


async def test_results_that_come_too_late_are_closed_once() -> None:
    class Stubborn(Callee):
        async def __call__(self) -> Any:
            self.started += 1
            response = responses[self.started - 1]
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1 if response.number else 0.2)
            return response

    responses = [Response(0), Response(1)]
    winner = await hedge(0.05).call(Stubborn())
    assert winner is responses[1]
    assert [response.closed for response in responses] == [1, 0]


async def test_a_cancellation_ends_all_attempts_and_closes_what_was_won() -> None:
    callee = Callee((10.0, "done"))
    with anyio.move_on_after(1.0) as scope:
        await hedge(0.1, max_hedges=3).call(callee)
    assert scope.cancelled_caught
    assert (callee.started, callee.cancelled, callee.running) == (4, 4, 0)


async def test_what_ends_programs_passes_as_it_is() -> None:
    class Ends(BaseException):
        pass

    for delay in (0.1, 0, inf):
        with pytest.raises(Ends):
            await hedge(delay).call(Callee((0.01, Ends())))


async def test_a_budget_that_denies_a_hedge_does_no_harm() -> None:
    budget = RetryBudget(ratio=0, floor=0)
    callee = Callee((1.0, "done"))
    for delay in (0.1, 0, inf):
        with capture(HedgeLaunched, RetrySuppressed) as told:
            assert await hedge(delay, budget=budget).call(callee) == "done"
        assert [event.kind for event in told] == ([] if delay == inf else ["retry.suppressed"])
    assert callee.started == 3


async def test_a_budget_is_shared_and_given_back() -> None:
    budget = RetryBudget(ratio=0, floor=2)
    callee = Callee((1.0, "done"))
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(hedge(0.1, budget=budget)(callee.__call__))
        await anyio.sleep(0.5)
        assert (budget.calls, budget.extra, callee.started) == (5, 2, 7)
    assert (budget.calls, budget.extra) == (0, 0)


def test_no_schedule_of_cancellations_keeps_a_right_or_a_task() -> None:
    class World:
        def __init__(self) -> None:
            self.budget = RetryBudget(ratio=0, floor=9)
            self.callee = Callee((3, "first"), (1.5, OSError()), (2, "third"))

    async def scenario(run: ExploredRun, world: World) -> None:
        async with run.task_group() as group:
            for _ in range(2):
                group.start_soon(hedge(1, max_hedges=2, budget=world.budget)(world.callee.__call__))

    def is_settled(world: World) -> None:
        assert (world.budget.calls, world.budget.extra, world.callee.running) == (0, 0, 0)

    explore(scenario, World, at_end=is_settled, limit=400)


async def test_a_quantile_waits_until_enough_is_known_and_then_hedges_what_is_slow() -> None:
    delay = Quantile(0.95)
    for _ in range(25):
        with capture(HedgeLaunched) as told:
            await hedge(delay).call(Callee((0.005, "done")))
        assert told == []
    with capture(HedgeLaunched) as told:
        await hedge(delay).call(Callee((0.2, "done")))
    assert len(told) == 1


async def test_a_quantile_is_that_of_the_latest() -> None:
    delay = Quantile(0.5, warmup=4)
    assert delay.delay() == inf
    for seconds in (4, 1, 3, 2):
        delay.note(seconds)
    assert delay.delay() == 2
    for _ in range(100):
        delay.note(7)
    assert delay.delay() == 7
    assert repr(delay) == "<Quantile 0.5, 100 calls remembered>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idempotent": False}, "idempotent must be True, got False"),
        ({"idempotent": 1}, "idempotent must be True, got 1"),
        ({"delay": -1}, "delay must be at least 0"),
        ({"delay": nan}, "delay must be finite"),
        ({"delay": None}, "delay must be a number"),
        ({"max_hedges": 0}, "max_hedges must be at least 1"),
        ({"budget": 3}, "budget must be a RetryBudget"),
        ({"clock": 3}, "clock must be a function"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Hedge(**{"delay": 0.1, "idempotent": True} | options)


def test_a_quantile_refuses_bad_input() -> None:
    for share in (0, 1, -1, nan):
        with pytest.raises(ConfigurationError, match="share must be"):
            Quantile(share)
    for warmup in (0, 101):
        with pytest.raises(ConfigurationError, match="warmup must be"):
            Quantile(warmup=warmup)


def test_what_cannot_be_hedged_is_refused() -> None:
    @writes
    async def pay() -> None: ...

    with pytest.raises(ConfigurationError, match="marked as writes"):
        hedge(1)(pay)
    with pytest.raises(ConfigurationError, match="a hedge needs an async function"):
        hedge(1)(lambda: None)
    assert repr(hedge(1)) == "<Hedge after 1 s, at most 1 more>"
    assert repr(hedge(Quantile())) == "<Hedge after <Quantile 0.95, 0 calls remembered>, at most 1 more>"
