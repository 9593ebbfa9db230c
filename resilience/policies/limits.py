"""How many calls at once a dependency can take, told from how long they take: arithmetic, no clock, no events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple, Protocol

from resilience.checks import check_number, shown
from resilience.errors import ConfigurationError


class Sample(NamedTuple):
    """What a stretch of calls told.

    Attributes:
        seconds: that a call took, > 0; how long one that timed out was waited for says nothing.
        in_flight: how many were under way at most.
        dropped: whether one of them timed out. It shrinks the limit, and `seconds` are not looked at.
    """

    seconds: float
    in_flight: int
    dropped: bool = False


class Estimator(Protocol):
    """Follows one dependency."""

    def next(self, limit: float, sample: Sample) -> float:
        """Give the limit that follows from a sample."""


class Algorithm(Protocol):
    """How to follow dependencies."""

    def estimator(self) -> Estimator:
        """Begin to follow one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AIMD:
    """One more while all goes well, a tenth less when a call times out.

    Args:
        backoff: factor on a timeout, from 0.5 to below 1. Default 0.9.

    Raises:
        ConfigurationError: a value out of its range.

    Source: additive increase, multiplicative decrease, as TCP Reno and Netflix's concurrency-limits have it.
    """

    backoff: float = 0.9

    def __post_init__(self) -> None:
        check_number("backoff", self.backoff, least=0.5)
        if self.backoff >= 1:
            raise ConfigurationError(f"backoff must be below 1, got {shown(self.backoff)}")

    def estimator(self) -> Estimator:
        """Begin to follow a dependency."""
        return _Aimd(self)


class _Aimd:
    def __init__(self, config: AIMD) -> None:
        self._config = config

    def next(self, limit: float, sample: Sample) -> float:
        if sample.dropped:
            return math.floor(limit * self._config.backoff)
        return limit + 1 if 2 * sample.in_flight >= limit else limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Vegas:
    """Keeps a short queue at the dependency: what a call takes beyond the quickest one was spent in it.

    The queue is limit x (1 - quickest / latest). Both bounds are multiplied by the decimal logarithm of the limit.

    Args:
        alpha: a shorter queue lets the limit grow, > 0. Default 3.
        beta: a longer queue lets it shrink, > alpha. Default 6.

    Raises:
        ConfigurationError: a value out of its range.

    Source: TCP Vegas (Brakmo and Peterson, 1994) in the form of Netflix's concurrency-limits.
    """

    PROBE: ClassVar[int] = 30
    """The quickest call is forgotten after so many samples per unit of the limit: dependencies change."""

    alpha: float = 3.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)
        check_number("beta", self.beta, above=self.alpha)

    def estimator(self) -> Estimator:
        """Begin to follow a dependency."""
        return _Vegas(self)


class _Vegas:
    def __init__(self, config: Vegas) -> None:
        self._config = config
        self._quickest = inf
        self._samples = 0

    def next(self, limit: float, sample: Sample) -> float:
        scale = max(1.0, math.log10(limit))
        if sample.dropped:
            return limit - scale
        self._samples += 1
        if self._samples > self._config.PROBE * limit:
            self._quickest, self._samples = inf, 0
        if sample.seconds < self._quickest:
            self._quickest = sample.seconds
            return limit
        if 2 * sample.in_flight < limit:
            return limit
        # A queue of 2.0000000000000004 is one of 2.
        queue = math.ceil(limit * (1 - self._quickest / sample.seconds) - 1e-9)
        if queue <= scale:
            return limit + self._config.beta * scale
        if queue < self._config.alpha * scale:
            return limit + scale
        return limit - scale if queue > self._config.beta * scale else limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient2:
    """Follows the ratio of what calls took for long to what they take now; a drift of both is no overload.

    Args:
        tolerance: by which calls may become slower without consequence, >= 1. Default 1.5.
        queue: calls that may wait at the dependency, >= 0. Default 4.
        smoothing: share of a new limit that is taken over, above 0 and at most 1. Default 0.2.
        backoff: factor on a timeout, from 0.5 to below 1; one call less at least. Default 0.9.

    Raises:
        ConfigurationError: a value out of its range.

    Source: Gradient2 of Netflix's concurrency-limits; that timeouts always shrink the limit is ours.
    """

    MEMORY: ClassVar[int] = 600
    """Samples over which "for long" is averaged."""

    tolerance: float = 1.5
    queue: float = 4.0
    smoothing: float = 0.2
    backoff: float = 0.9

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, least=1)
        check_number("queue", self.queue, least=0)
        check_number("smoothing", self.smoothing, above=0, most=1)
        check_number("backoff", self.backoff, least=0.5)
        if self.backoff >= 1:
            raise ConfigurationError(f"backoff must be below 1, got {shown(self.backoff)}")

    def estimator(self) -> Estimator:
        """Begin to follow a dependency."""
        return _Gradient2(self)


class _Gradient2:
    def __init__(self, config: Gradient2) -> None:
        self._config = config
        self._long = 0.0
        self._samples = 0

    def next(self, limit: float, sample: Sample) -> float:
        config = self._config
        if sample.dropped:
            return min(limit * config.backoff, limit - 1)  # of few calls a tenth is less than one
        self._samples += 1
        # A plain mean at first: one early sample would weigh for hundreds otherwise.
        self._long += (sample.seconds - self._long) / min(self._samples, config.MEMORY)
        if self._long / sample.seconds > 2:
            self._long *= 0.95
        if 2 * sample.in_flight < limit:
            return limit
        gradient = max(0.5, min(1.0, config.tolerance * self._long / sample.seconds))
        wanted = limit * gradient + config.queue
        return limit * (1 - config.smoothing) + wanted * config.smoothing
