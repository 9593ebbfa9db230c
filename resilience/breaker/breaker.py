"""The circuit breaker that programs hold: its ways in, what people may order, and what it shows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, cast

from resilience.checks import check_function, check_int, check_name, check_number, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.stack import ADMITTED, Admission, dressed

from .config import CircuitBreakerConfig, CircuitState, merged
from .core import Trigger
from .gate import Gate
from .wrap import Guard, Permit, check_guardable, guarded

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DUMP_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class CircuitBreakerSnapshot:
    """A circuit breaker at one moment.

    Attributes:
        name: the breaker's name.
        state: its `CircuitState`.
        era: number of the present stretch between two state changes, from 1.
        calls, failures, slow_calls: what the window holds; in OPEN what the window held that opened it; in HALF_OPEN
            the results of the probes so far.
        failure_rate, slow_call_rate: shares of `calls`; None below `minimum_calls` and in HALF_OPEN.
        rejected: calls refused over the breaker's life.
        late: results over its life that came after their era, or from probes that had been replaced.
        in_flight: admitted calls that have not ended, over all eras.
        retry_after: seconds after which a caller refused now should ask again; None if none is refused, or none knows.
        reopen_attempt: how often it reopened since it was closed.
    """

    name: str
    state: CircuitState
    era: int
    calls: int
    failures: int
    slow_calls: int
    failure_rate: float | None
    slow_call_rate: float | None
    rejected: int
    late: int
    in_flight: int
    retry_after: float | None
    reopen_attempt: int


class CircuitBreaker:
    """Stops calling what keeps failing, and finds out carefully when it is well again.

    One object serves any number of tasks and threads; sharing it is how callers share what they learn. Nothing runs
    in the background: the time to probe is noticed by the next call.

        breaker = CircuitBreaker("payments", failure_rate_threshold=0.3)

        @breaker
        async def pay(order: Order) -> Receipt: ...

    Args:
        name: in events, errors and logs.
        config: how to judge; None is `CircuitBreakerConfig()`.
        clock: monotonic seconds, read outside of the lock.
        rng: for the jitter of the open time; None is the system's, which forked workers do not share.
        overrides: fields of the configuration, in place of `config`'s.

    Raises:
        ConfigurationError: a field makes no sense, or does not exist.
    """

    kind: ClassVar[str] = "breaker"
    """What it is among policies."""

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        **overrides: Any,
    ) -> None:
        check_name(name)
        check_function("clock", clock)
        if rng is not None:
            check_function("rng.random", getattr(rng, "random", None))
        config = merged(CircuitBreakerConfig() if config is None else config, overrides)
        self._gate = Gate(name, config, clock, rng or random.SystemRandom())

    @property
    def name(self) -> str:
        """What it is called in events, errors and logs."""
        return self._gate.name

    @property
    def config(self) -> CircuitBreakerConfig:
        """How it judges."""
        return self._gate.config

    @property
    def state(self) -> CircuitState:
        """The state that it is in; OPEN turns HALF_OPEN with the next call, not by itself."""
        return self._gate.core.state

    def __repr__(self) -> str:
        snapshot = self._gate.read(self._read)
        known = [] if snapshot.failure_rate is None else [f"{snapshot.failure_rate:.0%} failed"]
        known += [f"{snapshot.calls} calls", f"{snapshot.in_flight} in flight"]
        if snapshot.retry_after is not None:
            known.append(f"retry in {snapshot.retry_after:.3g} s")
        return f"<CircuitBreaker {self.name!r} {snapshot.state.replace('_', '-')}, {', '.join(known)}>"

    # --- ways in ---

    def __call__(self, function: F) -> F:
        """Guard `function`: a def, async def, generator or async generator function, whose kind and types it keeps.

        Every call is admitted and settled by itself. Generators are admitted when they start and judged when they end:
        slow is how long the first item took; a consumer that leaves early is a success after the first item.

        Raises:
            ConfigurationError: not a function (a class, a classmethod object), or guarded by this breaker already.
            CircuitOpenError: from the guarded function, when the circuit refuses the call.

        Cancellation: goes through unchanged. It says nothing about the callee, except that it was slow if it was.
        """
        check_guardable(function)
        if getattr(function, "circuit_breaker", None) is self:
            raise ConfigurationError(f"circuit breaker {self.name!r} guards {function!r} already")
        wrapper: Any = dressed(guarded(self._gate, function), function, self)
        wrapper.circuit_breaker = self
        return cast("F", wrapper)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(*args, **kwargs)` through the circuit, and return what it returns.

        For an async function that is an awaitable: the call is admitted when it is awaited.

        Raises:
            ConfigurationError: `function` is not callable.
            CircuitOpenError: the circuit refuses; `function` was not called.

        Cancellation: as for a guarded function.
        """
        if not callable(function):
            raise ConfigurationError(
                f"function must be callable, got {shown(function)}: pass the function and its arguments, not its result"
            )
        return cast("T", guarded(self._gate, function)(*args, **kwargs))

    def around(self, function: Callable[..., Any], site: object = None) -> Callable[..., Any]:  # noqa: ARG002 - as policies have it
        """Give a function that calls `function` through the circuit, without its name and docs: for pipelines."""
        check_guardable(function)
        return guarded(self._gate, function)

    def guard(self) -> Guard:
        """Give a context manager, for `with` and `async with`, whose block is one call.

        Each use needs a guard of its own, so that tasks may interleave. The block may settle the permit that it gets
        itself; otherwise its end decides.

            async with breaker.guard() as permit:
                response = await client.get(url)
                if response.status_code >= 500:
                    permit.failure(ServerError(response.status_code))

        Raises:
            CircuitOpenError: on entry, when the circuit refuses.
            RuntimeError: on entry, when this guard was entered before.

        Cancellation: as for a guarded function; the block's end settles the permit.
        """
        return Guard(self._gate)

    def acquire(self) -> Permit:
        """Ask to make one call, and report its end with the permit that this gives.

        For calls whose start and end lie in different functions; elsewhere `guard` is safer, since a permit that is
        never settled counts as in flight for ever (as a probe, until its lease is over).

        Raises:
            CircuitOpenError: the circuit refuses.

        Cancellation: report it as any other exception, `permit.failure(error)`: it is judged by how slow the call was.
        """
        return Permit(self._gate, self._gate.admit())

    def would_allow(self) -> bool:
        """Tell whether a call would be let in now. A pure read: no permit is taken, nothing is counted or moved."""
        return self._gate.would_admit()

    def admission(self) -> Admission:
        """Tell whether a call would be let in now, and when it would be. A pure read, as `would_allow`."""
        if self.would_allow():
            return ADMITTED
        snapshot = self._gate.read(self._read)
        reason = "circuit_half_open" if snapshot.state is CircuitState.HALF_OPEN else "circuit_open"
        return Admission(allowed=False, retry_after=snapshot.retry_after, reason=reason)

    # --- what people decide ---

    def trip(self) -> None:
        """Open the circuit for the open time; in OPEN that starts anew, in HALF_OPEN it is one more reopening."""
        self._order(Trigger.TRIP)

    def force_open(self) -> None:
        """Refuse all calls until somebody decides otherwise."""
        self._order(Trigger.FORCE_OPEN)

    def disable(self) -> None:
        """Let all calls pass uncounted until somebody decides otherwise; their events are still told."""
        self._order(Trigger.DISABLE)

    def metrics_only(self) -> None:
        """Let all calls pass, count them, and tell which thresholds would have opened the circuit."""
        self._order(Trigger.METRICS_ONLY)

    def reset(self) -> None:
        """Close the circuit and forget the window."""
        self._order(Trigger.RESET)

    def _order(self, trigger: Trigger) -> None:
        self._gate.act(lambda now: self._gate.core.order(trigger, now))

    # --- reading and keeping ---

    def snapshot(self) -> CircuitBreakerSnapshot:
        """Give the numbers of this moment. Calls that have become overdue are seen, which may open the circuit."""
        self._gate.act(self._gate.core.see_overdue)
        return self._gate.read(self._read)

    def _read(self, now: float) -> CircuitBreakerSnapshot:
        core = self._gate.core
        counts = core.counts(now)
        return CircuitBreakerSnapshot(
            name=self.name,
            state=core.state,
            era=core.era,
            calls=counts.calls,
            failures=counts.failures,
            slow_calls=counts.slow,
            failure_rate=counts.failure_rate,
            slow_call_rate=counts.slow_call_rate,
            rejected=core.rejected(),
            late=core.late,
            in_flight=core.in_flight(),
            retry_after=core.retry_after(now),
            reopen_attempt=core.reopen_attempt,
        )

    def dump(self) -> dict[str, object]:
        """Give the state as a small JSON-able dict, for `restore` after a restart or elsewhere.

        Keys: "format" (1), "state", "remaining" (seconds until the first probe; clocks differ between processes, what
        is left does not) and "reopen_attempt". The window is not kept: what was counted before a restart is old news.
        """
        snapshot = self._gate.read(self._read)
        is_open = snapshot.state is CircuitState.OPEN
        return {
            "format": DUMP_FORMAT,
            "state": snapshot.state.value,
            "remaining": snapshot.retry_after if is_open else 0.0,
            "reopen_attempt": snapshot.reopen_attempt,
        }

    def restore(self, dumped: Mapping[str, object]) -> None:
        """Take over a dumped state. HALF_OPEN becomes OPEN with no time left: its probes did not come along.

        Raises:
            ConfigurationError: not a dump, or of another format; nothing was changed.
        """
        state, remaining, attempt = _read_dump(dumped)
        self._gate.act(lambda now: self._gate.core.restore(state, remaining, attempt, now))


def is_as_new(breaker: CircuitBreaker) -> bool:
    """Tell whether a new breaker of the same configuration would do the same; of use to a registry only."""
    gate = breaker._gate  # noqa: SLF001 - not a method, because it is nothing for users
    return gate.read(gate.core.is_as_new)


def _read_dump(dumped: Mapping[str, object]) -> tuple[CircuitState, float, int]:
    if not isinstance(dumped, Mapping):
        raise ConfigurationError(f"dumped must be what dump() gave, got {type(dumped).__name__}")
    if dumped.get("format") != DUMP_FORMAT:
        raise ConfigurationError(f"dumped['format'] must be {DUMP_FORMAT}, got {shown(dumped.get('format'))}")
    state, remaining, attempt = dumped.get("state"), dumped.get("remaining"), dumped.get("reopen_attempt")
    if state not in [one.value for one in CircuitState]:
        raise ConfigurationError(f"dumped['state'] must be one of {', '.join(CircuitState)}, got {shown(state)}")
    check_number("dumped['remaining']", remaining, least=0)
    check_int("dumped['reopen_attempt']", attempt, least=0)
    return CircuitState(str(state)), cast("float", remaining), cast("int", attempt)
