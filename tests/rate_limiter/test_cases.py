"""The table of cases, for the arithmetic in Python and for the script on every server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resilience.rate_limiter import Quota
from tests.rate_limiter.cases import CASES, Case, log, window
from tests.rate_limiter.machines import SECOND, Answer, Machine, MemoryMachine, ScriptMachine

Make = Callable[..., Machine]
PAIRS = {"left": "remaining", "retry": "retry_after", "reset": "reset_after", "granted": "granted", "of": "limit"}


def ask(machine: Machine, question: str) -> tuple[Answer | None, str, int]:
    """Ask, and give the decision, the wait as text, and what is granted if the call passes."""
    words = question.split(" ")
    key = words.pop()[1:] if words[-1].startswith("@") else "key"
    operation, cost = words[0], words[1] if len(words) > 1 else ""
    if operation == "reset":
        machine.reset(key)
    elif operation == "block":
        machine.block(key, float(cost))
    elif operation == "requeue":
        waits = machine.requeue(key, int(cost), [int(one) for one in words[3].split(",") if one])
        return None, ",".join(f"{wait / SECOND:g}" for wait in waits), 0
    elif operation == "reserve":
        wait, answer = machine.reserve(key, int(cost), round(float(words[3]) * SECOND))
        assert answer.allowed == (wait is not None)
        return answer, "" if wait is None else f"{wait / SECOND:g}", int(cost)
    else:
        ask_it: Callable[[str, int], Answer] = getattr(machine, operation)
        return ask_it(key, int(cost)), "", 0 if operation in {"peek", "refund"} else int(cost)
    return None, "", 0


def check(answer: Answer, expected: str, granted: int) -> None:
    words = expected.split(" ")
    allowed = words.pop(0) == "ok"
    assert answer.allowed == allowed
    assert answer.never == ("never" in words)
    if answer.never:
        words.remove("never")
    pairs: dict[str, str] = dict(zip(words[::2], words[1::2], strict=True))
    pairs.pop("wait", None)
    assert allowed or answer.never or "retry" in pairs, "the case does not say how long to wait"
    assert (answer.retry_after is None) == (allowed or answer.never)
    assert answer.granted == int(pairs.pop("granted", granted if allowed else 0))
    for name, text in pairs.items():
        if text == "{}":  # each algorithm has a time of its own
            assert getattr(answer, PAIRS[name]) > 0
        else:
            factor = SECOND if name in {"retry", "reset"} else 1
            assert getattr(answer, PAIRS[name]) == round(float(text) * factor), name


def play(machine: Machine, case: Case) -> None:
    for number, (at, question, expected) in enumerate(case.steps):
        machine.moment = round(at * SECOND)
        answer, wait, granted = ask(machine, question)
        step = f"step {number}: {question!r} at {at:g} is {answer} wait {wait!r}, expected {expected!r}"
        words = expected.split(" ")
        if "wait" in words:
            said = words[words.index("wait") + 1]
            assert float(wait) > 0 if said == "{}" else wait == said, step
        if answer is not None:
            try:
                check(answer, expected, granted)
            except AssertionError as error:
                raise AssertionError(f"{step}: {error}") from None
        if isinstance(machine, ScriptMachine):
            assert min(machine.lives.values(), default=1) >= 1, f"{step}: a key lives for ever"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_limiters_answer(case: Case, machine: Make) -> None:
    play(machine(case.parsed()), case)


@pytest.mark.parametrize(
    ("quota", "most"),
    [
        (log(100, 60), 100),
        (Quota(100, 60, burst=10), 109),
        (Quota(100, 60), 199),
        (Quota(100, 60, burst=1), 100),
        (window(100, 60), 200),
    ],
    ids=str,
)
def test_14_no_trailing_period_admits_more_than_is_documented(quota: Quota, most: int, machine: Make) -> None:
    limiter = machine(quota)
    passed: list[int] = []
    for moment in [59_999_000] * 101 + list(range(60_000_000, 119_900_000, 100_000)):
        limiter.moment = moment
        if limiter.acquire("", 1).allowed:
            passed.append(moment)
    worst = max(sum(last - 60 * SECOND < at <= last for at in passed) for last in passed)
    assert worst == most


@pytest.mark.parametrize(("limit", "seconds", "most"), [(100, 600, 1_000), (30, 600, 300)])
def test_18_a_caller_who_polls_gets_the_whole_rate(limit: int, seconds: int, most: int, machine: Make) -> None:
    limiter = machine(Quota(limit, 60))
    assert limiter.acquire("", limit).allowed
    passed = 0
    for second in range(1, seconds + 1):
        limiter.moment = second * SECOND
        for _ in range(5):
            passed += limiter.acquire("", 1).allowed
    assert passed == pytest.approx(most, abs=1)


@pytest.mark.parametrize("quota", [Quota(5, 60), log(5, 60)], ids=str)
def test_28_a_denied_key_costs_no_trips_until_it_may_pass(quota: Quota, script_machine: Any) -> None:
    limiter = script_machine(quota, remembers=True)
    assert sum(limiter.acquire("", 1).allowed for _ in range(1_000)) == 5
    assert limiter.trips == 5
    limiter.reset("")
    assert limiter.acquire("", 5).allowed
    assert limiter.trips == 7


def test_reservations_of_the_largest_windows_are_not_forgotten() -> None:
    limiter = MemoryMachine(window(1_000_000_000, 1))
    waits = [limiter.reserve("", 1_000_000_000, 3_600 * SECOND)[0] for _ in range(1_110)]
    assert waits == [second * SECOND for second in range(1_110)]
