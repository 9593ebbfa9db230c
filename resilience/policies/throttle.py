"""Giving up calls by chance, as many as the callee refuses anyway."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from resilience.checks import check_function, check_int, check_number, is_async
from resilience.clock import Clock
from resilience.errors import ConfigurationError, RejectedError
from resilience.events import ShedRejected, emit
from resilience.forks import renew_locks_in_child
from resilience.windows import FAILED, MIN_SECONDS, SUCCEEDED, TimeWindow

from .course import leaves
from .policy import Policy, Site, refuse_awaitable


class Throttle(Policy):
    """Refuses calls by chance, the more of them the more of the callee's answers are failures.

    A breaker is open or closed; a throttle lets some calls through at any time, so that it sees at once when the callee
    is well again. The share that it refuses is (n - ok / threshold) / (n + 1) over the window, its own refusals counted
    in n.

    Args:
        threshold: share of successes that is good enough, above 0 and at most 1. Default 0.9.
        window: seconds to look back, at least a microsecond. Default 60.
        cap: share of calls that it refuses at most, from 0 to below 1. Default 0.9.
        minimum_calls: below so many in the window nothing is refused, >= 1. Default 20.
        clock: monotonic seconds.
        rng: decides whom it hits; None is the system's.
        name: in events and errors; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range.
        RejectedError: from the function, `policy` "throttle", `reason` "shed". The function was not called.

    Cancellation: counts neither way, as rejections by our own policies inside of it do.

    Source: adaptive throttling, Site Reliability Engineering (O'Reilly, 2016), chapter 21; threshold is its 1 / K.
    """

    kind: ClassVar[str] = "throttle"
    title: ClassVar[str] = "a throttle"

    def __init__(
        self,
        threshold: float = 0.9,
        *,
        window: float = 60.0,
        cap: float = 0.9,
        minimum_calls: int = 20,
        clock: Clock = time.monotonic,
        rng: random.Random | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        check_number("threshold", threshold, above=0, most=1)
        check_number("window", window, least=MIN_SECONDS)
        check_number("cap", cap, least=0, most=0.999)
        check_int("minimum_calls", minimum_calls)
        check_function("clock", clock)
        if rng is not None:
            check_function("rng.random", getattr(rng, "random", None))
        self.threshold = threshold
        self.cap = cap
        self.minimum_calls = minimum_calls
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._window = TimeWindow(window).open(clock())
        # Guards the window. The garbage collector may make or end a call under it, in the middle of a step: hence it is
        # reentrant, and who finds a step under way (`_busy`) lets the call in, and does not count it.
        self._lock = threading.RLock()
        self._busy = False
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Make the lock anew in a forked child."""
        self._lock = threading.RLock()
        self._busy = False

    @property
    def refused_share(self) -> float:
        """The share of calls that is refused now."""
        return self._share(self._clock())

    def __repr__(self) -> str:
        return f"<Throttle refusing {self.refused_share:.0%}>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function of whose calls some are refused."""
        if is_async(function):

            async def throttled(*args: Any, **kwargs: Any) -> Any:
                self._let_in(site)
                try:
                    result = await function(*args, **kwargs)
                except Exception as error:
                    self._note_error(error)
                    raise
                self._count(SUCCEEDED, self._clock())
                return result

            return throttled

        def throttled_sync(*args: Any, **kwargs: Any) -> Any:
            self._let_in(site)
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                self._note_error(error)
                raise
            refuse_awaitable(result, self.title)
            self._count(SUCCEEDED, self._clock())
            return result

        return throttled_sync

    def _let_in(self, site: Site) -> None:
        if not self._window.failures:  # most callees are well, and a look at the clock costs more than the rest
            return
        now = self._clock()
        share = self._share(now)
        if not share or self._rng.random() >= share:
            return
        self._count(FAILED, now)
        if ShedRejected.sinks:
            emit(ShedRejected(site.name, now, load=share))
        raise RejectedError(site.name, "throttle", "shed")

    def _note_error(self, error: Exception) -> None:
        told = leaves(error) if isinstance(error, ExceptionGroup) else (error,)
        # Rejections of ours, and what we call mistakes of the program, come from between here and the callee.
        if not all(isinstance(one, RejectedError | ConfigurationError) for one in told):
            self._count(FAILED, self._clock())

    def _count(self, outcome: int, now: float) -> None:
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                self._window.add(outcome, now)
            finally:
                self._busy = False

    def _share(self, now: float) -> float:
        with self._lock:
            if self._busy:
                return 0.0
            self._busy = True
            try:
                self._window.advance(now)
                calls, failures = self._window.calls, self._window.failures
            finally:
                self._busy = False
        if calls < self.minimum_calls:
            return 0.0
        return refused_share(calls, calls - failures, self.threshold, self.cap)


def refused_share(calls: int, ok: int, threshold: float, cap: float) -> float:
    """Give the share of calls to refuse when so many of the calls before went well."""
    return min(max(0.0, calls - ok / threshold) / (calls + 1), cap)
