"""What the tests of clusters and sentinels share: ways to call a limiter, and looking at servers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
from anyio import to_thread

from resilience.events import Event, FallbackEntered, FallbackLeft, subscribe
from resilience.rate_limiter import Decision, Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisServer

WAYS: Final = ("asyncio", "trio", "threads")
LATE: Final = 0.25
"""Seconds that a caller may wait beyond its budget: these machines are shared, and have two processors."""
SOON: Final = 10.0
"""Seconds after which a test that waits for something gives up."""
PATIENT: Final = 2.0
"""A budget for tests in which nothing may fail, on a machine that is busy with something else."""
SLOW: Final = Quota(1000, 86_400.0)
"""Drains by nothing in the time of a test: what is used can be counted."""
STRICT: Final = Quota(1000, 86_400.0, algorithm="sliding_log")


def run(way: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a test; callers from threads need a loop only to be started from."""
    return anyio.run(function, *args, backend="trio" if way == "trio" else "asyncio")


def run_side_by_side(story: Callable[[str], Awaitable[Any]], trouble: Callable[[], None]) -> None:
    """Run one story in all ways at once, each in a loop of its own: what takes seconds is waited for once.

    Meanwhile `trouble` makes its trouble.
    """
    failures: list[BaseException] = []

    def one(work: Callable[..., Any], *args: Any) -> None:
        try:
            work(*args)
        except BaseException as failure:  # noqa: BLE001 - belongs to the test
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(run, way, story, way), daemon=True) for way in WAYS]
    threads.append(threading.Thread(target=one, args=(trouble,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * SOON)
        assert failures or not thread.is_alive(), "a story did not end"
    if failures:
        raise failures[0]


class Caller:
    """Calls a limiter from tasks of asyncio or trio, or from threads; keeps what it got."""

    def __init__(self, way: str, limiter: RateLimiter) -> None:
        self.way = way
        self.limiter = limiter
        self.decisions: list[Decision] = []
        self.longest = 0.0
        """Seconds that a call took."""
        self._threads = anyio.CapacityLimiter(500)

    async def __call__(self, operation: str = "try_acquire", *args: Any, **options: Any) -> Any:
        began = time.monotonic()
        if self.way == "threads":
            call = partial(getattr(self.limiter, f"{operation}_sync"), *args, **options)
            answer = await to_thread.run_sync(call, limiter=self._threads)
        else:
            answer = await getattr(self.limiter, operation)(*args, **options)
        self.longest = max(self.longest, time.monotonic() - began)
        if operation in ("try_acquire", "acquire", "at_most"):
            self.decisions.append(answer)
        return answer

    async def all(self, calls: Iterable[tuple[Any, ...]]) -> None:
        """Make calls side by side."""
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(self.__call__, *call)

    def granted(self) -> int:
        """Count the units that callers got."""
        return sum(decision.granted for decision in self.decisions)

    def sources(self) -> set[str]:
        """Tell who decided."""
        return {decision.source for decision in self.decisions}


async def use_everything(caller: Caller) -> None:
    """Ask for every operation once; the limit is 1000, without much of a refill."""
    call = caller
    assert (await call("try_acquire", "k", 10)).remaining == 990
    assert (await call("acquire", "k", 5, timeout=0)).remaining == 985
    assert (await call("at_most", "k", 2000)).granted == 985
    assert not (await call("try_acquire", "k")).allowed
    assert (await call("refund", "k", 15)).remaining == 15
    assert (await call("peek", "k", 15)).allowed
    assert not (await call("peek", "k", 16)).allowed
    await call("block", "k", 60)
    await call("reset", "k")
    assert (await call("try_acquire", "k")).remaining == 999
    assert (await call("try_acquire", "another")).remaining == 999
    assert caller.sources() - {"blocked"} == {"redis"}, caller.decisions


@contextmanager
def outages_of(*names: str) -> Iterator[list[Event]]:
    """Collect what is told of outages of these limiters: other stories go on beside this one."""
    heard: list[Event] = []

    def hear(event: Event) -> None:
        if event.name in names:
            heard.append(event)

    with subscribe(hear, FallbackEntered, FallbackLeft):
        yield heard


def kinds(events: Iterable[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def until(is_so: Callable[[], object], what: str, seconds: float = SOON) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {seconds} s until {what}"
        await anyio.sleep(0.005)


def clients_of(server: RedisServer) -> list[str]:
    """Give who is connected to a server, apart from other servers and who asks."""
    lines: str = server.command("CLIENT", "LIST", "TYPE", "normal")
    others = ("cmd=client", "cmd=restore", "name=sentinel-")  # who asks, who moves a slot, who watches
    return [line for line in lines.splitlines() if not any(word in line for word in others)]


def scripts_run(server: RedisServer) -> int:
    """Count the calls of a script that a server has run."""
    stats = server.info("commandstats")
    counts = (stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats)
    fields = [dict(field.split("=") for field in one.split(",")) for one in counts]
    return sum(int(one["calls"]) - int(one["failed_calls"]) for one in fields)


async def close_and_check(store: RedisStore, servers: Iterable[RedisServer]) -> None:
    """Close a store, and see that nothing of it is left: no task, no thread, no connection."""
    threads = {thread for thread in threading.enumerate() if thread.name == "resilience rate limiter"}
    worker = store.threads._thread
    try:
        before: set[Any] = set(asyncio.all_tasks())
    except RuntimeError:
        before = set()
    await store.aclose()
    if before:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await until(lambda: all(task.done() for task in left), "all tasks had ended", 1.0)
    assert worker is None or not worker.is_alive()
    assert len({thread for thread in threads if thread.is_alive()}) <= len(threads) - (worker is not None)
    await until(lambda: not any(clients_of(server) for server in servers), "all connections were closed")
