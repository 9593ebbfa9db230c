"""Measures what the decisions about the connection pool speak of; `measure.py` runs it.

Counts and durations of simulations are on virtual time, and the same on every machine.
"""
# ruff: noqa: ASYNC100, INP001, S311 - a script beside the pages that cite it; of scopes it measures the price, of
# chance it wants the same each time

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any, Final, Protocol

import anyio

from resilience.pool import ConnectionPool
from resilience.testing import VirtualClock

ROUNDS: Final = 15
TIMES: Final = 20_000
Say = Callable[[str, str, float, str], None]


def measure(say: Say, best_async: Callable[..., float]) -> None:
    """Measure, and tell by decision."""
    _fast_path(say, best_async)
    _crowd(say)
    _impatience(say)
    _growth(say)


# --- 0016 ---


def _fast_path(say: Say, best_async: Callable[..., float]) -> None:
    async def scope() -> None:
        for _ in range(TIMES):
            with anyio.move_on_after(30):
                pass

    async def timer() -> None:
        for _ in range(TIMES):
            async with asyncio.timeout(30):
                pass

    async def checkpoint() -> None:
        for _ in range(TIMES):
            await anyio.lowlevel.checkpoint()

    async def borrow() -> None:
        async with ConnectionPool(_open, min_size=1) as pool:
            await pool.wait_ready()
            for _ in range(TIMES):
                async with pool.acquire():
                    pass

    say("0016", "a cancel scope with a deadline", best_async(scope), "ns")
    say("0016", "a timeout of asyncio", best_async(timer), "ns")
    say("0016", "a checkpoint", best_async(checkpoint), "ns")
    say("0016", "to borrow a connection and give it back", best_async(borrow), "ns")


async def _open() -> object:
    return object()


def _crowd(say: Say) -> None:
    """100 tasks on 4 connections, each held for a turn of the loop."""
    for what, wrap in (("one keeper for all deadlines", False), ("a cancel scope for each who waits", True)):
        say("0016", f"a borrowing of 100 tasks on 4 connections, {what}", min(_turns(wrap) for _ in range(5)), "ns")


def _turns(wrap: bool) -> float:  # noqa: FBT001 - of this file alone
    async def main() -> float:
        async with ConnectionPool(_open, min_size=4, max_size=4) as pool:
            await pool.wait_ready()

            async def work() -> None:
                for _ in range(200):
                    if wrap:
                        with anyio.fail_after(30):
                            async with pool.acquire():
                                await asyncio.sleep(0)
                    else:
                        async with pool.acquire():
                            await asyncio.sleep(0)

            began = perf_counter()
            await asyncio.gather(*(work() for _ in range(100)))
            return (perf_counter() - began) / 20_000 * 1e9

    return asyncio.run(main())


# --- 0017 ---


class _Pool(Protocol):
    async def acquire(self) -> object: ...
    def release(self, connection: object) -> None: ...


class _Callers:
    """A pool whose callers connect: who is cancelled takes the attempt along."""

    def __init__(self, connect: Callable[[], Awaitable[object]]) -> None:
        self._connect = connect
        self._idle: deque[object] = deque()
        self._room = anyio.Semaphore(5)

    async def acquire(self) -> object:
        await self._room.acquire()
        try:
            return self._idle.pop() if self._idle else await self._connect()
        except BaseException:
            self._room.release()
            raise

    def release(self, connection: object) -> None:
        self._idle.append(connection)
        self._room.release()


class _Ours:
    """Our pool, in the same words."""

    def __init__(self, pool: ConnectionPool[object]) -> None:
        self._pool = pool

    async def acquire(self) -> Any:
        return await self._pool.acquire()

    def release(self, lease: Any) -> None:
        lease.release()


def _impatience(say: Say) -> None:
    """Opening takes 120 ms, and callers who come every 10 ms have 100 ms of patience."""
    for what, own in (("callers connect", False), ("the pool connects", True)):
        connects, served = VirtualClock().run(partial(_impatient, own))
        say("0017", f"1,000 callers with 100 ms, connects of 120 ms: served, {what}", served, "calls")
        say("0017", f"1,000 callers with 100 ms, connects of 120 ms: connects, {what}", connects, "connects")


async def _impatient(own: bool) -> tuple[int, int]:  # noqa: FBT001 - as above
    connects = served = 0

    async def connect() -> object:
        nonlocal connects
        connects += 1
        await anyio.sleep(0.12)
        return object()

    async def call(pool: _Pool) -> None:
        nonlocal served
        with anyio.move_on_after(0.1):
            connection = await pool.acquire()
            try:
                await anyio.sleep(0.02)
            finally:
                pool.release(connection)
            served += 1

    async def come(pool: _Pool) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(1_000):
                group.start_soon(call, pool)
                await anyio.sleep(0.01)

    if own:
        async with ConnectionPool(connect, max_size=5, clock=anyio.current_time, rng=random.Random(1)) as pool:
            await come(_Ours(pool))
    else:
        await come(_Callers(connect))
    return connects, served


# --- 0018 ---


def _growth(say: Say) -> None:
    """50 callers at once, 5 connections open, opening takes 150 ms."""
    for hold in (0.002, 0.2):
        for what, options, used in (
            ("by cost, 4 at a time", {}, True),
            ("by cost, 50 at a time", {"max_connecting": 50}, True),
            ("by cost, 4 at a time, not used before", {}, False),
            ("by cost, 50 at a time, not used before", {"max_connecting": 50}, False),
            ("one for each, 4 at a time", {"grow": "demand"}, True),
            ("one for each, 50 at a time", {"grow": "demand", "max_connecting": 50}, True),
        ):
            opened, seconds = VirtualClock().run(partial(_spike, hold, options, used=used))
            title = f"work of {1e3 * hold:.0f} ms, {what}"
            say("0018", f"{title}: opened", opened, "connects")
            say("0018", f"{title}: the last is done", 1e3 * seconds, "ms")


async def _spike(hold: float, options: dict[str, Any], *, used: bool) -> tuple[int, float]:
    slow = False
    opened = 0

    async def connect() -> object:
        nonlocal opened
        opened += slow
        await anyio.sleep(0.15)
        return object()

    async def borrow() -> None:
        async with pool.acquire():
            await anyio.sleep(hold)

    clock: Callable[[], float] = anyio.current_time
    async with ConnectionPool(connect, min_size=5, max_size=50, clock=clock, rng=random.Random(1), **options) as pool:
        await pool.wait_ready()
        for callers in (5, 5, 5, 50) if used else (50,):
            slow = callers == 50
            began = anyio.current_time()
            async with anyio.create_task_group() as group:
                for _ in range(callers):
                    group.start_soon(borrow)
        return opened, anyio.current_time() - began
