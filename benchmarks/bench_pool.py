"""What the connection pool costs, in one run with those of other libraries.

    python benchmarks/bench_pool.py [--quick] [--only ROW ...] [--rounds N] [--backend trio] [--json PATH]

No server is needed: all pools open connections that do nothing. How to read the table: README.md beside this file.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Final

import anyio
import anyio.to_thread
import harness
from harness import Bar, Contender, Row, Sample, with_own_code
from pool_contenders import (
    OUR_LEASE,
    OURS,
    OURS_AT_ONCE,
    PEERS,
    PSYCOPG,
    PSYCOPG_PUT,
    REDIS,
    SEMAPHORE,
    Hold,
    Pool,
    Server,
    Use,
    bare,
)

from resilience.events import disable_logging

NAME: Final = "pool"
CONNECTIONS: Final = 4
TASKS: Final = 100
WAITERS: Final = (100, 1_000, 10_000)
BORROWERS: Final = 50
"""Who comes all at once in the spike of HikariCP."""
WARM: Final = 5
CONNECT_SECONDS: Final = 0.150
QUICK_FACTOR: Final = 0.1
"""By which the quick mode shortens the seconds of a spike."""
HOLDS: Final = {"2ms": 0.002, "200ms": 0.200}

Elsewhere = Callable[[Sample], Sample]
"""Makes a sample run in another loop."""


async def nothing() -> None:
    """Hold a connection for no time."""


def one_turn() -> Hold:
    """Return what holds a connection for one turn of the loop that runs now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return sys.modules["trio"].lowlevel.cancel_shielded_checkpoint  # type: ignore[no-any-return]
    return partial(asyncio.sleep, 0)


def here(sample: Sample) -> Sample:
    """Return the sample as it is, which runs in the loop of the benchmark."""
    return sample


def on_trio(sample: Sample) -> Sample:
    """Return the sample that runs in a trio loop of its own, in a thread."""

    async def elsewhere(calls: int) -> float:
        return await anyio.to_thread.run_sync(partial(anyio.run, sample, calls, backend="trio"))

    return elsewhere


# --- alone ---


async def again(use: Use, calls: int) -> float:
    """Borrow and give back so many times; tell the seconds."""
    started = perf_counter()
    for _ in range(calls):
        await use(nothing)
    return perf_counter() - started


def alone(pool: Pool, variant: str = "", run: Elsewhere = here) -> Contender:
    """Return the contender that borrows again and again, and is never in anybody's way."""

    async def build() -> Sample:
        async def sample(calls: int) -> float:
            async with pool.open(Server(), 1, CONNECTIONS) as use:
                await again(use, 10)
                return await again(use, calls)

        return run(with_own_code(sample))

    return pool.contender(build, variant)


async def without() -> Sample:
    """Await the same without a pool."""
    return with_own_code(partial(again, bare))


WITHOUT: Final = Contender(name="no pool", build=without)


# --- in a crowd ---


async def together(use: Use, hold: Hold, tasks: int, calls: int) -> float:
    """Share the calls among the tasks; tell the seconds from their common start to the last one's end."""
    start = anyio.Event()
    ended = 0.0

    async def work(turns: int) -> None:
        nonlocal ended
        await start.wait()
        for _ in range(turns):
            await use(hold)
        ended = perf_counter()

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(work, calls // tasks + (number < calls % tasks))
        await anyio.wait_all_tasks_blocked()
        started = perf_counter()
        start.set()
    return ended - started


def crowd(pool: Pool, tasks: int, variant: str = "", run: Elsewhere = here) -> Contender:
    """Return the contender whose tasks share a few connections, each of which is held for one turn of the loop."""

    async def build() -> Sample:
        async def sample(calls: int) -> float:
            async with pool.open(Server(), CONNECTIONS, CONNECTIONS) as use:
                hold = one_turn()
                await together(use, hold, min(tasks, TASKS), TASKS)
                return await together(use, hold, tasks, calls)

        return run(sample)

    return pool.contender(build, variant)


# --- a spike ---


async def spike(pool: Pool, hold_seconds: float, connect_seconds: float) -> tuple[float, int]:
    """Let all borrowers come at once; tell the seconds until the last is done, and the connections that were opened."""
    hold = partial(anyio.sleep, hold_seconds)
    server = Server(seconds=connect_seconds)
    async with pool.open(server, WARM, BORROWERS) as use:
        # What opening takes, and for how long they are held, is known by the time of the spike.
        await together(use, hold, WARM, 3 * WARM)
        before = server.opened
        seconds = await together(use, hold, BORROWERS, BORROWERS)
        return seconds, server.opened - before


def spiking(
    pool: Pool, hold: float, connect: float, *, count: bool, variant: str = "", run: Elsewhere = here
) -> Contender:
    """Return the contender that meets a spike.

    Args:
        pool: whose.
        hold: seconds that each borrower holds his connection.
        connect: seconds that opening one takes.
        count: tell the connections that were opened, in place of the seconds.
        variant: told with the name.
        run: where the sample runs.
    """

    async def build() -> Sample:
        async def sample(_: int) -> float:
            seconds, opened = await spike(pool, hold, connect)
            return opened if count else seconds

        return run(sample)

    return pool.contender(build, variant)


# --- the rows ---


def rows(*, quick: bool) -> list[Row]:
    """Return all rows."""
    return [
        Row(
            key="alone",
            title="borrow and give back, nobody in the way",
            baseline=WITHOUT,
            contenders=[alone(OURS), alone(OUR_LEASE), alone(OURS, "trio", on_trio), *map(alone, PEERS)],
            bars=[
                Bar(name=OURS.name, at_most=1_500.0),
                Bar(name=OURS.name, at_most=1 / 3, against=PSYCOPG_PUT.name),
            ],
        ),
        Row(
            key="crowd",
            title=f"{TASKS} tasks on {CONNECTIONS} connections, each held for one turn of the loop",
            unit="calls/s",
            stretch=5.0,
            contenders=[
                crowd(OURS, TASKS),
                crowd(OURS, TASKS, "trio", on_trio),
                *(crowd(pool, TASKS) for pool in (*PEERS, SEMAPHORE)),
            ],
            bars=[Bar(name=OURS.name, at_least=2.5, against=peer.name) for peer in (PSYCOPG, PSYCOPG_PUT, REDIS)],
        ),
        waiters_row(quick=quick),
        *(spike_row(name, count=count, quick=quick) for name in HOLDS for count in (False, True)),
    ]


def waiters_row(*, quick: bool) -> Row:
    """More and more who wait."""
    numbers = [number // 10 for number in WAITERS] if quick else WAITERS
    names = [f"{number:,} tasks" for number in numbers]
    return Row(
        key="waiters",
        title=f"more and more tasks on {CONNECTIONS} connections, each with at least three turns",
        unit="calls/s",
        calls=3 * max(numbers),
        rounds=3 if quick else 11,
        contenders=[
            crowd(pool, number, name) for pool in (OURS, SEMAPHORE) for number, name in zip(numbers, names, strict=True)
        ],
        bars=[Bar(name=f"{OURS.name}, {name}", at_least=0.8, against=f"{OURS.name}, {names[0]}") for name in names[1:]],
    )


def spike_row(name: str, *, count: bool, quick: bool) -> Row:
    """Everybody at once."""
    factor = QUICK_FACTOR if quick else 1.0
    hold, connect = HOLDS[name] * factor, CONNECT_SECONDS * factor
    what = "connections opened meanwhile" if count else "until the last is done"
    return Row(
        key=f"spike-{name}{'-opened' if count else ''}",
        title=f"{BORROWERS} at once, work {1e3 * hold:g} ms, connect {1e3 * connect:g} ms, {WARM} warm: {what}",
        unit="connects" if count else "ms",
        calls=1,
        rounds=2 if quick else 5,
        contenders=[
            spiking(OURS, hold, connect, count=count),
            spiking(OURS_AT_ONCE, hold, connect, count=count),
            spiking(OURS, hold, connect, count=count, variant="trio", run=on_trio),
            *(spiking(pool, hold, connect, count=count) for pool in PEERS if pool is not PSYCOPG_PUT),
        ],
        bars=[*spike_bars(name, count=count)],
    )


def spike_bars(name: str, *, count: bool) -> list[Bar]:
    """Few connections for short work, nearly as fast as anybody for long work: one configuration for both.

    A tenth more than those who open one for each: that is what not knowing how long work takes costs, once.
    """
    if count:
        return [Bar(name=OURS_AT_ONCE.name, at_most=6.0)] if name == "2ms" else []
    return [Bar(name=OURS_AT_ONCE.name, at_most=1.1, against=peer.name) for peer in (PSYCOPG, REDIS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows asked for."""
    keys = [row.key for row in rows(quick=True)]
    options = harness.arguments("What the connection pool costs.", keys, argv)
    # Opening and closing is told at severity info; the terminal is not what we measure.
    disable_logging()
    report = harness.run(NAME, rows(quick=options.quick), options, yardstick=OURS.name)
    harness.write(report, options.json)


if __name__ == "__main__":
    main()
