"""What a chain of policies can cost at worst: attempts, seconds, tokens."""

from __future__ import annotations

from math import inf
from typing import Any, Final, NamedTuple

from .backoff import Backoff
from .course import Rules
from .order import kind_of

_DRAWN: Final = 10_000  # pauses that are looked at one by one


class Plan(NamedTuple):
    """The worst case of one call.

    Attributes:
        attempts: how often the callee is called; infinity where nothing bounds it.
        seconds: how long it takes, waits and pauses included; infinity where nothing bounds it.
        tokens: units taken from rate limiters, by the limiter's name.
    """

    attempts: float
    seconds: float
    tokens: dict[str, float]


def plan_of(policies: tuple[Any, ...]) -> Plan:
    """Work the worst case out, outermost policy first: from the function outwards."""
    plan = Plan(1, inf, {})
    for policy in reversed(policies):
        plan = _around(policy, plan)
    return plan


def longest_pauses(retry: Any) -> float:
    """Give the most seconds that a retry spends in pauses; infinity where that is not known."""
    rules: Rules = retry.rules
    if rules.attempts is None:
        return inf
    pauses = rules.attempts - 1
    if not pauses:
        return 0.0
    admission = (rules.wait_for_admission or 0.0) * 1.1
    if isinstance(rules.wait, Backoff):
        if rules.retry_after is not None:  # a server may ask for as much as the cap
            return pauses * max(rules.wait.cap, admission)
        drawn = range(1, min(pauses, _DRAWN) + 1)
        rest = pauses - len(drawn)  # as long as the last: all but a few are the cap's
        last = max(rules.wait.longest(len(drawn)), admission)
        return sum(max(rules.wait.longest(number), admission) for number in drawn) + rest * last
    if callable(rules.wait) or rules.retry_after is not None:
        return inf
    return pauses * max(float(rules.wait), admission)


def _around(policy: Any, inner: Plan) -> Plan:
    match kind_of(policy):
        case "timeout" | "deadline":
            return inner._replace(seconds=min(inner.seconds, policy.seconds))
        case "retry":
            times = inf if policy.rules.attempts is None else policy.rules.attempts
            plan = _times(times, inner)
            return plan._replace(seconds=_product(times, inner.seconds) + longest_pauses(policy))
        case "hedge":
            plan = _times(1 + policy.max_hedges, inner)
            # The last begins after so many delays, or failures as late as can be.
            delay = policy.delay if isinstance(policy.delay, int | float) else inf
            return plan._replace(seconds=inner.seconds + policy.max_hedges * min(delay, inner.seconds))
        case "cache":
            # Who waits for the computation of another, and then of another when that one is cancelled, has no bound.
            return inner._replace(seconds=inf)
        case "limiter":
            name, cost = policy.limiter.name, policy.cost
            tokens = inner.tokens | {name: inner.tokens.get(name, 0) + (inf if callable(cost) else cost)}
            return inner._replace(tokens=tokens, seconds=inner.seconds + _longest_wait(policy))
        case _:
            return inner._replace(seconds=inner.seconds + _longest_wait(policy))


def _longest_wait(policy: Any) -> float:
    """Give the seconds that a policy may wait before it lets a call in."""
    longest: float | None = 0.0
    match kind_of(policy):
        case "limiter" if policy.wait:
            longest = policy.timeout
        case "bulkhead" if getattr(policy, "max_waiting", 0):
            longest = policy.timeout
        case "pool":
            longest = policy.config.acquire_timeout
    return inf if longest is None else longest


def _times(times: float, plan: Plan) -> Plan:
    tokens = {name: _product(times, units) for name, units in plan.tokens.items()}
    return plan._replace(attempts=_product(times, plan.attempts), tokens=tokens)


def _product(times: float, value: float) -> float:
    return 0.0 if not times or not value else times * value
