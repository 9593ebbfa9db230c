"""A bulkhead whose size follows what the dependency can take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from math import ceil, inf
from typing import Any, ClassVar, Final

from resilience.checks import check_int, check_number, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError, RejectedError
from resilience.events import LimitChanged, emit
from resilience.forks import renew_locks_in_child

from .bulkhead import Line
from .course import leaves
from .limits import Algorithm, Sample, Vegas
from .policy import Site, refuse_awaitable

_ENOUGH: Final = 50  # calls for a sample
_FEWEST: Final = 5  # calls, after the longest stretch
_QUANTILE: Final = 0.9


class AdaptiveLimit(Line):
    """Lets as many calls in at once as the dependency can take, which it learns from how long they take.

    What calls tell is gathered over a stretch of time, never judged one by one: at least `window` seconds and 50 calls,
    at most 30 x `window`; the ninth decile stands for all. Timeouts (`TimeoutError` and ours, also in a group) shrink
    the limit, once in `window` seconds however few the calls are, and count for no duration; other errors, rejections
    by our own policies and cancellations say nothing. The limit grows only while at least half of it is used.

    Args:
        algorithm: `Vegas()` (the default), `Gradient2()` or `AIMD()`.
        initial: limit at the beginning, >= 1. Default 20.
        min_limit: it never goes below, >= 1. Default 1.
        max_limit: nor above, >= min_limit. Default 1,000.
        window: seconds, > 0. Default 1.
        max_waiting: calls in line for a place, >= 0. Default 0.
        timeout: seconds to wait at most; only with `max_waiting`.
        clock: monotonic seconds.
        name: in events and errors; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range.
        BulkheadFullError: from the function, as with `Bulkhead`; its `policy` is "adaptive_limit".

    Cancellation: as with `Bulkhead`.
    """

    title: ClassVar[str] = "an adaptive limit"
    refused_by: ClassVar[str] = "adaptive_limit"

    def __init__(
        self,
        algorithm: Algorithm = Vegas(),  # noqa: B008 - frozen
        *,
        initial: int = 20,
        min_limit: int = 1,
        max_limit: int = 1_000,
        window: float = 1.0,
        max_waiting: int = 0,
        timeout: float | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        if isinstance(algorithm, type) or not callable(getattr(algorithm, "estimator", None)):
            raise ConfigurationError(f"algorithm must be Vegas(), Gradient2() or AIMD(), got {shown(algorithm)}")
        check_int("min_limit", min_limit)
        check_int("max_limit", max_limit, least=min_limit, most=sys.maxsize)
        check_int("initial", initial, least=min_limit, most=max_limit)
        check_number("window", window, above=0)
        super().__init__(initial, max_waiting, timeout, clock, name)
        self._bounds = min_limit, max_limit
        self._window = window
        self._estimator = algorithm.estimator()
        self._limit = float(initial)
        self._stretch = _Stretch(window, clock())
        # Guards the stretch, the estimator, and the order in which limits are set. The garbage collector may end a call
        # under it: hence reentrant. What that call tells then, in the middle of what another one does, moves the limit
        # within its bounds as any other.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Make the lock anew in a forked child."""
        self._lock = threading.RLock()

    @property
    def limit(self) -> int:
        """How many calls may be in now: `max_concurrent`, as it moves."""
        return self.max_concurrent

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.in_flight} of {self.limit} in flight>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that takes a place for each call, and tells how long it took."""
        return self._around_async(function, site) if is_async(function) else self._around_sync(function, site)

    def _around_async(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        places, timeout, clock = self._places, self.timeout, self._clock

        async def placed(*args: Any, **kwargs: Any) -> Any:
            if not places.take() and (why := await places.wait(timeout)):
                raise self._refusal(site, why)
            try:
                began = clock()
                try:
                    result = await function(*args, **kwargs)
                except Exception as error:
                    self._note_error(site, began, error)
                    raise
                self._note(site, began, dropped=False)
                return result
            finally:
                places.give_back()

        return placed

    def _around_sync(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        places, timeout, clock = self._places, self.timeout, self._clock

        def placed(*args: Any, **kwargs: Any) -> Any:
            if not places.take() and (why := places.wait_sync(timeout)):
                raise self._refusal(site, why)
            try:
                began = clock()
                try:
                    result = function(*args, **kwargs)
                except Exception as error:
                    self._note_error(site, began, error)
                    raise
                refuse_awaitable(result, self.title)
                self._note(site, began, dropped=False)
                return result
            finally:
                places.give_back()

        return placed

    def _note_error(self, site: Site, began: float, error: Exception) -> None:
        told = leaves(error) if isinstance(error, ExceptionGroup) else (error,)
        # A pool's timeout is a rejection: the callee was not asked.
        if any(isinstance(one, TimeoutError) and not isinstance(one, RejectedError) for one in told):
            self._note(site, began, dropped=True)

    def _note(self, site: Site, began: float, *, dropped: bool) -> None:
        now = self._clock()
        with self._lock:
            sample = self._stretch.add(now - began, self._places.taken, now, dropped=dropped)
            if sample is None:
                return
            self._stretch = _Stretch(self._window, now)
            least, most = self._bounds
            self._limit = min(max(self._estimator.next(self._limit, sample), least), most)
            before, after = self._places.limit, int(self._limit)
            self._places.move(after)
        if after != before and LimitChanged.sinks:
            emit(LimitChanged(site.name, now, before=before, after=after))


class _Stretch:
    """Gathers what calls tell, until it is enough for a sample."""

    def __init__(self, window: float, now: float) -> None:
        self._window = window
        self._began = now
        self._seconds: list[float] = []
        self._most = 0
        self._dropped = False

    def add(self, seconds: float, in_flight: int, now: float, *, dropped: bool) -> Sample | None:
        """Take in a call; gives a sample when there is enough, which ends the stretch."""
        self._most = max(self._most, in_flight)
        self._dropped = self._dropped or dropped
        if len(self._seconds) < 10 * _ENOUGH:  # in a short time with many calls the first will do
            self._seconds.append(seconds)
        passed = now - self._began
        if self._dropped:
            return Sample(inf, self._most, dropped=True) if passed >= self._window else None
        enough = passed >= self._window and len(self._seconds) >= _ENOUGH
        if not enough and not (passed >= 30 * self._window and len(self._seconds) >= _FEWEST):
            return None
        ordered = sorted(self._seconds)
        # A clock that stands still would have calls that take no time, and no ratio.
        told = max(ordered[ceil(_QUANTILE * len(ordered)) - 1], 1e-9)
        return Sample(told, self._most)
