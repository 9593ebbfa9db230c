"""A pipeline in a few lines, for people."""

from __future__ import annotations

from math import inf
from typing import Any

from .order import kind_of
from .plan import plan_of


def explain(name: str | None, policies: tuple[Any, ...]) -> str:
    """Tell the policies in order, and the worst case of one call."""
    plan = plan_of(policies)
    lines = [f"pipeline{'' if name is None else f' {name!r}'}, outermost first:"]
    lines += [f"  {number}. {policy!r}" for number, policy in enumerate(policies, 1)]
    lines.append(f"  attempts per call: {_most(plan.attempts)}")
    lines.append(f"  longest call: {_longest(plan.seconds, policies)}")
    lines += [f"  units of limiter {name!r} per call: {_most(units)}" for name, units in sorted(plan.tokens.items())]
    return "\n".join(lines)


def _longest(seconds: float, policies: tuple[Any, ...]) -> str:
    if seconds == inf:
        return "unbounded"
    kinds = {kind_of(policy) for policy in policies}
    text = f"{seconds:.3g} s"
    if "timeout" not in kinds:  # which refuses plain functions: then there are none here
        text += " if the function is async: a plain one is not interrupted"
    if any(getattr(policy, "asks_function", False) for policy in policies):
        text += ", and the time of the fallback's function"
    return text


def _most(count: float) -> str:
    return "unbounded" if count == inf else f"at most {count:,.0f}"
