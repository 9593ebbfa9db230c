"""Structured events: what the components tell, and who hears it.

`records` is the page to read: every event of the library with its fields. `bus` delivers, `sinks` are the places
where events usually go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bus import Sink, Subscription, emit, subscribe
from .records import (
    AcquireTimedOut,
    AttemptFailed,
    BreakerAdded,
    BreakerRemoved,
    BulkheadRejected,
    CacheHit,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    CheckFailed,
    CircuitStateChanged,
    ConfigReloaded,
    ConfigReloadFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    EventsDropped,
    FallbackEntered,
    FallbackLeft,
    FallbackUsed,
    HedgeLaunched,
    HedgeWon,
    InstanceCountChanged,
    KeysSpilled,
    LeakReturned,
    LeakSuspected,
    LimitChanged,
    LimitNear,
    LimitRejected,
    PolicyHookFailed,
    PoolClosed,
    PoolExhausted,
    PoolFailed,
    PoolHealthChanged,
    PoolRecovered,
    PoolResized,
    PredicateFailed,
    PrewarmPredicted,
    ProbeExpired,
    ReconnectFailed,
    RegistryFull,
    ResetFailed,
    RetryStopped,
    RetrySuppressed,
    Severity,
    ShedRejected,
    SinkFailed,
    ThresholdExceeded,
    TimedOut,
)
from .sinks import capture, disable_logging, enable_logging

if TYPE_CHECKING:
    from .queue_sink import QueueSink

__all__ = [
    "AcquireTimedOut",
    "AttemptFailed",
    "BreakerAdded",
    "BreakerRemoved",
    "BulkheadRejected",
    "CacheHit",
    "CallFailed",
    "CallIgnored",
    "CallRejected",
    "CallSucceeded",
    "CheckFailed",
    "CircuitStateChanged",
    "ConfigReloadFailed",
    "ConfigReloaded",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionOpened",
    "Event",
    "EventsDropped",
    "FallbackEntered",
    "FallbackLeft",
    "FallbackUsed",
    "HedgeLaunched",
    "HedgeWon",
    "InstanceCountChanged",
    "KeysSpilled",
    "LeakReturned",
    "LeakSuspected",
    "LimitChanged",
    "LimitNear",
    "LimitRejected",
    "PolicyHookFailed",
    "PoolClosed",
    "PoolExhausted",
    "PoolFailed",
    "PoolHealthChanged",
    "PoolRecovered",
    "PoolResized",
    "PredicateFailed",
    "PrewarmPredicted",
    "ProbeExpired",
    "QueueSink",
    "ReconnectFailed",
    "RegistryFull",
    "ResetFailed",
    "RetryStopped",
    "RetrySuppressed",
    "Severity",
    "ShedRejected",
    "Sink",
    "SinkFailed",
    "Subscription",
    "ThresholdExceeded",
    "TimedOut",
    "capture",
    "disable_logging",
    "emit",
    "enable_logging",
    "subscribe",
]


def __getattr__(name: str) -> Any:
    # The only sink that needs anyio, whose import takes as long as all the rest: loaded when it is asked for.
    if name == "QueueSink":
        from .queue_sink import QueueSink  # noqa: PLC0415

        return QueueSink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
