"""A further attempt beside a slow one: the first answer counts."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Any, ClassVar, Final

from resilience.checks import check_function, check_int, check_number, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.forks import renew_locks_in_child

from .budget import RetryBudget, enter, leave
from .calls import note_reason
from .policy import Policy, Site
from .race import Attempts, race, take_turns
from .writes import refuse_write

_RECENT: Final = 1_000  # latencies: 10 of them are beyond the 99th percentile
_LATER: Final = 1 + 1e-6  # as late as the others is not late: rounding must launch no hedge
_LEAST: Final = max(0.001, time.get_clock_info("monotonic").resolution)  # seconds: what takes less may be told as 0


@dataclass(frozen=True, slots=True)
class Quantile:
    """As a delay: so long that this share of the recent successful calls took no longer.

    Args:
        share: above 0, below 1: at 0.95 about one call in twenty is hedged. Default 0.95.
        warmup: successful calls before the first that is hedged for its slowness, from 1 to 1,000. Default 20.

    The last 1,000 calls count. A call that a hedge answered counts with the time from its first attempt on: were it
    counted as quick as the hedge, the delay would shrink with every hedge, and launch more of them.

    Raises:
        ConfigurationError: a value out of its range.

    Source: "defer the second request until the first has been outstanding for more than the 95th percentile" (Dean and
    Barroso, The Tail at Scale, CACM 2013); the warm-up is failsafe-go's.
    """

    share: float = 0.95
    warmup: int = 20

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0)
        if self.share >= 1:
            raise ConfigurationError(f"share must be less than 1, got {shown(self.share)}")
        check_int("warmup", self.warmup, most=_RECENT)


class Hedge(Policy):
    """Starts a further attempt beside one that is slow or has failed; the first that succeeds answers.

        @Hedge(Quantile(0.95), idempotent=True, budget=budget)
        async def read(key: str) -> bytes: ...

    An attempt that fails starts the next at once. The others are cancelled, and have ended, when the call returns;
    what they had already answered is closed by its `aclose` or `close`, once. When all fail, the error of the first
    attempt comes out, the same object. A rejection of our own policies inside (a full bulkhead) is a failure of that
    attempt like any other.

    With a finite delay each attempt runs in a task of its own, from the first on, in a copy of the caller's context. A
    delay of `inf`, or a `Quantile` that is not warm yet, needs no tasks.

    Args:
        delay: seconds >= 0 until the next attempt starts beside those under way; 0 starts all at once; `math.inf`
            starts the next only after a failure; or a `Quantile`, which until it is warm is infinite.
        max_hedges: further attempts per call, >= 1. Default 1.
        idempotent: must be True: you know that it is safe to do the work twice.
        budget: a `RetryBudget` that each further attempt is taken from; shared by all who use the object. What it
            denies is not started, and the attempts under way go on.
        clock: monotonic seconds, for latencies and the times that are told.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value that makes no sense.

    Cancellation: cancels all attempts and waits for them; none is left behind.
    """

    kind: ClassVar[str] = "hedge"
    title: ClassVar[str] = "a hedge"

    def __init__(
        self,
        delay: float | Quantile,
        *,
        max_hedges: int = 1,
        idempotent: bool,
        budget: RetryBudget | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not isinstance(delay, Quantile) and delay != inf:
            check_number("delay", delay, least=0)
        check_int("max_hedges", max_hedges)
        if idempotent is not True:
            raise ConfigurationError(
                f"idempotent must be True, got {shown(idempotent)}: a hedge does the work twice, and both may succeed. "
                "Make it safe to repeat (an idempotency key), or leave the hedge out"
            )
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigurationError(f"budget must be a RetryBudget, got {shown(budget)}")
        check_function("clock", clock)
        self.delay = delay
        self.max_hedges = max_hedges
        self.budget = budget
        self._clock = clock
        self._latencies = _Latencies(delay) if isinstance(delay, Quantile) else None

    def __repr__(self) -> str:
        delay = self.delay if isinstance(self.delay, Quantile) else f"{self.delay:g} s"
        now = f", now {self._latencies.delay():.3g} s" if self._latencies else ""
        return f"<Hedge after {delay}{now}, at most {self.max_hedges}>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Awaitable[Any]]:
        """Give a function that calls `function`, and again where it is slow or fails.

        Raises:
            ConfigurationError: the function is not async, or is marked as a write.
        """
        refuse_write(site.origin, self.title)
        if not is_async(function):
            raise ConfigurationError(
                f"a hedge is for async functions, got {site.name}: a plain one cannot be stopped once another answered"
            )
        budget, clock, latencies = self.budget, self._clock, self._latencies
        fixed = inf if isinstance(self.delay, Quantile) else float(self.delay)

        work = site.work

        async def hedged(*args: Any, **kwargs: Any) -> Any:
            delay = fixed if latencies is None else latencies.delay()
            note = None if latencies is None else latencies.add
            call = partial(function, *args, **kwargs)
            attempts = Attempts(call, site.name, most=self.max_hedges, budget=budget, clock=clock, note=note)
            result = await (take_turns(attempts) if delay == inf else race(attempts, delay))
            if attempts.number:
                note_reason("success", work)  # a retry in an attempt that lost has said something else
            return result

        if budget is None:
            return hedged

        async def budgeted(*args: Any, **kwargs: Any) -> Any:
            token = enter(budget)
            try:
                return await hedged(*args, **kwargs)
            finally:
                leave(budget, token)

        return budgeted


class _Latencies:
    """How long the recent calls took, and the delay that follows from it."""

    def __init__(self, quantile: Quantile) -> None:
        self._quantile = quantile
        self._by_age: deque[float] = deque()
        self._by_size: list[float] = []
        # Guards both: loops in several threads may share a hedge. Held for arithmetic only.
        self._lock = threading.Lock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: the two lists may differ if another thread was between them."""
        self._lock = threading.Lock()
        self._by_age, self._by_size = deque(), []

    def add(self, seconds: float) -> None:
        """Note a call; beyond the number that counts, the oldest is forgotten."""
        with self._lock:
            if len(self._by_age) >= _RECENT:
                del self._by_size[bisect_left(self._by_size, self._by_age.popleft())]
            self._by_age.append(seconds)
            insort(self._by_size, seconds)

    def delay(self) -> float:
        """Give the seconds that are longer than the quantile; infinite before the warm-up is over."""
        with self._lock:
            count = len(self._by_size)
            if count < self._quantile.warmup:
                return inf
            return max(self._by_size[ceil(self._quantile.share * count) - 1] * _LATER, _LEAST)
