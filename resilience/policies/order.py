"""Which policy may stand around which: the usual order, and what makes no sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from resilience.checks import is_exception_types
from resilience.errors import ConfigurationError, RejectedError
from resilience.stack import check_stacks_with

from .budget import RetryBudget
from .course import MISTAKES

ORDER: Final = (
    "fallback",
    "deadline",
    "cache",
    "shed",
    "throttle",
    "retry",
    "hedge",
    "breaker",
    "limiter",
    "bulkhead",
    "pool",
    "timeout",
)
"""Outermost first. A fallback must see the final outcome; a hit in the cache costs nothing that is paid for; each
attempt is an admission to the breaker and to the limiter, and an open breaker spends no tokens; waiting for a place or
a connection is our congestion and not the callee's slowness, so the attempt's timeout is innermost."""

_SPARED: Final = (RejectedError, *MISTAKES)
_HIDES_FAILURES: Final = "the fallback would answer each failure before it is seen"
IMPOSSIBLE: Final = {
    ("retry", "fallback"): _HIDES_FAILURES,
    ("hedge", "fallback"): _HIDES_FAILURES,
    ("breaker", "fallback"): _HIDES_FAILURES,
    ("throttle", "fallback"): _HIDES_FAILURES,
    ("hedge", "cache"): "the cache would make one call of all attempts",
    ("pool", "hedge"): "all attempts would use one connection at once",
    ("pool", "retry"): "all attempts would use one connection, the broken one",
    ("pool", "cache"): "the connection would be borrowed for a hit, and be part of the key",
    ("cache", "fallback"): "the cache would keep the fallback's answer for a result",
}
"""Outer and inner kind, and why nobody can want that."""


def kind_of(policy: object) -> str:
    """Give the kind of a policy, as `ORDER` names them; a policy of somebody else is of a kind of its own."""
    return str(getattr(policy, "kind", type(policy).__name__))


def check_order(policies: tuple[Any, ...]) -> None:
    """Refuse what makes no sense; `policies` outermost first, pipelines seen through.

    Raises:
        ConfigurationError: names both policies and the reason, or the one that is there twice.
    """
    for outer, inner in _pairs(_flat(policies)):
        if outer is inner:
            raise ConfigurationError(
                f"{outer!r} must not be twice around one function: what it knows would count double"
            )
        why = IMPOSSIBLE.get((kind_of(outer), kind_of(inner)))
        if why is not None and may_hide(outer, inner):
            raise ConfigurationError(f"{outer!r} must not be around {inner!r}: {why}")
        if len({id(budget) for budget in map(_budget_of, (outer, inner)) if budget is not None}) == 2:
            raise ConfigurationError(
                f"{outer!r} and {inner!r} must share one budget, got two: each would add its own share of extra calls"
            )


def may_hide(outer: object, inner: object) -> bool:
    """Tell whether a fallback inside answers errors that the policy around it waits for; True of anything else.

    What predicates let pass is not known here: then nothing is refused.
    """
    if kind_of(inner) != "fallback" or kind_of(outer) == "cache":
        return True
    wanted, answered = _errors_seen_by(outer), getattr(inner, "on", Exception)
    if not (is_exception_types(wanted) and is_exception_types(answered)):
        return False
    # What a retry spares unless it is named is not hidden from it: a fallback for open circuits may well stand inside.
    return any(
        issubclass(one, other) or (issubclass(other, one) and not issubclass(other, _SPARED))
        for one in _types(wanted)
        for other in _types(answered)
    )


def _errors_seen_by(policy: object) -> Any:
    """Give what a policy waits for: of a retry `on`, of a breaker `failure_on`, else everything."""
    for owner, field in (("rules", "on"), ("config", "failure_on")):
        errors = getattr(getattr(policy, owner, None), field, None)
        if errors is not None:
            return errors
    return Exception


def _budget_of(policy: object) -> RetryBudget | None:
    budget = getattr(policy, "budget", None)
    return budget if isinstance(budget, RetryBudget) else None


def _pairs(policies: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    for place, outer in enumerate(policies):
        for inner in policies[place + 1 :]:
            yield outer, inner


def _flat(policies: tuple[Any, ...]) -> tuple[Any, ...]:
    flat: list[Any] = []
    for policy in policies:
        inside = getattr(policy, "policies", None)  # of a pipeline: checked, and flat
        flat.extend(inside if isinstance(inside, tuple) else (policy,))
    return tuple(flat)


def _types(kinds: type[BaseException] | tuple[type[BaseException], ...]) -> tuple[type[BaseException], ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


check_stacks_with(check_order)
