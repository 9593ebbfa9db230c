"""A circuit breaker on a clock that stands still, and a small language for what happens to it."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitOpenError
from resilience.breaker import Permit
from resilience.testing import VirtualClock


class IgnoredError(Exception):
    """An error that the benches below are told to ignore."""


class Bench:
    """A breaker without jitter, on a manual clock.

    `play("S F 5F X @7 R")` makes calls one after the other: S succeeds, F fails, X raises an ignored error, each taking
    the seconds before it; `@7` moves the clock to 7; R must be refused.
    """

    def __init__(self, clock: VirtualClock, **config: Any) -> None:
        given: dict[str, Any] = {"open_jitter": 0.0, "ignore": IgnoredError} | config
        self.clock = clock
        self.breaker = CircuitBreaker("bench", clock=clock, rng=random.Random(0), **given)

    @property
    def state(self) -> str:
        return str(self.breaker.state)

    def at(self, time: float) -> None:
        self.clock.advance(time - self.clock())

    def play(self, script: str) -> str:
        """Play the script and give the state after it."""
        for word in script.split():
            if word.startswith("@"):
                self.at(float(word[1:]))
                continue
            match = re.fullmatch(r"([\d.]*)([SFXR])", word)
            assert match is not None, word
            duration, kind = match.groups()
            if kind == "R":
                with pytest.raises(CircuitOpenError):
                    self.breaker.acquire()
                continue
            permit = self.breaker.acquire()
            if duration:
                self.clock.advance(float(duration))
            self.end(permit, kind)
        return self.state

    @staticmethod
    def end(permit: Permit, kind: str) -> None:
        if kind == "S":
            permit.success()
        else:
            permit.failure(OSError() if kind == "F" else IgnoredError())

    def counts(self) -> tuple[int, int, int]:
        """Give calls, failures and slow calls."""
        snapshot = self.breaker.snapshot()
        return snapshot.calls, snapshot.failures, snapshot.slow_calls


class Benches:
    """Makes benches on the test's clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock

    def __call__(self, **config: Any) -> Bench:
        return Bench(self.clock, **config)


@pytest.fixture
def bench(clock: VirtualClock) -> Benches:
    return Benches(clock)
