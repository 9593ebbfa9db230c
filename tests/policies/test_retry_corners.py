"""Where retries meet hostile input: hooks, rejections and results that are not what they should be."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from collections.abc import Callable
from math import inf, nan
from typing import Any
from unittest.mock import Mock

import anyio
import pytest
import tenacity

from resilience.deadline import enter_deadline, leave_deadline
from resilience.errors import CircuitOpenError, ConfigurationError, PoolUsageError, RejectedError
from resilience.events import AttemptFailed, Event, PolicyHookFailed, RetryStopped, capture, subscribe
from resilience.policies import Backoff, Bulkhead, Fallback, Hedge, Pipeline, Retry, RetryBudget, Timeout, writes
from resilience.stack import Admission
from resilience.testing import VirtualClock

from .callees import Async, Callee, Sync, World, raised, reasons

pytestmark = pytest.mark.anyio


def refusal(seconds: Any = None) -> RejectedError:
    return CircuitOpenError("callee", "open", seconds)


# --- hooks ---


class NoTruth:
    """As an array of several numbers is."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


@pytest.mark.parametrize("answer", [NoTruth, lambda: anyio.sleep(1)], ids=["no truth value", "a coroutine"])
async def test_a_hook_whose_answer_says_nothing_is_one_that_failed(world: World, answer: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that nobody awaited would warn
        for hook, calls in (("on", 1), ("retry_result", 1)):
            callee = Callee(OSError() if hook == "on" else 7)
            with capture(PolicyHookFailed) as told:
                options: dict[str, Any] = {hook: lambda _: answer()}
                if hook == "on":
                    assert await raised(world, callee, **options) is callee.ends[0]
                else:
                    assert await world.call(callee, **options) == 7
            assert (callee.calls, [event.hook for event in told]) == (calls, [hook])
        gc.collect()


async def test_a_wait_that_gives_a_coroutine_leaves_the_usual_pauses(world: World) -> None:
    callee, began = Callee(OSError()), world.clock()
    with capture(PolicyHookFailed) as told:
        await raised(world, callee, wait=lambda _: anyio.sleep(1))
    assert (callee.calls, len(told)) == (3, 2)
    assert world.clock() - began <= Backoff().longest(1) + Backoff().longest(2)


async def test_no_pause_is_longer_than_a_year(world: World) -> None:
    if isinstance(world, Async):
        return  # trio's clock knows no such time
    began = world.clock()
    await raised(world, Callee(OSError()), 2, wait=lambda _: 1e300)
    assert world.clock() - began == 366 * 24 * 3600
    for field in ("wait", "wait_for_admission"):
        with pytest.raises(ConfigurationError, match=f"{field} must be at most"):
            Retry(**{field: 1e9})  # type: ignore[arg-type]  # any


@pytest.mark.parametrize("asked", [1e9, 10**400, "99999999999999999999999999", "86400000"])
async def test_what_nobody_waits_for_ends_the_call(world: World, asked: object) -> None:
    for wait in (0.0, lambda _: 0.0, Backoff()):
        callee = Callee(OSError())
        with capture(RetryStopped) as told:
            await raised(world, callee, wait=wait, retry_after=lambda _: asked)
        assert (callee.calls, reasons(told)) == (1, ["retry_after_too_long"])


async def test_of_a_group_the_longest_wish_counts(world: World) -> None:
    class BusyError(Exception):
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

    began = world.clock()
    group = ExceptionGroup("", [BusyError(2.0), ExceptionGroup("", [BusyError(5.0)]), BusyError(3.0)])
    await raised(world, Callee(group), 2, retry_after=lambda error: error.seconds)
    assert world.clock() - began == 5.0


@pytest.mark.parametrize("kind", [ExceptionGroup, BaseExceptionGroup, KeyboardInterrupt, asyncio.CancelledError])
def test_errors_that_can_never_be_tried_again_are_refused(kind: type[BaseException]) -> None:
    for on in (kind, (OSError, kind)):
        with pytest.raises(ConfigurationError, match=f"on must name errors, got {kind.__name__}"):
            Retry(on=on)


def test_a_stop_object_that_awaits_is_refused() -> None:
    class Later(tenacity.stop.stop_base):
        async def __call__(self, retry_state: tenacity.RetryCallState) -> bool:  # type: ignore[override]  # that is it
            return True

    with pytest.raises(ConfigurationError, match="stop must be a plain function, got the async"):
        Retry(stop=Later())


async def test_a_stop_object_that_says_nothing_stops_nobody(world: World) -> None:
    class Undecided(tenacity.stop.stop_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> Any:
            return NoTruth()

    callee = Callee(OSError())
    with capture(PolicyHookFailed) as told:
        assert await raised(world, callee, stop=Undecided()) is callee.ends[0]
    assert (callee.calls, [event.as_dict()["hook"] for event in told]) == (3, ["stop", "stop"])


# --- rejections ---


@pytest.mark.parametrize("nonsense", [nan, inf, -1.0, "soon", True, object()])
async def test_a_rejection_with_a_nonsense_time_has_none(world: World, nonsense: Any) -> None:
    callee = Callee(refusal(nonsense))
    with capture(RetryStopped) as told:
        assert await raised(world, callee, wait_for_admission=60.0) is callee.ends[0]
    assert (callee.calls, reasons(told)) == (1, ["circuit_open"])


@pytest.mark.parametrize("nonsense", [nan, -1.0, "soon"])
async def test_so_has_an_admission(nonsense: Any) -> None:
    class Closed:
        def around(self, function: Any, _: object) -> Any:
            return function

        def admission(self) -> Admission:
            return Admission(allowed=False, retry_after=nonsense, reason="circuit_open")

    callee = Callee(OSError())

    async def call() -> Any:
        return callee()

    with capture(RetryStopped) as told, pytest.raises(OSError):  # noqa: PT011 - the callee's own
        await Pipeline(Retry(wait=0, wait_for_admission=1.0), Closed()).call(call)
    assert (callee.calls, reasons(told)) == (1, ["circuit_open"])


async def test_chance_takes_nobody_past_the_deadline() -> None:
    class Latest:
        def random(self) -> float:
            return 0.999

    rng: Any = Latest()
    callee = Callee(refusal(1.0), 7)
    with anyio.fail_after(1.05):
        world = Async(anyio.current_time)
        assert await world.call(callee, wait_for_admission=2.0, rng=rng) == 7
    callee, clock = Callee(refusal(1.0), 7), VirtualClock(autojump=False)
    token = enter_deadline(1.05, clock)
    try:
        assert await Sync(clock).call(callee, wait_for_admission=2.0, rng=rng) == 7
    finally:
        leave_deadline(token)
    with anyio.move_on_after(1.0):
        callee = Callee(refusal(1.0), 7)
        assert await raised(world, callee, wait_for_admission=2.0) is callee.ends[0]
    assert callee.calls == 1


async def test_the_last_refusal_comes_out_if_there_was_nothing_else(world: World) -> None:
    first, last = refusal(1.0), refusal(None)
    assert await raised(world, Callee(first, last), wait_for_admission=2.0) is last
    first, last = refusal(1.0), refusal(2.0)
    assert await raised(world, Callee(first, last), 2, wait_for_admission=2.0) is last


async def test_a_refusal_in_a_group_of_one_is_no_attempt_of_the_callee(world: World) -> None:
    error = ConnectionError()
    callee = Callee(error, ExceptionGroup("", [refusal()]))
    with capture(AttemptFailed, RetryStopped) as told:
        assert await raised(world, callee) is error
    assert [event.kind for event in told] == ["retry.attempt_failed", "retry.stopped"]
    assert reasons(told) == ["circuit_open"]


async def test_waiting_for_admission_costs_no_budget_though_a_policy_inside_makes_it_longer() -> None:
    class Opening:
        until = 2.0

        def around(self, function: Any, _: object) -> Any:
            return function

        def admission(self) -> Admission:
            return Admission(allowed=False, retry_after=2.0, reason="rate_limited")

    callee = Callee(refusal(1.0), 7)

    async def call() -> Any:
        return callee()

    began = anyio.current_time()
    retry = Retry(wait_for_admission=3.0, budget=RetryBudget(ratio=0, floor=0))
    assert await Pipeline(retry, Opening()).call(call) == 7
    assert 2.0 <= anyio.current_time() - began <= 2.2


@pytest.mark.parametrize("error", [ConfigurationError("x"), PoolUsageError("x")])
async def test_mistakes_in_using_this_library_are_mistakes(world: World, error: Exception) -> None:
    callee = Callee(error)
    assert await raised(world, callee) is error
    assert callee.calls == 1
    await raised(world, callee, on=type(error))
    assert callee.calls == 4


# --- what a call is ---


async def test_all_attempts_of_a_call_have_its_name(world: World) -> None:
    with capture(AttemptFailed) as told:
        await raised(world, Callee(OSError()))
        await raised(world, Callee(OSError()))
    names = [event.as_dict()["call_id"] for event in told]
    assert names[0] == names[1] == names[2] != names[3] == names[4] == names[5]


async def test_a_retry_of_something_else_inside_says_nothing_of_the_call() -> None:
    helper = Callee(OSError())

    @Retry(2, wait=0, name="helper")
    async def help_out() -> Any:
        return helper()

    async def work() -> int:
        try:
            await help_out()
        except OSError:
            return 7
        raise AssertionError

    for chain in (Pipeline(Bulkhead(1)), Pipeline(Retry(3))):
        outcome = await chain.call_outcome(work)
        assert (outcome.value, outcome.stop_reason) == (7, "success")

    @Retry(2, wait=0, on=OSError)
    async def fail() -> None:
        raise OSError

    outcome = await Pipeline(Bulkhead(1)).call_outcome(functools.partial(fail))
    assert outcome.stop_reason == "attempts"  # a retry that stands around the function itself is heard
    outcome = await Pipeline(Bulkhead(1)).call_outcome(Fallback(7)(fail))
    assert (outcome.value, outcome.stop_reason) == (7, "attempts")


# --- budgets ---


async def test_a_sink_that_lets_ctrl_c_through_loses_no_budget(world: World) -> None:
    def interrupted(_: Event) -> None:
        raise KeyboardInterrupt

    budget = RetryBudget()
    with subscribe(interrupted, AttemptFailed), pytest.raises(KeyboardInterrupt):
        await world.call(Callee(OSError()), budget=budget)
    assert (budget.calls, budget.extra) == (0, 0)
    budget = RetryBudget(ratio=0, floor=1)
    assert budget.take()  # by another call, which has it still
    with subscribe(interrupted, AttemptFailed), pytest.raises(KeyboardInterrupt):
        await world.call(Callee(OSError()), budget=budget)
    assert budget.extra == 1


def test_the_collector_may_end_a_call_in_the_middle_of_a_count() -> None:
    class Interrupted(RetryBudget):
        def _most(self) -> int:
            self.end_call()
            self.give_back()
            return super()._most()

    budget = Interrupted(ratio=0, floor=2)
    budget.begin_call()
    budget.begin_call()
    assert budget.take()
    assert budget.take()
    assert (budget.calls, budget.extra) == (0, 1)


def test_two_budgets_in_one_row_are_refused() -> None:
    one, other = RetryBudget(), RetryBudget()
    with pytest.raises(ConfigurationError, match=r"<Retry 3 attempts> and <Hedge .*> must share one budget, got two"):
        Pipeline(Retry(budget=one), Hedge(1.0, idempotent=True, budget=other))
    with pytest.raises(ConfigurationError, match="must share one budget"):
        Retry(budget=one)(Retry(budget=other)(Callee(7)))
    Pipeline(Retry(budget=one), Hedge(1.0, idempotent=True, budget=one))


# --- functions and results ---


async def test_a_plain_function_that_gives_an_awaitable_later_is_refused() -> None:
    callee = Callee(OSError(), OSError(), anyio.sleep(1), 7)
    with pytest.raises(ConfigurationError, match="a retry got an awaitable from a plain function"):
        await Sync(VirtualClock(autojump=False)).call(callee, 9)
    assert callee.calls == 3


def test_the_name_of_a_mock_can_be_told() -> None:
    assert Retry(1).call(Mock(return_value=7)) == 7


def test_a_write_is_seen_through_all_that_is_around_it() -> None:
    class Account:
        @writes
        def pay(self) -> None: ...

        @staticmethod
        @writes
        def pay_all() -> None: ...

        @writes
        def __call__(self) -> None: ...

        @writes
        @staticmethod
        def pay_some() -> None: ...

    @functools.wraps(Account.pay)
    def wrapped() -> None: ...

    @writes
    async def later() -> None: ...

    @functools.wraps(functools.partial(Account.pay))
    def twice() -> None: ...

    account = Account()
    for function in (
        functools.partial(account.pay),
        functools.partial(functools.partial(Account.pay), account),
        account.pay,
        account.pay_all,
        account,
        Account.pay_some,
        wrapped,
        Bulkhead(1)(wrapped),
        Timeout(1.0)(functools.partial(later)),
        twice,
    ):
        with pytest.raises(ConfigurationError, match="marked as writes"):
            Retry()(function)


def test_what_cannot_be_marked_is_refused() -> None:
    given: list[Any] = [len, "".join, 7, None]
    for nothing in given:
        with pytest.raises(ConfigurationError, match="writes"):
            writes(nothing)


def test_what_wraps_itself_is_followed_for_a_while_only() -> None:
    def loop() -> int:
        return 7

    loop.__wrapped__ = loop  # type: ignore[attr-defined]  # that is it
    assert Retry(1).call(loop) == 7

    class HasAll:
        def __call__(self) -> int:
            return 7

        def __getattr__(self, name: str) -> Any:
            return self

    assert Retry(1).call(HasAll()) == 7


async def test_a_result_whose_close_is_not_there_when_asked_stops_nobody(world: World) -> None:
    class Broken:
        @property
        def close(self) -> Any:
            raise RuntimeError

        aclose = close

    assert await world.call(Callee(Broken(), 7), retry_result=lambda one: one != 7) == 7


async def test_a_result_that_closes_later_is_no_warning_in_sync_code() -> None:
    class Later:
        async def close(self) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world = Sync(VirtualClock(autojump=False))
        assert await world.call(Callee(Later(), 7), retry_result=lambda one: one != 7) == 7
        gc.collect()
