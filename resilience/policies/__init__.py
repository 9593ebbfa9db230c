"""Policies: what stands around a call, and decides whether, when and how often it is made."""

from __future__ import annotations

from .backoff import Backoff
from .budget import RetryBudget
from .bulkhead import Bulkhead
from .fallback import Fallback
from .policy import Policy
from .retry import Retry
from .timeout import Deadline, Timeout
from .writes import writes

__all__ = ["Backoff", "Bulkhead", "Deadline", "Fallback", "Policy", "Retry", "RetryBudget", "Timeout", "writes"]
