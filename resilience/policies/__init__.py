"""Policies: what stands around a call, and decides whether, when and how often it is made."""

from __future__ import annotations

from .adaptive import AdaptiveLimit
from .backoff import Backoff
from .budget import RetryBudget
from .bulkhead import Bulkhead
from .cache import Cache
from .fallback import Fallback
from .hedge import Hedge, Quantile
from .limits import AIMD, Gradient2, Vegas
from .lint import Finding
from .outcome import Outcome
from .pipeline import Pipeline
from .policy import Policy
from .retry import Retry
from .shed import LoadShed
from .throttle import Throttle
from .timeout import Deadline, Timeout
from .writes import writes

__all__ = [
    "AIMD",
    "AdaptiveLimit",
    "Backoff",
    "Bulkhead",
    "Cache",
    "Deadline",
    "Fallback",
    "Finding",
    "Gradient2",
    "Hedge",
    "LoadShed",
    "Outcome",
    "Pipeline",
    "Policy",
    "Quantile",
    "Retry",
    "RetryBudget",
    "Throttle",
    "Timeout",
    "Vegas",
    "writes",
]
