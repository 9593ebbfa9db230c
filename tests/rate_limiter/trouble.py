"""What the tests of trouble share: ways to call a limiter, and stories of an outage from its beginning to its end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

import anyio
from anyio import to_thread

from resilience.events import Event, subscribe
from resilience.rate_limiter import Decision, Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisServer

WAYS: Final = ("asyncio", "trio", "threads")
LATE: Final = 0.25
"""Seconds that a caller may wait beyond its budget: these machines are shared, and have two processors."""
PATIENT: Final = 3.0
"""A budget for tests of anything but the budget: on a machine that is busy a quarter of a second is soon gone."""
SOON: Final = 10.0
"""Seconds after which a test that waits for something gives up."""
SLOW_QUOTA: Final = Quota(1000, 86_400.0)
"""Drains by nothing in the time of a test: what is used can be counted."""


def run(way: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a test; callers from threads need a loop only to be started from."""
    return anyio.run(function, *args, backend="trio" if way == "trio" else "asyncio")


def run_again(way: str, test: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run a test of exact times up to three times: this machine may be busy with something else for a while."""
    for attempt in range(3):
        try:
            run(way, test, *args)
        except AssertionError:
            if attempt == 2:
                raise
        else:
            return


class Answer(NamedTuple):
    decision: Decision
    waited: float


class Caller:
    """Calls limiters from tasks of asyncio or trio, or from threads."""

    def __init__(self, way: str) -> None:
        self.way = way
        self._threads = anyio.CapacityLimiter(500)

    async def ask(self, limiter: RateLimiter, operation: str = "try_acquire", *args: Any, **options: Any) -> Answer:
        """Make one call, and say how long it took."""
        if self.way == "threads":
            call = partial(getattr(limiter, f"{operation}_sync"), *args, **options)
            return await to_thread.run_sync(_timed, call, limiter=self._threads)
        began = time.monotonic()
        decision = await getattr(limiter, operation)(*args, **options)
        return Answer(decision, time.monotonic() - began)

    async def ask_at_once(self, limiter: RateLimiter, times: int, *args: Any, **options: Any) -> list[Answer]:
        """Make so many calls side by side; gives the answers in no order."""
        answers: list[Answer] = []

        async def one() -> None:
            answers.append(await self.ask(limiter, *args, **options))

        async with anyio.create_task_group() as group:
            for _ in range(times):
                group.start_soon(one)
        return answers


def _timed(call: Callable[[], Decision]) -> Answer:
    began = time.monotonic()
    decision = call()
    return Answer(decision, time.monotonic() - began)


@contextmanager
def events_of(*names: str) -> Iterator[list[Event]]:
    """Collect the events of these components only: other stories go on beside this one."""
    heard: list[Event] = []

    def hear(event: Event) -> None:
        if event.name in names:
            heard.append(event)

    with subscribe(hear):
        yield heard


async def until(is_so: Callable[[], object], what: str, seconds: float = SOON) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {seconds} s until {what}"
        await anyio.sleep(0.005)


async def until_redis(caller: Caller, limiter: RateLimiter, key: str = "key", seconds: float = 6.0) -> list[Answer]:
    """Call until the server decides again; gives all answers."""
    answers: list[Answer] = []
    deadline = time.monotonic() + seconds
    while not answers or answers[-1].decision.source != "redis":
        assert time.monotonic() < deadline, f"not back in {seconds} s"
        answers.append(await caller.ask(limiter, "try_acquire", key))
        await anyio.sleep(0.01)
    return answers


def clients_of(server: RedisServer) -> list[str]:
    """Give who is connected to a server, the one who asks and replicas apart."""
    lines: str = server.command("CLIENT", "LIST", "TYPE", "normal")
    return [line for line in lines.splitlines() if "cmd=client" not in line]


def immortal_keys(server: RedisServer, pattern: str) -> list[str]:
    """Give the keys of a server that have no time to live."""
    return [key for key in server.command("KEYS", pattern) if server.command("PTTL", key) < 0]


def scripts_run(server: RedisServer) -> int:
    """Count the trips that a server has seen."""
    stats = server.info("commandstats")
    return sum(int(stats[name].split("=")[1].split(",")[0]) for name in ("cmdstat_evalsha",) if name in stats)


def tasks_of(store: RedisStore) -> set[asyncio.Task[None]]:
    """Give the tasks of this loop that work for a store."""
    trips = store._loops.get(asyncio.get_running_loop())
    return set() if trips is None else trips._tasks & asyncio.all_tasks()


def worker_of(store: RedisStore) -> threading.Thread | None:
    """Give the thread that works for a store."""
    return store.threads._thread


async def close_and_check(store: RedisStore, way: str, server: RedisServer) -> None:
    """Close a store, and see that nothing of it is left."""
    worker = worker_of(store)
    await store.aclose()
    if way == "asyncio":
        assert not tasks_of(store)
    assert worker is None or not worker.is_alive()
    assert worker_of(store) is None
    await until(lambda: not clients_of(server), "all connections were closed")
