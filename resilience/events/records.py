"""Every event of the library, on one page.

An event is told after the fact: when a sink sees it, the state it speaks of is the state. Kinds are dotted and in the
past tense, field names carry their units where these are not seconds, and no event ever carries an argument, a key, a
URL or a token. Durations and times are float seconds.

A record costs nothing while nobody listens: call sites ask `if CallFailed.sinks:` before anything is built.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, dataclass_transform

Severity: TypeAlias = Literal["debug", "info", "warning", "error"]

E = TypeVar("E")
_next_seq = count(1).__next__


@dataclass_transform(field_specifiers=(field,))
def _record(cls: type[E]) -> type[E]:
    """Make a slotted dataclass. `Event` prints and compares for all: generated, that would double the import time."""
    made = dataclass(slots=True, repr=False, eq=False)(cls)
    cls.replaced = True  # type: ignore[attr-defined]  # slots need a new class; the first hides among the subclasses
    return made


@_record
class Event:
    """What happened to one component. Subclasses add flat fields; sinks must not change them.

    Attributes:
        name: the component's name, such as the circuit breaker's.
        at: seconds on the component's own clock.
        wall: seconds since the epoch, for people and logs; never used to decide anything.
        seq: increases over the whole process; one component's events are delivered in its order.
    """

    kind: ClassVar[str] = "event"
    default_severity: ClassVar[Severity] = "debug"
    sinks: ClassVar[tuple[Any, ...]] = ()
    """The subscriptions to this type. Kept by `subscribe`; read before an event is built."""

    name: str
    at: float
    wall: float = field(init=False, default_factory=time.time)
    seq: int = field(init=False, default_factory=_next_seq)

    @property
    def severity(self) -> Severity:
        """How much it matters; most types have one severity, some judge by their fields."""
        return self.default_severity

    def as_dict(self) -> dict[str, object]:
        """Give all fields flat and JSON-able, with `kind` and `severity` in front."""
        told: dict[str, object] = {"kind": self.kind, "severity": self.severity}
        for one in fields(self):
            value = getattr(self, one.name)
            # An enum member that is a string (a circuit's state) becomes the plain string.
            told[one.name] = str(value) if isinstance(value, str) else value
        return told

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.as_dict() == self.as_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, as any dataclass that compares

    def __repr__(self) -> str:
        told = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self))
        return f"{type(self).__name__}({told})"


_STATE_SEVERITY: dict[str, Severity] = {"open": "error", "closed": "info"}


# --- circuit breaker ---


@_record
class CircuitStateChanged(Event):
    """A circuit breaker moved to another state.

    Severity: opened is an error, closed is info, all other states are a warning.

    Attributes:
        era: the number of the stretch that begins here; results of calls admitted before it no longer decide anything.
        reason: what moved it, as in the transition table, such as "failure_rate" or "probes_succeeded".
        failure_rate: share of failed calls in what is left behind, the window or the round of probes; None where a
            window held fewer than `minimum_calls`.
        slow_call_rate: share of slow calls there, likewise.
        calls: how many calls that was.
        open_for: seconds until the first probe when it opened, else None.
    """

    kind: ClassVar[str] = "circuit_breaker.state_changed"
    default_severity: ClassVar[Severity] = "warning"

    from_state: str
    to_state: str
    era: int
    reason: str
    failure_rate: float | None
    slow_call_rate: float | None
    calls: int
    open_for: float | None

    @property
    def severity(self) -> Severity:
        """Judged by the state that was entered."""
        return _STATE_SEVERITY.get(self.to_state, self.default_severity)


@_record
class CallSucceeded(Event):
    """A guarded call succeeded. `slow`: it took `slow_call_duration` or longer; never in DISABLED."""

    kind: ClassVar[str] = "circuit_breaker.call_succeeded"

    duration: float
    slow: bool


@_record
class CallFailed(Event):
    """A guarded call failed; `error_type` is None when its result was the failure."""

    kind: ClassVar[str] = "circuit_breaker.call_failed"

    duration: float
    slow: bool
    error_type: str | None


@_record
class CallIgnored(Event):
    """A guarded call ended in a way that says nothing about the callee: an ignored error, a cancellation, a release.

    `error_type` is None when the permit was released without an error. A cancellation is told here also when the call
    was slow, and as a slow one counts in the window.
    """

    kind: ClassVar[str] = "circuit_breaker.call_ignored"

    duration: float
    error_type: str | None


@_record
class CallRejected(Event):
    """A circuit breaker refused a call; the callee was not touched."""

    kind: ClassVar[str] = "circuit_breaker.call_rejected"
    default_severity: ClassVar[Severity] = "warning"

    state: str
    retry_after: float | None


@_record
class ThresholdExceeded(Event):
    """A rate reached its threshold; told once per era and threshold. In METRICS_ONLY it is all that happens.

    `threshold` is "failure_rate" or "slow_call_rate"; `rate` is the share that reached it.
    """

    kind: ClassVar[str] = "circuit_breaker.threshold_exceeded"
    default_severity: ClassVar[Severity] = "warning"

    threshold: str
    rate: float
    calls: int


@_record
class ProbeExpired(Event):
    """A probe was silent for its whole lease and was replaced; `age` is how long it had been running."""

    kind: ClassVar[str] = "circuit_breaker.probe_expired"
    default_severity: ClassVar[Severity] = "warning"

    age: float


@_record
class PredicateFailed(Event):
    """A user's function in the configuration raised or gave nonsense; `predicate` is the field's name."""

    kind: ClassVar[str] = "circuit_breaker.predicate_failed"
    default_severity: ClassVar[Severity] = "error"

    predicate: str
    error_type: str


@_record
class BreakerAdded(Event):
    """A registry made a circuit breaker."""

    kind: ClassVar[str] = "circuit_breaker.added"


@_record
class BreakerRemoved(Event):
    """A registry let a circuit breaker go; `reason` is "removed" or "evicted"."""

    kind: ClassVar[str] = "circuit_breaker.removed"

    reason: str


@_record
class RegistryFull(Event):
    """A registry is full of breakers that matter; the new one works, but is not listed."""

    kind: ClassVar[str] = "circuit_breaker.registry_full"
    default_severity: ClassVar[Severity] = "warning"

    size: int


# --- rate limiter ---


@_record
class LimitRejected(Event):
    """A rate limiter refused a call. `limit` calls `per` seconds are allowed; `source` says who decided.

    `reason` is "limit" or "never", "shadow" if the call passed all the same, or that of the error which `acquire`
    raised: "never", "deadline", "blocked", "max_waiting" or "closed".
    """

    kind: ClassVar[str] = "rate_limiter.rejected"
    default_severity: ClassVar[Severity] = "warning"

    limit: int
    per: float
    retry_after: float | None
    source: str
    reason: str


@_record
class LimitNear(Event):
    """Little of a limit is left."""

    kind: ClassVar[str] = "rate_limiter.near"

    remaining: int
    limit: int


@_record
class FallbackEntered(Event):
    """The shared store is out of reach; the limiter decides by itself. `instances` share the limit by `policy`."""

    kind: ClassVar[str] = "rate_limiter.fallback_entered"
    default_severity: ClassVar[Severity] = "error"

    cause: str
    instances: int
    policy: str


@_record
class FallbackLeft(Event):
    """The shared store decides again after `duration` seconds; `replayed` units were charged to it."""

    kind: ClassVar[str] = "rate_limiter.fallback_left"
    default_severity: ClassVar[Severity] = "info"

    duration: float
    replayed: int


@_record
class InstanceCountChanged(Event):
    """The number of live instances that share the limits changed."""

    kind: ClassVar[str] = "rate_limiter.instance_count_changed"
    default_severity: ClassVar[Severity] = "info"

    before: int
    after: int


@_record
class KeysSpilled(Event):
    """The memory store is full; `count` live keys went into its sketch, which may refuse too much, never too little."""

    kind: ClassVar[str] = "rate_limiter.keys_spilled"
    default_severity: ClassVar[Severity] = "warning"

    count: int


# --- connection pool ---


@_record
class ConnectionOpened(Event):
    """A connection was made in `duration` seconds."""

    kind: ClassVar[str] = "pool.connection_opened"

    id: int
    duration: float


@_record
class ConnectionClosed(Event):
    """A connection was closed at an `age` in seconds, after `uses` borrowings."""

    kind: ClassVar[str] = "pool.connection_closed"

    id: int
    reason: str
    age: float
    uses: int


@_record
class ConnectFailed(Event):
    """An attempt to connect failed; the next one comes in `next_in` seconds, or never (None)."""

    kind: ClassVar[str] = "pool.connect_failed"
    default_severity: ClassVar[Severity] = "warning"

    error_type: str
    attempt: int
    next_in: float | None


@_record
class CheckFailed(Event):
    """A connection failed its health check and is closed."""

    kind: ClassVar[str] = "pool.check_failed"
    default_severity: ClassVar[Severity] = "warning"

    id: int
    error_type: str


@_record
class ResetFailed(Event):
    """A connection could not be reset after use and is closed."""

    kind: ClassVar[str] = "pool.reset_failed"
    default_severity: ClassVar[Severity] = "warning"

    id: int
    error_type: str


@_record
class AcquireTimedOut(Event):
    """A caller waited `waited` seconds for a connection and got none. The counts are connections and callers."""

    kind: ClassVar[str] = "pool.acquire_timed_out"
    default_severity: ClassVar[Severity] = "warning"

    waited: float
    size: int
    leased: int
    waiting: int


@_record
class PoolExhausted(Event):
    """Every connection is lent and callers wait."""

    kind: ClassVar[str] = "pool.exhausted"
    default_severity: ClassVar[Severity] = "warning"


@_record
class PoolRecovered(Event):
    """There is a connection for the next caller again, after `duration` seconds of exhaustion."""

    kind: ClassVar[str] = "pool.recovered"
    default_severity: ClassVar[Severity] = "info"

    duration: float


@_record
class LeakSuspected(Event):
    """A connection has been held for `held` seconds by the code at `site`; its task is suspended at `suspended_at`."""

    kind: ClassVar[str] = "pool.leak_suspected"
    default_severity: ClassVar[Severity] = "warning"

    id: int
    held: float
    site: str
    suspended_at: str


@_record
class LeakReturned(Event):
    """A suspected leak came back after `held` seconds."""

    kind: ClassVar[str] = "pool.leak_returned"
    default_severity: ClassVar[Severity] = "warning"

    id: int
    held: float
    site: str


@_record
class ReconnectFailed(Event):
    """No connection could be made for `elapsed` seconds; told once per outage."""

    kind: ClassVar[str] = "pool.reconnect_failed"
    default_severity: ClassVar[Severity] = "error"

    elapsed: float
    error_type: str


@_record
class PoolHealthChanged(Event):
    """The health of a pool changed; down is an error, degraded a warning, up info.

    Attributes:
        from_status, to_status: see `PoolHealth`.
        cause: the type of the last error of connecting, None when it is up again.
        failing_for: seconds since connecting began to fail, or for which it failed.
    """

    kind: ClassVar[str] = "pool.health_changed"
    default_severity: ClassVar[Severity] = "warning"

    from_status: str
    to_status: str
    cause: str | None
    failing_for: float

    @property
    def severity(self) -> Severity:
        """As bad as it is now."""
        return "error" if self.to_status == "down" else "info" if self.to_status == "up" else self.default_severity


@_record
class PoolResized(Event):
    """The bounds of a pool changed."""

    kind: ClassVar[str] = "pool.resized"
    default_severity: ClassVar[Severity] = "info"


@_record
class PoolClosed(Event):
    """A pool closed; `forced` borrowed connections were closed under their borrowers."""

    kind: ClassVar[str] = "pool.closed"
    default_severity: ClassVar[Severity] = "info"

    forced: int


@_record
class PoolFailed(Event):
    """Something went wrong in the background that should not have: a bug, or a callback of the user's that raised."""

    kind: ClassVar[str] = "pool.failed"
    default_severity: ClassVar[Severity] = "error"

    error_type: str


@_record
class PrewarmPredicted(Event):
    """What the pool prepared for in the bucket that ended, and what came, in connections."""

    kind: ClassVar[str] = "pool.prewarm_predicted"

    predicted: int
    actual: int


# --- policies ---


@_record
class AttemptFailed(Event):
    """An attempt failed. A retry follows after `delay` seconds, or none (None), which is an error.

    Attributes:
        elapsed: seconds since the first attempt began.
        remaining: seconds until the deadline, None without one.
    """

    kind: ClassVar[str] = "retry.attempt_failed"
    default_severity: ClassVar[Severity] = "warning"

    attempt: int
    max_attempts: int | None
    delay: float | None
    elapsed: float
    remaining: float | None
    error_type: str
    call_id: str

    @property
    def severity(self) -> Severity:
        """An error when no retry follows."""
        return "error" if self.delay is None else self.default_severity


@_record
class RetrySuppressed(Event):
    """A retry or a hedge was due and was not made, to spare a dependency in trouble."""

    kind: ClassVar[str] = "retry.suppressed"
    default_severity: ClassVar[Severity] = "warning"

    reason: str


@_record
class RetryStopped(Event):
    """A retried call came to its end after `attempts` attempts; a success is debug."""

    kind: ClassVar[str] = "retry.stopped"
    default_severity: ClassVar[Severity] = "warning"

    stop_reason: str
    attempts: int

    @property
    def severity(self) -> Severity:
        """Nothing worth a line when the call succeeded in the end."""
        return "debug" if self.stop_reason == "success" else self.default_severity


@_record
class PolicyHookFailed(Event):
    """A function that a policy was given to decide with raised; `hook` is its argument, such as "retry_after"."""

    kind: ClassVar[str] = "policy.hook_failed"
    default_severity: ClassVar[Severity] = "error"

    hook: str
    error_type: str


@_record
class ConfigReloaded(Event):
    """A pipeline was given other policies, so many of them."""

    kind: ClassVar[str] = "config.reloaded"
    default_severity: ClassVar[Severity] = "info"

    policies: int


@_record
class ConfigReloadFailed(Event):
    """A pipeline was to be given policies that make no sense; those from before stay in place."""

    kind: ClassVar[str] = "config.reload_failed"
    default_severity: ClassVar[Severity] = "error"

    reason: str


@_record
class TimedOut(Event):
    """A timeout of ours ended a call; `scope` is "attempt" or "total"."""

    kind: ClassVar[str] = "timeout.exceeded"
    default_severity: ClassVar[Severity] = "warning"

    scope: str
    seconds: float
    elapsed: float


@_record
class HedgeLaunched(Event):
    """A further attempt was started beside a slow one."""

    kind: ClassVar[str] = "hedge.launched"

    number: int


@_record
class HedgeWon(Event):
    """A further attempt answered first."""

    kind: ClassVar[str] = "hedge.won"

    number: int


@_record
class FallbackUsed(Event):
    """The fallback answered instead of the callee."""

    kind: ClassVar[str] = "fallback.used"
    default_severity: ClassVar[Severity] = "warning"

    error_type: str | None


@_record
class CacheHit(Event):
    """A cached result answered."""

    kind: ClassVar[str] = "cache.hit"


@_record
class BulkheadRejected(Event):
    """A bulkhead refused a call."""

    kind: ClassVar[str] = "bulkhead.rejected"
    default_severity: ClassVar[Severity] = "warning"

    in_flight: int
    waiting: int


@_record
class LimitChanged(Event):
    """An adaptive limit moved, in concurrent calls."""

    kind: ClassVar[str] = "limit.changed"

    before: int
    after: int


@_record
class ShedRejected(Event):
    """A call was shed because this process is overloaded."""

    kind: ClassVar[str] = "shed.rejected"
    default_severity: ClassVar[Severity] = "warning"

    load: float


# --- the events themselves ---


@_record
class EventsDropped(Event):
    """Events were dropped because a sink did not keep up; `dropped` since the last such event."""

    kind: ClassVar[str] = "events.dropped"
    default_severity: ClassVar[Severity] = "warning"

    sink: str
    dropped: int


@_record
class SinkFailed(Event):
    """A sink raised; told once per subscription, never to the failing sink itself."""

    kind: ClassVar[str] = "events.sink_failed"
    default_severity: ClassVar[Severity] = "error"

    sink: str
    error_type: str
