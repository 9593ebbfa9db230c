"""What a circuit breaker adds to a call, in one run with those of other libraries.

    python benchmarks/bench_circuit_breaker.py [--quick] [--only ROW ...] [--rounds N] [--backend trio] [--json PATH]

How to read the table, and how to compare two runs: README.md beside this file.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from time import perf_counter
from typing import Final

import harness
import structlog
from breaker_contenders import (
    CIRCUITBREAKER,
    FLUXGATE,
    HYX,
    INTERLOCK,
    LIBRARIES,
    OURS,
    PURGATORY,
    PYBREAKER,
    PYRESILIENCE,
    SYNC_LIBRARIES,
    Library,
    failing_now_and_then,
    interlock_breaker,
    nothing,
    nothing_sync,
    our_breaker,
)
from harness import Bar, Contender, Row, Sample, brought_by, importing, repeated, repeated_sync, with_own_code

from resilience import subscribe
from resilience.events import CallSucceeded, disable_logging, enable_logging

NAME: Final = "circuit_breaker"
THREADS: Final = 8
SECONDS: Final = (10, 60, 300)
HEAVY: Final = ("redis", "structlog", "tenacity")
"""What `import resilience` must not import: 0.1 s and more of somebody else's modules."""


async def bare() -> Sample:
    """Await the coroutine function itself."""
    return repeated(nothing)


async def bare_mixed() -> Sample:
    """Await a coroutine function that fails now and then, and catch it."""
    return repeated(failing_now_and_then(), catching=ConnectionError)


async def bare_sync() -> Sample:
    """Call the function itself."""
    return repeated_sync(nothing_sync)


BARE = Contender(name="the bare await", build=bare)
BARE_MIXED = Contender(name="the bare await and except", build=bare_mixed)
BARE_SYNC = Contender(name="the bare call", build=bare_sync)


def hear(_event: object) -> None:
    """Listen, and do nothing."""


@contextmanager
def unlogged() -> Iterator[None]:
    """Switch the default log off for a while."""
    disable_logging()
    try:
        yield
    finally:
        enable_logging()


async def heard() -> Sample:
    """Let one sink listen to our calls while the sample runs, and not while others run."""
    timed = repeated(our_breaker(name="heard")(nothing))

    async def sample(calls: int) -> float:
        with subscribe(hear, CallSucceeded, name="heard"):
            return await timed(calls)

    return sample


class Hearing:
    """A listener of interlock-cb that does nothing."""

    def on_call(self, **_: object) -> None:
        """Hear."""


async def empty_loop() -> Sample:
    """Loop, and do nothing."""

    async def sample(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            pass
        return perf_counter() - started

    return sample


async def unheard() -> Sample:
    """Ask whether anybody listens, as every call site does before it builds an event."""

    async def sample(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            if CallSucceeded.sinks:
                raise RuntimeError("somebody listens")
        return perf_counter() - started

    return sample


def in_threads(guarded: Callable[[], object]) -> Sample:
    """Return the sample that shares its calls among threads; the time ends with the last of them."""

    async def sample(calls: int) -> float:
        together = threading.Barrier(THREADS + 1)

        def work() -> None:
            together.wait()
            for _ in range(calls // THREADS):
                guarded()

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        # Read before the start: after it, this thread would queue behind all others for the interpreter.
        started = perf_counter()
        together.wait()
        for thread in threads:
            thread.join()
        return perf_counter() - started

    return with_own_code(sample)


def threaded(library: Library) -> Contender:
    """Return the contender whose one breaker is shared by all threads."""

    async def build() -> Sample:
        return in_threads(library.guard(nothing_sync))

    return library.contender(build)


async def bare_block() -> Sample:
    """Await within a coroutine function, which is what the blocks stand in."""

    async def block() -> None:
        await nothing()

    return repeated(block)


async def our_async_block() -> Sample:
    """Guard a block with `async with`."""
    breaker = our_breaker()

    async def block() -> None:
        async with breaker.guard():
            await nothing()

    return repeated(block)


async def our_block() -> Sample:
    """Guard a block with `with`."""
    breaker = our_breaker()

    async def block() -> None:
        with breaker.guard():
            await nothing()

    return repeated(block)


async def interlock_block() -> Sample:
    """Guard a block with interlock-cb."""
    breaker = interlock_breaker()

    async def block() -> None:
        async with breaker:
            await nothing()

    return repeated(block)


async def hyx_block() -> Sample:
    """Guard a block with hyx."""
    breaker = import_module("hyx.circuitbreaker").consecutive_breaker()

    async def block() -> None:
        async with breaker:
            await nothing()

    return repeated(block)


async def purgatory_block() -> Sample:
    """Guard a block with purgatory, which looks its breaker up in every block."""
    factory = import_module("purgatory").AsyncCircuitBreakerFactory()

    async def block() -> None:
        async with await factory.get_breaker("benchmark"):
            await nothing()

    return repeated(block)


def time_window_bars() -> Iterator[Bar]:
    """A quarter of interlock-cb at every length of window, and no dearer for a longer one."""
    for seconds in SECONDS:
        yield Bar(name=f"resilience, {seconds} s", at_most=1 / 4, against=f"interlock-cb, {seconds} s")
    yield Bar(name=f"resilience, {SECONDS[-1]} s", at_most=1.1, against=f"resilience, {SECONDS[0]} s")


ROWS: Final = (
    Row(
        key="success",
        title="async success, window of 100 calls, defaults",
        baseline=BARE,
        contenders=[library.succeeding() for library in LIBRARIES],
        bars=[
            Bar(name="resilience", at_most=1.1, against="circuitbreaker"),
            Bar(name="resilience", at_most=1 / 6, against="interlock-cb"),
        ],
    ),
    Row(
        key="time-window",
        title="async success, time window with slow calls (ours: those in flight as well)",
        baseline=BARE,
        contenders=[
            library.succeeding(f"{seconds} s", seconds=seconds)
            for library in (OURS, INTERLOCK, FLUXGATE)
            for seconds in SECONDS
        ],
        bars=[*time_window_bars()],
    ),
    Row(
        key="rejected",
        title="a rejected async call, its exception caught; ours with the default log, and without",
        contenders=[
            OURS.rejecting(),
            OURS.rejecting("log off", around=unlogged),
            *(library.rejecting() for library in LIBRARIES if library is not OURS),
        ],
        bars=[
            Bar(name="resilience", at_most=1 / 2, against="interlock-cb"),
            Bar(name="resilience, log off", at_most=1 / 2, against="interlock-cb"),
        ],
    ),
    Row(
        key="unheard",
        title="an event nobody hears",
        baseline=Contender(name="the empty loop", build=empty_loop),
        contenders=[Contender(name="if CallSucceeded.sinks:", build=unheard)],
        bars=[Bar(name="if CallSucceeded.sinks:", at_most=20.0)],
    ),
    Row(
        key="import",
        title="import in a fresh interpreter",
        unit="ms",
        calls=1,
        contenders=[importing("resilience", "anyio-resilience"), importing("anyio", "anyio")],
        bars=[Bar(name="import resilience", at_most=1.5, against="import anyio")],
    ),
    Row(
        key="mixed",
        title="async, one call in 50 fails, window of 100 calls",
        baseline=BARE_MIXED,
        contenders=[library.mostly_succeeding() for library in LIBRARIES],
    ),
    Row(
        key="sync",
        title="sync success, window of 100 calls",
        baseline=BARE_SYNC,
        contenders=[library.succeeding_sync() for library in SYNC_LIBRARIES],
    ),
    Row(
        key="heard",
        title="async success with one listener to successes",
        baseline=BARE,
        contenders=[
            OURS.succeeding(),
            OURS.contender(heard, "one listener"),
            INTERLOCK.succeeding("one listener", listener=Hearing()),
        ],
    ),
    Row(
        key="block",
        title="async success in a context manager",
        baseline=Contender(name="the bare block", build=bare_block),
        contenders=[
            OURS.contender(our_async_block, "async with"),
            OURS.contender(our_block, "with"),
            INTERLOCK.contender(interlock_block),
            HYX.contender(hyx_block),
            PURGATORY.contender(purgatory_block),
            PYBREAKER.succeeding(),
        ],
    ),
    Row(
        key="window-1000",
        title="async success, window of 1,000 calls",
        baseline=BARE,
        contenders=[library.succeeding(calls=1000) for library in (OURS, INTERLOCK, PYRESILIENCE, FLUXGATE)],
    ),
    Row(
        key="threads",
        title=f"sync success, {THREADS} threads on one breaker, all together",
        unit="calls/s",
        contenders=[threaded(library) for library in (OURS, CIRCUITBREAKER, INTERLOCK, PYRESILIENCE, PYBREAKER)],
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows asked for."""
    options = harness.arguments("What a circuit breaker adds to a call.", [row.key for row in ROWS], argv)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - a device, not a path of ours
        # The log is part of what we measure; the terminal it usually ends on is not.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        report = harness.run(NAME, ROWS, options, yardstick="resilience")
        disable_logging()
    if options.only is None or "import" in options.only:
        report["heavy_imports"] = brought_by("resilience", HEAVY)
        told = ", ".join(report["heavy_imports"]) or "none"
        print(f"\nimport resilience brings {told} of {', '.join(HEAVY)}")
    harness.write(report, options.json)


if __name__ == "__main__":
    main()
