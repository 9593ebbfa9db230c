"""A pipeline in a few lines, for people."""

from __future__ import annotations

from math import inf
from typing import Any

from .plan import plan_of


def explain(name: str | None, policies: tuple[Any, ...]) -> str:
    """Tell the policies in order, and the worst case of one call."""
    plan = plan_of(policies)
    lines = [f"pipeline{'' if name is None else f' {name!r}'}, outermost first:"]
    lines += [f"  {number}. {policy!r}" for number, policy in enumerate(policies, 1)]
    lines.append(f"  attempts per call: {_most(plan.attempts)}")
    lines.append("  longest call: " + ("unbounded" if plan.seconds == inf else f"{plan.seconds:.3g} s"))
    lines += [f"  units of limiter {name!r} per call: {_most(units)}" for name, units in sorted(plan.tokens.items())]
    return "\n".join(lines)


def _most(count: float) -> str:
    return "unbounded" if count == inf else f"at most {count:,.0f}"
