"""Many threads and tasks on one breaker: no permit is lost, no counter goes wrong."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import anyio
import pytest

from resilience import CircuitBreaker, CircuitOpenError, CountWindow, TimeWindow, subscribe
from resilience.events import CallFailed, CircuitStateChanged, Event, capture

SECONDS = 2.0
TASKS = 200
THREADS = 8


class FlakyError(Exception):
    pass


class IgnoredError(Exception):
    pass


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let threads interrupt each other a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def make_breaker(kind: str) -> CircuitBreaker:
    return CircuitBreaker(
        "storm",
        window=CountWindow(20) if kind.startswith("count") else TimeWindow(0.01),
        minimum_calls=5,
        slow_call_duration=0.002 if kind.endswith("slow") else None,
        open_duration=0.0005,
        open_backoff=1.0,
        half_open_calls=3,
        probe_lease=0.01,
        ignore=IgnoredError,
    )


class Storm:
    """What threads and tasks do to one breaker until the time is over, and how their calls ended."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.breaker = breaker
        self.seed = random.randrange(2**32)
        print(f"seed {self.seed}")  # noqa: T201 - shown by pytest when the storm fails
        self.until = time.monotonic() + SECONDS
        self.ends: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()

    def blow(self) -> None:
        jobs: list[Callable[[], None]] = [lambda number=number: self.calls(number) for number in range(THREADS - 1)]  # type: ignore[misc]
        jobs += [lambda: anyio.run(self.tasks), self.watch]
        threads = [threading.Thread(target=self.run, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.errors

    def run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.errors.append(error)
            raise

    @staticmethod
    def fate(rng: random.Random) -> None:
        # Long stretches of health, so that the paths without a lock are taken, and short ones of trouble.
        trouble = int(time.monotonic() * 50) % 3 == 0
        draw = rng.random()
        if draw < (0.7 if trouble else 0.001):
            raise FlakyError
        if draw > 0.98:
            raise IgnoredError

    @contextlib.contextmanager
    def booked(self, tally: Counter[str]) -> Iterator[None]:
        try:
            yield
            tally["succeeded"] += 1
        except FlakyError:
            tally["failed"] += 1
        except IgnoredError:
            tally["ignored"] += 1
        except CircuitOpenError as refusal:
            tally["rejected"] += 1
            assert refusal.retry_after is None or refusal.retry_after >= 0

    def book(self, tally: Counter[str]) -> None:
        with self._lock:
            self.ends.update(tally)

    def calls(self, number: int) -> None:
        guarded = self.breaker(self.fate)
        rng, tally = random.Random(self.seed + number), Counter[str]()
        while time.monotonic() < self.until:
            with self.booked(tally):
                guarded(rng)
        self.book(tally)

    async def tasks(self) -> None:
        async with anyio.create_task_group() as group:
            for number in range(TASKS):
                group.start_soon(self.task, number)

    async def task(self, number: int) -> None:
        @self.breaker
        async def guarded(rng: random.Random) -> None:
            await anyio.lowlevel.checkpoint()
            self.fate(rng)

        rng, tally = random.Random(self.seed - number), Counter[str]()
        while time.monotonic() < self.until:
            with self.booked(tally):
                # Some are cancelled at their checkpoint, holding a permit.
                with anyio.move_on_after(0 if rng.random() < 0.1 else 60):
                    await guarded(rng)
            await anyio.lowlevel.checkpoint()
        self.book(tally)

    def watch(self) -> None:
        while time.monotonic() < self.until:
            snapshot = self.breaker.snapshot()
            assert 0 <= snapshot.failures <= snapshot.calls
            assert 0 <= snapshot.slow_calls <= snapshot.calls
            assert snapshot.in_flight >= 0
            self.breaker.would_allow()


@pytest.mark.parametrize("kind", ["count", "count-slow", "time-slow"])
def test_a_storm_of_threads_and_tasks_loses_no_permit(kind: str) -> None:
    storm = Storm(make_breaker(kind))
    with capture(CircuitStateChanged, name="storm") as moves:
        storm.blow()

    snapshot = storm.breaker.snapshot()
    assert snapshot.in_flight == 0
    assert snapshot.rejected == storm.ends["rejected"] > 0
    assert storm.ends["succeeded"] > 1000
    # The state is a chain without a gap, and each link was told once, in order.
    assert [move.era for move in moves] == list(range(2, len(moves) + 2))
    assert all(one.to_state == two.from_state for one, two in itertools.pairwise(moves))
    assert len(moves) > 10


@pytest.mark.parametrize("kind", ["count", "count-slow", "time-slow"])
def test_after_a_storm_quiet_calls_close_it_and_the_totals_are_right(kind: str) -> None:
    storm = Storm(make_breaker(kind))
    storm.until = time.monotonic() + SECONDS / 4
    storm.blow()
    breaker = storm.breaker
    for _ in range(10):
        try:
            breaker.call(lambda: None)
        except CircuitOpenError as refusal:
            time.sleep(refusal.retry_after or 0)
    assert breaker.state == "closed"
    breaker.reset()
    for _ in range(30):
        breaker.call(lambda: None)
    snapshot = breaker.snapshot()
    assert (snapshot.failures, snapshot.in_flight) == (0, 0)
    assert snapshot.calls == (20 if kind.startswith("count") else snapshot.calls)


def test_events_of_one_breaker_arrive_in_the_order_of_seq_from_many_threads() -> None:
    breaker = make_breaker("count")
    arrived: list[int] = []

    def note(event: Event) -> None:
        arrived.append(event.seq)

    def failing() -> None:
        raise FlakyError

    def thread() -> None:
        for number in range(500):
            with contextlib.suppress(FlakyError, CircuitOpenError):
                breaker.call(failing)
            if number % 10 == 0:
                breaker.reset()

    with subscribe(note, CallFailed, CircuitStateChanged, name="storm"):
        threads = [threading.Thread(target=thread) for _ in range(THREADS)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert arrived == sorted(arrived)
    assert len(arrived) > 100
