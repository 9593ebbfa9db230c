"""Retries against a model that is as simple as can be: what was called when, what was told, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilience.deadline import enter_deadline, leave_deadline
from resilience.errors import CircuitOpenError
from resilience.events import AttemptFailed, RetryStopped, RetrySuppressed, capture
from resilience.policies import Retry, RetryBudget
from resilience.testing import VirtualClock

UNIT = 0.5  # seconds: a power of two, so that sums are exact


@dataclass(frozen=True)
class End:
    """How an attempt ends, after so many units; `asks` is when to come back, by the callee or by who refuses."""

    kind: str  # "fine", "fails", "mistake", "unwanted", "refused"
    takes: int = 0
    asks: int | None = None


@dataclass(frozen=True)
class Case:
    ends: tuple[End, ...]  # the last one for ever
    attempts: int = 3
    wait: int = 1
    patience: int | None = None  # wait_for_admission
    budget: int | None = None  # its floor; its ratio is zero
    deadline: float | None = None

    def end_of(self, number: int) -> End:
        return self.ends[min(number, len(self.ends)) - 1]


@dataclass
class Story:
    """What happened: times in units since the beginning."""

    calls: list[float]
    told: list[tuple[object, ...]]
    outcome: str  # the kind of the end that came out, and its number; or "timeout"
    ended: float


class BusyError(Exception):
    def __init__(self, asks: int | None) -> None:
        self.asks = None if asks is None else asks * UNIT


def foretold(case: Case) -> Story:
    """Tell what must happen. Nothing here is shared with the code that is tested."""
    now, number = 0.0, 0
    story = Story([], [], "", 0.0)
    come_out: tuple[str, int] = "", 0  # what the caller will see
    while True:
        number += 1
        story.calls.append(now)
        end = case.end_of(number)
        now += end.takes
        if end.kind != "refused" or come_out[0] in {"", "refused", "unwanted"}:
            come_out = end.kind, number
        reason, delay = after(case, end, number, (inf if case.deadline is None else case.deadline) - now)
        if delay is not None and end.kind != "refused" and case.budget == 0:
            reason, delay = "budget", None
            story.told.append(("suppressed",))
        if end.kind not in {"refused", "fine"}:
            story.told.append(("failed", number, delay))
        if delay is None:
            if number > 1 or end.kind != "fine":
                story.told.append(("stopped", reason, number))
            story.outcome, story.ended = f"{come_out[0]} {come_out[1]}", now
            return story
        now += delay


def after(case: Case, end: End, number: int, left: float) -> tuple[str, float | None]:
    """Give why it ends, or how long the pause is."""
    delay: float = max(case.wait, end.asks or 0) if end.kind == "fails" else case.wait
    used_up = number >= case.attempts
    match end.kind:
        case "fine":
            return "success", None
        case "mistake":
            return "not_retryable", None
        case "refused" if case.patience is None or end.asks is None or (used_up and number == 1):
            return "circuit_open", None
        case _ if used_up:
            return "attempts", None
        case "refused":
            assert case.patience is not None
            assert end.asks is not None
            if end.asks > case.patience:
                return "retry_after_too_long", None
            delay = end.asks
    return ("deadline", None) if delay >= left else ("", delay)


class Callee:
    """Does what the case says, and notes when it is called."""

    def __init__(self, case: Case, clock: Callable[[], float]) -> None:
        self.case = case
        self.clock = clock
        self.began = clock()
        self.calls: list[float] = []

    def begin(self) -> tuple[int, End]:
        self.calls.append((self.clock() - self.began) / UNIT)
        number = len(self.calls)
        return number, self.case.end_of(number)

    def finish(self, number: int, end: End) -> str:
        if end.kind == "refused":
            error: Exception = CircuitOpenError("callee", "open", None if end.asks is None else end.asks * UNIT)
        elif end.kind == "fails":
            error = BusyError(end.asks)
        elif end.kind == "mistake":
            error = TypeError()
        else:
            return f"{end.kind} {number}"
        error.args = (f"{end.kind} {number}",)
        raise error


class NoChance:
    def random(self) -> float:
        return 0.0


def retry_of(case: Case, clock: Callable[[], float], sleep: Callable[[float], Any] | None = None) -> Retry:
    rng: Any = NoChance()
    return Retry(
        case.attempts,
        wait=case.wait * UNIT,
        retry_result=lambda result: result.startswith("unwanted"),
        retry_after=lambda error: getattr(error, "asks", None),
        wait_for_admission=None if case.patience is None else case.patience * UNIT,
        budget=None if case.budget is None else RetryBudget(ratio=0, floor=case.budget),
        clock=clock,
        sleep=sleep,
        rng=rng,
    )


def shown(event: object) -> tuple[object, ...]:
    match event:
        case AttemptFailed():
            return "failed", event.attempt, None if event.delay is None else event.delay / UNIT
        case RetryStopped():
            return "stopped", event.stop_reason, event.attempts
        case _:
            return ("suppressed",)


def in_sync_code(case: Case) -> Story:
    clock = VirtualClock(autojump=False)
    callee = Callee(case, clock)

    def work() -> str:
        number, end = callee.begin()
        clock.advance(end.takes * UNIT)
        return callee.finish(number, end)

    retry = retry_of(case, clock, clock.advance)
    token = None if case.deadline is None else enter_deadline(case.deadline * UNIT, clock)
    with capture(AttemptFailed, RetryStopped, RetrySuppressed) as told:
        try:
            outcome = retry(work)()
        except Exception as error:  # noqa: BLE001 - it is compared
            outcome = error.args[0]
        finally:
            leave_deadline(token)
    assert_all_given_back(retry)
    return Story(callee.calls, [shown(event) for event in told], outcome, (clock() - callee.began) / UNIT)


async def in_async_code(case: Case) -> Story:
    callee = Callee(case, anyio.current_time)

    async def work() -> str:
        number, end = callee.begin()
        if end.takes:
            await anyio.sleep(end.takes * UNIT)
        return callee.finish(number, end)

    retry = retry_of(case, anyio.current_time)
    with capture(AttemptFailed, RetryStopped, RetrySuppressed) as told:
        try:
            with anyio.fail_after(None if case.deadline is None else case.deadline * UNIT):
                outcome = await retry(work)()
        except TimeoutError:
            outcome = "timeout"
        except Exception as error:  # noqa: BLE001 - it is compared
            outcome = error.args[0]
    assert_all_given_back(retry)
    return Story(callee.calls, [shown(event) for event in told], outcome, (anyio.current_time() - callee.began) / UNIT)


def assert_all_given_back(retry: Retry) -> None:
    assert retry.budget is None or (retry.budget.calls, retry.budget.extra) == (0, 0)


ENDS = st.builds(
    End,
    st.sampled_from(["fails", "fails", "refused", "unwanted", "fine", "mistake"]),
    st.integers(0, 2),
    st.sampled_from([None, 0, 1, 2, 4]),
)
CASES = st.builds(
    Case,
    st.lists(ENDS, min_size=1, max_size=5).map(tuple),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([None, 0, 1, 2, 4]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 0, 1, 2, 3, 5, 8]),
)


@example(Case((End("fails"), End("refused", 0, 2), End("refused")), patience=2, attempts=5))
@example(Case((End("refused", 0, 2), End("refused", 0, 2)), patience=2, attempts=2))
@example(Case((End("unwanted"), End("refused", 0, 0), End("mistake")), patience=0))
@example(Case((End("fails", 1, 1),), wait=0, deadline=3, attempts=5))
@settings(max_examples=300)
@given(CASES)
def test_sync_code_does_what_the_model_tells(case: Case) -> None:
    assert in_sync_code(case) == foretold(case)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(case=CASES)
def test_async_code_does_the_same(backend: Literal["asyncio", "trio"], case: Case) -> None:
    if case.deadline is not None:  # between two units: what comes first when both come at once is the loop's business
        case = replace(case, deadline=case.deadline + 0.5)
    told = foretold(case)
    options = VirtualClock().backend_options(backend)
    got = anyio.run(in_async_code, case, backend=backend, backend_options=options)
    if got.outcome == "timeout":  # an attempt was cut off, and there is no more to tell
        assert got.ended == case.deadline
        assert got.calls == [at for at in told.calls if at < case.deadline]
        assert got.told == told.told[: len(got.told)]
        assert got.calls[-1] + case.end_of(len(got.calls)).takes > case.deadline
    else:
        assert got == told
