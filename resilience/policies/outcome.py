"""How a call ended, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call through a pipeline ended, without anything being raised.

    Attributes:
        ok: whether there is a value.
        value: what the function, the cache or a fallback gave; None if not ok.
        error: the callee's last error, our rejection, or our timeout; None if ok. The same object that would be raised.
        stop_reason: why there was no further attempt: "success", "not_retryable", "attempts", "deadline", "budget",
            "retry_after_too_long", "circuit_open", "rate_limited", "bulkhead_full", "pool_exhausted", "shed" or
            "cancelled". With a fallback's value it tells why that was needed.
        attempts: how often the function was called: 0 if it was refused, or the cache had a value.
        duration: seconds.
        call_id: unique in this process; for `Pipeline.explain_call`.
    """

    ok: bool
    value: Any
    error: Exception | None
    stop_reason: str
    attempts: int
    duration: float
    call_id: str
