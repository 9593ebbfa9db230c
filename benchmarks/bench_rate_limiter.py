"""What a decision of the rate limiter costs, in one run with those of other libraries.

    python benchmarks/bench_rate_limiter.py [--quick] [--only ROW ...] [--rounds N] [--backend trio] [--json PATH]

The Redis rows run against a Valkey server that this script starts. How to read the table: README.md beside this file.
"""

import gc
import os
import statistics
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from time import perf_counter
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import harness
import structlog
from harness import Bar, Contender, Row, Sample, brought_by, importing, version_of, with_own_code
from rate_limiter_contenders import (
    AMPLE,
    HOUR,
    LIMITS,
    OURS,
    PLAIN,
    PYRATE,
    RAW,
    THROTTLED,
    Ask,
    AskSync,
    Connect,
    Library,
    our_limiter,
    our_redis,
)
from valkey_server import PACKAGE, Server

from resilience.events import disable_logging
from resilience.rate_limiter import MemoryStore

Elsewhere = Callable[[Sample], Sample]
"""Makes a sample run in another loop."""

NAME: Final = "rate_limiter"
ONE_KEY: Final = 1_000_000_000
"""Units per hour of the only key: it is asked for a million times a second."""
MANY_KEYS: Final = 3_600
"""Units per hour of each of many keys: each has its turn again, in the next round at the latest, before it drains."""
KEYS: Final = 10_000
"""As many as a store of ours holds by default."""
TASKS: Final = (1, 10, 100, 1_000)
CALLERS: Final = 10
"""Who asks at the moment when Redis goes away."""
BUDGET: Final = 250.0
"""Milliseconds that a caller of ours waits for the store by default."""
HELD: Final = 10
"""Units per hour in the rows of bytes: a key that was asked for once must be held for minutes."""
HEAVY: Final = ("redis", "structlog", "tenacity")


# --- in this process ---


def turning(keys: Sequence[str], ask: AskSync) -> Sample:
    """Return the sample that asks for one key after the other, again and again."""
    turns = cycle(keys)

    async def sample(calls: int) -> float:
        now = islice(turns, calls)
        started = perf_counter()
        for key in now:
            ask(key)
        return perf_counter() - started

    return with_own_code(sample)


def turning_async(keys: Sequence[str], ask: Ask) -> Sample:
    """Return the same for what must be awaited."""
    turns = cycle(keys)

    async def sample(calls: int) -> float:
        now = islice(turns, calls)
        started = perf_counter()
        for key in now:
            await ask(key)
        return perf_counter() - started

    return with_own_code(sample)


async def empty_loop() -> Sample:
    """Loop over a key, and do nothing."""
    turns = cycle(["user:0"])

    async def sample(calls: int) -> float:
        now = islice(turns, calls)
        started = perf_counter()
        for _ in now:
            pass
        return perf_counter() - started

    return sample


EMPTY_LOOP: Final = Contender(name="the empty loop", build=empty_loop)


def in_memory(library: Library, keys: int, limit: int) -> Contender:
    """Return the contender that asks in this process, for so many keys by turns."""

    async def build() -> Sample:
        ask = library.in_memory(keys, limit)
        timed = turning(names(keys), ask)

        async def sample(calls: int) -> float:
            seconds = await timed(calls)
            library.must_admit(ask(names(1)[0]))
            return seconds

        return sample

    return library.contender(build)


def awaited(keys: int, limit: int) -> Contender:
    """Return ours, asked from a task."""

    async def build() -> Sample:
        return turning_async(names(keys), our_limiter(limit, MemoryStore(keys)).try_acquire)

    return OURS.contender(build, "awaited")


async def aiolimiter() -> Sample:
    """Ask aiolimiter, which waits instead of refusing."""
    limiter = import_module("aiolimiter").AsyncLimiter(ONE_KEY, HOUR)
    return turning_async(names(1), lambda _: limiter.acquire())


AIOLIMITER: Final = Contender(
    name="aiolimiter", distribution="aiolimiter", build=aiolimiter, note="awaited; one limit, no keys"
)


def names(count: int) -> list[str]:
    """Return so many keys."""
    return [f"user:{number:08}" for number in range(count)]


# --- on Redis ---


def here(sample: Sample) -> Sample:
    """Return the sample as it is, which runs in the loop of the benchmark."""
    return sample


def on_trio(sample: Sample) -> Sample:
    """Return the sample that runs in a trio loop of its own, in a thread."""

    async def elsewhere(calls: int) -> float:
        return await anyio.to_thread.run_sync(partial(anyio.run, sample, calls, backend="trio"))

    return elsewhere


async def together(ask: Ask, tasks: int, calls: int) -> float:
    """Share the calls among tasks with a key each; tell the seconds from their common start to the last answer."""
    start = anyio.Event()
    ended = 0.0

    async def work(key: str, turns: int) -> None:
        nonlocal ended
        await start.wait()
        for _ in range(turns):
            await ask(key)
        ended = perf_counter()

    async with anyio.create_task_group() as group:
        for number, key in enumerate(names(tasks)):
            group.start_soon(work, key, calls // tasks + (number < calls % tasks))
        await anyio.wait_all_tasks_blocked()
        started = perf_counter()
        start.set()
    return ended - started


def racing(library: Library, server: Server, tasks: int, variant: str = "", run: Elsewhere = here) -> Contender:
    """Return the contender whose tasks all ask at the same time; each sample has connections of its own, opened before.

    Args:
        library: whom to ask.
        server: where.
        tasks: how many.
        variant: told with the name.
        run: where the sample runs.
    """

    async def build() -> Sample:
        url = server.url
        connect = await library.on_redis(url)

        async def sample(calls: int) -> float:
            async with connect(url, AMPLE, tasks) as ask:
                await together(ask, tasks, tasks)
                seconds = await together(ask, tasks, calls)
                library.must_admit(await ask(names(1)[0]))
                return seconds

        return run(sample)

    return library.contender(build, variant)


# --- without Redis ---


@dataclass(frozen=True, kw_only=True)
class Outage:
    """How a server goes away, and after how many seconds nobody waits for its callers any more."""

    name: str
    begin: Callable[[Server], None]
    patience: float


def going_away(
    library: Library, connect: Connect | None, outage: Outage, variant: str = "", run: Elsewhere = here
) -> Contender:
    """Return the contender whose callers ask a server of their own at the moment when that has gone away.

    Args:
        library: whom to ask.
        connect: how it connects.
        outage: how the server goes, and how long callers are waited for.
        variant: told with the name.
        run: where the sample runs.
    """

    async def build() -> Sample:
        if connect is None:
            raise RuntimeError("no limiter on Redis")

        async def sample(_: int) -> float:
            with Server() as server:
                async with connect(server.url, AMPLE, CALLERS) as ask:
                    await together(ask, CALLERS, CALLERS)
                    outage.begin(server)
                    return await together(patient(ask, outage.patience), CALLERS, CALLERS)

        return run(sample)

    return library.contender(build, variant)


def patient(ask: Ask, patience: float) -> Ask:
    """Ask, take any error for an answer, and give up after so many seconds."""

    async def bounded(key: str) -> None:
        with anyio.move_on_after(patience), suppress(Exception):
            await ask(key)

    return bounded


def gone(outage: Outage, variant: str = "", run: Elsewhere = here) -> Contender:
    """Return ours, asked when the server has gone away and somebody has found out: the median of single calls."""

    async def build() -> Sample:
        async def sample(calls: int) -> float:
            with Server() as server:
                async with our_redis(server.url, AMPLE, CALLERS) as ask:
                    await together(ask, CALLERS, CALLERS)
                    outage.begin(server)
                    await together(ask, CALLERS, CALLERS)
                    return calls * statistics.median([await timed(ask, key) for key in names(calls)])

        return run(sample)

    return OURS.contender(build, outage.name + variant)


async def timed(ask: Ask, key: str) -> float:
    """Tell the seconds of one call, and let others run after it: whoever looks after the server, say."""
    started = perf_counter()
    decision = await ask(key)
    taken = perf_counter() - started
    if decision.source != "fallback":
        raise RuntimeError(f"a server that is not there decided: {decision.source}")
    await anyio.lowlevel.checkpoint()
    return taken


# --- bytes ---


def leaving(library: Library, make: Callable[[], AskSync], keys: int, variant: str = "") -> Contender:
    """Return the contender that tells the bytes which so many keys leave behind, their names included."""

    async def build() -> Sample:
        async def sample(_: int) -> float:
            ask = make()
            ask("user")
            gc.collect()
            tracemalloc.start()
            try:
                for number in range(keys):
                    ask(f"user:{number:08}")
                gc.collect()
                return tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()

        await sample(1)  # what is imported or made once counts for no key
        return sample

    return library.contender(build, variant)


def holding(keys: int) -> list[Contender]:
    """Return everybody, each with a limiter that holds so many keys."""
    return [
        leaving(library, partial(library.in_memory, keys, HELD), keys)
        for library in (OURS, LIMITS, THROTTLED, PYRATE, PLAIN)
    ]


def overflowing(keys: int, *, spill: bool) -> Contender:
    """Return ours, which holds so many keys and was asked for ten times as many."""
    variant = "10x the keys" if spill else "10x the keys, no sketch"
    return leaving(OURS, lambda: our_limiter(HELD, MemoryStore(keys, spill=spill)).try_acquire_sync, 10 * keys, variant)


# --- the rows ---


def rows(server: Server, *, quick: bool) -> list[Row]:
    """Return all rows, those on Redis against this server."""
    patience = 0.1 if quick else 3.0
    stalled = Outage(name="stalled", begin=Server.stall, patience=patience)
    down = Outage(name="down", begin=Server.kill, patience=patience)
    keys = KEYS // 100 if quick else KEYS
    few = 2 if quick else 5
    return [
        *memory_rows(),
        *(redis_row(server, tasks, quick=quick) for tasks in TASKS),
        outage_row(stalled, few),
        outage_row(down, few),
        Row(
            key="gone",
            title="one decision after somebody found out that the server is gone (median of single calls)",
            unit="us",
            calls=1_000,
            rounds=few,
            contenders=[gone(outage, *where) for outage in (stalled, down) for where in ((), (", trio", on_trio))],
            bars=[
                Bar(name=f"resilience, {outage.name}{where}", at_most=20.0)
                for outage in (stalled, down)
                for where in ("", ", trio")
            ],
        ),
        Row(
            key="bytes",
            title=f"what each of {keys:,} keys leaves behind in this process, its name included",
            unit="bytes",
            calls=keys,
            rounds=2,
            contenders=[*holding(keys), overflowing(keys, spill=False), overflowing(keys, spill=True)],
            bars=[
                Bar(name="resilience", at_most=200.0),
                Bar(name="resilience, 10x the keys, no sketch", at_most=1.05, against="resilience"),
            ],
        ),
        Row(
            key="bytes-many",
            title=f"what each of {10 * keys:,} keys leaves behind",
            unit="bytes",
            calls=10 * keys,
            rounds=2,
            contenders=holding(10 * keys),
            bars=[Bar(name="resilience", at_most=200.0)],
        ),
        Row(
            key="import",
            title="import in a fresh interpreter",
            unit="ms",
            calls=1,
            rounds=few,
            contenders=[importing(module, distribution) for module, distribution in MODULES.items()],
        ),
    ]


MODULES: Final = {
    "resilience.rate_limiter": "anyio-resilience",
    "anyio": "anyio",
    "limits": "limits",
    "throttled": "throttled-py",
    "pyrate_limiter": "pyrate-limiter",
    "aiolimiter": "aiolimiter",
}


def memory_rows() -> Iterator[Row]:
    """One key, and as many as the store holds by default."""
    bars = [Bar(name="resilience", at_most=1 / 3, against=library.name) for library in (LIMITS, THROTTLED)]
    libraries = (OURS, LIMITS, THROTTLED, PYRATE, PLAIN)
    yield Row(
        key="memory",
        title="one unit of one key in this process, admitted",
        baseline=EMPTY_LOOP,
        contenders=[*(in_memory(library, 1, ONE_KEY) for library in libraries), awaited(1, ONE_KEY), AIOLIMITER],
        bars=bars,
    )
    yield Row(
        key="memory-keys",
        title=f"the same with {KEYS:,} keys by turns",
        baseline=EMPTY_LOOP,
        contenders=[*(in_memory(library, KEYS, MANY_KEYS) for library in libraries), awaited(KEYS, MANY_KEYS)],
        bars=bars,
    )


def redis_row(server: Server, tasks: int, *, quick: bool) -> Row:
    """So many tasks, a key each."""
    one = tasks == 1
    return Row(
        key=f"redis-{tasks}",
        title="one task on Redis" if one else f"{tasks:,} tasks on Redis, a key each, all together",
        unit="us" if one else "calls/s",
        calls=tasks if quick else None,  # to find out how many fit takes longer than a quick run may
        stretch=5.0 if tasks <= 100 else 20.0,
        rounds=None if tasks <= 100 else 2 if quick else 11,
        contenders=[
            racing(OURS, server, tasks),
            racing(OURS, server, tasks, "trio", on_trio),
            *(racing(library, server, tasks) for library in (LIMITS, THROTTLED, PYRATE, RAW)),
        ],
        bars=[*redis_bars(tasks)],
    )


def redis_bars(tasks: int) -> Iterator[Bar]:
    """Cheap for one task, and many times faster than others for a hundred, on both loops."""
    if tasks == 1:
        yield Bar(name="resilience", at_most=1.15, against=RAW.name)
    if tasks == 100:
        for library in (LIMITS, THROTTLED):
            yield Bar(name="resilience", at_least=6.0, against=library.name)
            yield Bar(name="resilience, trio", at_least=4.0, against=library.name)


def outage_row(outage: Outage, rounds: int) -> Row:
    """Those who ask when the server has just gone away."""
    return Row(
        key=outage.name,
        title=f"the slowest of {CALLERS} callers when the server is {outage.name}; watched for {outage.patience:g} s",
        unit="ms",
        calls=1,
        rounds=rounds,
        contenders=[
            going_away(OURS, OURS.redis, outage),
            going_away(OURS, OURS.redis, outage, "trio", on_trio),
            *(
                going_away(library, library.redis_default, outage, "default client")
                for library in (RAW, LIMITS, THROTTLED)
            ),
        ],
        # A timer fires a little after its time.
        bars=[Bar(name=name, at_most=1.1 * BUDGET) for name in ("resilience", "resilience, trio")],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows asked for."""
    with Server() as server, open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - a device, not a path of ours
        keys = [row.key for row in rows(server, quick=True)]
        options = harness.arguments("What a decision of the rate limiter costs.", keys, argv)
        # The log is part of what we measure; the terminal it usually ends on is not.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        report = harness.run(NAME, rows(server, quick=options.quick), options, yardstick="resilience")
        disable_logging()
    report["versions"][PACKAGE] = version_of(PACKAGE)
    if options.only is None or "import" in options.only:
        report["heavy_imports"] = brought_by("resilience.rate_limiter", HEAVY)
        told = ", ".join(report["heavy_imports"]) or "none"
        print(f"\nimport resilience.rate_limiter brings {told} of {', '.join(HEAVY)}")
    harness.write(report, options.json)


if __name__ == "__main__":
    main()
