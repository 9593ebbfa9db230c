"""Measures what the decisions about the policies speak of; `measure.py` runs it.

Counts and durations of simulations are on virtual time, and the same on every machine.
"""
# ruff: noqa: INP001, S311 - a script beside the pages that cite it; of chance it wants the same each time

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import anyio
import tenacity

from resilience.policies import Hedge, Retry, RetryBudget
from resilience.testing import VirtualClock

TIMES: Final = 20_000
Say = Callable[[str, str, float, str], None]


def measure(say: Say, best_async: Callable[..., float]) -> None:
    """Measure, and tell by decision."""
    _engines(say, best_async)
    _shapes(say, best_async)
    _budgets(say)


# --- 0019 ---


class Failing:
    """Fails so many times before each success."""

    def __init__(self, times: int) -> None:
        self.times = self.left = times

    async def __call__(self) -> None:
        """Fail, or succeed and begin anew."""
        if self.left:
            self.left -= 1
            raise ConnectionError
        self.left = self.times


def _engines(say: Say, best_async: Callable[..., float]) -> None:
    objects: dict[str, Any] = {"stop": tenacity.stop_after_attempt(3), "wait": tenacity.wait_none()}
    errors = tenacity.retry_if_exception_type(OSError)
    engine = tenacity.AsyncRetrying(retry=errors, sleep=_no_pause, reraise=True, **objects)
    ways: dict[str, Callable[[Any], Callable[[], Awaitable[None]]]] = {
        "nothing around it": _itself,
        "tenacity": engine.wraps,
        "our loop, tenacity's objects": Retry(None, on=errors, sleep=_no_pause, **objects),
        "our loop, our own values": Retry(3, on=OSError, wait=0, sleep=_no_pause),
    }
    for failures in (0, 2):
        for what, wrap in list(ways.items())[1 if failures else 0 :]:
            say(
                "0019",
                f"a call, {failures} failures first, {what}",
                best_async(partial(_repeat, wrap(Failing(failures)))),
                "ns",
            )
    careless = tenacity.AsyncRetrying(retry=tenacity.retry_always, stop=objects["stop"], sleep=anyio.sleep)
    for what, wrap in (("tenacity", careless.wraps), ("our loop", Retry(3, on=BaseException, wait=0))):
        say("0019", f"a call that is cancelled in its first attempt, {what}: attempts", _cancelled(wrap), "attempts")


def _itself(function: Any) -> Any:
    return function


async def _repeat(call: Callable[[], Awaitable[None]]) -> None:
    for _ in range(TIMES):
        await call()


async def _no_pause(_: float) -> None: ...


def _cancelled(wrap: Callable[[Any], Any]) -> float:
    """Count the attempts of a call that asyncio is to end in the first, where every failure is to be tried again."""
    made = 0

    async def attempt() -> None:
        nonlocal made
        made += 1
        await anyio.sleep(1)

    async def main() -> None:
        task = asyncio.ensure_future(wrap(attempt)())
        await anyio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError, tenacity.RetryError):
            await task

    VirtualClock().run(main)
    return made


# --- 0020 ---


def _shapes(say: Say, best_async: Callable[..., float]) -> None:
    """Three policies that do nothing, in three shapes."""
    functions = _closure(_closure(_closure(_work)))
    say("0020", "three empty policies: functions around functions", best_async(partial(_repeat, functions)), "ns")
    say("0020", "three empty policies: an engine, steps and a context", best_async(partial(_repeat, _engine)), "ns")
    say("0020", "three empty policies: async context managers", best_async(partial(_repeat, _blocks)), "ns")


async def _work() -> None: ...


def _closure(function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def wrapped(*args: Any, **kwargs: Any) -> None:
        return await function(*args, **kwargs)

    return wrapped


class Step:
    """What many libraries have: an object that is given a context, and the rest of the chain."""

    async def run(self, context: dict[str, Any], rest: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Do nothing before and after the rest."""
        await rest(context)


STEPS: Final = (Step(), Step(), Step())


async def _engine() -> None:
    async def call(place: int, context: dict[str, Any]) -> None:
        if place == len(STEPS):
            return await _work()
        return await STEPS[place].run(context, partial(call, place + 1))

    await call(0, {})


@asynccontextmanager
async def _around() -> AsyncIterator[None]:
    yield


async def _blocks() -> None:
    async with _around(), _around(), _around():
        await _work()


# --- 0021 ---


def _budgets(say: Say) -> None:
    for what, retry, hedge in (
        ("no budget", None, None),
        ("a budget each", RetryBudget(), RetryBudget()),
        ("one budget", *[RetryBudget()] * 2),
    ):
        say("0021", f"1,000 calls in an outage, {what}: attempts", _outage(retry, hedge), "attempts")


def _outage(retry: RetryBudget | None, hedge: RetryBudget | None) -> float:
    """Count the attempts of calls that begin 10 ms after each other, at a callee that fails after a second."""
    made = 0

    async def fail() -> None:
        nonlocal made
        made += 1
        await anyio.sleep(1)
        raise ConnectionError

    async def main() -> None:
        hedged = Hedge(0.5, idempotent=True, budget=hedge, clock=anyio.current_time)(fail)

        async def hidden() -> None:  # a pipeline refuses two budgets
            await hedged()

        call = Retry(3, wait=1.0, budget=retry, clock=anyio.current_time, rng=random.Random(1))(hidden)

        async def impatient() -> None:
            with suppress(ConnectionError):
                await call()

        async with anyio.create_task_group() as group:
            for _ in range(1_000):
                group.start_soon(impatient)
                await anyio.sleep(0.01)

    VirtualClock().run(main)
    return made
