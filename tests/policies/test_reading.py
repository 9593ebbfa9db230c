"""What a pipeline says about itself: its worst case, and what in it will not do what it seems to."""

from __future__ import annotations

from math import inf
from typing import Any

import anyio
import pytest
import tenacity

from resilience import CircuitBreaker, ConnectionPool, RateLimiter, TimeWindow
from resilience.policies import (
    Backoff,
    Bulkhead,
    Cache,
    Deadline,
    Fallback,
    Hedge,
    Pipeline,
    Policy,
    Quantile,
    Retry,
    RetryBudget,
    Timeout,
)
from resilience.policies.plan import plan_of


def limiter(quota: str = "10/second", **options: Any) -> Any:
    return RateLimiter(quota, name="quota").bound(**options)


def pool(**options: Any) -> ConnectionPool[Any]:
    return ConnectionPool(anyio.sleep_forever, name="db", **options)


@pytest.mark.parametrize(
    ("policies", "attempts", "seconds", "tokens"),
    [
        ((Bulkhead(1),), 1, inf, {}),
        ((Timeout(2.0),), 1, 2.0, {}),
        ((Deadline(5.0), Timeout(2.0)), 1, 2.0, {}),
        ((Retry(3, wait=1.0), Timeout(2.0)), 3, 8.0, {}),
        ((Deadline(5.0), Retry(3, wait=1.0), Timeout(2.0)), 3, 5.0, {}),
        ((Retry(3, wait=Backoff(base=1, cap=1.5)), Timeout(2.0)), 3, 8.5, {}),
        ((Retry(3, wait=Backoff(base=1, cap=4), retry_after=lambda _: 4), Timeout(2.0)), 3, 14.0, {}),
        ((Retry(3, wait=lambda attempt: attempt), Timeout(2.0)), 3, inf, {}),
        ((Retry(3, wait=1.0, wait_for_admission=10.0), Timeout(2.0)), 3, 28.0, {}),
        ((Retry(1), Timeout(2.0)), 1, 2.0, {}),
        (
            (Retry(3, wait=0), Hedge(0.1, max_hedges=2, idempotent=True), limiter(cost=5), Timeout(1.0)),
            9,
            3.6,
            {"quota": 45},
        ),
        ((Hedge(5.0, max_hedges=2, idempotent=True), Timeout(1.0)), 3, 3.0, {}),
        ((Hedge(inf, idempotent=True), Timeout(1.0)), 2, 2.0, {}),
        ((Hedge(Quantile(), idempotent=True), Timeout(1.0)), 2, 2.0, {}),
        ((Hedge(0, idempotent=True), Timeout(1.0)), 2, 1.0, {}),
        ((Retry(3, wait=0.1, retry_after=lambda _: 1.0), Timeout(2.0)), 3, inf, {}),
        ((Retry(20_001, wait=Backoff(base=1, cap=1)), Timeout(1.0)), 20_001, 40_001.0, {}),
        ((limiter(), Retry(3, wait=0), Timeout(1.0)), 3, 3.0, {"quota": 1}),
        ((limiter(cost=lambda: 1), Timeout(1.0)), 1, 1.0, {"quota": inf}),
        ((limiter(wait=True, timeout=3.0), Timeout(1.0)), 1, 4.0, {"quota": 1}),
        ((limiter(wait=True), Timeout(1.0)), 1, inf, {"quota": 1}),
        ((Bulkhead(1, max_waiting=5, timeout=3.0), Timeout(1.0)), 1, 4.0, {}),
        ((pool(acquire_timeout=3.0), Timeout(1.0)), 1, 4.0, {}),
        ((pool(acquire_timeout=None), Timeout(1.0)), 1, inf, {}),
        ((Fallback(1), Timeout(1.0)), 1, 1.0, {}),
        ((Cache(1.0, max_size=1), Timeout(1.0)), 1, inf, {}),
        ((Deadline(3.0), Cache(1.0, max_size=1), Timeout(1.0)), 1, 3.0, {}),
    ],
)
def test_the_worst_case(policies: Any, attempts: float, seconds: float, tokens: dict[str, float]) -> None:
    plan = plan_of(policies)
    assert plan.attempts == attempts
    assert plan.seconds == pytest.approx(seconds)
    assert plan.tokens == tokens


def test_it_is_told_in_a_few_lines() -> None:
    pipeline = Pipeline(Deadline(5.0), Retry(3, wait=0), limiter(cost=2), Timeout(2.0), name="search")
    assert pipeline.explain().splitlines() == [
        "pipeline 'search', outermost first:",
        "  1. <Deadline 5 s>",
        "  2. <Retry 3 attempts>",
        f"  3. {pipeline.policies[2]!r}",
        "  4. <Timeout 2 s>",
        "  attempts per call: at most 3",
        "  longest call: 5 s",
        "  units of limiter 'quota' per call: at most 6",
    ]
    assert "longest call: unbounded" in Pipeline(Bulkhead(1)).explain()
    told = Pipeline(Fallback(lambda: 7), Deadline(1.0)).explain()
    assert "longest call: 1 s if the function is async" in told
    assert "and the time of the fallback's function" in told


BUDGET = RetryBudget()
TIMES = TimeWindow(10.0)


@pytest.mark.parametrize(
    ("policies", "codes"),
    [
        ((Deadline(2.0), Retry(2, wait=0), CircuitBreaker("x"), Timeout(0.9)), []),
        ((Bulkhead(1),), ["no-time-limit"]),
        ((Deadline(1.0), Timeout(1.0)), ["timeout-beyond-deadline"]),
        ((Deadline(2.0), Retry(9, wait=0), Timeout(0.9)), ["attempts-beyond-deadline"]),
        ((Timeout(2.0), Retry(2)), ["timeout-outside-retry"]),
        ((Retry(2), Deadline(1.0)), ["deadline-inside-retry"]),
        ((Deadline(1.0), limiter(), Retry(2)), ["limiter-outside-retry"]),
        ((Deadline(1.0), CircuitBreaker("x"), Retry(2), Timeout(0.1)), ["breaker-outside-retry"]),
        ((Deadline(1.0), Bulkhead(1), Retry(2)), ["bulkhead-outside-retry"]),
        ((CircuitBreaker("x", slow_call_duration=1.1), Timeout(1.0)), ["slow-calls-unreachable"]),
        ((CircuitBreaker("x", slow_call_duration=1.0), Timeout(1.0)), []),
        ((CircuitBreaker("x", slow_call_duration=1.1), Bulkhead(1, max_waiting=1, timeout=1.0), Timeout(1.0)), []),
        ((Deadline(1.0), CircuitBreaker("x")), ["breaker-blind-to-hangs"]),
        ((Deadline(1.0), CircuitBreaker("x", slow_call_duration=1.0)), ["breaker-blind-to-hangs"]),
        ((Deadline(1.0), CircuitBreaker("x", slow_call_duration=0.9)), []),
        ((Deadline(1.0), CircuitBreaker("x"), Timeout(0.9)), []),
        ((Timeout(1.0), Timeout(5.0)), ["timeout-beyond-deadline"]),
        ((Deadline(1.0), Deadline(5.0), Timeout(0.1)), ["timeout-beyond-deadline"]),
        ((Retry(2), Retry(3), Timeout(1.0)), ["retry-inside-retry"]),
        ((Hedge(5.0, idempotent=True), Timeout(1.0)), ["hedge-beyond-timeout"]),
        ((Hedge(inf, idempotent=True), Timeout(1.0)), []),
        ((Retry(None, stop=tenacity.stop_never), Timeout(1.0)), ["endless-retry"]),
        ((Retry(None, stop=tenacity.stop_after_attempt(3)), Timeout(1.0)), []),
        (
            (limiter("1/second"), Retry(2), CircuitBreaker("x", window=TIMES, minimum_calls=20), Timeout(1.0)),
            ["limiter-outside-retry"],
        ),
        (
            (CircuitBreaker("x", window=TIMES, minimum_calls=20), limiter("1/second"), Timeout(1.0)),
            ["breaker-threshold-unreachable"],
        ),
        ((CircuitBreaker("x", window=TIMES, minimum_calls=11), limiter("1/second"), Timeout(1.0)), []),
        ((CircuitBreaker("x", window=TIMES, minimum_calls=20), limiter("1/second", key=lambda: ""), Timeout(1.0)), []),
        ((Retry(2, wait_for_admission=5.0), CircuitBreaker("x"), Timeout(1.0)), ["admission-out-of-reach"]),
        ((Retry(2, wait_for_admission=31.0), CircuitBreaker("x"), Timeout(1.0)), []),
        ((Retry(2), Hedge(0.1, idempotent=True), Timeout(1.0)), []),
        ((Retry(2), Hedge(0.1, idempotent=True, budget=BUDGET), Timeout(1.0)), ["retry-outside-hedge-budget"]),
        ((Retry(2, budget=BUDGET), Hedge(0.1, idempotent=True, budget=BUDGET), Timeout(1.0)), []),
    ],
)
def test_what_will_not_do_what_it_seems_to_is_found(policies: Any, codes: list[str]) -> None:
    found = Pipeline(*policies).lint()
    assert [finding.code for finding in found] == codes
    for finding in found:
        assert finding.message
        assert finding.evidence or finding.code == "no-time-limit"


def test_the_worst_comes_first() -> None:
    found = Pipeline(Deadline(1.0), Bulkhead(1), Retry(9, wait=0), Timeout(1.0)).lint()
    assert [finding.severity for finding in found] == ["error", "info", "info"]


def test_a_policy_of_somebody_else_fits_in() -> None:
    class Shout(Policy):
        title = "a shout"

        def around(self, function: Any, site: Any) -> Any:
            return lambda *args: f"{site.name}: {function(*args)}".upper()

    pipeline = Pipeline(Shout(), Deadline(1.0), name="search")
    assert pipeline.call(lambda words: words, "owls") == "SEARCH: OWLS"
    answer: Any = "MINE: OWLS"
    assert Shout(name="mine")(lambda: "owls")() == answer
    assert "Shout" in pipeline.explain()
    assert pipeline.lint() == []
