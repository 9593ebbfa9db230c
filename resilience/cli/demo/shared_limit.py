"""Four instances that share one rate limit on a real Redis, the load on them, and the end and return of that Redis."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from resilience.events import FallbackEntered, FallbackLeft, subscribe
from resilience.rate_limiter import Quota, RateLimiter, RedisStore
from resilience.testing.servers import RedisServer, ServerError, find_redis_servers

from .tally import UP, Allowance, Answer, Entered, Left, Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import TaskGroup

    from resilience.events import Subscription

__all__ = ["ALLOWED", "BUDGET", "INSTANCES", "LIMIT_NAME", "OFFERED", "SharedLimit", "kind_of"]

LIMIT_NAME = "demo shared limit"
INSTANCES = 4
ALLOWED = Allowance(rate=40, burst=40)
OFFERED = 120
"""Calls a second, for all instances together: three times what the limit allows."""
BUDGET = 0.25
"""Seconds that a caller waits for Redis at most; the default of `RedisStore`."""

KILLED, RETURNED = 0.4, 0.57
"""When Redis is killed and brought back, as shares of the run. In the shortest run it is gone for half a second, and
the first probes, after 0.8 to 1 s, find it well. In a run of 20 s it takes the third ones, after 3.8 to 4.75 s."""


@asynccontextmanager
async def started_redis() -> AsyncIterator[RedisServer | None]:
    """Start a Redis or Valkey server, if one is installed; it has ended when this scope is left, whatever happens."""
    binary = next(iter(find_redis_servers().values()), None)
    if binary is None:
        yield None
        return
    directory = Path(mkdtemp(prefix="resilience-demo-"))
    server = RedisServer(binary, directory)
    try:
        try:
            # A thread is waited for even when the run is cancelled, so that what it starts is known here.
            await to_thread.run_sync(server.start)
        except ServerError as error:
            sys.stderr.write(f"resilience demo: no Redis: {error}\n")
            yield None
        else:
            yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


class SharedLimit:
    """The instances and what is known about them: read by the views, as `Run` is.

    Each instance is a limiter with a store, connections and a fallback of its own, as in a process of its own.

    Args:
        server: a started server.
        kind: its name and version.
        seconds: planned length.
    """

    def __init__(self, server: RedisServer, kind: str, *, seconds: float) -> None:
        self.kind = kind
        self.port = server.port
        self.pids = [server.pid]
        """Of its lives so far."""
        self.seconds = seconds
        self.killed_at, self.returned_at = seconds * KILLED, seconds * RETURNED
        """Seconds since the load began, as planned; what came of it is in `stage_starts`."""
        self.tally = Tally()
        self.switches: list[Entered | Left] = []
        self.stage_starts: list[float] = []
        self.ended_at: float | None = None
        self.trouble = ""
        """Why Redis could not be brought back."""
        quota = Quota(ALLOWED.rate, 1.0, burst=ALLOWED.burst)
        self.limiters = [
            RateLimiter(quota, name=LIMIT_NAME, store=RedisStore(server.url, prefix="resilience-demo", budget=BUDGET))
            for _ in range(INSTANCES)
        ]
        self._server = server
        self._began = 0.0

    @classmethod
    @asynccontextmanager
    async def started(cls, *, seconds: float) -> AsyncIterator[SharedLimit | None]:
        """Start a server, if one is installed, and let every instance see it, and so the others, before the load."""
        async with started_redis() as server:
            if server is None:
                yield None
                return
            shared = cls(server, kind_of(await to_thread.run_sync(server.info, "server")), seconds=seconds)
            try:
                for limiter in shared.limiters:
                    await limiter.peek()
                yield shared
            finally:
                with anyio.CancelScope(shield=True):  # bounded by the budget
                    async with anyio.create_task_group() as closing:
                        for limiter in shared.limiters:
                            closing.start_soon(limiter.aclose)

    @property
    def elapsed(self) -> float:
        """Seconds since the load began; after the end, until the end."""
        if self.ended_at is not None:
            return self.ended_at
        return time.monotonic() - self._began if self._began else 0.0

    @property
    def stage(self) -> int:
        """Index of the stage that Redis is in."""
        return max(UP, len(self.stage_starts) - 1)

    def span(self, stage: int) -> tuple[float, float]:
        """Give the start and the end so far of a stage that was reached."""
        ends = [*self.stage_starts[1:], self.elapsed]
        return self.stage_starts[stage], ends[stage]

    def alone_at(self, at: float) -> int:
        """Give the number of instances that decided by themselves at that moment."""
        return sum(1 if isinstance(switch, Entered) else -1 for switch in self.switches if switch.at <= at)

    def note_switches(self) -> Subscription:
        """Write down who decides by itself until the subscription is closed."""
        return subscribe(self._note, FallbackEntered, FallbackLeft, name=LIMIT_NAME)

    def _note(self, event: FallbackEntered | FallbackLeft) -> None:
        at = event.at - self._began
        self.switches.append(
            Entered(at, event.cause, event.instances)
            if isinstance(event, FallbackEntered)
            else Left(at, event.duration, event.replayed)
        )

    async def perform(self, began: float) -> None:
        """Send the load, and meanwhile kill Redis and bring it back."""
        self._began = began
        self.stage_starts.append(0.0)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._kill_and_bring_back)
                await self._send_load(tasks)
        finally:
            self.ended_at = self.elapsed

    async def _kill_and_bring_back(self) -> None:
        await self._sleep_until(self.killed_at)
        self._server.kill()
        self.stage_starts.append(self.elapsed)
        await self._sleep_until(self.returned_at)
        try:
            await to_thread.run_sync(self._server.start)
        except ServerError as error:
            self.trouble = str(error).partition("\n")[0]
            return
        self.pids.append(self._server.pid)
        self.stage_starts.append(self.elapsed)

    async def _send_load(self, tasks: TaskGroup) -> None:
        for number in range(int(self.seconds * OFFERED)):
            await self._sleep_until(number / OFFERED)
            tasks.start_soon(self._ask, self.limiters[number % INSTANCES])

    async def _ask(self, limiter: RateLimiter) -> None:
        asked = self.elapsed
        decision = await limiter.try_acquire()
        at = self.elapsed
        self.tally.record(Answer(at, self.stage, at - asked, decision.allowed, decision.source))

    async def _sleep_until(self, at: float) -> None:
        await anyio.sleep(max(0.0, at - self.elapsed))


def kind_of(info: dict[str, str]) -> str:
    """Tell the name and the version of a server, from what it says about itself."""
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
