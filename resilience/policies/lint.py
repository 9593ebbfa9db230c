"""What in a pipeline will not do what it seems to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from math import inf
from typing import Any, Final, Literal, TypeAlias

from resilience.windows import TimeWindow

from .order import kind_of
from .plan import longest_pauses, plan_of
from .tenacity import never_stops

Severity: TypeAlias = Literal["error", "warning", "info"]
_WORST_FIRST: Final = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a pipeline that will not do what it seems to.

    Attributes:
        code: a short fixed word, for tests and for those who decide to live with it.
        severity: "error" where a policy has no effect, "warning" where it has another one than expected, "info" else.
        message: what is wrong, and what to do.
        evidence: the values that it follows from.
    """

    code: str
    severity: Severity
    message: str
    evidence: dict[str, object] = field(default_factory=dict)


Policies: TypeAlias = tuple[Any, ...]
Check: TypeAlias = Callable[[Policies], Iterator[Finding]]


def find(policies: Policies) -> list[Finding]:
    """Give all findings, the worst first."""
    found = [finding for check in CHECKS for finding in check(policies)]
    return sorted(found, key=lambda finding: _WORST_FIRST.index(finding.severity))


def _pairs(policies: Policies, outer: str, inner: str) -> Iterator[tuple[Any, Any]]:
    """Give the policies of one kind with those of another that are inside of them."""
    for place, one in enumerate(policies):
        if kind_of(one) == outer:
            yield from ((one, other) for other in policies[place + 1 :] if kind_of(other) == inner)


def _all(policies: Policies, kind: str) -> list[Any]:
    return [policy for policy in policies if kind_of(policy) == kind]


def _times_that_cannot_pass(policies: Policies) -> Iterator[Finding]:
    for outer, inner in product(("deadline", "timeout"), repeat=2):
        for first, late in _pairs(policies, outer, inner):
            if late.seconds >= first.seconds:
                yield Finding(
                    "timeout-beyond-deadline",
                    "error",
                    f"the {inner} of {late.seconds:g} s never fires: the {outer} of {first.seconds:g} s around it "
                    "comes first. Make it shorter, so that a second attempt has a chance",
                    {"timeout": late.seconds, "deadline": first.seconds},
                )
    for hedge, timeout in _pairs(policies, "hedge", "timeout"):
        if isinstance(hedge.delay, int | float) and timeout.seconds <= hedge.delay < inf:
            yield Finding(
                "hedge-beyond-timeout",
                "warning",
                f"no hedge starts beside a slow attempt: the timeout of {timeout.seconds:g} s ends it before the delay "
                f"of {hedge.delay:g} s is over",
                {"delay": hedge.delay, "timeout": timeout.seconds},
            )
    for deadline, retry in _pairs(policies, "deadline", "retry"):
        inside = plan_of(policies[policies.index(retry) :])
        needed = inside.seconds
        if deadline.seconds < needed < inf:
            yield Finding(
                "attempts-beyond-deadline",
                "info",
                f"{inside.attempts:.0f} slow attempts and their pauses take {needed:.3g} s: the deadline of "
                f"{deadline.seconds:g} s leaves some out",
                {"needed": needed, "deadline": deadline.seconds, "pauses": longest_pauses(retry)},
            )


def _calls_without_an_end(policies: Policies) -> Iterator[Finding]:
    if not _all(policies, "deadline") and not _all(policies, "timeout"):
        yield Finding("no-time-limit", "warning", "nothing ends a call that hangs: add a Timeout or a Deadline")
    for retry in _all(policies, "retry"):
        if retry.rules.attempts is None and not _all(policies, "deadline") and never_stops(retry.rules.stop):
            yield Finding("endless-retry", "error", "nothing ends these attempts: add a Deadline", {"attempts": None})


def _scopes_turned_round(policies: Policies) -> Iterator[Finding]:
    for timeout, _ in _pairs(policies, "timeout", "retry"):
        yield Finding(
            "timeout-outside-retry",
            "warning",
            f"the timeout of {timeout.seconds:g} s is for all attempts together: use a Deadline, or put it inside",
            {"timeout": timeout.seconds},
        )
    for _, deadline in _pairs(policies, "retry", "deadline"):
        yield Finding(
            "deadline-inside-retry",
            "warning",
            f"each attempt has the deadline of {deadline.seconds:g} s anew: use a Timeout there, or put it outside",
            {"deadline": deadline.seconds},
        )


def _attempts_uncounted(policies: Policies) -> Iterator[Finding]:
    for outer, inner in _pairs(policies, "retry", "retry"):
        yield Finding(
            "retry-inside-retry",
            "warning",
            f"their attempts multiply, to {plan_of(policies).attempts:.0f} per call: one retry is enough",
            {"attempts": (outer.rules.attempts, inner.rules.attempts)},
        )
    for limiter, retry in _pairs(policies, "limiter", "retry"):
        yield Finding(
            "limiter-outside-retry",
            "warning",
            "a call is charged once, whatever the number of its attempts: where the quota is the callee's, put the "
            "limiter inside the retry",
            {"limiter": limiter.limiter.name, "attempts": retry.rules.attempts},
        )
    for breaker, retry in _pairs(policies, "breaker", "retry"):
        yield Finding(
            "breaker-outside-retry",
            "warning",
            "the breaker sees calls, not attempts, and retries go on while the callee is down: put it inside the retry",
            {"breaker": breaker.name, "attempts": retry.rules.attempts},
        )
    for bulkhead, retry in _pairs(policies, "bulkhead", "retry"):
        yield Finding(
            "bulkhead-outside-retry",
            "info",
            "a place is held during the pauses between attempts: put the bulkhead inside the retry",
            {"max_concurrent": getattr(bulkhead, "max_concurrent", None), "attempts": retry.rules.attempts},
        )


def _thresholds_out_of_reach(policies: Policies) -> Iterator[Finding]:
    for breaker in _all(policies, "breaker"):
        slow = breaker.config.slow_call_duration
        longest = plan_of(_inside(policies, breaker)).seconds
        if slow is not None and slow > longest:
            yield Finding(
                "slow-calls-unreachable",
                "error",
                f"no call of breaker {breaker.name!r} is ever slow: what is inside of it takes {longest:g} s at most, "
                f"and slow_call_duration is {slow:g} s",
                {"slow_call_duration": slow, "longest": longest},
            )
    for deadline, breaker in _pairs(policies, "deadline", "breaker"):
        slow = breaker.config.slow_call_duration
        bounded = plan_of(_inside(policies, breaker)).seconds < deadline.seconds
        if not bounded and (slow is None or slow >= deadline.seconds):
            yield Finding(
                "breaker-blind-to-hangs",
                "warning",
                f"calls that hang never count for breaker {breaker.name!r}: the deadline of {deadline.seconds:g} s "
                "cancels them, which says nothing of the callee. Add a Timeout inside of the breaker, or a "
                "slow_call_duration below the deadline",
                {"deadline": deadline.seconds, "slow_call_duration": slow},
            )
    for limiter in _all(policies, "limiter"):
        for breaker in _all(policies, "breaker"):
            between = policies[policies.index(limiter) + 1 : policies.index(breaker)]
            yield from _too_few_calls(limiter, breaker, plan_of(between).attempts)


def _inside(policies: Policies, policy: Any) -> Policies:
    return policies[policies.index(policy) + 1 :]


def _too_few_calls(limiter: Any, breaker: Any, attempts: float) -> Iterator[Finding]:
    window = breaker.config.window
    quotas = getattr(limiter.limiter, "quotas", ())
    cost = limiter.cost
    if not isinstance(window, TimeWindow) or not quotas or callable(cost) or callable(limiter.key) or not cost:
        return
    most = min((quota.burst or quota.limit) + quota.limit * window.seconds / quota.per for quota in quotas) / cost
    most *= attempts
    if most < breaker.config.minimum_calls:
        yield Finding(
            "breaker-threshold-unreachable",
            "error",
            f"breaker {breaker.name!r} never opens: the limiter lets at most {most:.0f} calls into "
            f"{window.seconds:g} s, and minimum_calls is {breaker.config.minimum_calls}",
            {"calls": most, "minimum_calls": breaker.config.minimum_calls, "window": window.seconds},
        )


def _waits_in_vain(policies: Policies) -> Iterator[Finding]:
    for retry, breaker in _pairs(policies, "retry", "breaker"):
        patience, opened = retry.rules.wait_for_admission, breaker.config.open_duration
        if patience is not None and not callable(opened) and opened > patience:
            yield Finding(
                "admission-out-of-reach",
                "warning",
                f"wait_for_admission of {patience:g} s rarely sees breaker {breaker.name!r} close: it stays open for "
                f"{opened:g} s",
                {"wait_for_admission": patience, "open_duration": opened},
            )


def _budgets(policies: Policies) -> Iterator[Finding]:
    for retry, hedge in _pairs(policies, "retry", "hedge"):
        if retry.rules.budget is not hedge.budget:
            yield Finding(
                "retry-outside-hedge-budget",
                "warning",
                f"up to {plan_of(policies).attempts:.0f} attempts per call are not bounded together: give retry and "
                "hedge the same RetryBudget",
                {"attempts": plan_of(policies).attempts},
            )


CHECKS: Final[tuple[Check, ...]] = (
    _times_that_cannot_pass,
    _calls_without_an_end,
    _scopes_turned_round,
    _attempts_uncounted,
    _thresholds_out_of_reach,
    _waits_in_vain,
    _budgets,
)
