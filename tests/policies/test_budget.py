"""How many calls may be extra."""

from __future__ import annotations

import os
import threading
from math import nan
from typing import Any

import anyio
import pytest

from resilience.errors import ConfigurationError
from resilience.events import RetryStopped, RetrySuppressed, capture
from resilience.policies import Hedge, Pipeline, Retry, RetryBudget

pytestmark = pytest.mark.anyio


def busy(budget: RetryBudget, calls: int) -> RetryBudget:
    for _ in range(calls):
        budget.begin_call()
    return budget


def test_a_share_of_the_calls_under_way_may_be_extra() -> None:
    budget = busy(RetryBudget(ratio=0.5, floor=1), 2)
    assert (budget.take(), budget.take()) == (True, False)
    budget.give_back()
    assert (budget.take(), budget.take()) == (True, False)
    assert (budget.calls, budget.extra) == (2, 1)


@pytest.mark.parametrize(("active", "extra"), [(25, 5), (2, 3), (0, 3), (15, 3), (20, 4), (100, 20)])
def test_the_floor_is_for_those_with_few_calls(active: int, extra: int) -> None:
    budget = busy(RetryBudget(ratio=0.2, floor=3), active)
    assert sum(budget.take() for _ in range(1000)) == extra


async def test_who_gets_none_does_not_sleep_and_has_the_callees_own_error() -> None:
    budget, error = RetryBudget(ratio=0, floor=0), ConnectionError()

    @Retry(5, wait=9.0, budget=budget, clock=anyio.current_time)
    async def fail() -> None:
        raise error

    began = anyio.current_time()
    with capture(RetrySuppressed, RetryStopped) as told, pytest.raises(ConnectionError) as caught:
        await fail()
    assert caught.value is error
    assert anyio.current_time() == began
    assert [event.kind for event in told] == ["retry.suppressed", "retry.stopped"]
    assert told[1].as_dict()["stop_reason"] == "budget"
    assert (budget.calls, budget.extra) == (0, 0)


async def test_it_bounds_all_who_share_it_and_everything_is_given_back() -> None:
    budget = RetryBudget(ratio=0.1, floor=2)
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(1)
        raise ConnectionError

    async def ask() -> None:
        with pytest.raises(ConnectionError):
            await Retry(3, wait=1.0, budget=budget, clock=anyio.current_time)(fail)()

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    # Five of fifty may try again; what they leave is for nobody, for the others have stopped by then.
    assert 50 + 5 <= calls <= 50 + 10
    assert (budget.calls, budget.extra) == (0, 0)


async def test_a_cancelled_pause_gives_its_right_back() -> None:
    budget = RetryBudget()

    @Retry(3, wait=9.0, budget=budget, clock=anyio.current_time)
    async def fail() -> None:
        raise ConnectionError

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        await anyio.sleep(1)
        assert (budget.calls, budget.extra) == (1, 1)
        group.cancel_scope.cancel()
    assert (budget.calls, budget.extra) == (0, 0)


async def test_a_call_counts_once_though_its_retry_and_its_hedge_share_the_budget() -> None:
    budget = RetryBudget(ratio=1, floor=0)
    seen: list[tuple[int, int]] = []

    async def slow() -> None:
        await anyio.sleep(1.5)
        seen.append((budget.calls, budget.extra))
        raise ConnectionError

    hedge = Hedge(1.0, idempotent=True, budget=budget, clock=anyio.current_time)
    with pytest.raises(ConnectionError):
        await Pipeline(Retry(2, wait=0, budget=budget, clock=anyio.current_time), hedge).call(slow)
    # The first attempt and its hedge; then a retry, which has the right to be, and gets no hedge beside it.
    assert seen == [(1, 1), (1, 1), (1, 1)]
    assert (budget.calls, budget.extra) == (0, 0)


def test_sync_calls_count_as_well() -> None:
    budget = RetryBudget(ratio=0, floor=1)
    seen: list[tuple[int, int]] = []

    @Retry(2, wait=0, budget=budget)
    def fail() -> None:
        seen.append((budget.calls, budget.extra))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert (seen, budget.calls, budget.extra) == ([(1, 0), (1, 1)], 0, 0)


def test_threads_lose_no_count() -> None:
    budget = RetryBudget(ratio=1, floor=1_000_000)

    def work() -> None:
        for _ in range(2_000):
            budget.begin_call()
            if budget.take():
                budget.give_back()
            budget.end_call()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (budget.calls, budget.extra) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_anew() -> None:
    budget = busy(RetryBudget(), 5)
    budget.take()
    child = os.fork()
    if not child:
        budget.end_call()  # that the parent began
        os._exit(0 if (budget.calls, budget.extra) == (0, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": -0.1}, "ratio must be at least 0"),
        ({"ratio": 1.1}, "ratio must be at most 1"),
        ({"ratio": nan}, "ratio must be finite"),
        ({"floor": -1}, "floor must be at least 0"),
        ({"floor": 1.5}, "floor must be an int"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RetryBudget(**options)


def test_it_says_how_it_stands() -> None:
    assert repr(busy(RetryBudget(), 25)) == "<RetryBudget 0 of 5 extra, 25 calls under way>"
