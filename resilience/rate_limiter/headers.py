"""A decision in the words of HTTP. Pure."""

from __future__ import annotations

import re
from math import ceil
from typing import Final, Literal

from resilience.checks import shown
from resilience.errors import ConfigurationError

from .decision import Decision

_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


def rate_limit_headers(
    decision: Decision, *, name: str = "default", version: Literal["draft-11", "draft-06"] = "draft-11"
) -> dict[str, str]:
    """Give the headers that tell a client its limit; with a refusal also `Retry-After`.

        response.headers.update(rate_limit_headers(decision))

    Args:
        decision: what a limiter answered.
        name: the policy's name in "draft-11": letters, digits and any of _ . : / -, 64 at most.
        version: "draft-11" of the IETF's RateLimit fields has `RateLimit-Policy: "default";q=100;w=60` and
            `RateLimit: "default";r=42;t=17`; "draft-06" has `RateLimit-Limit`, `RateLimit-Remaining` and
            `RateLimit-Reset`, which older clients read. Neither is a standard yet.

    Returns:
        Names and values. Durations are whole seconds, rounded up: a client that obeys is not too early.

    Raises:
        ConfigurationError: a name or version that makes no sense.
    """
    _check_policy(name)
    reset = ceil(decision.reset_after if decision.allowed else decision.retry_after or decision.reset_after)
    if version == "draft-11":
        window = max(1, ceil(decision.quota.per))
        headers = {
            "RateLimit-Policy": f'"{name}";q={decision.limit};w={window}',
            "RateLimit": f'"{name}";r={decision.remaining};t={reset}',
        }
    elif version == "draft-06":
        headers = {
            "RateLimit-Limit": str(decision.limit),
            "RateLimit-Remaining": str(decision.remaining),
            "RateLimit-Reset": str(reset),
        }
    else:
        raise ConfigurationError(f"version must be 'draft-11' or 'draft-06', got {shown(version)}")
    return headers | retry_after_header(decision)


def retry_after_header(decision: Decision) -> dict[str, str]:
    """Give `Retry-After` in whole seconds, rounded up, of a refusal that has a time; else nothing."""
    if decision.allowed or decision.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, ceil(decision.retry_after)))}


def _check_policy(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"name must be 1 to 64 letters, digits and _.:/-, got {shown(name)}")
